// SPDX-License-Identifier: Apache-2.0
//
// A tower: what is known of a user or an item, reduced to one vector.
//
//     f = W2 relu(W1 features + b1) + b2      Features -> Hidden -> Id, absent when Features = 0
//     h = [id ; f ; summary]                  in this order
//     Y = W h + b                             one linear layer, no activation, no normalisation;
//                                             a bare tower has none, and nothing but id: Y = id
//
//     id (B, Id)               rows the caller looked up      did       may be NULL
//     features (B, Features)   NULL when there are none
//     summary (B, Summary)     of the user's history, NULL    dsummary  may be NULL
//                              when there is none
//     Y (B, Out)               overwritten                    dY        read only
//
// The user tower has all three parts; the item tower has no summary. Rows looked up more than once
// get one gradient row for each look-up, and the caller adds those that belong together.
// The activations of the last forward stay inside, and backward belongs to that forward.
#pragma once

#include <stdbool.h>

#include "model/linear.h"
#include "model/mlp.h"

struct tower_shape {
    int id, features, hidden, summary, out; // hidden 0 means MLP_HIDDEN_DEFAULT
    bool bare;
};

struct tower {
    struct tower_shape shape;
    struct mlp mlp;
    struct linear top;
    int B_max;
    float *f, *df; // (B_max, Id)
    float *h, *dh; // (B_max, what top takes in)
};

void tower_init(struct tower *t, const struct tower_shape *shape, int B_max, struct arena *params,
                struct arena *grads, struct arena *scratch, struct rng *rng);
void tower_forward(struct tower *t, int B, const float *id, const float *features,
                   const float *summary, float *Y);
void tower_backward(struct tower *t, int B, const float *features, const float *dY, float *did,
                    float *dsummary);
