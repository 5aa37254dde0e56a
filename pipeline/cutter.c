// SPDX-License-Identifier: Apache-2.0
#include "pipeline/cutter.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "pipeline/flood.h"
#include "pipeline/small_file.h"

enum {
    READ_MAX = 512,      // records per read, decoded into one chunk
    QUEUE_LOW = 2048,    // a partition with fewer decoded events is read again
    GROUP_MAX = 1 << 20, // events of one time that are waited for
    SECOND_MS = 1000,
};

// What reads of one partition decoded to, up to READ_MAX records. Lives until it is full and the
// last of its events has come back.
struct chunk {
    struct event_memory memory;
    struct event *events; // READ_MAX
    int n_events;
    int refs; // of its events, and of the partition that fills it
    struct partition *of;
    struct chunk *next; // of its free ones
};

// A record in the queue of its partition.
struct entry {
    int64_t mt_ms;
    int64_t offset;
    const struct event *event; // NULL: rejected
    struct chunk *chunk;
    const struct letter *letter; // what was rejected; the slice is not known yet
    int32_t epoch;
    uint8_t reason;
    bool verdict; // the clock's
};

struct partition {
    struct entry *queue;  // a ring
    size_t head, n, size; // size is a power of two
    int64_t mt_ms;        // running maximum of all that was decoded
    int64_t arrived_ms;   // when the last record came
    int32_t epoch;        // of the last record that was decoded
    // Of its own: what has held 512 of its records before has room for the next 512.
    struct chunk *filling, *free;
    bool ended; // bounded, and everything has been read
};

struct cut_slice {
    struct slice slice;
    struct chunk **chunks; // one for each event, to be released with the slice
    int n_verdicts_max;
    struct cut_slice *next;
};

// What PATH.flood holds: the window after a slice, and which slice that was.
struct flood_note {
    char magic[8];
    uint64_t slices, next_digest;
    struct flood flood;
    uint64_t digest; // of all before
};

struct cutter {
    struct source *source;
    struct cutter_options options;
    struct decoder *decoder;
    int n;
    struct partition *partitions;
    int64_t *next, *time_max_ms; // as of the last slice, like the two that follow
    int32_t *epoch;
    uint8_t *flags;
    uint64_t slices;
    int64_t dead_letters;
    uint64_t letters;             // of the slice that is being cut
    int64_t watermark_ms, cut_ms; // of the last live slice, and when it was cut
    int *order;                   // heap of partitions by the time at their heads
    size_t *limits;               // per partition: entries to take
    struct cut_slice *slices_free;
    struct slice_move *moves; // for the next slice, n_moves of them
    int n_moves;
    struct slice_values values; // as of the last slice; n = 0: not known
    _Atomic int fill_permille;  // of the join
    pthread_mutex_t lock;       // around both that follow
    struct cut_slice *given;
    struct slice_values wanted; // n = 0: nothing
    struct cutter_counts counts;
    bool cutting; // no longer as recorded
    struct flood flood;
    struct flood_note before; // as of the last slice
    char error[1024];
};

__attribute__((format(printf, 3, 4))) static int fail(struct cutter *c, int rc, const char *format,
                                                      ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(c->error, sizeof c->error, format, args);
    va_end(args);
    return rc;
}

const char *cutter_error(const struct cutter *c)
{
    return c->error;
}

int cutter_open(struct cutter **c_out, struct source *source, const struct cutter_options *options,
                const struct cutter_position *position)
{
    const size_t n = (size_t)source->n_partitions;
    struct cutter *c = calloc(1, sizeof *c);
    if (!c)
        return -ENOMEM;
    *c = (struct cutter){.source = source,
                         .options = *options,
                         .n = (int)n,
                         .slices = position->slices,
                         .dead_letters = options->dead_letters,
                         .watermark_ms =
                             position->watermark_ms != 0 ? position->watermark_ms : INT64_MIN,
                         .values = options->values,
                         .partitions = calloc(n, sizeof *c->partitions),
                         .next = calloc(n, sizeof *c->next),
                         .time_max_ms = calloc(n, sizeof *c->time_max_ms),
                         .epoch = calloc(n, sizeof *c->epoch),
                         .flags = calloc(n, sizeof *c->flags),
                         .moves = calloc(n, sizeof *c->moves),
                         .order = calloc(n, sizeof *c->order),
                         .limits = calloc(n, sizeof *c->limits)};
    pthread_mutex_init(&c->lock, NULL);
    int rc = decoder_open(&c->decoder);
    if (rc == 0 && (!c->partitions || !c->next || !c->time_max_ms || !c->epoch || !c->flags ||
                    !c->moves || !c->order || !c->limits))
        rc = -ENOMEM;
    if (rc < 0) {
        cutter_close(c);
        return rc;
    }
    for (size_t p = 0; p < n; p++) {
        c->next[p] = position->next[p];
        c->time_max_ms[p] = c->partitions[p].mt_ms = position->time_max_ms[p];
        c->epoch[p] = c->partitions[p].epoch = position->epoch ? (int32_t)position->epoch[p] : -1;
    }
    *c_out = c;
    return 0;
}

static void slice_free(struct cut_slice *s)
{
    free(s->slice.events);
    free(s->slice.next);
    free(s->slice.time_max_ms);
    free(s->slice.epoch);
    free(s->slice.flags);
    free(s->slice.verdicts);
    free(s->slice.moves);
    free(s->chunks);
    free(s);
}

static void chunk_free(struct chunk *chunk)
{
    event_memory_close(&chunk->memory);
    free(chunk->events);
    free(chunk);
}

static void chunk_release(struct chunk *chunk)
{
    if (--chunk->refs > 0)
        return;
    event_memory_reset(&chunk->memory);
    chunk->next = chunk->of->free;
    chunk->of->free = chunk;
}

static void slice_release(struct cutter *c, struct cut_slice *s)
{
    for (int i = 0; i < s->slice.n_events; i++)
        chunk_release(s->chunks[i]);
    s->slice.n_events = 0;
    s->next = c->slices_free;
    c->slices_free = s;
}

void cutter_give(struct cutter *c, struct slice *slice)
{
    struct cut_slice *s = (struct cut_slice *)slice; // its first member
    pthread_mutex_lock(&c->lock);
    s->next = c->given;
    c->given = s;
    pthread_mutex_unlock(&c->lock);
}

static void given_collect(struct cutter *c)
{
    pthread_mutex_lock(&c->lock);
    struct cut_slice *s = c->given;
    c->given = NULL;
    pthread_mutex_unlock(&c->lock);
    while (s) {
        struct cut_slice *next = s->next;
        slice_release(c, s);
        s = next;
    }
}

void cutter_close(struct cutter *c)
{
    if (!c)
        return;
    given_collect(c);
    for (int p = 0; c->partitions && p < c->n; p++) {
        struct partition *part = &c->partitions[p];
        for (; part->n > 0; part->n--, part->head++)
            chunk_release(part->queue[part->head & (part->size - 1)].chunk);
        if (part->filling)
            chunk_release(part->filling);
        while (part->free) {
            struct chunk *next = part->free->next;
            chunk_free(part->free);
            part->free = next;
        }
        free(part->queue);
    }
    while (c->slices_free) {
        struct cut_slice *next = c->slices_free->next;
        slice_free(c->slices_free);
        c->slices_free = next;
    }
    decoder_close(c->decoder);
    pthread_mutex_destroy(&c->lock);
    free(c->partitions);
    free(c->next);
    free(c->time_max_ms);
    free(c->epoch);
    free(c->flags);
    free(c->moves);
    free(c->order);
    free(c->limits);
    free(c);
}

struct cutter_counts cutter_counts(const struct cutter *c)
{
    return c->counts;
}

void cutter_go_live(struct cutter *c)
{
    c->options.order = SLICE_LIVE;
    for (int p = 0; p < c->n; p++)
        c->partitions[p].ended = false;
}

// Reading.

static struct chunk *chunk_take(struct partition *part)
{
    struct chunk *chunk = part->free;
    if (chunk) {
        part->free = chunk->next;
    } else {
        chunk = calloc(1, sizeof *chunk);
        if (!chunk)
            return NULL;
        chunk->events = malloc(READ_MAX * sizeof *chunk->events);
        if (!chunk->events) {
            free(chunk);
            return NULL;
        }
    }
    chunk->of = part;
    chunk->n_events = 0;
    chunk->refs = 1;
    return chunk;
}

// The partition's chunk, with room for n more events. How many there are follows from the events
// that are under way, not from how many reads brought them.
static struct chunk *chunk_fill(struct partition *part, int n)
{
    struct chunk *chunk = part->filling;
    if (chunk && chunk->refs == 1) { // all have come back
        event_memory_reset(&chunk->memory);
        chunk->n_events = 0;
    }
    if (chunk && chunk->n_events + n <= READ_MAX)
        return chunk;
    if (chunk)
        chunk_release(chunk);
    return part->filling = chunk_take(part);
}

static bool queue_put(struct partition *part, const struct entry *entry)
{
    if (part->n == part->size) {
        const size_t size = part->size ? 2 * part->size : 4096;
        struct entry *queue = malloc(size * sizeof *queue);
        if (!queue)
            return false;
        for (size_t i = 0; i < part->n; i++)
            queue[i] = part->queue[(part->head + i) & (part->size - 1)];
        free(part->queue);
        part->queue = queue;
        part->head = 0;
        part->size = size;
    }
    part->queue[(part->head + part->n++) & (part->size - 1)] = *entry;
    return true;
}

static struct entry *queue_at(const struct partition *part, size_t i)
{
    return &part->queue[(part->head + i) & (part->size - 1)];
}

static const char *bytes_keep(struct chunk *chunk, const char *bytes, size_t n)
{
    return bytes ? memcpy(event_memory_take(&chunk->memory, n + 1, 1), bytes, n) : NULL;
}

static const struct record_headers *headers_keep(struct source *s, struct chunk *chunk,
                                                 const struct record *record)
{
    struct record_headers headers;
    if (!s->ops->headers)
        return NULL;
    s->ops->headers(s, record, &headers);
    const size_t size = offsetof(struct record_headers, list[headers.n]);
    for (int i = 0; i < headers.n; i++) {
        struct record_header *h = &headers.list[i];
        h->name = bytes_keep(chunk, h->name, h->name_size);
        h->value = bytes_keep(chunk, h->value, h->value_size);
    }
    return headers.n + headers.left_out == 0
               ? NULL
               : memcpy(event_memory_take(&chunk->memory, size, _Alignof(struct record_headers)),
                        &headers, size);
}

// Keeps what the dead letter is to say.
static void entry_reject(struct source *s, int p, struct chunk *chunk, struct entry *entry,
                         enum reject reason, const char *message, const struct record *record)
{
    struct letter *letter =
        event_memory_take(&chunk->memory, sizeof *letter, _Alignof(struct letter));
    entry->event = NULL;
    entry->reason = (uint8_t)reason;
    *letter = (struct letter){.topic = s->partitions[p].name,
                              .partition = s->partitions[p].partition,
                              .reason = reject_names[reason],
                              .message = bytes_keep(chunk, message, strlen(message) + 1),
                              .record = *record};
    letter->record.handle = NULL;
    entry->letter = letter;
    if (reason == REJECT_TOMBSTONE) // is counted, nothing more
        return;
    letter->record.key = bytes_keep(chunk, record->key, record->key_size);
    letter->record.value = bytes_keep(chunk, record->value, record->value_size);
    letter->headers = headers_keep(s, chunk, record);
}

// What a clock says of an event time: the log's own, the wall clock of an earlier run, whose
// verdicts are recorded, or this one's. The words, or NULL when it may be.
static const char *time_judge(const struct cutter *c, int p, const struct record *record,
                              int64_t ts_ms, int64_t wall_ms, bool *verdict, char *text,
                              size_t size)
{
    *verdict = false;
    if (record->broker_ts_ms >= 0 && ts_ms - record->broker_ts_ms > c->options.max_future_ms) {
        snprintf(text, size, "ts is %" PRId64 " ms ahead of the log's time stamp",
                 ts_ms - record->broker_ts_ms);
        return text;
    }
    if (c->options.recorded_next && record->offset < c->options.recorded_next[p])
        *verdict = c->options.n_verdicts > 0 &&
                   bsearch(&(struct slice_verdict){p, record->offset}, c->options.verdicts,
                           (size_t)c->options.n_verdicts, sizeof *c->options.verdicts,
                           slice_verdict_compare) != NULL;
    else
        *verdict = wall_ms != 0 && ts_ms - wall_ms > c->options.max_future_ms;
    // Without how far: a second run with the same verdict is to say the same.
    return *verdict ? "ts is ahead of the clock" : NULL;
}

// Whether the record's key is its event's user, as text. Producers that key otherwise spread a user
// over partitions.
static bool is_keyed_by(const struct record *r, const struct id *user)
{
    char digits[24];
    if (!r->key)
        return false;
    if (user->kind == ID_STRING)
        return r->key_size == user->size && !memcmp(r->key, user->bytes, user->size);
    uint64_t bits;
    memcpy(&bits, user->bytes, sizeof bits);
    const int size = user->kind == ID_SIGNED
                         ? snprintf(digits, sizeof digits, "%" PRId64, (int64_t)bits)
                         : snprintf(digits, sizeof digits, "%" PRIu64, bits);
    return r->key_size == (size_t)size && !memcmp(r->key, digits, r->key_size);
}

// Reads and decodes what partition p has now. Returns how many records, or -errno.
static int partition_read(struct cutter *c, int p, struct cutter_clock now)
{
    struct source *s = c->source;
    struct partition *part = &c->partitions[p];
    struct record records[READ_MAX];
    const int n = s->ops->read(s, p, READ_MAX, records);
    if (n < 0)
        return fail(c, n, "%s", s->error);
    if (n == 0) {
        part->ended = c->options.order == SLICE_CANONICAL && s->ops->at_end(s, p);
        return 0;
    }
    struct chunk *chunk = chunk_fill(part, n);
    if (!chunk)
        return fail(c, -ENOMEM, "out of memory for decoded events");
    const enum topic topic = s->partitions[p].topic;
    for (int i = 0; i < n; i++) {
        struct event *event = &chunk->events[chunk->n_events++];
        struct entry entry = {
            .offset = records[i].offset, .chunk = chunk, .epoch = records[i].leader_epoch};
        const char *ahead;
        char text[128];
        if (entry.epoch < 0)
            entry.epoch = part->epoch;
        else if (entry.epoch < part->epoch)
            return fail(c, -EBADMSG,
                        "%s: partition %d: offset %" PRId64 " is of leader epoch %" PRId32
                        ", after epoch %" PRId32 ": records that were learned were lost by the "
                        "brokers, or the topic was created anew",
                        s->partitions[p].name, s->partitions[p].partition, entry.offset,
                        entry.epoch, part->epoch);
        part->epoch = entry.epoch;
        const enum reject reason = decode(c->decoder, topic, &records[i], &chunk->memory, event);
        c->counts.records++;
        c->counts.bytes += records[i].value_size;
        if (reason != REJECT_NONE) {
            entry_reject(s, p, chunk, &entry, reason, decoder_message(c->decoder), &records[i]);
        } else if ((ahead = time_judge(c, p, &records[i], event->ts_ms, now.wall_ms, &entry.verdict,
                                       text, sizeof text))) {
            entry_reject(s, p, chunk, &entry, REJECT_BAD_TIME, ahead, &records[i]);
        } else {
            event->partition = p;
            event->offset = records[i].offset;
            entry.event = event;
            if (s->ops->keyed && topic != TOPIC_ITEMS)
                c->counts.unkeyed[topic] += !is_keyed_by(&records[i], &event->user);
            if (event->ts_ms > part->mt_ms)
                part->mt_ms = event->ts_ms;
        }
        entry.mt_ms = part->mt_ms;
        if (!queue_put(part, &entry))
            return fail(c, -ENOMEM, "out of memory for decoded events");
        chunk->refs++;
    }
    part->arrived_ms = now.monotonic_ms;
    c->counts.pending += (uint64_t)n;
    return n;
}

// Merging.

static struct cut_slice *slice_new(const struct cutter *c)
{
    struct cut_slice *s = calloc(1, sizeof *s);
    const size_t n = (size_t)c->n, max = (size_t)c->options.slice_events;
    if (!s)
        return NULL;
    s->slice.next = calloc(n, sizeof *s->slice.next);
    s->slice.time_max_ms = calloc(n, sizeof *s->slice.time_max_ms);
    s->slice.epoch = calloc(n, sizeof *s->slice.epoch);
    s->slice.flags = calloc(n, sizeof *s->slice.flags);
    s->slice.moves = calloc(n, sizeof *s->slice.moves);
    s->slice.events = malloc(max * sizeof *s->slice.events);
    s->chunks = malloc(max * sizeof *s->chunks);
    s->slice.n_events_max = (int)max;
    if (!s->slice.next || !s->slice.time_max_ms || !s->slice.epoch || !s->slice.flags ||
        !s->slice.moves || !s->slice.events || !s->chunks) {
        slice_free(s);
        return NULL;
    }
    return s;
}

static struct cut_slice *slice_take(struct cutter *c)
{
    struct cut_slice *s = c->slices_free;
    if (s)
        c->slices_free = s->next;
    else if (!(s = slice_new(c)))
        return NULL;
    memset(s->slice.rejected, 0, sizeof s->slice.rejected);
    s->slice.n_partitions = c->n;
    s->slice.n_events = s->slice.n_verdicts = s->slice.n_moves = 0;
    s->slice.watermark_ms = s->slice.floor_ms = INT64_MIN;
    s->slice.shed_permille = 0;
    s->slice.last = false;
    return s;
}

static bool slice_put(struct cut_slice *s, const struct entry *entry)
{
    struct slice *slice = &s->slice;
    if (slice->n_events == slice->n_events_max) {
        const int max = 2 * slice->n_events_max;
        struct slice_event *events = realloc(slice->events, (size_t)max * sizeof *slice->events);
        if (events)
            slice->events = events;
        struct chunk **chunks = realloc(s->chunks, (size_t)max * sizeof *s->chunks);
        if (chunks)
            s->chunks = chunks;
        if (!events || !chunks)
            return false;
        slice->n_events_max = max;
    }
    slice->events[slice->n_events] = (struct slice_event){entry->mt_ms, entry->event};
    s->chunks[slice->n_events++] = entry->chunk;
    return true;
}

// The order of application. Time first; the rest is about content, so that the same streams in
// other partitions are applied in the same order; only a producer that scatters one user's events
// of one instant over partitions leaves the choice to their numbers. A catalogue record has no
// user; its key is the item.
static uint64_t key_of(const struct event *e)
{
    return e->topic == TOPIC_ITEMS ? e->items[0].item.hash : e->user.hash;
}

static bool event_before(const struct slice_event *a, const struct slice_event *b)
{
    const struct event *x = a->event, *y = b->event;
    if (a->mt_ms != b->mt_ms)
        return a->mt_ms < b->mt_ms;
    if (x->topic != y->topic)
        return x->topic < y->topic;
    if (key_of(x) != key_of(y))
        return key_of(x) < key_of(y);
    if (x->partition != y->partition)
        return x->partition < y->partition;
    return x->offset < y->offset;
}

static int event_compare(const void *a, const void *b)
{
    return event_before(a, b) ? -1 : event_before(b, a);
}

// Puts events [from, n) of one time in order. Few share a time, and they are nearly in order; but a
// catalogue may be written with one time for all of it: 100,000 took 27 s here, one by one.
static void group_sort(struct cut_slice *s, int from)
{
    enum { FEW = 32 };
    struct slice_event *e = s->slice.events;
    const int n = s->slice.n_events;
    if (n - from > FEW) {
        qsort(e + from, (size_t)(n - from), sizeof *e, event_compare);
        return;
    }
    for (int i = from + 1; i < n; i++) {
        const struct slice_event event = e[i];
        int k = i;
        for (; k > from && event_before(&event, &e[k - 1]); k--)
            e[k] = e[k - 1];
        e[k] = event;
    }
}

// Floods.

static void flood_note_path(const struct cutter *c, char *path, size_t size)
{
    snprintf(path, size, "%s.flood", dead_letter_path(c->options.dead_letter));
}

static uint64_t flood_note_digest(const struct flood_note *note)
{
    return XXH3_64bits(note, offsetof(struct flood_note, digest));
}

static void flood_note_take(struct cutter *c)
{
    c->before = (struct flood_note){
        .magic = "ttflood1",
        .slices = c->slices,
        .next_digest = XXH3_64bits(c->next, (size_t)c->n * sizeof *c->next),
        .flood = c->flood,
    };
}

// Before the first slice that is cut and not recorded: where the window begins.
static void flood_begin(struct cutter *c)
{
    char path[4200];
    struct flood_note note;
    if (c->options.dead_letter) {
        flood_note_path(c, path, sizeof path);
        flood_note_take(c);
        if (small_file_read(path, &note, sizeof note) == (ssize_t)sizeof note &&
            note.digest == flood_note_digest(&note) && !memcmp(note.magic, c->before.magic, 8) &&
            note.slices == c->before.slices && note.next_digest == c->before.next_digest)
            c->flood = note.flood;
    }
    for (int t = 0; t < TOPICS; t++)
        if (c->flood.topics[t].rejected > c->options.flood)
            c->flood.topics[t] = (struct flood_window){0};
}

static int flood_stop(struct cutter *c, enum topic topic, const struct entry *entry)
{
    const struct flood_report report = flood_report(&c->flood, topic);
    const struct source_partition *at = &c->source->partitions[report.first.partition];
    char path[4200];
    int rc = 0;
    if (c->options.dead_letter) {
        flood_note_path(c, path, sizeof path);
        c->before.digest = flood_note_digest(&c->before);
        rc = small_file_write(path, &c->before, sizeof c->before);
    }
    return fail(
        c, -EBADMSG,
        "topic %s: %d of the last %d records are no events, more than %d in %d "
        "(dead_letter.flood): most often %s, from partition %" PRId32 " offset %" PRId64
        " on (last: %.200s). Nothing more is read: when the producer or its schema is right "
        "again, or to take all of them as dead letters, start with -o dead_letter.flood=1"
        "%s%s",
        at->name, report.rejected, report.records, c->options.flood, FLOOD_WINDOW,
        reject_names[report.reason], at->partition, report.first.offset, entry->letter->message,
        rc < 0 ? "; this place was not kept: " : "", rc < 0 ? strerror(-rc) : "");
}

// Every record that goes into a slice, in its order.
static int flood_see(struct cutter *c, int p, const struct entry *entry)
{
    const enum reject reason = entry->event ? REJECT_NONE : (enum reject)entry->reason;
    const enum topic topic = c->source->partitions[p].topic;
    if (c->options.flood == 0 || reason == REJECT_TOMBSTONE)
        return 0;
    flood_add(&c->flood, topic, (struct flood_record){entry->offset, p, (int32_t)reason});
    return c->cutting && reason != REJECT_NONE && c->flood.topics[topic].rejected > c->options.flood
               ? flood_stop(c, topic, entry)
               : 0;
}

static int entry_dead(struct cutter *c, struct cut_slice *s, int p, const struct entry *entry)
{
    const struct source_partition *part = &c->source->partitions[p];
    s->slice.rejected[part->topic][entry->reason]++;
    if (entry->reason == REJECT_TOMBSTONE)
        c->counts.tombstones++;
    else if (c->options.dead_letter) {
        struct letter letter = *entry->letter;
        letter.slice = c->slices + 1;
        letter.letter = ++c->letters;
        const int rc = dead_letter_put(c->options.dead_letter, &letter);
        if (rc < 0)
            return fail(c, rc, "%s", dead_letter_error(c->options.dead_letter));
        c->dead_letters = (int64_t)dead_letter_size(c->options.dead_letter);
    }
    return 0;
}

static bool verdict_put(struct cut_slice *s, int p, int64_t offset)
{
    struct slice *slice = &s->slice;
    if (slice->n_verdicts == SLICE_VERDICTS_MAX)
        return false;
    if (slice->n_verdicts == s->n_verdicts_max) {
        const int max = s->n_verdicts_max ? 2 * s->n_verdicts_max : 16;
        struct slice_verdict *more = realloc(slice->verdicts, (size_t)max * sizeof *more);
        if (!more)
            return false;
        slice->verdicts = more;
        s->n_verdicts_max = max;
    }
    slice->verdicts[slice->n_verdicts++] = (struct slice_verdict){p, offset};
    return true;
}

static int64_t head_time(const struct cutter *c, int p)
{
    return queue_at(&c->partitions[p], 0)->mt_ms;
}

static void heap_sift(const struct cutter *c, int *heap, int n, int i)
{
    for (;;) {
        int least = i;
        for (int child = 2 * i + 1; child <= 2 * i + 2 && child < n; child++) {
            const int64_t a = head_time(c, heap[child]), b = head_time(c, heap[least]);
            if (a < b || (a == b && heap[child] < heap[least]))
                least = child;
        }
        if (least == i)
            return;
        const int swap = heap[i];
        heap[i] = heap[least];
        heap[least] = swap;
        i = least;
    }
}

// Moves the first limits[p] entries of every partition into the slice, in order.
static int merge(struct cutter *c, struct cut_slice *s)
{
    int n = 0, group = s->slice.n_events;
    for (int p = 0; p < c->n; p++)
        if (c->limits[p] > 0)
            c->order[n++] = p;
    for (int i = n / 2; i-- > 0;)
        heap_sift(c, c->order, n, i);
    while (n > 0) {
        const int p = c->order[0];
        struct partition *part = &c->partitions[p];
        const struct entry *entry = queue_at(part, 0);
        const int flood = flood_see(c, p, entry);
        if (flood < 0)
            return flood;
        if (entry->event) {
            if (group < s->slice.n_events && s->slice.events[group].mt_ms != entry->mt_ms) {
                group_sort(s, group);
                group = s->slice.n_events;
            }
            if (!slice_put(s, entry))
                return fail(c, -ENOMEM, "out of memory for a slice");
        } else {
            const int rc = entry_dead(c, s, p, entry);
            if (rc < 0)
                return rc;
            chunk_release(entry->chunk);
        }
        if (entry->verdict && !verdict_put(s, p, entry->offset))
            return fail(c, -ENOMEM, "over %d records are ahead of the clock, or out of memory",
                        SLICE_VERDICTS_MAX);
        c->next[p] = entry->offset + 1;
        c->time_max_ms[p] = entry->mt_ms;
        c->epoch[p] = entry->epoch;
        part->head++;
        part->n--;
        c->counts.pending--;
        if (--c->limits[p] == 0)
            c->order[0] = c->order[--n];
        heap_sift(c, c->order, n, 0);
    }
    group_sort(s, group);
    return 0;
}

// As the trainer will: each event of a canonical slice moves the watermark to its time.
static void canonical_watermark(struct cutter *c, const struct slice *slice)
{
    const int n = slice->n_events;
    if (n > 0 && slice->events[n - 1].mt_ms > c->watermark_ms)
        c->watermark_ms = slice->events[n - 1].mt_ms;
}

// The same into a new slice; nothing is left of it after a failure.
static int slice_merge(struct cutter *c, struct cut_slice **s)
{
    *s = slice_take(c);
    if (!*s)
        return fail(c, -ENOMEM, "out of memory for a slice");
    if (c->options.flood > 0)
        flood_note_take(c);
    c->letters = 0;
    const int rc = merge(c, *s);
    if (rc < 0)
        slice_release(c, *s);
    return rc;
}

static bool values_equal(const struct slice_values *a, const struct slice_values *b)
{
    return a->n == b->n && memcmp(a->weight, b->weight, (size_t)a->n * sizeof *a->weight) == 0;
}

bool cutter_want_values(struct cutter *c, const float *weight)
{
    struct slice_values values = {.n = c->options.tasks};
    memcpy(values.weight, weight, (size_t)values.n * sizeof *weight);
    pthread_mutex_lock(&c->lock);
    const bool other = !values_equal(&c->wanted, &values);
    c->wanted = values;
    pthread_mutex_unlock(&c->lock);
    return other;
}

// What the slice that is cut now has to carry.
static struct slice_values values_due(struct cutter *c)
{
    pthread_mutex_lock(&c->lock);
    const struct slice_values wanted = c->wanted;
    pthread_mutex_unlock(&c->lock);
    return wanted.n == 0 || values_equal(&wanted, &c->values) ? (struct slice_values){0} : wanted;
}

static uint64_t slice_digest(const struct slice *slice)
{
    uint64_t digest = 0;
    if (slice->values.n > 0)
        digest = XXH3_64bits(slice->values.weight,
                             (size_t)slice->values.n * sizeof *slice->values.weight);
    for (int i = 0; i < slice->n_events; i++) {
        const struct event *e = slice->events[i].event;
        const uint64_t words[4] = {(uint64_t)e->partition, (uint64_t)e->offset, (uint64_t)e->ts_ms,
                                   e->user.hash};
        digest = XXH3_64bits_withSeed(words, sizeof words, digest);
    }
    return digest;
}

static struct slice *slice_finish(struct cutter *c, struct cut_slice *s, enum slice_order order,
                                  const struct slice_values *values)
{
    struct slice *slice = &s->slice;
    slice->values = *values;
    if (values->n > 0)
        c->values = *values;
    slice->number = ++c->slices;
    slice->order = order;
    slice->dead_letters = c->dead_letters;
    memcpy(slice->next, c->next, (size_t)c->n * sizeof *slice->next);
    memcpy(slice->time_max_ms, c->time_max_ms, (size_t)c->n * sizeof *slice->time_max_ms);
    memcpy(slice->epoch, c->epoch, (size_t)c->n * sizeof *slice->epoch);
    memcpy(slice->flags, c->flags, (size_t)c->n * sizeof *slice->flags);
    memcpy(slice->moves, c->moves, (size_t)c->n_moves * sizeof *slice->moves);
    slice->n_moves = c->n_moves;
    c->n_moves = 0;
    slice->digest = slice_digest(slice);
    return slice;
}

// Cutting.

// Everything before the frontier is complete: the earliest of the latest times of the partitions
// that may still bring something. INT64_MAX when all have ended, INT64_MIN when one has shown
// nothing yet.
static int64_t frontier_of(const struct cutter *c)
{
    int64_t frontier = INT64_MAX;
    for (int p = 0; p < c->n; p++) {
        const struct partition *part = &c->partitions[p];
        if (part->ended)
            continue;
        if (part->mt_ms < frontier)
            frontier = part->mt_ms;
    }
    return frontier;
}

// Where a canonical slice ends: a time before which everything is complete, early enough for about
// slice_events from any partition, late enough for one whole time.
static int64_t slice_end(const struct cutter *c, int64_t frontier)
{
    int64_t end = frontier, first = INT64_MAX;
    for (int p = 0; p < c->n; p++) {
        const struct partition *part = &c->partitions[p];
        if (part->n == 0)
            continue;
        if (head_time(c, p) < first)
            first = head_time(c, p);
        if (part->n > (size_t)c->options.slice_events) {
            const int64_t at = queue_at(part, (size_t)c->options.slice_events)->mt_ms;
            if (at < end)
                end = at;
        }
        // More than GROUP_MAX events of one time are not waited for: memory is bounded.
        if (part->n >= GROUP_MAX && head_time(c, p) == frontier)
            return frontier + 1;
    }
    if (end <= first && first < frontier)
        end = first + 1;
    return end;
}

// Sets the limits to everything before end; returns how much that is.
static size_t limits_before(struct cutter *c, int64_t end)
{
    size_t all = 0;
    for (int p = 0; p < c->n; p++) {
        const struct partition *part = &c->partitions[p];
        size_t n = 0;
        while (n < part->n && (queue_at(part, n)->mt_ms < end || end == INT64_MAX))
            n++;
        c->limits[p] = n;
        all += n;
    }
    return all;
}

// Of a partition from which everything read was taken: over what the source skipped behind it.
static void next_skip(struct cutter *c, int p)
{
    const int64_t position = c->source->ops->position(c->source, p);
    if (position > c->next[p])
        c->next[p] = position;
}

static int next_canonical(struct cutter *c, struct cutter_clock now, int wait_ms,
                          struct slice **slice)
{
    bool waited = false;
    now.wall_ms = c->options.as_of_ms;
    for (;;) {
        // Read whoever has little, and above all those that hold the frontier.
        const int64_t held = frontier_of(c);
        bool read = false;
        for (int p = 0; p < c->n; p++) {
            struct partition *part = &c->partitions[p];
            const bool holds = part->mt_ms <= held;
            if (part->ended || (part->n >= QUEUE_LOW && (!holds || part->n >= GROUP_MAX)))
                continue;
            const int rc = partition_read(c, p, now);
            if (rc < 0)
                return rc;
            read |= rc > 0;
        }
        const int64_t frontier = frontier_of(c);
        const size_t taken = limits_before(c, slice_end(c, frontier));
        if (taken > 0 || frontier == INT64_MAX) {
            struct cut_slice *s;
            const int rc = slice_merge(c, &s);
            if (rc < 0)
                return rc;
            s->slice.last = frontier == INT64_MAX;
            for (int p = 0; p < c->n; p++)
                s->slice.last &= c->partitions[p].n == 0;
            for (int p = 0; s->slice.last && p < c->n; p++)
                next_skip(c, p);
            const struct slice_values values = values_due(c);
            s->slice.clock_ms = now.wall_ms;
            canonical_watermark(c, &s->slice);
            memset(c->flags, 0, (size_t)c->n);
            *slice = slice_finish(c, s, SLICE_CANONICAL, &values);
            return 1;
        }
        if (read)
            continue;
        // Only partitions without anything new hold the frontier.
        bool ended_now = false;
        for (int p = 0; p < c->n; p++)
            ended_now |= !c->partitions[p].ended && c->source->ops->at_end(c->source, p);
        if (!ended_now) {
            const int rc = waited ? 0 : c->source->ops->wait(c->source, wait_ms);
            if (rc < 0)
                return fail(c, rc, "%s", c->source->error);
            if (waited)
                return 0;
            waited = true;
        }
    }
}

// What is known of the partitions now, as flags, and how far the clock lets time go on, so that
// windows close behind the last event: when all are idle, else INT64_MIN.
static int64_t flags_set(struct cutter *c, int64_t now_ms)
{
    int64_t latest = INT64_MIN, arrived = INT64_MIN;
    bool all_idle = true;
    for (int p = 0; p < c->n; p++) {
        const struct partition *part = &c->partitions[p];
        const bool ended = part->n == 0 && c->source->ops->at_end(c->source, p);
        const bool idle = ended && now_ms - part->arrived_ms > c->options.idle_ms;
        c->flags[p] = (uint8_t)((ended ? SLICE_END_SEEN : 0) | (idle ? SLICE_IDLE : 0));
        all_idle &= idle;
        if (c->time_max_ms[p] > latest)
            latest = c->time_max_ms[p];
        if (part->arrived_ms > arrived)
            arrived = part->arrived_ms;
    }
    return all_idle && latest != INT64_MIN
               ? latest + (now_ms - arrived - c->options.idle_ms) - c->options.lateness_ms
               : INT64_MIN;
}

// The watermark after a live slice: lateness behind the slowest partition that is not idle, or the
// floor; it never goes back. A function of what is recorded.
static int64_t live_watermark(const struct cutter *c, int64_t floor_ms)
{
    int64_t slowest = INT64_MAX;
    for (int p = 0; p < c->n; p++)
        if (!(c->flags[p] & SLICE_IDLE) && c->time_max_ms[p] < slowest)
            slowest = c->time_max_ms[p];
    // One that is not idle may have shown nothing yet.
    const int64_t reached = slowest == INT64_MAX   ? floor_ms
                            : slowest == INT64_MIN ? INT64_MIN
                                                   : slowest - c->options.lateness_ms;
    return reached > c->watermark_ms ? reached : c->watermark_ms;
}

// Above nine tenths of a join the rest is kept for what is open: of new requests fewer and fewer
// are admitted.
static int shed_due(const struct cutter *c)
{
    enum { FULL = 1000, BEGIN = 900 };
    const int fill = atomic_load_explicit(&c->fill_permille, memory_order_relaxed);
    const int shed = (fill - BEGIN) * 1000 / (FULL - BEGIN);
    return shed < 0 ? 0 : shed > 1000 ? 1000 : shed;
}

void cutter_told_fill(struct cutter *c, double fill)
{
    atomic_store_explicit(&c->fill_permille, (int)(fill * 1000), memory_order_relaxed);
}

static int next_live(struct cutter *c, struct cutter_clock now, int wait_ms, struct slice **slice)
{
    const int64_t now_ms = now.monotonic_ms;
    if (c->options.as_of_ms == 0)
        now.wall_ms = 0;
    if (c->cut_ms == 0) {
        c->cut_ms = now_ms;
        for (int p = 0; p < c->n; p++)
            c->partitions[p].arrived_ms = now_ms;
    }
    bool any = false;
    for (int p = 0; p < c->n; p++) {
        if (c->partitions[p].n >= (size_t)(4 * c->options.slice_events))
            continue; // full: the source holds back
        const int rc = partition_read(c, p, now);
        if (rc < 0)
            return rc;
        any |= rc > 0;
    }
    const bool due = now_ms - c->cut_ms >= c->options.interval_ms;
    const bool full = c->counts.pending >= (uint64_t)c->options.slice_events;
    const int64_t watermark = live_watermark(c, flags_set(c, now_ms));
    const bool tick = c->counts.pending == 0 && due &&
                      watermark >= (c->watermark_ms == INT64_MIN ? 0 : c->watermark_ms) + SECOND_MS;
    if (!(full || (due && c->counts.pending > 0) || tick)) {
        if (!any) {
            const int64_t left = c->options.interval_ms - (now_ms - c->cut_ms);
            const int rc = c->source->ops->wait(c->source, c->counts.pending && left < wait_ms
                                                               ? (int)(left > 0 ? left : 0)
                                                               : wait_ms);
            if (rc < 0)
                return fail(c, rc, "%s", c->source->error);
        }
        return 0;
    }
    int64_t base = INT64_MAX;
    for (int p = 0; p < c->n; p++)
        if (c->partitions[p].n > 0 && head_time(c, p) < base)
            base = head_time(c, p);
    for (int p = 0; p < c->n; p++) {
        const struct partition *part = &c->partitions[p];
        size_t n = 0;
        while (n < part->n && n < (size_t)c->options.slice_events &&
               queue_at(part, n)->mt_ms <= base + c->options.drift_ms)
            n++;
        c->limits[p] = n;
    }
    struct cut_slice *s;
    const int rc = slice_merge(c, &s);
    if (rc < 0)
        return rc;
    // Over control and aborted records too: a restart is to ask for nothing that retention may
    // take.
    for (int p = 0; p < c->n; p++)
        if (c->partitions[p].n == 0)
            next_skip(c, p);
    s->slice.floor_ms = flags_set(c, now_ms);
    s->slice.watermark_ms = c->watermark_ms = live_watermark(c, s->slice.floor_ms);
    s->slice.shed_permille = shed_due(c);
    s->slice.clock_ms = now.wall_ms;
    c->cut_ms = now_ms;
    const struct slice_values values = values_due(c);
    *slice = slice_finish(c, s, SLICE_LIVE, &values);
    return 1;
}

int cutter_next(struct cutter *c, struct cutter_clock now, int wait_ms, struct slice **slice)
{
    given_collect(c);
    if (!c->cutting)
        flood_begin(c);
    c->cutting = true;
    return c->options.order == SLICE_CANONICAL ? next_canonical(c, now, wait_ms, slice)
                                               : next_live(c, now, wait_ms, slice);
}

int cutter_move(struct cutter *c, int n, const struct slice_move *moves, bool started,
                const int64_t *stop)
{
    for (int i = 0; i < n; i++) {
        c->next[moves[i].partition] = moves[i].to;
        // Another log may begin there.
        c->epoch[moves[i].partition] = -1;
        c->moves[c->n_moves++] = moves[i];
    }
    if (started)
        return 0;
    for (int p = 0; p < c->n; p++) {
        struct partition *part = &c->partitions[p];
        c->counts.pending -= part->n;
        for (; part->n > 0; part->n--, part->head++)
            chunk_release(queue_at(part, 0)->chunk);
        part->mt_ms = c->time_max_ms[p];
        part->epoch = c->epoch[p];
        part->ended = false;
    }
    const int rc = c->source->ops->start(c->source, c->next, stop);
    return rc < 0 ? fail(c, rc, "%s", c->source->error) : 0;
}

int cutter_recorded(struct cutter *c, const struct slice_record *record, const int64_t *stop,
                    struct slice **slice)
{
    enum { WAIT_MS = 100, WAITS_MAX = 600 };
    given_collect(c);
    assert(record->number == c->slices + 1);
    if (record->values.n > 0 && record->values.n != c->options.tasks)
        return fail(c, -EINVAL, "slice %" PRIu64 ": values %d tasks, there are %d now",
                    record->number, record->values.n, c->options.tasks);
    if (record->n_moves > 0) {
        for (int i = 0; i < record->n_moves; i++)
            if (record->moves[i].from != c->next[record->moves[i].partition])
                return fail(c, -EBADMSG,
                            "slice %" PRIu64 ": moves partition %d from offset %" PRId64
                            ", which is at %" PRId64,
                            record->number, record->moves[i].partition, record->moves[i].from,
                            c->next[record->moves[i].partition]);
        const int rc = cutter_move(c, record->n_moves, record->moves, false, stop);
        if (rc < 0)
            return rc;
    }
    for (int p = 0; p < c->n; p++) {
        struct partition *part = &c->partitions[p];
        int waits = 0;
        while (c->next[p] < record->next[p] &&
               (part->n == 0 || queue_at(part, part->n - 1)->offset + 1 < record->next[p]) &&
               c->source->ops->position(c->source, p) < record->next[p]) {
            // What is read beyond the recorded slices is judged now.
            const int rc = partition_read(c, p, (struct cutter_clock){0, c->options.as_of_ms});
            if (rc < 0)
                return rc;
            if (rc > 0)
                continue;
            if (c->source->ops->wait(c->source, WAIT_MS) < 0)
                return fail(c, -EIO, "%s", c->source->error);
            if (++waits == WAITS_MAX)
                return fail(c, -ETIMEDOUT,
                            "%s: partition %d: waited for offset %" PRId64
                            " that an earlier run had read",
                            c->source->partitions[p].name, c->source->partitions[p].partition,
                            record->next[p] - 1);
        }
        size_t n = 0;
        while (n < part->n && queue_at(part, n)->offset < record->next[p])
            n++;
        c->limits[p] = n;
    }
    struct cut_slice *s;
    const int rc = slice_merge(c, &s);
    if (rc < 0)
        return rc;
    memcpy(c->next, record->next, (size_t)c->n * sizeof *c->next);
    memcpy(c->flags, record->flags, (size_t)c->n * sizeof *c->flags);
    s->slice.floor_ms = record->floor_ms;
    s->slice.clock_ms = record->clock_ms;
    s->slice.shed_permille = record->shed_permille;
    if (record->order == SLICE_LIVE)
        s->slice.watermark_ms = c->watermark_ms = live_watermark(c, record->floor_ms);
    else
        canonical_watermark(c, &s->slice);
    struct slice *again = slice_finish(c, s, record->order, &record->values);
    if (again->digest != record->digest || again->n_events != record->n_events) {
        fail(c, -EBADMSG,
             "slice %" PRIu64 ": the source has other records now (%d events, then %d): "
             "it was recreated or rewritten",
             record->number, again->n_events, record->n_events);
        slice_release(c, s);
        return -EBADMSG;
    }
    if (again->watermark_ms != record->watermark_ms) {
        fail(c, -EBADMSG,
             "slice %" PRIu64 ": the watermark would be %" PRId64 ", recorded is %" PRId64
             ": the slice log contradicts itself, or join.lateness is another one",
             record->number, again->watermark_ms, record->watermark_ms);
        slice_release(c, s);
        return -EBADMSG;
    }
    *slice = again;
    return 1;
}
