// SPDX-License-Identifier: Apache-2.0
#include "model/mixture_of_logits.h"

#include <assert.h>
#include <stddef.h>

#include "model/kernels.h"

void mixture_of_logits_gate(int n, int P, float *x)
{
    const size_t width = (size_t)P, all = (size_t)n * width;
    assert(n >= 0 && P > 0);
    for (float *row = x; row < x + all; row += width) {
        float largest = row[0];
        for (size_t p = 1; p < width; p++)
            largest = row[p] > largest ? row[p] : largest;
        for (size_t p = 0; p < width; p++)
            row[p] -= largest;
    }
    kernels->exp_shifted(all, 0, x);
    for (float *row = x; row < x + all; row += width) {
        float sum = 0;
        for (size_t p = 0; p < width; p++)
            sum += row[p];
        for (size_t p = 0; p < width; p++)
            row[p] /= sum;
    }
}

float mixture_of_logits_forward(int P, const float *pi, const float *dot)
{
    double score = 0;
    for (int p = 0; p < P; p++)
        score += (double)pi[p] * (double)dot[p];
    return (float)score;
}

void mixture_of_logits_backward(int P, const float *pi, const float *dot, float dscore,
                                float *dgate, float *ddot)
{
    const float score = mixture_of_logits_forward(P, pi, dot);
    for (int p = 0; p < P; p++) {
        dgate[p] += pi[p] * (dot[p] - score) * dscore;
        if (ddot)
            ddot[p] += pi[p] * dscore;
    }
}
