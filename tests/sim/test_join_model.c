// SPDX-License-Identifier: Apache-2.0
//
// The join beside its header written down a second time, as plainly as possible: every request and
// every waiting record in one array each, searched from end to end. Random streams, out of order,
// with duplicates, wrong items, missing requests and jumping watermarks, must give the same
// examples in the same order and the same counters after every step; now and then the join is taken
// down and goes on from a copy of its columns.
#include "tests/unit/core_fixture.h"

enum { SEEDS = 600, STEPS = 300, REQUESTS = 4000, ITEMS = 20, BUCKET_MS = 1000 };
enum stage { EARLY, OPEN, CLOSED, LOOSE, GONE };

static const char *const actions[] = {"click", "like", "buy"};
enum { ACTIONS = 3 };

struct model_shown {
    uint64_t item;
    int position;
    unsigned actions;
};

struct model_waiting {
    enum topic topic;
    int64_t ts_ms;
    uint64_t user, item;
    int action;
};

struct model_request {
    int64_t name; // below 0: loose
    enum stage stage;
    uint64_t user;
    int64_t ts_ms, deadline_ms, bucket, place; // bucket and place: when it is looked at
    uint64_t opened;                           // the how-many-th request that an impression opened
    int n_shown, n_waiting;
    struct model_shown shown[64];
    struct model_waiting waiting[128];
};

static struct model {
    struct join_options options;
    int64_t window_ms[ACTIONS], longest_ms, watermark_ms, at, places;
    uint64_t opened;
    int n;
    struct model_request request[REQUESTS];
    uint64_t in[TOPICS], out[TOPICS][OUTCOMES], last_touch;
    int n_left;
    struct core_left left[CORE_LEFT_MAX];
    int numbers[ACTIONS], actions_seen; // actions are numbered as they come
} m;

static void look_at(struct model_request *r, int64_t deadline_ms)
{
    bool any = false;
    for (int i = 0; i < m.n; i++)
        any |= m.request[i].stage != GONE && &m.request[i] != r;
    r->deadline_ms = deadline_ms;
    r->bucket = deadline_ms / BUCKET_MS;
    if (m.watermark_ms == INT64_MIN && !any)
        m.at = r->bucket;
    if (r->bucket < m.at)
        r->bucket = m.at;
    r->place = m.places++;
}

static struct model_request *request_of(int64_t name, int64_t ts_ms, int64_t wait_ms)
{
    for (int i = 0; i < m.n; i++)
        if (m.request[i].stage != GONE && m.request[i].name == name)
            return &m.request[i];
    assert_true(m.n < REQUESTS);
    struct model_request *r = &m.request[m.n++];
    *r = (struct model_request){.name = name, .stage = EARLY, .ts_ms = ts_ms};
    look_at(r, ts_ms + wait_ms);
    return r;
}

static void leave(const struct model_request *r, const struct model_shown *s, int action,
                  int64_t engaged_ms)
{
    m.left[m.n_left++] = (struct core_left){
        .user = r->user,
        .item = s->item,
        .ts_ms = r->ts_ms,
        .engaged_ms = engaged_ms,
        .position = s->position,
        .action = action < 0 ? -1 : m.numbers[action],
        .value = action < 0 ? 0 : 1,
        .positive = action >= 0,
    };
}

static enum outcome engage(struct model_request *r, const struct model_waiting *w)
{
    for (int i = 0; i < r->n_shown; i++) {
        struct model_shown *s = &r->shown[i];
        if (s->item != w->item)
            continue;
        if (s->actions >> w->action & 1)
            return DUPLICATE;
        if (w->ts_ms - r->ts_ms > m.window_ms[w->action])
            return LATE;
        if (r->ts_ms - w->ts_ms > m.options.lateness_ms)
            return ORPHAN;
        if (r->stage == CLOSED)
            return LATE;
        if (!s->actions)
            m.out[TOPIC_IMPRESSIONS][JOINED]++;
        s->actions |= 1u << w->action;
        leave(r, s, w->action, w->ts_ms);
        return JOINED;
    }
    return ORPHAN;
}

static struct model_request *last_touch(const struct model_waiting *w)
{
    struct model_request *best = NULL;
    for (int i = 0; i < m.n; i++) {
        struct model_request *r = &m.request[i];
        if (r->stage != OPEN || r->user != w->user || r->ts_ms > w->ts_ms)
            continue;
        for (int k = 0; k < r->n_shown; k++)
            if (r->shown[k].item == w->item &&
                (!best || r->ts_ms > best->ts_ms ||
                 (r->ts_ms == best->ts_ms && r->opened > best->opened)))
                best = r;
    }
    return best;
}

static void settle_waiting(struct model_request *r)
{
    struct model_waiting list[128];
    const int n = r->n_waiting;
    memcpy(list, r->waiting, sizeof list);
    r->n_waiting = 0;
    for (int i = 0; i < n; i++) {
        const enum outcome outcome = list[i].topic == TOPIC_SCORES ? JOINED : engage(r, &list[i]);
        if (outcome == ORPHAN)
            r->waiting[r->n_waiting++] = list[i];
        else
            m.out[list[i].topic][outcome]++;
    }
}

static void orphan_waiting(struct model_request *r)
{
    for (int i = 0; i < r->n_waiting; i++)
        m.out[r->waiting[i].topic][ORPHAN]++;
    r->n_waiting = 0;
}

static void expire(struct model_request *r)
{
    if (r->deadline_ms > m.watermark_ms) {
        look_at(r, r->deadline_ms);
        return;
    }
    if (r->stage == OPEN) {
        for (int i = 0; i < r->n_shown; i++)
            if (!r->shown[i].actions) {
                m.out[TOPIC_IMPRESSIONS][EXPIRED]++;
                leave(r, &r->shown[i], -1, r->ts_ms);
            }
        orphan_waiting(r);
        r->stage = CLOSED;
        look_at(r, r->deadline_ms + m.longest_ms);
        return;
    }
    if (r->stage == LOOSE) {
        struct model_request *found = last_touch(&r->waiting[0]);
        const enum outcome outcome = found ? engage(found, &r->waiting[0]) : ORPHAN;
        m.out[TOPIC_ENGAGEMENTS][outcome]++;
        m.last_touch += outcome == JOINED;
        r->n_waiting = 0;
    }
    orphan_waiting(r);
    r->stage = GONE;
}

static void model_advance(int64_t watermark_ms)
{
    if (watermark_ms <= m.watermark_ms)
        return;
    m.watermark_ms = watermark_ms;
    const int64_t end = watermark_ms / BUCKET_MS;
    for (;;) {
        struct model_request *first = NULL;
        for (int i = 0; i < m.n; i++) {
            struct model_request *r = &m.request[i];
            if (r->stage != GONE && r->bucket < end &&
                (!first || r->bucket < first->bucket ||
                 (r->bucket == first->bucket && r->place < first->place)))
                first = r;
        }
        if (!first)
            break;
        m.at = first->bucket + 1;
        expire(first);
    }
    if (m.at < end)
        m.at = end;
}

static void model_impressions(int64_t ts_ms, int64_t name, uint64_t user, int n,
                              const uint64_t *items)
{
    m.in[TOPIC_IMPRESSIONS] += (uint64_t)n;
    if (ts_ms + m.longest_ms <= m.watermark_ms) {
        m.out[TOPIC_IMPRESSIONS][LATE] += (uint64_t)n;
        return;
    }
    struct model_request *r = request_of(name, ts_ms, m.longest_ms);
    if (r->stage == CLOSED) {
        m.out[TOPIC_IMPRESSIONS][LATE] += (uint64_t)n;
        return;
    }
    if (r->stage == EARLY) {
        r->stage = OPEN;
        r->user = user;
        r->ts_ms = ts_ms;
        r->deadline_ms = ts_ms + m.longest_ms;
        r->opened = ++m.opened;
    } else if (r->user != user) {
        m.out[TOPIC_IMPRESSIONS][DUPLICATE] += (uint64_t)n;
        return;
    }
    for (int i = 0; i < n; i++) {
        bool known = false;
        for (int k = 0; k < r->n_shown; k++)
            known |= r->shown[k].item == items[i] && r->shown[k].position == i;
        if (known)
            m.out[TOPIC_IMPRESSIONS][DUPLICATE]++;
        else
            r->shown[r->n_shown++] = (struct model_shown){items[i], i, 0};
    }
    settle_waiting(r);
}

static void model_engagement(const struct model_waiting *w, int64_t name)
{
    static int64_t loose;
    bool numbered = false;
    m.in[TOPIC_ENGAGEMENTS]++;
    for (int i = 0; i < m.actions_seen; i++)
        numbered |= m.numbers[w->action] == i;
    if (!numbered)
        m.numbers[w->action] = m.actions_seen++;
    if (name == CORE_NO_REQUEST) {
        struct model_request *found = last_touch(w);
        if (found) {
            const enum outcome outcome = engage(found, w);
            m.out[TOPIC_ENGAGEMENTS][outcome]++;
            m.last_touch += outcome == JOINED;
            return;
        }
        struct model_request *r = request_of(-2 - loose++, w->ts_ms, m.options.lateness_ms);
        r->stage = LOOSE;
        r->waiting[r->n_waiting++] = *w;
        return;
    }
    struct model_request *r = request_of(name, w->ts_ms, m.options.lateness_ms);
    const enum outcome outcome = r->stage == EARLY ? ORPHAN : engage(r, w);
    if (outcome != ORPHAN || r->stage == CLOSED)
        m.out[TOPIC_ENGAGEMENTS][outcome]++;
    else
        r->waiting[r->n_waiting++] = *w;
}

static void model_score(const struct model_waiting *w, int64_t name)
{
    struct model_request *r = request_of(name, w->ts_ms, m.options.lateness_ms);
    m.in[TOPIC_SCORES]++;
    if (r->stage == EARLY)
        r->waiting[r->n_waiting++] = *w;
    else
        m.out[TOPIC_SCORES][r->stage == OPEN ? JOINED : LATE]++;
}

static void compare(const struct core_join *w, uint64_t seed, int step)
{
    const struct join_counts *c = join_counts(&w->join);
    bool same = w->n_left == m.n_left && join_balanced(&w->join) && c->last_touch == m.last_touch &&
                !memcmp(c->in, m.in, sizeof m.in) && !memcmp(c->out, m.out, sizeof m.out);
    for (int i = 0; same && i < m.n_left; i++)
        same = !memcmp(&w->left[i], &m.left[i], sizeof m.left[i]);
    if (!same)
        fail_msg("seed %" PRIu64 ", step %d: the join and its description differ", seed, step);
}

static void left_clear(struct core_join *w)
{
    memset(w->left, 0, sizeof w->left);
    memset(m.left, 0, sizeof m.left);
    w->n_left = m.n_left = 0;
}

static void run(uint64_t seed)
{
    static struct core_join worlds[2];
    static struct core_event e;
    struct core_join *w = &worlds[0];
    struct rng rng = {seed, 0};
    const struct rows_options rows = {
        .items_max = 64, .users_max = 64, .admit_items = 1, .admit_users = 1};
    struct join_window windows[] = {{"like", 1 + (int64_t)rng_below(&rng, 30000)},
                                    {"buy", 1 + (int64_t)rng_below(&rng, 90000)}};
    const struct join_options options = {.window_ms = 1 + (int64_t)rng_below(&rng, 60000),
                                         .windows = windows,
                                         .n_windows = 2,
                                         .lateness_ms = (int64_t)rng_below(&rng, 40000),
                                         .bytes_max = 1 << 20};
    core_join_open(w, &rows, &options);
    m = (struct model){.options = options, .watermark_ms = INT64_MIN, .numbers = {-1, -1, -1}};
    m.window_ms[0] = m.longest_ms = options.window_ms;
    for (int i = 0; i < 2; i++) {
        m.window_ms[1 + i] = windows[i].window_ms;
        if (windows[i].window_ms > m.longest_ms)
            m.longest_ms = windows[i].window_ms;
    }
    const uint64_t users = 1 + rng_below(&rng, 6), items = 1 + rng_below(&rng, ITEMS);
    const int64_t grain_ms = rng_below(&rng, 2) ? 1 : 4000; // coarse clocks: equal times
    const uint64_t pace_ms = 1 + rng_below(&rng, 5000), disorder_ms = 1 + rng_below(&rng, 50000);
    int64_t now = TEST_START_MS;
    int64_t newest = 0; // request
    for (int step = 0; step < STEPS; step++) {
        now += (int64_t)rng_below(&rng, pace_ms);
        int64_t ts = now - (rng_below(&rng, 3) ? 0 : (int64_t)rng_below(&rng, disorder_ms));
        ts -= ts % grain_ms;
        newest += rng_below(&rng, 3) == 0;
        int64_t name = newest - (int64_t)rng_below(&rng, 12);
        name = name < 0 ? 0 : name;
        const uint64_t user = rng_below(&rng, 20) ? (uint64_t)name % users : rng_below(&rng, users);
        struct model_waiting record = {.topic = TOPIC_ENGAGEMENTS,
                                       .ts_ms = ts,
                                       .user = user,
                                       .item = rng_below(&rng, items),
                                       .action = (int)rng_below(&rng, ACTIONS)};
        const uint64_t kind = rng_below(&rng, 10);
        if (kind < 3) {
            uint64_t list[8];
            const int n = 1 + (int)rng_below(&rng, 6);
            for (int i = 0; i < n; i++)
                list[i] = rng_below(&rng, items);
            join_push(&w->join, core_impression(&e, ts, (uint64_t)name, user, n, list));
            model_impressions(ts, name, user, n, list);
        } else if (kind < 8) {
            name = rng_below(&rng, 4) ? name : CORE_NO_REQUEST;
            join_push(&w->join,
                      core_engagement(&e, ts, name, user, record.item, actions[record.action]));
            model_engagement(&record, name);
        } else if (kind < 9) {
            record.topic = TOPIC_SCORES;
            join_push(&w->join, core_score(&e, ts, (uint64_t)name, user));
            model_score(&record, name);
        } else {
            const int64_t watermark = now - (int64_t)rng_below(&rng, 40000);
            join_advance(&w->join, watermark);
            model_advance(watermark);
        }
        compare(w, seed, step);
        if (rng_below(&rng, 150) == 0) {
            struct core_join *next = w == worlds ? worlds + 1 : worlds;
            core_join_restart(next, w, &rows, &options);
            core_join_close(w);
            w = next;
            left_clear(w);
        }
    }
    join_advance(&w->join, now + 500000);
    model_advance(now + 500000);
    compare(w, seed, STEPS);
    for (int topic = 0; topic < TOPICS; topic++)
        assert_int_equal(join_counts(&w->join)->pending[topic], 0);
    core_join_close(w);
}

static void random_streams_are_joined_as_the_header_says(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= SEEDS; seed++)
        run(seed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_streams_are_joined_as_the_header_says),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
