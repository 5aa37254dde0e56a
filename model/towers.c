// SPDX-License-Identifier: Apache-2.0
#include "model/towers.h"

void step_update_rows(const struct step *s, const struct optimizer *table, uint64_t step,
                      struct column *vector, struct column *slots, int n, const uint32_t *rows,
                      const float *gradients)
{
    const struct optimizer o = step_optimizer(s, table);
    const size_t d = vector->unit / sizeof *gradients;
    for (int i = 0; i < n; i++) {
        if (i + ROWS_AHEAD < n) {
            column_prefetch(vector, rows[i + ROWS_AHEAD]);
            column_prefetch(slots, rows[i + ROWS_AHEAD]);
        }
        const float *gradient = gradients + (size_t)i * d;
        if (step_moves(s, d, gradient))
            optimizer_update(&o, step, d, gradient, column_edit(vector, rows[i]),
                             column_edit(slots, rows[i]));
    }
}
