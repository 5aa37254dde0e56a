// SPDX-License-Identifier: Apache-2.0
//
// Joins impressions with the engagements that follow them, in event time.
//
// A request is a session of its own, opened by the first record that names it. Its impressions wait
// for engagements until the watermark passes the end of the longest attribution window. A positive
// leaves at once, one for each action on an impression; a negative leaves when the window closes,
// oldest request first. An engagement or a score that comes before its impression waits up to
// lateness. An engagement without request_id belongs to the user's latest impression of the item
// inside the window, looked for in the 1,024 requests of the user that came last; with one, it
// belongs to the impression it names, and its own user is not compared. For a further window a
// closed request is remembered, so that what comes too late is told from what has no impression at
// all.
//
// Every impression (one item shown), engagement, score record and catalogue record ends as exactly
// one of joined, expired, late, duplicate, orphan, rejected; until then it is pending:
//     in = joined + expired + late + duplicate + orphan + rejected + pending
//
// One thread owns a join. Time is never read, only passed in with the events. All state lies in
// columns; the request index is rebuilt.
#pragma once

#include "pipeline/rows.h"
#include "pipeline/slice.h"

enum { JOIN_ACTIONS_MAX = 32, ACTION_BYTES_MAX = 62 };
enum { REQUEST_IMPRESSIONS_MAX = 1000, REQUEST_WAITING_MAX = 256 };
enum { LAST_TOUCH_REQUESTS_MAX = 1024 };

struct join_window {
    const char *action;
    int64_t window_ms;
};

struct join_options {
    int64_t window_ms; // for actions that are not listed
    const struct join_window *windows;
    int n_windows;
    int64_t lateness_ms;
    size_t bytes_max;
    int user_features; // floats kept of an impression's user features
};

enum outcome { JOINED, EXPIRED, LATE, DUPLICATE, ORPHAN, REJECTED, OUTCOMES };
extern const char *const outcome_names[OUTCOMES];

// Why a record that decodes is not joined, beside the reasons of enum reject.
enum refusal {
    REFUSED_JOIN_FULL,    // join.max_bytes of requests are open
    REFUSED_REQUEST_FULL, // over 1,000 impressions or 256 waiting records in one request
    REFUSED_ACTIONS_FULL, // more than 32 different actions, or a name over 62 bytes
    REFUSED_UNKNOWN_USER, // the user is not admitted yet, or the table is full
    REFUSED_UNKNOWN_ITEM,
    REFUSALS
};
extern const char *const refusal_names[REFUSALS];

// The counters, one unit of a column, so that they are part of every checkpoint.
struct join_counts {
    uint64_t in[TOPICS];
    uint64_t out[TOPICS][OUTCOMES];
    uint64_t pending[TOPICS];
    uint64_t rejected[TOPICS][REJECTS]; // part of out[][REJECTED]
    uint64_t refused[TOPICS][REFUSALS]; // part of out[][REJECTED]
    uint64_t last_touch;                // engagements attributed without a request_id
    uint64_t positives, negatives;      // examples that left
    uint64_t stale;                     // of them, dropped because user or item had expired
    uint64_t tombstones;                // ignored, of topics without a meaning for them
};

// What leaves: an impression with its label.
struct labelled {
    uint32_t user, item; // rows
    int64_t ts_ms;       // of the impression
    int64_t engaged_ms;  // of the engagement
    float value, propensity;
    int32_t position;
    uint16_t action;
    bool positive;
    const float *user_features; // options.user_features floats, or NULL
};

typedef void (*join_emit_fn)(void *arg, const struct labelled *labelled);

// One unit of a column.
struct join_scalars {
    int64_t watermark_ms;
    int64_t wheel_at;      // the number of the first bucket that has not been looked at
    uint64_t open;         // requests in the wheel
    uint64_t loose;        // made so far: names for requests without one
    uint32_t waiting_free; // first free waiting record + 1
    uint32_t actions;
};

struct join {
    struct join_options options;
    struct rows *rows;
    join_emit_fn emit;
    void *emit_arg;
    struct id_table request; // ids of requests; rows are numbers of open ones
    struct column session;   // struct session by request row
    struct column newest;    // by user row: the user's newest open request + 1
    struct column wheel;     // expiry: a ring of lists of requests by deadline
    struct column waiting;   // records that wait for their impression
    struct column action;    // names
    struct column counts;    // one struct join_counts
    struct column scalars;   // one struct join_scalars
    struct heap items;       // lists of impressions, user features
    int64_t window_max_ms, bucket_ms;
    int64_t action_window_ms[JOIN_ACTIONS_MAX];
};

// rows and windows must outlive the join. 0 or -ENOMEM.
int join_open(struct join *j, struct columns *s, const struct join_options *options,
              struct rows *rows, join_emit_fn emit, void *emit_arg);
void join_close(struct join *j);
// After the columns were restored: 0, -ENOMEM or -EINVAL.
int join_rebuild(struct join *j);

void join_push(struct join *j, const struct event *event);
// Moves the watermark; nothing at or before it is expected any more. Never moves back.
void join_advance(struct join *j, int64_t watermark_ms);
int64_t join_watermark(const struct join *j); // INT64_MIN before the first

// Records that were rejected before they were events.
void join_rejected(struct join *j, enum topic topic, enum reject reason, uint64_t n);

static inline const struct join_counts *join_counts(const struct join *j)
{
    return column_at(&j->counts, 0);
}

// True when the identity of the header holds for every topic.
bool join_balanced(const struct join *j);
// The name of action number i; size 0 at the end.
struct text join_action(const struct join *j, int i);
