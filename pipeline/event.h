// SPDX-License-Identifier: Apache-2.0
//
// One decoded record of the event contract (README, "Your data"). An event owns nothing: every
// pointer leads into the memory it was decoded into, which lives as long as its slice.
#pragma once

#include <stdint.h>

#include "model/id.h"

// In the order in which events of equal time are applied: an item is known before it is scored, a
// score and its impression come before the engagement.
enum topic { TOPIC_ITEMS, TOPIC_SCORES, TOPIC_IMPRESSIONS, TOPIC_ENGAGEMENTS, TOPICS };

// "items", "ranker_scores", "impressions", "engagements": the default topic names.
extern const char *const topic_names[TOPICS];

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
    uint8_t valued;      // engagements: the value was given
    uint8_t removed;     // items: the record was a tombstone
    uint8_t repeated;    // a field that has a meaning stood there twice; the last one counts
};
