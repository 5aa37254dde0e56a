// SPDX-License-Identifier: Apache-2.0
#include "pipeline/traffic.h"

#include <math.h>

#include "tests/unit/core_fixture.h"

enum { ITEMS = 1000 };

static struct fixture {
    struct columns set;
    struct id_table items;
    struct traffic *traffic;
    struct core_event e;
    const struct traffic_figures *figures;
} f;

static int setup(void **state)
{
    (void)state;
    memset(&f, 0, sizeof f);
    assert_int_equal(columns_open(&f.set, 0), 0);
    assert_int_equal(id_table_open(&f.items, &f.set,
                                   &(struct id_table_options){.names = {"id", "table", "sighting"},
                                                              .heap_names = {"text", "free"},
                                                              .rows_max = ITEMS,
                                                              .admit = 1}),
                     0);
    assert_int_equal(traffic_open(&f.traffic, &f.items), 0);
    f.figures = traffic_figures(f.traffic);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    traffic_close(f.traffic);
    id_table_close(&f.items);
    columns_close(&f.set);
    return 0;
}

static void know(uint64_t item)
{
    bool created;
    const struct id id = core_id("i", item);
    id_table_admit(&f.items, &id, 0, &created);
}

static void show(uint64_t request, uint64_t user, int n, const uint64_t *items)
{
    traffic_see(f.traffic, core_impression(&f.e, TEST_START_MS, request, user, n, items));
}

static void engage(uint64_t user, uint64_t item)
{
    traffic_see(f.traffic, core_engagement(&f.e, TEST_START_MS, CORE_NO_REQUEST, user, item, "c"));
}

// By the definition: half of the mean difference of two draws, by the mean.
static double gini_of_pairs(int n, const uint32_t *counts)
{
    double sum = 0, differences = 0;
    for (int i = 0; i < n; i++) {
        sum += counts[i];
        for (int k = 0; k < n; k++)
            differences += fabs((double)counts[i] - (double)counts[k]);
    }
    return differences / (2 * n * sum);
}

static void the_gini_coefficient_is_that_of_the_definition(void **state)
{
    (void)state;
    static uint32_t spread[1001];
    uint32_t counts[60];
    struct rng rng = {3, 0};
    assert_float_equal(traffic_gini(4, 4, (uint32_t[]){5, 5, 5, 5}, spread), 0, 1e-12);
    assert_float_equal(traffic_gini(4, 1, (uint32_t[]){9}, spread), 0.75, 1e-12);
    assert_float_equal(traffic_gini(3, 2, (uint32_t[]){1, 3}, spread), 0.5, 1e-12);
    assert_float_equal(traffic_gini(7, 0, NULL, spread), 0, 0);
    for (int round = 0; round < 50; round++) {
        const int n = 1 + (int)rng_below(&rng, 60), shown = (int)rng_below(&rng, (uint64_t)n) + 1;
        memset(counts, 0, sizeof counts);
        for (int i = 0; i < shown; i++)
            counts[i] = 1 + (uint32_t)rng_below(&rng, 1 + rng_below(&rng, 1000));
        assert_float_equal(traffic_gini((size_t)n, (size_t)shown, counts, spread),
                           gini_of_pairs(n, counts), 1e-9);
    }
    for (int i = 0; i <= 1000; i++)
        assert_int_equal(spread[i], 0);
}

static void exposures_are_of_the_known_items_and_of_the_last_whole_window(void **state)
{
    (void)state;
    for (uint64_t i = 0; i < 10; i++)
        know(i);
    for (uint64_t i = 0; i < TRAFFIC_FIRST - 1; i++)
        show(i, i, 1, (uint64_t[]){i % 5});
    assert_true(isnan(f.figures->exposure_gini));
    show(0, 0, 1, (uint64_t[]){99}); // without a row: nothing is known of it
    assert_true(isnan(f.figures->exposure_gini));
    show(0, 0, 1, (uint64_t[]){4});
    // Half of the items have nearly the same, the others nothing.
    assert_float_equal(f.figures->exposure_gini, 0.5, 0.001);
    assert_float_equal(f.figures->top_share[TOPIC_IMPRESSIONS][TRAFFIC_ITEM], 0.2, 0.001);
    for (uint64_t i = TRAFFIC_FIRST; i < TRAFFIC_WINDOW; i++)
        show(i, i, 1, (uint64_t[]){i % 5});
    // Whole windows from now on: not a trace of the five is left in the next one.
    for (int i = 0; i < TRAFFIC_WINDOW - 1; i++)
        show(0, 0, 1, (uint64_t[]){7});
    assert_float_equal(f.figures->exposure_gini, 0.5, 0.001);
    show(0, 0, 1, (uint64_t[]){7});
    assert_float_equal(f.figures->exposure_gini, 0.9, 1e-9);
    assert_float_equal(f.figures->top_share[TOPIC_IMPRESSIONS][TRAFFIC_ITEM], 1, 0);
}

static void a_robots_share_is_found_among_more_keys_than_there_are_counters(void **state)
{
    (void)state;
    static const double shares[] = {0.5, 0.1, 0.03};
    for (int s = 0; s < 3; s++) {
        struct rng rng = {11, (uint64_t)s};
        uint64_t mine = 0;
        // Windows of the three lie one after the other.
        for (int i = 0; i < TRAFFIC_WINDOW; i++) {
            const bool robot = (double)rng_float(&rng) < shares[s];
            mine += robot;
            engage(robot ? 123456789 : rng_below(&rng, 100000), rng_below(&rng, 3));
        }
        const double true_share = (double)mine / TRAFFIC_WINDOW;
        const double found = f.figures->top_share[TOPIC_ENGAGEMENTS][TRAFFIC_USER];
        assert_true(found <= true_share);
        assert_true(found > true_share - 1.0 / 65);
        assert_float_equal(f.figures->top_share[TOPIC_ENGAGEMENTS][TRAFFIC_ITEM], 1.0 / 3, 0.01);
    }
    assert_true(isnan(f.figures->top_share[TOPIC_ENGAGEMENTS][TRAFFIC_REQUEST])); // there is none
}

static void a_request_counts_for_each_item_it_shows(void **state)
{
    (void)state;
    know(1);
    for (uint64_t i = 0; i < TRAFFIC_FIRST / 16; i++) // 8 of one request, 8 of others
        for (int other = 0; other < 2; other++)
            show(other ? 1000 + i : 7, 5, 8, (uint64_t[]){1, 1, 1, 1, 1, 1, 1, 1});
    assert_float_equal(f.figures->top_share[TOPIC_IMPRESSIONS][TRAFFIC_REQUEST], 0.5, 1.0 / 65);
    assert_float_equal(f.figures->top_share[TOPIC_IMPRESSIONS][TRAFFIC_USER], 1, 0);
}

static void a_field_that_is_left_out_counts_in_the_unit_of_its_topic(void **state)
{
    (void)state;
    const uint64_t *n = f.figures->defaulted;
    core_impression(&f.e, TEST_START_MS, 1, 2, 3, (uint64_t[]){1, 2, 3});
    f.e.items[1].position = -1;
    f.e.items[2].propensity = 0.5f;
    traffic_see(f.traffic, &f.e.event);
    assert_int_equal(n[DEFAULTED_POSITION], 1);
    assert_int_equal(n[DEFAULTED_PROPENSITY], 2);
    assert_int_equal(n[DEFAULTED_SURFACE], 3);
    assert_int_equal(n[DEFAULTED_USER_FEATURES], 3);
    engage(1, 1);
    core_engagement(&f.e, TEST_START_MS, 1, 1, 1, "c");
    f.e.event.valued = 1;
    f.e.event.repeated = 1;
    traffic_see(f.traffic, &f.e.event);
    assert_int_equal(f.figures->repeated[TOPIC_ENGAGEMENTS], 1);
    assert_int_equal(f.figures->repeated[TOPIC_IMPRESSIONS], 0);
    assert_int_equal(n[DEFAULTED_REQUEST], 1);
    assert_int_equal(n[DEFAULTED_VALUE], 1);
    traffic_see(f.traffic, core_score(&f.e, TEST_START_MS, 1, 1));
    assert_int_equal(n[DEFAULTED_RANKER], 1);
    traffic_see(f.traffic, core_item(&f.e, TEST_START_MS, 1, "title", false));
    traffic_see(f.traffic, core_item(&f.e, TEST_START_MS, 1, NULL, false));
    traffic_see(f.traffic, core_item(&f.e, TEST_START_MS, 1, NULL, true)); // a tombstone has none
    assert_int_equal(n[DEFAULTED_TITLE], 1);
    assert_int_equal(n[DEFAULTED_FEATURES], 2);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(the_gini_coefficient_is_that_of_the_definition),
        TEST(exposures_are_of_the_known_items_and_of_the_last_whole_window),
        TEST(a_robots_share_is_found_among_more_keys_than_there_are_counters),
        TEST(a_request_counts_for_each_item_it_shows),
        TEST(a_field_that_is_left_out_counts_in_the_unit_of_its_topic),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
