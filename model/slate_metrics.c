// SPDX-License-Identifier: Apache-2.0
#include "model/slate_metrics.h"

#include <assert.h>
#include <math.h>
#include <stdbool.h>

static bool takes_part(int k, const float *a, const float *b)
{
    return !isnan(a[k]) && !isnan(b[k]);
}

static int participants(int n, const float *a, const float *b)
{
    int count = 0;
    for (int k = 0; k < n; k++)
        count += takes_part(k, a, b);
    return count;
}

// The place of item k in the order of x, from 0.
static int place_of(int k, int n, const float *x, const float *other)
{
    int before = 0;
    for (int j = 0; j < n; j++)
        before += takes_part(j, x, other) && (x[j] > x[k] || (x[j] == x[k] && j < k));
    return before;
}

// Likewise, but equal scores share the mean of their places.
static double rank_of(int k, int n, const float *x, const float *other)
{
    int greater = 0, equal = 0;
    for (int j = 0; j < n; j++) {
        greater += takes_part(j, x, other) && x[j] > x[k];
        equal += takes_part(j, x, other) && x[j] == x[k];
    }
    return greater + (equal - 1) / 2.0;
}

double slate_overlap(int n, const float *a, const float *b, int k)
{
    int both = 0;
    assert(k > 0);
    if (participants(n, a, b) <= k)
        return NAN;
    for (int i = 0; i < n; i++)
        both += takes_part(i, a, b) && place_of(i, n, a, b) < k && place_of(i, n, b, a) < k;
    return (double)both / k;
}

double slate_spearman(int n, const float *a, const float *b)
{
    const double mean = (participants(n, a, b) - 1) / 2.0;
    double ab = 0, aa = 0, bb = 0;
    for (int k = 0; k < n; k++) {
        if (!takes_part(k, a, b))
            continue;
        const double of_a = rank_of(k, n, a, b) - mean, of_b = rank_of(k, n, b, a) - mean;
        ab += of_a * of_b;
        aa += of_a * of_a;
        bb += of_b * of_b;
    }
    return aa > 0 && bb > 0 ? ab / sqrt(aa * bb) : NAN;
}
