// SPDX-License-Identifier: Apache-2.0
//
// The guard against reward hacking: how much what the ranker says agrees with what people did, over
// the last slates. A term that follows the ranker is multiplied by reward_guard_scale, which is 0
// unless the agreement is proven.
//
// Of every slate whose labels are final: x, the ranker's scores standardised inside the slate; y,
// the realised net values centred inside it; both over the items that were shown and scored. Then
//
//     c = sum_k x_k y_k                 of one slate
//     correlation = sum c / sqrt(sum x^2  sum y^2)          sums with exponential forgetting
//     lower = (sum c - confidence sqrt(sum c^2)) / sqrt(sum x^2  sum y^2)
//     scale = lower, but at least 0
//
// The slate and not the item is what counts once: items of one slate hang together, by their centre
// and by their user. sum c / sqrt(sum c^2) normalises itself, so values of any scale or tail may
// enter, and one large value proves nothing: of n slates it is at most sqrt(n). No scale is above 0
// before confidence^2 slates.
//
// A score that only says at which position the item stood correlates with clicks even when it knows
// nothing, because people look at the top. With weights 1 / theta, theta the probability that this
// position is looked at, the value of a click becomes an unbiased estimate of what the item is
// worth (Joachims et al. 2017), and what is left of the correlation is the ranker's knowledge.
// Without them the scale is too high for a ranker whose scores decide the order.
//
// Predict first, learn after: read the scale for a slate before the slate is observed. A new
// version of the ranker has proven nothing: start it from a state of zeros.
//
// The state is plain numbers, to be kept in a column. One thread.
#pragma once

#include <stdbool.h>

struct reward_guard {
    double product;                      // sum of c
    double product_squares;              // sum of c^2, forgotten at twice the rate
    double score_squares, value_squares; // sums of x^2, y^2
    double slates, slate_squares;        // sums of weight and squared weight of the slates
};

struct reward_guard_options {
    float half_life; // in slates, > 0; about 1000
    // Standard errors below the estimate, one-sided, >= 0; about 3, because the scale is read again
    // and again: with scores that are noise it was above 0 for 2.6 % of the time at 2, for 0.14 %
    // at 3 (and then below 0.011), never at 4 (300 streams of 10,000 slates, half-life 1000).
    float confidence;
    float weight_max; // a 1 / theta counts no more than this; about 10
};

// score, y (n): NAN where not scored or not shown; what is infinite counts as NAN. weight (n) is
// 1 / theta, or NULL for 1. False, and nothing is changed, when fewer than two items are left or
// all have the same value: such a slate cannot agree or disagree. Scores that are all the same do
// count, as a slate about which the ranker knew nothing.
bool reward_guard_observe(struct reward_guard *g, const struct reward_guard_options *o, int n,
                          const float *score, const float *y, const float *weight);
// In [0, 1].
double reward_guard_scale(const struct reward_guard *g, const struct reward_guard_options *o);
// In [-1, 1], without a margin for chance; 0 before the first slate.
double reward_guard_correlation(const struct reward_guard *g);
// How many slates of equal weight the sums are worth; 0 before the first.
double reward_guard_sample_size(const struct reward_guard *g);
