// SPDX-License-Identifier: Apache-2.0
//
// What a checkpoint and a snapshot cost the trainer: tables of about the given size, a trainer that
// goes on learning, a writer beside it.
//
//     bench_cut [DIRECTORY [MB [ROUNDS]]]
//
// Without a DIRECTORY one is made below the current one, and removed at the end.
//
// Prints for every round: how long the trainer stood still for the cut, its longest step before and
// during the writing, MB/s of the checkpoint and of the snapshot, and fio's on the same disk right
// before (when fio is installed). Wall time where waiting is measured; this machine may be shared.
#include <errno.h>
#include <ftw.h>
#include <inttypes.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "daemon/assemble.h"
#include "daemon/blas_core.h"
#include "daemon/publish.h"
#include "daemon/state.h"
#include "model/arena.h"
#include "model/gemm.h"
#include "model/kernels.h"
#include "model/rng.h"

enum { BATCH = 512, HISTORY = 20, STEPS_BEFORE = 400 };

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
    double checkpoint_s, snapshot_s;
    uint64_t checkpoint_bytes, snapshot_bytes;
};

static double cpu_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double wall_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void die(const char *what)
{
    fprintf(stderr, "bench_cut: %s\n", what);
    exit(1);
}

// Skewed, as ids are: the square of a uniform draw.
static uint32_t draw(struct bench *b, uint32_t n)
{
    const double u = (double)rng_float(&b->rng);
    return (uint32_t)(u * u * (n - 1));
}

// What the longest step was spent on: when its CPU time is shorter, it waited for a core.
struct longest {
    double wall_s, cpu_s;
    long faults;
    uint64_t waited;
};

static double step(struct bench *b, struct longest *longest)
{
    static struct example examples[BATCH];
    for (int i = 0; i < BATCH; i++) {
        struct example *e = &examples[i];
        *e = (struct example){.user = draw(b, b->users), .item = draw(b, b->items), .positive = 1};
        e->n_history = HISTORY;
        for (int k = 0; k < HISTORY; k++)
            e->history[k] = draw(b, b->items);
    }
    struct rusage usage;
    getrusage(RUSAGE_THREAD, &usage);
    const long faults = usage.ru_minflt;
    const uint64_t waited = b->trainer.columns.saves_waited;
    const double begun = wall_s(), cpu = cpu_s();
    two_tower_learn(b->trainer.rows.model, BATCH, examples, NULL);
    const double s = wall_s() - begun;
    if (s > longest->wall_s) {
        getrusage(RUSAGE_THREAD, &usage);
        *longest = (struct longest){s, cpu_s() - cpu, usage.ru_minflt - faults,
                                    b->trainer.columns.saves_waited - waited};
    }
    return s;
}

static void write_round(struct bench *b)
{
    struct state_stamp stamp;
    struct published published;
    char error[1024], path[4096];
    double begun = wall_s();
    if (state_write(&b->trainer,
                    &(struct state_write_options){.root = b->root,
                                                  .generation = b->generation,
                                                  .engine = b->engine,
                                                  .config = &b->config,
                                                  .partitions = &b->partition,
                                                  .n_partitions = 1},
                    &stamp, error, sizeof error) < 0)
        die(error);
    b->checkpoint_s = wall_s() - begun;
    snprintf(path, sizeof path, "%s/%" PRIu64, b->root, b->generation);
    begun = wall_s();
    if (publish_snapshot(&(struct publish_options){.checkpoint = path,
                                                   .root = b->snapshots,
                                                   .generation = b->generation,
                                                   .engine = b->engine,
                                                   .config = &b->config},
                         &published, error, sizeof error) < 0)
        die(error);
    b->snapshot_s = wall_s() - begun;
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

static double fio_mb_per_s(const char *directory)
{
    char command[8192], line[4096];
    double kib = 0;
    snprintf(command, sizeof command,
             "fio --name=w --filename=%s/fio.tmp --rw=write --bs=1M --direct=1 --ioengine=io_uring "
             "--iodepth=8 --size=1G --end_fsync=1 --output-format=terse --terse-version=3 "
             "2>/dev/null | cut -d';' -f48; rm -f %s/fio.tmp",
             directory, directory);
    FILE *f = popen(command, "r");
    if (f && fgets(line, sizeof line, f))
        kib = atof(line);
    if (f)
        pclose(f);
    return kib * 1024 / 1e6;
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

static int entry_remove(const char *path, const struct stat *st, int type, struct FTW *at)
{
    (void)st, (void)type, (void)at;
    return remove(path);
}

int main(int argc, char **argv)
{
    static char memory[CONFIG_MEMORY];
    static struct bench b = {.rng = {1, 0}, .generation = 1};
    static struct join_window windows[CONFIG_ENTRIES_MAX];
    struct arena arena = {memory, sizeof memory, 0};
    char error[1024];
    blas_core_correct(argv); // first: it starts the program again
    char own[] = "bench_cut.XXXXXX";
    const char *directory = argc > 1 ? argv[1] : mkdtemp(own);
    if (!directory)
        die(strerror(errno));
    const size_t mb = argc > 2 ? strtoul(argv[2], NULL, 10) : 1000;
    const int rounds = argc > 3 ? atoi(argv[3]) : 3;
    gemm_init();
    kernels_init(NULL);
    config_init(&b.config, &arena);
    struct config_problems problems = {0};
    config_set(&b.config, "tables.items_max", "20000000", "bench", &problems);
    config_set(&b.config, "tables.users_max", "20000000", "bench", &problems);
    snprintf(b.root, sizeof b.root, "%s/checkpoints", directory);
    snprintf(b.snapshots, sizeof b.snapshots, "%s/snapshots", directory);
    if ((mkdir(b.root, 0750) < 0 && errno != EEXIST) ||
        (mkdir(b.snapshots, 0750) < 0 && errno != EEXIST))
        die(strerror(errno));
    const struct trainer_options t = assemble_trainer(&b.config, 1, windows);
    if (trainer_open(&b.trainer, &t) < 0)
        die("out of memory");
    if (engine_open(&b.engine, &(struct engine_options){0}, error, sizeof error) < 0)
        die(error);
    fill(&b, mb);
    size_t bytes = 0;
    for (int i = 0; i < b.trainer.columns.n; i++)
        bytes += b.trainer.columns.list[i]->n * b.trainer.columns.list[i]->unit;
    printf("state %.0f MB, %u items, %u users, io %s\n", (double)bytes / 1e6, b.items, b.users,
           engine_backend(b.engine));

    pthread_t writer;
    sem_init(&b.cut, 0, 0);
    if (pthread_create(&writer, NULL, write_main, &b) != 0)
        die("no thread");
    for (int round = 0; round < rounds; round++) {
        struct longest before = {0}, during = {0};
        double cut, before_sum = 0, during_sum = 0;
        uint64_t steps = 0;
        const double fio = fio_mb_per_s(directory);
        for (int i = 0; i < STEPS_BEFORE; i++)
            before_sum += step(&b, &before);
        const double begun = wall_s();
        columns_cut(&b.trainer.columns);
        atomic_store(&b.writing, true);
        sem_post(&b.cut);
        cut = wall_s() - begun;
        while (atomic_load(&b.writing)) {
            during_sum += step(&b, &during);
            steps++;
        }
        printf("cut %.3f ms, saved units %" PRIu64 ", waited for space %" PRIu64
               "; step mean %.2f -> %.2f ms, longest %.2f (CPU %.2f, %ld page faults) -> "
               "%.2f ms (CPU %.2f, %ld page faults, %" PRIu64 " waits); checkpoint %.0f MB/s, "
               "snapshot %.0f MB at %.0f MB/s, fio %.0f MB/s\n",
               cut * 1000, b.trainer.columns.saves, b.trainer.columns.saves_waited,
               1000 * before_sum / STEPS_BEFORE, 1000 * during_sum / (double)(steps ? steps : 1),
               before.wall_s * 1000, before.cpu_s * 1000, before.faults, during.wall_s * 1000,
               during.cpu_s * 1000, during.faults, during.waited,
               (double)bytes / 1e6 / b.checkpoint_s, (double)b.snapshot_bytes / 1e6,
               (double)b.snapshot_bytes / 1e6 / b.snapshot_s, fio);
        fflush(stdout);
        b.generation++;
    }
    b.done = true;
    sem_post(&b.cut);
    pthread_join(writer, NULL);
    engine_close(b.engine);
    trainer_close(&b.trainer);
    if (argc < 2)
        nftw(own, entry_remove, 16, FTW_DEPTH | FTW_PHYS);
    return 0;
}
