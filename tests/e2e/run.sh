#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs the end-to-end tests: each tests/e2e/test_NAME.sh, or the ones named, with the built program.
#
#     tests/e2e/run.sh [NAME]...
#
# A script prints `ok SENTENCE`, `FAIL SENTENCE: why` or `skip SENTENCE: reason` for everything it
# tries, and it finds in its environment what tests/run hands on (TWOTOWER, TWOTOWER_DEV,
# TWOTOWER_DATA) and a directory of its own, E2E_DIR, which is also its TMPDIR; it starts in the top of
# the tree. The directory is emptied before the script runs and stays behind only when it failed.
# One that ends badly or without a line has failed, and so has one that needs more than 15 minutes.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
cd "$root" || exit 70
export TWOTOWER=${TWOTOWER:-$root/build/release/twotower}
export TWOTOWER_DEV=${TWOTOWER_DEV:-$root/build/dev/twotower}
export TWOTOWER_DATA=${TWOTOWER_DATA:-$root/../shared/data}

tests=()
for name in "$@"; do tests+=("$here/test_$name.sh"); done
[ ${#tests[@]} -gt 0 ] || tests=("$here"/test_*.sh)

failed=0
for test in "${tests[@]}"; do
    name=$(basename "$test" .sh)
    name=${name#test_}
    export E2E_DIR=$root/build/e2e/$name
    rm -rf "$E2E_DIR"
    mkdir -p "$E2E_DIR"
    out=$root/build/e2e/$name.out
    begin=$SECONDS status=0
    TMPDIR=$E2E_DIR timeout --kill-after=10 900 bash "$test" </dev/null >"$out" 2>&1 || status=$?
    sed -E "s#^(ok|FAIL|skip) #\1 e2e/$name #" "$out"
    bad=$(grep -c '^FAIL ' "$out")
    if [ "$bad" -eq 0 ] && [ "$status" -ne 0 ]; then
        echo "FAIL e2e/$name: ended with status $status"
        tail -n 40 "$out"
        bad=1
    elif ! grep -qE '^(ok|FAIL|skip) ' "$out"; then
        echo "FAIL e2e/$name: it tried nothing"
        bad=1
    fi
    echo "-- e2e/$name took $((SECONDS - begin)) s"
    [ "$bad" -ne 0 ] || rm -rf "$E2E_DIR"
    failed=$((failed + bad))
done
[ "$failed" -eq 0 ]
