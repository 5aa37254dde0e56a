// SPDX-License-Identifier: Apache-2.0
//
// The loops that are neither a matrix product nor a decision. One source, model/kernels_impl.c,
// is compiled once for each instruction set; kernels_init picks the best one this CPU runs.
//
// Every kernel keeps 16 partial sums whatever the register width, and nothing is contracted to
// fused multiply-add, so all sets give the same bits; tests/unit/test_kernels.c proves it.
// Shapes: n is a number of floats; rows are dense.
#pragma once

#include <stddef.h>

struct kernels {
    const char *name;
    // sum of x[i] y[i], and of x[i]^2
    float (*dot)(size_t n, const float *x, const float *y);
    // y += a x;  y += a x + b z
    void (*axpy)(size_t n, float a, const float *x, float *y);
    void (*axpy2)(size_t n, float a, const float *x, float b, const float *z, float *y);
    // x[i] = exp(x[i] - shift), returns the sum; max returns the largest, -inf for n = 0.
    // exp is within 2 ulp for arguments in [-87, 0] and 0 below.
    float (*exp_shifted)(size_t n, float shift, float *x);
    float (*max)(size_t n, const float *x);
    void (*scale)(size_t n, float a, float *x);
    // Row-wise Adagrad: g = gradient + l2 row; G += mean(g^2); row -= rate g / (sqrt(G) + epsilon).
    void (*rowwise_adagrad)(size_t n, float rate, float l2, float epsilon, const float *gradient,
                            float *row, float *G);
    // IEEE half precision, round to nearest even.
    void (*to_half)(size_t n, const float *x, unsigned short *y);
};

extern const struct kernels *kernels; // "plain" until kernels_init
// Picks the best set, or the one of this name; NULL name means best. Returns 0, or -1 when the
// name is unknown or the CPU lacks the instructions.
int kernels_init(const char *name);
// All sets this CPU can run, best last.
int kernels_list(const struct kernels **list, int max);
