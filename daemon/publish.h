// SPDX-License-Identifier: Apache-2.0
//
// A snapshot for the fleets, made from a checkpoint on disk: the same instant, and a pure function
// of it, so it needs neither the trainer nor a cut. What it holds (N items and M users with a row,
// d = model.dim):
//
//     item_emb.f32.safetensors     (N, d + 1)  item vectors; the last element is bias and prior
//     item_emb.f16.safetensors     the same in half precision, when snapshot.f16
//     item_ids*, item_index.oidx   ids and the way back (snapshot/ids.h)
//     item_titles*                 titles, empty where none is known
//     user_emb.f32.safetensors     (M, d)      the users' own rows
//     user_ids*, user_index.oidx
//     user_history.safetensors     (M, H)      item rows, newest first; 0xFFFFFFFF: none
//     user_newest.safetensors      (M)         how many of them share the newest time
//     user_history_ms.safetensors  (M, H)      when each was, with model.attention_gaps; the golden
//                                              users' queries are as of lineage.event_time_max_ms
//     user_history_actions.safetensors (M, H)  what the user did, masks, with .attention_actions
//     item_context.f32.safetensors (N, d)      recipe: what an item says of the next one
//     item_row.f32.safetensors     (N, d)      two_tower with attention: what the encoder reads
//     dense_<name>.safetensors     the towers' matrices
//     dense_ranker_*.safetensors   the light ranker's, when there is one (see below)
//     golden.json                  some users with history, query, best items: for self-tests
//
// Of the light ranker (model/light_ranker.h) there is what serving reads: W_r, b_r, W_l and b_l as
// dense_ranker_heads (NU d, d), _heads_bias (1, NU d), _tasks (T, F), _tasks_bias (1, T). Left out
// are the auxiliary block, which only learning needs, and the position table: what is served is the
// score without a position. The manifest's member "ranker" has the shape, the tasks' names and
// value weights, and the form of the value: sums of "probability", or of "corrected", p = b / (1 -
// b) of what the logits give, when ranker.feedback is fnc. Its files carry the stamp of all the
// others: a head belongs to the vectors of its own snapshot and to no others.
//
// Row numbers inside a snapshot are dense and its own.
//
// Not every checkpoint makes a snapshot: daemon/publish_guard.h says what is refused. The lengths
// of rows that it goes by are the manifest's member "norms".
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/config.h"
#include "daemon/publish_guard.h"
#include "pipeline/evaluate.h"
#include "snapshot/engine.h"

struct publish_options {
    const char *checkpoint; // path of its directory
    const char *root;
    uint64_t generation, previous; // previous: 0 when there is none
    uint64_t good;                 // the last good generation in root, to compare with; 0: none
    bool ended; // the checkpoint is of after the end of a bounded stream: all windows are closed
    struct engine *engine;
    const struct config *config;
    struct evaluation quality; // as of the checkpoint, or a little later
};

struct published {
    uint64_t generation, bytes, items, users;
    enum guard_reason refused; // GUARD_REASONS: it was not, whatever else failed
};

// 0 or -errno with a sentence; -EDOM: refused, and nothing of it is left. A good one whose figures
// cannot be read, because it is older than they are, counts as none.
int publish_snapshot(const struct publish_options *options, struct published *published,
                     char *error, size_t error_size);
