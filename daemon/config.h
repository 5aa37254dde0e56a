// SPDX-License-Identifier: Apache-2.0
//
// The configuration: one table of rows (daemon/config.c), each giving key, type, default, range and
// meaning of one option. Defaults, the TOML parser, -o section.key=value, `twotower check --show`
// and the sample file are all made from it: adding an option is one row there and one member here.
//
// A key names its member: "join.window" is join_window_ms (milliseconds), "slice.log_max" is
// slice_log_max_bytes, everything else is the key with an underscore for the dot.
//
//     config_init     defaults
//     config_load     a file on top: all of its mistakes at once, each with line and column
//     config_set      one key on top, as -o does
//     config_check    what one row alone cannot know: keys that need each other
//
// Mistakes go into struct config_problems and change nothing else; a value that is wrong leaves the
// earlier one in place. One thread fills a configuration; filled, it is read-only and any thread
// may read it. Texts are borrowed from the arena given to config_init.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "pipeline/source.h"

struct arena;
struct value_tasks;

enum {
    CONFIG_ROWS_MAX = 192,
    CONFIG_ENTRIES_MAX = 64,  // of one open table: librdkafka properties, actions
    CONFIG_PROBLEMS_MAX = 64, // kept; further ones are only counted
    CONFIG_MEMORY = 1 << 20,  // what an arena for config_init should have
    CONFIG_DIGEST_SIZE = 65,  // of config_model_digest, with the zero
    CONFIG_MODEL_TEXT_SIZE = 16384,
};

// In the order of the words in the table's row; a test compares the two.
enum config_source { CONFIG_SOURCE_BUILTIN, CONFIG_SOURCE_FILE, CONFIG_SOURCE_KAFKA };
enum config_model { CONFIG_MODEL_RECIPE, CONFIG_MODEL_TWO_TOWER };
// As optimizer_at of model/optimizer.h numbers them; a test compares the words.
enum config_optimizer {
    CONFIG_OPTIMIZER_SGD,
    CONFIG_OPTIMIZER_ADAGRAD,
    CONFIG_OPTIMIZER_ROWWISE_ADAGRAD,
    CONFIG_OPTIMIZER_ADAM,
    CONFIG_OPTIMIZER_FTRL,
    CONFIG_OPTIMIZER_CLIPPY_ADAGRAD
};
enum config_correction {
    CONFIG_CORRECTION_LOGQ,
    CONFIG_CORRECTION_MNS,
    CONFIG_CORRECTION_COUNTED,
    CONFIG_CORRECTION_REFINED,
    CONFIG_CORRECTION_NONE
};
enum config_user_update { CONFIG_USER_GRADIENT, CONFIG_USER_ONEBP };
enum config_estimator {
    CONFIG_ESTIMATOR_NONE,
    CONFIG_ESTIMATOR_POSITION,
    CONFIG_ESTIMATOR_POSITION_SGD,
    CONFIG_ESTIMATOR_USER,
    CONFIG_ESTIMATOR_USER_MEAN,
    CONFIG_ESTIMATOR_COMBINED,
    CONFIG_ESTIMATOR_PBM,
    CONFIG_ESTIMATOR_PROPENSITY
};
enum config_residual {
    CONFIG_RESIDUAL_RATIO,
    CONFIG_RESIDUAL_DIFFERENCE,
    CONFIG_RESIDUAL_POSITIVE,
    CONFIG_RESIDUAL_Z,
    CONFIG_RESIDUAL_SEED
};
enum config_distill {
    CONFIG_DISTILL_LISTWISE,
    CONFIG_DISTILL_PLACKETT_LUCE,
    CONFIG_DISTILL_TOP_POSITIVES,
    CONFIG_DISTILL_SOFT_PAIR,
    CONFIG_DISTILL_MARGIN
};
enum config_align {
    CONFIG_ALIGN_KL,
    CONFIG_ALIGN_POLICY,
    CONFIG_ALIGN_SHAPED,
    CONFIG_ALIGN_DPO,
    CONFIG_ALIGN_S_DPO
};
enum config_teacher { CONFIG_TEACHER_LOGGED, CONFIG_TEACHER_PROXY };
enum config_preference { CONFIG_PREFERENCE_BPR, CONFIG_PREFERENCE_DPO, CONFIG_PREFERENCE_S_DPO };
enum config_scale { CONFIG_SCALE_PROBABILITY, CONFIG_SCALE_LOGIT };
enum config_feedback {
    CONFIG_FEEDBACK_NONE,
    CONFIG_FEEDBACK_FNW,
    CONFIG_FEEDBACK_FNC,
    CONFIG_FEEDBACK_ES_DFM
};
enum config_encoder { CONFIG_ENCODER_NONE, CONFIG_ENCODER_ATTENTION };
enum config_positions { CONFIG_POSITIONS_NONE, CONFIG_POSITIONS_SEED, CONFIG_POSITIONS_STANDARD };
enum config_attention_rows { CONFIG_ATTENTION_ITEM, CONFIG_ATTENTION_CONTEXT };
enum config_unavailable { CONFIG_UNAVAILABLE_WAIT, CONFIG_UNAVAILABLE_DROP };
enum config_io { CONFIG_IO_AUTO, CONFIG_IO_URING, CONFIG_IO_PWRITE };
enum config_log_level { CONFIG_LOG_DEBUG, CONFIG_LOG_INFO, CONFIG_LOG_WARNING, CONFIG_LOG_ERROR };
enum config_log_format { CONFIG_LOG_TEXT, CONFIG_LOG_LOGFMT, CONFIG_LOG_JSON };
enum config_precision { CONFIG_PRECISION_F32, CONFIG_PRECISION_BF16 }; // batch_scores_precision
enum config_kernels {
    CONFIG_KERNELS_AUTO,
    CONFIG_KERNELS_PLAIN,
    CONFIG_KERNELS_AVX2,
    CONFIG_KERNELS_AVX512,
    CONFIG_KERNELS_AMX
};
enum config_blas_core { CONFIG_BLAS_CORE_AUTO, CONFIG_BLAS_CORE_PORTABLE };
enum config_on_change { CONFIG_ON_CHANGE_REFUSE, CONFIG_ON_CHANGE_ACCEPT };

// Who gave a value: "default", a file with line and column, or "-o:1" without.
struct config_origin {
    const char *where; // borrowed from the configuration's arena
    int line, column;  // 0 when where has none
};

// Open tables: the keys below "source.kafka." and "join.actions." are the user's own.
struct config_properties {
    int n;
    struct source_kafka_property list[CONFIG_ENTRIES_MAX]; // as source_kafka_options wants them
    struct config_origin origin[CONFIG_ENTRIES_MAX];
};
struct config_duration {
    const char *name;
    int64_t ms;
};
struct config_durations {
    int n;
    struct config_duration list[CONFIG_ENTRIES_MAX];
    struct config_origin origin[CONFIG_ENTRIES_MAX];
};

struct config {
    enum config_source source_type;
    const char *source_path;
    const char *source_brokers;
    const char *source_impressions, *source_engagements; // topic names; "" is not read
    const char *source_ranker_scores, *source_items;
    struct config_properties source_kafka;
    int64_t source_seed;
    int source_users, source_catalogue; // of the built-in stream; source_items is a topic
    int64_t source_requests;            // 0 is endless
    double source_requests_per_second;

    int slice_events;
    int64_t slice_interval_ms;
    int64_t slice_log_max_bytes, slice_log_keep_bytes;

    int64_t join_window_ms, join_lateness_ms, join_max_future_ms;
    struct config_durations join_actions; // windows of single actions
    int64_t join_max_bytes;

    enum config_model model_type;
    int model_dim;
    int64_t model_seed;
    int model_history, model_repeat;
    int model_batch;
    int model_uniform_negatives;
    int model_replay, model_replay_window;
    double model_rate, model_l2, model_dense_rate, model_scalar_rate;
    double model_prior_half_life_fast, model_prior_half_life_slow;
    double model_prior_half_life_recent, model_logq_half_life;
    double model_accumulator, model_init;
    int model_user_features, model_item_features;
    int model_hidden;
    bool model_projection;
    double model_temperature;
    bool model_logq;
    enum config_optimizer model_optimizer, model_dense_optimizer, model_scalar_optimizer;
    double model_gradient_max, model_radius;
    enum config_correction model_correction;
    enum config_precision model_precision;
    bool model_mask_known;
    int model_memory, model_memory_age, model_memory_after; // entries, steps, steps
    double model_memory_drift;
    enum config_user_update model_user_update;
    double model_onebp_beta;
    bool model_accidental_hits;
    int model_hard_negatives;
    enum config_encoder model_history_encoder;
    int model_attention, model_attention_heads;
    enum config_positions model_attention_positions;
    bool model_attention_residual, model_attention_norm;
    bool model_attention_actions, model_attention_gaps;
    enum config_attention_rows model_attention_rows;

    const char *value_tasks;

    enum config_estimator debias_estimator;
    enum config_residual debias_form;
    double debias_cap, debias_floor, debias_half_life, debias_user_half_life, debias_rate;

    int slates_batch;
    int64_t slates_score_max_age_ms;

    double distill_weight, distill_temperature;
    enum config_distill distill_form;
    int distill_top;

    double align_weight, align_temperature, align_student_temperature;
    enum config_align align_form;
    enum config_teacher align_teacher;
    double align_beta, align_trust, align_ratio_cap;
    int align_top_k;
    bool align_guard;
    double align_guard_half_life, align_guard_confidence;
    int64_t align_publish_ms;

    double preference_weight, preference_beta;
    enum config_preference preference_form;

    double ranker_weight, ranker_distill, ranker_rate;
    enum config_optimizer ranker_optimizer;
    int ranker_heads;
    bool ranker_stop_gradient;
    enum config_scale ranker_scores;
    enum config_feedback ranker_feedback;
    int64_t ranker_feedback_delay_ms;

    int64_t tables_items_max, tables_users_max;
    int tables_admit_items, tables_admit_users;
    int64_t tables_item_ttl_ms, tables_user_ttl_ms; // 0 is never

    double eval_sampling;
    int eval_chunk; // 0 is model_batch
    double eval_popularity_half_life;

    const char *state_dir;
    int64_t checkpoint_interval_ms, checkpoint_max_age_ms;
    int checkpoint_keep;

    const char *snapshot_dir;
    int64_t snapshot_interval_ms;
    int snapshot_keep;
    bool snapshot_f16;
    enum config_io snapshot_io;
    double snapshot_guard_recall, snapshot_guard_errors; // 0 of any is off
    int64_t snapshot_guard_events;
    double snapshot_guard_norm_max, snapshot_guard_norm_jump, snapshot_guard_rows;

    const char *dead_letter_path; // "" is state_dir/dead-letters.jsonl
    int64_t dead_letter_max_bytes;
    double dead_letter_flood;
    const char *dead_letter_topic; // "" is off
    enum config_unavailable dead_letter_on_unavailable;

    const char *http_listen; // "" is off
    enum config_log_level log_level;
    enum config_log_format log_format;
    enum config_kernels kernels_set;
    enum config_blas_core kernels_blas_core;
    enum config_on_change kernels_on_change;

    struct arena *memory;
    struct config_origin origin[CONFIG_ROWS_MAX];
};

struct config_problem {
    struct config_origin at;
    char text[320];
};
struct config_problems {
    int n; // found; the list holds the first CONFIG_PROBLEMS_MAX of them
    struct config_problem list[CONFIG_PROBLEMS_MAX];
};

void config_init(struct config *c, struct arena *memory);
// 0, or -errno when the file cannot be read, -EINVAL when problems were added.
int config_load(struct config *c, const char *path, struct config_problems *problems);
// key is "join.window", text "30m"; origin says who wants it, as it is to appear in messages:
// "-o:1". 0 or -EINVAL with one more problem.
int config_set(struct config *c, const char *key, const char *text, const char *origin,
               struct config_problems *problems);
// The argument of -o: "section.key=value".
int config_set_pair(struct config *c, const char *pair, const char *origin,
                    struct config_problems *problems);
int config_check(const struct config *c, struct config_problems *problems);

// What a running process takes of a configuration that was read anew: the weights of value.tasks,
// into *tasks. Every other option that differs is told, by its key, to differs: it needs a restart.
// 0, or -EINVAL with one more problem when value.tasks has other names or another order, because
// all that was learned is kept by them; then *tasks is unchanged.
int config_reload(const struct config *running, const struct config *read,
                  struct value_tasks *tasks, void (*differs)(void *arg, const char *key), void *arg,
                  struct config_problems *problems);

// Whether somebody gave this option a value, which may be that of its default.
bool config_given(const struct config *c, const char *key);

// One line each: "twotower.toml:3:1: error: unknown key 'join.windw'; did you mean 'join.window'?"
void config_problems_print(const struct config_problems *problems, FILE *out);
// A JSON list of {"file", "line", "column", "message"}.
void config_problems_json(const struct config_problems *problems, FILE *out);

// Every value with its origin, in TOML. Secrets (sasl.password and the like) are shown as
// "(hidden)".
void config_show(const struct config *c, FILE *out);
// The commented sample file, deploy/twotower.toml: every option with meaning, range and default.
void config_sample(FILE *out);

// "key=value\n" for every key that shapes the learned state, in the table's order and in one
// canonical spelling ("30m" and "1800s" are the same). Of value.tasks only the names, unless it is
// the plain "*=1": what they are worth may change (pipeline/slice.h). Returns its length, below
// size.
size_t config_model_text(const struct config *c, char *text, size_t size);
// SHA-256 of that text in hex: two checkpoints with the same digest learned by the same rules.
void config_model_digest(const struct config *c, char digest[CONFIG_DIGEST_SIZE]);

// The words of an enum, for messages: config_word("model.type", c->model_type).
const char *config_word(const char *key, int value);
// The path of the dead-letter file: the configured one or the default below state.dir.
void config_dead_letter_path(const struct config *c, char *path, size_t size);
