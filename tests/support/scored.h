// SPDX-License-Identifier: Apache-2.0
//
// The order that tt_topk promises, for who sorts all rows to see whether it has found the best.
#pragma once

#include <math.h>
#include <stdint.h>

struct scored {
    float score;
    uint32_t row;
};

// For qsort: larger score first, then smaller row; NaN after all numbers.
static inline int by_score(const void *a, const void *b)
{
    const struct scored *left = a, *right = b;
    if (isnan(left->score) != isnan(right->score))
        return isnan(left->score) ? 1 : -1;
    if (!isnan(left->score) && left->score != right->score)
        return left->score < right->score ? 1 : -1;
    return (left->row > right->row) - (left->row < right->row);
}
