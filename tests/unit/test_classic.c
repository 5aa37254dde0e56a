// SPDX-License-Identifier: Apache-2.0
#include "model/classic.h"

#include "model/frequency.h"
#include "tests/unit/test_model.h"

enum { DIM = 4, BATCH = 10, ITEMS = 12, USERS = 6, HISTORY = 3, UF = 3, IF = 2 };
enum { UNIQUE = 8 }; // items among the batch's

// Users and items occur more than once, as columns and in histories, and 3 of 10 are negatives.
static const struct example batch[BATCH] = {
    {.user = 0, .item = 1, .positive = 1, .n_history = 2, .history = {3, 1}},
    {.user = 1, .item = 2, .positive = 0, .n_history = 1, .history = {4}},
    {.user = 0, .item = 3, .positive = 1, .n_history = 5, .history = {1, 3, 1, 8, 9}},
    {.user = 2, .item = 1, .positive = 1, .n_history = 0},
    {.user = 3, .item = 4, .positive = 1, .n_history = 3, .history = {5, 5, 6}},
    {.user = 4, .item = 5, .positive = 0, .n_history = 0},
    {.user = 2, .item = 6, .positive = 1, .n_history = 1, .history = {1}},
    {.user = 3, .item = 7, .positive = 0, .n_history = 2, .history = {7, 2}},
    {.user = 3, .item = 4, .positive = 1, .n_history = 3, .history = {5, 5, 6}},
    {.user = 0, .item = 8, .positive = 1, .n_history = 1, .history = {10}},
};

// With this seed no hidden unit is so near to 0 that a difference steps over the bend there.
static struct two_tower_options plain_options(void)
{
    struct two_tower_options o = {.kind = MODEL_TWO_TOWER,
                                  .dim = DIM,
                                  .history = HISTORY,
                                  .batch_max = BATCH,
                                  .seed = 7,
                                  .init = 1,
                                  .table = *optimizer_find("sgd"),
                                  .hidden = 5,
                                  .temperature = 1};
    o.table.rate = 1;
    o.matrix = o.scalar = o.table;
    return o;
}

struct fixture {
    struct test_model m;
    float features[BATCH * UF];
    // The columns that a row is compared with, chosen at the first look: mining others a small step
    // away would be a jump, which no gradient knows of.
    bool chosen, kept[BATCH][BATCH];
};

static void start(struct fixture *f, const struct two_tower_options *o)
{
    struct rng rng = {31, 0};
    f->chosen = false;
    memset(f->kept, 0, sizeof f->kept);
    test_model_open(&f->m, o, ITEMS, USERS);
    rng_fill_uniform(&rng, f->features, BATCH * UF, -1, 1);
    for (uint32_t i = 0; i < ITEMS; i++) {
        float x[IF];
        rng_fill_uniform(&rng, x, IF, -1, 1);
        two_tower_item_features(f->m.model, i, IF, x);
        test_item_state(&f->m, i)->bias = 0.1f * (float)i;
    }
}

static const float *features_of(const struct fixture *f)
{
    return two_tower_options(f->m.model)->user_features ? f->features : NULL;
}

// Whether the item of column j is one that the user of row i engaged with in another row.
static bool known(int i, uint32_t item)
{
    for (int k = 0; k < BATCH; k++)
        if (batch[k].positive && batch[k].user == batch[i].user && batch[k].item == item)
            return item != batch[i].item;
    return false;
}

// How often an item is there.
static int copies(uint32_t item)
{
    int n = 0;
    for (int j = 0; j < BATCH; j++)
        n += batch[j].item == item;
    return n;
}

// Row i keeps its positive, and of the other items those that weigh the most, with all copies.
static void choose(const struct two_tower_options *o, int i, const double *scores, bool *kept)
{
    bool out[BATCH] = {0};
    for (int j = 0; j < BATCH; j++) {
        const bool same = batch[j].item == batch[i].item;
        out[j] = same || (o->mask_known && known(i, batch[j].item));
        kept[j] = j == i || (same && !o->accidental_hits);
    }
    for (int n = 0; n < (o->hard_negatives > 0 ? o->hard_negatives : BATCH); n++) {
        int best = -1;
        double most = -INFINITY;
        for (int j = 0; j < BATCH; j++) {
            const double weight = scores[j] + log(copies(batch[j].item));
            if (!out[j] && !kept[j] && weight > most) {
                best = j;
                most = weight;
            }
        }
        for (int j = 0; j < BATCH && best >= 0; j++)
            kept[j] = kept[j] || batch[j].item == batch[best].item;
    }
}

// The loss a second time, from the published vectors: objectives by name, in doubles.
static double loss_again(void *arg)
{
    struct fixture *f = arg;
    const struct two_tower_options *o = two_tower_options(f->m.model);
    float Q[BATCH * (DIM + 1)], V[BATCH * (DIM + 1)];
    double loss = 0;
    two_tower_queries(f->m.model, BATCH, batch, features_of(f), Q);
    for (int j = 0; j < BATCH; j++)
        two_tower_items(f->m.model, 1, &batch[j].item, V + j * (DIM + 1));
    for (int i = 0; i < BATCH; i++) {
        if (!batch[i].positive)
            continue;
        double scores[BATCH], sum = 0;
        for (int j = 0; j < BATCH; j++) {
            scores[j] = 0;
            for (int k = 0; k <= DIM; k++)
                scores[j] += (double)Q[i * (DIM + 1) + k] * V[j * (DIM + 1) + k];
            scores[j] /= (double)o->temperature;
            if (o->logq)
                scores[j] -= log(
                    (double)frequency_read(column_at(&f->m.tables->item_frequency, batch[j].item),
                                           1.0f / ITEMS, test_state(&f->m)->examples));
        }
        if (!f->chosen)
            choose(o, i, scores, f->kept[i]);
        for (int j = 0; j < BATCH; j++)
            sum += f->kept[i][j] ? exp(scores[j]) : 0;
        loss += log(sum) - scores[i];
    }
    f->chosen = true;
    return loss;
}

static void assert_step(const struct two_tower_options *o)
{
    struct fixture f;
    start(&f, o);
    const double loss = loss_again(&f);
    const struct step_report report =
        test_model_assert_gradients(&f.m, BATCH, batch, features_of(&f), loss_again, &f);
    assert_true(fabs(report.loss - loss) < 1e-4 * loss);
    assert_int_equal(report.examples, BATCH);
    assert_int_equal(report.candidates, UNIQUE);
    test_model_close(&f.m);
}

// The dense parameter of this name, all zeros.
static float *cleared(const struct test_model *m, const char *name)
{
    struct dense_parameter p;
    for (int i = 0; classic_dense(two_tower_options(m->model), i, &p); i++) {
        if (strcmp(p.name, name) != 0)
            continue;
        float *w = test_floats(&m->tables->dense, 0) + p.offset;
        memset(w, 0, (size_t)p.rows * (size_t)p.columns * sizeof *w);
        return w;
    }
    fail_msg("no dense parameter is called %s", name);
    return NULL;
}

// Ones where row r meets column at + r, r = 0, 1.
static void one_to_one(float *w, size_t columns, size_t at)
{
    w[at] = w[columns + at + 1] = 1;
}

static void vectors_are_the_numbers_worked_by_hand(void **state)
{
    (void)state;
    struct two_tower_options o = plain_options();
    struct test_model m;
    o.dim = 2;
    o.hidden = 1;
    o.user_features = 1;
    o.attention = true;
    test_model_open(&m, &o, 4, 1);
    // Wu adds up id, features, state and mean, and 0.5 and 0.25.
    float *top = cleared(&m, "user_top_weight");
    for (size_t part = 0; part < 4; part++)
        one_to_one(top, 8, 2 * part);
    memcpy(cleared(&m, "user_top_bias"), (float[]){0.5f, 0.25f}, 2 * sizeof(float));
    // f = (10, 100) relu(2 x - 1)
    *cleared(&m, "user_hidden_weight") = 2;
    *cleared(&m, "user_hidden_bias") = -1;
    memcpy(cleared(&m, "user_features_weight"), (float[]){10, 100}, 2 * sizeof(float));
    cleared(&m, "user_features_bias");
    // Nothing is asked, so all events answer alike: z = newest + mean of the events, each with its
    // position, sine and cosine of 2 for the newest of at most 3 and of 1 for the next.
    cleared(&m, "history_query_weight");
    float *keyvalue = cleared(&m, "history_keyvalue_weight");
    one_to_one(keyvalue, 2, 0);     // keys
    one_to_one(keyvalue + 4, 2, 0); // values
    one_to_one(cleared(&m, "history_output_weight"), 2, 0);
    // v = 2 E + (1, -1)
    float *item = cleared(&m, "item_top_weight");
    item[0] = item[3] = 2;
    memcpy(cleared(&m, "item_top_bias"), (float[]){1, -1}, 2 * sizeof(float));

    memcpy(test_floats(&m.tables->user_vector, 0), (float[]){1, 2}, 2 * sizeof(float));
    memcpy(test_floats(&m.tables->item_vector, 1), (float[]){3, 5}, 2 * sizeof(float));
    memcpy(test_floats(&m.tables->item_vector, 2), (float[]){1, 1}, 2 * sizeof(float));
    test_item_state(&m, 1)->bias = 0.125f;
    const struct example both = {.n_history = 2, .history = {1, 2}}, none = {.n_history = 0};
    const uint32_t row = 1;
    const float x = 1, off = 0.25f;
    float q[3], v[3];
    two_tower_queries(m.model, 1, &both, &x, q);
    // (1, 2) + (10, 100) + ((3, 5) + (2, 3)) + (2, 3) + (.5, .25), and the positions
    assert_true(fabs((double)q[0] - (18.5 + 1.5 * sin(2) + 0.5 * sin(1))) < 1e-5);
    assert_true(fabs((double)q[1] - (113.25 + 1.5 * cos(2) + 0.5 * cos(1))) < 1e-5);
    assert_true(q[2] == 1);
    two_tower_queries(m.model, 1, &none, &off, q);
    assert_memory_equal(q, ((float[]){1.5f, 2.25f, 1}), sizeof q);
    two_tower_items(m.model, 1, &row, v);
    assert_memory_equal(v, ((float[]){7, 9, 0.125f}), sizeof v);
    test_model_close(&m);
}

static void a_step_of_two_linear_towers_is_the_gradient(void **state)
{
    (void)state;
    const struct two_tower_options o = plain_options();
    assert_step(&o);
}

static void a_step_of_bare_rows_is_the_gradient(void **state)
{
    (void)state;
    struct two_tower_options o = plain_options();
    struct dense_parameter p;
    o.bare = true;
    assert_false(classic_dense(&o, 0, &p));
    assert_step(&o);
    o.logq = o.accidental_hits = true;
    assert_step(&o);
}

static void a_step_with_features_is_the_gradient(void **state)
{
    (void)state;
    struct two_tower_options o = plain_options();
    o.user_features = UF;
    assert_step(&o);
    o.item_features = IF;
    assert_step(&o);
    o.user_features = 0;
    assert_step(&o);
}

static void a_step_with_attention_is_the_gradient(void **state)
{
    (void)state;
    struct two_tower_options o = plain_options();
    o.attention = true;
    assert_step(&o);
    o.user_features = UF;
    o.item_features = IF;
    assert_step(&o);
}

static void a_step_with_every_option_of_the_loss_is_the_gradient(void **state)
{
    (void)state;
    struct two_tower_options o = plain_options();
    o.temperature = 0.5f;
    assert_step(&o);
    o.accidental_hits = true;
    assert_step(&o);
    o.hard_negatives = 3;
    assert_step(&o);
    o.hard_negatives = 0;
    o.accidental_hits = false;
    o.temperature = 1;
    o.logq = true;
    assert_step(&o);
    o.mask_known = true;
    assert_step(&o);
    o.accidental_hits = true;
    assert_step(&o);
}

// Parameters of the size they had at first, after steps that were only to leave something behind.
static void settle(struct fixture *f)
{
    const struct tables *t = f->m.tables;
    for (uint32_t i = 0; i < ITEMS; i++) {
        struct rng rng = {i, 0};
        rng_fill_uniform(&rng, test_floats(&t->item_vector, i), DIM, -1, 1);
        test_item_state(&f->m, i)->bias = 0.1f * (float)i;
    }
    for (uint32_t u = 0; u < USERS; u++) {
        struct rng rng = {100 + u, 0};
        rng_fill_uniform(&rng, test_floats(&t->user_vector, u), DIM, -1, 1);
    }
    struct rng rng = {7, 0};
    rng_fill_uniform(&rng, test_floats(&t->dense, 0), t->dense_size, -0.5f, 0.5f);
}

// ---- The memory: the last columns of the first batch are columns of the second.

enum { CAPACITY = 7 };

struct remembering {
    struct fixture f;
    struct negative_entry entry[CAPACITY];
    float vector[CAPACITY][DIM];
};

// No option but the memory, the mask and logq.
static double loss_of_columns(struct remembering *m, int columns)
{
    float Q[BATCH * (DIM + 1)], V[BATCH * (DIM + 1)];
    double loss = 0;
    two_tower_queries(m->f.m.model, BATCH, batch, NULL, Q);
    for (int j = 0; j < BATCH; j++)
        two_tower_items(m->f.m.model, 1, &batch[j].item, V + j * (DIM + 1));
    for (int i = 0; i < BATCH; i++) {
        double sum = 0, target = 0;
        if (!batch[i].positive)
            continue;
        for (int j = 0; j < columns; j++) {
            const bool old = j >= BATCH;
            const struct negative_entry *entry = &m->entry[old ? j - BATCH : 0];
            const float *v = old ? m->vector[j - BATCH] : V + j * (DIM + 1);
            const uint32_t item = old ? entry->row : batch[j].item;
            double s = old ? (double)entry->extra : (double)v[DIM];
            for (int k = 0; k < DIM; k++)
                s += (double)Q[i * (DIM + 1) + k] * (double)v[k];
            s -= old ? (double)entry->log_q
                     : log((double)frequency_read(column_at(&m->f.m.tables->item_frequency, item),
                                                  1.0f / ITEMS, test_state(&m->f.m)->examples));
            sum += known(i, item) || (old && item == batch[i].item) ? 0 : exp(s);
            target = i == j ? s : target;
        }
        loss += log(sum) - target;
    }
    return loss;
}

static double loss_remembering(void *arg)
{
    return loss_of_columns(arg, BATCH + CAPACITY);
}

static double loss_of_batch(void *arg)
{
    return loss_of_columns(arg, BATCH);
}

static void a_memory_teaches_queries_and_neither_itself_nor_other_items(void **state)
{
    (void)state;
    struct two_tower_options o = plain_options();
    struct remembering m;
    o.logq = o.mask_known = true;
    o.memory = (struct negative_memory_options){.capacity = CAPACITY};
    start(&m.f, &o);
    two_tower_learn(m.f.m.model, BATCH, batch, NULL);
    settle(&m.f);
    for (uint32_t place = 0; place < CAPACITY; place++) {
        m.entry[place] =
            *(const struct negative_entry *)column_at(&m.f.m.tables->memory_entry, place);
        memcpy(m.vector[place], column_at(&m.f.m.tables->memory_vector, place),
               sizeof m.vector[place]);
    }
    const double loss = loss_of_batch(&m);
    struct test_batch step = {.m = &m.f.m, .n = BATCH, .examples = batch};
    struct test_step s;
    test_step_take(&s, &m.f.m, test_batch_learn, &step);
    assert_true(fabs(step.report.loss - loss) < 1e-4 * loss);
    const struct tables *t = m.f.m.tables;
    struct dense_parameter p;
    test_step_assert(&s, &m.f.m, "user.vector", &t->user_vector, 0, USERS * DIM, loss_remembering,
                     &m);
    test_step_assert(&s, &m.f.m, "item.vector", &t->item_vector, 0, ITEMS * DIM, loss_of_batch, &m);
    for (size_t i = 0; i < ITEMS; i++)
        test_step_assert(&s, &m.f.m, "item.bias", &t->item_state,
                         i * t->item_state.unit / sizeof(float), 1, loss_of_batch, &m);
    for (int i = 0; classic_dense(&o, i, &p); i++)
        test_step_assert(&s, &m.f.m, p.name, &t->dense, p.offset,
                         (size_t)p.rows * (size_t)p.columns,
                         strncmp(p.name, "user_", 5) == 0 ? loss_remembering : loss_of_batch, &m);
    test_step_free(&s, &m.f.m);
    test_model_close(&m.f.m);
}

// Hiding is worth -2 of a click: what the user hid is unlearned, in the same batch.
static void a_weight_below_zero_unlearns(void **state)
{
    (void)state;
    struct two_tower_options o = plain_options();
    struct fixture f;
    struct example examples[2] = {{.user = 0, .item = 1, .positive = 1, .task = 0},
                                  {.user = 1, .item = 2, .positive = 1, .task = 1}};
    o.tasks_named = true;
    o.objectives.tasks = 2;
    o.objectives.value[0] = 2;
    o.objectives.value[1] = -2;
    o.table.rate = o.matrix.rate = 0.01f;
    start(&f, &o);
    float before[2][2], after[2][2]; // scores of user and item
    for (int when = 0; when < 2; when++) {
        for (int i = 0; i < 2; i++) {
            float q[DIM + 1], v[DIM + 1];
            two_tower_queries(f.m.model, 1, &examples[i], NULL, q);
            for (uint32_t c = 0; c < 2; c++) {
                two_tower_items(f.m.model, 1, &examples[c].item, v);
                float s = 0;
                for (int k = 0; k <= DIM; k++)
                    s += q[k] * v[k];
                (when ? after : before)[i][c] = s;
            }
        }
        for (int step = 0; step < 20 && !when; step++)
            assert_false(two_tower_learn(f.m.model, 2, examples, NULL).skipped);
    }
    assert_true(after[0][0] - after[0][1] > before[0][0] - before[0][1]);
    assert_true(after[1][1] - after[1][0] < before[1][1] - before[1][0]);
    test_model_close(&f.m);
}

static void the_correction_uses_the_frequencies_before_the_batch(void **state)
{
    (void)state;
    struct two_tower_options o = plain_options();
    struct fixture f;
    o.logq = true;
    o.temperature = 2; // the correction is not divided by it
    start(&f, &o);
    // Frequencies that differ, by a step; then back to parameters of the size they had.
    for (int i = 0; i < 3; i++)
        two_tower_learn(f.m.model, BATCH - 5 * (i % 2), batch, NULL);
    settle(&f);
    const float seldom =
        frequency_read(column_at(&f.m.tables->item_frequency, 8), 1, test_state(&f.m)->examples);
    const float often =
        frequency_read(column_at(&f.m.tables->item_frequency, 1), 1, test_state(&f.m)->examples);
    assert_true(often > 1.3f * seldom);
    f.chosen = false;
    memset(f.kept, 0, sizeof f.kept);
    const double loss = loss_again(&f);
    const struct step_report report =
        test_model_assert_gradients(&f.m, BATCH, batch, NULL, loss_again, &f);
    assert_true(fabs(report.loss - loss) < 1e-4 * loss);
    test_model_close(&f.m);
}

static void an_item_in_every_batch_has_the_frequency_of_its_occurrences(void **state)
{
    (void)state;
    struct two_tower_options o = plain_options();
    struct fixture f;
    o.logq = true;
    o.table.rate = o.matrix.rate = 1e-3f;
    start(&f, &o);
    for (int i = 0; i < 400; i++)
        two_tower_learn(f.m.model, BATCH, batch, NULL);
    const struct frequency_cell *cell = column_at(&f.m.tables->item_frequency, 1);
    assert_int_equal(test_state(&f.m)->examples, 400 * BATCH);
    assert_int_equal(cell->sightings, 400);
    int times = 0;
    for (int i = 0; i < BATCH; i++)
        times += batch[i].item == 1;
    assert_true(times > 1);
    assert_true(fabs((double)times / BATCH - (double)frequency_read(cell, 1, 400 * BATCH)) < 1e-3);
    // Another item takes over the row: nothing of this one is left.
    id_table_remove(&f.m.items, 1);
    assert_int_equal(test_item(&f.m, 500), 1);
    assert_int_equal(cell->sightings, 0);
    test_model_close(&f.m);
}

static void the_cells_of_the_items_are_sighted_once_in_a_batch(void **state)
{
    (void)state;
    struct two_tower_options o = plain_options();
    struct frequency_cell cells[ITEMS] = {0};
    struct fixture f;
    uint64_t now = 0;
    o.logq = true;
    o.table.rate = o.matrix.rate = 1e-3f;
    start(&f, &o);
    struct rng rng = {3, 0};
    for (int step = 0; step < 300; step++) {
        // The first of the batch is a positive; in the end most of its items are gone.
        const int n = 1 + (int)rng_below(&rng, step < 200 ? BATCH : 2);
        two_tower_learn(f.m.model, n, batch, NULL);
        now += (uint64_t)n;
        uint32_t times[ITEMS] = {0};
        for (int i = 0; i < n; i++)
            times[batch[i].item]++;
        for (int c = 0; c < ITEMS; c++)
            if (times[c] > 0)
                frequency_sight(&cells[c], 0.01f, 1.0f / ITEMS, now, times[c]);
    }
    assert_memory_equal(cells, f.m.tables->item_frequency.base, sizeof cells);
    test_model_close(&f.m);
}

static void a_negative_moves_its_item_and_not_its_user(void **state)
{
    (void)state;
    const struct two_tower_options o = plain_options();
    struct fixture f;
    float before[DIM];
    start(&f, &o);
    // User 4 and item 5 occur in one example, a negative, and in histories, which are not read.
    memcpy(before, test_floats(&f.m.tables->user_vector, 4), sizeof before);
    const float bias = test_item_state(&f.m, 5)->bias;
    two_tower_learn(f.m.model, BATCH, batch, NULL);
    assert_memory_equal(before, test_floats(&f.m.tables->user_vector, 4), sizeof before);
    assert_true(test_item_state(&f.m, 5)->bias < bias); // pushed away
    test_model_close(&f.m);
}

static void a_batch_without_a_positive_changes_nothing(void **state)
{
    (void)state;
    struct two_tower_options o = plain_options();
    struct fixture f;
    struct test_copy before;
    struct example negatives[BATCH];
    o.logq = true;
    o.attention = true;
    o.table = *optimizer_find("rowwise_adagrad");
    o.table.l2 = 0.03f; // would move every row it is shown
    o.matrix = *optimizer_find("adam");
    start(&f, &o);
    memcpy(negatives, batch, sizeof batch);
    for (int i = 0; i < BATCH; i++)
        negatives[i].positive = 0;
    two_tower_learn(f.m.model, BATCH, batch, NULL);
    test_copy_take(&before, &f.m);
    const struct step_report report = two_tower_learn(f.m.model, BATCH, negatives, NULL);
    assert_false(report.skipped);
    assert_true(report.loss == 0);
    test_copy_assert_equal(&before, &f.m, NULL);
    test_copy_free(&before, &f.m);
    test_model_close(&f.m);
}

static void a_row_that_occurs_often_is_updated_once(void **state)
{
    (void)state;
    struct two_tower_options o = plain_options();
    struct fixture f;
    o.attention = true;
    o.table = *optimizer_find("rowwise_adagrad");
    start(&f, &o);
    two_tower_learn(f.m.model, BATCH, batch, NULL);
    // Row-wise Adagrad from an accumulator of 0.1: the accumulator's growth is the mean square of
    // the gradient if the row was updated once, and then the step follows from it.
    struct test_model fresh;
    test_model_open(&fresh, &o, ITEMS, USERS);
    for (uint32_t i = 1; i <= 6; i++) {
        const float *was = test_floats(&fresh.tables->item_vector, i);
        const float *is = test_floats(&f.m.tables->item_vector, i);
        const double G = (double)*test_floats(&f.m.tables->item_slots, i);
        double square = 0;
        for (int k = 0; k < DIM; k++) {
            const double gradient = (double)(was[k] - is[k]) / (double)o.table.rate * sqrt(G);
            square += gradient * gradient / DIM;
        }
        assert_true(fabs(G - 0.1 - square) < 1e-4 * G);
    }
    test_model_close(&fresh);
    test_model_close(&f.m);
}

// Users and items fall into four kinds, and users take items of their kind.
static double stream_loss(struct test_model *m, int steps, uint64_t seed)
{
    struct rng rng = {seed, 0};
    double loss = 0;
    for (int s = 0; s < steps; s++) {
        struct example examples[BATCH] = {0};
        for (int i = 0; i < BATCH; i++) {
            struct example *e = &examples[i];
            e->user = (uint32_t)rng_below(&rng, 20);
            e->item = (uint32_t)(4 * rng_below(&rng, 8) + e->user % 4);
            e->positive = 1;
            e->n_history = 2;
            e->history[0] = (uint32_t)(4 * rng_below(&rng, 8) + e->user % 4);
            e->history[1] = (uint32_t)(4 * rng_below(&rng, 8) + e->user % 4);
        }
        loss += two_tower_learn(m->model, BATCH, examples, NULL).loss / (BATCH * steps);
    }
    return loss;
}

static void the_loss_falls_on_a_stream_that_can_be_learned(void **state)
{
    static const struct {
        const char *table;
        bool attention;
    } cases[] = {
        {"rowwise_adagrad", false}, {"rowwise_adagrad", true}, {"adagrad", false}, {"adam", true}};
    (void)state;
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        struct two_tower_options o = plain_options();
        struct test_model m;
        o.dim = 8;
        o.init = 0.05f;
        o.table = *optimizer_find(cases[c].table);
        o.matrix = *optimizer_find("adam");
        o.attention = cases[c].attention;
        o.logq = o.accidental_hits = true;
        test_model_open(&m, &o, 32, 20);
        const double first = stream_loss(&m, 50, 1);
        stream_loss(&m, 600, 2);
        const double last = stream_loss(&m, 50, 3);
        // By chance log(10) = 2.30; who knows the kinds is left with about 2 others of 9 to choose
        // from, 1.1.
        if (!(first > 1.5 && last < 1.35))
            fail_msg("%s: %g at first, %g at last", cases[c].table, first, last);
        test_model_close(&m);
    }
}

static void memory_is_enough_for_every_shape(void **state)
{
    static const int dims[] = {1, 3, 4, 32}, batches[] = {1, 17, 130}, histories[] = {0, 1, 64};
    static const int widths[][3] = {{0, 0, 0}, {1, 0, 9}, {0, 2, 0}, {UF, 5, 1}};
    (void)state;
    struct two_tower_options o = plain_options();
    for (size_t c = 0; c < 4 * 3 * 3 * 4 * 4; c++) {
        size_t at = c;
        o.dim = dims[at % 4];
        o.batch_max = batches[(at /= 4) % 3];
        o.history = histories[(at /= 3) % 3];
        o.user_features = widths[(at /= 3) % 4][0];
        o.item_features = widths[at % 4][1];
        o.hidden = widths[at % 4][2]; // 0: the default
        o.attention = (at /= 4) % 2;
        o.mask_known = (at / 2) % 2;
        o.memory.capacity = o.mask_known ? 33 : 0;
        o.bare = !o.user_features && !o.item_features && !o.attention && o.dim > 3;
        struct test_model m;
        struct example *examples = calloc((size_t)o.batch_max, sizeof *examples);
        float *x = calloc((size_t)(o.batch_max * o.user_features) + 1, sizeof *x);
        test_model_open(&m, &o, ITEMS, USERS); // an arena that is too small asserts
        for (int i = 0; i < o.batch_max; i++) {
            examples[i] = (struct example){.user = (uint32_t)i % USERS,
                                           .item = (uint32_t)i % ITEMS,
                                           .positive = 1,
                                           .n_history = HISTORY_MAX};
            for (uint32_t k = 0; k < HISTORY_MAX; k++)
                examples[i].history[k] = ((uint32_t)i + k) % ITEMS;
        }
        assert_false(
            two_tower_learn(m.model, o.batch_max, examples, o.user_features ? x : NULL).skipped);
        free(examples);
        free(x);
        test_model_close(&m);
    }
}

static void the_dense_parameters_lie_beside_each_other(void **state)
{
    (void)state;
    struct two_tower_options o = plain_options();
    o.attention = true;
    o.user_features = UF;
    o.item_features = IF;
    struct dense_parameter p;
    size_t end = 0;
    int n = 0;
    for (; classic_dense(&o, n, &p); n++) {
        assert_true(p.offset >= end && p.offset % 16 == 0);
        end = p.offset + (size_t)p.rows * (size_t)p.columns;
    }
    assert_int_equal(n, 18);
    assert_true(end <= classic_dense_size(&o));
    o.attention = false;
    o.user_features = o.item_features = 0;
    assert_true(classic_dense(&o, 0, &p));
    assert_string_equal(p.name, "user_top_weight");
    assert_true(classic_dense(&o, 3, &p));
    assert_string_equal(p.name, "item_top_bias");
    assert_false(classic_dense(&o, 4, &p));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(vectors_are_the_numbers_worked_by_hand),
        cmocka_unit_test(a_step_of_two_linear_towers_is_the_gradient),
        cmocka_unit_test(a_step_of_bare_rows_is_the_gradient),
        cmocka_unit_test(a_step_with_features_is_the_gradient),
        cmocka_unit_test(a_step_with_attention_is_the_gradient),
        cmocka_unit_test(a_step_with_every_option_of_the_loss_is_the_gradient),
        cmocka_unit_test(a_memory_teaches_queries_and_neither_itself_nor_other_items),
        cmocka_unit_test(a_weight_below_zero_unlearns),
        cmocka_unit_test(the_correction_uses_the_frequencies_before_the_batch),
        cmocka_unit_test(an_item_in_every_batch_has_the_frequency_of_its_occurrences),
        cmocka_unit_test(the_cells_of_the_items_are_sighted_once_in_a_batch),
        cmocka_unit_test(a_negative_moves_its_item_and_not_its_user),
        cmocka_unit_test(a_batch_without_a_positive_changes_nothing),
        cmocka_unit_test(a_row_that_occurs_often_is_updated_once),
        cmocka_unit_test(the_loss_falls_on_a_stream_that_can_be_learned),
        cmocka_unit_test(memory_is_enough_for_every_shape),
        cmocka_unit_test(the_dense_parameters_lie_beside_each_other),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
