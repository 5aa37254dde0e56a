// SPDX-License-Identifier: Apache-2.0
//
// Blocks of variable size inside one column: texts, histories, lists of impressions. A block is a
// run of 16-byte granules named by the number of its first one; 0 is no block. Sizes are rounded up
// to classes (at most 25 % more), and a freed block is reused by the next one of its class, so the
// same calls give the same blocks. Blocks do not move.
//
// Full is not an error of ours: heap_take returns 0 and the caller counts.
#pragma once

#include "model/column.h"

enum { HEAP_GRANULE = 16, HEAP_GRANULES_MAX = 1024, HEAP_CLASSES = 40 };

struct heap {
    struct column granule; // the blocks
    struct column free;    // one unit: the heads of the free lists, and the granules in use
};

// name and name_free: the two columns' names. 0 or -ENOMEM.
int heap_open(struct heap *h, struct columns *s, const char *name, const char *name_free,
              size_t granules_max);

// A block of at least n granules, 1 <= n <= HEAP_GRANULES_MAX; its content is undefined. 0 when
// full.
uint32_t heap_take(struct heap *h, size_t n);
// n as it was given to heap_take, or any n of the same class.
void heap_give(struct heap *h, uint32_t block, size_t n);
// How many granules a request for n really gets.
size_t heap_capacity(size_t n);

static inline size_t heap_granules(size_t bytes)
{
    return (bytes + HEAP_GRANULE - 1) / HEAP_GRANULE;
}

static inline const void *heap_at(const struct heap *h, uint32_t block)
{
    return column_at(&h->granule, block);
}

// Granules [first, first + n) of the block, for writing, until the next cut.
void *heap_edit(struct heap *h, uint32_t block, size_t first, size_t n);
// The share of all granules that blocks have.
double heap_fill(const struct heap *h);
// Bytes in use by blocks and free lists together.
size_t heap_bytes(const struct heap *h);
