#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# One Kafka broker (KRaft, a single node, loopback only) for tests and for trying things out.
#
#   broker.sh fetch                       get the jars from Maven Central, 40 MB, once
#   broker.sh start                       fetch and format if need be, start, wait until it answers
#   broker.sh topic NAME PARTITIONS[,KEY=VALUE...] [NAME PARTITIONS...]...    create topics
#   broker.sh grow NAME PARTITIONS        add partitions to a topic
#   broker.sh delete NAME...              delete topics
#   broker.sh trim NAME PARTITION OFFSET  delete what is before an offset, as retention does
#   broker.sh transact ID                 write transactions; see topics.c
#   broker.sh freeze | thaw               SIGSTOP | SIGCONT
#   broker.sh stop | kill                 end it by SIGTERM | by SIGKILL, as a crash would
#   broker.sh wipe                        stop it and remove its data; the jars stay
#   broker.sh scram NAME:PASSWORD         give a SCRAM-SHA-256 user another password
#   broker.sh env                         print KAFKA_BOOTSTRAP=HOST:PORT
#
# Needs Java 17, Maven (fetch), kcat, and a C compiler with librdkafka's header (topic). Environment:
#
#   KAFKA_HOME_DIR    jars and data            (build/kafka in the source tree)
#   KAFKA_STATE_DIR   data, log and pid        ($KAFKA_HOME_DIR/state)
#   KAFKA_VERSION     of the broker            (what pom.xml says)
#   KAFKA_PORT        the controller has the port above it   (19092)
#   KAFKA_HEAP        (256m)
#   KAFKA_CONFIG      a file of properties; they go over ours
#   KAFKA_USER        NAME:PASSWORD of a SCRAM-SHA-256 user who is there from the first start
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
home=${KAFKA_HOME_DIR:-$here/../../build/kafka}
mkdir -p "$home"
home=$(cd "$home" && pwd)
state=${KAFKA_STATE_DIR:-$home/state}
port=${KAFKA_PORT:-19092}
version=${KAFKA_VERSION:-$(sed -n 's|.*<kafka.version>\(.*\)</kafka.version>.*|\1|p' "$here/pom.xml")}
jars=$home/jars-$version
bootstrap=127.0.0.1:$port

say() { printf 'broker: %s\n' "$*" >&2; }

jvm=(-XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:-UsePerfData -Xshare:auto
    -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -Dorg.slf4j.simpleLogger.showDateTime=true)

fetch() {
    # The stamp names the pom: another version in it fetches again.
    local stamp; stamp=$(cksum <"$here/pom.xml")
    [ "$(cat "$jars/complete" 2>/dev/null)" = "$stamp" ] && return 0
    say "fetching Kafka's jars into $jars"
    rm -rf "$jars"
    mvn -B -q -f "$here/pom.xml" -Dkafka.jars="$jars" -Dkafka.version="$version" dependency:copy-dependencies >&2
    printf '%s\n' "$stamp" >"$jars/complete"
}

# The same literal list each time: the class archive below is only valid for one.
class_path() {
    local list=("$jars"/*.jar)
    (IFS=:; printf '%s' "${list[*]}")
}

# Its pid, if the process of that pid is still our broker.
running() {
    local pid
    [ -s "$state/pid" ] || return 1
    pid=$(cat "$state/pid")
    [ -r "/proc/$pid/cmdline" ] || return 1
    tr '\0' ' ' <"/proc/$pid/cmdline" | grep -qF "kafka.Kafka $state/server.properties" || return 1
    printf '%s\n' "$pid"
}

configure() {
    mkdir -p "$state"
    cat >"$state/server.properties" <<CONFIG
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$((port + 1))
listeners=PLAINTEXT://$bootstrap,CONTROLLER://127.0.0.1:$((port + 1))
advertised.listeners=PLAINTEXT://$bootstrap
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs=$state/data
auto.create.topics.enable=false
# The recorded streams are years old, and retention goes by their time stamps.
log.retention.ms=-1
log.message.timestamp.before.max.ms=9223372036854775807
# One replica of everything, few internal partitions: a quick start.
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
# A broker that was killed is let in again when its old session ends: 9 s by default.
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
log.cleaner.dedupe.buffer.size=4194304
log.retention.check.interval.ms=1000
log.segment.delete.delay.ms=1000
num.network.threads=2
num.io.threads=2
background.threads=2
CONFIG
    # The last one of two properties counts.
    if [ -n "${KAFKA_CONFIG:-}" ]; then cat "$KAFKA_CONFIG" >>"$state/server.properties"; fi
}

wait_until_it_answers() {
    local pid=$1 i
    for ((i = 0; i < 1200; i++)); do
        if ! kill -0 "$pid" 2>/dev/null; then
            say "the broker ended; the last lines of $state/broker.log:"
            tail -20 "$state/broker.log" >&2
            return 1
        fi
        if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null &&
            kcat -b "$bootstrap" -L -m 2 >/dev/null 2>&1; then
            return 0
        fi
        sleep 0.05
    done
    say "no answer on $bootstrap in a minute; see $state/broker.log"
    return 1
}

start() {
    local archive=$home/classes-$version.jsa share user=()
    fetch
    if running >/dev/null; then
        say "already running"
        return 0
    fi
    configure
    # A class archive halves the time to start. The first broker that ends by itself writes it.
    if [ -s "$archive" ]; then share=-XX:SharedArchiveFile=$archive
    else share=-XX:ArchiveClassesAtExit=$archive; fi
    if [ ! -s "$state/data/meta.properties" ]; then
        if [ -n "${KAFKA_USER:-}" ]; then
            user=(--add-scram "SCRAM-SHA-256=[name=${KAFKA_USER%%:*},password=${KAFKA_USER#*:}]")
        fi
        java -Xmx64m "${jvm[@]}" -cp "$(class_path)" kafka.tools.StorageTool format \
            -t dHdvdG93ZXItdGVzdHMtMQ -c "$state/server.properties" "${user[@]}" >"$state/format.log" 2>&1 ||
            { cat "$state/format.log" >&2; return 1; }
    fi
    setsid java -Xms64m -Xmx"${KAFKA_HEAP:-256m}" "${jvm[@]}" "$share" -cp "$(class_path)" \
        kafka.Kafka "$state/server.properties" >>"$state/broker.log" 2>&1 </dev/null &
    printf '%s\n' $! >"$state/pid"
    wait_until_it_answers $!
    say "answers on $bootstrap, pid $!"
}

signal() { # SIGNAL
    local pid
    pid=$(running)
    kill -"$1" "$pid"
}

end() { # SIGNAL
    local pid i
    if pid=$(running); then
        kill -"$1" "$pid"
        kill -CONT "$pid" 2>/dev/null || true # one that is frozen hears nothing
        for ((i = 0; i < 300; i++)); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL "$pid" 2>/dev/null || true
    fi
    rm -f "$state/pid"
}

topics() { # create|grow|delete|trim|transact ARGUMENTS
    local tool=$home/topics
    if [ ! -x "$tool" ] || [ "$here/topics.c" -nt "$tool" ]; then
        "${CC:-cc}" -std=c17 -D_GNU_SOURCE -O1 -o "$tool.$$" "$here/topics.c" -lrdkafka
        mv "$tool.$$" "$tool"
    fi
    exec "$tool" "$bootstrap" "$@"
}

scram() { # NAME:PASSWORD
    java -Xmx64m "${jvm[@]}" -cp "$(class_path)" kafka.admin.ConfigCommand --bootstrap-server "$bootstrap" --alter \
        --add-config "SCRAM-SHA-256=[password=${1#*:}]" --entity-type users --entity-name "${1%%:*}" >&2
}

case ${1:-} in
    fetch) fetch ;;
    start) start ;;
    topic) shift; topics create "$@" ;;
    grow | delete | trim | transact) topics "$@" ;;
    freeze) signal STOP ;;
    thaw) signal CONT ;;
    stop) end TERM ;;
    kill) end KILL ;;
    wipe) end TERM; rm -rf "$state" ;;
    scram) scram "$2" ;;
    env) echo "KAFKA_BOOTSTRAP=$bootstrap" ;;
    *) sed -n '4,31s/^# \{0,1\}//p' "$0" >&2; exit 64 ;;
esac
