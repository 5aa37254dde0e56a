// SPDX-License-Identifier: Apache-2.0
//
// How often an item occurs in the stream, without a vocabulary: Yi et al. 2019, algorithms 2 and 3.
// An item's cell keeps A, when it was last seen, and B, the mean gap between sightings:
//
//     B <- (1 - rate) B + rate (t - A);   A <- t;   probability = 1 / B
//
// The cells are the caller's, one for each row of a table, so that items share none and the paper's
// hashes are not needed. What is done beyond the paper:
//
//     first sighting    B starts at 1 / prior; the gap since time 0 is not a gap
//     within a batch    an item that occurs k times has its gap divided by k: counted once, one
//     that
//                       is in every batch would read 1 / (batch size) however often it occurs, and
//                       counted one by one, its second occurrence would record the gap 0
//     young cells       rate = max(rate, 1 / (sightings + 1)): the plain mean until it has memory
//     gone items        the gap read is max(B, t - A), so an item that stops appearing fades
//     bounds            no gap below 1, no probability above 1
//     time              t counts examples, not batches and not seconds, so that batches of any size
//                       agree: the probability is that of one example
//
// One thread updates; the cells and the time belong to the checkpoint.
#pragma once

#include <stdint.h>

struct frequency_cell {
    uint64_t last;      // A
    float gap;          // B
    uint32_t sightings; // saturates; 0 for a cell never touched
};

// The recursion itself, as printed, for one cell.
void frequency_recur(struct frequency_cell *cell, float rate, uint64_t now);

// An item seen `times` times, at least once, in the batch that ends at `now`, and the probability
// as of `now` that the next example is of this item. prior: of an item never seen.
void frequency_sight(struct frequency_cell *cell, float rate, float prior, uint64_t now,
                     uint32_t times);
float frequency_read(const struct frequency_cell *cell, float prior, uint64_t now);
