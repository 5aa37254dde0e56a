// SPDX-License-Identifier: Apache-2.0
//
// Multi-head self-attention over sequences of different length, and the history encoder built from
// it. Vaswani et al. 2017: per head softmax(Q K^T / sqrt(d)) V, heads side by side, projected.
//
// Sequences lie one after the other without padding: sequence s is rows start[s] to start[s + 1]
// of X, newest event first. So there is no mask to apply and nothing computed in vain.
//
//     S sequences, N = start[S] rows in all, D width
//     X (N, D)             read only       dX (N, D)   may be NULL
//     Y (N, D) or (S, D)   overwritten     dY          read only
//
// With ATTENTION_NEWEST only the newest event of a sequence asks (all of them answer), and Y has
// one row for each sequence: in the last layer of the encoder nothing else is read.
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
    float *newest, *dnewest; // (S, D), with ATTENTION_NEWEST
    float *Q, *dQ;           // (rows that ask, D)
    float *KV, *dKV;         // (N, 2D)
    float *mix, *dmix;       // (rows that ask, D): the heads side by side
    float *P, *dp;           // probabilities by sequence, asking row, head; one row of gradients
};

// The in-projection starts Xavier-uniform over its joint (3D, D) shape, the out-projection uniform
// within 1 / sqrt(D), all biases 0. heads must divide width.
void attention_init(struct attention *a, int width, int heads, enum attention_queries queries,
                    int sequences_max, int length_max, struct arena *params, struct arena *grads,
                    struct arena *scratch, struct rng *rng);
void attention_forward(struct attention *a, int S, const int *start, const float *X, float *Y);
void attention_backward(struct attention *a, int S, const int *start, const float *X,
                        const float *dY, float *dX);

// The history encoder: out = [z ; m], z the attention state of the newest event after all layers,
// m the mean of the raw rows (before positions are added).
//
//     X (B, H, D)    read only, newest first   dX (B, H, D)    may be NULL
//     valid (B)      rows of each history that count, 0 to H; NULL means H everywhere
//     out (B, 2D)    overwritten               dout (B, 2D)    read only
//
// An empty history gives zeros and no gradient. With residual each layer adds to what it read:
// a stack of attention alone loses rank with depth.
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
    bool residual;
};

struct attention_encoder {
    struct attention_encoder_shape shape;
    struct attention *layers;
    float *E; // (H, D), constant, NULL without positions
    int B_max;
    int S;             // of the last forward: histories that are not empty,
    int *row;          // (S) their batch rows,
    int *start;        // (S + 1) where each begins
    float **Z;         // layers entries: what layer l read, (N, D)
    float *top, *dtop; // (S, D) what the last layer gave
    float *dZ[2];      // (N, D)
};

void attention_encoder_init(struct attention_encoder *e,
                            const struct attention_encoder_shape *shape, int B_max,
                            struct arena *params, struct arena *grads, struct arena *scratch,
                            struct rng *rng);
void attention_encoder_forward(struct attention_encoder *e, int B, const int *valid, const float *X,
                               float *out);
void attention_encoder_backward(struct attention_encoder *e, int B, const float *dout, float *dX);
