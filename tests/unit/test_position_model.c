// SPDX-License-Identifier: Apache-2.0
#include "model/position_model.h"

#include <string.h>

#include "model/rng.h"
#include "tests/support/gradcheck.h"

enum { B = 6, BUCKETS = 4 };

struct fixture {
    float f[B], df[B], g[BUCKETS], dg[BUCKETS];
    float seen[B], dseen[B], relevance[B], drelevance[B], p[B];
    float label[B];
    int bucket[B];
};

static struct fixture f;

static int setup(void **state)
{
    struct rng rng = {11, 0};
    (void)state;
    memset(&f, 0, sizeof f);
    rng_fill_uniform(&rng, f.f, B, -2, 2);
    rng_fill_uniform(&rng, f.g, BUCKETS, -2, 2);
    rng_fill_uniform(&rng, f.seen, B, 0.2f, 0.9f);
    rng_fill_uniform(&rng, f.relevance, B, 0.2f, 0.9f);
    // Labels between 0 and 1 weigh every row differently; two rows share a bucket, one has none.
    rng_fill_uniform(&rng, f.label, B, 0, 1);
    memcpy(f.bucket, (int[]){0, 1, 1, 3, 0, 1}, sizeof f.bucket);
    return 0;
}

static double pal_loss(void *arg)
{
    (void)arg;
    return position_pal_forward(B, f.seen, f.relevance, f.label, f.p);
}

static double additive_loss(void *arg)
{
    (void)arg;
    return position_additive_forward(B, f.f, f.g, f.bucket, f.label);
}

static void every_position_has_a_bucket(void **state)
{
    (void)state;
    assert_int_equal(position_bucket(0), 0);
    assert_int_equal(position_bucket(63), 63);
    assert_int_equal(position_bucket(64), POSITION_OVERFLOW);
    assert_int_equal(position_bucket(5000), POSITION_OVERFLOW);
    assert_int_equal(position_bucket(INT16_MAX), POSITION_OVERFLOW);
    assert_int_equal(position_bucket(-1), POSITION_UNKNOWN);
    assert_true(POSITION_UNKNOWN < POSITION_BUCKETS);
}

static void posteriors_are_what_bayes_says(void **state)
{
    const double theta = 0.9, gamma = 0.3;
    const float e = (float)log(theta / (1 - theta)), r = (float)log(gamma / (1 - gamma));
    (void)state;
    const struct position_posterior p = position_posterior(e, r, false);
    assert_true(fabs(p.examined - theta * (1 - gamma) / (1 - theta * gamma)) < 1e-6);
    assert_true(fabs(p.relevant - gamma * (1 - theta) / (1 - theta * gamma)) < 1e-6);
    const struct position_posterior q = position_posterior(e, r, true);
    assert_true(q.examined == 1 && q.relevant == 1);
}

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

static void a_posterior_less_its_prior_is_the_gradient_of_the_likelihood(void **state)
{
    const double e = 0.7, r = -1.3, h = 1e-5;
    (void)state;
    for (int engaged = 0; engaged < 2; engaged++) {
        const struct position_posterior p = position_posterior((float)e, (float)r, engaged);
        double up = sigmoid(e + h) * sigmoid(r), down = sigmoid(e - h) * sigmoid(r);
        const double by_e = engaged ? log(up) - log(down) : log(1 - up) - log(1 - down);
        up = sigmoid(e) * sigmoid(r + h);
        down = sigmoid(e) * sigmoid(r - h);
        const double by_r = engaged ? log(up) - log(down) : log(1 - up) - log(1 - down);
        assert_true(fabs(by_e / (2 * h) - (p.examined - sigmoid(e))) < 1e-5);
        assert_true(fabs(by_r / (2 * h) - (p.relevant - sigmoid(r))) < 1e-5);
    }
}

static void posteriors_of_extreme_logits_are_probabilities(void **state)
{
    static const float extremes[] = {-1000, -50, 0, 50, 1000};
    (void)state;
    for (int i = 0; i < 5; i++)
        for (int j = 0; j < 5; j++) {
            const struct position_posterior p = position_posterior(extremes[i], extremes[j], false);
            assert_true(p.examined >= 0 && p.examined <= 1);
            assert_true(p.relevant >= 0 && p.relevant <= 1);
        }
}

static void pal_gives_the_numbers_worked_by_hand(void **state)
{
    const float seen[] = {0.5f, 1}, relevance[] = {0.5f, 0.5f}, label[] = {1, 0};
    float p[2];
    (void)state;
    const double loss = position_pal_forward(2, seen, relevance, label, p);
    assert_true(p[0] == 0.25f && p[1] == 0.5f);
    assert_true(fabs(loss - (log(4) + log(2)) / 2) < 1e-7);
}

static void additive_gives_the_numbers_worked_by_hand(void **state)
{
    const float logit[] = {0, 1}, g[] = {-1, 0}, label[] = {1, 0};
    const int bucket[] = {1, 0};
    (void)state;
    assert_true(fabs(position_additive_forward(2, logit, g, bucket, label) - log(2)) < 1e-7);
}

static void pal_backward_agrees_with_finite_differences(void **state)
{
    (void)state;
    pal_loss(NULL);
    position_pal_backward(B, f.seen, f.relevance, f.label, f.p, f.dseen, f.drelevance);
    assert_gradient("seen", pal_loss, NULL, f.seen, f.dseen, B);
    assert_gradient("relevance", pal_loss, NULL, f.relevance, f.drelevance, B);
}

static void additive_backward_agrees_with_finite_differences(void **state)
{
    (void)state;
    position_additive_backward(B, f.f, f.g, f.bucket, f.label, f.df, f.dg);
    assert_gradient("f", additive_loss, NULL, f.f, f.df, B);
    assert_gradient("g", additive_loss, NULL, f.g, f.dg, BUCKETS);
    assert_true(f.dg[2] == 0);
}

static void backward_adds_to_what_is_there(void **state)
{
    float once[B], g_once[BUCKETS];
    (void)state;
    pal_loss(NULL);
    position_pal_backward(B, f.seen, f.relevance, f.label, f.p, f.dseen, NULL);
    position_additive_backward(B, f.f, f.g, f.bucket, f.label, NULL, f.dg);
    memcpy(once, f.dseen, sizeof once);
    memcpy(g_once, f.dg, sizeof g_once);
    position_pal_backward(B, f.seen, f.relevance, f.label, f.p, f.dseen, NULL);
    position_additive_backward(B, f.f, f.g, f.bucket, f.label, NULL, f.dg);
    for (int i = 0; i < B; i++)
        assert_true(f.dseen[i] == 2 * once[i]);
    for (int i = 0; i < BUCKETS; i++)
        assert_true(fabsf(f.dg[i] - 2 * g_once[i]) < 1e-6f);
}

static void pal_stays_finite_where_the_product_is_0_or_1(void **state)
{
    const float seen[] = {0, 1, 0, 1}, relevance[] = {0, 1, 1, 1}, label[] = {1, 0, 0, 1};
    float p[4], dseen[4] = {0}, drelevance[4] = {0};
    (void)state;
    assert_true(isfinite(position_pal_forward(4, seen, relevance, label, p)));
    position_pal_backward(4, seen, relevance, label, p, dseen, drelevance);
    for (int i = 0; i < 4; i++)
        assert_true(fabsf(dseen[i]) <= 1.1e6f / 4 && fabsf(drelevance[i]) <= 1.1e6f / 4);
}

static void inverse_examination_is_capped_and_1_where_unknown(void **state)
{
    (void)state;
    assert_true(position_ipw(0.5f, 10) == 2);
    assert_true(position_ipw(0.01f, 10) == 10);
    assert_true(position_ipw(0, 10) == 1);
}

static void self_normalised_weights_have_the_mean_1(void **state)
{
    float weight[] = {1, 2, 5}, none[] = {0, 0};
    (void)state;
    position_self_normalise(3, weight);
    assert_true(fabsf(weight[0] + weight[1] + weight[2] - 3) < 1e-6f);
    assert_true(fabsf(weight[2] - 5 * weight[0]) < 1e-6f);
    position_self_normalise(2, none);
    assert_true(none[0] == 0 && none[1] == 0);
}

static void a_pseudo_label_is_relevance_on_average(void **state)
{
    const float alpha = 0.6f, beta = 0.1f, gamma = 0.3f, p = alpha * gamma + beta;
    (void)state;
    const float mean =
        p * position_pseudo_label(1, alpha, beta) + (1 - p) * position_pseudo_label(0, alpha, beta);
    assert_true(fabsf(mean - gamma) < 1e-6f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_position_has_a_bucket),
        cmocka_unit_test(posteriors_are_what_bayes_says),
        cmocka_unit_test(a_posterior_less_its_prior_is_the_gradient_of_the_likelihood),
        cmocka_unit_test(posteriors_of_extreme_logits_are_probabilities),
        cmocka_unit_test(pal_gives_the_numbers_worked_by_hand),
        cmocka_unit_test(additive_gives_the_numbers_worked_by_hand),
        cmocka_unit_test_setup(pal_backward_agrees_with_finite_differences, setup),
        cmocka_unit_test_setup(additive_backward_agrees_with_finite_differences, setup),
        cmocka_unit_test_setup(backward_adds_to_what_is_there, setup),
        cmocka_unit_test(pal_stays_finite_where_the_product_is_0_or_1),
        cmocka_unit_test(inverse_examination_is_capped_and_1_where_unknown),
        cmocka_unit_test(self_normalised_weights_have_the_mean_1),
        cmocka_unit_test(a_pseudo_label_is_relevance_on_average),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
