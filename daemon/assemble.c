// SPDX-License-Identifier: Apache-2.0
#include "daemon/assemble.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <syslog.h>

#include "daemon/clock.h"
#include "daemon/log.h"
#include "model/value.h"
#include "pipeline/flood.h"

enum { SLATES_PER_EXAMPLE = 8 };

static enum attention_positions attention_positions(enum config_positions p)
{
    static const enum attention_positions of[] = {
        [CONFIG_POSITIONS_NONE] = ATTENTION_POSITIONS_NONE,
        [CONFIG_POSITIONS_SEED] = ATTENTION_POSITIONS_SEED,
        [CONFIG_POSITIONS_STANDARD] = ATTENTION_POSITIONS_STANDARD};
    return of[p];
}

static struct optimizer assemble_optimizer(const struct config *c, enum config_optimizer kind,
                                           double rate)
{
    struct optimizer o = *optimizer_at((int)kind);
    o.rate = (float)rate;
    o.gradient_max = (float)c->model_gradient_max;
    return o;
}

// config_check has seen that they can be read.
static struct value_tasks assemble_tasks(const struct config *c)
{
    struct value_tasks tasks = {0};
    value_tasks_parse(&tasks, c->value_tasks, NULL, 0);
    return tasks;
}

static struct objective_options assemble_objectives(const struct config *c)
{
    const struct value_tasks tasks = assemble_tasks(c);
    struct objective_options o = {
        .distill = {.weight = (float)c->distill_weight,
                    .temperature = (float)c->distill_temperature,
                    .form = (enum distill_form)c->distill_form,
                    .top = c->distill_top},
        .align = {.weight = (float)c->align_weight,
                  .temperature = (float)c->align_temperature,
                  .student_temperature = (float)c->align_student_temperature,
                  .form = (enum align_form)c->align_form,
                  .teacher = (enum align_teacher)c->align_teacher,
                  .beta = (float)c->align_beta,
                  .trust = (float)c->align_trust,
                  .ratio_cap = (float)c->align_ratio_cap,
                  .top_k = c->align_top_k,
                  .guard = c->align_guard},
        .preference = {.weight = (float)c->preference_weight,
                       .beta = (float)c->preference_beta,
                       .form = (enum preference_form)c->preference_form},
        .ranker = {.weight = (float)c->ranker_weight,
                   .distill = (float)c->ranker_distill,
                   .heads = c->ranker_heads,
                   .stop_gradient = c->ranker_stop_gradient,
                   .scale = (enum ranker_scale)c->ranker_scores,
                   .feedback = (enum delayed_feedback_mode)c->ranker_feedback},
        .head = assemble_optimizer(c, c->ranker_optimizer, c->ranker_rate),
        .guard = {.half_life = (float)c->align_guard_half_life,
                  .confidence = (float)c->align_guard_confidence,
                  .weight_max = 10},
    };
    o.tasks = tasks.n;
    memcpy(o.value, tasks.weight, sizeof o.value);
    if (o.distill.weight > 0 || o.align.weight > 0 || o.align.trust > 0 ||
        o.preference.weight > 0 || o.ranker.weight > 0 ||
        c->debias_estimator != CONFIG_ESTIMATOR_NONE)
        o.slates = c->slates_batch;
    return o;
}

static struct debias_options assemble_debias(const struct config *c)
{
    struct debias_options o = debias_defaults;
    o.kind = (enum debias_kind)c->debias_estimator;
    o.seed_form = c->debias_form == CONFIG_RESIDUAL_SEED;
    o.form = o.seed_form ? VALUE_RATIO : (enum value_residual)c->debias_form;
    o.cap = (float)c->debias_cap;
    o.floor = (float)c->debias_floor;
    o.half_life = (float)c->debias_half_life;
    o.user_half_life = (float)c->debias_user_half_life;
    o.rate = (float)c->debias_rate;
    return o;
}

// The recipe reads what comes, without being told how much that is; a row costs memory only where
// an item has features.
static int item_features(const struct config *c)
{
    enum { RECIPE_FEATURES = 32 };
    return c->model_type == CONFIG_MODEL_RECIPE && c->model_item_features == 0
               ? RECIPE_FEATURES
               : c->model_item_features;
}

struct two_tower_options assemble_model(const struct config *c)
{
    const struct value_tasks tasks = assemble_tasks(c);
    struct two_tower_options o = {
        .kind = c->model_type == CONFIG_MODEL_RECIPE ? MODEL_RECIPE : MODEL_TWO_TOWER,
        .dim = c->model_dim,
        .history = c->model_history,
        .repeat = c->model_repeat,
        .batch_max = c->model_batch > c->model_replay ? c->model_batch : c->model_replay,
        .uniform_negatives = c->model_uniform_negatives,
        .seed = (uint64_t)c->model_seed,
        .init = (float)c->model_init,
        .table = assemble_optimizer(c, c->model_optimizer, c->model_rate),
        .matrix = assemble_optimizer(c, c->model_dense_optimizer, c->model_dense_rate),
        .scalar = assemble_optimizer(c, c->model_scalar_optimizer, c->model_scalar_rate),
        .onebp = c->model_user_update == CONFIG_USER_ONEBP,
        .onebp_beta = (float)c->model_onebp_beta,
        .correction = (enum sampled_form)c->model_correction,
        .precision = (enum batch_scores_precision)c->model_precision,
        .mask_known = c->model_mask_known,
        .memory = {.capacity = (uint32_t)c->model_memory,
                   .age_max = (uint64_t)c->model_memory_age,
                   .after = (uint64_t)c->model_memory_after,
                   .drift_max = (float)c->model_memory_drift},
        .prior_half_life = {(float)c->model_prior_half_life_fast,
                            (float)c->model_prior_half_life_slow,
                            (float)c->model_prior_half_life_recent},
        .logq_half_life = (float)c->model_logq_half_life,
        .encoder = {.layers = c->model_attention,
                    .heads = c->model_attention_heads,
                    .positions = attention_positions(c->model_attention_positions),
                    .residual = c->model_attention_residual,
                    .norm = c->model_attention_norm,
                    .actions = c->model_attention_actions,
                    .gaps = c->model_attention_gaps,
                    .context = c->model_attention_rows == CONFIG_ATTENTION_CONTEXT},
        .user_features = c->model_user_features,
        .item_features = item_features(c),
        .hidden = c->model_hidden,
        .bare = !c->model_projection,
        .temperature = (float)c->model_temperature,
        .logq = c->model_logq,
        .accidental_hits = c->model_accidental_hits,
        .attention = c->model_history_encoder == CONFIG_ENCODER_ATTENTION,
        .hard_negatives = c->model_hard_negatives,
        .objectives = assemble_objectives(c),
        .debias = assemble_debias(c),
        .tasks_named = !value_tasks_plain(&tasks),
        .measured = (float)c->eval_sampling,
    };
    o.table.l2 = (float)c->model_l2;
    o.table.start = (float)c->model_accumulator;
    o.table.radius = (float)c->model_radius;
    return o;
}

struct trainer_options assemble_trainer(const struct config *c, int partitions,
                                        struct join_window *windows)
{
    for (int i = 0; i < c->join_actions.n; i++)
        windows[i] = (struct join_window){c->join_actions.list[i].name, c->join_actions.list[i].ms};
    // Nothing else reads slates before they close.
    const bool early = c->ranker_weight > 0 && c->ranker_feedback != CONFIG_FEEDBACK_NONE;
    struct trainer_options options = {
        .rows = {.items_max = (size_t)c->tables_items_max,
                 .users_max = (size_t)c->tables_users_max,
                 .admit_items = c->tables_admit_items,
                 .admit_users = c->tables_admit_users,
                 .item_ttl_ms = c->tables_item_ttl_ms,
                 .user_ttl_ms = c->tables_user_ttl_ms},
        .model = assemble_model(c),
        .join = {.window_ms = c->join_window_ms,
                 .windows = windows,
                 .n_windows = c->join_actions.n,
                 .lateness_ms = c->join_lateness_ms,
                 .bytes_max = (size_t)c->join_max_bytes,
                 .user_features = c->model_user_features,
                 .score_max_age_ms = c->slates_score_max_age_ms,
                 .feedback_delay_ms = early ? c->ranker_feedback_delay_ms : 0},
        .batch = c->model_batch,
        .chunk = c->eval_chunk,
        .replay = c->model_replay,
        .replay_window = c->model_replay_window,
        .partitions = partitions,
        // Address space: only what is used is ever touched. With 256 MB a cut of 2 GB made the
        // trainer wait for the sweep, up to 1.1 s in one step (tests/bench/bench_cut.c).
        .undo_bytes = (size_t)1 << 30,
        .negatives = c->model_type == CONFIG_MODEL_TWO_TOWER,
    };
    // Many slates may close for one engagement; beyond these the chunk of examples ends early.
    const int chunk = options.chunk > 0 ? options.chunk : options.batch;
    options.slate_batch = options.model.objectives.slates;
    options.slates = options.slate_batch > 0 ? SLATES_PER_EXAMPLE * chunk : 0;
    options.tasks = assemble_tasks(c);
    options.publish_ms = c->align_publish_ms;
    return options;
}

struct cutter_options assemble_cutter(const struct config *c, enum slice_order order)
{
    enum { IDLE_MS = 2000, DRIFT_MS = 60000 };
    const struct value_tasks tasks = assemble_tasks(c);
    return (struct cutter_options){
        .order = order,
        .slice_events = c->slice_events,
        .interval_ms = c->slice_interval_ms,
        .lateness_ms = c->join_lateness_ms,
        .drift_ms = DRIFT_MS,
        .idle_ms = IDLE_MS,
        .max_future_ms = c->join_max_future_ms,
        // Its time is its own: it may run ahead of any clock.
        .as_of_ms = c->source_type == CONFIG_SOURCE_BUILTIN ? 0 : clock_ms(CLOCK_REALTIME),
        .flood = (int)(c->dead_letter_flood * FLOOD_WINDOW + 0.5) % FLOOD_WINDOW, // 0: none is
        .tasks = value_tasks_plain(&tasks) ? 0 : tasks.n,
    };
}

static void kafka_log(void *arg, int level, const char *text)
{
    (void)arg;
    // What the source itself says is not to be held back by a flood of the library's lines.
    if (strncmp(text, "kafka: ", 7) != 0)
        log_foreign(level, "librdkafka", text);
    else if (level <= LOG_WARNING)
        log_warning("the source reports", "text=%s", text);
    else
        log_info("the source reports", "text=%s", text);
}

int assemble_letters(const struct config *c, struct dead_letter_kafka **k, char *error,
                     size_t error_size)
{
    return dead_letter_kafka_open(
        k,
        &(struct dead_letter_kafka_options){.bootstrap = c->source_brokers,
                                            .topic = c->dead_letter_topic,
                                            .n_properties = c->source_kafka.n,
                                            .properties = c->source_kafka.list,
                                            .log = kafka_log},
        error, error_size);
}

static const char *topic_or_null(const char *name)
{
    return *name ? name : NULL;
}

int assemble_source(const struct config *c, bool replay, struct source **s, char *error,
                    size_t error_size)
{
    switch (c->source_type) {
    case CONFIG_SOURCE_FILE:
        return source_file_open(s, c->source_path, error, error_size);
    case CONFIG_SOURCE_BUILTIN:
        return source_builtin_open(
            s,
            &(struct source_builtin_options){.seed = (uint64_t)c->source_seed,
                                             .users = c->source_users,
                                             .items = c->source_catalogue,
                                             .requests = c->source_requests,
                                             .start_ms = INT64_C(1767225600000), // 1 January 2026
                                             .requests_per_s = c->source_requests_per_second},
            error, error_size);
    case CONFIG_SOURCE_KAFKA:
        return source_kafka_open(
            s,
            &(struct source_kafka_options){
                .bootstrap = c->source_brokers,
                .topics = {[TOPIC_ITEMS] = topic_or_null(c->source_items),
                           [TOPIC_SCORES] = topic_or_null(c->source_ranker_scores),
                           [TOPIC_IMPRESSIONS] = topic_or_null(c->source_impressions),
                           [TOPIC_ENGAGEMENTS] = topic_or_null(c->source_engagements)},
                .replay = replay,
                .keep_ms = c->join_window_ms,
                .n_properties = c->source_kafka.n,
                .properties = c->source_kafka.list,
                .log = kafka_log},
            error, error_size);
    }
    snprintf(error, error_size, "source.type: unknown");
    return -EINVAL;
}
