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

static inline void assert_gradient(const char *name, double (*loss)(void *), void *arg, float *x,
                                   const float *dx, size_t n)
{
    // float32 forward passes: a smaller step drowns in rounding, a larger one in curvature.
    const float step = 1e-2f;

    for (size_t i = 0; i < n; i++) {
        const float x_i = x[i];
        x[i] = x_i + step;
        const double up = loss(arg);
        x[i] = x_i - step;
        const double down = loss(arg);
        x[i] = x_i;

        const double numeric = (up - down) / (2.0 * step);
        const double tolerance = 1e-3 * (1.0 + fabs(numeric));
        if (!(fabs(numeric - dx[i]) <= tolerance)) // written so that NaN fails
            fail_msg("%s[%zu]: backward says %g, differences say %g", name, i, dx[i], numeric);
    }
}
