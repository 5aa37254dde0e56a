// SPDX-License-Identifier: Apache-2.0
#include "model/preference.h"

#include <assert.h>
#include <math.h>
#include <stddef.h>

#include "model/logistic.h"
#include "model/slate_loss.h"

int preference_by_score(int n, const float *g, float gap, struct preference_pair *pairs)
{
    int count = 0;
    assert(n <= UINT16_MAX && gap >= 0);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++)
            if (g[i] - g[j] > gap) // false where either is NAN
                pairs[count++] = (struct preference_pair){(uint16_t)i, (uint16_t)j};
    return count;
}

int preference_by_value(int n, const float *y, struct preference_pair *pairs)
{
    int count = 0;
    assert(n <= UINT16_MAX);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++)
            if (y[i] > 0 && y[j] <= 0)
                pairs[count++] = (struct preference_pair){(uint16_t)i, (uint16_t)j};
    return count;
}

static double margin(const struct preference_pair *pair, const float *x)
{
    return (double)x[pair->high] - (double)x[pair->low];
}

// Of one pair: the loss at a margin D s of the scores and D t of the teacher, 0 without one, and
// its derivative by D s.
typedef double (*pair_loss_fn)(double student, double teacher, double parameter,
                               double *derivative);

static bool pairs_mean(int n_pairs, const struct preference_pair *pairs, const float *s,
                       const float *teacher, double parameter, pair_loss_fn pair_loss, float weight,
                       double *loss, float *ds)
{
    int count = 0;
    *loss = 0;
    for (int p = 0; p < n_pairs; p++)
        count += !teacher || !isnan(margin(&pairs[p], teacher));
    if (count == 0)
        return false;
    for (int p = 0; p < n_pairs; p++) {
        const double of_teacher = teacher ? margin(&pairs[p], teacher) : 0;
        double derivative;
        if (isnan(of_teacher))
            continue;
        *loss += pair_loss(margin(&pairs[p], s), of_teacher, parameter, &derivative) / count;
        if (ds) {
            const float step = (float)((double)weight * derivative / count);
            ds[pairs[p].high] += step;
            ds[pairs[p].low] -= step;
        }
    }
    return true;
}

static double margin_mse(double student, double teacher, double unused, double *derivative)
{
    (void)unused;
    *derivative = 2 * (student - teacher);
    return (student - teacher) * (student - teacher);
}

static double soft(double student, double teacher, double T, double *derivative)
{
    const double target = logistic_sigmoid(teacher / T);
    *derivative = logistic_sigmoid(student) - target;
    return logistic_softplus(student) - target * student;
}

// BPR is this without a reference and with a beta of 1.
static double dpo(double student, double reference, double beta, double *derivative)
{
    const double x = beta * (student - reference);
    *derivative = -beta * logistic_sigmoid(-x);
    return logistic_softplus(-x);
}

bool preference_margin_mse(int n_pairs, const struct preference_pair *pairs, const float *s,
                           const float *g, float weight, double *loss, float *ds)
{
    return pairs_mean(n_pairs, pairs, s, g, 0, margin_mse, weight, loss, ds);
}

bool preference_soft(int n_pairs, const struct preference_pair *pairs, const float *s,
                     const float *g, float T, float weight, double *loss, float *ds)
{
    assert(T > 0);
    return pairs_mean(n_pairs, pairs, s, g, (double)T, soft, weight, loss, ds);
}

bool preference_bpr(int n_pairs, const struct preference_pair *pairs, const float *s, float weight,
                    double *loss, float *ds)
{
    return pairs_mean(n_pairs, pairs, s, NULL, 1, dpo, weight, loss, ds);
}

bool preference_dpo(int n_pairs, const struct preference_pair *pairs, const float *s,
                    const float *s_ref, float beta, float weight, double *loss, float *ds)
{
    assert(beta > 0);
    return pairs_mean(n_pairs, pairs, s, s_ref, (double)beta, dpo, weight, loss, ds);
}

// x_j = -beta (D s - D s_ref), NAN where the reference is.
static double s_dpo_exponent(const struct preference_pair *pair, const float *s, const float *s_ref,
                             double beta)
{
    return -beta * (margin(pair, s) - margin(pair, s_ref));
}

// The end of the run of pairs from first that share their high item.
static int run_end(int first, int n_pairs, const struct preference_pair *pairs)
{
    int end = first + 1;
    while (end < n_pairs && pairs[end].high == pairs[first].high)
        end++;
    return end;
}

static bool is_known(const struct preference_pair *pair, const float *s_ref)
{
    return !isnan(margin(pair, s_ref));
}

static int known_in(int first, int end, const struct preference_pair *pairs, const float *s_ref)
{
    int known = 0;
    for (int p = first; p < end; p++)
        known += is_known(&pairs[p], s_ref);
    return known;
}

bool preference_s_dpo(int n_pairs, const struct preference_pair *pairs, const float *s,
                      const float *s_ref, float beta, float weight, double *loss, float *ds)
{
    int winners = 0;
    *loss = 0;
    assert(beta > 0);
    for (int first = 0, end; first < n_pairs; first = end) {
        end = run_end(first, n_pairs, pairs);
        winners += known_in(first, end, pairs, s_ref) > 0;
    }
    for (int first = 0, end; first < n_pairs; first = end) {
        double max = -INFINITY, sum = 0;
        end = run_end(first, n_pairs, pairs);
        if (known_in(first, end, pairs, s_ref) == 0)
            continue;
        for (int p = first; p < end; p++)
            if (is_known(&pairs[p], s_ref))
                max = fmax(max, s_dpo_exponent(&pairs[p], s, s_ref, (double)beta));
        for (int p = first; p < end; p++)
            if (is_known(&pairs[p], s_ref))
                sum += exp(s_dpo_exponent(&pairs[p], s, s_ref, (double)beta) - max);
        const double log_sum = max + log(sum);
        *loss += logistic_softplus(log_sum) / winners;
        for (int p = first; ds && p < end; p++) {
            if (!is_known(&pairs[p], s_ref))
                continue;
            const double x = s_dpo_exponent(&pairs[p], s, s_ref, (double)beta);
            const double step =
                (double)beta * logistic_sigmoid(log_sum) * exp(x - log_sum) / winners;
            ds[pairs[p].high] -= (float)((double)weight * step);
            ds[pairs[p].low] += (float)((double)weight * step);
        }
    }
    return winners > 0;
}
