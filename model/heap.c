// SPDX-License-Identifier: Apache-2.0
#include "model/heap.h"

#include <assert.h>

enum { USED = HEAP_CLASSES }; // behind the heads

// Classes 0..15 hold 1..16 granules; then four to each doubling: 20, 24, 28, 32, 40, ... 1024.
static int class_of(size_t n)
{
    assert(n >= 1 && n <= HEAP_GRANULES_MAX);
    if (n <= 16)
        return (int)n - 1;
    const int doubling = 63 - __builtin_clzll(n - 1) - 4; // 17..32: 0, 33..64: 1
    return 16 + 4 * doubling + (int)((n - 1) >> (2 + doubling)) - 4;
}

static size_t class_size(int class)
{
    if (class < 16)
        return (size_t) class + 1;
    const int doubling = (class - 16) / 4, quarter = (class - 16) % 4;
    return (size_t)(5 + quarter) << (2 + doubling);
}

size_t heap_capacity(size_t n)
{
    return class_size(class_of(n));
}

int heap_open(struct heap *h, struct columns *s, const char *name, const char *name_free,
              size_t granules_max)
{
    int rc = column_open(&h->granule, s, name, HEAP_GRANULE, granules_max + 1);
    if (rc == 0)
        rc = column_open(&h->free, s, name_free, (HEAP_CLASSES + 1) * sizeof(uint32_t), 1);
    if (rc < 0)
        return rc;
    column_grow(&h->granule, 1); // so that 0 is no block
    column_grow(&h->free, 1);
    return 0;
}

uint32_t heap_take(struct heap *h, size_t n)
{
    const int class = class_of(n);
    const size_t size = class_size(class);
    const uint32_t *head = (const uint32_t *)column_at(&h->free, 0) + class;
    if (*head) {
        const uint32_t block = *head;
        const uint32_t next = *(const uint32_t *)heap_at(h, block);
        uint32_t *heads = column_edit(&h->free, 0);
        heads[class] = next;
        heads[USED] += (uint32_t)size;
        return block;
    }
    if (size > h->granule.n_max - h->granule.n || h->granule.n + size > UINT32_MAX)
        return 0;
    const uint32_t block = (uint32_t)h->granule.n;
    ((uint32_t *)column_edit(&h->free, 0))[USED] += (uint32_t)size;
    column_grow(&h->granule, size);
    return block;
}

void heap_give(struct heap *h, uint32_t block, size_t n)
{
    assert(block > 0);
    const int class = class_of(n);
    uint32_t *heads = column_edit(&h->free, 0);
    *(uint32_t *)column_edit(&h->granule, block) = heads[class];
    heads[class] = block;
    heads[USED] -= (uint32_t)class_size(class);
}

void *heap_edit(struct heap *h, uint32_t block, size_t first, size_t n)
{
    assert(block > 0);
    const size_t start = block + first;
    if (atomic_load_explicit(&h->granule.set->cut, memory_order_relaxed))
        for (size_t i = 0; i < n; i++)
            column_save(&h->granule, start + i);
    return h->granule.base + start * HEAP_GRANULE;
}

double heap_fill(const struct heap *h)
{
    return (double)((const uint32_t *)column_at(&h->free, 0))[USED] / (double)h->granule.n_max;
}

size_t heap_bytes(const struct heap *h)
{
    return h->granule.n * HEAP_GRANULE;
}
