// SPDX-License-Identifier: Apache-2.0
#include "model/sampled_softmax.h"

#include <assert.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "model/kernels.h"
#include "model/logistic.h"
#include "model/retrieval_loss.h"

// What sets the forms apart, in the order of enum sampled_form.
static const struct {
    bool uncorrected; // the target: log q is given back
    bool counted;     // the negatives are averaged, not summed
    bool apart;       // the target is not among what is sampled
} forms[] = {
    [SAMPLED_LOGQ] = {false, false, false},  [SAMPLED_MNS] = {true, false, false},
    [SAMPLED_COUNTED] = {true, true, false}, [SAMPLED_REFINED] = {true, true, true},
    [SAMPLED_NONE] = {false, false, false},
};

static bool bit_get(const uint64_t *set, int j)
{
    return set[j / 64] >> (j % 64) & 1;
}

// Sets the bit; 1 if it was not set before.
static int bit_put(uint64_t *set, uint32_t j)
{
    const uint64_t bit = UINT64_C(1) << (j % 64);
    const bool before = set[j / 64] & bit;
    set[j / 64] |= bit;
    return !before;
}

// Makes the columns of the set -inf, of which exp makes 0; returns how many.
static int columns_remove(int columns, const uint64_t *removed, float *row)
{
    int n = 0;
    for (size_t w = 0; w < retrieval_words(columns); w++) {
        n += __builtin_popcountll(removed[w]);
        for (uint64_t word = removed[w]; word; word &= word - 1)
            row[w * 64 + (size_t)__builtin_ctzll(word)] = -INFINITY;
    }
    return n;
}

// What the target's logit gets so that every form is a softmax over the row: taking log n from all
// others is adding it to one.
static double target_offset(const struct sampled_softmax *s, int negatives, const float *log_q,
                            int target)
{
    double offset = forms[s->form].uncorrected ? (double)log_q[target] : 0;
    if (s->chance == SAMPLED_PRESENCE)
        return offset;
    if (forms[s->form].counted)
        offset += log(negatives);
    // An item that makes up the whole stream leaves no others to be drawn: 1 - q stays above 0.
    if (forms[s->form].apart)
        offset -= log(fmax(-expm1((double)log_q[target]), 0x1p-24));
    return offset;
}

// weight (lse(row) - row[target]). The order of operations is what keeps a run that was recorded
// before the forms existed repeatable bit by bit.
static double softmax_row(int columns, int target, float weight, float *row, float *dcolumn)
{
    const size_t n = (size_t)columns;
    const float shift = kernels->max(n, row), score = row[target], before = dcolumn[target];
    const float sum = kernels->exp_shifted(n, shift, row);
    const double loss = log((double)sum) + (double)shift - (double)score;
    kernels->scale_add(n, weight / sum, row, dcolumn);
    row[target] -= weight;
    // Not as P + (before - 1): the two parts of the target's gradient cancel first.
    dcolumn[target] = before + row[target];
    return (double)weight * loss;
}

// The forms that need P_t apart from the softmax over the negatives: with
// z = row[target] - lse(negatives), P_t is sigmoid(z) and -log(1 - P_t) is softplus(z), and both
// keep their digits where 1 - P_t has none left.
static double negatives_row(int columns, int target, double count_log, float weight, float *row,
                            float *dcolumn)
{
    const size_t n = (size_t)columns;
    const double score = (double)row[target];
    row[target] = -INFINITY;
    const float shift = kernels->max(n, row);
    if (shift == -INFINITY) { // nothing to prefer to it
        memset(row, 0, n * sizeof *row);
        return 0;
    }
    const float sum = kernels->exp_shifted(n, shift, row);
    const double z = score - (log((double)sum) + (double)shift);

    // What moves from the target to the negatives.
    const double moved = (double)weight * logistic_sigmoid(weight > 0 ? -z : z);
    kernels->scale_add(n, (float)(moved / (double)sum), row, dcolumn);
    row[target] = (float)-moved;
    dcolumn[target] += row[target];
    return weight > 0 ? moved * (count_log - z) : -(double)weight * logistic_softplus(z);
}

double sampled_softmax_row(const struct sampled_softmax *s, int columns, const float *log_q,
                           int target, const uint64_t *removed, float weight, float *row,
                           float *dcolumn)
{
    assert(target >= 0 && target < columns);
    int negatives = columns - 1;
    bool teaches = weight != 0;
    if (teaches && removed) {
        teaches = !bit_get(removed, target);
        negatives -= columns_remove(columns, removed, row);
    }
    if (!teaches || negatives == 0) {
        // Not multiplied by 0: a NaN in a row that does not count must not spread.
        memset(row, 0, (size_t)columns * sizeof *row);
        return 0;
    }
    row[target] += (float)target_offset(s, negatives, log_q, target);
    if (weight > 0 && !forms[s->form].apart)
        return softmax_row(columns, target, weight, row, dcolumn);
    const double count_log = s->chance == SAMPLED_DRAW ? log(negatives) : 0;
    return negatives_row(columns, target, count_log, weight, row, dcolumn);
}

float sampled_log_presence(double rate)
{
    return (float)log(-expm1(-rate));
}

int sampled_softmax_remove_known(int n, int columns, const uint32_t *user, const uint32_t *target,
                                 uint32_t *last, uint32_t *before, uint64_t *removed)
{
    const size_t words = retrieval_words(columns);
    const uint32_t none = UINT32_MAX;
    int set = 0;
    for (int i = 0; i < n; i++)
        last[i] = none;
    // A chain of each user's rows: a batch has few users with more than one, so few steps.
    for (uint32_t i = 0; i < (uint32_t)n; i++) {
        assert(user[i] < (uint32_t)n && target[i] < (uint32_t)columns);
        before[i] = last[user[i]];
        last[user[i]] = i;
        for (uint32_t k = before[i]; k != none; k = before[k]) {
            if (target[k] == target[i])
                continue;
            set += bit_put(removed + i * words, target[k]);
            set += bit_put(removed + k * words, target[i]);
        }
    }
    return set;
}
