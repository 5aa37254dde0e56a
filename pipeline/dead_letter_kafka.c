// SPDX-License-Identifier: Apache-2.0
#include "pipeline/dead_letter_kafka.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <syslog.h>
#include <time.h>

#include "pipeline/kafka_conf.h"

enum {
    PENDING_MAX = DEAD_LETTER_KAFKA_PENDING_MAX,
    KEY_BYTES_MAX = 64 << 10,
    REPORT_INTERVAL_MS = 60000, // between two lines about brokers that are away
};

struct dead_letter_kafka {
    struct dead_letter_kafka_options options;
    rd_kafka_t *client;
    uint64_t sent, delivered;
    bool done[PENDING_MAX]; // by number sent, of those after `delivered`
    int64_t report_ms;
    int rc; // it has failed
    char error[512];
};

__attribute__((format(printf, 3, 4))) static int fail(struct dead_letter_kafka *k, int rc,
                                                      const char *format, ...)
{
    va_list args;
    if (k->rc < 0) // the first one is told
        return k->rc;
    va_start(args, format);
    vsnprintf(k->error, sizeof k->error, format, args);
    va_end(args);
    return k->rc = rc;
}

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

// ---- callbacks, all from rd_kafka_poll ----

static void log_line(const rd_kafka_t *client, int level, const char *facility, const char *text)
{
    const struct dead_letter_kafka *k = rd_kafka_opaque(client);
    char line[512];
    // What the brokers' absence makes it say, again and again, is told by error_event. What a
    // person sets for the consumer means nothing here.
    if (level >= LOG_NOTICE || !strcmp(facility, "FAIL") || !strcmp(facility, "ERROR") ||
        !strcmp(facility, "CONFWARN"))
        level = LOG_DEBUG;
    snprintf(line, sizeof line, "librdkafka: dead letters: %s: %s", facility, text);
    k->options.log(k->options.log_arg, level, line);
}

static void error_event(rd_kafka_t *client, int code, const char *reason, void *opaque)
{
    struct dead_letter_kafka *k = opaque;
    const int64_t now = now_ms();
    char text[512];
    if (code == RD_KAFKA_RESP_ERR__FATAL) {
        rd_kafka_fatal_error(client, text, sizeof text);
        fail(k, -EIO, "librdkafka gave up: %.400s", text);
    } else if (now >= k->report_ms && k->options.log) {
        k->report_ms = now + REPORT_INTERVAL_MS;
        snprintf(text, sizeof text, "kafka: dead letters wait: %.400s (told once a minute)",
                 reason);
        k->options.log(k->options.log_arg, LOG_WARNING, text);
    }
}

static void delivery_event(rd_kafka_t *client, const rd_kafka_message_t *m, void *opaque)
{
    struct dead_letter_kafka *k = opaque;
    const uint64_t number = (uint64_t)(uintptr_t)m->_private;
    (void)client;

    assert(number >= k->delivered && number < k->sent);
    if (m->err) {
        fail(k, m->err == RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED ? -EACCES : -EIO,
             "topic %s: %s", k->options.topic, rd_kafka_err2str(m->err));
        return;
    }
    // Partitions of the topic answer each in its time; what counts is what all before it have.
    k->done[number % PENDING_MAX] = true;
    for (; k->delivered < k->sent && k->done[k->delivered % PENDING_MAX]; k->delivered++)
        k->done[k->delivered % PENDING_MAX] = false;
}

int dead_letter_kafka_open(struct dead_letter_kafka **out,
                           const struct dead_letter_kafka_options *options, char *error,
                           size_t error_size)
{
    struct dead_letter_kafka *k = calloc(1, sizeof *k);
    rd_kafka_conf_t *conf;
    char why[256] = "";
    if (!k) {
        snprintf(error, error_size, "out of memory");
        return -ENOMEM;
    }
    k->options = *options;
    int rc = kafka_conf_build(&conf,
                              &(struct kafka_conf_options){.use = KAFKA_WRITES,
                                                           .bootstrap = options->bootstrap,
                                                           .n_properties = options->n_properties,
                                                           .properties = options->properties,
                                                           .log = options->log,
                                                           .log_arg = options->log_arg},
                              error, error_size);
    if (rc < 0) {
        free(k);
        return rc;
    }
    rd_kafka_conf_set_opaque(conf, k);
    rd_kafka_conf_set_log_cb(conf, options->log ? log_line : NULL);
    rd_kafka_conf_set_error_cb(conf, error_event);
    rd_kafka_conf_set_dr_msg_cb(conf, delivery_event);
    k->client = rd_kafka_new(RD_KAFKA_PRODUCER, conf, why, sizeof why);
    if (!k->client) {
        rd_kafka_conf_destroy(conf);
        snprintf(error, error_size, "librdkafka refuses the configuration of dead letters: %s",
                 why);
        free(k);
        return -EINVAL;
    }
    rd_kafka_set_log_queue(k->client, NULL); // to whoever polls
    *out = k;
    return 0;
}

void dead_letter_kafka_close(struct dead_letter_kafka *k)
{
    if (!k)
        return;
    // Else it would wait for what cannot be sent.
    rd_kafka_purge(k->client, RD_KAFKA_PURGE_F_QUEUE | RD_KAFKA_PURGE_F_INFLIGHT);
    rd_kafka_destroy(k->client);
    free(k);
}

// ---- sending ----

static void header_add(rd_kafka_headers_t *headers, const char *name, const char *value,
                       size_t value_size)
{
    rd_kafka_header_add(headers, name, -1, value, (ssize_t)value_size);
}

static void header_text(rd_kafka_headers_t *headers, const char *name, const char *text)
{
    header_add(headers, name, text, strlen(text));
}

static void header_number(rd_kafka_headers_t *headers, const char *name, int64_t number)
{
    char text[32];
    snprintf(text, sizeof text, "%" PRId64, number);
    header_text(headers, name, text);
}

static rd_kafka_headers_t *headers_of(const struct letter *l, bool cut)
{
    const struct record *r = &l->record;
    const struct record_headers *own = l->headers;
    const int n = own ? own->n : 0;
    rd_kafka_headers_t *headers = rd_kafka_headers_new((size_t)n + 16);
    for (int i = 0; i < n; i++)
        rd_kafka_header_add(headers, own->list[i].name, (ssize_t)own->list[i].name_size,
                            own->list[i].value, (ssize_t)own->list[i].value_size);
    header_text(headers, "dlq.reason", l->reason);
    header_text(headers, "dlq.message", l->message);
    header_text(headers, "dlq.stage", "decode");
    header_text(headers, "dlq.topic", l->topic);
    header_number(headers, "dlq.partition", l->partition);
    header_number(headers, "dlq.offset", r->offset);
    if (r->broker_ts_ms >= 0)
        header_number(headers, "dlq.timestamp", r->broker_ts_ms);
    if (r->key)
        header_add(headers, "dlq.key", r->key,
                   r->key_size < KEY_BYTES_MAX ? r->key_size : KEY_BYTES_MAX);
    if (l->slice > 0)
        header_number(headers, "dlq.slice", (int64_t)l->slice);
    header_text(headers, "dlq.version", TWOTOWER_VERSION);
    if (cut)
        header_number(headers, "dlq.value_size", (int64_t)l->value_size);
    if (own && own->left_out > 0)
        header_number(headers, "dlq.headers_left_out", own->left_out);
    return headers;
}

static rd_kafka_resp_err_t produce(struct dead_letter_kafka *k, const struct letter *l, size_t size)
{
    char key[320];
    const int key_size = snprintf(key, sizeof key, "%.250s/%" PRId32 "/%" PRId64, l->topic,
                                  l->partition, l->record.offset);
    rd_kafka_headers_t *headers = headers_of(l, size < l->value_size);
    // Its own when it is there: the message and its key are copied, the headers go over to it.
    const rd_kafka_resp_err_t code = rd_kafka_producev(
        k->client, RD_KAFKA_V_TOPIC(k->options.topic), RD_KAFKA_V_KEY(key, (size_t)key_size),
        RD_KAFKA_V_VALUE((void *)(uintptr_t)l->record.value, size), RD_KAFKA_V_HEADERS(headers),
        RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY), RD_KAFKA_V_OPAQUE((void *)(uintptr_t)k->sent),
        RD_KAFKA_V_END);
    if (code)
        rd_kafka_headers_destroy(headers);
    return code;
}

int dead_letter_kafka_send(struct dead_letter_kafka *k, const struct letter *l)
{
    size_t size = l->record.value_size;
    rd_kafka_resp_err_t code;
    if (k->rc < 0)
        return k->rc;
    if (k->sent - k->delivered == PENDING_MAX)
        return -EAGAIN;
    while ((code = produce(k, l, size)) == RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE && size > 0)
        size -= size / 8 + 1;
    if (code == RD_KAFKA_RESP_ERR__QUEUE_FULL)
        return -EAGAIN;
    if (code)
        return fail(k, -EIO, "topic %s: %s", k->options.topic, rd_kafka_err2str(code));
    k->sent++;
    return 0;
}

int dead_letter_kafka_poll(struct dead_letter_kafka *k, int timeout_ms)
{
    rd_kafka_poll(k->client, timeout_ms);
    return k->rc;
}

uint64_t dead_letter_kafka_sent(const struct dead_letter_kafka *k)
{
    return k->sent;
}

uint64_t dead_letter_kafka_delivered(const struct dead_letter_kafka *k)
{
    return k->delivered;
}

const char *dead_letter_kafka_error(const struct dead_letter_kafka *k)
{
    return k->error;
}
