// SPDX-License-Identifier: Apache-2.0
#include "model/slate_loss.h"

#include <assert.h>
#include <math.h>

double slate_log_sum(int n, const float *x, const float *mask, double tau)
{
    double max = -INFINITY, sum = 0;
    assert(tau > 0);
    for (int k = 0; k < n; k++)
        if (!isnan(mask[k]) && (double)x[k] > max)
            max = (double)x[k];
    for (int k = 0; k < n; k++)
        if (!isnan(mask[k]))
            sum += exp(((double)x[k] - max) / tau);
    return max / tau + log(sum);
}

int slate_unmasked(int n, const float *mask)
{
    int unmasked = 0;
    for (int k = 0; k < n; k++)
        unmasked += !isnan(mask[k]);
    return unmasked;
}

int slate_order(int n, const float *g, int *order)
{
    int unmasked = 0;
    // By insertion: slates are short, and equal items stay in the order of their index.
    for (int k = 0; k < n; k++) {
        if (isnan(g[k]))
            continue;
        int place = unmasked++;
        for (; place > 0 && g[order[place - 1]] < g[k]; place--)
            order[place] = order[place - 1];
        order[place] = k;
    }
    return unmasked;
}

bool slate_align(int n, const float *s, float tau_s, const float *g, float tau_g, float weight,
                 double *loss, float *ds)
{
    *loss = 0;
    if (slate_unmasked(n, g) < 2)
        return false;
    const double teacher = slate_log_sum(n, g, g, (double)tau_g);
    const double model = slate_log_sum(n, s, g, (double)tau_s);
    for (int k = 0; k < n; k++) {
        if (isnan(g[k]))
            continue;
        const double log_p = (double)g[k] / (double)tau_g - teacher, p = exp(log_p);
        const double log_q = (double)s[k] / (double)tau_s - model;
        if (p > 0) // 0 log 0 is 0
            *loss += p * (log_p - log_q);
        if (ds)
            ds[k] += (float)((double)weight * (exp(log_q) - p) / (double)tau_s);
    }
    return true;
}

bool slate_trust(int n, const float *s, const float *s_ref, float weight, double *loss, float *ds)
{
    *loss = 0;
    if (slate_unmasked(n, s_ref) < 2)
        return false;
    const double model = slate_log_sum(n, s, s_ref, 1);
    // log q_k - log r_k = (s_k - s_ref_k) - (model - published)
    const double shift = model - slate_log_sum(n, s_ref, s_ref, 1);
    for (int k = 0; k < n; k++)
        if (!isnan(s_ref[k]))
            *loss += exp((double)s[k] - model) * ((double)s[k] - (double)s_ref[k] - shift);
    for (int k = 0; ds && k < n; k++) {
        if (isnan(s_ref[k]))
            continue;
        const double log_ratio = (double)s[k] - (double)s_ref[k] - shift;
        ds[k] += (float)((double)weight * exp((double)s[k] - model) * (log_ratio - *loss));
    }
    return true;
}
