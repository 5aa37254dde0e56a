// SPDX-License-Identifier: Apache-2.0
#include "snapshot/pass.h"

#include <sys/mman.h>

#include "snapshot/storage.h"
#include "tests/unit/test_snapshot.h"

// Units that fill blocks and pages, that do not, and the longest; arrays that end on a page and
// within one, that are shorter than a stretch, and longer than all stretches that are under way.
static const struct {
    size_t unit, n;
} arrays[] = {{1, 1},       {1, (3 << 20) + 5},    {8, 4096},      {512, 40000},
              {384, 60001}, {20, 1000003},         {260, 50000},   {4096, 257},
              {8192, 2500}, {(512 << 10) - 4, 23}, {512 << 10, 21}};
enum { ARRAYS = sizeof arrays / sizeof *arrays, BLOB_UNIT = 16, BLOB_UNITS = 200001, PAGE = 4096 };

static const enum engine_backend backends[] = {ENGINE_AUTO, ENGINE_PWRITE};

static unsigned char *array_bytes(size_t a, size_t n)
{
    uint64_t *words = malloc(n + 8);
    assert_non_null(words);
    for (size_t i = 0; i <= n / 8; i++)
        words[i] = mix(a << 40 | i);
    return (unsigned char *)words;
}

static void write_generation(struct test_root *r)
{
    struct writer *w = root_writer(r, 1);
    for (size_t a = 0; a < ARRAYS; a++) {
        char file[32];
        snprintf(file, sizeof file, "%zu.safetensors", a);
        unsigned char *bytes = array_bytes(a, arrays[a].n * arrays[a].unit);
        writer_array(
            w, &(struct writer_array){file, "x", file, "U8", 2, {arrays[a].n, arrays[a].unit}},
            bytes);
        free(bytes);
    }
    unsigned char *bytes = array_bytes(ARRAYS, (size_t)BLOB_UNITS * BLOB_UNIT);
    writer_blob(w, "blob", "blob", bytes, (size_t)BLOB_UNITS * BLOB_UNIT);
    free(bytes);
    root_publish(w);
}

static struct tt_reader *open_reader(const struct test_root *r)
{
    char error[512];
    struct tt_reader *reader;
    if (tt_open(&reader, r->path, error, sizeof error) < 0)
        fail_msg("%s", error);
    return reader;
}

// A file into the page cache, or out of it.
static void cache(const struct test_root *r, const char *file, bool in)
{
    char path[160];
    snprintf(path, sizeof path, "%s/1/%s", r->path, file);
    const int fd = open(path, O_RDONLY);
    assert_true(fd >= 0);
    static char bytes[1 << 16];
    while (in && read(fd, bytes, sizeof bytes) > 0)
        ;
    if (!in)
        assert_int_equal(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
    close(fd);
}

static size_t pages_cached(const struct tt_array *a)
{
    const size_t pages = (a->size + PAGE - 1) / PAGE;
    unsigned char *in = malloc(pages);
    size_t n = 0;
    assert_int_equal(mincore((void *)(uintptr_t)a->data, a->size, in), 0);
    for (size_t i = 0; i < pages; i++)
        n += in[i] & 1;
    free(in);
    return n;
}

// Every step-th unit of the array is what was written.
static void expect_units(struct test_root *r, const struct tt_reader *reader, const char *file,
                         size_t a, size_t unit, size_t n, size_t step)
{
    struct pass pass;
    unsigned char *bytes = array_bytes(a, n * unit);
    assert_int_equal(pass_open(&pass, reader, file, unit, r->engine), 0);
    for (size_t i = 0; i < n; i += step) {
        const void *at = pass_at(&pass, i);
        if (!at)
            fail_msg("%s", pass.error);
        if (memcmp(at, bytes + i * unit, unit) != 0)
            fail_msg("%s: unit %zu of %zu bytes is another", file, i, unit);
    }
    pass_close(&pass);
    free(bytes);
}

static void every_unit_is_what_was_written_wherever_it_is_read(void **state)
{
    (void)state;
    for (int b = 0; b < 2; b++) {
        struct test_root r;
        root_make(&r, "/tmp", backends[b], NULL);
        write_generation(&r);
        struct tt_reader *reader = open_reader(&r);
        for (int in = 0; in < 2; in++)
            for (size_t a = 0; a < ARRAYS; a++) {
                char file[32];
                snprintf(file, sizeof file, "%zu.safetensors", a);
                // One after the other; with gaps; with gaps longer than what is asked for ahead.
                const size_t n = arrays[a].n, unit = arrays[a].unit;
                const size_t steps[] = {1, 1 + 3000000 / unit, 1 + 11000000 / unit};
                for (size_t s = 0; s < 3; s++) {
                    cache(&r, file, in);
                    expect_units(&r, reader, file, a, unit, n, steps[s]);
                }
            }
        cache(&r, "blob", false);
        expect_units(&r, reader, "blob", ARRAYS, BLOB_UNIT, BLOB_UNITS, 1);
        tt_close(reader);
        root_remove(&r);
    }
}

// 3 is the array of 20 MB whose units fill its blocks.
static const char *const large = "3.safetensors";

static bool is_in(const struct tt_array *a, const void *at)
{
    return (uintptr_t)at - (uintptr_t)a->data < a->size;
}

static void what_the_page_cache_has_comes_from_there_and_the_rest_stays_out(void **state)
{
    (void)state;
    struct test_root r;
    if (!is_on_disk("/tmp"))
        skip();
    root_make(&r, "/tmp", ENGINE_AUTO, NULL);
    write_generation(&r);
    struct tt_reader *reader = open_reader(&r);
    const struct tt_array *a = tt_find(reader, large);
    struct pass pass;
    cache(&r, large, false);
    // The first page of the second stretch, and all of the third.
    const volatile unsigned char *data = a->data;
    madvise((void *)(uintptr_t)a->data, a->size, MADV_RANDOM);
    (void)data[1 << 20];
    madvise((void *)(uintptr_t)(data + (2 << 20)), 1 << 20, MADV_POPULATE_READ);
    const size_t before = pages_cached(a);
    assert_in_range(before, 257, 300);
    pass_open(&pass, reader, large, 512, r.engine);
    for (size_t i = 0; i < arrays[3].n; i++)
        assert_int_equal(is_in(a, pass_at(&pass, i)), i / 2048 == 2);
    assert_int_equal(pages_cached(a), before);
    pass_close(&pass);
    tt_close(reader);
    root_remove(&r);
}

static void files_are_written_meanwhile_and_a_pass_may_end_early(void **state)
{
    (void)state;
    for (int b = 0; b < 2; b++) {
        struct test_root r, other;
        root_make(&r, "/tmp", backends[b], NULL);
        write_generation(&r);
        root_make(&other, "/tmp", ENGINE_PWRITE, NULL);
        struct tt_reader *reader = open_reader(&r);
        unsigned char *bytes = array_bytes(3, arrays[3].n * 512);
        struct pass pass, early;
        cache(&r, large, false);
        pass_open(&early, reader, large, 512, r.engine);
        assert_non_null(pass_at(&early, 0));
        pass_close(&early);
        // An array that is a copy of the other's units; the first attempt is given up in the
        // middle.
        for (int attempt = 0; attempt < 2; attempt++) {
            const struct writer_options options = {
                .root = other.path, .generation = 1, .format = "copy", .engine = r.engine};
            char error[256];
            struct writer *w;
            assert_int_equal(writer_open(&w, &options, error, sizeof error), 0);
            writer_array_begin(
                w, &(struct writer_array){"a.safetensors", "x", "a", "U8", 2, {arrays[3].n, 512}});
            pass_open(&pass, reader, large, 512, r.engine);
            for (size_t i = 0; i < (attempt ? arrays[3].n : arrays[3].n / 2); i++)
                assert_int_equal(writer_append(w, pass_at(&pass, i), 512), 0);
            if (attempt) {
                writer_end(w);
                root_publish(w);
            } else {
                writer_close(w);
                // What is under way is not lost by that.
                assert_memory_equal(pass_at(&pass, arrays[3].n - 1),
                                    bytes + (arrays[3].n - 1) * 512, 512);
            }
            pass_close(&pass);
        }
        struct tt_reader *copy = open_reader(&other);
        char error[256];
        assert_int_equal(tt_verify(copy, error, sizeof error), 0);
        assert_memory_equal(tt_find(copy, "a")->data, bytes, arrays[3].n * 512);
        tt_close(copy);
        tt_close(reader);
        free(bytes);
        root_remove(&other);
        root_remove(&r);
    }
}

// A disk of which O_DIRECT gives nothing, or errors, or is refused; and that fails itself.
static struct {
    int direct, rc; // open with O_DIRECT: 0 as it is, -errno, or 1: something that cannot be read
    size_t most;    // bytes that one call reads; 0: all
    int interrupted;
} fault;

static int fault_open(struct storage *s, int directory, const char *name, int flags, unsigned mode)
{
    if ((flags & O_DIRECT) && fault.direct < 0)
        return fault.direct;
    if ((flags & O_DIRECT) && fault.direct > 0)
        return storage_disk.ops->open(s, STORAGE_CWD, "/", O_RDONLY | O_DIRECTORY, 0);
    return storage_disk.ops->open(s, directory, name, flags, mode);
}

static ssize_t fault_read_at(struct storage *s, int handle, void *bytes, size_t n, uint64_t offset)
{
    if (fault.rc < 0)
        return fault.rc;
    if (fault.interrupted-- > 0)
        return -EINTR;
    return storage_disk.ops->read_at(s, handle, bytes,
                                     fault.most > 0 && n > fault.most ? fault.most : n, offset);
}

static struct storage *faulty(void)
{
    static struct storage_ops ops;
    static struct storage storage = {.ops = &ops, .descriptors = true};
    ops = *storage_disk.ops;
    ops.open = fault_open;
    ops.read_at = fault_read_at;
    return &storage;
}

static int open_files(void)
{
    return count_entries("/proc/self/fd");
}

static void what_cannot_be_read_past_the_page_cache_is_read_through_it(void **state)
{
    (void)state;
    for (int b = 0; b < 2; b++) {
        struct test_root r;
        root_make(&r, "/tmp", backends[b], faulty());
        write_generation(&r);
        struct tt_reader *reader = open_reader(&r);
        const int before = open_files();
        for (int way = 0; way < 3; way++) {
            // Last what the mapping serves: what it has touched stays in the page cache.
            fault.direct = way == 0 ? 1 : way == 1 ? 0 : -EINVAL;
            fault.most = way == 1 ? 300000 : 0; // with pwrite: reads that stay short
            fault.interrupted = 3;
            cache(&r, large, false);
            expect_units(&r, reader, large, 3, 512, arrays[3].n, 1);
            assert_int_equal(open_files(), before);
        }
        memset(&fault, 0, sizeof fault);
        tt_close(reader);
        root_remove(&r);
    }
}

static void what_cannot_be_read_at_all_is_an_error_that_says_where(void **state)
{
    (void)state;
    if (!is_on_disk("/tmp"))
        skip();
    for (int b = 0; b < 2; b++) {
        struct test_root r;
        root_make(&r, "/tmp", backends[b], faulty());
        write_generation(&r);
        struct tt_reader *reader = open_reader(&r);
        struct pass pass;
        cache(&r, large, false);
        const int before = open_files();
        pass_open(&pass, reader, large, 512, r.engine);
        assert_non_null(pass_at(&pass, 2047));
        assert_int_equal(open_files(), before + 1);
        pass_close(&pass);

        fault.direct = 1;
        fault.rc = -EIO;
        pass_open(&pass, reader, large, 512, r.engine);
        assert_null(pass_at(&pass, 2048));
        assert_int_equal(pass.rc, -EIO);
        assert_non_null(
            strstr(pass.error, "1/3.safetensors: bytes 1052672..2101247 cannot be read: Input"));
        assert_null(pass_at(&pass, 2048)); // it stays
        assert_int_equal(pass.rc, -EIO);
        assert_int_equal(open_files(), before + 1);
        pass_close(&pass);
        assert_int_equal(open_files(), before);
        memset(&fault, 0, sizeof fault);
        tt_close(reader);
        root_remove(&r);
    }
}

static void a_file_that_became_shorter_is_an_error_where_it_ends(void **state)
{
    (void)state;
    if (!is_on_disk("/tmp"))
        skip();
    for (int b = 0; b < 2; b++) {
        struct test_root r;
        char path[160];
        root_make(&r, "/tmp", backends[b], NULL);
        write_generation(&r);
        struct tt_reader *reader = open_reader(&r);
        struct pass pass;
        snprintf(path, sizeof path, "%s/1/%s", r.path, large);
        assert_int_equal(truncate(path, 4096 + (10 << 20) + 700), 0);
        cache(&r, large, false);
        pass_open(&pass, reader, large, 512, r.engine);
        size_t i = 0;
        while (i < arrays[3].n && pass_at(&pass, i))
            i++;
        assert_int_equal(i, 10 * 2048); // nothing of the stretch in which it ends
        assert_int_equal(pass.rc, -EBADMSG);
        assert_non_null(strstr(pass.error, "bytes 10490556..11538431 cannot be read: the file "
                                           "ends before them"));
        pass_close(&pass);
        tt_close(reader);
        root_remove(&r);
    }
}

static void a_pass_that_was_not_opened_can_be_closed(void **state)
{
    (void)state;
    struct pass pass = {0};
    const int before = open_files();
    pass_close(&pass);
    assert_int_equal(open_files(), before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_unit_is_what_was_written_wherever_it_is_read),
        cmocka_unit_test(what_the_page_cache_has_comes_from_there_and_the_rest_stays_out),
        cmocka_unit_test(files_are_written_meanwhile_and_a_pass_may_end_early),
        cmocka_unit_test(what_cannot_be_read_past_the_page_cache_is_read_through_it),
        cmocka_unit_test(what_cannot_be_read_at_all_is_an_error_that_says_where),
        cmocka_unit_test(a_file_that_became_shorter_is_an_error_where_it_ends),
        cmocka_unit_test(a_pass_that_was_not_opened_can_be_closed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
