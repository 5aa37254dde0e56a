// SPDX-License-Identifier: Apache-2.0
//
// Distillation of the main ranker from one slate. Terms have the form of slate_loss.h.
#pragma once

#include <stdbool.h>

// Pointwise: the mean of bce(z, q) = log(1 + e^z) - z q over the entries that have a teacher, one
// being enough. For the hard labels and the ranking head q is 0 or 1; for the teacher's
// probabilities z are the logits of the auxiliary head, which serving never reads, so that the
// teacher's bias stays out of what is served. q is NAN where there is no teacher: the entry is
// masked and does not count as 0. A q outside [0, 1] is not a probability, and would have no finite
// optimum: then nothing is learned from any of the n (false), because a scale that is not that of
// probabilities is wrong inside [0, 1] too. Logits go through logistic_sigmoid first.
// n counts items times tasks, in any order that z and q share.
//
//     d/dz = (sigmoid(z) - q) / entries
bool distill_pointwise(int n, const float *z, const float *q, float weight, double *loss,
                       float *dz);

// Listwise (Hinton et al. 2015): T^2 KL(softmax(g / T) || softmax(s / T)). The factor keeps the
// gradient's size when T changes: T (q_k - p_k).
bool distill_listwise(int n, const float *s, const float *g, float T, float weight, double *loss,
                      float *ds);

// The first k places of the teacher's order by Plackett-Luce:
//
//     -sum_{i < k} (s_i - log sum_{j >= i} exp(s_j))     i, j places in the order
//
// The top is matched in order and everything below it is pushed down. Only the order is read, so it
// serves where ranks were logged and no scores. m items: order (m) holds their indices into s, from
// slate_order; a k above m is m.
bool distill_plackett_luce(int m, const int *order, const float *s, int k, float weight,
                           double *loss, float *ds);

// Tang & Wang 2018: the first K of the teacher's order as positives, each by itself:
//
//     -sum_{r < K} w_r log sigmoid(s_r)     w_r = distill_rank_weight(r + 1, K, lambda)
//
// One item is enough; a K above m is m.
bool distill_top_positives(int m, const int *order, const float *s, int K, float lambda,
                           float weight, double *loss, float *ds);
// e^(-rank / lambda), rank = 1..K, divided by the sum over all K.
double distill_rank_weight(int rank, int K, float lambda);
