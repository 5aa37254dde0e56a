// SPDX-License-Identifier: Apache-2.0
#include "pipeline/join.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <string.h>

const char *const outcome_names[OUTCOMES] = {"joined",    "expired", "late",
                                             "duplicate", "orphan",  "rejected"};
const char *const refusal_names[REFUSALS] = {"join_full",    "request_full", "actions_full",
                                             "unknown_user", "unknown_item", "shed"};
const char *const slate_count_names[SLATE_COUNTS] = {
    [SLATES_CLOSED] = "slates_closed",
    [SLATES_SPLIT] = "slates_split",
    [SLATES_UNTAUGHT] = "slates_untaught",
    [SLATES_EXPIRED] = "slates_expired",
    [SLATES_EARLY] = "slates_early",
    [SLATES_LATE_POSITIVE] = "slates_late_positive",
    [SLATE_ITEMS] = "slate_items",
    [SLATE_ITEMS_CUT] = "slate_items_cut",
    [SLATE_ITEMS_SCORED] = "slate_items_scored",
    [SLATE_LABELS] = "slate_labels",
    [SCORES_KEPT] = "scores_kept",
    [SCORES_DUPLICATE] = "duplicate_scores",
    [SCORES_UNKNOWN_ITEM] = "scores_unknown_item",
    [SCORES_UNKNOWN_RANKER] = "scores_unknown_ranker",
    [SCORES_STALE] = "scores_stale",
    [SCORES_LATE] = "scores_late",
    [SCORES_FULL] = "scores_full",
    [SCORES_WITHOUT_TASK] = "scores_without_task",
    [SCORES_SAME_TASK] = "scores_same_task",
    [ENGAGEMENTS_WITHOUT_TASK] = "engagements_without_task",
    [SURFACES_UNNUMBERED] = "surfaces_unnumbered",
};

static const char *const task_of_all[] = {"*"};

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
    uint8_t surface; // its number
};

// What a request keeps for its slates, by the same row.
struct pending_slate {
    struct scored_list scores;
    uint8_t early_left; // the slate as of the feedback delay has been emitted
    uint8_t reserved[3];
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

// A name that has a number.
struct name {
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

static void slate_count(struct join *j, enum slate_count count, uint64_t n)
{
    ((uint64_t *)column_edit(&j->slate_counts, 0))[count] += n;
}

static struct pending_slate *pending_edit(struct join *j, uint32_t request)
{
    return column_edit(&j->pending, request);
}

static struct session *session_edit(struct join *j, uint32_t request)
{
    return column_edit(&j->session, request);
}

static const struct session *session_at(const struct join *j, uint32_t request)
{
    return column_at(&j->session, request);
}

// Names.

static bool name_is(const struct name *name, struct text text)
{
    return name->size == text.size &&
           (text.size == 0 || !memcmp(name->bytes, text.bytes, text.size));
}

static void name_set(struct name *name, struct text text)
{
    name->size = (uint16_t)text.size;
    if (text.size > 0)
        memcpy(name->bytes, text.bytes, text.size);
}

static struct text text_of(const char *string)
{
    return (struct text){string, (uint32_t)strlen(string)};
}

// The place of the text among the first n names; -1 when it is not there.
static int name_find(const struct column *names, size_t n, struct text text)
{
    for (size_t i = 0; i < n; i++)
        if (name_is(column_at(names, i), text))
            return (int)i;
    return -1;
}

// The number of a name from 1 on, a new one if need be; 0 when there are too many.
static int name_number(struct column *names, struct text text)
{
    const int known = name_find(names, names->n, text);
    if (known >= 0)
        return known + 1;
    if (names->n == names->n_max || text.size > ACTION_BYTES_MAX)
        return 0;
    column_grow(names, 1);
    name_set(column_edit(names, names->n - 1), text);
    return (int)names->n;
}

// The columns that only slates need.
static int slates_open(struct join *j, struct columns *s, size_t requests)
{
    int rc = column_open(&j->pending, s, "join.slate", sizeof(struct pending_slate), requests);
    if (rc == 0)
        rc = column_open(&j->task, s, "join.task", sizeof(struct name), SLATE_TASKS_MAX);
    if (rc == 0)
        rc = column_open(&j->ranker, s, "join.ranker", sizeof(struct name), RANKERS_MAX);
    if (rc == 0)
        rc = column_open(&j->ranker_times, s, "join.ranker_times", sizeof(struct ranker_times),
                         RANKERS_MAX);
    if (rc == 0)
        rc = column_open(&j->surface, s, "join.surface", sizeof(struct name), SURFACES_MAX - 1);
    if (rc == 0)
        rc = column_open(&j->slate_counts, s, "join.slate_counts", SLATE_COUNTS * sizeof(uint64_t),
                         1);
    if (rc < 0)
        return rc;
    column_grow(&j->slate_counts, 1);
    column_grow(&j->task, (size_t)j->options.n_tasks);
    for (int i = 0; i < j->options.n_tasks; i++)
        name_set(column_edit(&j->task, (size_t)i), text_of(j->options.tasks[i]));
    return 0;
}

// Lists of scores and labels that wait were made of the tasks of then.
static int slates_rebuild(const struct join *j)
{
    if (j->task.n != (size_t)j->options.n_tasks || j->pending.n != j->session.n ||
        j->ranker_times.n > j->ranker.n || j->slate_counts.n != 1)
        return -EINVAL;
    for (int i = 0; i < j->options.n_tasks; i++)
        if (!name_is(column_at(&j->task, (size_t)i), text_of(j->options.tasks[i])))
            return -EINVAL;
    return 0;
}

int join_open(struct join *j, struct columns *s, const struct join_options *options,
              struct rows *rows, join_emit_fn emit, void *emit_arg)
{
    *j = (struct join){.options = *options, .rows = rows, .emit = emit, .emit_arg = emit_arg};
    j->window_max_ms = options->window_ms;
    for (int i = 0; i < options->n_windows; i++)
        if (options->windows[i].window_ms > j->window_max_ms)
            j->window_max_ms = options->windows[i].window_ms;
    for (int i = 0; i < JOIN_ACTIONS_MAX; i++) {
        j->action_window_ms[i] = options->window_ms;
        j->action_task[i] = TASK_NONE;
    }
    if (options->feedback_delay_ms < j->window_max_ms && options->slates)
        j->feedback_delay_ms = options->feedback_delay_ms;
    if (options->n_tasks == 0) {
        j->options.tasks = task_of_all;
        j->options.n_tasks = 1;
    }
    assert(j->options.n_tasks <= SLATE_TASKS_MAX);
    for (int i = 0; i < j->options.n_tasks; i++)
        assert(strlen(j->options.tasks[i]) <= ACTION_BYTES_MAX);

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

    // Half of the memory for requests (about 160 bytes with the index), half for impressions and
    // their scores.
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
        rc = column_open(&j->action, s, "join.action", sizeof(struct name), JOIN_ACTIONS_MAX);
    if (rc == 0)
        rc = column_open(&j->counts, s, "join.counts", sizeof(struct join_counts), 1);
    if (rc == 0)
        rc = column_open(&j->scalars, s, "join.scalars", sizeof(struct join_scalars), 1);
    if (rc == 0)
        rc = heap_open(&j->items, s, "join.items", "join.items_free", granules);
    if (rc == 0 && options->slates)
        rc = slates_open(j, s, requests);
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

// The task of an action or of a score's name.
static uint8_t task_of(const struct join *j, struct text name)
{
    uint8_t rest = TASK_NONE;
    for (int t = 0; t < j->options.n_tasks; t++) {
        const struct text task = text_of(j->options.tasks[t]);
        if (task.size == name.size && !memcmp(task.bytes, name.bytes, name.size))
            return (uint8_t)t;
        if (task.size == 1 && *task.bytes == '*')
            rest = (uint8_t)t;
    }
    return rest;
}

// What the options say about the actions that have a number.
static void actions_map(struct join *j)
{
    for (uint32_t i = 0; i < scalars_at(j)->actions; i++) {
        const struct name *name = column_at(&j->action, i);
        j->action_task[i] = task_of(j, (struct text){name->bytes, name->size});
        for (int w = 0; w < j->options.n_windows; w++)
            if (name_is(name, text_of(j->options.windows[w].action)))
                j->action_window_ms[i] = j->options.windows[w].window_ms;
    }
}

int join_rebuild(struct join *j)
{
    actions_map(j);
    const int rc = j->options.slates ? slates_rebuild(j) : 0;
    return rc < 0 ? rc : id_table_rebuild(&j->request);
}

int64_t join_watermark(const struct join *j)
{
    return scalars_at(j)->watermark_ms;
}

struct text join_action(const struct join *j, int i)
{
    if (i >= (int)scalars_at(j)->actions)
        return (struct text){0};
    const struct name *name = column_at(&j->action, (size_t)i);
    return (struct text){name->bytes, name->size};
}

struct text join_ranker(const struct join *j, int i)
{
    if (!j->options.slates || i < 1 || i > (int)j->ranker.n)
        return (struct text){0};
    const struct name *name = column_at(&j->ranker, (size_t)i - 1);
    return (struct text){name->bytes, name->size};
}

const struct ranker_times *join_ranker_times(const struct join *j, int i)
{
    assert(i > 0 && i <= (int)j->ranker.n);
    const struct ranker_times *times =
        i <= (int)j->ranker_times.n ? column_at(&j->ranker_times, (size_t)i - 1) : NULL;
    return times && times->newest_ms > 0 ? times : NULL;
}

// A score of version number `ranker` was kept.
static void ranker_seen(struct join *j, int ranker, int64_t ts_ms)
{
    struct ranker_times *times = column_reach(&j->ranker_times, (size_t)ranker - 1);
    if (times->oldest_ms == 0 || ts_ms < times->oldest_ms)
        times->oldest_ms = ts_ms;
    if (ts_ms > times->newest_ms)
        times->newest_ms = ts_ms;
}

// The number of the action, a new one if need be; -1 when there are too many.
static int action_number(struct join *j, struct text name)
{
    const uint32_t n = scalars_at(j)->actions;
    const int known = name_find(&j->action, n, name);
    if (known >= 0)
        return known;
    if (n == JOIN_ACTIONS_MAX || name.size > ACTION_BYTES_MAX)
        return -1;
    name_set(column_edit(&j->action, n), name);
    scalars(j)->actions++;
    actions_map(j);
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

void join_shed(struct join *j, int permille)
{
    j->shed_permille = permille;
}

double join_fill(const struct join *j)
{
    const double requests =
        (double)id_table_state(&j->request)->live / (double)j->request.row.n_max;
    const double lists = heap_fill(&j->items);
    return requests > lists ? requests : lists;
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

// All requests wait for what is beyond the watermark: puts them on again around bucket `at`.
// Without it a watermark that jumps by years, from one record with an old time to the next, would
// turn the wheel year by year, and look at every request in every turn.
static void wheel_seat(struct join *j, int64_t at)
{
    struct join_scalars *s = scalars(j);
    uint32_t first = 0, last = 0;
    for (size_t i = 0; i < j->wheel.n; i++) {
        const size_t place = (size_t)(s->wheel_at + (int64_t)i) & (j->wheel.n - 1);
        const struct bucket bucket = *(const struct bucket *)column_at(&j->wheel, place);
        if (!bucket.head)
            continue;
        *(struct bucket *)column_edit(&j->wheel, place) = (struct bucket){0};
        if (last)
            session_edit(j, last - 1)->wheel_next = bucket.head;
        else
            first = bucket.head;
        last = bucket.tail;
    }
    s->wheel_at = at;
    s->open = 0;
    for (uint32_t request = first; request;) {
        const uint32_t next = session_at(j, request - 1)->wheel_next;
        wheel_add(j, request - 1, session_at(j, request - 1)->deadline_ms);
        request = next;
    }
}

// Requests.

static void user_link(struct join *j, uint32_t request)
{
    struct session *session = session_edit(j, request);
    const uint32_t user = session->user.row;
    uint32_t *newest = column_reach(&j->newest, user);
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

// Whether a new request of this id is left out while some are. The hash is mixed
// once more: tables and producers' partitions go by its plain bits.
static bool is_shed(const struct join *j, const struct id *id)
{
    return ((id->hash * UINT64_C(0x9e3779b97f4a7c15)) >> 32) % 1000 < (uint64_t)j->shed_permille;
}

// Why request_of had none for this id.
static enum refusal request_refusal(const struct join *j, const struct id *id)
{
    return is_shed(j, id) ? REFUSED_SHED : REFUSED_JOIN_FULL;
}

// The request of this id, made in stage EARLY and looked at after wait_ms if need be; below 0 when
// the join is full, or not to be filled further with it.
static int64_t request_of(struct join *j, const struct id *id, int64_t ts_ms, int64_t wait_ms)
{
    bool created;
    if (j->shed_permille > 0 && is_shed(j, id) && id_table_find(&j->request, id) < 0)
        return -1;
    const int64_t request = id_table_admit(&j->request, id, ts_ms, &created);
    if (!created)
        return request;
    if (request >= (int64_t)j->session.n) {
        if (j->options.slates)
            column_grow(&j->pending, (size_t)request + 1 - j->session.n);
        column_grow(&j->session, (size_t)request + 1 - j->session.n);
    }
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

static const float *features_of(const struct join *j, const struct session *session)
{
    return session->features ? heap_at(&j->items, session->features) : NULL;
}

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
        .surface = session->surface,
        .task = positive ? j->action_task[action] : TASK_NONE,
        .user_features = features_of(j, session),
    };
    j->emit(j->emit_arg, &labelled);
}

// Slates.

static uint32_t labels_of(const struct join *j, uint32_t actions)
{
    uint32_t labels = 0;
    for (; actions; actions &= actions - 1) {
        const uint8_t task = j->action_task[__builtin_ctz(actions)];
        if (task != TASK_NONE)
            labels |= 1u << task;
    }
    return labels;
}

// A slate while it is put together.
struct draft {
    struct slate slate;
    float scores[SLATE_ITEMS_MAX * SLATE_TASKS_MAX]; // (n_items, tasks)
    uint64_t cut;
};

static struct slate_item *draft_add(const struct join *j, struct draft *d, struct slate_item item)
{
    float *scores = d->scores + d->slate.n_items * j->options.n_tasks;
    for (int t = 0; t < j->options.n_tasks; t++)
        scores[t] = NAN;
    d->slate.items[d->slate.n_items] = item;
    return &d->slate.items[d->slate.n_items++];
}

static void draft_add_shown(const struct join *j, struct draft *d, const struct shown *shown)
{
    draft_add(j, d,
              (struct slate_item){.item = shown->item,
                                  .propensity = shown->propensity,
                                  .position = shown->position,
                                  .shown = 1,
                                  .labels = labels_of(j, shown->actions)});
}

// The request's impressions in the order of their positions, those without one last; ties as they
// came. Returns how many have their rows still, with their places in the list.
static int shown_in_order(const struct join *j, const struct session *session,
                          const struct shown *list, uint16_t *places)
{
    int n = 0;
    for (uint16_t i = 0; i < session->n_items; i++) {
        if (!rows_valid(&j->rows->items, (struct row_ref){list[i].item, list[i].generation}))
            continue;
        // They come in order or nearly so: insertion looks at each once.
        const uint16_t position = (uint16_t)list[i].position; // -1 is the largest
        int at = n++;
        for (; at > 0 && (uint16_t)list[places[at - 1]].position > position; at--)
            places[at] = places[at - 1];
        places[at] = i;
    }
    return n;
}

// Of more than a slate takes, those with labels stay first, then the first in order.
static int shown_cut(const struct join *j, const struct shown *list, uint16_t *places, int n)
{
    int labelled = 0, kept = 0;
    for (int i = 0; i < n; i++)
        labelled += labels_of(j, list[places[i]].actions) != 0;
    if (labelled > SLATE_ITEMS_MAX)
        labelled = SLATE_ITEMS_MAX;
    int others = SLATE_ITEMS_MAX - labelled;
    for (int i = 0; i < n; i++) {
        int *left = labels_of(j, list[places[i]].actions) ? &labelled : &others;
        if (*left == 0)
            continue;
        --*left;
        places[kept++] = places[i];
    }
    return kept;
}

static bool draft_begin(const struct join *j, struct draft *d, const struct session *session,
                        enum slate_kind kind)
{
    if (!rows_valid(&j->rows->users, session->user))
        return false;
    d->cut = 0;
    d->slate = (struct slate){.user = session->user.row,
                              .kind = (uint8_t)kind,
                              .surface = session->surface,
                              .ts_ms = session->ts_ms};
    return true;
}

static void draft_shown(const struct join *j, struct draft *d, const struct session *session)
{
    uint16_t places[REQUEST_IMPRESSIONS_MAX];
    const struct shown *list = heap_at(&j->items, session->items);
    const int n = shown_in_order(j, session, list, places);
    const int kept = n > SLATE_ITEMS_MAX ? shown_cut(j, list, places, n) : n;
    for (int i = 0; i < kept; i++)
        draft_add_shown(j, d, &list[places[i]]);
    d->cut += (uint64_t)(n - kept);
}

static bool was_shown(const struct join *j, const struct session *session,
                      const struct scored_item *s)
{
    const struct shown *list = heap_at(&j->items, session->items);
    for (int i = 0; i < session->n_items; i++)
        if (list[i].item == s->item && list[i].generation == s->generation)
            return true;
    return false;
}

// Adds the scores of one version, and the items that it alone brings. Returns how many items of the
// slate have one.
static int draft_score(const struct join *j, struct draft *d, const struct session *session,
                       const struct scored_list *scores, uint8_t ranker)
{
    const int tasks = j->options.n_tasks, shown = d->slate.n_items;
    const size_t bytes = (size_t)tasks * sizeof(float);
    int n = 0;
    d->slate.ranker = ranker;
    for (int i = 0; i < scores->n; i++) {
        const struct scored_item *s = scored_at(&j->items, scores, tasks, i);
        if (s->ranker != ranker ||
            !rows_valid(&j->rows->items, (struct row_ref){s->item, s->generation}))
            continue;
        if (was_shown(j, session, s)) {
            for (int k = 0; k < shown; k++)
                if (d->slate.items[k].item == s->item) {
                    memcpy(d->scores + k * tasks, s->score, bytes);
                    n++;
                }
        } else if (d->slate.n_items < SLATE_ITEMS_MAX) {
            draft_add(j, d, (struct slate_item){.item = s->item, .position = -1});
            memcpy(d->scores + (d->slate.n_items - 1) * tasks, s->score, bytes);
            n++;
        } else {
            d->cut++;
        }
    }
    return n;
}

// The next version after entry *at that has a score of an item that is still there, and had none
// before; 0 at the end.
static uint8_t next_ranker(const struct join *j, const struct scored_list *scores, int *at,
                           bool seen[RANKERS_MAX + 1])
{
    for (; *at < scores->n; ++*at) {
        const struct scored_item *s = scored_at(&j->items, scores, j->options.n_tasks, *at);
        if (seen[s->ranker] ||
            !rows_valid(&j->rows->items, (struct row_ref){s->item, s->generation}))
            continue;
        seen[s->ranker] = true;
        return s->ranker;
    }
    return 0;
}

static uint64_t labels_in(const struct slate *slate)
{
    uint64_t n = 0;
    for (int i = 0; i < slate->n_items; i++)
        n += (uint64_t)__builtin_popcount(slate->items[i].labels);
    return n;
}

// One closed slate, with the scores of one version (0: none); false when nothing is left to tell.
static bool slate_close(struct join *j, const struct session *session,
                        const struct scored_list *scores, uint8_t ranker, bool repeated)
{
    struct draft d;
    int scored = 0;
    if (!draft_begin(j, &d, session, SLATE_CLOSED))
        return false;
    draft_shown(j, &d, session);
    if (ranker)
        scored = draft_score(j, &d, session, scores, ranker);
    if (d.slate.n_items == 0)
        return false;
    d.slate.repeated = repeated;
    slate_count(j, SLATE_ITEMS_SCORED, (uint64_t)scored);
    slate_count(j, repeated ? SLATES_SPLIT : SLATES_CLOSED, 1);
    if (!repeated) {
        slate_count(j, SLATES_UNTAUGHT, ranker == 0);
        slate_count(j, SLATE_ITEMS, d.slate.n_items);
        slate_count(j, SLATE_ITEMS_CUT, d.cut);
        slate_count(j, SLATE_LABELS, labels_in(&d.slate));
    }
    j->slate(j->emit_arg, &d.slate, d.scores, features_of(j, session));
    return true;
}

// The request's windows have closed: one slate, and one more for each further ranker version.
static void slates_close(struct join *j, uint32_t request)
{
    const struct session *session = session_at(j, request);
    const struct pending_slate *pending = column_at(&j->pending, request);
    bool seen[RANKERS_MAX + 1] = {false};
    int at = 0;
    if (session->n_items == 0)
        return;
    uint8_t ranker = next_ranker(j, &pending->scores, &at, seen);
    if (!slate_close(j, session, &pending->scores, ranker, false)) {
        slate_count(j, SLATES_EXPIRED, 1);
        return;
    }
    while (ranker && (ranker = next_ranker(j, &pending->scores, &at, seen)))
        slate_close(j, session, &pending->scores, ranker, true);
}

// The feedback delay is over.
static void slate_early(struct join *j, uint32_t request)
{
    const struct session *session = session_at(j, request);
    struct draft d;
    pending_edit(j, request)->early_left = 1;
    if (session->n_items == 0 || !draft_begin(j, &d, session, SLATE_EARLY))
        return;
    draft_shown(j, &d, session);
    if (d.slate.n_items == 0)
        return;
    slate_count(j, SLATES_EARLY, 1);
    j->slate(j->emit_arg, &d.slate, d.scores, features_of(j, session));
}

// An engagement has given these labels to an impression that an early slate showed without them.
static void slate_late_positive(struct join *j, const struct session *session,
                                const struct shown *shown, uint32_t labels)
{
    struct draft d;
    if (!labels || !draft_begin(j, &d, session, SLATE_LATE_POSITIVE) ||
        !rows_valid(&j->rows->items, (struct row_ref){shown->item, shown->generation}))
        return;
    draft_add_shown(j, &d, shown);
    d.slate.items[0].labels = labels;
    slate_count(j, SLATES_LATE_POSITIVE, 1);
    j->slate(j->emit_arg, &d.slate, d.scores, features_of(j, session));
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
        const uint32_t before = labels_of(j, shown->actions);
        if (!shown->actions)
            settle_pending(j, TOPIC_IMPRESSIONS, JOINED, 1);
        shown->actions |= 1u << w->action;
        emit(j, session, shown, true, w->action, w->value, w->ts_ms);
        if (j->options.slates) {
            slate_count(j, ENGAGEMENTS_WITHOUT_TASK, j->action_task[w->action] == TASK_NONE);
            const struct pending_slate *pending = column_at(&j->pending, request);
            if (pending->early_left)
                slate_late_positive(j, session, shown, labels_of(j, shown->actions) & ~before);
        }
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
    if (j->options.slates) {
        slates_close(j, request);
        scored_free(&j->items, &pending_edit(j, request)->scores);
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
    if (j->options.slates) {
        struct pending_slate *pending = pending_edit(j, request);
        scored_free(&j->items, &pending->scores);
        *pending = (struct pending_slate){0};
    }
    id_table_remove(&j->request, request);
}

// The newest impression of the item to the user not after the engagement; ID_NO_ROW: none. The
// user's requests are linked in the order of arrival, which is not always that of time. No person
// has so many open; for a robot with 20,000 the whole list would cost 0.3 ms an engagement, and
// requests of a thousand items a hundred times that.
static int64_t last_touch(const struct join *j, const struct waiting *w)
{
    uint32_t at =
        w->user.row < j->newest.n ? *(const uint32_t *)column_at(&j->newest, w->user.row) : 0;
    int64_t found = ID_NO_ROW;
    int looked = 0;
    for (int n = 0; at && n < LAST_TOUCH_REQUESTS_MAX && looked < LAST_TOUCH_IMPRESSIONS_MAX;
         n++, at = session_at(j, at - 1)->user_older) {
        const struct session *session = session_at(j, at - 1);
        looked += session->n_items;
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

// How long after its impression a request is looked at first.
static int64_t first_look_ms(const struct join *j)
{
    return j->feedback_delay_ms > 0 ? j->feedback_delay_ms : j->window_max_ms;
}

// The feedback delay of the request is over, and perhaps its windows too: true when they are not,
// and it is looked at again.
static bool request_goes_on(struct join *j, uint32_t request)
{
    const struct session *session = session_at(j, request);
    const struct pending_slate *pending = column_at(&j->pending, request);
    const int64_t end_ms = session->ts_ms + j->window_max_ms;
    if (pending->early_left)
        return false;
    slate_early(j, request);
    if (end_ms / j->bucket_ms < scalars_at(j)->wheel_at)
        return false; // its last bucket has been emptied
    wheel_add(j, request, end_ms);
    return true;
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
        if (j->feedback_delay_ms > 0 && request_goes_on(j, request))
            break;
        request_close(j, request);
        wheel_add(j, request, session->ts_ms + 2 * j->window_max_ms);
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

// How many buckets from wheel_at on hold nobody, at most n. Event time often jumps over thousands
// of them, so eight are looked at at once.
static size_t wheel_empty(const struct join *j, size_t n)
{
    const size_t at = (size_t)scalars_at(j)->wheel_at & (j->wheel.n - 1);
    const struct bucket *bucket = column_at(&j->wheel, at);
    const size_t row = j->wheel.n - at; // up to the end of the ring
    size_t i = 0;
    if (n > row)
        n = row;
    for (; i + 8 <= n; i += 8) {
        uint32_t any = 0;
        for (size_t k = i; k < i + 8; k++)
            any |= bucket[k].head;
        if (any)
            break;
    }
    while (i < n && !bucket[i].head)
        i++;
    return i;
}

void join_advance(struct join *j, int64_t watermark_ms)
{
    struct join_scalars *s = scalars(j);
    if (watermark_ms <= s->watermark_ms)
        return;
    s->watermark_ms = watermark_ms;
    // Floor division: event times are positive, a watermark may not be.
    const int64_t end = watermark_ms >= 0 ? watermark_ms / j->bucket_ms : 0;
    bool quiet = true; // in this turn nothing was done but to put requests on again
    for (size_t turned = 0; s->wheel_at < end;) {
        if (s->open == 0) {
            s->wheel_at = end;
            break;
        }
        if (turned == j->wheel.n) {
            if (quiet) {
                wheel_seat(j, end);
                break;
            }
            turned = 0;
            quiet = true;
        }
        const size_t left = j->wheel.n - turned;
        const uint64_t ahead = (uint64_t)(end - s->wheel_at);
        const size_t empty = wheel_empty(j, ahead < left ? (size_t)ahead : left);
        if (empty > 0) {
            s->wheel_at += (int64_t)empty;
            turned += empty;
            continue;
        }
        const size_t at = (size_t)s->wheel_at & (j->wheel.n - 1);
        const struct bucket bucket = *(const struct bucket *)column_at(&j->wheel, at);
        s->wheel_at++; // first, so that nothing is put into the bucket that is being emptied
        turned++;
        *(struct bucket *)column_edit(&j->wheel, at) = (struct bucket){0};
        for (uint32_t request = bucket.head; request;) {
            const uint32_t next = session_at(j, request - 1)->wheel_next;
            quiet &= session_at(j, request - 1)->deadline_ms > watermark_ms;
            s->open--;
            request_expire(j, request - 1);
            request = next;
        }
    }
}

// Events.

// Keeps the user's features with the request; without room for them it goes on without.
static void features_keep(struct join *j, struct session *session, const struct event *e)
{
    const int width = j->options.user_features;
    if (e->n_features == 0 || width == 0)
        return;
    session->features = heap_take(&j->items, feature_granules(j));
    if (!session->features)
        return;
    float *x = heap_edit(&j->items, session->features, 0, feature_granules(j));
    memset(x, 0, feature_granules(j) * HEAP_GRANULE);
    memcpy(x, e->features, (size_t)(e->n_features < width ? e->n_features : width) * sizeof *x);
}

static uint8_t surface_number(struct join *j, struct text name)
{
    if (name.size == 0)
        return 0;
    const int number = name_number(&j->surface, name);
    slate_count(j, SURFACES_UNNUMBERED, number == 0);
    return (uint8_t)number;
}

// The first impression has come: the request is this user's, and its time is this record's.
static void request_show(struct join *j, uint32_t request, const struct event *e,
                         struct row_ref user)
{
    struct session *session = session_edit(j, request);
    if (j->options.slates) {
        // What was scored ahead is as old as the impression says.
        const int gone =
            scored_shift(&j->items, &pending_edit(j, request)->scores, j->options.n_tasks,
                         e->ts_ms - session->ts_ms, j->options.score_max_age_ms);
        slate_count(j, SCORES_STALE, (uint64_t)gone);
        session->surface = surface_number(j, e->surface);
    }
    session->stage = STAGE_OPEN;
    session->ts_ms = e->ts_ms;
    session->deadline_ms = e->ts_ms + first_look_ms(j);
    session->user = user;
    user_link(j, request);
    features_keep(j, session, e);
}

static bool shown_before(const struct join *j, const struct session *session,
                         const struct shown *shown)
{
    const struct shown *list = session->n_items ? heap_at(&j->items, session->items) : NULL;
    for (int i = 0; i < session->n_items; i++)
        if (list[i].item == shown->item && list[i].generation == shown->generation &&
            (list[i].position == shown->position || shown->position < 0))
            return true;
    return false;
}

// Room for one more impression, and for what its record still brings, so that a slate is one block.
static bool list_reserve(struct join *j, struct session *session, int more)
{
    if (session->n_items < session->capacity)
        return true;
    size_t want = (size_t)session->n_items + (size_t)more;
    if (want > REQUEST_IMPRESSIONS_MAX)
        want = REQUEST_IMPRESSIONS_MAX;
    return list_grow(j, session, want);
}

// Item i of the record joins the open request.
static void impression_add(struct join *j, struct session *session, const struct event *e, int i)
{
    const struct event_item *item = &e->items[i];
    const int64_t row = rows_item(j->rows, &item->item, e->ts_ms);
    if (row < 0) {
        refuse(j, TOPIC_IMPRESSIONS, REFUSED_UNKNOWN_ITEM, 1);
        return;
    }
    if (item->n_features > 0)
        two_tower_item_features(j->rows->model, (uint32_t)row, item->n_features, item->features);
    const struct row_ref ref = rows_item_ref(j->rows, (uint32_t)row);
    const struct shown shown = {
        .item = ref.row,
        .generation = ref.generation,
        .position = (int16_t)(item->position > INT16_MAX ? INT16_MAX : item->position),
        .propensity = item->propensity,
    };
    if (shown_before(j, session, &shown)) {
        settle(j, TOPIC_IMPRESSIONS, DUPLICATE, 1);
    } else if (session->n_items == REQUEST_IMPRESSIONS_MAX) {
        refuse(j, TOPIC_IMPRESSIONS, REFUSED_REQUEST_FULL, 1);
    } else if (!list_reserve(j, session, e->n_items - i)) {
        refuse(j, TOPIC_IMPRESSIONS, REFUSED_JOIN_FULL, 1);
    } else {
        *(struct shown *)heap_edit(&j->items, session->items, session->n_items, 1) = shown;
        session->n_items++;
        counts(j)->pending[TOPIC_IMPRESSIONS]++;
    }
}

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
    const int64_t found = request_of(j, &e->request, e->ts_ms, first_look_ms(j));
    if (found < 0) {
        refuse(j, TOPIC_IMPRESSIONS, request_refusal(j, &e->request), n);
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
        request_show(j, request, e, ref);
    } else if (session->user.row != ref.row || session->user.generation != ref.generation) {
        // Two users under one request: the second would take the first one's clicks.
        settle(j, TOPIC_IMPRESSIONS, DUPLICATE, n);
        return;
    }
    for (int i = 0; i < e->n_items; i++)
        impression_add(j, session, e, i);
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
    const struct id *name = &e->request;
    struct id loose;
    char storage[8];
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
        loose = id_of_unsigned(scalars(j)->loose++, storage);
        loose.hash = ~loose.hash; // apart from producers' integers
        name = &loose;
        request = request_of(j, name, e->ts_ms, j->options.lateness_ms);
        if (request >= 0)
            session_edit(j, (uint32_t)request)->stage = STAGE_LOOSE;
    } else {
        request = request_of(j, &e->request, e->ts_ms, j->options.lateness_ms);
    }
    if (request < 0) {
        refuse(j, TOPIC_ENGAGEMENTS, request_refusal(j, name), 1);
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

// The scores of one item by task; false when no task names any of them.
static bool item_scores(struct join *j, const struct event_item *item,
                        float scores[SLATE_TASKS_MAX])
{
    bool any = false;
    for (int t = 0; t < j->options.n_tasks; t++)
        scores[t] = NAN;
    for (int i = 0; i < item->n_scores; i++) {
        const uint8_t task = task_of(j, item->scores[i].task);
        if (task == TASK_NONE) {
            slate_count(j, SCORES_WITHOUT_TASK, 1);
        } else if (!isnan(scores[task])) {
            slate_count(j, SCORES_SAME_TASK, 1); // the first is the one the ranker leads with
        } else {
            scores[task] = item->scores[i].score;
            any = true;
        }
    }
    return any;
}

// Keeps the record's scores with the request. While that waits for its impression its time is that
// of its first record; request_show puts the ages right.
static void scores_keep(struct join *j, uint32_t request, const struct event *e)
{
    const struct session *session = session_at(j, request);
    struct scored_list *list = &pending_edit(j, request)->scores;
    const int64_t age_ms = session->ts_ms - e->ts_ms;
    if (session->stage == STAGE_OPEN && j->options.score_max_age_ms > 0 &&
        age_ms > j->options.score_max_age_ms) {
        slate_count(j, SCORES_STALE, (uint64_t)e->n_items);
        return;
    }
    const int ranker = name_number(&j->ranker, e->ranker);
    if (ranker == 0) {
        slate_count(j, SCORES_UNKNOWN_RANKER, (uint64_t)e->n_items);
        return;
    }
    static const enum slate_count kept_as[] = {[SCORED_ADDED] = SCORES_KEPT,
                                               [SCORED_AGAIN] = SCORES_DUPLICATE,
                                               [SCORED_FULL] = SCORES_FULL};
    for (int i = 0; i < e->n_items; i++) {
        const int64_t row = id_table_find(&j->rows->items, &e->items[i].item);
        float scores[SLATE_TASKS_MAX];
        if (row < 0) {
            slate_count(j, SCORES_UNKNOWN_ITEM, 1);
            continue;
        }
        if (!item_scores(j, &e->items[i], scores))
            continue;
        const struct scored_item entry = {.item = (uint32_t)row,
                                          .generation =
                                              rows_item_ref(j->rows, (uint32_t)row).generation,
                                          .ranker = (uint8_t)ranker,
                                          .age_ms = scored_age(age_ms)};
        const enum slate_count kept = kept_as[scored_put(&j->items, list, j->options.n_tasks,
                                                         &entry, scores, e->n_items - i)];
        slate_count(j, kept, 1);
        if (kept != SCORES_FULL)
            ranker_seen(j, ranker, e->ts_ms);
    }
}

static void push_scores(struct join *j, const struct event *e)
{
    const int64_t request = request_of(j, &e->request, e->ts_ms, j->options.lateness_ms);
    if (request < 0) {
        refuse(j, TOPIC_SCORES, request_refusal(j, &e->request), 1);
        return;
    }
    const uint8_t stage = session_at(j, (uint32_t)request)->stage;
    if (stage == STAGE_CLOSED) {
        settle(j, TOPIC_SCORES, LATE, 1);
        if (j->options.slates)
            slate_count(j, SCORES_LATE, (uint64_t)e->n_items);
        return;
    }
    if (stage == STAGE_OPEN) {
        settle(j, TOPIC_SCORES, JOINED, 1);
    } else if (!wait_for_impression(j, (uint32_t)request,
                                    &(struct waiting){.ts_ms = e->ts_ms, .topic = TOPIC_SCORES})) {
        refuse(j, TOPIC_SCORES, REFUSED_REQUEST_FULL, 1);
        return;
    }
    if (j->options.slates)
        scores_keep(j, (uint32_t)request, e);
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
