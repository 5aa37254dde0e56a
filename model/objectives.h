// SPDX-License-Identifier: Apache-2.0
//
// What the towers learn from slates, beside the softmax over engagements: distillation of the main
// ranker, alignment with it, preferences inside a slate, and the heads that score items pointwise.
//
// One slate, items k = 1..n:
//
//     s_k        retrieval score, q . v_k + column_k + repeat_k
//     ref_k      the same by the model last published (model/reference.h)
//     g_k        what the ranker said: sum_t w_t score_kt, w the tasks' values now, over tasks that
//                it scored in this slate; NAN when it left one out for the item. Standardised
//                inside the slate where a form takes its softmax, because scores of versions and
//                surfaces have no common scale
//     y_k        net value sum_t w_t y_kt, NAN for items not shown
//
// Only closed slates are read, but for the light ranker, which may learn from early ones and late
// positives instead (ranker.feedback). Of those that say `repeated`, the labels are left to the
// guard of their own version. A score that is not finite, or no probability where one is expected,
// counts as none. A slate with nothing to say moves no parameter, whatever the others of its step
// say.
//
// A term is one row of the table in objectives.c: a function that gives its loss and adds its
// gradient to that of s (the form of model/slate_loss.h). The loss of a step is the sum over its
// slates, weighted, like that of the softmax: the tables' Adagrad starts at a fixed size.
//
// A term that follows the ranker is scaled by the guard (model/reward_guard.h), one for each
// version of the ranker, so that a ranker that does not know what people do is not followed.
// A weight of 0 is off: then nothing is computed, no column is opened, and no byte differs.
//
// One thread. Parameters of the heads, guards and estimators lie in columns.
#pragma once

#include "model/delayed_feedback.h"
#include "model/light_ranker.h"
#include "model/optimizer.h"
#include "model/reward_guard.h"
#include "model/slate.h"

enum { SLATES_MAX = 64 }; // of a step

// The terms, retrieval first. Names for metrics and reports are in objective_names.
enum objective {
    OBJECTIVE_RETRIEVAL,
    OBJECTIVE_DISTILL,
    OBJECTIVE_ALIGN,
    OBJECTIVE_TRUST,
    OBJECTIVE_PREFERENCE,
    OBJECTIVE_RANKER,
    OBJECTIVE_RANKER_DISTILL,
    OBJECTIVE_PROXY,
    OBJECTIVES
};
extern const char *const objective_names[OBJECTIVES];

enum distill_form {
    DISTILL_LISTWISE,      // KL of softmaxes with temperature
    DISTILL_PLACKETT_LUCE, // the first `top` places of the ranker's order
    DISTILL_TOP_POSITIVES, // likewise, each a positive of its own
    DISTILL_SOFT_PAIR,     // pairs, with the ranker's certainty
    DISTILL_MARGIN         // pairs, by the difference of standardised scores
};
enum align_form { ALIGN_KL, ALIGN_POLICY, ALIGN_SHAPED, ALIGN_DPO, ALIGN_S_DPO };
enum align_teacher { ALIGN_LOGGED, ALIGN_PROXY };
enum preference_form { PREFERENCE_BPR, PREFERENCE_DPO, PREFERENCE_S_DPO };
enum ranker_scale { RANKER_PROBABILITIES, RANKER_LOGITS }; // of the logged scores

struct objective_options {
    int slates; // per step, at most; 0: nothing reads slates
    int tasks;
    float value[SLATE_TASKS_MAX]; // of each task at the start, any sign

    struct {
        float weight, temperature;
        enum distill_form form;
        int top; // places, for the forms that read the order
    } distill;
    struct {
        float weight, temperature, student_temperature;
        enum align_form form;
        enum align_teacher teacher;
        float beta;  // of the forms that compare with what was published
        float trust; // weight of the trust region
        float ratio_cap;
        int top_k;
        bool guard;
    } align;
    struct {
        float weight, beta;
        enum preference_form form;
    } preference;
    struct {
        float weight;  // 0: no light ranker
        float distill; // weight of its auxiliary logits
        int heads;
        bool stop_gradient; // the towers do not learn from it
        enum ranker_scale scale;
        enum delayed_feedback_mode feedback; // but for none the join must emit early slates
    } ranker;
    struct optimizer head; // of light and proxy ranker
    struct reward_guard_options guard;
};

// Whether some term compares with what was published.
bool objectives_need_reference(const struct objective_options *o);
size_t objectives_heads_size(const struct objective_options *o, int dim); // floats

// What one term did in one step.
struct objective_report {
    double loss;                  // sum over the slates that had something to say
    double query_norm, item_norm; // of its gradient on the towers
    int n;                        // how many had; of examples, for retrieval
};

struct slate_report {
    int slates, unscored; // unscored: without a score the terms could use
    bool skipped;         // a loss or gradient was not finite: nothing was changed
    double guard;         // mean scale over the scored slates
    // Effective sample size of the capped propensity ratios: sum over the slates they weighed.
    double sample_size;
    int sampled;
    struct objective_report term[OBJECTIVES];
};

// What the ranker said about the items of a slate, before standardising: g (n_items) from scores
// (n_items, tasks) and what the tasks are worth, value (tasks).
void objectives_teacher(int tasks, const float *value, const struct slate *slate,
                        const float *scores, float *g);

// ---- Within model/: what two_tower.c calls.

struct columns;
struct dense_parameter;
struct row_weights;
struct step;

// A step's slates, row by row: slate i has rows first[i] to first[i + 1].
struct slate_batch {
    int n, rows;
    const struct slate *slates;
    const float *scores;  // (n, SLATE_ITEMS_MAX, tasks): the ranker's
    const int *first;     // (n + 1)
    const uint32_t *slot; // (rows): of the item among the step's
    const float *s, *ref; // (rows); ref is NULL when nothing needs it
    float *ds;            // (rows): terms on scores add to it
};

struct objectives;

// 0 or -ENOMEM. options and value must outlive it; value (tasks) is read at each step. Slates and
// rows at the most that a step has.
int objectives_open(struct objectives **out, struct columns *s,
                    const struct objective_options *options, const float *value, int dim,
                    uint64_t seed);
void objectives_close(struct objectives *o); // o may be NULL
// All terms: adds to batch->ds and, for the heads, to the step's dQ and dV, keeping the heads'
// gradients until objectives_update. False when one of those is not finite.
bool objectives_learn(struct objectives *o, struct step *s, struct slate_batch *batch,
                      struct slate_report *report);
// The heads, and then what learns from a slate after it was used: the guards, and the estimators
// behind weights, which may be NULL.
void objectives_update(struct objectives *o, const struct step *s, const struct slate_batch *batch,
                       struct row_weights *weights);
// As two_tower_guard.
const struct reward_guard *objectives_guard(const struct objectives *o, int ranker);
// What the light ranker expects of item k of a slate, its vector being v (d), for the user q (d) at
// the position where it was shown: a net value. Only with a light ranker.
float objectives_expected(const struct objectives *o, const struct slate *slate, int k,
                          const float *q, const float *v);
// Parameter i of the heads by name, offsets in floats from objectives_heads; false at the end.
bool objectives_parameter(const struct objective_options *o, int dim, int i,
                          struct dense_parameter *p);
