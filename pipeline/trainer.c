// SPDX-License-Identifier: Apache-2.0
#include "pipeline/trainer.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/prefetch.h"
#include "model/rng.h"

static struct trainer_state *state_edit(struct trainer *t)
{
    return column_edit(&t->state, 0);
}

static void remember(struct trainer *t, int n, const struct example *examples)
{
    struct trainer_state *state = state_edit(t);
    for (int i = 0; i < n; i++) {
        struct remembered *r =
            column_edit(&t->replay, state->remembered++ % (uint64_t)t->options.replay_window);
        *r = (struct remembered){
            .example = examples[i],
            .user_generation = id_table_row(&t->rows.users, examples[i].user)->generation,
            .item_generation = id_table_row(&t->rows.items, examples[i].item)->generation};
    }
}

// The history of an example or of a slate, which keep it under the same names.
struct past {
    uint8_t *n, *newest;
    uint32_t *rows;
    uint8_t *actions, *gaps;
};
#define PAST_OF(x)                                                                                 \
    ((struct past){&(x)->n_history, &(x)->n_newest, (x)->history, (x)->actions, (x)->gaps})

// What the user had engaged with before the impression.
static void past_recall(const struct trainer *t, uint32_t user, int64_t ts_ms, struct past past)
{
    struct history_walk walk = {.rows = past.rows, .actions = past.actions, .gaps = past.gaps};
    *past.n = (uint8_t)history_before(&t->rows.history, user, ts_ms, &t->rows.items,
                                      two_tower_history(&t->options.model), &walk);
    *past.newest = (uint8_t)walk.newest;
}

// Takes from the history what is not wanted any more; the newest time loses with it.
static void past_forget(struct past past, bool (*wanted)(const void *arg, uint32_t row),
                        const void *arg)
{
    uint8_t n = 0, newest = *past.newest;
    for (int k = 0; k < *past.n; k++) {
        if (!wanted(arg, past.rows[k])) {
            if (k < *past.newest)
                newest--;
            continue;
        }
        past.rows[n] = past.rows[k];
        past.actions[n] = past.actions[k];
        past.gaps[n] = past.gaps[k];
        n++;
    }
    *past.n = n;
    *past.newest = newest;
}

// The item in the row was there already when the example was seen.
struct then {
    const struct id_table *items;
    int64_t ts_ms;
};

static bool then_there(const void *arg, uint32_t row)
{
    const struct then *then = arg;
    const struct id_row *item = id_table_row(then->items, row);
    return item->kind != ID_ABSENT && item->created_ms <= then->ts_ms;
}

static bool another_row(const void *arg, uint32_t row)
{
    return row != *(const uint32_t *)arg;
}

// One step on a uniform draw, with replacement, from the window. Rows may have left since, or have
// another owner: such an example is passed over, and such an item goes from the history.
static void replay(struct trainer *t)
{
    const struct rows *rows = &t->rows;
    const struct trainer_state *state = trainer_state(t);
    const uint64_t window = (uint64_t)t->options.replay_window;
    const uint64_t there = state->remembered < window ? state->remembered : window;
    const uint64_t key = rng_key(t->options.model.seed, UINT64_C(0x7265706c6179)); // "replay"
    struct rng rng = {rng_at(key, state->remembered), 0};
    int n = 0;
    for (int i = 0; i < t->options.replay; i++) {
        const struct remembered *r = column_at(&t->replay, rng_below(&rng, there));
        if (!rows_valid(&rows->users, (struct row_ref){r->example.user, r->user_generation}) ||
            !rows_valid(&rows->items, (struct row_ref){r->example.item, r->item_generation}))
            continue;
        struct example *example = &t->replaying[n++];
        *example = r->example;
        past_forget(PAST_OF(example), then_there, &(struct then){&rows->items, example->ts_ms});
    }
    if (n == 0)
        return;
    const struct step_report report = two_tower_replay(t->rows.model, n, t->replaying);
    if (t->step)
        t->step(t->arg, &report);
}

static void learn_examples(struct trainer *t, int n, const struct example *examples,
                           const float *features)
{
    for (int from = 0; from < n; from += t->options.batch) {
        const int size = n - from < t->options.batch ? n - from : t->options.batch;
        const struct step_report report = two_tower_learn(
            t->rows.model, size, examples + from,
            features ? features + (size_t)from * t->options.model.user_features : NULL);
        if (t->step)
            t->step(t->arg, &report);
        if (t->replaying && !report.skipped) {
            remember(t, size, examples + from);
            replay(t);
        }
    }
}

static void learn_slates(struct trainer *t, int n, const struct slate *slates, const float *scores)
{
    const int features = t->options.model.user_features;
    const size_t width = t->slate_score.unit / sizeof *scores;
    for (int from = 0; from < n; from += t->options.slate_batch) {
        const int size = n - from < t->options.slate_batch ? n - from : t->options.slate_batch;
        const struct slate_report report = two_tower_learn_slates(
            t->rows.model, size, slates + from, scores + (size_t)from * width,
            features > 0 ? column_at(&t->slate_features, (size_t)from) : NULL);
        if (t->slate_step)
            t->slate_step(t->arg, &report);
    }
}

static void publish(struct trainer *t)
{
    const int64_t every = t->options.publish_ms, now = trainer_state(t)->event_time_ms;
    if (every == 0 || now / every <= trainer_state(t)->published)
        return;
    state_edit(t)->published = now / every;
    two_tower_published(t->rows.model);
}

// Scores what waits, learns it batch by batch, examples first, and keeps nothing.
static void learn(struct trainer *t)
{
    const int n = (int)trainer_state(t)->remainder, n_slates = (int)trainer_state(t)->slates;
    const struct example *examples = column_at(&t->remainder, 0);
    const float *features = t->options.model.user_features > 0 ? column_at(&t->features, 0) : NULL;
    const struct slate *slates = n_slates > 0 ? column_at(&t->slate, 0) : NULL;
    const float *scores = n_slates > 0 ? column_at(&t->slate_score, 0) : NULL;
    if (n == 0 && n_slates == 0)
        return;
    if (t->score && n > 0)
        t->score(t->arg, n, examples, features);
    if (t->score_slates && n_slates > 0)
        t->score_slates(t->arg, n_slates, slates, scores);
    learn_examples(t, n, examples, features);
    learn_slates(t, n_slates, slates, scores);
    state_edit(t)->remainder = 0;
    state_edit(t)->slates = 0;
    publish(t);
    // Nothing waits now, so rows may leave.
    rows_expire(&t->rows, trainer_state(t)->event_time_ms);
}

static void features_keep(float *kept, const float *user_features, size_t bytes)
{
    if (user_features)
        memcpy(kept, user_features, bytes);
    else
        memset(kept, 0, bytes);
}

static void example_take(void *arg, const struct labelled *l)
{
    struct trainer *t = arg;
    struct rows *rows = &t->rows;
    if (l->positive || t->options.negatives) {
        struct trainer_state *state = state_edit(t);
        struct example *example = column_edit(&t->remainder, state->remainder);
        *example = (struct example){
            .user = l->user,
            .item = l->item,
            .ts_ms = l->ts_ms,
            .value = l->value,
            .propensity = l->propensity,
            .position = l->position,
            .action = l->action,
            .positive = l->positive,
            .surface = l->surface,
            .task = l->task,
        };
        past_recall(t, l->user, l->ts_ms, PAST_OF(example));
        if (t->options.model.user_features > 0)
            features_keep(column_edit(&t->features, state->remainder), l->user_features,
                          t->features.unit);
        state->remainder++;
        state->examples += l->positive;
    }
    if (l->positive && l->task != TASK_NONE)
        delay_histogram_add(column_edit(&t->delay, 0), l->task, l->engaged_ms - l->ts_ms);
    if (l->positive)
        history_add(&rows->history, l->user,
                    (struct history_entry){
                        .item = l->item,
                        .generation = id_table_row(&rows->items, l->item)->generation,
                        .actions = history_action(l->action),
                        .ts_ms = l->engaged_ms,
                    });
    if (trainer_state(t)->remainder == (uint32_t)t->chunk)
        learn(t);
}

static void slate_take(void *arg, const struct slate *slate, const float *scores,
                       const float *user_features)
{
    struct trainer *t = arg;
    const size_t tasks = (size_t)t->join.options.n_tasks, width = SLATE_ITEMS_MAX * tasks;
    struct trainer_state *state = state_edit(t);
    struct slate *kept = column_edit(&t->slate, state->slates);
    float *kept_scores = column_edit(&t->slate_score, state->slates);
    *kept = *slate;
    past_recall(t, slate->user, slate->ts_ms, PAST_OF(kept));
    for (size_t i = slate->n_items * tasks; i < width; i++)
        kept_scores[i] = NAN;
    memcpy(kept_scores, scores, slate->n_items * tasks * sizeof *scores);
    if (t->options.model.user_features > 0)
        features_keep(column_edit(&t->slate_features, state->slates), user_features,
                      t->slate_features.unit);
    state->slates++;
    if (state->slates == (uint32_t)t->options.slates)
        learn(t);
}

static int slates_open(struct trainer *t)
{
    const size_t n = (size_t)t->options.slates;
    const size_t width = SLATE_ITEMS_MAX * (size_t)t->join.options.n_tasks;
    assert(t->options.slate_batch > 0);
    int rc = column_open(&t->slate, &t->columns, "trainer.slate", sizeof(struct slate), n);
    if (rc == 0)
        rc = column_open(&t->slate_score, &t->columns, "trainer.slate_score", width * sizeof(float),
                         n);
    if (rc == 0 && t->options.model.user_features > 0)
        rc = column_open(&t->slate_features, &t->columns, "trainer.slate_features",
                         (size_t)t->options.model.user_features * sizeof(float), n);
    if (rc < 0)
        return rc;
    column_grow(&t->slate, n);
    column_grow(&t->slate_score, n);
    if (t->options.model.user_features > 0)
        column_grow(&t->slate_features, n);
    t->join.slate = slate_take;
    return 0;
}

int trainer_open(struct trainer *t, const struct trainer_options *options)
{
    *t = (struct trainer){.options = *options,
                          .chunk = options->chunk > 0 ? options->chunk : options->batch};
    assert(options->batch > 0 && options->batch <= options->model.batch_max);
    const int width = options->model.user_features;
    t->options.join.slates = options->slates > 0;
    for (int i = 0; i < options->tasks.n; i++)
        t->task_names[i] = t->options.tasks.name[i];
    if (options->tasks.n > 0) {
        t->options.join.tasks = t->task_names;
        t->options.join.n_tasks = options->tasks.n;
    }
    int rc = columns_open(&t->columns, options->undo_bytes);
    if (rc == 0)
        rc = rows_open(&t->rows, &t->columns, &options->rows, &options->model);
    if (rc == 0)
        rc = join_open(&t->join, &t->columns, &t->options.join, &t->rows, example_take, t);
    if (rc == 0)
        rc = column_open(&t->state, &t->columns, "trainer.state", sizeof(struct trainer_state), 1);
    if (rc == 0)
        rc = column_open(&t->position, &t->columns, "trainer.position",
                         sizeof(struct partition_position), (size_t)options->partitions);
    if (rc == 0)
        rc =
            column_open(&t->delay, &t->columns, "trainer.delay", sizeof(struct delay_histogram), 1);
    if (rc == 0)
        rc = column_open(&t->remainder, &t->columns, "trainer.example", sizeof(struct example),
                         (size_t)t->chunk);
    if (rc == 0 && width > 0)
        rc = column_open(&t->features, &t->columns, "trainer.features",
                         (size_t)width * sizeof(float), (size_t)t->chunk);
    if (rc == 0 && options->replay > 0 && options->model.kind == MODEL_RECIPE) {
        rc = column_open(&t->replay, &t->columns, "trainer.replay", sizeof(struct remembered),
                         (size_t)options->replay_window);
        t->replaying = calloc((size_t)options->replay, sizeof *t->replaying);
        if (!t->replaying)
            rc = -ENOMEM;
        if (rc == 0)
            column_grow(&t->replay, (size_t)options->replay_window);
    }
    if (rc == 0 && options->slates > 0)
        rc = slates_open(t);
    if (rc < 0) {
        trainer_close(t);
        return rc;
    }
    column_grow(&t->state, 1);
    column_grow(&t->position, (size_t)options->partitions);
    column_grow(&t->delay, 1);
    column_grow(&t->remainder, (size_t)t->chunk);
    if (width > 0)
        column_grow(&t->features, (size_t)t->chunk);
    for (int p = 0; p < options->partitions; p++)
        *(struct partition_position *)column_edit(&t->position, (size_t)p) =
            (struct partition_position){.next = -1, .time_max_ms = INT64_MIN, .epoch = -1};
    return 0;
}

void trainer_close(struct trainer *t)
{
    free(t->replaying);
    t->replaying = NULL; // trainer_open may have closed it before the owner does
    join_close(&t->join);
    rows_close(&t->rows);
    columns_close(&t->columns);
}

int trainer_rebuild(struct trainer *t)
{
    const size_t chunk = (size_t)t->chunk, waiting = trainer_state(t)->remainder;
    if (waiting > t->remainder.n || waiting >= chunk ||
        t->position.n != (size_t)t->options.partitions || t->delay.n != 1)
        return -EINVAL;
    const size_t slates = (size_t)t->options.slates, slates_waiting = trainer_state(t)->slates;
    if (slates_waiting > t->slate.n || (slates > 0 && slates_waiting >= slates) ||
        t->slate.n != t->slate_score.n)
        return -EINVAL;
    // The chunk may have been smaller then. Units beyond a column's end would be learned, but no
    // checkpoint would have them.
    column_grow(&t->remainder, chunk - t->remainder.n);
    if (t->options.model.user_features > 0)
        column_grow(&t->features, chunk - t->features.n);
    if (slates > 0) {
        column_grow(&t->slate, slates - t->slate.n);
        column_grow(&t->slate_score, slates - t->slate_score.n);
        if (t->options.model.user_features > 0)
            column_grow(&t->slate_features, slates - t->slate_features.n);
    }
    const int rc = rows_rebuild(&t->rows);
    return rc < 0 ? rc : join_rebuild(&t->join);
}

static void examples_without(struct trainer *t, uint32_t row)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < trainer_state(t)->remainder; i++) {
        const struct example *from = column_at(&t->remainder, i);
        if (from->item == row)
            continue;
        struct example *to = column_edit(&t->remainder, kept);
        const float *features = t->options.model.user_features ? column_at(&t->features, i) : NULL;
        *to = *from;
        if (features)
            memmove(column_edit(&t->features, kept), features, t->features.unit);
        past_forget(PAST_OF(to), another_row, &row);
        kept++;
    }
    state_edit(t)->remainder = kept;
}

// A slate without the item is as if the item had not been shown; one of nothing else goes.
static void slates_without(struct trainer *t, uint32_t row)
{
    const int tasks = t->join.options.n_tasks;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < trainer_state(t)->slates; i++) {
        struct slate *to = column_edit(&t->slate, kept);
        float *scores = column_edit(&t->slate_score, kept);
        if (kept != i) {
            memcpy(to, column_at(&t->slate, i), t->slate.unit);
            memcpy(scores, column_at(&t->slate_score, i), t->slate_score.unit);
            if (t->options.model.user_features > 0)
                memcpy(column_edit(&t->slate_features, kept), column_at(&t->slate_features, i),
                       t->slate_features.unit);
        }
        uint16_t n = 0;
        for (int k = 0; k < to->n_items; k++) {
            if (to->items[k].item == row)
                continue;
            to->items[n] = to->items[k];
            memmove(scores + n * tasks, scores + k * tasks, (size_t)tasks * sizeof *scores);
            n++;
        }
        for (int k = n * tasks; k < to->n_items * tasks; k++)
            scores[k] = NAN;
        to->n_items = n;
        past_forget(PAST_OF(to), another_row, &row);
        kept += n > 0;
    }
    state_edit(t)->slates = kept;
}

// The item leaves the catalogue. Examples that wait with it as their target go with it, and it is
// taken out of slates and of the histories of the others: a row number must not outlive its owner.
static void item_remove(struct trainer *t, const struct event *event)
{
    const int64_t row = id_table_find(&t->rows.items, &event->items[0].item);
    if (row < 0)
        return;
    examples_without(t, (uint32_t)row);
    slates_without(t, (uint32_t)row);
    rows_remove_item(&t->rows, (uint32_t)row);
}

// Events were decoded by another thread: they are asked for before they are needed, first the
// event, then what it points to.
PREFETCHES void events_prefetch(const struct slice *slice, int i)
{
    enum { AHEAD = 8, AHEAD_LIST = 4 };
    if (i + AHEAD < slice->n_events)
        for (size_t at = 0; at < sizeof(struct event); at += 64)
            __builtin_prefetch((const char *)slice->events[i + AHEAD].event + at);
    if (i + AHEAD_LIST < slice->n_events) {
        const struct event *e = slice->events[i + AHEAD_LIST].event;
        __builtin_prefetch(e->items);
        __builtin_prefetch(e->action.bytes);
    }
}

void trainer_apply(struct trainer *t, const struct slice *slice)
{
    if (slice->values.n > 0) {
        assert(slice->values.n == t->options.model.objectives.tasks);
        two_tower_set_values(t->rows.model, slice->values.weight, slice->number);
    }
    join_shed(&t->join, slice->shed_permille);
    for (int i = 0; i < slice->n_moves; i++)
        if (slice->moves[i].to > slice->moves[i].from)
            state_edit(t)->skipped += (uint64_t)(slice->moves[i].to - slice->moves[i].from);
    for (int topic = 0; topic < TOPICS; topic++)
        for (int reason = 0; reason < REJECTS; reason++)
            if (slice->rejected[topic][reason])
                join_rejected(&t->join, (enum topic)topic, (enum reject)reason,
                              slice->rejected[topic][reason]);
    for (int i = 0; i < slice->n_events; i++) {
        const struct slice_event *e = &slice->events[i];
        events_prefetch(slice, i);
        if (slice->order == SLICE_CANONICAL)
            join_advance(&t->join, e->mt_ms);
        if (e->event->ts_ms > trainer_state(t)->event_time_ms)
            state_edit(t)->event_time_ms = e->event->ts_ms;
        if (e->event->removed)
            item_remove(t, e->event);
        join_push(&t->join, e->event);
        if (t->event)
            t->event(t->arg, e->event);
    }
    if (slice->order == SLICE_LIVE && slice->watermark_ms != INT64_MIN)
        join_advance(&t->join, slice->watermark_ms);
    struct trainer_state *state = state_edit(t);
    state->slices = slice->number;
    state->dead_letters = slice->dead_letters;
    for (int p = 0; p < slice->n_partitions; p++)
        *(struct partition_position *)column_edit(&t->position, (size_t)p) =
            (struct partition_position){slice->next[p], slice->time_max_ms[p], slice->epoch[p]};
}

void trainer_finish(struct trainer *t)
{
    // Far enough for every window and for the memory of closed requests, and short of overflow.
    const int64_t end = join_watermark(&t->join);
    if (end != INT64_MIN)
        join_advance(&t->join, end + 3 * t->join.window_max_ms + 2 * t->options.join.lateness_ms +
                                   2 * t->join.bucket_ms);
    learn(t);
}
