// SPDX-License-Identifier: Apache-2.0
//
// What the tests of the core share: ids, events built by hand, a small trainer, and copies of
// columns to compare.
#pragma once

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include "model/rng.h"
#include "pipeline/trainer.h"

// Event times of the tests: minutes and seconds after this.
#define TEST_START_MS INT64_C(1700000000000)

// What slices that are made by hand say of their partitions.
static inline int32_t *unknown_epoch(void)
{
    static int32_t epoch[] = {-1, -1, -1, -1};
    return epoch;
}

// The id with this number; its bytes are a table's own copy afterwards.
static inline struct id core_id(const char *prefix, uint64_t n)
{
    static char texts[64][32];
    static unsigned next;
    char *text = texts[next++ % 64];
    const int size = snprintf(text, 32, "%s%" PRIu64, prefix, n);
    return id_of_text(text, (size_t)size);
}

// A record of one request: the items are numbers, positions their place in the list.
struct core_event {
    struct event event;
    struct event_item items[16];
};

static inline const struct event *core_impression(struct core_event *e, int64_t ts_ms,
                                                  uint64_t request, uint64_t user, int n,
                                                  const uint64_t *items)
{
    *e = (struct core_event){.event = {.topic = TOPIC_IMPRESSIONS,
                                       .ts_ms = ts_ms,
                                       .request = core_id("r", request),
                                       .user = core_id("u", user),
                                       .n_items = n,
                                       .items = e->items}};
    for (int i = 0; i < n; i++)
        e->items[i] = (struct event_item){.item = core_id("i", items[i]), .position = i};
    return &e->event;
}

enum { CORE_NO_REQUEST = -1 };

static inline const struct event *core_engagement(struct core_event *e, int64_t ts_ms,
                                                  int64_t request, uint64_t user, uint64_t item,
                                                  const char *action)
{
    *e = (struct core_event){
        .event = {.topic = TOPIC_ENGAGEMENTS,
                  .ts_ms = ts_ms,
                  .user = core_id("u", user),
                  .n_items = 1,
                  .items = e->items,
                  .value = 1,
                  .action = {action, (uint32_t)strlen(action)}},
        .items = {{.item = core_id("i", item), .position = -1}},
    };
    if (request != CORE_NO_REQUEST)
        e->event.request = core_id("r", (uint64_t)request);
    return &e->event;
}

static inline const struct event *core_score(struct core_event *e, int64_t ts_ms, uint64_t request,
                                             uint64_t user)
{
    *e = (struct core_event){.event = {.topic = TOPIC_SCORES,
                                       .ts_ms = ts_ms,
                                       .request = core_id("r", request),
                                       .user = core_id("u", user),
                                       .n_items = 1,
                                       .items = e->items},
                             .items = {{.item = core_id("i", 0), .position = -1}}};
    return &e->event;
}

static inline const struct event *core_item(struct core_event *e, int64_t ts_ms, uint64_t item,
                                            const char *title, bool removed)
{
    *e = (struct core_event){
        .event = {.topic = TOPIC_ITEMS,
                  .ts_ms = ts_ms,
                  .n_items = 1,
                  .items = e->items,
                  .title = {title, title ? (uint32_t)strlen(title) : 0},
                  .removed = removed},
        .items = {{.item = core_id("i", item), .position = -1}},
    };
    return &e->event;
}

// A recipe of dim 4 over a few hundred rows: every part is there, a step takes microseconds.
static inline struct two_tower_options core_model(void)
{
    struct two_tower_options o = {
        .kind = MODEL_RECIPE,
        .dim = 4,
        .history = 5,
        .repeat = 6,
        .batch_max = 8,
        .uniform_negatives = 4,
        .seed = 7,
        .init = 0.3f,
        .table = *optimizer_find("rowwise_adagrad"),
        .matrix = *optimizer_find("adam"),
        .scalar = *optimizer_find("adam"),
        .prior_half_life = {50, 500, 10},
        .logq_half_life = 500,
    };
    o.table.rate = 0.1f;
    o.table.start = 0.1f;
    o.matrix.rate = 0.01f;
    o.scalar.rate = 0.01f;
    return o;
}

static inline struct trainer_options core_trainer(void)
{
    return (struct trainer_options){
        .rows = {.items_max = 512, .users_max = 512, .admit_items = 1, .admit_users = 1},
        .model = core_model(),
        .join = {.window_ms = 60000, .lateness_ms = 20000, .bytes_max = 1 << 20},
        .batch = 8,
        .replay = 3,
        .replay_window = 40,
        .partitions = 2,
        .undo_bytes = 1 << 20,
    };
}

// A copy of every column of a set.
struct core_copy {
    int n;
    size_t units[COLUMNS_MAX];
    unsigned char *bytes[COLUMNS_MAX];
};

static inline void core_copy_take(struct core_copy *copy, const struct columns *s)
{
    copy->n = s->n;
    for (int i = 0; i < s->n; i++) {
        const struct column *c = s->list[i];
        copy->units[i] = c->n;
        copy->bytes[i] = malloc(c->n * c->unit + 1);
        assert_non_null(copy->bytes[i]);
        memcpy(copy->bytes[i], c->base, c->n * c->unit);
    }
}

static inline void core_copy_restore(const struct core_copy *copy, struct columns *s)
{
    assert_int_equal(copy->n, s->n);
    for (int i = 0; i < s->n; i++) {
        void *to = column_restore(s->list[i], copy->units[i]);
        memcpy(to, copy->bytes[i], copy->units[i] * s->list[i]->unit);
    }
}

static inline void core_copy_free(struct core_copy *copy)
{
    for (int i = 0; i < copy->n; i++)
        free(copy->bytes[i]);
}

// Fails with the column's name unless the set has the copy's bytes; prefix (NULL: all) picks the
// columns that are compared, except the one of this name.
static inline void core_copy_assert_equal(const struct core_copy *copy, const struct columns *s,
                                          const char *prefix, const char *except)
{
    assert_int_equal(copy->n, s->n);
    for (int i = 0; i < s->n; i++) {
        const struct column *c = s->list[i];
        if ((prefix && strncmp(c->name, prefix, strlen(prefix))) ||
            (except && !strcmp(c->name, except)))
            continue;
        if (c->n != copy->units[i] || memcmp(c->base, copy->bytes[i], c->n * c->unit))
            fail_msg("column %s differs", c->name);
    }
}

// Memory of the process in KB, and how many rounds a test of it can afford: under a sanitizer every
// access costs ten times as much.
static inline long core_resident_kb(void)
{
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    assert_non_null(file);
    assert_int_equal(fscanf(file, "%*d %ld", &pages), 1);
    fclose(file);
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { CORE_SLOWNESS = 20 };
#else
enum { CORE_SLOWNESS = 1 };
#endif

// That the process has not grown since. Sanitizers keep what was given back.
static inline void core_assert_no_growth(long then_kb)
{
    const long more = core_resident_kb() - then_kb;
    if (CORE_SLOWNESS == 1 && more > 1024)
        fail_msg("%ld KB then, %ld KB more now", then_kb, more);
}

// A join over rows of its own that notes what leaves.
enum { CORE_LEFT_MAX = 4096 };

struct core_left {
    uint64_t user, item; // their numbers
    int64_t ts_ms, engaged_ms;
    int position, action;
    float value, feature; // feature: the first of the user's, 0 when there are none
    bool positive;
};

struct core_join {
    struct columns columns;
    struct rows rows;
    struct join join;
    int n_left;
    struct core_left left[CORE_LEFT_MAX];
};

static inline uint64_t core_number(const struct id_table *t, uint32_t row)
{
    const struct id id = id_table_id(t, row);
    char text[32] = {0};
    assert_true(id.size < sizeof text);
    memcpy(text, id.bytes, id.size);
    return strtoull(text + 1, NULL, 10); // "u12", "i7"
}

static inline void core_join_note(void *arg, const struct labelled *l)
{
    struct core_join *w = arg;
    assert_true(w->n_left < CORE_LEFT_MAX);
    w->left[w->n_left++] = (struct core_left){
        .user = core_number(&w->rows.users, l->user),
        .item = core_number(&w->rows.items, l->item),
        .ts_ms = l->ts_ms,
        .engaged_ms = l->engaged_ms,
        .position = l->position,
        .action = l->positive ? l->action : -1,
        .value = l->value,
        .feature = l->user_features ? l->user_features[0] : 0,
        .positive = l->positive,
    };
}

static inline void core_join_open(struct core_join *w, const struct rows_options *rows,
                                  const struct join_options *join)
{
    const struct two_tower_options model = core_model();
    memset(w, 0, sizeof *w);
    assert_int_equal(columns_open(&w->columns, 1 << 20), 0);
    assert_int_equal(rows_open(&w->rows, &w->columns, rows, &model), 0);
    assert_int_equal(join_open(&w->join, &w->columns, join, &w->rows, core_join_note, w), 0);
}

static inline void core_join_close(struct core_join *w)
{
    join_close(&w->join);
    rows_close(&w->rows);
    columns_close(&w->columns);
}

// A second one that goes on from the first one's columns, as after a restart.
static inline void core_join_restart(struct core_join *to, const struct core_join *from,
                                     const struct rows_options *rows,
                                     const struct join_options *join)
{
    struct core_copy copy;
    core_join_open(to, rows, join);
    core_copy_take(&copy, &from->columns);
    core_copy_restore(&copy, &to->columns);
    core_copy_free(&copy);
    assert_int_equal(rows_rebuild(&to->rows), 0);
    assert_int_equal(join_rebuild(&to->join), 0);
}
