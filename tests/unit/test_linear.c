// SPDX-License-Identifier: Apache-2.0
#include "model/linear.h"

#include "model/arena.h"
#include "model/rng.h"
#include "tests/support/gradcheck.h"

enum { B = 3, IN = 5, OUT = 4 }; // all different: a swapped dimension cannot pass

struct fixture {
    struct linear layer;
    float X[B * IN], dX[B * IN], Y[B * OUT];
    float R[B * OUT];                           // dL/dY
    _Alignas(64) float params[256], grads[256]; // what the arenas hand out
};

// L = <R, Y> with random R. With L = sum(Y), dL/dY would be all ones, and a backward pass
// that mixes up the rows of dY would go unseen.
static double loss(void *arg)
{
    struct fixture *f = arg;
    double sum = 0;
    linear_forward(&f->layer, B, f->X, f->Y);
    for (int i = 0; i < B * OUT; i++)
        sum += (double)f->R[i] * f->Y[i];
    return sum;
}

static void assert_gradients(struct fixture *f)
{
    assert_gradient("W", loss, f, f->layer.W, f->layer.dW, IN * OUT);
    assert_gradient("b", loss, f, f->layer.b, f->layer.db, OUT);
    assert_gradient("X", loss, f, f->X, f->dX, B * IN);
}

static int setup(void **state)
{
    static struct fixture f;
    struct rng rng = {42, 0};
    f = (struct fixture){0};
    linear_init(&f.layer, IN, OUT, &(struct arena){(char *)f.params, sizeof f.params, 0},
                &(struct arena){(char *)f.grads, sizeof f.grads, 0}, &rng);
    rng_fill_uniform(&rng, f.X, B * IN, -1, 1);
    rng_fill_uniform(&rng, f.R, B * OUT, -1, 1);
    *state = &f;
    return 0;
}

static void forward_gives_the_numbers_worked_by_hand(void **state)
{
    float W[] = {1, 0, 10, 1}, b[] = {0.5f, -1};
    const float X[] = {1, 2, 3, 4, 5, 6}, expected[] = {1.5f, 11, 3.5f, 33, 5.5f, 55};
    float Y[6];
    (void)state;

    linear_forward(&(struct linear){.in = 2, .out = 2, .W = W, .b = b}, 3, X, Y);
    assert_memory_equal(Y, expected, sizeof Y);
}

static void backward_agrees_with_finite_differences(void **state)
{
    struct fixture *f = *state;
    linear_backward(&f->layer, B, f->X, f->R, f->dX);
    assert_gradients(f);
}

static void backward_adds_to_what_is_there(void **state)
{
    struct fixture *f = *state;
    linear_backward(&f->layer, B, f->X, f->R, f->dX);
    linear_backward(&f->layer, B, f->X, f->R, f->dX);
    for (int i = 0; i < B * OUT; i++)
        f->R[i] *= 2; // two passes with R are one pass with 2R
    assert_gradients(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forward_gives_the_numbers_worked_by_hand),
        cmocka_unit_test_setup(backward_agrees_with_finite_differences, setup),
        cmocka_unit_test_setup(backward_adds_to_what_is_there, setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
