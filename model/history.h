// SPDX-License-Identifier: Apache-2.0
//
// What every user engaged with, by event time. history_before gives it as of an instant: strictly
// earlier engagements only, so an impression never sees itself, its basket, or the future.
//
// Kept per user: the newest `length` engagements older than the newest time stamp, and up to
// `length` at that time stamp. So the history before any later instant is complete, and before the
// newest instant too, however many engagements share it. At most 2 length entries of 16 bytes.
//
// One thread. Everything lies in columns.
#pragma once

#include "model/heap.h"
#include "model/id_table.h"

enum { HISTORY_MAX = 64 };

struct history_entry {
    uint32_t item; // row
    uint8_t generation;
    uint8_t action;
    uint16_t reserved;
    int64_t ts_ms;
};

struct history_head {
    uint32_t block; // of entries, oldest first
    uint16_t n, capacity;
};

struct history {
    struct column head; // struct history_head by user row
    struct heap entry;
    int length;
    uint64_t
        refused_full; // the oldest entries, not kept because the heap was full; since the start
};

// length in 1..HISTORY_MAX. 0 or -ENOMEM.
int history_open(struct history *h, struct columns *s, size_t users_max, size_t entries_max,
                 int length);
// An engagement of this user, in any order of time.
void history_add(struct history *h, uint32_t user, struct history_entry entry);
// The rows of the newest engagements before ts_ms, newest first, at most max; returns how many.
// Items that have expired since are left out.
int history_before(const struct history *h, uint32_t user, int64_t ts_ms,
                   const struct id_table *items, int max, uint32_t *rows);
// How many of the first of them share one time: a basket, a page of ratings.
int history_newest(const struct history *h, uint32_t user, int64_t ts_ms,
                   const struct id_table *items, int max);
// Both at once and at the end of time, for whoever walks all users: owner[row] is the generation of
// the item in the row, -1 when there is none. Two bytes for each item stay in a cache where their
// rows do not.
int history_recent(const struct history *h, uint32_t user, const int16_t *owner, int max,
                   uint32_t *rows, int *newest);
// The user's row has expired.
void history_clear(struct history *h, uint32_t user);
