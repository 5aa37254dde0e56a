// SPDX-License-Identifier: Apache-2.0
//
// The proxy ranker: a linear model of what engages, on user and item vectors,
//
//     z_t = W_t [u ; v ; u . v] + b_t
//
// It stands for the main ranker where no scores of it are logged. It learns from the items that
// were shown, and its reward for all pairs is the target of slate_align. It is a parameter like any
// other: kept, stepped and in the checkpoint. No gradient leaves it: what it learns does not move
// the towers, and the reward is a constant to whoever aligns with it.
//
//     U (B, D), V (B, D)   user i saw item i            Z (B, T)   logits
//     X (B, 2 D + 1)       the features, kept from forward for backward
#pragma once

#include "model/linear.h"

struct proxy_ranker {
    int D;
    struct linear head; // W (T, 2 D + 1), b (T)
};

void proxy_ranker_init(struct proxy_ranker *p, int D, int T, struct arena *params,
                       struct arena *grads, struct rng *rng);
// X and Z are overwritten.
void proxy_ranker_forward(const struct proxy_ranker *p, int B, const float *U, const float *V,
                          float *X, float *Z);
// dZ (B, T) comes from distill_pointwise(B T, Z, labels, ..): hard labels, or the probabilities
// of a ranker that scored some. Adds to the gradients of W and b.
void proxy_ranker_backward(struct proxy_ranker *p, int B, const float *X, const float *dZ);

// The reward r_ij = sum_t value_weight_t z_tij of every user with every item: r (q, n) is
// overwritten. U (q, D), V (n, D), S (q, n) their products, which the retrieval loss has.
void proxy_ranker_reward(const struct proxy_ranker *p, const float *value_weight, int q, int n,
                         const float *U, const float *V, const float *S, float *r);
