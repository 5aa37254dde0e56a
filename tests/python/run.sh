#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs every tests/python/test_*.py with the Python of tests/python/venv.sh. Each prints `ok SENTENCE`,
# `FAIL SENTENCE: why` or `skip SENTENCE: reason`; one that ends badly or silently has failed.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.." || exit 70
export TWOTOWER=${TWOTOWER:-$PWD/build/release/twotower}
export TWOTOWER_DATA=${TWOTOWER_DATA:-$PWD/../shared/data}
python=$(bash tests/python/venv.sh) || {
    echo "FAIL python: no environment with tests/python/requirements.txt"
    exit 1
}

failed=0
for test in "$here"/test_*.py; do
    name=$(basename "$test" .py)
    name=${name#test_}
    out=build/python.$name.out status=0
    timeout --kill-after=10 300 "$python" "$test" </dev/null >"$out" 2>&1 || status=$?
    sed -E "s#^(ok|FAIL|skip) #\1 python/$name #" "$out"
    bad=$(grep -c '^FAIL ' "$out")
    if [ "$bad" -eq 0 ] && [ "$status" -ne 0 ]; then
        echo "FAIL python/$name: ended with status $status"
        tail -n 40 "$out"
        bad=1
    elif ! grep -qE '^(ok|FAIL|skip) ' "$out"; then
        echo "FAIL python/$name: it tried nothing"
        bad=1
    fi
    failed=$((failed + bad))
done
[ "$failed" -eq 0 ]
