// SPDX-License-Identifier: Apache-2.0
#include "model/position_model.h"

#include <assert.h>
#include <math.h>

#include "model/logistic.h"

struct position_posterior position_posterior(float e, float r, bool engaged)
{
    if (engaged)
        return (struct position_posterior){1, 1};
    return (struct position_posterior){
        .examined = (float)logistic_sigmoid(e - logistic_softplus(r)),
        .relevant = (float)logistic_sigmoid(r - logistic_softplus(e)),
    };
}

float position_fold(float theta, float examined, float rate)
{
    return theta + rate * (examined - theta);
}

double position_pal_forward(int B, const float *seen, const float *relevance, const float *label,
                            float *p)
{
    const float least = 1e-6f;
    double loss = 0;
    for (int i = 0; i < B; i++) {
        p[i] = fminf(fmaxf(seen[i] * relevance[i], least), 1 - least);
        loss -= label[i] * log(p[i]) + (1 - label[i]) * log1p(-(double)p[i]);
    }
    return B > 0 ? loss / B : 0;
}

void position_pal_backward(int B, const float *seen, const float *relevance, const float *label,
                           const float *p, float *dseen, float *drelevance)
{
    for (int i = 0; i < B; i++) {
        const float dp = (p[i] - label[i]) / (p[i] * (1 - p[i]) * (float)B);
        if (dseen)
            dseen[i] += dp * relevance[i];
        if (drelevance)
            drelevance[i] += dp * seen[i];
    }
}

double position_additive_forward(int B, const float *f, const float *g, const int *bucket,
                                 const float *label)
{
    double loss = 0;
    for (int i = 0; i < B; i++) {
        const double z = (double)f[i] + g[bucket[i]];
        loss += logistic_softplus(z) - z * label[i];
    }
    return B > 0 ? loss / B : 0;
}

void position_additive_backward(int B, const float *f, const float *g, const int *bucket,
                                const float *label, float *df, float *dg)
{
    for (int i = 0; i < B; i++) {
        const double z = (double)f[i] + g[bucket[i]];
        const float dz = (float)((logistic_sigmoid(z) - label[i]) / B);
        if (df)
            df[i] += dz;
        if (dg)
            dg[bucket[i]] += dz;
    }
}

float position_ipw(float theta, float cap)
{
    return theta > 0 ? fminf(1 / theta, cap) : 1;
}

void position_self_normalise(int n, float *weight)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += weight[i];
    if (sum > 0)
        for (int i = 0; i < n; i++)
            weight[i] = (float)(weight[i] * (n / sum));
}

float position_pseudo_label(float label, float alpha, float beta)
{
    assert(alpha > 0);
    return (label - beta) / alpha;
}
