// SPDX-License-Identifier: Apache-2.0
#include "pipeline/scored.h"

#include "model/slate.h"
#include "tests/unit/core_fixture.h"

static struct columns columns;
static struct heap heap;
static struct scored_list list;

static int setup(void **state)
{
    (void)state;
    list = (struct scored_list){0};
    assert_int_equal(columns_open(&columns, 1 << 16), 0);
    assert_int_equal(heap_open(&heap, &columns, "heap", "heap_free", 8192), 0);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    columns_close(&columns);
    return 0;
}

static enum scored_outcome put(int tasks, uint32_t item, uint8_t ranker, int32_t age_ms,
                               float first, int more)
{
    float score[SLATE_TASKS_MAX];
    for (int t = 0; t < tasks; t++)
        score[t] = first + (float)t;
    return scored_put(
        &heap, &list, tasks,
        &(struct scored_item){.item = item, .generation = 3, .ranker = ranker, .age_ms = age_ms},
        score, more);
}

static void assert_entry(int tasks, int i, uint32_t item, float first)
{
    const struct scored_item *entry = scored_at(&heap, &list, tasks, i);
    assert_int_equal(entry->item, item);
    assert_int_equal(entry->generation, 3);
    for (int t = 0; t < tasks; t++)
        assert_true(entry->score[t] == first + (float)t);
}

static void a_list_grows_to_16_kilobytes_whatever_the_tasks_and_comes_back(void **state)
{
    (void)state;
    for (int tasks = 1; tasks <= SLATE_TASKS_MAX; tasks++) {
        const int room = HEAP_GRANULES_MAX * HEAP_GRANULE / (12 + 4 * tasks);
        size_t used = 0;
        for (int round = 0; round < 2; round++) {
            for (int i = 0; i < room; i++)
                assert_int_equal(put(tasks, (uint32_t)i, 1, 0, (float)i, 1 + i % 5), SCORED_ADDED);
            assert_int_equal(put(tasks, 100000, 1, 0, 0, 1), SCORED_FULL);
            assert_int_equal(list.n, room);
            for (int i = 0; i < room; i++)
                assert_entry(tasks, i, (uint32_t)i, (float)i);
            scored_free(&heap, &list);
            assert_int_equal(list.block, 0);
            if (round == 1)
                assert_int_equal(heap_bytes(&heap), used); // the blocks of the first time
            used = heap_bytes(&heap);
        }
        teardown(NULL);
        setup(NULL);
    }
}

static void a_full_heap_leaves_the_list_as_it_was(void **state)
{
    (void)state;
    assert_int_equal(put(2, 1, 1, 0, 1, 1), SCORED_ADDED);
    while (heap_take(&heap, 1))
        ;
    int n = 1;
    while (put(2, (uint32_t)(100 + n), 1, 0, 5, 200) == SCORED_ADDED)
        n++;
    assert_int_equal(list.n, n);
    assert_entry(2, 0, 1, 1);
    assert_int_equal(put(2, 1, 1, 0, 9, 1), SCORED_AGAIN); // needs no room
    assert_entry(2, 0, 1, 9);
}

static void where_a_whole_record_finds_no_room_one_entry_may(void **state)
{
    (void)state;
    for (int i = 0; i < 7; i++)
        heap_take(&heap, HEAP_GRANULES_MAX);
    heap_take(&heap, 1);
    assert_int_equal(put(1, 1, 1, 0, 1, HEAP_GRANULES_MAX), SCORED_ADDED);
    assert_entry(1, 0, 1, 1);
}

static void the_later_of_two_scores_stays_for_each_version(void **state)
{
    (void)state;
    put(1, 7, 1, 100, 1, 1);
    assert_int_equal(put(1, 7, 2, 300, 2, 1), SCORED_ADDED);
    assert_int_equal(put(1, 7, 1, 101, 3, 1), SCORED_AGAIN);
    assert_entry(1, 0, 7, 1);
    put(1, 7, 1, 99, 4, 1);
    assert_entry(1, 0, 7, 4);
    put(1, 7, 1, 99, 5, 1);
    assert_entry(1, 0, 7, 5);
    assert_entry(1, 1, 7, 2);
    assert_int_equal(list.n, 2);
}

static void what_is_too_old_by_the_time_of_the_request_leaves(void **state)
{
    (void)state;
    for (int i = 0; i < 10; i++)
        put(3, (uint32_t)i, 1, i % 3 * 1000, (float)i, 10);
    assert_int_equal(scored_shift(&heap, &list, 3, 500, 1500), 3);
    assert_int_equal(list.n, 7);
    static const uint32_t left[] = {0, 1, 3, 4, 6, 7, 9};
    for (int i = 0; i < 7; i++)
        assert_entry(3, i, left[i], (float)left[i]);
    assert_int_equal(scored_at(&heap, &list, 3, 1)->age_ms, 1500);
    assert_int_equal(scored_shift(&heap, &list, 3, INT64_C(1) << 40, 0), 0);
    assert_int_equal(scored_at(&heap, &list, 3, 1)->age_ms, INT32_MAX);
    assert_int_equal(scored_age(-(INT64_C(1) << 40)), -INT32_MAX);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_list_grows_to_16_kilobytes_whatever_the_tasks_and_comes_back),
        TEST(a_full_heap_leaves_the_list_as_it_was),
        TEST(where_a_whole_record_finds_no_room_one_entry_may),
        TEST(the_later_of_two_scores_stays_for_each_version),
        TEST(what_is_too_old_by_the_time_of_the_request_leaves),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
