#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Dead letters in a topic: with what belongs to them; each at least once when the program is killed
# while it sends, and once when it is not; a broker that goes, a topic that is not there, one that takes
# nothing; a flood, which stops it before any of the flood is an effect.
#
# Needs KAFKA_BOOTSTRAP, KAFKA_BROKER, TWOTOWER and TEST_DIR, which tests/kafka/run.sh sets.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 70
. tests/kafka/support.sh
SECONDS=0
seed=${SEED:-$RANDOM}
echo "# seed $seed; SEED=$seed tries the same again"
http=$ports

mkdir "$dir/made"
python3 tests/e2e/stream_make.py "$dir/made" 5 400 orderly

# ready: the status of /readyz.
ready()
{
    (
        exec 3<>"/dev/tcp/127.0.0.1/$http" && printf 'GET /readyz HTTP/1.0\r\n\r\n' >&3 && head -n 1 <&3 | cut -d ' ' -f 2
    ) 2>/dev/null
}

ends() # STATUS SENTENCE
{
    local status=0
    (sleep 90; kill -KILL "$pid" 2>/dev/null) &
    local guard=$!
    wait_for "$pid" || status=$?
    kill "$guard" 2>/dev/null
    same "$2" "$1" "$status"
}

# stream PREFIX PARTITIONS: its four topics with all of the made stream, and PREFIX-letters.
stream()
{
    local topic
    topics_make "$1" "$2"
    "$KAFKA_BROKER" topic "$1-letters" 3
    for topic in "${topics[@]}"; do lines "$dir/made" "$topic" | produce "$topic" "$1-$topic"; done
    from "$1"
    kafka+=(-o "dead_letter.topic=$1-letters")
}

# nonsense TOPIC N
nonsense() { seq "$2" | sed 's/.*/k&\tnonsense &/' | kcat -b "$KAFKA_BOOTSTRAP" -P -t "$1" -K '\t' -H n=1; }

# keys_come_to TOPIC N [SECONDS]: waits until so many different keys are in the topic; sets $value.
keys_come_to()
{
    local end=$((SECONDS + ${3:-30}))
    until value=$(kcat -b "$KAFKA_BOOTSTRAP" -C -t "$1" -o beginning -e -q -f '%k\n' | sort -u | wc -l) && [ "$value" -ge "$2" ]; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.3
    done
}

# letters TOPIC FILE...: what is in the topic against the lines of these files, "letters sent", or what is
# wrong. More sent than letters: some are there twice, with the same key.
letters()
{
    local topic=$1
    shift
    kcat -b "$KAFKA_BOOTSTRAP" -C -t "$topic" -o beginning -e -q -J >"$dir/letters.json"
    python3 - "$dir/letters.json" "$@" <<'PYTHON'
import json, sys
sent, topic, wrong = 0, {}, []
for line in open(sys.argv[1], encoding="utf-8", errors="replace"):
    m = json.loads(line)
    h = m.get("headers") or []
    h = [(h[i], h[i + 1]) for i in range(0, len(h), 2)]
    again = topic.setdefault(m["key"], (m["payload"], h))
    sent += 1
    if again != (m["payload"], h):
        wrong.append(f"{m['key']}: twice, and not the same")
file = {}
for name in sys.argv[2:]:
    for line in open(name):
        r = json.loads(line)
        if "start" not in r:
            file["%(topic)s/%(partition)d/%(offset)d" % r] = r
wrong += [f"missing: {k}" for k in sorted(file.keys() - topic.keys())[:5]]
wrong += [f"unknown: {k}" for k in sorted(topic.keys() - file.keys())[:5]]
for key, (payload, headers) in topic.items():
    r = file.get(key)
    if not r:
        continue
    expected = r.get("headers", []) + [["dlq.reason", r["reason"]], ["dlq.message", r["message"]], ["dlq.stage", "decode"],
        ["dlq.topic", r["topic"]], ["dlq.partition", str(r["partition"])], ["dlq.offset", str(r["offset"])],
        ["dlq.timestamp", str(r["ts"])]] + ([["dlq.key", r["key"]]] if "key" in r else []) + [["dlq.slice", str(r["slice"])]]
    got = [list(h) for h in headers]
    if got[:len(expected)] != expected:
        wrong.append(f"{key}: {got} is not {expected}")
    if "value" in r and "value_size" not in r and len(r["value"]) < 900000 and payload != r["value"]:
        wrong.append(f"{key}: another value")
print("; ".join(wrong)[:2000] if wrong else f"{len(topic)} {sent}")
PYTHON
}

# What a letter has.

stream one 3
printf 'u1\t{"odd": "\\u00e9\\"x"}\n' | kcat -b "$KAFKA_BOOTSTRAP" -P -t one-engagements -K '\t' -H trace=4f2a -H retry= -H 'trace=second "one"'
printf '\xff\xfe{}' >"$dir/bytes"
kcat -b "$KAFKA_BOOTSTRAP" -P -t one-impressions "$dir/bytes"
head -c 2097152 /dev/zero | tr '\0' x >"$dir/huge"
kcat -b "$KAFKA_BOOTSTRAP" -P -t one-impressions -k u1 -X message.max.bytes=8388608 "$dir/huge"
headers=()
for i in {1..70}; do headers+=(-H "h$i=v"); done
echo none | kcat -b "$KAFKA_BOOTSTRAP" -P -t one-items -k i1 "${headers[@]}"
printf 'u1\t\n' | kcat -b "$KAFKA_BOOTSTRAP" -P -t one-engagements -K '\t' -Z
nonsense one-engagements 50
until_end one "${kafka[@]}"
same "each letter is in the topic once, with its headers; a tombstone is none" "54 54" \
    "$(letters one-letters "$dir/one/state/dead-letters.jsonl")"
check "headers of their own are kept" "$(grep trace "$dir/letters.json")" \
    grep -qF '"headers":["trace","4f2a","retry","","trace","second \"one\"","dlq.reason","missing_field"' "$dir/letters.json"
check "a version is told" "none" grep -qE '"dlq.version","[0-9.]+"' "$dir/letters.json"
check "bytes that are no text" "they are not there" grep -qF "$(printf '\xff\xfe{}')" "$dir/letters.json"
check "a value of 2 MiB is cut, and says so" "$(grep -oE '"dlq.value_size","[0-9]+"' "$dir/letters.json")" \
    grep -qF '"dlq.value_size","2097152"' "$dir/letters.json"
check "64 headers are kept, and the rest counted" "$(grep -o '"h6[0-9].*"' "$dir/letters.json")" \
    grep -qE '"h64","v","dlq.reason".*"dlq.headers_left_out","6"' "$dir/letters.json"
until_end one "${kafka[@]}"
same "a start with nothing new sends nothing" "54 54" "$(letters one-letters "$dir/one/state/dead-letters.jsonl")"
echo "# one: $SECONDS s"

# Killed while it sends.

stream killed 4
nonsense killed-engagements 15000
nonsense killed-impressions 5000
often=(-o dead_letter.flood=1 -o slice.events=100 -o checkpoint.interval=150ms)
# A producer with hardly any room sends slowly, so that it is killed while it does.
random_state=$seed
kills=0 resumed=0
for i in {1..8}; do
    noted=$(cat "$dir/killed/state/dead-letters.jsonl.delivered" 2>/dev/null)
    twotower_start killed run --until-end "${kafka[@]}" "${often[@]}" -o source.kafka.queue.buffering.max.kbytes=1
    # Soon after it has sent something; how long it takes until then is the producer's business.
    for ((k = 0; k < 1000; k++)); do
        [ "$(cat "$dir/killed/state/dead-letters.jsonl.delivered" 2>/dev/null)" = "$noted" ] || break
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.01
    done
    random 0 150
    sleep "0.$(printf %03d "$drawn")"
    kill -KILL "$pid" 2>/dev/null && kills=$((kills + 1))
    wait_for "$pid"
    [ -s "$dir/killed/state/dead-letters.jsonl.delivered" ] && resumed=$((resumed + 1))
done
check "it was killed in the middle" "$kills times" [ "$kills" -ge 3 ]
check "and went on where it had been" "$resumed times" [ "$resumed" -ge 3 ]
sent=$(kcat -b "$KAFKA_BOOTSTRAP" -C -t killed-letters -o beginning -e -q -f 'x\n' | wc -l)
until_end killed "${kafka[@]}" "${often[@]}"
got=$(letters killed-letters "$dir/killed/state/dead-letters.jsonl")
check "killed $kills times, no letter is missing and none is unknown" "$got" grep -qE '^20000 [0-9]+$' <<<"$got"
check "it was killed while it sent" "$sent messages before the end, $got" \
    test "$sent" -gt 100 -a \( "$sent" -lt 20000 -o "${got#* }" -gt 20000 \)
echo "# killed $kills times, $sent messages until then: letters and messages $got"
same "and every place is in the file once" 20000 "$(grep -c '^{"topic"' "$dir/killed/state/dead-letters.jsonl")"
echo "# killed: $SECONDS s"

# The broker goes, and comes back.

live=(-o "http.listen=127.0.0.1:$http" -o checkpoint.interval=500ms)
stream absent 2
twotower_start absent run "${kafka[@]}" "${live[@]}" -o dead_letter.flood=1
said absent ready 20
nonsense absent-engagements 4000
comes_to dead_letter_bytes_total -gt 1000
"$KAFKA_BROKER" kill
check "a broker that is away is told" "nothing said" said absent "dead letters wait" 20
sleep 2
check "and waited for" "it ended" kill -0 "$pid"
"$KAFKA_BROKER" start
nonsense absent-engagements 100
check "when it is back, letters are delivered" "${value:-none}" comes_to dead_letters_delivered_total -ge 4100 60
same "as many as there are" 4100 "$value"
comes_to dead_letters_waiting_bytes -eq 0
same "and none waits" 0 "$value"
kill -TERM "$pid"
ends 0 "it stops as ever"
same "a broker that went: no letter is missing, none is there twice" "4100 4100" \
    "$(letters absent-letters "$dir/absent/state/dead-letters.jsonl")"
echo "# absent: $SECONDS s"

# No such topic: reading goes on as long as the files have room, and then waits. They have it for 100
# letters or so, the two of them.

stream full 2
"$KAFKA_BROKER" delete full-letters
live+=(-o source.kafka.topic.metadata.propagation.max.ms=500 -o dead_letter.flood=1 -o slice.events=20)
twotower_start full run "${kafka[@]}" "${live[@]}" -o dead_letter.max_bytes=10000
said full ready 20
nonsense full-engagements 10
check "a topic that is not there is told" "nothing said" said full "dead letters not delivered" 20
check "with its name and why" "$(grep 'not delivered' "$dir/full/log" | head -n 1)" \
    grep -qE 'topic full-letters: .*[Uu]nknown topic' "$dir/full/log"
check "and counted" "${value:-none}" comes_to dead_letter_failures_total -ge 1
same "it is ready all the same" 200 "$(ready)"
nonsense full-engagements 2000
check "when the files are full of letters, reading stops, and that is told" "nothing said" \
    said full "reading stops until dead letters are delivered" 30
same "it is not ready then" 503 "$(ready)"
check "files do not grow" "$(du -b "$dir/full/state/dead-letters.jsonl"*)" \
    test "$(cat "$dir/full/state/dead-letters.jsonl" | wc -c)" -lt 60000
kill -TERM "$pid"
ends 0 "it can be stopped while it waits"
twotower_start full run "${kafka[@]}" "${live[@]}" -o dead_letter.max_bytes=10000
sleep 1
"$KAFKA_BROKER" topic full-letters 1
check "with the topic it goes on" "${value:-none}" comes_to dead_letters_waiting_bytes -eq 0 60
check "to the end" "$value keys" keys_come_to full-letters 2010
kill -TERM "$pid"
ends 0 "and stops"
keys=$(kcat -b "$KAFKA_BOOTSTRAP" -C -t full-letters -o beginning -e -q -f '%k\n')
same "every letter is in the topic, none is missing" 2010 "$(sort -u <<<"$keys" | wc -l)"
echo "# full: $(wc -l <<<"$keys") messages of 2010 letters, $SECONDS s"

# The same where letters are dropped instead.

stream drop 2
"$KAFKA_BROKER" delete drop-letters
twotower_start drop run "${kafka[@]}" "${live[@]}" -o dead_letter.max_bytes=10000 -o dead_letter.on_unavailable=drop
said drop ready 20
nonsense drop-engagements 2000
check "with on_unavailable=drop letters are dropped, and counted" "${value:-none}" \
    comes_to dead_letters_dropped_bytes_total -gt 200000
same "and it is ready" 200 "$(ready)"
check "that is told" "nothing said" said drop "dead letters dropped before they were delivered" 1
"$KAFKA_BROKER" topic drop-letters 1
check "what is left is delivered" "${value:-none}" comes_to dead_letters_waiting_bytes -eq 0 60
kill -TERM "$pid"
ends 0 "it stops"
got=$(kcat -b "$KAFKA_BOOTSTRAP" -C -t drop-letters -o beginning -e -q -f '%k\n' | sort -u | wc -l)
check "some, not all" "$got letters" test "$got" -gt 20 -a "$got" -lt 1900
echo "# drop: $got of 2000 letters, $SECONDS s"

# A flood: a producer of another schema, behind what is good.

stream flood 2
twotower_start flood run "${kafka[@]}" -o checkpoint.interval=300ms -o "http.listen=127.0.0.1:$http"
said flood ready 20
nonsense flood-engagements 60
check "a few bad records are delivered" "${value:-none}" comes_to dead_letters_delivered_total -eq 60
nonsense flood-engagements 600
ends 65 "a flood ends it with 65"
sentence="topic flood-engagements: 101 of the last [0-9]+ records are no events, more than 100 in 1000 \\(dead_letter.flood\\): most often not_json, from partition [01] offset [0-9]+ on"
check "it names the topic and where it began" "$(tail -n 1 "$dir/flood/log")" grep -qE "$sentence" <<<"$(tail -n 1 "$dir/flood/log")"
echo "# $(tail -n 1 "$dir/flood/log")"
first=$(grep -oE 'partition [01] offset [0-9]+' <<<"$(tail -n 1 "$dir/flood/log")")
at=$(sed 's/.* //' <<<"$first") partition=$(cut -d ' ' -f 2 <<<"$first")
same "that is right" "nonsense 1" "$(kcat -b "$KAFKA_BOOTSTRAP" -C -t flood-engagements -p "$partition" -o "$at" -c 1 -e -q | sed -E 's/nonsense [0-9]+/nonsense 1/')"
before=$(kcat -b "$KAFKA_BOOTSTRAP" -C -t flood-letters -o beginning -e -q -f '%k\n' | sort)
check "at most what was below the limit is delivered" "$(wc -l <<<"$before")" [ "$(wc -l <<<"$before")" -le 100 ]
for i in 1 2; do
    twotower_start flood run "${kafka[@]}" -o checkpoint.interval=300ms
    ends 65 "started again, it ends again"
    same "with the same words" "$first" "$(grep -oE 'partition [01] offset [0-9]+' <<<"$(tail -n 1 "$dir/flood/log")")"
done
same "no letter more is delivered" "$before" "$(kcat -b "$KAFKA_BOOTSTRAP" -C -t flood-letters -o beginning -e -q -f '%k\n' | sort -u)"
until_end flood "${kafka[@]}" -o dead_letter.flood=1
same "taken on purpose, all of them are delivered, each once" "660 660" \
    "$(letters flood-letters "$dir/flood/state/dead-letters.jsonl")"
until_end flood2 "${kafka[@]}" -o dead_letter.flood=1 -o dead_letter.topic=
same "and nothing else was lost by it" "$(totals flood2 | grep -oE '(events|rejected)=[0-9]+')" \
    "$(totals flood | grep -oE '(events|rejected)=[0-9]+')"
echo "# all: $SECONDS s"

[ ! -e "$failures" ]
