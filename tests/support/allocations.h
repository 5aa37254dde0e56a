// SPDX-License-Identifier: Apache-2.0
//
// Counts how often our own code asks for memory; what libraries do is theirs. The linker leads the
// calls here, of programs that are linked with COUNT_ALLOCATIONS (tests/CMakeLists.txt). To be
// included by one file of such a program.
#pragma once

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

// The index of an id table, which is renewed when ids that have left fill it, is told apart.
static _Atomic uint64_t allocations, allocations_of_indexes;

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__real_aligned_alloc(size_t alignment, size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_aligned_alloc(size_t alignment, size_t n);

void *__wrap_malloc(size_t n)
{
    atomic_fetch_add(&allocations, 1);
    return __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size)
{
    atomic_fetch_add(size == 8 && n >= 4096 ? &allocations_of_indexes : &allocations, 1);
    return __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t n)
{
    atomic_fetch_add(&allocations, 1);
    return __real_realloc(p, n);
}

void *__wrap_aligned_alloc(size_t alignment, size_t n)
{
    atomic_fetch_add(&allocations, 1);
    return __real_aligned_alloc(alignment, n);
}
