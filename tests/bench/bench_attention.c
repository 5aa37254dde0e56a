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
#include <time.h>

#include "daemon/blas_core.h"
#include "model/arena.h"
#include "model/attention.h"
#include "model/gemm.h"
#include "model/kernels.h"
#include "model/rng.h"

enum { B = 512, D = 64, HEADS = 2, LENGTH_MAX = 50, LAYERS_MAX = 2, ROUNDS = 41, PAGE = 2 << 20 };

static double cpu_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

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

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x)
{
    qsort(x, ROUNDS, sizeof *x, ascending);
    return x[ROUNDS / 2];
}

static double sgemm_s(int rows, const float *X, const float *W, float *Y)
{
    const double start = cpu_s();
    gemm_nt(rows, 2 * D, D, X, W, Y);
    return cpu_s() - start;
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
        const double before = sgemm_s((int)rows, rest, W, Y), start = cpu_s();
        attention_stack_forward(&e.stack, B, e.start, e.top);
        attention_stack_backward(&e.stack, B, e.start, dtop, e.dZ);
        took[round] = cpu_s() - start;
        alone[round] = (before + sgemm_s((int)rows, rest, W, Y)) / 2;
        share[round] =
            flops(layers, length) / took[round] / (4.0 * (double)rows * D * D / alone[round]);
    }
    const double us = median(took) / B * 1e6, gemm = 4.0 * (double)rows * D * D / median(alone);
    const double rate = flops(layers, length) / median(took), ratio = median(share);
    if (json)
        printf("{\"stage\":\"attention, %d layer%s, %d events of %d\",\"reference\":\"sgemm on its "
               "largest product\",\"unit\":\"GFLOP/s\",\"ours\":%.1f,\"theirs\":%.1f,"
               "\"ratio\":%.3f,%s\"us_per_example\":%.2f}\n",
               layers, layers > 1 ? "s" : "", length, D, rate / 1e9, gemm / 1e9, ratio,
               layers == 2 && length == LENGTH_MAX ? "\"goal\":\">= 0.5\"," : "", us);
    else
        printf("%6d %6d %12.2f %12.1f %12.1f %8.2f\n", layers, length, us, rate / 1e9, gemm / 1e9,
               ratio);
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
    const bool json = argc > 1 && !strcmp(argv[1], "--json");
    blas_core_correct(argv);
    gemm_init();
    kernels_init(NULL);
    if (!json)
        printf("%6s %6s %12s %12s %12s %8s\n", "layers", "length", "us/example", "GFLOP/s", "sgemm",
               "share");
    for (int layers = 1; layers <= LAYERS_MAX; layers++) {
        run(layers, 20, json);
        run(layers, LENGTH_MAX, json);
    }
    return 0;
}
