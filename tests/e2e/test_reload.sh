#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Weights of value.tasks change while it runs, at a place that is written down: whatever is killed
# afterwards, and whenever the slice log is read again, they change there and nowhere else.
set -uo pipefail
. tests/e2e/support.sh
dir=$E2E_DIR

# conf FILE TASKS [REQUESTS]: a configuration file, in place at once.
conf()
{
    printf '[source]\ntype = "builtin"\nrequests = %s\nseed = 7\n[value]\ntasks = "%s"\n' "${3:-250000}" "$2" >"$dir/$1.part"
    mv "$dir/$1.part" "$dir/$1"
}
often=(-c "$dir/live.toml" -o checkpoint.interval=200ms -o snapshot.interval=300ms)
# values NAME: how often weights came into force, and with which slice each time.
values() { grep -oE 'values of tasks +tasks=.*' "$dir/$1/log" | sed 's/.*tasks=//' | uniq; }
state_of() { echo "$(digest "$1") $(totals "$1")$(state_sum "$1")"; }

# A run that is changed in its middle, twice refused, killed, changed while it is down, and killed.

conf live.toml "click=1,*=1"
twotower_start live run --until-end "${often[@]}"
check "the weights at the start are those of the first slice" "not said" said live 'tasks="click=1,*=1" slice=1'
said live "ready"
sleep 0.4

conf live.toml "*=1,click=1"
kill -HUP "$pid"
check "another order of the tasks is refused" "not said" \
    said live "names '*,click' now and 'click,*' at the start"
conf live.toml "click=one"
kill -HUP "$pid"
check "a file with mistakes is refused, with the place" "not said" said live "the weight of task 'click' is 'one'"
check "a refused file changes nothing" "$(values live)" [ "$(values live | wc -l)" -eq 1 ]

conf live.toml "click=0.25,*=-1" 250001
kill -HUP "$pid"
check "other weights come into force with a later slice" "not said" said live 'tasks="click=0.25,*=-1" slice='
check "another option that was changed is named" "not said" said live "needs a restart key=source.requests"
conf live.toml "click=0.25,*=-1"
sleep 0.2
kill -KILL "$pid" 2>/dev/null
wait_for "$pid"
check "it was killed in its middle" "it had ended" [ "$(grep -c finished "$dir/live/log")" -eq 0 ]

twotower_start live run --until-end "${often[@]}"
sleep 0.5
kill -KILL "$pid" 2>/dev/null
wait_for "$pid"
check "a restart with the same weights is no change" "$(values live)" \
    [ "$(values live | sort -u | wc -l)" -eq 2 ]

conf live.toml "click=3,*=0"
twotower_start live run --until-end "${often[@]}"
check "weights that were changed while it was down come into force, too" "not said" \
    said live 'tasks="click=3,*=0" slice='
sleep 0.2
kill -KILL "$pid" 2>/dev/null
wait_for "$pid"
until_end live "${often[@]}" || exit 1
values live | sed 's/^/    /'

# The same slice log, read from its first slice without a break.

mkdir -p "$dir/again/state"
cp "$dir"/live/state/slices-*.log "$dir/again/state/"
until_end again -c "$dir/live.toml" || exit 1
same "read again from its slice log without a break, it is the same" "$(state_of live)" "$(state_of again)"
same "the weights came into force with the same slices" "$(values live | sort -u)" "$(values again | sort -u)"

# Without the changes, from the start as at the start, and as at the end.

for tasks in "click=1,*=1" "click=3,*=0"; do
    conf constant.toml "$tasks"
    until_end constant -c "$dir/constant.toml" || exit 1
    check "$tasks all the way is another model" "$(digest constant)" [ "$(digest constant)" != "$(digest live)" ]
    rm -rf "${dir:?}/constant"
done

# What tells one state from another: names, not weights.

conf live.toml "tap=3,*=0"
status=0
until_end live -c "$dir/live.toml" >"$dir/refused" || status=$?
same "other names of tasks need another state" 78 "$status"
check "and the sentence names them" "not said" said live 'value.tasks="click,*" then, value.tasks="tap,*" now'
