#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The process as an operator meets it: its exit statuses, its signals, what it answers while it
# runs, and what it does when its files are damaged or not its own.
set -uo pipefail
. tests/e2e/support.sh
dir=$E2E_DIR

# status_of EXPECTED SENTENCE TEXT COMMAND...: the command's status, and a text among what it says.
# `twotower NAME` for a command is the program with the directories of that run.
status_of()
{
    local expected=$1 sentence=$2 text=$3 status=0 out
    shift 3
    if [ "$1" = twotower ]; then
        set -- "$TWOTOWER" "$3" "${quiet[@]}" -o "state.dir=$dir/$2/state" -o "snapshot.dir=$dir/$2/snapshots" "${@:4}"
    fi
    out=$(timeout 20 "$@" 2>&1) || status=$?
    if [ "$status" -ne "$expected" ]; then
        bad "$sentence" "status $status, expected $expected; it said: $(tail -n 1 <<<"$out")"
    elif ! grep -qF -- "$text" <<<"$out"; then
        bad "$sentence" "'$text' is not in: $(tail -n 1 <<<"$out")"
    else
        ok "$sentence"
    fi
}

endless=(-o source.type=builtin -o checkpoint.interval=200ms -o snapshot.interval=300ms -o snapshot.keep=3)

# Statuses.

status_of 78 "a mistake in the configuration ends with 78 and names it" "did you mean 'model.dim'" \
    "$TWOTOWER" run -o modl.dim=3
status_of 64 "an unknown command ends with 64" "frobnicate" "$TWOTOWER" frobnicate
status_of 66 "a source that is not there ends with 66" "$dir/nowhere" \
    twotower nowhere run --until-end -o source.type=file -o "source.path=$dir/nowhere"
status_of 64 "a stream without end has no --until-end" "source.requests" twotower nowhere run --until-end
status_of 64 "nothing comes after the end of a file: --then-live is refused" "--then-live" \
    twotower nowhere replay --then-live -o source.type=file -o "source.path=$dir"
status_of 64 "nothing comes after a bounded built-in stream either" "--then-live" \
    twotower nowhere replay --then-live -o source.requests=100
status_of 64 "a replay to the end of a stream without one is refused" "--to end" twotower nowhere replay
status_of 64 "a place in the stream that is none is refused" "'yesterday'" \
    twotower nowhere replay --from yesterday -o source.requests=100

# While it runs.

port=$(port_free)
twotower_start live run "${endless[@]}" -o "http.listen=127.0.0.1:$port" -o eval.sampling=0.01
check "it becomes ready" "not in 20 s" said live "ready restored=no" 20
check "it publishes while it learns" "no snapshot in 20 s" said live "snapshot published" 20
same "/healthz says that it lives" 200 "$(http "$port" /healthz | cut -c 1-3 | sed -n 1p)"
same "/readyz says that it learns" 200 "$(http "$port" /readyz | cut -c 1-3 | sed -n 1p)"
same "what is not there is 404" 404 "$(http "$port" /nothing | cut -c 1-3 | sed -n 1p)"
http "$port" /metrics >"$dir/metrics"
same "/metrics answers" 200 "$(head -n 1 "$dir/metrics" | cut -c 1-3)"
sed -i '1s/^200 //' "$dir/metrics"
if command -v promtool >/dev/null; then
    check "promtool finds nothing wrong with the metrics" "$(promtool check metrics <"$dir/metrics" 2>&1 | head -n 3)" \
        promtool check metrics <"$dir/metrics"
else
    echo "skip promtool finds nothing wrong with the metrics: promtool is not installed"
fi
# A scrape may fall between two topics of one slice; another one does not.
for i in {1..20}; do
    http "$port" /metrics >"$dir/metrics"
    identity=$(python3 - "$dir/metrics" <<'PYTHON'
import re, sys
into, out = {}, {}
for line in open(sys.argv[1]):
    m = re.match(r'twotower_(\w+)\{([^}]*)\} (\S+)', line)
    if m:
        topic = dict(re.findall(r'(\w+)="([^"]*)"', m[2])).get("topic")
        if m[1] == "records_total":
            into[topic] = float(m[3])
        elif m[1] in ("record_outcomes_total", "records_pending"):
            out[topic] = out.get(topic, 0) + float(m[3])
print("holds" if len(into) == 4 and all(into.values()) and into == out else f"{into} became {out}")
PYTHON
)
    [ "$identity" = holds ] && break
done
same "the exported identity holds for every topic" holds "$identity"

status_of 75 "a second process on the same state is refused, and told why" "another process" \
    twotower live run "${endless[@]}"
status_of 74 "a port that is taken is said" "cannot listen on 127.0.0.1:$port" \
    twotower port run "${endless[@]}" -o "http.listen=127.0.0.1:$port"
kill -USR1 "$pid"
check "SIGUSR1 makes it say where it is" "nothing was said" said live "state" 5
begun=$(now_ms)
kill -TERM "$pid"
status=0
wait_for "$pid" || status=$?
took=$(($(now_ms) - begun))
same "SIGTERM: it drains and ends with 0" 0 "$status"
check "SIGTERM: it ends within three seconds" "it took $took ms" [ "$took" -lt 3000 ]
echo "SIGTERM to exit: $took ms"
check "retention keeps the last three snapshots" "$(ls "$dir/live/snapshots")" \
    [ "$(find "$dir/live/snapshots" -mindepth 1 -maxdepth 1 -type d | wc -l)" -le 3 ]

events=$(grep -oE 'stopped +events=[0-9]+' "$dir/live/log" | grep -oE '[0-9]+$')
begun=$(now_ms)
twotower_start live run "${endless[@]}"
check "started again, it goes on from its checkpoint" "not in 20 s" said live "ready restored=yes" 20
echo "start to ready from a checkpoint: $(($(now_ms) - begun)) ms"
kill -INT "$pid"
wait_for "$pid"
later=$(grep -oE 'stopped +events=[0-9]+' "$dir/live/log" | tail -n 1 | grep -oE '[0-9]+$')
check "its counters go on" "$events, then $later" [ "${later:-0}" -gt "${events:-0}" ]
status_of 78 "a checkpoint of another model is not taken" "model.dim=64 then, model.dim=32 now" \
    twotower live run "${endless[@]}" -o model.dim=32
mkdir "$dir/other"
: >"$dir/other/impressions.jsonl"
status_of 78 "a checkpoint of another source is not taken" "other topics or partitions" \
    twotower live run --until-end -o source.type=file -o "source.path=$dir/other"
rm -rf "${dir:?}/live" "${dir:?}/port"

# Its files.

stream=(-o source.type=builtin -o source.requests=100000 -o source.seed=11)
begun=$(now_ms)
until_end reference "${stream[@]}" || exit 1
took=$(($(now_ms) - begun))
expected="$(digest reference) $(totals reference)"

# broken NAME: a run that was killed in the middle, with three checkpoints and slices behind them.
many=("${stream[@]}" -o checkpoint.interval=100ms -o checkpoint.keep=3 -o slice.events=512)
broken()
{
    local i
    for ((i = 0; i < 3; i++)); do
        rm -rf "${dir:?}/$1"
        twotower_start "$1" run --until-end "${many[@]}"
        while kill -0 "$pid" 2>/dev/null && [ "$(newest "$1" 9 | wc -l)" -lt 3 ]; do sleep 0.02; done
        sleep 0.03
        kill -KILL "$pid" 2>/dev/null
        wait_for "$pid"
        grep -q finished "$dir/$1/log" || return 0
    done
    bad "$1" "it ended before it could be killed"
}
newest() { find "$dir/$1/state/checkpoints" -mindepth 1 -maxdepth 1 -type d ! -name '.*' 2>/dev/null | sort | tail -n "${2:-1}"; }
slices() { find "$dir/$1/state" -name 'slices-*.log' | sort -t- -k2 -n | tail -n 1; }

# flip FILE OFFSET: one byte becomes another.
flip()
{
    python3 - "$1" "$2" <<'PYTHON'
import sys
with open(sys.argv[1], "r+b") as f:
    f.seek(int(sys.argv[2]))
    byte = f.read(1)[0]
    f.seek(int(sys.argv[2]))
    f.write(bytes([byte ^ 0x40]))
PYTHON
}

recovers() # NAME SENTENCE
{
    until_end "$1" "${many[@]}"
    same "$2" "$expected" "$(digest "$1") $(totals "$1")"
}

broken flipped
flip "$(newest flipped)/item.vector.safetensors" 100000
recovers flipped "a flipped byte in the newest checkpoint: the one before it, and the slice log"
check "the damaged checkpoint is told" "no warning" grep -q 'checkpoint left aside.*item.vector' "$dir/flipped/log"

broken cut
truncate -s -1 "$(newest cut)/user.vector.safetensors"
recovers cut "a file of the newest checkpoint is too short: the one before it"

broken lost
rm "$(newest lost)/manifest.json"
recovers lost "the newest checkpoint has lost its manifest: the one before it"

broken all
for checkpoint in $(newest all 9); do flip "$checkpoint/item.vector.safetensors" 100000; done
status_of 65 "all checkpoints damaged: it does not begin again by itself" "item.vector" \
    twotower all run --until-end "${many[@]}"

broken torn
truncate -s -7 "$(slices torn)"
recovers torn "a torn end of the slice log is cut off"

broken garbage
head -c 100 /dev/urandom >>"$(slices garbage)"
recovers garbage "garbage behind the slice log is cut off"

broken emptied
: >"$(slices emptied)"
killed_often 3 3 200 400 emptied "${many[@]}"
recovers emptied "an emptied slice log begins again behind the checkpoint"

broken short
truncate -s 600 "$(slices short)"
killed_often 5 4 200 400 short "${many[@]}"
recovers short "a slice log that ends before the checkpoint goes on in another file"

broken middle
size=$(stat -c %s "$(slices middle)")
flip "$(slices middle)" $((size / 2))
status_of 65 "damage inside the slice log is refused, with its place" "damaged at byte" \
    twotower middle run --until-end "${many[@]}"
rm -rf "${dir:?}"/{flipped,cut,lost,all,torn,garbage,emptied,short,middle}

# Not writable.

mkdir -p "$dir/readonly"
chmod 555 "$dir/readonly"
user=()
[ "$(id -u)" -ne 0 ] || user=(setpriv --reuid=65534 --regid=65534 --clear-groups)
if "${user[@]}" test -x "$TWOTOWER" && ! "${user[@]}" test -w "$dir/readonly"; then
    status_of 77 "a state directory that cannot be written ends with 77" "$dir/readonly/state: Permission denied" \
        "${user[@]}" "$TWOTOWER" run "${quiet[@]}" -o "state.dir=$dir/readonly/state" -o "snapshot.dir=$dir/readonly/snapshots"
else
    echo "skip a state directory that cannot be written ends with 77: no user for whom it is so"
fi

# A stretch of the past.

mkdir "$dir/files"
python3 tests/e2e/stream_make.py "$dir/files" 5 4000
middle=1700004000000 # 4000 s into the stream
file=(-o source.type=file -o "source.path=$dir/files")
until_end whole "${file[@]}"
twotower part replay --to ${middle}ms "${file[@]}"
same "a replay to a time reads what is before it" "$(python3 - "$dir/files" $middle <<'PYTHON'
import json, os, sys
n = 0
for topic in "items", "ranker_scores", "impressions", "engagements":
    for line in open(os.path.join(sys.argv[1], topic + ".jsonl")):
        try:
            record = json.loads(line)
            if record.get("ts", 0) >= int(sys.argv[2]): break
            n += len(record.get("items", [0])) if topic == "impressions" and "user_id" in record and record["user_id"] and "ts" in record else 1
        except (ValueError, TypeError, AttributeError):
            n += 1
print(n)
PYTHON
)" "$(totals part | grep -oE 'events=[0-9]+' | cut -d= -f2)"
until_end part "${file[@]}"
check "the rest can be read later" "$(totals part)" [ "$(totals part)" = "$(totals whole)" ]

twotower built replay --from begin --to 1767225660000ms -o source.requests=100000 -o source.seed=11
check "a replay of the built-in stream stops at its time" "$(totals built)" \
    [ "$(totals built | grep -oE 'events=[0-9]+' | cut -d= -f2)" -lt "$(totals reference | grep -oE 'events=[0-9]+' | cut -d= -f2)" ]
until_end built "${stream[@]}"
same "replayed up to a time and then to the end, it is the same" "$expected" "$(digest built) $(totals built)"
twotower tail replay --from 50000 --to 60000 "${stream[@]}"
check "a replay from a number of records begins there" "$(totals tail)" \
    grep -q 'topic=impressions partition=0 from=50000 to=60000' "$dir/tail/log"
