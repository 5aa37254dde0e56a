// SPDX-License-Identifier: Apache-2.0
#include "model/frequency.h"

// clang-format off
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on
#include <math.h>
#include <string.h>

#include "model/arena.h"
#include "model/rng.h"

enum { SLOTS = 4096, HASHES = 2 };

static _Alignas(64) char memory[SLOTS * HASHES * sizeof(struct frequency_cell) + 64];
static const float prior = 1e-4f;

static struct frequency fresh(uint64_t slots, int hashes, float rate)
{
    struct arena arena = {memory, sizeof memory, 0};
    struct frequency f;
    frequency_init(&f, hashes, slots, rate, prior, 77, &arena);
    return f;
}

// A batch of n examples that holds id once; the others are fillers nobody asks for again.
static void batch_with(struct frequency *f, int n, uint64_t id, uint64_t *filler)
{
    uint64_t ids[64];
    for (int i = 0; i < n; i++)
        ids[i] = i == n / 2 ? id : ++*filler + 1000000;
    frequency_update(f, n, ids);
}

static void the_recursion_forgets_its_start_at_the_stated_rate(void **state)
{
    struct frequency_cell cell = {.gap = 100};
    (void)state;
    // E[B_t] - delta = (1 - alpha)^t (B_0 - delta), exact for a constant gap.
    for (uint64_t t = 1; t <= 60; t++) {
        frequency_recur(&cell, 0.05f, 20 * t);
        assert_true(fabs((double)cell.gap - (20 + 80 * pow(0.95, (double)t))) < 1e-4);
    }
}

static void an_item_never_seen_has_the_prior(void **state)
{
    struct frequency f = fresh(SLOTS, HASHES, 0.01f);
    (void)state;
    assert_true(frequency_probability(&f, 1) == prior);
}

static void the_first_sighting_does_not_count_the_gap_since_the_beginning(void **state)
{
    struct frequency f = fresh(SLOTS, HASHES, 0.01f);
    uint64_t filler = 0;
    (void)state;
    for (int i = 0; i < 50; i++)
        batch_with(&f, 2, ++filler + 5000000, &filler);
    batch_with(&f, 2, 1, &filler);
    assert_true(fabsf(frequency_probability(&f, 1) - prior) < 1e-9f);
}

static void a_steady_item_is_estimated_per_example_whatever_the_batch_size(void **state)
{
    (void)state;
    // Once in every 32 examples: in batches of 32, of 16 (every second) and of both sizes mixed.
    for (int way = 0; way < 3; way++) {
        struct frequency f = fresh(SLOTS, HASHES, 0.02f);
        uint64_t filler = 0;
        for (int i = 0; i < 400; i++) {
            if (way == 0 || (way == 2 && i % 2)) {
                batch_with(&f, 32, 9, &filler);
            } else {
                batch_with(&f, 16, ++filler + 1000000, &filler);
                batch_with(&f, 16, 9, &filler);
            }
            // Fillers fill the cells; this test is not about collisions.
            if (i % 100 == 0)
                filler = 0;
        }
        assert_true(fabs(1 / (double)frequency_probability(&f, 9) - 32) < 1);
    }
}

static void a_repeat_within_a_batch_counts_once(void **state)
{
    (void)state;
    float p[2];
    for (int repeats = 0; repeats < 2; repeats++) {
        struct frequency f = fresh(SLOTS, HASHES, 0.1f);
        for (int i = 0; i < 20; i++) {
            const uint64_t ids[] = {5, repeats ? 5 : 6, repeats ? 5 : 7, 8};
            frequency_update(&f, 4, ids);
        }
        p[repeats] = frequency_probability(&f, 5);
    }
    assert_true(p[0] == p[1]);
}

static void young_cells_average_their_gaps(void **state)
{
    struct frequency f = fresh(SLOTS, 1, 0.01f);
    uint64_t filler = 0;
    (void)state;
    // Gaps 10 and 20 after the first sighting: (1/prior + 10 + 20) / 3 with rates 1/2 and 1/3.
    batch_with(&f, 10, 1, &filler);
    batch_with(&f, 10, 1, &filler);
    batch_with(&f, 20, 1, &filler);
    const double expected = (1 / (double)prior + 10 + 20) / 3;
    assert_true(fabs(1 / (double)frequency_probability(&f, 1) - expected) < 0.1);
}

static void an_item_that_stops_appearing_fades(void **state)
{
    struct frequency f = fresh(SLOTS, HASHES, 0.5f);
    const uint64_t hit[] = {1}, other[] = {2};
    (void)state;
    for (int i = 0; i < 100; i++)
        frequency_update(&f, 1, hit);
    assert_true(fabsf(frequency_probability(&f, 1) - 1) < 1e-3f);
    for (int i = 0; i < 500; i++)
        frequency_update(&f, 1, other);
    assert_true(fabsf(frequency_probability(&f, 1) - 1.0f / 500) < 1e-6f);
}

static void no_probability_is_above_one(void **state)
{
    struct frequency f = fresh(1, 1, 1);
    const uint64_t ids[] = {1, 2, 3};
    (void)state;
    for (int i = 0; i < 50; i++)
        frequency_update(&f, 1 + i % 3, ids);
    for (uint64_t id = 0; id < 5; id++)
        assert_true(frequency_probability(&f, id) <= 1);
}

static void a_second_hash_undoes_collisions(void **state)
{
    int doubled[2] = {0};
    static struct rng rng;
    (void)state;
    for (int hashes = 1; hashes <= 2; hashes++) {
        struct frequency f = fresh(512, hashes, 0.01f);
        rng = (struct rng){4, 0};
        for (int step = 0; step < 4000; step++) {
            uint64_t ids[8];
            for (int i = 0; i < 8; i++)
                ids[i] = rng_below(&rng, 200); // each with probability 1/200
            frequency_update(&f, 8, ids);
        }
        // A collision doubles the estimate.
        for (uint64_t id = 0; id < 200; id++)
            doubled[hashes - 1] += frequency_probability(&f, id) > 1.7f / 200;
    }
    print_message("%d of 200 doubled with one hash, %d with two\n", doubled[0], doubled[1]);
    assert_true(doubled[0] > 20 && doubled[1] < doubled[0] / 2);
}

static void the_state_is_the_cells_and_the_time(void **state)
{
    static char saved[sizeof memory];
    struct frequency f = fresh(SLOTS, HASHES, 0.05f);
    uint64_t filler = 0;
    (void)state;
    for (int i = 0; i < 30; i++)
        batch_with(&f, 8, 3, &filler);
    memcpy(saved, memory, sizeof memory);
    const uint64_t now = f.now, filler_then = filler;
    batch_with(&f, 8, 3, &filler);
    const float expected = frequency_probability(&f, 3);

    f = fresh(SLOTS, HASHES, 0.05f);
    memcpy(memory, saved, sizeof memory);
    f.now = now;
    filler = filler_then;
    batch_with(&f, 8, 3, &filler);
    assert_true(frequency_probability(&f, 3) == expected);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_recursion_forgets_its_start_at_the_stated_rate),
        cmocka_unit_test(an_item_never_seen_has_the_prior),
        cmocka_unit_test(the_first_sighting_does_not_count_the_gap_since_the_beginning),
        cmocka_unit_test(a_steady_item_is_estimated_per_example_whatever_the_batch_size),
        cmocka_unit_test(a_repeat_within_a_batch_counts_once),
        cmocka_unit_test(young_cells_average_their_gaps),
        cmocka_unit_test(an_item_that_stops_appearing_fades),
        cmocka_unit_test(no_probability_is_above_one),
        cmocka_unit_test(a_second_hash_undoes_collisions),
        cmocka_unit_test(the_state_is_the_cells_and_the_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
