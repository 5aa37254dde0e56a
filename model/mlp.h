// SPDX-License-Identifier: Apache-2.0
//
// Two fully connected layers with a rectifier between: Y = W2 relu(W1 X + b1) + b2.
//
//     X (B, In)     read only          dX (B, In)    may be NULL: nothing below learns
//     Y (B, Out)    overwritten        dY (B, Out)   read only
//
// The hidden activations of the last forward stay inside, and backward belongs to that forward:
// same B, same X. To run the same weights on two threads, copy the struct and give the copy its
// own H and dH.
#pragma once

#include "model/linear.h"

enum { MLP_HIDDEN_DEFAULT = 256 };

struct mlp {
    struct linear first, second;
    int B_max;
    float *H, *dH; // (B_max, Hidden)
};

// Parameters and gradients from their arenas, activations from scratch; all must outlive the layer.
void mlp_init(struct mlp *m, int in, int hidden, int out, int B_max, struct arena *params,
              struct arena *grads, struct arena *scratch, struct rng *rng);
void mlp_forward(struct mlp *m, int B, const float *X, float *Y);
void mlp_backward(struct mlp *m, int B, const float *X, const float *dY, float *dX);
