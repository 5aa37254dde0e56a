// SPDX-License-Identifier: Apache-2.0
//
// Makes the first inputs of the fuzz targets that no person would write: a slice log and snapshots,
// by the code that writes the real ones.
//
//     fuzz_seeds DIRECTORY     writes DIRECTORY/slice_log/*, DIRECTORY/reader/*,
//     DIRECTORY/manifest/*
//
// The header of a safetensors file is cut to what is in it, and the manifest is told, so that an
// input is a few kilobytes.
#include <cjson/cJSON.h>
#include <inttypes.h>

#include "pipeline/slice_log.h"
#include "snapshot/engine.h"
#include "snapshot/ids.h"
#include "snapshot/manifest.h"
#include "snapshot/writer.h"
#include "tests/fuzz/fuzz.h"

enum { N = 7, D = 3, PARTITIONS = 2, SLICES = 5 };

static uint8_t *file_get(const char *path, size_t *size)
{
    static uint8_t bytes[1 << 16];
    FILE *file = fopen(path, "rb");
    require(file != NULL, path);
    *size = fread(bytes, 1, sizeof bytes, file);
    fclose(file);
    return bytes;
}

static void slice_log_seed(const char *directory)
{
    struct slice_log l;
    char path[600];
    // Three records a file.
    require(slice_log_open(&l, NULL, scratch(), PARTITIONS, 3 * (88 + 9 * PARTITIONS) - 1, 0, NULL,
                           NULL) == 0,
            l.error);
    for (uint64_t number = 1; number <= SLICES; number++) {
        int64_t next[PARTITIONS] = {(int64_t)number * 100, (int64_t)number * 10};
        int32_t epoch[PARTITIONS] = {-1, number == 5 ? 3 : -1};
        uint8_t flags[PARTITIONS] = {(uint8_t)(number % 4)};
        struct slice_verdict verdict = {1, 12};
        struct slice_move move = {0, 100, 400};
        const struct slice slice = {.number = number,
                                    .digest = number * 0x9e3779b97f4a7c15,
                                    .order = number % 2 ? SLICE_LIVE : SLICE_CANONICAL,
                                    .n_events = (int)number,
                                    .n_partitions = PARTITIONS,
                                    .next = next,
                                    .epoch = epoch,
                                    .flags = flags,
                                    .n_verdicts = number == 3,
                                    .verdicts = &verdict,
                                    .n_moves = number == 4,
                                    .moves = &move,
                                    .watermark_ms = 1700000000000,
                                    .dead_letters = (int64_t)number,
                                    .values = {number == 2 ? 2 : 0, {1, 0.5f}}};
        require(slice_log_append(&l, &slice) == 0, l.error);
    }
    slice_log_close(&l);
    for (int sealed = 0; sealed < 2; sealed++) {
        snprintf(path, sizeof path, "%s/slice_log/%s", directory, sealed ? "sealed" : "plain");
        FILE *out = fopen(path, "wb");
        require(out != NULL, path);
        // PARTITIONS - 1, and the slices after 0, as letters that say so to the target.
        fprintf(out, "%c%c%c", 'a', '0', sealed ? 's' : '-');
        for (uint64_t first = 1; first <= SLICES; first++) {
            size_t size;
            snprintf(path, sizeof path, "%s/slices-%" PRIu64 ".log", scratch(), first);
            if (access(path, R_OK) < 0)
                continue;
            const uint8_t *bytes = file_get(path, &size);
            fprintf(out, "\n@@ slices-%" PRIu64 ".log\n", first);
            fwrite(bytes, 1, size, out);
        }
        fputc('\n', out);
        fclose(out);
    }
    scratch_clear();
}

static void get_id(void *arg, uint64_t row, struct ids_entry *id)
{
    static const char *const names[N] = {"a", "", "7", "\xc3\xa9", "a long one", "b", "c"};
    const int integers = *(const int *)arg;
    if (integers || row == 5)
        *id = (struct ids_entry){.kind = IDS_INTEGER, .integer = row * 10 + 7};
    else
        *id =
            (struct ids_entry){.kind = IDS_STRING, .bytes = names[row], .size = strlen(names[row])};
}

static void get_title(void *arg, uint64_t row, const char **bytes, size_t *size)
{
    (void)arg;
    *bytes = "a title";
    *size = row % 4 * 2;
}

static void number_set(cJSON *object, const char *key, size_t value)
{
    cJSON_SetNumberValue(cJSON_GetObjectItemCaseSensitive(object, key), (double)value);
}

// The snapshot as one input; "" or 's' before it.
static void snapshot_pack(const char *directory, const char *name, const char *generation)
{
    char path[600];
    size_t size;
    snprintf(path, sizeof path, "%s/manifest.json", generation);
    uint8_t *bytes = file_get(path, &size);
    cJSON *manifest = cJSON_ParseWithLength((const char *)bytes, size), *file;
    require(manifest != NULL, "the manifest is JSON");
    cJSON_DeleteItemFromObjectCaseSensitive(manifest, "manifest_crc32c");
    snprintf(path, sizeof path, "%s/reader/%s", directory, name);
    FILE *out = fopen(path, "wb");
    require(out != NULL, path);
    fputc('s', out);
    cJSON_ArrayForEach(file, cJSON_GetObjectItemCaseSensitive(manifest, "files"))
    {
        const char *known = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(file, "name"));
        size_t from = 0, head = 0;
        snprintf(path, sizeof path, "%s/%s", generation, known);
        bytes = file_get(path, &size);
        if (cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(file, "tensor"))) {
            from = 4096;
            for (head = from; bytes[head - 1] != '}';)
                head--;
            head = (head + 63) / 64 * 64;
            const uint64_t length = head - sizeof length;
            memcpy(bytes, &length, sizeof length);
            number_set(file, "data_offset", head);
            number_set(file, "size", size - from + head);
        }
        fprintf(out, "\n@@ %s\n", known);
        fwrite(bytes, 1, head, out);
        fwrite(bytes + from, 1, size - from, out);
        remove(path);
    }
    char *text = cJSON_PrintUnformatted(manifest);
    text[strlen(text) - 1] = '\0'; // the brace that the seal brings
    fprintf(out, "\n@@ manifest.json\n%s\n", text);
    fclose(out);
    snprintf(path, sizeof path, "%s/manifest/%s", directory, name);
    out = fopen(path, "wb");
    require(out != NULL, path);
    fprintf(out, "%s\n", text);
    fclose(out);
    free(text);
    cJSON_Delete(manifest);
    snprintf(path, sizeof path, "%s/manifest.json", generation);
    remove(path);
    remove(generation);
}

static void snapshot_seed(const char *directory, int integers)
{
    static const float emb[N * D] = {1, 2, -3, 0.5f, 0, 0, 1};
    struct engine *engine;
    struct writer *w;
    char error[512], generation[300];
    require(engine_open(&engine, &(struct engine_options){.backend = ENGINE_PWRITE}, error,
                        sizeof error) == 0,
            error);
    const struct writer_options options = {.root = scratch(),
                                           .generation = 3,
                                           .format = "twotower-snapshot",
                                           .space = "s1",
                                           .engine = engine};
    require(writer_open(&w, &options, error, sizeof error) == 0, error);
    writer_array(
        w,
        &(struct writer_array){"item_emb.safetensors", "emb", "item_embedding", "F32", 2, {N, D}},
        emb);
    ids_write(w, "item", N, get_id, &integers);
    strings_write(w, "item_titles", N, get_title, NULL);
    if (!integers)
        writer_blob(w, "config.json", "config", "{}", 2);
    require(writer_publish(w) == 0, writer_error(w));
    writer_close(w);
    engine_close(engine);
    snprintf(generation, sizeof generation, "%s/3", scratch());
    snapshot_pack(directory, integers ? "integers" : "strings", generation);
    scratch_clear();
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "fuzz_seeds DIRECTORY\n");
        return 64;
    }
    slice_log_seed(argv[1]);
    snapshot_seed(argv[1], 1);
    snapshot_seed(argv[1], 0);
    rmdir(scratch());
    return 0;
}
