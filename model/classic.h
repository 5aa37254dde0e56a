// SPDX-License-Identifier: Apache-2.0
//
// The classic two-tower model (Yi et al., RecSys 2019; tfrs.tasks.Retrieval):
//
//     q   = Wu [Uid[u] ; MLP(user features) ; z ; m] + bu          the user tower, model/tower.h
//     v   = Wi [E[c]   ; MLP(item features)] + bi                  the item tower
//     s   = q . v + b[c]                                           b: a bias for each item
//
// The MLP is there when the features have a width, [z ; m] when attention is on: the encoder of
// model/attention.h over the rows E of the newest `history` engagements, so that one item table
// learns from both towers. It has one layer (then only the newest event asks, and the cost is
// linear in the history), 4 heads when dim is a multiple of 4 and 1 otherwise, the residual, and
// standard positions (MovieLens-1M, one pass, dim 64: recall@100 0.493; 0.468 without positions,
// 0.245 without history). Without features and history a tower is one linear layer over the id row;
// it is kept, so that every form has the same parameters at its end.
//
// One step: softmax over the batch (model/retrieval_loss.h with all its options) from each positive
// example over the items of all examples; an example without an engagement is a column only. The
// loss is the SUM over the positives: Adagrad's accumulator starts at a fixed size, and the mean's
// gradients, batch times smaller, would not move a row for a long time; Adam does not care. A batch
// without a positive changes nothing at all. A row that occurs more than once, as a candidate, in
// histories or both, is updated once, from the sum of its gradients.
//
// A user's other positives in the batch may be masked, in whatever column their items stand. With a
// memory queries learn from the columns of earlier batches as well, each with the correction that
// it had then, and those with the query's own item masked.
//
// logQ: each item keeps one cell of model/frequency.h, whose clock is model_state.examples; the
// batch's own occurrences count from the next step on. An item never seen before is taken to be an
// average one. Counts and priors of the recipe are not kept.
#pragma once

#include "model/tables.h"

// The dense parameters: the weight and the bias of each linear layer there is. Each begins on a
// multiple of 16 floats. What their optimizers keep lies behind all of them: that of the parameter
// at offset p at dense_size + 2 p.
size_t classic_dense_size(const struct two_tower_options *o); // floats
bool classic_dense(const struct two_tower_options *o, int i, struct dense_parameter *p);
