// SPDX-License-Identifier: Apache-2.0
//
// Memory is taken at the start: once a stream runs, neither ingest nor trainer thread asks for
// more.
#include "pipeline/cutter.h"

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
#include "pipeline/trainer.h"
#include "tests/support/allocations.h"

// A read brings no more than a slice takes: else all of this short stream would be decoded ahead.
static struct source_ops few_ops;
static int (*read_many)(struct source *s, int p, int max, struct record *records);

static int read_few(struct source *s, int p, int max, struct record *records)
{
    enum { FEW = 8 };
    return read_many(s, p, max < FEW ? max : FEW, records);
}

static void set(struct config *c, const char *key, const char *text)
{
    struct config_problems problems = {0};
    assert_int_equal(config_set(c, key, text, "test", &problems), 0);
}

static struct source *source_start(const struct config *config, int64_t *first, int64_t *time_max)
{
    struct source *s;
    char error[512];
    int64_t end[TOPICS];
    assert_int_equal(assemble_source(config, true, &s, error, sizeof error), 0);
    assert_true(s->n_partitions <= TOPICS);
    assert_int_equal(s->ops->bounds(s, first, end), 0);
    assert_int_equal(s->ops->start(s, first, end), 0);
    for (int p = 0; p < s->n_partitions; p++)
        time_max[p] = INT64_MIN;
    few_ops = *s->ops;
    read_many = few_ops.read;
    few_ops.read = read_few;
    s->ops = &few_ops;
    return s;
}

// With as many slices under way as the daemon's queue holds.
static void a_running_stream_asks_for_no_memory(void **state)
{
    enum { UNDER_WAY = 8, BEFORE = 3000, SLICES = 3000 };
    static char memory[CONFIG_MEMORY];
    static struct trainer t;
    static struct join_window windows[CONFIG_ENTRIES_MAX];
    struct arena arena = {memory, sizeof memory, 0};
    struct config config;
    struct cutter *cutter;
    struct slice *queue[UNDER_WAY];
    int64_t first[TOPICS], time_max[TOPICS];
    uint64_t before = 0;
    (void)state;
    kernels_init(NULL);
    config_init(&config, &arena);
    set(&config, "source.type", "builtin");
    set(&config, "source.users", "500");
    set(&config, "source.catalogue", "500");
    set(&config, "source.requests", "0");
    set(&config, "source.requests_per_second", "2");
    set(&config, "slice.events", "16");
    set(&config, "tables.items_max", "1000");
    set(&config, "tables.users_max", "1000");
    set(&config, "join.max_bytes", "16MiB");
    set(&config, "model.dim", "8");
    set(&config, "model.batch", "64");
    struct source *source = source_start(&config, first, time_max);
    const struct cutter_options options = assemble_cutter(&config, SLICE_CANONICAL);
    const struct trainer_options trainer = assemble_trainer(&config, source->n_partitions, windows);
    assert_int_equal(cutter_open(&cutter, source, &options,
                                 &(struct cutter_position){first, time_max, 0, 0, NULL}),
                     0);
    assert_int_equal(trainer_open(&t, &trainer), 0);
    for (int i = 0; i < BEFORE + SLICES;) {
        struct slice *slice;
        const int rc = cutter_next(cutter, (struct cutter_clock){0}, 0, &slice);
        assert_true(rc >= 0);
        if (rc == 0)
            continue;
        if (i >= UNDER_WAY) {
            trainer_apply(&t, queue[i % UNDER_WAY]);
            cutter_give(cutter, queue[i % UNDER_WAY]);
        }
        queue[i++ % UNDER_WAY] = slice;
        if (i == BEFORE)
            before = atomic_load(&allocations);
    }
    assert_int_equal(atomic_load(&allocations), before);
    assert_true(before > 0);
    assert_true(trainer_state(&t)->examples > 1000);
    for (int i = 0; i < UNDER_WAY; i++)
        cutter_give(cutter, queue[i]);
    trainer_close(&t);
    cutter_close(cutter);
    source->ops->close(source);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_running_stream_asks_for_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
