// SPDX-License-Identifier: Apache-2.0
#include "pipeline/dead_letter.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
// clang-format off
#include <stdarg.h>
#include <setjmp.h>
#include <cmocka.h>
// clang-format on

static struct fixture {
    char directory[64], path[128], rotated[160];
    struct dead_letter *d;
} f;

static int setup(void **state)
{
    (void)state;
    memset(&f, 0, sizeof f);
    strcpy(f.directory, "/tmp/test_dead_letter.XXXXXX");
    if (!mkdtemp(f.directory))
        return -1;
    snprintf(f.path, sizeof f.path, "%s/rejected.jsonl", f.directory);
    snprintf(f.rotated, sizeof f.rotated, "%s.1", f.path);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    dead_letter_close(f.d);
    unlink(f.path);
    unlink(f.rotated);
    return rmdir(f.directory);
}

static void reopen(uint64_t bytes_max)
{
    dead_letter_close(f.d);
    if (dead_letter_open(&f.d, f.path, bytes_max) < 0)
        fail_msg("%s", dead_letter_error(f.d));
}

static int put_record(const struct record *record)
{
    return dead_letter_put(
        f.d,
        &(struct letter){.topic = "items", .reason = "not_utf8", .message = "", .record = *record});
}

static int put_text(int64_t offset, const char *value)
{
    return dead_letter_put(f.d, &(struct letter){.topic = "items",
                                                 .partition = 3,
                                                 .reason = reject_names[REJECT_BAD_ID],
                                                 .message = "no",
                                                 .record = {.offset = offset,
                                                            .broker_ts_ms = -1,
                                                            .value = value,
                                                            .value_size = strlen(value)}});
}

// The file without its first line; the caller frees it.
static char *lines_of(const char *path)
{
    char *text = NULL;
    size_t capacity = 0;
    FILE *in = fopen(path, "r");
    if (!in)
        return strdup("(no file)");
    assert_true(getline(&text, &capacity, in) > 0);
    assert_int_equal(strncmp(text, "{\"start\":", 9), 0);
    if (getdelim(&text, &capacity, '\0', in) < 0)
        text[0] = '\0';
    fclose(in);
    return text;
}

static void assert_lines(const char *path, const char *expected)
{
    char *text = lines_of(path);
    assert_string_equal(text, expected);
    free(text);
}

#define LINE(offset, value)                                                                        \
    "{\"topic\":\"items\",\"partition\":3,\"offset\":" offset                                      \
    ",\"reason\":\"bad_id\",\"message\":\"no\",\"value\":\"" value "\"}\n"

static void a_record_is_one_line_with_everything_about_it(void **state)
{
    const struct record_headers headers = {
        .n = 3, .left_out = 7, .list = {{"a", "\n", 1, 1}, {"a", NULL, 1, 0}, {"", "", 0, 0}}};
    const struct letter letter = {.topic = "impressions",
                                  .slice = 7,
                                  .letter = 2,
                                  .reason = reject_names[REJECT_BAD_TIME],
                                  .message = "ts: \"5\"",
                                  .record = {.offset = 12,
                                             .broker_ts_ms = 1700000000000,
                                             .key = "u1",
                                             .key_size = 2,
                                             .value = "{\"a\":\"\\n\"}\n\x01",
                                             .value_size = 12},
                                  .headers = &headers};
    (void)state;

    reopen(1 << 20);
    assert_int_equal(dead_letter_put(f.d, &letter), 0);
    assert_lines(f.path,
                 "{\"topic\":\"impressions\",\"partition\":0,\"offset\":12,"
                 "\"slice\":7,\"letter\":2,\"ts\":1700000000000,\"reason\":\"bad_time\","
                 "\"message\":\"ts: \\\"5\\\"\",\"key\":\"u1\","
                 "\"headers\":[[\"a\",\"\\u000a\"],[\"a\",null],[\"\",\"\"]],"
                 "\"headers_left_out\":7,\"value\":\"{\\\"a\\\":\\\"\\\\n\\\"}\\u000a\\u0001\"}\n");
}

static void bytes_that_are_not_utf8_are_kept_as_base64(void **state)
{
    static const struct {
        const char *bytes;
        size_t size;
        const char *field;
    } cases[] = {
        {"\xff", 1, "\"value_base64\":\"/w==\"}"},
        {"\xff\x00", 2, "\"value_base64\":\"/wA=\"}"},
        {"\xff\x00\x01", 3, "\"value_base64\":\"/wAB\"}"},
        {"any carnal pleas\xfe", 17, "\"value_base64\":\"YW55IGNhcm5hbCBwbGVhc/4=\"}"},
        {"caf\xc3\xa9", 5, "\"value\":\"caf\xc3\xa9\"}"},
        {"", 0, "\"value\":\"\"}"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct record record = {.value = cases[i].bytes, .value_size = cases[i].size};
        reopen(1 << 20);
        assert_int_equal(put_record(&record), 0);
        char *text = lines_of(f.path);
        assert_non_null(strstr(text, cases[i].field));
        free(text);
    }
}

static void a_tombstone_has_a_null_value_and_a_key_may_be_bytes(void **state)
{
    const struct record record = {.key = "\xff", .key_size = 1, .tombstone = true};
    (void)state;
    reopen(1 << 20);
    assert_int_equal(put_record(&record), 0);
    char *text = lines_of(f.path);
    assert_non_null(strstr(text, "\"message\":\"\",\"key_base64\":\"/w==\",\"value\":null}\n"));
    free(text);
}

static void a_value_is_kept_up_to_a_mebibyte_and_its_size_told(void **state)
{
    enum { MIB = 1 << 20 };
    char *value = malloc(MIB + 1);
    (void)state;
    assert_non_null(value);
    memset(value, 'x', MIB + 1);
    reopen(16 * MIB);
    for (size_t over = 0; over < 2; over++) {
        const struct record record = {.offset = 1, .value = value, .value_size = MIB + over};
        assert_int_equal(dead_letter_truncate(f.d, 0), 0);
        assert_int_equal(put_record(&record), 0);
        char *text = lines_of(f.path);
        assert_int_equal(strstr(text, "\"value_size\":1048577") != NULL, over);
        assert_int_equal(strspn(strstr(text, "\"value\":\"") + 9, "x"), MIB);
        free(text);
    }
    free(value);
}

static void reopening_appends(void **state)
{
    (void)state;
    reopen(1 << 20);
    assert_int_equal(put_text(1, "a"), 0);
    const uint64_t size = dead_letter_size(f.d);
    reopen(1 << 20);
    assert_int_equal(dead_letter_size(f.d), size);
    assert_int_equal(put_text(2, "b"), 0);
    assert_lines(f.path, LINE("1", "a") LINE("2", "b"));
}

static void a_line_that_a_crash_cut_short_is_removed(void **state)
{
    (void)state;
    reopen(1 << 20);
    assert_int_equal(put_text(1, "a"), 0);
    const uint64_t size = dead_letter_size(f.d);
    FILE *out = fopen(f.path, "a");
    assert_non_null(out);
    fprintf(out, "{\"topic\":\"items\",%5000s", "");
    fclose(out);
    reopen(1 << 20);
    assert_int_equal(dead_letter_size(f.d), size);
    assert_lines(f.path, LINE("1", "a"));
    // The same of the very first line.
    dead_letter_close(f.d);
    f.d = NULL;
    assert_int_equal(truncate(f.path, 5), 0);
    reopen(1 << 20);
    assert_lines(f.path, "");
}

static void a_file_of_another_kind_is_left_alone(void **state)
{
    (void)state;
    FILE *out = fopen(f.path, "w");
    assert_non_null(out);
    fprintf(out, "letters to the editor\n");
    fclose(out);
    assert_int_equal(dead_letter_open(&f.d, f.path, 1 << 20), -EBADMSG);
    assert_non_null(strstr(dead_letter_error(f.d), f.path));
}

static void what_was_written_after_a_checkpoint_is_cut_and_not_kept_twice(void **state)
{
    (void)state;
    reopen(1 << 20);
    assert_int_equal(put_text(1, "a"), 0);
    assert_int_equal(dead_letter_sync(f.d), 0);
    const uint64_t checkpoint = dead_letter_size(f.d);
    assert_int_equal(put_text(2, "b"), 0);
    assert_int_equal(put_text(3, "c"), 0);
    reopen(1 << 20);
    assert_int_equal(dead_letter_truncate(f.d, checkpoint), 0);
    assert_int_equal(dead_letter_size(f.d), checkpoint);
    assert_int_equal(put_text(2, "b"), 0);
    assert_lines(f.path, LINE("1", "a") LINE("2", "b"));
}

static void a_full_file_is_rotated_and_one_older_kept(void **state)
{
    (void)state;
    reopen(2 * strlen(LINE("1", "a")) + 20);
    for (int i = 1; i <= 6; i++) {
        const uint64_t before = dead_letter_size(f.d);
        char value[2] = {(char)('a' + i - 1), 0};
        assert_int_equal(put_text(i, value), 0);
        assert_true(dead_letter_size(f.d) > before);
    }
    assert_int_equal(dead_letter_rotations(f.d), 2);
    assert_lines(f.rotated, LINE("3", "c") LINE("4", "d"));
    assert_lines(f.path, LINE("5", "e") LINE("6", "f"));
}

// Any number of lines before a checkpoint, any number after it, with rotations in between: after
// the cut and the same lines again, the two files end as if there had been no crash. Only when both
// were rotated out since the checkpoint is there nothing to go back to; then the lines after it are
// there, each once.
static void truncation_undoes_rotation(void **state)
{
    enum { LINES = 9 };
    const uint64_t bytes_max = 3 * strlen(LINE("1", "a")) + 20;
    (void)state;

    reopen(bytes_max);
    for (int i = 0; i < LINES; i++)
        assert_int_equal(put_text(i, "x"), 0);
    char *rotated = lines_of(f.rotated), *current = lines_of(f.path);
    const uint64_t size = dead_letter_size(f.d);

    int undone = 0;
    for (int before = 0; before <= LINES; before++) {
        for (int after = 0; before + after <= LINES; after++) {
            unlink(f.path);
            unlink(f.rotated);
            reopen(bytes_max);
            for (int i = 0; i < before; i++)
                assert_int_equal(put_text(i, "x"), 0);
            const uint64_t checkpoint = dead_letter_size(f.d);
            const uint64_t rotations = dead_letter_rotations(f.d);
            for (int i = before; i < before + after; i++)
                assert_int_equal(put_text(i, "x"), 0);
            const uint64_t since = dead_letter_rotations(f.d) - rotations;
            reopen(bytes_max);
            assert_int_equal(dead_letter_truncate(f.d, checkpoint), 0);
            if (since <= 1)
                assert_int_equal(dead_letter_size(f.d), checkpoint);
            else
                assert_int_not_equal(access(f.rotated, F_OK), 0);
            for (int i = before; i < LINES; i++)
                assert_int_equal(put_text(i, "x"), 0);
            if (since <= 1) {
                undone += since == 1;
                assert_lines(f.rotated, rotated);
                assert_lines(f.path, current);
                assert_int_equal(dead_letter_size(f.d), size);
                continue;
            }
            char *old = lines_of(f.rotated), *new = lines_of(f.path), line[32];
            for (int i = 0; i < LINES; i++) {
                snprintf(line, sizeof line, "\"offset\":%d,", i);
                const bool in_old = strstr(old, line), in_new = strstr(new, line);
                assert_false(in_old && in_new);
                assert_true(in_old || in_new || i < LINES - 3);
                assert_false(i < before && (in_old || in_new));
            }
            free(old);
            free(new);
        }
    }
    assert_true(undone > 0);
    free(rotated);
    free(current);
}

static void a_file_that_was_moved_away_goes_on_at_the_checkpoint(void **state)
{
    (void)state;
    reopen(1 << 20);
    for (int i = 0; i < 10; i++)
        assert_int_equal(put_text(i, "x"), 0);
    const uint64_t checkpoint = dead_letter_size(f.d);
    unlink(f.path);
    reopen(1 << 20);
    assert_int_equal(put_text(1, "other"), 0);
    assert_int_equal(dead_letter_truncate(f.d, checkpoint), 0);
    assert_true(dead_letter_size(f.d) >= checkpoint);
    assert_lines(f.path, "");
    assert_lines(f.rotated, LINE("1", "other"));
}

static void a_failed_write_is_told_and_leaves_no_half_line(void **state)
{
    const struct rlimit unlimited = {RLIM_INFINITY, RLIM_INFINITY};
    struct rlimit limit = unlimited;
    (void)state;

    reopen(1 << 20);
    assert_int_equal(put_text(1, "a"), 0);
    const uint64_t size = dead_letter_size(f.d);
    signal(SIGXFSZ, SIG_IGN);
    limit.rlim_cur = size + 10; // the next line does not fit
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    const int rc = put_text(2, "b");
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &unlimited), 0);
    assert_int_equal(rc, -EFBIG);
    assert_non_null(strstr(dead_letter_error(f.d), f.path));
    assert_int_equal(dead_letter_size(f.d), size);
    assert_lines(f.path, LINE("1", "a"));
    assert_int_equal(put_text(2, "b"), 0);
    assert_lines(f.path, LINE("1", "a") LINE("2", "b"));
}

static void a_directory_that_is_not_there_is_an_error_that_names_it(void **state)
{
    (void)state;
    assert_int_equal(dead_letter_open(&f.d, "/nonexistent/rejected.jsonl", 1), -ENOENT);
    assert_non_null(strstr(dead_letter_error(f.d), "/nonexistent/rejected.jsonl"));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_record_is_one_line_with_everything_about_it),
        TEST(bytes_that_are_not_utf8_are_kept_as_base64),
        TEST(a_tombstone_has_a_null_value_and_a_key_may_be_bytes),
        TEST(a_value_is_kept_up_to_a_mebibyte_and_its_size_told),
        TEST(reopening_appends),
        TEST(a_line_that_a_crash_cut_short_is_removed),
        TEST(a_file_of_another_kind_is_left_alone),
        TEST(what_was_written_after_a_checkpoint_is_cut_and_not_kept_twice),
        TEST(a_full_file_is_rotated_and_one_older_kept),
        TEST(truncation_undoes_rotation),
        TEST(a_file_that_was_moved_away_goes_on_at_the_checkpoint),
        TEST(a_failed_write_is_told_and_leaves_no_half_line),
        TEST(a_directory_that_is_not_there_is_an_error_that_names_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
