// SPDX-License-Identifier: Apache-2.0
//
// librdkafka's configuration for the clients of this process: what we set, what a person may set
// (source.kafka.*), what nobody may, and which versions of librdkafka cannot be used. For
// pipeline/source_kafka.c and pipeline/dead_letter_kafka.c, which alone see librdkafka beside this.
//
// No value of a property that may hold a secret reaches a message.
#pragma once

#include <librdkafka/rdkafka.h>
#include <stddef.h>

#include "pipeline/source.h"

#define KAFKA_VERSION(major, minor, patch) ((major) << 24 | (minor) << 16 | (patch) << 8)

enum kafka_use {
    KAFKA_READS_LIVE,
    KAFKA_READS_OLD, // larger fetches instead of low latency
    KAFKA_WRITES,    // an idempotent producer, which waits for brokers that are away without end
    KAFKA_USES
};

struct kafka_conf_options {
    enum kafka_use use;
    const char *bootstrap;
    int n_properties;
    const struct source_kafka_property *properties; // later than ours; the owned ones are refused
    void (*log)(void *arg, int level, const char *text); // may be NULL
    void *log_arg;
};

// 0, or -EINVAL and -ENOTSUP with a sentence. The caller adds its callbacks and destroys *conf,
// which is NULL after a failure.
int kafka_conf_build(rd_kafka_conf_t **conf, const struct kafka_conf_options *options, char *error,
                     size_t error_size);
// Warns about, or refuses with -ENOTSUP, the versions of librdkafka whose defects would hit us:
// kafka_conf_build asks it about the one that is linked.
int kafka_conf_check_version(const struct kafka_conf_options *options, int version,
                             const char *mechanism, char *error, size_t error_size);
// The property's name of the owned one at index i, or NULL behind the last; *why it is owned.
const char *kafka_conf_owned(size_t i, const char **why);
