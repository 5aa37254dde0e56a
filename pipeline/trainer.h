// SPDX-License-Identifier: Apache-2.0
//
// The state machine: state' = F(state, slice). It owns every column: rows, histories, model, join,
// the examples and slates that wait for the next step, positions and counters. trainer_apply reads
// no clock, no queue and no unseeded random number, so live, recovery and replay run the same code
// and get the same bytes.
//
// One thread. Scoring before learning happens through a hook and changes nothing.
#pragma once

#include "model/delayed_feedback.h"
#include "model/value.h"
#include "pipeline/join.h"
#include "pipeline/slice.h"

struct trainer_options {
    struct rows_options rows;
    struct two_tower_options model;
    struct join_options join;
    int batch; // examples per step, <= model.batch_max
    int chunk; // examples scored together before the first of them is learned; 0: a batch
    // After every batch, this many examples drawn from the newest replay_window are learned once
    // more; 0: none. Only the recipe replays.
    int replay, replay_window;
    int partitions;
    size_t undo_bytes; // space for rows saved during a cut
    bool negatives;    // negatives take part in batches (the classic model's columns)
    // Slates that wait for the next step. When so many do, it comes before the examples' chunk is
    // full, whose last batch is smaller then. 0: the join emits none. join.slates follows from it.
    int slates;
    int slate_batch;          // of them learned together, 1..slates
    struct value_tasks tasks; // join.tasks follows from it
    // So often, in event time, the model becomes what the objectives call the published one. The
    // fleets' snapshots are a matter of clocks, which learning must not depend on. 0: once, at the
    // start.
    int64_t publish_ms;
};

// The place in the streams, one unit of a column.
struct trainer_state {
    uint64_t slices;       // applied
    int64_t dead_letters;  // size of the dead-letter file
    int64_t event_time_ms; // the latest applied
    uint64_t examples;     // positives that have entered a batch
    uint64_t remembered;   // examples that have gone into the replay window
    uint32_t remainder;    // examples waiting for their batch to fill
    uint32_t slates;       // waiting likewise
    int64_t published; // intervals of options.publish_ms, by event time, at the last publication
    uint64_t skipped;  // records that a person let a partition leave out (struct slice_move)
};

// Sees examples before they are learned. features (n, model.user_features) or NULL.
typedef void (*trainer_score_fn)(void *arg, int n, const struct example *examples,
                                 const float *features);
// Sees slates before they are learned. scores (n, SLATE_ITEMS_MAX, tasks), NAN beyond n_items.
typedef void (*trainer_score_slates_fn)(void *arg, int n, const struct slate *slates,
                                        const float *scores);
// Sees what a step did.
typedef void (*trainer_step_fn)(void *arg, const struct step_report *report);
typedef void (*trainer_slate_step_fn)(void *arg, const struct slate_report *report);
typedef void (*trainer_event_fn)(void *arg, const struct event *event);

struct trainer {
    struct trainer_options options;
    struct columns columns;
    struct rows rows;
    struct join join;
    struct column state;     // one struct trainer_state
    struct column position;  // per partition: int64_t next, int64_t time_max
    struct column delay;     // one struct delay_histogram
    struct column remainder; // struct example
    struct column replay;   // struct remembered, a ring of replay_window; not opened without replay
    struct column features; // user features of the remainder; not opened when the width is 0
    struct column slate;    // struct slate; these two are opened with options.slates only
    struct column slate_score;            // float[SLATE_ITEMS_MAX][tasks] of each
    struct column slate_features;         // as features
    trainer_score_fn score;               // may be NULL, like those below
    trainer_score_slates_fn score_slates; // after the examples, before any of both is learned
    trainer_step_fn step;
    trainer_slate_step_fn slate_step;
    trainer_event_fn event; // each event after it was joined
    void *arg;
    int chunk; // options.chunk, or the batch
    const char *task_names[SLATE_TASKS_MAX];
    struct example *replaying; // scratch: options.replay examples; NULL without replay
};

// An example in the replay window, with the owners of its rows.
struct remembered {
    struct example example;
    uint8_t user_generation, item_generation;
    uint8_t reserved[6];
};

_Static_assert(sizeof(struct remembered) == sizeof(struct example) + 8, "no padding");

struct partition_position {
    int64_t next, time_max_ms;
    int64_t epoch; // the leader's, of the last record; -1: unknown
};

// 0 or -ENOMEM.
int trainer_open(struct trainer *t, const struct trainer_options *options);
void trainer_close(struct trainer *t);
// After the columns were restored: 0, -ENOMEM, or -EINVAL when they contradict each other.
int trainer_rebuild(struct trainer *t);

// A slice carries values only where model.tasks_named.
void trainer_apply(struct trainer *t, const struct slice *slice);
// The end of a bounded stream: all windows close, the last batch is learned though it is not full.
// What a checkpoint keeps should be cut before, so that a longer stream can go on from there.
void trainer_finish(struct trainer *t);

static inline const struct trainer_state *trainer_state(const struct trainer *t)
{
    return column_at(&t->state, 0);
}

// How long after the impression engagements came, by task.
static inline const struct delay_histogram *trainer_delays(const struct trainer *t)
{
    return column_at(&t->delay, 0);
}

static inline const struct partition_position *trainer_position(const struct trainer *t, int p)
{
    return column_at(&t->position, (size_t)p);
}
