// SPDX-License-Identifier: Apache-2.0
//
// What large tables cost the trainer: CPU time of a learned example, and resident memory of a row.
//
//     bench_tables [ROWS [STEPS]]
//
// ROWS items and as many users; every example has 20 items of history. Items are drawn with a skew,
// users evenly, so at 10 million rows nearly every row of a batch comes from memory.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "daemon/assemble.h"
#include "daemon/blas_core.h"
#include "model/arena.h"
#include "model/gemm.h"
#include "model/kernels.h"
#include "model/rng.h"

enum { BATCH = 512, HISTORY = 20, WARM = 50 };

static double cpu_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double resident_bytes(void)
{
    long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f && fscanf(f, "%*s %ld", &pages) != 1)
        pages = 0;
    if (f)
        fclose(f);
    return (double)pages * (double)sysconf(_SC_PAGESIZE);
}

static void die(const char *what)
{
    fprintf(stderr, "bench_tables: %s\n", what);
    exit(1);
}

// Skewed, as items are: the square of a uniform draw.
static uint32_t draw(struct rng *rng, uint32_t n)
{
    const double u = (double)rng_float(rng);
    return (uint32_t)(u * u * (n - 1));
}

int main(int argc, char **argv)
{
    static char memory[CONFIG_MEMORY];
    static struct config config;
    static struct trainer trainer;
    static struct join_window windows[CONFIG_ENTRIES_MAX];
    static struct example examples[BATCH];
    struct arena arena = {memory, sizeof memory, 0};
    struct config_problems problems = {0};
    struct rng rng = {1, 0};
    const uint32_t rows = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 1000000;
    const int steps = argc > 2 ? atoi(argv[2]) : 200;
    blas_core_correct(argv);
    gemm_init();
    kernels_init(NULL);
    config_init(&config, &arena);
    config_set(&config, "tables.items_max", "20000000", "bench", &problems);
    config_set(&config, "tables.users_max", "20000000", "bench", &problems);
    const struct trainer_options t = assemble_trainer(&config, 1, windows);
    if (trainer_open(&trainer, &t) < 0)
        die("out of memory");

    const double empty = resident_bytes();
    double filling = cpu_s();
    for (uint32_t i = 0; i < rows; i++) {
        char storage[8];
        const struct id id = id_of_unsigned(i + 1, storage);
        if (rows_item(&trainer.rows, &id, 1) < 0 || rows_user(&trainer.rows, &id, 1) < 0)
            die("a table is full");
    }
    filling = cpu_s() - filling;
    const double full = resident_bytes();

    double learning = 0, candidates = 0;
    for (int s = -WARM; s < steps; s++) {
        for (int i = 0; i < BATCH; i++) {
            struct example *e = &examples[i];
            *e = (struct example){.user = (uint32_t)rng_below(&rng, rows),
                                  .item = draw(&rng, rows),
                                  .positive = 1,
                                  .n_history = HISTORY};
            for (int k = 0; k < HISTORY; k++)
                e->history[k] = draw(&rng, rows);
        }
        const double begun = cpu_s();
        const struct step_report report =
            two_tower_learn(trainer.rows.model, BATCH, examples, NULL);
        if (s >= 0) {
            learning += cpu_s() - begun;
            candidates += report.candidates;
        }
    }
    printf("%" PRIu32 " items, %" PRIu32
           " users: %.0f ns to admit a row, %.0f bytes resident for an "
           "item and a user; %.0f candidates a step, %.1f us per example\n",
           rows, rows, 1e9 * filling / (2.0 * rows), (full - empty) / rows, candidates / steps,
           1e6 * learning / ((double)steps * BATCH));
    trainer_close(&trainer);
    return 0;
}
