// SPDX-License-Identifier: Apache-2.0
#include "model/retrieval_loss.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "model/arena.h"
#include "model/gemm.h"
#include "model/kernels.h"

static bool bit_get(const uint64_t *set, int j)
{
    return set[j / 64] >> (j % 64) & 1;
}

static void bit_put(uint64_t *set, int j)
{
    set[j / 64] |= UINT64_C(1) << (j % 64);
}

void retrieval_loss_init(struct retrieval_loss *l, const struct retrieval_options *options,
                         int queries_max, int candidates_max, int heads_max, struct arena *scratch)
{
    assert(queries_max > 0 && candidates_max >= queries_max && heads_max > 0);
    assert(options->temperature >= 0 && options->sampling_floor >= 0);
    const size_t n = (size_t)candidates_max;

    *l = (struct retrieval_loss){.options = *options,
                                 .queries_max = queries_max,
                                 .candidates_max = candidates_max,
                                 .heads_max = heads_max};
    if (l->options.temperature == 0)
        l->options.temperature = 1;
    if (l->options.sampling_floor == 0)
        l->options.sampling_floor = 1e-6f;
    l->G = arena_floats(scratch, (size_t)queries_max * (size_t)heads_max * n);
    l->row = arena_floats(scratch, n);
    l->correction = arena_floats(scratch, n);
    l->removed = arena_bytes(scratch, retrieval_words(candidates_max) * sizeof *l->removed);
    l->kept = arena_bytes(scratch, retrieval_words(candidates_max) * sizeof *l->kept);
    l->keys = arena_bytes(scratch, n * sizeof *l->keys);
}

static int heads_of(const struct retrieval_batch *b)
{
    return b->heads ? b->heads : 1;
}

const char *retrieval_loss_refuses(const struct retrieval_loss *l, const struct retrieval_batch *b)
{
    if (b->queries < 1 || b->queries > l->queries_max || b->candidates > l->candidates_max ||
        b->heads < 0 || b->heads > l->heads_max || b->D < 1)
        return "its sizes are not what the loss was made for";
    if (b->candidates < b->queries)
        return "it has fewer candidates than queries, so some query has no positive";
    if (l->options.accidental_hits && !b->ids)
        return "accidental hits are to be removed but it has no candidate ids";
    for (int i = 0; b->weight && i < b->queries; i++)
        if (!isfinite(b->weight[i]))
            return "a sample weight is not a number";
    return NULL;
}

void retrieval_loss_correction(int n, const float *sampling, float floor, float *correction)
{
    for (int j = 0; j < n; j++)
        correction[j] = -logf(fminf(fmaxf(sampling[j], floor), 1));
}

int retrieval_loss_same_id(int n, const uint64_t *ids, int positive, uint64_t *removed)
{
    const uint64_t id = ids[positive];
    int same = -1; // the positive itself
    for (int start = 0; start < n; start += 64) {
        const int end = n - start < 64 ? n : start + 64;
        uint64_t word = 0;
        for (int j = start; j < end; j++)
            word |= (uint64_t)(ids[j] == id) << (j - start);
        same += __builtin_popcountll(word);
        removed[start / 64] |= word;
    }
    removed[positive / 64] &= ~(UINT64_C(1) << (positive % 64));
    return same;
}

// A key that is larger the earlier its column comes in the order of topk.h; no two are equal.
static uint64_t mining_key(float score, int column)
{
    uint32_t bits;
    score += 0; // -0 becomes 0: they are equal
    memcpy(&bits, &score, sizeof bits);
    const uint32_t rising = bits >> 31 ? ~bits : bits | 0x80000000;
    return (uint64_t)(isnan(score) ? 0 : rising) << 32 | (uint32_t)~column;
}

// Moves the k largest of n keys to the front, in no order, by Hoare's selection: linear on average.
// A heap of k made mining ten times as long as everything else together (k = 100, n = 1024).
static void select_largest(uint64_t *keys, int n, int k)
{
    int low = 0, high = n - 1;
    while (low < high) {
        const uint64_t pivot = keys[low + (high - low) / 2];
        int i = low, j = high;
        while (i <= j) {
            while (keys[i] > pivot)
                i++;
            while (keys[j] < pivot)
                j--;
            if (i <= j) {
                const uint64_t swap = keys[i];
                keys[i++] = keys[j];
                keys[j--] = swap;
            }
        }
        if (k <= j)
            high = j;
        else if (k > i)
            low = i;
        else
            return;
    }
}

void retrieval_loss_mine(int n, const float *scores, int positive, int k, uint64_t *keys,
                         uint64_t *kept)
{
    int count = 0;
    for (int j = 0; j < n; j++) {
        keys[count] = mining_key(scores[j], j);
        count += j != positive;
    }
    if (k < count)
        select_largest(keys, count, k);
    memset(kept, 0, retrieval_words(n) * sizeof *kept);
    bit_put(kept, positive);
    for (int i = 0; i < k && i < count; i++)
        bit_put(kept, (int)~(uint32_t)keys[i]);
}

// A row whose positive is masked out teaches nothing.
static bool row_drops(const struct retrieval_batch *b, int i)
{
    return b->allowed && !bit_get(b->allowed + (size_t)i * retrieval_words(b->candidates), i);
}

// Steps 3 and 4. Bits past the last column stay 0.
static void remove_columns(struct retrieval_loss *l, const struct retrieval_batch *b, int i)
{
    const size_t words = retrieval_words(b->candidates);
    const int past = b->candidates % 64;

    memset(l->removed, 0, words * sizeof *l->removed);
    if (l->options.accidental_hits)
        l->removed_by_id += (uint64_t)retrieval_loss_same_id(b->candidates, b->ids, i, l->removed);
    if (!b->allowed)
        return;
    for (size_t w = 0; w < words; w++) {
        uint64_t masked = ~b->allowed[(size_t)i * words + w];
        if (past && w == words - 1)
            masked &= (UINT64_C(1) << past) - 1;
        l->removed_by_mask += (uint64_t)__builtin_popcountll(masked);
        l->removed[w] |= masked;
    }
}

// Sets the columns whose bit equals `where` to -inf. Bits are taken one by one: mostly few columns
// leave, and looking at each cost as much as the exponentials.
static void put_minus_infinity(int n, const uint64_t *set, bool where, float *row)
{
    for (int start = 0; start < n; start += 64) {
        uint64_t word = where ? set[start / 64] : ~set[start / 64];
        if (n - start < 64)
            word &= (UINT64_C(1) << (n - start)) - 1;
        for (; word; word &= word - 1)
            row[start + __builtin_ctzll(word)] = -INFINITY;
    }
}

// The best head of each candidate: the scores of step 0.
static void best_heads(int heads, int n, const float *scores, float *best)
{
    memcpy(best, scores, sizeof(float) * (size_t)n);
    for (int h = 1; h < heads; h++)
        for (int j = 0; j < n; j++) {
            const float score = scores[(size_t)h * (size_t)n + (size_t)j];
            best[j] = score > best[j] ? score : best[j];
        }
}

// Replaces the heads' scores by their gradients: the row's gradient where they were the best.
static void share_among_heads(int heads, int n, const float *gradient, float *scores)
{
    for (size_t j = 0; j < (size_t)n; j++) {
        float best = -INFINITY;
        int ties = 0;
        for (size_t h = 0; h < (size_t)heads; h++) {
            const float score = scores[h * (size_t)n + j];
            ties = score > best ? 1 : ties + (score == best);
            best = score > best ? score : best;
        }
        for (size_t h = 0; h < (size_t)heads; h++) {
            float *score = &scores[h * (size_t)n + j];
            *score = *score == best ? gradient[j] / (float)ties : 0;
        }
    }
}

static void trace_row(const struct retrieval_loss *l, int i, int n)
{
    const size_t words = retrieval_words(n), at = (size_t)i * words;
    if (l->trace.removed)
        memcpy(l->trace.removed + at, l->removed, words * sizeof *l->removed);
    if (l->trace.kept)
        memcpy(l->trace.kept + at, l->kept, words * sizeof *l->kept);
}

static void trace_scores(float *to, int i, int n, const float *row)
{
    if (to)
        memcpy(to + (size_t)i * (size_t)n, row, sizeof(float) * (size_t)n);
}

// -log P of the positive, and what comes with it.
static double row_learn(int n, int positive, float *row)
{
    const float largest = kernels->max((size_t)n, row);
    const double score = (double)row[positive] - (double)largest;
    const float sum = kernels->exp_shifted((size_t)n, largest, row);
    kernels->scale((size_t)n, 1.0f / sum, row);
    row[positive] -= 1;
    return log((double)sum) - score;
}

// -log(1 - P) of the positive. By z = its score - log sum of exp of the others, for where P is
// nearly 1 nothing is left of 1 - P: P = sigma(z) and the loss is log(1 + e^z).
static double row_unlearn(int n, int positive, float *row)
{
    const double score = (double)row[positive];
    row[positive] = -INFINITY;
    const float largest = kernels->max((size_t)n, row);
    if (largest == -INFINITY) { // nothing to prefer to it
        memset(row, 0, sizeof(float) * (size_t)n);
        return 0;
    }
    const float sum = kernels->exp_shifted((size_t)n, largest, row);
    const double z = score - (log((double)sum) + (double)largest), e = exp(-fabs(z));
    const double P = (z < 0 ? e : 1) / (1 + e);
    kernels->scale((size_t)n, (float)(-P / (double)sum), row);
    row[positive] = (float)P;
    return fmax(z, 0) + log1p(e);
}

// Steps 1 to 6 on the scores of one row, which become dL/dscore before its weight and the norm.
// Returns the row's loss; the columns that are left are -inf on the way, and exp makes them 0.
static double row_forward(struct retrieval_loss *l, const struct retrieval_batch *b, int i,
                          double weight, float *row)
{
    const int n = b->candidates, k = l->options.hard_negatives;
    const size_t columns = (size_t)n;
    const bool mining = k > 0 && k < n - 1;

    trace_scores(l->trace.scores, i, n, row);
    kernels->scale(columns, 1.0f / l->options.temperature, row);
    if (b->sampling)
        kernels->axpy(columns, 1, l->correction, row);
    trace_scores(l->trace.corrected, i, n, row);

    remove_columns(l, b, i);
    if (l->options.accidental_hits || b->allowed)
        put_minus_infinity(n, l->removed, true, row);
    memset(l->kept, 0xff, retrieval_words(n) * sizeof *l->kept);
    if (mining && !row_drops(b, i)) {
        retrieval_loss_mine(n, row, i, k, l->keys, l->kept);
        put_minus_infinity(n, l->kept, false, row);
    }
    trace_row(l, i, n);
    if (row_drops(b, i)) {
        memset(row, 0, sizeof(float) * columns);
        return 0;
    }

    return weight < 0 ? row_unlearn(n, i, row) : row_learn(n, i, row);
}

void retrieval_loss_forward(struct retrieval_loss *l, const struct retrieval_batch *b,
                            float *row_loss)
{
    const int heads = heads_of(b), n = b->candidates;
    assert(!retrieval_loss_refuses(l, b));

    l->loss = l->weight = 0;
    l->rows_dropped = 0;
    l->removed_by_id = l->removed_by_mask = 0;
    for (int i = 0; i < b->queries; i++) {
        l->rows_dropped += row_drops(b, i);
        if (!row_drops(b, i))
            l->weight += b->weight ? fabs((double)b->weight[i]) : 1;
    }
    const double norms[] = {
        [RETRIEVAL_BY_WEIGHT] = l->weight, [RETRIEVAL_SUM] = 1, [RETRIEVAL_MEAN] = b->queries};
    const double norm = norms[l->options.reduction];

    if (b->sampling)
        retrieval_loss_correction(n, b->sampling, l->options.sampling_floor, l->correction);
    memset(l->G, 0, sizeof(float) * (size_t)b->queries * (size_t)heads * (size_t)n);
    gemm_nt(b->queries * heads, n, b->D, b->Q, b->C, l->G);

    for (int i = 0; i < b->queries; i++) {
        float *scores = l->G + (size_t)i * (size_t)heads * (size_t)n;
        float *row = heads > 1 ? l->row : scores;
        if (heads > 1)
            best_heads(heads, n, scores, row);

        const double weight = b->weight ? fabs((double)b->weight[i]) : 1;
        const double loss = row_forward(l, b, i, b->weight ? (double)b->weight[i] : 1, row);
        if (row_loss)
            row_loss[i] = (float)loss;
        if (weight > 0 && norm > 0) {
            l->loss += weight * loss / norm;
            kernels->scale((size_t)n, (float)(weight / norm) / l->options.temperature, row);
        } else {
            // Not multiplied by 0: a NaN in a row that does not count must not spread.
            memset(row, 0, sizeof(float) * (size_t)n);
        }
        if (heads > 1)
            share_among_heads(heads, n, row, scores);
    }
}

void retrieval_loss_backward(const struct retrieval_loss *l, const struct retrieval_batch *b,
                             float *dQ, float *dC)
{
    const int rows = b->queries * heads_of(b), n = b->candidates;
    if (dQ)
        gemm_nn(rows, b->D, n, l->G, b->C, dQ); // dQ += G C
    if (dC)
        gemm_tn(n, b->D, rows, l->G, b->Q, dC); // dC += G^T Q
}
