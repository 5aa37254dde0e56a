// SPDX-License-Identifier: Apache-2.0
#include "model/event_fusion.h"

#include <string.h>

#include "model/arena.h"
#include "model/attention.h"
#include "model/history.h"
#include "model/rng.h"
#include "tests/support/gradcheck.h"

enum { N = 5, D = 4, HEADS = 2, MEMORY = 1 << 14 };

static const uint8_t actions[N] = {0, 1, 0x81, 6, 1};
static const uint8_t gaps[N] = {0, 3, 3, HISTORY_GAPS - 1, 0};

static struct fixture {
    struct event_fusion fusion;
    float action[HISTORY_ACTIONS * D], daction[HISTORY_ACTIONS * D];
    float W[2 * D * D], dW[2 * D * D], b[D], db[D];
    float gap[HISTORY_GAPS * D], dgap[HISTORY_GAPS * D];
    float X[N * D], dX[N * D], C[N * D], R[N * D];
    _Alignas(64) char scratch[MEMORY * sizeof(float)], other[MEMORY * sizeof(float)];
} f;

static void setup(bool with_actions, bool with_gaps)
{
    struct rng rng = {3, 0};
    struct arena scratch = {f.scratch, sizeof f.scratch, 0};
    memset(&f, 0, sizeof f);
    f.fusion = (struct event_fusion){
        .shape = {D, with_actions, with_gaps},
        .rows_max = N,
        .action = f.action,
        .daction = f.daction,
        .join = {.in = 2 * D, .out = D, .W = f.W, .b = f.b, .dW = f.dW, .db = f.db},
        .gap = f.gap,
        .dgap = f.dgap};
    const size_t bytes = event_fusion_scratch(&f.fusion, true, NULL);
    event_fusion_scratch(&f.fusion, true, &scratch);
    assert_true(scratch.used <= bytes);
    rng_fill_uniform(&rng, f.X, N * D, -1, 1);
    rng_fill_uniform(&rng, f.R, N * D, -1, 1);
    rng_fill_uniform(&rng, f.action, HISTORY_ACTIONS * D, -1, 1);
    rng_fill_uniform(&rng, f.W, 2 * D * D, -1, 1);
    rng_fill_uniform(&rng, f.b, D, -1, 1);
    rng_fill_uniform(&rng, f.gap, HISTORY_GAPS * D, -1, 1);
}

static double loss(void *arg)
{
    double sum = 0;
    (void)arg;
    event_fusion_forward(&f.fusion, N, f.X, actions, gaps, f.C);
    for (int i = 0; i < N * D; i++)
        sum += (double)f.R[i] * f.C[i];
    return sum;
}

static void the_numbers_worked_by_hand(void **state)
{
    // Width 1, actions 0 and 2 active: C = 2 x + 3 (10 + 100) + 5 + gap.
    float action[HISTORY_ACTIONS] = {10, 1, 100}, W[] = {2, 3}, b[] = {5};
    float gap[HISTORY_GAPS] = {0, 0, 1000}, pair[2], C[1];
    struct event_fusion fusion = {.shape = {1, true, true},
                                  .rows_max = 1,
                                  .action = action,
                                  .join = {.in = 2, .out = 1, .W = W, .b = b},
                                  .gap = gap,
                                  .pair = pair};
    (void)state;
    event_fusion_forward(&fusion, 1, (float[]){7}, (uint8_t[]){5}, (uint8_t[]){2}, C);
    assert_true(C[0] == 14 + 330 + 5 + 1000);
    event_fusion_forward(&fusion, 1, (float[]){7}, (uint8_t[]){0}, (uint8_t[]){0}, C);
    assert_true(C[0] == 14 + 5);
}

static void backward_agrees_with_finite_differences(void **state)
{
    (void)state;
    for (int shape = 0; shape < 4; shape++) {
        setup(shape & 1, shape & 2);
        loss(NULL);
        event_fusion_backward(&f.fusion, N, actions, gaps, f.R, f.dX);
        assert_gradient("X", loss, NULL, f.X, f.dX, N * D);
        assert_gradient("action", loss, NULL, f.action, f.daction, HISTORY_ACTIONS * D);
        assert_gradient("W", loss, NULL, f.W, f.dW, 2 * D * D);
        assert_gradient("b", loss, NULL, f.b, f.db, D);
        assert_gradient("gap", loss, NULL, f.gap, f.dgap, HISTORY_GAPS * D);
    }
}

static void gradients_of_parameters_add_to_what_is_there(void **state)
{
    (void)state;
    setup(true, true);
    loss(NULL);
    event_fusion_backward(&f.fusion, N, actions, gaps, f.R, f.dX);
    event_fusion_backward(&f.fusion, N, actions, gaps, f.R, f.dX);
    assert_gradient("X", loss, NULL, f.X, f.dX, N * D); // overwritten
    for (int i = 0; i < N * D; i++)
        f.R[i] *= 2;
    assert_gradient("action", loss, NULL, f.action, f.daction, HISTORY_ACTIONS * D);
    assert_gradient("W", loss, NULL, f.W, f.dW, 2 * D * D);
    assert_gradient("b", loss, NULL, f.b, f.db, D);
    assert_gradient("gap", loss, NULL, f.gap, f.dgap, HISTORY_GAPS * D);
}

static void in_place_it_gives_the_same(void **state)
{
    (void)state;
    for (int shape = 0; shape < 4; shape++) {
        float C[N * D], dX[N * D];
        setup(shape & 1, shape & 2);
        loss(NULL);
        memcpy(C, f.X, sizeof C);
        event_fusion_forward(&f.fusion, N, C, actions, gaps, C);
        assert_memory_equal(C, f.C, sizeof C);
        event_fusion_backward(&f.fusion, N, actions, gaps, f.R, f.dX);
        memcpy(dX, f.R, sizeof dX);
        event_fusion_backward(&f.fusion, N, actions, gaps, dX, dX);
        assert_memory_equal(dX, f.dX, sizeof dX);
    }
}

static void a_fusion_at_its_start_is_the_plain_encoder(void **state)
{
    const struct attention_encoder_shape shape = {D,    N,   HEADS, 2, ATTENTION_POSITIONS_STANDARD,
                                                  true, true};
    struct attention_encoder encoder;
    struct rng rng = {5, 0};
    float plain[2 * D], fused[2 * D];
    static _Alignas(64) char params[MEMORY * sizeof(float)], grads[MEMORY * sizeof(float)];
    (void)state;
    setup(true, true);
    event_fusion_start(&f.fusion);
    attention_encoder_init(&encoder, &shape, 1, &(struct arena){params, sizeof params, 0},
                           &(struct arena){grads, sizeof grads, 0},
                           &(struct arena){f.other, sizeof f.other, 0}, &rng);
    loss(NULL);
    attention_encoder_forward(&encoder, 1, NULL, f.X, plain);
    attention_encoder_forward(&encoder, 1, NULL, f.C, fused);
    assert_memory_equal(f.X, f.C, sizeof f.X);
    assert_memory_equal(plain, fused, sizeof plain);
    // And it does not stay there: the action table has a gradient.
    event_fusion_backward(&f.fusion, N, actions, gaps, f.R, f.dX);
    for (int i = 0; i < D; i++)
        assert_true(f.daction[i] != 0 && f.daction[3 * D + i] == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_numbers_worked_by_hand),
        cmocka_unit_test(backward_agrees_with_finite_differences),
        cmocka_unit_test(gradients_of_parameters_add_to_what_is_there),
        cmocka_unit_test(in_place_it_gives_the_same),
        cmocka_unit_test(a_fusion_at_its_start_is_the_plain_encoder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
