// SPDX-License-Identifier: Apache-2.0
//
// What a checkpoint and a snapshot cost while the trainer goes on learning, and what the disk could
// do: tables of about the given size, a writer beside the trainer, and fio on the same disk around
// each round (where it is installed), alone, with io_uring and O_DIRECT, the best of some block
// sizes and depths.
//
//     bench_cut [--json] [DIRECTORY [MB [ROUNDS]]]
//
// Without a DIRECTORY one is made below the current one, and removed at the end. 700 MB and 5
// rounds take about 50 s; 4000 MB are what the goals speak of.
//
// There are two references. A checkpoint is written from memory: what the disk gives for that is
// fio writing as many bytes. A snapshot is made from the checkpoint's files, which O_DIRECT left
// outside the page cache, so the disk has to read these, too, and on a disk that shares its
// bandwidth no program writes as fast as fio does that only writes. What the disk gives for that
// job is fio reading as many bytes as the checkpoint's arrays have and writing as many as the
// snapshot has at the same time; it is done when the slower of the two is. The goal is about that.
// The snapshot against fio's writing alone is told, too, without a goal: it says what reading
// costs, and would be the reference for a checkpoint that is still in the page cache.
//
// Writing is by the wall, learning and cutting by CPU time of the trainer's thread: this machine
// may be shared. Of rates the best round counts, and the median is told.
#include <errno.h>
#include <ftw.h>
#include <inttypes.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "daemon/assemble.h"
#include "daemon/blas_core.h"
#include "daemon/publish.h"
#include "daemon/state.h"
#include "model/arena.h"
#include "model/gemm.h"
#include "model/kernels.h"
#include "model/rng.h"
#include "tests/bench/figure.h"
#include "tests/bench/measure.h"

enum { BATCH = 512, HISTORY = 20, STEPS_BEFORE = 200, CUTS = 100, ROUNDS_MAX = 64 };

struct bench {
    struct config config;
    struct trainer trainer;
    struct engine *engine;
    struct source_partition partition;
    uint32_t items, users;
    struct rng rng;
    char root[3072], snapshots[3072];
    uint64_t generation;
    _Atomic bool writing;
    bool done;
    sem_t cut;
    double checkpoint_s, snapshot_s, checkpoint_cpu_s, snapshot_cpu_s;
    uint64_t snapshot_bytes;
    size_t bytes; // of the columns
};

static bool json;

// Skewed, as ids are: the square of a uniform draw.
static uint32_t draw(struct bench *b, uint32_t n)
{
    const double u = (double)rng_float(&b->rng);
    return (uint32_t)(u * u * (n - 1));
}

// Of the steps of a while: CPU time in all, and the longest by the wall in which the trainer waited
// for the writer.
struct steps {
    uint64_t n;
    double cpu_s, wall_s, waited_s;
};

static void step(struct bench *b, struct steps *steps)
{
    static struct example examples[BATCH];
    for (int i = 0; i < BATCH; i++) {
        struct example *e = &examples[i];
        *e = (struct example){.user = draw(b, b->users), .item = draw(b, b->items), .positive = 1};
        e->n_history = HISTORY;
        for (int k = 0; k < HISTORY; k++)
            e->history[k] = draw(b, b->items);
    }
    const uint64_t waited = b->trainer.columns.saves_waited;
    const double begun = clock_s(CLOCK_MONOTONIC), cpu = thread_cpu_s();
    two_tower_learn(b->trainer.rows.model, BATCH, examples, NULL);
    const double s = clock_s(CLOCK_MONOTONIC) - begun;
    steps->n++;
    steps->cpu_s += thread_cpu_s() - cpu;
    steps->wall_s += s;
    if (b->trainer.columns.saves_waited > waited && s > steps->waited_s)
        steps->waited_s = s;
}

static int entry_remove(const char *path, const struct stat *st, int type, struct FTW *at)
{
    (void)st, (void)type, (void)at;
    return remove(path);
}

static void write_round(struct bench *b)
{
    struct state_stamp stamp;
    struct published published;
    char error[1024], path[4096];
    double begun = clock_s(CLOCK_MONOTONIC), cpu = thread_cpu_s();
    if (state_write(&b->trainer,
                    &(struct state_write_options){.root = b->root,
                                                  .generation = b->generation,
                                                  .engine = b->engine,
                                                  .config = &b->config,
                                                  .partitions = &b->partition,
                                                  .n_partitions = 1},
                    &stamp, error, sizeof error) < 0)
        die(error);
    b->checkpoint_s = clock_s(CLOCK_MONOTONIC) - begun;
    b->checkpoint_cpu_s = thread_cpu_s() - cpu;
    snprintf(path, sizeof path, "%s/%" PRIu64, b->root, b->generation);
    begun = clock_s(CLOCK_MONOTONIC), cpu = thread_cpu_s();
    if (publish_snapshot(&(struct publish_options){.checkpoint = path,
                                                   .root = b->snapshots,
                                                   .generation = b->generation,
                                                   .engine = b->engine,
                                                   .config = &b->config},
                         &published, error, sizeof error) < 0)
        die(error);
    b->snapshot_s = clock_s(CLOCK_MONOTONIC) - begun;
    b->snapshot_cpu_s = thread_cpu_s() - cpu;
    b->snapshot_bytes = published.bytes;
}

// One thread for all rounds, as in the daemon: the ring belongs to the thread that used it first.
static void *write_main(void *arg)
{
    struct bench *b = arg;
    for (;;) {
        sem_wait(&b->cut);
        if (b->done)
            return NULL;
        write_round(b);
        atomic_store(&b->writing, false);
    }
}

// A way to ask a disk for much.
struct fio_way {
    const char *block;
    int depth;
};

// Seconds until fio has written write_mb to fio.written and, where read_mb is not 0, at the same
// time read read_mb from fio.read; 0 without fio. Of its terse lines, one for each of both, the 9th
// and the 50th field are how many ms it read and wrote.
static double fio_s(const char *directory, size_t read_mb, size_t write_mb,
                    const struct fio_way *way)
{
    enum { READ_MS = 9, WRITE_MS = 50 };
    char command[8192], reader[4096] = "", line[4096];
    double longest_ms = 0;
    if (read_mb > 0)
        snprintf(reader, sizeof reader, "--name=r --filename=%s/fio.read --rw=read --size=%zuM",
                 directory, read_mb);
    snprintf(command, sizeof command,
             "fio --output-format=terse --terse-version=3 --bs=%s --direct=1 --ioengine=io_uring "
             "--iodepth=%d %s --name=w --filename=%s/fio.written --rw=write --size=%zuM "
             "--end_fsync=1 2>/dev/null",
             way->block, way->depth, reader, directory, write_mb);
    FILE *f = popen(command, "r");
    while (f && fgets(line, sizeof line, f)) {
        char *rest = line;
        for (int field = 1; rest; field++) {
            const char *text = strsep(&rest, ";");
            const double ms = field == READ_MS || field == WRITE_MS ? atof(text) : 0;
            longest_ms = ms > longest_ms ? ms : longest_ms;
        }
    }
    if (f)
        pclose(f);
    return longest_ms / 1000;
}

// MB/s of writing, the best of some ways; 0 without fio. What was written stays, for fio to read.
static double fio_writes(const char *directory, size_t mb)
{
    static const struct fio_way ways[] = {{"1M", 8}, {"256k", 32}, {"4M", 4}};
    char written[4096], read[4096];
    double best = 0;
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        const double s = fio_s(directory, 0, mb, &ways[i]);
        const double rate = s > 0 ? (double)(mb << 20) / 1e6 / s : 0;
        best = rate > best ? rate : best;
        snprintf(written, sizeof written, "%s/fio.written", directory);
        snprintf(read, sizeof read, "%s/fio.read", directory);
        rename(written, read);
    }
    return best;
}

// The same of writing while it reads what fio_writes left, as much as that wrote; it goes.
static double fio_reads_and_writes(const char *directory, size_t read_mb, size_t mb)
{
    static const struct fio_way ways[] = {{"1M", 8}, {"256k", 32}};
    static const char *const files[] = {"fio.read", "fio.written"};
    char path[4096];
    double best = 0;
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        const double s = fio_s(directory, read_mb, mb, &ways[i]);
        const double rate = s > 0 ? (double)(mb << 20) / 1e6 / s : 0;
        best = rate > best ? rate : best;
    }
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(path, sizeof path, "%s/%s", directory, files[i]);
        remove(path);
    }
    return best;
}

static void fill(struct bench *b, size_t mb)
{
    // About 350 bytes an item and 330 a user with their ids, in equal numbers.
    const uint32_t rows = (uint32_t)(mb * 1000000 / 680);
    char storage[8];
    for (uint32_t i = 0; i < rows; i++) {
        const struct id id = id_of_unsigned(i + 1, storage);
        if (rows_item(&b->trainer.rows, &id, 1) < 0 || rows_user(&b->trainer.rows, &id, 1) < 0)
            die("a table is full");
    }
    b->items = b->users = rows;
}

// Of n numbers, which it sorts: the one below which the share lies.
static double quantile(double *x, int n, double share)
{
    qsort(x, (size_t)n, sizeof *x, measure_compare);
    const int i = (int)(share * (n - 1) + 0.5);
    return x[i];
}

// theirs 0: there is no reference. ratio 0, goal NULL: none.
static void say(const char *stage, const char *reference, const char *unit, double ours,
                double theirs, double ratio, const char *goal, double median)
{
    char extra[48];
    snprintf(extra, sizeof extra, "\"median\":%.4g", median);
    figure_print(json, &(struct figure){.stage = stage,
                                        .unit = unit,
                                        .ours = ours,
                                        .reference = theirs > 0 ? reference : NULL,
                                        .theirs = theirs,
                                        .ratio = ratio,
                                        .goal = goal,
                                        .extra = extra});
}

// Of MB/s, which are sorted: the best, as a share of fio's, where there is one.
static void say_rate(const char *stage, const char *fio, const double *rates, int n, double theirs,
                     const char *goal)
{
    const double ours = rates[n - 1];
    say(stage, fio, "MB/s", ours, theirs, theirs > 0 ? ours / theirs : 0, theirs > 0 ? goal : NULL,
        rates[n / 2]);
}

// Cuts alone, of a state that was learned on: what the trainer stands still for.
static void cuts(struct bench *b, double *ms)
{
    struct steps ignored = {0};
    for (int i = 0; i < CUTS; i++) {
        if (i % 10 == 0)
            step(b, &ignored);
        const double begun = thread_cpu_s();
        columns_cut(&b->trainer.columns);
        ms[i] = (thread_cpu_s() - begun) * 1000;
        columns_cut_end(&b->trainer.columns);
    }
}

struct rounds {
    int n;
    double checkpoint[ROUNDS_MAX], snapshot[ROUNDS_MAX];     // MB/s
    double writes[ROUNDS_MAX], reads_and_writes[ROUNDS_MAX]; // fio's, MB/s written
    double before[ROUNDS_MAX], during[ROUNDS_MAX];           // examples per CPU-second
    double kept[ROUNDS_MAX], kept_wall[ROUNDS_MAX];          // during / before
    double waited_ms;                                        // the longest
};

static void round_run(struct bench *b, const char *directory, struct rounds *r)
{
    struct steps before = {0}, during = {0};
    const int i = r->n++;
    const size_t mb = b->bytes >> 20;
    r->writes[i] = fio_writes(directory, mb);
    for (int k = 0; k < STEPS_BEFORE; k++)
        step(b, &before);
    columns_cut(&b->trainer.columns);
    atomic_store(&b->writing, true);
    sem_post(&b->cut);
    while (atomic_load(&b->writing))
        step(b, &during);
    for (int k = 0; k < 2; k++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%" PRIu64, k ? b->snapshots : b->root, b->generation);
        nftw(path, entry_remove, 16, FTW_DEPTH | FTW_PHYS);
    }
    r->reads_and_writes[i] = fio_reads_and_writes(directory, mb, b->snapshot_bytes >> 20);
    r->checkpoint[i] = (double)b->bytes / 1e6 / b->checkpoint_s;
    r->snapshot[i] = (double)b->snapshot_bytes / 1e6 / b->snapshot_s;
    r->before[i] = BATCH * (double)before.n / before.cpu_s;
    r->during[i] = BATCH * (double)during.n / during.cpu_s;
    r->kept[i] = r->during[i] / r->before[i];
    r->kept_wall[i] = (double)during.n / during.wall_s / ((double)before.n / before.wall_s);
    r->waited_ms = during.waited_s * 1000 > r->waited_ms ? during.waited_s * 1000 : r->waited_ms;
    if (!json)
        printf("round %d: checkpoint %.0f MB/s (%.0f a CPU-second), snapshot %.0f MB/s (%.0f), "
               "fio writes %.0f, while reading %.0f MB/s; %" PRIu64
               " units saved; examples per CPU-second %.0f -> %.0f, by the wall %.2f of before\n",
               i + 1, r->checkpoint[i], (double)b->bytes / 1e6 / b->checkpoint_cpu_s,
               r->snapshot[i], (double)b->snapshot_bytes / 1e6 / b->snapshot_cpu_s, r->writes[i],
               r->reads_and_writes[i], b->trainer.columns.saves, r->before[i], r->during[i],
               r->kept_wall[i]);
    fflush(stdout);
    b->generation++;
}

static void summary(const struct bench *b, struct rounds *r, double *cut_ms)
{
    static const char *const writes = "fio writing alone, io_uring, O_DIRECT, best block size",
                             *const reads_and_writes = "fio writing as much while it reads as much "
                                                       "as the checkpoint, the longer of both";
    char stage[128];
    const int n = r->n;
    // Sorted by the first look, so that the best is the last.
    quantile(r->checkpoint, n, 1), quantile(r->snapshot, n, 1);
    const double alone = quantile(r->writes, n, 1), both = quantile(r->reads_and_writes, n, 1);
    const double gb = (double)b->bytes / 1e9, gb_snapshot = (double)b->snapshot_bytes / 1e9;
    snprintf(stage, sizeof stage, "checkpoint of %.1f GB while training", gb);
    say_rate(stage, writes, r->checkpoint, n, alone, ">= 0.95");
    snprintf(stage, sizeof stage, "snapshot of %.1f GB made from it while training", gb_snapshot);
    say_rate(stage, reads_and_writes, r->snapshot, n, both, ">= 0.95");
    snprintf(stage, sizeof stage,
             "snapshot of %.1f GB against writing alone, which need not read: for information",
             gb_snapshot);
    say_rate(stage, writes, r->snapshot, n, alone, NULL);
    const double cut = quantile(cut_ms, CUTS, 0.99);
    const double longest = cut > r->waited_ms ? cut : r->waited_ms;
    snprintf(stage, sizeof stage, "trainer's wait for a cut of %.1f GB, p99", gb);
    say(stage, "", "ms", longest, 0, longest, "<= 1", cut_ms[CUTS / 2]);
    const double kept = quantile(r->kept, n, 0.5), before = quantile(r->before, n, 0.5),
                 during = quantile(r->during, n, 0.5);
    say("learning while a checkpoint and a snapshot are written", "before it",
        "examples per CPU-second", during, before, kept, ">= 0.9", kept);
}

int main(int argc, char **argv)
{
    static char memory[CONFIG_MEMORY];
    static struct bench b = {.rng = {1, 0}, .generation = 1};
    static struct join_window windows[CONFIG_ENTRIES_MAX];
    struct arena arena = {memory, sizeof memory, 0};
    char error[1024];
    blas_core_correct(argv); // first: it starts the program again
    if (argc > 1 && !strcmp(argv[1], "--json")) {
        json = true;
        argc--, argv++;
    }
    char own[] = "bench_cut.XXXXXX";
    const char *directory = argc > 1 ? argv[1] : mkdtemp(own);
    if (!directory)
        die(strerror(errno));
    const size_t mb = argc > 2 ? strtoul(argv[2], NULL, 10) : 700;
    const int rounds = argc > 3 ? atoi(argv[3]) : 5;
    if (rounds < 1 || rounds > ROUNDS_MAX)
        die("1 to 64 rounds");
    gemm_init();
    kernels_init(NULL);
    config_init(&b.config, &arena);
    struct config_problems problems = {0};
    config_set(&b.config, "tables.items_max", "20000000", "bench", &problems);
    config_set(&b.config, "tables.users_max", "20000000", "bench", &problems);
    snprintf(b.root, sizeof b.root, "%s/checkpoints", directory);
    snprintf(b.snapshots, sizeof b.snapshots, "%s/snapshots", directory);
    mkdir(directory, 0750);
    if ((mkdir(b.root, 0750) < 0 && errno != EEXIST) ||
        (mkdir(b.snapshots, 0750) < 0 && errno != EEXIST))
        die(strerror(errno));
    const struct trainer_options t = assemble_trainer(&b.config, 1, windows);
    if (trainer_open(&b.trainer, &t) < 0)
        die("out of memory");
    if (engine_open(&b.engine, &(struct engine_options){0}, error, sizeof error) < 0)
        die(error);
    fill(&b, mb);
    for (int i = 0; i < b.trainer.columns.n; i++)
        b.bytes += b.trainer.columns.list[i]->n * b.trainer.columns.list[i]->unit;
    if (!json)
        printf("state %.0f MB, %u items, %u users, io %s\n", (double)b.bytes / 1e6, b.items,
               b.users, engine_backend(b.engine));

    static struct rounds all;
    static double cut_ms[CUTS];
    pthread_t writer;
    sem_init(&b.cut, 0, 0);
    if (pthread_create(&writer, NULL, write_main, &b) != 0)
        die("no thread");
    for (int round = 0; round < rounds; round++)
        round_run(&b, directory, &all);
    cuts(&b, cut_ms);
    summary(&b, &all, cut_ms);
    b.done = true;
    sem_post(&b.cut);
    pthread_join(writer, NULL);
    engine_close(b.engine);
    trainer_close(&b.trainer);
    if (argc < 2)
        nftw(own, entry_remove, 16, FTW_DEPTH | FTW_PHYS);
    return 0;
}
