// SPDX-License-Identifier: Apache-2.0
#include "model/multi_interest.h"

#include <string.h>

#include "model/arena.h"
#include "model/gemm.h"
#include "model/kernels.h"
#include "model/rng.h"
#include "tests/support/gradcheck.h"

// All different: a swapped dimension cannot pass.
enum { S = 3, D = 5, H = 4, K = 2, ROWS = 7 };

static const int start[S + 1] = {0, 4, 4, ROWS}; // the second history is empty

static struct fixture {
    struct multi_interest m;
    float X[ROWS * D], dX[ROWS * D], Y[S * K * D], R[S * K * D];
    float V[K * D], dV[K * D], e[D], de[D], mix[2 * K], v[D], p;
    _Alignas(64) char params[4096], grads[4096], scratch[4096];
} f;

static int setup(void **state)
{
    struct rng rng = {42, 0};
    (void)state;
    gemm_init();
    kernels_init(NULL);
    memset(&f, 0, sizeof f);
    multi_interest_init(&f.m, D, H, K, ROWS, &(struct arena){f.params, sizeof f.params, 0},
                        &(struct arena){f.grads, sizeof f.grads, 0},
                        &(struct arena){f.scratch, sizeof f.scratch, 0}, &rng);
    rng_fill_uniform(&rng, f.X, ROWS * D, -1, 1);
    rng_fill_uniform(&rng, f.R, S * K * D, -1, 1);
    rng_fill_uniform(&rng, f.V, K * D, -1, 1);
    rng_fill_uniform(&rng, f.e, D, -1, 1);
    return 0;
}

static double attention_loss(void *arg)
{
    double sum = 0;
    (void)arg;
    multi_interest_forward(&f.m, S, start, f.X, f.Y);
    for (int i = 0; i < S * K * D; i++)
        sum += (double)f.R[i] * (double)f.Y[i];
    return sum;
}

static double mix_loss(void *arg)
{
    double sum = 0;
    (void)arg;
    multi_interest_label_aware(K, D, f.p, f.V, f.e, f.mix, f.v);
    for (int i = 0; i < D; i++)
        sum += (double)f.R[i] * (double)f.v[i];
    return sum;
}

static void interests_are_what_was_worked_by_hand(void **state)
{
    // Two events of width 1, 1 hidden unit. tanh(log 3 / 2) is 1/2, so the first interest weighs
    // exp(2 log 3 / 2) = 3 to exp(0) = 1 and the second, with W2 = 0, equally.
    const float X[] = {0.5493061443f, 0};
    const int both[] = {0, 2};
    float W1[] = {1}, W2[] = {2 * 1.0986122887f, 0}, T[2], A[4], Y[2];
    struct multi_interest m = {
        .width = 1, .hidden = 1, .interests = 2, .W1 = W1, .W2 = W2, .rows_max = 2, .T = T, .A = A};
    (void)state;
    multi_interest_forward(&m, 1, both, X, Y);
    assert_true(fabsf(A[0] - 0.75f) < 1e-6f && fabsf(A[2] - 0.25f) < 1e-6f);
    assert_true(fabsf(A[1] - 0.5f) < 1e-6f && fabsf(A[3] - 0.5f) < 1e-6f);
    assert_true(fabsf(Y[0] - 0.75f * X[0]) < 1e-6f && fabsf(Y[1] - 0.5f * X[0]) < 1e-6f);
}

static void backward_agrees_with_finite_differences(void **state)
{
    (void)state;
    attention_loss(NULL);
    multi_interest_backward(&f.m, S, start, f.X, f.R, f.dX);
    assert_gradient("W1", attention_loss, NULL, f.m.W1, f.m.dW1, H * D);
    assert_gradient("W2", attention_loss, NULL, f.m.W2, f.m.dW2, H * K);
    assert_gradient("X", attention_loss, NULL, f.X, f.dX, ROWS * D);
}

static void backward_adds_to_what_is_there(void **state)
{
    (void)state;
    attention_loss(NULL);
    multi_interest_backward(&f.m, S, start, f.X, f.R, f.dX);
    multi_interest_backward(&f.m, S, start, f.X, f.R, f.dX);
    multi_interest_backward(&f.m, S, start, f.X, f.R, NULL); // nothing below learns
    for (int i = 0; i < H * D; i++)
        f.m.dW1[i] /= 3;
    for (int i = 0; i < H * K; i++)
        f.m.dW2[i] /= 3;
    for (int i = 0; i < ROWS * D; i++)
        f.dX[i] /= 2;
    assert_gradient("W1", attention_loss, NULL, f.m.W1, f.m.dW1, H * D);
    assert_gradient("W2", attention_loss, NULL, f.m.W2, f.m.dW2, H * K);
    assert_gradient("X", attention_loss, NULL, f.X, f.dX, ROWS * D);
}

static void an_empty_history_gives_zeros_and_one_event_itself(void **state)
{
    const float zero[K * D] = {0};
    const int one[] = {0, 1};
    (void)state;
    memset(f.Y, 0xff, sizeof f.Y);
    multi_interest_forward(&f.m, S, start, f.X, f.Y);
    assert_memory_equal(f.Y + K * D, zero, sizeof zero);
    multi_interest_forward(&f.m, 1, one, f.X, f.Y);
    for (int i = 0; i < K * D; i++)
        assert_true(f.Y[i] == f.X[i % D]);
    multi_interest_forward(&f.m, 0, one, f.X, f.Y); // no history at all
}

static void histories_do_not_depend_on_one_another(void **state)
{
    float together[S * K * D];
    const int alone[] = {0, 3};
    (void)state;
    multi_interest_forward(&f.m, S, start, f.X, together);
    multi_interest_forward(&f.m, 1, alone, f.X + 4 * D, f.Y);
    for (int i = 0; i < K * D; i++)
        assert_true(fabsf(f.Y[i] - together[2 * K * D + i]) < 1e-6f);
}

static void large_scores_stay_finite(void **state)
{
    (void)state;
    for (int i = 0; i < H * K; i++)
        f.m.W2[i] *= 1e4f;
    assert_true(isfinite(attention_loss(NULL)));
    multi_interest_backward(&f.m, S, start, f.X, f.R, f.dX);
    for (int i = 0; i < ROWS * D; i++)
        assert_true(isfinite(f.dX[i]));
}

static void the_best_interest_is_chosen_and_the_first_of_those_that_tie(void **state)
{
    const float V[] = {0, 1, 2, 0, 0, 2}, e[] = {1, 1};
    float dot[3];
    (void)state;
    assert_int_equal(multi_interest_choose(3, 2, V, e, dot), 1);
    assert_true(dot[0] == 1 && dot[1] == 2 && dot[2] == 2);
}

static void the_mix_agrees_with_finite_differences(void **state)
{
    static const float powers[] = {1, 2, 3.5f};
    (void)state;
    for (int i = 0; i < 3; i++) {
        float scratch[K];
        f.p = powers[i];
        memset(f.dV, 0, sizeof f.dV);
        memset(f.de, 0, sizeof f.de);
        mix_loss(NULL);
        multi_interest_label_aware_backward(K, D, f.p, f.V, f.e, f.mix, f.R, scratch, f.dV, f.de);
        assert_gradient("V", mix_loss, NULL, f.V, f.dV, K * D);
        assert_gradient("e", mix_loss, NULL, f.e, f.de, D);
        multi_interest_label_aware_backward(K, D, f.p, f.V, f.e, f.mix, f.R, scratch, NULL, NULL);
    }
}

static void the_mix_prefers_what_fits_whatever_the_power(void **state)
{
    // Products 1 and -3: an even power without its sign would take the second.
    const float V[] = {1, 0, -3, 0}, e[] = {1, 7};
    float mix[4], v[2];
    (void)state;
    multi_interest_label_aware(2, 2, 2, V, e, mix, v);
    assert_true(fabsf(mix[0] - 1 / (1 + expf(-10))) < 1e-6f);
    assert_true(fabsf(v[0] - (mix[0] - 3 * mix[1])) < 1e-6f && v[1] == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(interests_are_what_was_worked_by_hand, setup),
        cmocka_unit_test_setup(backward_agrees_with_finite_differences, setup),
        cmocka_unit_test_setup(backward_adds_to_what_is_there, setup),
        cmocka_unit_test_setup(an_empty_history_gives_zeros_and_one_event_itself, setup),
        cmocka_unit_test_setup(histories_do_not_depend_on_one_another, setup),
        cmocka_unit_test_setup(large_scores_stay_finite, setup),
        cmocka_unit_test_setup(the_best_interest_is_chosen_and_the_first_of_those_that_tie, setup),
        cmocka_unit_test_setup(the_mix_agrees_with_finite_differences, setup),
        cmocka_unit_test_setup(the_mix_prefers_what_fits_whatever_the_power, setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
