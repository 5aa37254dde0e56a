// SPDX-License-Identifier: Apache-2.0
#include "model/mixture_of_logits.h"

#include <assert.h>
#include <string.h>

#include "model/kernels.h"

void mixture_of_logits_gate(int P, const float *gate, float *pi)
{
    const size_t n = (size_t)P;
    assert(P > 0);
    memcpy(pi, gate, n * sizeof *pi);
    const float sum = kernels->exp_shifted(n, kernels->max(n, gate), pi);
    kernels->scale(n, 1 / sum, pi);
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
