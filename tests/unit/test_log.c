// SPDX-License-Identifier: Apache-2.0
#include "daemon/log.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/metrics.h"

static int file; // where the log goes, empty at the start of each test
static char text[65536];

static int setup(void **state)
{
    char path[] = "/tmp/test_log_XXXXXX";
    (void)state;
    file = mkstemp(path);
    assert_true(file >= 0);
    unlink(path);
    metrics_reset();
    unsetenv("JOURNAL_STREAM");
    log_init(LOG_LEVEL_INFO, LOG_FORMAT_TEXT, file);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    log_flush();
    log_init(LOG_LEVEL_INFO, LOG_FORMAT_TEXT, STDERR_FILENO);
    close(file);
    return 0;
}

// All that was logged since the last call.
static const char *logged(void)
{
    const ssize_t n = pread(file, text, sizeof text - 1, 0);
    assert_true(n >= 0);
    text[n] = 0;
    assert_int_equal(ftruncate(file, 0), 0);
    lseek(file, 0, SEEK_SET);
    return text;
}

// After the time stamp, which is 24 characters long and looks like one.
static const char *logged_after_time(void)
{
    const char *line = logged();
    assert_true(strlen(line) > 25);
    assert_true(line[4] == '-' && line[10] == 'T' && line[19] == '.' && line[23] == 'Z');
    return line + 25;
}

static void text_is_a_sentence_with_fields(void **state)
{
    (void)state;
    log_info("snapshot published", "generation=%d seconds=%.2f by=%s", 41, 0.5, "main");
    assert_string_equal(logged_after_time(),
                        "info    snapshot published generation=41 seconds=0.50 by=main\n");
}

static void a_line_may_have_no_fields(void **state)
{
    (void)state;
    log_warning("ready", NULL);
    assert_string_equal(logged_after_time(), "warning ready\n");
}

static void logfmt_quotes_the_message_and_values_with_spaces(void **state)
{
    (void)state;
    log_init(LOG_LEVEL_INFO, LOG_FORMAT_LOGFMT, file);
    log_error("publish failed", "reason=%s code=%d empty=%s", "no \"space\" left", -28, "");
    assert_string_equal(
        strstr(logged(), "level="),
        "level=error msg=\"publish failed\" reason=\"no \\\"space\\\" left\" code=-28 "
        "empty=\"\"\n");
}

static void json_keeps_numbers_apart_from_texts_that_look_like_them(void **state)
{
    (void)state;
    log_init(LOG_LEVEL_INFO, LOG_FORMAT_JSON, file);
    log_info("x", "count=%llu ratio=%.3f user=%s mixed=%dms", 7ULL, 0.25, "007", 12);
    assert_string_equal(strstr(logged(), "\"level\""),
                        "\"level\":\"info\",\"message\":\"x\",\"count\":7,\"ratio\":0.250,"
                        "\"user\":\"007\",\"mixed\":\"12ms\"}\n");
}

static void json_has_no_nan(void **state)
{
    (void)state;
    log_init(LOG_LEVEL_INFO, LOG_FORMAT_JSON, file);
    log_info("x", "loss=%f", (double)__builtin_nanf(""));
    const char *line = logged();
    assert_true(strstr(line, "\"loss\":\"nan\"") || strstr(line, "\"loss\":\"-nan\""));
}

static void a_value_cannot_make_a_line_or_a_field(void **state)
{
    (void)state;
    // The last holds what fields are told apart by, and the name that comes next.
    log_info("rejected", "id=%s code=%d",
             "a b=c\nERROR all is lost\x1b[2J\x1f"
             "coda=3",
             5);
    const char *line = logged_after_time();
    assert_string_equal(line,
                        "info    rejected id=\"a b=c\\nERROR all is lost\\u001b[2J\\u001fcoda=3\""
                        " code=5\n");
}

static void what_is_too_long_is_cut_but_ends_its_line(void **state)
{
    static char value[20000];
    (void)state;
    memset(value, 'x', sizeof value - 1);
    log_info("long", "value=%s after=%d", value, 5);
    const char *line = logged();
    assert_true(strlen(line) <= 8192);
    assert_ptr_equal(strchr(line, '\n'), line + strlen(line) - 1);
}

static void secrets_are_hidden(void **state)
{
    (void)state;
    log_info("settings", "user=%s sasl.password=%s oauth_token=%d", "me", "hunter2", 12345);
    const char *line = logged();
    assert_null(strstr(line, "hunter2"));
    assert_null(strstr(line, "12345"));
    assert_non_null(strstr(line, "user=me sasl.password=(hidden) oauth_token=(hidden)"));
    assert_true(log_is_secret("ssl.keystore.password"));
    assert_true(log_is_secret("SSL.KEY.PEM"));
    assert_true(log_is_secret("sasl.oauthbearer.client.secret"));
    assert_false(log_is_secret("security.protocol"));
}

static void what_is_below_the_level_is_not_logged_nor_formatted(void **state)
{
    int evaluated = 0;
    (void)state;
    log_debug("hidden", "n=%d", ++evaluated);
    assert_string_equal(logged(), "");
    assert_int_equal(evaluated, 0);
    log_init(LOG_LEVEL_DEBUG, LOG_FORMAT_TEXT, file);
    log_debug("shown", "n=%d", ++evaluated);
    assert_non_null(strstr(logged(), "debug   shown n=1\n"));
    log_init(LOG_LEVEL_ERROR, LOG_FORMAT_TEXT, file);
    log_warning("hidden", NULL);
    assert_string_equal(logged(), "");
}

static void under_journald_lines_have_a_priority_and_no_time(void **state)
{
    struct stat st;
    char stream[64];
    (void)state;
    assert_int_equal(fstat(file, &st), 0);
    snprintf(stream, sizeof stream, "%llu:%llu", (unsigned long long)st.st_dev,
             (unsigned long long)st.st_ino);
    setenv("JOURNAL_STREAM", stream, 1);
    log_init(LOG_LEVEL_DEBUG, LOG_FORMAT_TEXT, file);
    log_debug("d", NULL);
    log_info("i", NULL);
    log_warning("w", NULL);
    log_error("e", "code=%d", 5);
    assert_string_equal(logged(), "<7>d\n<6>i\n<4>w\n<3>e code=5\n");
}

static void an_inherited_journal_variable_is_not_believed(void **state)
{
    (void)state;
    setenv("JOURNAL_STREAM", "9:12345", 1);
    log_init(LOG_LEVEL_INFO, LOG_FORMAT_TEXT, file);
    log_info("i", NULL);
    assert_string_equal(logged_after_time(), "info    i\n");
}

static void a_bucket_gives_its_burst_and_then_refills(void **state)
{
    struct log_site site = {0};
    (void)state;
    for (int i = 0; i < LOG_BURST; i++)
        assert_true(log_site_take(&site, 1000));
    assert_false(log_site_take(&site, 1000));
    assert_false(log_site_take(&site, 1000 + 1000 / LOG_PER_SECOND - 1));
    assert_int_equal(site.suppressed, 2);
    assert_true(log_site_take(&site, 1000 + 1000 / LOG_PER_SECOND));
    assert_false(log_site_take(&site, 1000 + 1000 / LOG_PER_SECOND));
    // A long silence fills it, and no more than fills it.
    for (int i = 0; i < LOG_BURST; i++)
        assert_true(log_site_take(&site, 10000000));
    assert_false(log_site_take(&site, 10000000));
}

static void floods_are_held_back_and_counted_for_each_place(void **state)
{
    (void)state;
    for (int i = 0; i < 5000; i++)
        log_warning("flood", "i=%d", i);
    log_info("elsewhere", NULL);
    const char *lines = logged();
    int n = 0;
    for (const char *at = lines; (at = strstr(at, "flood")); at++)
        n++;
    assert_true(n >= LOG_BURST && n <= LOG_BURST + 2);
    assert_non_null(strstr(lines, "elsewhere"));
    assert_int_equal(metrics_count(METRIC_LOG_SUPPRESSED, 0), 5000 - n);
    log_flush();
    char expected[64];
    snprintf(expected, sizeof expected, "warning flood suppressed=%d\n", 5000 - n);
    assert_string_equal(logged_after_time(), expected);
    log_flush();
    assert_string_equal(logged(), "");
}

static void lines_of_libraries_take_the_same_way(void **state)
{
    (void)state;
    log_foreign(3, "rdkafka", "connect failed:\nrefused");
    log_foreign(7, "rdkafka", "noise");
    assert_string_equal(
        logged_after_time(),
        "error   a library reports from=rdkafka text=\"connect failed:\\nrefused\"\n");
}

static void *log_some(void *arg)
{
    for (int i = 0; i < 8; i++)
        log_info("from a thread", "name=%s i=%d", (const char *)arg, i);
    return NULL;
}

static void threads_do_not_mix_their_lines(void **state)
{
    pthread_t threads[4];
    static char names[4][4] = {"one", "two", "thr", "for"};
    (void)state;
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, log_some, names[i]), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    char *rest = (char *)(uintptr_t)logged(), *line;
    int lines = 0;
    while ((line = strsep(&rest, "\n")) && *line) {
        char name[8];
        int i;
        assert_int_equal(sscanf(line + 25, "info    from a thread name=%3s i=%d", name, &i), 2);
        lines++;
    }
    assert_true(lines >= LOG_BURST);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(text_is_a_sentence_with_fields),
        TEST(a_line_may_have_no_fields),
        TEST(logfmt_quotes_the_message_and_values_with_spaces),
        TEST(json_keeps_numbers_apart_from_texts_that_look_like_them),
        TEST(json_has_no_nan),
        TEST(a_value_cannot_make_a_line_or_a_field),
        TEST(what_is_too_long_is_cut_but_ends_its_line),
        TEST(secrets_are_hidden),
        TEST(what_is_below_the_level_is_not_logged_nor_formatted),
        TEST(under_journald_lines_have_a_priority_and_no_time),
        TEST(an_inherited_journal_variable_is_not_believed),
        TEST(a_bucket_gives_its_burst_and_then_refills),
        TEST(floods_are_held_back_and_counted_for_each_place),
        TEST(lines_of_libraries_take_the_same_way),
        TEST(threads_do_not_mix_their_lines),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
