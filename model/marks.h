// SPDX-License-Identifier: Apache-2.0
//
// Which rows take part in a step, each once: a map from rows to slots 0, 1, 2 .. in the order of
// the first mention. A hash table as large as the steps are, not as the tables are, so that it
// stays in the cache: with a place for each of 10 million rows every look went to memory. Emptying
// it costs nothing, because an entry counts only while its stamp is the map's. One thread.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct mark {
    uint32_t stamp, row, slot;
};

struct marks {
    struct mark *of; // 1 << bits places, by the hash of the row, then by the next free one
    int bits, bits_max;
    uint32_t stamp;
};

enum { MARKS_NONE = -1, MARKS_BITS = 8 };

// For up to n_max rows at a time. false when memory is short. Empty until the first marks_clear as
// well.
static inline bool marks_open(struct marks *m, size_t n_max)
{
    *m = (struct marks){.bits = MARKS_BITS, .bits_max = MARKS_BITS, .stamp = 1};
    while ((size_t)1 << m->bits_max < 2 * n_max)
        m->bits_max++;
    m->of = calloc((size_t)1 << m->bits_max, sizeof *m->of); // untouched until it has grown so far
    return m->of != NULL;
}

static inline void marks_close(struct marks *m)
{
    free(m->of);
    m->of = NULL;
}

static inline void marks_clear(struct marks *m)
{
    if (++m->stamp == 0) { // 2^32 steps later old marks would look new
        memset(m->of, 0, sizeof *m->of << m->bits_max);
        m->stamp = 1;
    }
}

// Where the row is, or the free place where it would be. There always is one.
static inline struct mark *marks_place(const struct marks *m, uint32_t row)
{
    const uint32_t mask = (UINT32_C(1) << m->bits) - 1;
    uint32_t i = row * UINT32_C(0x9e3779b1) >> (32 - m->bits); // Knuth's multiplicative hash
    while (m->of[i].stamp == m->stamp && m->of[i].row != row)
        i = (i + 1) & mask;
    return &m->of[i];
}

// Half full: twice as large from here on.
static inline void marks_grow(struct marks *m, const uint32_t *rows, int n)
{
    m->bits++;
    marks_clear(m);
    for (int slot = 0; slot < n; slot++)
        *marks_place(m, rows[slot]) = (struct mark){m->stamp, rows[slot], (uint32_t)slot};
}

// The slot of the row; one that has none gets slot *n, is written to rows[*n], and *n grows. rows
// (*n) are all that were mentioned so far.
static inline uint32_t marks_slot(struct marks *m, uint32_t row, uint32_t *rows, int *n)
{
    struct mark *mark = marks_place(m, row);
    if (mark->stamp == m->stamp)
        return mark->slot;
    const int slot = (*n)++;
    *mark = (struct mark){m->stamp, row, (uint32_t)slot};
    rows[slot] = row;
    if (m->bits<m->bits_max && * n> 1 << (m->bits - 1))
        marks_grow(m, rows, *n);
    return (uint32_t)slot;
}

// The slot, or MARKS_NONE.
static inline int64_t marks_find(const struct marks *m, uint32_t row)
{
    const struct mark *mark = marks_place(m, row);
    return mark->stamp == m->stamp ? (int64_t)mark->slot : MARKS_NONE;
}
