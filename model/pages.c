// SPDX-License-Identifier: Apache-2.0
#include "model/pages.h"

#include <stdint.h>
#include <sys/mman.h>

void pages_advise(void *p, size_t n)
{
    const uintptr_t large = (uintptr_t)2 << 20, small = 2 * large;
    const uintptr_t first = ((uintptr_t)p + small + large - 1) & ~(large - 1);
    const uintptr_t end = ((uintptr_t)p + n) & ~(large - 1);
    if (first < end)
        madvise((void *)first, end - first, MADV_HUGEPAGE);
}
