// SPDX-License-Identifier: Apache-2.0
//
// The kernels, compiled once for each instruction set with KERNELS_NAME and KERNELS_LABEL given.
//
// A block is 16 floats, in as many registers as the set needs; lane k of a block always goes to
// partial sum k, and sum_lanes adds the 16 in one fixed tree. The last, incomplete block is padded
// with the neutral element and takes the same path. So the register width changes no bit.
#include "model/kernels.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "model/vectors.h"

enum { LANES = 16, PARTS = LANES / WIDTH };

typedef float quarter __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(REGISTER_BYTES)));
typedef uint32_t uvec __attribute__((vector_size(REGISTER_BYTES)));

struct block {
    vec part[PARTS];
};

// Loops over the parts of a block have a constant length and vanish.
#define EACH_PART(p)                                                                               \
    int p = 0;                                                                                     \
    p < PARTS;                                                                                     \
    p++

static inline void block_load(struct block *b, const float *x)
{
    for (EACH_PART(p))
        b->part[p] = *(const vec_unaligned *)(x + p * WIDTH);
}

static inline void block_store(const struct block *b, float *x)
{
    for (EACH_PART(p))
        *(vec_unaligned *)(x + p * WIDTH) = b->part[p];
}

// The first n < 16 floats of x, then the padding.
static inline void block_load_tail(struct block *b, const float *x, size_t n, float padding)
{
    float lanes[LANES];
    for (int i = 0; i < LANES; i++)
        lanes[i] = padding;
    memcpy(lanes, x, n * sizeof *x);
    block_load(b, lanes);
}

static inline void block_store_tail(const struct block *b, float *x, size_t n)
{
    float lanes[LANES];
    block_store(b, lanes);
    memcpy(x, lanes, n * sizeof *x);
}

// The first n floats of x, at most a block.
static inline void block_get(struct block *b, const float *x, size_t n)
{
    if (n < LANES)
        block_load_tail(b, x, n, 0);
    else
        block_load(b, x);
}

static inline void block_put(const struct block *b, float *x, size_t n)
{
    if (n < LANES)
        block_store_tail(b, x, n);
    else
        block_store(b, x);
}

// Lanes 8 apart are added first, then 4, 2 and 1. In quarters of 4 floats whatever the set: every
// set has registers for those, and a wide store forwards to narrow loads.
static inline float sum_lanes(const struct block *b)
{
    float lanes[LANES];
    block_store(b, lanes);
    const quarter *q = (const quarter *)lanes;
    quarter s = (q[0] + q[2]) + (q[1] + q[3]);
    s += __builtin_shufflevector(s, s, 2, 3, 0, 1);
    return s[0] + s[1];
}

// Where the mask is all ones a, where it is zero b.
static inline vec vec_select(ivec mask, vec a, vec b)
{
    return (vec)((mask & (ivec)a) | (~mask & (ivec)b));
}

// Where x < y a, elsewhere b; with a NaN it is b. The wide sets have the comparison and the choice
// as instructions, which the compiler does not see in the masks.
static inline vec vec_where_less(vec x, vec y, vec a, vec b)
{
#if defined(__AVX512F__)
    return (vec)_mm512_mask_blend_ps(_mm512_cmp_ps_mask((__m512)x, (__m512)y, _CMP_LT_OQ),
                                     (__m512)b, (__m512)a);
#else
    return vec_select(x < y, a, b);
#endif
}

// The larger of bound and x, the smaller one; x where one of them is a NaN.
static inline vec vec_at_least(vec bound, vec x)
{
#if defined(__AVX512F__)
    return (vec)_mm512_max_ps((__m512)bound, (__m512)x);
#elif defined(__AVX2__)
    return (vec)_mm256_max_ps((__m256)bound, (__m256)x);
#else
    return vec_select(bound > x, bound, x);
#endif
}

static inline vec vec_at_most(vec bound, vec x)
{
#if defined(__AVX512F__)
    return (vec)_mm512_min_ps((__m512)bound, (__m512)x);
#elif defined(__AVX2__)
    return (vec)_mm256_min_ps((__m256)bound, (__m256)x);
#else
    return vec_select(bound < x, bound, x);
#endif
}

static float dot(size_t n, const float *x, const float *y)
{
    struct block sum = {0}, a, b;
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        block_load(&a, x + i);
        block_load(&b, y + i);
        for (EACH_PART(p))
            sum.part[p] += a.part[p] * b.part[p];
    }
    if (i < n) {
        block_load_tail(&a, x + i, n - i, 0);
        block_load_tail(&b, y + i, n - i, 0);
        for (EACH_PART(p))
            sum.part[p] += a.part[p] * b.part[p];
    }
    return sum_lanes(&sum);
}

// No sum, hence no order to keep: the compiler is left to vectorise these as it likes.
static void axpy(size_t n, float a, const float *x, float *y)
{
    for (size_t i = 0; i < n; i++)
        y[i] += a * x[i];
}

static void scale(size_t n, float a, float *x)
{
    for (size_t i = 0; i < n; i++)
        x[i] *= a;
}

static void scale_add(size_t n, float a, float *x, float *y)
{
    for (size_t i = 0; i < n; i++) {
        x[i] *= a;
        y[i] += x[i];
    }
}

// So many blocks of a row at a time: a row that is not in the first cache is fetched as one
// stretch. A narrow set has no registers for more than one.
enum { POOL_BLOCKS = PARTS == 1 ? 4 : 1 };

// Of `blocks` blocks, a constant, of which the last may be incomplete.
__attribute__((always_inline)) static inline void
pool_blocks(const int blocks, size_t n, size_t i, int m, int g, const float *w,
            const float *const *x, const float *const *z, float *pooled, float *context)
{
    const float newest = 1 / (float)g, mean = 1 / (float)m;
    struct block by_newest[POOL_BLOCKS] = {0}, by_age[POOL_BLOCKS] = {0}, by_all[POOL_BLOCKS] = {0},
                 by_context[POOL_BLOCKS] = {0}, a, c;
    const size_t count = blocks > 1 || n - i > LANES ? LANES : n - i;
    for (int k = 0; k < m; k++) {
        for (int b = 0; b < blocks; b++) {
            block_get(&a, x[k] + i + b * LANES, count);
            for (EACH_PART(p)) {
                by_age[b].part[p] += w[k] * a.part[p];
                by_all[b].part[p] += mean * a.part[p];
            }
            for (EACH_PART(p))
                if (k < g)
                    by_newest[b].part[p] += newest * a.part[p];
        }
        for (int b = 0; b < blocks; b++) {
            block_get(&c, z[k] + i + b * LANES, count);
            for (EACH_PART(p))
                by_context[b].part[p] += w[k] * c.part[p];
        }
    }
    for (int b = 0; b < blocks; b++, i += LANES) {
        block_put(&by_newest[b], pooled + i, count);
        block_put(&by_age[b], pooled + n + i, count);
        block_put(&by_all[b], pooled + 2 * n + i, count);
        block_put(&by_context[b], context + i, count);
    }
}

static void pool(size_t n, int m, int g, const float *w, const float *const *x,
                 const float *const *z, float *pooled, float *context)
{
    size_t i = 0;
    for (; i + POOL_BLOCKS * LANES <= n; i += POOL_BLOCKS * LANES)
        pool_blocks(POOL_BLOCKS, n, i, m, g, w, x, z, pooled, context);
    for (; i < n; i += LANES)
        pool_blocks(1, n, i, m, g, w, x, z, pooled, context);
}

__attribute__((always_inline)) static inline void
unpool_blocks(const int blocks, size_t n, size_t i, int m, int g, const float *w,
              const float *dpooled, const float *dcontext, float *const *dx, float *const *dz)
{
    struct block newest[POOL_BLOCKS], age[POOL_BLOCKS], all[POOL_BLOCKS], context[POOL_BLOCKS], a,
        c;
    const size_t count = blocks > 1 || n - i > LANES ? LANES : n - i;
    for (int b = 0; b < blocks; b++) {
        const size_t at = i + (size_t)b * LANES;
        block_get(&newest[b], dpooled + at, count);
        block_get(&age[b], dpooled + n + at, count);
        block_get(&all[b], dpooled + 2 * n + at, count);
        block_get(&context[b], dcontext + at, count);
        for (EACH_PART(p)) {
            newest[b].part[p] *= 1 / (float)g;
            all[b].part[p] *= 1 / (float)m;
        }
    }
    for (int k = 0; k < m; k++) {
        for (int b = 0; b < blocks; b++) {
            float *at = dx[k] + i + b * LANES;
            block_get(&a, at, count);
            for (EACH_PART(p))
                a.part[p] = (a.part[p] + w[k] * age[b].part[p]) + all[b].part[p];
            for (EACH_PART(p))
                if (k < g)
                    a.part[p] += newest[b].part[p];
            block_put(&a, at, count);
        }
        for (int b = 0; b < blocks; b++) {
            float *at = dz[k] + i + b * LANES;
            block_get(&c, at, count);
            for (EACH_PART(p))
                c.part[p] += w[k] * context[b].part[p];
            block_put(&c, at, count);
        }
    }
}

static void unpool(size_t n, int m, int g, const float *w, const float *dpooled,
                   const float *dcontext, float *const *dx, float *const *dz)
{
    size_t i = 0;
    for (; i + POOL_BLOCKS * LANES <= n; i += POOL_BLOCKS * LANES)
        unpool_blocks(POOL_BLOCKS, n, i, m, g, w, dpooled, dcontext, dx, dz);
    for (; i < n; i += LANES)
        unpool_blocks(1, n, i, m, g, w, dpooled, dcontext, dx, dz);
}

static void weigh(size_t n, int m, const float *p, const float *x, float *y)
{
    for (size_t i = 0; i < n; i += LANES) {
        const size_t count = n - i < LANES ? n - i : LANES;
        struct block sum, a;
        block_get(&sum, y + i, count);
        for (int k = 0; k < m; k++) {
            block_get(&a, x + (size_t)k * n + i, count);
            for (EACH_PART(part))
                sum.part[part] += p[k] * a.part[part];
        }
        block_put(&sum, y + i, count);
    }
}

static void unweigh(size_t n, int m, const float *p, const float *ds, const float *a,
                    const float *dy, const float *x, float *dx, float *da)
{
    for (size_t i = 0; i < n; i += LANES) {
        const size_t count = n - i < LANES ? n - i : LANES;
        struct block ask, down, sum, row, drow;
        block_get(&ask, a + i, count);
        block_get(&down, dy + i, count);
        block_get(&sum, da + i, count);
        for (int k = 0; k < m; k++) {
            const size_t at = (size_t)k * n + i;
            block_get(&row, x + at, count);
            block_get(&drow, dx + at, count);
            for (EACH_PART(part)) {
                drow.part[part] += p[k] * down.part[part] + ds[k] * ask.part[part];
                sum.part[part] += ds[k] * row.part[part];
            }
            block_put(&drow, dx + at, count);
        }
        block_put(&sum, da + i, count);
    }
}

static float normalize(size_t n, float epsilon, const float *x, float *y)
{
    struct block sum = {0}, b;
    for (size_t i = 0; i < n; i += LANES) {
        block_get(&b, x + i, n - i);
        for (EACH_PART(p))
            sum.part[p] += b.part[p];
    }
    const float mean = sum_lanes(&sum) / (float)n;
    sum = (struct block){0};
    for (size_t i = 0; i < n; i += LANES) {
        if (n - i < LANES)
            block_load_tail(&b, x + i, n - i, mean);
        else
            block_load(&b, x + i);
        for (EACH_PART(p)) {
            b.part[p] -= mean;
            sum.part[p] += b.part[p] * b.part[p];
        }
        block_put(&b, y + i, n - i);
    }
    const float scaled = 1 / sqrtf(sum_lanes(&sum) / (float)n + epsilon);
    for (size_t i = 0; i < n; i += LANES) {
        block_get(&b, y + i, n - i);
        for (EACH_PART(p))
            b.part[p] *= scaled;
        block_put(&b, y + i, n - i);
    }
    return scaled;
}

static void unnormalize(size_t n, float factor, const float *y, const float *dy, float *dx)
{
    struct block sum = {0}, product = {0}, a, b;
    for (size_t i = 0; i < n; i += LANES) {
        block_get(&a, y + i, n - i);
        block_get(&b, dy + i, n - i);
        for (EACH_PART(p)) {
            sum.part[p] += b.part[p];
            product.part[p] += a.part[p] * b.part[p];
        }
    }
    const float mean = sum_lanes(&sum) / (float)n, along = sum_lanes(&product) / (float)n;
    for (size_t i = 0; i < n; i += LANES) {
        block_get(&a, y + i, n - i);
        block_get(&b, dy + i, n - i);
        for (EACH_PART(p))
            b.part[p] = factor * ((b.part[p] - mean) - along * a.part[p]);
        block_put(&b, dx + i, n - i);
    }
}

// exp(t) = 2^k exp(r), k = round(t / ln 2), r = t - k ln 2 in [-0.35, 0.35], the latter by the
// Taylor-like polynomial of Cephes' expf (degree 7, error below 1 ulp). ln 2 is taken away in two
// parts (Cody and Waite): k times the first is exact, so r loses nothing. A NaN stays a NaN.
static inline vec vec_exp(vec t)
{
    // Adding 1.5 * 2^23 leaves the rounded integer in the low mantissa bits: no conversion needed.
    const vec rounder = vec_all(0x1.8p23f);
    const vec low = vec_all(-87.0f), high = vec_all(88.0f), given = t;
    t = vec_at_most(high, vec_at_least(low, t));

    const vec shifted = vec_fma(t, vec_all(0x1.715476p0f), rounder);
    const vec k = shifted - rounder;
    const vec r = vec_fma(k, vec_all(2.12194440e-4f), vec_fma(k, vec_all(-0.693359375f), t));

    vec e = vec_all(1.9875691500e-4f);
    e = vec_fma(e, r, vec_all(1.3981999507e-3f));
    e = vec_fma(e, r, vec_all(8.3334519073e-3f));
    e = vec_fma(e, r, vec_all(4.1665795894e-2f));
    e = vec_fma(e, r, vec_all(1.6666665459e-1f));
    e = vec_fma(e, r, vec_all(5.0000001201e-1f));
    e = vec_fma(e, r * r, r) + 1.0f;

    // k moved into the exponent field, where 127 is 2^0; what else the bits of `shifted` hold is
    // moved out.
    const uvec power = ((uvec)shifted << 23) + (127u << 23);
    e = e * (vec)power;
    e = vec_where_less(given, low, vec_all(0), e);
    return vec_where_less(high, given, vec_all(INFINITY), e);
}

static float exp_shifted(size_t n, float shift, float *x)
{
    struct block sum = {0}, b;
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        block_load(&b, x + i);
        for (EACH_PART(p)) {
            b.part[p] = vec_exp(b.part[p] - shift);
            sum.part[p] += b.part[p];
        }
        block_store(&b, x + i);
    }
    if (i < n) {
        // Far below zero whatever the shift, so that the padding adds nothing to the sum.
        block_load_tail(&b, x + i, n - i, -INFINITY);
        for (EACH_PART(p)) {
            b.part[p] = vec_exp(b.part[p] - shift);
            sum.part[p] += b.part[p];
        }
        block_store_tail(&b, x + i, n - i);
    }
    return sum_lanes(&sum);
}

// A NaN is never larger, so it is passed over; sums downstream still see it.
static inline void block_max(struct block *largest, const struct block *b)
{
    for (EACH_PART(p))
        largest->part[p] = vec_at_least(b->part[p], largest->part[p]);
}

// As sum_lanes.
static inline float max_lanes(const struct block *b)
{
    typedef int32_t mask __attribute__((vector_size(16)));
    float lanes[LANES];
    block_store(b, lanes);
    const quarter *q = (const quarter *)lanes;
    quarter m = q[0];
    for (int k = 1; k < 4; k++) {
        const mask larger = q[k] > m;
        m = (quarter)((larger & (mask)q[k]) | (~larger & (mask)m));
    }
    const float a = m[1] > m[0] ? m[1] : m[0], c = m[3] > m[2] ? m[3] : m[2];
    return c > a ? c : a;
}

static float max(size_t n, const float *x)
{
    struct block largest, b;
    size_t i = 0;
    for (EACH_PART(p))
        largest.part[p] = vec_all(-INFINITY);
    for (; i + LANES <= n; i += LANES) {
        block_load(&b, x + i);
        block_max(&largest, &b);
    }
    if (i < n) {
        block_load_tail(&b, x + i, n - i, -INFINITY);
        block_max(&largest, &b);
    }
    return max_lanes(&largest);
}

static float correct(size_t n, float a, const float *c, float *x)
{
    struct block largest, b, more;
    size_t i = 0;
    for (EACH_PART(p))
        largest.part[p] = vec_all(-INFINITY);
    for (; i + LANES <= n; i += LANES) {
        block_load(&b, x + i);
        block_load(&more, c + i);
        for (EACH_PART(p))
            b.part[p] = a * b.part[p] + more.part[p];
        block_store(&b, x + i);
        block_max(&largest, &b);
    }
    if (i < n) {
        block_load_tail(&b, x + i, n - i, -INFINITY);
        block_load_tail(&more, c + i, n - i, 0);
        for (EACH_PART(p))
            b.part[p] = a * b.part[p] + more.part[p];
        block_store_tail(&b, x + i, n - i);
        block_max(&largest, &b);
    }
    return max_lanes(&largest);
}

// A block of a row of n: where the row has ended, the padding.
static inline void block_cut(struct block *b, size_t n, float padding)
{
    static const int32_t index[LANES] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (EACH_PART(p)) {
        ivec at;
        memcpy(&at, index + p * WIDTH, sizeof at);
        b->part[p] = vec_select(at < (int32_t)n, b->part[p], vec_all(padding));
    }
}

// Rows are padded, so that the last block of one needs no way round through memory: of 50 numbers
// it is a quarter of the work, and with it a row took three times as long.
static void softmax(int m, size_t n, size_t stride, float scaled, float *p)
{
    for (; m > 0; m--, p += stride) {
        struct block b, largest, sum = {0};
        for (EACH_PART(k))
            largest.part[k] = vec_all(-INFINITY);
        for (size_t i = 0; i < n; i += LANES) {
            block_load(&b, p + i);
            if (n - i < LANES) {
                block_cut(&b, n - i, -INFINITY);
                block_store(&b, p + i);
            }
            block_max(&largest, &b);
        }
        const float shift = max_lanes(&largest);
        for (size_t i = 0; i < n; i += LANES) {
            block_load(&b, p + i);
            for (EACH_PART(k)) {
                b.part[k] = vec_exp((b.part[k] - shift) * scaled);
                sum.part[k] += b.part[k];
            }
            block_store(&b, p + i);
        }
        const float share = 1 / sum_lanes(&sum);
        for (size_t i = 0; i < n; i += LANES) {
            block_load(&b, p + i);
            for (EACH_PART(k))
                b.part[k] *= share;
            block_store(&b, p + i);
        }
    }
}

// d row_k = scale p_k (dp_k - sum_j p_j dp_j).
static void softmax_backward(int m, size_t n, size_t stride, float scaled, const float *p,
                             float *dp)
{
    for (; m > 0; m--, p += stride, dp += stride) {
        struct block a, b, sum = {0};
        for (size_t i = 0; i < n; i += LANES) {
            block_load(&a, p + i);
            block_load(&b, dp + i);
            if (n - i < LANES) {
                block_cut(&b, n - i, 0);
                block_store(&b, dp + i);
            }
            for (EACH_PART(k))
                sum.part[k] += a.part[k] * b.part[k];
        }
        const float mean = sum_lanes(&sum);
        for (size_t i = 0; i < n; i += LANES) {
            block_load(&a, p + i);
            block_load(&b, dp + i);
            for (EACH_PART(k))
                b.part[k] = scaled * (a.part[k] * (b.part[k] - mean));
            block_store(&b, dp + i);
        }
    }
}

static void rowwise_adagrad(size_t n, float rate, float l2, float epsilon, const float *gradient,
                            float *row, float *G)
{
    struct block sum = {0}, g, r;
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        block_load(&g, gradient + i);
        block_load(&r, row + i);
        for (EACH_PART(p)) {
            const vec total = g.part[p] + l2 * r.part[p];
            sum.part[p] += total * total;
        }
    }
    if (i < n) {
        block_load_tail(&g, gradient + i, n - i, 0);
        block_load_tail(&r, row + i, n - i, 0);
        for (EACH_PART(p)) {
            const vec total = g.part[p] + l2 * r.part[p];
            sum.part[p] += total * total;
        }
    }
    if (n == 0)
        return;
    *G += sum_lanes(&sum) / (float)n;
    // 0 / 0 for a gradient that was always zero and no epsilon: such a row stays where it is.
    const float divisor = sqrtf(*G) + epsilon;
    const float step = divisor == 0 ? 0 : rate / divisor;
    for (i = 0; i < n; i++)
        row[i] -= step * (gradient[i] + l2 * row[i]);
}

// Round to nearest even by integer arithmetic alone, because the conversion instructions are not
// in every set. A NaN keeps its sign and the top of its payload and becomes quiet, as F16C does.
static inline ivec vec_half(vec x)
{
    const ivec bits = (ivec)x;
    const ivec sign = (bits >> 16) & 0x8000;
    const ivec magnitude = bits & 0x7fffffff;

    // 2^-14 and up: rebase the exponent, add half a unit (less one when the last bit is even).
    const ivec odd = (magnitude >> 13) & 1;
    const ivec normal = (magnitude - (112 << 23) + 0xfff + odd) >> 13;
    // Below, the adder rounds: beside 0.5 the unit of a float is that of a subnormal half, 2^-24.
    const ivec subnormal = (ivec)((vec)magnitude + 0.5f) - (126 << 23);
    const ivec nan = 0x7e00 | ((magnitude >> 13) & 0x3ff);

    const ivec is_subnormal = magnitude < (113 << 23);
    const ivec is_infinite = magnitude >= (143 << 23); // 65536 and up; 65520 rounds to infinity
    const ivec is_nan = magnitude > (255 << 23);
    ivec half = (is_subnormal & subnormal) | (~is_subnormal & normal);
    half = (is_infinite & 0x7c00) | (~is_infinite & half);
    half = (is_nan & nan) | (~is_nan & half);
    return sign | half;
}

static void to_half(size_t n, const float *x, unsigned short *y)
{
    struct block b;
    int32_t half[LANES];
    for (size_t i = 0; i < n; i += LANES) {
        const size_t count = n - i < LANES ? n - i : LANES;
        if (count == LANES)
            block_load(&b, x + i);
        else
            block_load_tail(&b, x + i, count, 0);
        for (EACH_PART(p))
            b.part[p] = (vec)vec_half(b.part[p]);
        memcpy(half, &b, sizeof half);
        if (count == LANES)
            for (int k = 0; k < LANES; k++)
                y[i + k] = (unsigned short)half[k];
        else
            for (size_t k = 0; k < count; k++)
                y[i + k] = (unsigned short)half[k];
    }
}

extern const struct products PRODUCTS_NAME;
extern const struct kernels KERNELS_NAME;
const struct kernels KERNELS_NAME = {
    .name = KERNELS_LABEL,
    .dot = dot,
    .axpy = axpy,
    .pool = pool,
    .unpool = unpool,
    .weigh = weigh,
    .unweigh = unweigh,
    .normalize = normalize,
    .unnormalize = unnormalize,
    .exp_shifted = exp_shifted,
    .correct = correct,
    .max = max,
    .softmax = softmax,
    .softmax_backward = softmax_backward,
    .scale = scale,
    .scale_add = scale_add,
    .rowwise_adagrad = rowwise_adagrad,
    .to_half = to_half,
    .products = &PRODUCTS_NAME,
};
