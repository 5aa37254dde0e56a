#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# What every ingredient and objective gives, on the recorded streams: see objectives.py.
#
#     tests/bench/objectives.sh [--data DIR] [--json] [ablation|debias|follow|tail]...
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
exec python3 "$here/objectives.py" "$@"
