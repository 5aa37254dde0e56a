// SPDX-License-Identifier: Apache-2.0
#include "snapshot/topk.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

struct candidate {
    float score;
    uint32_t row;
};

static bool is_better(struct candidate a, struct candidate b)
{
    if (isnan(a.score) != isnan(b.score))
        return isnan(b.score);
    if (a.score != b.score && !isnan(a.score))
        return a.score > b.score;
    return a.row < b.row;
}

// The worst of the best is on top, so that most rows are refused by one comparison.
struct heap {
    size_t n, n_max;
    struct candidate *list;
};

static void heap_sink(struct heap *h, size_t i)
{
    const struct candidate sinking = h->list[i];
    for (size_t child; (child = 2 * i + 1) < h->n; i = child) {
        if (child + 1 < h->n && is_better(h->list[child], h->list[child + 1]))
            child++;
        if (!is_better(sinking, h->list[child]))
            break;
        h->list[i] = h->list[child];
    }
    h->list[i] = sinking;
}

static void heap_offer(struct heap *h, struct candidate c)
{
    if (h->n == h->n_max) {
        if (!is_better(c, h->list[0]))
            return;
        h->list[0] = c;
        heap_sink(h, 0);
        return;
    }
    size_t i = h->n++;
    for (; i > 0 && is_better(h->list[(i - 1) / 2], c); i = (i - 1) / 2)
        h->list[i] = h->list[(i - 1) / 2];
    h->list[i] = c;
}

struct special {
    uint32_t row;
    float bonus;
    bool excluded;
};

static int by_row(const void *a, const void *b)
{
    const struct special *left = a, *right = b;
    return (left->row > right->row) - (left->row < right->row);
}

// The rows that are not scored like the rest, ascending, each once. In the order given, so that the
// sum of a row's bonuses does not depend on the sort.
static size_t specials(const struct tt_query *q, uint64_t n, struct special *list)
{
    size_t used = 0;
    for (uint32_t i = 0; i < q->n_adjust; i++)
        if (q->adjust_rows[i] < n)
            list[used++] = (struct special){q->adjust_rows[i], 0, false};
    for (uint32_t i = 0; i < q->n_exclude; i++)
        if (q->exclude_rows[i] < n)
            list[used++] = (struct special){q->exclude_rows[i], 0, false};
    if (used == 0)
        return 0;
    qsort(list, used, sizeof *list, by_row);
    size_t unique = 0;
    for (size_t i = 1; i < used; i++)
        if (list[i].row != list[unique].row)
            list[++unique] = list[i];
    unique++;
    for (uint32_t i = 0; i < q->n_adjust; i++) {
        const struct special key = {.row = q->adjust_rows[i]};
        struct special *s = bsearch(&key, list, unique, sizeof *list, by_row);
        if (s)
            s->bonus += q->adjust_bonus[i];
    }
    for (uint32_t i = 0; i < q->n_exclude; i++) {
        const struct special key = {.row = q->exclude_rows[i]};
        struct special *s = bsearch(&key, list, unique, sizeof *list, by_row);
        if (s)
            s->excluded = true;
    }
    return unique;
}

// Rows that codes could not refuse. They wait for each other, so that the memory brings many at
// once.
enum { WAITING = 64 };

struct search {
    struct heap heap;
    struct special *specials;
    size_t n_specials;
    uint32_t n_waiting, waiting[WAITING];
};

struct scanning {
    const struct scan *scan;
    size_t D;
    uint32_t N, n;
    const float *items;
    struct search *searches;    // (n)
    struct scan_query *queries; // (n)
    struct candidate *lists;    // (n, k)
    struct special *specials;   // of query 0, then of query 1 ..
    float *scores;              // (n, SCAN_ROWS)
    uint32_t *hits;             // (n)
    int8_t *code;               // (n, steps SCAN_STEP)
};

static bool is_special(const struct search *s, uint32_t row)
{
    const struct special key = {.row = row};
    return s->n_specials > 0 &&
           bsearch(&key, s->specials, s->n_specials, sizeof *s->specials, by_row);
}

// What a score must not be below to enter. Of equal ones, the smaller row does: the heap decides.
static float worst(const struct heap *h)
{
    return h->n == h->n_max ? h->list[0].score : NAN;
}

static void offer(struct scanning *t, uint32_t i, uint32_t row, float score)
{
    struct search *s = &t->searches[i];
    if (is_special(s, row))
        return;
    heap_offer(&s->heap, (struct candidate){score, row});
    t->queries[i].worst = worst(&s->heap);
}

static void specials_offer(struct scanning *t, uint32_t i)
{
    struct search *s = &t->searches[i];
    for (size_t k = 0; k < s->n_specials; k++) {
        const struct special *x = &s->specials[k];
        if (x->excluded)
            continue;
        const float *item = t->items + (size_t)x->row * t->D;
        const float score = t->scan->dot(t->D, item, t->queries[i].vector) + x->bonus;
        heap_offer(&s->heap, (struct candidate){score, x->row});
    }
    t->queries[i].worst = worst(&s->heap);
}

static void scan_rows(struct scanning *t)
{
    uint32_t row = 0;
    for (; t->N - row >= SCAN_ROWS; row += SCAN_ROWS) {
        const float *items = t->items + (size_t)row * t->D;
        if (!t->scan->score(t->D, t->n, t->queries, items, t->scores, t->hits))
            continue;
        for (uint32_t i = 0; i < t->n; i++)
            for (uint32_t hits = t->hits[i]; hits; hits &= hits - 1) {
                const uint32_t r = (uint32_t)__builtin_ctz(hits);
                offer(t, i, row + r, t->scores[i * SCAN_ROWS + r]);
            }
    }
    for (; row < t->N; row++)
        for (uint32_t i = 0; i < t->n; i++)
            offer(t, i, row,
                  t->scan->dot(t->D, t->items + (size_t)row * t->D, t->queries[i].vector));
}

static void waiting_offer(struct scanning *t, uint32_t i)
{
    struct search *s = &t->searches[i];
    for (uint32_t k = 0; k < s->n_waiting; k++) {
        const float *item = t->items + (size_t)s->waiting[k] * t->D;
        offer(t, i, s->waiting[k], t->scan->dot(t->D, item, t->queries[i].vector));
    }
    s->n_waiting = 0;
}

static void wait_for(struct scanning *t, uint32_t i, uint32_t row)
{
    struct search *s = &t->searches[i];
    const char *item = (const char *)(t->items + (size_t)row * t->D);
    for (size_t at = 0; at < t->D * sizeof(float); at += 64)
        __builtin_prefetch(item + at);
    s->waiting[s->n_waiting++] = row;
    if (s->n_waiting == WAITING)
        waiting_offer(t, i);
}

static void scan_codes(struct scanning *t, const struct scan_codes *codes)
{
    for (uint32_t i = 0; i < t->n; i++)
        scan_query_code(codes, &t->queries[i], t->code + i * codes->steps * SCAN_STEP);
    for (uint32_t block = 0; block < codes->n_blocks; block++) {
        if (!t->scan->upper(codes, block, t->n, t->queries, t->hits))
            continue;
        for (uint32_t i = 0; i < t->n; i++)
            for (uint32_t hits = t->hits[i]; hits; hits &= hits - 1) {
                const uint32_t row = block * SCAN_ROWS + (uint32_t)__builtin_ctz(hits);
                if (row < t->N)
                    wait_for(t, i, row);
            }
    }
    for (uint32_t i = 0; i < t->n; i++)
        waiting_offer(t, i);
}

static uint32_t heap_empty(struct heap *h, uint32_t *rows, float *scores)
{
    const uint32_t found = (uint32_t)h->n;
    while (h->n > 0) {
        const struct candidate last = h->list[0];
        h->list[0] = h->list[--h->n];
        heap_sink(h, 0);
        rows[h->n] = last.row;
        scores[h->n] = last.score;
    }
    return found;
}

struct tt_codes {
    const float *items;
    uint64_t n;
    struct scan_codes codes;
    void *memory;
    size_t size;
};

static bool is_matrix(const struct tt_array *a)
{
    return a && a->n_dims == 2 && strcmp(a->dtype, "F32") == 0 && a->shape[0] < TT_NO_ROW;
}

int topk_batch(const struct scan *scan, const struct tt_query *queries, uint32_t n,
               const struct tt_codes *codes, uint32_t *rows, float *scores, uint32_t *found)
{
    if (n == 0)
        return 0;
    const struct tt_array *a = queries->items;
    if (!is_matrix(a))
        return -EINVAL;
    if (codes &&
        (codes->items != a->data || codes->n != a->shape[0] || codes->codes.D != a->shape[1]))
        return -EINVAL;
    size_t n_specials = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (queries[i].items != a || queries[i].k != queries->k)
            return -EINVAL;
        n_specials += (size_t)queries[i].n_adjust + queries[i].n_exclude;
        found[i] = 0;
    }
    struct scanning t = {
        .scan = scan, .D = a->shape[1], .N = (uint32_t)a->shape[0], .n = n, .items = a->data};
    const uint32_t k = queries->k < t.N ? queries->k : t.N;
    if (k == 0)
        return 0;
    t.searches = calloc(n, sizeof *t.searches);
    t.queries = calloc(n, sizeof *t.queries);
    t.lists = calloc((size_t)n * k, sizeof *t.lists);
    t.specials = calloc(n_specials + 1, sizeof *t.specials);
    t.scores = calloc((size_t)n * SCAN_ROWS, sizeof *t.scores);
    t.hits = calloc(n, sizeof *t.hits);
    t.code = calloc(codes ? n * codes->codes.steps * SCAN_STEP + 1 : 1, sizeof *t.code);
    int rc = -ENOMEM;
    if (!t.searches || !t.queries || !t.lists || !t.specials || !t.scores || !t.hits || !t.code)
        goto free;
    size_t used = 0;
    for (uint32_t i = 0; i < n; i++) {
        struct search *s = &t.searches[i];
        s->heap = (struct heap){0, k, t.lists + (size_t)i * k};
        s->specials = t.specials + used;
        s->n_specials = specials(&queries[i], t.N, s->specials);
        used += s->n_specials;
        t.queries[i].vector = queries[i].vector;
        specials_offer(&t, i);
    }
    if (codes)
        scan_codes(&t, &codes->codes);
    else
        scan_rows(&t);
    for (uint32_t i = 0; i < n; i++)
        found[i] = heap_empty(&t.searches[i].heap, rows + (size_t)i * queries->k,
                              scores + (size_t)i * queries->k);
    rc = 0;
free:
    free(t.code);
    free(t.hits);
    free(t.scores);
    free(t.specials);
    free(t.lists);
    free(t.queries);
    free(t.searches);
    return rc;
}

// The exact column is the one with the largest values: an item's bias and popularity stand in a
// column of their own, and are several times what stands in the others. A thousand rows tell; any
// choice is right.
static size_t column_choose(size_t D, uint32_t n, const float *items, float *largest)
{
    enum { ROWS = 1024 };
    const uint32_t stride = n / ROWS + 1;
    memset(largest, 0, D * sizeof *largest);
    for (uint32_t row = 0; row < n; row += stride)
        for (size_t i = 0; i < D; i++)
            largest[i] = fmaxf(largest[i], fabsf(items[(size_t)row * D + i]));
    size_t column = D > 0 ? D - 1 : 0;
    for (size_t i = 0; i < D; i++)
        column = largest[i] > largest[column] ? i : column;
    return column;
}

static void *take(char **at, size_t size)
{
    void *memory = *at;
    *at += (size + 63) / 64 * 64;
    return memory;
}

int topk_codes(const struct scan *scan, struct tt_codes **codes, const struct tt_array *items)
{
    *codes = NULL;
    if (!is_matrix(items) || items->shape[1] > SCAN_COLUMNS)
        return -EINVAL;
    const uint32_t n = (uint32_t)items->shape[0];
    const size_t D = (size_t)items->shape[1];
    const size_t steps = D > 0 ? (D - 1 + SCAN_STEP - 1) / SCAN_STEP : 0;
    const uint32_t n_blocks = n / SCAN_ROWS + (n % SCAN_ROWS != 0);
    const size_t rows = (size_t)n_blocks * SCAN_ROWS;
    const size_t size = rows * (steps * SCAN_STEP + 2 * sizeof(float)) + 3 * 64;
    struct tt_codes *c = calloc(1, sizeof *c);
    float *row = calloc(D + 1, sizeof *row);
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!c || !row || memory == MAP_FAILED) {
        if (memory != MAP_FAILED)
            munmap(memory, size);
        free(row);
        free(c);
        return -ENOMEM;
    }
    madvise(memory, size, MADV_HUGEPAGE); // a wish
    char *at = memory;
    *c = (struct tt_codes){
        .items = items->data,
        .n = n,
        .codes = {.D = D,
                  .column = column_choose(D, n, items->data, row),
                  .steps = steps,
                  .n_blocks = n_blocks},
        .memory = memory,
        .size = size,
    };
    c->codes.code = take(&at, rows * steps * SCAN_STEP);
    c->codes.scale = take(&at, rows * sizeof(float));
    c->codes.z = take(&at, rows * sizeof(float));
    scan_encode(scan, &c->codes, n, items->data, row);
    free(row);
    *codes = c;
    return 0;
}

void tt_codes_free(struct tt_codes *codes)
{
    if (!codes)
        return;
    munmap(codes->memory, codes->size);
    free(codes);
}

int tt_codes_make(struct tt_codes **codes, const struct tt_array *items)
{
    return topk_codes(scan_best(), codes, items);
}

int tt_topk_batch(const struct tt_query *queries, uint32_t n, const struct tt_codes *codes,
                  uint32_t *rows, float *scores, uint32_t *found)
{
    return topk_batch(scan_best(), queries, n, codes, rows, scores, found);
}

int64_t tt_topk(const struct tt_query *query, uint32_t *rows, float *scores)
{
    uint32_t found;
    const int rc = topk_batch(scan_best(), query, 1, NULL, rows, scores, &found);
    return rc < 0 ? rc : (int64_t)found;
}
