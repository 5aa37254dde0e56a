// SPDX-License-Identifier: Apache-2.0
//
// Times every kernel of every set this CPU runs, the sets in turn: nanoseconds of CPU time per
// float, for rows as long as an embedding and for rows as long as a score row. Before that it runs
// test_kernels, which lies beside it and proves the bits of all sets over odd lengths and unaligned
// ends; where it fails nothing is timed.
//
//     bench_kernels [--json]     2 s
//
// A variant is marked where it is not faster than the set before it, and with "nowhere" where that
// is so at every length: it has no right to exist. "=": the set has the function of the one before.
#include <assert.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "model/kernels.h"
#include "model/rng.h"
#include "tests/bench/figure.h"
#include "tests/bench/measure.h"

enum { LONGEST = 4096, SETS_MAX = 8, LENGTHS = 3, ROUNDS = 7 };

static const size_t lengths[LENGTHS] = {64, 1024, LONGEST};

// Aligned as rows are in their columns.
static _Alignas(64) float x[LONGEST], y[LONGEST], z[LONGEST];
static _Alignas(64) float zeros[3 * LONGEST];
static _Alignas(64) unsigned short half[LONGEST];
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
    static _Alignas(64) float pooled[3 * LONGEST], context[LONGEST];
    k->pool(n, 4, 1, w, (const float *const[]){x, y, z, x}, (const float *const[]){y, z, x, y},
            pooled, context);
    sink = pooled[0];
}

static void time_unpool(const struct kernels *k, size_t n)
{
    const float w[] = {1e-9f, 1e-9f, 1e-9f, 1e-9f};
    static _Alignas(64) float other[LONGEST];
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
    static _Alignas(64) float other[LONGEST];
    sink = k->normalize(n, 1e-6f, x, other);
}

static void time_unnormalize(const struct kernels *k, size_t n)
{
    static _Alignas(64) float other[LONGEST];
    k->unnormalize(n, 1, x, y, other);
}

static void time_scale_add(const struct kernels *k, size_t n)
{
    k->scale_add(n, -1, x, y);
}

static void time_correct(const struct kernels *k, size_t n)
{
    sink = k->correct(n, 0.5f, y, x);
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

// length: the one of lengths at which the program calls it most: rows of vectors, rows of scores.
// at: where a set says which function it is.
#define BENCH(name, length) #name, time_##name, length, offsetof(struct kernels, name)
static const struct {
    const char *name;
    void (*run)(const struct kernels *k, size_t n);
    int length;
    size_t at;
} benches[] = {
    {BENCH(dot, 0)},       {BENCH(axpy, 0)},
    {BENCH(pool, 0)},      {BENCH(unpool, 0)},
    {BENCH(correct, 1)},   {BENCH(exp_shifted, 1)},
    {BENCH(max, 1)},       {BENCH(scale, 1)},
    {BENCH(weigh, 0)},     {BENCH(unweigh, 0)},
    {BENCH(normalize, 0)}, {BENCH(unnormalize, 0)},
    {BENCH(scale_add, 0)}, {BENCH(rowwise_adagrad, 0)},
    {BENCH(to_half, 0)},
};

enum { BENCHES = sizeof benches / sizeof *benches };

// Whether set s took the function of the one before it, because its own was not faster.
static bool taken_over(const struct kernels *const *list, int s, size_t at)
{
    return memcmp((const char *)list[s] + at, (const char *)list[s - 1] + at,
                  sizeof(void (*)(void))) == 0;
}

// Whether test_kernels, which lies beside this program, passes. What it says goes to stderr.
static bool bits_are_equal(const char *program)
{
    char path[4096];
    snprintf(path, sizeof path, "%s", program);
    const char *directory = dirname(path);
    const pid_t pid = fork();
    if (pid == 0) {
        dup2(STDERR_FILENO, STDOUT_FILENO);
        if (chdir(directory) == 0)
            execl("./test_kernels", "test_kernels", (char *)NULL);
        perror("test_kernels");
        _exit(127);
    }
    int status;
    return pid > 0 && waitpid(pid, &status, 0) == pid && status == 0;
}

// ns (sets) per float: the best of a few rounds, for the others were disturbed.
static void measure(void (*run)(const struct kernels *, size_t), size_t n, int sets,
                    const struct kernels *const *list, double *ns)
{
    const size_t calls = (1 << 22) / n;
    for (int round = 0; round < ROUNDS; round++)
        for (int s = 0; s < sets; s++) {
            const double start = thread_cpu_s();
            for (size_t i = 0; i < calls; i++)
                run(list[s], n);
            const double spent = 1e9 * (thread_cpu_s() - start) / (double)(calls * n);
            ns[s] = round == 0 || spent < ns[s] ? spent : ns[s];
        }
}

int main(int argc, char **argv)
{
    const bool json = figures_as_json(&argc, argv);
    const struct kernels *list[SETS_MAX];
    const int sets = kernels_list(list, SETS_MAX);
    struct rng r = {1, 0};
    rng_fill_uniform(&r, x, LONGEST, -1, 1);
    rng_fill_uniform(&r, y, LONGEST, -1, 1);
    rng_fill_uniform(&r, z, LONGEST, 0, 1);
    if (!bits_are_equal(argv[0])) {
        fprintf(stderr, "bench_kernels: test_kernels failed, so nothing is timed\n");
        return 1;
    }

    if (!json) {
        printf("%-16s %6s", "ns per float", "n");
        for (int s = 0; s < sets; s++)
            printf(" %8s", list[s]->name);
        printf("   not faster than the set before\n");
    }
    for (int b = 0; b < BENCHES; b++) {
        double ns[LENGTHS][SETS_MAX];
        char marks[256] = "", stage[64], extra[512];
        size_t used = 0;
        for (int l = 0; l < LENGTHS; l++) {
            measure(benches[b].run, lengths[l], sets, list, ns[l]);
            if (json)
                continue;
            printf("%-16s %6zu", benches[b].name, lengths[l]);
            for (int s = 0; s < sets; s++)
                if (s > 0 && taken_over(list, s, benches[b].at))
                    printf(" %8s", "=");
                else
                    printf(" %8.4f", ns[l][s]);
            for (int s = 1; s < sets; s++)
                if (ns[l][s] >= ns[l][s - 1] && !taken_over(list, s, benches[b].at))
                    printf("   %s", list[s]->name);
            printf("\n");
        }
        for (int s = 1; s < sets; s++) {
            int slower = 0;
            for (int l = 0; l < LENGTHS; l++)
                slower += ns[l][s] >= ns[l][s - 1];
            if (slower == LENGTHS && !taken_over(list, s, benches[b].at))
                used += (size_t)snprintf(marks + used, sizeof marks - used, "%s%s", used ? " " : "",
                                         list[s]->name);
        }
        const double *best = ns[benches[b].length];
        snprintf(stage, sizeof stage, "%s, n = %zu", benches[b].name, lengths[benches[b].length]);
        used = (size_t)snprintf(extra, sizeof extra, "\"set\":\"%s\",\"nowhere_faster\":\"%s\"",
                                list[sets - 1]->name, marks);
        for (int s = 0; s < sets; s++)
            used += (size_t)snprintf(extra + used, sizeof extra - used, ",\"%s\":%.4g",
                                     list[s]->name, best[s]);
        assert(used < sizeof extra);
        if (json)
            figure_print(true, &(struct figure){.stage = stage,
                                                .unit = "ns per float",
                                                .ours = best[sets - 1],
                                                .reference = "plain C",
                                                .theirs = best[0],
                                                .ratio = best[0] / best[sets - 1],
                                                .goal = ">= 1",
                                                .extra = extra,
                                                .detail = true});
        else if (*marks)
            printf("%-16s nowhere faster: %s\n", benches[b].name, marks);
    }
    return 0;
}
