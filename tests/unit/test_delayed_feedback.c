// SPDX-License-Identifier: Apache-2.0
#include "model/delayed_feedback.h"

#include <string.h>

#include "model/logistic.h"
#include "model/rng.h"
#include "tests/support/gradcheck.h"

enum { T = 3 };

static const float NO_LOGITS[SLATE_ITEMS_MAX * T];

static struct slate slate_of(enum slate_kind kind, int n, const uint32_t *labels)
{
    struct slate s = {.kind = (uint8_t)kind, .n_items = (uint16_t)n};
    for (int i = 0; i < n; i++)
        s.items[i] = (struct slate_item){.shown = 1, .labels = labels[i]};
    return s;
}

// Late conversions of task 0 only, so many that the first guess does not count.
static struct late_arrivals arrivals_of(double early, double late)
{
    return (struct late_arrivals){.early = {early * 1e9}, .late = {late * 1e9}};
}

// ---- the stream as a whole ---------------------------------------------------------------------

// What is to be expected of the gradient over the whole stream of one pair that converts with
// probability p, and then late with probability late, when the head says z.
static double gradient_expected(enum delayed_feedback_mode mode, double p, double late, float z)
{
    const struct late_arrivals a = arrivals_of(1 - late, late);
    const struct {
        enum slate_kind kind;
        uint32_t labels;
        double chance;
    } parts[] = {
        {SLATE_EARLY, 1, p * (1 - late)},   {SLATE_EARLY, 0, 1 - p * (1 - late)},
        {SLATE_LATE_POSITIVE, 1, p * late}, {SLATE_CLOSED, 1, p},
        {SLATE_CLOSED, 0, 1 - p},
    };
    double sum = 0;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        const struct slate s = slate_of(parts[i].kind, 1, &parts[i].labels);
        float label, weight, dz;
        delayed_feedback_slate(mode, &a, 1, &s, &z, &label, &weight);
        logistic_loss(1, 1, &z, &label, &weight, NULL, NULL, &dz);
        sum += parts[i].chance * (double)dz;
    }
    return sum;
}

static float logit(double p)
{
    return (float)log(p / (1 - p));
}

static void every_mode_comes_to_rest_at_the_true_probability(void **state)
{
    const double probabilities[] = {0.02, 0.3, 0.6}, shares[] = {0, 0.4, 1};
    (void)state;
    for (size_t i = 0; i < 9; i++) {
        const double p = probabilities[i % 3], late = shares[i / 3];
        const float right = logit(p);
        assert_true(fabs(gradient_expected(DELAYED_FEEDBACK_NONE, p, late, right)) < 1e-6);
        assert_true(fabs(gradient_expected(DELAYED_FEEDBACK_FNW, p, late, right)) < 1e-6);
        assert_true(fabs(gradient_expected(DELAYED_FEEDBACK_ES_DFM, p, late, right)) < 1e-6);
        // The corrected one learns b, and b / (1 - b) is what is served.
        const float b = (float)(p / (1 + p)), biased = logit((double)b);
        float served;
        assert_true(fabs(gradient_expected(DELAYED_FEEDBACK_FNC, p, late, biased)) < 1e-6);
        delayed_feedback_fnc(1, &b, &served);
        assert_true(fabs((double)served - p) < 1e-6);
    }
}

static void every_mode_pulls_towards_it_from_both_sides(void **state)
{
    (void)state;
    for (int mode = DELAYED_FEEDBACK_NONE; mode <= DELAYED_FEEDBACK_ES_DFM; mode++) {
        assert_true(gradient_expected(mode, 0.3, 0.4, logit(0.1)) < 0);
        assert_true(gradient_expected(mode, 0.3, 0.4, logit(0.6)) > 0);
    }
}

// ---- single slates -----------------------------------------------------------------------------

static void weights_are_what_was_worked_by_hand(void **state)
{
    // p = 1/2 everywhere; of conversions of task 0 a half comes late.
    const uint32_t labels[] = {1, 0};
    const struct late_arrivals a = {0};
    const struct slate early = slate_of(SLATE_EARLY, 2, labels);
    float label[2], weight[2];
    (void)state;
    delayed_feedback_slate(DELAYED_FEEDBACK_FNW, &a, 1, &early, NO_LOGITS, label, weight);
    assert_true(weight[1] == 0.75f && label[1] == 0);            // (1 - p)(1 + p)
    assert_true(weight[0] == 2.25f && label[0] == 1.5f / 2.25f); // and 1 + p beside it
    delayed_feedback_slate(DELAYED_FEEDBACK_FNC, &a, 1, &early, NO_LOGITS, label, weight);
    assert_true(weight[1] == 1 && label[1] == 0 && weight[0] == 2 && label[0] == 0.5f);
    delayed_feedback_slate(DELAYED_FEEDBACK_ES_DFM, &a, 1, &early, NO_LOGITS, label, weight);
    assert_true(weight[0] == 1.25f && label[0] == 1); // p_dp = 1/4
    assert_true(fabsf(weight[1] - 1.25f * 2 / 3) < 1e-6f && label[1] == 0);
}

static void each_pair_is_learned_from_the_slates_of_its_mode_alone(void **state)
{
    const uint32_t labels[] = {5, 0};
    const struct late_arrivals a = {0};
    float label[2 * T], weight[2 * T];
    (void)state;
    for (int mode = DELAYED_FEEDBACK_NONE; mode <= DELAYED_FEEDBACK_ES_DFM; mode++) {
        for (int kind = SLATE_CLOSED; kind <= SLATE_LATE_POSITIVE; kind++) {
            const struct slate s = slate_of(kind, kind == SLATE_LATE_POSITIVE ? 1 : 2, labels);
            delayed_feedback_slate(mode, &a, T, &s, NO_LOGITS, label, weight);
            for (int i = 0; i < s.n_items * T; i++) {
                const bool waits = mode == DELAYED_FEEDBACK_NONE, final = kind == SLATE_CLOSED;
                // A late positive speaks of its own task: bits 0 and 2 here.
                const bool spoken = kind != SLATE_LATE_POSITIVE || i != 1;
                assert_int_equal(!isnan(label[i]), waits == final && spoken);
                assert_true(isnan(label[i]) ? weight[i] == 0 : weight[i] > 0);
            }
        }
    }
}

static void an_item_that_was_not_shown_teaches_nothing(void **state)
{
    const uint32_t labels[] = {1, 1};
    const struct late_arrivals a = {0};
    struct slate s = slate_of(SLATE_CLOSED, 2, labels);
    float label[2], weight[2];
    (void)state;
    s.items[1].shown = 0;
    delayed_feedback_slate(DELAYED_FEEDBACK_NONE, &a, 1, &s, NO_LOGITS, label, weight);
    assert_true(label[0] == 1 && weight[0] == 1 && isnan(label[1]));
}

static void labels_that_have_been_seen_are_not_learned_again(void **state)
{
    const uint32_t labels[] = {1};
    struct late_arrivals a = {0};
    struct slate s = slate_of(SLATE_CLOSED, 1, labels);
    float label, weight;
    (void)state;
    s.repeated = 1;
    delayed_feedback_slate(DELAYED_FEEDBACK_NONE, &a, 1, &s, NO_LOGITS, &label, &weight);
    assert_true(isnan(label));
    s.kind = SLATE_EARLY;
    late_arrivals_count(&a, 1, &s);
    assert_true(a.early[0] == 0);
}

// ---- how many come late ------------------------------------------------------------------------

static void the_share_that_comes_late_is_learned_for_each_task(void **state)
{
    struct late_arrivals a = {0};
    struct rng rng = {3, 0};
    (void)state;
    assert_true(late_arrivals_share(&a, 0) == 0.5f);
    for (int i = 0; i < 60000; i++) {
        const uint32_t labels[] = {(uint32_t)(rng_below(&rng, 10) < 2 ? 1 : 2)};
        const bool late = labels[0] == 1 ? rng_below(&rng, 10) < 7 : rng_below(&rng, 10) < 1;
        const struct slate s = slate_of(late ? SLATE_LATE_POSITIVE : SLATE_EARLY, 1, labels);
        late_arrivals_count(&a, T, &s);
    }
    assert_true(fabsf(late_arrivals_share(&a, 0) - 0.7f) < 0.03f);
    assert_true(fabsf(late_arrivals_share(&a, 1) - 0.1f) < 0.03f);
    assert_true(late_arrivals_share(&a, 2) == 0.5f); // never converts
}

static void closed_slates_say_nothing_of_lateness(void **state)
{
    struct late_arrivals a = {0};
    const uint32_t labels[] = {7};
    const struct slate s = slate_of(SLATE_CLOSED, 1, labels);
    (void)state;
    late_arrivals_count(&a, T, &s);
    assert_true(a.early[0] == 0 && a.late[0] == 0);
}

// ---- exponential delays ------------------------------------------------------------------------

enum { N = 7 };

static struct {
    float z[N], label[N], rate[N], time[N], upstream[N];
    float loss[N], posterior[N], dz[N], drate[N];
} dfm;

static double dfm_loss(void *arg)
{
    double sum = 0;
    (void)arg;
    delayed_feedback_dfm(N, dfm.z, dfm.label, dfm.rate, dfm.time, dfm.loss, dfm.posterior, dfm.dz,
                         dfm.drate);
    for (int i = 0; i < N; i++)
        sum += (double)dfm.upstream[i] * (double)dfm.loss[i];
    return sum;
}

static void gradients_of_exponential_delays_agree_with_finite_differences(void **state)
{
    float dz[N], drate[N];
    struct rng rng = {17, 0};
    (void)state;
    rng_fill_uniform(&rng, dfm.z, N, -2, 2);
    rng_fill_uniform(&rng, dfm.rate, N, 0.8f, 2);
    rng_fill_uniform(&rng, dfm.time, N, 0, 3);
    rng_fill_uniform(&rng, dfm.upstream, N, -1, 1);
    for (int i = 0; i < N; i++)
        dfm.label[i] = (float)(i % 2);
    dfm_loss(NULL);
    for (int i = 0; i < N; i++) {
        dz[i] = dfm.upstream[i] * dfm.dz[i];
        drate[i] = dfm.upstream[i] * dfm.drate[i];
    }
    assert_gradient("z", dfm_loss, NULL, dfm.z, dz, N);
    assert_gradient("rate", dfm_loss, NULL, dfm.rate, drate, N);
}

// After a long wait an impression without conversion is a negative, at once it says nothing.
static void time_turns_a_missing_conversion_into_a_negative(void **state)
{
    const float z[] = {1, 1}, label[] = {0, 0}, rate[] = {1, 1}, time[] = {0, 200};
    float loss[2], posterior[2], dz[2], drate[2];
    (void)state;
    delayed_feedback_dfm(2, z, label, rate, time, loss, posterior, dz, drate);
    assert_true(loss[0] == 0 && dz[0] == 0);
    assert_true(fabsf(loss[1] - 1.3132617f) < 1e-6f && posterior[1] < 1e-30f);
    assert_true(fabsf(dz[1] - 0.7310586f) < 1e-6f && drate[1] < 1e-30f);
}

static void the_correction_holds_where_it_has_no_meaning(void **state)
{
    const float biased[] = {0, 0.25f, 0.5f, 1};
    float p[4];
    (void)state;
    delayed_feedback_fnc(4, biased, p);
    assert_true(p[0] == 0 && fabsf(p[1] - 1.0f / 3) < 1e-6f);
    assert_true(p[2] == p[3] && p[3] < 1 && p[3] > 0.99999f);
}

// ---- delays for people -------------------------------------------------------------------------

static void a_delay_is_counted_below_the_edge_of_its_bucket(void **state)
{
    const int64_t delays_ms[] = {-5, 0, 999, 1000, 1999, 2000, 3600000, INT64_MAX};
    (void)state;
    for (size_t i = 0; i < sizeof delays_ms / sizeof *delays_ms; i++) {
        struct delay_histogram h = {0};
        int bucket = 0;
        delay_histogram_add(&h, 1, delays_ms[i]);
        while (h.count[1][bucket] == 0)
            bucket++;
        const double s = (double)delays_ms[i] / 1000;
        assert_true(bucket == DELAY_BUCKETS - 1 || s < ldexp(1, bucket));
        assert_true(bucket == 0 || s >= ldexp(1, bucket - 1));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_mode_comes_to_rest_at_the_true_probability),
        cmocka_unit_test(every_mode_pulls_towards_it_from_both_sides),
        cmocka_unit_test(weights_are_what_was_worked_by_hand),
        cmocka_unit_test(each_pair_is_learned_from_the_slates_of_its_mode_alone),
        cmocka_unit_test(an_item_that_was_not_shown_teaches_nothing),
        cmocka_unit_test(labels_that_have_been_seen_are_not_learned_again),
        cmocka_unit_test(the_share_that_comes_late_is_learned_for_each_task),
        cmocka_unit_test(closed_slates_say_nothing_of_lateness),
        cmocka_unit_test(gradients_of_exponential_delays_agree_with_finite_differences),
        cmocka_unit_test(time_turns_a_missing_conversion_into_a_negative),
        cmocka_unit_test(the_correction_holds_where_it_has_no_meaning),
        cmocka_unit_test(a_delay_is_counted_below_the_edge_of_its_bucket),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
