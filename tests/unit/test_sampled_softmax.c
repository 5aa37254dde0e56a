// SPDX-License-Identifier: Apache-2.0
#include "model/sampled_softmax.h"

#include <string.h>

#include "model/kernels.h"
#include "model/marks.h"
#include "model/retrieval_loss.h"
#include "model/rng.h"
#include "tests/support/gradcheck.h"

enum { N = 4, C = 70, WORDS = 2 }; // more than a word of columns, and a tail in every kernel

static const enum sampled_form forms[] = {SAMPLED_LOGQ, SAMPLED_MNS, SAMPLED_COUNTED,
                                          SAMPLED_REFINED, SAMPLED_NONE};
enum { FORMS = sizeof forms / sizeof *forms };

static struct {
    struct sampled_softmax s;
    float L[C], log_q[C], row[C], dcolumn[C];
    uint64_t removed[WORDS];
    float weight;
    int target;
} f;

static void fill(uint64_t seed, float spread)
{
    struct rng rng = {seed, 0};
    float q[C], sum = 0;
    rng_fill_uniform(&rng, f.L, C, -spread, spread);
    rng_fill_uniform(&rng, q, C, 0.1f, 1);
    for (int j = 0; j < C; j++)
        sum += q[j];
    for (int j = 0; j < C; j++)
        f.log_q[j] = logf(q[j] / sum);
    memset(f.removed, 0, sizeof f.removed);
    f.weight = 1;
    f.target = 5;
}

static void put(uint64_t *set, int j)
{
    set[j / 64] |= UINT64_C(1) << (j % 64);
}

static double run(void)
{
    memcpy(f.row, f.L, sizeof f.row);
    memset(f.dcolumn, 0, sizeof f.dcolumn);
    return sampled_softmax_row(&f.s, C, f.log_q, f.target, f.removed, f.weight, f.row, f.dcolumn);
}

// The refined form holds its weight constant, so that is what is differentiated.
static float held;

static double loss_of_L(void *arg)
{
    (void)arg;
    const double loss = run();
    if (f.s.form != SAMPLED_REFINED || f.weight < 0)
        return loss;
    return loss * (double)(held / -f.row[f.target]) * (double)f.weight;
}

static void the_loss_is_what_was_worked_by_hand(void **state)
{
    // s = (0, log 2, log 3), q = (1/2, 1/4, 1/4), target 0.
    // exp(c) = (2, 8, 12): logq log(22/2); mns log(21); counted log((1 + 10) / 1)
    // refined: Q' = 1/2 each: lse = log(4 + 6), P = 1 / (1 + 5): 5/6 log 10
    // Of presence: counted as mns, refined 20/21 log 20.
    const struct {
        struct sampled_softmax s;
        float weight;
        double loss, gradient; // of the target
    } cases[] = {
        {{SAMPLED_LOGQ, SAMPLED_DRAW}, 1, 2.397895272798371, -10.0 / 11},
        {{SAMPLED_LOGQ, SAMPLED_DRAW}, 3, 3 * 2.397895272798371, -30.0 / 11},
        {{SAMPLED_LOGQ, SAMPLED_DRAW}, -1, 0.09531017980432493, 1.0 / 11},
        {{SAMPLED_NONE, SAMPLED_DRAW}, 1, 2.397895272798371, -10.0 / 11},
        {{SAMPLED_MNS, SAMPLED_DRAW}, 1, 3.044522437723423, -20.0 / 21},
        {{SAMPLED_MNS, SAMPLED_PRESENCE}, 1, 3.044522437723423, -20.0 / 21},
        {{SAMPLED_COUNTED, SAMPLED_DRAW}, 1, 2.397895272798371, -10.0 / 11},
        {{SAMPLED_COUNTED, SAMPLED_PRESENCE}, 1, 3.044522437723423, -20.0 / 21},
        {{SAMPLED_REFINED, SAMPLED_DRAW}, 1, 5.0 / 6 * 2.302585092994046, -5.0 / 6},
        {{SAMPLED_REFINED, SAMPLED_PRESENCE}, 1, 20.0 / 21 * 2.995732273553991, -20.0 / 21},
        {{SAMPLED_REFINED, SAMPLED_DRAW}, -2, 2 * 0.1823215567939546, 2.0 / 6},
    };
    const float log_q[] = {logf(0.5f), logf(0.25f), logf(0.25f)};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        float row[] = {logf(2), logf(8), logf(12)}, dcolumn[3] = {10, 20, 30};
        const double loss =
            sampled_softmax_row(&cases[i].s, 3, log_q, 0, NULL, cases[i].weight, row, dcolumn);
        if (fabs(loss - cases[i].loss) > 1e-6 || fabs((double)row[0] - cases[i].gradient) > 1e-6 ||
            fabs((double)row[1] * -2.5 - cases[i].gradient) > 1e-6 ||
            fabs((double)row[2] * -5 / 3 - cases[i].gradient) > 1e-6)
            fail_msg("case %zu: loss %g, gradient %g %g %g", i, loss, (double)row[0],
                     (double)row[1], (double)row[2]);
        for (int j = 0; j < 3; j++)
            assert_true(fabsf(dcolumn[j] - 10 * (float)(j + 1) - row[j]) < 1e-5f);
    }
}

static void the_gradient_is_that_of_finite_differences(void **state)
{
    static const float weights[] = {1, 0.3f, 2.5f, -1, -0.4f};
    (void)state;
    for (int form = 0; form < FORMS; form++)
        for (int chance = 0; chance < 2; chance++)
            for (size_t w = 0; w < sizeof weights / sizeof *weights; w++) {
                float gradient[C];
                fill(7 + (uint64_t)form, 2);
                f.s = (struct sampled_softmax){forms[form], (enum sampled_chance)chance};
                f.weight = weights[w];
                f.L[f.target] = 3; // P is neither 0 nor 1
                put(f.removed, 0), put(f.removed, 64), put(f.removed, 69);
                run();
                memcpy(gradient, f.row, sizeof gradient);
                held = -f.row[f.target] / f.weight;
                assert_gradient("L", loss_of_L, NULL, f.L, gradient, C);
            }
}

// softmax_backward as it was before the forms: the same bits, in the rows, the columns and the
// loss.
static void the_plain_form_is_the_softmax_it_replaces_bit_by_bit(void **state)
{
    float reference[C], sums[C] = {0}, sums_now[C] = {0};
    double loss = 0, loss_now = 0;
    (void)state;
    for (uint64_t i = 0; i < 50; i++) {
        fill(i, 20);
        f.target = (int)i;
        memcpy(reference, f.L, sizeof reference);
        float *target = &reference[i], *dtarget = &sums[i];
        const float shift = kernels->max(C, reference), score = *target, before = *dtarget;
        const float sum = kernels->exp_shifted(C, shift, reference);
        loss += log((double)sum) + (double)shift - (double)score;
        kernels->scale_add(C, 1 / sum, reference, sums);
        *target -= 1;
        *dtarget = before + *target;

        loss_now += sampled_softmax_row(&(struct sampled_softmax){SAMPLED_LOGQ, SAMPLED_PRESENCE},
                                        C, NULL, f.target, NULL, 1, f.L, sums_now);
        assert_memory_equal(f.L, reference, sizeof reference);
    }
    assert_memory_equal(sums_now, sums, sizeof sums);
    assert_true(loss_now == loss);
}

static void a_removed_column_has_gradient_0_and_is_as_if_it_were_not_there(void **state)
{
    (void)state;
    for (int form = 0; form < FORMS; form++)
        for (int sign = -1; sign <= 1; sign += 2) {
            fill(3, 4);
            f.s = (struct sampled_softmax){forms[form], SAMPLED_DRAW};
            f.weight = (float)sign;
            for (int j = 60; j < C; j++)
                put(f.removed, j), f.L[j] = j % 2 ? 1e4f : -1e4f;
            const double loss = run();
            float shorter[C], dcolumn[C] = {0};
            memcpy(shorter, f.L, sizeof shorter);
            const double expected =
                sampled_softmax_row(&f.s, 60, f.log_q, f.target, NULL, f.weight, shorter, dcolumn);
            assert_true(fabs(loss - expected) < 1e-5);
            for (int j = 0; j < C; j++)
                assert_true(j < 60 ? fabsf(f.row[j] - shorter[j]) < 1e-6f
                                   : f.row[j] == 0 && f.dcolumn[j] == 0);
        }
}

static void rows_that_teach_nothing_have_no_loss_and_gradient_0(void **state)
{
    const float zero[C] = {0};
    (void)state;
    for (int form = 0; form < FORMS; form++)
        for (int sign = -1; sign <= 1; sign++)
            for (int why = 0; why < 3; why++) {
                fill(4, 4);
                f.s = (struct sampled_softmax){forms[form], SAMPLED_DRAW};
                f.weight = why == 0 ? 0 : (float)sign;
                if (why == 0)
                    f.L[9] = NAN; // nor does it spread what is wrong with it
                if (why == 1)
                    put(f.removed, f.target);
                for (int j = 0; j < C && why == 2; j++)
                    if (j != f.target)
                        put(f.removed, j);
                assert_true(run() == 0);
                assert_memory_equal(f.row, zero, sizeof zero);
                assert_memory_equal(f.dcolumn, zero, sizeof zero);
            }
}

// A caller may have made columns -inf instead of removing them.
static void a_target_among_columns_that_are_gone_teaches_nothing(void **state)
{
    (void)state;
    for (int form = 0; form < FORMS; form++)
        for (int sign = -1; sign <= 1; sign += 2) {
            fill(7, 4);
            f.s = (struct sampled_softmax){forms[form], SAMPLED_PRESENCE};
            f.weight = (float)sign;
            for (int j = 0; j < C; j++)
                if (j != f.target)
                    f.L[j] = -INFINITY;
            assert_true(run() == 0);
            for (int j = 0; j < C; j++)
                assert_true(f.row[j] == 0 && f.dcolumn[j] == 0);
        }
}

static void a_batch_twice_is_twice_the_sum(void **state)
{
    (void)state;
    for (int form = 0; form < FORMS; form++) {
        fill(5, 3);
        f.s = (struct sampled_softmax){forms[form], SAMPLED_DRAW};
        const double once = run();
        float dcolumn[C], row[C];
        memcpy(dcolumn, f.dcolumn, sizeof dcolumn);
        memcpy(row, f.L, sizeof row);
        const double twice =
            once + sampled_softmax_row(&f.s, C, f.log_q, f.target, NULL, 1, row, f.dcolumn);
        assert_true(twice == 2 * once);
        for (int j = 0; j < C; j++)
            assert_true(fabsf(f.dcolumn[j] - 2 * dcolumn[j]) < 1e-6f);
    }
}

static void a_row_that_occurs_twice_is_one_of_twice_the_weight(void **state)
{
    (void)state;
    for (int form = 0; form < FORMS; form++)
        for (int sign = -1; sign <= 1; sign += 2) {
            fill(6, 3);
            f.s = (struct sampled_softmax){forms[form], SAMPLED_DRAW};
            f.weight = (float)sign;
            const double once = run();
            float row[C];
            memcpy(row, f.row, sizeof row);
            f.weight = 2 * (float)sign;
            assert_true(fabs(run() - 2 * once) < 1e-6);
            for (int j = 0; j < C; j++)
                assert_true(fabsf(f.row[j] - 2 * row[j]) < 1e-6f);
        }
}

static void huge_logits_stay_finite_and_gradients_bounded(void **state)
{
    (void)state;
    for (int form = 0; form < FORMS; form++)
        for (int sign = -1; sign <= 1; sign += 2)
            for (int at = -1; at <= 1; at += 2) {
                fill(8, 1e4f);
                f.s = (struct sampled_softmax){forms[form], SAMPLED_DRAW};
                f.weight = (float)sign;
                f.L[f.target] = (float)at * 1e4f;
                assert_true(isfinite(run()));
                double sum = 0, size = 0;
                for (int j = 0; j < C; j++)
                    sum += (double)f.row[j], size += fabs((double)f.row[j]);
                assert_true(fabs(sum) < 1e-5 && size <= 2 + 1e-5); // NaN fails
            }
}

static void a_logit_that_is_not_finite_is_seen_in_the_loss(void **state)
{
    static const float wrong[] = {NAN, INFINITY};
    (void)state;
    for (int form = 0; form < FORMS; form++)
        for (int sign = -1; sign <= 1; sign += 2)
            for (int target = 0; target < 2; target++)
                for (int w = 0; w < 2; w++) {
                    fill(9, 2);
                    f.s = (struct sampled_softmax){forms[form], SAMPLED_DRAW};
                    f.weight = (float)sign;
                    f.L[target ? f.target : 11] = wrong[w];
                    assert_false(isfinite(run()));
                }
}

static void the_refined_weight_is_between_0_and_1(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 200; seed++) {
        fill(seed, seed < 100 ? 5 : 50);
        f.s = (struct sampled_softmax){SAMPLED_REFINED, (enum sampled_chance)(seed % 2)};
        run();
        assert_true(-f.row[f.target] >= 0 && -f.row[f.target] <= 1);
    }
    // One item that is all there ever was: its q is 1 and nothing is infinite.
    fill(1, 1);
    f.s.chance = SAMPLED_DRAW;
    f.log_q[f.target] = 0;
    assert_true(isfinite(run()));
}

// What correcting is for: a batch seldom has a rare item as a negative, so each time counts for
// more.
static void correction_pushes_a_rare_negative_harder_and_a_popular_one_less(void **state)
{
    (void)state;
    for (int form = 0; form < FORMS; form++) {
        float push[2][2]; // corrected, of the popular item
        for (int corrected = 0; corrected < 2; corrected++) {
            fill(10, 1);
            f.s = (struct sampled_softmax){forms[form], SAMPLED_DRAW};
            for (int j = 0; j < C; j++) {
                const float q = j == 20 ? 0.001f : j == 21 ? 0.5f : 0.499f / (C - 2);
                f.log_q[j] = logf(corrected ? q : 1.0f / C);
                f.L[j] = 1 - f.log_q[j];
            }
            run();
            push[corrected][0] = f.row[20];
            push[corrected][1] = f.row[21];
        }
        assert_true(push[0][0] == push[0][1]);
        assert_true(push[1][0] > 5 * push[0][0] && push[1][1] < push[0][1] / 5);
    }
}

// Columns drawn by popularity: on average the refined form has the gradient that the softmax over
// the whole catalogue has, item by item, and the form without correction is far from it.
static void averaged_over_samples_the_gradient_is_that_of_the_whole_catalogue(void **state)
{
    enum { ITEMS = 20, REPEATS = 3000, TARGET = 2 };
    struct rng rng = {77, 0};
    float s[ITEMS], q[ITEMS], mean[2][ITEMS] = {{0}}, dcolumn[C] = {0};
    double exact[ITEMS], z = 0, sum = 0, off[2] = {0};
    (void)state;
    rng_fill_uniform(&rng, s, ITEMS, -1, 1);
    for (int i = 0; i < ITEMS; i++)
        sum += 1.0 / (i + 1);
    for (int i = 0; i < ITEMS; i++) {
        q[i] = (float)(1.0 / (i + 1) / sum); // Zipf
        z += exp((double)s[i]);
    }
    for (int i = 0; i < ITEMS; i++)
        exact[i] = exp((double)s[i]) / z - (i == TARGET);
    for (int repeat = 0; repeat < REPEATS; repeat++) {
        int item[C] = {TARGET};
        for (int j = 1; j < C; j++) {
            do {
                float u = rng_float(&rng);
                for (item[j] = 0; item[j] < ITEMS - 1 && u >= q[item[j]]; item[j]++)
                    u -= q[item[j]];
            } while (item[j] == TARGET);
        }
        for (int corrected = 0; corrected < 2; corrected++) {
            float row[C], log_q[C];
            for (int j = 0; j < C; j++) {
                log_q[j] = logf(corrected ? q[item[j]] : 1.0f / ITEMS);
                row[j] = s[item[j]] - log_q[j];
            }
            const struct sampled_softmax form = {SAMPLED_REFINED, SAMPLED_DRAW};
            sampled_softmax_row(&form, C, log_q, 0, NULL, 1, row, dcolumn);
            for (int j = 0; j < C; j++)
                mean[corrected][item[j]] += row[j] / REPEATS;
        }
    }
    for (int corrected = 0; corrected < 2; corrected++)
        for (int i = 0; i < ITEMS; i++)
            off[corrected] += fabs((double)mean[corrected][i] - exact[i]);
    if (!(off[1] < 0.03 && off[0] > 10 * off[1]))
        fail_msg("off by %g, without correction by %g", off[1], off[0]);
}

static void rates_and_presence_are_what_was_worked_by_hand(void **state)
{
    (void)state;
    assert_true(fabs(sampled_rate(3, 0.3, 2, 50) / 5 - 0.188) < 1e-12);
    assert_true(fabsf(sampled_log_presence(0.6931471805599453) - logf(0.5f)) < 1e-7f);
    // Rarer than a float's digits: 1 - exp(-x) would be 0.
    assert_true(fabsf(sampled_log_presence(1e-12) - logf(1e-12f)) < 1e-5f);
    assert_true(sampled_log_presence(1e3) == 0);
}

static bool get(const uint64_t *set, int row, int j)
{
    return set[row * WORDS + j / 64] >> (j % 64) & 1;
}

static void what_a_user_likes_is_no_negative_of_the_same_user(void **state)
{
    // Rows 0, 2 and 3 are of one user, with targets 4, 66 and 4; row 1 is of another.
    const uint32_t user[N] = {1, 0, 1, 1}, target[N] = {4, 66, 66, 4};
    uint32_t last[N], before[N];
    uint64_t removed[N * WORDS] = {0};
    int bits = 0;
    (void)state;
    assert_int_equal(sampled_softmax_remove_known(N, C, user, target, last, before, removed), 3);
    assert_true(get(removed, 0, 66) && get(removed, 2, 4) && get(removed, 3, 66));
    for (int w = 0; w < N * WORDS; w++)
        bits += __builtin_popcountll(removed[w]);
    assert_int_equal(bits, 3); // no target, and nothing of the other user
    // Again: they are removed already.
    assert_int_equal(sampled_softmax_remove_known(N, C, user, target, last, before, removed), 0);
}

static int with_kernels(void **state)
{
    (void)state;
    return kernels_init(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_loss_is_what_was_worked_by_hand),
        cmocka_unit_test(the_gradient_is_that_of_finite_differences),
        cmocka_unit_test(the_plain_form_is_the_softmax_it_replaces_bit_by_bit),
        cmocka_unit_test(a_removed_column_has_gradient_0_and_is_as_if_it_were_not_there),
        cmocka_unit_test(rows_that_teach_nothing_have_no_loss_and_gradient_0),
        cmocka_unit_test(a_target_among_columns_that_are_gone_teaches_nothing),
        cmocka_unit_test(a_batch_twice_is_twice_the_sum),
        cmocka_unit_test(a_row_that_occurs_twice_is_one_of_twice_the_weight),
        cmocka_unit_test(huge_logits_stay_finite_and_gradients_bounded),
        cmocka_unit_test(a_logit_that_is_not_finite_is_seen_in_the_loss),
        cmocka_unit_test(the_refined_weight_is_between_0_and_1),
        cmocka_unit_test(correction_pushes_a_rare_negative_harder_and_a_popular_one_less),
        cmocka_unit_test(averaged_over_samples_the_gradient_is_that_of_the_whole_catalogue),
        cmocka_unit_test(rates_and_presence_are_what_was_worked_by_hand),
        cmocka_unit_test(what_a_user_likes_is_no_negative_of_the_same_user),
    };
    return cmocka_run_group_tests(tests, with_kernels, NULL);
}
