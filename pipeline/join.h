// SPDX-License-Identifier: Apache-2.0
//
// Joins impressions with the engagements that follow them, in event time.
//
// A request is a session of its own, opened by the first record that names it. Its impressions wait
// for engagements until the watermark passes the end of the longest attribution window. A positive
// leaves at once, one for each action on an impression; a negative leaves when the window closes,
// oldest request first. An engagement or a score that comes before its impression waits up to
// lateness. An engagement without request_id belongs to the user's latest impression of the item
// inside the window, looked for in the 1,024 requests of the user that came last, or in as many of
// them as hold 16,384 impressions; with one, it belongs to the impression it names, and its own
// user is not compared. For a further window a closed request is remembered, so that what comes too
// late is told from what has no impression at all.
//
// With options.slates a request also leaves as a whole, when its window closes, with what rankers
// said about its items (model/slate.h). A ranker's scores are kept with the request, also while it
// waits for its impression; scoring an item does not admit it. With feedback_delay_ms the labels so
// far leave early, then every label that comes later, each once for an impression and task. Scores
// that cannot be used are masked and counted; the outcome of their record is not theirs.
//
// Every impression (one item shown), engagement, score record and catalogue record ends as exactly
// one of joined, expired, late, duplicate, orphan, rejected; until then it is pending:
//     in = joined + expired + late + duplicate + orphan + rejected + pending
//
// One thread owns a join. Time is never read, only passed in with the events. All state lies in
// columns; the request index is rebuilt.
#pragma once

#include "model/slate.h"
#include "pipeline/rows.h"
#include "pipeline/scored.h"
#include "pipeline/slice.h"

enum { JOIN_ACTIONS_MAX = 32, ACTION_BYTES_MAX = 62 };
enum { REQUEST_IMPRESSIONS_MAX = 1000, REQUEST_WAITING_MAX = 256 };
enum { LAST_TOUCH_REQUESTS_MAX = 1024, LAST_TOUCH_IMPRESSIONS_MAX = 16384 };
enum { RANKERS_MAX = 255 }; // versions; their names, those of tasks and surfaces: as of actions

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
    // Actions and the names of scores that mean one task carry its name; the task "*" takes all
    // that no other task names. None: one task "*". Names of up to ACTION_BYTES_MAX bytes.
    const char *const *tasks;
    int n_tasks; // <= SLATE_TASKS_MAX
    bool slates; // emit them, by join.slate; otherwise scores and surfaces are not kept
    int64_t score_max_age_ms;  // before the impression; 0: any
    int64_t feedback_delay_ms; // 0, or not shorter than the longest window: off
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
    REFUSED_SHED, // the request is not among those that a join that gets full admits
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

// What became of scores and slates, beside the outcomes of their records. Scores are counted by
// item: one item in one record.
enum slate_count {
    SLATES_CLOSED,        // without those of further ranker versions
    SLATES_SPLIT,         // emitted once more, for a further ranker version
    SLATES_UNTAUGHT,      // closed slates without a score of any ranker
    SLATES_EXPIRED,       // not emitted: the user's row had left, or that of every item
    SLATES_EARLY,         // feedback delay is over
    SLATES_LATE_POSITIVE, // labels after that
    SLATE_ITEMS,          // of closed slates
    SLATE_ITEMS_CUT,      // left out of closed slates of more than SLATE_ITEMS_MAX
    SLATE_ITEMS_SCORED,   // of closed slates, split ones included: with a score
    SLATE_LABELS,         // (item, task) pairs of closed slates
    SCORES_KEPT,
    SCORES_DUPLICATE,      // the item had a score of this version: the later one counts
    SCORES_UNKNOWN_ITEM,   // masked: the item has no row
    SCORES_UNKNOWN_RANKER, // masked: over 255 versions, or a name over 62 bytes
    SCORES_STALE,          // masked: older than score_max_age_ms
    SCORES_LATE,           // masked: the request had closed
    SCORES_FULL,           // masked: no room in the join, or in the request's list
    SCORES_WITHOUT_TASK,   // single scores that no task names
    SCORES_SAME_TASK,      // single scores of a task that the item had one for in the same record
    ENGAGEMENTS_WITHOUT_TASK,
    SURFACES_UNNUMBERED, // requests on a surface beyond the first seven, or of too long a name
    SLATE_COUNTS
};
extern const char *const slate_count_names[SLATE_COUNTS];

// What leaves: an impression with its label.
struct labelled {
    uint32_t user, item; // rows
    int64_t ts_ms;       // of the impression
    int64_t engaged_ms;  // of the engagement
    float value, propensity;
    int32_t position;
    uint16_t action;
    bool positive;
    uint8_t surface;            // as in struct slate; 0 without options.slates
    uint8_t task;               // of the action; TASK_NONE for a negative and when no task names it
    const float *user_features; // options.user_features floats, or NULL
};

typedef void (*join_emit_fn)(void *arg, const struct labelled *labelled);
// A slate without its history: n_history and n_newest are 0. scores (n_items, tasks), user_features
// as in struct labelled.
typedef void (*join_slate_fn)(void *arg, const struct slate *slate, const float *scores,
                              const float *user_features);

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
    join_slate_fn slate; // with options.slates set after join_open; called with emit_arg
    void *emit_arg;
    struct id_table request; // ids of requests; rows are numbers of open ones
    struct column session;   // struct session by request row
    struct column newest;    // by user row: the user's newest open request + 1
    struct column wheel;     // expiry: a ring of lists of requests by deadline
    struct column waiting;   // records that wait for their impression
    struct column action;    // names
    struct column counts;    // one struct join_counts
    struct column scalars;   // one struct join_scalars
    struct heap items;       // lists of impressions and of scores, user features
    // Opened with options.slates only:
    struct column pending;      // struct pending_slate by request row
    struct column task;         // names of the tasks that lists of scores and labels are made of
    struct column ranker;       // names of versions: number - 1
    struct column ranker_times; // struct ranker_times by the same
    struct column surface;      // names: number - 1
    struct column slate_counts; // one uint64_t[SLATE_COUNTS]
    int64_t window_max_ms, bucket_ms;
    int64_t feedback_delay_ms; // 0: off
    int64_t action_window_ms[JOIN_ACTIONS_MAX];
    uint8_t action_task[JOIN_ACTIONS_MAX];
    int shed_permille; // of new requests, as the slice that is applied says
};

// rows, windows and tasks must outlive the join. 0 or -ENOMEM.
int join_open(struct join *j, struct columns *s, const struct join_options *options,
              struct rows *rows, join_emit_fn emit, void *emit_arg);
void join_close(struct join *j);
// After the columns were restored: 0, -ENOMEM, or -EINVAL, also when slates were made of other
// tasks.
int join_rebuild(struct join *j);

void join_push(struct join *j, const struct event *event);
// Moves the watermark; nothing at or before it is expected any more. Never moves back.
void join_advance(struct join *j, int64_t watermark_ms);
int64_t join_watermark(const struct join *j); // INT64_MIN before the first

// From here on so many of 1,000 new requests are refused, by a hash of their ids: all records of
// one request share its fate. What was open before goes on. 0 at the start.
void join_shed(struct join *j, int permille);
// How full the join is: the larger share of its memory for requests and for their lists.
double join_fill(const struct join *j);

// Records that were rejected before they were events.
void join_rejected(struct join *j, enum topic topic, enum reject reason, uint64_t n);

static inline const struct join_counts *join_counts(const struct join *j)
{
    return column_at(&j->counts, 0);
}

// SLATE_COUNTS numbers; NULL without options.slates.
static inline const uint64_t *join_slate_counts(const struct join *j)
{
    return j->options.slates ? column_at(&j->slate_counts, 0) : NULL;
}

// True when the identity of the header holds for every topic.
bool join_balanced(const struct join *j);
// Event times of the oldest and the newest score of a version that was kept.
struct ranker_times {
    int64_t oldest_ms, newest_ms;
};
// Of version number i > 0, which has a name. NULL while none was kept.
const struct ranker_times *join_ranker_times(const struct join *j, int i);
// The name of action number i, of version number i > 0 of the ranker; size 0 at the end.
struct text join_action(const struct join *j, int i);
struct text join_ranker(const struct join *j, int i);
