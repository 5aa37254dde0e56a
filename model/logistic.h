// SPDX-License-Identifier: Apache-2.0
//
// Probabilities from logits, and the loss of a pointwise head over rows x tasks.
//
//     p    = sigma(z) = 1 / (1 + e^-z)
//     l    = weight (positive_weight_t y softplus(-z) + (1 - y) softplus(z))
//     dl/dz = weight (positive_weight_t y (p - 1) + (1 - y) p)
//
// Labels lie in [0, 1]. A label that is NAN masks its pair: no loss, no gradient, not counted.
// Weights are constants. A logit that is NAN stays one, in the loss and in the gradient.
#pragma once

#include <math.h>
#include <stddef.h>

// 1 / (1 + e^-x) and log(1 + e^x), by the sign of x, so that no exponential overflows.
static inline double logistic_sigmoid(double x)
{
    const double e = exp(-fabs(x));
    return (x < 0 ? e : 1) / (1 + e);
}

static inline double logistic_softplus(double x)
{
    return (x > 0 ? x : 0) + log1p(exp(-fabs(x)));
}

// p (n) is overwritten; it must not be z.
void logistic(size_t n, const float *z, float *p);

struct logistic_sum {
    double loss;  // over the pairs that are not masked
    size_t pairs; // how many these are
};

// z, label (rows, T) read only; weight (rows, T) NULL: 1; positive_weight (T) NULL: 1.
// row_loss (rows, T) may be NULL. dz (rows, T) is overwritten with the gradient of the sum.
struct logistic_sum logistic_loss(size_t rows, int T, const float *z, const float *label,
                                  const float *weight, const float *positive_weight,
                                  float *row_loss, float *dz);
