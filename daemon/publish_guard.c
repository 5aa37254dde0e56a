// SPDX-License-Identifier: Apache-2.0
#include "daemon/publish_guard.h"

#include <cjson/cJSON.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

// A float without its sign bit, cut to exponent and three bits, is the number of a bucket: an
// eighth of the square at the most, and cheaper than a logarithm for each row.
enum { BUCKET_SHIFT = 20 };

static const double floor_norm = 1;

const char *const guard_reason_names[GUARD_REASONS] = {
    [GUARD_NOT_FINITE] = "not_finite", [GUARD_ROWS] = "rows",     [GUARD_NORM] = "norm",
    [GUARD_NORM_JUMP] = "norm_jump",   [GUARD_RECALL] = "recall",
};

const char *const guard_array_names[GUARD_ARRAYS] = {
    [GUARD_ITEM] = "item",         [GUARD_ITEM_LAST] = "item_last",
    [GUARD_USER] = "user",         [GUARD_ITEM_CONTEXT] = "item_context",
    [GUARD_ITEM_ROW] = "item_row", [GUARD_DENSE] = "dense",
};

const double guard_quantile_at[GUARD_QUANTILES] = {0.05, 0.5, 0.95};
static const char *const quantile_names[GUARD_QUANTILES] = {"p05", "p50", "p95"};

// ---- Measuring

bool guard_row(struct guard_sums *sums, float squares)
{
    if (!isfinite(squares))
        return false;
    const double norm = sqrt((double)squares);
    uint32_t bits;
    memcpy(&bits, &squares, sizeof bits);
    sums->n++;
    sums->sum += norm;
    sums->max = norm > sums->max ? norm : sums->max;
    sums->bucket[bits >> BUCKET_SHIFT & (GUARD_BUCKETS - 1)]++;
    return true;
}

void guard_norms_of(const struct guard_sums *sums, struct guard_norms *norms)
{
    *norms = (struct guard_norms){.n = sums->n, .max = sums->max};
    if (sums->n == 0)
        return;
    norms->mean = sums->sum / (double)sums->n;
    uint64_t before = 0;
    for (int b = 0, q = 0; b < GUARD_BUCKETS && q < GUARD_QUANTILES; b++) {
        before += sums->bucket[b];
        // Bucket 0 is zero, or nearly; of the others the middle.
        const uint32_t bits = b ? (uint32_t)b << BUCKET_SHIFT | 1u << (BUCKET_SHIFT - 1) : 0;
        float squares;
        memcpy(&squares, &bits, sizeof squares);
        const double norm = sqrt((double)squares);
        while (q < GUARD_QUANTILES && (double)before > guard_quantile_at[q] * (double)(sums->n - 1))
            norms->quantile[q++] = norm;
    }
}

// ---- Deciding

static bool rows_missing(const struct guard_options *o, const char *of, uint64_t now,
                         uint64_t there, const uint64_t *last, char *sentence, size_t size)
{
    if (now != there) {
        snprintf(sentence, size, "%" PRIu64 " %s where the table has %" PRIu64, now, of, there);
        return true;
    }
    if (last && (double)now < o->rows_share * (double)*last) {
        snprintf(sentence, size,
                 "%" PRIu64 " %s where the last good snapshot has %" PRIu64
                 "; the least share is %g",
                 now, of, *last, o->rows_share);
        return true;
    }
    return false;
}

static bool norm_jumped(const struct guard_options *o, const char *of,
                        const struct guard_norms *now, const struct guard_norms *last,
                        char *sentence, size_t size)
{
    const double base = last->mean > floor_norm ? last->mean : floor_norm;
    const double sum = now->mean * (double)now->n, sum_last = last->mean * (double)last->n;
    if (now->mean > o->norm_jump * base) {
        snprintf(sentence, size,
                 "the mean length of a row of %s is %g where the last good snapshot has %g; the "
                 "largest factor is %g",
                 of, now->mean, last->mean, o->norm_jump);
        return true;
    }
    if (last->mean > floor_norm && sum * o->norm_jump < sum_last) {
        snprintf(sentence, size,
                 "all rows of %s together are %g long where those of the last good snapshot are "
                 "%g; the largest factor is %g",
                 of, sum, sum_last, o->norm_jump);
        return true;
    }
    return false;
}

static bool recall_fell(const struct guard_options *o, const struct guard_figures *now,
                        const struct guard_figures *last, char *sentence, size_t size)
{
    const double P = last->recall_100, p = now->recall_100;
    const double Q = last->popularity_recall_100, q = now->popularity_recall_100;
    if (!(now->events > 0 && last->events > 0) || now->events < o->events ||
        last->events < o->events)
        return false;
    const double harder = q < Q ? q / Q : 1, expected = P * harder;
    const double error =
        sqrt(harder * harder * P * (1 - P) / last->events + p * (1 - p) / now->events);
    if (!(p < o->recall * expected && expected - p > o->errors * error))
        return false;
    snprintf(sentence, size,
             "recall@100 is %.4f where the last good snapshot has %.4f and %.4f is expected, as "
             "popularity went from %.4f to %.4f; the least share is %g, and the difference is "
             "%.1f standard errors",
             p, P, expected, Q, q, o->recall, (expected - p) / error);
    return true;
}

enum guard_reason guard_decide(const struct guard_options *o, const struct guard_figures *now,
                               uint64_t items_there, uint64_t users_there,
                               const struct guard_figures *last, char *sentence, size_t size)
{
    if (rows_missing(o, "items", now->items, items_there, last ? &last->items : NULL, sentence,
                     size) ||
        rows_missing(o, "users", now->users, users_there, last ? &last->users : NULL, sentence,
                     size))
        return GUARD_ROWS;
    for (int a = 0; a < GUARD_ARRAYS; a++) {
        if (o->norm_max > 0 && now->norms[a].max > o->norm_max) {
            snprintf(sentence, size, "a row of %s is %g long; the limit is %g",
                     guard_array_names[a], now->norms[a].max, o->norm_max);
            return GUARD_NORM;
        }
    }
    if (!last)
        return GUARD_REASONS;
    for (int a = 0; a < GUARD_ARRAYS; a++)
        if (o->norm_jump > 0 && a != GUARD_ITEM_LAST && last->norms[a].n > 0 &&
            norm_jumped(o, guard_array_names[a], &now->norms[a], &last->norms[a], sentence, size))
            return GUARD_NORM_JUMP;
    return recall_fell(o, now, last, sentence, size) ? GUARD_RECALL : GUARD_REASONS;
}

// ---- In the manifest

char *guard_norms_text(const struct guard_norms norms[GUARD_ARRAYS])
{
    cJSON *root = cJSON_CreateObject();
    for (int a = 0; a < GUARD_ARRAYS; a++) {
        if (norms[a].n == 0)
            continue;
        cJSON *one = cJSON_AddObjectToObject(root, guard_array_names[a]);
        cJSON_AddNumberToObject(one, "rows", (double)norms[a].n);
        cJSON_AddNumberToObject(one, "mean", norms[a].mean);
        for (int q = 0; q < GUARD_QUANTILES; q++)
            cJSON_AddNumberToObject(one, quantile_names[q], norms[a].quantile[q]);
        cJSON_AddNumberToObject(one, "max", norms[a].max);
    }
    char *text = cJSON_PrintUnformatted(root);
    cJSON_Delete(root);
    return text;
}

static bool number(const cJSON *object, const char *key, double *value)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    *value = cJSON_IsNumber(item) ? item->valuedouble : NAN;
    return *value >= 0 && *value < 0x1p63;
}

static bool norms_read(struct guard_norms *norms, const cJSON *one)
{
    double rows;
    bool all = number(one, "rows", &rows) && number(one, "mean", &norms->mean) &&
               number(one, "max", &norms->max);
    for (int q = 0; all && q < GUARD_QUANTILES; q++)
        all = number(one, quantile_names[q], &norms->quantile[q]);
    norms->n = all ? (uint64_t)rows : 0;
    return all;
}

bool guard_figures_read(struct guard_figures *f, const char *manifest)
{
    cJSON *json = cJSON_Parse(manifest);
    const cJSON *metrics = cJSON_GetObjectItemCaseSensitive(json, "metrics");
    const cJSON *norms = cJSON_GetObjectItemCaseSensitive(json, "norms");
    double items = 0, users = 0;
    *f = (struct guard_figures){0};
    bool all = number(json, "items", &items) && number(json, "users", &users) &&
               number(metrics, "window", &f->events) &&
               number(metrics, "recall@100", &f->recall_100) &&
               number(metrics, "popularity_recall@100", &f->popularity_recall_100) &&
               cJSON_IsObject(norms);
    f->items = (uint64_t)items;
    f->users = (uint64_t)users;
    for (int a = 0; all && a < GUARD_ARRAYS; a++) {
        const cJSON *one = cJSON_GetObjectItemCaseSensitive(norms, guard_array_names[a]);
        all = !one || norms_read(&f->norms[a], one);
    }
    cJSON_Delete(json);
    return all;
}
