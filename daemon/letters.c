// SPDX-License-Identifier: Apache-2.0
#include "daemon/letters.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/assemble.h"
#include "daemon/clock.h"
#include "daemon/log.h"
#include "daemon/metrics.h"
#include "pipeline/dead_letter_kafka.h"
#include "pipeline/dead_letter_reader.h"
#include "pipeline/small_file.h"

enum {
    PENDING_MAX = DEAD_LETTER_KAFKA_PENDING_MAX,
    POLL_MS = 100,   // while letters are on their way
    IDLE_MS = 1000,  // librdkafka wants to be heard now and then
    SYNC_MS = 1000,  // between two syncs of the slice log
    NOTE_MS = 1000,  // between two notes of what is delivered, if more is on its way
    RETRY_MS = 1000, // after the first failure; then twice as long, up to
    RETRY_MS_MAX = 60000,
    // At the end: so long without an answer, and so long in all. An idempotent producer takes 2 s
    // from its start to its first letter.
    CLOSE_SILENT_MS = 5000,
    CLOSE_MS_MAX = 30000,
};

struct mark { // a letter
    uint64_t slice, letter;
};

struct place { // behind a letter
    struct mark mark;
    uint64_t position;
};

struct letters {
    const struct config *config;
    struct dead_letter *dead_letter;
    struct slice_log *log;
    char noted[4200]; // PATH.delivered
    pthread_t thread;
    pthread_mutex_t lock; // around `stop`, and the wish to be woken
    pthread_cond_t woken;
    bool stop;
    _Atomic uint64_t logged, written; // the last slice, and the size of the file with it
    bool told_full;                   // the ingest thread's

    // The thread's.
    struct dead_letter_reader *reader;
    struct dead_letter_kafka *kafka;    // NULL: to be opened
    uint64_t durable;                   // slices in the log that are on the disk
    struct place pending[PENDING_MAX];  // by number sent
    uint64_t sent, counted;             // of them, and those that count as delivered
    struct place delivered;             // the last one
    bool drained;                       // nothing durable is left to be sent
    bool unnoted;                       // since the last note
    int64_t sync_ms, note_ms, retry_ms; // when each may be done
    int retry_after_ms;
    int64_t heard_ms; // when something was last delivered
    uint64_t dropped;
};

static bool mark_after(struct mark a, struct mark b)
{
    return a.slice != b.slice ? a.slice > b.slice : a.letter > b.letter;
}

// PATH.delivered.

static int mark_read(struct letters *l, uint64_t slice, char *error, size_t error_size)
{
    char text[128];
    struct mark mark;
    const ssize_t n = small_file_read(l->noted, text, sizeof text - 1);
    if (n == -ENOENT)
        return 0;
    if (n < 0) {
        snprintf(error, error_size, "%s: %s", l->noted, strerror((int)-n));
        return (int)n;
    }
    text[(size_t)n < sizeof text ? (size_t)n : sizeof text - 1] = '\0';
    if (sscanf(text, "{\"slice\":%" SCNu64 ",\"letter\":%" SCNu64 "}", &mark.slice, &mark.letter) !=
        2) {
        snprintf(error, error_size, "%s: expected {\"slice\":N,\"letter\":N}", l->noted);
        return -EBADMSG;
    }
    // Another state.dir, or one from a copy: what comes now was never sent.
    if (mark.slice > slice) {
        log_warning("delivered dead letters are of another history",
                    "slice=%" PRIu64 " newest=%" PRIu64, mark.slice, slice);
        mark = slice == 0 ? (struct mark){0} : (struct mark){slice, UINT64_MAX};
        l->unnoted = true;
    }
    l->delivered.mark = mark;
    return 0;
}

static void mark_write(struct letters *l)
{
    char text[128];
    int rc = 0;
    const int size = snprintf(text, sizeof text, "{\"slice\":%" PRIu64 ",\"letter\":%" PRIu64 "}\n",
                              l->delivered.mark.slice, l->delivered.mark.letter);
    // Lines without a slice have no name: they are noted with the first that has one.
    if (l->delivered.mark.slice > 0)
        rc = small_file_write(l->noted, text, (size_t)size);
    else if (unlink(l->noted) < 0 && errno != ENOENT)
        rc = -errno;
    if (rc < 0)
        log_error("delivered dead letters not noted", "file=%s reason=%s", l->noted, strerror(-rc));
    l->unnoted = rc < 0;
    l->note_ms = clock_ms(CLOCK_MONOTONIC) + NOTE_MS;
}

// The thread.

static void kafka_fail(struct letters *l, const char *reason)
{
    l->retry_after_ms = l->retry_after_ms == 0                 ? RETRY_MS
                        : l->retry_after_ms > RETRY_MS_MAX / 2 ? RETRY_MS_MAX
                                                               : 2 * l->retry_after_ms;
    log_error("dead letters not delivered", "reason=%s again_s=%d", reason,
              l->retry_after_ms / 1000);
    metrics_add(METRIC_DEAD_LETTER_FAILURES, 1);
    l->retry_ms = clock_ms(CLOCK_MONOTONIC) + l->retry_after_ms;
    dead_letter_kafka_close(l->kafka);
    l->kafka = NULL;
    // Whatever was on its way is sent again.
    l->sent = l->counted = 0;
    dead_letter_reader_seek(l->reader, l->delivered.position);
}

static bool kafka_open(struct letters *l)
{
    char error[512];
    if (l->kafka)
        return true;
    if (clock_ms(CLOCK_MONOTONIC) < l->retry_ms)
        return false;
    if (assemble_letters(l->config, &l->kafka, error, sizeof error) == 0)
        return true;
    kafka_fail(l, error);
    return false;
}

// Letters of slices that are on the disk may go.
static void log_sync(struct letters *l)
{
    const uint64_t logged = atomic_load(&l->logged);
    const int64_t now = clock_ms(CLOCK_MONOTONIC);
    char error[512];
    if (logged == l->durable || now < l->sync_ms)
        return;
    l->sync_ms = now + SYNC_MS;
    if (slice_log_sync(l->log, error, sizeof error) == 0)
        l->durable = logged;
}

// Hands over as much as there is and as is taken.
static void send_some(struct letters *l)
{
    struct letter letter;
    l->drained = false;
    while (kafka_open(l)) {
        const uint64_t before = dead_letter_reader_position(l->reader);
        int rc = dead_letter_reader_next(l->reader, l->durable, &letter);
        if (rc == -EBADMSG) {
            log_warning("dead letter passed over", "reason=%s",
                        dead_letter_reader_error(l->reader));
            metrics_add(METRIC_DEAD_LETTER_FAILURES, 1);
            continue;
        }
        if (rc < 0)
            kafka_fail(l, dead_letter_reader_error(l->reader));
        l->drained = rc == 0;
        if (rc <= 0)
            return;
        const struct mark mark = {letter.slice, letter.letter};
        if (l->delivered.mark.slice > 0 && !mark_after(mark, l->delivered.mark))
            continue; // by an earlier process
        rc = dead_letter_kafka_send(l->kafka, &letter);
        if (rc == -EAGAIN) {
            dead_letter_reader_seek(l->reader, before);
            return;
        }
        if (rc < 0) {
            kafka_fail(l, dead_letter_kafka_error(l->kafka));
            return;
        }
        l->pending[l->sent++ % PENDING_MAX] =
            (struct place){mark, dead_letter_reader_position(l->reader)};
    }
}

// What has been confirmed meanwhile.
static void hear(struct letters *l, int timeout_ms)
{
    const int rc = dead_letter_kafka_poll(l->kafka, timeout_ms);
    const uint64_t delivered = dead_letter_kafka_delivered(l->kafka);
    if (delivered > l->counted) {
        metrics_add(METRIC_DEAD_LETTERS_DELIVERED, delivered - l->counted);
        l->counted = delivered;
        l->delivered = l->pending[(delivered - 1) % PENDING_MAX];
        l->unnoted = true;
        l->retry_after_ms = 0;
        l->heard_ms = clock_ms(CLOCK_MONOTONIC);
    }
    if (rc < 0)
        kafka_fail(l, dead_letter_kafka_error(l->kafka));
}

static void tell(struct letters *l)
{
    const uint64_t dropped = dead_letter_dropped(l->dead_letter);
    // Nothing is on its way: what was read, and passed over, is done with, too.
    if (l->sent == l->counted)
        l->delivered.position = dead_letter_reader_position(l->reader);
    dead_letter_release(l->dead_letter, l->delivered.position);
    const uint64_t written = atomic_load(&l->written);
    metrics_set(METRIC_DEAD_LETTERS_WAITING,
                written > l->delivered.position ? (double)(written - l->delivered.position) : 0);
    if (dropped == l->dropped)
        return;
    log_error("dead letters dropped before they were delivered", "bytes=%" PRIu64,
              dropped - l->dropped);
    metrics_put_of(METRIC_DEAD_LETTERS_DROPPED, 0, dropped);
    l->dropped = dropped;
}

static void one_round(struct letters *l)
{
    log_sync(l);
    send_some(l);
    const bool pending = l->sent > l->counted;
    if (l->kafka)
        hear(l, pending ? POLL_MS : 0);
    tell(l);
    if (l->unnoted && (l->sent == l->counted || clock_ms(CLOCK_MONOTONIC) >= l->note_ms))
        mark_write(l);
}

static bool all_delivered(const struct letters *l)
{
    return l->durable == atomic_load(&l->logged) && l->drained && l->sent == l->counted &&
           !l->unnoted;
}

static void *letters_main(void *arg)
{
    struct letters *l = arg;
    int64_t stop_ms = 0;
    for (;;) {
        one_round(l);
        pthread_mutex_lock(&l->lock);
        const int64_t now = clock_ms(CLOCK_MONOTONIC);
        if (l->stop && stop_ms == 0) {
            stop_ms = l->heard_ms = now;
            l->sync_ms = 0;
        }
        const bool stop = l->stop;
        const bool done =
            stop && (all_delivered(l) || !l->kafka || now >= l->heard_ms + CLOSE_SILENT_MS ||
                     now >= stop_ms + CLOSE_MS_MAX);
        // Nothing is on its way, and nothing can be: until somebody has more, or it is time again.
        if (!done && l->sent == l->counted && (l->drained || !l->kafka)) {
            const int64_t until_ms = now + (l->kafka && !stop ? IDLE_MS : POLL_MS);
            const struct timespec until = {until_ms / 1000, until_ms % 1000 * 1000000};
            pthread_cond_timedwait(&l->woken, &l->lock, &until);
        }
        pthread_mutex_unlock(&l->lock);
        if (done)
            return NULL;
    }
}

int letters_open(struct letters **out, const struct config *c, struct dead_letter *d,
                 struct slice_log *log, uint64_t slice, char *error, size_t error_size)
{
    struct letters *l = calloc(1, sizeof *l);
    pthread_condattr_t monotonic;
    snprintf(error, error_size, "out of memory");
    if (!l)
        return -ENOMEM;
    *l = (struct letters){.config = c, .dead_letter = d, .log = log};
    atomic_init(&l->logged, slice);
    atomic_init(&l->written, dead_letter_size(d));
    pthread_mutex_init(&l->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&l->woken, &monotonic);
    pthread_condattr_destroy(&monotonic);
    snprintf(l->noted, sizeof l->noted, "%s.delivered", dead_letter_path(d));
    dead_letter_follow(d, c->dead_letter_on_unavailable == CONFIG_UNAVAILABLE_WAIT);
    uint64_t start;
    const int fd = dead_letter_file_at(d, &l->delivered.position, &start);
    if (fd >= 0)
        close(fd);
    int rc = mark_read(l, slice, error, error_size);
    if (rc == 0)
        rc = dead_letter_reader_open(&l->reader, d);
    // What is wrong with the configuration is known without a broker.
    if (rc == 0)
        rc = assemble_letters(c, &l->kafka, error, error_size);
    if (rc == 0 && (rc = -pthread_create(&l->thread, NULL, letters_main, l)) < 0)
        snprintf(error, error_size, "no thread: %s", strerror(-rc));
    if (rc < 0) {
        dead_letter_kafka_close(l->kafka);
        dead_letter_reader_close(l->reader);
        pthread_cond_destroy(&l->woken);
        pthread_mutex_destroy(&l->lock);
        free(l);
        return rc;
    }
    *out = l;
    return 0;
}

void letters_logged(struct letters *l, uint64_t slice, uint64_t dead_letters)
{
    atomic_store(&l->written, dead_letters);
    // Slices of the log that are applied again are in it already.
    if (slice > atomic_load(&l->logged))
        atomic_store(&l->logged, slice);
    pthread_cond_signal(&l->woken);
}

bool letters_full(struct letters *l)
{
    const bool full = dead_letter_full(l->dead_letter);
    if (full && !l->told_full)
        log_error("reading stops until dead letters are delivered",
                  "topic=%s file=%s on_unavailable=wait", l->config->dead_letter_topic,
                  dead_letter_path(l->dead_letter));
    if (!full && l->told_full)
        log_info("reading goes on", "reason=%s", "dead letters are delivered again");
    l->told_full = full;
    return full;
}

void letters_close(struct letters *l)
{
    if (!l)
        return;
    pthread_mutex_lock(&l->lock);
    l->stop = true;
    pthread_cond_signal(&l->woken);
    pthread_mutex_unlock(&l->lock);
    pthread_join(l->thread, NULL);
    const uint64_t written = atomic_load(&l->written);
    if (written > l->delivered.position)
        log_warning("dead letters wait for the next start", "bytes=%" PRIu64,
                    written - l->delivered.position);
    dead_letter_kafka_close(l->kafka);
    dead_letter_reader_close(l->reader);
    pthread_cond_destroy(&l->woken);
    pthread_mutex_destroy(&l->lock);
    free(l);
}
