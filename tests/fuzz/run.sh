#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Feeds hostile bytes to everything that reads bytes of others: each target of tests/fuzz for a time.
#
#     tests/fuzz/run.sh [SECONDS]     of each target, default 60
#
# A target begins with the inputs of tests/fuzz/corpus/NAME and with what earlier runs found, which
# is kept in build/fuzz/corpus/NAME. An input that fails is left in build/fuzz/failed/, and the line
# that runs it again is printed; with its cause mended it belongs into tests/fuzz/corpus/NAME.
set -uo pipefail

cd "$(dirname "$0")/../.." || exit 70
seconds=${1:-60}
programs=build/fuzz/tests/fuzz
work=$(mktemp -d -p "$([ -w /dev/shm ] && echo /dev/shm || echo "${TMPDIR:-/tmp}")") || exit 70
trap 'rm -rf "$work"' EXIT
# Address layouts with more random bits than clang 14's sanitizer expects stop it at start.
fixed=()
setarch -R true 2>/dev/null && fixed=(setarch -R)
mkdir -p build/fuzz/failed

# How long an input may be: a long one is slow, and says little more than a short one.
declare -A longest=([config]=4096 [decode]=4096 [manifest]=8192 [reader]=32768 [slice_log]=4096)

# target NAME: prints its verdict, and of a failure what was said.
target()
{
    local name=$1 status=0 said=$work/$1.said failed runs words=()
    [ ! -e "tests/fuzz/$name.dict" ] || words=("-dict=tests/fuzz/$name.dict")
    mkdir -p "build/fuzz/corpus/$name" "$work/$name"
    TMPDIR=$work/$name "${fixed[@]}" "$programs/fuzz_$name" "${words[@]}" \
        -max_total_time="$seconds" -max_len="${longest[$name]:-4096}" -timeout=20 -rss_limit_mb=2048 \
        -print_final_stats=1 -artifact_prefix="build/fuzz/failed/$name-" \
        "build/fuzz/corpus/$name" "tests/fuzz/corpus/$name" >"$said" 2>&1 || status=$?
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$said")
    if [ "$status" -eq 0 ] && [ "${runs:-0}" -gt 0 ]; then
        echo "ok $name takes whatever bytes come, $seconds s: $runs inputs," \
            "$(sed -n 's/^stat::average_exec_per_sec: *//p' "$said") a second"
        return
    fi
    failed=$(sed -n 's/.*Test unit written to //p' "$said" | tail -n 1)
    echo "FAIL $name takes whatever bytes come: $programs/fuzz_$name ${failed:-ended with status $status}"
    grep -vE '^#[0-9]+' "$said" | tail -n 50 | sed 's/^/    /'
}

# As many at a time as there are processors.
for source in tests/fuzz/fuzz_*.c; do
    name=${source##*/fuzz_}
    echo "${name%.c}"
done >"$work/names"
while read -r name; do
    while [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; do wait -n; done
    target "$name" >"$work/$name.verdict" &
done <"$work/names"
wait
while read -r name; do cat "$work/$name.verdict"; done <"$work/names"
! grep -q '^FAIL ' "$work"/*.verdict
