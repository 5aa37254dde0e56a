// SPDX-License-Identifier: Apache-2.0
//
// What a restart from a large checkpoint costs before the first record is read, beside merely
// reading the same bytes into the same memory: the columns, as they are reserved for the state,
// with as many threads as restoring has. From the page cache, and with the cache dropped: then
// merely reading is the better of through it and past it.
//
//     bench_recovery [--json] [DIRECTORY [USERS [ITEMS]]]
//
// DIRECTORY/state is made at the first call, with the default model and some history of each user,
// and used again by the next; tests/bench/recovery.sh starts the daemon on it. Without DIRECTORY
// one is made here and removed, with 1,800,000 users and 200,000 items: 0.8 GB, some 20 s. With
// DIRECTORY there are five times as many.
//
// By the wall, the best of five rounds that take turns; CPU time is told beside it.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
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
#include "tests/bench/figure.h"
#include "tests/bench/measure.h"

enum { BATCH = 512, STEPS = 50, HISTORY = 4, BLOCK = 1 << 20, ROUNDS = 5 };

static struct config config;
static struct trainer trainer;
static struct evaluator *evaluator;
static struct source *source;
static char error[1024];
static bool json;

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
    if (!json)
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

// The stretches of all files, as restoring takes them.
static struct reading {
    struct piece {
        int file; // O_DIRECT where that is asked for, but for what is shorter than a page
        unsigned char *to;
        uint64_t offset;
        size_t n;
    } pieces[1 << 16];
    size_t n_pieces;
    uint64_t bytes;
    _Atomic size_t next;
    bool stream; // through one buffer for each thread: the bytes stay nowhere
} reading;

enum { THREADS = 4, PIECE = 8 << 20, DIRECT_ALIGN = 4096, DATA_OFFSET = 4096 };

static void *read_main(void *arg)
{
    (void)arg;
    unsigned char *block = aligned_alloc(DIRECT_ALIGN, BLOCK);
    for (size_t i; (i = atomic_fetch_add(&reading.next, 1)) < reading.n_pieces;) {
        const struct piece *p = &reading.pieces[i];
        for (size_t at = 0; at < p->n;) {
            const size_t left = p->n - at, n = left < BLOCK ? left : BLOCK;
            const ssize_t got =
                pread(p->file, reading.stream ? block : p->to + at, n, (off_t)(p->offset + at));
            if (got <= 0)
                die("a file cannot be read");
            at += (size_t)got;
        }
    }
    free(block);
    return NULL;
}

// Reads all columns' data with so many threads and says how long it took.
static double read_all(const char *path, int threads, bool direct, bool stream)
{
    static int handles[2 * COLUMNS_MAX];
    int n_handles = 0;
    pthread_t others[THREADS];
    reading = (struct reading){.stream = stream};
    for (int i = 0; i < trainer.columns.n; i++) {
        struct column *c = trainer.columns.list[i];
        char name[4400];
        struct stat st;
        snprintf(name, sizeof name, "%s/%s.safetensors", path, c->name);
        const int cached = open(name, O_RDONLY),
                  past = direct ? open(name, O_RDONLY | O_DIRECT) : -1;
        if (cached < 0 || fstat(cached, &st) < 0)
            die(name);
        handles[n_handles++] = cached;
        if (past >= 0)
            handles[n_handles++] = past;
        const size_t size = (size_t)st.st_size - DATA_OFFSET;
        unsigned char *to = column_restore(c, size / c->unit);
        for (size_t at = 0; at < size;) {
            size_t n = size - at < PIECE ? size - at : PIECE;
            const bool whole = past >= 0 && n >= DIRECT_ALIGN;
            n = whole ? n / DIRECT_ALIGN * DIRECT_ALIGN : n;
            reading.pieces[reading.n_pieces++] =
                (struct piece){whole ? past : cached, to + at, DATA_OFFSET + at, n};
            at += n;
        }
        reading.bytes += size;
    }
    const double begun = clock_s(CLOCK_MONOTONIC);
    for (int i = 1; i < threads; i++)
        if (pthread_create(&others[i], NULL, read_main, NULL) != 0)
            die("no thread");
    read_main(NULL);
    for (int i = 1; i < threads; i++)
        pthread_join(others[i], NULL);
    const double s = clock_s(CLOCK_MONOTONIC) - begun;
    while (n_handles > 0)
        close(handles[--n_handles]);
    return s;
}

static double best(double a, double b)
{
    return a > 0 && a < b ? a : b;
}

// Into fresh memory, as a process that starts has it.
static double read_fresh(const char *path, bool direct, bool stream)
{
    open_trainer();
    const double s = read_all(path, stream ? 1 : THREADS, direct, stream);
    close_trainer();
    return s;
}

struct restored {
    double s, cpu_s, indexes_s;
};

static void restore(const char *path, struct restored *r)
{
    struct state_stamp stamp;
    open_trainer();
    const double begun = clock_s(CLOCK_MONOTONIC), cpu = clock_s(CLOCK_PROCESS_CPUTIME_ID);
    if (state_restore(&trainer, path, &config, source->partitions, source->n_partitions, &stamp,
                      error, sizeof error) < 0)
        die(error);
    const double s = clock_s(CLOCK_MONOTONIC) - begun;
    r->cpu_s = best(r->cpu_s, clock_s(CLOCK_PROCESS_CPUTIME_ID) - cpu);
    r->s = best(r->s, s);
    const double rebuilding = clock_s(CLOCK_MONOTONIC);
    if (rows_rebuild(&trainer.rows) < 0 || join_rebuild(&trainer.join) < 0)
        die("the indexes cannot be rebuilt");
    r->indexes_s = best(r->indexes_s, clock_s(CLOCK_MONOTONIC) - rebuilding);
    close_trainer();
}

static void say(const char *rows, bool cold, const struct restored *r, double merely, double stream)
{
    const char *from = cold ? "the page cache dropped" : "from the page cache";
    const double gb = (double)reading.bytes / 1e9;
    char stage[128], extra[160];
    snprintf(stage, sizeof stage, "restoring %s, %.1f GB, %s", rows, gb, from);
    snprintf(extra, sizeof extra,
             "\"cpu_s\":%.3f,\"indexes_s\":%.3f,\"streamed_s\":%.3f,\"streamed_ratio\":%.3f",
             r->cpu_s, r->indexes_s, stream, r->s / stream);
    figure_print(json, &(struct figure){.stage = stage,
                                        .unit = "s",
                                        .ours = r->s,
                                        .reference = "reading the bytes into the same memory",
                                        .theirs = merely,
                                        .ratio = r->s / merely,
                                        .goal = "<= 1.5",
                                        .extra = extra});
    if (!json)
        printf("  %.2f CPU-s; by one thread the indexes alone %.2f s, reading through one buffer "
               "%.2f s\n",
               r->cpu_s, r->indexes_s, stream);
}

static void measure(const char *path, const char *rows)
{
    for (int cold = 0; cold < 2; cold++) {
        struct restored r = {0};
        double merely = 0, stream = 0;
        for (int round = 0; round < ROUNDS; round++) {
            if (cold)
                files(path, file_forget);
            else
                read_fresh(path, false, true); // brings it into the cache
            stream = best(stream, read_fresh(path, false, true));
            if (cold)
                files(path, file_forget);
            merely = best(merely, read_fresh(path, false, false));
            if (cold) {
                files(path, file_forget);
                merely = best(merely, read_fresh(path, true, false));
                files(path, file_forget);
            }
            restore(path, &r);
        }
        say(rows, cold, &r, merely, stream);
    }
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
    if (argc > 1 && !strcmp(argv[1], "--json")) {
        json = true;
        argc--, argv++;
    }
    char own[] = "bench_recovery.XXXXXX";
    const char *directory = argc > 1 ? argv[1] : mkdtemp(own);
    if (!directory)
        die("no directory can be made here");
    const char *users = argc > 2 ? argv[2] : argc > 1 ? "9000000" : "1800000";
    const char *items = argc > 3 ? argv[3] : argc > 1 ? "1000000" : "200000";
    gemm_init();
    kernels_init(NULL);
    config_init(&config, &arena);
    set("source.users", users);
    set("source.catalogue", items);
    set("tables.users_max", "20000000"); // room for those of the stream
    set("tables.items_max", "20000000");
    if (assemble_source(&config, false, &source, error, sizeof error) < 0)
        die(error);
    mkdir(directory, 0750);
    snprintf(root, sizeof root, "%s/state", directory);
    mkdir(directory, 0750);
    mkdir(root, 0750);
    snprintf(root, sizeof root, "%s/state/checkpoints", directory);
    snprintf(path, sizeof path, "%s/1", root);
    if (mkdir(root, 0750) < 0 && errno != EEXIST)
        die(strerror(errno));
    if (access(path, F_OK) < 0)
        make(root, (uint32_t)strtoul(users, NULL, 10), (uint32_t)strtoul(items, NULL, 10));
    char rows[64];
    snprintf(rows, sizeof rows, "%.1f million rows",
             (strtod(users, NULL) + strtod(items, NULL)) / 1e6);
    measure(path, rows);
    source->ops->close(source);
    if (argc < 2)
        nftw(own, entry_remove, 16, FTW_DEPTH | FTW_PHYS);
    return 0;
}
