// SPDX-License-Identifier: Apache-2.0
#include "daemon/config.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <openssl/evp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "daemon/assemble.h"
#include "daemon/config_toml.h"
#include "daemon/http.h"
#include "daemon/log.h"
#include "daemon/suggest.h"
#include "model/arena.h"
#include "model/light_ranker.h"
#include "model/value.h"
#include "pipeline/join.h"

enum { FILE_BYTES_MAX = CONFIG_MEMORY / 2, WORD_MAX = 32, VALUE_TEXT_SIZE = 2048 };

// CONFIG_PROPERTIES and CONFIG_DURATIONS are open tables: their keys are the user's own.
enum config_type {
    CONFIG_DURATION,
    CONFIG_BYTES,
    CONFIG_INT,
    CONFIG_LONG, // an integer that needs 64 bits: seeds, numbers of events
    CONFIG_FLOAT,
    CONFIG_BOOL,
    CONFIG_TEXT,
    CONFIG_ENUM,
    CONFIG_PROPERTIES,
    CONFIG_DURATIONS,
    CONFIG_TYPES
};

// SHAPES_MODEL marks what decides, beside the stream itself, which state is learned.
// value.tasks does so by its names alone.
enum config_flags { PLAIN, SHAPES_MODEL };

struct config_row {
    const char *key;
    enum config_type type;
    size_t offset;
    const char *fallback;
    const char *low, *high; // the range, ends included; low of an enum: its words
    enum config_flags flags;
    const char *help;
};

#define AT(member) offsetof(struct config, member)

#define OPTIMIZERS "sgd|adagrad|rowwise_adagrad|adam|ftrl|clippy_adagrad"

static const struct config_row rows[] = {
    {"source.type", CONFIG_ENUM, AT(source_type), "builtin", "builtin|file|kafka", "", PLAIN,
     "Where records come from: the demo's own stream, recorded files, or Kafka."},
    {"source.path", CONFIG_TEXT, AT(source_path), "", "", "", PLAIN,
     "Directory of impressions.jsonl.zst, engagements.jsonl.zst, ... for type = \"file\"."},
    {"source.brokers", CONFIG_TEXT, AT(source_brokers), "127.0.0.1:9092", "", "", PLAIN,
     "Kafka bootstrap servers, host:port with commas between."},
    {"source.impressions", CONFIG_TEXT, AT(source_impressions), "impressions", "", "", PLAIN,
     "Kafka topic of impressions; empty: not read."},
    {"source.engagements", CONFIG_TEXT, AT(source_engagements), "engagements", "", "", PLAIN,
     "Kafka topic of engagements; empty: not read."},
    {"source.ranker_scores", CONFIG_TEXT, AT(source_ranker_scores), "ranker_scores", "", "", PLAIN,
     "Kafka topic of ranker scores; empty: not read."},
    {"source.items", CONFIG_TEXT, AT(source_items), "items", "", "", PLAIN,
     "Kafka topic of the item catalogue; empty: not read."},
    {"source.kafka", CONFIG_PROPERTIES, AT(source_kafka), "", "", "", PLAIN,
     "Any property of librdkafka, passed on as it is, for example security.protocol = \"ssl\"."},
    {"source.seed", CONFIG_LONG, AT(source_seed), "1", "0", "9223372036854775807", PLAIN,
     "Built-in stream: the same seed gives the same records."},
    {"source.users", CONFIG_INT, AT(source_users), "20000", "1", "100000000", PLAIN,
     "Built-in stream: how many users."},
    {"source.catalogue", CONFIG_INT, AT(source_catalogue), "5000", "240", "1000000", PLAIN,
     "Built-in stream: how many items."},
    {"source.requests", CONFIG_LONG, AT(source_requests), "0", "0", "1099511627776", PLAIN,
     "Built-in stream: how many slates in all; 0: without end."},
    {"source.requests_per_second", CONFIG_FLOAT, AT(source_requests_per_second), "1000", "0.001",
     "1000000", PLAIN, "Built-in stream: slates in a second of event time."},

    {"slice.events", CONFIG_INT, AT(slice_events), "4096", "1", "1048576", PLAIN,
     "A slice is cut when about so many records are there."},
    {"slice.interval", CONFIG_DURATION, AT(slice_interval_ms), "100ms", "1ms", "1m", PLAIN,
     "Live, a slice is cut after so long at the latest."},
    {"slice.log_max", CONFIG_BYTES, AT(slice_log_max_bytes), "64MiB", "64KiB", "1TiB", PLAIN,
     "A new file of the slice log is begun beyond this."},
    {"slice.log_keep", CONFIG_BYTES, AT(slice_log_keep_bytes), "1GiB", "0B", "16TiB", PLAIN,
     "So much of the slice log is kept beyond what the kept checkpoints need, for `twotower replay "
     "--recorded`; older files are removed."},

    {"join.window", CONFIG_DURATION, AT(join_window_ms), "30m", "1s", "7d", SHAPES_MODEL,
     "How long after an impression an engagement still counts."},
    {"join.lateness", CONFIG_DURATION, AT(join_lateness_ms), "10s", "0s", "1d", SHAPES_MODEL,
     "How far behind the newest event time a record may arrive and still be joined."},
    {"join.max_future", CONFIG_DURATION, AT(join_max_future_ms), "5m", "0s", "7d", SHAPES_MODEL,
     "A record further ahead of its log's own time is rejected: a wrong clock must not move the "
     "watermark."},
    {"join.max_bytes", CONFIG_BYTES, AT(join_max_bytes), "1GiB", "1MiB", "1TiB", SHAPES_MODEL,
     "Memory for pending impressions; beyond it new requests are refused, counted as join_full."},
    {"join.actions", CONFIG_DURATIONS, AT(join_actions), "", "1s", "30d", SHAPES_MODEL,
     "Windows of single actions where they differ from join.window, for example purchase = "
     "\"1d\"."},

    {"model.type", CONFIG_ENUM, AT(model_type), "recipe", "recipe|two_tower", "", SHAPES_MODEL,
     "The default model, or in-batch softmax over two feature towers."},
    {"model.dim", CONFIG_INT, AT(model_dim), "64", "1", "1024", SHAPES_MODEL,
     "Numbers in a user's and in an item's vector."},
    {"model.seed", CONFIG_LONG, AT(model_seed), "1", "0", "9223372036854775807", SHAPES_MODEL,
     "Starting values and negatives are drawn from it."},
    {"model.history", CONFIG_INT, AT(model_history), "32", "1", "64", SHAPES_MODEL,
     "Last items of a user that the user tower reads; two_tower: with attention only."},
    {"model.repeat", CONFIG_INT, AT(model_repeat), "64", "0", "64", SHAPES_MODEL,
     "recipe: last items of a user that the repeat term knows; 0: no repeat term."},
    {"model.batch", CONFIG_INT, AT(model_batch), "512", "1", "65536", SHAPES_MODEL,
     "Examples in one learning step."},
    {"model.uniform_negatives", CONFIG_INT, AT(model_uniform_negatives), "256", "0", "65536",
     SHAPES_MODEL,
     "recipe: items drawn evenly from all known ones, added to each step's candidates."},
    {"model.replay", CONFIG_INT, AT(model_replay), "0", "0", "65536", SHAPES_MODEL,
     "recipe: examples learned once more after each batch, drawn from the newest "
     "model.replay_window; 0: none. A quarter of model.batch helps where data are few."},
    {"model.replay_window", CONFIG_INT, AT(model_replay_window), "50000", "1", "10000000",
     SHAPES_MODEL, "recipe: how many of the newest examples are kept to draw from."},
    {"model.rate", CONFIG_FLOAT, AT(model_rate), "0.15", "0", "10", SHAPES_MODEL,
     "Learning rate of the tables; 0.1 to 0.2 is the safe range."},
    {"model.l2", CONFIG_FLOAT, AT(model_l2), "0.01", "0", "1", SHAPES_MODEL,
     "Pull towards zero of the rows a step touches."},
    {"model.dense_rate", CONFIG_FLOAT, AT(model_dense_rate), "0.002", "0", "1", SHAPES_MODEL,
     "Learning rate of matrices."},
    {"model.scalar_rate", CONFIG_FLOAT, AT(model_scalar_rate), "0.02", "0", "1", SHAPES_MODEL,
     "recipe: learning rate of the weights of popularity and repetition."},
    {"model.prior_half_life_fast", CONFIG_FLOAT, AT(model_prior_half_life_fast), "5000", "1",
     "1e12", SHAPES_MODEL, "recipe: half-life of the faster popularity count, in examples."},
    {"model.prior_half_life_slow", CONFIG_FLOAT, AT(model_prior_half_life_slow), "50000", "1",
     "1e12", SHAPES_MODEL, "recipe: half-life of the slower popularity count, in examples."},
    {"model.prior_half_life_recent", CONFIG_FLOAT, AT(model_prior_half_life_recent), "300", "1",
     "1e12", SHAPES_MODEL,
     "recipe: half-life of the fastest popularity count, for what is of this hour, in examples."},
    {"model.logq_half_life", CONFIG_FLOAT, AT(model_logq_half_life), "50000", "1", "1e12",
     SHAPES_MODEL,
     "recipe: half-life of the counts that correct for how often a candidate is sampled."},
    {"model.accumulator", CONFIG_FLOAT, AT(model_accumulator), "0.1", "0", "1000", SHAPES_MODEL,
     "Where Adagrad's sums of squares start."},
    {"model.init", CONFIG_FLOAT, AT(model_init), "0.08", "0", "10", SHAPES_MODEL,
     "New rows are drawn evenly from minus this to this."},
    {"model.user_features", CONFIG_INT, AT(model_user_features), "0", "0", "4096", SHAPES_MODEL,
     "two_tower: numbers in user_features of an impression."},
    {"model.item_features", CONFIG_INT, AT(model_item_features), "0", "0", "4096", SHAPES_MODEL,
     "Numbers in features of an item; 0: none, for recipe the first 32 that come."},
    {"model.hidden", CONFIG_INT, AT(model_hidden), "256", "1", "16384", SHAPES_MODEL,
     "two_tower: width of the hidden layer over features."},
    {"model.projection", CONFIG_BOOL, AT(model_projection), "true", "", "", SHAPES_MODEL,
     "two_tower: a linear layer ends each tower. false: an id's row is its vector, which leaves no "
     "place for features and history."},
    {"model.temperature", CONFIG_FLOAT, AT(model_temperature), "1", "0.001", "1000", SHAPES_MODEL,
     "two_tower: scores are divided by it."},
    {"model.logq", CONFIG_BOOL, AT(model_logq), "true", "", "", SHAPES_MODEL,
     "two_tower: correct for popular items being candidates more often; recipe: "
     "model.correction."},
    {"model.correction", CONFIG_ENUM, AT(model_correction), "logq", "logq|mns|counted|refined|none",
     "", SHAPES_MODEL,
     "recipe: how the softmax corrects for popular items being candidates more often. logq: in "
     "every column; mns: but in the positive's; counted and refined are mns here, for candidates "
     "are each there once; none: not, which favours rare items over all others."},
    {"model.precision", CONFIG_ENUM, AT(model_precision), "f32", "f32|bf16", "", SHAPES_MODEL,
     "Of the factors in the softmax's matrix products; sums and all that is kept are f32. bf16 "
     "needs a CPU with AMX, and learns 1.6 times as fast at batches of 1024, plain towers twice."},
    {"model.mask_known", CONFIG_BOOL, AT(model_mask_known), "false", "", "", SHAPES_MODEL,
     "What a user engaged with elsewhere in the same batch is no negative of that user's. Where "
     "users engage in bursts it is worth more as a negative (ml1m: recall@100 0.600, not 0.605)."},
    {"model.memory", CONFIG_INT, AT(model_memory), "0", "0", "1048576", SHAPES_MODEL,
     "Negatives from earlier batches, for users alone to learn from: the last so many columns, "
     "with their vectors as they were then; 0: none. Helps most where batches are small and "
     "uniform negatives few; 1024 double the time of a step."},
    {"model.memory_age", CONFIG_INT, AT(model_memory_age), "0", "0", "1000000000", SHAPES_MODEL,
     "Those of more than so many steps ago are left out; 0: no limit."},
    {"model.memory_after", CONFIG_INT, AT(model_memory_after), "200", "0", "1000000000",
     SHAPES_MODEL, "The memory is used after so many steps, when vectors move slowly."},
    {"model.memory_drift", CONFIG_FLOAT, AT(model_memory_drift), "0.2", "0", "1000", SHAPES_MODEL,
     "The memory shrinks while its vectors are off by more than this share of their length, and "
     "grows again when they are not; 0: not watched."},
    {"model.optimizer", CONFIG_ENUM, AT(model_optimizer), "rowwise_adagrad", OPTIMIZERS, "",
     SHAPES_MODEL, "The optimizer of the tables: rows and biases."},
    {"model.dense_optimizer", CONFIG_ENUM, AT(model_dense_optimizer), "adam", OPTIMIZERS, "",
     SHAPES_MODEL, "The optimizer of matrices."},
    {"model.scalar_optimizer", CONFIG_ENUM, AT(model_scalar_optimizer), "adam", OPTIMIZERS, "",
     SHAPES_MODEL, "recipe: the optimizer of the weights of popularity and repetition."},
    {"model.gradient_max", CONFIG_FLOAT, AT(model_gradient_max), "0", "0", "1e12", SHAPES_MODEL,
     "A row's or a matrix's gradient of a larger norm is scaled down to it; 0: never."},
    {"model.radius", CONFIG_FLOAT, AT(model_radius), "0", "0", "1e12", SHAPES_MODEL,
     "No row moves further than this in one step; 0: no limit. Too small, and rare items never "
     "arrive (ml1m: recall@100 0.600 with 0.3, 0.605 without)."},
    {"model.user_update", CONFIG_ENUM, AT(model_user_update), "gradient", "gradient|onebp", "",
     SHAPES_MODEL,
     "How users' rows learn: by gradient, or (recipe) each moves towards what its user engaged "
     "with, without gradient and optimizer."},
    {"model.onebp_beta", CONFIG_FLOAT, AT(model_onebp_beta), "0.99", "0", "1", SHAPES_MODEL,
     "onebp: how much of the old row is kept at each engagement; on ml1m 0.99 is as good as the "
     "gradient."},
    {"model.accidental_hits", CONFIG_BOOL, AT(model_accidental_hits), "true", "", "", SHAPES_MODEL,
     "two_tower: leave out negatives that are the positive item itself."},
    {"model.hard_negatives", CONFIG_INT, AT(model_hard_negatives), "0", "0", "65536", SHAPES_MODEL,
     "two_tower: learn from so many of the highest-scored negatives only; 0: from all."},
    {"model.history_encoder", CONFIG_ENUM, AT(model_history_encoder), "none", "none|attention", "",
     SHAPES_MODEL, "two_tower: how the user tower reads the history."},
    {"model.attention", CONFIG_INT, AT(model_attention), "0", "0", "4", SHAPES_MODEL,
     "recipe: layers of attention over the history, added to the query; 0: none."},
    {"model.attention_heads", CONFIG_INT, AT(model_attention_heads), "1", "1", "64", SHAPES_MODEL,
     "recipe: heads of each layer; they divide model.dim."},
    {"model.attention_positions", CONFIG_ENUM, AT(model_attention_positions), "none",
     "none|seed|standard", "", SHAPES_MODEL,
     "recipe: what says how many events ago one was; seed is an older table."},
    {"model.attention_residual", CONFIG_BOOL, AT(model_attention_residual), "true", "", "",
     SHAPES_MODEL, "recipe: a layer adds to what it reads."},
    {"model.attention_norm", CONFIG_BOOL, AT(model_attention_norm), "true", "", "", SHAPES_MODEL,
     "recipe: a layer reads rows of mean 0 and deviation 1."},
    {"model.attention_actions", CONFIG_BOOL, AT(model_attention_actions), "false", "", "",
     SHAPES_MODEL, "recipe: attention knows what the user did with each item."},
    {"model.attention_gaps", CONFIG_BOOL, AT(model_attention_gaps), "true", "", "", SHAPES_MODEL,
     "recipe: attention knows how long ago each event was, to a factor of two."},
    {"model.attention_rows", CONFIG_ENUM, AT(model_attention_rows), "item", "item|context", "",
     SHAPES_MODEL,
     "recipe: attention reads the items' rows, or those that say only what comes next."},

    {"value.tasks", CONFIG_TEXT, AT(value_tasks), "*=1", "", "", SHAPES_MODEL,
     "The kinds of engagement that count and what each is worth, of any sign: \"click=1, like=2, "
     "hide=-1\"; * is every other action. SIGHUP reads the numbers anew; names and their order "
     "stay "
     "as they are."},

    {"debias.estimator", CONFIG_ENUM, AT(debias_estimator), "none",
     "none|position|position_sgd|user|user_mean|combined|pbm|propensity", "", SHAPES_MODEL,
     "What explains an engagement beside the item: how often a position or a user engages at all, "
     "how often a position is looked at (pbm), or the logged chance of being shown."},
    {"debias.form", CONFIG_ENUM, AT(debias_form), "ratio", "ratio|difference|positive|z|seed", "",
     SHAPES_MODEL,
     "What is left of the value: its ratio to what was expected, the difference, its positive part "
     "or in standard deviations; seed: as in the system this one follows, for comparison. pbm and "
     "propensity always divide."},
    {"debias.cap", CONFIG_FLOAT, AT(debias_cap), "10", "1", "1e6", SHAPES_MODEL,
     "No engagement counts more than so many times another for where it was shown."},
    {"debias.floor", CONFIG_FLOAT, AT(debias_floor), "0.05", "0.0001", "1", SHAPES_MODEL,
     "Expectations below this share of the global mean count as that."},
    {"debias.half_life", CONFIG_FLOAT, AT(debias_half_life), "500000", "1", "1e12", SHAPES_MODEL,
     "Of what is known of a position, in impressions there."},
    {"debias.user_half_life", CONFIG_FLOAT, AT(debias_user_half_life), "200", "1", "1e12",
     SHAPES_MODEL, "Of what is known of a user, in impressions."},
    {"debias.rate", CONFIG_FLOAT, AT(debias_rate), "0.002", "0", "1", SHAPES_MODEL,
     "Learning rate of position_sgd, user and combined, for each slate."},

    {"slates.batch", CONFIG_INT, AT(slates_batch), "8", "1", "64", SHAPES_MODEL,
     "Slates in one learning step."},
    {"slates.score_max_age", CONFIG_DURATION, AT(slates_score_max_age_ms), "0s", "0s", "30d",
     SHAPES_MODEL, "A ranker score older than this at its impression is not used; 0s: any age."},

    {"distill.weight", CONFIG_FLOAT, AT(distill_weight), "0", "0", "1000", SHAPES_MODEL,
     "Weight of a slate's loss against that of an engagement; 0: off. 5 where there are more "
     "engagements than slates, 0.1 where there are three slates for each."},
    {"distill.form", CONFIG_ENUM, AT(distill_form), "plackett_luce",
     "listwise|plackett_luce|top_positives|soft_pair|margin", "", SHAPES_MODEL,
     "What is taken over: probabilities inside the slate, the order of its top, the order of pairs "
     "or their distance."},
    {"distill.temperature", CONFIG_FLOAT, AT(distill_temperature), "1", "0.01", "100", SHAPES_MODEL,
     "Higher: more of the order below the top; top_positives: how fast a rank's weight falls."},
    {"distill.top", CONFIG_INT, AT(distill_top), "5", "1", "64", SHAPES_MODEL,
     "Places of the ranker's order that plackett_luce and top_positives read."},

    {"align.weight", CONFIG_FLOAT, AT(align_weight), "0", "0", "1000", SHAPES_MODEL,
     "Weight of a slate's loss against that of an engagement; 0: off."},
    {"align.form", CONFIG_ENUM, AT(align_form), "kl", "kl|policy|shaped|dpo|s_dpo", "",
     SHAPES_MODEL,
     "Divergence from the reward's softmax, policy gradient, policy gradient that pays for leaving "
     "the published model, or pairs compared with the published model."},
    {"align.teacher", CONFIG_ENUM, AT(align_teacher), "logged", "logged|proxy", "", SHAPES_MODEL,
     "The reward: the ranker's logged scores, or a proxy that learns what engages."},
    {"align.temperature", CONFIG_FLOAT, AT(align_temperature), "1", "0.01", "100", SHAPES_MODEL,
     "kl: of the reward, which is standardised inside each slate."},
    {"align.student_temperature", CONFIG_FLOAT, AT(align_student_temperature), "1", "0.01", "100",
     SHAPES_MODEL, "kl: of the model's own scores."},
    {"align.beta", CONFIG_FLOAT, AT(align_beta), "0.1", "0.0001", "100", SHAPES_MODEL,
     "shaped, dpo, s_dpo: how closely the published model is held."},
    {"align.trust", CONFIG_FLOAT, AT(align_trust), "0", "0", "1000", SHAPES_MODEL,
     "Weight of the divergence from the model as last published; 0: off."},
    {"align.publish", CONFIG_DURATION, AT(align_publish_ms), "60s", "1s", "7d", SHAPES_MODEL,
     "trust, shaped, dpo, s_dpo: the model is taken for the published one anew after so long in "
     "event time; as snapshot.interval, which is by the clock."},
    {"align.ratio_cap", CONFIG_FLOAT, AT(align_ratio_cap), "5", "0.01", "1e6", SHAPES_MODEL,
     "policy: an item counts at most so often for having been shown rarely."},
    {"align.top_k", CONFIG_INT, AT(align_top_k), "1", "1", "10000", SHAPES_MODEL,
     "policy: how many items serving returns; 1: no correction."},
    {"align.guard", CONFIG_BOOL, AT(align_guard), "true", "", "", SHAPES_MODEL,
     "Scale distillation and alignment by how far the ranker's scores are proven to agree with "
     "what people did."},
    {"align.guard_half_life", CONFIG_FLOAT, AT(align_guard_half_life), "2000", "1", "1e9",
     SHAPES_MODEL, "Slates after which an observation counts half."},
    {"align.guard_confidence", CONFIG_FLOAT, AT(align_guard_confidence), "3", "0", "10",
     SHAPES_MODEL, "Standard errors that the agreement must be above zero."},

    {"preference.weight", CONFIG_FLOAT, AT(preference_weight), "0", "0", "1000", SHAPES_MODEL,
     "Weight of a slate's loss from pairs, engaged over skipped; 0: off."},
    {"preference.form", CONFIG_ENUM, AT(preference_form), "bpr", "bpr|dpo|s_dpo", "", SHAPES_MODEL,
     "The order alone, or against the published model."},
    {"preference.beta", CONFIG_FLOAT, AT(preference_beta), "1", "0.0001", "100", SHAPES_MODEL,
     "dpo, s_dpo: how closely the published model is held."},

    {"ranker.weight", CONFIG_FLOAT, AT(ranker_weight), "0", "0", "1000", SHAPES_MODEL,
     "Weight of the light ranker, a head that scores each task and is published with the "
     "snapshot; 0: none."},
    {"ranker.distill", CONFIG_FLOAT, AT(ranker_distill), "0", "0", "1000", SHAPES_MODEL,
     "Weight of its auxiliary logits, which learn the main ranker's scores; 0: off."},
    {"ranker.heads", CONFIG_INT, AT(ranker_heads), "2", "1", "8", SHAPES_MODEL,
     "User vectors that it looks at an item with."},
    {"ranker.stop_gradient", CONFIG_BOOL, AT(ranker_stop_gradient), "false", "", "", SHAPES_MODEL,
     "The towers do not learn from it."},
    {"ranker.scores", CONFIG_ENUM, AT(ranker_scores), "probability", "probability|logit", "",
     SHAPES_MODEL,
     "What the main ranker logs, for ranker.distill; a probability outside 0..1 is "
     "not used."},
    {"ranker.rate", CONFIG_FLOAT, AT(ranker_rate), "0.002", "0", "1", SHAPES_MODEL,
     "Learning rate of the light ranker and of the proxy."},
    {"ranker.optimizer", CONFIG_ENUM, AT(ranker_optimizer), "adam", OPTIMIZERS, "", SHAPES_MODEL,
     "The optimizer of the heads that predict rankers' scores and labels."},
    {"ranker.feedback", CONFIG_ENUM, AT(ranker_feedback), "none", "none|fnw|fnc|es_dfm", "",
     SHAPES_MODEL,
     "How it learns before the windows close: not at all, or by one of three corrections for "
     "engagements that are still to come."},
    {"ranker.feedback_delay", CONFIG_DURATION, AT(ranker_feedback_delay_ms), "0s", "0s", "7d",
     SHAPES_MODEL, "With ranker.feedback: after so long a slate is learned as it is."},

    {"tables.items_max", CONFIG_LONG, AT(tables_items_max), "1000000", "1", "1000000000",
     SHAPES_MODEL, "Rows of the item table; further items are refused and counted."},
    {"tables.users_max", CONFIG_LONG, AT(tables_users_max), "10000000", "1", "1000000000",
     SHAPES_MODEL, "Rows of the user table; further users are refused and counted."},
    {"tables.admit_items", CONFIG_INT, AT(tables_admit_items), "1", "1", "255", SHAPES_MODEL,
     "An item gets a row when it is seen for this time."},
    {"tables.admit_users", CONFIG_INT, AT(tables_admit_users), "1", "1", "255", SHAPES_MODEL,
     "A user gets a row when seen for this time."},
    {"tables.item_ttl", CONFIG_DURATION, AT(tables_item_ttl_ms), "0s", "0s", "3650d", SHAPES_MODEL,
     "An item not seen for so long, in event time, gives its row back; 0s: never."},
    {"tables.user_ttl", CONFIG_DURATION, AT(tables_user_ttl_ms), "0s", "0s", "3650d", SHAPES_MODEL,
     "A user not seen for so long, in event time, gives the row back; 0s: never."},

    {"eval.sampling", CONFIG_FLOAT, AT(eval_sampling), "0.01", "0", "1", PLAIN,
     "Share of examples that are scored over the whole corpus before they are learned; `twotower "
     "eval` takes 0.25 when this is not given."},
    {"eval.chunk", CONFIG_INT, AT(eval_chunk), "0", "0", "1000000", PLAIN,
     "Examples predicted with the same parameters; 0: model.batch, and 10000 for `twotower eval`."},
    {"eval.popularity_half_life", CONFIG_FLOAT, AT(eval_popularity_half_life), "50000", "1", "1e12",
     PLAIN, "Half-life of the popularity that the model is compared with, in examples."},

    {"state.dir", CONFIG_TEXT, AT(state_dir), "./data/state", "", "", PLAIN,
     "Directory of checkpoints and of the slice log; one process at a time."},

    {"checkpoint.interval", CONFIG_DURATION, AT(checkpoint_interval_ms), "30s", "100ms", "1d",
     PLAIN, "Time between checkpoints: how much is read again after a crash."},
    {"checkpoint.max_age", CONFIG_DURATION, AT(checkpoint_max_age_ms), "1h", "0s", "30d", PLAIN,
     "When no checkpoint could be made for so long, for want of room or of a disk that works, the "
     "process ends: until then it goes on learning. 0s: it never does."},
    {"checkpoint.keep", CONFIG_INT, AT(checkpoint_keep), "2", "1", "64", PLAIN,
     "Checkpoints that are kept."},

    {"snapshot.dir", CONFIG_TEXT, AT(snapshot_dir), "./data/snapshots", "", "", PLAIN,
     "Directory in which snapshots are published."},
    {"snapshot.interval", CONFIG_DURATION, AT(snapshot_interval_ms), "60s", "100ms", "7d", PLAIN,
     "Time between snapshots."},
    {"snapshot.keep", CONFIG_INT, AT(snapshot_keep), "5", "1", "100000", PLAIN,
     "Snapshots that are kept."},
    {"snapshot.f16", CONFIG_BOOL, AT(snapshot_f16), "true", "", "", PLAIN,
     "Also write item vectors in half precision."},
    {"snapshot.io", CONFIG_ENUM, AT(snapshot_io), "auto", "auto|io_uring|pwrite", "", PLAIN,
     "How files are written; auto takes io_uring and falls back to pwrite where it is denied."},
    {"snapshot.guard_recall", CONFIG_FLOAT, AT(snapshot_guard_recall), "0.98", "0", "1", PLAIN,
     "Refuse a snapshot whose recall@100 is below this share of the last good one's, more than "
     "popularity's own fall and chance explain; 0: off."},
    {"snapshot.guard_events", CONFIG_LONG, AT(snapshot_guard_events), "1000", "0", "1000000", PLAIN,
     "Recall is compared when both windows have so many scored examples; they hold at most 7213."},
    {"snapshot.guard_errors", CONFIG_FLOAT, AT(snapshot_guard_errors), "3", "0", "100", PLAIN,
     "Standard errors that the fall of recall must be beyond."},
    {"snapshot.guard_norm_max", CONFIG_FLOAT, AT(snapshot_guard_norm_max), "1000", "0", "1e18",
     PLAIN, "Refuse a snapshot with a longer row of numbers in it; 0: off."},
    {"snapshot.guard_norm_jump", CONFIG_FLOAT, AT(snapshot_guard_norm_jump), "4", "0", "1e18",
     PLAIN,
     "Refuse a snapshot whose rows are so many times as long, or in all as short, as those of the "
     "last good one; 0: off."},
    {"snapshot.guard_rows", CONFIG_FLOAT, AT(snapshot_guard_rows), "0.5", "0", "1", PLAIN,
     "Refuse a snapshot with less than this share of the last good one's items or users; 0: off."},

    {"dead_letter.path", CONFIG_TEXT, AT(dead_letter_path), "", "", "", PLAIN,
     "File of rejected records; empty: dead-letters.jsonl in state.dir."},
    {"dead_letter.max_bytes", CONFIG_BYTES, AT(dead_letter_max_bytes), "256MiB", "0B", "1TiB",
     PLAIN,
     "Beyond this size the file becomes PATH.1, replacing an older one, and a new one is begun."},
    {"dead_letter.flood", CONFIG_FLOAT, AT(dead_letter_flood), "0.1", "0.001", "1", PLAIN,
     "More rejected records than this share of a topic's last 1000 end the run with status 65: a "
     "broken schema, not single records. 1: never."},
    {"dead_letter.topic", CONFIG_TEXT, AT(dead_letter_topic), "", "", "", PLAIN,
     "Kafka topic that dead letters are delivered to as well, by the brokers and properties of "
     "source; empty: off."},
    {"dead_letter.on_unavailable", CONFIG_ENUM, AT(dead_letter_on_unavailable), "wait", "wait|drop",
     "", PLAIN,
     "When max_bytes is full of letters that the topic does not take: stop reading until it does, "
     "or drop the oldest."},

    {"http.listen", CONFIG_TEXT, AT(http_listen), "127.0.0.1:9464", "", "", PLAIN,
     "Address of /metrics, /healthz and /readyz; empty: off."},

    {"log.level", CONFIG_ENUM, AT(log_level), "info", "debug|info|warning|error", "", PLAIN,
     "The least important lines that are logged."},
    {"log.format", CONFIG_ENUM, AT(log_format), "text", "text|logfmt|json", "", PLAIN,
     "Text is for people and for journald."},

    {"kernels.set", CONFIG_ENUM, AT(kernels_set), "auto", "auto|plain|avx2|avx512|amx", "", PLAIN,
     "Instruction set of the inner loops; all give the same bits."},
    {"kernels.blas_core", CONFIG_ENUM, AT(kernels_blas_core), "auto", "auto|portable", "", PLAIN,
     "Matrix products. auto: the fastest for this CPU, another CPU may get other bits; portable: "
     "the same bits on every x86-64 CPU with AVX2 and FMA, for 11 to 15 % of the speed of learning "
     "where there is AVX-512."},
    {"kernels.on_change", CONFIG_ENUM, AT(kernels_on_change), "refuse", "refuse|accept", "", PLAIN,
     "A checkpoint that was learned with another BLAS core, BLAS or C library: refuse it, or go on "
     "with other bits than without the change, which the log and all manifests then say."},
};
enum { ROWS = sizeof rows / sizeof *rows };
static_assert((int)ROWS <= (int)CONFIG_ROWS_MAX, "CONFIG_ROWS_MAX is too small");
static_assert(sizeof(enum config_source) == sizeof(int), "enums are stored as int");

static const struct {
    const char *name, *help;
} sections[] = {
    {"source", "What is read."},
    {"slice", "How the stream is cut into slices, the unit that is logged and applied."},
    {"join", "Which engagement belongs to which impression, in event time. A change needs a new "
             "state.dir."},
    {"model",
     "What is learned, and how. A change needs a new state.dir. What says recipe or two_tower is "
     "read by that model.type alone."},
    {"value", "What an engagement is worth. A change needs a new state.dir."},
    {"debias", "Engagements count by what position and user do not explain of them. A change needs "
               "a new state.dir."},
    {"slates", "What was shown together, for the terms below. They are read, and cost, only where "
               "one of them is on. A change needs a new state.dir."},
    {"distill", "Retrieval learns the main ranker's order inside a slate."},
    {"align", "Retrieval is rewarded for what the main ranker likes, within limits."},
    {"preference", "Inside a slate, what was engaged with over what was not."},
    {"ranker", "The light ranker: a second stage for the top of the list (topk --rerank)."},
    {"tables",
     "Rows for users and items. Memory for them is taken as they come, up to these. A change "
     "needs a new state.dir."},
    {"eval", "Quality, measured before an example is learned."},
    {"state", "What a restart needs."},
    {"checkpoint", "For us, to restart."},
    {"snapshot", "For the fleets, to serve."},
    {"dead_letter", "Records that were not events."},
    {"http", "There is no authentication: keep it on loopback."},
    {"log", "One line per record on stderr."},
    {"kernels", "The inner loops, and what a restart needs to repeat them bit for bit."},
};

// A value on its way between text and member; each type uses one of the three.
struct value {
    int64_t i;
    double f;
    const char *text;
};

// ---- Problems

static void problem_add(struct config_problems *p, struct config_origin at, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static void problem_add(struct config_problems *p, struct config_origin at, const char *format, ...)
{
    va_list args;
    if (p->n++ >= CONFIG_PROBLEMS_MAX)
        return;
    struct config_problem *problem = &p->list[p->n - 1];
    problem->at = at;
    va_start(args, format);
    vsnprintf(problem->text, sizeof problem->text, format, args);
    va_end(args);
    // A quoted key may hold anything; what is printed for a person stays one line.
    for (char *c = problem->text; *c; c++)
        if (iscntrl((unsigned char)*c))
            *c = '?';
}

// "; did you mean 'x'?" or nothing.
static const char *hint(const struct suggest *s, char *text, size_t size)
{
    const char *best = suggest_best(s);
    *text = 0;
    if (best)
        snprintf(text, size, "; did you mean '%s'?", best);
    return text;
}

static int origin_compare(const void *a, const void *b)
{
    const struct config_problem *x = a, *y = b;
    return x->at.line != y->at.line ? x->at.line - y->at.line : x->at.column - y->at.column;
}

static void origin_print(struct config_origin at, FILE *out)
{
    fputs(at.where, out);
    if (at.line)
        fprintf(out, ":%d:%d", at.line, at.column);
}

void config_problems_print(const struct config_problems *problems, FILE *out)
{
    for (int i = 0; i < problems->n && i < CONFIG_PROBLEMS_MAX; i++) {
        origin_print(problems->list[i].at, out);
        fprintf(out, ": error: %s\n", problems->list[i].text);
    }
    if (problems->n > CONFIG_PROBLEMS_MAX)
        fprintf(out, "... and %d more\n", problems->n - CONFIG_PROBLEMS_MAX);
}

// The bytes between quotes in JSON; TOML's basic strings are written the same way.
static void quoted_print(const char *text, FILE *out)
{
    putc('"', out);
    for (const unsigned char *c = (const unsigned char *)text; *c; c++)
        if (*c == '"' || *c == '\\')
            fprintf(out, "\\%c", *c);
        else if (*c < 0x20 || *c == 0x7f)
            fprintf(out, "\\u%04x", *c);
        else
            putc(*c, out);
    putc('"', out);
}

void config_problems_json(const struct config_problems *problems, FILE *out)
{
    putc('[', out);
    for (int i = 0; i < problems->n && i < CONFIG_PROBLEMS_MAX; i++) {
        const struct config_problem *p = &problems->list[i];
        fputs(i ? ",\n {\"file\":" : "\n {\"file\":", out);
        quoted_print(p->at.where, out);
        fprintf(out, ",\"line\":%d,\"column\":%d,\"message\":", p->at.line, p->at.column);
        quoted_print(p->text, out);
        putc('}', out);
    }
    fputs(problems->n ? "\n]\n" : "]\n", out);
}

// ---- Types: from text, to text

struct unit {
    const char *name;
    int64_t size;
};

// Largest first: a value is written in the largest unit that divides it. Units that are read but
// never written come after, because they divide nothing that the earlier ones do not.
static const struct unit duration_units[] = {{"d", 86400000}, {"h", 3600000}, {"m", 60000},
                                             {"s", 1000},     {"ms", 1},      {"w", 604800000}};
static const struct unit byte_units[] = {
    {"TiB", INT64_C(1) << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20},
    {"KiB", 1 << 10},          {"B", 1},         {"TB", INT64_C(1000000000000)},
    {"GB", 1000000000},        {"MB", 1000000},  {"kB", 1000}};
enum {
    DURATION_UNITS = sizeof duration_units / sizeof *duration_units,
    BYTE_UNITS = sizeof byte_units / sizeof *byte_units
};

static bool integer_read(const char **text, int64_t *i)
{
    char *end;
    // strtoll would skip spaces and take a plus sign; a configuration has neither.
    if (!isdigit((unsigned char)**text) && !(**text == '-' && isdigit((unsigned char)(*text)[1])))
        return false;
    errno = 0;
    *i = strtoll(*text, &end, 10);
    *text = end;
    return errno == 0;
}

// A sum of numbers with their units, "1h30m". A number alone needs to be 0, or plain to be true.
static bool units_parse(const char *text, const struct unit *units, int n_units, bool plain,
                        int64_t *sum)
{
    const char *at = text;
    *sum = 0;
    do {
        int64_t number, part;
        if (!integer_read(&at, &number) || number < 0)
            return false;
        if (!*at && at != text && *sum == 0 && (plain || number == 0)) {
            *sum = number;
            return true;
        }
        size_t length = 0;
        while (isalpha((unsigned char)at[length]))
            length++;
        int u = 0;
        while (u < n_units &&
               (strlen(units[u].name) != length || strncasecmp(units[u].name, at, length) != 0))
            u++;
        if (u == n_units || __builtin_mul_overflow(number, units[u].size, &part) ||
            __builtin_add_overflow(*sum, part, sum))
            return false;
        at += length;
    } while (*at);
    return true;
}

static void units_format(int64_t i, const struct unit *units, char *text, size_t size)
{
    int u = 0;
    if (i == 0) // in a small unit, not "0d"
        while (strcmp(units[u].name, "s") != 0 && strcmp(units[u].name, "B") != 0)
            u++;
    else
        while (i % units[u].size)
            u++;
    snprintf(text, size, "\"%" PRId64 "%s\"", i / units[u].size, units[u].name);
}

static bool parse_duration(const char *text, struct value *v)
{
    return units_parse(text, duration_units, DURATION_UNITS, false, &v->i);
}

static bool parse_bytes(const char *text, struct value *v)
{
    return units_parse(text, byte_units, BYTE_UNITS, true, &v->i);
}

static bool parse_integer(const char *text, struct value *v)
{
    return integer_read(&text, &v->i) && !*text;
}

static bool parse_float(const char *text, struct value *v)
{
    char *end;
    if (!*text || text[strspn(text, "+-.0123456789eE")])
        return false;
    v->f = strtod(text, &end);
    return !*end && isfinite(v->f);
}

static bool parse_bool(const char *text, struct value *v)
{
    v->i = strcmp(text, "true") == 0;
    return v->i || strcmp(text, "false") == 0;
}

static bool parse_text(const char *text, struct value *v)
{
    v->text = text;
    return true;
}

static void format_duration(const struct value *v, char *text, size_t size)
{
    units_format(v->i, duration_units, text, size);
}

static void format_bytes(const struct value *v, char *text, size_t size)
{
    units_format(v->i, byte_units, text, size);
}

static void format_integer(const struct value *v, char *text, size_t size)
{
    snprintf(text, size, "%" PRId64, v->i);
}

// The fewest digits that give the same number back, without an exponent where a person would write
// none.
static void format_float(const struct value *v, char *text, size_t size)
{
    if (v->f == trunc(v->f) && fabs(v->f) < 1e15) {
        snprintf(text, size, "%.0f", v->f);
        return;
    }
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, size, "%.*g", digits, v->f);
        if (strtod(text, NULL) == v->f)
            break;
    }
}

static void format_bool(const struct value *v, char *text, size_t size)
{
    snprintf(text, size, "%s", v->i ? "true" : "false");
}

static void format_text(const struct value *v, char *text, size_t size)
{
    FILE *out = fmemopen(text, size, "w");
    assert(out);
    quoted_print(v->text, out);
    fclose(out);
    text[size - 1] = 0;
}

enum { STRING = 1 << TOML_KIND_STRING, INTEGER = 1 << TOML_KIND_INTEGER };
enum { FLOAT = 1 << TOML_KIND_FLOAT, BOOL = 1 << TOML_KIND_BOOL };

static const struct {
    const char *expected;
    unsigned kinds; // of TOML values
    bool (*parse)(const char *text, struct value *v);
    void (*format)(const struct value *v, char *text, size_t size);
} types[CONFIG_TYPES] = {
    [CONFIG_DURATION] = {"a duration such as \"30m\", with a unit of ms, s, m, h, d or w",
                         STRING | INTEGER, parse_duration, format_duration},
    [CONFIG_BYTES] = {"a size such as \"64MiB\"", STRING | INTEGER, parse_bytes, format_bytes},
    [CONFIG_INT] = {"an integer", INTEGER, parse_integer, format_integer},
    [CONFIG_LONG] = {"an integer", INTEGER, parse_integer, format_integer},
    [CONFIG_FLOAT] = {"a number", INTEGER | FLOAT, parse_float, format_float},
    [CONFIG_BOOL] = {"true or false", BOOL, parse_bool, format_bool},
    [CONFIG_TEXT] = {"a text in quotes", STRING, parse_text, format_text},
    [CONFIG_ENUM] = {"a text in quotes", STRING, parse_text, format_text},
    [CONFIG_PROPERTIES] = {"a text, a number, true or false", STRING | INTEGER | FLOAT | BOOL,
                           parse_text, format_text},
    [CONFIG_DURATIONS] = {"a duration such as \"30m\", with a unit of ms, s, m, h, d or w",
                          STRING | INTEGER, parse_duration, format_duration},
};

// ---- Rows and members

static bool row_is_open(const struct config_row *row)
{
    return row->type == CONFIG_PROPERTIES || row->type == CONFIG_DURATIONS;
}

// The row of a key; for an open one, *name is what the user added to the row's own key.
static const struct config_row *row_find(const char *key, const char **name)
{
    for (const struct config_row *row = rows; row < rows + ROWS; row++) {
        const size_t length = strlen(row->key);
        if (strncmp(key, row->key, length) != 0)
            continue;
        if (!row_is_open(row) && !key[length])
            return row;
        if (row_is_open(row) && key[length] == '.' && key[length + 1]) {
            *name = key + length + 1;
            return row;
        }
    }
    return NULL;
}

// Whether a table of this name can hold options: "source", "source.kafka", or below an open row.
static bool section_exists(const char *key)
{
    const size_t length = strlen(key);
    const char *name;
    for (const struct config_row *row = rows; row < rows + ROWS; row++)
        if (strncmp(row->key, key, length) == 0 &&
            (row->key[length] == '.' || (!row->key[length] && row_is_open(row))))
            return true;
    const struct config_row *row = row_find(key, &name);
    return row && row->type == CONFIG_PROPERTIES;
}

// The place of a word in "builtin|file|kafka", or -1.
static int word_index(const char *words, const char *word)
{
    const size_t length = strlen(word);
    for (int i = 0; *words; i++) {
        const size_t n = strcspn(words, "|");
        if (n == length && memcmp(words, word, n) == 0)
            return i;
        words += n + (words[n] == '|');
    }
    return -1;
}

static const char *word_at(const char *words, int index, char word[WORD_MAX])
{
    for (; index > 0; index--)
        words += strcspn(words, "|") + 1;
    snprintf(word, WORD_MAX, "%.*s", (int)strcspn(words, "|"), words);
    return word;
}

static void *member(const struct config *c, const struct config_row *row)
{
    return (char *)c + row->offset;
}

static void member_store(struct config *c, const struct config_row *row, const struct value *v)
{
    void *at = member(c, row);
    switch (row->type) {
    case CONFIG_INT:
    case CONFIG_ENUM:
        *(int *)at = (int)v->i;
        break;
    case CONFIG_FLOAT:
        *(double *)at = v->f;
        break;
    case CONFIG_BOOL:
        *(bool *)at = v->i;
        break;
    case CONFIG_TEXT:
        *(const char **)at = v->text;
        break;
    default:
        *(int64_t *)at = v->i;
        break;
    }
}

// The value as TOML writes it, in one canonical spelling.
static void member_format(const struct config *c, const struct config_row *row, char *text,
                          size_t size)
{
    const void *at = member(c, row);
    struct value v = {0};
    char word[WORD_MAX];
    switch (row->type) {
    case CONFIG_INT:
        v.i = *(const int *)at;
        break;
    case CONFIG_ENUM:
        v.text = word_at(row->low, *(const int *)at, word);
        break;
    case CONFIG_FLOAT:
        v.f = *(const double *)at;
        break;
    case CONFIG_BOOL:
        v.i = *(const bool *)at;
        break;
    case CONFIG_TEXT:
        v.text = *(const char *const *)at;
        break;
    default:
        v.i = *(const int64_t *)at;
        break;
    }
    types[row->type].format(&v, text, size);
}

// Packed, not aligned as the arena does for numbers. NULL when the configuration is too large.
static const char *text_keep(struct config *c, const char *text)
{
    const size_t size = strlen(text) + 1;
    if (size > c->memory->size - c->memory->used)
        return NULL;
    char *copy = c->memory->base + c->memory->used;
    c->memory->used += size;
    return memcpy(copy, text, size);
}

// ---- Setting one value

// Texts are copied once, here: what passes through has the lifetime of the caller's.
static int entry_store(struct config *c, const struct config_row *row, const char *name,
                       const struct value *v, struct config_origin at)
{
    struct config_properties *properties = member(c, row);
    struct config_durations *durations = member(c, row);
    const bool texts = row->type == CONFIG_PROPERTIES;
    const int n = texts ? properties->n : durations->n;
    int i = 0;
    while (i < n && strcmp(texts ? properties->list[i].key : durations->list[i].name, name) != 0)
        i++;
    if (i == CONFIG_ENTRIES_MAX)
        return -E2BIG;
    const char *kept = text_keep(c, name), *text = texts ? text_keep(c, v->text) : "";
    if (!kept || !text)
        return -ENOMEM;
    if (texts) {
        properties->list[i] = (struct source_kafka_property){kept, text};
        properties->origin[i] = at;
        properties->n += i == n;
    } else {
        durations->list[i] = (struct config_duration){kept, v->i};
        durations->origin[i] = at;
        durations->n += i == n;
    }
    return 0;
}

static bool value_in_range(const struct config_row *row, const struct value *v)
{
    struct value low = {0}, high = {0};
    if (!*row->low)
        return true;
    const bool read =
        types[row->type].parse(row->low, &low) && types[row->type].parse(row->high, &high);
    assert(read);
    return row->type == CONFIG_FLOAT ? low.f <= v->f && v->f <= high.f
                                     : low.i <= v->i && v->i <= high.i;
}

// What is wrong with a text for an option's type and range, into problem; 0 with *v when nothing.
static int value_read(const struct config_row *row, const char *key, const char *text,
                      struct value *v, struct config_problems *problems, struct config_origin at)
{
    char tail[WORD_MAX + 32];
    if (!types[row->type].parse(text, v)) {
        problem_add(problems, at, "'%s' must be %s, not '%.60s'", key, types[row->type].expected,
                    text);
        return -EINVAL;
    }
    if (row->type == CONFIG_ENUM) {
        v->i = word_index(row->low, text);
        if (v->i >= 0)
            return 0;
        struct suggest nearest = {.word = text};
        char words[8][WORD_MAX], list[256] = "";
        int n = 1;
        for (const char *c = row->low; *c; c++)
            n += *c == '|';
        assert(n <= (int)(sizeof words / sizeof *words));
        for (int i = 0; i < n; i++) {
            suggest_offer(&nearest, word_at(row->low, i, words[i]));
            snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s",
                     i == 0 ? "" : (i + 1 < n ? ", " : " or "), words[i]);
        }
        problem_add(problems, at, "'%s' must be %s, not '%.60s'%s", key, list, text,
                    hint(&nearest, tail, sizeof tail));
        return -EINVAL;
    }
    if (!value_in_range(row, v)) {
        problem_add(problems, at, "'%s' must be between %s and %s, not %.60s", key, row->low,
                    row->high, text);
        return -EINVAL;
    }
    return 0;
}

static void unknown_add(struct config_problems *problems, struct config_origin at, const char *what,
                        const char *key)
{
    char tail[SUGGEST_LENGTH_MAX + 32];
    struct suggest nearest = {.word = key};
    if (strcmp(what, "section") == 0)
        for (size_t i = 0; i < sizeof sections / sizeof *sections; i++)
            suggest_offer(&nearest, sections[i].name);
    for (const struct config_row *row = rows; row < rows + ROWS; row++)
        suggest_offer(&nearest, row->key);
    // A key without its section, or in a wrong one, is known by its last part alone.
    const char *last = strrchr(key, '.');
    last = last ? last + 1 : key;
    for (const struct config_row *row = rows; row < rows + ROWS && !nearest.best; row++)
        if (strcmp(strchr(row->key, '.') + 1, last) == 0)
            nearest.best = row->key;
    problem_add(problems, at, "unknown %s '%.120s'%s", what, key,
                hint(&nearest, tail, sizeof tail));
}

static int option_set(struct config *c, const struct config_row *row, const char *name,
                      const char *key, const char *text, struct config_origin at,
                      struct config_problems *problems)
{
    struct value v = {0};
    int rc = value_read(row, key, text, &v, problems, at);
    if (rc < 0)
        return rc;
    if (row_is_open(row)) {
        rc = entry_store(c, row, name, &v, at);
    } else {
        if (row->type == CONFIG_TEXT && !(v.text = text_keep(c, text)))
            rc = -ENOMEM;
        if (rc == 0) {
            member_store(c, row, &v);
            c->origin[row - rows] = at;
        }
    }
    if (rc == -E2BIG)
        problem_add(problems, at, "'%s' has more than %d keys", row->key, CONFIG_ENTRIES_MAX);
    if (rc == -ENOMEM)
        problem_add(problems, at, "the configuration is larger than %d bytes", CONFIG_MEMORY);
    return rc < 0 ? -EINVAL : 0;
}

int config_set(struct config *c, const char *key, const char *text, const char *origin,
               struct config_problems *problems)
{
    const char *name = NULL, *where = text_keep(c, origin);
    const struct config_origin at = {where ? where : "command line", 0, 0};
    const struct config_row *row = row_find(key, &name);
    if (!row) {
        unknown_add(problems, at, "key", key);
        return -EINVAL;
    }
    return option_set(c, row, name, key, text, at, problems);
}

bool config_given(const struct config *c, const char *key)
{
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (strcmp(rows[i].key, key) == 0)
            return strcmp(c->origin[i].where, "default") != 0;
    assert(false);
    return false;
}

int config_set_pair(struct config *c, const char *pair, const char *origin,
                    struct config_problems *problems)
{
    const char *equals = strchr(pair, '=');
    char key[256];
    if (!equals || equals == pair || (size_t)(equals - pair) >= sizeof key) {
        const char *where = text_keep(c, origin);
        problem_add(problems, (struct config_origin){where ? where : "command line", 0, 0},
                    "expected section.key=value, not '%.60s'", pair);
        return -EINVAL;
    }
    snprintf(key, sizeof key, "%.*s", (int)(equals - pair), pair);
    return config_set(c, key, equals + 1, origin, problems);
}

void config_init(struct config *c, struct arena *memory)
{
    *c = (struct config){.memory = memory};
    struct config_problems problems = {0};
    for (const struct config_row *row = rows; row < rows + ROWS; row++) {
        const struct config_origin at = {"default", 0, 0};
        if (!row_is_open(row))
            option_set(c, row, NULL, row->key, row->fallback, at, &problems);
        c->origin[row - rows] = at;
    }
    assert(problems.n == 0);
}

// ---- A file

struct loading {
    struct config *c;
    struct config_problems *problems;
    const char *path;
    char skipped[256]; // a section that was reported: what is in it is not, once more
};

static void value_visited(void *arg, const struct toml_value *value)
{
    struct loading *l = arg;
    const struct config_origin key_at = {l->path, value->line, value->column};
    const struct config_origin value_at = {l->path, value->value_line, value->value_column};
    const size_t skipped = strlen(l->skipped);
    const char *name = NULL;

    if (skipped && strncmp(value->key, l->skipped, skipped) == 0 && value->key[skipped] == '.')
        return;
    const struct config_row *row = row_find(value->key, &name);
    if (value->kind == TOML_KIND_TABLE) {
        if (section_exists(value->key))
            return;
        if (row)
            problem_add(l->problems, key_at, "'%s' must be %s, not a table", value->key,
                        types[row->type].expected);
        else
            unknown_add(l->problems, key_at, "section", value->key);
        snprintf(l->skipped, sizeof l->skipped, "%s", value->key);
        return;
    }
    if (!row && section_exists(value->key))
        problem_add(l->problems, value_at, "'%s' must be a table", value->key);
    else if (!row)
        unknown_add(l->problems, key_at, "key", value->key);
    else if (strlen(value->text) != value->text_size)
        problem_add(l->problems, value_at, "'%s' has a zero byte in it", value->key);
    else if (value->kind == TOML_KIND_OTHER || !(types[row->type].kinds & 1u << value->kind))
        problem_add(l->problems, value_at, "'%s' must be %s", value->key,
                    types[row->type].expected);
    else
        option_set(l->c, row, name, value->key, value->text, value_at, l->problems);
}

// The whole file; its size is bounded, so that a wrong path cannot fill the memory.
static int file_read(const char *path, char **bytes, size_t *size)
{
    int rc = 0;
    FILE *file = fopen(path, "r");
    if (!file)
        return -errno;
    *bytes = malloc(FILE_BYTES_MAX + 1);
    if (!*bytes) {
        rc = -ENOMEM;
        goto close;
    }
    *size = fread(*bytes, 1, FILE_BYTES_MAX + 1, file);
    if (ferror(file))
        rc = -errno;
    else if (*size > FILE_BYTES_MAX)
        rc = -EFBIG;
    if (rc < 0)
        free(*bytes);
close:
    fclose(file);
    return rc;
}

int config_load(struct config *c, const char *path, struct config_problems *problems)
{
    const int before = problems->n;
    struct loading l = {.c = c, .problems = problems, .path = text_keep(c, path)};
    struct toml_error error;
    char *bytes = NULL;
    size_t size = 0;

    if (!l.path)
        l.path = "configuration";
    int rc = file_read(path, &bytes, &size);
    if (rc < 0) {
        problem_add(problems, (struct config_origin){l.path, 0, 0}, "cannot be read: %s",
                    strerror(-rc));
        return rc;
    }
    rc = toml_visit(bytes, size, value_visited, &l, &error);
    if (rc == -EINVAL)
        problem_add(problems, (struct config_origin){l.path, error.line, error.column}, "%s",
                    error.message);
    free(bytes);
    if (rc < 0 && rc != -EINVAL)
        return rc;
    // Values come in the parser's order; a person reads a file from the top.
    const int kept = problems->n < CONFIG_PROBLEMS_MAX ? problems->n : CONFIG_PROBLEMS_MAX;
    if (kept > before)
        qsort(problems->list + before, kept - before, sizeof *problems->list, origin_compare);
    return problems->n > before ? -EINVAL : 0;
}

// ---- What one row alone cannot know

static struct config_origin key_origin(const struct config *c, const char *key)
{
    const char *name;
    const struct config_row *row = row_find(key, &name);
    assert(row);
    return c->origin[row - rows];
}

int config_check(const struct config *c, struct config_problems *problems)
{
    const int before = problems->n;
    struct sockaddr_storage address;
    socklen_t size;

    if (c->source_type == CONFIG_SOURCE_FILE && !*c->source_path)
        problem_add(problems, key_origin(c, "source.type"),
                    "'source.path' is needed when 'source.type' is file");
    if (c->source_type == CONFIG_SOURCE_KAFKA && !*c->source_brokers)
        problem_add(problems, key_origin(c, "source.brokers"),
                    "'source.brokers' is needed when 'source.type' is kafka");
    if (c->source_type == CONFIG_SOURCE_KAFKA && !*c->source_impressions && !*c->source_engagements)
        problem_add(problems, key_origin(c, "source.engagements"),
                    "'source.impressions' and 'source.engagements' are both empty: there is "
                    "nothing to learn from");
    if (*c->dead_letter_topic && c->source_type != CONFIG_SOURCE_KAFKA)
        problem_add(problems, key_origin(c, "dead_letter.topic"),
                    "'dead_letter.topic' is a topic of the source's brokers: 'source.type' must be "
                    "kafka");
    const char *const read[] = {c->source_impressions, c->source_engagements,
                                c->source_ranker_scores, c->source_items};
    for (size_t i = 0; *c->dead_letter_topic && i < sizeof read / sizeof *read; i++)
        if (strcmp(c->dead_letter_topic, read[i]) == 0)
            problem_add(problems, key_origin(c, "dead_letter.topic"),
                        "'dead_letter.topic' must not be a topic that is read, as '%.100s' is: "
                        "dead letters would come in without end",
                        read[i]);
    if (c->model_attention > 0 && c->model_dim % c->model_attention_heads != 0)
        problem_add(problems, key_origin(c, "model.attention_heads"),
                    "'model.attention_heads' is %d, which does not divide 'model.dim', %d",
                    c->model_attention_heads, c->model_dim);
    if (c->model_type == CONFIG_MODEL_TWO_TOWER && !c->model_projection &&
        (c->model_user_features > 0 || c->model_item_features > 0 ||
         c->model_history_encoder == CONFIG_ENCODER_ATTENTION))
        problem_add(problems, key_origin(c, "model.projection"),
                    "'model.projection' is false, so 'model.user_features' and "
                    "'model.item_features' must be 0 and 'model.history_encoder' none");
    if (c->join_actions.n > JOIN_ACTIONS_MAX)
        problem_add(problems, c->join_actions.origin[JOIN_ACTIONS_MAX],
                    "'join.actions' has more than %d actions", JOIN_ACTIONS_MAX);
    for (int i = 0; i < c->join_actions.n; i++)
        if (strlen(c->join_actions.list[i].name) > ACTION_BYTES_MAX)
            problem_add(problems, c->join_actions.origin[i],
                        "the name of an action has at most %d bytes, not '%.80s'", ACTION_BYTES_MAX,
                        c->join_actions.list[i].name);
    struct value_tasks tasks;
    char reason[160];
    if (value_tasks_parse(&tasks, c->value_tasks, reason, sizeof reason) < 0)
        problem_add(problems, key_origin(c, "value.tasks"), "'value.tasks': %s", reason);
    if (c->ranker_weight > 0 && c->model_dim > LIGHT_RANKER_WIDTH_MAX)
        problem_add(problems, key_origin(c, "ranker.weight"),
                    "'ranker.weight': a light ranker needs a 'model.dim' of at most %d",
                    LIGHT_RANKER_WIDTH_MAX);
    if (c->ranker_feedback != CONFIG_FEEDBACK_NONE &&
        (c->ranker_feedback_delay_ms == 0 || c->ranker_feedback_delay_ms >= c->join_window_ms))
        problem_add(problems, key_origin(c, "ranker.feedback"),
                    "'ranker.feedback' learns before the windows close: 'ranker.feedback_delay' "
                    "must be above 0s and below 'join.window'");
    // Of what is wrong already the model need not say anything.
    const struct two_tower_options model = assemble_model(c);
    const char *refused =
        problems->n == before ? two_tower_refuses(&model, reason, sizeof reason) : NULL;
    if (refused)
        problem_add(problems, key_origin(c, "model.type"), "the model cannot learn: %s", refused);
    if (!*c->state_dir)
        problem_add(problems, key_origin(c, "state.dir"), "'state.dir' must not be empty");
    if (!*c->snapshot_dir)
        problem_add(problems, key_origin(c, "snapshot.dir"), "'snapshot.dir' must not be empty");
    if (*c->state_dir && strcmp(c->state_dir, c->snapshot_dir) == 0)
        problem_add(problems, key_origin(c, "snapshot.dir"),
                    "'snapshot.dir' must not be the same directory as 'state.dir'");
    if (*c->http_listen && http_address(c->http_listen, &address, &size) < 0)
        problem_add(problems, key_origin(c, "http.listen"),
                    "'http.listen' must be a numeric address and a port such as 127.0.0.1:9464 or "
                    "[::1]:9464, not '%.60s'",
                    c->http_listen);
    return problems->n > before ? -EINVAL : 0;
}

// ---- Output

// The next section when row begins one; printed sections are plain "[name]" tables.
static bool section_begins(const struct config_row *row, char name[WORD_MAX])
{
    const size_t length = strcspn(row->key, ".");
    snprintf(name, WORD_MAX, "%.*s", (int)length, row->key);
    return row == rows || strncmp(row->key, row[-1].key, length + 1) != 0;
}

// An open row is a table of its own and would swallow what follows, so its keys are written with
// the row's last part in front: kafka."security.protocol" = "ssl".
static void open_row_show(const struct config *c, const struct config_row *row, FILE *out)
{
    const struct config_properties *properties = member(c, row);
    const struct config_durations *durations = member(c, row);
    const bool texts = row->type == CONFIG_PROPERTIES;
    for (int i = 0; i < (texts ? properties->n : durations->n); i++) {
        const char *name = texts ? properties->list[i].key : durations->list[i].name;
        struct value v = {.text = texts ? properties->list[i].value : NULL,
                          .i = texts ? 0 : durations->list[i].ms};
        char text[VALUE_TEXT_SIZE];
        if (log_is_secret(name))
            v.text = "(hidden)";
        types[row->type].format(&v, text, sizeof text);
        fprintf(out, "%s.", strchr(row->key, '.') + 1);
        quoted_print(name, out);
        fprintf(out, " = %s # ", text);
        origin_print(texts ? properties->origin[i] : durations->origin[i], out);
        putc('\n', out);
    }
}

void config_show(const struct config *c, FILE *out)
{
    for (const struct config_row *row = rows; row < rows + ROWS; row++) {
        char name[WORD_MAX], text[VALUE_TEXT_SIZE];
        if (section_begins(row, name))
            fprintf(out, "%s[%s]\n", row == rows ? "" : "\n", name);
        if (row_is_open(row)) {
            open_row_show(c, row, out);
            continue;
        }
        member_format(c, row, text, sizeof text);
        fprintf(out, "%s = %s # ", strchr(row->key, '.') + 1, text);
        origin_print(c->origin[row - rows], out);
        putc('\n', out);
    }
}

// Text in lines of at most 92 characters, each with "# " in front.
static void comment_print(const char *text, FILE *out)
{
    size_t column = 0;
    for (const char *word = text; *word;) {
        const size_t length = strcspn(word, " ");
        if (column && column + 1 + length > 92) {
            putc('\n', out);
            column = 0;
        }
        column += (size_t)fprintf(out, "%s%.*s", column ? " " : "# ", (int)length, word);
        word += length + (word[length] == ' ');
    }
    putc('\n', out);
}

static void range_describe(const struct config_row *row, char *text, size_t size)
{
    *text = 0;
    if (row->type == CONFIG_ENUM) {
        int n = snprintf(text, size, " One of ");
        for (const char *c = row->low; *c; c++)
            n += snprintf(text + n, size - n, *c == '|' ? ", " : "%c", *c);
        snprintf(text + n, size - n, ".");
    } else if (*row->low) {
        const bool unbounded = strcmp(row->high, "9223372036854775807") == 0;
        snprintf(text, size, unbounded ? " From %s." : " From %s to %s.", row->low, row->high);
    }
}

void config_sample(FILE *out)
{
    struct config c;
    struct arena memory = {malloc(CONFIG_MEMORY), CONFIG_MEMORY, 0};
    assert(memory.base);
    config_init(&c, &memory);

    comment_print("twotower: every option with its meaning, its range and its default.", out);
    comment_print("An option that is left out, or commented out as all are here, has its default. "
                  "Check a file with `twotower check -c FILE`; `twotower check --show -c FILE` "
                  "prints what is in force and where each value comes from.",
                  out);
    comment_print("Durations need a unit (ms, s, m, h, d, w); sizes may have one (KiB, MiB, GiB).",
                  out);
    for (const struct config_row *row = rows; row < rows + ROWS; row++) {
        char name[WORD_MAX], text[VALUE_TEXT_SIZE], help[1024], range[160];
        const char *key = strchr(row->key, '.') + 1;
        if (section_begins(row, name)) {
            fprintf(out, "\n[%s]\n", name);
            for (size_t i = 0; i < sizeof sections / sizeof *sections; i++)
                if (strcmp(sections[i].name, name) == 0)
                    comment_print(sections[i].help, out);
        }
        range_describe(row, range, sizeof range);
        snprintf(help, sizeof help, "%s%s", row->help, range);
        putc('\n', out);
        comment_print(help, out);
        if (row_is_open(row)) {
            fprintf(out, "#%s = {}\n", key);
            continue;
        }
        member_format(&c, row, text, sizeof text);
        fprintf(out, "#%s = %s\n", key, text);
    }
    free(memory.base);
}

// ---- Reading it anew

static struct value_tasks tasks_of(const struct config *c)
{
    struct value_tasks tasks = {0};
    const int rc = value_tasks_parse(&tasks, c->value_tasks, NULL, 0);
    assert(rc == 0); // config_check has seen that it can be read
    return tasks;
}

// The text of a key in an open row, NULL when it is not there.
static const char *entry_text(const struct config *c, const struct config_row *row,
                              const char *name, char *text, size_t size)
{
    const struct config_properties *properties = member(c, row);
    const struct config_durations *durations = member(c, row);
    if (row->type == CONFIG_PROPERTIES) {
        for (int i = 0; i < properties->n; i++)
            if (strcmp(properties->list[i].key, name) == 0)
                return properties->list[i].value;
        return NULL;
    }
    for (int i = 0; i < durations->n; i++)
        if (strcmp(durations->list[i].name, name) == 0) {
            format_duration(&(struct value){.i = durations->list[i].ms}, text, size);
            return text;
        }
    return NULL;
}

// Tells the keys of a that b has otherwise, and with `gone` alone those that b has not at all.
static void open_row_compare(const struct config *a, const struct config *b,
                             const struct config_row *row, bool gone,
                             void (*differs)(void *arg, const char *key), void *arg)
{
    const bool texts = row->type == CONFIG_PROPERTIES;
    const struct config_properties *properties = member(a, row);
    const struct config_durations *durations = member(a, row);
    for (int i = 0; i < (texts ? properties->n : durations->n); i++) {
        const char *name = texts ? properties->list[i].key : durations->list[i].name;
        char one[VALUE_TEXT_SIZE], other[VALUE_TEXT_SIZE], key[512];
        const char *x = entry_text(a, row, name, one, sizeof one);
        const char *y = entry_text(b, row, name, other, sizeof other);
        snprintf(key, sizeof key, "%s.%s", row->key, name);
        if (gone ? !y : !y || strcmp(x, y) != 0)
            differs(arg, key);
    }
}

static bool row_differs(const struct config *a, const struct config *b,
                        const struct config_row *row)
{
    char one[VALUE_TEXT_SIZE], other[VALUE_TEXT_SIZE];
    if (row->type == CONFIG_TEXT) // as long as it may be
        return strcmp(*(const char *const *)member(a, row), *(const char *const *)member(b, row));
    member_format(a, row, one, sizeof one);
    member_format(b, row, other, sizeof other);
    return strcmp(one, other) != 0;
}

int config_reload(const struct config *running, const struct config *read,
                  struct value_tasks *tasks, void (*differs)(void *arg, const char *key), void *arg,
                  struct config_problems *problems)
{
    for (const struct config_row *row = rows; row < rows + ROWS; row++) {
        if (row_is_open(row)) {
            open_row_compare(running, read, row, false, differs, arg);
            open_row_compare(read, running, row, true, differs, arg);
        } else if (row->offset != AT(value_tasks) && row_differs(running, read, row)) {
            differs(arg, row->key);
        }
    }
    const struct value_tasks before = tasks_of(running), now = tasks_of(read);
    char was[VALUE_TASKS_TEXT_SIZE], is[VALUE_TASKS_TEXT_SIZE];
    if (value_tasks_plain(&before) != value_tasks_plain(&now)) {
        problem_add(
            problems, key_origin(read, "value.tasks"),
            "'value.tasks' is '%.80s' now and was '%.80s' at the start: whether engagements "
            "are weighed at all shapes the state, and needs a restart with another "
            "state.dir",
            read->value_tasks, running->value_tasks);
        return -EINVAL;
    }
    if (!value_tasks_agree(&before, &now)) {
        problem_add(problems, key_origin(read, "value.tasks"),
                    "'value.tasks' names '%.80s' now and '%.80s' at the start: other names or "
                    "another order need a restart with another state.dir",
                    value_tasks_text(&now, NULL, is), value_tasks_text(&before, NULL, was));
        return -EINVAL;
    }
    *tasks = now;
    return 0;
}

// ---- Identity of the model

// What the state is kept by. "*=1" stands as it is: it is the one without weights.
static void tasks_print(const struct config *c, FILE *out)
{
    const struct value_tasks tasks = tasks_of(c);
    char text[VALUE_TASKS_TEXT_SIZE];
    quoted_print(value_tasks_text(&tasks, value_tasks_plain(&tasks) ? tasks.weight : NULL, text),
                 out);
}

static int duration_compare(const void *a, const void *b)
{
    const struct config_duration *x = a, *y = b;
    return strcmp(x->name, y->name);
}

size_t config_model_text(const struct config *c, char *text, size_t size)
{
    FILE *out = fmemopen(text, size, "w");
    assert(out);
    for (const struct config_row *row = rows; row < rows + ROWS; row++) {
        char value[VALUE_TEXT_SIZE];
        if (row->flags != SHAPES_MODEL)
            continue;
        if (row->offset == AT(value_tasks)) {
            fprintf(out, "%s=", row->key);
            tasks_print(c, out);
            fputc('\n', out);
            continue;
        }
        if (row->type != CONFIG_DURATIONS) {
            member_format(c, row, value, sizeof value);
            fprintf(out, "%s=%s\n", row->key, value);
            continue;
        }
        // In the order of their names: the order in the file means nothing.
        struct config_durations sorted = *(const struct config_durations *)member(c, row);
        qsort(sorted.list, sorted.n, sizeof *sorted.list, duration_compare);
        for (int i = 0; i < sorted.n; i++) {
            format_duration(&(struct value){.i = sorted.list[i].ms}, value, sizeof value);
            fprintf(out, "%s.", row->key);
            quoted_print(sorted.list[i].name, out);
            fprintf(out, "=%s\n", value);
        }
    }
    const long length = ftell(out);
    fclose(out);
    assert(length >= 0 && (size_t)length < size);
    return (size_t)length;
}

void config_model_digest(const struct config *c, char digest[CONFIG_DIGEST_SIZE])
{
    char text[CONFIG_MODEL_TEXT_SIZE];
    unsigned char bytes[32];
    const size_t length = config_model_text(c, text, sizeof text);
    const int rc = EVP_Digest(text, length, bytes, NULL, EVP_sha256(), NULL);
    assert(rc == 1);
    for (int i = 0; i < 32; i++)
        snprintf(digest + 2 * i, 3, "%02x", bytes[i]);
}

const char *config_word(const char *key, int value)
{
    // Few words in all and asked for seldom: one buffer for each row, filled with the same text.
    static _Thread_local char words[ROWS][WORD_MAX];
    const char *name;
    const struct config_row *row = row_find(key, &name);
    assert(row && row->type == CONFIG_ENUM);
    return word_at(row->low, value, words[row - rows]);
}

void config_dead_letter_path(const struct config *c, char *path, size_t size)
{
    if (*c->dead_letter_path)
        snprintf(path, size, "%s", c->dead_letter_path);
    else
        snprintf(path, size, "%s/dead-letters.jsonl", c->state_dir);
}
