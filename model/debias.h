// SPDX-License-Identifier: Apache-2.0
//
// What position and user alone explain of a net value, and what is left of the value without it.
//
//     n~ = debias_value(n, context)          before learning: an event never debiases itself
//     debias_learn(slate)                    when the windows of a request have closed
//
// Estimators, m the value expected in this context before the item is chosen:
//
//     none              n~ = n, bit for bit
//     position          m = decayed mean of n at (surface, position), shrunk to the global mean
//     position_sgd      the same as a table moved by the gradient of (m - n)^2
//     user              m = W q + b on the user's query vector, loss (m - n)^2 on m as it is
//     user_mean         m = decayed mean of the user's n, shrunk to the global mean
//     combined          m = W q + w p + b, p the table of position_sgd; both have their own loss
//     pbm               n~ = n min(1 / theta, cap), theta examination of (surface, position)
//     propensity        n~ = n min(1 / p / mean(1 / p), cap), p as logged; n without one
//
// The first six give n~ by a residual form (model/value.h): the ratio is n / max(m / g, floor), at
// most cap, g the global mean, so a lift of 1 is a value like any other's; difference, positive
// part and z-score are in units of n, the floor of the last in units of the global deviation.
//
// Isolation: estimators are moved by their own losses alone, at their own rates. Nothing here has
// a gradient for q, for towers or for weights, and the floors are in the ratio, never in a loss:
// an estimate below the floor learns like any other.
//
// State is plain data without pointers and may lie in a column; all zeros is where it starts. What
// is per user and per item lies in columns of the caller's by row, zeros for a new row, and W
// beside them: debias_linear_floats(D) floats. One thread; no clock, no randomness.
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "model/position_model.h"
#include "model/value.h"

enum debias_kind {
    DEBIAS_NONE,
    DEBIAS_POSITION,
    DEBIAS_POSITION_SGD,
    DEBIAS_USER,
    DEBIAS_USER_MEAN,
    DEBIAS_COMBINED,
    DEBIAS_PBM,
    DEBIAS_PROPENSITY,
    DEBIAS_KINDS,
};

// By kind, as in the list above.
extern const char *const debias_names[DEBIAS_KINDS];

struct debias_options {
    enum debias_kind kind;
    enum value_residual form;
    // For comparison: n~ = n / max(m, 1e-3), without a cap. Weights by VALUE_SEED belong to it.
    bool seed_form;
    float half_life;      // of means and of examination, in impressions at one position
    float user_half_life; // in impressions of one user
    float prior_weight;   // of the global mean in the mean of a position, in impressions
    float user_prior_weight;
    float rate;  // of tables and of W, for each slate
    float floor; // of m, as a fraction of the global mean; of sd, of the global deviation
    float cap;   // on a ratio and on inverse propensities
};

// pbm, form ratio, half-lives 500000 and 200, priors 20 and 20, rate 0.002, floor 0.05, cap 10.
extern const struct debias_options debias_defaults;

// ---- state ---------------------------------------------------------------------------------

// A mean with exponential forgetting.
struct debias_mean {
    float sum, square, weight;
};

void debias_mean_add(struct debias_mean *m, float decay, float value);
// With a prior that counts as prior_weight values; the prior itself when there is neither.
float debias_mean_of(const struct debias_mean *m, float prior, float prior_weight);
// The deviation around that mean; the prior's is prior_sd.
float debias_deviation_of(const struct debias_mean *m, float prior, float prior_sd,
                          float prior_weight);

// What relevance is told from, beside the position: see debias.c.
enum { DEBIAS_FEATURES = 5 };

struct debias_bucket {
    struct debias_mean value;
    float table; // of position_sgd and combined; starts at the global mean
    bool table_started;
    // Examination of an item whose features are average for this position, up to a factor that all
    // positions share, and how much the stream has told of it.
    float examined, information;
    float engaged, shown; // decayed counts
    float feature[DEBIAS_FEATURES];
};

struct debias_state {
    struct debias_mean global;
    struct debias_mean inverse; // of logged propensities
    struct debias_bucket bucket[SURFACES_MAX][POSITION_BUCKETS];
    // Examination by position, relative to the first position of the surface; 0: unknown.
    float theta[SURFACES_MAX][POSITION_BUCKETS];
    // Relevance: log gamma = intercept + w . (features - the position's average).
    float intercept;
    float w[DEBIAS_FEATURES];
    double information[DEBIAS_FEATURES][DEBIAS_FEATURES];
    struct debias_mean spread[DEBIAS_FEATURES]; // of features inside slates
    struct debias_mean engaged_rate;            // engagements for each item examined
    bool linear_started, relevance_started;
};

// Per user, by row.
struct debias_user {
    struct debias_mean value;
};

// Per item, by row.
struct debias_item {
    float shown, examined, engaged; // decayed counts; examined: sum of theta
};

// W, the position's weight, b.
static inline size_t debias_linear_floats(size_t D)
{
    return D + 2;
}

// ---- use -----------------------------------------------------------------------------------

// Where a value was made. q (D) as of the impression.
struct debias_context {
    int surface;      // below SURFACES_MAX
    int position;     // -1 unknown
    float propensity; // 0 not logged
    const struct debias_user *user;
    const float *q;
};

// n~. Reads state, moves nothing.
float debias_value(const struct debias_options *o, const struct debias_state *s, int D,
                   const float *linear, const struct debias_context *c, float net);
// m, for calibration by position and by activity; NAN for pbm, propensity and none.
float debias_mean_at(const struct debias_options *o, const struct debias_state *s, int D,
                     const float *linear, const struct debias_context *c);

// One item of a slate whose windows have closed; earlier labels would be biased low.
struct debias_row {
    float net;
    bool engaged;             // any label
    int position;             // -1 unknown
    float propensity;         // 0 not logged
    float retrieval, ranker;  // scores as of before learning; NAN: none
    struct debias_item *item; // updated
};

// Learns from one slate: n items that were shown to one user on one surface, at most
// SLATE_ITEMS_MAX. All estimators that o->kind needs, and the means that all share. Only slates of
// kind SLATE_CLOSED that are not repeated, each once. q and linear are read by user and combined
// alone, the rows' items by pbm alone; a slate of one item tells nothing of relevance.
void debias_learn(const struct debias_options *o, struct debias_state *s, int D, float *linear,
                  struct debias_user *user, const float *q, int surface, int n,
                  const struct debias_row *rows);

// ---- squared losses ------------------------------------------------------------------------

// The estimators' own losses as functions of arrays: the SUM over rows of (estimate - value)^2,
// paired row by row, on the estimate before any floor. Estimates are overwritten, gradients added
// to. No model uses them yet: debias_learn takes its steps with rates of its own, row by row for
// the table and normalised by the length of q for W.
//
//     estimate_i = table[bucket_i]
double debias_table_forward(int B, const int *bucket, const float *table, const float *value,
                            float *estimate);
void debias_table_backward(int B, const int *bucket, const float *estimate, const float *value,
                           float *dtable);
//     estimate_i = W . U_i + w p_i + b        linear (D + 2): W, w, b. p (B) may be NULL: 0.
// U and p are constants: there is no gradient for them.
double debias_linear_forward(int B, int D, const float *U, const float *p, const float *linear,
                             const float *value, float *estimate);
void debias_linear_backward(int B, int D, const float *U, const float *p, const float *estimate,
                            const float *value, float *dlinear);
