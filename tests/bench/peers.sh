#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# How fast the trainer is beside PyTorch and TensorFlow Recommenders, same model, same stream, same
# batches, one thread each: see peers.py.
#
#     tests/bench/peers.sh [--install] [--data DIR] [--json] [--full] [--rounds N] [--batch B]... [--mask]
#
# It takes a minute of CPU time over the first part of the stream; --full takes all of it, and tries
# more.
#
# --install, or TWOTOWER_PEERS=yes in the environment, installs from PyPI in build/peers what is not
# there yet: 2 GB are downloaded and 7 GB written, once. Without it only what is there is measured, for
# `tests/run bench` runs every script here. A peer that can't be installed is named, and the other
# measured.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venvs=$(cd "$here/../.." && pwd)/build/peers

install=${TWOTOWER_PEERS:-}
arguments=()
for argument in "$@"; do
    if [ "$argument" = --install ]; then install=yes; else arguments+=("$argument"); fi
done
if [ -z "$install" ] && ! [ -e "$venvs/torch/made-of.txt" ]; then
    echo "skip peers: --install or TWOTOWER_PEERS=yes downloads PyTorch and TensorFlow Recommenders (2 GB)"
    exit
fi

# peer_make NAME: an environment with tests/bench/peers_NAME.txt, made anew when that has changed.
peer_make()
{
    local venv=$venvs/$1 wanted=$here/peers_$1.txt
    if cmp -s "$wanted" "$venv/made-of.txt"; then return; fi
    if [ -z "$install" ]; then return 1; fi
    echo "installing $(grep -v '^#' "$wanted" | paste -sd ' ') in build/peers/$1" >&2
    rm -rf "$venv"
    if ! { python3 -m venv "$venv" && "$venv/bin/pip" install --disable-pip-version-check --no-cache-dir \
        --requirement "$wanted"; } >"$venvs/$1.log" 2>&1; then
        echo "peers.sh: $1 can't be installed and is left out: $(grep -i error "$venvs/$1.log" | tail -n 1 || true)" \
            "(all of it: build/peers/$1.log)" >&2
        rm -rf "$venv"
        return 1
    fi
    cp "$wanted" "$venv/made-of.txt"
}

mkdir -p "$venvs"
peers=()
for name in torch tfrs; do
    if peer_make "$name"; then peers+=(--peer "$name=$venvs/$name/bin/python"); fi
done
if [ ${#peers[@]} -eq 0 ]; then
    echo "peers.sh: there is nothing to compare with" >&2
    exit 1
fi

. "$here/one_thread.bash"
exec python3 "$here/peers.py" "${peers[@]}" "${arguments[@]}"
