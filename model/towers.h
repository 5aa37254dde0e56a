// SPDX-License-Identifier: Apache-2.0
//
// Between the towers and the objectives. A kind of model (recipe.c, classic.c) turns rows into
// vectors and gradients of vectors into updates of rows; an objective (objectives.c) turns vectors
// into a loss and its gradient, and knows neither rows nor layers; the softmax over a batch is the
// kind's, for what it corrects and masks by is. One step:
//
//     begin        no items yet
//     candidates   or item, one by one: which items take part, each once
//     forward      Q, V, column; dQ, dV, dcolumn are zero then
//     ...          objectives add to the gradients, in terms of the score
//                      s(i, c) = Q_i . V_c + column_c + repeat(i, c)
//     backward     the gradients of all parameters; false when one is not finite
//     update       the parameters
//
// Everything up to update reads the parameters as they were before the step. A step without update
// has changed nothing. Within model/ only; the rest of the program uses two_tower.h.
#pragma once

#include <math.h>

#include "model/kernels.h"
#include "model/tables.h"

struct step {
    int n;                          // queries
    const struct example *examples; // (n): whose; target, value and label are for objectives
    const float *features;          // (n, user_features), NULL when the width is 0
    bool fresh;    // examples of engagements that have not been learned before: they are counted
    bool replayed; // they have been learned before
    // Slates: a row or bias without a gradient is not touched, and what is touched has no L2. A
    // slate names many items for each engagement, and L2 would pull all of them to zero
    // (ml1m-slates, distillation at weight 0.1: recall@10/@100 0.1084/0.4396 with it, 0.1152/0.4501
    // without).
    bool still;
    int C;                   // items
    const uint32_t *rows;    // (C)
    const uint32_t *target;  // (n): slot of each example's item; only after candidates
    float *Q, *dQ;           // (n, d)
    float *V, *dV;           // (C, d)
    float *column, *dcolumn; // (C): bias and prior
    const float *weight;     // (n) of the examples in the softmax; NULL: all 1
    double loss;
    bool measured;   // its report says more: squares are wanted
    double squares;  // of what update touches
    uint64_t masked; // pairs of a query and an item that softmax left out, for it is known
};

// Whether the update of a row or bias, by its gradient (n), is due.
static inline bool step_moves(const struct step *s, size_t n, const float *gradient)
{
    return !s->still || kernels->dot(n, gradient, gradient) != 0;
}

// The optimiser of rows and biases in this step.
static inline struct optimizer step_optimizer(const struct step *s, const struct optimizer *o)
{
    return s->still ? optimizer_without_l2(o) : *o;
}

// Whether all of a gradient (n) is finite, and not so large that its square is not.
static inline bool gradient_finite(size_t n, const float *gradient)
{
    return isfinite(kernels->dot(n, gradient, gradient));
}

enum { ROWS_AHEAD = 16 }; // how long before their turn rows are asked for

// At the i-th of n: how many, from the (i + ROWS_AHEAD)-th on, are to be asked for now. Many at a
// time, and none in between (column_prefetch_all).
static inline int rows_ahead(int i, int n)
{
    const int left = n - i - ROWS_AHEAD;
    if (i % ROWS_AHEAD != 0 || left <= 0)
        return 0;
    return left < ROWS_AHEAD ? left : ROWS_AHEAD;
}

// Rows of a table, from their start on: parts of d floats each, and the optimizer of each part in a
// step that touches all.
struct row_parts {
    struct column *vector, *slots;
    size_t d;
    int parts;
    const struct optimizer *optimizer[2];
};

// Updates n rows from their gradients (n, parts, d), each once.
void step_update_rows(const struct step *s, const struct row_parts *table, uint64_t step, int n,
                      const uint32_t *rows, const float *gradients);

struct towers;

struct towers_kind {
    // Of the dense parameters: how many floats, and their names.
    size_t (*dense_size)(const struct two_tower_options *o);
    bool (*dense)(const struct two_tower_options *o, int i, struct dense_parameter *p);
    // The i-th group of parameters that update hands to an optimizer, NULL past the end.
    const char *(*group)(const struct two_tower_options *o, int i);
    // Writes the parameters' start, and what their optimizers keep, into the dense column. NULL
    // when memory is short. items_max, users_max: rows of the tables.
    struct towers *(*open)(const struct towers *base, size_t items_max, size_t users_max);
    void (*close)(struct towers *t);

    void (*begin)(struct towers *t, struct step *s);
    uint32_t (*item)(struct towers *t, struct step *s, uint32_t row);
    // The items of a batch of examples, for softmax.
    void (*candidates)(struct towers *t, struct step *s);
    void (*forward)(struct towers *t, struct step *s);
    // Softmax of each example's item over the candidates, by its weight: adds to the gradients.
    void (*softmax)(struct towers *t, struct step *s);
    // The repeat term of query i for m items (slots), and its gradient; NULL without such a term.
    void (*repeat)(struct towers *t, const struct step *s, int i, int m, const uint32_t *slots,
                   float *scores);
    void (*repeat_backward)(struct towers *t, const struct step *s, int i, int m,
                            const uint32_t *slots, const float *dscores);
    bool (*backward)(struct towers *t, struct step *s);
    void (*update)(struct towers *t, struct step *s);
    // Sum of the squares of every row that update will touch, once for each time it does: what L2
    // takes hold of. After backward.
    double (*squares)(const struct towers *t, const struct step *s);

    // The pure functions behind view_items, view_query and view_bonuses.
    void (*items)(const struct view *v, int n, const float *vectors,
                  const struct item_state *states, const float *features, float *V);
    void (*query)(const struct view *v, const struct recent *recent, const float *user,
                  const float *features, float *q);
    int (*bonuses)(const struct view *v, int m, const uint32_t *history, struct bonus *bonuses);
};

extern const struct towers_kind recipe_kind, classic_kind;

// What every kind begins with.
struct towers {
    const struct towers_kind *kind;
    const struct two_tower_options *options;
    struct tables *tables;
    const struct id_table *items;
    int queries_max, candidates_max; // the largest n and C of a step
};
