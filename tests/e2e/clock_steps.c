// SPDX-License-Identifier: Apache-2.0
//
// To be preloaded: the wall clock jumps forward by a day and back again every 20 ms. The monotonic
// clock goes on.
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { DAY_S = 86400, EVERY_NS = 20000000 };

int clock_gettime(clockid_t clock, struct timespec *t)
{
    struct timespec now;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
    const int rc = (int)syscall(SYS_clock_gettime, clock, t);
    if (rc == 0 && clock == CLOCK_REALTIME && now.tv_nsec / EVERY_NS % 2)
        t->tv_sec += DAY_S;
    return rc;
}
