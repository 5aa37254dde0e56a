// SPDX-License-Identifier: Apache-2.0
//
// Sampled softmax over the candidates of a batch: what tfrs.tasks.Retrieval computes, in its order.
// Candidate i is the positive of query i, candidates beyond the queries are extra negatives of all.
//
//     0  s_ij = q_i . c_j; with several heads s_ij = max_h q_ih . c_j (maxsim)
//     1  s_ij /= temperature
//     2  s_ij -= log clip(p_j, floor, 1)   Yi et al. 2019, equation 4: every column, the positive's
//                                          too, and not divided by the temperature
//     3  accidental hits: candidate j != i with the id of candidate i leaves row i
//     4  the score mask: pairs that are not allowed leave
//     5  hard negatives: the positive and the k largest others stay
//     6  l_i = log sum_j exp(s_ij) - s_ii over the columns that stayed
//     7  loss = reduction of weight_i l_i
//
//     dL/d(q_i . c_j) = weight_i (P_ij - [i = j]) / temperature / norm, 0 for columns that left;
//     with heads it goes to the best head, in equal parts to heads that tie.
//
// A weight below 0 is an item to be unlearned (Welleck et al. 2020), by a loss whose gradient is
// bounded however wrong the model is: l_i = -log(1 - P_ii), weighted by |weight_i|. Its gradient is
// |weight_i| P_ii at the item, and -|weight_i| P_ii P_ij / (1 - P_ii) at the others; alone among
// its columns it teaches nothing.
//
// Where TFRS departs from its documentation or from sense, the documented behaviour is taken:
//
//     hard negatives <= 0             all are kept (TFRS keeps the positive alone and learns
//                                     nothing)
//     fewer candidates than queries   the batch is refused (a gradient without a positive)
//     ids longer than the queries     only the rows' own ids are compared as positives (a shape
//                                     error)
//     a positive that is masked out   the row is dropped and counted (a loss of 3.4e36)
//     a row masked out entirely       likewise: loss 0 and no gradient (log of the number of
//                                     columns)
//     removal                         by bits, then -inf (a large finite number is added)
//     reduction                       sum, mean or by weight, the default (sum, so that the step
//                                     grows with the batch)
//
// A candidate may stand for several columns that are alike but for whose positives they are: an
// item that occurs in a batch m times has one column and times m. In the row of one of them the
// positive is one copy, and the others are negatives, or accidental hits. That is step 2 with
// + log(times) instead of m columns. Of hard negatives it is one, with all its copies.
//
// Scores are never there as a whole, and neither are their gradients: model/batch_scores.h. Sizes:
// q queries, n candidates, heads, D.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/batch_scores.h"

struct arena;

enum retrieval_reduction {
    RETRIEVAL_BY_WEIGHT, // sum of |weight| l / sum of |weight|
    RETRIEVAL_SUM,
    RETRIEVAL_MEAN, // sum of |weight| l / q
};

struct retrieval_options {
    float temperature;    // > 0; 0 means 1
    float sampling_floor; // of p; 0 means 1e-6. Lower it where many items are rarer than that
    int hard_negatives;   // k; 0 or less keeps all
    bool accidental_hits; // remove them; the batch must have ids then
    enum retrieval_reduction reduction;
    enum batch_scores_precision precision;
};

// Sets of columns are bits, 64 to a word, column j being bit j % 64 of word j / 64.
static inline size_t retrieval_words(int candidates)
{
    return ((size_t)candidates + 63) / 64;
}

// Read only; every pointer but Q and C may be NULL.
struct retrieval_batch {
    int queries, candidates, heads, D; // heads 0 means 1
    const float *Q;                    // (q, heads, D)
    const float *C;                    // (n, D)
    const float *column;               // (n) added to the scores of step 0: what items have alone
    const uint32_t *positive;          // (q) the candidate of each query; NULL: i of query i
    const uint32_t *times;             // (n) >= 1: the columns it stands for
    const float *sampling;             // (n) p_j
    const uint64_t *ids;               // (n); NULL with times: all candidates are different
    const uint64_t *allowed;           // (q, retrieval_words(n)) the score mask, 1 = allowed
    const float *weight;               // (q), of any sign
};

// What a test wants to see of the steps; each pointer may be NULL.
struct retrieval_trace {
    float *scores;     // (q, n) after step 0
    float *corrected;  // (q, n) after step 2
    uint64_t *removed; // (q, words) after step 4
    uint64_t *kept;    // (q, words) after step 5
};

struct retrieval_loss {
    struct retrieval_options options;
    int queries_max, candidates_max, heads_max, D;
    // Of the last step.
    double loss;
    double weight;          // sum of |weight| over the rows that were not dropped
    int rows_dropped;       // their positive is masked out
    uint64_t removed_by_id; // pairs
    uint64_t removed_by_mask;
    struct retrieval_trace trace; // set by who wants it, before the step

    struct batch_scores scores;
    float *row, *correction;  // (n)
    uint64_t *removed, *kept; // (words)
    uint64_t *keys;           // (n) for mining
};

// Where the gradients are added; each may be NULL.
struct retrieval_gradient {
    float *dQ;      // (q, heads, D)
    float *dC;      // (n, D)
    float *dcolumn; // (n)
};

// Bytes to be had from the arena.
size_t retrieval_loss_bytes(const struct retrieval_options *options, int candidates_max, int D);
void retrieval_loss_init(struct retrieval_loss *l, const struct retrieval_options *options,
                         int queries_max, int candidates_max, int heads_max, int D,
                         struct arena *scratch);
// NULL, or why this batch must be refused, as half a sentence. The step asserts that it is NULL.
const char *retrieval_loss_refuses(const struct retrieval_loss *l, const struct retrieval_batch *b);
// Loss and gradients. row_loss (q) may be NULL: l_i without its weight, 0 for dropped rows.
void retrieval_loss_step(struct retrieval_loss *l, const struct retrieval_batch *b, float *row_loss,
                         const struct retrieval_gradient *gradient);

// The steps by themselves. correction (n) is overwritten: -log clip(p, floor, 1).
void retrieval_loss_correction(int n, const float *sampling, float floor, float *correction);
// Adds to the set the columns with the id of the positive, itself excepted; returns how many.
int retrieval_loss_same_id(int n, const uint64_t *ids, int positive, uint64_t *removed);
// Overwrites the set with the positive and the k first others in the order of topk.h (score
// descending, then lower column, NaN last). keys (n) is scratch.
void retrieval_loss_mine(int n, const float *scores, int positive, int k, uint64_t *keys,
                         uint64_t *kept);
