// SPDX-License-Identifier: Apache-2.0
//
// A slice: the next stretch of every partition, decoded and put in order. It is all that the state
// machine state' = F(state, slice) ever sees of the world, so everything that a clock, a queue or a
// person decided is in it. The ingest thread makes it, the trainer applies it and hands it back.
#pragma once

#include "model/slate.h"
#include "pipeline/decode.h"
#include "pipeline/event.h"

// Events are applied in the order of (time, topic, user, or item for the catalogue), then
// (partition, offset). Time is the running maximum of event times within the partition, so that a
// partition's own order is kept.
//   canonical  complete: no partition has anything left at or before the slice's last time. The
//              order is then a function of the streams, whatever the number of partitions. Each
//              event moves the watermark to its own time.
//   live       as far as the partitions had come when the slice was cut. The watermark moves at the
//              end of the slice, to watermark_ms.
enum slice_order { SLICE_CANONICAL, SLICE_LIVE };

struct slice_event {
    int64_t mt_ms; // running maximum of the partition's event times: the order's time
    const struct event *event;
};

// What the tasks are worth from a slice on, before its first event. A person changes that while the
// process runs, so it is one of the things that are decided once and recorded.
struct slice_values {
    int n; // tasks; 0 in most slices: nothing changes
    float weight[SLATE_TASKS_MAX];
};

// What was known of a partition when a live slice was cut.
enum slice_flag {
    SLICE_END_SEEN = 1, // nothing was left of it, and the source had seen its log's end
    SLICE_IDLE = 2,     // besides, it had been silent for so long that time goes on without it
};

// A record whose event time the clock judged to be too far ahead: it was rejected.
struct slice_verdict {
    int32_t partition;
    int64_t offset;
};

// Where a person let a partition go on elsewhere than it stood, before the slice's first event:
// over what retention had removed, over damaged records (to > from), or at the begin of a topic
// that was made anew (to < from).
struct slice_move {
    int32_t partition;
    int64_t from, to;
};

// By partition and offset, for qsort and bsearch.
static inline int slice_verdict_compare(const void *a, const void *b)
{
    const struct slice_verdict *x = a, *y = b;
    if (x->partition != y->partition)
        return x->partition < y->partition ? -1 : 1;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

enum { SLICE_VERDICTS_MAX = 1 << 20 };

struct slice {
    uint64_t number; // from 1
    enum slice_order order;
    int n_events, n_events_max;
    struct slice_event *events; // in the order of application
    int n_partitions;
    int64_t *next;        // per partition: the position after the slice
    int64_t *time_max_ms; // per partition: mt at the end of the slice, INT64_MIN before any record
    uint8_t *flags;       // per partition: of enum slice_flag
    int32_t *epoch;       // per partition: the leader's, of the last record so far; -1: unknown
    uint64_t rejected[TOPICS][REJECTS];
    // At the end of a live slice, INT64_MIN: unknown. A function of the members above, of the
    // watermark before and of floor_ms: as far as the clock let time go on when all partitions were
    // idle, else INT64_MIN.
    int64_t watermark_ms, floor_ms;
    int64_t clock_ms; // the wall clock that event times were judged by; 0: none were
    int n_verdicts, n_moves;
    struct slice_verdict *verdicts; // by partition and offset
    struct slice_move *moves;
    int shed_permille; // of new requests that are not admitted, because the join was getting full
    int64_t dead_letters; // size of the dead-letter file after the slice
    struct slice_values values;
    uint64_t digest; // XXH3 over the values, if any, and (partition, offset, time, user) in order
    bool last;       // the source has ended: nothing follows
};

// How many of its records were rejected.
static inline uint64_t slice_rejects(const struct slice *slice)
{
    uint64_t n = 0;
    for (int topic = 0; topic < TOPICS; topic++)
        for (int reason = 0; reason < REJECTS; reason++)
            n += slice->rejected[topic][reason];
    return n;
}
