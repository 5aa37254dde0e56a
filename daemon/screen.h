// SPDX-License-Identifier: Apache-2.0
//
// What a person watches: lines that stay, and below them one line that changes. On a terminal the
// changing line is written over in place, cut to the terminal's width; elsewhere (a file, a pipe,
// TERM=dumb) every change is a line of its own, so the caller should change it seldom there.
//
// Only the one line is ever written over: what others write to the terminal meanwhile, such as
// warnings of the log, stays. Colours are left out when NO_COLOR is set or it is no terminal.
// Texts are UTF-8 with one column for each character. One thread.
#pragma once

#include <stdbool.h>
#include <stdio.h>

enum screen_style { SCREEN_PLAIN, SCREEN_BOLD, SCREEN_FAINT };

struct screen {
    FILE *out;
    bool terminal, colours;
    bool changing; // the cursor stands behind a line that will be written over
};

void screen_init(struct screen *s, FILE *out);
// A line that stays.
__attribute__((format(printf, 3, 4))) void screen_line(struct screen *s, enum screen_style style,
                                                       const char *format, ...);
// The line that changes. screen_line writes over it; screen_rest leaves it standing.
void screen_change(struct screen *s, const char *text);
void screen_rest(struct screen *s);
// Columns of the terminal, 80 when unknown.
int screen_width(const struct screen *s);
// Bytes of the longest beginning of text that fits into so many columns.
int screen_fit(const char *text, int columns);
