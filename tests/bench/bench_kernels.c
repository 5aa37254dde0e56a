// SPDX-License-Identifier: Apache-2.0
//
// Times every kernel of every set this CPU runs: nanoseconds of CPU time per float, for rows as
// long as an embedding and for rows as long as a score row. A variant that is not faster than the
// plain one has no right to exist.
#include <stdio.h>
#include <time.h>

#include "model/kernels.h"
#include "model/rng.h"

enum { LONGEST = 4096, SETS_MAX = 8 };

static float x[LONGEST], y[LONGEST], z[LONGEST];
static float zeros[3 * LONGEST];
static unsigned short half[LONGEST];
static volatile float sink;

static void time_dot(const struct kernels *k, size_t n)
{
    sink = k->dot(n, x, y);
}

static void time_axpy(const struct kernels *k, size_t n)
{
    k->axpy(n, 1e-9f, x, y);
}

static void time_pool(const struct kernels *k, size_t n)
{
    const float w[] = {0.4f, 0.3f, 0.2f, 0.1f};
    float pooled[3 * LONGEST], context[LONGEST];
    k->pool(n, 4, 1, w, (const float *const[]){x, y, z, x}, (const float *const[]){y, z, x, y},
            pooled, context);
    sink = pooled[0];
}

static void time_unpool(const struct kernels *k, size_t n)
{
    const float w[] = {1e-9f, 1e-9f, 1e-9f, 1e-9f};
    static float other[LONGEST];
    k->unpool(n, 4, 1, w, zeros, zeros, (float *const[]){x, y, z, x},
              (float *const[]){other, y, other, y});
}

static void time_weigh(const struct kernels *k, size_t n)
{
    k->weigh(n, 1, (float[]){1e-9f}, x, y);
}

static void time_unweigh(const struct kernels *k, size_t n)
{
    k->unweigh(n, 1, (float[]){1e-9f}, (float[]){1e-9f}, x, x, z, y, y + LONGEST - n);
}

static void time_normalize(const struct kernels *k, size_t n)
{
    static float other[LONGEST];
    sink = k->normalize(n, 1e-6f, x, other);
}

static void time_unnormalize(const struct kernels *k, size_t n)
{
    static float other[LONGEST];
    k->unnormalize(n, 1, x, y, other);
}

static void time_scale_add(const struct kernels *k, size_t n)
{
    k->scale_add(n, -1, x, y);
}

static void time_exp_shifted(const struct kernels *k, size_t n)
{
    // The outputs are in (0, 1] again, so they serve as the next inputs.
    sink = k->exp_shifted(n, 1, z);
}

static void time_max(const struct kernels *k, size_t n)
{
    sink = k->max(n, x);
}

static void time_scale(const struct kernels *k, size_t n)
{
    k->scale(n, -1, y);
}

static void time_rowwise_adagrad(const struct kernels *k, size_t n)
{
    float G = 1;
    k->rowwise_adagrad(n, 1e-9f, 0, 1e-8f, x, y, &G);
}

static void time_to_half(const struct kernels *k, size_t n)
{
    k->to_half(n, x, half);
    sink = half[0];
}

static const struct {
    const char *name;
    void (*run)(const struct kernels *k, size_t n);
} benches[] = {
    {"dot", time_dot},
    {"axpy", time_axpy},
    {"pool", time_pool},
    {"unpool", time_unpool},
    {"exp_shifted", time_exp_shifted},
    {"max", time_max},
    {"scale", time_scale},
    {"weigh", time_weigh},
    {"unweigh", time_unweigh},
    {"normalize", time_normalize},
    {"unnormalize", time_unnormalize},
    {"scale_add", time_scale_add},
    {"rowwise_adagrad", time_rowwise_adagrad},
    {"to_half", time_to_half},
};

static double cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

// The best of a few rounds: the others were disturbed.
static double ns_per_float(void (*run)(const struct kernels *, size_t), const struct kernels *k,
                           size_t n)
{
    const size_t calls = (1 << 21) / n;
    double best = 1e30;
    for (int round = 0; round < 5; round++) {
        const double start = cpu_ns();
        for (size_t i = 0; i < calls; i++)
            run(k, n);
        const double ns = (cpu_ns() - start) / (double)(calls * n);
        best = ns < best ? ns : best;
    }
    return best;
}

int main(void)
{
    static const size_t lengths[] = {64, 1024, LONGEST};
    const struct kernels *list[SETS_MAX];
    const int sets = kernels_list(list, SETS_MAX);
    struct rng r = {1, 0};
    rng_fill_uniform(&r, x, LONGEST, -1, 1);
    rng_fill_uniform(&r, y, LONGEST, -1, 1);
    rng_fill_uniform(&r, z, LONGEST, 0, 1);

    printf("%-16s %6s", "ns per float", "n");
    for (int s = 0; s < sets; s++)
        printf(" %8s", list[s]->name);
    printf("\n");
    for (size_t b = 0; b < sizeof benches / sizeof *benches; b++)
        for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++) {
            printf("%-16s %6zu", benches[b].name, lengths[l]);
            for (int s = 0; s < sets; s++)
                printf(" %8.4f", ns_per_float(benches[b].run, list[s], lengths[l]));
            printf("\n");
        }
    return 0;
}
