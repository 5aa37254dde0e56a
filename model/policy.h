// SPDX-License-Identifier: Apache-2.0
//
// The ranker's scores as rewards of a policy: pi = softmax(s) over one slate. Terms have the form
// of slate_loss.h.
#pragma once

#include <stdbool.h>

// (g_k - mean) / max(sd, floor), mean and population deviation over the unmasked items; NAN stays
// NAN. So scores of different surfaces and versions become comparable, slate by slate.
void policy_advantage(int n, const float *g, float floor, float *advantage);

// Chen et al. 2019: retrieval returns K items, not one, so an item that is sure to be among them
// need not be pushed further. K (1 - pi)^(K - 1), which is K for rare items and goes to 0.
double policy_topk_weight(double pi, int K);

// ratio (n): min(pi_k / propensity_k, cap), for items drawn with a logged propensity. 1 where none
// was logged (0), NAN where mask (n) says NAN. cap may be INFINITY.
void policy_ratios(int n, const float *s, const float *mask, const float *propensity, float cap,
                   float *ratio);
// Divides by the mean of those that are not NAN, of one slate or of a whole batch: a little bias
// for much less variance. No term uses it yet.
void policy_self_normalise(int n, float *ratio);
// (sum w)^2 / sum w^2 over those that are not NAN: how many samples of equal weight they are worth.
// 0 when nothing weighs.
double policy_sample_size(int n, const float *ratio);

// -sum_k sg(ratio_k lambda_k A_k) log pi_k, lambda the top-K weight; sg means a constant. ratio
// NULL means 1 for each. An item whose advantage is NAN is masked; one with an advantage of 0 stays
// in the softmax. The loss says nothing by its value, only by its gradient:
//
//     d/ds_k = pi_k sum_j c_j - c_k     c the constants
//
// Where no propensity was logged, a negative advantage pushes without end: use slate_trust beside.
bool policy_gradient(int n, const float *s, const float *advantage, const float *ratio, int K,
                     float weight, double *loss, float *ds);

// -(E_pi[r] - beta KL(pi || softmax(s_ref))), exactly, by the sum over the slate (Ziegler et al.
// 2019). With r_k - beta log(pi_k / ref_k) as the shaped reward,
//
//     d/ds_k = -pi_k (shaped_k - E_pi[shaped])
//
// An item with NAN in r or in s_ref is masked.
bool policy_shaped(int n, const float *s, const float *s_ref, const float *r, float beta,
                   float weight, double *loss, float *ds);
