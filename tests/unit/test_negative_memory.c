// SPDX-License-Identifier: Apache-2.0
#include "model/negative_memory.h"

// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on
#include <math.h>
#include <string.h>

#include "model/id_table.h"

enum { CAPACITY = 8, D = 2, ROWS = 16 };

static struct {
    struct negative_memory memory;
    struct negative_memory_options o;
    struct negative_entry entries[CAPACITY];
    float vectors[CAPACITY][D];
    uint32_t places[CAPACITY];
} f;

static int setup(void **state)
{
    (void)state;
    memset(&f, 0, sizeof f);
    f.o.capacity = CAPACITY;
    return 0;
}

static void push(uint64_t step, uint32_t row)
{
    const uint32_t place = negative_memory_push(&f.memory, &f.o);
    f.entries[place] = (struct negative_entry){.step = step, .row = row};
    f.vectors[place][0] = (float)row;
    f.vectors[place][1] = 1;
}

static int selected(uint64_t step)
{
    return negative_memory_select(&f.memory, &f.o, f.entries, NULL, step, f.places);
}

static uint32_t row_of(int i)
{
    return f.entries[f.places[i]].row;
}

static void the_newest_come_first_and_the_oldest_make_room(void **state)
{
    (void)state;
    assert_int_equal(selected(0), 0);
    for (uint32_t row = 0; row < 3; row++)
        push(1, row);
    assert_int_equal(selected(2), 3);
    assert_true(row_of(0) == 2 && row_of(2) == 0);
    for (uint32_t row = 3; row < 13; row++)
        push(2, row);
    assert_int_equal(selected(3), CAPACITY);
    for (int i = 0; i < CAPACITY; i++)
        assert_int_equal(row_of(i), 12 - i);
    assert_int_equal(f.memory.count, CAPACITY);
}

static void entries_of_too_many_steps_ago_are_left_out(void **state)
{
    (void)state;
    f.o.age_max = 2;
    for (uint32_t i = 0; i < 5; i++)
        push(i, i);
    assert_int_equal(selected(4), 3); // steps 2, 3, 4
    assert_int_equal(row_of(2), 2);
    assert_int_equal(selected(100), 0);
    f.o.age_max = 0;
    assert_int_equal(selected(100), 5);
}

static void nothing_is_used_before_the_warm_up_is_over(void **state)
{
    (void)state;
    f.o.after = 10;
    push(1, 1);
    assert_int_equal(selected(9), 0);
    assert_int_equal(selected(10), 1);
}

static int64_t admit(struct id_table *items, const char *name)
{
    const struct id id = {(uint64_t)name[0] << 56, 1, (uint16_t)strlen(name), ID_STRING, name};
    bool created;
    return id_table_admit(items, &id, 0, &created);
}

static void entries_whose_item_is_gone_or_whose_row_has_a_new_owner_are_left_out(void **state)
{
    const struct id_table_options options = {.names = {"id", "table", "sighting"},
                                             .heap_names = {"text", "free"},
                                             .rows_max = ROWS,
                                             .admit = 1};
    struct columns set;
    struct id_table items;
    (void)state;
    assert_int_equal(columns_open(&set, 0), 0);
    assert_int_equal(id_table_open(&items, &set, &options), 0);
    const char *const names[] = {"a", "b", "c"};
    for (int i = 0; i < 3; i++) {
        const uint32_t row = (uint32_t)admit(&items, names[i]);
        push(1, row);
        f.entries[i].generation = id_table_row(&items, row)->generation;
    }
    const uint32_t gone = f.entries[1].row;
    assert_int_equal(negative_memory_select(&f.memory, &f.o, f.entries, &items, 2, f.places), 3);
    id_table_remove(&items, gone);
    assert_int_equal(negative_memory_select(&f.memory, &f.o, f.entries, &items, 2, f.places), 2);
    assert_true(row_of(0) == f.entries[2].row && row_of(1) == f.entries[0].row);
    assert_int_equal(admit(&items, "d"), gone); // the row is handed out again
    assert_int_equal(negative_memory_select(&f.memory, &f.o, f.entries, &items, 2, f.places), 2);
    f.entries[1].generation = id_table_row(&items, gone)->generation;
    assert_int_equal(negative_memory_select(&f.memory, &f.o, f.entries, &items, 2, f.places), 3);
    id_table_close(&items);
    columns_close(&set);
}

static void an_entry_is_no_negative_of_a_row_whose_item_it_is(void **state)
{
    uint64_t removed[2] = {0};
    (void)state;
    for (uint32_t i = 0; i < 6; i++)
        push(1, i % 3);
    const int n = selected(2); // 2 1 0 2 1 0
    assert_int_equal(negative_memory_remove(f.entries, n, f.places, 1, 61, removed), 2);
    assert_true(removed[0] == UINT64_C(1) << 62 && removed[1] == 2); // columns 62 and 65
    assert_int_equal(negative_memory_remove(f.entries, n, f.places, 9, 61, removed), 0);
}

// Every item is now `by` away from where the memory has it; up to 4 are compared.
static void adapt(float by)
{
    const float *then[4], *now[4];
    float rows[4][D];
    const int n = selected(2), looks = n < 4 ? n : 4;
    for (int k = 0; k < looks; k++) {
        const uint32_t place = f.places[k];
        rows[k][0] = (float)f.entries[place].row;
        rows[k][1] = 1 + by;
        then[k] = f.vectors[place];
        now[k] = rows[k];
    }
    negative_memory_adapt(&f.memory, &f.o, looks, D, then, now);
}

static void drift_shrinks_the_memory_and_rest_brings_it_back(void **state)
{
    (void)state;
    f.o.drift_max = 0.1f;
    for (uint32_t i = 0; i < CAPACITY; i++)
        push(1, i);
    adapt(0);
    assert_true(f.memory.drift == 0 && f.memory.spare == 0);
    for (int used = CAPACITY / 2; used >= 1; used /= 2) {
        adapt(10);
        assert_int_equal(selected(2), used);
        assert_int_equal(row_of(0), CAPACITY - 1); // it is the oldest that go
    }
    adapt(10);
    assert_int_equal(selected(2), 1); // one is left to look at
    for (int used = 2; used <= CAPACITY; used++) {
        adapt(0);
        assert_int_equal(selected(2), used);
    }
    adapt(0);
    assert_int_equal(selected(2), CAPACITY);
    adapt(NAN);
    assert_int_equal(selected(2), CAPACITY / 2);
    f.o.drift_max = 0; // not watched
    adapt(NAN);
    assert_int_equal(selected(2), CAPACITY / 2);
}

static void drift_is_what_was_worked_by_hand(void **state)
{
    // Of length 5 now; 1 away and 2 away.
    const float newest[] = {0, 5}, older[] = {3, 4}, was_newest[] = {1, 5}, was_older[] = {3, 2};
    const float *const then[] = {was_newest, was_older}, *const now[] = {newest, older};
    (void)state;
    f.o.drift_max = 1;
    push(1, 6), push(1, 9);
    negative_memory_adapt(&f.memory, &f.o, 2, D, then, now);
    assert_true(fabsf(f.memory.drift - 0.3f) < 1e-6f);
    negative_memory_adapt(&f.memory, &f.o, 1, D, then, now);
    assert_true(fabsf(f.memory.drift - 0.2f) < 1e-6f);
    negative_memory_adapt(&f.memory, &f.o, 0, D, NULL, NULL);
    assert_true(fabsf(f.memory.drift - 0.2f) < 1e-6f); // nothing was compared
}

static void a_memory_that_is_not_full_shrinks_by_what_it_holds(void **state)
{
    (void)state;
    f.o.drift_max = 0.1f;
    for (uint32_t i = 0; i < 4; i++)
        push(1, i);
    adapt(10);
    assert_int_equal(selected(2), 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(the_newest_come_first_and_the_oldest_make_room, setup),
        cmocka_unit_test_setup(entries_of_too_many_steps_ago_are_left_out, setup),
        cmocka_unit_test_setup(nothing_is_used_before_the_warm_up_is_over, setup),
        cmocka_unit_test_setup(entries_whose_item_is_gone_or_whose_row_has_a_new_owner_are_left_out,
                               setup),
        cmocka_unit_test_setup(an_entry_is_no_negative_of_a_row_whose_item_it_is, setup),
        cmocka_unit_test_setup(drift_shrinks_the_memory_and_rest_brings_it_back, setup),
        cmocka_unit_test_setup(drift_is_what_was_worked_by_hand, setup),
        cmocka_unit_test_setup(a_memory_that_is_not_full_shrinks_by_what_it_holds, setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
