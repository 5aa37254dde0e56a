// SPDX-License-Identifier: Apache-2.0
//
// Fails the test unless dx, the gradient a backward pass produced, agrees with central
// differences of loss over every one of x[0..n). It proves that backward belongs to forward;
// that forward is right needs numbers from elsewhere (see the first test of test_linear.c).
#pragma once

#include <math.h>
#include <stddef.h>
// clang-format off
#include <stdarg.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

// Central difference at distance step.
static inline double gradient_difference(double (*loss)(void *), void *arg, float *x, float step)
{
    const float x_0 = *x;
    *x = x_0 + step;
    const double up = loss(arg);
    *x = x_0 - step;
    const double down = loss(arg);
    *x = x_0;
    return (up - down) / (2.0 * (double)step);
}

static inline void assert_gradient(const char *name, double (*loss)(void *), void *arg, float *x,
                                   const float *dx, size_t n)
{
    // float32 forward passes: a smaller step drowns in rounding. A larger one drowns in curvature,
    // of which two steps tell how much there is.
    const float step = 1e-2f;

    for (size_t i = 0; i < n; i++) {
        const double near = gradient_difference(loss, arg, &x[i], step / 2);
        const double far = gradient_difference(loss, arg, &x[i], step);
        const double numeric = near + (near - far) / 3;
        const double tolerance = 1e-3 * (1.0 + fabs(numeric));
        if (!(fabs(numeric - dx[i]) <= tolerance)) // written so that NaN fails
            fail_msg("%s[%zu]: backward says %g, differences say %g", name, i, dx[i], numeric);
    }
}
