// SPDX-License-Identifier: Apache-2.0
#include "model/frequency.h"

#include <assert.h>
#include <math.h>

void frequency_recur(struct frequency_cell *cell, float rate, uint64_t now)
{
    const float gap = (float)(now - cell->last);
    cell->gap += rate * (gap - cell->gap);
    cell->last = now;
}

void frequency_sight(struct frequency_cell *cell, float rate, float prior, uint64_t now,
                     uint32_t times)
{
    if (cell->sightings == 0) {
        *cell = (struct frequency_cell){now, 1.0f / prior, 1};
        return;
    }
    assert(times > 0 && now > cell->last);
    const float gap = (float)(now - cell->last) / (float)times;
    cell->gap += fmaxf(rate, 1.0f / ((float)cell->sightings + 1)) * (gap - cell->gap);
    cell->gap = fmaxf(cell->gap, 1);
    cell->last = now;
    cell->sightings += cell->sightings < UINT32_MAX;
}

float frequency_read(const struct frequency_cell *cell, float prior, uint64_t now)
{
    if (cell->sightings == 0)
        return prior;
    return 1.0f / fmaxf(1, fmaxf(cell->gap, (float)(now - cell->last)));
}
