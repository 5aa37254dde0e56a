// SPDX-License-Identifier: Apache-2.0
//
// Whether a snapshot may leave: a pure function of its own figures, of those of the last good one,
// and of options. The first reason that holds is the one that is told:
//
//     not_finite   a number of a published array is infinite or NaN, or a row is longer than 1e19
//     rows         fewer items or users than the checkpoint's tables have; or fewer than the share
//                  rows_share of the last good one's
//     norm         a row longer than norm_max
//     norm_jump    the mean length of an array's rows is more than norm_jump times what it was, or
//                  1 if that is more: tables that began at zero grow by any factor. Or the sum of
//                  the lengths has shrunk below 1/norm_jump; the sum, because new rows, which are
//                  short, lower the mean of a healthy table
//     recall       recall@100 fell, and neither chance nor the stream explains it
//
// Of recall. Let p and P be recall@100 of the quality window now and in the last good snapshot, q
// and Q that of decayed popularity on the same events, n and N how many events. A stream gets
// harder by itself: on ml1m's last tenth recall goes from 0.657 to 0.598 and nothing is broken.
// Popularity knows no vectors, and goes from 0.250 to 0.229. So what is expected is
//
//     e = P min(1, q / Q)               (e = P where Q = 0)
//
// and the snapshot is refused when n >= events, N >= events,
//
//     p < recall e      and      e - p > errors s,      s^2 = (e / P)^2 P (1 - P) / N + p (1 - p) /
//     n
//
// s is the standard error of e - p for two independent windows of n and N events, on the safe side:
// the windows overlap, and their weights decay, so that they are worth more events than n and N
// say. The noise of q / Q is not in it: it is measured on the same events, and goes along with p.
// With windows that are full (7,213) and P = 0.6, recall must fall by 4.1 % to be beyond 3 errors;
// with 1,000 events by 11 %.
//
// A snapshot that is refused changes nothing: the next one is compared with the same last good one.
// Steps that are each within the limits are not seen, however many.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum guard_reason {
    GUARD_NOT_FINITE,
    GUARD_ROWS,
    GUARD_NORM,
    GUARD_NORM_JUMP,
    GUARD_RECALL,
    GUARD_REASONS // none: it may leave
};
extern const char *const guard_reason_names[GUARD_REASONS];

// What is measured, row by row. Item vectors are without their last element, which is bias and
// prior and has an array of its own: of it only the bounds are looked at.
enum guard_array {
    GUARD_ITEM,
    GUARD_ITEM_LAST,
    GUARD_ITEM_CONTEXT,
    GUARD_ITEM_ROW,
    GUARD_USER,
    GUARD_DENSE, // the rows of all matrices
    GUARD_ARRAYS
};
extern const char *const guard_array_names[GUARD_ARRAYS];

enum { GUARD_QUANTILES = 3, GUARD_BUCKETS = 1 << 11 };
extern const double guard_quantile_at[GUARD_QUANTILES]; // 0.05, 0.5, 0.95

// Lengths of rows, while they come.
struct guard_sums {
    uint64_t n;
    double sum, max;
    uint64_t bucket[GUARD_BUCKETS]; // by the squares' exponent and three bits
};

// Lengths of rows, all of them. Quantiles are within 3.1 %.
struct guard_norms {
    uint64_t n; // 0: there is no such array
    double mean, max, quantile[GUARD_QUANTILES];
};

struct guard_figures {
    uint64_t items, users; // published
    double events;         // of the quality window
    double recall_100, popularity_recall_100;
    struct guard_norms norms[GUARD_ARRAYS];
};

// 0 turns a rule off; the bounds of not_finite and of the tables' rows have no switch.
struct guard_options {
    double recall;     // 0.98
    double events;     // 1000
    double errors;     // 3
    double norm_max;   // 1000
    double norm_jump;  // 4
    double rows_share; // 0.5
};

// A row by the sum of its squares. False when that is not finite: then it is not counted.
bool guard_row(struct guard_sums *sums, float squares);
void guard_norms_of(const struct guard_sums *sums, struct guard_norms *norms);

// items_there, users_there: rows of the checkpoint's tables. last: NULL when there is none. Returns
// GUARD_REASONS, or a reason with a sentence.
enum guard_reason guard_decide(const struct guard_options *o, const struct guard_figures *now,
                               uint64_t items_there, uint64_t users_there,
                               const struct guard_figures *last, char *sentence, size_t size);

// The manifest's member "norms". Returns a malloc'ed JSON text, or NULL when memory is short.
char *guard_norms_text(const struct guard_norms norms[GUARD_ARRAYS]);
// Figures out of a manifest. False when it has not all of them: an older snapshot.
bool guard_figures_read(struct guard_figures *figures, const char *manifest);
