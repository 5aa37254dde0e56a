#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# TLS and SASL, with what is right and with what is wrong: it reads, or it ends with a sentence that
# names the cause, and no password is in what it says. Credentials that change while it reads: it says
# so, is not ready meanwhile, and goes on when they are back. The brokers are of its own: the newest,
# and one of the line at which an old librdkafka can log in with SCRAM.
#
# Needs what tests/kafka/run.sh sets, and openssl.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 70
. tests/kafka/support.sh
command -v openssl >/dev/null || { echo "openssl is not installed"; exit 77; }

export KAFKA_PORT=$ports KAFKA_STATE_DIR=$dir/secured
export KAFKA_BOOTSTRAP=127.0.0.1:$KAFKA_PORT KAFKA_CONFIG=$dir/secured.properties
export KAFKA_USER=scrammer:scram-secret
secured=127.0.0.1:$((KAFKA_PORT + 2)) tls=127.0.0.1:$((KAFKA_PORT + 3)) past=127.0.0.1:$((KAFKA_PORT + 4))
http=$((KAFKA_PORT + 5))

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
    # Last year's. "openssl x509" makes none that has ended.
    printf '[ca]\ndefault_ca=d\n[d]\ndatabase=index\nserial=serial\nnew_certs_dir=.\ndefault_md=sha256\npolicy=p\n[p]\ncommonName=supplied\n' >past.conf
    : >index
    echo 01 >serial
    openssl ca -batch -notext -config past.conf -cert ca.crt -keyfile ca.key -in broker.csr -out past.crt \
        -startdate 20240101000000Z -enddate 20250101000000Z -extfile <(printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\n')
    cat broker.p8 past.crt >past.pem
) >"$dir/openssl.log" 2>&1 || { cat "$dir/openssl.log"; exit 1; }
# configure PLAIN_PASSWORD: who may log in. A connection has to log in again every two seconds, which
# librdkafka before 2.2.0 does by connecting anew.
configure()
{
    cat >"$KAFKA_CONFIG" <<CONFIG
listeners=PLAINTEXT://$KAFKA_BOOTSTRAP,SASL_SSL://$secured,SSL://$tls,PAST://$past,CONTROLLER://127.0.0.1:$((KAFKA_PORT + 1))
advertised.listeners=PLAINTEXT://$KAFKA_BOOTSTRAP,SASL_SSL://$secured,SSL://$tls,PAST://$past
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL,PAST:SSL,CONTROLLER:PLAINTEXT
ssl.keystore.type=PEM
ssl.keystore.location=$dir/broker.pem
listener.name.past.ssl.keystore.type=PEM
listener.name.past.ssl.keystore.location=$dir/past.pem
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256
connections.max.reauth.ms=2000
listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_plainer="$1";
listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
CONFIG
}
configure plain-secret
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
tries wrong "$tls" 69 "TLS, another authority" "the broker's certificate is of an authority that ssl.ca.location does not have" security.protocol=ssl "ssl.ca.location=$dir/other.crt" &
tries denied "$secured" 69 "SASL PLAIN, a wrong password" "[Aa]uthentication" "${sasl[@]}" sasl.mechanism=PLAIN \
    sasl.username=plainer sasl.password=wrong-secret &
tries expired "$past" 69 "TLS, a certificate that has expired" "the broker's certificate has expired" security.protocol=ssl "ssl.ca.location=$dir/ca.crt" &
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

# While it reads.

# ready: the status of /readyz.
ready()
{
    (exec 3<>"/dev/tcp/127.0.0.1/$http" && printf 'GET /readyz HTTP/1.0\r\n\r\n' >&3 && head -n 1 <&3 | cut -d ' ' -f 2) 2>/dev/null
}

# readiness STATUS SECONDS: waits for it.
readiness()
{
    local end=$((SECONDS + $2))
    until [ "$(ready)" = "$1" ]; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.2
    done
}

# interrupted NAME PREFIX LOCK OPEN WORD PROPERTY...: it reads live; LOCK takes its credentials away,
# OPEN gives them back. WORD is in what it says meanwhile.
interrupted()
{
    local name=$1 prefix=$2 lock=$3 open=$4 word=$5 list=() property sent
    shift 5
    for property in "$@"; do list+=(-o "source.kafka.$property"); done
    from "$prefix"
    twotower_start "$name" run "${kafka[@]}" -o "source.brokers=$secured" "${list[@]}" -o "http.listen=127.0.0.1:$http" \
        -o checkpoint.interval=300ms
    check "$name: it is ready" "$(tail -n 1 "$dir/$name/log")" readiness 200 20
    $lock
    check "$name: it is not ready any more" "still ready" readiness 503 40
    check "$name: it says why" "$(tail -n 2 "$dir/$name/log")" said "$name" "$word" 5
    check "$name: it waits" "it ended" kill -0 "$pid"
    grep -F -m 1 "told once a minute" "$dir/$name/log" | sed 's/^/# /'
    grep -F "$word" "$dir/$name/log" | grep -F -m 1 "told once a minute" | sed 's/^/# /'
    check "$name: it says so once a minute" "$(grep -cF "told once a minute" "$dir/$name/log") times" \
        [ "$(grep -cF "told once a minute" "$dir/$name/log")" -le 4 ]
    $open
    check "$name: it is ready again" "$(tail -n 2 "$dir/$name/log")" readiness 200 40
    check "$name: and says that" "nothing said" said "$name" "the brokers answer again" 5
    sent=$(grep -oE 'events=[0-9]+' <<<"$expected" | cut -d= -f2)
    head -n 5 "$dir/made/engagements.jsonl" | produce engagements "$prefix-engagements"
    check "$name: it goes on, and nothing is lost" "$((sent + 5)) sent, $(events "$name") seen" reaches "$name" "$((sent + 5))" 40
    kill -TERM "$pid"
    wait_for "$pid"
    if grep -qF -e secret "$dir/$name/log"; then bad "$name: no password is told" "$(grep -F -m 1 secret "$dir/$name/log")"; fi
}

plain_away() { "$KAFKA_BROKER" stop; configure another-secret; "$KAFKA_BROKER" start; }
plain_back() { "$KAFKA_BROKER" stop; configure plain-secret; "$KAFKA_BROKER" start; }
interrupted plain-changed safe plain_away plain_back "Authentication failed" "${sasl[@]}" sasl.mechanism=PLAIN \
    sasl.username=plainer sasl.password=plain-secret
"$KAFKA_BROKER" stop
echo "# plain: $SECONDS s"

# SCRAM at the older line, with whatever librdkafka there is.

export KAFKA_VERSION=3.9.2 KAFKA_STATE_DIR=$dir/older
if ! "$KAFKA_BROKER" fetch; then
    echo "# skipped: Kafka $KAFKA_VERSION could not be fetched"
else
    "$KAFKA_BROKER" start || exit 1
    topics_make older 1
    for topic in "${topics[@]}"; do lines "$dir/made" "$topic" | produce "$topic" "older-$topic"; done
    from older
    scram=("${sasl[@]}" sasl.mechanism=SCRAM-SHA-256 sasl.username=scrammer sasl.password=scram-secret)
    tries scram-older "$secured" 0 "SCRAM at Kafka $KAFKA_VERSION" "" "${scram[@]}"
    scram_away() { "$KAFKA_BROKER" scram scrammer:another-secret; }
    scram_back() { "$KAFKA_BROKER" scram scrammer:scram-secret; }
    interrupted scram-changed older scram_away scram_back "invalid credentials" "${scram[@]}"
fi
echo "# all: $SECONDS s"

[ ! -e "$failures" ]
