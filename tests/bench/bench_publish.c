// SPDX-License-Identifier: Apache-2.0
//
// What deriving a snapshot from a checkpoint costs: tables of n items and n users with histories,
// published again and again with nothing beside it.
//
//     bench_publish [--json] [DIRECTORY [ROWS [ROUNDS [NAME=VALUE...]]]]
//
// DIRECTORY/checkpoints/1 is made at the first call and used again by the next, so that two builds
// can be compared on the same bytes; the last snapshot stays there. Every round is one with the
// checkpoint outside the page cache, where O_DIRECT leaves it, and one with it inside. Without
// DIRECTORY one is made here and removed. NAME=VALUE are options of the daemon. Of the rates the
// best round counts.
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
#include "daemon/publish.h"
#include "daemon/state.h"
#include "model/arena.h"
#include "model/gemm.h"
#include "model/kernels.h"
#include "model/rng.h"
#include "tests/bench/figure.h"
#include "tests/bench/measure.h"

enum { BATCH = 512, HISTORY = 8, STEPS = 50 };

static void fill(struct trainer *t, uint32_t rows)
{
    static struct example examples[BATCH];
    struct rng rng = {1, 0};
    for (uint32_t i = 0; i < rows; i++) {
        char text[32], storage[8];
        const int size = snprintf(text, sizeof text, "user-%08" PRIx32, i * 2654435761u);
        const struct id user = id_of_text(text, (size_t)size);
        const struct id item = id_of_unsigned(i + 1, storage);
        if (rows_item(&t->rows, &item, 1) < 0 || rows_user(&t->rows, &user, 1) < 0)
            die("a table is full");
    }
    for (uint32_t i = 0; i < rows; i++)
        for (int k = 0; k < HISTORY; k++) {
            const uint32_t item = (uint32_t)rng_below(&rng, rows);
            history_add(&t->rows.history, i,
                        (struct history_entry){item, rows_item_ref(&t->rows, item).generation, 0, 0,
                                               1 + k / 2});
        }
    for (int s = 0; s < STEPS; s++) {
        for (int i = 0; i < BATCH; i++)
            examples[i] = (struct example){.user = (uint32_t)rng_below(&rng, rows),
                                           .item = (uint32_t)rng_below(&rng, rows),
                                           .positive = 1};
        two_tower_learn(t->rows.model, BATCH, examples, NULL);
    }
}

// Puts the files of a directory into the page cache, or out of it.
static void cache(const char *path, bool in)
{
    static char bytes[1 << 20];
    DIR *d = opendir(path);
    if (!d)
        die(path);
    for (const struct dirent *entry; (entry = readdir(d));) {
        const int file = openat(dirfd(d), entry->d_name, O_RDONLY);
        if (file < 0)
            continue;
        while (in && read(file, bytes, sizeof bytes) > 0)
            ;
        if (!in)
            posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
        close(file);
    }
    closedir(d);
}

static int entry_remove(const char *path, const struct stat *s, int type, struct FTW *at)
{
    (void)s, (void)type, (void)at;
    return remove(path);
}

int main(int argc, char **argv)
{
    static char memory[CONFIG_MEMORY];
    static struct join_window windows[CONFIG_ENTRIES_MAX];
    static struct config config;
    static struct trainer trainer;
    struct arena arena = {memory, sizeof memory, 0};
    struct config_problems problems = {0};
    struct engine *engine;
    struct published published;
    char error[1024], root[3072], snapshots[3072], path[4096], last[4096] = "";
    struct {
        double per_s, per_cpu_s; // MB
    } best[2] = {0};
    blas_core_correct(argv); // may start the program again, so the directory comes after it
    const bool json = figures_as_json(&argc, argv);
    const uint32_t rows = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 1000000;
    const int rounds = argc > 3 ? atoi(argv[3]) : 3;
    char own[] = "bench_publish.XXXXXX";
    const char *directory = argc > 1 ? argv[1] : mkdtemp(own);
    if (!directory)
        die("no directory can be made here");
    gemm_init();
    kernels_init(NULL);
    config_init(&config, &arena);
    config_set(&config, "tables.items_max", "20000000", "bench", &problems);
    config_set(&config, "tables.users_max", "20000000", "bench", &problems);
    config_set(&config, "snapshot.f16", "true", "bench", &problems);
    for (int i = 4; i < argc; i++) {
        char *value = strchr(argv[i], '=');
        if (!value)
            die("an option is NAME=VALUE");
        *value++ = 0;
        config_set(&config, argv[i], value, "bench", &problems);
    }
    snprintf(root, sizeof root, "%s/checkpoints", directory);
    snprintf(snapshots, sizeof snapshots, "%s/snapshots", directory);
    snprintf(path, sizeof path, "%s/1", root);
    if ((mkdir(root, 0750) < 0 && errno != EEXIST) ||
        (mkdir(snapshots, 0750) < 0 && errno != EEXIST))
        die(strerror(errno));
    if (engine_open(&engine, &(struct engine_options){0}, error, sizeof error) < 0)
        die(error);
    if (access(path, F_OK) < 0) {
        const struct trainer_options t = assemble_trainer(&config, 1, windows);
        const struct source_partition partition = {0};
        struct state_stamp stamp;
        if (trainer_open(&trainer, &t) < 0)
            die("out of memory");
        fill(&trainer, rows);
        columns_cut(&trainer.columns);
        if (state_write(&trainer,
                        &(struct state_write_options){.root = root,
                                                      .generation = 1,
                                                      .engine = engine,
                                                      .config = &config,
                                                      .partitions = &partition,
                                                      .n_partitions = 1},
                        &stamp, error, sizeof error) < 0)
            die(error);
        trainer_close(&trainer);
    }
    for (int round = 0; round < 2 * rounds; round++) {
        cache(path, round % 2);
        const uint64_t generation = (uint64_t)time(NULL) * 1000 + (uint64_t)round;
        const double wall = clock_s(CLOCK_MONOTONIC), cpu = clock_s(CLOCK_PROCESS_CPUTIME_ID);
        if (publish_snapshot(&(struct publish_options){.checkpoint = path,
                                                       .root = snapshots,
                                                       .generation = generation,
                                                       .engine = engine,
                                                       .config = &config},
                             &published, error, sizeof error) < 0)
            die(error);
        const double mb = (double)published.bytes / 1e6;
        const double per_s = mb / (clock_s(CLOCK_MONOTONIC) - wall),
                     per_cpu_s = mb / (clock_s(CLOCK_PROCESS_CPUTIME_ID) - cpu);
        const int warm = round % 2;
        best[warm].per_s = per_s > best[warm].per_s ? per_s : best[warm].per_s;
        best[warm].per_cpu_s = per_cpu_s > best[warm].per_cpu_s ? per_cpu_s : best[warm].per_cpu_s;
        if (!json)
            printf("%s: snapshot of %.0f MB, %" PRIu64 " items and %" PRIu64
                   " users: %.0f MB/s, %.0f MB per CPU-second\n",
                   warm ? "warm" : "cold", mb, published.items, published.users, per_s, per_cpu_s);
        fflush(stdout);
        if (*last)
            nftw(last, entry_remove, 16, FTW_DEPTH | FTW_PHYS);
        snprintf(last, sizeof last, "%s/%" PRIu64, snapshots, generation);
    }
    for (int warm = 0; warm < 2; warm++) {
        const char *where = warm ? "inside" : "outside";
        char stage[96];
        snprintf(stage, sizeof stage, "snapshot, its checkpoint %s the page cache", where);
        figure_print(json, &(struct figure){.stage = stage,
                                            .unit = "MB per CPU-second",
                                            .ours = best[warm].per_cpu_s});
        snprintf(stage, sizeof stage, "snapshot, its checkpoint %s the page cache, wall", where);
        figure_print(json, &(struct figure){.stage = stage,
                                            .unit = "MB per second",
                                            .ours = best[warm].per_s,
                                            .detail = true});
    }
    engine_close(engine);
    if (argc < 2)
        nftw(own, entry_remove, 16, FTW_DEPTH | FTW_PHYS);
    return 0;
}
