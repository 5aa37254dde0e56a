# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# What the shell tests with a broker share, on top of tests/e2e/support.sh. To be sourced from the
# tree's root; needs KAFKA_BOOTSTRAP, KAFKA_BROKER, TWOTOWER and TEST_DIR, which tests/kafka/run.sh
# sets. A script ends with [ ! -e "$failures" ].
. tests/e2e/support.sh
dir=$TEST_DIR
failures=$dir/failures
bad() { echo "FAIL $1: $2" | tee -a "$failures"; }

# The first of eight free ports, below the broker's and below those that the system hands out.
# shellcheck disable=SC2034
ports=$((10000 + KAFKA_PORT / 2 % 1000 * 8))

topics=(items ranker_scores impressions engagements)

# keyed TOPIC: the lines of stdin with their key before a tab, in the way of producers.
keyed()
{
    local id=user_id
    [ "$1" = items ] && id=item_id
    sed -E "s/^.*\"$id\":\"?([^\",}]*)\"?.*\$/\\1\t&/;t;s/^/none\t/"
}

# produce TOPIC NAME: the lines of stdin, of this topic, into the broker's topic NAME.
produce()
{
    keyed "$1" | kcat -b "$KAFKA_BOOTSTRAP" -P -t "$2" -K '\t' -z lz4 -X enable.idempotence=true -X queue.buffering.max.messages=1000000 -X linger.ms=20
}

# lines DIR TOPIC
lines()
{
    if [ -e "$1/$2.jsonl" ]; then cat "$1/$2.jsonl"; elif [ -e "$1/$2.jsonl.zst" ]; then zstd -dcq "$1/$2.jsonl.zst"; fi
}

# topics_make PREFIX PARTITIONS
topics_make()
{
    local topic list=()
    for topic in "${topics[@]}"; do list+=("$1-$topic" "$2,max.message.bytes=8388608"); done
    "$KAFKA_BROKER" topic "${list[@]}" || bad "topics of $1" "they could not be made; each script needs names of its own"
}

# from PREFIX: the options that read its topics; sets $kafka.
from()
{
    local topic
    kafka=(-o source.type=kafka -o "source.brokers=$KAFKA_BOOTSTRAP")
    for topic in "${topics[@]}"; do kafka+=(-o "source.$topic=$1-$topic"); done
}

verdict_of() { echo "$(digest "$1") $(totals "$1")"; }

# events NAME: how many the running process has applied.
events()
{
    local before i
    # Before it has blocked its signals, this one would end it.
    for ((i = 0; i < 200; i++)); do
        grep -qE '^SigBlk:.*[2367abef]..$' "/proc/$pid/status" 2>/dev/null && break
        sleep 0.05
    done
    before=$(grep -cE ' state +events' "$dir/$1/log")
    kill -USR1 "$pid" 2>/dev/null || return 1
    for ((i = 0; i < 100; i++)); do
        [ "$(grep -cE ' state +events' "$dir/$1/log")" -gt "$before" ] && break
        sleep 0.05
    done
    grep -E ' state +events' "$dir/$1/log" | tail -n 1 | grep -oE 'events=[0-9]+' | cut -d= -f2
}

# reaches NAME N [SECONDS]: waits until N events were applied; not one more may come.
reaches()
{
    local end=$((SECONDS + ${3:-30}))
    while :; do
        got=$(events "$1")
        { [ "${got:-0}" -lt "$2" ] && [ "$SECONDS" -lt "$end" ] && kill -0 "$pid" 2>/dev/null; } || break
        sleep 0.2
    done
    [ "$got" = "$2" ] || return 1
    sleep 0.5
    got=$(events "$1")
    [ "$got" = "$2" ]
}

# metric NAME: its value, the sum over its labels, in the process that answers on port $http.
metric()
{
    (
        exec 3<>"/dev/tcp/127.0.0.1/$http" && printf 'GET /metrics HTTP/1.0\r\n\r\n' >&3 &&
            awk -v name="twotower_$1" '$1 ~ "^" name "([{]|$)" { sum += $2; n++ } END { if (n) print sum }' <&3
    ) 2>/dev/null
}

# comes_to NAME OPERATOR NUMBER [SECONDS]: waits until the metric compares so; $value is the last one.
comes_to()
{
    local end=$((SECONDS + ${4:-30}))
    until value=$(metric "$1") && value=${value%%.*} && test "${value:-none}" "$2" "$3" 2>/dev/null; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.1
    done
}
