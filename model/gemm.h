// SPDX-License-Identifier: Apache-2.0
//
// The only door to BLAS. C (M, N) += op(A) op(B), inner size K, all dense and row-major; the two
// letters say which operand is transposed in memory, so a call reads like the formula beside it.
// One thread per call: two threads would change the order of sums on some cores.
//
// The same operands give the same bits wherever the same build of OpenBLAS runs the same core: how
// a product is cut into blocks, and with it the order of its sums, is fixed for each core at
// compile time (from Nehalem on), whatever the caches' sizes, the operands' alignment and
// OpenBLAS's environment variables (0.3.21; tests/e2e/test_numerics.sh). Another core gives other
// bits. GEMM_CORE_PORTABLE is the fastest one that every x86-64-v3 CPU runs, those with AVX-512 and
// AMD's among them.
//
// Debian 12's OpenBLAS falls back to its SSE3 kernels (core "Prescott") on CPUs it does not know,
// 4 to 6 times slower (OpenMathLib/OpenBLAS issue 4267). gemm_core names what it picked,
// gemm_core_wanted what this CPU should run; the daemon re-executes itself once when they differ
// (daemon/blas_core.h).
#pragma once

#include <stdbool.h>

#define GEMM_CORE_PORTABLE "Haswell"

void gemm_nt(int M, int N, int K, const float *A, const float *B, float *C); // A (M, K), B (N, K)
void gemm_tn(int M, int N, int K, const float *A, const float *B, float *C); // A (K, M), B (K, N)
void gemm_nn(int M, int N, int K, const float *A, const float *B, float *C); // A (M, K), B (K, N)

// The same on parts of wider matrices, a head's columns for example: a row of A, B and C begins
// lda, ldb and ldc floats after the one before.
void gemm_nt_part(int M, int N, int K, const float *A, int lda, const float *B, int ldb, float *C,
                  int ldc);
void gemm_tn_part(int M, int N, int K, const float *A, int lda, const float *B, int ldb, float *C,
                  int ldc);
void gemm_nn_part(int M, int N, int K, const float *A, int lda, const float *B, int ldb, float *C,
                  int ldc);

// Call once, before the first product and before threads: one BLAS thread.
void gemm_init(void);
const char *gemm_core(void);
// NULL when the core that was picked is right for this CPU, else the OPENBLAS_CORETYPE to set.
const char *gemm_core_wanted(void);
// Whether this CPU has the instructions of a core; OpenBLAS itself takes OPENBLAS_CORETYPE's word
// for it, and the process ends in an illegal instruction.
bool gemm_core_runs(const char *core);
const char *gemm_library(void); // for example "OpenBLAS 0.3.21"
