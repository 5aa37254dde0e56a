// SPDX-License-Identifier: Apache-2.0
//
// Models of what a position does to an engagement, as pure functions of arrays.
//
//     PBM        P(engaged) = theta_k gamma_x: seen at position k, and relevant; EM posteriors
//     PAL        the same product for a pointwise head that is trained on it by cross-entropy
//     additive   logit P(engaged) = f(x) + g(surface, position)
//     affine     P(engaged) = alpha_k gamma_x + beta_k: trust in high positions
//     IPW        a row of position k or propensity p counts 1 / theta_k or 1 / p, capped
//
// Forward overwrites and returns the mean loss, backward adds. Labels are 0 or 1. Nothing can fail.
// The estimators of model/debias.h use PBM and IPW; PAL, the additive head, the affine labels and
// the self-normalised form no objective uses yet.
#pragma once

#include <stdbool.h>

#include "model/slate.h"

// Where a table by position keeps what it knows. Every position has a bucket, whatever was logged.
enum {
    POSITIONS_MAX = 64,     // positions 0..63 have a bucket of their own
    POSITION_OVERFLOW = 64, // all beyond
    POSITION_UNKNOWN = 65,  // not logged
    POSITION_BUCKETS = 66,  // of one surface
};

static inline int position_bucket(int position)
{
    if (position < 0)
        return POSITION_UNKNOWN;
    return position < POSITIONS_MAX ? position : POSITION_OVERFLOW;
}

// ---- position-based model ------------------------------------------------------------------

struct position_posterior {
    float examined, relevant;
};

// The probabilities of having been examined and of being relevant, given whether it was engaged
// with: both 1 when it was, else sigmoid(e - log(1 + exp r)) and sigmoid(r - log(1 + exp e)), where
// e and r are the logits of theta and gamma.
// relevant - gamma and examined - theta are the gradients of the log-likelihood by r and e.
struct position_posterior position_posterior(float e, float r, bool engaged);
// One step of online EM: theta moved towards a posterior of examination.
float position_fold(float theta, float examined, float rate);

// ---- pointwise heads -----------------------------------------------------------------------

// p (B) = seen * relevance. The loss is kept finite by limiting p to [1e-6, 1 - 1e-6], and the
// gradient by p is bounded by 1e6 / B. All (B); dseen and drelevance may be
// NULL.
double position_pal_forward(int B, const float *seen, const float *relevance, const float *label,
                            float *p);
void position_pal_backward(int B, const float *seen, const float *relevance, const float *label,
                           const float *p, float *dseen, float *drelevance);

// f (B): logits of relevance. g: a table of logits with POSITION_BUCKETS for each surface, or of
// any other size that bucket (B) indexes.
double position_additive_forward(int B, const float *f, const float *g, const int *bucket,
                                 const float *label);
// df (B) and dg, as g, may be NULL.
void position_additive_backward(int B, const float *f, const float *g, const int *bucket,
                                const float *label, float *df, float *dg);

// ---- weights and labels --------------------------------------------------------------------

// min(1 / theta, cap); 1 for a theta of 0, which stands for an unknown one.
float position_ipw(float theta, float cap);
// Divides weights by their mean, so that their sum says nothing: the self-normalised form. Weights
// that are all 0 stay.
void position_self_normalise(int n, float *weight);
// (label - beta) / alpha: unbiased where P(engaged) = alpha gamma + beta. May be negative, so it is
// for losses that are linear in the label.
float position_pseudo_label(float label, float alpha, float beta);
