// SPDX-License-Identifier: Apache-2.0
#include "model/policy.h"

#include "model/slate_loss.h"
#include "tests/unit/slate_fixture.h"

// The term treats its coefficients as constants, so differences must hold them: they are those at
// the slate's own scores, and the loss below is what is left to differentiate.
static float held[ITEMS];
static int K;

static void ratios_of(const struct slate_case *c, float *ratio)
{
    float propensity[ITEMS];
    for (int k = 0; k < c->n; k++)
        propensity[k] = k % 3 == 0 ? 0 : 0.02f + 0.01f * (float)k;
    policy_ratios(c->n, c->s, c->g, propensity, 3, ratio);
}

static bool held_loss(const struct slate_case *c, double *loss)
{
    *loss = 0;
    if (slate_unmasked(c->n, c->g) < 2)
        return false;
    const double log_sum = slate_log_sum(c->n, c->s, c->g, 1);
    for (int k = 0; k < c->n; k++)
        if (!c->masked[k])
            *loss -= (double)held[k] * ((double)c->s[k] - log_sum);
    return true;
}

static bool gradient(const struct slate_case *c, float weight, double *loss, float *ds)
{
    float ratio[ITEMS];
    if (!ds)
        return held_loss(c, loss);
    ratios_of(c, ratio);
    const bool said = policy_gradient(c->n, c->s, c->g, ratio, K, weight, loss, ds);
    const double log_sum = slate_log_sum(c->n, c->s, c->g, 1);
    for (int k = 0; k < c->n; k++)
        held[k] = c->masked[k] ? 0
                               : ratio[k] * c->g[k] *
                                     (float)policy_topk_weight(exp((double)c->s[k] - log_sum), K);
    double expected;
    assert_true(held_loss(c, &expected) == said);
    assert_true(fabs(*loss - expected) <= 1e-5 * (1 + fabs(expected)));
    *loss = expected;
    return said;
}

static bool shaped(const struct slate_case *c, float weight, double *loss, float *ds)
{
    return policy_shaped(c->n, c->s, c->s_ref, c->g, 0.3f, weight, loss, ds);
}

static void the_gradient_holds_its_coefficients_constant(void **state)
{
    (void)state;
    for (K = 1; K <= 200; K = 10 * K)
        assert_term(gradient, 2);
}

static void the_shaped_reward_has_the_gradient_of_its_loss(void **state)
{
    (void)state;
    assert_term(shaped, 2);
}

static void either_mask_takes_an_item_out_of_the_shaped_reward(void **state)
{
    const float s[] = {1, 2, 3, 0}, s_ref[] = {0, NAN, 1, 1}, r[] = {1, 5, NAN, 2};
    const float s_2[] = {1, 0}, s_ref_2[] = {0, 1}, r_2[] = {1, 2};
    float ds[4] = {0}, ds_2[2] = {0};
    double loss, loss_2;
    (void)state;
    assert_true(policy_shaped(4, s, s_ref, r, 0.5f, 1, &loss, ds));
    assert_true(policy_shaped(2, s_2, s_ref_2, r_2, 0.5f, 1, &loss_2, ds_2));
    assert_true(loss == loss_2 && ds[0] == ds_2[0] && ds[3] == ds_2[1]);
    assert_true(ds[1] == 0 && ds[2] == 0);
}

static void without_a_reward_the_shaped_loss_is_the_trust_region(void **state)
{
    const float s[] = {1, 2, -3}, s_ref[] = {0, 0.5f, 1}, none[] = {0, 0, 0};
    float ds[3] = {0}, trust[3] = {0};
    double loss, trust_loss;
    (void)state;
    policy_shaped(3, s, s_ref, none, 2, 1, &loss, ds);
    slate_trust(3, s, s_ref, 2, &trust_loss, trust);
    assert_true(near(loss, 2 * trust_loss));
    for (int k = 0; k < 3; k++)
        assert_true(near((double)ds[k], (double)trust[k]));
}

static void advantages_are_standardised_inside_the_slate(void **state)
{
    const float g[] = {1, NAN, 3, 5}, equal[] = {0.3f, 0.3f, 0.3f}, none[] = {NAN, NAN};
    float A[4];
    (void)state;
    policy_advantage(4, g, 1e-6f, A);
    assert_true(near((double)A[0], -sqrt(1.5)) && isnan(A[1]) && A[2] == 0);
    assert_true(near((double)A[3], sqrt(1.5)));
    policy_advantage(4, g, 4, A); // the floor instead of the deviation
    assert_true(A[0] == -0.5f && A[3] == 0.5f);
    policy_advantage(3, equal, 1e-6f, A);
    assert_true(A[0] == 0 && A[1] == 0 && A[2] == 0);
    policy_advantage(2, none, 1e-6f, A);
    assert_true(isnan(A[0]) && isnan(A[1]));
}

static void ratios_are_capped_and_one_where_no_propensity_was_logged(void **state)
{
    const float s[] = {logf(2), logf(6), 7, logf(2)}, mask[] = {0, 0, NAN, 0};
    const float propensity[] = {0.4f, 0.01f, 0.5f, 0};
    float ratio[4];
    (void)state;
    policy_ratios(4, s, mask, propensity, 10, ratio);
    assert_true(near((double)ratio[0], 0.5) && ratio[1] == 10 && isnan(ratio[2]));
    assert_true(ratio[3] == 1);
    assert_true(near(policy_sample_size(4, ratio), 11.5 * 11.5 / 101.25));
    policy_self_normalise(4, ratio);
    assert_true(near((double)ratio[0], 0.5 * 3 / 11.5) && isnan(ratio[2]));
    assert_true(near((double)(ratio[0] + ratio[1] + ratio[3]), 3));
    policy_ratios(4, s, mask, propensity, INFINITY, ratio);
    assert_true(near((double)ratio[1], 60));
}

static void sample_size_is_between_one_and_all(void **state)
{
    const float equal[] = {2, 2, 2}, one[] = {0, 5, 0}, none[] = {0, NAN};
    (void)state;
    assert_true(policy_sample_size(3, equal) == 3 && policy_sample_size(3, one) == 1);
    assert_true(policy_sample_size(2, none) == 0);
    float zeros[] = {0, NAN};
    policy_self_normalise(2, zeros);
    assert_true(zeros[0] == 0);
}

static void topk_weight_pushes_rare_items_and_lets_go_of_sure_ones(void **state)
{
    (void)state;
    assert_true(policy_topk_weight(0.3, 1) == 1 && policy_topk_weight(1, 1) == 1);
    assert_true(policy_topk_weight(0, 100) == 100 && policy_topk_weight(1, 100) == 0);
    assert_true(near(policy_topk_weight(0.25, 3), 3 * 0.5625));
}

static void a_ratio_of_null_is_one_for_each(void **state)
{
    const float s[] = {1, 0, 2}, A[] = {1, -1, 0}, ones[] = {1, 1, 1};
    float ds[3] = {0}, same[3] = {0};
    double loss, same_loss;
    (void)state;
    policy_gradient(3, s, A, NULL, 2, 1, &loss, ds);
    policy_gradient(3, s, A, ones, 2, 1, &same_loss, same);
    assert_true(loss == same_loss);
    assert_memory_equal(ds, same, sizeof ds);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_gradient_holds_its_coefficients_constant),
        cmocka_unit_test(the_shaped_reward_has_the_gradient_of_its_loss),
        cmocka_unit_test(either_mask_takes_an_item_out_of_the_shaped_reward),
        cmocka_unit_test(without_a_reward_the_shaped_loss_is_the_trust_region),
        cmocka_unit_test(advantages_are_standardised_inside_the_slate),
        cmocka_unit_test(ratios_are_capped_and_one_where_no_propensity_was_logged),
        cmocka_unit_test(sample_size_is_between_one_and_all),
        cmocka_unit_test(topk_weight_pushes_rare_items_and_lets_go_of_sure_ones),
        cmocka_unit_test(a_ratio_of_null_is_one_for_each),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
