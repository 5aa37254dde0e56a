// SPDX-License-Identifier: Apache-2.0
#include "snapshot/twotower_reader.h"

#include <cjson/cJSON.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "snapshot/crc32c.h"
#include "snapshot/id_index.h"
#include "snapshot/manifest.h"
#include "snapshot/storage.h"

_Static_assert(TT_DIMS_MAX == MANIFEST_DIMS_MAX, "what is read can be shown");
_Static_assert(TT_NO_ROW == ID_INDEX_EMPTY, "one number for no row");

struct mapping {
    const unsigned char *bytes; // the file; NULL when it is empty
    size_t size;
};

struct tt_reader {
    char *path, *text; // of the directory; of the manifest
    int lock;          // manifest.json, shared
    struct manifest manifest;
    struct tt_array *arrays; // both in the order of the manifest
    struct mapping *mappings;
    size_t n_mapped;
};

struct sentence {
    char *text;
    size_t size;
};

static int say(const struct sentence *s, int rc, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static int say(const struct sentence *s, int rc, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(s->text, s->size, format, args);
    va_end(args);
    return rc;
}

static int open_regular(int directory, const char *name, uint64_t *size)
{
    *size = 0;
    const int fd =
        openat(directory, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return -errno;
    struct stat st;
    int rc = fstat(fd, &st) < 0 ? -errno : S_ISREG(st.st_mode) ? 0 : -EBADMSG;
    if (rc < 0) {
        close(fd);
        return rc;
    }
    *size = (uint64_t)st.st_size;
    return fd;
}

static int map_file(struct tt_reader *r, int directory, const struct manifest_file *f,
                    struct mapping *m, const struct sentence *error)
{
    uint64_t size;
    const int fd = open_regular(directory, f->name, &size);
    if (fd < 0)
        return say(error, fd, "%s/%s: cannot open: %s", r->path, f->name, strerror(-fd));
    int rc = 0;
    if (size != f->size) {
        rc = say(error, -EBADMSG, "%s/%s: %" PRIu64 " bytes where the manifest says %" PRIu64,
                 r->path, f->name, size, f->size);
    } else if (size > 0) {
        void *bytes = mmap(NULL, (size_t)size, PROT_READ, MAP_SHARED, fd, 0);
        if (bytes == MAP_FAILED)
            rc = say(error, -errno, "%s/%s: cannot map: %s", r->path, f->name, strerror(errno));
        else
            *m = (struct mapping){bytes, (size_t)size};
    }
    close(fd);
    return rc;
}

static int map_files(struct tt_reader *r, int directory, const struct sentence *error)
{
    // Where an array has no bytes at all, its data still points somewhere.
    static const _Alignas(64) unsigned char nothing[64];
    const size_t n = r->manifest.n_files;
    r->arrays = calloc(n + 1, sizeof *r->arrays);
    r->mappings = calloc(n + 1, sizeof *r->mappings);
    if (!r->arrays || !r->mappings)
        return say(error, -ENOMEM, "%s: out of memory", r->path);
    for (size_t i = 0; i < n; i++) {
        const struct manifest_file *f = &r->manifest.files[i];
        struct mapping *m = &r->mappings[r->n_mapped++];
        const int rc = map_file(r, directory, f, m, error);
        if (rc < 0)
            return rc;
        struct tt_array *a = &r->arrays[i];
        *a = (struct tt_array){
            .name = f->name,
            .role = f->role,
            .tensor = f->tensor,
            .dtype = f->dtype->name,
            .n_dims = f->n_dims,
            .size = f->data_size,
            .data = f->data_size > 0 ? m->bytes + f->data_offset : nothing,
        };
        memcpy(a->shape, f->shape, sizeof a->shape);
    }
    return 0;
}

// crc: what LATEST says of the manifest, or NULL.
static int open_generation(struct tt_reader **reader, int root, const char *root_path,
                           const char *name, const uint32_t *crc, const struct sentence *error)
{
    struct tt_reader *r = calloc(1, sizeof *r);
    if (!r)
        return say(error, -ENOMEM, "out of memory");
    r->lock = -1;
    int rc = 0, directory = -1;
    size_t n = 0;
    const int length = snprintf(NULL, 0, name ? "%s/%s" : "%s", root_path, name ? name : "");
    r->path = malloc((size_t)length + 1);
    if (!r->path) {
        rc = say(error, -ENOMEM, "out of memory");
        goto close;
    }
    snprintf(r->path, (size_t)length + 1, name ? "%s/%s" : "%s", root_path, name ? name : "");
    directory = openat(root, name ? name : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0) {
        rc = say(error, -errno, "%s: cannot open: %s", r->path, strerror(errno));
        goto close;
    }
    uint64_t size;
    r->lock = open_regular(directory, "manifest.json", &size);
    if (r->lock < 0) {
        rc = say(error, r->lock, "%s/manifest.json: cannot open: %s", r->path, strerror(-r->lock));
        goto close;
    }
    flock(r->lock, LOCK_SH | LOCK_NB); // a wish: some file systems have no locks
    rc = storage_get(&storage_disk, directory, "manifest.json", MANIFEST_SIZE_MAX, &r->text, &n);
    if (rc < 0) {
        rc = say(error, rc, "%s/manifest.json: cannot read: %s", r->path, strerror(-rc));
        goto close;
    }
    char reason[384];
    rc = manifest_parse(&r->manifest, r->text, n, reason, sizeof reason);
    if (rc < 0) {
        say(error, rc, "%s: %s", r->path, reason);
        goto close;
    }
    uint64_t generation;
    if (crc && *crc != r->manifest.crc32c) {
        rc = say(error, -EBADMSG, "%s: manifest.json is not the one LATEST means", r->path);
        goto close;
    }
    if (name && (!generation_parse(name, &generation) || generation != r->manifest.generation)) {
        rc = say(error, -EBADMSG, "%s: the manifest is that of %" PRIu64, r->path,
                 r->manifest.generation);
        goto close;
    }
    rc = map_files(r, directory, error);
    if (rc < 0)
        goto close;
    close(directory);
    *reader = r;
    return 0;
close:
    if (directory >= 0)
        close(directory);
    tt_close(r);
    return rc;
}

static int latest_read(int root, uint64_t *generation, uint32_t *crc)
{
    char *text;
    size_t n;
    const int rc = storage_get(&storage_disk, root, "LATEST", LATEST_SIZE_MAX, &text, &n);
    if (rc < 0)
        return rc;
    const bool parsed = latest_parse(text, n, generation, crc);
    free(text);
    return parsed ? 0 : -EBADMSG;
}

static int open_latest(struct tt_reader **r, int root, const char *path,
                       const struct sentence *error)
{
    char name[32];
    uint64_t generation;
    uint32_t crc;
    const int rc = latest_read(root, &generation, &crc);
    if (rc == -EBADMSG)
        return say(error, rc, "%s/LATEST: not \"<number> <crc32c>\"", path);
    if (rc < 0)
        return say(error, rc, "%s/LATEST: cannot read: %s", path, strerror(-rc));
    snprintf(name, sizeof name, "%" PRIu64, generation);
    return open_generation(r, root, path, name, &crc, error);
}

// The largest generation below limit, 0 when there is none.
static int generation_below(int root, uint64_t limit, uint64_t *found)
{
    *found = 0;
    const int fd = openat(root, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    if (!d) {
        const int rc = -errno;
        if (fd >= 0)
            close(fd);
        return rc;
    }
    for (const struct dirent *entry; (entry = readdir(d));) {
        uint64_t generation;
        if (generation_parse(entry->d_name, &generation) && generation < limit &&
            generation > *found)
            *found = generation;
    }
    closedir(d);
    return 0;
}

static int open_newest(struct tt_reader **r, int root, const char *path,
                       const struct sentence *error)
{
    uint64_t generation = UINT64_MAX;
    bool any = false;
    for (;;) {
        const int rc = generation_below(root, generation, &generation);
        if (rc < 0)
            return say(error, rc, "%s: cannot list: %s", path, strerror(-rc));
        if (generation == 0)
            break;
        any = true;
        char name[32];
        snprintf(name, sizeof name, "%" PRIu64, generation);
        if (open_generation(r, root, path, name, NULL, error) == 0)
            return 0;
    }
    // With directories there, the sentence is about the last that was refused.
    return any ? -ENOENT : say(error, -ENOENT, "%s: no snapshot here", path);
}

int tt_open(struct tt_reader **r, const char *path, char *error, size_t error_size)
{
    const struct sentence sentence = {error, error_size};
    *r = NULL;
    const int root = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (root < 0)
        return say(&sentence, -errno, "%s: cannot open: %s", path, strerror(errno));
    int rc;
    if (faccessat(root, "manifest.json", F_OK, 0) == 0)
        rc = open_generation(r, root, path, NULL, NULL, &sentence);
    else if ((rc = open_latest(r, root, path, &sentence)) < 0)
        rc = open_newest(r, root, path, &sentence);
    close(root);
    return rc;
}

int tt_moved(const struct tt_reader *r, const char *path)
{
    uint64_t generation;
    uint32_t crc;
    const int root = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (root < 0)
        return -errno;
    const int rc = latest_read(root, &generation, &crc);
    close(root);
    return rc < 0 ? rc : generation != r->manifest.generation || crc != r->manifest.crc32c;
}

void tt_close(struct tt_reader *r)
{
    if (!r)
        return;
    for (size_t i = 0; i < r->n_mapped; i++)
        if (r->mappings[i].bytes)
            munmap((void *)r->mappings[i].bytes, r->mappings[i].size);
    free(r->mappings);
    free(r->arrays);
    manifest_free(&r->manifest);
    if (r->lock >= 0)
        close(r->lock);
    free(r->text);
    free(r->path);
    free(r);
}

uint64_t tt_snapshot(const struct tt_reader *r)
{
    return r->manifest.generation;
}

const char *tt_path(const struct tt_reader *r)
{
    return r->path;
}

const char *tt_format(const struct tt_reader *r)
{
    return r->manifest.format;
}

const char *tt_manifest_json(const struct tt_reader *r)
{
    return r->text;
}

int tt_n_arrays(const struct tt_reader *r)
{
    return (int)r->manifest.n_files;
}

const struct tt_array *tt_array_at(const struct tt_reader *r, int i)
{
    return i >= 0 && i < tt_n_arrays(r) ? &r->arrays[i] : NULL;
}

const struct tt_array *tt_find(const struct tt_reader *r, const char *name)
{
    for (size_t i = 0; i < r->manifest.n_files; i++)
        if (strcmp(r->arrays[i].name, name) == 0)
            return &r->arrays[i];
    for (size_t i = 0; i < r->manifest.n_files; i++)
        if (strcmp(r->arrays[i].role, name) == 0)
            return &r->arrays[i];
    return NULL;
}

// --- tt_verify ---

static int verify_checksums(const struct tt_reader *r, const struct manifest_file *f,
                            const struct mapping *m, const struct sentence *error)
{
    uint32_t whole = 0;
    for (uint64_t i = 0; i < f->n_chunks; i++) {
        const size_t offset = (size_t)i * MANIFEST_CHUNK, left = m->size - offset;
        const size_t n = left < MANIFEST_CHUNK ? left : MANIFEST_CHUNK;
        const uint32_t crc = crc32c(0, m->bytes + offset, n);
        if (crc != f->chunk_crc32c[i])
            return say(error, -EBADMSG,
                       "%s/%s: bytes %zu..%zu have checksum %08" PRIx32
                       " where the manifest says %08" PRIx32,
                       r->path, f->name, offset, offset + n - 1, crc, f->chunk_crc32c[i]);
        whole = crc32c_combine(whole, crc, n);
    }
    if (whole != f->crc32c)
        return say(error, -EBADMSG,
                   "%s/%s: checksum %08" PRIx32 " where the manifest says %08" PRIx32, r->path,
                   f->name, whole, f->crc32c);
    return 0;
}

static bool json_is(const cJSON *item, uint64_t value)
{
    return cJSON_IsNumber(item) && value <= MANIFEST_INTEGER_MAX &&
           item->valuedouble == (double)value;
}

static bool header_agrees(const struct tt_reader *r, const struct manifest_file *f,
                          const cJSON *header)
{
    const cJSON *tensor = cJSON_GetObjectItemCaseSensitive(header, f->tensor);
    const char *dtype = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(tensor, "dtype"));
    const cJSON *shape = cJSON_GetObjectItemCaseSensitive(tensor, "shape");
    const cJSON *offsets = cJSON_GetObjectItemCaseSensitive(tensor, "data_offsets");
    if (!dtype || strcmp(dtype, f->dtype->name) != 0)
        return false;
    if (!cJSON_IsArray(shape) || cJSON_GetArraySize(shape) != f->n_dims)
        return false;
    for (int i = 0; i < f->n_dims; i++)
        if (!json_is(cJSON_GetArrayItem(shape, i), f->shape[i]))
            return false;
    if (!cJSON_IsArray(offsets) || cJSON_GetArraySize(offsets) != 2 ||
        !json_is(cJSON_GetArrayItem(offsets, 0), 0) ||
        !json_is(cJSON_GetArrayItem(offsets, 1), f->data_size))
        return false;
    // A file from another generation, put here under the same name.
    char generation[24];
    snprintf(generation, sizeof generation, "%" PRIu64, r->manifest.generation);
    const cJSON *metadata = cJSON_GetObjectItemCaseSensitive(header, "__metadata__");
    const char *stamp =
        cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(metadata, "snapshot"));
    return stamp && strcmp(stamp, generation) == 0;
}

static int verify_header(const struct tt_reader *r, const struct manifest_file *f,
                         const struct mapping *m, const struct sentence *error)
{
    uint64_t length = 0;
    if (f->data_offset >= sizeof length)
        memcpy(&length, m->bytes, sizeof length);
    if (length == 0 || length != f->data_offset - sizeof length)
        return say(error, -EBADMSG, "%s/%s: the header does not end where the data starts", r->path,
                   f->name);
    cJSON *header = cJSON_ParseWithLength((const char *)m->bytes + sizeof length, (size_t)length);
    const bool agrees = header && header_agrees(r, f, header);
    cJSON_Delete(header);
    return agrees ? 0
                  : say(error, -EBADMSG, "%s/%s: the header contradicts the manifest", r->path,
                        f->name);
}

// Counts values of one width whose exponent is all ones, in pieces that vectorise.
#define FIND_NOT_FINITE(type)                                                                      \
    static uint64_t find_not_finite_##type(const type *x, uint64_t n, type exponent)               \
    {                                                                                              \
        for (uint64_t i = 0; i < n;) {                                                             \
            const uint64_t start = i, end = n - i < 4096 ? n : i + 4096;                           \
            unsigned found = 0;                                                                    \
            for (; i < end; i++)                                                                   \
                found |= (x[i] & exponent) == exponent;                                            \
            for (i = found ? start : end; i < end; i++)                                            \
                if ((x[i] & exponent) == exponent)                                                 \
                    return i;                                                                      \
        }                                                                                          \
        return n;                                                                                  \
    }

FIND_NOT_FINITE(uint16_t)
FIND_NOT_FINITE(uint32_t)
FIND_NOT_FINITE(uint64_t)

static int verify_finite(const struct tt_reader *r, const struct manifest_file *f,
                         const struct tt_array *a, const struct sentence *error)
{
    if (f->dtype->exponent == 0)
        return 0;
    const uint64_t n = f->data_size / f->dtype->size, exponent = f->dtype->exponent;
    uint64_t at = n;
    if (f->dtype->size == 2)
        at = find_not_finite_uint16_t(a->data, n, (uint16_t)exponent);
    else if (f->dtype->size == 4)
        at = find_not_finite_uint32_t(a->data, n, (uint32_t)exponent);
    else
        at = find_not_finite_uint64_t(a->data, n, exponent);
    return at == n ? 0
                   : say(error, -EBADMSG, "%s/%s: value %" PRIu64 " is infinite or not a number",
                         r->path, f->name, at);
}

static uint32_t get_u32(const unsigned char *bytes)
{
    uint32_t value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

static uint64_t get_u64(const unsigned char *bytes)
{
    uint64_t value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

// What a search relies on. Rows and keys are checked as they are found.
static bool index_is_sound(const unsigned char *file, uint64_t size)
{
    if (size < ID_INDEX_HEADER || memcmp(file, ID_INDEX_MAGIC, 8) != 0 ||
        get_u32(file + ID_INDEX_HEADER - 4) != crc32c(0, file, ID_INDEX_HEADER - 4))
        return false;
    const uint64_t n_buckets = get_u64(file + 32), n = get_u64(file + 40);
    return get_u32(file + 8) == ID_INDEX_VERSION && get_u32(file + 12) == ID_INDEX_FMIX64 &&
           get_u32(file + 20) == ID_INDEX_SLOTS && n_buckets >= 1 &&
           (size - ID_INDEX_HEADER) % sizeof(struct id_index_bucket) == 0 &&
           n_buckets == (size - ID_INDEX_HEADER) / sizeof(struct id_index_bucket) &&
           n <= n_buckets * ID_INDEX_SLOTS;
}

static int verify_index(const struct tt_reader *r, const struct tt_array *a,
                        const struct sentence *error)
{
    const unsigned char *file = a->data;
    const size_t length = strlen(a->name);
    if (length < 5 || strcmp(a->name + length - 5, ".oidx") != 0)
        return 0;
    if (!index_is_sound(file, a->size) ||
        get_u32(file + 48) != crc32c(0, file + ID_INDEX_HEADER, (size_t)a->size - ID_INDEX_HEADER))
        return say(error, -EBADMSG, "%s/%s: not an index of ids", r->path, a->name);
    return 0;
}

int tt_verify(const struct tt_reader *r, char *error, size_t error_size)
{
    const struct sentence sentence = {error, error_size};
    for (size_t i = 0; i < r->manifest.n_files; i++) {
        const struct manifest_file *f = &r->manifest.files[i];
        int rc = verify_checksums(r, f, &r->mappings[i], &sentence);
        if (rc == 0 && f->tensor)
            rc = verify_header(r, f, &r->mappings[i], &sentence);
        if (rc == 0)
            rc = verify_finite(r, f, &r->arrays[i], &sentence);
        if (rc == 0)
            rc = verify_index(r, &r->arrays[i], &sentence);
        if (rc < 0)
            return rc;
    }
    return 0;
}

// --- ids and strings ---

// <name><suffix> as a file with this dtype and number of dimensions.
static const struct tt_array *column(const struct tt_reader *r, const char *name,
                                     const char *suffix, const char *dtype)
{
    char file[256];
    if ((size_t)snprintf(file, sizeof file, "%s%s", name, suffix) >= sizeof file)
        return NULL;
    for (size_t i = 0; i < r->manifest.n_files; i++) {
        const struct tt_array *a = &r->arrays[i];
        if (strcmp(a->name, file) == 0)
            return strcmp(a->dtype, dtype) == 0 && a->n_dims == 1 ? a : NULL;
    }
    return NULL;
}

int tt_table(const struct tt_reader *r, const char *name, struct tt_table *table, char *error,
             size_t error_size)
{
    const struct sentence sentence = {error, error_size};
    *table = (struct tt_table){0};
    const struct tt_array *ids = column(r, name, "_ids.safetensors", "U64");
    const struct tt_array *bytes = column(r, name, "_ids_str.bin", "U8");
    const struct tt_array *offsets = column(r, name, "_ids_off.safetensors", "U64");
    const struct tt_array *kinds = column(r, name, "_ids_kind.safetensors", "U8");
    const struct tt_array *index = column(r, name, "_index.oidx", "U8");

    if (ids) {
        table->n = ids->shape[0];
        table->integer = ids->data;
    } else if (bytes && offsets && kinds) {
        if (offsets->shape[0] == 0 || kinds->shape[0] != offsets->shape[0] - 1)
            return say(&sentence, -EBADMSG, "%s: the columns of the %s ids differ in length",
                       r->path, name);
        table->n = kinds->shape[0];
        table->bytes = bytes->data;
        table->bytes_size = bytes->shape[0];
        table->offset = offsets->data;
        table->kind = kinds->data;
    } else {
        return say(&sentence, -ENOENT, "%s: no ids of a table \"%s\"", r->path, name);
    }
    if (!index)
        return say(&sentence, -ENOENT, "%s: no index of the %s ids", r->path, name);
    const unsigned char *file = index->data;
    const uint32_t keys = ids ? ID_INDEX_INTEGERS : ID_INDEX_HASHES;
    if (!index_is_sound(file, index->size) || get_u32(file + 16) != keys ||
        get_u64(file + 40) != table->n || table->n >= ID_INDEX_EMPTY)
        return say(&sentence, -EBADMSG, "%s/%s: not the index of the %s ids", r->path, index->name,
                   name);
    table->buckets = file + ID_INDEX_HEADER;
    table->n_buckets = get_u64(file + 32);
    table->seed = get_u64(file + 24);
    return 0;
}

int tt_id_of_row(const struct tt_table *table, uint64_t row, struct tt_id *id)
{
    if (row >= table->n)
        return -ERANGE;
    if (table->integer) {
        *id = (struct tt_id){.kind = TT_ID_INTEGER, .integer = table->integer[row]};
        return 0;
    }
    const uint64_t start = table->offset[row], end = table->offset[row + 1];
    if (start > end || end > table->bytes_size || table->kind[row] > TT_ID_INTEGER)
        return -EBADMSG;
    *id = (struct tt_id){
        .kind = (enum tt_id_kind)table->kind[row],
        .bytes = table->bytes + start,
        .size = end - start,
    };
    return 0;
}

static bool id_is(const struct tt_id *a, const struct tt_id *b)
{
    if (a->kind != b->kind || a->size != b->size)
        return false;
    return a->bytes ? memcmp(a->bytes, b->bytes, a->size) == 0 : a->integer == b->integer;
}

static int row_of(const struct tt_table *table, uint64_t key, const struct tt_id *id, uint64_t *row)
{
    const struct id_index_bucket *buckets = table->buckets;
    uint64_t b = id_index_home(key, table->seed, table->n_buckets);
    for (uint64_t seen = 0; seen < table->n_buckets; seen++) {
        const struct id_index_bucket *bucket = &buckets[b];
        for (int i = 0; i < ID_INDEX_SLOTS; i++) {
            if (bucket->key[i] != key || bucket->row[i] == ID_INDEX_EMPTY)
                continue;
            struct tt_id found;
            const int rc = tt_id_of_row(table, bucket->row[i], &found);
            if (rc < 0)
                return -EBADMSG;
            if (id_is(&found, id)) {
                *row = bucket->row[i];
                return 0;
            }
        }
        if (!bucket->overflow)
            break;
        b = b + 1 == table->n_buckets ? 0 : b + 1;
    }
    return -ENOENT;
}

static int row_of_text(const struct tt_table *table, enum tt_id_kind kind, const char *bytes,
                       size_t size, uint64_t *row)
{
    // Never NULL, which would mean an integer: an empty string is an id like any other.
    const struct tt_id id = {.kind = kind, .bytes = size > 0 ? bytes : "", .size = size};
    return row_of(table, id_index_key((int)kind, id.bytes, size), &id, row);
}

int tt_row_of_unsigned(const struct tt_table *table, uint64_t id, uint64_t *row)
{
    if (table->integer)
        return row_of(table, id, &(struct tt_id){.kind = TT_ID_INTEGER, .integer = id}, row);
    char text[24];
    const int size = snprintf(text, sizeof text, "%" PRIu64, id);
    return row_of_text(table, TT_ID_INTEGER, text, (size_t)size, row);
}

int tt_row_of_integer(const struct tt_table *table, int64_t id, uint64_t *row)
{
    if (id >= 0)
        return tt_row_of_unsigned(table, (uint64_t)id, row);
    if (table->integer)
        return -ENOENT;
    char text[24];
    const int size = snprintf(text, sizeof text, "%" PRId64, id);
    return row_of_text(table, TT_ID_INTEGER, text, (size_t)size, row);
}

int tt_row_of_string(const struct tt_table *table, const char *bytes, size_t size, uint64_t *row)
{
    return table->integer ? -ENOENT : row_of_text(table, TT_ID_STRING, bytes, size, row);
}

int tt_strings(const struct tt_reader *r, const char *name, struct tt_strings *strings, char *error,
               size_t error_size)
{
    const struct sentence sentence = {error, error_size};
    *strings = (struct tt_strings){0};
    const struct tt_array *bytes = column(r, name, ".bin", "U8");
    const struct tt_array *offsets = column(r, name, "_off.safetensors", "U64");
    if (!bytes || !offsets)
        return say(&sentence, -ENOENT, "%s: no strings \"%s\"", r->path, name);
    if (offsets->shape[0] == 0)
        return say(&sentence, -EBADMSG, "%s/%s: no offsets", r->path, offsets->name);
    *strings = (struct tt_strings){
        .n = offsets->shape[0] - 1,
        .bytes = bytes->data,
        .bytes_size = bytes->shape[0],
        .offset = offsets->data,
    };
    return 0;
}

const char *tt_string(const struct tt_strings *strings, uint64_t row, uint64_t *size)
{
    if (row >= strings->n)
        return NULL;
    const uint64_t start = strings->offset[row], end = strings->offset[row + 1];
    if (start > end || end > strings->bytes_size)
        return NULL;
    *size = end - start;
    return strings->bytes + start;
}
