// SPDX-License-Identifier: Apache-2.0
//
// The registers of the instruction set that a file is compiled for; for those files alone that are
// compiled once for each (CMakeLists.txt).
#pragma once

#include <math.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define REGISTER_BYTES 64
#elif defined(__AVX2__)
#define REGISTER_BYTES 32
#else
#define REGISTER_BYTES 16
#endif

enum { WIDTH = REGISTER_BYTES / 4 }; // floats

typedef float vec __attribute__((vector_size(REGISTER_BYTES)));
typedef float vec_unaligned __attribute__((vector_size(REGISTER_BYTES), aligned(4), may_alias));

static inline vec vec_all(float a)
{
    return a - (vec){0};
}

// a b + c, rounded once: asked for, not left to the compiler, so that every set has the same bits.
// Where there is no such instruction it is the C library's, and slow.
static inline vec vec_fma(vec a, vec b, vec c)
{
#if defined(__AVX512F__)
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    for (int i = 0; i < WIDTH; i++)
        c[i] = fmaf(a[i], b[i], c[i]);
    return c;
#endif
}
