// SPDX-License-Identifier: Apache-2.0
#include "model/preference.h"

#include "tests/unit/slate_fixture.h"

enum { PAIRS = PREFERENCE_PAIRS(ITEMS) };

static int pairs_of(const struct slate_case *c, struct preference_pair *pairs)
{
    return preference_by_score(c->n, c->g, 0, pairs);
}

static bool margin_mse(const struct slate_case *c, float weight, double *loss, float *ds)
{
    struct preference_pair pairs[PAIRS];
    return preference_margin_mse(pairs_of(c, pairs), pairs, c->s, c->g, weight, loss, ds);
}

static bool soft(const struct slate_case *c, float weight, double *loss, float *ds)
{
    struct preference_pair pairs[PAIRS];
    return preference_soft(pairs_of(c, pairs), pairs, c->s, c->g, 2, weight, loss, ds);
}

static bool bpr(const struct slate_case *c, float weight, double *loss, float *ds)
{
    struct preference_pair pairs[PAIRS];
    return preference_bpr(pairs_of(c, pairs), pairs, c->s, weight, loss, ds);
}

static bool dpo(const struct slate_case *c, float weight, double *loss, float *ds)
{
    struct preference_pair pairs[PAIRS];
    return preference_dpo(pairs_of(c, pairs), pairs, c->s, c->s_ref, 1.5f, weight, loss, ds);
}

static bool s_dpo(const struct slate_case *c, float weight, double *loss, float *ds)
{
    struct preference_pair pairs[PAIRS];
    return preference_s_dpo(pairs_of(c, pairs), pairs, c->s, c->s_ref, 1.5f, weight, loss, ds);
}

// Pairs that the teacher masks are in the list here, so that the term must leave them out.
static int every_pair(const struct slate_case *c, struct preference_pair *pairs)
{
    int count = 0;
    for (int i = 0; i < c->n; i++)
        for (int j = i + 1; j < c->n; j++)
            pairs[count++] = (struct preference_pair){(uint16_t)i, (uint16_t)j};
    return count;
}

static bool dpo_of_all(const struct slate_case *c, float weight, double *loss, float *ds)
{
    struct preference_pair pairs[PAIRS];
    return preference_dpo(every_pair(c, pairs), pairs, c->s, c->s_ref, 1, weight, loss, ds);
}

static bool s_dpo_of_all(const struct slate_case *c, float weight, double *loss, float *ds)
{
    struct preference_pair pairs[PAIRS];
    return preference_s_dpo(every_pair(c, pairs), pairs, c->s, c->s_ref, 1, weight, loss, ds);
}

static bool margin_mse_of_all(const struct slate_case *c, float weight, double *loss, float *ds)
{
    struct preference_pair pairs[PAIRS];
    return preference_margin_mse(every_pair(c, pairs), pairs, c->s, c->g, weight, loss, ds);
}

static void every_term_has_the_gradient_of_its_loss_and_none_where_masked(void **state)
{
    (void)state;
    assert_term(margin_mse, 2);
    assert_term(soft, 2);
    assert_term(bpr, 2);
    assert_term(dpo, 2);
    assert_term(s_dpo, 2);
}

static void a_pair_without_its_teacher_is_left_out(void **state)
{
    (void)state;
    assert_term(dpo_of_all, 2);
    assert_term(s_dpo_of_all, 2);
    assert_term(margin_mse_of_all, 2);
}

static void pairs_by_score_are_those_that_differ_by_more_than_the_gap(void **state)
{
    const float g[] = {1, 2, NAN, 1, 4};
    const struct preference_pair expected[] = {{1, 0}, {1, 3}, {4, 0}, {4, 1}, {4, 3}};
    struct preference_pair pairs[PREFERENCE_PAIRS(5)];
    (void)state;
    assert_int_equal(preference_by_score(5, g, 0, pairs), 5);
    assert_memory_equal(pairs, expected, sizeof expected);
    assert_int_equal(preference_by_score(5, g, 1, pairs), 3); // 4 over all others
    assert_int_equal(preference_by_score(5, g, 3, pairs), 0);
}

static void pairs_by_value_are_engaged_over_skipped_and_shown(void **state)
{
    const float y[] = {0, 1, NAN, 3, -1};
    const struct preference_pair expected[] = {{1, 0}, {1, 4}, {3, 0}, {3, 4}};
    struct preference_pair pairs[PREFERENCE_PAIRS(5)];
    (void)state;
    assert_int_equal(preference_by_value(5, y, pairs), 4);
    assert_memory_equal(pairs, expected, sizeof expected);
}

static void losses_are_the_mean_of_the_numbers_worked_by_hand(void **state)
{
    const float s[] = {1, 0, 2}, g[] = {2, 0, 0}, equal[] = {5, 5, 5};
    const struct preference_pair pairs[] = {{0, 1}, {0, 2}};
    float ds[3] = {0};
    double loss;
    (void)state;
    // Margins 1 and -1 against 2 and 2.
    preference_margin_mse(2, pairs, s, g, 1, &loss, ds);
    assert_true(near(loss, (1 + 9) / 2.0));
    assert_true(near((double)ds[0], -4) && near((double)ds[1], 1) && near((double)ds[2], 3));
    double bpr_loss;
    preference_bpr(2, pairs, s, 1, &bpr_loss, NULL);
    assert_true(near(bpr_loss, (log(1 + exp(-1)) + log(1 + exp(1))) / 2));
    preference_dpo(2, pairs, s, equal, 1, 1, &loss, NULL);
    assert_true(near(loss, bpr_loss)); // a reference that is indifferent
    preference_dpo(2, pairs, s, s, 3, 1, &loss, NULL);
    assert_true(near(loss, log(2))); // not moved yet
    preference_s_dpo(2, pairs, s, equal, 1, 1, &loss, NULL);
    assert_true(near(loss, log(1 + exp(-1) + exp(1))));
    // One loser to each: the same as pairs.
    const struct preference_pair apart[] = {{0, 1}, {2, 1}};
    double pairwise;
    preference_dpo(2, apart, s, g, 0.7f, 1, &pairwise, NULL);
    preference_s_dpo(2, apart, s, g, 0.7f, 1, &loss, NULL);
    assert_true(near(loss, pairwise));
}

static void extreme_margins_stay_finite(void **state)
{
    const float s[] = {-1e4f, 1e4f, 3e4f}, s_ref[] = {0, 0, 0};
    const struct preference_pair pairs[] = {{0, 1}, {0, 2}};
    float ds[3] = {0};
    double loss;
    (void)state;
    preference_s_dpo(2, pairs, s, s_ref, 1, 1, &loss, ds);
    assert_true(near(loss, 4e4) && ds[0] == -1 && ds[1] == 0 && ds[2] == 1);
    preference_dpo(2, pairs, s, s_ref, 1, 1, &loss, NULL);
    assert_true(near(loss, 3e4));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_term_has_the_gradient_of_its_loss_and_none_where_masked),
        cmocka_unit_test(a_pair_without_its_teacher_is_left_out),
        cmocka_unit_test(pairs_by_score_are_those_that_differ_by_more_than_the_gap),
        cmocka_unit_test(pairs_by_value_are_engaged_over_skipped_and_shown),
        cmocka_unit_test(losses_are_the_mean_of_the_numbers_worked_by_hand),
        cmocka_unit_test(extreme_margins_stay_finite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
