#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# What a live run has learned can be had again: its slices were cut by clocks and arrival, and
# `replay --recorded` gives its snapshots from them to the byte. Where a log has lost what we had not
# read, it stops; allowed to go on, it records what it left out, and that replays as well.
#
# Needs KAFKA_BOOTSTRAP, KAFKA_BROKER, TWOTOWER and TEST_DIR, which tests/kafka/run.sh sets.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 70
. tests/kafka/support.sh
seed=${SEED:-$RANDOM}
random_state=$seed
echo "# seed $seed; SEED=$seed tries the same again"

mkdir "$dir/made"
python3 tests/e2e/stream_make.py "$dir/made" 3 6000 orderly

# twelfth AT: this part of every topic, into the broker.
twelfth()
{
    local topic total
    for topic in "${topics[@]}"; do
        total=$(wc -l <"$dir/made/$topic.jsonl")
        sed -n "$((total * $1 / 12 + 1)),$((total * ($1 + 1) / 12))p" "$dir/made/$topic.jsonl" |
            produce "$topic" "followed-$topic"
    done
}

slice_of()
{
    python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["lineage"]["slice"])' \
        "$dir/$1/snapshots/$2/manifest.json"
}

# follow NAME FROM GENERATION ARGUMENT...: the digest of a recorded replay up to that snapshot's slice.
follow()
{
    local name=$1 from=$2 slice
    slice=$(slice_of "$2" "$3")
    shift 3
    twotower "$name" replay --recorded "$dir/$from/state" --to "$slice" "$@" || echo "status $?"
    digest "$name"
}

# count DIR: how many events its files are; an impression is one item shown.
count()
{
    local topic n=0
    for topic in items ranker_scores engagements; do n=$((n + $(lines "$1" "$topic" | wc -l))); done
    echo $((n + $(lines "$1" impressions | grep -o '"item_id"' | wc -l)))
}

# stopped NAME EVENTS: when so many were applied.
stopped()
{
    check "$1: $2 events are read" "${got:-none}" reaches "$1" "$2" 60
    kill -TERM "$pid"
    wait_for "$pid"
}

generations() { find "$dir/$1/snapshots" -maxdepth 1 -name '[0-9]*' -printf '%f\n' | sort -n; }

topics_make followed 3
from followed
live=("${kafka[@]}" -o checkpoint.interval=200ms -o snapshot.interval=300ms -o snapshot.keep=100)
twotower_start live run "${live[@]}"
for ((at = 0; at < 12; at++)); do
    twelfth "$at"
    random 50 400
    sleep "0.$(printf %03d "$drawn")"
    if [ $((at % 4)) = 3 ]; then
        kill -KILL "$pid"
        wait_for "$pid"
        twotower_start live run "${live[@]}"
    fi
done
stopped live "$(count "$dir/made")"
mapfile -t list < <(generations live)
echo "# live: ${#list[@]} snapshots, $(grep -cE 'restored' "$dir/live/log") restarts"
followed=0 tried=0
for ((i = 0; i < ${#list[@]}; i += (${#list[@]} + 3) / 4)); do
    [ "$(follow "again$i" live "${list[i]}" "${kafka[@]}")" = \
        "$("$TWOTOWER" inspect --digest "$dir/live/snapshots/${list[i]}")" ] && followed=$((followed + 1))
    tried=$((tried + 1))
done
same "a live run's snapshots come again from its slices" "$tried" "$followed"

# Gaps. Everything is read; then records come and are deleted before anybody reads them.

# All of the made stream but its last 80 impressions and engagements. at: where the engagements end.
mkdir "$dir/rest"
for topic in impressions engagements; do
    tail -n 80 "$dir/made/$topic.jsonl" >"$dir/rest/$topic.jsonl"
    head -n -80 "$dir/made/$topic.jsonl" >"$dir/made/part" && mv "$dir/made/part" "$dir/made/$topic.jsonl"
done
at=$(wc -l <"$dir/made/engagements.jsonl")

topics_make gap 1
for topic in "${topics[@]}"; do lines "$dir/made" "$topic" | produce "$topic" "gap-$topic"; done
from gap
gap=("${kafka[@]}" -o checkpoint.interval=200ms -o snapshot.interval=300ms -o snapshot.keep=100)
twotower_start gap run "${gap[@]}"
all=$(count "$dir/made")
stopped gap "$all"
head -n 60 "$dir/rest/engagements.jsonl" | produce engagements gap-engagements
"$KAFKA_BROKER" trim gap-engagements 0 $((at + 30))
status=0
twotower gap run "${gap[@]}" || status=$?
same "a gap is refused: status 65" 65 "$status"
check "and says how to go on" "$(tail -n 1 "$dir/gap/log")" grep -qE "offset $at was deleted.*--allow-gap" <<<"$(tail -n 1 "$dir/gap/log")"
twotower_start gap run --allow-gap "${gap[@]}"
check "allowed: it is told" "$(tail -n 1 "$dir/gap/log")" \
    said gap "partition moved topic=gap-engagements partition=0 from=$at to=$((at + 30))" 20
stopped gap $((all + 30))
before=$(grep -c 'partition moved' "$dir/gap/log")
twotower_start gap run "${gap[@]}"
stopped gap $((all + 30))
same "once: the next start needs no permission" "$before" "$(grep -c 'partition moved' "$dir/gap/log")"
newest=$(generations gap | tail -n 1)
status=0
twotower gapagain replay --recorded "$dir/gap/state" --to "$(slice_of gap "$newest")" "${kafka[@]}" || status=$?
same "a log with a gap cannot be followed from before it: the records are gone" 65 "$status"

# A person leaves out records: they are still there, so that everything replays.

topics_make skip 1
for topic in "${topics[@]}"; do lines "$dir/made" "$topic" | produce "$topic" "skip-$topic"; done
from skip
skip=("${kafka[@]}" -o checkpoint.interval=200ms -o snapshot.interval=300ms -o snapshot.keep=100)
twotower_start skip run "${skip[@]}"
stopped skip "$all"
for topic in impressions engagements; do head -n 60 "$dir/rest/$topic.jsonl" | produce "$topic" "skip-$topic"; done
status=0
twotower skip run --skip "skip-engagements:0:$((at - 1))" "${skip[@]}" || status=$?
same "back is no skip: status 78" 78 "$status"
status=0
twotower skip run --skip skip-nothing:0:5 "${skip[@]}" || status=$?
same "a topic that is not read: status 64" 64 "$status"
status=0
twotower skip run --skip "skip-engagements:0:$((at + 61))" "${skip[@]}" || status=$?
check "it says where the partition stands" "$(tail -n 1 "$dir/skip/log")" \
    grep -q "stands at offset $at of a log up to $((at + 60))" <<<"$(tail -n 1 "$dir/skip/log")"
twotower_start skip run --skip "skip-engagements:0:$((at + 40))" "${skip[@]}"
all=$((all + 20 + $(head -n 60 "$dir/rest/impressions.jsonl" | grep -o '"item_id"' | wc -l)))
check "skip: what it left out is not learned" "$got of $all" reaches skip "$all" 60
kill -KILL "$pid"
wait_for "$pid"
twotower_start skip run "${skip[@]}"
stopped skip "$all"
newest=$(generations skip | tail -n 1)
same "a skip replays from its slices" "$("$TWOTOWER" inspect --digest "$dir/skip/snapshots/$newest")" \
    "$(follow skipagain skip "$newest" "${kafka[@]}")"

# A topic that was made anew, and is shorter.

"$KAFKA_BROKER" delete skip-engagements
for ((i = 0; i < 100; i++)); do
    "$KAFKA_BROKER" topic skip-engagements 1 2>/dev/null && break
    sleep 0.1
done
tail -n 20 "$dir/rest/engagements.jsonl" | produce engagements skip-engagements
status=0
twotower skip run "${skip[@]}" || status=$?
same "a topic that is shorter than it was read: status 65" 65 "$status"
check "and it says how to go on" "$(tail -n 1 "$dir/skip/log")" grep -q -- '--accept-new-topic' <<<"$(tail -n 1 "$dir/skip/log")"
twotower_start skip run --accept-new-topic "${skip[@]}"
check "accepted: it begins at the begin, and learns what it has" "$(tail -n 1 "$dir/skip/log")" \
    said skip "partition moved topic=skip-engagements partition=0 from=$((at + 60)) to=0" 20
stopped skip $((all + 20))

[ ! -e "$failures" ]
