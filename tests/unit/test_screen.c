// SPDX-License-Identifier: Apache-2.0
#include "daemon/screen.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>
// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

static char shown[4096];

// What a file has received.
static const char *file_text(FILE *out)
{
    rewind(out);
    const size_t n = fread(shown, 1, sizeof shown - 1, out);
    shown[n] = 0;
    return shown;
}

// A terminal of so many columns: what is written to out comes out of the other end as it is.
struct terminal {
    int end;
    FILE *out;
};

static struct terminal terminal_open(unsigned short columns)
{
    struct terminal t = {.end = posix_openpt(O_RDWR | O_NOCTTY)};
    struct termios raw;
    assert_true(t.end >= 0 && grantpt(t.end) == 0 && unlockpt(t.end) == 0);
    t.out = fopen(ptsname(t.end), "w");
    assert_non_null(t.out);
    assert_int_equal(ioctl(t.end, TIOCSWINSZ, &(struct winsize){.ws_col = columns}), 0);
    assert_int_equal(tcgetattr(fileno(t.out), &raw), 0);
    cfmakeraw(&raw);
    assert_int_equal(tcsetattr(fileno(t.out), TCSANOW, &raw), 0);
    setenv("TERM", "xterm", 1);
    unsetenv("NO_COLOR");
    return t;
}

// What has come out of the other end since the last call. A terminal hands on what it has in pieces
// of its choice, so a mark is sent after it and read up to.
static const char *terminal_text(struct terminal *t)
{
    const char mark = '\x04';
    size_t n = 0;
    assert_int_equal(fputc(mark, t->out), mark);
    assert_int_equal(fflush(t->out), 0);
    do {
        assert_true(n < sizeof shown);
        assert_int_equal(read(t->end, shown + n, 1), 1);
    } while (shown[n++] != mark);
    shown[n - 1] = 0;
    return shown;
}

static void terminal_close(struct terminal *t)
{
    fclose(t->out);
    close(t->end);
}

static void in_a_file_every_change_is_a_plain_line(void **state)
{
    struct screen s;
    FILE *out = tmpfile();
    (void)state;
    screen_init(&s, out);
    screen_line(&s, SCREEN_BOLD, "%d events", 3);
    screen_change(&s, "one");
    screen_change(&s, "two");
    screen_rest(&s);
    assert_string_equal(file_text(out), "3 events\none\ntwo\n");
    fclose(out);
}

static void on_a_terminal_only_the_changing_line_is_written_over(void **state)
{
    struct screen s;
    struct terminal t = terminal_open(80);
    (void)state;
    screen_init(&s, t.out);
    screen_change(&s, "one");
    screen_change(&s, "two");
    screen_line(&s, SCREEN_PLAIN, "stays");
    screen_change(&s, "three");
    screen_rest(&s);
    screen_rest(&s); // nothing is left to rest
    assert_string_equal(terminal_text(&t), "one\r\x1b[Ktwo\r\x1b[Kstays\nthree\n");
    terminal_close(&t);
}

static void the_changing_line_leaves_the_last_column_free(void **state)
{
    struct screen s;
    struct terminal t = terminal_open(6);
    (void)state;
    screen_init(&s, t.out);
    assert_int_equal(screen_width(&s), 6);
    screen_change(&s, "▁▂▃▄▅▆▇");
    assert_string_equal(terminal_text(&t), "▁▂▃▄▅");
    terminal_close(&t);
}

static void no_color_and_a_dumb_terminal_are_heeded(void **state)
{
    struct screen s;
    struct terminal t = terminal_open(80);
    (void)state;
    screen_init(&s, t.out);
    screen_line(&s, SCREEN_BOLD, "bold");
    assert_string_equal(terminal_text(&t), "\x1b[1mbold\x1b[0m\n");
    setenv("NO_COLOR", "1", 1);
    screen_init(&s, t.out);
    screen_line(&s, SCREEN_BOLD, "bold");
    assert_string_equal(terminal_text(&t), "bold\n");
    setenv("TERM", "dumb", 1);
    screen_init(&s, t.out);
    screen_change(&s, "one");
    screen_change(&s, "two");
    assert_string_equal(terminal_text(&t), "one\ntwo\n");
    terminal_close(&t);
}

static void what_fits_is_counted_in_characters(void **state)
{
    (void)state;
    assert_int_equal(screen_fit("", 5), 0);
    assert_int_equal(screen_fit("abc", 0), 0);
    assert_int_equal(screen_fit("abc", 2), 2);
    assert_int_equal(screen_fit("abc", 3), 3);
    assert_int_equal(screen_fit("abc", 80), 3);
    assert_int_equal(screen_fit("a▁é!", 2), 4);
    assert_int_equal(screen_fit("a▁é!", 3), 6);
    assert_int_equal(screen_fit("a▁é!", 4), 7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(in_a_file_every_change_is_a_plain_line),
        cmocka_unit_test(on_a_terminal_only_the_changing_line_is_written_over),
        cmocka_unit_test(the_changing_line_leaves_the_last_column_free),
        cmocka_unit_test(no_color_and_a_dumb_terminal_are_heeded),
        cmocka_unit_test(what_fits_is_counted_in_characters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
