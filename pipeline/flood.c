// SPDX-License-Identifier: Apache-2.0
#include "pipeline/flood.h"

#include <assert.h>

void flood_add(struct flood *f, enum topic topic, struct flood_record record)
{
    struct flood_window *w = &f->topics[topic];
    struct flood_record *at = &w->list[w->at];
    if (w->n < FLOOD_WINDOW)
        w->n++;
    else
        w->rejected -= at->reason != REJECT_NONE;
    w->rejected += record.reason != REJECT_NONE;
    *at = record;
    w->at = (w->at + 1) % FLOOD_WINDOW;
}

struct flood_report flood_report(const struct flood *f, enum topic topic)
{
    const struct flood_window *w = &f->topics[topic];
    struct flood_report report = {.records = w->n, .rejected = w->rejected};
    int count[REJECTS] = {0};
    assert(w->rejected > 0);
    for (int i = 0; i < w->n; i++)
        if (w->list[i].reason != REJECT_NONE)
            count[w->list[i].reason]++;
    for (int r = 0; r < REJECTS; r++)
        if (count[r] > report.of_reason) {
            report.reason = (enum reject)r;
            report.of_reason = count[r];
        }
    // A full ring begins at the place of the next one.
    int i = w->n < FLOOD_WINDOW ? 0 : w->at;
    while (w->list[i].reason != (int32_t)report.reason)
        i = (i + 1) % FLOOD_WINDOW;
    report.first = w->list[i];
    return report;
}
