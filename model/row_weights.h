// SPDX-License-Identifier: Apache-2.0
//
// How much each engagement of a batch counts in the softmax: from what it is worth, less what
// position and user alone explain of it.
//
//     n_i = value of its task                           model/value.h; 0 for an action of no task;
//                                                       as it is when the batch is learned
//     n~_i = debias(n_i, context)                       model/debias.h, as learned before
//     a_i = n~_i / mean |n~|, within [-10, 10]          the running mean of those that are not 0
//
// So the weights are 1 on average, whatever values and estimators do: rates and L2 keep their
// meaning, and values that are all the same weigh nothing. A running percentile that limits them
// from above starts before the estimators know anything, and is too slow for them: on 21,000 clicks
// at 1 / k, capped inverse examination still weighed the first position 2.1 times what it should
// (mean divisor: 1.12).
//
// A weight below 0 is a signal to unlearn (model/sampled_softmax.h, model/retrieval_loss.h), a
// weight of 0 leaves the row out. The estimators learn from slates whose windows have closed, after
// those were used, and by losses of their own: no gradient leaves them.
//
// One thread. Everything lies in columns, opened only where weights can differ from 1.
#pragma once

#include "model/debias.h"
#include "model/tables.h"

// The scalars: the one unit of the column "weight.state".
struct row_weights_state {
    struct debias_mean usual; // of |n~|
    struct debias_state debias;
};

struct row_weights;
struct slate_batch;
struct step;

// Whether some weight can differ from 1, now or once values have changed.
bool row_weights_needed(const struct two_tower_options *o);
// 0 or -ENOMEM. options and value must outlive it; value (objectives.tasks) is read at each use.
int row_weights_open(struct row_weights **out, struct columns *s,
                     const struct two_tower_options *options, const float *value, size_t items_max,
                     size_t users_max);
void row_weights_close(struct row_weights *w); // w may be NULL
// Rows that have a new owner.
void row_weights_item_created(struct row_weights *w, uint32_t row);
void row_weights_user_created(struct row_weights *w, uint32_t row);

// The weights of the step's examples (n), valid until the next call. Forward has been run: a
// context is the query vector, too.
const float *row_weights_of(struct row_weights *w, const struct step *s);
// The batch was learned: the scale moves.
void row_weights_update(struct row_weights *w, const struct step *s);
// Slates that were used. net (rows): NAN for items not shown; teacher (rows): NAN for none.
void row_weights_learn(struct row_weights *w, const struct step *s, const struct slate_batch *b,
                       const float *net, const float *teacher);
// 1 / examination, capped, of each item of a slate into inverse (n_items), for who reads labels;
// returns it, or NULL when positions are not what is estimated.
const float *row_weights_examination(const struct row_weights *w, const struct slate *slate,
                                     float *inverse);
// What the estimator expects of each item of a slate that was shown, for the user's query q (d);
// NAN for the others, and for an estimator that expects no value.
void row_weights_expected(const struct row_weights *w, const struct slate *slate, const float *q,
                          float *expected);
const struct debias_state *row_weights_state(const struct row_weights *w);
