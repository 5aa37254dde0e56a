// SPDX-License-Identifier: Apache-2.0
//
// Exact top-k by inner product, and the hit metrics measured with it.
//
// One order everywhere: score descending, then lower row; a NaN comes after every number. The
// answer depends neither on how the corpus is cut into chunks nor on where a vector lies in its
// chunk: every product is made over whole blocks of TOPK_BLOCK rows, so that two equal vectors get
// equal bits and the lower row wins.
//
//     Q (B, D)   queries            C (n, D)   a chunk of the corpus
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct arena;

enum { TOPK_BLOCK = 256 };

struct topk_entry {
    float score;
    uint32_t row;
};

// True when a comes before b.
bool topk_before(struct topk_entry a, struct topk_entry b);
// Keeps the first k in that order of all entries pushed. heap holds *count <= k entries, the last
// in order on top; k > 0.
void topk_push(struct topk_entry *heap, int *count, int k, struct topk_entry entry);
// From heap order to the order above.
void topk_sort(struct topk_entry *heap, int count);

// A search in progress: begin, then scan each chunk of the corpus, then finish.
struct topk {
    int B_max, k_max, D;
    int B, k;
    struct topk_entry *entries; // (B, k_max); after topk_finish query b has counts[b] in order
    int *counts;                // (B)
    float *block;               // (TOPK_BLOCK, D): the last rows of a chunk, padded
    float *scores;              // (B_max, TOPK_BLOCK)
    uint64_t nan_scores;        // how many were seen since topk_begin
};

// What a query must not get. ids are those of the chunk; a query has few exclusions (what its user
// has seen), so they are searched one by one, and only for rows that would enter the result.
struct topk_exclusions {
    const uint64_t *ids;     // excluded by query 0, then by query 1 ..
    const uint32_t *offsets; // (B + 1): query b excludes ids[offsets[b]] to ids[offsets[b + 1]]
};

void topk_init(struct topk *t, int B_max, int k_max, int D, struct arena *scratch);
void topk_begin(struct topk *t, int B, int k);
// Row r of C is row first + r of the corpus. ids (n) may be NULL: then an id is the corpus row.
// exclusions may be NULL.
void topk_scan(struct topk *t, const float *Q, uint32_t first, uint32_t n, const float *C,
               const uint64_t *ids, const struct topk_exclusions *exclusions);
// Fewer than k come back when the corpus, after exclusions, has fewer.
void topk_finish(struct topk *t);
// a (B): the score of query i and row i of V (B, D), to the bit what topk_scan would find.
void topk_score_pairs(struct topk *t, int B, const float *Q, const float *V, float *a);

// Places, counted from 0; a hit at k is a place below k. TOPK_MISS is the place of a miss.
#define TOPK_MISS UINT32_MAX
// By id: the first slot that holds it. A NaN score marks padding, which never matches.
uint32_t topk_place_of_id(int count, const uint64_t *ids, const float *scores, uint64_t id);
// By score: how many are strictly greater, so ties count for the model, and the item need not be
// in the corpus. Any score that is not finite makes it a miss.
uint32_t topk_place_of_score(int count, const float *scores, float score);
// sum w hit / sum w over n places; 0 when nothing weighs. weight NULL means 1 for each.
double topk_hit_mean(int n, const uint32_t *place, const float *weight, uint32_t k);
