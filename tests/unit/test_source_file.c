// SPDX-License-Identifier: Apache-2.0
#include "pipeline/source.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>
// clang-format off
#include <stdarg.h>
#include <setjmp.h>
#include <cmocka.h>
// clang-format on

enum { LINES = 3000 };

static struct fixture {
    char directory[64];
    struct source *s;
    char error[512];
    int64_t first[TOPICS], end[TOPICS];
} f;

static const char *path_of(const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", f.directory, name);
    return path;
}

static void write_file(const char *name, const char *bytes, size_t size)
{
    FILE *out = fopen(path_of(name), "w");
    assert_non_null(out);
    assert_int_equal(fwrite(bytes, 1, size, out), size);
    assert_int_equal(fclose(out), 0);
}

// Frames of frame_size bytes of text each; the caller frees what is returned.
static char *compress(const char *text, size_t size, size_t frame_size, size_t *compressed)
{
    char *out = malloc(ZSTD_compressBound(size) + (size / frame_size + 2) * 64);
    assert_non_null(out);
    *compressed = 0;
    for (size_t at = 0; at < size || at == 0; at += frame_size) {
        const size_t n = size - at < frame_size ? size - at : frame_size;
        *compressed += ZSTD_compress(out + *compressed, ZSTD_compressBound(n), text + at, n, 1);
    }
    return out;
}

static void write_zstd(const char *name, const char *text, size_t size, size_t frame_size)
{
    size_t compressed;
    char *bytes = compress(text, size, frame_size, &compressed);
    write_file(name, bytes, compressed);
    free(bytes);
}

// Line i, of different lengths; ts goes up by 10 every line.
static size_t make_line(char *line, int i)
{
    return (size_t)sprintf(line, "{\"n\":%d,\"ts\":%d,\"pad\":\"%*s\"}\n", i, 1000 + 10 * i,
                           i * 7 % 90, "");
}

static char *make_lines(int n, size_t *size)
{
    char *text = malloc((size_t)n * 200);
    assert_non_null(text);
    *size = 0;
    for (int i = 0; i < n; i++)
        *size += make_line(text + *size, i);
    return text;
}

static void open_source(void)
{
    if (source_file_open(&f.s, f.directory, f.error, sizeof f.error) < 0)
        fail_msg("%s", f.error);
    if (f.s->ops->bounds(f.s, f.first, f.end) < 0)
        fail_msg("%s", f.s->error);
}

// Reads partition p to its end and checks that the lines are those from `next` on.
static void assert_lines_from(int p, int64_t next, int64_t stop, int batch)
{
    struct record records[64];
    char line[300];
    int n;
    int64_t expected = next;

    while ((n = f.s->ops->read(f.s, p, batch, records)) > 0) {
        assert_in_range(n, 1, batch);
        for (int i = 0; i < n; i++, expected++) {
            const size_t size = make_line(line, (int)expected) - 1;
            assert_int_equal(records[i].offset, expected);
            assert_int_equal(records[i].broker_ts_ms, -1);
            assert_false(records[i].tombstone);
            assert_null(records[i].key);
            assert_int_equal(records[i].value_size, size);
            assert_memory_equal(records[i].value, line, size);
        }
        assert_int_equal(f.s->ops->position(f.s, p), expected);
    }
    if (n < 0)
        fail_msg("%s", f.s->error);
    assert_int_equal(expected, stop);
    assert_true(f.s->ops->at_end(f.s, p));
}

static int setup(void **state)
{
    (void)state;
    memset(&f, 0, sizeof f);
    strcpy(f.directory, "/tmp/test_source_file.XXXXXX");
    return mkdtemp(f.directory) ? 0 : -1;
}

static int teardown(void **state)
{
    static const char *const names[] = {
        "items.jsonl",           "items.jsonl.zst",       "ranker_scores.jsonl.zst",
        "impressions.jsonl",     "impressions.jsonl.zst", "engagements.jsonl",
        "engagements.jsonl.zst", "truth.jsonl.zst",       "notes.txt"};
    (void)state;
    if (f.s)
        f.s->ops->close(f.s);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        unlink(path_of(names[i]));
    return rmdir(f.directory);
}

static void partitions_are_the_topics_that_are_there_in_their_order(void **state)
{
    (void)state;
    write_file("engagements.jsonl", "{}\n", 3);
    write_zstd("impressions.jsonl.zst", "{}\n{}\n", 6, 100);
    write_file("items.jsonl", "", 0);
    write_file("truth.jsonl.zst", "junk", 4);
    write_file("notes.txt", "junk", 4);
    open_source();
    assert_string_equal(f.s->ops->name, "file");
    assert_int_equal(f.s->n_partitions, 3);
    assert_int_equal(f.s->partitions[0].topic, TOPIC_ITEMS);
    assert_int_equal(f.s->partitions[1].topic, TOPIC_IMPRESSIONS);
    assert_int_equal(f.s->partitions[2].topic, TOPIC_ENGAGEMENTS);
    assert_string_equal(f.s->partitions[1].name, "impressions");
    assert_int_equal(f.s->partitions[1].partition, 0);
    const int64_t end[] = {0, 2, 1};
    for (int p = 0; p < 3; p++) {
        assert_int_equal(f.first[p], 0);
        assert_int_equal(f.end[p], end[p]);
    }
}

static void a_directory_without_events_is_an_error_that_names_it(void **state)
{
    (void)state;
    assert_int_equal(source_file_open(&f.s, f.directory, f.error, sizeof f.error), -ENOENT);
    assert_non_null(strstr(f.error, f.directory));
    write_file("items.jsonl", "{}\n", 3);
    assert_int_equal(source_file_open(&f.s, f.directory, f.error, sizeof f.error), -ENOENT);
    assert_int_equal(source_file_open(&f.s, "/nonexistent/dir", f.error, sizeof f.error), -ENOENT);
    assert_non_null(strstr(f.error, "/nonexistent/dir"));
    assert_int_equal(source_file_open(&f.s, path_of("items.jsonl"), f.error, sizeof f.error),
                     -ENOTDIR);
    assert_null(f.s);
}

static void two_files_of_one_topic_are_refused(void **state)
{
    (void)state;
    write_file("impressions.jsonl", "{}\n", 3);
    write_zstd("impressions.jsonl.zst", "{}\n", 3, 100);
    assert_int_equal(source_file_open(&f.s, f.directory, f.error, sizeof f.error), -EINVAL);
    assert_non_null(strstr(f.error, "impressions.jsonl.zst"));
    assert_null(f.s);
}

static void reading_can_start_at_every_line_and_stop_at_another(void **state)
{
    enum { FEW = 300 };
    size_t size;
    char *text = make_lines(FEW, &size);
    (void)state;

    write_file("impressions.jsonl", text, size);
    write_zstd("engagements.jsonl.zst", text, size, 1000); // lines across frames
    free(text);
    open_source();
    for (int64_t from = 0; from <= FEW; from++) {
        const int64_t next[2] = {from, FEW - from}, stop[2] = {FEW, FEW - from / 2};
        assert_int_equal(f.s->ops->start(f.s, next, stop), 0);
        for (int p = 0; p < 2; p++) {
            assert_int_equal(f.s->ops->position(f.s, p), next[p]);
            assert_lines_from(p, next[p], stop[p], 1 + (int)from % 64);
        }
    }
}

static void partitions_are_read_in_turns_and_without_a_bound(void **state)
{
    size_t size;
    char *text = make_lines(LINES, &size);
    const int64_t next[2] = {SOURCE_BEGIN, 5}, stop[2] = {SOURCE_UNBOUNDED, SOURCE_UNBOUNDED};
    int64_t at[2] = {0, 5};
    struct record records[7];
    (void)state;

    write_zstd("impressions.jsonl.zst", text, size, size);
    write_file("engagements.jsonl", text, size);
    free(text);
    open_source();
    assert_int_equal(f.s->ops->start(f.s, next, stop), 0);
    for (int n = 1; n > 0;) {
        n = 0;
        for (int p = 0; p < 2; p++) {
            const int got = f.s->ops->read(f.s, p, 7, records);
            assert_true(got >= 0);
            for (int i = 0; i < got; i++)
                assert_int_equal(records[i].offset, at[p]++);
            n += got;
        }
        assert_int_equal(f.s->ops->wait(f.s, 0), 0);
    }
    assert_true(at[0] == LINES && at[1] == LINES);
    assert_true(f.s->ops->at_end(f.s, 0) && f.s->ops->at_end(f.s, 1));
}

static void bounds_and_times_may_be_asked_while_reading(void **state)
{
    size_t size;
    char *text = make_lines(LINES, &size);
    const int64_t next[1] = {0}, stop[1] = {LINES};
    struct record records[10];
    (void)state;

    write_zstd("impressions.jsonl.zst", text, size, 5000);
    free(text);
    open_source();
    assert_int_equal(f.s->ops->start(f.s, next, stop), 0);
    assert_int_equal(f.s->ops->read(f.s, 0, 10, records), 10);
    assert_int_equal(f.s->ops->offsets_for_time(f.s, 0, f.first), 0);
    assert_int_equal(f.s->ops->bounds(f.s, f.first, f.end), 0);
    assert_int_equal(f.end[0], LINES);
    assert_lines_from(0, 10, LINES, 10);
}

static void the_first_line_at_or_after_a_time_is_found(void **state)
{
    static const struct {
        int64_t ts, line;
    } cases[] = {{0, 0}, {1000, 0}, {1001, 1}, {1010, 1}, {2000, 100}, {1000 + 10 * LINES, LINES}};
    static const char quoted[] = "{\"x\":\"\\\"ts\\\":9999\"}\n\n{ \"ts\" : 1500 }";
    size_t size;
    char *text = make_lines(LINES, &size);
    int64_t offsets[2];
    (void)state;

    write_zstd("impressions.jsonl.zst", text, size, size);
    write_file("engagements.jsonl", quoted, sizeof quoted - 1);
    free(text);
    open_source();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(f.s->ops->offsets_for_time(f.s, cases[i].ts, offsets), 0);
        assert_int_equal(offsets[0], cases[i].line);
        assert_int_equal(offsets[1], cases[i].ts <= 1500 ? 2 : 3);
    }
}

static void blank_lines_count_and_a_last_line_needs_no_newline(void **state)
{
    static const char text[] = "\na\n\n \t\r\nb\r\n\nc";
    const int64_t next[1] = {0}, stop[1] = {7};
    struct record records[10];
    (void)state;

    write_file("impressions.jsonl", text, strlen(text));
    open_source();
    assert_int_equal(f.end[0], 7);
    assert_int_equal(f.s->ops->start(f.s, next, stop), 0);
    int n = f.s->ops->read(f.s, 0, 10, records);
    assert_int_equal(n, 2);
    assert_int_equal(records[0].offset, 1);
    assert_int_equal(records[0].value_size, 1);
    assert_int_equal(records[1].offset, 4);
    assert_memory_equal(records[1].value, "b\r", 2);
    assert_int_equal(f.s->ops->position(f.s, 0), 6);
    n = f.s->ops->read(f.s, 0, 10, records);
    assert_int_equal(n, 1);
    assert_int_equal(records[0].offset, 6);
    assert_memory_equal(records[0].value, "c", 1);
    assert_int_equal(f.s->ops->read(f.s, 0, 10, records), 0);
    assert_true(f.s->ops->at_end(f.s, 0));
    assert_int_equal(f.s->ops->position(f.s, 0), 7);
}

static void lines_of_many_mebibytes_are_passed_on(void **state)
{
    enum { LONG = 5 << 20 };
    const int64_t next[1] = {0}, stop[1] = {3};
    struct record records[3];
    char *text = malloc(LONG + 10);
    (void)state;

    assert_non_null(text);
    memcpy(text, "a\n", 2);
    memset(text + 2, 'x', LONG);
    memcpy(text + 2 + LONG, "\nb\n", 3);
    write_zstd("impressions.jsonl.zst", text, LONG + 5, LONG + 5);
    free(text);
    open_source();
    assert_int_equal(f.s->ops->start(f.s, next, stop), 0);
    int64_t offset = 0;
    int n;
    while ((n = f.s->ops->read(f.s, 0, 3, records)) > 0)
        for (int i = 0; i < n; i++, offset++)
            assert_int_equal(records[i].value_size, offset == 1 ? LONG : 1);
    assert_int_equal(n, 0);
    assert_int_equal(offset, 3);
}

static void a_line_beyond_64_mebibytes_is_an_error(void **state)
{
    enum { HUGE = (64 << 20) + 2 };
    char *text = calloc(1, HUGE);
    const int64_t next[1] = {0}, stop[1] = {SOURCE_UNBOUNDED};
    struct record record;
    (void)state;

    assert_non_null(text);
    write_zstd("impressions.jsonl.zst", text, HUGE, HUGE);
    free(text);
    assert_int_equal(source_file_open(&f.s, f.directory, f.error, sizeof f.error), 0);
    assert_int_equal(f.s->ops->start(f.s, next, stop), 0);
    assert_int_equal(f.s->ops->read(f.s, 0, 1, &record), -EFBIG);
}

// Reads until the end or an error.
static int read_all(int64_t *lines)
{
    const int64_t next[1] = {0}, stop[1] = {SOURCE_UNBOUNDED};
    struct record records[64];
    int n;

    assert_int_equal(f.s->ops->start(f.s, next, stop), 0);
    *lines = 0;
    while ((n = f.s->ops->read(f.s, 0, 64, records)) > 0)
        *lines += n;
    return n;
}

static void corrupt_and_truncated_data_is_an_error_that_says_where(void **state)
{
    size_t size, compressed;
    char *text = make_lines(LINES, &size);
    char *bytes = compress(text, size, 20000, &compressed);
    int64_t lines;
    (void)state;

    free(text);
    for (size_t cut = 0; cut < compressed; cut += 997) { // never at the end of a frame
        write_file("impressions.jsonl.zst", bytes, cut);
        assert_int_equal(source_file_open(&f.s, f.directory, f.error, sizeof f.error), 0);
        assert_int_equal(read_all(&lines), -EBADMSG);
        assert_non_null(strstr(f.s->error, "impressions.jsonl.zst: line "));
        assert_non_null(strstr(f.s->error, "cut off"));
        assert_true(lines < LINES);
        assert_int_equal(f.s->ops->bounds(f.s, f.first, f.end), -EBADMSG);
        f.s->ops->close(f.s);
    }
    memset(bytes + compressed / 2, 0x55, 200);
    write_file("impressions.jsonl.zst", bytes, compressed);
    assert_int_equal(source_file_open(&f.s, f.directory, f.error, sizeof f.error), 0);
    assert_int_equal(read_all(&lines), -EBADMSG);
    assert_true(lines > 0 && lines < LINES);
    free(bytes);
}

static void a_position_beyond_the_file_is_an_error(void **state)
{
    const int64_t next[1] = {4}, stop[1] = {SOURCE_UNBOUNDED};
    struct record record;
    (void)state;
    write_file("impressions.jsonl", "a\nb\nc\n", 6);
    open_source();
    assert_int_equal(f.s->ops->start(f.s, next, stop), 0);
    assert_int_equal(f.s->ops->read(f.s, 0, 1, &record), -ESTALE);
    assert_non_null(strstr(f.s->error, "has 3 lines"));
}

static void much_text_from_little_data_is_read_to_its_end(void **state)
{
    enum { SAME = 400000 };
    char *text = malloc(20 * SAME);
    int64_t lines;
    (void)state;
    assert_non_null(text);
    for (size_t i = 0; i < SAME; i++)
        memcpy(text + 20 * i, "{\"same\":\"in all\"  }\n", 20);
    write_zstd("impressions.jsonl.zst", text, 20 * SAME, 20 * SAME);
    free(text);
    open_source();
    assert_int_equal(f.end[0], SAME);
    assert_int_equal(read_all(&lines), 0);
    assert_int_equal(lines, SAME);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(partitions_are_the_topics_that_are_there_in_their_order),
        TEST(a_directory_without_events_is_an_error_that_names_it),
        TEST(two_files_of_one_topic_are_refused),
        TEST(reading_can_start_at_every_line_and_stop_at_another),
        TEST(partitions_are_read_in_turns_and_without_a_bound),
        TEST(bounds_and_times_may_be_asked_while_reading),
        TEST(the_first_line_at_or_after_a_time_is_found),
        TEST(blank_lines_count_and_a_last_line_needs_no_newline),
        TEST(lines_of_many_mebibytes_are_passed_on),
        TEST(a_line_beyond_64_mebibytes_is_an_error),
        TEST(corrupt_and_truncated_data_is_an_error_that_says_where),
        TEST(a_position_beyond_the_file_is_an_error),
        TEST(much_text_from_little_data_is_read_to_its_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
