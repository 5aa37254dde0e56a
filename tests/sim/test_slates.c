// SPDX-License-Identifier: Apache-2.0
//
// Whole streams through decoder, cutter and join; the slates that leave are compared, line by line,
// with those of tests/sim/slate_oracle.py.
#include <errno.h>
#include <math.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pipeline/cutter.h"
#include "tests/unit/core_fixture.h"

static const char *const all[] = {"*"};
static const char *const some[] = {"like", "*"};
static const char *const named[] = {"click", "share"};

static struct fixture {
    char directory[64];
    FILE *dump;
    struct columns columns;
    struct rows rows;
    struct join join;
} f;

static int setup(void **state)
{
    (void)state;
    strcpy(f.directory, "/tmp/slates.XXXXXX");
    assert_non_null(mkdtemp(f.directory));
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -r %s", f.directory);
    return system(command);
}

static void ignore(void *arg, const struct labelled *l)
{
    (void)arg;
    (void)l;
}

static void print_id(const struct id_table *t, uint32_t row)
{
    const struct id id = id_table_id(t, row);
    fprintf(f.dump, "%.*s", id.size, id.bytes);
}

static void dump(void *arg, const struct slate *s, const float *scores, const float *user_features)
{
    (void)user_features;
    (void)arg;
    fprintf(f.dump, "%d ", s->kind);
    print_id(&f.rows.users, s->user);
    fprintf(f.dump, " %d %d %d %" PRId64, s->surface, s->ranker, s->repeated, s->ts_ms);
    for (int i = 0; i < s->n_items; i++) {
        const struct slate_item *item = &s->items[i];
        fputc(' ', f.dump);
        print_id(&f.rows.items, item->item);
        fprintf(f.dump, ":%d:%d:%" PRIu32 ":%.6g", item->position, item->shown, item->labels,
                (double)item->propensity);
        for (int t = 0; t < f.join.options.n_tasks; t++) {
            const float score = *scores++;
            fputc(t ? ',' : ':', f.dump);
            if (isnan(score))
                fputs("nan", f.dump);
            else
                fprintf(f.dump, "%.6g", (double)score);
        }
    }
    fputc('\n', f.dump);
}

static void apply(const struct slice *slice)
{
    for (int i = 0; i < slice->n_events; i++) {
        join_advance(&f.join, slice->events[i].mt_ms);
        join_push(&f.join, slice->events[i].event);
    }
}

// The stream's slates into f.dump.
static void join_stream(const char *directory, const struct join_options *options)
{
    const struct two_tower_options model = core_model();
    const struct rows_options rows = {
        .items_max = 1 << 16, .users_max = 1 << 16, .admit_items = 1, .admit_users = 1};
    const struct cutter_options cutting = {.order = SLICE_CANONICAL,
                                           .slice_events = 4096,
                                           .interval_ms = 1000,
                                           .lateness_ms = options->lateness_ms,
                                           .drift_ms = 60000,
                                           .idle_ms = 2000,
                                           .max_future_ms = INT64_C(86400000)};
    char error[512];
    struct source *source;
    struct cutter *cutter;
    assert_int_equal(source_file_open(&source, directory, error, sizeof error), 0);
    const int n = source->n_partitions;
    int64_t first[TOPICS], end[TOPICS], time_max[TOPICS];
    for (int p = 0; p < n; p++)
        time_max[p] = INT64_MIN;
    assert_int_equal(source->ops->bounds(source, first, end), 0);
    assert_int_equal(source->ops->start(source, first, end), 0);
    assert_int_equal(cutter_open(&cutter, source, &cutting,
                                 &(struct cutter_position){.next = first, .time_max_ms = time_max}),
                     0);
    assert_int_equal(columns_open(&f.columns, 1 << 20), 0);
    assert_int_equal(rows_open(&f.rows, &f.columns, &rows, &model), 0);
    assert_int_equal(join_open(&f.join, &f.columns, options, &f.rows, ignore, NULL), 0);
    f.join.slate = dump;
    for (bool last = false; !last;) {
        struct slice *slice;
        const int rc = cutter_next(cutter, (struct cutter_clock){0}, 100, &slice);
        assert_true(rc >= 0);
        if (rc == 0)
            continue;
        last = slice->last;
        apply(slice);
        cutter_give(cutter, slice);
    }
    join_advance(&f.join, join_watermark(&f.join) + 10 * f.join.window_max_ms + 10000000);
    assert_true(join_balanced(&f.join));
    assert_int_equal(id_table_state(&f.join.request)->live, 0);
    for (int i = 0; i < SLATE_COUNTS; i++)
        fprintf(f.dump, "count %s %" PRIu64 "\n", slate_count_names[i],
                join_slate_counts(&f.join)[i]);
    join_close(&f.join);
    rows_close(&f.rows);
    columns_close(&f.columns);
    cutter_close(cutter);
    source->ops->close(source);
}

// Joins the stream and has the oracle look at what came of it.
static void compare(const char *directory, const struct join_options *options)
{
    char path[128], command[1024];
    snprintf(path, sizeof path, "%s/dump", f.directory);
    f.dump = fopen(path, "w");
    assert_non_null(f.dump);
    join_stream(directory, options);
    assert_int_equal(fclose(f.dump), 0);
    int size = snprintf(command, sizeof command,
                        "python3 tests/sim/slate_oracle.py check '%s' %s %" PRId64 " %" PRId64
                        " %" PRId64 " %" PRId64,
                        directory, path, options->window_ms, options->lateness_ms,
                        options->feedback_delay_ms, options->score_max_age_ms);
    for (int t = 0; t < options->n_tasks; t++)
        size += snprintf(command + size, sizeof command - (size_t)size, " '%s'", options->tasks[t]);
    printf("%s: ", directory);
    fflush(stdout);
    if (system(command) != 0)
        fail_msg("the oracle has other slates: %s", command);
}

static struct join_options options_of(int64_t window_ms, int64_t delay_ms, int64_t age_ms,
                                      const char *const *tasks, int n_tasks)
{
    return (struct join_options){.window_ms = window_ms,
                                 .lateness_ms = 10000,
                                 .bytes_max = (size_t)256 << 20,
                                 .tasks = tasks,
                                 .n_tasks = n_tasks,
                                 .slates = true,
                                 .feedback_delay_ms = delay_ms,
                                 .score_max_age_ms = age_ms};
}

static void slates_of_made_streams_are_those_of_the_rules(void **state)
{
    (void)state;
    for (int seed = 1; seed <= 2; seed++) {
        char command[128];
        snprintf(command, sizeof command, "python3 tests/sim/slate_oracle.py make %s %d",
                 f.directory, seed);
        assert_int_equal(system(command), 0);
        const struct join_options list[] = {
            options_of(300000, 0, 0, all, 1),
            options_of(300000, 60000, 10000, some, 2),
            options_of(1000000, 5000, 4000, named, 2),
            options_of(5000, 1000, 0, some, 2),
        };
        for (size_t i = 0; i < sizeof list / sizeof *list; i++)
            compare(f.directory, &list[i]);
    }
}

static void slates_of_recorded_streams_are_those_of_the_rules(void **state)
{
    (void)state;
    static const char *const names[] = {"mind-sample5k", "ml1m-slates"};
    const char *data = getenv("TWOTOWER_DATA");
    const struct join_options list[] = {options_of(1800000, 0, 0, all, 1),
                                        options_of(1800000, 60000, 5000, some, 2)};
    for (int i = 0; i < 2; i++) {
        char directory[512];
        snprintf(directory, sizeof directory, "%s/%s", data ? data : "../shared/data", names[i]);
        if (access(directory, R_OK) < 0) {
            printf("skip: no recorded stream in %s\n", directory);
            continue;
        }
        compare(directory, &list[0]);
        if (i == 0)
            compare(directory, &list[1]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(slates_of_made_streams_are_those_of_the_rules, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(slates_of_recorded_streams_are_those_of_the_rules, setup,
                                        teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
