// SPDX-License-Identifier: Apache-2.0
#include "snapshot/engine.h"

#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>

#include "snapshot/id_index.h"
#include "snapshot/storage.h"
#include "tests/unit/test_snapshot.h"

static const enum engine_backend backends[] = {ENGINE_AUTO, ENGINE_PWRITE};

static struct engine *open_engine(const struct engine_options *options)
{
    struct engine *e;
    char error[256];
    if (engine_open(&e, options, error, sizeof error) < 0)
        fail_msg("%s", error);
    return e;
}

static int open_directory(char path[64])
{
    snprintf(path, 64, "/tmp/twotower-test-XXXXXX");
    assert_non_null(mkdtemp(path));
    const int directory = open(path, O_RDONLY | O_DIRECTORY);
    assert_true(directory >= 0);
    return directory;
}

static void fill_block(uint64_t *block, uint64_t at, size_t n)
{
    for (size_t i = 0; i < n / 8; i++)
        block[i] = mix(at / 8 + i);
}

// n bytes that say where they lie.
static int put_file(struct engine *e, int directory, const char *name, uint64_t n)
{
    int rc = engine_file_open(e, directory, name, n);
    for (uint64_t at = 0; rc == 0 && at < n;) {
        uint64_t *block = engine_block_get(e);
        if (!block)
            return engine_status(e);
        const size_t take = n - at < ENGINE_BLOCK ? (size_t)(n - at) : ENGINE_BLOCK;
        fill_block(block, at, take);
        rc = engine_block_put(e, take);
        at += take;
    }
    return rc < 0 ? rc : engine_file_close(e);
}

static void expect_file(const char *directory, const char *name, uint64_t n)
{
    char path[128];
    size_t size;
    snprintf(path, sizeof path, "%s/%s", directory, name);
    char *bytes = file_read(path, &size);
    assert_int_equal(size, n);
    for (uint64_t i = 0; i < n / 8; i++) {
        uint64_t word;
        memcpy(&word, bytes + 8 * i, 8);
        if (word != mix(i))
            fail_msg("%s: word %" PRIu64 " is another", name, i);
    }
    free(bytes);
}

static void more_blocks_than_the_ring_has_come_out_in_order(void **state)
{
    (void)state;
    char path[64];
    const int directory = open_directory(path);
    static const int depths[] = {1, 8, ENGINE_BLOCKS};
    for (int b = 0; b < 2; b++) {
        for (int d = 0; d < 3; d++) {
            char name[32];
            snprintf(name, sizeof name, "%d-%d", b, d);
            struct engine *e =
                open_engine(&(struct engine_options){.backend = backends[b], .depth = depths[d]});
            assert_int_equal(put_file(e, directory, name, 40 * (uint64_t)ENGINE_BLOCK + 8), 0);
            assert_int_equal(engine_bytes_written(e), 40 * (uint64_t)ENGINE_BLOCK + 8);
            engine_close(e);
            expect_file(path, name, 40 * (uint64_t)ENGINE_BLOCK + 8);
        }
    }
    close(directory);
    tree_remove(path);
}

static void the_backend_has_a_name_and_pwrite_a_reason(void **state)
{
    (void)state;
    struct engine *e = open_engine(&(struct engine_options){.backend = ENGINE_PWRITE});
    assert_string_equal(engine_backend(e), "pwrite");
    assert_string_equal(engine_reason(e), "pwrite was asked for");
    engine_close(e);
    e = open_engine(&(struct engine_options){0});
    print_message("here: %s %s\n", engine_backend(e), engine_reason(e));
    assert_int_equal(strcmp(engine_backend(e), "io_uring") == 0, engine_reason(e)[0] == '\0');
    engine_close(e);
}

struct handed_over {
    struct engine *engine;
    int directory, rc;
};

static void *use_engine(void *arg)
{
    struct handed_over *h = arg;
    h->rc = put_file(h->engine, h->directory, "x", 3 << 20);
    return NULL;
}

static void an_engine_belongs_to_the_thread_that_opens_the_first_file(void **state)
{
    (void)state;
    char path[64];
    struct handed_over h = {.directory = open_directory(path)};
    h.engine = open_engine(&(struct engine_options){0});
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, use_engine, &h), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(h.rc, 0);
    expect_file(path, "x", 3 << 20);
    engine_close(h.engine);
    close(h.directory);
    tree_remove(path);
}

static void files_side_by_side_come_out_each_in_order(void **state)
{
    (void)state;
    char path[64];
    const int directory = open_directory(path);
    static const int depths[] = {1, 8, ENGINE_BLOCKS};
    const size_t blocks[ENGINE_FILES] = {40, 25, 7};
    for (int b = 0; b < 2; b++)
        for (int d = 0; d < 3; d++) {
            struct engine *e =
                open_engine(&(struct engine_options){.backend = backends[b], .depth = depths[d]});
            char names[ENGINE_FILES][32];
            for (int f = 0; f < ENGINE_FILES; f++) {
                snprintf(names[f], sizeof names[f], "%d-%d-%d", b, d, f);
                engine_file_choose(e, f);
                assert_int_equal(
                    engine_file_open(e, directory, names[f], blocks[f] * ENGINE_BLOCK + 8), 0);
            }
            for (size_t i = 0; i <= blocks[0]; i++) {
                // All have a block, of which each is filled only when the others have theirs, too.
                void *block[ENGINE_FILES] = {0};
                for (int f = 0; f < ENGINE_FILES; f++) {
                    engine_file_choose(e, f);
                    block[f] = i <= blocks[f] ? engine_block_get(e) : NULL;
                    assert_ptr_equal(i <= blocks[f] ? engine_block_get(e) : NULL, block[f]);
                }
                for (int f = 0; f < ENGINE_FILES; f++) {
                    const size_t n = i < blocks[f] ? ENGINE_BLOCK : 8;
                    engine_file_choose(e, f);
                    if (!block[f])
                        continue;
                    fill_block(block[f], i * ENGINE_BLOCK, n);
                    assert_int_equal(engine_block_put(e, n), 0);
                    if (i == blocks[f])
                        assert_int_equal(engine_file_close(e), 0);
                }
            }
            engine_close(e);
            for (int f = 0; f < ENGINE_FILES; f++)
                expect_file(path, names[f], blocks[f] * ENGINE_BLOCK + 8);
        }
    close(directory);
    tree_remove(path);
}

static void what_is_given_up_costs_no_block(void **state)
{
    (void)state;
    char path[64], name[32];
    const int directory = open_directory(path);
    struct engine *e = open_engine(&(struct engine_options){0});
    for (int i = 0; i < 2 * ENGINE_BLOCKS; i++) {
        for (int f = 0; f < ENGINE_FILES; f++) {
            snprintf(name, sizeof name, "%d-%d", i, f);
            engine_file_choose(e, f);
            assert_int_equal(engine_file_open(e, directory, name, 2 * ENGINE_BLOCK), 0);
            assert_non_null(engine_block_get(e));
        }
        engine_files_abandon(e);
    }
    engine_file_choose(e, 0);
    assert_int_equal(put_file(e, directory, "last", 20 * (uint64_t)ENGINE_BLOCK), 0);
    expect_file(path, "last", 20 * (uint64_t)ENGINE_BLOCK);
    engine_close(e);
    close(directory);
    tree_remove(path);
}

static int allocate_nothing(struct storage *s, int handle, uint64_t size)
{
    (void)s;
    (void)handle;
    (void)size;
    return 0;
}

static void a_write_that_fails_on_the_way_fails_the_file_and_not_the_engine(void **state)
{
    (void)state;
    // A limit in the middle of a block: the write of it comes back short, the rest is refused.
    // Allocation would find that at once, so here it does nothing.
    struct storage_ops ops = *storage_disk.ops;
    ops.allocate = allocate_nothing;
    struct storage storage = {.ops = &ops, .descriptors = true};
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit before;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    for (int b = 0; b < 2; b++) {
        char path[64];
        const int directory = open_directory(path);
        struct engine *e =
            open_engine(&(struct engine_options){.storage = &storage, .backend = backends[b]});
        const struct rlimit limit = {(5 << 20) + (512 << 10), before.rlim_max};
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
        const int rc = put_file(e, directory, "limited", 40 * (uint64_t)ENGINE_BLOCK);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
        assert_int_equal(rc, -EFBIG);
        assert_non_null(strstr(engine_error(e), "limited: cannot write"));
        // Every later call says the same, also about a file beside it.
        assert_null(engine_block_get(e));
        assert_int_equal(engine_block_put(e, 1), -EFBIG);
        engine_file_choose(e, 1);
        assert_int_equal(engine_file_open(e, directory, "beside", 1), -EFBIG);
        engine_file_choose(e, 0);
        engine_files_abandon(e);

        assert_int_equal(put_file(e, directory, "next", 20 * (uint64_t)ENGINE_BLOCK), 0);
        expect_file(path, "next", 20 * (uint64_t)ENGINE_BLOCK);
        engine_close(e);
        close(directory);
        tree_remove(path);
    }
}

static void a_file_that_cannot_be_allocated_is_refused_before_a_byte_is_written(void **state)
{
    (void)state;
    char path[64];
    const int directory = open_directory(path);
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit before;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    struct engine *e = open_engine(&(struct engine_options){0});
    const struct rlimit limit = {1 << 20, before.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    const int rc = engine_file_open(e, directory, "big", 2 << 20);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_int_equal(rc, -EFBIG);
    assert_non_null(strstr(engine_error(e), "big: cannot allocate 2097152 bytes"));
    assert_int_equal(engine_bytes_written(e), 0);
    engine_close(e);
    close(directory);
    tree_remove(path);
}

static void the_hash_of_the_index_is_the_documented_one(void **state)
{
    (void)state;
    assert_true(id_index_fmix64(0) == 0);
    assert_true(id_index_fmix64(1) == 0xb456bcfc34c2cb2c);
    assert_true(id_index_fmix64(2) == 0x3abf2a20650683e7);
    assert_int_equal(id_index_home(1, 0, 1000), 0xb456bcfc34c2cb2c / (UINT64_MAX / 1000));
    // XXH3-64 of nothing, as its documentation has it.
    assert_true(id_index_key(0, "", 0) == 0x2d06800538d394c2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(more_blocks_than_the_ring_has_come_out_in_order),
        cmocka_unit_test(files_side_by_side_come_out_each_in_order),
        cmocka_unit_test(what_is_given_up_costs_no_block),
        cmocka_unit_test(the_backend_has_a_name_and_pwrite_a_reason),
        cmocka_unit_test(an_engine_belongs_to_the_thread_that_opens_the_first_file),
        cmocka_unit_test(a_write_that_fails_on_the_way_fails_the_file_and_not_the_engine),
        cmocka_unit_test(a_file_that_cannot_be_allocated_is_refused_before_a_byte_is_written),
        cmocka_unit_test(the_hash_of_the_index_is_the_documented_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
