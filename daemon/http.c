// SPDX-License-Identifier: Apache-2.0
#include "daemon/http.h"

#include <arpa/inet.h>
#include <assert.h>
#include <cjson/cJSON.h>
#include <errno.h>
#include <microhttpd.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/metrics.h"

// A body that was malloc'ed; libmicrohttpd frees it with the response.
struct answer {
    unsigned status;
    char *body;
    size_t size;
};

struct page {
    const char *path, *type;
    struct answer (*answer)(struct http *h);
};

static struct answer text_answer(unsigned status, const char *text)
{
    char *body = strdup(text);
    return (struct answer){status, body, body ? strlen(body) : 0};
}

static struct answer metrics_answer(struct http *h)
{
    (void)h;
    struct answer a = {.status = MHD_HTTP_OK};
    a.body = metrics_text(&a.size);
    return a;
}

// That it answers is the answer: the main loop is watched by systemd's watchdog, not by this page.
static struct answer healthz_answer(struct http *h)
{
    (void)h;
    return text_answer(MHD_HTTP_OK, "ok\n");
}

static struct answer readyz_answer(struct http *h)
{
    struct http_check checks[HTTP_CHECKS_MAX] = {0};
    const int n = h->ready ? h->ready(h->ready_arg, checks) : 0;
    bool ready = true;
    assert(n >= 0 && n <= HTTP_CHECKS_MAX);

    cJSON *body = cJSON_CreateObject(), *list = cJSON_CreateArray();
    for (int i = 0; i < n; i++) {
        cJSON *check = cJSON_CreateObject();
        ready &= checks[i].ok || checks[i].advisory;
        cJSON_AddStringToObject(check, "name", checks[i].name);
        cJSON_AddBoolToObject(check, "ok", checks[i].ok);
        if (checks[i].advisory)
            cJSON_AddTrueToObject(check, "advisory");
        if (*checks[i].message)
            cJSON_AddStringToObject(check, "message", checks[i].message);
        cJSON_AddItemToArray(list, check);
    }
    cJSON_AddBoolToObject(body, "ready", ready);
    cJSON_AddItemToObject(body, "checks", list);
    struct answer a = {.status = ready ? MHD_HTTP_OK : MHD_HTTP_SERVICE_UNAVAILABLE};
    a.body = cJSON_PrintUnformatted(body);
    a.size = a.body ? strlen(a.body) : 0;
    cJSON_Delete(body);
    return a;
}

static const struct page pages[] = {
    {"/metrics", "text/plain; version=0.0.4; charset=utf-8", metrics_answer},
    {"/healthz", "text/plain; charset=utf-8", healthz_answer},
    {"/readyz", "application/json", readyz_answer},
};
enum { PAGES = sizeof pages / sizeof *pages };

static struct answer missing_answer(void)
{
    char text[256];
    int n = snprintf(text, sizeof text, "There is nothing here. There is:\n");
    for (const struct page *page = pages; page < pages + PAGES; page++)
        n += snprintf(text + n, sizeof text - n, "    %s\n", page->path);
    return text_answer(MHD_HTTP_NOT_FOUND, text);
}

static enum MHD_Result send_answer(struct MHD_Connection *connection, struct answer a,
                                   const char *type)
{
    if (!a.body)
        return MHD_NO; // memory is short: the connection is closed
    struct MHD_Response *response =
        MHD_create_response_from_buffer(a.size, a.body, MHD_RESPMEM_MUST_FREE);
    if (!response) {
        free(a.body);
        return MHD_NO;
    }
    MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, type);
    MHD_add_response_header(response, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store");
    if (a.status == MHD_HTTP_METHOD_NOT_ALLOWED)
        MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW, "GET, HEAD");
    const enum MHD_Result sent = MHD_queue_response(connection, a.status, response);
    MHD_destroy_response(response);
    return sent;
}

static enum MHD_Result handle(void *arg, struct MHD_Connection *connection, const char *path,
                              const char *method, const char *version, const char *upload,
                              size_t *upload_size, void **state)
{
    struct http *h = arg;
    const char *const plain = "text/plain; charset=utf-8";
    (void)version, (void)upload, (void)upload_size, (void)state;

    // libmicrohttpd leaves the body out for HEAD, and refuses one that was sent along.
    if (strcmp(method, MHD_HTTP_METHOD_GET) != 0 && strcmp(method, MHD_HTTP_METHOD_HEAD) != 0)
        return send_answer(connection,
                           text_answer(MHD_HTTP_METHOD_NOT_ALLOWED, "GET and HEAD only\n"), plain);
    for (const struct page *page = pages; page < pages + PAGES; page++)
        if (strcmp(path, page->path) == 0)
            return send_answer(connection, page->answer(h), page->type);
    return send_answer(connection, missing_answer(), plain);
}

int http_address(const char *text, struct sockaddr_storage *address, socklen_t *size)
{
    struct sockaddr_in *four = (struct sockaddr_in *)address;
    struct sockaddr_in6 *six = (struct sockaddr_in6 *)address;
    const bool brackets = *text == '[';
    const char *colon = strrchr(text, ':');
    char host[INET6_ADDRSTRLEN + 2] = "", *end;

    if (!colon || (size_t)(colon - text) >= sizeof host || colon[1] < '0' || colon[1] > '9')
        return -EINVAL;
    errno = 0;
    const unsigned long port = strtoul(colon + 1, &end, 10);
    if (errno || *end || port > 65535)
        return -EINVAL;
    const size_t length = colon - text;
    if (brackets && (length < 2 || text[length - 1] != ']'))
        return -EINVAL;
    memcpy(host, text + brackets, length - 2 * brackets);

    *address = (struct sockaddr_storage){0};
    if (brackets) {
        six->sin6_family = AF_INET6;
        six->sin6_port = htons((uint16_t)port);
        *size = sizeof *six;
        return inet_pton(AF_INET6, host, &six->sin6_addr) == 1 ? 0 : -EINVAL;
    }
    four->sin_family = AF_INET;
    four->sin_port = htons((uint16_t)port);
    *size = sizeof *four;
    return inet_pton(AF_INET, host, &four->sin_addr) == 1 ? 0 : -EINVAL;
}

int http_open(struct http *h, const char *listen, http_ready_fn ready, void *ready_arg)
{
    struct sockaddr_storage address;
    socklen_t size;

    *h = (struct http){.ready = ready, .ready_arg = ready_arg};
    if (!*listen)
        return 0;
    if (http_address(listen, &address, &size) < 0) {
        snprintf(h->error, sizeof h->error, "%s is not a numeric address with a port", listen);
        return -EINVAL;
    }
    // The port is not shared (SO_REUSEPORT): a second process would get half of the scrapes.
    const unsigned family = address.ss_family == AF_INET6 ? MHD_USE_IPv6 : 0;
    errno = 0;
    h->server = MHD_start_daemon(MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_POLL | family, 0, NULL,
                                 NULL, handle, h, MHD_OPTION_SOCK_ADDR, (struct sockaddr *)&address,
                                 MHD_OPTION_CONNECTION_LIMIT, 64u, MHD_OPTION_CONNECTION_TIMEOUT,
                                 10u, MHD_OPTION_END);
    if (!h->server) {
        const int rc = errno ? -errno : -EADDRINUSE;
        snprintf(h->error, sizeof h->error, "cannot listen on %s: %s", listen, strerror(-rc));
        return rc;
    }
    h->port = MHD_get_daemon_info(h->server, MHD_DAEMON_INFO_BIND_PORT)->port;
    return 0;
}

void http_close(struct http *h)
{
    if (h->server)
        MHD_stop_daemon(h->server);
    h->server = NULL;
}
