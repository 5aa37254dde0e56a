// SPDX-License-Identifier: Apache-2.0
//
// Steps of slates as the model takes them, for every kind of model: what the terms of
// model/objectives.h do to towers and heads. The terms by themselves have tests of their own.
#include "model/objectives.h"

#include <stdio.h>

#include "model/reference.h"
#include "model/towers.h"
#include "tests/unit/test_model.h"

enum { DIM = 8, BATCH = 6, ITEMS = 12, USERS = 6, UF = 3, IF = 2, TASKS = 3, SLATES = 5 };
enum { HISTORY = 4, REPEAT = 5, HEADS = 2 };

// The recipe, two linear towers, and towers with all their parts.
enum { SHAPE_RECIPE, SHAPE_PLAIN, SHAPE_FULL, SHAPES };
static const char *const shape_names[SHAPES] = {"recipe", "two_tower", "two_tower, full"};

static const struct example batch[BATCH] = {
    {.user = 0, .item = 1, .positive = 1, .n_history = 2, .history = {3, 2}},
    {.user = 1, .item = 1, .positive = 1, .n_history = 0},
    {.user = 2, .item = 4, .positive = 1, .n_history = 3, .history = {4, 4, 1}},
    {.user = 0, .item = 5, .positive = 1, .n_history = 1, .history = {1}},
    {.user = 3, .item = 6, .positive = 1, .n_history = 5, .history = {8, 9, 8, 2, 1}},
    {.user = 3, .item = 2, .positive = 1, .n_history = 5, .history = {6, 8, 9, 8, 2}},
};
static const float batch_features[BATCH * UF] = {.1f, .2f, .3f, -.1f, .5f, -.9f, .4f, .4f, 0,
                                                 .7f, 1,   -1,  .2f,  .3f, .4f,  -1,  0,   1};

static struct two_tower_options plain_options(int shape)
{
    struct two_tower_options o = {.kind = shape == SHAPE_RECIPE ? MODEL_RECIPE : MODEL_TWO_TOWER,
                                  .dim = DIM,
                                  .history = HISTORY,
                                  .repeat = REPEAT,
                                  .batch_max = BATCH,
                                  .seed = 3,
                                  .init = 0.5f,
                                  .table = *optimizer_find("sgd"),
                                  .hidden = 5,
                                  .temperature = 1,
                                  .prior_half_life = {6, 40, 3},
                                  .logq_half_life = 20};
    o.table.rate = 0.0625f; // the batches learned in between shall not carry it far
    o.matrix = o.scalar = o.table;
    if (shape == SHAPE_FULL) {
        o.user_features = UF;
        o.item_features = IF;
        o.attention = true;
    }
    o.objectives = (struct objective_options){.slates = SLATES, .tasks = TASKS, .head = o.table};
    memcpy(o.objectives.value, (float[]){1, 0.5f, -0.75f}, TASKS * sizeof(float));
    return o;
}

// ---- The terms, each with settings that no other has.

static void distill_listwise_on(struct objective_options *o)
{
    o->distill.weight = 0.7f;
    o->distill.form = DISTILL_LISTWISE;
    o->distill.temperature = 1.5f;
}

static void distill_plackett_luce_on(struct objective_options *o)
{
    o->distill.weight = 0.8f;
    o->distill.form = DISTILL_PLACKETT_LUCE;
    o->distill.top = 3;
    o->distill.temperature = 1;
}

static void distill_top_positives_on(struct objective_options *o)
{
    o->distill.weight = 1.2f;
    o->distill.form = DISTILL_TOP_POSITIVES;
    o->distill.top = 3;
    o->distill.temperature = 2;
}

static void distill_soft_pair_on(struct objective_options *o)
{
    o->distill.weight = 0.9f;
    o->distill.form = DISTILL_SOFT_PAIR;
    o->distill.temperature = 0.75f;
}

static void distill_margin_on(struct objective_options *o)
{
    o->distill.weight = 0.3f;
    o->distill.form = DISTILL_MARGIN;
    o->distill.temperature = 1;
}

static void align_on(struct objective_options *o, enum align_form form, float weight)
{
    o->align.weight = weight;
    o->align.form = form;
    o->align.temperature = 0.8f;
    o->align.student_temperature = 1.25f;
    o->align.beta = 0.6f;
    o->align.ratio_cap = 1.5f;
    o->align.top_k = 3;
}

static void align_kl_on(struct objective_options *o)
{
    align_on(o, ALIGN_KL, 0.6f);
}

static void align_policy_on(struct objective_options *o)
{
    align_on(o, ALIGN_POLICY, 0.4f);
}

static void align_shaped_on(struct objective_options *o)
{
    align_on(o, ALIGN_SHAPED, 1.1f);
}

static void align_dpo_on(struct objective_options *o)
{
    align_on(o, ALIGN_DPO, 0.9f);
}

static void align_s_dpo_on(struct objective_options *o)
{
    align_on(o, ALIGN_S_DPO, 0.5f);
}

static void align_proxy_on(struct objective_options *o)
{
    align_on(o, ALIGN_KL, 0.7f);
    o->align.teacher = ALIGN_PROXY;
}

static void trust_on(struct objective_options *o)
{
    o->align.trust = 0.45f;
}

static void preference_bpr_on(struct objective_options *o)
{
    o->preference.weight = 1.3f;
    o->preference.form = PREFERENCE_BPR;
}

static void preference_dpo_on(struct objective_options *o)
{
    preference_bpr_on(o);
    o->preference.form = PREFERENCE_DPO;
    o->preference.beta = 0.7f;
}

static void preference_s_dpo_on(struct objective_options *o)
{
    preference_dpo_on(o);
    o->preference.form = PREFERENCE_S_DPO;
}

static void ranker_on(struct objective_options *o)
{
    o->ranker.weight = 0.5f;
    o->ranker.heads = HEADS;
}

static void ranker_distill_on(struct objective_options *o)
{
    ranker_on(o);
    o->ranker.distill = 0.8f;
}

static void ranker_logits_on(struct objective_options *o)
{
    ranker_distill_on(o);
    o->ranker.scale = RANKER_LOGITS;
}

static void ranker_stopped_on(struct objective_options *o)
{
    ranker_distill_on(o);
    o->ranker.stop_gradient = true;
}

static void all_on(struct objective_options *o)
{
    distill_listwise_on(o);
    align_shaped_on(o);
    trust_on(o);
    preference_s_dpo_on(o);
    ranker_distill_on(o);
}

static void all_by_proxy_on(struct objective_options *o)
{
    distill_plackett_luce_on(o);
    align_policy_on(o);
    o->align.teacher = ALIGN_PROXY;
    trust_on(o);
    preference_dpo_on(o);
    ranker_distill_on(o);
}

static const struct {
    const char *name;
    void (*on)(struct objective_options *o);
} terms[] = {
    {"distill listwise", distill_listwise_on},
    {"distill Plackett-Luce", distill_plackett_luce_on},
    {"distill top positives", distill_top_positives_on},
    {"distill soft pairs", distill_soft_pair_on},
    {"distill margins", distill_margin_on},
    {"align KL", align_kl_on},
    {"align policy", align_policy_on},
    {"align shaped", align_shaped_on},
    {"align DPO", align_dpo_on},
    {"align S-DPO", align_s_dpo_on},
    {"align by proxy", align_proxy_on},
    {"trust", trust_on},
    {"preference BPR", preference_bpr_on},
    {"preference DPO", preference_dpo_on},
    {"preference S-DPO", preference_s_dpo_on},
    {"ranker", ranker_on},
    {"ranker distilled", ranker_distill_on},
    {"ranker from logits", ranker_logits_on},
    {"ranker, towers stopped", ranker_stopped_on},
    {"all", all_on},
    {"all by proxy", all_by_proxy_on},
};
enum { TERMS = sizeof terms / sizeof *terms };

// ---- Slates.

struct input {
    int n;
    struct slate slates[SLATES];
    float scores[SLATES * SLATE_ITEMS_MAX * TASKS], features[SLATES * UF];
};

static void slate_fill(struct slate *slate, float *scores, int items, struct rng *rng)
{
    *slate = (struct slate){.user = (uint32_t)rng_below(rng, USERS),
                            .kind = SLATE_CLOSED,
                            .surface = (uint8_t)rng_below(rng, SURFACES_MAX),
                            .ranker = (uint8_t)(1 + rng_below(rng, 2)),
                            .n_items = (uint16_t)items,
                            .n_history = (uint8_t)rng_below(rng, 8),
                            .n_newest = (uint8_t)rng_below(rng, 3)};
    for (int k = 0; k < slate->n_history; k++)
        slate->history[k] = (uint32_t)rng_below(rng, ITEMS);
    for (int k = 0; k < items; k++) {
        struct slate_item *item = &slate->items[k];
        const bool shown = rng_float(rng) < 0.75f;
        *item = (struct slate_item){.item = (uint32_t)rng_below(rng, ITEMS),
                                    .propensity =
                                        rng_float(rng) < 0.5f ? 0 : 0.05f + 0.9f * rng_float(rng),
                                    .position = (int16_t)((int)rng_below(rng, 42) - 1),
                                    .shown = shown,
                                    .labels = shown ? (uint32_t)rng_below(rng, 1 << TASKS) : 0};
        for (int t = 0; t < TASKS; t++)
            scores[k * TASKS + t] = rng_float(rng) < 0.05f ? NAN : rng_float(rng);
    }
}

// Slates of 7, 5, 1, 6 and 4 items. The first holds one item twice, the newest but one of its
// history; the fourth was not scored.
static void input_fill(struct input *in, uint64_t seed)
{
    static const int items[SLATES] = {7, 5, 1, 6, 4};
    struct rng rng = {seed, 0};
    *in = (struct input){.n = SLATES};
    rng_fill_uniform(&rng, in->features, SLATES * UF, -1, 1);
    for (int i = 0; i < SLATES; i++)
        slate_fill(&in->slates[i], in->scores + i * SLATE_ITEMS_MAX * TASKS, items[i], &rng);
    struct slate *first = &in->slates[0];
    first->n_history = 6;
    first->history[0] = 2;
    first->history[1] = first->history[3] = first->items[1].item = first->items[4].item = 7;
    first->items[0].item = 2;
    in->slates[3].ranker = 0;
}

// ---- A model that has learned something, with parameters of size 1/2, published and gone on.

struct fixture {
    struct two_tower_options o;
    struct test_model m;
    struct input in;
    struct slate_report report;
    double ref[SLATES][SLATE_ITEMS_MAX];      // by the model published
    double reward[SLATES][SLATE_ITEMS_MAX];   // what align follows: a constant
    double constant[SLATES][SLATE_ITEMS_MAX]; // of the policy's gradient
};

static const float *features_of(const struct fixture *f)
{
    return f->o.user_features ? f->in.features : NULL;
}

static float *heads_of(const struct fixture *f)
{
    return test_floats(test_column(&f->m, "model.heads"), 0);
}

static void slates_learn(void *arg)
{
    struct fixture *f = arg;
    f->report =
        two_tower_learn_slates(f->m.model, f->in.n, f->in.slates, f->in.scores, features_of(f));
}

static void batch_learn(struct fixture *f)
{
    assert_false(
        two_tower_learn(f->m.model, BATCH, batch, f->o.user_features ? batch_features : NULL)
            .skipped);
}

static void example_of(const struct slate *slate, struct example *e)
{
    *e = (struct example){
        .user = slate->user, .n_history = slate->n_history, .n_newest = slate->n_newest};
    memcpy(e->history, slate->history, sizeof e->history);
}

// s of every item by the vectors and bonuses that are served, which have tests of their own.
static void scores_now(const struct fixture *f, double s[SLATES][SLATE_ITEMS_MAX])
{
    for (int i = 0; i < f->in.n; i++) {
        const struct slate *slate = &f->in.slates[i];
        struct example e;
        struct bonus bonuses[HISTORY_MAX];
        float q[DIM + 1], v[DIM + 1];
        example_of(slate, &e);
        two_tower_queries(f->m.model, 1, &e, f->o.user_features ? f->in.features + i * UF : NULL,
                          q);
        const int n = two_tower_bonuses(f->m.model, &e, bonuses);
        for (int k = 0; k < slate->n_items; k++) {
            two_tower_items(f->m.model, 1, &slate->items[k].item, v);
            s[i][k] = 0;
            for (int j = 0; j <= DIM; j++)
                s[i][k] += (double)q[j] * (double)v[j];
            for (int j = 0; j < n; j++)
                s[i][k] += bonuses[j].row == slate->items[k].item ? (double)bonuses[j].score : 0;
        }
    }
}

static void parameters_fill(const struct test_model *m, uint64_t seed)
{
    struct rng rng = {seed, 0};
    const struct tables *t = m->tables;
    rng_fill_uniform(&rng, test_floats(&t->item_vector, 0), test_numbers(&t->item_vector), -.7f,
                     .7f);
    rng_fill_uniform(&rng, test_floats(&t->user_vector, 0), USERS * DIM, -.7f, .7f);
    rng_fill_uniform(&rng, test_floats(&t->dense, 0), t->dense_size, -.4f, .4f);
    for (size_t i = 0; i < ITEMS; i++)
        rng_fill_uniform(&rng, &test_item_state(m, i)->bias, 1, -.5f, .5f);
    const struct column *heads = test_column(m, "model.heads");
    const size_t n = objectives_heads_size(&two_tower_options(m->model)->objectives, DIM);
    if (heads)
        rng_fill_uniform(&rng, test_floats(heads, 0), n, -.5f, .5f);
}

// No hidden unit is so near to 0 that a difference steps over the bend there: every other is on.
static void hidden_settle(const struct test_model *m)
{
    struct dense_parameter p;
    for (int i = 0; view_dense(two_tower_options(m->model), i, &p); i++)
        for (int k = 0; strstr(p.name, "hidden_bias") && k < p.columns; k++)
            test_floats(&m->tables->dense, 0)[p.offset + (size_t)k] = k % 2 ? -1.5f : 1.5f;
}

static void start_with(struct fixture *f, const struct two_tower_options *o)
{
    *f = (struct fixture){.o = *o};
    input_fill(&f->in, 23);
    test_model_open(&f->m, o, ITEMS, USERS);
    for (uint32_t i = 0; i < ITEMS && o->item_features; i++)
        two_tower_item_features(f->m.model, i, IF,
                                (float[]){0.1f * (float)i, 0.5f - 0.1f * (float)i});
    batch_learn(f);
    parameters_fill(&f->m, 11);
    two_tower_published(f->m.model);
    scores_now(f, f->ref);
    batch_learn(f); // now the reference differs
    hidden_settle(&f->m);
}

static void start(struct fixture *f, int shape, void (*on)(struct objective_options *))
{
    struct two_tower_options o = plain_options(shape);
    if (on)
        on(&o.objectives);
    start_with(f, &o);
}

// ---- The loss a second time, in doubles and without cleverness.

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

static double bce(double z, double y)
{
    return log(1 + exp(z)) - z * y;
}

// log softmax(x / T) of the items that mask does not say NAN for.
static void log_softmax(int n, const double *x, const double *mask, double T, double *log_p)
{
    double sum = 0;
    for (int k = 0; k < n; k++)
        sum += isnan(mask[k]) ? 0 : exp(x[k] / T);
    for (int k = 0; k < n; k++)
        log_p[k] = isnan(mask[k]) ? NAN : x[k] / T - log(sum);
}

static int unmasked(int n, const double *x)
{
    int m = 0;
    for (int k = 0; k < n; k++)
        m += !isnan(x[k]);
    return m;
}

// KL(softmax(g / T) || softmax(s / S))
static double divergence(int n, const double *g, double T, const double *s, double S)
{
    double p[SLATE_ITEMS_MAX], q[SLATE_ITEMS_MAX], sum = 0;
    log_softmax(n, g, g, T, p);
    log_softmax(n, s, g, S, q);
    for (int k = 0; k < n; k++)
        sum += isnan(g[k]) ? 0 : exp(p[k]) * (p[k] - q[k]);
    return sum;
}

static void standardise(int n, const double *g, double *x)
{
    const int m = unmasked(n, g);
    double mean = 0, squares = 0;
    for (int k = 0; k < n; k++)
        mean += isnan(g[k]) ? 0 : g[k] / m;
    for (int k = 0; k < n; k++)
        squares += isnan(g[k]) ? 0 : (g[k] - mean) * (g[k] - mean) / m;
    for (int k = 0; k < n; k++)
        x[k] = (g[k] - mean) / fmax(sqrt(squares), 1e-6);
}

// How many pairs are high over low: engaged over skipped, or the higher score over the lower.
static bool is_pair(const double *g, int i, int j, bool by_value)
{
    return by_value ? g[i] > 0 && g[j] <= 0 : g[i] > g[j];
}

typedef double (*pair_fn)(const struct objective_options *o, double s, double t);

static double pair_soft(const struct objective_options *o, double s, double t)
{
    return bce(s, sigmoid(t / (double)o->distill.temperature));
}

static double pair_margin(const struct objective_options *o, double s, double t)
{
    (void)o;
    return (s - t) * (s - t);
}

static double pair_bpr(const struct objective_options *o, double s, double t)
{
    (void)o, (void)t;
    return log(1 + exp(-s));
}

static double pair_align(const struct objective_options *o, double s, double t)
{
    return log(1 + exp(-(double)o->align.beta * (s - t)));
}

static double pair_preference(const struct objective_options *o, double s, double t)
{
    return log(1 + exp(-(double)o->preference.beta * (s - t)));
}

// The mean over the pairs; t is what the student's difference is compared with.
static double pairs_mean(const struct objective_options *o, int n, const double *g, bool by_value,
                         const double *s, const double *t, pair_fn pair)
{
    double sum = 0;
    int count = 0;
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++)
            if (is_pair(g, i, j, by_value)) {
                sum += pair(o, s[i] - s[j], t[i] - t[j]);
                count++;
            }
    return count ? sum / count : NAN;
}

static double s_dpo(double beta, int n, const double *g, bool by_value, const double *s,
                    const double *t)
{
    double sum = 0;
    int count = 0;
    for (int i = 0; i < n; i++) {
        double inner = 0;
        for (int j = 0; j < n; j++)
            if (is_pair(g, i, j, by_value))
                inner += exp(-beta * (s[i] - s[j] - t[i] + t[j]));
        sum += inner > 0 ? log(1 + inner) : 0;
        count += inner > 0;
    }
    return count ? sum / count : NAN;
}

// The item at place r of the order by g, -1 at the end; equal ones by index.
static int place(int n, const double *g, int r)
{
    for (int k = 0; k < n; k++) {
        int above = 0;
        for (int j = 0; j < n; j++)
            above += g[j] > g[k] || (g[j] == g[k] && j < k);
        if (!isnan(g[k]) && above == r)
            return k;
    }
    return -1;
}

static double plackett_luce(int n, const double *g, const double *s, int top)
{
    double loss = 0;
    for (int r = 0; r < top && place(n, g, r) >= 0; r++) {
        double sum = 0;
        for (int j = r; place(n, g, j) >= 0; j++)
            sum += exp(s[place(n, g, j)]);
        loss += log(sum) - s[place(n, g, r)];
    }
    return loss;
}

static double top_positives(int n, const double *g, const double *s, int top, double lambda)
{
    const int places = top < unmasked(n, g) ? top : unmasked(n, g);
    double loss = 0, weights = 0;
    for (int r = 0; r < places; r++) {
        weights += exp(-(r + 1) / lambda);
        loss += exp(-(r + 1) / lambda) * log(1 + exp(-s[place(n, g, r)]));
    }
    return places ? loss / weights : NAN;
}

// ---- A term of one slate; NAN when it has nothing to say.

struct said {
    int n;
    double *s, *ref, *reward, *constant;
    double raw[SLATE_ITEMS_MAX], g[SLATE_ITEMS_MAX], y[SLATE_ITEMS_MAX];
};

static double distill_again(const struct objective_options *o, const struct said *x)
{
    const double T = (double)o->distill.temperature;
    if (unmasked(x->n, x->g) < (o->distill.form == DISTILL_TOP_POSITIVES ? 1 : 2))
        return NAN;
    switch (o->distill.form) {
    case DISTILL_LISTWISE:
        return T * T * divergence(x->n, x->g, T, x->s, T);
    case DISTILL_PLACKETT_LUCE:
        return plackett_luce(x->n, x->g, x->s, o->distill.top);
    case DISTILL_TOP_POSITIVES:
        return top_positives(x->n, x->g, x->s, o->distill.top, T);
    case DISTILL_SOFT_PAIR:
        return pairs_mean(o, x->n, x->g, false, x->s, x->g, pair_soft);
    case DISTILL_MARGIN:
        return pairs_mean(o, x->n, x->g, false, x->s, x->g, pair_margin);
    }
    return NAN;
}

static double shaped_again(double beta, const struct said *x)
{
    double p[SLATE_ITEMS_MAX], r[SLATE_ITEMS_MAX], sum = 0;
    log_softmax(x->n, x->s, x->reward, 1, p);
    log_softmax(x->n, x->ref, x->reward, 1, r);
    for (int k = 0; k < x->n; k++)
        sum += isnan(x->reward[k]) ? 0 : exp(p[k]) * (x->reward[k] - beta * (p[k] - r[k]));
    return -sum;
}

static double align_again(const struct objective_options *o, const struct said *x)
{
    const double beta = (double)o->align.beta;
    double p[SLATE_ITEMS_MAX], sum = 0;
    if (unmasked(x->n, x->reward) < 2)
        return NAN;
    switch (o->align.form) {
    case ALIGN_KL:
        return divergence(x->n, x->reward, (double)o->align.temperature, x->s,
                          (double)o->align.student_temperature);
    case ALIGN_POLICY:
        log_softmax(x->n, x->s, x->reward, 1, p);
        for (int k = 0; k < x->n; k++)
            sum -= isnan(x->reward[k]) ? 0 : x->constant[k] * p[k];
        return sum;
    case ALIGN_SHAPED:
        return shaped_again(beta, x);
    case ALIGN_DPO:
        return pairs_mean(o, x->n, x->reward, false, x->s, x->ref, pair_align);
    case ALIGN_S_DPO:
        return s_dpo(beta, x->n, x->reward, false, x->s, x->ref);
    }
    return NAN;
}

static double trust_again(const struct objective_options *o, const struct said *x)
{
    (void)o;
    return x->n < 2 ? NAN : divergence(x->n, x->s, 1, x->ref, 1);
}

static double preference_again(const struct objective_options *o, const struct said *x)
{
    switch (o->preference.form) {
    case PREFERENCE_BPR:
        return pairs_mean(o, x->n, x->y, true, x->s, x->s, pair_bpr);
    case PREFERENCE_DPO:
        return pairs_mean(o, x->n, x->y, true, x->s, x->ref, pair_preference);
    case PREFERENCE_S_DPO:
        return s_dpo((double)o->preference.beta, x->n, x->y, true, x->s, x->ref);
    }
    return NAN;
}

static double label_of(const struct slate *slate, int k, int t)
{
    const bool final = slate->kind == SLATE_CLOSED && !slate->repeated;
    return final && slate->items[k].shown ? (double)(slate->items[k].labels >> t & 1) : NAN;
}

static const float *scores_at(const struct fixture *f, int i, int k)
{
    return f->in.scores + (i * SLATE_ITEMS_MAX + k) * TASKS;
}

static void said_fill(struct fixture *f, int i, double *s, struct said *x)
{
    const struct slate *slate = &f->in.slates[i];
    *x = (struct said){.n = slate->n_items,
                       .s = s,
                       .ref = f->ref[i],
                       .reward = f->reward[i],
                       .constant = f->constant[i]};
    for (int k = 0; k < x->n; k++) {
        x->raw[k] = slate->ranker ? 0 : NAN;
        x->y[k] = 0;
        for (int t = 0; t < TASKS; t++) {
            x->raw[k] += (double)f->o.objectives.value[t] * (double)scores_at(f, i, k)[t];
            x->y[k] += (double)f->o.objectives.value[t] * label_of(slate, k, t);
        }
    }
    standardise(x->n, x->raw, x->g);
}

// ---- The heads.

static void vectors_of(const struct fixture *f, int i, double *q, double v[][DIM])
{
    const struct slate *slate = &f->in.slates[i];
    struct example e;
    float Q[DIM + 1], V[DIM + 1];
    example_of(slate, &e);
    two_tower_queries(f->m.model, 1, &e, f->o.user_features ? f->in.features + i * UF : NULL, Q);
    for (int j = 0; j < DIM; j++)
        q[j] = (double)Q[j];
    for (int k = 0; k < slate->n_items; k++) {
        two_tower_items(f->m.model, 1, &slate->items[k].item, V);
        for (int j = 0; j < DIM; j++)
            v[k][j] = (double)V[j];
    }
}

static double dot(const double *x, const double *y)
{
    double sum = 0;
    for (int j = 0; j < DIM; j++)
        sum += x[j] * y[j];
    return sum;
}

// phi of model/light_ranker.h.
enum { FEATURES = 2 * DIM + HEADS + 1 };

static void phi_of(const struct light_ranker_parameters *p, const double *q, const double *v,
                   double *phi)
{
    double R[HEADS][DIM], pi[HEADS], sum = 0;
    memset(phi, 0, FEATURES * sizeof *phi);
    for (int h = 0; h < HEADS; h++) {
        for (int j = 0; j < DIM; j++) {
            R[h][j] = (double)p->b_r[h * DIM + j];
            for (int l = 0; l < DIM; l++)
                R[h][j] += (double)p->W_r[(h * DIM + j) * DIM + l] * q[l];
        }
        phi[2 * DIM + h] = dot(R[h], v);
        sum += pi[h] = exp(phi[2 * DIM + h]);
    }
    for (int j = 0; j < DIM; j++) {
        phi[j] = v[j];
        for (int h = 0; h < HEADS; h++)
            phi[DIM + j] += pi[h] / sum * R[h][j];
    }
    phi[2 * DIM + HEADS] = dot(q, v);
}

static double affine(int n, const float *w, float b, const double *x)
{
    double z = (double)b;
    for (int j = 0; j < n; j++)
        z += (double)w[j] * x[j];
    return z;
}

static double teacher_of(const struct objective_options *o, const struct slate *slate, float score)
{
    if (slate->kind != SLATE_CLOSED || slate->ranker == 0)
        return NAN;
    return o->ranker.scale == RANKER_LOGITS ? sigmoid((double)score) : (double)score;
}

// The sums over the slates of the means over the step: loss[0] of the labels, loss[1] of the
// teacher, each multiplied by how many slates have such a thing; counts are those.
static void ranker_again(const struct fixture *f, double loss[2], int counts[2])
{
    const struct objective_options *o = &f->o.objectives;
    const struct light_ranker_shape shape = {DIM, HEADS, TASKS};
    const struct light_ranker_parameters p = light_ranker_at(heads_of(f), &shape);
    double sums[2] = {0};
    int pairs[2] = {0};
    counts[0] = counts[1] = 0;
    for (int i = 0; i < f->in.n; i++) {
        const struct slate *slate = &f->in.slates[i];
        double q[DIM], v[SLATE_ITEMS_MAX][DIM], phi[FEATURES];
        const int before[2] = {pairs[0], pairs[1]};
        vectors_of(f, i, q, v);
        for (int k = 0; k < slate->n_items; k++) {
            phi_of(&p, q, v[k], phi);
            for (int t = 0; t < TASKS; t++) {
                const int at = slate->items[k].position;
                const double g = at < 0 ? 0
                                        : (double)p.g[(slate->surface * LIGHT_RANKER_POSITIONS +
                                                       (at < LIGHT_RANKER_POSITIONS ? at : 31)) *
                                                          TASKS +
                                                      t];
                const double y[2] = {label_of(slate, k, t),
                                     teacher_of(o, slate, scores_at(f, i, k)[t])};
                const double z[2] = {affine(FEATURES, p.W_l + t * FEATURES, p.b_l[t], phi) + g,
                                     affine(FEATURES, p.W_a + t * FEATURES, p.b_a[t], phi)};
                for (int c = 0; c < 2; c++)
                    if (!isnan(y[c])) {
                        sums[c] += bce(z[c], y[c]);
                        pairs[c]++;
                    }
            }
        }
        for (int c = 0; c < 2; c++)
            counts[c] += pairs[c] > before[c];
    }
    for (int c = 0; c < 2; c++)
        loss[c] = pairs[c] ? counts[c] * sums[c] / pairs[c] : 0;
}

static size_t aligned(size_t floats)
{
    return (floats + 15) / 16 * 16;
}

static const float *proxy_of(const struct fixture *f)
{
    const struct light_ranker_shape shape = {DIM, HEADS, TASKS};
    const size_t ranker =
        f->o.objectives.ranker.weight > 0 ? aligned(light_ranker_size(&shape)) : 0;
    return heads_of(f) + ranker;
}

static double proxy_logit(const struct fixture *f, const double *q, const double *v, int t)
{
    enum { WIDTH = 2 * DIM + 1 };
    const float *W = proxy_of(f), *b = W + aligned(TASKS * WIDTH);
    double x[WIDTH];
    memcpy(x, q, DIM * sizeof *x);
    memcpy(x + DIM, v, DIM * sizeof *x);
    x[2 * DIM] = dot(q, v);
    return affine(WIDTH, W + t * WIDTH, b[t], x);
}

static double proxy_again(const struct fixture *f, int *count)
{
    double sum = 0;
    *count = 0;
    for (int i = 0; i < f->in.n; i++) {
        const struct slate *slate = &f->in.slates[i];
        double q[DIM], v[SLATE_ITEMS_MAX][DIM], loss = 0;
        int pairs = 0;
        vectors_of(f, i, q, v);
        for (int k = 0; k < slate->n_items; k++)
            for (int t = 0; t < TASKS; t++)
                if (!isnan(label_of(slate, k, t))) {
                    loss += bce(proxy_logit(f, q, v[k], t), label_of(slate, k, t));
                    pairs++;
                }
        sum += pairs ? loss / pairs : 0;
        *count += pairs > 0;
    }
    return sum;
}

// ---- All together.

static bool by_proxy(const struct objective_options *o)
{
    return o->align.weight > 0 && o->align.teacher == ALIGN_PROXY;
}

// What is a constant to the gradient: the reward, and the policy's coefficients.
static void constants_fill(struct fixture *f)
{
    const struct objective_options *o = &f->o.objectives;
    double s[SLATES][SLATE_ITEMS_MAX];
    scores_now(f, s);
    for (int i = 0; i < f->in.n; i++) {
        const struct slate *slate = &f->in.slates[i];
        struct said x;
        said_fill(f, i, s[i], &x);
        memcpy(f->reward[i], x.g, sizeof x.g);
        if (by_proxy(o)) {
            double q[DIM], v[SLATE_ITEMS_MAX][DIM], reward[SLATE_ITEMS_MAX] = {0};
            vectors_of(f, i, q, v);
            for (int k = 0; k < slate->n_items; k++)
                for (int t = 0; t < TASKS; t++)
                    reward[k] += (double)o->value[t] * proxy_logit(f, q, v[k], t);
            standardise(x.n, reward, f->reward[i]);
        }
        double log_pi[SLATE_ITEMS_MAX];
        log_softmax(x.n, s[i], f->reward[i], 1, log_pi);
        for (int k = 0; k < x.n; k++) {
            const double pi = exp(log_pi[k]), theta = (double)slate->items[k].propensity;
            const double ratio =
                fmin(theta > 0 ? pi / theta : pi * x.n, (double)o->align.ratio_cap);
            f->constant[i][k] =
                ratio * o->align.top_k * pow(1 - pi, o->align.top_k - 1) * f->reward[i][k];
        }
    }
}

static const struct {
    enum objective objective;
    double (*loss)(const struct objective_options *o, const struct said *x);
} slate_terms[] = {
    {OBJECTIVE_DISTILL, distill_again},
    {OBJECTIVE_ALIGN, align_again},
    {OBJECTIVE_TRUST, trust_again},
    {OBJECTIVE_PREFERENCE, preference_again},
};

static double weight_of(const struct objective_options *o, enum objective objective)
{
    const double weights[OBJECTIVES] = {
        [OBJECTIVE_DISTILL] = (double)o->distill.weight,
        [OBJECTIVE_ALIGN] = (double)o->align.weight,
        [OBJECTIVE_TRUST] = (double)o->align.trust,
        [OBJECTIVE_PREFERENCE] = (double)o->preference.weight,
        [OBJECTIVE_RANKER] = (double)o->ranker.weight,
        [OBJECTIVE_RANKER_DISTILL] = o->ranker.weight > 0 ? (double)o->ranker.distill : 0,
        [OBJECTIVE_PROXY] = by_proxy(o),
    };
    return weights[objective];
}

// loss and n of each term that is on, as in the report.
static void losses_again(struct fixture *f, double loss[OBJECTIVES], int n[OBJECTIVES])
{
    const struct objective_options *o = &f->o.objectives;
    double s[SLATES][SLATE_ITEMS_MAX];
    memset(loss, 0, OBJECTIVES * sizeof *loss);
    memset(n, 0, OBJECTIVES * sizeof *n);
    scores_now(f, s);
    for (int i = 0; i < f->in.n; i++) {
        struct said x;
        said_fill(f, i, s[i], &x);
        for (size_t t = 0; t < sizeof slate_terms / sizeof *slate_terms; t++) {
            const enum objective objective = slate_terms[t].objective;
            if (weight_of(o, objective) == 0 || f->in.slates[i].kind != SLATE_CLOSED)
                continue;
            const double one = slate_terms[t].loss(o, &x);
            loss[objective] += isnan(one) ? 0 : one;
            n[objective] += !isnan(one);
        }
    }
    if (o->ranker.weight > 0) {
        double both[2];
        int counts[2];
        ranker_again(f, both, counts);
        loss[OBJECTIVE_RANKER] = both[0];
        n[OBJECTIVE_RANKER] = counts[0];
        if (o->ranker.distill > 0) {
            loss[OBJECTIVE_RANKER_DISTILL] = both[1];
            n[OBJECTIVE_RANKER_DISTILL] = counts[1];
        }
    }
    if (by_proxy(o))
        loss[OBJECTIVE_PROXY] = proxy_again(f, &n[OBJECTIVE_PROXY]);
}

static double loss_of_heads(void *arg)
{
    struct fixture *f = arg;
    double loss[OBJECTIVES], sum = 0;
    int n[OBJECTIVES];
    losses_again(f, loss, n);
    for (int t = 0; t < OBJECTIVES; t++)
        sum += weight_of(&f->o.objectives, (enum objective)t) * loss[t];
    return sum;
}

// No gradient leaves the proxy, nor the light ranker when it is told so.
static double loss_of_towers(void *arg)
{
    struct fixture *f = arg;
    const struct objective_options *o = &f->o.objectives;
    double loss[OBJECTIVES], sum = 0;
    int n[OBJECTIVES];
    losses_again(f, loss, n);
    for (int t = 0; t < OBJECTIVES; t++) {
        const bool ranker = t == OBJECTIVE_RANKER || t == OBJECTIVE_RANKER_DISTILL;
        if (t != OBJECTIVE_PROXY && !(ranker && o->ranker.stop_gradient))
            sum += weight_of(o, (enum objective)t) * loss[t];
    }
    return sum;
}

static void assert_report(struct fixture *f, const char *name)
{
    double loss[OBJECTIVES];
    int n[OBJECTIVES];
    losses_again(f, loss, n);
    for (int t = 0; t < OBJECTIVES; t++) {
        const struct objective_report *term = &f->report.term[t];
        if (term->n != n[t] || !(fabs(term->loss - loss[t]) <= 1e-4 * (1 + fabs(loss[t]))))
            fail_msg("%s: %s says %g of %d, the formula %g of %d", name, objective_names[t],
                     term->loss, term->n, loss[t], n[t]);
    }
}

static void assert_step(struct fixture *f, const char *name)
{
    struct test_step step;
    const struct column *heads = test_column(&f->m, "model.heads");
    constants_fill(f);
    test_step_take(&step, &f->m, slates_learn, f);
    assert_false(f->report.skipped);
    assert_report(f, name);
    test_step_assert_towers(&step, &f->m, loss_of_towers, f);
    if (heads)
        test_step_assert(&step, &f->m, "heads", heads, 0,
                         objectives_heads_size(&f->o.objectives, DIM), loss_of_heads, f);
    test_step_free(&step, &f->m);
}

static void a_step_is_the_gradient_of_each_term_and_of_all(void **state)
{
    (void)state;
    for (int shape = 0; shape < SHAPES; shape++)
        for (int t = 0; t < TERMS; t++) {
            struct fixture f;
            char name[64];
            snprintf(name, sizeof name, "%s, %s", shape_names[shape], terms[t].name);
            start(&f, shape, terms[t].on);
            assert_step(&f, name);
            test_model_close(&f.m);
        }
}

// ---- What a step does beside its gradient.

// As in production: state beside the parameters, and L2, which moves whatever is touched.
static struct two_tower_options adaptive_options(int shape)
{
    struct two_tower_options o = plain_options(shape);
    o.table = *optimizer_find("rowwise_adagrad");
    o.matrix = o.scalar = o.objectives.head = *optimizer_find("adam");
    o.table.l2 = o.matrix.l2 = o.objectives.head.l2 = 0.1f;
    return o;
}

static void start_adaptive(struct fixture *f, int shape, void (*on)(struct objective_options *))
{
    struct two_tower_options o = adaptive_options(shape);
    if (on)
        on(&o.objectives);
    start_with(f, &o);
}

static void distill_off(struct objective_options *o)
{
    o->distill.weight = 0;
}

static void align_off(struct objective_options *o)
{
    o->align.weight = 0;
}

static void trust_off(struct objective_options *o)
{
    o->align.trust = 0;
}

static void preference_off(struct objective_options *o)
{
    o->preference.weight = 0;
}

static void ranker_off(struct objective_options *o)
{
    o->ranker.weight = 0;
}

static void ranker_distill_off(struct objective_options *o)
{
    o->ranker.distill = 0;
}

// The same, by never having heard of it.
static void distill_none(struct objective_options *o)
{
    memset(&o->distill, 0, sizeof o->distill);
}

static void align_none(struct objective_options *o)
{
    const float trust = o->align.trust;
    memset(&o->align, 0, sizeof o->align);
    o->align.trust = trust;
}

static void preference_none(struct objective_options *o)
{
    memset(&o->preference, 0, sizeof o->preference);
}

static void ranker_none(struct objective_options *o)
{
    memset(&o->ranker, 0, sizeof o->ranker);
}

static const struct {
    const char *name;
    void (*off)(struct objective_options *o), (*none)(struct objective_options *o);
} without[] = {
    {"distill", distill_off, distill_none},
    {"align", align_off, align_none},
    {"trust", trust_off, trust_off},
    {"preference", preference_off, preference_none},
    {"ranker", ranker_off, ranker_none},
    {"ranker distill", ranker_distill_off, ranker_distill_off},
};
enum { WITHOUT = sizeof without / sizeof *without };

static void learn(struct fixture *f, int steps)
{
    for (int i = 0; i < steps; i++) {
        input_fill(&f->in, 100 + (uint64_t)i);
        slates_learn(f);
        assert_false(f->report.skipped);
        batch_learn(f);
    }
}

// The columns of a have the bytes of those of b, by name; the named one (NULL: none) may differ.
static void assert_same(const struct test_model *a, const struct test_model *b, const char *except)
{
    for (int i = 0; i < a->columns.n; i++) {
        const struct column *x = a->columns.list[i], *y = test_column(b, x->name);
        if (except && strcmp(except, x->name) == 0)
            continue;
        assert_non_null(y);
        if (x->n != y->n || memcmp(x->base, y->base, x->n * x->unit) != 0)
            fail_msg("column %s differs", x->name);
    }
}

static void a_term_that_is_off_leaves_what_a_model_without_it_has(void **state)
{
    (void)state;
    for (int shape = 0; shape < SHAPES; shape++)
        for (int t = 0; t < WITHOUT; t++)
            for (int others = 0; others < 2; others++) {
                struct two_tower_options o = adaptive_options(shape);
                struct fixture off, none, on;
                if (others)
                    all_on(&o.objectives);
                start_with(&on, &o);
                without[t].off(&o.objectives);
                start_with(&off, &o);
                without[t].none(&o.objectives);
                start_with(&none, &o);
                learn(&on, 3);
                learn(&off, 3);
                learn(&none, 3);
                assert_int_equal(off.m.columns.n, none.m.columns.n);
                assert_same(&off.m, &none.m, NULL);
                const struct tables *a = on.m.tables, *b = off.m.tables;
                const bool same = memcmp(a->item_vector.base, b->item_vector.base,
                                         ITEMS * a->item_vector.unit) == 0;
                if (same != !others) // with all of them on, each one counts
                    fail_msg("%s, %s", shape_names[shape], without[t].name);
                test_model_close(&on.m);
                test_model_close(&off.m);
                test_model_close(&none.m);
            }
}

static void without_slates_no_column_is_opened(void **state)
{
    (void)state;
    for (int shape = 0; shape < SHAPES; shape++) {
        struct two_tower_options o = plain_options(shape), plain = o;
        struct test_model a, b;
        all_by_proxy_on(&o.objectives);
        o.objectives.slates = 0;
        plain.objectives = (struct objective_options){.tasks = o.objectives.tasks};
        memcpy(plain.objectives.value, o.objectives.value, sizeof o.objectives.value);
        test_model_open(&a, &o, ITEMS, USERS);
        test_model_open(&b, &plain, ITEMS, USERS);
        assert_int_equal(objectives_heads_size(&o.objectives, DIM), 0);
        assert_false(objectives_need_reference(&o.objectives));
        two_tower_published(a.model);
        assert_int_equal(a.columns.n, b.columns.n);
        assert_same(&a, &b, NULL);
        test_model_close(&a);
        test_model_close(&b);
    }
}

static void slates_that_no_term_reads_leave_the_towers_as_without_slates(void **state)
{
    (void)state;
    for (int shape = 0; shape < SHAPES; shape++) {
        struct two_tower_options o = adaptive_options(shape);
        struct fixture a, b;
        start_with(&a, &o);
        o.objectives.slates = 0;
        start_with(&b, &o);
        for (int i = 0; i < 3; i++) {
            input_fill(&a.in, 100 + (uint64_t)i);
            slates_learn(&a);
            batch_learn(&a);
            batch_learn(&b);
        }
        assert_same(&b.m, &a.m, NULL);
        test_model_close(&a.m);
        test_model_close(&b.m);
    }
}

// One item that was not shown and has no score.
static void input_silence(struct input *in)
{
    in->n = 1;
    in->slates[0].n_items = 1;
    in->slates[0].ranker = 0;
    in->slates[0].items[0].shown = 0;
    for (int t = 0; t < TASKS; t++)
        in->scores[t] = NAN;
}

static void a_slate_without_anything_to_say_moves_nothing(void **state)
{
    (void)state;
    for (int shape = 0; shape < SHAPES; shape++)
        for (int t = 0; t < TERMS; t++) {
            struct fixture f;
            struct test_copy before;
            start_adaptive(&f, shape, terms[t].on);
            learn(&f, 2); // what the optimizers keep would move parameters by itself
            input_silence(&f.in);
            test_copy_take(&before, &f.m);
            slates_learn(&f);
            assert_false(f.report.skipped);
            for (int k = 0; k < OBJECTIVES; k++)
                assert_true(f.report.term[k].n == 0 && f.report.term[k].loss == 0);
            test_copy_assert_equal(&before, &f.m, NULL);
            test_copy_free(&before, &f.m);
            test_model_close(&f.m);
        }
}

// Nor when others of its step have something to say.
static void a_silent_slate_among_others_moves_nothing_of_its_own(void **state)
{
    (void)state;
    for (int shape = 0; shape < SHAPES; shape++)
        for (int t = 0; t < TERMS; t++) {
            struct fixture f;
            struct test_copy before;
            start_adaptive(&f, shape, terms[t].on);
            learn(&f, 1);
            input_fill(&f.in, 23);
            f.in.n = 2;
            struct slate *first = &f.in.slates[0], *second = &f.in.slates[1];
            for (int k = 0; k < first->n_items; k++)
                first->items[k].item %= 8;
            for (int k = 0; k < first->n_history; k++)
                first->history[k] %= 8;
            first->user = 0;
            // Items 8 and 9 and user 5 occur in the silent one alone.
            second->user = 5;
            second->n_items = 1;
            second->items[0] = (struct slate_item){.item = 8, .position = 1};
            second->ranker = 0;
            second->n_history = 2;
            second->history[0] = 9;
            second->history[1] = 8;
            for (int k = 0; k < TASKS; k++)
                f.in.scores[SLATE_ITEMS_MAX * TASKS + k] = NAN;
            test_copy_take(&before, &f.m);
            slates_learn(&f);
            assert_false(f.report.skipped);
            const struct tables *tables = f.m.tables;
            for (int i = 0; i < f.m.columns.n; i++) {
                const struct column *c = f.m.columns.list[i];
                const bool item = c == &tables->item_vector || c == &tables->item_state ||
                                  c == &tables->item_slots;
                const size_t from = item ? 8 : 5, n = item ? 2 : 1;
                if (!item && c != &tables->user_vector && c != &tables->user_slots)
                    continue;
                if (memcmp(c->base + from * c->unit, before.bytes[i] + from * c->unit,
                           n * c->unit) != 0)
                    fail_msg("%s, %s: %s", shape_names[shape], terms[t].name, c->name);
            }
            test_copy_free(&before, &f.m);
            test_model_close(&f.m);
        }
}

static void a_head_with_stopped_gradient_learns_and_the_towers_do_not_know(void **state)
{
    (void)state;
    for (int shape = 0; shape < SHAPES; shape++)
        for (int others = 0; others < 2; others++) {
            struct two_tower_options o = adaptive_options(shape);
            struct fixture stopped, without_ranker;
            if (others)
                all_on(&o.objectives);
            ranker_off(&o.objectives);
            start_with(&without_ranker, &o);
            ranker_stopped_on(&o.objectives);
            start_with(&stopped, &o);
            const struct column *heads = test_column(&stopped.m, "model.heads");
            float *before = malloc(heads->n * heads->unit);
            memcpy(before, heads->base, heads->n * heads->unit);
            learn(&stopped, 3);
            learn(&without_ranker, 3);
            for (int i = 0; i < without_ranker.m.columns.n; i++) {
                const struct column *x = without_ranker.m.columns.list[i];
                const struct column *y = test_column(&stopped.m, x->name);
                if (strcmp(x->name, "model.objectives") != 0 && // the heads' steps
                    memcmp(x->base, y->base, x->n * x->unit) != 0)
                    fail_msg("%s: %s", shape_names[shape], x->name);
            }
            assert_memory_not_equal(before, heads->base, heads->n * heads->unit);
            assert_true(stopped.report.term[OBJECTIVE_RANKER].n > 0);
            assert_true(stopped.report.term[OBJECTIVE_RANKER].query_norm == 0);
            free(before);
            test_model_close(&stopped.m);
            test_model_close(&without_ranker.m);
        }
}

// ---- The guard.

static struct two_tower_options guarded_options(int shape, bool proxy)
{
    struct two_tower_options o = adaptive_options(shape);
    distill_listwise_on(&o.objectives);
    if (proxy) {
        distill_none(&o.objectives);
        align_proxy_on(&o.objectives);
    }
    o.objectives.align.guard = true;
    o.objectives.guard =
        (struct reward_guard_options){.half_life = 1000, .confidence = 3, .weight_max = 10};
    return o;
}

// A slate whose first item is engaged, and was scored highest or, without knowledge, anyhow.
static void informative_fill(struct fixture *f, uint64_t n, int ranker, bool knows)
{
    struct rng rng = {n, 7};
    float *scores = f->in.scores;
    f->in.n = 1;
    slate_fill(&f->in.slates[0], scores, 6, &rng);
    f->in.slates[0].ranker = (uint8_t)ranker;
    for (int k = 0; k < 6; k++) {
        f->in.slates[0].items[k].shown = 1;
        f->in.slates[0].items[k].labels = k == 0;
        for (int t = 0; t < TASKS; t++)
            scores[k * TASKS + t] = t == 0 ? 0.5f * rng_float(&rng) + 0.5f * (knows && k == 0) : 0;
    }
}

static const struct reward_guard *guard_at(const struct fixture *f, int version)
{
    return column_at(test_column(&f->m, "model.guard"), (size_t)version);
}

static void a_version_that_has_not_proven_itself_moves_no_tower(void **state)
{
    (void)state;
    for (int shape = 0; shape < SHAPES; shape++) {
        struct two_tower_options o = guarded_options(shape, false);
        struct fixture f;
        struct test_copy before;
        start_with(&f, &o);
        test_copy_take(&before, &f.m);
        for (uint64_t i = 0; i < 60; i++) {
            informative_fill(&f, i, 1, false);
            slates_learn(&f);
            assert_true(!f.report.skipped && f.report.guard == 0);
            assert_int_equal(f.report.term[OBJECTIVE_DISTILL].n, 0);
        }
        test_copy_assert_equal(&before, &f.m, "model.guard");
        assert_true(guard_at(&f, 1)->slates > 55);
        test_copy_free(&before, &f.m);
        test_model_close(&f.m);
    }
}

static void the_guard_opens_for_a_version_that_knows_and_for_no_other(void **state)
{
    (void)state;
    for (int shape = 0; shape < SHAPES; shape++) {
        struct two_tower_options o = guarded_options(shape, false);
        struct fixture f;
        struct test_copy before;
        int opened = 0;
        start_with(&f, &o);
        test_copy_take(&before, &f.m);
        for (int i = 1; i <= 40 && !opened; i++) {
            informative_fill(&f, (uint64_t)i, 1, true);
            // What the slate itself says comes after it was used.
            const double scale = reward_guard_scale(guard_at(&f, 1), &o.objectives.guard);
            slates_learn(&f);
            assert_true(f.report.guard == (double)(float)scale);
            if (f.report.guard > 0)
                opened = i;
            else
                test_copy_assert_equal(&before, &f.m, "model.guard");
        }
        assert_in_range(opened, 10, 15); // 3 standard errors want more than 9 slates
        assert_int_equal(f.report.term[OBJECTIVE_DISTILL].n, 1);
        const float *now = test_floats(&f.m.tables->user_vector, 0);
        for (int i = 0; i < f.m.columns.n; i++)
            if (f.m.columns.list[i] == &f.m.tables->user_vector)
                assert_memory_not_equal(now, before.bytes[i], USERS * DIM * sizeof *now);
        // The next version starts from nothing.
        test_copy_free(&before, &f.m);
        test_copy_take(&before, &f.m);
        informative_fill(&f, 99, 2, true);
        slates_learn(&f);
        assert_true(f.report.guard == 0);
        test_copy_assert_equal(&before, &f.m, "model.guard");
        assert_true(guard_at(&f, 2)->slates == 1);
        assert_true(guard_at(&f, 0)->slates == 0 && guard_at(&f, 3)->slates == 0);
        test_copy_free(&before, &f.m);
        test_model_close(&f.m);
    }
}

static void the_guard_scales_the_gradient(void **state)
{
    (void)state;
    struct two_tower_options o = plain_options(SHAPE_RECIPE);
    struct fixture f;
    struct test_step guarded, free_step;
    distill_listwise_on(&o.objectives);
    o.objectives.align.guard = true;
    o.objectives.guard =
        (struct reward_guard_options){.half_life = 1000, .confidence = 3, .weight_max = 10};
    start_with(&f, &o);
    parameters_fill(&f.m, 11);
    for (int i = 1; i <= 30; i++) {
        struct test_copy before;
        test_copy_take(&before, &f.m);
        informative_fill(&f, (uint64_t)i, 1, true);
        slates_learn(&f);
        const struct reward_guard learned = *guard_at(&f, 1);
        test_copy_put_back(&before, &f.m);
        memcpy(test_floats(test_column(&f.m, "model.guard"), 1), &learned, sizeof learned);
        test_copy_free(&before, &f.m);
    }
    test_step_take(&guarded, &f.m, slates_learn, &f);
    const double scale = f.report.guard;
    assert_true(scale > 0.1 && scale < 0.9);
    // Certain of itself: a scale of 1.
    const struct reward_guard certain = {1e6, 1, 1e6, 1e6, 1e6, 1e6};
    memcpy(test_floats(test_column(&f.m, "model.guard"), 1), &certain, sizeof certain);
    test_step_take(&free_step, &f.m, slates_learn, &f);
    assert_true(f.report.guard > 0.9999);
    const struct column *c = &f.m.tables->item_vector;
    for (size_t k = 0; k < test_numbers(c); k++) {
        const double all = (double)test_step_gradient(&free_step, &f.m, c, k);
        assert_true(fabs((double)test_step_gradient(&guarded, &f.m, c, k) - scale * all) < 1e-5);
    }
    test_step_free(&guarded, &f.m);
    test_step_free(&free_step, &f.m);
    test_model_close(&f.m);
}

static void the_proxy_has_a_guard_of_its_own_and_learns_before_it_is_followed(void **state)
{
    (void)state;
    for (int shape = 0; shape < SHAPES; shape++) {
        struct two_tower_options o = guarded_options(shape, true);
        struct fixture f;
        struct test_copy before;
        start_with(&f, &o);
        test_copy_take(&before, &f.m);
        informative_fill(&f, 1, 1, true);
        slates_learn(&f);
        assert_int_equal(f.report.term[OBJECTIVE_PROXY].n, 1);
        assert_int_equal(f.report.term[OBJECTIVE_ALIGN].n, 0);
        for (int i = 0; i < f.m.columns.n; i++) {
            const struct column *c = f.m.columns.list[i];
            const bool own = strcmp(c->name, "model.heads") == 0 ||
                             strcmp(c->name, "model.guard") == 0 ||
                             strcmp(c->name, "model.objectives") == 0;
            if ((memcmp(c->base, before.bytes[i], c->n * c->unit) != 0) != own)
                fail_msg("%s: %s", shape_names[shape], c->name);
        }
        assert_true(guard_at(&f, 0)->slates == 1 && guard_at(&f, 1)->slates == 1);
        test_copy_free(&before, &f.m);
        test_model_close(&f.m);
    }
}

// ---- Which slates are read by whom.

static void every_term_on(struct objective_options *o)
{
    all_by_proxy_on(o);
    o->align.guard = true;
    // Open from the start, for whoever has once agreed.
    o->guard = (struct reward_guard_options){.half_life = 1000, .confidence = 0, .weight_max = 10};
}

static void only_closed_slates_are_read(void **state)
{
    (void)state;
    for (int shape = 0; shape < SHAPES; shape++)
        for (int kind = SLATE_EARLY; kind <= SLATE_LATE_POSITIVE; kind++) {
            struct fixture f;
            struct test_copy before;
            start_adaptive(&f, shape, every_term_on);
            learn(&f, 2);
            input_fill(&f.in, 23);
            for (int i = 0; i < f.in.n; i++)
                f.in.slates[i].kind = (uint8_t)kind;
            test_copy_take(&before, &f.m);
            slates_learn(&f);
            for (int t = 0; t < OBJECTIVES; t++)
                assert_int_equal(f.report.term[t].n, 0);
            assert_int_equal(f.report.unscored, 0);
            test_copy_assert_equal(&before, &f.m, NULL);
            test_copy_free(&before, &f.m);
            test_model_close(&f.m);
        }
}

static void a_repeated_slate_is_read_by_what_follows_the_teacher_alone(void **state)
{
    (void)state;
    for (int shape = 0; shape < SHAPES; shape++) {
        struct fixture f;
        start_adaptive(&f, shape, every_term_on);
        learn(&f, 2);
        informative_fill(&f, 5, 4, true);
        slates_learn(&f);
        const double closed = guard_at(&f, 0)->slates;
        f.in.slates[0].repeated = 1;
        f.in.slates[0].ranker = 5;
        slates_learn(&f);
        slates_learn(&f); // by now the guard of version 5 is open
        assert_int_equal(f.report.term[OBJECTIVE_PREFERENCE].n, 0);
        assert_int_equal(f.report.term[OBJECTIVE_RANKER].n, 0);
        assert_int_equal(f.report.term[OBJECTIVE_PROXY].n, 0);
        assert_int_equal(f.report.term[OBJECTIVE_DISTILL].n, 1);
        assert_int_equal(f.report.term[OBJECTIVE_RANKER_DISTILL].n, 1);
        assert_int_equal(f.report.term[OBJECTIVE_TRUST].n, 1);
        assert_true(guard_at(&f, 0)->slates == closed);
        assert_true(guard_at(&f, 4)->slates == 1 && guard_at(&f, 5)->slates > 1.9);
        test_model_close(&f.m);
    }
}

// ---- What is not finite.

static void a_step_that_is_not_finite_changes_nothing(void **state)
{
    (void)state;
    static const struct {
        const char *column;
        size_t at; // float of it
        float value;
    } cases[] = {
        {"item.vector", 7 * DIM + 2, NAN},
        {"item.vector", 2 * DIM, INFINITY},
        {"user.vector", 1, NAN},
        {"user.vector", 3, 3e38f},
        {"item.state", 7 * sizeof(struct item_state) / sizeof(float), NAN},
        {"item.state", 7 * sizeof(struct item_state) / sizeof(float), INFINITY},
        {"model.heads", 5, NAN},
        {"model.heads", 5, -INFINITY},
        {"model.dense", 1, NAN},
    };
    for (int shape = 0; shape < SHAPES; shape++)
        for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
            struct fixture f;
            struct test_copy before;
            start_adaptive(&f, shape, all_on);
            learn(&f, 2);
            input_fill(&f.in, 23);
            f.in.slates[0].user = 0;
            float *at = test_floats(test_column(&f.m, cases[c].column), 0) + cases[c].at;
            const float was = *at;
            *at = cases[c].value;
            test_copy_take(&before, &f.m);
            const uint64_t skipped = test_state(&f.m)->skipped;
            slates_learn(&f);
            if (!f.report.skipped || test_state(&f.m)->skipped != skipped + 1)
                fail_msg("%s: learned from %g in %s", shape_names[shape], (double)cases[c].value,
                         cases[c].column);
            test_state(&f.m)->skipped = skipped;
            test_copy_assert_equal(&before, &f.m, NULL);
            *at = was;
            learn(&f, 1); // nothing is left of it in the scratch memory
            test_copy_free(&before, &f.m);
            test_model_close(&f.m);
        }
}

static void a_score_that_is_not_finite_counts_as_none(void **state)
{
    (void)state;
    static const float values[] = {INFINITY, -INFINITY, 3e38f};
    for (int t = 0; t < TERMS; t++)
        for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
            struct fixture a, b;
            start_adaptive(&a, SHAPE_RECIPE, terms[t].on);
            start_adaptive(&b, SHAPE_RECIPE, terms[t].on);
            for (int k = 0; k < TASKS; k++) {
                a.in.scores[2 * TASKS + k] = NAN;
                b.in.scores[2 * TASKS + k] = values[v];
            }
            if (terms[t].on == ranker_logits_on && values[v] == 3e38f)
                b.in.scores[2 * TASKS] = b.in.scores[2 * TASKS + 1] = b.in.scores[2 * TASKS + 2] =
                    INFINITY; // a logit may be large
            slates_learn(&a);
            slates_learn(&b);
            assert_false(a.report.skipped || b.report.skipped);
            assert_same(&a.m, &b.m, NULL);
            test_model_close(&a.m);
            test_model_close(&b.m);
        }
}

// ---- Order.

static void a_step_is_repeated_to_the_bit(void **state)
{
    (void)state;
    for (int shape = 0; shape < SHAPES; shape++)
        for (int by = 0; by < 2; by++) {
            struct fixture a, b, c;
            struct test_copy copy;
            start_adaptive(&a, shape, by ? every_term_on : all_on);
            start_adaptive(&b, shape, by ? every_term_on : all_on);
            learn(&a, 5);
            learn(&b, 3);
            // The other one is carried over on the way, as by a restart.
            start_adaptive(&c, shape, by ? every_term_on : all_on);
            test_copy_take(&copy, &b.m);
            for (int i = 0; i < b.m.columns.n; i++) {
                struct column *to = c.m.columns.list[i];
                memcpy(column_restore(to, copy.n[i]), copy.bytes[i], copy.n[i] * to->unit);
            }
            for (int i = 3; i < 5; i++) {
                input_fill(&c.in, 100 + (uint64_t)i);
                slates_learn(&c);
                batch_learn(&c);
            }
            assert_same(&a.m, &c.m, NULL);
            test_copy_free(&copy, &b.m);
            test_model_close(&a.m);
            test_model_close(&b.m);
            test_model_close(&c.m);
        }
}

static void items_reverse(struct input *in)
{
    for (int i = 0; i < in->n; i++) {
        struct slate *slate = &in->slates[i];
        float *scores = in->scores + i * SLATE_ITEMS_MAX * TASKS;
        for (int a = 0, b = slate->n_items - 1; a < b; a++, b--) {
            const struct slate_item item = slate->items[a];
            slate->items[a] = slate->items[b];
            slate->items[b] = item;
            for (int t = 0; t < TASKS; t++) {
                const float score = scores[a * TASKS + t];
                scores[a * TASKS + t] = scores[b * TASKS + t];
                scores[b * TASKS + t] = score;
            }
        }
    }
}

static void slates_reverse(struct input *in)
{
    const struct input was = *in;
    for (int i = 0; i < in->n; i++) {
        const int from = in->n - 1 - i;
        enum { SCORES = SLATE_ITEMS_MAX * TASKS };
        in->slates[i] = was.slates[from];
        memcpy(in->scores + i * SCORES, was.scores + from * SCORES, SCORES * sizeof *in->scores);
        memcpy(in->features + i * UF, was.features + from * UF, UF * sizeof *in->features);
    }
}

// Sums are taken in another order: the same but for rounding. Only the guards remember which slate
// came last.
static void the_order_of_items_and_slates_does_not_matter(void **state)
{
    (void)state;
    static void (*const orders[])(struct input *) = {items_reverse, slates_reverse};
    for (int shape = 0; shape < SHAPES; shape++)
        for (int order = 0; order < 2; order++)
            for (int t = 0; t < TERMS; t++) {
                struct fixture f;
                struct test_step as_it_is, reversed;
                start(&f, shape, terms[t].on);
                test_step_take(&as_it_is, &f.m, slates_learn, &f);
                const struct slate_report first = f.report;
                orders[order](&f.in);
                test_step_take(&reversed, &f.m, slates_learn, &f);
                for (int k = 0; k < OBJECTIVES; k++) {
                    const double loss = first.term[k].loss;
                    assert_int_equal(first.term[k].n, f.report.term[k].n);
                    assert_true(fabs(loss - f.report.term[k].loss) <= 1e-5 * (1 + fabs(loss)));
                }
                const struct tables *tables = f.m.tables;
                const struct column *c[] = {&tables->item_vector, &tables->user_vector,
                                            &tables->dense, test_column(&f.m, "model.heads")};
                for (int i = 0; i < 4 && c[i]; i++)
                    for (size_t k = 0; k < test_numbers(c[i]); k++) {
                        const double x = (double)test_step_gradient(&as_it_is, &f.m, c[i], k);
                        const double y = (double)test_step_gradient(&reversed, &f.m, c[i], k);
                        if (!(fabs(x - y) <= 1e-4 * (1 + fabs(x))))
                            fail_msg("%s, %s: %s[%zu] %g, %g", shape_names[shape], terms[t].name,
                                     c[i]->name, k, x, y);
                    }
                test_step_free(&as_it_is, &f.m);
                test_step_free(&reversed, &f.m);
                test_model_close(&f.m);
            }
}

// ---- What was published.

static void right_after_a_publication_the_reference_is_the_model(void **state)
{
    (void)state;
    static void (*const dpo_on[])(struct objective_options *) = {preference_dpo_on, align_dpo_on};
    static const enum objective dpo_of[] = {OBJECTIVE_PREFERENCE, OBJECTIVE_ALIGN};
    for (int shape = 0; shape < SHAPES; shape++) {
        struct fixture f;
        struct test_step step;
        start(&f, shape, trust_on);
        slates_learn(&f);
        const double apart = f.report.term[OBJECTIVE_TRUST].loss;
        assert_true(apart > 1e-3);
        two_tower_published(f.m.model);
        test_step_take(&step, &f.m, slates_learn, &f);
        assert_true(fabs(f.report.term[OBJECTIVE_TRUST].loss) < 1e-10);
        for (size_t k = 0; k < test_numbers(&f.m.tables->item_vector); k++)
            assert_true(fabsf(test_step_gradient(&step, &f.m, &f.m.tables->item_vector, k)) <
                        1e-5f);
        test_step_free(&step, &f.m);
        for (int i = 0; i < 3; i++)
            batch_learn(&f);
        slates_learn(&f);
        assert_true(f.report.term[OBJECTIVE_TRUST].loss > 1e-4);
        test_model_close(&f.m);

        for (int t = 0; t < 2; t++) { // every pair is even then
            start(&f, shape, dpo_on[t]);
            two_tower_published(f.m.model);
            slates_learn(&f);
            const struct objective_report *term = &f.report.term[dpo_of[t]];
            assert_true(term->n > 0 && fabs(term->loss - term->n * log(2)) < 1e-5);
            slates_learn(&f); // and it is learned from there
            assert_true(term->loss < term->n * log(2) - 1e-3);
            test_model_close(&f.m);
        }
    }
}

// The reference that the model keeps, read by its columns.
static struct reference reference_of(const struct fixture *f)
{
    return (struct reference){.options = &f->o,
                              .tables = f->m.tables,
                              .item = *test_column(&f->m, "reference.item"),
                              .user = *test_column(&f->m, "reference.user"),
                              .dense = *test_column(&f->m, "reference.dense"),
                              .state = *test_column(&f->m, "reference.state")};
}

static void every_row_that_a_step_changes_was_saved(void **state)
{
    (void)state;
    for (int shape = 0; shape < SHAPES; shape++) {
        struct two_tower_options o = adaptive_options(shape);
        struct fixture f;
        o.uniform_negatives = 4;
        all_on(&o.objectives);
        start_with(&f, &o);
        learn(&f, 3);
        two_tower_published(f.m.model);
        struct test_copy then;
        test_copy_take(&then, &f.m);
        learn(&f, 6);
        if (shape == SHAPE_RECIPE)
            assert_false(two_tower_replay(f.m.model, BATCH, batch).skipped);
        const struct reference r = reference_of(&f);
        const struct view view = reference_view(&r);
        for (int i = 0; i < f.m.columns.n; i++) {
            const struct column *c = f.m.columns.list[i];
            const struct tables *t = f.m.tables;
            for (uint32_t row = 0; c == &t->item_vector && row < ITEMS; row++)
                assert_memory_equal(reference_item_vector(&r, row), then.bytes[i] + row * c->unit,
                                    c->unit);
            for (uint32_t row = 0; c == &t->item_vector && tables_have_contexts(t) && row < ITEMS;
                 row++)
                assert_memory_equal(reference_item_context(&r, row),
                                    then.bytes[i] + row * c->unit + DIM * sizeof(float),
                                    DIM * sizeof(float));
            for (uint32_t row = 0; c == &t->item_state && row < ITEMS; row++)
                assert_memory_equal(reference_item_state(&r, row), then.bytes[i] + row * c->unit,
                                    c->unit);
            for (uint32_t row = 0; c == &t->user_vector && row < USERS; row++)
                assert_memory_equal(reference_user_vector(&r, row), then.bytes[i] + row * c->unit,
                                    c->unit);
            if (c == &t->dense)
                assert_memory_equal(view.dense, then.bytes[i], t->dense_size * sizeof(float));
            if (c == &t->state)
                assert_memory_equal(view.state, then.bytes[i], c->unit);
        }
        assert_int_equal(view.items_known, ITEMS);
        test_copy_free(&then, &f.m);
        test_model_close(&f.m);
    }
}

static void a_row_with_a_new_owner_is_compared_with_that_ones_start(void **state)
{
    (void)state;
    for (int shape = 0; shape < SHAPES; shape++) {
        struct fixture f;
        start_adaptive(&f, shape, all_on);
        learn(&f, 3); // all rows have been saved for their former owners
        id_table_remove(&f.m.items, 7);
        id_table_remove(&f.m.users, 1);
        assert_int_equal(test_item(&f.m, 70), 7);
        assert_int_equal(test_user(&f.m, 70), 1);
        float item[DIM], user[DIM];
        memcpy(item, test_floats(&f.m.tables->item_vector, 7), sizeof item);
        memcpy(user, test_floats(&f.m.tables->user_vector, 1), sizeof user);
        for (int i = 0; i < 2; i++) {
            const struct reference r = reference_of(&f);
            assert_memory_equal(reference_item_vector(&r, 7), item, sizeof item);
            assert_memory_equal(reference_user_vector(&r, 1), user, sizeof user);
            assert_true(reference_item_state(&r, 7)->bias == 0);
            learn(&f, 5);
            assert_memory_not_equal(test_floats(&f.m.tables->item_vector, 7), item, sizeof item);
            assert_memory_not_equal(test_floats(&f.m.tables->user_vector, 1), user, sizeof user);
        }
        test_model_close(&f.m);
    }
}

static void a_cut_is_read_as_it_was_while_slates_are_learned(void **state)
{
    (void)state;
    for (int shape = 0; shape < SHAPES; shape++) {
        struct fixture f;
        struct test_copy cut;
        start_adaptive(&f, shape, every_term_on);
        learn(&f, 2);
        test_copy_take(&cut, &f.m);
        columns_cut(&f.m.columns);
        learn(&f, 2);
        two_tower_published(f.m.model);
        id_table_remove(&f.m.items, 4);
        test_item(&f.m, 40);
        test_user(&f.m, 40);
        learn(&f, 1);
        for (int i = 0; i < f.m.columns.n; i++) {
            struct column *c = f.m.columns.list[i];
            unsigned char *swept = malloc(c->n_cut * c->unit + 1);
            assert_int_equal(c->n_cut, cut.n[i]);
            column_sweep(c, 0, c->n_cut, swept);
            if (memcmp(swept, cut.bytes[i], c->n_cut * c->unit) != 0)
                fail_msg("%s: column %s was changed behind the cut's back", shape_names[shape],
                         c->name);
            free(swept);
        }
        columns_cut_end(&f.m.columns);
        test_copy_free(&cut, &f.m);
        test_model_close(&f.m);
    }
}

// ---- Sizes.

static void the_largest_step_fits_its_scratch_memory(void **state)
{
    (void)state;
    static struct slate slates[SLATES_MAX];
    static float scores[SLATES_MAX * SLATE_ITEMS_MAX * SLATE_TASKS_MAX], features[SLATES_MAX * UF];
    for (int shape = 0; shape < SHAPES; shape++)
        for (int tasks = 1; tasks <= SLATE_TASKS_MAX; tasks++) {
            struct two_tower_options o = adaptive_options(shape);
            struct test_model m;
            struct rng rng = {(uint64_t)tasks, 0};
            o.dim = (shape == SHAPE_FULL ? 4 : 1) * (1 + tasks % 3) + (shape == SHAPE_PLAIN);
            (tasks % 2 ? all_on : all_by_proxy_on)(&o.objectives);
            o.objectives.tasks = tasks;
            o.objectives.slates = SLATES_MAX;
            o.objectives.ranker.heads = 1 + tasks % LIGHT_RANKER_HEADS_MAX;
            o.objectives.distill.top = SLATE_ITEMS_MAX + 1;
            for (int t = 0; t < tasks; t++)
                o.objectives.value[t] = t % 2 ? -0.5f : 1;
            rng_fill_uniform(&rng, features, SLATES_MAX * UF, -1, 1);
            test_model_open(&m, &o, TEST_ROWS_MAX, TEST_ROWS_MAX);
            for (int i = 0; i < SLATES_MAX; i++) {
                struct slate *slate = &slates[i];
                *slate = (struct slate){.user = (uint32_t)i,
                                        .ranker = (uint8_t)(255 - i % 2),
                                        .surface = (uint8_t)(i % SURFACES_MAX),
                                        .n_items = SLATE_ITEMS_MAX,
                                        .n_history = HISTORY_MAX,
                                        .n_newest = HISTORY_MAX};
                for (int k = 0; k < HISTORY_MAX; k++)
                    slate->history[k] = (uint32_t)rng_below(&rng, TEST_ROWS_MAX);
                for (int k = 0; k < SLATE_ITEMS_MAX; k++)
                    slate->items[k] =
                        (struct slate_item){.item = (uint32_t)((k + i) % TEST_ROWS_MAX),
                                            .position = INT16_MAX,
                                            .shown = 1,
                                            .labels = (uint32_t)rng_below(&rng, 1u << tasks)};
            }
            for (size_t k = 0; k < sizeof scores / sizeof *scores; k++)
                scores[k] = rng_float(&rng);
            for (int step = 0; step < 2; step++) {
                const struct slate_report report = two_tower_learn_slates(
                    m.model, SLATES_MAX, slates, scores, o.user_features ? features : NULL);
                assert_false(report.skipped);
                assert_int_equal(report.slates, SLATES_MAX);
                assert_int_equal(report.term[OBJECTIVE_TRUST].n, SLATES_MAX);
                assert_int_equal(report.term[OBJECTIVE_RANKER].n, SLATES_MAX);
                assert_int_equal(report.term[OBJECTIVE_DISTILL].n, SLATES_MAX);
            }
            test_model_close(&m);
        }
}

static void a_slate_of_no_items_does_no_harm(void **state)
{
    (void)state;
    for (int shape = 0; shape < SHAPES; shape++) {
        struct fixture f;
        struct test_copy before;
        start_adaptive(&f, shape, all_by_proxy_on);
        test_copy_take(&before, &f.m);
        f.in.n = 1;
        f.in.slates[0].n_items = 0;
        slates_learn(&f);
        assert_false(f.report.skipped);
        test_copy_assert_equal(&before, &f.m, NULL);
        test_copy_free(&before, &f.m);
        test_model_close(&f.m);
    }
}

static void heads_are_published_by_name_from_where_they_lie(void **state)
{
    (void)state;
    struct objective_options o = plain_options(SHAPE_RECIPE).objectives;
    struct dense_parameter p;
    assert_false(objectives_parameter(&o, DIM, 0, &p));
    ranker_distill_on(&o);
    size_t end = 0;
    int n = 0;
    for (; objectives_parameter(&o, DIM, n, &p); n++) {
        assert_true(p.offset == end && p.rows > 0 && p.columns > 0);
        end += (size_t)p.rows * (size_t)p.columns;
    }
    assert_int_equal(n, 7);
    assert_true(end <= objectives_heads_size(&o, DIM));
    assert_int_equal(objectives_heads_size(&o, DIM) % DIM, 0);
    o.slates = 0;
    assert_false(objectives_parameter(&o, DIM, 0, &p));
}

// ---- Faults of the systems this one follows.

// There the training step of distillation is an empty method.
static void distillation_brings_the_model_nearer_to_its_ranker(void **state)
{
    (void)state;
    for (int shape = 0; shape < SHAPES; shape++) {
        struct two_tower_options o = plain_options(shape);
        struct fixture f;
        distill_listwise_on(&o.objectives);
        ranker_distill_on(&o.objectives);
        start_with(&f, &o);
        slates_learn(&f);
        const double listwise = f.report.term[OBJECTIVE_DISTILL].loss;
        const double pointwise = f.report.term[OBJECTIVE_RANKER_DISTILL].loss;
        assert_true(f.report.term[OBJECTIVE_DISTILL].query_norm > 0.01);
        assert_true(f.report.term[OBJECTIVE_DISTILL].item_norm > 0.01);
        for (int i = 0; i < 50; i++)
            slates_learn(&f);
        assert_true(f.report.term[OBJECTIVE_DISTILL].loss < 0.5 * listwise);
        assert_true(f.report.term[OBJECTIVE_RANKER_DISTILL].loss < 0.95 * pointwise);
        test_model_close(&f.m);
    }
}

// There it is no member of the model: neither moved by the optimizer nor saved.
static void the_proxy_ranker_learns_and_is_kept_in_a_column(void **state)
{
    (void)state;
    struct fixture f, restored;
    start(&f, SHAPE_RECIPE, align_proxy_on);
    start(&restored, SHAPE_RECIPE, align_proxy_on);
    const struct column *heads = test_column(&f.m, "model.heads");
    const size_t bytes = objectives_heads_size(&f.o.objectives, DIM) * sizeof(float);
    float before[512];
    assert_true(bytes <= sizeof before && bytes <= heads->n * heads->unit);
    memcpy(before, heads->base, bytes);
    slates_learn(&f);
    const double loss = f.report.term[OBJECTIVE_PROXY].loss;
    for (int t = 0; t < TASKS; t++) // each task's weights
        assert_memory_not_equal(before + t * (2 * DIM + 1), heads_of(&f) + t * (2 * DIM + 1),
                                (2 * DIM + 1) * sizeof *before);
    for (int i = 0; i < 100; i++)
        slates_learn(&f);
    assert_true(f.report.term[OBJECTIVE_PROXY].loss < 0.8 * loss);
    // A model with its columns goes on from there.
    for (int i = 0; i < f.m.columns.n; i++) {
        const struct column *c = f.m.columns.list[i];
        memcpy(column_restore(restored.m.columns.list[i], c->n), c->base, c->n * c->unit);
    }
    slates_learn(&f);
    slates_learn(&restored);
    assert_true(f.report.term[OBJECTIVE_PROXY].loss == restored.report.term[OBJECTIVE_PROXY].loss);
    assert_true(f.report.term[OBJECTIVE_ALIGN].loss == restored.report.term[OBJECTIVE_ALIGN].loss);
    assert_same(&f.m, &restored.m, NULL);
    test_model_close(&f.m);
    test_model_close(&restored.m);
}

// There the mean of the divergence is taken over all pairs, so that a long slate says less.
static void a_divergence_is_one_of_a_slate_however_long_it_is(void **state)
{
    (void)state;
    static void (*const on[])(struct objective_options *) = {align_kl_on, distill_listwise_on,
                                                             trust_on};
    static const enum objective which[] = {OBJECTIVE_ALIGN, OBJECTIVE_DISTILL, OBJECTIVE_TRUST};
    for (int t = 0; t < 3; t++) {
        struct fixture f;
        double alone[2];
        start(&f, SHAPE_RECIPE, on[t]);
        parameters_fill(&f.m, 11);
        f.in.n = 2; // of 7 and of 5 items
        const struct input both = f.in;
        for (int i = 0; i < 2; i++) {
            struct test_step step;
            f.in = both;
            f.in.n = 1;
            f.in.slates[0] = both.slates[i];
            memcpy(f.in.scores, both.scores + i * SLATE_ITEMS_MAX * TASKS,
                   SLATE_ITEMS_MAX * TASKS * sizeof *f.in.scores);
            test_step_take(&step, &f.m, slates_learn, &f);
            alone[i] = f.report.term[which[t]].loss;
            assert_true(alone[i] > 0);
            test_step_free(&step, &f.m);
        }
        f.in = both;
        slates_learn(&f);
        assert_true(fabs(f.report.term[which[t]].loss - alone[0] - alone[1]) < 1e-6);
        test_model_close(&f.m);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_step_is_the_gradient_of_each_term_and_of_all),
        cmocka_unit_test(a_term_that_is_off_leaves_what_a_model_without_it_has),
        cmocka_unit_test(without_slates_no_column_is_opened),
        cmocka_unit_test(slates_that_no_term_reads_leave_the_towers_as_without_slates),
        cmocka_unit_test(a_slate_without_anything_to_say_moves_nothing),
        cmocka_unit_test(a_silent_slate_among_others_moves_nothing_of_its_own),
        cmocka_unit_test(a_head_with_stopped_gradient_learns_and_the_towers_do_not_know),
        cmocka_unit_test(a_version_that_has_not_proven_itself_moves_no_tower),
        cmocka_unit_test(the_guard_opens_for_a_version_that_knows_and_for_no_other),
        cmocka_unit_test(the_guard_scales_the_gradient),
        cmocka_unit_test(the_proxy_has_a_guard_of_its_own_and_learns_before_it_is_followed),
        cmocka_unit_test(only_closed_slates_are_read),
        cmocka_unit_test(a_repeated_slate_is_read_by_what_follows_the_teacher_alone),
        cmocka_unit_test(a_step_that_is_not_finite_changes_nothing),
        cmocka_unit_test(a_score_that_is_not_finite_counts_as_none),
        cmocka_unit_test(a_step_is_repeated_to_the_bit),
        cmocka_unit_test(the_order_of_items_and_slates_does_not_matter),
        cmocka_unit_test(right_after_a_publication_the_reference_is_the_model),
        cmocka_unit_test(every_row_that_a_step_changes_was_saved),
        cmocka_unit_test(a_row_with_a_new_owner_is_compared_with_that_ones_start),
        cmocka_unit_test(a_cut_is_read_as_it_was_while_slates_are_learned),
        cmocka_unit_test(the_largest_step_fits_its_scratch_memory),
        cmocka_unit_test(a_slate_of_no_items_does_no_harm),
        cmocka_unit_test(heads_are_published_by_name_from_where_they_lie),
        cmocka_unit_test(distillation_brings_the_model_nearer_to_its_ranker),
        cmocka_unit_test(the_proxy_ranker_learns_and_is_kept_in_a_column),
        cmocka_unit_test(a_divergence_is_one_of_a_slate_however_long_it_is),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
