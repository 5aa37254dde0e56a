// SPDX-License-Identifier: Apache-2.0
//
// One record of the event contract, JSON, into one flat event. Strict: a record is either an event
// in every part or it is rejected with a reason; nothing is defaulted that the contract requires.
// A decoder belongs to one thread. It never reads past the bytes it is given.
#pragma once

#include "pipeline/event.h"
#include "pipeline/source.h"

struct decoder;

enum reject {
    REJECT_NONE,
    REJECT_TOO_LARGE, // over 1 MiB, over 4096 items, over 32 levels deep
    REJECT_NOT_JSON,  // malformed, truncated, trailing bytes
    REJECT_NOT_UTF8,
    REJECT_NOT_OBJECT,
    REJECT_MISSING_FIELD, // a required field is absent or null
    REJECT_WRONG_TYPE,
    REJECT_BAD_ID,   // empty, over 256 bytes, a fraction, beyond 64 bits
    REJECT_BAD_TIME, // not an integer of milliseconds in the years 2000..2100, or seconds
    // Not finite, beyond float, a feature or score beyond 1e9, propensity outside (0, 1], position
    // < 0.
    REJECT_BAD_NUMBER,
    REJECT_EMPTY_LIST, // an impression or a score without items
    REJECT_TOMBSTONE,  // null value on a topic where it means nothing (counted, not an error)
    REJECTS
};

// "too_large", "not_json", ...: label values of the counters.
extern const char *const reject_names[REJECTS];

// Memory for events: blocks that grow on demand and are reused. Not thread-safe.
struct event_memory {
    char *base;
    size_t size, used;
    struct event_memory_block *full; // earlier blocks, freed by event_memory_close
};

void *event_memory_take(struct event_memory *m, size_t n, size_t alignment);
void event_memory_reset(struct event_memory *m); // keeps one block
void event_memory_close(struct event_memory *m);

int decoder_open(struct decoder **d);
void decoder_close(struct decoder *d);
// On success the event's pointers lead into memory. On rejection nothing of it is used, and
// decoder_message says which field and what was expected.
enum reject decode(struct decoder *d, enum topic topic, const struct record *record,
                   struct event_memory *memory, struct event *event);
const char *decoder_message(const struct decoder *d);

// The id of a text or of a number, as decode makes it; bytes is not copied.
struct id id_of_text(const char *bytes, size_t size);
struct id id_of_unsigned(uint64_t number, char storage[8]);
