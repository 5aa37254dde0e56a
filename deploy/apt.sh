# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=sh disable=SC2154
#
# Installs what deploy/packages names. Sourced by deploy/quickstart and tests/run, which set `root`,
# the top of the tree, and have made build/ in it.
#
#     packages_need PART...    installs what those parts miss. Says first what, and how much it is.
#
# When nothing is missing it asks dpkg and is done: no apt, no network, some 20 ms.

packages_need()
{
    if ! command -v dpkg-query >/dev/null; then
        echo "This is not Debian: what deploy/packages names for '$*' is taken to be here." >&2
        return 0
    fi
    packages_missing=$(packages_of "$@" | packages_not_installed)
    [ -z "$packages_missing" ] || packages_install
}

# The packages of the parts, each once.
packages_of()
{
    awk -v parts=" $* " '!/^#/ && index(parts, " " $1 " ") && !seen[$2]++ { print $2 }' \
        "$root/deploy/packages"
}

packages_not_installed()
{
    wanted=$(cat)
    # shellcheck disable=SC2086 # the list is to be split
    { dpkg-query -W -f '${Package} ${db:Status-Status}\n' $wanted 2>/dev/null || true; } |
        awk -v wanted="$wanted" '
            $2 == "installed" { have[$1] = 1 }
            END { n = split(wanted, name); for (i = 1; i <= n; i++) if (!have[name[i]]) print name[i] }'
}

packages_install()
{
    as_root=
    if [ "$(id -u)" -ne 0 ]; then
        as_root=sudo
        if ! command -v sudo >/dev/null; then
            echo "These packages are missing, and there is no sudo. Install them as root:" >&2
            # shellcheck disable=SC2086
            echo "    apt-get install --no-install-recommends" $packages_missing >&2
            return 1
        fi
    fi
    echo "Missing from this system:"
    # shellcheck disable=SC2086
    echo $packages_missing | fold -s -w 92 | sed 's/^/    /'
    echo "Reading Debian's package lists first (about 10 MB if they are not here yet) ..."
    # An update that fails leaves the lists that are here, and they may be good enough.
    $as_root apt-get update -qq || echo "apt-get update failed; going on with the lists that are here." >&2
    # shellcheck disable=SC2086
    uris=$(apt-get install -qq --no-install-recommends --print-uris $packages_missing) || return 1
    printf '%s\n' "$uris" | awk '
        $3 ~ /^[0-9]+$/ { n++; bytes += $3 }
        END { printf "Fetching %d packages with apt, %.0f MB ...\n", n, bytes / 1e6 }'
    # shellcheck disable=SC2086
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        -o Dpkg::Use-Pty=0 $packages_missing >"$root/build/apt.log" 2>&1 || {
        tail -n 20 "$root/build/apt.log" >&2
        echo "apt-get failed; all it said is in build/apt.log." >&2
        return 1
    }
}
