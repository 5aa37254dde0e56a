// SPDX-License-Identifier: Apache-2.0
#include "model/batch_scores.h"

#include <assert.h>
#include <string.h>

#include "model/arena.h"
#include "model/kernels.h"
#include "model/products.h"

enum { PANEL = 64, TILE = BATCH_SCORES_TILE };
_Static_assert(PANEL % PRODUCTS_COLUMNS == 0 && TILE % PRODUCTS_ROWS == 0, "whole blocks");

static size_t rounded(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

// Not a multiple of 4096 bytes, or all rows of a tile would meet in a few sets of the cache.
static size_t stride_of(size_t columns)
{
    return columns + PRODUCTS_COLUMNS;
}

// An array that the arena has, or, without one, its bytes added to *bytes.
static void *take(struct arena *scratch, size_t *bytes, size_t n, size_t size)
{
    *bytes += rounded(n * size, 64) + 64;
    return scratch ? arena_bytes(scratch, n * size) : NULL;
}

static size_t arrays_take(struct batch_scores *s, struct arena *scratch)
{
    const bool bf16 = s->precision == BATCH_SCORES_BF16;
    const size_t d = (size_t)s->d, C = rounded((size_t)s->candidates_max, PRODUCTS_ROWS);
    const size_t stride = stride_of(C), width = rounded(d, PRODUCTS_COLUMNS);
    const size_t depth = rounded(d, PRODUCTS_ROWS), n = bf16 ? 1 : 0;
    size_t bytes = 0;
    s->S = take(scratch, &bytes, TILE * stride, sizeof *s->S);
    s->start = take(scratch, &bytes, C, sizeof *s->start);
    s->wide = take(scratch, &bytes, C * width, sizeof *s->wide);
    s->sums = take(scratch, &bytes, stride * width, sizeof *s->sums);
    s->query = take(scratch, &bytes, TILE * width, sizeof *s->query);
    s->dquery = take(scratch, &bytes, TILE * width, sizeof *s->dquery);
    s->panels = take(scratch, &bytes, bf16 ? 0 : rounded(C, PANEL) * width, sizeof *s->panels);
    s->rows = take(scratch, &bytes, n * TILE * depth, sizeof *s->rows);
    s->turned = take(scratch, &bytes, n * width * TILE, sizeof *s->turned);
    s->drows = take(scratch, &bytes, n * TILE * stride, sizeof *s->drows);
    s->halves = take(scratch, &bytes, n * C * depth, sizeof *s->halves);
    s->pairs = take(scratch, &bytes, n * TILE / 2 * width, sizeof *s->pairs);
    s->dpairs = take(scratch, &bytes, n * TILE / 2 * stride, sizeof *s->dpairs);
    s->scoring = take(scratch, &bytes, n * depth / 2 * stride, sizeof *s->scoring);
    s->giving = take(scratch, &bytes, n * C / 2 * width, sizeof *s->giving);
    s->width = width;
    s->depth = depth;
    return bytes;
}

size_t batch_scores_bytes(enum batch_scores_precision precision, int d, int candidates_max)
{
    struct batch_scores s = {.precision = precision, .d = d, .candidates_max = candidates_max};
    return arrays_take(&s, NULL);
}

void batch_scores_init(struct batch_scores *s, enum batch_scores_precision precision, int d,
                       int candidates_max, struct arena *scratch)
{
    assert(d > 0 && candidates_max > 0);
    *s = (struct batch_scores){.precision = precision, .d = d, .candidates_max = candidates_max};
    arrays_take(s, scratch);
}

// x (n, d) into y (rows, width), padded with zeros.
static void widen(int n, size_t d, const float *x, size_t rows, size_t width, float *y)
{
    for (size_t i = 0; i < (size_t)n; i++) {
        memcpy(y + i * width, x + i * d, d * sizeof *y);
        memset(y + i * width + d, 0, (width - d) * sizeof *y);
    }
    memset(y + (size_t)n * width, 0, (rows - (size_t)n) * width * sizeof *y);
}

// x (n, width) to y (n, d).
static void narrow(int n, size_t width, const float *x, size_t d, float *y)
{
    for (size_t i = 0; i < (size_t)n; i++)
        memcpy(y + i * d, x + i * width, d * sizeof *y);
}

// The rows that a product of n queries works on.
static size_t tile_rows(const struct batch_scores *s, int n)
{
    return s->precision == BATCH_SCORES_BF16 ? rounded((size_t)n, PRODUCTS_ROWS) : (size_t)n;
}

// Whether n of the caller's rows are as a product wants them.
static bool fits(const struct batch_scores *s, int n)
{
    return (size_t)s->d == s->width && (size_t)n == tile_rows(s, n);
}

static void panels_fill(struct batch_scores *s)
{
    for (size_t c = 0; c < s->columns; c += PRODUCTS_COLUMNS)
        kernels->products->transpose(
            PRODUCTS_COLUMNS, s->width, (const uint32_t *)s->wide + c * s->width, s->width,
            (uint32_t *)s->panels + c / PANEL * PANEL * s->width + c % PANEL, PANEL);
}

static void pairs_fill(struct batch_scores *s)
{
    const size_t words = s->depth / 2;
    for (size_t c = 0; c < s->columns; c += 2)
        kernels->products->round(s->width, s->wide + c * s->width, s->wide + (c + 1) * s->width,
                                 s->halves + c * s->depth, s->halves + (c + 1) * s->depth,
                                 s->giving + c / 2 * s->width);
    kernels->products->transpose(s->columns, words, (const uint32_t *)s->halves, words, s->scoring,
                                 s->stride);
}

void batch_scores_begin(struct batch_scores *s, int C, const float *V, const float *column,
                        bool items)
{
    assert(C > 0 && C <= s->candidates_max);
    const bool bf16 = s->precision == BATCH_SCORES_BF16;
    s->candidates = C;
    s->items = items;
    s->columns = rounded((size_t)C, bf16 ? PRODUCTS_ROWS : PRODUCTS_COLUMNS);
    s->stride = stride_of(s->columns);
    memset(s->start, 0, s->columns * sizeof *s->start);
    if (column)
        memcpy(s->start, column, (size_t)C * sizeof *s->start);
    widen(C, (size_t)s->d, V, s->columns, s->width, s->wide);
    if (items)
        memset(s->sums, 0, s->width * s->stride * sizeof *s->sums);
    if (bf16)
        pairs_fill(s);
    else
        panels_fill(s);
}

void batch_scores_take(struct batch_scores *s, int n, const float *Q)
{
    const size_t rows = tile_rows(s, n);
    assert(n > 0 && n <= TILE);
    s->Q = fits(s, n) ? Q : s->query;
    if (s->Q == s->query)
        widen(n, (size_t)s->d, Q, rows, s->width, s->query);
    for (size_t i = 0; i < rows && s->precision == BATCH_SCORES_BF16; i += 2)
        kernels->products->round(s->width, s->Q + i * s->width, s->Q + (i + 1) * s->width,
                                 s->rows + i * s->depth, s->rows + (i + 1) * s->depth,
                                 s->pairs + i / 2 * s->width);
}

void batch_scores_forward(struct batch_scores *s, int n, const float *Q)
{
    const struct products *products = kernels->products;
    batch_scores_take(s, n, Q);
    if (s->precision == BATCH_SCORES_BF16) {
        products->bf16(tile_rows(s, n), s->columns, s->depth, s->rows, s->depth, s->scoring,
                       s->stride, s->start, 0, s->S, s->stride);
        return;
    }
    for (size_t c = 0; c < s->columns; c += PANEL)
        products->f32((size_t)n, s->columns - c < PANEL ? s->columns - c : PANEL, (size_t)s->d,
                      s->Q, s->width, 1, s->panels + c * s->width, PANEL, s->start + c, 0, s->S + c,
                      s->stride);
}

// dQ (tile_rows, width); NULL: not wanted.
static void backward_f32(struct batch_scores *s, size_t n, float *dQ)
{
    const struct products *products = kernels->products;
    const size_t C = (size_t)s->candidates;
    if (dQ)
        products->f32(n, s->width, C, s->S, s->stride, 1, s->wide, s->width, dQ, s->width, dQ,
                      s->width);
    if (s->items)
        products->f32(C, s->width, n, s->S, 1, s->stride, s->Q, s->width, s->sums, s->width,
                      s->sums, s->width);
}

static void backward_bf16(struct batch_scores *s, size_t n, size_t rows, float *dQ)
{
    const struct products *products = kernels->products;
    memset(s->S + n * s->stride, 0, (rows - n) * s->stride * sizeof *s->S);
    for (size_t i = 0; i < rows; i += 2)
        products->round(s->columns, s->S + i * s->stride, s->S + (i + 1) * s->stride,
                        s->drows + i * s->stride, s->drows + (i + 1) * s->stride,
                        s->dpairs + i / 2 * s->stride);
    if (dQ)
        products->bf16(rows, s->width, s->columns, s->drows, s->stride, s->giving, s->width, dQ,
                       s->width, dQ, s->width);
    if (!s->items)
        return;
    products->transpose(TILE / 2, s->width, s->pairs, s->width, (uint32_t *)s->turned, TILE / 2);
    products->bf16(s->width, s->columns, rows, s->turned, TILE, s->dpairs, s->stride, s->sums,
                   s->stride, s->sums, s->stride);
}

void batch_scores_backward(struct batch_scores *s, int n, float *dQ)
{
    const size_t rows = tile_rows(s, n);
    assert(n > 0 && n <= TILE);
    float *const sums = dQ && !fits(s, n) ? s->dquery : dQ;
    if (sums != dQ)
        widen(n, (size_t)s->d, dQ, rows, s->width, sums);
    if (s->precision == BATCH_SCORES_F32)
        backward_f32(s, (size_t)n, sums);
    else
        backward_bf16(s, (size_t)n, rows, sums);
    if (sums != dQ)
        narrow(n, s->width, sums, (size_t)s->d, dQ);
}

void batch_scores_end(struct batch_scores *s, float *dV)
{
    assert(s->items);
    if (s->precision == BATCH_SCORES_BF16)
        kernels->products->transpose(s->width, s->columns, (const uint32_t *)s->sums, s->stride,
                                     (uint32_t *)s->wide, s->width);
    const float *sums = s->precision == BATCH_SCORES_BF16 ? s->wide : s->sums;
    for (size_t c = 0; c < (size_t)s->candidates; c++)
        kernels->axpy((size_t)s->d, 1, sums + c * s->width, dV + c * (size_t)s->d);
}
