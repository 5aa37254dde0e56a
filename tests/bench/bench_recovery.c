// SPDX-License-Identifier: Apache-2.0
//
// What a restart from a large checkpoint costs before the first record is read, and of what:
// reading the bytes, checking them, copying them into the columns, rebuilding the indexes.
//
//     bench_recovery [DIRECTORY [USERS [ITEMS]]]
//
// DIRECTORY/state is made at the first call, with the default model and some history of each user,
// and used again by the next; tests/bench/recovery.sh starts the daemon on it. Without DIRECTORY
// one is made here and removed, with a tenth of the rows.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "daemon/assemble.h"
#include "daemon/blas_core.h"
#include "daemon/state.h"
#include "model/arena.h"
#include "model/gemm.h"
#include "model/kernels.h"
#include "model/rng.h"
#include "snapshot/twotower_reader.h"

enum { BATCH = 512, STEPS = 50, HISTORY = 4, BLOCK = 1 << 20 };

static struct config config;
static struct trainer trainer;
static struct evaluator *evaluator;
static struct source *source;
static char error[1024];

static double clock_s(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void die(const char *what)
{
    fprintf(stderr, "bench_recovery: %s\n", what);
    exit(1);
}

static void set(const char *key, const char *value)
{
    struct config_problems problems = {0};
    if (config_set(&config, key, value, "bench", &problems) < 0)
        die(problems.list[0].text);
}

static void fill(struct trainer *t, uint32_t users, uint32_t items)
{
    static struct example examples[BATCH];
    struct rng rng = {1, 0};
    char text[32];
    for (uint32_t i = 0; i < items; i++) {
        const int size = snprintf(text, sizeof text, "item-%08" PRIx32, i * 2654435761u);
        const struct id item = id_of_text(text, (size_t)size);
        if (rows_item(&t->rows, &item, 1) < 0)
            die("the item table is full");
    }
    for (uint32_t i = 0; i < users; i++) {
        const int size = snprintf(text, sizeof text, "user-%08" PRIx32, i * 2654435761u);
        const struct id user = id_of_text(text, (size_t)size);
        if (rows_user(&t->rows, &user, 1) < 0)
            die("the user table is full");
        for (int k = 0; k < HISTORY; k++) {
            const uint32_t item = (uint32_t)rng_below(&rng, items);
            history_add(&t->rows.history, i,
                        (struct history_entry){item, rows_item_ref(&t->rows, item).generation, 0, 0,
                                               1 + k / 2});
        }
    }
    for (int s = 0; s < STEPS; s++) {
        for (int i = 0; i < BATCH; i++)
            examples[i] = (struct example){.user = (uint32_t)rng_below(&rng, users),
                                           .item = (uint32_t)rng_below(&rng, items),
                                           .positive = 1};
        two_tower_learn(t->rows.model, BATCH, examples, NULL);
    }
}

static void open_trainer(void)
{
    static struct join_window windows[CONFIG_ENTRIES_MAX];
    const struct trainer_options t = assemble_trainer(&config, source->n_partitions, windows);
    if (trainer_open(&trainer, &t) < 0)
        die("out of memory");
    // Its columns are in a checkpoint, too.
    const struct evaluator_options e = {.sampling = config.eval_sampling,
                                        .popularity_half_life = config.eval_popularity_half_life,
                                        .chunk_max = trainer.chunk};
    if (evaluator_open(&evaluator, &trainer.columns, &trainer.rows, &e) < 0)
        die("out of memory");
}

static void close_trainer(void)
{
    evaluator_close(evaluator);
    trainer_close(&trainer);
}

static void make(const char *root, uint32_t users, uint32_t items)
{
    struct engine *engine;
    struct state_stamp stamp;
    if (engine_open(&engine, &(struct engine_options){0}, error, sizeof error) < 0)
        die(error);
    const double begun = clock_s(CLOCK_MONOTONIC);
    open_trainer();
    // The catalogue is behind it: the next record leads to an example.
    for (int p = 0; p < source->n_partitions; p++)
        *(struct partition_position *)column_edit(&trainer.position, (size_t)p) =
            (struct partition_position){
                source->partitions[p].topic == TOPIC_ITEMS ? (int64_t)items : 0, INT64_MIN, -1};
    fill(&trainer, users, items);
    const double filled = clock_s(CLOCK_MONOTONIC);
    columns_cut(&trainer.columns);
    if (state_write(&trainer,
                    &(struct state_write_options){.root = root,
                                                  .generation = 1,
                                                  .engine = engine,
                                                  .config = &config,
                                                  .partitions = source->partitions,
                                                  .n_partitions = source->n_partitions},
                    &stamp, error, sizeof error) < 0)
        die(error);
    printf("filled in %.1f s, written in %.1f s\n", filled - begun,
           clock_s(CLOCK_MONOTONIC) - filled);
    close_trainer();
    engine_close(engine);
}

// Calls each for every file of a directory.
static uint64_t files(const char *path, uint64_t (*each)(int file))
{
    uint64_t sum = 0;
    DIR *d = opendir(path);
    if (!d)
        die(path);
    for (const struct dirent *entry; (entry = readdir(d));) {
        if (entry->d_name[0] == '.')
            continue;
        const int file = openat(dirfd(d), entry->d_name, O_RDONLY);
        if (file < 0)
            die(entry->d_name);
        sum += each(file);
        close(file);
    }
    closedir(d);
    return sum;
}

static uint64_t file_forget(int file)
{
    posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
    return 0;
}

static uint64_t file_read(int file)
{
    static char block[BLOCK];
    uint64_t sum = 0;
    for (ssize_t n; (n = read(file, block, sizeof block)) > 0;)
        sum += (uint64_t)n;
    return sum;
}

static void say(const char *what, double begun, double cpu, uint64_t bytes)
{
    const double s = clock_s(CLOCK_MONOTONIC) - begun;
    printf("%-44s %6.2f s  %6.2f CPU-s  %6.0f MB/s\n", what, s,
           clock_s(CLOCK_PROCESS_CPUTIME_ID) - cpu, (double)bytes / 1e6 / s);
    fflush(stdout);
}

static void restore(const char *path, const char *what, uint64_t bytes)
{
    struct state_stamp stamp;
    open_trainer();
    const double begun = clock_s(CLOCK_MONOTONIC), cpu = clock_s(CLOCK_PROCESS_CPUTIME_ID);
    if (state_restore(&trainer, path, &config, source->partitions, source->n_partitions, &stamp,
                      error, sizeof error) < 0)
        die(error);
    say(what, begun, cpu, bytes);
    close_trainer();
}

static void measure(const char *path)
{
    struct tt_reader *r;
    files(path, file_forget);
    double begun = clock_s(CLOCK_MONOTONIC), cpu = clock_s(CLOCK_PROCESS_CPUTIME_ID);
    const uint64_t bytes = files(path, file_read);
    say("reading the files, 1 MiB at a time, cold", begun, cpu, bytes);
    begun = clock_s(CLOCK_MONOTONIC), cpu = clock_s(CLOCK_PROCESS_CPUTIME_ID);
    files(path, file_read);
    say("the same from the page cache", begun, cpu, bytes);
    if (tt_open(&r, path, error, sizeof error) < 0)
        die(error);
    begun = clock_s(CLOCK_MONOTONIC), cpu = clock_s(CLOCK_PROCESS_CPUTIME_ID);
    if (tt_verify(r, error, sizeof error) < 0)
        die(error);
    say("verifying alone, from the page cache", begun, cpu, bytes);
    tt_close(r);
    restore(path, "restoring, from the page cache", bytes);
    open_trainer();
    struct state_stamp stamp;
    if (state_restore(&trainer, path, &config, source->partitions, source->n_partitions, &stamp,
                      error, sizeof error) < 0)
        die(error);
    begun = clock_s(CLOCK_MONOTONIC), cpu = clock_s(CLOCK_PROCESS_CPUTIME_ID);
    if (rows_rebuild(&trainer.rows) < 0 || join_rebuild(&trainer.join) < 0)
        die("the indexes cannot be rebuilt");
    say("of it rebuilding the indexes", begun, cpu, bytes);
    close_trainer();
    files(path, file_forget);
    restore(path, "restoring, cold", bytes);
}

static int entry_remove(const char *path, const struct stat *s, int type, struct FTW *at)
{
    (void)s, (void)type, (void)at;
    return remove(path);
}

int main(int argc, char **argv)
{
    static char memory[CONFIG_MEMORY];
    struct arena arena = {memory, sizeof memory, 0};
    char root[3072], path[4096];
    blas_core_correct(argv); // may start the program again, so the directory comes after it
    char own[] = "bench_recovery.XXXXXX";
    const char *directory = argc > 1 ? argv[1] : mkdtemp(own);
    if (!directory)
        die("no directory can be made here");
    const char *users = argc > 2 ? argv[2] : argc > 1 ? "9000000" : "900000";
    const char *items = argc > 3 ? argv[3] : argc > 1 ? "1000000" : "100000";
    gemm_init();
    kernels_init(NULL);
    config_init(&config, &arena);
    set("source.users", users);
    set("source.catalogue", items);
    set("tables.users_max", "20000000"); // room for those of the stream
    set("tables.items_max", "20000000");
    if (assemble_source(&config, false, &source, error, sizeof error) < 0)
        die(error);
    snprintf(root, sizeof root, "%s/state", directory);
    mkdir(directory, 0750);
    mkdir(root, 0750);
    snprintf(root, sizeof root, "%s/state/checkpoints", directory);
    snprintf(path, sizeof path, "%s/1", root);
    if (mkdir(root, 0750) < 0 && errno != EEXIST)
        die(strerror(errno));
    if (access(path, F_OK) < 0)
        make(root, (uint32_t)strtoul(users, NULL, 10), (uint32_t)strtoul(items, NULL, 10));
    printf("%s users and %s items of %d numbers:\n", users, items, config.model_dim);
    measure(path);
    source->ops->close(source);
    if (argc < 2)
        nftw(own, entry_remove, 16, FTW_DEPTH | FTW_PHYS);
    return 0;
}
