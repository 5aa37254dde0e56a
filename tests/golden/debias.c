// SPDX-License-Identifier: Apache-2.0
//
// Value, debiasing and position models.
#include "tests/golden/case.h"

const struct topic debias_topics[] = {
    {NULL, NULL},
};
