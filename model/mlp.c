// SPDX-License-Identifier: Apache-2.0
#include "model/mlp.h"

#include <assert.h>
#include <stddef.h>
#include <string.h>

#include "model/arena.h"

void mlp_init(struct mlp *m, int in, int hidden, int out, int B_max, struct arena *params,
              struct arena *grads, struct arena *scratch, struct rng *rng)
{
    assert(B_max > 0);
    const size_t activations = (size_t)B_max * (size_t)hidden;
    m->B_max = B_max;
    linear_init(&m->first, in, hidden, params, grads, rng);
    linear_init(&m->second, hidden, out, params, grads, rng);
    m->H = arena_floats(scratch, activations);
    m->dH = arena_floats(scratch, activations);
}

void mlp_forward(struct mlp *m, int B, const float *X, float *Y)
{
    assert(B <= m->B_max);
    const size_t activations = (size_t)B * (size_t)m->first.out;
    linear_forward(&m->first, B, X, m->H);
    for (size_t i = 0; i < activations; i++)
        m->H[i] = m->H[i] < 0 ? 0 : m->H[i]; // this way round a NaN stays visible
    linear_forward(&m->second, B, m->H, Y);
}

void mlp_backward(struct mlp *m, int B, const float *X, const float *dY, float *dX)
{
    assert(B <= m->B_max);
    const size_t activations = (size_t)B * (size_t)m->first.out;
    memset(m->dH, 0, sizeof(float) * activations);
    linear_backward(&m->second, B, m->H, dY, m->dH);
    for (size_t i = 0; i < activations; i++)
        m->dH[i] = m->H[i] > 0 ? m->dH[i] : 0;
    linear_backward(&m->first, B, X, m->dH, dX);
}
