// SPDX-License-Identifier: Apache-2.0
#include "snapshot/ids.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "snapshot/id_index.h"
#include "snapshot/writer.h"

enum { FILE_NAME_SIZE = 128, ROWS = 512 };

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

// The size of what id_text gives, without making it.
static size_t id_size(const struct ids_entry *id)
{
    if (id->kind == IDS_STRING)
        return id->size;
    size_t size = 1 + id->negative;
    for (uint64_t left = id->negative ? -id->integer : id->integer; left >= 10; left /= 10)
        size++;
    return size;
}

// What the first look at a table finds and the files that follow are made of.
struct column_sizes {
    uint64_t total;
    uint32_t *size; // of each row's bytes
};

static int sizes_open(struct column_sizes *s, struct writer *w, uint64_t n)
{
    *s = (struct column_sizes){0, malloc((n + 1) * sizeof *s->size)};
    return s->size ? 0 : writer_fail(w, -ENOMEM, "not enough memory for the sizes of strings");
}

static void sizes_set(struct column_sizes *s, uint64_t row, size_t size)
{
    assert(size <= UINT32_MAX);
    s->size[row] = (uint32_t)size;
    s->total += size;
}

static int write_offsets(struct writer *w, const char *file, const char *role, uint64_t n,
                         const struct column_sizes *s)
{
    uint64_t offset = 0;
    writer_array_begin(w, &(struct writer_array){file, "offsets", role, "U64", 1, {n + 1}});
    writer_append(w, &offset, sizeof offset);
    for (uint64_t row = 0, end; row < n; row = end) {
        end = n - row < ROWS ? n : row + ROWS;
        const size_t size = (size_t)(end - row) * sizeof offset;
        uint64_t *room = writer_room(w, size);
        if (!room)
            break;
        for (uint64_t i = row; i < end; i++)
            room[i - row] = offset += s->size[i];
        writer_fill(w, room, size);
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
    struct column_sizes sizes;
    const char *bytes;
    size_t size;
    int rc = sizes_open(&sizes, w, n);
    if (rc < 0)
        return rc;
    for (uint64_t row = 0; row < n; row++) {
        get(arg, row, &bytes, &size);
        sizes_set(&sizes, row, size);
    }
    writer_blob_begin(w, file, role, sizes.total);
    for (uint64_t row = 0; row < n && sizes.total > 0; row++) {
        get(arg, row, &bytes, &size);
        writer_append(w, bytes, size);
    }
    writer_end(w);
    rc = write_offsets(w, offsets_file, offsets_role, n, &sizes);
    free(sizes.size);
    return rc;
}

// A table of ids while its files are written.
struct ids {
    struct writer *w;
    const char *table;
    uint64_t n;
    ids_get_fn *get;
    void *arg;
    bool integers;             // all are, of at least 0
    struct column_sizes sizes; // otherwise
    uint8_t *kind;
    struct id_index index;
};

static int ids_open(struct ids *ids)
{
    int rc = sizes_open(&ids->sizes, ids->w, ids->n);
    ids->kind = malloc(ids->n + 1);
    if (rc == 0 && !ids->kind)
        rc = writer_fail(ids->w, -ENOMEM, "not enough memory for the kinds of ids");
    ids->integers = true;
    for (uint64_t row = 0; row < ids->n && rc == 0; row++) {
        struct ids_entry id = {0};
        ids->get(ids->arg, row, &id);
        ids->kind[row] = (uint8_t)id.kind;
        ids->integers = ids->integers && id.kind == IDS_INTEGER && !id.negative;
        sizes_set(&ids->sizes, row, id_size(&id));
    }
    if (rc < 0)
        return rc;
    rc = id_index_open(&ids->index, ids->integers ? ID_INDEX_INTEGERS : ID_INDEX_HASHES, ids->n,
                       index_seed);
    return rc == 0 ? 0 : writer_fail(ids->w, rc, "not enough memory for the index of the ids");
}

// The ids themselves, and each into the index on the way.
static int write_integers(struct ids *ids)
{
    struct writer *w = ids->w;
    char file[FILE_NAME_SIZE], role[FILE_NAME_SIZE];
    snprintf(file, sizeof file, "%s_ids.safetensors", ids->table);
    snprintf(role, sizeof role, "%s_ids", ids->table);
    writer_array_begin(w, &(struct writer_array){file, "ids", role, "U64", 1, {ids->n}});
    for (uint64_t row = 0; row < ids->n; row++) {
        struct ids_entry id = {0};
        ids->get(ids->arg, row, &id);
        writer_append(w, &id.integer, sizeof id.integer);
        id_index_add(&ids->index, id.integer, (uint32_t)row);
    }
    return writer_end(w);
}

static int write_texts(struct ids *ids)
{
    struct writer *w = ids->w;
    char file[FILE_NAME_SIZE], role[FILE_NAME_SIZE];
    snprintf(file, sizeof file, "%s_ids_str.bin", ids->table);
    snprintf(role, sizeof role, "%s_ids_bytes", ids->table);
    writer_blob_begin(w, file, role, ids->sizes.total);
    for (uint64_t row = 0; row < ids->n; row++) {
        struct ids_entry id = {0};
        char number[24];
        const char *bytes;
        ids->get(ids->arg, row, &id);
        const size_t size = id_text(&id, number, &bytes);
        writer_append(w, bytes, size);
        id_index_add(&ids->index, id_index_key((int)id.kind, bytes, size), (uint32_t)row);
    }
    writer_end(w);
    snprintf(file, sizeof file, "%s_ids_off.safetensors", ids->table);
    snprintf(role, sizeof role, "%s_ids_offsets", ids->table);
    write_offsets(w, file, role, ids->n, &ids->sizes);
    snprintf(file, sizeof file, "%s_ids_kind.safetensors", ids->table);
    snprintf(role, sizeof role, "%s_ids_kind", ids->table);
    return writer_array(w, &(struct writer_array){file, "kind", role, "U8", 1, {ids->n}},
                        ids->kind);
}

int ids_write(struct writer *w, const char *table, uint64_t n, ids_get_fn *get, void *arg)
{
    assert(n < ID_INDEX_EMPTY);
    struct ids ids = {.w = w, .table = table, .n = n, .get = get, .arg = arg};
    char file[FILE_NAME_SIZE], role[FILE_NAME_SIZE];
    snprintf(file, sizeof file, "%s_index.oidx", table);
    snprintf(role, sizeof role, "%s_index", table);
    int rc = ids_open(&ids);
    if (rc == 0) {
        rc = ids.integers ? write_integers(&ids) : write_texts(&ids);
        if (rc == 0)
            rc = id_index_write(&ids.index, w, file, role);
        id_index_close(&ids.index);
    }
    free(ids.sizes.size);
    free(ids.kind);
    return rc;
}
