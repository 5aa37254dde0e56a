// SPDX-License-Identifier: Apache-2.0
#include "model/negative_memory.h"

#include <assert.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>

#include "model/id_table.h"

uint32_t negative_memory_push(struct negative_memory *m, const struct negative_memory_options *o)
{
    assert(o->capacity > 0 && m->head < o->capacity);
    const uint32_t place = m->head;
    m->head = (m->head + 1) % o->capacity;
    m->count += m->count < o->capacity;
    return place;
}

static bool entry_lives(const struct negative_entry *e, const struct id_table *items)
{
    return !items || (e->row < items->row.n && id_table_live(items, e->row) &&
                      id_table_row(items, e->row)->generation == e->generation);
}

int negative_memory_select(const struct negative_memory *m, const struct negative_memory_options *o,
                           const struct negative_entry *entries, const struct id_table *items,
                           uint64_t step, uint32_t *places)
{
    const uint32_t used = o->capacity - m->spare;
    int n = 0;
    assert(m->spare < o->capacity);
    if (step < o->after)
        return 0;
    for (uint32_t back = 1; back <= m->count && back <= used; back++) {
        const uint32_t place = (m->head + o->capacity - back) % o->capacity;
        const struct negative_entry *e = &entries[place];
        // Entries lie in the order of their steps: what is behind this one is older still.
        if (o->age_max > 0 && step - e->step > o->age_max)
            break;
        if (entry_lives(e, items))
            places[n++] = place;
    }
    return n;
}

int negative_memory_remove(const struct negative_entry *entries, int n, const uint32_t *places,
                           uint32_t row, int first, uint64_t *removed)
{
    int set = 0;
    for (int i = 0; i < n; i++) {
        const int column = first + i;
        const uint64_t same = entries[places[i]].row == row;
        removed[column / 64] |= same << (column % 64);
        set += (int)same;
    }
    return set;
}

void negative_memory_adapt(struct negative_memory *m, const struct negative_memory_options *o,
                           int n, int d, const float *const *then, const float *const *now)
{
    double moved = 0, size = 0;
    if (o->drift_max == 0 || n == 0)
        return;
    for (int k = 0; k < n; k++) {
        double difference = 0, norm = 0;
        for (int i = 0; i < d; i++) {
            const double by = (double)now[k][i] - (double)then[k][i];
            difference += by * by;
            norm += (double)now[k][i] * (double)now[k][i];
        }
        moved += sqrt(difference);
        size += sqrt(norm);
    }
    m->drift = moved == 0 ? 0 : (float)(moved / size);

    // It halves at once, for stale negatives teach what is wrong, and returns by a sixteenth.
    const uint32_t open = o->capacity - m->spare, used = m->count < open ? m->count : open;
    if (!(m->drift <= o->drift_max)) { // written so that NaN shrinks it
        m->spare = o->capacity - (used + 1) / 2;
    } else {
        const uint32_t grown = used / 16 + 1;
        m->spare -= grown < m->spare ? grown : m->spare;
    }
}
