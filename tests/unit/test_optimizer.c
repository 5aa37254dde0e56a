// SPDX-License-Identifier: Apache-2.0
#include "model/optimizer.h"

// clang-format off
#include <stdarg.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on
#include <math.h>
#include <string.h>

enum { N = 5, STATE_MAX = 2 * N };

static void first_steps_are_what_was_worked_by_hand(void **state)
{
    static const struct {
        const char *name;
        struct optimizer set; // kind aside
        double expected;      // of w = 2 after one step with g = 3
    } cases[] = {
        {"sgd", {.rate = 0.5f}, 2 - 0.5 * 3},
        {"sgd", {.rate = 0.5f, .l2 = 0.25f}, 2 - 0.5 * (3 + 0.25 * 2)},
        {"adagrad", {.rate = 0.5f, .start = 7}, 2 - 0.5 * 3 / 4},
        {"adagrad", {.rate = 0.5f, .start = 7, .epsilon = 9}, 2 - 0.5 * 3 / 5},
        {"rowwise_adagrad", {.rate = 0.5f, .start = 7}, 2 - 0.5 * 3 / 4},
        {"rowwise_adagrad", {.rate = 0.5f, .start = 7, .epsilon = 2}, 2 - 0.5 * 3 / 6},
        {"adam", {.rate = 0.5f, .beta1 = 0.9f, .beta2 = 0.999f}, 2 - 0.5},
        {"adam", {.rate = 0.5f, .beta1 = 0.9f, .beta2 = 0.999f, .epsilon = 3}, 2 - 0.5 / 2},
        // a 16, z = 3 - (4 - sqrt 7) / 0.5 * 2 = -2.4170; curvature 8 + 2 * 1 + 0.5 / 0.5
        {"ftrl",
         {.rate = 0.5f, .start = 7, .l1 = 0.5f, .l2 = 1, .beta1 = 0.5f},
         (-0.5 + 2.4169947) / 11},
        {"ftrl", {.rate = 0.5f, .start = 7, .l1 = 3}, 0},
    };
    (void)state;
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        struct optimizer o = cases[c].set;
        float w[N], g[N], s[STATE_MAX] = {0};
        o.kind = optimizer_find(cases[c].name)->kind;
        for (int i = 0; i < N; i++)
            w[i] = 2, g[i] = 3;
        optimizer_start(&o, N, s);
        optimizer_update(&o, 1, N, g, w, s);
        for (int i = 0; i < N; i++)
            if (fabs(w[i] - cases[c].expected) > 1e-6)
                fail_msg("%s, case %zu: w is %.8f, expected %.8f", cases[c].name, c, (double)w[i],
                         cases[c].expected);
    }
}

static void rowwise_adagrad_keeps_one_accumulator_for_the_row(void **state)
{
    struct optimizer o = *optimizer_find("rowwise_adagrad");
    float w[] = {0, 0, 0, 0}, s[1];
    const float g[] = {4, 0, 0, -2};
    (void)state;
    o.rate = 1, o.epsilon = 0, o.start = 4;
    assert_int_equal(optimizer_state_floats(&o, 4), 1);
    optimizer_start(&o, 4, s);
    optimizer_update(&o, 1, 4, g, w, s);
    assert_true(s[0] == 9); // 4 + (16 + 4) / 4
    assert_true(fabsf(w[0] + 4.0f / 3) < 1e-6f && w[1] == 0 && fabsf(w[3] - 2.0f / 3) < 1e-6f);
}

// One table of kinds, and one test that walks it: a new kind is tested as soon as it has a row.
static void every_kind_comes_down_a_slope(void **state)
{
    (void)state;
    for (int k = 0; optimizer_at(k); k++) {
        struct optimizer o = *optimizer_at(k);
        float w[N], s[STATE_MAX];
        o.rate = 0.3f;
        assert_true(optimizer_state_floats(&o, N) <= STATE_MAX);
        assert_ptr_equal(optimizer_find(optimizer_name(&o)), optimizer_at(k));
        for (int i = 0; i < N; i++)
            w[i] = (float)(i - 2);
        optimizer_start(&o, N, s);
        for (uint64_t step = 1; step <= 1000; step++) {
            float g[N];
            for (int i = 0; i < N; i++)
                g[i] = w[i] - 0.5f; // of (w - 0.5)^2 / 2
            optimizer_update(&o, step, N, g, w, s);
        }
        for (int i = 0; i < N; i++)
            if (fabs((double)w[i] - 0.5) > 0.05)
                fail_msg("%s stays at %g", optimizer_name(&o), (double)w[i]);
    }
    assert_null(optimizer_find("newton"));
    assert_null(optimizer_at(-1));
}

static void no_gradient_is_no_step(void **state)
{
    (void)state;
    for (int k = 0; optimizer_at(k); k++) {
        const struct optimizer *o = optimizer_at(k);
        float w[N] = {1, -2, 3, -4, 5}, s[STATE_MAX];
        const float before[N] = {1, -2, 3, -4, 5}, g[N] = {0};
        if (strcmp(optimizer_name(o), "ftrl") == 0)
            continue; // w follows from the state alone there
        optimizer_start(o, N, s);
        optimizer_update(o, 1, N, g, w, s);
        assert_memory_equal(w, before, sizeof w);
    }
}

static void blocks_do_not_depend_on_one_another(void **state)
{
    (void)state;
    for (int k = 0; optimizer_at(k); k++) {
        const struct optimizer *o = optimizer_at(k);
        float one[N] = {1, 2, 3, 4, 5}, two[N] = {1, 2, 3, 4, 5}, s[STATE_MAX + 1], r[STATE_MAX];
        const float g[N] = {1, -1, 2, 0.5f, 3};
        s[optimizer_state_floats(o, N)] = 1234;
        optimizer_start(o, N, s);
        optimizer_update(o, 3, N, g, one, s);
        assert_true(s[optimizer_state_floats(o, N)] == 1234);
        optimizer_start(o, N, r);
        optimizer_update(o, 3, N, g, two, r);
        assert_memory_equal(one, two, sizeof one);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(first_steps_are_what_was_worked_by_hand),
        cmocka_unit_test(rowwise_adagrad_keeps_one_accumulator_for_the_row),
        cmocka_unit_test(every_kind_comes_down_a_slope),
        cmocka_unit_test(no_gradient_is_no_step),
        cmocka_unit_test(blocks_do_not_depend_on_one_another),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
