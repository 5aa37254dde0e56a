// SPDX-License-Identifier: Apache-2.0
//
// All state that a checkpoint keeps lies in columns: named arrays of fixed-size units that grow in
// place and can be read as of one instant while they change. Growing never moves a unit: the
// address space for n_max units is reserved at the start, memory comes with the first touch.
//
// One thread, the owner, edits. Between two edits it may call columns_cut: from then on another
// thread, the sweeper, reads every column as it was at that instant, front to back, while the owner
// goes on. Before the owner changes a unit that the sweeper has not passed, it saves the unit as it
// was (copy before write, one copy per unit and cut); the sweeper copies a stretch and then puts
// the saved units back. Neither waits: only when the space for saved units is used up does the
// owner wait for the sweeper to pass (counted in saves_waited). This is CALC (Ren et al., SIGMOD
// 2016) for one writer.
//
// Running out of address space is reported when a column is opened; nothing else can fail. That
// n_max units are enough is for the caller to see to.
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/prefetch.h"

enum { COLUMNS_MAX = 96 };

// What of every unit is arithmetic: n floats or doubles from byte `from` on, none of which is ever
// beyond max in size. Whoever keeps a column or takes it back can tell by it a state that was
// computed wrong, which no checksum does: garbage is as a rule finite.
struct column_numbers {
    size_t from, n, size; // size: of one, 4 or 8; n 0: nothing is known
    double max;
};

// No length of a vector and no score can be computed from numbers beyond the first; an optimizer
// that has summed up squares beyond the second moves nothing any more.
#define COLUMN_PARAMETER_MAX 1e18
#define COLUMN_SUM_MAX       1e30

struct column {
    const char *name; // also the file name of its array in a checkpoint
    size_t unit;      // bytes
    size_t n, n_max;  // units in use, and reserved
    unsigned char *base;
    struct columns *set;
    struct column_numbers numbers;
    // The cut: units [0, n_cut) belong to it, those below swept have been read.
    size_t n_cut;
    _Atomic size_t swept;
    int block_shift;         // units per list of saved units: 1 << block_shift
    unsigned char *saved_in; // per unit, the epoch of the cut that saved it last
    _Atomic(uint64_t)
        *saved; // per block, the newest saved unit: offset into the undo space, 0 none
};

struct columns {
    int n;
    struct column *list[COLUMNS_MAX];
    struct column_memory {
        void *at;
        size_t n;
    } memory[COLUMNS_MAX][3]; // of each column, so that closing does not look at it
    _Atomic bool cut;         // a sweep is under way
    unsigned char epoch;      // of the current cut, 1..255
    unsigned char *undo;      // space for saved units
    size_t undo_used, undo_max;
    uint64_t saves, saves_waited; // of the current cut
    _Atomic bool waits;           // the owner waits for the sweeper; any thread may look
};

// undo_max: bytes for saved units, reserved, touched only as needed. 0 or -ENOMEM.
int columns_open(struct columns *s, size_t undo_max);
// Gives back the memory of all columns. The columns themselves may be gone by then.
void columns_close(struct columns *s);

// Adds a column of up to n_max units to the set. name must outlive it. 0 or -ENOMEM.
int column_open(struct column *c, struct columns *s, const char *name, size_t unit, size_t n_max);

// Adds n zeroed units; the caller has checked that they fit.
void column_grow(struct column *c, size_t n);

// Says of an open column what of it is arithmetic: n floats from byte `from` of each unit on, and
// the same of doubles.
void column_floats(struct column *c, size_t from, size_t n, double max);
void column_doubles(struct column *c, size_t from, size_t n, double max);
// The first of n units as in c, at any address, with a number that is none or is beyond its max; n
// when there is none.
size_t column_bad(const struct column *c, const void *units, size_t n);

void column_save(struct column *c, size_t i); // for column_edit

static inline const void *column_at(const struct column *c, size_t i)
{
    return c->base + i * c->unit;
}

// Asks for a unit before its turn: in a column larger than the cache it comes from memory. Into the
// second level: a fill buffer of the first is held until memory answers, and there are few (rows of
// 256 bytes drawn from 2.5 GB: 20 ns each, 26 ns into the first).
PREFETCHES void column_prefetch(const struct column *c, size_t i)
{
    enum { CACHE_LINE = 64, SECOND_LEVEL = 2 };
    const char *at = column_at(c, i);
    for (size_t byte = 0; byte < c->unit; byte += CACHE_LINE)
        __builtin_prefetch(at + byte, 0, SECOND_LEVEL);
}

// The same of the first bytes of n units: their first lines, then their second ones. A prefetch
// holds up what follows until its address is translated, which in a large table goes to memory,
// too; side by side several are translated at a time.
PREFETCHES void column_prefetch_all(const struct column *c, size_t bytes, int n,
                                    const uint32_t *rows)
{
    enum { CACHE_LINE = 64, SECOND_LEVEL = 2 };
    for (size_t byte = 0; byte < bytes; byte += CACHE_LINE)
        for (int i = 0; i < n; i++)
            __builtin_prefetch((const char *)column_at(c, rows[i]) + byte, 0, SECOND_LEVEL);
}

// The unit, for writing, until the next cut.
static inline void *column_edit(struct column *c, size_t i)
{
    if (atomic_load_explicit(&c->set->cut, memory_order_relaxed))
        column_save(c, i);
    return c->base + i * c->unit;
}

// The same of a unit that may lie beyond the end: the column grows as far as it.
static inline void *column_reach(struct column *c, size_t i)
{
    if (i >= c->n)
        column_grow(c, i + 1 - c->n);
    return column_edit(c, i);
}

// Owner: starts a cut; there is none under way.
void columns_cut(struct columns *s);
// Sweeper: copies units [from, from + n) as of the cut, n_cut at the most, in order: from is where
// the last call for this column ended. Then they count as passed.
void column_sweep(struct column *c, size_t from, size_t n, void *out);
// Sweeper: the cut is over, whether all was read or not.
void columns_cut_end(struct columns *s);

// For restoring: n units whose bytes the caller fills at once. Who can, with several threads, says
// of units [from, from + n) when they are filled, so that the first cut finds memory for its marks.
void *column_restore(struct column *c, size_t n);
void column_restored(const struct column *c, size_t from, size_t n);
