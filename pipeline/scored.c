// SPDX-License-Identifier: Apache-2.0
#include "pipeline/scored.h"

#include <string.h>

int32_t scored_age(int64_t age_ms)
{
    if (age_ms > INT32_MAX)
        return INT32_MAX;
    return age_ms < -INT32_MAX ? -INT32_MAX : (int32_t)age_ms;
}

static struct scored_item *entry_edit(struct heap *h, const struct scored_list *list, int tasks,
                                      int i)
{
    const size_t from = (size_t)i * scored_bytes(tasks), first = from / HEAP_GRANULE;
    const size_t end = heap_granules(from + scored_bytes(tasks));
    unsigned char *granule = heap_edit(h, list->block, first, end - first);
    return (void *)(granule + from % HEAP_GRANULE);
}

// Moves the list into a block for at least n entries, or for as many as the largest block holds;
// false when there is none that is larger.
static bool list_grow(struct heap *h, struct scored_list *list, int tasks, size_t n)
{
    size_t granules = heap_granules(n * scored_bytes(tasks));
    if (granules > HEAP_GRANULES_MAX)
        granules = HEAP_GRANULES_MAX;
    if (granules <= list->granules)
        return false;
    const uint32_t block = heap_take(h, granules);
    if (!block)
        return false;
    const size_t used = list->n * scored_bytes(tasks);
    if (list->block) {
        memcpy(heap_edit(h, block, 0, heap_granules(used)), heap_at(h, list->block), used);
        heap_give(h, list->block, list->granules);
    }
    list->block = block;
    list->granules = (uint16_t)heap_capacity(granules);
    return true;
}

enum scored_outcome scored_put(struct heap *h, struct scored_list *list, int tasks,
                               const struct scored_item *entry, const float *score, int more)
{
    const size_t bytes = scored_bytes(tasks);
    int i = 0;
    for (; i < list->n; i++) {
        const struct scored_item *known = scored_at(h, list, tasks, i);
        if (known->item == entry->item && known->generation == entry->generation &&
            known->ranker == entry->ranker)
            break;
    }
    const bool again = i < list->n;
    if (again && scored_at(h, list, tasks, i)->age_ms < entry->age_ms)
        return SCORED_AGAIN;
    if (!again) {
        const size_t need = list->n + 1u;
        // A large record may ask for more than there is where one entry would still fit.
        if (need * bytes > list->granules * (size_t)HEAP_GRANULE &&
            !list_grow(h, list, tasks, list->n + (size_t)more) && !list_grow(h, list, tasks, need))
            return SCORED_FULL;
        if (need * bytes > list->granules * (size_t)HEAP_GRANULE)
            return SCORED_FULL;
        list->n++;
    }
    struct scored_item *to = entry_edit(h, list, tasks, i);
    *to = *entry;
    memcpy(to->score, score, (size_t)tasks * sizeof *score);
    return again ? SCORED_AGAIN : SCORED_ADDED;
}

int scored_shift(struct heap *h, struct scored_list *list, int tasks, int64_t later_ms,
                 int64_t age_ms_max)
{
    int kept = 0;
    for (int i = 0; i < list->n; i++) {
        const struct scored_item *from = scored_at(h, list, tasks, i);
        const int32_t age_ms = scored_age(from->age_ms + later_ms);
        if (age_ms_max > 0 && age_ms > age_ms_max)
            continue;
        struct scored_item *to = entry_edit(h, list, tasks, kept++);
        memmove(to, from, scored_bytes(tasks));
        to->age_ms = age_ms;
    }
    const int gone = list->n - kept;
    list->n = (uint16_t)kept;
    return gone;
}

void scored_free(struct heap *h, struct scored_list *list)
{
    if (list->block)
        heap_give(h, list->block, list->granules);
    *list = (struct scored_list){0};
}
