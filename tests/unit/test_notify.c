// SPDX-License-Identifier: Apache-2.0
#include "daemon/notify.h"

#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

struct fixture {
    int listener;
    struct notify n;
    char name[64], message[1024];
};

// Listens where NOTIFY_SOCKET says, as systemd does.
static void listen_at(struct fixture *f, const char *name)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const size_t length = strlen(name);
    memcpy(address.sun_path, name, length);
    if (*name == '@')
        address.sun_path[0] = 0;
    f->listener = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    assert_true(f->listener >= 0);
    assert_int_equal(bind(f->listener, (struct sockaddr *)&address,
                          (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length)),
                     0);
    setenv("NOTIFY_SOCKET", name, 1);
}

static int setup(void **state)
{
    static struct fixture f;
    f = (struct fixture){.listener = -1};
    unsetenv("NOTIFY_SOCKET");
    unsetenv("WATCHDOG_USEC");
    unsetenv("WATCHDOG_PID");
    snprintf(f.name, sizeof f.name, "@twotower-test-%d", getpid());
    listen_at(&f, f.name);
    assert_int_equal(notify_open(&f.n), 0);
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    notify_close(&f->n);
    close(f->listener);
    return 0;
}

static const char *received(struct fixture *f)
{
    const ssize_t n = recv(f->listener, f->message, sizeof f->message - 1, 0);
    if (n < 0)
        return NULL;
    f->message[n] = 0;
    return f->message;
}

static void ready_and_status_come_in_one_message(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(notify_ready(&f->n, "Consuming %d partitions", 8), 0);
    assert_string_equal(received(f), "READY=1\nSTATUS=Consuming 8 partitions");
    assert_int_equal(notify_status(&f->n, "%s behind", "1.2 s"), 0);
    assert_string_equal(received(f), "STATUS=1.2 s behind");
    assert_int_equal(notify_stopping(&f->n, "Draining"), 0);
    assert_string_equal(received(f), "STOPPING=1\nSTATUS=Draining");
}

static void a_socket_in_the_file_system_works_too(void **state)
{
    struct fixture *f = *state;
    char path[64];
    notify_close(&f->n);
    close(f->listener);
    snprintf(path, sizeof path, "/tmp/twotower-test-%d.sock", getpid());
    unlink(path);
    listen_at(f, path);
    assert_int_equal(notify_open(&f->n), 0);
    assert_int_equal(notify_ready(&f->n, "x"), 0);
    assert_string_equal(received(f), "READY=1\nSTATUS=x");
    unlink(path);
}

static void a_status_cannot_carry_a_second_field(void **state)
{
    struct fixture *f = *state;
    notify_status(&f->n, "%s", "one\nREADY=1\nMAINPID=1");
    assert_string_equal(received(f), "STATUS=one READY=1 MAINPID=1");
}

static void a_status_that_is_too_long_is_cut(void **state)
{
    struct fixture *f = *state;
    notify_ready(&f->n, "%02000d", 5);
    assert_true(strlen(received(f)) < 600);
}

static void more_time_is_asked_for_in_microseconds(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(notify_extend(&f->n, 5000000), 0);
    assert_string_equal(received(f), "EXTEND_TIMEOUT_USEC=5000000");
}

static void without_systemd_nothing_happens_and_nothing_fails(void **state)
{
    struct notify n;
    (void)state;
    unsetenv("NOTIFY_SOCKET");
    assert_int_equal(notify_open(&n), 0);
    assert_int_equal(n.fd, -1);
    assert_int_equal(notify_ready(&n, "x"), 0);
    assert_null(notify_watchdog(&n, 0, NULL));
    notify_close(&n);
}

static void an_address_that_is_none_is_refused(void **state)
{
    struct notify n;
    char name[200];
    (void)state;
    setenv("NOTIFY_SOCKET", "relative/path", 1);
    assert_int_equal(notify_open(&n), -EAFNOSUPPORT);
    memset(name, 'x', sizeof name - 1);
    name[sizeof name - 1] = 0;
    name[0] = '/';
    setenv("NOTIFY_SOCKET", name, 1);
    assert_int_equal(notify_open(&n), -ENAMETOOLONG);
}

static void a_listener_that_is_gone_is_an_error_and_no_more(void **state)
{
    struct fixture *f = *state;
    close(f->listener);
    assert_int_equal(notify_ready(&f->n, "x"), -ECONNREFUSED);
}

static void the_watchdog_is_ours_when_it_names_us_or_nobody(void **state)
{
    struct notify n;
    char pid[16];
    (void)state;
    setenv("WATCHDOG_USEC", "30000000", 1);
    assert_int_equal(notify_open(&n), 0);
    assert_int_equal(n.watchdog_us, 30000000);
    notify_close(&n);
    snprintf(pid, sizeof pid, "%d", getpid());
    setenv("WATCHDOG_PID", pid, 1);
    assert_int_equal(notify_open(&n), 0);
    assert_int_equal(n.watchdog_us, 30000000);
    notify_close(&n);
    setenv("WATCHDOG_PID", "1", 1);
    assert_int_equal(notify_open(&n), 0);
    assert_int_equal(n.watchdog_us, 0);
    notify_close(&n);
}

static void the_watchdog_is_fed_while_every_worker_moves_or_waits(void **state)
{
    struct fixture *f = *state;
    struct notify_worker workers[] = {{.name = "ingest"}, {.name = "trainer"}};
    notify_beat(&workers[0]);
    notify_beat(&workers[1]);
    assert_null(notify_watchdog(&f->n, 2, workers));
    assert_string_equal(received(f), "WATCHDOG=1");

    notify_beat(&workers[0]);
    workers[1].waits = true;
    assert_null(notify_watchdog(&f->n, 2, workers));
    assert_string_equal(received(f), "WATCHDOG=1");

    notify_beat(&workers[0]);
    workers[1].waits = false;
    assert_string_equal(notify_watchdog(&f->n, 2, workers), "trainer");
    assert_null(received(f));

    notify_beat(&workers[0]);
    notify_beat(&workers[1]);
    assert_null(notify_watchdog(&f->n, 2, workers));
    assert_string_equal(received(f), "WATCHDOG=1");
}

static void reading_anew_is_told_and_ends_with_ready(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(notify_reloading(&f->n, "Reading %s", "it"), 0);
    assert_string_equal(received(f), "RELOADING=1\nSTATUS=Reading it");
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(ready_and_status_come_in_one_message),
        TEST(a_socket_in_the_file_system_works_too),
        TEST(a_status_cannot_carry_a_second_field),
        TEST(a_status_that_is_too_long_is_cut),
        TEST(more_time_is_asked_for_in_microseconds),
        TEST(without_systemd_nothing_happens_and_nothing_fails),
        TEST(an_address_that_is_none_is_refused),
        TEST(a_listener_that_is_gone_is_an_error_and_no_more),
        TEST(the_watchdog_is_ours_when_it_names_us_or_nobody),
        TEST(the_watchdog_is_fed_while_every_worker_moves_or_waits),
        TEST(reading_anew_is_told_and_ends_with_ready),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
