// SPDX-License-Identifier: Apache-2.0
#include "snapshot/catalog.h"

#include <sys/file.h>

#include "snapshot/storage.h"
#include "tests/unit/test_snapshot.h"

static struct catalog *root_catalog(struct test_root *r)
{
    struct catalog *c;
    char error[512];
    if (catalog_open(&c, NULL, r->path, error, sizeof error) < 0)
        fail_msg("%s", error);
    return c;
}

static void entry(char path[160], const struct test_root *r, const char *name)
{
    snprintf(path, 160, "%s/%s", r->path, name);
}

static void expect_list(struct catalog *c, int n, const uint64_t *expected)
{
    const uint64_t *generations;
    assert_int_equal(catalog_list(c, &generations), n);
    for (int i = 0; i < n; i++)
        assert_int_equal(generations[i], expected[i]);
}

static void generations_are_listed_in_the_order_of_their_numbers(void **state)
{
    (void)state;
    struct test_root r;
    root_make(&r, "/tmp", ENGINE_PWRITE, NULL);
    struct catalog *c = root_catalog(&r);
    uint64_t newest;
    assert_int_equal(catalog_newest(c, &newest), -ENOENT);
    assert_non_null(strstr(catalog_error(c), "no generation is here"));
    root_generation(&r, 9);
    root_generation(&r, 10);
    root_generation(&r, 100);
    char path[160];
    static const char *const others[] = {"007", "x", "1x", "99999999999999999999"};
    for (int i = 0; i < 4; i++) {
        entry(path, &r, others[i]);
        assert_int_equal(mkdir(path, 0777), 0);
    }
    expect_list(c, 3, (uint64_t[]){9, 10, 100});
    assert_int_equal(catalog_newest(c, &newest), 0);
    assert_int_equal(newest, 100);
    catalog_path(c, 100, path, sizeof path);
    assert_int_equal(access(path, F_OK), 0);
    catalog_close(c);
    root_remove(&r);
}

static void the_newest_is_the_newest_that_is_whole_whatever_latest_says(void **state)
{
    (void)state;
    struct test_root r;
    root_make(&r, "/tmp", ENGINE_PWRITE, NULL);
    for (uint64_t g = 1; g <= 5; g++)
        root_generation(&r, g);
    char path[160];
    uint64_t newest;
    entry(path, &r, "5/x.safetensors"); // cut
    assert_int_equal(truncate(path, 4100), 0);
    entry(path, &r, "4/x.safetensors"); // gone
    assert_int_equal(remove(path), 0);
    entry(path, &r, "3/manifest.json"); // one digit changed
    size_t n;
    char *text = file_read(path, &n);
    *strstr(text, "4104") = '5';
    file_write(path, text, n);
    free(text);

    struct catalog *c = root_catalog(&r);
    assert_int_equal(catalog_newest(c, &newest), 0);
    assert_int_equal(newest, 2);
    assert_int_equal(catalog_check(c, 5), -EBADMSG);
    assert_non_null(strstr(catalog_error(c), "5/x.safetensors: 4100 bytes where the manifest"));
    assert_int_equal(catalog_check(c, 4), -ENOENT);
    assert_int_equal(catalog_check(c, 3), -EBADMSG);
    assert_non_null(strstr(catalog_error(c), "does not match its own checksum"));
    catalog_close(c);

    // A whole generation under another's name is not that other.
    char from[160];
    entry(from, &r, "2");
    entry(path, &r, "6");
    assert_int_equal(rename(from, path), 0);
    c = root_catalog(&r);
    assert_int_equal(catalog_newest(c, &newest), 0);
    assert_int_equal(newest, 1);
    assert_int_equal(catalog_check(c, 6), -EBADMSG);
    catalog_close(c);
    root_remove(&r);
}

static void what_a_crash_left_is_removed_at_the_start(void **state)
{
    (void)state;
    struct test_root r;
    root_make(&r, "/tmp", ENGINE_PWRITE, NULL);
    root_generation(&r, 1);
    root_generation(&r, 2);
    char path[160];
    entry(path, &r, ".tmp-3-77");
    mkdir(path, 0777);
    entry(path, &r, ".tmp-3-77/x.safetensors");
    file_write(path, "x", 1);
    entry(path, &r, ".tmp-LATEST");
    file_write(path, "x", 1);
    entry(path, &r, "1/manifest.json"); // removal had begun
    remove(path);
    entry(path, &r, "notes.txt"); // not ours
    file_write(path, "x", 1);

    struct catalog *c = root_catalog(&r);
    expect_list(c, 1, (uint64_t[]){2});
    assert_int_equal(count_entries(r.path), 5); // 2, LATEST, .lock, .pointer, notes.txt
    catalog_close(c);
    root_remove(&r);
}

static void two_writers_do_not_share_a_root(void **state)
{
    (void)state;
    struct test_root r;
    root_make(&r, "/tmp", ENGINE_PWRITE, NULL);
    struct catalog *c = root_catalog(&r), *second;
    char error[512];
    assert_int_equal(catalog_open(&second, NULL, r.path, error, sizeof error), -EBUSY);
    assert_non_null(strstr(error, "another process writes here"));
    catalog_close(c);
    catalog_close(root_catalog(&r));
    root_remove(&r);
}

static void retention_keeps_the_newest_whole_ones(void **state)
{
    (void)state;
    struct test_root r;
    root_make(&r, "/tmp", ENGINE_PWRITE, NULL);
    struct catalog *c = root_catalog(&r);
    for (uint64_t g = 1; g <= 6; g++)
        root_generation(&r, g);
    char path[160];
    entry(path, &r, "5/x.safetensors");
    assert_int_equal(truncate(path, 1), 0);
    // 6 and 4 are the two whole ones; 5 lies between them and stays to be looked at.
    assert_int_equal(catalog_retain(c, 2), 3);
    expect_list(c, 3, (uint64_t[]){4, 5, 6});
    assert_int_equal(catalog_retain(c, 2), 0);
    assert_int_equal(catalog_retain(c, 1), 2);
    expect_list(c, 1, (uint64_t[]){6});
    catalog_close(c);
    root_remove(&r);
}

static void retention_leaves_what_latest_names(void **state)
{
    (void)state;
    struct test_root r;
    root_make(&r, "/tmp", ENGINE_PWRITE, NULL);
    struct catalog *c = root_catalog(&r);
    for (uint64_t g = 1; g <= 4; g++)
        root_generation(&r, g);
    char path[160];
    entry(path, &r, "LATEST"); // an operator went back
    file_write(path, "2 00000000\n", 11);
    assert_int_equal(catalog_retain(c, 1), 2);
    expect_list(c, 2, (uint64_t[]){2, 4});
    catalog_close(c);
    root_remove(&r);
}

static void expect_pointer(struct catalog *c, uint64_t latest, bool is_pinned, uint64_t pinned)
{
    struct pointer p;
    assert_int_equal(catalog_pointer(c, &p), 0);
    assert_int_equal(p.latest.generation, latest);
    assert_int_equal(p.is_pinned, is_pinned);
    assert_int_equal(p.pinned.generation, pinned);
}

// Another process's view of the root.
static struct catalog *root_look(struct test_root *r)
{
    struct catalog *c;
    char error[512];
    if (catalog_look(&c, NULL, r->path, error, sizeof error) < 0)
        fail_msg("%s", error);
    return c;
}

static void a_pinned_pointer_stays_while_the_writer_publishes(void **state)
{
    (void)state;
    struct test_root r;
    uint64_t generation = 0;
    root_make(&r, "/tmp", ENGINE_PWRITE, NULL);
    struct catalog *c = root_catalog(&r), *other = root_look(&r);
    for (uint64_t g = 1; g <= 3; g++)
        root_generation(&r, g);
    expect_pointer(other, 3, false, 0);
    assert_int_equal(catalog_pin(other, 2), 0);
    expect_pointer(c, 2, true, 2);
    root_generation(&r, 4);
    expect_pointer(c, 2, true, 2);
    assert_int_equal(catalog_pin(other, 1), 0); // from one to another
    root_generation(&r, 5);
    expect_pointer(c, 1, true, 1);
    assert_int_equal(catalog_unpin(other, &generation), 0);
    assert_int_equal(generation, 5);
    expect_pointer(c, 5, false, 0);
    assert_int_equal(catalog_unpin(other, &generation), 0); // again: nothing to undo
    root_generation(&r, 6);
    expect_pointer(c, 6, false, 0);
    catalog_close(other);
    catalog_close(c);
    root_remove(&r);
}

static void what_is_not_whole_is_not_pointed_at(void **state)
{
    (void)state;
    struct test_root r;
    char path[160];
    uint64_t generation = 0;
    root_make(&r, "/tmp", ENGINE_PWRITE, NULL);
    for (uint64_t g = 1; g <= 3; g++)
        root_generation(&r, g);
    struct catalog *c = root_look(&r);
    entry(path, &r, "2/x.safetensors");
    assert_int_equal(truncate(path, 1), 0);
    assert_int_equal(catalog_pin(c, 2), -EBADMSG);
    assert_non_null(strstr(catalog_error(c), "2/x.safetensors: 1 bytes"));
    assert_int_equal(catalog_pin(c, 9), -ENOENT);
    expect_pointer(c, 3, false, 0);
    entry(path, &r, "3/x.safetensors");
    assert_int_equal(truncate(path, 1), 0);
    assert_int_equal(catalog_unpin(c, &generation), 0);
    assert_int_equal(generation, 1);
    expect_pointer(c, 1, false, 0);
    catalog_close(c);
    root_remove(&r);
}

static void a_pin_that_was_interrupted_is_completed(void **state)
{
    (void)state;
    struct test_root r;
    char path[160], other[160];
    size_t n;
    root_make(&r, "/tmp", ENGINE_PWRITE, NULL);
    root_generation(&r, 1);
    entry(path, &r, "LATEST");
    char *line = file_read(path, &n);
    root_generation(&r, 2);
    entry(other, &r, "PINNED");
    file_write(other, line, n);
    free(line);
    struct catalog *c = root_look(&r);
    expect_pointer(c, 2, true, 1); // who looks changes nothing
    root_generation(&r, 3);        // a publication does
    expect_pointer(c, 1, true, 1);
    catalog_close(c);

    // So does a start; and what is not legible holds LATEST where it is.
    remove(other);
    root_generation(&r, 4);
    line = file_read(path, &n);
    file_write(other, line, n);
    free(line);
    remove(path);
    c = root_catalog(&r);
    expect_pointer(c, 4, true, 4);
    file_write(other, "", 0);
    root_generation(&r, 5);
    expect_pointer(c, 4, true, 0);
    catalog_close(c);
    root_remove(&r);
}

static void the_good_one_is_the_pinned_one_or_else_the_newest_whole_one(void **state)
{
    (void)state;
    struct test_root r;
    char path[160];
    uint64_t good = 0;
    root_make(&r, "/tmp", ENGINE_PWRITE, NULL);
    struct catalog *c = root_catalog(&r);
    assert_int_equal(catalog_good(c, &good), -ENOENT);
    for (uint64_t g = 1; g <= 3; g++)
        root_generation(&r, g);
    assert_int_equal(catalog_good(c, &good), 0);
    assert_int_equal(good, 3);
    entry(path, &r, "LATEST"); // without a pin it is a hint
    file_write(path, "1 00000000\n", 11);
    assert_int_equal(catalog_good(c, &good), 0);
    assert_int_equal(good, 3);
    assert_int_equal(catalog_pin(c, 2), 0);
    assert_int_equal(catalog_good(c, &good), 0);
    assert_int_equal(good, 2);
    entry(path, &r, "2/x.safetensors");
    remove(path);
    assert_int_equal(catalog_good(c, &good), 0);
    assert_int_equal(good, 3);
    catalog_close(c);
    root_remove(&r);
}

static void retention_leaves_what_is_pinned(void **state)
{
    (void)state;
    struct test_root r;
    char path[160];
    root_make(&r, "/tmp", ENGINE_PWRITE, NULL);
    struct catalog *c = root_catalog(&r);
    for (uint64_t g = 1; g <= 4; g++)
        root_generation(&r, g);
    assert_int_equal(catalog_pin(c, 2), 0);
    assert_int_equal(catalog_retain(c, 1), 2);
    expect_list(c, 2, (uint64_t[]){2, 4});
    // In the middle of a pin the two files differ: both stay.
    root_generation(&r, 5);
    root_generation(&r, 6);
    entry(path, &r, "LATEST");
    file_write(path, "4 00000000\n", 11);
    assert_int_equal(catalog_retain(c, 1), 1);
    expect_list(c, 3, (uint64_t[]){2, 4, 6});
    catalog_close(c);
    root_remove(&r);
}

static void who_only_looks_makes_and_removes_nothing(void **state)
{
    (void)state;
    struct test_root r;
    struct catalog *c;
    char path[160], error[512];
    root_make(&r, "/tmp", ENGINE_PWRITE, NULL);
    root_generation(&r, 1);
    entry(path, &r, ".tmp-2-77"); // the writer is at work
    mkdir(path, 0777);
    const int before = count_entries(r.path);
    struct catalog *writer = root_catalog(&r);
    mkdir(path, 0777);
    c = root_look(&r);
    expect_list(c, 1, (uint64_t[]){1});
    catalog_close(c);
    assert_int_equal(count_entries(r.path), before + 1); // .lock
    catalog_close(writer);
    entry(path, &r, "nowhere");
    assert_int_equal(catalog_look(&c, NULL, path, error, sizeof error), -ENOENT);
    assert_int_equal(access(path, F_OK), -1);
    root_remove(&r);
}

static void retention_leaves_what_a_reader_holds(void **state)
{
    (void)state;
    struct test_root r;
    root_make(&r, "/tmp", ENGINE_PWRITE, NULL);
    struct catalog *c = root_catalog(&r);
    for (uint64_t g = 1; g <= 3; g++)
        root_generation(&r, g);
    char path[160];
    entry(path, &r, "1/manifest.json");
    const int reader = open(path, O_RDONLY);
    assert_int_equal(flock(reader, LOCK_SH), 0);
    assert_int_equal(catalog_retain(c, 1), 1);
    expect_list(c, 2, (uint64_t[]){1, 3});
    assert_int_equal(catalog_check(c, 1), 0);
    close(reader);
    assert_int_equal(catalog_retain(c, 1), 1);
    expect_list(c, 1, (uint64_t[]){3});
    catalog_close(c);
    root_remove(&r);
}

static void the_next_number_is_larger_than_every_other(void **state)
{
    (void)state;
    struct test_root r;
    root_make(&r, "/tmp", ENGINE_PWRITE, NULL);
    struct catalog *c = root_catalog(&r);
    uint64_t next;
    assert_int_equal(catalog_next(c, 0, &next), 0);
    assert_int_equal(next, 1);
    root_generation(&r, 1000);
    assert_int_equal(catalog_next(c, 5000, &next), 0);
    assert_int_equal(next, 5000);
    assert_int_equal(catalog_next(c, 1000, &next), 0);
    assert_int_equal(next, 1001);
    assert_int_equal(catalog_next(c, 7, &next), 0); // the clock went back
    assert_int_equal(next, 1001);
    catalog_close(c);
    root_remove(&r);
}

static void what_this_process_has_left_goes_with_the_next_number(void **state)
{
    (void)state;
    struct test_root r;
    root_make(&r, "/tmp", ENGINE_PWRITE, NULL);
    struct catalog *c = root_catalog(&r);
    char ours[160], others[160], path[192], name[64];
    snprintf(name, sizeof name, ".tmp-7-%ld", (long)getpid());
    entry(ours, &r, name);
    entry(others, &r, ".tmp-7-1");
    assert_int_equal(mkdir(ours, 0777), 0);
    assert_int_equal(mkdir(others, 0777), 0);
    snprintf(path, sizeof path, "%s/x.safetensors", ours);
    file_write(path, "x", 1);
    uint64_t next;
    assert_int_equal(catalog_next(c, 8, &next), 0);
    assert_int_equal(next, 8);
    assert_int_equal(access(ours, F_OK), -1);
    assert_int_equal(access(others, F_OK), 0);
    catalog_close(c);
    root_remove(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(generations_are_listed_in_the_order_of_their_numbers),
        cmocka_unit_test(the_newest_is_the_newest_that_is_whole_whatever_latest_says),
        cmocka_unit_test(what_a_crash_left_is_removed_at_the_start),
        cmocka_unit_test(two_writers_do_not_share_a_root),
        cmocka_unit_test(retention_keeps_the_newest_whole_ones),
        cmocka_unit_test(retention_leaves_what_latest_names),
        cmocka_unit_test(a_pinned_pointer_stays_while_the_writer_publishes),
        cmocka_unit_test(what_is_not_whole_is_not_pointed_at),
        cmocka_unit_test(a_pin_that_was_interrupted_is_completed),
        cmocka_unit_test(the_good_one_is_the_pinned_one_or_else_the_newest_whole_one),
        cmocka_unit_test(retention_leaves_what_is_pinned),
        cmocka_unit_test(who_only_looks_makes_and_removes_nothing),
        cmocka_unit_test(retention_leaves_what_a_reader_holds),
        cmocka_unit_test(the_next_number_is_larger_than_every_other),
        cmocka_unit_test(what_this_process_has_left_goes_with_the_next_number),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
