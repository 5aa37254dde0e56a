#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# A whole job under ThreadSanitizer: three threads, many cuts, snapshots beside training.
set -u
top=$(cd "$(dirname "$0")/../.." && pwd)
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
fixed=()
# The detector wants its shadow memory where address randomisation may put something else.
setarch -R true 2>/dev/null && fixed=(setarch -R)
sentence="a job with cuts every 200 ms has no data race"
if "${fixed[@]}" "$top/build/tsan/twotower" run --until-end -o source.type=builtin \
    -o source.requests=30000 -o source.users=500 -o source.catalogue=300 \
    -o checkpoint.interval=200ms -o snapshot.interval=300ms -o http.listen= \
    -o state.dir="$dir/state" -o snapshot.dir="$dir/snapshots" >"$dir/log" 2>&1 &&
    ! grep -q "WARNING: ThreadSanitizer" "$dir/log"; then
    echo "ok $sentence"
else
    echo "FAIL $sentence: its log follows"
    cat "$dir/log"
fi
