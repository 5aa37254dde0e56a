// SPDX-License-Identifier: Apache-2.0
//
// Exact top-k of the reader beside the memory: the time to read what it reads, and nothing else.
//
//     bench_topk [--json]
//
// A million items of 64 columns, the best 100, one thread, CPU time, by turns, median of 9 rounds.
// For 1 query, the ratio says how much of the memory's speed a search reaches; 8 queries share the
// reading and compute more. Then the other instruction sets, of which the plain one is for
// checking. About 20 s. tests/bench/topk.sh measures it beside faiss.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "model/rng.h"
#include "snapshot/topk.h"
#include "tests/bench/figure.h"
#include "tests/bench/measure.h"

enum { N = 1000000, D = 64, K = 100, QUERIES = 8, ROUNDS = 9 };

static struct bench {
    bool json;
    volatile uint64_t read;
    float *items;
    struct tt_array array;
    struct tt_query queries[QUERIES];
    struct tt_codes *codes;
} b;

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static double read_ms(size_t bytes)
{
    typedef uint64_t words __attribute__((vector_size(64)));
    const words *w = (const words *)(const void *)b.items;
    words sum[4] = {0};
    const double start = now_ms();
    // Four streams: one alone, and glibc's memchr, take a fifth longer here.
    const size_t part = bytes / sizeof *w / 4;
    for (size_t i = 0; i < part; i++)
        for (size_t j = 0; j < 4; j++)
            sum[j] ^= w[j * part + i];
    b.read = (sum[0] ^ sum[1] ^ sum[2] ^ sum[3])[0];
    return now_ms() - start;
}

static double search_ms(const struct scan *scan, uint32_t n, const struct tt_codes *codes)
{
    static uint32_t rows[QUERIES * K], found[QUERIES];
    static float scores[QUERIES * K];
    const double start = now_ms();
    if (topk_batch(scan, b.queries, n, codes, rows, scores, found) < 0)
        abort();
    return now_ms() - start;
}

// goal NULL: none.
static void measure(const struct scan *scan, uint32_t n, const struct tt_codes *codes,
                    const char *goal)
{
    // A code of a byte for all columns but one, scale and exact column.
    const size_t bytes = codes ? (size_t)N * (D + 2 * sizeof(float)) : (size_t)N * D * 4;
    double ours[ROUNDS], theirs[ROUNDS];
    for (int r = 0; r < ROUNDS; r++) {
        ours[r] = search_ms(scan, n, codes);
        theirs[r] = read_ms(bytes);
    }
    const double x = median(ROUNDS, ours) / n, y = median(ROUNDS, theirs) / n;
    char stage[96];
    snprintf(stage, sizeof stage, "exact top-k, 1M x 64, k=100, batch %u, %s, %s", n,
             codes ? "int8" : "f32", scan->name);
    figure_print(b.json, &(struct figure){.stage = stage,
                                          .unit = "ms per query",
                                          .ours = x,
                                          .reference = "reading the same bytes",
                                          .theirs = y,
                                          .ratio = y / x,
                                          .goal = goal,
                                          .detail = true});
}

int main(int argc, char **argv)
{
    static float vectors[QUERIES * D];
    struct rng rng = {1, 0};
    const size_t size = (size_t)N * D * sizeof(float);
    b.json = argc > 1 && strcmp(argv[1], "--json") == 0;
    b.items = aligned_alloc(2 << 20, (size / (2 << 20) + 1) * (2 << 20));
    if (!b.items)
        abort();
    rng_fill_uniform(&rng, b.items, (size_t)N * D, -1, 1);
    rng_fill_uniform(&rng, vectors, QUERIES * D, -1, 1);
    b.array = (struct tt_array){.dtype = "F32", .n_dims = 2, .shape = {N, D}, .data = b.items};
    for (int i = 0; i < QUERIES; i++)
        b.queries[i] = (struct tt_query){.items = &b.array, .vector = vectors + i * D, .k = K};

    const struct scan *sets[8];
    const int n = scan_list(sets, 8);
    for (int s = n - 1; s >= 0; s--) {
        const double start = now_ms();
        if (topk_codes(sets[s], &b.codes, &b.array) < 0)
            abort();
        if (!b.json)
            printf("codes made in %.0f ms, %s\n", now_ms() - start, sets[s]->name);
        measure(sets[s], 1, NULL, s == n - 1 ? ">= 0.8" : NULL);
        measure(sets[s], 1, b.codes, s == n - 1 ? ">= 0.8" : NULL);
        measure(sets[s], QUERIES, NULL, NULL);
        measure(sets[s], QUERIES, b.codes, NULL);
        tt_codes_free(b.codes);
    }
    free(b.items);
}
