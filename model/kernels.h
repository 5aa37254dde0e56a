// SPDX-License-Identifier: Apache-2.0
//
// The loops that are neither a matrix product nor a decision. One source, model/kernels_impl.c,
// is compiled once for each instruction set; model/kernels.c makes the sets of what paid, and
// kernels_init picks the best one this CPU runs.
//
// Every kernel keeps 16 partial sums whatever the register width, and multiplies and adds in one
// only where the source says so, so all sets give the same bits, whatever the alignment of what
// they read; tests/unit/test_kernels.c proves it. So the set may change from one run to the next.
// What else of model/ computes is C without contraction and reordering, and calls of libm, which
// gives other last bits on CPUs without FMA; the core of BLAS is the third (model/gemm.h). What is
// promised of all three together stands in daemon/numerics.h. Shapes: n is a number of floats; rows
// are dense.
#pragma once

#include <stddef.h>

struct products;

struct kernels {
    const char *name;
    // sum of x[i] y[i], and of x[i]^2
    float (*dot)(size_t n, const float *x, const float *y);
    // y += a x
    void (*axpy)(size_t n, float a, const float *x, float *y);
    // Of m rows, of which the first g belong together: writes the sum over those of x[k] / g, and
    // over all of w[k] x[k] and of x[k] / m to the three rows of pooled (3, n), and the sum of
    // w[k] z[k] to context (n). m > 0, 0 < g <= m. One pass over the rows instead of four.
    void (*pool)(size_t n, int m, int g, const float *w, const float *const *x,
                 const float *const *z, float *pooled, float *context);
    // Its derivative: adds what dpooled (3, n) and dcontext (n) give for each row to dx[k] and to
    // dz[k], in the order of k, for a row may occur twice.
    void (*unpool)(size_t n, int m, int g, const float *w, const float *dpooled,
                   const float *dcontext, float *const *dx, float *const *dz);
    // Of m rows x_k, one after the other: y += sum of p[k] x_k.
    void (*weigh)(size_t n, int m, const float *p, const float *x, float *y);
    // The derivative of that and of s_k = a . x_k: dx_k += p[k] dy + ds[k] a, da += sum ds[k] x_k.
    void (*unweigh)(size_t n, int m, const float *p, const float *ds, const float *a,
                    const float *dy, const float *x, float *dx, float *da);
    // y = (x - mean) / sqrt(variance + epsilon), and returns what the differences were multiplied
    // by. y may be x. n > 0.
    float (*normalize)(size_t n, float epsilon, const float *x, float *y);
    // Its derivative: dx = scale (dy - mean of dy - y times the mean of y dy). dx may be dy.
    void (*unnormalize)(size_t n, float scale, const float *y, const float *dy, float *dx);
    // x = a x + c, returns the largest, -inf for n = 0
    float (*correct)(size_t n, float a, const float *c, float *x);
    // x[i] = exp(x[i] - shift), returns the sum; max returns the largest, -inf for n = 0.
    // exp is within 2 ulp for arguments in [-87, 0] and 0 below.
    float (*exp_shifted)(size_t n, float shift, float *x);
    float (*max)(size_t n, const float *x);
    // Of m rows of n, each beginning stride floats after the one before (a multiple of 16, >= n):
    // the softmax of scale times the row, zeros behind it up to the next multiple of 16. n > 0.
    void (*softmax)(int m, size_t n, size_t stride, float scale, float *p);
    // Its derivative: dp, on entry the gradient of p, becomes that of the row.
    void (*softmax_backward)(int m, size_t n, size_t stride, float scale, const float *p,
                             float *dp);
    void (*scale)(size_t n, float a, float *x);
    // x *= a, then y += x
    void (*scale_add)(size_t n, float a, float *x, float *y);
    // Row-wise Adagrad: g = gradient + l2 row; G += mean(g^2); row -= rate g / (sqrt(G) + epsilon).
    void (*rowwise_adagrad)(size_t n, float rate, float l2, float epsilon, const float *gradient,
                            float *row, float *G);
    // IEEE half precision, round to nearest even.
    void (*to_half)(size_t n, const float *x, unsigned short *y);
    const struct products *products; // of the same instruction set
};

extern const struct kernels *kernels; // "plain" until kernels_init
// Picks the best set, or the one of this name; NULL name means best. Returns 0, or -1 when the
// name is unknown or the CPU lacks the instructions.
int kernels_init(const char *name);
// All sets this CPU can run, best last.
int kernels_list(const struct kernels **list, int max);
