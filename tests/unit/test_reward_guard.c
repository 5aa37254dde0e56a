// SPDX-License-Identifier: Apache-2.0
#include "model/reward_guard.h"

#include <stdio.h>
#include <string.h>

#include "model/rng.h"
#include "tests/support/gradcheck.h"

enum { N = 10, SEEDS = 40 };

static const struct reward_guard_options options = {
    .half_life = 500, .confidence = 3, .weight_max = 10};

// What the ranker of a simulated stream is like.
enum ranker {
    RANKER_INFORMED, // its scores are the relevance and some noise
    RANKER_SHUFFLED, // likewise, but what is logged was shuffled after the slate was shown
    RANKER_BLIND,    // noise, by which the slate was ordered nevertheless
    RANKER_INVERTED,
};

static float normal(struct rng *rng)
{
    float sum = 0;
    for (int i = 0; i < 12; i++)
        sum += rng_float(rng);
    return sum - 6;
}

static void shuffle(struct rng *rng, float *x, int n)
{
    for (int k = n - 1; k > 0; k--) {
        const int other = (int)rng_below(rng, (uint64_t)k + 1);
        const float x_k = x[k];
        x[k] = x[other];
        x[other] = x_k;
    }
}

// One slate: n items are sorted by the ranker's scores, people look at position k with probability
// 1 / (k + 1), and click what they look at as it is relevant.
static void slate_draw(struct rng *rng, enum ranker ranker, float *score, float *y, float *weight)
{
    float relevance[N];
    for (int k = 0; k < N; k++) {
        relevance[k] = rng_float(rng);
        const float noise = normal(rng);
        score[k] = ranker == RANKER_BLIND      ? noise
                   : ranker == RANKER_INVERTED ? 0.3f * noise - relevance[k]
                                               : 0.3f * noise + relevance[k];
    }
    for (int k = 0; k < N; k++)
        for (int j = k; j > 0 && score[j] > score[j - 1]; j--) {
            const float s = score[j], r = relevance[j];
            score[j] = score[j - 1], relevance[j] = relevance[j - 1];
            score[j - 1] = s, relevance[j - 1] = r;
        }
    for (int k = 0; k < N; k++) {
        weight[k] = (float)(k + 1);
        y[k] = rng_float(rng) * weight[k] < relevance[k] ? 1 : 0;
    }
    if (ranker == RANKER_SHUFFLED)
        shuffle(rng, score, N);
}

// The share of the slates before which the scale was above 0; the largest is left in peak.
static double observe(struct reward_guard *g, struct rng *rng, enum ranker ranker, bool weighted,
                      int slates, double *peak)
{
    int above = 0;
    *peak = 0;
    for (int i = 0; i < slates; i++) {
        float score[N], y[N], weight[N];
        const double scale = reward_guard_scale(g, &options); // predict first
        assert_true(scale >= 0 && scale <= 1);
        assert_true(scale <= fmax(0, reward_guard_correlation(g)));
        above += scale > 0;
        *peak = fmax(*peak, scale);
        slate_draw(rng, ranker, score, y, weight);
        reward_guard_observe(g, &options, N, score, y, weighted ? weight : NULL);
    }
    return (double)above / slates;
}

static void shuffled_scores_bring_the_scale_to_zero(void **state)
{
    double worst = 0;
    int at_end = 0;
    (void)state;
    for (uint64_t seed = 1; seed <= SEEDS; seed++)
        for (int weighted = 0; weighted < 2; weighted++) {
            struct reward_guard g = {0};
            struct rng rng = {seed, 0};
            double peak;
            const double share = observe(&g, &rng, RANKER_SHUFFLED, weighted, 3000, &peak);
            at_end += reward_guard_scale(&g, &options) > 0;
            worst = fmax(worst, peak);
            if (share > 0.1)
                fail_msg("seed %d: above 0 for %g of the slates", (int)seed, share);
        }
    // At three standard errors one stream in 740 is above 0 at a given instant.
    assert_true(at_end <= 1);
    assert_true(worst < 0.02); // and then by little
}

static void informative_scores_raise_the_scale(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= SEEDS; seed++)
        for (int weighted = 0; weighted < 2; weighted++) {
            struct reward_guard g = {0};
            struct rng rng = {seed, 0};
            double peak;
            observe(&g, &rng, RANKER_INFORMED, weighted, 3000, &peak);
            const double scale = reward_guard_scale(&g, &options);
            const double correlation = reward_guard_correlation(&g);
            if (!(scale > 0.3 * correlation && scale > 0.04 && scale < correlation))
                fail_msg("seed %d: scale %g, correlation %g", (int)seed, scale, correlation);
        }
}

static void a_ranker_that_turns_useless_loses_its_scale(void **state)
{
    const enum ranker useless[] = {RANKER_SHUFFLED, RANKER_BLIND, RANKER_INVERTED};
    (void)state;
    for (int i = 0; i < 3; i++)
        for (uint64_t seed = 1; seed <= SEEDS / 4; seed++) {
            struct reward_guard g = {0};
            struct rng rng = {seed, 0};
            double peak;
            observe(&g, &rng, RANKER_INFORMED, true, 2000, &peak);
            assert_true(reward_guard_scale(&g, &options) > 0);
            observe(&g, &rng, useless[i], true, 3000, &peak);
            assert_true(reward_guard_scale(&g, &options) == 0);
            observe(&g, &rng, RANKER_INFORMED, true, 3000, &peak);
            assert_true(reward_guard_scale(&g, &options) > 0); // and it may come back
        }
}

static void a_blind_ranker_profits_from_its_positions_only_without_examination_weights(void **state)
{
    int with = 0, without = 0;
    (void)state;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        struct reward_guard weighted = {0}, plain = {0};
        struct rng rng = {seed, 0}, same = {seed, 0};
        double peak;
        observe(&weighted, &rng, RANKER_BLIND, true, 3000, &peak);
        observe(&plain, &same, RANKER_BLIND, false, 3000, &peak);
        with += reward_guard_scale(&weighted, &options) > 0;
        without += reward_guard_scale(&plain, &options) > 0;
    }
    assert_true(with <= 1);
    assert_true(without == SEEDS); // the trap that the weights are for
}

static void the_state_is_the_numbers_worked_by_hand(void **state)
{
    const struct reward_guard_options o = {.half_life = 1, .confidence = 0.5f, .weight_max = 3};
    const float score[] = {3, 1, NAN, 7}, y[] = {2, 0, 5, NAN}, weight[] = {1, 1, 1, 1};
    struct reward_guard g = {0};
    (void)state;
    // x = (1, -1), y = (1, -1): c = 2.
    assert_true(reward_guard_observe(&g, &o, 4, score, y, weight));
    assert_true(g.product == 2 && g.product_squares == 4 && g.score_squares == 2);
    assert_true(g.value_squares == 2 && reward_guard_correlation(&g) == 1);
    assert_true(reward_guard_scale(&g, &o) == 0.5); // (2 - 0.5 2) / 2
    // Then y = (1, 2) weighted by (2, 9), of which 3 count: (2, 6), centred (-2, 2): c = -4.
    const float y_2[] = {1, 2}, weight_2[] = {2, 9};
    assert_true(reward_guard_observe(&g, &o, 2, score, y_2, weight_2));
    assert_true(g.product == -3 && g.product_squares == 17 && g.score_squares == 3);
    assert_true(g.value_squares == 9 && reward_guard_scale(&g, &o) == 0);
    assert_true(fabs(reward_guard_sample_size(&g) - 2.25 / 1.25) < 1e-12);
}

static void a_slate_that_cannot_disagree_changes_nothing(void **state)
{
    const float score[] = {1, 2, 3}, none[] = {0, 0, 0}, one[] = {1, NAN, NAN};
    const float unscored[] = {NAN, 2, INFINITY}, y[] = {1, 0, 1};
    struct reward_guard g = {1, 2, 3, 4, 5, 6}, before = g;
    (void)state;
    assert_false(reward_guard_observe(&g, &options, 3, score, none, NULL));
    assert_false(reward_guard_observe(&g, &options, 3, score, one, NULL));
    assert_false(reward_guard_observe(&g, &options, 3, unscored, y, NULL));
    assert_false(reward_guard_observe(&g, &options, 0, score, y, NULL));
    assert_memory_equal(&g, &before, sizeof g);
}

static void scores_that_are_all_the_same_lower_the_scale(void **state)
{
    const float equal[N] = {0};
    struct reward_guard g = {0};
    struct rng rng = {1, 0};
    double peak;
    (void)state;
    observe(&g, &rng, RANKER_INFORMED, true, 2000, &peak);
    const double before = reward_guard_scale(&g, &options);
    for (int i = 0; i < 5000; i++) {
        float score[N], y[N], weight[N];
        slate_draw(&rng, RANKER_INFORMED, score, y, weight);
        reward_guard_observe(&g, &options, N, equal, y, weight);
    }
    assert_true(reward_guard_scale(&g, &options) < 0.01 * before);
}

static void neither_the_scale_of_values_nor_that_of_scores_matters(void **state)
{
    struct reward_guard a = {0}, b = {0};
    struct rng rng = {2, 0};
    (void)state;
    for (int i = 0; i < 200; i++) {
        float score[N], y[N], weight[N];
        slate_draw(&rng, RANKER_INFORMED, score, y, weight);
        reward_guard_observe(&a, &options, N, score, y, NULL);
        for (int k = 0; k < N; k++) {
            score[k] = 1000 + 64 * (float)i + 4 * score[k]; // each slate's own
            y[k] *= 8;
        }
        reward_guard_observe(&b, &options, N, score, y, NULL);
    }
    assert_true(reward_guard_scale(&a, &options) > 0);
    assert_true(fabs(reward_guard_scale(&a, &options) - reward_guard_scale(&b, &options)) < 1e-3);
}

static void few_slates_prove_nothing_however_well_they_agree(void **state)
{
    const float score[] = {2, 1}, huge[] = {1e6f, 0}, y[] = {1, 0};
    struct reward_guard g = {0};
    (void)state;
    for (int i = 0; i < 9; i++) {
        reward_guard_observe(&g, &options, 2, score, y, NULL);
        assert_true(reward_guard_scale(&g, &options) == 0);
    }
    for (int i = 0; i < 5; i++)
        reward_guard_observe(&g, &options, 2, score, y, NULL);
    assert_true(reward_guard_scale(&g, &options) > 0);
    reward_guard_observe(&g, &options, 2, score, huge, NULL); // one value outweighs all others
    assert_true(reward_guard_scale(&g, &options) == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shuffled_scores_bring_the_scale_to_zero),
        cmocka_unit_test(informative_scores_raise_the_scale),
        cmocka_unit_test(a_ranker_that_turns_useless_loses_its_scale),
        cmocka_unit_test(
            a_blind_ranker_profits_from_its_positions_only_without_examination_weights),
        cmocka_unit_test(the_state_is_the_numbers_worked_by_hand),
        cmocka_unit_test(a_slate_that_cannot_disagree_changes_nothing),
        cmocka_unit_test(scores_that_are_all_the_same_lower_the_scale),
        cmocka_unit_test(neither_the_scale_of_values_nor_that_of_scores_matters),
        cmocka_unit_test(few_slates_prove_nothing_however_well_they_agree),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
