// SPDX-License-Identifier: Apache-2.0
#include "model/multi_interest.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "model/arena.h"
#include "model/gemm.h"
#include "model/kernels.h"
#include "model/rng.h"

void multi_interest_init(struct multi_interest *m, int width, int hidden, int interests,
                         int rows_max, struct arena *params, struct arena *grads,
                         struct arena *scratch, struct rng *rng)
{
    assert(width > 0 && hidden > 0 && interests > 0 && rows_max >= 0);
    const size_t h = (size_t)hidden, K = (size_t)interests, N = (size_t)rows_max;
    const size_t n1 = h * (size_t)width, n2 = h * K;
    const float bound1 = 1 / sqrtf((float)width), bound2 = 1 / sqrtf((float)hidden);

    *m = (struct multi_interest){
        .width = width,
        .hidden = hidden,
        .interests = interests,
        .W1 = arena_floats(params, n1),
        .W2 = arena_floats(params, n2),
        .dW1 = arena_floats(grads, n1),
        .dW2 = arena_floats(grads, n2),
        .rows_max = rows_max,
        .T = arena_floats(scratch, N * h),
        .dT = arena_floats(scratch, N * h),
        .A = arena_floats(scratch, N * K),
        .dA = arena_floats(scratch, N * K),
    };
    rng_fill_uniform(rng, m->W1, n1, -bound1, bound1);
    rng_fill_uniform(rng, m->W2, n2, -bound2, bound2);
}

// Softmax of n numbers that lie stride apart.
static void softmax_strided(int n, size_t stride, float *x)
{
    float largest = -INFINITY;
    double sum = 0;
    for (size_t i = 0; i < (size_t)n; i++)
        largest = fmaxf(largest, x[i * stride]);
    for (size_t i = 0; i < (size_t)n; i++) {
        x[i * stride] = expf(x[i * stride] - largest);
        sum += (double)x[i * stride];
    }
    for (size_t i = 0; i < (size_t)n; i++)
        x[i * stride] = (float)((double)x[i * stride] / sum);
}

// Its derivative: dp becomes dx, p (dp - sum of p dp).
static void softmax_strided_backward(int n, size_t stride, const float *p, float *dp)
{
    double mean = 0;
    for (size_t i = 0; i < (size_t)n; i++)
        mean += (double)p[i * stride] * (double)dp[i * stride];
    for (size_t i = 0; i < (size_t)n; i++)
        dp[i * stride] = p[i * stride] * (float)((double)dp[i * stride] - mean);
}

void multi_interest_forward(struct multi_interest *m, int S, const int *start, const float *X,
                            float *Y)
{
    const int D = m->width, h = m->hidden, K = m->interests, N = start[S];
    assert(N <= m->rows_max);
    memset(m->T, 0, (size_t)N * h * sizeof *m->T);
    memset(m->A, 0, (size_t)N * K * sizeof *m->A);
    memset(Y, 0, (size_t)S * K * D * sizeof *Y);

    gemm_nt(N, h, D, X, m->W1, m->T); // X W1^T
    for (size_t i = 0; i < (size_t)N * h; i++)
        m->T[i] = tanhf(m->T[i]);
    gemm_nn(N, K, h, m->T, m->W2, m->A); // T W2
    for (int s = 0; s < S; s++) {
        const int n = start[s + 1] - start[s];
        const size_t from = (size_t)start[s];
        for (int k = 0; k < K; k++)
            softmax_strided(n, (size_t)K, m->A + from * K + k);
        gemm_tn(K, D, n, m->A + from * K, X + from * D, Y + (size_t)s * K * D); // Y = A^T X
    }
}

void multi_interest_backward(struct multi_interest *m, int S, const int *start, const float *X,
                             const float *dY, float *dX)
{
    const int D = m->width, h = m->hidden, K = m->interests, N = start[S];
    memset(m->dT, 0, (size_t)N * h * sizeof *m->dT);
    memset(m->dA, 0, (size_t)N * K * sizeof *m->dA);

    for (int s = 0; s < S; s++) {
        const int n = start[s + 1] - start[s];
        const size_t from = (size_t)start[s];
        const float *A = m->A + from * K, *dY_s = dY + (size_t)s * K * D;
        float *dA = m->dA + from * K;
        gemm_nt(n, K, D, X + from * D, dY_s, dA); // dA = X dY^T
        if (dX)
            gemm_nn(n, D, K, A, dY_s, dX + from * D); // dX += A dY
        for (int k = 0; k < K; k++)
            softmax_strided_backward(n, (size_t)K, A + k, dA + k);
    }
    gemm_tn(h, K, N, m->T, m->dA, m->dW2); // dW2 += T^T dZ
    gemm_nt(N, h, K, m->dA, m->W2, m->dT); // dT = dZ W2^T
    for (size_t i = 0; i < (size_t)N * h; i++)
        m->dT[i] *= 1 - m->T[i] * m->T[i];
    gemm_tn(h, D, N, m->dT, X, m->dW1); // dW1 += dT^T X
    if (dX)
        gemm_nn(N, D, h, m->dT, m->W1, dX); // dX += dT W1
}

int multi_interest_choose(int K, int D, const float *V, const float *e, float *dot)
{
    int best = 0;
    for (int k = 0; k < K; k++) {
        dot[k] = kernels->dot((size_t)D, V + (size_t)k * D, e);
        best = dot[k] > dot[best] ? k : best;
    }
    return best;
}

void multi_interest_label_aware(int K, int D, float p, const float *V, const float *e, float *mix,
                                float *v)
{
    float *dot = mix + K;
    assert(p >= 1); // below 1 the gradient has no bound where the product is 0
    for (int k = 0; k < K; k++) {
        dot[k] = kernels->dot((size_t)D, V + (size_t)k * D, e);
        mix[k] = copysignf(powf(fabsf(dot[k]), p), dot[k]);
    }
    softmax_strided(K, 1, mix);
    memset(v, 0, (size_t)D * sizeof *v);
    for (int k = 0; k < K; k++)
        kernels->axpy((size_t)D, mix[k], V + (size_t)k * D, v);
}

void multi_interest_label_aware_backward(int K, int D, float p, const float *V, const float *e,
                                         const float *mix, const float *dv, float *scratch,
                                         float *dV, float *de)
{
    const float *dot = mix + K;
    for (int k = 0; k < K; k++)
        scratch[k] = kernels->dot((size_t)D, V + (size_t)k * D, dv);
    softmax_strided_backward(K, 1, mix, scratch);
    for (int k = 0; k < K; k++) {
        const float ddot = scratch[k] * p * powf(fabsf(dot[k]), p - 1);
        if (dV) {
            kernels->axpy((size_t)D, mix[k], dv, dV + (size_t)k * D);
            kernels->axpy((size_t)D, ddot, e, dV + (size_t)k * D);
        }
        if (de)
            kernels->axpy((size_t)D, ddot, V + (size_t)k * D, de);
    }
}
