// SPDX-License-Identifier: Apache-2.0
//
// Multi-head self-attention over sequences of different length, stacks of it, and the history
// encoder built from them. Vaswani et al. 2017: per head softmax(Q K^T / sqrt(d)) V, heads side by
// side, projected.
//
// Sequences lie one after the other without padding: sequence s is rows start[s] to start[s + 1]
// of X, newest event first. So there is no mask to apply and nothing computed in vain.
//
//     S sequences, N = start[S] rows in all, D width
//     X (N, D)             read only       dX (N, D)   overwritten; may be NULL
//     Y (N, D) or (S, D)   overwritten     dY          read only
//
// With ATTENTION_NEWEST only the newest event of a sequence asks (all of them answer), and Y has
// one row for each sequence: in the last layer of a stack nothing else is read. Keys and values are
// not computed then: of one query q, q . (W x) is (q W) . x and sum p W x is W (sum p x), so all
// products with matrices have S rows instead of N.
// The activations of the last forward stay inside, and backward belongs to that forward.
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "model/linear.h"

enum attention_queries { ATTENTION_ALL, ATTENTION_NEWEST };

struct attention {
    int width, heads;
    enum attention_queries queries;
    struct linear query, keyvalue, output; // D -> D, D -> 2D (keys, then values), D -> D
    int sequences_max, length_max;
    // Scratch. Gradients are those of a stretch of rows when all of them ask.
    float *Q, *dQ;     // (rows that ask, D)
    float *mix, *dmix; // (rows that ask, D): the heads side by side
    float *P, *dP;     // probabilities by sequence, head, row that asks, each row with room for
                       // length_max rounded up to 16; their gradient, one head's
    float *KV, *dKV;   // (N, 2D), with ATTENTION_ALL
    // With ATTENTION_NEWEST: the row that asks (S, D), and for each head (S, heads, D) what it asks
    // of the rows themselves, W_k^T q / sqrt(d), and the mean of them that it gets.
    float *newest, *dnewest;
    float *ask, *dask;
    float *mean, *dmean;
};

// The start of the parameters that query, keyvalue and output point to: the in-projection
// Xavier-uniform over its joint (3D, D) shape, the out-projection uniform within 1 / sqrt(D), all
// biases 0.
void attention_start(struct attention *a, struct rng *rng);
// Takes parameters from the arenas and starts them. heads must divide width. Scratch memory comes
// after it.
void attention_init(struct attention *a, int width, int heads, enum attention_queries queries,
                    int sequences_max, int length_max, struct arena *params, struct arena *grads,
                    struct rng *rng);
// Scratch memory for a layer whose sizes are set: returns how many bytes of the arena it takes, and
// with NULL in place of the arena only that. Without backward there are no places for gradients,
// and attention_backward must not be called.
size_t attention_scratch(struct attention *a, bool backward, struct arena *scratch);
void attention_forward(struct attention *a, int S, const int *start, const float *X, float *Y);
void attention_backward(struct attention *a, int S, const int *start, const float *X,
                        const float *dY, float *dX);

// A stack of layers, of which the last asks for the newest event only.
//
//     norm: a layer reads rows less their mean, over their standard deviation. Gain and offset of
//     such a norm would be redundant, for a projection follows.
//     residual: it adds to what it read, before the norm.
//
// Without either a stack is what the system followed here computes; it loses rank with depth.
struct attention_stack_shape {
    int width, heads, layers;
    bool residual, norm;
};

struct attention_stack {
    struct attention_stack_shape shape;
    struct attention *layers; // shape.layers, the caller's; the last one is ATTENTION_NEWEST
    float **Z;                // shape.layers entries: the rows a layer is given, (N, D)
    float **X;                // what it reads of them, (N, D)
    float **scale;            // with norm: 1 / the standard deviation, (N)
    float *newest;            // (S, D): what the last layer adds to
    float *dX;                // of a stretch of rows, with more than one layer
};

// As attention_scratch, for a stack whose shape and layers are set.
size_t attention_stack_scratch(struct attention_stack *t, bool backward, struct arena *scratch);
// Uses up Z[0], where the caller has put the rows; top (S, D) is overwritten.
void attention_stack_forward(struct attention_stack *t, int S, const int *start, float *top);
// dZ (N, D), the gradient of Z[0], is overwritten.
void attention_stack_backward(struct attention_stack *t, int S, const int *start, const float *dtop,
                              float *dZ);

// The history encoder: out = [z ; m], z the attention state of the newest event after all layers,
// m the mean of the raw rows (before positions are added).
//
//     X (B, H, D)    read only, newest first   dX (B, H, D)    may be NULL
//     valid (B)      rows of each history that count, 0 to H; NULL means H everywhere
//     out (B, 2D)    overwritten               dout (B, 2D)    read only
//
// An empty history gives zeros and no gradient.
enum attention_positions {
    ATTENTION_POSITIONS_NONE,
    // angle = p / 10000^(2c/D), sine in even columns c and cosine in odd ones, each column with its
    // own frequency: the table of the system this one follows.
    ATTENTION_POSITIONS_SEED,
    // Vaswani et al. 2017: columns 2i and 2i + 1 share the frequency 10000^(-2i/D).
    ATTENTION_POSITIONS_STANDARD,
};

// E (length, D), overwritten. Row 0, the newest event, carries p = length - 1.
void attention_positions_fill(enum attention_positions kind, int length, int width, float *E);

struct attention_encoder_shape {
    int width, length, heads, layers;
    enum attention_positions positions;
    bool residual, norm;
};

struct attention_encoder {
    struct attention_encoder_shape shape;
    struct attention *layers;
    struct attention_stack stack;
    float *E; // (H, D), constant, NULL without positions
    int B_max;
    int S;             // of the last forward: histories that are not empty,
    int *row;          // (S) their batch rows,
    int *start;        // (S + 1) where each begins
    float *dZ;         // (N, D)
    float *top, *dtop; // (S, D) what the stack gave
};

void attention_encoder_init(struct attention_encoder *e,
                            const struct attention_encoder_shape *shape, int B_max,
                            struct arena *params, struct arena *grads, struct arena *scratch,
                            struct rng *rng);
// As attention_scratch, for an encoder whose shape, B_max and layers are set.
size_t attention_encoder_scratch(struct attention_encoder *e, bool backward, struct arena *scratch);
void attention_encoder_forward(struct attention_encoder *e, int B, const int *valid, const float *X,
                               float *out);
void attention_encoder_backward(struct attention_encoder *e, int B, const float *dout, float *dX);
