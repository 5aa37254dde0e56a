// SPDX-License-Identifier: Apache-2.0
#include "daemon/step_sums.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/metrics.h"

static int setup(void **state)
{
    (void)state;
    metrics_reset();
    return 0;
}

static bool shows(const char *line)
{
    size_t size;
    char *text = metrics_text(&size), whole[200];
    snprintf(whole, sizeof whole, "\n%s\n", line);
    const bool found = strstr(text, whole);
    free(text);
    return found;
}

static void what_is_not_there_is_not_told(void **state)
{
    const struct step_sums none = {0};
    size_t size;
    (void)state;
    char *before = metrics_text(&size);
    step_sums_tell(&none);
    char *after = metrics_text(&size);
    assert_string_equal(before, after);
    free(before);
    free(after);
}

static void terms_are_means_of_examples_and_norms_means_of_steps(void **state)
{
    struct step_sums s = {0};
    (void)state;
    step_sums_add(&s, &(struct step_report){
                          .examples = 10, .loss = 30, .masked = 3, .retrieval = {30, 1, 2, 10}});
    step_sums_add(&s, &(struct step_report){
                          .examples = 30, .loss = 30, .masked = 4, .retrieval = {30, 2, 6, 30}});
    struct slate_report slates = {.slates = 4, .unscored = 1, .guard = 0.5};
    slates.term[OBJECTIVE_ALIGN] = (struct objective_report){6, 3, 5, 3};
    step_sums_add_slates(&s, &slates);
    slates = (struct slate_report){.slates = 4}; // the term had nothing to say
    step_sums_add_slates(&s, &slates);
    assert_true(s.steps == 2 && s.slate_steps == 2 && s.slates == 8 && s.unscored == 1);
    assert_true(s.masked == 7 && s.loss == 60 && s.examples == 40);
    assert_true(s.guard == 1.5 && s.guarded == 7);
    step_sums_tell(&s);
    assert_true(shows("twotower_term_loss{term=\"retrieval\"} 1.5"));
    assert_true(shows("twotower_term_gradient_norm{term=\"retrieval\",tower=\"user\"} 1.5"));
    assert_true(shows("twotower_term_gradient_norm{term=\"retrieval\",tower=\"item\"} 4"));
    assert_true(shows("twotower_term_loss{term=\"align\"} 2"));
    assert_true(shows("twotower_term_gradient_norm{term=\"align\",tower=\"user\"} 3"));
    assert_false(shows("twotower_term_loss{term=\"trust\"} 0"));
}

static void what_was_skipped_or_replayed_is_a_number_of_steps_alone(void **state)
{
    struct step_sums s = {0};
    (void)state;
    step_sums_add(&s, &(struct step_report){.examples = 2,
                                            .loss = (double)NAN,
                                            .skipped = true,
                                            .retrieval = {(double)NAN, 1, 1, 2}});
    step_sums_add(&s, &(struct step_report){
                          .examples = 2, .loss = 7, .replayed = true, .retrieval = {7, 1, 1, 2}});
    step_sums_add_slates(
        &s, &(struct slate_report){.slates = 2, .skipped = true, .guard = (double)NAN});
    assert_true(s.steps == 2 && s.slate_steps == 1 && s.skipped == 2);
    assert_true(s.loss == 0 && s.examples == 0 && s.slates == 0 && s.guard == 0);
    for (int t = 0; t < OBJECTIVES; t++)
        assert_true(s.term[t].n == 0 && s.term[t].loss == 0);
}

static void batch_metrics_and_l2_are_of_the_steps_that_were_measured(void **state)
{
    struct step_sums s = {0};
    struct step_report report = {.examples = 2, .measured = true, .l2 = 3};
    (void)state;
    batch_metrics_row(&report.metrics, 3, (const float[]){2, 1, 0}, 0, 0.75);
    batch_metrics_row(&report.metrics, 3, (const float[]){2, 1, 0}, 2, 0.25);
    step_sums_add(&s, &report);
    report.l2 = 5;
    step_sums_add(&s, &report);
    step_sums_add(&s, &(struct step_report){.examples = 2});
    step_sums_add_slates(&s, &(struct slate_report){.slates = 2, .sample_size = 5, .sampled = 2});
    step_sums_tell(&s);
    assert_true(shows("twotower_regularisation_loss 4"));
    assert_true(shows("twotower_batch_accuracy_ratio{k=\"1\"} 0.75"));
    assert_true(shows("twotower_batch_accuracy_ratio{k=\"5\"} 1"));
    assert_true(shows("twotower_batch_accuracy_ratio{k=\"10\"} 1"));
    assert_true(shows("twotower_batch_auc_ratio 0.75"));
    assert_true(shows("twotower_policy_sample_size_items 2.5"));
}

#define TEST(f) cmocka_unit_test_setup(f, setup)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(what_is_not_there_is_not_told),
        TEST(terms_are_means_of_examples_and_norms_means_of_steps),
        TEST(what_was_skipped_or_replayed_is_a_number_of_steps_alone),
        TEST(batch_metrics_and_l2_are_of_the_steps_that_were_measured),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
