// SPDX-License-Identifier: Apache-2.0
//
// Optimizers. One block of n parameters has one block of state beside it: a weight matrix is a
// block, and so is each row of a table, so dense and sparse parameters share the rules below.
//
//     w (n)   parameters, updated      g (n)   gradient, read only
//     state   optimizer_state_floats(o, n) floats of the caller's, set by optimizer_start
//
//     sgd               w -= rate g
//     adagrad           a += g^2; w -= rate g / sqrt(a + epsilon)              Duchi et al. 2011
//     rowwise_adagrad   a += mean(g^2); w -= rate g / (sqrt(a) + epsilon)      one a for the block
//     adam              m, v decayed means of g, g^2, both divided by 1 - beta^step;
//                       w -= rate m / (sqrt(v) + epsilon)                      Kingma and Ba 2015
//     ftrl              z += g - w (sqrt(a + g^2) - sqrt(a)) / rate; a += g^2; w = 0 if |z| <= l1,
//                       else (sign(z) l1 - z) / (sqrt(a) / rate + 2 l2 + beta / rate)
//                                                                              McMahan et al. 2013
//     clippy_adagrad    r = 1 / sqrt(a + epsilon); move = rate g r; w -= shrink move; a += g^2
//                       shrink = min(1, min_k allowed_k / |move_k|), one for the block
//                       allowed = relative |w| + relative_root r + absolute
//                                 + fresh (start + epsilon) r^2                  2302.09178
//
// fresh is ours: near 0 the paper's rule allows a row next to nothing, so a new row may move by
// that much more, and less the more gradients it has seen. The block of a table is a row, so a cold
// row holds up no other. The accumulator takes in g^2 after the step (CLIPPY_AFTER), before it, so
// that an outlier meets itself (CLIPPY_STANDARD), or (shrink g)^2 after it (CLIPPY_CLIPPED).
//
// g is the gradient plus l2 w, but for ftrl, where l2 belongs to the proximal term. Rows that occur
// more than once in a step are summed by the caller first: two updates are not one of the sum.
// Adding a kind is adding a row to the table in optimizer.c.
//
// Two limits hold for every kind. gradient_max scales down a gradient whose norm over the block is
// larger (before l2 is added); radius scales down the move of a block that would go further than
// that in one step, while the state takes in the gradient as it was. Norms are Euclidean. A limit
// of 0 is off, and with both off every bit is as if there were none. A gradient that is not finite
// stays so: batches of that kind are the caller's to refuse.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct optimizer_kind;

enum optimizer_clippy { CLIPPY_AFTER, CLIPPY_STANDARD, CLIPPY_CLIPPED };

struct optimizer {
    const struct optimizer_kind *kind;
    float rate;
    float epsilon;
    float l1, l2;
    float start;        // what accumulators start at
    float beta1, beta2; // adam; ftrl has beta1 as beta
    // clippy_adagrad
    enum optimizer_clippy clippy;
    float relative, relative_root, absolute, fresh;
    // Limits, 0: off
    float gradient_max, radius;
};

// The kind with its customary settings, or NULL. Which they are is in the table.
const struct optimizer *optimizer_find(const char *name);
const char *optimizer_name(const struct optimizer *o);
// The i-th of all kinds, NULL past the end.
const struct optimizer *optimizer_at(int i);

// The same without the pull towards zero, for a step that is not about all of what it touches. ftrl
// keeps its l2, which is no pull but the shape of its solution.
struct optimizer optimizer_without_l2(const struct optimizer *o);
size_t optimizer_state_floats(const struct optimizer *o, size_t n);
void optimizer_start(const struct optimizer *o, size_t n, float *state);
// step counts from 1. For a row of a table it may count the table's steps or the row's updates.
void optimizer_update(const struct optimizer *o, uint64_t step, size_t n, const float *g, float *w,
                      float *state);

// Why these settings cannot work, as half a sentence, or NULL.
const char *optimizer_refuses(const struct optimizer *o);

// The scale that clippy_adagrad's rule is made of: the largest s <= 1 for which no |s x_k| is above
// absolute + sum_r relative_r |reference_rk|. references (R, n), relative (R). An x_k of 0 asks for
// nothing; where nothing is allowed, any other makes s 0.
float optimizer_shrink(size_t n, const float *x, size_t R, const float *references,
                       const float *relative, float absolute);

// Which optimizer a group of parameters has: table rows, biases, a matrix.
struct optimizer_choice {
    const char *group;
    const struct optimizer *optimizer;
};

// Whether each of the groups has exactly one optimizer, none but these is named and all settings
// work. If not, why (size) names the group and what is wrong with it. For the start.
bool optimizer_covers(int groups, const char *const *group, int choices,
                      const struct optimizer_choice *choice, char *why, size_t size);
