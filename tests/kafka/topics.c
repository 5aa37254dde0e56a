// SPDX-License-Identifier: Apache-2.0
//
// Creates, grows and deletes topics for the tests, several at once:
//
//     topics BOOTSTRAP create NAME PARTITIONS[,KEY=VALUE...] [NAME PARTITIONS...]...
//     topics BOOTSTRAP grow NAME PARTITIONS
//     topics BOOTSTRAP delete NAME...
//
// Kafka's own tool starts a JVM, 1.4 s for each topic; this takes 50 ms for all of them.
#include <librdkafka/rdkafka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TIMEOUT_MS = 30000, TOPICS_MAX = 64 };

static int complain(const char *what, const char *why)
{
    fprintf(stderr, "topics: %s: %s\n", what, why);
    return 1;
}

static int report(const rd_kafka_topic_result_t *const *results, size_t n)
{
    int failed = 0;
    for (size_t i = 0; i < n; i++)
        if (rd_kafka_topic_result_error(results[i]))
            failed |= complain(rd_kafka_topic_result_name(results[i]),
                               rd_kafka_topic_result_error_string(results[i]));
    return failed;
}

static int wait_for(rd_kafka_queue_t *queue)
{
    rd_kafka_event_t *event = rd_kafka_queue_poll(queue, TIMEOUT_MS + 5000);
    const rd_kafka_topic_result_t **results = NULL;
    size_t n = 0;
    int failed;

    if (!event)
        return complain("broker", "no answer");
    if (rd_kafka_event_error(event)) {
        failed = complain("broker", rd_kafka_event_error_string(event));
    } else {
        if (rd_kafka_event_CreateTopics_result(event))
            results =
                rd_kafka_CreateTopics_result_topics(rd_kafka_event_CreateTopics_result(event), &n);
        else if (rd_kafka_event_CreatePartitions_result(event))
            results = rd_kafka_CreatePartitions_result_topics(
                rd_kafka_event_CreatePartitions_result(event), &n);
        else
            results =
                rd_kafka_DeleteTopics_result_topics(rd_kafka_event_DeleteTopics_result(event), &n);
        failed = report(results, n);
    }
    rd_kafka_event_destroy(event);
    return failed;
}

static int create(rd_kafka_t *client, rd_kafka_AdminOptions_t *options, rd_kafka_queue_t *queue,
                  int n, char **args)
{
    rd_kafka_NewTopic_t *topics[TOPICS_MAX];
    char why[256];
    size_t count = 0;

    for (int i = 0; i + 1 < n && count < TOPICS_MAX; i += 2) {
        char *save = NULL;
        char *word = strtok_r(args[i + 1], ",", &save);
        topics[count] = rd_kafka_NewTopic_new(args[i], atoi(word), 1, why, sizeof why);
        if (!topics[count])
            return complain(args[i], why);
        while ((word = strtok_r(NULL, ",", &save))) {
            char *value = strchr(word, '=');
            if (!value)
                return complain(word, "expected KEY=VALUE");
            *value++ = '\0';
            rd_kafka_NewTopic_set_config(topics[count], word, value);
        }
        count++;
    }
    rd_kafka_CreateTopics(client, topics, count, options, queue);
    rd_kafka_NewTopic_destroy_array(topics, count);
    return wait_for(queue);
}

static int grow(rd_kafka_t *client, rd_kafka_AdminOptions_t *options, rd_kafka_queue_t *queue,
                int n, char **args)
{
    char why[256];
    if (n < 2)
        return complain("grow", "expected NAME PARTITIONS");
    rd_kafka_NewPartitions_t *to =
        rd_kafka_NewPartitions_new(args[0], (size_t)atoi(args[1]), why, sizeof why);
    if (!to)
        return complain(args[0], why);
    rd_kafka_CreatePartitions(client, &to, 1, options, queue);
    rd_kafka_NewPartitions_destroy(to);
    return wait_for(queue);
}

static int remove_topics(rd_kafka_t *client, rd_kafka_AdminOptions_t *options,
                         rd_kafka_queue_t *queue, int n, char **args)
{
    rd_kafka_DeleteTopic_t *topics[TOPICS_MAX];
    size_t count = 0;

    while ((int)count < n && count < TOPICS_MAX) {
        topics[count] = rd_kafka_DeleteTopic_new(args[count]);
        count++;
    }
    rd_kafka_DeleteTopics(client, topics, count, options, queue);
    rd_kafka_DeleteTopic_destroy_array(topics, count);
    return wait_for(queue);
}

static const struct {
    const char *name;
    rd_kafka_admin_op_t kind;
    int (*run)(rd_kafka_t *client, rd_kafka_AdminOptions_t *options, rd_kafka_queue_t *queue, int n,
               char **args);
} commands[] = {
    {"create", RD_KAFKA_ADMIN_OP_CREATETOPICS, create},
    {"grow", RD_KAFKA_ADMIN_OP_CREATEPARTITIONS, grow},
    {"delete", RD_KAFKA_ADMIN_OP_DELETETOPICS, remove_topics},
};

int main(int argc, char **argv)
{
    char why[256];
    int failed = 2;

    if (argc < 4)
        return complain("usage", "topics BOOTSTRAP create|grow|delete ...");
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    if (rd_kafka_conf_set(conf, "bootstrap.servers", argv[1], why, sizeof why))
        return complain(argv[1], why);
    rd_kafka_t *client = rd_kafka_new(RD_KAFKA_PRODUCER, conf, why, sizeof why);
    if (!client)
        return complain(argv[1], why);
    rd_kafka_queue_t *queue = rd_kafka_queue_new(client);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        if (strcmp(argv[2], commands[i].name) != 0)
            continue;
        rd_kafka_AdminOptions_t *options = rd_kafka_AdminOptions_new(client, commands[i].kind);
        // The answer is to come when the topics exist, not when the request was understood.
        rd_kafka_AdminOptions_set_operation_timeout(options, TIMEOUT_MS, why, sizeof why);
        rd_kafka_AdminOptions_set_request_timeout(options, TIMEOUT_MS, why, sizeof why);
        failed = commands[i].run(client, options, queue, argc - 3, argv + 3);
        rd_kafka_AdminOptions_destroy(options);
    }
    if (failed == 2)
        complain(argv[2], "expected create, grow or delete");
    rd_kafka_queue_destroy(queue);
    rd_kafka_destroy(client);
    return failed;
}
