// SPDX-License-Identifier: Apache-2.0
#include "model/heap.h"

#include "tests/unit/core_fixture.h"

enum { GRANULES = 4096 };

struct fixture {
    struct columns set;
    struct heap heap;
};

static int setup(void **state)
{
    static struct fixture f;
    assert_int_equal(columns_open(&f.set, 1 << 20), 0);
    assert_int_equal(heap_open(&f.heap, &f.set, "blocks", "free", GRANULES), 0);
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    columns_close(&f->set);
    return 0;
}

static void classes_hold_what_is_asked_and_at_most_a_quarter_more(void **state)
{
    (void)state;
    size_t before = 0;
    for (size_t n = 1; n <= HEAP_GRANULES_MAX; n++) {
        const size_t capacity = heap_capacity(n);
        assert_true(capacity >= n && capacity >= before && capacity * 4 <= n * 5);
        assert_int_equal(heap_capacity(capacity), capacity);
        before = capacity;
    }
    for (size_t n = 1; n <= 16; n++)
        assert_int_equal(heap_capacity(n), n);
    assert_int_equal(heap_capacity(17), 20);
    assert_int_equal(heap_capacity(33), 40);
    assert_int_equal(heap_capacity(HEAP_GRANULES_MAX), HEAP_GRANULES_MAX);
}

static void a_freed_block_is_the_next_of_its_class(void **state)
{
    struct fixture *f = *state;
    const uint32_t a = heap_take(&f->heap, 18), b = heap_take(&f->heap, 20);
    assert_true(a > 0 && b > 0);
    heap_give(&f->heap, a, 18);
    heap_give(&f->heap, b, 19); // another size of the same class
    const size_t bytes = heap_bytes(&f->heap);
    const uint32_t other = heap_take(&f->heap, 16);
    assert_true(other != a && other != b);
    assert_int_equal(heap_take(&f->heap, 17), b); // last in, first out
    assert_int_equal(heap_take(&f->heap, 20), a);
    assert_int_equal(heap_bytes(&f->heap), bytes + 16 * HEAP_GRANULE);
}

static void a_full_heap_gives_no_block_and_changes_nothing(void **state)
{
    struct fixture *f = *state;
    uint32_t blocks[8];
    int n = 0;
    while ((blocks[n] = heap_take(&f->heap, 1000)) != 0)
        n++;
    assert_int_equal(n, 4); // 4 x 1024 of the 4096 granules beside granule 0
    struct core_copy copy;
    core_copy_take(&copy, &f->set);
    assert_int_equal(heap_take(&f->heap, 1000), 0);
    assert_int_equal(heap_take(&f->heap, 1), 0);
    core_copy_assert_equal(&copy, &f->set, NULL, NULL);
    core_copy_free(&copy);
    heap_give(&f->heap, blocks[2], 1000);
    assert_int_equal(heap_take(&f->heap, 1), 0); // of another class
    assert_int_equal(heap_take(&f->heap, 1000), blocks[2]);
}

static void editing_a_part_saves_that_part_alone(void **state)
{
    struct fixture *f = *state;
    const uint32_t block = heap_take(&f->heap, 10);
    memset(heap_edit(&f->heap, block, 0, 10), 1, 10 * HEAP_GRANULE);
    columns_cut(&f->set);
    memset(heap_edit(&f->heap, block, 3, 2), 2, 2 * HEAP_GRANULE);
    assert_int_equal(f->set.saves, 2);
    unsigned char out[11 * HEAP_GRANULE];
    column_sweep(&f->heap.granule, 0, 11, out);
    for (int i = 0; i < 10 * HEAP_GRANULE; i++)
        assert_int_equal(out[block * HEAP_GRANULE + i], 1);
    columns_cut_end(&f->set);
    const unsigned char *now = heap_at(&f->heap, block);
    for (int i = 0; i < 10 * HEAP_GRANULE; i++)
        assert_int_equal(now[i], i >= 3 * HEAP_GRANULE && i < 5 * HEAP_GRANULE ? 2 : 1);
}

// Random calls beside a shadow that knows the owner of every granule and its content.

enum { BLOCKS_MAX = 200, CALLS = 20000 };

struct shadow {
    int n;
    struct {
        uint32_t block;
        size_t size;
        unsigned char fill;
    } list[BLOCKS_MAX];
    bool taken[GRANULES + 1];
};

static void step(struct heap *h, struct shadow *s, struct rng *rng)
{
    if (s->n < BLOCKS_MAX && rng_below(rng, 2)) {
        const size_t size = 1 + rng_below(rng, rng_below(rng, 4) ? 12 : 120);
        const uint32_t block = heap_take(h, size);
        if (!block)
            return;
        for (size_t i = 0; i < heap_capacity(size); i++) {
            assert_false(s->taken[block + i]);
            s->taken[block + i] = true;
        }
        s->list[s->n].block = block;
        s->list[s->n].size = size;
        s->list[s->n].fill = (unsigned char)rng_next(rng);
        memset(heap_edit(h, block, 0, size), s->list[s->n].fill, size * HEAP_GRANULE);
        s->n++;
    } else if (s->n > 0) {
        const int i = (int)rng_below(rng, (uint64_t)s->n);
        const unsigned char *bytes = heap_at(h, s->list[i].block);
        for (size_t k = 0; k < s->list[i].size * HEAP_GRANULE; k++)
            assert_int_equal(bytes[k], s->list[i].fill);
        heap_give(h, s->list[i].block, s->list[i].size);
        for (size_t k = 0; k < heap_capacity(s->list[i].size); k++)
            s->taken[s->list[i].block + k] = false;
        s->list[i] = s->list[--s->n];
    }
}

static void blocks_never_overlap_and_keep_their_content(void **state)
{
    struct fixture *f = *state;
    static struct shadow shadow;
    struct rng rng = {5, 0};
    for (int i = 0; i < CALLS; i++)
        step(&f->heap, &shadow, &rng);
    assert_true(shadow.n > 20);
}

static void a_heap_restored_from_its_bytes_gives_the_same_blocks(void **state)
{
    struct fixture *f = *state;
    struct fixture other;
    static struct shadow shadow;
    struct rng rng = {6, 0};
    for (int i = 0; i < 3000; i++)
        step(&f->heap, &shadow, &rng);
    struct core_copy copy;
    core_copy_take(&copy, &f->set);
    assert_int_equal(columns_open(&other.set, 0), 0);
    assert_int_equal(heap_open(&other.heap, &other.set, "blocks", "free", GRANULES), 0);
    core_copy_restore(&copy, &other.set);
    for (int i = 0; i < 1000; i++) {
        const size_t size = 1 + rng_below(&rng, 40);
        assert_int_equal(heap_take(&f->heap, size), heap_take(&other.heap, size));
    }
    core_copy_free(&copy);
    columns_close(&other.set);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(classes_hold_what_is_asked_and_at_most_a_quarter_more),
        TEST(a_freed_block_is_the_next_of_its_class),
        TEST(a_full_heap_gives_no_block_and_changes_nothing),
        TEST(editing_a_part_saves_that_part_alone),
        TEST(blocks_never_overlap_and_keep_their_content),
        TEST(a_heap_restored_from_its_bytes_gives_the_same_blocks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
