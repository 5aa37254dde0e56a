#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# What a stream and a machine can do to the process: hostile records, robots, damaged files, a broker
# that is not there, full and read-only disks. What it is worth to an operator is deploy/runbook.md.
set -uo pipefail
. tests/e2e/support.sh
dir=$E2E_DIR

# made KIND: the stream of bad_input_make.py, in $dir/KIND.in; sets $from.
made()
{
    from=(-o source.type=file -o "source.path=$dir/$1.in")
    [ -d "$dir/$1.in" ] || python3 tests/e2e/bad_input_make.py "$dir/$1.in" "$1" >"$dir/$1.expected"
}

# ends NAME STATUS SENTENCE TEXT ARGUMENT...: a run to the end has this status and says this.
ends()
{
    local name=$1 expected=$2 sentence=$3 text=$4 status=0
    shift 4
    twotower "$name" run --until-end "$@" || status=$?
    if [ "$status" -ne "$expected" ]; then
        bad "$sentence" "status $status, expected $expected; it said: $(tail -n 1 "$dir/$name/log")"
    elif ! grep -qF -- "$text" "$dir/$name/log"; then
        bad "$sentence" "'$text' is not in: $(tail -n 1 "$dir/$name/log")"
    else
        ok "$sentence"
    fi
}

# whole NAME SENTENCE: its snapshot is what it says.
whole()
{
    local said
    if said=$("$TWOTOWER" verify "$dir/$1/snapshots" 2>&1); then ok "$2"; else bad "$2" "$said"; fi
}

count() { totals "$1" | grep -oE "$2=[0-9]+" | cut -d= -f2; }

# Full and read-only disks, in a mount name space of our own: nothing stays behind.

disk() { mount -t tmpfs -o "$1" tmpfs "$dir/disk"; }
larger() { disk remount,size=400m; }

disks()
{
    local stream=(-o source.requests=150000 -o source.seed=5) expected letters
    mkdir -p "$dir/disk"

    until_end roomy "${stream[@]}"
    expected="$(digest roomy) $(totals roomy)"

    disk size=45m
    stream+=(-o checkpoint.interval=100ms -o snapshot.interval=10m)
    twotower_start full run --until-end "${stream[@]}" -o "state.dir=$dir/disk/state"
    check "no room for a checkpoint: it says how much is needed" "nothing was said" \
        said full "MB are needed and" 20
    check "the last good checkpoint stays" "there is none" \
        test -n "$(find "$dir/disk/state/checkpoints" -mindepth 2 -name manifest.json)"
    larger
    wait_for "$pid"
    same "it goes on without it, and with room again it has lost nothing" "$expected" "$(digest full) $(totals full)"
    umount "$dir/disk"

    disk size=64k
    ends log 74 "no room for the slice log ends with 74 and the sentence" "slice log: No space left on device" \
        "${stream[@]}" -o slice.events=64 -o "state.dir=$dir/disk/state"
    larger
    until_end log "${stream[@]}" -o "state.dir=$dir/disk/state"
    same "with room again it goes on and has lost nothing" "$expected" "$(digest log) $(totals log)"
    umount "$dir/disk"

    made hostile
    for _ in {1..2000}; do echo nonsense nonsense nonsense; done >>"$dir/hostile.in/engagements.jsonl"
    from+=(-o dead_letter.flood=1)
    until_end letters "${from[@]}"
    letters=$(cksum <"$dir/letters/state/dead-letters.jsonl")
    disk size=2m
    head -c 600000 /dev/zero >"$dir/disk/others"
    ends dead 74 "no room for dead letters ends with 74 and names the file" \
        "dead.jsonl: write: No space left on device" "${from[@]}" -o "dead_letter.path=$dir/disk/dead.jsonl"
    larger
    until_end dead "${from[@]}" -o "dead_letter.path=$dir/disk/dead.jsonl"
    same "with room again every dead letter is there once" "$letters" "$(cksum <"$dir/disk/dead.jsonl")"
    umount "$dir/disk"

    made good
    disk size=100k
    ends snapshot 74 "no room for the last snapshot ends with 74 and says how much is needed" "MB are needed and" \
        "${from[@]}" -o "snapshot.dir=$dir/disk/snapshots"
    check "nothing half is published" "$(ls "$dir/disk/snapshots")" test -z "$(ls "$dir/disk/snapshots")"
    larger
    ends snapshot 0 "with room again the same command publishes it" "snapshot published" \
        "${from[@]}" -o "snapshot.dir=$dir/disk/snapshots"
    disk remount,ro
    ends readonly 77 "a read-only disk ends with 77 and the sentence" "Read-only file system" \
        "${from[@]}" -o "state.dir=$dir/disk/other"
}

if [ "${1:-}" = disks ]; then
    disks
    exit
fi

# It takes its ten seconds to find that out; they are not waited for here.
(ends broker 69 "a broker that is not there ends with 69 and is named" "no answer from 127.0.0.1:1" \
    -o source.type=kafka -o source.brokers=127.0.0.1:1) >"$dir/broker.verdict" &
broker=$!

# Records.

made good
until_end good "${from[@]}" || exit 1
expected=$(digest good)

made hostile
until_end hostile "${from[@]}"
same "hostile records leave no trace in the model" "$expected" "$(digest hostile)"
same "each is kept, with its reason" "$(cat "$dir/hostile.expected")" "$(python3 - "$dir/hostile/state/dead-letters.jsonl" <<'PYTHON'
import collections, json, sys
letters = (json.loads(line) for line in open(sys.argv[1]))
reasons = collections.Counter(l["reason"] for l in letters if "reason" in l)
print("\n".join(f"{reason} {n}" for reason, n in sorted(reasons.items())))
PYTHON
)"
same "and counted" "$(wc -l <"$dir/hostile/state/dead-letters.jsonl")" "$(($(count hostile rejected) + 1))"

mkdir "$dir/flood.in"
cp "$dir/good.in/impressions.jsonl" "$dir/flood.in"
{
    head -n 1200 "$dir/good.in/engagements.jsonl"
    for _ in {1..500}; do echo '{"schema":2}'; done
    tail -n +1201 "$dir/good.in/engagements.jsonl"
} >"$dir/flood.in/engagements.jsonl"
from=(-o source.type=file -o "source.path=$dir/flood.in" -o slice.events=100)
for again in "" " again"; do
    ends flood 65 "a flood of bad records ends with 65$again and names topic and place" \
        "topic engagements: 101 of the last 1000 records are no events, more than 100 in 1000 (dead_letter.flood): most often missing_field, from partition 0 offset 1200 on" \
        "${from[@]}"
done
until_end flood "${from[@]}" -o dead_letter.flood=1
same "taken on purpose, it goes on there and has lost nothing" "$expected 500" "$(digest flood) $(count flood rejected)"
same "and each is kept once" 500 "$(grep -c '^{"topic"' "$dir/flood/state/dead-letters.jsonl")"

made doubled
until_end doubled "${from[@]}"
same "every record twice: the same model" "$expected" "$(digest doubled)"

for kind in hot anonymous waiting robot; do
    made "$kind"
    begun=$(now_ms)
    until_end "$kind" "${from[@]}"
    echo "# $kind: $(($(now_ms) - begun)) ms, $(totals "$kind")"
    check "$kind: everybody else's clicks are learned" "$(count "$kind" examples) examples" \
        [ "$(count "$kind" examples)" -ge 2000 ]
    check "$kind: nothing is left over" "$(totals "$kind")" [ "$(count "$kind" pending)" -eq 0 ]
done
same "hot: a request holds 1,000 items, the rest is refused and counted" 96000 "$(count hot rejected)"
same "waiting: a request holds 256 records for later, the rest is refused and counted" 99744 "$(count waiting rejected)"

made future
ends future 0 "a record of the year 2099 in a file is rejected" "examples=2000 pending=0 rejected=1 " "${from[@]}"
check "by the clock, which its dead letter says" "$(tail -n 1 "$dir/future/state/dead-letters.jsonl")" \
    grep -q '"bad_time","message":"ts is ahead of the clock"' "$dir/future/state/dead-letters.jsonl"

made features
limits=("${from[@]}" -o model.type=two_tower -o model.item_features=3 -o model.user_features=2 -o snapshot.f16=true)
ends features 0 "features and values at their limits are learned" "examples=2000" "${limits[@]}" -o snapshot.guard_norm_max=0
check "no batch is left out for them" "$(grep -c skipped "$dir/features/log")" \
    [ "$(grep -c 'batch skipped' "$dir/features/log")" -eq 0 ]
whole features "and the snapshot has nothing infinite"
rm -rf "$dir/features/state" "$dir/features/snapshots"
ends features 65 "but what they make of the vectors is not published" "long; the limit is 1000" "${limits[@]}"

# Files.

for kind in damaged cut; do
    mkdir "$dir/$kind.in"
    cp "$dir/good.in/impressions.jsonl" "$dir/$kind.in"
    zstd -qo "$dir/$kind.in/engagements.jsonl.zst" "$dir/good.in/engagements.jsonl"
    size=$(stat -c %s "$dir/$kind.in/engagements.jsonl.zst")
    if [ "$kind" = cut ]; then
        truncate -s $((size / 2)) "$dir/$kind.in/engagements.jsonl.zst"
    else
        printf 'damaged!' | dd of="$dir/$kind.in/engagements.jsonl.zst" bs=1 seek=$((size / 2)) conv=notrunc status=none
    fi
    ends "$kind" 65 "compressed data that is $kind ends with 65 and names file and line" \
        "engagements.jsonl.zst: line " -o source.type=file -o "source.path=$dir/$kind.in"
done
mkdir "$dir/void.in"
ends void 66 "a directory without events ends with 66" "has neither impressions nor engagements" \
    -o source.type=file -o "source.path=$dir/void.in"
touch "$dir/void.in/impressions.jsonl"
ends void 0 "an empty file is the end of a stream" "examples=0" -o source.type=file -o "source.path=$dir/void.in"
whole void "and gives a snapshot that is whole"

# Disks.

unshared=(unshare --mount)
[ "$(id -u)" -eq 0 ] || unshared=(unshare --map-root-user --mount)
mkdir -p "$dir/disk"
if "${unshared[@]}" mount -t tmpfs -o size=1m tmpfs "$dir/disk" 2>/dev/null; then
    "${unshared[@]}" bash "$0" disks
else
    echo "skip full and read-only disks: no right to mount one"
fi

wait "$broker"
cat "$dir/broker.verdict"
