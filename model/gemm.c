// SPDX-License-Identifier: Apache-2.0
#include "model/gemm.h"

#include <cblas.h>
#include <stdio.h>
#include <string.h>

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

const char *gemm_core_wanted(void)
{
#if defined(__x86_64__)
    // Cores by what they need; an older core on a newer CPU is the fault looked for here.
    static const char *const avx512[] = {"SkylakeX", "Cooperlake", "SapphireRapids"};
    static const char *const avx2[] = {"Haswell", "Zen"};
    const char *core = gemm_core();
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw")) {
        for (size_t i = 0; i < sizeof avx512 / sizeof *avx512; i++)
            if (!strcasecmp(core, avx512[i]))
                return NULL;
        return "SkylakeX";
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        for (size_t i = 0; i < sizeof avx2 / sizeof *avx2; i++)
            if (!strcasecmp(core, avx2[i]))
                return NULL;
        return "Haswell";
    }
#endif
    return NULL;
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
