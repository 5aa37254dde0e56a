// SPDX-License-Identifier: Apache-2.0
#include "snapshot/load.h"

#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "snapshot/twotower_reader.h"
#include "tests/unit/test_snapshot.h"

// Around the places where chunks, pieces and pages end, the header of a page included.
static const size_t sizes[] = {
    0,       1,       4095,    4097,    (1 << 20) - 4096, (1 << 20) - 4095,
    1 << 20, 3 << 20, 9999999, 8 << 20, (24 << 20) - 4096};
enum { ARRAYS = sizeof sizes / sizeof *sizes, PARENTS = 2, BLOB = 1234567 };

struct loading {
    struct tt_reader *reader;
    unsigned char *to[ARRAYS + 1];
    uint64_t told[ARRAYS + 1];   // bytes
    uint8_t *marked[ARRAYS + 1]; // how often
    pthread_mutex_t lock;
};

static unsigned char byte_of(size_t array, size_t i)
{
    return (unsigned char)mix(array << 40 | i / 8);
}

static void write_generation(struct test_root *r)
{
    struct writer *w = root_writer(r, 1);
    unsigned char *bytes = malloc(sizes[ARRAYS - 1]);
    for (size_t a = 0; a < ARRAYS; a++) {
        char file[32];
        for (size_t i = 0; i < sizes[a]; i++)
            bytes[i] = byte_of(a, i);
        snprintf(file, sizeof file, "%zu.safetensors", a);
        writer_array(w, &(struct writer_array){file, "x", file, "U8", 1, {sizes[a]}}, bytes);
    }
    for (size_t i = 0; i < BLOB; i++)
        bytes[i] = byte_of(ARRAYS, i);
    writer_blob(w, "blob", "blob", bytes, BLOB);
    free(bytes);
    root_publish(w);
}

static void loading_open(struct loading *l, const struct test_root *r)
{
    char error[512];
    memset(l, 0, sizeof *l);
    pthread_mutex_init(&l->lock, NULL);
    if (tt_open(&l->reader, r->path, error, sizeof error) < 0)
        fail_msg("%s", error);
    assert_int_equal(tt_n_arrays(l->reader), ARRAYS + 1);
    for (int i = 0; i <= ARRAYS; i++) {
        const size_t size = tt_array_at(l->reader, i)->size;
        l->to[i] = mmap(NULL, size + 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        l->marked[i] = calloc(size + 1, 1);
        assert_true(l->to[i] != MAP_FAILED && l->marked[i]);
    }
}

static void loading_close(struct loading *l)
{
    for (int i = 0; i <= ARRAYS; i++) {
        munmap(l->to[i], tt_array_at(l->reader, i)->size + 1);
        free(l->marked[i]);
    }
    pthread_mutex_destroy(&l->lock);
    tt_close(l->reader);
}

// Only counts: asserts of cmocka belong to the thread of the test.
static void loaded(void *arg, int array, uint64_t from, uint64_t n)
{
    struct loading *l = arg;
    pthread_mutex_lock(&l->lock);
    for (uint64_t i = from; i < from + n; i++)
        if (l->to[array][i] == byte_of((size_t)array, i))
            l->marked[array][i]++;
    l->told[array] += n;
    pthread_mutex_unlock(&l->lock);
}

static int load(struct loading *l, char *error, size_t error_size)
{
    return load_arrays(l->reader, &(struct load_options){.to = l->to, .loaded = loaded, .arg = l},
                       error, error_size);
}

static void assert_all_loaded(struct loading *l)
{
    for (int a = 0; a <= ARRAYS; a++) {
        const uint64_t size = tt_array_at(l->reader, a)->size;
        assert_int_equal(size, a < ARRAYS ? sizes[a] : BLOB);
        assert_int_equal(l->told[a], size);
        for (uint64_t i = 0; i < size; i++)
            if (l->to[a][i] != byte_of((size_t)a, i) || l->marked[a][i] != 1)
                fail_msg("byte %" PRIu64 " of array %d", i, a);
        assert_int_equal(l->to[a][size], 0); // nothing behind the end
    }
}

// On a disk and in memory, from the page cache and past it.
static void every_byte_arrives_and_is_told_of_once(void **state)
{
    (void)state;
    static const char *const parents[PARENTS] = {".", "/dev/shm"};
    for (int p = 0; p < PARENTS; p++) {
        struct test_root r;
        struct loading l;
        char error[512], path[128];
        if (access(parents[p], W_OK) < 0)
            continue;
        root_make(&r, parents[p], ENGINE_AUTO, NULL);
        write_generation(&r);
        for (int cached = 0; cached < 2; cached++) {
            loading_open(&l, &r);
            for (int i = 0; !cached && i <= ARRAYS; i++) {
                snprintf(path, sizeof path, "%s/1/%s", r.path, tt_array_at(l.reader, i)->name);
                const int file = open(path, O_RDONLY);
                assert_true(file >= 0);
                posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
                close(file);
            }
            if (cached && tt_verify(l.reader, error, sizeof error) < 0) // reads all of it
                fail_msg("%s", error);
            if (load(&l, error, sizeof error) < 0)
                fail_msg("%s", error);
            assert_all_loaded(&l);
            loading_close(&l);
        }
        root_remove(&r);
    }
}

static void what_nobody_keeps_is_checked_all_the_same(void **state)
{
    (void)state;
    struct test_root r;
    struct loading l;
    char error[512], path[128];
    root_make(&r, "/tmp", ENGINE_PWRITE, NULL);
    write_generation(&r);
    loading_open(&l, &r);
    unsigned char *kept[ARRAYS + 1];
    memcpy(kept, l.to, sizeof kept);
    memset(l.to, 0, sizeof l.to);
    assert_int_equal(load(&l, error, sizeof error), 0);
    snprintf(path, sizeof path, "%s/1/8.safetensors", r.path);
    const int file = open(path, O_RDWR);
    assert_int_equal(pwrite(file, "?", 1, 9000000), 1);
    close(file);
    assert_int_equal(load(&l, error, sizeof error), -EBADMSG);
    assert_non_null(strstr(error, "8.safetensors"));
    for (int a = 0; a <= ARRAYS; a++)
        assert_int_equal(l.told[a], 0);
    memcpy(l.to, kept, sizeof kept);
    loading_close(&l);
    root_remove(&r);
}

// However many arrays there are: two handles for each of the four threads, one of the directory.
static void few_handles_are_enough(void **state)
{
    (void)state;
    enum { ENOUGH = 9 };
    struct test_root r;
    struct loading l;
    struct rlimit limit, few;
    char error[512];
    int handles[ENOUGH], last = 0;
    assert_true((int)ENOUGH < (int)ARRAYS);
    root_make(&r, "/tmp", ENGINE_PWRITE, NULL);
    write_generation(&r);
    loading_open(&l, &r);
    for (int i = 0; i < ENOUGH; i++) { // others may be open, in any order
        handles[i] = dup(STDERR_FILENO);
        last = handles[i] > last ? handles[i] : last;
    }
    for (int i = 0; i < ENOUGH; i++)
        close(handles[i]);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    few = (struct rlimit){(rlim_t)last + 1, limit.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
    const int rc = load(&l, error, sizeof error);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    if (rc < 0)
        fail_msg("%s", error);
    assert_all_loaded(&l);
    loading_close(&l);
    root_remove(&r);
}

// The first of what is wrong is named, whichever thread comes to it first.
static void a_wrong_byte_anywhere_is_found(void **state)
{
    (void)state;
    struct test_root r;
    struct loading l;
    char error[512], path[128];
    root_make(&r, "/tmp", ENGINE_PWRITE, NULL);
    write_generation(&r);
    static const struct {
        const char *file, *bytes;
        long at;
    } wrong[] = {
        {"blob", "bytes 1048576..1234566", BLOB - 1},
        {"10.safetensors", "bytes 24117248..25165823", (24 << 20) - 1},
        {"10.safetensors", "bytes 0..1048575", 100}, // in its header
        {"9.safetensors", "bytes 8388608..8392703", (8 << 20) + 4095},
        {"3.safetensors", "bytes 0..8192", 8192},
        {"1.safetensors", "bytes 0..4096", 4096},
    };
    for (size_t k = 0; k < sizeof wrong / sizeof *wrong; k++) {
        char byte;
        snprintf(path, sizeof path, "%s/1/%s", r.path, wrong[k].file);
        chmod(path, 0600);
        const int file = open(path, O_RDWR);
        assert_int_equal(pread(file, &byte, 1, wrong[k].at), 1);
        byte = (char)(byte ^ 4);
        assert_int_equal(pwrite(file, &byte, 1, wrong[k].at), 1);
        close(file);
        loading_open(&l, &r);
        assert_int_equal(load(&l, error, sizeof error), -EBADMSG);
        if (!strstr(error, wrong[k].file) || !strstr(error, wrong[k].bytes))
            fail_msg("%s", error);
        loading_close(&l);
    }
    root_remove(&r);
}

static void a_file_that_is_cut_after_it_was_opened_is_damaged(void **state)
{
    (void)state;
    struct test_root r;
    struct loading l;
    char error[512], path[128];
    root_make(&r, "/tmp", ENGINE_PWRITE, NULL);
    write_generation(&r);
    loading_open(&l, &r);
    snprintf(path, sizeof path, "%s/1/10.safetensors", r.path);
    assert_int_equal(truncate(path, 20 << 20), 0);
    assert_int_equal(load(&l, error, sizeof error), -EBADMSG);
    assert_non_null(strstr(error, "10.safetensors: bytes 20971520..22020095 cannot be read"));
    assert_int_equal(unlink(path), 0);
    assert_int_equal(load(&l, error, sizeof error), -ENOENT);
    assert_non_null(strstr(error, "10.safetensors"));
    loading_close(&l);
    root_remove(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_byte_arrives_and_is_told_of_once),
        cmocka_unit_test(what_nobody_keeps_is_checked_all_the_same),
        cmocka_unit_test(few_handles_are_enough),
        cmocka_unit_test(a_wrong_byte_anywhere_is_found),
        cmocka_unit_test(a_file_that_is_cut_after_it_was_opened_is_damaged),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
