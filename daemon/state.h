// SPDX-License-Identifier: Apache-2.0
//
// Checkpoints: the state machine's columns as named arrays, one file a column, by the protocol of
// snapshot/writer.h. Writing reads a cut (model/column.h) while the trainer goes on; restoring
// reads a checkpoint to where it belongs, by several threads, and verifies every checksum on the
// way (snapshot/load.h).
//
// The manifest tells with which arithmetic the state was learned (daemon/numerics.h). A process
// restores one state: what is written after that continues the lineage of it.
//
// Neither writes nor takes back numbers that no model learns (column_bad): a state that was
// computed wrong is -EBADMSG like a damaged file, and the checkpoint before it is the one to go on
// from.
//
// Functions return 0 or -errno with a sentence in error.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/config.h"
#include "pipeline/source.h"
#include "pipeline/trainer.h"
#include "snapshot/engine.h"
#include "snapshot/twotower_reader.h"

struct state_stamp {
    uint64_t generation;
    uint64_t slice; // the last applied
};

// What a cut is written with. The cut is under way; state_write ends it as soon as all columns are
// read, before the manifest is synced and published.
struct state_write_options {
    const char *root;
    uint64_t generation;
    struct engine *engine;
    const struct config *config;
    const struct source_partition *partitions;
    int n_partitions;
    // Asked right before the checkpoint becomes visible; a refusal (-errno with a sentence) leaves
    // nothing of it. May be NULL.
    int (*permit)(void *arg, char *error, size_t error_size);
    void *permit_arg;
};

int state_write(struct trainer *t, const struct state_write_options *options,
                struct state_stamp *stamp, char *error, size_t error_size);

// Fills an open, empty trainer from the checkpoint and rebuilds its indexes. Refused (-EINVAL) when
// it was learned with other options of the model, from other partitions or with another arithmetic,
// naming them; the last can be accepted (kernels.on_change), and is then said in the log. After
// -EBADMSG the trainer is good for another state_restore, after other errors for nothing.
int state_restore(struct trainer *t, const char *path, const struct config *config,
                  const struct source_partition *partitions, int n_partitions,
                  struct state_stamp *stamp, char *error, size_t error_size);
// The last slice in a checkpoint, from its manifest alone.
int state_stamp_read(const char *path, struct state_stamp *stamp, char *error, size_t error_size);

// A column of a mapped checkpoint, to be read with column_at only. false when it is not there or
// has units of another size.
bool state_column(const struct tt_reader *r, const char *name, size_t unit, struct column *c);
