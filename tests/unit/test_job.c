// SPDX-License-Identifier: Apache-2.0
#include "daemon/job.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include "daemon/clock.h"
#include "model/arena.h"

// One partition of engagements, empty, of which no end is known: what a new topic is.
static struct empty {
    struct source source;
    struct source_partition partition;
    int read_fails;
    int records; // that it brings after all: not JSON
} empty;

static int empty_bounds(struct source *s, int64_t *first, int64_t *end)
{
    (void)s;
    *first = *end = 0;
    return 0;
}

static int empty_start(struct source *s, const int64_t *next, const int64_t *stop)
{
    (void)s;
    (void)next;
    (void)stop;
    return 0;
}

static int empty_read(struct source *s, int p, int max, struct record *records)
{
    (void)p;
    (void)max;
    if (empty.records > 0) {
        empty.records--;
        records[0] = (struct record){.value = "no", .value_size = 2, .broker_ts_ms = -1};
        return 1;
    }
    snprintf(s->error, sizeof s->error, "the broker is gone");
    return empty.read_fails;
}

static int64_t empty_position(const struct source *s, int p)
{
    (void)s;
    (void)p;
    return 0;
}

static bool empty_at_end(const struct source *s, int p)
{
    (void)s;
    (void)p;
    return true;
}

static int empty_wait(struct source *s, int timeout_ms)
{
    (void)s;
    poll(NULL, 0, timeout_ms < 5 ? timeout_ms : 5);
    return 0;
}

static void empty_close(struct source *s)
{
    (void)s;
}

static const struct source_ops empty_ops = {.name = "empty",
                                            .bounds = empty_bounds,
                                            .start = empty_start,
                                            .read = empty_read,
                                            .position = empty_position,
                                            .at_end = empty_at_end,
                                            .wait = empty_wait,
                                            .close = empty_close};

static struct fixture {
    char directory[64];
    struct arena arena;
    struct config config;
    struct job *job;
} f;

static void set(const char *key, const char *text)
{
    struct config_problems problems = {0};
    assert_int_equal(config_set(&f.config, key, text, "test", &problems), 0);
}

static int setup(void **state)
{
    static char memory[CONFIG_MEMORY];
    char path[96], error[512];
    (void)state;
    f = (struct fixture){.directory = "/tmp/test_job.XXXXXX", .arena = {memory, sizeof memory, 0}};
    empty = (struct empty){
        .source = {.ops = &empty_ops, .n_partitions = 1, .partitions = &empty.partition},
        .partition = {"engagements", TOPIC_ENGAGEMENTS, 0}};
    if (!mkdtemp(f.directory))
        return -1;
    config_init(&f.config, &f.arena);
    set("source.type", "kafka"); // read live, not to an end
    set("tables.items_max", "1000");
    set("tables.users_max", "1000");
    set("join.max_bytes", "1MiB");
    snprintf(path, sizeof path, "%s/state", f.directory);
    set("state.dir", path);
    snprintf(path, sizeof path, "%s/snapshots", f.directory);
    set("snapshot.dir", path);
    return job_open(&f.job, &f.config, &empty.source, &(struct job_options){0}, error,
                    sizeof error);
}

static int teardown(void **state)
{
    char command[96];
    (void)state;
    job_close(f.job);
    snprintf(command, sizeof command, "rm -rf '%s'", f.directory);
    return system(command);
}

static void an_empty_topic_is_being_read(void **state)
{
    struct job_status s;
    (void)state;
    job_status(f.job, &s);
    assert_false(s.reading);
    assert_int_equal(job_start(f.job), 0);
    const double begun = clock_s(CLOCK_MONOTONIC);
    do {
        assert_int_equal(job_wait(f.job, 5), 0);
        job_status(f.job, &s);
    } while (!s.reading && clock_s(CLOCK_MONOTONIC) - begun < 10);
    assert_true(s.reading);
    assert_int_equal(s.slices, 0);
}

static void stopped_before_the_first_event_it_leaves_a_checkpoint(void **state)
{
    struct job_status s;
    (void)state;
    assert_int_equal(job_start(f.job), 0);
    job_stop(f.job);
    assert_int_equal(job_wait(f.job, 10000), 1);
    assert_int_equal(job_result(f.job), 0);
    job_status(f.job, &s);
    assert_int_equal(s.checkpoints, 1);
    assert_int_equal(s.snapshots, 0);
    assert_false(s.finished);
}

static void a_source_that_fails_ends_it_with_its_sentence(void **state)
{
    struct job_status s;
    (void)state;
    empty.read_fails = -EHOSTUNREACH;
    assert_int_equal(job_start(f.job), 0);
    assert_int_equal(job_wait(f.job, 10000), 1);
    assert_int_equal(job_result(f.job), -EHOSTUNREACH);
    assert_string_equal(job_error(f.job), "the broker is gone");
    job_status(f.job, &s);
    assert_int_equal(s.checkpoints, 0);
}

static void a_slice_that_cannot_be_logged_ends_it_and_is_given_back(void **state)
{
    char path[96];
    (void)state;
    empty.records = 1;
    snprintf(path, sizeof path, "%s/state/slices-1.log", f.directory);
    assert_int_equal(mkdir(path, 0700), 0); // where the file would be
    assert_int_equal(job_start(f.job), 0);
    assert_int_equal(job_wait(f.job, 10000), 1);
    assert_int_equal(job_result(f.job), -EISDIR);
    assert_non_null(strstr(job_error(f.job), "slices-1.log"));
}

static void a_checkpoint_that_cannot_be_written_at_the_end_is_its_failure(void **state)
{
    char from[96], to[96];
    struct job_status s;
    (void)state;
    snprintf(from, sizeof from, "%s/state/checkpoints", f.directory);
    snprintf(to, sizeof to, "%s/state/elsewhere", f.directory);
    assert_int_equal(rename(from, to), 0);
    assert_int_equal(job_start(f.job), 0);
    job_stop(f.job);
    assert_int_equal(job_wait(f.job, 10000), 1);
    assert_int_equal(job_result(f.job), -ENOENT);
    assert_non_null(strstr(job_error(f.job), "checkpoints"));
    job_status(f.job, &s);
    assert_int_equal(s.checkpoints, 0);
    assert_int_equal(s.failures, 1);
}

static void the_age_is_that_of_the_last_durable_checkpoint(void **state)
{
    struct job_status s;
    (void)state;
    poll(NULL, 0, 30);
    job_status(f.job, &s);
    assert_true(s.checkpoint_age_ms >= 30); // since the start: there is none yet
    assert_int_equal(job_start(f.job), 0);
    job_stop(f.job);
    assert_int_equal(job_wait(f.job, 10000), 1);
    const int64_t before = s.checkpoint_age_ms;
    const double now = clock_s(CLOCK_MONOTONIC);
    poll(NULL, 0, 20);
    job_status(f.job, &s);
    const double waited_ms = (clock_s(CLOCK_MONOTONIC) - now) * 1000;
    assert_true(s.checkpoint_age_ms < before + (int64_t)waited_ms);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(an_empty_topic_is_being_read),
        TEST(stopped_before_the_first_event_it_leaves_a_checkpoint),
        TEST(a_source_that_fails_ends_it_with_its_sentence),
        TEST(a_slice_that_cannot_be_logged_ends_it_and_is_given_back),
        TEST(a_checkpoint_that_cannot_be_written_at_the_end_is_its_failure),
        TEST(the_age_is_that_of_the_last_durable_checkpoint),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
