// SPDX-License-Identifier: Apache-2.0
#include "model/proxy_ranker.h"

#include <assert.h>
#include <string.h>

#include "model/kernels.h"

void proxy_ranker_init(struct proxy_ranker *p, int D, int T, struct arena *params,
                       struct arena *grads, struct rng *rng)
{
    assert(D > 0 && T > 0);
    *p = (struct proxy_ranker){.D = D};
    linear_init(&p->head, 2 * D + 1, T, params, grads, rng);
}

void proxy_ranker_forward(const struct proxy_ranker *p, int B, const float *U, const float *V,
                          float *X, float *Z)
{
    const size_t D = (size_t)p->D;
    for (size_t i = 0; i < (size_t)B; i++) {
        float *x = X + i * (2 * D + 1);
        memcpy(x, U + i * D, sizeof *x * D);
        memcpy(x + D, V + i * D, sizeof *x * D);
        x[2 * D] = kernels->dot(D, U + i * D, V + i * D);
    }
    linear_forward(&p->head, B, X, Z);
}

void proxy_ranker_backward(struct proxy_ranker *p, int B, const float *X, const float *dZ)
{
    linear_backward(&p->head, B, X, dZ, NULL);
}

// r += weight (W_t [u ; v ; u . v] + b_t). The user's part of a row and the item's part of a column
// are products of their own, so that a pair costs one multiplication and not 2 D + 1.
static void add_task(const struct proxy_ranker *p, int t, float weight, int q, int n,
                     const float *U, const float *V, const float *S, float *r)
{
    const size_t D = (size_t)p->D, columns = (size_t)n;
    const float *w = p->head.W + (size_t)t * (2 * D + 1);
    for (size_t i = 0; i < (size_t)q; i++) {
        const float of_user = weight * (kernels->dot(D, w, U + i * D) + p->head.b[t]);
        for (size_t j = 0; j < columns; j++)
            r[i * columns + j] += of_user;
        kernels->axpy(columns, weight * w[2 * D], S + i * columns, r + i * columns);
    }
    for (size_t j = 0; j < columns; j++) {
        const float of_item = weight * kernels->dot(D, w + D, V + j * D);
        for (size_t i = 0; i < (size_t)q; i++)
            r[i * columns + j] += of_item;
    }
}

void proxy_ranker_reward(const struct proxy_ranker *p, const float *value_weight, int q, int n,
                         const float *U, const float *V, const float *S, float *r)
{
    memset(r, 0, sizeof *r * (size_t)q * (size_t)n);
    for (int t = 0; t < p->head.out; t++)
        add_task(p, t, value_weight[t], q, n, U, V, S, r);
}
