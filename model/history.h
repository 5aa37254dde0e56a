// SPDX-License-Identifier: Apache-2.0
//
// What every user engaged with, by event time. history_before gives it as of an instant: strictly
// earlier engagements only, so an impression never sees itself, its basket, or the future.
//
// Kept per user: the newest `length` engagements older than the newest time stamp, and up to
// `length` at that time stamp. So the history before any later instant is complete, and before the
// newest instant too, however many engagements share it. At most 2 length entries of 16 bytes.
// Several actions on one item at one instant are one engagement: its mask has a bit for each.
//
// One thread. Everything lies in columns.
#pragma once

#include "model/heap.h"
#include "model/id_table.h"

enum { HISTORY_MAX = 64, HISTORY_ACTIONS = 8, HISTORY_GAPS = 32 };

// The bit of an action by its number. The eighth and all after it share the last one.
static inline uint8_t history_action(int number)
{
    return (uint8_t)(1 << (number < HISTORY_ACTIONS ? number : HISTORY_ACTIONS - 1));
}

// The bucket of the time between an engagement and who looks back at it: 0 below a second, then one
// for each doubling, [2^(b - 1), 2^b) seconds.
static inline uint8_t history_gap(int64_t gap_ms)
{
    const uint64_t seconds = gap_ms > 0 ? (uint64_t)gap_ms / 1000 : 0;
    const int bucket = seconds > 0 ? 64 - __builtin_clzll(seconds) : 0;
    return (uint8_t)(bucket < HISTORY_GAPS ? bucket : HISTORY_GAPS - 1);
}

struct history_entry {
    uint32_t item; // row
    uint8_t generation;
    uint8_t actions; // mask
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
// Where one walk writes, newest first, a place for each engagement in every array of the caller's.
struct history_walk {
    uint32_t *rows;
    uint8_t *actions; // masks
    uint8_t *gaps;    // history_gap of each; may be NULL, as the next
    int64_t *ts_ms;   // when each was
    int newest;       // of the first, how many share one time: a basket, a page of ratings
};

// The newest engagements before ts_ms, at most max; returns how many. Items that have expired since
// are left out. Gaps are up to ts_ms.
int history_before(const struct history *h, uint32_t user, int64_t ts_ms,
                   const struct id_table *items, int max, struct history_walk *walk);
// What whoever walks all users keeps of each row of items: eight bytes come from memory at once,
// and stay in a cache where the rows themselves do not.
struct history_owner {
    uint32_t number;    // the caller's name of the row
    int16_t generation; // of the item in the row, -1 when there is none
};
// The same at the end of time with gaps up to now_ms; owner is by row of items.
int history_recent(const struct history *h, uint32_t user, int64_t now_ms,
                   const struct history_owner *owner, int max, struct history_walk *walk);
// The user's row has expired.
void history_clear(struct history *h, uint32_t user);
