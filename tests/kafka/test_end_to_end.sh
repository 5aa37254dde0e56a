#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The program on a real broker: the same model from files, four partitions and seven; killed, it
# learns everything once; bad records are kept once; live, it outlives the broker.
#
# Needs KAFKA_BOOTSTRAP, KAFKA_BROKER, TWOTOWER and TEST_DIR, which tests/kafka/run.sh sets.
# TWOTOWER_DATA: recorded streams; without ml1m a made one stands in for it.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 70
. tests/kafka/support.sh
TWOTOWER_DATA=${TWOTOWER_DATA:-../shared/data}
seed=${SEED:-$RANDOM}
echo "# seed $seed; SEED=$seed tries the same again"
# One stream, three ways.

stream=$TWOTOWER_DATA/ml1m
if [ ! -e "$stream/engagements.jsonl.zst" ]; then
    stream=$dir/orderly
    mkdir "$stream"
    python3 tests/e2e/stream_make.py "$stream" 3 60000 orderly
fi
begun=$(now_ms)
until_end file -o source.type=file -o "source.path=$stream" || exit 1
expected=$(verdict_of file)
echo "# file: $(($(now_ms) - begun)) ms, $expected"

for n in 4 7; do
    topics_make "p$n" "$n"
    begun=$(now_ms)
    for topic in "${topics[@]}"; do lines "$stream" "$topic" | produce "$topic" "p$n-$topic"; done
    echo "# $n partitions: written in $(($(now_ms) - begun)) ms"
done
for n in 4 7; do
    from "p$n"
    begun=$(now_ms)
    until_end "p$n" "${kafka[@]}"
    took=$(($(now_ms) - begun))
    echo "# $n partitions: read and learned in $took ms"
    same "$n partitions: the same model as from files" "$expected" "$(verdict_of "p$n")"
done

killed_often "$seed" 10 200 $((took / 8 + 400)) killed "${kafka[@]}" -o checkpoint.interval=200ms -o snapshot.interval=500ms
check "it was killed in the middle" "$kills times" [ "$kills" -ge 3 ]
survived=$kills tried=10
same "killed $kills times while it reads seven partitions: the same model" "$expected" "$(verdict_of killed)"
rm -rf "${dir:?}"/{file,p4,p7,killed}

# The same with slates, ranker scores and every objective on.

slates=$dir/slates
mkdir "$slates"
if [ -e "$TWOTOWER_DATA/ml1m-slates/ranker_scores.jsonl.zst" ]; then
    for topic in "${topics[@]}"; do lines "$TWOTOWER_DATA/ml1m-slates" "$topic" | head -n 12000 >"$slates/$topic.jsonl"; done
else
    python3 tests/e2e/stream_make.py "$slates" 4 30000 orderly
fi
on=(-o "value.tasks=click=1, like=-0.5, *=0.25" -o debias.estimator=pbm -o ranker.scores=logit
    -o distill.weight=0.3 -o align.weight=0.2 -o align.form=dpo -o align.trust=0.1 -o align.publish=1h
    -o preference.weight=0.2 -o ranker.weight=0.2 -o ranker.distill=0.1 -o ranker.feedback=es_dfm
    -o ranker.feedback_delay=5m -o tables.item_ttl=3d -o tables.user_ttl=3d -o model.dim=16
    -o model.batch=128 -o model.attention=1 -o model.attention_actions=true -o model.memory=256
    -o model.memory_after=10 -o model.replay=32 -o model.replay_window=1000 -o checkpoint.interval=500ms)
until_end file "${on[@]}" -o source.type=file -o "source.path=$slates"
expected=$(verdict_of file)
echo "# slates: $expected"
for n in 4 7; do
    topics_make "s$n" "$n"
    for topic in "${topics[@]}"; do lines "$slates" "$topic" | produce "$topic" "s$n-$topic"; done
    from "s$n"
    until_end "s$n" "${on[@]}" "${kafka[@]}"
    same "$n partitions, with every objective on: the same model as from files" "$expected" "$(verdict_of "s$n")"
done
rm -rf "${dir:?}"/{file,s4,s7,slates}

# What is no event.

topics_make bad 3
mkdir "$dir/made"
python3 tests/e2e/stream_make.py "$dir/made" 7 20000
for topic in "${topics[@]}"; do lines "$dir/made" "$topic" | produce "$topic" "bad-$topic"; done
# A null where it means nothing, a value of 2 MiB, and bytes that are no text.
printf 'u1\t\nu2\t\nu3\t\n' | kcat -b "$KAFKA_BOOTSTRAP" -P -t bad-engagements -K '\t' -Z
head -c 2097152 /dev/zero | tr '\0' x >"$dir/huge"
kcat -b "$KAFKA_BOOTSTRAP" -P -t bad-impressions -k u1 -X message.max.bytes=8388608 "$dir/huge"
printf '\xff\xfe{}' >"$dir/bytes"
kcat -b "$KAFKA_BOOTSTRAP" -P -t bad-impressions -k u1 "$dir/bytes"
lines "$dir/made" engagements | tail -n 200 | produce engagements bad-engagements

# dead NAME: sets $letters to how many, when each is there once, has its place and is no event.
dead()
{
    letters=$(python3 - "$dir/$1/state/dead-letters.jsonl" "$dir/made" <<'PYTHON'
import json, os, sys
places, values, reasons = set(), {}, {}
for line in open(sys.argv[1]):
    r = json.loads(line)
    if "start" in r:
        continue
    place = (r["topic"], r["partition"], r["offset"])
    if place in places:
        print("twice:", place)
        sys.exit()
    places.add(place)
    reasons[r["reason"]] = reasons.get(r["reason"], 0) + 1
    values.setdefault(r["topic"][4:], []).append(r.get("value"))
for topic in "items", "ranker_scores", "impressions", "engagements":
    lines = open(os.path.join(sys.argv[2], topic + ".jsonl")).read().splitlines()
    for value in values.get(topic, []):
        if value is not None and len(value) < 1 << 20 and value not in lines:
            print("not what was sent:", value[:80])
            sys.exit()
print(len(places), *(f"{k}={v}" for k, v in sorted(reasons.items())))
PYTHON
)
}

from bad
until_end bad "${kafka[@]}"
dead bad
echo "# dead letters: $letters"
same "bad records are counted: the dead letters and three tombstones" "$((${letters%% *} + 3))" \
    "$(totals bad | grep -oE 'rejected=[0-9]+' | cut -d= -f2)"
check "a huge record and one of bytes are among them" "$letters" grep -qE 'not_utf8=1 .*too_large=1' <<<"$letters"
expected="$(verdict_of bad) $letters $(state_sum bad)"
killed_often "$seed" 10 100 250 badkilled "${kafka[@]}" -o checkpoint.interval=100ms -o slice.events=20 -o slice.log_max=64KiB
check "it was killed among them" "$kills times" [ "$kills" -ge 2 ]
survived=$((survived + kills)) tried=$((tried + 10))
dead badkilled
same "killed $kills times, every bad record is counted and kept once" "$expected" \
    "$(verdict_of badkilled) $letters $(state_sum badkilled)"
rm -rf "${dir:?}"/{bad,badkilled,huge,bytes}

# Live.

topics_make live 4
mkdir "$dir/orderly-live"
python3 tests/e2e/stream_make.py "$dir/orderly-live" 9 12000 orderly
# part AT: this twelfth of every file, into the broker.
part()
{
    local topic
    for topic in "${topics[@]}"; do twelfth "$1" "$topic" | produce "$topic" "live-$topic"; done
}

twelfth()
{
    local total
    total=$(wc -l <"$dir/orderly-live/$2.jsonl")
    sed -n "$((total * $1 / 12 + 1)),$((total * ($1 + 1) / 12))p" "$dir/orderly-live/$2.jsonl"
}

# count FROM TO: how many events these twelfths are; an impression is one item shown.
count()
{
    local at topic n=0
    for ((at = $1; at < $2; at++)); do
        for topic in items ranker_scores engagements; do n=$((n + $(twelfth "$at" "$topic" | wc -l))); done
        n=$((n + $(twelfth "$at" impressions | grep -o '"item_id"' | wc -l)))
    done
    echo "$n"
}

from live
live=("${kafka[@]}" -o checkpoint.interval=300ms -o snapshot.interval=600ms)
part 0
twotower_start live run "${live[@]}"
check "live: what was there is learned" "$(count 0 1) sent, $(events live) seen" reaches live "$(count 0 1)"
part 1
part 2
check "live: what comes is learned" "$(count 0 3) sent, $(events live) seen" reaches live "$(count 0 3)"
kill -TERM "$pid"
status=0
wait_for "$pid" || status=$?
same "live: SIGTERM ends it with 0" 0 "$status"
part 3
twotower_start live run "${live[@]}"
check "live: started again, it goes on with what came meanwhile" "$(count 0 4) sent, $(events live) seen" \
    reaches live "$(count 0 4)"

"$KAFKA_BROKER" kill
sleep 2
check "live: it outlives the broker" "it is gone" kill -0 "$pid"
"$KAFKA_BROKER" start
part 4
begun=$(now_ms)
check "live: when the broker is back it goes on" "$(count 0 5) sent, $(events live) seen" reaches live "$(count 0 5)" 60
echo "# after the broker was back: $(($(now_ms) - begun)) ms until all was learned"

for at in 5 6 7 8; do
    part "$at" &
    feeder=$!
    for again in 1 2; do
        random_state=$((seed + at * again))
        random 100 900
        sleep "0.$(printf %03d "$drawn")"
        kill -KILL "$pid" && survived=$((survived + 1))
        tried=$((tried + 1))
        wait_for "$pid"
        twotower_start live run "${live[@]}"
    done
    wait "$feeder"
done
check "live: killed eight times while records come, each is counted once" "$(count 0 9) sent, $(events live) seen" \
    reaches live "$(count 0 9)"
# For lag tools the group has the checkpoints' offsets: whoever reads from there finds little left.
sleep 2
left=$(timeout 30 kcat -b "$KAFKA_BOOTSTRAP" -G twotower -q -e -X auto.offset.reset=earliest live-engagements 2>/dev/null | wc -l)
all=$(timeout 30 kcat -b "$KAFKA_BOOTSTRAP" -C -q -e -o beginning -t live-engagements | wc -l)
check "live: how far it is can be seen from outside" "$left of $all left" [ "$all" -gt $((left * 10)) ]
echo "# not committed: $left of $all engagements"
kill -TERM "$pid"
wait_for "$pid"
stopped=$(grep -E 'stopped +events' "$dir/live/log" | tail -n 1)
echo "# ${stopped#* }"
same "live: no record of an orderly stream is rejected" "rejected=0" "$(grep -oE 'rejected=[0-9]+' <<<"$stopped")"

# The past by the broker's time, then live.

sleep 1.1
since=$(now_ms)
part 9
twotower_start again replay --from "${since}ms" --to end --then-live "${live[@]}"
check "replay: from a time to the end, and then live" "not live in 20 s" said again "going live" 20
check "replay: it reads what was written since" "$(count 9 10) sent since, $(events again) seen" reaches again "$(count 9 10)"
part 10
check "replay: and goes on with what comes" "$(count 9 11) sent since, $(events again) seen" reaches again "$(count 9 11)"
kill -KILL "$pid" && survived=$((survived + 1))
tried=$((tried + 1))
wait_for "$pid"
part 11
twotower_start again replay --from "${since}ms" --to end --then-live "${live[@]}"
check "replay: killed after the seam, nothing counts twice" "$(count 9 12) sent since, $(events again) seen" \
    reaches again "$(count 9 12)"
kill -TERM "$pid"
wait_for "$pid"
echo "# kills survived $survived of $tried tried"
check "it was killed twenty times and more" "$survived" [ "$survived" -ge 20 ]

[ ! -e "$failures" ]
