// SPDX-License-Identifier: Apache-2.0
#include "model/history_encoder.h"

#include <stdio.h>
#include <string.h>

#include "model/rng.h"
#include "model/tables.h"
#include "tests/support/gradcheck.h"

enum { B = 4, H = 5, D = 4, ITEMS = 6, FLOATS_MAX = 1024 };

// Full, one event, empty, longer than what is read.
static const struct {
    int n;
    uint32_t rows[H + 2];
    uint8_t actions[H + 2], gaps[H + 2];
} histories[B] = {
    {5, {0, 1, 2, 1, 5}, {1, 0, 3, 128, 1}, {0, 0, 4, 9, 31}},
    {1, {3}, {2}, {6}},
    {0},
    {7, {4, 4, 0, 1, 2, 3, 5}, {1, 1, 1, 0, 4, 1, 1}, {1, 2, 3, 4, 5, 6, 7}},
};

static const struct history_encoder_options shapes[] = {
    {.layers = 1, .heads = 1},
    {.layers = 1, .heads = 2, .residual = true, .norm = true, .gaps = true},
    {.layers = 2, .heads = 2, .residual = true, .norm = true, .actions = true, .context = true},
    {.layers = 3,
     .heads = 4,
     .residual = true,
     .gaps = true,
     .actions = true,
     .positions = ATTENTION_POSITIONS_STANDARD},
    {.layers = 2, .heads = 1, .norm = true, .positions = ATTENTION_POSITIONS_SEED},
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

static struct fixture {
    struct history_encoder_options options;
    struct history_encoder *encoder;
    float dense[FLOATS_MAX], ddense[FLOATS_MAX];
    float rows[2][ITEMS * D], drows[ITEMS * D]; // items and contexts; of those that are read
    float R[B * D], Q[B * D];
} f;

static struct recent recent_at(int i, const float **vectors, const float **contexts)
{
    for (int k = 0; k < histories[i].n; k++) {
        vectors[k] = f.rows[0] + histories[i].rows[k] * D;
        contexts[k] = f.rows[1] + histories[i].rows[k] * D;
    }
    return (struct recent){histories[i].n,   1, vectors, contexts, histories[i].actions,
                           histories[i].gaps};
}

static void setup(const struct history_encoder_options *o)
{
    struct rng rng = {23, 0};
    f = (struct fixture){.options = *o};
    assert_true(history_encoder_size(D, o) <= FLOATS_MAX);
    f.encoder = history_encoder_open(D, o, H, B);
    assert_non_null(f.encoder);
    rng_fill_uniform(&rng, f.dense, FLOATS_MAX, -0.8f, 0.8f);
    rng_fill_uniform(&rng, f.rows[0], ITEMS * D, -1, 1);
    rng_fill_uniform(&rng, f.rows[1], ITEMS * D, -1, 1);
    rng_fill_uniform(&rng, f.R, B * D, -1, 1);
}

static void forward(void)
{
    const float *vectors[H + 2], *contexts[H + 2];
    history_encoder_begin(f.encoder, f.dense);
    for (int i = 0; i < B; i++) {
        const struct recent r = recent_at(i, vectors, contexts);
        history_encoder_take(f.encoder, &r);
    }
    memset(f.Q, 0, sizeof f.Q);
    history_encoder_forward(f.encoder, f.Q);
}

static double loss(void *arg)
{
    double sum = 0;
    (void)arg;
    forward();
    for (int i = 0; i < B * D; i++)
        sum += (double)f.R[i] * f.Q[i];
    return sum;
}

static void backward(void)
{
    history_encoder_backward(f.encoder, f.R, f.ddense);
    for (int i = 0; i < B; i++) {
        float *drows[H + 2];
        for (int k = 0; k < histories[i].n; k++)
            drows[k] = f.drows + histories[i].rows[k] * D;
        history_encoder_give(f.encoder, i, drows);
    }
}

// ---- The formulas of the headers once more, in doubles, with loops for matrices.

static const float *block(const char *name)
{
    struct dense_parameter p;
    for (int i = 0; history_encoder_block(D, &f.options, i, &p); i++)
        if (strcmp(p.name, name) == 0)
            return f.dense + p.offset;
    return NULL;
}

static const float *of_layer(int layer, const char *what)
{
    char name[64];
    snprintf(name, sizeof name, "attention%d_%s", layer + 1, what);
    const float *w = block(name);
    assert_non_null(w);
    return w;
}

// y (out) = W x + b, W (out, in).
static void affine(int out, int in, const float *W, const float *b, const double *x, double *y)
{
    for (int o = 0; o < out; o++) {
        y[o] = (double)b[o];
        for (int i = 0; i < in; i++)
            y[o] += (double)W[o * in + i] * x[i];
    }
}

static void naive_layer(int layer, int n, double Z[H][D])
{
    const struct history_encoder_options *o = &f.options;
    double X[H][D], q[H][D], kv[H][2 * D];
    memcpy(X, Z, sizeof X);
    for (int k = 0; o->norm && k < n; k++) {
        double mean = 0, variance = 0;
        for (int i = 0; i < D; i++)
            mean += X[k][i] / D;
        for (int i = 0; i < D; i++)
            variance += pow(X[k][i] - mean, 2) / D;
        for (int i = 0; i < D; i++)
            X[k][i] = (X[k][i] - mean) / sqrt(variance + 1e-6);
    }
    for (int k = 0; k < n; k++) {
        affine(D, D, of_layer(layer, "query_weight"), of_layer(layer, "query_bias"), X[k], q[k]);
        affine(2 * D, D, of_layer(layer, "keyvalue_weight"), of_layer(layer, "keyvalue_bias"), X[k],
               kv[k]);
    }
    for (int asks = 0; asks < n; asks++) {
        const int width = D / o->heads;
        double mix[D] = {0}, y[D];
        for (int h = 0; h < o->heads; h++) {
            double weight[H], sum = 0;
            for (int k = 0; k < n; k++) {
                double s = 0;
                for (int i = h * width; i < (h + 1) * width; i++)
                    s += q[asks][i] * kv[k][i];
                sum += weight[k] = exp(s / sqrt(width));
            }
            for (int k = 0; k < n; k++)
                for (int i = h * width; i < (h + 1) * width; i++)
                    mix[i] += weight[k] / sum * kv[k][D + i];
        }
        affine(D, D, of_layer(layer, "output_weight"), of_layer(layer, "output_bias"), mix, y);
        for (int i = 0; i < D; i++)
            Z[asks][i] = y[i] + (o->residual ? Z[asks][i] : 0);
    }
}

static void naive_query(int example, double q[D])
{
    const struct history_encoder_options *o = &f.options;
    const int n = histories[example].n < H ? histories[example].n : H;
    double Z[H][D];
    float positions[H * D] = {0};
    memset(q, 0, D * sizeof *q);
    if (n == 0)
        return;
    if (o->positions != ATTENTION_POSITIONS_NONE)
        attention_positions_fill(o->positions, H, D, positions);
    for (int k = 0; k < n; k++) {
        const float *row = f.rows[o->context] + histories[example].rows[k] * D;
        double pair[2 * D] = {0};
        for (int i = 0; i < D; i++) {
            Z[k][i] = pair[i] = (double)row[i];
            for (int a = 0; o->actions && a < 8; a++)
                if (histories[example].actions[k] >> a & 1)
                    pair[D + i] += (double)block("attention_actions")[a * D + i];
        }
        if (o->actions)
            affine(D, 2 * D, block("attention_join_weight"), block("attention_join_bias"), pair,
                   Z[k]);
        for (int i = 0; i < D; i++) {
            Z[k][i] += (double)positions[k * D + i];
            if (o->gaps)
                Z[k][i] += (double)block("attention_gaps")[histories[example].gaps[k] * D + i];
        }
    }
    for (int l = 0; l < o->layers; l++)
        naive_layer(l, n, Z);
    for (int j = 0; j < D; j++)
        for (int i = 0; i < D; i++)
            q[j] += Z[0][i] * (double)block("attention_out")[i * D + j];
}

static void a_query_is_the_formula_of_the_headers(void **state)
{
    (void)state;
    for (int s = 0; s < SHAPES; s++) {
        setup(&shapes[s]);
        forward();
        for (int i = 0; i < B; i++) {
            const float *vectors[H + 2], *contexts[H + 2];
            const struct recent r = recent_at(i, vectors, contexts);
            double expected[D];
            float alone[D] = {0};
            naive_query(i, expected);
            history_encoder_query(D, &f.options, H, f.dense, &r, alone);
            for (int j = 0; j < D; j++) {
                assert_true(fabs(expected[j] - f.Q[i * D + j]) < 1e-5 * (1 + fabs(expected[j])));
                assert_true(fabs(expected[j] - alone[j]) < 1e-5 * (1 + fabs(expected[j])));
            }
        }
        history_encoder_close(f.encoder);
    }
}

static void gradients_agree_with_finite_differences(void **state)
{
    (void)state;
    for (int s = 0; s < SHAPES; s++) {
        struct dense_parameter p;
        setup(&shapes[s]);
        forward();
        backward();
        assert_true(history_encoder_finite(f.encoder));
        for (int i = 0; history_encoder_block(D, &f.options, i, &p); i++)
            assert_gradient(p.name, loss, NULL, f.dense + p.offset, f.ddense + p.offset,
                            (size_t)p.rows * (size_t)p.columns);
        assert_gradient("rows", loss, NULL, f.rows[f.options.context], f.drows, ITEMS * D);
        history_encoder_close(f.encoder);
    }
}

static void an_empty_history_adds_nothing_and_teaches_nothing(void **state)
{
    (void)state;
    for (int s = 0; s < SHAPES; s++) {
        float q[D] = {1, 2, 3, 4};
        setup(&shapes[s]);
        history_encoder_begin(f.encoder, f.dense);
        for (int i = 0; i < B; i++)
            history_encoder_take(f.encoder, &(struct recent){0});
        memcpy(f.Q, f.R, sizeof f.Q);
        history_encoder_forward(f.encoder, f.Q);
        assert_memory_equal(f.Q, f.R, sizeof f.Q);
        backward();
        for (int i = 0; i < FLOATS_MAX; i++)
            assert_true(f.ddense[i] == 0);
        for (int i = 0; i < ITEMS * D; i++)
            assert_true(f.drows[i] == 0);
        history_encoder_query(D, &f.options, H, f.dense, &(struct recent){0}, q);
        assert_memory_equal(q, ((float[]){1, 2, 3, 4}), sizeof q);
        history_encoder_close(f.encoder);
    }
}

static void at_its_start_it_adds_nothing_but_learns(void **state)
{
    (void)state;
    for (int s = 0; s < SHAPES; s++) {
        setup(&shapes[s]);
        history_encoder_start(D, &f.options, 9, f.dense);
        forward();
        for (int i = 0; i < B * D; i++)
            assert_true(f.Q[i] == 0);
        backward();
        double moved = 0;
        for (size_t i = 0; i < history_encoder_size(D, &f.options); i++)
            moved += fabs((double)f.ddense[i]);
        assert_true(moved > 0);
        history_encoder_close(f.encoder);
    }
}

static void a_gradient_that_is_not_finite_is_noticed(void **state)
{
    (void)state;
    setup(&shapes[1]);
    f.rows[0][0] = INFINITY;
    forward();
    backward();
    assert_false(history_encoder_finite(f.encoder));
    f.rows[0][0] = 0;
    forward();
    backward();
    assert_true(history_encoder_finite(f.encoder));
    history_encoder_close(f.encoder);
}

static void blocks_lie_one_after_the_other(void **state)
{
    (void)state;
    for (int s = 0; s < SHAPES; s++) {
        struct dense_parameter p;
        size_t next = 0;
        for (int i = 0; history_encoder_block(D, &shapes[s], i, &p); i++) {
            assert_int_equal(p.offset, next);
            next += (size_t)p.rows * (size_t)p.columns;
        }
        assert_int_equal(next, history_encoder_size(D, &shapes[s]));
    }
    struct dense_parameter p;
    assert_false(history_encoder_block(D, &(struct history_encoder_options){0}, 0, &p));
    assert_int_equal(history_encoder_size(D, &(struct history_encoder_options){.gaps = true}), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_query_is_the_formula_of_the_headers),
        cmocka_unit_test(gradients_agree_with_finite_differences),
        cmocka_unit_test(an_empty_history_adds_nothing_and_teaches_nothing),
        cmocka_unit_test(at_its_start_it_adds_nothing_but_learns),
        cmocka_unit_test(a_gradient_that_is_not_finite_is_noticed),
        cmocka_unit_test(blocks_lie_one_after_the_other),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
