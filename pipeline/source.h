// SPDX-License-Identifier: Apache-2.0
//
// Where records come from: "kafka", "file" and "builtin" behind one interface. A source has a fixed
// list of partitions, each an ordered log of records with increasing offsets. It knows nothing of
// their content.
//
// One thread, the ingest thread, owns a source. Functions return 0 or -errno, and then
// source->error holds the sentence a person needs. Positions are the caller's: a source never
// stores them.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pipeline/event.h"

struct source_partition {
    char name[256]; // of the topic, as the source calls it
    enum topic topic;
    int32_t partition; // within its topic
};

struct record {
    int64_t offset;
    int64_t broker_ts_ms; // the log's own time stamp, -1 when it has none
    int32_t leader_epoch; // of the log's leader when the record was written, -1: not known
    const char *key, *value;
    size_t key_size, value_size;
    bool tombstone;     // null value
    const void *handle; // the source's own, for ops->headers
};

// Of what a producer hangs on a record, so much is kept.
enum { RECORD_HEADERS_MAX = 64, RECORD_HEADER_BYTES_MAX = 64 << 10 };

struct record_header {
    const char *name, *value; // value NULL: none
    size_t name_size, value_size;
};

struct record_headers {
    int n;
    int left_out; // beyond these limits
    struct record_header list[RECORD_HEADERS_MAX];
};

enum { SOURCE_BEGIN = -2, SOURCE_UNBOUNDED = -1 };

struct source {
    const struct source_ops *ops;
    int n_partitions;
    struct source_partition *partitions; // sorted by (topic, name, partition); ops->close frees it
    char error[512];
};

struct source_ops {
    const char *name;
    bool keyed; // its producers give records a key
    // Resolves the first and the end offset of every partition at this moment:
    // first <= any record's offset < end. A bounded run reads up to these ends.
    int (*bounds)(struct source *s, int64_t *first, int64_t *end);
    // The first offset whose time is at or after ts_ms, for every partition; the end when there is
    // none. Time is the log's own (Kafka) or the record's (file, builtin).
    int (*offsets_for_time)(struct source *s, int64_t ts_ms, int64_t *offsets);
    // Starts reading partition p at next[p] (an offset or SOURCE_BEGIN) and delivers nothing at or
    // after stop[p] (an offset or SOURCE_UNBOUNDED). May be called again to start elsewhere.
    int (*start)(struct source *s, const int64_t *next, const int64_t *stop);
    // Up to max further records of partition p, in order. 0 when none is there now. They are valid
    // until the next call of read for any partition. -errno when the partition cannot go on.
    int (*read)(struct source *s, int p, int max, struct record *records);
    // The headers of a record that the last read has delivered, valid as long as it is. They are
    // looked for when they are asked for, so ask only where they are needed. NULL: there are none.
    void (*headers)(struct source *s, const struct record *record, struct record_headers *headers);
    // The position after the last record that read has delivered or skipped over (control records,
    // compacted offsets): nothing more will come from below it.
    int64_t (*position)(const struct source *s, int p);
    // Everything below stop[p] has been delivered; or, when unbounded, the log's end was seen and
    // nothing has arrived since.
    bool (*at_end)(const struct source *s, int p);
    // The end of the partition's log as last heard, without asking; -1: unknown. May be NULL.
    int64_t (*end)(const struct source *s, int p);
    // Records at the end of the log that wait for an open transaction, theirs or an earlier one, as
    // last heard. at_end() is false because of them until nothing has moved for a minute. May be
    // NULL.
    int64_t (*held)(const struct source *s, int p);
    // For how long nobody has answered, 0: somebody does. May be NULL.
    int64_t (*away_ms)(const struct source *s);
    // Waits until a record may be there, or timeout_ms.
    int (*wait)(struct source *s, int timeout_ms);
    // Tells the outside how far a durable checkpoint has come (Kafka: a commit for lag tools). May
    // be NULL.
    void (*commit)(struct source *s, const int64_t *next, uint64_t checkpoint);
    void (*close)(struct source *s);
};

// Opens "file" on a directory of <topic>.jsonl.zst or <topic>.jsonl files, <topic> being one of
// topic_names; the engagements or the impressions must be there. offset = line number from 0.
int source_file_open(struct source **s, const char *directory, char *error, size_t error_size);

struct source_kafka_property {
    const char *key, *value; // librdkafka's names
};

struct source_kafka_options {
    const char *bootstrap;      // host:port,...
    const char *topics[TOPICS]; // names on the broker; NULL: this topic is not read
    bool replay;                // larger fetches instead of low latency
    // Events are needed for that long: who keeps them for less is warned about. 0: unknown.
    int64_t keep_ms;
    int n_properties;
    const struct source_kafka_property *properties; // passed through; the ones we own are refused
    // librdkafka's log lines, with syslog levels; may be NULL.
    void (*log)(void *arg, int level, const char *text);
    void *log_arg;
};

int source_kafka_open(struct source **s, const struct source_kafka_options *options, char *error,
                      size_t error_size);

// The demo's stream: a function of the options and nothing else (pipeline/source_builtin.c).
struct source_builtin_options {
    uint64_t seed;
    int users, items;
    int64_t requests;      // slates in all; 0: without end
    int64_t start_ms;      // event time of the first slate
    double requests_per_s; // in event time
};

int source_builtin_open(struct source **s, const struct source_builtin_options *options,
                        char *error, size_t error_size);
