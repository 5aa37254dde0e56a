// SPDX-License-Identifier: Apache-2.0
//
// What the fuzz targets share. A target is one program that libFuzzer calls with one input after
// another; given files as arguments it runs those and ends. It looks for more than crashes: what a
// header promises of a result is required of it.
//
// An input that is a directory is one text: options, then for each file a line "@@ NAME" and the
// bytes of the file, up to the line feed before the next "@@ ". So a mutation inside a file does
// not move the others. Directories are made in TMPDIR, which should be in memory.
#pragma once

#include <dirent.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static inline void require(int holds, const char *what)
{
    if (holds)
        return;
    fprintf(stderr, "broken promise: %s\n", what);
    abort();
}

// A directory of this process, made once; the one who set TMPDIR removes it.
static inline const char *scratch(void)
{
    static char path[256];
    if (!path[0]) {
        const char *parent = getenv("TMPDIR");
        snprintf(path, sizeof path, "%s/fuzz-XXXXXX", parent ? parent : "/tmp");
        require(mkdtemp(path) != NULL, "a directory can be made in TMPDIR");
    }
    return path;
}

// Removes the files in it.
static inline void scratch_clear(void)
{
    DIR *d = opendir(scratch());
    require(d != NULL, "the directory is still there");
    for (const struct dirent *entry; (entry = readdir(d));)
        unlinkat(dirfd(d), entry->d_name, 0);
    closedir(d);
}

static inline void file_put(const char *path, const void *bytes, size_t size)
{
    FILE *file = fopen(path, "wb");
    require(file && fwrite(bytes, 1, size, file) == size && fclose(file) == 0,
            "the files of an input can be written");
}

enum { ENTRIES_MAX = 16, ENTRY_NAME_MAX = 48 };

struct entry {
    char name[ENTRY_NAME_MAX]; // letters, digits, '-', '_' and '.', which is not the first
    const uint8_t *bytes;
    size_t size;
};

// The next "@@ " that begins a line of the input, or its end.
static inline size_t entry_mark(const uint8_t *data, size_t size, size_t from)
{
    for (size_t at = from; at + 4 <= size; at++)
        if (memcmp(data + at, "\n@@ ", 4) == 0)
            return at;
    return size;
}

// The files of an input, those with a name that another has already left out; *options is the size
// of what stands before the first.
static inline int entries_split(const uint8_t *data, size_t size, size_t *options,
                                struct entry entries[ENTRIES_MAX])
{
    int n = 0;
    size_t at = entry_mark(data, size, 0);
    *options = at;
    while (at < size && n < ENTRIES_MAX) {
        struct entry *e = &entries[n];
        size_t length = 0;
        for (at += 4; at < size && data[at] != '\n'; at++) {
            const char c = (char)data[at];
            const int plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' ||
                              c == '_' || (c >= '0' && c <= '9') || (c == '.' && length > 0);
            if (plain && length < ENTRY_NAME_MAX - 1)
                e->name[length++] = c;
        }
        e->name[length] = '\0';
        at += at < size;
        e->bytes = data + at;
        const size_t end = entry_mark(data, size, at);
        e->size = end - at;
        at = end;
        int known = length == 0;
        for (int i = 0; i < n; i++)
            known |= strcmp(entries[i].name, e->name) == 0;
        n += !known;
    }
    return n;
}
