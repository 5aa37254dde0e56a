# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# What the end-to-end scripts share. To be sourced; $dir is where they work, $TWOTOWER the program.
#
# Every run has a directory $dir/NAME: state/, snapshots/, and log, which is what it said on stderr,
# all attempts one after the other.

# Nothing here needs a port, and two scripts may run beside each other.
quiet=(-o http.listen= -o eval.sampling=0)

# What the program is started by: env, prlimit, setpriv; nothing, as a rule.
under=()

ok() { echo "ok $1"; }
bad() { echo "FAIL $1: $2"; }
now_ms() { date +%s%3N; }

# check SENTENCE WHY COMMAND...: one verdict, by the command's status.
check()
{
    local sentence=$1 why=$2
    shift 2
    if "$@"; then ok "$sentence"; else bad "$sentence" "$why"; fi
}

# same SENTENCE EXPECTED GOT: one verdict; two empty strings are not the same.
same()
{
    if [ -n "$2" ] && [ "$2" = "$3" ]; then ok "$1"; else bad "$1" "expected '$2', got '$3'"; fi
}

# twotower NAME COMMAND ARGUMENT...: with the directories of the run.
twotower()
{
    local run=$dir/$1 command=$2
    shift 2
    mkdir -p "$run"
    "${under[@]}" "$TWOTOWER" "$command" "${quiet[@]}" -o "state.dir=$run/state" -o "snapshot.dir=$run/snapshots" \
        "$@" 2>>"$run/log"
}

# until_end NAME ARGUMENT...: reads to the end; says why when it did not come to it.
until_end()
{
    local name=$1 status=0
    shift
    twotower "$name" run --until-end "$@" || status=$?
    [ "$status" -eq 0 ] || { echo "$name ended with status $status:"; tail -n 5 "$dir/$name/log"; }
    return "$status"
}

# digest NAME: of its newest snapshot.
digest()
{
    "$TWOTOWER" inspect --digest "$dir/$1/snapshots" 2>>"$dir/$1/log"
}

# totals NAME: what the last attempt said when it had finished, without what depends on the clock.
totals()
{
    grep -oE 'finished +events=.*' "$dir/$1/log" | tail -n 1 |
        grep -oE '(events|examples|pending|rejected)=[0-9]+' | tr '\n' ' '
}

# state_sum NAME: one checksum over the state after the end: every counter, row, free list and
# optimiser sum. Not over the headers, in which the generation has its number, nor over the number of
# slices: how the stream was cut is nobody's business.
state_sum()
{
    local files=("$dir/$1"/state/final/*/*.safetensors)
    tail -q -c +4097 "${files[@]/*trainer.state.safetensors//dev/null}" | sha256sum | cut -d ' ' -f 1
}

# A seeded generator, the same on every machine: random FROM TO sets $drawn.
random_state=1
random()
{
    random_state=$(((random_state * 1103515245 + 12345) % 2147483648))
    drawn=$(($1 + random_state / 8 % ($2 - $1 + 1)))
}

# killed_often SEED TIMES FROM_MS TO_MS NAME ARGUMENT...: kill -9 TIMES times, each FROM_MS to TO_MS
# after the start, then to the end. Sets $kills to how many came before the end. The times are printed.
killed_often()
{
    local times=$2 from=$3 to=$4 name=$5 pid i list=""
    random_state=$1
    shift 5
    kills=0
    for ((i = 0; i < times; i++)); do
        random "$from" "$to"
        twotower_start "$name" run --until-end "$@"
        sleep "$((drawn / 1000)).$(printf %03d $((drawn % 1000)))"
        list+=" $drawn"
        if kill -KILL "$pid" 2>/dev/null; then :; fi
        if wait_for "$pid"; then break; fi
        kills=$((kills + 1))
    done
    echo "$name: killed $kills times, after ms:$list"
    until_end "$name" "$@"
}

# twotower_start NAME COMMAND ARGUMENT...: in the background, the process itself; sets $pid.
twotower_start()
{
    local run=$dir/$1 command=$2
    shift 2
    mkdir -p "$run"
    "${under[@]}" "$TWOTOWER" "$command" "${quiet[@]}" -o "state.dir=$run/state" -o "snapshot.dir=$run/snapshots" \
        "$@" 2>>"$run/log" &
    pid=$!
}

# wait_for PID: its status, without the shell's word about how it died.
wait_for()
{
    wait "$1" 2>/dev/null
}

# said NAME TEXT [SECONDS]: waits until the run has said it.
said()
{
    local i
    for ((i = 0; i < ${3:-10} * 20; i++)); do
        grep -qF -- "$2" "$dir/$1/log" 2>/dev/null && return 0
        sleep 0.05
    done
    return 1
}

# http PORT PATH: prints the status and the body.
http()
{
    python3 - "$1" "$2" <<'PYTHON'
import sys, urllib.error, urllib.request
try:
    with urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}{sys.argv[2]}", timeout=5) as r:
        print(r.status, r.read().decode())
except urllib.error.HTTPError as e:
    print(e.code, e.read().decode())
except OSError as e:
    print("-", e)
PYTHON
}

port_free()
{
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# faulty NAME VARIABLE=VALUE...: the next runs of this name have tests/support/faults.c between them and
# the disk; its header says which variables there are.
faulty()
{
    local name=$1
    shift
    mkdir -p "$dir/$name"
    under=(env "LD_PRELOAD=$FAULTS" "FAULT_ROOT=$dir/$name" "$@")
}
