// SPDX-License-Identifier: Apache-2.0
#include "model/proxy_ranker.h"

#include <string.h>

#include "model/arena.h"
#include "model/distill.h"
#include "model/gemm.h"
#include "model/rng.h"
#include "tests/support/gradcheck.h"

enum { B = 5, D = 3, T = 2, N = 4, WIDTH = 2 * D + 1 };

struct fixture {
    struct proxy_ranker proxy;
    float U[B * D], V[B * D], X[B * WIDTH], Z[B * T], R[B * T], labels[B * T];
    _Alignas(64) float params[256], grads[256];
};

static int setup(void **state)
{
    static struct fixture f;
    struct rng rng = {11, 0};
    f = (struct fixture){0};
    proxy_ranker_init(&f.proxy, D, T, &(struct arena){(char *)f.params, sizeof f.params, 0},
                      &(struct arena){(char *)f.grads, sizeof f.grads, 0}, &rng);
    rng_fill_uniform(&rng, f.U, B * D, -2, 2);
    rng_fill_uniform(&rng, f.V, B * D, -2, 2);
    rng_fill_uniform(&rng, f.R, B * T, -1, 1);
    rng_fill_uniform(&rng, f.labels, B * T, 0, 1);
    *state = &f;
    return 0;
}

static double weighted_logits(void *arg)
{
    struct fixture *f = arg;
    double sum = 0;
    proxy_ranker_forward(&f->proxy, B, f->U, f->V, f->X, f->Z);
    for (int i = 0; i < B * T; i++)
        sum += (double)f->R[i] * (double)f->Z[i];
    return sum;
}

static double bce(void *arg)
{
    struct fixture *f = arg;
    double loss;
    proxy_ranker_forward(&f->proxy, B, f->U, f->V, f->X, f->Z);
    distill_pointwise(B * T, f->Z, f->labels, 1, &loss, NULL);
    return loss;
}

static void forward_gives_the_numbers_worked_by_hand(void **state)
{
    float W[] = {1, 10, 100, 1000, 0.5f}, b[] = {-1};
    const float U[] = {1, 2, 0, 1}, V[] = {3, 4, 1, 0};
    const struct proxy_ranker p = {.D = 2, .head = {.in = 5, .out = 1, .W = W, .b = b}};
    float X[10], Z[2];
    (void)state;
    proxy_ranker_forward(&p, 2, U, V, X, Z);
    assert_true(Z[0] == 1 + 20 + 300 + 4000 + 5.5f - 1 && Z[1] == 10 + 100 - 1);
}

static void backward_agrees_with_finite_differences(void **state)
{
    struct fixture *f = *state;
    weighted_logits(f);
    proxy_ranker_backward(&f->proxy, B, f->X, f->R);
    assert_gradient("W", weighted_logits, f, f->proxy.head.W, f->proxy.head.dW, T * WIDTH);
    assert_gradient("b", weighted_logits, f, f->proxy.head.b, f->proxy.head.db, T);
}

static void the_cross_entropy_agrees_with_finite_differences_and_skips_missing_labels(void **state)
{
    struct fixture *f = *state;
    float dZ[B * T] = {0};
    double loss;
    f->labels[3] = NAN;
    bce(f);
    distill_pointwise(B * T, f->Z, f->labels, 1, &loss, dZ);
    proxy_ranker_backward(&f->proxy, B, f->X, dZ);
    assert_gradient("W", bce, f, f->proxy.head.W, f->proxy.head.dW, T * WIDTH);
    assert_gradient("b", bce, f, f->proxy.head.b, f->proxy.head.db, T);
}

static void the_reward_of_all_pairs_is_the_weighted_logits_of_each(void **state)
{
    struct fixture *f = *state;
    const float value_weight[T] = {2, -0.5f};
    float S[B * N] = {0}, r[B * N];
    gemm_nt(B, N, D, f->U, f->V, S);
    proxy_ranker_reward(&f->proxy, value_weight, B, N, f->U, f->V, S, r);
    for (int i = 0; i < B; i++)
        for (int j = 0; j < N; j++) {
            float x[WIDTH], z[T];
            proxy_ranker_forward(&f->proxy, 1, f->U + i * D, f->V + j * D, x, z);
            assert_true(fabsf(r[i * N + j] - (2 * z[0] - 0.5f * z[1])) < 1e-5f);
        }
}

// The seed makes its proxy ranker anew for each batch, and trains nothing.
static void its_parameters_change_and_it_learns_what_engages(void **state)
{
    struct fixture *f = *state;
    struct linear *head = &f->proxy.head;
    float before[T * WIDTH];
    double first = 0, last = 0;
    struct rng rng = {3, 0};
    memcpy(before, head->W, sizeof before);
    for (int step = 0; step < 4000; step++) {
        float dZ[B * T] = {0};
        double loss;
        rng_fill_uniform(&rng, f->U, B * D, -2, 2);
        rng_fill_uniform(&rng, f->V, B * D, -2, 2);
        proxy_ranker_forward(&f->proxy, B, f->U, f->V, f->X, f->Z);
        for (int i = 0; i < B; i++) {
            f->labels[i * T] = f->X[i * WIDTH + 2 * D] > 0; // what fits is clicked
            f->labels[i * T + 1] = f->V[i * D] > 0.5f;      // one kind of item is liked
        }
        distill_pointwise(B * T, f->Z, f->labels, 1, &loss, dZ);
        first += step < 200 ? loss : 0;
        last += step >= 3800 ? loss : 0;
        memset(head->dW, 0, sizeof before);
        memset(head->db, 0, sizeof(float) * T);
        proxy_ranker_backward(&f->proxy, B, f->X, dZ);
        for (int i = 0; i < T * WIDTH; i++)
            head->W[i] -= 0.2f * head->dW[i];
        for (int i = 0; i < T; i++)
            head->b[i] -= 0.2f * head->db[i];
    }
    assert_true(memcmp(before, head->W, sizeof before) != 0);
    assert_true(last < 0.5 * first);
    assert_true(head->W[2 * D] > 1 && head->W[WIDTH + D] > 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forward_gives_the_numbers_worked_by_hand),
        cmocka_unit_test_setup(backward_agrees_with_finite_differences, setup),
        cmocka_unit_test_setup(
            the_cross_entropy_agrees_with_finite_differences_and_skips_missing_labels, setup),
        cmocka_unit_test_setup(the_reward_of_all_pairs_is_the_weighted_logits_of_each, setup),
        cmocka_unit_test_setup(its_parameters_change_and_it_learns_what_engages, setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
