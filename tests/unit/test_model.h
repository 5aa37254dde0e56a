// SPDX-License-Identifier: Apache-2.0
//
// What the tests of the two kinds of model share: a model over tables with ids 0, 1, 2 .. as rows
// 0, 1, 2 .., copies of all its columns, and the gradient of a whole step.
//
// The gradient: with plain SGD at rate 1 and without L2 a step subtracts it from the parameters, so
// it is what they were minus what they are. Putting the columns back then gives the point at which
// differences of a loss written down a second time, in the test, must say the same.
#pragma once

#include "model/rng.h"
#include "model/tables.h"
#include "tests/support/gradcheck.h"

#include <stdlib.h>
#include <string.h>

enum { TEST_ROWS_MAX = 64 };

struct test_model {
    struct columns columns;
    struct id_table items, users;
    struct two_tower *model;
    const struct tables *tables;
};

static inline struct id test_id(uint64_t n)
{
    static const char text[] = "12345678";
    const uint64_t hash = rng_at(99, n);
    return (struct id){hash, (uint32_t)rng_at(98, n), 8, ID_UNSIGNED, text};
}

static inline uint32_t test_item(struct test_model *m, uint64_t n)
{
    bool created;
    const struct id id = test_id(n);
    const int64_t row = id_table_admit(&m->items, &id, 0, &created);
    assert_true(row >= 0);
    if (created)
        two_tower_item_created(m->model, (uint32_t)row);
    return (uint32_t)row;
}

static inline uint32_t test_user(struct test_model *m, uint64_t n)
{
    bool created;
    const struct id id = test_id(1000000 + n);
    const int64_t row = id_table_admit(&m->users, &id, 0, &created);
    assert_true(row >= 0);
    if (created)
        two_tower_user_created(m->model, (uint32_t)row);
    return (uint32_t)row;
}

static inline void test_model_open(struct test_model *m, const struct two_tower_options *options,
                                   int items, int users)
{
    const struct id_table_options tables[] = {
        {.names = {"item.id", "item.table", "item.sighting"},
         .heap_names = {"item.id_text", "item.id_free"},
         .rows_max = TEST_ROWS_MAX,
         .admit = 1},
        {.names = {"user.id", "user.table", "user.sighting"},
         .heap_names = {"user.id_text", "user.id_free"},
         .rows_max = TEST_ROWS_MAX,
         .admit = 1},
    };
    *m = (struct test_model){0};
    assert_int_equal(columns_open(&m->columns, 1 << 20), 0);
    assert_int_equal(id_table_open(&m->items, &m->columns, &tables[0]), 0);
    assert_int_equal(id_table_open(&m->users, &m->columns, &tables[1]), 0);
    assert_int_equal(two_tower_open(&m->model, &m->columns, &m->items, &m->users, options), 0);
    m->tables = two_tower_tables(m->model);
    for (int i = 0; i < items; i++)
        assert_int_equal(test_item(m, (uint64_t)i), i);
    for (int i = 0; i < users; i++)
        assert_int_equal(test_user(m, (uint64_t)i), i);
}

static inline void test_model_close(struct test_model *m)
{
    columns_close(&m->columns); // first: the columns lie inside what follows
    two_tower_close(m->model);
    id_table_close(&m->items);
    id_table_close(&m->users);
}

// The units of a column, to be changed by the test.
static inline size_t test_numbers(const struct column *c) // of a column of floats
{
    return c->n * c->unit / sizeof(float);
}

static inline float *test_floats(const struct column *c, size_t i)
{
    return (float *)(void *)(c->base + i * c->unit);
}

static inline struct item_state *test_item_state(const struct test_model *m, size_t i)
{
    return (struct item_state *)(void *)test_floats(&m->tables->item_state, i);
}

static inline struct model_state *test_state(const struct test_model *m)
{
    return (struct model_state *)(void *)test_floats(&m->tables->state, 0);
}

// A copy of every column of the model and its tables.
struct test_copy {
    unsigned char *bytes[COLUMNS_MAX];
    size_t n[COLUMNS_MAX];
};

static inline void test_copy_take(struct test_copy *copy, const struct test_model *m)
{
    for (int i = 0; i < m->columns.n; i++) {
        const struct column *c = m->columns.list[i];
        copy->n[i] = c->n;
        copy->bytes[i] = malloc(c->n * c->unit + 1);
        assert_non_null(copy->bytes[i]);
        memcpy(copy->bytes[i], c->base, c->n * c->unit);
    }
}

static inline void test_copy_put_back(const struct test_copy *copy, const struct test_model *m)
{
    for (int i = 0; i < m->columns.n; i++)
        memcpy(m->columns.list[i]->base, copy->bytes[i], copy->n[i] * m->columns.list[i]->unit);
}

static inline void test_copy_free(struct test_copy *copy, const struct test_model *m)
{
    for (int i = 0; i < m->columns.n; i++)
        free(copy->bytes[i]);
}

// Every column but the named one (NULL: every one) has the bytes of the copy.
static inline void test_copy_assert_equal(const struct test_copy *copy, const struct test_model *m,
                                          const char *except)
{
    for (int i = 0; i < m->columns.n; i++) {
        const struct column *c = m->columns.list[i];
        if (except && strcmp(c->name, except) == 0)
            continue;
        if (c->n != copy->n[i] || memcmp(c->base, copy->bytes[i], c->n * c->unit) != 0)
            fail_msg("column %s has changed", c->name);
    }
}

// One step of any sort, taken back: with SGD at one rate for all the gradient is what the columns
// were minus what they were afterwards, by the rate.
struct test_step {
    struct test_copy before, after;
};

static inline void test_step_take(struct test_step *s, const struct test_model *m,
                                  void (*step)(void *), void *arg)
{
    test_copy_take(&s->before, m);
    step(arg);
    test_copy_take(&s->after, m);
    test_copy_put_back(&s->before, m);
}

static inline void test_step_free(struct test_step *s, const struct test_model *m)
{
    test_copy_free(&s->before, m);
    test_copy_free(&s->after, m);
}

static inline const struct column *test_column(const struct test_model *m, const char *name)
{
    for (int i = 0; i < m->columns.n; i++)
        if (strcmp(m->columns.list[i]->name, name) == 0)
            return m->columns.list[i];
    return NULL;
}

// Float k of a column, whatever its units are.
static inline float test_step_gradient(const struct test_step *s, const struct test_model *m,
                                       const struct column *c, size_t k)
{
    float before, after;
    int i = 0;
    while (m->columns.list[i] != c)
        i++;
    memcpy(&before, s->before.bytes[i] + k * sizeof before, sizeof before);
    memcpy(&after, s->after.bytes[i] + k * sizeof after, sizeof after);
    return (before - after) / two_tower_options(m->model)->table.rate;
}

// n floats of a column from the k-th on against differences of loss(arg).
static inline void test_step_assert(const struct test_step *s, const struct test_model *m,
                                    const char *name, const struct column *c, size_t k, size_t n,
                                    double (*loss)(void *), void *arg)
{
    for (size_t i = k; i < k + n; i++) {
        const float gradient = test_step_gradient(s, m, c, i);
        assert_gradient(name, loss, arg, test_floats(c, 0) + i, &gradient, 1);
    }
}

// All of the towers: every item row with its context, user row and bias, and every dense parameter
// that is published.
static inline void test_step_assert_towers(const struct test_step *s, const struct test_model *m,
                                           double (*loss)(void *), void *arg)
{
    const struct two_tower_options *o = two_tower_options(m->model);
    const struct tables *t = m->tables;
    const size_t d = (size_t)o->dim, items = t->item_vector.n, users = t->user_vector.n;
    test_step_assert(s, m, "item.vector", &t->item_vector, 0, test_numbers(&t->item_vector), loss,
                     arg);
    test_step_assert(s, m, "user.vector", &t->user_vector, 0, users * d, loss, arg);
    for (size_t i = 0; i < items; i++)
        test_step_assert(s, m, "item.bias", &t->item_state, i * t->item_state.unit / sizeof(float),
                         1, loss, arg);
    struct dense_parameter p;
    for (int i = 0; view_dense(o, i, &p); i++) {
        const size_t n = (size_t)p.rows * (size_t)p.columns;
        test_step_assert(s, m, p.name, &t->dense, p.offset, n, loss, arg);
    }
}

struct test_batch {
    struct test_model *m;
    int n;
    const struct example *examples;
    const float *features;
    struct step_report report;
};

static inline void test_batch_learn(void *arg)
{
    struct test_batch *b = arg;
    b->report = two_tower_learn(b->m->model, b->n, b->examples, b->features);
    assert_false(b->report.skipped);
}

// Learns the batch, takes the step back, and compares it with differences of loss(arg).
static inline struct step_report test_model_assert_gradients(struct test_model *m, int n,
                                                             const struct example *examples,
                                                             const float *features,
                                                             double (*loss)(void *), void *arg)
{
    struct test_batch batch = {.m = m, .n = n, .examples = examples, .features = features};
    struct test_step s;
    test_step_take(&s, m, test_batch_learn, &batch);
    test_step_assert_towers(&s, m, loss, arg);
    test_step_free(&s, m);
    return batch.report;
}
