// SPDX-License-Identifier: Apache-2.0
#include "model/two_tower.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/gemm.h"
#include "model/kernels.h"
#include "model/recipe.h"
#include "model/reference.h"
#include "model/rng.h"
#include "model/row_weights.h"
#include "model/towers.h"

struct two_tower {
    struct two_tower_options options;
    const struct id_table *items, *users;
    struct tables tables;
    struct towers *towers;
    struct column value;         // one struct model_values; with tasks_named only
    struct model_values values;  // at the start, and for good without it
    struct row_weights *weights; // NULL when all are 1
    // With objectives.slates only.
    struct objectives *objectives;
    struct reference reference;
    bool referenced;
    // A step of slates: (slates) queries, (slates + 1) and (slates * SLATE_ITEMS_MAX) rows.
    struct example *contexts;
    int *first;
    uint32_t *slot;
    float *s, *ref, *ds;
    // Of a measured step; taken with options.measured only.
    float *measured_Q, *measured_scores; // (MEASURED_MAX, d), (MEASURED_MAX, candidates_max)
    uint32_t *every;                     // 0, 1 .. candidates_max - 1
};

enum { MEASURED_MAX = 64 }; // examples of a step

static const struct towers_kind *const kinds[] = {
    [MODEL_RECIPE] = &recipe_kind, [MODEL_TWO_TOWER] = &classic_kind};

// ---- Opening.

static bool has_heads(const struct two_tower_options *o)
{
    return objectives_heads_size(&o->objectives, o->dim) > 0;
}

// Which optimizer a group of parameters has. The kinds name the groups that they update; that the
// two lists agree is what optimizer_covers sees to.
static int optimizer_choices(const struct two_tower_options *o, struct optimizer_choice *choices)
{
    const bool recipe = o->kind == MODEL_RECIPE;
    const struct {
        struct optimizer_choice choice;
        bool made;
    } all[] = {
        {{"item rows", &o->table}, true},
        {{"item contexts", &o->table}, recipe},
        {{"user rows", &o->table}, !o->onebp},
        {{"biases", &o->table}, true},
        {{"matrices", &o->matrix}, true},
        {{"scalars", &o->scalar}, recipe},
        {{"heads", &o->objectives.head}, has_heads(o)},
    };
    int n = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i].made)
            choices[n++] = all[i].choice;
    return n;
}

enum { GROUPS_MAX = 16 };

const char *two_tower_refuses(const struct two_tower_options *o, char *text, size_t size)
{
    const char *groups[GROUPS_MAX], *group;
    struct optimizer_choice choices[GROUPS_MAX];
    int n = 0;
    if (o->onebp && o->kind != MODEL_RECIPE) {
        snprintf(text, size, "users move towards items only where both share a space: the recipe");
        return text;
    }
    if (o->objectives.slates > 0 && o->objectives.ranker.weight > 0 &&
        o->dim > LIGHT_RANKER_WIDTH_MAX) {
        snprintf(text, size, "a light ranker needs a width of at most %d", LIGHT_RANKER_WIDTH_MAX);
        return text;
    }
    while (n < GROUPS_MAX - 1 && (group = kinds[o->kind]->group(o, n)))
        groups[n++] = group;
    if (has_heads(o))
        groups[n++] = "heads";
    assert(n <= GROUPS_MAX);
    const int chosen = optimizer_choices(o, choices);
    return optimizer_covers(n, groups, chosen, choices, text, size) ? NULL : text;
}

static int values_open(struct two_tower *m, struct columns *s)
{
    memcpy(m->values.weight, m->options.objectives.value, sizeof m->values.weight);
    if (!m->options.tasks_named)
        return 0;
    const int rc = column_open(&m->value, s, "model.value", sizeof m->values, 1);
    if (rc < 0)
        return rc;
    column_grow(&m->value, 1);
    *(struct model_values *)column_edit(&m->value, 0) = m->values;
    return 0;
}

static int slates_open(struct two_tower *m, struct columns *s)
{
    const struct objective_options *o = &m->options.objectives;
    const size_t n = (size_t)o->slates, rows = n * SLATE_ITEMS_MAX;
    assert(o->slates <= SLATES_MAX && o->tasks > 0 && o->tasks <= SLATE_TASKS_MAX);
    m->contexts = calloc(n, sizeof *m->contexts);
    m->first = calloc(n + 1, sizeof *m->first);
    m->slot = calloc(rows, sizeof *m->slot);
    m->s = calloc(rows, sizeof *m->s);
    m->ref = calloc(rows, sizeof *m->ref);
    m->ds = calloc(rows, sizeof *m->ds);
    if (!m->contexts || !m->first || !m->slot || !m->s || !m->ref || !m->ds)
        return -ENOMEM;
    int rc = objectives_open(&m->objectives, s, o, two_tower_values(m)->weight, m->options.dim,
                             m->options.seed);
    m->referenced = objectives_need_reference(o);
    if (rc == 0 && m->referenced) {
        rc = reference_open(&m->reference, s, &m->tables, &m->options, m->items->row.n_max,
                            m->users->row.n_max);
        if (rc == 0)
            two_tower_published(m);
    }
    return rc;
}

static int measuring_open(struct two_tower *m)
{
    const size_t C = (size_t)m->towers->candidates_max;
    m->measured_Q = calloc(MEASURED_MAX * (size_t)m->options.dim, sizeof *m->measured_Q);
    m->measured_scores = calloc(MEASURED_MAX * C, sizeof *m->measured_scores);
    m->every = calloc(C, sizeof *m->every);
    if (!m->measured_Q || !m->measured_scores || !m->every)
        return -ENOMEM;
    for (uint32_t c = 0; c < C; c++)
        m->every[c] = c;
    return 0;
}

int two_tower_open(struct two_tower **m_out, struct columns *s, const struct id_table *items,
                   const struct id_table *users, const struct two_tower_options *options)
{
    const struct two_tower_options *o = options;
    char why[160];
    assert(!two_tower_refuses(o, why, sizeof why));
    assert(optimizer_state_floats(&o->table, 1) <= 2 && optimizer_state_floats(&o->matrix, 1) <= 2);
    assert(o->dim > 0 && o->history <= HISTORY_MAX && o->repeat <= HISTORY_MAX && o->batch_max > 0);
    struct two_tower *m = calloc(1, sizeof *m);
    if (!m)
        return -ENOMEM;
    m->options = *options;
    m->items = items;
    m->users = users;
    int rc = tables_open(&m->tables, s, &m->options, kinds[o->kind]->dense_size(o),
                         items->row.n_max, users->row.n_max);
    const int slates = o->objectives.slates, shown = slates * SLATE_ITEMS_MAX;
    const int columns = o->batch_max + o->uniform_negatives;
    if (rc == 0) {
        const struct towers base = {.kind = kinds[o->kind],
                                    .options = &m->options,
                                    .tables = &m->tables,
                                    .items = items,
                                    .queries_max = o->batch_max > slates ? o->batch_max : slates,
                                    .candidates_max = columns > shown ? columns : shown};
        m->towers = base.kind->open(&base, items->row.n_max, users->row.n_max);
        rc = m->towers ? 0 : -ENOMEM;
    }
    if (rc == 0)
        rc = values_open(m, s);
    if (rc == 0 && o->measured > 0)
        rc = measuring_open(m);
    if (rc == 0 && row_weights_needed(o))
        rc = row_weights_open(&m->weights, s, &m->options, two_tower_values(m)->weight,
                              items->row.n_max, users->row.n_max);
    if (rc == 0 && slates > 0)
        rc = slates_open(m, s);
    if (rc < 0) {
        two_tower_close(m);
        return rc;
    }
    *m_out = m;
    return 0;
}

void two_tower_close(struct two_tower *m)
{
    if (!m)
        return;
    if (m->towers)
        m->towers->kind->close(m->towers);
    row_weights_close(m->weights);
    objectives_close(m->objectives);
    free(m->contexts);
    free(m->first);
    free(m->slot);
    free(m->s);
    free(m->ref);
    free(m->ds);
    free(m->measured_Q);
    free(m->measured_scores);
    free(m->every);
    free(m);
}

// ---- Rows that are new, and what is published.

// Rows start as a function of (seed, purpose, id): the order of arrival plays no part.
static void row_init(const struct two_tower_options *o, uint64_t purpose, uint64_t hash, float *row)
{
    struct rng rng = {rng_at(rng_key(o->seed, purpose), hash), 0};
    rng_fill_uniform(&rng, row, (size_t)o->dim, -o->init, o->init);
}

enum { PURPOSE_ITEM = 1, PURPOSE_USER = 2 };

void two_tower_item_created(struct two_tower *m, uint32_t row)
{
    struct tables *t = &m->tables;
    const struct two_tower_options *o = &m->options;
    float *vector = column_reach(&t->item_vector, row), *slots = column_reach(&t->item_slots, row);
    row_init(o, PURPOSE_ITEM, id_table_row(m->items, row)->hash, vector);
    optimizer_start(&o->table, t->dim, slots);
    if (tables_have_contexts(t)) { // starts at zero: an item says nothing until it has been seen
        memset(vector + t->dim, 0, t->dim * sizeof *vector);
        optimizer_start(&o->table, t->dim, slots + optimizer_state_floats(&o->table, t->dim));
    }
    struct item_state *state = column_reach(&t->item_state, row);
    *state = (struct item_state){.counted_at = tables_state(t)->examples};
    optimizer_start(&o->table, 1, state->bias_slots);
    // The recipe's column grows with the first items that have features.
    if (o->item_features > 0 && (o->kind == MODEL_TWO_TOWER || row < t->item_features.n))
        memset(column_reach(&t->item_features, row), 0, t->item_features.unit);
    if (tables_count_frequency(o))
        memset(column_reach(&t->item_frequency, row), 0, t->item_frequency.unit);
    if (m->weights)
        row_weights_item_created(m->weights, row);
    if (m->referenced)
        reference_item_created(&m->reference, row);
}

void two_tower_user_created(struct two_tower *m, uint32_t row)
{
    struct tables *t = &m->tables;
    row_init(&m->options, PURPOSE_USER, id_table_row(m->users, row)->hash,
             column_reach(&t->user_vector, row));
    if (!m->options.onebp)
        optimizer_start(&m->options.table, (size_t)m->options.dim,
                        column_reach(&t->user_slots, row));
    if (m->weights)
        row_weights_user_created(m->weights, row);
    if (m->referenced)
        reference_user_created(&m->reference, row);
}

// Whatever unit somebody measures in. The largest comes out first: squares may overflow.
static void length_one(int n, float *x)
{
    float largest = 0;
    for (int i = 0; i < n; i++)
        largest = fmaxf(largest, fabsf(x[i]));
    if (largest == 0)
        return;
    for (int i = 0; i < n; i++)
        x[i] /= largest;
    const float length = sqrtf(kernels->dot((size_t)n, x, x));
    for (int i = 0; i < n; i++)
        x[i] /= length;
}

void two_tower_item_features(struct two_tower *m, uint32_t row, int n, const float *features)
{
    const int width = m->options.item_features;
    if (width == 0 || n == 0)
        return;
    float given[width], *x = column_reach(&m->tables.item_features, row);
    memset(given, 0, sizeof given);
    memcpy(given, features, (size_t)(n < width ? n : width) * sizeof *given);
    if (m->options.kind == MODEL_RECIPE)
        length_one(width, given);
    if (memcmp(x, given, sizeof given) == 0)
        return; // told again
    memcpy(x, given, sizeof given);
    const struct item_state *state = column_at(&m->tables.item_state, row);
    if (m->options.kind == MODEL_RECIPE && state->count[COUNT_LOGQ] == 0) {
        float *vector = column_reach(&m->tables.item_vector, row);
        row_init(&m->options, PURPOSE_ITEM, id_table_row(m->items, row)->hash, vector);
        recipe_item_start(&m->options, tables_dense(&m->tables), x, vector);
    }
}

void two_tower_published(struct two_tower *m)
{
    if (m->referenced)
        reference_begin(&m->reference, id_table_state(m->items)->live);
}

// ---- The end of every step.

// Every row that the step may change is kept as the fleets have it.
static void rows_save(struct two_tower *m, const struct step *s)
{
    for (int c = 0; c < s->C; c++)
        reference_save_item(&m->reference, s->rows[c]);
    for (int i = 0; i < s->n; i++) {
        for (int k = 0; k < s->examples[i].n_history; k++)
            reference_save_item(&m->reference, s->examples[i].history[k]);
        reference_save_user(&m->reference, s->examples[i].user);
    }
}

// The end of a step: what the objectives found goes back through the towers. False when it was not
// finite: then nothing has changed but the count of such steps.
static bool step_finish(struct two_tower *m, struct step *s)
{
    struct model_state *state = column_edit(&m->tables.state, 0);
    if (!m->towers->kind->backward(m->towers, s) || !isfinite(s->loss)) {
        state->skipped++;
        return false;
    }
    if (m->referenced)
        rows_save(m, s);
    if (s->measured)
        s->squares = m->towers->kind->squares(m->towers, s);
    m->towers->kind->update(m->towers, s);
    state->steps++;
    return true;
}

// ---- Examples: how a batch of engagements becomes a loss, and the loss an update.

// Which steps are measured depends on their number alone. They are drawn, not counted off: every
// second step could always be one that replays.
static bool step_measured(const struct two_tower *m)
{
    const uint64_t key = rng_key(m->options.seed, UINT64_C(0x6d656173757265)); // "measure"
    struct rng rng = {rng_at(key, tables_state(&m->tables)->steps), 0};
    return m->options.measured > 0 && rng_float(&rng) < m->options.measured;
}

// The examples against the batch's candidates by the scores that are served: what softmax corrects,
// masks and mines has not happened yet.
static void batch_measure(struct two_tower *m, const struct step *s, struct batch_metrics *metrics)
{
    const int n = s->n < MEASURED_MAX ? s->n : MEASURED_MAX, C = s->C;
    const size_t d = (size_t)m->options.dim;
    for (int k = 0; k < n; k++) {
        const size_t i = (size_t)k * (size_t)s->n / (size_t)n;
        memcpy(m->measured_Q + (size_t)k * d, s->Q + i * d, d * sizeof(float));
        memcpy(m->measured_scores + (size_t)k * C, s->column, (size_t)C * sizeof(float));
    }
    gemm_nt(n, C, (int)d, m->measured_Q, s->V, m->measured_scores);
    for (int k = 0; k < n; k++) {
        const int i = (int)((size_t)k * (size_t)s->n / (size_t)n);
        float *scores = m->measured_scores + (size_t)k * C;
        if (m->towers->kind->repeat)
            m->towers->kind->repeat(m->towers, s, i, C, m->every, scores);
        batch_metrics_row(metrics, C, scores, (int)s->target[i],
                          s->weight ? (double)s->weight[i] : 1);
    }
}

static double norm(size_t n, const float *x)
{
    return sqrt((double)kernels->dot(n, x, x));
}

static struct step_report batch_learn(struct two_tower *m, int n, const struct example *examples,
                                      const float *features, bool fresh)
{
    struct towers *towers = m->towers;
    const struct towers_kind *kind = towers->kind;
    struct step s = {
        .n = n, .examples = examples, .features = features, .fresh = fresh, .replayed = !fresh};
    struct step_report report = {.examples = n, .replayed = !fresh};
    assert(n > 0 && n <= m->options.batch_max);

    // Everything is read as it was before the step.
    kind->begin(towers, &s);
    kind->candidates(towers, &s);
    if (s.n == 0)
        return report; // nothing but negatives
    kind->forward(towers, &s);
    if (m->weights)
        s.weight = row_weights_of(m->weights, &s); // predict first: the slates are learned later
    s.measured = report.measured = fresh && step_measured(m);
    if (s.measured)
        batch_measure(m, &s, &report.metrics);
    kind->softmax(towers, &s);

    report.candidates = s.C;
    report.loss = s.loss;
    report.masked = s.masked;
    report.retrieval =
        (struct objective_report){.loss = s.loss,
                                  .query_norm = norm((size_t)s.n * m->options.dim, s.dQ),
                                  .item_norm = norm((size_t)s.C * m->options.dim, s.dV),
                                  .n = s.n};
    report.skipped = !step_finish(m, &s);
    report.l2 = (double)m->options.table.l2 / 2 * s.squares;
    if (m->weights && fresh && !report.skipped)
        row_weights_update(m->weights, &s);
    if (fresh && !report.skipped)
        ((struct model_state *)column_edit(&m->tables.state, 0))->examples += (uint64_t)n;
    return report;
}

struct step_report two_tower_learn(struct two_tower *m, int n, const struct example *examples,
                                   const float *features)
{
    return batch_learn(m, n, examples, features, true);
}

struct step_report two_tower_replay(struct two_tower *m, int n, const struct example *examples)
{
    assert(m->options.kind == MODEL_RECIPE);
    return batch_learn(m, n, examples, NULL, false);
}

// ---- Slates: how what was shown together becomes losses, and these an update.

struct example two_tower_context(const struct slate *slate)
{
    struct example context = {.user = slate->user,
                              .ts_ms = slate->ts_ms,
                              .n_history = slate->n_history,
                              .n_newest = slate->n_newest};
    memcpy(context.history, slate->history, sizeof context.history);
    memcpy(context.actions, slate->actions, sizeof context.actions);
    memcpy(context.gaps, slate->gaps, sizeof context.gaps);
    return context;
}

// One query a slate, and each item once in the step, whatever slates it was shown in.
static void slates_place(struct two_tower *m, struct step *s, struct slate_batch *b)
{
    for (int i = 0; i < b->n; i++) {
        const struct slate *slate = &b->slates[i];
        assert(slate->n_items <= SLATE_ITEMS_MAX);
        m->contexts[i] = two_tower_context(slate);
        m->first[i] = b->rows;
        for (int k = 0; k < slate->n_items; k++)
            m->slot[b->rows++] = m->towers->kind->item(m->towers, s, slate->items[k].item);
    }
    m->first[b->n] = b->rows;
}

// s = q . v + column + repeat, row by row.
static void slates_score(struct two_tower *m, const struct step *s, const struct slate_batch *b)
{
    const size_t d = (size_t)m->options.dim;
    for (int i = 0; i < b->n; i++) {
        const int at = b->first[i], n = b->first[i + 1] - at;
        for (int k = at; k < at + n; k++)
            m->s[k] = kernels->dot(d, s->Q + (size_t)i * d, s->V + b->slot[k] * d) +
                      s->column[b->slot[k]];
        if (m->towers->kind->repeat)
            m->towers->kind->repeat(m->towers, s, i, n, b->slot + at, m->s + at);
    }
}

// The same by the model that the fleets have.
static void slates_score_published(struct two_tower *m, const struct step *s,
                                   const struct slate_batch *b)
{
    const struct view v = reference_view(&m->reference);
    const size_t d = (size_t)m->options.dim;
    for (int i = 0; i < b->n; i++) {
        const struct example *context = &s->examples[i];
        const float *vectors[HISTORY_MAX], *contexts[HISTORY_MAX];
        struct bonus bonuses[HISTORY_MAX];
        float q[d + 1], item[d + 1];
        for (int k = 0; k < context->n_history; k++) {
            vectors[k] = reference_item_vector(&m->reference, context->history[k]);
            contexts[k] = reference_item_context(&m->reference, context->history[k]);
        }
        const struct recent recent = {context->n_history,
                                      context->n_newest,
                                      vectors,
                                      tables_have_contexts(&m->tables) ? contexts : NULL,
                                      context->actions,
                                      context->gaps};
        view_query(&v, &recent, reference_user_vector(&m->reference, context->user),
                   s->features ? s->features + (size_t)i * m->options.user_features : NULL, q);
        const int n_bonuses = view_bonuses(&v, context->n_history, context->history, bonuses);
        for (int k = b->first[i]; k < b->first[i + 1]; k++) {
            const uint32_t row = s->rows[b->slot[k]];
            view_items(&v, 1, reference_item_vector(&m->reference, row),
                       reference_item_state(&m->reference, row),
                       m->options.item_features ? column_at(&m->tables.item_features, row) : NULL,
                       item);
            m->ref[k] = kernels->dot(d + 1, q, item);
            for (int j = 0; j < n_bonuses; j++)
                m->ref[k] += bonuses[j].row == row ? bonuses[j].score : 0;
        }
    }
}

// From the gradient of the scores to that of vectors and columns.
static void slates_backward(struct two_tower *m, struct step *s, const struct slate_batch *b)
{
    const size_t d = (size_t)m->options.dim;
    for (int i = 0; i < b->n; i++) {
        const int at = b->first[i], n = b->first[i + 1] - at;
        for (int k = at; k < at + n; k++) {
            kernels->axpy(d, b->ds[k], s->V + b->slot[k] * d, s->dQ + (size_t)i * d);
            kernels->axpy(d, b->ds[k], s->Q + (size_t)i * d, s->dV + b->slot[k] * d);
            s->dcolumn[b->slot[k]] += b->ds[k];
        }
        if (m->towers->kind->repeat_backward)
            m->towers->kind->repeat_backward(m->towers, s, i, n, b->slot + at, b->ds + at);
    }
}

// Whether the objectives want anything of the towers. A gradient that is not finite is one, too.
static bool gradient_left(const struct step *s, int d)
{
    const size_t Q = (size_t)s->n * (size_t)d, V = (size_t)s->C * (size_t)d;
    return kernels->dot(Q, s->dQ, s->dQ) != 0 || kernels->dot(V, s->dV, s->dV) != 0 ||
           kernels->dot((size_t)s->C, s->dcolumn, s->dcolumn) != 0;
}

struct slate_report two_tower_learn_slates(struct two_tower *m, int n, const struct slate *slates,
                                           const float *scores, const float *features)
{
    struct towers *towers = m->towers;
    struct step s = {.n = n, .examples = m->contexts, .features = features, .still = true};
    struct slate_batch b = {.n = n,
                            .slates = slates,
                            .scores = scores,
                            .first = m->first,
                            .slot = m->slot,
                            .s = m->s,
                            .ref = m->referenced ? m->ref : NULL,
                            .ds = m->ds};
    struct slate_report report = {.slates = n};
    assert(n > 0 && n <= m->options.objectives.slates);

    // Everything is read as it was before the step.
    towers->kind->begin(towers, &s);
    slates_place(m, &s, &b);
    towers->kind->forward(towers, &s);
    slates_score(m, &s, &b);
    if (m->referenced)
        slates_score_published(m, &s, &b);

    memset(m->ds, 0, (size_t)b.rows * sizeof *m->ds);
    const bool finite = objectives_learn(m->objectives, &s, &b, &report);
    for (int t = 0; t < OBJECTIVES; t++)
        s.loss += report.term[t].loss;
    slates_backward(m, &s, &b);
    // Without a gradient the rows are not touched: even L2 would move them.
    if (!finite)
        ((struct model_state *)column_edit(&m->tables.state, 0))->skipped++;
    report.skipped = !finite || (gradient_left(&s, m->options.dim) && !step_finish(m, &s));
    if (!report.skipped)
        objectives_update(m->objectives, &s, &b, m->weights);
    return report;
}

// ---- What is asked of the model.

const struct two_tower_options *two_tower_options(const struct two_tower *m)
{
    return &m->options;
}

const struct tables *two_tower_tables(const struct two_tower *m)
{
    return &m->tables;
}

// A column's units never move: who reads the weights may keep the address.
const struct model_values *two_tower_values(const struct two_tower *m)
{
    return m->options.tasks_named ? column_at(&m->value, 0) : &m->values;
}

void two_tower_set_values(struct two_tower *m, const float *weight, uint64_t since)
{
    assert(m->options.tasks_named);
    struct model_values *values = column_edit(&m->value, 0);
    memcpy(values->weight, weight, (size_t)m->options.objectives.tasks * sizeof *weight);
    values->since = since;
}

const struct reward_guard *two_tower_guard(const struct two_tower *m, int ranker)
{
    return m->objectives ? objectives_guard(m->objectives, ranker) : NULL;
}

bool two_tower_expects(const struct two_tower *m, enum expectation by)
{
    const enum debias_kind kind = m->options.debias.kind;
    // Examination and propensities are no values.
    const bool expects[] = {[EXPECTED_CONTEXT] = kind >= DEBIAS_POSITION && kind <= DEBIAS_COMBINED,
                            [EXPECTED_RANKER] =
                                m->objectives && m->options.objectives.ranker.weight > 0};
    return expects[by];
}

void two_tower_expected(const struct two_tower *m, enum expectation by, const struct slate *slate,
                        const float *q, float *expected)
{
    float v[m->options.dim + 1];
    assert(two_tower_expects(m, by));
    if (by == EXPECTED_CONTEXT) {
        row_weights_expected(m->weights, slate, q, expected);
        return;
    }
    for (int k = 0; k < slate->n_items; k++) {
        expected[k] = NAN;
        if (!slate->items[k].shown)
            continue;
        two_tower_items(m, 1, &slate->items[k].item, v);
        expected[k] = objectives_expected(m->objectives, slate, k, q, v);
    }
}

// ---- Vectors: rows through the pure functions of the kind, as of now or of a view.

struct view two_tower_view(const struct two_tower *m)
{
    return (struct view){.options = &m->options,
                         .dense = tables_dense(&m->tables),
                         .state = tables_state(&m->tables),
                         .items_known = id_table_state(m->items)->live};
}

void view_items(const struct view *v, int n, const float *vectors, const struct item_state *states,
                const float *features, float *V)
{
    kinds[v->options->kind]->items(v, n, vectors, states, features, V);
}

void view_query(const struct view *v, const struct recent *recent, const float *user,
                const float *features, float *q)
{
    kinds[v->options->kind]->query(v, recent, user, features, q);
}

int view_bonuses(const struct view *v, int m, const uint32_t *history, struct bonus *bonuses)
{
    return kinds[v->options->kind]->bonuses(v, m, history, bonuses);
}

void two_tower_queries(struct two_tower *m, int n, const struct example *examples,
                       const float *features, float *Q)
{
    const struct view v = two_tower_view(m);
    const size_t d = (size_t)m->options.dim;
    for (int i = 0; i < n; i++) {
        const float *vectors[HISTORY_MAX], *contexts[HISTORY_MAX];
        const struct recent recent =
            recent_of(&m->tables, examples[i].n_history, examples[i].n_newest, examples[i].history,
                      examples[i].actions, examples[i].gaps, vectors, contexts);
        view_query(&v, &recent, column_at(&m->tables.user_vector, examples[i].user),
                   features ? features + (size_t)i * m->options.user_features : NULL,
                   Q + (size_t)i * (d + 1));
    }
}

void two_tower_items(const struct two_tower *m, int n, const uint32_t *rows, float *V)
{
    const struct view v = two_tower_view(m);
    const struct tables *t = &m->tables;
    for (int i = 0; i < n; i++)
        view_items(&v, 1, column_at(&t->item_vector, rows[i]), column_at(&t->item_state, rows[i]),
                   m->options.item_features ? column_at(&t->item_features, rows[i]) : NULL,
                   V + (size_t)i * (m->options.dim + 1));
}

void two_tower_unseen_item(struct two_tower *m, const struct id *id, float *v)
{
    const struct view view = two_tower_view(m);
    const struct item_state fresh = {.counted_at = view.state->examples};
    float row[m->options.dim], features[m->options.item_features + 1];
    row_init(&m->options, PURPOSE_ITEM, id->hash, row);
    memset(features, 0, sizeof features);
    view_items(&view, 1, row, &fresh, features, v);
}

int two_tower_bonuses(const struct two_tower *m, const struct example *example,
                      struct bonus *bonuses)
{
    const struct view v = two_tower_view(m);
    return view_bonuses(&v, example->n_history, example->history, bonuses);
}

bool view_dense(const struct two_tower_options *o, int i, struct dense_parameter *p)
{
    return kinds[o->kind]->dense(o, i, p);
}
