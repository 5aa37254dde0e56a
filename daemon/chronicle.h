// SPDX-License-Identifier: Apache-2.0
//
// What the demo writes down while it learns: quality over the stream, the way of the new hit, and
// which films are near which. Everything is noted by the place in the stream, never by the clock,
// so the same stream gives the same chronicle.
//
//   quality     the stream is cut into equal stretches of requests; a point is the mean over the
//               examples that were scored (predicted before learned) within its stretch
//   hit         its genre is the direction of the mean of its CHRONICLE_ANCHORS most popular films
//               (unit vectors); the hit has arrived when it is among the CHRONICLE_NEAR items of
//               the whole corpus with the largest cosine to that direction
//   nearest     the films with the largest cosine to a well-known one, once early and once now
//
// chronicle_note belongs to the trainer's thread, everything else to the caller's.
#pragma once

#include <pthread.h>

#include "pipeline/evaluate.h"
#include "pipeline/source.h"
#include "pipeline/trainer.h"

enum {
    CHRONICLE_POINTS_MAX = 60,
    CHRONICLE_FILMS = 3,
    CHRONICLE_NEAREST = 5,
    CHRONICLE_ANCHORS = 10,
    CHRONICLE_NEAR = 10,
};

struct chronicle_nearest {
    int n; // 0: not looked at yet
    int film[CHRONICLE_NEAREST];
    int same_genre; // of them
};

struct chronicle_pages {
    double progress; // share of the requests that were read
    int points;
    struct evaluation point[CHRONICLE_POINTS_MAX]; // sums; n is 0 when nothing was scored
    struct evaluation total;
    struct join_counts counts;
    int64_t event_time_ms;
    struct {
        bool released, arrived;
        int rank;                        // now, from 1; 0 before it has a vector
        double released_at, arrived_at;  // progress
        int64_t released_ms, arrived_ms; // event time
    } hit;
    double early_at; // progress at the early look
    int film[CHRONICLE_FILMS];
    struct chronicle_nearest early[CHRONICLE_FILMS], now[CHRONICLE_FILMS];
};

struct chronicle {
    const struct source *stream; // a source_builtin
    int64_t requests;
    int points_max, films;
    int looks;                // so many stretches of 1 / 600 have been looked at
    int64_t *row;             // by film; ROW_NONE
    float *V;                 // (films, dim + 1), the first dim elements of unit length
    struct evaluation before; // totals at the last point
    pthread_mutex_t lock;
    struct chronicle_pages pages;
};

// stream must outlive all notes. 0 or -ENOMEM; needs chronicle_close then as well.
int chronicle_open(struct chronicle *c, const struct source *stream, int64_t requests, int points,
                   int dim);
void chronicle_close(struct chronicle *c);
// A job_options.applied.
void chronicle_note(void *chronicle, const struct trainer *trainer,
                    const struct evaluator *evaluator);
// A copy of what has been written so far.
void chronicle_read(struct chronicle *c, struct chronicle_pages *pages);
// The last n points together.
struct evaluation chronicle_recent(const struct chronicle_pages *pages, int n);
