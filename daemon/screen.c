// SPDX-License-Identifier: Apache-2.0
#include "daemon/screen.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static const char *const style_begin[] = {
    [SCREEN_PLAIN] = "", [SCREEN_BOLD] = "\x1b[1m", [SCREEN_FAINT] = "\x1b[2m"};

void screen_init(struct screen *s, FILE *out)
{
    const char *term = getenv("TERM"), *no_color = getenv("NO_COLOR");
    *s = (struct screen){.out = out};
    s->terminal = isatty(fileno(out)) && term && strcmp(term, "dumb") != 0;
    s->colours = s->terminal && !(no_color && *no_color);
}

// To the beginning of an empty line.
static void line_begin(struct screen *s)
{
    if (s->changing)
        fputs("\r\x1b[K", s->out);
    s->changing = false;
}

void screen_line(struct screen *s, enum screen_style style, const char *format, ...)
{
    va_list args;
    const bool styled = s->colours && style != SCREEN_PLAIN;
    line_begin(s);
    if (styled)
        fputs(style_begin[style], s->out);
    va_start(args, format);
    vfprintf(s->out, format, args);
    va_end(args);
    fputs(styled ? "\x1b[0m\n" : "\n", s->out);
    fflush(s->out);
}

void screen_change(struct screen *s, const char *text)
{
    line_begin(s);
    if (s->terminal) {
        // One column is left free: a full line would make some terminals begin the next.
        fprintf(s->out, "%.*s", screen_fit(text, screen_width(s) - 1), text);
        s->changing = true;
    } else {
        fprintf(s->out, "%s\n", text);
    }
    fflush(s->out);
}

void screen_rest(struct screen *s)
{
    if (s->changing)
        putc('\n', s->out);
    s->changing = false;
    fflush(s->out);
}

int screen_width(const struct screen *s)
{
    struct winsize size;
    return ioctl(fileno(s->out), TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

int screen_fit(const char *text, int columns)
{
    int bytes = 0;
    for (; text[bytes] && columns >= 0; bytes++)
        if (((unsigned char)text[bytes] & 0xC0) != 0x80 && columns-- == 0)
            break; // the first byte of a character that finds no room
    return bytes;
}
