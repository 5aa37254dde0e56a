// SPDX-License-Identifier: Apache-2.0
//
// The three partitions made of requests derive their records from the same pure function of the
// request's number, each at its own pace; a small cache of slates spares them drawing the same
// slate three times.
#include "pipeline/source_builtin.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/rng.h"
#include "pipeline/audience_builtin.h"

enum {
    SLATES_CACHED = 2048,   // a power of two; 240 KiB
    RECORDS_PER_READ = 256, // bounds the text buffer
    RECORD_BYTES = 1024,    // the longest record (scores of twelve) is below 960
    ITEM_JSON_BYTES = 24,   // {"item_id":"i999999"
};

// Engagements in the order of time: those of all requests before next_request that lie in the
// future of the last one popped wait in a binary heap. It holds about requests_per_s times the mean
// delay (two minutes), whatever the length of the stream.
struct engagement_log {
    struct engagement *heap;
    size_t n, capacity;
    int64_t next_request, created;
    int64_t offset; // of the next one to be popped
};

struct source_builtin {
    struct source source; // first: the interface points here
    struct audience_builtin audience;
    int64_t requests;      // INT64_MAX / 2 without end
    int64_t n_engagements; // -1 until counted
    int64_t next[TOPICS], stop[TOPICS];
    struct engagement_log engagements;
    struct slate *slates;               // cache, slot request % SLATES_CACHED
    char (*item_json)[ITEM_JSON_BYTES]; // {"item_id":"i17"
    uint8_t *item_json_size;
    char *text; // RECORDS_PER_READ records of RECORD_BYTES
};

static const struct source_builtin *of_source_const(const struct source *s)
{
    return (const struct source_builtin *)s;
}

static struct source_builtin *of_source(struct source *s)
{
    return (struct source_builtin *)s;
}

static int64_t release_ms(const struct source_builtin *b)
{
    return audience_builtin_ts(&b->audience, b->audience.hit_request);
}

// ---- Requests and what follows them, in the order of time ----

static const struct slate *slate_of(struct source_builtin *b, int64_t request)
{
    struct slate *slate = &b->slates[request % SLATES_CACHED];
    if (slate->request != request)
        audience_builtin_slate(&b->audience, request, slate);
    return slate;
}

static bool engagement_before(const struct engagement *a, const struct engagement *b)
{
    return a->ts_ms != b->ts_ms ? a->ts_ms < b->ts_ms : a->order < b->order;
}

static void heap_push(struct engagement_log *log, const struct engagement *e)
{
    size_t i = log->n++;
    for (; i > 0 && engagement_before(e, &log->heap[(i - 1) / 2]); i = (i - 1) / 2)
        log->heap[i] = log->heap[(i - 1) / 2];
    log->heap[i] = *e;
}

static void heap_pop(struct engagement_log *log, struct engagement *first)
{
    *first = log->heap[0];
    const struct engagement *last = &log->heap[--log->n];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < log->n; i = child) {
        if (child + 1 < log->n && engagement_before(&log->heap[child + 1], &log->heap[child]))
            child++;
        if (!engagement_before(&log->heap[child], last))
            break;
        log->heap[i] = log->heap[child];
    }
    log->heap[i] = *last;
}

// Draws requests until the earliest waiting engagement can have no predecessor any more: every
// engagement follows its request by two seconds, so those of later requests come later.
static int engagement_fill(struct source_builtin *b, struct engagement_log *log)
{
    while (log->next_request < b->requests &&
           (log->n == 0 ||
            log->heap[0].ts_ms > audience_builtin_ts(&b->audience, log->next_request))) {
        if (log->capacity - log->n < SLATE_ENGAGEMENTS_MAX) {
            const size_t capacity = 2 * log->capacity + 1024;
            struct engagement *heap = realloc(log->heap, capacity * sizeof *heap);
            if (!heap)
                return -ENOMEM;
            log->heap = heap;
            log->capacity = capacity;
        }
        struct engagement drawn[SLATE_ENGAGEMENTS_MAX];
        const int n =
            audience_builtin_engage(&b->audience, slate_of(b, log->next_request++), drawn);
        for (int i = 0; i < n; i++) {
            drawn[i].order = log->created++;
            heap_push(log, &drawn[i]);
        }
    }
    return 0;
}

// The next engagement. Returns 1, 0 at the end of the stream, or -ENOMEM.
static int engagement_next(struct source_builtin *b, struct engagement_log *log,
                           struct engagement *e)
{
    const int rc = engagement_fill(b, log);
    if (rc < 0 || log->n == 0)
        return rc;
    heap_pop(log, e);
    log->offset++;
    return 1;
}

static int64_t engagements_count(struct source_builtin *b)
{
    if (b->n_engagements < 0) {
        struct engagement drawn[SLATE_ENGAGEMENTS_MAX];
        b->n_engagements = 0;
        for (int64_t request = 0; request < b->requests; request++)
            b->n_engagements += audience_builtin_engage(&b->audience, slate_of(b, request), drawn);
    }
    return b->n_engagements;
}

// ---- How it is written ----

static char *put_text(char *at, const char *text, size_t size)
{
    memcpy(at, text, size);
    return at + size;
}
#define PUT(at, literal) put_text(at, literal, sizeof(literal) - 1)

static char *put_unsigned(char *at, uint64_t value)
{
    char digits[20];
    int n = 0;
    do {
        digits[n++] = (char)('0' + value % 10);
    } while ((value /= 10) > 0);
    while (n > 0)
        *at++ = digits[--n];
    return at;
}

// A probability in [0, 1) with four decimals.
static char *put_probability(char *at, float p)
{
    const unsigned n = (unsigned)(p * 10000);
    at[0] = '0';
    at[1] = '.';
    at[2] = (char)('0' + n / 1000);
    at[3] = (char)('0' + n / 100 % 10);
    at[4] = (char)('0' + n / 10 % 10);
    at[5] = (char)('0' + n % 10);
    return at + 6;
}

// {"item_id":"i17" without the closing brace. A copy of fixed size is two instructions; what lies
// behind the text is overwritten by what follows.
static char *put_item(char *at, const struct source_builtin *b, int item)
{
    memcpy(at, b->item_json[item], ITEM_JSON_BYTES);
    return at + b->item_json_size[item];
}

// The user's id, and the record's key with it.
static char *put_user(char *at, int user, struct record *record)
{
    record->key = at;
    *at = 'u';
    at = put_unsigned(at + 1, (uint64_t)user);
    record->key_size = (size_t)(at - record->key);
    return at;
}

static char *put_request_head(char *at, const struct slate *slate, struct record *record)
{
    at = PUT(at, "{\"request_id\":\"r");
    at = put_unsigned(at, (uint64_t)slate->request);
    at = PUT(at, "\",\"user_id\":\"");
    at = put_user(at, slate->user, record);
    at = PUT(at, "\",\"ts\":");
    return put_unsigned(at, (uint64_t)slate->ts_ms);
}

static float clamp(float x, float low, float high)
{
    return x < low ? low : x > high ? high : x;
}

static char *write_item(struct source_builtin *b, int64_t offset, char *at, struct record *record)
{
    const struct film *film = &b->audience.catalogue.film[offset];
    const char *title = b->audience.catalogue.title[offset];
    const bool hit = offset == b->audience.catalogue.films - 1;

    at = put_item(at, b, (int)offset);
    const size_t head = sizeof "{\"item_id\":\"" - 1;
    record->key = record->value + head;
    record->key_size = (size_t)(at - record->value) - head - 1;
    at = PUT(at, ",\"ts\":");
    at = put_unsigned(at, (uint64_t)(hit ? release_ms(b) : b->audience.options.start_ms));
    at = PUT(at, ",\"title\":\"");
    at = put_text(at, title, strlen(title));
    at = PUT(at, "\",\"features\":[");
    for (int genre = 0; genre < GENRES; genre++) {
        *at++ = genre == film->genre ? '1' : '0';
        *at++ = ',';
    }
    at = put_probability(at, (float)(film->year - 1950) / 80);
    return PUT(at, "]}");
}

static char *write_scores(struct source_builtin *b, int64_t offset, char *at, struct record *record)
{
    const struct slate *slate = slate_of(b, offset);
    struct rng rng = {rng_at(b->audience.key[FOR_SCORES], (uint64_t)offset), 0};
    const bool second = offset >= b->audience.hit_request + b->audience.hit_request / 3;
    const float noise = second ? 0.08f : 0.2f;

    at = put_request_head(at, slate, record);
    at = second ? PUT(at, ",\"ranker\":\"demo-2\",\"items\":[")
                : PUT(at, ",\"ranker\":\"demo-1\",\"items\":[");
    for (int i = 0; i < SLATE_SCORED; i++) {
        const float error = rng_float(&rng) + rng_float(&rng) - 1;
        const float click = clamp(slate->relevance[i] + noise * error, 0.0005f, 0.9995f);
        at = put_item(at, b, slate->item[i]);
        at = PUT(at, ",\"scores\":{\"click\":");
        at = put_probability(at, click);
        at = PUT(at, ",\"like\":");
        at = put_probability(at, click * audience_builtin_like(click));
        at = PUT(at, "}},");
    }
    return PUT(at - 1, "]}");
}

static char *write_impression(struct source_builtin *b, int64_t offset, char *at,
                              struct record *record)
{
    const struct slate *slate = slate_of(b, offset);

    at = put_request_head(at, slate, record);
    at = PUT(at, ",\"surface\":\"home\",\"items\":[");
    for (int i = 0; i < SLATE_SHOWN; i++) {
        at = put_item(at, b, slate->item[i]);
        at = PUT(at, ",\"position\":");
        *at++ = (char)('0' + i);
        at = PUT(at, "},");
    }
    return PUT(at - 1, "]}");
}

static char *write_engagement(struct source_builtin *b, const struct engagement *e, char *at,
                              struct record *record)
{
    at = put_item(at, b, e->item);
    at = PUT(at, ",\"user_id\":\"");
    at = put_user(at, e->user, record);
    if (e->kind != CLICK_WITHOUT_REQUEST) {
        at = e->kind == ORPHAN ? PUT(at, "\",\"request_id\":\"lost")
                               : PUT(at, "\",\"request_id\":\"r");
        at = put_unsigned(at, (uint64_t)e->request);
    }
    at = e->kind == LIKE ? PUT(at, "\",\"action\":\"like\",\"value\":1,\"ts\":")
                         : PUT(at, "\",\"action\":\"click\",\"value\":1,\"ts\":");
    at = put_unsigned(at, (uint64_t)e->ts_ms);
    return PUT(at, "}");
}

// ---- The interface ----

static int source_fail(struct source *s, int rc, const char *what)
{
    snprintf(s->error, sizeof s->error, "built-in stream: %s: %s", what, strerror(-rc));
    return rc;
}

static int64_t end_of(struct source_builtin *b, int p)
{
    if (p == TOPIC_ITEMS)
        return b->audience.catalogue.films;
    if (p != TOPIC_ENGAGEMENTS || b->audience.options.requests == 0)
        return b->requests;
    return engagements_count(b);
}

static int builtin_bounds(struct source *s, int64_t *first, int64_t *end)
{
    for (int p = 0; p < TOPICS; p++) {
        first[p] = 0;
        end[p] = end_of(of_source(s), p);
    }
    return 0;
}

// The first request at or after ts_ms; b->requests when there is none.
static int64_t request_at(const struct source_builtin *b, int64_t ts_ms)
{
    const double about =
        (double)(ts_ms - b->audience.options.start_ms) * b->audience.options.requests_per_s / 1000;
    if (about >= (double)b->requests)
        return b->requests;
    int64_t request = about > 2 ? (int64_t)about - 2 : 0;
    while (request < b->requests && audience_builtin_ts(&b->audience, request) < ts_ms)
        request++;
    return request;
}

static int builtin_offsets_for_time(struct source *s, int64_t ts_ms, int64_t *offsets)
{
    struct source_builtin *b = of_source(s);
    const int films = b->audience.catalogue.films;
    struct engagement_log log = {0};
    struct engagement e;
    int rc = 0;

    offsets[TOPIC_ITEMS] = ts_ms <= b->audience.options.start_ms ? 0
                           : ts_ms <= release_ms(b)              ? films - 1
                                                                 : films;
    offsets[TOPIC_SCORES] = offsets[TOPIC_IMPRESSIONS] = request_at(b, ts_ms);
    if (b->audience.options.requests == 0 && offsets[TOPIC_IMPRESSIONS] == b->requests) {
        offsets[TOPIC_ENGAGEMENTS] = b->requests; // beyond what a run could ever reach
        return 0;
    }
    do {
        offsets[TOPIC_ENGAGEMENTS] = log.offset;
        rc = engagement_next(b, &log, &e);
    } while (rc > 0 && e.ts_ms < ts_ms);
    free(log.heap);
    return rc < 0 ? source_fail(s, rc, "looking for a time") : 0;
}

// Brings the engagements to an offset, or to their end; from the beginning if it lies behind.
static int engagements_seek(struct source_builtin *b, int64_t offset)
{
    struct engagement_log *log = &b->engagements;
    struct engagement skipped;
    int rc = 1;
    if (offset < log->offset) {
        log->n = 0;
        log->next_request = log->created = log->offset = 0;
    }
    while (rc > 0 && log->offset < offset)
        rc = engagement_next(b, log, &skipped);
    return rc < 0 ? rc : 0;
}

static int builtin_start(struct source *s, const int64_t *next, const int64_t *stop)
{
    struct source_builtin *b = of_source(s);
    for (int p = 0; p < TOPICS; p++) {
        assert(next[p] >= 0 || next[p] == SOURCE_BEGIN);
        b->next[p] = next[p] == SOURCE_BEGIN ? 0 : next[p];
        b->stop[p] = stop[p] == SOURCE_UNBOUNDED ? INT64_MAX : stop[p];
    }
    const int rc = engagements_seek(b, b->next[TOPIC_ENGAGEMENTS]);
    return rc < 0 ? source_fail(s, rc, "going to where the engagements were left") : 0;
}

typedef char *(*write_fn)(struct source_builtin *b, int64_t offset, char *at,
                          struct record *record);

static const write_fn writers[TOPIC_ENGAGEMENTS] = {
    [TOPIC_ITEMS] = write_item,
    [TOPIC_SCORES] = write_scores,
    [TOPIC_IMPRESSIONS] = write_impression,
};

static int builtin_read(struct source *s, int p, int max, struct record *records)
{
    struct source_builtin *b = of_source(s);
    const int64_t end = p == TOPIC_ENGAGEMENTS
                            ? b->stop[p]
                            : (end_of(b, p) < b->stop[p] ? end_of(b, p) : b->stop[p]);
    int n = 0;
    assert(p >= 0 && p < TOPICS);
    for (; n < max && n < RECORDS_PER_READ && b->next[p] < end; n++, b->next[p]++) {
        char *text = b->text + (size_t)n * RECORD_BYTES, *after;
        struct record *record = &records[n];
        *record = (struct record){
            .offset = b->next[p], .broker_ts_ms = -1, .value = text, .leader_epoch = -1};
        if (p == TOPIC_ENGAGEMENTS) {
            struct engagement e;
            const int rc = engagement_next(b, &b->engagements, &e);
            if (rc < 0)
                return source_fail(s, rc, "engagements that wait for their time");
            if (rc == 0)
                break;
            after = write_engagement(b, &e, text, record);
        } else {
            after = writers[p](b, b->next[p], text, record);
        }
        record->value_size = (size_t)(after - text);
        assert(record->value_size <= RECORD_BYTES);
    }
    return n;
}

static int64_t builtin_position(const struct source *s, int p)
{
    return of_source_const(s)->next[p];
}

static bool builtin_at_end(const struct source *s, int p)
{
    const struct source_builtin *b = of_source_const(s);
    if (b->next[p] >= b->stop[p])
        return true;
    if (p == TOPIC_ENGAGEMENTS)
        return b->engagements.n == 0 && b->engagements.next_request >= b->requests;
    return b->next[p] >= (p == TOPIC_ITEMS ? b->audience.catalogue.films : b->requests);
}

static int builtin_wait(struct source *s, int timeout_ms)
{
    for (int p = 0; p < TOPICS; p++)
        if (!builtin_at_end(s, p))
            return 0;
    poll(NULL, 0, timeout_ms); // nothing will ever come: only the caller's loop is slowed down
    return 0;
}

static void builtin_close(struct source *s)
{
    struct source_builtin *b = of_source(s);
    free(b->text);
    free(b->item_json_size);
    free(b->item_json);
    free(b->slates);
    free(b->engagements.heap);
    audience_builtin_close(&b->audience);
    free(b->source.partitions);
    free(b);
}

static const struct source_ops builtin_ops = {
    .name = "builtin",
    .bounds = builtin_bounds,
    .offsets_for_time = builtin_offsets_for_time,
    .start = builtin_start,
    .read = builtin_read,
    .position = builtin_position,
    .at_end = builtin_at_end,
    .wait = builtin_wait,
    .close = builtin_close,
};

static bool options_valid(const struct source_builtin_options *o, char *error, size_t error_size)
{
    const char *wrong = NULL;
    if (o->items < FILMS_MIN || o->items > FILMS_MAX)
        wrong = "items must be 240 to 1,000,000";
    else if (o->users < 1 || o->users > 100000000)
        wrong = "users must be 1 to 100,000,000";
    else if (o->requests < 0 || o->requests > INT64_C(1) << 40)
        wrong = "requests must be 0 (without end) to 2^40";
    else if (!(o->requests_per_s >= 0.001 && o->requests_per_s <= 1e6))
        wrong = "requests per second of event time must be 0.001 to 1,000,000";
    else if (o->start_ms < 0)
        wrong = "the start must not lie before 1970";
    if (wrong)
        snprintf(error, error_size, "built-in stream: %s", wrong);
    return !wrong;
}

int source_builtin_open(struct source **s, const struct source_builtin_options *options,
                        char *error, size_t error_size)
{
    if (!options_valid(options, error, error_size))
        return -EINVAL;
    const size_t items = (size_t)options->items;
    struct source_builtin *b = calloc(1, sizeof *b);
    int rc = -ENOMEM;
    if (!b)
        goto fail;

    b->requests = options->requests > 0 ? options->requests : INT64_MAX / 2;
    b->n_engagements = -1;

    b->source.ops = &builtin_ops;
    b->source.n_partitions = TOPICS;
    b->source.partitions = calloc(TOPICS, sizeof *b->source.partitions);
    b->slates = calloc(SLATES_CACHED, sizeof *b->slates);
    b->item_json = calloc(items, sizeof *b->item_json);
    b->item_json_size = calloc(items, sizeof *b->item_json_size);
    b->text = malloc((size_t)RECORDS_PER_READ * RECORD_BYTES);
    if (!b->source.partitions || !b->slates || !b->item_json || !b->item_json_size || !b->text)
        goto fail;
    rc = audience_builtin_open(&b->audience, options);
    if (rc < 0)
        goto fail;

    for (int p = 0; p < TOPICS; p++) {
        struct source_partition *partition = &b->source.partitions[p];
        snprintf(partition->name, sizeof partition->name, "%s", topic_names[p]);
        partition->topic = (enum topic)p;
    }
    for (int i = 0; i < SLATES_CACHED; i++)
        b->slates[i].request = -1;
    for (size_t i = 0; i < items; i++)
        b->item_json_size[i] =
            (uint8_t)snprintf(b->item_json[i], ITEM_JSON_BYTES, "{\"item_id\":\"i%zu\"", i);
    *s = &b->source;
    return 0;
fail:
    snprintf(error, error_size, "built-in stream: %s", strerror(-rc));
    if (b)
        builtin_close(&b->source);
    return rc;
}

// ---- What the demo may know ----

int source_builtin_items(const struct source *s)
{
    return of_source_const(s)->audience.catalogue.films;
}

int source_builtin_genres(void)
{
    return GENRES;
}

const char *source_builtin_title(const struct source *s, int item)
{
    const struct catalogue_builtin *c = &of_source_const(s)->audience.catalogue;
    assert(item >= 0 && item < c->films);
    return c->title[item];
}

int source_builtin_genre(const struct source *s, int item)
{
    const struct catalogue_builtin *c = &of_source_const(s)->audience.catalogue;
    assert(item >= 0 && item < c->films);
    return c->film[item].genre;
}

const char *source_builtin_genre_name(int genre)
{
    assert(genre >= 0 && genre < GENRES);
    return genre_names[genre];
}

struct source_builtin_hit source_builtin_hit(const struct source *s)
{
    const struct source_builtin *b = of_source_const(s);
    const int item = b->audience.catalogue.films - 1;
    return (struct source_builtin_hit){
        .item = item,
        .genre = b->audience.catalogue.film[item].genre,
        .title = b->audience.catalogue.title[item],
        .release_ms = release_ms(b),
    };
}

int source_builtin_item_of(const struct source *s, const char *bytes, size_t size)
{
    const struct source_builtin *b = of_source_const(s);
    int item = 0;
    if (size < 2 || size > 8 || bytes[0] != 'i' || (bytes[1] == '0' && size > 2))
        return -1;
    for (size_t i = 1; i < size; i++) {
        if (bytes[i] < '0' || bytes[i] > '9')
            return -1;
        item = 10 * item + (bytes[i] - '0');
    }
    return item < b->audience.catalogue.films ? item : -1;
}

int source_builtin_count_genre(const struct source *s, int genre, int n, const int *items)
{
    int count = 0;
    for (int i = 0; i < n; i++)
        count += source_builtin_genre(s, items[i]) == genre;
    return count;
}

int source_builtin_best(const struct source *s, int genre, int max, int *items)
{
    const struct catalogue_builtin *c = &of_source_const(s)->audience.catalogue;
    int n = 0;
    for (int i = c->ring_start[genre]; i < c->ring_start[genre + 1]; i++) {
        const int item = c->ring[i];
        // Insertion into a short list that is kept in order.
        int at = n < max ? n++ : max;
        for (; at > 0 && c->film[items[at - 1]].popularity < c->film[item].popularity; at--)
            if (at < max)
                items[at] = items[at - 1];
        if (at < max)
            items[at] = item;
    }
    return n;
}
