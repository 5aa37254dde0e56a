// SPDX-License-Identifier: Apache-2.0
#include "pipeline/evaluate.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/gemm.h"
#include "model/kernels.h"
#include "model/slate_loss.h"
#include "model/slate_metrics.h"

// Scores are made in whole blocks of these sizes, the targets' too, so that equal vectors get equal
// scores wherever they stand.
enum { BLOCK_QUERIES = 64, BLOCK_ITEMS = 256, BEST = 10 };
static const double WINDOW_HALF_LIFE = 5000;
static const double LOG_LOSS_WORST = 1e6;

struct popularity {
    double count; // decayed, as of example `at`
    uint64_t at;
    uint64_t generation; // of the row's owner: the next one starts from nothing
};

struct evaluator_state {
    uint64_t examples; // positives seen
    double due;        // share of examples to score that has not been scored yet
    double slates_due; // of slates likewise
    struct evaluation total, window;
};

// A sampled example against all of them.
struct contest {
    uint32_t target; // competitor
    float score;
    double above, level; // of the others
    double shift, sum;   // of all: sum exp(score - shift)
    // Of a slate, which has no target: the first of all.
    int n_best;
    struct best {
        float score;
        uint32_t competitor;
    } best[BEST]; // descending
    int n_bonuses;
    struct bonus bonuses[HISTORY_MAX];
};

// An item that competes.
struct competitor {
    int64_t row; // ROW_NONE: it has none yet
    const struct id *id;
    double popularity;
};

struct evaluator {
    struct evaluator_options options;
    struct rows *rows;
    struct column popularity; // by item row
    struct column state;      // one struct evaluator_state
    int width;                // of vectors: dim + 1
    struct competitor *competitors;
    size_t n, n_max;
    double *ranking; // the popularities, ascending
    uint32_t *place; // by item row: number of the competitor + 1
    struct example *sampled;
    float *features, *Q; // of the sampled examples
    struct contest *contests;
    float *V, *scores; // one block of items; its scores
};

static struct evaluator_state *state_edit(struct evaluator *e)
{
    return column_edit(&e->state, 0);
}

static const struct evaluator_state *state_at(const struct evaluator *e)
{
    return column_at(&e->state, 0);
}

int evaluator_open(struct evaluator **e_out, struct columns *s, struct rows *rows,
                   const struct evaluator_options *options)
{
    const struct two_tower_options *model = two_tower_options(rows->model);
    struct evaluator *e = calloc(1, sizeof *e);
    if (!e)
        return -ENOMEM;
    e->options = *options;
    e->rows = rows;
    e->width = model->dim + 1;
    const size_t items = rows->items.row.n_max, chunk = (size_t)options->chunk_max;
    const size_t sampled = (chunk / BLOCK_QUERIES + 1) * BLOCK_QUERIES;
    e->n_max = options->corpus ? options->corpus_n : items;
    e->competitors = calloc(e->n_max + 1, sizeof *e->competitors);
    e->ranking = calloc(e->n_max + 1, sizeof *e->ranking);
    e->place = calloc(items, sizeof *e->place);
    e->sampled = calloc(sampled, sizeof *e->sampled);
    e->features = calloc(sampled * (size_t)(model->user_features + 1), sizeof *e->features);
    e->Q = calloc(sampled * (size_t)e->width, sizeof *e->Q);
    e->contests = calloc(sampled, sizeof *e->contests);
    e->V = calloc((size_t)BLOCK_ITEMS * e->width, sizeof *e->V);
    e->scores = calloc((size_t)BLOCK_QUERIES * BLOCK_ITEMS, sizeof *e->scores);
    int rc = e->competitors && e->ranking && e->place && e->sampled && e->features && e->Q &&
                     e->contests && e->V && e->scores
                 ? 0
                 : -ENOMEM;
    if (rc == 0)
        rc = column_open(&e->popularity, s, "eval.popularity", sizeof(struct popularity), items);
    if (rc == 0)
        rc = column_open(&e->state, s, "eval.state", sizeof(struct evaluator_state), 1);
    if (rc < 0) {
        evaluator_close(e);
        return rc;
    }
    column_grow(&e->state, 1);
    *e_out = e;
    return 0;
}

void evaluator_close(struct evaluator *e)
{
    if (!e)
        return;
    free(e->competitors);
    free(e->ranking);
    free(e->place);
    free(e->sampled);
    free(e->features);
    free(e->Q);
    free(e->contests);
    free(e->V);
    free(e->scores);
    free(e);
}

struct evaluation evaluator_total(const struct evaluator *e)
{
    return state_at(e)->total;
}

struct evaluation evaluator_window(const struct evaluator *e)
{
    return state_at(e)->window;
}

static double popularity_now(const struct evaluator *e, int64_t row)
{
    if (row < 0 || (size_t)row >= e->popularity.n)
        return 0;
    const struct popularity *p = column_at(&e->popularity, (size_t)row);
    if (p->generation != id_table_row(&e->rows->items, (uint32_t)row)->generation)
        return 0;
    return p->count *
           exp2(-(double)(state_at(e)->examples - p->at) / e->options.popularity_half_life);
}

static void popularity_add(struct evaluator *e, uint32_t row)
{
    if (row >= e->popularity.n)
        column_grow(&e->popularity, row + 1 - e->popularity.n);
    const double count = popularity_now(e, row) + 1;
    *(struct popularity *)column_edit(&e->popularity, row) = (struct popularity){
        count, state_at(e)->examples, id_table_row(&e->rows->items, row)->generation};
}

static void competitor_add(struct evaluator *e, int64_t row, const struct id *id)
{
    if (row >= 0)
        e->place[row] = (uint32_t)e->n + 1;
    e->competitors[e->n++] = (struct competitor){row, id, popularity_now(e, row)};
}

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void competitors_collect(struct evaluator *e)
{
    const struct id_table *items = &e->rows->items;
    e->n = 0;
    memset(e->place, 0, items->row.n * sizeof *e->place);
    if (e->options.corpus) {
        for (size_t i = 0; i < e->options.corpus_n; i++)
            competitor_add(e, id_table_find(items, &e->options.corpus[i]), &e->options.corpus[i]);
    } else {
        for (uint32_t row = 0; row < items->row.n; row++)
            if (id_table_live(items, row))
                competitor_add(e, row, NULL);
    }
    for (size_t i = 0; i < e->n; i++)
        e->ranking[i] = e->competitors[i].popularity;
    qsort(e->ranking, e->n, sizeof *e->ranking, compare_doubles);
}

static void vector_of(struct evaluator *e, const struct competitor *c, float *v)
{
    if (c->row >= 0)
        two_tower_items(e->rows->model, 1, &(uint32_t){(uint32_t)c->row}, v);
    else
        two_tower_unseen_item(e->rows->model, c->id, v);
}

// scores (BLOCK_QUERIES, BLOCK_ITEMS) of the queries from q and the n items whose vectors are in V.
static void block_score(struct evaluator *e, int q)
{
    memset(e->scores, 0, sizeof(float) * BLOCK_QUERIES * BLOCK_ITEMS);
    gemm_nt(BLOCK_QUERIES, BLOCK_ITEMS, e->width, e->Q + (size_t)q * e->width, e->V, e->scores);
}

static void tally(struct evaluation *into, const struct evaluation *one, double keep)
{
    const double *from = (const double *)one;
    double *to = (double *)into;
    for (size_t i = 0; i < sizeof *one / sizeof(double); i++)
        to[i] = to[i] * keep + from[i];
}

// The scores of n items from number first on; they are used up.
static void contest_see(struct contest *c, size_t first, size_t n, float *scores)
{
    size_t above = 0, level = 0;
    for (size_t i = 0; i < n; i++) {
        above += scores[i] > c->score;
        level += scores[i] == c->score;
    }
    if (c->target >= first && c->target < first + n)
        level--; // itself
    c->above += (double)above;
    c->level += (double)level;
    const float shift = kernels->max(n, scores);
    if ((double)shift > c->shift) {
        c->sum *= exp(c->shift - (double)shift);
        c->shift = (double)shift;
    }
    c->sum += (double)kernels->exp_shifted(n, (float)c->shift, scores);
}

static struct evaluation contest_end(const struct evaluator *e, const struct contest *c)
{
    const double rank = c->above + c->level / 2;
    // Popularity: where the target's count stands among all.
    const double mine = e->competitors[c->target].popularity;
    size_t low = 0, high = e->n;
    while (low < high) {
        const size_t middle = (low + high) / 2;
        if (e->ranking[middle] < mine)
            low = middle + 1;
        else
            high = middle;
    }
    size_t level = low;
    while (level < e->n && e->ranking[level] <= mine)
        level++;
    const double popular = (double)(e->n - level) + (double)(level > low ? level - low - 1 : 0) / 2;
    // A model that overflows gives no number; once in a sum it would stay there, over restarts too,
    // and no snapshot's manifest could be written any more.
    const double loss = c->shift + log(c->sum) - (double)c->score;
    const bool tail = mine <= e->ranking[e->n / 2];
    return (struct evaluation){
        .n = 1,
        .recall_1 = rank < 1,
        .recall_5 = rank < 5,
        .recall_10 = rank < 10,
        .recall_50 = rank < 50,
        .recall_100 = rank < 100,
        .tail_n = tail,
        .tail_recall_100 = tail && rank < 100,
        .ndcg_10 = rank < 10 ? 1 / log2(rank + 2) : 0,
        .log_loss = isfinite(loss) ? loss : LOG_LOSS_WORST,
        .popularity_recall_10 = popular < 10,
        .popularity_recall_100 = popular < 100,
    };
}

static void bonuses_add(const struct evaluator *e, const struct contest *c, size_t first, size_t n,
                        float *scores)
{
    for (int b = 0; b < c->n_bonuses; b++) {
        const size_t place = e->place[c->bonuses[b].row];
        if (place > first && place <= first + n)
            scores[place - 1 - first] += c->bonuses[b].score;
    }
}

// Shows every contest the scores of all items, block by block.
static void corpus_scan(struct evaluator *e, int n,
                        void (*see)(struct contest *c, size_t first, size_t n, float *scores))
{
    const size_t w = (size_t)e->width;
    for (size_t first = 0; first < e->n; first += BLOCK_ITEMS) {
        const size_t items = e->n - first < BLOCK_ITEMS ? e->n - first : BLOCK_ITEMS;
        for (size_t k = 0; k < items; k++)
            vector_of(e, &e->competitors[first + k], e->V + k * w);
        for (int q = 0; q < n; q += BLOCK_QUERIES) {
            block_score(e, q);
            for (int i = 0; i < BLOCK_QUERIES && q + i < n; i++) {
                float *scores = e->scores + (size_t)i * BLOCK_ITEMS;
                bonuses_add(e, &e->contests[q + i], first, items, scores);
                see(&e->contests[q + i], first, items, scores);
            }
        }
    }
}

static void queries_make(struct evaluator *e, int n)
{
    const size_t w = (size_t)e->width;
    const int blocks = (n + BLOCK_QUERIES - 1) / BLOCK_QUERIES;
    two_tower_queries(e->rows->model, n, e->sampled, e->features, e->Q);
    memset(e->Q + (size_t)n * w, 0,
           ((size_t)blocks * BLOCK_QUERIES - (size_t)n) * w * sizeof(float));
}

static void tally_one(struct evaluator *e, const struct evaluation *one)
{
    tally(&state_edit(e)->total, one, 1);
    tally(&state_edit(e)->window, one, exp2(-1 / WINDOW_HALF_LIFE));
}

static void sampled_score(struct evaluator *e, int n)
{
    const size_t w = (size_t)e->width;
    queries_make(e, n);
    // The targets first: their scores are what the others are compared with.
    for (int q = 0; q < n; q += BLOCK_QUERIES) {
        const int size = n - q < BLOCK_QUERIES ? n - q : BLOCK_QUERIES;
        memset(e->V, 0, (size_t)BLOCK_ITEMS * w * sizeof(float));
        for (int i = 0; i < size; i++) {
            struct contest *c = &e->contests[q + i];
            *c = (struct contest){.target = e->place[e->sampled[q + i].item] - 1,
                                  .shift = -INFINITY};
            c->n_bonuses = two_tower_bonuses(e->rows->model, &e->sampled[q + i], c->bonuses);
            vector_of(e, &e->competitors[c->target], e->V + (size_t)i * w);
        }
        block_score(e, q);
        for (int i = 0; i < size; i++) {
            struct contest *c = &e->contests[q + i];
            bonuses_add(e, c, c->target, 1, &e->scores[(size_t)i * BLOCK_ITEMS + i]);
            c->score = e->scores[(size_t)i * BLOCK_ITEMS + i];
        }
    }
    corpus_scan(e, n, contest_see);
    for (int i = 0; i < n; i++) {
        const struct evaluation one = contest_end(e, &e->contests[i]);
        tally_one(e, &one);
    }
}

void evaluator_score(struct evaluator *e, int n, const struct example *examples,
                     const float *features)
{
    const size_t width = (size_t)two_tower_options(e->rows->model)->user_features;
    assert(n <= e->options.chunk_max);
    int positives = 0, taken = 0;
    for (int i = 0; i < n; i++)
        positives += examples[i].positive;
    struct evaluator_state *state = state_edit(e);
    state->due += positives * e->options.sampling;
    // One pass over the corpus serves a block of queries: small shares wait until there is one.
    const int enough = positives < BLOCK_QUERIES ? positives : BLOCK_QUERIES;
    if (positives > 0 && state->due >= enough) {
        const int want = state->due < positives ? (int)state->due : positives;
        int seen = 0;
        competitors_collect(e);
        for (int i = 0; i < n && taken < want; i++) {
            if (!examples[i].positive)
                continue;
            // Evenly spaced: number k of the positives when k want / positives steps.
            const bool take =
                (int64_t)(seen + 1) * want / positives > (int64_t)seen * want / positives;
            seen++;
            if (!take)
                continue;
            state->due -= 1;
            if (!e->place[examples[i].item])
                continue; // not of the corpus
            e->sampled[taken] = examples[i];
            if (features)
                memcpy(e->features + (size_t)taken * width, features + (size_t)i * width,
                       width * sizeof *features);
            taken++;
        }
        if (taken > 0)
            sampled_score(e, taken);
    }
    state = state_edit(e);
    for (int i = 0; i < n; i++) {
        if (!examples[i].positive)
            continue;
        popularity_add(e, examples[i].item);
        state->examples++;
    }
}

// ---- Slates.

// Keeps the first BEST of all items seen, of equal scores the one that came first.
static void contest_best(struct contest *c, size_t first, size_t n, float *scores)
{
    for (size_t i = 0; i < n; i++) {
        if (c->n_best == BEST && !(scores[i] > c->best[BEST - 1].score))
            continue;
        int at = c->n_best < BEST ? c->n_best++ : BEST - 1;
        for (; at > 0 && scores[i] > c->best[at - 1].score; at--)
            c->best[at] = c->best[at - 1];
        c->best[at] = (struct best){scores[i], (uint32_t)(first + i)};
    }
}

// The model's scores of the slate's items for query q.
static void slate_scores(struct evaluator *e, const struct slate *slate, const struct contest *c,
                         const float *q, float *s)
{
    float v[e->width];
    for (int k = 0; k < slate->n_items; k++) {
        const uint32_t row = slate->items[k].item;
        two_tower_items(e->rows->model, 1, &row, v);
        s[k] = kernels->dot((size_t)e->width, q, v);
        for (int b = 0; b < c->n_bonuses; b++)
            s[k] += c->bonuses[b].row == row ? c->bonuses[b].score : 0;
    }
}

// The share of the ranker's first BEST items that the model, of all items, has among its own.
static double corpus_overlap(const struct evaluator *e, const struct slate *slate,
                             const struct contest *c, const float *g)
{
    int order[SLATE_ITEMS_MAX], found = 0;
    const int scored = slate_order(slate->n_items, g, order), n = scored < BEST ? scored : BEST;
    for (int k = 0; k < n; k++) {
        const uint32_t place = e->place[slate->items[order[k]].item];
        for (int b = 0; b < c->n_best; b++)
            found += c->best[b].competitor + 1 == place;
    }
    return n > 0 ? (double)found / n : (double)NAN;
}

// Adds a figure to its sum unless it is NAN, and says that it did.
static void figure_add(double x, double *sum, double *n)
{
    if (isnan(x))
        return;
    *sum += x;
    *n += 1;
}

static void slates_compare(struct evaluator *e, int n, const int *number,
                           const struct slate *slates, const float *scores)
{
    const struct objective_options *o = &two_tower_options(e->rows->model)->objectives;
    const float *value = two_tower_values(e->rows->model)->weight;
    queries_make(e, n);
    for (int i = 0; i < n; i++) {
        struct contest *c = &e->contests[i];
        *c = (struct contest){0};
        c->n_bonuses = two_tower_bonuses(e->rows->model, &e->sampled[i], c->bonuses);
    }
    corpus_scan(e, n, contest_best);
    for (int i = 0; i < n; i++) {
        const struct slate *slate = &slates[number[i]];
        const size_t at = (size_t)number[i] * SLATE_ITEMS_MAX * (size_t)o->tasks;
        const struct contest *c = &e->contests[i];
        float g[SLATE_ITEMS_MAX], s[SLATE_ITEMS_MAX];
        struct evaluation one = {0};
        objectives_teacher(o->tasks, value, slate, scores + at, g);
        slate_scores(e, slate, c, e->Q + (size_t)i * e->width, s);
        figure_add(slate_overlap(slate->n_items, s, g, 5), &one.overlap_5, &one.overlap_5_n);
        figure_add(slate_overlap(slate->n_items, s, g, 10), &one.overlap_10, &one.overlap_10_n);
        figure_add(slate_spearman(slate->n_items, s, g), &one.rank_correlation,
                   &one.rank_correlation_n);
        figure_add(corpus_overlap(e, slate, c, g), &one.corpus_overlap_10,
                   &one.corpus_overlap_10_n);
        tally_one(e, &one);
    }
}

void evaluator_score_slates(struct evaluator *e, int n, const struct slate *slates,
                            const float *scores)
{
    int number[e->options.chunk_max], taken = 0;
    struct evaluator_state *state = state_edit(e);
    for (int i = 0; i < n && taken < e->options.chunk_max; i++) {
        if (slates[i].kind != SLATE_CLOSED || slates[i].ranker == 0)
            continue;
        state->slates_due += e->options.sampling;
        if (state->slates_due < 1)
            continue;
        state->slates_due -= 1;
        number[taken] = i;
        e->sampled[taken] = (struct example){.user = slates[i].user,
                                             .ts_ms = slates[i].ts_ms,
                                             .n_history = slates[i].n_history,
                                             .n_newest = slates[i].n_newest};
        memcpy(e->sampled[taken].history, slates[i].history, sizeof slates[i].history);
        memcpy(e->sampled[taken].actions, slates[i].actions, sizeof slates[i].actions);
        memcpy(e->sampled[taken].gaps, slates[i].gaps, sizeof slates[i].gaps);
        taken++;
    }
    if (taken == 0)
        return;
    competitors_collect(e);
    memset(e->features, 0,
           (size_t)taken * (size_t)two_tower_options(e->rows->model)->user_features *
               sizeof *e->features);
    slates_compare(e, taken, number, slates, scores);
}
