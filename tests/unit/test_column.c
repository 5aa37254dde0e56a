// SPDX-License-Identifier: Apache-2.0
#include "model/column.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include "tests/unit/core_fixture.h"

static struct columns s;
static struct column a, b;

static int setup(void **state)
{
    (void)state;
    assert_int_equal(columns_open(&s, 1 << 20), 0);
    assert_int_equal(column_open(&a, &s, "a", 8, 100000), 0);
    assert_int_equal(column_open(&b, &s, "b", 13, 50000), 0);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    columns_close(&s);
    return 0;
}

static void set(struct column *c, size_t i, uint64_t value)
{
    unsigned char *unit = column_edit(c, i);
    for (size_t k = 0; k < c->unit; k++)
        unit[k] = (unsigned char)(rng_at(value, k / 8) >> (k % 8 * 8));
}

static void assert_unit(const struct column *c, const unsigned char *unit, uint64_t value)
{
    for (size_t k = 0; k < c->unit; k++)
        assert_int_equal(unit[k], (unsigned char)(rng_at(value, k / 8) >> (k % 8 * 8)));
}

static void growing_gives_zeroes_and_never_moves_a_unit(void **state)
{
    (void)state;
    column_grow(&a, 1);
    const uint64_t *first = column_at(&a, 0);
    set(&a, 0, 9);
    const uint64_t value = *first;
    for (int i = 0; i < 99; i++) {
        column_grow(&a, 1000);
        for (size_t k = a.n - 1000; k < a.n; k++)
            assert_int_equal(*(const uint64_t *)column_at(&a, k), 0);
    }
    assert_ptr_equal(column_at(&a, 0), first);
    assert_int_equal(*first, value);
    assert_int_equal(a.n, 99001);
}

static void the_first_unit_with_a_wrong_number_is_found(void **state)
{
    (void)state;
    static const float fine[] = {0, -0.0f, 1e-45f, -1e18f, 1e18f},
                       wrong[] = {NAN, -NAN, INFINITY, -INFINITY, 1.0001e18f, -3e38f};
    unsigned char units[20 * 13];
    memset(units, 0xff, sizeof units);               // NAN, but for what is arithmetic
    assert_int_equal(column_bad(&b, units, 20), 20); // nothing is
    column_floats(&b, 5, 2, 1e18);
    for (int i = 0; i < 40; i++)
        memcpy(units + i / 2 * 13 + 5 + i % 2 * 4, &fine[i % 5], 4);
    assert_int_equal(column_bad(&b, units, 20), 20);
    for (int i = 0; i < 40; i++)
        for (int k = 0; k < 6; k++) {
            unsigned char *at = units + i / 2 * 13 + 5 + i % 2 * 4, kept[4];
            memcpy(kept, at, 4);
            memcpy(at, &wrong[k], 4);
            assert_int_equal(column_bad(&b, units, 20), i / 2);
            assert_int_equal(column_bad(&b, units, (size_t)i / 2), i / 2);
            memcpy(at, kept, 4);
        }
    column_doubles(&a, 0, 1, 1e18);
    double numbers[] = {1, -1e18, 0};
    assert_int_equal(column_bad(&a, numbers, 3), 3);
    numbers[2] = 1.0001e18;
    assert_int_equal(column_bad(&a, numbers, 3), 2);
    numbers[1] = (double)NAN;
    assert_int_equal(column_bad(&a, numbers, 3), 1);
    // Units of nothing but numbers are looked at many at a time.
    static double many[3000];
    for (size_t i = 0; i<3000; i += i % 600> 4 ? 97 : 1) {
        many[i] = 2e18;
        many[2999] = (double)NAN;
        assert_int_equal(column_bad(&a, many, 3000), i);
        many[i] = many[2999] = 0;
        assert_int_equal(column_bad(&a, many, 3000), 3000);
    }
}

static void a_sweep_reads_the_units_as_they_were_at_the_cut(void **state)
{
    (void)state;
    enum { N = 1000 };
    static unsigned char out[N * 13];
    column_grow(&b, N);
    for (size_t i = 0; i < N; i++)
        set(&b, i, i);
    columns_cut(&s);
    set(&b, 0, 5000);
    set(&b, 999, 5999);
    column_grow(&b, 10);
    set(&b, 1005, 1);
    column_sweep(&b, 0, 500, out);
    set(&b, 499, 5499); // has been passed: not saved
    set(&b, 500, 5500);
    set(&b, 500, 5501); // saved already
    column_sweep(&b, 500, 500, out + 500 * 13);
    for (size_t i = 0; i < N; i++)
        assert_unit(&b, out + i * 13, i);
    assert_int_equal(s.saves, 3);
    assert_int_equal(s.saves_waited, 0);
    columns_cut_end(&s);
    assert_unit(&b, column_at(&b, 500), 5501);
    assert_unit(&b, column_at(&b, 1005), 1);
}

static void an_empty_column_is_swept_in_no_step(void **state)
{
    (void)state;
    columns_cut(&s);
    unsigned char out[1];
    column_sweep(&a, 0, 0, out);
    column_grow(&a, 5);
    set(&a, 0, 1); // not of the cut
    assert_int_equal(a.n_cut, 0);
    assert_int_equal(s.saves, 0);
    columns_cut_end(&s);
}

static void without_a_cut_nothing_is_saved(void **state)
{
    (void)state;
    column_grow(&a, 10);
    columns_cut(&s);
    columns_cut_end(&s);
    for (size_t i = 0; i < 10; i++)
        set(&a, i, i);
    assert_int_equal(s.saves, 0);
}

static void a_cut_that_was_given_up_leaves_no_trace(void **state)
{
    (void)state;
    unsigned char out[80];
    column_grow(&a, 10);
    columns_cut(&s);
    for (size_t i = 0; i < 10; i++)
        set(&a, i, i);
    columns_cut_end(&s);
    columns_cut(&s);
    for (size_t i = 0; i < 10; i++)
        set(&a, i, 100 + i);
    assert_int_equal(s.saves, 10);
    column_sweep(&a, 0, 10, out);
    for (size_t i = 0; i < 10; i++)
        assert_unit(&a, out + 8 * i, i);
    columns_cut_end(&s);
}

// A unit that was saved in cut number n must be saved again in cut n + 255, whose epoch is the
// same.
static void epochs_may_wrap(void **state)
{
    (void)state;
    unsigned char out[24];
    column_grow(&a, 3);
    for (uint64_t cut = 1; cut <= 600; cut++) {
        columns_cut(&s);
        set(&a, 0, cut); // in every cut
        if (cut % 255 == 1)
            set(&a, 1, 1000 + cut); // in cuts of the same epoch only
        assert_int_equal(s.saves, cut % 255 == 1 ? 2 : 1);
        column_sweep(&a, 0, 3, out);
        if (cut > 1)
            assert_unit(&a, out, cut - 1);
        if (cut > 1 && cut % 255 == 1)
            assert_unit(&a, out + 8, 1000 + cut - 255);
        columns_cut_end(&s);
    }
}

static void restoring_fewer_units_leaves_zeroes_above(void **state)
{
    (void)state;
    column_grow(&a, 10);
    for (size_t i = 0; i < 10; i++)
        set(&a, i, i);
    memset(column_restore(&a, 4), 1, 4 * 8);
    assert_int_equal(a.n, 4);
    column_grow(&a, 6);
    for (size_t i = 4; i < 10; i++)
        assert_int_equal(*(const uint64_t *)column_at(&a, i), 0);
}

static void what_cannot_be_reserved_is_an_error(void **state)
{
    (void)state;
    struct column huge;
    assert_int_equal(column_open(&huge, &s, "huge", 1 << 20, (size_t)1 << 40), -ENOMEM);
    assert_int_equal(s.n, 2);
}

// Two threads. Every unit of the counter column holds the number of its last edit, so the sweeper
// must read exactly what the owner noted at the cut.

enum { UNITS = 6000, CUTS = 12, STRETCH = 700 };

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int cut; // number of the cut under way, 0: none, -1: the end
    uint64_t *expected;
    int wrong;
    bool late;          // the sweeper begins when the undo space is used up
    _Atomic int edited; // units, in this cut
} shared = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static void *sweeper(void *arg)
{
    (void)arg;
    uint64_t *out = malloc(sizeof *out * UNITS);
    for (;;) {
        pthread_mutex_lock(&shared.lock);
        while (shared.cut == 0)
            pthread_cond_wait(&shared.changed, &shared.lock);
        const int cut = shared.cut;
        pthread_mutex_unlock(&shared.lock);
        if (cut < 0)
            break;
        while (shared.late && atomic_load(&shared.edited) < 100)
            sched_yield();
        if (shared.late)
            usleep(2000); // the other edits that fit
        for (size_t i = 0; i < a.n_cut; i += STRETCH) {
            const size_t n = a.n_cut - i < STRETCH ? a.n_cut - i : STRETCH;
            column_sweep(&a, i, n, out + i);
            sched_yield();
        }
        shared.wrong += memcmp(out, shared.expected, a.n_cut * sizeof *out) != 0;
        pthread_mutex_lock(&shared.lock);
        shared.cut = 0;
        pthread_mutex_unlock(&shared.lock);
        columns_cut_end(&s);
    }
    free(out);
    return NULL;
}

static struct {
    struct columns set;
    struct column wide; // of 1 KiB: undo space for three
} narrow;

static void *edit_all(void *arg)
{
    for (size_t i = 0; i < narrow.wide.n; i++)
        *(unsigned char *)column_edit(&narrow.wide, i) = 1;
    return arg;
}

static void an_owner_without_undo_space_shows_that_it_waits(void **state)
{
    enum { N = 8 };
    static unsigned char out[N * 1024];
    pthread_t owner;
    (void)state;
    assert_int_equal(columns_open(&narrow.set, 0), 0);
    assert_int_equal(column_open(&narrow.wide, &narrow.set, "wide", 1024, N), 0);
    column_grow(&narrow.wide, N);
    columns_cut(&narrow.set);
    assert_false(atomic_load(&narrow.set.waits));
    assert_int_equal(pthread_create(&owner, NULL, edit_all, NULL), 0);
    while (!atomic_load(&narrow.set.waits))
        sched_yield();
    column_sweep(&narrow.wide, 0, N, out);
    assert_int_equal(pthread_join(owner, NULL), 0);
    assert_false(atomic_load(&narrow.set.waits));
    assert_int_equal(narrow.set.saves_waited, 1);
    for (size_t i = 0; i < sizeof out; i++)
        assert_int_equal(out[i], 0);
    columns_cut_end(&narrow.set);
    columns_close(&narrow.set);
}

static uint64_t stress(bool late)
{
    pthread_t thread;
    uint64_t waited = 0, edits = 0;
    struct rng rng = {11, 0};
    shared.cut = 0;
    shared.wrong = 0;
    shared.late = late;
    shared.expected = malloc(sizeof *shared.expected * UNITS);
    column_grow(&a, UNITS / 2);
    assert_int_equal(pthread_create(&thread, NULL, sweeper, NULL), 0);
    for (int cut = 1; cut <= CUTS; cut++) {
        columns_cut(&s);
        memcpy(shared.expected, a.base, a.n * sizeof(uint64_t));
        atomic_store(&shared.edited, 0);
        pthread_mutex_lock(&shared.lock);
        shared.cut = cut;
        pthread_cond_signal(&shared.changed);
        pthread_mutex_unlock(&shared.lock);
        while (atomic_load(&s.cut)) {
            for (int i = 0; i < 200; i++) {
                *(uint64_t *)column_edit(&a, rng_below(&rng, a.n)) = ++edits;
                atomic_fetch_add(&shared.edited, 1);
            }
            if (a.n < UNITS)
                column_grow(&a, 1);
            sched_yield();
        }
        waited += s.saves_waited;
    }
    pthread_mutex_lock(&shared.lock);
    shared.cut = -1;
    pthread_cond_signal(&shared.changed);
    pthread_mutex_unlock(&shared.lock);
    pthread_join(thread, NULL);
    free(shared.expected);
    assert_int_equal(shared.wrong, 0);
    return waited;
}

static void another_thread_sweeps_exactly_while_the_owner_edits(void **state)
{
    (void)state;
    stress(false);
}

static void an_owner_without_undo_space_waits_and_stays_exact(void **state)
{
    (void)state;
    columns_close(&s);
    assert_int_equal(columns_open(&s, 0), 0); // 4096 bytes: 126 saved units
    assert_int_equal(column_open(&a, &s, "a", 8, 100000), 0);
    assert_true(stress(true) > 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(growing_gives_zeroes_and_never_moves_a_unit),
        TEST(the_first_unit_with_a_wrong_number_is_found),
        TEST(a_sweep_reads_the_units_as_they_were_at_the_cut),
        TEST(an_empty_column_is_swept_in_no_step),
        TEST(without_a_cut_nothing_is_saved),
        TEST(a_cut_that_was_given_up_leaves_no_trace),
        TEST(epochs_may_wrap),
        TEST(restoring_fewer_units_leaves_zeroes_above),
        TEST(what_cannot_be_reserved_is_an_error),
        TEST(another_thread_sweeps_exactly_while_the_owner_edits),
        TEST(an_owner_without_undo_space_waits_and_stays_exact),
        TEST(an_owner_without_undo_space_shows_that_it_waits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
