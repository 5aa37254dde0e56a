// SPDX-License-Identifier: Apache-2.0
//
// twotower topk: what a serving fleet does, from the files of a snapshot alone. For a user: the
// query from history, own row and dense matrices, then the items of the largest inner product,
// the repeat term added exactly; with --rerank the best of them once more, by the light ranker. For
// an item: those at the smallest angle to it.
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

#include "daemon/assemble.h"
#include "daemon/command.h"
#include "daemon/serving.h"
#include "model/arena.h"
#include "model/kernels.h"
#include "model/tables.h"
#include "model/topk.h"

enum { K_DEFAULT = 10, K_MAX = 1000000 };

struct asking {
    const struct command_line *line;
    struct tt_reader *reader;
    struct serving serving;
    struct two_tower_options options;
    struct view view;
    struct model_state state;
    float *dense;
    const char *score; // what the score is, for --json
    struct topk_entry *best;
    int k, n;
    int candidates; // of the first stage: k, or as many as the light ranker orders again
    // With --rerank only:
    struct ranked *ranked; // what the second stage says, in the order of best
    float *query;
};

// An item of the second stage.
struct ranked {
    float value; // by the light ranker
    struct topk_entry first;
    int place; // in the first stage, from 1
};

// ---- The towers

// The value of a line "key=value" as config_model_text writes it: without its quotes, if any.
static void unquote(char *value)
{
    char *to = value;
    if (*value != '"')
        return;
    for (const char *from = value + 1; *from && *from != '"'; from++) {
        from += *from == '\\' && from[1];
        *to++ = *from;
    }
    *to = 0;
}

// The options of the model that learned this, from the manifest: no configuration is needed.
static int options_load(struct asking *a)
{
    static char memory[CONFIG_MEMORY];
    static struct config config;
    static struct config_problems problems;
    const struct tt_reader *r = a->reader;
    cJSON *manifest = cJSON_Parse(tt_manifest_json(r));
    const char *all = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(manifest, "options"));
    int status = EX_OK;
    config_init(&config, &(struct arena){memory, sizeof memory, 0});
    problems.n = all ? 0 : 1;
    for (const char *text = all; text && *text;
         text += strcspn(text, "\n"), text += *text == '\n') {
        char key[64], value[256];
        // Only the model's: how its examples were joined changes no vector.
        if (sscanf(text, "%63[^=\n]=%255[^\n]", key, value) != 2 || strncmp(key, "model.", 6) != 0)
            continue;
        unquote(value);
        config_set(&config, key, value, "options", &problems);
    }
    cJSON_Delete(manifest);
    if (problems.n == 0)
        config_check(&config, &problems);
    if (problems.n)
        status = command_fail(a->line, EX_DATAERR, "%s: manifest.json: options: %s", tt_path(r),
                              all ? problems.list[0].text : "missing");
    a->options = assemble_model(&config);
    return status;
}

static int dense_load(struct asking *a)
{
    const struct two_tower_options *o = &a->options;
    struct dense_parameter d;
    size_t size = 0;
    for (int i = 0; view_dense(o, i, &d); i++) {
        const size_t end = d.offset + (size_t)d.rows * (size_t)d.columns;
        size = end > size ? end : size;
    }
    size = (size * sizeof(float) + 63) / 64 * 64;
    a->dense = aligned_alloc(64, size);
    if (!a->dense)
        return command_fail(a->line, EX_OSERR, "out of memory");
    memset(a->dense, 0, size);
    for (int i = 0; view_dense(o, i, &d); i++) {
        char role[96];
        snprintf(role, sizeof role, "dense_%s", d.name);
        const struct tt_array *m = tt_find(a->reader, role);
        if (!m || strcmp(m->dtype, "F32") != 0 || m->n_dims != 2 ||
            m->shape[0] != (uint64_t)d.rows || m->shape[1] != (uint64_t)d.columns)
            return command_fail(a->line, EX_DATAERR, "%s: no matrix %s of %d x %d",
                                tt_path(a->reader), role, d.rows, d.columns);
        memcpy(a->dense + d.offset, m->data, (size_t)m->size);
    }
    a->view = (struct view){
        .options = o, .dense = a->dense, .state = &a->state, .items_known = a->serving.items.n};
    return EX_OK;
}

static int towers_load(struct asking *a)
{
    const int status = options_load(a);
    if (status != EX_OK)
        return status;
    // From here on the width is one that a configuration may have.
    if ((size_t)a->options.dim != a->serving.dim)
        return command_fail(a->line, EX_DATAERR, "%s: model.dim is %d, the vectors have %zu",
                            tt_path(a->reader), a->options.dim, a->serving.dim);
    return dense_load(a);
}

// ---- For a user

// The caller's history: ids separated by commas, newest first.
static int history_given(const struct asking *a, const char *text, uint32_t *rows, int *n)
{
    const char *path = tt_path(a->reader);
    for (*n = 0; *text; text += strcspn(text, ","), text += *text == ',') {
        char id[512];
        uint64_t row;
        if (snprintf(id, sizeof id, "%.*s", (int)strcspn(text, ","), text) >= (int)sizeof id ||
            *n == HISTORY_MAX)
            return command_fail(a->line, EX_USAGE, "--history takes up to %d ids", HISTORY_MAX);
        const int rc = serving_row(&a->serving.items, id, &row);
        if (rc < 0)
            return rc == -ENOENT ? command_fail(a->line, EX_NOINPUT, "%s: no item '%s'", path, id)
                                 : command_fail(a->line, EX_DATAERR,
                                                "%s: ids and index of the items disagree", path);
        rows[(*n)++] = (uint32_t)row;
    }
    return EX_OK;
}

static int history_stored(const struct asking *a, uint64_t user, uint32_t *rows, int *n)
{
    const struct serving *s = &a->serving;
    const uint32_t *stored = s->user_history + user * s->history;
    for (*n = 0; (size_t)*n < s->history && *n < HISTORY_MAX && stored[*n] != TT_NO_ROW; ++*n) {
        rows[*n] = stored[*n];
        if (rows[*n] >= s->items.n)
            return command_fail(a->line, EX_DATAERR,
                                "%s: the history of user row %" PRIu64 " has no item row %" PRIu32,
                                tt_path(a->reader), user, rows[*n]);
    }
    return EX_OK;
}

static int by_value(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;
    const struct topk_entry valued[] = {{x->value, x->first.row}, {y->value, y->first.row}};
    return topk_before(valued[0], valued[1]) ? -1 : 1; // no row is there twice
}

// The second stage: what the first one found, by the light ranker's value. k of them are left.
static int rerank(struct asking *a, const float *query, int n, const uint32_t *rows)
{
    const struct serving *s = &a->serving;
    float *values = calloc((size_t)n + 1, sizeof *values);
    a->ranked = calloc((size_t)n + 1, sizeof *a->ranked);
    a->query = calloc(s->dim, sizeof *a->query);
    const bool memory = values && a->ranked && a->query;
    if (memory) {
        memcpy(a->query, query, s->dim * sizeof *query);
        serving_rank(s, query, n, rows, s->ranker.weight, values);
        for (int i = 0; i < n; i++)
            a->ranked[i] = (struct ranked){values[i], a->best[i], i + 1};
        qsort(a->ranked, (size_t)n, sizeof *a->ranked, by_value);
        for (int i = 0; i < n; i++)
            a->best[i] = a->ranked[i].first;
        a->n = n < a->k ? n : a->k;
    }
    free(values);
    return memory ? EX_OK : command_fail(a->line, EX_OSERR, "out of memory");
}

// The time of the snapshot, to which its golden queries refer: the newest event it has seen.
static int64_t snapshot_now_ms(const struct asking *a)
{
    cJSON *manifest = cJSON_Parse(tt_manifest_json(a->reader));
    const cJSON *lineage = cJSON_GetObjectItemCaseSensitive(manifest, "lineage");
    const cJSON *now = cJSON_GetObjectItemCaseSensitive(lineage, "event_time_max_ms");
    const int64_t ms = cJSON_IsNumber(now) ? (int64_t)now->valuedouble : 0;
    cJSON_Delete(manifest);
    return ms;
}

// What is known of a stored history's events. A history given by hand is of just now, and nobody
// says what was done.
static void events_stored(const struct asking *a, uint64_t user, int n, uint8_t *gaps,
                          struct recent *recent)
{
    const struct serving *s = &a->serving;
    if (s->user_history_ms) {
        const int64_t now_ms = snapshot_now_ms(a);
        for (int k = 0; k < n; k++)
            gaps[k] = history_gap(now_ms - s->user_history_ms[user * s->history + (uint64_t)k]);
        recent->gaps = gaps;
    }
    if (s->user_history_actions)
        recent->actions = s->user_history_actions + user * s->history;
}

// user: a row, or TT_NO_ROW for one that the snapshot does not know. stored: the history is the
// snapshot's.
static int user_best(struct asking *a, uint64_t user, bool stored, int n, int newest,
                     const uint32_t *history)
{
    const struct serving *s = &a->serving;
    const float *vectors[HISTORY_MAX], *contexts[HISTORY_MAX];
    struct bonus bonuses[HISTORY_MAX];
    uint32_t bonus_rows[HISTORY_MAX];
    float bonus_scores[HISTORY_MAX], query[a->options.dim + 1];
    if (a->options.kind == MODEL_RECIPE && !s->item_context)
        return command_fail(a->line, EX_DATAERR, "%s: item_context.f32.safetensors is missing",
                            tt_path(a->reader));
    if (two_tower_reads_gaps(&a->options) && !s->user_history_ms)
        return command_fail(a->line, EX_DATAERR, "%s: user_history_ms.safetensors is missing",
                            tt_path(a->reader));
    if (two_tower_reads_actions(&a->options) && !s->user_history_actions)
        return command_fail(a->line, EX_DATAERR, "%s: user_history_actions.safetensors is missing",
                            tt_path(a->reader));
    if (a->options.kind == MODEL_TWO_TOWER && a->options.attention && !s->item_row)
        return command_fail(a->line, EX_DATAERR, "%s: item_row.f32.safetensors is missing",
                            tt_path(a->reader));
    for (int k = 0; k < n; k++) {
        vectors[k] = s->item_row ? s->item_row + history[k] * s->dim
                                 : s->item_vector + history[k] * (s->dim + 1);
        contexts[k] = s->item_context ? s->item_context + history[k] * s->dim : NULL;
    }
    uint8_t gaps[HISTORY_MAX];
    struct recent recent = {n, newest, vectors, contexts, NULL, NULL};
    if (stored)
        events_stored(a, user, n, gaps, &recent);
    view_query(&a->view, &recent, user == TT_NO_ROW ? NULL : s->user_vector + user * s->dim, NULL,
               query);
    const int n_bonuses = view_bonuses(&a->view, n, history, bonuses);
    for (int b = 0; b < n_bonuses; b++) {
        bonus_rows[b] = bonuses[b].row;
        bonus_scores[b] = bonuses[b].score;
    }
    uint32_t *rows = calloc((size_t)a->candidates + 1, sizeof *rows);
    float *scores = calloc((size_t)a->candidates + 1, sizeof *scores);
    int64_t found = -ENOMEM;
    int status = EX_OK;
    if (rows && scores)
        found = tt_topk(&(struct tt_query){.items = s->items_array,
                                           .vector = query,
                                           .k = (uint32_t)a->candidates,
                                           .n_adjust = (uint32_t)n_bonuses,
                                           .adjust_rows = bonus_rows,
                                           .adjust_bonus = bonus_scores},
                        rows, scores);
    for (int64_t i = 0; i < found; i++)
        a->best[a->n++] = (struct topk_entry){scores[i], rows[i]};
    if (found < 0)
        status = command_fail(a->line, EX_OSERR, "%s", strerror((int)-found));
    else if (command_value(a->line, "rerank"))
        status = rerank(a, query, (int)found, rows);
    free(rows);
    free(scores);
    a->score = "inner product";
    return status;
}

static int ask_user(struct asking *a, const char *id, const char *given)
{
    uint32_t history[HISTORY_MAX];
    uint64_t user = TT_NO_ROW;
    int n = 0, status;
    const int rc = id ? serving_row(&a->serving.users, id, &user) : -ENOENT;
    if (rc == -EBADMSG)
        return command_fail(a->line, EX_DATAERR, "%s: ids and index of the users disagree",
                            tt_path(a->reader));
    if (rc < 0)
        user = TT_NO_ROW;
    if (rc < 0 && !given)
        return command_fail(a->line, EX_NOINPUT,
                            "%s: no user '%s'; --history can give what is known of one",
                            tt_path(a->reader), id);
    status = given ? history_given(a, given, history, &n) : history_stored(a, user, history, &n);
    if (status == EX_OK)
        status = towers_load(a);
    // A history given by hand says nothing of times: its items count as one after the other.
    const uint32_t together = given ? 1 : a->serving.user_newest[user];
    const int newest = together < (uint32_t)n ? (int)together : n;
    return status == EX_OK ? user_best(a, user, !given, n, newest, history) : status;
}

// ---- For an item

// Cosines: a neighbour is alike, however popular and however long its vector.
static int ask_item(struct asking *a, const char *id)
{
    const struct serving *s = &a->serving;
    const size_t w = s->dim + 1;
    uint64_t item;
    const int rc = serving_row(&s->items, id, &item);
    if (rc == -ENOENT)
        return command_fail(a->line, EX_NOINPUT, "%s: no item '%s'", tt_path(a->reader), id);
    if (rc < 0)
        return command_fail(a->line, EX_DATAERR, "%s: ids and index of the items disagree",
                            tt_path(a->reader));
    const float *v = s->item_vector + item * w;
    const float length = sqrtf(kernels->dot(s->dim, v, v));
    for (uint32_t row = 0; row < s->items.n; row++) {
        const float *u = s->item_vector + row * w;
        const float lengths = length * sqrtf(kernels->dot(s->dim, u, u));
        const float cosine = lengths > 0 ? kernels->dot(s->dim, v, u) / lengths : 0;
        if (row != item)
            topk_push(a->best, &a->n, a->k, (struct topk_entry){cosine, row});
    }
    topk_sort(a->best, a->n);
    a->score = "cosine";
    return EX_OK;
}

// ---- The answer

static void report(const struct asking *a)
{
    const struct serving *s = &a->serving;
    int width = 2;
    for (int i = 0; i < a->n; i++) {
        struct tt_id id;
        if (tt_id_of_row(&s->items, a->best[i].row, &id) == 0 && id.bytes && (int)id.size > width)
            width = id.size < 40 ? (int)id.size : 40;
    }
    for (int i = 0; i < a->n; i++) {
        const uint32_t row = a->best[i].row;
        struct tt_id id = {.kind = TT_ID_STRING, .bytes = "?", .size = 1};
        uint64_t size = 0;
        const char *title = tt_string(&s->titles, row, &size);
        tt_id_of_row(&s->items, row, &id);
        printf("%4d  ", i + 1);
        if (a->ranked)
            printf("%10.5f  ", (double)a->ranked[i].value);
        printf("%10.5f  ", (double)a->best[i].score);
        if (id.bytes)
            serving_text(id.bytes, (size_t)id.size, stdout);
        else
            printf("%-20" PRIu64, id.integer);
        if (title && size > 0) {
            printf("%*s  ", id.bytes && (int)id.size < width ? width - (int)id.size : 0, "");
            serving_text(title, (size_t)size, stdout);
        }
        putchar('\n');
    }
}

static void text_json(cJSON *object, const char *key, const char *bytes, uint64_t size)
{
    char *text = strndup(bytes ? bytes : "", (size_t)size);
    cJSON_AddStringToObject(object, key, text ? text : "");
    free(text);
}

// An integer stands as one, with all of its digits.
static void id_json(cJSON *object, const struct tt_id *id)
{
    char text[24];
    if (!id->bytes)
        snprintf(text, sizeof text, "%" PRIu64, id->integer);
    else if (id->kind == TT_ID_INTEGER && id->size < sizeof text)
        snprintf(text, sizeof text, "%.*s", (int)id->size, id->bytes);
    else
        *text = 0;
    const char *digits = text + (*text == '-');
    if (*digits && !digits[strspn(digits, "0123456789")])
        cJSON_AddRawToObject(object, "id", text);
    else
        text_json(object, "id", id->bytes, id->size);
}

// What the light ranker says of the item at this place of the answer: its value, and what the value
// is made of.
static void ranked_json(const struct asking *a, int i, cJSON *item)
{
    const struct serving_ranker *ranker = &a->serving.ranker;
    cJSON_AddNumberToObject(item, "value", (double)a->ranked[i].value);
    cJSON_AddNumberToObject(item, "retrieved", a->ranked[i].place);
    cJSON *tasks = cJSON_AddObjectToObject(item, "tasks");
    for (int t = 0; t < ranker->shape.tasks; t++) {
        float weight[SLATE_TASKS_MAX] = {0}, probability;
        weight[t] = 1;
        serving_rank(&a->serving, a->query, 1, &a->best[i].row, weight, &probability);
        cJSON_AddNumberToObject(tasks, ranker->name[t], (double)probability);
    }
}

static int report_json(const struct asking *a)
{
    const struct serving *s = &a->serving;
    cJSON *root = cJSON_CreateObject();
    cJSON_AddNumberToObject(root, "generation", (double)tt_snapshot(a->reader));
    cJSON_AddStringToObject(root, "score", a->score);
    cJSON *items = cJSON_AddArrayToObject(root, "items");
    for (int i = 0; i < a->n; i++) {
        const uint32_t row = a->best[i].row;
        struct tt_id id = {.kind = TT_ID_STRING, .bytes = "?", .size = 1};
        uint64_t size = 0;
        cJSON *item = cJSON_CreateObject();
        tt_id_of_row(&s->items, row, &id);
        const char *title = tt_string(&s->titles, row, &size);
        cJSON_AddNumberToObject(item, "rank", i + 1);
        cJSON_AddNumberToObject(item, "score", (double)a->best[i].score);
        id_json(item, &id);
        text_json(item, "title", title, size);
        cJSON_AddNumberToObject(item, "row", row);
        if (a->ranked)
            ranked_json(a, i, item);
        cJSON_AddItemToArray(items, item);
    }
    char *text = cJSON_PrintUnformatted(root);
    cJSON_Delete(root);
    if (!text)
        return command_fail(a->line, EX_OSERR, "out of memory");
    puts(text);
    cJSON_free(text);
    return EX_OK;
}

static int ask(struct asking *a, const char *user, const char *item, const char *history)
{
    char error[PATH_MAX + 512];
    const char *path = a->line->operands[0];
    int rc = tt_open(&a->reader, path, error, sizeof error);
    if (rc == 0)
        rc = serving_init(&a->serving, a->reader, error, sizeof error);
    if (rc < 0)
        return command_fail(a->line, serving_status(path, rc), "%s", error);
    if (command_value(a->line, "rerank") && a->serving.ranker.shape.tasks == 0)
        return command_fail(a->line, EX_DATAERR,
                            "%s: no light ranker to order items again with: the model was learned "
                            "without one (ranker.weight)",
                            tt_path(a->reader));
    const uint64_t n = a->serving.items.n;
    const int all = n == 0 ? 1 : n < K_MAX ? (int)n : K_MAX;
    a->k = a->k < all ? a->k : all;
    a->candidates = a->candidates < all ? a->candidates : all;
    a->best = calloc((size_t)a->candidates, sizeof *a->best);
    if (!a->best)
        return command_fail(a->line, EX_OSERR, "out of memory");
    int status = item ? ask_item(a, item) : ask_user(a, user, history);
    if (status == EX_OK && command_value(a->line, "json"))
        status = report_json(a);
    else if (status == EX_OK)
        report(a);
    return status;
}

int cmd_topk(const struct config *config, const struct command_line *line)
{
    const char *user = command_value(line, "user"), *item = command_value(line, "item");
    const char *history = command_value(line, "history");
    struct asking a = {.line = line};
    long long k, candidates;
    (void)config;
    if (item ? user || history : !user && !history)
        return command_fail(line, EX_USAGE, "give --item, or --user, --history or both");
    if (command_number(line, "k", 1, K_MAX, K_DEFAULT, &k) < 0)
        return EX_USAGE;
    if (item && command_value(line, "rerank"))
        return command_fail(line, EX_USAGE, "--rerank is for a user: an item has no query");
    if (command_number(line, "rerank", 1, K_MAX, k, &candidates) < 0)
        return EX_USAGE;
    if (candidates < k)
        return command_fail(line, EX_USAGE,
                            "--rerank %lld is fewer than the --k %lld to be printed", candidates,
                            k);
    a.k = (int)k;
    a.candidates = (int)candidates;
    kernels_init(NULL);
    const int status = ask(&a, user, item, history);
    free(a.best);
    free(a.ranked);
    free(a.query);
    free(a.dense);
    tt_close(a.reader);
    return status;
}
