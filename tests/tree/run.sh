#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# What must be true of the tree itself: which directory may include which, which file may see which
# library, and what every source file has in common. Needs no build.
#
#     tests/tree/run.sh [TREE]     default: the tree that this script is in
#
# Prints `ok SENTENCE` or `FAIL SENTENCE` and under it what is against it.
set -uo pipefail

cd "${1:-$(dirname "$0")/../..}" || exit 70
failed=0

# Files of the tree as they are now, those not yet added included; without git, all but what is built.
files()
{
    {
        git ls-files --cached --others --exclude-standard 2>/dev/null ||
            find . \( -name .git -o -path ./build -o -path ./data \) -prune -o -type f -printf '%P\n'
    } | sort -u | while read -r file; do [ -f "$file" ] && echo "$file"; done
}
mapfile -t all < <(files)
mapfile -t sources < <(printf '%s\n' "${all[@]}" | grep -E '\.(c|h|cpp)$')
mapfile -t scripts < <(printf '%s\n' "${all[@]}" | xargs -d '\n' grep -lE -m1 '^#!.*\b(sh|bash)$')
mapfile -t texts < <(printf '%s\n' "${all[@]}" | xargs -d '\n' grep -lI '')

# it SENTENCE: reads what is against it from stdin.
it()
{
    local against
    against=$(cat)
    if [ -z "$against" ]; then
        echo "ok $1"
    else
        echo "FAIL $1"
        printf '%s\n' "$against" | head -n 40 | sed 's/^/    /'
        failed=1
    fi
}

# FILE:INCLUDED for each include of the sources; an included file of ours keeps its quotes.
includes=$(grep -noE '^[[:space:]]*#[[:space:]]*include[[:space:]]*(<[^>]*>|"[^"]*")' "${sources[@]}" |
    sed -E 's/^([^:]*):[0-9]+:[^<"]*/\1:/; s/[<>]//g')

# Directory -> the directories it may include. tests/ may include all, and is included by its own only.
directions='
model     model
snapshot  snapshot
pipeline  pipeline model snapshot
daemon    daemon pipeline snapshot model
tests     tests daemon pipeline snapshot model
deploy
'
printf '%s\n' "$includes" | awk -F: -v directions="$directions" '
    BEGIN {
        n = split(directions, line, "\n")
        for (i = 1; i <= n; i++) {
            m = split(line[i], word, " ")
            for (j = 2; j <= m; j++)
                may[word[1], word[j]] = 1
        }
    }
    $2 ~ /^"/ {
        included = substr($2, 2, length($2) - 2)
        split($1, from, "/")
        split(included, to, "/")
        if (!((from[1], to[1]) in may) || included ~ /\.\.\//)
            print $1 " includes \"" included "\""
    }' | it "includes run only in the allowed directions, by their path from the top"

printf '%s\n' "$includes" | awk -F: '$2 ~ /^(model|snapshot|pipeline|daemon|tests)\// { print $1 " includes <" $2 ">" }' |
    it "our own headers are included with quotes"

# LIBRARY HEADER FILE...: a library is seen by exactly these files; by any of a directory where it says
# so with a star.
libraries='
OpenBLAS       cblas.h                model/gemm.c
liburing       liburing.h             snapshot/engine.c
librdkafka     librdkafka/rdkafka.h   pipeline/kafka_conf.h pipeline/kafka_probe.h pipeline/source_kafka.c tests/kafka/topics.c
librdkafka     librdkafka/rdkafka_mock.h tests/*
libmicrohttpd  microhttpd.h           daemon/http.c
simdjson       simdjson.h             pipeline/decode_json.cpp
toml++         toml++/toml.h          daemon/config_toml.cpp
isa-l          isa-l/crc.h            snapshot/crc32c.h pipeline/slice_log.c
xxhash         xxhash.h               pipeline/decode.c pipeline/cutter.c snapshot/id_index.h tests/*
cJSON          cjson/cJSON.h          snapshot/manifest.c snapshot/reader.c snapshot/writer.c daemon/* tests/*
libcrypto      openssl/evp.h          snapshot/digest.c daemon/config.c
zstd           zstd.h                 pipeline/source_file.c tests/*
cmocka         cmocka.h               tests/*
'
seen=$(printf '%s\n' "$includes" | awk -F: -v libraries="$libraries" '
    BEGIN {
        n = split(libraries, line, "\n")
        for (i = 1; i <= n; i++) {
            split(line[i], word, " ")
            known[word[2]] = 1
        }
    }
    $2 in known' | sort -u)
rows=$(printf '%s\n' "$libraries" | awk 'NF { for (i = 3; i <= NF; i++) print $i ":" $2 }' | sort)
comm -13 <(printf '%s\n' "$rows") <(printf '%s\n' "$seen") | while IFS=: read -r file header; do
    grep -qxF "${file%%/*}/*:$header" <<<"$rows" || echo "$file includes $header, but is not in the table"
done | it "no other file than the table's sees a library"
comm -23 <(grep -vF '/*:' <<<"$rows") <(printf '%s\n' "$seen") | sed 's/:/ is said to include /' |
    it "each file of the table sees its library"

# A header that neither the C library, the kernel nor the compiler brings is a dependency. dpkg knows.
if command -v dpkg-query >/dev/null && command -v gcc >/dev/null; then
    printf '%s\n' "$includes" | grep -v ':"' | cut -d: -f2 | sort -u | while read -r header; do
        for directory in /usr/include "/usr/include/$(gcc -print-multiarch)" "/usr/include/c++/$(gcc -dumpversion)"; do
            [ -e "$directory/$header" ] && echo "$directory/$header"
        done
    done | xargs -d '\n' dpkg-query -S 2>/dev/null | grep -vE '^(libc6-dev|linux-libc-dev|libstdc\+\+-[0-9]+-dev)[:,]' |
        sed -E 's|^[^/]*/usr/include/||; s|^[a-z0-9_]+-linux-gnu/||' | sort -u |
        grep -vxF "$(awk '{ print $2 }' <<<"$libraries")" | sed 's/^/no row in the table: /' |
        it "every library that is included has its row in the table"
else
    echo "skip every library that is included has its row in the table: dpkg or gcc is not here"
fi

printf '%s\n' "${sources[@]}" | grep '\.h$' | xargs -d '\n' grep -L '^#pragma once$' |
    it "every header guards itself by #pragma once"

# A licence line in the first three lines: some have #! before it.
printf '%s\n' "${sources[@]}" "${scripts[@]}" "${all[@]}" | grep -E '\.(c|h|cpp|sh|py|java)$|/(run|quickstart)$' | sort -u |
    while read -r file; do
        head -n 3 "$file" | grep -qE '^(//|#) SPDX-License-Identifier: Apache-2\.0$' || echo "$file"
    done | it "every source file names its licence"

# The words are put together here, so that this file is no exception.
grep -nwE 'TO''DO|FIX''ME|XX''X|HA''CK' "${texts[@]}" | it "nothing is left as a note to do later"

grep -nE '(^|[^A-Za-z0-9_.])/(wo''rk|fa''rm|ro''ot|ho''me|Us''ers)/' "${texts[@]}" |
    it "no path of one machine is in the tree"

grep -nE '(NDEB''UG|-ffast-ma''th)' "${texts[@]}" | grep -vE '(never|without) [^ ]*|-U' |
    it "asserts stay on and arithmetic stays exact in every build"

# model/ computes: no files, no clock, no thread, no randomness but its own, no log.
grep -nE '(^|[^A-Za-z0-9_>.])(fopen|open|read|write|printf|fprintf|puts|perror|syslog|time|clock|clock_gettime|gettimeofday|pthread_create|getenv|rand|random|exit)\(' \
    model/*.c | grep -vE ':[[:space:]]*//' | it "the model reads no file, clock or environment and writes no log"

# Only the daemon talks and only main leaves.
grep -nE '(^|[^A-Za-z0-9_>.])(printf|puts|perror|syslog|exit|_exit)\(|fprintf\(std' {model,pipeline,snapshot}/*.{c,cpp} 2>/dev/null |
    grep -vE ':[[:space:]]*//' | it "only the daemon logs and only main exits"

# Tables whose rows have to mean something: a metric that nobody sets, an option that nobody reads.
grep -oE '^    X\([A-Z_]+, "' daemon/metrics.h | sed -E 's/.*X\((.*), "/\1/' | while read -r metric; do
    grep -qwF "METRIC_$metric" daemon/*.c || echo "METRIC_$metric"
done | it "every metric is set somewhere"
grep -oE '^    \{"[a-z0-9_.]+", CONFIG_[A-Z]+, AT\([a-z_0-9]+\)' daemon/config.c | sed -E 's/.*AT\((.*)\)/\1/' | while read -r option; do
    grep -qE "(->|\.)$option\b" daemon/*.c || echo "$option"
done | it "every option is read somewhere"

grep -nP '\t' "${sources[@]}" "${scripts[@]}" | it "sources and scripts are indented with spaces"
grep -nE '[[:space:]]+$' "${texts[@]}" | grep -vE '^[^:]*\.md:' | it "no line ends in blanks"
for file in "${texts[@]}"; do
    [ ! -s "$file" ] || [ -z "$(tail -c 1 "$file")" ] || echo "$file"
done | it "every file ends with a line feed"

printf '%s\n' "${all[@]}" | xargs -d '\n' du -k | awk '$1 > 512' | it "no file is larger than 512 KiB"
printf '%s\n' "${all[@]}" | grep -E '\.(zst|gz|jsonl|npy|safetensors|o|so|a)$' |
    it "no recorded stream and nothing built is in the tree"

# Links of the documents that lead to a file of the tree.
for file in "${all[@]}"; do
    [ "${file##*.}" = md ] || continue
    grep -oE '\]\([^)#: ]+[)#]' "$file" | sed -E 's/^..(.*).$/\1/' | while read -r target; do
        [ -e "$(dirname "$file")/$target" ] || echo "$file leads to $target"
    done
done | it "every link in a document leads to a file that is there"

# The last column of deploy/failures.md: sentences of C tests, their programs, and scripts by "e2e NAME".
proofs=$(grep '^|' deploy/failures.md | sed -E 's/ *\|$//; s/.* \| //')
{
    grep -oE '[a-z0-9]+(_[a-z0-9]+){4,}' <<<"$proofs" | sort -u | while read -r sentence; do
        grep -qwF -- "$sentence" tests/{unit,sim,kafka}/*.c || echo "no test is called $sentence"
    done
    grep -oE '\btest_[a-z0-9_]+' <<<"$proofs" | sort -u | while read -r name; do
        [ -e "tests/unit/$name.c" ] || echo "there is no tests/unit/$name.c"
    done
    grep -oE '\b(e2e|kafka|sim) [a-z_]+(, [a-z_]+)*' <<<"$proofs" | while read -r kind names; do
        for name in ${names//,/}; do
            compgen -G "tests/$kind/test_$name.*" >/dev/null || echo "there is no tests/$kind/test_$name"
        done
    done
} | it "every test that deploy/failures.md names is there"

if command -v clang-format-14 >/dev/null; then
    clang-format-14 --dry-run --Werror "${sources[@]}" 2>&1 | grep -E 'error:' |
        it "every source is laid out as clang-format-14 would"
else
    echo "skip every source is laid out as clang-format-14 would: it is not installed"
fi
if command -v shellcheck >/dev/null; then
    shellcheck -x -S warning -f gcc "${scripts[@]}" | it "shellcheck has no warning for any script"
else
    echo "skip shellcheck has no warning for any script: it is not installed"
fi

exit "$failed"
