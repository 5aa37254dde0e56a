// SPDX-License-Identifier: Apache-2.0
//
// The parameters, as columns: what both kinds of model (recipe.c, classic.c) read and change, and
// what the publisher reads as of a cut. Within model/ and for whoever publishes; others use
// two_tower.h.
#pragma once

#include "model/two_tower.h"

// One item beside its vector. Counts are of engagements, decayed with the half-lives of the
// options, as of example number counted_at.
enum { COUNT_FAST, COUNT_SLOW, COUNT_RECENT, COUNT_LOGQ, COUNTS };

struct item_state {
    float bias;
    float bias_slots[2]; // of its optimizer
    float count[COUNTS];
    uint64_t counted_at;
};

// The scalars of the model; one unit of a column.
struct model_state {
    uint64_t steps;           // learned
    uint64_t examples;        // learned: the clock of the counts
    uint64_t skipped;         // steps that were not finite
    double count_sum[COUNTS]; // over all items, as of `examples`
};

struct tables {
    size_t dim; // d
    // An item's vector, d floats; of the recipe's, behind it and in the same pages its context,
    // what the item says of the next one, d floats.
    struct column item_vector;
    struct column item_slots; // what the optimizer keeps for the one, and behind it for the other
    struct column item_state; // struct item_state
    struct column item_features;  // item_features floats; not opened when the width is 0
    struct column item_frequency; // struct frequency_cell; only for two_tower with logq
    struct column user_vector;    // d floats
    struct column user_slots;     // not opened when users' rows learn without an optimizer
    // Only with a memory of negatives: its places, the d floats of each, and one
    // struct negative_memory
    struct column memory_entry, memory_vector, memory_state;
    struct column dense; // d floats a unit: parameters, then what their optimizers keep
    struct column state; // one struct model_state
    size_t dense_size;   // floats of the parameters, a multiple of d
};

static inline bool tables_have_contexts(const struct tables *t)
{
    return t->item_vector.unit > t->dim * sizeof(float);
}

static inline const float *tables_item_context(const struct tables *t, uint32_t row)
{
    return (const float *)column_at(&t->item_vector, row) + t->dim;
}

// Adds the columns that the options ask for. dense_size: floats of the kind's dense parameters, of
// any number. items, users: rows at the most. 0 or -ENOMEM.
int tables_open(struct tables *t, struct columns *s, const struct two_tower_options *o,
                size_t dense_size, size_t items, size_t users);
// Whether item_frequency is one of them.
bool tables_count_frequency(const struct two_tower_options *o);

static inline float *tables_dense(const struct tables *t)
{
    return (float *)(void *)t->dense.base;
}

static inline const struct model_state *tables_state(const struct tables *t)
{
    return column_at(&t->state, 0);
}

// Sums of the squares of the first `floats` of n rows, and of n items' biases.
double tables_squares(const struct column *c, size_t floats, int n, const uint32_t *rows);
double tables_bias_squares(const struct tables *t, int n, const uint32_t *items);

// What is left at example number `at` of a count made at item->counted_at, and the half-life of
// each.
float count_decay(const struct item_state *item, uint64_t at, float half_life);
float count_half_life(const struct two_tower_options *o, int count);

// log((n + 0.5) / (sum + 0.5 N)) + log N for the prior's counts: 0 for an item as popular as the
// average one. As of state->examples. N: known items.
void prior_of(const struct two_tower_options *o, const struct model_state *state,
              const struct item_state *item, double N, float prior[PRIORS]);

// The model as of some instant: what turns rows into vectors, as pure functions that any thread may
// call. The trainer's own view is of now; a publisher makes one of copies.
struct view {
    const struct two_tower_options *options;
    const float *dense; // the parameters, the first part of the dense column
    const struct model_state *state;
    uint64_t items_known;
};

struct view two_tower_view(const struct two_tower *m);
// V (n, d + 1) from vectors (n, d), states (n), features (n, item_features).
void view_items(const struct view *v, int n, const float *vectors, const struct item_state *states,
                const float *features, float *V);
// q (d + 1) from the user's recent engagements and the user's own vector, NULL if unknown.
void view_query(const struct view *v, const struct recent *recent, const float *user,
                const float *features, float *q);
// A history by its rows, with their vectors collected into two arrays of the caller's with n places
// each. actions and gaps (n) as in struct recent.
struct recent recent_of(const struct tables *t, int n, int newest, const uint32_t *rows,
                        const uint8_t *actions, const uint8_t *gaps, const float **vectors,
                        const float **contexts);
// The repeat term: up to HISTORY_MAX (row, bonus) pairs.
int view_bonuses(const struct view *v, int m, const uint32_t *history, struct bonus *bonuses);

// The dense parameters by name, for publishing: parameter i, or false at the end.
struct dense_parameter {
    const char *name;
    int rows, columns;
    size_t offset; // floats from the start of view.dense
};
bool view_dense(const struct two_tower_options *o, int i, struct dense_parameter *p);
