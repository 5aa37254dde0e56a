#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# kill -9 at every point at which the program changes the disk (tests/support/faults.c names them):
# before and after the call, and in the middle of a write; at its first time, about the middle and
# late. And at random times, with the ring of io_uring. After a few kills a run goes to its end, and
# has learned what an uninterrupted one has: every event once.
set -uo pipefail
. tests/e2e/support.sh
dir=$(realpath "$E2E_DIR")

runs=${RUNS:-5} # at once: most of the time is waiting for the disk
seed=${SEED:-$RANDOM}
echo "seed $seed; SEED=$seed tries the same random times again, ONLY='rename LATEST' one point"

often=(-o checkpoint.interval=100ms -o snapshot.interval=200ms -o checkpoint.keep=1 -o snapshot.keep=1
    -o slice.events=4 -o slice.log_max=64KiB -o slice.log_keep=0 -o model.dim=16)
# shellcheck disable=SC2034 # by their names
builtin=(-o source.type=builtin -o source.requests=12000 -o source.users=500 -o source.catalogue=240 -o source.seed=7
    "${often[@]}")
mkdir "$dir/stream"
python3 tests/e2e/stream_make.py "$dir/stream" 3 4000
# shellcheck disable=SC2034
file=(-o source.type=file -o "source.path=$dir/stream" -o dead_letter.max_bytes=16KiB -o join.window=2m "${often[@]}")

# all_of NAME: everything that is to be the same at the end. The rejected records are no more than two
# files: letters of before a checkpoint may go only if it happens twice after it.
all_of()
{
    local letters=$dir/$1/state/dead-letters.jsonl
    echo "$(digest "$1") $(totals "$1")$(state_sum "$1") $(cat "$letters.1" "$letters" 2>/dev/null | cksum)"
}

# killed NAME STREAM KILL...: one attempt for each KILL, of FAULT_KILL, then to the end. Its directory
# keeps how many were tried and how many came, and what was wrong.
killed()
{
    local name=$1 stream=$2 kill status n=0 tried=0
    local -n arguments=$stream
    shift 2
    for kill in "$@"; do
        faulty "$name" "FAULT_KILL=$kill"
        status=0
        { twotower "$name" run --until-end -o snapshot.io=pwrite "${arguments[@]}"; } 2>/dev/null || status=$?
        tried=$((tried + 1))
        case $status in
        137) n=$((n + 1)) ;;
        0) break ;;
        *)
            echo "status $status at $kill: $(tail -n 1 "$dir/$name/log")" >>"$dir/$name/wrong"
            break
            ;;
        esac
    done
    under=()
    ended "$name" "$stream" "$n" "$tried" "$*"
}

# killed_at_random NAME STREAM SEED: five times, by io_uring where there is one.
killed_at_random()
{
    local name=$1 stream=$2
    local -n arguments=$stream
    # The start, which takes 0.1 s, is short of points: most kills come after it.
    killed_often "$3" 5 40 700 "$name" "${arguments[@]}" >"$dir/$name.said"
    ended "$name" "$stream" "$kills" 5 "$(head -n 1 "$dir/$name.said")"
}

ended() # NAME STREAM KILLS TRIED HOW
{
    local name=$1 got
    local -n arguments=$2 expected=expected_$2
    until_end "$name" "${arguments[@]}" >>"$dir/$name/wrong" 2>&1
    got=$(all_of "$name")
    [ "$got" = "$expected" ] || echo "expected '$expected', got '$got'" >>"$dir/$name/wrong"
    [ -z "$(find "$dir/$name" -name '.tmp-*')" ] || echo "left behind: $(find "$dir/$name" -name '.tmp-*')" >>"$dir/$name/wrong"
    echo "$3 $4" >"$dir/$name.kills"
    if [ -s "$dir/$name/wrong" ]; then
        { echo "$2, killed $3 times, at: $5" && cat "$dir/$name/wrong"; } >"$dir/$name.wrong"
    else
        rm -rf "${dir:?}/$name"
    fi
}

# The uninterrupted runs: what is expected, which points there are and how often.
for stream in builtin file; do
    declare -n arguments=$stream
    faulty "reference_$stream" "FAULT_TRACE=$dir/trace_$stream"
    until_end "reference_$stream" -o snapshot.io=pwrite "${arguments[@]}" || exit 1
    under=()
    declare "expected_$stream=$(all_of "reference_$stream")"
    sed -E 's/ [0-9]+( killed| failed)?$//' "$dir/trace_$stream" | sort | uniq -c | sed -E 's/^ *([0-9]+) /\1\t/' >"$dir/points_$stream"
    echo "$stream: $(totals "reference_$stream")$(wc -l <"$dir/points_$stream") points:"
    awk -F '\t' '{ printf "    %s %d", $2, $1 } NR % 5 == 0 { print "" } END { print "" }' "$dir/points_$stream"
done

# One run for each point, killed there again and again: each attempt has behind it what the ones before
# have done. The stream with records that are no events is for the points that the other has not.
plan=()
planned() # STREAM POINT TIMES
{
    local point=$2 n=$3 part
    [ -z "${ONLY:-}" ] || [ "$ONLY" = "$point" ] || return
    part=$((n > 3 ? n / 3 : 1))
    plan+=("$1|$point:1:before|$point:1:after|$point:$part:before|$point:$part:after|$point:$((part > 2 ? part - 2 : 1)):before")
    [[ $point != write* ]] || plan+=("$1|$point:1:torn|$point:$part:torn|$point:$part:torn")
}
points=0
while IFS=$'\t' read -r n point; do
    points=$((points + 1))
    planned builtin "$point" "$n"
done <"$dir/points_builtin"
while IFS=$'\t' read -r n point; do
    if ! cut -f 2 "$dir/points_builtin" | grep -qxF "$point"; then
        points=$((points + 1))
    elif ! [[ $point =~ (dead-letters|slices|checkpoint)$ ]]; then
        continue
    fi
    planned file "$point" "$n"
done <"$dir/points_file"

[ ${#plan[@]} -gt 0 ] || bad "there is a point" "none is called '$ONLY'"
begun=$SECONDS
for i in "${!plan[@]}"; do
    while [ "$(jobs -rp | wc -l)" -ge "$runs" ]; do wait -n; done
    IFS='|' read -r -a task <<<"${plan[i]}"
    killed "point$i" "${task[@]}" &
done
if [ -z "${ONLY:-}" ]; then
    for i in {0..11}; do
        while [ "$(jobs -rp | wc -l)" -ge "$runs" ]; do wait -n; done
        stream=$([ $((i % 3)) -eq 2 ] && echo file || echo builtin)
        killed_at_random "random$i" "$stream" $((seed + i)) &
    done
fi
wait

read -r kills tried < <(cat "$dir"/*.kills | awk '{ k += $1; t += $2 } END { print k + 0, t + 0 }')
wrong=("$dir"/*.wrong)
if [ -e "${wrong[0]}" ]; then
    bad "killed at every point, it learns the same" "${#wrong[@]} runs did not: $(head -n 2 "${wrong[0]}" | tr '\n' ' ')"
    cat "${wrong[@]}"
else
    ok "killed at every point, it learns the same and keeps each rejected record once"
fi
[ -n "${ONLY:-}" ] || check "it was killed at least 200 times" "$kills kills" [ "$kills" -ge 200 ]
echo "# $kills kills survived, of $tried tried, at $points points, in $((SECONDS - begun)) s"
