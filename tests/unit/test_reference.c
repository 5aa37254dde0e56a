// SPDX-License-Identifier: Apache-2.0
#include "model/reference.h"

#include "tests/unit/test_model.h"

// Every test runs for both kinds, and for an odd width too.
enum { DIM_MAX = 8, BATCH = 6, ITEMS = 10, USERS = 5, UF = 3, IF = 2, SHAPES = 3 };

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

struct fixture {
    struct two_tower_options o;
    struct test_model m;
    struct reference r;
};

static struct two_tower_options options_of(int shape)
{
    struct two_tower_options o = {.kind = shape == 2 ? MODEL_TWO_TOWER : MODEL_RECIPE,
                                  .dim = shape == 1 ? 3 : DIM_MAX,
                                  .history = 4,
                                  .repeat = 3,
                                  .batch_max = BATCH,
                                  .seed = 3,
                                  .init = 0.5f,
                                  .table = *optimizer_find("rowwise_adagrad"),
                                  .matrix = *optimizer_find("adam"),
                                  .scalar = *optimizer_find("adam"),
                                  .prior_half_life = {50, 500, 10},
                                  .logq_half_life = 500};
    if (o.kind == MODEL_TWO_TOWER) {
        o.user_features = UF;
        o.item_features = IF;
        o.hidden = 7;
        o.temperature = 0.5f;
        o.attention = true;
    }
    return o;
}

static uint64_t live(const struct fixture *f)
{
    return id_table_state(&f->m.items)->live;
}

static void start(struct fixture *f, int shape)
{
    f->o = options_of(shape);
    test_model_open(&f->m, &f->o, ITEMS, USERS);
    assert_int_equal(
        reference_open(&f->r, &f->m.columns, f->m.tables, &f->o, TEST_ROWS_MAX, TEST_ROWS_MAX), 0);
    reference_begin(&f->r, live(f));
}

// A step of the model, before which its rows are saved.
static void learn(struct fixture *f, int steps)
{
    for (int step = 0; step < steps; step++) {
        for (int i = 0; i < BATCH; i++) {
            reference_save_user(&f->r, batch[i].user);
            reference_save_item(&f->r, batch[i].item);
            for (int k = 0; k < batch[i].n_history; k++)
                reference_save_item(&f->r, batch[i].history[k]);
        }
        const float *x = f->o.user_features ? features : NULL;
        assert_false(two_tower_learn(f->m.model, BATCH, batch, x).skipped);
    }
}

// Every vector, bias, prior and bonus by the model as it is now, and by the reference.
struct served {
    float q[BATCH][DIM_MAX + 1], v[ITEMS][DIM_MAX + 1];
    int n[BATCH];
    struct bonus bonuses[BATCH][HISTORY_MAX];
};

static void served_now(const struct fixture *f, struct served *s)
{
    const size_t width = (size_t)f->o.dim + 1;
    memset(s, 0, sizeof *s);
    for (int i = 0; i < BATCH; i++) {
        const float *x = f->o.user_features ? features + i * UF : NULL;
        two_tower_queries(f->m.model, 1, &batch[i], x, s->q[i]);
        s->n[i] = two_tower_bonuses(f->m.model, &batch[i], s->bonuses[i]);
        assert_true(width <= DIM_MAX + 1);
    }
    for (uint32_t row = 0; row < ITEMS; row++)
        two_tower_items(f->m.model, 1, &row, s->v[row]);
}

static void served_then(const struct fixture *f, struct served *s)
{
    const struct view view = reference_view(&f->r);
    const struct tables *t = f->m.tables;
    memset(s, 0, sizeof *s);
    for (int i = 0; i < BATCH; i++) {
        const float *vectors[HISTORY_MAX], *contexts[HISTORY_MAX];
        for (int k = 0; k < batch[i].n_history; k++) {
            vectors[k] = reference_item_vector(&f->r, batch[i].history[k]);
            contexts[k] = reference_item_context(&f->r, batch[i].history[k]);
        }
        const struct recent recent = {.n = batch[i].n_history,
                                      .newest = batch[i].n_newest,
                                      .vectors = vectors,
                                      .contexts = contexts,
                                      .actions = batch[i].actions,
                                      .gaps = batch[i].gaps};
        const float *x = f->o.user_features ? features + i * UF : NULL;
        view_query(&view, &recent, reference_user_vector(&f->r, batch[i].user), x, s->q[i]);
        s->n[i] = view_bonuses(&view, batch[i].n_history, batch[i].history, s->bonuses[i]);
    }
    for (uint32_t row = 0; row < ITEMS; row++)
        view_items(&view, 1, reference_item_vector(&f->r, row), reference_item_state(&f->r, row),
                   f->o.item_features ? column_at(&t->item_features, row) : NULL, s->v[row]);
}

static void scores_are_those_of_the_instant_however_many_steps_later(void **state)
{
    (void)state;
    for (int shape = 0; shape < SHAPES; shape++) {
        struct fixture f;
        struct served now, then;
        start(&f, shape);
        for (uint32_t i = 0; i < ITEMS; i++)
            two_tower_item_features(f.m.model, i, IF, (float[]){0.1f * (float)i, 1});
        for (int publication = 0; publication < 3; publication++) {
            learn(&f, 5);
            reference_begin(&f.r, live(&f));
            served_now(&f, &now);
            for (int steps = 0; steps < 12; steps += 4) {
                served_then(&f, &then);
                assert_memory_equal(&now, &then, sizeof now);
                learn(&f, 4);
            }
            test_item(&f.m, 100 + (uint64_t)publication); // one more of them is known
            test_user(&f.m, 100 + (uint64_t)publication);
            served_then(&f, &then);
            assert_memory_equal(&now, &then, sizeof now);
            served_now(&f, &then);
            assert_memory_not_equal(&now, &then, sizeof now);
        }
        test_model_close(&f.m);
    }
}

static void a_row_is_saved_once_for_each_publication(void **state)
{
    (void)state;
    for (int shape = 0; shape < SHAPES; shape++) {
        struct fixture f;
        start(&f, shape);
        float *item = test_floats(&f.m.tables->item_vector, 4);
        float *user = test_floats(&f.m.tables->user_vector, 2);
        for (int publication = 0; publication < 3; publication++) {
            const float first = (float)(10 * publication);
            item[0] = user[0] = test_item_state(&f.m, 4)->bias = first;
            reference_begin(&f.r, live(&f));
            for (int change = 1; change < 4; change++) {
                reference_save_item(&f.r, 4);
                reference_save_user(&f.r, 2);
                item[0] = user[0] = test_item_state(&f.m, 4)->bias = first + (float)change;
                assert_true(reference_item_vector(&f.r, 4)[0] == first);
                assert_true(reference_item_state(&f.r, 4)->bias == first);
                assert_true(reference_user_vector(&f.r, 2)[0] == first);
            }
        }
        // What has not changed is not kept at all, and read where it is.
        assert_ptr_equal(reference_item_vector(&f.r, 3), test_floats(&f.m.tables->item_vector, 3));
        assert_ptr_equal(reference_user_vector(&f.r, 1), test_floats(&f.m.tables->user_vector, 1));
        assert_ptr_equal(reference_item_state(&f.r, 3), test_item_state(&f.m, 3));
        // Far rows have no unit of their own yet.
        assert_ptr_equal(reference_item_vector(&f.r, 9), test_floats(&f.m.tables->item_vector, 9));
        test_model_close(&f.m);
    }
}

// As two_tower_item_created and two_tower_user_created do.
static void row_renewed(struct fixture *f, uint32_t item, uint64_t id, uint32_t user)
{
    id_table_remove(&f->m.items, item);
    id_table_remove(&f->m.users, user);
    assert_int_equal(test_item(&f->m, id), item);
    assert_int_equal(test_user(&f->m, id), user);
    reference_item_created(&f->r, item);
    reference_user_created(&f->r, user);
}

static void a_row_with_a_new_owner_has_that_ones_start(void **state)
{
    (void)state;
    for (int shape = 0; shape < SHAPES; shape++) {
        struct fixture f;
        start(&f, shape);
        const size_t bytes = (size_t)f.o.dim * sizeof(float);
        learn(&f, 3);
        reference_begin(&f.r, live(&f));
        learn(&f, 3); // both rows have been saved for their former owners
        row_renewed(&f, 4, 900, 2);
        float item[DIM_MAX], user[DIM_MAX];
        memcpy(item, test_floats(&f.m.tables->item_vector, 4), bytes);
        memcpy(user, test_floats(&f.m.tables->user_vector, 2), bytes);
        for (int i = 0; i < 3; i++) {
            assert_memory_equal(reference_item_vector(&f.r, 4), item, bytes);
            assert_memory_equal(reference_user_vector(&f.r, 2), user, bytes);
            assert_true(reference_item_state(&f.r, 4)->bias == 0);
            if (tables_have_contexts(f.m.tables))
                for (int k = 0; k < f.o.dim; k++)
                    assert_true(reference_item_context(&f.r, 4)[k] == 0);
            // Its clock is later than that of the reference, and its counts are 0.
            const struct view view = reference_view(&f.r);
            float v[DIM_MAX + 1];
            view_items(&view, 1, reference_item_vector(&f.r, 4), reference_item_state(&f.r, 4),
                       f.o.item_features ? (float[]){0, 0} : NULL, v);
            assert_true(isfinite(v[f.o.dim]));
            learn(&f, 2);
            assert_memory_not_equal(test_floats(&f.m.tables->item_vector, 4), item, bytes);
        }
        // A row beyond all that were there.
        const uint32_t row = test_item(&f.m, 901);
        assert_int_equal(row, ITEMS);
        reference_item_created(&f.r, row);
        assert_ptr_equal(reference_item_vector(&f.r, row),
                         test_floats(&f.m.tables->item_vector, row));
        test_model_close(&f.m);
    }
}

static void what_was_restored_from_columns_goes_on_the_same(void **state)
{
    (void)state;
    for (int shape = 0; shape < SHAPES; shape++) {
        struct fixture a, b;
        struct served x, y;
        start(&a, shape);
        learn(&a, 3);
        reference_begin(&a.r, live(&a));
        learn(&a, 3);
        start(&b, shape);
        for (int i = 0; i < a.m.columns.n; i++) {
            const struct column *c = a.m.columns.list[i];
            memcpy(column_restore(b.m.columns.list[i], c->n), c->base, c->n * c->unit);
        }
        for (int round = 0; round < 2; round++) {
            served_then(&a, &x);
            served_then(&b, &y);
            assert_memory_equal(&x, &y, sizeof x);
            learn(&a, 2);
            learn(&b, 2);
        }
        for (int i = 0; i < a.m.columns.n; i++) {
            const struct column *c = a.m.columns.list[i];
            assert_memory_equal(b.m.columns.list[i]->base, c->base, c->n * c->unit);
        }
        test_model_close(&a.m);
        test_model_close(&b.m);
    }
}

static void a_cut_is_read_as_it_was_while_rows_are_saved(void **state)
{
    (void)state;
    for (int shape = 0; shape < SHAPES; shape++) {
        struct fixture f;
        struct test_copy cut;
        start(&f, shape);
        learn(&f, 2);
        test_copy_take(&cut, &f.m);
        columns_cut(&f.m.columns);
        reference_begin(&f.r, live(&f));
        learn(&f, 2);
        row_renewed(&f, 4, 900, 2);
        learn(&f, 1);
        for (int i = 0; i < f.m.columns.n; i++) {
            struct column *c = f.m.columns.list[i];
            unsigned char *swept = malloc(c->n_cut * c->unit + 1);
            assert_int_equal(c->n_cut, cut.n[i]);
            column_sweep(c, 0, c->n_cut, swept);
            if (memcmp(swept, cut.bytes[i], c->n_cut * c->unit) != 0)
                fail_msg("column %s was changed behind the cut's back", c->name);
            free(swept);
        }
        columns_cut_end(&f.m.columns);
        test_copy_free(&cut, &f.m);
        test_model_close(&f.m);
    }
}

static void before_the_first_item_the_prior_is_that_of_an_average_one(void **state)
{
    (void)state;
    struct fixture f = {.o = options_of(0)};
    test_model_open(&f.m, &f.o, 0, 0);
    assert_int_equal(
        reference_open(&f.r, &f.m.columns, f.m.tables, &f.o, TEST_ROWS_MAX, TEST_ROWS_MAX), 0);
    reference_begin(&f.r, live(&f));
    for (uint32_t i = 0; i < ITEMS; i++)
        reference_item_created(&f.r, test_item(&f.m, i));
    for (uint32_t i = 0; i < USERS; i++)
        reference_user_created(&f.r, test_user(&f.m, i));
    learn(&f, 2);
    const struct view view = reference_view(&f.r);
    for (uint32_t i = 0; i < ITEMS; i++) {
        float v[DIM_MAX + 1];
        view_items(&view, 1, reference_item_vector(&f.r, i), reference_item_state(&f.r, i), NULL,
                   v);
        assert_true(v[f.o.dim] == 0);
    }
    test_model_close(&f.m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scores_are_those_of_the_instant_however_many_steps_later),
        cmocka_unit_test(a_row_is_saved_once_for_each_publication),
        cmocka_unit_test(a_row_with_a_new_owner_has_that_ones_start),
        cmocka_unit_test(what_was_restored_from_columns_goes_on_the_same),
        cmocka_unit_test(a_cut_is_read_as_it_was_while_rows_are_saved),
        cmocka_unit_test(before_the_first_item_the_prior_is_that_of_an_average_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
