// SPDX-License-Identifier: Apache-2.0
#include "model/rng.h"

uint64_t rng_at(uint64_t key, uint64_t n)
{
    uint64_t z = key + (n + 1) * UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

uint64_t rng_key(uint64_t seed, uint64_t purpose)
{
    return rng_at(rng_at(seed, purpose), purpose);
}

uint64_t rng_next(struct rng *r)
{
    return rng_at(r->key, r->next++);
}

uint64_t rng_below(struct rng *r, uint64_t n)
{
    return (uint64_t)(((__uint128_t)rng_next(r) * n) >> 64);
}

float rng_float(struct rng *r)
{
    return (float)(rng_next(r) >> 40) * 0x1p-24f;
}

void rng_fill_uniform(struct rng *r, float *x, size_t n, float low, float high)
{
    for (size_t i = 0; i < n; i++)
        x[i] = low + (high - low) * rng_float(r);
}
