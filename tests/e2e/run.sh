#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs the end-to-end tests: each tests/e2e/test_NAME.sh, or the ones named, with the built program.
#
#     tests/e2e/run.sh [NAME]...
#
# A script speaks by the rules of tests/support/verdicts.sh and has 15 minutes. It starts in the top of
# the tree and finds in its environment what tests/run hands on (TWOTOWER, TWOTOWER_DEV, TWOTOWER_DATA),
# FAULTS, which is tests/support/faults.c built, and an empty directory of its own, E2E_DIR, which is also its TMPDIR and stays behind when it failed.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
cd "$root" || exit 70
. tests/support/verdicts.sh
export TWOTOWER=${TWOTOWER:-$root/build/release/twotower}
export TWOTOWER_DEV=${TWOTOWER_DEV:-$root/build/dev/twotower}
export TWOTOWER_DATA=${TWOTOWER_DATA:-$root/../shared/data}
export FAULTS=${FAULTS:-$(dirname "$TWOTOWER")/tests/faults.so}

tests=()
for name in "$@"; do tests+=("$here/test_$name.sh"); done
[ ${#tests[@]} -gt 0 ] || tests=("$here"/test_*.sh)

status=0
for test in "${tests[@]}"; do
    name=$(basename "$test" .sh)
    name=${name#test_}
    export E2E_DIR=$root/build/e2e/$name
    rm -rf "$E2E_DIR"
    mkdir -p "$E2E_DIR"
    begin=$SECONDS
    if verdicts "$name" 900 env TMPDIR="$E2E_DIR" bash "$test"; then
        rm -rf "$E2E_DIR"
    else
        status=1
    fi
    echo "-- $name took $((SECONDS - begin)) s"
done
exit "$status"
