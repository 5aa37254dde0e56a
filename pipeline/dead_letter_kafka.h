// SPDX-License-Identifier: Apache-2.0
//
// Sends dead letters to a Kafka topic, by an idempotent producer that waits for all in-sync
// replicas:
//
//     key      TOPIC/PARTITION/OFFSET of the record, so that a reader of the topic knows a letter
//              that was sent twice, and a compacted topic keeps it once
//     value    the record's bytes; a tombstone has none
//     headers  the record's own, then
//              dlq.reason, dlq.message       why it was rejected, for programs and for people
//              dlq.stage                     "decode"
//              dlq.topic, dlq.partition, dlq.offset
//              dlq.timestamp                 the log's own, in ms; where it has one
//              dlq.key                       the record's own key, where it had one; 64 KiB at most
//              dlq.slice                     the slice whose effect it is
//              dlq.version                   of this program
//              dlq.value_size                where the value is cut: how much there was
//              dlq.headers_left_out          where headers are: how many
//
// The value is cut at 1 MiB (pipeline/dead_letter.h) and before the message would be larger than
// message.max.bytes, which a person can raise; the topic's own max.message.bytes has to follow.
//
// Letters go out in their order, and count as delivered in their order, when the broker says so.
// Any failure is one of the whole sender: it is closed, and what did not count as delivered is sent
// by a new one. Brokers that are away are no failure: they are waited for.
//
// One thread owns it. Functions return 0 or -errno, and then dead_letter_kafka_error has the
// sentence.
#pragma once

#include "pipeline/dead_letter.h"

struct dead_letter_kafka;

enum { DEAD_LETTER_KAFKA_PENDING_MAX = 4096 };

struct dead_letter_kafka_options {
    const char *bootstrap, *topic; // both outlive it
    int n_properties;
    const struct source_kafka_property *properties;
    void (*log)(void *arg, int level, const char *text); // syslog levels; may be NULL
    void *log_arg;
};

// Asks no broker.
int dead_letter_kafka_open(struct dead_letter_kafka **k,
                           const struct dead_letter_kafka_options *options, char *error,
                           size_t error_size);
// Copies the letter. -EAGAIN: as many are on their way as may be, try again after a poll.
int dead_letter_kafka_send(struct dead_letter_kafka *k, const struct letter *letter);
// Hears from the brokers, up to timeout_ms. -errno when the sender has failed.
int dead_letter_kafka_poll(struct dead_letter_kafka *k, int timeout_ms);
// How many letters were sent, and how many of these, the oldest ones, are delivered.
uint64_t dead_letter_kafka_sent(const struct dead_letter_kafka *k);
uint64_t dead_letter_kafka_delivered(const struct dead_letter_kafka *k);
const char *dead_letter_kafka_error(const struct dead_letter_kafka *k);
// What is on its way may be delivered or not.
void dead_letter_kafka_close(struct dead_letter_kafka *k);
