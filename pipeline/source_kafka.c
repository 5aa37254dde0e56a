// SPDX-License-Identifier: Apache-2.0
//
// The "kafka" source: the consumer. Its configuration is pipeline/kafka_conf.c, its questions
// beside the reading are pipeline/kafka_probe.c.
//
// Every partition of the named topics is assigned by hand, at offsets that come from the caller:
// there is no group, so there is no rebalance, and librdkafka's own notion of a position is never
// used. Each partition has a queue of its own, which keeps partitions independent: one that is not
// read fills up and is fetched no further, while the others go on.
//
// What was measured about librdkafka 2.0.2 to 2.14.2 and Kafka 4.3.1, and shapes this file:
//
//     - A forwarded partition queue is un-forwarded before assign(). librdkafka forwards it to the
//       consumer queue when it starts to fetch, unless the application has chosen already.
//     - consume_batch_queue() with a timeout waits for a full batch. It is called with 0, and the
//       waiting is done on an eventfd. Its edges can be missed, hence no wait is longer than 50 ms.
//     - A message keeps its whole fetch buffer alive. The messages of one read are therefore
//       destroyed by the next one.
//     - Aborted data and control records are never delivered, so the last record of a range is not
//       at stop - 1. A range ends with a record or an end-of-partition at or behind stop.
//     - An unknown topic can be assigned without any error; metadata is asked first.
//     - A batch whose checksum is wrong is skipped by librdkafka after its error, and what follows
//       in the same fetch is delivered. Nothing behind an error is therefore taken.
#include "pipeline/source.h"

#include "pipeline/kafka_probe.h"

#include <assert.h>
#include <dlfcn.h>
#include <errno.h>
#include <inttypes.h>
#include <librdkafka/rdkafka.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

#include "pipeline/kafka_conf.h"

enum {
    BATCH_MAX = 1024,           // messages of one read
    REPLY_TIMEOUT_MS = 10000,   // for the brokers to answer a question at start
    CHECK_TIMEOUT_MS = 2000,    // and while reading: nobody may be held up for long
    SETTINGS_TIMEOUT_MS = 1000, // at start, for what is only a warning
    UNKNOWN_TIMEOUT_MS = 1500,  // until a topic that the brokers do not know is taken to be none
    WAIT_MS = 50,               // an eventfd edge that was missed costs this much
    DESTROY_TIMEOUT_S = 3,
    COMMIT_TIMEOUT_MS = 1000,   // for the last commits at close
    CHECK_INTERVAL_MS = 60000,  // between two looks at the metadata and at silent partitions
    REPORT_INTERVAL_MS = 60000, // between two lines about the same trouble
    STALLS_MAX = 3,             // new clients for one silent partition
    REREADS_MAX = 3,            // of one offset that was damaged on its way
    SEARCH_MS = 15000,          // for the next readable offset; the process is about to stop
    HOLD_MS = 60000,            // an open transaction keeps a partition from being idle
    HOLD_INTERVAL_MS = 1000,    // between two looks at open transactions
    AWAY_INTERVAL_MS = 2000,    // between two questions whether the brokers are back
    AWAY_TIMEOUT_MS = 500,      // for the answer
    TOPIC_NAME_MAX = 249,       // Kafka's limit
};

// What ends a partition. Every other error passes by itself or with the broker's return.
static const struct failure {
    rd_kafka_resp_err_t code;
    int rc;
    const char *what;
} failures[] = {
    {RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET, -ERANGE, "the broker no longer has this offset"},
    {RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE, -ERANGE, "the broker no longer has this offset"},
    {RD_KAFKA_RESP_ERR__BAD_MSG, -EBADMSG, "the records are damaged on the broker"},
    {RD_KAFKA_RESP_ERR_INVALID_MSG, -EBADMSG, "the records are damaged on the broker"},
    {RD_KAFKA_RESP_ERR__BAD_COMPRESSION, -EBADMSG, "the records cannot be decompressed"},
    // A codec that it does not know. It is told again and again, so there is no silence to notice.
    {RD_KAFKA_RESP_ERR__NOT_IMPLEMENTED, -EBADMSG, "this librdkafka cannot decompress the records"},
    {RD_KAFKA_RESP_ERR__UNSUPPORTED_FEATURE, -EBADMSG, "this librdkafka cannot read the records"},
    {RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC, -ENOENT, "the topic does not exist any more"},
    {RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION, -ENOENT, "the partition does not exist any more"},
    {RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART, -ENOENT, "the topic does not exist any more"},
    {RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, -EACCES, "reading the topic is not allowed"},
};

struct partition {
    rd_kafka_queue_t *queue;
    int64_t next, stop;
    bool moved;       // since the last look around something came
    bool behind;      // that look found that something should have come
    int stalls;       // new clients since something came
    bool eof;         // the end of the log is at next
    bool told;        // wait() returned for its sake, and it was not read since
    bool beyond;      // the last look found the log shorter than next
    bool held;        // it was told that a transaction holds it up
    int rereads;      // of next, since something came
    int64_t moved_ms; // when something came last
    int rc;           // why it cannot go on, 0: it can
    char failure[400];
};

struct source_kafka {
    struct source base;    // first: a struct source * is cast to this
    rd_kafka_conf_t *conf; // as every client begins
    rd_kafka_t *client;
    rd_kafka_queue_t *events; // log lines, errors, commit results
    int wake;                 // eventfd: something was added to an empty queue
    bool started;             // the client has its assignment
    bool unanswered;          // no broker has answered since away_ms
    bool restart;             // a new client is needed
    int commits;              // without an answer yet
    int rc;                   // the client is dead, 0: it is not
    char *bootstrap;
    _Atomic int x509_error; // of the last certificate that was refused
    char trouble[256];      // the latest thing librdkafka complained about
    char fatal[400];
    int64_t now_ms;              // of the last call
    int64_t away_ms;             // since when connections fail, 0: they do not
    int64_t report_ms, login_ms; // when the next line about trouble, about a login is due
    int64_t check_ms, hold_ms;   // when the next look around, at transactions is due
    int64_t ask_ms;              // when brokers that are away are asked again
    int64_t below;               // records dropped since the last report
    struct partition *partitions;
    int n_messages;
    rd_kafka_message_t *messages[BATCH_MAX];
    int32_t (*leader_epoch)(const rd_kafka_message_t *m); // NULL: this librdkafka has none
    void (*log)(void *arg, int level, const char *text);
    void *log_arg;
    int64_t keep_ms;
    const char *topics[TOPICS]; // owned copies
};

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

// librdkafka has it from 2.1.0 on, and the one that is loaded may be newer than the one that this
// was built with.
static int32_t (*message_leader_epoch(void))(const rd_kafka_message_t *)
{
    union {
        void *symbol;
        int32_t (*function)(const rd_kafka_message_t *);
    } found = {dlsym(RTLD_DEFAULT, "rd_kafka_message_leader_epoch")};
    return found.function;
}

static struct source_kafka *of(struct source *s)
{
    return (struct source_kafka *)s;
}

__attribute__((format(printf, 3, 4))) static int fail(struct source_kafka *k, int rc,
                                                      const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(k->base.error, sizeof k->base.error, format, args);
    va_end(args);
    return rc;
}

__attribute__((format(printf, 3, 4))) static void say(struct source_kafka *k, int level,
                                                      const char *format, ...)
{
    char text[512];
    va_list args;

    if (!k->log)
        return;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    k->log(k->log_arg, level, text);
}

// Trouble that passes is told once a minute: an outage gives an error for each attempt to connect.
// A login that is refused is a line of its own, or it would be lost behind the broken connection
// that precedes it.
static void report(struct source_kafka *k, rd_kafka_resp_err_t code, const char *what)
{
    const int64_t now = now_ms();
    int64_t *due = code == RD_KAFKA_RESP_ERR__AUTHENTICATION || code == RD_KAFKA_RESP_ERR__SSL
                       ? &k->login_ms
                       : &k->report_ms;
    if (now < *due)
        return;
    *due = now + REPORT_INTERVAL_MS;
    say(k, LOG_WARNING, "kafka: %s (told once a minute)", what);
}

// ---- callbacks: all run in the ingest thread, from rd_kafka_consumer_poll ----

static void log_line(const rd_kafka_t *client, int level, const char *facility, const char *text)
{
    struct source_kafka *k = rd_kafka_opaque(client);
    say(k, level, "librdkafka: %s: %s", facility, text);
    // The only word about partitions that were added: look around now, not within a minute.
    if (!strcmp(facility, "PARTCNT"))
        k->check_ms = 0;
}

// For every error librdkafka has the same advice, to look at ssl.ca.location. OpenSSL's numbers
// (X509_V_ERR_*) say what it really is.
static const char *certificate_words(int x509_error)
{
    static const struct {
        int code;
        const char *words;
    } errors[] = {
        {9, "is not valid yet"},
        {10, "has expired"},
        {18, "is signed by itself, and ssl.ca.location does not have it"},
        {19, "is of an authority that ssl.ca.location does not have"},
        {20, "is of an authority that ssl.ca.location does not have"},
        {23, "was revoked"},
        {62, "is for another host"},
    };
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].code == x509_error)
            return errors[i].words;
    return NULL;
}

// Runs in a thread of librdkafka's. It decides nothing, it takes note.
static int certificate_event(rd_kafka_t *client, const char *broker, int32_t id, int *x509_error,
                             int depth, const char *bytes, size_t size, char *why, size_t why_size,
                             void *opaque)
{
    struct source_kafka *k = opaque;
    const char *words = certificate_words(*x509_error);
    (void)client, (void)broker, (void)id, (void)depth, (void)bytes, (void)size;

    if (!*x509_error)
        return 1;
    atomic_store(&k->x509_error, *x509_error);
    snprintf(why, why_size, "the certificate %s", words ? words : "cannot be verified");
    return 0;
}

static void error_event(rd_kafka_t *client, int code, const char *reason, void *opaque)
{
    struct source_kafka *k = opaque;
    const char *words = certificate_words(atomic_load(&k->x509_error));
    char text[256];
    (void)client;

    if (words && strstr(reason, "certificate verify failed")) {
        snprintf(text, sizeof text, "the broker's certificate %s: %s", words, reason);
        reason = text;
    }
    // "All brokers are down" follows the error that says why and must not replace it.
    if (code != RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN || !k->trouble[0])
        snprintf(k->trouble, sizeof k->trouble, "%s", reason);
    // Any of them may be the last that was there; a question will tell. "All brokers are down" does
    // not come when one was never connected to, as the group's coordinator may not have been.
    if (!k->away_ms)
        k->away_ms = now_ms();
    if (k->started)
        report(k, code, reason);
}

static void commit_event(rd_kafka_t *client, rd_kafka_resp_err_t code,
                         rd_kafka_topic_partition_list_t *offsets, void *opaque)
{
    struct source_kafka *k = opaque;
    (void)client, (void)offsets;

    k->commits--;
    // Lag tools will show too much; the checkpoint is what counts.
    if (code)
        say(k, LOG_WARNING, "kafka: committing offsets failed: %s", rd_kafka_err2str(code));
}

// ---- one partition ----

static bool partition_done(const struct partition *p)
{
    return p->stop != SOURCE_UNBOUNDED && p->next >= p->stop;
}

// Moves up to offset, but not beyond the range: where a bounded run ends must not depend on how far
// the log had grown by then.
static void partition_advance(struct partition *p, int64_t offset)
{
    if (p->stop != SOURCE_UNBOUNDED && offset > p->stop)
        offset = p->stop;
    if (offset > p->next)
        p->next = offset;
    // What is fetched beyond the range wakes nobody.
    if (partition_done(p) && p->queue)
        rd_kafka_queue_io_event_enable(p->queue, -1, NULL, 0);
}

static const struct failure *failure_find(rd_kafka_resp_err_t code)
{
    for (size_t i = 0; i < sizeof failures / sizeof *failures; i++)
        if (failures[i].code == code)
            return &failures[i];
    return NULL;
}

// Ends a partition; hint goes to the end of the sentence.
static void partition_fail(struct source_kafka *k, int index, const struct failure *f,
                           const char *detail, const char *hint)
{
    struct partition *p = &k->partitions[index];
    const struct source_partition *at = &k->base.partitions[index];
    char range[96] = "";
    int64_t lo = -1, hi = -1;

    if (p->rc)
        return;
    p->rc = f->rc;
    if (f->rc == -ERANGE && !rd_kafka_query_watermark_offsets(k->client, at->name, at->partition,
                                                              &lo, &hi, CHECK_TIMEOUT_MS))
        snprintf(range, sizeof range, "; it has %" PRId64 " up to %" PRId64, lo, hi);
    snprintf(p->failure, sizeof p->failure,
             "topic %s partition %" PRId32 " offset %" PRId64 ": %s%s (%.150s)%s", at->name,
             at->partition, p->next, f->what, range, detail, hint);
}

// Where a partition that cannot be read at its position could go on, and the words for it. -1: not
// known. hi: where its log ends.
static int64_t partition_search(struct source_kafka *k, int index, int64_t *hi, char *hint,
                                size_t size)
{
    const struct source_partition *at = &k->base.partitions[index];
    const int64_t next = k->partitions[index].next;
    int64_t lo = -1, found = -1;

    *hi = -1;
    *hint = '\0';
    if (!rd_kafka_query_watermark_offsets(k->client, at->name, at->partition, &lo, hi,
                                          CHECK_TIMEOUT_MS))
        found = kafka_probe_readable(k->conf, at->name, at->partition, next, *hi, SEARCH_MS);
    if (found > next)
        snprintf(hint, size, "; %s %" PRId64,
                 found < *hi ? "the next readable record is at offset"
                             : "no readable record follows, the log ends at",
                 found);
    return found;
}

// What cannot be read may have been damaged on its way: then it is read again. Otherwise the
// partition ends, and the sentence says where it could go on.
static void partition_unreadable(struct source_kafka *k, int index, const struct failure *f,
                                 const char *detail)
{
    struct partition *p = &k->partitions[index];
    const struct source_partition *at = &k->base.partitions[index];
    char hint[96];
    int64_t hi;

    if (p->rc)
        return;
    const int64_t found = partition_search(k, index, &hi, hint, sizeof hint);
    // -1: the network that damaged it may just have given no answer.
    if (found <= p->next && p->rereads++ < REREADS_MAX) {
        say(k, LOG_WARNING,
            "kafka: topic %s partition %" PRId32 " offset %" PRId64 ": %s: read again (%s)",
            at->name, at->partition, p->next,
            found < 0 ? "damaged, on the way or on the broker"
                      : "damaged on the way, not on the broker",
            detail);
        k->restart = true;
        return;
    }
    partition_fail(k, index, f, detail, hint);
}

// ---- the client ----

static void client_release_messages(struct source_kafka *k)
{
    for (int i = 0; i < k->n_messages; i++)
        rd_kafka_message_destroy(k->messages[i]);
    k->n_messages = 0;
}

static void *client_destroy(void *client)
{
    // There is no group to leave, and a consumer close would wait for brokers that may be away.
    rd_kafka_destroy_flags(client, RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
    return NULL;
}

// Before librdkafka 2.6.1 the destruction of a client never returns if one of its topics was
// deleted. Such a client is left behind: its threads idle, and it refers to nothing of ours that
// they would touch.
static void client_destroy_in_time(struct source_kafka *k)
{
    struct timespec end;
    pthread_t thread;

    if (pthread_create(&thread, NULL, client_destroy, k->client) != 0) {
        client_destroy(k->client);
        return;
    }
    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += DESTROY_TIMEOUT_S;
    if (pthread_timedjoin_np(thread, NULL, &end) != 0) {
        pthread_detach(thread);
        say(k, LOG_WARNING, "kafka: librdkafka did not end within %d s and is left behind",
            DESTROY_TIMEOUT_S);
    }
}

static void client_close(struct source_kafka *k)
{
    if (!k->client)
        return;
    client_release_messages(k);
    for (const int64_t end = now_ms() + COMMIT_TIMEOUT_MS; k->commits > 0 && now_ms() < end;) {
        rd_kafka_message_t *m = rd_kafka_consumer_poll(k->client, WAIT_MS);
        if (m)
            rd_kafka_message_destroy(m);
    }
    for (int i = 0; i < k->base.n_partitions; i++)
        if (k->partitions && k->partitions[i].queue) {
            rd_kafka_queue_io_event_enable(k->partitions[i].queue, -1, NULL, 0);
            rd_kafka_queue_destroy(k->partitions[i].queue);
            k->partitions[i].queue = NULL;
        }
    if (k->events) {
        rd_kafka_queue_io_event_enable(k->events, -1, NULL, 0);
        rd_kafka_queue_destroy(k->events);
        k->events = NULL;
    }
    client_destroy_in_time(k);
    k->client = NULL;
    k->commits = 0;
    k->started = false;
}

static int client_open(struct source_kafka *k)
{
    char why[256] = "";
    rd_kafka_conf_t *conf = rd_kafka_conf_dup(k->conf);

    rd_kafka_conf_set_ssl_cert_verify_cb(conf, certificate_event);
    k->client = rd_kafka_new(RD_KAFKA_CONSUMER, conf, why, sizeof why);
    if (!k->client) {
        rd_kafka_conf_destroy(conf);
        return fail(k, -EINVAL, "librdkafka refuses the configuration: %s", why);
    }
    rd_kafka_poll_set_consumer(k->client);
    k->events = rd_kafka_queue_get_consumer(k->client);
    rd_kafka_set_log_queue(k->client, k->events);
    rd_kafka_queue_io_event_enable(k->events, k->wake, &(uint64_t){1}, sizeof(uint64_t));
    return 0;
}

// Runs the callbacks. Errors that name a partition end it; others pass and are only told.
static void client_serve(struct source_kafka *k)
{
    rd_kafka_message_t *m;

    while ((m = rd_kafka_consumer_poll(k->client, 0))) {
        const struct failure *f = failure_find(m->err);
        if (!m->err || m->err == RD_KAFKA_RESP_ERR__PARTITION_EOF) {
            // Belongs to a partition's own queue. Reading on there would skip it.
            k->restart = true;
        } else if (m->err == RD_KAFKA_RESP_ERR__FATAL) {
            // A consumer gets it as a message, not by the error callback.
            char why[256] = "";
            rd_kafka_fatal_error(k->client, why, sizeof why);
            k->rc = -EIO;
            snprintf(k->fatal, sizeof k->fatal, "librdkafka gave up: %s", why);
        } else if (f && m->rkt) {
            const char *topic = rd_kafka_topic_name(m->rkt);
            for (int i = 0; i < k->base.n_partitions; i++)
                if (!strcmp(k->base.partitions[i].name, topic) &&
                    (m->partition == RD_KAFKA_PARTITION_UA ||
                     m->partition == k->base.partitions[i].partition))
                    partition_fail(k, i, f, rd_kafka_message_errstr(m), "");
        } else {
            report(k, m->err, rd_kafka_message_errstr(m));
        }
        rd_kafka_message_destroy(m);
    }
}

// After a question got no answer: which brokers, and what librdkafka found wrong with them.
static int client_unreachable(struct source_kafka *k, const char *asked, rd_kafka_resp_err_t code)
{
    client_serve(k);
    return fail(k, -EHOSTUNREACH, "%s: no answer from %s: %s%s%s", asked, k->bootstrap,
                rd_kafka_err2str(code), k->trouble[0] ? ": " : "", k->trouble);
}

// Whether the answer will be another in a moment: a broker has just come back, or a partition has
// just got its leader.
static bool is_passing(rd_kafka_resp_err_t code)
{
    return code == RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE ||
           code == RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION;
}

// How many partitions a topic has. 0 or less: -errno.
static int client_count_partitions(struct source_kafka *k, const char *topic, int timeout_ms)
{
    static const struct {
        rd_kafka_resp_err_t code;
        int rc;
        const char *what;
    } answers[] = {
        {RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART, -ENOENT, "does not exist"},
        {RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, -EACCES, "may not be read by this user"},
        {RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION, -EINVAL, "is not a name that Kafka allows"},
    };
    const struct rd_kafka_metadata *metadata = NULL;
    const int64_t end = now_ms() + timeout_ms;
    rd_kafka_topic_t *handle = rd_kafka_topic_new(k->client, topic, NULL);
    char asked[320];
    int rc;

    if (!handle)
        return fail(k, -EINVAL, "topic %s: %s", topic, rd_kafka_err2str(rd_kafka_last_error()));
    snprintf(asked, sizeof asked, "topic %s", topic);
    for (;;) {
        const int64_t left = end - now_ms();
        rd_kafka_resp_err_t code =
            rd_kafka_metadata(k->client, 0, handle, &metadata, left > 1 ? (int)left : 1);
        if (code) {
            rc = client_unreachable(k, asked, code);
            break;
        }
        assert(metadata->topic_cnt == 1);
        const struct rd_kafka_metadata_topic *t = &metadata->topics[0];
        rc = t->partition_cnt;
        code = t->err;
        if (code)
            rc = fail(k, -EIO, "topic %s: %s", topic, rd_kafka_err2str(code));
        else if (rc == 0)
            rc = fail(k, -ENOENT, "topic %s has no partitions", topic);
        for (size_t i = 0; i < sizeof answers / sizeof *answers; i++)
            if (answers[i].code == code)
                rc = fail(k, answers[i].rc, "topic %s %s (brokers %s)", topic, answers[i].what,
                          k->bootstrap);
        rd_kafka_metadata_destroy(metadata);
        // A topic that was just created, or a broker that just came back: that may even know of
        // none of its topics for a moment.
        const bool unknown = code == RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART &&
                             now_ms() < end - timeout_ms + UNKNOWN_TIMEOUT_MS;
        if (!(is_passing(code) || unknown) || now_ms() + WAIT_MS >= end)
            break;
        poll(NULL, 0, WAIT_MS);
    }
    rd_kafka_topic_destroy(handle);
    return rc;
}

// The first and the end offset of every partition. With read_committed the end is where the first
// open transaction begins, so that a bounded run does not wait for a producer that is gone.
static int client_watermarks(struct source_kafka *k, int64_t *first, int64_t *end)
{
    for (int i = 0; i < k->base.n_partitions; i++) {
        const struct source_partition *at = &k->base.partitions[i];
        const int64_t until = now_ms() + REPLY_TIMEOUT_MS;
        int64_t lo = -1, hi = -1; // stay as they are when the query fails
        rd_kafka_resp_err_t code;
        while (is_passing(code = rd_kafka_query_watermark_offsets(
                              k->client, at->name, at->partition, &lo, &hi, REPLY_TIMEOUT_MS)) &&
               now_ms() + WAIT_MS < until)
            poll(NULL, 0, WAIT_MS);
        if (code) {
            char asked[320];
            snprintf(asked, sizeof asked, "offsets of topic %s partition %" PRId32, at->name,
                     at->partition);
            return client_unreachable(k, asked, code);
        }
        first[i] = lo;
        end[i] = hi;
    }
    return 0;
}

// Starts to fetch every partition at its position.
static int client_assign(struct source_kafka *k)
{
    const int n = k->base.n_partitions;
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(n);
    const int64_t now = now_ms();
    rd_kafka_resp_err_t code;

    for (int i = 0; i < n; i++) {
        const struct source_partition *at = &k->base.partitions[i];
        struct partition *p = &k->partitions[i];
        p->eof = p->behind = p->beyond = p->held = false;
        p->moved_ms = now;
        if (p->rc || partition_done(p))
            continue;
        p->queue = rd_kafka_queue_get_partition(k->client, at->name, at->partition);
        if (!p->queue) {
            rd_kafka_topic_partition_list_destroy(list);
            return fail(k, -ENOENT, "topic %s partition %" PRId32 ": librdkafka has no queue",
                        at->name, at->partition);
        }
        rd_kafka_queue_forward(p->queue, NULL);
        rd_kafka_queue_io_event_enable(p->queue, k->wake, &(uint64_t){1}, sizeof(uint64_t));
        rd_kafka_topic_partition_list_add(list, at->name, at->partition)->offset = p->next;
    }
    code = rd_kafka_assign(k->client, list);
    rd_kafka_topic_partition_list_destroy(list);
    if (code)
        return fail(k, -EIO, "assigning the partitions failed: %s", rd_kafka_err2str(code));
    k->started = true;
    k->restart = false;
    k->check_ms = now + CHECK_INTERVAL_MS;
    return 0;
}

// A new client at the same positions: nothing that the old one had queued can come through.
static int client_restart(struct source_kafka *k)
{
    client_close(k);
    int rc = client_open(k);
    if (rc == 0)
        rc = client_assign(k);
    if (rc < 0) {
        k->rc = rc;
        snprintf(k->fatal, sizeof k->fatal, "%.*s", (int)sizeof k->fatal - 1, k->base.error);
    }
    return rc;
}

// librdkafka says nothing about partitions that were added, and not always something about a topic
// that was removed.
static int client_check_topics(struct source_kafka *k)
{
    for (enum topic t = 0; t < TOPICS; t++) {
        int n = 0;
        bool unbounded = false;
        for (int i = 0; i < k->base.n_partitions; i++)
            if (k->base.partitions[i].topic == t) {
                n++;
                unbounded |= k->partitions[i].stop == SOURCE_UNBOUNDED;
            }
        if (!unbounded)
            continue;
        const int found = client_count_partitions(k, k->topics[t], CHECK_TIMEOUT_MS);
        if (found == -EHOSTUNREACH)
            return 0;
        if (found == -ENOENT || found == -EACCES)
            return found;
        if (found > 0 && found != n)
            return fail(k, -ESTALE,
                        "topic %s has %d partitions now, it had %d when reading began: a new "
                        "state.dir and a replay read them all",
                        k->topics[t], found, n);
    }
    return 0;
}

// A partition that is silent although its log goes on gets a new client, three times. Seen with
// batches that do not parse (no error at all comes up) and after a broker had stalled. One whose
// log is shorter than what was read of it ends: there are records in the state that the log lost.
static void client_check_silence(struct source_kafka *k)
{
    static const struct failure stalled = {0, -EIO, "no records arrive although there are some"};
    static const struct failure silent = {0, -EBADMSG, "the records cannot be read"};
    static const struct failure cut = {0, -ERANGE, "the log ends before it"};

    for (int i = 0; i < k->base.n_partitions; i++) {
        const struct source_partition *at = &k->base.partitions[i];
        struct partition *p = &k->partitions[i];
        const bool waiting =
            !p->rc && !partition_done(p) && !p->moved && rd_kafka_queue_length(p->queue) == 0;
        const bool was_behind = p->behind, was_beyond = p->beyond;
        int64_t lo = -1, hi = -1;
        char hint[96];

        p->moved = p->behind = p->beyond = false;
        if (!waiting)
            continue;
        // No answer: an outage, which is no reason for anything, and others would take as long.
        if (rd_kafka_query_watermark_offsets(k->client, at->name, at->partition, &lo, &hi,
                                             CHECK_TIMEOUT_MS))
            return;
        // What has just arrived may be on its way, and a new leader may not know the end yet: so
        // it takes two looks.
        p->behind = hi > p->next;
        p->beyond = hi < p->next;
        if (p->beyond && was_beyond)
            partition_fail(k, i, &cut, "was the topic truncated or created anew?", "");
        if (!p->behind || !was_behind)
            continue;
        // One new client did not help: perhaps these records never come, but later ones would.
        if (p->stalls == 1) {
            const int64_t found = partition_search(k, i, &hi, hint, sizeof hint);
            if (found > p->next && found < hi) {
                partition_fail(k, i, &silent, "nothing comes of them, not even an error", hint);
                continue;
            }
        }
        if (p->stalls++ == STALLS_MAX) {
            partition_fail(k, i, &stalled, "a new client did not help", "");
            continue;
        }
        say(k, LOG_WARNING,
            "kafka: topic %s partition %" PRId32 ": nothing after offset %" PRId64
            " for a minute, the log ends at %" PRId64 ": new client",
            at->name, at->partition, p->next, hi);
        k->restart = true;
    }
}

// The end of the log as the fetches brought it along, transactions that are open included.
static int64_t client_end(const struct source_kafka *k, int index)
{
    const struct source_partition *at = &k->base.partitions[index];
    int64_t lo = -1, hi = -1;
    if (!k->client || rd_kafka_get_watermark_offsets(k->client, at->name, at->partition, &lo, &hi))
        return -1;
    return hi;
}

// An end was seen, and behind it is more: that waits for the end of a transaction.
static int64_t client_held(const struct source_kafka *k, int index)
{
    const struct partition *p = &k->partitions[index];
    if (!p->eof || p->rc || !p->queue || rd_kafka_queue_length(p->queue) > 0)
        return 0;
    const int64_t end = client_end(k, index);
    return end > p->next ? end - p->next : 0;
}

// Who has forgotten to end a transaction holds up every reader of the partition.
static void client_check_held(struct source_kafka *k)
{
    for (int i = 0; i < k->base.n_partitions; i++) {
        const struct source_partition *at = &k->base.partitions[i];
        struct partition *p = &k->partitions[i];
        if (p->held || k->now_ms - p->moved_ms < HOLD_MS)
            continue;
        const int64_t held = client_held(k, i);
        p->held = held > 0;
        if (p->held)
            say(k, LOG_WARNING,
                "kafka: topic %s partition %" PRId32 ": %" PRId64 " records from offset %" PRId64
                " on wait for a transaction that has been open for a minute",
                at->name, at->partition, held, p->next);
    }
}

// While connections fail: whether a broker answers all the same. Records are no sign of it, they
// may have been fetched before.
static void client_check_away(struct source_kafka *k)
{
    const struct rd_kafka_metadata *metadata;
    if (rd_kafka_metadata(k->client, 0, NULL, &metadata, AWAY_TIMEOUT_MS)) {
        k->unanswered = true;
        return;
    }
    rd_kafka_metadata_destroy(metadata);
    if (k->unanswered)
        say(k, LOG_NOTICE, "kafka: the brokers answer again, after %.1f s",
            (double)(now_ms() - k->away_ms) / 1000);
    k->away_ms = 0;
    k->unanswered = false;
}

// What every call does first: callbacks, and once a minute a look around.
static int client_tend(struct source_kafka *k)
{
    const int64_t now = now_ms();
    int rc = 0;

    k->now_ms = now;
    if (k->rc == 0) {
        assert(k->started);
        client_serve(k);
    }
    if (k->rc < 0)
        return fail(k, k->rc, "%s", k->fatal);
    if (k->away_ms && now >= k->ask_ms) {
        k->ask_ms = now + AWAY_INTERVAL_MS;
        client_check_away(k);
    }
    if (now >= k->hold_ms) {
        k->hold_ms = now + HOLD_INTERVAL_MS;
        client_check_held(k);
    }
    if (now >= k->check_ms) {
        k->check_ms = now + CHECK_INTERVAL_MS;
        rc = client_check_topics(k);
        if (rc < 0)
            return rc;
        client_check_silence(k);
        if (k->below > 0)
            say(k, LOG_WARNING, "kafka: %" PRId64 " records below their position were dropped",
                k->below);
        k->below = 0;
    }
    return k->restart ? client_restart(k) : 0;
}

// ---- the operations of a source ----

static int kafka_bounds(struct source *s, int64_t *first, int64_t *end)
{
    struct source_kafka *k = of(s);
    int i = 0;

    for (enum topic t = 0; t < TOPICS; t++) {
        if (!k->topics[t])
            continue;
        const int found = client_count_partitions(k, k->topics[t], REPLY_TIMEOUT_MS);
        if (found < 0)
            return found;
        int n = 0;
        for (; i < s->n_partitions && s->partitions[i].topic == t; i++)
            n++;
        if (found != n)
            return fail(k, -ESTALE, "topic %s has %d partitions now, it had %d at start",
                        k->topics[t], found, n);
    }
    return client_watermarks(k, first, end);
}

static int kafka_offsets_for_time(struct source *s, int64_t ts_ms, int64_t *offsets)
{
    struct source_kafka *k = of(s);
    const int n = s->n_partitions;
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(n);
    int64_t *first = calloc((size_t)n * 2, sizeof *first);
    rd_kafka_resp_err_t code;
    int rc = first ? 0 : fail(k, -ENOMEM, "out of memory");

    if (rc < 0)
        goto out;
    // The ends first: a record that arrives in between is then found by its time, or is behind the
    // end; after the lookup it could be jumped over.
    int64_t *const end = first + n;
    rc = client_watermarks(k, first, end);
    if (rc < 0)
        goto out;
    for (int i = 0; i < n; i++)
        rd_kafka_topic_partition_list_add(list, s->partitions[i].name, s->partitions[i].partition)
            ->offset = ts_ms;
    code = rd_kafka_offsets_for_times(k->client, list, REPLY_TIMEOUT_MS);
    if (code) {
        rc = client_unreachable(k, "offsets by time", code);
        goto out;
    }
    for (int i = 0; i < n; i++) {
        const struct source_partition *at = &s->partitions[i];
        const rd_kafka_topic_partition_t *answer =
            rd_kafka_topic_partition_list_find(list, at->name, at->partition);
        if (answer->err) {
            rc = fail(k, -EIO, "offsets by time of topic %s partition %" PRId32 ": %s", at->name,
                      at->partition, rd_kafka_err2str(answer->err));
            goto out;
        }
        // RD_KAFKA_OFFSET_END: no record is that late.
        offsets[i] = answer->offset >= 0 ? answer->offset : end[i];
    }
out:
    rd_kafka_topic_partition_list_destroy(list);
    free(first);
    return rc;
}

static int kafka_start(struct source *s, const int64_t *next, const int64_t *stop)
{
    struct source_kafka *k = of(s);
    const int n = s->n_partitions;
    int64_t *first = calloc((size_t)n * 2, sizeof *first);
    int rc = first ? 0 : fail(k, -ENOMEM, "out of memory");

    if (rc == 0 && k->rc < 0)
        rc = fail(k, k->rc, "%s", k->fatal);
    if (rc < 0)
        goto out;
    int64_t *const end = first + n;
    rc = client_watermarks(k, first, end);
    for (int i = 0; i < n && rc == 0; i++) {
        const struct source_partition *at = &s->partitions[i];
        const int64_t from = next[i] == SOURCE_BEGIN ? first[i] : next[i];
        assert(from >= 0 && (stop[i] == SOURCE_UNBOUNDED || stop[i] >= 0));
        if (from < first[i])
            rc = fail(k, -ERANGE,
                      "topic %s partition %" PRId32 ": offset %" PRId64
                      " was deleted by retention, the log is %" PRId64 " up to %" PRId64,
                      at->name, at->partition, from, first[i], end[i]);
        if (from > end[i])
            rc = fail(k, -ERANGE,
                      "topic %s partition %" PRId32 ": offset %" PRId64
                      " is beyond the log, which is %" PRId64 " up to %" PRId64
                      ": was the topic truncated or created anew?",
                      at->name, at->partition, from, first[i], end[i]);
    }
    if (rc == 0) {
        const bool again = k->started;
        if (again)
            client_close(k); // before its queues are forgotten
        for (int i = 0; i < n; i++)
            k->partitions[i] = (struct partition){
                .next = next[i] == SOURCE_BEGIN ? first[i] : next[i],
                .stop = stop[i],
            };
        rc = again ? client_restart(k) : client_assign(k);
    }
out:
    free(first);
    return rc;
}

static void partition_moved(struct source_kafka *k, struct partition *p, int64_t next)
{
    partition_advance(p, next);
    p->moved = true;
    p->held = false;
    p->stalls = p->rereads = 0;
    p->moved_ms = k->now_ms;
}

// What is no record: an error, or the end of the log.
static void partition_event(struct source_kafka *k, int index, const rd_kafka_message_t *m)
{
    struct partition *p = &k->partitions[index];
    const struct failure *f = failure_find(m->err);

    if (m->err == RD_KAFKA_RESP_ERR__PARTITION_EOF) {
        partition_moved(k, p, m->offset);
        p->eof = m->offset >= p->next;
    } else if (f && f->rc == -EBADMSG) {
        partition_unreadable(k, index, f, rd_kafka_message_errstr(m));
    } else if (f) {
        partition_fail(k, index, f, rd_kafka_message_errstr(m), "");
    } else {
        report(k, m->err, rd_kafka_message_errstr(m));
    }
}

static int kafka_read(struct source *s, int index, int max, struct record *records)
{
    struct source_kafka *k = of(s);
    struct partition *p = &k->partitions[index];
    int n = 0, rc;

    assert(index >= 0 && index < s->n_partitions && max > 0);
    client_release_messages(k);
    p->told = false;
    rc = client_tend(k);
    if (rc < 0)
        return rc;
    if (p->rc == 0 && !partition_done(p)) {
        const ssize_t got = rd_kafka_consume_batch_queue(
            p->queue, 0, k->messages, (size_t)(max < BATCH_MAX ? max : BATCH_MAX));
        k->n_messages = got < 0 ? 0 : (int)got;
    }
    for (int i = 0; i < k->n_messages && p->rc == 0 && !k->restart && !partition_done(p); i++) {
        const rd_kafka_message_t *m = k->messages[i];
        if (m->err) {
            partition_event(k, index, m);
        } else if (m->offset < p->next) {
            k->below++;
        } else if (p->stop == SOURCE_UNBOUNDED || m->offset < p->stop) {
            rd_kafka_timestamp_type_t kind;
            const int64_t ts = rd_kafka_message_timestamp(m, &kind);
            records[n++] = (struct record){
                .offset = m->offset,
                .broker_ts_ms = kind == RD_KAFKA_TIMESTAMP_NOT_AVAILABLE ? -1 : ts,
                .leader_epoch = k->leader_epoch ? k->leader_epoch(m) : -1,
                .key = m->key,
                .value = m->payload,
                .key_size = m->key_len,
                .value_size = m->len,
                .tombstone = !m->payload,
                .handle = m,
            };
            p->eof = false;
            partition_moved(k, p, m->offset + 1);
        } else {
            partition_advance(p, p->stop);
        }
    }
    // What came before the error is delivered first.
    return n > 0 || p->rc == 0 ? n : fail(k, p->rc, "%s", p->failure);
}

static void kafka_headers(struct source *s, const struct record *record,
                          struct record_headers *headers)
{
    rd_kafka_headers_t *list;
    size_t bytes = 0;
    (void)s;

    headers->n = headers->left_out = 0;
    if (rd_kafka_message_headers(record->handle, &list))
        return;
    const int n = (int)rd_kafka_header_cnt(list);
    for (int i = 0; i < n; i++) {
        struct record_header h = {0};
        const void *value = NULL;
        if (rd_kafka_header_get_all(list, (size_t)i, &h.name, &value, &h.value_size))
            break;
        h.value = value;
        h.name_size = strlen(h.name);
        bytes += h.name_size + h.value_size;
        if (headers->n == RECORD_HEADERS_MAX || bytes > RECORD_HEADER_BYTES_MAX) {
            headers->left_out = n - i;
            return;
        }
        headers->list[headers->n++] = h;
    }
}

static int64_t kafka_position(const struct source *s, int index)
{
    return ((const struct source_kafka *)s)->partitions[index].next;
}

static bool kafka_at_end(const struct source *s, int index)
{
    const struct source_kafka *k = (const struct source_kafka *)s;
    const struct partition *p = &k->partitions[index];
    if (p->stop != SOURCE_UNBOUNDED)
        return partition_done(p);
    if (!p->eof || p->rc || rd_kafka_queue_length(p->queue) > 0)
        return false;
    // What waits for a transaction is coming, but nobody waits for ever.
    return k->now_ms - p->moved_ms >= HOLD_MS || client_held(k, index) == 0;
}

static int64_t kafka_end(const struct source *s, int index)
{
    return client_end((const struct source_kafka *)s, index);
}

static int64_t kafka_held(const struct source *s, int index)
{
    return client_held((const struct source_kafka *)s, index);
}

static int64_t kafka_away_ms(const struct source *s)
{
    const struct source_kafka *k = (const struct source_kafka *)s;
    return k->unanswered && k->now_ms > k->away_ms ? k->now_ms - k->away_ms : 0;
}

static int kafka_wait(struct source *s, int timeout_ms)
{
    struct source_kafka *k = of(s);
    const int64_t end = now_ms() + timeout_ms;

    for (;;) {
        uint64_t edges;
        // Cleared before the queues are looked at: what comes later sets it again.
        if (read(k->wake, &edges, sizeof edges) < 0 && errno != EAGAIN && errno != EINTR)
            return fail(k, -errno, "reading the eventfd failed: %s", strerror(errno));
        const int rc = client_tend(k);
        if (rc < 0)
            return rc;
        // A partition that the caller holds back ends one wait, not every one from then on.
        bool ready = false;
        for (int i = 0; i < s->n_partitions; i++) {
            struct partition *p = &k->partitions[i];
            if (!p->told && (p->rc || (!partition_done(p) && rd_kafka_queue_length(p->queue) > 0)))
                ready = p->told = true;
        }
        if (ready)
            return 0;
        const int64_t left = end - now_ms();
        if (left <= 0)
            return 0;
        // A signal ends the wait: the caller may want to stop.
        if (poll(&(struct pollfd){.fd = k->wake, .events = POLLIN}, 1,
                 left < WAIT_MS ? (int)left : WAIT_MS) < 0)
            return errno == EINTR ? 0 : fail(k, -errno, "poll failed: %s", strerror(errno));
    }
}

static void kafka_commit(struct source *s, const int64_t *next, uint64_t checkpoint)
{
    struct source_kafka *k = of(s);
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(s->n_partitions);
    char mark[32];
    rd_kafka_resp_err_t code;

    if (!k->client)
        return;
    const int size = snprintf(mark, sizeof mark, "ckpt=%" PRIu64, checkpoint);
    for (int i = 0; i < s->n_partitions; i++) {
        if (next[i] < 0)
            continue;
        rd_kafka_topic_partition_t *to = rd_kafka_topic_partition_list_add(
            list, s->partitions[i].name, s->partitions[i].partition);
        to->offset = next[i];
        to->metadata = strdup(mark); // the list frees it
        to->metadata_size = to->metadata ? (size_t)size : 0;
    }
    code = rd_kafka_commit(k->client, list, 1);
    if (code)
        say(k, LOG_WARNING, "kafka: committing offsets failed: %s", rd_kafka_err2str(code));
    else
        k->commits++;
    rd_kafka_topic_partition_list_destroy(list);
}

static void kafka_close(struct source *s)
{
    struct source_kafka *k = of(s);

    client_close(k);
    if (k->conf)
        rd_kafka_conf_destroy(k->conf);
    if (k->wake >= 0)
        close(k->wake);
    for (enum topic t = 0; t < TOPICS; t++)
        free((char *)k->topics[t]);
    free(k->bootstrap);
    free(k->partitions);
    free(s->partitions);
    free(k);
}

static const struct source_ops kafka_ops = {
    .name = "kafka",
    .keyed = true,
    .bounds = kafka_bounds,
    .offsets_for_time = kafka_offsets_for_time,
    .start = kafka_start,
    .read = kafka_read,
    .headers = kafka_headers,
    .position = kafka_position,
    .at_end = kafka_at_end,
    .end = kafka_end,
    .held = kafka_held,
    .away_ms = kafka_away_ms,
    .wait = kafka_wait,
    .commit = kafka_commit,
    .close = kafka_close,
};

// ---- configuration ----

static int conf_build(struct source_kafka *k, const struct source_kafka_options *options)
{
    const int rc = kafka_conf_build(
        &k->conf,
        &(struct kafka_conf_options){.use = options->replay ? KAFKA_READS_OLD : KAFKA_READS_LIVE,
                                     .bootstrap = options->bootstrap,
                                     .n_properties = options->n_properties,
                                     .properties = options->properties,
                                     .log = k->log,
                                     .log_arg = k->log_arg},
        k->base.error, sizeof k->base.error);
    if (rc < 0)
        return rc;
    rd_kafka_conf_set_opaque(k->conf, k);
    rd_kafka_conf_set_log_cb(k->conf, k->log ? log_line : NULL);
    rd_kafka_conf_set_error_cb(k->conf, error_event);
    rd_kafka_conf_set_offset_commit_cb(k->conf, commit_event);
    return 0;
}

static int partitions_list(struct source_kafka *k)
{
    int count[TOPICS] = {0}, n = 0;
    struct source_partition *to;

    for (enum topic t = 0; t < TOPICS; t++) {
        if (!k->topics[t])
            continue;
        count[t] = client_count_partitions(k, k->topics[t], REPLY_TIMEOUT_MS);
        if (count[t] < 0)
            return count[t];
        n += count[t];
    }
    k->partitions = calloc((size_t)n, sizeof *k->partitions);
    k->base.partitions = to = calloc((size_t)n, sizeof *k->base.partitions);
    if (!k->partitions || !to)
        return fail(k, -ENOMEM, "out of memory");
    // In the order that the interface promises: by topic, one name each, then by partition.
    for (enum topic t = 0; t < TOPICS; t++)
        for (int i = 0; i < count[t]; i++, to++) {
            to->topic = t;
            to->partition = i;
            snprintf(to->name, sizeof to->name, "%s", k->topics[t]);
        }
    k->base.n_partitions = n;
    return 0;
}

static int topics_take(struct source_kafka *k, const struct source_kafka_options *options)
{
    int n = 0;
    for (enum topic t = 0; t < TOPICS; t++) {
        const char *name = options->topics[t];
        if (!name)
            continue;
        if (!*name || strlen(name) > TOPIC_NAME_MAX)
            return fail(k, -EINVAL, "a Kafka topic's name has 1 to %d characters", TOPIC_NAME_MAX);
        for (enum topic u = 0; u < t; u++)
            if (k->topics[u] && !strcmp(k->topics[u], name))
                return fail(k, -EINVAL, "Kafka topic %s is named twice", name);
        k->topics[t] = strdup(name);
        if (!k->topics[t])
            return fail(k, -ENOMEM, "out of memory");
        n++;
    }
    return n > 0 ? 0 : fail(k, -EINVAL, "no Kafka topic is named");
}

// A setting under which events are gone before they are read. Of the catalogue only the last word
// about an item counts, so compaction is right there.
static void setting_warn(void *arg, const char *topic, const char *key, const char *value)
{
    struct source_kafka *k = arg;
    char *rest;

    if (k->topics[TOPIC_ITEMS] && !strcmp(topic, k->topics[TOPIC_ITEMS]))
        return;
    const long long ms = strtoll(value, &rest, 10);
    if (!strcmp(key, "cleanup.policy") && strstr(value, "compact"))
        say(k, LOG_WARNING,
            "kafka: topic %s has cleanup.policy=%s: the broker removes events whose key comes "
            "again",
            topic, value);
    else if (!strcmp(key, "retention.ms") && rest != value && ms >= 0 && ms < k->keep_ms)
        say(k, LOG_WARNING,
            "kafka: topic %s has retention.ms=%s, events are needed for %" PRId64
            " ms: a restart may find them gone",
            topic, value, k->keep_ms);
}

static void settings_check(struct source_kafka *k)
{
    const char *topics[TOPICS];
    int n = 0;
    for (enum topic t = 0; t < TOPICS; t++)
        if (k->topics[t])
            topics[n++] = k->topics[t];
    kafka_probe_settings(k->client, n, topics, SETTINGS_TIMEOUT_MS, setting_warn, k);
}

int source_kafka_open(struct source **s, const struct source_kafka_options *options, char *error,
                      size_t error_size)
{
    struct source_kafka *k = calloc(1, sizeof *k);
    char text[256] = "";
    size_t size = sizeof text;
    int rc;

    if (!k) {
        snprintf(error, error_size, "out of memory");
        return -ENOMEM;
    }
    k->base.ops = &kafka_ops;
    k->log = options->log;
    k->log_arg = options->log_arg;
    k->keep_ms = options->keep_ms;
    k->leader_epoch = message_leader_epoch();
    k->wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    k->bootstrap = strdup(options->bootstrap);
    if (k->wake < 0 || !k->bootstrap) {
        rc = fail(k, errno ? -errno : -ENOMEM, "eventfd: %s", strerror(errno));
        goto close;
    }
    rc = topics_take(k, options);
    if (rc < 0)
        goto close;
    rc = conf_build(k, options);
    if (rc < 0)
        goto close;
    rd_kafka_conf_get(k->conf, "builtin.features", text, &size);
    say(k, LOG_INFO, "kafka: librdkafka %s with %s", rd_kafka_version_str(), text);
    rc = client_open(k);
    if (rc < 0)
        goto close;
    rc = partitions_list(k);
    if (rc < 0)
        goto close;
    settings_check(k);
    *s = &k->base;
    return 0;
close:
    snprintf(error, error_size, "%s", k->base.error);
    kafka_close(&k->base);
    return rc;
}
