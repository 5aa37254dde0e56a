// SPDX-License-Identifier: Apache-2.0
#include "daemon/suggest.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static const char *best_of(const char *word, const char *const *candidates)
{
    struct suggest s = {.word = word};
    for (; *candidates; candidates++)
        suggest_offer(&s, *candidates);
    return suggest_best(&s);
}

static void distance_counts_insertions_deletions_and_replacements(void **state)
{
    (void)state;
    assert_int_equal(suggest_distance("", ""), 0);
    assert_int_equal(suggest_distance("", "abc"), 3);
    assert_int_equal(suggest_distance("abc", ""), 3);
    assert_int_equal(suggest_distance("kitten", "sitting"), 3);
    assert_int_equal(suggest_distance("saturday", "sunday"), 3);
    assert_int_equal(suggest_distance("ab", "ba"), 2);
}

static void distance_is_the_same_both_ways(void **state)
{
    (void)state;
    static const char *const words[] = {"", "a", "join", "join.window", "model.l2", "nioj"};
    for (int i = 0; i < 6; i++)
        for (int j = 0; j < 6; j++)
            assert_int_equal(suggest_distance(words[i], words[j]),
                             suggest_distance(words[j], words[i]));
}

static void the_nearest_word_is_suggested(void **state)
{
    (void)state;
    assert_string_equal(
        best_of("snaphot", (const char *const[]){"restart", "snapshot", "snap", NULL}), "snapshot");
}

static void of_equally_near_words_the_first_is_suggested(void **state)
{
    (void)state;
    assert_string_equal(best_of("rum", (const char *const[]){"run", "rut", NULL}), "run");
}

static void nothing_far_away_is_suggested(void **state)
{
    (void)state;
    const char *const words[] = {"run", "replay", "demo", NULL};
    assert_null(best_of("xyzzy", words));
    assert_null(best_of("", words));
}

static void a_word_that_shares_nothing_is_not_suggested_for_a_short_one(void **state)
{
    (void)state;
    // Distance 2 of a word of two letters: everything is that near.
    assert_null(best_of("xy", (const char *const[]){"ab", NULL}));
}

static void long_words_may_have_more_mistakes(void **state)
{
    (void)state;
    assert_string_equal(
        best_of("model.uniform_negtive", (const char *const[]){"model.uniform_negatives", NULL}),
        "model.uniform_negatives");
}

static void words_beyond_the_limit_are_left_alone(void **state)
{
    (void)state;
    char word[SUGGEST_LENGTH_MAX + 2];
    memset(word, 'a', sizeof word - 1);
    word[sizeof word - 1] = 0;
    assert_null(best_of(word, (const char *const[]){word, NULL}));
    assert_null(best_of("aaaa", (const char *const[]){word, NULL}));
    word[SUGGEST_LENGTH_MAX] = 0;
    assert_ptr_equal(best_of(word, (const char *const[]){word, NULL}), word);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(distance_counts_insertions_deletions_and_replacements),
        cmocka_unit_test(distance_is_the_same_both_ways),
        cmocka_unit_test(the_nearest_word_is_suggested),
        cmocka_unit_test(of_equally_near_words_the_first_is_suggested),
        cmocka_unit_test(nothing_far_away_is_suggested),
        cmocka_unit_test(a_word_that_shares_nothing_is_not_suggested_for_a_short_one),
        cmocka_unit_test(long_words_may_have_more_mistakes),
        cmocka_unit_test(words_beyond_the_limit_are_left_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
