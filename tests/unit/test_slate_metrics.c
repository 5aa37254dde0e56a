// SPDX-License-Identifier: Apache-2.0
#include "model/slate_metrics.h"

#include "model/rng.h"
#include "tests/support/gradcheck.h"

static void overlap_counts_what_both_orders_put_first(void **state)
{
    const float a[] = {5, 4, 3, 2, 1}, b[] = {1, 5, 2, 4, 3};
    (void)state;
    assert_true(slate_overlap(5, a, a, 3) == 1);
    assert_true(slate_overlap(5, a, b, 1) == 0);       // 0 against 1
    assert_true(slate_overlap(5, a, b, 2) == 0.5);     // 0 1 against 1 3
    assert_true(slate_overlap(5, a, b, 3) == 1.0 / 3); // 0 1 2 against 1 3 4
}

static void overlap_breaks_ties_by_index_and_leaves_out_what_has_no_score(void **state)
{
    const float equal[] = {1, 1, 1, 1}, a[] = {4, 3, 2, 1}, b[] = {NAN, 1, 3, 2};
    (void)state;
    assert_true(slate_overlap(4, equal, a, 2) == 1);
    assert_true(slate_overlap(4, a, b, 1) == 0); // 1 against 2
    assert_true(slate_overlap(4, a, b, 2) == 0.5);
    assert_true(slate_overlap(4, b, a, 2) == 0.5);
}

static void overlap_of_a_slate_no_longer_than_k_is_not_measured(void **state)
{
    const float a[] = {1, 2, 3}, b[] = {3, NAN, 1};
    (void)state;
    assert_true(isnan(slate_overlap(3, a, a, 3)) && isnan(slate_overlap(3, a, a, 10)));
    assert_true(isnan(slate_overlap(3, a, b, 2)) && isnan(slate_overlap(0, a, b, 1)));
}

static void spearman_is_the_numbers_worked_by_hand(void **state)
{
    const float a[] = {1, 2, 3, 4, 5}, reverse[] = {50, 40, 3, 2, -1}, b[] = {2, 1, 4, 3, 5};
    const float tied[] = {1, 2, 2, 3, 3}, equal[] = {1, 1, 1, 1, 1};
    (void)state;
    assert_true(slate_spearman(5, a, a) == 1 && slate_spearman(5, a, reverse) == -1);
    // 1 - 6 sum d^2 / (n (n^2 - 1)), sum d^2 = 4
    assert_true(fabs(slate_spearman(5, a, b) - 0.8) < 1e-12);
    // Ranks 1 2.5 2.5 4.5 4.5: sum of products 9.5 - .5, squares 10 and 9.
    assert_true(fabs(slate_spearman(5, a, tied) - 9 / sqrt(90)) < 1e-12);
    assert_true(isnan(slate_spearman(5, a, equal)));
    assert_true(isnan(slate_spearman(1, a, b)));
}

static void spearman_leaves_out_what_has_no_score(void **state)
{
    const float a[] = {1, NAN, 2, 3, 9}, b[] = {1, 7, 2, 3, NAN};
    (void)state;
    assert_true(slate_spearman(5, a, b) == 1);
}

static void spearman_of_random_orders_is_near_zero_on_average(void **state)
{
    struct rng rng = {5, 0};
    double sum = 0;
    (void)state;
    for (int i = 0; i < 2000; i++) {
        float a[20], b[20];
        rng_fill_uniform(&rng, a, 20, 0, 1);
        rng_fill_uniform(&rng, b, 20, 0, 1);
        sum += slate_spearman(20, a, b);
    }
    assert_true(fabs(sum / 2000) < 4 / sqrt(19.0 * 2000));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(overlap_counts_what_both_orders_put_first),
        cmocka_unit_test(overlap_breaks_ties_by_index_and_leaves_out_what_has_no_score),
        cmocka_unit_test(overlap_of_a_slate_no_longer_than_k_is_not_measured),
        cmocka_unit_test(spearman_is_the_numbers_worked_by_hand),
        cmocka_unit_test(spearman_leaves_out_what_has_no_score),
        cmocka_unit_test(spearman_of_random_orders_is_near_zero_on_average),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
