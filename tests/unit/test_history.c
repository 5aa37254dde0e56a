// SPDX-License-Identifier: Apache-2.0
#include "model/history.h"

#include "tests/unit/core_fixture.h"

enum { ITEMS = 64, LENGTH = 4 };

static struct fixture {
    struct columns set;
    struct id_table items;
    struct history history;
} f;

static void open_with(int length, size_t entries_max)
{
    assert_int_equal(columns_open(&f.set, 0), 0);
    assert_int_equal(id_table_open(&f.items, &f.set,
                                   &(struct id_table_options){
                                       .names = {"item.id", "item.table", NULL},
                                       .heap_names = {"item.id_text", "item.id_free"},
                                       .rows_max = ITEMS,
                                       .admit = 1,
                                   }),
                     0);
    assert_int_equal(history_open(&f.history, &f.set, 100, entries_max, length), 0);
    for (uint64_t i = 0; i < ITEMS; i++) {
        bool created;
        const struct id id = core_id("i", i);
        assert_int_equal(id_table_see(&f.items, &id, 0, &created), i);
    }
}

static int setup(void **state)
{
    (void)state;
    open_with(LENGTH, 10000);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    id_table_close(&f.items);
    columns_close(&f.set);
    return 0;
}

static void add(uint32_t user, uint32_t item, int64_t ts_ms)
{
    history_add(&f.history, user,
                (struct history_entry){.item = item,
                                       .generation = id_table_row(&f.items, item)->generation,
                                       .actions = history_action(0),
                                       .ts_ms = ts_ms});
}

static void act(uint32_t user, uint32_t item, int64_t ts_ms, int action)
{
    history_add(&f.history, user,
                (struct history_entry){.item = item,
                                       .generation = id_table_row(&f.items, item)->generation,
                                       .actions = history_action(action),
                                       .ts_ms = ts_ms});
}

// Compares with a list of items that -1 ends.
static void assert_before(uint32_t user, int64_t ts_ms, const int *expected)
{
    uint32_t rows[HISTORY_MAX];
    uint8_t actions[HISTORY_MAX], gaps[HISTORY_MAX];
    struct history_walk walk = {rows, actions, gaps, NULL, 0};
    const int n = history_before(&f.history, user, ts_ms, &f.items, f.history.length, &walk);
    int i = 0;
    for (; expected[i] >= 0; i++) {
        assert_true(i < n);
        assert_int_equal(rows[i], expected[i]);
    }
    assert_int_equal(n, i);
}

#define LIST(...) ((const int[]){__VA_ARGS__, -1})
#define NOBODY    ((const int[]){-1})

static void only_what_is_strictly_earlier_counts_newest_first(void **state)
{
    (void)state;
    add(3, 10, 100);
    add(3, 11, 200);
    add(3, 12, 300);
    assert_before(3, 100, NOBODY);
    assert_before(3, 101, LIST(10));
    assert_before(3, 300, LIST(11, 10));
    assert_before(3, 301, LIST(12, 11, 10));
    assert_before(2, 1000, NOBODY);
    assert_before(99, 1000, NOBODY); // never seen
}

static void of_engagements_at_one_time_the_last_added_is_the_newest(void **state)
{
    (void)state;
    add(0, 1, 100);
    add(0, 2, 100);
    add(0, 3, 100);
    assert_before(0, 101, LIST(3, 2, 1));
    assert_before(0, 100, NOBODY);
}

static void a_late_engagement_takes_its_place_in_time(void **state)
{
    (void)state;
    add(0, 1, 100);
    add(0, 2, 300);
    add(0, 3, 200);
    add(0, 4, 50);
    assert_before(0, 1000, LIST(2, 3, 1, 4));
    assert_before(0, 150, LIST(1, 4));
}

static void a_basket_larger_than_the_history_leaves_what_was_before_it(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < LENGTH; i++)
        add(0, i, 100 + i);
    for (uint32_t i = 10; i < 30; i++) // one basket
        add(0, i, 200);
    assert_before(0, 200, LIST(3, 2, 1, 0));
    assert_before(0, 201, LIST(29, 28, 27, 26));
    add(0, 40, 300);
    assert_before(0, 300, LIST(29, 28, 27, 26));
    assert_before(0, 301, LIST(40, 29, 28, 27));
}

static void an_item_that_has_left_is_left_out_even_if_its_row_is_taken(void **state)
{
    (void)state;
    add(0, 1, 100);
    add(0, 2, 200);
    add(0, 3, 300);
    id_table_remove(&f.items, 2);
    assert_before(0, 1000, LIST(3, 1));
    bool created;
    const struct id id = core_id("new", 1);
    assert_int_equal(id_table_see(&f.items, &id, 0, &created), 2);
    assert_before(0, 1000, LIST(3, 1));
    add(0, 2, 400);
    assert_before(0, 1000, LIST(2, 3, 1));
}

static void a_cleared_user_has_no_history_and_its_memory_is_used_again(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 10; i++)
        add(5, i, 100 + i);
    const size_t bytes = heap_bytes(&f.history.entry);
    for (int round = 0; round < 20; round++) {
        history_clear(&f.history, 5);
        assert_before(5, 1000, NOBODY);
        for (uint32_t i = 0; i < 10; i++)
            add(5, i, 100 + i);
        assert_before(5, 1000, LIST(9, 8, 7, 6));
    }
    assert_int_equal(heap_bytes(&f.history.entry), bytes);
    history_clear(&f.history, 99); // never seen
}

static void a_full_heap_refuses_and_counts(void **state)
{
    teardown(state);
    open_with(LENGTH, 8); // two blocks of four
    for (uint32_t i = 0; i < 4; i++) {
        add(0, i, 100 + i);
        add(1, i, 100 + i);
    }
    assert_int_equal(f.history.refused_full, 0);
    add(2, 1, 100);
    assert_int_equal(f.history.refused_full, 1);
    assert_before(2, 1000, NOBODY);
    assert_before(0, 1000, LIST(3, 2, 1, 0));
    add(0, 9, 500); // would need a larger block
    assert_before(0, 1000, LIST(9, 3, 2, 1));
}

static void only_the_newest_max_are_given(void **state)
{
    (void)state;
    uint32_t rows[3] = {77, 77, 77};
    uint8_t actions[3], gaps[3];
    struct history_walk walk = {rows, actions, gaps, NULL, 0};
    for (uint32_t i = 0; i < 4; i++)
        add(0, i, 100 + i);
    assert_int_equal(history_before(&f.history, 0, 1000, &f.items, 2, &walk), 2);
    assert_int_equal(rows[0], 3);
    assert_int_equal(rows[1], 2);
    assert_int_equal(rows[2], 77);
    assert_int_equal(history_before(&f.history, 0, 1000, &f.items, 0, &walk), 0);
}

static void with_the_items_owners_at_hand_it_is_the_history_at_the_end_of_time(void **state)
{
    (void)state;
    struct rng rng = {7, 0};
    struct history_owner owner[ITEMS];
    for (int i = 0; i < 600; i++)
        add((uint32_t)rng_below(&rng, 40), (uint32_t)rng_below(&rng, ITEMS),
            (int64_t)rng_below(&rng, 30));
    for (uint32_t row = 0; row < ITEMS; row += 3)
        id_table_remove(&f.items, row);
    for (uint64_t i = 0; i < ITEMS / 6; i++) { // some rows have a new owner, some none
        bool created;
        const struct id id = core_id("new", i);
        id_table_see(&f.items, &id, 0, &created);
    }
    for (uint32_t row = 0; row < ITEMS; row++)
        owner[row].generation =
            id_table_live(&f.items, row) ? id_table_row(&f.items, row)->generation : -1;
    for (uint32_t user = 0; user < 50; user++)
        for (int max = 0; max <= 2 * LENGTH; max++) {
            const int64_t end = 40; // after everything
            uint32_t rows[2][HISTORY_MAX];
            uint8_t actions[2][HISTORY_MAX], gaps[2][HISTORY_MAX];
            struct history_walk walk[2] = {{rows[0], actions[0], gaps[0], NULL, 0},
                                           {rows[1], actions[1], gaps[1], NULL, 0}};
            const int n = history_recent(&f.history, user, end, owner, max, &walk[0]);
            assert_int_equal(n, history_before(&f.history, user, end, &f.items, max, &walk[1]));
            assert_memory_equal(rows[0], rows[1], sizeof *rows[0] * (size_t)n);
            assert_memory_equal(actions[0], actions[1], (size_t)n);
            assert_memory_equal(gaps[0], gaps[1], (size_t)n);
            assert_int_equal(walk[0].newest, walk[1].newest);
        }
}

static void actions_on_one_item_at_one_instant_are_one_engagement(void **state)
{
    uint32_t rows[HISTORY_MAX];
    uint8_t actions[HISTORY_MAX], gaps[HISTORY_MAX];
    struct history_walk walk = {rows, actions, gaps, NULL, 0};
    (void)state;
    act(0, 1, 5000, 0);
    act(0, 2, 5000, 1);
    act(0, 1, 5000, 3);
    act(0, 1, 9000, 2);   // later: an engagement of its own
    act(0, 2, 9000, 200); // every action from the eighth on is the last bit
    assert_int_equal(history_before(&f.history, 0, 10000, &f.items, HISTORY_MAX, &walk), 4);
    assert_true(rows[0] == 2 && actions[0] == 0x80);
    assert_true(rows[1] == 1 && actions[1] == 0x04);
    assert_true(rows[2] == 2 && actions[2] == 0x02);
    assert_true(rows[3] == 1 && actions[3] == 0x09);
    assert_int_equal(walk.newest, 2);
    // With another owner of the row it is another item.
    id_table_remove(&f.items, 2);
    bool created;
    const struct id id = core_id("new", 1);
    assert_int_equal(id_table_see(&f.items, &id, 0, &created), 2);
    act(0, 2, 9000, 0);
    assert_int_equal(history_before(&f.history, 0, 10000, &f.items, HISTORY_MAX, &walk), 3);
    assert_true(rows[0] == 2 && actions[0] == 0x01);
}

static void gaps_are_told_apart_by_their_doublings(void **state)
{
    uint32_t rows[HISTORY_MAX];
    uint8_t actions[HISTORY_MAX], gaps[HISTORY_MAX];
    struct history_walk walk = {rows, actions, gaps, NULL, 0};
    (void)state;
    assert_int_equal(history_gap(-5), 0);
    assert_int_equal(history_gap(999), 0);
    assert_int_equal(history_gap(1000), 1);
    assert_int_equal(history_gap(1999), 1);
    assert_int_equal(history_gap(2000), 2);
    assert_int_equal(history_gap(4000), 3);
    assert_int_equal(history_gap(INT64_MAX), HISTORY_GAPS - 1);
    add(0, 1, 0);
    add(0, 2, 60000);
    add(0, 3, 61000);
    assert_int_equal(history_before(&f.history, 0, 61500, &f.items, HISTORY_MAX, &walk), 3);
    assert_true(gaps[0] == 0 && gaps[1] == 1 && gaps[2] == 6);
}

// Whatever is asked for, nothing of the answer is as late as the question: the impression that is
// scored, its basket and the future stay out, also when they arrived first.
static void a_history_never_holds_what_it_is_used_to_predict(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 50; seed++) {
        struct rng rng = {seed, 0};
        int64_t of[ITEMS]; // the only time of each item
        teardown(state);
        open_with(LENGTH, 10000);
        for (uint32_t item = 0; item < ITEMS; item++) {
            of[item] = (int64_t)rng_below(&rng, 40);
            add(1, item, of[item]);
            for (int64_t at = 0; at < 42; at++) {
                uint32_t rows[HISTORY_MAX];
                uint8_t actions[HISTORY_MAX], gaps[HISTORY_MAX];
                struct history_walk walk = {rows, actions, gaps, NULL, 0};
                const int n = history_before(&f.history, 1, at, &f.items, HISTORY_MAX, &walk);
                for (int i = 0; i < n; i++)
                    assert_true(of[rows[i]] < at && (i == 0 || of[rows[i]] <= of[rows[i - 1]]));
            }
        }
    }
}

// The naive oracle keeps everything ever added, in time order with later additions after earlier
// ones of the same time. At and after the newest time the answer must be the oracle's.

enum { ADDED_MAX = 300, RUNS = 400 };

static void any_order_gives_the_history_of_one_who_forgets_nothing(void **state)
{
    for (uint64_t seed = 1; seed <= RUNS; seed++) {
        struct rng rng = {seed, 0};
        struct history_entry all[ADDED_MAX];
        int n = 0;
        const int length = 1 + (int)rng_below(&rng, 9);
        const uint64_t spread = 1 + rng_below(&rng, 60); // small: many ties
        const uint64_t backwards = rng_below(&rng, 20);
        int64_t now = 1000;
        teardown(state);
        open_with(length, 10000);
        for (int steps = 1 + (int)rng_below(&rng, ADDED_MAX - 1); steps > 0; steps--) {
            const uint32_t item = (uint32_t)rng_below(&rng, ITEMS);
            int64_t ts = now += (int64_t)(rng_below(&rng, spread) / 8);
            if (backwards && rng_below(&rng, 3) == 0)
                ts -= (int64_t)rng_below(&rng, backwards);
            bool again = false; // would be merged with what is there
            for (int i = 0; i < n; i++)
                again = again || (all[i].item == item && all[i].ts_ms == ts);
            if (again)
                continue;
            add(1, item, ts);
            int place = n;
            for (; place > 0 && all[place - 1].ts_ms > ts; place--)
                all[place] = all[place - 1];
            all[place] = (struct history_entry){.item = item, .ts_ms = ts};
            n++;
            const int64_t newest = all[n - 1].ts_ms;
            for (int64_t at = newest; at <= newest + 1; at++) {
                uint32_t rows[HISTORY_MAX], expected[HISTORY_MAX];
                uint8_t actions[HISTORY_MAX], gaps[HISTORY_MAX];
                struct history_walk walk = {rows, actions, gaps, NULL, 0};
                int wanted = 0, level = 0; // level: of the newest time before
                int64_t last = INT64_MIN;
                for (int i = n - 1; i >= 0 && wanted < length; i--) {
                    if (all[i].ts_ms >= at)
                        continue;
                    if (wanted == 0)
                        last = all[i].ts_ms;
                    level += all[i].ts_ms == last;
                    expected[wanted++] = all[i].item;
                }
                const int got = history_before(&f.history, 1, at, &f.items, length, &walk);
                if (got != wanted || memcmp(rows, expected, sizeof *rows * (size_t)got))
                    fail_msg("seed %" PRIu64 ": the history before %" PRId64 " after %d additions",
                             seed, at, n);
                assert_int_equal(walk.newest, level);
                for (int i = 0; i < got; i++)
                    assert_true(rows[i] == expected[i] && actions[i] == 1);
            }
            const struct history_head *head = column_at(&f.history.head, 1);
            assert_true(head->n <= 2 * length);
        }
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(only_what_is_strictly_earlier_counts_newest_first),
        TEST(of_engagements_at_one_time_the_last_added_is_the_newest),
        TEST(a_late_engagement_takes_its_place_in_time),
        TEST(a_basket_larger_than_the_history_leaves_what_was_before_it),
        TEST(an_item_that_has_left_is_left_out_even_if_its_row_is_taken),
        TEST(a_cleared_user_has_no_history_and_its_memory_is_used_again),
        TEST(a_full_heap_refuses_and_counts),
        TEST(only_the_newest_max_are_given),
        TEST(with_the_items_owners_at_hand_it_is_the_history_at_the_end_of_time),
        TEST(actions_on_one_item_at_one_instant_are_one_engagement),
        TEST(gaps_are_told_apart_by_their_doublings),
        TEST(a_history_never_holds_what_it_is_used_to_predict),
        TEST(any_order_gives_the_history_of_one_who_forgets_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
