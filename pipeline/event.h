// SPDX-License-Identifier: Apache-2.0
//
// One decoded record of the event contract (README, "Your data"). An event owns nothing: every
// pointer leads into the memory it was decoded into, which lives as long as its slice.
#pragma once

#include <stdint.h>

// In the order in which events of equal time are applied: an item is known before it is scored, a
// score and its impression come before the engagement.
enum topic { TOPIC_ITEMS, TOPIC_SCORES, TOPIC_IMPRESSIONS, TOPIC_ENGAGEMENTS, TOPICS };

// "items", "ranker_scores", "impressions", "engagements": the default topic names.
extern const char *const topic_names[TOPICS];

// A user, item or request as the producer wrote it: a string of 1 to 256 bytes, or an integer exact
// to 64 bits. "7" and 7 are different ids. hash and check are 96 bits of XXH3-128 over kind and
// bytes: tables compare both, so no two ids share a row.
enum id_kind { ID_ABSENT, ID_STRING, ID_SIGNED, ID_UNSIGNED };
enum { ID_BYTES_MAX = 256 };

struct id {
    uint64_t hash;
    uint32_t check;
    uint16_t size;     // of bytes
    uint16_t kind;     // enum id_kind; integers below zero are ID_SIGNED, others ID_UNSIGNED
    const char *bytes; // the text, or 8 bytes little-endian for an integer; not terminated
};

struct text {
    const char *bytes; // not terminated; NULL when absent
    uint32_t size;
};

struct event_score {
    struct text task;
    float score;
};

struct event_item {
    struct id item;
    int32_t position; // as given, -1 when absent
    float propensity; // in (0, 1], 0 when absent
    int32_t n_features, n_scores;
    const float *features;            // as the impression carried them
    const struct event_score *scores; // of a ranker_scores event
};

struct event {
    enum topic topic;
    int32_t partition; // index into the source's partitions
    int64_t offset;
    int64_t ts_ms; // event time
    struct id request, user;
    // impressions, ranker_scores: the list. engagements, items: exactly one entry.
    int32_t n_items;
    int32_t n_features; // of the user, as the impression carried them
    struct event_item *items;
    const float *features;
    struct text surface; // impressions
    struct text action;  // engagements
    struct text ranker;  // ranker_scores
    struct text title;   // items
    float value;         // engagements; 1 when absent
    uint8_t removed;     // items: the record was a tombstone
};
