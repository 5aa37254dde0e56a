// SPDX-License-Identifier: Apache-2.0
#include "pipeline/rows.h"

#include "model/tables.h"
#include "tests/unit/core_fixture.h"

static struct columns set;
static struct rows rows;
static struct core_event e;

static void open_with(const struct rows_options *options)
{
    const struct two_tower_options model = core_model();
    assert_int_equal(columns_open(&set, 0), 0);
    assert_int_equal(rows_open(&rows, &set, options, &model), 0);
}

static int setup(void **state)
{
    (void)state;
    open_with(&(struct rows_options){.items_max = 300,
                                     .users_max = 300,
                                     .admit_items = 2,
                                     .admit_users = 1,
                                     .item_ttl_ms = 1000000,
                                     .user_ttl_ms = 500000});
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    rows_close(&rows);
    columns_close(&set);
    return 0;
}

static int64_t user(uint64_t n, int64_t ts_ms)
{
    const struct id id = core_id("u", n);
    return rows_user(&rows, &id, ts_ms);
}

static int64_t item(uint64_t n, int64_t ts_ms)
{
    const struct id id = core_id("i", n);
    return rows_item(&rows, &id, ts_ms);
}

static void assert_title(uint32_t row, const char *expected)
{
    const struct text title = rows_title(&rows, row);
    assert_int_equal(title.size, strlen(expected));
    if (title.size)
        assert_memory_equal(title.bytes, expected, title.size);
}

static void rows_come_with_sightings_and_parameters_with_rows(void **state)
{
    (void)state;
    assert_int_equal(item(1, 0), ROW_NONE);
    assert_int_equal(item(1, 0), 0);
    assert_int_equal(user(1, 0), 0);
    float v[5], unseen[5];
    const struct id id = core_id("i", 1);
    two_tower_items(rows.model, 1, (const uint32_t[]){0}, v);
    two_tower_unseen_item(rows.model, &id, unseen);
    assert_memory_equal(v, unseen, 4 * sizeof(float));
    assert_true(v[0] != 0);
    assert_int_equal(two_tower_tables(rows.model)->user_vector.n, 1);
}

static void a_catalogue_record_makes_the_row_and_its_title(void **state)
{
    (void)state;
    assert_int_equal(rows_describe_item(&rows, core_item(&e, 0, 7, "The seventh", false)), 0);
    assert_int_equal(item(7, 0), 0);
    assert_title(0, "The seventh");
    assert_int_equal(
        rows_describe_item(&rows, core_item(&e, 0, 7, "Longer than the seventh was", 0)), 0);
    assert_title(0, "Longer than the seventh was");
    rows_describe_item(&rows, core_item(&e, 0, 7, NULL, false));
    assert_title(0, "");
    assert_title(299, ""); // never made
}

static void a_long_title_is_cut_between_characters(void **state)
{
    (void)state;
    char text[TITLE_BYTES_MAX + 3];
    memset(text, 'a', sizeof text);
    memcpy(text + TITLE_BYTES_MAX - 1, "\xc3\xa9\0", 3); // one character over the limit
    rows_describe_item(&rows, core_item(&e, 0, 7, text, false));
    assert_int_equal(rows_title(&rows, 0).size, TITLE_BYTES_MAX - 1);
    memcpy(text + TITLE_BYTES_MAX - 2, "\xc3\xa9x", 4);
    rows_describe_item(&rows, core_item(&e, 0, 7, text, false));
    assert_int_equal(rows_title(&rows, 0).size, TITLE_BYTES_MAX);
}

static void what_leaves_takes_its_title_and_history_along(void **state)
{
    (void)state;
    rows_describe_item(&rows, core_item(&e, TEST_START_MS, 7, "seven", false));
    user(1, TEST_START_MS);
    user(2, TEST_START_MS + 400000);
    history_add(&rows.history, 0, (struct history_entry){.item = 0, .generation = 1, .ts_ms = 5});
    history_add(&rows.history, 1, (struct history_entry){.item = 0, .generation = 1, .ts_ms = 5});
    uint32_t found[4];
    uint8_t actions[4], gaps[4];
    struct history_walk walk = {found, actions, gaps, NULL, 0};
    assert_int_equal(history_before(&rows.history, 0, 10, &rows.items, 4, &walk), 1);
    assert_int_equal(rows_expire(&rows, TEST_START_MS + 500000), 0);
    assert_int_equal(rows_expire(&rows, TEST_START_MS + 500001), 1); // the first user
    assert_int_equal(history_before(&rows.history, 0, 10, &rows.items, 4, &walk), 0);
    assert_int_equal(history_before(&rows.history, 1, 10, &rows.items, 4, &walk), 1);
    assert_title(0, "seven");
    assert_int_equal(rows_expire(&rows, TEST_START_MS + 1000001), 2);
    assert_title(0, "");
    // The next owner of the row begins with nothing.
    assert_int_equal(user(3, TEST_START_MS), 1);
    assert_int_equal(history_before(&rows.history, 1, 10, &rows.items, 4, &walk), 0);
}

static void a_reference_is_valid_while_the_owner_is_the_same(void **state)
{
    (void)state;
    item(1, 0);
    item(1, 0);
    const struct row_ref ref = rows_item_ref(&rows, 0);
    assert_true(rows_valid(&rows.items, ref));
    rows_remove_item(&rows, 0);
    assert_false(rows_valid(&rows.items, ref));
    item(2, 0);
    assert_int_equal(item(2, 0), 0);
    assert_false(rows_valid(&rows.items, ref));
    assert_true(rows_valid(&rows.items, rows_item_ref(&rows, 0)));
}

static void a_row_handed_out_again_starts_as_its_new_id_says(void **state)
{
    (void)state;
    item(1, 0);
    item(1, 0);
    memset(column_edit((struct column *)(uintptr_t)&two_tower_tables(rows.model)->item_vector, 0),
           1, 4 * sizeof(float));
    rows_remove_item(&rows, 0);
    item(2, 0);
    item(2, 0);
    float v[5], unseen[5];
    const struct id id = core_id("i", 2);
    two_tower_items(rows.model, 1, (const uint32_t[]){0}, v);
    two_tower_unseen_item(rows.model, &id, unseen);
    assert_memory_equal(v, unseen, sizeof v);
}

// Ten million items and as many users come and go through tables of 10,000 rows, with titles and
// histories of all sizes: what is there after the first tenth is enough for the rest.
static void ids_that_come_and_go_for_ever_take_no_more_memory(void **state)
{
    enum { IDS = 10000000 / CORE_SLOWNESS, ROWS = 10000, EVERY = 16 };
    (void)state;
    static char title[] = "A title that may be as long as sixty-four bytes, not one of more";
    struct rng rng = {23, 0};
    long early = 0;
    rows_close(&rows);
    columns_close(&set);
    open_with(&(struct rows_options){.items_max = ROWS,
                                     .users_max = ROWS,
                                     .admit_items = 1,
                                     .admit_users = 1,
                                     .item_ttl_ms = 5000,
                                     .user_ttl_ms = 4000});
    for (uint64_t i = 0; i < IDS; i++) {
        const int64_t now_ms = TEST_START_MS + (int64_t)i;
        int64_t row = i % 4 ? item(i, now_ms) : ROW_NONE;
        if (i % 4 == 0) {
            core_item(&e, now_ms, i, title, false);
            e.event.title.size = 1 + (uint32_t)rng_below(&rng, 64);
            row = rows_describe_item(&rows, &e.event);
        }
        const int64_t who = user(i, now_ms);
        for (uint64_t k = rng_below(&rng, 6); row >= 0 && who >= 0 && k > 0; k--)
            history_add(&rows.history, (uint32_t)who,
                        (struct history_entry){.item = (uint32_t)row, .ts_ms = now_ms + (int)k});
        if (i % EVERY == 0)
            rows_expire(&rows, now_ms);
        if (i == IDS / 10)
            early = core_resident_kb();
    }
    const struct id_table_state *items = id_table_state(&rows.items);
    const struct id_table_state *users = id_table_state(&rows.users);
    assert_int_equal(items->refused_full + users->refused_full + rows.history.refused_full, 0);
    assert_int_equal(items->admitted, IDS);
    assert_int_equal(items->expired, IDS - items->live);
    assert_true(items->live < ROWS && users->live < ROWS);
    core_assert_no_growth(early);
}

static void rows_restored_from_columns_are_found(void **state)
{
    (void)state;
    const struct two_tower_options model = core_model();
    for (uint64_t i = 0; i < 50; i++) {
        user(i, 0);
        rows_describe_item(&rows, core_item(&e, 0, i, i % 2 ? "odd" : NULL, false));
    }
    struct columns other_set;
    struct rows other;
    struct core_copy copy;
    assert_int_equal(columns_open(&other_set, 0), 0);
    assert_int_equal(
        rows_open(&other, &other_set, &(struct rows_options){300, 300, 2, 1, 0, 0}, &model), 0);
    core_copy_take(&copy, &set);
    core_copy_restore(&copy, &other_set);
    assert_int_equal(rows_rebuild(&other), 0);
    for (uint64_t i = 0; i < 50; i++) {
        const struct id u = core_id("u", i), it = core_id("i", i);
        assert_int_equal(rows_user(&other, &u, 0), i);
        assert_int_equal(rows_item(&other, &it, 0), i);
        assert_int_equal(rows_title(&other, (uint32_t)i).size, i % 2 ? 3 : 0);
    }
    core_copy_assert_equal(&copy, &other_set, NULL, NULL);
    core_copy_free(&copy);
    rows_close(&other);
    columns_close(&other_set);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(rows_come_with_sightings_and_parameters_with_rows),
        TEST(a_catalogue_record_makes_the_row_and_its_title),
        TEST(a_long_title_is_cut_between_characters),
        TEST(what_leaves_takes_its_title_and_history_along),
        TEST(a_reference_is_valid_while_the_owner_is_the_same),
        TEST(a_row_handed_out_again_starts_as_its_new_id_says),
        TEST(ids_that_come_and_go_for_ever_take_no_more_memory),
        TEST(rows_restored_from_columns_are_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
