// SPDX-License-Identifier: Apache-2.0
//
// Negatives from earlier batches: the last items that were columns of a batch, with their vectors
// as they were then. They are further columns of the softmax, and learn nothing themselves
// (Wang et al. 2020, XBM; Wang et al. 2021, CBNS). It works as far as vectors drift slowly, so
//
//     old entries       those of more than age_max steps ago are left out
//     gone items        those whose row was freed since, or has another owner, are left out
//     drift             the vectors of a sample of the entries are compared with what they are now;
//                       while they differ by more than drift_max on average the memory that is used
//                       shrinks, oldest first, and it grows again when they do not
//     warm-up           nothing is used before step `after`
//
// The storage is the caller's, a ring of `capacity` places in two arrays: of struct
// negative_entry, and of vectors (capacity, d). struct negative_memory is what belongs to the ring
// itself; zeros are an empty one. None of them has a pointer, so that all three can be columns.
//
//     forward    n = negative_memory_select(..., places)
//                gather vectors and entries of the places behind the batch's own columns
//                negative_memory_remove: an entry is no negative of a row whose item it is
//     backward   those columns learn nothing, and the batch's own should learn from a softmax
//     without
//                them, else they would be pulled more than they are pushed: queries alone are
//                taught
//     after it   negative_memory_adapt, with vectors as they were and as they are
//                for each column of the batch: the place that negative_memory_push gives is filled
//
// Entries go in after the step, so a batch is never its own memory. One thread.
#pragma once

#include <stdint.h>

struct id_table;

// One column as it was.
struct negative_entry {
    uint64_t step;       // that it took part in
    uint32_t row;        // of the item
    uint32_t generation; // of the row's owner then
    float extra;         // what its logit has beside the dot product: bias, prior
    float log_q;         // of one draw, as in sampled_softmax.h
    // Where the columns of a batch are a set: how many of its draws by popularity, and how many of
    // its even draws, this entry stands for.
    float targets, uniform;
};

struct negative_memory {
    uint32_t head;  // where the next entry goes
    uint32_t count; // places that were ever filled
    uint32_t spare; // how many of the oldest places are not used because of drift
    float drift;    // of the last sample: mean |now - then| / mean |now|
};

struct negative_memory_options {
    uint32_t capacity; // > 0
    uint64_t age_max;  // steps; 0: no limit
    uint64_t after;    // steps before the memory is used
    float drift_max;   // 0: not watched
};

// The place (below capacity) of the next entry, which takes that of the oldest when all are filled.
uint32_t negative_memory_push(struct negative_memory *m, const struct negative_memory_options *o);

// The places that count at this step, newest first, at most capacity; returns how many. items may
// be NULL: then rows never go away.
int negative_memory_select(const struct negative_memory *m, const struct negative_memory_options *o,
                           const struct negative_entry *entries, const struct id_table *items,
                           uint64_t step, uint32_t *places);

// Removes from one row's columns those of the n selected places that hold item `row`. Place i is
// column first + i; removed has retrieval_words(first + n) words and is added to. Returns how many.
int negative_memory_remove(const struct negative_entry *entries, int n, const uint32_t *places,
                           uint32_t row, int first, uint64_t *removed);

// Compares n vectors (d) of entries with what they are now, and takes the consequence. None of them
// changes nothing.
void negative_memory_adapt(struct negative_memory *m, const struct negative_memory_options *o,
                           int n, int d, const float *const *then, const float *const *now);
