// SPDX-License-Identifier: Apache-2.0
#include "model/mixture_of_logits.h"

#include <string.h>

#include "model/rng.h"
#include "tests/support/gradcheck.h"

enum { P = 5 };

static struct fixture {
    float gate[P], dgate[P], dot[P], ddot[P];
} f;

static int setup(void **state)
{
    struct rng rng = {11, 0};
    (void)state;
    f = (struct fixture){0};
    rng_fill_uniform(&rng, f.gate, P, -2, 2);
    rng_fill_uniform(&rng, f.dot, P, -2, 2);
    return 0;
}

static const float upstream = 1.7f;

static double loss(void *arg)
{
    float pi[P];
    (void)arg;
    memcpy(pi, f.gate, sizeof pi);
    mixture_of_logits_gate(1, P, pi);
    return (double)upstream * (double)mixture_of_logits_forward(P, pi, f.dot);
}

static void backward(void)
{
    float pi[P];
    memcpy(pi, f.gate, sizeof pi);
    mixture_of_logits_gate(1, P, pi);
    mixture_of_logits_backward(P, pi, f.dot, upstream, f.dgate, f.ddot);
}

// Gates 0 and log 3: a quarter and three quarters.
static void forward_gives_the_numbers_worked_by_hand(void **state)
{
    float gates[] = {0, logf(3), 500 + logf(3), 500};
    const float dot[] = {4, -4};
    (void)state;
    mixture_of_logits_gate(2, 2, gates);
    assert_true(fabsf(gates[0] - 0.25f) < 1e-6f && fabsf(gates[1] - 0.75f) < 1e-6f);
    assert_true(fabsf(gates[2] - 0.75f) < 1e-4f); // and does not overflow
    assert_true(fabsf(mixture_of_logits_forward(2, gates, dot) + 2) < 1e-5f);
}

static void backward_agrees_with_finite_differences(void **state)
{
    (void)state;
    backward();
    assert_gradient("gate", loss, NULL, f.gate, f.dgate, P);
    assert_gradient("dot", loss, NULL, f.dot, f.ddot, P);
}

static void backward_adds_to_what_is_there(void **state)
{
    float dgate[P], ddot[P];
    (void)state;
    backward();
    memcpy(dgate, f.dgate, sizeof dgate);
    memcpy(ddot, f.ddot, sizeof ddot);
    backward();
    for (int p = 0; p < P; p++)
        assert_true(f.dgate[p] == 2 * dgate[p] && f.ddot[p] == 2 * ddot[p]);
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
