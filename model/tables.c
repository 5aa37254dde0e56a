// SPDX-License-Identifier: Apache-2.0
#include "model/tables.h"

#include <math.h>

#include "model/frequency.h"
#include "model/kernels.h"
#include "model/memory.h"

// The recipe corrects by its decayed counts, which it keeps for the prior anyway.
bool tables_count_frequency(const struct two_tower_options *o)
{
    return o->kind == MODEL_TWO_TOWER && o->logq;
}

static void numbers_declare(struct tables *t)
{
    struct column *const vectors[] = {&t->item_vector, &t->item_features, &t->user_vector,
                                      &t->memory_vector};
    struct column *const sums[] = {&t->item_slots, &t->user_slots, &t->dense};
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++)
        if (vectors[i]->base)
            column_floats(vectors[i], 0, vectors[i]->unit / sizeof(float), COLUMN_PARAMETER_MAX);
    for (size_t i = 0; i < sizeof sums / sizeof *sums; i++)
        if (sums[i]->base)
            column_floats(sums[i], 0, sums[i]->unit / sizeof(float), COLUMN_SUM_MAX);
    // The bias, what its optimizer keeps, and the counts lie one after the other.
    column_floats(&t->item_state, offsetof(struct item_state, bias), 1 + 2 + COUNTS,
                  COLUMN_SUM_MAX);
    column_doubles(&t->state, offsetof(struct model_state, count_sum), COUNTS, COLUMN_SUM_MAX);
    if (t->item_frequency.base)
        column_floats(&t->item_frequency, offsetof(struct frequency_cell, gap), 1, COLUMN_SUM_MAX);
    if (t->memory_entry.base)
        column_floats(&t->memory_entry, offsetof(struct negative_entry, extra), 4,
                      COLUMN_PARAMETER_MAX);
}

int tables_open(struct tables *t, struct columns *s, const struct two_tower_options *o,
                size_t dense_size, size_t items, size_t users)
{
    const size_t row = (size_t)o->dim * sizeof(float);
    const size_t kept = optimizer_state_floats(&o->table, (size_t)o->dim);
    const size_t slots = (kept > 0 ? kept : 1) * sizeof(float); // sgd keeps nothing
    const size_t parts = o->kind == MODEL_RECIPE ? 2 : 1;       // the vector, and the context
    t->dim = (size_t)o->dim;
    t->dense_size = (dense_size + (size_t)o->dim - 1) / (size_t)o->dim * (size_t)o->dim;
    const size_t dense = 3 * t->dense_size / (size_t)o->dim; // no optimizer keeps more than two
    int rc = column_open(&t->item_vector, s, "item.vector", parts * row, items);
    if (rc == 0)
        rc = column_open(&t->item_state, s, "item.state", sizeof(struct item_state), items);
    if (rc == 0)
        rc = column_open(&t->item_slots, s, "item.optimizer", parts * slots, items);
    if (rc == 0 && o->item_features > 0)
        rc = column_open(&t->item_features, s, "item.features",
                         (size_t)o->item_features * sizeof(float), items);
    if (rc == 0 && tables_count_frequency(o))
        rc = column_open(&t->item_frequency, s, "item.frequency", sizeof(struct frequency_cell),
                         items);
    if (rc == 0)
        rc = column_open(&t->user_vector, s, "user.vector", row, users);
    if (rc == 0 && !o->onebp)
        rc = column_open(&t->user_slots, s, "user.optimizer", slots, users);
    if (rc == 0)
        rc = column_open(&t->dense, s, "model.dense", row, dense);
    if (rc == 0)
        rc = column_open(&t->state, s, "model.state", sizeof(struct model_state), 1);
    if (rc == 0 && o->memory.capacity > 0)
        rc = memory_open(t, s, o);
    if (rc == 0)
        numbers_declare(t);
    if (rc == 0) {
        column_grow(&t->dense, dense);
        column_grow(&t->state, 1);
    }
    return rc;
}

double tables_squares(const struct column *c, size_t floats, int n, const uint32_t *rows)
{
    double sum = 0;
    for (int i = 0; i < n; i++) {
        const float *row = column_at(c, rows[i]);
        sum += (double)kernels->dot(floats, row, row);
    }
    return sum;
}

double tables_bias_squares(const struct tables *t, int n, const uint32_t *items)
{
    double sum = 0;
    for (int i = 0; i < n; i++) {
        const struct item_state *item = column_at(&t->item_state, items[i]);
        sum += (double)item->bias * (double)item->bias;
    }
    return sum;
}

float count_decay(const struct item_state *item, uint64_t at, float half_life)
{
    return exp2f(-(float)(at - item->counted_at) / half_life);
}

float count_half_life(const struct two_tower_options *o, int count)
{
    return count == COUNT_LOGQ ? o->logq_half_life : o->prior_half_life[count];
}

void prior_of(const struct two_tower_options *o, const struct model_state *state,
              const struct item_state *item, double N, float prior[PRIORS])
{
    for (int k = 0; k < PRIORS; k++) {
        const double n = (double)item->count[k] *
                         (double)count_decay(item, state->examples, o->prior_half_life[k]);
        prior[k] = (float)log((n + 0.5) * N / (state->count_sum[k] + 0.5 * N));
    }
}

struct recent recent_of(const struct tables *t, int n, int newest, const uint32_t *rows,
                        const uint8_t *actions, const uint8_t *gaps, const float **vectors,
                        const float **contexts)
{
    const bool both = tables_have_contexts(t);
    for (int k = 0; k < n; k++) {
        vectors[k] = column_at(&t->item_vector, rows[k]);
        contexts[k] = tables_item_context(t, rows[k]);
    }
    return (struct recent){n, newest, vectors, both ? contexts : NULL, actions, gaps};
}
