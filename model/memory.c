// SPDX-License-Identifier: Apache-2.0
#include "model/memory.h"

#include <string.h>

int memory_open(struct tables *t, struct columns *s, const struct two_tower_options *o)
{
    const size_t capacity = o->memory.capacity;
    int rc =
        column_open(&t->memory_entry, s, "memory.entry", sizeof(struct negative_entry), capacity);
    if (rc == 0)
        rc = column_open(&t->memory_vector, s, "memory.vector", (size_t)o->dim * sizeof(float),
                         capacity);
    if (rc == 0)
        rc = column_open(&t->memory_state, s, "memory.state", sizeof(struct negative_memory), 1);
    if (rc < 0)
        return rc;
    column_grow(&t->memory_entry, capacity);
    column_grow(&t->memory_vector, capacity);
    column_grow(&t->memory_state, 1);
    return 0;
}

void memory_recall(struct memory *m, const struct towers *t)
{
    const struct tables *tables = t->tables;
    m->n = m->looks = 0;
    if (t->options->memory.capacity == 0)
        return;
    m->n = negative_memory_select(column_at(&tables->memory_state, 0), &t->options->memory,
                                  column_at(&tables->memory_entry, 0), t->items,
                                  tables_state(tables)->steps, m->places);
}

void memory_look(struct memory *m, const struct towers *t, int i, const float *now)
{
    if (m->looks == MEMORY_LOOKS)
        return;
    m->then[m->looks] = memory_vector(m, t, i);
    m->now[m->looks++] = now;
}

void memory_adapt(struct memory *m, const struct towers *t)
{
    negative_memory_adapt(column_edit(&t->tables->memory_state, 0), &t->options->memory, m->looks,
                          t->options->dim, m->then, m->now);
    m->looks = 0;
}

void memory_store(const struct towers *t, struct negative_entry entry, const float *vector)
{
    struct tables *tables = t->tables;
    const uint32_t place =
        negative_memory_push(column_edit(&tables->memory_state, 0), &t->options->memory);
    entry.step = tables_state(tables)->steps;
    entry.generation = id_table_row(t->items, entry.row)->generation;
    *(struct negative_entry *)column_edit(&tables->memory_entry, place) = entry;
    memcpy(column_edit(&tables->memory_vector, place), vector, tables->memory_vector.unit);
}
