// SPDX-License-Identifier: Apache-2.0
//
// Softmax over a sample of the catalogue: one row of logits becomes its gradient. All rows share
// their columns, of which one is the row's target, the others are its negatives.
//
//     c_j = s_j - log q_j    the corrected logits, which is what a row holds when it comes in
//     t                      the target's column;  n: negatives, the columns that are left but t
//
//     SAMPLED_LOGQ      l = lse(c) - c_t                                    Yi et al. 2019, eq. 4
//                       every column is corrected, the target too
//     SAMPLED_MNS       l = lse(s_t, c_j) - s_t                             Yang et al. 2020
//                       the target is not corrected: it did not come by chance
//     SAMPLED_COUNTED   l = lse(s_t, c_j - log n) - s_t
//                       the sum over the negatives estimates that over the catalogue, and no longer
//                       grows with their number
//     SAMPLED_REFINED   l = sg(1 - P) (lse(c_j + log(1 - q_t)) - s_t)       Khrylchenko et al. 2025
//                       P of the COUNTED form with q_j / (1 - q_t), the chance of j among the
//                       negatives. l may be below 0: watch P, not l. Columns with the target's item
//                       must be removed.
//     SAMPLED_NONE      l = lse(s) - s_t, which is what LOGQ makes of rows that come in with s:
//     what
//                       is popular is pushed down for being a negative more often
//
// The mixed form whose target is corrected as well is SAMPLED_LOGQ with the q of sampled_rate.
//
// What q is the chance of matters to the last two forms alone, for a common factor cancels in the
// others: SAMPLED_DRAW, that one draw is this item (as in the papers); SAMPLED_PRESENCE, that the
// item is among the columns at all, when they are a set. Then sum_j exp(s_j) / q_j estimates the
// sum over the catalogue as it stands, and neither n nor 1 - q_t comes in.
//
// A row counts by its weight. Below 0 it is a target to be unlearned, bounded however wrong the
// model is (Welleck et al. 2020), with the P of its form:
//
//     weight > 0    loss weight l
//     weight < 0    loss -|weight| log(1 - P_t), gradient |weight| P_t at t
//     weight = 0    no loss, gradient 0
//
// A row without negatives, or whose target is removed, teaches nothing: no loss and gradient 0. A
// column that the caller has made -inf is no negative.
// Sets of columns are bits as in retrieval_loss.h, and bits past the last column are 0. A logit
// that is not finite gives a loss that is not. Nothing here can fail.
#pragma once

#include <stdint.h>

enum sampled_form {
    SAMPLED_LOGQ,
    SAMPLED_MNS,
    SAMPLED_COUNTED,
    SAMPLED_REFINED,
    SAMPLED_NONE,
};

enum sampled_chance { SAMPLED_DRAW, SAMPLED_PRESENCE };

struct sampled_softmax {
    enum sampled_form form;
    enum sampled_chance chance;
};

// Turns row (columns) from c into dloss/dc and adds it to dcolumn (columns); returns the loss.
// log_q (columns) is read for every form but SAMPLED_LOGQ and SAMPLED_NONE, and may be NULL there;
// removed may be NULL. What was removed has gradient 0 exactly.
double sampled_softmax_row(const struct sampled_softmax *s, int columns, const float *log_q,
                           int target, const uint64_t *removed, float weight, float *row,
                           float *dcolumn);

// How often an item is expected in a batch of `batch` targets drawn by popularity (its share is p)
// and `uniform` draws from a catalogue of `items`. Divided by the number of draws it is the q of
// SAMPLED_DRAW, the Q* of mixed negative sampling.
static inline double sampled_rate(double batch, double p, double uniform, double items)
{
    return batch * p + uniform / items;
}

// log q of SAMPLED_PRESENCE for an item expected rate > 0 times: log(1 - exp(-rate)), which does
// not saturate for rare items as a clipped probability does.
float sampled_log_presence(double rate);

// Removes for each of n rows what the same user engaged with in the other rows: rows of one user
// are positives of one another, not negatives. user (n) numbers the users of the batch from 0, all
// below n; target (n) are columns. last and before (n) are scratch. removed (n,
// retrieval_words(columns)) is added to. Returns how many bits were set. The row's own target
// stays.
int sampled_softmax_remove_known(int n, int columns, const uint32_t *user, const uint32_t *target,
                                 uint32_t *last, uint32_t *before, uint64_t *removed);
