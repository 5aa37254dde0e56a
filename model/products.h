// SPDX-License-Identifier: Apache-2.0
//
// The matrix products of a batch's softmax (model/batch_scores.h), in f32 and from bfloat16. One
// source, model/products_impl.c, is compiled once for each instruction set; model/kernels.c picks
// one with the kernels.
//
// What each element is summed from, and in which order, is part of the contract, so all sets give
// the same bits, whatever the shape of the blocks they work in; tests/unit/test_products.c proves
// it. Matrices are row-major; a row begins a leading dimension (ld.., in elements) after the one
// before. n is a multiple of 16, and where a factor is bfloat16 m is, too, and K a multiple of 32.
#pragma once

#include <stddef.h>
#include <stdint.h>

// Elements by which one dimension of a block is padded: a register of the widest set, two rows of
// a tile.
enum { PRODUCTS_COLUMNS = 16, PRODUCTS_ROWS = 32 };

struct products {
    // C (m, n) = start + A B, B (K, n). A's element (i, k) is A[i a_row + k a_k], so either side
    // may be transposed; row i of start begins at start + i start_row: 0 starts all rows alike, and
    // start may be C. c = fma(a_ik, b_kj, c) for k = 0, 1, ..
    void (*f32)(size_t m, size_t n, size_t K, const float *A, size_t a_row, size_t a_k,
                const float *B, size_t ldb, const float *start, size_t start_row, float *C,
                size_t ldc);
    // The same from bfloat16, as TDPBF16PS of AMX does it: A (m, K), B (K / 2, n) of pairs, row p
    // holding rows 2p (low half) and 2p + 1. For each 32 of k, e and o are sums by fma from 0 over
    // the even and the odd k; then c += e + o. All of it rounds to nearest even and flushes
    // subnormal numbers to zero, factors and results.
    void (*bf16)(size_t m, size_t n, size_t K, const uint16_t *A, size_t lda, const uint32_t *B,
                 size_t ldb, const float *start, size_t start_row, float *C, size_t ldc);
    // Two rows x0, x1 (n) rounded to bfloat16: to rows y0, y1 (n; NULL: not wanted) and as pairs
    // (n). To nearest even; subnormal numbers become zero, a NaN stays one, quiet.
    void (*round)(size_t n, const float *x0, const float *x1, uint16_t *y0, uint16_t *y1,
                  uint32_t *pairs);
    // y (n, m) = x (m, n) transposed; m is a multiple of 16, too.
    void (*transpose)(size_t m, size_t n, const uint32_t *x, size_t ldx, uint32_t *y, size_t ldy);
};
