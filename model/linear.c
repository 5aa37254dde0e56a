// SPDX-License-Identifier: Apache-2.0
#include "model/linear.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "model/arena.h"
#include "model/gemm.h"
#include "model/rng.h"

void linear_init(struct linear *l, int in, int out, struct arena *params, struct arena *grads,
                 struct rng *rng)
{
    assert(in > 0 && out > 0);
    const size_t weights = (size_t)in * (size_t)out;
    // torch.nn.Linear's starting distribution, so that quality can be compared like for like.
    const float bound = 1.0f / sqrtf((float)in);

    *l = (struct linear){
        .in = in,
        .out = out,
        .W = arena_floats(params, weights),
        .b = arena_floats(params, (size_t)out),
        .dW = arena_floats(grads, weights),
        .db = arena_floats(grads, (size_t)out),
    };
    rng_fill_uniform(rng, l->W, weights, -bound, bound);
    rng_fill_uniform(rng, l->b, (size_t)out, -bound, bound);
}

void linear_forward(const struct linear *l, int B, const float *X, float *Y)
{
    // Every row of Y starts as b; adding the product on top saves a second pass over Y.
    for (size_t row = 0; row < (size_t)B; row++)
        memcpy(Y + row * l->out, l->b, sizeof(float) * l->out);
    gemm_nt(B, l->out, l->in, X, l->W, Y); // Y += X W^T
}

void linear_backward(struct linear *l, int B, const float *X, const float *dY, float *dX)
{
    gemm_tn(l->out, l->in, B, dY, X, l->dW); // dW += dY^T X
    for (size_t row = 0; row < (size_t)B; row++)
        for (int o = 0; o < l->out; o++)
            l->db[o] += dY[row * l->out + o];
    if (dX)
        gemm_nn(B, l->in, l->out, dY, l->W, dX); // dX += dY W
}
