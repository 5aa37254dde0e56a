// SPDX-License-Identifier: Apache-2.0
#include "model/frequency.h"

#include <math.h>

void frequency_recur(struct frequency_cell *cell, float rate, uint64_t now)
{
    const float gap = (float)(now - cell->last);
    cell->gap += rate * (gap - cell->gap);
    cell->last = now;
}

void frequency_sight(struct frequency_cell *cell, float rate, float prior, uint64_t now)
{
    if (cell->sightings == 0) {
        *cell = (struct frequency_cell){now, 1.0f / prior, 1};
        return;
    }
    // A second time in this batch.
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
