// SPDX-License-Identifier: Apache-2.0
//
// A line chart as one SVG file that needs nothing else: no script, no font from elsewhere. It
// follows the viewer's light or dark scheme where the viewer knows of it, and is light otherwise.
// Lines are named at their right ends. The demo draws recall over time against popularity with it.
//
// The same picture gives the same bytes. Texts are UTF-8 and may hold any character but controls.
#pragma once

enum { PICTURE_LINES_MAX = 4, PICTURE_MARKERS_MAX = 4 };

struct picture_line {
    const char *label; // short: about 16 characters find room beside the plot
    const double *y;   // one for each point; a NaN leaves a gap
};

struct picture_marker {
    const char *label;
    double x; // a dashed vertical there; outside the range of x it is left out
};

struct picture {
    const char *title, *subtitle; // subtitle may be NULL
    const char *x_label;          // with its unit, such as "seconds"
    int points;
    const double *x; // ascending
    int lines;       // the first one is drawn strongest
    struct picture_line line[PICTURE_LINES_MAX];
    int markers;
    struct picture_marker marker[PICTURE_MARKERS_MAX];
};

// Writes beside path and renames, so that path is never half a picture. The y axis starts at 0.
// With fewer than two points or nothing but NaN, axes and title are drawn alone. Returns 0 or
// -errno; then path is as it was.
int picture_write(const char *path, const struct picture *picture);
