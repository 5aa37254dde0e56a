// SPDX-License-Identifier: Apache-2.0
//
// From ids to rows. Every id has a row of its own: 96 bits of its hash are compared, never a hash
// modulo the table's size. Rows are dense numbers from 0, used by the columns that belong to the
// table; a row that expires is handed out again under a new generation, so whoever keeps a row
// number across events keeps the generation with it.
//
// Admission: an id gets a row at its admit-th sighting. Until then it is counted in a filter, half
// a place for each row of rows_max, that forgets what was not seen for 30 days, and the least seen
// when it is full (refused again later rather than admitted early). Expiry: a row not seen for
// ttl_ms of event time goes; the search for such rows advances a few rows at a time, so there is
// never a stop. Growing: the index moves to a larger one a few slots per admission, rows lie in
// columns. Looking up takes a few probes whatever ids there are, also when somebody chose them for
// it.
//
// One thread, but for id_table_restored. Rows, ids and the filter are columns and part of a
// checkpoint; the index is rebuilt.
#pragma once

#include "model/heap.h"
#include "model/id.h"

struct id_row {
    uint64_t hash;
    uint32_t check;
    uint16_t size;      // of the id's bytes; with ID_WITHIN
    uint8_t kind;       // enum id_kind; ID_ABSENT: the row is free
    uint8_t generation; // of the row's present owner
    union {
        uint32_t text; // heap block of the id's bytes; when free, the next free row + 1
        char bytes[8]; // with ID_WITHIN: an id as short as that has no block
    };
    int64_t seen_ms; // event time of the last sighting, up to a minute behind
    int64_t created_ms;
};

enum { ID_WITHIN = 1 << 15 };

struct id_table_options {
    const char *names[3]; // of the columns: rows, scalars, filter
    const char *heap_names[2];
    size_t rows_max;
    int admit;      // sightings that make a row, >= 1
    int64_t ttl_ms; // 0: never
    bool no_text;   // ids are never asked for again: their bytes are not kept
};

// The scalars of a table, one unit of a column.
struct id_table_state {
    uint64_t live;
    uint32_t free;                                     // first free row + 1
    uint32_t clock;                                    // where the search for expired rows goes on
    uint64_t admitted, expired, refused_full, waiting; // waiting: sightings below admit
};

struct id_index;

struct id_table {
    struct column row;    // struct id_row
    struct column state;  // one struct id_table_state
    struct column filter; // struct sighting; not opened when admit is 1
    struct heap text;
    struct id_table_options options;
    struct id_index *index;
};

enum { ID_NO_ROW = -1 };

// 0 or -ENOMEM.
int id_table_open(struct id_table *t, struct columns *s, const struct id_table_options *options);
void id_table_close(struct id_table *t);
// After the columns were restored. 0, -ENOMEM, or -EINVAL when two rows have one id.
int id_table_rebuild(struct id_table *t);
// Most of that while they are being restored: once their number is (0 or -ENOMEM), and then, by
// several threads, of rows [first, first + n) whose bytes are there, each row once.
// id_table_rebuild has nothing left to do when it was told of all, and does everything when it was
// not.
int id_table_restoring(struct id_table *t);
void id_table_restored(struct id_table *t, size_t first, size_t n);

// The row of the id or ID_NO_ROW; changes nothing.
int64_t id_table_find(const struct id_table *t, const struct id *id);
// A sighting at ts_ms: the row, made now (then *created is true) if this is the admit-th sighting;
// ID_NO_ROW when it is not yet, or when the table is full (counted).
int64_t id_table_see(struct id_table *t, const struct id *id, int64_t ts_ms, bool *created);
// The same, but admits at the first sighting: for ids that a catalogue vouches for.
int64_t id_table_admit(struct id_table *t, const struct id *id, int64_t ts_ms, bool *created);
// Frees a live row; its columns are the caller's to clean.
void id_table_remove(struct id_table *t, uint32_t row);
// Removes up to max rows not seen since now_ms - ttl, looking at up to look rows; writes their
// numbers to rows and returns how many. Their columns are the caller's to clean.
int id_table_expire(struct id_table *t, int64_t now_ms, int look, uint32_t *rows, int max);

static inline const struct id_row *id_table_row(const struct id_table *t, uint32_t row)
{
    return column_at(&t->row, row);
}

static inline bool id_table_live(const struct id_table *t, uint32_t row)
{
    return id_table_row(t, row)->kind != ID_ABSENT;
}

static inline const struct id_table_state *id_table_state(const struct id_table *t)
{
    return column_at(&t->state, 0);
}

// The id of a live row; bytes lead into the table.
struct id id_table_id(const struct id_table *t, uint32_t row);
