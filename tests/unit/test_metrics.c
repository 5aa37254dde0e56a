// SPDX-License-Identifier: Apache-2.0
#include "daemon/metrics.h"

#include <math.h>
#include <pthread.h>
#include <regex.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "pipeline/source.h"

static int setup(void **state)
{
    (void)state;
    metrics_reset();
    return 0;
}

// Whether the exposition has this line.
static bool shows(const char *line)
{
    size_t size;
    char *text = metrics_text(&size), *at = text;
    const size_t length = strlen(line);
    bool found = false;
    assert_non_null(text);
    assert_int_equal(strlen(text), size);
    for (; at && *at && !found; at = strchr(at, '\n') ? strchr(at, '\n') + 1 : NULL)
        found = strncmp(at, line, length) == 0 && at[length] == '\n';
    free(text);
    return found;
}

static bool ends_with(const char *text, const char *end)
{
    return strlen(text) >= strlen(end) && strcmp(text + strlen(text) - strlen(end), end) == 0;
}

static void names_follow_the_rules_of_promtool(void **state)
{
    static const char *const never[] = {"_count",     "_sum",     "_bucket", "_milliseconds", "_ms",
                                        "_kilobytes", "_minutes", "_hours",  "_percent",      "__"};
    static const char *const types[] = {"counter", "gauge", "histogram", "summary"};
    regex_t shape;
    (void)state;
    assert_int_equal(regcomp(&shape, "^twotower_[a-z][a-z0-9_]*$", REG_EXTENDED | REG_NOSUB), 0);
    for (int m = 0; m < METRIC_COUNT; m++) {
        const struct metric_row *row = &metric_rows[m];
        if (regexec(&shape, row->name, 0, NULL, 0) != 0)
            fail_msg("%s is no name", row->name);
        const bool counter = row->type == METRIC_COUNTER || row->type == METRIC_COUNTER_US;
        if (counter != ends_with(row->name, "_total"))
            fail_msg("%s: _total belongs to counters", row->name);
        if (row->type == METRIC_COUNTER_US && !ends_with(row->name, "_seconds_total"))
            fail_msg("%s counts seconds", row->name);
        if (row->type == METRIC_HISTOGRAM && !ends_with(row->name, "_seconds"))
            fail_msg("%s has buckets of seconds", row->name);
        for (size_t i = 0; i < sizeof never / sizeof *never; i++)
            if (ends_with(row->name, never[i]) || strstr(row->name, "__"))
                fail_msg("%s must not end with %s", row->name, never[i]);
        for (size_t i = 0; i < sizeof types / sizeof *types; i++)
            if (strstr(row->name, types[i]))
                fail_msg("%s has its type in its name", row->name);
    }
    regfree(&shape);
}

static void every_metric_has_a_sentence_and_a_name_of_its_own(void **state)
{
    (void)state;
    for (int m = 0; m < METRIC_COUNT; m++) {
        const char *help = metric_rows[m].help;
        assert_true(strlen(help) > 10);
        assert_int_equal(help[strlen(help) - 1], '.');
        assert_null(strpbrk(help, "\n\\"));
        for (int other = 0; other < m; other++)
            assert_string_not_equal(metric_rows[m].name, metric_rows[other].name);
    }
}

static void the_text_is_well_formed_line_by_line(void **state)
{
    const struct source_partition partitions[] = {{"im\"pre\\ssions", TOPIC_IMPRESSIONS, 0}};
    regex_t comment, sample;
    size_t size;
    (void)state;
    metrics_partitions(1, partitions);
    metrics_build_info("0.1.0", "OpenBLAS 0.3.21", "SkylakeX", "avx512");
    metrics_io_backend("io_uring");
    for (int m = 0; m < METRIC_COUNT; m++)
        for (int s = 0; s < metric_rows[m].series && metric_rows[m].type == METRIC_GAUGE; s++)
            metrics_set_of((enum metric)m, s, -1.5e-7 * m);
    char *text = metrics_text(&size), *rest = text, *line;
    assert_non_null(text);
    assert_int_equal(text[size - 1], '\n');
    assert_int_equal(regcomp(&comment,
                             "^# (HELP [a-z0-9_]+ .+|TYPE [a-z0-9_]+ "
                             "(counter|gauge|histogram))$",
                             REG_EXTENDED | REG_NOSUB),
                     0);
    assert_int_equal(regcomp(&sample,
                             "^[a-z0-9_]+(\\{[a-z_]+=\"([^\"\\]|\\\\.)*\""
                             "(,[a-z_]+=\"([^\"\\]|\\\\.)*\")*\\})? "
                             "(NaN|[+-]Inf|-?[0-9.]+(e[+-]?[0-9]+)?)$",
                             REG_EXTENDED | REG_NOSUB),
                     0);
    int lines = 0;
    while ((line = strsep(&rest, "\n")) && *line) {
        if (regexec(*line == '#' ? &comment : &sample, line, 0, NULL, 0) != 0)
            fail_msg("malformed: %s", line);
        lines++;
    }
    assert_true(lines > 2 * METRIC_COUNT);
    regfree(&comment);
    regfree(&sample);
    free(text);
}

static void promtool_finds_nothing_to_say(void **state)
{
    const char *promtool = "/usr/bin/promtool";
    size_t size;
    (void)state;
    if (access(promtool, X_OK) != 0)
        skip();
    metrics_build_info("0.1.0", "OpenBLAS 0.3.21", "SkylakeX", "avx512");
    metrics_set_of(METRIC_RECALL, BY_CUTOFF_100, 0.57);
    char *text = metrics_text(&size);
    FILE *out = popen("/usr/bin/promtool check metrics", "w");
    assert_non_null(out);
    assert_int_equal(fwrite(text, 1, size, out), size);
    assert_int_equal(pclose(out), 0);
    free(text);
}

static void counters_start_at_zero_and_add_up_by_label(void **state)
{
    (void)state;
    assert_true(shows("twotower_steps_total 0"));
    metrics_add(METRIC_STEPS, 2);
    metrics_add(METRIC_STEPS, 3);
    assert_true(shows("twotower_steps_total 5"));
    assert_int_equal(metrics_count(METRIC_STEPS, 0), 5);
    metrics_add_of(METRIC_RECORDS, TOPIC_ENGAGEMENTS, 7);
    assert_true(shows("twotower_records_total{topic=\"engagements\"} 7"));
    assert_true(shows("twotower_records_total{topic=\"items\"} 0"));
    metrics_add_of2(METRIC_RECORDS_REJECTED, TOPIC_SCORES, REJECT_BAD_ID, 4);
    assert_true(
        shows("twotower_records_rejected_total{topic=\"ranker_scores\",reason=\"bad_id\"} 4"));
    assert_true(shows("twotower_records_rejected_total{topic=\"items\",reason=\"bad_id\"} 0"));
    assert_false(shows("twotower_records_rejected_total{topic=\"items\",reason=\"none\"} 0"));
    metrics_add_of2(METRIC_OUTCOMES, TOPIC_IMPRESSIONS, EXPIRED, 9);
    assert_true(
        shows("twotower_record_outcomes_total{topic=\"impressions\",outcome=\"expired\"} 9"));
}

static void a_total_that_is_kept_elsewhere_replaces_the_count(void **state)
{
    (void)state;
    metrics_put_of2(METRIC_OUTCOMES, TOPIC_IMPRESSIONS, LATE, 9);
    metrics_put_of2(METRIC_OUTCOMES, TOPIC_IMPRESSIONS, LATE, 12);
    assert_true(shows("twotower_record_outcomes_total{topic=\"impressions\",outcome=\"late\"} 12"));
    metrics_put_of(METRIC_RECORDS, TOPIC_ITEMS, 5);
    assert_true(shows("twotower_records_total{topic=\"items\"} 5"));
    metrics_put_of2(METRIC_RECORDS_REFUSED, TOPIC_SCORES, REFUSED_UNKNOWN_ITEM, 3);
    assert_true(
        shows("twotower_records_refused_total{topic=\"ranker_scores\",reason=\"unknown_item\"} 3"));
}

static void large_counts_keep_every_digit(void **state)
{
    (void)state;
    metrics_add(METRIC_STEPS, UINT64_C(9007199254740993));
    assert_true(shows("twotower_steps_total 9007199254740993"));
}

static void busy_time_is_added_in_microseconds_and_shown_in_seconds(void **state)
{
    (void)state;
    metrics_add_of(METRIC_STAGE_BUSY, BY_STAGE_TRAIN, 1500000);
    assert_true(shows("twotower_stage_busy_seconds_total{stage=\"train\"} 1.5"));
}

static void a_gauge_appears_once_it_is_set_also_to_zero(void **state)
{
    (void)state;
    assert_false(shows("twotower_loss 0"));
    metrics_set(METRIC_LOSS, 0);
    assert_true(shows("twotower_loss 0"));
    metrics_set(METRIC_LOSS, 2.25);
    assert_true(shows("twotower_loss 2.25"));
    metrics_set(METRIC_LOSS, (double)INFINITY);
    assert_true(shows("twotower_loss +Inf"));
    metrics_set_of(METRIC_RECALL, BY_CUTOFF_100, 0.5729);
    assert_true(shows("twotower_recall_ratio{k=\"100\"} 0.5729"));
    assert_false(shows("twotower_recall_ratio{k=\"10\"} 0"));
}

static void a_histogram_counts_each_value_once_and_cumulates(void **state)
{
    (void)state;
    metrics_observe(METRIC_STEP_DURATION, 0.00005);
    metrics_observe(METRIC_STEP_DURATION, 0.001); // the upper end belongs to the bucket
    metrics_observe(METRIC_STEP_DURATION, 0.002);
    metrics_observe(METRIC_STEP_DURATION, 100000);
    assert_true(shows("twotower_step_duration_seconds_bucket{le=\"0.0001\"} 1"));
    assert_true(shows("twotower_step_duration_seconds_bucket{le=\"0.001\"} 2"));
    assert_true(shows("twotower_step_duration_seconds_bucket{le=\"0.0025\"} 3"));
    assert_true(shows("twotower_step_duration_seconds_bucket{le=\"7200\"} 3"));
    assert_true(shows("twotower_step_duration_seconds_bucket{le=\"+Inf\"} 4"));
    assert_true(shows("twotower_step_duration_seconds_count 4"));
    assert_true(shows("twotower_step_duration_seconds_sum 100000.00305"));
}

static void partitions_are_named_when_they_are_known(void **state)
{
    const struct source_partition partitions[] = {{"clicks", TOPIC_ENGAGEMENTS, 0},
                                                  {"clicks", TOPIC_ENGAGEMENTS, 11}};
    (void)state;
    metrics_set_of(METRIC_PARTITION_LAG, 1, 42);
    metrics_set_of(METRIC_PARTITION_LAG, 2, 43); // there is no third
    metrics_partitions(2, partitions);
    assert_true(shows("twotower_consumer_lag_records{topic=\"clicks\",partition=\"11\"} 42"));
    size_t size;
    char *text = metrics_text(&size);
    assert_null(strstr(text, "43\n"));
    free(text);
}

static void what_the_machine_says_of_itself_is_escaped(void **state)
{
    (void)state;
    metrics_build_info("0.1", "a\"b\\c\nd", "Zen", "avx2");
    assert_true(shows("twotower_build_info{version=\"0.1\",blas=\"a\\\"b\\\\c\\nd\","
                      "blas_core=\"Zen\",kernels=\"avx2\"} 1"));
    metrics_io_backend("pwrite");
    assert_true(shows("twotower_io_backend_info{backend=\"pwrite\"} 1"));
}

static void rankers_are_named_when_the_stream_names_them(void **state)
{
    (void)state;
    metrics_set_of(METRIC_GUARD, 0, 0.25);
    metrics_set_of(METRIC_GUARD, 2, 0.5);
    assert_false(shows("twotower_ranker_guard_ratio{ranker=\"v\\\"2\"} 0.5"));
    metrics_ranker(0, "proxy");
    metrics_ranker(2, "v\"2");
    assert_true(shows("twotower_ranker_guard_ratio{ranker=\"proxy\"} 0.25"));
    assert_true(shows("twotower_ranker_guard_ratio{ranker=\"v\\\"2\"} 0.5"));
    metrics_ranker(2, "v3"); // as after another start
    assert_true(shows("twotower_ranker_guard_ratio{ranker=\"v3\"} 0.5"));
}

static void what_became_of_slates_is_one_metric_and_so_is_calibration(void **state)
{
    (void)state;
    assert_true(shows("twotower_slate_outcomes_total{outcome=\"slates_closed\"} 0"));
    metrics_put_of(METRIC_SLATES, SCORES_STALE, 12);
    assert_true(shows("twotower_slate_outcomes_total{outcome=\"scores_stale\"} 12"));
    metrics_set_of2(METRIC_POSITION_EXPECTED, EXPECTED_RANKER, BY_POSITION - 1, 0.5);
    assert_true(
        shows("twotower_position_expected_value{estimator=\"ranker\",position=\"10\"} 0.5"));
    metrics_set_of2(METRIC_ACTIVITY_OBSERVED, EXPECTED_CONTEXT, 4, 0.25);
    assert_true(
        shows("twotower_activity_observed_value{estimator=\"context\",engagements=\"5\"} 0.25"));
}

static void *count(void *arg)
{
    (void)arg;
    for (int i = 0; i < 20000; i++) {
        metrics_add(METRIC_STEPS, 1);
        metrics_observe(METRIC_STEP_DURATION, 0.25);
    }
    return NULL;
}

static void fields_that_were_left_out_are_shown_with_their_topic(void **state)
{
    (void)state;
    metrics_put_of(METRIC_FIELDS_DEFAULTED, DEFAULTED_VALUE, 3);
    metrics_set_of2(METRIC_HOT_KEY, TOPIC_ENGAGEMENTS, TRAFFIC_USER, 0.25);
    assert_true(shows("twotower_fields_defaulted_total{topic=\"engagements\",field=\"value\"} 3"));
    assert_true(
        shows("twotower_fields_defaulted_total{topic=\"impressions\",field=\"position\"} 0"));
    assert_true(shows("twotower_hot_key_ratio{topic=\"engagements\",key=\"user\"} 0.25"));
}

static void threads_lose_no_count(void **state)
{
    pthread_t threads[3];
    (void)state;
    for (int i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, count, NULL), 0);
    size_t size;
    free(metrics_text(&size)); // while they count
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(metrics_count(METRIC_STEPS, 0), 60000);
    assert_true(shows("twotower_step_duration_seconds_sum 15000"));
    assert_true(shows("twotower_step_duration_seconds_count 60000"));
}

static void tasks_have_their_names(void **state)
{
    (void)state;
    const struct value_tasks tasks = {.n = 2, .name = {"click", "a\"b"}};
    metrics_tasks(&tasks);
    metrics_set_of(METRIC_VALUE_WEIGHT, 0, -0.5);
    metrics_set_of(METRIC_VALUE_WEIGHT, 1, 2);
    metrics_add_of(METRIC_CONFIG_RELOADS, BY_RELOAD_REFUSED, 1);
    assert_true(shows("twotower_value_weight{task=\"click\"} -0.5"));
    assert_true(shows("twotower_value_weight{task=\"a\\\"b\"} 2"));
    assert_true(shows("twotower_config_reloads_total{result=\"refused\"} 1"));
    assert_true(shows("twotower_config_reloads_total{result=\"applied\"} 0"));
}

#define TEST(f) cmocka_unit_test_setup(f, setup)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(names_follow_the_rules_of_promtool),
        TEST(every_metric_has_a_sentence_and_a_name_of_its_own),
        TEST(the_text_is_well_formed_line_by_line),
        TEST(promtool_finds_nothing_to_say),
        TEST(counters_start_at_zero_and_add_up_by_label),
        TEST(a_total_that_is_kept_elsewhere_replaces_the_count),
        TEST(large_counts_keep_every_digit),
        TEST(busy_time_is_added_in_microseconds_and_shown_in_seconds),
        TEST(a_gauge_appears_once_it_is_set_also_to_zero),
        TEST(a_histogram_counts_each_value_once_and_cumulates),
        TEST(partitions_are_named_when_they_are_known),
        TEST(what_the_machine_says_of_itself_is_escaped),
        TEST(rankers_are_named_when_the_stream_names_them),
        TEST(what_became_of_slates_is_one_metric_and_so_is_calibration),
        TEST(fields_that_were_left_out_are_shown_with_their_topic),
        TEST(threads_lose_no_count),
        TEST(tasks_have_their_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
