// SPDX-License-Identifier: Apache-2.0
#include "pipeline/join.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

const char *const outcome_names[OUTCOMES] = {"joined",    "expired", "late",
                                             "duplicate", "orphan",  "rejected"};
const char *const refusal_names[REFUSALS] = {"join_full", "request_full", "actions_full",
                                             "unknown_user", "unknown_item"};

// One open request. Lists are by number + 1, 0 ends them.
struct session {
    int64_t ts_ms;       // of the impression; of the first record while there is none
    int64_t deadline_ms; // when the wheel looks at it
    struct row_ref user; // 8 bytes
    uint32_t items;      // heap block of struct shown
    uint32_t features;   // heap block of the user's features
    uint32_t waiting;    // newest waiting record
    uint32_t wheel_next; // in its bucket
    uint32_t user_older, user_newer;
    uint16_t n_items, capacity, n_waiting;
    uint8_t stage;
    uint8_t reserved;
};

enum stage {
    STAGE_EARLY,  // records wait for the impression
    STAGE_OPEN,   // shown, waiting for engagements
    STAGE_CLOSED, // remembered to tell late from orphan
    STAGE_LOOSE,  // one engagement without request_id, looked up again at its deadline
};

// One impression.
struct shown {
    uint32_t item;
    uint8_t generation, reserved;
    int16_t position; // 32767 stands for everything above; -1 unknown
    uint32_t actions; // bits of the engagements seen
    float propensity;
};

_Static_assert(sizeof(struct shown) == HEAP_GRANULE, "one granule is one impression");

// An engagement or a score without its impression.
struct waiting {
    int64_t ts_ms;
    struct row_ref item;
    struct row_ref user;
    float value;
    uint32_t next;
    uint16_t action;
    uint8_t topic;
    uint8_t reserved[5];
};

struct bucket {
    uint32_t head, tail;
};

struct action_name {
    uint16_t size;
    char bytes[ACTION_BYTES_MAX];
};

enum { WHEEL_BUCKETS_MAX = 1 << 20 };

static struct join_counts *counts(struct join *j)
{
    return column_edit(&j->counts, 0);
}

static struct join_scalars *scalars(struct join *j)
{
    return column_edit(&j->scalars, 0);
}

static const struct join_scalars *scalars_at(const struct join *j)
{
    return column_at(&j->scalars, 0);
}

static struct session *session_edit(struct join *j, uint32_t request)
{
    return column_edit(&j->session, request);
}

static const struct session *session_at(const struct join *j, uint32_t request)
{
    return column_at(&j->session, request);
}

int join_open(struct join *j, struct columns *s, const struct join_options *options,
              struct rows *rows, join_emit_fn emit, void *emit_arg)
{
    *j = (struct join){.options = *options, .rows = rows, .emit = emit, .emit_arg = emit_arg};
    j->window_max_ms = options->window_ms;
    for (int i = 0; i < options->n_windows; i++)
        if (options->windows[i].window_ms > j->window_max_ms)
            j->window_max_ms = options->windows[i].window_ms;
    for (int i = 0; i < JOIN_ACTIONS_MAX; i++)
        j->action_window_ms[i] = options->window_ms;

    // The wheel reaches over window, memory of the closed, and what lies ahead of the watermark.
    const int64_t horizon = 2 * j->window_max_ms + options->lateness_ms + 3600000;
    size_t buckets = 1024;
    j->bucket_ms = 1000;
    while ((int64_t)buckets * j->bucket_ms < horizon) {
        if (buckets < WHEEL_BUCKETS_MAX)
            buckets *= 2;
        else
            j->bucket_ms *= 2;
    }

    // Half of the memory for requests (about 160 bytes with the index), half for impressions.
    const size_t requests = options->bytes_max / 2 / 160 + 64;
    const size_t granules = options->bytes_max / 2 / HEAP_GRANULE + HEAP_GRANULES_MAX;
    int rc = id_table_open(
        &j->request, s,
        &(struct id_table_options){.names = {"join.request_id", "join.request_table", NULL},
                                   .rows_max = requests,
                                   .admit = 1,
                                   .no_text = true});
    if (rc == 0)
        rc = column_open(&j->session, s, "join.session", sizeof(struct session), requests);
    if (rc == 0)
        rc = column_open(&j->newest, s, "join.newest", sizeof(uint32_t), rows->users.row.n_max);
    if (rc == 0)
        rc = column_open(&j->wheel, s, "join.wheel", sizeof(struct bucket), buckets);
    if (rc == 0)
        rc = column_open(&j->waiting, s, "join.waiting", sizeof(struct waiting), requests);
    if (rc == 0)
        rc =
            column_open(&j->action, s, "join.action", sizeof(struct action_name), JOIN_ACTIONS_MAX);
    if (rc == 0)
        rc = column_open(&j->counts, s, "join.counts", sizeof(struct join_counts), 1);
    if (rc == 0)
        rc = column_open(&j->scalars, s, "join.scalars", sizeof(struct join_scalars), 1);
    if (rc == 0)
        rc = heap_open(&j->items, s, "join.items", "join.items_free", granules);
    if (rc < 0) {
        join_close(j);
        return rc;
    }
    column_grow(&j->wheel, buckets);
    column_grow(&j->action, JOIN_ACTIONS_MAX);
    column_grow(&j->counts, 1);
    column_grow(&j->scalars, 1);
    scalars(j)->watermark_ms = INT64_MIN;
    return 0;
}

void join_close(struct join *j)
{
    id_table_close(&j->request);
}

static void action_windows(struct join *j)
{
    for (uint32_t i = 0; i < scalars_at(j)->actions; i++) {
        const struct action_name *name = column_at(&j->action, i);
        for (int w = 0; w < j->options.n_windows; w++) {
            const struct join_window *window = &j->options.windows[w];
            if (strlen(window->action) == name->size &&
                !memcmp(window->action, name->bytes, name->size))
                j->action_window_ms[i] = window->window_ms;
        }
    }
}

int join_rebuild(struct join *j)
{
    action_windows(j);
    return id_table_rebuild(&j->request);
}

int64_t join_watermark(const struct join *j)
{
    return scalars_at(j)->watermark_ms;
}

struct text join_action(const struct join *j, int i)
{
    if (i >= (int)scalars_at(j)->actions)
        return (struct text){0};
    const struct action_name *name = column_at(&j->action, (size_t)i);
    return (struct text){name->bytes, name->size};
}

// The number of the action, a new one if need be; -1 when there are too many.
static int action_number(struct join *j, struct text name)
{
    const uint32_t n = scalars_at(j)->actions;
    for (uint32_t i = 0; i < n; i++) {
        const struct action_name *known = column_at(&j->action, i);
        if (known->size == name.size && !memcmp(known->bytes, name.bytes, name.size))
            return (int)i;
    }
    if (n == JOIN_ACTIONS_MAX || name.size > ACTION_BYTES_MAX)
        return -1;
    struct action_name *added = column_edit(&j->action, n);
    added->size = (uint16_t)name.size;
    memcpy(added->bytes, name.bytes, name.size);
    scalars(j)->actions++;
    action_windows(j);
    return (int)n;
}

// Counting.

static void settle(struct join *j, enum topic topic, enum outcome outcome, uint64_t n)
{
    counts(j)->out[topic][outcome] += n;
}

static void settle_pending(struct join *j, enum topic topic, enum outcome outcome, uint64_t n)
{
    counts(j)->pending[topic] -= n;
    settle(j, topic, outcome, n);
}

static void refuse(struct join *j, enum topic topic, enum refusal reason, uint64_t n)
{
    counts(j)->refused[topic][reason] += n;
    settle(j, topic, REJECTED, n);
}

void join_rejected(struct join *j, enum topic topic, enum reject reason, uint64_t n)
{
    if (reason == REJECT_TOMBSTONE)
        counts(j)->tombstones += n;
    counts(j)->in[topic] += n;
    counts(j)->rejected[topic][reason] += n;
    settle(j, topic, REJECTED, n);
}

bool join_balanced(const struct join *j)
{
    const struct join_counts *c = join_counts(j);
    for (int t = 0; t < TOPICS; t++) {
        uint64_t sum = c->pending[t];
        for (int o = 0; o < OUTCOMES; o++)
            sum += c->out[t][o];
        if (sum != c->in[t])
            return false;
    }
    return true;
}

// The wheel.

static void wheel_add(struct join *j, uint32_t request, int64_t deadline_ms)
{
    struct session *session = session_edit(j, request);
    struct join_scalars *s = scalars(j);
    int64_t number = deadline_ms / j->bucket_ms;
    if (s->watermark_ms == INT64_MIN && s->open == 0)
        s->wheel_at = number; // the very first
    // Beyond the ring: the last bucket, where it is looked at and put on again.
    if (number < s->wheel_at)
        number = s->wheel_at;
    if (number >= s->wheel_at + (int64_t)j->wheel.n)
        number = s->wheel_at + (int64_t)j->wheel.n - 1;
    session->deadline_ms = deadline_ms;
    session->wheel_next = 0;
    struct bucket *bucket = column_edit(&j->wheel, (size_t)number & (j->wheel.n - 1));
    if (bucket->tail)
        session_edit(j, bucket->tail - 1)->wheel_next = request + 1;
    else
        bucket->head = request + 1;
    bucket->tail = request + 1;
    s->open++;
}

// Requests.

static void user_link(struct join *j, uint32_t request)
{
    struct session *session = session_edit(j, request);
    const uint32_t user = session->user.row;
    if (user >= j->newest.n)
        column_grow(&j->newest, user + 1 - j->newest.n);
    uint32_t *newest = column_edit(&j->newest, user);
    session->user_newer = 0;
    session->user_older = *newest;
    if (*newest)
        session_edit(j, *newest - 1)->user_newer = request + 1;
    *newest = request + 1;
}

static void user_unlink(struct join *j, uint32_t request)
{
    const struct session *session = session_at(j, request);
    if (session->user_newer)
        session_edit(j, session->user_newer - 1)->user_older = session->user_older;
    else
        *(uint32_t *)column_edit(&j->newest, session->user.row) = session->user_older;
    if (session->user_older)
        session_edit(j, session->user_older - 1)->user_newer = session->user_newer;
}

// The request of this id, made in stage EARLY and looked at after wait_ms if need be; ID_NO_ROW
// when the join is full.
static int64_t request_of(struct join *j, const struct id *id, int64_t ts_ms, int64_t wait_ms)
{
    bool created;
    const int64_t request = id_table_admit(&j->request, id, ts_ms, &created);
    if (!created)
        return request;
    if (request >= (int64_t)j->session.n)
        column_grow(&j->session, (size_t)request + 1 - j->session.n);
    *session_edit(j, (uint32_t)request) = (struct session){.ts_ms = ts_ms, .stage = STAGE_EARLY};
    wheel_add(j, (uint32_t)request, ts_ms + wait_ms);
    return request;
}

// Moves the list of impressions into a block for at least n; false when there is none.
static bool list_grow(struct join *j, struct session *session, size_t n)
{
    const uint32_t block = heap_take(&j->items, n);
    if (!block)
        return false;
    struct shown *list = heap_edit(&j->items, block, 0, session->n_items + 1);
    if (session->n_items) {
        memcpy(list, heap_at(&j->items, session->items), session->n_items * sizeof *list);
        heap_give(&j->items, session->items, session->capacity);
    }
    session->items = block;
    session->capacity = (uint16_t)heap_capacity(n);
    return true;
}

static size_t feature_granules(const struct join *j)
{
    return heap_granules((size_t)j->options.user_features * sizeof(float));
}

// Emitting.

static void emit(struct join *j, const struct session *session, const struct shown *shown,
                 bool positive, uint16_t action, float value, int64_t engaged_ms)
{
    struct join_counts *c = counts(j);
    if (positive)
        c->positives++;
    else
        c->negatives++;
    if (!rows_valid(&j->rows->users, session->user) ||
        !rows_valid(&j->rows->items, (struct row_ref){shown->item, shown->generation})) {
        c->stale++;
        return;
    }
    const struct labelled labelled = {
        .user = session->user.row,
        .item = shown->item,
        .ts_ms = session->ts_ms,
        .engaged_ms = engaged_ms,
        .value = value,
        .propensity = shown->propensity,
        .position = shown->position,
        .action = action,
        .positive = positive,
        .user_features = session->features ? heap_at(&j->items, session->features) : NULL,
    };
    j->emit(j->emit_arg, &labelled);
}

// The outcome of an engagement with item on an open request, ORPHAN when the item was not shown.
static enum outcome engage(struct join *j, uint32_t request, const struct waiting *w)
{
    const struct session *session = session_at(j, request);
    const struct shown *list = session->n_items ? heap_at(&j->items, session->items) : NULL;
    for (int i = 0; i < session->n_items; i++) {
        if (list[i].item != w->item.row || list[i].generation != w->item.generation)
            continue;
        if (list[i].actions & (1u << w->action))
            return DUPLICATE;
        if (w->ts_ms - session->ts_ms > j->action_window_ms[w->action])
            return LATE;
        // Clocks of clients drift: an engagement may seem to come before its impression.
        if (session->ts_ms - w->ts_ms > j->options.lateness_ms)
            return ORPHAN;
        if (session->stage == STAGE_CLOSED)
            return LATE;
        struct shown *shown = heap_edit(&j->items, session->items, (size_t)i, 1);
        if (!shown->actions)
            settle_pending(j, TOPIC_IMPRESSIONS, JOINED, 1);
        shown->actions |= 1u << w->action;
        emit(j, session, shown, true, w->action, w->value, w->ts_ms);
        return JOINED;
    }
    return ORPHAN;
}

// Waiting records.

static bool wait_for_impression(struct join *j, uint32_t request, const struct waiting *w)
{
    struct join_scalars *s = scalars(j);
    uint32_t place;
    if (session_at(j, request)->n_waiting == REQUEST_WAITING_MAX)
        return false;
    if (s->waiting_free) {
        place = s->waiting_free - 1;
        s->waiting_free = ((const struct waiting *)column_at(&j->waiting, place))->next;
    } else if (j->waiting.n < j->waiting.n_max) {
        place = (uint32_t)j->waiting.n;
        column_grow(&j->waiting, 1);
    } else {
        return false;
    }
    struct session *session = session_edit(j, request);
    struct waiting *copy = column_edit(&j->waiting, place);
    *copy = *w;
    copy->next = session->waiting;
    session->waiting = place + 1;
    session->n_waiting++;
    counts(j)->pending[w->topic]++;
    return true;
}

// Takes all waiting records off the request, oldest first; returns how many.
static int waiting_take(struct join *j, uint32_t request, struct waiting *out)
{
    struct session *session = session_edit(j, request);
    const int n = session->n_waiting;
    for (int i = n; i > 0; i--) {
        const uint32_t place = session->waiting - 1;
        struct waiting *w = column_edit(&j->waiting, place);
        struct join_scalars *s = scalars(j);
        out[i - 1] = *w;
        session->waiting = w->next;
        w->next = s->waiting_free;
        s->waiting_free = place + 1;
    }
    session->n_waiting = 0;
    return n;
}

// The impression has come: who waited is settled, or waits on for an item not shown yet.
static void waiting_retry(struct join *j, uint32_t request)
{
    struct waiting list[REQUEST_WAITING_MAX];
    const int n = waiting_take(j, request, list);
    for (int i = 0; i < n; i++) {
        counts(j)->pending[list[i].topic]--;
        if (list[i].topic == TOPIC_SCORES) {
            settle(j, TOPIC_SCORES, JOINED, 1);
            continue;
        }
        const enum outcome outcome = engage(j, request, &list[i]);
        if (outcome != ORPHAN || !wait_for_impression(j, request, &list[i]))
            settle(j, TOPIC_ENGAGEMENTS, outcome, 1);
    }
}

static void waiting_orphan(struct join *j, uint32_t request)
{
    struct waiting list[REQUEST_WAITING_MAX];
    const int n = waiting_take(j, request, list);
    for (int i = 0; i < n; i++)
        settle_pending(j, list[i].topic, ORPHAN, 1);
}

// Expiry.

static void request_close(struct join *j, uint32_t request)
{
    struct session *session = session_edit(j, request);
    const struct shown *list = session->n_items ? heap_at(&j->items, session->items) : NULL;
    for (int i = 0; i < session->n_items; i++) {
        if (list[i].actions)
            continue;
        settle_pending(j, TOPIC_IMPRESSIONS, EXPIRED, 1);
        emit(j, session, &list[i], false, 0, 0, session->ts_ms);
    }
    waiting_orphan(j, request);
    user_unlink(j, request);
    if (session->features)
        heap_give(&j->items, session->features, feature_granules(j));
    session->features = 0;
    session->stage = STAGE_CLOSED;
}

static void request_forget(struct join *j, uint32_t request)
{
    struct session *session = session_edit(j, request);
    if (session->items)
        heap_give(&j->items, session->items, session->capacity);
    *session = (struct session){0};
    id_table_remove(&j->request, request);
}

// The newest impression of the item to the user not after the engagement; ID_NO_ROW: none. The
// user's requests are linked in the order of arrival, which is not always that of time. No person
// has so many open; for a robot with 20,000 the whole list would cost 0.3 ms an engagement.
static int64_t last_touch(const struct join *j, const struct waiting *w)
{
    uint32_t at =
        w->user.row < j->newest.n ? *(const uint32_t *)column_at(&j->newest, w->user.row) : 0;
    int64_t found = ID_NO_ROW;
    for (int n = 0; at && n < LAST_TOUCH_REQUESTS_MAX;
         n++, at = session_at(j, at - 1)->user_older) {
        const struct session *session = session_at(j, at - 1);
        if (session->user.generation != w->user.generation || session->ts_ms > w->ts_ms ||
            (found >= 0 && session->ts_ms <= session_at(j, (uint32_t)found)->ts_ms))
            continue;
        const struct shown *list = heap_at(&j->items, session->items);
        for (int i = 0; i < session->n_items; i++)
            if (list[i].item == w->item.row && list[i].generation == w->item.generation)
                found = at - 1;
    }
    return found;
}

static void loose_settle(struct join *j, uint32_t request)
{
    struct waiting w[REQUEST_WAITING_MAX];
    const int n = waiting_take(j, request, w);
    for (int i = 0; i < n; i++) {
        const int64_t found = last_touch(j, &w[i]);
        const enum outcome outcome = found < 0 ? ORPHAN : engage(j, (uint32_t)found, &w[i]);
        settle_pending(j, TOPIC_ENGAGEMENTS, outcome, 1);
        if (outcome == JOINED)
            counts(j)->last_touch++;
    }
}

static void request_expire(struct join *j, uint32_t request)
{
    const struct session *session = session_at(j, request);
    if (session->deadline_ms > scalars_at(j)->watermark_ms) {
        wheel_add(j, request, session->deadline_ms); // its deadline has moved
        return;
    }
    switch ((enum stage)session->stage) {
    case STAGE_OPEN:
        request_close(j, request);
        wheel_add(j, request, session->deadline_ms + j->window_max_ms);
        break;
    case STAGE_EARLY:
        waiting_orphan(j, request);
        request_forget(j, request);
        break;
    case STAGE_LOOSE:
        loose_settle(j, request);
        request_forget(j, request);
        break;
    case STAGE_CLOSED:
        waiting_orphan(j, request);
        request_forget(j, request);
        break;
    }
}

void join_advance(struct join *j, int64_t watermark_ms)
{
    struct join_scalars *s = scalars(j);
    if (watermark_ms <= s->watermark_ms)
        return;
    s->watermark_ms = watermark_ms;
    // Floor division: event times are positive, a watermark may not be.
    const int64_t end = watermark_ms >= 0 ? watermark_ms / j->bucket_ms : 0;
    while (s->wheel_at < end) {
        if (s->open == 0) {
            s->wheel_at = end;
            break;
        }
        const size_t at = (size_t)s->wheel_at & (j->wheel.n - 1);
        const struct bucket bucket = *(const struct bucket *)column_at(&j->wheel, at);
        s->wheel_at++; // first, so that nothing is put into the bucket that is being emptied
        if (!bucket.head)
            continue;
        *(struct bucket *)column_edit(&j->wheel, at) = (struct bucket){0};
        for (uint32_t request = bucket.head; request;) {
            const uint32_t next = session_at(j, request - 1)->wheel_next;
            s->open--;
            request_expire(j, request - 1);
            request = next;
        }
    }
}

// Events.

static void push_impressions(struct join *j, const struct event *e)
{
    const uint64_t n = (uint64_t)e->n_items;
    if (e->ts_ms + j->window_max_ms <= scalars_at(j)->watermark_ms) {
        settle(j, TOPIC_IMPRESSIONS, LATE, n);
        return;
    }
    const int64_t user = rows_user(j->rows, &e->user, e->ts_ms);
    if (user < 0) {
        refuse(j, TOPIC_IMPRESSIONS, REFUSED_UNKNOWN_USER, n);
        return;
    }
    const int64_t found = request_of(j, &e->request, e->ts_ms, j->window_max_ms);
    if (found < 0) {
        refuse(j, TOPIC_IMPRESSIONS, REFUSED_JOIN_FULL, n);
        return;
    }
    const uint32_t request = (uint32_t)found;
    struct session *session = session_edit(j, request);
    if (session->stage == STAGE_CLOSED) {
        settle(j, TOPIC_IMPRESSIONS, LATE, n);
        return;
    }
    const struct row_ref ref = rows_user_ref(j->rows, (uint32_t)user);
    if (session->stage == STAGE_EARLY) {
        session->stage = STAGE_OPEN;
        session->ts_ms = e->ts_ms;
        session->deadline_ms = e->ts_ms + j->window_max_ms;
        session->user = ref;
        user_link(j, request);
        if (e->n_features > 0 && j->options.user_features > 0) {
            session->features = heap_take(&j->items, feature_granules(j));
            if (session->features) {
                const int width = j->options.user_features;
                float *x = heap_edit(&j->items, session->features, 0, feature_granules(j));
                memset(x, 0, feature_granules(j) * HEAP_GRANULE);
                memcpy(x, e->features,
                       (size_t)(e->n_features < width ? e->n_features : width) * sizeof *x);
            }
        }
    } else if (session->user.row != ref.row || session->user.generation != ref.generation) {
        // Two users under one request: the second would take the first one's clicks.
        settle(j, TOPIC_IMPRESSIONS, DUPLICATE, n);
        return;
    }

    for (int i = 0; i < e->n_items; i++) {
        const struct event_item *item = &e->items[i];
        const int64_t row = rows_item(j->rows, &item->item, e->ts_ms);
        if (row < 0) {
            refuse(j, TOPIC_IMPRESSIONS, REFUSED_UNKNOWN_ITEM, 1);
            continue;
        }
        if (item->n_features > 0)
            two_tower_item_features(j->rows->model, (uint32_t)row, item->n_features,
                                    item->features);
        const struct row_ref item_ref = rows_item_ref(j->rows, (uint32_t)row);
        const int16_t position = (int16_t)(item->position > INT16_MAX ? INT16_MAX : item->position);
        const struct shown *list = session->n_items ? heap_at(&j->items, session->items) : NULL;
        bool known = false;
        for (int k = 0; k < session->n_items && !known; k++)
            known = list[k].item == item_ref.row && list[k].generation == item_ref.generation &&
                    (list[k].position == position || position < 0);
        if (known) {
            settle(j, TOPIC_IMPRESSIONS, DUPLICATE, 1);
            continue;
        }
        if (session->n_items == REQUEST_IMPRESSIONS_MAX) {
            refuse(j, TOPIC_IMPRESSIONS, REFUSED_REQUEST_FULL, 1);
            continue;
        }
        if (session->n_items == session->capacity) {
            // Take what this record still brings, so that a slate is one block.
            size_t want = (size_t)session->n_items + (size_t)(e->n_items - i);
            if (want > REQUEST_IMPRESSIONS_MAX)
                want = REQUEST_IMPRESSIONS_MAX;
            if (!list_grow(j, session, want)) {
                refuse(j, TOPIC_IMPRESSIONS, REFUSED_JOIN_FULL, 1);
                continue;
            }
        }
        *(struct shown *)heap_edit(&j->items, session->items, session->n_items, 1) =
            (struct shown){.item = item_ref.row,
                           .generation = item_ref.generation,
                           .position = position,
                           .propensity = item->propensity};
        session->n_items++;
        counts(j)->pending[TOPIC_IMPRESSIONS]++;
    }
    if (session->n_waiting)
        waiting_retry(j, request);
}

static void push_engagement(struct join *j, const struct event *e)
{
    const int action = action_number(j, e->action);
    if (action < 0) {
        refuse(j, TOPIC_ENGAGEMENTS, REFUSED_ACTIONS_FULL, 1);
        return;
    }
    const int64_t item = rows_item(j->rows, &e->items[0].item, e->ts_ms);
    if (item < 0) {
        refuse(j, TOPIC_ENGAGEMENTS, REFUSED_UNKNOWN_ITEM, 1);
        return;
    }
    const int64_t user = rows_user(j->rows, &e->user, e->ts_ms);
    if (user < 0) {
        refuse(j, TOPIC_ENGAGEMENTS, REFUSED_UNKNOWN_USER, 1);
        return;
    }
    const struct waiting w = {.ts_ms = e->ts_ms,
                              .item = rows_item_ref(j->rows, (uint32_t)item),
                              .user = rows_user_ref(j->rows, (uint32_t)user),
                              .value = e->value,
                              .action = (uint16_t)action,
                              .topic = TOPIC_ENGAGEMENTS};
    int64_t request;
    if (e->request.kind == ID_ABSENT) {
        request = last_touch(j, &w);
        if (request >= 0) {
            const enum outcome outcome = engage(j, (uint32_t)request, &w);
            settle(j, TOPIC_ENGAGEMENTS, outcome, 1);
            if (outcome == JOINED)
                counts(j)->last_touch++;
            return;
        }
        // Its impression may come yet: it waits under a name of its own.
        char storage[8];
        struct id name = id_of_unsigned(scalars(j)->loose++, storage);
        name.hash = ~name.hash; // apart from producers' integers
        request = request_of(j, &name, e->ts_ms, j->options.lateness_ms);
        if (request >= 0)
            session_edit(j, (uint32_t)request)->stage = STAGE_LOOSE;
    } else {
        request = request_of(j, &e->request, e->ts_ms, j->options.lateness_ms);
    }
    if (request < 0) {
        refuse(j, TOPIC_ENGAGEMENTS, REFUSED_JOIN_FULL, 1);
        return;
    }
    enum outcome outcome = ORPHAN;
    const uint8_t stage = session_at(j, (uint32_t)request)->stage;
    if (stage == STAGE_OPEN || stage == STAGE_CLOSED)
        outcome = engage(j, (uint32_t)request, &w);
    if (outcome != ORPHAN || stage == STAGE_CLOSED)
        settle(j, TOPIC_ENGAGEMENTS, outcome, 1);
    else if (!wait_for_impression(j, (uint32_t)request, &w))
        refuse(j, TOPIC_ENGAGEMENTS, REFUSED_REQUEST_FULL, 1);
}

static void push_scores(struct join *j, const struct event *e)
{
    const int64_t request = request_of(j, &e->request, e->ts_ms, j->options.lateness_ms);
    if (request < 0) {
        refuse(j, TOPIC_SCORES, REFUSED_JOIN_FULL, 1);
        return;
    }
    const struct session *session = session_at(j, (uint32_t)request);
    if (session->stage == STAGE_OPEN)
        settle(j, TOPIC_SCORES, JOINED, 1);
    else if (session->stage == STAGE_CLOSED)
        settle(j, TOPIC_SCORES, LATE, 1);
    else if (!wait_for_impression(j, (uint32_t)request,
                                  &(struct waiting){.ts_ms = e->ts_ms, .topic = TOPIC_SCORES}))
        refuse(j, TOPIC_SCORES, REFUSED_REQUEST_FULL, 1);
}

void join_push(struct join *j, const struct event *e)
{
    counts(j)->in[e->topic] += e->topic == TOPIC_IMPRESSIONS ? (uint64_t)e->n_items : 1;
    switch (e->topic) {
    case TOPIC_IMPRESSIONS:
        push_impressions(j, e);
        break;
    case TOPIC_ENGAGEMENTS:
        push_engagement(j, e);
        break;
    case TOPIC_SCORES:
        push_scores(j, e);
        break;
    case TOPIC_ITEMS:
        if (e->removed || rows_describe_item(j->rows, e) >= 0)
            settle(j, TOPIC_ITEMS, JOINED, 1);
        else
            refuse(j, TOPIC_ITEMS, REFUSED_UNKNOWN_ITEM, 1);
        break;
    case TOPICS:
        assert(false);
    }
}
