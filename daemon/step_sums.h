// SPDX-License-Identifier: Apache-2.0
//
// What the trainer's steps did, summed up: over a minute for the gauges of /metrics, over a whole
// stream for `twotower eval`. Steps that replay or were skipped add nothing but their number.
//
// Plain data that starts as zeros, and is set back by them. One thread.
#pragma once

#include "model/two_tower.h"

struct step_sums {
    uint64_t steps, slate_steps, skipped;
    uint64_t masked;                          // pairs left out of the softmax, for they are known
    double loss, examples;                    // of the retrieval
    struct objective_report term[OBJECTIVES]; // sums
    int term_steps[OBJECTIVES];               // steps in which it had something to say
    struct batch_metrics batch;
    double l2;
    int measured; // steps that batch and l2 are of
    uint64_t slates, unscored;
    double guard, guarded; // sum of scales over this many slates
    double sample_size;    // of capped ratios: sum over `sampled` slates
    int sampled;
};

void step_sums_add(struct step_sums *s, const struct step_report *report);
void step_sums_add_slates(struct step_sums *s, const struct slate_report *report);
// Sets the gauges that have something to say.
void step_sums_tell(const struct step_sums *s);
