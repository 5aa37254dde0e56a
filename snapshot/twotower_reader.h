// SPDX-License-Identifier: Apache-2.0
//
// Reads the snapshots that twotower publishes: arrays mapped read-only, ids to rows and back, exact
// nearest items. pkg-config: twotower_reader.
//
//     struct tt_reader *r;
//     char error[256];
//     if (tt_open(&r, "/var/lib/twotower/snapshots", error, sizeof error) < 0)
//         errx(1, "%s", error);
//     const struct tt_array *emb = tt_find(r, "item_emb.f32.safetensors");
//     ...
//     tt_close(r);
//
// Functions return 0 (or a count) or -errno; those with an error buffer put a sentence there. After
// tt_open a reader does not change: any number of threads may use it. What it hands out lives until
// tt_close. It keeps a shared lock on the snapshot's manifest, and the publisher does not remove a
// snapshot so locked; on a copy elsewhere that costs nothing.
//
// To follow LATEST, ask tt_moved every second or so; when it says 1, open a second reader,
// tt_verify it, swap the pointer, and close the first when its last query is done. The number may
// be smaller than before: an operator went back to an older snapshot.
// deploy/examples/follow_snapshot.c.
//
// A damaged or hostile snapshot is refused with -EBADMSG; it cannot make a function read outside a
// file. (A file that somebody truncates while it is mapped can: SIGBUS. The publisher never does.)
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifdef __GNUC__
#define TT_API __attribute__((visibility("default")))
#else
#define TT_API
#endif

#define TT_DIMS_MAX 4
#define TT_NO_ROW   UINT32_MAX // in arrays of rows: none here

struct tt_reader;

struct tt_array {
    const char *name;            // "item_emb.f32.safetensors"
    const char *role;            // "item_embedding"
    const char *tensor;          // "emb"; NULL: a file of plain bytes
    const char *dtype;           // "F32", "F16", "U64", "U32", "U8", ... as in safetensors
    int n_dims;                  // 0..TT_DIMS_MAX
    uint64_t shape[TT_DIMS_MAX]; // rows first
    uint64_t size;               // bytes of the data
    const void *data;            // little-endian, row-major, packed, on a 64-byte boundary
};

// path is a snapshot (it has a manifest.json) or the directory of all: then the one that LATEST
// names, or when that is not whole, the newest that is. Checks the manifest and the size of every
// file; the data only in tt_verify. -ENOENT: no snapshot there.
TT_API int tt_open(struct tt_reader **r, const char *path, char *error, size_t error_size);
TT_API void tt_close(struct tt_reader *r);

// Whether LATEST in root, the directory of all, names another snapshot than this one: 1 or 0. By
// what it says, not by its number being larger nor by its inode, which a later file may get again.
// -errno when it cannot be read, -EBADMSG when it is not legible: then this one is as good as any.
TT_API int tt_moved(const struct tt_reader *r, const char *root);

// Reads everything: the checksums of all data, the headers of the files against the manifest, the
// headers of the indexes, and that no floating-point value is infinite or NaN. About 2 s per 10 GB
// from memory.
TT_API int tt_verify(const struct tt_reader *r, char *error, size_t error_size);

TT_API uint64_t tt_snapshot(const struct tt_reader *r);         // its number
TT_API const char *tt_path(const struct tt_reader *r);          // of the snapshot's directory
TT_API const char *tt_format(const struct tt_reader *r);        // "twotower-snapshot"
TT_API const char *tt_manifest_json(const struct tt_reader *r); // the text, terminated
TT_API int tt_n_arrays(const struct tt_reader *r);
TT_API const struct tt_array *tt_array_at(const struct tt_reader *r, int i);
// By file name, else by role. NULL when there is none.
TT_API const struct tt_array *tt_find(const struct tt_reader *r, const char *name);

// The ids of a table ("item", "user") with their index. A value: copy it freely.
struct tt_table {
    uint64_t n;              // rows
    const uint64_t *integer; // ids when all are integers >= 0; else NULL, and:
    const char *bytes;       // of all ids
    uint64_t bytes_size;
    const uint64_t *offset; // n + 1
    const uint8_t *kind;    // enum tt_id_kind
    const void *buckets;    // of the index
    uint64_t n_buckets, seed;
};

enum tt_id_kind { TT_ID_STRING = 0, TT_ID_INTEGER = 1 };

struct tt_id {
    enum tt_id_kind kind;
    uint64_t integer;  // of an integer table
    const char *bytes; // of other tables: the string, or the integer in decimal; not terminated.
    uint64_t size;     // NULL and 0 in an integer table
};

TT_API int tt_table(const struct tt_reader *r, const char *name, struct tt_table *table,
                    char *error, size_t error_size);
// The row of an id, one or two cache lines away. -ENOENT when the table does not have it, -EBADMSG
// when the files contradict each other. The string "7" and the integer 7 are different ids.
TT_API int tt_row_of_integer(const struct tt_table *table, int64_t id, uint64_t *row);
TT_API int tt_row_of_unsigned(const struct tt_table *table, uint64_t id, uint64_t *row);
TT_API int tt_row_of_string(const struct tt_table *table, const char *bytes, size_t size,
                            uint64_t *row);
// -ERANGE when there is no such row.
TT_API int tt_id_of_row(const struct tt_table *table, uint64_t row, struct tt_id *id);

// A column of strings, for instance "item_titles".
struct tt_strings {
    uint64_t n;
    const char *bytes;
    uint64_t bytes_size;
    const uint64_t *offset; // n + 1
};

TT_API int tt_strings(const struct tt_reader *r, const char *name, struct tt_strings *strings,
                      char *error, size_t error_size);
// The string of a row, UTF-8, not terminated; NULL when there is no such row.
TT_API const char *tt_string(const struct tt_strings *strings, uint64_t row, uint64_t *size);

// The k items with the largest score, score = <vector, item>, exactly: every row is looked at.
struct tt_query {
    const struct tt_array *items; // F32 (N, D)
    const float *vector;          // D
    uint32_t k;
    // Rows whose score gets a bonus on top: the user's history, whose repeat term no vector can
    // carry. The bonuses of a row given twice add up. Rows >= N are passed over, so a history with
    // TT_NO_ROW in it can be given as it is.
    uint32_t n_adjust;
    const uint32_t *adjust_rows;
    const float *adjust_bonus;
    // Rows that must not appear.
    uint32_t n_exclude;
    const uint32_t *exclude_rows;
};

// Writes the best rows and their scores, k of each or fewer when there are no more, and returns how
// many. Order: larger score first, then smaller row; NaN after all numbers. -EINVAL when items is
// not F32 (N, D) with N < 2^32 - 1; -ENOMEM.
TT_API int64_t tt_topk(const struct tt_query *query, uint32_t *rows, float *scores);

// Codes of 8 bits for the items, so that tt_topk_batch reads a quarter of the bytes and only those
// rows in full that may be among the best: several times faster, and the answers are the same to
// the bit. For who asks often: made once for a snapshot, about 0.1 s of one core and 72 MB for a
// million items of 64 columns. After that codes do not change: any number of threads may use them.
// They point to the items: free them before the reader is closed.
//
// -EINVAL as tt_topk, and for more than 4096 columns; -ENOMEM.
struct tt_codes;
TT_API int tt_codes_make(struct tt_codes **codes, const struct tt_array *items);
TT_API void tt_codes_free(struct tt_codes *codes);

// tt_topk for n queries with the same items and k, which share the reading of the items: 8 at once
// take a good deal less than 8 times the time of one. codes: those of the items, or NULL. rows and
// scores (n, k); found (n): how many of each. Every query finds what tt_topk finds. 0, or -EINVAL
// as tt_topk, also when items and k differ or the codes are of others; -ENOMEM.
TT_API int tt_topk_batch(const struct tt_query *queries, uint32_t n, const struct tt_codes *codes,
                         uint32_t *rows, float *scores, uint32_t *found);

#ifdef __cplusplus
}
#endif
