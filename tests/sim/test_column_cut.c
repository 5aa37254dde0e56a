// SPDX-License-Identifier: Apache-2.0
//
// Cuts under random schedules, one thread playing both parts: between any two edits the sweeper may
// read a stretch of any length from any column. Beside the columns stand plain copies of what they
// held at the cut; every swept byte must be theirs, and the columns must hold what was written
// last. Sets, undo space, units and schedules are a function of the seed.
#include "model/column.h"
#include "tests/unit/core_fixture.h"

enum { SEEDS = 2000, COLUMNS = 3, UNITS_MAX = 900 };

struct world {
    struct columns set;
    struct column column[COLUMNS];
    unsigned char *now[COLUMNS], *then[COLUMNS], *swept[COLUMNS]; // shadows, and what was read
    size_t passed[COLUMNS];
    struct rng rng;
};

static uint64_t draw(struct world *w, uint64_t n)
{
    return rng_below(&w->rng, n);
}

static void world_open(struct world *w, uint64_t seed)
{
    *w = (struct world){.rng = {seed, 0}};
    assert_int_equal(columns_open(&w->set, 8 << 20), 0);
    for (int i = 0; i < COLUMNS; i++) {
        // Units of a few bytes share a list of saved ones, large ones have lists of their own.
        const size_t unit = draw(w, 8) ? 1 + draw(w, 40) : 30000 + draw(w, 60000);
        const size_t max = unit > 1000 ? 20 : UNITS_MAX;
        assert_int_equal(column_open(&w->column[i], &w->set, "c", unit, max), 0);
        w->now[i] = calloc(max, unit);
        w->then[i] = calloc(max, unit);
        w->swept[i] = calloc(max, unit);
        column_grow(&w->column[i], draw(w, max));
    }
}

static void world_close(struct world *w)
{
    columns_close(&w->set);
    for (int i = 0; i < COLUMNS; i++) {
        free(w->now[i]);
        free(w->then[i]);
        free(w->swept[i]);
    }
}

static void edit(struct world *w)
{
    const int i = (int)draw(w, COLUMNS);
    struct column *c = &w->column[i];
    if (draw(w, 10) == 0 && c->n < c->n_max)
        column_grow(c, 1 + draw(w, c->n_max - c->n));
    if (c->n == 0)
        return;
    const size_t unit = draw(w, c->n);
    const size_t first = draw(w, c->unit), n = 1 + draw(w, c->unit - first);
    unsigned char *bytes = column_edit(c, unit);
    memset(bytes + first, (int)draw(w, 256), n);
    memcpy(w->now[i] + unit * c->unit, bytes, c->unit);
}

static void sweep(struct world *w)
{
    const int i = (int)draw(w, COLUMNS);
    struct column *c = &w->column[i];
    size_t n = draw(w, c->n_cut - w->passed[i] + 1);
    if (draw(w, 2))
        n = n > 7 ? 7 : n;
    column_sweep(c, w->passed[i], n, w->swept[i] + w->passed[i] * c->unit);
    w->passed[i] += n;
}

static void run(uint64_t seed)
{
    struct world w;
    world_open(&w, seed);
    for (int i = (int)draw(&w, 50); i > 0; i--)
        edit(&w);
    const int cuts = 1 + (int)draw(&w, 4);
    for (int cut = 0; cut < cuts; cut++) {
        columns_cut(&w.set);
        for (int i = 0; i < COLUMNS; i++) {
            memcpy(w.then[i], w.now[i], w.column[i].n * w.column[i].unit);
            w.passed[i] = 0;
        }
        const bool given_up = draw(&w, 5) == 0;
        const uint64_t eager = 1 + draw(&w, 8); // edits to a sweep
        for (int steps = (int)draw(&w, 200); steps > 0; steps--)
            if (draw(&w, eager + 1))
                edit(&w);
            else
                sweep(&w);
        for (int i = 0; i < COLUMNS && !given_up; i++) {
            struct column *c = &w.column[i];
            column_sweep(c, w.passed[i], c->n_cut - w.passed[i],
                         w.swept[i] + w.passed[i] * c->unit);
            w.passed[i] = c->n_cut;
            edit(&w); // between two columns
        }
        columns_cut_end(&w.set);
        for (int i = 0; i < COLUMNS; i++) {
            const struct column *c = &w.column[i];
            if (memcmp(w.swept[i], w.then[i], w.passed[i] * c->unit))
                fail_msg("seed %" PRIu64 ", cut %d: column %d is not what it was", seed, cut, i);
            if (memcmp(c->base, w.now[i], c->n * c->unit))
                fail_msg("seed %" PRIu64 ", cut %d: column %d has lost an edit", seed, cut, i);
        }
        for (int i = (int)draw(&w, 30); i > 0; i--)
            edit(&w);
    }
    world_close(&w);
}

static void every_schedule_reads_the_bytes_of_the_cut(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= SEEDS; seed++)
        run(seed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_schedule_reads_the_bytes_of_the_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
