// SPDX-License-Identifier: Apache-2.0
#include "model/arena.h"

#include <assert.h>
#include <stdint.h>
#include <string.h>

void *arena_bytes(struct arena *a, size_t n)
{
    const uintptr_t start = (uintptr_t)a->base + a->used;
    const size_t pad = (size_t)(-start & 63);
    assert(n <= a->size && a->used + pad <= a->size - n);
    char *bytes = a->base + a->used + pad;
    a->used += pad + n;
    return memset(bytes, 0, n);
}

float *arena_floats(struct arena *a, size_t n)
{
    return arena_bytes(a, n * sizeof(float));
}
