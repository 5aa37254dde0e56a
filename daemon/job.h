// SPDX-License-Identifier: Apache-2.0
//
// A job: one source, one trainer, one state directory, running. Three threads beside the caller's:
//
//     ingest   reads, decodes, cuts slices, logs them   -> queue of slices ->
//     trainer  applies slices; now and then starts a cut
//     writer   writes what was cut: checkpoints, and snapshots from them
//
// The caller's thread waits, watches and stops. `run`, `replay` and `demo` are this with different
// bounds and different things to say.
//
// Functions return 0 or -errno, and then job_error has the sentence.
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "daemon/config.h"
#include "daemon/notify.h"
#include "pipeline/evaluate.h"
#include "pipeline/source.h"
#include "pipeline/trainer.h"

struct job;

enum { JOB_WORKERS = 3 };

struct job_skip {
    int partition; // of the source
    int64_t to;    // the offset to go on at
};

struct job_options {
    bool bounded; // read up to `to`, in canonical order; then finish, or go on live
    bool then_live;
    // Where to begin without a checkpoint, and where a bounded run ends: per partition, resolved
    // by the caller from the source's bounds or times. NULL: the source's begin; its end now.
    const int64_t *from, *to;
    // `replay --recorded`: apply the slices of this state directory, up to number recorded_to, in
    // place of cutting some. Ends after the last of them; without recorded_to (UINT64_MAX) as that
    // run did, if it came to the end of a bounded stream.
    const char *recorded;
    uint64_t recorded_to;
    // What a person allows where a partition cannot go on, or not from there: to leave out what
    // retention has removed; to begin at the begin of a topic that has become shorter than it was
    // read; to leave out records up to an offset. Each is recorded with the next slice.
    bool allow_gap, accept_new_topic;
    int n_skips;
    const struct job_skip *skips;
    // Called by the trainer's thread after every slice it has applied, and once more after the end
    // of a bounded stream is drawn: then it sees what the final snapshot holds. May be NULL.
    void (*applied)(void *arg, const struct trainer *trainer, const struct evaluator *evaluator);
    // Called by the writer's thread after a snapshot was published; may be NULL.
    void (*published)(void *arg, const char *path);
    void *arg;
};

// Takes over the source, and closes it when it fails too. Restores the newest checkpoint of
// state.dir that is whole and undamaged, and applies what the slice log has after it; value.tasks
// of the configuration are asked for, if the state has other weights then; -EBADMSG when there are
// checkpoints and none can be used.
int job_open(struct job **j, const struct config *c, struct source *source,
             const struct job_options *options, char *error, size_t error_size);
void job_close(struct job *j);
const char *job_error(const struct job *j);

int job_start(struct job *j);
// Other weights for the tasks, of the same names: the next slice that is cut carries them, so that
// recovery and replay change them at the same place. Any thread. Whether they differ from those
// asked for last; nothing is asked for where value.tasks is the plain "*=1".
bool job_want_values(struct job *j, const struct value_tasks *tasks);
// Asks for the end: what has been read is learned, a last checkpoint is made.
void job_stop(struct job *j);
// Waits up to timeout_ms for the end. 1: it has come, job_result says how. 0: not yet.
int job_wait(struct job *j, int timeout_ms);
int job_result(const struct job *j);

// What can be seen from outside, any thread, at any time.
struct job_status {
    bool reading;  // restored, and all that the slice log had has been read again
    bool finished; // a bounded run has come to its end
    uint64_t events, slices, examples, steps, pending, rejected;
    double joined_share; // of the engagements that are settled
    double loss;         // of the last step, per example
    int64_t event_time_ms, watermark_ms;
    struct evaluation window, total;
    uint64_t checkpoint, snapshot; // newest generations, 0: none
    int64_t checkpoint_age_ms;     // since the last durable one, or the start
    int64_t away_ms;               // for how long the source has got no answer, 0: it does
    uint64_t snapshots, checkpoints, failures;
    uint64_t refused;   // snapshots since the last one published; they are no failures
    int64_t refused_ms; // monotonic, when the first of them was
    char refusal[32];   // why the last one was: a name of daemon/publish_guard.h
    double wait_max_ms; // longest that the trainer stood still for a cut
    double progress;    // of a bounded run: share of records read
    const char *io_backend, *io_reason;
    bool restored;
    double first_example_s; // from job_open to the first example learned; 0: none yet
};
void job_status(const struct job *j, struct job_status *status);
// For the watchdog, at each look: who waits for the disk counts as moving.
struct notify_worker *job_workers(struct job *j);
