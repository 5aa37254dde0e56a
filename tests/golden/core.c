// SPDX-License-Identifier: Apache-2.0
//
// Towers, history, in-batch softmax, top-k, optimizers, item frequency.
#include <assert.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/arena.h"
#include "model/attention.h"
#include "model/frequency.h"
#include "model/gemm.h"
#include "model/kernels.h"
#include "model/optimizer.h"
#include "model/retrieval_loss.h"
#include "model/rng.h"
#include "model/topk.h"
#include "model/tower.h"
#include "tests/golden/case.h"
#include "tests/golden/weighted.h"

static void copy_in(struct test *t, const char *key, float *to, int rows, int columns)
{
    const struct tensor x = tensor_in(t, key);
    if (x.count != (size_t)rows * (size_t)columns)
        fail(t, "in.%s has %zu values, its layer needs %d", key, x.count, rows * columns);
    else
        memcpy(to, x.data, sizeof(float) * x.count);
}

static void linear_in(struct test *t, struct linear *l, const char *W, const char *b)
{
    copy_in(t, W, l->W, l->out, l->in);
    copy_in(t, b, l->b, 1, l->out);
}

static void expect_linear(struct test *t, const struct linear *l, const char *W, const char *b)
{
    expect(t, W, (size_t)l->in * (size_t)l->out, l->dW);
    expect(t, b, (size_t)l->out, l->db);
}

// ---- towers and history --------------------------------------------------------------------

static struct attention_encoder encoder_in(struct test *t, int B, int H, int D, bool positions,
                                           bool residual)
{
    struct attention_encoder e;
    char key[32];
    struct attention_encoder_shape shape = {
        .width = D, .length = H, .heads = int_in(t, "heads"), .residual = residual};
    // The number of layers is the number of layers there are weights for.
    do
        snprintf(key, sizeof key, "L%d.Wq", ++shape.layers);
    while (has(t, key));
    shape.positions = positions ? ATTENTION_POSITIONS_SEED : ATTENTION_POSITIONS_NONE;
    attention_encoder_init(&e, &shape, B, &t->params, &t->grads, &t->scratch, &t->rng);
    if (positions)
        copy_in(t, "pe", e.E, H, D);
    for (int l = 0; l < shape.layers; l++) {
        struct attention *a = &e.layers[l];
        const struct {
            const char *name;
            float *to;
            int rows, columns;
        } parts[] = {
            {"Wq", a->query.W, D, D},
            {"bq", a->query.b, 1, D},
            {"Wk", a->keyvalue.W, D, D},
            {"bk", a->keyvalue.b, 1, D},
            {"Wv", a->keyvalue.W + D * D, D, D},
            {"bv", a->keyvalue.b + D, 1, D},
            {"Wo", a->output.W, D, D},
            {"bo", a->output.b, 1, D},
        };
        for (size_t p = 0; p < sizeof parts / sizeof *parts; p++) {
            snprintf(key, sizeof key, "L%d.%s", l, parts[p].name);
            copy_in(t, key, parts[p].to, parts[p].rows, parts[p].columns);
        }
    }
    return e;
}

static void expect_encoder(struct test *t, const struct attention_encoder *e)
{
    const size_t D = (size_t)e->shape.width;
    char key[32];
    for (int l = 0; l < e->shape.layers; l++) {
        const struct attention *a = &e->layers[l];
        const struct {
            const char *name;
            const float *gradient;
            size_t n;
        } parts[] = {
            {"Wq", a->query.dW, D * D},
            {"bq", a->query.db, D},
            {"Wk", a->keyvalue.dW, D * D},
            {"bk", a->keyvalue.db, D},
            {"Wv", a->keyvalue.dW + D * D, D * D},
            {"bv", a->keyvalue.db + D, D},
            {"Wo", a->output.dW, D * D},
            {"bo", a->output.db, D},
        };
        for (size_t p = 0; p < sizeof parts / sizeof *parts; p++) {
            snprintf(key, sizeof key, "d_L%d.%s", l, parts[p].name);
            expect(t, key, parts[p].n, parts[p].gradient);
        }
    }
}

static void history_encoder(struct test *t)
{
    const struct tensor X = tensor_in(t, "X");
    const int H = X.shape[0], D = X.shape[1];
    const bool positions = has(t, "use_pe") ? int_in(t, "use_pe") != 0 : has(t, "pe");
    const bool residual = has(t, "residual") && int_in(t, "residual") != 0;
    const int n = has(t, "n_valid") ? int_in(t, "n_valid") : -1, valid = n < 0 ? H : n;
    struct attention_encoder e = encoder_in(t, 1, H, D, positions, residual);
    float *out = floats(t, 2 * (size_t)D), *dX = floats(t, X.count);

    if (t->failed)
        return;
    attention_encoder_forward(&e, 1, &valid, X.data, out);
    expect(t, "out", 2 * (size_t)D, out);
    const double tolerance = t->tolerance;
    t->tolerance = 1e-3; // as published: four digits
    expect(t, "published", 2 * (size_t)D, out);
    t->tolerance = tolerance;
    if (!has(t, "upstream"))
        return;
    attention_encoder_backward(&e, 1, tensor_in(t, "upstream").data, dX);
    expect(t, "dX", X.count, dX);
    expect_encoder(t, &e);
}

static void positional_table(struct test *t)
{
    const int H = int_in(t, "H"), D = int_in(t, "D");
    float *E = floats(t, (size_t)H * (size_t)D);
    attention_positions_fill(ATTENTION_POSITIONS_SEED, H, D, E);
    expect(t, "seed_flipped", (size_t)H * (size_t)D, E);
    attention_positions_fill(ATTENTION_POSITIONS_STANDARD, H, D, E);
    expect(t, "standard_flipped", (size_t)H * (size_t)D, E);
}

// Rows of a table, one for each id.
static float *look_up(struct test *t, const struct tensor *table, const struct tensor *ids)
{
    const size_t width = (size_t)table->shape[1];
    float *rows = floats(t, ids->count * width);
    for (size_t i = 0; i < ids->count; i++) {
        assert(ids->data[i] >= 0 && ids->data[i] < (float)table->shape[0]);
        memcpy(rows + i * width, table->data + (size_t)ids->data[i] * width, sizeof(float) * width);
    }
    return rows;
}

static void add_rows(const struct tensor *table, const struct tensor *ids, const float *rows,
                     float *gradient)
{
    const size_t width = (size_t)table->shape[1];
    for (size_t i = 0; i < ids->count; i++)
        kernels->axpy(width, 1, rows + i * width, gradient + (size_t)ids->data[i] * width);
}

// The towers of a case, by the prefix of its keys: "u" or "i".
static struct tower tower_in(struct test *t, char who, int B, int id, int summary)
{
    struct tower tower;
    char W1[8], b1[8], W2[8], b2[8], feat[16], W[16], b[16];
    snprintf(W1, sizeof W1, "%cW1", who);
    snprintf(b1, sizeof b1, "%cb1", who);
    snprintf(W2, sizeof W2, "%cW2", who);
    snprintf(b2, sizeof b2, "%cb2", who);
    snprintf(feat, sizeof feat, "%s_feat", who == 'u' ? "user" : "item");
    snprintf(W, sizeof W, "%ctower_W", who);
    snprintf(b, sizeof b, "%ctower_b", who);
    const bool features = has(t, feat);
    const struct tower_shape shape = {
        .id = id,
        .features = features ? tensor_in(t, feat).shape[1] : 0,
        .hidden = features ? tensor_in(t, W1).shape[0] : 0,
        .summary = summary,
        .out = tensor_in(t, W).shape[0],
    };
    tower_init(&tower, &shape, B, &t->params, &t->grads, &t->scratch, &t->rng);
    if (features) {
        linear_in(t, &tower.mlp.first, W1, b1);
        linear_in(t, &tower.mlp.second, W2, b2);
    }
    linear_in(t, &tower.top, W, b);
    return tower;
}

static void towers_forward_base(struct test *t)
{
    const struct tensor user_table = tensor_in(t, "user_table"), users = tensor_in(t, "user_id");
    const struct tensor item_table = tensor_in(t, "item_table"), items = tensor_in(t, "item_id");
    const int B = (int)users.count;
    struct tower user = tower_in(t, 'u', B, user_table.shape[1], 0);
    struct tower item = tower_in(t, 'i', B, item_table.shape[1], 0);
    const int D = user.shape.out;
    const size_t n = (size_t)B * (size_t)D;
    float *U = floats(t, n), *V = floats(t, n), *S = floats(t, (size_t)B * (size_t)B);

    if (t->failed)
        return;
    tower_forward(&user, B, look_up(t, &user_table, &users), tensor_in(t, "user_feat").data, NULL,
                  U);
    tower_forward(&item, B, look_up(t, &item_table, &items), tensor_in(t, "item_feat").data, NULL,
                  V);
    gemm_nt(B, B, D, U, V, S);
    expect(t, "tower_in", (size_t)B * (size_t)user.top.in, user.h);
    expect(t, "U", n, U);
    expect(t, "V", n, V);
    expect(t, "S", (size_t)B * (size_t)B, S);
}

static void towers_forward(struct test *t)
{
    if (has(t, "user_table")) {
        towers_forward_base(t);
        return;
    }
    // The first parts of the tower's input are given ready.
    const struct tensor base = tensor_in(t, "tower_in_base"), history = tensor_in(t, "history");
    const struct tensor item_table = tensor_in(t, "item_table");
    const int B = history.shape[0], H = history.shape[1], D = item_table.shape[1];
    struct attention_encoder e = encoder_in(t, B, H, D, has(t, "pe"), false);
    struct tower user = tower_in(t, 'u', B, base.shape[1], 2 * D);
    float *summary = floats(t, (size_t)B * 2 * (size_t)D);
    float *U = floats(t, (size_t)B * (size_t)user.shape.out);

    if (t->failed)
        return;
    attention_encoder_forward(&e, B, NULL, look_up(t, &item_table, &history), summary);
    tower_forward(&user, B, base.data, NULL, summary, U);
    expect(t, "history_summary", (size_t)B * 2 * (size_t)D, summary);
    expect(t, "tower_in", (size_t)B * (size_t)user.top.in, user.h);
    expect(t, "U", (size_t)B * (size_t)user.shape.out, U);
}

static void towers_backward(struct test *t)
{
    const struct tensor user_table = tensor_in(t, "user_table"), users = tensor_in(t, "user_id");
    const struct tensor item_table = tensor_in(t, "item_table"), items = tensor_in(t, "item_id");
    const struct tensor history = tensor_in(t, "history"), labels = tensor_in(t, "labels");
    const struct tensor user_feat = tensor_in(t, "user_feat");
    const struct tensor item_feat = tensor_in(t, "item_feat");
    const int B = (int)users.count, H = history.shape[1];
    const size_t D = (size_t)item_table.shape[1], DU = (size_t)user_table.shape[1], b = (size_t)B;
    struct attention_encoder e = encoder_in(t, B, H, (int)D, has(t, "pe"), false);
    struct tower user = tower_in(t, 'u', B, (int)DU, 2 * (int)D);
    struct tower item = tower_in(t, 'i', B, (int)D, 0);
    float *summary = floats(t, b * 2 * D), *dsummary = floats(t, b * 2 * D);
    float *U = floats(t, b * D), *dU = floats(t, b * D), *V = floats(t, b * D);
    float *dV = floats(t, b * D), *duser = floats(t, b * DU), *ditem = floats(t, b * D);
    float *dhistory = floats(t, history.count * D), *net = floats(t, b);
    float *duser_table = floats(t, user_table.count), *ditem_table = floats(t, item_table.count);

    if (t->failed)
        return;
    attention_encoder_forward(&e, B, NULL, look_up(t, &item_table, &history), summary);
    tower_forward(&user, B, look_up(t, &user_table, &users), user_feat.data, summary, U);
    tower_forward(&item, B, look_up(t, &item_table, &items), item_feat.data, NULL, V);
    value_net(B, labels.shape[1], labels.data, tensor_in(t, "value_weights").data, net);
    const struct weighted w = weighted_step(t, VALUE_SEED, B, (int)D, net, U, V, dU, dV);

    tower_backward(&item, B, item_feat.data, dV, ditem, NULL);
    tower_backward(&user, B, user_feat.data, dU, duser, dsummary);
    attention_encoder_backward(&e, B, dsummary, dhistory);
    add_rows(&user_table, &users, duser, duser_table);
    add_rows(&item_table, &items, ditem, ditem_table);
    add_rows(&item_table, &history, dhistory, ditem_table);

    expect(t, "U", b * D, U);
    expect(t, "V", b * D, V);
    expect_number(t, "loss", w.softmax.loss);
    expect(t, "d_user_table", user_table.count, duser_table);
    expect(t, "d_item_table", item_table.count, ditem_table);
    expect_linear(t, &user.mlp.first, "d_uW1", "d_ub1");
    expect_linear(t, &user.mlp.second, "d_uW2", "d_ub2");
    expect_linear(t, &user.top, "d_utower_W", "d_utower_b");
    expect_linear(t, &item.mlp.first, "d_iW1", "d_ib1");
    expect_linear(t, &item.mlp.second, "d_iW2", "d_ib2");
    expect_linear(t, &item.top, "d_itower_W", "d_itower_b");
    expect_encoder(t, &e);
}

// ---- losses --------------------------------------------------------------------------------

static void weighted_softmax(struct test *t)
{
    const struct tensor U = tensor_in(t, "U"), V = tensor_in(t, "V");
    const struct tensor labels = tensor_in(t, "labels");
    const float *value_weight = tensor_in(t, "value_weights").data;
    const int B = U.shape[0], D = U.shape[1], T = labels.shape[1];
    float *net = floats(t, (size_t)B), *dU = floats(t, U.count), *dV = floats(t, V.count);

    value_net(B, T, labels.data, value_weight, net);
    const struct weighted seed = weighted_step(t, VALUE_SEED, B, D, net, U.data, V.data, dU, dV);
    expect(t, "value", (size_t)B, net);
    expect(t, "ce", (size_t)B, seed.ce);
    expect(t, "weight", (size_t)B, seed.weight);
    expect_number(t, "loss", seed.softmax.loss);
    expect(t, "dU", U.count, dU);
    expect(t, "dV", V.count, dV);

    const struct weighted fixed =
        weighted_step(t, VALUE_FIXED, B, D, net, U.data, V.data, NULL, NULL);
    expect(t, "fixed_weight", (size_t)B, fixed.weight);
    expect_number(t, "fixed_loss", fixed.softmax.loss);
}

static void tfrs_retrieval(struct test *t)
{
    const struct tensor Q = tensor_in(t, "query"), C = tensor_in(t, "candidate");
    const int q = Q.shape[0], n = C.shape[0];
    const bool heads = Q.dimensions == 3;
    const size_t pairs = (size_t)q * (size_t)n;
    const struct retrieval_options options = {
        .temperature = has(t, "temperature") ? number_in(t, "temperature") : 1,
        .hard_negatives = has(t, "num_hard_negatives") ? int_in(t, "num_hard_negatives") : 0,
        .accidental_hits =
            has(t, "remove_accidental_hits") && int_in(t, "remove_accidental_hits") != 0,
        .reduction = RETRIEVAL_SUM,
    };
    const struct retrieval_batch b = {
        .queries = q,
        .candidates = n,
        .heads = heads ? Q.shape[1] : 1,
        .D = C.shape[1],
        .Q = Q.data,
        .C = C.data,
        .sampling = has(t, "sampling_prob") ? tensor_in(t, "sampling_prob").data : NULL,
        .ids = has(t, "candidate_ids") ? ids_in(t, "candidate_ids") : NULL,
        .allowed = has(t, "score_mask") ? bits_of(t, q, n, tensor_in(t, "score_mask").data) : NULL,
        .weight = has(t, "sample_weight") ? tensor_in(t, "sample_weight").data : NULL,
    };
    struct retrieval_loss l;
    retrieval_loss_init(&l, &options, q, n > q ? n : q, b.heads, b.D, &t->scratch);
    if (n < q) {
        // The one right answer is to refuse; what the case records is what happens otherwise.
        if (!retrieval_loss_refuses(&l, &b))
            fail(t, "a batch with fewer candidates than queries is not refused");
        compared(t, "row_loss");
        compared(t, "loss");
        return;
    }
    l.trace = (struct retrieval_trace){
        .scores = floats(t, pairs),
        .corrected = floats(t, pairs),
        .removed = arena_bytes(&t->scratch, (size_t)q * retrieval_words(n) * sizeof(uint64_t)),
        .kept = arena_bytes(&t->scratch, (size_t)q * retrieval_words(n) * sizeof(uint64_t)),
    };
    float *row_loss = floats(t, (size_t)q), *dQ = floats(t, Q.count), *dC = floats(t, C.count);

    retrieval_loss_step(&l, &b, row_loss, &(struct retrieval_gradient){.dQ = dQ, .dC = dC});
    expect(t, "raw", pairs, l.trace.scores);
    expect(t, "after_logq", pairs, l.trace.corrected);
    expect_bits(t, "masked", q, n, l.trace.removed);
    expect_bits(t, "keep", q, n, l.trace.kept);
    expect(t, "row_loss", (size_t)q, row_loss);
    expect_number(t, "loss", l.loss);
    expect(t, "dquery", Q.count, dQ);
    expect(t, "dcandidate", C.count, dC);
}

static void tfrs_hard_negatives(struct test *t)
{
    const struct tensor logits = tensor_in(t, "logits"), labels = tensor_in(t, "labels");
    const int rows = logits.shape[0], n = logits.shape[1], k = int_in(t, "num_hard_negatives");
    uint64_t *kept = arena_bytes(&t->scratch, retrieval_words(n) * sizeof *kept);
    uint64_t *keys = arena_bytes(&t->scratch, (size_t)n * sizeof *keys);
    float *sorted = floats(t, logits.count);
    size_t count = 0;
    for (int i = 0; i < rows; i++) {
        int positive = 0;
        for (int j = 0; j < n; j++)
            if (labels.data[i * n + j] > labels.data[i * n + positive])
                positive = j;
        retrieval_loss_mine(n, logits.data + i * n, positive, k, keys, kept);
        for (int j = 0; j < n; j++)
            if (kept[j / 64] >> (j % 64) & 1)
                sorted[count++] = (float)j;
    }
    expect(t, "kept_sorted", count, sorted);
}

static void tfrs_same_id(struct test *t)
{
    const struct tensor logits = tensor_in(t, "logits");
    const int rows = logits.shape[0], n = logits.shape[1];
    const size_t words = retrieval_words(n);
    const uint64_t *ids = ids_in(t, "candidate_ids");
    uint64_t *removed = arena_bytes(&t->scratch, (size_t)rows * words * sizeof *removed);
    for (int i = 0; i < rows; i++)
        retrieval_loss_same_id(n, ids, i, removed + (size_t)i * words);
    expect_bits(t, "removed", rows, n, removed);
    compared(t, "value"); // what is added to the score there; here removal is a bit
}

static void tfrs_layers(struct test *t)
{
    if (has(t, "prob")) {
        const struct tensor p = tensor_in(t, "prob");
        float *correction = floats(t, p.count);
        retrieval_loss_correction((int)p.count, p.data, 1e-6f, correction);
        expect(t, "correction", p.count, correction);
    } else if (has(t, "labels")) {
        tfrs_hard_negatives(t);
    } else {
        tfrs_same_id(t);
    }
}

// ---- frequency, optimizers -----------------------------------------------------------------

static void stream_frequency_bias(struct test *t)
{
    const struct tensor steps = tensor_in(t, "t");
    const uint64_t gap = (uint64_t)number_in(t, "delta");
    const float alpha = number_in(t, "alpha"), start = number_in(t, "delta0");
    float *gaps = floats(t, steps.count);
    for (size_t i = 0; i < steps.count; i++) {
        struct frequency_cell cell = {.gap = start};
        for (uint64_t step = 1; step <= (uint64_t)steps.data[i]; step++)
            frequency_recur(&cell, alpha, step * gap);
        gaps[i] = cell.gap;
    }
    expect(t, "expected", steps.count, gaps);
}

static void stream_frequency(struct test *t)
{
    if (has(t, "delta")) {
        stream_frequency_bias(t);
        return;
    }
    // The algorithm as printed: its own hash values, time in batches, repeats and collisions and
    // all.
    const struct tensor hash = tensor_in(t, "hash"), lengths = tensor_in(t, "batch_len");
    const struct tensor items = tensor_in(t, "batch_items");
    const size_t slots = (size_t)number_in(t, "H"), hashes = (size_t)hash.shape[1];
    const size_t steps = lengths.count, known = (size_t)hash.shape[0], cells = hashes * slots;
    struct frequency_cell *cell = arena_bytes(&t->scratch, cells * sizeof *cell);
    float *A = floats(t, steps * cells), *B = floats(t, steps * cells);
    float *first = floats(t, known), *all = floats(t, known);
    const float alpha = number_in(t, "alpha"), A0 = number_in(t, "A0"), B0 = number_in(t, "B0");
    size_t item = 0;

    for (size_t c = 0; c < cells; c++)
        cell[c] = (struct frequency_cell){(uint64_t)A0, B0, 0};
    for (size_t step = 0; step < steps; step++) {
        for (size_t i = 0; i < (size_t)lengths.data[step]; i++, item++)
            for (size_t h = 0; h < hashes; h++) {
                const size_t slot = (size_t)hash.data[(size_t)items.data[item] * hashes + h];
                frequency_recur(&cell[h * slots + slot], alpha, step + 1);
            }
        for (size_t c = 0; c < cells; c++) {
            A[step * cells + c] = (float)cell[c].last;
            B[step * cells + c] = cell[c].gap;
        }
    }
    for (size_t i = 0; i < known; i++) {
        float largest = 0;
        for (size_t h = 0; h < hashes; h++)
            largest = fmaxf(largest, cell[h * slots + (size_t)hash.data[i * hashes + h]].gap);
        first[i] = 1 / cell[(size_t)hash.data[i * hashes]].gap;
        all[i] = 1 / largest;
    }
    expect(t, "A", steps * cells, A);
    expect(t, "B", steps * cells, B);
    expect(t, "p_row0", known, first);
    expect(t, "p_max", known, all);
}

static void optimizers(struct test *t)
{
    const struct tensor start = tensor_in(t, "w0"), grads = tensor_in(t, "grads");
    const size_t n = start.count, steps = (size_t)grads.shape[0];
    const struct optimizer *found = optimizer_find(t->name);
    if (!found) {
        fail(t, "there is no optimizer of this name");
        return;
    }
    struct optimizer o = *found;
    const struct {
        const char *key;
        float *setting;
    } settings[] = {{"lr", &o.rate},     {"l1", &o.l1},      {"l2", &o.l2},
                    {"eps", &o.epsilon}, {"acc0", &o.start}, {"beta", &o.beta1},
                    {"beta1", &o.beta1}, {"beta2", &o.beta2}};
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++)
        if (has(t, settings[i].key))
            *settings[i].setting = number_in(t, settings[i].key);

    float *state = floats(t, optimizer_state_floats(&o, n));
    float *w = floats(t, steps * n), *acc = floats(t, steps * n);
    optimizer_start(&o, n, state);
    for (size_t step = 0; step < steps; step++) {
        memcpy(w + step * n, step ? w + (step - 1) * n : start.data, sizeof(float) * n);
        optimizer_update(&o, step + 1, n, grads.data + step * n, w + step * n, state);
        if (optimizer_state_floats(&o, n) >= n)
            memcpy(acc + step * n, state, sizeof(float) * n);
    }
    expect(t, "w", steps * n, w);
    expect(t, "acc", steps * n, acc);
}

// ---- top-k ---------------------------------------------------------------------------------

// The result of a search as dense matrices; width is what the fullest query has.
struct found {
    size_t queries, width;
    uint64_t *ids;
    double *id; // the same as numbers, NaN where there is none
    float *score;
};

static struct found found_of(struct test *t, const struct topk *s, const uint64_t *ids)
{
    struct found f = {.queries = (size_t)s->B};
    for (int b = 0; b < s->B; b++)
        f.width = (size_t)s->counts[b] > f.width ? (size_t)s->counts[b] : f.width;
    const size_t n = f.queries * f.width;
    f.ids = arena_bytes(&t->scratch, (n ? n : 1) * sizeof *f.ids);
    f.id = arena_bytes(&t->scratch, (n + 1) * sizeof *f.id);
    f.score = floats(t, n);
    for (size_t b = 0; b < f.queries; b++)
        for (size_t i = 0; i < f.width; i++) {
            const bool there = i < (size_t)s->counts[b];
            const struct topk_entry entry = s->entries[b * (size_t)s->k_max + i];
            f.ids[b * f.width + i] = !there ? UINT64_MAX : ids ? ids[entry.row] : entry.row;
            f.id[b * f.width + i] = there ? (double)f.ids[b * f.width + i] : NAN;
            f.score[b * f.width + i] = there ? entry.score : NAN;
        }
    return f;
}

static struct topk search(struct test *t, const struct tensor *Q, const struct tensor *C, int k,
                          const uint64_t *ids, const struct topk_exclusions *exclusions)
{
    struct topk s;
    topk_init(&s, Q->shape[0], k, C->shape[1], &t->scratch);
    topk_begin(&s, Q->shape[0], k);
    topk_scan(&s, Q->data, 0, (uint32_t)C->shape[0], C->data, ids, exclusions);
    topk_finish(&s);
    return s;
}

static void mips_exact(struct test *t)
{
    const struct tensor Q = tensor_in(t, "query"), C = tensor_in(t, "corpus");
    const size_t D = (size_t)C.shape[1];
    const struct topk s = search(t, &Q, &C, int_in(t, "k"), NULL, NULL);
    const struct found f = found_of(t, &s, NULL);
    const size_t n = f.queries * f.width;
    float *embedding = floats(t, n * D);
    for (size_t i = 0; i < n; i++)
        memcpy(embedding + i * D, C.data + f.ids[i] * D, sizeof(float) * D);
    expect_doubles(t, "index", n, f.id);
    expect(t, "score", n, f.score);
    expect(t, "embedding", n * D, embedding);
}

static void topk_exclusions(struct test *t)
{
    const struct tensor Q = tensor_in(t, "query"), C = tensor_in(t, "corpus");
    const struct tensor exclude = tensor_in(t, "exclude");
    const uint64_t *ids = ids_in(t, "ids");
    uint32_t *offsets = arena_bytes(&t->scratch, ((size_t)Q.shape[0] + 1) * sizeof *offsets);
    for (int b = 0; b <= Q.shape[0]; b++)
        offsets[b] = (uint32_t)(b * exclude.shape[1]);
    const struct topk_exclusions exclusions = {ids_in(t, "exclude"), offsets};
    const struct topk s = search(t, &Q, &C, int_in(t, "k"), ids, &exclusions);
    const struct found f = found_of(t, &s, ids);
    expect_doubles(t, "ids", f.queries * f.width, f.id);
    expect(t, "score", f.queries * f.width, f.score);
}

// hit (ks, queries) from the places, and the means over queries.
static void expect_hits(struct test *t, const char *hit_key, const char *mean_key,
                        const char *weighted_key, size_t queries, const uint32_t *place)
{
    const struct tensor ks = tensor_in(t, "ks");
    const float *weight = has(t, "weight") ? tensor_in(t, "weight").data : NULL;
    float *hit = floats(t, ks.count * queries), *mean = floats(t, ks.count);
    float *weighted = floats(t, ks.count);
    for (size_t k = 0; k < ks.count; k++) {
        const uint32_t depth = (uint32_t)ks.data[k];
        for (size_t b = 0; b < queries; b++)
            hit[k * queries + b] = place[b] < depth;
        mean[k] = (float)topk_hit_mean((int)queries, place, NULL, depth);
        weighted[k] = (float)topk_hit_mean((int)queries, place, weight, depth);
    }
    expect(t, hit_key, ks.count * queries, hit);
    if (mean_key)
        expect(t, mean_key, ks.count, mean);
    if (weighted_key)
        expect(t, weighted_key, ks.count, weighted);
}

static void topk_padding(struct test *t)
{
    const struct tensor scores = tensor_in(t, "top_score");
    const uint64_t *ids = ids_in(t, "top_ids"), *once = ids_in(t, "true_id");
    const uint64_t *twice = ids_in(t, "true_id_dup");
    const size_t queries = (size_t)scores.shape[0];
    const int k = scores.shape[1];
    uint32_t *place = arena_bytes(&t->scratch, queries * sizeof *place);
    for (size_t b = 0; b < queries; b++)
        place[b] = topk_place_of_id(k, ids + b * (size_t)k, scores.data + b * (size_t)k, once[b]);
    expect_hits(t, "id_hit", NULL, NULL, queries, place);
    for (size_t b = 0; b < queries; b++)
        place[b] = topk_place_of_id(k, ids + b * (size_t)k, scores.data + b * (size_t)k, twice[b]);
    expect_hits(t, "id_hit_dup", NULL, NULL, queries, place);
}

static void topk_streaming(struct test *t)
{
    const struct tensor Q = tensor_in(t, "query"), C = tensor_in(t, "corpus");
    const struct tensor chunks = tensor_in(t, "chunks");
    const int k = int_in(t, "k");
    struct topk s;
    uint32_t row = 0;
    topk_init(&s, Q.shape[0], k, C.shape[1], &t->scratch);
    topk_begin(&s, Q.shape[0], k);
    for (size_t i = 0; i < chunks.count; i++) {
        const uint32_t n = (uint32_t)chunks.data[i];
        topk_scan(&s, Q.data, row, n, C.data + (size_t)row * (size_t)C.shape[1], NULL, NULL);
        row += n;
    }
    topk_finish(&s);
    const struct found f = found_of(t, &s, NULL);
    expect_doubles(t, "index", f.queries * f.width, f.id);
    expect(t, "score", f.queries * f.width, f.score);
}

static void topk_metrics(struct test *t)
{
    if (has(t, "top_score")) {
        topk_padding(t);
        return;
    }
    if (has(t, "chunks")) {
        topk_streaming(t);
        return;
    }
    const struct tensor Q = tensor_in(t, "query"), C = tensor_in(t, "corpus");
    const struct tensor ks = tensor_in(t, "ks");
    const uint64_t *ids = has(t, "ids") ? ids_in(t, "ids") : NULL;
    int depth = 1;
    for (size_t i = 0; i < ks.count; i++)
        depth = (int)ks.data[i] > depth ? (int)ks.data[i] : depth;
    struct topk s = search(t, &Q, &C, depth, ids, NULL);
    const struct found f = found_of(t, &s, ids);
    uint32_t *place = arena_bytes(&t->scratch, f.queries * sizeof *place);
    const struct tensor rows = has(t, "true_row") ? tensor_in(t, "true_row") : (struct tensor){0};
    const float *V =
        has(t, "true_row") ? look_up(t, &C, &rows) : tensor_in(t, "true_embedding").data;
    float *score = floats(t, f.queries);

    expect_doubles(t, "top_ids", f.queries * f.width, f.id);
    expect(t, "top_score", f.queries * f.width, f.score);
    for (size_t b = 0; b < f.queries && rows.data; b++)
        place[b] = topk_place_of_id((int)f.width, f.ids + b * f.width, f.score + b * f.width,
                                    ids[(size_t)rows.data[b]]);
    if (rows.data)
        expect_hits(t, "id_hit", "id_metric", "id_metric_weighted", f.queries, place);
    topk_score_pairs(&s, (int)f.queries, Q.data, V, score);
    for (size_t b = 0; b < f.queries; b++)
        place[b] = topk_place_of_score((int)f.width, f.score + b * f.width, score[b]);
    expect_hits(t, "score_hit", "score_metric", NULL, f.queries, place);
}

const struct topic core_topics[] = {
    {"history_encoder", history_encoder},
    {"history_published", history_encoder},
    {"mips_exact", mips_exact},
    {"optimizers", optimizers},
    {"positional_table", positional_table},
    {"stream_frequency", stream_frequency},
    {"tfrs_layers", tfrs_layers},
    {"tfrs_retrieval", tfrs_retrieval},
    {"topk_exclusions", topk_exclusions},
    {"topk_metrics", topk_metrics},
    {"towers_backward", towers_backward},
    {"towers_forward", towers_forward},
    {"weighted_softmax", weighted_softmax},
    {NULL, NULL},
};
