#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# README.md, followed to the letter: its records are events, its configuration is valid, its commands
# do what it says. What needs a broker or installs something is only looked at.
set -uo pipefail
. tests/e2e/support.sh
dir=$E2E_DIR
top=$PWD
readme=$top/README.md

# block LANGUAGE: the lines of all code blocks of this language.
block()
{
    awk -v fence="\`\`\`$1" '$0 == fence { on = 1; next } /^```/ { on = 0 } on' "$readme"
}

# One file for each topic, named and filled as its line says.
mkdir "$dir/stream"
grep -E '^[a-z_]+ +\{' "$readme" | while read -r topic record; do
    printf '%s}\n' "${record%\}*}" >"$dir/stream/$topic.jsonl"
done
same "a record of each of the four topics is shown" "engagements impressions items ranker_scores" \
    "$(find "$dir/stream" -name '*.jsonl' -printf '%f\n' | sort | sed 's/\.jsonl$//' | paste -sd ' ')"

block toml >"$dir/twotower.toml"
cd "$dir" || exit 70

# mentions COMMAND OPTION...: the command's help knows each.
mentions()
{
    local option
    for option in "${@:2}"; do
        "$TWOTOWER" help "$1" | grep -qE -- "(^| )$option( |$)" || return 1
    done
}

# follow LINE: runs it on the records above; the log, and what it printed in out.
follow()
{
    local word words=()
    for word in $1; do
        case $word in
        build/release/twotower | twotower) word=$TWOTOWER ;;
        /var/lib/twotower/snapshots) word=data/snapshots ;;
        DIR) word=stream ;;
        source.path=DIR) word=source.path=stream ;;
        esac
        words+=("$word")
    done
    [ "${words[1]}" != run ] || words+=(-o http.listen=)
    "${words[@]}" >out 2>log
}

# The one that makes a snapshot comes before those that read it.
mapfile -t lines < <(block console | sed -n 's/^\$ //p' | sed 's/ *# .*//' |
    awk '/--until-end/ { print; next } { later[n++] = $0 } END { for (i = 0; i < n; i++) print later[i] }')
same "there are commands to follow" yes "$([ ${#lines[@]} -ge 8 ] && echo yes)"
for line in "${lines[@]}"; do
    case $line in
    deploy/quickstart | tests/run)
        check "$line is there" "it cannot be executed" test -x "$top/$line"
        ;;
    *" run -c "* | *" replay "*)
        read -ra words <<<"$line"
        mapfile -t options < <(printf '%s\n' "${words[@]}" | grep -E '^-')
        check "$line: help knows its options" "not all of ${options[*]}" mentions "${words[1]}" "${options[@]/#-c/-c,}"
        ;;
    *)
        if follow "$line"; then ok "$line"; else bad "$line" "status $?: $(tail -n 1 log)"; fi
        ;;
    esac
    case $line in
    *" check "*) same "the configuration is valid" "twotower.toml: the configuration is valid" "$(cat out)" ;;
    *" topk "*) same "the user's best item is the one of the catalogue" 1 "$(grep -c 'A title' out)" ;;
    *" eval "*)
        same "its four records are joined, none is rejected" "joined 4 rejected 0" \
            "$(python3 -c 'import json
report = json.load(open("out"))
print("joined", report["joined"], "rejected", report["rejected"])')"
        ;;
    esac
done

# Files that it names, in text and tables.
grep -oE '`(tests|deploy)/[A-Za-z0-9_./-]+' "$readme" | tr -d '`' | sort -u | while read -r file; do
    [ -e "$top/$file" ] || echo "$file"
done >absent
same "every file that it names is there" "none absent" "none absent$(paste -sd ' ' absent)"
