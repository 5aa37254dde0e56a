// SPDX-License-Identifier: Apache-2.0
//
// With librdkafka's built-in mock cluster; tests/kafka/test_dead_letters.sh has the rest.
#include "daemon/letters.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include "daemon/clock.h"
#include "daemon/metrics.h"
#include "model/arena.h"
#include "pipeline/kafka_conf.h"
// clang-format off
#include <librdkafka/rdkafka_mock.h> // wants the other header before it
// clang-format on

enum { PRODUCE = 0, PATIENCE_MS = 20000 }; // PRODUCE: the protocol's number of the request

static struct fixture {
    rd_kafka_t *client; // holds the cluster
    rd_kafka_mock_cluster_t *mock;
    char directory[64], path[96], noted[112];
    struct arena arena;
    struct config config;
    struct dead_letter *d;
    struct slice_log log;
    struct letters *l;
} f;

static void set(const char *key, const char *text)
{
    struct config_problems problems = {0};
    assert_int_equal(config_set(&f.config, key, text, "test", &problems), 0);
}

static int setup(void **state)
{
    static char memory[CONFIG_MEMORY];
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    char why[256];
    (void)state;
    f = (struct fixture){.directory = "/tmp/test_letters.XXXXXX",
                         .arena = {memory, sizeof memory, 0}};
    if (!mkdtemp(f.directory))
        return -1;
    snprintf(f.path, sizeof f.path, "%s/letters", f.directory);
    snprintf(f.noted, sizeof f.noted, "%s.delivered", f.path);
    rd_kafka_conf_set(conf, "test.mock.num.brokers", "1", why, sizeof why);
    rd_kafka_conf_set_log_cb(conf, NULL);
    f.client = rd_kafka_new(RD_KAFKA_PRODUCER, conf, why, sizeof why);
    f.mock = rd_kafka_handle_mock_cluster(f.client);
    rd_kafka_mock_topic_create(f.mock, "letters", 3, 1);
    config_init(&f.config, &f.arena);
    set("source.type", "kafka");
    set("source.brokers", rd_kafka_mock_cluster_bootstraps(f.mock));
    set("dead_letter.topic", "letters");
    metrics_reset();
    return slice_log_open(&f.log, NULL, f.directory, 1, 1 << 20, 0, NULL, NULL);
}

// Begins as a job does whose newest slice in the log is this one.
static void begin(uint64_t slice)
{
    char error[512];
    if (!f.d)
        assert_int_equal(dead_letter_open(&f.d, f.path, 1 << 20), 0);
    if (letters_open(&f.l, &f.config, f.d, &f.log, slice, error, sizeof error) < 0)
        fail_msg("%s", error);
}

static void end(void)
{
    letters_close(f.l);
    dead_letter_close(f.d);
    f.l = NULL;
    f.d = NULL;
}

static int teardown(void **state)
{
    char command[96];
    (void)state;
    end();
    slice_log_close(&f.log);
    rd_kafka_destroy(f.client);
    snprintf(command, sizeof command, "rm -rf '%s'", f.directory);
    return system(command);
}

static void put(uint64_t slice, uint64_t number)
{
    const struct letter letter = {.topic = "items",
                                  .slice = slice,
                                  .letter = number,
                                  .reason = "not_json",
                                  .message = "no",
                                  .record = {.broker_ts_ms = -1, .value = "x", .value_size = 1}};
    assert_int_equal(dead_letter_put(f.d, &letter), 0);
}

static uint64_t delivered(void)
{
    return metrics_count(METRIC_DEAD_LETTERS_DELIVERED, 0);
}

static void await(uint64_t n)
{
    const int64_t until = clock_ms(CLOCK_MONOTONIC) + PATIENCE_MS;
    while (delivered() < n && clock_ms(CLOCK_MONOTONIC) < until)
        poll(NULL, 0, 5);
    assert_int_equal(delivered(), n);
}

static void assert_noted(const char *expected)
{
    char text[128] = "";
    FILE *in = fopen(f.noted, "r");
    if (in) {
        assert_non_null(fgets(text, sizeof text, in));
        fclose(in);
    }
    assert_string_equal(text, expected);
}

static void only_letters_of_slices_in_the_log_are_sent(void **state)
{
    (void)state;
    begin(0);
    put(1, 1);
    put(1, 2);
    put(2, 1); // is not in the log before the end
    letters_logged(f.l, 1, dead_letter_size(f.d));
    await(2);
    end();
    assert_int_equal(delivered(), 2);
    assert_noted("{\"slice\":1,\"letter\":2}\n");
}

static void a_restart_goes_on_behind_what_was_delivered(void **state)
{
    (void)state;
    begin(0);
    put(1, 1);
    put(1, 2);
    letters_logged(f.l, 1, dead_letter_size(f.d));
    end();
    assert_int_equal(delivered(), 2);

    // The checkpoint was before all of them, and the slices, applied again, write them again, and
    // more, elsewhere in the file.
    assert_int_equal(dead_letter_open(&f.d, f.path, 1 << 20), 0);
    assert_int_equal(dead_letter_truncate(f.d, 0), 0);
    begin(2);
    for (uint64_t slice = 1; slice <= 2; slice++) {
        for (uint64_t number = 1; number <= 3; number++)
            put(slice, number);
        letters_logged(f.l, slice, dead_letter_size(f.d));
    }
    await(2 + 4);
    end();
    assert_int_equal(delivered(), 2 + 4);
    assert_noted("{\"slice\":2,\"letter\":3}\n");
}

static void what_was_delivered_of_another_history_means_nothing(void **state)
{
    (void)state;
    for (int copy = 0; copy < 2; copy++) {
        FILE *out = fopen(f.noted, "w");
        fprintf(out, "{\"slice\":7,\"letter\":9}\n");
        fclose(out);
        const uint64_t before = delivered();
        begin(copy ? 5 : 0); // an old copy of the state, or none
        for (uint64_t slice = 5; slice <= 6; slice++) {
            put(slice, 1);
            letters_logged(f.l, slice, dead_letter_size(f.d));
        }
        // Of a copy, what it knows is still its own.
        await(before + (copy ? 1 : 2));
        end();
        assert_int_equal(delivered(), before + (copy ? 1 : 2));
        assert_noted("{\"slice\":6,\"letter\":1}\n");
        unlink(f.path);
    }
    // Without a letter, too: the next start knows more slices than that note.
    FILE *out = fopen(f.noted, "w");
    fprintf(out, "{\"slice\":7,\"letter\":9}\n");
    fclose(out);
    begin(0);
    end();
    assert_noted("");
}

static void a_note_that_cannot_be_read_is_refused(void **state)
{
    char error[512];
    (void)state;
    FILE *out = fopen(f.noted, "w");
    fprintf(out, "seven\n");
    fclose(out);
    assert_int_equal(dead_letter_open(&f.d, f.path, 1 << 20), 0);
    assert_true(letters_open(&f.l, &f.config, f.d, &f.log, 0, error, sizeof error) < 0);
    assert_non_null(strstr(error, f.noted));
}

static void what_the_broker_refuses_is_counted_and_sent_again(void **state)
{
    (void)state;
    rd_kafka_mock_push_request_errors(f.mock, PRODUCE, 1,
                                      RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED);
    begin(0);
    for (uint64_t number = 1; number <= 3; number++)
        put(1, number);
    letters_logged(f.l, 1, dead_letter_size(f.d));
    const int64_t until = clock_ms(CLOCK_MONOTONIC) + PATIENCE_MS;
    while (metrics_count(METRIC_DEAD_LETTER_FAILURES, 0) == 0 && clock_ms(CLOCK_MONOTONIC) < until)
        poll(NULL, 0, 5);
    assert_int_equal(metrics_count(METRIC_DEAD_LETTER_FAILURES, 0), 1);
    await(3);
    end();
    assert_noted("{\"slice\":1,\"letter\":3}\n");
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    static const struct CMUnitTest tests[] = {
        TEST(only_letters_of_slices_in_the_log_are_sent),
        TEST(a_restart_goes_on_behind_what_was_delivered),
        TEST(what_was_delivered_of_another_history_means_nothing),
        TEST(a_note_that_cannot_be_read_is_refused),
        TEST(what_the_broker_refuses_is_counted_and_sent_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
