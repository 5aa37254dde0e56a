#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# From a real broker: to examples beside librdkafka's consumer alone, and to a model beside learning
# alone; see bench_ingest.c. The stream is ml1m in four partitions of each topic. About a minute.
#
#     tests/bench/broker.sh [--json]
#
# Needs what tests/kafka/broker.sh needs, and $TWOTOWER_DATA/ml1m.
set -euo pipefail
cd "$(dirname "$0")/../.."

program=build/release/tests/bench_ingest
stream=${TWOTOWER_DATA:-../shared/data}/ml1m
skip() { echo "skip broker: $*"; exit 0; }
for tool in java mvn kcat zstd; do command -v "$tool" >/dev/null || skip "$tool is not installed"; done
[ -x "$program" ] || skip "$program is not built"
[ -r "$stream/engagements.jsonl.zst" ] || skip "no recorded stream in $stream: set TWOTOWER_DATA"

export KAFKA_HOME_DIR=${KAFKA_HOME_DIR:-$PWD/build/kafka} KAFKA_PORT=${KAFKA_PORT:-$((20000 + $$ % 6000 * 2))}
export KAFKA_STATE_DIR=$KAFKA_HOME_DIR/bench-$$ KAFKA_BOOTSTRAP=127.0.0.1:$KAFKA_PORT
export KAFKA_BROKER=tests/kafka/broker.sh TWOTOWER=build/release/twotower TEST_DIR=$KAFKA_STATE_DIR
trap '"$KAFKA_BROKER" wipe' EXIT
trap 'exit 130' INT TERM
"$KAFKA_BROKER" fetch >&2 || skip "Kafka's jars could not be fetched"
"$KAFKA_BROKER" start 2>/dev/null || skip "the broker does not start"

. tests/kafka/support.sh
topics=(impressions engagements)
topics_make bench 4 >&2
for topic in "${topics[@]}"; do lines "$stream" "$topic" | produce "$topic" "bench-$topic" 2>/dev/null; done
"$program" "$@" --kafka "$KAFKA_BOOTSTRAP" bench
