// SPDX-License-Identifier: Apache-2.0
#include "daemon/publish_guard.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

static const struct guard_options defaults = {.recall = 0.98,
                                              .events = 1000,
                                              .errors = 3,
                                              .norm_max = 1000,
                                              .norm_jump = 4,
                                              .rows_share = 0.5};

// A healthy snapshot, and a last one like it.
static struct guard_figures now, last;
static struct guard_options options;
static char sentence[512];

static int setup(void **state)
{
    (void)state;
    options = defaults;
    now = (struct guard_figures){.items = 100,
                                 .users = 1000,
                                 .events = 7000,
                                 .recall_100 = 0.6,
                                 .popularity_recall_100 = 0.25};
    now.norms[GUARD_ITEM] = (struct guard_norms){.n = 100, .mean = 2, .max = 3};
    now.norms[GUARD_ITEM_LAST] = (struct guard_norms){.n = 100, .mean = 0.1, .max = 5};
    now.norms[GUARD_USER] = (struct guard_norms){.n = 1000, .mean = 1.5, .max = 2.5};
    now.norms[GUARD_DENSE] = (struct guard_norms){.n = 242, .mean = 1.3, .max = 9};
    last = now;
    return 0;
}

static enum guard_reason decide(void)
{
    *sentence = 0;
    return guard_decide(&options, &now, now.items, now.users, &last, sentence, sizeof sentence);
}

static void expect(enum guard_reason expected, const char *part)
{
    const enum guard_reason reason = decide();
    if (reason != expected || !strstr(sentence, part))
        fail_msg("%d instead of %d: '%s'", reason, expected, sentence);
}

static void a_snapshot_like_the_last_one_may_leave(void **state)
{
    (void)state;
    expect(GUARD_REASONS, "");
    assert_int_equal(guard_decide(&options, &now, 100, 1000, NULL, sentence, sizeof sentence),
                     GUARD_REASONS);
}

static void missing_rows_are_refused_without_a_last_one_too(void **state)
{
    (void)state;
    options.rows_share = 0;
    assert_int_equal(guard_decide(&options, &now, 101, 1000, NULL, sentence, sizeof sentence),
                     GUARD_ROWS);
    assert_string_equal(sentence, "100 items where the table has 101");
    assert_int_equal(guard_decide(&options, &now, 100, 999, NULL, sentence, sizeof sentence),
                     GUARD_ROWS);
    assert_string_equal(sentence, "1000 users where the table has 999");
}

static void fewer_rows_than_the_share_are_refused(void **state)
{
    (void)state;
    last.items = 200; // half of them is allowed
    expect(GUARD_REASONS, "");
    last.items = 201;
    expect(GUARD_ROWS, "100 items where the last good snapshot has 201; the least share is 0.5");
    options.rows_share = 0;
    expect(GUARD_REASONS, "");
    options.rows_share = 0.5;
    last.items = 100;
    last.users = 2001;
    expect(GUARD_ROWS, "1000 users where");
}

static void a_row_beyond_the_bound_is_refused_without_a_last_one_too(void **state)
{
    (void)state;
    for (int a = 0; a < GUARD_ARRAYS; a++) {
        setup(NULL);
        now.norms[a].max = 1000;
        expect(GUARD_REASONS, "");
        now.norms[a].max = 1000.5;
        expect(GUARD_NORM, guard_array_names[a]);
        assert_int_equal(guard_decide(&options, &now, 100, 1000, NULL, sentence, sizeof sentence),
                         GUARD_NORM);
        assert_non_null(strstr(sentence, "1000.5 long; the limit is 1000"));
        options.norm_max = 0;
        expect(GUARD_REASONS, "");
    }
}

static void a_mean_that_jumps_is_refused_and_one_that_grows_from_nothing_is_not(void **state)
{
    (void)state;
    now.norms[GUARD_USER].mean = 6; // 4 times 1.5
    expect(GUARD_REASONS, "");
    now.norms[GUARD_USER].mean = 6.01;
    expect(GUARD_NORM_JUMP, "a row of user is 6.01 where the last good snapshot has 1.5");
    options.norm_jump = 0;
    expect(GUARD_REASONS, "");
    options.norm_jump = 4;
    // Contexts begin at zero: up to 4 times 1 is growth.
    now.norms[GUARD_USER].mean = 1.5;
    last.norms[GUARD_ITEM_CONTEXT] = (struct guard_norms){.n = 100, .mean = 0.01, .max = 0.5};
    now.norms[GUARD_ITEM_CONTEXT] = (struct guard_norms){.n = 100, .mean = 4, .max = 5};
    expect(GUARD_REASONS, "");
    now.norms[GUARD_ITEM_CONTEXT].mean = 4.01;
    expect(GUARD_NORM_JUMP, "item_context");
    // Of the last elements, bias and prior, only the bound is looked at.
    setup(NULL);
    now.norms[GUARD_ITEM_LAST].mean = 900;
    expect(GUARD_REASONS, "");
    // An array that the last one did not have has nothing to jump from.
    last.norms[GUARD_ITEM].n = 0;
    now.norms[GUARD_ITEM].mean = 500;
    expect(GUARD_REASONS, "");
}

static void a_table_that_collapses_is_refused_and_one_that_fills_with_new_rows_is_not(void **state)
{
    (void)state;
    now.norms[GUARD_ITEM].mean = 0.5; // all together 50, a quarter of 200
    expect(GUARD_REASONS, "");
    now.norms[GUARD_ITEM].mean = 0.49;
    expect(GUARD_NORM_JUMP, "all rows of item together are 49 long where");
    options.norm_jump = 0;
    expect(GUARD_REASONS, "");
    // Ten times the items, the new ones short: the mean falls and the sum does not.
    options.norm_jump = 4;
    now.items = 1000;
    now.norms[GUARD_ITEM].n = 1000;
    expect(GUARD_REASONS, "");
}

// P = 0.6 over 7000 events, p over 7000: at p = 0.5759, s^2 = (0.24 + 0.24424) / 7000 = 6.9177e-5,
// s = 0.0083173, and 3 s = 0.024952. 0.98 P = 0.588.
static void
recall_is_refused_when_it_fell_by_more_than_a_share_and_by_more_than_chance(void **state)
{
    (void)state;
    now.recall_100 = 0.589; // within the share
    expect(GUARD_REASONS, "");
    now.recall_100 = 0.5759; // 0.0241 below: chance
    expect(GUARD_REASONS, "");
    now.recall_100 = 0.5749; // 0.0251 below
    expect(GUARD_RECALL, "recall@100 is 0.5749 where the last good snapshot has 0.6000 and 0.6000 "
                         "is expected");
    assert_non_null(strstr(sentence, "3.0 standard errors"));
    options.errors = 3.1;
    expect(GUARD_REASONS, "");
    options.errors = 0;
    now.recall_100 = 0.5879;
    expect(GUARD_RECALL, "");
    options.recall = 0;
    now.recall_100 = 0;
    expect(GUARD_REASONS, "");
}

static void recall_is_not_compared_with_too_few_events_on_either_side(void **state)
{
    (void)state;
    now.recall_100 = 0.1;
    now.events = 999;
    expect(GUARD_REASONS, "");
    now.events = 1000;
    expect(GUARD_RECALL, "");
    last.events = 999;
    expect(GUARD_REASONS, "");
    last.events = 1000;
    expect(GUARD_RECALL, "");
    // Nothing was measured at all: there is nothing to compare, whatever the option says.
    options.events = 0;
    last.events = 0;
    expect(GUARD_REASONS, "");
}

// ml1m at its end: 0.6571 falls to 0.5977 as popularity falls from 0.2497 to 0.2288.
static void a_stream_that_gets_harder_is_no_reason(void **state)
{
    (void)state;
    last.recall_100 = 0.6571;
    now.recall_100 = 0.5977;
    last.popularity_recall_100 = 0.2497;
    now.popularity_recall_100 = 0.2288;
    expect(GUARD_REASONS, "");
    // Expected is 0.6571 x 0.2288 / 0.2497 = 0.6021. With 0.8397 P (1 - P) = 0.18920 and p (1 - p)
    // = 0.24444, s = 0.0078708 at p = 0.5757, and 0.0264 is 3.4 of it.
    now.recall_100 = 0.5757;
    expect(GUARD_RECALL, "0.6021 is expected");
    assert_non_null(strstr(sentence, "3.4 standard errors"));
    // One that gets easier is expected to be what it was.
    now.recall_100 = 0.6571;
    now.popularity_recall_100 = 0.5;
    expect(GUARD_REASONS, "");
    // Without a hit of popularity there is nothing to scale by.
    last.popularity_recall_100 = now.popularity_recall_100 = 0;
    expect(GUARD_REASONS, "");
    now.recall_100 = 0.5977;
    expect(GUARD_RECALL, "");
}

static void lengths_are_summed_up_and_what_is_not_finite_is_told(void **state)
{
    (void)state;
    static struct guard_sums sums;
    struct guard_norms norms;
    guard_norms_of(&sums, &norms);
    assert_int_equal(norms.n, 0);
    assert_false(guard_row(&sums, NAN));
    assert_false(guard_row(&sums, INFINITY));
    for (int i = 0; i <= 100; i++) // lengths 0, 0.1 .. 10
        assert_true(guard_row(&sums, (float)(i * i) / 100));
    guard_norms_of(&sums, &norms);
    assert_int_equal(norms.n, 101);
    assert_true(fabs(norms.mean - 5) < 1e-6);
    assert_true(fabs(norms.max - 10) < 1e-6);
    static const double exact[] = {0.5, 5, 9.5};
    for (int q = 0; q < GUARD_QUANTILES; q++)
        if (fabs(norms.quantile[q] / exact[q] - 1) > 0.031)
            fail_msg("quantile %g is %g", guard_quantile_at[q], norms.quantile[q]);
    // The ends of what a float can hold.
    assert_true(guard_row(&sums, 1e-45f));
    assert_true(guard_row(&sums, 3e38f));
    static struct guard_sums zeros;
    for (int i = 0; i < 3; i++)
        assert_true(guard_row(&zeros, 0));
    guard_norms_of(&zeros, &norms);
    assert_true(norms.mean == 0 && norms.max == 0 && norms.quantile[GUARD_QUANTILES - 1] == 0);
}

static void figures_are_read_back_from_the_manifest(void **state)
{
    (void)state;
    struct guard_figures read;
    char manifest[4096];
    now.norms[GUARD_ITEM].quantile[0] = 0.1;
    now.norms[GUARD_ITEM].mean = 1.0 / 3;
    char *norms = guard_norms_text(now.norms);
    assert_non_null(norms);
    static const char format[] =
        "{\"items\":100,\"users\":1000,\"metrics\":{\"window\":7000,\"recall@100\":0.6,"
        "\"popularity_recall@100\":0.25}%s%s}";
    snprintf(manifest, sizeof manifest, format, ",\"norms\":", norms);
    assert_true(guard_figures_read(&read, manifest));
    assert_memory_equal(&read, &now, sizeof now);
    // An older snapshot has no norms, a strange one strange ones: neither is compared with.
    snprintf(manifest, sizeof manifest, format, "", "");
    assert_false(guard_figures_read(&read, manifest));
    static const char *const strange[] = {"7", "{\"item\":3}", "{\"item\":{\"rows\":-1}}",
                                          "{\"item\":{\"rows\":1,\"mean\":\"x\"}}"};
    for (size_t i = 0; i < sizeof strange / sizeof *strange; i++) {
        snprintf(manifest, sizeof manifest, format, ",\"norms\":", strange[i]);
        assert_false(guard_figures_read(&read, manifest));
    }
    assert_false(guard_figures_read(&read, "no JSON"));
    free(norms);
}

#define TEST(name) cmocka_unit_test_setup(name, setup)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_snapshot_like_the_last_one_may_leave),
        TEST(missing_rows_are_refused_without_a_last_one_too),
        TEST(fewer_rows_than_the_share_are_refused),
        TEST(a_row_beyond_the_bound_is_refused_without_a_last_one_too),
        TEST(a_mean_that_jumps_is_refused_and_one_that_grows_from_nothing_is_not),
        TEST(a_table_that_collapses_is_refused_and_one_that_fills_with_new_rows_is_not),
        TEST(recall_is_refused_when_it_fell_by_more_than_a_share_and_by_more_than_chance),
        TEST(recall_is_not_compared_with_too_few_events_on_either_side),
        TEST(a_stream_that_gets_harder_is_no_reason),
        TEST(lengths_are_summed_up_and_what_is_not_finite_is_told),
        TEST(figures_are_read_back_from_the_manifest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
