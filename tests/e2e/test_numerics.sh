#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The bytes that are learned depend on stream, options and one arithmetic, which is named: every set
# of our kernels gives them, the portable BLAS core gives them on another CPU, nothing in the
# environment changes them unsaid, and a checkpoint of another arithmetic is refused.
set -uo pipefail
. tests/e2e/support.sh
dir=$E2E_DIR

# Products of several blocks: the inner size of some is that of a batch, and the Haswell core adds up
# fewer at a time. Most of what calls libm: attention, a ranker, objectives, the estimator.
stream=(-o source.type=builtin -o source.requests=2500 -o source.users=400 -o source.catalogue=300
    -o source.requests_per_second=50 -o source.seed=5 -o join.window=30s -o model.dim=16 -o model.batch=512
    -o model.attention=1 -o debias.estimator=pbm -o distill.weight=0.3 -o align.weight=0.2
    -o preference.weight=0.2 -o ranker.weight=0.2)
portable=(-o kernels.blas_core=portable)

# The variables that this test gives are the only ones.
unset OPENBLAS_CORETYPE OPENBLAS_NUM_THREADS GOTO_NUM_THREADS OMP_NUM_THREADS GLIBC_TUNABLES

# attempt NAME [VARIABLE=VALUE]... -- ARGUMENT...: reads to the end, in that environment.
attempt()
{
    local name=$1 variables=()
    shift
    while [ "$1" != -- ]; do
        variables+=("$1")
        shift
    done
    shift
    (
        [ ${#variables[@]} -eq 0 ] || export "${variables[@]}"
        twotower "$name" run --until-end "${stream[@]}" "$@"
    )
}

# learned NAME [VARIABLE=VALUE]... -- ARGUMENT...: the digest and the state after that.
learned()
{
    attempt "$@" || tail -n 5 "$dir/$1/log" >&2
    echo "$(digest "$1") $(state_sum "$1")"
}

# status_of NAME [VARIABLE=VALUE]... -- ARGUMENT...: the exit status of that.
status_of()
{
    local status=0
    attempt "$@" || status=$?
    echo "$status"
}

# says NAME TEXT: in its log.
says() { grep -qF -- "$2" "$dir/$1/log"; }

if ! grep -qw avx2 /proc/cpuinfo || ! grep -qw fma /proc/cpuinfo; then
    same "portable is refused where the CPU lacks AVX2" 78 "$(status_of bare -- "${portable[@]}")"
    echo "skip the portable core gives the same bytes everywhere: this CPU does not run it"
    exit
fi

# One arithmetic, many ways to get there.

expected=$(learned plain -- "${portable[@]}" -o kernels.set=plain)
check "the portable core runs when it is asked for" "$(head -n 1 "$dir/plain/log")" says plain "core=Haswell"
sets=$(grep -qw avx512bw /proc/cpuinfo && echo avx2 avx512 || echo avx2)
if grep -qw amx_bf16 /proc/cpuinfo && grep -qw avx512_bf16 /proc/cpuinfo; then sets+=" amx"; fi
for set in $sets; do
    same "kernels.set = $set learns what plain does" "$expected" \
        "$(learned "$set" -- "${portable[@]}" -o "kernels.set=$set")"
done
same "numbers of threads for BLAS change nothing" "$expected" \
    "$(learned threads OPENBLAS_NUM_THREADS=3 GOTO_NUM_THREADS=4 OMP_NUM_THREADS=5 OMP_ADAPTIVE=1 -- "${portable[@]}")"
same "BLAS is not told how to cut into blocks" "$expected" \
    "$(learned blocks OPENBLAS_BLOCK_FACTOR=50 -- "${portable[@]}")"
same "a core in the environment does not change the portable one" "$expected" \
    "$(learned overruled OPENBLAS_CORETYPE=Nehalem -- "${portable[@]}")"
check "and the log says that the portable one overruled it" "no warning" says overruled "OPENBLAS_CORETYPE overruled given=Nehalem core=Haswell"

same "the portable core may come from the environment" "$expected" \
    "$(learned chosen OPENBLAS_CORETYPE=Haswell --)"
check "and the log says where it comes from" "nothing" says chosen "BLAS core of OPENBLAS_CORETYPE"

# Factors of the softmax in bfloat16: their sums have one order, too.

rounded=$(learned rounded -- "${portable[@]}" -o model.precision=bf16 -o kernels.set=avx2)
check "bfloat16 learns, and something else" "$rounded" test "$rounded" != "$expected"
if [[ $sets = *amx ]]; then
    same "AMX learns in bfloat16 what AVX2 does" "$rounded" \
        "$(learned tiles -- "${portable[@]}" -o model.precision=bf16)"
    check "and it was AMX" "$(head -n 1 "$dir/tiles/log")" says tiles "kernels=amx"
fi

# The same without a choice, with a bad one and with an empty one.
default=$(learned default --)
same "a core that there is not changes nothing" "$default" "$(learned nonsense OPENBLAS_CORETYPE=Nonsense --)"
check "and the log says that there is none" "no warning" says nonsense "OPENBLAS_CORETYPE overruled given=Nonsense"
same "an empty choice of a core changes nothing" "$default" "$(learned empty OPENBLAS_CORETYPE= --)"

# Other CPUs, without AVX-512 and with other caches: Intel's, and AMD's, where OpenBLAS would take core
# Zen. The core and the one thread are given, so that the process need not start anew: what it executed
# then would run on the real CPU. Emulated, a run of 0.3 s takes some 10.

if command -v qemu-x86_64 >/dev/null; then
    real=$TWOTOWER
    for cpu in Haswell EPYC; do
        TWOTOWER=$dir/on.$cpu
        printf '#!/bin/sh\nexec qemu-x86_64 -cpu %s "%s" "$@"\n' "$cpu" "$real" >"$TWOTOWER"
        chmod +x "$TWOTOWER"
        begun=$SECONDS
        got=$(learned "$cpu" OPENBLAS_NUM_THREADS=1 OPENBLAS_CORETYPE=Haswell -- "${portable[@]}" -o snapshot.io=pwrite)
        echo "$cpu: $((SECONDS - begun)) s"
        TWOTOWER=$real
        same "an emulated $cpu learns the same bytes with the portable core" "$expected" "$got"
        check "and the $cpu has no AVX-512" "$(grep -F 'BLAS core' "$dir/$cpu/log")" says "$cpu" "core=Haswell kernels=avx2"
    done
    TWOTOWER=$dir/on.Haswell
    same "bfloat16 is refused where it would be slow, with EX_CONFIG" 78 \
        "$(status_of slow OPENBLAS_NUM_THREADS=1 OPENBLAS_CORETYPE=Haswell -- -o model.precision=bf16)"
    TWOTOWER=$real
    check "and the sentence says what is missing" "$(tail -n 1 "$dir/slow/log")" says slow 'model.precision = "bf16" needs a CPU with AMX'
else
    echo "skip a CPU without AVX-512 learns the same bytes: no qemu-x86_64 (package qemu-user)"
fi

# Checkpoints. Nehalem runs on every CPU and sums in an order of its own.

older=OPENBLAS_CORETYPE=Nehalem half=(-o source.requests=1200)

# numerics_of DIRECTORY: the cores in the newest manifest there.
numerics_of()
{
    python3 -c '
import json, os, sys
newest = max((d for d in os.listdir(sys.argv[1]) if d.isdigit()), key=int)
print(*(e["blas_core"] for e in json.load(open(os.path.join(sys.argv[1], newest, "manifest.json")))["numerics"]))' "$1"
}

same "a core of the operator's choice learns" 0 "$(status_of moved "$older" -- "${half[@]}")"
cp -r "$dir/moved" "$dir/tuned"
same "a checkpoint of another core is refused with EX_CONFIG" 78 "$(status_of moved -- "${portable[@]}")"
check "the refusal names both cores and both ways out" "$(tail -n 1 "$dir/moved/log")" \
    grep -qE 'learned with OpenBLAS [0-9.]+ core Nehalem.*this is OpenBLAS [0-9.]+ core Haswell.*OPENBLAS_CORETYPE=Nehalem.*kernels\.on_change = \\?"accept' "$dir/moved/log"
same "it goes on when that is accepted" 0 "$(status_of moved -- "${portable[@]}" -o kernels.on_change=accept)"
check "and the log says so" "$(tail -n 5 "$dir/moved/log")" says moved "other arithmetic than the checkpoint's"
same "the checkpoint tells of both cores" "Nehalem Haswell" "$(numerics_of "$dir/moved/state/checkpoints")"
same "the snapshot tells of both cores" "Nehalem Haswell" "$(numerics_of "$dir/moved/snapshots")"
check "and twotower inspect from which slice on" "$("$TWOTOWER" inspect "$dir/moved/snapshots" 2>&1 | head -n 20)" \
    grep -qE 'learned with .* core Nehalem and glibc .* from slice 1; .* core Haswell and glibc .* from slice [0-9]+' \
    <("$TWOTOWER" inspect "$dir/moved/snapshots")
same "then it restarts as ever" 0 "$(status_of moved -- "${portable[@]}")"

# exp, log and pow without FMA.
same "a checkpoint of another libm is refused with EX_CONFIG" 78 \
    "$(status_of tuned "$older" GLIBC_TUNABLES=glibc.cpu.hwcaps=-FMA,-AVX2 --)"
same "and taken by its own" 0 "$(status_of tuned "$older" --)"
