// SPDX-License-Identifier: Apache-2.0
#include "model/arena.h"

#include "tests/unit/core_fixture.h"

static _Alignas(64) char memory[1024];

static void blocks_are_zeroed_aligned_and_apart(void **state)
{
    (void)state;
    memset(memory, 0xff, sizeof memory);
    struct arena a = {memory + 1, sizeof memory - 1, 0}; // an unaligned base as well
    char *last_end = memory;
    for (size_t n = 0; n <= 65; n += 13) {
        char *block = arena_bytes(&a, n);
        assert_int_equal((uintptr_t)block % 64, 0);
        assert_true(block >= last_end && block + n <= memory + sizeof memory);
        for (size_t i = 0; i < n; i++)
            assert_int_equal(block[i], 0);
        memset(block, 0xff, n);
        last_end = block + n;
    }
}

static void the_last_byte_can_be_had_and_not_one_more(void **state)
{
    (void)state;
    struct arena a = {memory, 256, 0};
    assert_ptr_equal(arena_bytes(&a, 192), memory);
    assert_ptr_equal(arena_floats(&a, 16), memory + 192);
    assert_int_equal(a.used, 256);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_are_zeroed_aligned_and_apart),
        cmocka_unit_test(the_last_byte_can_be_had_and_not_one_more),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
