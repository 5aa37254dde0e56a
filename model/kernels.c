// SPDX-License-Identifier: Apache-2.0
#include "model/kernels.h"

#include <cpuid.h>
#include <string.h>

extern const struct kernels kernels_plain, kernels_avx2, kernels_avx512;

static int plain_runs(void)
{
    return 1;
}

// Clang 14's __builtin_cpu_supports has no name for this one.
static int f16c_there(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

// What the compiler was allowed to use for each set; see CMakeLists.txt.
static int avx2_runs(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c_there();
}

static int avx512_runs(void)
{
    return avx2_runs() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
}

// Best last.
static const struct {
    const struct kernels *set;
    int (*runs)(void);
} sets[] = {
    {&kernels_plain, plain_runs},
    {&kernels_avx2, avx2_runs},
    {&kernels_avx512, avx512_runs},
};

enum { SETS = sizeof sets / sizeof *sets };

const struct kernels *kernels = &kernels_plain;

int kernels_list(const struct kernels **list, int max)
{
    int n = 0;
    __builtin_cpu_init();
    for (int i = 0; i < SETS && n < max; i++)
        if (sets[i].runs())
            list[n++] = sets[i].set;
    return n;
}

int kernels_init(const char *name)
{
    const struct kernels *list[SETS];
    const int n = kernels_list(list, SETS);
    for (int i = n - 1; i >= 0; i--)
        if (!name || strcmp(list[i]->name, name) == 0) {
            kernels = list[i];
            return 0;
        }
    return -1;
}
