// SPDX-License-Identifier: Apache-2.0
#include "model/attention.h"

#include <string.h>

#include "model/arena.h"
#include "model/rng.h"
#include "tests/support/gradcheck.h"

enum { B = 4, H = 5, D = 6, HEADS = 2, LAYERS = 2, MEMORY = 1 << 15 };

// Full, short, empty, one event.
static const int lengths[B] = {5, 3, 0, 1};

struct fixture {
    struct attention_encoder encoder;
    struct attention layer;
    const int *valid;
    float X[B * H * D], dX[B * H * D], out[B * 2 * D], R[B * H * D];
    _Alignas(64) float params[MEMORY], grads[MEMORY], scratch[MEMORY];
};

static struct fixture f;

static void arenas(struct arena *params, struct arena *grads, struct arena *scratch)
{
    *params = (struct arena){(char *)f.params, sizeof f.params, 0};
    *grads = (struct arena){(char *)f.grads, sizeof f.grads, 0};
    *scratch = (struct arena){(char *)f.scratch, sizeof f.scratch, 0};
}

static void fill(struct rng *rng)
{
    rng_fill_uniform(rng, f.X, B * H * D, -1, 1);
    rng_fill_uniform(rng, f.R, B * H * D, -1, 1);
}

static void setup_encoder(enum attention_positions positions, bool residual, bool norm,
                          const int *valid)
{
    const struct attention_encoder_shape shape = {D, H, HEADS, LAYERS, positions, residual, norm};
    struct arena params, grads, scratch;
    struct rng rng = {11, 0};
    f = (struct fixture){.valid = valid};
    arenas(&params, &grads, &scratch);
    attention_encoder_init(&f.encoder, &shape, B, &params, &grads, &scratch, &rng);
    // Biases start at zero; here they must matter.
    rng_fill_uniform(&rng, f.params, params.used / sizeof(float), -0.7f, 0.7f);
    fill(&rng);
}

static double encoder_loss(void *arg)
{
    double sum = 0;
    (void)arg;
    attention_encoder_forward(&f.encoder, B, f.valid, f.X, f.out);
    for (int i = 0; i < B * 2 * D; i++)
        sum += (double)f.R[i] * f.out[i];
    return sum;
}

static void assert_linear(const char *name, double (*loss)(void *), struct linear *l)
{
    assert_gradient(name, loss, NULL, l->W, l->dW, (size_t)l->in * (size_t)l->out);
    assert_gradient(name, loss, NULL, l->b, l->db, (size_t)l->out);
}

static void assert_layer(double (*loss)(void *), struct attention *a)
{
    assert_linear("query", loss, &a->query);
    assert_linear("keyvalue", loss, &a->keyvalue);
    assert_linear("output", loss, &a->output);
}

static void assert_encoder_gradients(void)
{
    for (int l = 0; l < LAYERS; l++)
        assert_layer(encoder_loss, &f.encoder.layers[l]);
    assert_gradient("X", encoder_loss, NULL, f.X, f.dX, B * H * D);
}

static void attention_gives_the_numbers_worked_by_hand(void **state)
{
    // Width 1: queries and keys are X and 2 X, values 10 X, output Y = mix + 1.
    float one[] = {1}, zero[] = {0, 0}, keyvalue[] = {2, 10}, Y[3];
    float Q[3], KV[6], mix[3], P[3 * 16];
    const float X[] = {0, logf(3), 5};
    const int start[] = {0, 2, 3};
    struct attention a = {
        .width = 1,
        .heads = 1,
        .query = {.in = 1, .out = 1, .W = one, .b = zero},
        .keyvalue = {.in = 1, .out = 2, .W = keyvalue, .b = zero},
        .output = {.in = 1, .out = 1, .W = one, .b = one},
        .sequences_max = 2,
        .length_max = 2,
        .Q = Q,
        .KV = KV,
        .mix = mix,
        .P = P,
    };
    const float x = logf(3);
    (void)state;

    attention_forward(&a, 2, start, X, Y);
    // The first row asks with 0: both keys alike. The second with log 3: weights 1 and 3^(2 log 3).
    const double w = pow(3, 2 * (double)x) / (1 + pow(3, 2 * (double)x));
    assert_true(fabs(Y[0] - (0.5 * 10 * (double)x + 1)) < 1e-5);
    assert_true(fabs(Y[1] - (w * 10 * (double)x + 1)) < 1e-5);
    assert_true(fabs(Y[2] - 51) < 1e-5); // a sequence of its own: the others are not seen
}

static void sequences_that_fill_many_stretches_are_as_each_alone(void **state)
{
    // 40 rows and less, so that a stretch has three to six of them.
    enum { SEQUENCES = 12, LONGEST = 40, ROWS = SEQUENCES * LONGEST };
    static _Alignas(64) float params[MEMORY], grads[MEMORY], scratch[1 << 18], alone[1 << 16];
    static float X[ROWS * D], dX[ROWS * D], one[LONGEST * D];
    struct rng rng = {3, 0};
    int start[SEQUENCES + 1] = {0};
    float top[SEQUENCES * D], dtop[SEQUENCES * D], single[D];
    (void)state;
    for (int s = 0; s < SEQUENCES; s++)
        start[s + 1] = start[s] + LONGEST - 7 * (s % 5);
    const struct attention_encoder_shape shape = {
        D, LONGEST, HEADS, LAYERS, ATTENTION_POSITIONS_NONE, true, true};
    struct attention_encoder e;
    attention_encoder_init(&e, &shape, SEQUENCES, &(struct arena){(char *)params, sizeof params, 0},
                           &(struct arena){(char *)grads, sizeof grads, 0},
                           &(struct arena){(char *)scratch, sizeof scratch, 0}, &rng);
    rng_fill_uniform(&rng, X, ROWS * D, -1, 1);
    rng_fill_uniform(&rng, dtop, SEQUENCES * D, -1, 1);
    memcpy(e.stack.Z[0], X, sizeof(float) * (size_t)start[SEQUENCES] * D);
    attention_stack_forward(&e.stack, SEQUENCES, start, top);
    attention_stack_backward(&e.stack, SEQUENCES, start, dtop, dX);

    struct attention layers[LAYERS];
    struct attention_stack stack = {.shape = e.stack.shape, .layers = layers};
    memcpy(layers, e.layers, sizeof layers);
    for (int l = 0; l < LAYERS; l++)
        layers[l].sequences_max = 1;
    attention_stack_scratch(&stack, true, &(struct arena){(char *)alone, sizeof alone, 0});
    for (int s = 0; s < SEQUENCES; s++) {
        const int n = start[s + 1] - start[s];
        memcpy(stack.Z[0], X + start[s] * D, sizeof(float) * (size_t)n * D);
        attention_stack_forward(&stack, 1, (const int[]){0, n}, single);
        attention_stack_backward(&stack, 1, (const int[]){0, n}, dtop + s * D, one);
        for (int i = 0; i < D; i++)
            assert_true(fabsf(single[i] - top[s * D + i]) < 1e-5f);
        for (int i = 0; i < n * D; i++)
            assert_true(fabsf(one[i] - dX[start[s] * D + i]) < 1e-5f);
    }
}

static double layer_loss(void *arg)
{
    static const int start[] = {0, 5, 8, 9};
    float Y[9 * D];
    double sum = 0;
    (void)arg;
    attention_forward(&f.layer, 3, start, f.X, Y);
    const int rows = f.layer.queries == ATTENTION_ALL ? 9 : 3;
    for (int i = 0; i < rows * D; i++)
        sum += (double)f.R[i] * Y[i];
    return sum;
}

static void layer_backward_agrees_with_finite_differences(void **state)
{
    static const int start[] = {0, 5, 8, 9};
    static const enum attention_queries queries[] = {ATTENTION_ALL, ATTENTION_NEWEST};
    (void)state;
    for (int q = 0; q < 2; q++) {
        struct arena params, grads, scratch;
        struct rng rng = {7, 0};
        f = (struct fixture){0};
        arenas(&params, &grads, &scratch);
        attention_init(&f.layer, D, HEADS, queries[q], 3, H, &params, &grads, &rng);
        attention_scratch(&f.layer, true, &scratch);
        rng_fill_uniform(&rng, f.params, params.used / sizeof(float), -1, 1);
        fill(&rng);
        layer_loss(NULL);
        attention_backward(&f.layer, 3, start, f.X, f.R, f.dX);
        assert_layer(layer_loss, &f.layer);
        assert_gradient("X", layer_loss, NULL, f.X, f.dX, 9 * D);
    }
}

static void the_newest_event_alone_gets_what_it_gets_among_all(void **state)
{
    static const int start[] = {0, 5, 8, 9};
    float all[9 * D], newest[3 * D];
    struct arena params, grads, scratch;
    struct rng rng = {7, 0};
    (void)state;
    arenas(&params, &grads, &scratch);
    attention_init(&f.layer, D, HEADS, ATTENTION_ALL, 3, H, &params, &grads, &rng);
    attention_scratch(&f.layer, true, &scratch);
    fill(&rng);
    attention_forward(&f.layer, 3, start, f.X, all);
    arenas(&params, &grads, &scratch);
    rng = (struct rng){7, 0};
    attention_init(&f.layer, D, HEADS, ATTENTION_NEWEST, 3, H, &params, &grads, &rng);
    attention_scratch(&f.layer, true, &scratch);
    attention_forward(&f.layer, 3, start, f.X, newest);
    for (int s = 0; s < 3; s++)
        for (int i = 0; i < D; i++)
            assert_true(fabsf(newest[s * D + i] - all[start[s] * D + i]) < 1e-6f);
}

static void encoder_backward_agrees_with_finite_differences(void **state)
{
    static const struct {
        enum attention_positions positions;
        bool residual, norm;
        const int *valid;
    } cases[] = {
        {ATTENTION_POSITIONS_NONE, false, false, NULL},
        {ATTENTION_POSITIONS_SEED, false, false, lengths},
        {ATTENTION_POSITIONS_STANDARD, true, false, lengths},
        {ATTENTION_POSITIONS_STANDARD, true, true, lengths},
        {ATTENTION_POSITIONS_NONE, false, true, lengths},
    };
    (void)state;
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        setup_encoder(cases[c].positions, cases[c].residual, cases[c].norm, cases[c].valid);
        encoder_loss(NULL);
        attention_encoder_backward(&f.encoder, B, f.R, f.dX);
        assert_encoder_gradients();
    }
}

static void encoder_backward_adds_to_what_is_there(void **state)
{
    (void)state;
    setup_encoder(ATTENTION_POSITIONS_STANDARD, true, true, lengths);
    encoder_loss(NULL);
    attention_encoder_backward(&f.encoder, B, f.R, f.dX);
    attention_encoder_backward(&f.encoder, B, f.R, f.dX);
    for (int i = 0; i < B * 2 * D; i++)
        f.R[i] *= 2;
    assert_encoder_gradients();
}

static void rows_past_the_end_of_a_history_are_neither_read_nor_taught(void **state)
{
    float before[B * 2 * D];
    (void)state;
    setup_encoder(ATTENTION_POSITIONS_STANDARD, true, true, lengths);
    encoder_loss(NULL);
    memcpy(before, f.out, sizeof before);
    for (int b = 0; b < B; b++)
        for (int i = lengths[b] * D; i < H * D; i++)
            f.X[b * H * D + i] = NAN;
    encoder_loss(NULL);
    assert_memory_equal(before, f.out, sizeof before);
    attention_encoder_backward(&f.encoder, B, f.R, f.dX);
    for (int b = 0; b < B; b++)
        for (int i = lengths[b] * D; i < H * D; i++)
            assert_true(f.dX[b * H * D + i] == 0);
}

static void an_empty_history_gives_zeros(void **state)
{
    const int none[B] = {0};
    (void)state;
    setup_encoder(ATTENTION_POSITIONS_SEED, true, true, none);
    memset(f.out, 0xff, sizeof f.out);
    attention_encoder_forward(&f.encoder, B, f.valid, f.X, f.out);
    attention_encoder_backward(&f.encoder, B, f.R, f.dX);
    for (int i = 0; i < B * 2 * D; i++)
        assert_true(f.out[i] == 0);
    for (int i = 0; i < B * H * D; i++)
        assert_true(f.dX[i] == 0);
    for (int i = 0; i < MEMORY; i++)
        assert_true(f.grads[i] == 0);
}

static void the_mean_is_of_the_raw_rows(void **state)
{
    (void)state;
    setup_encoder(ATTENTION_POSITIONS_STANDARD, false, false, lengths);
    encoder_loss(NULL);
    for (int b = 0; b < B; b++)
        for (int i = 0; i < D && lengths[b]; i++) {
            double sum = 0;
            for (int h = 0; h < lengths[b]; h++)
                sum += f.X[(b * H + h) * D + i];
            assert_true(fabs(sum / lengths[b] - f.out[b * 2 * D + D + i]) < 1e-6);
        }
}

static void the_newest_row_carries_the_last_position(void **state)
{
    float E[3 * 4];
    (void)state;
    attention_positions_fill(ATTENTION_POSITIONS_STANDARD, 3, 4, E);
    assert_true(fabs(E[0] - sin(2)) < 1e-6 && fabs(E[1] - cos(2)) < 1e-6);
    assert_true(fabs(E[2] - sin(0.02)) < 1e-6 && fabs(E[3] - cos(0.02)) < 1e-6);
    assert_true(E[8] == 0 && E[9] == 1 && E[10] == 0 && E[11] == 1);
    attention_positions_fill(ATTENTION_POSITIONS_SEED, 3, 4, E);
    assert_true(fabs(E[1] - cos(0.02)) < 1e-6 && fabs(E[2] - sin(2e-4)) < 1e-6);
}

static void the_standard_positions_pair_a_sine_and_a_cosine_of_one_frequency(void **state)
{
    // The table this one follows counts single columns and doubles the exponent on top: its waves
    // are longer than 10000 from the middle on, and no sine has its cosine.
    enum { LENGTH = 7, WIDTH = 8 };
    float E[LENGTH * WIDTH], seed[LENGTH * WIDTH];
    (void)state;
    attention_positions_fill(ATTENTION_POSITIONS_STANDARD, LENGTH, WIDTH, E);
    attention_positions_fill(ATTENTION_POSITIONS_SEED, LENGTH, WIDTH, seed);
    for (int h = 0; h < LENGTH; h++)
        for (int i = 0; i < WIDTH; i += 2) {
            const double x = E[h * WIDTH + i], y = E[h * WIDTH + i + 1];
            const double angle = (LENGTH - 1 - h) * pow(10000, -(double)i / WIDTH);
            assert_true(fabs(x * x + y * y - 1) < 1e-6);
            assert_true(fabs(x - sin(angle)) < 1e-6 && fabs(y - cos(angle)) < 1e-6);
        }
    assert_true(fabsf(seed[2] - E[2]) > 0.1f);
}

static void a_history_followed_by_nothing_is_encoded_like_a_short_one(void **state)
{
    // Each history alone, in an encoder that is just as long, gives what it gives among others in
    // one with room to spare.
    (void)state;
    setup_encoder(ATTENTION_POSITIONS_NONE, true, true, lengths);
    encoder_loss(NULL);
    for (int b = 0; b < B; b++) {
        static _Alignas(64) float scratch[MEMORY];
        struct attention layers[LAYERS];
        float out[2 * D] = {0};
        if (lengths[b] == 0)
            continue;
        struct attention_encoder e = {.shape = f.encoder.shape, .layers = layers, .B_max = 1};
        e.shape.length = lengths[b];
        for (int l = 0; l < LAYERS; l++) {
            layers[l] = f.encoder.layers[l];
            layers[l].sequences_max = 1;
            layers[l].length_max = lengths[b];
        }
        attention_encoder_scratch(&e, false, &(struct arena){(char *)scratch, sizeof scratch, 0});
        attention_encoder_forward(&e, 1, NULL, f.X + b * H * D, out);
        for (int i = 0; i < 2 * D; i++)
            assert_true(fabsf(out[i] - f.out[b * 2 * D + i]) < 1e-5f);
    }
}

// How far the rows are from all being the same one, relative to their size.
static double rows_apart(int n, const float *Z)
{
    double apart = 0, size = 0;
    for (int i = 0; i < D; i++) {
        double mean = 0;
        for (int k = 0; k < n; k++)
            mean += Z[k * D + i] / (double)n;
        for (int k = 0; k < n; k++) {
            apart += pow(Z[k * D + i] - mean, 2);
            size += pow(Z[k * D + i], 2);
        }
    }
    return sqrt(apart / size);
}

static void a_deep_stack_keeps_its_events_apart_with_the_residual_only(void **state)
{
    enum { DEEP = 12 };
    static _Alignas(64) float params[1 << 16], grads[1 << 16], scratch[1 << 16];
    (void)state;
    for (int residual = 0; residual < 2; residual++) {
        const struct attention_encoder_shape shape = {
            D, H, HEADS, DEEP, ATTENTION_POSITIONS_NONE, residual, residual};
        struct attention_encoder e;
        struct rng rng = {31, 0};
        float X[H * D], out[2 * D];
        attention_encoder_init(&e, &shape, 1, &(struct arena){(char *)params, sizeof params, 0},
                               &(struct arena){(char *)grads, sizeof grads, 0},
                               &(struct arena){(char *)scratch, sizeof scratch, 0}, &rng);
        rng_fill_uniform(&rng, X, H * D, -1, 1);
        attention_encoder_forward(&e, 1, NULL, X, out);
        // What the last layer reads has been through eleven.
        const double apart = rows_apart(H, e.stack.Z[DEEP - 1]);
        assert_true(residual ? apart > 0.3 : apart < 1e-4);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention_gives_the_numbers_worked_by_hand),
        cmocka_unit_test(sequences_that_fill_many_stretches_are_as_each_alone),
        cmocka_unit_test(layer_backward_agrees_with_finite_differences),
        cmocka_unit_test(the_newest_event_alone_gets_what_it_gets_among_all),
        cmocka_unit_test(encoder_backward_agrees_with_finite_differences),
        cmocka_unit_test(encoder_backward_adds_to_what_is_there),
        cmocka_unit_test(rows_past_the_end_of_a_history_are_neither_read_nor_taught),
        cmocka_unit_test(an_empty_history_gives_zeros),
        cmocka_unit_test(the_mean_is_of_the_raw_rows),
        cmocka_unit_test(the_newest_row_carries_the_last_position),
        cmocka_unit_test(the_standard_positions_pair_a_sine_and_a_cosine_of_one_frequency),
        cmocka_unit_test(a_history_followed_by_nothing_is_encoded_like_a_short_one),
        cmocka_unit_test(a_deep_stack_keeps_its_events_apart_with_the_residual_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
