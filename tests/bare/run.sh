#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The two commands on a system with nothing on it: a Debian 12 root of debootstrap's smallest kind, a
# clone of HEAD, and nobody to help. Not a part of tests/run: it needs root, fetches some 400 MB and
# takes as long as everything else together.
#
#     tests/bare/run.sh [quickstart|user|tests]...      default: quickstart
#
#     quickstart   as root: deploy/quickstart twice; the second one must reach the demo in under 3 s
#     user         the same as a user who has sudo, called from another directory
#     tests        tests/run, whole
#
# TWOTOWER_BARE        where the roots are kept, default build/bare: `base` is made once and kept as it
#                      is, `root` is a copy of it made anew by each call
# TWOTOWER_DEMO_ARGS   arguments for the demo, default "--seconds 5"
# TWOTOWER_DATA, TWOTOWER_GOLDEN   as in tests/run; seen by the clone under their default names
#
# Each trial has a mount namespace and a process namespace of its own: however it ends, its mounts and
# its processes end with it.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
bare=${TWOTOWER_BARE:-$top/build/bare}
demo_args=${TWOTOWER_DEMO_ARGS---seconds 5}

if [ "$(id -u)" -ne 0 ]; then
    echo "tests/bare/run.sh mounts and changes root: run it as root." >&2
    exit 77
fi

say()
{
    printf '\n== %s\n' "$*"
}

# check SENTENCE COMMAND...: runs it and notes how it went.
check()
{
    local sentence=$1 start=$SECONDS verdict=ok
    shift
    "$@" || verdict=FAIL
    echo "$verdict $sentence ($((SECONDS - start)) s)" | tee -a "$bare/verdicts"
}

# The mirrors and proxies of this machine, and the certificates it trusts beside Debian's own, are its
# way to the network; nothing else of it is carried over.
base_make()
{
    local mirror
    # shellcheck disable=SC2016 # apt-get expands these
    mirror=$(apt-get indextargets 'Created-By: Packages' --format '$(REPO_URI) $(RELEASE)' |
        awk '$2 == "bookworm" { print $1; exit }')
    mirror=${mirror:-http://deb.debian.org/debian}
    say "debootstrap from $mirror"
    command -v debootstrap >/dev/null || apt-get install -y -qq --no-install-recommends debootstrap
    rm -rf "$bare/base.part"
    mkdir -p "$bare"
    debootstrap --variant=minbase bookworm "$bare/base.part" "$mirror" >"$bare/debootstrap.log"
    # shellcheck disable=SC2016
    apt-get indextargets 'Created-By: Packages' --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' |
        awk '$2 ~ /^bookworm/ && $1 ~ /debian/ && $3 == "main" { print "deb", $1, $2, $3 }' \
            >"$bare/base.part/etc/apt/sources.list"
    find /etc/apt/apt.conf.d -name '*proxy*' -exec cp {} "$bare/base.part/etc/apt/apt.conf.d/" \;
    mkdir -p "$bare/base.part/usr/local/share/ca-certificates"
    cp -r /usr/local/share/ca-certificates/. "$bare/base.part/usr/local/share/ca-certificates/"
    # apt marks nothing here as needed later: the downloaded archives of the base are not kept.
    rm -f "$bare/base.part"/var/cache/apt/archives/*.deb
    rm -rf "$bare/base.part"/var/lib/apt/lists/*
    mv "$bare/base.part" "$bare/base"
}

root_make()
{
    say "a fresh root, $(du -sh "$bare/base" | cut -f1), and a clone of $(git -C "$top" log -1 --format=%h)"
    # Emptying a root that still has the machine's /dev in it would empty that.
    if grep -qF " $bare/root/" /proc/self/mountinfo; then
        echo "Something is still mounted below $bare/root: unmount it first." >&2
        return 1
    fi
    rm -rf --one-file-system "$bare/root"
    cp -a "$bare/base" "$bare/root"
    cp -L /etc/resolv.conf "$bare/root/etc/resolv.conf"
    echo "127.0.0.1 localhost $(hostname)" >"$bare/root/etc/hosts"
    mount -t proc proc "$bare/root/proc"
    mount --rbind /dev "$bare/root/dev"
    mount --rbind /sys "$bare/root/sys"
    git clone -q --no-hardlinks "$top" "$bare/root/src/twotower"
    # Paths of the host must not lead anywhere from inside.
    git -C "$bare/root/src/twotower" remote remove origin
    share data "${TWOTOWER_DATA:-$top/../shared/data}"
    share golden "${TWOTOWER_GOLDEN:-$top/../shared/golden}"
}

# share NAME DIRECTORY: shows it, unchangeable, where the clone looks for it.
share()
{
    [ -d "$2" ] || return 0
    mkdir -p "$bare/root/src/shared/$1"
    mount --bind -o ro "$2" "$bare/root/src/shared/$1"
}

# inside COMMAND: a shell in the root, with the environment of a first login and no input.
inside()
{
    chroot "$bare/root" env -i HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        LANG=C.UTF-8 TERM="${TERM:-dumb}" ${http_proxy:+http_proxy="$http_proxy"} \
        ${https_proxy:+https_proxy="$https_proxy"} sh -c "$1" </dev/null
}

as_user()
{
    inside "su - clara -c 'cd /tmp && $1'"
}

installed_since()
{
    inside "dpkg-query -W -f '\${Package}\n'" | comm -13 "$bare/packages.base" - >"$bare/packages.$1"
    echo "packages that were missing at first: $(wc -l <"$bare/packages.$1") (build/bare/packages.$1)"
}

# --help goes through all of quickstart and ends where the demo would begin.
starts_soon()
{
    local begin end
    begin=$(date +%s%N)
    "$1" "/src/twotower/deploy/quickstart --help >/dev/null" || return
    end=$(date +%s%N)
    echo "from the command to the demo: $(((end - begin) / 1000000)) ms"
    [ $(((end - begin) / 1000000)) -lt 3000 ]
}

trial_quickstart()
{
    check "quickstart on a bare root, as root" inside "/src/twotower/deploy/quickstart $demo_args"
    installed_since quickstart
    check "the second quickstart reaches the demo in under 3 s" starts_soon inside
}

trial_user()
{
    inside "apt-get update -qq && apt-get install -y -qq --no-install-recommends sudo >/dev/null 2>&1 &&
        useradd -m -s /bin/sh clara && echo 'clara ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/clara &&
        chown -R clara: /src/twotower"
    check "quickstart on a bare root, as a user with sudo" as_user "/src/twotower/deploy/quickstart $demo_args"
    check "the second quickstart of the user reaches the demo in under 3 s" starts_soon as_user
}

trial_tests()
{
    check "tests/run on a bare root" inside "cd /src/twotower && tests/run"
    installed_since tests
}

# Called again by itself, in the namespaces of one trial.
if [ "${1:-}" = --trial ]; then
    root_make
    inside "dpkg-query -W -f '\${Package}\n'" >"$bare/packages.base"
    say "$2"
    "trial_$2"
    exit
fi

for trial in "${@:-quickstart}"; do
    if ! declare -F "trial_$trial" >/dev/null; then
        echo "tests/bare/run.sh: no trial is called '$trial'" >&2
        exit 64
    fi
done
[ -d "$bare/base" ] || base_make
: >"$bare/verdicts"
for trial in "${@:-quickstart}"; do
    unshare --mount --propagation private --pid --fork --kill-child "$here/run.sh" --trial "$trial" ||
        echo "FAIL the trial $trial came to its end" | tee -a "$bare/verdicts"
done
passed=$(grep -c '^ok' "$bare/verdicts" || true)
failed=$(grep -c '^FAIL' "$bare/verdicts" || true)
echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
