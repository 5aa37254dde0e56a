// SPDX-License-Identifier: Apache-2.0
//
// The classic two-tower model (objectives A.1, A.3): [id row ; features through an MLP ; history
// summary] -> one linear layer, for users and for items, and in-batch softmax with the options of
// tfrs.tasks.Retrieval. Examples without an engagement are columns of the batch (negatives) with
// weight 0 as rows. An item bias trained with the loss is the last element of the item's vector.
//
// Dense parameters, in this order: user tower, item tower (when there are item features), history
// encoder (when attention is on). One thread; the pure functions on a view may run on any.
#pragma once

#include "model/tables.h"

struct classic;

size_t classic_dense_size(const struct two_tower_options *o); // floats
bool classic_dense(const struct two_tower_options *o, int i, struct dense_parameter *p);

// Writes the initial dense parameters into the tables' dense column. NULL when memory is short.
struct classic *classic_open(const struct two_tower_options *o, struct tables *t, size_t items_max,
                             size_t users_max);
void classic_close(struct classic *c);
struct step_report classic_learn(struct classic *c, struct tables *t, int n,
                                 const struct example *examples, const float *features);

void classic_items(const struct view *v, int n, const float *vectors,
                   const struct item_state *states, const float *features, float *V);
void classic_query(const struct view *v, int m, const float *const *history, const float *user,
                   const float *features, float *q);
