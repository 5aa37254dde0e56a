// SPDX-License-Identifier: Apache-2.0
#include "snapshot/ids.h"

#include <assert.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>

#include "snapshot/id_index.h"
#include "snapshot/writer.h"

enum { FILE_NAME_SIZE = 128 };

// The seed of every index: the file then depends on the ids alone.
static const uint64_t index_seed = 0x74776f746f776572;

// The bytes of an id as a string table keeps them.
static size_t id_text(const struct ids_entry *id, char number[24], const char **bytes)
{
    if (id->kind == IDS_STRING) {
        *bytes = id->bytes;
        return id->size;
    }
    *bytes = number;
    return (size_t)(id->negative ? snprintf(number, 24, "%" PRId64, (int64_t)id->integer)
                                 : snprintf(number, 24, "%" PRIu64, id->integer));
}

static bool all_plain_integers(uint64_t n, ids_get_fn *get, void *arg)
{
    for (uint64_t row = 0; row < n; row++) {
        struct ids_entry id = {0};
        get(arg, row, &id);
        if (id.kind != IDS_INTEGER || id.negative)
            return false;
    }
    return true;
}

static int write_integers(struct writer *w, const char *table, uint64_t n, ids_get_fn *get,
                          void *arg)
{
    char file[FILE_NAME_SIZE], role[FILE_NAME_SIZE];
    snprintf(file, sizeof file, "%s_ids.safetensors", table);
    snprintf(role, sizeof role, "%s_ids", table);
    writer_array_begin(w, &(struct writer_array){file, "ids", role, "U64", 1, {n}});
    for (uint64_t row = 0; row < n; row++) {
        struct ids_entry id = {0};
        get(arg, row, &id);
        writer_append(w, &id.integer, sizeof id.integer);
    }
    return writer_end(w);
}

// A string column from whatever gives strings.
struct strings {
    strings_get_fn *get;
    void *arg;
};

static int write_strings(struct writer *w, const char *bytes_file, const char *bytes_role,
                         const char *offsets_file, const char *offsets_role, uint64_t n,
                         const struct strings *s)
{
    const char *bytes;
    size_t size;
    uint64_t total = 0;
    for (uint64_t row = 0; row < n; row++) {
        s->get(s->arg, row, &bytes, &size);
        total += size;
    }
    writer_blob_begin(w, bytes_file, bytes_role, total);
    for (uint64_t row = 0; row < n; row++) {
        s->get(s->arg, row, &bytes, &size);
        writer_append(w, bytes, size);
    }
    writer_end(w);

    writer_array_begin(
        w, &(struct writer_array){offsets_file, "offsets", offsets_role, "U64", 1, {n + 1}});
    uint64_t offset = 0;
    writer_append(w, &offset, sizeof offset);
    for (uint64_t row = 0; row < n; row++) {
        s->get(s->arg, row, &bytes, &size);
        offset += size;
        writer_append(w, &offset, sizeof offset);
    }
    return writer_end(w);
}

int strings_write(struct writer *w, const char *name, uint64_t n, strings_get_fn *get, void *arg)
{
    char file[FILE_NAME_SIZE], role[FILE_NAME_SIZE];
    char offsets_file[FILE_NAME_SIZE], offsets_role[FILE_NAME_SIZE];
    snprintf(file, sizeof file, "%s.bin", name);
    snprintf(role, sizeof role, "%s_bytes", name);
    snprintf(offsets_file, sizeof offsets_file, "%s_off.safetensors", name);
    snprintf(offsets_role, sizeof offsets_role, "%s_offsets", name);
    return write_strings(w, file, role, offsets_file, offsets_role, n, &(struct strings){get, arg});
}

struct id_strings {
    ids_get_fn *get;
    void *arg;
    char number[24];
};

static void id_string(void *arg, uint64_t row, const char **bytes, size_t *size)
{
    struct id_strings *s = arg;
    struct ids_entry id = {0};
    s->get(s->arg, row, &id);
    *size = id_text(&id, s->number, bytes);
}

static int write_texts(struct writer *w, const char *table, uint64_t n, ids_get_fn *get, void *arg)
{
    char file[FILE_NAME_SIZE], role[FILE_NAME_SIZE];
    char offsets_file[FILE_NAME_SIZE], offsets_role[FILE_NAME_SIZE];
    snprintf(file, sizeof file, "%s_ids_str.bin", table);
    snprintf(role, sizeof role, "%s_ids_bytes", table);
    snprintf(offsets_file, sizeof offsets_file, "%s_ids_off.safetensors", table);
    snprintf(offsets_role, sizeof offsets_role, "%s_ids_offsets", table);
    struct id_strings ids = {.get = get, .arg = arg};
    write_strings(w, file, role, offsets_file, offsets_role, n, &(struct strings){id_string, &ids});

    snprintf(file, sizeof file, "%s_ids_kind.safetensors", table);
    snprintf(role, sizeof role, "%s_ids_kind", table);
    writer_array_begin(w, &(struct writer_array){file, "kind", role, "U8", 1, {n}});
    for (uint64_t row = 0; row < n; row++) {
        struct ids_entry id = {0};
        get(arg, row, &id);
        const uint8_t kind = (uint8_t)id.kind;
        writer_append(w, &kind, 1);
    }
    return writer_end(w);
}

static int write_index(struct writer *w, const char *table, bool integers, uint64_t n,
                       ids_get_fn *get, void *arg)
{
    struct id_index x;
    int rc = id_index_open(&x, integers ? ID_INDEX_INTEGERS : ID_INDEX_HASHES, n, index_seed);
    if (rc < 0)
        return writer_fail(w, rc, "not enough memory for the index of the ids");
    for (uint64_t row = 0; row < n; row++) {
        struct ids_entry id = {0};
        get(arg, row, &id);
        uint64_t key = id.integer;
        if (!integers) {
            char number[24];
            const char *bytes;
            const size_t size = id_text(&id, number, &bytes);
            key = id_index_key((int)id.kind, bytes, size);
        }
        id_index_add(&x, key, (uint32_t)row);
    }
    char file[FILE_NAME_SIZE], role[FILE_NAME_SIZE];
    snprintf(file, sizeof file, "%s_index.oidx", table);
    snprintf(role, sizeof role, "%s_index", table);
    rc = id_index_write(&x, w, file, role);
    id_index_close(&x);
    return rc;
}

int ids_write(struct writer *w, const char *table, uint64_t n, ids_get_fn *get, void *arg)
{
    assert(n < ID_INDEX_EMPTY);
    const bool integers = all_plain_integers(n, get, arg);
    const int rc =
        integers ? write_integers(w, table, n, get, arg) : write_texts(w, table, n, get, arg);
    return rc < 0 ? rc : write_index(w, table, integers, n, get, arg);
}
