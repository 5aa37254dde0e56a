// SPDX-License-Identifier: Apache-2.0
#include "pipeline/trainer.h"

#include <errno.h>
#include <math.h>

#include "model/tables.h"
#include "tests/unit/core_fixture.h"

enum { EVENTS_MAX = 3000 };

static struct core_event events[EVENTS_MAX];
static char texts[EVENTS_MAX * 16][16]; // ids of the events above

static struct id id_kept(const char *prefix, uint64_t n, char *text)
{
    const int size = snprintf(text, 16, "%s%" PRIu64, prefix, n);
    return id_of_text(text, (size_t)size);
}

static const struct event_score click_score[] = {
    {{"click", 5}, 0.5f}, {{"click", 5}, 0.9f}, {{"click", 5}, 0.1f}};

// A stream in time order: slates of four, scores of them, clicks on them, catalogue records.
static int make_stream(uint64_t seed, int n)
{
    struct rng rng = {seed, 0};
    int64_t ts = TEST_START_MS;
    for (int i = 0; i < n; i++) {
        char(*text)[16] = texts + i * 16;
        struct core_event *e = &events[i];
        ts += (int64_t)rng_below(&rng, 3000);
        const uint64_t request = (uint64_t)i / 4 - (i < 40 ? 0 : rng_below(&rng, 10));
        const uint64_t user = request % 13, first = request % 30;
        *e = (struct core_event){.event = {.ts_ms = ts, .items = e->items, .offset = i}};
        e->event.request = id_kept("r", request, text[0]);
        e->event.user = id_kept("u", user, text[1]);
        if (i % 4 == 0) {
            e->event.topic = TOPIC_IMPRESSIONS;
            e->event.n_items = 4;
            for (int k = 0; k < 4; k++)
                e->items[k] = (struct event_item){
                    .item = id_kept("i", first + (uint64_t)k, text[2 + k]), .position = k};
        } else if (i % 11 == 3) {
            e->event.topic = TOPIC_SCORES;
            e->event.n_items = 3;
            e->event.ranker = i % 2 ? (struct text){"v1", 2} : (struct text){"v2", 2};
            for (int k = 0; k < 3; k++)
                e->items[k] =
                    (struct event_item){.item = id_kept("i", first + 2 * (uint64_t)k, text[2 + k]),
                                        .position = -1,
                                        .n_scores = 1,
                                        .scores = &click_score[k]};
        } else if (i % 37 == 5) {
            e->event.topic = TOPIC_ITEMS;
            e->event.n_items = 1;
            e->event.removed = (uint8_t)(i % 2);
            e->items[0].item = id_kept("i", rng_below(&rng, 34), text[2]);
        } else {
            e->event.topic = TOPIC_ENGAGEMENTS;
            e->event.n_items = 1;
            e->event.value = 1;
            e->event.action = i % 3 ? (struct text){"click", 5} : (struct text){"like", 4};
            e->items[0].item = id_kept("i", first + rng_below(&rng, 5), text[2]);
        }
    }
    return n;
}

// Applies events [from, to) as one slice, with new values where there are any.
static void apply_valued(struct trainer *t, int from, int to, uint64_t number, bool last,
                         struct slice_values values)
{
    static struct slice_event list[EVENTS_MAX];
    for (int i = from; i < to; i++)
        list[i - from] = (struct slice_event){events[i].event.ts_ms, &events[i].event};
    int64_t next[] = {to, 2 * to}, time_max_ms[] = {to ? events[to - 1].event.ts_ms : 0, 7};
    struct slice slice = {.number = number,
                          .order = SLICE_CANONICAL,
                          .n_events = to - from,
                          .events = list,
                          .n_partitions = 2,
                          .next = next,
                          .time_max_ms = time_max_ms,
                          .epoch = unknown_epoch(),
                          .watermark_ms = INT64_MIN,
                          .values = values,
                          .last = last};
    if (last)
        slice.rejected[TOPIC_IMPRESSIONS][REJECT_BAD_ID] = 3;
    trainer_apply(t, &slice);
    assert_true(join_balanced(&t->join));
}

static void apply(struct trainer *t, int from, int to, uint64_t number, bool last)
{
    apply_valued(t, from, to, number, last, (struct slice_values){0});
}

// Slates, and something that learns from them.
static void slates_on(struct trainer_options *options, int slates, int batch)
{
    options->slates = slates;
    options->slate_batch = batch;
    options->model.objectives = (struct objective_options){
        .slates = batch,
        .tasks = 1,
        .value = {1, 1},
        .distill = {.weight = slates > 0, .temperature = 1},
        .preference = {.weight = slates > 0},
    };
}

static void the_same_events_in_other_slices_give_the_same_columns(void **state)
{
    (void)state;
    static struct trainer whole, parts;
    struct trainer_options options = core_trainer();
    const int n = make_stream(3, EVENTS_MAX);
    for (int kind = 0; kind < 4; kind++) {
        slates_on(&options, kind / 2 * 20, 6);
        options.join.feedback_delay_ms = 15000;
        options.model.kind = kind % 2 ? MODEL_TWO_TOWER : MODEL_RECIPE;
        options.model.hidden = 6;
        options.model.temperature = 1;
        options.negatives = kind % 2;
        assert_int_equal(trainer_open(&whole, &options), 0);
        apply(&whole, 0, n, 1, true);
        assert_int_equal(trainer_open(&parts, &options), 0);
        struct rng rng = {8, 0};
        uint64_t number = 1;
        for (int from = 0, to; from < n; from = to) {
            to = from + (int)rng_below(&rng, 60); // empty ones too
            to = to > n ? n : to;
            apply(&parts, from, to, number++, to == n);
        }
        assert_true(tables_state(two_tower_tables(whole.rows.model))->steps > 20);
        struct core_copy copy;
        core_copy_take(&copy, &whole.columns);
        core_copy_assert_equal(&copy, &parts.columns, NULL, "trainer.state");
        core_copy_free(&copy);
        assert_int_equal(trainer_state(&whole)->slices, 1);
        assert_int_equal(trainer_state(&parts)->slices, number - 1);
        assert_int_equal(trainer_state(&whole)->examples, trainer_state(&parts)->examples);
        assert_int_equal(trainer_state(&whole)->event_time_ms,
                         trainer_state(&parts)->event_time_ms);
        assert_int_equal(trainer_state(&whole)->remainder, trainer_state(&parts)->remainder);
        assert_int_equal(trainer_state(&whole)->slates, trainer_state(&parts)->slates);
        assert_int_equal(trainer_position(&parts, 1)->next, 2 * n);
        assert_int_equal(trainer_position(&parts, 1)->time_max_ms, 7);
        trainer_close(&whole);
        trainer_close(&parts);
    }
}

// All slates that one of two trainers hands out, with their scores.
static struct slates_heard {
    int n, learned;
    struct slate list[1024];
    float scores[1024][SLATE_ITEMS_MAX];
} heard[2];

static void hear_slates(void *arg, int n, const struct slate *slates, const float *scores)
{
    struct slates_heard *h = arg;
    for (int i = 0; i < n; i++) {
        assert_true(h->n < 1024);
        h->list[h->n] = slates[i];
        memcpy(h->scores[h->n++], scores + i * SLATE_ITEMS_MAX, sizeof *h->scores);
    }
}

static void a_trainer_restored_in_the_middle_goes_on_alike(void **state)
{
    (void)state;
    static struct trainer first, second;
    struct trainer_options options = core_trainer();
    const int n = make_stream(4, 1200);
    for (int slates = 0; slates < 2; slates++) {
        struct core_copy copy;
        slates_on(&options, slates * 30, 7);
        options.join.feedback_delay_ms = 15000;
        assert_int_equal(trainer_open(&first, &options), 0);
        assert_int_equal(trainer_open(&second, &options), 0);
        apply(&first, 0, n / 2, 1, false);
        assert_int_equal(trainer_state(&first)->slates > 0, slates);
        core_copy_take(&copy, &first.columns);
        core_copy_restore(&copy, &second.columns);
        core_copy_free(&copy);
        assert_int_equal(trainer_rebuild(&second), 0);
        memset(heard, 0, sizeof heard);
        first.arg = &heard[0];
        second.arg = &heard[1];
        first.score_slates = second.score_slates = hear_slates;
        apply(&first, n / 2, n, 2, false);
        apply(&second, n / 2, n, 2, false);
        trainer_finish(&first);
        trainer_finish(&second);
        core_copy_take(&copy, &first.columns);
        core_copy_assert_equal(&copy, &second.columns, NULL, NULL);
        core_copy_free(&copy);
        assert_int_equal(heard[0].n > 100, slates);
        assert_memory_equal(&heard[0], &heard[1], sizeof heard[0]);
        trainer_close(&first);
        trainer_close(&second);
    }
}

// What the hooks saw.
static struct seen {
    int n, steps, learned, replays, replayed;
    struct example list[1024];
} seen;

static void see_examples(void *arg, int n, const struct example *examples, const float *features)
{
    (void)arg;
    (void)features;
    for (int i = 0; i < n && seen.n < 1024; i++)
        seen.list[seen.n++] = examples[i];
}

static void see_step(void *arg, const struct step_report *report)
{
    (void)arg;
    if (report->replayed) {
        assert_true(seen.learned > 0); // after them, not before
        seen.replays++;
        seen.replayed += report->examples;
        return;
    }
    assert_true(seen.n > seen.learned); // scored before
    seen.steps++;
    seen.learned += report->examples;
}

static void open_seen(struct trainer *t, const struct trainer_options *options)
{
    assert_int_equal(trainer_open(t, options), 0);
    memset(&seen, 0, sizeof seen);
    t->score = see_examples;
    t->step = see_step;
}

static struct trainer t;

static void one(const struct event *event)
{
    struct slice_event list[] = {{event->ts_ms, event}};
    int64_t next[] = {0, 0};
    trainer_apply(&t, &(struct slice){.number = trainer_state(&t)->slices + 1,
                                      .order = SLICE_LIVE,
                                      .n_events = 1,
                                      .events = list,
                                      .n_partitions = 2,
                                      .next = next,
                                      .time_max_ms = next,
                                      .epoch = unknown_epoch(),
                                      .watermark_ms = INT64_MIN});
}

#define AT(ms) (TEST_START_MS + (ms))

static void show(int64_t ms, uint64_t request, uint64_t user, uint64_t item)
{
    static struct core_event e;
    one(core_impression(&e, AT(ms), request, user, 1, &item));
}

static void click(int64_t ms, uint64_t request, uint64_t user, uint64_t item)
{
    static struct core_event e;
    one(core_engagement(&e, AT(ms), (int64_t)request, user, item, "click"));
}

// The delays are part of the state: the tests of slices and of restoring compare them, too.
static void delays_are_counted_by_task(void **state)
{
    (void)state;
    struct trainer_options options = core_trainer();
    value_tasks_parse(&options.tasks, "like=2,click=1", NULL, 0);
    open_seen(&t, &options);
    show(0, 1, 1, 1);
    show(0, 2, 2, 2);
    show(0, 3, 3, 3);
    click(400, 1, 1, 1);
    click(3000, 2, 2, 2);
    click(3999, 3, 3, 3);
    struct core_event like, share;
    one(core_engagement(&like, AT(9000), 1, 1, 1, "like"));
    one(core_engagement(&share, AT(9000), 2, 2, 2, "share")); // no task
    const struct delay_histogram *h = trainer_delays(&t);
    uint64_t all = 0;
    for (int k = 0; k < DELAY_BUCKETS; k++)
        all += h->count[0][k] + h->count[1][k];
    assert_int_equal(all, 4);
    assert_int_equal(h->count[0][4], 1); // like, 8 to 16 s
    assert_int_equal(h->count[1][0], 1); // click, below 1 s
    assert_int_equal(h->count[1][2], 2); // 2 to 4 s
    trainer_close(&t);
}

static void assert_history(const struct example *e, int n, const uint64_t *items)
{
    assert_int_equal(e->n_history, n);
    for (int i = 0; i < n; i++)
        assert_int_equal(core_number(&t.rows.items, e->history[i]), items[i]);
}

static void examples_carry_the_history_as_of_their_impression(void **state)
{
    (void)state;
    const struct trainer_options options = core_trainer();
    open_seen(&t, &options);
    show(0, 1, 1, 10);
    show(1000, 2, 1, 11);
    show(3000, 3, 1, 12);
    click(2000, 1, 1, 10);
    click(4000, 2, 1, 11); // its impression was before the first click
    click(5000, 3, 1, 12);
    show(5000, 4, 1, 13);
    click(6000, 4, 1, 13); // the click at 5,000 is not before it
    trainer_finish(&t);
    assert_int_equal(seen.n, 4);
    assert_history(&seen.list[0], 0, NULL);
    assert_history(&seen.list[1], 0, NULL);
    assert_history(&seen.list[2], 1, (const uint64_t[]){10});
    assert_history(&seen.list[3], 2, (const uint64_t[]){11, 10});
    assert_int_equal(seen.list[3].ts_ms, AT(5000));
    const uint8_t gaps[] = {1, 2}, clicks[] = {1, 1}; // a second, three seconds
    assert_memory_equal(seen.list[3].gaps, gaps, sizeof gaps);
    assert_memory_equal(seen.list[3].actions, clicks, sizeof clicks);
    assert_int_equal(trainer_state(&t)->examples, 4);
    trainer_close(&t);
}

static void a_full_batch_is_scored_then_learned_and_the_end_learns_the_rest(void **state)
{
    (void)state;
    struct trainer_options options = core_trainer();
    options.chunk = 12; // of two steps, 8 and 4
    open_seen(&t, &options);
    for (uint64_t i = 0; i < 15; i++) {
        show((int64_t)i * 10, i, i, i);
        click((int64_t)i * 10 + 5, i, i, i);
        assert_int_equal(seen.n, i < 11 ? 0 : 12);
        assert_int_equal(seen.steps, i < 11 ? 0 : 2);
    }
    assert_int_equal(trainer_state(&t)->remainder, 3);
    trainer_finish(&t);
    assert_int_equal(seen.n, 15);
    assert_int_equal(seen.steps, 3);
    assert_int_equal(seen.learned, 15);
    assert_int_equal(trainer_state(&t)->remainder, 0);
    trainer_close(&t);
}

// What a restart does, with another chunk.
static void restart_with_chunk(int chunk)
{
    struct trainer_options options = t.options;
    struct core_copy copy;
    options.chunk = chunk;
    core_copy_take(&copy, &t.columns);
    trainer_close(&t);
    open_seen(&t, &options);
    core_copy_restore(&copy, &t.columns);
    core_copy_free(&copy);
    assert_int_equal(trainer_rebuild(&t), 0);
}

static void show_and_click(uint64_t from, uint64_t to)
{
    for (uint64_t i = from; i < to; i++) {
        show((int64_t)i * 10, i, i, i);
        click((int64_t)i * 10 + 5, i, i, i);
    }
}

static void examples_that_wait_outlive_restarts_with_a_larger_chunk(void **state)
{
    (void)state;
    struct trainer_options options = core_trainer();
    options.model.user_features = 2;
    open_seen(&t, &options);
    show_and_click(0, 5);
    restart_with_chunk(16);
    show_and_click(5, 12); // more than the first chunk had room for
    restart_with_chunk(16);
    assert_int_equal(trainer_state(&t)->remainder, 12);
    trainer_finish(&t);
    assert_int_equal(seen.n, 12);
    for (int i = 0; i < seen.n; i++)
        assert_int_equal(core_number(&t.rows.items, seen.list[i].item), i);
    trainer_close(&t);
}

static void a_batch_is_followed_by_a_replay_of_rows_that_are_still_theirs(void **state)
{
    (void)state;
    static struct core_event e;
    const struct trainer_options options = core_trainer(); // 3 of the newest 40
    open_seen(&t, &options);
    for (uint64_t i = 0; i < 8; i++) {
        show((int64_t)i * 10, i, i, 10);
        click((int64_t)i * 10 + 5, i, i, 10);
    }
    assert_int_equal(seen.replays, 1);
    assert_int_equal(seen.replayed, 3);
    assert_int_equal(trainer_state(&t)->remembered, 8);
    // All that is remembered is of item 10. It leaves, and 20 gets its row.
    one(core_item(&e, AT(1000), 10, NULL, true));
    for (uint64_t i = 8; i < 16; i++) {
        show((int64_t)i * 1000, i, i, 20);
        click((int64_t)i * 1000 + 5, i, i, 20);
    }
    assert_int_equal(trainer_state(&t)->remembered, 16);
    assert_true(seen.replayed < 6); // a draw of three from half and half; none of them of item 10
    for (uint64_t i = 16; i < 56; i++) { // the window has gone past them
        show((int64_t)i * 1000, i, i, 20);
        click((int64_t)i * 1000 + 5, i, i, 20);
    }
    const int before = seen.replayed;
    for (uint64_t i = 56; i < 64; i++) {
        show((int64_t)i * 1000, i, i, 20);
        click((int64_t)i * 1000 + 5, i, i, 20);
    }
    assert_int_equal(seen.replayed - before, 3);
    assert_int_equal(tables_state(two_tower_tables(t.rows.model))->examples, 64);
    trainer_close(&t);
}

static void the_end_closes_all_windows(void **state)
{
    (void)state;
    struct trainer_options options = core_trainer();
    options.negatives = true;
    open_seen(&t, &options);
    const int n = make_stream(5, 400);
    apply(&t, 0, n, 1, true);
    trainer_finish(&t);
    for (int topic = 0; topic < TOPICS; topic++)
        assert_int_equal(join_counts(&t.join)->pending[topic], 0);
    const struct join_counts *c = join_counts(&t.join);
    assert_true(c->negatives > 50 && c->positives > 20);
    // All that left is learned, but for what a removed item took along.
    assert_true(seen.learned > 100 &&
                (uint64_t)seen.learned <= c->negatives + c->positives - c->stale);
    assert_int_equal(c->rejected[TOPIC_IMPRESSIONS][REJECT_BAD_ID], 3);
    trainer_close(&t);
}

static int64_t heard_ms[1024];
static int heard_n;

static void hear_event(void *arg, const struct event *event)
{
    const struct join_counts *c = join_counts(&t.join);
    (void)arg;
    if (heard_n > 0)
        assert_true(event->ts_ms >= heard_ms[heard_n - 1]);
    heard_ms[heard_n++] = event->ts_ms;
    // The join has had it, and none of those that follow.
    assert_int_equal(c->in[TOPIC_IMPRESSIONS] + c->in[TOPIC_ENGAGEMENTS], heard_n);
}

static void each_event_is_heard_after_it_was_joined(void **state)
{
    struct core_event e[40];
    struct slice_event list[40];
    int64_t next[] = {0, 0};
    (void)state;
    struct trainer_options options = core_trainer();
    open_seen(&t, &options);
    t.event = hear_event;
    heard_n = 0;
    for (uint64_t i = 0; i < 40; i++) {
        const uint64_t request = i / 2, item = i / 2 % 10;
        const int64_t ms = AT((int64_t)i * 1000);
        const struct event *event =
            i % 2 ? core_engagement(&e[i], ms, (int64_t)request, request, item, "click")
                  : core_impression(&e[i], ms, request, request, 1, &item);
        list[i] = (struct slice_event){ms, event};
    }
    trainer_apply(&t, &(struct slice){.number = 1,
                                      .order = SLICE_LIVE,
                                      .n_events = 40,
                                      .events = list,
                                      .n_partitions = 2,
                                      .next = next,
                                      .time_max_ms = next,
                                      .epoch = unknown_epoch(),
                                      .watermark_ms = INT64_MIN});
    assert_int_equal(heard_n, 40);
    trainer_close(&t);
}

static void negatives_take_part_only_where_they_are_wanted(void **state)
{
    (void)state;
    for (int wanted = 0; wanted < 2; wanted++) {
        struct trainer_options options = core_trainer();
        options.negatives = wanted;
        open_seen(&t, &options);
        show(0, 1, 1, 10);
        show(0, 2, 1, 11);
        click(1000, 2, 1, 11);
        join_advance(&t.join, AT(0));
        trainer_finish(&t);
        assert_int_equal(seen.n, 1 + wanted);
        assert_true(seen.list[0].positive);
        if (wanted)
            assert_false(seen.list[1].positive);
        trainer_close(&t);
    }
}

static void a_removed_item_takes_waiting_examples_and_its_place_in_histories_along(void **state)
{
    (void)state;
    static struct core_event e;
    struct trainer_options options = core_trainer();
    options.model.user_features = 2;
    options.join.user_features = 2;
    open_seen(&t, &options);
    for (uint64_t i = 0; i < 4; i++) {
        show((int64_t)i * 1000, i, 1, 10 + i);
        click((int64_t)i * 1000 + 500, i, 1, 10 + i);
    }
    assert_int_equal(trainer_state(&t)->remainder, 4);
    one(core_item(&e, AT(4000), 11, NULL, true));
    assert_int_equal(trainer_state(&t)->remainder, 3);
    const struct id id = core_id("i", 11);
    assert_int_equal(id_table_find(&t.rows.items, &id), ID_NO_ROW);
    show(5000, 5, 1, 20); // gets the row
    click(5500, 5, 1, 20);
    trainer_finish(&t);
    assert_int_equal(seen.n, 4);
    assert_history(&seen.list[0], 0, NULL);
    assert_history(&seen.list[1], 1, (const uint64_t[]){10});
    assert_history(&seen.list[2], 2, (const uint64_t[]){12, 10});
    assert_history(&seen.list[3], 3, (const uint64_t[]){13, 12, 10});
    const uint8_t gaps[] = {0, 2}; // what is known of an event goes where its row goes
    assert_memory_equal(seen.list[2].gaps, gaps, sizeof gaps);
    one(core_item(&e, AT(6000), 999, NULL, true)); // never known
    assert_int_equal(join_counts(&t.join)->out[TOPIC_ITEMS][JOINED], 2);
    trainer_close(&t);
}

static void user_features_come_with_their_example(void **state)
{
    (void)state;
    static struct core_event e;
    struct trainer_options options = core_trainer();
    options.model.user_features = 2;
    options.join.user_features = 2;
    open_seen(&t, &options);
    for (uint64_t i = 0; i < 3; i++) {
        const uint64_t item = 10 + i;
        const float features[] = {(float)i + 1, 0.5f};
        const struct event *shown = core_impression(&e, AT(0), i, i, 1, &item);
        e.event.n_features = i == 1 ? 0 : 2;
        e.event.features = features;
        one(shown);
        click(1, i, i, item);
    }
    static const float expected[] = {1, 0.5f, 0, 0, 3, 0.5f};
    for (size_t i = 0; i < 3; i++)
        assert_memory_equal(column_at(&t.features, i), expected + 2 * i, 2 * sizeof(float));
    // Removing the first example's item moves the others up.
    one(core_item(&e, AT(10), 10, NULL, true));
    assert_memory_equal(column_at(&t.features, 1), expected + 4, 2 * sizeof(float));
    trainer_close(&t);
}

static void a_live_slice_moves_the_watermark_at_its_end(void **state)
{
    (void)state;
    const struct trainer_options options = core_trainer();
    assert_int_equal(trainer_open(&t, &options), 0);
    show(0, 1, 1, 10);
    assert_int_equal(join_watermark(&t.join), INT64_MIN);
    int64_t next[] = {5, 6}, time_max_ms[] = {7, 8};
    trainer_apply(&t, &(struct slice){.number = 2,
                                      .order = SLICE_LIVE,
                                      .n_partitions = 2,
                                      .next = next,
                                      .time_max_ms = time_max_ms,
                                      .epoch = unknown_epoch(),
                                      .watermark_ms = AT(500),
                                      .dead_letters = 99});
    assert_int_equal(join_watermark(&t.join), AT(500));
    assert_int_equal(trainer_state(&t)->dead_letters, 99);
    assert_int_equal(trainer_state(&t)->slices, 2);
    assert_int_equal(trainer_state(&t)->event_time_ms, AT(0));
    assert_int_equal(trainer_position(&t, 0)->next, 5);
    assert_int_equal(trainer_position(&t, 1)->time_max_ms, 8);
    trainer_close(&t);
}

// What the hooks of slates saw, and in which order all of them were called: "E" examples, "S"
// slates, "e" and "s" a step on them.
static struct seen_slates {
    int n, learned;
    char order[64];
    struct slate list[64];
    float scores[64][SLATE_ITEMS_MAX];
} slates_seen;

static void seen_note(char what)
{
    const size_t n = strlen(slates_seen.order);
    if (n + 1 < sizeof slates_seen.order)
        slates_seen.order[n] = what;
}

static void note_examples(void *arg, int n, const struct example *examples, const float *features)
{
    see_examples(arg, n, examples, features);
    seen_note('E');
}

static void note_step(void *arg, const struct step_report *report)
{
    (void)arg;
    if (!report->replayed)
        seen_note('e');
}

static void note_slates(void *arg, int n, const struct slate *slates, const float *scores)
{
    (void)arg;
    seen_note('S');
    for (int i = 0; i < n; i++) {
        assert_true(slates_seen.n < 64);
        slates_seen.list[slates_seen.n] = slates[i];
        memcpy(slates_seen.scores[slates_seen.n++], scores + i * SLATE_ITEMS_MAX,
               sizeof slates_seen.scores[0]);
    }
}

static void note_slate_step(void *arg, const struct slate_report *report)
{
    (void)arg;
    seen_note('s');
    slates_seen.learned += report->slates;
}

static void open_with_slates(const struct trainer_options *options)
{
    assert_int_equal(trainer_open(&t, options), 0);
    memset(&seen, 0, sizeof seen);
    memset(&slates_seen, 0, sizeof slates_seen);
    t.score = note_examples;
    t.step = note_step;
    t.score_slates = note_slates;
    t.slate_step = note_slate_step;
}

static struct trainer_options slate_options(void)
{
    struct trainer_options options = core_trainer();
    slates_on(&options, 5, 2);
    return options;
}

static void scored(int64_t ms, uint64_t request, int n, const uint64_t *items)
{
    static struct core_event e;
    core_score(&e, AT(ms), request, 1);
    e.event.n_items = n;
    e.event.ranker = (struct text){"v1", 2};
    for (int i = 0; i < n; i++)
        e.items[i] = (struct event_item){
            .item = core_id("i", items[i]), .position = -1, .n_scores = 1, .scores = click_score};
    one(&e.event);
}

enum { WINDOW_OVER_MS = 62000 };

static void slates_wait_for_the_next_step_and_are_learned_after_the_examples(void **state)
{
    (void)state;
    const struct trainer_options options = slate_options();
    open_with_slates(&options);
    show(0, 1, 1, 10);
    click(1000, 1, 1, 10);
    show(2000, 2, 1, 11);
    show(3000, 3, 2, 12);
    scored(3000, 2, 2, (uint64_t[]){11, 12});
    join_advance(&t.join, AT(3000 + WINDOW_OVER_MS));
    assert_int_equal(trainer_state(&t)->slates, 3);
    assert_int_equal(trainer_state(&t)->remainder, 1);
    assert_int_equal(slates_seen.n, 0);
    for (uint64_t i = 0; i < 7; i++) {
        show(70000 + (int64_t)i, 100 + i, 50 + i, 20);
        click(70000 + (int64_t)i, 100 + i, 50 + i, 20);
    }
    // Eight examples fill the chunk.
    assert_string_equal(slates_seen.order, "ESess");
    assert_int_equal(slates_seen.n, 3);
    assert_int_equal(slates_seen.learned, 3);
    assert_int_equal(trainer_state(&t)->slates, 0);
    assert_int_equal(trainer_state(&t)->remainder, 0);
    const struct slate *s = &slates_seen.list[1];
    assert_int_equal(core_number(&t.rows.users, s->user), 1);
    assert_int_equal(s->n_items, 2);
    assert_int_equal(core_number(&t.rows.items, s->items[0].item), 11);
    assert_int_equal(s->n_history, 1); // as of the impression
    assert_int_equal(s->n_newest, 1);
    assert_int_equal(core_number(&t.rows.items, s->history[0]), 10);
    assert_true(slates_seen.scores[1][0] == 0.5f && slates_seen.scores[1][1] == 0.5f);
    assert_true(isnan(slates_seen.scores[1][2]) && isnan(slates_seen.scores[1][63]));
    assert_int_equal(slates_seen.list[0].n_history, 0);
    assert_int_equal(slates_seen.list[2].n_history, 0);
    trainer_finish(&t);
    assert_string_equal(slates_seen.order, "ESessSsssSs"); // seven more: five, then two
    assert_int_equal(slates_seen.learned, 10);
    trainer_close(&t);
}

static void so_many_slates_as_there_is_room_for_bring_the_step_forward(void **state)
{
    (void)state;
    const struct trainer_options options = slate_options();
    open_with_slates(&options);
    for (uint64_t i = 0; i < 5; i++)
        show((int64_t)i, i, i, 10);
    click(100, 1, 1, 10);
    join_advance(&t.join, AT(WINDOW_OVER_MS));
    assert_string_equal(slates_seen.order, "ESesss");
    assert_int_equal(seen.n, 1);
    assert_int_equal(slates_seen.learned, 5);
    assert_int_equal(trainer_state(&t)->slates, 0);
    trainer_finish(&t);
    assert_string_equal(slates_seen.order, "ESesss"); // nothing waits
    trainer_close(&t);
}

static void a_removed_item_leaves_waiting_slates(void **state)
{
    (void)state;
    static struct core_event e;
    const struct trainer_options options = slate_options();
    open_with_slates(&options);
    show(0, 1, 1, 11);
    click(500, 1, 1, 11);
    show(1000, 2, 1, 12);
    click(1500, 2, 1, 12);
    one(core_impression(&e, AT(2000), 3, 1, 3, (uint64_t[]){10, 11, 12}));
    scored(2000, 3, 1, (uint64_t[]){12});
    show(3000, 4, 1, 13);
    join_advance(&t.join, AT(3000 + WINDOW_OVER_MS));
    assert_int_equal(trainer_state(&t)->slates, 4);
    one(core_item(&e, AT(70000), 11, NULL, true));
    assert_int_equal(trainer_state(&t)->slates, 3); // the first showed nothing else
    show(71000, 5, 2, 20);                          // takes the row
    trainer_finish(&t);
    assert_int_equal(slates_seen.n, 4);
    const struct slate *s = &slates_seen.list[1];
    assert_int_equal(s->n_items, 2);
    assert_int_equal(core_number(&t.rows.items, s->items[0].item), 10);
    assert_int_equal(core_number(&t.rows.items, s->items[1].item), 12);
    assert_true(isnan(slates_seen.scores[1][0]) && slates_seen.scores[1][1] == 0.5f);
    assert_true(isnan(slates_seen.scores[1][2]));
    assert_int_equal(s->n_history, 1);
    assert_int_equal(s->n_newest, 1);
    assert_int_equal(core_number(&t.rows.items, s->history[0]), 12);
    assert_int_equal(core_number(&t.rows.items, slates_seen.list[2].items[0].item), 13);
    trainer_close(&t);
}

static void slates_that_wait_outlive_a_restart_with_more_room_but_not_with_less(void **state)
{
    (void)state;
    struct trainer_options options = slate_options();
    struct core_copy copy;
    open_with_slates(&options);
    for (uint64_t i = 0; i < 4; i++)
        show((int64_t)i, i, i, 10 + i);
    join_advance(&t.join, AT(WINDOW_OVER_MS));
    assert_int_equal(trainer_state(&t)->slates, 4);
    core_copy_take(&copy, &t.columns);
    trainer_close(&t);
    options.slates = 9;
    open_with_slates(&options);
    core_copy_restore(&copy, &t.columns);
    assert_int_equal(trainer_rebuild(&t), 0);
    for (uint64_t i = 4; i < 8; i++)
        show(70000 + (int64_t)i, i, i, 10 + i);
    join_advance(&t.join, AT(70000 + WINDOW_OVER_MS));
    assert_int_equal(trainer_state(&t)->slates, 8);
    trainer_finish(&t);
    assert_int_equal(slates_seen.n, 8);
    for (int i = 0; i < 8; i++)
        assert_int_equal(core_number(&t.rows.items, slates_seen.list[i].items[0].item), 10 + i);
    // What waits must fit.
    core_copy_restore(&copy, &t.columns);
    t.options.slates = 4;
    assert_int_equal(trainer_rebuild(&t), -EINVAL);
    core_copy_free(&copy);
    trainer_close(&t);
}

static uint64_t publications(void)
{
    for (int i = 0; i < t.columns.n; i++)
        if (strcmp(t.columns.list[i]->name, "reference.state") == 0)
            return *(const uint64_t *)(const void *)t.columns.list[i]->base; // its epoch
    return 0;
}

static void the_published_model_is_taken_anew_by_event_time(void **state)
{
    (void)state;
    struct trainer_options options = slate_options();
    options.model.objectives.preference.form = PREFERENCE_DPO;
    options.model.objectives.preference.beta = 1;
    options.publish_ms = 10000;
    open_with_slates(&options);
    const uint64_t at_start = publications();
    assert_int_equal(at_start, 1);
    for (uint64_t i = 0; i < 40; i++) { // a step of eight engagements takes 8 s
        show((int64_t)i * 1000, 100 + i, 50 + i, 20);
        click((int64_t)i * 1000, 100 + i, 50 + i, 20);
    }
    // After steps at 7, 15, 23, 31 and 39 s: the first is the first of all, then 10, 20 and 30 s.
    assert_int_equal(publications(), at_start + 4);
    trainer_close(&t);
}

static void without_slates_there_are_no_columns_of_them(void **state)
{
    (void)state;
    struct trainer_options options = core_trainer();
    open_with_slates(&options);
    for (int i = 0; i < t.columns.n; i++)
        assert_null(strstr(t.columns.list[i]->name, "slate"));
    const int columns = t.columns.n;
    show(0, 1, 1, 10);
    scored(0, 1, 1, (uint64_t[]){10});
    click(10, 1, 1, 10);
    trainer_finish(&t);
    assert_string_equal(slates_seen.order, "Ee");
    trainer_close(&t);
    options = slate_options();
    open_with_slates(&options);
    assert_int_equal(t.columns.n, columns + 8 + 2); // the model's: guards and scalars
    trainer_close(&t);
}

static void examples_say_their_surface_and_task(void **state)
{
    (void)state;
    static struct core_event e;
    struct trainer_options options = slate_options();
    static const char *const tasks[] = {"like", "click"};
    options.join.tasks = tasks;
    options.join.n_tasks = 2;
    options.negatives = true;
    open_with_slates(&options);
    for (uint64_t i = 0; i < 3; i++) {
        core_impression(&e, AT(0), i, i, 1, &(uint64_t){10});
        e.event.surface = i ? (struct text){"feed", 4} : (struct text){"home", 4};
        one(&e.event);
    }
    click(10, 1, 1, 10);
    one(core_engagement(&e, AT(10), 1, 1, 10, "share"));
    join_advance(&t.join, AT(0));
    trainer_finish(&t);
    assert_int_equal(seen.n, 4);
    assert_int_equal(seen.list[0].surface, 2);
    assert_int_equal(seen.list[0].task, 1);
    assert_int_equal(seen.list[1].task, TASK_NONE);
    assert_int_equal(seen.list[2].surface, 1);
    assert_int_equal(seen.list[2].task, TASK_NONE);
    trainer_close(&t);
}

// Two tasks, worth one each.
static void tasks_on(struct trainer_options *options, int slates)
{
    slates_on(options, slates, 7);
    options->model.tasks_named = true;
    options->model.objectives.tasks = 2;
    options->tasks = (struct value_tasks){2, -1, {1, 1}, {"click", "like"}};
}

static void values_change_between_two_events_wherever_slices_and_restarts_fall(void **state)
{
    (void)state;
    enum { N = 1200, AT_EVENT = 530 };
    static struct trainer whole, parts, again, unchanged;
    struct trainer_options options = core_trainer();
    const struct slice_values values = {2, {-1, 2}};
    make_stream(5, N);
    for (int slates = 0; slates < 2; slates++) {
        struct core_copy copy;
        tasks_on(&options, slates * 30);
        struct trainer *const all[] = {&whole, &parts, &again, &unchanged};
        for (int i = 0; i < 4; i++)
            assert_int_equal(trainer_open(all[i], &options), 0);
        apply(&whole, 0, AT_EVENT, 1, false);
        apply_valued(&whole, AT_EVENT, N, 2, false, values);
        apply(&unchanged, 0, N, 1, false);

        // The same change at the same event, in other slices; number 2 has the values.
        apply(&parts, 0, AT_EVENT, 1, false);
        apply_valued(&parts, AT_EVENT, AT_EVENT, 2, false, values); // of no event
        apply(&parts, AT_EVENT, 900, 3, false);
        core_copy_take(&copy, &parts.columns);
        core_copy_restore(&copy, &again.columns); // which has been opened with the values of old
        core_copy_free(&copy);
        assert_int_equal(trainer_rebuild(&again), 0);
        apply(&parts, 900, N, 4, false);
        apply(&again, 900, N, 4, false);

        core_copy_take(&copy, &whole.columns);
        core_copy_assert_equal(&copy, &parts.columns, NULL, "trainer.state");
        core_copy_assert_equal(&copy, &again.columns, NULL, "trainer.state");
        core_copy_free(&copy);
        assert_int_equal(two_tower_values(again.rows.model)->since, 2);
        assert_true(two_tower_values(again.rows.model)->weight[0] == -1);
        const struct column *vectors = &two_tower_tables(whole.rows.model)->item_vector;
        assert_memory_not_equal(vectors->base,
                                two_tower_tables(unchanged.rows.model)->item_vector.base,
                                vectors->n * vectors->unit);
        for (int i = 0; i < 4; i++)
            trainer_close(all[i]);
    }
}

static void values_of_the_first_slice_are_as_good_as_those_of_the_configuration(void **state)
{
    (void)state;
    enum { N = 1200 };
    static struct trainer set, configured;
    struct core_copy copy;
    struct trainer_options options = core_trainer();
    make_stream(6, N);
    tasks_on(&options, 30); // all that reads values: rows of the softmax and slates
    assert_int_equal(trainer_open(&set, &options), 0);
    options.model.objectives.value[0] = -1;
    options.model.objectives.value[1] = 2;
    assert_int_equal(trainer_open(&configured, &options), 0);
    apply_valued(&set, 0, N, 1, false, (struct slice_values){2, {-1, 2}});
    apply(&configured, 0, N, 1, false);
    core_copy_take(&copy, &set.columns);
    core_copy_assert_equal(&copy, &configured.columns, NULL, "model.value"); // since differs
    core_copy_free(&copy);
    assert_true(tables_state(two_tower_tables(set.rows.model))->steps > 20);
    trainer_close(&set);
    trainer_close(&configured);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_same_events_in_other_slices_give_the_same_columns),
        cmocka_unit_test(a_trainer_restored_in_the_middle_goes_on_alike),
        cmocka_unit_test(examples_carry_the_history_as_of_their_impression),
        cmocka_unit_test(a_full_batch_is_scored_then_learned_and_the_end_learns_the_rest),
        cmocka_unit_test(examples_that_wait_outlive_restarts_with_a_larger_chunk),
        cmocka_unit_test(a_batch_is_followed_by_a_replay_of_rows_that_are_still_theirs),
        cmocka_unit_test(the_end_closes_all_windows),
        cmocka_unit_test(each_event_is_heard_after_it_was_joined),
        cmocka_unit_test(negatives_take_part_only_where_they_are_wanted),
        cmocka_unit_test(a_removed_item_takes_waiting_examples_and_its_place_in_histories_along),
        cmocka_unit_test(user_features_come_with_their_example),
        cmocka_unit_test(a_live_slice_moves_the_watermark_at_its_end),
        cmocka_unit_test(slates_wait_for_the_next_step_and_are_learned_after_the_examples),
        cmocka_unit_test(so_many_slates_as_there_is_room_for_bring_the_step_forward),
        cmocka_unit_test(a_removed_item_leaves_waiting_slates),
        cmocka_unit_test(slates_that_wait_outlive_a_restart_with_more_room_but_not_with_less),
        cmocka_unit_test(the_published_model_is_taken_anew_by_event_time),
        cmocka_unit_test(without_slates_there_are_no_columns_of_them),
        cmocka_unit_test(examples_say_their_surface_and_task),
        cmocka_unit_test(values_change_between_two_events_wherever_slices_and_restarts_fall),
        cmocka_unit_test(values_of_the_first_slice_are_as_good_as_those_of_the_configuration),
        cmocka_unit_test(delays_are_counted_by_task),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
