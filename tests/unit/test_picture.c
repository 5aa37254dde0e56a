// SPDX-License-Identifier: Apache-2.0
#include "daemon/picture.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
// clang-format off
#include <stdarg.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

static char directory[64], path[128];

static int make_directory(void **state)
{
    (void)state;
    snprintf(directory, sizeof directory, "/tmp/test_picture.XXXXXX");
    if (!mkdtemp(directory))
        return -1;
    snprintf(path, sizeof path, "%s/recall.svg", directory);
    return 0;
}

static int remove_directory(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(directory); // fails when a temporary file was left behind
}

static char *text_of(const char *name)
{
    static char text[65536];
    FILE *f = fopen(name, "r");
    assert_non_null(f);
    const size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = '\0';
    return text;
}

static char *draw(const struct picture *p)
{
    assert_int_equal(picture_write(path, p), 0);
    return text_of(path);
}

static int count(const char *text, const char *word)
{
    int n = 0;
    for (; (text = strstr(text, word)); text += strlen(word))
        n++;
    return n;
}

static const double x[] = {0, 1, 2, 3, 4}, rising[] = {0.0, 0.1, 0.2, 0.3, 0.4};
static const double flat[] = {0.2, 0.2, 0.2, 0.2, 0.2};

static struct picture two_lines(void)
{
    return (struct picture){
        .title = "Recall",
        .x_label = "seconds",
        .points = 5,
        .x = x,
        .lines = 2,
        .line = {{"two towers", rising}, {"popularity", flat}},
        .markers = 1,
        .marker = {{"new hit released", 2}},
    };
}

// The plot is x 64..800 for 0..4 and y 420..104 for 0..0.4.
static void points_lie_where_their_numbers_say(void **state)
{
    const struct picture p = two_lines();
    (void)state;
    const char *svg = draw(&p);
    assert_non_null(strstr(svg, "M64.0 420.0h0L248.0 341.0L432.0 262.0L616.0 183.0L800.0 104.0"));
    assert_non_null(strstr(svg, "M64.0 262.0h0L248.0 262.0L432.0 262.0L616.0 262.0L800.0 262.0"));
    assert_non_null(strstr(svg, "M432.0 98V420")); // the marker at 2
    assert_non_null(strstr(svg, ">two towers</text>"));
    assert_non_null(strstr(svg, ">0.400</text>"));
    assert_non_null(strstr(svg, ">0.200</text>"));
    assert_non_null(strstr(svg, ">new hit released</text>"));
}

static void the_file_needs_nothing_else(void **state)
{
    const struct picture p = two_lines();
    (void)state;
    const char *svg = draw(&p);
    assert_int_equal(count(svg, "http"), 1); // the name of the format
    assert_int_equal(count(svg, "url("), 0);
    assert_int_equal(count(svg, "<script"), 0);
    assert_non_null(strstr(svg, "prefers-color-scheme:dark"));
}

static void a_nan_leaves_a_gap(void **state)
{
    const double gap[] = {0.1, 0.2, NAN, 0.4, NAN};
    struct picture p = two_lines();
    (void)state;
    p.line[0].y = gap;
    const char *svg = draw(&p);
    assert_int_equal(count(svg, "nan"), 0);
    // Two pieces; the label tells the last number there is, beside the point it belongs to.
    assert_non_null(strstr(svg, "M64.0 341.0h0L248.0 262.0M616.0 104.0h0\""));
    assert_non_null(strstr(svg, "cx=\"616.0\" cy=\"104.0\""));
}

static void texts_are_escaped(void **state)
{
    struct picture p = two_lines();
    (void)state;
    p.title = "a < b & c > d";
    p.subtitle = "<x>";
    p.x_label = "&";
    p.line[0].label = "</svg>";
    p.marker[0].label = "<!--";
    const char *svg = draw(&p);
    assert_int_equal(count(svg, "a &lt; b &amp; c &gt; d"), 2); // title element and heading
    assert_int_equal(count(svg, "&lt;x&gt;"), 1);
    assert_int_equal(count(svg, "</svg>"), 1);
    assert_int_equal(count(svg, "<!--"), 0);
}

static void labels_of_lines_that_end_together_stand_apart(void **state)
{
    struct picture p = two_lines();
    double y[2] = {0};
    int n = 0;
    (void)state;
    p.line[0].y = flat; // both lines end at 0.2
    for (const char *at = draw(&p); (at = strstr(at, "<text x=\"814\"")); at++) {
        double place;
        int length = 0; // set when the whole pattern fits: a name, not the number below it
        sscanf(at, "<text x=\"814\" y=\"%lf\" font-size=\"15\" font-weight%n", &place, &length);
        if (length > 0 && n < 2)
            y[n++] = place;
    }
    assert_int_equal(n, 2);
    assert_true(fabs(y[0] - y[1]) >= 40);
}

static void a_picture_without_points_has_axes_alone(void **state)
{
    const double none[] = {NAN, NAN, NAN, NAN, NAN};
    struct picture p = two_lines();
    (void)state;
    p.line[0].y = p.line[1].y = none;
    assert_int_equal(count(draw(&p), "nan"), 0);
    assert_int_equal(count(draw(&p), "<circle"), 0);
    assert_int_equal(count(draw(&p), ">1.0</text>"), 1); // the axis goes from 0 to 1
    p.points = 0;
    p.x = NULL;
    assert_int_equal(count(draw(&p), "<circle"), 0);
    assert_int_equal(count(draw(&p), "</svg>"), 1);
}

static void a_marker_outside_is_left_out(void **state)
{
    struct picture p = two_lines();
    (void)state;
    p.marker[0].x = 4.5;
    assert_null(strstr(draw(&p), "new hit released"));
    p.marker[0].x = NAN;
    assert_null(strstr(draw(&p), "new hit released"));
}

static void large_numbers_are_written_short(void **state)
{
    const double events[] = {0, 250000, 500000, 750000, 1500000};
    struct picture p = two_lines();
    (void)state;
    p.x = events;
    const char *svg = draw(&p);
    assert_non_null(strstr(svg, ">0.5M</text>"));
    assert_non_null(strstr(svg, ">1.5M</text>"));
}

static void a_failure_leaves_the_old_picture(void **state)
{
    const struct picture p = two_lines();
    char beside[160], before[65536];
    (void)state;
    snprintf(before, sizeof before, "%s", draw(&p));
    snprintf(beside, sizeof beside, "%s.tmp", path);
    assert_int_equal(mkdir(beside, 0700), 0); // nothing can be written there now
    assert_int_equal(picture_write(path, &p), -EISDIR);
    assert_int_equal(rmdir(beside), 0);
    assert_string_equal(text_of(path), before);
    assert_int_equal(picture_write("/nowhere/recall.svg", &p), -ENOENT);
}

// /dev/full takes no byte; the temporary name is a link to it.
static void a_full_disk_is_an_error_and_leaves_nothing(void **state)
{
    const struct picture p = two_lines();
    char beside[160];
    (void)state;
    unlink(path);
    snprintf(beside, sizeof beside, "%s.tmp", path);
    assert_int_equal(symlink("/dev/full", beside), 0);
    assert_int_equal(picture_write(path, &p), -ENOSPC);
    assert_int_not_equal(access(path, F_OK), 0);
    assert_int_not_equal(access(beside, F_OK), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(points_lie_where_their_numbers_say),
        cmocka_unit_test(the_file_needs_nothing_else),
        cmocka_unit_test(a_nan_leaves_a_gap),
        cmocka_unit_test(texts_are_escaped),
        cmocka_unit_test(labels_of_lines_that_end_together_stand_apart),
        cmocka_unit_test(a_picture_without_points_has_axes_alone),
        cmocka_unit_test(a_marker_outside_is_left_out),
        cmocka_unit_test(large_numbers_are_written_short),
        cmocka_unit_test(a_failure_leaves_the_old_picture),
        cmocka_unit_test(a_full_disk_is_an_error_and_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, make_directory, remove_directory);
}
