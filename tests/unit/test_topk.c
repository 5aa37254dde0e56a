// SPDX-License-Identifier: Apache-2.0
#include "model/topk.h"

// clang-format off
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/arena.h"
#include "model/gemm.h"
#include "model/rng.h"

enum { D = 7, N = 777, B = 5, K_MAX = 800 };

struct fixture {
    struct topk search;
    float Q[B * D], C[N * D];
    _Alignas(64) char scratch[1 << 17];
};

static struct fixture f;

static int setup(void **state)
{
    struct rng rng = {5, 0};
    struct arena scratch = {f.scratch, sizeof f.scratch, 0};
    (void)state;
    topk_init(&f.search, B, K_MAX, D, &scratch);
    rng_fill_uniform(&rng, f.Q, B * D, -1, 1);
    rng_fill_uniform(&rng, f.C, N * D, -1, 1);
    return 0;
}

static int in_order(const void *a, const void *b)
{
    const struct topk_entry x = *(const struct topk_entry *)a, y = *(const struct topk_entry *)b;
    return topk_before(y, x) - topk_before(x, y);
}

// Every score of query b, sorted by the library's own order.
static void brute_force(int b, struct topk_entry all[N])
{
    for (int r = 0; r < N; r++) {
        float score = 0;
        gemm_nt(1, 1, D, f.Q + b * D, f.C + r * D, &score);
        all[r] = (struct topk_entry){score, (uint32_t)r};
    }
    qsort(all, N, sizeof *all, in_order);
}

static void run(int k, const uint32_t *chunks)
{
    topk_begin(&f.search, B, k);
    for (uint32_t row = 0, i = 0; row < N; row += chunks[i++])
        topk_scan(&f.search, f.Q, row, chunks[i], f.C + row * D, NULL, NULL);
    topk_finish(&f.search);
}

static void the_order_is_score_then_row_and_nan_last(void **state)
{
    const struct topk_entry in_this_order[] = {{INFINITY, 9},  {2, 1},   {1, 0},  {1, 5},
                                               {-INFINITY, 0}, {NAN, 2}, {NAN, 3}};
    (void)state;
    for (int i = 0; i < 7; i++)
        for (int j = 0; j < 7; j++)
            assert_int_equal(topk_before(in_this_order[i], in_this_order[j]), i < j);
}

static void a_search_finds_what_sorting_everything_finds(void **state)
{
    static const int ks[] = {1, 2, 10, 256, 776, 777};
    const uint32_t whole[] = {N};
    static struct topk_entry all[N];
    (void)state;
    for (size_t i = 0; i < sizeof ks / sizeof *ks; i++) {
        run(ks[i], whole);
        for (int b = 0; b < B; b++) {
            brute_force(b, all);
            assert_int_equal(f.search.counts[b], ks[i]);
            for (int p = 0; p < ks[i]; p++) {
                const struct topk_entry e = f.search.entries[b * K_MAX + p];
                assert_int_equal(e.row, all[p].row);
                assert_true(fabsf(e.score - all[p].score) < 1e-6f);
            }
        }
    }
}

static void more_than_there_is_gives_what_there_is(void **state)
{
    const uint32_t whole[] = {N};
    (void)state;
    run(N + 1, whole);
    for (int b = 0; b < B; b++)
        assert_int_equal(f.search.counts[b], N);
}

static void the_cut_into_chunks_changes_no_bit(void **state)
{
    const uint32_t whole[] = {N}, cut[] = {1, 255, 256, 3, 200, 62};
    static struct topk_entry expected[B * K_MAX];
    (void)state;
    // Equal vectors everywhere, so that ties across chunks and block ends are met.
    for (int r = 7; r < N; r += 7)
        memcpy(f.C + r * D, f.C, sizeof(float) * D);
    run(100, whole);
    memcpy(expected, f.search.entries, sizeof expected);
    run(100, cut);
    for (int b = 0; b < B; b++)
        assert_memory_equal(expected + b * K_MAX, f.search.entries + b * K_MAX,
                            100 * sizeof *expected);
}

static void equal_vectors_tie_wherever_they_lie(void **state)
{
    const uint32_t whole[] = {N};
    (void)state;
    for (int r = 0; r < N; r++)
        memcpy(f.C + r * D, f.Q, sizeof(float) * D);
    run(N, whole);
    for (int b = 0; b < B; b++)
        for (int p = 0; p < N; p++)
            assert_int_equal(f.search.entries[b * K_MAX + p].row, p);
}

static void a_nan_comes_last_and_is_counted(void **state)
{
    const uint32_t whole[] = {N};
    (void)state;
    f.C[3 * D] = NAN;
    run(N, whole);
    assert_int_equal(f.search.nan_scores, B);
    for (int b = 0; b < B; b++)
        assert_int_equal(f.search.entries[b * K_MAX + N - 1].row, 3);
}

static void excluded_ids_are_dropped_and_others_move_up(void **state)
{
    static uint64_t ids[N];
    static struct topk_entry all[N];
    uint64_t exclude[3];
    const uint32_t offsets[B + 1] = {0, 2, 2, 3, 3, 3};
    (void)state;
    for (int r = 0; r < N; r++)
        ids[r] = 1000 + (uint64_t)r;
    brute_force(0, all);
    exclude[0] = ids[all[0].row];
    exclude[1] = ids[all[2].row];
    const uint32_t kept[] = {all[1].row, all[3].row, all[4].row};
    brute_force(2, all);
    exclude[2] = ids[all[0].row];
    const struct topk_exclusions exclusions = {exclude, offsets};

    topk_begin(&f.search, B, 3);
    topk_scan(&f.search, f.Q, 0, N, f.C, ids, &exclusions);
    topk_finish(&f.search);
    for (int p = 0; p < 3; p++) {
        assert_int_equal(f.search.entries[p].row, kept[p]);
        assert_int_equal(f.search.entries[2 * K_MAX + p].row, all[p + 1].row);
    }
    brute_force(1, all);
    assert_int_equal(f.search.entries[K_MAX].row, all[0].row);
}

static void fewer_come_back_when_exclusions_leave_fewer(void **state)
{
    const uint64_t exclude[] = {0, 2};
    const uint32_t offsets[] = {0, 2};
    const struct topk_exclusions exclusions = {exclude, offsets};
    (void)state;
    topk_begin(&f.search, 1, 3);
    topk_scan(&f.search, f.Q, 0, 3, f.C, NULL, &exclusions);
    topk_finish(&f.search);
    assert_int_equal(f.search.counts[0], 1);
    assert_int_equal(f.search.entries[0].row, 1);
}

static void a_pair_scores_to_the_bit_as_in_a_search(void **state)
{
    const uint32_t whole[] = {N};
    float V[B * D], a[B];
    (void)state;
    run(N, whole);
    for (int b = 0; b < B; b++)
        memcpy(V + b * D, f.C + (100 * b + 13) * D, sizeof(float) * D);
    topk_score_pairs(&f.search, B, f.Q, V, a);
    for (int b = 0; b < B; b++)
        for (int p = 0; p < N; p++)
            if (f.search.entries[b * K_MAX + p].row == (uint32_t)(100 * b + 13))
                assert_true(f.search.entries[b * K_MAX + p].score == a[b]);
}

static void places_and_hits_follow_their_rules(void **state)
{
    const uint64_t ids[] = {4, 4, 7, 8};
    const float scores[] = {3, 2, NAN, 1}, tied[] = {2, 1, 1, 1};
    const uint32_t place[] = {0, 5, TOPK_MISS, 2};
    const float weight[] = {1, 2, 4, 1};
    (void)state;
    assert_int_equal(topk_place_of_id(4, ids, scores, 4), 0);
    assert_int_equal(topk_place_of_id(4, ids, scores, 7), TOPK_MISS); // padding
    assert_int_equal(topk_place_of_id(4, ids, scores, 8), 3);
    assert_int_equal(topk_place_of_id(4, ids, scores, 9), TOPK_MISS);
    assert_int_equal(topk_place_of_score(4, tied, 1), 1); // ties count for the model
    assert_int_equal(topk_place_of_score(4, tied, 3), 0);
    assert_int_equal(topk_place_of_score(4, scores, 3), TOPK_MISS); // a NaN in the row
    assert_int_equal(topk_place_of_score(4, tied, INFINITY), TOPK_MISS);
    assert_true(topk_hit_mean(4, place, NULL, 1) == 0.25);
    assert_true(topk_hit_mean(4, place, NULL, 5) == 0.5);
    assert_true(topk_hit_mean(4, place, weight, 6) == 0.5);
    assert_true(topk_hit_mean(0, place, NULL, 1) == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_order_is_score_then_row_and_nan_last),
        cmocka_unit_test_setup(a_search_finds_what_sorting_everything_finds, setup),
        cmocka_unit_test_setup(more_than_there_is_gives_what_there_is, setup),
        cmocka_unit_test_setup(the_cut_into_chunks_changes_no_bit, setup),
        cmocka_unit_test_setup(equal_vectors_tie_wherever_they_lie, setup),
        cmocka_unit_test_setup(a_nan_comes_last_and_is_counted, setup),
        cmocka_unit_test_setup(excluded_ids_are_dropped_and_others_move_up, setup),
        cmocka_unit_test_setup(fewer_come_back_when_exclusions_leave_fewer, setup),
        cmocka_unit_test_setup(a_pair_scores_to_the_bit_as_in_a_search, setup),
        cmocka_unit_test(places_and_hits_follow_their_rules),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
