// SPDX-License-Identifier: Apache-2.0
//
// Several vectors for one user, each for one thing the history is about. ComiRec-SA (Cen et al.
// 2020): every interest weighs the history's events by an attention of its own,
//
//     A = softmax over time of tanh(X W1^T) W2;    Y = A^T X
//
//     S sequences, N = start[S] rows in all, D width, h hidden, K interests
//     X (N, D)      read only        dX (N, D)      may be NULL
//     W1 (h, D)     parameter        dW1 (h, D)
//     W2 (h, K)     parameter        dW2 (h, K)
//     Y (S, K, D)   overwritten      dY (S, K, D)   read only
//
// Sequences lie one after the other without padding as in attention.h: sequence s is rows start[s]
// to start[s + 1]. An empty one gives zeros and no gradient. The activations of the last forward
// stay inside, and backward belongs to it.
//
// Two ways to train with it: the interest that fits the positive best is the user's vector for the
// positive and for all its negatives (multi_interest_choose), or all of them mixed by how well they
// fit the positive (label_aware, below). In the third, maxsim, each candidate takes the interest
// that fits it best: those are the heads of retrieval_loss.h. Serving takes the union. No model
// uses it yet.
#pragma once

#include <stddef.h>

struct arena;
struct rng;

struct multi_interest {
    int width, hidden, interests;
    float *W1, *W2, *dW1, *dW2;
    int rows_max;
    float *T, *dT; // (N, h): tanh(X W1^T)
    float *A, *dA; // (N, K)
};

// W1 and W2 start uniform within 1 / sqrt of what they read. rows_max: of N.
void multi_interest_init(struct multi_interest *m, int width, int hidden, int interests,
                         int rows_max, struct arena *params, struct arena *grads,
                         struct arena *scratch, struct rng *rng);
void multi_interest_forward(struct multi_interest *m, int S, const int *start, const float *X,
                            float *Y);
void multi_interest_backward(struct multi_interest *m, int S, const int *start, const float *X,
                             const float *dY, float *dX);

// The row of V (K, D) with the largest product with e (D), the first of those that tie. dot (K) is
// overwritten with the products.
int multi_interest_choose(int K, int D, const float *V, const float *e, float *dot);

// Label-aware attention (MIND, Li et al. 2019): v = V^T softmax(x), x = sign(V e) |V e|^p, p >= 1.
// The power keeps the sign, or an even one would favour the interest that fits worst. p = 1 is
// plain attention, a large p the choice of one.
//
//     V (K, D), e (D)   read only      dV, de            may be NULL
//     mix (2, K)        overwritten: the softmax, and V e; backward reads it
//     v (D)             overwritten    dv (D)            read only
//
// scratch of backward: (K).
void multi_interest_label_aware(int K, int D, float p, const float *V, const float *e, float *mix,
                                float *v);
void multi_interest_label_aware_backward(int K, int D, float p, const float *V, const float *e,
                                         const float *mix, const float *dv, float *scratch,
                                         float *dV, float *de);
