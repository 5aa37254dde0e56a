// SPDX-License-Identifier: Apache-2.0
//
// What the process counts and measures, in the text format that Prometheus reads. One table of
// rows, METRICS below; adding a metric is adding a row. A test walks the table and applies
// promtool's naming rules: twotower_ in front, base units, plural, _total on counters and nowhere
// else.
//
//     metrics_add(METRIC_STEPS, 1);                                 a counter without labels
//     metrics_add_of(METRIC_RECORDS, TOPIC_ITEMS, n);               with one: the label's index
//     metrics_add_of2(METRIC_RECORDS_REJECTED, topic, reason, 1);   with two
//     metrics_put_of2(METRIC_OUTCOMES, topic, outcome, total);      a count that is kept elsewhere
//     metrics_set(METRIC_EVENT_TIME_LAG, 0.8);                      a gauge
//     metrics_observe(METRIC_STEP_DURATION, seconds);               a histogram
//
// Labels are fixed sets known at compile time (metrics.c), so that a series is an index and
// counting is one atomic addition. Four sets are filled in at start: partitions, build identity,
// I/O backend, tasks; one as the stream tells of them: versions of the ranker. No label ever
// carries the id of a user or an item.
//
// Any thread may count and render at any time. A gauge appears once it has been set; a counter and
// a histogram are there from the start, at 0. Nothing can fail: a wrong index is an assert.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "daemon/publish_guard.h"
#include "model/objectives.h"
#include "model/slate.h"
#include "pipeline/decode.h"
#include "pipeline/evaluate.h"
#include "pipeline/event.h"
#include "pipeline/join.h"
#include "pipeline/traffic.h"

// METRIC_COUNTER_US counts microseconds and is shown in seconds.
enum metric_type { METRIC_COUNTER, METRIC_COUNTER_US, METRIC_GAUGE, METRIC_HISTOGRAM };

enum metric_label_example { BY_EXAMPLE_POSITIVE, BY_EXAMPLE_NEGATIVE, BY_EXAMPLE_LABELS };
enum metric_cutoff {
    BY_CUTOFF_1,
    BY_CUTOFF_5,
    BY_CUTOFF_10,
    BY_CUTOFF_50,
    BY_CUTOFF_100,
    BY_CUTOFFS
};
enum metric_tower { BY_TOWER_USER, BY_TOWER_ITEM, BY_TOWERS };
enum metric_table { BY_TABLE_ITEMS, BY_TABLE_USERS, BY_TABLES };
enum metric_stage { BY_STAGE_INGEST, BY_STAGE_TRAIN, BY_STAGE_EVALUATE, BY_STAGE_WRITE, BY_STAGES };

enum metric_reload {
    BY_RELOAD_APPLIED,   // other weights were asked for
    BY_RELOAD_UNCHANGED, // the file says what it said
    BY_RELOAD_REFUSED,   // the file has mistakes, or wants what cannot change
    BY_RELOADS
};

enum { METRIC_PARTITIONS_MAX = 1024, METRIC_RANKERS_MAX = RANKERS_MAX + 1 };

// Sets of labels and how many series each has. "topic,reason" is two labels.
#define METRIC_LABELS(X)                                                                           \
    X(NONE, 1)                                                                                     \
    X(TOPIC, TOPICS)                                                                               \
    X(TOPIC_OUTCOME, TOPICS *OUTCOMES)                                                             \
    X(TOPIC_REASON, TOPICS *REJECTS)                                                               \
    X(TOPIC_REFUSAL, TOPICS *REFUSALS)                                                             \
    X(TOPIC_KEY, TOPICS *TRAFFIC_KEYS)                                                             \
    X(FIELD, TRAFFIC_FIELDS)                                                                       \
    X(PARTITION, METRIC_PARTITIONS_MAX)                                                            \
    X(EXAMPLE, BY_EXAMPLE_LABELS)                                                                  \
    X(CUTOFF, BY_CUTOFFS)                                                                          \
    X(TABLE, BY_TABLES)                                                                            \
    X(STAGE, BY_STAGES)                                                                            \
    X(TERM, OBJECTIVES)                                                                            \
    X(TERM_TOWER, OBJECTIVES *BY_TOWERS)                                                           \
    X(SLATE, SLATE_COUNTS)                                                                         \
    X(RANKER, METRIC_RANKERS_MAX)                                                                  \
    X(POSITION, EXPECTATIONS *BY_POSITION)                                                         \
    X(ACTIVITY, EXPECTATIONS *BY_ACTIVITY)                                                         \
    X(BUILD, 1)                                                                                    \
    X(BACKEND, 1)                                                                                  \
    X(RELOAD, BY_RELOADS)                                                                          \
    X(GUARD_REASON, GUARD_REASONS)                                                                 \
    X(TASK, SLATE_TASKS_MAX)

// Symbol, name without "twotower_", type, labels, what it means.
#define METRICS(X)                                                                                 \
    /* identity */                                                                                 \
    X(BUILD_INFO, "build_info", GAUGE, BUILD, "Build and machine identity; always 1.")             \
    X(IO_BACKEND_INFO, "io_backend_info", GAUGE, BACKEND,                                          \
      "How snapshots and checkpoints are written; always 1.")                                      \
    X(START_TIME, "start_time_seconds", GAUGE, NONE, "Unix time at which the process started.")    \
    X(READY, "ready", GAUGE, NONE, "1 when every readiness check passes, else 0.")                 \
    X(LOG_SUPPRESSED, "log_lines_suppressed_total", COUNTER, NONE,                                 \
      "Log lines held back by the limit of their place in the source.")                            \
    /* intake */                                                                                   \
    X(RECORDS, "records_total", COUNTER, TOPIC,                                                    \
      "Taken in: items shown, engagements, score and catalogue records.")                          \
    X(RECORD_BYTES, "record_bytes_total", COUNTER, NONE, "Bytes of values read since the start.")  \
    X(OUTCOMES, "record_outcomes_total", COUNTER, TOPIC_OUTCOME,                                   \
      "How records ended, one way each: records_total = the sum of these + records_pending.")      \
    X(RECORDS_REJECTED, "records_rejected_total", COUNTER, TOPIC_REASON,                           \
      "Records that are not events, by reason; kept in the dead-letter file.")                     \
    X(RECORDS_REFUSED, "records_refused_total", COUNTER, TOPIC_REFUSAL,                            \
      "Events that could not be joined for want of room or of a row, by reason.")                  \
    X(RECORDS_SKIPPED, "records_skipped_total", COUNTER, NONE,                                     \
      "Offsets that a person let a partition leave out: --allow-gap, --skip.")                     \
    X(FIELDS_DEFAULTED, "fields_defaulted_total", COUNTER, FIELD,                                  \
      "Records without a field that they may leave out; a default stood for it.")                  \
    X(FIELDS_REPEATED, "records_with_repeated_fields_total", COUNTER, TOPIC,                       \
      "Records in which a field stands twice; the last one counts.")                               \
    X(HOT_KEY, "hot_key_ratio", GAUGE, TOPIC_KEY,                                                  \
      "Share of the most frequent user, request or item among the last 65,536 records.")           \
    X(EXPOSURE_GINI, "item_exposure_gini_ratio", GAUGE, NONE,                                      \
      "Gini coefficient of how often known items are shown: 0 all equally, near 1 one has all.")   \
    X(DEAD_LETTER_BYTES, "dead_letter_bytes_total", COUNTER, NONE,                                 \
      "Bytes ever written to dead-letter files.")                                                  \
    X(DEAD_LETTER_ROTATIONS, "dead_letter_rotations_total", COUNTER, NONE,                         \
      "Times that the dead-letter file was full and replaced the older one.")                      \
    X(DEAD_LETTERS_DELIVERED, "dead_letters_delivered_total", COUNTER, NONE,                       \
      "Dead letters that dead_letter.topic has, by the broker's word.")                            \
    X(DEAD_LETTERS_WAITING, "dead_letters_waiting_bytes", GAUGE, NONE,                             \
      "Bytes of the dead-letter file that are still to be delivered to the topic.")                \
    X(DEAD_LETTERS_DROPPED, "dead_letters_dropped_bytes_total", COUNTER, NONE,                     \
      "Bytes of the dead-letter file that were replaced before they were delivered.")              \
    X(DEAD_LETTER_FAILURES, "dead_letter_failures_total", COUNTER, NONE,                           \
      "Times that delivery to the topic failed and was begun again.")                              \
    X(PARTITION_LAG, "consumer_lag_records", GAUGE, PARTITION,                                     \
      "Records between the position and the end of the partition.")                                \
    X(PARTITION_HELD, "consumer_open_transaction_records", GAUGE, PARTITION,                       \
      "Records at the end of the partition that wait for an open transaction.")                    \
    X(SOURCE_AWAY, "source_away_seconds", GAUGE, NONE,                                             \
      "For how long no broker has answered; 0: one does.")                                         \
    X(RECORDS_UNKEYED, "records_unkeyed_total", COUNTER, TOPIC,                                    \
      "Kafka records whose key is not the event's user, catalogue apart; one process takes them.") \
    X(EVENT_TIME_LAG, "event_time_lag_seconds", GAUGE, NONE,                                       \
      "Now minus the event time of the newest record that was applied.")                           \
    X(WATERMARK, "watermark_timestamp_seconds", GAUGE, NONE,                                       \
      "Event time before which nothing more is expected.")                                         \
    X(REPLAY_PROGRESS, "replay_progress_ratio", GAUGE, NONE,                                       \
      "How much of what a bounded run is to read has been applied.")                               \
    X(SLICES, "slices_total", COUNTER, NONE, "Slices cut and applied.")                            \
    /* join */                                                                                     \
    X(PENDING, "records_pending", GAUGE, TOPIC, "Records that wait in the join.")                  \
    X(JOIN_BYTES, "join_bytes", GAUGE, NONE, "Memory of the join's columns.")                      \
    X(SLATES, "slate_outcomes_total", COUNTER, SLATE,                                              \
      "What became of slates and of the scores in them; the names say of what.")                   \
    /* training */                                                                                 \
    X(EXAMPLES, "examples_total", COUNTER, EXAMPLE, "Examples learned, by label.")                 \
    X(STEPS, "steps_total", COUNTER, NONE, "Batches learned.")                                     \
    X(STEPS_SKIPPED, "steps_skipped_total", COUNTER, NONE,                                         \
      "Batches not learned: a loss or gradient was not finite.")                                   \
    X(STEP_DURATION, "step_duration_seconds", HISTOGRAM, NONE, "Wall time of one training step.")  \
    X(LOSS, "loss", GAUGE, NONE, "Mean loss of an example in the last batch.")                     \
    X(SLATE_STEPS, "slate_steps_total", COUNTER, NONE, "Batches of slates learned.")               \
    X(SLATES_LEARNED, "slates_learned_total", COUNTER, NONE,                                       \
      "Slates in them: closed ones, early ones, late labels.")                                     \
    X(SLATES_UNSCORED, "slates_unscored_total", COUNTER, NONE,                                     \
      "Closed slates learned without scores that the terms could use.")                            \
    X(NEGATIVES_MASKED, "negatives_masked_total", COUNTER, NONE,                                   \
      "Candidates that were no negatives of an example, because they are known positives.")        \
    X(TERM_LOSS, "term_loss", GAUGE, TERM,                                                         \
      "Mean loss of an example or a slate in a term of the loss, last minute.")                    \
    X(TERM_GRADIENT_NORM, "term_gradient_norm", GAUGE, TERM_TOWER,                                 \
      "Norm of a term's gradient on what a tower gives, mean of a step, last minute.")             \
    X(REGULARISATION_LOSS, "regularisation_loss", GAUGE, NONE,                                     \
      "L2 of the rows touched, mean of the steps that were measured, last minute.")                \
    X(BATCH_ACCURACY, "batch_accuracy_ratio", GAUGE, CUTOFF,                                       \
      "Examples above all but k of their batch's candidates, by weight, last minute.")             \
    X(BATCH_AUC, "batch_auc_ratio", GAUGE, NONE,                                                   \
      "Share of the batch's candidates below the example's, by weight, last minute.")              \
    X(GUARD, "ranker_guard_ratio", GAUGE, RANKER,                                                  \
      "How far a version of the ranker is followed: 0 until it agrees with what people do.")       \
    X(RANKER_CORRELATION, "ranker_correlation_ratio", GAUGE, RANKER,                               \
      "Correlation of a version's scores with net values inside slates, -1 to 1.")                 \
    X(RANKER_SLATES, "ranker_guard_slates", GAUGE, RANKER,                                         \
      "How many slates the guard and the correlation are worth.")                                  \
    X(RANKER_NEWEST, "ranker_newest_score_timestamp_seconds", GAUGE, RANKER,                       \
      "Event time of the newest score of a version that was kept for a slate.")                    \
    X(RANKER_OLDEST, "ranker_oldest_score_timestamp_seconds", GAUGE, RANKER,                       \
      "Event time of the oldest one: since when the version has been seen.")                       \
    X(POLICY_SAMPLE_SIZE, "policy_sample_size_items", GAUGE, NONE,                                 \
      "Effective sample size of capped propensity ratios in a slate, last minute.")                \
    X(QUEUE_SLICES, "queue_slices", GAUGE, NONE, "Slices that wait for the trainer.")              \
    X(STAGE_BUSY, "stage_busy_seconds_total", COUNTER_US, STAGE,                                   \
      "CPU time of a stage since the start.")                                                      \
    /* quality, measured before an example is learned */                                           \
    X(EVALUATED, "evaluated_examples_total", COUNTER, NONE,                                        \
      "Examples scored over the whole corpus before they were learned.")                           \
    X(RECALL, "recall_ratio", GAUGE, CUTOFF, "Recall of the model, decaying.")                     \
    X(POPULARITY_RECALL, "popularity_recall_ratio", GAUGE, CUTOFF,                                 \
      "Recall of decayed popularity under the same protocol.")                                     \
    X(NDCG, "ndcg_ratio", GAUGE, CUTOFF, "NDCG of the model, decaying.")                           \
    X(LOG_LOSS, "log_loss", GAUGE, NONE, "Log loss of the model over the corpus, decaying.")       \
    X(TAIL_RECALL, "tail_recall_ratio", GAUGE, CUTOFF,                                             \
      "Recall where the target is of the less popular half of the items, decaying.")               \
    X(SLATES_EVALUATED, "evaluated_slates_total", COUNTER, NONE,                                   \
      "Slates compared with the ranker or the estimators before they were learned.")               \
    X(OVERLAP, "ranker_overlap_ratio", GAUGE, CUTOFF,                                              \
      "The ranker's first k of a slate that are the model's first k of it, decaying.")             \
    X(CORPUS_OVERLAP, "ranker_corpus_overlap_ratio", GAUGE, CUTOFF,                                \
      "The ranker's first k of a slate that are the model's first k of all items, decaying.")      \
    X(RANK_CORRELATION, "ranker_rank_correlation_ratio", GAUGE, NONE,                              \
      "Spearman's correlation of the model's and the ranker's order in slates, decaying.")         \
    X(POSITION_EXPECTED, "position_expected_value", GAUGE, POSITION,                               \
      "Net value expected of an item shown, by position as logged, 10 for all others, decaying.")  \
    X(POSITION_OBSERVED, "position_observed_value", GAUGE, POSITION,                               \
      "Net value that these items then had, decaying.")                                            \
    X(ACTIVITY_EXPECTED, "activity_expected_value", GAUGE, ACTIVITY,                               \
      "Net value expected of an item shown, by how much its user had engaged, from, decaying.")    \
    X(ACTIVITY_OBSERVED, "activity_observed_value", GAUGE, ACTIVITY,                               \
      "Net value that these items then had, decaying.")                                            \
    /* tables */                                                                                   \
    X(TABLE_ROWS, "table_rows", GAUGE, TABLE, "Rows in use.")                                      \
    X(TABLE_BYTES, "table_bytes", GAUGE, TABLE, "Memory of a table's columns, without its index.") \
    X(TABLE_ADMITTED, "table_rows_admitted_total", COUNTER, TABLE,                                 \
      "Ids that were seen often enough to get a row.")                                             \
    X(TABLE_EXPIRED, "table_rows_expired_total", COUNTER, TABLE,                                   \
      "Rows given back after their time to live.")                                                 \
    X(TABLE_REFUSED, "table_rows_refused_total", COUNTER, TABLE,                                   \
      "Ids that got no row because the table was full.")                                           \
    /* checkpoints */                                                                              \
    X(CHECKPOINTS, "checkpoints_total", COUNTER, NONE, "Checkpoints made durable.")                \
    X(CHECKPOINT_FAILURES, "checkpoint_failures_total", COUNTER, NONE, "Checkpoints that failed.") \
    X(CHECKPOINT_TIME, "checkpoint_timestamp_seconds", GAUGE, NONE,                                \
      "Unix time of the last durable checkpoint.")                                                 \
    X(CHECKPOINT_BYTES, "checkpoint_bytes", GAUGE, NONE, "Size of the last checkpoint.")           \
    X(CHECKPOINT_DURATION, "checkpoint_duration_seconds", HISTOGRAM, NONE,                         \
      "Time from the cut of a checkpoint until it was durable.")                                   \
    /* snapshots */                                                                                \
    X(SNAPSHOTS, "snapshots_total", COUNTER, NONE, "Snapshots published.")                         \
    X(SNAPSHOT_FAILURES, "snapshot_failures_total", COUNTER, NONE,                                 \
      "Snapshots that could not be published.")                                                    \
    X(SNAPSHOT_REFUSED, "snapshot_refused_total", COUNTER, GUARD_REASON,                           \
      "Snapshots that the guard did not let out, by reason.")                                      \
    X(SNAPSHOT_PINNED, "snapshot_pinned", GAUGE, NONE,                                             \
      "1 when an operator has pinned LATEST, as of the last publication, else 0.")                 \
    X(SNAPSHOT_GENERATION, "snapshot_generation", GAUGE, NONE, "The last published generation.")   \
    X(SNAPSHOT_TIME, "snapshot_timestamp_seconds", GAUGE, NONE,                                    \
      "Unix time of the last publication.")                                                        \
    X(SNAPSHOT_BYTES, "snapshot_bytes", GAUGE, NONE, "Size of the last published snapshot.")       \
    X(SNAPSHOT_DURATION, "snapshot_duration_seconds", HISTOGRAM, NONE,                             \
      "Time from a durable checkpoint until its snapshot was published.")                          \
    X(TRAINER_WAIT_MAX, "trainer_wait_max_seconds", GAUGE, NONE,                                   \
      "Longest that the trainer stood still to begin a checkpoint or snapshot.")                   \
    /* value.tasks */                                                                              \
    X(CONFIG_RELOADS, "config_reloads_total", COUNTER, RELOAD,                                     \
      "Times that the configuration was read anew, by what came of it.")                           \
    X(VALUE_WEIGHT, "value_weight", GAUGE, TASK, "What the trainer takes a task to be worth.")     \
    X(VALUE_WEIGHTS_SLICE, "value_weights_slice", GAUGE, NONE,                                     \
      "The slice since which tasks are worth that; 0: since the start.")

enum metric {
#define METRIC_SYMBOL(symbol, name, type, labels, help) METRIC_##symbol,
    METRICS(METRIC_SYMBOL)
#undef METRIC_SYMBOL
        METRIC_COUNT
};

struct metric_row {
    const char *name; // whole: "twotower_steps_total"
    enum metric_type type;
    int series; // how many the labels make
    const char *help;
};
extern const struct metric_row metric_rows[METRIC_COUNT];

void metrics_add(enum metric m, uint64_t n);
void metrics_add_of(enum metric m, int label, uint64_t n);
void metrics_add_of2(enum metric m, int first, int second, uint64_t n);
// Counters whose total somebody else keeps (the join's are in its checkpoints) are overwritten by
// it.
void metrics_put_of(enum metric m, int label, uint64_t total);
void metrics_put_of2(enum metric m, int first, int second, uint64_t total);
void metrics_set(enum metric m, double value);
void metrics_set_of(enum metric m, int label, double value);
void metrics_set_of2(enum metric m, int first, int second, double value);
void metrics_observe(enum metric m, double seconds);

// The value of a counter, in its own unit; tests and the status line read it.
uint64_t metrics_count(enum metric m, int series);

// Fill in the sets of labels that are known only at start. Each may be called again; texts are
// copied. Partitions beyond METRIC_PARTITIONS_MAX are left out.
struct source_partition;
void metrics_partitions(int n, const struct source_partition *partitions);
void metrics_build_info(const char *version, const char *blas, const char *core,
                        const char *kernels);
void metrics_io_backend(const char *backend);
struct value_tasks;
void metrics_tasks(const struct value_tasks *tasks);

// Names version `number` of the ranker, below METRIC_RANKERS_MAX; its series have no name before.
void metrics_ranker(int number, const char *name);

// All metrics as text. Returns a malloc'ed buffer, the caller frees it; NULL when memory is short.
char *metrics_text(size_t *size);
// Everything back to nothing, for tests.
void metrics_reset(void);
