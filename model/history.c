// SPDX-License-Identifier: Apache-2.0
#include "model/history.h"

#include <assert.h>
#include <string.h>

_Static_assert(sizeof(struct history_entry) == HEAP_GRANULE, "one granule is one entry");

int history_open(struct history *h, struct columns *s, size_t users_max, size_t entries_max,
                 int length)
{
    assert(length >= 1 && length <= HISTORY_MAX);
    *h = (struct history){.length = length};
    const int rc = column_open(&h->head, s, "user.history", sizeof(struct history_head), users_max);
    if (rc < 0)
        return rc;
    return heap_open(&h->entry, s, "user.history_entry", "user.history_free", entries_max);
}

static const struct history_head *head_of(const struct history *h, uint32_t user)
{
    static const struct history_head none = {0};
    return user < h->head.n ? column_at(&h->head, user) : &none;
}

// Moves the entries into a larger block; false when there is none.
static bool enlarge(struct history *h, struct history_head *head)
{
    const size_t capacity = heap_capacity(head->capacity ? (size_t)head->capacity * 3 / 2 + 1 : 4);
    const uint32_t block = heap_take(&h->entry, capacity);
    if (!block)
        return false;
    struct history_entry *entries = heap_edit(&h->entry, block, 0, capacity);
    if (head->block) {
        memcpy(entries, heap_at(&h->entry, head->block), head->n * sizeof *entries);
        heap_give(&h->entry, head->block, head->capacity);
    }
    head->block = block;
    head->capacity = (uint16_t)capacity;
    return true;
}

void history_add(struct history *h, uint32_t user, struct history_entry entry)
{
    if (user >= h->head.n)
        column_grow(&h->head, user + 1 - h->head.n);
    struct history_head *head = column_edit(&h->head, user);
    const struct history_entry *old =
        head->block ? heap_at(&h->entry, head->block) : &(struct history_entry){0};

    // The place: after everything that is not later. Almost always the end.
    int place = head->n;
    while (place > 0 && old[place - 1].ts_ms > entry.ts_ms)
        place--;
    for (int at = place - 1; at >= 0 && old[at].ts_ms == entry.ts_ms; at--)
        if (old[at].item == entry.item && old[at].generation == entry.generation) {
            struct history_entry *same = heap_edit(&h->entry, head->block, (size_t)at, 1);
            same->actions |= entry.actions;
            return;
        }
    const int64_t newest = place == head->n ? entry.ts_ms : old[head->n - 1].ts_ms;
    int settled = 0; // entries older than the newest time, with the new one
    while (settled < head->n && old[settled].ts_ms < newest)
        settled++;
    settled += entry.ts_ms < newest;
    const int group = head->n + 1 - settled;

    // What goes: the oldest of the settled ones, then the oldest of the group.
    int drop = -1;
    if (settled > h->length)
        drop = 0;
    else if (group > h->length)
        drop = settled;
    if (drop == 0 && place == 0)
        return; // older than everything kept
    if (drop < 0 && head->n == head->capacity) {
        if (!enlarge(h, head)) {
            // No room: the oldest goes instead, or a history would stay as it is for ever.
            h->refused_full++;
            if (place == 0)
                return;
            drop = 0;
        }
    }
    const int from = drop < 0 ? place : (drop < place ? drop : place);
    const int to = drop < 0 ? head->n : (drop < place ? place - 1 : drop);
    struct history_entry *entries =
        (struct history_entry *)heap_edit(&h->entry, head->block, (size_t)from,
                                          (size_t)(to - from + 1)) -
        from;
    if (drop < 0) {
        memmove(entries + place + 1, entries + place, (size_t)(head->n - place) * sizeof *entries);
        head->n++;
    } else if (drop < place) {
        memmove(entries + drop, entries + drop + 1, (size_t)(place - 1 - drop) * sizeof *entries);
        place--;
    } else {
        memmove(entries + place + 1, entries + place, (size_t)(drop - place) * sizeof *entries);
    }
    entries[place] = entry;
}

static inline void walk_put(struct history_walk *w, int n, const struct history_entry *entry,
                            int64_t now_ms, int64_t *newest_ms)
{
    if (n == 0) {
        *newest_ms = entry->ts_ms;
        w->newest = 0;
    }
    w->newest += entry->ts_ms == *newest_ms;
    w->rows[n] = entry->item;
    w->actions[n] = entry->actions;
    if (w->gaps)
        w->gaps[n] = history_gap(now_ms - entry->ts_ms);
    if (w->ts_ms)
        w->ts_ms[n] = entry->ts_ms;
}

int history_before(const struct history *h, uint32_t user, int64_t ts_ms,
                   const struct id_table *items, int max, struct history_walk *walk)
{
    const struct history_head *head = head_of(h, user);
    const struct history_entry *entries = head->block ? heap_at(&h->entry, head->block) : NULL;
    int64_t newest_ms = 0;
    int n = 0;
    walk->newest = 0;
    for (int at = head->n - 1; at >= 0 && n < max; at--) {
        const struct history_entry *entry = &entries[at];
        if (entry->ts_ms >= ts_ms)
            continue;
        const struct id_row *item = id_table_row(items, entry->item);
        if (item->kind != ID_ABSENT && item->generation == entry->generation)
            walk_put(walk, n++, entry, ts_ms, &newest_ms);
    }
    return n;
}

int history_recent(const struct history *h, uint32_t user, int64_t now_ms,
                   const struct history_owner *owner, int max, struct history_walk *walk)
{
    const struct history_head *head = head_of(h, user);
    const struct history_entry *entries = head->block ? heap_at(&h->entry, head->block) : NULL;
    int64_t newest_ms = 0;
    int n = 0;
    walk->newest = 0;
    for (int at = head->n - 1; at >= 0 && n < max; at--)
        if (owner[entries[at].item].generation == entries[at].generation)
            walk_put(walk, n++, &entries[at], now_ms, &newest_ms);
    return n;
}

void history_clear(struct history *h, uint32_t user)
{
    if (!head_of(h, user)->block)
        return;
    struct history_head *head = column_edit(&h->head, user);
    heap_give(&h->entry, head->block, head->capacity);
    *head = (struct history_head){0};
}
