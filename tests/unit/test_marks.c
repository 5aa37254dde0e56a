// SPDX-License-Identifier: Apache-2.0
#include "model/marks.h"

#include "model/rng.h"
#include "tests/unit/core_fixture.h"

enum { MAX = 3000 };

// Mentions n rows drawn from below `below`, some of them often, and compares with a list.
static void mention(struct marks *m, struct rng *rng, int n, uint64_t below)
{
    static uint32_t rows[MAX], expected[MAX];
    int count = 0, known = 0;
    marks_clear(m);
    for (int k = 0; k < n; k++) {
        const uint32_t row = (uint32_t)rng_below(rng, below);
        int slot = 0;
        while (slot < known && expected[slot] != row)
            slot++;
        assert_int_equal(marks_find(m, row), slot == known ? MARKS_NONE : slot);
        if (slot == known)
            expected[known++] = row;
        assert_int_equal(marks_slot(m, row, rows, &count), slot);
        assert_int_equal(count, known);
        assert_int_equal(marks_find(m, row), slot);
    }
    assert_memory_equal(rows, expected, (size_t)known * sizeof *rows);
    for (int slot = 0; slot < known; slot++) // wherever they went when it grew
        assert_int_equal(marks_find(m, expected[slot]), slot);
}

static void rows_have_slots_in_the_order_of_their_first_mention(void **state)
{
    (void)state;
    struct rng rng = {3, 0};
    struct marks m;
    assert_true(marks_open(&m, MAX));
    static const uint64_t below[] = {1, 2, 300, 100000, UINT32_MAX};
    for (size_t i = 0; i < sizeof below / sizeof *below; i++)
        for (int n = 1; n <= MAX; n = 3 * n + 1)
            mention(&m, &rng, n, below[i]);
    mention(&m, &rng, MAX, UINT32_MAX); // as many as it has room for, all different
    marks_close(&m);
}

static void emptied_it_knows_no_row(void **state)
{
    (void)state;
    uint32_t rows[MAX];
    struct marks m;
    assert_true(marks_open(&m, MAX));
    assert_int_equal(marks_find(&m, 0), MARKS_NONE); // before the first time, too
    for (int round = 0; round < 3; round++) {
        int n = 0;
        if (round == 2)
            m.stamp = UINT32_MAX; // after 2^32 steps what is old must not look new
        marks_clear(&m);
        for (uint32_t row = 0; row < MAX; row++)
            assert_int_equal(marks_find(&m, row * 7), MARKS_NONE);
        for (uint32_t row = 0; row < MAX; row++)
            assert_int_equal(marks_slot(&m, row * 7, rows, &n), row);
    }
    marks_close(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_have_slots_in_the_order_of_their_first_mention),
        cmocka_unit_test(emptied_it_knows_no_row),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
