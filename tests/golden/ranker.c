// SPDX-License-Identifier: Apache-2.0
//
// Light ranker, proxy ranker, delayed feedback, mixture of logits.
#include "tests/golden/case.h"

const struct topic ranker_topics[] = {
    {NULL, NULL},
};
