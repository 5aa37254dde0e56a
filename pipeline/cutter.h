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
// An event time further ahead than max_future_ms, of the log's own time stamp or of the wall clock,
// rejects its record (bad_time): one such record would close all windows. The wall clock's verdicts
// lie in the slice. Canonical cutting asks one clock for all, as_of_ms: a second run begins later,
// and judges as the first unless an event time lies between.
//
// A flood of rejected records (pipeline/flood.h) is no matter of single records: the slice that
// would carry one is not cut, and cutter_next fails with -EBADMSG. What the window had been before
// that slice is kept beside the dead letters, as PATH.flood, so that the next start stops at the
// same record, unless it decodes what this one could not. Slices of the log are not judged again;
// if these have a flood, it was taken on purpose, and counting begins anew after them.
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
    int64_t max_future_ms;
    int64_t as_of_ms; // the wall clock at the start; 0: no record is judged by a clock
    struct dead_letter *dead_letter; // may be NULL
    int64_t dead_letters;            // its size
    // More rejected records than this among the last FLOOD_WINDOW of a topic are a flood; 0: none
    // is.
    int flood;
    int tasks;                  // that have values, 0: slices carry none
    struct slice_values values; // in force at the start; n = 0: not known
    // Of the slices that will come from the log: what the clock had judged (by partition and
    // offset), and per partition where they end, from where on this clock judges. NULL: none come.
    int n_verdicts;
    const struct slice_verdict *verdicts;
    const int64_t *recorded_next;
};

// The place to go on from: per partition the next offset, the running maximum of event time
// (INT64_MIN before the first record) and the leader epoch (-1: unknown; NULL: of all); the number
// and the watermark of the last slice (0 or INT64_MIN: none).
struct cutter_position {
    const int64_t *next, *time_max_ms;
    uint64_t slices;
    int64_t watermark_ms;
    const int64_t *epoch;
};

struct cutter_clock {
    int64_t monotonic_ms, wall_ms; // for live cutting only; wall_ms 0: judges nothing
};

// 0 or -errno.
int cutter_open(struct cutter **c, struct source *source, const struct cutter_options *options,
                const struct cutter_position *position);
void cutter_close(struct cutter *c);
const char *cutter_error(const struct cutter *c);

// The next slice, in order. 1: *slice is there, with slice->last when the source has ended (it may
// then be empty). 0: nothing yet, after waiting up to wait_ms. -errno: see cutter_error; -EBADMSG
// also when a partition's leader epoch went back: it is another log than was learned from.
int cutter_next(struct cutter *c, struct cutter_clock now, int wait_ms, struct slice **slice);
// The slice that a record of the slice log describes. -EBADMSG when the source has other records
// now than it had then, or what it says does not add up, -EINVAL when it values another number of
// tasks. stop: where the source is to stop, for when the slice moves a partition.
int cutter_recorded(struct cutter *c, const struct slice_record *record, const int64_t *stop,
                    struct slice **slice);
// Lets partitions go on elsewhere, by what a person has decided: reads on from there (unless the
// source has been started there: started), and the next slice that is cut carries the moves.
int cutter_move(struct cutter *c, int n, const struct slice_move *moves, bool started,
                const int64_t *stop);
// From canonical to live, after a bounded part.
void cutter_go_live(struct cutter *c);

// How full the join is, from 0 to 1 (join_fill). Any thread. Above 0.9 live slices admit fewer new
// requests, none at 1.
void cutter_told_fill(struct cutter *c, double fill);

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
