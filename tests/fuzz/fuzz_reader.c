// SPDX-License-Identifier: Apache-2.0
//
// Fuzzes the reader of snapshots: the files of an input are those of a snapshot's directory. The
// manifest gets its right checksum at the end; with 's' as the option, also the checksums of files
// and indexes are made right, without which tt_verify looks at nothing behind them.
//
// What the reader opens is used to the last byte, by every function there is. The bytes of a
// mapping behind the file's end are poisoned, so that the sanitizer sees a read there too.
#include "snapshot/twotower_reader.h"

#include <cjson/cJSON.h>
#include <sanitizer/asan_interface.h>
#include <stdbool.h>

#include "snapshot/crc32c.h"
#include "snapshot/manifest.h"
#include "tests/fuzz/fuzz.h"

enum { PAGE = 4096, INDEX_HEADER = 4096, BUCKETS_CRC_AT = 48, HEADER_CRC_AT = 4092, ROWS = 64 };

static void index_seal(uint8_t *bytes, size_t size)
{
    if (size < INDEX_HEADER)
        return;
    uint32_t crc = crc32c(0, bytes + INDEX_HEADER, size - INDEX_HEADER);
    memcpy(bytes + BUCKETS_CRC_AT, &crc, sizeof crc);
    crc = crc32c(0, bytes, HEADER_CRC_AT);
    memcpy(bytes + HEADER_CRC_AT, &crc, sizeof crc);
}

// "AAAAAA==" for the checksum of the one chunk of a small file.
static void chunk_text(char text[9], uint32_t crc)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const uint64_t bits = (uint64_t)__builtin_bswap32(crc) << 4;
    for (int i = 0; i < 6; i++)
        text[i] = digits[bits >> (30 - 6 * i) & 63];
    strcpy(text + 6, "==");
}

// The manifest with the checksum of this file, where it has one.
static void manifest_correct(cJSON *manifest, const char *name, const uint8_t *bytes, size_t size)
{
    char crc[9], chunk[9];
    cJSON *file;
    snprintf(crc, sizeof crc, "%08x", crc32c(0, bytes, size));
    chunk_text(chunk, crc32c(0, bytes, size));
    cJSON_ArrayForEach(file, cJSON_GetObjectItemCaseSensitive(manifest, "files"))
    {
        const char *known = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(file, "name"));
        if (!known || strcmp(known, name) != 0)
            continue;
        cJSON *whole = cJSON_GetObjectItemCaseSensitive(file, "crc32c");
        cJSON *chunks = cJSON_GetObjectItemCaseSensitive(file, "chunk_crc32c");
        cJSON *values = cJSON_GetObjectItemCaseSensitive(chunks, "values_b64");
        if (cJSON_IsString(whole))
            cJSON_SetValuestring(whole, crc);
        if (cJSON_IsString(values) && size > 0)
            cJSON_SetValuestring(values, chunk);
    }
}

static void manifest_put(const char *path, const char *text, size_t size)
{
    char *sealed = malloc(size + MANIFEST_SEAL_SIZE + 1);
    require(sealed != NULL, "there is memory");
    memcpy(sealed, text, size);
    size += (size_t)manifest_seal(sealed + size, crc32c(0, text, size));
    file_put(path, sealed, size);
    free(sealed);
}

static void directory_put(const struct entry *entries, int n, bool sealed)
{
    char path[400];
    const struct entry *text = NULL;
    for (int i = 0; i < n; i++)
        if (strcmp(entries[i].name, "manifest.json") == 0)
            text = &entries[i];
    // What the seal replaces is the last brace.
    cJSON *manifest = NULL;
    if (text && sealed) {
        char *whole = malloc(text->size + 1);
        require(whole != NULL, "there is memory");
        memcpy(whole, text->bytes, text->size);
        whole[text->size] = '}';
        manifest = cJSON_ParseWithLength(whole, text->size + 1);
        free(whole);
    }
    for (int i = 0; i < n; i++) {
        const struct entry *e = &entries[i];
        if (e == text)
            continue;
        uint8_t *bytes = malloc(e->size + 1);
        require(bytes != NULL, "there is memory");
        memcpy(bytes, e->bytes, e->size);
        const size_t length = strlen(e->name);
        if (sealed && length > 5 && strcmp(e->name + length - 5, ".oidx") == 0)
            index_seal(bytes, e->size);
        if (manifest)
            manifest_correct(manifest, e->name, bytes, e->size);
        snprintf(path, sizeof path, "%s/%s", scratch(), e->name);
        file_put(path, bytes, e->size);
        free(bytes);
    }
    if (!text)
        return;
    snprintf(path, sizeof path, "%s/manifest.json", scratch());
    char *corrected = manifest ? cJSON_PrintUnformatted(manifest) : NULL;
    if (corrected)
        manifest_put(path, corrected, strlen(corrected) - 1);
    else
        manifest_put(path, (const char *)text->bytes, text->size);
    free(corrected);
    cJSON_Delete(manifest);
}

static volatile uint64_t sum; // of all bytes that were handed out

static void touch(const void *bytes, uint64_t size)
{
    for (uint64_t i = 0; i < size; i++)
        sum += ((const uint8_t *)bytes)[i];
}

// The bytes from the end of an array, which ends its file, to the end of the page.
static size_t behind(const struct tt_array *a)
{
    return a->size == 0 ? 0 : -((uintptr_t)a->data + a->size) % PAGE;
}

static void use_table(const struct tt_reader *r, const char *name)
{
    char error[256] = "", text[24];
    struct tt_table table;
    struct tt_id id;
    uint64_t row;
    if (tt_table(r, name, &table, error, sizeof error) < 0) {
        require(error[0] != '\0', "a refusal has a sentence");
        return;
    }
    for (uint64_t i = 0; i < table.n && i < ROWS; i++) {
        if (tt_id_of_row(&table, i, &id) < 0)
            continue;
        int rc;
        if (table.integer) {
            rc = tt_row_of_unsigned(&table, id.integer, &row);
        } else {
            touch(id.bytes, id.size);
            rc = tt_row_of_string(&table, id.bytes, id.size, &row);
            if (id.size < sizeof text && id.kind == TT_ID_INTEGER) {
                snprintf(text, sizeof text, "%.*s", (int)id.size, id.bytes);
                rc = tt_row_of_integer(&table, strtoll(text, NULL, 10), &row);
            }
        }
        require(rc != 0 || row < table.n, "a row that is found is one of the table");
    }
    tt_row_of_integer(&table, -1, &row);
    tt_row_of_integer(&table, 7, &row);
    tt_row_of_string(&table, "", 0, &row);
    tt_id_of_row(&table, table.n, &id);
}

static void use_strings(const struct tt_reader *r, const char *name)
{
    char error[256];
    struct tt_strings strings;
    if (tt_strings(r, name, &strings, error, sizeof error) < 0)
        return;
    for (uint64_t i = 0; i <= strings.n && i <= ROWS; i++) {
        uint64_t size;
        const char *text = tt_string(&strings, i, &size);
        if (text)
            touch(text, size);
    }
}

static void use_array(const struct tt_array *a)
{
    enum { D_MAX = 64, K = 5 };
    static const float vector[D_MAX] = {1, -1, 0.5f};
    static const uint32_t adjust[] = {1, 0, 1, TT_NO_ROW}, exclude[] = {2, TT_NO_ROW};
    static const float bonus[] = {1, 2, 3, 4};
    uint32_t rows[K];
    float scores[K];
    touch(a->data, a->size);
    // Four billion rows without a byte are sound and slow.
    if (a->size == 0 || (a->n_dims == 2 && a->shape[1] > D_MAX))
        return;
    const struct tt_query query = {.items = a,
                                   .vector = vector,
                                   .k = K,
                                   .n_adjust = 4,
                                   .adjust_rows = adjust,
                                   .adjust_bonus = bonus,
                                   .n_exclude = 2,
                                   .exclude_rows = exclude};
    const int64_t n = tt_topk(&query, rows, scores);
    require(n <= K, "no more rows than asked for");
    for (int64_t i = 0; i < n; i++)
        require(rows[i] < a->shape[0] && rows[i] != 2, "the best rows are rows, none excluded");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct entry entries[ENTRIES_MAX];
    struct tt_reader *r;
    size_t options;
    char error[512] = "";

    const int n = entries_split(data, size, &options, entries);
    directory_put(entries, n, options > 0 && data[0] == 's');
    if (tt_open(&r, scratch(), error, sizeof error) < 0) {
        require(!r && error[0] != '\0', "a refusal has a sentence");
        scratch_clear();
        return 0;
    }
    const int n_arrays = tt_n_arrays(r);
    for (int i = 0; i < n_arrays; i++) {
        const struct tt_array *a = tt_array_at(r, i);
        __asan_poison_memory_region((const char *)a->data + a->size, behind(a));
    }
    if (tt_verify(r, error, sizeof error) < 0)
        require(error[0] != '\0', "a refusal has a sentence");
    for (int i = 0; i < n_arrays; i++) {
        const struct tt_array *a = tt_array_at(r, i);
        use_array(a);
        require(tt_find(r, a->name) == a && tt_find(r, a->role), "arrays are found by name");
    }
    use_table(r, "item");
    use_table(r, "user");
    use_strings(r, "item_titles");
    for (int i = 0; i < n_arrays; i++) {
        const struct tt_array *a = tt_array_at(r, i);
        __asan_unpoison_memory_region((const char *)a->data + a->size, behind(a));
    }
    tt_close(r);
    scratch_clear();
    return 0;
}
