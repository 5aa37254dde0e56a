#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Checkpoints and snapshots written while a trainer learns, beside fio on the same disk: see bench_cut.c.
#
#     tests/bench/cut.sh [--json] [DIRECTORY [MB [ROUNDS]]]
#
# Without a DIRECTORY one is made in the current one, and removed: 700 MB, about 50 s. The goals speak of
# 4000 MB.
set -euo pipefail
program=${TWOTOWER:-build/release/twotower}
if ! command -v fio >/dev/null; then
    echo "skip snapshot: fio is not installed"
    exit
fi
exec "$(dirname "$program")/tests/bench_cut" "$@"
