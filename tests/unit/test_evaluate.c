// SPDX-License-Identifier: Apache-2.0
#include "pipeline/evaluate.h"

#include <math.h>

#include "model/tables.h"
#include "tests/unit/core_fixture.h"

enum { ITEMS = 150, USERS = 10, CHUNK = 300, DIM = 4 };

static struct fixture {
    struct columns columns;
    struct rows rows;
    struct evaluator *evaluator;
    struct example list[CHUNK];
    struct rng rng;
} f;

static struct evaluator_options options;

static int setup(void **state)
{
    (void)state;
    memset(&f, 0, sizeof f);
    options =
        (struct evaluator_options){.sampling = 1, .popularity_half_life = 50, .chunk_max = CHUNK};
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    evaluator_close(f.evaluator);
    rows_close(&f.rows);
    columns_close(&f.columns);
    return 0;
}

static void open_empty(void)
{
    const struct two_tower_options model = core_model();
    const struct rows_options rows = {
        .items_max = 400, .users_max = USERS, .admit_items = 1, .admit_users = 1};
    assert_int_equal(columns_open(&f.columns, 0), 0);
    assert_int_equal(rows_open(&f.rows, &f.columns, &rows, &model), 0);
    assert_int_equal(evaluator_open(&f.evaluator, &f.columns, &f.rows, &options), 0);
    f.rng = (struct rng){31, 0};
}

static void open_with_items(uint64_t items)
{
    open_empty();
    for (uint64_t i = 0; i < items; i++) {
        const struct id id = core_id("i", i);
        assert_int_equal(rows_item(&f.rows, &id, 0), i);
    }
    for (uint64_t i = 0; i < USERS; i++) {
        const struct id id = core_id("u", i);
        assert_int_equal(rows_user(&f.rows, &id, 0), i);
    }
}

// Examples with histories in which items come again, the target often among them.
static void make_examples(int n, uint64_t items, bool negatives)
{
    for (int i = 0; i < n; i++) {
        struct example *e = &f.list[i];
        *e = (struct example){.user = (uint32_t)rng_below(&f.rng, USERS),
                              .item = (uint32_t)rng_below(&f.rng, 1 + rng_below(&f.rng, items)),
                              .value = 1,
                              .positive = !negatives || rng_below(&f.rng, 3) > 0,
                              .n_history = (uint8_t)rng_below(&f.rng, 7)};
        e->n_newest = e->n_history > 0;
        for (int k = 0; k < e->n_history; k++)
            e->history[k] = rng_below(&f.rng, 3) ? (uint32_t)rng_below(&f.rng, items) : e->item;
    }
}

static void learn(int steps, uint64_t items)
{
    for (int step = 0; step < steps; step++) {
        make_examples(8, items, false);
        two_tower_learn(f.rows.model, 8, f.list, NULL);
    }
}

// The same by brute force, in double and one by one.

struct oracle {
    size_t n;
    struct id ids[400];
    double popularity[400];
    double engaged_at[400][1000]; // example numbers
    int n_engaged[400];
    uint64_t examples;
    struct evaluation total;
};

static struct oracle oracle;

static double vector_score(const float *q, const struct id *id, const struct example *e)
{
    const int64_t row = id_table_find(&f.rows.items, id);
    struct bonus bonuses[HISTORY_MAX];
    float v[DIM + 1];
    double score = 0;
    if (row >= 0)
        two_tower_items(f.rows.model, 1, (const uint32_t[]){(uint32_t)row}, v);
    else
        two_tower_unseen_item(f.rows.model, id, v);
    for (int i = 0; i <= DIM; i++)
        score += (double)q[i] * (double)v[i];
    for (int n = two_tower_bonuses(f.rows.model, e, bonuses); n-- > 0;)
        if (row >= 0 && bonuses[n].row == row)
            score += (double)bonuses[n].score;
    return score;
}

static double rank_of(const double *scores, size_t n, size_t target, double tolerance)
{
    double rank = 0;
    for (size_t i = 0; i < n; i++)
        if (i != target)
            rank +=
                fabs(scores[i] - scores[target]) <= tolerance ? 0.5 : scores[i] > scores[target];
    return rank;
}

static void oracle_score(int n)
{
    double popularity[400];
    for (size_t i = 0; i < oracle.n; i++) {
        popularity[i] = 0;
        for (int k = 0; k < oracle.n_engaged[i]; k++)
            popularity[i] += exp2(-((double)oracle.examples - oracle.engaged_at[i][k]) /
                                  options.popularity_half_life);
    }
    for (int x = 0; x < n; x++) {
        const struct example *e = &f.list[x];
        const struct id id = id_table_id(&f.rows.items, e->item);
        size_t target = 0;
        while (target < oracle.n && oracle.ids[target].hash != id.hash)
            target++;
        if (!e->positive || target == oracle.n)
            continue;
        float q[DIM + 1];
        double scores[400], sum = 0;
        two_tower_queries(f.rows.model, 1, e, NULL, q);
        for (size_t i = 0; i < oracle.n; i++)
            scores[i] = vector_score(q, &oracle.ids[i], e);
        for (size_t i = 0; i < oracle.n; i++)
            sum += exp(scores[i] - scores[target]);
        const double rank = rank_of(scores, oracle.n, target, 1e-7);
        const double popular = rank_of(popularity, oracle.n, target, 1e-12);
        oracle.total.n++;
        oracle.total.recall_10 += rank < 10;
        oracle.total.recall_100 += rank < 100;
        oracle.total.ndcg_10 += rank < 10 ? 1 / log2(rank + 2) : 0;
        oracle.total.log_loss += log(sum);
        oracle.total.popularity_recall_10 += popular < 10;
        oracle.total.popularity_recall_100 += popular < 100;
    }
    for (int x = 0; x < n; x++) {
        const struct id id = id_table_id(&f.rows.items, f.list[x].item);
        for (size_t i = 0; f.list[x].positive && i < oracle.n; i++)
            if (oracle.ids[i].hash == id.hash)
                oracle.engaged_at[i][oracle.n_engaged[i]++] = (double)oracle.examples;
        oracle.examples += f.list[x].positive;
    }
}

static void oracle_open(const struct id *ids, size_t n)
{
    memset(&oracle, 0, sizeof oracle);
    oracle.n = n;
    memcpy(oracle.ids, ids, n * sizeof *ids);
}

static void assert_like_oracle(void)
{
    const struct evaluation t = evaluator_total(f.evaluator);
    assert_true(t.n == oracle.total.n);
    assert_true(t.recall_10 == oracle.total.recall_10);
    assert_true(t.recall_100 == oracle.total.recall_100);
    assert_true(fabs(t.ndcg_10 - oracle.total.ndcg_10) < 1e-9 * t.n);
    assert_true(fabs(t.log_loss - oracle.total.log_loss) < 1e-5 * t.n);
    assert_true(t.popularity_recall_10 == oracle.total.popularity_recall_10);
    assert_true(t.popularity_recall_100 == oracle.total.popularity_recall_100);
}

static struct id ids[400];
static char texts[400][8];

// Numbers from..to - 1 become ids[at] and on.
static void make_ids(size_t at, unsigned from, unsigned to)
{
    for (unsigned i = from; i < to; i++, at++) {
        const int size = snprintf(texts[at], sizeof texts[at], "i%u", i);
        ids[at] = id_of_text(texts[at], (size_t)size);
    }
}

static void figures_are_those_of_brute_force(void **state)
{
    (void)state;
    open_with_items(ITEMS);
    make_ids(0, 0, ITEMS);
    oracle_open(ids, ITEMS);
    learn(60, ITEMS);
    for (int chunk = 0; chunk < 4; chunk++) {
        make_examples(70 + chunk, ITEMS, true);
        evaluator_score(f.evaluator, 70 + chunk, f.list, NULL);
        oracle_score(70 + chunk);
        assert_like_oracle();
        learn(10, ITEMS);
    }
    // The figures say something: not all the same, and repeats were served.
    const struct evaluation t = evaluator_total(f.evaluator);
    assert_true(t.n > 150 && t.recall_10 > 5 && t.recall_10 < t.recall_100 && t.recall_100 < t.n);
    assert_true(t.popularity_recall_10 > 0 && t.popularity_recall_10 < t.popularity_recall_100);
}

static void items_of_the_corpus_compete_before_they_are_seen(void **state)
{
    (void)state;
    // 100 items have rows; the corpus is 60 of them and, before them, 300 others: more than a
    // block.
    make_ids(0, 100, 400);
    make_ids(300, 40, 100);
    options.corpus = ids;
    options.corpus_n = 360;
    open_with_items(100);
    oracle_open(ids, 360);
    learn(40, 100);
    for (int chunk = 0; chunk < 3; chunk++) {
        make_examples(60, 100, false); // some of items that are not of the corpus
        evaluator_score(f.evaluator, 60, f.list, NULL);
        oracle_score(60);
        assert_like_oracle();
    }
    assert_true(evaluator_total(f.evaluator).n > 10 && evaluator_total(f.evaluator).n < 170);
}

// Gives every item the vector and the state of item 0.
static void make_items_equal(void)
{
    const struct tables *t = two_tower_tables(f.rows.model);
    for (size_t i = 1; i < t->item_vector.n; i++) {
        memcpy(t->item_vector.base + i * t->item_vector.unit, t->item_vector.base,
               t->item_vector.unit);
        memcpy(t->item_state.base + i * t->item_state.unit, t->item_state.base, t->item_state.unit);
    }
}

static void ties_count_at_the_middle(void **state)
{
    static const struct {
        uint64_t items;
        double ndcg; // 0: the rank is not below 10
    } cases[] = {{1, 1}, {2, 0.75646}, {19, 0.28906}, {20, 0.28380}, {21, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (i)
            teardown(state);
        setup(state);
        open_with_items(cases[i].items);
        make_items_equal();
        // Different queries, no history: the items are level, as is their popularity.
        f.list[0] = (struct example){.user = 3, .item = 0, .positive = 1};
        f.list[1] =
            (struct example){.user = 4, .item = (uint32_t)cases[i].items - 1, .positive = 1};
        evaluator_score(f.evaluator, 2, f.list, NULL);
        const struct evaluation t = evaluator_total(f.evaluator);
        const bool hit = cases[i].ndcg > 0;
        // rank = (items - 1) / 2: 0, 0.5, 9, 9.5, 10
        assert_true(t.n == 2 && t.recall_10 == 2 * hit && t.popularity_recall_10 == 2 * hit);
        const double rank = (double)(cases[i].items - 1) / 2;
        assert_true(fabs(t.ndcg_10 / 2 - (hit ? 1 / log2(rank + 2) : 0)) < 1e-12);
        assert_true(fabs(t.log_loss / 2 - log((double)cases[i].items)) < 1e-5);
        if (i > 0)
            assert_true(fabs(t.ndcg_10 / 2 - cases[i].ndcg) < 1e-4);
    }
}

static void scoring_changes_only_the_evaluators_own_columns(void **state)
{
    (void)state;
    open_with_items(ITEMS);
    learn(5, ITEMS);
    struct core_copy copy;
    core_copy_take(&copy, &f.columns);
    make_examples(100, ITEMS, true);
    evaluator_score(f.evaluator, 100, f.list, NULL);
    for (int i = 0; i < f.columns.n; i++) {
        const struct column *c = f.columns.list[i];
        const bool same = c->n == copy.units[i] && !memcmp(c->base, copy.bytes[i], c->n * c->unit);
        assert_int_equal(same, strncmp(c->name, "eval.", 5) != 0);
    }
    core_copy_free(&copy);
}

static void a_share_of_a_chunk_is_evenly_spaced(void **state)
{
    (void)state;
    options.sampling = 0.25;
    open_with_items(ITEMS);
    make_items_equal();
    const struct tables *t = two_tower_tables(f.rows.model);
    ((struct item_state *)(void *)t->item_state.base)[0].bias = 5; // item 0 is always first
    for (int i = 0; i < 256; i++)
        f.list[i] = (struct example){.user = 1, .item = i % 4 == 3 ? 0 : 7, .positive = 1};
    evaluator_score(f.evaluator, 256, f.list, NULL);
    assert_true(evaluator_total(f.evaluator).n == 64);
    assert_true(evaluator_total(f.evaluator).recall_10 == 64);
}

static void small_shares_wait_and_none_is_lost(void **state)
{
    (void)state;
    options.sampling = 0.3;
    open_with_items(ITEMS);
    double positives = 0;
    for (int chunk = 0; chunk < 50; chunk++) {
        make_examples(40, ITEMS, true);
        for (int i = 0; i < 40; i++)
            positives += f.list[i].positive;
        evaluator_score(f.evaluator, 40, f.list, NULL);
        const double owed = positives * 0.3 - evaluator_total(f.evaluator).n;
        assert_true(owed > -1e-6 && owed < 41);
    }
    assert_true(evaluator_total(f.evaluator).n > 300);
    // Nothing is asked for: nothing is scored.
    evaluator_score(f.evaluator, 0, f.list, NULL);
}

static void the_window_halves_in_5000_examples(void **state)
{
    (void)state;
    open_with_items(5);
    for (int chunk = 0; chunk < 40; chunk++) {
        for (int i = 0; i < 250; i++)
            f.list[i] = (struct example){.user = 1, .item = 2, .positive = chunk < 20};
        evaluator_score(f.evaluator, 250, f.list, NULL);
    }
    // 5,000 examples: sum of 2^(-i / 5000), i < 5000.
    const double expected = 0.5 / (1 - exp2(-1.0 / 5000));
    assert_true(evaluator_total(f.evaluator).n == 5000);
    assert_true(fabs(evaluator_window(f.evaluator).n - expected) < 1e-6);
    assert_true(fabs(evaluator_window(f.evaluator).recall_10 - expected) < 1e-6);
    for (int i = 0; i < 250; i++)
        f.list[i] = (struct example){.user = 1, .item = 2, .positive = 1};
    for (int chunk = 0; chunk < 20; chunk++)
        evaluator_score(f.evaluator, 250, f.list, NULL);
    assert_true(fabs(evaluator_window(f.evaluator).n - 1.5 * expected) < 1e-6);
}

static void a_row_handed_out_again_does_not_inherit_popularity(void **state)
{
    (void)state;
    open_with_items(30);
    for (int i = 0; i < 20; i++)
        f.list[i] = (struct example){.user = 1, .item = (uint32_t)i, .positive = 1};
    for (int round = 0; round < 5; round++)
        evaluator_score(f.evaluator, 20, f.list, NULL);
    rows_remove_item(&f.rows, 19);
    const struct id id = core_id("new", 1);
    assert_int_equal(rows_item(&f.rows, &id, 0), 19);
    const double before = evaluator_total(f.evaluator).popularity_recall_10;
    f.list[0] = (struct example){.user = 1, .item = 19, .positive = 1};
    evaluator_score(f.evaluator, 1, f.list, NULL); // it was the first of all
    assert_true(evaluator_total(f.evaluator).popularity_recall_10 == before);
}

static void a_restart_goes_on_with_the_figures(void **state)
{
    open_with_items(ITEMS);
    learn(10, ITEMS);
    make_examples(100, ITEMS, true);
    evaluator_score(f.evaluator, 100, f.list, NULL);
    struct core_copy copy;
    static struct example later[50];
    make_examples(50, ITEMS, true);
    memcpy(later, f.list, sizeof later);
    core_copy_take(&copy, &f.columns);
    evaluator_score(f.evaluator, 50, later, NULL);
    const struct evaluation total = evaluator_total(f.evaluator);
    const struct evaluation window = evaluator_window(f.evaluator);
    teardown(state);
    memset(&f, 0, sizeof f);
    open_empty();
    core_copy_restore(&copy, &f.columns);
    core_copy_free(&copy);
    assert_int_equal(rows_rebuild(&f.rows), 0);
    evaluator_score(f.evaluator, 50, later, NULL);
    assert_memory_equal(&total, &(struct evaluation[]){evaluator_total(f.evaluator)}, sizeof total);
    assert_memory_equal(&window, &(struct evaluation[]){evaluator_window(f.evaluator)},
                        sizeof window);
}

static void a_model_that_overflows_leaves_the_sums_finite(void **state)
{
    (void)state;
    open_with_items(ITEMS);
    const struct tables *tables = two_tower_tables(f.rows.model);
    for (size_t k = 0; k < DIM; k++) {
        ((float *)tables->user_vector.base)[k] = 1e30f;
        ((float *)tables->item_vector.base)[k] = 1e30f;
    }
    f.list[0] = (struct example){.positive = true}; // of user 0 and item 0
    evaluator_score(f.evaluator, 1, f.list, NULL);
    const struct evaluation window = evaluator_window(f.evaluator);
    assert_int_equal(window.n, 1);
    assert_true(isfinite(window.log_loss));
    assert_true(window.log_loss > 1000); // and the worst there is
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(figures_are_those_of_brute_force),
        TEST(items_of_the_corpus_compete_before_they_are_seen),
        TEST(ties_count_at_the_middle),
        TEST(scoring_changes_only_the_evaluators_own_columns),
        TEST(a_share_of_a_chunk_is_evenly_spaced),
        TEST(small_shares_wait_and_none_is_lost),
        TEST(the_window_halves_in_5000_examples),
        TEST(a_row_handed_out_again_does_not_inherit_popularity),
        TEST(a_restart_goes_on_with_the_figures),
        TEST(a_model_that_overflows_leaves_the_sums_finite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
