// SPDX-License-Identifier: Apache-2.0
//
// What an impression was worth to the user, and the weight that its row gets from it.
//
//     n_i = sum_t y_it w_t              net value: tasks are the kinds of engagement that count
//     n~  = n, or what a debiasing estimator (model/debias.h) leaves of it
//     a_i = weight of row i of the softmax, from n~
//
// Weights are constants to every loss: nothing is learned through them.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/slate.h"

// ---- tasks ---------------------------------------------------------------------------------

enum {
    VALUE_NAME_MAX = 31,
    VALUE_TASKS_TEXT_SIZE = SLATE_TASKS_MAX * (VALUE_NAME_MAX + 20), // of value_tasks_text
};

// Task t of every label word and of every score list. Weights may be of any sign and may be
// replaced while running; names and their order may not, as labels are kept by task number.
struct value_tasks {
    int n;     // 1..SLATE_TASKS_MAX
    int other; // the task that takes actions without one of their own, -1: they have no value
    float weight[SLATE_TASKS_MAX];
    char name[SLATE_TASKS_MAX][VALUE_NAME_MAX + 1]; // "*" for that task
};

// Reads "click=1,like=2.5,hide=-1,*=0"; blanks around names and numbers don't matter. Returns 0, or
// -EINVAL and a sentence in error (size bytes) that says what is wrong at which character, counted
// from 1; then *v is unchanged.
int value_tasks_parse(struct value_tasks *v, const char *text, char *error, size_t size);
// Whether labels by task number mean the same to both: same names in the same order.
bool value_tasks_agree(const struct value_tasks *a, const struct value_tasks *b);
// Whether this is "*=1", the default: every engagement counts as one, and nothing weighs it.
bool value_tasks_plain(const struct value_tasks *v);
// "click=1,like=2.5,hide=-1" with these weights (n), which value_tasks_parse reads as the same
// numbers; without weights, NULL, the names alone. Returns text.
char *value_tasks_text(const struct value_tasks *v, const float *weight,
                       char text[VALUE_TASKS_TEXT_SIZE]);
// The net value of labels: bit t for task t.
float value_of_labels(const struct value_tasks *v, uint32_t labels);

// net (B) is overwritten. labels (B, T), value_weight (T). No model uses it yet: an engagement has
// one task, and a slate's labels are bits.
void value_net(int B, int T, const float *labels, const float *value_weight, float *net);

// ---- row weights ---------------------------------------------------------------------------

enum value_form {
    // min(n / scale, 1) for n > 0, else exactly 0: the row is a column for the others and no more.
    VALUE_FIXED,
    // max(n, 1e-6) / max_k max(n_k, 1e-6): for comparison. A batch without any positive is
    // trained as if every row were one, an outlier shrinks all the others, and what is negative is
    // lost.
    VALUE_SEED,
    // As VALUE_FIXED, and max(n / scale, -1) for n < 0. A row of weight -w is an explicit negative
    // signal: its loss is the unlikelihood -w log(1 - P_target), which is bounded in its gradient,
    // where -w times the cross-entropy would not be.
    VALUE_SIGNED,
};

// weight (B) is overwritten. scale is read by all but the seed form, and must be above 0. The
// models weigh by a running mean (model/row_weights.h) and take VALUE_SEED alone; the other two
// forms no model uses yet.
void value_weights(enum value_form form, int B, const float *net, float scale, float *weight);

// ---- residuals -----------------------------------------------------------------------------

// What is left of a value n beside its mean m and deviation sd in this context, as they were
// estimated before n was seen.
enum value_residual {
    VALUE_RATIO,      // min(n / max(m, floor), cap)
    VALUE_DIFFERENCE, // n - m
    VALUE_POSITIVE,   // max(n - m, 0)
    VALUE_Z,          // (n - m) / max(sd, floor)
};

// A cap of 0 is none; it limits the ratio on both sides, as a value may be negative.
float value_residual(enum value_residual form, float n, float mean, float sd, float floor,
                     float cap);
// No objective uses it yet: the effect of phi on a value when both are residuals of past-only
// predictions (Robinson 1988): sum phi_i value_i / sum phi_i^2; 0 when phi does not vary.
double value_partial_out(int n, const float *value, const float *phi);
