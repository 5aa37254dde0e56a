// SPDX-License-Identifier: Apache-2.0
//
// What an event of a history is before attention reads it: its item, what the user did with it, and
// how long ago that was.
//
//     C_h = W [x_h ; sum_k active_kh a_k] + b + g[gap_h]
//
//     X (N, D)       the items' rows, read only       dX (N, D)
//     actions (N)    masks: bit k says that action k is active
//     gaps (N)       bucket of each, below HISTORY_GAPS
//     C (N, D)       overwritten                      dC (N, D)   read only
//     a (8, D), W (D, 2D), b (D)   with actions; without, C_h = x_h + g[gap_h]
//     g (32, D)                    with gaps
//
// It starts as C_h = x_h: both halves of W are the identity, a, b and g are zero. Were the second
// half of W zero like a, neither would ever get a gradient from the other.
//
// As everywhere: backward adds into the gradients it is given and belongs to the last forward.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/linear.h"

struct event_fusion_shape {
    int width;
    bool actions, gaps;
};

struct event_fusion {
    struct event_fusion_shape shape;
    int rows_max;
    // The caller's, those that the shape has.
    float *action, *daction; // (8, D)
    struct linear join;      // 2D -> D
    float *gap, *dgap;       // (32, D)
    float *pair, *dpair;     // scratch, (N, 2D): [x ; sum of actions]
};

// The parameters' start, where the pointers are set.
void event_fusion_start(struct event_fusion *f);
// Scratch memory for a fusion whose shape and rows_max are set: returns how many bytes of the arena
// it takes, and with NULL in place of the arena only that. Without backward event_fusion_backward
// must not be called.
struct arena;
size_t event_fusion_scratch(struct event_fusion *f, bool backward, struct arena *scratch);
// C may be X. actions and gaps may be NULL where the shape has none.
void event_fusion_forward(struct event_fusion *f, int N, const float *X, const uint8_t *actions,
                          const uint8_t *gaps, float *C);
// dX is overwritten; it may be dC.
void event_fusion_backward(struct event_fusion *f, int N, const uint8_t *actions,
                           const uint8_t *gaps, const float *dC, float *dX);
