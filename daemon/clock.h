// SPDX-License-Identifier: Apache-2.0
//
// What time it is, by any clock of clock_gettime(2): CLOCK_MONOTONIC to measure, CLOCK_REALTIME for
// people, CLOCK_THREAD_CPUTIME_ID and CLOCK_PROCESS_CPUTIME_ID for work. Only daemon/ may ask; what
// is learned does not depend on it. Any thread; cannot fail.
#pragma once

#include <stdint.h>
#include <time.h>

static inline int64_t clock_ms(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static inline double clock_s(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}
