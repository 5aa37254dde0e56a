// SPDX-License-Identifier: Apache-2.0
//
// The kafka source against a real broker: tests/kafka/run.sh starts one and sets KAFKA_BOOTSTRAP,
// KAFKA_BROKER (broker.sh) and KAFKA_STATE_DIR. Every test makes topics of its own.
//
// The source is included, not linked, so that a test can bring the look around, which comes once a
// minute, forward.
#include "pipeline/source_kafka.c"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

enum { READ_MAX = 256, PATIENCE_MS = 30000 };

static const char *bootstrap, *broker;
static char logged[4096]; // what the source said since it was opened

static void keep_log(void *arg, int level, const char *text)
{
    const size_t used = strlen(logged);
    (void)arg;
    snprintf(logged + used, sizeof logged - used, "<%d>%s\n", level, text);
}

__attribute__((format(printf, 1, 2))) static void run(const char *format, ...)
{
    char command[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(command, sizeof command, format, args);
    va_end(args);
    if (system(command))
        fail_msg("failed: %s", command);
}

static struct source *open_topics(const char *impressions, const char *engagements,
                                  const char *scores, bool replay)
{
    struct source *s;
    char error[512] = "";

    logged[0] = '\0';
    if (source_kafka_open(&s,
                          &(struct source_kafka_options){
                              .bootstrap = bootstrap,
                              .topics = {[TOPIC_IMPRESSIONS] = impressions,
                                         [TOPIC_ENGAGEMENTS] = engagements,
                                         [TOPIC_SCORES] = scores},
                              .replay = replay,
                              .log = keep_log,
                          },
                          error, sizeof error))
        fail_msg("open: %s", error);
    return s;
}

static struct source *open_topic(const char *name)
{
    return open_topics(name, NULL, NULL, false);
}

static void check(const struct source *s, int rc)
{
    if (rc < 0)
        fail_msg("%s (%d)", s->error, rc);
}

// Reads one partition on, as the pipeline does, until it is at its end or n records have come. The
// offsets and the values' first number go to the arrays, which may be NULL. Returns the count.
static int read_on(struct source *s, int p, int n, int64_t *offsets, int *values)
{
    const int64_t deadline = now_ms() + PATIENCE_MS;
    struct record records[READ_MAX];
    int count = 0;

    while (count < n) {
        const int got = s->ops->read(s, p, n - count < READ_MAX ? n - count : READ_MAX, records);
        check(s, got);
        for (int i = 0; i < got; i++, count++) {
            if (offsets)
                offsets[count] = records[i].offset;
            if (values)
                values[count] = atoi(records[i].value);
        }
        if (got > 0)
            continue;
        if (s->ops->at_end(s, p))
            break;
        if (now_ms() > deadline)
            fail_msg("partition %d: %d of %d records, position %" PRId64 ", in %d s\n%s", p, count,
                     n, s->ops->position(s, p), PATIENCE_MS / 1000, logged);
        check(s, s->ops->wait(s, 200));
    }
    return count;
}

static void start(struct source *s, int64_t next, int64_t stop)
{
    int64_t from[64], to[64];
    for (int i = 0; i < s->n_partitions; i++) {
        from[i] = next;
        to[i] = stop;
    }
    check(s, s->ops->start(s, from, to));
}

// ---- producers ----

static rd_kafka_t *producer_open(const char *transactional_id)
{
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    char why[256];
    rd_kafka_conf_set(conf, "bootstrap.servers", bootstrap, why, sizeof why);
    rd_kafka_conf_set(conf, "linger.ms", "5", why, sizeof why);
    // A batch that a leader just elected refuses would come again behind the next one.
    if (!transactional_id)
        rd_kafka_conf_set(conf, "max.in.flight", "1", why, sizeof why);
    rd_kafka_conf_set(conf, "compression.type", "lz4", why, sizeof why);
    rd_kafka_conf_set(conf, "queue.buffering.max.messages", "2000000", why, sizeof why);
    if (transactional_id)
        rd_kafka_conf_set(conf, "transactional.id", transactional_id, why, sizeof why);
    rd_kafka_t *producer = rd_kafka_new(RD_KAFKA_PRODUCER, conf, why, sizeof why);
    assert_non_null(producer);
    if (transactional_id)
        assert_null(rd_kafka_init_transactions(producer, PATIENCE_MS));
    return producer;
}

static void produce(rd_kafka_t *producer, const char *topic, int partition, const char *key,
                    const void *value, size_t size, int64_t ts_ms)
{
    const rd_kafka_resp_err_t code = rd_kafka_producev(
        producer, RD_KAFKA_V_TOPIC(topic), RD_KAFKA_V_PARTITION(partition),
        RD_KAFKA_V_KEY(key, key ? strlen(key) : 0), RD_KAFKA_V_VALUE((void *)value, size),
        RD_KAFKA_V_TIMESTAMP(ts_ms), RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY), RD_KAFKA_V_END);
    assert_int_equal(code, 0);
}

static void produce_numbers(rd_kafka_t *producer, const char *topic, int partition, int first,
                            int n)
{
    for (int i = first; i < first + n; i++) {
        char text[16];
        produce(producer, topic, partition, "u", text, (size_t)snprintf(text, 16, "%d", i), 0);
    }
    assert_int_equal(rd_kafka_flush(producer, PATIENCE_MS), 0);
}

// n numbers in one transaction.
enum ending { COMMIT, ABORT };

static void transact(rd_kafka_t *producer, const char *topic, int n, enum ending ending)
{
    assert_null(rd_kafka_begin_transaction(producer));
    produce_numbers(producer, topic, 0, 0, n);
    assert_null(ending == COMMIT ? rd_kafka_commit_transaction(producer, PATIENCE_MS)
                                 : rd_kafka_abort_transaction(producer, PATIENCE_MS));
}

// ---- tests ----

static void every_record_of_three_topics_arrives_once_and_in_order(void **state)
{
    enum { RECORDS = 20000, USERS = 500 };
    static const char *const names[] = {"once_impressions", "once_engagements", "once_scores"};
    static int next_of_user[3][USERS];
    int64_t first[16], end[16];
    int total = 0;
    (void)state;

    run("%s topic once_impressions 4 once_engagements 4 once_scores 4", broker);
    for (int t = 0; t < 3; t++) {
        char command[512];
        // Idempotent: a plain producer that is refused while the topic's leaders are still being
        // elected sends those batches again, behind the ones that followed.
        snprintf(command, sizeof command,
                 "kcat -P -b %s -t %s -K: -z lz4 -X enable.idempotence=true", bootstrap, names[t]);
        FILE *kcat = popen(command, "w");
        assert_non_null(kcat);
        for (int i = 0; i < RECORDS; i++)
            fprintf(kcat, "user%d:%d\n", i % USERS, i / USERS);
        assert_int_equal(pclose(kcat), 0);
    }
    struct source *s = open_topics(names[0], names[1], names[2], false);
    assert_int_equal(s->n_partitions, 12);
    check(s, s->ops->bounds(s, first, end));
    check(s, s->ops->start(s, first, end));
    memset(next_of_user, 0, sizeof next_of_user);
    for (int open = 12; open > 0;) {
        open = 0;
        int read = 0;
        for (int p = 0; p < s->n_partitions; p++) {
            struct record records[READ_MAX];
            const int64_t before = s->ops->position(s, p);
            const int n = s->ops->read(s, p, READ_MAX, records);
            const int t = s->partitions[p].topic == TOPIC_IMPRESSIONS   ? 0
                          : s->partitions[p].topic == TOPIC_ENGAGEMENTS ? 1
                                                                        : 2;
            check(s, n);
            for (int i = 0; i < n; i++) {
                char key[32], value[32];
                snprintf(key, sizeof key, "%.*s", (int)records[i].key_size, records[i].key);
                snprintf(value, sizeof value, "%.*s", (int)records[i].value_size, records[i].value);
                assert_int_equal(records[i].offset, before + i);
                assert_true(records[i].broker_ts_ms > 1600000000000);
                assert_false(records[i].tombstone);
                // The records of one user have one order in one partition: none lost, none twice.
                assert_int_equal(atoi(value), next_of_user[t][atoi(key + 4)]++);
            }
            total += n;
            read += n;
            open += !s->ops->at_end(s, p);
        }
        if (open > 0 && read == 0)
            check(s, s->ops->wait(s, 1000));
    }
    assert_int_equal(total, 3 * RECORDS);
    for (int p = 0; p < s->n_partitions; p++)
        assert_int_equal(s->ops->position(s, p), end[p]);
    s->ops->close(s);
}

static void the_partitions_are_sorted_by_topic_and_number(void **state)
{
    (void)state;
    run("%s topic sorted_a 2 sorted_b 3 sorted_c 1", broker);
    struct source *s = open_topics("sorted_a", "sorted_b", "sorted_c", false);
    static const struct source_partition expected[] = {
        {"sorted_c", TOPIC_SCORES, 0},      {"sorted_a", TOPIC_IMPRESSIONS, 0},
        {"sorted_a", TOPIC_IMPRESSIONS, 1}, {"sorted_b", TOPIC_ENGAGEMENTS, 0},
        {"sorted_b", TOPIC_ENGAGEMENTS, 1}, {"sorted_b", TOPIC_ENGAGEMENTS, 2},
    };
    assert_int_equal(s->n_partitions, 6);
    for (int i = 0; i < 6; i++) {
        assert_string_equal(s->partitions[i].name, expected[i].name);
        assert_int_equal(s->partitions[i].topic, expected[i].topic);
        assert_int_equal(s->partitions[i].partition, expected[i].partition);
    }
    s->ops->close(s);
}

static void empty_partitions_are_at_their_end_and_wake_up_later(void **state)
{
    int64_t first[4], end[4], offset;
    int value;
    (void)state;

    run("%s topic sparse 4", broker);
    rd_kafka_t *producer = producer_open(NULL);
    produce_numbers(producer, "sparse", 2, 0, 3);
    struct source *s = open_topic("sparse");
    check(s, s->ops->bounds(s, first, end));
    // Bounded: an empty partition is at its end at once, the others once they are read.
    check(s, s->ops->start(s, first, end));
    assert_true(s->ops->at_end(s, 0));
    assert_false(s->ops->at_end(s, 2));
    assert_int_equal(read_on(s, 2, 10, NULL, NULL), 3);
    assert_true(s->ops->at_end(s, 2));
    // Unbounded: the end has to be seen first, and a new record takes it away.
    start(s, SOURCE_BEGIN, SOURCE_UNBOUNDED);
    assert_int_equal(read_on(s, 0, 10, NULL, NULL), 0);
    assert_int_equal(read_on(s, 2, 10, NULL, NULL), 3);
    assert_true(s->ops->at_end(s, 0));
    produce_numbers(producer, "sparse", 0, 7, 1);
    const int64_t before = now_ms();
    check(s, s->ops->wait(s, 10000));
    assert_true(now_ms() - before < 2000);
    assert_false(s->ops->at_end(s, 0));
    assert_int_equal(read_on(s, 0, 1, &offset, &value), 1);
    assert_int_equal(offset, 0);
    assert_int_equal(value, 7);
    assert_false(s->ops->at_end(s, 0)); // not seen again yet
    assert_int_equal(s->ops->position(s, 0), 1);
    rd_kafka_destroy(producer);
    s->ops->close(s);
}

static void a_bounded_range_ends_although_its_tail_was_aborted(void **state)
{
    int64_t first, end, offsets[32];
    (void)state;

    run("%s topic aborted 1", broker);
    rd_kafka_t *producer = producer_open("aborted");
    transact(producer, "aborted", 10, COMMIT); // 0..9, marker 10
    transact(producer, "aborted", 5, ABORT);   // 11..15, marker 16
    transact(producer, "aborted", 3, COMMIT);  // 17..19, marker 20
    transact(producer, "aborted", 4, ABORT);   // 21..24, marker 25
    struct source *s = open_topic("aborted");
    check(s, s->ops->bounds(s, &first, &end));
    assert_int_equal(first, 0);
    assert_int_equal(end, 26);
    check(s, s->ops->start(s, &first, &end));
    assert_int_equal(read_on(s, 0, 32, offsets, NULL), 13);
    assert_int_equal(offsets[9], 9);
    assert_int_equal(offsets[10], 17);
    assert_int_equal(offsets[12], 19);
    assert_int_equal(s->ops->position(s, 0), 26);

    // The same range once the log goes on behind it: the position is the range's end still.
    for (enum ending ending = ABORT + 1; ending-- > COMMIT;) {
        transact(producer, "aborted", 2, ending);
        check(s, s->ops->start(s, &first, &end));
        assert_int_equal(read_on(s, 0, 32, offsets, NULL), 13);
        assert_int_equal(s->ops->position(s, 0), 26);
    }

    // A range can begin and end inside of what was aborted.
    check(s, s->ops->start(s, &(int64_t){12}, &(int64_t){18}));
    assert_int_equal(read_on(s, 0, 32, offsets, NULL), 1);
    assert_int_equal(offsets[0], 17);
    assert_int_equal(s->ops->position(s, 0), 18);
    rd_kafka_destroy(producer);
    s->ops->close(s);
}

static void a_bounded_range_ends_before_an_open_transaction(void **state)
{
    int64_t first, end;
    (void)state;

    run("%s topic undecided 1", broker);
    rd_kafka_t *producer = producer_open("undecided");
    transact(producer, "undecided", 5, COMMIT); // 0..4, marker 5
    assert_null(rd_kafka_begin_transaction(producer));
    produce_numbers(producer, "undecided", 0, 5, 4); // 6..9
    struct source *s = open_topic("undecided");
    check(s, s->ops->bounds(s, &first, &end));
    assert_int_equal(end, 6);
    check(s, s->ops->start(s, &first, &end));
    assert_int_equal(read_on(s, 0, 32, NULL, NULL), 5);
    assert_int_equal(s->ops->position(s, 0), 6);

    // Unbounded, the rest comes when it is committed, and not before.
    start(s, 6, SOURCE_UNBOUNDED);
    for (int i = 0; i < 10; i++) {
        assert_int_equal(s->ops->read(s, 0, 1, &(struct record){0}), 0);
        check(s, s->ops->wait(s, 100));
    }
    assert_null(rd_kafka_commit_transaction(producer, PATIENCE_MS));
    assert_int_equal(read_on(s, 0, 32, NULL, NULL), 4);
    assert_int_equal(s->ops->position(s, 0), 11);
    rd_kafka_destroy(producer);
    s->ops->close(s);
}

static void reading_resumes_at_the_given_offsets(void **state)
{
    int64_t next[2] = {40, 90}, stop[2] = {50, SOURCE_UNBOUNDED}, offsets[32];
    (void)state;

    run("%s topic resumed 2", broker);
    rd_kafka_t *producer = producer_open(NULL);
    produce_numbers(producer, "resumed", 0, 0, 100);
    produce_numbers(producer, "resumed", 1, 0, 100);
    struct source *s = open_topic("resumed");
    check(s, s->ops->start(s, next, stop));
    assert_int_equal(read_on(s, 0, 32, offsets, NULL), 10);
    assert_int_equal(offsets[0], 40);
    assert_int_equal(offsets[9], 49);
    assert_int_equal(read_on(s, 1, 32, offsets, NULL), 10);
    assert_int_equal(offsets[0], 90);
    // Elsewhere, while the queues are full of what is ahead: back, then forward.
    start(s, 0, SOURCE_UNBOUNDED);
    assert_int_equal(read_on(s, 0, 5, offsets, NULL), 5);
    assert_int_equal(offsets[4], 4);
    start(s, 2, SOURCE_UNBOUNDED);
    assert_int_equal(read_on(s, 0, 5, offsets, NULL), 5);
    assert_int_equal(offsets[0], 2);
    assert_int_equal(offsets[4], 6);
    assert_int_equal(s->ops->position(s, 0), 7);
    assert_int_equal(of(s)->below, 0); // nothing was fetched only to be dropped
    rd_kafka_destroy(producer);
    s->ops->close(s);
}

static void an_unknown_topic_is_named(void **state)
{
    char error[512] = "";
    struct source *s;
    (void)state;

    assert_int_equal(source_kafka_open(&s,
                                       &(struct source_kafka_options){
                                           .bootstrap = bootstrap,
                                           .topics = {[TOPIC_ENGAGEMENTS] = "no_such_topic"}},
                                       error, sizeof error),
                     -ENOENT);
    assert_non_null(strstr(error, "topic no_such_topic does not exist"));
    assert_non_null(strstr(error, bootstrap));
}

static void a_start_outside_of_the_log_says_what_the_log_is(void **state)
{
    int64_t first, end;
    (void)state;

    run("%s topic short 1", broker);
    rd_kafka_t *producer = producer_open(NULL);
    produce_numbers(producer, "short", 0, 0, 100);
    struct source *s = open_topic("short");
    assert_int_equal(s->ops->start(s, &(int64_t){101}, &(int64_t){SOURCE_UNBOUNDED}), -ERANGE);
    assert_non_null(strstr(s->error, "topic short partition 0: offset 101 is beyond the log, which "
                                     "is 0 up to 100"));
    // What was written up to now is no more than its end: not an error.
    start(s, 100, SOURCE_UNBOUNDED);
    assert_int_equal(read_on(s, 0, 1, NULL, NULL), 0);

    // Retention, by hand.
    rd_kafka_queue_t *queue = rd_kafka_queue_new(producer);
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
    rd_kafka_topic_partition_list_add(list, "short", 0)->offset = 30;
    rd_kafka_DeleteRecords_t *request = rd_kafka_DeleteRecords_new(list);
    rd_kafka_DeleteRecords(producer, &request, 1, NULL, queue);
    rd_kafka_event_t *event = rd_kafka_queue_poll(queue, PATIENCE_MS);
    assert_non_null(event);
    assert_int_equal(rd_kafka_event_error(event), 0);
    rd_kafka_event_destroy(event);
    rd_kafka_DeleteRecords_destroy(request);
    rd_kafka_topic_partition_list_destroy(list);
    rd_kafka_queue_destroy(queue);

    check(s, s->ops->bounds(s, &first, &end));
    assert_int_equal(first, 30);
    assert_int_equal(end, 100);
    assert_int_equal(s->ops->start(s, &(int64_t){29}, &(int64_t){SOURCE_UNBOUNDED}), -ERANGE);
    assert_non_null(
        strstr(s->error, "offset 29 was deleted by retention, the log is 30 up to 100"));
    start(s, SOURCE_BEGIN, SOURCE_UNBOUNDED);
    assert_int_equal(s->ops->position(s, 0), 30);
    assert_int_equal(read_on(s, 0, 100, NULL, NULL), 70);
    rd_kafka_destroy(producer);
    s->ops->close(s);
}

static void offsets_are_found_by_time(void **state)
{
    const int64_t t0 = 1700000000000;
    int64_t offsets[3];
    (void)state;

    run("%s topic timed 3", broker);
    rd_kafka_t *producer = producer_open(NULL);
    for (int i = 0; i < 10; i++)
        produce(producer, "timed", 0, NULL, "x", 1, t0 + 1000 * i);
    for (int i = 0; i < 4; i++)
        produce(producer, "timed", 1, NULL, "x", 1, t0 + 100 * i);
    assert_int_equal(rd_kafka_flush(producer, PATIENCE_MS), 0);
    struct source *s = open_topic("timed");
    check(s, s->ops->offsets_for_time(s, t0 + 2500, offsets));
    assert_int_equal(offsets[0], 3);
    assert_int_equal(offsets[1], 4); // none that late: the end
    assert_int_equal(offsets[2], 0); // empty: the end
    check(s, s->ops->offsets_for_time(s, 0, offsets));
    assert_int_equal(offsets[0], 0);
    assert_int_equal(offsets[1], 0);
    rd_kafka_destroy(producer);
    s->ops->close(s);
}

static void a_null_value_is_a_tombstone_and_an_empty_one_is_not(void **state)
{
    struct record records[4];
    int n = 0;
    (void)state;

    run("%s topic stones 1,cleanup.policy=compact", broker);
    rd_kafka_t *producer = producer_open(NULL);
    produce(producer, "stones", 0, "i1", NULL, 0, 0);
    produce(producer, "stones", 0, "i2", "", 0, 0);
    assert_int_equal(rd_kafka_flush(producer, PATIENCE_MS), 0);
    struct source *s = open_topic("stones");
    start(s, SOURCE_BEGIN, SOURCE_UNBOUNDED);
    while (n < 2) {
        check(s, s->ops->wait(s, 1000));
        n = s->ops->read(s, 0, 4, records);
        check(s, n);
    }
    assert_true(records[0].tombstone);
    assert_int_equal(records[0].value_size, 0);
    assert_memory_equal(records[0].key, "i1", 2);
    assert_false(records[1].tombstone);
    assert_int_equal(records[1].value_size, 0);
    rd_kafka_destroy(producer);
    s->ops->close(s);
}

static void a_commit_shows_the_checkpoint_to_lag_tools(void **state)
{
    char why[256];
    (void)state;

    run("%s topic committed 2", broker);
    rd_kafka_t *producer = producer_open(NULL);
    produce_numbers(producer, "committed", 0, 0, 20);
    produce_numbers(producer, "committed", 1, 0, 20);
    rd_kafka_destroy(producer);
    struct source *s = open_topic("committed");
    start(s, 0, SOURCE_UNBOUNDED);
    s->ops->commit(s, (const int64_t[]){7, 9}, 42);
    s->ops->close(s); // and it does not get lost in closing

    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    rd_kafka_conf_set(conf, "bootstrap.servers", bootstrap, why, sizeof why);
    rd_kafka_conf_set(conf, "group.id", "twotower", why, sizeof why);
    rd_kafka_t *other = rd_kafka_new(RD_KAFKA_CONSUMER, conf, why, sizeof why);
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(2);
    rd_kafka_topic_partition_list_add(list, "committed", 0);
    rd_kafka_topic_partition_list_add(list, "committed", 1);
    assert_int_equal(rd_kafka_committed(other, list, PATIENCE_MS), 0);
    assert_int_equal(list->elems[0].offset, 7);
    assert_int_equal(list->elems[1].offset, 9);
    assert_int_equal(list->elems[0].metadata_size, 7);
    assert_memory_equal(list->elems[0].metadata, "ckpt=42", 7);
    rd_kafka_topic_partition_list_destroy(list);
    rd_kafka_destroy(other);
}

static void reading_goes_on_after_the_broker_was_killed_and_came_back(void **state)
{
    enum { N = 5000 };
    static int64_t offsets[2 * N];
    static int values[2 * N];
    (void)state;

    run("%s topic killed 1,flush.messages=1", broker);
    rd_kafka_t *producer = producer_open(NULL);
    produce_numbers(producer, "killed", 0, 0, N);
    struct source *s = open_topic("killed");
    start(s, SOURCE_BEGIN, SOURCE_UNBOUNDED);
    assert_int_equal(read_on(s, 0, N / 2, offsets, values), N / 2);
    run("%s kill", broker);
    for (int i = 0; i < 20; i++)
        check(s, s->ops->wait(s, 50)); // an outage is not an error
    run("%s start", broker);
    produce_numbers(producer, "killed", 0, N, N);
    int n = N / 2;
    for (const int64_t end = now_ms() + PATIENCE_MS; n < 2 * N && now_ms() < end;)
        n += read_on(s, 0, 2 * N - n, offsets + n, values + n);
    assert_int_equal(n, 2 * N);
    for (int i = 0; i < 2 * N; i++) {
        assert_int_equal(offsets[i], i);
        assert_int_equal(values[i], i);
    }
    assert_non_null(strstr(logged, "told once a minute"));
    assert_null(strstr(strstr(logged, "told once a minute") + 1, "told once a minute"));
    rd_kafka_destroy(producer);
    s->ops->close(s);
}

// The next call is to take its look around, which is due once a minute.
static void look_around_now(struct source *s)
{
    of(s)->check_ms = 0;
}

static void partitions_that_were_added_stop_the_source(void **state)
{
    (void)state;
    run("%s topic grown 2", broker);
    struct source *s = open_topic("grown");
    start(s, SOURCE_BEGIN, SOURCE_UNBOUNDED);
    look_around_now(s);
    check(s, s->ops->wait(s, 100));
    run("%s grow grown 3", broker);
    int rc = 0;
    for (int i = 0; i < 50 && rc == 0; i++) {
        look_around_now(s);
        rc = s->ops->wait(s, 100);
    }
    assert_int_equal(rc, -ESTALE);
    assert_non_null(strstr(s->error, "topic grown has 3 partitions now, it had 2"));
    int64_t first[2], end[2];
    assert_int_equal(s->ops->bounds(s, first, end), -ESTALE);
    s->ops->close(s);
}

static void a_topic_that_was_deleted_stops_the_source(void **state)
{
    (void)state;
    run("%s topic deleted 1", broker);
    struct source *s = open_topic("deleted");
    start(s, SOURCE_BEGIN, SOURCE_UNBOUNDED);
    assert_int_equal(read_on(s, 0, 1, NULL, NULL), 0);
    run("%s delete deleted", broker);
    int rc = 0;
    for (int i = 0; i < 50 && rc == 0; i++) {
        struct record r;
        look_around_now(s);
        rc = s->ops->wait(s, 100);
        if (rc == 0)
            rc = s->ops->read(s, 0, 1, &r);
    }
    assert_int_equal(rc, -ENOENT);
    assert_non_null(strstr(s->error, "deleted"));
    assert_non_null(strstr(s->error, "not exist"));
    s->ops->close(s);
}

// ---- logs that were changed on the broker's disk ----

static uint32_t crc32c(const unsigned char *bytes, size_t size)
{
    uint32_t crc = ~0u;
    for (size_t i = 0; i < size; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78 : 0);
    }
    return ~crc;
}

static uint32_t big_endian(const unsigned char *bytes)
{
    return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
}

static void put_big_endian(unsigned char *bytes, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        bytes[i] = (unsigned char)(value >> (24 - 8 * i));
}

// Where the parts of a batch lie in it (KIP-98); its checksum is over what follows it.
enum {
    BATCH_OFFSET = 4, // the lower half
    BATCH_SIZE = 8,
    BATCH_EPOCH = 12,
    BATCH_CRC = 17,
    BATCH_ATTRIBUTES = 21,
    BATCH_LAST = 23, // record, counted from 0
    BATCH_HEADER = 61
};
enum change { CHANGE_BYTE, CHANGE_CODEC, CHANGE_LENGTH, CHANGE_EPOCH, CHANGE_CUT };

// A change to the batch of topic-0 that holds the record at offset, while the broker is down. How a
// producer makes batches is its own business: first is the batch's first offset, next the one
// behind it.
struct changed_log {
    const char *topic;
    uint32_t offset;
    enum change how;
    int first, next;
};

static void change(struct changed_log *to)
{
    static unsigned char bytes[1 << 16];
    const enum change how = to->how;
    char path[512];
    snprintf(path, sizeof path, "%s/data/%s-0/00000000000000000000.log", getenv("KAFKA_STATE_DIR"),
             to->topic);
    FILE *f = fopen(path, "r+");
    assert_non_null(f);
    const size_t size = fread(bytes, 1, sizeof bytes, f);
    size_t at = 0;
    for (;; at += 12 + big_endian(bytes + at + BATCH_SIZE)) {
        assert_true(at + BATCH_HEADER < size);
        to->first = (int)big_endian(bytes + at + BATCH_OFFSET);
        to->next = to->first + (int)big_endian(bytes + at + BATCH_LAST) + 1;
        if (to->next > (int)to->offset)
            break;
    }
    unsigned char *batch = bytes + at;
    const size_t length = 12 + big_endian(batch + BATCH_SIZE);
    if (how == CHANGE_BYTE)
        batch[BATCH_HEADER + 14] ^= 0xff;
    if (how == CHANGE_EPOCH)
        put_big_endian(batch + BATCH_EPOCH, 7);
    if (how == CHANGE_CODEC)
        batch[BATCH_ATTRIBUTES + 1] = 6; // no codec has this number yet
    if (how == CHANGE_LENGTH) {
        batch[BATCH_ATTRIBUTES + 1] = 0; // not compressed, and then no records
        memset(batch + BATCH_HEADER, 0xff, length - BATCH_HEADER);
    }
    if (how == CHANGE_CODEC || how == CHANGE_LENGTH)
        put_big_endian(batch + BATCH_CRC,
                       crc32c(batch + BATCH_ATTRIBUTES, length - BATCH_ATTRIBUTES));
    rewind(f);
    assert_int_equal(fwrite(bytes, 1, size, f), size);
    assert_int_equal(fclose(f), 0);
    if (how == CHANGE_CUT)
        assert_int_equal(truncate(path, (off_t)at), 0);
}

// All of them are changed with one restart of the broker. The source on "cut" has read it to the
// end before.
enum { LOG_DAMAGED, LOG_TAIL, LOG_CODEC, LOG_RECORDS, LOG_EPOCH, LOG_CUT, LOGS };
static struct changed_log logs[LOGS] = {
    [LOG_DAMAGED] = {.topic = "damaged", .offset = 10, .how = CHANGE_BYTE},
    [LOG_TAIL] = {.topic = "damaged-tail", .offset = 29, .how = CHANGE_BYTE},
    [LOG_CODEC] = {.topic = "codec", .offset = 10, .how = CHANGE_CODEC},
    [LOG_RECORDS] = {.topic = "records", .offset = 10, .how = CHANGE_LENGTH},
    [LOG_EPOCH] = {.topic = "epoch", .offset = 10, .how = CHANGE_EPOCH},
    [LOG_CUT] = {.topic = "cut", .offset = 29, .how = CHANGE_CUT},
};
static struct source *on_cut;

static void change_logs(void)
{
    if (on_cut)
        return;
    rd_kafka_t *producer = producer_open(NULL);
    for (int i = 0; i < LOGS; i++) {
        run("%s topic %s 1", broker, logs[i].topic);
        for (int batch = 0; batch < 3; batch++)
            produce_numbers(producer, logs[i].topic, 0, 10 * batch, 10);
    }
    rd_kafka_destroy(producer);
    on_cut = open_topic("cut");
    start(on_cut, SOURCE_BEGIN, SOURCE_UNBOUNDED);
    assert_int_equal(read_on(on_cut, 0, 100, NULL, NULL), 30);
    run("%s stop", broker);
    for (int i = 0; i < LOGS; i++)
        change(&logs[i]);
    run("%s start", broker);
}

// Reads all until the partition ends, and returns why; the count is of the records before that.
// Looks around at each turn, if asked.
static int read_until_it_fails(struct source *s, int *count, bool look)
{
    const int64_t deadline = now_ms() + 2 * PATIENCE_MS;
    struct record records[READ_MAX];
    int got = 0;
    for (*count = 0; got >= 0 && now_ms() < deadline; *count += got > 0 ? got : 0) {
        if (look)
            look_around_now(s);
        got = s->ops->read(s, 0, READ_MAX, records);
        if (got == 0)
            s->ops->wait(s, 100);
    }
    return got;
}

static void assert_ends_with(const char *text, const char *end)
{
    if (strlen(text) < strlen(end) || strcmp(text + strlen(text) - strlen(end), end) != 0)
        fail_msg("'%s' does not end with '%s'", text, end);
}

static void damaged_records_stop_the_partition_and_the_next_readable_one_is_named(void **state)
{
    static const struct {
        int log;
        const char *says, *hint;
    } cases[] = {
        {LOG_DAMAGED, "the records are damaged on the broker",
         "the next readable record is at offset"},
        {LOG_TAIL, "the records are damaged on the broker",
         "no readable record follows, the log ends at"},
        // No error at all comes of these: it is their silence that is noticed.
        {LOG_CODEC, "this librdkafka cannot decompress the records",
         "the next readable record is at offset"},
        {LOG_RECORDS, "", "the next readable record is at offset"},
    };
    (void)state;
    change_logs();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct changed_log *log = &logs[cases[i].log];
        const bool silent = cases[i].log == LOG_RECORDS;
        char says[256];
        int count;
        struct source *s = open_topic(log->topic);
        start(s, SOURCE_BEGIN, SOURCE_UNBOUNDED);
        const int64_t before = now_ms();
        const int rc = read_until_it_fails(s, &count, silent);
        print_message("# %s, %" PRId64 " ms\n", s->error, now_ms() - before);
        assert_int_equal(rc, -EBADMSG);
        assert_int_equal(count, log->first);
        assert_int_equal(s->ops->position(s, 0), log->first);
        snprintf(says, sizeof says, "topic %s partition 0 offset %d: %s", log->topic, log->first,
                 cases[i].says);
        assert_non_null(strstr(s->error, says));
        snprintf(says, sizeof says, "; %s %d", cases[i].hint, log->next);
        assert_ends_with(s->error, says);
        s->ops->close(s);
    }
}

static void a_log_that_was_cut_under_the_reader_stops_it(void **state)
{
    char range[64];
    int count;
    (void)state;
    change_logs();
    assert_int_equal(read_until_it_fails(on_cut, &count, true), -ERANGE);
    assert_int_equal(count, 0);
    print_message("# %s\n", on_cut->error);
    assert_non_null(strstr(on_cut->error, "topic cut partition 0 offset 30: "));
    snprintf(range, sizeof range, "it has 0 up to %d", logs[LOG_CUT].first);
    assert_non_null(strstr(on_cut->error, range));
}

// The batches are of epoch 0, one is of 7, and then 0 again. What follows from that is the
// cutter's.
static void records_carry_the_epoch_of_their_leader(void **state)
{
    struct record records[30];
    int32_t least = INT32_MAX, most = INT32_MIN;
    (void)state;
    change_logs();
    struct source *s = open_topic("epoch");
    start(s, SOURCE_BEGIN, SOURCE_UNBOUNDED);
    for (int seen = 0; seen < 30;) {
        const int n = s->ops->read(s, 0, 30, records);
        assert_true(n >= 0);
        for (int i = 0; i < n; i++) {
            least = records[i].leader_epoch < least ? records[i].leader_epoch : least;
            most = records[i].leader_epoch > most ? records[i].leader_epoch : most;
        }
        seen += n;
        if (n == 0)
            s->ops->wait(s, 100);
    }
    const bool known = of(s)->leader_epoch != NULL; // else this librdkafka has none
    assert_int_equal(least, known ? 0 : -1);
    assert_int_equal(most, known ? 7 : -1);
    s->ops->close(s);
}

static void an_open_transaction_is_waited_for_and_then_told(void **state)
{
    const char *sentence =
        "topic held partition 0: 8 records from offset 6 on wait for a transaction";
    (void)state;
    run("%s topic held 1", broker);
    rd_kafka_t *producer = producer_open("held");
    transact(producer, "held", 5, COMMIT); // and its marker
    assert_null(rd_kafka_begin_transaction(producer));
    produce_numbers(producer, "held", 0, 0, 5);
    rd_kafka_t *other = producer_open(NULL);
    produce_numbers(other, "held", 0, 0, 3);
    struct source *s = open_topic("held");
    start(s, SOURCE_BEGIN, SOURCE_UNBOUNDED);
    assert_int_equal(read_on(s, 0, 5, NULL, NULL), 5);
    for (int i = 0; i < 100 && s->ops->held(s, 0) == 0; i++) {
        check(s, s->ops->wait(s, 100));
        check(s, s->ops->read(s, 0, 1, &(struct record){0}));
    }
    assert_int_equal(s->ops->held(s, 0), 8);
    assert_false(s->ops->at_end(s, 0));
    assert_null(strstr(logged, sentence));
    of(s)->partitions[0].moved_ms -= HOLD_MS; // a minute later
    for (int i = 0; i < 2; i++) {
        of(s)->hold_ms = 0;
        check(s, s->ops->wait(s, 0));
    }
    assert_true(s->ops->at_end(s, 0));
    assert_non_null(strstr(logged, sentence));
    assert_null(strstr(strstr(logged, sentence) + 1, sentence)); // once
    assert_null(rd_kafka_commit_transaction(producer, PATIENCE_MS));
    of(s)->partitions[0].moved_ms = now_ms(); // read_on ends at the end
    assert_int_equal(read_on(s, 0, 8, NULL, NULL), 8);
    assert_int_equal(read_on(s, 0, 1, NULL, NULL), 0);
    assert_int_equal(s->ops->held(s, 0), 0);
    rd_kafka_destroy(producer);
    rd_kafka_destroy(other);
    s->ops->close(s);
}

static void settings_under_which_events_vanish_are_warned_about(void **state)
{
    struct source *s;
    char error[512];
    (void)state;
    run("%s topic compacted 1,cleanup.policy=compact brief 1,retention.ms=60000 "
        "catalogue 1,cleanup.policy=compact,retention.ms=60000 kept 1,retention.ms=3600000",
        broker);
    logged[0] = '\0';
    assert_int_equal(source_kafka_open(&s,
                                       &(struct source_kafka_options){
                                           .bootstrap = bootstrap,
                                           .topics = {[TOPIC_IMPRESSIONS] = "compacted",
                                                      [TOPIC_ENGAGEMENTS] = "brief",
                                                      [TOPIC_SCORES] = "kept",
                                                      [TOPIC_ITEMS] = "catalogue"},
                                           .keep_ms = 3600000,
                                           .log = keep_log,
                                       },
                                       error, sizeof error),
                     0);
    assert_non_null(strstr(logged, "<4>kafka: topic compacted has cleanup.policy=compact"));
    assert_non_null(strstr(logged, "<4>kafka: topic brief has retention.ms=60000, events are "
                                   "needed for 3600000 ms"));
    assert_null(strstr(logged, "topic kept"));
    assert_null(strstr(logged, "topic catalogue"));
    assert_null(strstr(logged, "compacted has retention.ms"));
    s->ops->close(s);
}

// Not a test of anything: the figures for the record.
static void throughput(void **state)
{
    enum { N = 1000000, PARTITIONS = 4 };
    static char value[200];
    int64_t first[PARTITIONS], end[PARTITIONS];
    struct record records[BATCH_MAX];
    struct timespec t[4];
    int64_t n = 0, bytes = 0;
    (void)state;

    run("%s topic fast 4", broker);
    rd_kafka_t *producer = producer_open(NULL);
    for (int i = 0; i < N; i++) {
        memset(value, 'a' + i % 16, sizeof value);
        snprintf(value, sizeof value, "{\"request_id\":\"r%d\",\"user_id\":\"u%d\"", i, i % 9973);
        produce(producer, "fast", i % PARTITIONS, "user", value, sizeof value, 0);
        if (i % 10000 == 0)
            rd_kafka_poll(producer, 0);
    }
    assert_int_equal(rd_kafka_flush(producer, 4 * PATIENCE_MS), 0);
    rd_kafka_destroy(producer);
    for (int replay = 0; replay < 2; replay++) {
        struct source *s = open_topics("fast", NULL, NULL, replay);
        check(s, s->ops->bounds(s, first, end));
        clock_gettime(CLOCK_MONOTONIC, &t[0]);
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t[1]);
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t[2]);
        const struct timespec from[3] = {t[0], t[1], t[2]};
        check(s, s->ops->start(s, first, end));
        for (n = 0; n < N;) {
            int64_t read = 0;
            for (int p = 0; p < PARTITIONS; p++) {
                const int got = s->ops->read(s, p, BATCH_MAX, records);
                check(s, got);
                for (int i = 0; i < got; i++)
                    bytes += (int64_t)records[i].value_size;
                read += got;
            }
            n += read;
            if (read == 0)
                check(s, s->ops->wait(s, 1000));
        }
        clock_gettime(CLOCK_MONOTONIC, &t[0]);
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t[1]);
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t[2]);
        double seconds[3];
        for (int i = 0; i < 3; i++)
            seconds[i] = (double)(t[i].tv_sec - from[i].tv_sec) +
                         1e-9 * (double)(t[i].tv_nsec - from[i].tv_nsec);
        printf("# %s: %.0f records/s of %zu bytes; CPU per record %.0f ns reading thread, "
               "%.0f ns process (librdkafka %s)\n",
               replay ? "replay" : "live", (double)n / seconds[0], sizeof value,
               1e9 * seconds[1] / (double)n, 1e9 * seconds[2] / (double)n, rd_kafka_version_str());
        fflush(stdout);
        s->ops->close(s);
    }
    assert_int_equal(bytes, 2 * (int64_t)N * (int64_t)sizeof value);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_record_of_three_topics_arrives_once_and_in_order),
        cmocka_unit_test(the_partitions_are_sorted_by_topic_and_number),
        cmocka_unit_test(empty_partitions_are_at_their_end_and_wake_up_later),
        cmocka_unit_test(a_bounded_range_ends_although_its_tail_was_aborted),
        cmocka_unit_test(a_bounded_range_ends_before_an_open_transaction),
        cmocka_unit_test(reading_resumes_at_the_given_offsets),
        cmocka_unit_test(an_unknown_topic_is_named),
        cmocka_unit_test(a_start_outside_of_the_log_says_what_the_log_is),
        cmocka_unit_test(offsets_are_found_by_time),
        cmocka_unit_test(a_null_value_is_a_tombstone_and_an_empty_one_is_not),
        cmocka_unit_test(a_commit_shows_the_checkpoint_to_lag_tools),
        cmocka_unit_test(reading_goes_on_after_the_broker_was_killed_and_came_back),
        cmocka_unit_test(partitions_that_were_added_stop_the_source),
        cmocka_unit_test(a_topic_that_was_deleted_stops_the_source),
        cmocka_unit_test(damaged_records_stop_the_partition_and_the_next_readable_one_is_named),
        cmocka_unit_test(a_log_that_was_cut_under_the_reader_stops_it),
        cmocka_unit_test(records_carry_the_epoch_of_their_leader),
        cmocka_unit_test(an_open_transaction_is_waited_for_and_then_told),
        cmocka_unit_test(settings_under_which_events_vanish_are_warned_about),
        cmocka_unit_test(throughput),
    };
    bootstrap = getenv("KAFKA_BOOTSTRAP");
    broker = getenv("KAFKA_BROKER");
    if (!bootstrap || !broker || !getenv("KAFKA_STATE_DIR")) {
        fprintf(stderr, "%s: tests/kafka/run.sh runs this\n", argv[0]);
        return 77;
    }
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
