// SPDX-License-Identifier: Apache-2.0
//
// The model: a user tower, an item tower and what trains them, over rows that appear and vanish.
// Two kinds share the tables, the columns and this interface:
//
//   recipe     the default (model/recipe.c): one tied item table, pooled history, popularity prior,
//              repeat term, sampled softmax over unique candidates; attention as an option.
//   two_tower  (model/classic.c): [id row ; feature MLP ; history] -> linear, in-batch softmax with
//              every option of tfrs.tasks.Retrieval.
//
// Both give vectors of width dim + 1 whose dot product is the score: the item's last element is its
// bias and prior, the query's is 1. What no vector can hold, the repeat term, is a list of (item
// row, bonus) that serving adds exactly.
//
// It learns in steps, of two sorts:
//
//     examples  two_tower_learn: of each engagement its item against the batch's candidates, by
//               softmax, a row weighing what the engagement is worth (model/row_weights.h).
//               two_tower_replay is the same of examples that were learned before.
//     slates    two_tower_learn_slates: what was shown together, what came of it and what the main
//               ranker had said, by the terms of model/objectives.h. Only with objectives.slates.
//
// Both run one course (model/towers.h): read everything as it was, go forward, let the losses add
// to the gradients of the vectors, go back through the towers, update. A step whose loss or
// gradient is not finite changes nothing but a count of such steps. model/two_tower.c is that
// course; the kinds turn rows into vectors, the objectives vectors into losses.
//
// One thread. Parameters, optimizer slots and counts are columns (model/tables.h); scratch memory
// is taken in two_tower_open for batch_max examples and objectives.slates slates. Learning is a
// function of (state, batch): no clock, and random numbers by counter.
#pragma once

#include "model/batch_metrics.h"
#include "model/batch_scores.h"
#include "model/debias.h"
#include "model/history.h"
#include "model/history_encoder.h"
#include "model/id_table.h"
#include "model/negative_memory.h"
#include "model/objectives.h"
#include "model/optimizer.h"
#include "model/sampled_softmax.h"

enum { PRIORS = 3 }; // time scales of popularity: fast, slow, recent
enum model_kind { MODEL_RECIPE, MODEL_TWO_TOWER };

struct two_tower_options {
    enum model_kind kind;
    int dim;       // d
    int history;   // newest engagements that are pooled, <= HISTORY_MAX
    int repeat;    // newest engagements that the repeat term looks at, <= HISTORY_MAX; 0: off
    int batch_max; // examples per step
    int uniform_negatives;
    uint64_t seed;
    // Of the softmax's products.
    enum batch_scores_precision precision;
    float init;                   // rows start uniform in (-init, init)
    struct optimizer table;       // of rows and biases: a bias is a row of one number
    struct optimizer matrix;      // of dense parameters
    struct optimizer scalar;      // recipe: of the repeat term and the prior
    bool onebp;                   // recipe: users' rows move as model/onebp.h says
    float onebp_beta;             // of the old row
    enum sampled_form correction; // recipe: of the candidates' logits
    bool mask_known;              // a user's other engagements in the batch are no negatives
    struct negative_memory_options memory;         // capacity 0: no negatives from earlier batches
    float prior_half_life[PRIORS], logq_half_life; // in examples
    struct history_encoder_options encoder;        // recipe only
    // two_tower only
    int user_features, item_features, hidden;
    bool bare; // vectors are the rows: neither features nor attention
    float temperature;
    bool logq, accidental_hits, attention;
    int hard_negatives;
    struct objective_options objectives;
    struct debias_options debias;
    bool tasks_named; // engagements are weighed by their tasks' values, which may change
    float measured;   // share of the steps whose report has metrics and l2, 0..1
};

// How much of a user's history the model reads at the most.
static inline int two_tower_history(const struct two_tower_options *o)
{
    return o->history > o->repeat ? o->history : o->repeat;
}

// What it reads of each engagement besides the item.
static inline bool two_tower_reads_gaps(const struct two_tower_options *o)
{
    return o->kind == MODEL_RECIPE && o->encoder.layers > 0 && o->encoder.gaps;
}

static inline bool two_tower_reads_actions(const struct two_tower_options *o)
{
    return o->kind == MODEL_RECIPE && o->encoder.layers > 0 && o->encoder.actions;
}

// One impression with its label. Histories are as of the impression.
struct example {
    uint32_t user, item; // rows
    int64_t ts_ms;       // of the impression
    float value;         // of the engagement; 0 for a negative
    float propensity;    // 0 when not logged
    int32_t position;    // -1 when not logged
    uint16_t action;     // number of the engagement's action
    uint8_t positive;
    uint8_t n_history;
    uint8_t n_newest;              // of the history's first: those that share the newest time
    uint8_t surface;               // where it was shown: as in struct slate
    uint8_t task;                  // of the action; TASK_NONE for a negative and for none
    uint8_t reserved[5];           // no padding: checkpoints have every byte
    uint32_t history[HISTORY_MAX]; // item rows, newest first
    uint8_t actions[HISTORY_MAX];  // what the user did with each, a mask (history_action)
    uint8_t gaps[HISTORY_MAX];     // time from each to the impression (history_gap)
};

struct two_tower;

// What one step did.
struct step_report {
    int examples, candidates; // candidates: items, each once
    double loss;              // sum over the examples
    bool replayed;            // the examples had been learned before
    bool skipped;             // a loss or gradient was not finite: nothing was changed
    struct objective_report retrieval;
    uint64_t masked; // pairs of an example and a candidate that is no negative, for it is known
    // Of a share of the steps (options.measured), those that replay excepted:
    bool measured;
    struct batch_metrics metrics; // of up to 64 examples, evenly spaced
    double l2;                    // what the table's L2 adds to the loss: l2 / 2 sum of squares
};

// Why these options cannot work, as a sentence, or NULL: a group of parameters without an optimizer
// or with two, an optimizer that cannot work, or what this kind of model does not have. For the
// start; text (size) holds what is returned.
const char *two_tower_refuses(const struct two_tower_options *options, char *text, size_t size);

// items and users are the tables whose rows the model's columns follow; both must outlive it. The
// options are not refused.
// 0 or -ENOMEM.
int two_tower_open(struct two_tower **m, struct columns *s, const struct id_table *items,
                   const struct id_table *users, const struct two_tower_options *options);
void two_tower_close(struct two_tower *m);

// A row was admitted, new or again: it starts as a function of (seed, id), whatever was there.
void two_tower_item_created(struct two_tower *m, uint32_t row);
void two_tower_user_created(struct two_tower *m, uint32_t row);
// The item's dense features, item_features floats; a shorter list is filled up with zeros.
void two_tower_item_features(struct two_tower *m, uint32_t row, int n, const float *features);

// One learning step on n <= batch_max examples. features (n, user_features), NULL when width is 0.
struct step_report two_tower_learn(struct two_tower *m, int n, const struct example *examples,
                                   const float *features);
// Another step on examples that were learned before, with their histories as of then. recipe only.
struct step_report two_tower_replay(struct two_tower *m, int n, const struct example *examples);

// The user of a slate as an example without an item: whose query the slate's items are scored by.
struct example two_tower_context(const struct slate *slate);
// One step on n <= objectives.slates slates: the terms of model/objectives.h. scores
// (n, SLATE_ITEMS_MAX, tasks), features as above.
struct slate_report two_tower_learn_slates(struct two_tower *m, int n, const struct slate *slates,
                                           const float *scores, const float *features);
// The guard of a version of the ranker, of the proxy for 0 (model/reward_guard.h); NULL when
// nothing is guarded.
const struct reward_guard *two_tower_guard(const struct two_tower *m, int ranker);
// What the model expects of each item shown before it sees the labels: net values (n_items), NAN
// where it expects nothing. q (dim + 1): the query of the slate.
enum expectation {
    EXPECTED_CONTEXT, // by the debiasing estimator: of position and user, whatever the item
    EXPECTED_RANKER,  // by the light ranker: of the item at its position
    EXPECTATIONS,
};
bool two_tower_expects(const struct two_tower *m, enum expectation by);
void two_tower_expected(const struct two_tower *m, enum expectation by, const struct slate *slate,
                        const float *q, float *expected);
// The model as it is now is what the fleets have from now on: the reference of the trust region.
void two_tower_published(struct two_tower *m);

// Q (n, dim + 1): the users' vectors as of the examples' histories.
void two_tower_queries(struct two_tower *m, int n, const struct example *examples,
                       const float *features, float *Q);
// V (n, dim + 1): the items' vectors.
void two_tower_items(const struct two_tower *m, int n, const uint32_t *rows, float *V);
// The vector an id without a row would start with: (dim + 1).
void two_tower_unseen_item(struct two_tower *m, const struct id *id, float *v);

// A user's newest engagements, newest first: what a query is made from.
struct recent {
    int n, newest;                // newest: how many of them share the newest time; 0 counts as 1
    const float *const *vectors;  // of their items, (d) each
    const float *const *contexts; // recipe: the items' context vectors, (d) each; else NULL
    const uint8_t *actions;       // masks (history_action), NULL: nothing is known of them
    const uint8_t *gaps;          // history_gap of each, NULL: all are recent
};

struct bonus {
    uint32_t row;
    float score;
};

// The repeat term for this history: up to HISTORY_MAX items. Returns how many.
int two_tower_bonuses(const struct two_tower *m, const struct example *example,
                      struct bonus *bonuses);

const struct two_tower_options *two_tower_options(const struct two_tower *m);

// What the tasks are worth now. Kept in a column with tasks_named, else as at the start for good.
struct model_values {
    uint64_t since; // as given with them, 0: from the start
    float weight[SLATE_TASKS_MAX];
};
const struct model_values *two_tower_values(const struct two_tower *m);
// From the next step on, weight (objectives.tasks). With tasks_named only.
void two_tower_set_values(struct two_tower *m, const float *weight, uint64_t since);
// The columns, for whoever publishes them.
struct tables;
const struct tables *two_tower_tables(const struct two_tower *m);
