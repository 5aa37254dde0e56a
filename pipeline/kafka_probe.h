// SPDX-License-Identifier: Apache-2.0
//
// Questions to Kafka beside the reading: where a damaged log can be read again, and what the
// topics' settings do to their records. They take a while, the calling thread waits, and nothing
// of the source's own client or positions changes.
#pragma once

#include <librdkafka/rdkafka.h>
#include <stddef.h>
#include <stdint.h>

// The first offset at or after from from which records come, from itself when they do after all;
// end, when none below end does. -1: not found within patience_ms. Each try is a fetch by a client
// of its own, made of conf, which stays the caller's.
int64_t kafka_probe_readable(const rd_kafka_conf_t *conf, const char *topic, int32_t partition,
                             int64_t from, int64_t end, int patience_ms);

// The same search by any way of asking; readable(arg, offset) is the first offset at or after
// offset that can be read when reading begins there, or -1.
int64_t kafka_probe_search(int64_t from, int64_t end,
                           int64_t (*readable)(void *arg, int64_t offset), void *arg);

// What the settings of n topics say. Calls tell once for each value of
// "cleanup.policy" and "retention.ms" that the broker gave; no call when it may not be asked, or
// does not answer within timeout_ms.
void kafka_probe_settings(rd_kafka_t *client, int n, const char *const *topics, int timeout_ms,
                          void (*tell)(void *arg, const char *topic, const char *key,
                                       const char *value),
                          void *arg);
