// SPDX-License-Identifier: Apache-2.0
#include "daemon/journal.h"

#include <sys/stat.h>

#include "daemon/assemble.h"
#include "model/arena.h"
#include "tests/unit/core_fixture.h"
#include "tests/unit/test_snapshot.h"

// One partition of impressions; slice N shows one item at offset N - 1.
static const struct source_partition partitions[] = {{"impressions", TOPIC_IMPRESSIONS, 0}};
static const int64_t from[] = {0};

// A process: its configuration, trainer and journal.
struct life {
    struct config config;
    char memory[CONFIG_MEMORY];
    struct arena arena;
    struct join_window windows[CONFIG_ENTRIES_MAX];
    struct trainer trainer;
    struct journal journal;
    struct engine *engine;
    char error[2048];
};

static char directory[64];
static struct life a, b;

static void set(struct life *l, const char *key, const char *text)
{
    struct config_problems problems = {0};
    assert_int_equal(config_set(&l->config, key, text, "test", &problems), 0);
}

static int life_open(struct life *l, const char *name, const char *recorded, uint64_t to)
{
    char path[128];
    memset(l, 0, sizeof *l);
    l->arena = (struct arena){l->memory, sizeof l->memory, 0};
    config_init(&l->config, &l->arena);
    snprintf(path, sizeof path, "%s/%s", directory, name);
    mkdir(path, 0700);
    set(l, "state.dir", path);
    set(l, "model.dim", "4");
    set(l, "model.batch", "8");
    set(l, "tables.items_max", "100");
    set(l, "tables.users_max", "100");
    set(l, "join.max_bytes", "1MiB");
    set(l, "slice.log_max", "64KiB");
    const struct trainer_options options = assemble_trainer(&l->config, 1, l->windows);
    assert_int_equal(trainer_open(&l->trainer, &options), 0);
    assert_int_equal(engine_open(&l->engine, &(struct engine_options){.backend = ENGINE_PWRITE},
                                 l->error, sizeof l->error),
                     0);
    return journal_open(&l->journal,
                        &(struct journal_options){.config = &l->config,
                                                  .engine = l->engine,
                                                  .partitions = partitions,
                                                  .n_partitions = 1,
                                                  .from = from,
                                                  .recorded = recorded,
                                                  .recorded_to = to},
                        &l->trainer, l->error, sizeof l->error);
}

static void life_end(struct life *l)
{
    if (!l->engine)
        return;
    journal_close(&l->journal);
    engine_close(l->engine);
    trainer_close(&l->trainer);
    l->engine = NULL;
}

static int setup(void **state)
{
    (void)state;
    strcpy(directory, access("/dev/shm", W_OK) == 0 ? "/dev/shm/test_journal.XXXXXX"
                                                    : "/tmp/test_journal.XXXXXX");
    return mkdtemp(directory) ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    life_end(&a);
    life_end(&b);
    tree_remove(directory);
    return 0;
}

// The slice with this number, as a cutter would make it. Applied, and logged when it is new.
static void slice(struct life *l, uint64_t number, bool last)
{
    struct core_event e;
    const uint64_t item = number % 7;
    const struct event *event =
        core_impression(&e, TEST_START_MS + (int64_t)number, number, number % 5, 1, &item);
    struct slice_event events[] = {{event->ts_ms, event}};
    int64_t next[] = {(int64_t)number}, time_max_ms[] = {event->ts_ms};
    uint8_t flags[] = {0};
    const struct slice s = {.number = number,
                            .order = SLICE_CANONICAL,
                            .n_events = 1,
                            .events = events,
                            .n_partitions = 1,
                            .next = next,
                            .time_max_ms = time_max_ms,
                            .epoch = unknown_epoch(),
                            .flags = flags,
                            .watermark_ms = INT64_MIN,
                            .floor_ms = INT64_MIN,
                            .digest = number * 3,
                            .last = last};
    const struct slice_record *record = journal_recorded(&l->journal);
    if (record)
        assert_int_equal(record->number, number);
    const int rc = record ? journal_taken(&l->journal, &s) : journal_append(&l->journal, &s);
    if (rc < 0)
        fail_msg("%s", l->journal.error);
    trainer_apply(&l->trainer, &s);
}

static int checkpoint(struct life *l, char path[4096])
{
    static uint64_t now_ms = 1700000000000;
    struct state_stamp stamp;
    columns_cut(&l->trainer.columns);
    return journal_checkpoint(&l->journal, &l->trainer, false, now_ms++, &stamp, path, l->error,
                              sizeof l->error);
}

static void open_ok(struct life *l, const char *name, const char *recorded, uint64_t to)
{
    if (life_open(l, name, recorded, to) < 0)
        fail_msg("%s", l->error);
}

static void what_the_log_has_after_the_checkpoint_is_applied_again(void **state)
{
    (void)state;
    char path[4096];
    open_ok(&a, "s", NULL, 0);
    assert_null(journal_recorded(&a.journal));
    for (uint64_t n = 1; n <= 5; n++)
        slice(&a, n, false);
    assert_int_equal(checkpoint(&a, path), 0);
    for (uint64_t n = 6; n <= 9; n++)
        slice(&a, n, false);
    life_end(&a);
    open_ok(&a, "s", NULL, 0);
    assert_true(a.journal.restored);
    assert_int_equal(a.journal.stamp.slice, 5);
    assert_int_equal(trainer_state(&a.trainer)->slices, 5);
    assert_int_equal(a.journal.recorded_last, 9);
    assert_int_equal(a.journal.recorded_next[0], 9);
    for (uint64_t n = 6; n <= 9; n++)
        slice(&a, n, false);
    assert_null(journal_recorded(&a.journal));
    slice(&a, 10, false); // goes on where it ended
    life_end(&a);
    open_ok(&a, "s", NULL, 0);
    assert_int_equal(a.journal.recorded_last, 10);
}

static void what_is_forgotten_never_was(void **state)
{
    (void)state;
    char path[4096];
    open_ok(&a, "s", NULL, 0);
    for (uint64_t n = 1; n <= 3; n++)
        slice(&a, n, false);
    assert_int_equal(checkpoint(&a, path), 0);
    slice(&a, 4, false);
    life_end(&a);
    open_ok(&a, "s", NULL, 0);
    assert_int_equal(journal_forget(&a.journal), 0);
    assert_null(journal_recorded(&a.journal));
    slice(&a, 4, false);
    slice(&a, 5, false);
    life_end(&a);
    open_ok(&a, "s", NULL, 0);
    assert_int_equal(a.journal.recorded_last, 5);
}

static void two_journals_on_one_machine_are_kept_apart_by_a_lock(void **state)
{
    (void)state;
    open_ok(&a, "s", NULL, 0);
    assert_int_equal(life_open(&b, "s", NULL, 0), -EBUSY);
}

// As if on a file system that has no locks.
static void who_was_taken_over_makes_no_checkpoint_any_more(void **state)
{
    (void)state;
    char path[4096], owner[128];
    open_ok(&a, "s", NULL, 0);
    const uint64_t first = a.journal.owner;
    slice(&a, 1, false);
    assert_int_equal(checkpoint(&a, path), 0);
    snprintf(owner, sizeof owner, "%s/s/owner", directory);
    file_write(owner, "77\n", 3);
    slice(&a, 2, false);
    assert_int_equal(checkpoint(&a, path), -EBUSY);
    assert_non_null(strstr(a.error, "another process has taken it over (owner 77, we are 1)"));
    assert_int_equal(first, 1);
    life_end(&a);
    open_ok(&a, "s", NULL, 0);
    assert_int_equal(a.journal.owner, 78);
    assert_int_equal(a.journal.stamp.slice, 1); // nothing of the refused one is there
    life_end(&a);
    file_write(owner, "no number", 9);
    assert_int_equal(life_open(&a, "s", NULL, 0), -EBADMSG);
    assert_non_null(strstr(a.error, "not the number of an owner"));
}

// The whole state, as bytes.
static uint64_t state_sum(const struct life *l)
{
    uint64_t sum = 0;
    for (int i = 0; i < l->trainer.columns.n; i++) {
        const struct column *c = l->trainer.columns.list[i];
        for (size_t k = 0; k < c->n * c->unit; k++)
            sum = mix(sum ^ c->base[k]);
    }
    return sum;
}

static void the_slices_of_another_run_give_its_state(void **state)
{
    (void)state;
    char path[4096], other[128];
    uint64_t sum[13];
    snprintf(other, sizeof other, "%s/s", directory);
    open_ok(&a, "s", NULL, 0);
    for (uint64_t n = 1; n <= 12; n++) {
        slice(&a, n, n == 12);
        sum[n] = state_sum(&a);
        if (n % 5 == 0)
            assert_int_equal(checkpoint(&a, path), 0);
    }
    // While it is still open: up to a slice in the middle, then to the end, then nothing is left.
    open_ok(&b, "r", other, 7);
    assert_false(b.journal.restored); // its log goes back to the first slice
    for (uint64_t n = 1; n <= 7; n++)
        slice(&b, n, false);
    assert_null(journal_recorded(&b.journal));
    assert_int_equal(state_sum(&b), sum[7]);
    assert_false(b.journal.recorded_ends);
    life_end(&b);
    open_ok(&b, "r", NULL, 0); // they are in its own log now
    assert_int_equal(b.journal.recorded_last, 7);
    life_end(&b);
    open_ok(&b, "r", other, UINT64_MAX); // without a checkpoint of its own: by its own log
    for (uint64_t n = 1; n <= 12; n++)
        slice(&b, n, n == 12);
    assert_int_equal(state_sum(&b), sum[12]);
    assert_true(b.journal.recorded_ends);
    assert_int_equal(checkpoint(&b, path), 0);
    life_end(&b);
    open_ok(&b, "r", other, UINT64_MAX);
    assert_null(journal_recorded(&b.journal));
    assert_true(b.journal.recorded_ends); // known although nothing is read again
}

static void a_log_that_was_cut_is_followed_from_a_checkpoint(void **state)
{
    (void)state;
    char path[4096], other[128], log[160];
    snprintf(other, sizeof other, "%s/s", directory);
    open_ok(&a, "s", NULL, 0);
    for (uint64_t n = 1; n <= 5; n++)
        slice(&a, n, false);
    assert_int_equal(checkpoint(&a, path), 0);
    life_end(&a);
    snprintf(log, sizeof log, "%s/slices-1.log", other);
    assert_int_equal(unlink(log), 0);
    open_ok(&a, "s", NULL, 0);
    slice(&a, 6, false);
    const uint64_t sum = state_sum(&a);
    open_ok(&b, "r", other, UINT64_MAX);
    assert_true(b.journal.restored);
    assert_int_equal(b.journal.stamp.slice, 5);
    slice(&b, 6, false);
    assert_int_equal(state_sum(&b), sum);
    life_end(&b);
    life_end(&a);
    snprintf(path, sizeof path, "%s/checkpoints", other);
    tree_remove(path);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(life_open(&b, "q", other, UINT64_MAX), -ENOENT);
    assert_non_null(strstr(b.error, "begins with slice 6, and no checkpoint is there"));
    life_end(&b);
    snprintf(path, sizeof path, "%s/nowhere", directory);
    assert_int_equal(life_open(&b, "q", path, UINT64_MAX), -ENOENT);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(what_the_log_has_after_the_checkpoint_is_applied_again),
        TEST(what_is_forgotten_never_was),
        TEST(two_journals_on_one_machine_are_kept_apart_by_a_lock),
        TEST(who_was_taken_over_makes_no_checkpoint_any_more),
        TEST(the_slices_of_another_run_give_its_state),
        TEST(a_log_that_was_cut_is_followed_from_a_checkpoint),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
