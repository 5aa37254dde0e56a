// SPDX-License-Identifier: Apache-2.0
#include "model/attention.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "model/arena.h"
#include "model/kernels.h"
#include "model/rng.h"

void attention_init(struct attention *a, int width, int heads, enum attention_queries queries,
                    int sequences_max, int length_max, struct arena *params, struct arena *grads,
                    struct arena *scratch, struct rng *rng)
{
    assert(width > 0 && heads > 0 && width % heads == 0);
    assert(sequences_max > 0 && length_max > 0);
    const size_t D = (size_t)width, S = (size_t)sequences_max, H = (size_t)length_max;
    const size_t asking = queries == ATTENTION_ALL ? S * H : S;
    const float bound = sqrtf(6.0f / (4.0f * (float)width));

    *a = (struct attention){.width = width,
                            .heads = heads,
                            .queries = queries,
                            .sequences_max = sequences_max,
                            .length_max = length_max};
    linear_init(&a->query, width, width, params, grads, rng);
    linear_init(&a->keyvalue, width, 2 * width, params, grads, rng);
    linear_init(&a->output, width, width, params, grads, rng);
    rng_fill_uniform(rng, a->query.W, D * D, -bound, bound);
    rng_fill_uniform(rng, a->keyvalue.W, 2 * D * D, -bound, bound);
    memset(a->query.b, 0, sizeof(float) * D);
    memset(a->keyvalue.b, 0, sizeof(float) * 2 * D);
    memset(a->output.b, 0, sizeof(float) * D);

    if (queries == ATTENTION_NEWEST) {
        a->newest = arena_floats(scratch, S * D);
        a->dnewest = arena_floats(scratch, S * D);
    }
    a->Q = arena_floats(scratch, asking * D);
    a->dQ = arena_floats(scratch, asking * D);
    a->KV = arena_floats(scratch, S * H * 2 * D);
    a->dKV = arena_floats(scratch, S * H * 2 * D);
    a->mix = arena_floats(scratch, asking * D);
    a->dmix = arena_floats(scratch, asking * D);
    a->P = arena_floats(scratch, asking * H * (size_t)heads);
    a->dp = arena_floats(scratch, H);
}

static int asking_rows(const struct attention *a, int length)
{
    return a->queries == ATTENTION_ALL ? length : 1;
}

static void check(const struct attention *a, int S, const int *start)
{
    assert(S <= a->sequences_max && start[0] == 0);
    for (int s = 0; s < S; s++)
        assert(start[s + 1] > start[s] && start[s + 1] - start[s] <= a->length_max);
}

void attention_forward(struct attention *a, int S, const int *start, const float *X, float *Y)
{
    const size_t D = (size_t)a->width, d = D / (size_t)a->heads;
    const int N = start[S], M = a->queries == ATTENTION_ALL ? N : S;
    const float scale = 1.0f / sqrtf((float)d);
    check(a, S, start);

    const float *asks = X;
    if (a->queries == ATTENTION_NEWEST) {
        for (size_t s = 0; s < (size_t)S; s++)
            memcpy(a->newest + s * D, X + (size_t)start[s] * D, sizeof(float) * D);
        asks = a->newest;
    }
    linear_forward(&a->query, M, asks, a->Q);
    linear_forward(&a->keyvalue, N, X, a->KV);
    memset(a->mix, 0, sizeof(float) * (size_t)M * D);

    float *p = a->P;
    const float *q = a->Q;
    float *mix = a->mix;
    for (int s = 0; s < S; s++) {
        const size_t length = (size_t)(start[s + 1] - start[s]);
        const float *kv = a->KV + (size_t)start[s] * 2 * D;
        for (int row = 0; row < asking_rows(a, (int)length); row++, q += D, mix += D)
            for (size_t at = 0; at < D; at += d, p += length) {
                for (size_t k = 0; k < length; k++)
                    p[k] = scale * kernels->dot(d, q + at, kv + k * 2 * D + at);
                const float sum = kernels->exp_shifted(length, kernels->max(length, p), p);
                kernels->scale(length, 1.0f / sum, p);
                for (size_t k = 0; k < length; k++)
                    kernels->axpy(d, p[k], kv + k * 2 * D + D + at, mix + at);
            }
    }
    linear_forward(&a->output, M, a->mix, Y);
}

void attention_backward(struct attention *a, int S, const int *start, const float *X,
                        const float *dY, float *dX)
{
    const size_t D = (size_t)a->width, d = D / (size_t)a->heads;
    const int N = start[S], M = a->queries == ATTENTION_ALL ? N : S;
    const float scale = 1.0f / sqrtf((float)d);
    check(a, S, start);

    memset(a->dmix, 0, sizeof(float) * (size_t)M * D);
    memset(a->dQ, 0, sizeof(float) * (size_t)M * D);
    memset(a->dKV, 0, sizeof(float) * (size_t)N * 2 * D);
    linear_backward(&a->output, M, a->mix, dY, a->dmix);

    const float *p = a->P, *q = a->Q, *dmix = a->dmix;
    float *dq = a->dQ;
    for (int s = 0; s < S; s++) {
        const size_t length = (size_t)(start[s + 1] - start[s]);
        const float *kv = a->KV + (size_t)start[s] * 2 * D;
        float *dkv = a->dKV + (size_t)start[s] * 2 * D;
        for (int row = 0; row < asking_rows(a, (int)length); row++, q += D, dq += D, dmix += D)
            for (size_t at = 0; at < D; at += d, p += length) {
                for (size_t k = 0; k < length; k++) {
                    a->dp[k] = kernels->dot(d, dmix + at, kv + k * 2 * D + D + at);
                    kernels->axpy(d, p[k], dmix + at, dkv + k * 2 * D + D + at);
                }
                // Through the softmax: ds_k = p_k (dp_k - sum_j p_j dp_j).
                const float mean = kernels->dot(length, p, a->dp);
                for (size_t k = 0; k < length; k++) {
                    const float ds = scale * p[k] * (a->dp[k] - mean);
                    kernels->axpy(d, ds, kv + k * 2 * D + at, dq + at);
                    kernels->axpy(d, ds, q + at, dkv + k * 2 * D + at);
                }
            }
    }

    linear_backward(&a->keyvalue, N, X, a->dKV, dX);
    if (a->queries == ATTENTION_ALL) {
        linear_backward(&a->query, M, X, a->dQ, dX);
        return;
    }
    memset(a->dnewest, 0, sizeof(float) * (size_t)S * D);
    linear_backward(&a->query, M, a->newest, a->dQ, dX ? a->dnewest : NULL);
    for (size_t s = 0; dX && s < (size_t)S; s++)
        kernels->axpy(D, 1, a->dnewest + s * D, dX + (size_t)start[s] * D);
}

void attention_positions_fill(enum attention_positions kind, int length, int width, float *E)
{
    assert(kind != ATTENTION_POSITIONS_NONE);
    for (int h = 0; h < length; h++)
        for (int c = 0; c < width; c++) {
            const int exponent = kind == ATTENTION_POSITIONS_SEED ? 2 * c : c - c % 2;
            const double angle = (length - 1 - h) / pow(10000.0, (double)exponent / width);
            *E++ = (float)(c % 2 ? cos(angle) : sin(angle));
        }
}

void attention_encoder_init(struct attention_encoder *e,
                            const struct attention_encoder_shape *shape, int B_max,
                            struct arena *params, struct arena *grads, struct arena *scratch,
                            struct rng *rng)
{
    assert(shape->layers > 0 && B_max > 0);
    const size_t B = (size_t)B_max, layers = (size_t)shape->layers;
    const size_t rows = B * (size_t)shape->length * (size_t)shape->width;

    *e = (struct attention_encoder){.shape = *shape, .B_max = B_max};
    e->layers = arena_bytes(scratch, layers * sizeof *e->layers);
    e->Z = arena_bytes(scratch, layers * sizeof *e->Z);
    for (int l = 0; l < shape->layers; l++) {
        const bool last = l == shape->layers - 1;
        attention_init(&e->layers[l], shape->width, shape->heads,
                       last ? ATTENTION_NEWEST : ATTENTION_ALL, B_max, shape->length, params, grads,
                       scratch, rng);
        e->Z[l] = arena_floats(scratch, rows);
    }
    if (shape->positions != ATTENTION_POSITIONS_NONE) {
        e->E = arena_floats(scratch, (size_t)shape->length * (size_t)shape->width);
        attention_positions_fill(shape->positions, shape->length, shape->width, e->E);
    }
    e->row = arena_bytes(scratch, B * sizeof *e->row);
    e->start = arena_bytes(scratch, (B + 1) * sizeof *e->start);
    e->top = arena_floats(scratch, B * (size_t)shape->width);
    e->dtop = arena_floats(scratch, B * (size_t)shape->width);
    e->dZ[0] = arena_floats(scratch, rows);
    e->dZ[1] = arena_floats(scratch, rows);
}

// Lays the rows that count one after the other, positions added.
static void encoder_pack(struct attention_encoder *e, int B, const int *valid, const float *X)
{
    const size_t D = (size_t)e->shape.width, history = (size_t)e->shape.length * D;
    float *z = e->Z[0];

    e->S = 0;
    e->start[0] = 0;
    for (int b = 0; b < B; b++) {
        const int n = valid ? valid[b] : e->shape.length;
        assert(n >= 0 && n <= e->shape.length);
        if (n == 0)
            continue;
        memcpy(z, X + (size_t)b * history, sizeof(float) * (size_t)n * D);
        if (e->E)
            kernels->axpy((size_t)n * D, 1, e->E, z);
        z += (size_t)n * D;
        e->row[e->S] = b;
        e->start[e->S + 1] = e->start[e->S] + n;
        e->S++;
    }
}

void attention_encoder_forward(struct attention_encoder *e, int B, const int *valid, const float *X,
                               float *out)
{
    const size_t D = (size_t)e->shape.width, history = (size_t)e->shape.length * D;
    const int last = e->shape.layers - 1;
    assert(B <= e->B_max);

    memset(out, 0, sizeof(float) * (size_t)B * 2 * D);
    encoder_pack(e, B, valid, X);
    if (e->S == 0)
        return;

    const size_t rows = (size_t)e->start[e->S] * D;
    for (int l = 0; l < last; l++) {
        attention_forward(&e->layers[l], e->S, e->start, e->Z[l], e->Z[l + 1]);
        if (e->shape.residual)
            kernels->axpy(rows, 1, e->Z[l], e->Z[l + 1]);
    }
    attention_forward(&e->layers[last], e->S, e->start, e->Z[last], e->top);

    for (int s = 0; s < e->S; s++) {
        const size_t n = (size_t)(e->start[s + 1] - e->start[s]), b = (size_t)e->row[s];
        float *z = out + b * 2 * D, *m = z + D;
        memcpy(z, e->top + (size_t)s * D, sizeof(float) * D);
        if (e->shape.residual)
            kernels->axpy(D, 1, e->Z[last] + (size_t)e->start[s] * D, z);
        for (size_t k = 0; k < n; k++)
            kernels->axpy(D, 1.0f / (float)n, X + b * history + k * D, m);
    }
}

void attention_encoder_backward(struct attention_encoder *e, int B, const float *dout, float *dX)
{
    const size_t D = (size_t)e->shape.width, history = (size_t)e->shape.length * D;
    const int last = e->shape.layers - 1;
    assert(B <= e->B_max);
    if (e->S == 0)
        return;

    const size_t rows = (size_t)e->start[e->S] * D;
    float *above = e->dZ[0], *below = e->dZ[1];
    memset(above, 0, sizeof(float) * rows);
    for (int s = 0; s < e->S; s++) {
        const float *dz = dout + (size_t)e->row[s] * 2 * D;
        assert(e->row[s] < B);
        memcpy(e->dtop + (size_t)s * D, dz, sizeof(float) * D);
        if (e->shape.residual)
            kernels->axpy(D, 1, dz, above + (size_t)e->start[s] * D);
    }
    attention_backward(&e->layers[last], e->S, e->start, e->Z[last], e->dtop, above);
    for (int l = last - 1; l >= 0; l--) {
        memset(below, 0, sizeof(float) * rows);
        if (e->shape.residual)
            memcpy(below, above, sizeof(float) * rows);
        attention_backward(&e->layers[l], e->S, e->start, e->Z[l], above, below);
        float *swap = above;
        above = below;
        below = swap;
    }

    for (int s = 0; dX && s < e->S; s++) {
        const size_t n = (size_t)(e->start[s + 1] - e->start[s]), b = (size_t)e->row[s];
        const float *dm = dout + b * 2 * D + D;
        float *dx = dX + b * history;
        kernels->axpy(n * D, 1, above + (size_t)e->start[s] * D, dx);
        for (size_t k = 0; k < n; k++)
            kernels->axpy(D, 1.0f / (float)n, dm, dx + k * D);
    }
}
