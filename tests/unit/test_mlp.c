// SPDX-License-Identifier: Apache-2.0
#include "model/mlp.h"

#include <string.h>

#include "model/arena.h"
#include "model/rng.h"
#include "tests/support/gradcheck.h"

enum { B = 3, IN = 4, HIDDEN = 7, OUT = 5 };

struct fixture {
    struct mlp mlp;
    float X[B * IN], dX[B * IN], Y[B * OUT], R[B * OUT];
    _Alignas(64) float params[512], grads[512], scratch[512];
};

static double loss(void *arg)
{
    struct fixture *f = arg;
    double sum = 0;
    mlp_forward(&f->mlp, B, f->X, f->Y);
    for (int i = 0; i < B * OUT; i++)
        sum += (double)f->R[i] * f->Y[i];
    return sum;
}

static void assert_gradients(struct fixture *f)
{
    assert_gradient("W1", loss, f, f->mlp.first.W, f->mlp.first.dW, IN * HIDDEN);
    assert_gradient("b1", loss, f, f->mlp.first.b, f->mlp.first.db, HIDDEN);
    assert_gradient("W2", loss, f, f->mlp.second.W, f->mlp.second.dW, HIDDEN * OUT);
    assert_gradient("b2", loss, f, f->mlp.second.b, f->mlp.second.db, OUT);
    assert_gradient("X", loss, f, f->X, f->dX, B * IN);
}

static int setup(void **state)
{
    static struct fixture f;
    f = (struct fixture){0};
    // Differences across the rectifier's corner would tell nothing, so a seed is taken with which
    // every hidden unit is further from it than the step reaches.
    for (uint64_t key = 1;; key++) {
        struct rng rng = {key, 0};
        struct arena params = {(char *)f.params, sizeof f.params, 0};
        struct arena grads = {(char *)f.grads, sizeof f.grads, 0};
        struct arena scratch = {(char *)f.scratch, sizeof f.scratch, 0};
        float pre[B * HIDDEN], nearest = 1;
        mlp_init(&f.mlp, IN, HIDDEN, OUT, B, &params, &grads, &scratch, &rng);
        rng_fill_uniform(&rng, f.X, B * IN, -1, 1);
        rng_fill_uniform(&rng, f.R, B * OUT, -1, 1);
        linear_forward(&f.mlp.first, B, f.X, pre);
        for (int i = 0; i < B * HIDDEN; i++)
            nearest = fminf(nearest, fabsf(pre[i]));
        if (nearest > 0.03f)
            break;
    }
    loss(&f);
    *state = &f;
    return 0;
}

static void forward_gives_the_numbers_worked_by_hand(void **state)
{
    float W1[] = {1, -1, 2, 1, -1, 0}, b1[] = {0, -1, 0.5f};
    float W2[] = {1, 10, 100}, b2[] = {0.25f};
    float H[6], dH[6], Y[2];
    // Row 0: pre = (1 - 2, 2 + 2 - 1, -1 + .5) = (-1, 3, -.5); row 1: (5, 4, .5 - 3 = -2.5).
    const float X[] = {1, 2, 3, -2}, expected[] = {30.25f, 35.25f};
    (void)state;

    struct mlp m = {.first = {.in = 2, .out = 3, .W = W1, .b = b1},
                    .second = {.in = 3, .out = 1, .W = W2, .b = b2},
                    .B_max = 2,
                    .H = H,
                    .dH = dH};
    mlp_forward(&m, 2, X, Y);
    assert_true(H[0] == 0 && H[1] == 3 && H[2] == 0);
    assert_true(H[3] == 5 && H[4] == 3 && H[5] == 0);
    assert_memory_equal(Y, expected, sizeof Y);
}

static void backward_agrees_with_finite_differences(void **state)
{
    struct fixture *f = *state;
    mlp_backward(&f->mlp, B, f->X, f->R, f->dX);
    assert_gradients(f);
}

static void backward_adds_to_what_is_there(void **state)
{
    struct fixture *f = *state;
    mlp_backward(&f->mlp, B, f->X, f->R, f->dX);
    mlp_backward(&f->mlp, B, f->X, f->R, f->dX);
    for (int i = 0; i < B * OUT; i++)
        f->R[i] *= 2;
    assert_gradients(f);
}

static void a_nan_in_the_input_reaches_the_output(void **state)
{
    struct fixture *f = *state;
    f->X[0] = NAN;
    mlp_forward(&f->mlp, B, f->X, f->Y);
    assert_true(isnan(f->Y[0]));
    assert_false(isnan(f->Y[OUT]));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forward_gives_the_numbers_worked_by_hand),
        cmocka_unit_test_setup(backward_agrees_with_finite_differences, setup),
        cmocka_unit_test_setup(backward_adds_to_what_is_there, setup),
        cmocka_unit_test_setup(a_nan_in_the_input_reaches_the_output, setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
