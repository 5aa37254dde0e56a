#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Prints the path of a Python that has tests/python/requirements.txt, and makes it first if need be.
#
#     python=$(tests/python/venv.sh) || exit
#
# The environment is build/venv; it is made anew when the requirements have changed. Callers at the same
# time wait for the first one. What pip says goes to build/venv.log, and to stderr when it fails.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
build=$(cd "$here/../.." && pwd)/build
venv=$build/venv
wanted=$here/requirements.txt

mkdir -p "$build"
exec 9>"$build/venv.lock"
flock 9
if ! cmp -s "$wanted" "$venv/made-of.txt"; then
    rm -rf "$venv"
    if ! { python3 -m venv "$venv" && "$venv/bin/pip" install --disable-pip-version-check --requirement "$wanted"; } \
        >"$build/venv.log" 2>&1 9>&-; then
        tail -n 20 "$build/venv.log" >&2
        echo "tests/python/venv.sh: no environment could be made; all that was said is in build/venv.log" >&2
        exit 1
    fi
    cp "$wanted" "$venv/made-of.txt"
fi
echo "$venv/bin/python"
