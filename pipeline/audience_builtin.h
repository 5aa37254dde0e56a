// SPDX-License-Identifier: Apache-2.0
//
// The people of the demo's stream: who comes when, what they like, what they are shown and what
// they do then. Request r is a pure function of the options and r: tastes, trends and the push of
// the hit move with its number, not with history. Only sqrt and the four operations touch a number
// that decides something, so the stream is the same on every machine.
//
// Users have one lasting favourite genre and two that come and go; within a genre they like a
// neighbourhood of its ring (pipeline/catalogue_builtin.h); and they watch series in order. The
// policy that fills the slates knows all this only roughly.
#pragma once

#include <stdint.h>

#include "pipeline/catalogue_builtin.h"
#include "pipeline/source.h"

enum {
    SLATE_SHOWN = 10,
    SLATE_SCORED = 12, // the last two are scored, not shown
    SLATE_ENGAGEMENTS_MAX = 3 * SLATE_SHOWN + 1,
};

// Purposes of random numbers: each has a stream of its own.
enum audience_purpose {
    FOR_CATALOGUE,
    FOR_SLATES,
    FOR_TIMES,
    FOR_USERS,
    FOR_TRENDS,
    FOR_SCORES,
    FOR_CLICKS,
    AUDIENCE_PURPOSES,
};

struct audience_builtin {
    struct source_builtin_options options;
    struct catalogue_builtin catalogue;
    uint64_t key[AUDIENCE_PURPOSES];
    int64_t hit_request; // the hit is shown after this request
    int64_t hit_ramp;    // and as often as it ever will be so many requests later
};

struct slate {
    int64_t request, ts_ms;
    int32_t user;
    int32_t item[SLATE_SCORED];
    float relevance[SLATE_SCORED]; // the probability of a click, once examined
};

enum engagement_kind { CLICK, CLICK_WITHOUT_REQUEST, LIKE, ORPHAN };

struct engagement {
    int64_t ts_ms; // later than the slate's by at least two seconds
    int64_t order; // left to the caller
    int64_t request;
    int32_t user, item;
    enum engagement_kind kind;
};

// The options must be valid (source_builtin_open says what that is). Returns 0 or -ENOMEM; needs
// audience_builtin_close then as well.
int audience_builtin_open(struct audience_builtin *a, const struct source_builtin_options *options);
void audience_builtin_close(struct audience_builtin *a);

// Event time of a request; grows with its number.
int64_t audience_builtin_ts(const struct audience_builtin *a, int64_t request);
void audience_builtin_slate(const struct audience_builtin *a, int64_t request, struct slate *slate);
// What follows the slate, in no order of time; returns how many.
int audience_builtin_engage(const struct audience_builtin *a, const struct slate *slate,
                            struct engagement engagements[SLATE_ENGAGEMENTS_MAX]);
// The probability that a click is followed by a like.
float audience_builtin_like(float relevance);
