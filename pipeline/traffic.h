// SPDX-License-Identifier: Apache-2.0
//
// What the stream looks like, for people: who sends how much of it, how unevenly items are shown,
// which fields are left out. Nothing learns from it and no checkpoint has it; it begins anew with
// the process.
//
//     traffic_see(t, event)    each event, in order, after it was applied
//     traffic_figures(t)       as of the last window
//
// A window is 65,536 records (an item shown, an engagement, a score record, a catalogue record), so
// figures depend on the events alone. The first come after 1,024 records, then at each doubling,
// and from the first whole window on only whole ones are told.
//
// The share of the most frequent key is found by Misra and Gries (1982) with 64 counters: at most
// 1/65 below the true one, never above. That of items shown is exact, as is the Gini coefficient.
// One thread.
#pragma once

#include "model/id_table.h"
#include "pipeline/event.h"

enum { TRAFFIC_WINDOW = 1 << 16, TRAFFIC_FIRST = 1 << 10 };

enum traffic_key { TRAFFIC_USER, TRAFFIC_REQUEST, TRAFFIC_ITEM, TRAFFIC_KEYS };
extern const char *const traffic_key_names[TRAFFIC_KEYS];

// Fields that an event may leave out, and what stands for them then.
enum traffic_field {
    DEFAULTED_REQUEST,       // engagements: the user's latest impression of the item
    DEFAULTED_VALUE,         // engagements: 1
    DEFAULTED_POSITION,      // impressions: unknown
    DEFAULTED_PROPENSITY,    // impressions: not logged
    DEFAULTED_SURFACE,       // impressions: none
    DEFAULTED_USER_FEATURES, // impressions: zeros
    DEFAULTED_RANKER,        // ranker_scores: the version without a name
    DEFAULTED_TITLE,         // items: none
    DEFAULTED_FEATURES,      // items: none, or those that impressions bring
    TRAFFIC_FIELDS
};
struct traffic_field_name {
    enum topic topic;
    const char *field;
};
extern const struct traffic_field_name traffic_fields[TRAFFIC_FIELDS];

struct traffic_figures {
    // Of the records that have such a key; NAN before the first window.
    double top_share[TOPICS][TRAFFIC_KEYS];
    // Of how often the known items were shown, those not shown too: 0 all equally, near 1 one has
    // all. NAN likewise.
    double exposure_gini;
    // Since the start, in records as above.
    uint64_t defaulted[TRAFFIC_FIELDS];
    uint64_t repeated[TOPICS]; // with a field that stood there twice
};

struct traffic;

// items is the table whose rows are shown; it must outlive this. 0 or -ENOMEM.
int traffic_open(struct traffic **t, const struct id_table *items);
void traffic_close(struct traffic *t);
void traffic_see(struct traffic *t, const struct event *event);
const struct traffic_figures *traffic_figures(const struct traffic *t);

// The Gini coefficient of n counts of which n_shown are given, the rest 0. spread (counts_max + 1)
// is scratch, zeros before and after. 0 when nothing was counted.
double traffic_gini(size_t n, size_t n_shown, const uint32_t *counts, uint32_t *spread);
