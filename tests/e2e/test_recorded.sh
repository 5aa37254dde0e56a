#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Recorded streams: it learns what it should, and what became of every record is what a second,
# plain reading of the rules says (join_oracle.py).
set -uo pipefail
. tests/e2e/support.sh
dir=$E2E_DIR

# figures FILE NAME...: members of the report's JSON object.
figures()
{
    python3 -c 'import json, sys
report = json.load(open(sys.argv[1]))
print(*(report[name] for name in sys.argv[2:]))' "$@"
}

# outcomes NAME DIRECTORY [ARGUMENT...]: evaluates it and compares with the oracle, topic by topic.
# The windows are given to both.
outcomes()
{
    local name=$1 directory=$2 window=${3:-1800000} lateness=${4:-10000} begun
    begun=$(now_ms)
    if ! "$TWOTOWER" eval --events "$directory" --json -o "join.window=${window}ms" \
        -o "join.lateness=${lateness}ms" >"$dir/$name.json" 2>"$dir/$name.log"; then
        bad "$name: what became of every record is what the oracle says" "$(tail -n 1 "$dir/$name.log")"
        return
    fi
    echo "$name: eval took $(($(now_ms) - begun)) ms"
    python3 tests/e2e/join_oracle.py "$directory" "$window" "$lateness" >"$dir/$name.oracle"
    python3 - "$dir/$name.json" "$dir/$name.oracle" "$name" <<'PYTHON'
import json, sys
report, oracle = json.load(open(sys.argv[1])), json.load(open(sys.argv[2]))
got, wrong = report["outcomes"], []
for topic, counts in oracle.items():
    print(f"    {topic:14}", *(f"{name} {n}" for name, n in counts.items()))
    for outcome, n in counts.items():
        if got[topic][outcome] != n:
            wrong.append(f"{topic} {outcome} {got[topic][outcome]}, expected {n}")
    if got[topic]["in"] != sum(n for outcome, n in got[topic].items() if outcome != "in"):
        wrong.append(f"{topic} does not add up")
    if got[topic]["pending"]:
        wrong.append(f"{topic} has some pending after the end")
sentence = f"{sys.argv[3]}: what became of every record is what the oracle says"
print(f"FAIL {sentence}: {'; '.join(wrong)}" if wrong else f"ok {sentence}")
PYTHON
}

# run_like_eval NAME DIRECTORY: `run` counts what `eval` counted.
run_like_eval()
{
    local events examples rejected
    until_end "$1" -o source.type=file -o "source.path=$2" -o checkpoint.interval=1s -o snapshot.interval=2s
    read -r events examples rejected < <(figures "$dir/$1.json" events examples rejected)
    same "$1: run counts what eval counted" \
        "events=$events examples=$examples pending=0 rejected=$rejected " "$(totals "$1")"
    rm -rf "${dir:?}/$1"
}

# Everything that can happen to a record, on a stream made for it; under several windows.
mkdir "$dir/stream"
python3 tests/e2e/stream_make.py "$dir/stream" 1
outcomes made "$dir/stream"
run_like_eval made "$dir/stream"
outcomes made-short "$dir/stream" 60000 2000
outcomes made-strict "$dir/stream" 300000 0
outcomes made-long "$dir/stream" 7200000 120000
outcomes made-late "$dir/stream" 30000 600000

if [ ! -d "$TWOTOWER_DATA/ml1m" ]; then
    echo "skip recorded streams: no $TWOTOWER_DATA/ml1m"
    exit 0
fi

for name in mind-sample5k obd ml1m-slates; do
    outcomes "$name" "$TWOTOWER_DATA/$name"
    run_like_eval "$name" "$TWOTOWER_DATA/$name"
    same "$name: no record is rejected, no engagement lost" "0 True" "$(python3 -c '
import json, sys
r = json.load(open(sys.argv[1]))
e = r["outcomes"]["engagements"]
print(r["rejected"], e["joined"] == e["in"])' "$dir/$name.json")"
done

outcomes ml1m "$TWOTOWER_DATA/ml1m"
read -r r10 r100 p10 p100 rate < <(figures "$dir/ml1m.json" recall@10 recall@100 popularity_recall@10 \
    popularity_recall@100 examples_per_second)
echo "ml1m: recall@10 $r10 @100 $r100, popularity $p10 $p100, $rate examples per CPU-second"
check "ml1m: recall@100 is at least 0.595" "it is $r100" awk "BEGIN { exit !($r100 >= 0.595) }"
check "ml1m: recall@10 is at least 0.193" "it is $r10" awk "BEGIN { exit !($r10 >= 0.193) }"
check "ml1m: recall is clearly above popularity's" "$r100 and $p100" \
    awk "BEGIN { exit !($r100 > 2 * $p100 && $r10 > 4 * $p10) }"
same "ml1m: every event is an example, none is rejected" "575281 1154445 1154445 0 1" \
    "$(figures "$dir/ml1m.json" examples events joined rejected balanced)"
