// SPDX-License-Identifier: Apache-2.0
//
// Compiled once for each instruction set with SCAN_NAME and SCAN_LABEL given; snapshot/scan.h says
// what is promised.
#include "snapshot/scan.h"

#include <math.h>
#include <string.h>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define REGISTER_BYTES 64
#elif defined(__AVX2__)
#define REGISTER_BYTES 32
#else
#define REGISTER_BYTES 16
#endif

enum { LANES = 16, WIDTH = REGISTER_BYTES / 4, PARTS = LANES / WIDTH, LINE = 64 };
enum { BLOCK_BYTES = SCAN_ROWS * SCAN_STEP }; // of one step

typedef float vec __attribute__((vector_size(REGISTER_BYTES)));
typedef float vec_unaligned __attribute__((vector_size(REGISTER_BYTES), aligned(4), may_alias));
typedef float quarter __attribute__((vector_size(16)));

typedef int32_t ivec __attribute__((vector_size(REGISTER_BYTES)));

struct lanes {
    vec part[PARTS];
};

// Loops over the parts have a constant length and vanish.
#define EACH_PART(p)                                                                               \
    int p = 0;                                                                                     \
    p < PARTS;                                                                                     \
    p++

static inline void lanes_load(struct lanes *l, const float *x)
{
    for (EACH_PART(p))
        l->part[p] = *(const vec_unaligned *)(x + p * WIDTH);
}

// The first n < 16 floats, then zeros.
static inline void lanes_load_tail(struct lanes *l, const float *x, size_t n)
{
#ifdef __AVX512F__
    l->part[0] = (vec)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), x);
#elif defined(__AVX2__)
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    for (int p = 0; p < PARTS; p++) {
        const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n - p * WIDTH), lane);
        l->part[p] = (vec)_mm256_maskload_ps(x + p * WIDTH, mask);
    }
#else
    float padded[LANES] = {0};
    memcpy(padded, x, n * sizeof *x);
    lanes_load(l, padded);
#endif
}

static inline void lanes_multiply_add(struct lanes *sum, const struct lanes *a,
                                      const struct lanes *b)
{
    for (EACH_PART(p))
        sum->part[p] += a->part[p] * b->part[p];
}

// rows sums of D products beside each other; rows is a constant.
static inline __attribute__((always_inline)) void sums(int rows, size_t D, const float *q,
                                                       const float *x, struct lanes *sum)
{
    struct lanes a, b;
    size_t i = 0;
    for (int r = 0; r < rows; r++)
        sum[r] = (struct lanes){0};
    for (; i + LANES <= D; i += LANES) {
        lanes_load(&a, q + i);
        for (int r = 0; r < rows; r++) {
            lanes_load(&b, x + (size_t)r * D + i);
            lanes_multiply_add(&sum[r], &a, &b);
        }
    }
    if (i == D)
        return;
    lanes_load_tail(&a, q + i, D - i);
    for (int r = 0; r < rows; r++) {
        lanes_load_tail(&b, x + (size_t)r * D + i, D - i);
        lanes_multiply_add(&sum[r], &a, &b);
    }
}

// Lanes 8 apart are added, then 4.
static inline quarter fold(const struct lanes *l)
{
    quarter q[4];
    memcpy(q, l, sizeof q);
    return (q[0] + q[2]) + (q[1] + q[3]);
}

// And 2, and 1.
static float dot(size_t D, const float *q, const float *x)
{
    struct lanes sum;
    sums(1, D, q, x, &sum);
    const quarter s = fold(&sum);
    return (s[0] + s[2]) + (s[1] + s[3]);
}

// What the memory brings while something else is computed: a few lines now and then, for it has no
// more than some 16 on the way, and who asks for another one waits.
struct ahead {
    const char *at, *end;
    size_t share; // bytes at once
};

static inline void bring(struct ahead *a)
{
    const char *stop = (size_t)(a->end - a->at) < a->share ? a->end : a->at + a->share;
    for (; a->at < stop; a->at += LINE)
        __builtin_prefetch(a->at);
}

#ifdef __AVX512F__

// Of 16 registers the sums of their lanes, added in the same tree as above. Each step adds halves
// of two registers in one; sum r ends in lane r.
static inline __m512 sum_lanes(const __m512 sum[16])
{
    __m512 a[8], b[4], c[2];
    // Registers whose numbers differ in the last two bits come together last.
    for (int i = 0; i < 8; i++) {
        const __m512 x = sum[(i & 3) + (i & 4) * 2], y = sum[(i & 3) + (i & 4) * 2 + 4];
        a[i] = _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x44), _mm512_shuffle_f32x4(x, y, 0xee));
    }
    for (int i = 0; i < 4; i++)
        b[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a[i], a[i + 4], 0x88),
                             _mm512_shuffle_f32x4(a[i], a[i + 4], 0xdd));
    for (int i = 0; i < 2; i++)
        c[i] = _mm512_add_ps(_mm512_shuffle_ps(b[2 * i], b[2 * i + 1], 0x44),
                             _mm512_shuffle_ps(b[2 * i], b[2 * i + 1], 0xee));
    return _mm512_add_ps(_mm512_shuffle_ps(c[0], c[1], 0x88), _mm512_shuffle_ps(c[0], c[1], 0xdd));
}

// The 16 partial sums of Q queries, 1 or 2, and R rows; Q R <= 16. A row is loaded once for both.
static inline __attribute__((always_inline)) void partial_sums(int Q, int R, size_t D,
                                                               const float *const q[],
                                                               const float *x, __m512 *sum,
                                                               struct ahead *ahead)
{
    for (int i = 0; i < Q * R; i++)
        sum[i] = _mm512_setzero_ps();
    for (size_t i = 0; i < D; i += LANES) {
        const __mmask16 mask = (__mmask16)(D - i < LANES ? (1u << (D - i)) - 1 : 0xffff);
        __m512 a[2];
        bring(ahead);
        for (int k = 0; k < Q; k++)
            a[k] = _mm512_maskz_loadu_ps(mask, q[k] + i);
        for (int r = 0; r < R; r++) {
            const __m512 row = _mm512_maskz_loadu_ps(mask, x + (size_t)r * D + i);
            for (int k = 0; k < Q; k++)
                sum[k * R + r] = _mm512_add_ps(sum[k * R + r], _mm512_mul_ps(a[k], row));
        }
    }
}

enum { TOGETHER = 2 };

// How often score_rows brings something, for each query.
static inline size_t brings(size_t D)
{
    return (D + LANES - 1) / LANES;
}

static inline void score_rows(int n, size_t D, const struct scan_query *q, const float *x,
                              float *scores, struct ahead *ahead)
{
    enum { HALF = SCAN_ROWS / 2 };
    __m512 sum[SCAN_ROWS];
    if (n < TOGETHER) {
        const float *const one[] = {q[0].vector};
        partial_sums(1, HALF, D, one, x, sum, ahead);
        partial_sums(1, HALF, D, one, x + HALF * D, sum + HALF, ahead);
        _mm512_storeu_ps(scores, sum_lanes(sum));
        return;
    }
    const float *const two[] = {q[0].vector, q[1].vector};
    for (int half = 0; half < 2; half++) {
        partial_sums(2, HALF, D, two, x + (size_t)half * HALF * D, sum, ahead);
        const __m512 both = sum_lanes(sum);
        _mm256_storeu_ps(scores + half * HALF, _mm512_castps512_ps256(both));
        _mm256_storeu_ps(scores + SCAN_ROWS + half * HALF, _mm512_extractf32x8_ps(both, 1));
    }
}

#else

enum { TOGETHER = 1 };

static inline size_t brings(size_t D)
{
    (void)D;
    return SCAN_ROWS / 4;
}

// Four rows at a time: so many sums fit the registers.
static inline void score_rows(int n, size_t D, const struct scan_query *query, const float *x,
                              float *scores, struct ahead *ahead)
{
    const float *q = query->vector;
    (void)n;
    for (int r = 0; r < SCAN_ROWS; r += 4) {
        struct lanes sum[4];
        bring(ahead);
        sums(4, D, q, x + (size_t)r * D, sum);
        const quarter a = fold(&sum[0]), b = fold(&sum[1]), c = fold(&sum[2]), d = fold(&sum[3]);
        const quarter ab =
            __builtin_shufflevector(a, b, 0, 1, 4, 5) + __builtin_shufflevector(a, b, 2, 3, 6, 7);
        const quarter cd =
            __builtin_shufflevector(c, d, 0, 1, 4, 5) + __builtin_shufflevector(c, d, 2, 3, 6, 7);
        const quarter all = __builtin_shufflevector(ab, cd, 0, 2, 4, 6) +
                            __builtin_shufflevector(ab, cd, 1, 3, 5, 7);
        memcpy(scores + r, &all, sizeof all);
    }
}

#endif

// Which are not below worst; a NaN on either side is not.
static inline uint32_t not_below(const float scores[SCAN_ROWS], float worst)
{
#ifdef __AVX512F__
    return _mm512_cmp_ps_mask(_mm512_loadu_ps(scores), _mm512_set1_ps(worst), _CMP_NLT_UQ);
#elif defined(__AVX2__)
    const __m256 w = _mm256_set1_ps(worst);
    const __m256 low = _mm256_cmp_ps(_mm256_loadu_ps(scores), w, _CMP_NLT_UQ);
    const __m256 high = _mm256_cmp_ps(_mm256_loadu_ps(scores + 8), w, _CMP_NLT_UQ);
    return (uint32_t)_mm256_movemask_ps(low) | (uint32_t)_mm256_movemask_ps(high) << 8;
#else
    uint32_t hits = 0;
    for (unsigned r = 0; r < SCAN_ROWS; r++)
        hits |= (uint32_t) !(scores[r] < worst) << r;
    return hits;
#endif
}

// While one block is scored for all queries, the memory brings the next, evenly, so that it is
// never idle: 8 queries of 1M x 64 took 44 ms with the block after the next brought in larger
// pieces, 29 ms so (Sapphire Rapids).
static uint32_t score(size_t D, uint32_t n, const struct scan_query *q, const float *x,
                      float *scores, uint32_t *hits)
{
    const size_t bytes = SCAN_ROWS * D * sizeof *x, times = n * brings(D);
    const char *next = (const char *)x + bytes;
    struct ahead ahead = {next, next + bytes, times > 0 ? (bytes / LINE / times + 1) * LINE : 0};
    uint32_t any = 0;
    for (uint32_t i = 0; i < n; i += TOGETHER)
        score_rows((int)(n - i), D, q + i, x, scores + (size_t)i * SCAN_ROWS, &ahead);
    for (uint32_t i = 0; i < n; i++) {
        hits[i] = not_below(scores + (size_t)i * SCAN_ROWS, q[i].worst);
        any |= hits[i];
    }
    return any;
}

// ---- Codes

// The sums of products of one block with Q queries, which is a constant.
#if defined(__AVX512F__)

static inline __attribute__((always_inline)) void products(int Q, const struct scan_query *q,
                                                           size_t steps, const uint8_t *code,
                                                           int32_t (*sum)[SCAN_ROWS])
{
    __m512i s[8];
    for (int i = 0; i < Q; i++)
        s[i] = _mm512_set1_epi32(q[i].start);
    for (size_t j = 0; j < steps; j++) {
        const __m512i c = _mm512_loadu_si512(code + j * BLOCK_BYTES);
        for (int i = 0; i < Q; i++) {
            int32_t k;
            memcpy(&k, q[i].code + j * SCAN_STEP, sizeof k);
            s[i] = _mm512_dpbusd_epi32(s[i], c, _mm512_set1_epi32(k));
        }
    }
    for (int i = 0; i < Q; i++)
        _mm512_storeu_si512(sum[i], s[i]);
}

#elif defined(__AVX2__)

#ifdef __AVXVNNI__
static inline __m256i multiply_add(__m256i sum, __m256i c, __m256i k)
{
    return _mm256_dpbusd_avx_epi32(sum, c, k);
}
#else
// Pairs of products of a code in [-127, 127] and another fit 16 bits, of a code with 128 added
// they would not. So the sign goes from the one to the other first.
static inline __m256i multiply_add(__m256i sum, __m256i c, __m256i k)
{
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(c), _mm256_sign_epi8(k, c));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#endif

static inline __attribute__((always_inline)) void products(int Q, const struct scan_query *q,
                                                           size_t steps, const uint8_t *code,
                                                           int32_t (*sum)[SCAN_ROWS])
{
    for (int half = 0; half < 2; half++) {
        __m256i s[8];
        for (int i = 0; i < Q; i++)
#ifdef __AVXVNNI__
            s[i] = _mm256_set1_epi32(q[i].start);
#else
            s[i] = _mm256_setzero_si256();
#endif
        for (size_t j = 0; j < steps; j++) {
            __m256i c = _mm256_loadu_si256(
                (const __m256i_u *)(code + j * BLOCK_BYTES + half * BLOCK_BYTES / 2));
#ifndef __AVXVNNI__
            c = _mm256_xor_si256(c, _mm256_set1_epi8(-128));
#endif
            for (int i = 0; i < Q; i++) {
                int32_t k;
                memcpy(&k, q[i].code + j * SCAN_STEP, sizeof k);
                s[i] = multiply_add(s[i], c, _mm256_set1_epi32(k));
            }
        }
        for (int i = 0; i < Q; i++)
            _mm256_storeu_si256((__m256i_u *)(sum[i] + half * SCAN_ROWS / 2), s[i]);
    }
}

#else

static inline __attribute__((always_inline)) void products(int Q, const struct scan_query *q,
                                                           size_t steps, const uint8_t *code,
                                                           int32_t (*sum)[SCAN_ROWS])
{
    for (int i = 0; i < Q; i++) {
        for (int r = 0; r < SCAN_ROWS; r++)
            sum[i][r] = q[i].start;
        for (size_t j = 0; j < steps; j++)
            for (int r = 0; r < SCAN_ROWS; r++)
                for (int d = 0; d < SCAN_STEP; d++)
                    sum[i][r] += code[j * BLOCK_BYTES + (size_t)(r * SCAN_STEP + d)] *
                                 q[i].code[j * SCAN_STEP + (size_t)d];
    }
}

#endif

static inline __attribute__((always_inline)) uint32_t upper_of(int Q, const struct scan_query *q,
                                                               size_t steps, const uint8_t *code,
                                                               const float *scale, const float *z,
                                                               uint32_t *hits)
{
    int32_t sum[8][SCAN_ROWS];
    uint32_t any = 0;
    products(Q, q, steps, code, sum);
    for (int i = 0; i < Q; i++) {
        float most[SCAN_ROWS];
        for (int r = 0; r < SCAN_ROWS; r++)
            most[r] = scale[r] * (q[i].scale * (float)sum[i][r] + q[i].bound) + z[r] * q[i].z;
        hits[i] = not_below(most, q[i].worst);
        any |= hits[i];
    }
    return any;
}

static uint32_t upper(const struct scan_codes *codes, uint32_t block, uint32_t n,
                      const struct scan_query *q, uint32_t *hits)
{
    const size_t steps = codes->steps;
    const uint8_t *code = codes->code + (size_t)block * steps * BLOCK_BYTES;
    const float *scale = codes->scale + (size_t)block * SCAN_ROWS;
    const float *z = codes->z + (size_t)block * SCAN_ROWS;
    uint32_t any = 0, i = 0;
    for (size_t j = 0; j < steps; j++)
        __builtin_prefetch(code + (j + 4 * steps) * BLOCK_BYTES);
    for (; n - i >= 8; i += 8)
        any |= upper_of(8, q + i, steps, code, scale, z, hits + i);
    for (; n - i >= 4; i += 4)
        any |= upper_of(4, q + i, steps, code, scale, z, hits + i);
    for (; n > i; i++)
        any |= upper_of(1, q + i, steps, code, scale, z, hits + i);
    return any;
}

static int32_t encode(size_t n, float inverse, const float *x, uint8_t *codes)
{
    enum { PIECE = 64 };
    int32_t squares = 0;
    for (size_t from = 0; from < n; from += PIECE) {
        const size_t left = n - from < PIECE ? n - from : PIECE;
        float scaled[PIECE] = {0};
        uint8_t code[PIECE];
        for (size_t i = 0; i < left; i++)
            scaled[i] = x[from + i] * inverse;
        // Adding 1.5 * 2^23 leaves the rounded integer in the low bits.
        for (size_t i = 0; i < PIECE; i++) {
            int32_t bits;
            const float shifted = scaled[i] + 0x1.8p23f;
            memcpy(&bits, &shifted, sizeof bits);
            bits -= 0x4b400000;
            bits = bits > 127 ? 127 : bits < -127 ? -127 : bits;
            squares += bits * bits;
            code[i] = (uint8_t)(bits + 128);
        }
        for (size_t i = 0; i < left; i += SCAN_STEP)
            memcpy(codes + (from + i) * SCAN_ROWS, code + i, SCAN_STEP);
    }
    return squares;
}

// Floats without their sign are in the order of their bits.
static float range(size_t n, const float *x, float *squares)
{
    struct lanes sum = {0}, a;
    ivec most[PARTS] = {0};
    for (size_t i = 0; i < n; i += LANES) {
        if (n - i < LANES)
            lanes_load_tail(&a, x + i, n - i);
        else
            lanes_load(&a, x + i);
        lanes_multiply_add(&sum, &a, &a);
        for (EACH_PART(p)) {
            const ivec bits = (ivec)a.part[p] & 0x7fffffff, more = bits > most[p];
            most[p] = (more & bits) | (~more & most[p]);
        }
    }
    int32_t lane[LANES], largest = 0;
    memcpy(lane, most, sizeof lane);
    for (int k = 0; k < LANES; k++)
        largest = lane[k] > largest ? lane[k] : largest;
    const quarter s = fold(&sum);
    *squares = (s[0] + s[2]) + (s[1] + s[3]);
    float value;
    memcpy(&value, &largest, sizeof value);
    return value;
}

extern const struct scan SCAN_NAME;
const struct scan SCAN_NAME = {
    .name = SCAN_LABEL,
    .dot = dot,
    .score = score,
    .upper = upper,
    .encode = encode,
    .range = range,
};
