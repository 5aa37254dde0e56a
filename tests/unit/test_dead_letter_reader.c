// SPDX-License-Identifier: Apache-2.0
#include "pipeline/dead_letter_reader.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
// clang-format off
#include <stdarg.h>
#include <setjmp.h>
#include <cmocka.h>
// clang-format on

#include "model/rng.h"

static struct fixture {
    char directory[64], path[128], rotated[160];
    struct dead_letter *d;
    struct dead_letter_reader *r;
} f;

static int setup(void **state)
{
    (void)state;
    memset(&f, 0, sizeof f);
    strcpy(f.directory, "/tmp/test_letters.XXXXXX");
    if (!mkdtemp(f.directory))
        return -1;
    snprintf(f.path, sizeof f.path, "%s/rejected.jsonl", f.directory);
    snprintf(f.rotated, sizeof f.rotated, "%s.1", f.path);
    return 0;
}

static void close_both(void)
{
    dead_letter_reader_close(f.r);
    dead_letter_close(f.d);
    f.r = NULL;
    f.d = NULL;
}

static int teardown(void **state)
{
    (void)state;
    close_both();
    unlink(f.path);
    unlink(f.rotated);
    return rmdir(f.directory);
}

static void open_both(uint64_t bytes_max, bool hold)
{
    close_both();
    assert_int_equal(dead_letter_open(&f.d, f.path, bytes_max), 0);
    dead_letter_follow(f.d, hold);
    assert_int_equal(dead_letter_reader_open(&f.r, f.d), 0);
}

static void put(uint64_t slice, uint64_t number)
{
    const struct letter letter = {.topic = "items",
                                  .slice = slice,
                                  .letter = number,
                                  .reason = "not_json",
                                  .message = "no",
                                  .record = {.offset = (int64_t)(100 * slice + number),
                                             .broker_ts_ms = -1,
                                             .value = "x",
                                             .value_size = 1}};
    assert_int_equal(dead_letter_put(f.d, &letter), 0);
}

// The offset of the next letter, 0 when there is none now, -errno.
static int64_t next(uint64_t slice_max)
{
    struct letter letter;
    const int rc = dead_letter_reader_next(f.r, slice_max, &letter);
    return rc == 1 ? letter.record.offset : rc;
}

static bool bytes_equal(const char *a, size_t a_size, const char *b, size_t b_size)
{
    return a_size == b_size && !a == !b && (!a || memcmp(a, b, a_size) == 0);
}

// Random bytes, text and their mixtures come back as they were; absent is not empty.
static void what_is_written_is_read_back(void **state)
{
    enum { LETTERS = 400, BYTES = 300 };
    static struct kept {
        struct letter letter;
        struct record_headers headers;
        char bytes[40][BYTES];
    } kept[LETTERS];
    static const char *const alphabet = "aB0\"\\/ {}[],:\n\t";
    struct rng rng = {7, 0};
    (void)state;
    open_both(1 << 20, true);
    for (int i = 0; i < LETTERS; i++) {
        struct kept *k = &kept[i];
        const bool any = rng_below(&rng, 3) == 0; // any bytes
        size_t size[40];
        for (int t = 0; t < 40; t++) {
            size[t] = (size_t)rng_below(&rng, t % 2 ? BYTES : 4);
            for (size_t b = 0; b < size[t]; b++)
                k->bytes[t][b] = any ? (char)rng_below(&rng, 256) : alphabet[rng_below(&rng, 15)];
        }
        k->headers.n = (int)rng_below(&rng, 18);
        k->headers.left_out = k->headers.n ? (int)rng_below(&rng, 2) : 0;
        for (int h = 0; h < k->headers.n; h++)
            k->headers.list[h] = (struct record_header){
                k->bytes[4 + 2 * h], rng_below(&rng, 5) ? k->bytes[5 + 2 * h] : NULL,
                size[4 + 2 * h], size[5 + 2 * h]};
        for (int h = 0; h < k->headers.n; h++)
            if (!k->headers.list[h].value)
                k->headers.list[h].value_size = 0;
        const bool tombstone = rng_below(&rng, 6) == 0;
        k->letter = (struct letter){
            .topic = "items",
            .partition = (int32_t)rng_below(&rng, 1000),
            .slice = 1 + (uint64_t)i / 10,
            .letter = 1 + (uint64_t)i % 10,
            .reason = reject_names[1 + rng_below(&rng, 5)],
            .message = i % 2 ? "ts: \"5\"" : "",
            .record = {.offset = (int64_t)rng_below(&rng, 1u << 31) << 20,
                       .broker_ts_ms = (int64_t)rng_below(&rng, 5) - 1,
                       .key = rng_below(&rng, 4) ? k->bytes[1] : NULL,
                       .value = tombstone ? NULL : k->bytes[3],
                       .value_size = tombstone ? 0 : size[3],
                       .tombstone = tombstone},
            .headers = &k->headers,
        };
        k->letter.record.key_size = k->letter.record.key ? size[1] : 0;
        assert_int_equal(dead_letter_put(f.d, &k->letter), 0);
    }
    for (int i = 0; i < LETTERS; i++) {
        const struct letter *a = &kept[i].letter;
        struct letter b;
        if (dead_letter_reader_next(f.r, UINT64_MAX, &b) != 1)
            fail_msg("letter %d: %s", i, dead_letter_reader_error(f.r));
        assert_string_equal(a->topic, b.topic);
        assert_int_equal(a->partition, b.partition);
        assert_int_equal(a->slice, b.slice);
        assert_int_equal(a->letter, b.letter);
        assert_string_equal(a->reason, b.reason);
        assert_string_equal(a->message, b.message);
        assert_int_equal(a->record.offset, b.record.offset);
        assert_int_equal(a->record.broker_ts_ms, b.record.broker_ts_ms);
        assert_int_equal(a->record.tombstone, b.record.tombstone);
        assert_int_equal(a->record.value_size, b.value_size);
        assert_true(
            bytes_equal(a->record.key, a->record.key_size, b.record.key, b.record.key_size));
        assert_true(bytes_equal(a->record.value, a->record.value_size, b.record.value,
                                b.record.value_size));
        assert_int_equal(a->headers->n, b.headers->n);
        assert_int_equal(a->headers->left_out, b.headers->left_out);
        for (int h = 0; h < a->headers->n; h++) {
            const struct record_header *x = &a->headers->list[h], *y = &b.headers->list[h];
            assert_true(bytes_equal(x->name, x->name_size, y->name, y->name_size));
            assert_true(bytes_equal(x->value, x->value_size, y->value, y->value_size));
        }
    }
    assert_int_equal(next(UINT64_MAX), 0);
    assert_int_equal(dead_letter_reader_position(f.r), dead_letter_size(f.d));
}

static void a_value_that_was_cut_tells_its_size(void **state)
{
    enum { MIB = 1 << 20 };
    char *value = malloc(2 * MIB);
    struct letter letter = {.topic = "items",
                            .reason = "too_large",
                            .message = "",
                            .record = {.value = value, .value_size = 2 * MIB}};
    (void)state;
    memset(value, '\n', 2 * MIB); // six bytes each in the file
    open_both(64 << 20, true);
    assert_int_equal(dead_letter_put(f.d, &letter), 0);
    put(1, 1);
    assert_int_equal(dead_letter_reader_next(f.r, 1, &letter), 1);
    assert_int_equal(letter.value_size, 2 * MIB);
    assert_int_equal(letter.record.value_size, MIB);
    assert_int_equal(letter.slice, 0);
    assert_int_equal(next(1), 101);
    free(value);
}

static void slices_that_are_not_durable_wait(void **state)
{
    (void)state;
    open_both(1 << 20, true);
    put(1, 1);
    put(3, 1);
    put(3, 2);
    assert_int_equal(next(0), 0);
    assert_int_equal(next(2), 101);
    const uint64_t position = dead_letter_reader_position(f.r);
    assert_int_equal(next(2), 0);
    assert_int_equal(dead_letter_reader_position(f.r), position);
    assert_int_equal(next(3), 301);
    assert_int_equal(next(3), 302);
    assert_int_equal(next(3), 0);
    put(4, 1);
    assert_int_equal(next(4), 401);
    dead_letter_reader_seek(f.r, position);
    assert_int_equal(next(4), 301);
}

static void half_a_line_and_lines_of_others(void **state)
{
    (void)state;
    open_both(1 << 20, true);
    put(1, 1);
    assert_int_equal(next(9), 101);
    FILE *out = fopen(f.path, "a");
    fprintf(out, "{\"topic\":\"items\",");
    fflush(out);
    assert_int_equal(next(9), 0);
    fprintf(out,
            "\"partition\":0,\"offset\":7,\"reason\":\"not_json\",\"message\":\"\",\"new\":[{}],"
            "\"value\":\"\"}\n");
    fflush(out);
    assert_int_equal(next(9), 7);
    fprintf(out, "{\"topic\":\"items\"}\n\nnonsense\n");
    fprintf(out,
            "{\"topic\":\"items\",\"partition\":0,\"offset\":8,\"reason\":\"r\",\"message\":\"\","
            "\"value\":null}\n");
    fclose(out);
    for (int i = 0; i < 3; i++)
        assert_int_equal(next(9), -EBADMSG);
    assert_non_null(strstr(dead_letter_reader_error(f.r), "a line that is no dead letter"));
    assert_int_equal(next(9), 8);
    assert_int_equal(next(9), 0);
}

// A reader that is anywhere behind, over files that are rotated under it: held back, nothing is
// missed, however far it is behind.
static void what_is_held_is_never_rotated_away(void **state)
{
    enum { LETTERS = 300 };
    struct rng rng = {11, 0};
    (void)state;
    open_both(600, true);
    int64_t expected = 1, written = 0;
    unsigned full = 0;
    while (expected <= LETTERS) {
        if (written < LETTERS && !dead_letter_full(f.d) && rng_below(&rng, 3) > 0) {
            written++;
            put((uint64_t)written / 100, (uint64_t)written % 100);
        }
        full += dead_letter_full(f.d);
        if (rng_below(&rng, 2) == 0) {
            const int64_t offset = next(UINT64_MAX);
            if (offset == 0)
                continue;
            assert_int_equal(offset, expected);
            expected++;
        }
        if (rng_below(&rng, 8) == 0)
            dead_letter_release(f.d, dead_letter_reader_position(f.r));
    }
    assert_true(full > 0);
    assert_true(dead_letter_rotations(f.d) > 20);
    assert_int_equal(dead_letter_dropped(f.d), 0);
    // What is not released is there after a restart: all of both files.
    open_both(600, true);
    assert_true(next(UINT64_MAX) > 0);
}

static void what_nobody_waits_for_is_counted_when_it_is_replaced(void **state)
{
    (void)state;
    open_both(600, false);
    const uint64_t first = dead_letter_size(f.d);
    uint64_t replaced = 0;
    for (uint64_t i = 1; i <= 30; i++) {
        put(1, i);
        assert_false(dead_letter_full(f.d));
        // The first letter of the file that is PATH.1 now: all before is gone.
        struct dead_letter_reader *r;
        struct letter letter;
        assert_int_equal(dead_letter_reader_open(&r, f.d), 0);
        assert_int_equal(dead_letter_reader_next(r, 1, &letter), 1);
        replaced = (uint64_t)letter.record.offset - 101;
        dead_letter_reader_close(r);
    }
    assert_true(replaced > 10);
    // All of its bytes, and of each file the line that it begins with.
    const uint64_t dropped = dead_letter_dropped(f.d);
    assert_true(dropped > first + replaced * 90 && dropped < first + replaced * 140);
    assert_int_equal(next(1), 101 + (int64_t)replaced);
    for (uint64_t i = replaced + 2; i <= 30; i++)
        assert_int_equal(next(1), 100 + (int64_t)i);
    assert_int_equal(next(1), 0);
    // What was released is not dropped.
    dead_letter_release(f.d, dead_letter_reader_position(f.r));
    for (uint64_t i = 31; i <= 36; i++)
        put(1, i);
    assert_int_equal(dead_letter_dropped(f.d), dropped);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    static const struct CMUnitTest tests[] = {
        TEST(what_is_written_is_read_back),
        TEST(a_value_that_was_cut_tells_its_size),
        TEST(slices_that_are_not_durable_wait),
        TEST(half_a_line_and_lines_of_others),
        TEST(what_is_held_is_never_rotated_away),
        TEST(what_nobody_waits_for_is_counted_when_it_is_replaced),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
