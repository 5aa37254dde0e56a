// SPDX-License-Identifier: Apache-2.0
#include "pipeline/slice_log.h"

#include <errno.h>
#include <unistd.h>

#include "tests/unit/test_snapshot.h"

enum { PARTITIONS = 3, RECORD = 88 + 9 * PARTITIONS, SEEN_MAX = 200 };

static char directory[64];
static struct slice_log l;
static uint64_t history; // which one append writes

static int setup(void **state)
{
    (void)state;
    // In memory where there is some: a thousand syncs take seconds on a disk.
    strcpy(directory, access("/dev/shm", W_OK) == 0 ? "/dev/shm/test_slice_log.XXXXXX"
                                                    : "/tmp/test_slice_log.XXXXXX");
    return mkdtemp(directory) ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    tree_remove(directory);
    return 0;
}

struct seen {
    int n;
    struct slice_record record[SEEN_MAX];
    int64_t next[SEEN_MAX][PARTITIONS];
    int32_t epoch[SEEN_MAX][PARTITIONS];
    uint8_t flags[SEEN_MAX][PARTITIONS];
    struct slice_verdict verdicts[SEEN_MAX][4];
    struct slice_move moves[SEEN_MAX][PARTITIONS];
};

static int see(void *arg, const struct slice_record *record)
{
    struct seen *s = arg;
    memcpy(s->next[s->n], record->next, sizeof s->next[0]);
    memcpy(s->epoch[s->n], record->epoch, sizeof s->epoch[0]);
    memcpy(s->flags[s->n], record->flags, sizeof s->flags[0]);
    for (int i = 0; i < record->n_verdicts; i++)
        s->verdicts[s->n][i] = record->verdicts[i];
    for (int i = 0; i < record->n_moves; i++)
        s->moves[s->n][i] = record->moves[i];
    s->record[s->n++] = *record;
    return 0;
}

static int64_t next_of(uint64_t number, int p)
{
    return (int64_t)(number * 100) + p;
}

// Nothing is known of the partitions.
static int32_t no_epoch[PARTITIONS] = {-1, -1, -1};
static uint8_t no_flags[PARTITIONS];

static void append(uint64_t number)
{
    int64_t next[PARTITIONS];
    for (int p = 0; p < PARTITIONS; p++)
        next[p] = next_of(number, p);
    const struct slice slice = {.number = number,
                                .order = number % 2 ? SLICE_LIVE : SLICE_CANONICAL,
                                .n_events = (int)number * 3,
                                .n_partitions = PARTITIONS,
                                .next = next,
                                .epoch = no_epoch,
                                .flags = no_flags,
                                .watermark_ms = number == 1 ? INT64_MIN : (int64_t)number * 7,
                                .dead_letters = (int64_t)number * 11,
                                .digest = mix(number) + history};
    assert_int_equal(slice_log_append(&l, &slice), 0);
}

static int open_log(uint64_t after, struct seen *s)
{
    if (s)
        s->n = 0;
    return slice_log_open(&l, NULL, directory, PARTITIONS, 5 * RECORD, after, s ? see : NULL, s);
}

// Fails unless the log gives exactly the numbers from..to.
static void assert_gives(uint64_t after, uint64_t from, uint64_t to)
{
    static struct seen s;
    if (open_log(after, &s) < 0)
        fail_msg("%s", l.error);
    assert_int_equal(s.n, to + 1 - from);
    for (int i = 0; i < s.n; i++) {
        const uint64_t number = from + (uint64_t)i;
        assert_int_equal(s.record[i].number, number);
        assert_int_equal(s.record[i].digest, mix(number));
        assert_int_equal(s.record[i].order, number % 2 ? SLICE_LIVE : SLICE_CANONICAL);
        assert_int_equal(s.record[i].n_events, number * 3);
        assert_int_equal(s.record[i].watermark_ms, number == 1 ? INT64_MIN : (int64_t)number * 7);
        assert_int_equal(s.record[i].dead_letters, number * 11);
        for (int p = 0; p < PARTITIONS; p++)
            assert_int_equal(s.next[i][p], next_of(number, p));
    }
}

static void sync_log(void)
{
    char error[256];
    assert_int_equal(slice_log_sync(&l, error, sizeof error), 0);
}

static void write_log(uint64_t from, uint64_t to)
{
    assert_int_equal(open_log(from - 1, NULL), 0);
    for (uint64_t number = from; number <= to; number++) {
        append(number);
        sync_log();
    }
    slice_log_close(&l);
}

static void a_sync_that_failed_is_not_forgotten(void **state)
{
    int ends[2];
    char error[256];
    int64_t next[PARTITIONS] = {0};
    (void)state;
    assert_int_equal(open_log(0, NULL), 0);
    append(1);
    const int file = l.file;
    assert_int_equal(pipe(ends), 0);
    l.file = ends[1]; // cannot be synced
    assert_int_equal(slice_log_sync(&l, error, sizeof error), -EINVAL);
    l.file = file; // the next one would say that all is well
    assert_int_equal(slice_log_sync(&l, error, sizeof error), -EINVAL);
    assert_non_null(strstr(error, directory));
    const struct slice slice = {.number = 2,
                                .n_partitions = PARTITIONS,
                                .next = next,
                                .epoch = no_epoch,
                                .flags = no_flags};
    assert_int_equal(slice_log_append(&l, &slice), -EINVAL);
    assert_non_null(strstr(l.error, directory));
    slice_log_close(&l);
    close(ends[0]);
    close(ends[1]);
}

static void path_of(uint64_t first, char path[128])
{
    snprintf(path, 128, "%s/slices-%" PRIu64 ".log", directory, first);
}

static void what_is_appended_is_read_again(void **state)
{
    (void)state;
    assert_gives(0, 1, 0); // an empty directory
    slice_log_close(&l);
    write_log(1, 12);
    assert_gives(0, 1, 12);
    slice_log_close(&l);
    assert_gives(7, 8, 12);
    append(13);
    slice_log_close(&l);
    assert_gives(12, 13, 13);
    slice_log_close(&l);
    assert_gives(13, 14, 13);
    slice_log_close(&l);
}

static void a_full_file_is_followed_by_another(void **state)
{
    (void)state;
    write_log(1, 12);
    assert_int_equal(count_entries(directory), 3); // 5 + 5 + 2 records
    char path[128];
    path_of(6, path);
    assert_int_equal(access(path, R_OK), 0);
}

static void trimming_removes_files_that_nobody_needs(void **state)
{
    (void)state;
    write_log(1, 12);
    assert_int_equal(open_log(0, NULL), 0);
    assert_int_equal(slice_log_trim(&l, 4, 0), 0);
    assert_int_equal(count_entries(directory), 3);
    assert_int_equal(slice_log_trim(&l, 5, 0), 0);
    assert_int_equal(count_entries(directory), 2);
    assert_int_equal(slice_log_trim(&l, 1000, 0), 0); // the newest stays
    assert_int_equal(count_entries(directory), 1);
    append(13);
    slice_log_close(&l);
    assert_gives(11, 12, 13);
    slice_log_close(&l);
}

static void a_log_that_begins_behind_the_checkpoint_is_refused(void **state)
{
    (void)state;
    static struct seen s;
    write_log(1, 12);
    assert_int_equal(open_log(0, NULL), 0);
    assert_int_equal(slice_log_trim(&l, 5, 0), 0);
    slice_log_close(&l);
    assert_int_equal(open_log(3, &s), -EBADMSG);
    assert_non_null(strstr(l.error, "begins with slice 6, expected 4"));
    slice_log_close(&l);
    assert_gives(5, 6, 12);
    slice_log_close(&l);
}

static void a_slice_without_a_number_is_refused(void **state)
{
    (void)state;
    static struct seen s;
    assert_int_equal(open_log(0, NULL), 0);
    append(0);
    slice_log_close(&l);
    assert_int_equal(open_log(0, &s), -EBADMSG);
    assert_non_null(strstr(l.error, "slices-0.log: at byte 0: slice 0"));
    slice_log_close(&l);
}

static void a_file_with_another_spelling_of_a_number_is_none_of_the_log(void **state)
{
    (void)state;
    char path[128];
    write_log(1, 3);
    snprintf(path, sizeof path, "%s/slices-01.log", directory);
    file_write(path, "x", 1);
    assert_gives(0, 1, 3);
    slice_log_close(&l);
}

// The next slice would get the name of that file, and begin it anew over the slice that it has.
static void a_file_whose_name_is_not_its_first_slice_is_refused(void **state)
{
    (void)state;
    static struct seen s;
    char path[128], wrong[128];
    write_log(1, 1);
    path_of(1, path);
    path_of(2, wrong);
    assert_int_equal(rename(path, wrong), 0);
    assert_int_equal(open_log(0, &s), -EBADMSG);
    assert_non_null(strstr(l.error, "slices-2.log: begins with slice 1, where its name says 2"));
    slice_log_close(&l);
    assert_int_equal(rename(wrong, path), 0);
    assert_gives(0, 1, 1);
    slice_log_close(&l);
}

static void a_missing_file_in_the_middle_is_refused(void **state)
{
    (void)state;
    static struct seen s;
    char path[128];
    write_log(1, 12);
    path_of(6, path);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(open_log(0, &s), -EBADMSG);
    assert_non_null(strstr(l.error, "slices-11.log"));
    slice_log_close(&l);
}

// Writes the first size bytes of the file back.
static void cut_file(uint64_t first, const char *bytes, size_t size)
{
    char path[128];
    path_of(first, path);
    file_write(path, bytes, size);
}

static void remove_after(uint64_t first, uint64_t to)
{
    char path[128];
    for (uint64_t number = first + 1; number <= to; number++) {
        path_of(number, path);
        unlink(path);
    }
}

static void a_tail_torn_at_any_byte_is_cut_off(void **state)
{
    (void)state;
    char path[128];
    size_t size;
    write_log(1, 3);
    path_of(1, path);
    char *bytes = file_read(path, &size);
    assert_int_equal(size, 3 * RECORD);
    for (size_t torn = 0; torn < size; torn++) {
        remove_after(1, 4); // what the last turn began
        cut_file(1, bytes, torn);
        const uint64_t whole = torn / RECORD;
        assert_gives(0, 1, whole);
        append(whole + 1);
        slice_log_close(&l);
        assert_gives(0, 1, whole + 1);
        slice_log_close(&l);
    }
    free(bytes);
}

static void a_tail_of_anything_is_cut_off_but_not_with_slices_behind_it(void **state)
{
    (void)state;
    static struct seen s;
    char path[128];
    size_t size;
    write_log(1, 4);
    path_of(1, path);
    char *bytes = file_read(path, &size);
    for (size_t at = 0; at < size; at++) {
        bytes[at] = (char)(bytes[at] ^ 0x20);
        cut_file(1, bytes, size);
        if (at < size - RECORD) {
            assert_int_equal(open_log(0, &s), -EBADMSG);
            assert_non_null(strstr(l.error, "slices-1.log"));
            slice_log_close(&l);
            size_t left; // nothing was cut
            free(file_read(path, &left));
            assert_int_equal(left, size);
        } else {
            assert_gives(0, 1, 3);
            slice_log_close(&l);
        }
        bytes[at] = (char)(bytes[at] ^ 0x20);
    }
    free(bytes);
}

// A disk writes what was not synced in any order.
static void of_what_was_not_synced_the_log_ends_before_the_first_that_is_missing(void **state)
{
    (void)state;
    static struct seen s;
    char path[128];
    size_t size;
    assert_int_equal(open_log(0, NULL), 0);
    append(1);
    append(2);
    sync_log();
    for (uint64_t number = 3; number <= 5; number++)
        append(number);
    slice_log_close(&l);
    path_of(1, path);
    char *bytes = file_read(path, &size), zeroes[RECORD] = {0};
    assert_int_equal(size, 5 * RECORD);
    for (uint64_t missing = 1; missing <= 5; missing++) {
        char *at = bytes + (missing - 1) * RECORD, kept[RECORD];
        memcpy(kept, at, RECORD);
        memcpy(at, zeroes, RECORD);
        remove_after(1, 6);
        cut_file(1, bytes, size);
        if (missing <= 2) {
            assert_int_equal(open_log(0, &s), -EBADMSG);
        } else {
            assert_gives(0, 1, missing - 1);
            append(missing);
            slice_log_close(&l);
            assert_gives(0, 1, missing);
        }
        slice_log_close(&l);
        memcpy(at, kept, RECORD);
    }
    // The next file begins with the sync of the one before.
    remove_after(1, 6);
    cut_file(1, bytes, size);
    write_log(6, 6);
    cut_file(1, bytes, size - 1);
    assert_int_equal(open_log(0, &s), -EBADMSG);
    slice_log_close(&l);
    free(bytes);
}

static void a_file_that_never_got_its_first_slice_takes_nothing_with_it(void **state)
{
    (void)state;
    write_log(1, 6);
    cut_file(6, "", 0);
    assert_gives(5, 6, 5); // the checkpoint has all that is left
    append(6);
    append(7);
    slice_log_close(&l);
    assert_gives(0, 1, 7);
    slice_log_close(&l);
}

static void damage_in_an_earlier_file_is_refused_even_at_its_end(void **state)
{
    (void)state;
    static struct seen s;
    char path[128];
    size_t size;
    write_log(1, 12);
    path_of(1, path);
    char *bytes = file_read(path, &size);
    cut_file(1, bytes, size - 1);
    assert_int_equal(open_log(0, &s), -EBADMSG);
    slice_log_close(&l);
    size_t left; // nothing was cut
    free(file_read(path, &left));
    assert_int_equal(left, size - 1);
    cut_file(1, bytes, size - RECORD); // a whole record is missing
    assert_int_equal(open_log(0, &s), -EBADMSG);
    slice_log_close(&l);
    free(bytes);
}

static void a_file_of_another_history_is_refused(void **state)
{
    (void)state;
    static struct seen s;
    char path[128];
    size_t size;
    history = 1;
    write_log(1, 12);
    history = 0;
    path_of(6, path);
    char *bytes = file_read(path, &size);
    tree_remove(directory);
    assert_int_equal(mkdir(directory, 0700), 0);
    write_log(1, 12);
    cut_file(6, bytes, size); // the same numbers, every record whole
    assert_int_equal(open_log(0, &s), -EBADMSG);
    slice_log_close(&l);
    free(bytes);
}

static void a_log_of_another_number_of_partitions_is_refused_and_left_alone(void **state)
{
    (void)state;
    static struct seen s;
    struct slice_log other;
    write_log(1, 4);
    s.n = 0;
    assert_int_equal(slice_log_open(&other, NULL, directory, PARTITIONS - 1, 1000, 0, see, &s),
                     -EINVAL);
    assert_non_null(strstr(other.error, "written with 3 partitions, there are 2 now"));
    assert_int_equal(s.n, 0);
    slice_log_close(&other);
    assert_gives(0, 1, 4);
    slice_log_close(&l);
}

static int refuse(void *arg, const struct slice_record *record)
{
    (void)arg;
    return record->number == 3 ? -EINTR : 0;
}

static void the_reader_may_end_the_reading(void **state)
{
    (void)state;
    write_log(1, 4);
    assert_int_equal(slice_log_open(&l, NULL, directory, PARTITIONS, 1000, 0, refuse, NULL),
                     -EINTR);
    slice_log_close(&l);
}

static void a_checkpoint_ahead_of_the_log_goes_on_in_a_new_file(void **state)
{
    (void)state;
    write_log(1, 3);
    write_log(21, 23); // the checkpoint is after slice 20
    assert_gives(20, 21, 23);
    slice_log_close(&l);
    assert_gives(22, 23, 23);
    slice_log_close(&l);
}

static void a_directory_that_is_not_there_is_an_error_that_names_it(void **state)
{
    (void)state;
    assert_int_equal(slice_log_open(&l, NULL, "/nonexistent/state", 1, 1000, 0, NULL, NULL),
                     -ENOENT);
    assert_non_null(strstr(l.error, "/nonexistent/state"));
    slice_log_close(&l);
}

// Slices of which every third one has values, of one task, two, three ...
static struct slice_values values_of(uint64_t number)
{
    struct slice_values values = {0};
    if (number % 3 == 0)
        values.n = 1 + (int)(number / 3 - 1) % SLATE_TASKS_MAX;
    for (int t = 0; t < values.n; t++)
        values.weight[t] = (float)number - 1.5f * (float)t;
    return values;
}

static size_t size_of(uint64_t number)
{
    const int n = values_of(number).n;
    return RECORD + 4 * (size_t)n;
}

static void append_valued(uint64_t number)
{
    int64_t next[PARTITIONS] = {(int64_t)number};
    const struct slice slice = {.number = number,
                                .n_partitions = PARTITIONS,
                                .next = next,
                                .epoch = no_epoch,
                                .flags = no_flags,
                                .digest = mix(number),
                                .values = values_of(number)};
    assert_int_equal(slice_log_append(&l, &slice), 0);
}

static void assert_gives_valued(uint64_t to)
{
    static struct seen s;
    if (open_log(0, &s) < 0)
        fail_msg("%s", l.error);
    assert_int_equal(s.n, to);
    for (uint64_t number = 1; number <= to; number++) {
        const struct slice_values values = values_of(number);
        assert_int_equal(s.record[number - 1].digest, mix(number));
        assert_memory_equal(&s.record[number - 1].values, &values, sizeof values);
        assert_int_equal(s.next[number - 1][0], number);
    }
}

static void values_are_kept_with_the_slices_that_have_them(void **state)
{
    (void)state;
    enum { N = 27 }; // in files of five or fewer
    assert_int_equal(open_log(0, NULL), 0);
    for (uint64_t number = 1; number <= N; number++)
        append_valued(number);
    slice_log_close(&l);
    assert_gives_valued(N);
    slice_log_close(&l);
}

static void a_tail_torn_inside_of_values_is_cut_off_and_damage_before_it_refused(void **state)
{
    (void)state;
    static struct seen s;
    char path[128];
    size_t size;
    assert_int_equal(open_log(0, NULL), 0);
    for (uint64_t number = 1; number <= 4; number++) {
        append_valued(number);
        sync_log();
    }
    slice_log_close(&l);
    path_of(1, path);
    char *bytes = file_read(path, &size);
    assert_int_equal(size, 3 * RECORD + size_of(3));
    const size_t third = 2 * RECORD, end = third + size_of(3);
    for (size_t torn = third; torn < end; torn++) {
        remove_after(1, 5);
        cut_file(1, bytes, torn);
        assert_gives_valued(2);
        append_valued(3);
        slice_log_close(&l);
        assert_gives_valued(3);
        slice_log_close(&l);
    }
    remove_after(1, 5);
    for (size_t at = third; at < end; at++) {
        bytes[at] = (char)(bytes[at] ^ 0x02);
        cut_file(1, bytes, end); // the last one
        assert_gives_valued(2);
        slice_log_close(&l);
        cut_file(1, bytes, size); // one behind it
        assert_int_equal(open_log(0, &s), -EBADMSG);
        slice_log_close(&l);
        bytes[at] = (char)(bytes[at] ^ 0x02);
    }
    free(bytes);
}

// Slices 1 and 2 as an earlier version wrote them.
static void a_log_of_another_version_is_refused_and_left_alone(void **state)
{
    (void)state;
    static struct seen s;
    char path[128], earlier[160] = "TLS1";
    size_t left;
    cut_file(1, earlier, sizeof earlier);
    assert_int_equal(open_log(0, &s), -EINVAL);
    assert_non_null(strstr(l.error, "another version of twotower (TLS1, expected TLS2)"));
    slice_log_close(&l);
    path_of(1, path);
    free(file_read(path, &left));
    assert_int_equal(left, sizeof earlier);
}

static void all_that_was_decided_is_given_back(void **state)
{
    (void)state;
    static struct seen s;
    int64_t next[] = {1, 2, 3};
    int32_t epoch[] = {-1, 5, 1 << 30};
    uint8_t flags[] = {SLICE_END_SEEN, 0, SLICE_END_SEEN | SLICE_IDLE};
    struct slice_verdict verdicts[] = {{2, 17}, {0, INT64_MAX}, {1, 0}};
    struct slice_move moves[] = {{1, 5, 500}, {2, 900, 0}};
    const struct slice slice = {.number = 1,
                                .order = SLICE_LIVE,
                                .last = true,
                                .n_events = 9,
                                .n_partitions = PARTITIONS,
                                .next = next,
                                .epoch = epoch,
                                .flags = flags,
                                .watermark_ms = 11,
                                .floor_ms = 12,
                                .clock_ms = 13,
                                .dead_letters = 14,
                                .n_verdicts = 3,
                                .verdicts = verdicts,
                                .n_moves = 2,
                                .moves = moves,
                                .shed_permille = 999,
                                .values = {2, {0.5f, -2}},
                                .digest = 15};
    assert_int_equal(open_log(0, NULL), 0);
    assert_int_equal(slice_log_append(&l, &slice), 0);
    slice_log_close(&l);
    assert_int_equal(open_log(0, &s), 0);
    assert_int_equal(s.n, 1);
    const struct slice_record *r = &s.record[0];
    assert_true(r->last && r->order == SLICE_LIVE && r->n_events == 9 && r->digest == 15);
    assert_true(r->watermark_ms == 11 && r->floor_ms == 12 && r->clock_ms == 13 &&
                r->dead_letters == 14 && r->shed_permille == 999);
    assert_memory_equal(s.next[0], next, sizeof next);
    assert_memory_equal(s.epoch[0], epoch, sizeof epoch);
    assert_memory_equal(s.flags[0], flags, sizeof flags);
    assert_int_equal(r->n_verdicts, 3);
    for (int i = 0; i < 3; i++)
        assert_true(s.verdicts[0][i].partition == verdicts[i].partition &&
                    s.verdicts[0][i].offset == verdicts[i].offset);
    assert_int_equal(r->n_moves, 2);
    for (int i = 0; i < 2; i++)
        assert_true(s.moves[0][i].partition == moves[i].partition &&
                    s.moves[0][i].from == moves[i].from && s.moves[0][i].to == moves[i].to);
    assert_memory_equal(&r->values, &slice.values, sizeof r->values);
    slice_log_close(&l);
}

static void a_record_that_names_a_partition_that_is_not_there_is_refused(void **state)
{
    (void)state;
    static struct seen s;
    int64_t next[PARTITIONS] = {0};
    struct slice_verdict verdict = {PARTITIONS, 0};
    const struct slice slice = {.number = 1,
                                .n_partitions = PARTITIONS,
                                .next = next,
                                .epoch = no_epoch,
                                .flags = no_flags,
                                .n_verdicts = 1,
                                .verdicts = &verdict};
    assert_int_equal(open_log(0, NULL), 0);
    assert_int_equal(slice_log_append(&l, &slice), 0);
    slice_log_close(&l);
    assert_int_equal(open_log(0, &s), -EBADMSG);
    assert_non_null(strstr(l.error, "slice 1 names no partition of ours"));
    slice_log_close(&l);
}

static void old_files_are_kept_as_far_as_there_is_room(void **state)
{
    (void)state;
    write_log(1, 27); // five files of five records and one of two
    assert_int_equal(open_log(26, NULL), 0);
    assert_int_equal(slice_log_trim(&l, 25, 10 * RECORD), 0);
    assert_int_equal(count_entries(directory), 3); // two old ones and the newest
    assert_int_equal(slice_log_trim(&l, 25, 10 * RECORD - 1), 0);
    assert_int_equal(count_entries(directory), 2);
    slice_log_close(&l);
    assert_gives(20, 21, 27);
    slice_log_close(&l);
    assert_gives(25, 26, 27); // without the old one being read
    slice_log_close(&l);
}

static void what_is_forgotten_is_written_anew(void **state)
{
    (void)state;
    // In the middle of a file, at the end of one, in the newest, everything, nothing.
    static const uint64_t after[] = {7, 10, 12, 0, 13};
    for (unsigned i = 0; i < sizeof after / sizeof *after; i++) {
        write_log(1, 13);
        assert_int_equal(open_log(0, NULL), 0);
        assert_int_equal(slice_log_forget(&l, after[i]), 0);
        append(after[i] + 1);
        slice_log_close(&l);
        assert_gives(0, 1, after[i] + 1);
        slice_log_close(&l);
        tree_remove(directory);
        assert_int_equal(mkdir(directory, 0700), 0);
    }
}

static int nobodys(void *arg, char *error, size_t error_size)
{
    (void)arg;
    snprintf(error, error_size, "another process has taken it over");
    return -EBUSY;
}

static void who_lost_the_directory_and_does_not_know_harms_nobody(void **state)
{
    (void)state;
    static struct slice_log old;
    write_log(1, 3);
    assert_int_equal(open_log(3, NULL), 0);
    append(4);
    old = l; // is still alive when another one opens the directory
    assert_gives(0, 1, 4);
    struct slice_log new = l;
    history = 1; // the old one cuts other slices from here on
    l = old;
    append(5);
    append(6);
    old = l;
    history = 0;
    l = new;
    append(5);
    new = l;
    history = 1;
    l = old;
    append(7);
    l.permit = nobodys;
    l.size = l.size_max;
    const struct slice slice = {.number = 8,
                                .n_partitions = PARTITIONS,
                                .next = (int64_t[PARTITIONS]){0},
                                .epoch = no_epoch,
                                .flags = no_flags};
    assert_int_equal(slice_log_append(&l, &slice), -EBUSY); // before it would begin a file
    assert_string_equal(l.error, "another process has taken it over");
    slice_log_close(&l);
    history = 0;
    l = new;
    append(6);
    slice_log_close(&l);
    assert_gives(0, 1, 6);
    slice_log_close(&l);
}

static void looking_at_a_log_changes_nothing(void **state)
{
    (void)state;
    static struct seen s;
    char path[128], error[512];
    size_t size, left;
    uint64_t first;
    write_log(1, 12);
    path_of(11, path);
    char *bytes = file_read(path, &size);
    cut_file(11, bytes, size - 1); // torn, or in the middle of being written
    s.n = 0;
    assert_int_equal(slice_log_read(directory, PARTITIONS, 3, &first, see, &s, error, sizeof error),
                     0);
    assert_int_equal(first, 1);
    assert_int_equal(s.n, 8); // 4 to 11
    assert_int_equal(s.record[7].number, 11);
    free(bytes);
    bytes = file_read(path, &left);
    assert_int_equal(left, size - 1);
    free(bytes);
    assert_int_equal(
        slice_log_read("/nonexistent/state", PARTITIONS, 0, &first, see, &s, error, sizeof error),
        -ENOENT);
    assert_non_null(strstr(error, "/nonexistent/state"));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(what_is_appended_is_read_again),
        TEST(a_sync_that_failed_is_not_forgotten),
        TEST(a_full_file_is_followed_by_another),
        TEST(trimming_removes_files_that_nobody_needs),
        TEST(a_log_that_begins_behind_the_checkpoint_is_refused),
        TEST(a_slice_without_a_number_is_refused),
        TEST(a_file_with_another_spelling_of_a_number_is_none_of_the_log),
        TEST(a_file_whose_name_is_not_its_first_slice_is_refused),
        TEST(a_missing_file_in_the_middle_is_refused),
        TEST(a_tail_torn_at_any_byte_is_cut_off),
        TEST(a_tail_of_anything_is_cut_off_but_not_with_slices_behind_it),
        TEST(a_file_that_never_got_its_first_slice_takes_nothing_with_it),
        TEST(of_what_was_not_synced_the_log_ends_before_the_first_that_is_missing),
        TEST(damage_in_an_earlier_file_is_refused_even_at_its_end),
        TEST(a_file_of_another_history_is_refused),
        TEST(a_log_of_another_number_of_partitions_is_refused_and_left_alone),
        TEST(the_reader_may_end_the_reading),
        TEST(a_checkpoint_ahead_of_the_log_goes_on_in_a_new_file),
        TEST(a_directory_that_is_not_there_is_an_error_that_names_it),
        TEST(values_are_kept_with_the_slices_that_have_them),
        TEST(a_tail_torn_inside_of_values_is_cut_off_and_damage_before_it_refused),
        TEST(a_log_of_another_version_is_refused_and_left_alone),
        TEST(all_that_was_decided_is_given_back),
        TEST(a_record_that_names_a_partition_that_is_not_there_is_refused),
        TEST(old_files_are_kept_as_far_as_there_is_room),
        TEST(what_is_forgotten_is_written_anew),
        TEST(who_lost_the_directory_and_does_not_know_harms_nobody),
        TEST(looking_at_a_log_changes_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
