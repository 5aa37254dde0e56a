// SPDX-License-Identifier: Apache-2.0
//
// What tt_topk_batch and tt_codes_make do (snapshot/twotower_reader.h), with the loops of a given
// instruction set.
#pragma once

#include "snapshot/scan.h"
#include "snapshot/twotower_reader.h"

int topk_batch(const struct scan *scan, const struct tt_query *queries, uint32_t n,
               const struct tt_codes *codes, uint32_t *rows, float *scores, uint32_t *found);
int topk_codes(const struct scan *scan, struct tt_codes **codes, const struct tt_array *items);
