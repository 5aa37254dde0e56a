// SPDX-License-Identifier: Apache-2.0
#include "model/id_table.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>

#include "tests/unit/core_fixture.h"

enum { DAY_MS = 86400000 };

struct fixture {
    struct columns set;
    struct id_table table;
};

static struct fixture f;

static void open_with(struct fixture *x, size_t rows_max, int admit, int64_t ttl_ms)
{
    assert_int_equal(columns_open(&x->set, 0), 0);
    assert_int_equal(id_table_open(&x->table, &x->set,
                                   &(struct id_table_options){
                                       .names = {"id", "table", "sighting"},
                                       .heap_names = {"text", "free"},
                                       .rows_max = rows_max,
                                       .admit = admit,
                                       .ttl_ms = ttl_ms,
                                   }),
                     0);
}

static int teardown(void **state)
{
    (void)state;
    id_table_close(&f.table);
    columns_close(&f.set);
    return 0;
}

// Ids whose hash the test chooses; the bytes tell the number.
static struct id id_with(uint64_t hash, uint32_t check, const char *bytes)
{
    return (struct id){hash, check, (uint16_t)strlen(bytes), ID_STRING, bytes};
}

static int64_t see(struct id id, int64_t ts_ms)
{
    bool created;
    return id_table_see(&f.table, &id, ts_ms, &created);
}

static int64_t find(struct id id)
{
    return id_table_find(&f.table, &id);
}

static void an_id_keeps_its_row_and_its_bytes(void **state)
{
    (void)state;
    open_with(&f, 100, 1, 0);
    bool created;
    struct id id = core_id("user ", 7);
    assert_int_equal(find(id), ID_NO_ROW);
    assert_int_equal(id_table_see(&f.table, &id, 5, &created), 0);
    assert_true(created);
    assert_int_equal(id_table_see(&f.table, &id, 6, &created), 0);
    assert_false(created);
    char storage[8];
    struct id number = id_of_unsigned(UINT64_MAX, storage);
    assert_int_equal(id_table_see(&f.table, &number, 6, &created), 1);
    assert_int_equal(find(id), 0);
    const struct id kept = id_table_id(&f.table, 0), kept_number = id_table_id(&f.table, 1);
    assert_int_equal(kept.size, 6);
    assert_memory_equal(kept.bytes, "user 7", 6);
    assert_int_equal(kept.kind, ID_STRING);
    assert_int_equal(kept_number.kind, ID_UNSIGNED);
    assert_memory_equal(kept_number.bytes, "\xff\xff\xff\xff\xff\xff\xff\xff", 8);
    assert_int_equal(id_table_row(&f.table, 0)->created_ms, 5);
}

static void an_id_of_up_to_eight_bytes_needs_no_block(void **state)
{
    (void)state;
    open_with(&f, 100, 1, 0);
    const size_t empty = heap_bytes(&f.table.text);
    char storage[8];
    const struct id ids[] = {id_of_unsigned(7, storage), id_with(1, 1, "12345678"),
                             id_with(2, 2, "x")};
    for (int i = 0; i < 3; i++)
        assert_int_equal(see(ids[i], 0), i);
    assert_int_equal(heap_bytes(&f.table.text), empty);
    assert_int_equal(see(id_with(3, 3, "123456789"), 0), 3);
    assert_int_equal(heap_bytes(&f.table.text), empty + HEAP_GRANULE);
    for (uint32_t i = 0; i < 3; i++) {
        const struct id kept = id_table_id(&f.table, i);
        assert_int_equal(kept.size, ids[i].size);
        assert_int_equal(kept.kind, ids[i].kind);
        assert_memory_equal(kept.bytes, ids[i].bytes, kept.size);
    }
    // A row is handed on with what lies in it: to an id with a block, and back.
    id_table_remove(&f.table, 1);
    assert_int_equal(see(id_with(4, 4, "abcdefghij"), 0), 1);
    assert_memory_equal(id_table_id(&f.table, 1).bytes, "abcdefghij", 10);
    id_table_remove(&f.table, 1);
    assert_int_equal(see(id_with(5, 5, "short"), 0), 1);
    assert_int_equal(id_table_id(&f.table, 1).size, 5);
    assert_int_equal(heap_bytes(&f.table.text), empty + 2 * HEAP_GRANULE);
}

// As tables were kept before ids lay in rows.
static void a_short_id_with_a_block_is_read_and_freed_like_others(void **state)
{
    (void)state;
    open_with(&f, 100, 1, 0);
    assert_int_equal(see(id_with(1, 1, "short"), 0), 0);
    struct id_row *row = column_edit(&f.table.row, 0);
    row->size = 5;
    row->text = heap_take(&f.table.text, 1);
    memcpy(heap_edit(&f.table.text, row->text, 0, 1), "short", 5);
    const uint32_t block = row->text;
    assert_int_equal(id_table_rebuild(&f.table), 0);
    assert_int_equal(find(id_with(1, 1, "short")), 0);
    assert_memory_equal(id_table_id(&f.table, 0).bytes, "short", 5);
    id_table_remove(&f.table, 0);
    assert_int_equal(heap_take(&f.table.text, 1), block);
}

static void one_hash_with_another_check_is_another_row(void **state)
{
    (void)state;
    open_with(&f, 100, 1, 0);
    for (uint32_t i = 0; i < 50; i++)
        assert_int_equal(see(id_with(123456789, i, "x"), 0), i);
    for (uint32_t i = 0; i < 50; i++)
        assert_int_equal(find(id_with(123456789, i, "x")), i);
    // The same slot and the same tag, but other bits between.
    assert_int_equal(find(id_with(123456789 + (1u << 20), 3, "x")), ID_NO_ROW);
    id_table_remove(&f.table, 20);
    assert_int_equal(find(id_with(123456789, 20, "x")), ID_NO_ROW);
    assert_int_equal(find(id_with(123456789, 49, "x")), 49); // behind the gap
}

// Were their slots next to each other, this would be 10^10 probes for each kind.
static void ids_that_were_chosen_to_collide_are_found_as_fast_as_others(void **state)
{
    enum { CHOSEN = 150000, WAYS = 3 };
    (void)state;
    open_with(&f, CHOSEN, 1, 0);
    for (int way = 0; way < WAYS; way++) {
        for (int pass = 0; pass < 2; pass++)
            for (uint32_t i = 0; i < CHOSEN; i++) {
                const struct id ids[WAYS] = {
                    id_with(UINT64_C(0x123456789abcdef), i, "x"),         // one hash
                    id_with((uint64_t)i << 32, 7, "x"),                   // one home
                    id_with(UINT64_C(0x77) << 32 | i % 64, i / 64, "x")}; // one tag
                const int64_t row = pass == 0 ? see(ids[way], 0) : find(ids[way]);
                assert_int_equal(row, i);
            }
        assert_int_equal(id_table_rebuild(&f.table), 0);
        teardown(NULL);
        open_with(&f, CHOSEN, 1, 0);
    }
}

static void the_nth_sighting_admits(void **state)
{
    (void)state;
    open_with(&f, 100, 3, 0);
    const struct id id = core_id("i", 1), other = core_id("i", 2);
    assert_int_equal(see(id, 0), ID_NO_ROW);
    assert_int_equal(see(other, 0), ID_NO_ROW);
    assert_int_equal(see(id, 0), ID_NO_ROW);
    assert_int_equal(find(id), ID_NO_ROW);
    assert_int_equal(id_table_state(&f.table)->waiting, 3);
    assert_int_equal(see(id, 0), 0);
    assert_int_equal(see(id, 0), 0);
    assert_int_equal(see(other, 0), ID_NO_ROW);
    assert_int_equal(see(other, 0), 1);
    assert_int_equal(id_table_state(&f.table)->admitted, 2);
}

static void a_catalogue_admits_at_once(void **state)
{
    (void)state;
    open_with(&f, 100, 3, 0);
    bool created;
    const struct id id = core_id("i", 1);
    assert_int_equal(id_table_admit(&f.table, &id, 0, &created), 0);
    assert_true(created);
    assert_int_equal(see(id, 0), 0);
}

static void sightings_of_a_month_ago_are_forgotten(void **state)
{
    (void)state;
    open_with(&f, 100, 2, 0);
    const struct id a = core_id("i", 1), b = core_id("i", 2);
    see(a, TEST_START_MS);
    see(b, TEST_START_MS);
    assert_int_equal(see(a, TEST_START_MS + 30 * (int64_t)DAY_MS), 0);
    assert_int_equal(see(b, TEST_START_MS + 31 * (int64_t)DAY_MS), ID_NO_ROW);
    assert_int_equal(see(b, TEST_START_MS + 31 * (int64_t)DAY_MS), 1);
}

// Partitions drift apart: the second sighting may be of the day before the first.
static void a_sighting_from_before_midnight_counts_after_it(void **state)
{
    (void)state;
    open_with(&f, 100, 2, 0);
    const struct id id = core_id("i", 1);
    const int64_t midnight = TEST_START_MS / DAY_MS * DAY_MS;
    assert_int_equal(see(id, midnight + 1), ID_NO_ROW);
    assert_int_equal(see(id, midnight - 1), 0);
}

static void a_full_filter_forgets_the_least_seen(void **state)
{
    (void)state;
    enum { SETS = 1 << 17, WAYS = 8 };
    open_with(&f, 100, 4, 0);
    // All in one set: the number of sightings so far is 3 for the first seven, 1 for the eighth.
    for (uint64_t i = 0; i < WAYS; i++)
        for (int times = 0; times < (i < WAYS - 1 ? 3 : 1); times++)
            assert_int_equal(see(id_with(((i + 1) << 40) + 77, 0, "x"), 0), ID_NO_ROW);
    assert_int_equal(see(id_with((UINT64_C(99) << 40) + 77, 0, "x"), 0), ID_NO_ROW);
    for (uint64_t i = 0; i < WAYS - 1; i++) // these were kept
        assert_int_equal(see(id_with(((i + 1) << 40) + 77, 0, "x"), 0), i);
    for (int times = 0; times < 3; times++) // this one begins again
        assert_int_equal(see(id_with(((uint64_t)WAYS << 40) + 77, 0, "x"), 0), ID_NO_ROW);
    assert_int_equal(see(id_with(((uint64_t)WAYS << 40) + 77, 0, "x"), 0), WAYS - 1);
}

static void the_filter_is_large_enough_for_a_large_table(void **state)
{
    enum { IDS = 1200000 };
    (void)state;
    open_with(&f, 8 * 1000000, 2, 0);
    int admitted = 0;
    for (int times = 0; times < 2; times++)
        for (uint64_t i = 0; i < IDS; i++)
            admitted += see(core_id("i", i), 0) != ID_NO_ROW;
    assert_true(admitted > IDS / 1000 * 999);
}

static void a_row_handed_out_again_has_another_generation(void **state)
{
    (void)state;
    open_with(&f, 100, 1, 0);
    const struct id a = core_id("i", 1), b = core_id("i", 2);
    assert_int_equal(see(a, 0), 0);
    const uint8_t generation = id_table_row(&f.table, 0)->generation;
    id_table_remove(&f.table, 0);
    assert_false(id_table_live(&f.table, 0));
    assert_int_equal(find(a), ID_NO_ROW);
    assert_int_equal(see(b, 0), 0);
    assert_int_not_equal(id_table_row(&f.table, 0)->generation, generation);
    assert_int_equal(see(a, 0), 1);
    assert_int_equal(id_table_state(&f.table)->live, 2);
}

static void a_full_table_counts_who_is_refused(void **state)
{
    (void)state;
    open_with(&f, 10, 1, 0);
    for (uint64_t i = 0; i < 10; i++)
        assert_int_equal(see(core_id("i", i), 0), i);
    for (uint64_t i = 10; i < 15; i++)
        assert_int_equal(see(core_id("i", i), 0), ID_NO_ROW);
    assert_int_equal(see(core_id("i", 3), 0), 3);
    assert_int_equal(id_table_state(&f.table)->refused_full, 5);
    assert_int_equal(id_table_state(&f.table)->live, 10);
    id_table_remove(&f.table, 4);
    assert_int_equal(see(core_id("i", 12), 0), 4);
}

static void expiry_follows_event_time_alone(void **state)
{
    (void)state;
    open_with(&f, 1000, 1, 3600000);
    uint32_t rows[1000];
    for (uint64_t i = 0; i < 100; i++)
        see(core_id("i", i), TEST_START_MS);
    for (uint64_t i = 0; i < 100; i += 2)
        see(core_id("i", i), TEST_START_MS + 1800000);
    // To the millisecond of the ttl nobody goes.
    assert_int_equal(id_table_expire(&f.table, TEST_START_MS + 3600000, 1000, rows, 1000), 0);
    const int n = id_table_expire(&f.table, TEST_START_MS + 3600001, 100, rows, 1000);
    assert_int_equal(n, 50);
    for (int i = 0; i < n; i++)
        assert_int_equal(rows[i] % 2, 1);
    assert_int_equal(id_table_state(&f.table)->expired, 50);
    assert_int_equal(id_table_expire(&f.table, TEST_START_MS + 3600001, 1000, rows, 1000), 0);
    assert_int_equal(find(core_id("i", 1)), ID_NO_ROW);
    assert_int_equal(find(core_id("i", 2)), 2);
}

static void the_search_for_expired_rows_goes_on_where_it_stopped(void **state)
{
    (void)state;
    open_with(&f, 1000, 1, 1000);
    uint32_t rows[16];
    for (uint64_t i = 0; i < 100; i++)
        see(core_id("i", i), TEST_START_MS);
    int gone = 0;
    for (int call = 0; call < 10; call++)
        gone += id_table_expire(&f.table, TEST_START_MS + 5000, 10, rows, 16);
    assert_int_equal(gone, 100);
    for (uint64_t i = 0; i < 100; i++)
        see(core_id("j", i), TEST_START_MS);
    assert_int_equal(id_table_expire(&f.table, TEST_START_MS + 5000, 100, rows, 16), 16);
    assert_int_equal(id_table_expire(&f.table, TEST_START_MS + 5000, 100, rows, 0), 0);
}

static void two_rows_of_one_id_are_refused_when_rebuilding(void **state)
{
    (void)state;
    open_with(&f, 100, 1, 0);
    see(core_id("i", 1), 0);
    see(core_id("i", 2), 0);
    memcpy(column_edit(&f.table.row, 1), column_at(&f.table.row, 0), sizeof(struct id_row));
    assert_int_equal(id_table_rebuild(&f.table), -EINVAL);
}

enum { RESTORED = 20000, STRETCH = 300, THREADS = 3 };

static _Atomic size_t next_stretch;

static void *restore_main(void *arg)
{
    (void)arg;
    for (size_t first; (first = atomic_fetch_add(&next_stretch, STRETCH)) < RESTORED;)
        id_table_restored(&f.table, first, RESTORED - first < STRETCH ? RESTORED - first : STRETCH);
    return NULL;
}

static void restore_by_threads(void)
{
    pthread_t threads[THREADS];
    assert_int_equal(id_table_restoring(&f.table), 0);
    next_stretch = 0;
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, restore_main, NULL), 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
}

static void assert_all_found(void)
{
    for (uint32_t row = 0; row < RESTORED; row++)
        assert_int_equal(find(core_id("i", row)), row % 7 ? (int64_t)row : ID_NO_ROW);
}

static void the_index_is_made_by_several_threads_while_rows_come(void **state)
{
    (void)state;
    open_with(&f, 2 * RESTORED, 1, 0);
    for (uint32_t row = 0; row < RESTORED; row++)
        assert_int_equal(see(core_id("i", row), 0), row);
    for (uint32_t row = 0; row < RESTORED; row += 7)
        id_table_remove(&f.table, row);
    restore_by_threads();
    // Nothing is left to do: rows that contradict each other by now are not looked at again.
    struct id_row *row = column_edit(&f.table.row, 2), kept = *row;
    *row = *id_table_row(&f.table, 1);
    assert_int_equal(id_table_rebuild(&f.table), 0);
    assert_int_equal(id_table_rebuild(&f.table), -EINVAL); // the next time everything is
    *row = kept;
    restore_by_threads();
    assert_int_equal(id_table_rebuild(&f.table), 0);
    assert_all_found();
    for (uint64_t i = RESTORED; i < 2 * RESTORED; i++) // the index grows
        assert_true(see(core_id("i", i), 0) >= 0);
    for (uint32_t i = 1; i < RESTORED; i += 7)
        assert_int_equal(find(core_id("i", i)), i);
}

static void rows_that_were_not_told_of_are_found(void **state)
{
    (void)state;
    open_with(&f, RESTORED, 1, 0);
    for (uint32_t row = 0; row < RESTORED; row++)
        see(core_id("i", row), 0);
    for (uint32_t row = 0; row < RESTORED; row += 7)
        id_table_remove(&f.table, row);
    assert_int_equal(id_table_restoring(&f.table), 0);
    id_table_restored(&f.table, 100, RESTORED - 100);
    assert_int_equal(id_table_rebuild(&f.table), 0);
    assert_all_found();
}

static void two_rows_of_one_id_are_refused_whichever_thread_has_them(void **state)
{
    (void)state;
    open_with(&f, RESTORED, 1, 0);
    for (uint32_t row = 0; row < RESTORED; row++)
        see(core_id("i", row), 0);
    memcpy(column_edit(&f.table.row, RESTORED - 1), column_at(&f.table.row, 5),
           sizeof(struct id_row));
    restore_by_threads();
    assert_int_equal(id_table_rebuild(&f.table), -EINVAL);
}

// A hundred thousand random ids beside a map that is an array: number -> row.

enum { NUMBERS = 100000, CALLS = 400000 };

struct shadow {
    int64_t row[NUMBERS];
    int64_t seen_ms[NUMBERS];
    uint32_t owner[NUMBERS]; // of a row: number + 1
    uint8_t generation[NUMBERS];
    int64_t live;
};

static struct id id_numbered(uint64_t n, char bytes[8])
{
    memcpy(bytes, &n, 8);
    // Hashes that crowd: 2^19 homes, some a full 64-bit hash apart in the tag only.
    const uint64_t hash = (rng_at(1, n) & 0x7ffff) | (rng_at(2, n) << 32);
    return (struct id){hash, (uint32_t)rng_at(3, n), 8, ID_UNSIGNED, bytes};
}

static void shadow_forget(struct shadow *s, uint32_t row)
{
    assert_int_not_equal(s->owner[row], 0);
    s->row[s->owner[row] - 1] = ID_NO_ROW;
    s->owner[row] = 0;
    s->live--;
}

static void assert_finds(const struct shadow *s, int every)
{
    char bytes[8];
    for (uint64_t n = 0; n < NUMBERS; n += (uint64_t)every)
        assert_int_equal(find(id_numbered(n, bytes)), s->row[n]);
}

static void random_ids_keep_their_rows_through_growth_removal_and_expiry(void **state)
{
    (void)state;
    enum { TTL_MS = 4000000 };
    open_with(&f, NUMBERS, 1, TTL_MS);
    static struct shadow s;
    struct rng rng = {17, 0};
    memset(&s, 0, sizeof s);
    for (int i = 0; i < NUMBERS; i++)
        s.row[i] = ID_NO_ROW;
    for (int call = 0; call < CALLS; call++) {
        const int64_t now_ms = TEST_START_MS + call * INT64_C(20);
        // More and more different ids, so that the index grows again and again.
        const uint64_t number = rng_below(&rng, 100 + (uint64_t)call / 4);
        char bytes[8];
        const struct id id = id_numbered(number, bytes);
        bool created;
        assert_int_equal(find(id), s.row[number]);
        if (s.row[number] >= 0 && rng_below(&rng, 4) == 0) {
            const uint32_t row = (uint32_t)s.row[number];
            id_table_remove(&f.table, row);
            shadow_forget(&s, row);
        } else {
            const int64_t row = id_table_see(&f.table, &id, now_ms, &created);
            assert_true(row >= 0 && row < NUMBERS);
            assert_int_equal(created, s.row[number] < 0);
            if (created) {
                assert_int_equal(s.owner[row], 0);
                assert_int_not_equal(id_table_row(&f.table, (uint32_t)row)->generation,
                                     s.generation[row]);
                s.generation[row] = id_table_row(&f.table, (uint32_t)row)->generation;
                s.owner[row] = (uint32_t)number + 1;
                s.row[number] = row;
                s.seen_ms[number] = now_ms;
                s.live++;
            } else {
                assert_int_equal(row, s.row[number]);
                if (now_ms > s.seen_ms[number] + 60000)
                    s.seen_ms[number] = now_ms;
            }
        }
        if (call % 50 == 0) {
            uint32_t rows[64];
            const int n = id_table_expire(&f.table, now_ms, 256, rows, 64);
            for (int i = 0; i < n; i++) {
                assert_true(s.seen_ms[s.owner[rows[i]] - 1] < now_ms - TTL_MS);
                shadow_forget(&s, rows[i]);
            }
        }
        if (call % 40000 == 0)
            assert_finds(&s, 1);
        assert_int_equal(id_table_state(&f.table)->live, s.live);
    }
    assert_true(id_table_state(&f.table)->expired > 1000);
    assert_finds(&s, 1);
    assert_int_equal(id_table_rebuild(&f.table), 0);
    assert_finds(&s, 1);
}

static void a_table_restored_from_its_columns_goes_on_alike(void **state)
{
    (void)state;
    open_with(&f, 5000, 2, 0);
    struct rng rng = {19, 0};
    for (int i = 0; i < 6000; i++)
        see(core_id("i", rng_below(&rng, 2000)), TEST_START_MS);
    for (uint32_t row = 0; row < 100; row += 7)
        id_table_remove(&f.table, row);
    struct core_copy copy;
    struct fixture other;
    core_copy_take(&copy, &f.set);
    open_with(&other, 5000, 2, 0);
    core_copy_restore(&copy, &other.set);
    core_copy_free(&copy);
    assert_int_equal(id_table_rebuild(&other.table), 0);
    for (int i = 0; i < 6000; i++) {
        const struct id id = core_id("i", rng_below(&rng, 4000));
        bool created, created_too;
        assert_int_equal(id_table_see(&f.table, &id, TEST_START_MS, &created),
                         id_table_see(&other.table, &id, TEST_START_MS, &created_too));
        assert_int_equal(created, created_too);
    }
    core_copy_take(&copy, &f.set);
    core_copy_assert_equal(&copy, &other.set, NULL, NULL);
    core_copy_free(&copy);
    id_table_close(&other.table);
    columns_close(&other.set);
}

#define TEST(name) cmocka_unit_test_teardown(name, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(an_id_keeps_its_row_and_its_bytes),
        TEST(an_id_of_up_to_eight_bytes_needs_no_block),
        TEST(a_short_id_with_a_block_is_read_and_freed_like_others),
        TEST(one_hash_with_another_check_is_another_row),
        TEST(ids_that_were_chosen_to_collide_are_found_as_fast_as_others),
        TEST(the_nth_sighting_admits),
        TEST(a_catalogue_admits_at_once),
        TEST(sightings_of_a_month_ago_are_forgotten),
        TEST(a_sighting_from_before_midnight_counts_after_it),
        TEST(a_full_filter_forgets_the_least_seen),
        TEST(the_filter_is_large_enough_for_a_large_table),
        TEST(a_row_handed_out_again_has_another_generation),
        TEST(a_full_table_counts_who_is_refused),
        TEST(expiry_follows_event_time_alone),
        TEST(the_search_for_expired_rows_goes_on_where_it_stopped),
        TEST(two_rows_of_one_id_are_refused_when_rebuilding),
        TEST(the_index_is_made_by_several_threads_while_rows_come),
        TEST(rows_that_were_not_told_of_are_found),
        TEST(two_rows_of_one_id_are_refused_whichever_thread_has_them),
        TEST(random_ids_keep_their_rows_through_growth_removal_and_expiry),
        TEST(a_table_restored_from_its_columns_goes_on_alike),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
