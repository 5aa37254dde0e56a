#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# TLS and SASL, with what is right and with what is wrong: it reads, or it ends with a sentence that
# names the cause, and no password is in what it says. The broker is one of its own.
#
# Needs what tests/kafka/run.sh sets, and openssl.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 70
. tests/kafka/support.sh
command -v openssl >/dev/null || { echo "openssl is not installed"; exit 77; }

export KAFKA_PORT=$ports KAFKA_STATE_DIR=$dir/secured
export KAFKA_BOOTSTRAP=127.0.0.1:$KAFKA_PORT KAFKA_CONFIG=$dir/secured.properties
export KAFKA_USER=scrammer:scram-secret
secured=127.0.0.1:$((KAFKA_PORT + 2)) tls=127.0.0.1:$((KAFKA_PORT + 3))

# Two authorities; the broker's certificate is of the first.
(
    cd "$dir" || exit 1
    for ca in ca other; do
        openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj "/CN=$ca" -keyout "$ca.key" -out "$ca.crt"
    done
    openssl req -newkey rsa:2048 -nodes -subj /CN=127.0.0.1 -keyout broker.key -out broker.csr
    openssl x509 -req -in broker.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -out broker.crt \
        -extfile <(printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\n')
    openssl pkcs8 -topk8 -nocrypt -in broker.key -out broker.p8
    cat broker.p8 broker.crt >broker.pem
) >"$dir/openssl.log" 2>&1 || { cat "$dir/openssl.log"; exit 1; }
cat >"$KAFKA_CONFIG" <<CONFIG
listeners=PLAINTEXT://$KAFKA_BOOTSTRAP,SASL_SSL://$secured,SSL://$tls,CONTROLLER://127.0.0.1:$((KAFKA_PORT + 1))
advertised.listeners=PLAINTEXT://$KAFKA_BOOTSTRAP,SASL_SSL://$secured,SSL://$tls
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL,CONTROLLER:PLAINTEXT
ssl.keystore.type=PEM
ssl.keystore.location=$dir/broker.pem
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256
listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_plainer="plain-secret";
listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
CONFIG
trap '"$KAFKA_BROKER" stop' EXIT
"$KAFKA_BROKER" start || exit 1

mkdir "$dir/made"
python3 tests/e2e/stream_make.py "$dir/made" 1 200 orderly
until_end file -o source.type=file -o "source.path=$dir/made" || exit 1
expected=$(verdict_of file)
topics_make safe 1
for topic in "${topics[@]}"; do lines "$dir/made" "$topic" | produce "$topic" "safe-$topic"; done
from safe

# tries NAME BROKER STATUS SENTENCE TEXT PROPERTY...: a run to the end with these properties. It ends
# so, and TEXT is in its last line; with status 0 it has learned everything.
tries()
{
    local name=$1 broker=$2 expected_status=$3 sentence=$4 text=$5 status=0 list=() property
    shift 5
    for property in "$@"; do list+=(-o "source.kafka.$property"); done
    twotower "$name" run --until-end "${kafka[@]}" -o "source.brokers=$broker" "${list[@]}" || status=$?
    same "$sentence: status" "$expected_status" "$status"
    if [ "$expected_status" = 0 ]; then
        same "$sentence: everything is learned" "$expected" "$(verdict_of "$name")"
    else
        check "$sentence: it says so" "$(tail -n 1 "$dir/$name/log")" grep -qE -- "$text" <<<"$(tail -n 1 "$dir/$name/log")"
        echo "# $(tail -n 1 "$dir/$name/log")"
    fi
    if grep -qF -e secret "$dir/$name/log"; then bad "$sentence: no password is told" "$(grep -F -m 1 secret "$dir/$name/log")"; fi
}

sasl=(security.protocol=sasl_ssl "ssl.ca.location=$dir/ca.crt")
tries right "$tls" 0 "TLS, the right authority" "" security.protocol=ssl "ssl.ca.location=$dir/ca.crt"
tries plain "$secured" 0 "SASL PLAIN, the right password" "" "${sasl[@]}" sasl.mechanism=PLAIN \
    sasl.username=plainer sasl.password=plain-secret
# Those that fail wait for ten seconds, all at once.
tries wrong "$tls" 69 "TLS, another authority" "certificate" security.protocol=ssl "ssl.ca.location=$dir/other.crt" &
tries denied "$secured" 69 "SASL PLAIN, a wrong password" "[Aa]uthentication" "${sasl[@]}" sasl.mechanism=PLAIN \
    sasl.username=plainer sasl.password=wrong-secret &
tries clear "$tls" 69 "no TLS where TLS is spoken" "security.protocol" &
tries nofile "$tls" 78 "TLS, a file that is not there" "Kafka property ssl.ca.location: .*none.crt: No such file" security.protocol=ssl "ssl.ca.location=$dir/none.crt" &
# The password is right; it is the library that cannot, before 2.6.1.
if [ "$(pkg-config --modversion rdkafka 2>/dev/null | sort -V - <(echo 2.6.1) | head -n 1)" != 2.6.1 ]; then
    tries scram "$secured" 69 "SCRAM at Kafka 4 with an old librdkafka" "[Aa]uthentication" "${sasl[@]}" \
        sasl.mechanism=SCRAM-SHA-256 sasl.username=scrammer sasl.password=scram-secret &
    wait
    check "SCRAM: that it cannot work is said at start" "nothing said" \
        said scram "librdkafka before 2.6.1 cannot log in with SCRAM at Kafka 4" 1
else
    tries scram "$secured" 0 "SCRAM, the right password" "" "${sasl[@]}" \
        sasl.mechanism=SCRAM-SHA-256 sasl.username=scrammer sasl.password=scram-secret &
    wait
fi
echo "# login: $SECONDS s"

[ ! -e "$failures" ]
