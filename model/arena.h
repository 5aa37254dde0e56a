// SPDX-License-Identifier: Apache-2.0
//
// A bump allocator over memory that somebody else owns. What it hands out is zeroed once,
// aligned to 64 bytes, and given back with the memory itself.
// Running out is our mistake (sizes follow from the configuration): an assert.
#pragma once

#include <stddef.h>

struct arena {
    char *base;
    size_t size, used;
};

void *arena_bytes(struct arena *a, size_t n);
float *arena_floats(struct arena *a, size_t n);
// How far the next floats lie behind n of them, when these begin at a boundary.
static inline size_t arena_rounded(size_t n)
{
    return (n + 15) & ~(size_t)15;
}
