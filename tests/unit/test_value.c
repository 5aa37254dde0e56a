// SPDX-License-Identifier: Apache-2.0
#include "model/value.h"

#include <errno.h>
#include <string.h>

#include "tests/support/gradcheck.h"

static struct value_tasks parsed(const char *text)
{
    struct value_tasks v;
    char error[200] = "";
    if (value_tasks_parse(&v, text, error, sizeof error) != 0)
        fail_msg("\"%s\": %s", text, error);
    return v;
}

static void a_task_table_has_names_and_weights_of_any_sign(void **state)
{
    (void)state;
    const struct value_tasks v = parsed(" click = 1,like=2.5,\thide=-1e0 , *=0");
    assert_int_equal(v.n, 4);
    assert_int_equal(v.other, 3);
    assert_true(v.weight[0] == 1 && v.weight[1] == 2.5f && v.weight[2] == -1 && v.weight[3] == 0);
    assert_string_equal(v.name[0], "click");
    assert_string_equal(v.name[2], "hide");
}

static void what_is_wrong_with_a_task_table_is_said_with_its_place(void **state)
{
    static const struct {
        const char *text, *place, *expected;
    } cases[] = {
        {"", "character 1:", "expected name=weight"},
        {"click", "character 1:", "expected name=weight"},
        {"click=1,", "character 9:", "expected name=weight"},
        {"click=1,,like=1", "character 9:", "expected name=weight"},
        {"a b=1", "character 1:", "expected name=weight"},
        {"a123456789012345678901234567890123=1", "character 1:", "1 to 31 bytes"},
        {"click=", "character 7:", "finite number"},
        {"click=one,like=2", "character 7:", "is 'one', expected a finite number"},
        {"click=1x", "character 7:", "finite number"},
        {"click=nan", "character 7:", "finite number"},
        {"click=1e99", "character 7:", "finite number"},
        {"click=1, click=2", "character 10:", "'click' is named twice"},
        {"a=1,b=1,c=1,d=1,e=1,f=1,g=1,h=1,i=1", "character 33:", "at most 8"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct value_tasks v, before;
        char error[200] = "";
        memset(&v, 7, sizeof v);
        before = v;
        assert_int_equal(value_tasks_parse(&v, cases[i].text, error, sizeof error), -EINVAL);
        if (strstr(error, cases[i].place) != error || !strstr(error, cases[i].expected))
            fail_msg("\"%s\": %s", cases[i].text, error);
        assert_memory_equal(&v, &before, sizeof v);
    }
}

static void weights_may_change_under_labels_but_names_may_not(void **state)
{
    (void)state;
    const struct value_tasks v = parsed("click=1,hide=-1"), other = parsed("click=3,hide=2");
    const struct value_tasks swapped = parsed("hide=-1,click=1"), longer = parsed("click=1");
    assert_true(value_tasks_agree(&v, &other));
    assert_false(value_tasks_agree(&v, &swapped));
    assert_false(value_tasks_agree(&v, &longer));
}

static void labels_give_the_sum_of_their_tasks_weights(void **state)
{
    (void)state;
    const struct value_tasks v = parsed("click=1,like=2.5,hide=-4");
    assert_true(value_of_labels(&v, 0) == 0);
    assert_true(value_of_labels(&v, 3) == 3.5f);
    assert_true(value_of_labels(&v, 5) == -3);
    assert_true(value_of_labels(&v, 1u << 3) == 0); // beyond the tasks
}

// One label a row and one task once collapsed into a single number for the batch.
static void labels_of_one_task_stay_one_for_each_row(void **state)
{
    const float labels[] = {1, 0, 0, 1}, weight = 0.5f, expected[] = {0.5f, 0, 0, 0.5f};
    float net[4];
    (void)state;
    value_net(4, 1, labels, &weight, net);
    assert_memory_equal(net, expected, sizeof net);
}

static void a_batch_without_any_positive_has_no_weight(void **state)
{
    const float net[] = {0, 0, -1};
    float weight[] = {9, 9, 9};
    (void)state;
    value_weights(VALUE_FIXED, 3, net, 1, weight);
    for (int i = 0; i < 3; i++)
        assert_true(weight[i] == 0);
    value_weights(VALUE_SIGNED, 2, net, 1, weight);
    assert_true(weight[0] == 0 && weight[1] == 0);
}

static void one_large_value_shrinks_no_other_row(void **state)
{
    const float net[] = {1, 1, 1000}, without[] = {1, 1};
    float weight[3], expected[2];
    (void)state;
    value_weights(VALUE_FIXED, 3, net, 2, weight);
    value_weights(VALUE_FIXED, 2, without, 2, expected);
    assert_memory_equal(weight, expected, sizeof expected);
    assert_true(weight[2] == 1);
}

static void a_negative_value_is_a_negative_weight_and_not_dropped(void **state)
{
    const float net[] = {-0.5f, -8, 0.5f, 0};
    float weight[4];
    (void)state;
    value_weights(VALUE_SIGNED, 4, net, 2, weight);
    assert_true(weight[0] == -0.25f && weight[1] == -1 && weight[2] == 0.25f && weight[3] == 0);
}

static void weights_of_the_seed_form_are_what_was_worked_by_hand(void **state)
{
    const float net[] = {0.4f, 0, 0.6f, -0.3f}, none[] = {0, -1};
    float a[4];
    (void)state;
    value_weights(VALUE_SEED, 4, net, 0, a);
    assert_true(fabsf(a[0] - 2.0f / 3) < 1e-6f && a[2] == 1);
    assert_true(fabsf(a[1] - 1e-6f / 0.6f) < 1e-9f && a[3] == a[1]);
    value_weights(VALUE_SEED, 2, none, 0, a);
    assert_true(a[0] == 1 && a[1] == 1);
}

static void residuals_are_what_was_worked_by_hand(void **state)
{
    (void)state;
    assert_true(value_residual(VALUE_RATIO, 1, 0.25f, 0, 0.5f, 0) == 2); // the floor
    assert_true(value_residual(VALUE_RATIO, 1, -3, 0, 0.5f, 0) == 2);
    assert_true(value_residual(VALUE_RATIO, 8, 1, 0, 0.5f, 3) == 3);
    assert_true(value_residual(VALUE_RATIO, -8, 1, 0, 0.5f, 3) == -3);
    assert_true(value_residual(VALUE_DIFFERENCE, 1, 3, 0, 0, 0) == -2);
    assert_true(value_residual(VALUE_POSITIVE, 1, 3, 0, 0, 0) == 0);
    assert_true(value_residual(VALUE_Z, 1, 3, 4, 0.5f, 0) == -0.5f);
    assert_true(value_residual(VALUE_Z, 1, 3, 0, 0.5f, 0) == -4);
}

static void partialling_out_finds_the_slope_between_residuals(void **state)
{
    const float phi[] = {1, -2, 0.5f}, value[] = {3, -6, 1.5f}, still[] = {0, 0, 0};
    (void)state;
    assert_true(fabs(value_partial_out(3, value, phi) - 3) < 1e-12);
    assert_true(value_partial_out(3, value, still) == 0);
    assert_true(value_partial_out(0, value, phi) == 0);
}

static void tasks_are_written_so_that_they_are_read_as_the_same(void **state)
{
    (void)state;
    char text[VALUE_TASKS_TEXT_SIZE];
    const struct value_tasks v =
        parsed("click=1, like=0.1,hide=-16777217,buy=3.4028235e38,*=1e-45");
    assert_string_equal(value_tasks_text(&v, NULL, text), "click,like,hide,buy,*");
    const struct value_tasks again = parsed(value_tasks_text(&v, v.weight, text));
    assert_memory_equal(&again, &v, sizeof v);
    assert_memory_equal(text, "click=1,like=0.1,hide=-16777216,", 32);
    // The longest there can be.
    const char name[] = "abcdefghijklmnopqrstuvwxyz01234";
    struct value_tasks longest = {.n = SLATE_TASKS_MAX, .other = -1};
    for (int t = 0; t < longest.n; t++) {
        memcpy(longest.name[t], name, sizeof name);
        longest.name[t][0] = (char)('a' + t);
        longest.weight[t] = -1.17549449e-38f;
    }
    const struct value_tasks same = parsed(value_tasks_text(&longest, longest.weight, text));
    assert_memory_equal(&same, &longest, sizeof longest);
}

static void only_the_default_weighs_nothing(void **state)
{
    (void)state;
    const struct value_tasks plain = parsed(" * = 1.0"), two = parsed("*=2");
    const struct value_tasks closed = parsed("click=1"), named = parsed("click=1,*=1");
    assert_true(value_tasks_plain(&plain));
    assert_false(value_tasks_plain(&two));
    assert_false(value_tasks_plain(&closed));
    assert_false(value_tasks_plain(&named));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_task_table_has_names_and_weights_of_any_sign),
        cmocka_unit_test(what_is_wrong_with_a_task_table_is_said_with_its_place),
        cmocka_unit_test(weights_may_change_under_labels_but_names_may_not),
        cmocka_unit_test(labels_give_the_sum_of_their_tasks_weights),
        cmocka_unit_test(labels_of_one_task_stay_one_for_each_row),
        cmocka_unit_test(a_batch_without_any_positive_has_no_weight),
        cmocka_unit_test(one_large_value_shrinks_no_other_row),
        cmocka_unit_test(a_negative_value_is_a_negative_weight_and_not_dropped),
        cmocka_unit_test(weights_of_the_seed_form_are_what_was_worked_by_hand),
        cmocka_unit_test(residuals_are_what_was_worked_by_hand),
        cmocka_unit_test(partialling_out_finds_the_slope_between_residuals),
        cmocka_unit_test(tasks_are_written_so_that_they_are_read_as_the_same),
        cmocka_unit_test(only_the_default_weighs_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
