#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# What exactly-once costs: the time from the start of the process, on a checkpoint of many rows, to the
# first new example, beside what the disk needs for the bytes; applying slices again; the bytes of the
# slice log; and the CPU time of logging slices beside that of learning.
#
#     tests/bench/recovery.sh [--json] [DIRECTORY [USERS [ITEMS]]]
#
# 9,000,000 users and 1,000,000 items make 4.1 GB in DIRECTORY, which stays; without it there are
# 1,800,000 and 200,000 in a directory that is removed, and it takes about a minute. --json leaves out
# what perf tells.
set -uo pipefail
json=()
if [ "${1-}" = --json ]; then
    json=(--json)
    shift
fi
program=${TWOTOWER:-build/release/twotower}
bench=$(dirname "$program")/tests/bench_recovery
if [ $# -gt 0 ]; then
    dir=$1 users=${2:-9000000} items=${3:-1000000}
    mkdir -p "$dir"
else
    dir=$(mktemp -d "$PWD/bench_recovery.XXXXXX") users=1800000 items=200000
    trap 'rm -rf "$dir"' EXIT
fi
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')

# tell STAGE UNIT NUMBER
tell()
{
    if [ ${#json[@]} -gt 0 ]; then
        printf '{"stage":"%s","unit":"%s","ours":%s}\n' "$1" "$2" "$3"
    else
        echo "$1: $3 $2"
    fi
}
rows="$(awk -v users="$users" -v items="$items" 'BEGIN { printf "%.1f million rows", (users + items) / 1e6 }')"

[ ${#json[@]} -gt 0 ] || echo "$(nproc) processors: $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $(findmnt -no SOURCE,FSTYPE -T "$dir")"
"$bench" "${json[@]}" "$dir" "$users" "$items" || exit 1

forget() { find "$dir/state/checkpoints/1" -type f -exec dd if={} iflag=nocache count=0 status=none \;; }
now_ms() { date +%s%3N; }
learned() # whether the process has learned something since it started
{
    exec 3<>"/dev/tcp/127.0.0.1/$port" && printf 'GET /metrics HTTP/1.0\r\n\r\n' >&3 &&
        grep -q '^twotower_steps_total [1-9]' <&3
}

# start: the daemon on the large checkpoint, with room for the rows of the stream.
start()
{
    begun=$(now_ms)
    "$program" run -o "source.users=$users" -o "source.catalogue=$items" -o "state.dir=$dir/state" \
        -o "snapshot.dir=$dir/snapshots" -o eval.sampling=0 -o checkpoint.interval=1d -o snapshot.interval=7d \
        -o tables.items_max=20000000 -o tables.users_max=20000000 -o "http.listen=127.0.0.1:$port" 2>"$dir/log" &
    pid=$!
}

# started: until it has learned something; sets took.
started()
{
    start
    until learned 2>/dev/null; do
        kill -0 "$pid" 2>/dev/null || { tail -n 3 "$dir/log"; return 1; }
        sleep 0.02
    done
    took=$(($(now_ms) - begun))
}
killed() { kill -KILL "$pid" && wait "$pid" 2>/dev/null; }
fresh() { rm -f "$dir"/state/slices-*.log "$dir"/state/dead-letters*; }

for cache in cold warm; do
    fresh
    [ "$cache" = warm ] || forget
    started || exit 1
    tell "start to the first new example, $rows, $cache" ms "$took"
    [ "$cache" = warm ] || killed
done

# The process that was started last goes on; what it has logged is applied again by the next.
sleep 10
killed
slices=$(stat -c %s "$dir"/state/slices-*.log | awk '{ s += $1 } END { print s }')
start
until grep -q ' ready ' "$dir/log"; do sleep 0.05; done
took=$(($(now_ms) - begun))
killed 2>/dev/null
tell "start to ready with what was learned in 10 s since the checkpoint, $rows, warm" ms "$took"
[ ${#json[@]} -gt 0 ] || echo "its slice log has $slices bytes"
fresh

# Small tables, so that what is measured is logging.
stream=(-o source.requests=500000 -o source.seed=1 -o http.listen= -o eval.sampling=0 -o checkpoint.interval=1d
    -o slice.log_keep=16TiB -o snapshot.interval=7d)
for n in 100 1000 4096; do
    rm -rf "$dir/log_bytes"
    "$program" run --until-end "${stream[@]}" -o "slice.events=$n" -o "state.dir=$dir/log_bytes/state" \
        -o "snapshot.dir=$dir/log_bytes/snapshots" 2>"$dir/log" || exit 1
    events=$(grep -oE 'finished +events=[0-9]+' "$dir/log" | grep -oE '[0-9]+$')
    tell "slice log, slices of $n events" "kB per million events" \
        "$(stat -c %s "$dir"/log_bytes/state/slices-*.log | awk -v events="$events" '{ s += $1 }
            END { printf "%.1f", s / events * 1e3 }')"
done

rm -rf "$dir/log_bytes" "$dir/log"
[ ${#json[@]} -eq 0 ] || exit 0

# The share of CPU time, where perf is and may be used.
if perf record -o "$dir/perf" -F 499 -g true >/dev/null 2>&1; then
    for n in 100 4096; do
        rm -rf "$dir/log_bytes"
        perf record -o "$dir/perf" -F 999 "$program" run --until-end "${stream[@]}" -o "slice.events=$n" \
            -o checkpoint.interval=1s -o "state.dir=$dir/log_bytes/state" -o "snapshot.dir=$dir/log_bytes/snapshots" >/dev/null 2>&1
        echo "slices of $n events, a checkpoint each second: share of all CPU time"
        perf report -i "$dir/perf" --stdio --no-children -F overhead,symbol 2>/dev/null |
            awk '/slice_log|slice_digest|XXH3_64|crc32_iscsi|storage_write_all|journal_/ { print "    " $0 }' | head -n 8
    done
else
    echo "no perf here: the share of logging in CPU time is not told"
fi
rm -rf "$dir/log_bytes" "$dir/perf" "$dir/log"
