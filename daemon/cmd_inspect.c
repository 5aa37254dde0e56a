// SPDX-License-Identifier: Apache-2.0
//
// twotower inspect: what a snapshot or a checkpoint says of itself, for a person or as JSON. Reads
// the manifest and the item vectors' lengths; whether the bytes are right is verify's to say.
#include <cjson/cJSON.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <time.h>

#include "daemon/command.h"
#include "daemon/serving.h"
#include "snapshot/digest.h"

enum { QUANTILES = 5 };
static const double quantile_at[QUANTILES] = {0, 0.05, 0.5, 0.95, 1};
static const char *const quantile_names[QUANTILES] = {"least", "5 %", "median", "95 %", "most"};

// Lengths of the item vectors without their last element, which is bias and prior.
struct norms {
    bool known;
    double quantile[QUANTILES];
};

// A place in the manifest: members from the outside in, separated by slashes.
static const cJSON *member(const cJSON *manifest, const char *place)
{
    char name[64];
    for (; manifest && *place; place += place[strcspn(place, "/")] == '/') {
        const size_t n = strcspn(place, "/");
        snprintf(name, sizeof name, "%.*s", (int)n, place);
        manifest = cJSON_GetObjectItemCaseSensitive(manifest, name);
        place += n;
    }
    return manifest;
}

static int by_size(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static int norms_measure(struct norms *norms, const struct tt_reader *r)
{
    const struct tt_array *a = tt_find(r, "item_embedding");
    *norms = (struct norms){.known = false};
    if (!a || strcmp(a->dtype, "F32") != 0 || a->n_dims != 2 || a->shape[0] == 0 || a->shape[1] < 2)
        return 0;
    const size_t N = (size_t)a->shape[0], w = (size_t)a->shape[1];
    const float *v = a->data;
    float *lengths = malloc(N * sizeof *lengths);
    if (!lengths)
        return -ENOMEM;
    for (size_t i = 0; i < N; i++) {
        double sum = 0;
        for (size_t k = 0; k + 1 < w; k++)
            sum += (double)v[i * w + k] * (double)v[i * w + k];
        // Not a number, in a damaged file: it has no place in an order.
        lengths[i] = isnan(sum) ? INFINITY : (float)sqrt(sum);
    }
    qsort(lengths, N, sizeof *lengths, by_size);
    for (int i = 0; i < QUANTILES; i++)
        norms->quantile[i] = (double)lengths[(size_t)(quantile_at[i] * (double)(N - 1))];
    norms->known = true;
    free(lengths);
    return 0;
}

// ---- For a person

static void print_member(const cJSON *item)
{
    if (cJSON_IsString(item))
        serving_text(item->valuestring, strlen(item->valuestring), stdout);
    else if (cJSON_IsNumber(item))
        printf("%.15g", item->valuedouble);
    else
        putchar('-');
}

static void print_time(const cJSON *ms)
{
    char text[32];
    struct tm tm;
    // 0: no event yet. The limit keeps the year at four digits.
    if (!cJSON_IsNumber(ms) || !(ms->valuedouble > 0 && ms->valuedouble < 2e14)) {
        putchar('-');
        return;
    }
    const time_t seconds = (time_t)floor(ms->valuedouble / 1000);
    gmtime_r(&seconds, &tm);
    strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &tm);
    fputs(text, stdout);
}

// One line of the head: a label, then what stands at these places, each after its words. A line is
// left out when its first place is empty, further parts on their own.
enum part_kind { PLAIN, TIME_MS, GENERATION };
struct head_line {
    const char *label;
    struct {
        const char *words, *place;
        enum part_kind kind;
    } parts[4];
};

static const struct head_line head[] = {
    {"generation",
     {{"", "snapshot", PLAIN},
      {", created ", "created", PLAIN},
      {", by twotower ", "build", PLAIN}}},
    {"vectors",
     {{"", "dim", PLAIN},
      {" numbers, model ", "model", PLAIN},
      {", metric ", "metric", PLAIN},
      {", space ", "space", PLAIN}}},
    {"items", {{"", "items", PLAIN}}},
    {"users",
     {{"", "users", PLAIN},
      {", last items read ", "history", PLAIN},
      {", looked at for repeats ", "repeat", PLAIN}}},
    {"learned",
     {{"", "lineage/examples", PLAIN},
      {" examples, steps ", "lineage/steps", PLAIN},
      {", last slice ", "lineage/slice", PLAIN}}},
    {"events",
     {{"until ", "lineage/event_time_max_ms", TIME_MS},
      {", watermark ", "lineage/watermark_ms", TIME_MS}}},
    {"made from",
     {{"checkpoint ", "lineage/checkpoint", PLAIN},
      {", the generation before ", "lineage/previous", GENERATION}}},
    {"made with", {{"kernels ", "kernels", PLAIN}, {", BLAS core ", "blas_core", PLAIN}}},
};
enum { HEAD = sizeof head / sizeof *head, PARTS = sizeof head->parts / sizeof *head->parts };

static void print_part(const cJSON *item, enum part_kind kind)
{
    if (kind == TIME_MS)
        print_time(item);
    else if (kind == GENERATION && cJSON_IsNumber(item) && !(item->valuedouble > 0))
        fputs("none", stdout);
    else
        print_member(item);
}

static void print_head(const struct tt_reader *r, const cJSON *manifest)
{
    printf("%s\n    %-12s ", tt_path(r), "format");
    serving_text(tt_format(r), strlen(tt_format(r)), stdout);
    putchar('\n');
    for (const struct head_line *line = head; line < head + HEAD; line++) {
        if (!member(manifest, line->parts[0].place))
            continue;
        printf("    %-12s ", line->label);
        for (int p = 0; p < PARTS && line->parts[p].words; p++) {
            const cJSON *item = member(manifest, line->parts[p].place);
            if (!item)
                continue;
            fputs(line->parts[p].words, stdout);
            print_part(item, line->parts[p].kind);
        }
        putchar('\n');
    }
}

// With which arithmetic it was learned, when that was not always the same (daemon/numerics.h).
static void print_numerics(const cJSON *manifest)
{
    const cJSON *entry, *list = member(manifest, "numerics");
    const char *between = "";
    if (cJSON_GetArraySize(list) < 2)
        return;
    printf("    %-12s ", "learned with");
    cJSON_ArrayForEach(entry, list)
    {
        fputs(between, stdout);
        between = "; ";
        print_member(member(entry, "blas"));
        fputs(" core ", stdout);
        print_member(member(entry, "blas_core"));
        fputs(" and ", stdout);
        print_member(member(entry, "libm"));
        fputs(" from slice ", stdout);
        print_member(member(entry, "from_slice"));
    }
    putchar('\n');
}

// The light ranker, when the snapshot has one: its heads, and its value by task.
static void print_ranker(const cJSON *manifest)
{
    const cJSON *task, *tasks = member(manifest, "ranker/tasks");
    const char *between = ": ";
    if (!cJSON_IsArray(tasks))
        return;
    printf("    %-12s heads ", "ranker");
    print_member(member(manifest, "ranker/heads"));
    fputs(", value of ", stdout);
    print_member(member(manifest, "ranker/value"));
    cJSON_ArrayForEach(task, tasks)
    {
        fputs(between, stdout);
        between = ", ";
        print_member(member(task, "weight"));
        putchar(' ');
        print_member(member(task, "name"));
    }
    putchar('\n');
}

static void print_figure(const cJSON *item)
{
    if (cJSON_IsNumber(item))
        printf("  %10.4f", item->valuedouble);
    else
        printf("  %10s", "");
}

static void print_quality(const cJSON *manifest)
{
    static const struct {
        const char *name, *model, *popularity;
    } figures[] = {
        {"recall@10", "metrics/recall@10", "metrics/popularity_recall@10"},
        {"recall@100", "metrics/recall@100", "metrics/popularity_recall@100"},
        {"ndcg@10", "metrics/ndcg@10", "metrics/popularity_ndcg@10"},
        {"logloss", "metrics/logloss", "metrics/popularity_logloss"},
    };
    const cJSON *window = member(manifest, "metrics/window");
    if (!cJSON_IsNumber(window))
        return;
    if (!(window->valuedouble > 0)) {
        puts("\nquality: not measured yet");
        return;
    }
    printf("\nquality, over the last %.0f predictions, each made before it was learned\n",
           window->valuedouble);
    printf("    %-12s  %10s  %10s\n", "", "model", "popularity");
    for (size_t i = 0; i < sizeof figures / sizeof *figures; i++) {
        printf("    %-12s", figures[i].name);
        print_figure(member(manifest, figures[i].model));
        if (member(manifest, figures[i].popularity))
            print_figure(member(manifest, figures[i].popularity));
        putchar('\n');
    }
}

static void print_norms(const struct norms *norms)
{
    if (!norms->known)
        return;
    puts("\nlengths of the item vectors, without the last element");
    for (int i = 0; i < QUANTILES; i++)
        printf("%s%12s", i ? "" : "    ", quantile_names[i]);
    printf("\n    ");
    for (int i = 0; i < QUANTILES; i++)
        printf("%12.4f", norms->quantile[i]);
    putchar('\n');
}

static void print_files(const struct tt_reader *r)
{
    uint64_t bytes = 0;
    int width = 4;
    for (int i = 0; i < tt_n_arrays(r); i++) {
        const int length = (int)strnlen(tt_array_at(r, i)->name, 255);
        width = length > width ? length : width;
    }
    printf("\n%-*s  %-5s  %20s  %14s\n", width, "file", "dtype", "shape", "bytes");
    for (int i = 0; i < tt_n_arrays(r); i++) {
        const struct tt_array *a = tt_array_at(r, i);
        char shape[TT_DIMS_MAX * 24] = "";
        for (int d = 0; d < a->n_dims; d++)
            snprintf(shape + strlen(shape), sizeof shape - strlen(shape), "%s%" PRIu64,
                     d ? " x " : "", a->shape[d]);
        serving_text(a->name, strlen(a->name), stdout);
        printf("%*s  %-5s  %20s  %14" PRIu64 "\n", width - (int)strnlen(a->name, 255), "", a->dtype,
               shape, a->size);
        bytes += a->size;
    }
    printf("%-*s  %-5s  %20s  %14" PRIu64 "\n", width, "all", "", "", bytes);
}

// ---- As JSON: the manifest without its lists of checksums, and what was measured here

static int print_json(const struct tt_reader *r, cJSON *manifest, const struct norms *norms)
{
    cJSON *file;
    cJSON_ArrayForEach(file, cJSON_GetObjectItemCaseSensitive(manifest, "files"))
        cJSON_DeleteItemFromObjectCaseSensitive(file, "chunk_crc32c");
    cJSON_DeleteItemFromObjectCaseSensitive(manifest, "path");
    cJSON_DeleteItemFromObjectCaseSensitive(manifest, "item_norms");
    cJSON_AddStringToObject(manifest, "path", tt_path(r));
    if (norms->known)
        cJSON_AddItemToObject(manifest, "item_norms",
                              cJSON_CreateDoubleArray(norms->quantile, QUANTILES));
    char *text = cJSON_PrintUnformatted(manifest);
    if (!text)
        return -ENOMEM;
    puts(text);
    cJSON_free(text);
    return 0;
}

static int print_digest(const struct command_line *line, const char *path, char *error,
                        size_t error_size)
{
    char hex[65];
    const int rc = digest_snapshot(path, hex, error, error_size);
    if (rc < 0)
        return rc;
    printf(command_value(line, "json") ? "{\"digest\":\"%s\"}\n" : "%s\n", hex);
    return 0;
}

static int inspect(const struct command_line *line, const char *path, char *error,
                   size_t error_size)
{
    struct tt_reader *r;
    struct norms norms;
    int rc = tt_open(&r, path, error, error_size);
    if (rc < 0)
        return rc;
    cJSON *manifest = cJSON_Parse(tt_manifest_json(r));
    snprintf(error, error_size, "%s: out of memory", tt_path(r));
    rc = manifest ? norms_measure(&norms, r) : -ENOMEM;
    if (rc == 0 && command_value(line, "json")) {
        rc = print_json(r, manifest, &norms);
    } else if (rc == 0) {
        print_head(r, manifest);
        print_numerics(manifest);
        print_ranker(manifest);
        print_quality(manifest);
        print_norms(&norms);
        print_files(r);
    }
    cJSON_Delete(manifest);
    tt_close(r);
    return rc;
}

int cmd_inspect(const struct config *config, const struct command_line *line)
{
    char error[PATH_MAX + 512];
    const char *path = line->operands[0];
    (void)config;
    const int rc = command_value(line, "digest") ? print_digest(line, path, error, sizeof error)
                                                 : inspect(line, path, error, sizeof error);
    return rc < 0 ? command_fail(line, serving_status(path, rc), "%s", error) : EX_OK;
}
