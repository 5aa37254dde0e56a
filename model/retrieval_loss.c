// SPDX-License-Identifier: Apache-2.0
#include "model/retrieval_loss.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "model/arena.h"
#include "model/kernels.h"

static bool bit_get(const uint64_t *set, int j)
{
    return set[j / 64] >> (j % 64) & 1;
}

static void bit_put(uint64_t *set, int j)
{
    set[j / 64] |= UINT64_C(1) << (j % 64);
}

size_t retrieval_loss_bytes(const struct retrieval_options *options, int candidates_max, int D)
{
    const size_t n = (size_t)candidates_max, arrays = 5;
    return batch_scores_bytes(options->precision, D, candidates_max) +
           n * (2 * sizeof(float) + sizeof(uint64_t)) +
           2 * retrieval_words(candidates_max) * sizeof(uint64_t) + arrays * 64;
}

void retrieval_loss_init(struct retrieval_loss *l, const struct retrieval_options *options,
                         int queries_max, int candidates_max, int heads_max, int D,
                         struct arena *scratch)
{
    assert(queries_max > 0 && candidates_max > 0 && heads_max > 0);
    assert(heads_max <= BATCH_SCORES_TILE);
    assert(options->temperature >= 0 && options->sampling_floor >= 0);
    const size_t n = (size_t)candidates_max;

    *l = (struct retrieval_loss){.options = *options,
                                 .queries_max = queries_max,
                                 .candidates_max = candidates_max,
                                 .heads_max = heads_max,
                                 .D = D};
    if (l->options.temperature == 0)
        l->options.temperature = 1;
    if (l->options.sampling_floor == 0)
        l->options.sampling_floor = 1e-6f;
    batch_scores_init(&l->scores, options->precision, D, candidates_max, scratch);
    l->row = arena_floats(scratch, n);
    l->correction = arena_floats(scratch, n);
    l->removed = arena_bytes(scratch, retrieval_words(candidates_max) * sizeof *l->removed);
    l->kept = arena_bytes(scratch, retrieval_words(candidates_max) * sizeof *l->kept);
    l->keys = arena_bytes(scratch, n * sizeof *l->keys);
}

static int positive_of(const struct retrieval_batch *b, int i)
{
    return b->positive ? (int)b->positive[i] : i;
}

static uint32_t times_of(const struct retrieval_batch *b, int j)
{
    return b->times ? b->times[j] : 1;
}

static int heads_of(const struct retrieval_batch *b)
{
    return b->heads ? b->heads : 1;
}

const char *retrieval_loss_refuses(const struct retrieval_loss *l, const struct retrieval_batch *b)
{
    if (b->queries < 1 || b->queries > l->queries_max || b->candidates > l->candidates_max ||
        b->heads < 0 || b->heads > l->heads_max || b->D != l->D)
        return "its sizes are not what the loss was made for";
    if (b->candidates < b->queries && !b->positive)
        return "it has fewer candidates than queries, so some query has no positive";
    if (l->options.accidental_hits && !b->ids && !b->times)
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
    return b->allowed &&
           !bit_get(b->allowed + (size_t)i * retrieval_words(b->candidates), positive_of(b, i));
}

// The columns that a set of candidates stands for.
static uint64_t columns_of(const struct retrieval_batch *b, size_t word, uint64_t set)
{
    uint64_t columns = 0;
    if (!b->times)
        return (uint64_t)__builtin_popcountll(set);
    for (; set; set &= set - 1)
        columns += b->times[word * 64 + (size_t)__builtin_ctzll(set)];
    return columns;
}

// Steps 3 and 4. Bits past the last column stay 0. False: all columns stay.
static bool remove_columns(struct retrieval_loss *l, const struct retrieval_batch *b, int i)
{
    const size_t words = retrieval_words(b->candidates);
    const int past = b->candidates % 64, positive = positive_of(b, i);
    int same = 0;

    memset(l->removed, 0, words * sizeof *l->removed);
    if (l->options.accidental_hits) {
        same = b->ids ? retrieval_loss_same_id(b->candidates, b->ids, positive, l->removed) : 0;
        for (size_t w = 0; same && w < words; w++)
            l->removed_by_id += columns_of(b, w, l->removed[w]);
        l->removed_by_id += times_of(b, positive) - 1;
    }
    for (size_t w = 0; b->allowed && w < words; w++) {
        uint64_t masked = ~b->allowed[(size_t)i * words + w];
        if (past && w == words - 1)
            masked &= (UINT64_C(1) << past) - 1;
        l->removed_by_mask += columns_of(b, w, masked);
        l->removed[w] |= masked;
    }
    return same > 0 || b->allowed;
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
static void best_heads(int heads, int n, const float *scores, size_t stride, float *best)
{
    memcpy(best, scores, sizeof(float) * (size_t)n);
    for (int h = 1; h < heads; h++)
        for (int j = 0; j < n; j++) {
            const float score = scores[(size_t)h * stride + (size_t)j];
            best[j] = score > best[j] ? score : best[j];
        }
}

// Replaces the heads' scores by their gradients: the row's gradient where they were the best.
static void share_among_heads(int heads, int n, const float *gradient, float *scores, size_t stride)
{
    for (size_t j = 0; j < (size_t)n; j++) {
        float best = -INFINITY;
        int ties = 0;
        for (size_t h = 0; h < (size_t)heads; h++) {
            const float score = scores[h * stride + j];
            ties = score > best ? 1 : ties + (score == best);
            best = score > best ? score : best;
        }
        for (size_t h = 0; h < (size_t)heads; h++) {
            float *score = &scores[h * stride + j];
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

// What the row is before removal, where a test wants to see it.
static void trace_scores(const struct retrieval_loss *l, int i, int n, const float *row)
{
    const size_t columns = (size_t)n, at = (size_t)i * columns;
    if (l->trace.scores)
        memcpy(l->trace.scores + at, row, columns * sizeof *row);
    if (l->trace.corrected) {
        memcpy(l->trace.corrected + at, row, columns * sizeof *row);
        kernels->correct(columns, 1 / l->options.temperature, l->correction,
                         l->trace.corrected + at);
    }
}

// How much a row counts, with all that its gradient is multiplied by.
struct share {
    bool unlearn;
    float factor; // |weight| / norm / temperature; 0: it does not count
};

// A row of gradients and their sums by column.
static void row_scale(int n, float by, float *row, float *dcolumn)
{
    if (dcolumn)
        kernels->scale_add((size_t)n, by, row, dcolumn);
    else
        kernels->scale((size_t)n, by, row);
}

// The positive's gradient has one more part. Not as P + (before - 1): the two cancel first.
static void positive_add(int positive, float part, float *row, float *dcolumn, float before)
{
    row[positive] += part;
    if (dcolumn)
        dcolumn[positive] = before + row[positive];
}

// -log P of the positive, whose corrected score is given; in the row its copies are with it.
static double row_learn(int n, int positive, double score, float largest, float factor, float *row,
                        float *dcolumn)
{
    const float sum = kernels->exp_shifted((size_t)n, largest, row);
    const float before = dcolumn ? dcolumn[positive] : 0;
    row_scale(n, factor / sum, row, dcolumn);
    positive_add(positive, -factor, row, dcolumn, before);
    return log((double)sum) - (score - (double)largest);
}

// -log(1 - P) of the positive. By z = its score - log sum of exp of the others, for where P is
// nearly 1 nothing is left of 1 - P: P = sigma(z) and the loss is log(1 + e^z). In the row only its
// copies are left of it.
static double row_unlearn(int n, int positive, double score, float factor, float *row,
                          float *dcolumn)
{
    const float largest = kernels->max((size_t)n, row);
    if (largest == -INFINITY) { // nothing to prefer to it
        memset(row, 0, sizeof(float) * (size_t)n);
        return 0;
    }
    const float sum = kernels->exp_shifted((size_t)n, largest, row);
    const double z = score - (log((double)sum) + (double)largest), e = exp(-fabs(z));
    const double P = (z < 0 ? e : 1) / (1 + e);
    const float before = dcolumn ? dcolumn[positive] : 0;
    row_scale(n, (float)(-P / (double)sum) * factor, row, dcolumn);
    positive_add(positive, (float)P * factor, row, dcolumn, before);
    return fmax(z, 0) + log1p(e);
}

// Steps 1 to 6 on the scores of one row, which become their gradient and are added to dcolumn
// (NULL: not wanted). Returns the row's loss; the columns that are left are -inf on the way, and
// exp makes them 0.
static double row_step(struct retrieval_loss *l, const struct retrieval_batch *b, int i,
                       struct share share, float *row, float *dcolumn)
{
    const int n = b->candidates, k = l->options.hard_negatives, positive = positive_of(b, i);
    const bool mining = k > 0 && k < n - 1;
    const uint32_t copies = times_of(b, positive) - 1;

    trace_scores(l, i, n, row);
    if (remove_columns(l, b, i))
        put_minus_infinity(n, l->removed, true, row);
    float largest = kernels->correct((size_t)n, 1 / l->options.temperature, l->correction, row);
    memset(l->kept, 0xff, retrieval_words(n) * sizeof *l->kept);
    if (mining && !row_drops(b, i)) {
        retrieval_loss_mine(n, row, positive, k, l->keys, l->kept);
        put_minus_infinity(n, l->kept, false, row);
        largest = kernels->max((size_t)n, row);
    }
    trace_row(l, i, n);
    if (row_drops(b, i)) {
        memset(row, 0, sizeof(float) * (size_t)n);
        return 0;
    }

    // The correction has the copies in it.
    const float score = row[positive] - (copies ? logf((float)copies + 1) : 0);
    if (share.unlearn) {
        const bool others = copies && !l->options.accidental_hits;
        row[positive] = others ? score + logf((float)copies) : -INFINITY;
        return row_unlearn(n, positive, (double)score, share.factor, row, dcolumn);
    }
    if (l->options.accidental_hits)
        row[positive] = score;
    return row_learn(n, positive, (double)score, largest, share.factor, row, dcolumn);
}

static void batch_begin(struct retrieval_loss *l, const struct retrieval_batch *b)
{
    const int n = b->candidates;
    l->loss = l->weight = 0;
    l->rows_dropped = 0;
    l->removed_by_id = l->removed_by_mask = 0;
    for (int i = 0; i < b->queries; i++) {
        l->rows_dropped += row_drops(b, i);
        if (!row_drops(b, i))
            l->weight += b->weight ? fabs((double)b->weight[i]) : 1;
    }
    if (b->sampling)
        retrieval_loss_correction(n, b->sampling, l->options.sampling_floor, l->correction);
    else
        memset(l->correction, 0, (size_t)n * sizeof *l->correction);
    for (int j = 0; b->times && j < n; j++)
        l->correction[j] += b->times[j] > 1 ? logf((float)b->times[j]) : 0;
}

void retrieval_loss_step(struct retrieval_loss *l, const struct retrieval_batch *b, float *row_loss,
                         const struct retrieval_gradient *gradient)
{
    const int heads = heads_of(b), n = b->candidates, tile = BATCH_SCORES_TILE / heads;
    assert(!retrieval_loss_refuses(l, b));
    batch_begin(l, b);
    const double norms[] = {
        [RETRIEVAL_BY_WEIGHT] = l->weight, [RETRIEVAL_SUM] = 1, [RETRIEVAL_MEAN] = b->queries};
    const double norm = norms[l->options.reduction];

    batch_scores_begin(&l->scores, n, b->C, b->column, gradient->dC != NULL);
    for (int from = 0; from < b->queries; from += tile) {
        const int rows = b->queries - from < tile ? b->queries - from : tile;
        const size_t query = (size_t)from * (size_t)heads * (size_t)b->D;
        batch_scores_forward(&l->scores, rows * heads, b->Q + query);
        for (int i = from; i < from + rows; i++) {
            const size_t stride = l->scores.stride;
            float *scores = l->scores.S + (size_t)(i - from) * (size_t)heads * stride;
            float *row = heads > 1 ? l->row : scores;
            if (heads > 1)
                best_heads(heads, n, scores, stride, row);
            const double weight = b->weight ? fabs((double)b->weight[i]) : 1;
            const bool counts = weight > 0 && norm > 0;
            const struct share share = {b->weight && b->weight[i] < 0,
                                        counts ? (float)(weight / norm) / l->options.temperature
                                               : 0};
            const double loss = row_step(l, b, i, share, row, counts ? gradient->dcolumn : NULL);
            if (row_loss)
                row_loss[i] = (float)loss;
            if (counts)
                l->loss += weight * loss / norm;
            else // not multiplied by 0: a NaN in a row that does not count must not spread
                memset(row, 0, sizeof(float) * (size_t)n);
            if (heads > 1)
                share_among_heads(heads, n, row, scores, stride);
        }
        if (gradient->dQ || gradient->dC)
            batch_scores_backward(&l->scores, rows * heads,
                                  gradient->dQ ? gradient->dQ + query : NULL);
    }
    if (gradient->dC)
        batch_scores_end(&l->scores, gradient->dC);
}
