// SPDX-License-Identifier: Apache-2.0
//
// Which rows take part in a step, each once: a map from rows to slots 0, 1, 2 .. in the order of
// the first mention. Emptying it costs nothing, because an entry counts only while its stamp is
// the map's. 8 bytes a row, touched only for rows that are mentioned. One thread.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "model/pages.h"
#include "model/prefetch.h"

struct mark {
    uint32_t stamp, slot;
};

struct marks {
    struct mark *of; // by row
    size_t rows_max;
    uint32_t stamp;
};

enum { MARKS_NONE = -1 };

// false when memory is short. Empty until the first marks_clear as well.
static inline bool marks_open(struct marks *m, size_t rows_max)
{
    *m = (struct marks){.of = calloc(rows_max, sizeof *m->of), .rows_max = rows_max, .stamp = 1};
    if (m->of)
        pages_advise(m->of, rows_max * sizeof *m->of);
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
        memset(m->of, 0, m->rows_max * sizeof *m->of);
        m->stamp = 1;
    }
}

// Asks for the marks of n rows before they are looked at.
PREFETCHES void marks_prefetch(const struct marks *m, int n, const uint32_t *rows)
{
    for (int i = 0; i < n; i++)
        __builtin_prefetch(&m->of[rows[i]]);
}

// The slot of the row; one that has none gets slot *n, is written to rows[*n], and *n grows.
static inline uint32_t marks_slot(struct marks *m, uint32_t row, uint32_t *rows, int *n)
{
    struct mark *mark = &m->of[row];
    if (mark->stamp != m->stamp) {
        *mark = (struct mark){m->stamp, (uint32_t)*n};
        rows[(*n)++] = row;
    }
    return mark->slot;
}

// The slot, or MARKS_NONE.
static inline int64_t marks_find(const struct marks *m, uint32_t row)
{
    return m->of[row].stamp == m->stamp ? (int64_t)m->of[row].slot : MARKS_NONE;
}
