// SPDX-License-Identifier: Apache-2.0
#include "model/rng.h"

#include <math.h>

#include "tests/unit/core_fixture.h"

static void it_is_splitmix64(void **state)
{
    (void)state;
    // The first outputs of Vigna's splitmix64.c from the states 0 and 1234567.
    assert_int_equal(rng_at(0, 0), UINT64_C(0xe220a8397b1dcdaf));
    assert_int_equal(rng_at(0, 1), UINT64_C(0x6e789e6aa1b965f4));
    assert_int_equal(rng_at(0, 2), UINT64_C(0x06c45d188009454f));
    assert_int_equal(rng_at(1234567, 0), UINT64_C(6457827717110365317));
    assert_int_equal(rng_at(1234567, 4), UINT64_C(16408922859458223821));
}

static void a_run_that_starts_in_the_middle_draws_the_same(void **state)
{
    (void)state;
    struct rng whole = {42, 0}, late = {42, 50};
    for (int i = 0; i < 50; i++)
        rng_next(&whole);
    for (int i = 0; i < 50; i++)
        assert_int_equal(rng_next(&whole), rng_next(&late));
}

static void keys_of_other_purposes_give_other_streams(void **state)
{
    (void)state;
    enum { PURPOSES = 100 };
    uint64_t first[PURPOSES];
    for (uint64_t p = 0; p < PURPOSES; p++) {
        first[p] = rng_at(rng_key(7, p), 0);
        assert_int_not_equal(first[p], rng_at(rng_key(8, p), 0));
        for (uint64_t q = 0; q < p; q++)
            assert_int_not_equal(first[p], first[q]);
    }
}

static void numbers_below_n_are_uniform(void **state)
{
    (void)state;
    enum { N = 7, DRAWS = 70000 };
    int count[N] = {0};
    struct rng r = {3, 0};
    for (int i = 0; i < DRAWS; i++) {
        const uint64_t x = rng_below(&r, N);
        assert_true(x < N);
        count[x]++;
    }
    // Four standard deviations of a binomial with p = 1/7: 4 * sqrt(70000 * 6 / 49) = 370.
    for (int i = 0; i < N; i++)
        assert_true(abs(count[i] - DRAWS / N) < 370);
    assert_int_equal(rng_below(&r, 1), 0);
}

static void floats_fill_their_half_open_range_uniformly(void **state)
{
    (void)state;
    enum { N = 20000 };
    static float x[N];
    struct rng r = {4, 0};
    double sum = 0, squares = 0;
    rng_fill_uniform(&r, x, N, -2, 4);
    for (int i = 0; i < N; i++) {
        assert_true(x[i] >= -2 && x[i] < 4);
        sum += (double)x[i];
        squares += ((double)x[i] - 1) * ((double)x[i] - 1);
    }
    assert_true(fabs(sum / N - 1) < 0.05);     // four deviations of the mean of N
    assert_true(fabs(squares / N - 3) < 0.08); // 6^2 / 12
    assert_int_equal(r.next, N);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_is_splitmix64),
        cmocka_unit_test(a_run_that_starts_in_the_middle_draws_the_same),
        cmocka_unit_test(keys_of_other_purposes_give_other_streams),
        cmocka_unit_test(numbers_below_n_are_uniform),
        cmocka_unit_test(floats_fill_their_half_open_range_uniformly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
