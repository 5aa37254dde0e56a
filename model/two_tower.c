// SPDX-License-Identifier: Apache-2.0
#include "model/two_tower.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/classic.h"
#include "model/frequency.h"
#include "model/recipe.h"
#include "model/rng.h"
#include "model/tables.h"

struct two_tower {
    struct two_tower_options options;
    const struct id_table *items, *users;
    struct tables tables;
    struct recipe_scratch *recipe; // one of the two
    struct classic *classic;
};

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
    const size_t n = o->kind == MODEL_RECIPE ? recipe_dense_size(o->dim) : classic_dense_size(o);
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
    if (rc == 0 && o->kind == MODEL_RECIPE) {
        recipe_dense_init(o, tables_dense(&m->tables), m->tables.dense_size);
        m->recipe = recipe_scratch_open(o, items->row.n_max, users->row.n_max);
        rc = m->recipe ? 0 : -ENOMEM;
    } else if (rc == 0) {
        m->classic = classic_open(o, &m->tables, items->row.n_max, users->row.n_max);
        rc = m->classic ? 0 : -ENOMEM;
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
    recipe_scratch_close(m->recipe);
    classic_close(m->classic);
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

// How a batch becomes a loss is one page of recipe.c, or of classic.c.
struct step_report two_tower_learn(struct two_tower *m, int n, const struct example *examples,
                                   const float *features)
{
    if (m->recipe)
        return recipe_learn(&m->tables, &m->options, m->items, m->recipe, n, examples, false);
    return classic_learn(m->classic, &m->tables, n, examples, features);
}

struct step_report two_tower_replay(struct two_tower *m, int n, const struct example *examples)
{
    assert(m->recipe);
    return recipe_learn(&m->tables, &m->options, m->items, m->recipe, n, examples, true);
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
    const struct two_tower_options *o = v->options;
    const size_t d = (size_t)o->dim;
    if (o->kind == MODEL_TWO_TOWER) {
        classic_items(v, n, vectors, states, features, V);
        return;
    }
    const struct recipe_dense p = recipe_dense_at(v->dense, o->dim);
    for (int i = 0; i < n; i++) {
        memcpy(V + (size_t)i * (d + 1), vectors + (size_t)i * d, d * sizeof *V);
        V[(size_t)i * (d + 1) + d] =
            recipe_extra(o, &p, v->state, &states[i], (double)v->items_known);
    }
}

void view_query(const struct view *v, const struct recent *recent, const float *user,
                const float *features, float *q)
{
    if (v->options->kind == MODEL_TWO_TOWER) {
        classic_query(v, recent->n, recent->vectors, user, features, q);
        return;
    }
    const struct recipe_dense p = recipe_dense_at(v->dense, v->options->dim);
    struct recent pooled = *recent;
    if (pooled.n > v->options->history)
        pooled.n = v->options->history;
    recipe_query(v->options->dim, &p, &pooled, user, q);
}

int view_bonuses(const struct view *v, int m, const uint32_t *history, struct bonus *bonuses)
{
    if (v->options->kind == MODEL_TWO_TOWER)
        return 0;
    const struct recipe_dense p = recipe_dense_at(v->dense, v->options->dim);
    return recipe_bonuses(&p, m < v->options->repeat ? m : v->options->repeat, history, bonuses);
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
    if (o->kind == MODEL_TWO_TOWER)
        return classic_dense(o, i, p);
    const int d = o->dim;
    const size_t dd = (size_t)d * (size_t)d;
    const struct dense_parameter all[] = {
        {"history_newest", d, d, 0},
        {"history_decayed", d, d, dd},
        {"history_mean", d, d, 2 * dd},
        {"repeat", 1, RECIPE_BUCKETS, 3 * dd},
        {"prior", 1, 2, 3 * dd + RECIPE_BUCKETS},
    };
    if (i >= (int)(sizeof all / sizeof *all))
        return false;
    *p = all[i];
    return true;
}

const struct two_tower_options *two_tower_options(const struct two_tower *m)
{
    return &m->options;
}

const struct tables *two_tower_tables(const struct two_tower *m)
{
    return &m->tables;
}
