// SPDX-License-Identifier: Apache-2.0
//
// The model as the fleets have it while it goes on learning: as of the last publication, whose
// instant the trainer names in event time (reference_begin). The trust region and the preference
// terms compare with it.
//
// Nothing is copied at that instant but the dense parameters. A row is saved when it is about to
// change for the first time since; a row that has not changed is its own reference. So it costs one
// copy of a row per publication and as many bytes as the tables again, and only where it is used.
//
// One thread. Everything lies in columns.
#pragma once

#include "model/tables.h"

struct reference_state {
    uint64_t epoch; // publications so far, from 1: the start
    uint64_t items_known;
    struct model_state model;
};

struct reference {
    const struct two_tower_options *options;
    const struct tables *tables;
    struct column item;  // struct reference_item, then vector and, if any, context: d floats each
    struct column user;  // the epoch, then d floats
    struct column dense; // d floats a unit: the parameters
    struct column state; // one struct reference_state
};

// 0 or -ENOMEM. The first reference is the model as it is at reference_begin.
int reference_open(struct reference *r, struct columns *s, const struct tables *tables,
                   const struct two_tower_options *options, size_t items_max, size_t users_max);
// From now on the reference is the model as it is now. items_known: live rows.
void reference_begin(struct reference *r, uint64_t items_known);
// Before a row changes. Nothing happens when it has been saved since reference_begin.
void reference_save_item(struct reference *r, uint32_t row);
void reference_save_user(struct reference *r, uint32_t row);
// The row has a new owner, whose start is its reference.
void reference_item_created(struct reference *r, uint32_t row);
void reference_user_created(struct reference *r, uint32_t row);

// Reading it, for the pure functions of tables.h.
struct view reference_view(const struct reference *r);
const float *reference_item_vector(const struct reference *r, uint32_t row);
const float *reference_item_context(const struct reference *r, uint32_t row);
const struct item_state *reference_item_state(const struct reference *r, uint32_t row);
const float *reference_user_vector(const struct reference *r, uint32_t row);
