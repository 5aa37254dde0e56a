#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The tests that need a Kafka broker: starts one, runs tests/kafka/test_*.c and tests/kafka/test_*.sh
# with it, stops it. One line for each test, "ok NAME", "FAIL NAME" or "skip NAME why", and a count
# at the end; what a failed test printed stands before its line. Exits with 1 if one failed.
#
#   run.sh [NAME...]      all of them, or those whose file is test_NAME.c or test_NAME.sh
#
# The tests find in their environment, and the first two can be given:
#
#   BUILD_DIR         where CMake left tests/kafka_*    (build/dev, else build/release)
#   TWOTOWER          the program                       (build/release/twotower)
#   KAFKA_BOOTSTRAP   HOST:PORT of the broker
#   KAFKA_BROKER      broker.sh: topic, grow, delete, kill, start, stop
#   KAFKA_STATE_DIR   the broker's files
#   TEST_DIR          an empty directory for each shell test, removed after it
#
# A shell test exits with 0, or with 77 to be skipped for the reason in its last line. It makes
# topics of its own, and leaves the broker running.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tree=$(cd "$here/../.." && pwd)
passed=0 failed=0 skipped=0

pass() { echo "ok $1"; passed=$((passed + 1)); }
fail() { echo "FAIL $1"; failed=$((failed + 1)); }
skip() { echo "skip $1 $2"; skipped=$((skipped + 1)); }

finish() {
    echo "$passed passed, $failed failed, $skipped skipped"
    [ "$failed" = 0 ]
    exit
}

if [ -z "${BUILD_DIR:-}" ]; then
    BUILD_DIR=$tree/build/dev
    [ -d "$BUILD_DIR/tests" ] || BUILD_DIR=$tree/build/release
fi
export BUILD_DIR TWOTOWER=${TWOTOWER:-$tree/build/release/twotower}
export KAFKA_HOME_DIR=${KAFKA_HOME_DIR:-$tree/build/kafka} KAFKA_BROKER=$here/broker.sh

for tool in java mvn kcat; do
    if ! command -v "$tool" >/dev/null; then
        skip kafka "$tool is not installed"
        finish
    fi
done
if ! "$KAFKA_BROKER" fetch; then
    skip kafka "Kafka's jars could not be fetched"
    finish
fi

# A port and data of our own: two runs on one machine do not meet. Below the ports that the system
# hands out by itself.
export KAFKA_PORT=${KAFKA_PORT:-$((20000 + $$ % 6000 * 2))}
export KAFKA_STATE_DIR=$KAFKA_HOME_DIR/run-$$ KAFKA_BOOTSTRAP=127.0.0.1:$KAFKA_PORT
export TEST_DIR=$KAFKA_STATE_DIR/test
trap '"$KAFKA_BROKER" wipe' EXIT
trap 'exit 130' INT TERM
if ! "$KAFKA_BROKER" start; then
    fail broker
    finish
fi

wanted() { # FILE NAMES...
    local name=${1##*/test_} word
    shift
    [ $# = 0 ] && return 0
    for word in "$@"; do [ "${name%.*}" = "$word" ] && return 0; done
    return 1
}

# cmocka's TAP lines, "ok 1 - name" and "not ok 1 - name", become ours. Figures ("# ...") stay.
run_program() { # FILE
    local name=${1##*/} program output status=0 counted=0 line
    name=${name%.c}
    program=$BUILD_DIR/tests/kafka_$name
    if [ ! -x "$program" ]; then
        skip "$name" "$program is not built"
        return
    fi
    output=$KAFKA_STATE_DIR/$name.log
    CMOCKA_MESSAGE_OUTPUT=TAP timeout 600 "$program" >"$output" 2>&1 || status=$?
    while IFS= read -r line; do
        case $line in
            "ok "*) pass "$name/${line##* }"; counted=1 ;;
            "not ok "*) fail "$name/${line##* }"; counted=1 ;;
            *"# SKIP"*) skip "$name" "${line#*# SKIP}" ;;
            *"per record"*) echo "$line" ;;
        esac
    done <"$output"
    # Neither a crash nor a leak that a sanitizer found at exit is in those lines.
    if [ "$status" != 0 ]; then
        sed 's/^/    /' "$output"
        grep -q '^not ok' "$output" || fail "$name"
    elif [ "$counted" = 0 ]; then
        fail "$name"
    fi
}

run_script() { # FILE
    local name=${1##*/} output status=0
    name=${name%.sh}
    output=$KAFKA_STATE_DIR/$name.log
    mkdir -p "$TEST_DIR"
    timeout 1800 "$1" >"$output" 2>&1 || status=$?
    if [ "$status" != 0 ] && [ "$status" != 77 ]; then tail -n 3 "$TEST_DIR"/*/log >>"$output" 2>/dev/null; fi
    rm -rf "$TEST_DIR"
    case $status in
        0) grep '^# ' "$output"; pass "$name" ;;
        77) skip "$name" "$(tail -1 "$output")" ;;
        *) sed 's/^/    /' "$output"; fail "$name" ;;
    esac
}

for file in "$here"/test_*.c; do
    wanted "$file" "$@" && run_program "$file"
done
for file in "$here"/test_*.sh; do
    [ -e "$file" ] && wanted "$file" "$@" && run_script "$file"
done
finish
