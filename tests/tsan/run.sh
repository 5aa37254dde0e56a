#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# A whole job under ThreadSanitizer: three threads, many cuts, snapshots beside training.
set -u
top=$(cd "$(dirname "$0")/../.." && pwd)
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
fixed=()
# The detector wants its shadow memory where address randomisation may put something else.
setarch -R true 2>/dev/null && fixed=(setarch -R)
# job SENTENCE ARGUMENT...
job()
{
    local sentence=$1
    shift
    rm -rf "${dir:?}"/*
    if "${fixed[@]}" "$top/build/tsan/twotower" run --until-end -o source.type=builtin \
        -o source.users=500 -o source.catalogue=300 -o checkpoint.interval=200ms \
        -o snapshot.interval=300ms -o http.listen= -o state.dir="$dir/state" \
        -o snapshot.dir="$dir/snapshots" "$@" >"$dir/log" 2>&1 &&
        ! grep -q "WARNING: ThreadSanitizer" "$dir/log"; then
        echo "ok $sentence"
    else
        echo "FAIL $sentence: its log follows"
        cat "$dir/log"
    fi
}

job "a job with cuts every 200 ms has no data race" -o source.requests=30000
job "nor has one with every objective on" -o source.requests=6000 -o source.requests_per_second=50 \
    -o join.window=30s -o tables.item_ttl=40s -o tables.user_ttl=50s -o model.dim=16 -o model.batch=128 \
    -o "value.tasks=click=1, like=-0.5, *=0.25" -o debias.estimator=pbm -o distill.weight=0.3 \
    -o align.weight=0.2 -o align.form=dpo -o align.trust=0.1 -o align.publish=10s \
    -o preference.weight=0.2 -o ranker.weight=0.2 -o ranker.distill=0.1 -o ranker.feedback=es_dfm \
    -o ranker.feedback_delay=5s -o model.attention=1 -o model.attention_actions=true \
    -o model.memory=256 -o model.memory_after=10 -o model.replay=32 -o model.replay_window=1000 \
    -o eval.sampling=0.05
