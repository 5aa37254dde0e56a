// SPDX-License-Identifier: Apache-2.0
//
// The in-batch softmax step, forward, loss with logQ and accidental hits, and both gradients,
// beside sgemm alone for the same three products, and bf16 beside f32. CPU time, alternately, the
// best of the rounds.
//
//     bench_softmax [--json]
//
// d = 64; batches of 1024 and 4096 whose candidates are all different: B x B pairs.
#include <stdlib.h>

#include "daemon/blas_core.h"
#include "model/arena.h"
#include "model/gemm.h"
#include "model/kernels.h"
#include "model/retrieval_loss.h"
#include "model/rng.h"
#include "tests/bench/figure.h"
#include "tests/bench/measure.h"

enum { D = 64, ROUNDS = 12 };

static void *take(size_t bytes)
{
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!memory) {
        fprintf(stderr, "bench_softmax: out of memory\n");
        exit(1);
    }
    return memset(memory, 0, bytes);
}

static struct retrieval_batch batch_make(int B)
{
    const size_t n = (size_t)B;
    struct rng rng = {9, 0};
    float *Q = take(n * D * sizeof *Q), *C = take(n * D * sizeof *C);
    float *sampling = take(n * sizeof *sampling);
    uint32_t *times = take(n * sizeof *times);
    rng_fill_uniform(&rng, Q, n * D, -0.5f, 0.5f);
    rng_fill_uniform(&rng, C, n * D, -0.5f, 0.5f);
    rng_fill_uniform(&rng, sampling, n, 0.0001f, 0.01f);
    for (size_t j = 0; j < n; j++)
        times[j] = 1;
    return (struct retrieval_batch){.queries = B,
                                    .candidates = B,
                                    .D = D,
                                    .Q = Q,
                                    .C = C,
                                    .sampling = sampling,
                                    .times = times};
}

static double step_seconds(const struct retrieval_batch *b, struct retrieval_loss *l,
                           const struct retrieval_gradient *gradient)
{
    const double begun = thread_cpu_s();
    retrieval_loss_step(l, b, NULL, gradient);
    return thread_cpu_s() - begun;
}

static double gemm_seconds(const struct retrieval_batch *b, float *S,
                           const struct retrieval_gradient *gradient)
{
    const int B = b->queries;
    const double begun = thread_cpu_s();
    gemm_nt(B, B, D, b->Q, b->C, S);
    gemm_nn(B, D, B, S, b->C, gradient->dQ);
    gemm_tn(B, D, B, S, b->Q, gradient->dC);
    return thread_cpu_s() - begun;
}

static void bench(bool json, int B)
{
    const struct retrieval_batch b = batch_make(B);
    const bool bf16 = strcmp(kernels->name, "amx") == 0;
    const size_t n = (size_t)B;
    float *S = take(n * n * sizeof *S);
    const struct retrieval_gradient gradient = {
        .dQ = take(n * D * sizeof(float)),
        .dC = take(n * D * sizeof(float)),
        .dcolumn = take(n * sizeof(float)),
    };
    struct retrieval_loss losses[2];
    double step[2] = {1e9, 1e9}, gemm = 1e9;
    char stage[64];
    for (int p = 0; p < 2; p++) {
        const struct retrieval_options options = {.accidental_hits = true,
                                                  .reduction = RETRIEVAL_SUM,
                                                  .precision = (enum batch_scores_precision)p};
        const size_t bytes = retrieval_loss_bytes(&options, B, D);
        struct arena scratch = {take(bytes), bytes, 0};
        retrieval_loss_init(&losses[p], &options, B, B, 1, D, &scratch);
    }
    for (int round = 0; round < ROUNDS; round++) {
        for (int p = 0; p < 1 + bf16; p++) {
            const double seconds = step_seconds(&b, &losses[p], &gradient);
            step[p] = seconds < step[p] ? seconds : step[p];
        }
        const double seconds = gemm_seconds(&b, S, &gradient);
        gemm = seconds < gemm ? seconds : gemm;
    }
    const double us = 1e6 / B;
    snprintf(stage, sizeof stage, "in-batch softmax step, f32, B=%d", B);
    figure_print(json, &(struct figure){.stage = stage,
                                        .unit = "us per example",
                                        .ours = us * step[0],
                                        .reference = "sgemm of the three products",
                                        .theirs = us * gemm,
                                        .ratio = gemm / step[0],
                                        .goal = ">= 0.90"});
    snprintf(stage, sizeof stage, "in-batch softmax step, bf16, B=%d", B);
    if (bf16)
        figure_print(json, &(struct figure){.stage = stage,
                                            .unit = "us per example",
                                            .ours = us * step[1],
                                            .reference = "our step in f32",
                                            .theirs = us * step[0],
                                            .ratio = step[0] / step[1],
                                            .goal = ">= 1.7"});
    else if (!json)
        printf("%s: skipped, this CPU has no AMX\n", stage);
}

int main(int argc, char **argv)
{
    blas_core_correct(argv);
    const bool json = figures_as_json(&argc, argv);
    gemm_init();
    kernels_init(NULL);
    bench(json, 1024);
    bench(json, 4096);
    return 0;
}
