// SPDX-License-Identifier: Apache-2.0
//
// The default model. For a user u with history h_0 (newest) .. h_{m-1}, m <= H, row vectors:
//
//     q      = z0 mean(E[h_k], k < g) A0 + z1 sum_k w_k E[h_k] A1 + z2 (1/m sum_k E[h_k]) A2
//              + z3 sum_k w_k F[h_k] + z4 Uid[u],         z_j = exp(gate[bucket(m)][j])
//     w_k    = exp(-0.25 k) / sum_j exp(-0.25 j)
//     s(u,c) = q . E[c] + b[c] + sum_s pa[s] lp_s(c) + rep(u,c)
//     lp_s   = log((n_s(c) + 0.5) / (sum n_s + 0.5 N)) + log N, n_s decayed counts, three
//     half-lives rep    = rho[bucket(k)] + rho[7] log(times c occurs), when c is among the newest
//     `repeat`
//              engagements and k is the position of its newest occurrence; else 0. rho is the sum
//              of a part for all and of one for histories of this length, rho_length[bucket(m)]
//     bucket = {0}, {1}, {2,3}, {4..7}, {8..15}, {16..31}, {32..63}, {64}
//
// g is how many of the newest share one time: within a basket there is no order. F, the context
// table, starts at zero and adds to the tied table what an item says of the next one beyond what
// they have in common. On ml1m (eval.sampling 0.5) recall@10/@100 go from 0.1755/0.5706 to
// 0.1796/0.5736 with g, and to 0.1866/0.5817 with F and l2 0.01 in place of 0.03. A mean of one
// item says less than one of twenty, and how much less is learned: with the gates 0.1954/0.5972,
// with rho_length 0.1960/0.5984. A starts as the identity; from 0.6 of it 0.001 is lost. The third
// and fastest scale of popularity is for news: mind-sample5k (chunks of 64) goes from 0.1123/0.3669
// to 0.2019/0.4780 with a half-life of 300 engagements, and nothing else changes by 0.004.
//
// One step: softmax cross-entropy, each row by its weight (model/row_weights.h; below 0 it is
// unlearned), summed over the batch, over the unique set of the batch's targets and uniformly drawn
// known items, each corrected by the logarithm of its chance to be in that set: log(1 - exp(-(n
// P(c) + uniform / N))). What a user engaged with at the same time as with the target is left out:
// on baskets of groceries 0.0791/0.2248 becomes 0.0846/0.2319. If what came later was left out too,
// ml1m would lose 0.002/0.002. Tables by row-wise Adagrad, A by Adam.
//
// A new item starts beside its like: its row is the random start plus f W, where f are its
// features, scaled to length 1, and W (item_features, d) predicts the rows of targets from theirs
// by least squares. So serving knows no features, and without features no bit changes. On drifting
// topics with new items 0.1673/0.3561 becomes 0.1886/0.4429; W added to E for good gave
// 0.1819/0.4048.
//
// With options.encoder attention over the history adds to q (model/history_encoder.h).
//
// Options: the correction (all forms of sampled_softmax.h but logq leave the target as it is;
// candidates are a set, so COUNTED and REFINED learn as MNS does); the mask of what the same user
// engaged with elsewhere in the batch; a memory of earlier batches' candidates, from which queries
// learn beside the batch's own, as one set of the rate of all its draws; and users' rows that move
// by OneBP, which suits q for it lies in the items' space.
//
// The functions here are pure, so that the publisher and readers of a snapshot compute what the
// trainer computes. Dense parameters: A (3d, d), rho (8), pa (3), rho_length (8, 8), gate (8, 5),
// the encoder's, W (item_features, d), one after the other.
#pragma once

#include "model/tables.h"

enum { RECIPE_BUCKETS = 8, RHO_TIMES = RECIPE_BUCKETS - 1 };
enum { GATE_NEWEST, GATE_DECAYED, GATE_MEAN, GATE_CONTEXT, GATE_USER, RECIPE_GATES };

struct recipe_dense {
    const float *A;          // (3d, d): A0, A1, A2 below each other
    const float *rho;        // (8): by position; the last, of the times
    const float *pa;         // (3): weights of popularity by its three time scales
    const float *rho_length; // (8, 8): by length, what is added to rho
    const float *gate;       // (8, 5): by length, logarithms
};

size_t recipe_dense_size(const struct two_tower_options *o); // floats, without W
size_t recipe_encoder_offset(int d);                         // of the encoder's parameters
struct recipe_dense recipe_dense_at(const float *dense, int d);

// q (d + 1) for one user, the last element 1. user: Uid (d), NULL for an unknown user.
void recipe_query(const struct two_tower_options *o, const float *dense, const struct recent *r,
                  const float *user, float *q);
// b[c] + sum_s pa[s] lp_s(c): the last element of the item's vector. N: known items.
float recipe_extra(const struct two_tower_options *o, const struct recipe_dense *p,
                   const struct model_state *state, const struct item_state *item, double N);
// The repeat term for a history of m rows, newest first: at most one entry per distinct row.
int recipe_bonuses(const struct recipe_dense *p, int m, const uint32_t *history,
                   struct bonus *bonuses);
// Adds to a new item's row (d) what its features f (item_features) predict.
void recipe_item_start(const struct two_tower_options *o, const float *dense, const float *f,
                       float *row);
