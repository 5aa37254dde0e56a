// SPDX-License-Identifier: Apache-2.0
#include "model/frequency.h"

// clang-format off
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on
#include <math.h>
#include <string.h>

static const float prior = 1e-4f;

// One item and the time.
struct item {
    struct frequency_cell cell;
    uint64_t now;
    float rate;
};

// A batch of n examples in which the item occurs so many times.
static void batch_with(struct item *item, int n, int times)
{
    item->now += (uint64_t)n;
    if (times > 0)
        frequency_sight(&item->cell, item->rate, prior, item->now, (uint32_t)times);
}

static float probability(const struct item *item)
{
    return frequency_read(&item->cell, prior, item->now);
}

static void the_recursion_forgets_its_start_at_the_stated_rate(void **state)
{
    struct frequency_cell cell = {.gap = 100};
    (void)state;
    // E[B_t] - delta = (1 - alpha)^t (B_0 - delta), exact for a constant gap.
    for (uint64_t t = 1; t <= 60; t++) {
        frequency_recur(&cell, 0.05f, 20 * t);
        assert_true(fabs((double)cell.gap - (20 + 80 * pow(0.95, (double)t))) < 1e-4);
    }
}

static void an_item_never_seen_has_the_prior(void **state)
{
    struct item item = {.rate = 0.01f, .now = 77};
    (void)state;
    assert_true(probability(&item) == prior);
}

static void the_first_sighting_does_not_count_the_gap_since_the_beginning(void **state)
{
    struct item item = {.rate = 0.01f, .now = 100};
    (void)state;
    batch_with(&item, 2, 1);
    assert_true(fabsf(probability(&item) - prior) < 1e-9f);
}

static void a_steady_item_is_estimated_per_example_whatever_the_batch_size(void **state)
{
    (void)state;
    // Once in every 32 examples: in batches of 32, of 16 (every second) and of both sizes mixed.
    for (int way = 0; way < 3; way++) {
        struct item item = {.rate = 0.02f};
        for (int i = 0; i < 400; i++) {
            if (way == 0 || (way == 2 && i % 2)) {
                batch_with(&item, 32, 1);
            } else {
                batch_with(&item, 16, 0);
                batch_with(&item, 16, 1);
            }
        }
        assert_true(fabs(1 / (double)probability(&item) - 32) < 1);
    }
}

static void three_in_every_batch_are_three_times_as_frequent(void **state)
{
    struct item once = {.rate = 0.1f}, thrice = {.rate = 0.1f};
    (void)state;
    for (int i = 0; i < 200; i++) {
        batch_with(&once, 12, 1);
        batch_with(&thrice, 12, 3);
    }
    assert_true(fabs((double)probability(&once) - 1.0 / 12) < 1e-6);
    assert_true(fabs((double)probability(&thrice) - 3.0 / 12) < 1e-6);
}

static void young_cells_average_their_gaps(void **state)
{
    struct item item = {.rate = 0.01f};
    (void)state;
    // Gaps 10 and 20 after the first sighting: (1/prior + 10 + 20) / 3 with rates 1/2 and 1/3.
    batch_with(&item, 10, 1);
    batch_with(&item, 10, 1);
    batch_with(&item, 20, 1);
    const double expected = (1 / (double)prior + 10 + 20) / 3;
    assert_true(fabs(1 / (double)probability(&item) - expected) < 0.1);
}

static void an_item_that_stops_appearing_fades(void **state)
{
    struct item item = {.rate = 0.5f};
    (void)state;
    for (int i = 0; i < 100; i++)
        batch_with(&item, 1, 1);
    assert_true(fabsf(probability(&item) - 1) < 1e-3f);
    batch_with(&item, 500, 0);
    assert_true(fabsf(probability(&item) - 1.0f / 500) < 1e-6f);
}

static void no_probability_is_above_one(void **state)
{
    struct item item = {.rate = 1};
    (void)state;
    for (int i = 0; i < 50; i++) {
        batch_with(&item, 1 + i % 3, 1 + i % 2);
        assert_true(probability(&item) <= 1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_recursion_forgets_its_start_at_the_stated_rate),
        cmocka_unit_test(an_item_never_seen_has_the_prior),
        cmocka_unit_test(the_first_sighting_does_not_count_the_gap_since_the_beginning),
        cmocka_unit_test(a_steady_item_is_estimated_per_example_whatever_the_batch_size),
        cmocka_unit_test(three_in_every_batch_are_three_times_as_frequent),
        cmocka_unit_test(young_cells_average_their_gaps),
        cmocka_unit_test(an_item_that_stops_appearing_fades),
        cmocka_unit_test(no_probability_is_above_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
