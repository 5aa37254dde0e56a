// SPDX-License-Identifier: Apache-2.0
#include "model/event_fusion.h"

#include <assert.h>
#include <string.h>

#include "model/arena.h"
#include "model/history.h"
#include "model/kernels.h"

void event_fusion_start(struct event_fusion *f)
{
    const size_t D = (size_t)f->shape.width;
    if (f->shape.gaps)
        memset(f->gap, 0, sizeof(float) * HISTORY_GAPS * D);
    if (!f->shape.actions)
        return;
    memset(f->action, 0, sizeof(float) * HISTORY_ACTIONS * D);
    memset(f->join.b, 0, sizeof(float) * D);
    memset(f->join.W, 0, sizeof(float) * 2 * D * D);
    for (size_t i = 0; i < D; i++)
        f->join.W[i * 2 * D + i] = f->join.W[i * 2 * D + D + i] = 1;
}

size_t event_fusion_scratch(struct event_fusion *f, bool backward, struct arena *scratch)
{
    const size_t floats = f->shape.actions ? (size_t)f->rows_max * 2 * (size_t)f->shape.width : 0;
    if (scratch) {
        f->pair = arena_floats(scratch, floats);
        f->dpair = backward ? arena_floats(scratch, floats) : NULL;
    }
    return (backward ? 2 : 1) * (floats * sizeof(float) + 64);
}

void event_fusion_forward(struct event_fusion *f, int N, const float *X, const uint8_t *actions,
                          const uint8_t *gaps, float *C)
{
    const size_t D = (size_t)f->shape.width;
    assert(N <= f->rows_max);
    if (f->shape.actions) {
        for (size_t i = 0; i < (size_t)N; i++) {
            float *pair = f->pair + i * 2 * D;
            memcpy(pair, X + i * D, sizeof(float) * D);
            memset(pair + D, 0, sizeof(float) * D);
            for (unsigned bits = actions[i]; bits; bits &= bits - 1)
                kernels->axpy(D, 1, f->action + (size_t)__builtin_ctz(bits) * D, pair + D);
        }
        linear_forward(&f->join, N, f->pair, C);
    } else if (C != X) {
        memcpy(C, X, sizeof(float) * (size_t)N * D);
    }
    for (size_t i = 0; f->shape.gaps && i < (size_t)N; i++) {
        assert(gaps[i] < HISTORY_GAPS);
        kernels->axpy(D, 1, f->gap + gaps[i] * D, C + i * D);
    }
}

void event_fusion_backward(struct event_fusion *f, int N, const uint8_t *actions,
                           const uint8_t *gaps, const float *dC, float *dX)
{
    const size_t D = (size_t)f->shape.width;
    for (size_t i = 0; f->shape.gaps && i < (size_t)N; i++)
        kernels->axpy(D, 1, dC + i * D, f->dgap + gaps[i] * D);
    if (!f->shape.actions) {
        if (dX != dC)
            memcpy(dX, dC, sizeof(float) * (size_t)N * D);
        return;
    }
    memset(f->dpair, 0, sizeof(float) * (size_t)N * 2 * D);
    linear_backward(&f->join, N, f->pair, dC, f->dpair);
    for (size_t i = 0; i < (size_t)N; i++) {
        const float *dpair = f->dpair + i * 2 * D;
        memcpy(dX + i * D, dpair, sizeof(float) * D);
        for (unsigned bits = actions[i]; bits; bits &= bits - 1)
            kernels->axpy(D, 1, dpair + D, f->daction + (size_t)__builtin_ctz(bits) * D);
    }
}
