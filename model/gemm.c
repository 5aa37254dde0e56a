// SPDX-License-Identifier: Apache-2.0
#include "model/gemm.h"

#include <cblas.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

void gemm_nt_part(int M, int N, int K, const float *A, int lda, const float *B, int ldb, float *C,
                  int ldc)
{
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, M, N, K, 1, A, lda, B, ldb, 1, C, ldc);
}

void gemm_tn_part(int M, int N, int K, const float *A, int lda, const float *B, int ldb, float *C,
                  int ldc)
{
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, M, N, K, 1, A, lda, B, ldb, 1, C, ldc);
}

void gemm_nn_part(int M, int N, int K, const float *A, int lda, const float *B, int ldb, float *C,
                  int ldc)
{
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, M, N, K, 1, A, lda, B, ldb, 1, C, ldc);
}

void gemm_nt(int M, int N, int K, const float *A, const float *B, float *C)
{
    gemm_nt_part(M, N, K, A, K, B, K, C, N);
}

void gemm_tn(int M, int N, int K, const float *A, const float *B, float *C)
{
    gemm_tn_part(M, N, K, A, M, B, N, C, N);
}

void gemm_nn(int M, int N, int K, const float *A, const float *B, float *C)
{
    gemm_nn_part(M, N, K, A, K, B, N, C, N);
}

void gemm_init(void)
{
    openblas_set_num_threads(1);
}

const char *gemm_core(void)
{
    return openblas_get_corename();
}

// What cores need beyond SSE4, and CPUs have. AVX2 is with FMA; AVX-512 is F, VL, DQ and BW.
enum { AVX = 1, AVX2 = 2, AVX512 = 4, BF16 = 8, FMA4 = 16 };

static unsigned core_needs(const char *core)
{
    static const struct {
        const char *core;
        unsigned needs;
    } cores[] = {
        {"Sandybridge", AVX},
        {"Haswell", AVX2},
        {"Zen", AVX2},
        {"SkylakeX", AVX2 | AVX512},
        {"Bulldozer", AVX | FMA4},
        {"Cooperlake", AVX2 | AVX512 | BF16},
        {"Piledriver", AVX | FMA4},
        {"SapphireRapids", AVX2 | AVX512 | BF16},
        {"Steamroller", AVX | FMA4},
        {"Excavator", AVX | FMA4},
    };
    for (size_t i = 0; i < sizeof cores / sizeof *cores; i++)
        if (!strcasecmp(core, cores[i].core))
            return cores[i].needs;
    return 0;
}

static unsigned cpu_has(void)
{
    unsigned has = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx"))
        has |= AVX;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        has |= AVX2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw"))
        has |= AVX512;
    if (__builtin_cpu_supports("avx512bf16"))
        has |= BF16;
    if (__builtin_cpu_supports("fma4"))
        has |= FMA4;
#endif
    return has;
}

bool gemm_core_runs(const char *core)
{
    return !(core_needs(core) & ~cpu_has());
}

const char *gemm_core_wanted(void)
{
    // An older core on a newer CPU is the fault looked for here.
    const unsigned has = cpu_has(), used = core_needs(gemm_core());
    if (has & AVX512)
        return used & AVX512 ? NULL : "SkylakeX";
    return has & AVX2 && !(used & AVX2) ? "Haswell" : NULL;
}

const char *gemm_library(void)
{
    static char name[64];
    const char *config = openblas_get_config(); // "OpenBLAS 0.3.21 DYNAMIC_ARCH ..."
    int words = 0;
    size_t n = 0;
    for (; config[n] && n + 1 < sizeof name; n++) {
        if (config[n] == ' ' && ++words == 2)
            break;
        name[n] = config[n];
    }
    name[n] = 0;
    return name;
}
