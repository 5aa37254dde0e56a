#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The command line as a person or a supervisor meets it: help, mistakes, hints, exit statuses.
#
#     tests/cli/run.sh             prints `ok SENTENCE` or `FAIL SENTENCE: why`
#     tests/cli/run.sh --accept    writes what is said now as what is expected; look at the difference
#
# broken/NAME.toml is a configuration with mistakes, broken/NAME.expected what `twotower check` says of
# it; help/NAME.expected is a help text. TWOTOWER names the program, TWOTOWER_DEV the one with
# sanitizers, which is the one run when it is there.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
program=${TWOTOWER:-$here/../../build/release/twotower}
[ ! -x "${TWOTOWER_DEV:-}" ] || program=$TWOTOWER_DEV
accept=${1:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$here/broken" || exit 70

failed=0
verdict() # SENTENCE WHY-NOT
{
    if [ -z "$2" ]; then
        echo "ok $1"
    else
        echo "FAIL $1: $2"
        failed=1
    fi
}

# Runs the program; leaves out, err and status.
twotower()
{
    status=0
    "$program" "$@" >"$work/out" 2>"$work/err" </dev/null || status=$?
}

# says STATUS FILE TEXT SENTENCE: the last run ended so, and this stands in out or err.
says()
{
    if [ "$status" -ne "$1" ]; then
        verdict "$4" "status $status instead of $1; $(head -n 3 "$work/err" | tr '\n' ' ')"
    elif ! grep -qF -- "$3" "$work/$2"; then
        verdict "$4" "'$3' is not in: $(head -n 3 "$work/$2" | tr '\n' ' ')"
    else
        verdict "$4" ""
    fi
}

# expects FILE SENTENCE WHY-NOT STREAM: out or err is what FILE holds; with --accept it becomes that.
expects()
{
    if [ "$accept" = --accept ]; then
        cp "$work/$4" "$1"
    fi
    if [ -z "$3" ] && ! diff -u "$1" "$work/$4" >"$work/diff"; then
        cat "$work/diff"
        verdict "$2" "it says something else than ${1#"$here/"}"
    else
        verdict "$2" "$3"
    fi
}

for file in *.toml; do
    name=${file%.toml}
    twotower check -c "$file"
    why=
    [ "$status" -eq 78 ] || why="status $status instead of 78"
    expects "$here/broken/$name.expected" "check names every mistake of $file" "$why" err
done

for command in "" run replay demo eval check verify inspect snapshot topk help version; do
    # shellcheck disable=SC2086 # no word for the overview
    twotower help $command
    why=
    [ "$status" -eq 0 ] || why="status $status"
    lines=$(wc -l <"$work/out")
    [ "$lines" -le 24 ] || why="$lines lines: more than a screen"
    [ "$(awk 'length > 100' "$work/out" | wc -l)" -eq 0 ] || why="a line is longer than 100 characters"
    head -n 1 "$work/out" | grep -q '^    twotower ' || why="it does not start with an example"
    expects "$here/help/${command:-overview}.expected" "help ${command:-overview} fits a screen and starts with an example" "$why" out
done

twotower
says 0 out "twotower demo" "without arguments it helps"
twotower --help
says 0 out "Commands:" "--help is help"
twotower run --help
says 0 out "--until-end" "a command's --help is its help"
twotower --version
says 0 out "twotower " "--version is version"
twotower version
says 0 out "OpenBLAS" "version names the BLAS and its core"

twotower chekc
says 64 err "unknown command 'chekc'; did you mean 'check'?" "a mistyped command gets a hint and status 64"
twotower help chekc
says 64 err "did you mean 'check'?" "help of a mistyped command gets the same hint"
twotower frobnicate
says 64 err "Try 'twotower help'." "a word that is nothing leads to help"
twotower run --untl-end
says 64 err "unknown option '--untl-end'; did you mean '--until-end'?" "a mistyped option gets a hint"
twotower run -x
says 64 err "unknown option '-x'; see 'twotower help run'" "an unknown letter leads to help"
twotower run -c
says 64 err "'-c' needs a value" "an option without its value is said"
twotower run --until-end=yes
says 64 err "'--until-end' takes no value" "a flag with a value is said"
twotower verify
says 64 err "SNAPSHOT is missing" "a missing operand is said with an example"
twotower verify one two
says 64 err "unexpected 'two'" "an operand too many is said"
twotower verify -c x.toml one
says 64 err "unknown option '-c'" "a command without configuration takes none"

twotower check
says 0 out "defaults: the configuration is valid" "the defaults are valid"
twotower check -c "$here/../../deploy/twotower.toml"
says 0 out "twotower.toml: the configuration is valid" "the shipped sample is valid"
twotower check -c /nonexistent.toml
says 78 err "/nonexistent.toml: error: cannot be read: No such file or directory" "a missing file is status 78"
twotower check -o join.windw=1h -o join.window=9d
says 78 err "-o:1: error: unknown key 'join.windw'; did you mean 'join.window'?" "a mistyped -o gets a hint"
says 78 err "-o:2: error: 'join.window' must be between 1s and 7d, not 9d" "the second -o is told apart from the first"
twotower run -o join.windw=1h
says 78 err "did you mean 'join.window'?" "run does not start with a mistake in its configuration"
twotower eval --events "" --json
says 78 err "'source.path' is needed when 'source.type' is file" "--events is checked like source.path"
twotower check -o kernels.set=none
says 78 err "'kernels.set' must be auto, plain, avx2, avx512 or amx, not 'none'" "a wrong word lists the right ones"

printf '[model]\nbatch = 100\n' >"$work/one.toml"
twotower check --show -c "$work/one.toml" -o model.dim=32 -o source.kafka.sasl.password=hunter2
says 0 out "batch = 100 # $work/one.toml:2:9" "--show says which line of a file gave a value"
says 0 out "dim = 32 # -o:1" "--show says which -o gave a value"
says 0 out "seed = 1 # default" "--show says what is a default"
why=
grep -q hunter2 "$work/out" && why="it does"
verdict "--show does not print a password" "$why"

twotower check --sample
why=
cmp -s "$work/out" "$here/../../deploy/twotower.toml" || why="run: twotower check --sample > deploy/twotower.toml"
verdict "deploy/twotower.toml is what --sample prints" "$why"

twotower check --json -c unknown_key.toml
why=$(python3 - "$work/out" 2>&1 <<'CHECK'
import json, sys
answer = json.load(open(sys.argv[1]))
assert answer["ok"] is False, answer
assert [(p["line"], p["column"]) for p in answer["problems"]] == [(2, 1), (5, 1), (6, 1)], answer
assert answer["problems"][0]["file"] == "unknown_key.toml", answer
CHECK
) || true
[ "$status" -eq 78 ] || why="status $status"
verdict "check --json is JSON with line and column" "$(tail -n 1 <<<"$why")"

exit "$failed"
