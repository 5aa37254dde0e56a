// SPDX-License-Identifier: Apache-2.0
//
// Tells a flood of records that are no events from the odd one: how many of the last FLOOD_WINDOW
// records of each topic were rejected, and where that began. By count, without a clock, so that it
// says the same whenever the same records come again. What has not been seen yet counts as good;
// tombstones are neither good nor bad, and are not to be added.
//
// Plain memory: it may be copied, and all zeroes is the beginning. One thread owns it.
#pragma once

#include "pipeline/decode.h"

enum { FLOOD_WINDOW = 1000 };

struct flood_record {
    int64_t offset;
    int32_t partition;
    int32_t reason; // enum reject; REJECT_NONE: an event
};

struct flood_window {
    int32_t n, at; // records in the ring, and the place of the next one
    int32_t rejected;
    int32_t unused;
    struct flood_record list[FLOOD_WINDOW];
};

struct flood {
    struct flood_window topics[TOPICS];
};

void flood_add(struct flood *f, enum topic topic, struct flood_record record);

struct flood_report {
    int records, rejected; // in the window
    enum reject reason;    // the one that is there most often
    int of_reason;
    struct flood_record first; // the oldest one of it
};
// Of a topic that has a rejected record in its window.
struct flood_report flood_report(const struct flood *f, enum topic topic);
