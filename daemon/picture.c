// SPDX-License-Identifier: Apache-2.0
#include "daemon/picture.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

// Of the drawing, in its own units; the plot lies within.
enum { WIDTH = 960, HEIGHT = 480, LEFT = 64, RIGHT = 800, TOP = 104, BOTTOM = 420 };
enum { TICKS_WANTED = 6, LABEL_HEIGHT = 20 };

static const char style[] =
    "<style>\n"
    "svg{--page:#fff;--ink:#1b1f24;--soft:#5b6470;--grid:#e6e9ed;--mark:#8a5a00;"
    "--line0:#0b62c4;--line1:#c2410c;--line2:#1f7a3d;--line3:#7c3aed;"
    "font-family:system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif}\n"
    "@media(prefers-color-scheme:dark){svg{--page:#14171b;--ink:#eceff3;--soft:#9aa4b1;"
    "--grid:#2a3038;--mark:#f0b429;--line0:#6cb2ff;--line1:#ff9a5c;--line2:#6fd58f;"
    "--line3:#b79cff}}\n"
    "</style>\n";

// The same colours as attributes: renderers without CSS variables take these.
static const char *const line_colours[PICTURE_LINES_MAX] = {"#0b62c4", "#c2410c", "#1f7a3d",
                                                            "#7c3aed"};

struct axis {
    double low, high; // of the values
    double from, to;  // of the drawing
    double step;      // between ticks
};

static double axis_at(const struct axis *a, double value)
{
    return a->from + (value - a->low) / (a->high - a->low) * (a->to - a->from);
}

// 1, 2 or 5 times a power of ten, giving about TICKS_WANTED ticks.
static double step_for(double range)
{
    const double rough = range / TICKS_WANTED, power = pow(10, floor(log10(rough)));
    const double factor = rough / power;
    return power * (factor <= 1 ? 1 : factor <= 2 ? 2 : factor <= 5 ? 5 : 10);
}

static void put_text(FILE *f, const char *text)
{
    for (; *text; text++) {
        switch (*text) {
        case '<':
            fputs("&lt;", f);
            break;
        case '>':
            fputs("&gt;", f);
            break;
        case '&':
            fputs("&amp;", f);
            break;
        default:
            fputc(*text, f);
        }
    }
}

// 250, 1.5k, 20k, 3M: as many decimals as the step between ticks needs.
static void put_number(FILE *f, double value, double step, double largest)
{
    static const struct {
        double unit;
        const char *suffix;
    } units[] = {{1e9, "G"}, {1e6, "M"}, {1e4, "k"}, {0, ""}};
    int u = 0;
    while (largest < units[u].unit)
        u++;
    const double unit = u == 3 ? 1 : u == 2 ? 1e3 : units[u].unit;
    int decimals = 0;
    for (double s = step / unit; decimals < 6 && fabs(s - round(s)) > 1e-6; s *= 10)
        decimals++;
    fprintf(f, "%.*f%s", decimals, value / unit, value == 0 ? "" : units[u].suffix);
}

static void put_axes(FILE *f, const struct picture *p, const struct axis *x, const struct axis *y)
{
    // Ticks are counted, not added up: 0.1 ten times is not 1.
    const int y_last = (int)floor(y->high / y->step + 1e-9);
    fprintf(f, "<g font-size=\"13\" fill=\"#5b6470\" style=\"fill:var(--soft)\">\n");
    for (int i = 0; i <= y_last; i++) {
        const double at = axis_at(y, i * y->step);
        fprintf(f,
                "<path d=\"M%d %.1fH%d\" fill=\"none\" stroke=\"#e6e9ed\" "
                "style=\"stroke:var(--grid)\"/>\n<text x=\"%d\" y=\"%.1f\" "
                "text-anchor=\"end\">",
                LEFT, at, RIGHT, LEFT - 10, at + 4.5);
        put_number(f, i * y->step, y->step, y->high);
        fprintf(f, "</text>\n");
    }
    const double x_first = ceil(x->low / x->step - 1e-9);
    const int x_count = (int)floor(x->high / x->step - x_first + 1e-9);
    for (int i = 0; i <= x_count; i++) {
        const double value = (x_first + i) * x->step, at = axis_at(x, value);
        fprintf(f,
                "<path d=\"M%.1f %dv6\" fill=\"none\" stroke=\"#5b6470\" "
                "style=\"stroke:var(--soft)\"/>\n<text x=\"%.1f\" y=\"%d\" "
                "text-anchor=\"middle\">",
                at, BOTTOM, at, BOTTOM + 22);
        put_number(f, value, x->step, x->high);
        fprintf(f, "</text>\n");
    }
    fprintf(f,
            "<path d=\"M%d %dH%d\" fill=\"none\" stroke=\"#5b6470\" "
            "style=\"stroke:var(--soft)\"/>\n<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">",
            LEFT, BOTTOM, RIGHT, (LEFT + RIGHT) / 2, BOTTOM + 46);
    put_text(f, p->x_label);
    fprintf(f, "</text>\n</g>\n");
}

static void put_markers(FILE *f, const struct picture *p, const struct axis *x)
{
    for (int i = 0; i < p->markers; i++) {
        const struct picture_marker *marker = &p->marker[i];
        if (!(marker->x >= x->low && marker->x <= x->high))
            continue;
        // The label stands above the plot, where no line can cross it, and inside the drawing.
        const double at = axis_at(x, marker->x), share = (at - LEFT) / (RIGHT - LEFT);
        const char *anchor = share < 0.2 ? "start" : share > 0.8 ? "end" : "middle";
        fprintf(f,
                "<path d=\"M%.1f %dV%d\" fill=\"none\" stroke=\"#8a5a00\" stroke-width=\"1.5\" "
                "stroke-dasharray=\"4 4\" style=\"stroke:var(--mark)\"/>\n"
                "<text x=\"%.1f\" y=\"%d\" font-size=\"13\" text-anchor=\"%s\" fill=\"#8a5a00\" "
                "style=\"fill:var(--mark)\">",
                at, TOP - 6, BOTTOM, at, TOP - 13, anchor);
        put_text(f, marker->label);
        fprintf(f, "</text>\n");
    }
}

static void put_line(FILE *f, const struct picture *p, int line, const struct axis *x,
                     const struct axis *y)
{
    const double *values = p->line[line].y;
    bool pen_down = false;
    fprintf(f,
            "<path fill=\"none\" stroke=\"%s\" stroke-width=\"%s\" stroke-linejoin=\"round\" "
            "stroke-linecap=\"round\" style=\"stroke:var(--line%d)\" d=\"",
            line_colours[line], line == 0 ? "3" : "2", line);
    for (int i = 0; i < p->points; i++) {
        if (isfinite(values[i])) // a point alone between gaps becomes a dot: round ends
            fprintf(f, pen_down ? "L%.1f %.1f" : "M%.1f %.1fh0", axis_at(x, p->x[i]),
                    axis_at(y, values[i]));
        pen_down = isfinite(values[i]);
    }
    fprintf(f, "\"/>\n");
}

static int last_of(const struct picture *p, int line)
{
    int i = p->points - 1;
    while (i >= 0 && !isfinite(p->line[line].y[i]))
        i--;
    return i;
}

// Labels stand at the ends of their lines, in the lines' order from top to bottom; where ends lie
// close, labels move apart, and the whole stack stays within the plot.
static void put_labels(FILE *f, const struct picture *p, const struct axis *x, const struct axis *y)
{
    int order[PICTURE_LINES_MAX], n = 0;
    double end[PICTURE_LINES_MAX], at[PICTURE_LINES_MAX];
    for (int line = 0; line < p->lines; line++) {
        if (last_of(p, line) < 0)
            continue;
        end[line] = axis_at(y, p->line[line].y[last_of(p, line)]);
        int k = n++;
        for (; k > 0 && end[order[k - 1]] > end[line]; k--)
            order[k] = order[k - 1];
        order[k] = line;
    }
    for (int k = 0; k < n; k++) {
        at[k] = end[order[k]];
        if (k > 0 && at[k] < at[k - 1] + 2 * LABEL_HEIGHT)
            at[k] = at[k - 1] + 2 * LABEL_HEIGHT;
    }
    for (int k = n - 1; k >= 0; k--) {
        const double limit = k == n - 1 ? BOTTOM - LABEL_HEIGHT : at[k + 1] - 2 * LABEL_HEIGHT;
        if (at[k] > limit)
            at[k] = limit;
    }
    for (int k = 0; k < n; k++) {
        const int line = order[k], last = last_of(p, line);
        const double x_end = axis_at(x, p->x[last]);
        fprintf(f,
                "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\" fill=\"%s\" "
                "style=\"fill:var(--line%d)\"/>\n<g fill=\"%s\" style=\"fill:var(--line%d)\">"
                "<text x=\"%d\" y=\"%.1f\" font-size=\"15\" font-weight=\"600\">",
                x_end, end[line], line_colours[line], line, line_colours[line], line, RIGHT + 14,
                at[k] + 1);
        put_text(f, p->line[line].label);
        fprintf(f, "</text><text x=\"%d\" y=\"%.1f\" font-size=\"15\">%.3f</text></g>\n",
                RIGHT + 14, at[k] + 19, p->line[line].y[last]);
    }
}

static void put_picture(FILE *f, const struct picture *p)
{
    struct axis x = {0, 1, LEFT, RIGHT, 1}, y = {0, 0, BOTTOM, TOP, 1};
    if (p->points > 1 && p->x[p->points - 1] > p->x[0]) {
        x.low = p->x[0];
        x.high = p->x[p->points - 1];
    }
    x.step = step_for(x.high - x.low);
    for (int line = 0; line < p->lines; line++)
        for (int i = 0; i < p->points; i++)
            if (isfinite(p->line[line].y[i]) && p->line[line].y[i] > y.high)
                y.high = p->line[line].y[i];
    if (y.high <= 0)
        y.high = 1;
    y.step = step_for(y.high);
    y.high = y.step * ceil(y.high / y.step - 1e-9); // the top tick lies on the top edge

    fprintf(f,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" "
            "viewBox=\"0 0 %d %d\" role=\"img\">\n<title>",
            WIDTH, HEIGHT, WIDTH, HEIGHT);
    put_text(f, p->title);
    fprintf(f, "</title>\n%s", style);
    fprintf(f,
            "<g font-family=\"system-ui,'DejaVu Sans',sans-serif\">\n"
            "<rect width=\"%d\" height=\"%d\" fill=\"#fff\" style=\"fill:var(--page)\"/>\n"
            "<text x=\"%d\" y=\"36\" font-size=\"20\" font-weight=\"600\" fill=\"#1b1f24\" "
            "style=\"fill:var(--ink)\">",
            WIDTH, HEIGHT, 24);
    put_text(f, p->title);
    fprintf(f, "</text>\n");
    if (p->subtitle) {
        fprintf(f, "<text x=\"24\" y=\"59\" font-size=\"14\" fill=\"#5b6470\" "
                   "style=\"fill:var(--soft)\">");
        put_text(f, p->subtitle);
        fprintf(f, "</text>\n");
    }
    put_axes(f, p, &x, &y);
    put_markers(f, p, &x);
    if (p->points > 1) {
        for (int line = p->lines - 1; line >= 0; line--) // the first on top of the others
            put_line(f, p, line, &x, &y);
        put_labels(f, p, &x, &y);
    }
    fprintf(f, "</g>\n</svg>\n");
}

int picture_write(const char *path, const struct picture *picture)
{
    assert(picture->lines >= 0 && picture->lines <= PICTURE_LINES_MAX);
    assert(picture->markers >= 0 && picture->markers <= PICTURE_MARKERS_MAX);
    char *beside = NULL;
    int rc = 0;
    if (asprintf(&beside, "%s.tmp", path) < 0)
        return -ENOMEM;
    FILE *f = fopen(beside, "w");
    if (!f) {
        rc = -errno;
        goto done;
    }
    put_picture(f, picture);
    // A full disk shows at the latest in fclose; an error before leaves its mark on the stream.
    errno = 0;
    if (ferror(f) || fflush(f) != 0)
        rc = errno ? -errno : -EIO;
    if (fclose(f) != 0 && rc == 0)
        rc = -errno;
    if (rc == 0 && rename(beside, path) != 0)
        rc = -errno;
    if (rc < 0)
        unlink(beside);
done:
    free(beside);
    return rc;
}
