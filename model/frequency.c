// SPDX-License-Identifier: Apache-2.0
#include "model/frequency.h"

#include <assert.h>
#include <math.h>
#include <stddef.h>

#include "model/arena.h"
#include "model/rng.h"

void frequency_recur(struct frequency_cell *cell, float rate, uint64_t now)
{
    const float gap = (float)(now - cell->last);
    cell->gap += rate * (gap - cell->gap);
    cell->last = now;
}

void frequency_init(struct frequency *f, int hashes, uint64_t slots, float rate, float prior,
                    uint64_t seed, struct arena *arena)
{
    assert(hashes > 0 && slots > 0 && rate > 0 && rate <= 1 && prior > 0 && prior <= 1);
    *f = (struct frequency){
        .hashes = hashes, .slots = slots, .seed = seed, .rate = rate, .prior = prior};
    f->cells = arena_bytes(arena, (size_t)hashes * (size_t)slots * sizeof *f->cells);
}

static struct frequency_cell *cell_of(const struct frequency *f, int hash, uint64_t id)
{
    const uint64_t bits = rng_at(rng_key(f->seed, (uint64_t)hash), id);
    const uint64_t slot = (uint64_t)(((__uint128_t)bits * f->slots) >> 64);
    return &f->cells[(uint64_t)hash * f->slots + slot];
}

void frequency_sight(struct frequency_cell *cell, float rate, float prior, uint64_t now)
{
    if (cell->sightings == 0) {
        *cell = (struct frequency_cell){now, 1.0f / prior, 1};
        return;
    }
    // A second time in this batch: the same item, or another that shares the cell.
    if (cell->last == now)
        return;
    frequency_recur(cell, fmaxf(rate, 1.0f / ((float)cell->sightings + 1)), now);
    cell->gap = fmaxf(cell->gap, 1);
    cell->sightings += cell->sightings < UINT32_MAX;
}

float frequency_read(const struct frequency_cell *cell, float prior, uint64_t now)
{
    if (cell->sightings == 0)
        return prior;
    return 1.0f / fmaxf(1, fmaxf(cell->gap, (float)(now - cell->last)));
}

void frequency_update(struct frequency *f, int n, const uint64_t *ids)
{
    f->now += (uint64_t)n;
    for (int i = 0; i < n; i++)
        for (int hash = 0; hash < f->hashes; hash++)
            frequency_sight(cell_of(f, hash, ids[i]), f->rate, f->prior, f->now);
}

float frequency_probability(const struct frequency *f, uint64_t id)
{
    float gap = 1;
    for (int hash = 0; hash < f->hashes; hash++) {
        const struct frequency_cell *cell = cell_of(f, hash, id);
        if (cell->sightings == 0)
            return f->prior; // a cell of its own is untouched, so it was never seen
        gap = fmaxf(gap, fmaxf(cell->gap, (float)(f->now - cell->last)));
    }
    return 1.0f / gap;
}
