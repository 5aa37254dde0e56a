// SPDX-License-Identifier: Apache-2.0
#include "model/recipe.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/arena.h"
#include "model/batch_scores.h"
#include "model/gemm.h"
#include "model/kernels.h"
#include "model/marks.h"
#include "model/memory.h"
#include "model/onebp.h"
#include "model/optimizer.h"
#include "model/retrieval_loss.h"
#include "model/rng.h"
#include "model/towers.h"

// W may lead the matrices of the query: nothing but the start of rows follows from it. On drifting
// topics with new items recall@100 is 0.431 at 1.5 times their rate, 0.443 at 5 and 0.444 at 15.
static const float FEATURE_PACE = 5;

static const float DECAY = 0.7788007830714049f; // exp(-0.25)

// The scalars, behind A.
enum {
    AT_RHO = 0,
    AT_PA = AT_RHO + RECIPE_BUCKETS,
    AT_RHO_LENGTH = AT_PA + PRIORS,
    AT_GATE = AT_RHO_LENGTH + RECIPE_BUCKETS * RECIPE_BUCKETS,
    SCALARS = AT_GATE + RECIPE_BUCKETS * RECIPE_GATES,
};

size_t recipe_encoder_offset(int d)
{
    return 3 * (size_t)d * d + SCALARS;
}

size_t recipe_dense_size(const struct two_tower_options *o)
{
    return recipe_encoder_offset(o->dim) + history_encoder_size(o->dim, &o->encoder);
}

static size_t features_size(const struct two_tower_options *o)
{
    return (size_t)o->item_features * (size_t)o->dim;
}

struct recipe_dense recipe_dense_at(const float *dense, int d)
{
    const float *scalars = dense + 3 * (size_t)d * d;
    return (struct recipe_dense){.A = dense,
                                 .rho = scalars + AT_RHO,
                                 .pa = scalars + AT_PA,
                                 .rho_length = scalars + AT_RHO_LENGTH,
                                 .gate = scalars + AT_GATE};
}

// The parameters' start, and behind their size floats what their optimizers keep.
static void dense_init(const struct two_tower_options *o, float *dense, size_t size)
{
    const size_t d = (size_t)o->dim, A = 3 * d * d;
    memset(dense, 0, A * sizeof *dense);
    for (size_t block = 0; block < 3; block++)
        for (size_t i = 0; i < d; i++)
            dense[(block * d + i) * d + i] = 1;
    memset(dense + A, 0, SCALARS * sizeof *dense);
    for (int k = 0; k < PRIORS; k++)
        dense[A + AT_PA + k] = 1.0f / PRIORS;
    optimizer_start(&o->matrix, A, dense + size);
    optimizer_start(&o->scalar, SCALARS, dense + size + 2 * A);
    const size_t at = recipe_encoder_offset(o->dim);
    history_encoder_start(o->dim, &o->encoder, o->seed, dense + at);
    optimizer_start(&o->matrix, history_encoder_size(o->dim, &o->encoder), dense + size + 2 * at);
    const size_t W = recipe_dense_size(o), features = features_size(o);
    memset(dense + W, 0, features * sizeof *dense);
    optimizer_start(&o->matrix, features, dense + size + 2 * W);
}

// w_k, k < m, sum 1.
static void decay_weights(int m, float w[HISTORY_MAX])
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

// {0}, {1}, {2,3}, {4..7}, {8..15}, {16..31}, {32..63}, {64}: of positions and of lengths.
static int bucket_of(int k)
{
    return k == 0 ? 0 : 32 - __builtin_clz((unsigned)k);
}
_Static_assert(HISTORY_MAX < 1 << (RECIPE_BUCKETS - 1), "every length has its bucket");

static void gates_of(const struct recipe_dense *p, int m, float gate[RECIPE_GATES])
{
    for (int j = 0; j < RECIPE_GATES; j++)
        gate[j] = expf(p->gate[bucket_of(m) * RECIPE_GATES + j]);
}

// w: decay_weights of r->n.
static void recipe_pool(int d, const float gate[RECIPE_GATES], const float w[HISTORY_MAX],
                        const struct recent *r, float *pooled, float *context)
{
    const size_t n = (size_t)d;
    const int m = r->n;
    if (m == 0) {
        memset(pooled, 0, 3 * n * sizeof *pooled);
        memset(context, 0, n * sizeof *context);
        return;
    }
    kernels->pool(n, m, group_of(m, r->newest), w, r->vectors, r->contexts, pooled, context);
    for (size_t scale = 0; scale < 3; scale++)
        kernels->scale(n, gate[GATE_NEWEST + scale], pooled + scale * n);
    kernels->scale(n, gate[GATE_CONTEXT], context);
}

void recipe_query(const struct two_tower_options *o, const float *dense, const struct recent *r,
                  const float *user, float *q)
{
    const int d = o->dim;
    const struct recipe_dense p = recipe_dense_at(dense, d);
    float pooled[3 * d], gate[RECIPE_GATES], w[HISTORY_MAX];
    gates_of(&p, r->n, gate);
    decay_weights(r->n, w);
    recipe_pool(d, gate, w, r, pooled, q);
    if (user)
        kernels->axpy((size_t)d, gate[GATE_USER], user, q);
    for (int i = 0; r->n > 0 && i < 3 * d; i++)
        kernels->axpy((size_t)d, pooled[i], p.A + (size_t)i * d, q);
    if (o->encoder.layers)
        history_encoder_query(d, &o->encoder, o->history, dense + recipe_encoder_offset(d), r, q);
    q[d] = 1;
}

static float prior_weighed(const struct recipe_dense *p, float sum, const float prior[PRIORS])
{
    for (int k = 0; k < PRIORS; k++)
        sum += p->pa[k] * prior[k];
    return sum;
}

float recipe_extra(const struct two_tower_options *o, const struct recipe_dense *p,
                   const struct model_state *state, const struct item_state *item, double N)
{
    float prior[PRIORS];
    prior_of(o, state, item, N, prior);
    return prior_weighed(p, item->bias, prior);
}

// An item of one history: the position of its newest occurrence and how often it occurs.
struct repeat {
    uint32_t column; // of the logits; or the item's row
    uint16_t times;
    uint8_t place;  // bucket of the position
    uint8_t length; // bucket of the history's length
};

// At position k of a history of m.
static struct repeat repeat_at(uint32_t column, int k, int m)
{
    return (struct repeat){column, 0, (uint8_t)bucket_of(k), (uint8_t)bucket_of(m)};
}

// Nearly all of them occur once, and log 1 is 0.
static float repeat_score(const struct recipe_dense *p, const struct repeat *r)
{
    const float *rho = p->rho, *own = p->rho_length + (size_t)r->length * RECIPE_BUCKETS;
    const float once = rho[r->place] + own[r->place];
    return r->times == 1 ? once : once + (rho[RHO_TIMES] + own[RHO_TIMES]) * logf(r->times);
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
            repeats[n++] = repeat_at(history[k], k, m);
        repeats[i].times++;
    }
    for (int i = 0; i < n; i++)
        bonuses[i] = (struct bonus){repeats[i].column, repeat_score(p, &repeats[i])};
    return n;
}

void recipe_item_start(const struct two_tower_options *o, const float *dense, const float *f,
                       float *row)
{
    const float *W = dense + recipe_dense_size(o);
    for (int i = 0; i < o->item_features; i++)
        kernels->axpy((size_t)o->dim, f[i], W + (size_t)i * o->dim, row);
}

// ---- The pure functions behind a view.

static void items_view(const struct view *v, int n, const float *vectors,
                       const struct item_state *states, const float *features, float *V)
{
    const struct recipe_dense p = recipe_dense_at(v->dense, v->options->dim);
    const size_t d = (size_t)v->options->dim;
    (void)features;
    for (int i = 0; i < n; i++) {
        memcpy(V + (size_t)i * (d + 1), vectors + (size_t)i * d, d * sizeof *V);
        V[(size_t)i * (d + 1) + d] =
            recipe_extra(v->options, &p, v->state, &states[i], (double)v->items_known);
    }
}

static void query_view(const struct view *v, const struct recent *recent, const float *user,
                       const float *features, float *q)
{
    struct recent pooled = *recent;
    (void)features;
    if (pooled.n > v->options->history)
        pooled.n = v->options->history;
    recipe_query(v->options, v->dense, &pooled, user, q);
}

static int bonuses_view(const struct view *v, int m, const uint32_t *history, struct bonus *bonuses)
{
    const struct recipe_dense p = recipe_dense_at(v->dense, v->options->dim);
    return recipe_bonuses(&p, m < v->options->repeat ? m : v->options->repeat, history, bonuses);
}

static size_t dense_floats(const struct two_tower_options *o)
{
    return recipe_dense_size(o) + features_size(o);
}

static bool dense_parameter(const struct two_tower_options *o, int i, struct dense_parameter *p)
{
    const int d = o->dim;
    const size_t dd = (size_t)d * (size_t)d;
    const struct dense_parameter all[] = {
        {"history_newest", d, d, 0},
        {"history_decayed", d, d, dd},
        {"history_mean", d, d, 2 * dd},
        {"repeat", 1, RECIPE_BUCKETS, 3 * dd},
        {"prior", 1, PRIORS, 3 * dd + AT_PA},
        {"repeat_by_length", RECIPE_BUCKETS, RECIPE_BUCKETS, 3 * dd + AT_RHO_LENGTH},
        {"history_gate", RECIPE_BUCKETS, RECIPE_GATES, 3 * dd + AT_GATE},
    };
    const int n = (int)(sizeof all / sizeof *all);
    int blocks = 0;
    while (history_encoder_block(d, &o->encoder, blocks, p))
        blocks++;
    if (i == n + blocks && o->item_features > 0) {
        *p = (struct dense_parameter){"item_features", o->item_features, d, recipe_dense_size(o)};
        return true;
    }
    if (i >= n && !history_encoder_block(d, &o->encoder, i - n, p))
        return false;
    if (i < n)
        *p = all[i];
    else
        p->offset += recipe_encoder_offset(d);
    return true;
}

static const char *group(const struct two_tower_options *o, int i)
{
    static const char *const all[] = {"item rows", "item contexts", "biases",
                                      "matrices",  "scalars",       "user rows"};
    const int n = (int)(sizeof all / sizeof *all) - o->onebp;
    return i < n ? all[i] : NULL;
}

// ---- Learning.

struct recipe {
    struct towers towers;
    struct memory memory;
    int columns;             // of the softmax: the candidates, and behind them what is remembered
    double targets, uniform; // draws that the columns are what is left of
    // Of item rows: in a step they have two updates, of half the radius each.
    struct optimizer item_table;
    struct marks candidate_of, pooled_of, user_of;
    struct history_encoder *encoder; // NULL without
    int pooled, users;               // rows of this step's histories and queries
    struct batch_scores scores;
    struct batch_scores pooling;                 // X A as scores: A's columns are its candidates
    float gate[RECIPE_BUCKETS][RECIPE_GATES];    // by bucket of the length, exp() taken
    float decayed[HISTORY_MAX + 1][HISTORY_MAX]; // by length: decay_weights
    // Of the columns, C <= towers.candidates_max + memory.capacity
    uint32_t *candidates;
    float *hits;             // (C): occurrences as a target in this batch
    float (*prior)[PRIORS];  // (C, 2)
    float *column;           // (C): bias + prior
    float *log_chance;       // (C): of being a candidate
    float *corrected;        // (C): column - log_chance
    float *V, *dV, *dcolumn; // (C, d), (C, d), (C)
    float *features;         // (C, item_features): of the targets that have any
    float *misses, *dW;      // (C, d): f W - E of those; (item_features, d)
    float *dropped;          // (C): of columns whose gradient is not wanted
    int64_t *repeat_of;      // (C): example * HISTORY_MAX + its place in that one's repeats
    // Of the examples, B <= towers.queries_max
    uint32_t *target;                    // (B): column
    uint32_t *user;                      // (B): place in user_rows
    int *last;                           // (B): the newest example of each of user_rows
    int *before;                         // (B): the one before of the same user, -1: none
    int64_t *ts;                         // (B): their times, side by side
    int64_t *newest;                     // (B): of the examples of each of user_rows
    int *basket;                         // (B): the next with the same user and time, in a ring
    uint32_t *known_last, *known_before; // (B): for known_mask
    uint64_t *removed;                   // (B, words of C)
    float *X, *dX;                       // (B, 3d): pooled histories
    float *context, *own;                // (B, d): their contexts; the users' own vectors
    float *Q, *dQ;                       // (B, d)
    float *At, *dAt;                     // (d, 3d): A's transpose
    void *scratch;                       // of scores and pooling
    // Unique rows: the pooled history's and the users'
    uint32_t *pooled_rows, *user_rows;
    float *dpooled, *dusers; // (B * history, 2, d): of the vector and the context; (B, d)
    float *ddense;           // recipe_dense_size
};

static struct recipe *recipe_of(struct towers *t)
{
    return (struct recipe *)t;
}

static void *take(size_t n, size_t size)
{
    // calloc leaves large blocks untouched until they are used: batch_max may be generous.
    return calloc(n ? n : 1, size);
}

static void recipe_close(struct towers *t)
{
    struct recipe *r = recipe_of(t);
    marks_close(&r->candidate_of);
    marks_close(&r->pooled_of);
    marks_close(&r->user_of);
    history_encoder_close(r->encoder);
    free(r->memory.places);
    void **const first = (void **)&r->candidates, **const end = (void **)(r + 1);
    for (void **p = first; p < end; p++)
        free(*p);
    free(r);
}

static struct towers *recipe_open(const struct towers *base, size_t items_max, size_t users_max)
{
    struct recipe *r = calloc(1, sizeof *r);
    if (!r)
        return NULL;
    const struct two_tower_options *o = base->options;
    const size_t M = o->memory.capacity;
    const size_t B = (size_t)base->queries_max, C = (size_t)base->candidates_max + M;
    const size_t d = (size_t)o->dim, H = (size_t)o->history;
    const size_t columns = (size_t)o->batch_max + (size_t)o->uniform_negatives + M;
    const size_t scores = batch_scores_bytes(o->precision, o->dim, (int)columns);
    const size_t pooling = batch_scores_bytes(o->precision, 3 * o->dim, o->dim);
    *r = (struct recipe){
        .towers = *base,
        .memory.places = take(M, sizeof(uint32_t)),
        .item_table = o->table,
        .candidates = take(C, sizeof(uint32_t)),
        .hits = take(C, sizeof(float)),
        .prior = take(C, sizeof(float[PRIORS])),
        .column = take(C, sizeof(float)),
        .log_chance = take(C, sizeof(float)),
        .corrected = take(C, sizeof(float)),
        .V = take(C * d, sizeof(float)),
        .dV = take(C * d, sizeof(float)),
        .dcolumn = take(C, sizeof(float)),
        .features = take(C * (size_t)o->item_features, sizeof(float)),
        .misses = take(C * d, sizeof(float)),
        .dW = take((size_t)o->item_features * d, sizeof(float)),
        .dropped = take(C, sizeof(float)),
        .repeat_of = take(C, sizeof(int64_t)),
        .target = take(B, sizeof(uint32_t)),
        .user = take(B, sizeof(uint32_t)),
        .last = take(B, sizeof(int)),
        .before = take(B, sizeof(int)),
        .ts = take(B, sizeof(int64_t)),
        .newest = take(B, sizeof(int64_t)),
        .basket = take(B, sizeof(int)),
        .known_last = take(B, sizeof(uint32_t)),
        .known_before = take(B, sizeof(uint32_t)),
        .removed = take(o->mask_known ? B * retrieval_words((int)C) : 1, sizeof(uint64_t)),
        .X = take(B * 3 * d, sizeof(float)),
        .dX = take(B * 3 * d, sizeof(float)),
        .context = take(B * d, sizeof(float)),
        .own = take(B * d, sizeof(float)),
        .Q = take(B * d, sizeof(float)),
        .dQ = take(B * d, sizeof(float)),
        .At = take(d * 3 * d, sizeof(float)),
        .dAt = take(d * 3 * d, sizeof(float)),
        .scratch = take(scores + pooling, 1),
        .pooled_rows = take(B * H, sizeof(uint32_t)),
        .user_rows = take(B, sizeof(uint32_t)),
        .dpooled = take(B * H * 2 * d, sizeof(float)),
        .dusers = take(B * d, sizeof(float)),
        .ddense = take(recipe_dense_size(o), sizeof(float)),
    };
    if (o->encoder.layers)
        r->encoder = history_encoder_open(o->dim, &o->encoder, o->history, base->queries_max);
    r->item_table.radius /= 2;
    for (int m = 1; m <= HISTORY_MAX; m++)
        decay_weights(m, r->decayed[m]);
    bool complete = r->memory.places && marks_open(&r->candidate_of, items_max) &&
                    marks_open(&r->pooled_of, items_max) && marks_open(&r->user_of, users_max) &&
                    (r->encoder || !o->encoder.layers);
    void **const first = (void **)&r->candidates, **const end = (void **)(r + 1);
    for (void **p = first; p < end; p++)
        complete = complete && *p;
    if (!complete) {
        recipe_close(&r->towers);
        return NULL;
    }
    struct arena scratch = {r->scratch, scores + pooling, 0};
    batch_scores_init(&r->scores, o->precision, o->dim, (int)columns, &scratch);
    batch_scores_init(&r->pooling, o->precision, 3 * o->dim, o->dim, &scratch);
    dense_init(o, tables_dense(base->tables), base->tables->dense_size);
    return &r->towers;
}

static int pooled_length(const struct two_tower_options *o, const struct example *example)
{
    return example->n_history < o->history ? example->n_history : o->history;
}

static void begin(struct towers *t, struct step *s)
{
    struct recipe *r = recipe_of(t);
    assert(s->n > 0 && s->n <= t->queries_max);
    marks_clear(&r->candidate_of);
    marks_clear(&r->pooled_of);
    marks_clear(&r->user_of);
    r->pooled = r->users = 0;
    s->C = 0;
    s->rows = r->candidates;
    s->Q = r->Q, s->dQ = r->dQ;
    s->V = r->V, s->dV = r->dV;
    s->column = r->column, s->dcolumn = r->dcolumn;
}

static uint32_t candidate_add(struct towers *t, struct step *s, uint32_t row)
{
    struct recipe *r = recipe_of(t);
    const int before = s->C;
    const uint32_t slot = marks_slot(&r->candidate_of, row, r->candidates, &s->C);
    if (s->C > before)
        r->hits[slot] = 0;
    return slot;
}

// The unique set of the batch's targets and of uniform draws over the known items.
static void candidates_choose(struct towers *t, struct step *s)
{
    struct recipe *r = recipe_of(t);
    const struct two_tower_options *o = t->options;
    for (int i = 0; i < s->n; i++) {
        if (i + ROWS_AHEAD < s->n)
            marks_prefetch(&r->candidate_of, 1, &s->examples[i + ROWS_AHEAD].item);
        r->target[i] = candidate_add(t, s, s->examples[i].item);
    }
    for (int i = 0; i < s->n; i++)
        r->hits[r->target[i]] += 1;
    s->target = r->target;
    const uint64_t key = rng_key(o->seed, UINT64_C(0x756e69666f726d)); // "uniform"
    struct rng rng = {rng_at(key, tables_state(t->tables)->steps), 0};
    uint32_t drawn[ROWS_AHEAD]; // their rows and marks are on the way
    for (int i = 0; i < o->uniform_negatives + ROWS_AHEAD; i++) {
        uint32_t *row = &drawn[i % ROWS_AHEAD];
        // A free row is one draw less, the same for every replay.
        if (i >= ROWS_AHEAD && id_table_live(t->items, *row))
            candidate_add(t, s, *row);
        if (i < o->uniform_negatives) {
            *row = (uint32_t)rng_below(&rng, t->items->row.n);
            column_prefetch(&t->items->row, *row);
            marks_prefetch(&r->candidate_of, 1, row);
        }
    }
}

// column[c] = bias + prior; V gathers the vectors.
static void items_forward(struct recipe *r, const struct step *s, const struct recipe_dense *p)
{
    const struct tables *t = r->towers.tables;
    const struct two_tower_options *o = r->towers.options;
    const size_t d = (size_t)o->dim;
    const struct model_state *state = tables_state(t);
    const double N = (double)id_table_state(r->towers.items)->live;
    for (int c = 0; c < s->C; c++) {
        const int ahead = rows_ahead(c, s->C);
        if (ahead > 0) {
            const uint32_t *rows = r->candidates + c + ROWS_AHEAD;
            column_prefetch_all(&t->item_state, t->item_state.unit, ahead, rows);
            column_prefetch_all(&t->item_vector, d * sizeof *r->V, ahead, rows);
        }
        const struct item_state *item = column_at(&t->item_state, r->candidates[c]);
        prior_of(o, state, item, N, r->prior[c]);
        r->column[c] = prior_weighed(p, item->bias, r->prior[c]);
        memcpy(r->V + (size_t)c * d, column_at(&t->item_vector, r->candidates[c]),
               d * sizeof(float));
    }
}

// Finds the basket that example i belongs to. Examples come by time, so few are looked at.
static void basket_add(struct recipe *r, int i, const struct example *example)
{
    const int users = r->users;
    const uint32_t user = marks_slot(&r->user_of, example->user, r->user_rows, &r->users);
    const bool first = r->users > users;
    int same = first || example->ts_ms > r->newest[user] ? -1 : r->last[user];
    while (same >= 0 && r->ts[same] != example->ts_ms)
        same = r->before[same];
    r->basket[i] = i;
    if (same >= 0) {
        r->basket[i] = r->basket[same];
        r->basket[same] = i;
    }
    if (first || example->ts_ms > r->newest[user])
        r->newest[user] = example->ts_ms;
    r->user[i] = user;
    r->ts[i] = example->ts_ms;
    r->before[i] = first ? -1 : r->last[user];
    r->last[user] = i;
}

// y (n, m) = x (m, n) transposed.
static void turn(size_t m, size_t n, const float *x, float *y)
{
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++)
            y[j * m + i] = x[i * n + j];
}

PREFETCHES void users_prefetch(const struct recipe *r, const struct step *s, int i)
{
    const struct column *vectors = &r->towers.tables->user_vector;
    const int ahead = rows_ahead(i, s->n);
    uint32_t users[ROWS_AHEAD];
    if (ahead == 0)
        return;
    for (int j = 0; j < ahead; j++)
        users[j] = s->examples[i + ROWS_AHEAD + j].user;
    column_prefetch_all(vectors, vectors->unit, ahead, users);
    marks_prefetch(&r->user_of, ahead, users);
}

static int tile_of(const struct step *s, int from)
{
    return s->n - from < BATCH_SCORES_TILE ? s->n - from : BATCH_SCORES_TILE;
}

// Q += X A
static void pooled_forward(struct recipe *r, const struct step *s, const float *A)
{
    const size_t d = (size_t)r->towers.options->dim;
    turn(3 * d, d, A, r->At);
    batch_scores_begin(&r->pooling, (int)d, r->At, NULL, true);
    for (int from = 0, n; from < s->n; from += n) {
        n = tile_of(s, from);
        batch_scores_forward(&r->pooling, n, r->X + (size_t)from * 3 * d);
        for (size_t i = 0; i < (size_t)n; i++)
            kernels->axpy(d, 1, r->pooling.S + i * r->pooling.stride,
                          r->Q + ((size_t)from + i) * d);
    }
}

// dX = dQ A^T, dA = X^T dQ
static void pooled_backward(struct recipe *r, const struct step *s, float *dA)
{
    const size_t d = (size_t)r->towers.options->dim;
    memset(r->dAt, 0, d * 3 * d * sizeof(float));
    for (int from = 0, n; from < s->n; from += n) {
        n = tile_of(s, from);
        batch_scores_take(&r->pooling, n, r->X + (size_t)from * 3 * d);
        for (size_t i = 0; i < (size_t)n; i++)
            memcpy(r->pooling.S + i * r->pooling.stride, r->dQ + ((size_t)from + i) * d,
                   d * sizeof(float));
        float *dX = r->dX + (size_t)from * 3 * d;
        memset(dX, 0, (size_t)n * 3 * d * sizeof *dX);
        batch_scores_backward(&r->pooling, n, dX);
    }
    batch_scores_end(&r->pooling, r->dAt);
    turn(d, 3 * d, r->dAt, dA);
}

static void queries_forward(struct recipe *r, const struct step *s, const struct recipe_dense *p)
{
    const struct tables *t = r->towers.tables;
    const struct two_tower_options *o = r->towers.options;
    const int d = o->dim;
    for (int b = 0; b < RECIPE_BUCKETS; b++)
        gates_of(p, b == 0 ? 0 : 1 << (b - 1), r->gate[b]);
    if (r->encoder)
        history_encoder_begin(r->encoder, p->A + recipe_encoder_offset(d));
    for (int i = 0; i < s->n; i++) {
        const struct example *example = &s->examples[i];
        const float *vectors[HISTORY_MAX], *contexts[HISTORY_MAX];
        if (i + 1 < s->n)
            column_prefetch_all(&t->item_vector, t->item_vector.unit, pooled_length(o, example + 1),
                                example[1].history);
        users_prefetch(r, s, i);
        const struct recent recent =
            recent_of(t, pooled_length(o, example), example->n_newest, example->history,
                      example->actions, example->gaps, vectors, contexts);
        if (r->encoder)
            history_encoder_take(r->encoder, &recent);
        const float *gate = r->gate[bucket_of(recent.n)];
        float *q = r->Q + (size_t)i * d, *context = r->context + (size_t)i * d;
        float *own = r->own + (size_t)i * d;
        recipe_pool(d, gate, r->decayed[recent.n], &recent, r->X + (size_t)i * 3 * d, context);
        memcpy(q, context, (size_t)d * sizeof *q);
        memcpy(own, column_at(&t->user_vector, example->user), (size_t)d * sizeof *own);
        kernels->axpy((size_t)d, gate[GATE_USER], own, q);
        basket_add(r, i, example);
    }
    pooled_forward(r, s, p->A);
    if (r->encoder)
        history_encoder_forward(r->encoder, r->Q);
}

static void forward(struct towers *t, struct step *s)
{
    struct recipe *r = recipe_of(t);
    const size_t d = (size_t)t->options->dim;
    const struct recipe_dense p = recipe_dense_at(tables_dense(t->tables), t->options->dim);
    items_forward(r, s, &p);
    queries_forward(r, s, &p);
    memset(r->dV, 0, (size_t)s->C * d * sizeof(float));
    memset(r->dcolumn, 0, (size_t)s->C * sizeof(float));
    memset(r->dQ, 0, (size_t)s->n * d * sizeof(float));
    memset(r->ddense, 0, recipe_dense_size(t->options) * sizeof(float));
}

// The columns are this batch's candidates.
static void columns_begin(struct recipe *r, const struct step *s)
{
    r->columns = s->C;
    r->targets = s->n;
    r->uniform = r->towers.options->uniform_negatives;
}

// Behind the candidates the items of earlier batches, each once, with their vectors and columns as
// they were then. Together they are one set, and what their chance is of being in it follows from
// the draws of all batches it was made by.
static void columns_remember(struct recipe *r, const struct step *s)
{
    const size_t d = (size_t)r->towers.options->dim;
    for (int i = 0; i < r->memory.n; i++) {
        const struct negative_entry *entry = memory_entry(&r->memory, &r->towers, i);
        const int before = r->columns;
        const uint32_t slot = marks_slot(&r->candidate_of, entry->row, r->candidates, &r->columns);
        r->targets += (double)entry->targets;
        r->uniform += (double)entry->uniform;
        if (slot < (uint32_t)s->C)
            memory_look(&r->memory, &r->towers, i, r->V + slot * d);
        if (r->columns == before)
            continue;
        r->hits[slot] = 0;
        r->column[slot] = entry->extra;
        memcpy(r->V + slot * d, memory_vector(&r->memory, &r->towers, i), d * sizeof(float));
    }
}

// corrected = column - log chance of being a column. The chance uses the counts with this batch
// in them, the prior those before it: with the batch's own counts the prior would predict what it
// was told (recall@100 falls by 0.017).
static void candidates_correct(struct recipe *r, const struct step *s)
{
    const struct two_tower_options *o = r->towers.options;
    const struct model_state *state = tables_state(r->towers.tables);
    const double N = (double)id_table_state(r->towers.items)->live;
    const int fresh = s->fresh ? s->n : 0; // examples that the counts do not have yet
    const double decay = exp2(-(double)fresh / (double)o->logq_half_life);
    const double sum = state->count_sum[COUNT_LOGQ] * decay + fresh;
    for (int c = 0; c < r->columns; c++) {
        const struct item_state *item = column_at(&r->towers.tables->item_state, r->candidates[c]);
        const double count =
            (double)item->count[COUNT_LOGQ] *
                (double)count_decay(item, state->examples + (uint64_t)fresh, o->logq_half_life) +
            (s->fresh ? (double)r->hits[c] : 0);
        const double P = (count + 0.5) / (sum + 0.5 * N);
        r->log_chance[c] = sampled_log_presence(sampled_rate(r->targets, P, r->uniform, N));
        r->corrected[c] = r->column[c] - (o->correction == SAMPLED_NONE ? 0 : r->log_chance[c]);
    }
}

// The items of a history that are columns; returns how many.
static int repeats_of_row(struct recipe *r, const struct step *s, int i,
                          struct repeat repeats[HISTORY_MAX])
{
    const struct example *example = &s->examples[i];
    const int repeat = r->towers.options->repeat;
    const int m = example->n_history < repeat ? example->n_history : repeat;
    const int64_t first = (int64_t)i * HISTORY_MAX;
    int n = 0;
    if (i + 1 < s->n)
        marks_prefetch(&r->candidate_of, example[1].n_history, example[1].history);
    for (int k = 0; k < m; k++) {
        const int64_t column = marks_find(&r->candidate_of, example->history[k]);
        if (column == MARKS_NONE)
            continue;
        // What an earlier example left there is below first.
        if (r->repeat_of[column] < first) {
            r->repeat_of[column] = first + n;
            repeats[n++] = repeat_at((uint32_t)column, k, m);
        }
        repeats[r->repeat_of[column] - first].times++;
    }
    return n;
}

// What a user engaged with at the same time is no negative: of a basket, no item came first.
static void basket_mask(struct recipe *r, struct step *s, int i, float *logits)
{
    for (int j = r->basket[i]; j != i; j = r->basket[j]) {
        if (r->target[j] == r->target[i])
            continue;
        logits[r->target[j]] = -INFINITY;
        // known_mask counts them, too, and nothing is counted again beside the memory.
        s->masked += r->towers.options->mask_known || r->columns > s->C ? 0 : 1;
    }
}

// What a user engaged with elsewhere in this batch is no negative of the user's.
static void known_mask(struct recipe *r, struct step *s)
{
    memset(r->removed, 0, (size_t)s->n * retrieval_words(r->columns) * sizeof *r->removed);
    const int masked = sampled_softmax_remove_known(s->n, r->columns, r->user, r->target,
                                                    r->known_last, r->known_before, r->removed);
    s->masked += r->columns == s->C ? (uint64_t)masked : 0; // once, not again beside the memory
}

static void repeat_learn(struct recipe *r, const struct repeat *repeat, float dscore)
{
    const size_t d = (size_t)r->towers.options->dim;
    float *drho = r->ddense + 3 * d * d + AT_RHO;
    float *down = r->ddense + 3 * d * d + AT_RHO_LENGTH + (size_t)repeat->length * RECIPE_BUCKETS;
    drho[repeat->place] += dscore;
    down[repeat->place] += dscore;
    if (repeat->times == 1)
        return;
    const float dtimes = dscore * logf(repeat->times);
    drho[RHO_TIMES] += dtimes;
    down[RHO_TIMES] += dtimes;
}

// One row of logits, Q V^T + corrected, becomes its gradient; returns its loss.
static double row_learn(struct recipe *r, struct step *s, int i, bool items, float *row,
                        float *dcolumn)
{
    const struct two_tower_options *o = r->towers.options;
    const struct recipe_dense p = recipe_dense_at(tables_dense(r->towers.tables), o->dim);
    const struct sampled_softmax form = {.form = o->correction, .chance = SAMPLED_PRESENCE};
    struct repeat repeats[HISTORY_MAX];
    const int n = repeats_of_row(r, s, i, repeats);
    for (int k = 0; k < n; k++)
        row[repeats[k].column] += repeat_score(&p, &repeats[k]);
    basket_mask(r, s, i, row);
    const uint64_t *removed =
        o->mask_known ? r->removed + (size_t)i * retrieval_words(r->columns) : NULL;
    const double loss = sampled_softmax_row(&form, r->columns, r->log_chance, (int)r->target[i],
                                            removed, s->weight ? s->weight[i] : 1, row, dcolumn);
    for (int k = 0; items && k < n; k++)
        repeat_learn(r, &repeats[k], row[repeats[k].column]);
    return loss;
}

// The softmax of every row over the columns. What learns: items, with dcolumn and the repeat term,
// or queries, or both. Returns the loss.
static double columns_learn(struct recipe *r, struct step *s, bool items, bool queries,
                            float *dcolumn)
{
    const size_t d = (size_t)r->towers.options->dim;
    double loss = 0;
    candidates_correct(r, s);
    if (r->towers.options->mask_known)
        known_mask(r, s);
    memset(r->repeat_of, 0xff, (size_t)r->columns * sizeof *r->repeat_of);
    batch_scores_begin(&r->scores, r->columns, r->V, r->corrected, items);
    for (int from = 0, rows; from < s->n; from += rows) {
        rows = tile_of(s, from);
        batch_scores_forward(&r->scores, rows, r->Q + (size_t)from * d);
        for (int i = from; i < from + rows; i++)
            loss += row_learn(r, s, i, items, r->scores.S + (size_t)(i - from) * r->scores.stride,
                              dcolumn);
        batch_scores_backward(&r->scores, rows, queries ? r->dQ + (size_t)from * d : NULL);
    }
    if (items)
        batch_scores_end(&r->scores, r->dV);
    return loss;
}

// What is remembered teaches queries alone. Items, biases and scalars learn from the batch: in a
// sum with columns that learn nothing an item would be pulled as a target for more than it is
// pushed as a negative (ml1m, 1024 remembered, recall@100: 0.531; with the pushes scaled up by what
// the others do not hear 0.581; so 0.583, and without a memory 0.582).
static void softmax(struct towers *t, struct step *s)
{
    struct recipe *r = recipe_of(t);
    memory_recall(&r->memory, &r->towers);
    columns_begin(r, s);
    s->loss += columns_learn(r, s, true, r->memory.n == 0, r->dcolumn);
    if (r->memory.n > 0) {
        columns_remember(r, s);
        columns_learn(r, s, false, true, r->dropped);
    }
}

// The repeats of query i among m items; place[k] is where the item of repeats[k] stands first.
// Returns how many.
static int repeats_of(const struct recipe *r, const struct step *s, int i, int m,
                      const uint32_t *slots, struct repeat repeats[HISTORY_MAX],
                      int place[HISTORY_MAX])
{
    const struct example *example = &s->examples[i];
    const int repeat = r->towers.options->repeat;
    const int length = example->n_history < repeat ? example->n_history : repeat;
    int n = 0;
    for (int k = 0; k < length; k++) {
        const int64_t column = marks_find(&r->candidate_of, example->history[k]);
        int j = 0, known = 0;
        while (column != MARKS_NONE && j < m && slots[j] != (uint32_t)column)
            j++;
        if (column == MARKS_NONE || j == m)
            continue;
        while (known < n && place[known] != j)
            known++;
        if (known == n) {
            place[n] = j;
            repeats[n++] = repeat_at((uint32_t)column, k, length);
        }
        repeats[known].times++;
    }
    return n;
}

static void repeat_forward(struct towers *t, const struct step *s, int i, int m,
                           const uint32_t *slots, float *scores)
{
    const struct recipe_dense p = recipe_dense_at(tables_dense(t->tables), t->options->dim);
    struct repeat repeats[HISTORY_MAX];
    int place[HISTORY_MAX];
    const int n = repeats_of(recipe_of(t), s, i, m, slots, repeats, place);
    // From its first place on: an item may stand in a slate twice.
    for (int k = 0; k < n; k++) {
        const float score = repeat_score(&p, &repeats[k]);
        for (int j = place[k]; j < m; j++)
            scores[j] += slots[j] == repeats[k].column ? score : 0;
    }
}

static void repeat_backward(struct towers *t, const struct step *s, int i, int m,
                            const uint32_t *slots, const float *dscores)
{
    struct repeat repeats[HISTORY_MAX];
    int place[HISTORY_MAX];
    const int n = repeats_of(recipe_of(t), s, i, m, slots, repeats, place);
    for (int k = 0; k < n; k++)
        for (int j = place[k]; j < m; j++)
            if (slots[j] == repeats[k].column)
                repeat_learn(recipe_of(t), &repeats[k], dscores[j]);
}

// From the gradients of what the gates let through, dX and dQ, to those of the gates and of what
// came to them: dX in place, dcontext (d). y = exp(gate) x, so dgate = dy . y and dx = exp(gate)
// dy.
static void gates_backward(struct recipe *r, const struct step *s, int i, float *dcontext)
{
    const size_t d = (size_t)r->towers.options->dim;
    const struct example *example = &s->examples[i];
    const int length = bucket_of(pooled_length(r->towers.options, example));
    const float *gate = r->gate[length], *dQ = r->dQ + (size_t)i * d;
    float *dgate = r->ddense + 3 * d * d + AT_GATE + (size_t)length * RECIPE_GATES;
    for (size_t scale = 0; scale < 3; scale++) {
        const size_t at = ((size_t)i * 3 + scale) * d;
        dgate[GATE_NEWEST + scale] += kernels->dot(d, r->dX + at, r->X + at);
        kernels->scale(d, gate[GATE_NEWEST + scale], r->dX + at);
    }
    dgate[GATE_CONTEXT] += kernels->dot(d, dQ, r->context + (size_t)i * d);
    dgate[GATE_USER] += gate[GATE_USER] * kernels->dot(d, dQ, r->own + (size_t)i * d);
    for (size_t j = 0; j < d; j++)
        dcontext[j] = gate[GATE_CONTEXT] * dQ[j];
}

// Sums dX over the rows of the pooled histories and dQ over the users.
static void gradients_scatter(struct recipe *r, const struct step *s)
{
    const struct two_tower_options *o = r->towers.options;
    const int d = o->dim;
    memset(r->dusers, 0, (size_t)r->users * d * sizeof(float));
    for (int i = 0; i < s->n; i++) {
        const struct example *example = &s->examples[i];
        const float *dQ = r->dQ + (size_t)i * d;
        const int m = pooled_length(o, example);
        float dcontext[d];
        float *dvectors[HISTORY_MAX], *dcontexts[HISTORY_MAX];
        if (i + 1 < s->n)
            marks_prefetch(&r->pooled_of, example[1].n_history, example[1].history);
        gates_backward(r, s, i, dcontext);
        for (int k = 0; k < m; k++) {
            const int before = r->pooled;
            const size_t slot =
                marks_slot(&r->pooled_of, example->history[k], r->pooled_rows, &r->pooled);
            dvectors[k] = r->dpooled + slot * 2 * (size_t)d;
            dcontexts[k] = dvectors[k] + d;
            if (r->pooled > before)
                memset(dvectors[k], 0, 2 * (size_t)d * sizeof(float));
        }
        if (m > 0)
            kernels->unpool((size_t)d, m, group_of(m, example->n_newest), r->decayed[m],
                            r->dX + (size_t)i * 3 * d, dcontext, dvectors, dcontexts);
        if (r->encoder)
            history_encoder_give(r->encoder, i, o->encoder.context ? dcontexts : dvectors);
        kernels->axpy((size_t)d, r->gate[bucket_of(m)][GATE_USER], dQ,
                      r->dusers + r->user[i] * (size_t)d);
    }
}

static bool backward(struct towers *t, struct step *s)
{
    struct recipe *r = recipe_of(t);
    const int d = t->options->dim;
    float *dpa = r->ddense + 3 * (size_t)d * d + AT_PA;
    pooled_backward(r, s, r->ddense);
    // The prior's weights hear nothing twice.
    for (int c = 0; c < s->C && !s->replayed; c++) {
        for (int k = 0; k < PRIORS; k++)
            dpa[k] += r->dcolumn[c] * r->prior[c][k];
    }
    if (r->encoder)
        history_encoder_backward(r->encoder, r->dQ, r->ddense + recipe_encoder_offset(d));
    gradients_scatter(r, s);
    return (!r->encoder || history_encoder_finite(r->encoder)) &&
           gradient_finite((size_t)s->C * d, r->dV) &&
           gradient_finite((size_t)s->n * 3 * d, r->dX) &&
           gradient_finite(recipe_dense_size(t->options), r->ddense);
}

static void candidates_update(struct recipe *r, const struct step *s, uint64_t step)
{
    struct tables *t = r->towers.tables;
    const struct two_tower_options *o = r->towers.options;
    const struct optimizer table = step_optimizer(s, &o->table);
    const uint64_t at = tables_state(t)->examples + (uint64_t)s->n;
    const struct row_parts vectors = {&t->item_vector, &t->item_slots, t->dim, 1, {&r->item_table}};
    step_update_rows(s, &vectors, step, s->C, r->candidates, r->dV);
    for (int c = 0; c < s->C; c++) {
        if (!step_moves(s, 1, &r->dcolumn[c]))
            continue;
        struct item_state *item = column_edit(&t->item_state, r->candidates[c]);
        optimizer_update(&table, step, 1, &r->dcolumn[c], &item->bias, item->bias_slots);
        if (!s->fresh || r->hits[c] == 0)
            continue;
        for (int k = 0; k < COUNTS; k++) {
            item->count[k] =
                item->count[k] * count_decay(item, at, count_half_life(o, k)) + r->hits[c];
        }
        item->counted_at = at;
    }
    struct model_state *state = column_edit(&t->state, 0);
    for (int k = 0; k < COUNTS && s->fresh; k++)
        state->count_sum[k] =
            state->count_sum[k] * exp2(-s->n / (double)count_half_life(o, k)) + s->n;
}

static void dense_update(struct recipe *r, uint64_t step)
{
    struct tables *t = r->towers.tables;
    const struct two_tower_options *o = r->towers.options;
    float *w = tables_dense(t), *slots = w + t->dense_size;
    const size_t A = 3 * (size_t)o->dim * o->dim;
    optimizer_update(&o->matrix, step, A, r->ddense, w, slots);
    optimizer_update(&o->scalar, step, SCALARS, r->ddense + A, w + A, slots + 2 * A);
    const size_t at = recipe_encoder_offset(o->dim);
    optimizer_update(&o->matrix, step, history_encoder_size(o->dim, &o->encoder), r->ddense + at,
                     w + at, slots + 2 * at);
}

// W moves towards predicting this batch's targets from their features: the gradient of
// 1/2 |f W - E|^2 in W alone. Reads E as it was before the step.
static void features_update(struct recipe *r, const struct step *s, uint64_t step)
{
    struct tables *t = r->towers.tables;
    const struct two_tower_options *o = r->towers.options;
    const int width = o->item_features, d = o->dim;
    int n = 0;
    for (int c = 0; c < s->C; c++) {
        const uint32_t row = r->candidates[c];
        if (r->hits[c] == 0 || row >= t->item_features.n)
            continue;
        const float *E = column_at(&t->item_vector, row);
        memcpy(r->features + (size_t)n * width, column_at(&t->item_features, row),
               (size_t)width * sizeof(float));
        for (int j = 0; j < d; j++)
            r->misses[n * d + j] = -E[j];
        n++;
    }
    if (n == 0)
        return;
    const size_t at = recipe_dense_size(o);
    float *dense = tables_dense(t), *W = dense + at, *slots = dense + t->dense_size + 2 * at;
    memset(r->dW, 0, (size_t)width * d * sizeof(float));
    gemm_nn(n, d, width, r->features, W, r->misses);
    gemm_tn(width, d, n, r->features, r->misses, r->dW);
    struct optimizer matrix = o->matrix;
    matrix.rate *= FEATURE_PACE;
    optimizer_update(&matrix, step, (size_t)width * d, r->dW, W, slots);
}

// Oldest first. What was replayed, or only shown, says nothing of where the user is now; nor does
// what was not worth anything.
static void users_follow(struct recipe *r, const struct step *s)
{
    const struct two_tower_options *o = r->towers.options;
    struct tables *t = r->towers.tables;
    for (int i = 0; i < s->n && s->fresh; i++)
        if (!s->weight || s->weight[i] > 0)
            onebp_move(o->dim, o->onebp_beta, column_at(&t->item_vector, s->examples[i].item),
                       column_edit(&t->user_vector, s->examples[i].user));
}

// The candidates with their vectors and columns as the softmax had them. Each stands for its share
// of the step's draws.
static void candidates_store(struct recipe *r, const struct step *s)
{
    const size_t d = (size_t)r->towers.options->dim;
    const float targets = (float)s->n / (float)s->C;
    const float uniform = (float)r->towers.options->uniform_negatives / (float)s->C;
    memory_adapt(&r->memory, &r->towers);
    for (int c = 0; c < s->C; c++)
        memory_store(&r->towers,
                     (struct negative_entry){.row = r->candidates[c],
                                             .extra = r->column[c],
                                             .targets = targets,
                                             .uniform = uniform},
                     r->V + (size_t)c * d);
}

// History rows and candidate rows are two updates of one table and one accumulator.
static void update(struct towers *towers, struct step *s)
{
    struct recipe *r = recipe_of(towers);
    struct tables *t = towers->tables;
    const struct optimizer *table = &towers->options->table;
    const uint64_t step = tables_state(t)->steps + 1;
    for (size_t i = 0; i < t->dense.n; i++)
        column_edit(&t->dense, i);
    features_update(r, s, step);
    const struct row_parts items = {
        &t->item_vector, &t->item_slots, t->dim, 2, {&r->item_table, table}};
    const struct row_parts users = {&t->user_vector, &t->user_slots, t->dim, 1, {table}};
    step_update_rows(s, &items, step, r->pooled, r->pooled_rows, r->dpooled);
    candidates_update(r, s, step);
    if (towers->options->onebp)
        users_follow(r, s);
    else
        step_update_rows(s, &users, step, r->users, r->user_rows, r->dusers);
    dense_update(r, step);
    if (towers->options->memory.capacity > 0 && s->fresh)
        candidates_store(r, s);
}

static double squares(const struct towers *towers, const struct step *s)
{
    const struct recipe *r = (const struct recipe *)towers;
    const struct tables *t = towers->tables;
    return tables_squares(&t->item_vector, t->dim, s->C, r->candidates) +
           tables_squares(&t->item_vector, 2 * t->dim, r->pooled, r->pooled_rows) +
           tables_squares(&t->user_vector, t->dim, r->users, r->user_rows) +
           tables_bias_squares(t, s->C, r->candidates);
}

const struct towers_kind recipe_kind = {
    .dense_size = dense_floats,
    .dense = dense_parameter,
    .group = group,
    .open = recipe_open,
    .close = recipe_close,
    .begin = begin,
    .item = candidate_add,
    .candidates = candidates_choose,
    .forward = forward,
    .softmax = softmax,
    .repeat = repeat_forward,
    .repeat_backward = repeat_backward,
    .backward = backward,
    .update = update,
    .squares = squares,
    .items = items_view,
    .query = query_view,
    .bonuses = bonuses_view,
};
