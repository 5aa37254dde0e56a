// SPDX-License-Identifier: Apache-2.0
#include "model/batch_scores.h"

// clang-format off
#include <stdarg.h>
#include <setjmp.h>
#include <stdint.h>
#include <stddef.h>
#include <cmocka.h>
// clang-format on
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/arena.h"
#include "model/kernels.h"
#include "model/rng.h"

// More queries than two tiles, odd sizes of all.
enum { QUERIES = 2 * BATCH_SCORES_TILE + 5, CANDIDATES = 201, WIDTH_MAX = 72 };

static struct fixture {
    float Q[QUERIES * WIDTH_MAX], V[CANDIDATES * WIDTH_MAX], column[CANDIDATES];
    float G[QUERIES * CANDIDATES]; // of a loss that is random weights of scores
    float S[QUERIES * CANDIDATES];
    float dQ[QUERIES * WIDTH_MAX], dV[CANDIDATES * WIDTH_MAX];
} f, other;

static void fill(struct fixture *x)
{
    struct rng rng = {12, 0};
    memset(x, 0, sizeof *x);
    rng_fill_uniform(&rng, x->Q, QUERIES * WIDTH_MAX, -1, 1);
    rng_fill_uniform(&rng, x->V, CANDIDATES * WIDTH_MAX, -1, 1);
    rng_fill_uniform(&rng, x->column, CANDIDATES, -1, 1);
    rng_fill_uniform(&rng, x->G, QUERIES * CANDIDATES, -1, 1);
}

// In tiles of `tile` queries; whom the gradients are for.
static void run(struct fixture *x, enum batch_scores_precision precision, int d, int candidates,
                int tile, bool queries, bool items)
{
    const size_t bytes = batch_scores_bytes(precision, d, CANDIDATES);
    struct arena scratch = {malloc(bytes), bytes, 0};
    struct batch_scores s;
    assert_non_null(scratch.base);
    batch_scores_init(&s, precision, d, CANDIDATES, &scratch);
    // What an earlier, larger batch leaves behind must not be seen.
    batch_scores_begin(&s, CANDIDATES, x->V, NULL, true);
    batch_scores_forward(&s, BATCH_SCORES_TILE, x->Q);
    batch_scores_backward(&s, BATCH_SCORES_TILE, NULL);

    batch_scores_begin(&s, candidates, x->V, x->column, items);
    for (int from = 0; from < QUERIES; from += tile) {
        const int n = QUERIES - from < tile ? QUERIES - from : tile;
        batch_scores_forward(&s, n, x->Q + (size_t)from * (size_t)d);
        for (int i = 0; i < n; i++) {
            const size_t at = (size_t)(from + i) * (size_t)candidates;
            memcpy(x->S + at, s.S + (size_t)i * s.stride, (size_t)candidates * sizeof *x->S);
            memcpy(s.S + (size_t)i * s.stride, x->G + at, (size_t)candidates * sizeof *x->S);
        }
        batch_scores_backward(&s, n, queries ? x->dQ + (size_t)from * (size_t)d : NULL);
    }
    if (items)
        batch_scores_end(&s, x->dV);
    free(scratch.base);
}

static double product(size_t n, const float *x, size_t x_next, const float *y, size_t y_next)
{
    double sum = 0;
    for (size_t k = 0; k < n; k++)
        sum += (double)x[k * x_next] * (double)y[k * y_next];
    return sum;
}

// bf16 rounds both factors by at most 2^-9.
static void assert_products(const struct fixture *x, int d, int candidates, double within)
{
    const size_t D = (size_t)d, C = (size_t)candidates;
    for (size_t i = 0; i < QUERIES; i++)
        for (size_t j = 0; j < C; j++)
            assert_true(fabs(product(D, x->Q + i * D, 1, x->V + j * D, 1) + (double)x->column[j] -
                             (double)x->S[i * C + j]) < within * sqrt((double)D));
    for (size_t i = 0; i < QUERIES; i++)
        for (size_t k = 0; k < D; k++)
            assert_true(fabs(product(C, x->G + i * C, 1, x->V + k, D) - (double)x->dQ[i * D + k]) <
                        within * sqrt((double)C));
    for (size_t j = 0; j < C; j++)
        for (size_t k = 0; k < D; k++)
            assert_true(fabs(product(QUERIES, x->G + j, C, x->Q + k, D) -
                             (double)x->dV[j * D + k]) < within * sqrt((double)QUERIES));
}

static void scores_and_gradients_are_the_three_products(void **state)
{
    static const int widths[] = {1, 7, 16, 31, 64, 72}, candidates[] = {1, 16, 65, CANDIDATES};
    (void)state;
    for (int precision = BATCH_SCORES_F32; precision <= BATCH_SCORES_BF16; precision++)
        for (size_t w = 0; w < 6; w++)
            for (size_t c = 0; c < 4; c++) {
                fill(&f);
                run(&f, (enum batch_scores_precision)precision, widths[w], candidates[c],
                    BATCH_SCORES_TILE, true, true);
                assert_products(&f, widths[w], candidates[c],
                                precision == BATCH_SCORES_F32 ? 2e-6 : 8e-3);
            }
}

// Scores (1, 2) . (3, 4) + 5 = 16 and (1, 2) . (-1, 1) - 1 = 0; with G = (2, -3) the gradients are
// 2 (3, 4) - 3 (-1, 1) = (9, 5) and 2 (1, 2), -3 (1, 2). All of it is exact in bfloat16, too.
static void the_numbers_worked_by_hand(void **state)
{
    (void)state;
    for (int precision = BATCH_SCORES_F32; precision <= BATCH_SCORES_BF16; precision++) {
        fill(&f);
        for (int i = 0; i < QUERIES; i++) {
            memcpy(f.Q + 2 * i, (float[]){1, 2}, 2 * sizeof(float));
            memcpy(f.G + 2 * i, (float[]){2, -3}, 2 * sizeof(float));
        }
        memcpy(f.V, (float[]){3, 4, -1, 1}, 4 * sizeof(float));
        memcpy(f.column, (float[]){5, -1}, 2 * sizeof(float));
        f.dQ[1] = 100;
        run(&f, (enum batch_scores_precision)precision, 2, 2, BATCH_SCORES_TILE, true, true);
        assert_true(f.S[0] == 16 && f.S[1] == 0 && f.dQ[0] == 9);
        assert_true(f.dQ[1] == 105); // added to
        assert_true(f.dV[0] == 2 * QUERIES && f.dV[3] == -6 * QUERIES);
    }
}

static void neither_set_nor_size_of_tiles_changes_a_bit(void **state)
{
    const struct kernels *sets[8];
    const int n = kernels_list(sets, 8);
    (void)state;
    for (int precision = BATCH_SCORES_F32; precision <= BATCH_SCORES_BF16; precision++) {
        kernels_init("plain");
        fill(&f);
        run(&f, (enum batch_scores_precision)precision, 40, 90, BATCH_SCORES_TILE, true, true);
        for (int s = 0; s < n; s++) {
            kernels_init(sets[s]->name);
            fill(&other);
            // bfloat16 is summed over 32 queries at a time.
            run(&other, (enum batch_scores_precision)precision, 40, 90,
                precision == BATCH_SCORES_F32 ? 7 : 32, true, true);
            assert_memory_equal(&f, &other, sizeof f);
        }
    }
    kernels_init(NULL);
}

static void who_does_not_learn_changes_nothing_for_the_other(void **state)
{
    (void)state;
    for (int precision = BATCH_SCORES_F32; precision <= BATCH_SCORES_BF16; precision++) {
        fill(&f);
        run(&f, (enum batch_scores_precision)precision, 40, 90, BATCH_SCORES_TILE, true, true);
        for (int queries = 0; queries < 2; queries++) {
            fill(&other);
            run(&other, (enum batch_scores_precision)precision, 40, 90, BATCH_SCORES_TILE, queries,
                !queries);
            assert_memory_equal(f.S, other.S, sizeof f.S);
            if (queries)
                assert_memory_equal(f.dQ, other.dQ, sizeof f.dQ);
            else
                assert_memory_equal(f.dV, other.dV, sizeof f.dV);
            for (int i = 0; i < CANDIDATES * WIDTH_MAX && queries; i++)
                assert_true(other.dV[i] == 0);
        }
    }
}

static int setup(void **state)
{
    (void)state;
    return kernels_init(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scores_and_gradients_are_the_three_products),
        cmocka_unit_test(the_numbers_worked_by_hand),
        cmocka_unit_test(neither_set_nor_size_of_tiles_changes_a_bit),
        cmocka_unit_test(who_does_not_learn_changes_nothing_for_the_other),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
