// SPDX-License-Identifier: Apache-2.0
#include "pipeline/kafka_probe.h"

#include <string.h>
#include <time.h>

enum {
    PROBE_MS = 1000, // for a fetch to bring something
    // What follows a damaged batch in the same answer is there as soon as the error is.
    AFTER_ERROR_MS = 100,
    TOPICS_MAX = 16,
};

struct probe {
    rd_kafka_t *client;
    rd_kafka_topic_t *topic;
    int32_t partition;
    int64_t end_ms;
};

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static int64_t probe_at(void *arg, int64_t offset)
{
    struct probe *p = arg;
    int64_t found = -1, until = now_ms() + PROBE_MS;

    if (now_ms() >= p->end_ms || rd_kafka_consume_start(p->topic, p->partition, offset) < 0)
        return -1;
    while (found < 0 && now_ms() < until) {
        rd_kafka_message_t *m =
            rd_kafka_consume(p->topic, p->partition, (int)(until - now_ms() > 0 ? 50 : 0));
        rd_kafka_poll(p->client, 0);
        if (!m)
            continue;
        if (!m->err || m->err == RD_KAFKA_RESP_ERR__PARTITION_EOF)
            found = m->offset;
        else if (until > now_ms() + AFTER_ERROR_MS && m->err != RD_KAFKA_RESP_ERR__TRANSPORT)
            until = now_ms() + AFTER_ERROR_MS;
        rd_kafka_message_destroy(m);
    }
    rd_kafka_consume_stop(p->topic, p->partition);
    return found;
}

int64_t kafka_probe_search(int64_t from, int64_t end,
                           int64_t (*readable)(void *arg, int64_t offset), void *arg)
{
    int64_t bad = from, good = from, found = readable(arg, from);

    // A batch is damaged as a whole, and a fetch inside of it gets all of it: steps that double
    // leave it, and halves then find its end.
    for (int64_t step = 1; found < 0; step *= 2) {
        bad = good;
        good = step < end - from ? from + step : end;
        found = good == end ? end : readable(arg, good);
    }
    while (good - bad > 1) {
        const int64_t middle = bad + (good - bad) / 2;
        const int64_t there = readable(arg, middle);
        if (there < 0) {
            bad = middle;
        } else {
            good = middle;
            found = there;
        }
    }
    return found;
}

int64_t kafka_probe_readable(const rd_kafka_conf_t *conf, const char *topic, int32_t partition,
                             int64_t from, int64_t end, int patience_ms)
{
    rd_kafka_conf_t *own = rd_kafka_conf_dup(conf);
    struct probe p = {.partition = partition, .end_ms = now_ms() + patience_ms};
    int64_t found = -1;
    char why[256];

    rd_kafka_conf_set_log_cb(own, NULL); // it would say the same as the source's client
    p.client = rd_kafka_new(RD_KAFKA_CONSUMER, own, why, sizeof why);
    if (!p.client) {
        rd_kafka_conf_destroy(own);
        return -1;
    }
    p.topic = rd_kafka_topic_new(p.client, topic, NULL);
    if (p.topic) {
        found = kafka_probe_search(from, end, probe_at, &p);
        rd_kafka_topic_destroy(p.topic);
    }
    rd_kafka_destroy_flags(p.client, RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
    return now_ms() < p.end_ms ? found : -1;
}

void kafka_probe_settings(rd_kafka_t *client, int n, const char *const *topics, int timeout_ms,
                          void (*tell)(void *arg, const char *topic, const char *key,
                                       const char *value),
                          void *arg)
{
    static const char *const keys[] = {"cleanup.policy", "retention.ms"};
    rd_kafka_queue_t *queue = rd_kafka_queue_new(client);
    rd_kafka_AdminOptions_t *options =
        rd_kafka_AdminOptions_new(client, RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS);
    rd_kafka_ConfigResource_t *asked[TOPICS_MAX];
    size_t count = 0;
    char why[256];

    for (int i = 0; i < n && i < TOPICS_MAX; i++)
        asked[count++] = rd_kafka_ConfigResource_new(RD_KAFKA_RESOURCE_TOPIC, topics[i]);
    rd_kafka_AdminOptions_set_request_timeout(options, timeout_ms, why, sizeof why);
    rd_kafka_DescribeConfigs(client, asked, count, options, queue);
    rd_kafka_ConfigResource_destroy_array(asked, count);
    rd_kafka_AdminOptions_destroy(options);

    rd_kafka_event_t *event = rd_kafka_queue_poll(queue, timeout_ms);
    const rd_kafka_DescribeConfigs_result_t *result =
        event && !rd_kafka_event_error(event) ? rd_kafka_event_DescribeConfigs_result(event) : NULL;
    const rd_kafka_ConfigResource_t **resources = NULL;
    size_t n_resources = 0;
    if (result)
        resources = rd_kafka_DescribeConfigs_result_resources(result, &n_resources);
    for (size_t i = 0; i < n_resources; i++) {
        size_t n_entries = 0;
        const rd_kafka_ConfigEntry_t **entries =
            rd_kafka_ConfigResource_configs(resources[i], &n_entries);
        for (size_t j = 0; j < n_entries; j++)
            for (size_t k = 0; k < sizeof keys / sizeof *keys; k++)
                if (!strcmp(rd_kafka_ConfigEntry_name(entries[j]), keys[k]) &&
                    rd_kafka_ConfigEntry_value(entries[j]))
                    tell(arg, rd_kafka_ConfigResource_name(resources[i]), keys[k],
                         rd_kafka_ConfigEntry_value(entries[j]));
    }
    if (event)
        rd_kafka_event_destroy(event);
    rd_kafka_queue_destroy(queue);
}
