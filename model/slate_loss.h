// SPDX-License-Identifier: Apache-2.0
//
// What all losses over one slate share, and the two that are a divergence between softmaxes.
// The others: distill.h, preference.h, policy.h.
//
// Of a slate of n items the model has, item by item:
//
//     s (n)       its own retrieval scores, u . v
//     g (n)       the teacher's scores, or their value-weighted sum
//     s_ref (n)   the retrieval scores of the last published model
//     y (n)       net value, NAN for items that were not shown
//
// An item whose teacher says NAN (not ranked, stale, not published then) is masked: it takes part
// in no softmax, and its gradient is exactly 0. Only the teacher masks. A NAN in s is a model that
// has diverged, and makes the loss NAN, so that the step is refused.
//
// Every term is one function of one form:
//
//     bool term(int n, const float *s, .., float weight, double *loss, float *ds)
//
// It overwrites loss with its value for this slate, not multiplied by weight, and adds weight times
// the derivative to ds (n), which may be NULL. Averaging over slates is the caller's: weight is
// lambda / slates. False means that the slate has nothing to say (fewer than two items are left, or
// no pair): loss is 0, ds is untouched, and the caller counts it. What a teacher says is a
// constant: no gradient goes there.
//
// Sums are in double, exponents have the maximum taken off. No allocation, no limit to n.
#pragma once

#include <stdbool.h>

// log sum_k exp(x_k / tau) over the items that mask (n) does not say NAN for; -inf when none is
// left. The log-probability of item k is x_k / tau less this.
double slate_log_sum(int n, const float *x, const float *mask, double tau);
// How many items mask leaves.
int slate_unmasked(int n, const float *mask);
// order (n) gets the unmasked items, highest g first, of equal ones the lower index. Returns how
// many they are.
int slate_order(int n, const float *g, int *order);

// KL(softmax(g / tau_g) || softmax(s / tau_s)), the alignment of a slate with its ranker. For a
// batch of all pairs it is called for each row, with a weight of 1 / rows. The softmax takes g as
// it is: probabilities of a few per cent make a flat target, so scores whose scale is not known go
// through policy_advantage first.
//
//     d/ds_k = (q_k - p_k) / tau_s     p the teacher's, q the model's probabilities
bool slate_align(int n, const float *s, float tau_s, const float *g, float tau_g, float weight,
                 double *loss, float *ds);

// The trust region: KL(softmax(s) || softmax(s_ref)), by which no term carries the model far from
// what was last published. An item with s_ref NAN is masked.
//
//     d/ds_k = q_k (log q_k - log r_k - KL)     r the published model's probabilities
bool slate_trust(int n, const float *s, const float *s_ref, float weight, double *loss, float *ds);
