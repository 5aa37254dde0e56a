// SPDX-License-Identifier: Apache-2.0
#include "model/light_ranker.h"

#include <stdlib.h>
#include <string.h>

#include "model/arena.h"
#include "model/rng.h"
#include "model/tables.h"
#include "tests/support/gradcheck.h"

// Odd and different: a swapped dimension cannot pass.
enum { D = 5, NU = 3, T = 2, SLATES = 4, ROWS = 11, F = 2 * D + NU + 1 };

static const struct light_ranker_shape shape = {D, NU, T};
static const int first[SLATES + 1] = {0, 3, 3, 10, ROWS}; // the second slate is empty
static const uint8_t surface[SLATES] = {0, 1, SURFACES_MAX - 1, 0};
static const int16_t position[ROWS] = {0, 1, -1, 5, 5, 900, 31, -1, 2, 0, 1};

struct fixture {
    struct light_ranker ranker;
    struct light_ranker_batch batch;
    struct light_ranker_options options;
    struct light_ranker_loss loss;
    size_t size;
    float *dense, *ddense;
    float Q[SLATES * D], dQ[SLATES * D], V[ROWS * D], dV[ROWS * D];
    float label[ROWS * T], weight[ROWS * T], teacher[ROWS * T];
    _Alignas(64) char scratch[1 << 14];
};

static struct fixture f;

static int setup(void **state)
{
    struct rng rng = {42, 0};
    (void)state;
    f = (struct fixture){.size = light_ranker_size(&shape)};
    f.dense = calloc(f.size, sizeof *f.dense);
    f.ddense = calloc(f.size, sizeof *f.ddense);
    assert_true(f.dense && f.ddense);
    light_ranker_init(&shape, 7, f.dense);
    // g starts at zero, where a mistake in it would not show.
    rng_fill_uniform(&rng, f.dense, f.size, -0.8f, 0.8f);
    rng_fill_uniform(&rng, f.Q, SLATES * D, -1, 1);
    rng_fill_uniform(&rng, f.V, ROWS * D, -1, 1);
    rng_fill_uniform(&rng, f.weight, ROWS * T, 0.2f, 2);
    rng_fill_uniform(&rng, f.teacher, ROWS * T, 0, 1);
    for (int i = 0; i < ROWS * T; i++)
        f.label[i] = (float)(rng_next(&rng) & 1);
    f.label[3] = f.label[4] = f.label[17] = NAN;
    f.teacher[0] = f.teacher[9] = NAN;
    f.batch = (struct light_ranker_batch){SLATES, first, f.Q, f.V, surface, position, f.teacher};
    // Large, so that the check's tolerance is small beside the gradients.
    f.options = (struct light_ranker_options){30, 20, {1, 2.5f}};
    struct arena scratch = {f.scratch, sizeof f.scratch, 0};
    assert_true(light_ranker_scratch(&shape, SLATES, ROWS) <= sizeof f.scratch);
    light_ranker_open(&f.ranker, &shape, SLATES, ROWS, &scratch);
    assert_true(scratch.used <= light_ranker_scratch(&shape, SLATES, ROWS));
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    free(f.dense);
    free(f.ddense);
    return 0;
}

static double loss(void *arg)
{
    (void)arg;
    light_ranker_forward(&f.ranker, f.dense, &f.batch);
    f.loss = light_ranker_loss(&f.ranker, &f.options, &f.batch, f.label, f.weight);
    return (double)f.options.weight * f.loss.bce + (double)f.options.distil_weight * f.loss.distil;
}

static void backward(float *dQ, float *dV)
{
    loss(NULL);
    light_ranker_backward(&f.ranker, f.dense, &f.batch, f.ddense, dQ, dV);
}

static void assert_gradients(void)
{
    struct dense_parameter p;
    for (int i = 0; light_ranker_parameter(&shape, i, &p); i++)
        assert_gradient(p.name, loss, NULL, f.dense + p.offset, f.ddense + p.offset,
                        (size_t)p.rows * (size_t)p.columns);
    assert_gradient("Q", loss, NULL, f.Q, f.dQ, SLATES * D);
    assert_gradient("V", loss, NULL, f.V, f.dV, ROWS * D);
}

static bool all_zero(const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (x[i] != 0)
            return false;
    return true;
}

static struct dense_parameter parameter(const struct light_ranker_shape *s, const char *name)
{
    struct dense_parameter p;
    for (int i = 0; light_ranker_parameter(s, i, &p); i++)
        if (strcmp(p.name, name) == 0)
            return p;
    fail_msg("no parameter %s", name);
    return p;
}

static void score(enum light_ranker_value form, const float *value_weight, float *value)
{
    const struct light_ranker_parameters p = light_ranker_at(f.dense, &shape);
    for (int u = 0; u < SLATES; u++)
        light_ranker_score(&p, &shape, f.Q + u * D, first[u + 1] - first[u], f.V + first[u] * D,
                           value_weight, form, value + first[u]);
}

// ---- one head of one task on vectors of two, by hand -------------------------------------------

static void forward_gives_the_numbers_worked_by_hand(void **state)
{
    const struct light_ranker_shape small = {2, 1, 1};
    const float q[] = {1, 2}, v[] = {2, -1}, one = 1;
    // R = q + (0, 1) = (1, 3), s = 2 - 3 = -1, pi = 1, t = R, q . v = 0.
    const float W_r[] = {1, 0, 0, 1}, b_r[] = {0, 1};
    const float W_l[] = {1, 2, 3, 4, 5, 6}, phi[] = {2, -1, 1, 3, -1, 0};
    const int16_t place = 1;
    const struct light_ranker_batch batch = {1, (const int[]){0, 1}, q, v, surface, &place, NULL};
    float *dense = calloc(light_ranker_size(&small), sizeof *dense), value;
    struct light_ranker r;
    (void)state;

    assert_non_null(dense);
    memcpy(dense + parameter(&small, "ranker_heads").offset, W_r, sizeof W_r);
    memcpy(dense + parameter(&small, "ranker_heads_bias").offset, b_r, sizeof b_r);
    memcpy(dense + parameter(&small, "ranker_tasks").offset, W_l, sizeof W_l);
    dense[parameter(&small, "ranker_tasks_bias").offset] = 0.5f;
    dense[parameter(&small, "ranker_position").offset + 1] = 0.25f;
    light_ranker_open(&r, &small, 1, 1, &(struct arena){f.scratch, sizeof f.scratch, 0});
    light_ranker_forward(&r, dense, &batch);
    assert_memory_equal(r.Phi, phi, sizeof phi);
    assert_true(r.Z[0] == 10.75f); // 2 - 2 + 3 + 12 - 5 + 0.5, and 0.25 for the position

    const struct light_ranker_parameters p = light_ranker_at(dense, &small);
    light_ranker_score(&p, &small, q, 1, v, &one, LIGHT_RANKER_LOGITS, &value);
    assert_true(value == 10.5f); // which is not served
    free(dense);
}

// ---- gradients -------------------------------------------------------------------------------

static void backward_agrees_with_finite_differences(void **state)
{
    (void)state;
    backward(f.dQ, f.dV);
    assert_gradients();
}

static void backward_adds_to_what_is_there(void **state)
{
    (void)state;
    backward(f.dQ, f.dV);
    backward(f.dQ, f.dV);
    f.options.weight *= 2; // two passes are one of twice the weight
    f.options.distil_weight *= 2;
    assert_gradients();
}

static void towers_that_do_not_learn_change_nothing_of_the_heads_gradient(void **state)
{
    float *alone = calloc(f.size, sizeof *alone), *both = f.ddense;
    (void)state;
    assert_non_null(alone);
    backward(f.dQ, f.dV);
    f.ddense = alone;
    backward(NULL, NULL);
    assert_memory_equal(alone, both, f.size * sizeof *alone);
    f.ddense = both;
    free(alone);
}

// ---- masks and means -------------------------------------------------------------------------

static void the_mean_is_over_the_pairs_that_are_not_masked(void **state)
{
    double sum = 0;
    (void)state;
    loss(NULL);
    assert_int_equal(f.loss.pairs, ROWS * T - 3);
    assert_int_equal(f.loss.distil_pairs, ROWS * T - 2);
    for (int i = 0; i < ROWS * T; i++) {
        const double z = (double)f.ranker.Z[i], y = (double)f.label[i];
        const double positive = (double)f.options.positive_weight[i % T];
        if (!isnan(f.label[i]))
            sum += (double)f.weight[i] * (positive * y * log1p(exp(-z)) + (1 - y) * log1p(exp(z)));
    }
    assert_true(fabs(f.loss.bce - sum / (ROWS * T - 3)) < 1e-5);
}

static void a_step_without_labels_has_no_loss_and_no_gradient(void **state)
{
    (void)state;
    for (int i = 0; i < ROWS * T; i++)
        f.label[i] = f.teacher[i] = NAN;
    backward(f.dQ, f.dV);
    assert_true(f.loss.pairs == 0 && f.loss.bce == 0);
    assert_true(f.loss.distil_pairs == 0 && f.loss.distil == 0);
    assert_true(all_zero(f.ddense, f.size));
    assert_true(all_zero(f.dQ, SLATES * D) && all_zero(f.dV, ROWS * D));
}

static void a_step_of_no_slates_is_no_step(void **state)
{
    (void)state;
    f.batch.slates = 0;
    backward(f.dQ, f.dV);
    assert_true(f.loss.pairs == 0 && all_zero(f.ddense, f.size));
}

static void a_vector_that_is_not_a_number_shows_in_the_loss(void **state)
{
    (void)state;
    f.V[0] = NAN;
    loss(NULL);
    assert_true(isnan(f.loss.bce) && isnan(f.loss.distil));
}

// ---- position --------------------------------------------------------------------------------

static void an_unknown_position_adds_nothing_and_far_ones_share_the_last(void **state)
{
    const size_t g = parameter(&shape, "ranker_position").offset;
    const size_t last = g + ((SURFACES_MAX - 1) * LIGHT_RANKER_POSITIONS + 31) * T;
    float with[ROWS * T];
    (void)state;
    loss(NULL);
    memcpy(with, f.ranker.Z, sizeof with);
    memset(f.dense + g, 0, (f.size - g) * sizeof *f.dense);
    f.dense[last] = 3;
    loss(NULL);
    const float far = f.ranker.Z[5 * T], at_31 = f.ranker.Z[6 * T], other = f.ranker.Z[3 * T];
    f.dense[last] = 0;
    loss(NULL);
    assert_true(fabsf(far - f.ranker.Z[5 * T] - 3) < 1e-5f);   // position 900
    assert_true(fabsf(at_31 - f.ranker.Z[6 * T] - 3) < 1e-5f); // position 31
    assert_true(other == f.ranker.Z[3 * T]);
    for (int t = 0; t < T; t++) { // unknown positions, rows 2 and 7
        assert_true(with[2 * T + t] == f.ranker.Z[2 * T + t]);
        assert_true(with[7 * T + t] == f.ranker.Z[7 * T + t]);
    }
}

// Every item is as good as any other, and the first place is seen more often. The head must put
// that down to the place.
static void position_takes_what_position_explains(void **state)
{
    const float chance[] = {0.8f, 0.5f, 0.2f}, ones[T] = {1, 0};
    int16_t places[ROWS];
    float value[ROWS], low = INFINITY, high = -INFINITY;
    struct rng rng = {5, 0};
    (void)state;
    light_ranker_init(&shape, 7, f.dense);
    f.options = (struct light_ranker_options){1, 0, {1, 1}};
    f.batch.teacher = NULL;
    f.batch.position = places;
    for (int step = 0; step < 4000; step++) {
        rng_fill_uniform(&rng, f.V, ROWS * D, -1, 1);
        for (int i = 0; i < ROWS; i++) {
            // The ranker had put what looks good on top.
            places[i] = f.V[i * D] > 0.33f ? 0 : f.V[i * D] > -0.33f ? 1 : 2;
            if (rng_below(&rng, 4) == 0)
                places[i] = (int16_t)rng_below(&rng, 3);
            for (int t = 0; t < T; t++) {
                f.label[i * T + t] = rng_float(&rng) < chance[places[i]];
                f.weight[i * T + t] = 1;
            }
        }
        memset(f.ddense, 0, f.size * sizeof *f.ddense);
        backward(NULL, NULL);
        for (size_t i = 0; i < f.size; i++)
            f.dense[i] -= 0.5f / sqrtf(1 + (float)step / 100) * f.ddense[i];
    }
    score(LIGHT_RANKER_LOGITS, ones, value);
    for (int i = 0; i < ROWS; i++) {
        low = fminf(low, value[i]);
        high = fmaxf(high, value[i]);
    }
    const float *g = f.dense + parameter(&shape, "ranker_position").offset;
    assert_true(fabsf(g[0] - g[2 * T] - 2.77f) < 0.5f); // logit 0.8 - logit 0.2
    assert_true(high - low < 0.8f);
}

// ---- the faults of the published program -------------------------------------------------------

// Its training step cannot be reached: the history is not handed on, the width that serving reads
// is not set, features are joined along an axis that they have not, and serving could not find out
// that it differs.
static void fault_14_training_and_serving_compute_the_same_logits(void **state)
{
    float value[ROWS];
    (void)state;
    int16_t unknown[ROWS];
    for (int i = 0; i < ROWS; i++)
        unknown[i] = -1;
    f.batch.position = unknown;
    loss(NULL);
    for (int t = 0; t < T; t++) {
        float only[T] = {0};
        only[t] = 1;
        score(LIGHT_RANKER_LOGITS, only, value);
        for (int i = 0; i < ROWS; i++)
            assert_true(fabsf(value[i] - f.ranker.Z[i * T + t]) < 1e-5f);
    }
}

// It makes a new tensor of the value weights with every call.
static void fault_14_value_weights_of_any_sign_count_from_the_next_call(void **state)
{
    const float weights[] = {1, 0.5f}, other[] = {-1, -0.5f};
    float value[ROWS], opposite[ROWS];
    (void)state;
    score(LIGHT_RANKER_PROBABILITIES, weights, value);
    score(LIGHT_RANKER_PROBABILITIES, other, opposite);
    for (int i = 0; i < ROWS; i++)
        assert_true(value[i] == -opposite[i] && value[i] > 0 && value[i] < 1.5f);
}

// z = (10, -3) and (2, 2), both tasks worth 1: 7 beats 4 as logits. What is to be expected of them
// is 1.05 and 1.76.
static void fault_16_value_is_of_probabilities_and_not_of_logits(void **state)
{
    const struct light_ranker_shape small = {1, 1, 2};
    const float q = 1, V[] = {1, -1}, ones[] = {1, 1};
    float *dense = calloc(light_ranker_size(&small), sizeof *dense), value[2];
    (void)state;
    assert_non_null(dense);
    const struct light_ranker_parameters p = light_ranker_at(dense, &small);
    float *W_l = dense + (p.W_l - dense), *b_l = dense + (p.b_l - dense);
    W_l[0] = 4, b_l[0] = 6;
    W_l[4] = -2.5f, b_l[1] = -0.5f;
    light_ranker_score(&p, &small, &q, 2, V, ones, LIGHT_RANKER_LOGITS, value);
    assert_true(value[0] == 7 && value[1] == 4);
    light_ranker_score(&p, &small, &q, 2, V, ones, LIGHT_RANKER_PROBABILITIES, value);
    assert_true(fabsf(value[0] - 1.0473805f) < 1e-6f && fabsf(value[1] - 1.7615942f) < 1e-6f);
    // A head that learned fake negatives: p = b / (1 - b) = e^z, held below 1.
    light_ranker_score(&p, &small, &q, 1, V, ones, LIGHT_RANKER_CORRECTED, value);
    assert_true(fabsf(value[0] - 0.999996f - 0.0497871f) < 1e-6f);
    free(dense);
}

// Its distillation is an empty method.
static void fault_17_the_teacher_moves_the_auxiliary_head_and_both_towers(void **state)
{
    const struct dense_parameter W_a = parameter(&shape, "ranker_auxiliary");
    const struct dense_parameter W_l = parameter(&shape, "ranker_tasks");
    (void)state;
    for (int i = 0; i < ROWS * T; i++)
        f.label[i] = NAN; // the teacher alone
    backward(f.dQ, f.dV);
    assert_false(all_zero(f.ddense + W_a.offset, (size_t)T * F));
    assert_false(all_zero(f.dQ, SLATES * D) || all_zero(f.dV, ROWS * D));
    assert_true(all_zero(f.ddense + W_l.offset, (size_t)T * F));

    const double before = f.loss.distil;
    for (int step = 0; step < 200; step++) {
        for (size_t i = 0; i < f.size; i++)
            f.dense[i] -= 0.01f * f.ddense[i];
        memset(f.ddense, 0, f.size * sizeof *f.ddense);
        backward(f.dQ, f.dV);
    }
    assert_true(f.loss.distil < 0.9 * before);
}

static void fault_17_what_is_served_does_not_depend_on_the_auxiliary_head(void **state)
{
    const struct dense_parameter W_a = parameter(&shape, "ranker_auxiliary");
    const float weights[] = {1, 0.5f};
    float before[ROWS], after[ROWS];
    (void)state;
    score(LIGHT_RANKER_PROBABILITIES, weights, before);
    for (size_t i = W_a.offset; i < f.size; i++)
        f.dense[i] = NAN; // the auxiliary head, and g behind it
    score(LIGHT_RANKER_PROBABILITIES, weights, after);
    assert_memory_equal(before, after, sizeof before);
}

static void without_a_teacher_the_auxiliary_head_neither_learns_nor_counts(void **state)
{
    const struct dense_parameter W_a = parameter(&shape, "ranker_auxiliary");
    (void)state;
    f.batch.teacher = NULL;
    for (size_t i = 0; i < (size_t)T * F; i++)
        f.dense[W_a.offset + i] = NAN;
    backward(f.dQ, f.dV);
    assert_true(isfinite(f.loss.bce) && f.loss.distil_pairs == 0);
    assert_true(all_zero(f.ddense + W_a.offset, (size_t)T * F + T));
    assert_true(isfinite(f.dQ[0]) && isfinite(f.dV[0]));
}

// ---- parameters ------------------------------------------------------------------------------

static void the_named_parameters_are_the_whole_array(void **state)
{
    struct dense_parameter p;
    size_t end = 0;
    (void)state;
    for (int i = 0; light_ranker_parameter(&shape, i, &p); i++) {
        assert_int_equal(p.offset, end);
        end += (size_t)p.rows * (size_t)p.columns;
    }
    assert_int_equal(end, f.size);
}

static void the_start_is_a_function_of_the_seed(void **state)
{
    float *again = malloc(f.size * sizeof *again);
    (void)state;
    assert_non_null(again);
    light_ranker_init(&shape, 7, f.dense);
    light_ranker_init(&shape, 7, again);
    assert_memory_equal(f.dense, again, f.size * sizeof *again);
    light_ranker_init(&shape, 8, again);
    assert_memory_not_equal(f.dense, again, f.size * sizeof *again);
    free(again);
}

// More items than one pass of the scorer, which must not show.
static void an_items_value_does_not_depend_on_those_beside_it(void **state)
{
    enum { MANY = 37 };
    float V[MANY * D], value[MANY], alone;
    const float weights[] = {1, -0.5f};
    struct rng rng = {9, 0};
    (void)state;
    rng_fill_uniform(&rng, V, MANY * D, -1, 1);
    const struct light_ranker_parameters p = light_ranker_at(f.dense, &shape);
    light_ranker_score(&p, &shape, f.Q, MANY, V, weights, LIGHT_RANKER_PROBABILITIES, value);
    for (int i = 0; i < MANY; i++) {
        light_ranker_score(&p, &shape, f.Q, 1, V + i * D, weights, LIGHT_RANKER_PROBABILITIES,
                           &alone);
        assert_true(alone == value[i]);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(forward_gives_the_numbers_worked_by_hand),
        TEST(backward_agrees_with_finite_differences),
        TEST(backward_adds_to_what_is_there),
        TEST(towers_that_do_not_learn_change_nothing_of_the_heads_gradient),
        TEST(the_mean_is_over_the_pairs_that_are_not_masked),
        TEST(a_step_without_labels_has_no_loss_and_no_gradient),
        TEST(a_step_of_no_slates_is_no_step),
        TEST(a_vector_that_is_not_a_number_shows_in_the_loss),
        TEST(an_unknown_position_adds_nothing_and_far_ones_share_the_last),
        TEST(position_takes_what_position_explains),
        TEST(fault_14_training_and_serving_compute_the_same_logits),
        TEST(fault_14_value_weights_of_any_sign_count_from_the_next_call),
        TEST(fault_16_value_is_of_probabilities_and_not_of_logits),
        TEST(fault_17_the_teacher_moves_the_auxiliary_head_and_both_towers),
        TEST(fault_17_what_is_served_does_not_depend_on_the_auxiliary_head),
        TEST(without_a_teacher_the_auxiliary_head_neither_learns_nor_counts),
        TEST(the_named_parameters_are_the_whole_array),
        TEST(the_start_is_a_function_of_the_seed),
        TEST(an_items_value_does_not_depend_on_those_beside_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
