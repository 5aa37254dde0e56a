// SPDX-License-Identifier: Apache-2.0
//
// In-batch softmax in which an impression counts by what it was worth to the user. Every
// impression of the batch is a column, so those without engagement are negatives and no more.
//
//     n_i = sum_t y_it w_t                           net value of impression i, (B)
//     a_i = n_i / scale, at most 1, 0 for n_i <= 0   VALUE_FIXED
//     a_i = max(n_i, 1e-6) / max_k max(n_k, 1e-6)    VALUE_SEED
//     l_i = log sum_j exp(u_i . v_j) - u_i . v_i
//     L   = 1/B sum_i a_i l_i
//
//     U, V (B, D)   read only         dU, dV (B, D)   added to, may be NULL
//     labels (B, T), value_weight (T), any sign
//
// The seed form trains a batch without any positive as if every row were one, and one outlier
// shrinks all the others. The fixed form leaves such a batch without loss and without gradient,
// and is scaled by a running figure (struct value_scale) that no single row decides. Values and
// weights are those of model/value.h.
// The weights are constants to backward.
#pragma once

#include "model/retrieval_loss.h"
#include "model/value.h"

struct weighted_softmax {
    enum value_form form;
    struct retrieval_loss softmax;
    float *net, *weight; // (B_max), of the last forward
    double loss;         // of the last forward
};

void weighted_softmax_init(struct weighted_softmax *s, enum value_form form, int B_max,
                           struct arena *scratch);
// row_loss (B) may be NULL: l_i, without its weight. A scale of 0 or less (nothing positive seen
// yet) means the largest value of this batch.
void weighted_softmax_forward(struct weighted_softmax *s, int B, int D, const float *U,
                              const float *V, int T, const float *labels, const float *value_weight,
                              float scale, float *row_loss);
void weighted_softmax_backward(const struct weighted_softmax *s, int B, int D, const float *U,
                               const float *V, float *dU, float *dV);
