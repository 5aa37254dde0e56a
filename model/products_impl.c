// SPDX-License-Identifier: Apache-2.0
//
// The products, compiled once for each instruction set with PRODUCTS_NAME given.
//
// In f32 a block of BLOCK_ROWS rows and as many columns as registers hold is summed over all of k
// before it is stored. Blocks of k are as long as what is read of B stays in the first cache.
#include "model/products.h"

#include <math.h>
#include <string.h>

#include "model/vectors.h"

enum {
    BLOCK_ROWS = 6,
    // 24 sums of 32 registers, or 12 of 16; without FMA nothing is fast.
    BLOCK_VECTORS = WIDTH == 8 ? 2 : 4,
    BLOCK_COLUMNS = BLOCK_VECTORS * WIDTH,
    BLOCK_K = 128,
};
_Static_assert(PRODUCTS_COLUMNS % WIDTH == 0, "rows are whole registers");

struct f32_block {
    size_t K, a_row, a_k, ldb, start_row, ldc;
    const float *A, *B, *start;
    float *C;
};

// rows and vectors are constants wherever this is called, so that the sums stay in registers.
__attribute__((always_inline)) static inline void f32_block(const struct f32_block *b, int rows,
                                                            int vectors)
{
    vec sum[BLOCK_ROWS][BLOCK_VECTORS];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < vectors; j++)
            sum[i][j] =
                *(const vec_unaligned *)(b->start + (size_t)i * b->start_row + (size_t)j * WIDTH);
    const float *B = b->B;
    for (size_t k = 0; k < b->K; k++, B += b->ldb) {
        vec row[BLOCK_VECTORS];
        for (int j = 0; j < vectors; j++)
            row[j] = *(const vec_unaligned *)(B + (size_t)j * WIDTH);
        for (int i = 0; i < rows; i++) {
            const vec a = vec_all(b->A[(size_t)i * b->a_row + k * b->a_k]);
            for (int j = 0; j < vectors; j++)
                sum[i][j] = vec_fma(a, row[j], sum[i][j]);
        }
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < vectors; j++)
            *(vec_unaligned *)(b->C + (size_t)i * b->ldc + (size_t)j * WIDTH) = sum[i][j];
}

__attribute__((always_inline)) static inline void f32_rows(const struct f32_block *b, int rows,
                                                           size_t columns)
{
    if (columns == BLOCK_COLUMNS)
        f32_block(b, rows, BLOCK_VECTORS);
#if REGISTER_BYTES == 64
    else if (columns == 48)
        f32_block(b, rows, 3);
    else if (columns == 32)
        f32_block(b, rows, 2);
    else
        f32_block(b, rows, 1);
#endif
}

static void f32_columns(struct f32_block b, size_t m, size_t columns)
{
    for (; m >= BLOCK_ROWS; m -= BLOCK_ROWS) {
        f32_rows(&b, BLOCK_ROWS, columns);
        b.A += BLOCK_ROWS * b.a_row;
        b.start += BLOCK_ROWS * b.start_row;
        b.C += BLOCK_ROWS * b.ldc;
    }
    switch (m) {
    case 5:
        f32_rows(&b, 5, columns);
        break;
    case 4:
        f32_rows(&b, 4, columns);
        break;
    case 3:
        f32_rows(&b, 3, columns);
        break;
    case 2:
        f32_rows(&b, 2, columns);
        break;
    case 1:
        f32_rows(&b, 1, columns);
        break;
    default:
        break;
    }
}

static void f32(size_t m, size_t n, size_t K, const float *A, size_t a_row, size_t a_k,
                const float *B, size_t ldb, const float *start, size_t start_row, float *C,
                size_t ldc)
{
    for (size_t k = 0; k < K || k == 0; k += BLOCK_K) {
        const size_t length = K - k < BLOCK_K ? K - k : BLOCK_K;
        for (size_t j = 0; j < n; j += BLOCK_COLUMNS)
            f32_columns((struct f32_block){.K = length,
                                           .A = A + k * a_k,
                                           .a_row = a_row,
                                           .a_k = a_k,
                                           .B = B + k * ldb + j,
                                           .ldb = ldb,
                                           .start = (k ? C : start) + j,
                                           .start_row = k ? ldc : start_row,
                                           .C = C + j,
                                           .ldc = ldc},
                        m, n - j < BLOCK_COLUMNS ? n - j : BLOCK_COLUMNS);
    }
}

#if defined(__AMX_BF16__)

// As LDTILECFG reads it; all eight tiles are 16 rows of 64 bytes.
struct tile_shapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
_Static_assert(sizeof(struct tile_shapes) == 64, "no padding");

enum { TILE = 16, TILE_K = 32 };

static void tiles_configure(void)
{
    struct tile_shapes shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        shapes.row_bytes[i] = 64;
        shapes.rows[i] = TILE;
    }
    _tile_loadconfig(&shapes);
}

// Four tiles of C, two by two; a second row or column of tiles that there is not is the first one
// once more, and not stored.
static void bf16(size_t m, size_t n, size_t K, const uint16_t *A, size_t lda, const uint32_t *B,
                 size_t ldb, const float *start, size_t start_row, float *C, size_t ldc)
{
    tiles_configure();
    for (size_t j = 0; j < n; j += 2 * TILE)
        for (size_t i = 0; i < m; i += 2 * TILE) {
            const size_t down = i + TILE < m ? TILE : 0, right = j + TILE < n ? TILE : 0;
            const float *from = start + i * start_row + j;
            float *to = C + i * ldc + j;
            _tile_loadd(0, from, (long)(start_row * sizeof *from));
            _tile_loadd(1, from + right, (long)(start_row * sizeof *from));
            _tile_loadd(2, from + down * start_row, (long)(start_row * sizeof *from));
            _tile_loadd(3, from + down * start_row + right, (long)(start_row * sizeof *from));
            for (size_t k = 0; k < K; k += TILE_K) {
                const uint16_t *a = A + i * lda + k;
                const uint32_t *b = B + k / 2 * ldb + j;
                _tile_loadd(4, a, (long)(lda * sizeof *a));
                _tile_loadd(6, b, (long)(ldb * sizeof *b));
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(7, b + right, (long)(ldb * sizeof *b));
                _tile_dpbf16ps(1, 4, 7);
                _tile_loadd(5, a + down * lda, (long)(lda * sizeof *a));
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
            _tile_stored(0, to, (long)(ldc * sizeof *to));
            if (right)
                _tile_stored(1, to + right, (long)(ldc * sizeof *to));
            if (down)
                _tile_stored(2, to + down * ldc, (long)(ldc * sizeof *to));
            if (down && right)
                _tile_stored(3, to + down * ldc + right, (long)(ldc * sizeof *to));
        }
    _tile_release();
}

// 16 floats of x0 and of x1 at a time.
static void round_rows(size_t n, const float *x0, const float *x1, uint16_t *y0, uint16_t *y1,
                       uint32_t *pairs)
{
    static const uint16_t zip[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                     8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i order = _mm512_loadu_si512(zip);
    for (size_t i = 0; i < n; i += 16) {
        const __m512i both =
            (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(x1 + i), _mm512_loadu_ps(x0 + i));
        if (y0)
            _mm256_storeu_si256((__m256i *)(y0 + i), _mm512_castsi512_si256(both));
        if (y1)
            _mm256_storeu_si256((__m256i *)(y1 + i), _mm512_extracti64x4_epi64(both, 1));
        _mm512_storeu_si512(pairs + i, _mm512_permutexvar_epi16(order, both));
    }
}

#else

static float from_bf16(uint32_t half)
{
    const uint32_t bits = half << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return (bits & 0x7f800000) ? x : copysignf(0, x);
}

static float flushed(double x)
{
    const float y = (float)x;
    return fabsf(y) < 0x1p-126f ? copysignf(0, y) : y;
}

// The product of two bfloat16 and its sum with a float lose nothing in double that the float's
// rounding could see.
static void bf16(size_t m, size_t n, size_t K, const uint16_t *A, size_t lda, const uint32_t *B,
                 size_t ldb, const float *start, size_t start_row, float *C, size_t ldc)
{
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
            float sum = start[i * start_row + j];
            for (size_t k = 0; k < K; k += 32) {
                float even = 0, odd = 0;
                for (size_t p = 0; p < 16; p++) {
                    const uint16_t *a = A + i * lda + k + 2 * p;
                    const uint32_t b = B[(k / 2 + p) * ldb + j];
                    even = flushed((double)from_bf16(a[0]) * (double)from_bf16(b & 0xffff) +
                                   (double)even);
                    odd =
                        flushed((double)from_bf16(a[1]) * (double)from_bf16(b >> 16) + (double)odd);
                }
                sum = flushed((double)flushed(sum) + (double)flushed((double)even + (double)odd));
            }
            C[i * ldc + j] = sum;
        }
}

static uint16_t to_bf16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (isnan(x))
        return (uint16_t)(bits >> 16 | 0x40);
    if (!(bits & 0x7f800000))
        return (uint16_t)(bits >> 16 & 0x8000);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static void round_rows(size_t n, const float *x0, const float *x1, uint16_t *y0, uint16_t *y1,
                       uint32_t *pairs)
{
    for (size_t i = 0; i < n; i++) {
        const uint16_t low = to_bf16(x0[i]), high = to_bf16(x1[i]);
        if (y0)
            y0[i] = low;
        if (y1)
            y1[i] = high;
        pairs[i] = (uint32_t)high << 16 | low;
    }
}

#endif

#if defined(__AVX512F__)

// Exchanges the two blocks beside the diagonal in each square of 2 step.
__attribute__((always_inline)) static inline void exchange(__m512i x[16], uint32_t step)
{
    uint32_t low[16], high[16];
    for (uint32_t k = 0; k < 16; k++) {
        low[k] = k & step ? 16 + k - step : k;
        high[k] = k & step ? 16 + k : k + step;
    }
    for (uint32_t i = 0; i < 16; i++) {
        if (i & step)
            continue;
        const __m512i a = x[i], b = x[i + step];
        x[i] = _mm512_permutex2var_epi32(a, _mm512_loadu_si512(low), b);
        x[i + step] = _mm512_permutex2var_epi32(a, _mm512_loadu_si512(high), b);
    }
}

static void transpose(size_t m, size_t n, const uint32_t *x, size_t ldx, uint32_t *y, size_t ldy)
{
    for (size_t i = 0; i < m; i += 16)
        for (size_t j = 0; j < n; j += 16) {
            __m512i block[16];
            for (size_t k = 0; k < 16; k++)
                block[k] = _mm512_loadu_si512(x + (i + k) * ldx + j);
            exchange(block, 8);
            exchange(block, 4);
            exchange(block, 2);
            exchange(block, 1);
            for (size_t k = 0; k < 16; k++)
                _mm512_storeu_si512(y + (j + k) * ldy + i, block[k]);
        }
}

#else

static void transpose(size_t m, size_t n, const uint32_t *x, size_t ldx, uint32_t *y, size_t ldy)
{
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++)
            y[j * ldy + i] = x[i * ldx + j];
}

#endif

extern const struct products PRODUCTS_NAME;
const struct products PRODUCTS_NAME = {
    .f32 = f32, .bf16 = bf16, .round = round_rows, .transpose = transpose};
