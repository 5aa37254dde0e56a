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

const char *const evaluation_popularity_names[BY_POPULARITY] = {"1", "2", "3", "4", "5",
                                                                "6", "7", "8", "9", "10"};
const char *const evaluation_position_names[BY_POSITION] = {"0", "1", "2", "3", "4", "5",
                                                            "6", "7", "8", "9", "10"};
const char *const evaluation_age_names[BY_AGE] = {"0",  "1h",  "6h",  "1d",  "3d",
                                                  "7d", "30d", "90d", "365d"};
const char *const evaluation_activity_names[BY_ACTIVITY] = {"0", "1",  "2",  "3",  "5",
                                                            "9", "17", "33", "65", "129"};
// Their lower ends; ages in hours.
static const double age_bounds[BY_AGE] = {0, 1, 6, 24, 72, 168, 720, 2160, 8760};
static const double activity_bounds[BY_ACTIVITY] = {0, 1, 2, 3, 5, 9, 17, 33, 65, 129};
static const double HOUR_MS = 3600000;

struct popularity {
    double count; // decayed, as of example `at`
    uint64_t at;
    uint64_t generation; // of the row's owner: the next one starts from nothing
};

// How often a user had engaged before this chunk.
struct activity {
    uint32_t engagements;
    uint32_t generation; // of the row's owner
};

struct evaluator_state {
    uint64_t examples; // positives seen
    double due;        // share of examples to score that has not been scored yet
    double slates_due; // of slates likewise
    struct evaluation total, window;
    struct evaluation_groups groups;
    struct slate_evaluation slates_total, slates_window;
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
    struct column activity;   // by user row
    struct column state;      // one struct evaluator_state
    int width;                // of vectors: dim + 1
    struct competitor *competitors;
    size_t n, n_max;
    double *ranking; // the popularities, ascending
    uint32_t *place; // by item row: number of the competitor + 1
    struct example *sampled;
    float *features, *Q; // of the sampled examples
    struct contest *contests;
    int *number;       // of the sampled slates
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
    e->number = calloc(sampled, sizeof *e->number);
    e->V = calloc((size_t)BLOCK_ITEMS * e->width, sizeof *e->V);
    e->scores = calloc((size_t)BLOCK_QUERIES * BLOCK_ITEMS, sizeof *e->scores);
    int rc = e->competitors && e->ranking && e->place && e->sampled && e->features && e->Q &&
                     e->contests && e->number && e->V && e->scores
                 ? 0
                 : -ENOMEM;
    if (rc == 0)
        rc = column_open(&e->popularity, s, "eval.popularity", sizeof(struct popularity), items);
    if (rc == 0)
        rc = column_open(&e->activity, s, "eval.activity", sizeof(struct activity),
                         rows->users.row.n_max);
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
    free(e->number);
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

struct evaluation_groups evaluator_groups(const struct evaluator *e)
{
    return state_at(e)->groups;
}

struct slate_evaluation evaluator_slates_total(const struct evaluator *e)
{
    return state_at(e)->slates_total;
}

struct slate_evaluation evaluator_slates_window(const struct evaluator *e)
{
    return state_at(e)->slates_window;
}

static int bucket_of(double x, const double *bounds, int n)
{
    int bucket = n - 1;
    while (bucket > 0 && x < bounds[bucket])
        bucket--;
    return bucket;
}

static uint32_t activity_now(const struct evaluator *e, uint32_t user)
{
    if (user >= e->activity.n)
        return 0;
    const struct activity *a = column_at(&e->activity, user);
    return a->generation == id_table_row(&e->rows->users, user)->generation ? a->engagements : 0;
}

static void activity_add(struct evaluator *e, uint32_t user)
{
    const uint32_t engagements = activity_now(e, user);
    *(struct activity *)column_reach(&e->activity, user) = (struct activity){
        engagements + (engagements < UINT32_MAX), id_table_row(&e->rows->users, user)->generation};
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
    const double count = popularity_now(e, row) + 1;
    *(struct popularity *)column_reach(&e->popularity, row) = (struct popularity){
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

// into = into * keep + one, for structures of nothing but numbers.
static void tally(size_t size, void *into, const void *one, double keep)
{
    const double *from = one;
    double *to = into;
    for (size_t i = 0; i < size / sizeof(double); i++)
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

// Where the target's count stands among all.
static double popularity_rank(const struct evaluator *e, double mine)
{
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
    return (double)(e->n - level) + (double)(level > low ? level - low - 1 : 0) / 2;
}

static struct evaluation contest_end(const struct evaluator *e, const struct contest *c)
{
    const double rank = c->above + c->level / 2;
    const double mine = e->competitors[c->target].popularity;
    const double popular = popularity_rank(e, mine);
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

static void example_tally(struct evaluator *e, const struct example *example,
                          const struct contest *c)
{
    const struct evaluation one = contest_end(e, c);
    const double popular = popularity_rank(e, e->competitors[c->target].popularity);
    const int64_t age_ms =
        example->ts_ms - id_table_row(&e->rows->items, example->item)->created_ms;
    struct evaluator_state *state = state_edit(e);
    struct evaluation_group *const groups[] = {
        &state->groups.popularity[(int)(popular / (double)e->n * BY_POPULARITY)],
        &state->groups.age[bucket_of((double)age_ms / HOUR_MS, age_bounds, BY_AGE)]};
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++) {
        groups[i]->n++;
        groups[i]->hits += one.recall_100;
    }
    tally(sizeof one, &state->total, &one, 1);
    tally(sizeof one, &state->window, &one, exp2(-1 / WINDOW_HALF_LIFE));
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
    for (int i = 0; i < n; i++)
        example_tally(e, &e->sampled[i], &e->contests[i]);
}

// How many of n to take now: their share, saved up until there are enough for one pass over the
// corpus to be worth it.
static int share_take(double *due, double sampling, int n)
{
    const int enough = n < BLOCK_QUERIES ? n : BLOCK_QUERIES;
    *due += n * sampling;
    if (n == 0 || *due < enough)
        return 0;
    return *due < n ? (int)*due : n;
}

// Evenly spaced: number k of n when k want / n steps.
static bool share_takes(int k, int want, int n)
{
    return (int64_t)(k + 1) * want / n > (int64_t)k * want / n;
}

void evaluator_score(struct evaluator *e, int n, const struct example *examples,
                     const float *features)
{
    const size_t width = (size_t)two_tower_options(e->rows->model)->user_features;
    assert(n <= e->options.chunk_max);
    int positives = 0, taken = 0, seen = 0;
    if (e->options.sampling <= 0)
        return;
    for (int i = 0; i < n; i++)
        positives += examples[i].positive;
    struct evaluator_state *state = state_edit(e);
    const int want = share_take(&state->due, e->options.sampling, positives);
    if (want > 0) {
        competitors_collect(e);
        for (int i = 0; i < n; i++) {
            if (!examples[i].positive || !share_takes(seen++, want, positives))
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
        activity_add(e, examples[i].user);
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
static void slate_scores(const struct evaluator *e, const struct slate *slate,
                         const struct contest *c, const float *q, float *s)
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

static void slate_compare(const struct evaluator *e, const struct contest *c,
                          const struct slate *slate, const float *scores, const float *q,
                          struct slate_evaluation *one)
{
    const int tasks = two_tower_options(e->rows->model)->objectives.tasks;
    const float *value = two_tower_values(e->rows->model)->weight;
    float g[SLATE_ITEMS_MAX], s[SLATE_ITEMS_MAX];
    objectives_teacher(tasks, value, slate, scores, g);
    slate_scores(e, slate, c, q, s);
    figure_add(slate_overlap(slate->n_items, s, g, 5), &one->overlap_5, &one->overlap_5_n);
    figure_add(slate_overlap(slate->n_items, s, g, 10), &one->overlap_10, &one->overlap_10_n);
    figure_add(slate_spearman(slate->n_items, s, g), &one->rank_correlation,
               &one->rank_correlation_n);
    figure_add(corpus_overlap(e, slate, c, g), &one->corpus_overlap_10, &one->corpus_overlap_10_n);
}

static double net_value(const struct two_tower *m, uint32_t labels)
{
    double net = 0;
    for (int t = 0; t < two_tower_options(m)->objectives.tasks; t++)
        net += (labels >> t & 1) ? (double)two_tower_values(m)->weight[t] : 0;
    return net;
}

// How much the user had engaged before the impression. What was counted holds what came after it,
// the slate's own engagements among them, so it is asked only where the history is full and a few
// more make no difference.
static double slate_activity(const struct evaluator *e, const struct slate *slate)
{
    const int length = two_tower_history(two_tower_options(e->rows->model));
    return slate->n_history < length ? slate->n_history
                                     : fmax(length, activity_now(e, slate->user));
}

static void calibrate(const struct evaluator *e, const struct slate *slate, const float *q,
                      struct slate_evaluation *one)
{
    const int activity = bucket_of(slate_activity(e, slate), activity_bounds, BY_ACTIVITY);
    float expected[SLATE_ITEMS_MAX];
    for (int by = 0; by < EXPECTATIONS; by++) {
        if (!two_tower_expects(e->rows->model, (enum expectation)by))
            continue;
        two_tower_expected(e->rows->model, (enum expectation)by, slate, q, expected);
        for (int k = 0; k < slate->n_items; k++) {
            const struct slate_item *item = &slate->items[k];
            if (!isfinite(expected[k]))
                continue;
            const int position = item->position < 0 || item->position >= BY_POSITION
                                     ? BY_POSITION - 1
                                     : item->position;
            struct calibration *const cells[] = {&one->position[by][position],
                                                 &one->activity[by][activity]};
            for (size_t i = 0; i < sizeof cells / sizeof *cells; i++) {
                cells[i]->n++;
                cells[i]->expected += (double)expected[k];
                cells[i]->observed += net_value(e->rows->model, item->labels);
            }
        }
    }
}

// The n slates that were taken, by their numbers; scanned: some of them have a ranker's scores.
static void slates_score(struct evaluator *e, int n, const struct slate *slates,
                         const float *scores, bool scanned)
{
    const size_t tasks = (size_t)two_tower_options(e->rows->model)->objectives.tasks;
    queries_make(e, n);
    for (int i = 0; i < n; i++) {
        struct contest *c = &e->contests[i];
        *c = (struct contest){0};
        c->n_bonuses = two_tower_bonuses(e->rows->model, &e->sampled[i], c->bonuses);
    }
    if (scanned) {
        competitors_collect(e);
        corpus_scan(e, n, contest_best);
    }
    for (int i = 0; i < n; i++) {
        const struct slate *slate = &slates[e->number[i]];
        const float *q = e->Q + (size_t)i * e->width;
        struct slate_evaluation one = {.n = 1};
        if (slate->ranker)
            slate_compare(e, &e->contests[i], slate,
                          scores + (size_t)e->number[i] * SLATE_ITEMS_MAX * tasks, q, &one);
        if (!slate->repeated)
            calibrate(e, slate, q, &one);
        struct evaluator_state *state = state_edit(e);
        tally(sizeof one, &state->slates_total, &one, 1);
        tally(sizeof one, &state->slates_window, &one, exp2(-1 / WINDOW_HALF_LIFE));
    }
}

static bool slate_counts(const struct evaluator *e, const struct slate *slate)
{
    const bool expected = two_tower_expects(e->rows->model, EXPECTED_CONTEXT) ||
                          two_tower_expects(e->rows->model, EXPECTED_RANKER);
    return slate->kind == SLATE_CLOSED && (slate->ranker || (expected && !slate->repeated));
}

// At most chunk_max slates.
static void slates_sample(struct evaluator *e, int n, const struct slate *slates,
                          const float *scores)
{
    int closed = 0, taken = 0, seen = 0;
    bool scanned = false;
    for (int i = 0; i < n; i++)
        closed += slate_counts(e, &slates[i]);
    struct evaluator_state *state = state_edit(e);
    const int want = share_take(&state->slates_due, e->options.sampling, closed);
    if (want == 0)
        return;
    for (int i = 0; i < n; i++) {
        const struct slate *slate = &slates[i];
        if (!slate_counts(e, slate) || !share_takes(seen++, want, closed))
            continue;
        e->number[taken] = i;
        e->sampled[taken] = two_tower_context(slate);
        scanned = scanned || slate->ranker;
        taken++;
    }
    state->slates_due -= taken;
    memset(e->features, 0,
           (size_t)taken * (size_t)two_tower_options(e->rows->model)->user_features *
               sizeof *e->features);
    slates_score(e, taken, slates, scores, scanned);
}

void evaluator_score_slates(struct evaluator *e, int n, const struct slate *slates,
                            const float *scores)
{
    const int tasks = two_tower_options(e->rows->model)->objectives.tasks;
    const int chunk = e->options.chunk_max;
    for (int from = 0; from < n && e->options.sampling > 0; from += chunk)
        slates_sample(e, n - from < chunk ? n - from : chunk, slates + from,
                      scores + (size_t)from * SLATE_ITEMS_MAX * (size_t)tasks);
}
