// SPDX-License-Identifier: Apache-2.0
//
// How a program of tests/bench prints what it measured: one JSON object a line with --json, which
// tests/bench/run.py collects, and the same for people without.
#pragma once

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

// Members that are NULL or 0 do not apply and are left out.
struct figure {
    const char *stage; // unique in its program, without quotes
    const char *unit;  // of ours and theirs
    double ours;
    const char *reference; // what theirs is
    double theirs;
    double ratio; // what the goal speaks of
    const char *goal;
    const char *extra; // more members of the object, as JSON without braces
    bool detail;       // not for a document
};

// Takes --json from the arguments, so that the others keep their places; after blas_core_correct,
// which may start the program anew with what is left of them.
static inline bool figures_as_json(int *argc, char **argv)
{
    for (int i = 1; i < *argc; i++)
        if (strcmp(argv[i], "--json") == 0) {
            memmove(&argv[i], &argv[i + 1], (size_t)(*argc - i) * sizeof *argv);
            --*argc;
            return true;
        }
    return false;
}

static inline void figure_print(bool json, const struct figure *f)
{
    if (json) {
        printf("{\"stage\":\"%s\",\"unit\":\"%s\"", f->stage, f->unit);
        if (f->ours != 0)
            printf(",\"ours\":%.6g", f->ours);
        if (f->reference)
            printf(",\"reference\":\"%s\"", f->reference);
        if (f->theirs != 0)
            printf(",\"theirs\":%.6g", f->theirs);
        if (f->ratio != 0)
            printf(",\"ratio\":%.6g", f->ratio);
        if (f->goal)
            printf(",\"goal\":\"%s\"", f->goal);
        if (f->extra)
            printf(",%s", f->extra);
        printf("%s}\n", f->detail ? ",\"detail\":true" : "");
    } else {
        printf("%-48s", f->stage);
        if (f->ours != 0)
            printf(" %.4g %s", f->ours, f->unit);
        if (f->theirs != 0)
            printf("; %s %.4g", f->reference, f->theirs);
        if (f->ratio != 0)
            printf("; ratio %.3g", f->ratio);
        if (f->goal)
            printf(" (goal %s)", f->goal);
        printf("\n");
    }
    fflush(stdout);
}
