// SPDX-License-Identifier: Apache-2.0
#include "model/attention.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "model/arena.h"
#include "model/gemm.h"
#include "model/kernels.h"
#include "model/rng.h"

// Variances of rows that have just been drawn are 1e-3, those of learned ones up to 1.
static const float NORM_EPSILON = 1e-6f;

// Rows that go through the layers together, when all of them ask. With D = 64 and rows up to 122,
// OpenBLAS takes each of the products with matrices for a small one (1e6 multiplications at the
// most), and does not copy its operands first: 87 us an example instead of 94 with 256 rows, and
// as many with its Haswell core, which has no such products (bench_attention).
enum { STRETCH_ROWS = 120 };

// ---- Memory: one walk counts and takes, so that the two cannot differ.

static float *take(struct arena *scratch, size_t *bytes, size_t floats)
{
    *bytes += floats * sizeof(float) + 64; // each may begin up to 64 bytes late
    return scratch ? arena_floats(scratch, floats) : NULL;
}

static void *take_bytes(struct arena *scratch, size_t *bytes, size_t n)
{
    *bytes += n + 64;
    return scratch ? arena_bytes(scratch, n) : NULL;
}

// Rows of probabilities begin a multiple of this apart: kernels.h.
enum { PROBABILITIES = 16 };

static size_t padded(size_t n)
{
    return (n + PROBABILITIES - 1) / PROBABILITIES * PROBABILITIES;
}

// The most rows that a stretch has when there are M in all.
static size_t stretch_rows_max(size_t M, size_t H)
{
    const size_t stretch = H > STRETCH_ROWS ? H : STRETCH_ROWS;
    return M > stretch ? stretch : M;
}

size_t attention_scratch(struct attention *a, bool backward, struct arena *scratch)
{
    const size_t D = (size_t)a->width, S = (size_t)a->sequences_max, H = (size_t)a->length_max;
    const size_t heads = (size_t)a->heads, M = a->queries == ATTENTION_ALL ? S * H : S;
    const size_t dM = a->queries == ATTENTION_ALL ? stretch_rows_max(M, H) : M;
    size_t bytes = 0;
    a->Q = take(scratch, &bytes, M * D);
    a->mix = take(scratch, &bytes, M * D);
    a->P = take(scratch, &bytes, M * padded(H) * heads);
    if (backward) {
        a->dQ = take(scratch, &bytes, dM * D);
        a->dmix = take(scratch, &bytes, dM * D);
        a->dP = take(scratch, &bytes, (a->queries == ATTENTION_ALL ? H : 1) * padded(H));
    }
    if (a->queries == ATTENTION_ALL) {
        a->KV = take(scratch, &bytes, S * H * 2 * D);
        a->dKV = backward ? take(scratch, &bytes, dM * 2 * D) : NULL;
        return bytes;
    }
    a->newest = take(scratch, &bytes, S * D);
    a->ask = take(scratch, &bytes, S * heads * D);
    a->mean = take(scratch, &bytes, S * heads * D);
    if (backward) {
        a->dnewest = take(scratch, &bytes, S * D);
        a->dask = take(scratch, &bytes, S * heads * D);
        a->dmean = take(scratch, &bytes, S * heads * D);
    }
    return bytes;
}

void attention_start(struct attention *a, struct rng *rng)
{
    const size_t D = (size_t)a->query.in;
    const float in = sqrtf(6.0f / (4.0f * (float)D)), out = 1.0f / sqrtf((float)D);
    rng_fill_uniform(rng, a->query.W, D * D, -in, in);
    rng_fill_uniform(rng, a->keyvalue.W, 2 * D * D, -in, in);
    rng_fill_uniform(rng, a->output.W, D * D, -out, out);
    memset(a->query.b, 0, sizeof(float) * D);
    memset(a->keyvalue.b, 0, sizeof(float) * 2 * D);
    memset(a->output.b, 0, sizeof(float) * D);
}

void attention_init(struct attention *a, int width, int heads, enum attention_queries queries,
                    int sequences_max, int length_max, struct arena *params, struct arena *grads,
                    struct rng *rng)
{
    assert(width > 0 && heads > 0 && width % heads == 0);
    assert(sequences_max > 0 && length_max > 0);
    *a = (struct attention){.width = width,
                            .heads = heads,
                            .queries = queries,
                            .sequences_max = sequences_max,
                            .length_max = length_max};
    linear_init(&a->query, width, width, params, grads, rng);
    linear_init(&a->keyvalue, width, 2 * width, params, grads, rng);
    linear_init(&a->output, width, width, params, grads, rng);
    attention_start(a, rng);
}

static void check(const struct attention *a, int S, const int *start)
{
    assert(S <= a->sequences_max && start[0] == 0);
    for (int s = 0; s < S; s++)
        assert(start[s + 1] > start[s] && start[s + 1] - start[s] <= a->length_max);
}

static float scale_of(const struct attention *a)
{
    return 1.0f / sqrtf((float)(a->width / a->heads));
}

// Where the probabilities of a sequence and head are, and how far apart their rows.
static float *probabilities(const struct attention *a, const int *start, int s, int head)
{
    const size_t rows = a->queries == ATTENTION_ALL ? (size_t)start[s] : (size_t)s;
    const size_t of_head = a->queries == ATTENTION_ALL ? (size_t)(start[s + 1] - start[s]) : 1;
    const size_t row = rows * (size_t)a->heads + of_head * (size_t)head;
    return a->P + row * padded((size_t)a->length_max);
}

// ---- Every row asks: keys and values of all rows, then small products for each sequence and head.
// A stretch of sequences goes from its rows to its results while it is in the second-level cache;
// stretch by stretch, what only the backward pass needs takes the room of one.

// Sequences first to end have at most so many rows together, but there is at least one of them.
static int stretch_end(int first, int S, const int *start)
{
    int end = first + 1;
    while (end < S && start[end + 1] - start[first] <= STRETCH_ROWS)
        end++;
    return end;
}

// X and Y are all rows, also when only those of sequences first to end are read and written.
static void all_forward(struct attention *a, int first, int end, const int *start, const float *X,
                        float *Y)
{
    const int D = a->width, d = D / a->heads, rows = start[end] - start[first];
    const int wide = (int)padded((size_t)a->length_max);
    const size_t at = (size_t)start[first] * D;
    float *Q = a->Q + at, *KV = a->KV + 2 * at, *mix = a->mix + at;
    linear_forward(&a->query, rows, X + at, Q);
    linear_forward(&a->keyvalue, rows, X + at, KV);
    memset(mix, 0, sizeof(float) * (size_t)rows * D);
    for (int s = first; s < end; s++) {
        const int n = start[s + 1] - start[s];
        for (int h = 0; h < a->heads; h++) {
            const size_t row = (size_t)(start[s] - start[first]) * D + (size_t)h * d;
            const float *K = KV + 2 * row - (size_t)h * d, *V = K + D;
            float *p = probabilities(a, start, s, h);
            memset(p, 0, sizeof(float) * (size_t)n * wide);
            gemm_nt_part(n, n, d, Q + row, D, K, 2 * D, p, wide); // P = Q K^T
            kernels->softmax(n, (size_t)n, (size_t)wide, scale_of(a), p);
            gemm_nn_part(n, d, n, p, wide, V, 2 * D, mix + row, D); // mix = P V
        }
    }
    linear_forward(&a->output, rows, mix, Y + at);
}

// Likewise, but dX has room for these sequences' rows only. It may be NULL.
static void all_backward(struct attention *a, int first, int end, const int *start, const float *X,
                         const float *dY, float *dX)
{
    const int D = a->width, d = D / a->heads, rows = start[end] - start[first];
    const int wide = (int)padded((size_t)a->length_max);
    const size_t at = (size_t)start[first] * D, bytes = sizeof(float) * (size_t)rows * D;
    const float *Q = a->Q + at, *KV = a->KV + 2 * at;
    memset(a->dmix, 0, bytes);
    memset(a->dQ, 0, bytes);
    memset(a->dKV, 0, 2 * bytes);
    linear_backward(&a->output, rows, a->mix + at, dY + at, a->dmix);
    for (int s = first; s < end; s++) {
        const int n = start[s + 1] - start[s];
        for (int h = 0; h < a->heads; h++) {
            const size_t row = (size_t)(start[s] - start[first]) * D + (size_t)h * d;
            const float *K = KV + 2 * row - (size_t)h * d, *V = K + D, *dmix = a->dmix + row;
            const float *p = probabilities(a, start, s, h);
            float *dK = a->dKV + 2 * row - (size_t)h * d, *dV = dK + D;
            memset(a->dP, 0, sizeof(float) * (size_t)n * wide);
            gemm_nt_part(n, n, d, dmix, D, V, 2 * D, a->dP, wide); // dP = dmix V^T
            gemm_tn_part(n, d, n, p, wide, dmix, D, dV, 2 * D);    // dV = P^T dmix
            kernels->softmax_backward(n, (size_t)n, (size_t)wide, scale_of(a), p, a->dP);
            gemm_nn_part(n, d, n, a->dP, wide, K, 2 * D, a->dQ + row, D); // dQ = dP K
            gemm_tn_part(n, d, n, a->dP, wide, Q + row, D, dK, 2 * D);    // dK = dP^T Q
        }
    }
    if (dX)
        memset(dX, 0, bytes);
    linear_backward(&a->keyvalue, rows, X + at, a->dKV, dX);
    linear_backward(&a->query, rows, X + at, a->dQ, dX);
}

// ---- The newest asks.

static void newest_forward(struct attention *a, int S, const int *start, const float *X, float *Y)
{
    const int D = a->width, heads = a->heads, d = D / heads, wide = heads * D;
    const float *Wk = a->keyvalue.W, *Wv = Wk + (size_t)D * D, *bv = a->keyvalue.b + D;
    for (size_t s = 0; s < (size_t)S; s++)
        memcpy(a->newest + s * D, X + (size_t)start[s] * D, sizeof(float) * D);
    linear_forward(&a->query, S, a->newest, a->Q);
    memset(a->ask, 0, sizeof(float) * (size_t)S * wide);
    memset(a->mean, 0, sizeof(float) * (size_t)S * wide);
    // The keys' bias would add the same to all scores of a head, and a softmax does not see that.
    for (int h = 0; h < heads; h++)
        gemm_nn_part(S, D, d, a->Q + h * d, D, Wk + (size_t)h * d * D, D, a->ask + (size_t)h * D,
                     wide); // ask = Q Wk
    float *ask = a->ask, *mean = a->mean;
    for (int s = 0; s < S; s++) {
        const size_t n = (size_t)(start[s + 1] - start[s]);
        const float *x = X + (size_t)start[s] * D;
        for (int h = 0; h < heads; h++, ask += D, mean += D) {
            float *p = probabilities(a, start, s, h);
            for (size_t k = 0; k < n; k++)
                p[k] = kernels->dot((size_t)D, ask, x + k * D);
            kernels->softmax(1, n, padded(n), scale_of(a), p);
            kernels->weigh((size_t)D, (int)n, p, x, mean);
        }
    }
    for (size_t s = 0; s < (size_t)S; s++)
        memcpy(a->mix + s * D, bv, sizeof(float) * D);
    for (int h = 0; h < heads; h++)
        gemm_nt_part(S, d, D, a->mean + (size_t)h * D, wide, Wv + (size_t)h * d * D, D,
                     a->mix + h * d, D); // mix = mean Wv^T + bv
    linear_forward(&a->output, S, a->mix, Y);
}

static void newest_backward(struct attention *a, int S, const int *start, const float *X,
                            const float *dY, float *dX)
{
    const int D = a->width, heads = a->heads, d = D / heads, wide = heads * D;
    const float *Wk = a->keyvalue.W, *Wv = Wk + (size_t)D * D;
    float *dWk = a->keyvalue.dW, *dWv = dWk + (size_t)D * D, *dbv = a->keyvalue.db + D;
    memset(a->dmix, 0, sizeof(float) * (size_t)S * D);
    linear_backward(&a->output, S, a->mix, dY, a->dmix);
    memset(a->dask, 0, sizeof(float) * (size_t)S * wide);
    memset(a->dmean, 0, sizeof(float) * (size_t)S * wide);
    memset(a->dQ, 0, sizeof(float) * (size_t)S * D);
    for (size_t s = 0; s < (size_t)S; s++)
        kernels->axpy((size_t)D, 1, a->dmix + s * D, dbv);
    for (int h = 0; h < heads; h++) {
        const size_t block = (size_t)h * d * D, at = (size_t)h * D;
        gemm_tn_part(d, D, S, a->dmix + h * d, D, a->mean + at, wide, dWv + block, D);
        gemm_nn_part(S, D, d, a->dmix + h * d, D, Wv + block, D, a->dmean + at, wide);
    }
    const float *ask = a->ask, *dmean = a->dmean;
    float *dask = a->dask;
    for (int s = 0; s < S; s++) {
        const size_t n = (size_t)(start[s + 1] - start[s]), first = (size_t)start[s] * D;
        if (dX)
            memset(dX + first, 0, sizeof(float) * n * D);
        for (int h = 0; h < heads; h++, ask += D, dask += D, dmean += D) {
            const float *p = probabilities(a, start, s, h);
            for (size_t k = 0; k < n; k++)
                a->dP[k] = kernels->dot((size_t)D, dmean, X + first + k * D);
            kernels->softmax_backward(1, n, padded(n), scale_of(a), p, a->dP);
            if (dX)
                kernels->unweigh((size_t)D, (int)n, p, a->dP, ask, dmean, X + first, dX + first,
                                 dask);
            else
                kernels->weigh((size_t)D, (int)n, a->dP, X + first, dask);
        }
    }
    for (int h = 0; h < heads; h++) {
        const size_t block = (size_t)h * d * D, at = (size_t)h * D;
        gemm_tn_part(d, D, S, a->Q + h * d, D, a->dask + at, wide, dWk + block, D);
        gemm_nt_part(S, d, D, a->dask + at, wide, Wk + block, D, a->dQ + h * d, D);
    }
    memset(a->dnewest, 0, sizeof(float) * (size_t)S * D);
    linear_backward(&a->query, S, a->newest, a->dQ, dX ? a->dnewest : NULL);
    for (size_t s = 0; dX && s < (size_t)S; s++)
        kernels->axpy((size_t)D, 1, a->dnewest + s * D, dX + (size_t)start[s] * D);
}

void attention_forward(struct attention *a, int S, const int *start, const float *X, float *Y)
{
    check(a, S, start);
    if (a->queries == ATTENTION_NEWEST)
        newest_forward(a, S, start, X, Y);
    else
        for (int first = 0, end; first < S; first = end) {
            end = stretch_end(first, S, start);
            all_forward(a, first, end, start, X, Y);
        }
}

void attention_backward(struct attention *a, int S, const int *start, const float *X,
                        const float *dY, float *dX)
{
    check(a, S, start);
    if (a->queries == ATTENTION_NEWEST)
        newest_backward(a, S, start, X, dY, dX);
    else
        for (int first = 0, end; first < S; first = end) {
            end = stretch_end(first, S, start);
            all_backward(a, first, end, start, X, dY,
                         dX ? dX + (size_t)start[first] * (size_t)a->width : NULL);
        }
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

// ---- The stack.

size_t attention_stack_scratch(struct attention_stack *t, bool backward, struct arena *scratch)
{
    const struct attention_stack_shape *shape = &t->shape;
    const struct attention *last = &t->layers[shape->layers - 1];
    const size_t layers = (size_t)shape->layers;
    const size_t rows = (size_t)last->sequences_max * (size_t)last->length_max;
    const size_t floats = rows * (size_t)shape->width;
    size_t bytes = 0;
    float **Z = take_bytes(scratch, &bytes, layers * sizeof *Z);
    float **X = take_bytes(scratch, &bytes, layers * sizeof *X);
    float **scale = take_bytes(scratch, &bytes, layers * sizeof *scale);
    for (size_t l = 0; l < layers; l++) {
        assert(t->layers[l].queries == (l + 1 < layers ? ATTENTION_ALL : ATTENTION_NEWEST));
        float *z = take(scratch, &bytes, floats);
        // The last layer's rows are not needed any more as they were, but for the newest.
        float *x = shape->norm && l + 1 < layers ? take(scratch, &bytes, floats) : z;
        float *deviation = shape->norm ? take(scratch, &bytes, rows) : NULL;
        bytes += attention_scratch(&t->layers[l], backward, scratch);
        if (!scratch)
            continue;
        Z[l] = z;
        X[l] = x;
        scale[l] = deviation;
    }
    t->Z = Z;
    t->X = X;
    t->scale = scale;
    t->newest = take(scratch, &bytes, (size_t)last->sequences_max * (size_t)shape->width);
    t->dX = backward && layers > 1
                ? take(scratch, &bytes,
                       stretch_rows_max(rows, (size_t)last->length_max) * (size_t)shape->width)
                : NULL;
    return bytes;
}

static void normalize(struct attention_stack *t, int l, int first, int end)
{
    const size_t D = (size_t)t->shape.width;
    for (int i = first; t->shape.norm && i < end; i++)
        t->scale[l][i] =
            kernels->normalize(D, NORM_EPSILON, t->Z[l] + (size_t)i * D, t->X[l] + (size_t)i * D);
}

// The gradient of a layer's Z from that of its X; dX begins with row first.
static void unnormalize(struct attention_stack *t, int l, int first, int end, float *dX)
{
    const size_t D = (size_t)t->shape.width;
    for (int i = first; t->shape.norm && i < end; i++, dX += D)
        kernels->unnormalize(D, t->scale[l][i], t->X[l] + (size_t)i * D, dX, dX);
}

// A stretch of sequences goes through all layers but the last while it is in the cache. The last
// one has few products with matrices, and takes them for all sequences together.
void attention_stack_forward(struct attention_stack *t, int S, const int *start, float *top)
{
    const size_t D = (size_t)t->shape.width;
    const int last = t->shape.layers - 1;
    for (int first = 0, end; first < S; first = end) {
        end = stretch_end(first, S, start);
        const size_t at = (size_t)start[first] * D, n = (size_t)start[end] * D - at;
        for (int l = 0; l < last; l++) {
            normalize(t, l, start[first], start[end]);
            all_forward(&t->layers[l], first, end, start, t->X[l], t->Z[l + 1]);
            if (t->shape.residual)
                kernels->axpy(n, 1, t->Z[l] + at, t->Z[l + 1] + at);
        }
        for (int s = first; t->shape.residual && s < end; s++)
            memcpy(t->newest + (size_t)s * D, t->Z[last] + (size_t)start[s] * D, sizeof(float) * D);
        normalize(t, last, start[first], start[end]);
    }
    attention_forward(&t->layers[last], S, start, t->X[last], top);
    if (t->shape.residual)
        kernels->axpy((size_t)S * D, 1, t->newest, top);
}

void attention_stack_backward(struct attention_stack *t, int S, const int *start, const float *dtop,
                              float *dZ)
{
    const size_t D = (size_t)t->shape.width;
    const int last = t->shape.layers - 1;
    attention_backward(&t->layers[last], S, start, t->X[last], dtop, dZ);
    for (int first = 0, end; first < S; first = end) {
        end = stretch_end(first, S, start);
        const size_t at = (size_t)start[first] * D, n = (size_t)start[end] * D - at;
        unnormalize(t, last, start[first], start[end], dZ + at);
        for (int s = first; t->shape.residual && s < end; s++)
            kernels->axpy(D, 1, dtop + (size_t)s * D, dZ + (size_t)start[s] * D);
        // dZ is the gradient of Z[l + 1], and then of Z[l]: what came through the layer, and beside
        // it.
        for (int l = last - 1; l >= 0; l--) {
            all_backward(&t->layers[l], first, end, start, t->X[l], dZ, t->dX);
            unnormalize(t, l, start[first], start[end], t->dX);
            if (t->shape.residual)
                kernels->axpy(n, 1, t->dX, dZ + at);
            else
                memcpy(dZ + at, t->dX, sizeof(float) * n);
        }
    }
}

// ---- The encoder.

size_t attention_encoder_scratch(struct attention_encoder *e, bool backward, struct arena *scratch)
{
    const struct attention_encoder_shape *shape = &e->shape;
    const size_t B = (size_t)e->B_max, D = (size_t)shape->width, H = (size_t)shape->length;
    size_t bytes = 0;
    e->stack = (struct attention_stack){
        .shape = {shape->width, shape->heads, shape->layers, shape->residual, shape->norm},
        .layers = e->layers};
    bytes += attention_stack_scratch(&e->stack, backward, scratch);
    e->E = shape->positions == ATTENTION_POSITIONS_NONE ? NULL : take(scratch, &bytes, H * D);
    if (e->E)
        attention_positions_fill(shape->positions, shape->length, shape->width, e->E);
    e->row = take_bytes(scratch, &bytes, B * sizeof *e->row);
    e->start = take_bytes(scratch, &bytes, (B + 1) * sizeof *e->start);
    e->top = take(scratch, &bytes, B * D);
    e->dtop = backward ? take(scratch, &bytes, B * D) : NULL;
    e->dZ = backward ? take(scratch, &bytes, B * H * D) : NULL;
    return bytes;
}

void attention_encoder_init(struct attention_encoder *e,
                            const struct attention_encoder_shape *shape, int B_max,
                            struct arena *params, struct arena *grads, struct arena *scratch,
                            struct rng *rng)
{
    assert(shape->layers > 0 && B_max > 0);
    *e = (struct attention_encoder){.shape = *shape, .B_max = B_max};
    e->layers = arena_bytes(scratch, (size_t)shape->layers * sizeof *e->layers);
    for (int l = 0; l < shape->layers; l++)
        attention_init(&e->layers[l], shape->width, shape->heads,
                       l == shape->layers - 1 ? ATTENTION_NEWEST : ATTENTION_ALL, B_max,
                       shape->length, params, grads, rng);
    attention_encoder_scratch(e, true, scratch);
}

// Lays the rows that count one after the other, positions added.
static void encoder_pack(struct attention_encoder *e, int B, const int *valid, const float *X)
{
    const size_t D = (size_t)e->shape.width, history = (size_t)e->shape.length * D;
    float *z = e->stack.Z[0];

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
    assert(B <= e->B_max);

    memset(out, 0, sizeof(float) * (size_t)B * 2 * D);
    encoder_pack(e, B, valid, X);
    if (e->S == 0)
        return;
    attention_stack_forward(&e->stack, e->S, e->start, e->top);
    for (int s = 0; s < e->S; s++) {
        const size_t n = (size_t)(e->start[s + 1] - e->start[s]), b = (size_t)e->row[s];
        memcpy(out + b * 2 * D, e->top + (size_t)s * D, sizeof(float) * D);
        for (size_t k = 0; k < n; k++)
            kernels->axpy(D, 1.0f / (float)n, X + b * history + k * D, out + b * 2 * D + D);
    }
}

void attention_encoder_backward(struct attention_encoder *e, int B, const float *dout, float *dX)
{
    const size_t D = (size_t)e->shape.width, history = (size_t)e->shape.length * D;
    assert(B <= e->B_max);
    if (e->S == 0)
        return;
    for (int s = 0; s < e->S; s++) {
        assert(e->row[s] < B);
        memcpy(e->dtop + (size_t)s * D, dout + (size_t)e->row[s] * 2 * D, sizeof(float) * D);
    }
    attention_stack_backward(&e->stack, e->S, e->start, e->dtop, e->dZ);
    for (int s = 0; dX && s < e->S; s++) {
        const size_t n = (size_t)(e->start[s + 1] - e->start[s]), b = (size_t)e->row[s];
        const float *dm = dout + b * 2 * D + D;
        float *dx = dX + b * history;
        kernels->axpy(n * D, 1, e->dZ + (size_t)e->start[s] * D, dx);
        for (size_t k = 0; k < n; k++)
            kernels->axpy(D, 1.0f / (float)n, dm, dx + k * D);
    }
}
