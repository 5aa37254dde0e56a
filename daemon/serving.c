// SPDX-License-Identifier: Apache-2.0
#include "daemon/serving.h"

#include <cjson/cJSON.h>
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "model/tables.h"
#include "snapshot/manifest.h"

static const struct tt_array *matrix(const struct tt_reader *r, const char *name, const char *dtype,
                                     int n_dims, uint64_t rows)
{
    const struct tt_array *a = tt_find(r, name);
    return a && strcmp(a->dtype, dtype) == 0 && a->n_dims == n_dims && a->shape[0] == rows ? a
                                                                                           : NULL;
}

static bool has_shape(const struct tt_array *a, const char *dtype, uint64_t rows, uint64_t columns)
{
    return strcmp(a->dtype, dtype) == 0 && a->n_dims == 2 && a->shape[0] == rows &&
           a->shape[1] == columns;
}

// ---- The light ranker

const char *const serving_forms[] = {
    [LIGHT_RANKER_PROBABILITIES] = "probability", [LIGHT_RANKER_CORRECTED] = "corrected"};
enum { FORMS = sizeof serving_forms / sizeof *serving_forms };

static const struct {
    const char *name;
    size_t at; // of its pointer in struct light_ranker_parameters
} ranker_arrays[] = {
    {"ranker_heads", offsetof(struct light_ranker_parameters, W_r)},
    {"ranker_heads_bias", offsetof(struct light_ranker_parameters, b_r)},
    {"ranker_tasks", offsetof(struct light_ranker_parameters, W_l)},
    {"ranker_tasks_bias", offsetof(struct light_ranker_parameters, b_l)},
};
enum { RANKER_ARRAYS = sizeof ranker_arrays / sizeof *ranker_arrays };

bool serving_reads(const char *parameter)
{
    for (int i = 0; i < RANKER_ARRAYS; i++)
        if (strcmp(parameter, ranker_arrays[i].name) == 0)
            return true;
    return false;
}

// A whole number of the manifest from 1 to most; 0 when it is anything else.
static int count_read(const cJSON *object, const char *name, int most)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
    const double x = cJSON_IsNumber(item) ? item->valuedouble : 0;
    return x >= 1 && x <= most && x == floor(x) ? (int)x : 0;
}

// The manifest's member "ranker".
static bool ranker_described(struct serving_ranker *ranker, const cJSON *json)
{
    const cJSON *tasks = cJSON_GetObjectItemCaseSensitive(json, "tasks"), *task;
    const char *value = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, "value"));
    const int n = cJSON_IsArray(tasks) ? cJSON_GetArraySize(tasks) : 0;
    int form = 0, t = 0;
    ranker->shape.width = count_read(json, "dim", LIGHT_RANKER_WIDTH_MAX);
    ranker->shape.heads = count_read(json, "heads", LIGHT_RANKER_HEADS_MAX);
    if (!value || !ranker->shape.width || !ranker->shape.heads || n < 1 || n > SLATE_TASKS_MAX)
        return false;
    while (form < FORMS && (!serving_forms[form] || strcmp(serving_forms[form], value) != 0))
        form++;
    if (form == FORMS)
        return false;
    ranker->form = (enum light_ranker_value)form;
    cJSON_ArrayForEach(task, tasks)
    {
        const char *name = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(task, "name"));
        const cJSON *weight = cJSON_GetObjectItemCaseSensitive(task, "weight");
        ranker->weight[t] = cJSON_IsNumber(weight) ? (float)weight->valuedouble : NAN;
        if (!name || strlen(name) > VALUE_NAME_MAX || !isfinite(ranker->weight[t]))
            return false;
        strcpy(ranker->name[t++], name);
    }
    ranker->shape.tasks = n;
    return true;
}

// The arrays that must be there for what the manifest says, with their shapes.
static bool ranker_bound(struct serving_ranker *ranker, const struct tt_reader *r)
{
    struct dense_parameter d;
    int bound = 0;
    for (int i = 0; light_ranker_parameter(&ranker->shape, i, &d); i++)
        for (int k = 0; k < RANKER_ARRAYS; k++) {
            char role[96];
            if (strcmp(d.name, ranker_arrays[k].name) != 0)
                continue;
            snprintf(role, sizeof role, "dense_%s", d.name);
            const struct tt_array *a = tt_find(r, role);
            if (!a || !has_shape(a, "F32", (uint64_t)d.rows, (uint64_t)d.columns))
                return false;
            memcpy((char *)&ranker->parameters + ranker_arrays[k].at, &a->data, sizeof a->data);
            bound++;
        }
    return bound == RANKER_ARRAYS;
}

// False when the snapshot has a light ranker, or parts of one, that cannot be served with vectors
// of this width.
static bool ranker_init(struct serving_ranker *ranker, const struct tt_reader *r, size_t dim)
{
    cJSON *manifest = cJSON_Parse(tt_manifest_json(r));
    const cJSON *json = cJSON_GetObjectItemCaseSensitive(manifest, "ranker");
    bool whole = manifest != NULL;
    if (json)
        whole = ranker_described(ranker, json) && (size_t)ranker->shape.width == dim &&
                ranker_bound(ranker, r);
    else
        for (int k = 0; k < RANKER_ARRAYS; k++) {
            char role[96];
            snprintf(role, sizeof role, "dense_%s", ranker_arrays[k].name);
            whole = whole && !tt_find(r, role);
        }
    cJSON_Delete(manifest);
    return whole;
}

void serving_rank(const struct serving *s, const float *q, int n, const uint32_t *rows,
                  const float *weight, float *value)
{
    enum { BLOCK = 32 };
    const struct serving_ranker *r = &s->ranker;
    float V[BLOCK * LIGHT_RANKER_WIDTH_MAX];
    for (int from = 0; from < n; from += BLOCK) {
        const int size = n - from < BLOCK ? n - from : BLOCK;
        for (int i = 0; i < size; i++)
            memcpy(V + (size_t)i * s->dim, s->item_vector + rows[from + i] * (s->dim + 1),
                   s->dim * sizeof *V);
        light_ranker_score(&r->parameters, &r->shape, q, size, V, weight, r->form, value + from);
    }
}

// ---- The whole

int serving_init(struct serving *s, const struct tt_reader *r, char *error, size_t error_size)
{
    *s = (struct serving){.reader = r};
    if (strcmp(tt_format(r), SERVING_FORMAT) != 0) {
        snprintf(error, error_size, "%s: a \"%s\", not a \"%s\"", tt_path(r), tt_format(r),
                 SERVING_FORMAT);
        return -EBADMSG;
    }
    if (tt_table(r, "item", &s->items, error, error_size) < 0 ||
        tt_table(r, "user", &s->users, error, error_size) < 0 ||
        tt_strings(r, "item_titles", &s->titles, error, error_size) < 0)
        return -EBADMSG;
    const struct tt_array *items = matrix(r, "item_emb.f32.safetensors", "F32", 2, s->items.n);
    const struct tt_array *users = matrix(r, "user_emb.f32.safetensors", "F32", 2, s->users.n);
    const struct tt_array *history = matrix(r, "user_history.safetensors", "U32", 2, s->users.n);
    const struct tt_array *newest = matrix(r, "user_newest.safetensors", "U32", 1, s->users.n);
    const struct tt_array *context = tt_find(r, "item_context.f32.safetensors");
    const struct tt_array *row = tt_find(r, "item_row.f32.safetensors");
    const struct tt_array *ms = tt_find(r, "user_history_ms.safetensors");
    const struct tt_array *actions = tt_find(r, "user_history_actions.safetensors");
    const char *wrong = NULL;
    if (!items || items->shape[1] < 2)
        wrong = "item vectors";
    else if (!users || users->shape[1] != items->shape[1] - 1)
        wrong = "user vectors";
    else if (context && !has_shape(context, "F32", s->items.n, users->shape[1]))
        wrong = "item contexts";
    else if (row && !has_shape(row, "F32", s->items.n, users->shape[1]))
        wrong = "item rows";
    else if (!history || !newest || (ms && !has_shape(ms, "I64", s->users.n, history->shape[1])) ||
             (actions && !has_shape(actions, "U8", s->users.n, history->shape[1])))
        wrong = "histories";
    else if (s->titles.n != s->items.n)
        wrong = "titles";
    if (wrong) {
        snprintf(error, error_size, "%s: the %s do not fit %" PRIu64 " items and %" PRIu64 " users",
                 tt_path(r), wrong, s->items.n, s->users.n);
        return -EBADMSG;
    }
    s->items_array = items;
    s->item_vector = items->data;
    s->user_vector = users->data;
    s->item_context = context ? context->data : NULL;
    s->item_row = row ? row->data : NULL;
    s->user_newest = newest->data;
    s->user_history = history->data;
    s->user_history_ms = ms ? ms->data : NULL;
    s->user_history_actions = actions ? actions->data : NULL;
    s->dim = (size_t)users->shape[1];
    s->history = (size_t)history->shape[1];
    if (!ranker_init(&s->ranker, r, s->dim)) {
        snprintf(error, error_size, "%s: the light ranker is not what manifest.json says",
                 tt_path(r));
        return -EBADMSG;
    }
    return 0;
}

int serving_row(const struct tt_table *table, const char *text, uint64_t *row)
{
    int rc = tt_row_of_string(table, text, strlen(text), row);
    const bool negative = *text == '-';
    const char *digits = text + negative;
    if (rc != -ENOENT || !*digits || digits[strspn(digits, "0123456789")])
        return rc;
    errno = 0;
    if (negative) {
        const long long number = strtoll(text, NULL, 10);
        return errno ? rc : tt_row_of_integer(table, number, row);
    }
    const unsigned long long number = strtoull(text, NULL, 10);
    return errno ? rc : tt_row_of_unsigned(table, number, row);
}

static bool is_there(const char *directory, const char *name)
{
    char path[PATH_MAX];
    return snprintf(path, sizeof path, "%s/%s", directory, name) < (int)sizeof path &&
           access(path, F_OK) == 0;
}

static bool holds_snapshot(const char *path)
{
    bool found = is_there(path, "manifest.json") || is_there(path, "LATEST");
    DIR *d = found ? NULL : opendir(path);
    if (!d)
        return found;
    uint64_t generation;
    for (const struct dirent *entry; !found && (entry = readdir(d));)
        found = generation_parse(entry->d_name, &generation);
    closedir(d);
    return found;
}

int serving_status(const char *path, int rc)
{
    switch (-rc) {
    case 0:
        return EX_OK;
    case EBADMSG:
    case ELOOP: // a link where a file should be
        return EX_DATAERR;
    case ENOENT:
        return holds_snapshot(path) ? EX_DATAERR : EX_NOINPUT;
    case ENOTDIR:
        return EX_NOINPUT;
    case EACCES:
    case EPERM:
        return EX_NOPERM;
    case ENOMEM:
        return EX_OSERR;
    default:
        return EX_IOERR;
    }
}

void serving_text(const char *bytes, size_t size, FILE *out)
{
    for (size_t i = 0; i < size; i++) {
        const unsigned char c = (unsigned char)bytes[i];
        putc(c < 0x20 || c == 0x7f ? '?' : c, out);
    }
}
