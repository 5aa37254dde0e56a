// SPDX-License-Identifier: Apache-2.0
#include "model/onebp.h"

#include <assert.h>

#include "model/kernels.h"

void onebp_move(int D, float beta, const float *item, float *user)
{
    assert(D > 0 && beta >= 0 && beta <= 1);
    kernels->scale((size_t)D, beta, user);
    kernels->axpy((size_t)D, 1 - beta, item, user);
}
