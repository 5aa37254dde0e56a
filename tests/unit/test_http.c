// SPDX-License-Identifier: Apache-2.0
#include "daemon/http.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

struct fixture {
    struct http h;
    _Atomic bool behind, advised;
    char answer[65536];
};

static int checks(void *arg, struct http_check *list)
{
    const struct fixture *f = arg;
    list[0] = (struct http_check){.name = "lag", .ok = !f->behind};
    list[1] = (struct http_check){.name = "restored", .ok = !f->advised, .advisory = f->advised};
    if (f->behind)
        snprintf(list[0].message, sizeof list[0].message, "41 s \"behind\"");
    return 2;
}

static int setup(void **state)
{
    static struct fixture f;
    f.behind = f.advised = false;
    assert_int_equal(http_open(&f.h, "127.0.0.1:0", checks, &f), 0);
    assert_true(f.h.port > 0);
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    http_close(&f->h);
    return 0;
}

// Sends bytes and returns everything that comes back.
static const char *talk(struct fixture *f, const char *request)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)f->h.port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(send(fd, request, strlen(request), MSG_NOSIGNAL), strlen(request));
    size_t size = 0;
    for (ssize_t n; (n = recv(fd, f->answer + size, sizeof f->answer - 1 - size, 0)) > 0;)
        size += (size_t)n;
    f->answer[size] = 0;
    close(fd);
    return f->answer;
}

static const char *get(struct fixture *f, const char *method, const char *path)
{
    char request[256];
    snprintf(request, sizeof request,
             "%s %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
             method, path);
    return talk(f, request);
}

static void assert_contains(const char *text, const char *part)
{
    if (!strstr(text, part))
        fail_msg("'%s' is not in:\n%s", part, text);
}

static void metrics_are_served_as_prometheus_reads_them(void **state)
{
    const char *answer = get(*state, "GET", "/metrics");
    assert_contains(answer, "HTTP/1.1 200 ");
    assert_contains(answer, "Content-Type: text/plain; version=0.0.4");
    assert_contains(answer, "\ntwotower_steps_total 0\n");
}

static void a_living_process_is_healthy(void **state)
{
    const char *answer = get(*state, "GET", "/healthz");
    assert_contains(answer, "HTTP/1.1 200 ");
    assert_contains(answer, "\r\n\r\nok\n");
}

static void ready_is_every_check_and_the_body_says_which_failed(void **state)
{
    struct fixture *f = *state;
    const char *answer = get(f, "GET", "/readyz");
    assert_contains(answer, "HTTP/1.1 200 ");
    assert_contains(answer, "application/json");
    assert_contains(answer, "{\"ready\":true,\"checks\":[{\"name\":\"lag\",\"ok\":true},"
                            "{\"name\":\"restored\",\"ok\":true}]}");
    f->behind = true;
    answer = get(f, "GET", "/readyz");
    assert_contains(answer, "HTTP/1.1 503 ");
    assert_contains(answer,
                    "{\"ready\":false,\"checks\":[{\"name\":\"lag\",\"ok\":false,"
                    "\"message\":\"41 s \\\"behind\\\"\"},{\"name\":\"restored\",\"ok\":true}]}");
    f->behind = false;
    f->advised = true;
    answer = get(f, "GET", "/readyz");
    assert_contains(answer, "HTTP/1.1 200 ");
    assert_contains(answer, "{\"ready\":true,\"checks\":[{\"name\":\"lag\",\"ok\":true},"
                            "{\"name\":\"restored\",\"ok\":false,\"advisory\":true}]}");
}

static void head_has_the_length_and_no_body(void **state)
{
    const char *answer = get(*state, "HEAD", "/healthz");
    assert_contains(answer, "HTTP/1.1 200 ");
    assert_contains(answer, "Content-Length: 3");
    assert_string_equal(strstr(answer, "\r\n\r\n"), "\r\n\r\n");
}

static void nothing_can_be_written(void **state)
{
    static const char *const methods[] = {"POST", "PUT", "DELETE", "OPTIONS"};
    for (int i = 0; i < 4; i++) {
        const char *answer = get(*state, methods[i], "/metrics");
        assert_contains(answer, "HTTP/1.1 405 ");
        assert_contains(answer, "Allow: GET, HEAD");
    }
}

static void an_unknown_path_is_answered_with_the_known_ones(void **state)
{
    static const char *const paths[] = {"/", "/metric", "/metrics/", "/../etc/passwd"};
    for (int i = 0; i < 4; i++) {
        const char *answer = get(*state, "GET", paths[i]);
        assert_contains(answer, "HTTP/1.1 404 ");
        assert_contains(answer, "    /metrics\n    /healthz\n    /readyz\n");
    }
}

static void nonsense_does_not_stop_it(void **state)
{
    talk(*state, "\x16\x03\x01 not http at all\r\n\r\n");
    assert_contains(get(*state, "GET", "/healthz"), "HTTP/1.1 200 ");
}

static void an_empty_address_is_off(void **state)
{
    struct http h;
    (void)state;
    assert_int_equal(http_open(&h, "", NULL, NULL), 0);
    assert_null(h.server);
    http_close(&h);
}

static void a_port_in_use_is_said(void **state)
{
    struct fixture *f = *state;
    struct http h;
    char listen[32];
    snprintf(listen, sizeof listen, "127.0.0.1:%d", f->h.port);
    assert_int_equal(http_open(&h, listen, NULL, NULL), -EADDRINUSE);
    assert_contains(h.error, listen);
    http_close(&h);
}

static void addresses_are_numeric_with_a_port(void **state)
{
    static const struct {
        const char *text;
        int family, port; // family 0: refused
    } cases[] = {
        {"127.0.0.1:9464", AF_INET, 9464},
        {"0.0.0.0:0", AF_INET, 0},
        {"[::1]:80", AF_INET6, 80},
        {"[fe80::1:2]:65535", AF_INET6, 65535},
        {"127.0.0.1", 0, 0},
        {"127.0.0.1:", 0, 0},
        {"127.0.0.1:65536", 0, 0},
        {"127.0.0.1:-1", 0, 0},
        {"127.0.0.1:80x", 0, 0},
        {"localhost:80", 0, 0},
        {":80", 0, 0},
        {"::1:80", 0, 0},
        {"[::1:80", 0, 0},
        {"[]:80", 0, 0},
        {"[", 0, 0},
        {"1111111111111111111111111111111111111111111111111111111111:80", 0, 0},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct sockaddr_storage address;
        socklen_t size = 0;
        const int rc = http_address(cases[i].text, &address, &size);
        if (rc != (cases[i].family ? 0 : -EINVAL))
            fail_msg("%s: %d", cases[i].text, rc);
        if (rc < 0)
            continue;
        assert_int_equal(address.ss_family, cases[i].family);
        const uint16_t port = address.ss_family == AF_INET
                                  ? ((struct sockaddr_in *)&address)->sin_port
                                  : ((struct sockaddr_in6 *)&address)->sin6_port;
        assert_int_equal(ntohs(port), cases[i].port);
    }
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(metrics_are_served_as_prometheus_reads_them),
        TEST(a_living_process_is_healthy),
        TEST(ready_is_every_check_and_the_body_says_which_failed),
        TEST(head_has_the_length_and_no_body),
        TEST(nothing_can_be_written),
        TEST(an_unknown_path_is_answered_with_the_known_ones),
        TEST(nonsense_does_not_stop_it),
        TEST(an_empty_address_is_off),
        TEST(a_port_in_use_is_said),
        TEST(addresses_are_numeric_with_a_port),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
