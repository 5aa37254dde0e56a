// SPDX-License-Identifier: Apache-2.0
//
// The loops under tt_topk: 16 rows of a matrix against a few queries. One source,
// snapshot/scan_impl.c, is compiled once for each instruction set.
//
// Inner products have 16 partial sums whatever the register width, column i in sum i % 16, and one
// tree adds the 16; nothing is contracted. So all sets give the same bits, and a row's score is the
// same wherever it lies.
//
// Codes say where a row can't be among the best without reading it: 8 bits for a column, one column
// exact. A row x is z e + s c + d: e the exact column, s its scale, c its codes in [-127, 127], and
// |d| <= s / 2 in each column; a query q is q_z e + t k + g alike. Without the exact column
//
//     <q, x> = z q_z + s (t <c, k> + <c, g> + <d, q> / s)
//     |<c, g>| <= |c| |g|        |<d, q>| <= s |q|_1 / 2
//
// so upper = s (t <c, k> + bound) + z q_z is no less than the score when bound is no less than
// max |c| |g| + |q|_1 / 2 and what rounding does to all of it (scan_query_code says how much that
// is). <c, k> is a sum of integers, exact. Where that proof does not hold, with NaN, infinities and
// values so large or small that sums overflow or products vanish, s or bound is NaN, and so is
// upper: such a row is read.
#pragma once

#include <stddef.h>
#include <stdint.h>

enum {
    SCAN_ROWS = 16,      // a block
    SCAN_STEP = 4,       // columns of a row that lie together
    SCAN_COLUMNS = 4096, // of codes, at most: sums of products of them are below 2^31 then
};

// What a scan knows of a query. Those of codes are set by scan_query_code.
struct scan_query {
    const float *vector; // (D)
    float worst;         // scores below do not enter; NaN: all do
    const int8_t *code;  // (steps SCAN_STEP): k, padded with zeros
    int32_t start;      // what the sum of products begins with, for codes are stored with 128 added
    float scale, bound; // t, and in units of a row's scale
    float z;            // q_z
};

// Codes of a matrix. The exact column changes places with the last, for every row and query.
struct scan_codes {
    size_t D, column; // the exact one
    size_t steps;     // of SCAN_STEP columns; D - 1 of them count
    uint32_t n_blocks;
    uint8_t *code;       // (n_blocks, steps, SCAN_ROWS, SCAN_STEP): c + 128; 128 where nothing is
    float *scale, *z;    // (n_blocks, SCAN_ROWS): s and z, 0 where no row is
    float length, ratio; // of all rows with a scale: max |c|, and max |x| / s
};

struct scan {
    const char *name;
    float (*dot)(size_t D, const float *q, const float *x);
    // scores (n, SCAN_ROWS) of the rows x (SCAN_ROWS, D), and which of them are not below worst:
    // bit r of hits[i] is row r for query i. Returns whether any is set. Reads ahead of x.
    uint32_t (*score)(size_t D, uint32_t n, const struct scan_query *q, const float *x,
                      float *scores, uint32_t *hits);
    // The same with what scores can be at most, for this block of codes.
    uint32_t (*upper)(const struct scan_codes *codes, uint32_t block, uint32_t n,
                      const struct scan_query *q, uint32_t *hits);
    // c = x / s, rounded, in one row of codes: n columns, c + 128 to every
    // SCAN_ROWS SCAN_STEP bytes SCAN_STEP of them. inverse is 1 / s. Returns the sum of c^2.
    int32_t (*encode)(size_t n, float inverse, const float *x, uint8_t *codes);
    // The largest |x[i]| and the sum of x[i]^2; NaN where a NaN is.
    float (*range)(size_t n, const float *x, float *squares);
};

// The best set for this CPU. Any thread.
const struct scan *scan_best(void);
// All sets this CPU can run, best last.
int scan_list(const struct scan **list, int max);

// Fills the codes of rows (n, D). row: D floats of scratch. The arrays and sizes are set, the
// column is chosen; length and ratio are 0.
void scan_encode(const struct scan *s, struct scan_codes *codes, uint32_t n, const float *rows,
                 float *row);
// The query's side: code is written, and whatever else upper reads. q->vector is set.
void scan_query_code(const struct scan_codes *codes, struct scan_query *q, int8_t *code);
