// SPDX-License-Identifier: Apache-2.0
//
// Attention over a batch of full histories, forward and backward: CPU time for an example, the rate
// of the multiplications and additions that it needs, and what sgemm alone reaches on the largest
// of its products, in turns. Medians over the rounds; the share is of each round. Takes 15 s; with
// --json one object for each row.
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "daemon/blas_core.h"
#include "model/arena.h"
#include "model/attention.h"
#include "model/gemm.h"
#include "model/kernels.h"
#include "model/rng.h"
#include "tests/bench/figure.h"
#include "tests/bench/measure.h"

enum { B = 512, D = 64, HEADS = 2, LENGTH_MAX = 50, LAYERS_MAX = 2, ROUNDS = 41, PAGE = 2 << 20 };

// Of the products as they are done: a layer of which all ask, and the last one.
static double flops(int layers, double H)
{
    const double all = H * (4.0 * D * D + 2 * H * D), last = 4.0 * D * D + 2 * HEADS * H * D;
    return 3 * 2 * B * ((layers - 1) * all + last); // backward is twice forward
}

static void *memory(size_t bytes)
{
    const size_t all = (bytes + PAGE - 1) / PAGE * PAGE;
    void *m = aligned_alloc(PAGE, all);
    if (!m)
        exit(1);
    madvise(m, all, MADV_HUGEPAGE);
    memset(m, 0, all);
    return m;
}

static double sgemm_s(int rows, const float *X, const float *W, float *Y)
{
    const double start = thread_cpu_s();
    gemm_nt(rows, 2 * D, D, X, W, Y);
    return thread_cpu_s() - start;
}

static void run(int layers, int length, bool json)
{
    const size_t parameters = (4 * D * D + 8 * D) * LAYERS_MAX * sizeof(float) + 4096;
    const struct attention_encoder_shape shape = {
        D, length, HEADS, layers, ATTENTION_POSITIONS_NONE, true, true};
    struct attention counted[LAYERS_MAX];
    struct attention_encoder e = {.shape = shape, .layers = counted, .B_max = B};
    for (int l = 0; l < layers; l++)
        counted[l] =
            (struct attention){.width = D,
                               .heads = HEADS,
                               .queries = l == layers - 1 ? ATTENTION_NEWEST : ATTENTION_ALL,
                               .sequences_max = B,
                               .length_max = length};
    const size_t bytes = attention_encoder_scratch(&e, true, NULL) + sizeof counted + 64;
    const size_t rows = (size_t)B * (size_t)length;
    char *params = memory(parameters), *grads = memory(parameters), *scratch = memory(bytes);
    float *dtop = memory(sizeof(float) * B * D), *rest = memory(sizeof(float) * rows * D);
    float *W = memory(sizeof(float) * 2 * D * D), *Y = memory(sizeof(float) * rows * 2 * D);
    struct rng rng = {7, 0};
    attention_encoder_init(&e, &shape, B, &(struct arena){params, parameters, 0},
                           &(struct arena){grads, parameters, 0},
                           &(struct arena){scratch, bytes, 0}, &rng);
    for (int b = 0; b <= B; b++)
        e.start[b] = b * length;
    rng_fill_uniform(&rng, dtop, B * D, -1, 1);
    rng_fill_uniform(&rng, rest, rows * D, -1, 1);
    rng_fill_uniform(&rng, W, (size_t)2 * D * D, -1, 1);
    double took[ROUNDS], alone[ROUNDS], share[ROUNDS];
    for (int round = 0; round < ROUNDS; round++) {
        memcpy(e.stack.Z[0], rest, sizeof(float) * rows * D); // a forward pass uses it up
        const double before = sgemm_s((int)rows, rest, W, Y), start = thread_cpu_s();
        attention_stack_forward(&e.stack, B, e.start, e.top);
        attention_stack_backward(&e.stack, B, e.start, dtop, e.dZ);
        took[round] = thread_cpu_s() - start;
        alone[round] = (before + sgemm_s((int)rows, rest, W, Y)) / 2;
        share[round] =
            flops(layers, length) / took[round] / (4.0 * (double)rows * D * D / alone[round]);
    }
    const double us = median(ROUNDS, took) / B * 1e6,
                 gemm = 4.0 * (double)rows * D * D / median(ROUNDS, alone);
    const double rate = flops(layers, length) / median(ROUNDS, took), ratio = median(ROUNDS, share);
    const bool judged = layers == 2 && length == LENGTH_MAX;
    char stage[64], extra[48];
    snprintf(stage, sizeof stage, "attention, %d layer%s, %d events of %d", layers,
             layers > 1 ? "s" : "", length, D);
    snprintf(extra, sizeof extra, "\"us_per_example\":%.2f", us);
    figure_print(json, &(struct figure){.stage = stage,
                                        .unit = "GFLOP/s",
                                        .ours = rate / 1e9,
                                        .reference = "sgemm on its largest product",
                                        .theirs = gemm / 1e9,
                                        .ratio = ratio,
                                        .goal = judged ? ">= 0.5" : NULL,
                                        .extra = extra,
                                        .detail = !judged});
    free(params);
    free(grads);
    free(scratch);
    free(dtop);
    free(rest);
    free(W);
    free(Y);
}

int main(int argc, char **argv)
{
    blas_core_correct(argv);
    const bool json = figures_as_json(&argc, argv);
    gemm_init();
    kernels_init(NULL);
    for (int layers = 1; layers <= LAYERS_MAX; layers++) {
        run(layers, 20, json);
        run(layers, LENGTH_MAX, json);
    }
    return 0;
}
