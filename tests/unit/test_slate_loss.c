// SPDX-License-Identifier: Apache-2.0
#include "model/slate_loss.h"

#include <string.h>

#include "tests/unit/slate_fixture.h"

static bool align(const struct slate_case *c, float weight, double *loss, float *ds)
{
    return slate_align(c->n, c->s, 0.5f, c->g, 2, weight, loss, ds);
}

static bool trust(const struct slate_case *c, float weight, double *loss, float *ds)
{
    return slate_trust(c->n, c->s, c->s_ref, weight, loss, ds);
}

static void alignment_has_the_gradient_of_its_loss_and_none_where_masked(void **state)
{
    (void)state;
    assert_term(align, 2);
}

static void the_trust_region_has_the_gradient_of_its_loss_and_none_where_masked(void **state)
{
    (void)state;
    assert_term(trust, 2);
}

static void losses_are_the_numbers_worked_by_hand(void **state)
{
    // Probabilities 3/4 and 1/4 of the teacher, 1/2 and 1/2 of the model; the third is masked.
    const float s[] = {1, 1, 9}, g[] = {logf(3), 0, NAN};
    float ds[3] = {0};
    double loss;
    (void)state;
    assert_true(slate_align(3, s, 1, g, 1, 2, &loss, ds));
    assert_true(near(loss, 0.75 * log(1.5) + 0.25 * log(0.5)));
    assert_true(near((double)ds[0], -0.5) && near((double)ds[1], 0.5) && ds[2] == 0);
    // The other way round it is KL((1/2, 1/2) || (3/4, 1/4)): the direction matters.
    memset(ds, 0, sizeof ds);
    assert_true(slate_trust(3, s, g, 1, &loss, ds));
    assert_true(near(loss, -0.5 * log(0.75)));
    const double first = 0.5 * (log(0.5 / 0.75) - loss);
    assert_true(near((double)ds[0], first) && near((double)ds[1], -first) && ds[2] == 0);
}

static void a_batch_is_averaged_over_its_rows_and_not_over_its_pairs(void **state)
{
    const float s[] = {0, 0, 0, 0}, g[] = {logf(3), 0, 0, 0};
    double loss, sum = 0;
    float ds[4] = {0};
    (void)state;
    for (int row = 0; row < 2; row++) {
        slate_align(2, s + 2 * row, 1, g + 2 * row, 1, 0.5f, &loss, ds + 2 * row);
        sum += loss / 2;
    }
    assert_true(near(sum, (0.75 * log(1.5) + 0.25 * log(0.5)) / 2));
    assert_true(near((double)ds[0], -0.125)); // a mean over the four pairs would give half
}

static void alignment_moves_the_scores_to_the_teacher(void **state)
{
    const float g[] = {1, -1, 0.5f, NAN, 2};
    float s[] = {0, 0.5f, 1, 3, -1}, ds[5];
    double loss = 1, before;
    (void)state;
    slate_align(5, s, 1, g, 1, 1, &before, NULL);
    for (int step = 0; step < 2000; step++) {
        memset(ds, 0, sizeof ds);
        slate_align(5, s, 1, g, 1, 1, &loss, ds);
        for (int k = 0; k < 5; k++)
            s[k] -= ds[k];
    }
    assert_true(before > 0.1 && loss < 1e-6 && s[3] == 3);
    assert_true(fabs((double)(s[4] - s[1]) - 3) < 1e-2);
}

static void large_scores_neither_overflow_nor_vanish(void **state)
{
    const float s[] = {1e4f, 1e4f - 1, -3e38f}, g[] = {-1e4f, -1e4f + 2, -1e4f};
    float ds[3] = {0};
    double loss;
    (void)state;
    assert_true(slate_align(2, s, 1, g, 1, 1, &loss, ds));
    assert_true(near((double)ds[0], 1 / (1 + exp(-1)) - 1 / (1 + exp(2))));
    assert_true(slate_align(3, s, 0.01f, g, 1, 1, &loss, ds));
    assert_true(isfinite(loss) && loss > 1e38 && isfinite(ds[0]) && isfinite(ds[2]));
}

static void a_score_of_the_model_that_is_no_number_makes_the_loss_none(void **state)
{
    const float s[] = {1, NAN, 2}, g[] = {1, 2, 3};
    double loss;
    (void)state;
    assert_true(slate_align(3, s, 1, g, 1, 1, &loss, NULL) && isnan(loss));
    assert_true(slate_trust(3, s, g, 1, &loss, NULL) && isnan(loss));
}

static void the_order_is_by_score_then_by_index_without_the_masked(void **state)
{
    const float g[] = {1, NAN, 3, 1, -INFINITY, 3, 1};
    const int expected[] = {2, 5, 0, 3, 6, 4};
    int order[7];
    (void)state;
    assert_int_equal(slate_order(7, g, order), 6);
    assert_memory_equal(order, expected, sizeof expected);
    assert_int_equal(slate_order(0, g, order), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(alignment_has_the_gradient_of_its_loss_and_none_where_masked),
        cmocka_unit_test(the_trust_region_has_the_gradient_of_its_loss_and_none_where_masked),
        cmocka_unit_test(losses_are_the_numbers_worked_by_hand),
        cmocka_unit_test(a_batch_is_averaged_over_its_rows_and_not_over_its_pairs),
        cmocka_unit_test(alignment_moves_the_scores_to_the_teacher),
        cmocka_unit_test(large_scores_neither_overflow_nor_vanish),
        cmocka_unit_test(a_score_of_the_model_that_is_no_number_makes_the_loss_none),
        cmocka_unit_test(the_order_is_by_score_then_by_index_without_the_masked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
