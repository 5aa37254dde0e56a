// SPDX-License-Identifier: Apache-2.0
#include "model/batch_metrics.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "model/rng.h"

static bool near(double x, double expected)
{
    return fabs(x - expected) < 1e-12;
}

static void rows_count_by_their_weight(void **state)
{
    // The first is a hit, the second is last of three.
    struct batch_metrics m = {0};
    (void)state;
    batch_metrics_row(&m, 3, (const float[]){2, 1, 0}, 0, 0.7);
    batch_metrics_row(&m, 3, (const float[]){2, 1, 0}, 2, 0.3);
    assert_true(near(batch_metrics_mean(&m, BATCH_ACCURACY_1), 0.7));
    assert_true(near(batch_metrics_mean(&m, BATCH_ACCURACY_5), 1));
    assert_true(near(batch_metrics_mean(&m, BATCH_AUC), 0.7));
}

static void nothing_that_weighs_is_nothing_found(void **state)
{
    struct batch_metrics m = {0};
    (void)state;
    for (int k = 0; k < BATCH_METRICS; k++)
        assert_true(batch_metrics_mean(&m, (enum batch_metric)k) == 0);
    batch_metrics_row(&m, 2, (const float[]){2, 1}, 0, 0);
    batch_metrics_row(&m, 2, (const float[]){2, 1}, 0, -3); // to be unlearned
    batch_metrics_row(&m, 1, (const float[]){2}, 0, 1);     // has no rivals
    assert_true(m.weight == 0);
    for (int k = 0; k < BATCH_METRICS; k++)
        assert_true(batch_metrics_mean(&m, (enum batch_metric)k) == 0);
}

static void a_tie_counts_for_the_item_and_half_in_the_auc(void **state)
{
    struct batch_metrics m = {0};
    (void)state;
    batch_metrics_row(&m, 5, (const float[]){1, 1, 1, 0, 0}, 2, 1);
    assert_true(batch_metrics_mean(&m, BATCH_ACCURACY_1) == 1);
    assert_true(near(batch_metrics_mean(&m, BATCH_AUC), 0.75)); // 2 lower, 2 equal, of 4
}

static void a_row_with_a_number_that_is_none_is_a_miss(void **state)
{
    static const float odd[] = {NAN, INFINITY, -INFINITY};
    (void)state;
    for (int i = 0; i < 3; i++)
        for (int target = 0; target < 2; target++) {
            struct batch_metrics m = {0};
            batch_metrics_row(&m, 2, (const float[]){odd[i], 1}, target, 2);
            assert_true(m.weight == 2);
            for (int k = 0; k < BATCH_METRICS; k++)
                assert_true(m.sum[k] == 0);
        }
}

static void figures_are_those_of_brute_force(void **state)
{
    static const int cutoffs[] = {1, 5, 10};
    struct rng rng = {5, 0};
    struct batch_metrics m = {0};
    double sums[BATCH_METRICS] = {0}, weights = 0;
    (void)state;
    for (int row = 0; row < 500; row++) {
        float scores[40];
        const int n = 2 + (int)rng_below(&rng, 39), target = (int)rng_below(&rng, (uint64_t)n);
        const double weight = (double)rng_float(&rng);
        double places = 0; // below it, pair by pair
        int above = 0;
        for (int j = 0; j < n; j++)
            scores[j] = (float)rng_below(&rng, 20); // with ties
        for (int j = 0; j < n; j++) {
            above += scores[j] > scores[target];
            places += j == target                   ? 0
                      : scores[j] < scores[target]  ? 1
                      : scores[j] == scores[target] ? 0.5
                                                    : 0;
        }
        for (int k = 0; k < 3; k++)
            sums[k] += above < cutoffs[k] ? weight : 0;
        sums[BATCH_AUC] += weight * places / (n - 1);
        weights += weight;
        batch_metrics_row(&m, n, scores, target, weight);
    }
    for (int k = 0; k < BATCH_METRICS; k++) {
        assert_true(near(batch_metrics_mean(&m, (enum batch_metric)k), sums[k] / weights));
        assert_true(sums[k] > 0 && sums[k] < weights);
    }
}

static void sums_add_up_and_start_anew_from_zeros(void **state)
{
    struct batch_metrics a = {0}, b = {0};
    (void)state;
    batch_metrics_row(&a, 2, (const float[]){2, 1}, 0, 1);
    batch_metrics_row(&b, 2, (const float[]){2, 1}, 1, 3);
    batch_metrics_add(&a, &b);
    assert_true(near(batch_metrics_mean(&a, BATCH_ACCURACY_1), 0.25));
    assert_true(near(batch_metrics_mean(&a, BATCH_AUC), 0.25));
    a = (struct batch_metrics){0};
    batch_metrics_row(&a, 2, (const float[]){2, 1}, 0, 1);
    assert_true(batch_metrics_mean(&a, BATCH_ACCURACY_1) == 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_count_by_their_weight),
        cmocka_unit_test(nothing_that_weighs_is_nothing_found),
        cmocka_unit_test(a_tie_counts_for_the_item_and_half_in_the_auc),
        cmocka_unit_test(a_row_with_a_number_that_is_none_is_a_miss),
        cmocka_unit_test(figures_are_those_of_brute_force),
        cmocka_unit_test(sums_add_up_and_start_anew_from_zeros),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
