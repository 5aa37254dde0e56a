// SPDX-License-Identifier: Apache-2.0
//
// Attention over a batch of full histories, forward and backward: CPU time for an example, the rate
// of the multiplications and additions that it needs, and what sgemm alone reaches on the largest
// of its products.
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "daemon/blas_core.h"
#include "model/arena.h"
#include "model/attention.h"
#include "model/gemm.h"
#include "model/kernels.h"
#include "model/rng.h"

enum { B = 512, D = 64, HEADS = 2, LENGTH_MAX = 50, LAYERS_MAX = 2, ROUNDS = 20 };

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
    void *m = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!m)
        exit(1);
    return m;
}

static double sgemm_rate(int rows)
{
    float *X = memory(sizeof(float) * (size_t)rows * D), *W = memory(sizeof(float) * 2 * D * D);
    float *Y = memory(sizeof(float) * (size_t)rows * 2 * D), best = 1e30f;
    struct rng rng = {1, 0};
    rng_fill_uniform(&rng, X, (size_t)rows * D, -1, 1);
    rng_fill_uniform(&rng, W, (size_t)2 * D * D, -1, 1);
    rng_fill_uniform(&rng, Y, (size_t)rows * 2 * D, -1, 1);
    for (int round = 0; round < ROUNDS; round++) {
        const double start = cpu_s();
        gemm_nt(rows, 2 * D, D, X, W, Y);
        const float took = (float)(cpu_s() - start);
        best = took < best ? took : best;
    }
    free(X);
    free(W);
    free(Y);
    return 2.0 * rows * 2 * D * D / (double)best;
}

static void run(int layers, int length)
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
    char *params = memory(parameters), *grads = memory(parameters), *scratch = memory(bytes);
    float *dtop = memory(sizeof(float) * B * D);
    struct rng rng = {7, 0};
    attention_encoder_init(&e, &shape, B, &(struct arena){params, parameters, 0},
                           &(struct arena){grads, parameters, 0},
                           &(struct arena){scratch, bytes, 0}, &rng);
    for (int b = 0; b <= B; b++)
        e.start[b] = b * length;
    rng_fill_uniform(&rng, dtop, B * D, -1, 1);
    double best = 1e30;
    for (int round = 0; round < ROUNDS; round++) {
        rng_fill_uniform(&rng, e.stack.Z[0], (size_t)B * (size_t)length * D, -1, 1);
        const double start = cpu_s();
        attention_stack_forward(&e.stack, B, e.start, e.top);
        attention_stack_backward(&e.stack, B, e.start, dtop, e.dZ);
        const double took = cpu_s() - start;
        best = took < best ? took : best;
    }
    const double rate = flops(layers, length) / best, gemm = sgemm_rate(B * length);
    printf("%6d %6d %12.2f %12.1f %12.1f %8.2f\n", layers, length, best / B * 1e6, rate / 1e9,
           gemm / 1e9, rate / gemm);
    free(params);
    free(grads);
    free(scratch);
    free(dtop);
}

int main(int argc, char **argv)
{
    (void)argc;
    blas_core_correct(argv);
    gemm_init();
    kernels_init(NULL);
    printf("%6s %6s %12s %12s %12s %8s\n", "layers", "length", "us/example", "GFLOP/s", "sgemm",
           "share");
    for (int layers = 1; layers <= LAYERS_MAX; layers++) {
        run(layers, 20);
        run(layers, LENGTH_MAX);
    }
    return 0;
}
