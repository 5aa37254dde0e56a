// SPDX-License-Identifier: Apache-2.0
#include "model/history_encoder.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/arena.h"
#include "model/event_fusion.h"
#include "model/gemm.h"
#include "model/kernels.h"
#include "model/pages.h"
#include "model/rng.h"
#include "model/tables.h"

// ---- The parameters: blocks one after the other. A layer has these six, and there are as many
// sets of them as layers.

enum { QUERY_W, QUERY_B, KEYVALUE_W, KEYVALUE_B, OUTPUT_W, OUTPUT_B, LAYER_BLOCKS };
enum {
    BLOCK_ACTION = LAYER_BLOCKS * HISTORY_ENCODER_LAYERS_MAX,
    BLOCK_JOIN_W,
    BLOCK_JOIN_B,
    BLOCK_GAP,
    BLOCK_OUT,
    BLOCKS
};

#define LAYER_NAMES(l)                                                                             \
    "attention" #l "_query_weight", "attention" #l "_query_bias",                                  \
        "attention" #l "_keyvalue_weight", "attention" #l "_keyvalue_bias",                        \
        "attention" #l "_output_weight", "attention" #l "_output_bias"

static const char *const names[BLOCKS] = {
    LAYER_NAMES(1),        LAYER_NAMES(2),      LAYER_NAMES(3),
    LAYER_NAMES(4),        "attention_actions", "attention_join_weight",
    "attention_join_bias", "attention_gaps",    "attention_out",
};

// In the order of the enums: how many rows and columns in units of d, 0 rows where a bias is one.
struct extent {
    int rows, columns;
};

static struct extent extent_of(int d, const struct history_encoder_options *o, int block)
{
    static const struct extent of_layer[LAYER_BLOCKS] = {
        [QUERY_W] = {1, 1},    [QUERY_B] = {0, 1},  [KEYVALUE_W] = {2, 1},
        [KEYVALUE_B] = {0, 2}, [OUTPUT_W] = {1, 1}, [OUTPUT_B] = {0, 1},
    };
    if (block < BLOCK_ACTION) {
        const struct extent e = of_layer[block % LAYER_BLOCKS];
        if (block / LAYER_BLOCKS >= o->layers)
            return (struct extent){0, 0};
        return (struct extent){e.rows ? e.rows * d : 1, e.columns * d};
    }
    const struct extent rest[] = {
        {o->actions ? HISTORY_ACTIONS : 0, d}, {o->actions ? d : 0, 2 * d}, {o->actions, d},
        {o->gaps ? HISTORY_GAPS : 0, d},       {o->layers ? d : 0, d},
    };
    return rest[block - BLOCK_ACTION];
}

// Where each block begins; one that is not there takes no place. Returns the size.
static size_t blocks_place(int d, const struct history_encoder_options *o, size_t at[BLOCKS])
{
    size_t next = 0;
    for (int b = 0; b < BLOCKS; b++) {
        const struct extent e = extent_of(d, o, b);
        at[b] = next;
        next += (size_t)e.rows * (size_t)e.columns;
    }
    return next;
}

bool history_encoder_block(int d, const struct history_encoder_options *o, int i,
                           struct dense_parameter *block)
{
    size_t at[BLOCKS];
    blocks_place(d, o, at);
    for (int b = 0; o->layers && b < BLOCKS; b++) {
        const struct extent e = extent_of(d, o, b);
        if (e.rows > 0 && i-- == 0) {
            *block = (struct dense_parameter){names[b], e.rows, e.columns, at[b]};
            return true;
        }
    }
    return false;
}

size_t history_encoder_size(int d, const struct history_encoder_options *o)
{
    size_t at[BLOCKS];
    return o->layers ? blocks_place(d, o, at) : 0;
}

// ---- The encoder.

struct history_encoder {
    struct history_encoder_options options;
    int d, length, batch_max;
    size_t at[BLOCKS], size;
    struct event_fusion fusion;
    struct attention layers[HISTORY_ENCODER_LAYERS_MAX];
    struct attention_stack stack;
    const float *dense;    // of this batch
    double squares;        // sum over the gradients of its events
    float *positions;      // (length, d), NULL without
    int n;                 // examples taken, of which
    int S;                 // have a history,
    int *example;          // (S): these
    int *sequence;         // (n): the other way, -1 for an empty one
    int *start;            // (S + 1)
    float *X;              // (N, d): the items' rows. Afterwards their gradients.
    uint8_t *actions;      // (N)
    uint8_t *gaps;         // (N)
    float *top, *dtop;     // (S, d): z
    float *added, *dadded; // (S, d): z Wo
};

static float *floats(struct arena *scratch, size_t *bytes, size_t n)
{
    *bytes += n * sizeof(float) + 64;
    return scratch ? arena_floats(scratch, n) : NULL;
}

// As attention_scratch: counts without an arena.
static size_t encoder_scratch(struct history_encoder *e, bool backward, struct arena *scratch)
{
    const struct history_encoder_options *o = &e->options;
    const size_t B = (size_t)e->batch_max, d = (size_t)e->d, N = B * (size_t)e->length;
    size_t bytes = 0;
    for (int l = 0; l < o->layers; l++)
        e->layers[l] = (struct attention){
            .width = e->d,
            .heads = o->heads,
            .queries = l == o->layers - 1 ? ATTENTION_NEWEST : ATTENTION_ALL,
            .sequences_max = e->batch_max,
            .length_max = e->length,
        };
    e->stack = (struct attention_stack){.shape = {e->d, o->heads, o->layers, o->residual, o->norm},
                                        .layers = e->layers};
    e->fusion = (struct event_fusion){.shape = {e->d, o->actions, o->gaps},
                                      .rows_max = e->batch_max * e->length};
    bytes += attention_stack_scratch(&e->stack, backward, scratch);
    bytes += event_fusion_scratch(&e->fusion, backward, scratch);
    e->X = floats(scratch, &bytes, N * d);
    e->top = floats(scratch, &bytes, B * d);
    e->added = floats(scratch, &bytes, B * d);
    e->dtop = backward ? floats(scratch, &bytes, B * d) : NULL;
    e->dadded = backward ? floats(scratch, &bytes, B * d) : NULL;
    if (o->positions != ATTENTION_POSITIONS_NONE) {
        e->positions = floats(scratch, &bytes, (size_t)e->length * d);
        if (scratch)
            attention_positions_fill(o->positions, e->length, e->d, e->positions);
    }
    if (scratch) {
        e->example = arena_bytes(scratch, B * sizeof *e->example);
        e->sequence = arena_bytes(scratch, B * sizeof *e->sequence);
        e->start = arena_bytes(scratch, (B + 1) * sizeof *e->start);
        e->actions = arena_bytes(scratch, N);
        e->gaps = arena_bytes(scratch, N);
    }
    return bytes + (3 * B + 1) * sizeof(int) + 2 * N + (size_t)5 * 64;
}

static void encoder_init(struct history_encoder *e, int d, const struct history_encoder_options *o,
                         int length, int batch_max)
{
    assert(o->layers > 0 && o->layers <= HISTORY_ENCODER_LAYERS_MAX);
    assert(o->heads > 0 && d % o->heads == 0);
    *e = (struct history_encoder){
        .options = *o, .d = d, .length = length > 0 ? length : 1, .batch_max = batch_max};
    e->size = blocks_place(d, o, e->at);
}

// Points the layers at their parameters. dense is only written to by history_encoder_start; ddense
// may be NULL.
static void bind(struct history_encoder *e, const float *dense, float *ddense)
{
    float *w = (float *)dense;
    const int d = e->d;
    for (int l = 0; l < e->options.layers; l++) {
        struct linear *const linears[] = {&e->layers[l].query, &e->layers[l].keyvalue,
                                          &e->layers[l].output};
        for (int i = 0; i < 3; i++) {
            const size_t W = e->at[LAYER_BLOCKS * l + 2 * i],
                         b = e->at[LAYER_BLOCKS * l + 2 * i + 1];
            *linears[i] = (struct linear){.in = d,
                                          .out = i == 1 ? 2 * d : d,
                                          .W = w + W,
                                          .b = w + b,
                                          .dW = ddense ? ddense + W : NULL,
                                          .db = ddense ? ddense + b : NULL};
        }
    }
    e->fusion.action = w + e->at[BLOCK_ACTION];
    e->fusion.gap = w + e->at[BLOCK_GAP];
    e->fusion.join = (struct linear){
        .in = 2 * d, .out = d, .W = w + e->at[BLOCK_JOIN_W], .b = w + e->at[BLOCK_JOIN_B]};
    if (!ddense)
        return;
    e->fusion.daction = ddense + e->at[BLOCK_ACTION];
    e->fusion.dgap = ddense + e->at[BLOCK_GAP];
    e->fusion.join.dW = ddense + e->at[BLOCK_JOIN_W];
    e->fusion.join.db = ddense + e->at[BLOCK_JOIN_B];
}

void history_encoder_start(int d, const struct history_encoder_options *o, uint64_t seed,
                           float *dense)
{
    struct rng rng = {rng_key(seed, UINT64_C(0x656e636f646572)), 0}; // "encoder"
    struct history_encoder e;
    if (o->layers == 0)
        return;
    encoder_init(&e, d, o, 1, 1);
    e.fusion.shape = (struct event_fusion_shape){d, o->actions, o->gaps};
    memset(dense, 0, e.size * sizeof *dense);
    bind(&e, dense, NULL);
    for (int l = 0; l < o->layers; l++)
        attention_start(&e.layers[l], &rng);
    event_fusion_start(&e.fusion);
}

struct history_encoder *history_encoder_open(int d, const struct history_encoder_options *o,
                                             int length, int batch_max)
{
    struct history_encoder counted;
    encoder_init(&counted, d, o, length, batch_max);
    const size_t bytes = encoder_scratch(&counted, true, NULL);
    struct history_encoder *e = malloc(sizeof *e + bytes);
    if (!e)
        return NULL;
    // A batch walks through all of it twice: 100 MB and more. A step took 7 % longer with small
    // pages (bench_attention).
    pages_advise(e, sizeof *e + bytes);
    encoder_init(e, d, o, length, batch_max);
    encoder_scratch(e, true, &(struct arena){(char *)(e + 1), bytes, 0});
    return e;
}

void history_encoder_close(struct history_encoder *e)
{
    free(e);
}

void history_encoder_begin(struct history_encoder *e, const float *dense)
{
    bind(e, dense, NULL);
    e->dense = dense;
    e->n = e->S = 0;
    e->start[0] = 0;
    e->squares = 0;
}

// With actions all rows go through one product of matrices, so they wait for each other in X.
// Without, each goes on while it is in the cache.
void history_encoder_take(struct history_encoder *e, const struct recent *r)
{
    const size_t d = (size_t)e->d;
    const int m = r->n < e->length ? r->n : e->length, first = e->start[e->S];
    const float *const *rows = e->options.context ? r->contexts : r->vectors;
    float *X = (e->options.actions ? e->X : e->stack.Z[0]) + (size_t)first * d;
    assert(e->n < e->batch_max);
    e->sequence[e->n++] = m > 0 ? e->S : -1;
    if (m <= 0)
        return;
    for (int k = 0; k < m; k++) {
        memcpy(X + (size_t)k * d, rows[k], d * sizeof(float));
        e->actions[first + k] = r->actions ? r->actions[k] : 0;
        e->gaps[first + k] = r->gaps ? r->gaps[k] : 0;
    }
    if (!e->options.actions)
        event_fusion_forward(&e->fusion, m, X, NULL, e->gaps + first, X);
    e->example[e->S++] = e->n - 1;
    e->start[e->S] = first + m;
}

void history_encoder_forward(struct history_encoder *e, float *Q)
{
    const size_t d = (size_t)e->d;
    const int S = e->S;
    if (S == 0)
        return;
    float *Z = e->stack.Z[0];
    if (e->options.actions)
        event_fusion_forward(&e->fusion, e->start[S], e->X, e->actions, e->gaps, Z);
    for (int s = 0; e->positions && s < S; s++)
        kernels->axpy((size_t)(e->start[s + 1] - e->start[s]) * d, 1, e->positions,
                      Z + (size_t)e->start[s] * d);
    attention_stack_forward(&e->stack, S, e->start, e->top);
    memset(e->added, 0, (size_t)S * d * sizeof(float));
    gemm_nn(S, e->d, e->d, e->top, e->dense + e->at[BLOCK_OUT], e->added);
    for (int s = 0; s < S; s++)
        kernels->axpy(d, 1, e->added + (size_t)s * d, Q + (size_t)e->example[s] * d);
}

void history_encoder_backward(struct history_encoder *e, const float *dQ, float *ddense)
{
    const size_t d = (size_t)e->d;
    const int S = e->S;
    if (S == 0)
        return;
    bind(e, e->dense, ddense);
    for (int s = 0; s < S; s++)
        memcpy(e->dadded + (size_t)s * d, dQ + (size_t)e->example[s] * d, d * sizeof(float));
    memset(e->dtop, 0, (size_t)S * d * sizeof(float));
    gemm_tn(e->d, e->d, S, e->top, e->dadded, ddense + e->at[BLOCK_OUT]);
    gemm_nt(S, e->d, e->d, e->dadded, e->dense + e->at[BLOCK_OUT], e->dtop);
    attention_stack_backward(&e->stack, S, e->start, e->dtop, e->X);
    if (e->options.actions)
        event_fusion_backward(&e->fusion, e->start[S], e->actions, e->gaps, e->X, e->X);
}

void history_encoder_give(struct history_encoder *e, int i, float *const *drows)
{
    const size_t d = (size_t)e->d;
    const int s = e->sequence[i];
    assert(i < e->n);
    if (s < 0)
        return;
    const int first = e->start[s], m = e->start[s + 1] - first;
    float *dX = e->X + (size_t)first * d;
    if (!e->options.actions)
        event_fusion_backward(&e->fusion, m, NULL, e->gaps + first, dX, dX);
    e->squares += (double)kernels->dot((size_t)m * d, dX, dX);
    for (int k = 0; k < m; k++)
        kernels->axpy(d, 1, dX + (size_t)k * d, drows[k]);
}

bool history_encoder_finite(const struct history_encoder *e)
{
    return isfinite(e->squares);
}

void history_encoder_query(int d, const struct history_encoder_options *o, int length,
                           const float *dense, const struct recent *r, float *q)
{
    struct history_encoder e;
    const int m = r->n < length ? r->n : length;
    if (m == 0)
        return;
    encoder_init(&e, d, o, length, 1);
    const size_t bytes = encoder_scratch(&e, false, NULL);
    char memory[bytes];
    encoder_scratch(&e, false, &(struct arena){memory, bytes, 0});
    history_encoder_begin(&e, dense);
    history_encoder_take(&e, r);
    history_encoder_forward(&e, q);
}
