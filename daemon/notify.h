// SPDX-License-Identifier: Apache-2.0
//
// Tells systemd how the process is doing: the datagrams of sd_notify(3), without libsystemd.
//
// Without NOTIFY_SOCKET in the environment every call succeeds and does nothing, so nobody asks
// whether systemd is there. A failure is -errno and worth a line in the log, no more. Any thread
// may notify once notify_open has returned.
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/un.h>

struct notify {
    int fd; // -1: nobody listens
    struct sockaddr_un address;
    socklen_t address_size;
    int64_t watchdog_us; // WATCHDOG_USEC of this process; 0: nobody watches
};

// Reads NOTIFY_SOCKET (a path, or an abstract name with @ in front), WATCHDOG_USEC, WATCHDOG_PID.
int notify_open(struct notify *n);
void notify_close(struct notify *n);

// status is a printf format for one line: "Consuming 8 partitions, 1.2 s behind".
__attribute__((format(printf, 2, 3))) int notify_ready(const struct notify *n, const char *status,
                                                       ...);
__attribute__((format(printf, 2, 3))) int notify_status(const struct notify *n, const char *status,
                                                        ...);
// The configuration is being read anew; notify_ready ends it.
__attribute__((format(printf, 2, 3))) int notify_reloading(const struct notify *n,
                                                           const char *status, ...);
__attribute__((format(printf, 2, 3))) int notify_stopping(const struct notify *n,
                                                          const char *status, ...);
// Start or stop may take this much longer from now on; to be repeated while it goes on.
int notify_extend(const struct notify *n, int64_t us);

// The watchdog is for threads that are stuck, not only for a process that is gone. Each thread has
// a worker: it beats in its loop, and says when it waits for something that may take long. The main
// loop calls notify_watchdog at least every watchdog_us / 2; systemd is told only if every worker
// has beaten since the last time, or waits.
struct notify_worker {
    const char *name; // "trainer"
    _Atomic uint64_t beats;
    _Atomic bool waits;
    uint64_t beats_seen; // by the main loop only
};

static inline void notify_beat(struct notify_worker *w)
{
    atomic_fetch_add_explicit(&w->beats, 1, memory_order_relaxed);
}

// The name of the first worker that is stuck, and then nothing is sent; NULL when all are well.
const char *notify_watchdog(const struct notify *n, int n_workers, struct notify_worker *workers);
