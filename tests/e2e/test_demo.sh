#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The demo, short: the same seed shows the same figures and draws the same picture, however fast the
# machine is; it learns; what it says to try next works; it cleans up after itself and nothing else.
set -uo pipefail

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

# demo DIRECTORY ARGUMENT...: runs it in a directory of its own below E2E_DIR; leaves status.
demo()
{
    local directory=$E2E_DIR/$1
    shift
    mkdir -p "$directory"
    status=0
    (cd "$directory" && exec "$TWOTOWER" demo -o http.listen= "$@") >"$directory/out" 2>"$directory/err" ||
        status=$?
}

# What does not depend on the clock: everything below the headline of the films, up to the picture.
figures()
{
    sed -n '/^Nearest films/,/^Picture/p' "$E2E_DIR/$1/out"
}

# number DIRECTORY REGEX: the first group in the output.
number()
{
    sed -nE "s/.*$2.*/\1/p" "$E2E_DIR/$1/out" | head -n 1
}

# Two at the same time, and one of them is held twice: its clock and its writer run differently.
demo one --seconds 3 --seed 5 &
one=$!
mkdir -p "$E2E_DIR/two"
(cd "$E2E_DIR/two" && exec "$TWOTOWER" demo -o http.listen= --seconds 3 --seed 5) \
    >"$E2E_DIR/two/out" 2>"$E2E_DIR/two/err" &
two=$!
for pause in 1 0.7; do
    sleep "$pause"
    kill -STOP "$two"
    sleep 0.6
    kill -CONT "$two"
done
wait "$one" "$two"
figures one >"$E2E_DIR/one.figures"
figures two >"$E2E_DIR/two.figures"
why=
if ! grep -q '^  digest ' "$E2E_DIR/one.figures"; then
    why="no figures: $(tail -n 3 "$E2E_DIR/one/err" | tr '\n' ' ')"
elif ! diff "$E2E_DIR/one.figures" "$E2E_DIR/two.figures" >"$E2E_DIR/diff"; then
    why=$(tr '\n' ' ' <"$E2E_DIR/diff")
fi
verdict "the same seed gives the same figures" "$why"
why=
cmp -s "$E2E_DIR/one/data/demo.svg" "$E2E_DIR/two/data/demo.svg" || why="the files differ"
verdict "the same seed draws the same picture" "$why"

demo other --seconds 3 --seed 6
why=
[ "$status" -eq 0 ] || why="status $status: $(tail -n 3 "$E2E_DIR/other/err")"
[ "$(number other 'digest +([0-9a-f]{64})')" != "$(number one 'digest +([0-9a-f]{64})')" ] ||
    why="the digest is the same"
verdict "another seed is another stream" "$why"

# A longer one, in the directory of the first: its files are replaced, strangers stay.
touch "$E2E_DIR/one/data/demo/notes" "$E2E_DIR/one/data/demo/state/left-over"
demo one --seconds 12 --picture recall.svg
why=
[ "$status" -eq 0 ] || why="status $status: $(tail -n 3 "$E2E_DIR/one/err")"
verdict "it ends with status 0" "$why"
model=$(number one 'recall@100   ([0-9.]+) over all')
popularity=$(number one 'over all, popularity ([0-9.]+)')
why=
awk -v m="$model" -v p="$popularity" 'BEGIN { exit !(p > 0.1 && m > 1.1 * p) }' ||
    why="recall@100 ${model:-?} against ${popularity:-?}"
verdict "after twelve seconds it predicts better than popularity" "$why"
why=
grep -q 'a new film is released: "Night Train to Lviv" (Drama)' "$E2E_DIR/one/out" || why="not a word of it"
verdict "a new film is released" "$why"
why=
python3 - "$E2E_DIR/one/recall.svg" <<'END' || why="see above"
import sys
import xml.etree.ElementTree as tree

root = tree.parse(sys.argv[1]).getroot()
assert root.tag == "{http://www.w3.org/2000/svg}svg", root.tag
text = " ".join(root.itertext())
assert "popularity" in text and "Night Train" in text, text
END
verdict "the picture is well-formed XML and names its lines" "$why"
why=
[ -e "$E2E_DIR/one/data/demo/notes" ] || why="it removed a file that is not its own"
[ ! -e "$E2E_DIR/one/data/demo/state/left-over" ] || why="it left the state of the run before"
verdict "it removes what a former demo has left, and nothing else" "$why"

# The lines to try next, as they stand.
why=
lines=$(sed -n '/^Try next/,$p' "$E2E_DIR/one/out" | grep '^    ')
[ "$(wc -l <<<"$lines")" -eq 5 ] || why="not five lines: $lines"
while IFS= read -r command; do
    (cd "$E2E_DIR/one" && bash -c "$command") >"$E2E_DIR/next" 2>&1 || why="$command: $(tail -n 2 "$E2E_DIR/next")"
done <<<"$lines"
verdict "the lines to try next work" "$why"
why=
(cd "$E2E_DIR/one" && bash -c "$(grep -e '--item' <<<"$lines")") 2>/dev/null | grep -q 'The ' ||
    why="no titles: $(tail -n 3 "$E2E_DIR/next")"
verdict "topk shows films by their titles" "$why"

# Strangers' files where the demo would work.
mkdir -p "$E2E_DIR/stranger/data/demo/state"
touch "$E2E_DIR/stranger/data/demo/state/thesis"
demo stranger --seconds 3
why=
[ "$status" -eq 77 ] || why="status $status"
[ -e "$E2E_DIR/stranger/data/demo/state/thesis" ] || why="the file is gone"
verdict "a directory that no demo has made is refused" "$why"

# The end by Ctrl-C.
mkdir -p "$E2E_DIR/early"
(cd "$E2E_DIR/early" && exec timeout --preserve-status --signal=INT 3 "$TWOTOWER" demo -o http.listen=) \
    >"$E2E_DIR/early/out" 2>"$E2E_DIR/early/err"
status=$?
why=
grep -q '^  learned  *[0-9,]* clicks' "$E2E_DIR/early/out" || why="no figures: $(tail -n 3 "$E2E_DIR/early/err")"
[ "$status" -eq 0 ] || why="status $status"
verdict "SIGINT ends it early and in order" "$why"

# The second run of a user: nothing to build, nothing to wait for.
why=
begin=$(date +%s%N)
mkdir -p "$E2E_DIR/first"
(cd "$E2E_DIR/first" && exec "$TWOTOWER" demo --seconds 3 -o http.listen= 2>/dev/null) |
    { grep -q -m 1 '^stream ' && date +%s%N >"$E2E_DIR/first/seen" && cat >/dev/null; }
seen=$(cat "$E2E_DIR/first/seen" 2>/dev/null) || seen=
if [ -z "$seen" ]; then
    why="nothing was seen"
elif [ $(((seen - begin) / 1000000)) -ge 3000 ]; then
    why="$(((seen - begin) / 1000000)) ms"
fi
verdict "the screen begins in less than three seconds" "$why"

exit "$failed"
