// SPDX-License-Identifier: Apache-2.0
#include "snapshot/writer.h"

#include <assert.h>
#include <cjson/cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "snapshot/crc32c.h"
#include "snapshot/engine.h"
#include "snapshot/manifest.h"
#include "snapshot/pointer.h"
#include "snapshot/storage.h"

enum { DATA_OFFSET = 4096, NAME_MAX_SIZE = 128 };

_Static_assert((int)ENGINE_BLOCK == (int)MANIFEST_CHUNK, "each block has its checksum");
_Static_assert((int)WRITER_DIMS_MAX == (int)MANIFEST_DIMS_MAX, "what is written can be read");
_Static_assert((int)WRITER_FILES == (int)ENGINE_FILES, "each file has its blocks");
_Static_assert((int)WRITER_SCHEMA == (int)MANIFEST_SCHEMA, "what is written can be read");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "files are little-endian");

struct open_file {
    bool open;
    char name[NAME_MAX_SIZE], role[NAME_MAX_SIZE], tensor[NAME_MAX_SIZE]; // tensor "": a blob
    const struct dtype *dtype;
    int n_dims;
    uint64_t shape[WRITER_DIMS_MAX];
    uint64_t data_offset, size, put; // bytes of the file; put includes those in the block
    char *block;                     // of the engine, NULL: none yet
    size_t in_block;
    uint64_t row_size;
    uint32_t crc;
    uint64_t n_chunks, n_chunks_max;
    uint32_t *chunk_crc;
    void *shared; // for rooms that lie in two blocks
    size_t shared_size;
};

struct writer {
    struct engine *engine;
    struct storage *storage;
    char *root_path, *space, *format;
    char temporary[64], final[32];
    uint64_t generation;
    int root, directory;                              // handles, -1: none
    bool made;                                        // the temporary directory exists
    struct open_file files_open[WRITER_FILES], *file; // file: the one that was chosen
    cJSON *manifest, *files;                          // files belongs to manifest
    uint64_t bytes;
    uint32_t manifest_crc;
    int rc;
    char error[1024];
};

static int fail(struct writer *w, int rc, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static int fail(struct writer *w, int rc, const char *format, ...)
{
    if (w->rc == 0) {
        const int used = snprintf(w->error, sizeof w->error, "%s/%s: ", w->root_path, w->final);
        va_list args;
        va_start(args, format);
        if (used >= 0 && (size_t)used < sizeof w->error)
            vsnprintf(w->error + used, sizeof w->error - (size_t)used, format, args);
        va_end(args);
        w->rc = rc;
    }
    return w->rc;
}

static int fail_memory(struct writer *w)
{
    return fail(w, -ENOMEM, "out of memory");
}

int writer_fail(struct writer *w, int rc, const char *why)
{
    assert(rc < 0);
    return fail(w, rc, "%s", why);
}

const char *writer_error(const struct writer *w)
{
    return w->error;
}

uint64_t writer_bytes(const struct writer *w)
{
    return w->bytes;
}

// cJSON holds numbers as doubles and prints 15 digits when it can; ours are printed here, exactly.
static bool add_integer(cJSON *object, const char *key, uint64_t value)
{
    char text[24];
    snprintf(text, sizeof text, "%" PRIu64, value);
    return cJSON_AddRawToObject(object, key, text) != NULL;
}

static int check_free(struct writer *w, uint64_t needed)
{
    uint64_t there;
    const int rc = w->storage->ops->free_bytes(w->storage, w->root, &there);
    if (rc < 0)
        return fail(w, rc, "cannot tell the free space: %s", strerror(-rc));
    // 5 % above what is needed: directories, extents, and whoever else writes here.
    if (there < needed || there - needed < needed / 20)
        return fail(w, -ENOSPC, "%.1f MB are needed and %.1f MB are free", (double)needed / 1e6,
                    (double)there / 1e6);
    return 0;
}

static int manifest_start(struct writer *w)
{
    w->manifest = cJSON_CreateObject();
    if (!w->manifest || !cJSON_AddStringToObject(w->manifest, "format", w->format) ||
        !add_integer(w->manifest, "schema", WRITER_SCHEMA) ||
        !add_integer(w->manifest, "min_reader", 1) ||
        !cJSON_AddStringToObject(w->manifest, "kind", "full") ||
        !add_integer(w->manifest, "snapshot", w->generation) ||
        (w->space && !cJSON_AddStringToObject(w->manifest, "space", w->space)))
        return fail_memory(w);
    w->files = cJSON_CreateArray();
    return w->files ? 0 : fail_memory(w);
}

int writer_open(struct writer **writer, const struct writer_options *options, char *error,
                size_t error_size)
{
    assert(options->generation > 0 && options->generation <= MANIFEST_INTEGER_MAX);
    *writer = NULL;
    struct writer *w = calloc(1, sizeof *w);
    if (!w) {
        snprintf(error, error_size, "out of memory");
        return -ENOMEM;
    }
    w->engine = options->engine;
    w->storage = engine_storage(options->engine);
    w->generation = options->generation;
    w->root = w->directory = -1;
    writer_file(w, 0);
    snprintf(w->final, sizeof w->final, "%" PRIu64, options->generation);
    snprintf(w->temporary, sizeof w->temporary, ".tmp-%" PRIu64 "-%ld", options->generation,
             (long)getpid());
    w->root_path = strdup(options->root);
    w->format = strdup(options->format);
    w->space = options->space ? strdup(options->space) : NULL;
    const struct storage_ops *ops = w->storage->ops;
    if (!w->root_path || !w->format || (options->space && !w->space)) {
        snprintf(error, error_size, "out of memory");
        w->rc = -ENOMEM;
        goto close;
    }

    if (manifest_start(w) < 0)
        goto report;
    int rc = ops->open(w->storage, STORAGE_CWD, options->root, O_RDONLY | O_DIRECTORY, 0);
    if (rc < 0) {
        fail(w, rc, "cannot open the root directory: %s", strerror(-rc));
        goto report;
    }
    w->root = rc;
    if (check_free(w, options->bytes_expected) < 0)
        goto report;
    // rename(2) would put the new directory in the place of an empty one without a word.
    rc = ops->open(w->storage, w->root, w->final, O_RDONLY | O_DIRECTORY, 0);
    if (rc >= 0) {
        ops->close(w->storage, rc);
        fail(w, -EEXIST, "this generation exists");
        goto report;
    }
    rc = ops->make_directory(w->storage, w->root, w->temporary);
    if (rc < 0) {
        fail(w, rc, "cannot make %s: %s", w->temporary, strerror(-rc));
        goto report;
    }
    w->made = true;
    rc = ops->open(w->storage, w->root, w->temporary, O_RDONLY | O_DIRECTORY, 0);
    if (rc < 0) {
        fail(w, rc, "cannot open %s: %s", w->temporary, strerror(-rc));
        goto report;
    }
    w->directory = rc;
    *writer = w;
    return 0;
report:
    snprintf(error, error_size, "%s", w->error);
close:
    rc = w->rc;
    writer_close(w);
    return rc;
}

static void file_free(struct open_file *f)
{
    free(f->chunk_crc);
    free(f->shared);
    *f = (struct open_file){0};
}

static bool any_open(const struct writer *w)
{
    for (int i = 0; i < WRITER_FILES; i++)
        if (w->files_open[i].open)
            return true;
    return false;
}

static void files_discard(struct writer *w)
{
    if (!any_open(w))
        return;
    engine_files_abandon(w->engine);
    for (int i = 0; i < WRITER_FILES; i++)
        file_free(&w->files_open[i]);
}

void writer_close(struct writer *w)
{
    if (!w)
        return;
    files_discard(w);
    if (w->directory >= 0)
        w->storage->ops->close(w->storage, w->directory);
    // What cannot be removed now, the next catalog_next or catalog_open removes.
    if (w->made)
        storage_remove_directory(w->storage, w->root, w->temporary);
    if (w->root >= 0)
        w->storage->ops->close(w->storage, w->root);
    if (w->manifest && !cJSON_GetObjectItemCaseSensitive(w->manifest, "files"))
        cJSON_Delete(w->files);
    cJSON_Delete(w->manifest);
    free(w->space);
    free(w->format);
    free(w->root_path);
    free(w);
}

void writer_file(struct writer *w, int file)
{
    assert(file >= 0 && file < WRITER_FILES);
    w->file = &w->files_open[file];
    engine_file_choose(w->engine, file);
}

static int file_begin(struct writer *w)
{
    struct open_file *f = w->file;
    assert(f->name[0] != '\0' && f->name[0] != '.' && !strchr(f->name, '/'));
    if (check_free(w, f->size) < 0)
        return w->rc;
    f->n_chunks_max = f->size / ENGINE_BLOCK + (f->size % ENGINE_BLOCK != 0);
    f->chunk_crc = calloc((size_t)f->n_chunks_max + 1, sizeof *f->chunk_crc);
    if (!f->chunk_crc)
        return fail_memory(w);
    f->open = true;
    const int rc = engine_file_open(w->engine, w->directory, f->name, f->size);
    return rc < 0 ? fail(w, rc, "%s", engine_error(w->engine)) : 0;
}

// The header of a safetensors file, padded with spaces so that the data starts on a page.
static char *safetensors_header(struct writer *w, const struct writer_array *a, uint64_t data_size)
{
    char generation[24], shape[WRITER_DIMS_MAX * 24 + 8] = "[", offsets[64];
    snprintf(generation, sizeof generation, "%" PRIu64, w->generation);
    snprintf(offsets, sizeof offsets, "[0,%" PRIu64 "]", data_size);
    size_t used = 1;
    for (int i = 0; i < a->n_dims; i++)
        used += (size_t)snprintf(shape + used, sizeof shape - used, i ? ",%" PRIu64 : "%" PRIu64,
                                 a->shape[i]);
    snprintf(shape + used, sizeof shape - used, "]");

    char *text = NULL;
    cJSON *header = cJSON_CreateObject();
    cJSON *metadata = cJSON_AddObjectToObject(header, "__metadata__");
    cJSON *tensor = cJSON_AddObjectToObject(header, a->tensor);
    if (cJSON_AddStringToObject(metadata, "format", w->format) &&
        cJSON_AddStringToObject(metadata, "schema", "1") &&
        cJSON_AddStringToObject(metadata, "snapshot", generation) &&
        (!w->space || cJSON_AddStringToObject(metadata, "space", w->space)) &&
        cJSON_AddStringToObject(tensor, "dtype", w->file->dtype->name) &&
        cJSON_AddRawToObject(tensor, "shape", shape) &&
        cJSON_AddRawToObject(tensor, "data_offsets", offsets))
        text = cJSON_PrintUnformatted(header);
    cJSON_Delete(header);
    return text;
}

int writer_array_begin(struct writer *w, const struct writer_array *a)
{
    if (w->rc < 0)
        return w->rc;
    const struct dtype *dtype = dtype_find(a->dtype);
    assert(dtype && a->n_dims >= 0 && a->n_dims <= WRITER_DIMS_MAX);
    assert(strlen(a->file) < NAME_MAX_SIZE && strlen(a->tensor) < NAME_MAX_SIZE &&
           strlen(a->role) < NAME_MAX_SIZE && a->tensor[0] != '\0');
    struct open_file *f = w->file;
    assert(!f->open);
    *f = (struct open_file){.dtype = dtype, .n_dims = a->n_dims, .row_size = dtype->size};
    snprintf(f->name, sizeof f->name, "%s", a->file);
    snprintf(f->role, sizeof f->role, "%s", a->role);
    snprintf(f->tensor, sizeof f->tensor, "%s", a->tensor);
    uint64_t data_size = dtype->size;
    for (int i = 0; i < a->n_dims; i++) {
        f->shape[i] = a->shape[i];
        const bool overflow =
            __builtin_mul_overflow(data_size, a->shape[i], &data_size) ||
            (i > 0 && __builtin_mul_overflow(f->row_size, a->shape[i], &f->row_size));
        assert(!overflow && data_size < MANIFEST_INTEGER_MAX);
    }
    f->data_offset = DATA_OFFSET;
    f->size = DATA_OFFSET + data_size;

    char *header = safetensors_header(w, a, data_size);
    if (!header)
        return fail_memory(w);
    const size_t n = strlen(header);
    int rc;
    if (n > DATA_OFFSET - sizeof(uint64_t)) {
        rc = fail(w, -EINVAL, "%s: the header has %zu bytes, more than a page", a->file, n);
        goto free;
    }
    rc = file_begin(w);
    if (rc < 0)
        goto free;
    char page[DATA_OFFSET];
    const uint64_t length = DATA_OFFSET - sizeof length;
    memcpy(page, &length, sizeof length);
    memcpy(page + sizeof length, header, n);
    memset(page + sizeof length + n, ' ', DATA_OFFSET - sizeof length - n);
    rc = writer_append(w, page, sizeof page);
free:
    free(header);
    return rc;
}

int writer_blob_begin(struct writer *w, const char *file, const char *role, uint64_t size)
{
    if (w->rc < 0)
        return w->rc;
    assert(strlen(file) < NAME_MAX_SIZE && strlen(role) < NAME_MAX_SIZE);
    struct open_file *f = w->file;
    assert(!f->open);
    *f = (struct open_file){
        .dtype = dtype_find("U8"), .n_dims = 1, .shape = {size}, .row_size = 1, .size = size};
    snprintf(f->name, sizeof f->name, "%s", file);
    snprintf(f->role, sizeof f->role, "%s", role);
    return file_begin(w);
}

void *writer_reserve(struct writer *w, size_t *n)
{
    if (w->rc < 0)
        return NULL;
    struct open_file *f = w->file;
    assert(f->open && f->put < f->size);
    if (!f->block)
        f->block = engine_block_get(w->engine);
    if (!f->block) {
        fail(w, engine_status(w->engine), "%s", engine_error(w->engine));
        return NULL;
    }
    const uint64_t left = f->size - f->put;
    const size_t room = ENGINE_BLOCK - f->in_block;
    const size_t there = left < room ? (size_t)left : room;
    if (*n > there)
        *n = there;
    return f->block + f->in_block;
}

int writer_commit(struct writer *w, size_t n)
{
    if (w->rc < 0)
        return w->rc;
    struct open_file *f = w->file;
    assert(f->open && f->in_block + n <= ENGINE_BLOCK && n <= f->size - f->put);
    f->in_block += n;
    f->put += n;
    if (f->in_block == 0 || (f->in_block < ENGINE_BLOCK && f->put < f->size))
        return 0;
    const uint32_t crc = crc32c(0, f->block, f->in_block);
    f->chunk_crc[f->n_chunks++] = crc;
    f->crc = crc32c_combine(f->crc, crc, f->in_block);
    const int rc = engine_block_put(w->engine, f->in_block);
    f->block = NULL;
    f->in_block = 0;
    return rc < 0 ? fail(w, rc, "%s", engine_error(w->engine)) : 0;
}

int writer_append(struct writer *w, const void *bytes, size_t n)
{
    while (n > 0 && w->rc == 0) {
        size_t piece = n;
        void *room = writer_reserve(w, &piece);
        if (!room)
            break;
        memcpy(room, bytes, piece);
        writer_commit(w, piece);
        bytes = (const char *)bytes + piece;
        n -= piece;
    }
    return w->rc;
}

void *writer_room(struct writer *w, size_t n)
{
    size_t there = n;
    void *room = writer_reserve(w, &there);
    if (!room || there == n)
        return room;
    struct open_file *f = w->file;
    assert(n <= f->size - f->put);
    if (n > f->shared_size) {
        free(f->shared);
        f->shared = malloc(n);
        f->shared_size = f->shared ? n : 0;
        if (!f->shared)
            fail_memory(w);
    }
    return f->shared;
}

int writer_fill(struct writer *w, const void *room, size_t n)
{
    return room && room == w->file->shared ? writer_append(w, room, n) : writer_commit(w, n);
}

static char *base64(const void *bytes, size_t n)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const uint8_t *in = bytes;
    char *text = malloc((n + 2) / 3 * 4 + 1), *out = text;
    if (!text)
        return NULL;
    for (size_t i = 0; i < n; i += 3) {
        const size_t take = n - i < 3 ? n - i : 3;
        uint32_t group = 0;
        for (size_t j = 0; j < 3; j++)
            group = group << 8 | (j < take ? in[i + j] : 0);
        for (size_t j = 0; j < 4; j++)
            *out++ = j <= take ? digits[group >> (18 - 6 * j) & 63] : '=';
    }
    *out = '\0';
    return text;
}

static bool describe(const struct open_file *f, cJSON *entry)
{
    char crc[16], shape[WRITER_DIMS_MAX * 24 + 8] = "[";
    size_t used = 1;
    for (int i = 0; i < f->n_dims; i++)
        used += (size_t)snprintf(shape + used, sizeof shape - used, i ? ", %" PRIu64 : "%" PRIu64,
                                 f->shape[i]);
    snprintf(shape + used, sizeof shape - used, "]");
    snprintf(crc, sizeof crc, "%08" PRIx32, f->crc);

    if (!cJSON_AddStringToObject(entry, "name", f->name) ||
        !cJSON_AddStringToObject(entry, "role", f->role) ||
        (f->tensor[0] != '\0' && !cJSON_AddStringToObject(entry, "tensor", f->tensor)) ||
        !cJSON_AddStringToObject(entry, "dtype", f->dtype->name_lower) ||
        !cJSON_AddRawToObject(entry, "shape", shape) ||
        !add_integer(entry, "data_offset", f->data_offset) ||
        !add_integer(entry, "row_stride", f->row_size) || !add_integer(entry, "size", f->size) ||
        !cJSON_AddStringToObject(entry, "crc32c", crc))
        return false;
    cJSON *chunks = cJSON_AddObjectToObject(entry, "chunk_crc32c");
    char *values = base64(f->chunk_crc, (size_t)f->n_chunks * sizeof *f->chunk_crc);
    const bool added = values && add_integer(chunks, "chunk", MANIFEST_CHUNK) &&
                       cJSON_AddStringToObject(chunks, "values_b64", values);
    free(values);
    return added;
}

int writer_end(struct writer *w)
{
    if (w->rc < 0)
        return w->rc;
    struct open_file *f = w->file;
    assert(f->open && f->put == f->size);
    const int rc = engine_file_close(w->engine);
    if (rc < 0)
        return fail(w, rc, "%s", engine_error(w->engine));
    w->bytes += f->size;
    cJSON *entry = cJSON_CreateObject();
    if (!entry || !describe(f, entry) || !cJSON_AddItemToArray(w->files, entry)) {
        cJSON_Delete(entry);
        fail_memory(w);
    }
    file_free(f);
    return w->rc;
}

int writer_array(struct writer *w, const struct writer_array *array, const void *bytes)
{
    writer_array_begin(w, array);
    if (w->rc == 0)
        writer_append(w, bytes, (size_t)(w->file->size - w->file->put));
    return writer_end(w);
}

int writer_blob(struct writer *w, const char *file, const char *role, const void *bytes, size_t n)
{
    writer_blob_begin(w, file, role, n);
    writer_append(w, bytes, n);
    return writer_end(w);
}

static void assert_key_is_new(const struct writer *w, const char *key)
{
    assert(!cJSON_GetObjectItemCaseSensitive(w->manifest, key));
    assert(strcmp(key, "files") != 0 && strcmp(key, "space") != 0 &&
           strcmp(key, "manifest_crc32c") != 0);
}

int writer_manifest_text(struct writer *w, const char *key, const char *text)
{
    if (w->rc < 0)
        return w->rc;
    assert_key_is_new(w, key);
    return cJSON_AddStringToObject(w->manifest, key, text) ? 0 : fail_memory(w);
}

static int manifest_raw(struct writer *w, const char *key, const char *json)
{
    if (w->rc < 0)
        return w->rc;
    assert_key_is_new(w, key);
    return cJSON_AddRawToObject(w->manifest, key, json) ? 0 : fail_memory(w);
}

int writer_manifest_integer(struct writer *w, const char *key, int64_t value)
{
    char text[24];
    snprintf(text, sizeof text, "%" PRId64, value);
    return manifest_raw(w, key, text);
}

int writer_manifest_number(struct writer *w, const char *key, double value)
{
    char text[32] = "null";
    if (isfinite(value))
        snprintf(text, sizeof text, "%.17g", value);
    return manifest_raw(w, key, text);
}

int writer_manifest_json(struct writer *w, const char *key, const char *json)
{
    if (w->rc < 0)
        return w->rc;
    cJSON *value = cJSON_ParseWithOpts(json, NULL, true);
    if (!value)
        return fail(w, -EINVAL, "manifest.json: the value of \"%s\" is not JSON", key);
    cJSON_Delete(value);
    // The text itself goes in: parsed, its numbers would pass through doubles.
    return manifest_raw(w, key, json);
}

static char *manifest_text(struct writer *w, size_t *n)
{
    if (!cJSON_AddItemToObject(w->manifest, "files", w->files))
        return NULL;
    char *printed = cJSON_Print(w->manifest);
    if (!printed)
        return NULL;
    size_t used = strlen(printed);
    assert(used >= 2 && printed[used - 1] == '}' && printed[used - 2] == '\n');
    used -= 2; // the end of the object, which the seal brings again
    char *text = realloc(printed, used + MANIFEST_SEAL_SIZE + 1);
    if (!text) {
        free(printed);
        return NULL;
    }
    *n = used + (size_t)manifest_seal(text + used, crc32c(0, text, used));
    return text;
}

static int point_latest(struct writer *w)
{
    const int lock = pointer_lock(w->storage, w->root);
    if (lock < 0)
        return fail(w, lock, "cannot lock .pointer: %s", strerror(-lock));
    const int rc = pointer_publish(w->storage, w->root,
                                   &(struct pointer_target){w->generation, w->manifest_crc});
    pointer_unlock(w->storage, lock);
    return rc < 0 ? fail(w, rc, "cannot replace LATEST: %s", strerror(-rc)) : 0;
}

int writer_publish(struct writer *w)
{
    assert(w->rc < 0 || !any_open(w));
    assert(w->rc < 0 || w->made); // once
    if (w->rc < 0)
        return w->rc;
    static const char name[] = "manifest.json", fresh[] = "manifest.tmp";
    const struct storage_ops *ops = w->storage->ops;
    size_t n;
    char *text = manifest_text(w, &n);
    if (!text)
        return fail_memory(w);
    if (n > MANIFEST_SIZE_MAX) {
        fail(w, -EFBIG, "manifest.json: %zu bytes, more than readers take", n);
        goto free;
    }
    w->manifest_crc = crc32c(0, text, n);

    // The manifest goes in last and whole: a directory that has one is complete.
    int rc = storage_put(w->storage, w->directory, fresh, text, n);
    if (rc == 0)
        rc = ops->rename(w->storage, w->directory, fresh, name);
    if (rc < 0) {
        fail(w, rc, "cannot write manifest.json: %s", strerror(-rc));
        goto free;
    }
    // The names of the files must be durable before the directory has its own.
    rc = ops->sync(w->storage, w->directory);
    if (rc < 0) {
        fail(w, rc, "cannot sync %s: %s", w->temporary, strerror(-rc));
        goto free;
    }
    rc = ops->rename(w->storage, w->root, w->temporary, w->final);
    if (rc < 0) {
        fail(w, rc, "cannot rename %s: %s", w->temporary, strerror(-rc));
        goto free;
    }
    // From here readers may have it. It is whole, so if the rest fails it stays: unacknowledged,
    // and the next generation replaces it.
    w->made = false;
    rc = ops->sync(w->storage, w->root);
    if (rc < 0) {
        fail(w, rc, "cannot sync the root directory: %s", strerror(-rc));
        goto free;
    }
    w->bytes += n;
    point_latest(w);
free:
    free(text);
    return w->rc;
}
