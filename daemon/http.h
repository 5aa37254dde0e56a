// SPDX-License-Identifier: Apache-2.0
//
// What the process tells the outside over HTTP, by libmicrohttpd in a thread of its own:
//
//     /metrics   Prometheus text (daemon/metrics.h)
//     /healthz   200 while the process answers at all
//     /readyz    200 when every check passes, else 503; the body is JSON and lists each check:
//                {"ready":false,"checks":[{"name":"lag","ok":false,"message":"41 s behind"}]}
//                One that is "advisory":true tells a person something and does not count.
//
// GET and HEAD only. There is no TLS and no authentication here: keep it on loopback, the default,
// or behind a proxy.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

enum { HTTP_CHECKS_MAX = 16 };

struct http_check {
    const char *name; // "lag"; static
    bool ok, advisory;
    char message[160]; // "41 s behind, the limit is 30 s"
};

// Fills in up to HTTP_CHECKS_MAX checks and returns how many. Called by the HTTP thread.
typedef int (*http_ready_fn)(void *arg, struct http_check *checks);

struct http {
    struct MHD_Daemon *server; // NULL: off
    int port;                  // the one it got, when port 0 was asked for
    http_ready_fn ready;
    void *ready_arg;
    char error[256];
};

// listen is "127.0.0.1:9464", "[::1]:9464", or "" for off. 0 or -errno, with h->error. h must stay
// where it is until http_close, which waits for the answers under way.
int http_open(struct http *h, const char *listen, http_ready_fn ready, void *ready_arg);
void http_close(struct http *h);

// Reads a numeric address with its port. 0 or -EINVAL.
int http_address(const char *text, struct sockaddr_storage *address, socklen_t *size);
