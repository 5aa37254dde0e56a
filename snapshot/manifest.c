// SPDX-License-Identifier: Apache-2.0
#include "snapshot/manifest.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "snapshot/crc32c.h"

const struct dtype dtypes[] = {
    {"BOOL", "bool", 1, 0},
    {"U8", "u8", 1, 0},
    {"I8", "i8", 1, 0},
    {"U16", "u16", 2, 0},
    {"I16", "i16", 2, 0},
    {"F16", "f16", 2, 0x7c00},
    {"BF16", "bf16", 2, 0x7f80},
    {"U32", "u32", 4, 0},
    {"I32", "i32", 4, 0},
    {"F32", "f32", 4, 0x7f800000},
    {"U64", "u64", 8, 0},
    {"I64", "i64", 8, 0},
    {"F64", "f64", 8, 0x7ff0000000000000},
};
const int n_dtypes = sizeof dtypes / sizeof dtypes[0];

const struct dtype *dtype_find(const char *name)
{
    for (int i = 0; i < n_dtypes; i++)
        if (strcmp(name, dtypes[i].name) == 0 || strcmp(name, dtypes[i].name_lower) == 0)
            return &dtypes[i];
    return NULL;
}

int manifest_seal(char seal[MANIFEST_SEAL_SIZE + 1], uint32_t crc)
{
    return snprintf(seal, MANIFEST_SEAL_SIZE + 1,
                    ",\n\t\"manifest_crc32c\":\t\"%08" PRIx32 "\"\n}\n", crc);
}

bool generation_parse(const char *name, uint64_t *generation)
{
    uint64_t value = 0;
    if (name[0] < '1' || name[0] > '9')
        return false;
    for (; *name; name++) {
        if (*name < '0' || *name > '9')
            return false;
        value = value * 10 + (uint64_t)(*name - '0');
        if (value > MANIFEST_INTEGER_MAX)
            return false;
    }
    *generation = value;
    return true;
}

static bool hex_parse(const char *text, uint32_t *value)
{
    *value = 0;
    for (int i = 0; i < 8; i++) {
        const char c = text[i];
        uint32_t digit;
        if (c >= '0' && c <= '9')
            digit = (uint32_t)(c - '0');
        else if (c >= 'a' && c <= 'f')
            digit = (uint32_t)(c - 'a' + 10);
        else
            return false;
        *value = *value << 4 | digit;
    }
    return true;
}

bool latest_parse(const char *text, size_t n, uint64_t *generation, uint32_t *crc)
{
    char number[LATEST_SIZE_MAX];
    // At the least one digit, a space, eight digits and the end of the line.
    if (n < 11 || n > LATEST_SIZE_MAX || text[n - 1] != '\n' || text[n - 10] != ' ')
        return false;
    memcpy(number, text, n - 10);
    number[n - 10] = '\0';
    return strlen(number) == n - 10 && generation_parse(number, generation) &&
           hex_parse(text + n - 9, crc);
}

struct parser {
    char *error;
    size_t error_size;
};

static int refuse(struct parser *p, const char *format, ...) __attribute__((format(printf, 2, 3)));

static int refuse(struct parser *p, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(p->error, p->error_size, format, args);
    va_end(args);
    return -EBADMSG;
}

static const char *text_member(const cJSON *object, const char *key)
{
    return cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, key));
}

static bool integer_value(const cJSON *item, uint64_t *value)
{
    // Written so that NaN fails.
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0) ||
        !(item->valuedouble <= (double)MANIFEST_INTEGER_MAX))
        return false;
    *value = (uint64_t)item->valuedouble;
    return (double)*value == item->valuedouble;
}

static bool integer_member(const cJSON *object, const char *key, uint64_t *value)
{
    return integer_value(cJSON_GetObjectItemCaseSensitive(object, key), value);
}

static bool hex_member(const cJSON *object, const char *key, uint32_t *value)
{
    const char *text = text_member(object, key);
    return text && strlen(text) == 8 && hex_parse(text, value);
}

static int base64_digit(char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

// Exactly n bytes, padded, without line ends.
static bool base64_decode(const char *text, size_t n, uint8_t *bytes)
{
    if (strlen(text) != (n + 2) / 3 * 4)
        return false;
    for (size_t i = 0; i < n; i += 3, text += 4) {
        const size_t take = n - i < 3 ? n - i : 3;
        uint32_t group = 0;
        for (size_t j = 0; j < 4; j++) {
            const int digit = j <= take ? base64_digit(text[j]) : text[j] == '=' ? 0 : -1;
            if (digit < 0)
                return false;
            group = group << 6 | (uint32_t)digit;
        }
        for (size_t j = 0; j < take; j++)
            bytes[i + j] = (uint8_t)(group >> (16 - 8 * j));
    }
    return true;
}

// A name is a path inside the directory: one component, not hidden.
static bool name_is_plain(const char *name)
{
    return name && name[0] != '\0' && name[0] != '.' && strlen(name) < 256 && !strchr(name, '/');
}

static int parse_chunks(struct parser *p, const cJSON *json, struct manifest_file *f)
{
    const cJSON *chunks = cJSON_GetObjectItemCaseSensitive(json, "chunk_crc32c");
    const char *values = text_member(chunks, "values_b64");
    uint64_t chunk;
    if (!values || !integer_member(chunks, "chunk", &chunk) || chunk != MANIFEST_CHUNK)
        return refuse(p, "%s: chunk_crc32c is not {\"chunk\": %d, \"values_b64\": ..}", f->name,
                      MANIFEST_CHUNK);
    f->n_chunks = f->size / MANIFEST_CHUNK + (f->size % MANIFEST_CHUNK != 0);
    // Bounded by the text before memory is taken for it.
    if (f->n_chunks > MANIFEST_SIZE_MAX / 5)
        return refuse(p, "%s: too large for its manifest", f->name);
    const size_t n = (size_t)f->n_chunks * 4;
    if (strlen(values) != (n + 2) / 3 * 4)
        return refuse(p, "%s: not as many chunk checksums as chunks", f->name);
    uint8_t *bytes = malloc(n + 1);
    f->chunk_crc32c = malloc(n + 1);
    if (!bytes || !f->chunk_crc32c) {
        free(bytes);
        snprintf(p->error, p->error_size, "out of memory");
        return -ENOMEM;
    }
    const bool decoded = base64_decode(values, n, bytes);
    for (size_t i = 0; decoded && i < f->n_chunks; i++)
        f->chunk_crc32c[i] = (uint32_t)bytes[4 * i] | (uint32_t)bytes[4 * i + 1] << 8 |
                             (uint32_t)bytes[4 * i + 2] << 16 | (uint32_t)bytes[4 * i + 3] << 24;
    free(bytes);
    return decoded ? 0 : refuse(p, "%s: the chunk checksums are not base64", f->name);
}

static int parse_shape(struct parser *p, const cJSON *json, struct manifest_file *f)
{
    const char *dtype = text_member(json, "dtype");
    const cJSON *shape = cJSON_GetObjectItemCaseSensitive(json, "shape");
    f->dtype = dtype ? dtype_find(dtype) : NULL;
    if (!f->dtype)
        return refuse(p, "%s: no known dtype", f->name);
    if (!cJSON_IsArray(shape))
        return refuse(p, "%s: no shape", f->name);
    uint64_t row = f->dtype->size;
    f->data_size = f->dtype->size;
    const cJSON *dim;
    cJSON_ArrayForEach(dim, shape)
    {
        uint64_t d;
        if (f->n_dims == MANIFEST_DIMS_MAX || !integer_value(dim, &d))
            return refuse(p, "%s: the shape is not up to %d whole numbers", f->name,
                          MANIFEST_DIMS_MAX);
        if (__builtin_mul_overflow(f->data_size, d, &f->data_size) ||
            (f->n_dims > 0 && __builtin_mul_overflow(row, d, &row)))
            return refuse(p, "%s: the shape has more bytes than there are addresses", f->name);
        f->shape[f->n_dims++] = d;
    }
    if (!integer_member(json, "data_offset", &f->data_offset) ||
        !integer_member(json, "row_stride", &f->row_stride) ||
        !integer_member(json, "size", &f->size))
        return refuse(p, "%s: data_offset, row_stride or size is missing", f->name);
    if (f->row_stride != row)
        return refuse(p, "%s: row_stride %" PRIu64 " where the shape says %" PRIu64, f->name,
                      f->row_stride, row);
    // With the data on a cache line, every dtype is aligned.
    uint64_t end;
    if (f->data_offset % 64 != 0 || __builtin_add_overflow(f->data_offset, f->data_size, &end) ||
        end != f->size)
        return refuse(p,
                      "%s: %" PRIu64 " bytes of data at %" PRIu64 " do not make %" PRIu64 " bytes",
                      f->name, f->data_size, f->data_offset, f->size);
    return 0;
}

static int parse_file(struct parser *p, const cJSON *json, struct manifest_file *f)
{
    f->name = text_member(json, "name");
    f->role = text_member(json, "role");
    f->tensor = text_member(json, "tensor");
    if (!name_is_plain(f->name) || strcmp(f->name, "manifest.json") == 0)
        return refuse(p, "a file has no name, or one that leads elsewhere");
    if (!f->role)
        return refuse(p, "%s: no role", f->name);
    if (!hex_member(json, "crc32c", &f->crc32c))
        return refuse(p, "%s: no crc32c", f->name);
    const int rc = parse_shape(p, json, f);
    return rc < 0 ? rc : parse_chunks(p, json, f);
}

static int by_name(const void *a, const void *b)
{
    const struct manifest_file *const *left = a, *const *right = b;
    return strcmp((*left)->name, (*right)->name);
}

static int check_names(struct parser *p, const struct manifest *m)
{
    const struct manifest_file **sorted = malloc((m->n_files + 1) * sizeof *sorted);
    if (!sorted) {
        snprintf(p->error, p->error_size, "out of memory");
        return -ENOMEM;
    }
    for (size_t i = 0; i < m->n_files; i++)
        sorted[i] = &m->files[i];
    qsort(sorted, m->n_files, sizeof *sorted, by_name);
    int rc = 0;
    for (size_t i = 1; i < m->n_files && rc == 0; i++)
        if (strcmp(sorted[i - 1]->name, sorted[i]->name) == 0)
            rc = refuse(p, "%s is listed twice", sorted[i]->name);
    free(sorted);
    return rc;
}

int manifest_parse(struct manifest *m, const char *text, size_t n, char *error, size_t error_size)
{
    struct parser p = {error, error_size};
    *m = (struct manifest){.crc32c = crc32c(0, text, n)};

    char seal[MANIFEST_SEAL_SIZE + 1];
    if (n < MANIFEST_SEAL_SIZE)
        return refuse(&p, "manifest.json is cut off");
    manifest_seal(seal, crc32c(0, text, n - MANIFEST_SEAL_SIZE));
    if (memcmp(seal, text + n - MANIFEST_SEAL_SIZE, MANIFEST_SEAL_SIZE) != 0)
        return refuse(&p, "manifest.json does not match its own checksum");

    cJSON *json = cJSON_ParseWithLengthOpts(text, n, NULL, false);
    if (!json)
        return refuse(&p, "manifest.json is not JSON");
    m->json = json;
    int rc;
    uint64_t schema;
    m->format = text_member(json, "format");
    m->space = text_member(json, "space");
    const cJSON *files = cJSON_GetObjectItemCaseSensitive(json, "files");
    if (!m->format) {
        rc = refuse(&p, "manifest.json has no format");
        goto free;
    }
    if (!integer_member(json, "min_reader", &schema) || schema > MANIFEST_SCHEMA) {
        rc = refuse(&p, "manifest.json asks for a newer reader than schema %d", MANIFEST_SCHEMA);
        goto free;
    }
    if (!integer_member(json, "snapshot", &m->generation) || m->generation == 0) {
        rc = refuse(&p, "manifest.json has no number in \"snapshot\"");
        goto free;
    }
    if (!cJSON_IsArray(files)) {
        rc = refuse(&p, "manifest.json has no files");
        goto free;
    }
    m->files = calloc((size_t)cJSON_GetArraySize(files) + 1, sizeof *m->files);
    if (!m->files) {
        snprintf(error, error_size, "out of memory");
        rc = -ENOMEM;
        goto free;
    }
    const cJSON *file;
    cJSON_ArrayForEach(file, files)
    {
        rc = parse_file(&p, file, &m->files[m->n_files++]);
        if (rc < 0)
            goto free;
    }
    rc = check_names(&p, m);
    if (rc < 0)
        goto free;
    return 0;
free:
    manifest_free(m);
    return rc;
}

void manifest_free(struct manifest *m)
{
    for (size_t i = 0; i < m->n_files; i++)
        free(m->files[i].chunk_crc32c);
    free(m->files);
    cJSON_Delete(m->json);
    *m = (struct manifest){0};
}
