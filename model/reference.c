// SPDX-License-Identifier: Apache-2.0
#include "model/reference.h"

#include <string.h>

// A saved item; its vector and context follow.
struct reference_item {
    uint64_t epoch; // that it was saved in; 0: never
    struct item_state state;
};

static size_t row_bytes(const struct reference *r)
{
    return (size_t)r->options->dim * sizeof(float);
}

// A unit begins with a number of 8 bytes; rows of an odd width would put every other one astray.
static size_t unit_aligned(size_t n)
{
    return (n + 7) & ~(size_t)7;
}

static const struct reference_state *state_at(const struct reference *r)
{
    return column_at(&r->state, 0);
}

int reference_open(struct reference *r, struct columns *s, const struct tables *tables,
                   const struct two_tower_options *options, size_t items_max, size_t users_max)
{
    *r = (struct reference){.options = options, .tables = tables};
    const size_t row = row_bytes(r), dense = tables->dense_size / (size_t)options->dim;
    const size_t rows = tables->item_vector.unit;
    int rc = column_open(&r->item, s, "reference.item",
                         unit_aligned(sizeof(struct reference_item) + rows), items_max);
    if (rc == 0)
        rc = column_open(&r->user, s, "reference.user", unit_aligned(sizeof(uint64_t) + row),
                         users_max);
    if (rc == 0)
        rc = column_open(&r->dense, s, "reference.dense", row, dense);
    if (rc == 0)
        rc = column_open(&r->state, s, "reference.state", sizeof(struct reference_state), 1);
    if (rc == 0) {
        column_grow(&r->dense, dense);
        column_grow(&r->state, 1);
        column_floats(&r->item, sizeof(struct reference_item), rows / sizeof(float),
                      COLUMN_PARAMETER_MAX);
        column_floats(&r->user, sizeof(uint64_t), row / sizeof(float), COLUMN_PARAMETER_MAX);
        column_floats(&r->dense, 0, row / sizeof(float), COLUMN_PARAMETER_MAX);
    }
    return rc;
}

void reference_begin(struct reference *r, uint64_t items_known)
{
    // Before the first item there is a prior as well: with one that was never seen it is 0, as it
    // is for every item until something is engaged with. With none it would be 0 / 0.
    if (items_known == 0)
        items_known = 1;
    struct reference_state *state = column_edit(&r->state, 0);
    *state = (struct reference_state){state->epoch + 1, items_known, *tables_state(r->tables)};
    for (size_t i = 0; i < r->dense.n; i++)
        memcpy(column_edit(&r->dense, i), column_at(&r->tables->dense, i), r->dense.unit);
}

// Whether the row has been saved since reference_begin; the unit begins with its epoch.
static bool saved(const struct reference *r, const struct column *c, uint32_t row)
{
    return row < c->n && *(const uint64_t *)column_at(c, row) == state_at(r)->epoch;
}

static float *floats_of(struct reference_item *item)
{
    return (float *)(void *)(item + 1);
}

void reference_save_item(struct reference *r, uint32_t row)
{
    const struct tables *t = r->tables;
    if (saved(r, &r->item, row))
        return;
    struct reference_item *item = column_reach(&r->item, row);
    item->epoch = state_at(r)->epoch;
    item->state = *(const struct item_state *)column_at(&t->item_state, row);
    memcpy(floats_of(item), column_at(&t->item_vector, row), t->item_vector.unit);
}

void reference_save_user(struct reference *r, uint32_t row)
{
    if (saved(r, &r->user, row))
        return;
    uint64_t *epoch = column_reach(&r->user, row);
    *epoch = state_at(r)->epoch;
    memcpy(epoch + 1, column_at(&r->tables->user_vector, row), row_bytes(r));
}

void reference_item_created(struct reference *r, uint32_t row)
{
    ((struct reference_item *)column_reach(&r->item, row))->epoch = 0;
}

void reference_user_created(struct reference *r, uint32_t row)
{
    *(uint64_t *)column_reach(&r->user, row) = 0;
}

struct view reference_view(const struct reference *r)
{
    return (struct view){.options = r->options,
                         .dense = (const float *)(const void *)r->dense.base,
                         .state = &state_at(r)->model,
                         .items_known = state_at(r)->items_known};
}

static const struct reference_item *item_at(const struct reference *r, uint32_t row)
{
    return saved(r, &r->item, row) ? column_at(&r->item, row) : NULL;
}

const float *reference_item_vector(const struct reference *r, uint32_t row)
{
    const struct reference_item *item = item_at(r, row);
    return item ? (const float *)(const void *)(item + 1) : column_at(&r->tables->item_vector, row);
}

const float *reference_item_context(const struct reference *r, uint32_t row)
{
    const struct reference_item *item = item_at(r, row);
    return item ? (const float *)(const void *)(item + 1) + r->options->dim
                : tables_item_context(r->tables, row);
}

const struct item_state *reference_item_state(const struct reference *r, uint32_t row)
{
    const struct reference_item *item = item_at(r, row);
    return item ? &item->state : column_at(&r->tables->item_state, row);
}

const float *reference_user_vector(const struct reference *r, uint32_t row)
{
    return saved(r, &r->user, row)
               ? (const float *)(const void *)((const uint64_t *)column_at(&r->user, row) + 1)
               : column_at(&r->tables->user_vector, row);
}
