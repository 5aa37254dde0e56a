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
static struct two_tower_options model;

static int setup(void **state)
{
    (void)state;
    memset(&f, 0, sizeof f);
    model = core_model();
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
    struct evaluation_groups groups;
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
        oracle.total.recall_1 += rank < 1;
        oracle.total.recall_5 += rank < 5;
        oracle.total.recall_10 += rank < 10;
        oracle.total.recall_50 += rank < 50;
        oracle.total.recall_100 += rank < 100;
        oracle.total.ndcg_10 += rank < 10 ? 1 / log2(rank + 2) : 0;
        oracle.total.log_loss += log(sum);
        oracle.total.popularity_recall_10 += popular < 10;
        oracle.total.popularity_recall_100 += popular < 100;
        // The less popular half: at least half of the items are as popular or more.
        size_t more = 0;
        for (size_t i = 0; i < oracle.n; i++)
            more += popularity[i] >= popularity[target];
        const bool tail = more >= oracle.n - oracle.n / 2;
        oracle.total.tail_n += tail;
        oracle.total.tail_recall_100 += tail && rank < 100;
        const int decile = (int)(10 * popular / (double)oracle.n);
        oracle.groups.popularity[decile].n++;
        oracle.groups.popularity[decile].hits += rank < 100;
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
    assert_true(t.recall_1 == oracle.total.recall_1);
    assert_true(t.recall_5 == oracle.total.recall_5);
    assert_true(t.recall_10 == oracle.total.recall_10);
    assert_true(t.recall_50 == oracle.total.recall_50);
    assert_true(t.tail_n == oracle.total.tail_n);
    assert_true(t.tail_recall_100 == oracle.total.tail_recall_100);
    const struct evaluation_groups groups = evaluator_groups(f.evaluator);
    assert_memory_equal(groups.popularity, oracle.groups.popularity, sizeof groups.popularity);
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
    assert_true(t.recall_1 > 0 && t.recall_1 < t.recall_5 && t.recall_5 < t.recall_10);
    assert_true(t.recall_10 < t.recall_50 && t.recall_50 < t.recall_100);
    assert_true(t.tail_n > 0 && t.tail_n < t.n && t.tail_recall_100 > 0);
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

static void recall_is_told_by_the_age_of_the_item(void **state)
{
    (void)state;
    static const int64_t hour = 3600000;
    static const struct {
        int64_t age_ms;
        int bucket;
    } cases[] = {{-5, 0},         {0, 0},           {hour - 1, 0},    {hour, 1},
                 {6 * hour, 2},   {24 * hour, 3},   {72 * hour, 4},   {168 * hour, 5},
                 {720 * hour, 6}, {2160 * hour, 7}, {8760 * hour, 8}, {99999 * hour, 8}};
    open_with_items(30); // at time 0
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const double before = evaluator_groups(f.evaluator).age[cases[i].bucket].n;
        f.list[0] = (struct example){.user = 1, .item = 7, .positive = 1, .ts_ms = cases[i].age_ms};
        evaluator_score(f.evaluator, 1, f.list, NULL);
        const struct evaluation_group group = evaluator_groups(f.evaluator).age[cases[i].bucket];
        assert_true(group.n == before + 1 && group.hits == group.n);
    }
}

static void the_target_is_of_the_tail_while_it_is_not_popular(void **state)
{
    (void)state;
    open_with_items(ITEMS);
    // 80 of 150 items are popular once: the middle one is, too.
    for (uint32_t i = 0; i < 80; i++)
        f.list[i] = (struct example){.user = 1, .item = i, .positive = 1};
    evaluator_score(f.evaluator, 80, f.list, NULL); // all were level: all are of the tail
    assert_true(evaluator_total(f.evaluator).tail_n == 80);
    f.list[0] = (struct example){.user = 1, .item = 79, .positive = 1}; // the newest: counts most
    f.list[1] = (struct example){.user = 1, .item = 120, .positive = 1};
    evaluator_score(f.evaluator, 2, f.list, NULL);
    assert_true(evaluator_total(f.evaluator).tail_n == 81);
    const struct evaluation_groups groups = evaluator_groups(f.evaluator);
    assert_true(groups.popularity[0].n == 1 && groups.popularity[7].n == 1);
}

// ---- Slates.

enum { SLATES = 200 };

static struct slate slates[SLATES];
static float scores[SLATES][SLATE_ITEMS_MAX];

static void biases_set(const float *bias, int n)
{
    const struct tables *t = two_tower_tables(f.rows.model);
    for (int i = 0; i < n; i++)
        ((struct item_state *)(void *)(t->item_state.base + (size_t)i * t->item_state.unit))->bias =
            bias[i];
}

// Scores are biases alone: rows are level but for those, queries are of a user without history.
static void open_with_biases(const float *bias, int n)
{
    open_with_items(ITEMS);
    make_items_equal();
    biases_set(bias, n);
    memset(slates, 0, sizeof slates);
}

static void slates_use(void)
{
    model.objectives =
        (struct objective_options){.slates = 16, .tasks = 1, .value = {1}, .head = model.matrix};
    model.debias = debias_defaults;
    model.debias.kind = DEBIAS_NONE;
}

// n items 0 .. n - 1, shown in this order.
static void slate_fill(int i, int n, const float *ranker)
{
    slates[i] = (struct slate){
        .user = 1, .kind = SLATE_CLOSED, .ranker = ranker != NULL, .n_items = (uint16_t)n};
    for (int k = 0; k < SLATE_ITEMS_MAX; k++)
        scores[i][k] = ranker && k < n ? ranker[k] : NAN;
    for (int k = 0; k < n; k++)
        slates[i].items[k] =
            (struct slate_item){.item = (uint32_t)k, .shown = 1, .position = (int16_t)k};
}

static struct slate_evaluation slates_score(int n)
{
    const struct slate_evaluation before = evaluator_slates_total(f.evaluator);
    evaluator_score_slates(f.evaluator, n, slates, scores[0]);
    struct slate_evaluation after = evaluator_slates_total(f.evaluator);
    for (size_t i = 0; i < sizeof after / sizeof(double); i++)
        ((double *)&after)[i] -= ((const double *)&before)[i];
    return after;
}

static void agreement_with_the_ranker_is_counted_in_and_beyond_the_slate(void **state)
{
    (void)state;
    // The model's order is 0, 1, .. 11; all else scores 0, but 20 and 21 are above all.
    float bias[22] = {12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1};
    bias[20] = bias[21] = 30;
    // The ranker swaps 4 with 5 and 9 with 11, so its order is 0 1 2 3 5 4 6 7 8 11 10 9.
    static const float ranker[12] = {.9f, .8f, .7f, .6f, .4f, .5f, .3f, .2f, .1f, -.3f, -.2f, -.1f};
    slates_use();
    open_with_biases(bias, 22);
    slate_fill(0, 12, ranker);
    const struct slate_evaluation one = slates_score(1);
    assert_true(one.n == 1 && one.overlap_5_n == 1 && one.overlap_10_n == 1);
    assert_true(fabs(one.overlap_5 - 4. / 5) < 1e-12);   // 4 is not among the ranker's
    assert_true(fabs(one.overlap_10 - 9. / 10) < 1e-12); // nor is 9
    // 1 - 6 sum d^2 / (n (n^2 - 1)), d^2 = 1 + 1 + 4 + 4
    assert_true(fabs(one.rank_correlation - (1 - 6. * 10 / (12 * 143))) < 1e-12);
    // Of all items the model's first ten are 20, 21, 0 .. 7: without 8 and 11 of the ranker's.
    assert_true(fabs(one.corpus_overlap_10 - 8. / 10) < 1e-12);
    assert_true(evaluator_total(f.evaluator).n == 0); // examples are another matter
    // The order turned round, so that the best come last: 20, 21, 11 .. 4. The ranker's first ten
    // are 0 .. 8 and 11.
    for (int i = 0; i < 12; i++)
        bias[i] = (float)(1 + i);
    biases_set(bias, 22);
    assert_true(fabs(slates_score(1).corpus_overlap_10 - 6. / 10) < 1e-12);
}

static void ties_and_small_slates_say_what_they_can(void **state)
{
    (void)state;
    static const float bias[3] = {3, 2, 1}, level[5] = {1, 1, 1, 1, 1};
    static const float three[3] = {1, 2, 3}, gaps[6] = {5, NAN, 4, 3, NAN, 2};
    slates_use();
    open_with_biases(bias, 3);
    slate_fill(0, 3, three); // the model's order turned round
    struct slate_evaluation one = slates_score(1);
    assert_true(one.overlap_5_n == 0 && one.overlap_10_n == 0); // all would be among the first
    assert_true(one.rank_correlation_n == 1 && fabs(one.rank_correlation + 1) < 1e-12);
    assert_true(one.corpus_overlap_10_n == 1 && one.corpus_overlap_10 == 1);
    slate_fill(0, 5, level); // a ranker that calls all items equal has no order
    one = slates_score(1);
    assert_true(one.n == 1 && one.rank_correlation_n == 0);
    slate_fill(0, 6, gaps); // 0 2 3 5: the model has 0 first, 2 next, and 3 and 5 level
    one = slates_score(1);
    // Ranks 0 1 2.5 2.5 and 0 1 2 3: sum ab = 2.25 + .25 + .5 + 1.5, squares 4.5 and 5.
    assert_true(fabs(one.rank_correlation - 4.5 / sqrt(4.5 * 5)) < 1e-12);
}

static void only_closed_slates_that_say_something_are_scored(void **state)
{
    (void)state;
    static const float ranker[4] = {1, 2, 3, 4};
    slates_use();
    open_with_biases(NULL, 0);
    slate_fill(0, 4, ranker);
    slates[0].kind = SLATE_EARLY;
    slate_fill(1, 4, ranker);
    slates[1].kind = SLATE_LATE_POSITIVE;
    slate_fill(2, 4, NULL); // no ranker, no estimator
    slate_fill(3, 4, ranker);
    assert_true(slates_score(4).n == 1);
}

static void a_share_of_the_slates_is_evenly_spaced_and_none_is_lost(void **state)
{
    (void)state;
    static const float up[2] = {1, 2}, down[2] = {2, 1}, bias[2] = {2, 1};
    options.sampling = 0.5;
    slates_use();
    open_with_biases(bias, 2);
    for (int i = 0; i < SLATES; i++)
        slate_fill(i, 2, i % 2 ? down : up);
    const struct slate_evaluation half = slates_score(SLATES);
    assert_true(half.n == SLATES / 2 && half.rank_correlation == half.n); // every second one
    // Small shares wait for a block of queries.
    int asked = 0;
    double scored = 0;
    for (int round = 0; round < 100; round++) {
        scored += slates_score(3).n;
        asked += 3;
        assert_true(asked * 0.5 - scored > -1e-9 && asked * 0.5 - scored < 4);
    }
    assert_true(scored > 140);
}

static void more_slates_than_a_chunk_come_in_parts(void **state)
{
    (void)state;
    static const float down[2] = {2, 1}, bias[2] = {2, 1};
    options.chunk_max = 30;
    slates_use();
    open_with_biases(bias, 2);
    for (int i = 0; i < SLATES; i++)
        slate_fill(i, 2, down);
    const struct slate_evaluation all = slates_score(SLATES);
    assert_true(all.n == SLATES && all.rank_correlation == SLATES);
}

static void a_share_of_nothing_is_no_work_at_all(void **state)
{
    (void)state;
    static const float ranker[4] = {1, 2, 3, 4};
    struct core_copy copy;
    options.sampling = 0;
    slates_use();
    model.debias.kind = DEBIAS_POSITION;
    open_with_biases(NULL, 0);
    for (int i = 0; i < SLATES; i++)
        slate_fill(i, 4, ranker);
    core_copy_take(&copy, &f.columns);
    for (int chunk = 0; chunk < 20; chunk++) {
        make_examples(100, ITEMS, true);
        evaluator_score(f.evaluator, 100, f.list, NULL);
        evaluator_score_slates(f.evaluator, SLATES, slates, scores[0]);
    }
    core_copy_assert_equal(&copy, &f.columns, NULL, NULL);
    core_copy_free(&copy);
}

static void what_is_expected_is_compared_with_what_came(void **state)
{
    (void)state;
    slates_use();
    model.objectives.value[0] = 2;
    model.debias.kind = DEBIAS_POSITION;
    model.debias.half_life = 1e9f;
    model.debias.prior_weight = 0;
    open_with_biases(NULL, 0);
    // At position 0 half of what is shown is engaged with, at 1 a quarter, at 12 nothing.
    for (int i = 0; i < 16; i++) {
        slate_fill(i, 3, NULL);
        slates[i].items[0].labels = i % 2 == 0;
        slates[i].items[1].labels = i % 4 == 0;
        slates[i].items[2].position = 12;
    }
    two_tower_learn_slates(f.rows.model, 16, slates, scores[0], NULL);
    // Now everything is, by a user with 3 engagements; one item is not shown.
    slate_fill(0, 4, NULL);
    slates[0].items[2].position = 12;
    slates[0].items[3].shown = 0;
    slates[0].n_history = 3;
    for (int k = 0; k < 4; k++)
        slates[0].items[k].labels = 1;
    struct slate_evaluation one = slates_score(1);
    const struct calibration *position = one.position[EXPECTED_CONTEXT];
    assert_true(one.n == 1 && one.overlap_5_n == 0 && one.rank_correlation_n == 0);
    static const struct {
        int bucket;
        double expected;
    } cases[] = {{0, 1}, {1, 0.5}, {BY_POSITION - 1, 0}};
    for (int i = 0; i < 3; i++) {
        const struct calibration *c = &position[cases[i].bucket];
        assert_true(c->n == 1 && c->observed == 2);
        assert_true(fabs(c->expected - cases[i].expected) < 1e-5);
    }
    const struct calibration *activity = one.activity[EXPECTED_CONTEXT];
    assert_true(activity[3].n == 3 && activity[3].observed == 6); // 3 to 4 engagements
    assert_true(fabs(activity[3].expected - 1.5) < 1e-5);
    slates[0].repeated = 1; // its labels have been seen
    assert_true(slates_score(1).n == 0);
    assert_true(evaluator_slates_window(f.evaluator).n == 1);
    slates[0].ranker = 2; // whose scores have not
    one = slates_score(1);
    assert_true(one.n == 1 && one.position[EXPECTED_CONTEXT][0].n == 0);
}

static void a_users_activity_does_not_hold_what_it_is_to_explain(void **state)
{
    (void)state;
    slates_use();
    model.debias.kind = DEBIAS_USER_MEAN;
    open_with_biases(NULL, 0);
    const int length = two_tower_history(&model); // 6
    // The engagements of this very slate have left the join before it.
    for (int i = 0; i < 40; i++)
        f.list[i] = (struct example){.user = 1, .item = 3, .positive = 1};
    evaluator_score(f.evaluator, 40, f.list, NULL);
    static const int buckets[] = {0, 1, 2, 3, 3, 4};
    for (int n = 0; n < length; n++) {
        slate_fill(0, 2, NULL);
        slates[0].n_history = (uint8_t)n;
        assert_true(slates_score(1).activity[EXPECTED_CONTEXT][buckets[n]].n == 2);
    }
    slate_fill(0, 2, NULL);
    slates[0].n_history = (uint8_t)length; // and more: 40 are known of
    assert_true(slates_score(1).activity[EXPECTED_CONTEXT][7].n == 2);
    slates[0].user = 2; // none is known of, but there are as many as that
    assert_true(slates_score(1).activity[EXPECTED_CONTEXT][4].n == 2);
}

static void the_light_ranker_expects_by_item_and_position(void **state)
{
    (void)state;
    slates_use();
    model.objectives.ranker.weight = 1;
    model.objectives.ranker.heads = 2;
    model.objectives.head.rate = 0.05f;
    open_with_items(ITEMS);
    for (int step = 0; step < 300; step++) {
        for (int i = 0; i < 16; i++) {
            slate_fill(i, 3, NULL);
            slates[i].items[0].labels = i % 2 == 0; // half; nothing below
        }
        two_tower_learn_slates(f.rows.model, 16, slates, scores[0], NULL);
    }
    slate_fill(0, 3, NULL);
    slates[0].items[2].shown = 0;
    const struct slate_evaluation one = slates_score(1);
    const struct calibration *position = one.position[EXPECTED_RANKER];
    assert_true(one.position[EXPECTED_CONTEXT][0].n == 0);
    assert_true(position[0].n == 1 && position[1].n == 1 && position[2].n == 0);
    assert_true(fabs(position[0].expected - 0.5) < 0.05);
    assert_true(position[1].expected > 0 && position[1].expected < 0.05);
    // The same item further down is expected to be worth less; one without a position is not.
    float q[DIM + 1], expected[SLATE_ITEMS_MAX];
    two_tower_queries(f.rows.model, 1, &(struct example){.user = 1}, NULL, q);
    slates[0].items[1].item = slates[0].items[2].item = 0;
    slates[0].items[2].shown = 1;
    slates[0].items[2].position = -1;
    two_tower_expected(f.rows.model, EXPECTED_RANKER, &slates[0], q, expected);
    assert_true(expected[1] < expected[0]);
    assert_true(expected[2] != expected[0] && expected[2] > 0 && expected[2] < 1);
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
        TEST(recall_is_told_by_the_age_of_the_item),
        TEST(the_target_is_of_the_tail_while_it_is_not_popular),
        TEST(agreement_with_the_ranker_is_counted_in_and_beyond_the_slate),
        TEST(ties_and_small_slates_say_what_they_can),
        TEST(only_closed_slates_that_say_something_are_scored),
        TEST(a_share_of_the_slates_is_evenly_spaced_and_none_is_lost),
        TEST(more_slates_than_a_chunk_come_in_parts),
        TEST(a_share_of_nothing_is_no_work_at_all),
        TEST(what_is_expected_is_compared_with_what_came),
        TEST(a_users_activity_does_not_hold_what_it_is_to_explain),
        TEST(the_light_ranker_expects_by_item_and_position),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
