// SPDX-License-Identifier: Apache-2.0
#include "pipeline/rows.h"

#include <string.h>

struct title {
    uint32_t block;
    uint16_t size, reserved;
};

_Static_assert(sizeof(struct title) == ROWS_TITLE_UNIT, "whoever maps a checkpoint counts on it");

enum { EXPIRE_LOOK = 256, EXPIRE_MAX = 64 };

int rows_open(struct rows *r, struct columns *s, const struct rows_options *options,
              const struct two_tower_options *model)
{
    *r = (struct rows){0};
    const int length = two_tower_history(model);
    int rc = id_table_open(
        &r->items, s,
        &(struct id_table_options){.names = {"item.id", "item.table", "item.sighting"},
                                   .heap_names = {"item.id_text", "item.id_free"},
                                   .rows_max = options->items_max,
                                   .admit = options->admit_items,
                                   .ttl_ms = options->item_ttl_ms});
    if (rc == 0)
        rc = id_table_open(
            &r->users, s,
            &(struct id_table_options){.names = {"user.id", "user.table", "user.sighting"},
                                       .heap_names = {"user.id_text", "user.id_free"},
                                       .rows_max = options->users_max,
                                       .admit = options->admit_users,
                                       .ttl_ms = options->user_ttl_ms});
    if (rc == 0)
        rc = history_open(&r->history, s, options->users_max,
                          options->users_max * (size_t)(2 * (length > 0 ? length : 1)),
                          length > 0 ? length : 1);
    if (rc == 0)
        rc = column_open(&r->title, s, "item.title", sizeof(struct title), options->items_max);
    if (rc == 0)
        rc = heap_open(&r->titles, s, "item.title_text", "item.title_free",
                       options->items_max * 16 + HEAP_GRANULES_MAX);
    if (rc == 0)
        rc = two_tower_open(&r->model, s, &r->items, &r->users, model);
    if (rc < 0)
        rows_close(r);
    return rc;
}

void rows_close(struct rows *r)
{
    two_tower_close(r->model);
    r->model = NULL;
    id_table_close(&r->items);
    id_table_close(&r->users);
}

int rows_rebuild(struct rows *r)
{
    const int rc = id_table_rebuild(&r->items);
    return rc < 0 ? rc : id_table_rebuild(&r->users);
}

int64_t rows_user(struct rows *r, const struct id *id, int64_t ts_ms)
{
    bool created;
    const int64_t row = id_table_see(&r->users, id, ts_ms, &created);
    if (created)
        two_tower_user_created(r->model, (uint32_t)row);
    return row;
}

static void item_created(struct rows *r, uint32_t row)
{
    two_tower_item_created(r->model, row);
    if (row >= r->title.n)
        column_grow(&r->title, row + 1 - r->title.n);
}

int64_t rows_item(struct rows *r, const struct id *id, int64_t ts_ms)
{
    bool created;
    const int64_t row = id_table_see(&r->items, id, ts_ms, &created);
    if (created)
        item_created(r, (uint32_t)row);
    return row;
}

static void title_clear(struct rows *r, uint32_t row)
{
    struct title *title = column_edit(&r->title, row);
    if (title->block)
        heap_give(&r->titles, title->block, heap_granules(title->size));
    *title = (struct title){0};
}

static void title_set(struct rows *r, uint32_t row, struct text text)
{
    size_t size = text.size < TITLE_BYTES_MAX ? text.size : TITLE_BYTES_MAX;
    while (size > 0 && size < text.size && ((unsigned char)text.bytes[size] & 0xc0) == 0x80)
        size--; // not in the middle of a character
    title_clear(r, row);
    if (size == 0)
        return;
    const uint32_t block = heap_take(&r->titles, heap_granules(size));
    if (!block)
        return; // the title is for people; the item is learned without it
    char *bytes = heap_edit(&r->titles, block, 0, heap_granules(size));
    memset(bytes, 0, heap_granules(size) * HEAP_GRANULE);
    memcpy(bytes, text.bytes, size);
    *(struct title *)column_edit(&r->title, row) = (struct title){block, (uint16_t)size, 0};
}

int64_t rows_describe_item(struct rows *r, const struct event *event)
{
    const struct event_item *item = &event->items[0];
    bool created;
    const int64_t row = id_table_admit(&r->items, &item->item, event->ts_ms, &created);
    if (row < 0)
        return ROW_NONE;
    if (created)
        item_created(r, (uint32_t)row);
    title_set(r, (uint32_t)row, event->title);
    two_tower_item_features(r->model, (uint32_t)row, item->n_features, item->features);
    return row;
}

void rows_remove_item(struct rows *r, uint32_t row)
{
    id_table_remove(&r->items, row);
    title_clear(r, row);
}

int rows_expire(struct rows *r, int64_t now_ms)
{
    uint32_t gone[EXPIRE_MAX];
    const int items = id_table_expire(&r->items, now_ms, EXPIRE_LOOK, gone, EXPIRE_MAX);
    for (int i = 0; i < items; i++)
        title_clear(r, gone[i]);
    const int users = id_table_expire(&r->users, now_ms, EXPIRE_LOOK, gone, EXPIRE_MAX);
    for (int i = 0; i < users; i++)
        history_clear(&r->history, gone[i]);
    return items + users;
}

struct text rows_title(const struct rows *r, uint32_t row)
{
    if (row >= r->title.n)
        return (struct text){0};
    const struct title *title = column_at(&r->title, row);
    return (struct text){title->block ? heap_at(&r->titles, title->block) : NULL, title->size};
}
