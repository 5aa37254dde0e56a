// SPDX-License-Identifier: Apache-2.0
//
// Corrections of sampled softmax, multi-interest, clipped optimisers.
#include "tests/golden/case.h"

const struct topic sampling_topics[] = {
    {NULL, NULL},
};
