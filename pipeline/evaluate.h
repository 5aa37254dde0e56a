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
// Of slates whose windows have closed a share is taken in the same way:
//
//   - One that the ranker scored is compared with it: overlap@k is how many of the ranker's first k
//     are among the model's, inside the slate (NAN of model/slate_metrics.h left out) and over the
//     whole corpus; rank correlation is Spearman's inside the slate.
//   - What the model expects an item shown to be worth (enum expectation) is compared with what it
//     was worth, by the position at which it was shown and by how much its user had engaged before:
//     an estimator is calibrated when both means agree in every row. Each request counts once.
//
// Scoring changes nothing that is learned. Popularity, activity and the windows are columns, so a
// restart goes on with them. A share of 0 is no evaluation at all: no corpus is read, nothing is
// counted. One thread, the trainer's.
#pragma once

#include "model/two_tower.h"
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
};

// Buckets, and their names by lower end. An item without a position is of the last one.
enum { BY_POPULARITY = 10, BY_AGE = 9, BY_POSITION = 11, BY_ACTIVITY = 10 };
extern const char *const evaluation_popularity_names[BY_POPULARITY]; // deciles, most popular first
extern const char *const evaluation_age_names[BY_AGE]; // since the item got its row: "0", "1h" ..
extern const char *const evaluation_position_names[BY_POSITION]; // "0" .. "9", "10"
// Engagements of the user before the slate, beyond the length of a history as of now. The bounds
// are fixed and grow by powers of two, for deciles of users who come and go would have to be
// estimated.
extern const char *const evaluation_activity_names[BY_ACTIVITY]; // "0", "1", "2", "3", "5" ..

// Recall@100 by what sort of item the target is.
struct evaluation_groups {
    struct evaluation_group {
        double n, hits;
    } popularity[BY_POPULARITY], age[BY_AGE];
};

// Sums over slates. Agreement with the ranker: each with how many slates had something to say.
struct slate_evaluation {
    double n;
    double overlap_5, overlap_5_n, overlap_10, overlap_10_n; // inside slates
    double corpus_overlap_10, corpus_overlap_10_n;
    double rank_correlation, rank_correlation_n;
    struct calibration {
        double n, expected, observed; // items shown; sums of net values
    } position[EXPECTATIONS][BY_POSITION], activity[EXPECTATIONS][BY_ACTIVITY];
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
struct evaluation_groups evaluator_groups(const struct evaluator *e);
struct slate_evaluation evaluator_slates_total(const struct evaluator *e);
// Decayed with a half-life of 5,000 scored examples, or slates: what the live gauges show.
struct evaluation evaluator_window(const struct evaluator *e);
struct slate_evaluation evaluator_slates_window(const struct evaluator *e);
