// SPDX-License-Identifier: Apache-2.0
#include "model/logistic.h"

#include <string.h>

#include "model/rng.h"
#include "tests/support/gradcheck.h"

enum { ROWS = 7, T = 3, N = ROWS * T };

static struct fixture {
    float z[N], dz[N], label[N], weight[N], positive_weight[T], row[N];
} f;

static int setup(void **state)
{
    struct rng rng = {13, 0};
    (void)state;
    f = (struct fixture){.positive_weight = {1, 3, 0.5f}};
    rng_fill_uniform(&rng, f.z, N, -4, 4);
    rng_fill_uniform(&rng, f.label, N, 0, 1); // soft labels too
    rng_fill_uniform(&rng, f.weight, N, 0.2f, 2);
    f.label[4] = NAN;
    f.label[5] = 0;
    f.label[6] = 1;
    return 0;
}

static double loss(void *arg)
{
    float dz[N];
    (void)arg;
    return logistic_loss(ROWS, T, f.z, f.label, f.weight, f.positive_weight, f.row, dz).loss;
}

static void probabilities_are_right_at_both_ends(void **state)
{
    const float z[] = {0, 1.0986123f, -1.0986123f, 200, -200, -80, NAN, INFINITY};
    float p[8];
    (void)state;
    logistic(8, z, p);
    assert_true(p[0] == 0.5f && fabsf(p[1] - 0.75f) < 1e-6f && fabsf(p[2] - 0.25f) < 1e-6f);
    assert_true(p[3] == 1 && p[4] >= 0 && p[4] < 1e-37f && p[7] == 1);
    assert_true(fabsf(p[5] * 5.5406224e34f - 1) < 1e-4f); // e^-80, not rounded to zero
    assert_true(isnan(p[6]));
}

// z = log 3: softplus(-z) = log 4/3, softplus(z) = log 4, p = 3/4.
static void loss_and_gradient_are_what_was_worked_by_hand(void **state)
{
    const float z[] = {1.0986123f, 1.0986123f, 1.0986123f, 50}, label[] = {1, 0, 0.5f, 1};
    const float weight[] = {1, 2, 4, 1}, positive = 2;
    float row[4], dz[4];
    (void)state;
    const struct logistic_sum sum = logistic_loss(4, 1, z, label, weight, &positive, row, dz);
    assert_true(sum.pairs == 4);
    assert_true(fabsf(row[0] - 2 * 0.2876821f) < 1e-5f && fabsf(dz[0] + 0.5f) < 1e-6f);
    assert_true(fabsf(row[1] - 2 * 1.3862944f) < 1e-5f && fabsf(dz[1] - 1.5f) < 1e-6f);
    assert_true(fabsf(row[2] - 4 * (0.2876821f + 0.6931472f)) < 1e-5f);
    assert_true(fabsf(dz[2] - 4 * (-0.25f + 0.375f)) < 1e-6f);
    assert_true(row[3] > 0 && dz[3] < 0); // a confident positive still pulls
}

static void backward_agrees_with_finite_differences(void **state)
{
    (void)state;
    logistic_loss(ROWS, T, f.z, f.label, f.weight, f.positive_weight, NULL, f.dz);
    assert_gradient("z", loss, NULL, f.z, f.dz, N);
    assert_true(f.dz[4] == 0);
}

static void a_masked_pair_does_not_count(void **state)
{
    (void)state;
    assert_int_equal(
        logistic_loss(ROWS, T, f.z, f.label, f.weight, f.positive_weight, f.row, f.dz).pairs,
        N - 1);
    assert_true(f.row[4] == 0);
}

static void a_logit_that_is_not_a_number_shows(void **state)
{
    (void)state;
    for (int i = 5; i < 8; i++) { // labels 0, 1 and between
        float z[N], dz[N];
        memcpy(z, f.z, sizeof z);
        z[i] = NAN;
        assert_true(isnan(logistic_loss(ROWS, T, z, f.label, f.weight, NULL, NULL, dz).loss));
        assert_true(isnan(dz[i]));
    }
}

static void large_logits_neither_overflow_nor_vanish(void **state)
{
    (void)state;
    assert_true(logistic_softplus(1000) == 1000 && logistic_softplus(-1000) == 0);
    assert_true(logistic_sigmoid(1000) == 1 && logistic_sigmoid(-1000) == 0);
    assert_true(fabs(logistic_softplus(0) - log(2)) < 1e-15 && logistic_sigmoid(0) == 0.5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(probabilities_are_right_at_both_ends),
        cmocka_unit_test(large_logits_neither_overflow_nor_vanish),
        cmocka_unit_test(loss_and_gradient_are_what_was_worked_by_hand),
        cmocka_unit_test_setup(backward_agrees_with_finite_differences, setup),
        cmocka_unit_test_setup(a_masked_pair_does_not_count, setup),
        cmocka_unit_test_setup(a_logit_that_is_not_a_number_shows, setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
