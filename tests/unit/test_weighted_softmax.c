// SPDX-License-Identifier: Apache-2.0
#include "model/weighted_softmax.h"

#include <string.h>

#include "model/arena.h"
#include "model/rng.h"
#include "tests/support/gradcheck.h"

enum { B = 4, D = 3, T = 2 };

struct fixture {
    struct weighted_softmax softmax;
    float U[B * D], dU[B * D], V[B * D], dV[B * D], row_loss[B];
    float labels[B * T], value_weight[T], scale;
    _Alignas(64) char scratch[4096];
};

static struct fixture f;

static void start(enum value_form form)
{
    struct rng rng = {3, 0};
    struct arena scratch = {f.scratch, sizeof f.scratch, 0};
    memset(&f, 0, sizeof f);
    weighted_softmax_init(&f.softmax, form, B, &scratch);
    rng_fill_uniform(&rng, f.U, B * D, -2, 2);
    rng_fill_uniform(&rng, f.V, B * D, -2, 2);
    // Net values 0.5, 0, 2 and -1.
    memcpy(f.labels, (float[]){1, 0, 0, 0, 0, 1, 2, -1}, sizeof f.labels);
    memcpy(f.value_weight, (float[]){0.5f, 2}, sizeof f.value_weight);
}

static double loss(void *arg)
{
    (void)arg;
    weighted_softmax_forward(&f.softmax, B, D, f.U, f.V, T, f.labels, f.value_weight, f.scale,
                             f.row_loss);
    return f.softmax.loss;
}

static void weights_are_what_was_worked_by_hand(void **state)
{
    const float net[] = {0.4f, 0, 0.6f, -0.3f}, none[] = {0, -1};
    float a[4];
    (void)state;
    value_weights(VALUE_FIXED, 4, net, 0.8f, a);
    assert_true(a[0] == 0.5f && a[1] == 0 && a[2] == 0.6f / 0.8f && a[3] == 0);
    value_weights(VALUE_FIXED, 4, net, 0.5f, a);
    assert_true(a[2] == 1); // an outlier counts as one row
    value_weights(VALUE_SEED, 4, net, 0, a);
    assert_true(fabsf(a[0] - 2.0f / 3) < 1e-6f && a[2] == 1);
    assert_true(fabsf(a[1] - 1e-6f / 0.6f) < 1e-9f && a[3] == a[1]);
    value_weights(VALUE_SEED, 2, none, 0, a);
    assert_true(a[0] == 1 && a[1] == 1);
}

static void forward_gives_the_numbers_worked_by_hand(void **state)
{
    (void)state;
    start(VALUE_FIXED);
    loss(NULL);
    assert_true(f.softmax.net[0] == 0.5f && f.softmax.net[1] == 0);
    assert_true(f.softmax.net[2] == 2 && f.softmax.net[3] == -1);
    double expected = 0;
    for (int i = 0; i < B; i++) {
        double sum = 0, own = 0;
        for (int j = 0; j < B; j++) {
            double s = 0;
            for (int d = 0; d < D; d++)
                s += (double)f.U[i * D + d] * f.V[j * D + d];
            sum += exp(s);
            own = i == j ? s : own;
        }
        assert_true(fabs(f.row_loss[i] - (log(sum) - own)) < 1e-5);
        expected += (i == 0 ? 0.25 : i == 2) * (log(sum) - own) / B;
    }
    assert_true(fabs(f.softmax.loss - expected) < 1e-5);
}

static void backward_agrees_with_finite_differences(void **state)
{
    (void)state;
    for (int form = VALUE_FIXED; form <= VALUE_SEED; form++) {
        start((enum value_form)form);
        f.scale = 3;
        loss(NULL);
        weighted_softmax_backward(&f.softmax, B, D, f.U, f.V, f.dU, f.dV);
        assert_gradient("U", loss, NULL, f.U, f.dU, B * D);
        assert_gradient("V", loss, NULL, f.V, f.dV, B * D);
    }
}

static void rows_without_value_are_columns_and_no_more(void **state)
{
    (void)state;
    start(VALUE_FIXED);
    loss(NULL);
    weighted_softmax_backward(&f.softmax, B, D, f.U, f.V, f.dU, f.dV);
    for (int d = 0; d < D; d++) {
        assert_true(f.dU[1 * D + d] == 0 && f.dU[3 * D + d] == 0);
        assert_true(f.dV[1 * D + d] != 0 && f.dV[3 * D + d] != 0);
    }
}

static void a_batch_without_a_positive_changes_nothing(void **state)
{
    (void)state;
    start(VALUE_FIXED);
    memset(f.labels, 0, sizeof f.labels);
    loss(NULL);
    weighted_softmax_backward(&f.softmax, B, D, f.U, f.V, f.dU, f.dV);
    assert_true(f.softmax.loss == 0);
    for (int i = 0; i < B * D; i++)
        assert_true(f.dU[i] == 0 && f.dV[i] == 0);
}

static void the_scale_follows_the_99th_percentile_of_the_positive_values(void **state)
{
    struct value_scale s = {.rate = 0.25f};
    float net[300], sorted[300];
    (void)state;
    memset(net, 0, sizeof net);
    value_scale_update(&s, 300, net, sorted);
    assert_true(s.scale == 0); // nothing positive yet
    for (int i = 0; i < 200; i++)
        net[i] = (float)(200 - i); // 1 .. 200: 198 of 200 do not exceed 198
    value_scale_update(&s, 300, net, sorted);
    assert_true(s.scale == 198);
    net[0] = 1e9f; // an outlier
    value_scale_update(&s, 300, net, sorted);
    assert_true(s.scale == 198);
    value_scale_update(&s, 1, (float[]){98}, sorted);
    assert_true(s.scale == 173);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weights_are_what_was_worked_by_hand),
        cmocka_unit_test(forward_gives_the_numbers_worked_by_hand),
        cmocka_unit_test(backward_agrees_with_finite_differences),
        cmocka_unit_test(rows_without_value_are_columns_and_no_more),
        cmocka_unit_test(a_batch_without_a_positive_changes_nothing),
        cmocka_unit_test(the_scale_follows_the_99th_percentile_of_the_positive_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
