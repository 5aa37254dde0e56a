// SPDX-License-Identifier: Apache-2.0
//
// What a restart needs, and the order in which it becomes durable: the slice log, the dead letters
// and the checkpoints of one state directory.
//
//     state.dir/owner         how often the directory was opened: who finds another number than his
//                             own has lost it to another process, and stops
//     state.dir/slices-*.log  pipeline/slice_log.h
//     state.dir/checkpoints/  daemon/state.h; final/ has the state after the end of a bounded run
//     dead_letter.path        pipeline/dead_letter.h
//
// Opening restores the trainer from the newest checkpoint that is whole and undamaged, and finds
// the slices that the log has after it: these are to be applied again (journal_recorded) before new
// ones are cut. A slice is appended before it is applied, and everything derived from slices is
// made durable after them: journal_checkpoint syncs the log first.
//
// The ingest thread has the log and the dead letters, the writer thread the checkpoints; who may
// call what is said below. Functions return 0 or -errno with a sentence in error, or in
// journal->error where there is no such argument.
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "daemon/config.h"
#include "daemon/state.h"
#include "pipeline/dead_letter.h"
#include "pipeline/slice_log.h"
#include "pipeline/source.h"
#include "pipeline/trainer.h"
#include "snapshot/engine.h"

struct catalog;
struct storage;

enum { JOURNAL_KEPT_MAX = 64 }; // what checkpoint.keep may be at most

// A record of a slice log that is still to be applied.
struct recorded {
    struct slice_record record;
    struct recorded *next;
    max_align_t memory[]; // what the record's pointers point to
};

struct journal_options {
    const struct config *config;
    struct storage *storage; // of checkpoints and slice log; NULL: the disk
    struct engine *engine;
    const struct source_partition *partitions;
    int n_partitions;
    const int64_t *from; // positions to begin at without a checkpoint
    // `replay --recorded`: the state directory of another run, whose slices are applied, up to
    // number recorded_to (UINT64_MAX: all); NULL: none.
    const char *recorded;
    uint64_t recorded_to;
};

struct journal {
    struct journal_options options;
    char error[4096]; // the ingest thread's
    uint64_t owner;

    // As of the checkpoint that was restored; read by all.
    bool restored;
    struct state_stamp stamp; // zeros without one
    uint64_t recorded_last;   // the last slice that will come from a log, 0: none does
    bool recorded_ends;       // and it was the last of a bounded stream
    // Of all recorded slices, for the cutter.
    int n_verdicts;
    struct slice_verdict *verdicts; // sorted
    int64_t *recorded_next;         // where they end; NULL: there are none

    // The ingest thread's.
    struct slice_log log;
    bool log_open;
    struct dead_letter *dead_letter;
    struct recorded *recorded, **recorded_end;
    uint64_t recorded_own;   // the last slice of our own log
    uint64_t recorded_after; // where what is read of another one begins
    uint64_t trimmed;        // the log holds nothing before this slice, or little

    // The writer thread's.
    struct catalog *checkpoints, *final;
    struct state_stamp kept[JOURNAL_KEPT_MAX]; // checkpoints on disk, oldest first
    int n_kept;

    _Atomic uint64_t durable_slice; // of the oldest checkpoint kept; for trimming the log
};

// Fills an open, empty trainer. -EBADMSG when there are checkpoints and none can be used, -EBUSY
// when another process has the directory.
int journal_open(struct journal *j, const struct journal_options *options, struct trainer *trainer,
                 char *error, size_t error_size);
void journal_close(struct journal *j);

// The ingest thread. The next slice to be applied again, NULL: none is left. journal_taken when its
// slice has been made: appends it to our log if it came from another one.
const struct slice_record *journal_recorded(const struct journal *j);
int journal_taken(struct journal *j, const struct slice *slice);
// Gives up what is recorded after the checkpoint: its records are gone. The log forgets it, too.
int journal_forget(struct journal *j);
int journal_append(struct journal *j, const struct slice *slice);
// Removes of the log what no kept checkpoint needs. 1 when there was something, that is when a
// checkpoint has become durable since.
int journal_trim(struct journal *j);

// Any thread. -EBUSY with a sentence when another process has taken the directory over.
int journal_owned(const struct journal *j, char *error, size_t error_size);

// The writer thread. Makes a checkpoint of the cut that is under way, in checkpoints/ or final/;
// *path, of at least 4096 bytes, becomes that of its directory.
int journal_checkpoint(struct journal *j, struct trainer *trainer, bool final, uint64_t now_ms,
                       struct state_stamp *stamp, char *path, char *error, size_t error_size);
