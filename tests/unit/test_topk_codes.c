// SPDX-License-Identifier: Apache-2.0
#include "snapshot/topk.h"

// clang-format off
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "snapshot/twotower_reader.h"
#include "tests/support/scored.h"

enum { SETS_MAX = 8, D_MAX = 65, N_MAX = 700, B_MAX = 11, K_MAX = 800 };

// What the items look like.
enum family {
    RANDOM,
    CLUSTERED, // few directions, rows of one differ little
    TIED,      // many equal rows, small whole numbers
    ZERO,
    BIASED,  // the last column is several times the others
    SCALES,  // rows from 2^-20 to 2^20
    EXTREME, // rows from 2^-140 to 2^120: sums overflow, products vanish
    BROKEN,  // NaN and infinities here and there
    NEAR,    // equal but for the last bits
    SPIKED,  // one column of each row is all of it
    FAMILIES
};

struct fixture {
    uint64_t drawn;
    float items[N_MAX * D_MAX + 1], queries[B_MAX * D_MAX + 1];
};

static struct fixture f;

static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 33) * 0xff51afd7ed558ccd;
    x = (x ^ x >> 33) * 0xc4ceb9fe1a85ec53;
    return x ^ x >> 33;
}

static uint64_t draw(uint64_t n)
{
    return mix(++f.drawn) % n;
}

// About normal.
static float normal(void)
{
    float sum = -2;
    for (int i = 0; i < 4; i++)
        sum += (float)draw(1 << 24) / (1 << 24);
    return sum * 1.7f;
}

static void rows_fill(enum family family, uint32_t n, size_t D, float *x)
{
    float base[D_MAX + 1];
    for (size_t i = 0; i < D; i++)
        base[i] = normal();
    for (uint32_t row = 0; row < n; row++, x += D) {
        const int power = family == SCALES ? (int)draw(40) - 20 : (int)draw(260) - 140;
        for (size_t i = 0; i < D; i++) {
            x[i] = normal();
            if (family == CLUSTERED)
                x[i] = base[(i + row % 3) % D] + 0.01f * x[i];
            else if (family == TIED)
                x[i] = (float)draw(3) - 1;
            else if (family == ZERO)
                x[i] = draw(2) ? 0.0f : -0.0f;
            else if (family == BIASED && i + 1 == D)
                x[i] = 30 * x[i] - 40;
            else if (family == SCALES || family == EXTREME)
                x[i] = ldexpf(x[i], power);
            else if (family == BROKEN && draw(8 * D) == 0)
                x[i] = draw(3) == 0 ? NAN : draw(2) ? INFINITY : -INFINITY;
            else if (family == NEAR)
                x[i] = base[i] * (1 + (float)draw(3) * 0x1p-23f);
        }
        if (family == SPIKED && D > 0) {
            for (size_t i = 0; i < D; i++)
                x[i] *= 1e-5f;
            x[draw(D)] += 3;
        }
        if (family == TIED && row >= 3 && draw(3) == 0)
            memcpy(x, x - 3 * D, D * sizeof *x);
    }
}

// The order of the sums is promised: 16 beside each other, then halves on halves.
static float dot(const float *a, const float *b, size_t n)
{
    float sum[16] = {0};
    for (size_t i = 0; i < n; i++)
        sum[i % 16] += a[i] * b[i];
    for (size_t half = 8; half > 0; half /= 2)
        for (size_t j = 0; j < half; j++)
            sum[j] += sum[j + half];
    return sum[0];
}

// Which NaN a sum ends in depends on the order of two operands, and is not told.
static bool same(float a, float b)
{
    return memcmp(&a, &b, sizeof a) == 0 || (isnan(a) && isnan(b));
}

static void expect_sorted(const struct tt_query *q, uint32_t found, const uint32_t *rows,
                          const float *scores)
{
    static struct scored all[N_MAX];
    const uint32_t n = (uint32_t)q->items->shape[0];
    const size_t D = q->items->shape[1];
    const float *items = q->items->data;
    uint32_t used = 0;
    for (uint32_t row = 0; row < n; row++) {
        bool excluded = false;
        for (uint32_t i = 0; i < q->n_exclude; i++)
            excluded |= q->exclude_rows[i] == row;
        if (excluded)
            continue;
        float bonus = 0;
        bool adjusted = false;
        for (uint32_t i = 0; i < q->n_adjust; i++)
            if (q->adjust_rows[i] == row) {
                bonus += q->adjust_bonus[i];
                adjusted = true;
            }
        const float score = dot(items + row * D, q->vector, D);
        all[used++] = (struct scored){adjusted ? score + bonus : score, row};
    }
    qsort(all, used, sizeof *all, by_score);
    assert_int_equal(found, q->k < used ? q->k : used);
    for (uint32_t i = 0; i < found; i++) {
        assert_int_equal(rows[i], all[i].row);
        assert_true(same(scores[i], all[i].score));
    }
}

static void search_all_ways(const struct tt_array *array, uint32_t B, uint32_t k, bool special)
{
    static uint32_t rows[B_MAX * K_MAX], found[B_MAX];
    static float scores[B_MAX * K_MAX];
    const struct scan *sets[SETS_MAX];
    const int n_sets = scan_list(sets, SETS_MAX);
    struct tt_query queries[B_MAX];
    uint32_t adjust[B_MAX][9], exclude[B_MAX][5];
    float bonus[B_MAX][9];
    for (uint32_t i = 0; i < B; i++) {
        queries[i] =
            (struct tt_query){.items = array, .vector = f.queries + i * array->shape[1], .k = k};
        for (int j = 0; j < 9; j++) {
            adjust[i][j] = j == 4 ? TT_NO_ROW : (uint32_t)draw(array->shape[0] + 3);
            bonus[i][j] = 3 * normal();
        }
        for (int j = 0; j < 5; j++)
            exclude[i][j] = (uint32_t)draw(array->shape[0] + 3);
        if (special && i % 4 != 3) {
            queries[i].n_adjust = 9;
            queries[i].adjust_rows = adjust[i];
            queries[i].adjust_bonus = bonus[i];
            queries[i].n_exclude = i % 3 == 0 ? 0 : 5;
            queries[i].exclude_rows = exclude[i];
        }
    }
    for (int s = 0; s < n_sets; s++) {
        struct tt_codes *codes;
        assert_int_equal(topk_codes(sets[s], &codes, array), 0);
        for (int coded = 0; coded < 2; coded++) {
            memset(rows, 0, sizeof rows);
            assert_int_equal(
                topk_batch(sets[s], queries, B, coded ? codes : NULL, rows, scores, found), 0);
            for (uint32_t i = 0; i < B; i++)
                expect_sorted(&queries[i], found[i], rows + i * k, scores + i * k);
        }
        tt_codes_free(codes);
    }
}

static void codes_and_batches_change_no_bit_of_the_answer(void **state)
{
    static const size_t dims[] = {0, 1, 2, 3, 5, 16, 17, 31, 64, 65};
    static const uint32_t counts[] = {0, 1, 15, 16, 17, 100, N_MAX};
    static const uint32_t ks[] = {1, 10, 100, N_MAX + 1}, batches[] = {1, 3, 8, B_MAX};
    (void)state;
    for (int family = 0; family < FAMILIES; family++)
        for (size_t d = 0; d < sizeof dims / sizeof *dims; d++)
            for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
                const size_t D = dims[d];
                const uint32_t n = counts[c];
                f.drawn = (uint64_t)family * 1000000 + d * 100000 + c * 10000;
                rows_fill(family, n, D, f.items);
                // Queries of their own kind now and then, so that those are extreme or broken too.
                rows_fill(draw(2) ? RANDOM : family, B_MAX, D, f.queries);
                const struct tt_array array = {
                    .dtype = "F32", .n_dims = 2, .shape = {n, D}, .data = f.items};
                search_all_ways(&array, batches[draw(4)], ks[draw(4)], draw(2));
            }
}

// The sharpest question there is: the score itself as the one to reach, row by row.
static void expect_all_reach_their_score(uint32_t n, uint32_t B, size_t D, size_t column)
{
    enum { N = 160 };
    const struct scan *sets[SETS_MAX];
    const int n_sets = scan_list(sets, SETS_MAX);
    assert_true(n <= N && n % SCAN_ROWS == 0);
    for (int s = 0; s < n_sets; s++) {
        float row[D_MAX], scale[N], z[N];
        uint8_t code[N * (D_MAX + SCAN_STEP)];
        int8_t query_code[D_MAX + SCAN_STEP];
        struct scan_codes codes = {.D = D,
                                   .column = column,
                                   .steps = (D + SCAN_STEP - 2) / SCAN_STEP,
                                   .n_blocks = n / SCAN_ROWS,
                                   .code = code,
                                   .scale = scale,
                                   .z = z};
        scan_encode(sets[s], &codes, n, f.items, row);
        for (uint32_t b = 0; b < B; b++) {
            struct scan_query q = {.vector = f.queries + b * D};
            scan_query_code(&codes, &q, query_code);
            for (uint32_t r = 0; r < n; r++) {
                uint32_t hits;
                q.worst = dot(f.items + r * D, q.vector, D);
                sets[s]->upper(&codes, r / SCAN_ROWS, 1, &q, &hits);
                assert_true(hits >> r % SCAN_ROWS & 1);
            }
        }
    }
}

static void no_code_promises_less_than_the_score(void **state)
{
    enum { N = 160, B = 9 };
    static const size_t dims[] = {1, 2, 7, 33, 64, 65};
    (void)state;
    for (int trial = 0; trial < FAMILIES * 12; trial++) {
        const size_t D = dims[trial % 6];
        f.drawn = (uint64_t)trial * 1000003;
        rows_fill(trial % FAMILIES, N, D, f.items);
        rows_fill(draw(2) ? RANDOM : trial % FAMILIES, B, D, f.queries);
        expect_all_reach_their_score(N, B, D, (size_t)trial % D);
    }
}

// Every column half a code away from its code, all to the query's side: what codes lose is all that
// they may lose, and there is nothing but the room for rounding.
static void rounding_has_its_room(void **state)
{
    enum { N = 160, B = 9 };
    (void)state;
    for (size_t D = 2; D <= D_MAX; D++) {
        f.drawn = D * 1000003;
        for (uint32_t r = 0; r < N; r++) {
            float *x = f.items + r * D;
            x[D - 1] = ldexpf(1 + (float)draw(1 << 22) * 0x1p-22f, (int)draw(20));
            for (size_t i = 0; i + 1 < D; i++)
                x[i] = x[D - 1] * 0x1p-16f * ((float)draw(100) + 0.5f);
        }
        for (uint32_t b = 0; b < B; b++) {
            float *q = f.queries + b * D;
            for (size_t i = 0; i + 1 < D; i++)
                q[i] = 127;
            q[D - 1] = 127 * (1 + (float)draw(1 << 22) * 0x1p-22f);
        }
        expect_all_reach_their_score(N, B, D, D - 1);
    }
}

// Where codes are any good: of 16,000 rows few are read for the best 10, also when one column is
// much larger than the rest, and all there is in one row.
static void codes_refuse_most_rows(void **state)
{
    enum { N = 16000, D = 33, K = 10 };
    static float items[N * D];
    static const enum family families[] = {RANDOM, BIASED, SCALES};
    const struct scan *sets[SETS_MAX];
    const int n_sets = scan_list(sets, SETS_MAX);
    (void)state;
    for (int i = 0; i < 3; i++) {
        f.drawn = 5;
        rows_fill(families[i], N, D, items);
        for (size_t k = 0; families[i] == BIASED && k + 1 < D; k++)
            items[k] = 1e-12f;
        rows_fill(RANDOM, 1, D, f.queries);
        f.queries[D - 1] = 1;
        static struct scored all[N];
        for (uint32_t r = 0; r < N; r++)
            all[r] = (struct scored){dot(items + r * D, f.queries, D), r};
        qsort(all, N, sizeof *all, by_score);
        for (int s = 0; s < n_sets; s++) {
            static uint8_t code[N * D];
            static float scale[N], z[N];
            float row[D];
            int8_t query_code[D];
            struct scan_codes codes = {.D = D,
                                       .column = D - 1,
                                       .steps = D / SCAN_STEP,
                                       .n_blocks = N / SCAN_ROWS,
                                       .code = code,
                                       .scale = scale,
                                       .z = z};
            struct scan_query q = {.vector = f.queries, .worst = all[K - 1].score};
            uint32_t read = 0, hits;
            scan_encode(sets[s], &codes, N, items, row);
            scan_query_code(&codes, &q, query_code);
            for (uint32_t block = 0; block < codes.n_blocks; block++) {
                sets[s]->upper(&codes, block, 1, &q, &hits);
                read += (uint32_t)__builtin_popcount(hits);
            }
            assert_in_range(read, K, 4 * K);
        }
    }
}

static void all_sets_score_to_the_bit_wherever_a_row_lies(void **state)
{
    const struct scan *sets[SETS_MAX];
    const int n_sets = scan_list(sets, SETS_MAX);
    (void)state;
    for (size_t D = 0; D <= D_MAX; D++) {
        f.drawn = D * 100;
        // From 1 on: no row is on a boundary of more than 4 bytes.
        rows_fill(RANDOM, SCAN_ROWS, D, f.items + 1);
        rows_fill(RANDOM, 3, D, f.queries + 1);
        struct scan_query q[3];
        for (size_t i = 0; i < 3; i++)
            q[i] = (struct scan_query){.vector = f.queries + 1 + i * D, .worst = 0.5f};
        for (int s = 0; s < n_sets; s++) {
            float scores[3 * SCAN_ROWS];
            uint32_t hits[3], any = 0;
            const uint32_t said = sets[s]->score(D, 3, q, f.items + 1, scores, hits);
            for (size_t i = 0; i < 3; i++)
                for (size_t r = 0; r < SCAN_ROWS; r++) {
                    const float *x = f.items + 1 + r * D;
                    const float expected = dot(q[i].vector, x, D);
                    assert_true(same(sets[s]->dot(D, q[i].vector, x), expected));
                    assert_true(same(scores[i * SCAN_ROWS + r], expected));
                    assert_int_equal(hits[i] >> r & 1, !(expected < 0.5f));
                    any |= hits[i];
                }
            assert_int_equal(said != 0, any != 0);
        }
    }
}

static void codes_are_the_same_at_every_set(void **state)
{
    enum { N = 300, D = 65 };
    const struct scan *sets[SETS_MAX];
    const int n_sets = scan_list(sets, SETS_MAX);
    (void)state;
    for (int family = 0; family < FAMILIES; family++) {
        struct tt_array array = {.dtype = "F32", .n_dims = 2, .shape = {N, D}, .data = f.items};
        static uint8_t expected[1 << 16], code[1 << 16];
        rows_fill(family, N, D, f.items);
        for (int s = 0; s < n_sets; s++) {
            static float scale[N + SCAN_ROWS], z[N + SCAN_ROWS];
            float row[D];
            struct scan_codes codes = {.D = D,
                                       .column = 3,
                                       .steps = 16,
                                       .n_blocks = N / SCAN_ROWS + 1,
                                       .code = code,
                                       .scale = scale,
                                       .z = z};
            scan_encode(sets[s], &codes, N, array.data, row);
            if (s == 0)
                memcpy(expected, code, sizeof code);
            assert_memory_equal(code, expected, sizeof code);
        }
    }
}

static void what_does_not_fit_together_is_refused(void **state)
{
    static float wide[SCAN_COLUMNS + 1];
    uint32_t rows[4], found[2];
    float scores[4];
    struct tt_codes *codes;
    const struct tt_array a = {.dtype = "F32", .n_dims = 2, .shape = {2, 3}, .data = f.items};
    const struct tt_array b = {.dtype = "F32", .n_dims = 2, .shape = {2, 3}, .data = f.queries};
    const struct tt_array half = {.dtype = "F16", .n_dims = 2, .shape = {2, 3}, .data = f.items};
    const struct tt_array broad = {
        .dtype = "F32", .n_dims = 2, .shape = {1, SCAN_COLUMNS + 1}, .data = wide};
    struct tt_query q[2] = {{.items = &a, .vector = f.queries, .k = 2},
                            {.items = &a, .vector = f.queries, .k = 2}};
    (void)state;
    assert_int_equal(tt_codes_make(&codes, &half), -EINVAL);
    assert_int_equal(tt_codes_make(&codes, NULL), -EINVAL);
    assert_int_equal(tt_codes_make(&codes, &broad), -EINVAL);
    assert_null(codes);
    tt_codes_free(codes);
    assert_int_equal(tt_codes_make(&codes, &b), 0);
    assert_int_equal(tt_topk_batch(q, 2, codes, rows, scores, found), -EINVAL);
    assert_int_equal(tt_topk_batch(q, 2, NULL, rows, scores, found), 0);
    assert_int_equal(tt_topk_batch(q, 0, NULL, rows, scores, found), 0);
    q[1].k = 1;
    assert_int_equal(tt_topk_batch(q, 2, NULL, rows, scores, found), -EINVAL);
    q[1] = (struct tt_query){.items = &b, .vector = f.queries, .k = 2};
    assert_int_equal(tt_topk_batch(q, 2, NULL, rows, scores, found), -EINVAL);
    tt_codes_free(codes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_sets_score_to_the_bit_wherever_a_row_lies),
        cmocka_unit_test(codes_are_the_same_at_every_set),
        cmocka_unit_test(no_code_promises_less_than_the_score),
        cmocka_unit_test(rounding_has_its_room),
        cmocka_unit_test(codes_refuse_most_rows),
        cmocka_unit_test(codes_and_batches_change_no_bit_of_the_answer),
        cmocka_unit_test(what_does_not_fit_together_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
