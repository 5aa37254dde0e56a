// SPDX-License-Identifier: Apache-2.0
#include "model/two_tower.h"

#include "model/kernels.h"
#include "tests/unit/test_model.h"

// Every test runs for both kinds, and for the classic one with all its parts.
enum { DIM = 8, BATCH = 6, ITEMS = 10, USERS = 5, UF = 3, IF = 2, KINDS = 2 };

static const struct example batch[BATCH] = {
    {.user = 0, .item = 1, .positive = 1, .n_history = 2, .history = {3, 2}},
    {.user = 1, .item = 1, .positive = 1, .n_history = 0},
    {.user = 2, .item = 4, .positive = 1, .n_history = 3, .history = {4, 4, 1}},
    {.user = 0, .item = 5, .positive = 1, .n_history = 1, .history = {1}},
    {.user = 3, .item = 6, .positive = 1, .n_history = 5, .history = {8, 9, 8, 2, 1}},
    {.user = 3, .item = 2, .positive = 1, .n_history = 5, .history = {6, 8, 9, 8, 2}},
};
static const float features[BATCH * UF] = {.1f, .2f, .3f, -.1f, .5f, -.9f, .4f, .4f, 0,
                                           .7f, 1,   -1,  .2f,  .3f, .4f,  -1,  0,   1};

static struct two_tower_options options_of(int kind)
{
    struct two_tower_options o = {.kind = (enum model_kind)kind,
                                  .dim = DIM,
                                  .history = 4,
                                  .repeat = 3,
                                  .batch_max = BATCH,
                                  .uniform_negatives = 4,
                                  .seed = 3,
                                  .init = 0.05f,
                                  .table = *optimizer_find("rowwise_adagrad"),
                                  .matrix = *optimizer_find("adam"),
                                  .scalar = *optimizer_find("adam"),
                                  .prior_half_life = {50, 500, 10},
                                  .logq_half_life = 500,
                                  .mask_known = true,
                                  .memory = {.capacity = 5, .drift_max = 0.2f}};
    if (kind == MODEL_TWO_TOWER) {
        o.user_features = UF;
        o.item_features = IF;
        o.hidden = 7;
        o.temperature = 0.5f;
        o.logq = o.accidental_hits = o.attention = true;
    }
    return o;
}

static const float *features_of(const struct test_model *m)
{
    return two_tower_options(m->model)->user_features ? features : NULL;
}

static void learn(struct test_model *m, int steps)
{
    for (int i = 0; i < steps; i++)
        assert_false(two_tower_learn(m->model, BATCH, batch, features_of(m)).skipped);
}

static void a_row_starts_as_a_function_of_seed_and_id_whatever_the_order(void **state)
{
    (void)state;
    for (int kind = 0; kind < KINDS; kind++) {
        const struct two_tower_options o = options_of(kind);
        struct two_tower_options other = o;
        struct test_model a, b, c;
        other.seed++;
        test_model_open(&a, &o, ITEMS, USERS);
        test_model_open(&b, &o, 0, 0);
        test_model_open(&c, &other, ITEMS, USERS);
        for (uint32_t i = ITEMS; i-- > 0;) {
            const uint32_t row = test_item(&b, i);
            const float *x = test_floats(&a.tables->item_vector, i);
            assert_memory_equal(x, test_floats(&b.tables->item_vector, row), DIM * sizeof *x);
            assert_memory_not_equal(x, test_floats(&c.tables->item_vector, i), DIM * sizeof *x);
            for (int k = 0; k < DIM; k++)
                assert_true(x[k] >= -o.init && x[k] < o.init);
        }
        for (uint32_t i = USERS; i-- > 0;) {
            const uint32_t row = test_user(&b, i);
            const float *x = test_floats(&a.tables->user_vector, i);
            assert_memory_equal(x, test_floats(&b.tables->user_vector, row), DIM * sizeof *x);
            assert_memory_not_equal(x, test_floats(&c.tables->user_vector, i), DIM * sizeof *x);
        }
        assert_memory_not_equal(test_floats(&a.tables->item_vector, 0),
                                test_floats(&a.tables->item_vector, 1), DIM * sizeof(float));
        // A user is not an item, even with the same hash.
        struct test_model d;
        test_model_open(&d, &o, 0, 0);
        const struct id id = test_id(0);
        bool created;
        const int64_t user = id_table_admit(&d.users, &id, 0, &created);
        two_tower_user_created(d.model, (uint32_t)user);
        assert_memory_not_equal(test_floats(&a.tables->item_vector, 0),
                                test_floats(&d.tables->user_vector, (size_t)user),
                                DIM * sizeof(float));
        test_model_close(&a);
        test_model_close(&b);
        test_model_close(&c);
        test_model_close(&d);
    }
}

// Item 1 and user 0 leave and come again: in everything that belongs to a row they are as in a
// model that has not learned, and a step moves them as it moves that one's.
static void a_row_remembers_nothing(int kind, const struct optimizer *optimizer)
{
    struct two_tower_options o = options_of(kind);
    struct test_model m, fresh;
    o.table = *optimizer;
    o.table.gradient_max = 1;
    test_model_open(&m, &o, ITEMS, USERS);
    test_model_open(&fresh, &o, ITEMS, USERS);
    two_tower_item_features(m.model, 1, 2, (float[]){1, 2});
    learn(&m, 3);
    id_table_remove(&m.items, 1);
    id_table_remove(&m.users, 0);
    assert_int_equal(test_item(&m, 1), 1);
    assert_int_equal(test_user(&m, 0), 0);
    // Its counts are as of the present.
    test_state(&fresh)->examples = tables_state(m.tables)->examples;
    test_item_state(&fresh, 1)->counted_at = tables_state(m.tables)->examples;
    int rows = 0, changed = 0;
    for (int i = 0; i < m.columns.n; i++) {
        const struct column *c = m.columns.list[i], *f = fresh.columns.list[i];
        const bool item = !strncmp(c->name, "item.", 5), user = !strncmp(c->name, "user.", 5);
        if ((!item && !user) || c->numbers.n == 0)
            continue;
        rows++;
        if (memcmp(column_at(c, item), column_at(f, item), c->unit) != 0)
            fail_msg("%s of kind %d with %s remembers", c->name, kind, optimizer_name(optimizer));
        // What did not leave was learned, so that there was something to remember.
        changed += memcmp(column_at(c, item ? 2 : 3), column_at(f, item ? 2 : 3), c->unit) != 0;
    }
    assert_int_equal(rows, kind == MODEL_RECIPE ? 5 : 7);
    assert_true(changed >= (strcmp(optimizer_name(optimizer), "sgd") ? 5 : 3)); // sgd keeps nothing
    const struct column *const vectors[] = {&m.tables->item_vector, &m.tables->user_vector};
    float before[2][DIM];
    for (int k = 0; k < 2; k++)
        memcpy(before[k], column_at(vectors[k], 1 - (size_t)k), sizeof before[k]);
    learn(&m, 1);
    for (int k = 0; k < 2; k++)
        assert_memory_not_equal(before[k], column_at(vectors[k], 1 - (size_t)k), sizeof before[k]);
    test_model_close(&m);
    test_model_close(&fresh);
}

static void a_row_that_is_admitted_again_remembers_nothing(void **state)
{
    (void)state;
    const struct optimizer *optimizer;
    for (int i = 0; (optimizer = optimizer_at(i)); i++)
        for (int kind = 0; kind < KINDS; kind++)
            a_row_remembers_nothing(kind, optimizer);
}

static void an_unseen_item_has_the_vector_it_would_start_with(void **state)
{
    (void)state;
    for (int kind = 0; kind < KINDS; kind++) {
        const struct two_tower_options o = options_of(kind);
        struct test_model m;
        float unseen[DIM + 1], started[DIM + 1];
        test_model_open(&m, &o, ITEMS, USERS);
        learn(&m, 2);
        const struct id id = test_id(77);
        two_tower_unseen_item(m.model, &id, unseen);
        const uint32_t row = test_item(&m, 77);
        two_tower_items(m.model, 1, &row, started);
        assert_memory_equal(unseen, started, DIM * sizeof(float));
        // The prior of the default model counts known items, and now there is one more.
        assert_true(fabsf(unseen[DIM] - started[DIM]) < 0.2f);
        test_model_close(&m);
    }
}

// Bytes at an address that is a multiple of 4 and of nothing more.
static float *elsewhere(unsigned char **memory, const void *from, size_t bytes)
{
    *memory = malloc(bytes + 64);
    assert_non_null(*memory);
    float *to = (float *)(void *)(*memory + 4);
    memcpy(to, from, bytes);
    return to;
}

static void a_view_of_copies_gives_what_the_model_gives(void **state)
{
    (void)state;
    for (int kind = 0; kind < KINDS; kind++) {
        const struct two_tower_options o = options_of(kind);
        struct test_model m;
        unsigned char *memory[2];
        test_model_open(&m, &o, ITEMS, USERS);
        for (uint32_t i = 0; i < ITEMS; i++)
            two_tower_item_features(m.model, i, 2, (float[]){(float)i, 1});
        learn(&m, 3);

        float Q[BATCH][DIM + 1], V[ITEMS][DIM + 1], q[DIM + 1], v[ITEMS][DIM + 1];
        const uint32_t rows[ITEMS] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
        struct bonus bonuses[BATCH][HISTORY_MAX], again[HISTORY_MAX];
        int n[BATCH];
        two_tower_queries(m.model, BATCH, batch, features_of(&m), &Q[0][0]);
        two_tower_items(m.model, ITEMS, rows, &V[0][0]);
        for (int i = 0; i < BATCH; i++)
            n[i] = two_tower_bonuses(m.model, &batch[i], bonuses[i]);

        const struct tables *t = m.tables;
        struct view view = two_tower_view(m.model);
        const struct model_state then = *view.state;
        view.state = &then;
        view.dense = elsewhere(&memory[0], view.dense, t->dense_size * sizeof(float));
        float rows_of[ITEMS * DIM], contexts[ITEMS * DIM] = {0};
        for (uint32_t i = 0; i < ITEMS; i++) {
            memcpy(rows_of + i * DIM, test_floats(&t->item_vector, i), DIM * sizeof *rows_of);
            if (kind == MODEL_RECIPE)
                memcpy(contexts + i * DIM, tables_item_context(t, i), DIM * sizeof *contexts);
        }
        const float *vectors = elsewhere(&memory[1], rows_of, sizeof rows_of);
        struct item_state states[ITEMS];
        float users[USERS * DIM], x[ITEMS * IF] = {0};
        memcpy(states, t->item_state.base, sizeof states);
        memcpy(users, t->user_vector.base, sizeof users);
        if (o.item_features)
            memcpy(x, t->item_features.base, sizeof x);
        learn(&m, 2); // the model goes on, the view does not

        view_items(&view, ITEMS, vectors, states, o.item_features ? x : NULL, &v[0][0]);
        for (int i = 0; i < ITEMS; i++)
            for (int k = 0; k <= DIM; k++) // one by one or together: equal but for rounding
                assert_true(fabsf(v[i][k] - V[i][k]) <= 1e-6f * (1 + fabsf(V[i][k])));
        for (int i = 0; i < BATCH; i++) {
            const float *history[HISTORY_MAX], *said[HISTORY_MAX];
            for (int k = 0; k < batch[i].n_history; k++) {
                history[k] = vectors + batch[i].history[k] * DIM;
                said[k] = contexts + batch[i].history[k] * DIM;
            }
            const struct recent recent = {batch[i].n_history, batch[i].n_newest, history, said,
                                          batch[i].actions,   batch[i].gaps};
            view_query(&view, &recent, users + batch[i].user * DIM,
                       o.user_features ? features + i * UF : NULL, q);
            assert_memory_equal(q, Q[i], sizeof q);
            assert_true(q[DIM] == 1);
            assert_int_equal(view_bonuses(&view, batch[i].n_history, batch[i].history, again),
                             n[i]);
            assert_memory_equal(again, bonuses[i], (size_t)n[i] * sizeof *again);
            assert_int_equal(n[i] > 0, kind == MODEL_RECIPE && batch[i].n_history > 0);
        }
        free(memory[0]);
        free(memory[1]);
        test_model_close(&m);
    }
}

static void unknown_users_and_missing_features_count_as_zeros(void **state)
{
    (void)state;
    for (int kind = 0; kind < KINDS; kind++) {
        const struct two_tower_options o = options_of(kind);
        struct test_model m;
        float q[DIM + 1], again[DIM + 1];
        const float zeros[DIM] = {0};
        test_model_open(&m, &o, ITEMS, USERS);
        learn(&m, 1);
        const struct view view = two_tower_view(m.model);
        view_query(&view, &(struct recent){0}, zeros, zeros, q);
        view_query(&view, &(struct recent){0}, NULL, NULL, again);
        assert_memory_equal(q, again, sizeof q);
        test_model_close(&m);
    }
}

static void a_batch_that_is_not_finite_changes_nothing(void **state)
{
    (void)state;
    for (int kind = 0; kind < KINDS; kind++) {
        const struct two_tower_options o = options_of(kind);
        const struct {
            const char *what;
            float value;
            bool item;
        } cases[] = {{"a user row", NAN, false},
                     {"an item row", NAN, true},
                     {"a user row", INFINITY, false},
                     {"an item row", 3e38f, true}};
        for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
            struct test_model m;
            struct test_copy before;
            test_model_open(&m, &o, ITEMS, USERS);
            learn(&m, 2);
            float *row = cases[c].item ? test_floats(&m.tables->item_vector, 4)
                                       : test_floats(&m.tables->user_vector, 2);
            const float was = row[3];
            row[3] = cases[c].value;
            test_copy_take(&before, &m);
            const struct model_state then = *tables_state(m.tables);
            const struct step_report report =
                two_tower_learn(m.model, BATCH, batch, features_of(&m));
            if (!report.skipped)
                fail_msg("kind %d learned from %g in %s", kind, (double)cases[c].value,
                         cases[c].what);
            // All but the one counter is what it was, to the bit.
            assert_int_equal(test_state(&m)->skipped, then.skipped + 1);
            test_state(&m)->skipped = then.skipped;
            test_copy_assert_equal(&before, &m, NULL);
            row[3] = was;
            learn(&m, 1); // nothing is left of it in the scratch memory either
            test_copy_free(&before, &m);
            test_model_close(&m);
        }
    }
}

static void a_step_is_repeated_to_the_bit(void **state)
{
    (void)state;
    for (int kind = 0; kind < KINDS; kind++) {
        const struct two_tower_options o = options_of(kind);
        struct test_model a, b;
        struct test_copy of_a;
        test_model_open(&a, &o, ITEMS, USERS);
        test_model_open(&b, &o, ITEMS, USERS);
        learn(&a, 5);
        // The other one has its columns carried over on the way, as after a restart.
        learn(&b, 3);
        struct test_model c;
        struct test_copy of_b;
        test_model_open(&c, &o, ITEMS, USERS);
        test_copy_take(&of_b, &b);
        test_copy_put_back(&of_b, &c);
        learn(&c, 2);
        test_copy_take(&of_a, &a);
        test_copy_assert_equal(&of_a, &c, NULL);
        test_copy_free(&of_a, &a);
        test_copy_free(&of_b, &b);
        test_model_close(&a);
        test_model_close(&b);
        test_model_close(&c);
    }
}

static void a_cut_is_read_as_it_was_while_steps_go_on(void **state)
{
    (void)state;
    for (int kind = 0; kind < KINDS; kind++) {
        const struct two_tower_options o = options_of(kind);
        struct test_model m;
        struct test_copy cut;
        test_model_open(&m, &o, ITEMS, USERS);
        learn(&m, 1);
        test_copy_take(&cut, &m);
        columns_cut(&m.columns);
        learn(&m, 2);
        two_tower_item_features(m.model, 3, 2, (float[]){5, 6});
        id_table_remove(&m.items, 4);
        test_item(&m, 4);
        test_item(&m, 40);
        test_user(&m, 40);
        for (int i = 0; i < m.columns.n; i++) {
            struct column *c = m.columns.list[i];
            unsigned char *swept = malloc(c->n_cut * c->unit + 1);
            assert_int_equal(c->n_cut, cut.n[i]);
            column_sweep(c, 0, c->n_cut, swept);
            if (memcmp(swept, cut.bytes[i], c->n_cut * c->unit) != 0)
                fail_msg("kind %d: column %s was changed behind the cut's back", kind, c->name);
            free(swept);
        }
        columns_cut_end(&m.columns);
        test_copy_free(&cut, &m);
        test_model_close(&m);
    }
}

static void features_fill_up_with_zeros_and_are_cut_to_their_width(void **state)
{
    (void)state;
    const struct two_tower_options o = options_of(MODEL_TWO_TOWER);
    struct test_model m;
    test_model_open(&m, &o, ITEMS, USERS);
    const float *x = test_floats(&m.tables->item_features, 2);
    two_tower_item_features(m.model, 2, 3, (float[]){1, 2, 3});
    assert_memory_equal(x, ((float[]){1, 2}), IF * sizeof *x);
    two_tower_item_features(m.model, 2, 1, (float[]){7});
    assert_memory_equal(x, ((float[]){7, 0}), IF * sizeof *x);
    two_tower_item_features(m.model, 2, 0, NULL); // says nothing about them
    assert_memory_equal(x, ((float[]){7, 0}), IF * sizeof *x);
    test_model_close(&m);
}

// The length of what DIM numbers of a row moved by, from number `from` on.
static double moved(const struct test_copy *before, const struct test_model *m,
                    const struct column *c, size_t row, size_t from)
{
    int i = 0;
    while (m->columns.list[i] != c)
        i++;
    const float *is = column_at(c, row);
    double sum = 0;
    for (size_t k = from; k < from + DIM; k++) {
        float was;
        memcpy(&was, before->bytes[i] + row * c->unit + k * sizeof was, sizeof was);
        sum += ((double)is[k] - (double)was) * ((double)is[k] - (double)was);
    }
    return sqrt(sum);
}

static void no_row_moves_further_than_the_radius_whatever_the_optimizer(void **state)
{
    (void)state;
    const struct optimizer *optimizer;
    for (int i = 0; (optimizer = optimizer_at(i)); i++)
        for (int kind = 0; kind < KINDS; kind++) {
            struct two_tower_options o = options_of(kind);
            struct test_model m;
            double furthest = 0;
            o.table = *optimizer;
            o.table.rate = 3;
            o.table.fresh = 100; // clippy_adagrad would hold back by itself
            o.table.radius = 0.01f;
            test_model_open(&m, &o, ITEMS, USERS);
            const struct tables *t = m.tables;
            for (int step = 0; step < 5; step++) {
                struct test_copy before;
                test_copy_take(&before, &m);
                learn(&m, 1);
                for (size_t row = 0; row < ITEMS; row++)
                    furthest = fmax(furthest, moved(&before, &m, &t->item_vector, row, 0));
                for (size_t row = 0; row < ITEMS && kind == MODEL_RECIPE; row++)
                    furthest = fmax(furthest, moved(&before, &m, &t->item_vector, row, DIM));
                for (size_t row = 0; row < USERS; row++)
                    furthest = fmax(furthest, moved(&before, &m, &t->user_vector, row, 0));
                test_copy_free(&before, &m);
            }
            if (!(furthest > 0.009 && furthest < 0.01 * (1 + 1e-4)))
                fail_msg("%s, kind %d: %g", optimizer_name(optimizer), kind, furthest);
            test_model_close(&m);
        }
}

static void every_kind_of_model_learns_with_every_optimizer(void **state)
{
    (void)state;
    const struct optimizer *optimizer;
    for (int i = 0; (optimizer = optimizer_at(i)); i++)
        for (int kind = 0; kind < KINDS; kind++) {
            struct two_tower_options o = options_of(kind);
            struct test_model m;
            o.table = o.matrix = o.scalar = *optimizer;
            o.table.gradient_max = o.matrix.gradient_max = 1;
            test_model_open(&m, &o, ITEMS, USERS);
            const double first = two_tower_learn(m.model, BATCH, batch, features_of(&m)).loss;
            learn(&m, 60);
            const double last = two_tower_learn(m.model, BATCH, batch, features_of(&m)).loss;
            if (!(last < first))
                fail_msg("%s, kind %d: %g, then %g", optimizer_name(optimizer), kind, first, last);
            test_model_close(&m);
        }
}

static void a_group_of_parameters_without_an_optimizer_that_works_is_refused(void **state)
{
    (void)state;
    char why[160];
    for (int kind = 0; kind < KINDS; kind++) {
        struct two_tower_options o = options_of(kind);
        assert_null(two_tower_refuses(&o, why, sizeof why));
        o.matrix.kind = NULL;
        assert_non_null(two_tower_refuses(&o, why, sizeof why));
        assert_non_null(strstr(why, "matrices"));
        o = options_of(kind);
        o.table.rate = NAN;
        assert_non_null(two_tower_refuses(&o, why, sizeof why));
        assert_non_null(strstr(why, "item rows"));
        // Only the recipe has scalars, and users that move without an optimizer.
        o = options_of(kind);
        o.scalar.rate = 0;
        assert_int_equal(!two_tower_refuses(&o, why, sizeof why), kind == MODEL_TWO_TOWER);
        o = options_of(kind);
        o.onebp = true;
        assert_int_equal(!two_tower_refuses(&o, why, sizeof why), kind == MODEL_RECIPE);
    }
}

static void dense_parameters_have_names_of_their_own_and_lie_within_the_column(void **state)
{
    (void)state;
    for (int kind = 0; kind < KINDS; kind++) {
        const struct two_tower_options o = options_of(kind);
        struct test_model m;
        struct dense_parameter p, q;
        size_t end = 0;
        int n = 0;
        test_model_open(&m, &o, 1, 1);
        for (; view_dense(&o, n, &p); n++) {
            assert_true(p.rows > 0 && p.columns > 0 && p.offset >= end);
            end = p.offset + (size_t)p.rows * (size_t)p.columns;
            for (int i = 0; i < n; i++) {
                assert_true(view_dense(&o, i, &q));
                assert_string_not_equal(p.name, q.name);
            }
        }
        assert_int_equal(n, kind == MODEL_RECIPE ? 7 : 18);
        assert_true(end <= m.tables->dense_size);
        assert_int_equal(m.tables->dense.n * DIM, 3 * m.tables->dense_size);
        test_model_close(&m);
    }
}

// The batch, with a task for each example: 0, but 1 for the examples of user 3.
static const struct example *tasks_of_batch(void)
{
    static struct example tasked[BATCH];
    memcpy(tasked, batch, sizeof tasked);
    for (int i = 0; i < BATCH; i++)
        tasked[i].task = batch[i].user == 3;
    return tasked;
}

static struct two_tower_options tasks_options(int kind, float first, float second)
{
    struct two_tower_options o = options_of(kind);
    o.tasks_named = true;
    o.objectives = (struct objective_options){.tasks = 2, .value = {first, second}};
    return o;
}

static void
values_that_were_set_are_learned_by_as_if_they_had_been_there_from_the_start(void **state)
{
    (void)state;
    for (int kind = 0; kind < KINDS; kind++) {
        const struct two_tower_options then = tasks_options(kind, 1, 1);
        const struct two_tower_options now = tasks_options(kind, 2, -0.5f);
        struct test_model from_start, set;
        struct test_copy copy;
        test_model_open(&from_start, &now, ITEMS, USERS);
        test_model_open(&set, &then, ITEMS, USERS);
        assert_int_equal(two_tower_values(set.model)->since, 0);
        assert_true(two_tower_values(set.model)->weight[1] == 1);
        two_tower_set_values(set.model, (float[]){2, -0.5f}, 7);
        assert_int_equal(two_tower_values(set.model)->since, 7);
        for (int i = 0; i < 3; i++) {
            const struct example *examples = tasks_of_batch();
            two_tower_learn(from_start.model, BATCH, examples, features_of(&from_start));
            two_tower_learn(set.model, BATCH, examples, features_of(&set));
        }
        test_copy_take(&copy, &from_start);
        test_copy_assert_equal(&copy, &set, "model.value"); // since differs
        // And not by those of the start.
        two_tower_set_values(set.model, (float[]){2, 2}, 8);
        two_tower_learn(from_start.model, BATCH, tasks_of_batch(), features_of(&from_start));
        two_tower_learn(set.model, BATCH, tasks_of_batch(), features_of(&set));
        assert_memory_not_equal(set.tables->user_vector.base, from_start.tables->user_vector.base,
                                USERS * set.tables->user_vector.unit);
        test_copy_free(&copy, &from_start);
        test_model_close(&from_start);
        test_model_close(&set);
    }
}

static void a_task_that_has_become_worth_nothing_leaves_its_rows_out_exactly(void **state)
{
    (void)state;
    for (int kind = 0; kind < KINDS; kind++) {
        const struct two_tower_options o = tasks_options(kind, 1, 1);
        struct test_model m;
        struct test_copy before;
        test_model_open(&m, &o, ITEMS, USERS);
        two_tower_learn(m.model, BATCH, tasks_of_batch(), features_of(&m));
        float user[DIM];
        memcpy(user, test_floats(&m.tables->user_vector, 3), sizeof user);
        two_tower_set_values(m.model, (float[]){1, 0}, 1);
        two_tower_learn(m.model, BATCH, tasks_of_batch(), features_of(&m));
        assert_memory_equal(user, test_floats(&m.tables->user_vector, 3), sizeof user);
        // Of nothing else in the batch, nothing at all is learned: counts go on, vectors stay.
        test_copy_take(&before, &m);
        two_tower_learn(m.model, 2, tasks_of_batch() + 4,
                        features_of(&m) ? features + 4 * UF : NULL);
        for (int i = 0; i < m.columns.n; i++) {
            const char *name = m.columns.list[i]->name;
            if (strcmp(name, "item.vector") && strcmp(name, "user.vector") &&
                strcmp(name, "item.context"))
                continue;
            if (memcmp(m.columns.list[i]->base, before.bytes[i],
                       before.n[i] * m.columns.list[i]->unit) != 0)
                fail_msg("kind %d: %s has changed", kind, name);
        }
        two_tower_set_values(m.model, (float[]){1, 1}, 2);
        two_tower_learn(m.model, BATCH, tasks_of_batch(), features_of(&m));
        assert_memory_not_equal(user, test_floats(&m.tables->user_vector, 3), sizeof user);
        test_copy_free(&before, &m);
        test_model_close(&m);
    }
}

// The score of example i before all its competitors': log P of its item among all items.
static double log_share(const struct test_model *m, int i)
{
    float q[DIM + 1], V[ITEMS][DIM + 1];
    const uint32_t rows[ITEMS] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
    struct bonus bonuses[HISTORY_MAX];
    double s[ITEMS], sum = 0;
    two_tower_queries(m->model, 1, &batch[i],
                      two_tower_options(m->model)->user_features ? features + i * UF : NULL, q);
    two_tower_items(m->model, ITEMS, rows, &V[0][0]);
    const int n = two_tower_bonuses(m->model, &batch[i], bonuses);
    for (int k = 0; k < ITEMS; k++) {
        s[k] = 0;
        for (int x = 0; x <= DIM; x++)
            s[k] += (double)q[x] * (double)V[k][x];
        for (int b = 0; b < n; b++)
            s[k] += bonuses[b].row == (uint32_t)k ? (double)bonuses[b].score : 0;
        sum += exp(s[k]);
    }
    return s[batch[i].item] - log(sum);
}

static void a_task_that_has_become_worth_less_than_nothing_is_unlearned(void **state)
{
    (void)state;
    for (int kind = 0; kind < KINDS; kind++) {
        const struct two_tower_options o = tasks_options(kind, 1, 1);
        struct test_model m;
        test_model_open(&m, &o, ITEMS, USERS);
        double share[3] = {log_share(&m, 4)};
        for (int phase = 1; phase < 3; phase++) {
            for (int i = 0; i < 30; i++)
                two_tower_learn(m.model, BATCH, tasks_of_batch(), features_of(&m));
            share[phase] = log_share(&m, 4);
            two_tower_set_values(m.model, (float[]){1, -1}, 1);
        }
        if (!(share[1] > share[0] + 0.5 && share[2] < share[1] - (kind == MODEL_RECIPE ? 1 : 0)))
            fail_msg("kind %d: log P was %g, learned %g, unlearned %g", kind, share[0], share[1],
                     share[2]);
        test_model_close(&m);
    }
}

static void without_named_tasks_there_is_no_column_of_values(void **state)
{
    (void)state;
    struct two_tower_options o = options_of(MODEL_RECIPE);
    o.objectives = (struct objective_options){.tasks = 1, .value = {1}};
    struct test_model m;
    test_model_open(&m, &o, ITEMS, USERS);
    assert_null(test_column(&m, "model.value"));
    assert_null(test_column(&m, "weight.state"));
    assert_true(two_tower_values(m.model)->weight[0] == 1);
    test_model_close(&m);
}

// ---- What a step reports.

static void measuring_changes_nothing_that_is_learned(void **state)
{
    (void)state;
    for (int kind = 0; kind < KINDS; kind++) {
        struct two_tower_options o = options_of(kind);
        struct test_model blind, seeing;
        struct test_copy copy;
        test_model_open(&blind, &o, ITEMS, USERS);
        o.measured = 1;
        test_model_open(&seeing, &o, ITEMS, USERS);
        learn(&blind, 20);
        learn(&seeing, 20);
        test_copy_take(&copy, &blind);
        test_copy_assert_equal(&copy, &seeing, NULL);
        test_copy_free(&copy, &blind);
        test_model_close(&blind);
        test_model_close(&seeing);
    }
}

// The batch's examples against its items by what is served: vectors, and the repeat term beside.
static void brute_metrics(struct test_model *m, struct batch_metrics *metrics)
{
    static const uint32_t items[] = {1, 4, 5, 6, 2}; // of the batch, each once
    enum { C = sizeof items / sizeof *items };
    float Q[BATCH * (DIM + 1)], V[C * (DIM + 1)];
    two_tower_queries(m->model, BATCH, batch, features_of(m), Q);
    two_tower_items(m->model, C, items, V);
    for (int i = 0; i < BATCH; i++) {
        struct bonus bonuses[HISTORY_MAX];
        const int n = two_tower_bonuses(m->model, &batch[i], bonuses);
        float scores[C];
        int target = 0;
        for (int c = 0; c < C; c++) {
            scores[c] = kernels->dot(DIM + 1, Q + i * (DIM + 1), V + c * (DIM + 1));
            for (int b = 0; b < n; b++)
                scores[c] += bonuses[b].row == items[c] ? bonuses[b].score : 0;
            target = items[c] == batch[i].item ? c : target;
        }
        batch_metrics_row(metrics, C, scores, target, 1);
    }
}

static void batch_metrics_are_of_the_scores_that_are_served(void **state)
{
    (void)state;
    for (int kind = 0; kind < KINDS; kind++) {
        struct two_tower_options o = options_of(kind);
        struct test_model m;
        o.measured = 1;
        o.uniform_negatives = 0;
        o.hard_negatives = 1; // mining comes later
        o.mask_known = true;  // and so do masks
        test_model_open(&m, &o, ITEMS, USERS);
        double sum = 0;
        struct dense_parameter p;
        for (int i = 0; view_dense(&o, i, &p); i++) // so that the repeat term decides
            for (int k = 0; strcmp(p.name, "repeat") == 0 && k < p.columns; k++)
                test_floats(&m.tables->dense, 0)[p.offset + (size_t)k] = 2;
        for (int step = 0; step < 12; step++) {
            struct batch_metrics expected = {0};
            brute_metrics(&m, &expected);
            const struct step_report r = two_tower_learn(m.model, BATCH, batch, features_of(&m));
            assert_true(r.measured && r.metrics.weight == BATCH);
            for (int k = 0; k < BATCH_METRICS; k++)
                assert_true(fabs(r.metrics.sum[k] - expected.sum[k]) < 1e-12);
            sum += r.metrics.sum[BATCH_AUC];
        }
        assert_true(sum > 0 && sum < 12 * BATCH);
        test_model_close(&m);
    }
}

static void a_share_of_the_steps_is_measured_by_their_numbers(void **state)
{
    (void)state;
    struct two_tower_options o = options_of(MODEL_RECIPE);
    struct test_model a, b;
    int n = 0;
    o.measured = 0.25f;
    test_model_open(&a, &o, ITEMS, USERS);
    test_model_open(&b, &o, ITEMS, USERS);
    for (int step = 0; step < 400; step++) {
        const struct step_report r = two_tower_learn(a.model, BATCH, batch, NULL);
        assert_int_equal(r.measured, two_tower_learn(b.model, BATCH, batch, NULL).measured);
        assert_true(r.measured || (r.metrics.weight == 0 && r.l2 == 0));
        n += r.measured;
        // What replays is not: it would praise what was learned a moment ago.
        assert_false(two_tower_replay(a.model, BATCH, batch).measured);
        two_tower_replay(b.model, BATCH, batch);
    }
    assert_in_range(n, 70, 130);
    test_model_close(&a);
    test_model_close(&b);
}

static double squares(size_t n, const float *x)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    return sum;
}

static void l2_is_half_of_the_squares_of_the_rows_that_are_touched(void **state)
{
    (void)state;
    for (int kind = 0; kind < KINDS; kind++) {
        struct two_tower_options o = options_of(kind);
        struct test_model m;
        o.measured = 1;
        o.uniform_negatives = 0;
        o.table.l2 = 0.5f;
        test_model_open(&m, &o, ITEMS, USERS);
        learn(&m, 5);
        // Users 2 and 3, items 4 and 6; histories of {4, 1} and {8, 9, 2}, cut at 4 events.
        double expected = 0;
        for (uint32_t user = 2; user <= 3; user++)
            expected += squares(DIM, test_floats(&m.tables->user_vector, user));
        static const uint32_t shown[] = {4, 6}, read[] = {4, 1, 8, 9, 2};
        for (int i = 0; i < 2; i++) {
            expected += squares(DIM, test_floats(&m.tables->item_vector, shown[i]));
            expected += squares(1, &test_item_state(&m, shown[i])->bias);
        }
        // The recipe updates rows of histories on their own, the classic model sums them first.
        for (int i = kind == MODEL_RECIPE ? 0 : 1; i < 5; i++)
            expected += squares(DIM, test_floats(&m.tables->item_vector, read[i]));
        for (int i = 0; i < 5 && kind == MODEL_RECIPE; i++)
            expected += squares(DIM, tables_item_context(m.tables, read[i]));
        const struct example two[] = {batch[2], batch[4]};
        const float *x = features_of(&m);
        const struct step_report r = two_tower_learn(m.model, 2, two, x);
        assert_true(fabs(r.l2 - 0.25 * expected) < 1e-6 * expected);
        test_model_close(&m);
    }
}

static void the_gradient_of_retrieval_has_the_norms_of_what_the_rows_move(void **state)
{
    (void)state;
    struct two_tower_options o = options_of(MODEL_RECIPE);
    struct test_model m;
    struct test_copy copy;
    o.table = *optimizer_find("sgd");
    o.table.rate = 1;
    test_model_open(&m, &o, ITEMS, USERS);
    test_copy_take(&copy, &m);
    // No histories: a user's row moves by the gradient of its query, an item's by that of its own.
    const struct example two[] = {{.user = 0, .item = 1, .positive = 1},
                                  {.user = 1, .item = 4, .positive = 1}};
    const struct step_report r = two_tower_learn(m.model, 2, two, NULL);
    double users = 0, items = 0;
    for (int i = 0; i < m.columns.n; i++) {
        const struct column *c = m.columns.list[i];
        double *sum = c == &m.tables->user_vector   ? &users
                      : c == &m.tables->item_vector ? &items
                                                    : NULL;
        const float *before = (const void *)copy.bytes[i], *after = test_floats(c, 0);
        for (size_t k = 0; sum && k < test_numbers(c); k++)
            *sum += pow((double)before[k] - (double)after[k], 2);
    }
    assert_true(users > 0 && items > 0);
    assert_true(r.retrieval.loss == r.loss && r.retrieval.n == 2);
    assert_true(fabs(r.retrieval.query_norm - sqrt(users)) < 1e-5 * sqrt(users));
    assert_true(fabs(r.retrieval.item_norm - sqrt(items)) < 1e-5 * sqrt(items));
    test_copy_free(&copy, &m);
    test_model_close(&m);
}

static void candidates_that_are_known_are_counted(void **state)
{
    (void)state;
    struct two_tower_options o = options_of(MODEL_RECIPE);
    struct test_model m;
    o.mask_known = true;
    test_model_open(&m, &o, ITEMS, USERS);
    // Users 0 and 3 have two items each: either is no negative of the other.
    assert_int_equal(two_tower_learn(m.model, BATCH, batch, NULL).masked, 4);
    test_model_close(&m);
    // Without the option those of one time are, all the same.
    struct example baskets[BATCH];
    memcpy(baskets, batch, sizeof batch);
    baskets[5].ts_ms = 1;
    o.mask_known = false;
    test_model_open(&m, &o, ITEMS, USERS);
    assert_int_equal(two_tower_learn(m.model, BATCH, baskets, NULL).masked, 2);
    test_model_close(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_row_starts_as_a_function_of_seed_and_id_whatever_the_order),
        cmocka_unit_test(a_row_that_is_admitted_again_remembers_nothing),
        cmocka_unit_test(an_unseen_item_has_the_vector_it_would_start_with),
        cmocka_unit_test(a_view_of_copies_gives_what_the_model_gives),
        cmocka_unit_test(unknown_users_and_missing_features_count_as_zeros),
        cmocka_unit_test(a_batch_that_is_not_finite_changes_nothing),
        cmocka_unit_test(a_step_is_repeated_to_the_bit),
        cmocka_unit_test(a_cut_is_read_as_it_was_while_steps_go_on),
        cmocka_unit_test(features_fill_up_with_zeros_and_are_cut_to_their_width),
        cmocka_unit_test(no_row_moves_further_than_the_radius_whatever_the_optimizer),
        cmocka_unit_test(every_kind_of_model_learns_with_every_optimizer),
        cmocka_unit_test(a_group_of_parameters_without_an_optimizer_that_works_is_refused),
        cmocka_unit_test(dense_parameters_have_names_of_their_own_and_lie_within_the_column),
        cmocka_unit_test(
            values_that_were_set_are_learned_by_as_if_they_had_been_there_from_the_start),
        cmocka_unit_test(a_task_that_has_become_worth_nothing_leaves_its_rows_out_exactly),
        cmocka_unit_test(a_task_that_has_become_worth_less_than_nothing_is_unlearned),
        cmocka_unit_test(without_named_tasks_there_is_no_column_of_values),
        cmocka_unit_test(measuring_changes_nothing_that_is_learned),
        cmocka_unit_test(batch_metrics_are_of_the_scores_that_are_served),
        cmocka_unit_test(a_share_of_the_steps_is_measured_by_their_numbers),
        cmocka_unit_test(l2_is_half_of_the_squares_of_the_rows_that_are_touched),
        cmocka_unit_test(the_gradient_of_retrieval_has_the_norms_of_what_the_rows_move),
        cmocka_unit_test(candidates_that_are_known_are_counted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
