// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/world.h"

#include <assert.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { USERS = 14, ITEMS = 24, RECENT = 16, SHOWN_MAX = 3 };

#define DAY_MS INT64_C(86400000)

// ---- What is in it

struct author {
    struct world *w;
    struct rng rng;
    int64_t ts_ms;
    uint64_t requests;
    struct {
        uint64_t request, user, items[SHOWN_MAX];
        int n;
    } recent[RECENT];
    bool log_time[WORLD_PARTITIONS]; // the log has time stamps of its own
    int32_t epoch[WORLD_PARTITIONS]; // -1: not known
    int behind;                      // the partition that is a day behind, -1: none
    bool ahead;                      // some records are about as far ahead as may be
};

static uint64_t draw(struct author *a, uint64_t n)
{
    return rng_below(&a->rng, n);
}

static int first_of(const struct world *w, enum topic topic, int *n)
{
    int first = -1;
    *n = 0;
    for (int p = 0; p < w->source.n_partitions; p++)
        if (w->names[p].topic == topic) {
            first = first < 0 ? p : first;
            ++*n;
        }
    return first;
}

// Where a producer puts what has this key; one in ten does not know.
static int partition_of(struct author *a, enum topic topic, uint64_t key)
{
    int n;
    const int first = first_of(a->w, topic, &n);
    return first + (int)((draw(a, 10) ? key : draw(a, 100)) % (uint64_t)n);
}

static struct world_record *record_new(struct author *a, int p)
{
    struct world_partition *part = &a->w->partitions[p];
    assert(part->n < WORLD_RECORDS);
    struct world_record *r = &part->list[part->n++];
    // Control and aborted records have offsets, too.
    part->end += draw(a, 12) ? 0 : 1 + (int64_t)draw(a, 3);
    if (a->epoch[p] >= 0 && draw(a, 40) == 0)
        a->epoch[p]++;
    *r = (struct world_record){.offset = part->end++,
                               .broker_ts_ms = a->log_time[p] ? a->ts_ms + 50 : -1,
                               .epoch = a->epoch[p],
                               .units = 1};
    return r;
}

__attribute__((format(printf, 4, 5))) static struct world_record *
put(struct author *a, int p, uint64_t key, const char *format, ...)
{
    struct world_record *r = record_new(a, p);
    va_list args;
    va_start(args, format);
    const int n = vsnprintf(r->value, sizeof r->value, format, args);
    va_end(args);
    assert(n >= 0 && n < WORLD_VALUE);
    r->size = (uint16_t)n;
    r->key_size = (uint8_t)snprintf(r->key, sizeof r->key, "k%" PRIu64, key);
    return r;
}

// Event time of a record that is written now: mostly now, else earlier.
static int64_t time_of(struct author *a, int p)
{
    int64_t ts = a->ts_ms;
    const uint64_t kind = draw(a, 100);
    if (kind < 20)
        ts -= (int64_t)draw(a, 4000); // out of order
    else if (kind < 25)
        ts -= 30000 + (int64_t)draw(a, 60000); // late
    else if (kind < 26)
        ts = draw(a, 20) ? ts - 30 * DAY_MS : INT64_C(978307200000); // 2001
    return p == a->behind ? ts - DAY_MS : ts;
}

static void impression(struct author *a)
{
    const uint64_t user = draw(a, USERS), request = a->requests++;
    const int p = partition_of(a, TOPIC_IMPRESSIONS, user), n = 1 + (int)draw(a, SHOWN_MAX);
    char items[96] = "";
    a->recent[request % RECENT].request = request;
    a->recent[request % RECENT].user = user;
    a->recent[request % RECENT].n = n;
    for (int i = 0; i < n; i++) {
        const uint64_t item = draw(a, ITEMS);
        a->recent[request % RECENT].items[i] = item;
        snprintf(items + strlen(items), sizeof items - strlen(items),
                 "%s{\"item_id\":\"i%" PRIu64 "\"}", i ? "," : "", item);
    }
    put(a, p, user,
        "{\"request_id\":\"r%" PRIu64 "\",\"user_id\":\"u%" PRIu64 "\",\"ts\":%" PRId64
        ",\"items\":[%s]}",
        request, user, time_of(a, p), items)
        ->units = (uint8_t)n;
}

static void engagement(struct author *a)
{
    static const char *const actions[] = {"click", "like", "share"};
    const uint64_t which = draw(a, RECENT);
    const bool shown = a->recent[which].n > 0 && draw(a, 8);
    const uint64_t user = shown ? a->recent[which].user : draw(a, USERS);
    const uint64_t item =
        shown ? a->recent[which].items[draw(a, (uint64_t)a->recent[which].n)] : draw(a, ITEMS);
    const int p = partition_of(a, TOPIC_ENGAGEMENTS, user);
    char request[40] = "";
    if (shown && draw(a, 3))
        snprintf(request, sizeof request, "\"request_id\":\"r%" PRIu64 "\",",
                 a->recent[which].request);
    put(a, p, user,
        "{%s\"user_id\":\"u%" PRIu64 "\",\"ts\":%" PRId64 ",\"item_id\":\"i%" PRIu64
        "\",\"action\":\"%s\"}",
        request, user, time_of(a, p), item, actions[draw(a, 3)]);
}

static void score(struct author *a)
{
    const uint64_t which = draw(a, RECENT);
    const int p = partition_of(a, TOPIC_SCORES, a->recent[which].user);
    put(a, p, a->recent[which].user,
        "{\"request_id\":\"r%" PRIu64 "\",\"user_id\":\"u%" PRIu64 "\",\"ts\":%" PRId64
        ",\"ranker\":\"v%" PRIu64 "\",\"items\":[{\"item_id\":\"i%" PRIu64
        "\",\"scores\":{\"click\":0.%" PRIu64 "}}]}",
        draw(a, 5) ? a->recent[which].request : a->requests, a->recent[which].user, time_of(a, p),
        1 + draw(a, 2), a->recent[which].items[0], 1 + draw(a, 9));
}

static void catalogue(struct author *a)
{
    const uint64_t item = draw(a, ITEMS);
    const int p = partition_of(a, TOPIC_ITEMS, item);
    if (draw(a, 3)) {
        put(a, p, item, "{\"item_id\":\"i%" PRIu64 "\",\"ts\":%" PRId64 ",\"title\":\"t\"}", item,
            time_of(a, p));
    } else { // removed: the log's time is the event's
        struct world_record *r = record_new(a, p);
        r->tombstone = true;
        r->broker_ts_ms = a->ts_ms;
        r->key_size = (uint8_t)snprintf(r->key, sizeof r->key, "i%" PRIu64, item);
    }
}

// A record that is none, wherever it stands, and why.
static void hostile(struct author *a)
{
    static const struct {
        enum reject reason;
        const char *value;
    } plain[] = {
        {REJECT_NOT_JSON, "{\"request_id\":\"r1\",\"user_id\""},
        {REJECT_NOT_OBJECT, "[1,2]"},
        {REJECT_MISSING_FIELD, "{}"},
        {REJECT_NOT_UTF8, "{\"user_id\":\"\xff\xfe\"}"},
    };
    const int p = (int)draw(a, (uint64_t)a->w->source.n_partitions);
    const enum topic topic = a->w->names[p].topic;
    const uint64_t kind = draw(a, 8);
    if (kind < 4) {
        put(a, p, kind, "%s", plain[kind].value)->reason = plain[kind].reason;
    } else if (kind == 4 && topic != TOPIC_ITEMS) {
        struct world_record *r = record_new(a, p);
        r->tombstone = true;
        r->reason = REJECT_TOMBSTONE;
    } else {
        // Seconds, the year 2150, and 2090, which only a clock can tell.
        const int64_t ts = kind < 6    ? a->ts_ms / 1000
                           : kind == 6 ? INT64_C(5680281600000)
                                       : INT64_C(3786912000000);
        put(a, p, 1,
            "{\"request_id\":\"r1\",\"user_id\":\"u1\",\"ts\":%" PRId64 ",\"action\":\"click\",%s}",
            ts,
            topic == TOPIC_SCORES ? "\"items\":[{\"item_id\":\"i1\",\"scores\":{\"click\":0.5}}]"
                                  : "\"item_id\":\"i1\"")
            ->reason = REJECT_BAD_TIME;
    }
}

// The same record once more, where it stands.
static void twice(struct author *a)
{
    const int p = (int)draw(a, (uint64_t)a->w->source.n_partitions);
    const struct world_partition *part = &a->w->partitions[p];
    if (part->n == 0)
        return;
    const struct world_record of = part->list[draw(a, (uint64_t)part->n)];
    struct world_record *r = record_new(a, p), copy = *r;
    *r = of;
    r->offset = copy.offset;
    r->epoch = copy.epoch;
}

// About as far ahead of the wall clock as may be: whoever reads it first decides.
static void undecided(struct author *a)
{
    int n;
    const int p = first_of(a->w, TOPIC_ENGAGEMENTS, &n) + (int)draw(a, (uint64_t)n);
    if (!a->log_time[p])
        put(a, p, 1,
            "{\"user_id\":\"u9\",\"ts\":%" PRId64 ",\"item_id\":\"i1\",\"action\":\"click\"}",
            WORLD_AS_OF_MS + 5000 + (int64_t)draw(a, 60000))
            ->undecided = true;
}

static void records_make(struct author *a)
{
    const uint64_t n = 80 + draw(a, 160);
    for (uint64_t i = 0; i < n; i++) {
        const uint64_t kind = draw(a, 100);
        int scores;
        first_of(a->w, TOPIC_SCORES, &scores);
        // Often the same time, now and then a long silence.
        a->ts_ms += draw(a, 3) == 0 ? 0 : (int64_t)draw(a, 1200);
        if (draw(a, 100) == 0)
            a->ts_ms += 25000;
        if (kind < 30)
            impression(a);
        else if (kind < 66)
            engagement(a);
        else if (kind < 78 && scores > 0)
            score(a);
        else if (kind < 85)
            catalogue(a);
        else if (kind < 92)
            hostile(a);
        else if (kind < 99)
            twice(a);
        else if (a->ahead)
            undecided(a);
    }
    // What ends a log may be no record.
    for (int p = 0; p < a->w->source.n_partitions; p++)
        a->w->partitions[p].end += (int64_t)draw(a, 3);
}

static void records_count(struct world *w)
{
    memset(w->in, 0, sizeof w->in);
    memset(w->rejected, 0, sizeof w->rejected);
    w->undecided = w->records = 0;
    for (int p = 0; p < w->source.n_partitions; p++) {
        const enum topic topic = w->names[p].topic;
        for (int i = 0; i < w->partitions[p].n; i++) {
            const struct world_record *r = &w->partitions[p].list[i];
            w->records++;
            w->in[topic] += r->units;
            w->rejected[topic][r->reason] += r->reason != REJECT_NONE;
            w->undecided += r->undecided;
        }
    }
}

// ---- The source

static struct world *world_of(struct source *s)
{
    return (struct world *)s; // its first member
}

static int world_bounds(struct source *s, int64_t *first, int64_t *end)
{
    for (int p = 0; p < s->n_partitions; p++) {
        first[p] = 0;
        end[p] = world_of(s)->partitions[p].end;
    }
    return 0;
}

static int world_start(struct source *s, const int64_t *next, const int64_t *stop)
{
    (void)stop; // all there is
    for (int p = 0; p < s->n_partitions; p++) {
        struct world_partition *part = &world_of(s)->partitions[p];
        for (part->at = 0; part->at < part->n && part->list[part->at].offset < next[p]; part->at++)
            ;
        part->place = next[p];
        part->end_seen = false;
        if (part->visible < part->at)
            part->visible = part->at;
    }
    return 0;
}

static int world_read(struct source *s, int p, int max, struct record *records)
{
    struct world *w = world_of(s);
    struct world_partition *part = &w->partitions[p];
    const int there = part->visible - part->at;
    int n = rng_below(&w->arrival, 6) ? 1 + (int)rng_below(&w->arrival, 9) : 0;
    n = n > there ? there : n;
    n = n > max ? max : n;
    for (int i = 0; i < n; i++, part->at++) {
        const struct world_record *r = &part->list[part->at];
        records[i] = (struct record){.offset = r->offset,
                                     .broker_ts_ms = r->broker_ts_ms,
                                     .leader_epoch = r->epoch,
                                     .key = r->key_size ? r->key : NULL,
                                     .value = r->tombstone ? NULL : r->value,
                                     .key_size = r->key_size,
                                     .value_size = r->size,
                                     .tombstone = r->tombstone};
        part->place = r->offset + 1;
    }
    if (n > 0 || (there > 0 && rng_below(&w->arrival, 2)))
        return n;
    // Nothing, or nothing yet, but the source has come over what is no record.
    if (there == 0)
        part->end_seen = true;
    if (part->at == part->n)
        part->place = part->end > part->place ? part->end : part->place;
    else if (there > 0)
        part->place = part->list[part->at].offset;
    return 0;
}

static int64_t world_position(const struct source *s, int p)
{
    return ((const struct world *)s)->partitions[p].place;
}

static bool world_at_end(const struct source *s, int p)
{
    const struct world *w = (const struct world *)s;
    const struct world_partition *part = &w->partitions[p];
    return w->bounded ? part->at == part->n && part->place >= part->end
                      : part->end_seen && part->at == part->visible;
}

static int world_wait(struct source *s, int timeout_ms)
{
    (void)timeout_ms;
    world_tick(world_of(s));
    return 0;
}

static const struct source_ops world_ops = {.name = "world",
                                            .bounds = world_bounds,
                                            .start = world_start,
                                            .read = world_read,
                                            .position = world_position,
                                            .at_end = world_at_end,
                                            .wait = world_wait};

void world_make(struct world *w, uint64_t seed)
{
    struct author a = {.w = w, .rng = {seed, 0}, .ts_ms = WORLD_START_MS, .behind = -1};
    w->source = (struct source){.ops = &world_ops, .partitions = w->names};
    for (int topic = 0; topic < TOPICS; topic++) {
        const int least = topic != TOPIC_SCORES;
        const int n = least + (int)draw(&a, topic < TOPIC_IMPRESSIONS ? 2 : 3);
        for (int i = 0; i < n; i++) {
            const int p = w->source.n_partitions++;
            w->names[p] = (struct source_partition){.topic = (enum topic)topic, .partition = i};
            snprintf(w->names[p].name, sizeof w->names[p].name, "%s", topic_names[topic]);
            w->partitions[p].n = 0;
            w->partitions[p].end = 0;
            a.log_time[p] = draw(&a, 3) == 0;
            a.epoch[p] = draw(&a, 2) ? (int32_t)draw(&a, 5) : -1;
        }
    }
    if (draw(&a, 6) == 0)
        a.behind = (int)draw(&a, (uint64_t)w->source.n_partitions);
    a.ahead = draw(&a, 3) == 0;
    records_make(&a);
    records_count(w);
}

void world_arrive(struct world *w, uint64_t seed, bool bounded)
{
    w->arrival = (struct rng){seed, 0};
    w->bounded = bounded;
    w->monotonic_ms = 1000 + (int64_t)rng_below(&w->arrival, 1000000);
    w->wall_ms = WORLD_AS_OF_MS + (int64_t)rng_below(&w->arrival, 20000);
    for (int p = 0; p < w->source.n_partitions; p++) {
        struct world_partition *part = &w->partitions[p];
        part->visible = 0;
        part->rate = 1 + (int)rng_below(&w->arrival, 5);
        part->rest = 0;
    }
}

void world_tick(struct world *w)
{
    w->monotonic_ms += 1 + (int64_t)rng_below(&w->arrival, 250);
    w->wall_ms += 1 + (int64_t)rng_below(&w->arrival, 250);
    if (rng_below(&w->arrival, 25) == 0)
        w->monotonic_ms += (int64_t)rng_below(&w->arrival, 10000);
    // Somebody sets the clock.
    if (rng_below(&w->arrival, 25) == 0)
        w->wall_ms = WORLD_AS_OF_MS + (int64_t)rng_below(&w->arrival, 60000);
    for (int p = 0; p < w->source.n_partitions; p++) {
        struct world_partition *part = &w->partitions[p];
        if (part->rest > 0) {
            part->rest--;
            continue;
        }
        const int more = (int)rng_below(&w->arrival, (uint64_t)part->rate + 1);
        part->visible = part->visible + more < part->n ? part->visible + more : part->n;
        if (more > 0)
            part->end_seen = false;
        if (rng_below(&w->arrival, 12) == 0)
            part->rest = (int)rng_below(&w->arrival, 25);
    }
}

struct cutter_clock world_clock(const struct world *w)
{
    return (struct cutter_clock){w->monotonic_ms, w->wall_ms};
}

bool world_is_over(const struct world *w)
{
    for (int p = 0; p < w->source.n_partitions; p++)
        if (w->partitions[p].visible < w->partitions[p].n)
            return false;
    return true;
}
