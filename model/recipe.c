// SPDX-License-Identifier: Apache-2.0
#include "model/recipe.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/gemm.h"
#include "model/kernels.h"
#include "model/marks.h"
#include "model/optimizer.h"
#include "model/rng.h"

enum { CACHE_LINE = 64, ROWS_AHEAD = 16 };

static const float DECAY = 0.7788007830714049f; // exp(-0.25)

size_t recipe_dense_size(int d)
{
    return 3 * (size_t)d * d + RECIPE_BUCKETS + 2;
}

struct recipe_dense recipe_dense_at(const float *dense, int d)
{
    const float *rho = dense + 3 * (size_t)d * d;
    return (struct recipe_dense){.A = dense, .rho = rho, .pa = rho + RECIPE_BUCKETS};
}

void recipe_dense_init(const struct two_tower_options *o, float *dense, size_t size)
{
    const size_t d = (size_t)o->dim, A = 3 * d * d;
    memset(dense, 0, A * sizeof *dense);
    for (size_t block = 0; block < 3; block++)
        for (size_t i = 0; i < d; i++)
            dense[(block * d + i) * d + i] = 0.6f;
    memset(dense + A, 0, RECIPE_BUCKETS * sizeof *dense);
    dense[A + RECIPE_BUCKETS] = dense[A + RECIPE_BUCKETS + 1] = 0.5f;
    optimizer_start(&o->matrix, A, dense + size);
    optimizer_start(&o->scalar, RECIPE_BUCKETS + 2, dense + size + 2 * A);
}

// w_k, k < m, sum 1.
static void decay_weights(int m, float *w)
{
    float each = 1, sum = 0;
    for (int k = 0; k < m; k++, each *= DECAY) {
        w[k] = each;
        sum += each;
    }
    for (int k = 0; k < m; k++)
        w[k] /= sum;
}

static int group_of(int m, int newest)
{
    return newest < 1 ? 1 : newest < m ? newest : m;
}

void recipe_pool(int d, const struct recent *r, float *pooled, float *context)
{
    const size_t n = (size_t)d;
    const int m = r->n;
    float w[HISTORY_MAX];
    if (m == 0) {
        memset(pooled, 0, 3 * n * sizeof *pooled);
        memset(context, 0, n * sizeof *context);
        return;
    }
    decay_weights(m, w);
    kernels->pool(n, m, group_of(m, r->newest), w, r->vectors, r->contexts, pooled, context);
}

void recipe_query(int d, const struct recipe_dense *p, const struct recent *r, const float *user,
                  float *q)
{
    float pooled[3 * d];
    recipe_pool(d, r, pooled, q);
    if (user)
        kernels->axpy((size_t)d, 1, user, q);
    for (int i = 0; r->n > 0 && i < 3 * d; i++)
        kernels->axpy((size_t)d, pooled[i], p->A + (size_t)i * d, q);
    q[d] = 1;
}

float recipe_extra(const struct two_tower_options *o, const struct recipe_dense *p,
                   const struct model_state *state, const struct item_state *item, double N)
{
    float prior[2];
    prior_of(o, state, item, N, prior);
    return item->bias + p->pa[0] * prior[0] + p->pa[1] * prior[1];
}

// {0}, {1}, {2,3}, {4..7}, {8..15}, {16..31}, {32..}
static int bucket_of(int k)
{
    return k == 0 ? 0 : 32 - __builtin_clz((unsigned)k);
}

// An item of one history: the position of its newest occurrence and how often it occurs.
struct repeat {
    uint32_t example, column; // of the logits; or column: the item's row
    uint16_t bucket, times;
};

// Nearly all of them occur once; logf(1) is 0.
static float repeat_log(const struct repeat *r)
{
    return r->times == 1 ? 0 : logf((float)r->times);
}

static float repeat_score(const struct recipe_dense *p, const struct repeat *r)
{
    return p->rho[r->bucket] + p->rho[RECIPE_BUCKETS - 1] * repeat_log(r);
}

int recipe_bonuses(const struct recipe_dense *p, int m, const uint32_t *history,
                   struct bonus *bonuses)
{
    struct repeat repeats[HISTORY_MAX];
    int n = 0;
    for (int k = 0; k < m; k++) {
        int i = 0;
        while (i < n && repeats[i].column != history[k])
            i++;
        if (i == n)
            repeats[n++] = (struct repeat){0, history[k], (uint16_t)bucket_of(k), 0};
        repeats[i].times++;
    }
    for (int i = 0; i < n; i++)
        bonuses[i] = (struct bonus){repeats[i].column, repeat_score(p, &repeats[i])};
    return n;
}

struct recipe_scratch {
    struct marks candidate_of, pooled_of, user_of;
    // Of the candidates, C <= batch_max + uniform_negatives
    uint32_t *candidates;
    float *hits;             // (C): occurrences as a target in this batch
    float (*prior)[2];       // (C, 2)
    float *column;           // (C): bias + prior - correction
    float *V, *dV, *dcolumn; // (C, d), (C, d), (C)
    int *repeat_of;          // (C): its place in repeats, below the example's first if none
    // Of the examples, B <= batch_max
    uint32_t *target;       // (B): column
    float *X, *dX;          // (B, 3d): pooled histories
    float *Q, *dQ;          // (B, d)
    float *L;               // (B, C): logits, then probabilities, then their gradient
    struct repeat *repeats; // (B * repeat)
    // Unique rows: the pooled history's and the users'
    uint32_t *pooled, *users;
    float *dpooled, *dcontext, *dusers; // (B * history, d), (B, d)
    float *ddense;                      // recipe_dense_size
};

static void *take(size_t n, size_t size)
{
    // calloc leaves large blocks untouched until they are used: batch_max may be generous.
    return calloc(n ? n : 1, size);
}

struct recipe_scratch *recipe_scratch_open(const struct two_tower_options *o, size_t items_max,
                                           size_t users_max)
{
    struct recipe_scratch *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    const size_t B = (size_t)o->batch_max, C = B + (size_t)o->uniform_negatives;
    const size_t d = (size_t)o->dim, H = (size_t)o->history;
    *s = (struct recipe_scratch){
        .candidates = take(C, sizeof(uint32_t)),
        .hits = take(C, sizeof(float)),
        .prior = take(C, sizeof(float[2])),
        .column = take(C, sizeof(float)),
        .V = take(C * d, sizeof(float)),
        .dV = take(C * d, sizeof(float)),
        .dcolumn = take(C, sizeof(float)),
        .repeat_of = take(C, sizeof(int)),
        .target = take(B, sizeof(uint32_t)),
        .X = take(B * 3 * d, sizeof(float)),
        .dX = take(B * 3 * d, sizeof(float)),
        .Q = take(B * d, sizeof(float)),
        .dQ = take(B * d, sizeof(float)),
        .L = take(B * C, sizeof(float)),
        .repeats = take(B * HISTORY_MAX, sizeof(struct repeat)),
        .pooled = take(B * H, sizeof(uint32_t)),
        .users = take(B, sizeof(uint32_t)),
        .dpooled = take(B * H * d, sizeof(float)),
        .dcontext = take(B * H * d, sizeof(float)),
        .dusers = take(B * d, sizeof(float)),
        .ddense = take(recipe_dense_size(o->dim), sizeof(float)),
    };
    bool complete = marks_open(&s->candidate_of, items_max) &&
                    marks_open(&s->pooled_of, items_max) && marks_open(&s->user_of, users_max);
    void **const first = (void **)&s->candidates, **const end = (void **)(s + 1);
    for (void **p = first; p < end; p++)
        complete = complete && *p;
    if (complete)
        return s;
    recipe_scratch_close(s);
    return NULL;
}

void recipe_scratch_close(struct recipe_scratch *s)
{
    if (!s)
        return;
    marks_close(&s->candidate_of);
    marks_close(&s->pooled_of);
    marks_close(&s->user_of);
    void **const first = (void **)&s->candidates, **const end = (void **)(s + 1);
    for (void **p = first; p < end; p++)
        free(*p);
    free(s);
}

static const float *item_vector(const struct tables *t, uint32_t row)
{
    return column_at(&t->item_vector, row);
}

static int pooled_length(const struct two_tower_options *o, const struct example *example)
{
    return example->n_history < o->history ? example->n_history : o->history;
}

// Asks for a row before its turn: in a table larger than the cache it comes from memory.
static void row_prefetch(const struct column *c, uint32_t row)
{
    const char *at = column_at(c, row);
    for (size_t i = 0; i < c->unit; i += CACHE_LINE)
        __builtin_prefetch(at + i);
}

static void example_prefetch(const struct tables *t, const struct two_tower_options *o,
                             const struct example *example)
{
    const int m = pooled_length(o, example);
    for (int k = 0; k < m; k++) {
        row_prefetch(&t->item_vector, example->history[k]);
        row_prefetch(&t->item_context, example->history[k]);
    }
    row_prefetch(&t->user_vector, example->user);
}

// The unique set of the batch's targets and of uniform draws over the known items.
static int candidates_choose(const struct tables *t, const struct two_tower_options *o,
                             const struct id_table *items, struct recipe_scratch *s, int n,
                             const struct example *examples)
{
    int C = 0;
    for (int i = 0; i < n; i++) {
        s->target[i] = marks_slot(&s->candidate_of, examples[i].item, s->candidates, &C);
        s->hits[s->target[i]] = 0;
    }
    for (int i = 0; i < n; i++)
        s->hits[s->target[i]] += 1;
    const uint64_t key = rng_key(o->seed, UINT64_C(0x756e69666f726d)); // "uniform"
    struct rng rng = {rng_at(key, tables_state(t)->steps), 0};
    for (int i = 0; i < o->uniform_negatives; i++) {
        const uint32_t row = (uint32_t)rng_below(&rng, items->row.n);
        if (!id_table_live(items, row))
            continue; // a free row: one draw less, the same for every replay
        const int before = C;
        const uint32_t slot = marks_slot(&s->candidate_of, row, s->candidates, &C);
        if (C > before)
            s->hits[slot] = 0;
    }
    return C;
}

// column[c] = bias + prior - log chance of being a candidate; V gathers the vectors.
static void candidates_prepare(const struct tables *t, const struct two_tower_options *o,
                               const struct id_table *items, struct recipe_scratch *s, int n, int C,
                               const struct recipe_dense *p, bool replay)
{
    const int d = o->dim;
    const struct model_state *state = tables_state(t);
    const double N = (double)id_table_state(items)->live;
    const int fresh = replay ? 0 : n; // examples that the counts do not have yet
    const double decay = exp2(-(double)fresh / (double)o->logq_half_life);
    // The chance uses the counts with this batch in them, the prior those before it: with the
    // batch's own counts the prior would predict what it was told (recall@100 falls by 0.017).
    const double sum = state->count_sum[COUNT_LOGQ] * decay + fresh;
    for (int c = 0; c < C; c++) {
        if (c + ROWS_AHEAD < C) {
            row_prefetch(&t->item_state, s->candidates[c + ROWS_AHEAD]);
            row_prefetch(&t->item_vector, s->candidates[c + ROWS_AHEAD]);
        }
        const struct item_state *item = column_at(&t->item_state, s->candidates[c]);
        const double count =
            (double)item->count[COUNT_LOGQ] *
                (double)count_decay(item, state->examples + (uint64_t)fresh, o->logq_half_life) +
            (replay ? 0 : (double)s->hits[c]);
        const double P = (count + 0.5) / (sum + 0.5 * N);
        const double rate = n * P + o->uniform_negatives / N;
        prior_of(o, state, item, N, s->prior[c]);
        s->column[c] = item->bias + p->pa[0] * s->prior[c][0] + p->pa[1] * s->prior[c][1] -
                       (float)log(-expm1(-rate));
        memcpy(s->V + (size_t)c * d, item_vector(t, s->candidates[c]), (size_t)d * sizeof(float));
    }
}

static void queries_forward(const struct tables *t, const struct two_tower_options *o,
                            struct recipe_scratch *s, int n, const struct example *examples,
                            const struct recipe_dense *p)
{
    const int d = o->dim;
    for (int i = 0; i < n; i++) {
        const float *vectors[HISTORY_MAX], *contexts[HISTORY_MAX];
        if (i + 1 < n)
            example_prefetch(t, o, &examples[i + 1]);
        const struct recent recent =
            recent_of(t, pooled_length(o, &examples[i]), examples[i].n_newest, examples[i].history,
                      vectors, contexts);
        float *q = s->Q + (size_t)i * d;
        recipe_pool(d, &recent, s->X + (size_t)i * 3 * d, q);
        kernels->axpy((size_t)d, 1, column_at(&t->user_vector, examples[i].user), q);
    }
    gemm_nn(n, d, 3 * d, s->X, p->A, s->Q); // Q = context + Uid + X A
}

// L = Q V^T + column + rep; returns the number of repeats found.
static int logits_forward(const struct two_tower_options *o, struct recipe_scratch *s, int n, int C,
                          const struct example *examples, const struct recipe_dense *p)
{
    int repeats = 0;
    memset(s->repeat_of, 0xff, (size_t)C * sizeof *s->repeat_of);
    for (int i = 0; i < n; i++)
        memcpy(s->L + (size_t)i * C, s->column, (size_t)C * sizeof(float));
    gemm_nt(n, C, o->dim, s->Q, s->V, s->L);
    for (int i = 0; i < n; i++) {
        const int first = repeats;
        const int m = examples[i].n_history < o->repeat ? examples[i].n_history : o->repeat;
        if (i + 1 < n)
            marks_prefetch(&s->candidate_of, examples[i + 1].n_history, examples[i + 1].history);
        for (int k = 0; k < m; k++) {
            const int64_t column = marks_find(&s->candidate_of, examples[i].history[k]);
            if (column == MARKS_NONE)
                continue;
            // What an earlier example left there is below first.
            if (s->repeat_of[column] < first) {
                s->repeat_of[column] = repeats;
                s->repeats[repeats++] =
                    (struct repeat){(uint32_t)i, (uint32_t)column, (uint16_t)bucket_of(k), 0};
            }
            s->repeats[s->repeat_of[column]].times++;
        }
        for (int r = first; r < repeats; r++)
            s->L[(size_t)i * C + s->repeats[r].column] += repeat_score(p, &s->repeats[r]);
    }
    return repeats;
}

// Turns L into its gradient, P - y, with dcolumn, the sum of its rows, and returns the loss,
// sum_i lse(L_i) - L_i,target.
static double softmax_backward(struct recipe_scratch *s, int n, int C)
{
    double loss = 0;
    memset(s->dcolumn, 0, (size_t)C * sizeof(float));
    for (int i = 0; i < n; i++) {
        float *L = s->L + (size_t)i * C;
        float *target = &L[s->target[i]], *dtarget = &s->dcolumn[s->target[i]];
        const float shift = kernels->max((size_t)C, L), score = *target, before = *dtarget;
        const float sum = kernels->exp_shifted((size_t)C, shift, L);
        loss += log((double)sum) + (double)shift - (double)score;
        kernels->scale_add((size_t)C, 1 / sum, L, s->dcolumn);
        *target -= 1;
        *dtarget = before + *target;
    }
    return loss;
}

// dV, dQ, ddense and dX from the gradient in L and dcolumn.
static void backward(const struct two_tower_options *o, struct recipe_scratch *s, int n, int C,
                     int repeats, const struct recipe_dense *p, bool replay)
{
    const int d = o->dim;
    memset(s->dV, 0, (size_t)C * d * sizeof(float));
    memset(s->dQ, 0, (size_t)n * d * sizeof(float));
    memset(s->dX, 0, (size_t)n * 3 * d * sizeof(float));
    memset(s->ddense, 0, recipe_dense_size(d) * sizeof(float));
    gemm_nn(n, d, C, s->L, s->V, s->dQ);          // dQ = dL V
    gemm_tn(C, d, n, s->L, s->Q, s->dV);          // dV = dL^T Q
    gemm_tn(3 * d, d, n, s->X, s->dQ, s->ddense); // dA = X^T dQ
    gemm_nt(n, 3 * d, d, s->dQ, p->A, s->dX);     // dX = dQ A^T
    float *drho = s->ddense + 3 * (size_t)d * d, *dpa = drho + RECIPE_BUCKETS;
    for (int r = 0; r < repeats; r++) {
        const struct repeat *repeat = &s->repeats[r];
        const float dL = s->L[(size_t)repeat->example * C + repeat->column];
        drho[repeat->bucket] += dL;
        drho[RECIPE_BUCKETS - 1] += dL * repeat_log(repeat);
    }
    for (int c = 0; c < C && !replay; c++) {
        dpa[0] += s->dcolumn[c] * s->prior[c][0];
        dpa[1] += s->dcolumn[c] * s->prior[c][1];
    }
}

// Sums dX over the rows of the pooled histories and dQ over the users.
static void gradients_scatter(const struct two_tower_options *o, struct recipe_scratch *s, int n,
                              const struct example *examples, int *pooled, int *users)
{
    const int d = o->dim;
    *pooled = *users = 0;
    for (int i = 0; i < n; i++) {
        const float *dQ = s->dQ + (size_t)i * d;
        const int m = pooled_length(o, &examples[i]);
        float w[HISTORY_MAX], *dvectors[HISTORY_MAX], *dcontexts[HISTORY_MAX];
        if (i + 1 < n)
            marks_prefetch(&s->pooled_of, examples[i + 1].n_history, examples[i + 1].history);
        decay_weights(m, w);
        for (int k = 0; k < m; k++) {
            const int before = *pooled;
            const size_t slot =
                (size_t)d * marks_slot(&s->pooled_of, examples[i].history[k], s->pooled, pooled);
            dvectors[k] = s->dpooled + slot;
            dcontexts[k] = s->dcontext + slot;
            if (*pooled > before) {
                memset(dvectors[k], 0, (size_t)d * sizeof(float));
                memset(dcontexts[k], 0, (size_t)d * sizeof(float));
            }
        }
        if (m > 0)
            kernels->unpool((size_t)d, m, group_of(m, examples[i].n_newest), w,
                            s->dX + (size_t)i * 3 * d, dQ, dvectors, dcontexts);
        const int before = *users;
        float *sum =
            s->dusers + (size_t)d * marks_slot(&s->user_of, examples[i].user, s->users, users);
        if (*users > before)
            memset(sum, 0, (size_t)d * sizeof(float));
        kernels->axpy((size_t)d, 1, dQ, sum);
    }
}

static void rows_update(const struct two_tower_options *o, uint64_t step, struct column *vector,
                        struct column *slots, int n, const uint32_t *rows, const float *gradients)
{
    for (int i = 0; i < n; i++) {
        if (i + ROWS_AHEAD < n) {
            row_prefetch(vector, rows[i + ROWS_AHEAD]);
            row_prefetch(slots, rows[i + ROWS_AHEAD]);
        }
        optimizer_update(&o->table, step, (size_t)o->dim, gradients + (size_t)i * o->dim,
                         column_edit(vector, rows[i]), column_edit(slots, rows[i]));
    }
}

static void candidates_update(struct tables *t, const struct two_tower_options *o,
                              struct recipe_scratch *s, int n, int C, bool replay)
{
    const uint64_t at = tables_state(t)->examples + (uint64_t)n;
    const uint64_t step = tables_state(t)->steps + 1;
    rows_update(o, step, &t->item_vector, &t->item_slots, C, s->candidates, s->dV);
    for (int c = 0; c < C; c++) {
        struct item_state *item = column_edit(&t->item_state, s->candidates[c]);
        optimizer_update(&o->table, step, 1, &s->dcolumn[c], &item->bias, item->bias_slots);
        if (replay || s->hits[c] == 0)
            continue;
        for (int k = 0; k < COUNTS; k++) {
            item->count[k] =
                item->count[k] * count_decay(item, at, count_half_life(o, k)) + s->hits[c];
        }
        item->counted_at = at;
    }
    struct model_state *state = column_edit(&t->state, 0);
    for (int k = 0; k < COUNTS && !replay; k++)
        state->count_sum[k] = state->count_sum[k] * exp2(-n / (double)count_half_life(o, k)) + n;
}

static void dense_update(struct tables *t, const struct two_tower_options *o,
                         const struct recipe_scratch *s)
{
    for (size_t i = 0; i < t->dense.n; i++)
        column_edit(&t->dense, i);
    float *w = tables_dense(t), *slots = w + t->dense_size;
    const size_t A = 3 * (size_t)o->dim * o->dim;
    const uint64_t step = tables_state(t)->steps + 1;
    optimizer_update(&o->matrix, step, A, s->ddense, w, slots);
    optimizer_update(&o->scalar, step, RECIPE_BUCKETS + 2, s->ddense + A, w + A, slots + 2 * A);
}

static bool finite_sum(size_t n, const float *x)
{
    return isfinite(kernels->dot(n, x, x));
}

struct step_report recipe_learn(struct tables *t, const struct two_tower_options *o,
                                const struct id_table *items, struct recipe_scratch *s, int n,
                                const struct example *examples, bool replay)
{
    const int d = o->dim;
    const struct recipe_dense p = recipe_dense_at(tables_dense(t), d);
    assert(n > 0 && n <= o->batch_max);
    marks_clear(&s->candidate_of);
    marks_clear(&s->pooled_of);
    marks_clear(&s->user_of);

    // Forward: everything is read as it was before the step.
    const int C = candidates_choose(t, o, items, s, n, examples);
    candidates_prepare(t, o, items, s, n, C, &p, replay);
    queries_forward(t, o, s, n, examples, &p);
    const int repeats = logits_forward(o, s, n, C, examples, &p);

    // Backward.
    int pooled, users;
    const double loss = softmax_backward(s, n, C);
    backward(o, s, n, C, repeats, &p, replay);
    gradients_scatter(o, s, n, examples, &pooled, &users);

    struct model_state *state = column_edit(&t->state, 0);
    struct step_report report = {.examples = n, .candidates = C, .loss = loss, .replayed = replay};
    report.skipped = !isfinite(loss) || !finite_sum((size_t)C * d, s->dV) ||
                     !finite_sum((size_t)n * 3 * d, s->dX) ||
                     !finite_sum(recipe_dense_size(d), s->ddense);
    if (report.skipped) {
        state->skipped++;
        return report;
    }

    // Update. History rows and candidate rows are two steps of one table and one accumulator.
    const uint64_t step = tables_state(t)->steps + 1;
    rows_update(o, step, &t->item_vector, &t->item_slots, pooled, s->pooled, s->dpooled);
    rows_update(o, step, &t->item_context, &t->item_context_slots, pooled, s->pooled, s->dcontext);
    candidates_update(t, o, s, n, C, replay);
    rows_update(o, step, &t->user_vector, &t->user_slots, users, s->users, s->dusers);
    dense_update(t, o, s);
    state->steps++;
    if (!replay)
        state->examples += (uint64_t)n;
    return report;
}
