// SPDX-License-Identifier: Apache-2.0
#include "model/reward_guard.h"

#include <assert.h>
#include <math.h>

static bool takes_part(int k, const float *score, const float *y)
{
    return isfinite(score[k]) && isfinite(y[k]);
}

static double value_of(int k, const struct reward_guard_options *o, const float *y,
                       const float *weight)
{
    return (double)y[k] * (weight ? fmin((double)weight[k], (double)o->weight_max) : 1);
}

bool reward_guard_observe(struct reward_guard *g, const struct reward_guard_options *o, int n,
                          const float *score, const float *y, const float *weight)
{
    int items = 0;
    double score_mean = 0, value_mean = 0, xx = 0, xy = 0, yy = 0;
    assert(o->half_life > 0 && o->confidence >= 0 && o->weight_max > 0);
    for (int k = 0; k < n; k++) {
        if (!takes_part(k, score, y))
            continue;
        items++;
        score_mean += (double)score[k];
        value_mean += value_of(k, o, y, weight);
    }
    if (items < 2)
        return false;
    score_mean /= items;
    value_mean /= items;
    for (int k = 0; k < n; k++) {
        if (!takes_part(k, score, y))
            continue;
        const double x = (double)score[k] - score_mean;
        const double value = value_of(k, o, y, weight) - value_mean;
        xx += x * x;
        xy += x * value;
        yy += value * value;
    }
    if (!(yy > 0))
        return false;

    const double keep = exp2(-1 / (double)o->half_life);
    const double c = xx > 0 ? xy / sqrt(xx / items) : 0;
    g->product = keep * g->product + c;
    g->product_squares = keep * keep * g->product_squares + c * c;
    // Standardised, the squares of x sum to the number of items. That is added for equal scores
    // too: their x is 0, but the correlation must fall by them, as it does by scores that are
    // noise.
    g->score_squares = keep * g->score_squares + items;
    g->value_squares = keep * g->value_squares + yy;
    g->slates = keep * g->slates + 1;
    g->slate_squares = keep * keep * g->slate_squares + 1;
    return true;
}

static double norm(const struct reward_guard *g)
{
    return sqrt(g->score_squares * g->value_squares);
}

double reward_guard_correlation(const struct reward_guard *g)
{
    return norm(g) > 0 ? g->product / norm(g) : 0;
}

double reward_guard_scale(const struct reward_guard *g, const struct reward_guard_options *o)
{
    const double lower = g->product - (double)o->confidence * sqrt(g->product_squares);
    // Cauchy and Schwarz keep it below 1, but for rounding.
    return lower > 0 ? fmin(lower / norm(g), 1) : 0;
}

double reward_guard_sample_size(const struct reward_guard *g)
{
    return g->slate_squares > 0 ? g->slates * g->slates / g->slate_squares : 0;
}
