// SPDX-License-Identifier: Apache-2.0
//
// daemon/state.c and daemon/publish.c: what a checkpoint keeps and what a snapshot made from it
// says.
#include "daemon/state.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <sysexits.h>

#include "daemon/assemble.h"
#include "daemon/command.h"
#include "daemon/log.h"
#include "daemon/publish.h"
#include "model/arena.h"
#include "model/gemm.h"
#include "model/tables.h"
#include "snapshot/load.h"
#include "snapshot/manifest.h"
#include "snapshot/storage.h"
#include "tests/unit/core_fixture.h"
#include "tests/unit/test_snapshot.h"

static const struct source_partition partitions[] = {{"impressions", TOPIC_IMPRESSIONS, 0},
                                                     {"engagements", TOPIC_ENGAGEMENTS, 0}};

static struct fixture {
    struct config config;
    char memory[CONFIG_MEMORY];
    struct arena arena;
    struct join_window windows[CONFIG_ENTRIES_MAX];
    struct trainer trainer;
    struct test_root state, snapshots;
    struct state_stamp stamp;
    char error[1024], path[256];
    bool integers; // ids
} f;

static void set(const char *pair)
{
    struct config_problems problems = {0};
    if (config_set_pair(&f.config, pair, "test", &problems) < 0)
        fail_msg("%s: %s", pair, problems.list[0].text);
}

static void configure(void)
{
    f.arena = (struct arena){f.memory, sizeof f.memory, 0};
    config_init(&f.config, &f.arena);
    set("model.dim=6");
    set("model.history=5");
    set("model.repeat=7");
    set("model.batch=8");
    set("model.uniform_negatives=4");
    set("model.init=0.3");
    set("tables.items_max=500");
    set("tables.users_max=200");
    set("join.max_bytes=1MiB");
    set("join.window=1m");
}

static void open_trainer(struct trainer *t)
{
    const struct trainer_options options = assemble_trainer(&f.config, 2, f.windows);
    assert_int_equal(trainer_open(t, &options), 0);
}

static int setup_at(const char *parent, const char *const *pairs)
{
    memset(&f, 0, sizeof f);
    configure();
    for (; *pairs; pairs++)
        set(*pairs);
    open_trainer(&f.trainer);
    root_make(&f.state, parent, ENGINE_PWRITE, NULL);
    root_make(&f.snapshots, parent, ENGINE_PWRITE, NULL);
    return 0;
}

// In memory where there is some: the tests of snapshot/ are about disks.
static int setup_with(const char *const *pairs)
{
    return setup_at(access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp", pairs);
}

static int setup_on_disk(void **state)
{
    (void)state;
    return setup_at(
        "/tmp", (const char *const[]){"tables.items_max=11000", "tables.users_max=11000", NULL});
}

static int setup(void **state)
{
    (void)state;
    return setup_with((const char *const[]){NULL});
}

// With slates, and a head that learns from them.
static int setup_ranker(void **state)
{
    (void)state;
    return setup_with((const char *const[]){"ranker.weight=1", "value.tasks=click=1.7,*=-0.3",
                                            "slates.batch=4", NULL});
}

static int setup_corrected(void **state)
{
    (void)state;
    return setup_with((const char *const[]){"ranker.weight=1", "value.tasks=click=1.7,*=-0.3",
                                            "slates.batch=4", "ranker.feedback=fnc",
                                            "ranker.feedback_delay=10s", NULL});
}

// With every column that has numbers of its own.
static int setup_everything(void **state)
{
    (void)state;
    return setup_with((const char *const[]){"ranker.weight=1", "value.tasks=click=1.7,*=-0.3",
                                            "slates.batch=4", "align.weight=0.1", "align.trust=0.1",
                                            "debias.estimator=combined", "model.memory=64",
                                            "model.memory_after=1", NULL});
}

static int setup_admitting(void **state)
{
    (void)state;
    return setup_with((const char *const[]){"tables.admit_items=3", "tables.item_ttl=1h", NULL});
}

static int teardown(void **state)
{
    (void)state;
    trainer_close(&f.trainer);
    root_remove(&f.state);
    root_remove(&f.snapshots);
    return 0;
}

// Ids of the stream: strings, or integers.
static struct id name(const char *prefix, uint64_t n)
{
    static char storage[64][8];
    static unsigned next;
    return f.integers ? id_of_unsigned(n * 3, storage[next++ % 64]) : core_id(prefix, n);
}

static void one(struct event *event, uint64_t user)
{
    if (event->topic != TOPIC_ITEMS)
        event->user = name("u", user);
    struct slice_event list[] = {{event->ts_ms, event}};
    int64_t next[] = {event->ts_ms % 1000, 7}, time_max_ms[] = {event->ts_ms, INT64_MIN};
    trainer_apply(&f.trainer, &(struct slice){.number = trainer_state(&f.trainer)->slices + 1,
                                              .order = SLICE_CANONICAL,
                                              .n_events = 1,
                                              .events = list,
                                              .n_partitions = 2,
                                              .next = next,
                                              .time_max_ms = time_max_ms,
                                              .epoch = unknown_epoch(),
                                              .watermark_ms = INT64_MIN});
}

// n requests of three items by 25 users, two of three with a click; titles; one item removed.
static void learn(uint64_t seed, int n)
{
    static struct core_event e;
    struct rng rng = {seed, 0};
    for (int i = 0; i < n; i++) {
        const int64_t ts = TEST_START_MS + (int64_t)seed * 1000000 + i * 700;
        const uint64_t user = rng_below(&rng, 25), request = seed * 10000 + (uint64_t)i;
        uint64_t items[3];
        for (int k = 0; k < 3; k++)
            items[k] = rng_below(&rng, 1 + rng_below(&rng, 60));
        core_impression(&e, ts, request, user, 3, items);
        for (int k = 0; k < 3; k++)
            e.items[k].item = name("i", items[k]);
        one(&e.event, user);
        if (i % 3) {
            core_engagement(&e, ts + 100, (int64_t)request, user, 0, "click");
            e.items[0].item = name("i", items[i % 2]);
            one(&e.event, user);
        }
        if (i % 20 == 7) {
            core_item(&e, ts + 200, 0, "A title", false);
            e.items[0].item = name("i", items[0]);
            one(&e.event, 0);
        }
    }
    core_item(&e, TEST_START_MS + (int64_t)seed * 1000000 + n * 700, 0, NULL, true);
    e.items[0].item = name("i", 2);
    one(&e.event, 0);
}

static void write_state(uint64_t generation)
{
    const struct state_write_options options = {.root = f.state.path,
                                                .generation = generation,
                                                .engine = f.state.engine,
                                                .config = &f.config,
                                                .partitions = partitions,
                                                .n_partitions = 2};
    if (state_write(&f.trainer, &options, &f.stamp, f.error, sizeof f.error) < 0)
        fail_msg("%s", f.error);
    snprintf(f.path, sizeof f.path, "%s/%" PRIu64, f.state.path, generation);
}

// As a program would write it that does not look at the numbers.
static void write_unchecked(uint64_t generation)
{
    const struct columns *s = &f.trainer.columns;
    size_t n[COLUMNS_MAX];
    for (int i = 0; i < s->n; i++) {
        n[i] = s->list[i]->numbers.n;
        s->list[i]->numbers.n = 0;
    }
    columns_cut(&f.trainer.columns);
    write_state(generation);
    for (int i = 0; i < s->n; i++)
        s->list[i]->numbers.n = n[i];
}

static int restore(struct trainer *t)
{
    struct state_stamp stamp;
    const int rc =
        state_restore(t, f.path, &f.config, partitions, 2, &stamp, f.error, sizeof f.error);
    if (rc == 0) {
        assert_int_equal(stamp.generation, f.stamp.generation);
        assert_int_equal(stamp.slice, f.stamp.slice);
    }
    return rc;
}

static void a_restored_trainer_has_the_columns_of_the_cut_and_goes_on_alike(void **state)
{
    (void)state;
    static struct trainer other;
    struct core_copy copy;
    learn(1, 300);
    columns_cut(&f.trainer.columns);
    core_copy_take(&copy, &f.trainer.columns);
    const uint64_t slices = trainer_state(&f.trainer)->slices;
    learn(2, 100); // after the cut, before it is written
    write_state(1000);
    assert_false(atomic_load(&f.trainer.columns.cut));
    assert_int_equal(f.stamp.slice, slices);

    open_trainer(&other);
    if (restore(&other) < 0)
        fail_msg("%s", f.error);
    core_copy_assert_equal(&copy, &other.columns, NULL, NULL);
    core_copy_free(&copy);

    // The events after the cut once more: as without the restart.
    core_copy_take(&copy, &f.trainer.columns);
    trainer_close(&other);
    trainer_close(&f.trainer);
    open_trainer(&f.trainer);
    assert_int_equal(restore(&f.trainer), 0);
    learn(2, 100);
    core_copy_assert_equal(&copy, &f.trainer.columns, NULL, NULL);
    core_copy_free(&copy);
}

static void the_stamp_is_read_from_the_manifest_alone(void **state)
{
    (void)state;
    learn(1, 50);
    columns_cut(&f.trainer.columns);
    write_state(77);
    struct state_stamp stamp;
    assert_int_equal(state_stamp_read(f.path, &stamp, f.error, sizeof f.error), 0);
    assert_int_equal(stamp.generation, 77);
    assert_int_equal(stamp.slice, trainer_state(&f.trainer)->slices);
}

static void assert_refused(const char *why, int expected)
{
    static struct trainer other;
    open_trainer(&other);
    assert_int_equal(restore(&other), expected);
    if (!strstr(f.error, why))
        fail_msg("expected '%s' in: %s", why, f.error);
    trainer_close(&other);
}

static void other_options_of_the_model_are_refused_by_name(void **state)
{
    (void)state;
    learn(1, 50);
    columns_cut(&f.trainer.columns);
    write_state(1);
    set("model.rate=0.2");
    assert_refused("model.rate=0.15 then, model.rate=0.2 now", -EINVAL);
    set("model.rate=0.15");
    set("tables.items_max=501");
    assert_refused("tables.items_max=500 then", -EINVAL);
    set("tables.items_max=500");
    set("join.window=2m");
    assert_refused("join.window=\"1m\" then", -EINVAL);
    set("join.window=60s");   // the same in another spelling
    set("checkpoint.keep=7"); // shapes nothing
    static struct trainer other;
    open_trainer(&other);
    assert_int_equal(restore(&other), 0);
    trainer_close(&other);
}

static void other_partitions_are_refused(void **state)
{
    (void)state;
    static const struct source_partition others[][2] = {
        {{"impressions", TOPIC_IMPRESSIONS, 0}, {"engagements", TOPIC_ENGAGEMENTS, 1}},
        {{"impressions", TOPIC_IMPRESSIONS, 0}, {"clicks", TOPIC_ENGAGEMENTS, 0}},
    };
    static struct trainer other;
    struct state_stamp stamp;
    learn(1, 50);
    columns_cut(&f.trainer.columns);
    write_state(1);
    open_trainer(&other);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(state_restore(&other, f.path, &f.config, others[i % 2], i < 2 ? 2 : 1,
                                       &stamp, f.error, sizeof f.error),
                         -EINVAL);
        assert_non_null(strstr(f.error, "other topics or partitions"));
    }
    trainer_close(&other);
}

// Arithmetic.

static struct tt_reader *publish(uint64_t generation);
static double number_of(const cJSON *object, const char *key);

// Puts another value, or none, in the place of a member of the checkpoint's manifest.
static void manifest_edit(const char *key, const char *text)
{
    char file[320];
    size_t size;
    snprintf(file, sizeof file, "%s/manifest.json", f.path);
    char *bytes = file_read(file, &size);
    cJSON *m = cJSON_Parse(bytes);
    free(bytes);
    cJSON_DeleteItemFromObjectCaseSensitive(m, key);
    cJSON_DeleteItemFromObjectCaseSensitive(m, "manifest_crc32c");
    if (text)
        cJSON_AddStringToObject(m, key, text);
    bytes = cJSON_Print(m);
    cJSON_Delete(m);
    size = strlen(bytes) - 2; // the seal brings the end of the object again
    bytes = realloc(bytes, size + MANIFEST_SEAL_SIZE + 1);
    assert_non_null(bytes);
    size += (size_t)manifest_seal(bytes + size, table_crc32c(bytes, size));
    chmod(file, 0600);
    file_write(file, bytes, size);
    free(bytes);
}

// A core that this program does not run, and that every CPU could.
static const char *other_core(void)
{
    return strcmp(gemm_core(), "Nehalem") ? "Nehalem" : "Core2";
}

static void write_learned(uint64_t generation)
{
    learn(1, 50);
    columns_cut(&f.trainer.columns);
    write_state(generation);
}

static void restore_anew(void)
{
    static struct trainer other;
    open_trainer(&other);
    if (restore(&other) < 0)
        fail_msg("%s", f.error);
    trainer_close(&other);
}

static void another_blas_core_or_library_is_refused_with_the_ways_out(void **state)
{
    (void)state;
    char text[160];
    write_learned(1);
    manifest_edit("blas_core", other_core());
    snprintf(text, sizeof text, "%s core %s", gemm_library(), other_core());
    assert_refused(text, -EINVAL);
    snprintf(text, sizeof text, "this is %s core %s", gemm_library(), gemm_core());
    assert_refused(text, -EINVAL);
    snprintf(text, sizeof text, "OPENBLAS_CORETYPE=%s in the environment", other_core());
    assert_refused(text, -EINVAL);
    assert_refused("set kernels.on_change = \"accept\"", -EINVAL);
    assert_int_equal(command_status(-EINVAL), EX_CONFIG);
    if (strcmp(gemm_core(), GEMM_CORE_PORTABLE) != 0) {
        manifest_edit("blas_core", GEMM_CORE_PORTABLE);
        assert_refused("set kernels.blas_core = \"portable\"", -EINVAL);
    }
    manifest_edit("blas_core", gemm_core());
    manifest_edit("blas", "OpenBLAS 0.3.1");
    assert_refused("to go on with the same bytes install OpenBLAS 0.3.1,", -EINVAL);
    manifest_edit("libm", "glibc 2.1 0");
    assert_refused("install OpenBLAS 0.3.1 and run with glibc 2.1 0", -EINVAL);
    manifest_edit("blas", gemm_library());
    assert_refused("bytes run with glibc 2.1 0", -EINVAL);
}

static void our_own_kernels_may_be_others(void **state)
{
    (void)state;
    write_learned(1);
    manifest_edit("kernels", "of tomorrow");
    restore_anew();
}

static void a_checkpoint_that_does_not_tell_its_libm_is_taken(void **state)
{
    (void)state;
    write_learned(1);
    manifest_edit("libm", NULL);
    manifest_edit("numerics", NULL);
    restore_anew();
    manifest_edit("blas_core", other_core());
    assert_refused("learned with OpenBLAS", -EINVAL);
}

static void assert_entry(const cJSON *list, int i, double from, const char *core)
{
    const cJSON *entry = cJSON_GetArrayItem(list, i);
    const cJSON *given = cJSON_GetObjectItemCaseSensitive(entry, "blas_core");
    assert_true(number_of(entry, "from_slice") == from);
    assert_true(cJSON_IsString(given));
    assert_string_equal(given->valuestring, core);
}

// The manifest's list of arithmetics has n entries, and the first two are these.
static void assert_lineage(const char *json, int n, const char *first, double second_from,
                           const char *second)
{
    cJSON *m = cJSON_Parse(json);
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(m, "numerics");
    assert_int_equal(cJSON_GetArraySize(list), n);
    assert_entry(list, 0, 1, first);
    if (n > 1)
        assert_entry(list, 1, second_from, second);
    cJSON_Delete(m);
}

static void assert_checkpoint_lineage(int n, const char *first, double second_from,
                                      const char *second)
{
    struct tt_reader *r;
    assert_int_equal(tt_open(&r, f.path, f.error, sizeof f.error), 0);
    assert_lineage(tt_manifest_json(r), n, first, second_from, second);
    tt_close(r);
}

static void what_is_accepted_is_said_and_stays_in_every_manifest(void **state)
{
    (void)state;
    char said[1024] = "", path[sizeof f.path];
    int ends[2];
    write_learned(1);
    restore_anew(); // the lineage of this process is from here on that of a state of one core
    assert_checkpoint_lineage(1, gemm_core(), 0, NULL);
    strcpy(path, f.path);
    const double slices = (double)f.stamp.slice;

    // As another machine left it, before checkpoints had lists.
    manifest_edit("blas_core", other_core());
    manifest_edit("numerics", NULL);
    set("kernels.on_change=accept");
    assert_int_equal(pipe(ends), 0);
    log_init(LOG_LEVEL_INFO, LOG_FORMAT_TEXT, ends[1]);
    trainer_close(&f.trainer);
    open_trainer(&f.trainer);
    const int rc = restore(&f.trainer);
    log_init(LOG_LEVEL_INFO, LOG_FORMAT_TEXT, STDERR_FILENO);
    close(ends[1]);
    assert_int_equal(rc, 0);
    assert_true(read(ends[0], said, sizeof said - 1) > 0);
    close(ends[0]);
    assert_non_null(strstr(said, "warning other arithmetic than the checkpoint's"));
    assert_non_null(strstr(said, other_core()));
    assert_non_null(strstr(said, gemm_core()));

    // The checkpoint and the snapshot after it, and those after the next restart.
    set("kernels.on_change=refuse");
    learn(2, 20);
    struct tt_reader *r = publish(2000);
    assert_lineage(tt_manifest_json(r), 2, other_core(), slices + 1, gemm_core());
    tt_close(r);
    assert_checkpoint_lineage(2, other_core(), slices + 1, gemm_core());
    trainer_close(&f.trainer);
    open_trainer(&f.trainer);
    assert_int_equal(restore(&f.trainer), 0);
    columns_cut(&f.trainer.columns);
    write_state(3000);
    assert_checkpoint_lineage(2, other_core(), slices + 1, gemm_core());
}

// One bit near the end of a column of the checkpoint.
static void column_damage(const char *column)
{
    char file[320];
    size_t size;
    snprintf(file, sizeof file, "%s/%s.safetensors", f.path, column);
    char *bytes = file_read(file, &size);
    bytes[size - 3] ^= 1;
    chmod(file, 0600);
    file_write(file, bytes, size);
    free(bytes);
}

static void a_damaged_column_is_refused(void **state)
{
    (void)state;
    learn(1, 50);
    columns_cut(&f.trainer.columns);
    write_state(1);
    column_damage("item.vector");
    assert_refused("item.vector.safetensors", -EBADMSG);
    strcpy(f.path, "/nonexistent");
    assert_refused("/nonexistent", -ENOENT);
}

// A restore that failed has read some of it: the next one, into the same trainer, is not to see it.
static void a_damaged_checkpoint_is_forgotten_by_the_one_before(void **state)
{
    (void)state;
    static struct trainer clean, again;
    char before[sizeof f.path];
    learn(1, 50);
    columns_cut(&f.trainer.columns);
    write_state(1);
    strcpy(before, f.path);
    const struct state_stamp stamp = f.stamp;
    learn(2, 300);
    columns_cut(&f.trainer.columns);
    write_state(2);
    column_damage("user.vector");

    open_trainer(&clean);
    open_trainer(&again);
    assert_int_equal(restore(&again), -EBADMSG);
    strcpy(f.path, before);
    f.stamp = stamp;
    assert_int_equal(restore(&again), 0);
    assert_int_equal(restore(&clean), 0);
    for (int i = 0; i < clean.columns.n; i++) {
        const struct column *a = clean.columns.list[i], *b = again.columns.list[i];
        assert_int_equal(a->n, b->n);
        // All that was reserved: what grows later must read as zero.
        const size_t all = a->n_max < 4096 ? a->n_max : 4096;
        if (memcmp(a->base, b->base, all * a->unit) != 0)
            fail_msg("column %s", a->name);
    }
    trainer_close(&clean);
    trainer_close(&again);
}

// Every column with numbers, and one of them wrong: of its first, a middle and its last unit, at
// both ends of what is arithmetic. Checksums are right: it was written so.
static void a_state_that_was_computed_wrong_is_neither_written_nor_taken_back(void **state)
{
    (void)state;
    static const double wrong[] = {NAN, INFINITY, -INFINITY, 1e38, -3e37};
    static struct trainer other;
    static const char *const names[] = {
        "item.vector",   "item.state",     "item.optimizer", "user.vector",     "user.optimizer",
        "memory.vector", "memory.entry",   "model.dense",    "model.state",     "model.heads",
        "model.guard",   "reference.item", "reference.user", "reference.dense", "weight.linear",
        "weight.user",   "weight.item",
    };
    size_t columns = 0;
    uint64_t generation = 1;
    learn(1, 200);
    for (int i = 0; i < f.trainer.columns.n; i++) {
        struct column *c = f.trainer.columns.list[i];
        const struct column_numbers numbers = c->numbers;
        for (size_t k = 0; k < sizeof names / sizeof *names; k++)
            columns += numbers.n > 0 && !strcmp(names[k], c->name);
        for (size_t k = 0; numbers.n > 0 && c->n > 0 && k < 5; k++) {
            const size_t unit = k == 0 ? 0 : k == 1 ? c->n / 2 : c->n - 1;
            const size_t at = numbers.from + (k % 2 ? numbers.n - 1 : 0) * numbers.size;
            unsigned char *to = (unsigned char *)column_edit(c, unit) + at, kept[8];
            memcpy(kept, to, numbers.size);
            const float narrow = (float)wrong[k];
            memcpy(to, numbers.size == 4 ? (const void *)&narrow : &wrong[k], numbers.size);

            const struct state_write_options options = {.root = f.state.path,
                                                        .generation = ++generation,
                                                        .engine = f.state.engine,
                                                        .config = &f.config,
                                                        .partitions = partitions,
                                                        .n_partitions = 2};
            columns_cut(&f.trainer.columns);
            assert_int_equal(state_write(&f.trainer, &options, &f.stamp, f.error, sizeof f.error),
                             -EBADMSG);
            assert_non_null(strstr(f.error, c->name));
            assert_false(atomic_load(&f.trainer.columns.cut));

            write_unchecked(++generation);
            open_trainer(&other);
            if (restore(&other) != -EBADMSG || !strstr(f.error, c->name))
                fail_msg("%s with %g: '%s'", c->name, wrong[k], f.error);
            trainer_close(&other);
            memcpy(to, kept, numbers.size);
        }
    }
    assert_int_equal(columns, sizeof names / sizeof *names);
    // And put right again it is taken.
    columns_cut(&f.trainer.columns);
    write_state(++generation);
    open_trainer(&other);
    assert_int_equal(restore(&other), 0);
    trainer_close(&other);
}

static int setup_large(void **state)
{
    (void)state;
    return setup_with((const char *const[]){"tables.items_max=200000", NULL});
}

// What is read is looked at as its bytes come, and of some units half comes before the other.
static void a_wrong_number_where_two_reads_meet_is_found(void **state)
{
    (void)state;
    static struct trainer other;
    struct column *c = f.trainer.columns.list[0];
    for (int i = 0; strcmp(c->name, "item.vector"); i++)
        c = f.trainer.columns.list[i];
    const size_t n = c->unit / sizeof(float);
    column_grow(c, c->n_max);
    size_t edge = LOAD_STRETCH - 4096; // where the first chunk of the file ends
    while (edge % c->unit == 0)
        edge += LOAD_STRETCH;
    assert_true(edge / c->unit < c->n);
    for (size_t k = 0; k < n; k++) {
        float *numbers = column_edit(c, edge / c->unit);
        numbers[k] = NAN;
        write_unchecked(k + 1);
        numbers[k] = 0;
        open_trainer(&other);
        if (restore(&other) != -EBADMSG || !strstr(f.error, c->name))
            fail_msg("number %zu: '%s'", k, f.error);
        trainer_close(&other);
    }
}

// What a checkpoint and a snapshot leave behind in the state that they were made of: nothing.
static void writing_changes_nothing(void **state)
{
    (void)state;
    struct core_copy copy;
    struct published published;
    learn(1, 300);
    core_copy_take(&copy, &f.trainer.columns);
    for (uint64_t generation = 10; generation < 14; generation++) {
        columns_cut(&f.trainer.columns);
        write_state(generation);
        const struct publish_options options = {.checkpoint = f.path,
                                                .root = f.snapshots.path,
                                                .generation = generation,
                                                .engine = f.snapshots.engine,
                                                .config = &f.config};
        if (publish_snapshot(&options, &published, f.error, sizeof f.error) < 0)
            fail_msg("%s", f.error);
        core_copy_assert_equal(&copy, &f.trainer.columns, NULL, NULL);
    }
    core_copy_free(&copy);
}

static void checkpoints_and_snapshots_leave_no_memory_behind(void **state)
{
    enum { ROUNDS = 300 / CORE_SLOWNESS + 10 };
    (void)state;
    long early = 0;
    learn(1, 300);
    for (uint64_t round = 1; round <= ROUNDS; round++) {
        struct published published;
        static struct trainer other;
        columns_cut(&f.trainer.columns);
        write_state(round);
        const struct publish_options options = {.checkpoint = f.path,
                                                .root = f.snapshots.path,
                                                .generation = round,
                                                .engine = f.snapshots.engine,
                                                .config = &f.config};
        if (publish_snapshot(&options, &published, f.error, sizeof f.error) < 0)
            fail_msg("%s", f.error);
        open_trainer(&other);
        assert_int_equal(restore(&other), 0);
        trainer_close(&other);
        char path[320];
        snprintf(path, sizeof path, "%s/%" PRIu64, f.snapshots.path, round);
        tree_remove(path);
        tree_remove(f.path);
        if (round == 10)
            early = core_resident_kb();
    }
    core_assert_no_growth(early);
}

// Twice seen, a restart, and the third time it has a row; so old it was, so soon it leaves.
static void sightings_and_their_times_outlive_a_restart(void **state)
{
    (void)state;
    static struct core_event e;
    const int64_t minute = 60000;
    const uint64_t shown[] = {9};
    for (int round = 0; round < 3; round++) {
        if (round == 2) {
            columns_cut(&f.trainer.columns);
            write_state(1);
            trainer_close(&f.trainer);
            open_trainer(&f.trainer);
            assert_int_equal(restore(&f.trainer), 0);
            assert_int_equal(id_table_state(&f.trainer.rows.items)->waiting, 2);
            assert_int_equal(id_table_state(&f.trainer.rows.items)->live, 0);
        }
        core_impression(&e, TEST_START_MS + round * minute, (uint64_t)round, 1, 1, shown);
        one(&e.event, 1);
        const struct id id = core_id("i", 9);
        assert_int_equal(id_table_find(&f.trainer.rows.items, &id), round < 2 ? ID_NO_ROW : 0);
    }
    // The time of its last sighting is kept, too: an hour after it, and not an instant sooner.
    columns_cut(&f.trainer.columns);
    write_state(2);
    trainer_close(&f.trainer);
    open_trainer(&f.trainer);
    assert_int_equal(restore(&f.trainer), 0);
    const int64_t seen = TEST_START_MS + 2 * minute;
    assert_int_equal(rows_expire(&f.trainer.rows, seen + 3600000), 0);
    assert_int_equal(id_table_state(&f.trainer.rows.items)->live, 1);
    assert_true(rows_expire(&f.trainer.rows, seen + 3600001) > 0);
    assert_int_equal(id_table_state(&f.trainer.rows.items)->live, 0);
}

// Publishing.

static struct tt_reader *publish(uint64_t generation)
{
    struct published published;
    struct tt_reader *r;
    columns_cut(&f.trainer.columns);
    write_state(generation);
    const struct publish_options options = {
        .checkpoint = f.path,
        .root = f.snapshots.path,
        .generation = generation + 1,
        .previous = 0,
        .engine = f.snapshots.engine,
        .config = &f.config,
        .quality = {.n = 4, .recall_100 = 2},
    };
    if (publish_snapshot(&options, &published, f.error, sizeof f.error) < 0)
        fail_msg("%s", f.error);
    if (tt_open(&r, f.snapshots.path, f.error, sizeof f.error) < 0 ||
        tt_verify(r, f.error, sizeof f.error) < 0)
        fail_msg("%s", f.error);
    assert_int_equal(tt_snapshot(r), generation + 1);
    assert_int_equal(published.generation, generation + 1);
    assert_int_equal(published.items, id_table_state(&f.trainer.rows.items)->live);
    assert_int_equal(published.users, id_table_state(&f.trainer.rows.users)->live);
    return r;
}

static const struct tt_array *array(const struct tt_reader *r, const char *file, uint64_t n,
                                    uint64_t width)
{
    const struct tt_array *a = tt_find(r, file);
    if (!a)
        fail_msg("%s is missing", file);
    assert_int_equal(a->shape[0], n);
    assert_int_equal(a->n_dims == 2 ? a->shape[1] : 1, width);
    return a;
}

// The rows of a table that are live, in order: published row -> row. Returns how many.
static uint32_t live_rows(const struct id_table *t, uint32_t *rows)
{
    uint32_t n = 0;
    for (uint32_t row = 0; row < t->row.n; row++)
        if (id_table_live(t, row))
            rows[n++] = row;
    return n;
}

static void assert_ids(const struct tt_reader *r, const char *table_name, const struct id_table *t,
                       uint32_t n, const uint32_t *rows)
{
    struct tt_table table;
    if (tt_table(r, table_name, &table, f.error, sizeof f.error) < 0)
        fail_msg("%s", f.error);
    assert_int_equal(table.n, n);
    assert_int_equal(table.integer != NULL, f.integers);
    for (uint32_t i = 0; i < n; i++) {
        const struct id id = id_table_id(t, rows[i]);
        uint64_t number, row;
        struct tt_id found;
        assert_int_equal(tt_id_of_row(&table, i, &found), 0);
        if (f.integers) {
            memcpy(&number, id.bytes, sizeof number);
            assert_int_equal(found.integer, number);
            assert_int_equal(tt_row_of_unsigned(&table, number, &row), 0);
        } else {
            assert_int_equal(found.size, id.size);
            assert_memory_equal(found.bytes, id.bytes, id.size);
            assert_int_equal(tt_row_of_string(&table, id.bytes, id.size, &row), 0);
        }
        assert_int_equal(row, i);
    }
}

static float half_value(uint16_t h)
{
    const int exponent = h >> 10 & 31;
    const float fraction = (float)(h & 1023);
    const float x = exponent ? ldexpf(1 + fraction / 1024, exponent - 15) : ldexpf(fraction, -24);
    return h & 0x8000 ? -x : x;
}

static void assert_items(const struct tt_reader *r, uint32_t n, const uint32_t *rows)
{
    enum { WIDTH = 7 };
    const float *f32 = array(r, "item_emb.f32.safetensors", n, WIDTH)->data;
    const uint16_t *f16 = array(r, "item_emb.f16.safetensors", n, WIDTH)->data;
    for (uint32_t i = 0; i < n; i++) {
        float v[WIDTH];
        two_tower_items(f.trainer.rows.model, 1, &rows[i], v);
        assert_memory_equal(v, f32 + i * WIDTH, sizeof v);
        for (int k = 0; k < WIDTH; k++)
            assert_true(fabsf(half_value(f16[i * WIDTH + k]) - v[k]) <= fabsf(v[k]) / 2048 + 1e-7f);
    }
}

static void assert_titles(const struct tt_reader *r, uint32_t n, const uint32_t *rows)
{
    struct tt_strings strings;
    uint32_t titled = 0;
    if (tt_strings(r, "item_titles", &strings, f.error, sizeof f.error) < 0)
        fail_msg("%s", f.error);
    assert_int_equal(strings.n, n);
    for (uint32_t i = 0; i < n; i++) {
        const struct text title = rows_title(&f.trainer.rows, rows[i]);
        uint64_t size;
        const char *bytes = tt_string(&strings, i, &size);
        assert_int_equal(size, title.size);
        if (size)
            assert_memory_equal(bytes, title.bytes, size);
        titled += size > 0;
    }
    assert_true(titled > 3 && titled < n);
}

static void assert_users(const struct tt_reader *r, uint32_t n, const uint32_t *rows,
                         uint32_t n_items, const uint32_t *item_rows)
{
    enum { DIM = 6, HISTORY = 7 }; // the larger of history and repeat
    const float *vectors = array(r, "user_emb.f32.safetensors", n, DIM)->data;
    const uint32_t *histories = array(r, "user_history.safetensors", n, HISTORY)->data;
    for (uint32_t i = 0; i < n; i++) {
        assert_memory_equal(
            vectors + i * DIM,
            column_at(&two_tower_tables(f.trainer.rows.model)->user_vector, rows[i]),
            DIM * sizeof(float));
        uint32_t expected[HISTORY];
        uint8_t actions[HISTORY], gaps[HISTORY];
        struct history_walk walk = {expected, actions, gaps, NULL, 0};
        const int known = history_before(&f.trainer.rows.history, rows[i], INT64_MAX,
                                         &f.trainer.rows.items, HISTORY, &walk);
        for (int k = 0; k < HISTORY; k++) {
            const uint32_t number = histories[i * HISTORY + (uint32_t)k];
            if (k >= known) {
                assert_int_equal(number, TT_NO_ROW);
                continue;
            }
            assert_true(number < n_items);
            assert_int_equal(item_rows[number], expected[k]);
        }
    }
}

struct scored {
    uint32_t row;
    double score;
};

static int compare_scored(const void *a, const void *b)
{
    const struct scored *x = a, *y = b;
    return x->score != y->score ? (x->score < y->score) - (x->score > y->score)
                                : (x->row > y->row) - (x->row < y->row);
}

static double number_of(const cJSON *object, const char *key)
{
    const cJSON *value = cJSON_GetObjectItemCaseSensitive(object, key);
    assert_true(cJSON_IsNumber(value));
    return value->valuedouble;
}

// Every golden user's best items, again from the published arrays; the query from the trainer.
static void assert_golden(const struct tt_reader *r, uint32_t n, const uint32_t *user_rows)
{
    enum { WIDTH = 7, TOP = 20 };
    const float *V = tt_find(r, "item_emb.f32.safetensors")->data;
    const struct tt_array *golden = tt_find(r, "golden.json");
    assert_non_null(golden);
    cJSON *root = cJSON_ParseWithLength(golden->data, golden->size);
    const cJSON *users = cJSON_GetObjectItemCaseSensitive(root, "users"), *user;
    assert_int_equal(cJSON_GetArraySize(users), 16);
    int with_bonus = 0;
    cJSON_ArrayForEach(user, users)
    {
        const uint32_t row = user_rows[(uint32_t)number_of(user, "row")];
        struct example example = {.user = row};
        int64_t ts_ms[HISTORY_MAX];
        struct history_walk walk = {example.history, example.actions, example.gaps, ts_ms, 0};
        example.n_history = (uint8_t)history_before(&f.trainer.rows.history, row, INT64_MAX,
                                                    &f.trainer.rows.items, 7, &walk);
        example.n_newest = (uint8_t)walk.newest;
        // The snapshot looks back from the newest event it has seen.
        for (int k = 0; k < example.n_history; k++)
            example.gaps[k] = history_gap(trainer_state(&f.trainer)->event_time_ms - ts_ms[k]);
        float q[WIDTH];
        two_tower_queries(f.trainer.rows.model, 1, &example, NULL, q);
        const cJSON *query = cJSON_GetObjectItemCaseSensitive(user, "query");
        assert_int_equal(cJSON_GetArraySize(query), WIDTH);
        for (int k = 0; k < WIDTH; k++)
            assert_true(fabs(cJSON_GetArrayItem(query, k)->valuedouble - (double)q[k]) < 1e-6);
        struct scored all[500];
        for (uint32_t i = 0; i < n; i++) {
            all[i] = (struct scored){i, 0};
            for (int k = 0; k < WIDTH; k++)
                all[i].score += (double)q[k] * (double)V[i * WIDTH + (uint32_t)k];
        }
        const cJSON *bonus;
        cJSON_ArrayForEach(bonus, cJSON_GetObjectItemCaseSensitive(user, "bonuses"))
        {
            all[(uint32_t)number_of(bonus, "row")].score += number_of(bonus, "bonus");
            with_bonus += number_of(bonus, "bonus") != 0;
        }
        qsort(all, n, sizeof *all, compare_scored);
        const cJSON *top = cJSON_GetObjectItemCaseSensitive(user, "top");
        assert_int_equal(cJSON_GetArraySize(top), TOP);
        for (int i = 0; i < TOP; i++) {
            const cJSON *entry = cJSON_GetArrayItem(top, i);
            assert_true(fabs(number_of(entry, "score") - all[i].score) < 1e-5);
            // Rows may change places only where scores are as good as equal.
            if (number_of(entry, "row") != all[i].row)
                assert_true((i > 0 && fabs(all[i].score - all[i - 1].score) < 1e-5) ||
                            fabs(all[i].score - all[i + 1].score) < 1e-5);
        }
    }
    assert_true(with_bonus > 16);
    cJSON_Delete(root);
}

static void assert_snapshot(void)
{
    static uint32_t items[500], users[200];
    learn(1, 400);
    id_table_remove(&f.trainer.rows.users, 3);
    history_clear(&f.trainer.rows.history, 3);
    struct tt_reader *r = publish(5000);
    const uint32_t n_items = live_rows(&f.trainer.rows.items, items);
    const uint32_t n_users = live_rows(&f.trainer.rows.users, users);
    assert_true(n_items < f.trainer.rows.items.row.n); // one of each has left
    assert_true(n_users < f.trainer.rows.users.row.n);
    assert_items(r, n_items, items);
    assert_titles(r, n_items, items);
    assert_users(r, n_users, users, n_items, items);
    assert_ids(r, "item", &f.trainer.rows.items, n_items, items);
    assert_ids(r, "user", &f.trainer.rows.users, n_users, users);
    assert_golden(r, n_items, users);
    tt_close(r);
}

static void a_snapshot_says_what_the_trainer_says(void **state)
{
    (void)state;
    assert_snapshot();
}

static void ids_may_be_integers(void **state)
{
    (void)state;
    f.integers = true;
    assert_snapshot();
}

static void a_snapshot_is_a_function_of_its_checkpoint(void **state)
{
    (void)state;
    learn(1, 200);
    struct tt_reader *a = publish(5000);
    learn(2, 20); // the checkpoint on disk stays what it was
    struct published published;
    struct tt_reader *b;
    const struct publish_options options = {.checkpoint = f.path,
                                            .root = f.snapshots.path,
                                            .generation = 6001,
                                            .engine = f.snapshots.engine,
                                            .config = &f.config};
    assert_int_equal(publish_snapshot(&options, &published, f.error, sizeof f.error), 0);
    assert_int_equal(tt_open(&b, f.snapshots.path, f.error, sizeof f.error), 0);
    assert_int_equal(tt_snapshot(b), 6001);
    assert_int_equal(tt_n_arrays(a), tt_n_arrays(b));
    for (int i = 0; i < tt_n_arrays(a); i++) {
        const struct tt_array *x = tt_array_at(a, i), *y = tt_find(b, x->name);
        assert_non_null(y);
        assert_int_equal(x->size, y->size);
        if (x->size)
            assert_memory_equal(x->data, y->data, x->size);
    }
    tt_close(a);
    tt_close(b);
}

static void an_empty_trainer_can_be_published(void **state)
{
    (void)state;
    struct tt_reader *r = publish(1);
    assert_int_equal(tt_find(r, "item_emb.f32.safetensors")->shape[0], 0);
    tt_close(r);
}

static void the_manifest_tells_lineage_and_quality(void **state)
{
    (void)state;
    learn(1, 100);
    struct tt_reader *r = publish(5000);
    cJSON *m = cJSON_Parse(tt_manifest_json(r));
    const cJSON *lineage = cJSON_GetObjectItemCaseSensitive(m, "lineage");
    assert_true(number_of(lineage, "checkpoint") == 5000);
    assert_true(number_of(lineage, "slice") == (double)f.stamp.slice);
    assert_true(number_of(lineage, "event_time_max_ms") ==
                (double)trainer_state(&f.trainer)->event_time_ms);
    assert_true(number_of(lineage, "watermark_ms") == (double)join_watermark(&f.trainer.join));
    const cJSON *metrics = cJSON_GetObjectItemCaseSensitive(m, "metrics");
    assert_true(number_of(metrics, "recall@100") == 0.5);
    assert_true(number_of(metrics, "recall@10") == 0);
    cJSON_Delete(m);
    tt_close(r);
}

// The light ranker.

static const float *trainer_heads(void)
{
    const struct columns *s = &f.trainer.columns;
    for (int i = 0; i < s->n; i++)
        if (strcmp(s->list[i]->name, "model.heads") == 0)
            return column_at(s->list[i], 0);
    fail_msg("the trainer has no light ranker");
    return NULL;
}

// Runs a command and returns what it prints, to be freed.
static char *command_output(int argc, char **argv)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = stdout;
    stdout = open_memstream(&text, &size);
    const int status = command_main(argc, argv);
    fclose(stdout);
    stdout = out;
    if (status)
        fail_msg("%s %s: status %d", argv[1], argv[2], status);
    return text;
}

// What `twotower topk` says of this user: all items, ordered again.
static cJSON *topk_all(char *user)
{
    char *text = command_output(10, (char *[]){"twotower", "topk", f.snapshots.path, "--user", user,
                                               "--k", "500", "--rerank", "500", "--json", NULL});
    cJSON *answer = cJSON_Parse(text);
    free(text);
    return answer;
}

// The query as the trainer makes it now.
static void trainer_query(uint32_t row, float *q)
{
    struct example example = {.user = row};
    const struct rows *rows = &f.trainer.rows;
    struct history_walk walk = {example.history, example.actions, example.gaps, NULL, 0};
    example.n_history =
        (uint8_t)history_before(&rows->history, row, INT64_MAX, &rows->items, 7, &walk);
    example.n_newest = (uint8_t)walk.newest;
    two_tower_queries(rows->model, 1, &example, NULL, q);
}

static void assert_reranked(const cJSON *answer, const float *q, enum light_ranker_value form,
                            const uint32_t *rows, uint32_t n)
{
    enum { D = 6, T = 2 };
    static const struct light_ranker_shape shape = {D, 2, T};
    static const float weights[] = {1.7f, -0.3f}, click[] = {1, 0}, other[] = {0, 1};
    const struct light_ranker_parameters p = light_ranker_at(trainer_heads(), &shape);
    const cJSON *items = cJSON_GetObjectItemCaseSensitive(answer, "items"), *item;
    bool retrieved[501] = {0};
    double before = HUGE_VAL;
    assert_int_equal(cJSON_GetArraySize(items), n);
    cJSON_ArrayForEach(item, items)
    {
        const uint32_t row = (uint32_t)number_of(item, "row");
        const cJSON *tasks = cJSON_GetObjectItemCaseSensitive(item, "tasks");
        float v[D + 1], value, probability[T];
        assert_true(row < n);
        two_tower_items(f.trainer.rows.model, 1, &rows[row], v);
        light_ranker_score(&p, &shape, q, 1, v, weights, form, &value);
        light_ranker_score(&p, &shape, q, 1, v, click, form, &probability[0]);
        light_ranker_score(&p, &shape, q, 1, v, other, form, &probability[1]);
        assert_true((float)number_of(item, "value") == value); // to the bit
        assert_true((float)number_of(tasks, "click") == probability[0]);
        assert_true((float)number_of(tasks, "*") == probability[1]);
        assert_true(number_of(item, "value") <= before);
        before = number_of(item, "value");
        const int place = (int)number_of(item, "retrieved");
        assert_true(place >= 1 && place <= (int)n && !retrieved[place]);
        retrieved[place] = true;
    }
}

static void assert_served(enum light_ranker_value form)
{
    static uint32_t items[500], users[200];
    learn(1, 400);
    struct tt_reader *r = publish(5000);
    const uint32_t n_items = live_rows(&f.trainer.rows.items, items);
    const uint32_t n_users = live_rows(&f.trainer.rows.users, users);
    array(r, "dense_ranker_heads", 12, 6);
    array(r, "dense_ranker_heads_bias", 1, 12);
    array(r, "dense_ranker_tasks", 2, 15);
    array(r, "dense_ranker_tasks_bias", 1, 2);
    assert_null(tt_find(r, "dense_ranker_auxiliary"));
    assert_null(tt_find(r, "dense_ranker_position"));
    for (uint32_t u = 0; u < n_users; u++) {
        const struct id id = id_table_id(&f.trainer.rows.users, users[u]);
        char user[32];
        float q[7];
        snprintf(user, sizeof user, "%.*s", (int)id.size, id.bytes);
        trainer_query(users[u], q);
        cJSON *answer = topk_all(user);
        assert_reranked(answer, q, form, items, n_items);
        cJSON_Delete(answer);
    }
    assert_true(n_users == 25);
    free(command_output(3, (char *[]){"twotower", "verify", f.snapshots.path, NULL}));
    tt_close(r);
}

static void topk_reranks_from_a_snapshot_as_the_trainers_own_head(void **state)
{
    (void)state;
    assert_served(LIGHT_RANKER_PROBABILITIES);
}

static void a_head_that_learned_by_fnc_is_corrected_when_it_serves(void **state)
{
    (void)state;
    assert_served(LIGHT_RANKER_CORRECTED);
}

// Between the checkpoint's weights and what a configuration says later, the vectors' own count.
static void values_are_those_of_the_checkpoint(void **state)
{
    (void)state;
    learn(1, 100);
    two_tower_set_values(f.trainer.rows.model, (const float[]){0.25f, 4}, 1);
    struct tt_reader *r = publish(5000);
    cJSON *m = cJSON_Parse(tt_manifest_json(r));
    const cJSON *tasks =
        cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(m, "ranker"), "tasks");
    assert_true(number_of(cJSON_GetArrayItem(tasks, 0), "weight") == 0.25);
    assert_true(number_of(cJSON_GetArrayItem(tasks, 1), "weight") == 4);
    cJSON_Delete(m);
    tt_close(r);
}

static void a_head_that_is_not_finite_is_not_published(void **state)
{
    (void)state;
    learn(1, 100);
    ((float *)(void *)trainer_heads())[5] = INFINITY;
    write_unchecked(1);
    struct published published;
    const struct publish_options options = {.checkpoint = f.path,
                                            .root = f.snapshots.path,
                                            .generation = 2,
                                            .engine = f.snapshots.engine,
                                            .config = &f.config};
    assert_int_equal(publish_snapshot(&options, &published, f.error, sizeof f.error), -EDOM);
    assert_int_equal(published.refused, GUARD_NOT_FINITE);
    assert_non_null(strstr(f.error, "a row of dense_ranker_heads is infinite"));
    assert_int_equal(count_entries(f.snapshots.path), 0);
}

static int open_past_the_page_cache_fails(struct storage *s, int directory, const char *name,
                                          int flags, unsigned mode)
{
    const bool reads = (flags & O_DIRECT) && (flags & O_ACCMODE) == O_RDONLY;
    return storage_disk.ops->open(s, directory, reads ? "." : name,
                                  reads ? O_RDONLY | O_DIRECTORY : flags, mode);
}

static ssize_t read_at_fails(struct storage *s, int handle, void *bytes, size_t n, uint64_t offset)
{
    (void)s, (void)handle, (void)bytes, (void)n, (void)offset;
    return -EIO;
}

// A disk that has lost a part of the checkpoint makes an error of it, and no snapshot; when it can
// be read again, there is one.
static void what_cannot_be_read_is_not_published(void **state)
{
    (void)state;
    if (!is_on_disk("/tmp"))
        skip();
    learn(1, 50);
    // So many rows that a look at some of them does not put all into the page cache.
    for (uint64_t i = 0; i < 10000; i++) {
        char storage[8];
        const struct id id = id_of_unsigned(i, storage);
        assert_true(rows_item(&f.trainer.rows, &id, 1) >= 0);
        assert_true(rows_user(&f.trainer.rows, &id, 1) >= 0);
    }
    columns_cut(&f.trainer.columns);
    write_state(1);
    struct storage_ops ops = *storage_disk.ops;
    ops.open = open_past_the_page_cache_fails;
    ops.read_at = read_at_fails;
    struct storage storage = {.ops = &ops, .descriptors = true};
    struct engine *engine;
    assert_int_equal(engine_open(&engine, &(struct engine_options){.storage = &storage}, f.error,
                                 sizeof f.error),
                     0);
    static const char *const names[] = {"item.vector.safetensors", "user.vector.safetensors"};
    const struct publish_options options = {.checkpoint = f.path,
                                            .root = f.snapshots.path,
                                            .generation = 2,
                                            .engine = engine,
                                            .config = &f.config};
    struct published published;
    for (int i = 0; i < 2; i++) {
        char path[4096];
        // The other one is taken from the page cache.
        for (int k = 0; k < 2; k++) {
            size_t n;
            snprintf(path, sizeof path, "%s/%s", f.path, names[k]);
            free(file_read(path, &n));
            const int fd = open(path, O_RDONLY);
            if (k == i)
                assert_int_equal(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
            close(fd);
        }
        assert_int_equal(publish_snapshot(&options, &published, f.error, sizeof f.error), -EIO);
        assert_int_equal(published.refused, GUARD_REASONS);
        if (!strstr(f.error, names[i]) || !strstr(f.error, "cannot be read: Input/output error"))
            fail_msg("%s", f.error);
        assert_int_equal(count_entries(f.snapshots.path), 0);
    }
    ops = *storage_disk.ops;
    if (publish_snapshot(&options, &published, f.error, sizeof f.error) < 0)
        fail_msg("%s", f.error);
    engine_close(engine);
}

static void what_is_not_a_checkpoint_of_this_model_is_not_published(void **state)
{
    (void)state;
    learn(1, 50);
    columns_cut(&f.trainer.columns);
    write_state(1);
    set("model.dim=5");
    struct published published;
    const struct publish_options options = {.checkpoint = f.path,
                                            .root = f.snapshots.path,
                                            .generation = 2,
                                            .engine = f.snapshots.engine,
                                            .config = &f.config};
    assert_int_equal(publish_snapshot(&options, &published, f.error, sizeof f.error), -EBADMSG);
    assert_non_null(strstr(f.error, f.path));
    assert_int_equal(count_entries(f.snapshots.path), 0);
}

// What the trainer has now, beside the snapshot `good`, is refused for this reason and leaves
// nothing; or it is published.
static void expect_verdict(uint64_t good, double recall, enum guard_reason reason, const char *why)
{
    static uint64_t generation = 100000;
    const int before = count_entries(f.snapshots.path);
    write_unchecked(++generation);
    struct published published;
    const struct publish_options options = {.checkpoint = f.path,
                                            .root = f.snapshots.path,
                                            .generation = generation,
                                            .good = good,
                                            .engine = f.snapshots.engine,
                                            .config = &f.config,
                                            .quality = {.n = 4, .recall_100 = 4 * recall}};
    const int rc = publish_snapshot(&options, &published, f.error, sizeof f.error);
    if (rc != (reason == GUARD_REASONS ? 0 : -EDOM) || published.refused != reason)
        fail_msg("%d, %d instead of %d: %s", rc, published.refused, reason, f.error);
    if (reason == GUARD_REASONS)
        return;
    if (!strstr(f.error, why))
        fail_msg("'%s' is not in '%s'", why, f.error);
    assert_int_equal(count_entries(f.snapshots.path), before);
}

static void whatever_is_not_finite_is_not_published(void **state)
{
    (void)state;
    learn(1, 50);
    const struct tables *t = two_tower_tables(f.trainer.rows.model);
    const struct {
        const struct column *column;
        size_t from;
        const char *name;
    } arrays[] = {{&t->item_vector, 3, "item_emb"},
                  {&t->item_vector, t->dim + 3, "item_context"},
                  {&t->user_vector, 3, "user_embedding"},
                  {&t->dense, 3, "dense_"}};
    static const float bad[] = {NAN, INFINITY, -INFINITY, 1e20f};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) {
        float *x = &((float *)(void *)arrays[i].column->base)[arrays[i].from];
        const float good = *x;
        for (size_t b = 0; b < sizeof bad / sizeof *bad; b++) {
            *x = bad[b];
            expect_verdict(0, 0, GUARD_NOT_FINITE, arrays[i].name);
        }
        *x = good;
    }
    struct item_state *item = (struct item_state *)(void *)t->item_state.base;
    const float bias = item->bias;
    item->bias = NAN;
    expect_verdict(0, 0, GUARD_NOT_FINITE, "item_emb");
    item->bias = bias;
    expect_verdict(0, 0, GUARD_REASONS, NULL);
}

static void a_checkpoint_whose_tables_say_other_rows_is_not_published(void **state)
{
    (void)state;
    learn(1, 50);
    struct id_table *tables[] = {&f.trainer.rows.items, &f.trainer.rows.users};
    for (int i = 0; i < 2; i++) {
        struct id_table_state *s = (struct id_table_state *)(void *)tables[i]->state.base;
        s->live++;
        expect_verdict(0, 0, GUARD_ROWS, i ? " users where the table has " : " items where");
        s->live--;
    }
    expect_verdict(0, 0, GUARD_REASONS, NULL);
}

static void a_snapshot_is_compared_with_the_last_good_one(void **state)
{
    (void)state;
    learn(1, 100);
    tt_close(publish(5000)); // recall 0.5 of 4 events
    const struct column *c = &two_tower_tables(f.trainer.rows.model)->user_vector;
    float *x = (float *)(void *)c->base;
    const size_t n = c->n * c->unit / sizeof *x;
    expect_verdict(5001, 0.5, GUARD_REASONS, NULL);
    for (size_t i = 0; i < n; i++)
        x[i] *= 100;
    expect_verdict(5001, 0.5, GUARD_NORM_JUMP, "the mean length of a row of user is");
    set("snapshot.guard_norm_max=10");
    expect_verdict(5001, 0.5, GUARD_NORM, "a row of user is");
    set("snapshot.guard_norm_max=0");
    set("snapshot.guard_norm_jump=0");
    expect_verdict(5001, 0.5, GUARD_REASONS, NULL);
    // Four events prove nothing, unless one asks for so few.
    expect_verdict(5001, 0, GUARD_REASONS, NULL);
    set("snapshot.guard_events=4");
    set("snapshot.guard_errors=1");
    expect_verdict(5001, 0, GUARD_RECALL, "recall@100 is 0.0000 where");
    expect_verdict(0, 0, GUARD_REASONS, NULL);    // without one
    expect_verdict(4711, 0, GUARD_REASONS, NULL); // that is gone
    set("snapshot.guard_recall=0");
    expect_verdict(5001, 0, GUARD_REASONS, NULL);
}

#define TEST(name)        cmocka_unit_test_setup_teardown(name, setup, teardown)
#define TEST_RANKER(name) cmocka_unit_test_setup_teardown(name, setup_ranker, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_restored_trainer_has_the_columns_of_the_cut_and_goes_on_alike),
        TEST(the_stamp_is_read_from_the_manifest_alone),
        TEST(other_options_of_the_model_are_refused_by_name),
        TEST(other_partitions_are_refused),
        TEST(another_blas_core_or_library_is_refused_with_the_ways_out),
        TEST(our_own_kernels_may_be_others),
        TEST(a_checkpoint_that_does_not_tell_its_libm_is_taken),
        TEST(what_is_accepted_is_said_and_stays_in_every_manifest),
        TEST(a_damaged_column_is_refused),
        TEST(a_damaged_checkpoint_is_forgotten_by_the_one_before),
        cmocka_unit_test_setup_teardown(a_wrong_number_where_two_reads_meet_is_found, setup_large,
                                        teardown),
        TEST(whatever_is_not_finite_is_not_published),
        TEST(a_checkpoint_whose_tables_say_other_rows_is_not_published),
        TEST(a_snapshot_is_compared_with_the_last_good_one),
        TEST(writing_changes_nothing),
        TEST(checkpoints_and_snapshots_leave_no_memory_behind),
        cmocka_unit_test_setup_teardown(
            a_state_that_was_computed_wrong_is_neither_written_nor_taken_back, setup_everything,
            teardown),
        cmocka_unit_test_setup_teardown(sightings_and_their_times_outlive_a_restart,
                                        setup_admitting, teardown),
        TEST(a_snapshot_says_what_the_trainer_says),
        TEST(ids_may_be_integers),
        TEST(a_snapshot_is_a_function_of_its_checkpoint),
        TEST(an_empty_trainer_can_be_published),
        TEST(the_manifest_tells_lineage_and_quality),
        cmocka_unit_test_setup_teardown(what_cannot_be_read_is_not_published, setup_on_disk,
                                        teardown),
        TEST(what_is_not_a_checkpoint_of_this_model_is_not_published),
        TEST_RANKER(topk_reranks_from_a_snapshot_as_the_trainers_own_head),
        cmocka_unit_test_setup_teardown(a_head_that_learned_by_fnc_is_corrected_when_it_serves,
                                        setup_corrected, teardown),
        TEST_RANKER(a_head_that_is_not_finite_is_not_published),
        TEST_RANKER(values_are_those_of_the_checkpoint),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
