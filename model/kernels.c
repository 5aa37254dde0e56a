// SPDX-License-Identifier: Apache-2.0
#include "model/kernels.h"

#include <cpuid.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

extern const struct kernels kernels_plain, kernels_avx2, kernels_avx512;
extern const struct products products_amx;

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

// The tiles' registers are 8 KiB of every thread's state, so a process has to ask the kernel for
// them (Linux 5.16, Documentation/arch/x86/xstate.rst); asking twice does no harm.
static int amx_runs(void)
{
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    enum { AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24, AVX512_BF16 = 1 << 5 };
    unsigned a, b, c, d, more;
    return avx512_runs() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & AMX_BF16) &&
           (d & AMX_TILE) && __get_cpuid_count(7, 1, &more, &b, &c, &d) && (more & AVX512_BF16) &&
           syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

// Best last.
enum { PLAIN, AVX2, AVX512, AMX, SETS };

static int (*const runs[SETS])(void) = {plain_runs, avx2_runs, avx512_runs, amx_runs};
static struct kernels sets[SETS];

const struct kernels *kernels = &kernels_plain;

static void sets_make(void)
{
    sets[PLAIN] = kernels_plain;
    sets[AVX2] = kernels_avx2;
    sets[AVX512] = kernels_avx512;
    // What wider registers do not make faster for rows of 64 (bench_kernels): sums over one row,
    // and the square root that waits for them.
    sets[AVX512].weigh = kernels_avx2.weigh;
    sets[AVX512].normalize = kernels_avx2.normalize;
    sets[AVX512].rowwise_adagrad = kernels_avx2.rowwise_adagrad;
    // Tiles are for products only.
    sets[AMX] = sets[AVX512];
    sets[AMX].name = "amx";
    sets[AMX].products = &products_amx;
}

int kernels_list(const struct kernels **list, int max)
{
    int n = 0;
    __builtin_cpu_init();
    sets_make();
    for (int i = 0; i < SETS && n < max; i++)
        if (runs[i]())
            list[n++] = &sets[i];
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
