// SPDX-License-Identifier: Apache-2.0
#include "daemon/step_sums.h"

#include "daemon/metrics.h"

static void term_add(struct step_sums *s, enum objective which, const struct objective_report *one)
{
    struct objective_report *sum = &s->term[which];
    if (one->n == 0)
        return;
    sum->loss += one->loss;
    sum->query_norm += one->query_norm;
    sum->item_norm += one->item_norm;
    sum->n += one->n;
    s->term_steps[which]++;
}

void step_sums_add(struct step_sums *s, const struct step_report *report)
{
    s->steps++;
    s->skipped += report->skipped;
    if (report->replayed || report->skipped) // a loss that is not a number would stay
        return;
    s->loss += report->loss;
    s->examples += report->examples;
    s->masked += report->masked;
    term_add(s, OBJECTIVE_RETRIEVAL, &report->retrieval);
    if (!report->measured)
        return;
    batch_metrics_add(&s->batch, &report->metrics);
    s->l2 += report->l2;
    s->measured++;
}

void step_sums_add_slates(struct step_sums *s, const struct slate_report *report)
{
    s->slate_steps++;
    s->skipped += report->skipped;
    if (report->skipped)
        return;
    s->slates += (uint64_t)report->slates;
    s->unscored += (uint64_t)report->unscored;
    s->guard += report->guard * (report->slates - report->unscored);
    s->guarded += report->slates - report->unscored;
    s->sample_size += report->sample_size;
    s->sampled += report->sampled;
    for (int t = 0; t < OBJECTIVES; t++)
        term_add(s, (enum objective)t, &report->term[t]);
}

void step_sums_tell(const struct step_sums *s)
{
    static const enum metric_cutoff cutoffs[BATCH_AUC] = {[BATCH_ACCURACY_1] = BY_CUTOFF_1,
                                                          [BATCH_ACCURACY_5] = BY_CUTOFF_5,
                                                          [BATCH_ACCURACY_10] = BY_CUTOFF_10};
    for (int t = 0; t < OBJECTIVES; t++) {
        const struct objective_report *term = &s->term[t];
        if (term->n == 0)
            continue;
        metrics_set_of(METRIC_TERM_LOSS, t, term->loss / term->n);
        metrics_set_of2(METRIC_TERM_GRADIENT_NORM, t, BY_TOWER_USER,
                        term->query_norm / s->term_steps[t]);
        metrics_set_of2(METRIC_TERM_GRADIENT_NORM, t, BY_TOWER_ITEM,
                        term->item_norm / s->term_steps[t]);
    }
    if (s->measured > 0)
        metrics_set(METRIC_REGULARISATION_LOSS, s->l2 / s->measured);
    for (int k = 0; k < BATCH_AUC && s->batch.weight > 0; k++)
        metrics_set_of(METRIC_BATCH_ACCURACY, cutoffs[k],
                       batch_metrics_mean(&s->batch, (enum batch_metric)k));
    if (s->batch.weight > 0)
        metrics_set(METRIC_BATCH_AUC, batch_metrics_mean(&s->batch, BATCH_AUC));
    if (s->sampled > 0)
        metrics_set(METRIC_POLICY_SAMPLE_SIZE, s->sample_size / s->sampled);
}
