// SPDX-License-Identifier: Apache-2.0
#include "model/classic.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/arena.h"
#include "model/attention.h"
#include "model/frequency.h"
#include "model/kernels.h"
#include "model/marks.h"
#include "model/memory.h"
#include "model/retrieval_loss.h"
#include "model/rng.h"
#include "model/tower.h"
#include "model/towers.h"

// Yi et al. 2019 use this rate in production.
static const float FREQUENCY_RATE = 0.01f;
// The clip of TFRS, 1e-6, would call all items of a large catalogue equally frequent.
static const float SAMPLING_FLOOR = 1e-9f;

// ---- The dense parameters: linear layers one after the other, in the order in which tower_init
// and attention_encoder_init ask for them.

enum { LAYER_HIDDEN, LAYER_FEATURES, LAYER_TOP, TOWER_LAYERS };
enum { LAYER_QUERY, LAYER_KEYVALUE, LAYER_OUTPUT, HISTORY_LAYERS };
enum {
    LAYERS_USER = 0,
    LAYERS_ITEM = LAYERS_USER + TOWER_LAYERS,
    LAYERS_HISTORY = LAYERS_ITEM + TOWER_LAYERS,
    LAYERS = LAYERS_HISTORY + HISTORY_LAYERS,
};

static const struct {
    const char *weight, *bias;
} layer_names[LAYERS] = {
    {"user_hidden_weight", "user_hidden_bias"},
    {"user_features_weight", "user_features_bias"},
    {"user_top_weight", "user_top_bias"},
    {"item_hidden_weight", "item_hidden_bias"},
    {"item_features_weight", "item_features_bias"},
    {"item_top_weight", "item_top_bias"},
    {"history_query_weight", "history_query_bias"},
    {"history_keyvalue_weight", "history_keyvalue_bias"},
    {"history_output_weight", "history_output_bias"},
};

struct layer {
    int in, out;            // 0 when this model has no such layer
    size_t W, b, parameter; // offsets in floats, and the number of W; that of b is the next
};

static bool reads_history(const struct two_tower_options *o)
{
    return o->attention && o->history > 0;
}

static struct tower_shape user_shape(const struct two_tower_options *o)
{
    return (struct tower_shape){.id = o->dim,
                                .features = o->user_features,
                                .hidden = o->hidden ? o->hidden : MLP_HIDDEN_DEFAULT,
                                .summary = reads_history(o) ? 2 * o->dim : 0,
                                .out = o->dim,
                                .bare = o->bare};
}

static struct tower_shape item_shape(const struct two_tower_options *o)
{
    return (struct tower_shape){.id = o->dim,
                                .features = o->item_features,
                                .hidden = o->hidden ? o->hidden : MLP_HIDDEN_DEFAULT,
                                .out = o->dim,
                                .bare = o->bare};
}

static struct attention_encoder_shape history_shape(const struct two_tower_options *o)
{
    return (struct attention_encoder_shape){.width = o->dim,
                                            .length = o->history,
                                            .heads = o->dim % 4 == 0 ? 4 : 1,
                                            .layers = 1,
                                            .positions = ATTENTION_POSITIONS_STANDARD,
                                            .residual = true};
}

static int tower_in(const struct tower_shape *s)
{
    return (s->features ? 2 : 1) * s->id + s->summary;
}

static void tower_layers(const struct tower_shape *s, struct layer *layers)
{
    if (s->features) {
        layers[LAYER_HIDDEN] = (struct layer){.in = s->features, .out = s->hidden};
        layers[LAYER_FEATURES] = (struct layer){.in = s->hidden, .out = s->id};
    }
    if (!s->bare)
        layers[LAYER_TOP] = (struct layer){.in = tower_in(s), .out = s->out};
}

// Returns how many floats the parameters take.
static size_t layers_place(const struct two_tower_options *o, struct layer layers[LAYERS])
{
    const struct tower_shape user = user_shape(o), item = item_shape(o);
    const int d = o->dim;
    memset(layers, 0, LAYERS * sizeof *layers);
    tower_layers(&user, layers + LAYERS_USER);
    tower_layers(&item, layers + LAYERS_ITEM);
    if (reads_history(o)) {
        layers[LAYERS_HISTORY + LAYER_QUERY] = (struct layer){.in = d, .out = d};
        layers[LAYERS_HISTORY + LAYER_KEYVALUE] = (struct layer){.in = d, .out = 2 * d};
        layers[LAYERS_HISTORY + LAYER_OUTPUT] = (struct layer){.in = d, .out = d};
    }
    size_t at = 0, parameter = 0;
    for (struct layer *l = layers; l < layers + LAYERS; l++) {
        if (l->in == 0)
            continue;
        l->W = at;
        l->b = at + arena_rounded((size_t)l->in * (size_t)l->out);
        l->parameter = parameter;
        at = l->b + arena_rounded((size_t)l->out);
        parameter += 2;
    }
    return at ? at : arena_rounded(1); // bare towers: a column is never empty
}

size_t classic_dense_size(const struct two_tower_options *o)
{
    struct layer layers[LAYERS];
    return layers_place(o, layers);
}

bool classic_dense(const struct two_tower_options *o, int i, struct dense_parameter *p)
{
    struct layer layers[LAYERS];
    layers_place(o, layers);
    for (int l = 0; l < LAYERS; l++) {
        if (layers[l].in == 0 || layers[l].parameter != ((size_t)i & ~(size_t)1))
            continue;
        if (i % 2 == 0)
            *p = (struct dense_parameter){layer_names[l].weight, layers[l].out, layers[l].in,
                                          layers[l].W};
        else
            *p = (struct dense_parameter){layer_names[l].bias, 1, layers[l].out, layers[l].b};
        return true;
    }
    return false;
}

// ---- The pure functions: the layers of the trainer over somebody else's parameters, which are
// only read.

static struct linear linear_at(const struct layer *l, const float *dense)
{
    float *parameters = (float *)(uintptr_t)dense;
    return (struct linear){
        .in = l->in, .out = l->out, .W = parameters + l->W, .b = parameters + l->b};
}

static size_t tower_scratch(const struct tower_shape *s)
{
    return (size_t)(s->features ? s->hidden + s->id : 0) + (size_t)tower_in(s);
}

// For forward only; scratch (rows, tower_scratch).
static struct tower tower_at(const struct tower_shape *shape, const struct layer *layers,
                             const float *dense, int rows, float *scratch)
{
    struct tower t = {
        .shape = *shape, .top = linear_at(&layers[LAYER_TOP], dense), .B_max = rows, .h = scratch};
    if (shape->features) {
        t.f = t.h + (size_t)rows * tower_in(shape);
        t.mlp = (struct mlp){.first = linear_at(&layers[LAYER_HIDDEN], dense),
                             .second = linear_at(&layers[LAYER_FEATURES], dense),
                             .B_max = rows,
                             .H = t.f + (size_t)rows * shape->id};
    }
    return t;
}

// The pure functions keep their scratch on the stack: 256 KiB, more only for the widest hidden
// layers and histories (1.3 MiB at dim 1024 with 64 events).
static void items_view(const struct view *v, int n, const float *vectors,
                       const struct item_state *states, const float *features, float *V)
{
    const struct two_tower_options *o = v->options;
    const struct tower_shape shape = item_shape(o);
    const size_t d = (size_t)o->dim, width = (size_t)o->item_features;
    // As many rows at a time as fit 256 KiB: one by one, the weights would be read for each.
    const size_t each = tower_scratch(&shape) + d + width;
    const int rows = each < 1024 ? 64 : each < 65536 ? (int)(65536 / each) : 1;
    struct layer layers[LAYERS];
    float scratch[(size_t)rows * tower_scratch(&shape)], Y[(size_t)rows * d];
    float zeros[(size_t)rows * width + 1];
    layers_place(o, layers);
    struct tower tower = tower_at(&shape, layers + LAYERS_ITEM, v->dense, rows, scratch);
    if (!features)
        memset(zeros, 0, sizeof zeros);
    for (int from = 0; from < n; from += rows) {
        const int size = n - from < rows ? n - from : rows;
        const float *x = features ? features + (size_t)from * width : zeros;
        tower_forward(&tower, size, vectors + (size_t)from * d, width ? x : NULL, NULL, Y);
        for (size_t i = 0; i < (size_t)size; i++) {
            float *out = V + ((size_t)from + i) * (d + 1);
            memcpy(out, Y + i * d, d * sizeof *out);
            out[d] = states[(size_t)from + i].bias;
        }
    }
}

// The encoder with its one layer, the caller's, as far as sizes go.
static struct attention_encoder encoder_at(const struct two_tower_options *o, int B_max,
                                           struct attention *layer)
{
    const struct attention_encoder_shape shape = history_shape(o);
    *layer = (struct attention){.width = o->dim,
                                .heads = shape.heads,
                                .queries = ATTENTION_NEWEST,
                                .sequences_max = B_max,
                                .length_max = o->history};
    return (struct attention_encoder){.shape = shape, .layers = layer, .B_max = B_max};
}

// summary (2d): [z ; m] of one history, newest first.
static void history_read(const struct two_tower_options *o, const struct layer *layers,
                         const float *dense, int m, const float *const *history, float *summary)
{
    const size_t d = (size_t)o->dim;
    struct attention layer;
    struct attention_encoder encoder = encoder_at(o, 1, &layer);
    const size_t bytes = attention_encoder_scratch(&encoder, false, NULL);
    float X[(size_t)o->history * d];
    char memory[bytes];
    layer.query = linear_at(&layers[LAYER_QUERY], dense);
    layer.keyvalue = linear_at(&layers[LAYER_KEYVALUE], dense);
    layer.output = linear_at(&layers[LAYER_OUTPUT], dense);
    // Sines for every query cost more than the query, but a view has no place of its own for them.
    attention_encoder_scratch(&encoder, false, &(struct arena){memory, bytes, 0});
    for (int k = 0; k < m; k++)
        memcpy(X + (size_t)k * d, history[k], d * sizeof *X);
    attention_encoder_forward(&encoder, 1, &m, X, summary);
}

static void query_view(const struct view *v, const struct recent *recent, const float *user,
                       const float *features, float *q)
{
    const struct two_tower_options *o = v->options;
    const struct tower_shape shape = user_shape(o);
    const size_t d = (size_t)o->dim, width = (size_t)o->user_features;
    struct layer layers[LAYERS];
    float scratch[tower_scratch(&shape)], zeros[d + width], summary[2 * d];
    layers_place(o, layers);
    memset(zeros, 0, sizeof zeros);
    if (reads_history(o))
        history_read(o, layers + LAYERS_HISTORY, v->dense,
                     recent->n < o->history ? recent->n : o->history, recent->vectors, summary);
    struct tower tower = tower_at(&shape, layers + LAYERS_USER, v->dense, 1, scratch);
    tower_forward(&tower, 1, user ? user : zeros, width ? (features ? features : zeros) : NULL,
                  reads_history(o) ? summary : NULL, q);
    q[d] = 1;
}

static int bonuses_view(const struct view *v, int m, const uint32_t *history, struct bonus *bonuses)
{
    (void)v, (void)m, (void)history, (void)bonuses;
    return 0; // no repeat term
}

static const char *group(const struct two_tower_options *o, int i)
{
    static const char *const all[] = {"item rows", "biases", "matrices", "user rows"};
    (void)o;
    return i < (int)(sizeof all / sizeof *all) ? all[i] : NULL;
}

// ---- Learning.

struct classic {
    struct towers towers;
    struct layer layers[LAYERS];
    size_t parameters; // floats
    void *block;       // of memory: everything below but the marks
    struct tower user, item;
    struct attention_encoder encoder;
    struct retrieval_loss loss;
    float *gradients; // of the dense parameters, at their offsets
    struct marks item_of, user_of;
    struct memory memory;
    // The batch's examples, those with an engagement first. Their items are the columns of the
    // softmax, each once. B = batch_max, and A = B + memory.capacity: behind them comes what is
    // remembered.
    int n_examples;
    struct example *example; // (B)
    float *features;         // (B, user_features): theirs
    uint32_t *slot;          // (B): of its item
    uint64_t *ids;           // (A): the columns' rows
    float *probability;      // (A)
    uint32_t *times;         // (A): among the examples
    // For the score mask, where there is one; W = words of A
    uint64_t *allowed; // (B, W)
    uint64_t *known;   // (B, words of candidates_max): what else the query's user engaged with
    uint32_t *last, *before; // (B)
    // Item rows: first those of the step's items, which go through the item tower, then those that
    // occur in histories only. I = candidates_max + queries_max history.
    int rows;
    uint32_t *items; // (I)
    float *ditems;   // (I, d)
    float *id, *x;   // (candidates_max, d), (candidates_max, item_features)
    float *dV, *db;  // (candidates_max, d), (candidates_max)
    // (candidates_max + memory.capacity, d) and without d: behind the items' what is remembered
    float *V, *bias;
    int users;
    uint32_t *user_rows; // (queries_max)
    float *dusers;       // (queries_max, d)
    uint32_t *user_slot; // (queries_max): of the query's user
    // Queries.
    float *Uid, *dUid, *ux;    // (queries_max, d), twice, (queries_max, user_features)
    int *valid;                // (queries_max): events of the history
    float *X, *dX;             // (queries_max, history, d)
    float *summary, *dsummary; // (queries_max, 2d)
    float *Y, *dY;             // (queries_max, d)
};

static struct classic *classic_of(struct towers *t)
{
    return (struct classic *)t;
}

static size_t tower_bytes(const struct tower_shape *s, size_t B)
{
    const size_t mlp = s->features ? (size_t)s->hidden + (size_t)s->id : 0;
    return 2 * B * (mlp + (size_t)tower_in(s)) * sizeof(float);
}

static struct retrieval_options loss_options(const struct two_tower_options *o)
{
    return (struct retrieval_options){.temperature = o->temperature,
                                      .sampling_floor = SAMPLING_FLOOR,
                                      .hard_negatives = o->hard_negatives,
                                      .accidental_hits = o->accidental_hits,
                                      .reduction = RETRIEVAL_SUM,
                                      .precision = o->precision};
}

// Enough for all that classic_open takes from its arena.
static size_t memory_bytes(const struct towers *base, size_t parameters)
{
    const struct two_tower_options *o = base->options;
    const struct tower_shape user = user_shape(o), item = item_shape(o);
    const size_t B = (size_t)o->batch_max, d = (size_t)o->dim;
    const size_t N = (size_t)base->queries_max, I = (size_t)base->candidates_max;
    const size_t H = reads_history(o) ? (size_t)o->history : 0;
    const size_t M = o->memory.capacity, A = B + M;
    const struct retrieval_options options = loss_options(o);
    // Words are two floats.
    const size_t columns = M * (d + 2) + A * 4 + 2 * B * (1 + retrieval_words((int)A)) +
                           2 * (o->mask_known ? B * retrieval_words((int)I) : 0);
    struct attention layer;
    struct attention_encoder encoder = encoder_at(o, base->queries_max, &layer);
    const size_t encoding = H ? attention_encoder_scratch(&encoder, true, NULL) : 0;
    const size_t history = N * H * (3 * d + 1); // X, dX, and ditems
    const size_t batch =
        B * (8 + sizeof(struct example) / sizeof(float) + (size_t)o->user_features);
    const size_t items = I * (4 * d + 4 + (size_t)o->item_features);
    const size_t queries = N * (11 * d + 8 + (size_t)o->user_features);
    const size_t arrays = 128; // each may begin up to 64 bytes late
    return (parameters + columns + history + batch + items + queries) * sizeof(float) +
           retrieval_loss_bytes(&options, (int)A, o->dim) + encoding + tower_bytes(&user, N) +
           tower_bytes(&item, I) + sizeof(struct attention) + arrays * 64;
}

static void layer_check(const struct layer *l, const struct linear *linear, const float *dense,
                        const float *gradients)
{
    assert(linear->in == l->in && linear->out == l->out);
    assert(linear->W == dense + l->W && linear->b == dense + l->b);
    assert(linear->dW == gradients + l->W && linear->db == gradients + l->b);
}

// The layers take their parameters from the dense column, in the order of layers_place.
static void layers_open(struct classic *c, struct arena *scratch)
{
    const struct two_tower_options *o = c->towers.options;
    const struct tower_shape user = user_shape(o), item = item_shape(o);
    const struct attention_encoder_shape history = history_shape(o);
    float *dense = tables_dense(c->towers.tables);
    struct rng rng = {rng_key(o->seed, UINT64_C(0x746f77657273)), 0}; // "towers"

    c->gradients = arena_floats(scratch, c->parameters);
    struct arena params = {(char *)dense, c->parameters * sizeof *dense, 0};
    struct arena grads = {(char *)c->gradients, c->parameters * sizeof *dense, 0};
    tower_init(&c->user, &user, c->towers.queries_max, &params, &grads, scratch, &rng);
    tower_init(&c->item, &item, c->towers.candidates_max, &params, &grads, scratch, &rng);
    if (reads_history(o))
        attention_encoder_init(&c->encoder, &history, c->towers.queries_max, &params, &grads,
                               scratch, &rng);

    const struct attention *a = c->encoder.layers;
    const struct linear *const linears[LAYERS] = {
        &c->user.mlp.first,   &c->user.mlp.second,     &c->user.top,
        &c->item.mlp.first,   &c->item.mlp.second,     &c->item.top,
        a ? &a->query : NULL, a ? &a->keyvalue : NULL, a ? &a->output : NULL,
    };
    for (int l = 0; l < LAYERS; l++)
        if (c->layers[l].in)
            layer_check(&c->layers[l], linears[l], dense, c->gradients);
}

static void arrays_open(struct classic *c, struct arena *scratch)
{
    const struct two_tower_options *o = c->towers.options;
    const size_t B = (size_t)o->batch_max, d = (size_t)o->dim;
    const size_t N = (size_t)c->towers.queries_max, I = (size_t)c->towers.candidates_max;
    const size_t H = reads_history(o) ? (size_t)o->history : 0, rows = I + N * H;
    const size_t A = B + o->memory.capacity;
    c->example = arena_bytes(scratch, B * sizeof *c->example);
    c->features = arena_floats(scratch, B * (size_t)o->user_features);
    c->slot = arena_bytes(scratch, B * sizeof *c->slot);
    c->ids = arena_bytes(scratch, A * sizeof *c->ids);
    c->probability = arena_floats(scratch, A);
    c->times = arena_bytes(scratch, A * sizeof *c->times);
    c->memory.places = arena_bytes(scratch, (A - B) * sizeof *c->memory.places);
    c->allowed = arena_bytes(scratch, B * retrieval_words((int)A) * sizeof *c->allowed);
    c->known =
        arena_bytes(scratch, o->mask_known ? B * retrieval_words((int)I) * sizeof *c->known : 0);
    c->last = arena_bytes(scratch, B * sizeof *c->last);
    c->before = arena_bytes(scratch, B * sizeof *c->before);
    c->items = arena_bytes(scratch, rows * sizeof *c->items);
    c->ditems = arena_floats(scratch, rows * d);
    c->id = arena_floats(scratch, I * d);
    c->x = arena_floats(scratch, I * (size_t)o->item_features);
    c->V = arena_floats(scratch, (I + o->memory.capacity) * d);
    c->dV = arena_floats(scratch, I * d);
    c->bias = arena_floats(scratch, I + o->memory.capacity);
    c->db = arena_floats(scratch, I);
    c->user_rows = arena_bytes(scratch, N * sizeof *c->user_rows);
    c->dusers = arena_floats(scratch, N * d);
    c->user_slot = arena_bytes(scratch, N * sizeof *c->user_slot);
    c->Uid = arena_floats(scratch, N * d);
    c->dUid = arena_floats(scratch, N * d);
    c->ux = arena_floats(scratch, N * (size_t)o->user_features);
    c->valid = arena_bytes(scratch, N * sizeof *c->valid);
    c->X = arena_floats(scratch, N * H * d);
    c->dX = arena_floats(scratch, N * H * d);
    c->summary = arena_floats(scratch, N * 2 * d);
    c->dsummary = arena_floats(scratch, N * 2 * d);
    c->Y = arena_floats(scratch, N * d);
    c->dY = arena_floats(scratch, N * d);
}

static void classic_close(struct towers *t)
{
    struct classic *c = classic_of(t);
    marks_close(&c->item_of);
    marks_close(&c->user_of);
    free(c->block);
    free(c);
}

static struct towers *classic_open(const struct towers *base, size_t items_max, size_t users_max)
{
    const struct two_tower_options *o = base->options;
    struct classic *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->towers = *base;
    c->parameters = layers_place(o, c->layers);
    const size_t bytes = memory_bytes(base, c->parameters);
    c->block = malloc(bytes);
    if (!c->block || !marks_open(&c->item_of, items_max) || !marks_open(&c->user_of, users_max)) {
        classic_close(&c->towers);
        return NULL;
    }
    struct arena scratch = {c->block, bytes, 0};
    layers_open(c, &scratch);
    arrays_open(c, &scratch);
    const struct retrieval_options loss = loss_options(o);
    retrieval_loss_init(&c->loss, &loss, o->batch_max, o->batch_max + (int)o->memory.capacity, 1,
                        o->dim, &scratch);

    struct dense_parameter p;
    for (int i = 0; classic_dense(o, i, &p); i++)
        optimizer_start(&o->matrix, (size_t)p.rows * (size_t)p.columns,
                        tables_dense(base->tables) + base->tables->dense_size + 2 * p.offset);
    return &c->towers;
}

static void begin(struct towers *t, struct step *s)
{
    struct classic *c = classic_of(t);
    assert(s->n > 0 && s->n <= t->queries_max && !s->features == !t->options->user_features);
    marks_clear(&c->item_of);
    marks_clear(&c->user_of);
    c->rows = c->users = 0;
    s->C = 0;
    s->rows = c->items;
    s->Q = c->Y, s->dQ = c->dY;
    s->V = c->V, s->dV = c->dV;
    s->column = c->bias, s->dcolumn = c->db;
}

static uint32_t item_add(struct towers *t, struct step *s, uint32_t row)
{
    struct classic *c = classic_of(t);
    return marks_slot(&c->item_of, row, c->items, &s->C);
}

// The columns are the examples' items. Only those with an engagement are queries.
static void candidates_choose(struct towers *t, struct step *s)
{
    struct classic *c = classic_of(t);
    const size_t width = (size_t)t->options->user_features;
    int at = 0, positives = 0;
    for (int positive = 1; positive >= 0; positive--) {
        for (int i = 0; i < s->n; i++) {
            if (!s->examples[i].positive != !positive)
                continue;
            if (width)
                memcpy(c->features + (size_t)at * width, s->features + (size_t)i * width,
                       width * sizeof(float));
            c->example[at++] = s->examples[i];
        }
        if (positive)
            positives = at;
    }
    for (int j = 0; j < at; j++)
        c->slot[j] = item_add(t, s, c->example[j].item);
    memset(c->times, 0, (size_t)s->C * sizeof *c->times);
    for (int j = 0; j < at; j++)
        c->times[c->slot[j]]++;
    c->n_examples = at;
    s->n = positives;
    s->examples = c->example;
    s->target = c->slot;
    s->features = width ? c->features : NULL;
}

static void items_forward(struct classic *c, const struct step *s)
{
    const struct tables *t = c->towers.tables;
    const size_t d = (size_t)c->towers.options->dim;
    const size_t width = (size_t)c->towers.options->item_features;
    for (size_t u = 0; u < (size_t)s->C; u++) {
        memcpy(c->id + u * d, column_at(&t->item_vector, c->items[u]), d * sizeof(float));
        if (width)
            memcpy(c->x + u * width, column_at(&t->item_features, c->items[u]),
                   width * sizeof(float));
        c->bias[u] = ((const struct item_state *)column_at(&t->item_state, c->items[u]))->bias;
    }
    tower_forward(&c->item, s->C, c->id, width ? c->x : NULL, NULL, c->V);
}

static void queries_forward(struct classic *c, const struct step *s)
{
    const struct two_tower_options *o = c->towers.options;
    const struct tables *t = c->towers.tables;
    const size_t d = (size_t)o->dim, width = (size_t)o->user_features, H = (size_t)o->history;
    for (size_t i = 0; i < (size_t)s->n; i++) {
        const struct example *example = &s->examples[i];
        c->user_slot[i] = marks_slot(&c->user_of, example->user, c->user_rows, &c->users);
        memcpy(c->Uid + i * d, column_at(&t->user_vector, example->user), d * sizeof(float));
        if (width)
            memcpy(c->ux + i * width, s->features + i * width, width * sizeof(float));
        if (!reads_history(o))
            continue;
        c->valid[i] = example->n_history < o->history ? example->n_history : o->history;
        for (size_t k = 0; k < (size_t)c->valid[i]; k++)
            memcpy(c->X + (i * H + k) * d, column_at(&t->item_vector, example->history[k]),
                   d * sizeof(float));
    }
    if (reads_history(o))
        attention_encoder_forward(&c->encoder, s->n, c->valid, c->X, c->summary);
    tower_forward(&c->user, s->n, c->Uid, width ? c->ux : NULL,
                  reads_history(o) ? c->summary : NULL, c->Y);
}

static void forward(struct towers *t, struct step *s)
{
    struct classic *c = classic_of(t);
    const size_t d = (size_t)t->options->dim;
    items_forward(c, s);
    queries_forward(c, s);
    memset(c->gradients, 0, c->parameters * sizeof(float));
    memset(c->dV, 0, (size_t)s->C * d * sizeof(float));
    memset(c->db, 0, (size_t)s->C * sizeof(float));
    memset(c->dY, 0, (size_t)s->n * d * sizeof(float));
}

static void rows_add(size_t d, const float *gradient, float *sums, uint32_t slot)
{
    kernels->axpy(d, 1, gradient, sums + (size_t)slot * d);
}

// Behind the batch's columns those of earlier batches, as they were then. Returns how many there
// are in all.
static int memory_append(struct classic *c, const struct step *s)
{
    const size_t d = (size_t)c->towers.options->dim;
    for (int i = 0; i < c->memory.n; i++) {
        const struct negative_entry *entry = memory_entry(&c->memory, &c->towers, i);
        const size_t j = (size_t)(s->C + i);
        const int64_t slot = marks_find(&c->item_of, entry->row);
        memcpy(c->V + j * d, memory_vector(&c->memory, &c->towers, i), d * sizeof(float));
        c->bias[j] = entry->extra;
        c->ids[j] = entry->row;
        c->probability[j] = expf(entry->log_q);
        c->times[j] = 1;
        if (slot != MARKS_NONE && slot < s->C)
            memory_look(&c->memory, &c->towers, i, c->V + (size_t)slot * d);
    }
    return s->C + c->memory.n;
}

// What is no negative of a query: what its user engaged with elsewhere in the batch, in whatever
// column it stands, and what is remembered of its own item.
static const uint64_t *columns_mask(struct classic *c, const struct step *s, int columns)
{
    const struct two_tower_options *o = c->towers.options;
    const size_t n = (size_t)s->n, words = retrieval_words(columns), slots = retrieval_words(s->C);
    const int remembered = columns - s->C;
    if (!o->mask_known && remembered == 0)
        return NULL;
    memset(c->allowed, 0, n * words * sizeof *c->allowed);
    for (size_t i = 0; i < n && remembered > 0; i++)
        negative_memory_remove(column_at(&c->towers.tables->memory_entry, 0), remembered,
                               c->memory.places, s->examples[i].item, s->C, c->allowed + i * words);
    memset(c->known, 0, o->mask_known ? n * slots * sizeof *c->known : 0);
    if (o->mask_known && sampled_softmax_remove_known(s->n, s->C, c->user_slot, c->slot, c->last,
                                                      c->before, c->known) > 0) {
        for (size_t j = 0; j < (size_t)columns; j++) {
            const int64_t slot = marks_find(&c->item_of, (uint32_t)c->ids[j]);
            for (size_t i = 0; i < n && slot != MARKS_NONE; i++) {
                const uint64_t known = c->known[i * slots + (size_t)slot / 64] >> (slot % 64) & 1;
                c->allowed[i * words + j / 64] |= known << (j % 64);
            }
        }
    }
    for (size_t w = 0; w < n * words; w++)
        c->allowed[w] = ~c->allowed[w];
    return c->allowed;
}

static void columns_fill(struct classic *c, const struct step *s)
{
    const struct tables *t = c->towers.tables;
    const struct model_state *state = tables_state(t);
    const float average = 1.0f / (float)t->item_state.n;
    for (int j = 0; j < s->C; j++) {
        c->ids[j] = c->items[j];
        if (c->towers.options->logq)
            c->probability[j] = frequency_read(column_at(&t->item_frequency, c->items[j]), average,
                                               state->examples);
    }
}

// What is remembered teaches queries alone: as in the recipe, where the reason is.
static void softmax(struct towers *t, struct step *s)
{
    struct classic *c = classic_of(t);
    memory_recall(&c->memory, t);
    columns_fill(c, s);
    struct retrieval_batch batch = {.queries = s->n,
                                    .candidates = s->C,
                                    .D = t->options->dim,
                                    .Q = c->Y,
                                    .C = c->V,
                                    .column = c->bias,
                                    .positive = c->slot,
                                    .times = c->times,
                                    .sampling = t->options->logq ? c->probability : NULL,
                                    .allowed = columns_mask(c, s, s->C),
                                    .weight = s->weight};
    const bool remembers = c->memory.n > 0;
    retrieval_loss_step(&c->loss, &batch, NULL,
                        &(struct retrieval_gradient){
                            .dQ = remembers ? NULL : c->dY, .dC = c->dV, .dcolumn = c->db});
    s->loss += c->loss.loss;
    s->masked += c->loss.removed_by_id + c->loss.removed_by_mask;
    if (!remembers)
        return;
    batch.candidates = memory_append(c, s);
    batch.ids = c->ids;
    batch.allowed = columns_mask(c, s, batch.candidates);
    retrieval_loss_step(&c->loss, &batch, NULL, &(struct retrieval_gradient){.dQ = c->dY});
}

// From dQ and dV to the gradients of the dense parameters and of every row.
static void items_backward(struct classic *c, const struct step *s)
{
    const size_t d = (size_t)c->towers.options->dim;
    memset(c->ditems, 0, (size_t)s->C * d * sizeof(float));
    tower_backward(&c->item, s->C, c->towers.options->item_features ? c->x : NULL, c->dV, c->ditems,
                   NULL);
}

static void histories_backward(struct classic *c, const struct step *s)
{
    const size_t d = (size_t)c->towers.options->dim, H = (size_t)c->towers.options->history;
    memset(c->dX, 0, (size_t)s->n * H * d * sizeof(float));
    attention_encoder_backward(&c->encoder, s->n, c->dsummary, c->dX);
    for (size_t i = 0; i < (size_t)s->n; i++)
        for (size_t k = 0; k < (size_t)c->valid[i]; k++) {
            const int before = c->rows;
            const uint32_t slot =
                marks_slot(&c->item_of, s->examples[i].history[k], c->items, &c->rows);
            if (c->rows > before)
                memset(c->ditems + (size_t)slot * d, 0, d * sizeof(float));
            rows_add(d, c->dX + (i * H + k) * d, c->ditems, slot);
        }
}

static void queries_backward(struct classic *c, const struct step *s)
{
    const struct two_tower_options *o = c->towers.options;
    const size_t d = (size_t)o->dim, n = (size_t)s->n;
    memset(c->dUid, 0, n * d * sizeof(float));
    memset(c->dsummary, 0, n * 2 * d * sizeof(float));
    memset(c->dusers, 0, (size_t)c->users * d * sizeof(float));
    tower_backward(&c->user, s->n, o->user_features ? c->ux : NULL, c->dY, c->dUid,
                   reads_history(o) ? c->dsummary : NULL);
    for (size_t i = 0; i < n; i++)
        rows_add(d, c->dUid + i * d, c->dusers, c->user_slot[i]);
    c->rows = s->C;
    if (reads_history(o))
        histories_backward(c, s);
}

static bool backward(struct towers *t, struct step *s)
{
    struct classic *c = classic_of(t);
    const size_t d = (size_t)t->options->dim;
    items_backward(c, s);
    queries_backward(c, s);
    return gradient_finite(c->parameters, c->gradients) &&
           gradient_finite((size_t)c->rows * d, c->ditems) &&
           gradient_finite((size_t)c->users * d, c->dusers) && gradient_finite((size_t)s->C, c->db);
}

static void dense_update(const struct classic *c, struct tables *t, uint64_t step)
{
    for (size_t i = 0; i < t->dense.n; i++)
        column_edit(&t->dense, i);
    float *dense = tables_dense(t), *slots = dense + t->dense_size;
    struct dense_parameter p;
    for (int i = 0; classic_dense(c->towers.options, i, &p); i++)
        optimizer_update(&c->towers.options->matrix, step, (size_t)p.rows * (size_t)p.columns,
                         c->gradients + p.offset, dense + p.offset, slots + 2 * p.offset);
}

// The batch's examples as the softmax had their items.
static void columns_store(struct classic *c)
{
    const size_t d = (size_t)c->towers.options->dim;
    memory_adapt(&c->memory, &c->towers);
    for (int i = 0; i < c->n_examples; i++) {
        const size_t j = c->slot[i];
        memory_store(
            &c->towers,
            (struct negative_entry){.row = (uint32_t)c->ids[j],
                                    .extra = c->bias[j],
                                    .log_q = c->towers.options->logq ? logf(c->probability[j]) : 0},
            c->V + j * d);
    }
}

static void update(struct towers *towers, struct step *s)
{
    struct classic *c = classic_of(towers);
    struct tables *t = towers->tables;
    const struct two_tower_options *o = towers->options;
    const struct optimizer table = step_optimizer(s, &o->table);
    const struct model_state *state = tables_state(t);
    const uint64_t step = state->steps + 1;
    const uint64_t seen = state->examples + (uint64_t)(s->fresh ? c->n_examples : 0);
    const float average = 1.0f / (float)t->item_state.n;
    const struct row_parts items = {&t->item_vector, &t->item_slots, t->dim, 1, {&o->table}};
    const struct row_parts users = {&t->user_vector, &t->user_slots, t->dim, 1, {&o->table}};
    step_update_rows(s, &items, step, c->rows, c->items, c->ditems);
    step_update_rows(s, &users, step, c->users, c->user_rows, c->dusers);
    for (int u = 0; u < s->C; u++) {
        if (!step_moves(s, 1, &c->db[u]))
            continue;
        struct item_state *item = column_edit(&t->item_state, c->items[u]);
        optimizer_update(&table, step, 1, &c->db[u], &item->bias, item->bias_slots);
        if (o->logq && s->fresh)
            frequency_sight(column_edit(&t->item_frequency, c->items[u]), FREQUENCY_RATE, average,
                            seen, c->times[u]);
    }
    dense_update(c, t, step);
    if (o->memory.capacity > 0 && s->fresh)
        columns_store(c);
}

static double squares(const struct towers *towers, const struct step *s)
{
    const struct classic *c = (const struct classic *)towers;
    const struct tables *t = towers->tables;
    return tables_squares(&t->item_vector, t->dim, c->rows, c->items) +
           tables_squares(&t->user_vector, t->dim, c->users, c->user_rows) +
           tables_bias_squares(t, s->C, c->items);
}

const struct towers_kind classic_kind = {
    .dense_size = classic_dense_size,
    .dense = classic_dense,
    .group = group,
    .open = classic_open,
    .close = classic_close,
    .begin = begin,
    .item = item_add,
    .candidates = candidates_choose,
    .forward = forward,
    .softmax = softmax,
    .backward = backward,
    .update = update,
    .squares = squares,
    .items = items_view,
    .query = query_view,
    .bonuses = bonuses_view,
};
