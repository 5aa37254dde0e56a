// SPDX-License-Identifier: Apache-2.0
#include "pipeline/flood.h"

#include <string.h>
// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

static struct flood flood;

static int setup(void **state)
{
    (void)state;
    memset(&flood, 0, sizeof flood);
    return 0;
}

static void add(int n, enum reject reason, int32_t partition, int64_t offset)
{
    for (int i = 0; i < n; i++)
        flood_add(&flood, TOPIC_ITEMS, (struct flood_record){offset + i, partition, (int)reason});
}

static int rejected(void)
{
    return flood.topics[TOPIC_ITEMS].rejected;
}

static void a_window_is_the_last_thousand_records_of_its_topic(void **state)
{
    (void)state;
    add(100, REJECT_NOT_JSON, 0, 0);
    assert_int_equal(rejected(), 100);
    add(FLOOD_WINDOW - 100, REJECT_NONE, 0, 100);
    assert_int_equal(rejected(), 100); // the oldest of them is the thousandth from the end
    add(1, REJECT_NONE, 0, 1000);
    assert_int_equal(rejected(), 99);
    add(1, REJECT_BAD_ID, 0, 1001); // another one falls out for it
    assert_int_equal(rejected(), 99);
    add(98, REJECT_NONE, 0, 1002);
    assert_int_equal(rejected(), 1);
    add(FLOOD_WINDOW - 98, REJECT_NONE, 0, 1100);
    assert_int_equal(rejected(), 1 - 1);
    assert_int_equal(flood.topics[TOPIC_SCORES].n, 0);
}

static void the_report_names_the_reason_that_is_there_most_and_its_oldest_record(void **state)
{
    (void)state;
    add(3, REJECT_NOT_JSON, 0, 5); // falls out
    add(700, REJECT_NONE, 0, 10);
    add(2, REJECT_NOT_JSON, 1, 30);
    add(4, REJECT_WRONG_TYPE, 2, 70);
    add(1, REJECT_NOT_JSON, 0, 710);
    add(295, REJECT_NONE, 0, 711);
    const struct flood_report r = flood_report(&flood, TOPIC_ITEMS);
    assert_int_equal(r.records, FLOOD_WINDOW);
    assert_int_equal(r.rejected, 7);
    assert_int_equal(r.reason, REJECT_WRONG_TYPE);
    assert_int_equal(r.of_reason, 4);
    assert_int_equal(r.first.partition, 2);
    assert_int_equal(r.first.offset, 70);
}

static void a_window_that_is_not_full_is_reported_from_its_begin(void **state)
{
    (void)state;
    add(5, REJECT_NONE, 0, 0);
    add(2, REJECT_BAD_TIME, 3, 5);
    const struct flood_report r = flood_report(&flood, TOPIC_ITEMS);
    assert_int_equal(r.records, 7);
    assert_int_equal(r.rejected, 2);
    assert_int_equal(r.first.offset, 5);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup(name, setup)
    static const struct CMUnitTest tests[] = {
        TEST(a_window_is_the_last_thousand_records_of_its_topic),
        TEST(the_report_names_the_reason_that_is_there_most_and_its_oldest_record),
        TEST(a_window_that_is_not_full_is_reported_from_its_begin),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
