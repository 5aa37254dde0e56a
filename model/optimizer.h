// SPDX-License-Identifier: Apache-2.0
//
// Optimisers. One block of n parameters has one block of state beside it: a weight matrix is a
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
//
// g is the gradient plus l2 w, but for ftrl, where l2 belongs to the proximal term. Rows that occur
// more than once in a step are summed by the caller first: two updates are not one of the sum.
// Adding a kind is adding a row to the table in optimizer.c.
#pragma once

#include <stddef.h>
#include <stdint.h>

struct optimizer_kind;

struct optimizer {
    const struct optimizer_kind *kind;
    float rate;
    float epsilon;
    float l1, l2;
    float start;        // what accumulators start at
    float beta1, beta2; // adam; ftrl has beta1 as beta
};

// The kind with its customary settings, or NULL. Which they are is in the table.
const struct optimizer *optimizer_find(const char *name);
const char *optimizer_name(const struct optimizer *o);
// The i-th of all kinds, NULL past the end.
const struct optimizer *optimizer_at(int i);

size_t optimizer_state_floats(const struct optimizer *o, size_t n);
void optimizer_start(const struct optimizer *o, size_t n, float *state);
// step counts from 1. For a row of a table it may count the table's steps or the row's updates.
void optimizer_update(const struct optimizer *o, uint64_t step, size_t n, const float *g, float *w,
                      float *state);
