#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# A bad network between the program and its broker, by tests/kafka/proxy.c: slow, late, silent, with
# connections that break in the middle of a message and bits that flip. The program reads a whole
# stream through it, live, while that changes, and has the model that it has from files. Then a second
# process on the same directory, which is refused.
#
# The broker is one of its own: clients follow the address that it advertises, so that is the proxy's.
# Needs what tests/kafka/run.sh sets.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 70
. tests/kafka/support.sh
SECONDS=0
proxy=$BUILD_DIR/tests/kafka_proxy
[ -x "$proxy" ] || { echo "$proxy is not built"; exit 77; }

export KAFKA_PORT=$ports KAFKA_STATE_DIR=$dir/broker KAFKA_CONFIG=$dir/broker.properties
export KAFKA_BOOTSTRAP=127.0.0.1:$KAFKA_PORT
target=$((ports + 2)) listen=$((ports + 3)) http=$((ports + 4))
seed=${SEED:-$RANDOM}
echo "# seed $seed; SEED=$seed tries the same again"
cat >"$KAFKA_CONFIG" <<CONFIG
listeners=PLAINTEXT://$KAFKA_BOOTSTRAP,PROXIED://127.0.0.1:$target,CONTROLLER://127.0.0.1:$((KAFKA_PORT + 1))
advertised.listeners=PLAINTEXT://$KAFKA_BOOTSTRAP,PROXIED://127.0.0.1:$listen
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT
CONFIG
trap '"$KAFKA_BROKER" stop' EXIT
"$KAFKA_BROKER" start || exit 1

mkdir "$dir/made"
python3 tests/e2e/stream_make.py "$dir/made" 5 8000 orderly
until_end file -o source.type=file -o "source.path=$dir/made" || exit 1
expected=$(verdict_of file)
echo "# file: $expected"
topics_make net 3
for topic in "${topics[@]}"; do lines "$dir/made" "$topic" | produce "$topic" "net-$topic"; done
from net

coproc PROXY { exec "$proxy" "$listen" "$target" "$seed"; }
exec {proxy_in}>&"${PROXY[1]}" {proxy_out}<&"${PROXY[0]}"

# network LINE: a command of the proxy; $answer is what it said.
network()
{
    printf '%s\n' "$1" >&"$proxy_in"
    IFS= read -r -t 10 answer <&"$proxy_out"
}
network pass || exit 1

# Small fetches make many answers, of 30 KB or so. What the metadata says is asked often.
through=("${kafka[@]}" -o "source.brokers=127.0.0.1:$listen" -o "http.listen=127.0.0.1:$http"
    -o source.kafka.queued.min.messages=1 -o source.kafka.queued.max.messages.kbytes=1
    -o source.kafka.fetch.message.max.bytes=30000 -o source.kafka.socket.timeout.ms=10000
    -o checkpoint.interval=300ms -o snapshot.interval=600ms)

twotower_start net run --until-end "${through[@]}"
said net ready 20 || tail -n 3 "$dir/net/log"
# mode SECONDS LINE...: the network is like this for so long.
mode()
{
    local pause=$1 line
    shift
    for line in "$@"; do network "$line" || bad "network" "the proxy does not take '$line'"; done
    sleep "$pause"
}
random_state=$seed
mode 0.3 "delay 40 40"
mode 1 "flip 1"
for ((i = 0; i < 4; i++)); do
    random 2000 20000
    mode 0.6 "reset $drawn"
    random 2000 20000
    mode 0.6 "cut $drawn"
done
mode 0.5 "pass" "rate 300000"
mode 0.5 "flip 2" "delay 5 20"
check "bad network: it is still reading" "it ended: $(tail -n 1 "$dir/net/log")" kill -0 "$pid"
# Two daemons, one directory: the one that has it goes on.
status=0
"$TWOTOWER" run "${quiet[@]}" -o "state.dir=$dir/net/state" -o "snapshot.dir=$dir/net/snapshots" "${kafka[@]}" \
    2>"$dir/second" || status=$?
same "a second process on one state.dir: status" 75 "$status"
echo "# $(tail -n 1 "$dir/second")"
check "a second process on one state.dir: it says who has it" "$(tail -n 1 "$dir/second")" \
    grep -qE "state.*(another process|in use|locked)" "$dir/second"
check "a second process on one state.dir: the first goes on" "it ended" kill -0 "$pid"
mode 13 hole
check "silent network: the process waits" "it ended: $(tail -n 1 "$dir/net/log")" kill -0 "$pid"
mode 0.5 "pass" "reset 1"
status=0
wait_for "$pid" || status=$?
same "bad network: it comes to the end" 0 "$status"
same "bad network: the same model as from files" "$expected" "$(verdict_of net)"
network count
echo "# connections, bytes, resets, cuts, flips: ${answer#count }"
read -r _ _ _ resets cuts flips <<<"$answer"
check "bad network: it was bad" "$answer" [ "$((resets >= 3 && cuts >= 2 && flips >= 2))" = 1 ]
check "bad network: a flipped bit is told and read again" "nothing said" \
    said net ": read again (MessageSet" 1
grep -E 'warning|error' "$dir/net/log" | grep -v 'librdkafka: ' | sed 's/^/# /' | head -8
echo "# network: $SECONDS s"

[ ! -e "$failures" ]
