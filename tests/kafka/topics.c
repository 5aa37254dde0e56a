// SPDX-License-Identifier: Apache-2.0
//
// Creates, grows, trims and deletes topics for the tests, several at once, and writes transactions:
//
//     topics BOOTSTRAP create NAME PARTITIONS[,KEY=VALUE...] [NAME PARTITIONS...]...
//     topics BOOTSTRAP grow NAME PARTITIONS
//     topics BOOTSTRAP delete NAME...
//     topics BOOTSTRAP trim NAME PARTITION OFFSET      what is before OFFSET goes, as by retention
//     topics BOOTSTRAP transact ID
//
// transact reads lines. "TOPIC<tab>KEY<tab>VALUE" is a record; "flush", "commit" and "abort" mean
// the transaction of the records so far, and each is answered by its name when the broker has done
// it. What is neither committed nor aborted at the end stays open until the broker gives it up.
//
// Kafka's own tool starts a JVM, 1.4 s for each topic; this takes 50 ms for all of them.
#include <librdkafka/rdkafka.h>

#include <stdbool.h>
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

static int trim(rd_kafka_t *client, rd_kafka_AdminOptions_t *options, rd_kafka_queue_t *queue,
                int n, char **args)
{
    if (n < 3)
        return complain("trim", "expected NAME PARTITION OFFSET");
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
    rd_kafka_topic_partition_list_add(list, args[0], atoi(args[1]))->offset = atoll(args[2]);
    rd_kafka_DeleteRecords_t *to = rd_kafka_DeleteRecords_new(list);
    rd_kafka_DeleteRecords(client, &to, 1, options, queue);
    rd_kafka_DeleteRecords_destroy(to);
    rd_kafka_topic_partition_list_destroy(list);

    rd_kafka_event_t *event = rd_kafka_queue_poll(queue, TIMEOUT_MS + 5000);
    const char *why = !event                        ? "no answer"
                      : rd_kafka_event_error(event) ? rd_kafka_event_error_string(event)
                                                    : NULL;
    const rd_kafka_DeleteRecords_result_t *result =
        why ? NULL : rd_kafka_event_DeleteRecords_result(event);
    if (result) {
        const rd_kafka_topic_partition_list_t *offsets =
            rd_kafka_DeleteRecords_result_offsets(result);
        if (offsets->cnt == 1 && offsets->elems[0].err)
            why = rd_kafka_err2str(offsets->elems[0].err);
    }
    const int failed = why ? complain(args[0], why) : 0;
    if (event)
        rd_kafka_event_destroy(event);
    return failed;
}

static int complain_error(const char *what, rd_kafka_error_t *error)
{
    if (!error)
        return 0;
    complain(what, rd_kafka_error_string(error));
    rd_kafka_error_destroy(error);
    return 1;
}

static int transaction_send(rd_kafka_t *client, char *line)
{
    char *save = NULL;
    const char *topic = strtok_r(line, "\t", &save), *key = strtok_r(NULL, "\t", &save);
    char *value = strtok_r(NULL, "\t", &save);

    if (!value)
        return complain(line, "expected TOPIC, KEY and VALUE");
    const rd_kafka_resp_err_t code =
        rd_kafka_producev(client, RD_KAFKA_V_TOPIC(topic), RD_KAFKA_V_KEY(key, strlen(key)),
                          RD_KAFKA_V_VALUE(value, strlen(value)),
                          RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY), RD_KAFKA_V_END);
    return code ? complain(topic, rd_kafka_err2str(code)) : 0;
}

static int transact(rd_kafka_t *client, rd_kafka_AdminOptions_t *options, rd_kafka_queue_t *queue,
                    int n, char **args)
{
    char *line = NULL;
    size_t size = 0;
    ssize_t length;
    bool open = false;
    int failed = complain_error("transactions", rd_kafka_init_transactions(client, TIMEOUT_MS));
    (void)options, (void)queue, (void)n, (void)args;

    while (!failed && (length = getline(&line, &size, stdin)) > 0) {
        if (line[length - 1] == '\n')
            line[length - 1] = '\0';
        if (!open)
            failed = complain_error("begin", rd_kafka_begin_transaction(client));
        open = true;
        if (strchr(line, '\t')) {
            failed |= transaction_send(client, line);
            continue;
        }
        // Always: without it an abort drops what is still on its way, and the log shows nothing of
        // it.
        if (rd_kafka_flush(client, TIMEOUT_MS))
            failed |= complain(line, "no answer");
        else if (!strcmp(line, "commit"))
            failed |= complain_error(line, rd_kafka_commit_transaction(client, TIMEOUT_MS));
        else if (!strcmp(line, "abort"))
            failed |= complain_error(line, rd_kafka_abort_transaction(client, TIMEOUT_MS));
        else if (strcmp(line, "flush") != 0)
            failed = complain(line, "expected flush, commit or abort");
        open = !strcmp(line, "flush");
        if (!failed)
            printf("%s\n", line);
        fflush(stdout);
    }
    free(line);
    return failed;
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
    {"trim", RD_KAFKA_ADMIN_OP_DELETERECORDS, trim},
    {"transact", RD_KAFKA_ADMIN_OP_ANY, transact},
};

int main(int argc, char **argv)
{
    char why[256];
    int failed = 2;

    if (argc < 4)
        return complain("usage", "topics BOOTSTRAP create|grow|delete|trim|transact ...");
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    if (rd_kafka_conf_set(conf, "bootstrap.servers", argv[1], why, sizeof why))
        return complain(argv[1], why);
    if (!strcmp(argv[2], "transact") &&
        rd_kafka_conf_set(conf, "transactional.id", argv[3], why, sizeof why))
        return complain(argv[3], why);
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
        complain(argv[2], "expected create, grow, delete, trim or transact");
    rd_kafka_queue_destroy(queue);
    rd_kafka_destroy(client);
    return failed;
}
