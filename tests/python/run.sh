#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs every tests/python/test_*.py with the Python of tests/python/venv.sh, by the rules of
# tests/support/verdicts.sh.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.." || exit 70
. tests/support/verdicts.sh
export TWOTOWER=${TWOTOWER:-$PWD/build/release/twotower}
export TWOTOWER_DATA=${TWOTOWER_DATA:-$PWD/../shared/data}
python=$(bash tests/python/venv.sh) || {
    echo "FAIL python: no environment with tests/python/requirements.txt"
    exit 1
}

status=0
for test in "$here"/test_*.py; do
    name=$(basename "$test" .py)
    verdicts "${name#test_}" 300 "$python" "$test" || status=1
done
exit "$status"
