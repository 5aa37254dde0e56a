// SPDX-License-Identifier: Apache-2.0
#include "model/logistic.h"

#include <assert.h>
#include <math.h>

#include "model/kernels.h"

// e^-|z|, which never overflows: sigma and softplus of either sign follow from it.
static void exp_minus_abs(size_t n, const float *z, float *e)
{
    for (size_t i = 0; i < n; i++)
        e[i] = -fabsf(z[i]);
    kernels->exp_shifted(n, 0, e);
}

void logistic(size_t n, const float *z, float *p)
{
    assert(p != z);
    exp_minus_abs(n, z, p);
    for (size_t i = 0; i < n; i++)
        p[i] = (z[i] < 0 ? p[i] : 1) / (1 + p[i]);
}

struct logistic_sum logistic_loss(size_t rows, int T, const float *z, const float *label,
                                  const float *weight, const float *positive_weight,
                                  float *row_loss, float *dz)
{
    const size_t n = rows * (size_t)T;
    struct logistic_sum sum = {0, 0};
    assert(T > 0 && dz != z);
    exp_minus_abs(n, z, dz);
    for (size_t row = 0, i = 0; row < rows; row++) {
        for (int t = 0; t < T; t++, i++) {
            if (isnan(label[i])) {
                dz[i] = 0;
                if (row_loss)
                    row_loss[i] = 0;
                continue;
            }
            const float e = dz[i], w = weight ? weight[i] : 1;
            const float yes = w * label[i] * (positive_weight ? positive_weight[t] : 1);
            const float no = w * (1 - label[i]);
            // softplus(z) = max(z, 0) + log(1 + e^-|z|). Taking z away from it for the other sign
            // would cancel.
            const float both = log1pf(e), above = z[i] > 0 ? z[i] : 0, below = z[i] < 0 ? -z[i] : 0;
            const float loss = yes * (below + both) + no * (above + both);
            // 1 - p without cancellation, for it is the gradient of a confident positive.
            const float large = 1 / (1 + e), small = e / (1 + e);
            dz[i] = z[i] < 0 ? no * small - yes * large : no * large - yes * small;
            if (row_loss)
                row_loss[i] = loss;
            sum.loss += (double)loss;
            sum.pairs++;
        }
    }
    return sum;
}
