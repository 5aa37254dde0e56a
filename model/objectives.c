// SPDX-License-Identifier: Apache-2.0
#include "model/objectives.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/arena.h"
#include "model/distill.h"
#include "model/kernels.h"
#include "model/logistic.h"
#include "model/policy.h"
#include "model/preference.h"
#include "model/proxy_ranker.h"
#include "model/rng.h"
#include "model/row_weights.h"
#include "model/slate_loss.h"
#include "model/towers.h"

// Below this spread inside a slate the ranker's scores count as equal.
static const float SCORE_FLOOR = 1e-6f;

enum { GUARDS = UINT8_MAX + 1 }; // the proxy, and every version that a slate can name

const char *const objective_names[OBJECTIVES] = {
    [OBJECTIVE_RETRIEVAL] = "retrieval",
    [OBJECTIVE_DISTILL] = "distill",
    [OBJECTIVE_ALIGN] = "align",
    [OBJECTIVE_TRUST] = "trust",
    [OBJECTIVE_PREFERENCE] = "preference",
    [OBJECTIVE_RANKER] = "ranker",
    [OBJECTIVE_RANKER_DISTILL] = "ranker_distill",
    [OBJECTIVE_PROXY] = "proxy",
};

// The scalars; one unit of a column.
struct objective_state {
    uint64_t head_steps;
    struct late_arrivals late; // as the light ranker has seen them
};

struct objectives {
    const struct objective_options *options;
    const float *value;  // of each task, the model's
    struct column heads; // d floats a unit: parameters, then what their optimizer keeps
    struct column guard; // struct reward_guard by version of the ranker; 0: the proxy
    struct column state; // one struct objective_state
    size_t heads_size;   // floats of the parameters, a multiple of d
    int dim;
    struct light_ranker ranker;
    struct proxy_ranker proxy;
    void *memory;                  // of everything below, and of the two above
    float *dheads;                 // (heads_size)
    float *g, *raw, *y;            // (rows): see objectives.h; raw before standardising
    float *proxy_reward;           // (rows)
    float *V, *dV;                 // (rows, d)
    float *X, *Z, *dZ;             // of the proxy: (rows, 2d + 1), (rows, tasks) twice
    float *label, *teacher;        // (rows, tasks)
    float *target, *target_weight; // (rows, tasks): what the light ranker makes of the labels
    int16_t *position;             // (rows)
    uint8_t *surface;              // (slates)
    struct preference_pair *pairs; // of one slate
};

// ---- The terms on scores, each one slate at a time.

// Whose word a term takes, and whose guard scales it. The teacher is the ranker or the proxy.
enum follows { FOLLOWS_NOBODY, FOLLOWS_RANKER, FOLLOWS_PROXY, FOLLOWS_TEACHER };

struct slate_terms {
    const struct objective_options *o;
    int n;
    const float *s, *ref, *g, *reward, *y, *propensity;
    struct preference_pair *pairs;
    struct slate_report *report;
};

static bool distill(const struct slate_terms *x, float weight, double *loss, float *ds)
{
    const float T = x->o->distill.temperature;
    const int top = x->o->distill.top;
    int order[SLATE_ITEMS_MAX], n;
    switch (x->o->distill.form) {
    case DISTILL_LISTWISE:
        return distill_listwise(x->n, x->s, x->g, T, weight, loss, ds);
    case DISTILL_PLACKETT_LUCE:
        n = slate_order(x->n, x->g, order);
        return distill_plackett_luce(n, order, x->s, top, weight, loss, ds);
    case DISTILL_TOP_POSITIVES:
        n = slate_order(x->n, x->g, order);
        return distill_top_positives(n, order, x->s, top, T, weight, loss, ds);
    case DISTILL_SOFT_PAIR:
        n = preference_by_score(x->n, x->g, 0, x->pairs);
        return preference_soft(n, x->pairs, x->s, x->g, T, weight, loss, ds);
    case DISTILL_MARGIN:
        n = preference_by_score(x->n, x->g, 0, x->pairs);
        return preference_margin_mse(n, x->pairs, x->s, x->g, weight, loss, ds);
    }
    return false;
}

// g is standardised already, so that it is the advantage of policy gradients.
static bool align(const struct slate_terms *x, float weight, double *loss, float *ds)
{
    const struct objective_options *o = x->o;
    float ratio[SLATE_ITEMS_MAX];
    int pairs;
    switch (o->align.form) {
    case ALIGN_KL:
        return slate_align(x->n, x->s, o->align.student_temperature, x->reward,
                           o->align.temperature, weight, loss, ds);
    case ALIGN_POLICY:
        policy_ratios(x->n, x->s, x->reward, x->propensity, o->align.ratio_cap, ratio);
        x->report->sample_size += policy_sample_size(x->n, ratio);
        x->report->sampled++;
        return policy_gradient(x->n, x->s, x->reward, ratio, o->align.top_k, weight, loss, ds);
    case ALIGN_SHAPED:
        return policy_shaped(x->n, x->s, x->ref, x->reward, o->align.beta, weight, loss, ds);
    case ALIGN_DPO:
        pairs = preference_by_score(x->n, x->reward, 0, x->pairs);
        return preference_dpo(pairs, x->pairs, x->s, x->ref, o->align.beta, weight, loss, ds);
    case ALIGN_S_DPO:
        pairs = preference_by_score(x->n, x->reward, 0, x->pairs);
        return preference_s_dpo(pairs, x->pairs, x->s, x->ref, o->align.beta, weight, loss, ds);
    }
    return false;
}

static bool trust(const struct slate_terms *x, float weight, double *loss, float *ds)
{
    return slate_trust(x->n, x->s, x->ref, weight, loss, ds);
}

static bool preference(const struct slate_terms *x, float weight, double *loss, float *ds)
{
    const int pairs = preference_by_value(x->n, x->y, x->pairs);
    const float beta = x->o->preference.beta;
    switch (x->o->preference.form) {
    case PREFERENCE_BPR:
        return preference_bpr(pairs, x->pairs, x->s, weight, loss, ds);
    case PREFERENCE_DPO:
        return preference_dpo(pairs, x->pairs, x->s, x->ref, beta, weight, loss, ds);
    case PREFERENCE_S_DPO:
        return preference_s_dpo(pairs, x->pairs, x->s, x->ref, beta, weight, loss, ds);
    }
    return false;
}

static const struct {
    enum objective objective;
    bool (*learn)(const struct slate_terms *x, float weight, double *loss, float *ds);
    size_t weight; // offset of its weight among the options
    enum follows follows;
    bool reads_labels; // which count once, though a request may have been scored twice
} terms[] = {
    {OBJECTIVE_DISTILL, distill, offsetof(struct objective_options, distill.weight), FOLLOWS_RANKER,
     false},
    {OBJECTIVE_ALIGN, align, offsetof(struct objective_options, align.weight), FOLLOWS_TEACHER,
     false},
    {OBJECTIVE_TRUST, trust, offsetof(struct objective_options, align.trust), FOLLOWS_NOBODY,
     false},
    {OBJECTIVE_PREFERENCE, preference, offsetof(struct objective_options, preference.weight),
     FOLLOWS_NOBODY, true},
};

static float weight_of(const struct objective_options *o, size_t offset)
{
    return *(const float *)(const void *)((const char *)o + offset);
}

bool objectives_need_reference(const struct objective_options *o)
{
    return o->slates > 0 &&
           (o->align.trust > 0 || (o->align.weight > 0 && o->align.form >= ALIGN_SHAPED) ||
            (o->preference.weight > 0 && o->preference.form != PREFERENCE_BPR));
}

// ---- The heads: light ranker, then proxy ranker, in one array.

static bool has_proxy(const struct objective_options *o)
{
    return o->align.weight > 0 && o->align.teacher == ALIGN_PROXY;
}

static struct light_ranker_shape ranker_shape(const struct objective_options *o, int dim)
{
    return (struct light_ranker_shape){dim, o->ranker.heads, o->tasks};
}

static size_t ranker_size(const struct objective_options *o, int dim)
{
    const struct light_ranker_shape shape = ranker_shape(o, dim);
    return o->ranker.weight > 0 ? arena_rounded(light_ranker_size(&shape)) : 0;
}

size_t objectives_heads_size(const struct objective_options *o, int dim)
{
    const size_t d = (size_t)dim, T = (size_t)o->tasks;
    const size_t proxy = has_proxy(o) ? arena_rounded(T * (2 * d + 1)) + arena_rounded(T) : 0;
    const size_t n = o->slates > 0 ? ranker_size(o, dim) + proxy : 0;
    return (n + d - 1) / d * d;
}

bool objectives_parameter(const struct objective_options *o, int dim, int i,
                          struct dense_parameter *p)
{
    const struct light_ranker_shape shape = ranker_shape(o, dim);
    return o->slates > 0 && o->ranker.weight > 0 && light_ranker_parameter(&shape, i, p);
}

static float *heads_of(const struct objectives *o)
{
    return (float *)(void *)o->heads.base;
}

static size_t memory_bytes(const struct objectives *o)
{
    const struct objective_options *options = o->options;
    const struct light_ranker_shape shape = ranker_shape(options, o->dim);
    const size_t rows = (size_t)options->slates * SLATE_ITEMS_MAX, d = (size_t)o->dim;
    const size_t T = (size_t)options->tasks;
    const size_t floats = o->heads_size + rows * (4 + 2 * d + 2 * d + 1 + 6 * T);
    const size_t pairs = PREFERENCE_PAIRS(SLATE_ITEMS_MAX) * sizeof(struct preference_pair);
    const size_t scratch =
        options->ranker.weight > 0 ? light_ranker_scratch(&shape, options->slates, (int)rows) : 0;
    return floats * sizeof(float) + rows * sizeof(int16_t) + (size_t)options->slates + pairs +
           scratch + 32 * 64;
}

static void scratch_open(struct objectives *o, struct arena *a, uint64_t seed)
{
    const struct objective_options *options = o->options;
    const struct light_ranker_shape shape = ranker_shape(options, o->dim);
    const size_t rows = (size_t)options->slates * SLATE_ITEMS_MAX, d = (size_t)o->dim;
    const size_t T = (size_t)options->tasks;
    o->dheads = arena_floats(a, o->heads_size + 1);
    o->g = arena_floats(a, rows);
    o->raw = arena_floats(a, rows);
    o->y = arena_floats(a, rows);
    o->proxy_reward = arena_floats(a, rows);
    o->V = arena_floats(a, rows * d);
    o->dV = arena_floats(a, rows * d);
    o->X = arena_floats(a, rows * (2 * d + 1));
    o->Z = arena_floats(a, rows * T);
    o->dZ = arena_floats(a, rows * T);
    o->label = arena_floats(a, rows * T);
    o->teacher = arena_floats(a, rows * T);
    o->target = arena_floats(a, rows * T);
    o->target_weight = arena_floats(a, rows * T);
    o->position = arena_bytes(a, rows * sizeof *o->position);
    o->surface = arena_bytes(a, (size_t)options->slates);
    o->pairs = arena_bytes(a, PREFERENCE_PAIRS(SLATE_ITEMS_MAX) * sizeof *o->pairs);
    float *heads = heads_of(o);
    if (options->ranker.weight > 0) {
        light_ranker_open(&o->ranker, &shape, options->slates, (int)rows, a);
        light_ranker_init(&shape, seed, heads);
    }
    if (has_proxy(options)) {
        const size_t at = ranker_size(options, o->dim), size = o->heads_size - at;
        struct arena params = {(char *)(heads + at), size * sizeof *heads, 0};
        struct arena grads = {(char *)(o->dheads + at), size * sizeof *heads, 0};
        struct rng rng = {rng_key(seed, UINT64_C(0x70726f7879)), 0}; // "proxy"
        proxy_ranker_init(&o->proxy, o->dim, options->tasks, &params, &grads, &rng);
    }
}

int objectives_open(struct objectives **out, struct columns *s,
                    const struct objective_options *options, const float *value, int dim,
                    uint64_t seed)
{
    struct objectives *o = calloc(1, sizeof *o);
    if (!o)
        return -ENOMEM;
    o->options = options;
    o->value = value;
    o->dim = dim;
    o->heads_size = objectives_heads_size(options, dim);
    const size_t units = 3 * o->heads_size / (size_t)dim; // no optimizer keeps more than two
    int rc = 0;
    if (units > 0)
        rc = column_open(&o->heads, s, "model.heads", (size_t)dim * sizeof(float), units);
    if (rc == 0)
        rc = column_open(&o->guard, s, "model.guard", sizeof(struct reward_guard), GUARDS);
    if (rc == 0)
        rc = column_open(&o->state, s, "model.objectives", sizeof(struct objective_state), 1);
    const size_t bytes = memory_bytes(o);
    o->memory = calloc(1, bytes);
    if (rc < 0 || !o->memory) {
        objectives_close(o);
        return rc < 0 ? rc : -ENOMEM;
    }
    if (units > 0) {
        column_grow(&o->heads, units);
        column_floats(&o->heads, 0, (size_t)dim, COLUMN_SUM_MAX);
    }
    column_grow(&o->guard, GUARDS);
    column_doubles(&o->guard, 0, sizeof(struct reward_guard) / sizeof(double), COLUMN_SUM_MAX);
    column_grow(&o->state, 1);
    struct arena scratch = {o->memory, bytes, 0};
    scratch_open(o, &scratch, seed);
    if (units > 0)
        optimizer_start(&options->head, o->heads_size, heads_of(o) + o->heads_size);
    *out = o;
    return 0;
}

void objectives_close(struct objectives *o)
{
    if (!o)
        return;
    free(o->memory);
    free(o);
}

const struct reward_guard *objectives_guard(const struct objectives *o, int ranker)
{
    return o->options->align.guard ? column_at(&o->guard, (size_t)ranker) : NULL;
}

float objectives_expected(const struct objectives *o, const struct slate *slate, int k,
                          const float *q, const float *v)
{
    const struct light_ranker_shape shape = ranker_shape(o->options, o->dim);
    struct light_ranker_parameters p = light_ranker_at(heads_of(o), &shape);
    const ptrdiff_t at =
        light_ranker_position(shape.tasks, slate->surface, slate->items[k].position);
    float bias[SLATE_TASKS_MAX], expected;
    // What is served leaves the position out; here its logit is one more constant.
    for (int t = 0; t < shape.tasks; t++)
        bias[t] = p.b_l[t] + (at < 0 ? 0 : p.g[at + t]);
    p.b_l = bias;
    light_ranker_score(&p, &shape, q, 1, v, o->value, LIGHT_RANKER_PROBABILITIES, &expected);
    return expected;
}

// ---- A step.

// Which tasks the ranker scored in this slate: it need not know them all.
static uint32_t tasks_scored(int tasks, const struct slate *slate, const float *scores)
{
    uint32_t scored = 0;
    for (int k = 0; k < slate->n_items; k++)
        for (int t = 0; t < tasks; t++)
            scored |= (uint32_t)(isfinite(scores[k * tasks + t]) != 0) << t;
    return scored;
}

void objectives_teacher(int tasks, const float *value, const struct slate *slate,
                        const float *scores, float *g)
{
    const bool has_scores = slate->ranker > 0 && slate->kind == SLATE_CLOSED;
    const uint32_t scored = has_scores ? tasks_scored(tasks, slate, scores) : 0;
    for (int k = 0; k < slate->n_items; k++) {
        g[k] = scored ? 0 : NAN;
        for (int t = 0; t < tasks; t++)
            if (scored >> t & 1)
                g[k] += value[t] * scores[k * tasks + t];
        if (!isfinite(g[k]))
            g[k] = NAN;
    }
}

// The teacher's probability, NAN where it gave none: anything else has no finite optimum.
static float probability_of(enum ranker_scale scale, float score)
{
    if (scale == RANKER_LOGITS)
        return isfinite(score) ? (float)logistic_sigmoid((double)score) : NAN;
    return score >= 0 && score <= 1 ? score : NAN;
}

// What the terms read, from what was logged. Only a closed slate has scores and labels that are
// final, and of a request that two versions scored the labels count once.
static void rows_prepare(struct objectives *o, const struct slate_batch *b)
{
    const struct objective_options *options = o->options;
    const int T = options->tasks;
    for (int i = 0; i < b->n; i++) {
        const struct slate *slate = &b->slates[i];
        const float *scores = b->scores + (size_t)i * SLATE_ITEMS_MAX * T;
        const size_t at = (size_t)b->first[i];
        const bool closed = slate->kind == SLATE_CLOSED, scored = closed && slate->ranker > 0;
        const bool labelled = closed && !slate->repeated;
        for (int k = 0; k < slate->n_items; k++) {
            const struct slate_item *item = &slate->items[k];
            const size_t row = at + (size_t)k;
            o->y[row] = item->shown ? 0 : NAN;
            o->position[row] = item->position;
            for (int t = 0; t < T; t++) {
                const float score = scores[(size_t)k * T + t];
                const float label = (item->labels >> t & 1) ? 1.0f : 0.0f;
                o->y[row] += o->value[t] * label;
                o->label[row * T + t] = labelled && item->shown ? label : NAN;
                o->teacher[row * T + t] =
                    scored ? probability_of(options->ranker.scale, score) : NAN;
            }
        }
        o->surface[i] = slate->surface;
        objectives_teacher(T, o->value, slate, scores, o->raw + at);
        policy_advantage(slate->n_items, o->raw + at, SCORE_FLOOR, o->g + at);
    }
}

// The guard of whoever is followed: a version of the ranker, or 0, the proxy.
static float guard_scale(const struct objectives *o, int ranker)
{
    return o->options->align.guard
               ? (float)reward_guard_scale(column_at(&o->guard, (size_t)ranker), &o->options->guard)
               : 1;
}

// Sum of squares of the gradient on the query and on the items, from that of the scores.
static void norms_add(struct objective_report *report, size_t d, int n, const float *ds,
                      const float *q, const float *V, const uint32_t *slot)
{
    float dq[d];
    memset(dq, 0, sizeof dq);
    double squares = 0;
    for (int k = 0; k < n; k++) {
        kernels->axpy(d, ds[k], V + (size_t)slot[k] * d, dq);
        squares += (double)ds[k] * (double)ds[k];
    }
    report->query_norm += (double)kernels->dot(d, dq, dq);
    report->item_norm += squares * (double)kernels->dot(d, q, q);
}

static void terms_learn(struct objectives *o, const struct step *s, struct slate_batch *b,
                        struct slate_report *report)
{
    const struct objective_options *options = o->options;
    const size_t d = (size_t)o->dim;
    float propensity[SLATE_ITEMS_MAX], ds[SLATE_ITEMS_MAX];
    double guards = 0;
    int scored = 0;
    for (int i = 0; i < b->n; i++) {
        const struct slate *slate = &b->slates[i];
        const int at = b->first[i], n = slate->n_items;
        const float *reward = has_proxy(options) ? o->proxy_reward : o->g;
        const struct slate_terms x = {.o = options,
                                      .n = n,
                                      .s = b->s + at,
                                      .ref = b->ref ? b->ref + at : NULL,
                                      .g = o->g + at,
                                      .reward = reward + at,
                                      .y = o->y + at,
                                      .propensity = propensity,
                                      .pairs = o->pairs,
                                      .report = report};
        if (slate->kind != SLATE_CLOSED)
            continue;
        // Where no chance was logged, the slate's items count as drawn evenly: with a ratio of 1
        // for all, standardised rewards have no optimum, they only drive scores apart.
        const float even = 1 / (float)n;
        for (int k = 0; k < n; k++)
            propensity[k] = slate->items[k].propensity > 0 ? slate->items[k].propensity : even;
        const float trusted[] = {1, guard_scale(o, slate->ranker), guard_scale(o, 0)};
        const bool has_ranker = slate_unmasked(n, x.g) >= 2;
        report->unscored += !has_ranker;
        scored += has_ranker;
        guards += has_ranker ? (double)trusted[FOLLOWS_RANKER] : 0;
        for (size_t t = 0; t < sizeof terms / sizeof *terms; t++) {
            struct objective_report *term = &report->term[terms[t].objective];
            enum follows follows = terms[t].follows;
            if (follows == FOLLOWS_TEACHER)
                follows = has_proxy(options) ? FOLLOWS_PROXY : FOLLOWS_RANKER;
            const float weight = weight_of(options, terms[t].weight) * trusted[follows];
            double loss;
            if (weight == 0 || (terms[t].reads_labels && slate->repeated))
                continue;
            memset(ds, 0, (size_t)n * sizeof *ds);
            if (!terms[t].learn(&x, weight, &loss, ds))
                continue;
            term->loss += loss;
            term->n++;
            norms_add(term, d, n, ds, s->Q + (size_t)i * d, s->V, b->slot + at);
            kernels->axpy((size_t)n, 1, ds, b->ds + at);
        }
    }
    report->guard = scored > 0 ? guards / scored : 0;
}

// The vectors of the items, row by row, and their gradients back.
static void rows_gather(struct objectives *o, const struct step *s, const struct slate_batch *b)
{
    const size_t d = (size_t)o->dim;
    for (size_t row = 0; row < (size_t)b->rows; row++)
        memcpy(o->V + row * d, s->V + b->slot[row] * d, d * sizeof(float));
}

// How many slates have something that is not NAN in x (rows, T).
static int slates_said(const struct slate_batch *b, int T, const float *x)
{
    int said = 0;
    for (int i = 0; i < b->n; i++)
        said += slate_unmasked((b->first[i + 1] - b->first[i]) * T, x + b->first[i] * T) > 0;
    return said;
}

// What the light ranker learns from each pair, which may depend on the logits of the last forward.
// Only here do slates count that are not closed: the terms on scores pass them over.
static void ranker_targets(struct objectives *o, const struct slate_batch *b)
{
    const struct objective_state *state = column_at(&o->state, 0);
    const int T = o->options->tasks;
    for (int i = 0; i < b->n; i++) {
        const size_t at = (size_t)b->first[i] * (size_t)T;
        delayed_feedback_slate(o->options->ranker.feedback, &state->late, T, &b->slates[i],
                               o->ranker.Z + at, o->target + at, o->target_weight + at);
    }
}

static void ranker_learn(struct objectives *o, struct step *s, const struct slate_batch *b,
                         struct slate_report *report)
{
    const struct objective_options *options = o->options;
    const size_t d = (size_t)o->dim, rows = (size_t)b->rows;
    const bool moves = !options->ranker.stop_gradient;
    const struct light_ranker_batch batch = {
        .slates = b->n,
        .first = b->first,
        .Q = s->Q,
        .V = o->V,
        .surface = o->surface,
        .position = o->position,
        .teacher = options->ranker.distill > 0 ? o->teacher : NULL,
    };
    light_ranker_forward(&o->ranker, heads_of(o), &batch);
    ranker_targets(o, b);
    // The head gives means over the step; slates count one by one here, as in the other terms.
    const int labelled = slates_said(b, options->tasks, o->target);
    const int taught = batch.teacher ? slates_said(b, options->tasks, o->teacher) : 0;
    struct light_ranker_options weights = {.weight = options->ranker.weight * (float)labelled,
                                           .distil_weight =
                                               options->ranker.distill * (float)taught};
    for (int t = 0; t < options->tasks; t++)
        weights.positive_weight[t] = 1;
    const struct light_ranker_loss loss =
        light_ranker_loss(&o->ranker, &weights, &batch, o->target, o->target_weight);
    memset(o->dV, 0, rows * d * sizeof(float));
    light_ranker_backward(&o->ranker, heads_of(o), &batch, o->dheads, moves ? s->dQ : NULL,
                          moves ? o->dV : NULL);
    for (size_t row = 0; row < rows && moves; row++)
        kernels->axpy(d, 1, o->dV + row * d, s->dV + b->slot[row] * d);
    report->term[OBJECTIVE_RANKER] =
        (struct objective_report){.loss = loss.bce * labelled, .n = labelled};
    report->term[OBJECTIVE_RANKER_DISTILL] =
        (struct objective_report){.loss = loss.distil * taught, .n = taught};
    if (moves) {
        report->term[OBJECTIVE_RANKER].query_norm =
            (double)kernels->dot((size_t)b->n * d, s->dQ, s->dQ);
        report->term[OBJECTIVE_RANKER].item_norm = (double)kernels->dot(rows * d, o->dV, o->dV);
    }
}

// It learns what engages from the items that were shown; its reward is for all of the slate.
static void proxy_learn(struct objectives *o, const struct step *s, const struct slate_batch *b,
                        struct slate_report *report)
{
    const struct objective_options *options = o->options;
    const size_t d = (size_t)o->dim;
    const int T = options->tasks;
    struct objective_report *term = &report->term[OBJECTIVE_PROXY];
    for (int i = 0; i < b->n; i++) {
        const size_t at = (size_t)b->first[i];
        const int n = b->slates[i].n_items;
        const float *q = s->Q + (size_t)i * d, *V = o->V + at * d;
        float U[(size_t)n * d + 1], S[n + 1], reward[n + 1];
        double loss;
        for (int k = 0; k < n; k++) {
            memcpy(U + (size_t)k * d, q, d * sizeof *U);
            S[k] = kernels->dot(d, q, V + (size_t)k * d);
        }
        proxy_ranker_reward(&o->proxy, o->value, 1, n, q, V, S, reward);
        policy_advantage(n, reward, SCORE_FLOOR, o->proxy_reward + at);
        proxy_ranker_forward(&o->proxy, n, U, V, o->X, o->Z);
        memset(o->dZ, 0, (size_t)n * T * sizeof(float));
        if (distill_pointwise(n * T, o->Z, o->label + at * T, 1, &loss, o->dZ)) {
            proxy_ranker_backward(&o->proxy, n, o->X, o->dZ);
            term->loss += loss;
            term->n++;
        }
    }
}

bool objectives_learn(struct objectives *o, struct step *s, struct slate_batch *b,
                      struct slate_report *report)
{
    memset(o->dheads, 0, o->heads_size * sizeof(float));
    rows_prepare(o, b);
    if (o->heads_size > 0)
        rows_gather(o, s, b);
    if (o->options->ranker.weight > 0)
        ranker_learn(o, s, b, report);
    if (has_proxy(o->options))
        proxy_learn(o, s, b, report);
    terms_learn(o, s, b, report);
    for (int t = 0; t < OBJECTIVES; t++) {
        report->term[t].query_norm = sqrt(report->term[t].query_norm);
        report->term[t].item_norm = sqrt(report->term[t].item_norm);
    }
    return gradient_finite(o->heads_size, o->dheads);
}

void objectives_update(struct objectives *o, const struct step *s, const struct slate_batch *b,
                       struct row_weights *weights)
{
    const struct objective_options *options = o->options;
    struct objective_state *state = column_edit(&o->state, 0);
    const bool early =
        options->ranker.weight > 0 && options->ranker.feedback != DELAYED_FEEDBACK_NONE;
    // Without a gradient the heads are not touched: L2 and momentum would move them.
    if (kernels->dot(o->heads_size, o->dheads, o->dheads) != 0) {
        for (size_t i = 0; i < o->heads.n; i++)
            column_edit(&o->heads, i);
        optimizer_update(&options->head, ++state->head_steps, o->heads_size, o->dheads, heads_of(o),
                         heads_of(o) + o->heads_size);
    }
    for (int i = 0; i < b->n && early; i++)
        late_arrivals_count(&state->late, options->tasks, &b->slates[i]);
    for (int i = 0; i < b->n && options->align.guard; i++) {
        const struct slate *slate = &b->slates[i];
        const int at = b->first[i];
        float inverse[SLATE_ITEMS_MAX];
        if (slate->kind != SLATE_CLOSED)
            continue;
        const float *examination =
            weights ? row_weights_examination(weights, slate, inverse) : NULL;
        if (slate->ranker > 0)
            reward_guard_observe(column_edit(&o->guard, slate->ranker), &options->guard,
                                 slate->n_items, o->raw + at, o->y + at, examination);
        if (has_proxy(options) && !slate->repeated)
            reward_guard_observe(column_edit(&o->guard, 0), &options->guard, slate->n_items,
                                 o->proxy_reward + at, o->y + at, examination);
    }
    if (weights)
        row_weights_learn(weights, s, b, o->y, o->raw);
}
