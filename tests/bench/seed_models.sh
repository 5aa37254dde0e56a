#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# How fast the trainer is beside the models of gauravchak/two_tower_models, in PyTorch: see
# seed_models.py. Takes 75 s of CPU time.
#
#     tests/bench/seed_models.sh [--json] [--rounds N] [--batch B]
#
# It needs the PyTorch that tests/bench/peers.sh --install puts in build/peers.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=$(cd "$here/../.." && pwd)/build/peers/torch/bin/python

if ! [ -x "$python" ]; then
    echo "skip seed_models: no PyTorch; tests/bench/peers.sh --install downloads it (2 GB)"
    exit
fi
. "$here/one_thread.bash"

exec python3 "$here/seed_models.py" --torch "$python" "$@"
