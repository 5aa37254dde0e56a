// SPDX-License-Identifier: Apache-2.0
#include "snapshot/scan.h"

#include <cpuid.h>
#include <math.h>
#include <string.h>

extern const struct scan scan_plain, scan_avx2, scan_avxvnni, scan_avx512;

static int plain_runs(void)
{
    return 1;
}

static int avx2_runs(void)
{
    return __builtin_cpu_supports("avx2") != 0;
}

// Clang 14's __builtin_cpu_supports has no name for this one.
static int avxvnni_runs(void)
{
    unsigned a, b, c, d;
    return avx2_runs() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4);
}

static int avx512_runs(void)
{
    return avx2_runs() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vnni");
}

// Best last.
static const struct {
    const struct scan *set;
    int (*runs)(void);
} sets[] = {
    {&scan_plain, plain_runs},
    {&scan_avx2, avx2_runs},
    {&scan_avxvnni, avxvnni_runs},
    {&scan_avx512, avx512_runs},
};

enum { SETS = sizeof sets / sizeof *sets };

int scan_list(const struct scan **list, int max)
{
    int n = 0;
    __builtin_cpu_init();
    for (int i = 0; i < SETS && n < max; i++)
        if (sets[i].runs())
            list[n++] = sets[i].set;
    return n;
}

const struct scan *scan_best(void)
{
    const struct scan *list[SETS];
    return list[scan_list(list, SETS) - 1];
}

// ---- Codes

enum { CODE_MAX = 127 };

// Between these neither a product of two vectors' elements that matters vanishes nor a sum of such
// products overflows.
static const float SMALLEST = 0x1p-40f, LARGEST = 0x1p60f;

// No scale is less than this of the exact column: the room for rounding is that of the row with the
// largest ratio, so one row that has nothing but the exact column would have all others read.
static const float Z_RATIO = 0x1p-16f;

void scan_encode(const struct scan *s, struct scan_codes *codes, uint32_t n, const float *rows,
                 float *row)
{
    const size_t D = codes->D, width = D > 0 ? D - 1 : 0;
    int32_t longest = 0;
    memset(codes->code, 128, (size_t)codes->n_blocks * codes->steps * SCAN_ROWS * SCAN_STEP);
    for (uint32_t i = 0; i < codes->n_blocks * SCAN_ROWS; i++) {
        codes->scale[i] = codes->z[i] = 0;
        if (i >= n || D == 0)
            continue;
        const float *x = rows + (size_t)i * D;
        const float z = x[codes->column];
        if (codes->column < width) {
            memcpy(row, x, D * sizeof *row);
            row[codes->column] = x[width];
            x = row;
        }
        float squares;
        float largest = s->range(width, x, &squares);
        const float least = fabsf(z) * (CODE_MAX * Z_RATIO);
        largest = largest > least ? largest : least;
        squares += z * z;
        codes->z[i] = z;
        if (squares == 0 && largest == 0)
            continue;
        if (!(largest >= SMALLEST && squares <= LARGEST * LARGEST)) {
            codes->scale[i] = NAN;
            continue;
        }
        codes->scale[i] = largest / CODE_MAX;
        const float inverse = 1 / codes->scale[i];
        const size_t block = i / SCAN_ROWS, r = i % SCAN_ROWS;
        const int32_t length = s->encode(
            width, inverse, x, codes->code + (block * codes->steps * SCAN_ROWS + r) * SCAN_STEP);
        longest = length > longest ? length : longest;
        const float ratio = sqrtf(squares) * inverse;
        codes->ratio = ratio > codes->ratio ? ratio : codes->ratio;
    }
    codes->length = sqrtf((float)longest);
}

// Rounding, u = 2^-24, with |q||x| for what sums of |q_i x_i| are at most:
//     the score itself        (D / 16 + 6) u |q||x|
//     codes, off by 4 u |x_i| besides s / 2      4 u |q||x|
//     upper, five operations, each u of at most  2 |q||x| + s bound
// and what is left to 64 u |q||x| is for products that vanish: below 2^-126 each, should the
// process flush what is smaller, where |q||x| is 2^-80 and more. |x| <= s ratio.
void scan_query_code(const struct scan_codes *codes, struct scan_query *q, int8_t *code)
{
    const size_t D = codes->D, width = D > 0 ? D - 1 : 0;
    double largest = 0, squares = 0, sum = 0, lost = 0;
    int32_t total = 0;
    memset(code, 0, codes->steps * SCAN_STEP);
    q->code = code;
    q->scale = 0;
    q->z = D > 0 ? q->vector[codes->column] : 0;
    for (size_t i = 0; i < width; i++) {
        const double x = fabs((double)q->vector[i == codes->column ? width : i]);
        largest = x > largest ? x : largest;
        squares += x * x;
        sum += x;
    }
    squares += (double)q->z * (double)q->z;
    const double length = sqrt(squares);
    q->start = 0;
    // One that is all zeros has a bound of zero.
    q->bound = length == 0 ? 0 : NAN;
    if (!(length >= (double)SMALLEST && length <= (double)LARGEST))
        return;
    q->scale = (float)(largest / CODE_MAX);
    for (size_t i = 0; i < width && q->scale > 0; i++) {
        const double x = (double)q->vector[i == codes->column ? width : i];
        const double place = rint(x / (double)q->scale);
        const double k = fmax(-CODE_MAX, fmin(CODE_MAX, place));
        code[i] = (int8_t)k;
        total += code[i];
        lost += (x - k * (double)q->scale) * (x - k * (double)q->scale);
    }
    if (q->scale == 0)
        lost = squares;
    q->start = -128 * total;
    const double rounding = ((double)D / 16 + 64) * 0x1p-24 * length * (double)codes->ratio;
    q->bound = (float)(((double)codes->length * sqrt(lost) + sum / 2 + rounding) * (1 + 0x1p-20));
}
