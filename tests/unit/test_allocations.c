// SPDX-License-Identifier: Apache-2.0
//
// Memory is taken at the start: once a stream runs, neither ingest nor trainer thread asks for
// more. The linker leads our own calls here (tests/CMakeLists.txt); what libraries do is theirs.
#include "daemon/job.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include "daemon/assemble.h"
#include "model/arena.h"
#include "model/kernels.h"

enum { REQUESTS = 60000, SLICES_BEFORE = 1000, SLICES = 3000 };

static _Atomic uint64_t asked;

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__real_aligned_alloc(size_t alignment, size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_aligned_alloc(size_t alignment, size_t n);

void *__wrap_malloc(size_t n)
{
    atomic_fetch_add(&asked, 1);
    return __real_malloc(n);
}

// The index of an id table is renewed when ids that have left fill it.
void *__wrap_calloc(size_t n, size_t size)
{
    if (size != 8 || n < 4096)
        atomic_fetch_add(&asked, 1);
    return __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t n)
{
    atomic_fetch_add(&asked, 1);
    return __real_realloc(p, n);
}

void *__wrap_aligned_alloc(size_t alignment, size_t n)
{
    atomic_fetch_add(&asked, 1);
    return __real_aligned_alloc(alignment, n);
}

struct seen {
    uint64_t slices, before, after, examples;
};

// In the trainer's thread, after each slice.
static void applied(void *arg, const struct trainer *t, const struct evaluator *e)
{
    struct seen *seen = arg;
    (void)e;
    if (trainer_state(t)->slices == seen->slices)
        return; // the end of the stream was drawn
    seen->slices = trainer_state(t)->slices;
    if (seen->slices == SLICES_BEFORE)
        seen->before = atomic_load(&asked);
    if (seen->slices == SLICES_BEFORE + SLICES) {
        seen->after = atomic_load(&asked);
        seen->examples = trainer_state(t)->examples;
    }
}

static void set(struct config *c, const char *key, const char *text)
{
    struct config_problems problems = {0};
    assert_int_equal(config_set(c, key, text, "test", &problems), 0);
}

static void a_running_stream_asks_for_no_memory(void **state)
{
    static char memory[CONFIG_MEMORY];
    char directory[] = "/tmp/test_allocations.XXXXXX", path[96], error[512], requests[16];
    struct arena arena = {memory, sizeof memory, 0};
    struct config config;
    struct source *source;
    struct seen seen = {0};
    struct job *job;
    (void)state;
    kernels_init(NULL);
    assert_non_null(mkdtemp(directory));
    config_init(&config, &arena);
    snprintf(requests, sizeof requests, "%d", REQUESTS);
    set(&config, "source.type", "builtin");
    set(&config, "source.users", "500");
    set(&config, "source.catalogue", "500");
    set(&config, "source.requests", requests);
    set(&config, "slice.events", "16");
    set(&config, "tables.items_max", "1000");
    set(&config, "tables.users_max", "1000");
    set(&config, "join.max_bytes", "16MiB");
    set(&config, "model.dim", "8");
    set(&config, "model.batch", "64");
    snprintf(path, sizeof path, "%s/state", directory);
    set(&config, "state.dir", path);
    snprintf(path, sizeof path, "%s/snapshots", directory);
    set(&config, "snapshot.dir", path);
    assert_int_equal(assemble_source(&config, true, &source, error, sizeof error), 0);
    assert_int_equal(
        job_open(&job, &config, source,
                 &(struct job_options){.bounded = true, .applied = applied, .arg = &seen}, error,
                 sizeof error),
        0);
    assert_int_equal(job_start(job), 0);
    while (!job_wait(job, 100))
        ;
    assert_int_equal(job_result(job), 0);
    job_close(job);
    snprintf(path, sizeof path, "rm -rf '%s'", directory);
    assert_int_equal(system(path), 0);
    assert_true(seen.slices > SLICES_BEFORE + SLICES);
    assert_true(seen.examples > 1000);
    assert_int_equal(seen.after - seen.before, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_running_stream_asks_for_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
