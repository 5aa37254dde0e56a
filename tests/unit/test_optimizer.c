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
        // A move of 0.5 * 3 / 2; allowed are 0.1 * 2 + 0.2 / 2 + 0.05 + 0.3 * 4 / 4
        {"clippy_adagrad", {.rate = 0.5f, .start = 4, .relative = 9}, 2 - 0.75},
        {"clippy_adagrad",
         {.rate = 0.5f,
          .start = 4,
          .relative = 0.1f,
          .relative_root = 0.2f,
          .absolute = 0.05f,
          .fresh = 0.3f},
         2 - 0.65},
        // 7 + 9 is what the first step sees
        {"clippy_adagrad",
         {.rate = 0.5f, .start = 7, .relative = 9, .clippy = CLIPPY_STANDARD},
         2 - 0.5 * 3 / 4},
        // Limits, over a block of 5: the norm of g is 3 sqrt 5, of the move 1.5 sqrt 5
        {"sgd", {.rate = 0.5f, .gradient_max = 6.7082039f / 3}, 2 - 0.5},
        {"sgd", {.rate = 0.5f, .radius = 2.2360680f / 4}, 2 - 0.25},
        {"sgd", {.rate = 0.5f, .gradient_max = 6.7082039f / 3, .radius = 2.2360680f / 4}, 2 - 0.25},
        {"rowwise_adagrad", {.rate = 0.5f, .start = 8, .gradient_max = 2.2360680f}, 2 - 0.5 / 3},
        {"adagrad", {.rate = 0.5f, .start = 8, .gradient_max = 2.2360680f}, 2 - 0.5 / 3},
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

// Limits are another way through the same arithmetic, and a long block goes in stretches.
enum { SHORT = 70, LONG = 2500 };
static const size_t lengths[] = {SHORT, LONG};

static void check_limits_not_reached(const struct optimizer *o, size_t n)
{
    static float one[LONG], two[LONG], s[2 * LONG], r[2 * LONG], g[LONG];
    struct optimizer limited = *o;
    limited.gradient_max = limited.radius = 1e6f;
    for (size_t i = 0; i < n; i++)
        one[i] = two[i] = sinf((float)i);
    optimizer_start(o, n, s);
    optimizer_start(o, n, r);
    for (uint64_t step = 1; step <= 5; step++) {
        for (size_t i = 0; i < n; i++)
            g[i] = cosf((float)i * (float)step);
        optimizer_update(o, step, n, g, one, s);
        optimizer_update(&limited, step, n, g, two, r);
    }
    // The kernel sums the squares of a row in another order than a long block does.
    const bool sums = n == LONG && strcmp(optimizer_name(o), "rowwise_adagrad") == 0;
    const float tolerance = sums ? 1e-6f : 0;
    for (size_t i = 0; i < n; i++)
        if (!(fabsf(one[i] - two[i]) <= tolerance))
            fail_msg("%s: w[%zu] is %g and %g", optimizer_name(o), i, (double)one[i],
                     (double)two[i]);
    for (size_t i = 0; i < optimizer_state_floats(o, n); i++)
        assert_true(fabsf(s[i] - r[i]) <= tolerance);
}

static void limits_that_are_not_reached_change_nothing(void **state)
{
    (void)state;
    for (int k = 0; optimizer_at(k); k++)
        for (int i = 0; i < 2; i++)
            check_limits_not_reached(optimizer_at(k), lengths[i]);
}

static void check_radius(const struct optimizer *o, size_t n)
{
    static float w[LONG], before[LONG], s[2 * LONG], g[LONG];
    for (size_t i = 0; i < n; i++) {
        w[i] = sinf((float)i) + 2;
        g[i] = 1e3f * cosf((float)i);
    }
    optimizer_start(o, n, s);
    for (uint64_t step = 1; step <= 20; step++) {
        double sum = 0, along = 0;
        memcpy(before, w, sizeof w);
        optimizer_update(o, step, n, g, w, s);
        for (size_t i = 0; i < n; i++) {
            const double move = (double)w[i] - (double)before[i];
            sum += move * move;
            along -= move * (double)g[i];
        }
        if (!(sqrt(sum) <= 1.01 * (double)o->radius))
            fail_msg("%s moves by %g", optimizer_name(o), sqrt(sum));
        // The first step is one that reaches it, and goes the same way, only less far.
        if (step == 1 && strcmp(optimizer_name(o), "ftrl") != 0)
            assert_true(sqrt(sum) > 0.99 * (double)o->radius && along > 0);
    }
}

static void a_block_moves_no_further_than_its_radius(void **state)
{
    (void)state;
    for (int k = 0; optimizer_at(k); k++)
        for (int i = 0; i < 2; i++) {
            struct optimizer o = *optimizer_at(k);
            o.rate = 2;
            o.radius = 0.01f;
            check_radius(&o, lengths[i]);
        }
}

static void a_gradient_beyond_its_limit_is_one_of_that_length(void **state)
{
    static float large[LONG], small[LONG], one[LONG], two[LONG], s[2 * LONG], r[2 * LONG];
    static const float lengths_of_g[] = {500, 5e25f}; // whose square no float holds
    (void)state;
    for (int k = 0; optimizer_at(k); k++)
        for (int i = 0; i < 4; i++) {
            const struct optimizer o = *optimizer_at(k);
            const size_t n = lengths[i % 2];
            struct optimizer limited = o;
            limited.gradient_max = 0.5f;
            for (size_t j = 0; j < n; j++)
                one[j] = two[j] = 1 + (float)(j % 5);
            small[1] = 0.3f, small[n - 1] = -0.4f;
            large[1] = lengths_of_g[i / 2] * 0.6f, large[n - 1] = lengths_of_g[i / 2] * -0.8f;
            optimizer_start(&o, n, s);
            optimizer_start(&o, n, r);
            optimizer_update(&o, 1, n, small, one, s);
            optimizer_update(&limited, 1, n, large, two, r);
            for (size_t j = 0; j < n; j++)
                assert_true(fabsf(one[j] - two[j]) < 1e-6f);
            for (size_t j = 0; j < optimizer_state_floats(&o, n); j++)
                assert_true(fabsf(s[j] - r[j]) < 1e-6f);
            small[n - 1] = large[n - 1] = 0;
        }
}

// In the system this one follows, the rows of a step are one block, and one row near 0 holds up
// all.
static void a_cold_row_does_not_freeze_the_others(void **state)
{
    struct optimizer o = *optimizer_find("clippy_adagrad");
    const float g[2 * N] = {1, -1, 1, -1, 1, 1, -1, 1, -1, 1};
    float together[2 * N] = {1, 2, 3, 4, 5}, apart[2 * N] = {1, 2, 3, 4, 5}, s[2 * N];
    (void)state;
    o.fresh = 0;
    optimizer_start(&o, 2 * N, s);
    optimizer_update(&o, 1, 2 * N, g, together, s);
    assert_true(fabsf(together[0] - 1) < 1e-6f);

    optimizer_start(&o, N, s);
    optimizer_start(&o, N, s + N);
    optimizer_update(&o, 1, N, g, apart, s);
    optimizer_update(&o, 1, N, g + N, apart + N, s + N);
    assert_true(fabsf(apart[0] - 0.9f) < 1e-6f); // by its tenth
    assert_true(fabsf(apart[N]) < 1e-6f);

    // And the cold row itself comes off 0 while it is fresh, and not when it is not.
    o.fresh = 0.01f;
    apart[N] = 0;
    optimizer_start(&o, N, s + N);
    optimizer_update(&o, 1, N, g + N, apart + N, s + N);
    assert_true(fabsf(apart[N] + 0.01f) < 1e-4f);
    for (int i = 0; i < N; i++)
        apart[N + i] = 0, s[N + i] = 1e4f;
    optimizer_update(&o, 2, N, g + N, apart + N, s + N);
    assert_true(fabsf(apart[N]) < 1e-6f);
}

static void clippy_takes_in_what_its_form_says(void **state)
{
    const enum optimizer_clippy forms[] = {CLIPPY_AFTER, CLIPPY_STANDARD, CLIPPY_CLIPPED};
    const float expected[] = {13, 13, 4 + 9 * 0.01f}; // w 1, move 1, allowed 0.1
    (void)state;
    for (int i = 0; i < 3; i++) {
        struct optimizer o = *optimizer_find("clippy_adagrad");
        const float g = 3;
        float w = 1, a;
        o.rate = 2.0f / 3, o.start = 4, o.epsilon = 0, o.absolute = 0, o.fresh = 0;
        o.clippy = forms[i];
        optimizer_start(&o, 1, &a);
        optimizer_update(&o, 1, 1, &g, &w, &a);
        assert_true(fabsf(w - 0.9f) < 1e-6f && fabsf(a - expected[i]) < 1e-5f);
    }
}

static void settings_that_cannot_work_are_refused(void **state)
{
    (void)state;
    for (int k = 0; optimizer_at(k); k++) {
        assert_null(optimizer_refuses(optimizer_at(k)));
        struct optimizer o = *optimizer_at(k);
        o.rate = 0;
        assert_non_null(optimizer_refuses(&o));
        o = *optimizer_at(k), o.radius = -1;
        assert_non_null(optimizer_refuses(&o));
        o = *optimizer_at(k), o.gradient_max = NAN;
        assert_non_null(optimizer_refuses(&o));
    }
    assert_non_null(optimizer_refuses(&(struct optimizer){.rate = 1}));
}

static void each_group_has_one_optimizer_or_its_name_is_told(void **state)
{
    static const char *const groups[] = {"item rows", "biases", "matrices"};
    const struct optimizer *sgd = optimizer_find("sgd"), off = {.kind = sgd->kind};
    const struct {
        int n;
        struct optimizer_choice choice[4];
        const char *why; // NULL: good
    } cases[] = {
        {3, {{"biases", sgd}, {"item rows", sgd}, {"matrices", sgd}}, NULL},
        {2, {{"item rows", sgd}, {"matrices", sgd}}, "biases have no optimizer"},
        {4,
         {{"biases", sgd}, {"item rows", sgd}, {"matrices", sgd}, {"biases", sgd}},
         "biases have 2 optimizers"},
        {1, {{"heads", sgd}}, "there are no parameters called heads"},
        {3,
         {{"biases", sgd}, {"item rows", &off}, {"matrices", sgd}},
         "the optimizer of item rows does not work: its rate is not above 0"},
        {1, {{"biases", NULL}}, "the optimizer of biases does not work: there is none"},
    };
    (void)state;
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        char why[128] = "";
        const bool covers =
            optimizer_covers(3, groups, cases[c].n, cases[c].choice, why, sizeof why);
        assert_int_equal(covers, cases[c].why == NULL);
        assert_string_equal(why, cases[c].why ? cases[c].why : "");
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
        cmocka_unit_test(limits_that_are_not_reached_change_nothing),
        cmocka_unit_test(a_block_moves_no_further_than_its_radius),
        cmocka_unit_test(a_gradient_beyond_its_limit_is_one_of_that_length),
        cmocka_unit_test(a_cold_row_does_not_freeze_the_others),
        cmocka_unit_test(clippy_takes_in_what_its_form_says),
        cmocka_unit_test(settings_that_cannot_work_are_refused),
        cmocka_unit_test(each_group_has_one_optimizer_or_its_name_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
