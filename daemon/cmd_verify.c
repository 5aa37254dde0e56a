// SPDX-License-Identifier: Apache-2.0
//
// twotower verify: reads a snapshot or a checkpoint as a whole and says whether it is what its
// manifest promises. Of a checkpoint, every byte by its checksum. Of a snapshot also that ids and
// index agree, that histories and titles lie within their tables, that the light ranker fits the
// vectors, and that golden.json still comes out when its queries are asked again.
#include <cjson/cJSON.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "daemon/command.h"
#include "daemon/serving.h"
#include "snapshot/crc32c.h"
#include "snapshot/digest.h"
#include "snapshot/manifest.h"

// Of a golden score, relative to the size of what is summed: the order of a sum is the reader's.
static const double TOLERANCE = 1e-5;

struct checking {
    struct tt_reader *reader;
    struct serving serving;
    bool serves; // a snapshot for fleets; else only arrays
    char digest[65];
    char error[PATH_MAX + 512];
};

__attribute__((format(printf, 2, 3))) static int damaged(struct checking *c, const char *format,
                                                         ...)
{
    va_list args;
    const int n = snprintf(c->error, sizeof c->error, "%s: ", tt_path(c->reader));
    va_start(args, format);
    if (n >= 0 && (size_t)n < sizeof c->error)
        vsnprintf(c->error + n, sizeof c->error - (size_t)n, format, args);
    va_end(args);
    return -EBADMSG;
}

// ---- What is opened

// What LATEST in this directory says: 1; 0 when there is none, as in a snapshot itself.
static int latest_read(struct checking *c, const char *path, uint64_t *generation, uint32_t *crc)
{
    char file[PATH_MAX], text[LATEST_SIZE_MAX + 1];
    if (snprintf(file, sizeof file, "%s/LATEST", path) >= (int)sizeof file)
        return -ENAMETOOLONG;
    FILE *f = fopen(file, "re");
    if (!f)
        return 0;
    const size_t n = fread(text, 1, LATEST_SIZE_MAX, f);
    fclose(f);
    text[n] = 0;
    if (latest_parse(text, n, generation, crc))
        return 1;
    snprintf(c->error, sizeof c->error, "%s: not \"<number> <crc32c>\"", file);
    return -EBADMSG;
}

// A fleet that finds the newest snapshot damaged goes on with the one before it, and so does
// tt_open. Here that is what is to be told.
static int open_named(struct checking *c, const char *path)
{
    uint64_t generation = 0;
    uint32_t crc = 0;
    const int named = latest_read(c, path, &generation, &crc);
    if (named < 0)
        return named;
    int rc = tt_open(&c->reader, path, c->error, sizeof c->error);
    if (rc < 0 || !named || tt_snapshot(c->reader) > generation) // published meanwhile
        return rc;
    if (tt_snapshot(c->reader) < generation) {
        char newest[PATH_MAX];
        tt_close(c->reader);
        snprintf(newest, sizeof newest, "%.4000s/%" PRIu64, path, generation);
        rc = tt_open(&c->reader, newest, c->error, sizeof c->error);
        if (rc < 0)
            return rc;
    }
    const char *text = tt_manifest_json(c->reader);
    if (crc32c(0, text, strlen(text)) != crc)
        return damaged(c, "manifest.json is not the one LATEST means");
    return 0;
}

// ---- What is in it

static int check_ids(struct checking *c, const char *name, const struct tt_table *t)
{
    for (uint64_t row = 0; row < t->n; row++) {
        struct tt_id id;
        uint64_t found = TT_NO_ROW;
        int rc = tt_id_of_row(t, row, &id);
        if (rc == 0 && t->integer)
            rc = tt_row_of_unsigned(t, id.integer, &found);
        else if (rc == 0 && id.kind == TT_ID_STRING)
            rc = tt_row_of_string(t, id.bytes, (size_t)id.size, &found);
        else if (rc == 0) {
            char text[32];
            snprintf(text, sizeof text, "%.*s", (int)(id.size < 31 ? id.size : 31), id.bytes);
            rc = text[0] == '-' ? tt_row_of_integer(t, strtoll(text, NULL, 10), &found)
                                : tt_row_of_unsigned(t, strtoull(text, NULL, 10), &found);
        }
        if (rc < 0 || found != row)
            return damaged(c, "the %s index does not find the id of row %" PRIu64, name, row);
    }
    return 0;
}

static int check_titles(struct checking *c)
{
    uint64_t size;
    for (uint64_t row = 0; row < c->serving.titles.n; row++)
        if (!tt_string(&c->serving.titles, row, &size))
            return damaged(c, "the title of item row %" PRIu64 " lies outside its file", row);
    return 0;
}

static int check_histories(struct checking *c)
{
    const struct serving *s = &c->serving;
    for (uint64_t user = 0; user < s->users.n; user++) {
        const uint32_t *rows = s->user_history + user * s->history;
        size_t n = 0;
        while (n < s->history && rows[n] < s->items.n)
            n++;
        for (size_t k = n; k < s->history; k++)
            if (rows[k] != TT_NO_ROW)
                return damaged(c, "the history of user row %" PRIu64 " has no item row %" PRIu32,
                               user, rows[k]);
        if (s->user_newest[user] > n)
            return damaged(c, "the history of user row %" PRIu64 " has no %" PRIu32 " newest", user,
                           s->user_newest[user]);
    }
    return 0;
}

// ---- golden.json

// One golden user, read.
struct golden {
    float *query; // (dim + 1)
    uint32_t n_bonuses, n_top;
    uint32_t *bonus_rows, *top_rows, *found_rows;
    float *bonuses, *top_scores, *found_scores;
    float *values; // (n_top) of the light ranker, if there is one
};

static bool number_read(const cJSON *item, float *number)
{
    *number = cJSON_IsNumber(item) ? (float)item->valuedouble : NAN;
    return isfinite(*number);
}

static bool row_read(const cJSON *object, uint64_t n, uint32_t *row)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, "row");
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0 && item->valuedouble < (double)n))
        return false;
    *row = (uint32_t)item->valuedouble;
    return true;
}

// A string ends at its first zero byte, and a number has 53 bits: as JSON readers have them.
static bool id_matches(const cJSON *json, const struct tt_table *t, uint32_t row)
{
    struct tt_id id;
    if (tt_id_of_row(t, row, &id) < 0)
        return false;
    if (cJSON_IsString(json)) {
        const size_t n = strlen(json->valuestring);
        return id.bytes && id.kind == TT_ID_STRING && strnlen(id.bytes, (size_t)id.size) == n &&
               memcmp(id.bytes, json->valuestring, n) == 0;
    }
    if (!cJSON_IsNumber(json) || id.kind != TT_ID_INTEGER)
        return false;
    char text[32] = "";
    if (id.bytes)
        snprintf(text, sizeof text, "%.*s", (int)(id.size < 31 ? id.size : 31), id.bytes);
    const double number = id.bytes ? strtod(text, NULL) : (double)id.integer;
    return number == json->valuedouble;
}

static bool golden_read(const struct serving *s, const cJSON *user, struct golden *g)
{
    const cJSON *query = cJSON_GetObjectItemCaseSensitive(user, "query");
    const cJSON *bonuses = cJSON_GetObjectItemCaseSensitive(user, "bonuses");
    const cJSON *top = cJSON_GetObjectItemCaseSensitive(user, "top"), *entry;
    uint32_t row;
    if (!row_read(user, s->users.n, &row) ||
        !id_matches(cJSON_GetObjectItemCaseSensitive(user, "user_id"), &s->users, row))
        return false;
    if (!cJSON_IsArray(query) || !cJSON_IsArray(bonuses) || !cJSON_IsArray(top) ||
        (size_t)cJSON_GetArraySize(query) != s->dim + 1 ||
        (uint64_t)cJSON_GetArraySize(bonuses) > s->items.n ||
        (uint64_t)cJSON_GetArraySize(top) > s->items.n)
        return false;
    size_t i = 0;
    cJSON_ArrayForEach(entry, query) if (!number_read(entry, &g->query[i++])) return false;
    cJSON_ArrayForEach(entry, bonuses)
    {
        const uint32_t n = g->n_bonuses++;
        if (!row_read(entry, s->items.n, &g->bonus_rows[n]) ||
            !number_read(cJSON_GetObjectItemCaseSensitive(entry, "bonus"), &g->bonuses[n]))
            return false;
    }
    cJSON_ArrayForEach(entry, top)
    {
        const uint32_t n = g->n_top++;
        const cJSON *value = cJSON_GetObjectItemCaseSensitive(entry, "value");
        if (s->ranker.shape.tasks > 0 && !number_read(value, &g->values[n]))
            return false;
        if (!row_read(entry, s->items.n, &g->top_rows[n]) ||
            !number_read(cJSON_GetObjectItemCaseSensitive(entry, "score"), &g->top_scores[n]) ||
            !id_matches(cJSON_GetObjectItemCaseSensitive(entry, "item_id"), &s->items,
                        g->top_rows[n]))
            return false;
    }
    return true;
}

// Whether this is the score of the row, within the tolerance.
static bool score_is(const struct serving *s, const struct golden *g, uint32_t row, float score)
{
    const float *v = s->item_vector + row * (s->dim + 1);
    double sum = 0, size = 1;
    for (size_t i = 0; i <= s->dim; i++) {
        const double product = (double)g->query[i] * (double)v[i];
        sum += product;
        size += fabs(product);
    }
    for (uint32_t b = 0; b < g->n_bonuses; b++)
        if (g->bonus_rows[b] == row) {
            sum += (double)g->bonuses[b];
            size += fabs((double)g->bonuses[b]);
        }
    return fabs(sum - (double)score) <= TOLERANCE * size;
}

// Whether the light ranker gives the rows these values, within the tolerance of its sums.
static bool values_are(const struct serving *s, const struct golden *g)
{
    static const double VALUE_TOLERANCE = 1e-4;
    const struct serving_ranker *r = &s->ranker;
    float size[SLATE_TASKS_MAX];
    for (int t = 0; t < r->shape.tasks; t++)
        size[t] = fabsf(r->weight[t]);
    for (uint32_t i = 0; i < g->n_top && r->shape.tasks > 0; i++) {
        float value, most;
        serving_rank(s, g->query, 1, &g->top_rows[i], r->weight, &value);
        serving_rank(s, g->query, 1, &g->top_rows[i], size, &most);
        if (!(fabs((double)value - (double)g->values[i]) <= VALUE_TOLERANCE * (1 + (double)most)))
            return false;
    }
    return true;
}

static int golden_compare(struct checking *c, const struct golden *g, int number)
{
    const struct serving *s = &c->serving;
    const int64_t n = tt_topk(&(struct tt_query){.items = s->items_array,
                                                 .vector = g->query,
                                                 .k = g->n_top,
                                                 .n_adjust = g->n_bonuses,
                                                 .adjust_rows = g->bonus_rows,
                                                 .adjust_bonus = g->bonuses},
                              g->found_rows, g->found_scores);
    if (n == -ENOMEM) {
        snprintf(c->error, sizeof c->error, "out of memory");
        return -ENOMEM;
    }
    // Two items may change places within the tolerance; so each must have its score, and each
    // place.
    for (uint32_t i = 0; i < g->n_top; i++)
        if (n != (int64_t)g->n_top || !score_is(s, g, g->top_rows[i], g->top_scores[i]) ||
            !score_is(s, g, g->found_rows[i], g->top_scores[i]))
            return damaged(c,
                           "golden.json: user %d: place %" PRIu32 " is row %" PRIu32
                           " with %g, not row %" PRIu32 " with %g",
                           number, i + 1, g->found_rows[i], (double)g->found_scores[i],
                           g->top_rows[i], (double)g->top_scores[i]);
    if (!values_are(s, g))
        return damaged(c, "golden.json: user %d: the light ranker gives other values", number);
    return 0;
}

static int golden_user(struct checking *c, const cJSON *user, int number)
{
    const size_t w = c->serving.dim + 1;
    const int bonuses = cJSON_GetArraySize(cJSON_GetObjectItemCaseSensitive(user, "bonuses"));
    const int top = cJSON_GetArraySize(cJSON_GetObjectItemCaseSensitive(user, "top"));
    const size_t B = (size_t)bonuses, T = (size_t)top;
    float *memory = calloc(w + 2 * B + 5 * T, sizeof *memory);
    if (!memory) {
        snprintf(c->error, sizeof c->error, "out of memory");
        return -ENOMEM;
    }
    struct golden g = {.query = memory,
                       .bonuses = memory + w,
                       .top_scores = memory + w + B,
                       .found_scores = memory + w + B + T,
                       .values = memory + w + B + 2 * T,
                       .bonus_rows = (uint32_t *)(void *)(memory + w + B + 3 * T),
                       .top_rows = (uint32_t *)(void *)(memory + w + 2 * B + 3 * T),
                       .found_rows = (uint32_t *)(void *)(memory + w + 2 * B + 4 * T)};
    const int rc = golden_read(&c->serving, user, &g)
                       ? golden_compare(c, &g, number)
                       : damaged(c, "golden.json: user %d contradicts the tables", number);
    free(memory);
    return rc;
}

static int check_golden(struct checking *c)
{
    const struct tt_array *file = tt_find(c->reader, "golden.json");
    cJSON *json = file ? cJSON_ParseWithLength(file->data, (size_t)file->size) : NULL;
    const cJSON *users = cJSON_GetObjectItemCaseSensitive(json, "users"), *user;
    int rc = cJSON_IsArray(users) ? 0 : damaged(c, "golden.json: missing, or has no users");
    int number = 0;
    if (rc == 0)
        cJSON_ArrayForEach(user, users) if (rc == 0) rc = golden_user(c, user, ++number);
    cJSON_Delete(json);
    return rc;
}

// ---- The verdict

static int check(struct checking *c, const char *path)
{
    int rc = open_named(c, path);
    if (rc == 0) // verifies every byte on the way
        rc = digest_snapshot(tt_path(c->reader), c->digest, c->error, sizeof c->error);
    c->serves = rc == 0 && strcmp(tt_format(c->reader), SERVING_FORMAT) == 0;
    if (!c->serves)
        return rc;
    rc = serving_init(&c->serving, c->reader, c->error, sizeof c->error);
    if (rc == 0)
        rc = check_ids(c, "item", &c->serving.items);
    if (rc == 0)
        rc = check_ids(c, "user", &c->serving.users);
    if (rc == 0)
        rc = check_titles(c);
    if (rc == 0)
        rc = check_histories(c);
    return rc == 0 ? check_golden(c) : rc;
}

// Of all files together with the manifest, as the daemon counts them when it publishes.
static double bytes_of(const struct tt_reader *r)
{
    cJSON *manifest = cJSON_Parse(tt_manifest_json(r));
    const cJSON *file;
    double bytes = (double)strlen(tt_manifest_json(r));
    cJSON_ArrayForEach(file, cJSON_GetObjectItemCaseSensitive(manifest, "files"))
    {
        const cJSON *size = cJSON_GetObjectItemCaseSensitive(file, "size");
        bytes += cJSON_IsNumber(size) ? size->valuedouble : 0;
    }
    cJSON_Delete(manifest);
    return bytes;
}

static void report_json(const struct checking *c, int rc)
{
    cJSON *root = cJSON_CreateObject();
    cJSON_AddBoolToObject(root, "ok", rc == 0);
    if (rc < 0) {
        cJSON_AddStringToObject(root, "error", c->error);
    } else {
        cJSON_AddStringToObject(root, "path", tt_path(c->reader));
        cJSON_AddStringToObject(root, "format", tt_format(c->reader));
        cJSON_AddNumberToObject(root, "generation", (double)tt_snapshot(c->reader));
        cJSON_AddNumberToObject(root, "arrays", tt_n_arrays(c->reader));
        if (c->serves) {
            cJSON_AddNumberToObject(root, "items", (double)c->serving.items.n);
            cJSON_AddNumberToObject(root, "users", (double)c->serving.users.n);
        }
        cJSON_AddNumberToObject(root, "bytes", bytes_of(c->reader));
        cJSON_AddStringToObject(root, "digest", c->digest);
    }
    char *text = cJSON_PrintUnformatted(root);
    cJSON_Delete(root);
    puts(text ? text : "{\"ok\":false,\"error\":\"out of memory\"}");
    cJSON_free(text);
}

static void report(const struct checking *c)
{
    printf("ok generation=%" PRIu64 " format=", tt_snapshot(c->reader));
    serving_text(tt_format(c->reader), strlen(tt_format(c->reader)), stdout);
    printf(" arrays=%d", tt_n_arrays(c->reader));
    if (c->serves)
        printf(" items=%" PRIu64 " users=%" PRIu64, c->serving.items.n, c->serving.users.n);
    printf(" bytes=%.0f digest=%s\n", bytes_of(c->reader), c->digest);
}

int cmd_verify(const struct config *config, const struct command_line *line)
{
    struct checking c = {.reader = NULL};
    const char *path = line->operands[0];
    (void)config;
    const int rc = check(&c, path);
    int status = serving_status(path, rc);
    if (command_value(line, "json"))
        report_json(&c, rc);
    else if (rc == 0)
        report(&c);
    else
        status = command_fail(line, status, "%s", c.error);
    tt_close(c.reader);
    return status;
}
