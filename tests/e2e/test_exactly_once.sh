#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Every event has its effect once: whatever is killed, stopped or configured on the way, the model
# at the end of a stream is the same, bit for bit, and so is every counter.
set -uo pipefail
. tests/e2e/support.sh
dir=$E2E_DIR

stream=(-o source.type=builtin -o source.requests=200000 -o source.seed=7)
seed=${SEED:-$RANDOM}
echo "seed $seed; SEED=$seed tries the same again"

# alike NAME SENTENCE: the run's snapshot, its last words and its whole state are the reference's.
alike()
{
    local got
    got="$(digest "$1") $(totals "$1")$(state_sum "$1")"
    same "$2" "$expected" "$got"
}

begun=$(now_ms)
until_end reference "${stream[@]}" || exit 1
took=$(($(now_ms) - begun))
expected="$(digest reference) $(totals reference)$(state_sum reference)"
echo "reference: $took ms, $(totals reference)"

# What must not matter.

again=0
vary() # SENTENCE ARGUMENT...
{
    local sentence=$1 name=vary$((again += 1))
    shift
    until_end "$name" "${stream[@]}" "$@"
    alike "$name" "$sentence"
    rm -rf "${dir:?}/$name"
}

vary "a second run learns the same"
vary "checkpoints and snapshots in between change nothing" -o checkpoint.interval=100ms \
    -o snapshot.interval=150ms
vary "the size of a slice changes nothing" -o slice.events=100
vary "slices of one event change nothing" -o slice.events=1 -o slice.log_max=64KiB \
    -o checkpoint.interval=100ms
vary "large slices change nothing" -o slice.events=100000
vary "writing without io_uring changes nothing" -o snapshot.io=pwrite -o checkpoint.interval=100ms
# The evaluator's own state is another then, by intent.
until_end scored "${stream[@]}" -o eval.sampling=0.05
same "scoring examples before they are learned changes nothing" "$(digest reference) $(totals reference)" \
    "$(digest scored) $(totals scored)"

# The end, twice.

until_end scored "${stream[@]}" -o eval.sampling=0.05
same "a second run after the end has nothing left to learn" "$(digest reference) $(totals reference)" \
    "$(digest scored) $(totals scored)"
rm -rf "${dir:?}/scored"

# Kills. Short enough after the start that ten of them come before the end.

often=("${stream[@]}" -o checkpoint.interval=200ms -o snapshot.interval=300ms)
killed_often "$seed" 10 $((took / 20 + 20)) $((took / 4 + 150)) killed "${often[@]}"
check "the process was killed at least five times before the end" "only $kills times" [ "$kills" -ge 5 ]
alike killed "killed ten times, it learns the same"

killed_often "$seed" 10 $((took / 20 + 20)) $((took / 4 + 150)) tiny "${often[@]}" -o checkpoint.interval=100ms \
    -o slice.events=256 -o slice.log_max=64KiB -o snapshot.io=pwrite
alike tiny "killed among small slices and many log files, it learns the same"

# Without a checkpoint there is only the slice log, and each attempt begins at the beginning.
killed_often "$seed" 3 $((took / 3)) $((took * 2 / 3)) bare "${stream[@]}" -o checkpoint.interval=1d -o snapshot.interval=7d
alike bare "killed before its first checkpoint, it learns the same"
rm -rf "${dir:?}"/{killed,tiny,bare}

# While it ends: windows are drawn, the last checkpoint, the state after the end and the snapshot
# are written in the last few tenths of a second.
random_state=$seed
for i in 1 2 3 4 5; do
    twotower_start "last" run --until-end "${stream[@]}" -o log.level=debug
    said last "checkpoint generation" 60
    random 0 60
    sleep "0.$(printf %03d "$drawn")"
    kill -KILL "$pid" 2>/dev/null
    wait_for "$pid"
    until_end last "${stream[@]}"
    got="$(digest last) $(totals last)$(state_sum last)"
    rm -rf "${dir:?}/last"
    [ "$got" = "$expected" ] || break
done
same "killed while it ends, it learns the same (5 times)" "$expected" "$got"

# Stopped in order.

random_state=$seed
stops=0 clean=0
for i in 1 2 3 4 5; do
    random $((took / 10 + 20)) $((took / 4 + 150))
    twotower_start stopped run --until-end "${stream[@]}"
    sleep "$((drawn / 1000)).$(printf %03d $((drawn % 1000)))"
    kill -TERM "$pid" 2>/dev/null && stops=$((stops + 1))
    wait_for "$pid" && clean=$((clean + 1))
done
until_end stopped "${stream[@]}"
same "SIGTERM ends it with status 0" "5" "$clean"
alike stopped "stopped $stops times, it learns the same"
rm -rf "${dir:?}/stopped"

# With every objective on: slates that wait, guards, estimators, heads, the published model, the
# memory of negatives, rows that expire after seconds. What is state of its own must be in the columns.

all=(-o source.type=builtin -o source.requests=10000 -o source.users=2000 -o source.catalogue=800
    -o source.requests_per_second=50 -o source.seed=11 -o join.window=30s -o tables.item_ttl=40s -o tables.user_ttl=50s
    -o "value.tasks=click=1, like=-0.5, *=0.25" -o debias.estimator=pbm -o distill.weight=0.3
    -o align.weight=0.2 -o align.trust=0.1 -o align.publish=10s -o preference.weight=0.2
    -o preference.form=dpo -o ranker.weight=0.2 -o ranker.distill=0.1 -o ranker.feedback=es_dfm
    -o ranker.feedback_delay=5s -o model.dim=16 -o model.batch=128 -o model.item_features=13
    -o model.memory=256 -o model.memory_after=10 -o model.mask_known=true)
recipe=("${all[@]}" -o align.form=dpo -o model.attention=1 -o model.attention_actions=true
    -o model.replay=32 -o model.replay_window=1000)
two_tower=("${all[@]}" -o align.form=shaped -o model.type=two_tower -o model.hidden=32
    -o model.history_encoder=attention)

# everything KIND ARGUMENT...
everything()
{
    local kind=$1 took
    shift
    begun=$(now_ms)
    until_end "$kind" "$@"
    took=$(($(now_ms) - begun))
    expected="$(digest "$kind") $(totals "$kind")$(state_sum "$kind")"
    echo "$kind: $took ms, $(totals "$kind")"
    vary "$kind with all on: checkpoints, snapshots and slices change nothing" "$@" \
        -o checkpoint.interval=100ms -o snapshot.interval=150ms -o slice.events=100
    until_end scored "$@" -o eval.sampling=0.05
    same "$kind with all on: scoring slates before they are learned changes nothing" \
        "$(digest "$kind") $(totals "$kind")" "$(digest scored) $(totals scored)"
    killed_often "$seed" 5 $((took / 10 + 20)) $((took / 3 + 150)) ended "$@" -o checkpoint.interval=100ms \
        -o snapshot.interval=300ms -o slice.events=512
    alike ended "$kind with all on: killed $kills times, it learns the same"
    rm -rf "${dir:?}"/{ended,scored}
}

everything recipe "${recipe[@]}"
everything two_tower "${two_tower[@]}"

# A stream that has become longer: files, because the lines of the built-in one are never written
# down. The cut is at a time, not at a line: a bounded stream is complete up to its end.

if [ -d "$TWOTOWER_DATA/ml1m-slates" ]; then
    mkdir -p "$dir/half" "$dir/whole"
    for topic in items ranker_scores impressions engagements; do
        zstd -dcq "$TWOTOWER_DATA/ml1m-slates/$topic.jsonl.zst" >"$dir/whole/$topic.jsonl"
        awk -F '"ts":' '{ ts = $NF; for (i = 2; i <= NF; i++) if ($i + 0 > 1e12 - 1e11) { ts = $i; break }
                          if (ts + 0 < 957000000000) print }' "$dir/whole/$topic.jsonl" >"$dir/half/$topic.jsonl"
    done
    wc -l "$dir"/half/*.jsonl "$dir"/whole/*.jsonl | sed 's/^/    /'
    file=(-o source.type=file -o checkpoint.interval=100ms)
    until_end atonce "${file[@]}" -o "source.path=$dir/whole"
    expected="$(digest atonce) $(totals atonce)$(state_sum atonce)"
    until_end grown "${file[@]}" -o "source.path=$dir/half"
    half=$(totals grown)
    until_end grown "${file[@]}" -o "source.path=$dir/whole"
    check "the first half of the stream is less than the whole" "$half" [ "$half" != "$(totals atonce)" ]
    alike grown "a stream that has grown goes on where it ended"
    killed_often "$seed" 10 60 250 atrandom "${file[@]}" -o "source.path=$dir/whole"
    alike atrandom "recorded files, killed $kills times, are learned the same"
else
    echo "skip a stream that has grown goes on where it ended: no $TWOTOWER_DATA/ml1m-slates"
fi
