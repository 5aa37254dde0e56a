// SPDX-License-Identifier: Apache-2.0
#include "model/two_tower.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/frequency.h"
#include "model/rng.h"
#include "model/towers.h"

struct two_tower {
    struct two_tower_options options;
    const struct id_table *items, *users;
    struct tables tables;
    struct towers *towers;
};

static const struct towers_kind *const kinds[] = {
    [MODEL_RECIPE] = &recipe_kind, [MODEL_TWO_TOWER] = &classic_kind};

float count_decay(const struct item_state *item, uint64_t at, float half_life)
{
    return exp2f(-(float)(at - item->counted_at) / half_life);
}

float count_half_life(const struct two_tower_options *o, int count)
{
    return count == COUNT_LOGQ ? o->logq_half_life : o->prior_half_life[count];
}

void prior_of(const struct two_tower_options *o, const struct model_state *state,
              const struct item_state *item, double N, float prior[2])
{
    for (int k = 0; k < 2; k++) {
        const double n = (double)item->count[k] *
                         (double)count_decay(item, state->examples, o->prior_half_life[k]);
        prior[k] = (float)log((n + 0.5) * N / (state->count_sum[k] + 0.5 * N));
    }
}

static size_t dense_size(const struct two_tower_options *o)
{
    const size_t n = kinds[o->kind]->dense_size(o);
    return (n + (size_t)o->dim - 1) / (size_t)o->dim * (size_t)o->dim;
}

// The recipe corrects by its decayed counts, which it keeps for the prior anyway.
static bool frequency_kept(const struct two_tower_options *o)
{
    return o->kind == MODEL_TWO_TOWER && o->logq;
}

static int columns_add(struct two_tower *m, struct columns *s)
{
    const struct two_tower_options *o = &m->options;
    struct tables *t = &m->tables;
    const size_t row = (size_t)o->dim * sizeof(float);
    const size_t kept = optimizer_state_floats(&o->table, (size_t)o->dim);
    const size_t slots = (kept > 0 ? kept : 1) * sizeof(float); // sgd keeps nothing
    const size_t items = m->items->row.n_max, users = m->users->row.n_max;
    t->dense_size = dense_size(o);
    const size_t dense = 3 * t->dense_size / (size_t)o->dim; // no optimiser keeps more than two
    int rc = column_open(&t->item_vector, s, "item.vector", row, items);
    if (rc == 0)
        rc = column_open(&t->item_state, s, "item.state", sizeof(struct item_state), items);
    if (rc == 0)
        rc = column_open(&t->item_slots, s, "item.optimizer", slots, items);
    if (rc == 0 && o->kind == MODEL_RECIPE)
        rc = column_open(&t->item_context, s, "item.context", row, items);
    if (rc == 0 && o->kind == MODEL_RECIPE)
        rc = column_open(&t->item_context_slots, s, "item.context_optimizer", slots, items);
    if (rc == 0 && o->item_features > 0)
        rc = column_open(&t->item_features, s, "item.features",
                         (size_t)o->item_features * sizeof(float), items);
    if (rc == 0 && frequency_kept(o))
        rc = column_open(&t->item_frequency, s, "item.frequency", sizeof(struct frequency_cell),
                         items);
    if (rc == 0)
        rc = column_open(&t->user_vector, s, "user.vector", row, users);
    if (rc == 0)
        rc = column_open(&t->user_slots, s, "user.optimizer", slots, users);
    if (rc == 0)
        rc = column_open(&t->dense, s, "model.dense", row, dense);
    if (rc == 0)
        rc = column_open(&t->state, s, "model.state", sizeof(struct model_state), 1);
    if (rc == 0) {
        column_grow(&t->dense, dense);
        column_grow(&t->state, 1);
    }
    return rc;
}

int two_tower_open(struct two_tower **m_out, struct columns *s, const struct id_table *items,
                   const struct id_table *users, const struct two_tower_options *options)
{
    const struct two_tower_options *o = options;
    assert(optimizer_state_floats(&o->table, 1) <= 2 && optimizer_state_floats(&o->matrix, 1) <= 2);
    assert(o->dim > 0 && o->history <= HISTORY_MAX && o->repeat <= HISTORY_MAX && o->batch_max > 0);
    struct two_tower *m = calloc(1, sizeof *m);
    if (!m)
        return -ENOMEM;
    m->options = *options;
    m->items = items;
    m->users = users;
    int rc = columns_add(m, s);
    if (rc == 0) {
        const struct towers base = {.kind = kinds[o->kind],
                                    .options = &m->options,
                                    .tables = &m->tables,
                                    .items = items,
                                    .queries_max = o->batch_max,
                                    .candidates_max = o->batch_max + o->uniform_negatives};
        m->towers = base.kind->open(&base, items->row.n_max, users->row.n_max);
        rc = m->towers ? 0 : -ENOMEM;
    }
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
    free(m);
}

// Rows start as a function of (seed, purpose, id): the order of arrival plays no part.
static void row_init(const struct two_tower_options *o, uint64_t purpose, uint64_t hash, float *row)
{
    struct rng rng = {rng_at(rng_key(o->seed, purpose), hash), 0};
    rng_fill_uniform(&rng, row, (size_t)o->dim, -o->init, o->init);
}

static void *row_edit(struct column *c, uint32_t row)
{
    if (row >= c->n)
        column_grow(c, row + 1 - c->n);
    return column_edit(c, row);
}

enum { PURPOSE_ITEM = 1, PURPOSE_USER = 2 };

void two_tower_item_created(struct two_tower *m, uint32_t row)
{
    struct tables *t = &m->tables;
    const struct two_tower_options *o = &m->options;
    row_init(o, PURPOSE_ITEM, id_table_row(m->items, row)->hash, row_edit(&t->item_vector, row));
    optimizer_start(&o->table, (size_t)o->dim, row_edit(&t->item_slots, row));
    struct item_state *state = row_edit(&t->item_state, row);
    *state = (struct item_state){.counted_at = tables_state(t)->examples};
    optimizer_start(&o->table, 1, state->bias_slots);
    if (o->kind == MODEL_RECIPE) { // starts at zero: an item says nothing until it has been seen
        memset(row_edit(&t->item_context, row), 0, t->item_context.unit);
        optimizer_start(&o->table, (size_t)o->dim, row_edit(&t->item_context_slots, row));
    }
    if (o->item_features > 0)
        memset(row_edit(&t->item_features, row), 0, t->item_features.unit);
    if (frequency_kept(o))
        memset(row_edit(&t->item_frequency, row), 0, t->item_frequency.unit);
}

void two_tower_user_created(struct two_tower *m, uint32_t row)
{
    struct tables *t = &m->tables;
    row_init(&m->options, PURPOSE_USER, id_table_row(m->users, row)->hash,
             row_edit(&t->user_vector, row));
    optimizer_start(&m->options.table, (size_t)m->options.dim, row_edit(&t->user_slots, row));
}

void two_tower_item_features(struct two_tower *m, uint32_t row, int n, const float *features)
{
    const int width = m->options.item_features;
    if (width == 0 || n == 0)
        return;
    float *x = row_edit(&m->tables.item_features, row);
    memset(x, 0, (size_t)width * sizeof *x);
    memcpy(x, features, (size_t)(n < width ? n : width) * sizeof *x);
}

// How a batch becomes a loss, and the loss an update.
static struct step_report batch_learn(struct two_tower *m, int n, const struct example *examples,
                                      const float *features, bool fresh)
{
    struct towers *towers = m->towers;
    const struct towers_kind *kind = towers->kind;
    struct step s = {.n = n, .examples = examples, .features = features, .fresh = fresh};
    assert(n > 0 && n <= m->options.batch_max);

    // Forward: everything is read as it was before the step.
    kind->begin(towers, &s);
    kind->candidates(towers, &s);
    struct step_report report = {.examples = n, .replayed = !fresh};
    if (s.n == 0)
        return report; // nothing but negatives
    report.candidates = s.C;
    kind->forward(towers, &s);

    // Backward.
    kind->softmax(towers, &s);
    report.loss = s.loss;
    report.skipped = !kind->backward(towers, &s) || !isfinite(s.loss);

    struct model_state *state = column_edit(&m->tables.state, 0);
    if (report.skipped) {
        state->skipped++;
        return report;
    }
    kind->update(towers, &s);
    state->steps++;
    if (fresh)
        state->examples += (uint64_t)n;
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

struct recent recent_of(const struct tables *t, int n, int newest, const uint32_t *rows,
                        const float **vectors, const float **contexts)
{
    const bool recipe = t->item_context.base;
    for (int k = 0; k < n; k++) {
        vectors[k] = column_at(&t->item_vector, rows[k]);
        contexts[k] = recipe ? column_at(&t->item_context, rows[k]) : NULL;
    }
    return (struct recent){n, newest, vectors, recipe ? contexts : NULL};
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
                      vectors, contexts);
        view_query(&v, &recent, column_at(&m->tables.user_vector, examples[i].user),
                   features ? features + (size_t)i * m->options.user_features : NULL,
                   Q + (size_t)i * (d + 1));
    }
}

void two_tower_items(struct two_tower *m, int n, const uint32_t *rows, float *V)
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

const struct two_tower_options *two_tower_options(const struct two_tower *m)
{
    return &m->options;
}

const struct tables *two_tower_tables(const struct two_tower *m)
{
    return &m->tables;
}
