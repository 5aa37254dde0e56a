// SPDX-License-Identifier: Apache-2.0
#include "model/topk.h"

#include <assert.h>
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "model/arena.h"
#include "model/gemm.h"

bool topk_before(struct topk_entry a, struct topk_entry b)
{
    if (isnan(a.score) || isnan(b.score))
        return isnan(a.score) == isnan(b.score) ? a.row < b.row : isnan(b.score);
    return a.score != b.score ? a.score > b.score : a.row < b.row;
}

// Lets the entry sink from the top to where nothing below it comes later in order.
static void sink(struct topk_entry *heap, int count, struct topk_entry entry)
{
    int at = 0;
    for (int child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && topk_before(heap[child], heap[child + 1]))
            child++;
        if (!topk_before(entry, heap[child]))
            break;
        heap[at] = heap[child];
    }
    heap[at] = entry;
}

void topk_push(struct topk_entry *heap, int *count, int k, struct topk_entry entry)
{
    if (*count == k) {
        if (topk_before(entry, heap[0]))
            sink(heap, k, entry);
        return;
    }
    int at = (*count)++;
    for (int parent; at > 0; at = parent) {
        parent = (at - 1) / 2;
        if (!topk_before(heap[parent], entry))
            break;
        heap[at] = heap[parent];
    }
    heap[at] = entry;
}

void topk_sort(struct topk_entry *heap, int count)
{
    while (count > 1) {
        const struct topk_entry last = heap[0], moved = heap[count - 1];
        sink(heap, --count, moved);
        heap[count] = last;
    }
}

void topk_init(struct topk *t, int B_max, int k_max, int D, struct arena *scratch)
{
    assert(B_max > 0 && k_max > 0 && D > 0);
    *t = (struct topk){.B_max = B_max, .k_max = k_max, .D = D};
    t->entries = arena_bytes(scratch, (size_t)B_max * (size_t)k_max * sizeof *t->entries);
    t->counts = arena_bytes(scratch, (size_t)B_max * sizeof *t->counts);
    t->block = arena_floats(scratch, (size_t)TOPK_BLOCK * (size_t)D);
    t->scores = arena_floats(scratch, (size_t)B_max * TOPK_BLOCK);
}

void topk_begin(struct topk *t, int B, int k)
{
    assert(B >= 0 && B <= t->B_max && k > 0 && k <= t->k_max);
    t->B = B;
    t->k = k;
    t->nan_scores = 0;
    memset(t->counts, 0, sizeof *t->counts * (size_t)B);
}

// Scores of B queries against n <= TOPK_BLOCK rows, into t->scores (B, TOPK_BLOCK). A short block
// is padded with zeros: BLAS treats the last columns of a product with other kernels, which may
// round differently, and then equal vectors would not tie.
static void score_block(struct topk *t, int B, const float *Q, size_t n, const float *C)
{
    if (n < TOPK_BLOCK) {
        const size_t used = n * (size_t)t->D;
        memcpy(t->block, C, sizeof(float) * used);
        memset(t->block + used, 0, sizeof(float) * ((size_t)TOPK_BLOCK * (size_t)t->D - used));
        C = t->block;
    }
    memset(t->scores, 0, sizeof(float) * (size_t)B * TOPK_BLOCK);
    gemm_nt(B, TOPK_BLOCK, t->D, Q, C, t->scores);
}

static bool excluded(const struct topk_exclusions *e, int b, uint64_t id)
{
    for (uint32_t i = e->offsets[b]; i < e->offsets[b + 1]; i++)
        if (e->ids[i] == id)
            return true;
    return false;
}

void topk_scan(struct topk *t, const float *Q, uint32_t first, uint32_t n, const float *C,
               const uint64_t *ids, const struct topk_exclusions *exclusions)
{
    for (uint32_t start = 0; start < n; start += TOPK_BLOCK) {
        const uint32_t rows = n - start < TOPK_BLOCK ? n - start : TOPK_BLOCK;
        score_block(t, t->B, Q, rows, C + (size_t)start * (size_t)t->D);
        for (int b = 0; b < t->B; b++) {
            const float *scores = t->scores + (size_t)b * TOPK_BLOCK;
            struct topk_entry *heap = t->entries + (size_t)b * (size_t)t->k_max;
            for (uint32_t r = 0; r < rows; r++) {
                const struct topk_entry entry = {scores[r], first + start + r};
                t->nan_scores += isnan(scores[r]) != 0;
                // Most rows end here, on one comparison.
                if (t->counts[b] == t->k && !topk_before(entry, heap[0]))
                    continue;
                if (exclusions && excluded(exclusions, b, ids ? ids[start + r] : entry.row))
                    continue;
                topk_push(heap, &t->counts[b], t->k, entry);
            }
        }
    }
}

void topk_finish(struct topk *t)
{
    for (int b = 0; b < t->B; b++)
        topk_sort(t->entries + (size_t)b * (size_t)t->k_max, t->counts[b]);
}

void topk_score_pairs(struct topk *t, int B, const float *Q, const float *V, float *a)
{
    assert(B <= t->B_max);
    // All pairs of a block, of which the diagonal is read: the same routine is worth more here than
    // the products saved. An item scored another way can beat itself by one ulp.
    for (int start = 0; start < B; start += TOPK_BLOCK) {
        const int rows = B - start < TOPK_BLOCK ? B - start : TOPK_BLOCK;
        score_block(t, B, Q, (size_t)rows, V + (size_t)start * (size_t)t->D);
        for (int r = 0; r < rows; r++)
            a[start + r] = t->scores[(size_t)(start + r) * TOPK_BLOCK + (size_t)r];
    }
}

uint32_t topk_place_of_id(int count, const uint64_t *ids, const float *scores, uint64_t id)
{
    for (int i = 0; i < count; i++)
        if (ids[i] == id && !isnan(scores[i]))
            return (uint32_t)i;
    return TOPK_MISS;
}

uint32_t topk_place_of_score(int count, const float *scores, float score)
{
    uint32_t greater = 0;
    bool finite = isfinite(score);
    for (int i = 0; i < count; i++) {
        finite = finite && isfinite(scores[i]);
        greater += scores[i] > score;
    }
    return finite ? greater : TOPK_MISS;
}

double topk_hit_mean(int n, const uint32_t *place, const float *weight, uint32_t k)
{
    double hits = 0, total = 0;
    for (int i = 0; i < n; i++) {
        const double w = weight ? (double)weight[i] : 1;
        hits += place[i] < k ? w : 0;
        total += w;
    }
    return total != 0 ? hits / total : 0;
}
