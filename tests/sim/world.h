// SPDX-License-Identifier: Apache-2.0
//
// A source whose partitions are as bad as partitions get. What is in them is a function of a seed:
// events of equal times, out of order, late, twice, of another year, in seconds, malformed, null;
// offsets with gaps, leader epochs that rise, a partition a day behind the others. How they arrive
// is a function of another seed: in bursts, with long silences, in reads of any size, in reads that
// give nothing although there is more, under clocks that jump.
//
//     world_make(&w, seed);            the records
//     world_arrive(&w, arrival, ...);  from here on they come in this way
//     while (...) {
//         world_tick(&w);              time passes, records come
//         cutter_next(c, world_clock(&w), 0, &slice);
//     }
//
// It knows what must become of its records, whoever reads them in whatever slices.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "model/rng.h"
#include "pipeline/cutter.h"
#include "pipeline/decode.h"
#include "pipeline/source.h"

enum { WORLD_PARTITIONS = 12, WORLD_RECORDS = 512, WORLD_VALUE = 224 };

// Event times begin here; wall clocks show an hour later, so that no plain record is ahead of them.
#define WORLD_START_MS INT64_C(1700000000000)
#define WORLD_AS_OF_MS (WORLD_START_MS + 3600 * 1000)

struct world_record {
    int64_t offset, broker_ts_ms;
    int32_t epoch;
    bool tombstone;
    bool undecided; // the wall clock of who reads it first decides
    uint8_t units;  // of counting
    uint8_t reason; // enum reject: it is none
    uint8_t key_size;
    uint16_t size;
    char key[16], value[WORLD_VALUE];
};

struct world_partition {
    int n;
    struct world_record list[WORLD_RECORDS];
    int64_t end;    // of the log: behind the last record, and what is no record
    int at;         // next to be read
    int visible;    // records that have come
    int64_t place;  // as source->position
    bool end_seen;  // and nothing has come since
    int rate, rest; // records per tick at most; ticks of silence that are left
};

struct world {
    struct source source;
    struct source_partition names[WORLD_PARTITIONS];
    struct world_partition partitions[WORLD_PARTITIONS];
    struct rng arrival;
    bool bounded; // it ends; the cutter is to read all of it and no more
    int64_t monotonic_ms, wall_ms;

    // What must become of it: units of counting by topic, those rejected by reason, and how many
    // engagements are undecided.
    uint64_t in[TOPICS], rejected[TOPICS][REJECTS], undecided;
    int records;
};

void world_make(struct world *w, uint64_t seed);
// New clocks, behind all that an earlier life has seen; what was read is there already when reading
// starts behind it.
void world_arrive(struct world *w, uint64_t seed, bool bounded);
void world_tick(struct world *w);
struct cutter_clock world_clock(const struct world *w);
// All records have come.
bool world_is_over(const struct world *w);
