// SPDX-License-Identifier: Apache-2.0
//
// What the tests of snapshot/ share: a root directory of their own, an engine, a CRC32C from a
// table, whole files.
#pragma once

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>
// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include "snapshot/engine.h"
#include "snapshot/writer.h"

struct test_root {
    char path[64];
    struct engine *engine;
};

static inline void root_make(struct test_root *r, const char *parent, enum engine_backend backend,
                             struct storage *storage)
{
    char error[256];
    snprintf(r->path, sizeof r->path, "%s/twotower-test-XXXXXX", parent);
    assert_non_null(mkdtemp(r->path));
    if (engine_open(&r->engine, &(struct engine_options){.backend = backend, .storage = storage},
                    error, sizeof error) < 0)
        fail_msg("%s", error);
}

// Whether what lies there can be outside the page cache, and be read past it.
static inline bool is_on_disk(const char *path)
{
    enum { TMPFS = 0x01021994 };
    struct statfs fs;
    assert_int_equal(statfs(path, &fs), 0);
    const int file = open(path, O_TMPFILE | O_RDWR | O_DIRECT, 0600);
    if (file >= 0)
        close(file);
    return file >= 0 && fs.f_type != TMPFS;
}

static inline int root_remove_entry(const char *path, const struct stat *st, int type,
                                    struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

static inline void tree_remove(const char *path)
{
    nftw(path, root_remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static inline void root_remove(struct test_root *r)
{
    engine_close(r->engine);
    tree_remove(r->path);
}

static inline struct writer *root_writer(struct test_root *r, uint64_t generation)
{
    struct writer *w;
    char error[512];
    const struct writer_options options = {
        .root = r->path,
        .generation = generation,
        .format = "twotower-snapshot",
        .engine = r->engine,
    };
    if (writer_open(&w, &options, error, sizeof error) < 0)
        fail_msg("%s", error);
    return w;
}

static inline void root_publish(struct writer *w)
{
    if (writer_publish(w) < 0)
        fail_msg("%s", writer_error(w));
    writer_close(w);
}

// One generation with one small array.
static inline void root_generation(struct test_root *r, uint64_t generation)
{
    struct writer *w = root_writer(r, generation);
    writer_array(w, &(struct writer_array){"x.safetensors", "x", "x", "U64", 1, {1}}, &generation);
    root_publish(w);
}

static inline uint32_t table_crc32c(const void *bytes, size_t n)
{
    static uint32_t table[256];
    if (table[1] == 0)
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t c = i;
            for (int bit = 0; bit < 8; bit++)
                c = c & 1 ? c >> 1 ^ 0x82f63b78u : c >> 1;
            table[i] = c;
        }
    uint32_t crc = UINT32_MAX;
    for (size_t i = 0; i < n; i++)
        crc = crc >> 8 ^ table[(crc ^ ((const uint8_t *)bytes)[i]) & 255];
    return ~crc;
}

static inline char *file_read(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    if (!f)
        fail_msg("%s: %s", path, strerror(errno));
    fseek(f, 0, SEEK_END);
    *n = (size_t)ftell(f);
    rewind(f);
    char *bytes = malloc(*n + 1);
    assert_non_null(bytes);
    assert_int_equal(fread(bytes, 1, *n, f), *n);
    bytes[*n] = '\0';
    fclose(f);
    return bytes;
}

static inline void file_write(const char *path, const void *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");
    if (!f)
        fail_msg("%s: %s", path, strerror(errno));
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    fclose(f);
}

static inline int count_entries(const char *path)
{
    DIR *d = opendir(path);
    assert_non_null(d);
    int n = 0;
    for (const struct dirent *entry; (entry = readdir(d));)
        n += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    closedir(d);
    return n;
}

static inline uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}
