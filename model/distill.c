// SPDX-License-Identifier: Apache-2.0
#include "model/distill.h"

#include <assert.h>
#include <math.h>

#include "model/logistic.h"
#include "model/slate_loss.h"

bool distill_pointwise(int n, const float *z, const float *q, float weight, double *loss, float *dz)
{
    const int entries = slate_unmasked(n, q);
    *loss = 0;
    for (int k = 0; k < n; k++)
        if (q[k] < 0 || q[k] > 1)
            return false;
    if (entries == 0)
        return false;
    for (int k = 0; k < n; k++) {
        if (isnan(q[k]))
            continue;
        const double z_k = (double)z[k], q_k = (double)q[k];
        *loss += (logistic_softplus(z_k) - z_k * q_k) / entries;
        if (dz)
            dz[k] += (float)((double)weight * (logistic_sigmoid(z_k) - q_k) / entries);
    }
    return true;
}

bool distill_listwise(int n, const float *s, const float *g, float T, float weight, double *loss,
                      float *ds)
{
    const bool said = slate_align(n, s, T, g, T, weight * T * T, loss, ds);
    *loss *= (double)T * (double)T;
    return said;
}

// log sum_{j >= first} exp(s_j) over places of the order.
static double log_sum_from(int first, int m, const int *order, const float *s)
{
    double max = -INFINITY, sum = 0;
    for (int j = first; j < m; j++)
        max = (double)s[order[j]] > max ? (double)s[order[j]] : max;
    for (int j = first; j < m; j++)
        sum += exp((double)s[order[j]] - max);
    return max + log(sum);
}

bool distill_plackett_luce(int m, const int *order, const float *s, int k, float weight,
                           double *loss, float *ds)
{
    assert(k > 0);
    *loss = 0;
    if (m < 2)
        return false;
    // The last place has nothing to choose from: its loss is 0.
    const int places = k < m - 1 ? k : m - 1;
    for (int i = 0; i < places; i++) {
        // Each sum is made anew: k times m exponentials cost less than a place to keep m sums in.
        const double log_sum = log_sum_from(i, m, order, s);
        *loss += log_sum - (double)s[order[i]];
        for (int j = i; ds && j < m; j++) {
            const double p = exp((double)s[order[j]] - log_sum);
            ds[order[j]] += (float)((double)weight * (p - (j == i)));
        }
    }
    return true;
}

double distill_rank_weight(int rank, int K, float lambda)
{
    assert(rank >= 1 && rank <= K && lambda > 0);
    // The sum is geometric: q (1 - q^K) / (1 - q), q = e^(-1 / lambda).
    const double step = -1 / (double)lambda;
    return exp((rank - 1) * step) * expm1(step) / expm1(K * step);
}

bool distill_top_positives(int m, const int *order, const float *s, int K, float lambda,
                           float weight, double *loss, float *ds)
{
    assert(K > 0);
    *loss = 0;
    if (m < 1)
        return false;
    const int places = K < m ? K : m;
    for (int r = 0; r < places; r++) {
        const double w = distill_rank_weight(r + 1, places, lambda), s_r = (double)s[order[r]];
        *loss += w * logistic_softplus(-s_r);
        if (ds)
            ds[order[r]] -= (float)((double)weight * w * logistic_sigmoid(-s_r));
    }
    return true;
}
