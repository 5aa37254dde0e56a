// SPDX-License-Identifier: Apache-2.0
//
// The recipe's second reading of a history: attention over its events, added to the pooled query.
//
//     C   = events of the history, newest first (model/event_fusion.h), + positions
//     z   = the newest event's row after `layers` layers of attention (model/attention.h)
//     q  += z Wo                         an empty history adds nothing
//
// Wo starts at zero: with the encoder on, a model starts as the one without it. Dense parameters
// are d-wide blocks one after the other; history_encoder_block lists them. Everything is a function
// of (parameters, histories): history_encoder_query, for a publisher and for readers of a snapshot,
// runs the code that learning runs.
//
// A batch goes through in this order, by one thread: begin, take for each example, forward,
// backward, give for each example, finite.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/attention.h"

enum { HISTORY_ENCODER_LAYERS_MAX = 4 };

struct history_encoder_options {
    int layers; // 0: there is no encoder
    int heads;  // divides the width
    enum attention_positions positions;
    bool residual, norm; // of the layers
    bool actions, gaps;  // of the events
    bool context;        // it reads the items' context rows, not the rows they are scored with
};

struct recent;
struct dense_parameter;
struct history_encoder;

// Block i of the parameters, its offset from their first one, or false at the end.
bool history_encoder_block(int d, const struct history_encoder_options *o, int i,
                           struct dense_parameter *block);
size_t history_encoder_size(int d, const struct history_encoder_options *o); // floats
void history_encoder_start(int d, const struct history_encoder_options *o, uint64_t seed,
                           float *dense);

// For up to batch_max examples with up to `length` events. NULL when memory is short.
struct history_encoder *history_encoder_open(int d, const struct history_encoder_options *o,
                                             int length, int batch_max);
void history_encoder_close(struct history_encoder *e); // e may be NULL

// dense must stay as it is until the last example's gradients have been given.
void history_encoder_begin(struct history_encoder *e, const float *dense);
void history_encoder_take(struct history_encoder *e, const struct recent *r);
// Q (examples, d): added to.
void history_encoder_forward(struct history_encoder *e, float *Q);
// Adds to ddense, laid out as dense, here and in history_encoder_give.
void history_encoder_backward(struct history_encoder *e, const float *dQ, float *ddense);
// Adds the gradients of example i's events to their rows'. Once for each example.
void history_encoder_give(struct history_encoder *e, int i, float *const *drows);
// Whether all that was given was finite.
bool history_encoder_finite(const struct history_encoder *e);

// The same for one history, without learning. q (d): added to.
void history_encoder_query(int d, const struct history_encoder_options *o, int length,
                           const float *dense, const struct recent *r, float *q);
