// SPDX-License-Identifier: Apache-2.0
#include "pipeline/join.h"

#include "tests/unit/core_fixture.h"

enum { WINDOW_MS = 60000, SHORT_MS = 10000, LATENESS_MS = 20000 };

static const struct join_window windows[] = {{"hover", SHORT_MS}, {"buy", 2 * WINDOW_MS}};
static const struct rows_options rows_options = {
    .items_max = 2000, .users_max = 500, .admit_items = 1, .admit_users = 1};
static struct join_options options;
static struct core_join w;
static struct core_event e;

static int setup(void **state)
{
    (void)state;
    options = (struct join_options){
        .window_ms = WINDOW_MS, .lateness_ms = LATENESS_MS, .bytes_max = 1 << 20};
    core_join_open(&w, &rows_options, &options);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    core_join_close(&w);
    return 0;
}

static void reopen(void)
{
    core_join_close(&w);
    core_join_open(&w, &rows_options, &options);
}

static void reopen_with_windows(void)
{
    options.windows = windows;
    options.n_windows = 2;
    reopen();
}

#define AT(ms) (TEST_START_MS + (ms))

// Every step is followed by the identity of the header.
static void push(const struct event *event)
{
    join_push(&w.join, event);
    assert_true(join_balanced(&w.join));
}

static void advance(int64_t ms)
{
    join_advance(&w.join, AT(ms));
    assert_true(join_balanced(&w.join));
}

static void show(int64_t ms, uint64_t request, uint64_t user, int n, ...)
{
    uint64_t items[16];
    va_list list;
    va_start(list, n);
    for (int i = 0; i < n; i++)
        items[i] = (uint64_t)va_arg(list, int);
    va_end(list);
    push(core_impression(&e, AT(ms), request, user, n, items));
}

static void engage(int64_t ms, int64_t request, uint64_t user, uint64_t item, const char *action)
{
    push(core_engagement(&e, AT(ms), request, user, item, action));
}

static void assert_out(enum topic topic, enum outcome outcome, uint64_t n)
{
    const uint64_t found = join_counts(&w.join)->out[topic][outcome];
    if (found != n)
        fail_msg("%s %s: %" PRIu64 ", expected %" PRIu64, topic_names[topic],
                 outcome_names[outcome], found, n);
}

static void assert_pending(enum topic topic, uint64_t n)
{
    assert_int_equal(join_counts(&w.join)->pending[topic], n);
}

static void assert_left(int i, uint64_t user, uint64_t item, bool positive)
{
    assert_true(i < w.n_left);
    assert_int_equal(w.left[i].user, user);
    assert_int_equal(w.left[i].item, item);
    assert_int_equal(w.left[i].positive, positive);
}

// The watermark passes a time when it is in a later second.
enum { BUCKET_MS = 1000 };

static void a_positive_leaves_at_once_with_all_that_is_known_of_it(void **state)
{
    (void)state;
    options.user_features = 2;
    reopen();
    uint64_t items[] = {5, 6};
    const struct event *shown = core_impression(&e, AT(1000), 1, 3, 2, items);
    e.event.n_features = 1; // fewer than are kept
    e.event.features = (const float[]){0.5f};
    e.items[1].propensity = 0.25f;
    push(shown);
    assert_int_equal(w.n_left, 0);
    assert_pending(TOPIC_IMPRESSIONS, 2);
    const struct event *click = core_engagement(&e, AT(4000), 1, 3, 6, "click");
    e.event.value = 2.5f;
    push(click);
    assert_int_equal(w.n_left, 1);
    assert_left(0, 3, 6, true);
    assert_int_equal(w.left[0].ts_ms, AT(1000));
    assert_int_equal(w.left[0].engaged_ms, AT(4000));
    assert_int_equal(w.left[0].position, 1);
    assert_true(w.left[0].value == 2.5f && w.left[0].feature == 0.5f);
    assert_out(TOPIC_ENGAGEMENTS, JOINED, 1);
    assert_out(TOPIC_IMPRESSIONS, JOINED, 1);
    assert_pending(TOPIC_IMPRESSIONS, 1);
}

static void every_action_on_an_impression_is_one_positive(void **state)
{
    (void)state;
    show(0, 1, 1, 1, 5);
    engage(1000, 1, 1, 5, "click");
    engage(2000, 1, 1, 5, "like");
    engage(3000, 1, 1, 5, "click");
    assert_int_equal(w.n_left, 2);
    assert_int_equal(w.left[0].action, 0);
    assert_int_equal(w.left[1].action, 1);
    assert_memory_equal(join_action(&w.join, 0).bytes, "click", 5);
    assert_memory_equal(join_action(&w.join, 1).bytes, "like", 4);
    assert_int_equal(join_action(&w.join, 2).size, 0);
    assert_out(TOPIC_ENGAGEMENTS, JOINED, 2);
    assert_out(TOPIC_ENGAGEMENTS, DUPLICATE, 1);
    assert_out(TOPIC_IMPRESSIONS, JOINED, 1);
}

static void negatives_leave_when_the_window_closes_oldest_first(void **state)
{
    (void)state;
    show(0, 1, 1, 2, 10, 11);
    show(5000, 2, 2, 1, 12);
    show(7000, 3, 1, 1, 13);
    engage(8000, 1, 1, 11, "click");
    advance(WINDOW_MS);
    assert_int_equal(w.n_left, 1);
    advance(WINDOW_MS + BUCKET_MS);
    assert_int_equal(w.n_left, 2);
    assert_left(1, 1, 10, false);
    assert_int_equal(w.left[1].engaged_ms, AT(0));
    advance(WINDOW_MS + 20000);
    assert_int_equal(w.n_left, 4);
    assert_left(2, 2, 12, false);
    assert_left(3, 1, 13, false);
    assert_out(TOPIC_IMPRESSIONS, EXPIRED, 3);
    assert_int_equal(join_counts(&w.join)->negatives, 3);
    assert_int_equal(join_counts(&w.join)->positives, 1);
    assert_pending(TOPIC_IMPRESSIONS, 0);
}

// The wait for early records must not hold up what has a shorter window.
static void a_window_shorter_than_lateness_closes_in_time(void **state)
{
    (void)state;
    options.window_ms = 5000;
    reopen();
    show(0, 1, 1, 1, 10);
    advance(5000 + BUCKET_MS);
    assert_int_equal(w.n_left, 1);
    engage(4000, 1, 1, 10, "click"); // inside its window, but after the watermark
    assert_out(TOPIC_ENGAGEMENTS, LATE, 1);
}

static void an_engagement_before_its_impression_is_joined(void **state)
{
    (void)state;
    engage(2000, 1, 1, 5, "click");
    assert_pending(TOPIC_ENGAGEMENTS, 1);
    push(core_score(&e, AT(0), 1, 1));
    assert_pending(TOPIC_SCORES, 1);
    show(0, 1, 1, 2, 4, 5);
    assert_int_equal(w.n_left, 1);
    assert_left(0, 1, 5, true);
    assert_out(TOPIC_ENGAGEMENTS, JOINED, 1);
    assert_out(TOPIC_SCORES, JOINED, 1);
    assert_pending(TOPIC_ENGAGEMENTS, 0);
    push(core_score(&e, AT(0), 1, 1));
    assert_out(TOPIC_SCORES, JOINED, 2);
}

static void an_engagement_may_seem_earlier_than_its_impression_by_lateness(void **state)
{
    (void)state;
    show(30000, 1, 1, 2, 5, 6);
    engage(30000 - LATENESS_MS, 1, 1, 5, "click");
    assert_out(TOPIC_ENGAGEMENTS, JOINED, 1);
    engage(30000 - LATENESS_MS - 1, 1, 1, 6, "click");
    advance(30000 + WINDOW_MS + BUCKET_MS);
    assert_out(TOPIC_ENGAGEMENTS, JOINED, 1);
    assert_out(TOPIC_ENGAGEMENTS, ORPHAN, 1);
}

static void without_its_impression_an_engagement_is_an_orphan_after_lateness(void **state)
{
    (void)state;
    engage(0, 1, 1, 5, "click");
    push(core_score(&e, AT(0), 2, 1));
    advance(LATENESS_MS);
    assert_pending(TOPIC_ENGAGEMENTS, 1);
    advance(LATENESS_MS + BUCKET_MS);
    assert_pending(TOPIC_ENGAGEMENTS, 0);
    assert_out(TOPIC_ENGAGEMENTS, ORPHAN, 1);
    assert_out(TOPIC_SCORES, ORPHAN, 1);
    assert_int_equal(w.n_left, 0);
    // The request is new when its impression does come.
    show(0, 1, 1, 1, 5);
    assert_pending(TOPIC_IMPRESSIONS, 1);
}

static void each_action_has_its_own_window(void **state)
{
    (void)state;
    reopen_with_windows();
    show(0, 1, 1, 5, 1, 2, 3, 4, 5);
    engage(SHORT_MS, 1, 1, 1, "hover");
    engage(SHORT_MS + 1, 1, 1, 2, "hover");
    engage(WINDOW_MS, 1, 1, 3, "click");
    engage(WINDOW_MS + 1, 1, 1, 4, "click");
    engage(2 * WINDOW_MS, 1, 1, 5, "buy");
    assert_out(TOPIC_ENGAGEMENTS, JOINED, 3);
    assert_out(TOPIC_ENGAGEMENTS, LATE, 2);
    assert_left(0, 1, 1, true);
    assert_left(1, 1, 3, true);
    assert_left(2, 1, 5, true);
    // Impressions wait for the longest of them.
    advance(2 * WINDOW_MS);
    assert_int_equal(w.n_left, 3);
    advance(2 * WINDOW_MS + BUCKET_MS);
    assert_int_equal(w.n_left, 5);
}

static void without_a_request_it_belongs_to_the_latest_impression_of_the_item(void **state)
{
    (void)state;
    show(0, 1, 1, 2, 5, 6);
    show(10000, 2, 1, 1, 5);
    show(11000, 3, 2, 1, 5); // another user
    show(12000, 4, 1, 1, 7); // another item
    show(20000, 5, 1, 1, 5); // after the engagement
    show(5000, 6, 1, 1, 5);  // arrives last and is not the latest
    engage(15000, CORE_NO_REQUEST, 1, 5, "click");
    assert_int_equal(w.n_left, 1);
    assert_left(0, 1, 5, true);
    assert_int_equal(w.left[0].ts_ms, AT(10000));
    assert_int_equal(join_counts(&w.join)->last_touch, 1);
    engage(15000, CORE_NO_REQUEST, 1, 6, "click");
    assert_int_equal(w.left[1].ts_ms, AT(0));
}

static void without_a_request_the_last_1024_of_the_user_are_looked_at(void **state)
{
    (void)state;
    show(0, 1, 1, 1, 5);
    for (uint64_t i = 0; i < LAST_TOUCH_REQUESTS_MAX - 1; i++)
        show(1000, 2 + i, 1, 1, 6);
    engage(2000, CORE_NO_REQUEST, 1, 5, "click");
    assert_left(0, 1, 5, true);
    show(1000, 5000, 1, 1, 6);
    engage(2000, CORE_NO_REQUEST, 1, 5, "like");
    assert_int_equal(w.n_left, 1);
    assert_pending(TOPIC_ENGAGEMENTS, 1);
    engage(2000, 1, 1, 5, "like"); // by its name it is found
    assert_left(1, 1, 5, true);
}

static void outside_the_window_the_latest_impression_is_late(void **state)
{
    (void)state;
    reopen_with_windows();
    show(0, 1, 1, 1, 5);
    engage(SHORT_MS + 1, CORE_NO_REQUEST, 1, 5, "hover");
    assert_out(TOPIC_ENGAGEMENTS, LATE, 1);
    assert_int_equal(w.n_left, 0);
    assert_int_equal(join_counts(&w.join)->last_touch, 0);
}

static void without_a_request_it_waits_for_an_impression_up_to_lateness(void **state)
{
    (void)state;
    engage(5000, CORE_NO_REQUEST, 1, 5, "click");
    engage(5000, CORE_NO_REQUEST, 1, 6, "click");
    assert_pending(TOPIC_ENGAGEMENTS, 2);
    show(4000, 1, 1, 1, 5);
    advance(5000 + LATENESS_MS + BUCKET_MS);
    assert_out(TOPIC_ENGAGEMENTS, JOINED, 1);
    assert_out(TOPIC_ENGAGEMENTS, ORPHAN, 1);
    assert_int_equal(join_counts(&w.join)->last_touch, 1);
    assert_left(0, 1, 5, true);
    assert_pending(TOPIC_ENGAGEMENTS, 0);
}

static void the_same_impression_twice_is_a_duplicate_at_another_place_it_is_not(void **state)
{
    (void)state;
    show(0, 1, 1, 2, 5, 6);
    show(0, 1, 1, 2, 5, 6);
    assert_out(TOPIC_IMPRESSIONS, DUPLICATE, 2);
    show(0, 1, 1, 2, 6, 5); // swapped
    assert_out(TOPIC_IMPRESSIONS, DUPLICATE, 2);
    assert_pending(TOPIC_IMPRESSIONS, 4);
    uint64_t items[] = {5};
    const struct event *unknown = core_impression(&e, AT(0), 1, 1, 1, items);
    e.items[0].position = -1;
    push(unknown);
    assert_out(TOPIC_IMPRESSIONS, DUPLICATE, 3);
}

static void what_a_closed_request_gets_is_late_and_without_impression_orphan(void **state)
{
    (void)state;
    show(0, 1, 1, 1, 5);
    advance(WINDOW_MS + BUCKET_MS);
    engage(1000, 1, 1, 5, "click");
    assert_out(TOPIC_ENGAGEMENTS, LATE, 1);
    engage(1000, 1, 1, 6, "click"); // was not shown
    assert_out(TOPIC_ENGAGEMENTS, ORPHAN, 1);
    push(core_score(&e, AT(0), 1, 1));
    assert_out(TOPIC_SCORES, LATE, 1);
    show(WINDOW_MS / 2, 1, 1, 1, 7); // more of the closed request
    assert_out(TOPIC_IMPRESSIONS, LATE, 1);
    // It is remembered for one more window.
    advance(2 * WINDOW_MS + BUCKET_MS);
    engage(1000, 1, 1, 5, "click");
    advance(2 * WINDOW_MS + 3 * BUCKET_MS); // its lateness is long over
    assert_out(TOPIC_ENGAGEMENTS, LATE, 1);
    assert_out(TOPIC_ENGAGEMENTS, ORPHAN, 2);
}

static void an_impression_whose_window_is_over_is_late(void **state)
{
    (void)state;
    advance(WINDOW_MS);
    show(0, 1, 1, 3, 5, 6, 7);
    assert_out(TOPIC_IMPRESSIONS, LATE, 3);
    show(1, 1, 1, 1, 5);
    assert_pending(TOPIC_IMPRESSIONS, 1);
}

static void a_request_of_many_records_is_one_request(void **state)
{
    (void)state;
    for (int i = 0; i < 30; i++) {
        uint64_t items[] = {(uint64_t)i};
        const struct event *one = core_impression(&e, AT(i), 1, 1, 1, items);
        e.items[0].position = i;
        push(one);
        if (i % 3 == 0)
            engage(100 + i, 1, 1, (uint64_t)i + 1, "click"); // of the next record
    }
    assert_out(TOPIC_ENGAGEMENTS, JOINED, 10);
    for (int i = 0; i < w.n_left; i++) {
        assert_int_equal(w.left[i].position, 3 * i + 1);
        assert_int_equal(w.left[i].ts_ms, AT(0)); // of the first
    }
    advance(WINDOW_MS + BUCKET_MS);
    assert_out(TOPIC_IMPRESSIONS, EXPIRED, 20);
    assert_int_equal(w.n_left, 30);
}

static void a_second_user_under_a_request_gets_nothing_of_it(void **state)
{
    (void)state;
    show(0, 1, 1, 1, 5);
    show(0, 1, 2, 2, 5, 6);
    assert_out(TOPIC_IMPRESSIONS, DUPLICATE, 2);
    engage(10, 1, 1, 5, "click");
    assert_left(0, 1, 5, true);
}

static void a_request_takes_a_thousand_impressions(void **state)
{
    (void)state;
    for (int i = 0; i < 1010; i += 10) {
        uint64_t items[10];
        for (int k = 0; k < 10; k++)
            items[k] = (uint64_t)(i + k);
        push(core_impression(&e, AT(0), 1, 1, 10, items));
    }
    assert_pending(TOPIC_IMPRESSIONS, 1000);
    assert_out(TOPIC_IMPRESSIONS, REJECTED, 10);
    assert_int_equal(join_counts(&w.join)->refused[TOPIC_IMPRESSIONS][REFUSED_REQUEST_FULL], 10);
    engage(1, 1, 1, 999, "click");
    assert_left(0, 1, 999, true);
}

static void a_request_keeps_256_waiting_records(void **state)
{
    (void)state;
    for (int i = 0; i < 260; i++)
        engage(i, 1, 1, (uint64_t)i, "click");
    assert_pending(TOPIC_ENGAGEMENTS, 256);
    assert_int_equal(join_counts(&w.join)->refused[TOPIC_ENGAGEMENTS][REFUSED_REQUEST_FULL], 4);
    show(0, 1, 1, 3, 0, 255, 256);
    assert_out(TOPIC_ENGAGEMENTS, JOINED, 2);
    assert_int_equal(w.left[0].item, 0); // in the order of arrival
    assert_int_equal(w.left[1].item, 255);
}

static void more_than_32_actions_or_too_long_a_name_are_refused(void **state)
{
    (void)state;
    show(0, 1, 1, 1, 5);
    char name[80];
    for (int i = 0; i < 34; i++) {
        snprintf(name, sizeof name, "action%d", i);
        engage(1, 1, 1, 5, name);
        if (i == 0) {
            memset(name, 'x', 63);
            name[63] = 0;
            engage(1, 1, 1, 5, name);
        }
    }
    assert_int_equal(w.n_left, 32);
    assert_int_equal(join_counts(&w.join)->refused[TOPIC_ENGAGEMENTS][REFUSED_ACTIONS_FULL], 3);
}

static void a_full_join_refuses_new_requests_and_goes_on_when_some_have_left(void **state)
{
    (void)state;
    options.bytes_max = 0;
    reopen();
    for (uint64_t r = 0; r < 70; r++)
        show(0, r, 1, 1, 5);
    assert_pending(TOPIC_IMPRESSIONS, 64);
    assert_int_equal(join_counts(&w.join)->refused[TOPIC_IMPRESSIONS][REFUSED_JOIN_FULL], 6);
    engage(1, 200, 1, 5, "click");
    engage(1, 3, 1, 5, "click"); // an open one works
    push(core_score(&e, AT(0), 201, 1));
    assert_int_equal(join_counts(&w.join)->refused[TOPIC_ENGAGEMENTS][REFUSED_JOIN_FULL], 1);
    assert_int_equal(join_counts(&w.join)->refused[TOPIC_SCORES][REFUSED_JOIN_FULL], 1);
    assert_out(TOPIC_ENGAGEMENTS, JOINED, 1);
    advance(2 * WINDOW_MS + 2 * BUCKET_MS);
    show(2 * WINDOW_MS, 300, 1, 1, 5);
    assert_pending(TOPIC_IMPRESSIONS, 1);
}

static void users_and_items_that_are_not_admitted_are_refused(void **state)
{
    (void)state;
    struct rows_options twice = rows_options;
    twice.admit_items = twice.admit_users = 2;
    core_join_close(&w);
    core_join_open(&w, &twice, &options);
    show(0, 1, 1, 2, 5, 6);
    show(0, 1, 1, 2, 5, 6);
    show(0, 1, 1, 2, 5, 6);
    assert_int_equal(join_counts(&w.join)->refused[TOPIC_IMPRESSIONS][REFUSED_UNKNOWN_USER], 2);
    assert_int_equal(join_counts(&w.join)->refused[TOPIC_IMPRESSIONS][REFUSED_UNKNOWN_ITEM], 2);
    assert_pending(TOPIC_IMPRESSIONS, 2);
    engage(0, 1, 2, 5, "click");
    engage(0, 1, 1, 9, "click");
    assert_int_equal(join_counts(&w.join)->refused[TOPIC_ENGAGEMENTS][REFUSED_UNKNOWN_USER], 1);
    assert_int_equal(join_counts(&w.join)->refused[TOPIC_ENGAGEMENTS][REFUSED_UNKNOWN_ITEM], 1);
}

static void what_expired_while_it_waited_is_counted_and_dropped(void **state)
{
    (void)state;
    show(0, 1, 1, 2, 5, 6);
    const struct id item = core_id("i", 5);
    rows_remove_item(&w.rows, (uint32_t)id_table_find(&w.rows.items, &item));
    show(0, 2, 1, 1, 7); // takes the row
    engage(10, 2, 1, 7, "click");
    advance(WINDOW_MS + BUCKET_MS);
    assert_int_equal(join_counts(&w.join)->stale, 1);
    assert_int_equal(w.n_left, 2);
    assert_left(0, 1, 7, true);
    assert_left(1, 1, 6, false);
    assert_out(TOPIC_IMPRESSIONS, EXPIRED, 2);
}

static void the_watermark_never_moves_back(void **state)
{
    (void)state;
    assert_int_equal(join_watermark(&w.join), INT64_MIN);
    advance(5000);
    advance(1000);
    assert_int_equal(join_watermark(&w.join), AT(5000));
}

static void a_watermark_far_ahead_closes_everything_in_order(void **state)
{
    (void)state;
    for (uint64_t r = 0; r < 20; r++)
        show((int64_t)r * 3000, r, 1, 1, (int)r);
    advance(INT64_C(400) * 24 * 3600000);
    assert_int_equal(w.n_left, 20);
    for (int i = 0; i < 20; i++)
        assert_int_equal(w.left[i].item, i);
    assert_int_equal(id_table_state(&w.join.request)->live, 0); // nothing is remembered either
}

static void what_was_rejected_before_is_counted_by_reason(void **state)
{
    (void)state;
    join_rejected(&w.join, TOPIC_IMPRESSIONS, REJECT_BAD_ID, 3);
    join_rejected(&w.join, TOPIC_ENGAGEMENTS, REJECT_TOMBSTONE, 2);
    assert_out(TOPIC_IMPRESSIONS, REJECTED, 3);
    assert_int_equal(join_counts(&w.join)->rejected[TOPIC_IMPRESSIONS][REJECT_BAD_ID], 3);
    assert_int_equal(join_counts(&w.join)->tombstones, 2);
    assert_true(join_balanced(&w.join));
    push(core_item(&e, AT(0), 5, "five", false));
    assert_out(TOPIC_ITEMS, JOINED, 1);
}

static void memory_of_closed_requests_comes_back(void **state)
{
    (void)state;
    size_t bytes = 0, sessions = 0;
    for (int round = 0; round < 30; round++) {
        for (uint64_t r = 0; r < 50; r++) {
            show(round * 200000, (uint64_t)round * 100 + r, r, 3, 1, 2, 3);
            engage(round * 200000, (uint64_t)round * 100 + r, r, 9, "click");
        }
        advance(round * 200000 + 150000);
        if (round == 0) {
            bytes = heap_bytes(&w.join.items);
            sessions = w.join.session.n;
        }
        w.n_left = 0;
    }
    assert_int_equal(heap_bytes(&w.join.items), bytes);
    assert_int_equal(w.join.session.n, sessions);
    assert_int_equal(w.join.waiting.n, 50);
}

static void a_join_restored_from_its_columns_goes_on_alike(void **state)
{
    (void)state;
    reopen_with_windows();
    show(0, 1, 1, 3, 5, 6, 7);
    engage(100, 2, 1, 8, "buy");
    engage(100, CORE_NO_REQUEST, 2, 5, "click");
    engage(100, 1, 1, 6, "hover");
    push(core_score(&e, AT(0), 3, 1));
    static struct core_join other;
    core_join_restart(&other, &w, &rows_options, &options);
    w.n_left = 0;
    static struct core_event space[5];
    const struct event *events[] = {
        core_impression(&space[0], AT(50), 2, 1, 2, (uint64_t[]){8, 9}),
        core_impression(&space[1], AT(60), 4, 2, 1, (uint64_t[]){5}),
        core_engagement(&space[2], AT(SHORT_MS + 1), 1, 1, 7, "hover"),
        core_engagement(&space[3], AT(900), 1, 1, 6, "hover"),
        core_engagement(&space[4], AT(900), 1, 1, 6, "like"),
    };
    for (size_t i = 0; i < sizeof events / sizeof *events; i++) {
        push(events[i]);
        join_push(&other.join, events[i]);
    }
    advance(4 * WINDOW_MS);
    join_advance(&other.join, AT(4 * WINDOW_MS));
    assert_int_equal(w.n_left, other.n_left);
    assert_true(w.n_left > 4);
    assert_memory_equal(w.left, other.left, sizeof *w.left * (size_t)w.n_left);
    struct core_copy copy;
    core_copy_take(&copy, &w.columns);
    core_copy_assert_equal(&copy, &other.columns, NULL, NULL);
    core_copy_free(&copy);
    core_join_close(&other);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_positive_leaves_at_once_with_all_that_is_known_of_it),
        TEST(every_action_on_an_impression_is_one_positive),
        TEST(negatives_leave_when_the_window_closes_oldest_first),
        TEST(a_window_shorter_than_lateness_closes_in_time),
        TEST(an_engagement_before_its_impression_is_joined),
        TEST(an_engagement_may_seem_earlier_than_its_impression_by_lateness),
        TEST(without_its_impression_an_engagement_is_an_orphan_after_lateness),
        TEST(each_action_has_its_own_window),
        TEST(without_a_request_it_belongs_to_the_latest_impression_of_the_item),
        TEST(without_a_request_the_last_1024_of_the_user_are_looked_at),
        TEST(outside_the_window_the_latest_impression_is_late),
        TEST(without_a_request_it_waits_for_an_impression_up_to_lateness),
        TEST(the_same_impression_twice_is_a_duplicate_at_another_place_it_is_not),
        TEST(what_a_closed_request_gets_is_late_and_without_impression_orphan),
        TEST(an_impression_whose_window_is_over_is_late),
        TEST(a_request_of_many_records_is_one_request),
        TEST(a_second_user_under_a_request_gets_nothing_of_it),
        TEST(a_request_takes_a_thousand_impressions),
        TEST(a_request_keeps_256_waiting_records),
        TEST(more_than_32_actions_or_too_long_a_name_are_refused),
        TEST(a_full_join_refuses_new_requests_and_goes_on_when_some_have_left),
        TEST(users_and_items_that_are_not_admitted_are_refused),
        TEST(what_expired_while_it_waited_is_counted_and_dropped),
        TEST(the_watermark_never_moves_back),
        TEST(a_watermark_far_ahead_closes_everything_in_order),
        TEST(what_was_rejected_before_is_counted_by_reason),
        TEST(memory_of_closed_requests_comes_back),
        TEST(a_join_restored_from_its_columns_goes_on_alike),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
