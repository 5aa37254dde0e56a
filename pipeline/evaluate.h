// SPDX-License-Identifier: Apache-2.0
//
// Prequential evaluation: predict, then learn. The protocol, the same for `eval` on a recorded
// stream and for the live stream:
//
//   - Examples come in chunks (eval.chunk; `eval` takes 10,000, the live stream one batch). A share
//     of a chunk's positives, evenly spaced, is scored with the parameters from before the chunk;
//     then the whole chunk is learned. A share below 64 of them is saved up, since one pass over
//     the corpus costs the same for 64 as for one.
//   - The history of an example is what its user engaged with strictly earlier in time, inside the
//     chunk too: histories are data, parameters are not.
//   - Every item of the corpus competes, nothing is filtered: for `eval` every item id that occurs
//     in an impression or an engagement of the recorded stream, whether seen yet or not; live,
//     every item that has a row.
//   - Rank = items with a higher score + half of those with the same score. A hit at k is a rank
//     below k. NDCG@10 = 1 / log2(rank + 2) for a rank below 10. Log loss is over the softmax of
//     all scores; 1e6 stands for one that is not finite.
//   - Decayed popularity is scored by the same protocol: engagements decayed with a half-life in
//     examples, as of the start of the chunk.
//
//   - A slate that the ranker scored is compared with it before it is learned, a share of them as
//   of
//     the examples: overlap@k is how many of the ranker's first k are among the model's, inside the
//     slate (NAN of model/slate_metrics.h left out) and over the whole corpus; rank correlation is
//     Spearman's inside the slate.
//
// Scoring changes nothing that is learned. Popularity and the windows are columns, so a restart
// goes on with them. One thread, the trainer's.
#pragma once

#include "pipeline/rows.h"

struct evaluator;

struct evaluator_options {
    double sampling; // share of the examples, 0..1
    double popularity_half_life;
    int chunk_max; // examples per chunk
    // The corpus: ids, or NULL for every item that has a row.
    const struct id *corpus;
    size_t corpus_n;
};

// Sums over what was scored.
struct evaluation {
    double n;
    double recall_1, recall_5, recall_10, recall_50, recall_100, ndcg_10, log_loss;
    double popularity_recall_10, popularity_recall_100;
    // Of the less popular half of the items, as of the start of the chunk: how many examples have
    // such a target, and how many of those are hits.
    double tail_n, tail_recall_100;
    // Agreement with the ranker: sums, each with how many slates had something to say.
    double overlap_5, overlap_5_n, overlap_10, overlap_10_n; // inside slates
    double corpus_overlap_10, corpus_overlap_10_n;
    double rank_correlation, rank_correlation_n;
};

// corpus and rows must outlive it. 0 or -ENOMEM.
int evaluator_open(struct evaluator **e, struct columns *s, struct rows *rows,
                   const struct evaluator_options *options);
void evaluator_close(struct evaluator *e);

// A chunk, before it is learned: see trainer_score_fn.
void evaluator_score(struct evaluator *e, int n, const struct example *examples,
                     const float *features);

// Slates, before they are learned: see trainer_score_slates_fn.
void evaluator_score_slates(struct evaluator *e, int n, const struct slate *slates,
                            const float *scores);

struct evaluation evaluator_total(const struct evaluator *e); // since the state began
// Decayed with a half-life of 5,000 scored examples: what the live gauges show.
struct evaluation evaluator_window(const struct evaluator *e);
