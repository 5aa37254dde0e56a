// SPDX-License-Identifier: Apache-2.0
#include "model/batch_metrics.h"

#include <assert.h>
#include <math.h>
#include <stdbool.h>

const char *const batch_metric_names[BATCH_METRICS] = {
    [BATCH_ACCURACY_1] = "batch_accuracy@1",
    [BATCH_ACCURACY_5] = "batch_accuracy@5",
    [BATCH_ACCURACY_10] = "batch_accuracy@10",
    [BATCH_AUC] = "batch_auc",
};

static const int cutoffs[BATCH_AUC] = {
    [BATCH_ACCURACY_1] = 1, [BATCH_ACCURACY_5] = 5, [BATCH_ACCURACY_10] = 10};

void batch_metrics_row(struct batch_metrics *m, int n, const float *scores, int target,
                       double weight)
{
    int higher = 0, equal = -1; // not itself
    bool finite = true;
    assert(target >= 0 && target < n);
    if (n < 2 || !(weight > 0))
        return;
    for (int j = 0; j < n; j++) {
        finite = finite && isfinite(scores[j]);
        higher += scores[j] > scores[target];
        equal += scores[j] == scores[target];
    }
    m->weight += weight;
    if (!finite)
        return;
    for (int k = 0; k < BATCH_AUC; k++)
        m->sum[k] += weight * (higher < cutoffs[k]);
    m->sum[BATCH_AUC] += weight * (1 - (higher + equal / 2.0) / (n - 1));
}

void batch_metrics_add(struct batch_metrics *m, const struct batch_metrics *other)
{
    for (int k = 0; k < BATCH_METRICS; k++)
        m->sum[k] += other->sum[k];
    m->weight += other->weight;
}

double batch_metrics_mean(const struct batch_metrics *m, enum batch_metric which)
{
    return m->weight > 0 ? m->sum[which] / m->weight : 0;
}
