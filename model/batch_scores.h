// SPDX-License-Identifier: Apache-2.0
//
// The scores of a batch's queries over its candidates, and what their gradients give back:
//
//     S = Q V^T + column      dQ += G V      dV += G^T Q      G = dloss/dS
//
// A tile of at most BATCH_SCORES_TILE queries at a time: what a row of scores is turned into needs
// that row alone, so S and G are never there as a whole (Rabe and Staats 2021 do so for attention).
// A tile takes 4 (candidates + 32) bytes a query and stays in the second cache. For each tile:
//
//     forward     rows of scores
//     ...         the caller turns each row into its gradient, in place
//     backward    adds to dQ, and, where items learn, to dV
//
// In BATCH_SCORES_BF16 Q, V and G are rounded to bfloat16 for the products, which sum in f32;
// scores, gradients and all else stay f32. The order of sums is that of model/products.h: neither
// the instruction set nor the size of the tiles changes a bit. Sizes: n queries, C candidates, d.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct arena;

enum batch_scores_precision { BATCH_SCORES_F32, BATCH_SCORES_BF16 };

enum { BATCH_SCORES_TILE = 64 };

struct batch_scores {
    enum batch_scores_precision precision;
    int d, candidates_max;
    // Of this batch.
    int candidates;
    bool items;    // they learn
    float *S;      // (BATCH_SCORES_TILE, stride): row i begins at S + i * stride, and
    size_t stride; // `candidates` floats of it are the caller's

    // Inside all is padded with zeros to whole blocks: C to `columns`, d to `width`, and to `depth`
    // where bfloat16 is summed over it.
    size_t columns, width, depth;
    float *start;   // (columns)
    float *wide;    // (columns, width) V
    float *sums;    // (columns, width) dV; bf16: its transpose (width, stride)
    const float *Q; // (TILE, width): the caller's, where nothing is to be padded, or in query
    float *query;   // (TILE, width) Q
    float *dquery;  // (TILE, width) dQ, where it is to be padded
    float *panels;  // f32: V^T as panels of PANEL columns, (width, PANEL) each
    // bf16: matrices and their pairs of rows
    uint16_t *rows, *turned;    // (TILE, depth) Q, (width, TILE) Q^T
    uint16_t *drows;            // (TILE, stride) G
    uint16_t *halves;           // (columns, depth) V
    uint32_t *pairs, *dpairs;   // (TILE / 2, width) of Q, (TILE / 2, stride) of G
    uint32_t *scoring, *giving; // (depth / 2, stride) of V^T, (columns / 2, width) of V
};

// Bytes to be had from the arena.
size_t batch_scores_bytes(enum batch_scores_precision precision, int d, int candidates_max);
void batch_scores_init(struct batch_scores *s, enum batch_scores_precision precision, int d,
                       int candidates_max, struct arena *scratch);
// V (C, d) and column (C; NULL: zeros) are read now; items: whether dV is wanted.
void batch_scores_begin(struct batch_scores *s, int C, const float *V, const float *column,
                        bool items);
// Fills n <= BATCH_SCORES_TILE rows of S from Q (n, d), which stays as it is until after backward.
void batch_scores_forward(struct batch_scores *s, int n, const float *Q);
// Only takes Q, for a backward whose scores are known; it stays, too.
void batch_scores_take(struct batch_scores *s, int n, const float *Q);
// S holds G by now, for the n queries that came last. Adds to dQ (n, d); NULL: not wanted.
void batch_scores_backward(struct batch_scores *s, int n, float *dQ);
// After the last tile, where items learn: adds to dV (C, d).
void batch_scores_end(struct batch_scores *s, float *dV);
