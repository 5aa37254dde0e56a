// SPDX-License-Identifier: Apache-2.0
//
// Engagements come late. A pointwise head that waits for the end of the window learns from old
// news; one that does not wait takes for a negative what is only not yet a positive. The modes say
// what a head learns from which slate (model/slate.h), so that it may learn early and still ends up
// with the true probability p:
//
//     none     waits: final labels, weight 1
//     fnw      fake negatives, weighted (Ktena et al. 2019). Every impression is a negative first,
//              weight (1 - p)(1 + p), and a positive, weight 1 + p, when it converts
//     fnc      fake negatives, corrected: the same stream, every weight 1. The head then learns a
//              biased b = p / (1 + p), and what is served is p = b / (1 - b)
//     es_dfm   elapsed-time sampling (Yang et al. 2021): labels after a while, late positives once
//              more. Positive 1 + p_dp, negative (1 + p_dp) p_rn: p_dp the chance that the pair
//              converts later, p_rn that an observed negative is one for good
//
// p is the head's own probability, taken as a constant. In the modes but none a closed slate
// teaches nothing, so each conversion is learned once: they need the early slates, and a
// configuration that has none must be refused.
//
// In fnw and fnc a positive of an early slate stands for two rows at once, the negative that would
// have been emitted and the positive: weight a + b, label b / (a + b), which has the loss and the
// gradient of both. Left out, the negatives of quick conversions would be missing, and p be too
// high by as much as conversions are quick.
//
// es_dfm needs no further network: of conversions a share `late` comes late, for each task, so
// p_dp = late p and p_rn = (1 - p) / (1 - p + late p). It is exact at every p when the delay does
// not depend on the pair, where constants p_dp and p_rn would be right on average alone. With late
// = 1 it is fnw.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "model/slate.h"

enum delayed_feedback_mode {
    DELAYED_FEEDBACK_NONE,
    DELAYED_FEEDBACK_FNW,
    DELAYED_FEEDBACK_FNC,
    DELAYED_FEEDBACK_ES_DFM,
};

// ---- weights, as plain functions of arrays (n) -----------------------------------------------
//
// label 0 or 1. They belong with logistic_loss (model/logistic.h), and are constants to it.

void delayed_feedback_fnw(size_t n, const float *p, const float *label, float *weight);
void delayed_feedback_es_dfm(size_t n, const float *label, const float *p_dp, const float *p_rn,
                             float *weight);
// p = b / (1 - b) of what fnc has learned; p may be biased itself. b is held below 1/2, from where
// on it has no meaning.
void delayed_feedback_fnc(size_t n, const float *biased, float *p);

// The delay as part of the model (Chapelle 2014): exponential with this rate, converted or not. No
// objective uses it yet.
//
//     label 1, after t        l = softplus(-z) - log rate + rate t
//     label 0, since t        l = -log(1 - p + p exp(-rate t))
//     dl/dz = p - posterior   posterior: of converting at all, given what is seen; 1 for label 1
//
// rate > 0, time >= 0 in the same unit. loss, posterior, dz, drate (n) are overwritten.
void delayed_feedback_dfm(size_t n, const float *z, const float *label, const float *rate,
                          const float *time, float *loss, float *posterior, float *dz,
                          float *drate);

// ---- slates ----------------------------------------------------------------------------------

// How many conversions came late, by task: the last few thousand count most. Flat state, zero at
// the start, one thread.
struct late_arrivals {
    double early[SLATE_TASKS_MAX], late[SLATE_TASKS_MAX];
};

// Counts the conversions of an early slate, or of a late positive; other slates say nothing.
void late_arrivals_count(struct late_arrivals *a, int T, const struct slate *s);
// The share that comes late, in (0, 1); one half while nothing is known.
float late_arrivals_share(const struct late_arrivals *a, int task);

// What a pointwise head learns from one slate. z (n_items, T): its logits; label and weight
// (n_items, T) are overwritten, the label of a pair that teaches nothing with NAN: an item that was
// not shown, a task that a late positive does not speak of, a slate that the mode passes over.
void delayed_feedback_slate(enum delayed_feedback_mode mode, const struct late_arrivals *a, int T,
                            const struct slate *s, const float *z, float *label, float *weight);

// ---- delays by task, for people --------------------------------------------------------------

// Bucket 0 is below one second, bucket k from 2^(k-1) to below 2^k seconds; the last one is open.
enum { DELAY_BUCKETS = 24 };

// Flat state, zero at the start.
struct delay_histogram {
    uint64_t count[SLATE_TASKS_MAX][DELAY_BUCKETS];
};

// A negative delay counts as none.
void delay_histogram_add(struct delay_histogram *h, int task, int64_t delay_ms);
