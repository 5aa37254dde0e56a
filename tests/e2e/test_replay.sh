#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# `twotower replay`: in canonical order a second run gives the same snapshot, however it is cut,
# paused or killed; with --recorded it gives what another run had learned at any of its slices.
set -uo pipefail
. tests/e2e/support.sh
dir=$E2E_DIR

stream=(-o source.type=builtin -o source.requests=60000 -o source.seed=5 -o model.dim=16 -o source.users=5000)

# replayed NAME ARGUMENT...: what its last snapshot's digest was, as it said itself.
replayed()
{
    local name=$1
    shift
    twotower "$name" replay "$@" || echo "status $?"
    grep -oE ' sha256=[0-9a-f]{64}' "$dir/$name/log" | tail -n 1 | cut -d= -f2
}

# slice_of NAME GENERATION: the last slice that the snapshot has learned, and whether the end was drawn.
slice_of()
{
    python3 -c 'import json, sys; l = json.load(open(sys.argv[1]))["lineage"]; print(l["slice"], l["ended"])' \
        "$dir/$1/snapshots/$2/manifest.json"
}

# Canonical.

until_end run "${stream[@]}"
expected=$(digest run)
same "a replay ends with the digest of the run" "$expected" "$(replayed canonical --canonical "${stream[@]}")"
same "the digest that it says is that of its snapshot" "$expected" "$(digest canonical)"
same "whatever the slices and checkpoints" "$expected" \
    "$(replayed canonical2 "${stream[@]}" -o slice.events=333 -o checkpoint.interval=100ms -o snapshot.interval=150ms)"
same "a part of a stream gives one digest, too" "$(replayed part1 --from 1000 --to 20000 "${stream[@]}")" \
    "$(replayed part2 --from 1000 --to 20000 "${stream[@]}" -o slice.events=100)"

# Recorded. Snapshots on the way, of slices that nobody chose.

often=("${stream[@]}" -o checkpoint.interval=100ms -o snapshot.interval=120ms -o snapshot.keep=100 -o slice.events=200)
random_state=${SEED:-$RANDOM}
echo "seed $random_state"
killed_often "$random_state" 3 250 700 made "${often[@]}"
mapfile -t generations < <(find "$dir/made/snapshots" -maxdepth 1 -name '[0-9]*' -printf '%f\n' | sort -n)
check "there are snapshots on the way" "${#generations[@]}" [ "${#generations[@]}" -ge 2 ]
followed=0
for ((i = 0; i < ${#generations[@]} - 1; i += (${#generations[@]} + 3) / 4)); do
    generation=${generations[i]}
    read -r slice ended < <(slice_of made "$generation")
    [ "$ended" = False ] || continue # a run that came to its end before it was killed
    got=$(replayed "made$i" --recorded "$dir/made/state" --to "$slice" "${stream[@]}")
    wanted=$("$TWOTOWER" inspect --digest "$dir/made/snapshots/$generation")
    [ "$got" = "$wanted" ] && followed=$((followed + 1)) || bad "at slice $slice" "expected $wanted, got $got"
    tried=$((${tried:-0} + 1))
done
same "recorded slices give every snapshot again, at its slice" "$tried" "$followed"
same "followed to the end, they give the end" "$(digest made)" \
    "$(replayed recorded --recorded "$dir/made/state" "${stream[@]}")"
same "and the whole state" "$(state_sum made)" "$(state_sum recorded)"

# A replay that is killed goes on from its own state.

kills=0
for i in 1 2 3 4; do
    random 100 500
    twotower_start again replay --recorded "$dir/made/state" "${often[@]}"
    sleep "0.$(printf %03d "$drawn")"
    if kill -KILL "$pid" 2>/dev/null; then :; fi
    wait_for "$pid" && break
    kills=$((kills + 1))
done
same "killed $kills times, a recorded replay gives the same" "$(digest made)" \
    "$(replayed again --recorded "$dir/made/state" "${often[@]}")"

# A log that begins later is followed from a checkpoint; one that is gone is named.

# Each stop makes a checkpoint; what is before the only one that is kept goes when reading goes on.
cut=("${stream[@]}" -o checkpoint.keep=1 -o slice.events=20 -o slice.log_max=64KiB -o slice.log_keep=0B)
for i in 1 2 3; do
    twotower_start cut run --until-end "${cut[@]}"
    for ((k = 0; k < 400; k++)); do
        [ "$(find "$dir/cut/state" -name 'slices-*' 2>/dev/null | wc -l)" -gt "$i" ] && break
        sleep 0.05
    done
    kill -TERM "$pid" 2>/dev/null
    wait_for "$pid"
done
until_end cut "${cut[@]}"
check "an old part of the log was removed" "$(ls "$dir/cut/state")" [ ! -e "$dir/cut/state/slices-1.log" ]
same "a log without its begin is followed from a checkpoint" "$(digest cut)" \
    "$(replayed cut2 --recorded "$dir/cut/state" "${stream[@]}")"
mkdir -p "$dir/empty"
twotower none replay --recorded "$dir/empty" "${stream[@]}"
same "a directory without a log: status 66" 66 "$?"
check "and it is named" "$(tail -n 1 "$dir/none/log")" grep -q "$dir/empty: no slice log is there" "$dir/none/log"
twotower none replay --recorded "$dir/made/state" "${stream[@]}" -o source.seed=6
same "another stream than was read: status 65" 65 "$?"
check "it says at which slice" "$(tail -n 1 "$dir/none/log")" grep -q "slice 1: the source has other records now" "$dir/none/log"
twotower none replay --recorded "$dir/made/state" --from 5 "${stream[@]}"
same "--from beside --recorded: status 64" 64 "$?"
