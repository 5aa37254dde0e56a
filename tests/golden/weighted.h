// SPDX-License-Identifier: Apache-2.0
//
// The softmax of the source's base model, from what the program has: rows of one batch weighed by
// their value, every row a column for the others, and the mean over the batch.
#pragma once

#include "model/retrieval_loss.h"
#include "model/value.h"
#include "tests/golden/case.h"

struct weighted {
    struct retrieval_loss softmax;
    struct retrieval_batch batch;
    float *weight, *ce; // (B): of the rows, and their loss without it
};

// net (B), U and V (B, D), and their gradients. The scale of the fixed form is the batch's largest
// value.
static inline struct weighted weighted_step(struct test *t, enum value_form form, int B, int D,
                                            const float *net, const float *U, const float *V,
                                            float *dU, float *dV)
{
    const struct retrieval_options options = {.reduction = RETRIEVAL_MEAN};
    struct weighted w = {.weight = floats(t, (size_t)B), .ce = floats(t, (size_t)B)};
    float scale = 0;
    for (int i = 0; i < B; i++)
        scale = net[i] > scale ? net[i] : scale;
    value_weights(form, B, net, scale > 0 ? scale : 1, w.weight);
    w.batch = (struct retrieval_batch){
        .queries = B, .candidates = B, .D = D, .Q = U, .C = V, .weight = w.weight};
    retrieval_loss_init(&w.softmax, &options, B, B, 1, D, &t->scratch);
    retrieval_loss_step(&w.softmax, &w.batch, w.ce,
                        &(struct retrieval_gradient){.dQ = dU, .dC = dV});
    return w;
}
