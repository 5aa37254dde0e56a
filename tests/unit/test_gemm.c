// SPDX-License-Identifier: Apache-2.0
#include "model/gemm.h"

#include <math.h>

#include "tests/unit/core_fixture.h"

static const int shapes[][3] = {{1, 1, 1},   {3, 5, 7},   {7, 3, 5},
                                {64, 1, 33}, {1, 64, 33}, {17, 31, 65}};
enum { MOST = 65 * 65 };

static float A[MOST], B[MOST], C[MOST];
static double expected[MOST], bound[MOST];

// C (M, N) = what is in C + op(A) op(B), the elements of A and B found through their strides.
static void products(int M, int N, int K, int a_row, int a_column, int b_row, int b_column)
{
    struct rng rng = {(uint64_t)(M * 10000 + N * 100 + K), 0};
    rng_fill_uniform(&rng, A, (size_t)(M * K), -1, 1);
    rng_fill_uniform(&rng, B, (size_t)(K * N), -1, 1);
    rng_fill_uniform(&rng, C, (size_t)(M * N), -1, 1);
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) {
            double sum = (double)C[m * N + n];
            for (int k = 0; k < K; k++)
                sum += (double)A[m * a_row + k * a_column] * (double)B[k * b_row + n * b_column];
            expected[m * N + n] = sum;
            bound[m * N + n] = 1e-6 * (K + 1);
        }
}

static void check(int M, int N)
{
    for (int i = 0; i < M * N; i++)
        if (!(fabs((double)C[i] - expected[i]) <= bound[i]))
            fail_msg("C[%d, %d] is %g, expected %g", i / N, i % N, (double)C[i], expected[i]);
}

static void a_product_is_added_whichever_operand_is_transposed(void **state)
{
    (void)state;
    gemm_init();
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        const int M = shapes[s][0], N = shapes[s][1], K = shapes[s][2];
        products(M, N, K, K, 1, 1, K);
        gemm_nt(M, N, K, A, B, C);
        check(M, N);
        products(M, N, K, 1, M, N, 1);
        gemm_tn(M, N, K, A, B, C);
        check(M, N);
        products(M, N, K, K, 1, N, 1);
        gemm_nn(M, N, K, A, B, C);
        check(M, N);
    }
}

static void the_same_product_has_the_same_bits(void **state)
{
    (void)state;
    enum { M = 17, N = 31, K = 65 };
    static float first[M * N];
    for (int round = 0; round < 3; round++) {
        products(M, N, K, K, 1, 1, K);
        gemm_nt(M, N, K, A, B, C);
        if (round == 0)
            memcpy(first, C, sizeof first);
        assert_memory_equal(first, C, sizeof first);
    }
}

static void the_library_and_its_core_have_names(void **state)
{
    (void)state;
    assert_int_equal(strncmp(gemm_library(), "OpenBLAS 0.", 11), 0);
    assert_true(strlen(gemm_core()) > 2);
    assert_true(gemm_core_runs(gemm_core()));
    assert_true(gemm_core_runs("Nehalem"));
    assert_true(!gemm_core_wanted() || gemm_core_runs(gemm_core_wanted()));
    // What it would rather run is never what it runs.
    assert_true(!gemm_core_wanted() || strcmp(gemm_core_wanted(), gemm_core()) != 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_product_is_added_whichever_operand_is_transposed),
        cmocka_unit_test(the_same_product_has_the_same_bits),
        cmocka_unit_test(the_library_and_its_core_have_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
