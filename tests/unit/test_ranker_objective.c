// SPDX-License-Identifier: Apache-2.0
//
// The light ranker as an objective: which slates it learns from, in each mode of delayed feedback.
#include "model/objectives.h"

#include "model/arena.h"
// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on
#include "tests/unit/test_model.h"

enum { D = 4, T = 2, NU = 2, SLATES = 3, ITEMS = 4 };

static struct fixture {
    struct two_tower_options options;
    struct test_model m;
    struct slate slates[SLATES];
    float scores[SLATES][SLATE_ITEMS_MAX][T];
    struct slate_report report;
    int n;
} f;

// Plain SGD at rate 1 for the head, so that a step subtracts its gradient.
static void open_with(enum delayed_feedback_mode feedback)
{
    f = (struct fixture){.n = SLATES};
    struct optimizer sgd = *optimizer_find("sgd");
    sgd.rate = 1;
    f.options = (struct two_tower_options){
        .kind = MODEL_RECIPE,
        .dim = D,
        .history = 5,
        .batch_max = 8,
        .uniform_negatives = 4,
        .seed = 3,
        .init = 0.7f,
        .table = sgd,
        .matrix = sgd,
        .scalar = sgd,
        .prior_half_life = {10, 50, 3},
        .logq_half_life = 50,
        .objectives =
            {.slates = SLATES,
             .tasks = T,
             .value = {1, -0.5f},
             .preference = {.weight = 1, .beta = 1},
             .ranker = {.weight = 1.5f, .heads = NU, .stop_gradient = true, .feedback = feedback},
             .head = sgd},
    };
    test_model_open(&f.m, &f.options, 12, 4);
    for (int i = 0; i < SLATES; i++) {
        struct slate *s = &f.slates[i];
        *s = (struct slate){.kind = SLATE_EARLY, .user = (uint32_t)i, .n_items = ITEMS};
        s->n_history = s->n_newest = 2;
        s->history[0] = (uint32_t)i;
        s->history[1] = 5;
        for (int k = 0; k < ITEMS; k++)
            s->items[k] = (struct slate_item){.item = (uint32_t)(3 * i + k),
                                              .position = (int16_t)k,
                                              .shown = 1,
                                              .labels = (uint32_t)((i + k) % 3)};
        for (int k = 0; k < SLATE_ITEMS_MAX; k++)
            for (int t = 0; t < T; t++)
                f.scores[i][k][t] = NAN;
    }
}

static int teardown(void **state)
{
    (void)state;
    test_model_close(&f.m);
    return 0;
}

static void step(void *arg)
{
    (void)arg;
    f.report = two_tower_learn_slates(f.m.model, f.n, f.slates, &f.scores[0][0][0], NULL);
    assert_false(f.report.skipped);
}

static bool column_moved(const struct test_step *s, const char *name)
{
    const struct column *c = test_column(&f.m, name);
    for (size_t k = 0; k < c->n * c->unit / sizeof(float); k++)
        if (test_step_gradient(s, &f.m, c, k) != 0)
            return true;
    return false;
}

static void slates_of_kind(enum slate_kind kind)
{
    for (int i = 0; i < SLATES; i++)
        f.slates[i].kind = (uint8_t)kind;
}

static const enum delayed_feedback_mode modes[] = {DELAYED_FEEDBACK_NONE, DELAYED_FEEDBACK_FNW,
                                                   DELAYED_FEEDBACK_FNC, DELAYED_FEEDBACK_ES_DFM};
enum { MODES = sizeof modes / sizeof *modes };

static void
each_kind_of_slate_teaches_the_head_in_its_modes_and_the_towers_when_closed(void **state)
{
    static const enum slate_kind kinds[] = {SLATE_CLOSED, SLATE_EARLY, SLATE_LATE_POSITIVE};
    (void)state;
    for (int mode = 0; mode < MODES; mode++) {
        for (int kind = 0; kind < 3; kind++) {
            struct test_step s;
            const bool closed = kinds[kind] == SLATE_CLOSED;
            open_with(modes[mode]);
            slates_of_kind(kinds[kind]);
            test_step_take(&s, &f.m, step, NULL);
            const bool learns = closed == (modes[mode] == DELAYED_FEEDBACK_NONE);
            assert_int_equal(column_moved(&s, "model.heads"), learns);
            assert_int_equal(f.report.term[OBJECTIVE_RANKER].n > 0, learns);
            assert_int_equal(column_moved(&s, "item.vector"), closed);
            assert_int_equal(f.report.term[OBJECTIVE_PREFERENCE].n > 0, closed);
            test_step_free(&s, &f.m);
            teardown(NULL);
        }
    }
    open_with(DELAYED_FEEDBACK_NONE); // for the teardown
}

// The gradient of the head a second time: the vectors from the interface, labels and weights from
// model/delayed_feedback.h, the loss as a mean over the pairs that are left.
static void assert_head(const struct test_step *s, enum delayed_feedback_mode mode,
                        const struct late_arrivals *late)
{
    enum { ROWS = SLATES * ITEMS };
    static const struct light_ranker_shape shape = {D, NU, T};
    static char memory[1 << 18];
    struct arena arena = {memory, sizeof memory, 0};
    float Q[SLATES * D], V[ROWS * D], label[ROWS * T], weight[ROWS * T];
    int first[SLATES + 1] = {0};
    uint8_t surface[SLATES] = {0};
    int16_t position[ROWS];
    for (int i = 0; i < SLATES; i++) {
        struct example e = {.user = f.slates[i].user, .n_history = 2, .n_newest = 2};
        float q[D + 1], v[D + 1];
        memcpy(e.history, f.slates[i].history, sizeof e.history);
        two_tower_queries(f.m.model, 1, &e, NULL, q);
        memcpy(Q + i * D, q, D * sizeof *q);
        for (int k = 0; k < ITEMS; k++) {
            two_tower_items(f.m.model, 1, &f.slates[i].items[k].item, v);
            memcpy(V + (i * ITEMS + k) * D, v, D * sizeof *v);
            position[i * ITEMS + k] = f.slates[i].items[k].position;
        }
        first[i + 1] = first[i] + ITEMS;
    }
    const size_t size = light_ranker_size(&shape);
    const struct column *heads = test_column(&f.m, "model.heads");
    const float *dense = column_at(heads, 0);
    float *ddense = calloc(size, sizeof *ddense);
    struct light_ranker r;
    const struct light_ranker_batch batch = {SLATES, first, Q, V, surface, position, NULL};
    light_ranker_open(&r, &shape, SLATES, ROWS, &arena);
    light_ranker_forward(&r, dense, &batch);
    for (int i = 0; i < SLATES; i++)
        delayed_feedback_slate(mode, late, T, &f.slates[i], r.Z + first[i] * T,
                               label + first[i] * T, weight + first[i] * T);
    const struct light_ranker_options options = {1.5f * SLATES, 0, {1, 1}};
    const struct light_ranker_loss loss = light_ranker_loss(&r, &options, &batch, label, weight);
    light_ranker_backward(&r, dense, &batch, ddense, NULL, NULL);
    assert_true(fabs(f.report.term[OBJECTIVE_RANKER].loss - SLATES * loss.bce) < 1e-5);
    bool any = false;
    for (size_t k = 0; k < size; k++) {
        const float gradient = test_step_gradient(s, &f.m, heads, k);
        assert_true(fabsf(gradient - ddense[k]) < 1e-5f);
        any = any || gradient != 0;
    }
    assert_true(any);
    free(ddense);
}

// The column's only unit ends with the counts.
static struct late_arrivals *late_counts(void)
{
    const struct column *c = test_column(&f.m, "model.objectives");
    return (struct late_arrivals *)(void *)(c->base + c->unit - sizeof(struct late_arrivals));
}

static void the_head_learns_the_mean_over_pairs_of_what_the_mode_makes_of_them(void **state)
{
    (void)state;
    for (int mode = 0; mode < MODES; mode++) {
        struct test_step s;
        open_with(modes[mode]);
        if (modes[mode] == DELAYED_FEEDBACK_NONE)
            slates_of_kind(SLATE_CLOSED);
        f.slates[1].items[2].shown = 0;
        *late_counts() = (struct late_arrivals){.early = {30, 2}, .late = {3, 40}};
        const struct late_arrivals late = *late_counts();
        test_step_take(&s, &f.m, step, NULL);
        assert_head(&s, modes[mode], &late);
        test_step_free(&s, &f.m);
        teardown(NULL);
    }
    open_with(DELAYED_FEEDBACK_NONE);
}

static void late_arrivals_are_counted_after_they_were_learned_from(void **state)
{
    (void)state;
    open_with(DELAYED_FEEDBACK_ES_DFM);
    struct late_arrivals expected = {0};
    for (int round = 0; round < 2; round++) {
        slates_of_kind(round ? SLATE_LATE_POSITIVE : SLATE_EARLY);
        step(NULL);
        for (int i = 0; i < SLATES; i++)
            late_arrivals_count(&expected, T, &f.slates[i]);
        assert_memory_equal(late_counts(), &expected, sizeof expected);
    }
    assert_true(expected.early[0] > 1 && expected.late[1] > 1);
    teardown(NULL);

    // Whoever waits for the end has no use for them.
    open_with(DELAYED_FEEDBACK_NONE);
    step(NULL);
    assert_memory_equal(late_counts(), &(struct late_arrivals){0}, sizeof(struct late_arrivals));
}

// A request scored by two rankers is there twice; its labels count once.
static void labels_seen_before_teach_nothing(void **state)
{
    struct test_step s;
    (void)state;
    open_with(DELAYED_FEEDBACK_NONE);
    slates_of_kind(SLATE_CLOSED);
    for (int i = 0; i < SLATES; i++)
        f.slates[i].repeated = 1;
    test_step_take(&s, &f.m, step, NULL);
    assert_false(column_moved(&s, "model.heads"));
    test_step_free(&s, &f.m);
}

#define TEST(name) cmocka_unit_test_teardown(name, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(each_kind_of_slate_teaches_the_head_in_its_modes_and_the_towers_when_closed),
        TEST(the_head_learns_the_mean_over_pairs_of_what_the_mode_makes_of_them),
        TEST(late_arrivals_are_counted_after_they_were_learned_from),
        TEST(labels_seen_before_teach_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
