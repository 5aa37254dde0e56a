#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# How much harm a stream can do to the model: numbers at the ends of what can be written, anywhere in
# any record, and one user who makes five of six engagements. Either is refused or its effect is
# bounded: the model stays finite, and what everybody else is shown stays as good as it was.
set -uo pipefail
. tests/e2e/support.sh
dir=$E2E_DIR

for kind in clean poisoned drowned bot; do
    mkdir "$dir/$kind.in"
    echo "# $kind: $(python3 tests/e2e/robustness_make.py "$dir/$kind.in" "$kind" "${SEED:-1}")"
done

recipe=(-o model.batch=64 -o eval.sampling=1)
two_tower=("${recipe[@]}" -o model.type=two_tower -o model.item_features=8 -o model.user_features=2 -o model.hidden=16)
slates=(-o "value.tasks=click=1, *=0.25" -o debias.estimator=pbm -o distill.weight=0.3 -o align.weight=0.2
    -o align.trust=0.1 -o align.publish=1m -o preference.weight=0.2 -o preference.form=dpo -o ranker.weight=0.2
    -o ranker.distill=0.1 -o ranker.feedback=es_dfm -o ranker.feedback_delay=5s -o join.window=5m -o model.dim=16
    -o model.memory=256 -o model.memory_after=10 -o model.mask_known=true)

# evaluated NAME KIND ARGUMENT...: the figures of the stream, in $dir/NAME.json.
evaluated()
{
    # So many wrong records are a flood, and here they are meant.
    "$TWOTOWER" eval --events "$dir/$2.in" --json -o dead_letter.flood=1 "${@:3}" >"$dir/$1.json" 2>"$dir/$1.log" ||
        { echo "$1: $(tail -n 1 "$dir/$1.log")"; return 1; }
}

# unharmed NAME CLEAN LOSS: nothing left out, every event accounted for, and recall of the second half
# within LOSS of the clean stream's.
unharmed()
{
    python3 - "$dir/$1.json" "$dir/$2.json" "$3" <<'PYTHON'
import json, sys
got, clean = (json.load(open(path)) for path in sys.argv[1:3])
loss = {k: clean[k] - got[k] for k in ("second_half_recall@10", "second_half_recall@100")}
print("#", {k: (clean[k], got[k]) for k in loss}, "rejected", got["rejected"], "skipped", got["steps_skipped"])
sys.exit(not (max(loss.values()) <= float(sys.argv[3]) and got["steps_skipped"] == 0 and got["balanced"] == 1
              and got["rejected"] > 0 and got["examples"] >= clean["examples"]))
PYTHON
}

# endures NAME LOSS KIND ARGUMENT...
endures()
{
    local name=$1 loss=$2 kind=$3
    shift 3
    evaluated "$name.clean" clean "$@"
    evaluated "$name" "$kind" "$@"
    check "$name: numbers at the ends of what can be written are refused or bounded" "see above" \
        unharmed "$name" "$name.clean" "$loss"
}

endures recipe 0.02 poisoned "${recipe[@]}"
endures recipe_drowned 0.02 drowned "${recipe[@]}"
endures two_tower 0.03 poisoned "${two_tower[@]}"
# Every other record is wrong, and features reach the first layer as they are.
endures two_tower_drowned 0.02 drowned "${two_tower[@]}" -o model.gradient_max=1
endures recipe_slates 0.02 drowned "${recipe[@]}" "${slates[@]}" -o align.form=dpo -o model.attention=1
endures two_tower_slates 0.03 poisoned "${two_tower[@]}" "${slates[@]}" -o align.form=shaped

# What lies in the state is arithmetic, too: a checkpoint of it is written and taken back.
from=(-o source.type=file -o "source.path=$dir/drowned.in" "${recipe[@]}" "${slates[@]}" -o snapshot.f16=true
    -o dead_letter.flood=1)
until_end drowned "${from[@]}"
twotower drowned run --until-end "${from[@]}"
check "a state that has learned from all of them is written and restored" "$(tail -n 1 "$dir/drowned/log")" \
    grep -q 'restored=yes\|restored  *checkpoint=' "$dir/drowned/log"
if said=$("$TWOTOWER" verify "$dir/drowned/snapshots" 2>&1); then
    ok "and its snapshot has nothing infinite"
else
    bad "and its snapshot has nothing infinite" "$(tail -n 1 <<<"$said")"
fi

# The clock of the host.

if "${CC:-cc}" -shared -fPIC -D_GNU_SOURCE -o "$dir/clock_steps.so" tests/e2e/clock_steps.c 2>/dev/null; then
    stream=(-o source.type=builtin -o source.requests=60000 -o source.seed=9)
    often=(-o checkpoint.interval=100ms -o snapshot.interval=100ms -o snapshot.keep=50)
    until_end steady "${stream[@]}"
    LD_PRELOAD=$dir/clock_steps.so until_end stepping "${stream[@]}" "${often[@]}"
    same "a wall clock that jumps by a day changes nothing" "$(digest steady) $(totals steady)" \
        "$(digest stepping) $(totals stepping)"
    mapfile -t published < <(grep -o 'snapshot published *generation=[0-9]*' "$dir/stepping/log" | grep -o '[0-9]*$')
    echo "# ${#published[@]} snapshots, $(grep -c ahead "$dir/stepping/log") lines of a clock ahead"
    same "and snapshots come in their order" "${published[*]}" \
        "$(printf '%s\n' "${published[@]}" | sort -nu | paste -sd ' ')"
    check "several of them" "${published[*]}" [ "${#published[@]}" -ge 3 ]
else
    echo "skip a wall clock that jumps by a day changes nothing: no C compiler"
fi

# A bot. What is in others' lists is asked of the snapshot.

# lists NAME: of every fourth user the best 20 items: how many are to the user's taste, and how many
# lists have the bot's item; over all items and users, the longest vector.
lists()
{
    local u
    for u in {0..399..4}; do
        echo "$u $("$TWOTOWER" topk "$dir/$1/snapshots" --user "u$u" --k 20 --json 2>>"$dir/$1/log")"
    done | python3 -c '
import json, sys
taste = attacked = 0
for line in sys.stdin:
    user, answer = line.split(" ", 1)
    ids = [int(item["id"][1:]) for item in json.loads(answer)["items"]]
    taste += sum(i % 8 == int(user) % 8 for i in ids)
    attacked += 7 in ids
print(taste, attacked)'
    python3 - "$dir/$1/snapshots" <<'PYTHON'
import array, json, math, pathlib, struct, sys
root = pathlib.Path(sys.argv[1])
root /= (root / "LATEST").read_text().split()[0]
largest = 0
for name in ("item_emb.f32", "item_context.f32", "user_emb.f32"):
    data = (root / f"{name}.safetensors").read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    shape = next(t["shape"] for k, t in json.loads(data[8:8 + size]).items() if k != "__metadata__")
    floats = array.array("f", data[8 + size:])
    for i in range(shape[0]):
        row = floats[i * shape[1]:(i + 1) * shape[1]]
        largest = max(largest, math.hypot(*row[:-1] if name.startswith("item_emb") else row))
print(f"{largest:.3f}")
PYTHON
}

for kind in clean bot; do
    until_end "$kind" -o source.type=file -o "source.path=$dir/$kind.in" -o model.batch=64 -o model.dim=16
    mapfile -t got < <(lists "$kind")
    read -r taste attacked <<<"${got[0]}"
    norm=${got[1]}
    echo "# $kind: $(totals "$kind"), of 2000 places $taste to the user's taste, $attacked lists with the" \
        "bot's item, longest vector $norm"
    [ "$kind" = bot ] || clean=("$taste" "$attacked" "$norm")
done
check "a bot with 100,000 engagements: others are shown what they like" "$taste of 2000 places, ${clean[0]} without" \
    [ "$taste" -ge $((clean[0] - 40)) ]
check "and its item is in no more lists than before" "$attacked lists, ${clean[1]} without" \
    [ "$attacked" -le $((clean[1] + 2)) ]
check "and no vector is more than four times as long" "$norm, ${clean[2]} without" \
    awk -v now="$norm" -v before="${clean[2]}" 'BEGIN { exit !(now <= 4 * before) }'

# Where it can be seen.

port=$(port_free)
twotower_start live run -o source.type=builtin -o "http.listen=127.0.0.1:$port" -o source.seed=5 -o distill.weight=0.1
said live "snapshot published" 30
for _ in {1..40}; do
    http "$port" /metrics >"$dir/metrics"
    grep -q '^twotower_ranker_newest' "$dir/metrics" && break
    sleep 0.25
done
kill -TERM "$pid"
wait_for "$pid"
for series in 'hot_key_ratio{topic="engagements",key="user"}' 'hot_key_ratio{topic="impressions",key="item"}' \
    'item_exposure_gini_ratio' 'fields_defaulted_total{topic="impressions",field="propensity"}' \
    'ranker_newest_score_timestamp_seconds{' 'ranker_oldest_score_timestamp_seconds{'; do
    check "/metrics has $series" "$(grep -F "twotower_${series%%\{*}" "$dir/metrics" | tail -n 2)" \
        grep -qF "twotower_$series" "$dir/metrics"
done
