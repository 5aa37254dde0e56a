#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Exact search beside faiss's: the best 100 of a million items, one thread; topk.py says how.
#
#     tests/bench/topk.sh [--install] [--json] [--rounds N]
#
# --install, or TWOTOWER_PEERS=yes in the environment, installs faiss-cpu from PyPI in build/peers/topk
# (130 MB) where it isn't yet. Takes about 40 s and 2 GB of memory.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=$root/build/peers/topk
library=$root/build/release/libtwotower_reader.so

install=${TWOTOWER_PEERS:-}
arguments=()
for argument in "$@"; do
    if [ "$argument" = --install ]; then install=yes; else arguments+=("$argument"); fi
done
if [ ! -e "$library" ]; then
    echo "skip topk: build/release/libtwotower_reader.so is not built"
    exit
fi
if ! cmp -s "$here/topk.txt" "$venv/made-of.txt"; then
    if [ -z "$install" ]; then
        echo "skip topk: faiss is not here; --install or TWOTOWER_PEERS=yes downloads it (130 MB)"
        exit
    fi
    mkdir -p "$root/build/peers"
    rm -rf "$venv"
    if ! { python3 -m venv "$venv" && "$venv/bin/pip" install --disable-pip-version-check --no-cache-dir \
        --requirement "$here/topk.txt"; } >"$root/build/peers/topk.log" 2>&1; then
        echo "skip topk: faiss can't be installed (all of it: build/peers/topk.log)"
        rm -rf "$venv"
        exit
    fi
    cp "$here/topk.txt" "$venv/made-of.txt"
fi

# Nothing that somebody set for another program may slow faiss down.
while IFS='=' read -r name _; do
    case $name in
    FAISS_* | OPENBLAS_* | MKL_* | OMP_* | KMP_* | GOMP_* | GLIBC_TUNABLES | MALLOC_* | LD_PRELOAD) unset "$name" ;;
    esac
done < <(env)
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1

exec "$venv/bin/python" "$here/topk.py" --library "$library" "${arguments[@]}"
