// SPDX-License-Identifier: Apache-2.0
#include "model/recipe.h"

#include "tests/unit/test_model.h"

enum { DIM = 3, BATCH = 8, ITEMS = 9, USERS = 4, HISTORY = 4, REPEAT = 10 };

// Targets that occur twice, in histories, and in their own user's history up to three times.
static const struct example first[BATCH] = {
    {.user = 0, .item = 1, .positive = 1, .n_history = 0},
    {.user = 1, .item = 1, .positive = 1, .n_history = 0},
    {.user = 2, .item = 2, .positive = 1, .n_history = 0},
    {.user = 3, .item = 1, .positive = 1, .n_history = 0},
    {.user = 0, .item = 5, .positive = 1, .n_history = 1, .history = {1}},
    {.user = 1, .item = 6, .positive = 1, .n_history = 1, .history = {1}},
    {.user = 2, .item = 2, .positive = 1, .n_history = 1, .history = {2}},
    {.user = 3, .item = 3, .positive = 1, .n_history = 1, .history = {1}},
};
// Users 0, 1 and 2 come with more than one item at time 0; user 1 once more later.
static const struct example second[BATCH] = {
    {.user = 0, .item = 1, .positive = 1, .n_history = 2, .history = {5, 1}},
    {.user = 1, .item = 2, .positive = 1, .n_history = 0},
    {.user = 2,
     .item = 4,
     .positive = 1,
     .n_history = 5,
     .n_newest = 3,
     .history = {4, 2, 4, 2, 2},
     .actions = {1, 2, 0, 255, 1},
     .gaps = {0, 0, 0, 7, 31}},
    {.user = 0, .item = 4, .positive = 1, .n_history = 3, .history = {1, 5, 1}, .gaps = {3, 3, 9}},
    {.user = 3,
     .item = 3,
     .positive = 1,
     .n_history = 9,
     .n_newest = 6,
     .history = {7, 7, 8, 1, 3, 3, 2, 4, 3}},
    {.user = 2,
     .item = 6,
     .positive = 1,
     .n_history = 12,
     .history = {0, 4, 0, 0, 0, 0, 0, 0, 1, 2, 6, 6}},
    {.user = 1, .item = 1, .ts_ms = 1, .positive = 1, .n_history = 1, .history = {6}},
    {.user = 1, .item = 7, .positive = 1, .n_history = 2, .n_newest = 2, .history = {1, 6}},
};

static struct two_tower_options plain_options(void)
{
    struct two_tower_options o = {.kind = MODEL_RECIPE,
                                  .dim = DIM,
                                  .history = HISTORY,
                                  .repeat = REPEAT,
                                  .batch_max = BATCH,
                                  .seed = 5,
                                  .init = 0.7f,
                                  .table = *optimizer_find("sgd"),
                                  .prior_half_life = {6, 40, 3},
                                  .logq_half_life = 20};
    o.table.rate = 1;
    o.matrix = o.scalar = o.table;
    return o;
}

// ---- The loss a second time, in doubles and without cleverness, from the formulas in recipe.h.

struct fixture {
    struct test_model m;
    double count[COUNTS][ITEMS], sum[COUNTS]; // kept beside the model's
};

static void counts_add(struct fixture *f, const struct example *examples)
{
    const struct two_tower_options *o = two_tower_options(f->m.model);
    const double half_life[COUNTS] = {(double)o->prior_half_life[0], (double)o->prior_half_life[1],
                                      (double)o->prior_half_life[2], (double)o->logq_half_life};
    for (int k = 0; k < COUNTS; k++) {
        const double left = pow(0.5, BATCH / half_life[k]);
        f->sum[k] = f->sum[k] * left + BATCH;
        for (int c = 0; c < ITEMS; c++)
            f->count[k][c] *= left;
        for (int i = 0; i < BATCH; i++)
            f->count[k][examples[i].item] += 1;
    }
}

static double prior(const struct fixture *f, int k, int c)
{
    return log((f->count[k][c] + 0.5) / (f->sum[k] + 0.5 * ITEMS)) + log(ITEMS);
}

static int bucket(int k)
{
    static const int end[] = {1, 2, 4, 8, 16, 32, 64};
    int b = 0;
    while (b < 7 && k >= end[b])
        b++;
    return b;
}

static double gate(const struct recipe_dense *p, int m, int j)
{
    return exp((double)p->gate[bucket(m) * RECIPE_GATES + j]);
}

// What attention adds to a score, by the function that a snapshot's reader calls; its numbers are
// proven in test_history_encoder.c.
static double attended(const struct fixture *f, const struct example *e, int m, const float *item)
{
    const struct two_tower_options *o = two_tower_options(f->m.model);
    const struct tables *t = f->m.tables;
    const float *vectors[HISTORY_MAX], *contexts[HISTORY_MAX];
    const struct recent recent =
        recent_of(t, m, e->n_newest, e->history, e->actions, e->gaps, vectors, contexts);
    float q[DIM] = {0};
    double s = 0;
    history_encoder_query(DIM, &o->encoder, HISTORY, tables_dense(t) + recipe_encoder_offset(DIM),
                          &recent, q);
    for (int j = 0; j < DIM; j++)
        s += (double)q[j] * (double)item[j];
    return s;
}

static double score(const struct fixture *f, const struct example *e, int c)
{
    const struct two_tower_options *o = two_tower_options(f->m.model);
    const struct tables *t = f->m.tables;
    const struct recipe_dense p = recipe_dense_at(tables_dense(t), DIM);
    const int m = e->n_history < HISTORY ? e->n_history : HISTORY;
    // A basket larger than what is pooled is pooled as far as it goes; 0 stands for 1.
    const int newest = e->n_newest == 0 ? 1 : e->n_newest, g = newest < m ? newest : m;
    double s = (double)test_item_state(&f->m, (size_t)c)->bias, weights = 0;
    for (int k = 0; k < m; k++)
        weights += exp(-0.25 * k);
    for (int j = 0; j < DIM; j++) {
        double q = gate(&p, m, GATE_USER) * (double)test_floats(&t->user_vector, e->user)[j];
        for (int k = 0; k < m; k++) {
            const double w = exp(-0.25 * k) / weights;
            q += gate(&p, m, GATE_CONTEXT) * w * (double)tables_item_context(t, e->history[k])[j];
            for (int i = 0; i < DIM; i++) {
                const double x = (double)test_floats(&t->item_vector, e->history[k])[i];
                const double newest_x = k < g ? x / g : 0;
                q += gate(&p, m, GATE_NEWEST) * newest_x * (double)p.A[i * DIM + j];
                q += gate(&p, m, GATE_DECAYED) * w * x * (double)p.A[(DIM + i) * DIM + j];
                q += gate(&p, m, GATE_MEAN) * x / m * (double)p.A[(2 * DIM + i) * DIM + j];
            }
        }
        s += q * (double)test_floats(&t->item_vector, (size_t)c)[j];
    }
    if (o->encoder.layers > 0)
        s += attended(f, e, m, test_floats(&t->item_vector, (size_t)c));
    for (int k = 0; k < PRIORS; k++)
        s += (double)p.pa[k] * prior(f, k, c);
    int last = -1, times = 0;
    for (int k = 0; k < e->n_history && k < REPEAT; k++)
        if (e->history[k] == (uint32_t)c) {
            last = last < 0 ? k : last;
            times++;
        }
    const float *own = p.rho_length + 8 * bucket(e->n_history < REPEAT ? e->n_history : REPEAT);
    if (times > 0)
        s += (double)p.rho[bucket(last)] + (double)own[bucket(last)] +
             ((double)p.rho[7] + (double)own[7]) * log(times);
    return s;
}

// Whether somebody's examples i and j are of one time: then neither's item is the other's negative.
static bool one_basket(const struct example *e, int i, int j)
{
    return e[i].user == e[j].user && e[i].ts_ms == e[j].ts_ms;
}

// Which candidates are left for row i of the batch.
static bool left_for(const struct fixture *f, int i, int c)
{
    bool known = false, basket = false;
    for (int k = 0; k < BATCH; k++)
        known |= second[k].user == second[i].user && second[k].item == (uint32_t)c;
    for (int k = 0; k < BATCH; k++)
        basket |= second[k].item == (uint32_t)c && one_basket(second, i, k);
    if (two_tower_options(f->m.model)->mask_known)
        basket |= known;
    return c == (int)second[i].item || !basket;
}

static double loss_with(const struct fixture *f, bool replay)
{
    const struct two_tower_options *o = two_tower_options(f->m.model);
    struct fixture now = *f; // the chance counts this batch, the prior does not
    bool candidate[ITEMS] = {0};
    double chance[ITEMS], loss = 0;
    if (!replay) // unless it has been counted before
        counts_add(&now, second);
    for (int i = 0; i < BATCH; i++)
        candidate[second[i].item] = true;
    for (int c = 0; c < ITEMS; c++) {
        const double P = (now.count[COUNT_LOGQ][c] + 0.5) / (now.sum[COUNT_LOGQ] + 0.5 * ITEMS);
        chance[c] = o->correction == SAMPLED_NONE ? 1 : 1 - exp(-BATCH * P);
    }
    for (int i = 0; i < BATCH; i++) {
        const int y = (int)second[i].item;
        const bool corrected = o->correction == SAMPLED_LOGQ;
        const double target = score(f, &second[i], y) - (corrected ? log(chance[y]) : 0);
        double sum = exp(target);
        for (int c = 0; c < ITEMS; c++)
            if (c != y && candidate[c] && left_for(f, i, c))
                sum += exp(score(f, &second[i], c) - log(chance[c]));
        loss += log(sum) - target;
    }
    return loss;
}

static double loss_of_second(void *arg)
{
    return loss_with(arg, false);
}

// A model that has learned two batches, so that the counts of all half-lives differ, and then has
// parameters of size 1.
static void start(struct fixture *f, const struct two_tower_options *o)
{
    struct rng rng = {17, 0};
    *f = (struct fixture){0};
    test_model_open(&f->m, o, ITEMS, USERS);
    two_tower_learn(f->m.model, BATCH, first, NULL);
    counts_add(f, first);
    two_tower_learn(f->m.model, BATCH, second, NULL);
    counts_add(f, second);
    const struct tables *t = f->m.tables;
    rng_fill_uniform(&rng, test_floats(&t->item_vector, 0), ITEMS * 2 * DIM, -1, 1);
    rng_fill_uniform(&rng, test_floats(&t->user_vector, 0), USERS * DIM, -1, 1);
    rng_fill_uniform(&rng, test_floats(&t->dense, 0), recipe_dense_size(o), -1, 1);
    for (size_t i = 0; i < ITEMS; i++)
        rng_fill_uniform(&rng, &test_item_state(&f->m, i)->bias, 1, -1, 1);
}

static void a_step_is_the_gradient_of_the_loss_in_the_header(void **state)
{
    (void)state;
    const struct two_tower_options o = plain_options();
    struct fixture f;
    start(&f, &o);
    const double loss = loss_of_second(&f);
    const struct step_report report =
        test_model_assert_gradients(&f.m, BATCH, second, NULL, loss_of_second, &f);
    assert_true(fabs(report.loss - loss) < 1e-5 * loss);
    assert_int_equal(report.examples, BATCH);
    assert_int_equal(report.candidates, 6);
    test_model_close(&f.m);
}

static void a_step_of_every_correction_and_mask_is_the_gradient(void **state)
{
    (void)state;
    // Candidates are a set: MNS and COUNTED are one loss, and REFINED has its gradient.
    static const enum sampled_form forms[] = {SAMPLED_LOGQ, SAMPLED_MNS, SAMPLED_COUNTED,
                                              SAMPLED_REFINED, SAMPLED_NONE};
    for (size_t k = 0; k < sizeof forms / sizeof *forms; k++)
        for (int mask = 0; mask < 2; mask++) {
            struct two_tower_options o = plain_options();
            struct fixture f;
            o.correction = forms[k];
            o.mask_known = mask;
            start(&f, &o);
            const double loss = loss_of_second(&f);
            const struct step_report report =
                test_model_assert_gradients(&f.m, BATCH, second, NULL, loss_of_second, &f);
            if (forms[k] != SAMPLED_REFINED)
                assert_true(fabs(report.loss - loss) < 1e-5 * loss);
            test_model_close(&f.m);
        }
}

static void with_attention_a_step_is_still_the_gradient_of_the_loss(void **state)
{
    static const struct history_encoder_options encoders[] = {
        {.layers = 1, .heads = 3},
        {.layers = 1, .heads = 1, .residual = true, .gaps = true, .context = true},
        {.layers = 2,
         .heads = 3,
         .residual = true,
         .norm = true,
         .gaps = true,
         .actions = true,
         .positions = ATTENTION_POSITIONS_STANDARD},
    };
    (void)state;
    for (size_t i = 0; i < sizeof encoders / sizeof *encoders; i++) {
        struct two_tower_options o = plain_options();
        struct fixture f;
        o.encoder = encoders[i];
        start(&f, &o);
        const double loss = loss_of_second(&f);
        const struct step_report report =
            test_model_assert_gradients(&f.m, BATCH, second, NULL, loss_of_second, &f);
        assert_true(fabs(report.loss - loss) < 1e-5 * loss);
        test_model_close(&f.m);
    }
}

static void attention_begins_by_changing_nothing(void **state)
{
    (void)state;
    const struct two_tower_options plain = plain_options();
    struct two_tower_options o = plain;
    struct test_model with, without;
    float Q[2][BATCH * (DIM + 1)];
    o.encoder = (struct history_encoder_options){
        .layers = 2, .heads = 3, .residual = true, .norm = true, .gaps = true, .actions = true};
    test_model_open(&with, &o, ITEMS, USERS);
    test_model_open(&without, &plain, ITEMS, USERS);
    two_tower_queries(with.model, BATCH, second, NULL, Q[0]);
    two_tower_queries(without.model, BATCH, second, NULL, Q[1]);
    assert_memory_equal(Q[0], Q[1], sizeof Q[0]);
    // Its out-projection learns from the first step on, and everything else from the second.
    two_tower_learn(with.model, BATCH, second, NULL);
    two_tower_learn(without.model, BATCH, second, NULL);
    assert_memory_equal(with.tables->item_vector.base, without.tables->item_vector.base,
                        ITEMS * with.tables->item_vector.unit);
    two_tower_queries(with.model, BATCH, second, NULL, Q[0]);
    two_tower_queries(without.model, BATCH, second, NULL, Q[1]);
    assert_true(memcmp(Q[0], Q[1], sizeof Q[0]) != 0);
    test_model_close(&with);
    test_model_close(&without);
}

static void a_row_in_histories_and_among_candidates_is_updated_once_for_each(void **state)
{
    (void)state;
    struct two_tower_options o = plain_options();
    struct fixture f, without;
    float was[ITEMS * 2 * DIM];
    // With SGD, L2 shows how often a row was updated: it shrinks each time, by what it is then.
    o.table.l2 = 0.25f;
    o.table.rate = 1e-3f;
    start(&f, &o);
    two_tower_learn(f.m.model, BATCH, second, NULL);
    o.table.l2 = 0;
    start(&without, &o);
    memcpy(was, test_floats(&without.m.tables->item_vector, 0), sizeof was);
    two_tower_learn(without.m.model, BATCH, second, NULL);
    // Of items 0 to 8: candidates are 1 2 3 4 6 7; within HISTORY of somebody are all but 3.
    static const int updates[ITEMS] = {1, 2, 2, 1, 2, 1, 2, 2, 1};
    for (int i = 0; i < ITEMS; i++)
        for (int j = 0; j < DIM; j++) {
            const size_t at = (size_t)(i * 2 * DIM + j);
            const double shrunk = (double)test_floats(&without.m.tables->item_vector, 0)[at] -
                                  (double)test_floats(&f.m.tables->item_vector, 0)[at];
            // Between two updates it moves by about the rate.
            assert_true(fabs(shrunk / (1e-3 * 0.25) - updates[i] * (double)was[at]) < 0.01);
        }
    test_model_close(&without.m);
    test_model_close(&f.m);
}

static void a_replay_moves_vectors_but_neither_counts_nor_the_priors_weights(void **state)
{
    (void)state;
    const struct two_tower_options o = plain_options();
    struct fixture f;
    start(&f, &o);
    const struct tables *t = f.m.tables;
    const struct model_state before = *tables_state(t);
    const struct recipe_dense p = recipe_dense_at(tables_dense(t), DIM);
    float pa[PRIORS];
    memcpy(pa, p.pa, sizeof pa);
    struct item_state items[ITEMS];
    float vectors[ITEMS * 2 * DIM];
    memcpy(items, t->item_state.base, sizeof items);
    memcpy(vectors, t->item_vector.base, sizeof vectors);
    const double loss = loss_with(&f, true);
    const struct step_report report = two_tower_replay(f.m.model, BATCH, second);
    assert_true(report.replayed && !report.skipped);
    assert_true(fabs(report.loss - loss) < 1e-5 * loss);
    assert_true(memcmp(vectors, t->item_vector.base, sizeof vectors) != 0);
    assert_memory_equal(p.pa, pa, sizeof pa);
    for (size_t i = 0; i < ITEMS; i++) {
        const struct item_state *item = test_item_state(&f.m, i);
        assert_memory_equal(item->count, items[i].count, sizeof item->count);
        assert_int_equal(item->counted_at, items[i].counted_at);
    }
    const struct model_state *after = tables_state(t);
    assert_memory_equal(after->count_sum, before.count_sum, sizeof before.count_sum);
    assert_int_equal(after->examples, before.examples);
    assert_int_equal(after->steps, before.steps + 1);
    test_model_close(&f.m);
}

static void the_counts_of_a_batch_are_not_in_its_prior(void **state)
{
    (void)state;
    const struct two_tower_options o = plain_options();
    struct fixture f = {0};
    test_model_open(&f.m, &o, ITEMS, USERS);
    const struct recipe_dense p = recipe_dense_at(tables_dense(f.m.tables), DIM);
    // Before the first batch all items are equally popular and the prior is 0, so its weights have
    // no gradient; with the batch's own counts it would differ.
    two_tower_learn(f.m.model, BATCH, first, NULL);
    for (int k = 0; k < PRIORS; k++)
        assert_true(p.pa[k] == 1.0f / PRIORS);
    two_tower_learn(f.m.model, BATCH, first, NULL);
    for (int k = 0; k < PRIORS; k++)
        assert_true(p.pa[k] != 1.0f / PRIORS);
    test_model_close(&f.m);
}

static void counts_halve_with_their_half_lives(void **state)
{
    (void)state;
    struct two_tower_options o = plain_options();
    struct fixture f = {0};
    o.scalar.rate = 0.01f; // five steps of rate 1 would lead the gates to infinity
    test_model_open(&f.m, &o, ITEMS, USERS);
    for (int step = 0; step < 5; step++) {
        const struct example *examples = step % 2 ? second : first;
        two_tower_learn(f.m.model, BATCH, examples, NULL);
        counts_add(&f, examples);
    }
    const struct model_state *model = tables_state(f.m.tables);
    assert_int_equal(model->examples, 5 * BATCH);
    assert_int_equal(model->steps, 5);
    for (int k = 0; k < COUNTS; k++) {
        assert_true(fabs(model->count_sum[k] - f.sum[k]) < 1e-6 * f.sum[k]);
        for (int c = 0; c < ITEMS; c++) {
            const struct item_state *item = test_item_state(&f.m, (size_t)c);
            const double count = (double)item->count[k] *
                                 (double)count_decay(item, model->examples, count_half_life(&o, k));
            assert_true(fabs(count - f.count[k][c]) < 1e-5 * (1 + f.count[k][c]));
        }
    }
    test_model_close(&f.m);
}

// Which items a step took as candidates: those whose bias it changed.
static uint64_t drawn(struct test_model *m, int n, const struct example *examples)
{
    float before[TEST_ROWS_MAX];
    uint64_t changed = 0;
    const size_t items = m->tables->item_state.n;
    for (size_t i = 0; i < items; i++)
        before[i] = test_item_state(m, i)->bias;
    const struct step_report report = two_tower_learn(m->model, n, examples, NULL);
    for (size_t i = 0; i < items; i++)
        changed |= (uint64_t)(test_item_state(m, i)->bias != before[i]) << i;
    if (report.candidates > 1) // alone, the target is certain and teaches nothing
        assert_int_equal(report.candidates, __builtin_popcountll(changed));
    return changed;
}

static void uniform_draws_are_a_function_of_seed_and_step(void **state)
{
    (void)state;
    struct two_tower_options o = plain_options();
    struct test_model a, b, c;
    o.uniform_negatives = 12;
    o.table.rate = 0.01f; // so small that no candidate's probability becomes 0
    test_model_open(&a, &o, 60, USERS);
    test_model_open(&b, &o, 60, USERS);
    o.seed = 6;
    test_model_open(&c, &o, 60, USERS);
    // b learns others first, and more: what it draws does not depend on them.
    const uint64_t step_1 = drawn(&a, 1, &first[0]);
    const uint64_t other_1 = drawn(&b, 2, &second[4]);
    assert_int_equal(step_1 & ~UINT64_C(0xff), other_1 & ~UINT64_C(0xff));
    const uint64_t step_2 = drawn(&a, 1, &first[0]);
    assert_int_equal(step_2, drawn(&b, 1, &first[0]));
    assert_int_not_equal(step_1, step_2);
    assert_int_not_equal(step_1, drawn(&c, 1, &first[0]));
    assert_in_range(__builtin_popcountll(step_1), 7, 13);
    // A row without an owner is never a candidate.
    for (uint32_t row = 20; row < 60; row++)
        id_table_remove(&a.items, row);
    for (int i = 0; i < 20; i++)
        assert_int_equal(drawn(&a, 1, &first[0]) >> 20, 0);
    test_model_close(&a);
    test_model_close(&b);
    test_model_close(&c);
}

static void a_uniform_draw_enters_the_chance_of_every_candidate(void **state)
{
    (void)state;
    struct two_tower_options o = plain_options();
    struct test_model m;
    o.uniform_negatives = 2;
    test_model_open(&m, &o, 2, 1);
    // Two items and an empty history; rows and biases are 0, so both score 0 before correction.
    memset(test_floats(&m.tables->item_vector, 0), 0, 2 * m.tables->item_vector.unit);
    const struct example one = {.user = 0, .item = 0, .positive = 1};
    // Rates: item 0 (1.5 / 2) + 2 / 2, item 1 (0.5 / 2) + 2 / 2.
    const double chance[] = {1 - exp(-1.75), 1 - exp(-1.25)};
    const double both = log(1 + chance[0] / chance[1]);
    uint64_t step = 0;
    struct step_report report;
    do { // until item 1 is drawn as well, which is chance, but not more than a few steps away
        test_state(&m)->steps = step++;
        struct test_copy before;
        test_copy_take(&before, &m);
        report = two_tower_learn(m.model, 1, &one, NULL);
        test_copy_put_back(&before, &m);
        test_copy_free(&before, &m);
    } while (report.candidates < 2 && step < 30);
    assert_int_equal(report.candidates, 2);
    assert_true(fabs(report.loss - both) < 1e-6);
    test_model_close(&m);
}

// ---- The memory: what was a candidate of `first` or before is a column of `second`.

struct remembering {
    struct fixture f;
    struct example examples[2]; // what is learned
    struct negative_entry entry[ITEMS];
    float vector[ITEMS][DIM]; // as they were
    bool remembered[ITEMS];
    double targets; // draws that the columns are what is left of
};

static bool is_candidate(const struct remembering *m, int c)
{
    return m->examples[0].item == (uint32_t)c || m->examples[1].item == (uint32_t)c;
}

// q . v + extra of what is remembered: histories are empty, so that is all.
static double score_then(const struct remembering *m, const struct example *e, int c)
{
    const float *q = test_floats(&m->f.m.tables->user_vector, e->user);
    const struct recipe_dense p = recipe_dense_at(tables_dense(m->f.m.tables), DIM);
    const double user = gate(&p, 0, GATE_USER);
    double s = (double)m->entry[c].extra;
    for (int j = 0; j < DIM; j++)
        s += user * (double)q[j] * (double)m->vector[c][j];
    return s;
}

static double loss_of_columns(const struct remembering *m, bool remembering)
{
    const double left = pow(0.5, 2 / 20.0); // logq_half_life is 20
    double loss = 0, chance[ITEMS];
    for (int c = 0; c < ITEMS; c++) {
        const double count = m->f.count[COUNT_LOGQ][c] * left +
                             (m->examples[0].item == (uint32_t)c) +
                             (m->examples[1].item == (uint32_t)c);
        const double P = (count + 0.5) / (m->f.sum[COUNT_LOGQ] * left + 2 + 0.5 * ITEMS);
        chance[c] = 1 - exp(-(remembering ? m->targets : 2) * P);
    }
    for (int i = 0; i < 2; i++) {
        const struct example *e = &m->examples[i];
        double sum = 0;
        for (int c = 0; c < ITEMS; c++)
            if (is_candidate(m, c))
                sum += exp(score(&m->f, e, c) - log(chance[c]));
            else if (remembering && m->remembered[c])
                sum += exp(score_then(m, e, c) - log(chance[c]));
        loss += log(sum) - (score(&m->f, e, (int)e->item) - log(chance[e->item]));
    }
    return loss;
}

static double loss_remembering(void *arg)
{
    return loss_of_columns(arg, true);
}

static double loss_of_batch(void *arg)
{
    return loss_of_columns(arg, false);
}

static void a_memory_teaches_queries_and_neither_itself_nor_other_items(void **state)
{
    (void)state;
    struct two_tower_options o = plain_options();
    struct remembering m = {.targets = 2};
    o.memory = (struct negative_memory_options){.capacity = ITEMS};
    start(&m.f, &o);
    const struct test_model *model = &m.f.m;
    // Users without a history, whose items are 5 and 8; what was learned before are 1 to 7.
    m.examples[0] = (struct example){.user = 0, .item = 5, .positive = 1};
    m.examples[1] = (struct example){.user = 2, .item = 8, .positive = 1};
    const struct negative_memory *ring = column_at(&model->tables->memory_state, 0);
    assert_int_equal(ring->count, ITEMS); // 5 of the first batch, 6 of the second, 9 are kept
    for (uint32_t back = 0; back < ITEMS; back++) { // oldest first: the newest stay
        const uint32_t place = (ring->head + back) % ITEMS;
        const struct negative_entry *entry = column_at(&model->tables->memory_entry, place);
        m.entry[entry->row] = *entry;
        m.remembered[entry->row] = true;
        memcpy(m.vector[entry->row], column_at(&model->tables->memory_vector, place),
               sizeof m.vector[0]);
        m.targets += (double)entry->targets;
        assert_true(entry->uniform == 0);
    }
    assert_true(fabs(m.targets - (2 + 8 + 8 * 3.0 / 5)) < 1e-5);
    assert_true(m.remembered[1] && m.remembered[7] && m.remembered[5] && !m.remembered[8]);

    const double loss = loss_of_batch(&m);
    struct test_batch batch = {.m = &m.f.m, .n = 2, .examples = m.examples};
    struct test_step s;
    test_step_take(&s, model, test_batch_learn, &batch);
    assert_true(fabs(batch.report.loss - loss) < 1e-5 * loss);
    assert_int_equal(batch.report.candidates, 2);
    const struct tables *t = model->tables;
    test_step_assert(&s, model, "user.vector", &t->user_vector, 0, USERS * DIM, loss_remembering,
                     &m);
    test_step_assert(&s, model, "item.vector", &t->item_vector, 0, ITEMS * 2 * DIM, loss_of_batch,
                     &m);
    for (size_t i = 0; i < ITEMS; i++)
        test_step_assert(&s, model, "item.bias", &t->item_state,
                         i * t->item_state.unit / sizeof(float), 1, loss_of_batch, &m);
    test_step_free(&s, model);
    test_model_close(&m.f.m);
}

// Whether user 0's row changes.
static bool user_learns(struct fixture *f, int n, const struct example *examples)
{
    const float was = *test_floats(&f->m.tables->user_vector, 0);
    assert_false(two_tower_learn(f->m.model, n, examples, NULL).skipped);
    return *test_floats(&f->m.tables->user_vector, 0) != was;
}

static void what_left_the_catalogue_is_not_remembered(void **state)
{
    (void)state;
    struct two_tower_options o = plain_options();
    struct fixture f, without;
    o.memory = (struct negative_memory_options){.capacity = 2};
    o.table.rate = 1e-3f;
    start(&f, &o); // the newest two are those of 3 and 7, the last candidates of `second`
    o.memory.capacity = 0;
    start(&without, &o);
    const struct example one = {.user = 0, .item = 1, .positive = 1};
    // With one candidate and nothing remembered there is nothing to learn.
    assert_false(user_learns(&without, 1, &one));
    struct test_copy before;
    test_copy_take(&before, &f.m);
    assert_true(user_learns(&f, 1, &one));
    test_copy_put_back(&before, &f.m);
    const struct negative_entry *entries = column_at(&f.m.tables->memory_entry, 0);
    for (int place = 0; place < 2; place++)
        id_table_remove(&f.m.items, entries[place].row);
    assert_false(user_learns(&f, 1, &one));
    test_copy_free(&before, &f.m);
    test_model_close(&f.m);
    // Nor is what is older than allowed, and nothing at all at the beginning.
    o.memory = (struct negative_memory_options){.capacity = 9, .age_max = 2, .after = 3};
    start(&f, &o);
    assert_int_equal(test_state(&f.m)->steps, 2);
    assert_false(user_learns(&f, 1, &one)); // too early
    assert_true(user_learns(&f, 1, &one));  // of two steps ago
    assert_false(user_learns(&f, 1, &one)); // of three, and since then only the item itself
    test_model_close(&f.m);
    test_model_close(&without.m);
}

static void users_follow_what_they_engage_with_when_told_to(void **state)
{
    (void)state;
    struct two_tower_options o = plain_options();
    struct fixture f, gradient;
    start(&gradient, &o);
    o.onebp = true;
    o.onebp_beta = 0.75f;
    start(&f, &o);
    float user[USERS][DIM];
    memcpy(user, f.m.tables->user_vector.base, sizeof user);
    two_tower_learn(gradient.m.model, BATCH, second, NULL);
    two_tower_learn(f.m.model, BATCH, second, NULL);
    // Items learn as ever, and users move to where these are then, one engagement after the other.
    const struct column *item = &f.m.tables->item_vector;
    assert_memory_equal(item->base, gradient.m.tables->item_vector.base, ITEMS * item->unit);
    for (int i = 0; i < BATCH; i++)
        for (int j = 0; j < DIM; j++)
            user[second[i].user][j] =
                0.75f * user[second[i].user][j] + 0.25f * test_floats(item, second[i].item)[j];
    for (size_t u = 0; u < USERS; u++)
        for (int j = 0; j < DIM; j++)
            assert_true(fabsf(test_floats(&f.m.tables->user_vector, u)[j] - user[u][j]) < 1e-6f);
    assert_null(f.m.tables->user_slots.base);
    // What was learned before says nothing of where they are now.
    struct test_copy before;
    test_copy_take(&before, &f.m);
    two_tower_replay(f.m.model, BATCH, second);
    for (int i = 0; i < f.m.columns.n; i++)
        if (strcmp(f.m.columns.list[i]->name, "user.vector") == 0)
            assert_memory_equal(before.bytes[i], f.m.columns.list[i]->base, before.n[i]);
    test_copy_free(&before, &f.m);
    test_model_close(&f.m);
    test_model_close(&gradient.m);
}

static void a_query_is_the_numbers_worked_by_hand(void **state)
{
    (void)state;
    // d = 2. A0 = I, A1 = 2 I, A2 = ((0, 1), (10, 0)).
    static const float A[] = {1, 0, 0, 1, 2, 0, 0, 2, 0, 1, 10, 0};
    float dense[3 * 4 + 256] = {0};
    float *gates = dense + (recipe_dense_at(dense, 2).gate - dense);
    const float x[] = {1, 2}, y[] = {3, -2}, user[] = {0.5f, 0.25f};
    const float f[] = {8, 0}, none[] = {0, 0};
    const float *const history[] = {x, y}, *const silent[] = {none, none};
    const float *const contexts[] = {f, none};
    const double w = exp(-0.25);
    const double decayed[] = {(1 + 3 * w) / (1 + w), (2 - 2 * w) / (1 + w)};
    struct two_tower_options o = plain_options();
    float q[3];
    assert_true(recipe_encoder_offset(2) <= sizeof dense / sizeof *dense);
    memcpy(dense, A, sizeof A);
    o.dim = 2;
    recipe_query(&o, dense, &(struct recent){2, 1, history, silent, NULL, NULL}, user, q);
    // Newest (1, 2); mean (2, 0), which A2 turns into (0, 2).
    assert_true(fabs((double)q[0] - (0.5 + 1 + 2 * decayed[0] + 0)) < 1e-6);
    assert_true(fabs((double)q[1] - (0.25 + 2 + 2 * decayed[1] + 2)) < 1e-6);
    assert_true(q[2] == 1);
    // The same as one basket: what was the newest, (1, 2), is the mean of both, (2, 0).
    float basket[3];
    recipe_query(&o, dense, &(struct recent){2, 2, history, silent, NULL, NULL}, user, basket);
    assert_true(fabs((double)basket[0] - (double)q[0] - 1) < 1e-6);
    assert_true(fabs((double)basket[1] - (double)q[1] + 2) < 1e-6);
    // What the newest item says by itself is added with its weight.
    float said[3];
    recipe_query(&o, dense, &(struct recent){2, 1, history, contexts, NULL, NULL}, user, said);
    assert_true(fabs((double)said[0] - (double)q[0] - 8 / (1 + w)) < 1e-5);
    assert_true(said[1] == q[1]);
    // Gates of histories of two and three: of the newest doubled, of the user's own vector halved.
    gates[2 * RECIPE_GATES + GATE_NEWEST] = logf(2);
    gates[2 * RECIPE_GATES + GATE_USER] = logf(0.5f);
    float gated[3];
    recipe_query(&o, dense, &(struct recent){2, 1, history, silent, NULL, NULL}, user, gated);
    assert_true(fabs((double)gated[0] - (double)q[0] - (1 - 0.25)) < 1e-6);
    assert_true(fabs((double)gated[1] - (double)q[1] - (2 - 0.125)) < 1e-6);
    // One event: newest = decayed = mean = (1, 2).
    recipe_query(&o, dense, &(struct recent){1, 1, history, silent, NULL, NULL}, NULL, q);
    assert_memory_equal(q, ((float[]){1 + 2 + 20, 2 + 4 + 1, 1}), sizeof q);
    recipe_query(&o, dense, &(struct recent){0}, user, q);
    assert_memory_equal(q, ((float[]){0.5f, 0.25f, 1}), sizeof q);
}

static void bonuses_are_the_numbers_worked_by_hand(void **state)
{
    (void)state;
    const float rho[RECIPE_BUCKETS] = {1, 2, 4, 8, 16, 32, 64, 100};
    float own[RECIPE_BUCKETS * RECIPE_BUCKETS] = {0};
    const struct recipe_dense p = {.rho = rho, .rho_length = own};
    struct bonus bonuses[HISTORY_MAX];
    uint32_t history[HISTORY_MAX];
    for (uint32_t k = 0; k < HISTORY_MAX; k++)
        history[k] = k;
    assert_int_equal(recipe_bonuses(&p, 0, history, bonuses), 0);
    assert_int_equal(recipe_bonuses(&p, 50, history, bonuses), 50);
    for (uint32_t k = 0; k < 50; k++) {
        static const uint32_t end[] = {1, 2, 4, 8, 16, 32, 64};
        uint32_t b = 0;
        while (k >= end[b])
            b++;
        assert_int_equal(bonuses[k].row, k);
        assert_true(bonuses[k].score == rho[b]);
    }
    // Item 9 at positions 1, 2 and 5, item 3 at 0 and 4.
    const uint32_t again[] = {3, 9, 9, 7, 3, 9};
    assert_int_equal(recipe_bonuses(&p, 6, again, bonuses), 3);
    assert_true(bonuses[0].row == 3 && bonuses[1].row == 9 && bonuses[2].row == 7);
    assert_true(fabs((double)bonuses[0].score - (1 + 100 * log(2))) < 1e-4);
    assert_true(fabs((double)bonuses[1].score - (2 + 100 * log(3))) < 1e-4);
    assert_true(bonuses[2].score == 4);
    // Histories of four to seven have something of their own to say.
    own[3 * RECIPE_BUCKETS + 0] = 0.5f;
    own[3 * RECIPE_BUCKETS + RHO_TIMES] = -100;
    recipe_bonuses(&p, 6, again, bonuses);
    assert_true(fabs((double)bonuses[0].score - 1.5) < 1e-5 && bonuses[1].score == 2);
}

static void the_extra_dimension_is_the_number_worked_by_hand(void **state)
{
    (void)state;
    const float pa[] = {2, -1, 3};
    const struct recipe_dense p = {.pa = pa};
    struct two_tower_options o = plain_options();
    o.prior_half_life[0] = 100;
    o.prior_half_life[1] = 200;
    o.prior_half_life[2] = 50;
    // 200 examples after its last count: 6 has halved twice, 8 once, 16 four times.
    const struct item_state item = {.bias = 0.25f, .count = {6, 8, 16}, .counted_at = 800};
    const struct model_state model = {.examples = 1000, .count_sum = {7, 13, 20}};
    // N = 10: (1.5 + .5) / (7 + 5) * 10, (4 + .5) / (13 + 5) * 10 and (1 + .5) / (20 + 5) * 10.
    const double expected = 0.25 + 2 * log(20.0 / 12) - log(45.0 / 18) + 3 * log(15.0 / 25);
    assert_true(fabs((double)recipe_extra(&o, &p, &model, &item, 10) - expected) < 1e-6);
}

enum { WIDTH = 2 };

static const float *prediction(const struct test_model *m)
{
    return tables_dense(m->tables) + recipe_dense_size(two_tower_options(m->model));
}

static void a_new_item_starts_where_its_features_predict(void **state)
{
    (void)state;
    struct two_tower_options o = plain_options();
    struct test_model m;
    float plain[DIM], E[2][DIM];
    o.item_features = WIDTH;
    o.matrix.rate = 1.0f / 64;
    o.scalar.rate = o.table.rate = 1e-3f; // slow enough to stay where it is finite
    test_model_open(&m, &o, ITEMS, USERS);
    const struct tables *t = m.tables;
    // (3, 4) and (0, 2) of length 1; of item 8, which nobody engages with, later.
    two_tower_item_features(m.model, 1, 2, (float[]){3, 4});
    two_tower_item_features(m.model, 2, 2, (float[]){0, 2});
    memcpy(plain, test_floats(&t->item_vector, 8), sizeof plain);
    memcpy(E[0], test_floats(&t->item_vector, 1), sizeof E[0]);
    memcpy(E[1], test_floats(&t->item_vector, 2), sizeof E[1]);
    for (int j = 0; j < WIDTH * DIM; j++)
        assert_true(prediction(&m)[j] == 0);
    two_tower_learn(m.model, BATCH, first, NULL);
    // Of the targets 1, 2, 3, 5 and 6 the first two have features. From W = 0 the gradient is
    // -f^T E, and the pace is 5.
    for (int j = 0; j < DIM; j++) {
        const double W0 = 5.0 / 64 * 0.6 * (double)E[0][j];
        const double W1 = 5.0 / 64 * (0.8 * (double)E[0][j] + (double)E[1][j]);
        assert_true(fabs((double)prediction(&m)[j] - W0) < 1e-6);
        assert_true(fabs((double)prediction(&m)[DIM + j] - W1) < 1e-6);
    }
    two_tower_item_features(m.model, 8, 2, (float[]){0, -7});
    const float *started = test_floats(&t->item_vector, 8);
    for (int j = 0; j < DIM; j++)
        assert_true(fabsf(started[j] - (plain[j] - prediction(&m)[DIM + j])) < 1e-6f);
    // Told again it stays as it is, and so does an item that has been learned.
    float learned[DIM];
    memcpy(learned, test_floats(&t->item_vector, 3), sizeof learned);
    two_tower_item_features(m.model, 3, 2, (float[]){1, 1});
    assert_memory_equal(learned, test_floats(&t->item_vector, 3), sizeof learned);
    test_floats(&t->item_vector, 8)[0] += 1;
    memcpy(plain, started, sizeof plain);
    two_tower_item_features(m.model, 8, 2, (float[]){0, -3});
    assert_memory_equal(started, plain, sizeof plain);
    // The next owner of the row has none of them, nor has it numbers that are not.
    two_tower_item_created(m.model, 8);
    assert_true(test_floats(&t->item_features, 8)[1] == 0);
    two_tower_item_features(m.model, 8, 2, (float[]){1e30f, 1e30f});
    assert_true(fabsf(test_floats(&t->item_features, 8)[0] - sqrtf(0.5f)) < 1e-6f);
    test_model_close(&m);
}

static void without_features_no_bit_changes(void **state)
{
    (void)state;
    struct two_tower_options o = plain_options();
    struct test_model without, with;
    o.matrix = *optimizer_find("adam");
    o.scalar = o.matrix;
    o.table.rate = 0.01f;
    test_model_open(&without, &o, ITEMS, USERS);
    o.item_features = WIDTH;
    test_model_open(&with, &o, ITEMS, USERS);
    for (int step = 0; step < 6; step++) {
        two_tower_learn(without.model, BATCH, step % 2 ? second : first, NULL);
        two_tower_learn(with.model, BATCH, step % 2 ? second : first, NULL);
    }
    const struct tables *a = without.tables, *b = with.tables;
    assert_memory_equal(a->item_vector.base, b->item_vector.base, ITEMS * a->item_vector.unit);
    assert_memory_equal(a->item_state.base, b->item_state.base, ITEMS * a->item_state.unit);
    assert_memory_equal(a->user_vector.base, b->user_vector.base, USERS * a->user_vector.unit);
    assert_memory_equal(a->dense.base, b->dense.base, recipe_dense_size(&o) * sizeof(float));
    assert_int_equal(b->item_features.n, 0);
    for (int j = 0; j < WIDTH * DIM; j++)
        assert_true(prediction(&with)[j] == 0);
    test_model_close(&with);
    test_model_close(&without);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_query_is_the_numbers_worked_by_hand),
        cmocka_unit_test(bonuses_are_the_numbers_worked_by_hand),
        cmocka_unit_test(the_extra_dimension_is_the_number_worked_by_hand),
        cmocka_unit_test(a_step_is_the_gradient_of_the_loss_in_the_header),
        cmocka_unit_test(a_step_of_every_correction_and_mask_is_the_gradient),
        cmocka_unit_test(a_memory_teaches_queries_and_neither_itself_nor_other_items),
        cmocka_unit_test(what_left_the_catalogue_is_not_remembered),
        cmocka_unit_test(users_follow_what_they_engage_with_when_told_to),
        cmocka_unit_test(with_attention_a_step_is_still_the_gradient_of_the_loss),
        cmocka_unit_test(attention_begins_by_changing_nothing),
        cmocka_unit_test(a_row_in_histories_and_among_candidates_is_updated_once_for_each),
        cmocka_unit_test(a_replay_moves_vectors_but_neither_counts_nor_the_priors_weights),
        cmocka_unit_test(the_counts_of_a_batch_are_not_in_its_prior),
        cmocka_unit_test(counts_halve_with_their_half_lives),
        cmocka_unit_test(uniform_draws_are_a_function_of_seed_and_step),
        cmocka_unit_test(a_uniform_draw_enters_the_chance_of_every_candidate),
        cmocka_unit_test(a_new_item_starts_where_its_features_predict),
        cmocka_unit_test(without_features_no_bit_changes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
