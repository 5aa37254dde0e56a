// SPDX-License-Identifier: Apache-2.0
//
// What the kafka source does without a broker: configuration, and faults that librdkafka's built-in
// mock cluster can produce. tests/kafka/test_source_kafka.c has the rest.
//
// The source is included, not linked: versions of librdkafka are then arguments, and the look
// around, which comes once a minute, can be brought forward.
#include "pipeline/source_kafka.c"

#include <librdkafka/rdkafka_mock.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

enum { FETCH = 1, PATIENCE_MS = 20000 }; // FETCH: the protocol's number of the request

static char logged[4096];

static void keep_log(void *arg, int level, const char *text)
{
    const size_t used = strlen(logged);
    (void)arg;
    snprintf(logged + used, sizeof logged - used, "<%d>%s\n", level, text);
}

static int open_with(struct source **s, const char *bootstrap, const char *topic, const char *key,
                     const char *value, char *error, size_t error_size)
{
    logged[0] = error[0] = '\0';
    return source_kafka_open(s,
                             &(struct source_kafka_options){
                                 .bootstrap = bootstrap,
                                 .topics = {[TOPIC_IMPRESSIONS] = topic},
                                 .n_properties = key ? 1 : 0,
                                 .properties = &(struct source_kafka_property){key, value},
                                 .log = keep_log,
                             },
                             error, error_size);
}

// ---- configuration ----

static void properties_that_are_ours_are_refused_by_name(void **state)
{
    (void)state;
    const char *key, *why;
    for (size_t i = 0; (key = kafka_conf_owned(i, &why)); i++) {
        struct source *s;
        char error[512];
        assert_int_equal(open_with(&s, "127.0.0.1:1", "t", key, "true", error, sizeof error),
                         -EINVAL);
        assert_non_null(strstr(error, key));
        assert_non_null(strstr(error, why));
    }
}

static void a_property_that_librdkafka_does_not_know_is_refused_by_name(void **state)
{
    struct source *s;
    char error[512];
    (void)state;
    assert_int_equal(open_with(&s, "127.0.0.1:1", "t", "no.such.key", "1", error, sizeof error),
                     -EINVAL);
    assert_non_null(strstr(error, "no.such.key"));
    assert_int_equal(
        open_with(&s, "127.0.0.1:1", "t", "fetch.wait.max.ms", "soon", error, sizeof error),
        -EINVAL);
    assert_non_null(strstr(error, "fetch.wait.max.ms"));
}

static void a_certificate_that_is_not_there_is_named(void **state)
{
    struct source *s;
    char error[512];
    (void)state;
    assert_int_equal(
        open_with(&s, "127.0.0.1:1", "t", "ssl.ca.location", "/no/such.crt", error, sizeof error),
        -EINVAL);
    assert_string_equal(error,
                        "Kafka property ssl.ca.location: /no/such.crt: No such file or directory");
}

static void a_secret_reaches_no_message(void **state)
{
    static const char *const keys[] = {"sasl.pasword", "ssl.key.pam.pem", "oauthbearer.secret"};
    (void)state;
    for (size_t i = 0; i < 3; i++) {
        struct source *s;
        char error[512];
        assert_int_equal(open_with(&s, "127.0.0.1:1", "t", keys[i], "hunter2", error, sizeof error),
                         -EINVAL);
        assert_null(strstr(error, "hunter2"));
        assert_null(strstr(logged, "hunter2"));
    }
}

static void topics_are_named_once_and_as_kafka_allows(void **state)
{
    char name[TOPIC_NAME_MAX + 2], error[512];
    struct source_kafka_options options = {.bootstrap = "127.0.0.1:1"};
    struct source *s;
    (void)state;

    assert_int_equal(source_kafka_open(&s, &options, error, sizeof error), -EINVAL);
    memset(name, 'a', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    options.topics[TOPIC_SCORES] = name;
    assert_int_equal(source_kafka_open(&s, &options, error, sizeof error), -EINVAL);
    options.topics[TOPIC_SCORES] = options.topics[TOPIC_ITEMS] = "t";
    assert_int_equal(source_kafka_open(&s, &options, error, sizeof error), -EINVAL);
    assert_string_equal(error, "Kafka topic t is named twice");
}

static void versions_with_known_defects_are_refused_or_warned_about(void **state)
{
    static const struct {
        int version;
        const char *mechanism;
        int rc;
        bool warned;
    } cases[] = {
        {KAFKA_VERSION(2, 0, 2) | 0xff, "GSSAPI", 0, false},
        {KAFKA_VERSION(2, 0, 2) | 0xff, "SCRAM-SHA-256", 0, true},
        {KAFKA_VERSION(2, 6, 0) | 0xff, "scram-sha-512", 0, true},
        {KAFKA_VERSION(2, 6, 1) | 0xff, "SCRAM-SHA-256", 0, false},
        {KAFKA_VERSION(2, 5, 0) | 0xff, "PLAIN", -ENOTSUP, false},
        {KAFKA_VERSION(2, 5, 3) | 0xff, "PLAIN", 0, false},
        {KAFKA_VERSION(2, 10, 0) | 0xff, "PLAIN", -ENOTSUP, false},
        {KAFKA_VERSION(2, 10, 1) | 0xff, "PLAIN", 0, false},
    };
    const struct kafka_conf_options options = {.log = keep_log};
    char error[512];
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        logged[0] = '\0';
        assert_int_equal(kafka_conf_check_version(&options, cases[i].version, cases[i].mechanism,
                                                  error, sizeof error),
                         cases[i].rc);
        assert_int_equal(strstr(logged, "2.6.1") != NULL, cases[i].warned);
    }
}

static void a_broker_that_is_not_there_is_named_within_the_time(void **state)
{
    struct source *s;
    char error[512];
    const int64_t before = now_ms();
    (void)state;
    assert_int_equal(open_with(&s, "127.0.0.1:1", "t", NULL, NULL, error, sizeof error),
                     -EHOSTUNREACH);
    assert_true(now_ms() - before < REPLY_TIMEOUT_MS + 3000);
    assert_non_null(strstr(error, "127.0.0.1:1"));
    assert_non_null(strstr(error, "Connection refused"));
}

// ---- faults, by the mock cluster ----

struct cluster {
    rd_kafka_t *producer; // holds the cluster
    rd_kafka_mock_cluster_t *mock;
    const char *bootstrap;
};

static int setup(void **state)
{
    static struct cluster c;
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    char why[256];

    rd_kafka_conf_set(conf, "test.mock.num.brokers", "1", why, sizeof why);
    rd_kafka_conf_set_log_cb(conf, NULL);
    c.producer = rd_kafka_new(RD_KAFKA_PRODUCER, conf, why, sizeof why);
    c.mock = rd_kafka_handle_mock_cluster(c.producer);
    c.bootstrap = rd_kafka_mock_cluster_bootstraps(c.mock);
    *state = &c;
    return rd_kafka_mock_topic_create(c.mock, "t", 2, 1);
}

static int teardown(void **state)
{
    struct cluster *c = *state;
    rd_kafka_destroy(c->producer);
    return 0;
}

static void produce(struct cluster *c, int partition, int n)
{
    for (int i = 0; i < n; i++)
        assert_int_equal(rd_kafka_producev(c->producer, RD_KAFKA_V_TOPIC("t"),
                                           RD_KAFKA_V_PARTITION(partition),
                                           RD_KAFKA_V_VALUE("x", 1), RD_KAFKA_V_END),
                         0);
    assert_int_equal(rd_kafka_flush(c->producer, PATIENCE_MS), 0);
}

static struct source *open_at(struct cluster *c, int64_t next0, int64_t next1)
{
    struct source *s;
    char error[512];
    const int64_t next[2] = {next0, next1}, stop[2] = {SOURCE_UNBOUNDED, SOURCE_UNBOUNDED};

    if (open_with(&s, c->bootstrap, "t", "group.id", "g", error, sizeof error))
        fail_msg("open: %s", error);
    if (s->ops->start(s, next, stop))
        fail_msg("start: %s", s->error);
    return s;
}

// Reads until n records have come, or an error. The records' offsets must follow each other.
static int read_on(struct source *s, int p, int n)
{
    const int64_t end = now_ms() + PATIENCE_MS;
    struct record records[64];
    int count = 0;

    while (count < n) {
        const int64_t before = s->ops->position(s, p);
        const int got = s->ops->read(s, p, n - count < 64 ? n - count : 64, records);
        if (got < 0)
            return got;
        for (int i = 0; i < got; i++)
            assert_int_equal(records[i].offset, before + i);
        count += got;
        if (got > 0)
            continue;
        if (now_ms() > end)
            fail_msg("%d of %d records", count, n);
        const int rc = s->ops->wait(s, 100);
        if (rc < 0)
            return rc;
    }
    return count;
}

static void errors_that_pass_are_waited_out(void **state)
{
    struct cluster *c = *state;
    produce(c, 0, 50);
    struct source *s = open_at(c, 0, 0);
    rd_kafka_mock_push_request_errors(c->mock, FETCH, 3, RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
                                      RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR,
                                      RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT);
    assert_int_equal(read_on(s, 0, 50), 50);
    rd_kafka_mock_broker_set_down(c->mock, 1);
    for (int i = 0; i < 10; i++)
        assert_int_equal(s->ops->wait(s, 50), 0);
    rd_kafka_mock_broker_set_up(c->mock, 1);
    produce(c, 0, 50);
    assert_int_equal(read_on(s, 0, 50), 50);
    s->ops->close(s);
}

static void an_error_that_stays_ends_its_partition_and_names_it(void **state)
{
    static const struct {
        rd_kafka_resp_err_t code;
        int rc;
    } cases[] = {
        {RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE, -ERANGE},
        {RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, -EACCES},
    };
    struct cluster *c = *state;
    produce(c, 1, 100);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct source *s = open_at(c, 0, 0);
        assert_int_equal(read_on(s, 1, 100 + (int)i), 100 + (int)i);
        for (int n = 0; n < 50; n++)
            rd_kafka_mock_push_request_errors(c->mock, FETCH, 1, cases[i].code);
        poll(NULL, 0, 500); // the fetch that is on its way still succeeds
        produce(c, 1, 1);
        assert_int_equal(read_on(s, 1, 1), cases[i].rc);
        rd_kafka_mock_clear_request_errors(c->mock, FETCH);
        assert_non_null(strstr(s->error, "topic t partition 1 offset 10"));
        // And it stays ended.
        assert_int_equal(s->ops->read(s, 1, 1, &(struct record){0}), cases[i].rc);
        assert_false(s->ops->at_end(s, 1));
        s->ops->close(s);
    }
}

static void a_topic_that_may_not_be_read_is_named(void **state)
{
    struct cluster *c = *state;
    struct source *s;
    char error[512];
    rd_kafka_mock_topic_set_error(c->mock, "t", RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED);
    assert_int_equal(open_with(&s, c->bootstrap, "t", NULL, NULL, error, sizeof error), -EACCES);
    assert_non_null(strstr(error, "topic t may not be read"));
}

static void a_fatal_error_of_the_client_ends_the_source(void **state)
{
    struct source *s = open_at(*state, 0, 0);
    rd_kafka_test_fatal_error(of(s)->client, RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID, "by the test");
    int rc = 0;
    for (int i = 0; i < 20 && rc == 0; i++)
        rc = s->ops->wait(s, 50);
    assert_int_equal(rc, -EIO);
    assert_non_null(strstr(s->error, "by the test"));
    assert_int_equal(s->ops->read(s, 0, 1, &(struct record){0}), -EIO);
    s->ops->close(s);
}

static void records_below_the_position_are_dropped_and_counted(void **state)
{
    struct cluster *c = *state;
    produce(c, 0, 30);
    struct source *s = open_at(c, 0, 0);
    of(s)->partitions[0].next = 20; // as if librdkafka delivered again what was delivered before
    assert_int_equal(read_on(s, 0, 10), 10);
    assert_int_equal(of(s)->below, 20);
    of(s)->check_ms = 0;
    s->ops->wait(s, 0);
    assert_non_null(strstr(logged, "20 records below their position were dropped"));
    s->ops->close(s);
}

static void a_silent_partition_gets_new_clients_and_then_ends(void **state)
{
    struct cluster *c = *state;
    produce(c, 0, 10);
    struct source *s = open_at(c, 0, 0);
    assert_int_equal(read_on(s, 0, 10), 10);
    for (int i = 0; i < 100 && !s->ops->at_end(s, 0); i++) {
        assert_int_equal(s->ops->read(s, 0, 1, &(struct record){0}), 0);
        s->ops->wait(s, 50);
    }
    assert_true(s->ops->at_end(s, 0));
    // No fetch succeeds any more, and librdkafka does not complain. The fetch that is on its way
    // still does, hence the pause before there is anything to fetch.
    for (int n = 0; n < 500; n++)
        rd_kafka_mock_push_request_errors(c->mock, FETCH, 1,
                                          RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION);
    poll(NULL, 0, 500);
    produce(c, 0, 10);
    // Every second look, since a record may arrive just before one; and a new client may not be
    // connected yet.
    int rc = 0, restarts = 0;
    for (int i = 0; i < 50 && rc == 0; i++) {
        of(s)->check_ms = 0;
        rc = s->ops->wait(s, 100);
        if (rc == 0)
            rc = s->ops->read(s, 0, 1, &(struct record){0});
        if (rc == 0)
            s->ops->read(s, 1, 1, &(struct record){0});
    }
    for (const char *at = logged; (at = strstr(at, "new client")); at++)
        restarts++;
    assert_int_equal(restarts, STALLS_MAX);
    assert_int_equal(rc, -EIO);
    assert_non_null(strstr(s->error, "topic t partition 0 offset 10: no records arrive"));
    assert_int_equal(of(s)->partitions[1].stalls, 0); // its log does not go on
    s->ops->close(s);
}

static void a_partition_that_is_not_read_ends_one_wait_only(void **state)
{
    struct cluster *c = *state;
    produce(c, 0, 10);
    struct source *s = open_at(c, 0, 0);
    // The pipeline holds partition 0 back and waits for partition 1.
    for (int i = 0; i < 50 && rd_kafka_queue_length(of(s)->partitions[0].queue) == 0; i++)
        poll(NULL, 0, 50);
    assert_int_equal(s->ops->wait(s, 5000), 0);
    int64_t before = now_ms();
    assert_int_equal(s->ops->wait(s, 300), 0); // the end of partition 1 may come late
    assert_int_equal(s->ops->wait(s, 300), 0);
    assert_true(now_ms() - before >= 290);
    produce(c, 1, 1);
    assert_int_equal(read_on(s, 1, 1), 1);
    // Once it was read, it counts again.
    assert_int_equal(s->ops->read(s, 0, 1, &(struct record){0}), 1);
    before = now_ms();
    assert_int_equal(s->ops->wait(s, 5000), 0);
    assert_true(now_ms() - before < 1000);
    s->ops->close(s);
}

static void a_new_client_goes_on_where_the_old_one_was(void **state)
{
    struct cluster *c = *state;
    produce(c, 0, 100);
    produce(c, 1, 100);
    struct source *s = open_at(c, 0, 50);
    assert_int_equal(read_on(s, 0, 30), 30);
    of(s)->restart = true;
    assert_int_equal(read_on(s, 0, 70), 70);
    assert_int_equal(read_on(s, 1, 50), 50);
    s->ops->close(s);
}

static void the_ends_that_fetches_bring_along_are_known(void **state)
{
    struct cluster *c = *state;
    produce(c, 0, 100);
    struct source *s = open_at(c, 40, 0);
    assert_int_equal(read_on(s, 0, 10), 10);
    assert_int_equal(s->ops->end(s, 0), 100);
    assert_true(s->ops->end(s, 1) <= 0); // nothing was fetched from there
    s->ops->close(s);
}

static int32_t made_up_epoch(const rd_kafka_message_t *m)
{
    return m->offset < 20 ? 3 : 2;
}

static void records_carry_the_epoch_of_their_leader_where_librdkafka_knows_it(void **state)
{
    struct cluster *c = *state;
    struct record records[40];
    produce(c, 0, 40);
    struct source *s = open_at(c, 0, 0);
    of(s)->leader_epoch = made_up_epoch;
    for (int seen = 0; seen < 40;) {
        const int n = s->ops->read(s, 0, 40, records);
        assert_true(n >= 0);
        for (int i = 0; i < n; i++)
            assert_int_equal(records[i].leader_epoch, records[i].offset < 20 ? 3 : 2);
        seen += n;
        if (n == 0)
            s->ops->wait(s, 100);
    }
    s->ops->close(s);
}

static void brokers_that_are_away_are_timed_until_one_answers(void **state)
{
    struct cluster *c = *state;
    struct source *s = open_at(c, 0, 0);
    assert_int_equal(s->ops->away_ms(s), 0);
    rd_kafka_mock_broker_set_down(c->mock, 1);
    const int64_t end = now_ms() + PATIENCE_MS;
    while (s->ops->away_ms(s) == 0 && now_ms() < end)
        assert_int_equal(s->ops->wait(s, 50), 0);
    const int64_t away = s->ops->away_ms(s);
    assert_true(away > 0);
    of(s)->ask_ms = 0; // the question whether it is back has no answer
    assert_int_equal(s->ops->wait(s, 50), 0);
    assert_int_equal(s->ops->wait(s, 50), 0);
    assert_true(s->ops->away_ms(s) > away);
    rd_kafka_mock_broker_set_up(c->mock, 1);
    while (s->ops->away_ms(s) > 0 && now_ms() < end)
        assert_int_equal(s->ops->wait(s, 50), 0);
    assert_int_equal(s->ops->away_ms(s), 0);
    assert_non_null(strstr(logged, "<5>kafka: the brokers answer again, after "));
    s->ops->close(s);
}

// A log of which [from, to) cannot be read. What is asked is counted.
struct torn_log {
    int64_t from, to, end;
    int asked;
};

static int64_t torn_readable(void *arg, int64_t offset)
{
    struct torn_log *l = arg;
    l->asked++;
    assert_true(offset < l->end);
    return offset >= l->from && offset < l->to ? -1 : offset;
}

static void the_next_readable_offset_is_found_behind_any_gap(void **state)
{
    (void)state;
    for (int64_t size = 0; size < 200; size++)
        for (int64_t behind = 0; behind < 3; behind++) {
            struct torn_log l = {.from = 50, .to = 50 + size, .end = 50 + size + behind};
            if (l.end == 50)
                continue;
            assert_int_equal(kafka_probe_search(50, l.end, torn_readable, &l), l.to);
            assert_true(l.asked <= 18); // twice the doublings
        }
}

static void properties_of_the_user_win_over_ours(void **state)
{
    struct cluster *c = *state;
    struct source *s;
    char error[512], value[64];
    size_t size = sizeof value;
    assert_int_equal(
        open_with(&s, c->bootstrap, "t", "fetch.wait.max.ms", "17", error, sizeof error), 0);
    assert_int_equal(rd_kafka_conf_get(of(s)->conf, "fetch.wait.max.ms", value, &size), 0);
    assert_string_equal(value, "17");
    size = sizeof value;
    assert_int_equal(rd_kafka_conf_get(of(s)->conf, "auto.offset.reset", value, &size), 0);
    assert_string_equal(value, "error");
    s->ops->close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(properties_that_are_ours_are_refused_by_name),
        cmocka_unit_test(a_property_that_librdkafka_does_not_know_is_refused_by_name),
        cmocka_unit_test(a_certificate_that_is_not_there_is_named),
        cmocka_unit_test(a_secret_reaches_no_message),
        cmocka_unit_test(topics_are_named_once_and_as_kafka_allows),
        cmocka_unit_test(versions_with_known_defects_are_refused_or_warned_about),
        cmocka_unit_test(a_broker_that_is_not_there_is_named_within_the_time),
        cmocka_unit_test(the_next_readable_offset_is_found_behind_any_gap),
        cmocka_unit_test_setup_teardown(
            records_carry_the_epoch_of_their_leader_where_librdkafka_knows_it, setup, teardown),
        cmocka_unit_test_setup_teardown(brokers_that_are_away_are_timed_until_one_answers, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(properties_of_the_user_win_over_ours, setup, teardown),
        cmocka_unit_test_setup_teardown(errors_that_pass_are_waited_out, setup, teardown),
        cmocka_unit_test_setup_teardown(an_error_that_stays_ends_its_partition_and_names_it, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(a_topic_that_may_not_be_read_is_named, setup, teardown),
        cmocka_unit_test_setup_teardown(a_fatal_error_of_the_client_ends_the_source, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(records_below_the_position_are_dropped_and_counted, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(a_silent_partition_gets_new_clients_and_then_ends, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(a_partition_that_is_not_read_ends_one_wait_only, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(the_ends_that_fetches_bring_along_are_known, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(a_new_client_goes_on_where_the_old_one_was, setup,
                                        teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
