// SPDX-License-Identifier: Apache-2.0
//
// From the configuration to the options of the parts: the one place that knows both.
#pragma once

#include "daemon/config.h"
#include "pipeline/cutter.h"
#include "pipeline/dead_letter_kafka.h"
#include "pipeline/evaluate.h"
#include "pipeline/source.h"
#include "pipeline/trainer.h"

// The windows point into memory that the caller keeps: CONFIG_ENTRIES_MAX of them.
struct trainer_options assemble_trainer(const struct config *c, int partitions,
                                        struct join_window *windows);
struct cutter_options assemble_cutter(const struct config *c, enum slice_order order);
struct two_tower_options assemble_model(const struct config *c);

// The sender of dead letters to dead_letter.topic; asks no broker. 0 or -errno with a sentence.
int assemble_letters(const struct config *c, struct dead_letter_kafka **k, char *error,
                     size_t error_size);

// The configured source. 0 or -errno with a sentence.
int assemble_source(const struct config *c, bool replay, struct source **s, char *error,
                    size_t error_size);
