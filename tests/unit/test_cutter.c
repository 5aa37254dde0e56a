// SPDX-License-Identifier: Apache-2.0
#include "pipeline/cutter.h"

#include <errno.h>
#include <unistd.h>

#include "tests/unit/core_fixture.h"

// A source of records in memory. What it gives at a time, and how often it gives nothing although
// there is more, is up to the test; records from `visible` on have not arrived yet.

enum { PARTITIONS_MAX = 24, RECORDS_MAX = 4000 };

struct memory_partition {
    int n, at, visible;
    struct {
        int64_t offset, broker_ts_ms;
        int32_t epoch;
        bool tombstone;
        char key[24], value[160];
    } list[RECORDS_MAX];
};

struct memory_source {
    struct source source;
    struct source_partition names[PARTITIONS_MAX];
    struct memory_partition *partitions;
    bool bounded;
    int chunk, empty_every; // every how-many-th read gives nothing
    unsigned reads, waits;
    unsigned headers; // times that somebody asked for them
};

// One, of the record's own key, which is gone when the next read is made.
static void memory_headers(struct source *s, const struct record *record,
                           struct record_headers *headers)
{
    static char value[16];
    ((struct memory_source *)s)->headers++;
    snprintf(value, sizeof value, "%" PRId64, record->offset);
    *headers = (struct record_headers){
        .n = 1, .left_out = 2, .list = {{"place", value, 5, strlen(value)}}};
}

static int memory_read(struct source *s, int p, int max, struct record *records)
{
    struct memory_source *m = (struct memory_source *)s;
    struct memory_partition *part = &m->partitions[p];
    int n = 0;
    if (m->empty_every && ++m->reads % (unsigned)m->empty_every == 0)
        return 0;
    for (; n < max && n < m->chunk && part->at < part->visible; n++, part->at++)
        records[n] = (struct record){
            .offset = part->list[part->at].offset,
            .broker_ts_ms = part->list[part->at].broker_ts_ms,
            .leader_epoch = part->list[part->at].epoch,
            .key = part->list[part->at].key,
            .key_size = strlen(part->list[part->at].key),
            .value = part->list[part->at].tombstone ? NULL : part->list[part->at].value,
            .value_size = strlen(part->list[part->at].value),
            .tombstone = part->list[part->at].tombstone,
        };
    return n;
}

static int64_t memory_position(const struct source *s, int p)
{
    const struct memory_partition *part = &((const struct memory_source *)s)->partitions[p];
    return part->at ? part->list[part->at - 1].offset + 1 : 0;
}

static bool memory_at_end(const struct source *s, int p)
{
    const struct memory_source *m = (const struct memory_source *)s;
    return m->partitions[p].at == (m->bounded ? m->partitions[p].n : m->partitions[p].visible);
}

static int memory_wait(struct source *s, int timeout_ms)
{
    (void)timeout_ms;
    ((struct memory_source *)s)->waits++;
    return 0;
}

static int memory_start(struct source *s, const int64_t *next, const int64_t *stop)
{
    struct memory_source *m = (struct memory_source *)s;
    (void)stop;
    for (int p = 0; p < s->n_partitions; p++) {
        struct memory_partition *part = &m->partitions[p];
        for (part->at = 0; part->at < part->n && part->list[part->at].offset < next[p]; part->at++)
            ;
    }
    return 0;
}

static const struct source_ops memory_ops = {.name = "memory",
                                             .start = memory_start,
                                             .read = memory_read,
                                             .headers = memory_headers,
                                             .position = memory_position,
                                             .at_end = memory_at_end,
                                             .wait = memory_wait};

static void memory_open(struct memory_source *m, int per_topic)
{
    *m = (struct memory_source){.bounded = true, .chunk = 512};
    m->partitions = calloc((size_t)per_topic * 3, sizeof *m->partitions);
    m->source =
        (struct source){.ops = &memory_ops, .n_partitions = per_topic * 3, .partitions = m->names};
    static const enum topic topics[] = {TOPIC_ITEMS, TOPIC_IMPRESSIONS, TOPIC_ENGAGEMENTS};
    for (int p = 0; p < per_topic * 3; p++) {
        m->names[p].topic = topics[p / per_topic];
        m->names[p].partition = p % per_topic;
        snprintf(m->names[p].name, sizeof m->names[p].name, "%s",
                 topic_names[topics[p / per_topic]]);
    }
}

static void memory_close(struct memory_source *m)
{
    free(m->partitions);
}

__attribute__((format(printf, 3, 4))) static void put(struct memory_source *m, int p,
                                                      const char *format, ...)
{
    struct memory_partition *part = &m->partitions[p];
    va_list args;
    va_start(args, format);
    assert_true(part->n < RECORDS_MAX);
    vsnprintf(part->list[part->n].value, sizeof part->list[part->n].value, format, args);
    va_end(args);
    part->list[part->n].offset = part->n ? part->list[part->n - 1].offset + 1 : 0;
    part->list[part->n].epoch = -1;
    part->list[part->n++].broker_ts_ms = -1;
    part->visible = part->n;
}

static void put_impression(struct memory_source *m, int p, int64_t ms, unsigned user, unsigned n)
{
    put(m, p, "{\"request_id\":\"r%u\",\"user_id\":\"u%u\",\"ts\":%" PRId64 ",\"item_id\":\"i%u\"}",
        n, user, TEST_START_MS + ms, n % 7);
}

// The same events whatever the number of partitions: users, and items, have one each.
static void put_stream(struct memory_source *m, uint64_t seed, int n)
{
    const int per_topic = m->source.n_partitions / 3;
    struct rng rng = {seed, 0};
    int64_t ms = 0;
    for (int i = 0; i < n; i++) {
        ms += (int64_t)(rng_below(&rng, 4) * rng_below(&rng, 4)); // often equal times
        const unsigned user = (unsigned)rng_below(&rng, 40);
        const int p = (int)(user * 7 % (unsigned)per_topic);
        switch (rng_below(&rng, 8)) {
        case 0:
            put(m, p, "{\"item_id\":\"i%u\",\"ts\":%" PRId64 "}", user, TEST_START_MS + ms);
            break;
        case 1:
        case 2:
        case 3:
            put(m, 2 * per_topic + p,
                "{\"user_id\":\"u%u\",\"ts\":%" PRId64 ",\"item_id\":\"i1\",\"action\":\"a%d\"}",
                user, TEST_START_MS + ms, i);
            break;
        default:
            put_impression(m, per_topic + p, ms, user, (unsigned)i);
        }
    }
}

static struct cutter_options options;
static const int64_t never[PARTITIONS_MAX] = {
    INT64_MIN, INT64_MIN, INT64_MIN, INT64_MIN, INT64_MIN, INT64_MIN, INT64_MIN, INT64_MIN,
    INT64_MIN, INT64_MIN, INT64_MIN, INT64_MIN, INT64_MIN, INT64_MIN, INT64_MIN, INT64_MIN,
    INT64_MIN, INT64_MIN, INT64_MIN, INT64_MIN, INT64_MIN, INT64_MIN, INT64_MIN, INT64_MIN};
static const int64_t zeroes[PARTITIONS_MAX];

static int setup(void **state)
{
    (void)state;
    options = (struct cutter_options){.order = SLICE_CANONICAL,
                                      .slice_events = 100,
                                      .interval_ms = 1000,
                                      .lateness_ms = 5000,
                                      .drift_ms = 60000,
                                      .idle_ms = 2000,
                                      .max_future_ms = 10000};
    return 0;
}

static struct cutter *open_cutter(struct memory_source *m)
{
    struct cutter *c;
    assert_int_equal(cutter_open(&c, &m->source, &options,
                                 &(struct cutter_position){zeroes, never, 0, INT64_MIN, NULL}),
                     0);
    return c;
}

// What is told of an event to compare orders: it names the record, not the partition.
struct line {
    int64_t mt_ms;
    char text[48];
};

static int event_line(const struct slice_event *e, struct line *line)
{
    memset(line, 0, sizeof *line);
    line->mt_ms = e->mt_ms;
    return snprintf(line->text, sizeof line->text, "%d %.*s %.*s %.*s", e->event->topic,
                    e->event->user.size, e->event->user.bytes ? e->event->user.bytes : "",
                    (int)(e->event->topic == TOPIC_ENGAGEMENTS ? e->event->action.size
                                                               : e->event->request.size),
                    e->event->topic == TOPIC_ENGAGEMENTS
                        ? e->event->action.bytes
                        : (e->event->request.bytes ? e->event->request.bytes : ""),
                    e->event->items[0].item.size, e->event->items[0].item.bytes);
}

// Reads a bounded source to its end. Returns the lines; checks what holds of every slice.
static int cut_all(struct memory_source *m, struct line *lines)
{
    static bool seen[PARTITIONS_MAX][RECORDS_MAX];
    struct cutter *c = open_cutter(m);
    int n = 0;
    memset(seen, 0, sizeof seen);
    int64_t passed[PARTITIONS_MAX] = {0}, last_mt = INT64_MIN;
    for (uint64_t number = 1;; number++) {
        struct slice *slice;
        int rc;
        do
            rc = cutter_next(c, (struct cutter_clock){0, 0}, 0, &slice);
        while (rc == 0);
        assert_int_equal(rc, 1);
        assert_int_equal(slice->number, number);
        int64_t taken[PARTITIONS_MAX] = {0};
        if (slice->n_events) // a time is never divided between two slices
            assert_true(slice->events[0].mt_ms > last_mt);
        for (int i = 0; i < slice->n_events; i++) {
            const struct slice_event *e = &slice->events[i];
            assert_true(e->mt_ms >= last_mt);
            last_mt = e->mt_ms;
            // Positions are prefixes: nothing is left out, nothing comes twice.
            const int p = e->event->partition;
            assert_true(e->event->offset >= passed[p] && e->event->offset < slice->next[p]);
            assert_false(seen[p][e->event->offset]);
            seen[p][e->event->offset] = true;
            taken[p]++;
            event_line(e, &lines[n++]);
        }
        for (int p = 0; p < slice->n_partitions; p++) {
            passed[p] += taken[p];
            assert_int_equal(slice->next[p], passed[p]);
            if (taken[p])
                assert_true(slice->time_max_ms[p] <= last_mt);
        }
        const bool last = slice->last;
        cutter_give(c, slice);
        if (last)
            break;
    }
    assert_int_equal(cutter_counts(c).pending, 0);
    assert_int_equal(cutter_counts(c).records, n);
    cutter_close(c);
    return n;
}

enum { EVENTS = 1500 };

static void the_canonical_order_does_not_depend_on_partitions_chunks_or_waits(void **state)
{
    (void)state;
    static struct line first[EVENTS], lines[EVENTS];
    static const struct {
        int partitions, chunk, empty_every, slice_events;
    } ways[] = {{1, 512, 0, 100}, {3, 512, 0, 100}, {7, 512, 0, 100},  {7, 1, 0, 100},
                {3, 13, 3, 100},  {7, 5, 2, 1},     {3, 512, 0, 5000}, {1, 1, 2, 7}};
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        struct memory_source m;
        memory_open(&m, ways[i].partitions);
        put_stream(&m, 5, EVENTS);
        m.chunk = ways[i].chunk;
        m.empty_every = ways[i].empty_every;
        options.slice_events = ways[i].slice_events;
        assert_int_equal(cut_all(&m, i ? lines : first), EVENTS);
        for (int k = 0; i && k < EVENTS; k++)
            if (memcmp(&first[k], &lines[k], sizeof *lines))
                fail_msg("way %zu, event %d: %s, before %s", i, k, lines[k].text, first[k].text);
        memory_close(&m);
    }
}

static void events_of_one_time_are_in_the_order_of_topic_user_and_offset(void **state)
{
    (void)state;
    struct memory_source m;
    memory_open(&m, 2);
    for (unsigned i = 0; i < 20; i++) {
        put(&m, 4 + (int)(i % 2),
            "{\"user_id\":\"u%u\",\"ts\":%" PRId64 ",\"item_id\":\"i1\",\"action\":\"a\"}", i,
            TEST_START_MS);
        put_impression(&m, 2 + (int)(i % 2), 0, i, i);
        put(&m, (int)(i % 2), "{\"item_id\":\"i%u\",\"ts\":%" PRId64 "}", i, TEST_START_MS);
    }
    struct cutter *c = open_cutter(&m);
    struct slice *slice;
    options.slice_events = 3; // much less than the group
    assert_int_equal(cutter_next(c, (struct cutter_clock){0, 0}, 0, &slice), 1);
    assert_int_equal(slice->n_events, 60);
    for (int i = 1; i < 60; i++) {
        const struct event *a = slice->events[i - 1].event, *b = slice->events[i].event;
        assert_true(a->topic <= b->topic);
        if (a->topic == b->topic && a->topic == TOPIC_ITEMS)
            assert_true(a->items[0].item.hash < b->items[0].item.hash);
        else if (a->topic == b->topic)
            assert_true(a->user.hash < b->user.hash);
    }
    cutter_give(c, slice);
    cutter_close(c);
    memory_close(&m);
}

static void what_is_out_of_order_in_a_partition_keeps_its_place(void **state)
{
    (void)state;
    struct memory_source m;
    memory_open(&m, 1);
    put_impression(&m, 1, 0, 1, 1);
    put_impression(&m, 1, 5000, 1, 2);
    put_impression(&m, 1, 2000, 1, 3); // late
    put_impression(&m, 1, 6000, 1, 4);
    put(&m, 2, "{\"user_id\":\"u1\",\"ts\":%" PRId64 ",\"item_id\":\"i1\",\"action\":\"a\"}",
        TEST_START_MS + 3000);
    static struct line lines[8];
    assert_int_equal(cut_all(&m, lines), 5);
    assert_string_equal(lines[1].text, "3 u1 a i1");
    assert_string_equal(lines[3].text, "2 u1 r3 i3");
    assert_int_equal(lines[3].mt_ms, TEST_START_MS + 5000);
    memory_close(&m);
}

static int64_t put_bad(struct memory_source *m, struct dead_letter *dead)
{
    // Two bad ones before any event, one in the middle, one after all; a tombstone.
    put(m, 1, "not json");
    put(m, 1, "{\"user_id\":\"u1\"}");
    put_impression(m, 1, 1000, 1, 1);
    put_impression(m, 1, 50000, 1, 2);
    put(m, 1, "[]");
    m->partitions[1].list[m->partitions[1].n].tombstone = true;
    put(m, 1, "%s", "");
    put_impression(m, 1, 90000, 1, 3);
    put(m, 1, "{");
    for (int i = 0; i < 100; i++)
        put_impression(m, 2, 800 * i, 2, 100);
    for (int i = 0; i < 100; i++) // of the other topic's form
        snprintf(m->partitions[2].list[i].value, sizeof m->partitions[2].list[i].value,
                 "{\"user_id\":\"u2\",\"ts\":%" PRId64 ",\"item_id\":\"i1\",\"action\":\"a\"}",
                 TEST_START_MS + 800 * i);
    options.dead_letter = dead;
    options.dead_letters = (int64_t)dead_letter_size(dead);
    options.slice_events = 10;
    return options.dead_letters;
}

static void rejected_records_count_in_the_slice_of_their_place_and_are_kept_once(void **state)
{
    (void)state;
    struct memory_source m;
    struct dead_letter *dead;
    char directory[] = "/tmp/test_cutter.XXXXXX", path[64];
    assert_non_null(mkdtemp(directory));
    snprintf(path, sizeof path, "%s/dead", directory);
    assert_int_equal(dead_letter_open(&dead, path, 1 << 20), 0);
    memory_open(&m, 1);
    int64_t size = put_bad(&m, dead);
    struct cutter *c = open_cutter(&m);
    uint64_t by_reason[REJECTS] = {0};
    for (bool last = false; !last;) {
        struct slice *slice;
        int rc;
        while ((rc = cutter_next(c, (struct cutter_clock){0, 0}, 0, &slice)) == 0)
            ;
        assert_int_equal(rc, 1);
        uint64_t all = 0, kept = 0;
        for (int r = 0; r < REJECTS; r++) {
            const uint64_t n = slice->rejected[TOPIC_IMPRESSIONS][r];
            all += n;
            kept += r == REJECT_TOMBSTONE ? 0 : n;
            by_reason[r] += n;
        }
        // Every record up to the position is an event or rejected, in this slice.
        static int64_t passed;
        int events = 0;
        for (int i = 0; i < slice->n_events; i++)
            events += slice->events[i].event->topic == TOPIC_IMPRESSIONS;
        assert_int_equal(slice->next[1] - (slice->number == 1 ? 0 : passed), (int64_t)all + events);
        passed = slice->next[1];
        assert_int_equal(slice->dead_letters > size, kept > 0);
        assert_int_equal(slice->dead_letters, dead_letter_size(dead));
        size = slice->dead_letters;
        last = slice->last;
        cutter_give(c, slice);
    }
    assert_int_equal(by_reason[REJECT_NOT_JSON], 2);
    assert_int_equal(by_reason[REJECT_MISSING_FIELD], 1);
    assert_int_equal(by_reason[REJECT_NOT_OBJECT], 1);
    assert_int_equal(by_reason[REJECT_TOMBSTONE], 1);
    assert_int_equal(cutter_counts(c).tombstones, 1);
    assert_int_equal(cutter_counts(c).pending, 0);
    cutter_close(c);
    dead_letter_close(dead);
    // The offset, the slice and the place in it, and headers, for which nobody has asked otherwise.
    static const char *const lines[] = {"{\"start\":0}", "\"offset\":0,\"slice\":1,\"letter\":1,",
                                        "\"offset\":1,\"slice\":1,\"letter\":2,",
                                        "\"offset\":4,\"slice\":", "\"offset\":7,\"slice\":"};
    char line[512], headers[96];
    FILE *f = fopen(path, "r");
    for (int i = 0; i < 5; i++) {
        assert_non_null(fgets(line, sizeof line, f));
        assert_non_null(strstr(line, lines[i]));
        snprintf(headers, sizeof headers, "\"headers\":[[\"place\",\"%d\"]],\"headers_left_out\":2",
                 i < 3    ? i - 1
                 : i == 3 ? 4
                          : 7);
        if (i > 0)
            assert_non_null(strstr(line, headers));
    }
    assert_null(fgets(line, sizeof line, f));
    fclose(f);
    assert_int_equal(m.headers, 4);
    unlink(path);
    rmdir(directory);
    memory_close(&m);
}

static void a_record_ahead_of_its_logs_time_is_rejected(void **state)
{
    (void)state;
    struct memory_source m;
    memory_open(&m, 1);
    for (unsigned i = 0; i < 3; i++)
        put_impression(&m, 1, 20000, 1, i);
    m.partitions[1].list[0].broker_ts_ms = TEST_START_MS + 10000; // as far as is allowed
    m.partitions[1].list[1].broker_ts_ms = TEST_START_MS + 9999;
    struct cutter *c = open_cutter(&m);
    struct slice *slice;
    assert_int_equal(cutter_next(c, (struct cutter_clock){0, 0}, 0, &slice), 1);
    assert_int_equal(slice->n_events, 2); // the third has no stamp to compare with
    assert_int_equal(slice->rejected[TOPIC_IMPRESSIONS][REJECT_BAD_TIME], 1);
    cutter_give(c, slice);
    cutter_close(c);
    memory_close(&m);
}

static void an_empty_source_ends_with_an_empty_slice(void **state)
{
    (void)state;
    struct memory_source m;
    memory_open(&m, 2);
    struct cutter *c = open_cutter(&m);
    struct slice *slice;
    assert_int_equal(cutter_next(c, (struct cutter_clock){0, 0}, 0, &slice), 1);
    assert_true(slice->last);
    assert_int_equal(slice->n_events, 0);
    cutter_give(c, slice);
    cutter_close(c);
    memory_close(&m);
}

// Cuts live with a clock of its own, then again from what was noted.

struct noted {
    struct slice_record record; // without what it points to
    int64_t next[PARTITIONS_MAX], time_max_ms[PARTITIONS_MAX];
    int32_t epoch[PARTITIONS_MAX];
    uint8_t flags[PARTITIONS_MAX];
    struct slice_verdict verdicts[8];
    struct slice_move moves[2];
    struct line first, last;
};

// What the slice log would give back.
static struct slice_record recorded(const struct noted *noted)
{
    struct slice_record record = noted->record;
    record.next = noted->next;
    record.epoch = noted->epoch;
    record.flags = noted->flags;
    record.verdicts = noted->verdicts;
    record.moves = noted->moves;
    return record;
}

static void note(const struct slice *slice, struct noted *noted)
{
    *noted = (struct noted){.record = {.number = slice->number,
                                       .digest = slice->digest,
                                       .order = slice->order,
                                       .n_events = slice->n_events,
                                       .watermark_ms = slice->watermark_ms,
                                       .floor_ms = slice->floor_ms,
                                       .clock_ms = slice->clock_ms,
                                       .dead_letters = slice->dead_letters,
                                       .shed_permille = slice->shed_permille,
                                       .n_verdicts = slice->n_verdicts,
                                       .n_moves = slice->n_moves,
                                       .values = slice->values}};
    assert_true(slice->n_verdicts <= 8 && slice->n_moves <= 2);
    // One by one: what lies between members is to be zero.
    for (int i = 0; i < slice->n_verdicts; i++) {
        noted->verdicts[i].partition = slice->verdicts[i].partition;
        noted->verdicts[i].offset = slice->verdicts[i].offset;
    }
    for (int i = 0; i < slice->n_moves; i++) {
        noted->moves[i].partition = slice->moves[i].partition;
        noted->moves[i].from = slice->moves[i].from;
        noted->moves[i].to = slice->moves[i].to;
    }
    memcpy(noted->epoch, slice->epoch, (size_t)slice->n_partitions * sizeof(int32_t));
    memcpy(noted->flags, slice->flags, (size_t)slice->n_partitions);
    memcpy(noted->next, slice->next, (size_t)slice->n_partitions * sizeof(int64_t));
    memcpy(noted->time_max_ms, slice->time_max_ms, (size_t)slice->n_partitions * sizeof(int64_t));
    if (slice->n_events) {
        event_line(&slice->events[0], &noted->first);
        event_line(&slice->events[slice->n_events - 1], &noted->last);
    }
}

static int cut_live(struct memory_source *m, struct noted *noted, int max)
{
    struct rng rng = {9, 0};
    options.order = SLICE_LIVE;
    m->bounded = false;
    for (int p = 0; p < m->source.n_partitions; p++)
        m->partitions[p].visible = 0;
    struct cutter *c = open_cutter(m);
    int n = 0, silent = 0;
    for (int64_t now = 1; silent < 10; now += 300) {
        struct slice *slice;
        bool more = false;
        for (int p = 0; p < m->source.n_partitions; p++) {
            struct memory_partition *part = &m->partitions[p];
            part->visible += (int)rng_below(&rng, 12);
            part->visible = part->visible > part->n ? part->n : part->visible;
            more |= part->visible < part->n;
        }
        const int rc = cutter_next(c, (struct cutter_clock){now, 0}, 0, &slice);
        assert_true(rc >= 0);
        silent += !more && cutter_counts(c).pending == 0;
        if (rc == 0)
            continue;
        assert_true(n < max);
        note(slice, &noted[n++]);
        cutter_give(c, slice);
    }
    cutter_close(c);
    for (int p = 0; p < m->source.n_partitions; p++)
        assert_int_equal(noted[n - 1].next[p], m->partitions[p].n);
    return n;
}

static void rewind_to(struct memory_source *m, const int64_t *next)
{
    for (int p = 0; p < m->source.n_partitions; p++)
        m->partitions[p].at = next ? (int)next[p] : 0;
}

static void recorded_slices_are_cut_again_the_same(void **state)
{
    (void)state;
    enum { MAX = 400 };
    static struct noted noted[MAX];
    struct memory_source m;
    memory_open(&m, 3);
    put_stream(&m, 21, EVENTS);
    options.slice_events = 40;
    const int n = cut_live(&m, noted, MAX);
    assert_true(n > 20);
    // From the start, and from a checkpoint in the middle.
    for (int start = 0; start < n; start += n / 2) {
        const struct noted *before = start ? &noted[start - 1] : NULL;
        struct cutter *c;
        rewind_to(&m, before ? before->next : NULL);
        m.chunk = start ? 1 : 7;
        m.empty_every = 3;
        assert_int_equal(cutter_open(&c, &m.source, &options,
                                     &(struct cutter_position){
                                         before ? before->next : zeroes,
                                         before ? before->time_max_ms : never, (uint64_t)start,
                                         before ? before->record.watermark_ms : INT64_MIN, NULL}),
                         0);
        for (int i = start; i < n; i++) {
            struct slice *slice;
            struct noted again;
            const struct slice_record record = recorded(&noted[i]);
            const int rc = cutter_recorded(c, &record, NULL, &slice);
            if (rc < 0)
                fail_msg("%s", cutter_error(c));
            note(slice, &again);
            assert_memory_equal(&again, &noted[i], sizeof again);
            cutter_give(c, slice);
        }
        assert_int_equal(cutter_counts(c).pending, 0);
        cutter_close(c);
    }
    memory_close(&m);
}

static void a_source_that_has_other_records_now_is_refused(void **state)
{
    (void)state;
    enum { MAX = 400 };
    static struct noted noted[MAX];
    struct memory_source m;
    memory_open(&m, 1);
    put_stream(&m, 22, 200);
    options.slice_events = 1000;
    options.interval_ms = 100000;
    options.slice_events = 60;
    cut_live(&m, noted, MAX);
    m.partitions[1].list[3].value[17] ^= 1; // another request's or user's number
    put_impression(&m, 1, 0, 99, 1);
    memcpy(m.partitions[1].list[3].value, m.partitions[1].list[m.partitions[1].n - 1].value, 160);
    rewind_to(&m, NULL);
    struct cutter *c = open_cutter(&m);
    struct slice *slice;
    const struct slice_record record = recorded(&noted[0]);
    assert_int_equal(cutter_recorded(c, &record, NULL, &slice), -EBADMSG);
    assert_non_null(strstr(cutter_error(c), "slice 1"));
    cutter_close(c);
    memory_close(&m);
}

// Live rules, one at a time: partition 1 has impressions, 2 engagements, 0 nothing.

static struct slice *live(struct cutter *c, int64_t now)
{
    struct slice *slice;
    const int rc = cutter_next(c, (struct cutter_clock){now, 0}, 0, &slice);
    assert_true(rc >= 0);
    return rc ? slice : NULL;
}

static void put_engagement(struct memory_source *m, int p, int64_t ms)
{
    put(m, p, "{\"user_id\":\"u2\",\"ts\":%" PRId64 ",\"item_id\":\"i1\",\"action\":\"a\"}",
        TEST_START_MS + ms);
}

static void a_live_slice_is_cut_at_the_interval_or_when_it_is_full(void **state)
{
    (void)state;
    struct memory_source m;
    memory_open(&m, 1);
    m.bounded = false;
    options.order = SLICE_LIVE;
    options.slice_events = 10;
    struct cutter *c = open_cutter(&m);
    assert_null(live(c, 5000));
    put_impression(&m, 1, 0, 1, 1);
    assert_null(live(c, 5100));
    assert_null(live(c, 5999));
    struct slice *slice = live(c, 6000);
    assert_non_null(slice);
    assert_int_equal(slice->n_events, 1);
    assert_int_equal(slice->order, SLICE_LIVE);
    cutter_give(c, slice);
    for (unsigned i = 0; i < 10; i++)
        put_impression(&m, 1, 10 + i, 1, i);
    slice = live(c, 6001);
    assert_non_null(slice);
    assert_int_equal(slice->n_events, 10);
    cutter_give(c, slice);
    assert_null(live(c, 6002));
    cutter_close(c);
    memory_close(&m);
}

static void the_watermark_is_lateness_behind_the_slowest_that_is_not_idle(void **state)
{
    (void)state;
    struct memory_source m;
    memory_open(&m, 1);
    m.bounded = false;
    options.order = SLICE_LIVE;
    struct cutter *c = open_cutter(&m);
    assert_null(live(c, 10000));
    put_impression(&m, 1, 50000, 1, 1);
    put_engagement(&m, 2, 30000);
    struct slice *slice = live(c, 11000);
    assert_int_equal(slice->n_events, 2);
    assert_int_equal(slice->watermark_ms, INT64_MIN); // partition 0 may still bring anything
    cutter_give(c, slice);
    // The catalogue is silent for idle_ms: it does not hold back any more.
    put_impression(&m, 1, 60000, 1, 2);
    put_engagement(&m, 2, 31000);
    slice = live(c, 12500);
    assert_int_equal(slice->watermark_ms, TEST_START_MS + 31000 - 5000);
    cutter_give(c, slice);
    // Now the engagements are idle as well.
    assert_null(live(c, 13500));
    put_impression(&m, 1, 61000, 1, 3);
    slice = live(c, 14600);
    assert_int_equal(slice->watermark_ms, TEST_START_MS + 61000 - 5000);
    cutter_give(c, slice);
    // One that was idle comes back behind: the watermark stays.
    put_engagement(&m, 2, 40000);
    slice = live(c, 15700);
    assert_int_equal(slice->n_events, 1);
    assert_int_equal(slice->watermark_ms, TEST_START_MS + 61000 - 5000);
    cutter_give(c, slice);
    // All are silent: time goes on with the clock, and empty slices carry it.
    slice = live(c, 21000); // 5,300 ms of silence, 3,300 of them idle
    assert_non_null(slice);
    assert_int_equal(slice->n_events, 0);
    assert_int_equal(slice->watermark_ms, TEST_START_MS + 61000 + 3300 - 5000);
    cutter_give(c, slice);
    assert_null(live(c, 21900));
    cutter_close(c);
    memory_close(&m);
}

static void a_partition_does_not_run_ahead_by_more_than_the_drift(void **state)
{
    (void)state;
    struct memory_source m;
    memory_open(&m, 1);
    m.bounded = false;
    options.order = SLICE_LIVE;
    put_impression(&m, 1, 0, 1, 1);
    put_impression(&m, 1, 70000, 1, 2);
    put_engagement(&m, 2, 60000);
    put_engagement(&m, 2, 60001);
    struct cutter *c = open_cutter(&m);
    assert_null(live(c, 1000));
    struct slice *slice = live(c, 2000);
    assert_int_equal(slice->n_events, 2); // those at 0 and at 60,000
    cutter_give(c, slice);
    slice = live(c, 3000);
    assert_int_equal(slice->n_events, 2);
    cutter_give(c, slice);
    cutter_close(c);
    memory_close(&m);
}

// Its time is unknown, so nothing can be said about how far the others are ahead of it.
static void a_bad_first_record_beside_good_ones_is_cut_live(void **state)
{
    (void)state;
    struct memory_source m;
    memory_open(&m, 1);
    m.bounded = false;
    options.order = SLICE_LIVE;
    put(&m, 1, "not json");
    put_engagement(&m, 2, 0);
    struct cutter *c = open_cutter(&m);
    assert_null(live(c, 1000));
    int events = 0, rejected = 0;
    for (int64_t now = 2000; now <= 3000; now += 1000) {
        struct slice *slice = live(c, now);
        if (!slice)
            continue;
        events += slice->n_events;
        rejected += (int)slice->rejected[TOPIC_IMPRESSIONS][REJECT_NOT_JSON];
        cutter_give(c, slice);
    }
    assert_int_equal(events, 1);
    assert_int_equal(rejected, 1);
    cutter_close(c);
    memory_close(&m);
}

static void after_a_bounded_part_it_goes_on_live(void **state)
{
    (void)state;
    struct memory_source m;
    memory_open(&m, 1);
    put_impression(&m, 1, 0, 1, 1);
    struct cutter *c = open_cutter(&m);
    struct slice *slice;
    assert_int_equal(cutter_next(c, (struct cutter_clock){0, 0}, 0, &slice), 1);
    assert_true(slice->last);
    cutter_give(c, slice);
    m.bounded = false;
    cutter_go_live(c);
    put_impression(&m, 1, 1000, 1, 2);
    assert_null(live(c, 1000));
    slice = live(c, 2000);
    assert_int_equal(slice->number, 2);
    assert_int_equal(slice->n_events, 1);
    assert_false(slice->last);
    cutter_give(c, slice);
    cutter_close(c);
    memory_close(&m);
}

// Values of tasks.

static void values_asked_for_come_once_with_the_next_slice_and_again_from_the_record(void **state)
{
    (void)state;
    struct memory_source m;
    struct noted noted[5];
    memory_open(&m, 1);
    options.order = SLICE_LIVE;
    options.slice_events = 10;
    options.tasks = 2;
    struct cutter *c = open_cutter(&m);
    assert_true(cutter_want_values(c, (float[]){1, -2}));
    assert_false(cutter_want_values(c, (float[]){1, -2}));
    for (int i = 0; i < 5; i++) {
        for (unsigned k = 0; k < 10; k++)
            put_impression(&m, 1, 10 * i + k, 1, 10 * (unsigned)i + k);
        if (i == 2) {
            assert_true(cutter_want_values(c, (float[]){5, 5})); // the last wish counts
            assert_true(cutter_want_values(c, (float[]){0.5f, -2}));
        }
        if (i == 3) { // there and back again is no change
            assert_true(cutter_want_values(c, (float[]){7, 7}));
            assert_true(cutter_want_values(c, (float[]){0.5f, -2}));
        }
        struct slice *slice = live(c, 6000 + i);
        assert_non_null(slice);
        note(slice, &noted[i]);
        cutter_give(c, slice);
    }
    cutter_close(c);
    for (int i = 0; i < 5; i++)
        assert_int_equal(noted[i].record.values.n, i % 2 == 0 && i < 4 ? 2 : 0);
    assert_true(noted[0].record.values.weight[0] == 1);
    assert_true(noted[2].record.values.weight[0] == 0.5f);
    assert_true(noted[2].record.values.weight[1] == -2);

    // Again from the log: what is asked for meanwhile waits for the first slice that is cut.
    rewind_to(&m, NULL);
    c = open_cutter(&m);
    assert_true(cutter_want_values(c, (float[]){9, 9}));
    for (int i = 0; i < 5; i++) {
        struct noted again;
        struct slice *slice;
        const struct slice_record record = recorded(&noted[i]);
        assert_int_equal(cutter_recorded(c, &record, NULL, &slice), 1);
        note(slice, &again);
        assert_memory_equal(&again, &noted[i], sizeof again);
        cutter_give(c, slice);
    }
    for (unsigned k = 0; k < 10; k++)
        put_impression(&m, 1, 60 + k, 1, 60 + k);
    struct slice *slice = live(c, 7000);
    assert_non_null(slice);
    assert_int_equal(slice->values.n, 2);
    assert_true(slice->values.weight[1] == 9);
    cutter_give(c, slice);
    cutter_close(c);

    // The digest covers them, and so does the number of tasks.
    struct slice_record record = recorded(&noted[2]);
    rewind_to(&m, noted[1].next);
    options.values = noted[0].record.values;
    assert_int_equal(cutter_open(&c, &m.source, &options,
                                 &(struct cutter_position){noted[1].next, noted[1].time_max_ms, 2,
                                                           noted[1].record.watermark_ms, NULL}),
                     0);
    record.values.weight[0] = 0.25f;
    assert_int_equal(cutter_recorded(c, &record, NULL, &slice), -EBADMSG);
    cutter_close(c);
    rewind_to(&m, noted[1].next);
    assert_int_equal(cutter_open(&c, &m.source, &options,
                                 &(struct cutter_position){noted[1].next, noted[1].time_max_ms, 2,
                                                           noted[1].record.watermark_ms, NULL}),
                     0);
    record.values.n = 3;
    assert_int_equal(cutter_recorded(c, &record, NULL, &slice), -EINVAL);
    assert_non_null(strstr(cutter_error(c), "values 3 tasks, there are 2 now"));
    cutter_close(c);
    memory_close(&m);
}

static void values_that_are_in_force_are_not_written_again(void **state)
{
    (void)state;
    for (int known = 0; known < 2; known++) {
        struct memory_source m;
        struct slice *slice;
        memory_open(&m, 1);
        put_impression(&m, 1, 0, 1, 1);
        options.order = SLICE_CANONICAL;
        options.tasks = 2;
        options.values = (struct slice_values){known ? 2 : 0, {3, -1}};
        struct cutter *c = open_cutter(&m);
        cutter_want_values(c, (float[]){3, -1});
        assert_int_equal(cutter_next(c, (struct cutter_clock){0, 0}, 0, &slice), 1);
        assert_int_equal(slice->values.n, known ? 0 : 2);
        cutter_give(c, slice);
        cutter_close(c);
        memory_close(&m);
    }
}

static void without_tasks_slices_carry_no_values(void **state)
{
    (void)state;
    struct memory_source m;
    struct slice *slice;
    memory_open(&m, 1);
    put_impression(&m, 1, 0, 1, 1);
    struct cutter *c = open_cutter(&m);
    assert_false(cutter_want_values(c, (float[]){3}));
    assert_int_equal(cutter_next(c, (struct cutter_clock){0, 0}, 0, &slice), 1);
    assert_int_equal(slice->values.n, 0);
    cutter_give(c, slice);
    cutter_close(c);
    memory_close(&m);
}

// Floods. Partition 1 has 400 impressions, then what is none of them, 50 records to a slice.

enum { GOOD = 400, SLICES_MAX = 30 };

static struct flooded {
    struct memory_source m;
    struct noted noted[SLICES_MAX];
    int n; // slices cut
    char directory[32], path[64], kept[80];
} flooded;

static int setup_flood(void **state)
{
    struct flooded *f = &flooded;
    setup(state);
    *f = (struct flooded){.directory = "/tmp/test_cutter.XXXXXX"};
    if (!mkdtemp(f->directory))
        return -1;
    snprintf(f->path, sizeof f->path, "%s/dead", f->directory);
    snprintf(f->kept, sizeof f->kept, "%s.flood", f->path);
    memory_open(&f->m, 1);
    f->m.bounded = false;
    for (int i = 0; i < GOOD; i++)
        put_impression(&f->m, 1, i, 1, (unsigned)i);
    options.order = SLICE_LIVE;
    options.slice_events = 50;
    options.flood = 100;
    return dead_letter_open(&options.dead_letter, f->path, 1 << 20);
}

static int teardown_flood(void **state)
{
    (void)state;
    dead_letter_close(options.dead_letter);
    unlink(flooded.path);
    unlink(flooded.kept);
    memory_close(&flooded.m);
    return rmdir(flooded.directory);
}

static void put_nonsense(int n)
{
    for (int i = 0; i < n; i++)
        put(&flooded.m, 1, "%s", "[]");
}

// On from the last slice, as after a restart; what cutter_next ends with: 0 when all is cut.
static int cut_on(struct cutter *c)
{
    struct flooded *f = &flooded;
    struct slice *slice;
    int rc = 0;
    while (f->n < SLICES_MAX &&
           (rc = cutter_next(c, (struct cutter_clock){1 + f->n, 0}, 0, &slice)) >= 0) {
        if (rc == 0)
            return 0;
        note(slice, &f->noted[f->n++]);
        cutter_give(c, slice);
    }
    return rc;
}

static struct cutter *open_again(void)
{
    struct flooded *f = &flooded;
    const struct noted *last = f->n ? &f->noted[f->n - 1] : NULL;
    struct cutter *c;
    rewind_to(&f->m, last ? last->next : NULL);
    assert_int_equal(cutter_open(&c, &f->m.source, &options,
                                 &(struct cutter_position){
                                     .next = last ? last->next : zeroes,
                                     .time_max_ms = last ? last->time_max_ms : never,
                                     .slices = (uint64_t)f->n,
                                     .watermark_ms = last ? last->record.watermark_ms : INT64_MIN}),
                     0);
    return c;
}

static void a_flood_of_bad_records_is_not_cut_and_named_and_a_restart_stops_there_too(void **state)
{
    struct flooded *f = &flooded;
    (void)state;
    put_nonsense(150);
    struct cutter *c = open_again();
    assert_int_equal(cut_on(c), -EBADMSG);
    // A hundred in a thousand are taken; the slice with one more is not.
    assert_int_equal(f->n, 10);
    assert_int_equal(f->noted[9].next[1], GOOD + 100);
    assert_non_null(strstr(cutter_error(c), "topic impressions: 101 of the last 501 records"));
    assert_non_null(strstr(cutter_error(c), "most often not_object, from partition 0 offset 400"));
    cutter_close(c);

    for (int i = 0; i < 2; i++) {
        c = open_again();
        assert_int_equal(cut_on(c), -EBADMSG);
        assert_int_equal(f->n, 10);
        assert_non_null(strstr(cutter_error(c), "101 of the last 501 records"));
        cutter_close(c);
    }
    // One that reads them as events would go on, and so does one that takes them on purpose.
    options.flood = 0;
    c = open_again();
    assert_int_equal(cut_on(c), 0);
    assert_int_equal(cutter_counts(c).records, 50);
    cutter_close(c);
}

static void what_was_kept_of_a_flood_holds_for_its_place_alone(void **state)
{
    struct flooded *f = &flooded;
    (void)state;
    put_nonsense(150);
    struct cutter *c = open_again();
    assert_int_equal(cut_on(c), -EBADMSG);
    cutter_close(c);
    f->n -= 2; // an older checkpoint, of a log that was lost
    c = open_again();
    assert_int_equal(cut_on(c), -EBADMSG);
    assert_int_equal(f->n, 10); // counted from there
    cutter_close(c);
    f->n = 9;
    c = open_again();
    assert_int_equal(cut_on(c), 0); // a hundred of a hundred are none
    cutter_close(c);
}

static void tombstones_are_no_flood(void **state)
{
    struct flooded *f = &flooded;
    (void)state;
    put_nonsense(150);
    for (int i = GOOD; i < GOOD + 150; i += 2)
        f->m.partitions[1].list[i].tombstone = true;
    for (int i = 0; i < 100; i++)
        put_impression(&f->m, 1, 500 + i, 1, 1);
    struct cutter *c = open_again();
    assert_int_equal(cut_on(c), 0);
    assert_int_equal(cutter_counts(c).tombstones, 75);
    cutter_close(c);
}

static void a_flood_in_the_log_was_taken_on_purpose(void **state)
{
    struct flooded *f = &flooded;
    (void)state;
    put_nonsense(300);
    options.flood = 0;
    struct cutter *c = open_again();
    cut_on(c);
    cutter_close(c);
    const int n = f->n;
    assert_int_equal(n, (GOOD + 300) / 50);

    options.flood = 100;
    put_nonsense(100);
    f->n = 0;
    c = open_again();
    for (; f->n < n; f->n++) {
        struct slice *slice;
        const struct slice_record record = recorded(&f->noted[f->n]);
        assert_int_equal(cutter_recorded(c, &record, NULL, &slice), 1);
        cutter_give(c, slice);
    }
    assert_int_equal(cut_on(c), 0); // counting began anew
    put_nonsense(1);
    assert_int_equal(cutter_next(c, (struct cutter_clock){1 << 20, 0}, 0, &(struct slice *){0}),
                     -EBADMSG);
    cutter_close(c);
}

#define TEST(name)       cmocka_unit_test_setup(name, setup)
#define FLOOD_TEST(name) cmocka_unit_test_setup_teardown(name, setup_flood, teardown_flood)

// What a clock decides lies in the slice.

static void put_live(struct memory_source *m)
{
    memory_open(m, 1);
    m->bounded = false;
    options.order = SLICE_LIVE;
    options.slice_events = 2;
    options.as_of_ms = TEST_START_MS;
}

// Cuts at this time by both clocks, and notes it.
static void cut_at(struct cutter *c, int64_t ms, struct noted *noted)
{
    struct slice *slice;
    const int rc = cutter_next(c, (struct cutter_clock){1 + ms, TEST_START_MS + ms}, 0, &slice);
    if (rc < 0)
        fail_msg("%s", cutter_error(c));
    assert_int_equal(rc, 1);
    note(slice, noted);
    cutter_give(c, slice);
}

static struct cutter *open_recorded(struct memory_source *m, const struct noted *noted, int n,
                                    struct slice_verdict *verdicts)
{
    options.recorded_next = noted[n - 1].next;
    options.n_verdicts = 0;
    for (int i = 0; i < n; i++)
        for (int v = 0; v < noted[i].record.n_verdicts; v++)
            verdicts[options.n_verdicts++] = noted[i].verdicts[v];
    options.verdicts = verdicts;
    rewind_to(m, NULL);
    return open_cutter(m);
}

static void again_at(struct cutter *c, const struct noted *noted)
{
    struct slice *slice;
    struct noted again;
    const struct slice_record record = recorded(noted);
    const int rc = cutter_recorded(c, &record, NULL, &slice);
    if (rc < 0)
        fail_msg("%s", cutter_error(c));
    note(slice, &again);
    assert_memory_equal(&again, noted, sizeof again);
    cutter_give(c, slice);
}

static void
what_is_ahead_of_the_clock_is_rejected_and_stays_so_when_the_clock_has_gone_on(void **state)
{
    (void)state;
    struct memory_source m;
    struct noted noted[2];
    struct slice_verdict verdicts[8];
    put_live(&m);
    put_impression(&m, 1, 0, 1, 1);
    put_impression(&m, 1, 11001, 1, 2); // max_future_ms and a millisecond ahead of 1000
    put_impression(&m, 1, 11000, 1, 3);
    put_impression(&m, 1, 700, 1, 4);
    struct cutter *c = open_cutter(&m);
    cut_at(c, 1000, &noted[0]);
    assert_int_equal(noted[0].record.n_verdicts, 1);
    assert_int_equal(noted[0].verdicts[0].partition, 1);
    assert_int_equal(noted[0].verdicts[0].offset, 1);
    assert_int_equal(noted[0].record.n_events, 1);
    assert_int_equal(noted[0].record.clock_ms, TEST_START_MS + 1000);
    assert_int_equal(noted[0].time_max_ms[1], TEST_START_MS); // it moves no time
    cut_at(c, 2000, &noted[1]);
    assert_int_equal(noted[1].record.n_verdicts, 0);
    cutter_close(c);

    options.as_of_ms = TEST_START_MS + 1000000;
    c = open_recorded(&m, noted, 2, verdicts);
    again_at(c, &noted[0]);
    again_at(c, &noted[1]);
    // What comes behind what is recorded is judged by the clock of now.
    put_impression(&m, 1, 1010001, 1, 5);
    put_impression(&m, 1, 1000000, 1, 6);
    struct noted more;
    cut_at(c, 1000000, &more);
    assert_int_equal(more.record.n_verdicts, 1);
    assert_int_equal(more.verdicts[0].offset, 4);
    cutter_close(c);

    // Without the verdict the slice would be another one.
    c = open_recorded(&m, noted, 2, verdicts);
    options.n_verdicts = 0;
    struct slice *slice;
    const struct slice_record record = recorded(&noted[0]);
    cutter_close(c);
    rewind_to(&m, NULL);
    c = open_cutter(&m);
    assert_int_equal(cutter_recorded(c, &record, NULL, &slice), -EBADMSG);
    cutter_close(c);
    memory_close(&m);
}

static void in_canonical_order_one_clock_judges_all(void **state)
{
    (void)state;
    struct memory_source m;
    memory_open(&m, 1);
    options.as_of_ms = TEST_START_MS;
    put_impression(&m, 1, 10000, 1, 1);
    put_impression(&m, 1, 10001, 1, 2);
    struct cutter *c = open_cutter(&m);
    struct slice *slice;
    assert_int_equal(cutter_next(c, (struct cutter_clock){0, INT64_MAX / 2}, 0, &slice), 1);
    assert_int_equal(slice->n_events, 1);
    assert_int_equal(slice->n_verdicts, 1);
    assert_int_equal(slice->rejected[TOPIC_IMPRESSIONS][REJECT_BAD_TIME], 1);
    cutter_give(c, slice);
    cutter_close(c);
    memory_close(&m);
}

static void flags_and_floor_give_the_watermark_again_and_without_them_it_is_refused(void **state)
{
    (void)state;
    struct memory_source m;
    struct noted noted[3];
    struct slice_verdict verdicts[8];
    put_live(&m);
    for (int p = 0; p < 3; p++)
        put(&m, p,
            p == 0 ? "{\"item_id\":\"i1\",\"ts\":%" PRId64 "}"
                   : "{\"request_id\":\"r\",\"user_id\":\"u\",\"ts\":%" PRId64
                     ",\"item_id\":\"i\",\"action\":\"a\"}",
            TEST_START_MS + p * 1000);
    struct cutter *c = open_cutter(&m);
    cut_at(c, 1000, &noted[0]); // the slowest holds the watermark
    assert_int_equal(noted[0].record.watermark_ms, TEST_START_MS - 5000);
    assert_int_equal(noted[0].flags[0], SLICE_END_SEEN);
    put_impression(&m, 1, 9000, 1, 7);
    put_impression(&m, 1, 9001, 1, 8);
    cut_at(c, 4000, &noted[1]); // two are idle by now
    assert_int_equal(noted[1].flags[0], SLICE_END_SEEN | SLICE_IDLE);
    assert_int_equal(noted[1].flags[1], SLICE_END_SEEN);
    assert_int_equal(noted[1].record.watermark_ms, TEST_START_MS + 4001);
    assert_int_equal(noted[1].record.floor_ms, INT64_MIN);
    cut_at(c, 9000, &noted[2]); // all are: the clock goes on, 5 s less the 2 s of idleness
    assert_int_equal(noted[2].record.floor_ms, TEST_START_MS + 9001 + 3000 - 5000);
    assert_int_equal(noted[2].record.watermark_ms, noted[2].record.floor_ms);
    cutter_close(c);

    c = open_recorded(&m, noted, 3, verdicts);
    for (int i = 0; i < 3; i++)
        again_at(c, &noted[i]);
    cutter_close(c);
    for (int missing = 1; missing < 3; missing++) {
        struct noted other = noted[missing];
        struct slice *slice;
        memset(other.flags, 0, sizeof other.flags);
        other.record.floor_ms = INT64_MIN;
        c = open_recorded(&m, noted, 3, verdicts);
        for (int i = 0; i < missing; i++)
            again_at(c, &noted[i]);
        const struct slice_record record = recorded(&other);
        assert_int_equal(cutter_recorded(c, &record, NULL, &slice), -EBADMSG);
        assert_non_null(strstr(cutter_error(c), "watermark"));
        cutter_close(c);
    }
    memory_close(&m);
}

static void a_partition_goes_on_where_a_person_lets_it_and_the_slice_says_so(void **state)
{
    (void)state;
    struct memory_source m;
    struct noted noted[2];
    struct slice_verdict verdicts[8];
    const struct slice_move moves[] = {{1, 2, 5}};
    put_live(&m);
    for (unsigned i = 0; i < 8; i++) {
        put_impression(&m, 1, i, 1, i);
        m.partitions[1].list[i].epoch = i < 5 ? 3 : 0; // another log may be there
    }
    m.partitions[1].visible = 5;
    struct cutter *c = open_cutter(&m);
    cut_at(c, 1000, &noted[0]);
    assert_int_equal(noted[0].next[1], 2);
    m.partitions[1].visible = 8;
    assert_int_equal(cutter_move(c, 1, moves, false, NULL), 0);
    cut_at(c, 2000, &noted[1]);
    assert_int_equal(noted[1].record.n_moves, 1);
    assert_memory_equal(noted[1].moves, moves, sizeof moves);
    assert_int_equal(noted[1].record.n_events, 2);
    assert_int_equal(noted[1].first.mt_ms, TEST_START_MS + 5);
    assert_int_equal(noted[1].next[1], 7);
    cutter_close(c);

    m.partitions[1].visible = 5;
    c = open_recorded(&m, noted, 2, verdicts);
    again_at(c, &noted[0]);
    m.partitions[1].visible = 8;
    again_at(c, &noted[1]);
    cutter_close(c);
    noted[1].moves[0].from = 3; // where it never stood
    m.partitions[1].visible = 5;
    c = open_recorded(&m, noted, 2, verdicts);
    again_at(c, &noted[0]);
    struct slice *slice;
    const struct slice_record record = recorded(&noted[1]);
    assert_int_equal(cutter_recorded(c, &record, NULL, &slice), -EBADMSG);
    cutter_close(c);
    memory_close(&m);
}

static void a_leader_epoch_that_goes_back_is_another_log(void **state)
{
    (void)state;
    struct memory_source m;
    struct noted noted;
    const int64_t epoch[] = {-1, 8, -1};
    put_live(&m);
    put_impression(&m, 1, 0, 1, 1);
    put_impression(&m, 1, 1, 1, 2);
    m.partitions[1].list[0].epoch = 7;
    struct cutter *c = open_cutter(&m);
    cut_at(c, 1000, &noted);
    assert_int_equal(noted.epoch[1], 7); // also of records that do not say
    assert_int_equal(noted.epoch[0], -1);
    put_impression(&m, 1, 2, 1, 3);
    m.partitions[1].list[2].epoch = 6;
    struct slice *slice;
    assert_int_equal(cutter_next(c, (struct cutter_clock){2000, 0}, 0, &slice), -EBADMSG);
    assert_non_null(strstr(cutter_error(c), "offset 2 is of leader epoch 6, after epoch 7"));
    cutter_close(c);
    rewind_to(&m, NULL);
    assert_int_equal(cutter_open(&c, &m.source, &options,
                                 &(struct cutter_position){zeroes, never, 0, INT64_MIN, epoch}),
                     0);
    assert_int_equal(cutter_next(c, (struct cutter_clock){2000, 0}, 0, &slice), -EBADMSG);
    cutter_close(c);
    memory_close(&m);
}

static void behind_the_seam_the_watermark_is_found_again_from_either_side(void **state)
{
    (void)state;
    enum { MAX = 8 };
    struct memory_source m;
    struct noted noted[MAX];
    struct slice_verdict verdicts[8];
    memory_open(&m, 1);
    options.slice_events = 2;
    for (unsigned i = 0; i < 6; i++)
        put_impression(&m, 1, i * 1000, 1, i);
    struct cutter *c = open_cutter(&m);
    int n = 0;
    for (struct slice *slice; n == 0 || m.bounded; cutter_give(c, slice)) {
        assert_true(n < MAX - 1);
        assert_int_equal(cutter_next(c, (struct cutter_clock){1, 0}, 0, &slice), 1);
        note(slice, &noted[n++]);
        if (slice->last) {
            m.bounded = false;
            cutter_go_live(c);
        }
    }
    assert_true(n > 1);
    // Later than the watermark that canonical order left, less lateness.
    put_impression(&m, 1, 6000, 1, 6);
    put_impression(&m, 1, 6001, 1, 7);
    options.order = SLICE_LIVE;
    cut_at(c, 1000, &noted[n]);
    assert_int_equal(noted[n].record.watermark_ms, TEST_START_MS + 5000);
    cutter_close(c);
    for (int from = 0; from <= n; from++) {
        const struct noted *before = from ? &noted[from - 1] : NULL;
        c = open_recorded(&m, noted, n + 1, verdicts);
        cutter_close(c);
        rewind_to(&m, before ? before->next : NULL);
        // As the trainer's, by the last event it has applied.
        const int64_t watermark_ms = before ? before->last.mt_ms : INT64_MIN;
        assert_int_equal(cutter_open(&c, &m.source, &options,
                                     &(struct cutter_position){before ? before->next : zeroes,
                                                               before ? before->time_max_ms : never,
                                                               (uint64_t)from, watermark_ms, NULL}),
                         0);
        for (int i = from; i <= n; i++)
            again_at(c, &noted[i]);
        cutter_close(c);
    }
    memory_close(&m);
}

static void a_join_that_gets_full_is_in_the_slices(void **state)
{
    (void)state;
    static const struct {
        double fill;
        int shed;
    } cases[] = {{0, 0}, {0.9, 0}, {0.925, 250}, {0.95, 500}, {1, 1000}, {0.5, 0}};
    struct memory_source m;
    struct noted noted;
    put_live(&m);
    struct cutter *c = open_cutter(&m);
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        put_impression(&m, 1, i, 1, 2 * i);
        put_impression(&m, 1, i, 1, 2 * i + 1);
        cutter_told_fill(c, cases[i].fill);
        cut_at(c, 1000 * (1 + (int64_t)i), &noted);
        assert_int_equal(noted.record.shed_permille, cases[i].shed);
    }
    cutter_close(c);
    memory_close(&m);
}

static void records_that_are_not_keyed_by_their_user_are_counted(void **state)
{
    static const struct {
        const char *user, *key;
        bool keyed;
    } cases[] = {
        {"\"u1\"", "u1", true}, {"\"u1\"", "u2", false},
        {"\"u1\"", "", false},  {"\"u1\"", "u11", false},
        {"7", "7", true},       {"7", "07", false},
        {"-7", "-7", true},     {"18446744073709551615", "18446744073709551615", true},
    };
    struct memory_source m;
    struct slice *slice;
    unsigned unkeyed = 0;
    (void)state;
    for (int keyed = 0; keyed < 2; keyed++) {
        struct source_ops ops = memory_ops;
        memory_open(&m, 1);
        ops.keyed = keyed;
        m.source.ops = &ops;
        unkeyed = 0;
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            put(&m, 2, "{\"user_id\":%s,\"ts\":%" PRId64 ",\"item_id\":\"i1\",\"action\":\"a\"}",
                cases[i].user, TEST_START_MS + (int64_t)i);
            strcpy(m.partitions[2].list[i].key, cases[i].key);
            unkeyed += !cases[i].keyed;
        }
        put(&m, 0, "{\"item_id\":\"i1\",\"ts\":%" PRId64 "}", TEST_START_MS);
        struct cutter *c = open_cutter(&m);
        assert_int_equal(cutter_next(c, (struct cutter_clock){0, 0}, 0, &slice), 1);
        assert_int_equal(slice->n_events, 9);
        cutter_give(c, slice);
        assert_int_equal(cutter_counts(c).unkeyed[TOPIC_ENGAGEMENTS], keyed ? unkeyed : 0);
        assert_int_equal(cutter_counts(c).unkeyed[TOPIC_ITEMS], 0);
        cutter_close(c);
        memory_close(&m);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(the_canonical_order_does_not_depend_on_partitions_chunks_or_waits),
        TEST(events_of_one_time_are_in_the_order_of_topic_user_and_offset),
        TEST(what_is_out_of_order_in_a_partition_keeps_its_place),
        TEST(rejected_records_count_in_the_slice_of_their_place_and_are_kept_once),
        TEST(a_record_ahead_of_its_logs_time_is_rejected),
        TEST(an_empty_source_ends_with_an_empty_slice),
        TEST(recorded_slices_are_cut_again_the_same),
        TEST(a_source_that_has_other_records_now_is_refused),
        TEST(a_live_slice_is_cut_at_the_interval_or_when_it_is_full),
        TEST(the_watermark_is_lateness_behind_the_slowest_that_is_not_idle),
        TEST(a_partition_does_not_run_ahead_by_more_than_the_drift),
        TEST(a_bad_first_record_beside_good_ones_is_cut_live),
        TEST(after_a_bounded_part_it_goes_on_live),
        TEST(values_asked_for_come_once_with_the_next_slice_and_again_from_the_record),
        TEST(values_that_are_in_force_are_not_written_again),
        TEST(without_tasks_slices_carry_no_values),
        TEST(what_is_ahead_of_the_clock_is_rejected_and_stays_so_when_the_clock_has_gone_on),
        TEST(in_canonical_order_one_clock_judges_all),
        TEST(flags_and_floor_give_the_watermark_again_and_without_them_it_is_refused),
        TEST(a_partition_goes_on_where_a_person_lets_it_and_the_slice_says_so),
        TEST(a_leader_epoch_that_goes_back_is_another_log),
        TEST(behind_the_seam_the_watermark_is_found_again_from_either_side),
        TEST(a_join_that_gets_full_is_in_the_slices),
        FLOOD_TEST(a_flood_of_bad_records_is_not_cut_and_named_and_a_restart_stops_there_too),
        FLOOD_TEST(what_was_kept_of_a_flood_holds_for_its_place_alone),
        FLOOD_TEST(tombstones_are_no_flood),
        FLOOD_TEST(a_flood_in_the_log_was_taken_on_purpose),
        TEST(records_that_are_not_keyed_by_their_user_are_counted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
