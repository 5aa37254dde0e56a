// SPDX-License-Identifier: Apache-2.0
//
// Counter-based random numbers: the n-th number of a stream is a function of (key, n) and nothing
// else, so a run that starts in the middle draws what an uninterrupted run would have drawn.
// The function is SplitMix64's finaliser over key + n * golden ratio (Steele, Lea, Flood 2014).
#pragma once

#include <stddef.h>
#include <stdint.h>

struct rng {
    uint64_t key, next;
};

// The n-th number of the stream with this key.
uint64_t rng_at(uint64_t key, uint64_t n);
// A key for a stream of its own: for a purpose, an id, a partition.
uint64_t rng_key(uint64_t seed, uint64_t purpose);

uint64_t rng_next(struct rng *r);
// Uniform in [0, n), n > 0; the bias of the multiply-shift is below n / 2^64.
uint64_t rng_below(struct rng *r, uint64_t n);
// Uniform in [0, 1) and in [low, high).
float rng_float(struct rng *r);
void rng_fill_uniform(struct rng *r, float *x, size_t n, float low, float high);
