// SPDX-License-Identifier: Apache-2.0
#include "daemon/notify.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { STATUS_SIZE = 512 };

static int notify_send(const struct notify *n, const char *message)
{
    const size_t size = strlen(message);
    if (n->fd < 0)
        return 0;
    // A daemon is not to hang or die because its supervisor does not listen.
    const ssize_t sent = sendto(n->fd, message, size, MSG_NOSIGNAL | MSG_DONTWAIT,
                                (const struct sockaddr *)&n->address, n->address_size);
    return sent < 0 ? -errno : 0;
}

// What is first in the message, then STATUS=. A line break in the status would begin a new field.
__attribute__((format(printf, 3, 0))) static int
notify_send_status(const struct notify *n, const char *first, const char *status, va_list args)
{
    char text[STATUS_SIZE], message[STATUS_SIZE + 64];
    vsnprintf(text, sizeof text, status, args);
    for (char *c = strchr(text, '\n'); c; c = strchr(c, '\n'))
        *c = ' ';
    snprintf(message, sizeof message, "%sSTATUS=%s", first, text);
    return notify_send(n, message);
}

int notify_open(struct notify *n)
{
    const char *path = getenv("NOTIFY_SOCKET"), *watchdog = getenv("WATCHDOG_USEC"),
               *pid = getenv("WATCHDOG_PID");

    *n = (struct notify){.fd = -1, .address.sun_family = AF_UNIX};
    // Without a pid the watchdog is for whoever reads it.
    if (watchdog && (!pid || strtol(pid, NULL, 10) == getpid()))
        n->watchdog_us = strtoll(watchdog, NULL, 10);
    if (n->watchdog_us < 0)
        n->watchdog_us = 0;
    if (!path || !*path)
        return 0;
    const size_t length = strlen(path);
    if (*path != '/' && *path != '@')
        return -EAFNOSUPPORT;
    if (length >= sizeof n->address.sun_path)
        return -ENAMETOOLONG;
    memcpy(n->address.sun_path, path, length);
    // An abstract name is marked by a zero byte, has no terminator, and ends where the size says.
    if (*path == '@')
        n->address.sun_path[0] = 0;
    n->address_size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length + (*path == '/'));
    n->fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    return n->fd < 0 ? -errno : 0;
}

void notify_close(struct notify *n)
{
    if (n->fd >= 0)
        close(n->fd);
    n->fd = -1;
}

#define SEND_STATUS(first)                                                                         \
    va_list args;                                                                                  \
    va_start(args, status);                                                                        \
    const int rc = notify_send_status(n, first, status, args);                                     \
    va_end(args);                                                                                  \
    return rc

int notify_ready(const struct notify *n, const char *status, ...)
{
    SEND_STATUS("READY=1\n");
}

int notify_status(const struct notify *n, const char *status, ...)
{
    SEND_STATUS("");
}

int notify_reloading(const struct notify *n, const char *status, ...)
{
    SEND_STATUS("RELOADING=1\n");
}

int notify_stopping(const struct notify *n, const char *status, ...)
{
    SEND_STATUS("STOPPING=1\n");
}

int notify_extend(const struct notify *n, int64_t us)
{
    char message[64];
    snprintf(message, sizeof message, "EXTEND_TIMEOUT_USEC=%" PRId64, us);
    return notify_send(n, message);
}

const char *notify_watchdog(const struct notify *n, int n_workers, struct notify_worker *workers)
{
    const char *stuck = NULL;
    for (struct notify_worker *w = workers; w < workers + n_workers; w++) {
        const uint64_t beats = atomic_load_explicit(&w->beats, memory_order_relaxed);
        const bool waits = atomic_load_explicit(&w->waits, memory_order_relaxed);
        if (beats == w->beats_seen && !waits && !stuck)
            stuck = w->name;
        w->beats_seen = beats;
    }
    if (!stuck)
        notify_send(n, "WATCHDOG=1");
    return stuck;
}
