#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# What goes wrong on the broker's side while the program reads, and what its operator sees: aborted
# and open transactions, a broker that is killed or frozen, logs that were cut, topics that are gone,
# made anew or have more partitions. Nothing is lost, nothing counts twice, or it stops and says why.
#
# Needs KAFKA_BOOTSTRAP, KAFKA_BROKER, TWOTOWER and TEST_DIR, which tests/kafka/run.sh sets.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 70
. tests/kafka/support.sh
SECONDS=0

for seed in 1 2; do
    mkdir "$dir/made$seed"
    python3 tests/e2e/stream_make.py "$dir/made$seed" "$seed" 3000 orderly
done
until_end file -o source.type=file -o "source.path=$dir/made1" || exit 1
expected=$(verdict_of file)
echo "# file: $expected"

# lag OPERATOR NUMBER SENTENCE
lag()
{
    local is=0
    comes_to consumer_lag_records "$1" "$2" || is=1
    check "$3" "lag ${value:-unknown}" [ "$is" = 0 ]
}

http=$ports
live=(-o "http.listen=127.0.0.1:$http" -o checkpoint.interval=300ms -o snapshot.interval=600ms)

# ends NAME STATUS SENTENCE TEXT: the process in the background ends so, and says so in its last line.
ends()
{
    local status=0
    (sleep 90; kill -KILL "$pid" 2>/dev/null) &
    local guard=$!
    wait_for "$pid" || status=$?
    kill "$guard" 2>/dev/null
    same "$3: status $2" "$2" "$status"
    check "$3: it says so" "$(tail -n 1 "$dir/$1/log")" grep -qE -- "$4" <<<"$(tail -n 1 "$dir/$1/log")"
    echo "# $(tail -n 1 "$dir/$1/log")"
}

# Transactions.

# tx LINE: to the producer, whose answer is awaited unless the line is a record.
tx()
{
    local answer
    printf '%s\n' "$1" >&"$tx_in"
    IFS= read -r -t 30 answer <&"$tx_out" && [ "$answer" = "$1" ]
}

# tx_send DIR FROM TO: these lines of its impressions and engagements into the transaction.
tx_send()
{
    local topic
    for topic in impressions engagements; do
        sed -n "$2,$3p" "$1/$topic.jsonl" | keyed "$topic" | sed "s/^/tx-$topic\t/" >&"$tx_in"
    done
}

topics_make tx 2
coproc TX { exec "$KAFKA_BROKER" transact tester; }
# A pipeline does not inherit a coprocess' own descriptors.
exec {tx_in}>&"${TX[1]}" {tx_out}<&"${TX[0]}"
# The whole stream in transactions that are committed, with as many others between them that are not.
for topic in items ranker_scores; do lines "$dir/made1" "$topic" | produce "$topic" "tx-$topic"; done
longest=$(cat "$dir/made1"/{impressions,engagements}.jsonl | wc -l)
step=$((longest / 6 + 1))
for ((at = 1; at <= longest; at += step)); do
    tx_send "$dir/made2" "$at" $((at + step - 1))
    tx abort || bad "transactions" "no abort"
    tx_send "$dir/made1" "$at" $((at + step - 1))
    tx commit || bad "transactions" "no commit"
done
from tx
until_end tx "${kafka[@]}"
same "transactions: only what was committed is learned" "$expected" "$(verdict_of tx)"

twotower_start txlive run "${kafka[@]}" "${live[@]}"
sent=$(grep -oE 'events=[0-9]+' <<<"$expected" | cut -d= -f2)
check "transactions: live, the same number of events" "$sent sent, $(events txlive) seen" reaches txlive "$sent"
lag -eq 0 "transactions: no lag, although the log ends with aborted records"
tx_send "$dir/made2" 1 100
tx flush
lag -ge 100 "transactions: an open one is seen as lag"
is=0
comes_to consumer_open_transaction_records -ge 100 || is=1
check "transactions: and as what it is" "${value:-none}" [ "$is" = 0 ]
tx abort
lag -eq 0 "transactions: when it was aborted there is no lag"
same "transactions: and no record waits for one" 0 "$(metric consumer_open_transaction_records)"
same "transactions: all records are keyed by their user" 0 "$(metric records_unkeyed_total)"
same "transactions: and nothing of it was learned" "$sent" "$(events txlive)"
tx_send "$dir/made2" 1 100
tx flush
# Behind the open one, from a producer without transactions.
sed -n 101,200p "$dir/made2/engagements.jsonl" | produce engagements tx-engagements
lag -ge 250 "transactions: an open one holds back what is behind it"
same "transactions: which is not learned meanwhile" "$sent" "$(events txlive)"
sent=$((sent + 200 + $(sed -n 1,100p "$dir/made2/impressions.jsonl" | grep -o '"item_id"' | wc -l)))
tx commit
check "transactions: when it was committed all is learned" "$sent sent, $(events txlive) seen" reaches txlive "$sent"
lag -eq 0 "transactions: and there is no lag"
kill -TERM "$pid"
wait_for "$pid"
echo "# transactions: $SECONDS s"

# The broker is killed, and frozen for fifteen seconds, while everything is read. Small fetches and
# full queues make the reading last.

topics_make away 3
for topic in "${topics[@]}"; do lines "$dir/made1" "$topic" | produce "$topic" "away-$topic"; done
from away
slow=(-o source.kafka.queued.min.messages=1 -o source.kafka.queued.max.messages.kbytes=1
    -o source.kafka.fetch.message.max.bytes=30000)
begun=$(now_ms)
twotower_start away run --until-end "${kafka[@]}" "${slow[@]}" "${live[@]}"
comes_to records_total -gt 100 || tail -n 1 "$dir/away/log"
echo "# away: after $(($(now_ms) - begun)) ms $value records"
"$KAFKA_BROKER" kill
check "killed broker: it is told" "nothing said" said away "Connection refused" 20
check "killed broker: the process waits" "it ended" kill -0 "$pid"
"$KAFKA_BROKER" start
back=$value
check "killed broker: it goes on" "$value records" comes_to records_total -gt $((back + 500)) 40
echo "# away: $value records"
"$KAFKA_BROKER" freeze
sleep 15
check "frozen broker: the process waits" "it ended" kill -0 "$pid"
check "frozen broker: and answers" "no answer" metric records_total
"$KAFKA_BROKER" thaw
status=0
wait_for "$pid" || status=$?
same "killed and frozen broker: it comes to the end" 0 "$status"
same "killed and frozen broker: the same model" "$expected" "$(verdict_of away)"
grep -E 'warning|error' "$dir/away/log" | sed 's/^/# /' | head -5
echo "# killed and frozen: $SECONDS s, $(($(now_ms) - begun)) ms"

# Logs that were cut, and topics that were made anew, while the process was away. Its positions are
# where everything of made2 ends.

topics_make cut 1
for topic in "${topics[@]}"; do lines "$dir/made2" "$topic" | produce "$topic" "cut-$topic"; done
from cut
cut=("${kafka[@]}" -o checkpoint.interval=300ms)
twotower_start cut run "${cut[@]}" "${live[@]}"
at=$(wc -l <"$dir/made2/engagements.jsonl")
records=$(cat "$dir/made2"/*.jsonl | wc -l)
check "logs that are cut: first everything is read" "${value:-none} of $records" comes_to records_total -ge "$records"
lag -eq 0 "logs that are cut: and learned"
kill -TERM "$pid"
wait_for "$pid"

# refused STATUS SENTENCE TEXT: as it starts.
refused()
{
    twotower_start cut run "${cut[@]}"
    ends cut "$1" "$2" "$3"
}

"$KAFKA_BROKER" trim cut-engagements 0 "$at"
twotower_start cut run "${cut[@]}" "${live[@]}"
check "retention up to our offset: nothing is lost, it goes on" "$(tail -n 1 "$dir/cut/log")" \
    comes_to consumer_lag_records -eq 0
kill -TERM "$pid"
wait_for "$pid"
head -n 20 "$dir/made2/engagements.jsonl" | produce engagements cut-engagements
"$KAFKA_BROKER" trim cut-engagements 0 $((at + 10))
refused 65 "retention past our offset" \
    "topic cut-engagements partition 0: offset $at was deleted by retention, the log is $((at + 10)) up to $((at + 20))"

remade() # RECORDS
{
    local i
    "$KAFKA_BROKER" delete cut-engagements
    # The name is free when the broker has forgotten the topic.
    for ((i = 0; i < 100; i++)); do
        "$KAFKA_BROKER" topic cut-engagements 1 2>/dev/null && break
        sleep 0.1
    done
    head -n "$1" "$dir/made2/engagements.jsonl" | produce engagements cut-engagements
}

remade 7
refused 65 "a topic that was made anew, or truncated" \
    "topic cut-engagements partition 0: offset $at is beyond the log, which is 0 up to 7: was the topic truncated or created anew\\?"
"$KAFKA_BROKER" delete cut-engagements
refused 66 "a topic that was deleted" "topic cut-engagements does not exist \\(brokers $KAFKA_BOOTSTRAP\\)"
echo "# logs that are cut: $SECONDS s"

# Deleted under a process that reads.

topics_make gone 1
from gone
twotower_start gone run "${kafka[@]}" -o source.kafka.topic.metadata.refresh.interval.ms=500
said gone "ready" 20
"$KAFKA_BROKER" delete gone-items
ends gone 66 "a topic that is deleted while it is read" "topic gone-items.* not exist"

# Partitions are added.

topics_make grown 1
lines "$dir/made2" items | produce items grown-items
from grown
grown=("${kafka[@]}" -o checkpoint.interval=300ms -o source.kafka.topic.metadata.refresh.interval.ms=500)
twotower_start grown run "${grown[@]}" "${live[@]}"
comes_to records_total -ge 60
"$KAFKA_BROKER" grow grown-items 3
ends grown 74 "partitions that were added" "topic grown-items has 3 partitions now, it had 1 when reading began: a new state.dir"
twotower_start grown run "${grown[@]}"
ends grown 78 "partitions that were added: the next start" "4 partitions, there are 6 now|partitions \\(4 then, 6 now\\)"
echo "# all: $SECONDS s"

[ ! -e "$failures" ]
