#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The unit under a real systemd: Debian 12 with systemd as process 1 in a container, the program and
# the unit of this tree in it. Not a part of tests/run: it needs root, fetches some 100 MB once and
# takes about a minute.
#
#     tests/systemd/run.sh         prints `ok SENTENCE`, `FAIL SENTENCE: why` or `skip systemd: reason`
#
# TWOTOWER           the program, default build/release/twotower
# TWOTOWER_SYSTEMD   where the root directory is kept, default build/systemd; made once for each set of
#                    libraries
#
# The machine needs debootstrap and systemd-container.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
program=$(realpath -m "${TWOTOWER:-$top/build/release/twotower}")
cache=${TWOTOWER_SYSTEMD:-$top/build/systemd}
root=$cache/root

skip()
{
    echo "skip systemd: $1"
    exit 0
}
[ "$(id -u)" -eq 0 ] || skip "it boots a container: run it as root"
for tool in debootstrap systemd-nspawn; do
    command -v "$tool" >/dev/null || skip "no $tool: apt-get install debootstrap systemd-container"
done
[ -x "$program" ] || skip "no $program: cmake --workflow --preset release"

# The packages that own the shared libraries which the program loads, whatever they are.
packages()
{
    ldd "$program" | awk '$3 ~ /^\// { print $3 }' | while read -r library; do
        library=$(realpath "$library")
        dpkg-query -S "$library" 2>/dev/null || dpkg-query -S "${library#/usr}" 2>/dev/null
    done | sed 's/:.*//' | sort -u
}

root_make()
{
    local mirror list
    list=$(packages)
    # shellcheck disable=SC2016 # apt-get expands these
    mirror=$(apt-get indextargets 'Created-By: Packages' --format '$(REPO_URI) $(RELEASE)' |
        awk '$2 == "bookworm" { print $1; exit }')
    mirror=${mirror:-http://deb.debian.org/debian}
    echo "debootstrap from $mirror into $root"
    rm -rf "$root" "$root.part" "$cache/packages"
    mkdir -p "$cache"
    debootstrap --variant=minbase --include="systemd,dbus,${list//$'\n'/,}" \
        bookworm "$root.part" "$mirror" >"$cache/debootstrap.log" 2>&1 || return 1
    chroot "$root.part" useradd --system --home-dir /var/lib/twotower --shell /usr/sbin/nologin twotower &&
        mv "$root.part" "$root" && echo "$list" >"$cache/packages"
}
if [ "$(cat "$cache/packages" 2>/dev/null)" != "$(packages)" ] && ! root_make; then
    tail -n 5 "$cache/debootstrap.log"
    echo "FAIL systemd: debootstrap did not succeed; all it said is in $cache/debootstrap.log"
    exit 1
fi

# ---- What is new in each run

rm -rf "$root"/var/lib/twotower "$root"/var/lib/private/twotower-try "$root"/var/lib/twotower-try \
    "$root"/var/log/journal "$root"/verdicts "$root"/etc/systemd/system/twotower.service.d
install -m755 "$program" "$root/usr/bin/twotower"
install -D -m644 "$top/deploy/twotower.toml" "$root/etc/twotower/twotower.toml"
install -m644 "$top/deploy/systemd/twotower.service" "$root/etc/systemd/system/twotower.service"
# Four seconds instead of thirty, so that a frozen process is noticed while we wait. How it ended is
# written down: systemd forgets a stopped unit, and takes death by SIGTERM for success.
install -d "$root/etc/systemd/system/twotower.service.d"
cat >"$root/etc/systemd/system/twotower.service.d/test.conf" <<'DROPIN'
[Service]
WatchdogSec=4s
ExecStopPost=/bin/sh -c 'echo "$SERVICE_RESULT $EXIT_CODE $EXIT_STATUS" >/var/lib/twotower/ended'
DROPIN
# The line that people copy is the line that is tried.
{
    echo 'set -e'
    grep -m1 '^systemd-run ' "$top/deploy/systemd/README.md"
} >"$root/transient.sh"

cat >"$root/trial.sh" <<'TRIAL'
#!/bin/bash
# Runs inside, started by trial.service; what it prints is read outside.
verdict() # SENTENCE WHY-NOT
{
    if [ -z "$2" ]; then echo "ok $1"; else echo "FAIL $1: $2"; fi
}
is() # SENTENCE HAVE WANT
{
    if [ "$2" = "$3" ]; then verdict "$1" ""; else verdict "$1" "'$2' instead of '$3'"; fi
}
show() # PROPERTY [UNIT]
{
    systemctl show "${2:-twotower}" -p "$1" --value
}
get() # PATH [PORT]
{
    exec 3<>"/dev/tcp/127.0.0.1/${2:-9464}" || return
    printf 'GET %s HTTP/1.0\r\n\r\n' "$1" >&3
    cat <&3
    exec 3>&-
}
# until SECONDS COMMAND...: waits until the command succeeds.
until_true()
{
    local end=$((SECONDS + $1))
    shift
    while ! "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.2
    done
}

systemctl start twotower
is "the unit starts" "$(systemctl is-active twotower)" active
until_true 10 test -n "$(show StatusText)"
verdict "it says what it is doing" "$([ -n "$(show StatusText)" ] || echo "StatusText is empty")"
echo "    Status: $(show StatusText)"
verdict "it answers /healthz on loopback" "$(get /healthz | grep -q '^ok' || echo "no answer")"
verdict "it answers /metrics" "$(get /metrics | grep -q '^twotower_build_info{' || echo "no build_info")"
get /metrics | grep -E '^twotower_(build|io_backend)_info' | sed 's/^/    /'
is "it runs as its own user" "$(stat -c %U "/proc/$(show MainPID)")" twotower
is "its state is in the state directory, closed to others" "$(stat -c '%U %a' /var/lib/twotower)" "twotower 750"
echo "    $(systemd-analyze security twotower --no-pager | tail -n 1)"

# Long enough for something to have been learned and be worth a checkpoint.
sleep 3
systemctl stop twotower
is "SIGTERM drains and ends with status 0" "$(cat /var/lib/twotower/ended)" "success exited 0"
verdict "a checkpoint is there after the drain" \
    "$(find /var/lib/twotower/data/state -type f | grep -q . || echo "there is no file")"

systemctl start twotower
is "it starts again from its checkpoint" "$(systemctl is-active twotower)" active
reloads() { get /metrics | grep -oE '^twotower_config_reloads_total\{result="unchanged"\} [0-9]+' | grep -oE '[0-9]+$'; }
systemctl reload twotower
until_true 5 eval '[ "$(reloads)" = 1 ]'
is "a reload reads the configuration and leaves it active" "$(reloads) $(systemctl is-active twotower)" "1 active"
sleep 10
is "it feeds the watchdog" "$(show NRestarts)" 0
kill -STOP "$(show MainPID)"
until_true 30 eval '[ "$(show NRestarts)" = 1 ] && [ "$(systemctl is-active twotower)" = active ]'
is "a frozen process is killed by the watchdog and started again" \
    "$(show NRestarts) $(systemctl is-active twotower)" "1 active"
systemctl stop twotower

cp /etc/twotower/twotower.toml /twotower.toml.good
printf '[join]\nwindw = "1h"\n' >/etc/twotower/twotower.toml
systemctl start twotower 2>/dev/null
until_true 5 systemctl is-failed twotower
sleep 3
is "a wrong configuration is status 78 and not tried again" \
    "$(show ExecMainStatus) $(show NRestarts) $(systemctl is-active twotower)" "78 0 failed"
verdict "the journal says which line is wrong" \
    "$(journalctl -u twotower -o cat --no-pager | grep -q "toml:2:1: error: unknown key 'join.windw'" || echo "it does not")"
mv /twotower.toml.good /etc/twotower/twotower.toml
verdict "the journal takes the priorities and keeps no prefix" \
    "$(journalctl -u twotower -o cat --no-pager | grep -m1 '^<[0-7]>')"
verdict "the journal has lines of the program" \
    "$(journalctl -u twotower -p info -o cat --no-pager _COMM=twotower | grep -q . || echo "none")"

why=$(bash /transient.sh 2>&1) && why=
verdict "the systemd-run line of the README starts an instance" "$why"
verdict "the instance answers on its own port" "$(get /healthz 9465 | grep -q '^ok' || echo "no answer")"
systemctl stop twotower-try
verdict "and leaves its state behind" \
    "$(find /var/lib/private/twotower-try/data/state -type f | grep -q . || echo "there is no file")"
echo "---- journal"
journalctl --no-pager -o short-monotonic -u twotower -u twotower-try
TRIAL

cat >"$root/etc/systemd/system/trial.service" <<'UNIT'
[Unit]
After=basic.target dbus.service
[Service]
Type=oneshot
StandardOutput=file:/verdicts
StandardError=inherit
ExecStart=/bin/bash /trial.sh
ExecStopPost=/bin/systemctl --no-block poweroff
UNIT
install -d "$root/etc/systemd/system/multi-user.target.wants"
ln -sf ../trial.service "$root/etc/systemd/system/multi-user.target.wants/trial.service"

SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 timeout --kill-after=10 240 systemd-nspawn -D "$root" --register=no \
    --keep-unit --private-network --boot --console=pipe >"$cache/boot.log" 2>&1 </dev/null
booted=$?
if [ ! -s "$root/verdicts" ]; then
    tail -n 20 "$cache/boot.log"
    echo "FAIL systemd: the container did not come to the trial (status $booted)"
    exit 1
fi
sed '/^---- journal$/,$d' "$root/verdicts"
sed '1,/^---- journal$/d' "$root/verdicts" >"$cache/journal.log"
if grep -q '^FAIL ' "$root/verdicts"; then
    tail -n 40 "$cache/journal.log"
    exit 1
fi
[ "$booted" -eq 0 ] || echo "FAIL systemd: the container ended with status $booted"
exit "$booted"
