// SPDX-License-Identifier: Apache-2.0
//
// A fully connected layer: Y = X W^T + b.
//
//     X (B, In)     read only          dX (B, In)    may be NULL: nothing below learns
//     W (Out, In)   parameter          dW (Out, In)
//     b (Out)       parameter          db (Out)
//     Y (B, Out)    overwritten        dY (B, Out)   read only
//
// As everywhere in model/: matrices are dense and row-major, forward overwrites its
// output, backward adds into the gradients it is given, and neither can fail.
#pragma once

struct arena;
struct rng;

struct linear {
    int in, out;
    float *W, *b;
    float *dW, *db;
};

// Takes its four arrays from the arenas, which must outlive the layer.
void linear_init(struct linear *l, int in, int out, struct arena *params, struct arena *grads,
                 struct rng *rng);
void linear_forward(const struct linear *l, int B, const float *X, float *Y);
void linear_backward(struct linear *l, int B, const float *X, const float *dY, float *dX);
