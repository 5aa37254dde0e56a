// SPDX-License-Identifier: Apache-2.0
#include "model/onebp.h"

#include <math.h>
// clang-format off
#include <stdarg.h>
#include <setjmp.h>
#include <stdint.h>
#include <stddef.h>
#include <cmocka.h>
// clang-format on

static void beta_is_on_the_old_row(void **state)
{
    const float item[] = {4, -8, 0};
    float user[] = {8, 8, 1};
    (void)state;
    onebp_move(3, 0.75f, item, user);
    assert_true(user[0] == 7 && user[1] == 4 && user[2] == 0.75f);
}

static void a_row_ends_at_the_item_that_its_user_always_engages_with(void **state)
{
    const float item[] = {1, -2};
    float user[] = {100, 100};
    (void)state;
    for (int i = 0; i < 300; i++)
        onebp_move(2, 0.9f, item, user);
    assert_true(fabsf(user[0] - 1) < 1e-5f && fabsf(user[1] + 2) < 1e-5f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(beta_is_on_the_old_row),
        cmocka_unit_test(a_row_ends_at_the_item_that_its_user_always_engages_with),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
