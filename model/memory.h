// SPDX-License-Identifier: Apache-2.0
//
// The memory of model/negative_memory.h in the columns of a model, for both kinds of it:
//
//     softmax    memory_recall: what is remembered, and what of it the batch has as well
//                ...            the columns behind the batch's own, as the kind corrects them
//     update     memory_store:  the vectors of the batch, as the softmax had them
//
// A memory of capacity 0 has no columns and recalls nothing. Within model/ only.
#pragma once

#include "model/tables.h"
#include "model/towers.h"

enum { MEMORY_LOOKS = 64 };

// What a step recalls; places is the kind's, of the memory's capacity.
struct memory {
    uint32_t *places; // newest first
    int n;
    // Entries whose item is in the batch too: as they were, and as they are.
    int looks;
    const float *then[MEMORY_LOOKS], *now[MEMORY_LOOKS];
};

int memory_open(struct tables *t, struct columns *s, const struct two_tower_options *o);

// Fills places; nothing has been looked at.
void memory_recall(struct memory *m, const struct towers *t);
static inline const struct negative_entry *memory_entry(const struct memory *m,
                                                        const struct towers *t, int i)
{
    return column_at(&t->tables->memory_entry, m->places[i]);
}
static inline const float *memory_vector(const struct memory *m, const struct towers *t, int i)
{
    return column_at(&t->tables->memory_vector, m->places[i]);
}
// Entry i has the item whose vector is now (d): one more to judge the drift by.
void memory_look(struct memory *m, const struct towers *t, int i, const float *now);

// After the step. The drift that was seen has its consequence, once.
void memory_adapt(struct memory *m, const struct towers *t);
// One column of the step for the next ones; step and generation are filled in.
void memory_store(const struct towers *t, struct negative_entry entry, const float *vector);
