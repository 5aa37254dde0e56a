#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# A disk that is full, broken, read-only or not ours, at each kind of call (tests/support/faults.c) and
# for real; limits of the process; and two processes on one state. The last good checkpoint and
# snapshot stay, learning goes on or stops with a sentence, it can be seen from outside, it ends by
# itself when the fault does, and what is learned is what it would have been.
set -uo pipefail
. tests/e2e/support.sh
dir=$(realpath "$E2E_DIR")

stream=(-o source.type=builtin -o source.requests=4000 -o source.users=500 -o source.catalogue=240 -o source.seed=7
    -o model.dim=16 -o slice.events=256)
until_end reference "${stream[@]}" || exit 1
expected="$(digest reference) $(totals reference)$(state_sum reference)"

# recovers NAME SENTENCE [ARGUMENT...]: started again without the fault, it comes to the same end, and
# has no sync repeated and nothing left behind.
recovers()
{
    local name=$1 sentence=$2 left
    shift 2
    under=()
    until_end "$name" "${stream[@]}" "$@"
    left=$(find "$dir/$name" -name '.tmp-*' | head -n 1)$(grep -sh '^repeated' "$dir/$name.trace" | head -n 1)
    same "$sentence" "$expected " "$(digest "$name") $(totals "$name")$(state_sum "$name") $left"
}

# ---- While it runs: what is asked for is one running process, a fault being there as long as a file is.

# got PATH: of its HTTP server, the status line and the body.
got()
{
    exec 3<>"/dev/tcp/127.0.0.1/$port" && printf 'GET %s HTTP/1.0\r\n\r\n' "$1" >&3 && cat <&3
    exec 3>&-
}
metric() { got /metrics | awk -v name="twotower_$1" '$1 == name || index($1, name "{") == 1 { sum += $2 } END { printf "%d", sum }'; }

# rises NAME OF [BY]: waits until the metric has become larger than OF.
rises()
{
    local i
    for ((i = 0; i < 1200; i++)); do
        now=$(metric "$1")
        [ "$now" -gt $(($2 + ${3:-0})) ] && return 0
        sleep 0.05
    done
    return 1
}

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
endless=(-o source.type=builtin -o source.users=500 -o source.catalogue=240 -o model.dim=16 -o snapshot.io=pwrite
    -o snapshot.keep=2 -o checkpoint.interval=100ms -o snapshot.interval=100ms -o "http.listen=127.0.0.1:$port")

# WHAT|POINT|ERROR: of checkpoints and of snapshots.
# The writer is the same for both, so of snapshots there are fewer.
faults=()
for what in checkpoint snapshot; do
    faults+=("$what|make $what-new|ENOSPC" "$what|allocate $what-file|ENOSPC" "$what|write $what-file|EIO"
        "$what|sync $what-file|EIO" "$what|sync $what-new|EIO" "$what|rename $what|EACCES" "$what|sync $what-root|EIO"
        "$what|write $what-LATEST|ENOSPC" "$what|* $what*|EROFS")
done
faults+=("checkpoint|create checkpoint-file|EROFS" "checkpoint|write checkpoint-file|ENOSPC" "checkpoint|cut checkpoint-file|EIO"
    "checkpoint|write checkpoint-manifest|ENOSPC" "checkpoint|sync checkpoint-manifest|EIO"
    "checkpoint|rename checkpoint-manifest|EIO" "checkpoint|sync checkpoint-LATEST|EIO"
    "checkpoint|rename checkpoint-LATEST|EROFS" "checkpoint|write checkpoint-file|SHORT" "snapshot|write snapshot-file|SHORT")
rules=""
for i in "${!faults[@]}"; do
    IFS='|' read -r what point error <<<"${faults[i]}"
    rules+="$point:$error:while=$dir/fault$i;"
done
errors_text() { python3 -c 'import errno, os, sys; print(os.strerror(getattr(errno, sys.argv[1])))' "$1"; }
declare -A texts
for error in ENOSPC EIO EROFS EACCES EFBIG EMFILE; do texts[$error]=$(errors_text $error); done

faulty live "FAULT_FAIL=$rules" "FAULT_TRACE=$dir/live.trace"
twotower_start live run "${endless[@]}"
live=$pid
under=()
check "without a fault it publishes" "not in 20 s" said live "snapshot published" 20

for i in "${!faults[@]}"; do
    IFS='|' read -r what point error <<<"${faults[i]}"
    root=$dir/live/state/checkpoints
    [ "$what" = checkpoint ] || root=$dir/live/snapshots
    done=$(metric "${what}s_total") failed=$(metric "${what}_failures_total") events=$(metric records_total) lines=$(wc -l <"$dir/live/log")
    wrong=""
    : >"$dir/fault$i"
    if [ "$error" = SHORT ]; then
        rises "${what}s_total" "$done" 2 || wrong="short writes stop it"
    else
        # Where it is visible already when something fails, more of them, to see that they do not pile up.
        if [[ $point =~ LATEST|root ]]; then times=4; else times=1; fi
        rises "${what}_failures_total" "$failed" "$times" || wrong="no failure is counted"
        n=$(find "$root" -mindepth 1 -maxdepth 1 -type d ! -name '.*' | wc -l)
        [ "$n" -le 4 ] || wrong+="; $n generations are there"
        for ((k = 0; k < 100; k++)); do # it is counted before it is said
            tail -n "+$lines" "$dir/live/log" | grep -q "$what failed.*$root/.*${texts[$error]}" && break
            sleep 0.05
        done
        [ "$k" -lt 100 ] || wrong+="; it does not say where and why"
        rises records_total "$events" || wrong+="; learning stands still"
        "$TWOTOWER" verify "$root/$(cut -d ' ' -f 1 "$root/LATEST")" >"$dir/verify" 2>&1 ||
            wrong+="; what LATEST names cannot be used: $(tail -n 1 "$dir/verify")"
    fi
    rm "$dir/fault$i"
    done=$(metric "${what}s_total")
    rises "${what}s_total" "$done" 1 || wrong+="; it does not go on afterwards"
    # What is being written may be there for a moment; what was before the last success may not.
    sleep 0.1
    for leftover in "$root"/.tmp-*; do
        [ ! -e "$leftover" ] || [ "$leftover" -nt "$root/LATEST" ] || [ "${leftover##*/}" = .tmp-LATEST ] || wrong+="; left behind: $leftover"
    done
    if [ -z "$wrong" ]; then ok "$point: $error: seen, survived, over"; else bad "$point: $error: seen, survived, over" "${wrong#; }"; fi
done
same "no sync is repeated on a descriptor whose sync has failed" "0 repeated" "$(grep -c '^repeated' "$dir/live.trace") repeated"
same "/readyz is well afterwards" 200 "$(got /readyz | head -n 1 | cut -d ' ' -f 2)"
kill -TERM "$live"
status=0
wait_for "$live" || status=$?
same "and it ends in order" 0 "$status"
check "nothing is left behind" "$(find "$dir/live" -name '.tmp-*')" [ -z "$(find "$dir/live" -name '.tmp-*')" ]
rm -rf "${dir:?}/live"

# Faults that last.

: >"$dir/lasting"
faulty aged "FAULT_FAIL=sync checkpoint-file:EIO:while=$dir/lasting" "FAULT_TRACE=$dir/aged.trace"
begun=$(now_ms)
twotower_start aged run "${endless[@]}" -o checkpoint.max_age=2s
check "a checkpoint that fails is told" "not in 20 s" said aged "checkpoint failed" 20
for ((i = 0; i < 40; i++)); do
    ready=$(got /readyz 2>/dev/null | head -n 1 | cut -d ' ' -f 2)
    [ "$ready" = 503 ] && break
    sleep 0.05
done
same "/readyz says 503 when checkpoints are stale" 503 "$ready"
status=0
wait_for "$pid" || status=$?
took=$(($(now_ms) - begun))
same "without a checkpoint for longer than checkpoint.max_age it ends with 74" 74 "$status"
check "and says so" "$(tail -n 1 "$dir/aged/log")" \
    grep -q "no checkpoint for longer than checkpoint.max_age: $dir/aged/state/checkpoints/.*fsync failed: ${texts[EIO]}" <(tail -n 1 "$dir/aged/log")
check "not before" "after $took ms" [ "$took" -ge 2000 ]
rm -f "$dir/lasting"
rm -rf "${dir:?}/aged"

# ---- What must not go on: the slice log and the dead letters.

# stops_with STATUS NAME FAULT TEXT ARGUMENT...: ends with the status and the text, and recovers.
stops_with()
{
    local wanted=$1 name=$2 fault=$3 text=$4 status=0 said
    shift 4
    faulty "$name" "FAULT_FAIL=$fault" "FAULT_TRACE=$dir/$name.trace"
    twotower "$name" run --until-end -o snapshot.io=pwrite "${stream[@]}" "$@" || status=$?
    under=()
    said=$(tail -n 1 "$dir/$name/log")
    if [ "$status" = "$wanted" ] && grep -qE -- "$text" <<<"$said"; then
        recovers "$name" "$fault: ends with $wanted and its sentence, and is what it would be after a restart" "$@"
    else
        bad "$fault: ends with $wanted" "status $status: $said"
    fi
    rm -rf "${dir:?}/$name" "$dir/$name.trace"
}
often=(-o checkpoint.interval=100ms -o snapshot.interval=100ms)
log="/state: slice log: .*"
stops_with 74 slices1 "create slices:ENOSPC:1" "/state/slices-1.log: ${texts[ENOSPC]}" "${often[@]}"
stops_with 74 slices2 "write slices:ENOSPC:20-999999" "$log${texts[ENOSPC]}" "${often[@]}"
stops_with 74 slices3 "write slices:SHORT:20;write slices:ENOSPC:21-999999" "$log${texts[ENOSPC]}" "${often[@]}"
stops_with 74 slices4 "write slices:EIO:50" "$log${texts[EIO]}"
stops_with 77 slices5 "write slices:EROFS:50" "$log${texts[EROFS]}"
stops_with 74 slices6 "sync slices:EIO:1" "$log${texts[EIO]}" "${often[@]}"
stops_with 74 slices7 "sync slices:EIO:2" "$log${texts[EIO]}" "${often[@]}"
stops_with 74 owner1 "write owner:ENOSPC:1" "/state/owner: ${texts[ENOSPC]}"
stops_with 77 owner2 "create owner:EACCES:1" "/state/owner: ${texts[EACCES]}"
stops_with 74 final1 "write final-file:ENOSPC:20" "/state/final/.*${texts[ENOSPC]}"
stops_with 74 final2 "sync final-root:EIO:1" "/state/final/.*${texts[EIO]}"
stops_with 74 last1 "allocate checkpoint-file:ENOSPC:1-999999" "/state/checkpoints/.*${texts[ENOSPC]}"

mkdir "$dir/stream"
python3 tests/e2e/stream_make.py "$dir/stream" 3 4000
stream=(-o source.type=file -o "source.path=$dir/stream" -o model.dim=16 -o slice.events=256 -o dead_letter.max_bytes=16KiB)
until_end letters "${stream[@]}" || exit 1
expected="$(digest letters) $(totals letters)$(state_sum letters)"
letters=/state/dead-letters.jsonl
cat "$dir/letters$letters.1" "$dir/letters$letters" >"$dir/letters.all"
stops_with 74 letters1 "write dead-letters:ENOSPC:20-999999" "$letters: write: ${texts[ENOSPC]}" "${often[@]}"
stops_with 74 letters2 "write dead-letters:SHORT:20;write dead-letters:EIO:21" "$letters: write: ${texts[EIO]}"
stops_with 74 letters3 "sync dead-letters:EIO:5" "$letters: sync: ${texts[EIO]}" "${often[@]}"
stops_with 77 letters4 "create dead-letters:EACCES:1" "$letters: open: ${texts[EACCES]}"
stops_with 74 letters5 "rename dead-letters.1:EIO:1" "$letters.1: rename: ${texts[EIO]}"
faulty letters6 "FAULT_FAIL=write dead-letters:SHORT:30;write dead-letters:ENOSPC:31-999999"
twotower letters6 run --until-end "${stream[@]}" "${often[@]}"
under=()
until_end letters6 "${stream[@]}"
check "each rejected record is kept once, whatever failed" "other lines" \
    cmp "$dir/letters.all" <(cat "$dir/letters6$letters.1" "$dir/letters6$letters")
rm -rf "${dir:?}"/letters*

# ---- For real.

stream=(-o source.type=builtin -o source.requests=4000 -o source.users=500 -o source.catalogue=240 -o source.seed=7
    -o model.dim=16 -o slice.events=256)
expected="$(digest reference) $(totals reference)$(state_sum reference)"

mkdir "$dir/full"
if [ "$(id -u)" -eq 0 ] && mount -t tmpfs -o size=400k none "$dir/full" 2>/dev/null; then
    trap 'umount "$dir/full" 2>/dev/null' EXIT
    mkdir "$dir/full/state"
    head -c 1M /dev/zero >"$dir/full/filler" 2>/dev/null
    status=0
    said=$("$TWOTOWER" run --until-end "${quiet[@]}" "${stream[@]}" -o "state.dir=$dir/full/state" \
        -o "snapshot.dir=$dir/full/snapshots" 2>&1) || status=$?
    same "a state directory on a full disk at the start: ends with 74" 74 "$status"
    check "and says so" "$(tail -n 1 <<<"$said")" grep -q "/state/.*${texts[ENOSPC]}" <(tail -n 1 <<<"$said")
    umount "$dir/full" && mount -t tmpfs -o size=400k none "$dir/full"
    status=0
    twotower full run --until-end "${stream[@]}" "${often[@]}" || status=$?
    same "a disk too small for the last checkpoint: ends with 74" 74 "$status"
    check "and says so" "$(tail -n 1 "$dir/full/log")" grep -qE "MB are needed|${texts[ENOSPC]}" <(tail -n 1 "$dir/full/log")
    mount -o remount,size=100m "$dir/full"
    recovers full "with room again, it comes to the same end"
    umount "$dir/full"
    trap - EXIT
else
    echo "skip a disk that is full, for real: no tmpfs can be mounted here"
fi

under=(prlimit --memlock=0)
recovers memlock "with no memory to lock, it comes to the same end"
for size in 3000 20000 60000; do # its log is a file, too
    under=(prlimit "--fsize=$size")
    status=0
    twotower "fsize$size" run --until-end "${stream[@]}" "${often[@]}" || status=$?
    same "a limit of $size bytes to a file: ends with 74" 74 "$status"
    check "and says so" "$(tail -n 1 "$dir/fsize$size/log")" grep -q "${texts[EFBIG]}" <(tail -n 1 "$dir/fsize$size/log")
    recovers "fsize$size" "without the limit it comes to the same end"
done
for ((n = 4; n < 40; n += 1 + (n > 16))); do
    under=(prlimit "--nofile=$n")
    status=0
    twotower nofile run --until-end "${stream[@]}" "${often[@]}" || status=$?
    [ "$status" = 127 ] && continue # too few for the loader of libraries
    [ "$status" = 74 ] && grep -qE "twotower run: /.*${texts[EMFILE]}" <(tail -n 1 "$dir/nofile/log") || break
done
same "with too few files it ends with 74 and says so, with enough it ends well" 0 "$status"
check "enough are less than 32" "$n" [ "$n" -lt 32 ]
recovers nofile "and it comes to the same end"

user=()
[ "$(id -u)" -ne 0 ] || user=(setpriv --reuid=65534 --regid=65534 --clear-groups)
mkdir -m 777 "$dir/mode"
if "${user[@]}" test -x "$TWOTOWER" && "${user[@]}" mkdir "$dir/mode/state" 2>/dev/null; then
    under=("${user[@]}")
    : >"$dir/mode/log"
    chmod 666 "$dir/mode/log"
    twotower_start mode run "${endless[@]}"
    said mode "snapshot published" 20
    chmod 555 "$dir/mode/state/checkpoints"
    check "a directory that is no longer ours: it says so" "$(tail -n 1 "$dir/mode/log")" said mode "${texts[EACCES]}" 10
    chmod 777 "$dir/mode/state/checkpoints"
    n=$(metric checkpoints_total)
    check "and goes on when it is ours again" "no checkpoint" rises checkpoints_total "$n" 1
    kill -TERM "$pid"
    status=0
    wait_for "$pid" || status=$?
    same "to its end" 0 "$status"
    under=()
else
    echo "skip a directory that is no longer ours: no user for whom it is so"
fi
rm -rf "${dir:?}"/{mode,fsize*,nofile,memlock}

# ---- Two processes on one state.

slow=("${stream[@]}" -o source.requests=2000000 "${often[@]}")
twotower_start two run --until-end "${slow[@]}"
said two "snapshot published" 20
status=0
twotower two run --until-end "${stream[@]}" 2>/dev/null || status=$?
same "a second process on one state ends with 75" 75 "$status"
kill -KILL "$pid"
wait_for "$pid"
rm -rf "${dir:?}/two"

# Where locks say yes to everybody. The first one stands still, as one does whose machine has lost its
# network, until the second has taken over; then both run. The second is killed, too, when the first has
# noticed: what it finds on the disk is its own.
stream=("${stream[@]}" -o source.requests=40000 -o slice.events=64)
until_end reference2 "${stream[@]}"
expected="$(digest reference2) $(totals reference2)$(state_sum reference2)"
for end in KILL 0; do
    faulty two "FAULT_LOCKS=none"
    : >"$dir/two/log"
    twotower_start two run --until-end "${stream[@]}" "${often[@]}"
    first=$pid
    for ((i = 0; i < 400; i++)); do
        if [ -e "$dir/two/state/checkpoints/LATEST" ]; then break; fi
        sleep 0.01
    done
    kill -STOP "$first"
    mv "$dir/two/log" "$dir/first.log" # which it goes on writing to
    twotower_start two run --until-end "${stream[@]}" "${often[@]}"
    second=$pid
    said two "ready restored=yes" 20
    kill -CONT "$first"
    status=0
    wait_for "$first" || status=$?
    same "without locks, the first of two processes ends with 75" 75 "$status"
    check "and says so" "$(tail -n 1 "$dir/first.log")" \
        grep -q "another process has taken it over (owner 2, we are 1)" <(tail -n 1 "$dir/first.log")
    kill -"$end" "$second" 2>/dev/null
    status=0
    wait_for "$second" || status=$?
    under=()
    [ "$end" = KILL ] || same "and the second to the end" 0 "$status"
    recovers two "nothing of the first is in what the second has learned"
    rm -rf "${dir:?}/two" "$dir/first.log"
done
