// SPDX-License-Identifier: Apache-2.0
//
// Losses over pairs of one slate: of two items, which should score higher. Terms have the form of
// slate_loss.h; loss and gradient are the mean over the pairs, so that a long slate weighs no more
// than a short one. A pair is left out when what the term reads of the teacher is NAN for one of
// its items; false when no pair is left.
//
// Below, i is the high and j the low item of a pair, and D x means x_i - x_j.
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct preference_pair {
    uint16_t high, low; // indices into the slate's arrays
};

// How many pairs n items can give: room for either of the two below.
#define PREFERENCE_PAIRS(n) ((n) * ((n)-1) / 2)

// Pairs by the ranker: all with g_i - g_j > gap, gap >= 0. Returns how many. To pair only what was
// shown, let g be NAN elsewhere. They come out sorted by high, then low, here and below.
int preference_by_score(int n, const float *g, float gap, struct preference_pair *pairs);
// Engaged over skipped: y_i > 0 and y_j <= 0, both shown. y must be final: what is not engaged yet
// may be later, and would have been called worse.
int preference_by_value(int n, const float *y, struct preference_pair *pairs);

// (D s - D g)^2: for teachers whose scale is the model's.
bool preference_margin_mse(int n_pairs, const struct preference_pair *pairs, const float *s,
                           const float *g, float weight, double *loss, float *ds);
// bce(D s, sigmoid(D g / T)): the order with the teacher's own certainty.
bool preference_soft(int n_pairs, const struct preference_pair *pairs, const float *s,
                     const float *g, float T, float weight, double *loss, float *ds);
// log(1 + e^(-D s)): the order alone (BPR).
bool preference_bpr(int n_pairs, const struct preference_pair *pairs, const float *s, float weight,
                    double *loss, float *ds);
// -log sigmoid(beta (D s - D s_ref)) (Rafailov et al. 2023; inside one slate the partition function
// cancels). It may lower both scores of a pair, so it wants the retrieval loss beside it.
bool preference_dpo(int n_pairs, const struct preference_pair *pairs, const float *s,
                    const float *s_ref, float beta, float weight, double *loss, float *ds);
// -log sigmoid(-log sum_j exp(-beta (D s - D s_ref))), j over all that are low to one high
// (S-DPO, Chen et al. 2024): the mean is over the high items. The pairs of one high item must be
// adjacent, as the functions above leave them.
bool preference_s_dpo(int n_pairs, const struct preference_pair *pairs, const float *s,
                      const float *s_ref, float beta, float weight, double *loss, float *ds);
