// SPDX-License-Identifier: Apache-2.0
//
// Losses over one slate: distillation, alignment, preference, policy gradient.
#include "tests/golden/case.h"

const struct topic slate_topics[] = {
    {NULL, NULL},
};
