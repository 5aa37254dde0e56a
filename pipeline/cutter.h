// SPDX-License-Identifier: Apache-2.0
//
// From a source to slices: reads every partition, decodes, keeps what is rejected aside, and cuts.
// All decisions that depend on a clock, on arrival or on a person are made here, once, and lie in
// the slice.
//
//   canonical  waits for every partition: a slice ends when nothing at or before its last time can
//              come any more. For bounded input, replay and the built-in stream.
//   live       waits for nobody: cuts after slice_events or interval_ms, whichever is first. A
//              partition may not run ahead of the one that is furthest behind by more than
//              drift_ms; one that has reached its end and is silent for idle_ms does not hold back
//              the watermark.
//
// One thread, the ingest thread, owns a cutter, its source and its decoder. Slices may be read by
// another thread until they come back through cutter_give.
#pragma once

#include "pipeline/dead_letter.h"
#include "pipeline/slice.h"
#include "pipeline/slice_log.h"
#include "pipeline/source.h"

struct cutter;

struct cutter_options {
    enum slice_order order;
    int slice_events;
    int64_t interval_ms, lateness_ms, drift_ms, idle_ms;
    int64_t max_future_ms; // a record further ahead of its log's own time stamp is rejected
    struct dead_letter *dead_letter; // may be NULL
    int64_t dead_letters;            // its size
    int tasks;                       // that have values, 0: slices carry none
    struct slice_values values;      // in force at the start; n = 0: not known
};

// The place to go on from: per partition the next offset and the running maximum of event time
// (INT64_MIN before the first record), and the number of the last slice.
struct cutter_position {
    const int64_t *next, *time_max_ms;
    uint64_t slices;
};

// 0 or -errno.
int cutter_open(struct cutter **c, struct source *source, const struct cutter_options *options,
                const struct cutter_position *position);
void cutter_close(struct cutter *c);
const char *cutter_error(const struct cutter *c);

// The next slice, in order. 1: *slice is there, with slice->last when the source has ended (it may
// then be empty). 0: nothing yet, after waiting up to wait_ms. -errno: see cutter_error.
// now_ms: monotonic, used for live cutting only.
int cutter_next(struct cutter *c, int64_t now_ms, int wait_ms, struct slice **slice);
// The slice that a record of the slice log describes. -EBADMSG when the source has other records
// now than it had then, -EINVAL when it values another number of tasks.
int cutter_recorded(struct cutter *c, const struct slice_record *record, struct slice **slice);
// From canonical to live, after a bounded part.
void cutter_go_live(struct cutter *c);

// From the next slice on that is cut, not recorded, the tasks (options.tasks) are to be worth this;
// it carries the values if they are not in force by then. Any thread. Whether this is another wish
// than the last.
bool cutter_want_values(struct cutter *c, const float *weight);

// Gives a slice back; any thread.
void cutter_give(struct cutter *c, struct slice *slice);

struct cutter_counts {
    uint64_t records, bytes, tombstones;
    uint64_t unkeyed[TOPICS]; // events whose record's key is not their user, of a keyed source
    uint64_t pending;         // decoded, not yet in a slice
};
struct cutter_counts cutter_counts(const struct cutter *c);
