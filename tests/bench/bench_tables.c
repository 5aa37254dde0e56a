// SPDX-License-Identifier: Apache-2.0
//
// What large tables cost the trainer: CPU time of a learned example in tables of ROWS items and
// users against the same step in tables of 10,000, one after the other in one run, and the resident
// memory of a row against what the model needs for it.
//
// The same step: in small tables the ids of a step are those of the large ones, numbered anew, so
// that as many of them are distinct. Drawn from 10,000, half as many would be, and what more there
// is to learn would count as the price of memory; that comparison is told, too.
//
//     bench_tables [--json] [ROWS [EVENTS]]
//
// The default model at d = 64 with 20 items of history. Ids follow Zipf's law, popular ones lying
// anywhere in the table. Where only the users are many they are drawn evenly, so that nearly every
// one comes from memory. EVENTS are learned in the small tables, to tell whether a step costs more
// after them. 10 million rows take about a minute and 10 GB; with less memory to be had the program
// says so.
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/assemble.h"
#include "daemon/blas_core.h"
#include "model/arena.h"
#include "model/gemm.h"
#include "model/kernels.h"
#include "model/rng.h"
#include "model/tables.h"
#include "tests/bench/figure.h"
#include "tests/bench/measure.h"

enum { HISTORY = 20, SMALL = 10000, WARM = 40, ROUNDS = 15, STEPS = 8 };

// One of the two models, and what was measured of it.
struct side {
    struct trainer trainer;
    uint32_t items, users;
};

// From how many rows a step draws its items and users.
struct draw {
    uint32_t items, users;
    bool even; // users; else by Zipf's law as items
};

// Numbers the rows of a step anew, from where the last step ended: the same row gets the same
// number.
struct renumbering {
    uint32_t n, step, next;
    struct {
        uint32_t step, row, number;
    } of[1 << 15];
};

static bool json;

static double available_bytes(void)
{
    char line[128];
    double kb = 0;
    FILE *f = fopen("/proc/meminfo", "r");
    while (f && kb == 0 && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %lf", &kb) != 1)
            kb = 0;
    if (f)
        fclose(f);
    return kb * 1024;
}

// A rank by Zipf's law, 0 the most frequent, and where it lies: steps of a prime through the table.
static uint32_t draw_zipf(struct rng *rng, uint32_t n)
{
    const double rank = exp((double)rng_float(rng) * log((double)n)) - 1;
    return (uint32_t)((uint64_t)rank * 2654435761u % n);
}

static void draw_batch(struct rng *rng, const struct draw *draw, int n, struct example *e)
{
    for (int i = 0; i < n; i++) {
        e[i] = (struct example){.user = draw->even ? (uint32_t)rng_below(rng, draw->users)
                                                   : draw_zipf(rng, draw->users),
                                .item = draw_zipf(rng, draw->items),
                                .positive = 1,
                                .ts_ms = i,
                                .n_history = HISTORY,
                                .n_newest = 1};
        for (int k = 0; k < HISTORY; k++)
            e[i].history[k] = draw_zipf(rng, draw->items);
    }
}

static void renumber(struct renumbering *r, uint32_t *row)
{
    const size_t mask = sizeof r->of / sizeof *r->of - 1;
    size_t at = (*row * 2654435761u >> 8) & mask;
    while (r->of[at].step == r->step && r->of[at].row != *row)
        at = (at + 1) & mask;
    if (r->of[at].step != r->step) {
        r->of[at].step = r->step;
        r->of[at].row = *row;
        r->of[at].number = r->next++ % r->n;
    }
    *row = r->of[at].number;
}

static void renumber_batch(struct renumbering *items, struct renumbering *users, int n,
                           struct example *e)
{
    items->step++;
    users->step++;
    for (int i = 0; i < n; i++) {
        renumber(users, &e[i].user);
        renumber(items, &e[i].item);
        for (int k = 0; k < HISTORY; k++)
            renumber(items, &e[i].history[k]);
    }
}

// Seconds per example over the given steps. What is drawn from more rows than there are is numbered
// anew.
static double learn(struct side *s, struct rng *rng, const struct draw *draw, int steps)
{
    static struct example examples[4096];
    static struct renumbering item_numbers, user_numbers;
    const int n = s->trainer.options.model.batch_max;
    double seconds = 0;
    item_numbers.n = s->items;
    user_numbers.n = s->users;
    for (int step = 0; step < steps; step++) {
        draw_batch(rng, draw, n, examples);
        if (draw->items > s->items || draw->users > s->users)
            renumber_batch(&item_numbers, &user_numbers, n, examples);
        const double begun = thread_cpu_s();
        two_tower_learn(s->trainer.rows.model, n, examples, NULL);
        seconds += thread_cpu_s() - begun;
    }
    return seconds / ((double)steps * n);
}

// goal 0: none.
static void compare_sides(struct side *large, const struct draw *draw, struct side *small,
                          const struct draw *drawn, const char *what, const char *reference,
                          double goal)
{
    double ours[ROUNDS], theirs[ROUNDS], ratio[ROUNDS];
    struct rng rng = {1, 0};
    learn(large, &rng, draw, WARM);
    learn(small, &rng, drawn, WARM);
    for (int r = 0; r < ROUNDS; r++) {
        ours[r] = 1e6 * learn(large, &rng, draw, STEPS);
        theirs[r] = 1e6 * learn(small, &rng, drawn, STEPS);
        ratio[r] = ours[r] / theirs[r];
    }
    const double o = median(ROUNDS, ours), t = median(ROUNDS, theirs), x = median(ROUNDS, ratio);
    char text[16];
    snprintf(text, sizeof text, "<= %g", goal);
    figure_print(json, &(struct figure){.stage = what,
                                        .unit = "us per example",
                                        .ours = o,
                                        .reference = reference,
                                        .theirs = t,
                                        .ratio = x,
                                        .goal = goal > 0 ? text : NULL});
}

static void print_memory(const char *what, double rows, double bytes, double needed)
{
    char stage[64];
    snprintf(stage, sizeof stage, "memory of %s, %.0f rows", what, rows);
    figure_print(json, &(struct figure){.stage = stage,
                                        .unit = "bytes per row",
                                        .ours = round(bytes),
                                        .reference = "vectors and what their optimizers keep",
                                        .theirs = needed,
                                        .ratio = bytes / needed,
                                        .goal = "<= 1.25"});
}

static void side_open(struct side *s, const struct config *config)
{
    static struct join_window windows[CONFIG_ENTRIES_MAX];
    const struct trainer_options t = assemble_trainer(config, 1, windows);
    if (trainer_open(&s->trainer, &t) < 0)
        die("out of memory");
}

// Adds rows until there are so many; returns the bytes of each.
static double fill(struct side *s, bool users, uint32_t rows)
{
    const double empty = resident_bytes();
    uint32_t *n = users ? &s->users : &s->items;
    const uint32_t from = *n;
    for (uint32_t i = from; i < rows; i++) {
        char storage[8];
        const struct id id = id_of_unsigned(i + 1, storage);
        if ((users ? rows_user : rows_item)(&s->trainer.rows, &id, 1) < 0)
            die("a table is full");
    }
    *n = rows;
    return (resident_bytes() - empty) / (rows - from);
}

// Whether a step costs more after many events than at the start.
static void compare_events(struct side *s, double events)
{
    const struct draw all = {s->items, s->users, true};
    const int n = s->trainer.options.model.batch_max, steps = (int)(events / n / 20) + 1;
    double first[5], last[5];
    struct rng rng = {2, 0};
    for (int k = 0; k < 20; k++) {
        const double seconds = 1e6 * learn(s, &rng, &all, steps);
        if (k < 5)
            first[k] = seconds;
        if (k >= 15)
            last[k - 15] = seconds;
    }
    const double o = median(5, last), t = median(5, first);
    char stage[64];
    snprintf(stage, sizeof stage, "step, the last of %.1f M events", events / 1e6);
    figure_print(json, &(struct figure){.stage = stage,
                                        .unit = "us per example",
                                        .ours = o,
                                        .reference = "the first of them",
                                        .theirs = t,
                                        .ratio = o / t,
                                        .goal = "<= 1.2"});
}

int main(int argc, char **argv)
{
    static char memory[CONFIG_MEMORY];
    static struct config config;
    static struct side small, large;
    struct arena arena = {memory, sizeof memory, 0};
    struct config_problems problems = {0};
    blas_core_correct(argv);
    json = figures_as_json(&argc, argv);
    const uint32_t rows = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 10000000;
    const double events = argc > 2 ? atof(argv[2]) : 1e6;
    if (available_bytes() < 1100.0 * rows) {
        printf("skip bench_tables: %" PRIu32 " items and users take %.0f GB\n", rows,
               1.1e-6 * rows);
        return 0;
    }
    gemm_init();
    kernels_init(NULL);
    config_init(&config, &arena);
    config_set(&config, "tables.items_max", "20000000", "bench", &problems);
    config_set(&config, "tables.users_max", "20000000", "bench", &problems);
    config_set(&config, "model.history", "20", "bench", &problems);
    side_open(&small, &config);
    side_open(&large, &config);
    fill(&small, false, SMALL);
    fill(&small, true, SMALL);
    char all[64], users_only[64], more[96], same[64], fewer[64];
    snprintf(all, sizeof all, "step, %" PRIu32 " items and users", rows);
    snprintf(users_only, sizeof users_only, "step, %" PRIu32 " users, %d items", rows, SMALL);
    snprintf(same, sizeof same, "the same step in tables of %d rows", SMALL);
    snprintf(more, sizeof more, "%s, with more distinct rows", all);
    snprintf(fewer, sizeof fewer, "a step whose ids are drawn from %d", SMALL);
    const struct draw even = {SMALL, rows, true}, zipf = {rows, rows, false},
                      zipf_small = {SMALL, SMALL, false};
    fill(&large, false, SMALL);
    const double user_bytes = fill(&large, true, rows);
    compare_sides(&large, &even, &small, &even, users_only, same, 1.2);
    const double item_bytes = fill(&large, false, rows);
    compare_sides(&large, &zipf, &small, &zipf, all, same, 1.5);
    compare_sides(&large, &zipf, &small, &zipf_small, more, fewer, 0);

    const struct tables *t = two_tower_tables(large.trainer.rows.model);
    print_memory("an item", rows, item_bytes,
                 (double)(t->item_vector.unit + t->item_slots.unit + t->item_state.unit));
    print_memory("a user", rows, user_bytes, (double)(t->user_vector.unit + t->user_slots.unit));
    compare_events(&small, events);
    trainer_close(&small.trainer);
    trainer_close(&large.trainer);
    return 0;
}
