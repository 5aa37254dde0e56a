// SPDX-License-Identifier: Apache-2.0
#include "model/towers.h"

void step_update_rows(const struct step *s, const struct row_parts *table, uint64_t step, int n,
                      const uint32_t *rows, const float *gradients)
{
    struct column *const vector = table->vector, *const slots = table->slots;
    const size_t d = table->d, bytes = (size_t)table->parts * d * sizeof *gradients;
    struct optimizer o[2];
    for (int p = 0; p < table->parts; p++)
        o[p] = step_optimizer(s, table->optimizer[p]);
    for (int i = 0; i < n; i++) {
        const int ahead = rows_ahead(i, n);
        if (ahead > 0) {
            column_prefetch_all(vector, bytes, ahead, rows + i + ROWS_AHEAD);
            column_prefetch_all(slots, slots->unit, ahead, rows + i + ROWS_AHEAD);
        }
        for (int p = 0; p < table->parts; p++, gradients += d)
            if (step_moves(s, d, gradients)) {
                float *row = column_edit(vector, rows[i]), *kept = column_edit(slots, rows[i]);
                optimizer_update(&o[p], step, d, gradients, row + (size_t)p * d,
                                 kept + (size_t)p * optimizer_state_floats(&o[p], d));
            }
    }
}
