// SPDX-License-Identifier: Apache-2.0
//
// What rankers said about the items of one request: a list in one heap block. An entry is what one
// version of the ranker gave one item, a score for each task; the later record counts, by its time,
// of equal times the one that came last. So the order of arrival plays no part.
//
// Entries stay in the order in which their (item, version) came first. With one task an entry is
// one granule of 16 bytes.
//
// One thread. The list is the owner's and may lie in a column; the block lies in the heap.
#pragma once

#include "model/heap.h"

struct scored_list {
    uint32_t block; // 0: empty
    uint16_t n;     // entries
    uint16_t granules;
};

struct scored_item {
    uint32_t item; // row
    uint8_t generation;
    uint8_t ranker; // number of the version
    uint16_t reserved;
    int32_t age_ms; // how long before the request the record was made
    float score[];  // (tasks), NAN: none
};

enum scored_outcome { SCORED_ADDED, SCORED_AGAIN, SCORED_FULL };

// An age as an entry holds it: beyond 24 days it is 24 days.
int32_t scored_age(int64_t age_ms);

static inline size_t scored_bytes(int tasks)
{
    return sizeof(struct scored_item) + (size_t)tasks * sizeof(float);
}

static inline const struct scored_item *scored_at(const struct heap *h,
                                                  const struct scored_list *list, int tasks, int i)
{
    const unsigned char *block = heap_at(h, list->block);
    return (const void *)(block + (size_t)i * scored_bytes(tasks));
}

// Adds an entry like `entry`, whose own score[] is not read, with score (tasks). SCORED_AGAIN when
// the list knew the item under this version: then the later of the two is kept. more: how many
// entries are still to come, this one included, so that a record makes one block. SCORED_FULL: the
// heap has no block, or the list is 16 KB long.
enum scored_outcome scored_put(struct heap *h, struct scored_list *list, int tasks,
                               const struct scored_item *entry, const float *score, int more);
// The request turned out to be later by this much. Entries older than age_ms_max (0: any) leave;
// returns how many.
int scored_shift(struct heap *h, struct scored_list *list, int tasks, int64_t later_ms,
                 int64_t age_ms_max);
void scored_free(struct heap *h, struct scored_list *list);
