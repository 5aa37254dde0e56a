// SPDX-License-Identifier: Apache-2.0
#include "daemon/pace.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include "daemon/clock.h"

// Four shares of a twentieth of a second each: 25 impressions a share.
enum { CATALOGUE, STREAM, PARTITIONS };
enum { CATALOGUE_RECORDS = 5, STREAM_RECORDS = 100, SHARES = 4, SHARE = STREAM_RECORDS / SHARES };
static const double SECONDS = 0.2;

// A source that numbers its records, and fails when it is told to.
static struct inner {
    struct source source;
    int64_t at[PARTITIONS];
    int fails, closed;
} inner;

static const int64_t ends[PARTITIONS] = {CATALOGUE_RECORDS, STREAM_RECORDS};

static int inner_bounds(struct source *s, int64_t *first, int64_t *end)
{
    (void)s;
    for (int p = 0; p < PARTITIONS; p++) {
        first[p] = 0;
        end[p] = ends[p];
    }
    return inner.fails;
}

static int inner_start(struct source *s, const int64_t *next, const int64_t *stop)
{
    (void)s;
    (void)stop;
    memcpy(inner.at, next, sizeof inner.at);
    return 0;
}

static int inner_read(struct source *s, int p, int max, struct record *records)
{
    int n = 0;
    if (inner.fails) {
        snprintf(s->error, sizeof s->error, "the disk is gone");
        return inner.fails;
    }
    while (n < max && inner.at[p] < ends[p])
        records[n++] = (struct record){.offset = inner.at[p]++};
    return n;
}

static int64_t inner_position(const struct source *s, int p)
{
    (void)s;
    return inner.at[p];
}

static bool inner_at_end(const struct source *s, int p)
{
    (void)s;
    return inner.at[p] == ends[p];
}

static int inner_wait(struct source *s, int timeout_ms)
{
    (void)s;
    (void)timeout_ms;
    return 0;
}

static void inner_close(struct source *s)
{
    (void)s;
    inner.closed++;
}

static const struct source_ops inner_ops = {.name = "inner",
                                            .bounds = inner_bounds,
                                            .start = inner_start,
                                            .read = inner_read,
                                            .position = inner_position,
                                            .at_end = inner_at_end,
                                            .wait = inner_wait,
                                            .close = inner_close};

static struct source *paced;

static int setup(void **state)
{
    static struct source_partition partitions[PARTITIONS] = {
        [CATALOGUE] = {"items", TOPIC_ITEMS, 0}, [STREAM] = {"impressions", TOPIC_IMPRESSIONS, 0}};
    static const int64_t next[PARTITIONS], stop[PARTITIONS] = {SOURCE_UNBOUNDED, SOURCE_UNBOUNDED};
    (void)state;
    inner = (struct inner){
        .source = {.ops = &inner_ops, .n_partitions = PARTITIONS, .partitions = partitions}};
    assert_int_equal(pace_open(&paced, &inner.source, SECONDS), 0);
    assert_int_equal(paced->ops->start(paced, next, stop), 0);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    paced->ops->close(paced);
    assert_int_equal(inner.closed, 1);
    return 0;
}

static struct record records[2 * STREAM_RECORDS];

static int read_all(int p)
{
    return paced->ops->read(paced, p, 2 * STREAM_RECORDS, records);
}

static void the_catalogue_is_there_at_once_and_the_stream_is_not(void **state)
{
    (void)state;
    assert_int_equal(read_all(CATALOGUE), CATALOGUE_RECORDS);
    assert_true(paced->ops->at_end(paced, CATALOGUE));
    assert_int_equal(read_all(STREAM), 0);
    assert_false(paced->ops->at_end(paced, STREAM));
}

static void every_look_finds_one_share_until_all_has_been_read(void **state)
{
    (void)state;
    const double begun = clock_s(CLOCK_MONOTONIC);
    for (int share = 0; share < SHARES; share++) {
        assert_int_equal(paced->ops->wait(paced, 1000), 0);
        assert_int_equal(read_all(STREAM), SHARE);
        for (int i = 0; i < SHARE; i++)
            assert_int_equal(records[i].offset, share * SHARE + i);
        assert_int_equal(read_all(STREAM), 0);
    }
    assert_true(clock_s(CLOCK_MONOTONIC) - begun >= SECONDS);
    assert_true(paced->ops->at_end(paced, STREAM));
}

static void a_reader_that_is_late_still_gets_one_share_at_a_time(void **state)
{
    (void)state;
    poll(NULL, 0, (int)(SECONDS * 1000) + 20);
    const double begun = clock_s(CLOCK_MONOTONIC);
    for (int share = 0; share < SHARES; share++) {
        assert_int_equal(paced->ops->wait(paced, 1000), 0);
        assert_int_equal(read_all(STREAM), SHARE);
    }
    assert_true(clock_s(CLOCK_MONOTONIC) - begun < SECONDS); // nothing was waited for
}

static void a_failure_of_the_other_comes_with_its_sentence(void **state)
{
    (void)state;
    inner.fails = -EIO;
    assert_int_equal(read_all(CATALOGUE), -EIO);
    assert_string_equal(paced->error, "the disk is gone");
}

static void a_source_without_bounds_is_closed_and_refused(void **state)
{
    (void)state;
    struct source *s;
    inner = (struct inner){.source = {.ops = &inner_ops, .n_partitions = PARTITIONS},
                           .fails = -EHOSTUNREACH};
    assert_int_equal(pace_open(&s, &inner.source, SECONDS), -EHOSTUNREACH);
    assert_int_equal(inner.closed, 1);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(the_catalogue_is_there_at_once_and_the_stream_is_not),
        TEST(every_look_finds_one_share_until_all_has_been_read),
        TEST(a_reader_that_is_late_still_gets_one_share_at_a_time),
        TEST(a_failure_of_the_other_comes_with_its_sentence),
        cmocka_unit_test(a_source_without_bounds_is_closed_and_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
