// SPDX-License-Identifier: Apache-2.0
#include "pipeline/join.h"

#include <errno.h>
#include <math.h>

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

// A robot with large requests: what an engagement costs stays bounded.
static void without_a_request_16384_impressions_of_the_user_are_looked_at(void **state)
{
    enum { FULL = LAST_TOUCH_IMPRESSIONS_MAX / REQUEST_IMPRESSIONS_MAX };
    (void)state;
    show(0, 1, 1, 1, 2000);
    for (uint64_t request = 2; request < 2 + FULL + 1; request++) {
        if (request == 2 + FULL) { // 16,000 are there: it is still found
            engage(2000, CORE_NO_REQUEST, 1, 2000, "click");
            assert_left(0, 1, 2000, true);
        }
        for (uint64_t i = 0; i < REQUEST_IMPRESSIONS_MAX; i += 10) {
            uint64_t items[10];
            for (uint64_t k = 0; k < 10; k++)
                items[k] = i + k;
            push(core_impression(&e, AT(1000), request, 1, 10, items));
        }
    }
    engage(2000, CORE_NO_REQUEST, 1, 2000, "like");
    assert_int_equal(w.n_left, 1);
    assert_pending(TOPIC_ENGAGEMENTS, 1);
    engage(2000, 1, 1, 2000, "like"); // by its name it is found
    assert_left(1, 1, 2000, true);
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

// Two thousand requests are open meanwhile: whoever looked at all of them once for every turn of
// the wheel in twenty years would not be done today.
static void a_watermark_that_jumps_by_years_closes_every_window_at_its_time(void **state)
{
    enum { SECONDS = 200, EACH = 10 };
    const int64_t years_ms = INT64_C(20) * 365 * 86400 * 1000;
    (void)state;
    options.bytes_max = 16 << 20;
    reopen();
    show(-years_ms, 0, 1, 1, 5); // a clock that was never set
    advance(-years_ms + 1);
    for (uint64_t s = 1; s <= SECONDS; s++)
        for (uint64_t k = 0; k < EACH; k++)
            show((int64_t)s * 1000, s * EACH + k, 1 + k, 1, 5);
    advance(0); // only the old one is over
    assert_out(TOPIC_IMPRESSIONS, EXPIRED, 1);
    assert_pending(TOPIC_IMPRESSIONS, SECONDS * EACH);
    for (uint64_t s = 1; s <= SECONDS; s += 37) {
        advance(WINDOW_MS + (int64_t)s * 1000 + BUCKET_MS);
        assert_out(TOPIC_IMPRESSIONS, EXPIRED, 1 + s * EACH);
        w.n_left = 0; // the fixture keeps so many only
    }
    engage(SECONDS * 1000, SECONDS * EACH, 1, 5, "click"); // the last ones are open
    assert_out(TOPIC_ENGAGEMENTS, JOINED, 1);
    advance(SECONDS * 1000 + 5 * WINDOW_MS);
    assert_pending(TOPIC_IMPRESSIONS, 0);
}

static void a_join_that_sheds_refuses_a_share_of_new_requests_with_all_their_records(void **state)
{
    (void)state;
    enum { REQUESTS = 400 };
    show(0, 1000, 1, 1, 5);
    join_shed(&w.join, 300);
    for (uint64_t r = 0; r < REQUESTS; r++) {
        show(1, r, 1 + r % 50, 1, 5);
        engage(2, (int64_t)r, 1 + r % 50, 5, "click");
        push(core_score(&e, AT(3), r, 1 + r % 50));
    }
    const struct join_counts *c = join_counts(&w.join);
    const uint64_t shed = c->refused[TOPIC_IMPRESSIONS][REFUSED_SHED];
    assert_in_range(shed, REQUESTS * 3 / 10 - 40, REQUESTS * 3 / 10 + 40);
    assert_int_equal(c->refused[TOPIC_ENGAGEMENTS][REFUSED_SHED], shed);
    assert_int_equal(c->refused[TOPIC_SCORES][REFUSED_SHED], shed);
    assert_out(TOPIC_ENGAGEMENTS, JOINED, REQUESTS - shed);
    join_shed(&w.join, 1000); // none is new any more, but what is open goes on
    engage(4, 1000, 1, 5, "click");
    assert_out(TOPIC_ENGAGEMENTS, JOINED, REQUESTS - shed + 1);
    show(5, 2000, 1, 1, 5);
    assert_int_equal(c->refused[TOPIC_IMPRESSIONS][REFUSED_SHED], shed + 1);
    join_shed(&w.join, 0);
    show(6, 2000, 1, 1, 5);
    assert_int_equal(c->refused[TOPIC_IMPRESSIONS][REFUSED_SHED], shed + 1);
}

static void how_full_the_join_is_follows_what_is_open(void **state)
{
    (void)state;
    options.bytes_max = 64 << 10; // 268 requests, 2,048 granules and some
    reopen();
    assert_true(join_fill(&w.join) == 0);
    for (uint64_t r = 0; r < 134; r++)
        show(0, r, 1, 1, 5);
    assert_true(join_fill(&w.join) > 0.49 && join_fill(&w.join) < 0.51); // by requests
    const double before = join_fill(&w.join);
    for (uint64_t r = 134; r < 200; r++)
        show(0, r, 1, 16, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16);
    assert_true(join_fill(&w.join) > before + 0.2);
    advance(2 * WINDOW_MS + 2 * BUCKET_MS);
    assert_true(join_fill(&w.join) == 0);
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

// Slates.

static const char *const two_tasks[] = {"like", "*"};
enum { LIKE, REST };

// What left as slates, with the numbers of its users and items instead of rows.
static struct seen_slates {
    int n;
    struct {
        struct slate slate;
        float scores[SLATE_ITEMS_MAX][2];
    } list[600];
} seen, seen_other;

static void see_slate_in(struct seen_slates *s, const struct core_join *from,
                         const struct slate *slate, const float *scores)
{
    const size_t tasks = (size_t)from->join.options.n_tasks;
    assert_true(s->n < 600 && slate->n_items > 0 && slate->n_items <= SLATE_ITEMS_MAX);
    struct slate *copy = &s->list[s->n].slate;
    *copy = *slate;
    copy->user = (uint32_t)core_number(&from->rows.users, slate->user);
    for (int i = 0; i < slate->n_items; i++) {
        copy->items[i].item = (uint32_t)core_number(&from->rows.items, slate->items[i].item);
        for (size_t t = 0; t < tasks; t++)
            s->list[s->n].scores[i][t] = scores[(size_t)i * tasks + t];
    }
    s->n++;
}

static void see_slate(void *arg, const struct slate *slate, const float *scores,
                      const float *user_features)
{
    (void)user_features;
    see_slate_in(&seen, arg, slate, scores);
}

static void see_other_slate(void *arg, const struct slate *slate, const float *scores,
                            const float *user_features)
{
    (void)user_features;
    see_slate_in(&seen_other, arg, slate, scores);
}

static void reopen_with_slates(void)
{
    options.slates = true;
    reopen();
    w.join.slate = see_slate;
    memset(&seen, 0, sizeof seen);
}

static void reopen_with_two_tasks(void)
{
    options.tasks = two_tasks;
    options.n_tasks = 2;
    reopen_with_slates();
}

// A record of one score for each item: score[i] of items[i], all of one name.
static void score_as(int64_t ms, uint64_t request, const char *ranker, const char *name, int n,
                     const uint64_t *items, const float *values)
{
    struct event_score scores[16];
    core_score(&e, AT(ms), request, 1);
    e.event.ranker = (struct text){ranker, (uint32_t)strlen(ranker)};
    e.event.n_items = n;
    for (int i = 0; i < n; i++) {
        scores[i] = (struct event_score){{name, (uint32_t)strlen(name)}, values[i]};
        e.items[i] = (struct event_item){
            .item = core_id("i", items[i]), .position = -1, .n_scores = 1, .scores = &scores[i]};
    }
    push(&e.event);
}

static void score(int64_t ms, uint64_t request, const char *ranker, uint64_t item, float value)
{
    score_as(ms, request, ranker, "click", 1, &item, &value);
}

static void show_at(int64_t ms, uint64_t request, uint64_t item, int position)
{
    core_impression(&e, AT(ms), request, 1, 1, &item);
    e.items[0].position = position;
    push(&e.event);
}

static void show_on(int64_t ms, uint64_t request, const char *surface)
{
    core_impression(&e, AT(ms), request, 1, 1, &(uint64_t){1});
    e.event.surface = (struct text){surface, surface ? (uint32_t)strlen(surface) : 0};
    push(&e.event);
}

static void close_all(void)
{
    advance(INT64_C(100) * 24 * 3600000);
}

static void assert_slate(int i, enum slate_kind kind, int n, ...)
{
    assert_true(i < seen.n);
    assert_int_equal(seen.list[i].slate.kind, kind);
    assert_int_equal(seen.list[i].slate.n_items, n);
    va_list list;
    va_start(list, n);
    for (int k = 0; k < n; k++)
        assert_int_equal(seen.list[i].slate.items[k].item, va_arg(list, int));
    va_end(list);
}

static void assert_labels(int i, int n, ...)
{
    va_list list;
    va_start(list, n);
    for (int k = 0; k < n; k++)
        assert_int_equal(seen.list[i].slate.items[k].labels, va_arg(list, int));
    va_end(list);
}

// Of the first task; a NAN where NAN is expected.
static void assert_scores(int i, int n, ...)
{
    va_list list;
    va_start(list, n);
    for (int k = 0; k < n; k++) {
        const float expected = (float)va_arg(list, double), found = seen.list[i].scores[k][0];
        if (!(found == expected || (isnan(found) && isnan(expected))))
            fail_msg("score %d: %g, expected %g", k, (double)found, (double)expected);
    }
    va_end(list);
}

static void assert_count(enum slate_count count, uint64_t n)
{
    const uint64_t found = join_slate_counts(&w.join)[count];
    if (found != n)
        fail_msg("%s: %" PRIu64 ", expected %" PRIu64, slate_count_names[count], found, n);
}

// Granules of blocks that are not in a free list.
static size_t heap_in_use(const struct heap *h)
{
    const uint32_t *heads = column_at(&h->free, 0);
    size_t n = h->granule.n - 1, size = 0;
    for (int class = 0; class < HEAP_CLASSES; class ++) {
        size = heap_capacity(size + 1);
        for (uint32_t block = heads[class]; block; block = *(const uint32_t *)heap_at(h, block))
            n -= size;
    }
    return n;
}

static void a_request_leaves_as_a_slate_when_its_window_closes(void **state)
{
    (void)state;
    reopen_with_slates();
    show_at(0, 1, 10, 3);
    show_at(10, 1, 11, -1);
    show_at(20, 1, 12, 1);
    show_at(30, 1, 13, -1);
    show_at(40, 1, 14, 3); // a tie: as they came
    core_impression(&e, AT(50), 1, 1, 1, &(uint64_t){15});
    e.items[0].position = 40000; // as far as a slate can tell
    e.items[0].propensity = 0.5f;
    push(&e.event);
    engage(1000, 1, 1, 12, "click");
    engage(2000, 1, 1, 12, "like");
    engage(3000, 1, 1, 13, "click");
    advance(WINDOW_MS);
    assert_int_equal(seen.n, 0);
    advance(WINDOW_MS + BUCKET_MS);
    assert_int_equal(seen.n, 1);
    assert_slate(0, SLATE_CLOSED, 6, 12, 10, 14, 15, 11, 13);
    assert_labels(0, 6, 1, 0, 0, 0, 0, 1);
    assert_scores(0, 6, NAN, NAN, NAN, NAN, NAN, NAN);
    const struct slate *slate = &seen.list[0].slate;
    assert_int_equal(slate->user, 1);
    assert_int_equal(slate->ts_ms, AT(0));
    assert_int_equal(slate->ranker, 0);
    assert_false(slate->repeated);
    assert_int_equal(slate->items[0].position, 1);
    assert_int_equal(slate->items[3].position, INT16_MAX);
    assert_true(slate->items[3].propensity == 0.5f);
    assert_int_equal(slate->items[5].position, -1);
    for (int i = 0; i < 6; i++)
        assert_true(slate->items[i].shown);
    assert_count(SLATES_CLOSED, 1);
    assert_count(SLATES_UNTAUGHT, 1);
    assert_count(SLATE_ITEMS, 6);
    assert_count(SLATE_LABELS, 2);
    close_all();
    assert_int_equal(seen.n, 1);
}

static void scores_come_with_the_slate_whenever_they_arrived(void **state)
{
    (void)state;
    for (int early = 0; early < 2; early++) {
        reopen_with_slates();
        push(core_item(&e, AT(0), 5, "five", false));
        push(core_item(&e, AT(0), 6, "six", false));
        push(core_item(&e, AT(0), 7, "seven", false));
        push(core_item(&e, AT(0), 8, "eight", false));
        if (!early)
            show(1000, 1, 1, 3, 5, 6, 7);
        score_as(900, 1, "v1", "click", 3, (uint64_t[]){8, 7, 5}, (float[]){0.8f, 0.7f, 0.5f});
        if (early) {
            assert_pending(TOPIC_SCORES, 1);
            show(1000, 1, 1, 3, 5, 6, 7);
        }
        assert_out(TOPIC_SCORES, JOINED, 1);
        close_all();
        assert_int_equal(seen.n, 1);
        assert_slate(0, SLATE_CLOSED, 4, 5, 6, 7, 8); // what was only scored comes last
        assert_scores(0, 4, 0.5f, NAN, 0.7f, 0.8f);
        assert_int_equal(seen.list[0].slate.ranker, 1);
        assert_true(seen.list[0].slate.items[2].shown);
        assert_false(seen.list[0].slate.items[3].shown);
        assert_int_equal(seen.list[0].slate.items[3].position, -1);
        assert_count(SCORES_KEPT, 3);
        assert_count(SLATE_ITEMS_SCORED, 3);
        assert_count(SLATES_UNTAUGHT, 0);
    }
}

static void of_too_many_items_the_engaged_stay_then_the_shown_then_the_scored(void **state)
{
    (void)state;
    reopen_with_slates();
    push(core_item(&e, AT(0), 900, "nine", false));
    for (int i = 0; i < 70; i++)
        show_at(0, 1, (uint64_t)(100 + i), i);
    for (int i = 0; i < 63; i++)
        show_at(0, 2, (uint64_t)(100 + i), i);
    push(core_item(&e, AT(0), 901, "nine", false));
    score(0, 1, "v1", 900, 1);
    score(0, 2, "v1", 900, 2);
    score(0, 2, "v1", 901, 3);
    engage(10, 1, 1, 168, "click");
    engage(10, 1, 1, 100, "click");
    close_all();
    assert_int_equal(seen.n, 2);
    const struct slate *slate = &seen.list[0].slate;
    assert_int_equal(slate->n_items, 64);
    for (int i = 0; i < 63; i++)
        assert_int_equal(slate->items[i].item, 100 + i);
    assert_int_equal(slate->items[63].item, 168);
    assert_labels(0, 2, 1, 0);
    assert_int_equal(slate->items[63].labels, 1);
    slate = &seen.list[1].slate;
    assert_int_equal(slate->n_items, 64);
    assert_int_equal(slate->items[62].item, 162);
    assert_int_equal(slate->items[63].item, 900); // came before 901
    assert_false(slate->items[63].shown);
    assert_count(SLATE_ITEMS_CUT, 6 + 1 + 1);
    assert_count(SLATE_ITEMS, 128);
    assert_count(SLATE_LABELS, 2);
}

static void more_engaged_than_a_slate_takes_are_kept_in_order(void **state)
{
    (void)state;
    reopen_with_slates();
    for (int i = 0; i < 80; i++)
        show_at(0, 1, (uint64_t)i, 80 - i); // the last comes first
    for (uint64_t i = 0; i < 70; i++)
        engage(10, 1, 1, i, "click");
    close_all();
    assert_int_equal(seen.list[0].slate.n_items, 64);
    assert_int_equal(seen.list[0].slate.items[0].item, 69);
    assert_int_equal(seen.list[0].slate.items[63].item, 6);
    assert_count(SLATE_LABELS, 64);
    assert_count(SLATE_ITEMS_CUT, 16);
}

static void two_ranker_versions_make_two_slates(void **state)
{
    (void)state;
    reopen_with_slates();
    push(core_item(&e, AT(0), 7, "seven", false));
    push(core_item(&e, AT(0), 8, "eight", false));
    show(0, 1, 1, 2, 5, 6);
    score(0, 1, "v2", 6, 0.6f);
    score(0, 1, "v1", 5, 0.1f);
    score(0, 1, "v1", 6, 0.2f);
    score(0, 1, "v2", 7, 0.7f);
    score(0, 1, "v1", 8, 0.8f);
    engage(10, 1, 1, 5, "click");
    close_all();
    assert_int_equal(seen.n, 2);
    assert_slate(0, SLATE_CLOSED, 3, 5, 6, 7);
    assert_scores(0, 3, NAN, 0.6f, 0.7f);
    assert_slate(1, SLATE_CLOSED, 3, 5, 6, 8);
    assert_scores(1, 3, 0.1f, 0.2f, 0.8f);
    assert_false(seen.list[0].slate.repeated);
    assert_true(seen.list[1].slate.repeated);
    assert_int_equal(seen.list[0].slate.ranker, 1); // in the order in which they were heard of
    assert_int_equal(seen.list[1].slate.ranker, 2);
    assert_labels(0, 3, 1, 0, 0);
    assert_count(SLATES_CLOSED, 1);
    assert_count(SLATES_SPLIT, 1);
    assert_count(SLATE_LABELS, 1);
    assert_count(SLATE_ITEMS_SCORED, 5);
}

static void of_two_scores_of_a_version_the_later_counts(void **state)
{
    (void)state;
    for (int early = 0; early < 2; early++) {
        reopen_with_slates();
        push(core_item(&e, AT(0), 5, "five", false));
        push(core_item(&e, AT(0), 6, "six", false));
        if (!early)
            show(5000, 1, 1, 2, 5, 6);
        score(4000, 1, "v1", 5, 1);
        score(4500, 1, "v1", 5, 2);
        score(4200, 1, "v1", 5, 3); // arrives last, was made before
        score(4000, 1, "v1", 6, 4);
        score(4000, 1, "v1", 6, 5); // of one time: the one that comes last
        if (early)
            show(5000, 1, 1, 2, 5, 6);
        close_all();
        assert_scores(0, 2, 2.0, 5.0);
        assert_count(SCORES_DUPLICATE, 3);
        assert_count(SCORES_KEPT, 2);
    }
}

static void stale_scores_are_masked_but_their_record_is_joined(void **state)
{
    (void)state;
    options.score_max_age_ms = 2000;
    for (int early = 0; early < 2; early++) {
        reopen_with_slates();
        push(core_item(&e, AT(0), 5, "five", false));
        push(core_item(&e, AT(0), 6, "six", false));
        push(core_item(&e, AT(0), 7, "seven", false));
        if (!early)
            show(10000, 1, 1, 3, 5, 6, 7);
        score(7999, 1, "v1", 5, 0.5f);
        score(8000, 1, "v1", 6, 0.6f);
        score(12000, 1, "v1", 7, 0.7f);
        if (early)
            show(10000, 1, 1, 3, 5, 6, 7);
        close_all();
        assert_scores(0, 3, NAN, 0.6f, 0.7f);
        assert_count(SCORES_STALE, 1);
        assert_out(TOPIC_SCORES, JOINED, 3);
    }
    options.score_max_age_ms = 0;
    reopen_with_slates();
    show(100000, 1, 1, 1, 5);
    score(0, 1, "v1", 5, 0.5f);
    close_all();
    assert_scores(0, 1, 0.5f);
}

static void scoring_an_item_does_not_admit_it(void **state)
{
    (void)state;
    reopen_with_slates();
    show(0, 1, 1, 1, 5);
    score_as(0, 1, "v1", "click", 2, (uint64_t[]){77, 5}, (float[]){0.7f, 0.5f});
    const struct id id = core_id("i", 77);
    assert_int_equal(id_table_find(&w.rows.items, &id), ID_NO_ROW);
    close_all();
    assert_slate(0, SLATE_CLOSED, 1, 5);
    assert_scores(0, 1, 0.5f);
    assert_count(SCORES_UNKNOWN_ITEM, 1);
    assert_count(SCORES_KEPT, 1);
}

static void scores_after_the_close_are_late_and_a_slate_without_any_is_untaught(void **state)
{
    (void)state;
    reopen_with_slates();
    show(0, 1, 1, 2, 5, 6);
    advance(WINDOW_MS + BUCKET_MS);
    score_as(10, 1, "v1", "click", 2, (uint64_t[]){5, 6}, (float[]){1, 2});
    assert_out(TOPIC_SCORES, LATE, 1);
    assert_count(SCORES_LATE, 2);
    assert_count(SLATES_UNTAUGHT, 1);
    close_all();
    assert_int_equal(seen.n, 1);
    assert_int_equal(seen.list[0].slate.ranker, 0);
}

static void ranker_versions_beyond_255_are_masked(void **state)
{
    (void)state;
    reopen_with_slates();
    show(0, 1, 1, 1, 5);
    char name[80];
    for (int i = 0; i < 257; i++) {
        snprintf(name, sizeof name, "v%d", i);
        score(0, 1, i == 200 ? "" : name, 5, (float)i); // no name is a version too
    }
    memset(name, 'x', 63);
    name[63] = 0;
    score(0, 1, name, 5, 1);
    assert_count(SCORES_UNKNOWN_RANKER, 3);
    close_all();
    assert_int_equal(seen.n, 255);
    for (int i = 0; i < 255; i++) {
        assert_int_equal(seen.list[i].slate.ranker, i + 1);
        assert_scores(i, 1, (double)i);
        assert_int_equal(seen.list[i].slate.repeated, i > 0);
    }
    assert_count(SLATES_SPLIT, 254);
}

static void tasks_take_the_actions_and_scores_that_carry_their_name(void **state)
{
    (void)state;
    reopen_with_two_tasks();
    show(0, 1, 1, 3, 5, 6, 7);
    engage(10, 1, 1, 5, "like");
    engage(10, 1, 1, 6, "click");
    engage(10, 1, 1, 6, "share");
    engage(10, 1, 1, 6, "like");
    assert_int_equal(w.join.action_task[0], LIKE);
    assert_int_equal(w.join.action_task[1], REST);
    const struct event_score scores[] = {
        {{"click", 5}, 0.5f}, {{"like", 4}, 0.25f}, {{"share", 5}, 0.75f}};
    core_score(&e, AT(0), 1, 1);
    e.items[0] = (struct event_item){.item = core_id("i", 6), .n_scores = 3, .scores = scores};
    push(&e.event);
    close_all();
    assert_labels(0, 3, 1 << LIKE, 1 << LIKE | 1 << REST, 0);
    assert_true(seen.list[0].scores[1][LIKE] == 0.25f && seen.list[0].scores[1][REST] == 0.5f);
    assert_true(isnan(seen.list[0].scores[0][LIKE]) && isnan(seen.list[0].scores[0][REST]));
    assert_count(SCORES_SAME_TASK, 1);
    assert_count(SLATE_LABELS, 3);
    assert_count(ENGAGEMENTS_WITHOUT_TASK, 0);
}

static uint8_t tasks_left[8];
static int n_tasks_left;

static void note_task(void *arg, const struct labelled *l)
{
    (void)arg;
    tasks_left[n_tasks_left++] = l->task;
}

static void what_no_task_names_is_counted_and_has_none(void **state)
{
    (void)state;
    options.tasks = two_tasks;
    options.n_tasks = 1; // "like" alone
    reopen_with_slates();
    w.join.emit = note_task;
    n_tasks_left = 0;
    show(0, 1, 1, 2, 5, 6);
    engage(10, 1, 1, 5, "like");
    engage(10, 1, 1, 5, "click");
    score(0, 1, "v1", 5, 0.5f); // of "click"
    score_as(0, 1, "v1", "like", 1, (uint64_t[]){6}, (float[]){0.6f});
    close_all();
    assert_int_equal(n_tasks_left, 3);
    assert_int_equal(tasks_left[0], 0);
    assert_int_equal(tasks_left[1], TASK_NONE);
    assert_int_equal(tasks_left[2], TASK_NONE); // a negative
    assert_labels(0, 2, 1, 0);
    assert_scores(0, 2, NAN, 0.6f);
    assert_count(ENGAGEMENTS_WITHOUT_TASK, 1);
    assert_count(SCORES_WITHOUT_TASK, 1);
}

static void how_old_the_scores_of_a_version_are_is_known(void **state)
{
    (void)state;
    options.score_max_age_ms = 5000;
    reopen_with_slates();
    show(0, 1, 1, 2, 5, 6);
    score(100, 1, "v1", 5, 0.5f);
    score(-200, 1, "v1", 6, 0.5f);
    score(300, 1, "v2", 5, 0.5f);
    score(-6000, 1, "v2", 6, 0.5f); // too old to be used
    score(900, 1, "v2", 77, 0.5f);  // of no item that is known
    score(900, 1, "v3", 77, 0.5f);
    assert_int_equal(join_ranker_times(&w.join, 1)->oldest_ms, AT(-200));
    assert_int_equal(join_ranker_times(&w.join, 1)->newest_ms, AT(100));
    assert_int_equal(join_ranker_times(&w.join, 2)->oldest_ms, AT(300));
    assert_int_equal(join_ranker_times(&w.join, 2)->newest_ms, AT(300));
    assert_null(join_ranker_times(&w.join, 3)); // nothing of it was kept
}

static uint8_t surface_left;

static void note_surface(void *arg, const struct labelled *l)
{
    (void)arg;
    surface_left = l->surface;
}

static void surfaces_have_small_numbers_and_those_beyond_seven_none(void **state)
{
    (void)state;
    static const char *const names[] = {"home", NULL, "search", "home", "3", "4",
                                        "5",    "6",  "7",      "8",    "7"};
    static const int numbers[] = {1, 0, 2, 1, 3, 4, 5, 6, 7, 0, 7};
    reopen_with_slates();
    for (int i = 0; i < 11; i++)
        show_on(i, (uint64_t)i, names[i]);
    char name[80];
    memset(name, 'x', 63);
    name[63] = 0;
    show_on(11, 11, name);
    w.join.emit = note_surface;
    engage(20, 8, 1, 1, "click");
    assert_int_equal(surface_left, 7);
    close_all();
    assert_int_equal(seen.n, 12);
    for (int i = 0; i < 11; i++)
        assert_int_equal(seen.list[i].slate.surface, numbers[i]);
    assert_int_equal(seen.list[11].slate.surface, 0);
    assert_count(SURFACES_UNNUMBERED, 2);
}

static void what_expired_is_left_out_of_slates(void **state)
{
    (void)state;
    reopen_with_slates();
    push(core_item(&e, AT(0), 7, "seven", false));
    push(core_item(&e, AT(0), 8, "eight", false));
    show(0, 1, 1, 2, 5, 6);
    show(0, 2, 1, 1, 5);
    show(0, 3, 2, 1, 6);
    score(0, 1, "v1", 7, 0.7f);
    score(0, 1, "v1", 8, 0.8f);
    score(0, 1, "v1", 6, 0.6f);
    struct id id = core_id("i", 5);
    rows_remove_item(&w.rows, (uint32_t)id_table_find(&w.rows.items, &id));
    id = core_id("i", 7);
    rows_remove_item(&w.rows, (uint32_t)id_table_find(&w.rows.items, &id));
    push(core_item(&e, AT(0), 50, "takes a row", false));
    push(core_item(&e, AT(0), 51, "takes the other", false));
    id = core_id("u", 2);
    id_table_remove(&w.rows.users, (uint32_t)id_table_find(&w.rows.users, &id));
    close_all();
    assert_int_equal(seen.n, 1);
    assert_slate(0, SLATE_CLOSED, 2, 6, 8);
    assert_scores(0, 2, 0.6f, 0.8f);
    assert_count(SLATES_EXPIRED, 2);
    assert_count(SLATES_CLOSED, 1);
}

static void with_a_feedback_delay_labels_leave_early_and_later_ones_once(void **state)
{
    (void)state;
    options.feedback_delay_ms = 10000;
    reopen_with_two_tasks();
    show(0, 1, 1, 3, 5, 6, 7);
    score(0, 1, "v1", 5, 0.5f);
    engage(1000, 1, 1, 5, "click");
    advance(10000);
    assert_int_equal(seen.n, 0);
    advance(10000 + BUCKET_MS);
    assert_int_equal(seen.n, 1);
    assert_slate(0, SLATE_EARLY, 3, 5, 6, 7);
    assert_labels(0, 3, 1 << REST, 0, 0);
    assert_scores(0, 3, NAN, NAN, NAN);
    engage(12000, 1, 1, 5, "share"); // the task is known of this impression
    assert_int_equal(seen.n, 1);
    engage(13000, 1, 1, 5, "like");
    engage(13000, 1, 1, 5, "like");
    engage(14000, 1, 1, 6, "click");
    assert_int_equal(seen.n, 3);
    assert_slate(1, SLATE_LATE_POSITIVE, 1, 5);
    assert_labels(1, 1, 1 << LIKE);
    assert_slate(2, SLATE_LATE_POSITIVE, 1, 6);
    assert_labels(2, 1, 1 << REST);
    assert_int_equal(seen.list[2].slate.items[0].position, 1);
    assert_int_equal(seen.list[2].slate.ts_ms, AT(0));
    advance(WINDOW_MS);
    assert_int_equal(seen.n, 3);
    advance(WINDOW_MS + BUCKET_MS);
    assert_int_equal(seen.n, 4);
    assert_slate(3, SLATE_CLOSED, 3, 5, 6, 7);
    assert_labels(3, 3, 1 << REST | 1 << LIKE, 1 << REST, 0);
    assert_int_equal(seen.list[3].slate.ranker, 1);
    engage(20000, 1, 1, 7, "like");
    assert_out(TOPIC_ENGAGEMENTS, LATE, 1);
    close_all();
    assert_int_equal(seen.n, 4);
    assert_count(SLATES_EARLY, 1);
    assert_count(SLATES_LATE_POSITIVE, 2);
    assert_count(SLATES_CLOSED, 1);
}

static void the_early_slate_comes_before_the_closed_one_however_late_it_is(void **state)
{
    (void)state;
    options.window_ms = 8000; // shorter than lateness
    options.feedback_delay_ms = 3000;
    reopen_with_slates();
    advance(0);
    engage(4000, 1, 1, 5, "click"); // is looked at at 24,000
    show(0, 1, 1, 2, 5, 6);
    show(0, 2, 1, 1, 7);
    advance(14000);
    assert_int_equal(seen.n, 2); // the second's
    advance(24000 + BUCKET_MS);
    assert_int_equal(seen.n, 4); // both at once: its windows are over too
    assert_slate(0, SLATE_EARLY, 1, 7);
    assert_slate(1, SLATE_CLOSED, 1, 7);
    assert_slate(2, SLATE_EARLY, 2, 5, 6);
    assert_slate(3, SLATE_CLOSED, 2, 5, 6);
    for (uint64_t r = 10; r < 13; r++)
        show(30000 + (int64_t)r * 1000, r, 1, 1, (int)r);
    close_all(); // in one step, and yet in order
    assert_slate(4, SLATE_EARLY, 1, 10);
    assert_slate(5, SLATE_EARLY, 1, 11);
    assert_slate(6, SLATE_EARLY, 1, 12);
    assert_slate(7, SLATE_CLOSED, 1, 10);
    assert_slate(9, SLATE_CLOSED, 1, 12);
    assert_int_equal(id_table_state(&w.join.request)->live, 0);
}

static void a_delay_as_long_as_the_windows_is_none(void **state)
{
    (void)state;
    options.feedback_delay_ms = WINDOW_MS;
    reopen_with_slates();
    show(0, 1, 1, 1, 5);
    engage(1, 1, 1, 5, "click");
    close_all();
    assert_int_equal(seen.n, 1);
    assert_slate(0, SLATE_CLOSED, 1, 5);
}

static void the_heap_is_empty_when_all_is_closed_and_forgotten(void **state)
{
    (void)state;
    options.user_features = 3;
    options.feedback_delay_ms = 5000;
    reopen_with_two_tasks();
    for (uint64_t i = 0; i < 900; i++)
        push(core_item(&e, AT(0), i, "item", false));
    struct rng rng = {11, 0};
    for (int i = 0; i < 3000; i++) {
        uint64_t request = (uint64_t)i / 30 + rng_below(&rng, 5);
        if (rng_below(&rng, 20) == 0)
            request /= 2; // perhaps closed
        const int64_t ms = i * 100 - (int64_t)rng_below(&rng, 30000);
        uint64_t items[16];
        float values[16];
        for (int k = 0; k < 16; k++) {
            items[k] = rng_below(&rng, 900);
            values[k] = (float)k;
        }
        if (rng_below(&rng, 4) == 0) {
            core_impression(&e, AT(ms), request, request % 7, 16, items);
            e.event.n_features = 3;
            e.event.features = values;
            push(&e.event);
        } else if (rng_below(&rng, 3)) {
            const uint64_t never_shown = rng_below(&rng, 10) ? 0 : 5000;
            score_as(ms, request + never_shown, rng_below(&rng, 3) ? "v1" : "v2", "click", 16,
                     items, values);
        } else {
            engage(ms, (int64_t)request, request % 7, items[0], "like");
        }
        if (i % 10 == 0)
            advance(ms - 20000);
        seen.n = w.n_left = 0;
    }
    assert_true(heap_in_use(&w.join.items) > 0);
    assert_true(join_counts(&w.join)->out[TOPIC_SCORES][ORPHAN] > 0);
    close_all();
    assert_int_equal(id_table_state(&w.join.request)->live, 0);
    assert_int_equal(heap_in_use(&w.join.items), 0);
    assert_true(join_slate_counts(&w.join)[SLATES_SPLIT] > 5);
    assert_true(join_slate_counts(&w.join)[SCORES_LATE] > 0);
    for (int topic = 0; topic < TOPICS; topic++)
        assert_pending((enum topic)topic, 0);
}

static void a_request_keeps_16_kilobytes_of_scores(void **state)
{
    (void)state;
    reopen_with_slates();
    for (uint64_t i = 0; i < 1100; i++)
        push(core_item(&e, AT(0), i, "item", false));
    show(0, 1, 1, 1, 5);
    for (uint64_t i = 0; i < 1100; i += 10) {
        uint64_t items[10];
        float values[10];
        for (uint64_t k = 0; k < 10; k++) {
            items[k] = i + k;
            values[k] = (float)(i + k);
        }
        score_as(0, 1, "v1", "click", 10, items, values);
    }
    assert_count(SCORES_KEPT, 1024);
    assert_count(SCORES_FULL, 76);
    close_all();
    assert_scores(0, 3, 5.0, 0.0, 1.0);
    assert_count(SLATE_ITEMS_CUT, 1024 - 64);
    assert_int_equal(heap_in_use(&w.join.items), 0);
}

static void an_impression_of_a_scored_slate_takes_32_bytes(void **state)
{
    (void)state;
    reopen_with_slates();
    uint64_t items[16];
    float values[16];
    for (int i = 0; i < 16; i++) {
        items[i] = (uint64_t)i;
        values[i] = (float)i;
    }
    push(core_impression(&e, AT(0), 1, 1, 16, items));
    score_as(0, 1, "v1", "click", 16, items, values);
    assert_int_equal(heap_in_use(&w.join.items) * HEAP_GRANULE, 16 * 32);
    advance(WINDOW_MS + BUCKET_MS); // closed, and remembered without scores
    assert_int_equal(heap_in_use(&w.join.items) * HEAP_GRANULE, 16 * 16);
}

static void without_slates_nothing_of_them_is_kept(void **state)
{
    (void)state;
    const int columns = w.columns.n;
    w.join.slate = see_slate;
    seen.n = 0;
    show_on(0, 1, "home");
    score(0, 1, "v1", 1, 0.5f);
    w.join.emit = note_surface;
    engage(10, 1, 1, 1, "click");
    assert_int_equal(surface_left, 0);
    assert_int_equal(heap_in_use(&w.join.items), 1);
    close_all();
    assert_int_equal(seen.n, 0);
    assert_null(join_slate_counts(&w.join));
    reopen_with_slates();
    assert_int_equal(w.columns.n, columns + 6);
}

static void slates_of_a_restored_join_are_the_same(void **state)
{
    (void)state;
    options.feedback_delay_ms = 10000;
    options.score_max_age_ms = 5000;
    reopen_with_two_tasks();
    for (uint64_t i = 0; i < 12; i++)
        push(core_item(&e, AT(0), i, "item", false));
    show(0, 1, 1, 3, 5, 6, 7);
    score(0, 1, "v1", 6, 0.6f);
    advance(12000); // has left early
    show(13000, 2, 1, 2, 8, 9);
    score(12000, 2, "v2", 8, 0.8f);
    score(12000, 3, "v1", 10, 0.1f); // waits
    score(1000, 3, "v1", 11, 0.2f);  // likewise, and is stale
    engage(13000, 1, 1, 5, "click");
    static struct core_join other;
    core_join_restart(&other, &w, &rows_options, &options);
    other.join.slate = see_other_slate;
    seen.n = 0;
    memset(&seen_other, 0, sizeof seen_other);
    static struct core_event space[4];
    const struct event *events[] = {
        core_impression(&space[0], AT(14000), 3, 2, 2, (uint64_t[]){11, 10}),
        core_engagement(&space[1], AT(15000), 1, 1, 7, "like"),
        core_engagement(&space[2], AT(15000), 1, 1, 5, "share"), // its task has left already
        core_engagement(&space[3], AT(15000), 2, 1, 9, "click"),
    };
    for (size_t i = 0; i < sizeof events / sizeof *events; i++) {
        push(events[i]);
        join_push(&other.join, events[i]);
    }
    advance(4 * WINDOW_MS);
    join_advance(&other.join, AT(4 * WINDOW_MS));
    assert_int_equal(seen.n, 6); // one late positive, two early, three closed
    assert_int_equal(seen.n, seen_other.n);
    for (int i = 0; i < seen.n; i++)
        assert_memory_equal(&seen.list[i].slate, &seen_other.list[i].slate, sizeof(struct slate));
    assert_count(SCORES_STALE, 1);
    struct core_copy copy;
    core_copy_take(&copy, &w.columns);
    core_copy_assert_equal(&copy, &other.columns, NULL, NULL);
    core_copy_free(&copy);
    // Labels and scores of other tasks cannot be carried on.
    static const char *const swapped[] = {"*", "like"};
    other.join.options.tasks = swapped;
    assert_int_equal(join_rebuild(&other.join), -EINVAL);
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
        TEST(without_a_request_16384_impressions_of_the_user_are_looked_at),
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
        TEST(a_watermark_that_jumps_by_years_closes_every_window_at_its_time),
        TEST(a_join_that_sheds_refuses_a_share_of_new_requests_with_all_their_records),
        TEST(how_full_the_join_is_follows_what_is_open),
        TEST(a_full_join_refuses_new_requests_and_goes_on_when_some_have_left),
        TEST(users_and_items_that_are_not_admitted_are_refused),
        TEST(what_expired_while_it_waited_is_counted_and_dropped),
        TEST(the_watermark_never_moves_back),
        TEST(a_watermark_far_ahead_closes_everything_in_order),
        TEST(what_was_rejected_before_is_counted_by_reason),
        TEST(memory_of_closed_requests_comes_back),
        TEST(a_join_restored_from_its_columns_goes_on_alike),
        TEST(a_request_leaves_as_a_slate_when_its_window_closes),
        TEST(scores_come_with_the_slate_whenever_they_arrived),
        TEST(of_too_many_items_the_engaged_stay_then_the_shown_then_the_scored),
        TEST(more_engaged_than_a_slate_takes_are_kept_in_order),
        TEST(two_ranker_versions_make_two_slates),
        TEST(of_two_scores_of_a_version_the_later_counts),
        TEST(stale_scores_are_masked_but_their_record_is_joined),
        TEST(scoring_an_item_does_not_admit_it),
        TEST(scores_after_the_close_are_late_and_a_slate_without_any_is_untaught),
        TEST(ranker_versions_beyond_255_are_masked),
        TEST(tasks_take_the_actions_and_scores_that_carry_their_name),
        TEST(what_no_task_names_is_counted_and_has_none),
        TEST(how_old_the_scores_of_a_version_are_is_known),
        TEST(surfaces_have_small_numbers_and_those_beyond_seven_none),
        TEST(what_expired_is_left_out_of_slates),
        TEST(with_a_feedback_delay_labels_leave_early_and_later_ones_once),
        TEST(the_early_slate_comes_before_the_closed_one_however_late_it_is),
        TEST(a_delay_as_long_as_the_windows_is_none),
        TEST(the_heap_is_empty_when_all_is_closed_and_forgotten),
        TEST(a_request_keeps_16_kilobytes_of_scores),
        TEST(an_impression_of_a_scored_slate_takes_32_bytes),
        TEST(without_slates_nothing_of_them_is_kept),
        TEST(slates_of_a_restored_join_are_the_same),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
