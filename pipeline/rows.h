// SPDX-License-Identifier: Apache-2.0
//
// The users and items that the model knows: ids to rows, and what belongs to a row: its parameters
// (through the model), the user's history, the item's title. Rows come with sightings and leave
// with expiry or removal; then everything that belongs to them leaves too.
//
// One thread. All of it lies in columns.
#pragma once

#include "model/history.h"
#include "model/two_tower.h"
#include "pipeline/event.h"

struct rows_options {
    size_t items_max, users_max;
    int admit_items, admit_users;
    int64_t item_ttl_ms, user_ttl_ms; // 0: never
};

struct rows {
    struct id_table items, users;
    struct history history;
    struct two_tower *model;
    struct column title; // by item row
    struct heap titles;
};

// A row at one moment: valid while the row's owner is the same.
struct row_ref {
    uint32_t row;
    uint8_t generation;
};

enum { ROW_NONE = -1, TITLE_BYTES_MAX = 1024, ROWS_TITLE_UNIT = 8 };

// 0 or -ENOMEM. The model is opened on the tables.
int rows_open(struct rows *r, struct columns *s, const struct rows_options *options,
              const struct two_tower_options *model);
void rows_close(struct rows *r);
// After the columns were restored: 0, -ENOMEM or -EINVAL.
int rows_rebuild(struct rows *r);

// A sighting. ROW_NONE while the id is not admitted.
int64_t rows_user(struct rows *r, const struct id *id, int64_t ts_ms);
int64_t rows_item(struct rows *r, const struct id *id, int64_t ts_ms);

static inline struct row_ref rows_user_ref(const struct rows *r, uint32_t row)
{
    return (struct row_ref){row, id_table_row(&r->users, row)->generation};
}

static inline struct row_ref rows_item_ref(const struct rows *r, uint32_t row)
{
    return (struct row_ref){row, id_table_row(&r->items, row)->generation};
}

static inline bool rows_valid(const struct id_table *t, struct row_ref ref)
{
    const struct id_row *row = id_table_row(t, ref.row);
    return row->kind != ID_ABSENT && row->generation == ref.generation;
}

// A record of the catalogue: title and features. Returns the row or ROW_NONE (table full).
int64_t rows_describe_item(struct rows *r, const struct event *event);
// Frees the row; the caller has made sure that nothing unlearned refers to it.
void rows_remove_item(struct rows *r, uint32_t row);
// Looks at the next few rows of both tables and frees those not seen for their ttl. Returns how
// many left.
int rows_expire(struct rows *r, int64_t now_ms);

// The title, not terminated, size 0 when unknown.
struct text rows_title(const struct rows *r, uint32_t row);
