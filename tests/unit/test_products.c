// SPDX-License-Identifier: Apache-2.0
#include "model/products.h"

// clang-format off
#include <stdarg.h>
#include <setjmp.h>
#include <stdint.h>
#include <stddef.h>
#include <cmocka.h>
// clang-format on
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "model/kernels.h"
#include "model/rng.h"

// Odd numbers of rows, more of them than a block has; more of k than a block has.
enum { M = 64, N = 112, K = 160, LD = 168, SETS_MAX = 8 };

static float A[M * LD], At[K * LD], B[K * LD], start[M * LD], C[SETS_MAX][M * LD + 8];
static uint16_t halves[M * LD];
static uint32_t pairs[K / 2 * LD];
static const struct kernels *sets[SETS_MAX];
static int n_sets;

// Products of 32, so that the next to nothing of an order matters.
static int setup(void **state)
{
    struct rng rng = {77, 0};
    (void)state;
    rng_fill_uniform(&rng, A, M * LD, -1, 1);
    rng_fill_uniform(&rng, B, K * LD, -1, 1);
    rng_fill_uniform(&rng, start, M * LD, -1, 1);
    for (int i = 0; i < M; i++)
        for (int k = 0; k < K; k++)
            At[k * LD + i] = A[i * LD + k];
    n_sets = kernels_list(sets, SETS_MAX);
    return 0;
}

static void assert_sets_agree(int m, int n)
{
    for (int s = 1; s < n_sets; s++)
        for (int i = 0; i < m; i++)
            if (memcmp(C[s] + i * LD, C[0] + i * LD, (size_t)n * sizeof(float)) != 0)
                fail_msg("%s and %s differ in row %d of (%d, %d)", sets[s]->name, sets[0]->name, i,
                         m, n);
}

static void f32_is_fma_in_the_order_of_k_at_every_set(void **state)
{
    (void)state;
    for (int m = 1; m <= 20; m++)
        for (int n = 16; n <= N; n += 16) {
            const int k = (m * 37 + n) % K + 1;
            for (int s = 0; s < n_sets; s++) {
                memset(C[s], 0x7f, sizeof C[s]);
                // Unaligned, one time in two, and from either side's transpose.
                const bool turned = m % 2;
                sets[s]->products->f32((size_t)m, (size_t)n, (size_t)k, turned ? At : A,
                                       turned ? 1 : LD, turned ? LD : 1, B, LD, start + n % 3, LD,
                                       C[s], LD);
                for (int i = 0; i < M * LD + 8; i++) // nothing beside the block is written
                    if (i % LD >= n || i / LD >= m)
                        assert_true(isnan(C[s][i]) || C[s][i] > 1e38f);
            }
            assert_sets_agree(m, n);
            for (int i = 0; i < m; i += 3)
                for (int j = 0; j < n; j += 7) {
                    float sum = start[n % 3 + i * LD + j];
                    for (int p = 0; p < k; p++)
                        sum = fmaf(A[i * LD + p], B[p * LD + j], sum);
                    assert_true(sum == C[0][i * LD + j]);
                }
        }
}

static void rows_of_f32_may_start_alike_and_where_they_end(void **state)
{
    (void)state;
    for (int s = 0; s < n_sets; s++) {
        memset(C[s], 0, sizeof C[s]);
        sets[s]->products->f32(7, 32, 5, A, LD, 1, B, LD, start, 0, C[s], LD);
        sets[s]->products->f32(7, 32, 5, A, LD, 1, B, LD, C[s], LD, C[s], LD);
    }
    assert_sets_agree(7, 32);
    float sum = start[31];
    for (int p = 0; p < 10; p++)
        sum = fmaf(A[6 * LD + p % 5], B[p % 5 * LD + 31], sum);
    assert_true(sum == C[0][6 * LD + 31]);
}

// What is rounded stands for itself: as in the header, and one hand-worked row.
static void rounding_is_to_nearest_even_at_every_set(void **state)
{
    static const struct {
        uint32_t from;
        uint16_t to;
    } cases[] = {
        {0x3f800000, 0x3f80}, {0x3f808000, 0x3f80}, {0x3f808001, 0x3f81}, {0x3f818000, 0x3f82},
        {0xbf818000, 0xbf82}, {0x7f7fffff, 0x7f80}, {0x7f800000, 0x7f80}, {0xff800000, 0xff80},
        {0x00000001, 0x0000}, {0x807fffff, 0x8000}, {0x00800000, 0x0080}, {0x7f800001, 0x7fc0},
        {0xffc12345, 0xffc1}, {0x80000000, 0x8000}, {0x007fffff, 0x0000}, {0x42f6e979, 0x42f7},
    };
    float x[16], y[16];
    (void)state;
    for (int i = 0; i < 16; i++) {
        memcpy(&x[i], &cases[i].from, 4);
        memcpy(&y[i], &cases[15 - i].from, 4);
    }
    for (int s = 0; s < n_sets; s++) {
        uint16_t first[16], second[16];
        uint32_t both[16], again[16];
        sets[s]->products->round(16, x, y, first, second, both);
        sets[s]->products->round(16, x, y, NULL, NULL, again);
        assert_memory_equal(both, again, sizeof both);
        for (int i = 0; i < 16; i++) {
            assert_int_equal(first[i], cases[i].to);
            assert_int_equal(second[i], cases[15 - i].to);
            assert_int_equal(both[i], (uint32_t)second[i] << 16 | first[i]);
        }
    }
}

static void random_numbers_round_alike_at_every_set(void **state)
{
    struct rng rng = {5, 0};
    uint32_t bits[2][N], expected[N], got[N];
    (void)state;
    for (int round = 0; round < 200; round++) {
        for (int i = 0; i < 2 * N; i++)
            bits[i / N][i % N] = (uint32_t)rng_next(&rng);
        sets[0]->products->round(N, (float *)bits[0], (float *)bits[1], NULL, NULL, expected);
        for (int s = 1; s < n_sets; s++) {
            sets[s]->products->round(N, (float *)bits[0], (float *)bits[1], NULL, NULL, got);
            assert_memory_equal(got, expected, sizeof got);
        }
    }
}

static void bf16_agree(int m, int n, int k)
{
    for (int i = 0; i < M; i += 2)
        sets[0]->products->round(K, A + i * LD, A + (i + 1) * LD, halves + i * LD,
                                 halves + (i + 1) * LD, (uint32_t[K]){0});
    for (int p = 0; p < K; p += 2)
        sets[0]->products->round(N, B + p * LD, B + (p + 1) * LD, NULL, NULL, pairs + p / 2 * LD);
    for (int s = 0; s < n_sets; s++) {
        memset(C[s], 0, sizeof C[s]);
        sets[s]->products->bf16((size_t)m, (size_t)n, (size_t)k, halves, LD, pairs, LD, start,
                                n % 32 ? LD : 0, C[s], LD);
    }
    assert_sets_agree(M, LD);
}

static void bf16_sums_alike_at_every_set(void **state)
{
    (void)state;
    for (int m = 16; m <= M; m += 16)
        for (int n = 16; n <= N; n += 16)
            for (int k = 32; k <= K; k += 64)
                bf16_agree(m, n, k);
}

// Every power of two there is: what is too small is flushed, what is too large infinite, and either
// way alike.
static void bf16_sums_alike_at_the_ends_of_what_there_is(void **state)
{
    struct rng rng = {6, 0};
    (void)state;
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < M * LD; i++) {
            A[i] = ldexpf(A[i], (int)rng_below(&rng, 300) - 170);
            start[i] = ldexpf(start[i], (int)rng_below(&rng, 300) - 170);
        }
        for (int i = 0; i < K * LD; i++)
            B[i] = ldexpf(B[i], (int)rng_below(&rng, 300) - 170);
        bf16_agree(32, 48, 64);
        setup(NULL);
    }
}

static void bf16_is_close_to_the_product_of_the_rounded(void **state)
{
    (void)state;
    bf16_agree(32, 32, K);
    for (int i = 0; i < 32; i++)
        for (int j = 0; j < 32; j++) {
            double sum = (double)start[j];
            for (int p = 0; p < K; p++) {
                const uint32_t a = (uint32_t)halves[i * LD + p] << 16;
                const uint32_t b =
                    p % 2 ? pairs[p / 2 * LD + j] & 0xffff0000 : pairs[p / 2 * LD + j] << 16;
                float x, y;
                memcpy(&x, &a, 4);
                memcpy(&y, &b, 4);
                sum += (double)x * (double)y;
            }
            assert_true(fabs(sum - (double)C[0][i * LD + j]) < 1e-5);
        }
}

static void what_is_turned_twice_is_itself(void **state)
{
    static uint32_t x[48 * 80], y[80 * 48];
    (void)state;
    for (int i = 0; i < 48 * 80; i++)
        x[i] = (uint32_t)i * 2654435761u;
    for (int s = 0; s < n_sets; s++) {
        memset(y, 0, sizeof y);
        sets[s]->products->transpose(48, 80, x, 80, y, 48);
        for (int i = 0; i < 48; i++)
            for (int j = 0; j < 80; j++)
                assert_int_equal(y[j * 48 + i], x[i * 80 + j]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(f32_is_fma_in_the_order_of_k_at_every_set, setup),
        cmocka_unit_test_setup(rows_of_f32_may_start_alike_and_where_they_end, setup),
        cmocka_unit_test_setup(rounding_is_to_nearest_even_at_every_set, setup),
        cmocka_unit_test_setup(random_numbers_round_alike_at_every_set, setup),
        cmocka_unit_test_setup(bf16_sums_alike_at_every_set, setup),
        cmocka_unit_test_setup(bf16_sums_alike_at_the_ends_of_what_there_is, setup),
        cmocka_unit_test_setup(bf16_is_close_to_the_product_of_the_rounded, setup),
        cmocka_unit_test_setup(what_is_turned_twice_is_itself, setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
