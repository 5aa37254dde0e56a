// SPDX-License-Identifier: Apache-2.0
#include "model/policy.h"

#include <assert.h>
#include <math.h>

#include "model/slate_loss.h"

void policy_advantage(int n, const float *g, float floor, float *advantage)
{
    const int unmasked = slate_unmasked(n, g);
    double mean = 0, variance = 0;
    assert(floor > 0);
    for (int k = 0; k < n; k++)
        mean += isnan(g[k]) ? 0 : (double)g[k];
    mean /= unmasked > 0 ? unmasked : 1;
    for (int k = 0; k < n; k++)
        variance += isnan(g[k]) ? 0 : ((double)g[k] - mean) * ((double)g[k] - mean);
    const double deviation = sqrt(variance / (unmasked > 0 ? unmasked : 1));
    for (int k = 0; k < n; k++)
        advantage[k] = (float)(((double)g[k] - mean) / fmax(deviation, (double)floor));
}

double policy_topk_weight(double pi, int K)
{
    assert(K > 0);
    return K * pow(1 - pi, K - 1);
}

void policy_ratios(int n, const float *s, const float *mask, const float *propensity, float cap,
                   float *ratio)
{
    const double log_sum = slate_log_sum(n, s, mask, 1);
    assert(cap > 0);
    for (int k = 0; k < n; k++) {
        ratio[k] = 1;
        if (isnan(mask[k]))
            ratio[k] = NAN;
        else if (propensity[k] > 0)
            ratio[k] =
                (float)fmin(exp((double)s[k] - log_sum) / (double)propensity[k], (double)cap);
    }
}

void policy_self_normalise(int n, float *ratio)
{
    const int unmasked = slate_unmasked(n, ratio);
    double sum = 0;
    for (int k = 0; k < n; k++)
        sum += isnan(ratio[k]) ? 0 : (double)ratio[k];
    if (!(sum > 0))
        return;
    for (int k = 0; k < n; k++)
        ratio[k] = (float)((double)ratio[k] * unmasked / sum);
}

double policy_sample_size(int n, const float *ratio)
{
    double sum = 0, squares = 0;
    for (int k = 0; k < n; k++) {
        if (isnan(ratio[k]))
            continue;
        sum += (double)ratio[k];
        squares += (double)ratio[k] * (double)ratio[k];
    }
    return squares > 0 ? sum * sum / squares : 0;
}

// sg(ratio lambda A) of item k.
static double coefficient(int k, double pi, const float *advantage, const float *ratio, int K)
{
    return (ratio ? (double)ratio[k] : 1) * policy_topk_weight(pi, K) * (double)advantage[k];
}

bool policy_gradient(int n, const float *s, const float *advantage, const float *ratio, int K,
                     float weight, double *loss, float *ds)
{
    double sum = 0;
    *loss = 0;
    if (slate_unmasked(n, advantage) < 2)
        return false;
    const double log_sum = slate_log_sum(n, s, advantage, 1);
    for (int k = 0; k < n; k++) {
        if (isnan(advantage[k]))
            continue;
        const double log_pi = (double)s[k] - log_sum;
        const double c = coefficient(k, exp(log_pi), advantage, ratio, K);
        sum += c;
        *loss -= c * log_pi;
    }
    for (int k = 0; ds && k < n; k++) {
        if (isnan(advantage[k]))
            continue;
        const double pi = exp((double)s[k] - log_sum);
        ds[k] += (float)((double)weight * (pi * sum - coefficient(k, pi, advantage, ratio, K)));
    }
    return true;
}

static bool is_masked(int k, const float *s_ref, const float *r)
{
    return isnan(s_ref[k]) || isnan(r[k]);
}

// slate_log_sum with two masks.
static double log_sum_of_both(int n, const float *x, const float *s_ref, const float *r)
{
    double max = -INFINITY, sum = 0;
    for (int k = 0; k < n; k++)
        if (!is_masked(k, s_ref, r) && (double)x[k] > max)
            max = (double)x[k];
    for (int k = 0; k < n; k++)
        if (!is_masked(k, s_ref, r))
            sum += exp((double)x[k] - max);
    return max + log(sum);
}

bool policy_shaped(int n, const float *s, const float *s_ref, const float *r, float beta,
                   float weight, double *loss, float *ds)
{
    int unmasked = 0;
    double objective = 0;
    *loss = 0;
    for (int k = 0; k < n; k++)
        unmasked += !is_masked(k, s_ref, r);
    if (unmasked < 2)
        return false;
    const double model = log_sum_of_both(n, s, s_ref, r);
    // log pi_k - log ref_k = s_k - s_ref_k - shift
    const double shift = model - log_sum_of_both(n, s_ref, s_ref, r);
    for (int pass = 0; pass < 2; pass++)
        for (int k = 0; k < n; k++) {
            if (is_masked(k, s_ref, r))
                continue;
            const double pi = exp((double)s[k] - model);
            const double shaped =
                (double)r[k] - (double)beta * ((double)s[k] - (double)s_ref[k] - shift);
            if (pass == 0)
                objective += pi * shaped;
            else if (ds)
                ds[k] -= (float)((double)weight * pi * (shaped - objective));
        }
    *loss = -objective;
    return true;
}
