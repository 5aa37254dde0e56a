#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The same program with a newer librdkafka than it was built with, as an operator may install it: the
# same model as from files, SCRAM at Kafka 4, and leader epochs. The library is the one that PyPI's
# confluent-kafka carries; newer_client.txt pins it.
#
# Needs what tests/kafka/run.sh sets.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 70
. tests/kafka/support.sh
SECONDS=0

newer=$(pwd)/build/librdkafka
pinned=tests/kafka/newer_client.txt
if ! cmp -s "$pinned" "$newer/made-of.txt"; then
    rm -rf "$newer"
    mkdir -p "$newer"
    if ! { python3 -m venv "$newer/venv" && "$newer/venv/bin/pip" install --disable-pip-version-check --no-deps \
        --only-binary :all: --requirement "$pinned"; } >"$newer/log" 2>&1; then
        echo "confluent-kafka could not be installed: $(tail -n 1 "$newer/log")"
        exit 77
    fi
    # The file's name has a hash; programs ask for the plain one.
    ln -s "$newer"/venv/lib/python3*/site-packages/confluent_kafka.libs/librdkafka-*.so.1 "$newer/librdkafka.so.1"
    cp "$pinned" "$newer/made-of.txt"
fi
shared=$KAFKA_BOOTSTRAP

mkdir "$dir/made"
python3 tests/e2e/stream_make.py "$dir/made" 6 4000 orderly
until_end file -o source.type=file -o "source.path=$dir/made" || exit 1
expected=$(verdict_of file)
for n in 1 5; do
    topics_make "newer$n" "$n"
    for topic in "${topics[@]}"; do lines "$dir/made" "$topic" | produce "$topic" "newer$n-$topic"; done
done
export KAFKA_PORT=$ports KAFKA_STATE_DIR=$dir/secured KAFKA_BOOTSTRAP=127.0.0.1:$ports KAFKA_USER=scrammer:scram-secret
export KAFKA_CONFIG=$dir/secured.properties
secured=127.0.0.1:$((KAFKA_PORT + 2))
cat >"$KAFKA_CONFIG" <<CONFIG
listeners=PLAINTEXT://$KAFKA_BOOTSTRAP,SASL_PLAINTEXT://$secured,CONTROLLER://127.0.0.1:$((KAFKA_PORT + 1))
advertised.listeners=PLAINTEXT://$KAFKA_BOOTSTRAP,SASL_PLAINTEXT://$secured
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT
sasl.enabled.mechanisms=SCRAM-SHA-256
listener.name.sasl_plaintext.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
CONFIG
trap '"$KAFKA_BROKER" stop' EXIT
"$KAFKA_BROKER" start || exit 1
topics_make safe 1
for topic in "${topics[@]}"; do lines "$dir/made" "$topic" | produce "$topic" "safe-$topic"; done

export LD_LIBRARY_PATH=$newer
for n in 1 5; do
    from "newer$n"
    until_end "newer$n" "${kafka[@]}" -o "source.brokers=$shared"
    same "a newer librdkafka, $n partitions: the same model as from files" "$expected" "$(verdict_of "newer$n")"
done
version=$(grep -oE 'kafka: librdkafka [0-9.]+' "$dir/newer1/log" | head -n 1)
echo "# ${version#kafka: }"
same "a newer librdkafka: it is the pinned one" "$(sed -n 's/^confluent-kafka==\([0-9]*\.[0-9]*\).*/kafka: librdkafka \1/p' "$pinned")" "${version%.*}"
from safe
until_end scram "${kafka[@]}" -o "source.brokers=$secured" -o source.kafka.security.protocol=sasl_plaintext \
    -o source.kafka.sasl.mechanism=SCRAM-SHA-256 -o source.kafka.sasl.username=scrammer -o source.kafka.sasl.password=scram-secret
same "a newer librdkafka: SCRAM at Kafka 4 works" "$expected" "$(verdict_of scram)"
if grep -q "cannot log in with SCRAM" "$dir/scram/log"; then bad "a newer librdkafka" "the old one's warning is told"; fi

# The source's own tests of what librdkafka tells differently: epochs, damaged logs.
export KAFKA_BOOTSTRAP=127.0.0.1:$KAFKA_PORT
for name in "*stop*" an_open_transaction_is_waited_for_and_then_told; do
    status=0
    CMOCKA_MESSAGE_OUTPUT=TAP timeout 200 "$BUILD_DIR/tests/kafka_test_source_kafka" "$name" >"$dir/source.log" 2>&1 || status=$?
    check "a newer librdkafka: $name" "$(grep -A 3 '^not ok' "$dir/source.log")" [ "$status" = 0 ]
    grep '^# topic' "$dir/source.log" | cut -c 1-240
done
echo "# newer client: $SECONDS s"

[ ! -e "$failures" ]
