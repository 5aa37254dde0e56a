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

// Learns the batch, takes the step back, and compares it with differences of loss(arg), for every
// item row, context row, user row and bias, and for every dense parameter that is published.
static inline struct step_report test_model_assert_gradients(struct test_model *m, int n,
                                                             const struct example *examples,
                                                             const float *features,
                                                             double (*loss)(void *), void *arg)
{
    const struct two_tower_options *o = two_tower_options(m->model);
    const struct tables *t = m->tables;
    const size_t d = (size_t)o->dim, items = t->item_vector.n, users = t->user_vector.n;
    const size_t dense = t->dense_size;
    struct test_copy before;
    test_copy_take(&before, m);
    float *vectors = malloc(items * d * sizeof *vectors), *biases = malloc(items * sizeof *biases);
    float *rows = malloc(users * d * sizeof *rows), *parameters = malloc(dense * sizeof *rows);
    float *contexts = t->item_context.base ? malloc(items * d * sizeof *contexts) : NULL;
    memcpy(vectors, t->item_vector.base, items * d * sizeof *vectors);
    if (contexts)
        memcpy(contexts, t->item_context.base, items * d * sizeof *contexts);
    memcpy(rows, t->user_vector.base, users * d * sizeof *rows);
    memcpy(parameters, t->dense.base, dense * sizeof *parameters);
    for (size_t i = 0; i < items; i++)
        biases[i] = test_item_state(m, i)->bias;

    const struct step_report report = two_tower_learn(m->model, n, examples, features);
    assert_false(report.skipped);
    for (size_t i = 0; i < items * d; i++)
        vectors[i] -= test_floats(&t->item_vector, 0)[i];
    for (size_t i = 0; contexts && i < items * d; i++)
        contexts[i] -= test_floats(&t->item_context, 0)[i];
    for (size_t i = 0; i < users * d; i++)
        rows[i] -= test_floats(&t->user_vector, 0)[i];
    for (size_t i = 0; i < dense; i++)
        parameters[i] -= test_floats(&t->dense, 0)[i];
    for (size_t i = 0; i < items; i++)
        biases[i] -= test_item_state(m, i)->bias;
    test_copy_put_back(&before, m);

    assert_gradient("item.vector", loss, arg, test_floats(&t->item_vector, 0), vectors, items * d);
    if (contexts)
        assert_gradient("item.context", loss, arg, test_floats(&t->item_context, 0), contexts,
                        items * d);
    assert_gradient("user.vector", loss, arg, test_floats(&t->user_vector, 0), rows, users * d);
    for (size_t i = 0; i < items; i++)
        assert_gradient("item.bias", loss, arg, &test_item_state(m, i)->bias, &biases[i], 1);
    struct dense_parameter p;
    for (int i = 0; view_dense(o, i, &p); i++)
        assert_gradient(p.name, loss, arg, test_floats(&t->dense, 0) + p.offset,
                        parameters + p.offset, (size_t)p.rows * (size_t)p.columns);
    free(vectors);
    free(contexts);
    free(biases);
    free(rows);
    free(parameters);
    test_copy_free(&before, m);
    return report;
}
