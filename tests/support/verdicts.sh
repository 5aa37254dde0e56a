# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Runs one test program by the rules that all scripts of tests/ share. To be sourced.
#
#     verdicts NAME SECONDS COMMAND...
#
# The command prints `ok SENTENCE`, `FAIL SENTENCE: why` or `skip SENTENCE: reason`, each alone on a
# line, and whatever else it likes; it is printed again with NAME before each sentence. It has failed,
# with a line for it, when it ends with a bad status and without a FAIL line, when it says nothing, or
# when SECONDS are over. Standard input is empty. Returns 1 when anything failed.

verdicts()
{
    local name=$1 seconds=$2 out status=0 bad
    shift 2
    out=$(mktemp) || return 1
    timeout --kill-after=10 "$seconds" "$@" </dev/null >"$out" 2>&1 || status=$?
    sed -E "s#^(ok|FAIL|skip) #\1 $name #" "$out"
    bad=$(grep -c '^FAIL ' "$out")
    if [ "$bad" -eq 0 ] && [ "$status" -eq 124 ]; then
        echo "FAIL $name: not done in $seconds s"
        bad=1
    elif [ "$bad" -eq 0 ] && [ "$status" -ne 0 ]; then
        echo "FAIL $name: ended with status $status"
        bad=1
    elif ! grep -qE '^(ok|FAIL|skip) ' "$out"; then
        echo "FAIL $name: it tried nothing"
        bad=1
    fi
    rm -f "$out"
    [ "$bad" -eq 0 ]
}
