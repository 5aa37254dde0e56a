// SPDX-License-Identifier: Apache-2.0
#include "pipeline/kafka_conf.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <syslog.h>
#include <unistd.h>

struct setting {
    const char *key;
    const char *value[KAFKA_USES]; // as live, old, writes; NULL: left alone
    int since, before;             // versions of librdkafka, 0: any
};

// What we set; a property of the user comes later and wins, unless it is one of the owned ones.
static const struct setting settings[] = {
    {"client.id", {"twotower", "twotower", "twotower"}, 0, 0},
    // Only to commit for lag tools. A group without members accepts commits from anyone.
    {"group.id", {"twotower", "twotower", NULL}, 0, 0},
    {"enable.auto.commit", {"false", "false", NULL}, 0, 0},
    {"enable.auto.offset.store", {"false", "false", NULL}, 0, 0},
    // Anything else silently loses records or repeats them.
    {"auto.offset.reset", {"error", "error", NULL}, 0, 0},
    {"isolation.level", {"read_committed", "read_committed", NULL}, 0, 0},
    {"enable.partition.eof", {"true", "true", NULL}, 0, 0},
    // Off by default, and a byte that flipped on the broker's disk is then delivered as data.
    // Costs 2 to 3 % of the client's time.
    {"check.crcs", {"true", "true", NULL}, 0, 0},
    {"fetch.min.bytes", {"1", "100000", NULL}, 0, 0},
    {"fetch.wait.max.ms", {"100", "500", NULL}, 0, 0},
    {"fetch.message.max.bytes", {"1048576", "1048576", NULL}, 0, 0},
    {"fetch.error.backoff.ms", {"100", "100", NULL}, 0, 0},
    // A queue above its limits is looked at again after fetch.queue.backoff.ms. Before 2.2.0 that
    // was always 1 s, in which a small queue runs dry: it has to hold more than a second's records.
    {"fetch.queue.backoff.ms", {"10", "10", NULL}, KAFKA_VERSION(2, 2, 0), 0},
    {"queued.min.messages", {"20000", "100000", NULL}, KAFKA_VERSION(2, 2, 0), 0},
    {"queued.max.messages.kbytes", {"8192", "65536", NULL}, KAFKA_VERSION(2, 2, 0), 0},
    {"queued.min.messages", {"200000", "1000000", NULL}, 0, KAFKA_VERSION(2, 2, 0)},
    {"queued.max.messages.kbytes", {"32768", "65536", NULL}, 0, KAFKA_VERSION(2, 2, 0)},
    {"socket.keepalive.enable", {"true", "true", "true"}, 0, 0},
    {"socket.nagle.disable", {"true", "true", "true"}, 0, 0},
    {"reconnect.backoff.ms", {"100", "100", "100"}, 0, 0},
    {"reconnect.backoff.max.ms", {"5000", "5000", "5000"}, 0, 0},
    {"topic.metadata.refresh.interval.ms", {"60000", "60000", NULL}, 0, 0},
    // 2.5.0 began to send the client's metrics to the broker.
    {"enable.metrics.push", {"false", "false", "false"}, KAFKA_VERSION(2, 5, 0), 0},
    // The log lines come to the thread that polls, not from librdkafka's own ones.
    {"log.queue", {"true", "true", "true"}, 0, 0},
    // Nothing is lost, and nothing is there twice while the process lives. A broker that is away is
    // waited for: what cannot be sent yet is in a file.
    {"enable.idempotence", {NULL, NULL, "true"}, 0, 0},
    {"acks", {NULL, NULL, "all"}, 0, 0},
    {"message.timeout.ms", {NULL, NULL, "0"}, 0, 0},
    // Of what is on its way: PENDING_MAX of pipeline/dead_letter_kafka.c is the first of them.
    {"queue.buffering.max.messages", {NULL, NULL, "4096"}, 0, 0},
    {"queue.buffering.max.kbytes", {NULL, NULL, "16384"}, 0, 0},
};

static const struct {
    const char *key, *why;
} owned[] = {
    {"bootstrap.servers", "it has an option of its own"},
    {"metadata.broker.list", "it has an option of its own"},
    {"enable.auto.commit", "positions live in the checkpoint"},
    {"auto.commit.enable", "positions live in the checkpoint"},
    {"enable.auto.offset.store", "positions live in the checkpoint"},
    {"auto.offset.reset", "a reset would lose or repeat records silently"},
    {"enable.partition.eof", "the end of a log could not be told from a silence"},
    {"check.crcs", "damaged records would be learned from"},
    {"group.instance.id", "partitions are assigned by hand, there is no group"},
    {"group.protocol", "partitions are assigned by hand, there is no group"},
    {"enable.idempotence", "a dead letter would be lost, or be there twice"},
    {"acks", "a dead letter that no broker has yet would count as delivered"},
    {"request.required.acks", "a dead letter that no broker has yet would count as delivered"},
    {"message.timeout.ms", "dead letters wait for the broker"},
    {"delivery.timeout.ms", "dead letters wait for the broker"},
    {"transactional.id", "dead letters are sent without transactions"},
    {"queue.buffering.max.messages", "it bounds what is known of dead letters on their way"},
    {"log.queue", "log lines must come from the reading thread"},
};

// Values of properties whose name contains one of these never reach a message.
static const char *const secrets[] = {"password", "secret", "pem", "oauthbearer", "username"};

__attribute__((format(printf, 4, 5))) static int fail(char *error, size_t error_size, int rc,
                                                      const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(error, error_size, format, args);
    va_end(args);
    return rc;
}

const char *kafka_conf_owned(size_t i, const char **why)
{
    if (i >= sizeof owned / sizeof *owned)
        return NULL;
    *why = owned[i].why;
    return owned[i].key;
}

int kafka_conf_check_version(const struct kafka_conf_options *options, int version,
                             const char *mechanism, char *error, size_t error_size)
{
    if (version >= KAFKA_VERSION(2, 5, 0) && version < KAFKA_VERSION(2, 5, 1))
        return fail(error, error_size, -ENOTSUP,
                    "librdkafka 2.5.0 aborts when it sends metrics: use 2.5.3");
    if (version >= KAFKA_VERSION(2, 10, 0) && version < KAFKA_VERSION(2, 10, 1))
        return fail(
            error, error_size, -ENOTSUP,
            "librdkafka 2.10.0 reconnects without end and reads freed metadata: use 2.10.1");
    if (version < KAFKA_VERSION(2, 6, 1) && !strncasecmp(mechanism, "SCRAM", 5) && options->log)
        options->log(
            options->log_arg, LOG_WARNING,
            "kafka: librdkafka before 2.6.1 cannot log in with SCRAM at Kafka 4: \"invalid "
            "credentials\" means this, not the password");
    return 0;
}

static int conf_set(rd_kafka_conf_t *conf, const char *key, const char *value, char *error,
                    size_t error_size)
{
    char why[256] = "";
    bool secret = false;

    if (rd_kafka_conf_set(conf, key, value, why, sizeof why) == RD_KAFKA_CONF_OK)
        return 0;
    for (size_t i = 0; i < sizeof secrets / sizeof *secrets; i++)
        secret |= strcasestr(key, secrets[i]) != NULL;
    return fail(error, error_size, -EINVAL, "Kafka property %s: %s", key,
                secret ? "librdkafka does not accept it" : why);
}

// librdkafka says of a file that is not there "x509 certificate routines::system lib".
static int file_check(const struct source_kafka_property *property, char *error, size_t error_size)
{
    static const char end[] = ".location";
    const size_t size = strlen(property->key);

    // "probe" is librdkafka's word for looking in the usual places.
    if (strncmp(property->key, "ssl.", 4) != 0 || size < sizeof end ||
        strcmp(property->key + size - (sizeof end - 1), end) != 0 || !property->value[0] ||
        !strcmp(property->value, "probe") || access(property->value, R_OK) == 0)
        return 0;
    return fail(error, error_size, -EINVAL, "Kafka property %s: %s: %s", property->key,
                property->value, strerror(errno));
}

static int property_set(rd_kafka_conf_t *conf, const struct source_kafka_property *property,
                        char *error, size_t error_size)
{
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        if (!strcmp(property->key, owned[i].key))
            return fail(error, error_size, -EINVAL, "Kafka property %s cannot be set: %s",
                        owned[i].key, owned[i].why);
    const int rc = conf_set(conf, property->key, property->value, error, error_size);
    return rc < 0 ? rc : file_check(property, error, error_size);
}

int kafka_conf_build(rd_kafka_conf_t **out, const struct kafka_conf_options *options, char *error,
                     size_t error_size)
{
    const int version = rd_kafka_version();
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    char mechanism[64] = "";
    size_t size = sizeof mechanism;

    *out = NULL;
    int rc = conf_set(conf, "bootstrap.servers", options->bootstrap, error, error_size);
    for (size_t i = 0; rc == 0 && i < sizeof settings / sizeof *settings; i++) {
        const struct setting *to = &settings[i];
        const char *value = to->value[options->use];
        if (value && version >= to->since && (!to->before || version < to->before))
            rc = conf_set(conf, to->key, value, error, error_size);
    }
    for (int i = 0; rc == 0 && i < options->n_properties; i++)
        rc = property_set(conf, &options->properties[i], error, error_size);
    if (rc == 0) {
        rd_kafka_conf_get(conf, "sasl.mechanisms", mechanism, &size);
        rc = kafka_conf_check_version(options, version, mechanism, error, error_size);
    }
    if (rc < 0)
        rd_kafka_conf_destroy(conf);
    else
        *out = conf;
    return rc;
}
