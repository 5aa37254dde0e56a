// SPDX-License-Identifier: Apache-2.0
//
// The event contract is the table `fields`: which field means what, on which topics, at which
// level. read_object walks one JSON object against it; the readers check one value each.
//
// Choices that the contract leaves open, made here once:
// - Fields that a topic does not know are ignored, but must be well-formed JSON like the rest.
// - null is the same as absent. Of a repeated key the last value counts; each must be valid,
//   and the event says that there was one.
// - At the top level of an impression item_id, position, propensity and features keep their
//   meaning also beside "items", so they must be valid there; items and item_id exclude each other.
// - Names (actions, tasks) are held to the length of ids; other texts only to that of the record.
// - Lists of features are limited like lists of items, scores to 256 tasks: too_large.
// - event->partition is left 0: only the caller knows its source.
// - A record that is malformed further on is not_json, whatever else is wrong with it before.
#include "pipeline/decode.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdalign.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "pipeline/decode_json.h"

enum {
    VALUE_BYTES_MAX = 1 << 20,
    ITEMS_MAX = 4096, // of every list: items, features
    TASKS_MAX = 256,  // scores of one item; looked for one by one, so a hostile list stays cheap
    EXCERPT_BYTES = 48,
    MEMORY_BLOCK_BYTES = 64 << 10,
};

// 2000-01-01 and 2101-01-01, UTC.
static const int64_t ts_ms_min = 946684800000, ts_ms_end = 4133980800000;

static const float bounded_max = 1e9f; // of features and scores

static const uint64_t id_seed = 0x74776f746f776572; // "twotower"; part of every checkpoint

const char *const reject_names[REJECTS] = {
    [REJECT_NONE] = "none",
    [REJECT_TOO_LARGE] = "too_large",
    [REJECT_NOT_JSON] = "not_json",
    [REJECT_NOT_UTF8] = "not_utf8",
    [REJECT_NOT_OBJECT] = "not_object",
    [REJECT_MISSING_FIELD] = "missing_field",
    [REJECT_WRONG_TYPE] = "wrong_type",
    [REJECT_BAD_ID] = "bad_id",
    [REJECT_BAD_TIME] = "bad_time",
    [REJECT_BAD_NUMBER] = "bad_number",
    [REJECT_EMPTY_LIST] = "empty_list",
    [REJECT_TOMBSTONE] = "tombstone",
};

// Memory.

struct event_memory_block {
    alignas(64) struct event_memory_block *next; // the block's memory follows, on the same boundary
};

static struct event_memory_block *block_of(const struct event_memory *m)
{
    return (struct event_memory_block *)(void *)m->base - 1;
}

// Every block is twice as large as the one before: a slice of any size takes few of them, and the
// one that a reset keeps soon holds a whole slice.
static void memory_grow(struct event_memory *m, size_t n)
{
    size_t size = m->base ? 2 * m->size : MEMORY_BLOCK_BYTES;
    if (size < n)
        size = (n + 63) & ~(size_t)63;
    struct event_memory_block *block = aligned_alloc(64, sizeof *block + size);
    // The one allocation that grows with the stream. There is no event to reject and no smaller
    // way to go on: the process ends here and restarts from its last checkpoint.
    if (!block)
        abort();
    block->next = NULL;
    if (m->base) {
        struct event_memory_block *last = block_of(m);
        last->next = m->full;
        m->full = last;
    }
    m->base = (char *)(block + 1);
    m->size = size;
    m->used = 0;
}

void *event_memory_take(struct event_memory *m, size_t n, size_t alignment)
{
    assert(alignment > 0 && alignment <= 64 && (alignment & (alignment - 1)) == 0);
    size_t start = (m->used + alignment - 1) & ~(alignment - 1);
    if (!m->base || start > m->size || n > m->size - start) {
        memory_grow(m, n);
        start = 0;
    }
    m->used = start + n;
    return m->base + start;
}

static void memory_free_full(struct event_memory *m)
{
    while (m->full) {
        struct event_memory_block *block = m->full;
        m->full = block->next;
        free(block);
    }
}

void event_memory_reset(struct event_memory *m)
{
    memory_free_full(m);
    m->used = 0;
}

void event_memory_close(struct event_memory *m)
{
    memory_free_full(m);
    if (m->base)
        free(block_of(m));
    *m = (struct event_memory){0};
}

// Ids.

// bytes[-1] is the caller's and holds the kind afterwards: the hash is over both.
static struct id id_of(enum id_kind kind, char *kind_and_bytes, size_t size)
{
    kind_and_bytes[0] = (char)kind;
    const XXH128_hash_t h = XXH3_128bits_withSeed(kind_and_bytes, 1 + size, id_seed);
    return (struct id){
        .hash = h.low64,
        .check = (uint32_t)h.high64,
        .size = (uint16_t)size,
        .kind = (uint16_t)kind,
        .bytes = kind_and_bytes + 1,
    };
}

static void store_little_endian(char *bytes, uint64_t number)
{
    for (int i = 0; i < 8; i++)
        bytes[i] = (char)(number >> 8 * i);
}

struct id id_of_text(const char *bytes, size_t size)
{
    assert(size >= 1 && size <= ID_BYTES_MAX);
    char copy[1 + ID_BYTES_MAX];
    memcpy(copy + 1, bytes, size);
    struct id id = id_of(ID_STRING, copy, size);
    id.bytes = bytes;
    return id;
}

struct id id_of_unsigned(uint64_t number, char storage[8])
{
    char copy[1 + 8];
    store_little_endian(copy + 1, number);
    struct id id = id_of(ID_UNSIGNED, copy, 8);
    memcpy(storage, copy + 1, 8);
    id.bytes = storage;
    return id;
}

static struct id id_take_text(struct event_memory *m, struct json_text text)
{
    char *copy = event_memory_take(m, 1 + text.size, 1);
    memcpy(copy + 1, text.bytes, text.size);
    return id_of(ID_STRING, copy, text.size);
}

static struct id id_take_integer(struct event_memory *m, bool negative, uint64_t bits)
{
    char *copy = event_memory_take(m, 1 + 8, 1);
    store_little_endian(copy + 1, bits);
    return id_of(negative ? ID_SIGNED : ID_UNSIGNED, copy, 8);
}

// The decoder.

// Where an object stands: the record itself, or one entry of its "items".
enum level { LEVEL_TOP, LEVEL_LISTED, LEVELS };

struct field {
    const char *name;
    enum reject (*read)(struct decoder *d, enum json_kind kind, void *target);
    enum { IN_EVENT, IN_ITEM } in; // what offset counts from: the event, or the item at hand
    size_t offset;
    unsigned topics[LEVELS], required[LEVELS]; // sets of topics
};

enum { FIELDS_MAX = 16 };

// The fields of one topic at one level, in the order of the table.
struct field_list {
    int n;
    uint32_t required; // bit i: list entry i
    struct {
        size_t size;
        const struct field *field;
    } entries[FIELDS_MAX];
};

struct decoder {
    struct json *json;
    struct field_list lists[TOPICS][LEVELS];

    // The record at hand.
    enum topic topic;
    struct event_memory *memory;
    int32_t item_at;       // index of the entry being read, -1 at the top level
    const char *field;     // being read
    struct event_item one; // of the form without a list

    // Lists are collected here, and copied when their length is known.
    struct event_item *items;
    struct event_score *scores;
    float *floats;

    char message[320];
};

// The text itself is hostile: what is not plain ASCII becomes '?', so that the message can be
// logged and quoted anywhere.
static void excerpt(char out[EXCERPT_BYTES + 4], const char *bytes, size_t size)
{
    size_t n = size < EXCERPT_BYTES ? size : EXCERPT_BYTES;
    for (size_t i = 0; i < n; i++)
        out[i] = bytes[i] >= ' ' && bytes[i] <= '~' ? bytes[i] : '?';
    strcpy(out + n, size > EXCERPT_BYTES ? "..." : "");
}

// "items[3].position: expected an integer of 0 or more, found -1"
static enum reject reject(struct decoder *d, enum reject reason, const char *expected)
{
    const struct json_text source = json_source(d->json);
    char found[EXCERPT_BYTES + 4], place[32] = "";

    excerpt(found, source.bytes, source.size);
    if (d->item_at >= 0)
        snprintf(place, sizeof place, "items[%" PRId32 "]%s", d->item_at, d->field ? "." : "");
    snprintf(d->message, sizeof d->message, "%s%s: expected %s, found %s", place,
             d->field ? d->field : "", expected, found);
    return reason;
}

static enum reject missing(struct decoder *d, const char *name)
{
    char place[32] = "";
    if (d->item_at >= 0)
        snprintf(place, sizeof place, "items[%" PRId32 "].", d->item_at);
    snprintf(d->message, sizeof d->message, "%s%s: required, but absent or null", place, name);
    return REJECT_MISSING_FIELD;
}

// Why the document as a whole could not be read.
static enum reject reject_document(struct decoder *d, const char *bytes, size_t size,
                                   enum json_status status)
{
    const size_t where = json_where(d->json);
    char found[EXCERPT_BYTES + 4];
    excerpt(found, bytes + where, size - where);
    switch (status) {
    case JSON_NOT_UTF8:
        snprintf(d->message, sizeof d->message, "record: expected UTF-8, found %s", found);
        return REJECT_NOT_UTF8;
    case JSON_TOO_DEEP:
        snprintf(d->message, sizeof d->message,
                 "record: expected at most %d levels, found more at byte %zu: %s", JSON_DEPTH_MAX,
                 where, found);
        return REJECT_TOO_LARGE;
    default:
        break;
    }
    // Records that were cut off are the common case, and only their end shows it.
    size_t end = size;
    while (end > 0 && (unsigned char)bytes[end - 1] <= ' ')
        end--;
    if (end > 0 && bytes[end - 1] != '}') {
        const size_t tail = end < EXCERPT_BYTES ? end : EXCERPT_BYTES;
        excerpt(found, bytes + end - tail, tail);
        snprintf(d->message, sizeof d->message,
                 "record: expected one JSON object and nothing after it, found %zu bytes that end "
                 "with %s",
                 size, found);
    } else {
        snprintf(d->message, sizeof d->message,
                 "record: expected well-formed JSON, stopped at byte %zu of %zu: %s", where, size,
                 found);
    }
    return REJECT_NOT_JSON;
}

// For values that turn out to be malformed while they are read. decode looks at the document again
// after every rejection and finds the place; until then this stands.
static enum reject malformed(struct decoder *d)
{
    snprintf(d->message, sizeof d->message, "record: expected well-formed JSON");
    return REJECT_NOT_JSON;
}

// Readers. Each gets a value of the given kind; null clears its target.

static enum reject read_id(struct decoder *d, enum json_kind kind, void *target)
{
    static const char expected[] =
        "an id: a string of 1 to 256 bytes, or an integer exact to 64 bits";
    struct id *id = target;
    enum json_status status;
    struct json_text text;
    uint64_t bits;
    bool negative;

    switch (kind) {
    case JSON_NULL:
        *id = (struct id){0};
        json_skip(d->json);
        return REJECT_NONE;
    case JSON_STRING:
        if (json_string(d->json, &text) != JSON_OK)
            return malformed(d);
        if (text.size < 1 || text.size > ID_BYTES_MAX)
            return reject(d, REJECT_BAD_ID, expected);
        *id = id_take_text(d->memory, text);
        return REJECT_NONE;
    case JSON_NUMBER:
        status = json_integer(d->json, &negative, &bits);
        if (status == JSON_OUT_OF_RANGE)
            return reject(d, REJECT_BAD_ID, expected);
        if (status != JSON_OK)
            return malformed(d);
        *id = id_take_integer(d->memory, negative, bits);
        return REJECT_NONE;
    default:
        return reject(d, REJECT_WRONG_TYPE, expected);
    }
}

static enum reject read_text(struct decoder *d, enum json_kind kind, void *target)
{
    struct text *text = target;
    struct json_text source;

    *text = (struct text){0};
    if (kind == JSON_NULL) {
        json_skip(d->json);
        return REJECT_NONE;
    }
    if (kind != JSON_STRING)
        return reject(d, REJECT_WRONG_TYPE, "a string");
    if (json_string(d->json, &source) != JSON_OK)
        return malformed(d);
    char *copy = event_memory_take(d->memory, source.size, 1);
    memcpy(copy, source.bytes, source.size);
    *text = (struct text){copy, (uint32_t)source.size};
    return REJECT_NONE;
}

static enum reject read_name(struct decoder *d, enum json_kind kind, void *target)
{
    const struct text *text = target;
    const enum reject r = read_text(d, kind, target);
    if (r == REJECT_NONE && kind != JSON_NULL && (text->size < 1 || text->size > ID_BYTES_MAX))
        return reject(d, REJECT_BAD_ID, "a name of 1 to 256 bytes");
    return r;
}

// An integer of 0 to max, no null. beyond: the reason for one that is not.
static enum reject read_natural(struct decoder *d, enum json_kind kind, uint64_t max,
                                enum reject beyond, const char *expected, int64_t *number)
{
    uint64_t bits;
    bool negative;

    if (kind != JSON_NUMBER)
        return reject(d, REJECT_WRONG_TYPE, expected);
    const enum json_status status = json_integer(d->json, &negative, &bits);
    if (status == JSON_OUT_OF_RANGE || (status == JSON_OK && (negative || bits > max)))
        return reject(d, beyond, expected);
    if (status != JSON_OK)
        return malformed(d);
    *number = (int64_t)bits;
    return REJECT_NONE;
}

static enum reject read_time(struct decoder *d, enum json_kind kind, void *target)
{
    // The mistakes that happen, by what the number would mean in the unit of each.
    static const struct {
        int64_t min, end;
        const char *expected;
    } units[] = {
        {946684800, 4133980800, "milliseconds since 1970 (this looks like seconds)"},
        {946684800000000, 4133980800000000, "milliseconds since 1970 (looks like microseconds)"},
        {946684800000000000, INT64_MAX, "milliseconds since 1970 (looks like nanoseconds)"},
    };
    static const char expected[] =
        "an integer of milliseconds since 1970 in the years 2000 to 2100";
    int64_t *ts_ms = target, ts = 0;

    *ts_ms = 0;
    if (kind == JSON_NULL) {
        json_skip(d->json);
        return REJECT_NONE;
    }
    const enum reject wrong = read_natural(d, kind, INT64_MAX, REJECT_BAD_TIME, expected, &ts);
    if (wrong != REJECT_NONE)
        return wrong;
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if (ts >= units[i].min && ts < units[i].end)
            return reject(d, REJECT_BAD_TIME, units[i].expected);
    if (ts < ts_ms_min || ts >= ts_ms_end)
        return reject(d, REJECT_BAD_TIME, expected);
    *ts_ms = ts;
    return REJECT_NONE;
}

static enum reject read_position(struct decoder *d, enum json_kind kind, void *target)
{
    static const char expected[] = "an integer of 0 or more, below 2^31";
    int32_t *position = target;
    int64_t number = 0;

    *position = -1;
    if (kind == JSON_NULL) {
        json_skip(d->json);
        return REJECT_NONE;
    }
    const enum reject wrong =
        read_natural(d, kind, INT32_MAX, REJECT_BAD_NUMBER, expected, &number);
    if (wrong == REJECT_NONE)
        *position = (int32_t)number;
    return wrong;
}

static enum reject read_float(struct decoder *d, enum json_kind kind, float *number)
{
    static const char expected[] = "a number that a float can hold";
    double wide;

    if (kind != JSON_NUMBER)
        return reject(d, REJECT_WRONG_TYPE, expected);
    const enum json_status status = json_double(d->json, &wide);
    if (status == JSON_OUT_OF_RANGE)
        return reject(d, REJECT_BAD_NUMBER, expected);
    if (status != JSON_OK)
        return malformed(d);
    *number = (float)wide;
    if (!isfinite(*number))
        return reject(d, REJECT_BAD_NUMBER, expected);
    return REJECT_NONE;
}

static enum reject read_propensity(struct decoder *d, enum json_kind kind, void *target)
{
    float *propensity = target;
    *propensity = 0;
    if (kind == JSON_NULL) {
        json_skip(d->json);
        return REJECT_NONE;
    }
    const enum reject r = read_float(d, kind, propensity);
    if (r == REJECT_NONE && !(*propensity > 0 && *propensity <= 1))
        return reject(d, REJECT_BAD_NUMBER, "a probability: above 0, at most 1");
    return r;
}

static enum reject read_value(struct decoder *d, enum json_kind kind, void *target)
{
    struct event *e = target;
    e->value = 1;
    e->valued = kind != JSON_NULL;
    if (kind == JSON_NULL) {
        json_skip(d->json);
        return REJECT_NONE;
    }
    return read_float(d, kind, &e->value);
}

// A float holds far more than a model can: the square of a gradient overflows from features of 1e18
// on, and then no batch with the item in it is learned any more. Of scores the sum of squares does,
// and then whatever is measured by their spread is nothing for ever.
static enum reject read_bounded(struct decoder *d, enum json_kind kind, float *number)
{
    const enum reject r = read_float(d, kind, number);
    if (r == REJECT_NONE && !(fabsf(*number) <= bounded_max))
        return reject(d, REJECT_BAD_NUMBER, "a number between -1e9 and 1e9");
    return r;
}

static enum reject read_floats(struct decoder *d, enum json_kind kind, int32_t *count,
                               const float **floats)
{
    int32_t n = 0;

    *count = 0;
    *floats = NULL;
    if (kind == JSON_NULL) {
        json_skip(d->json);
        return REJECT_NONE;
    }
    if (kind != JSON_ARRAY)
        return reject(d, REJECT_WRONG_TYPE, "a list of numbers");
    if (!json_enter(d->json))
        return malformed(d);
    while (json_element(d->json)) {
        if (n == ITEMS_MAX)
            return reject(d, REJECT_TOO_LARGE, "at most 4096 numbers");
        const enum json_kind element = json_kind(d->json);
        if (element == JSON_BROKEN)
            return malformed(d);
        const enum reject r = read_bounded(d, element, &d->floats[n]);
        if (r != REJECT_NONE)
            return r;
        n++;
    }
    if (json_broken(d->json))
        return malformed(d);
    if (n == 0)
        return REJECT_NONE;
    float *copy = event_memory_take(d->memory, (size_t)n * sizeof *copy, alignof(float));
    memcpy(copy, d->floats, (size_t)n * sizeof *copy);
    *count = n;
    *floats = copy;
    return REJECT_NONE;
}

static enum reject read_user_features(struct decoder *d, enum json_kind kind, void *target)
{
    struct event *e = target;
    return read_floats(d, kind, &e->n_features, &e->features);
}

static enum reject read_item_features(struct decoder *d, enum json_kind kind, void *target)
{
    struct event_item *item = target;
    return read_floats(d, kind, &item->n_features, &item->features);
}

static enum reject read_scores(struct decoder *d, enum json_kind kind, void *target)
{
    struct event_item *item = target;
    struct json_text task;
    int32_t n = 0;

    item->n_scores = 0;
    item->scores = NULL;
    if (kind == JSON_NULL) {
        json_skip(d->json);
        return REJECT_NONE;
    }
    if (kind != JSON_OBJECT)
        return reject(d, REJECT_WRONG_TYPE, "an object of task: number");
    if (!json_enter(d->json))
        return malformed(d);
    while (json_field(d->json, &task)) {
        if (n == TASKS_MAX)
            return reject(d, REJECT_TOO_LARGE, "at most 256 tasks");
        if (task.size < 1 || task.size > ID_BYTES_MAX)
            return reject(d, REJECT_BAD_ID, "task names of 1 to 256 bytes");
        char *copy = event_memory_take(d->memory, task.size, 1);
        memcpy(copy, task.bytes, task.size);

        const enum json_kind number = json_kind(d->json);
        if (number == JSON_BROKEN)
            return malformed(d);
        float score = 0;
        const enum reject r = read_bounded(d, number, &score);
        if (r != REJECT_NONE)
            return r;
        // A repeated task: the last score counts. Lists of tasks are short.
        int32_t at = 0;
        while (at < n && (d->scores[at].task.size != task.size ||
                          memcmp(d->scores[at].task.bytes, copy, task.size) != 0))
            at++;
        d->scores[at] = (struct event_score){{copy, (uint32_t)task.size}, score};
        n += at == n;
    }
    if (json_broken(d->json))
        return malformed(d);
    if (n == 0)
        return reject(d, REJECT_EMPTY_LIST, "the score of at least one task");
    struct event_score *copy =
        event_memory_take(d->memory, (size_t)n * sizeof *copy, alignof(struct event_score));
    memcpy(copy, d->scores, (size_t)n * sizeof *copy);
    item->n_scores = n;
    item->scores = copy;
    return REJECT_NONE;
}

static enum reject read_items(struct decoder *d, enum json_kind kind, void *target);

#define TOPIC(name) (1u << TOPIC_##name)

static const struct field fields[] = {
    // name, reader, target, topics {at the top, in items}, required {at the top, in items}
    {"request_id",
     read_id,
     IN_EVENT,
     offsetof(struct event, request),
     {TOPIC(IMPRESSIONS) | TOPIC(SCORES) | TOPIC(ENGAGEMENTS)},
     {TOPIC(IMPRESSIONS) | TOPIC(SCORES)}},
    {"user_id",
     read_id,
     IN_EVENT,
     offsetof(struct event, user),
     {TOPIC(IMPRESSIONS) | TOPIC(SCORES) | TOPIC(ENGAGEMENTS)},
     {TOPIC(IMPRESSIONS) | TOPIC(SCORES) | TOPIC(ENGAGEMENTS)}},
    {"item_id",
     read_id,
     IN_ITEM,
     offsetof(struct event_item, item),
     {TOPIC(IMPRESSIONS) | TOPIC(ENGAGEMENTS) | TOPIC(ITEMS), TOPIC(IMPRESSIONS) | TOPIC(SCORES)},
     {TOPIC(ENGAGEMENTS) | TOPIC(ITEMS), TOPIC(IMPRESSIONS) | TOPIC(SCORES)}},
    {"ts",
     read_time,
     IN_EVENT,
     offsetof(struct event, ts_ms),
     {TOPIC(IMPRESSIONS) | TOPIC(SCORES) | TOPIC(ENGAGEMENTS) | TOPIC(ITEMS)},
     {TOPIC(IMPRESSIONS) | TOPIC(SCORES) | TOPIC(ENGAGEMENTS) | TOPIC(ITEMS)}},
    {"items", read_items, IN_EVENT, 0, {TOPIC(IMPRESSIONS) | TOPIC(SCORES)}, {TOPIC(SCORES)}},
    {"position",
     read_position,
     IN_ITEM,
     offsetof(struct event_item, position),
     {TOPIC(IMPRESSIONS), TOPIC(IMPRESSIONS)},
     {0}},
    {"propensity",
     read_propensity,
     IN_ITEM,
     offsetof(struct event_item, propensity),
     {TOPIC(IMPRESSIONS), TOPIC(IMPRESSIONS)},
     {0}},
    {"features",
     read_item_features,
     IN_ITEM,
     0,
     {TOPIC(IMPRESSIONS) | TOPIC(ITEMS), TOPIC(IMPRESSIONS)},
     {0}},
    {"scores", read_scores, IN_ITEM, 0, {0, TOPIC(SCORES)}, {0, TOPIC(SCORES)}},
    {"action",
     read_name,
     IN_EVENT,
     offsetof(struct event, action),
     {TOPIC(ENGAGEMENTS)},
     {TOPIC(ENGAGEMENTS)}},
    {"value", read_value, IN_EVENT, 0, {TOPIC(ENGAGEMENTS)}, {0}},
    {"ranker", read_text, IN_EVENT, offsetof(struct event, ranker), {TOPIC(SCORES)}, {0}},
    {"surface", read_text, IN_EVENT, offsetof(struct event, surface), {TOPIC(IMPRESSIONS)}, {0}},
    {"user_features", read_user_features, IN_EVENT, 0, {TOPIC(IMPRESSIONS)}, {0}},
    {"title", read_text, IN_EVENT, offsetof(struct event, title), {TOPIC(ITEMS)}, {0}},
};

static void field_list_init(struct field_list *list, enum topic topic, enum level level)
{
    list->n = 0;
    list->required = 0;
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        if (!(fields[i].topics[level] & 1u << topic))
            continue;
        assert(list->n < FIELDS_MAX);
        if (fields[i].required[level] & 1u << topic)
            list->required |= 1u << list->n;
        list->entries[list->n].size = strlen(fields[i].name);
        list->entries[list->n].field = &fields[i];
        list->n++;
    }
}

static int field_list_find(const struct field_list *list, struct json_text name)
{
    int i = 0;
    while (i < list->n && (list->entries[i].size != name.size ||
                           memcmp(list->entries[i].field->name, name.bytes, name.size) != 0))
        i++;
    return i;
}

// The object at the cursor, which has been entered. Whether the document was well-formed so far is
// for the caller to ask.
static enum reject read_object(struct decoder *d, enum level level, struct event *event,
                               struct event_item *item)
{
    const struct field_list *list = &d->lists[d->topic][level];
    struct json_text name;
    uint32_t seen = 0, met = 0;

    while (json_field(d->json, &name)) {
        const int i = field_list_find(list, name);
        if (i == list->n) {
            json_skip(d->json);
            continue;
        }
        const enum json_kind kind = json_kind(d->json);
        if (kind == JSON_BROKEN)
            return malformed(d);
        const struct field *f = list->entries[i].field;
        void *base = f->in == IN_ITEM ? (void *)item : (void *)event;
        d->field = f->name;
        const enum reject r = f->read(d, kind, (char *)base + f->offset);
        if (r != REJECT_NONE)
            return r;
        seen = kind == JSON_NULL ? seen & ~(1u << i) : seen | 1u << i;
        if (met >> i & 1)
            event->repeated = 1;
        met |= 1u << i;
    }
    if (json_broken(d->json))
        return malformed(d);
    const uint32_t absent = list->required & ~seen;
    if (absent)
        return missing(d, list->entries[__builtin_ctz(absent)].field->name);
    return REJECT_NONE;
}

static enum reject read_items(struct decoder *d, enum json_kind kind, void *target)
{
    struct event *event = target;

    event->n_items = -1; // until a list is complete
    if (kind == JSON_NULL) {
        json_skip(d->json);
        return REJECT_NONE;
    }
    if (kind != JSON_ARRAY)
        return reject(d, REJECT_WRONG_TYPE, "a list of objects");
    if (!json_enter(d->json))
        return malformed(d);
    int32_t n = 0;
    while (json_element(d->json)) {
        d->item_at = n;
        d->field = NULL;
        if (n == ITEMS_MAX)
            return reject(d, REJECT_TOO_LARGE, "at most 4096 items");
        const enum json_kind element = json_kind(d->json);
        if (element == JSON_BROKEN)
            return malformed(d);
        if (element != JSON_OBJECT)
            return reject(d, REJECT_WRONG_TYPE, "an object");
        if (!json_enter(d->json))
            return malformed(d);
        d->items[n] = (struct event_item){.position = -1};
        const enum reject r = read_object(d, LEVEL_LISTED, event, &d->items[n]);
        if (r != REJECT_NONE)
            return r;
        n++;
    }
    if (json_broken(d->json))
        return malformed(d);
    d->item_at = -1;
    d->field = "items";
    event->n_items = n;
    return REJECT_NONE;
}

// Either a list, or the one item of the top level.
static enum reject place_items(struct decoder *d, struct event *event)
{
    const bool listed = event->n_items >= 0, single = d->one.item.kind != ID_ABSENT;

    d->field = "items";
    if (listed && single)
        return reject(d, REJECT_WRONG_TYPE, "either items or item_id, not both");
    if (!listed && !single)
        return missing(d, "items (or item_id)");
    if (event->n_items == 0)
        return reject(d, REJECT_EMPTY_LIST, "at least one");
    const struct event_item *items = listed ? d->items : &d->one;
    const size_t n = listed ? (size_t)event->n_items : 1;
    event->items = event_memory_take(d->memory, n * sizeof *items, alignof(struct event_item));
    memcpy(event->items, items, n * sizeof *items);
    event->n_items = (int32_t)n;
    return REJECT_NONE;
}

static enum reject decode_value(struct decoder *d, const struct record *record, struct event *event)
{
    d->field = "record";
    json_begin(d->json, record->value, record->value_size);
    const enum json_kind kind = json_kind(d->json);
    if (kind == JSON_BROKEN)
        return malformed(d);
    if (kind != JSON_OBJECT)
        return reject(d, REJECT_NOT_OBJECT, "an object");
    if (!json_enter(d->json))
        return malformed(d);
    const enum reject r = read_object(d, LEVEL_TOP, event, &d->one);
    if (r != REJECT_NONE)
        return r;
    if (json_end(d->json) != JSON_OK)
        return malformed(d);
    return place_items(d, event);
}

// A key names an item as its records do: an integer or a string in JSON, or else its bare text.
static enum reject decode_key(struct decoder *d, const struct record *record, struct id *id)
{
    struct json_text text = {record->key, record->key_size};
    bool negative;
    uint64_t bits;

    d->field = "key";
    if (!record->key || record->key_size == 0)
        return missing(d, "key (a tombstone has nothing else to name its item)");
    if (record->key_size > VALUE_BYTES_MAX) {
        snprintf(d->message, sizeof d->message, "key: expected an id, found %zu bytes",
                 record->key_size);
        return REJECT_BAD_ID;
    }
    json_begin(d->json, record->key, record->key_size);
    const enum json_kind kind = json_kind(d->json);
    if (kind == JSON_NUMBER && json_integer(d->json, &negative, &bits) == JSON_OK &&
        json_end(d->json) == JSON_OK) {
        *id = id_take_integer(d->memory, negative, bits);
        return REJECT_NONE;
    }
    struct json_text inside;
    if (kind == JSON_STRING && json_string(d->json, &inside) == JSON_OK &&
        json_end(d->json) == JSON_OK)
        text = inside;
    if (text.size < 1 || text.size > ID_BYTES_MAX) {
        snprintf(d->message, sizeof d->message,
                 "key: expected an id of 1 to 256 bytes, found %zu bytes", text.size);
        return REJECT_BAD_ID;
    }
    if (!json_utf8_valid(text.bytes, text.size)) {
        snprintf(d->message, sizeof d->message, "key: expected UTF-8");
        return REJECT_NOT_UTF8;
    }
    *id = id_take_text(d->memory, text);
    return REJECT_NONE;
}

// A tombstone carries no time of its own: the log's stamp is its time.
static enum reject decode_tombstone(struct decoder *d, const struct record *record,
                                    struct event *event)
{
    if (d->topic != TOPIC_ITEMS) {
        snprintf(d->message, sizeof d->message, "value: null, which means nothing on %s",
                 topic_names[d->topic]);
        return REJECT_TOMBSTONE;
    }
    const enum reject r = decode_key(d, record, &d->one.item);
    if (r != REJECT_NONE)
        return r;
    if (record->broker_ts_ms < ts_ms_min || record->broker_ts_ms >= ts_ms_end) {
        snprintf(d->message, sizeof d->message,
                 "time stamp of a tombstone: expected the years 2000 to 2100, found %" PRId64,
                 record->broker_ts_ms);
        return REJECT_BAD_TIME;
    }
    event->ts_ms = record->broker_ts_ms;
    event->removed = 1;
    return place_items(d, event);
}

int decoder_open(struct decoder **out)
{
    struct decoder *d = calloc(1, sizeof *d);
    if (!d)
        return -ENOMEM;
    for (int topic = 0; topic < TOPICS; topic++)
        for (int level = 0; level < LEVELS; level++)
            field_list_init(&d->lists[topic][level], (enum topic)topic, (enum level)level);
    d->items = malloc(ITEMS_MAX * sizeof *d->items);
    d->scores = malloc(TASKS_MAX * sizeof *d->scores);
    d->floats = malloc(ITEMS_MAX * sizeof *d->floats);
    int rc = d->items && d->scores && d->floats ? 0 : -ENOMEM;
    if (rc == 0)
        rc = json_open(&d->json, VALUE_BYTES_MAX);
    if (rc < 0) {
        decoder_close(d);
        return rc;
    }
    *out = d;
    return 0;
}

void decoder_close(struct decoder *d)
{
    if (!d)
        return;
    json_close(d->json);
    free(d->items);
    free(d->scores);
    free(d->floats);
    free(d);
}

// Not the fast path, so the whole document is gone through once more: being malformed at any place
// comes before every other reason.
static enum reject check_document(struct decoder *d, const struct record *record,
                                  enum reject reason)
{
    json_begin(d->json, record->value, record->value_size);
    json_skip(d->json);
    const enum json_status status = json_end(d->json);
    return status == JSON_OK ? reason
                             : reject_document(d, record->value, record->value_size, status);
}

enum reject decode(struct decoder *d, enum topic topic, const struct record *record,
                   struct event_memory *memory, struct event *event)
{
    assert((int)topic >= 0 && topic < TOPICS);
    const struct event_memory before = *memory;

    d->topic = topic;
    d->memory = memory;
    d->item_at = -1;
    d->field = NULL;
    d->one = (struct event_item){.position = -1};
    d->message[0] = '\0';
    *event = (struct event){.topic = topic, .offset = record->offset, .value = 1, .n_items = -1};

    enum reject r;
    if (record->tombstone) {
        r = decode_tombstone(d, record, event);
    } else if (record->value_size > VALUE_BYTES_MAX) {
        snprintf(d->message, sizeof d->message, "record: expected at most %d bytes, found %zu",
                 VALUE_BYTES_MAX, record->value_size);
        r = REJECT_TOO_LARGE;
    } else {
        r = decode_value(d, record, event);
        if (r != REJECT_NONE)
            r = check_document(d, record, r);
    }
    // What a rejected record has taken is given back, unless a new block was begun for it.
    if (r != REJECT_NONE && memory->base == before.base)
        memory->used = before.used;
    return r;
}

const char *decoder_message(const struct decoder *d)
{
    return d->message;
}
