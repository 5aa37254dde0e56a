// SPDX-License-Identifier: Apache-2.0
//
// How a model does inside its own batches: each example's item against the other candidates, by
// the scores as they are served, before corrections, masks and mining.
//
//     accuracy@k   1 when fewer than k candidates score higher: a tie counts for the item
//     auc          share of the other candidates that score lower, of equal ones the half
//
// A row with a score that is not finite is a miss, with an auc of 0. A row without other candidates
// is in no mean; nor is one with a weight of 0 or below, which is not to be found again.
//
// Cheap and quick to move, and no measure of what is served: the candidates of a batch are few, and
// most of them popular. Zeros are where it starts, and a reset.
#pragma once

enum batch_metric {
    BATCH_ACCURACY_1,
    BATCH_ACCURACY_5,
    BATCH_ACCURACY_10,
    BATCH_AUC,
    BATCH_METRICS,
};
// As in "batch_accuracy@5".
extern const char *const batch_metric_names[BATCH_METRICS];

struct batch_metrics {
    double sum[BATCH_METRICS]; // of weight times the figure
    double weight;
};

// The scores (n) of one example's candidates, each once, of which number target is its item.
void batch_metrics_row(struct batch_metrics *m, int n, const float *scores, int target,
                       double weight);
void batch_metrics_add(struct batch_metrics *m, const struct batch_metrics *other);
// The weighted mean; 0 when nothing weighs.
double batch_metrics_mean(const struct batch_metrics *m, enum batch_metric which);
