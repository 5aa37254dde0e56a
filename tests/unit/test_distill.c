// SPDX-License-Identifier: Apache-2.0
#include "model/distill.h"

#include "model/logistic.h"
#include "model/slate_loss.h"
#include "tests/unit/slate_fixture.h"

static bool pointwise(const struct slate_case *c, float weight, double *loss, float *ds)
{
    float q[ITEMS];
    for (int k = 0; k < c->n; k++)
        q[k] = (float)logistic_sigmoid((double)c->g[k]);
    return distill_pointwise(c->n, c->s, q, weight, loss, ds);
}

static bool listwise(const struct slate_case *c, float weight, double *loss, float *ds)
{
    return distill_listwise(c->n, c->s, c->g, 2, weight, loss, ds);
}

// What k takes: the first, some, more than there are.
static int places;

static bool plackett_luce(const struct slate_case *c, float weight, double *loss, float *ds)
{
    int order[ITEMS];
    const int m = slate_order(c->n, c->g, order);
    return distill_plackett_luce(m, order, c->s, places, weight, loss, ds);
}

static bool top_positives(const struct slate_case *c, float weight, double *loss, float *ds)
{
    int order[ITEMS];
    const int m = slate_order(c->n, c->g, order);
    return distill_top_positives(m, order, c->s, places, 1.5f, weight, loss, ds);
}

static void every_term_has_the_gradient_of_its_loss_and_none_where_masked(void **state)
{
    (void)state;
    assert_term(pointwise, 1);
    assert_term(listwise, 2);
    for (places = 1; places <= 100; places = 4 * places - 1) {
        assert_term(plackett_luce, 2);
        assert_term(top_positives, 1);
    }
}

static void a_missing_teacher_masks_its_entry_and_does_not_count_as_zero(void **state)
{
    const float z[] = {0, 3, 0}, q[] = {0.75f, NAN, 1};
    float dz[3] = {0};
    double loss;
    (void)state;
    assert_true(distill_pointwise(3, z, q, 1, &loss, dz));
    assert_true(near(loss, log(2))); // two entries of z = 0
    assert_true(near((double)dz[0], -0.125) && near((double)dz[2], -0.25) && dz[1] == 0);
    assert_false(distill_pointwise(1, z + 1, q + 1, 1, &loss, dz));
}

static void a_teacher_without_probabilities_teaches_nothing_pointwise(void **state)
{
    const float z[] = {0, 1, 2}, above[] = {0.5f, NAN, 1.25f}, below[] = {-0.25f, 0.5f, NAN};
    const float bounds[] = {0, 1, NAN};
    float dz[3] = {0};
    double loss = 1;
    (void)state;
    assert_false(distill_pointwise(3, z, above, 1, &loss, dz));
    assert_true(loss == 0 && dz[0] == 0 && dz[2] == 0);
    assert_false(distill_pointwise(3, z, below, 1, &loss, dz));
    assert_true(distill_pointwise(3, z, bounds, 1, &loss, dz));
}

static void temperature_keeps_the_size_of_the_gradient(void **state)
{
    const float s[] = {0, 0, 0, 0}, g[] = {0.1f, 0, 0, 0};
    float cold[4] = {0}, hot[4] = {0};
    double loss;
    (void)state;
    distill_listwise(4, s, g, 1, 1, &loss, cold);
    distill_listwise(4, s, g, 8, 1, &loss, hot);
    assert_true(hot[0] / cold[0] > 0.9f && hot[0] / cold[0] < 1.1f);
}

static void plackett_luce_is_the_numbers_worked_by_hand(void **state)
{
    const float s[] = {logf(2), logf(3), logf(5)};
    const int order[] = {2, 0, 1};
    float ds[3] = {0};
    double loss;
    (void)state;
    // The first place alone: 5 of 10. Then 2 of the remaining 5.
    assert_true(distill_plackett_luce(3, order, s, 1, 1, &loss, ds));
    assert_true(near(loss, log(2)));
    assert_true(near((double)ds[0], 0.2) && near((double)ds[1], 0.3) && near((double)ds[2], -0.5));
    assert_true(distill_plackett_luce(3, order, s, 2, 1, &loss, NULL));
    assert_true(near(loss, log(2) + log(2.5)));
    double all;
    distill_plackett_luce(3, order, s, 3, 1, &all, NULL);
    assert_true(all == loss); // the last has no choice
    distill_plackett_luce(3, order, s, 1000, 1, &all, NULL);
    assert_true(all == loss);
}

static void rank_weights_fall_by_rank_and_sum_to_one(void **state)
{
    const float lambdas[] = {0.01f, 1, 10, 1e6f};
    (void)state;
    for (int i = 0; i < 4; i++) {
        double sum = 0, last = INFINITY;
        for (int r = 1; r <= 50; r++) {
            const double w = distill_rank_weight(r, 50, lambdas[i]);
            assert_true(w <= last);
            last = w;
            sum += w;
        }
        assert_true(near(sum, 1));
    }
    assert_true(near(distill_rank_weight(2, 2, 1 / logf(3)), 0.25)); // 1/3 and 1/9
    assert_true(distill_rank_weight(1, 1, 5) == 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_term_has_the_gradient_of_its_loss_and_none_where_masked),
        cmocka_unit_test(a_missing_teacher_masks_its_entry_and_does_not_count_as_zero),
        cmocka_unit_test(a_teacher_without_probabilities_teaches_nothing_pointwise),
        cmocka_unit_test(temperature_keeps_the_size_of_the_gradient),
        cmocka_unit_test(plackett_luce_is_the_numbers_worked_by_hand),
        cmocka_unit_test(rank_weights_fall_by_rank_and_sum_to_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
