// SPDX-License-Identifier: Apache-2.0
#include "daemon/pace.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/clock.h"

enum { SHARES_PER_SECOND = 20 };

struct pace {
    struct source source; // first: the interface points here
    struct source *inner;
    double seconds, begun_s;
    int shares, released; // in all, and so far
    int64_t *first, *end; // of the stream, per partition
};

static struct pace *of_source(struct source *s)
{
    return (struct pace *)s;
}

static const struct pace *of_source_const(const struct source *s)
{
    return (const struct pace *)s;
}

// Passes on the inner source's answer, with its sentence when it is a failure.
static int answer(struct pace *p, int rc)
{
    if (rc < 0)
        memcpy(p->source.error, p->inner->error, sizeof p->source.error);
    return rc;
}

static int pace_bounds(struct source *s, int64_t *first, int64_t *end)
{
    struct pace *p = of_source(s);
    return answer(p, p->inner->ops->bounds(p->inner, first, end));
}

static int pace_offsets_for_time(struct source *s, int64_t ts_ms, int64_t *offsets)
{
    struct pace *p = of_source(s);
    return answer(p, p->inner->ops->offsets_for_time(p->inner, ts_ms, offsets));
}

static int pace_start(struct source *s, const int64_t *next, const int64_t *stop)
{
    struct pace *p = of_source(s);
    p->begun_s = clock_s(CLOCK_MONOTONIC);
    p->released = 0;
    return answer(p, p->inner->ops->start(p->inner, next, stop));
}

// Records of partition i below this offset may be read.
static int64_t limit_of(const struct pace *p, int i)
{
    if (p->released == p->shares || p->source.partitions[i].topic == TOPIC_ITEMS)
        return INT64_MAX;
    return p->first[i] + (p->end[i] - p->first[i]) * p->released / p->shares;
}

static int pace_read(struct source *s, int i, int max, struct record *records)
{
    struct pace *p = of_source(s);
    const int64_t left = limit_of(p, i) - p->inner->ops->position(p->inner, i);
    if (left <= 0)
        return 0;
    return answer(p, p->inner->ops->read(p->inner, i, left < max ? (int)left : max, records));
}

static int64_t pace_position(const struct source *s, int i)
{
    const struct pace *p = of_source_const(s);
    return p->inner->ops->position(p->inner, i);
}

static bool pace_at_end(const struct source *s, int i)
{
    const struct pace *p = of_source_const(s);
    return p->inner->ops->at_end(p->inner, i);
}

// Whoever waits has read all that was released: the next share comes from here alone.
static int pace_wait(struct source *s, int timeout_ms)
{
    struct pace *p = of_source(s);
    if (p->released == p->shares)
        return answer(p, p->inner->ops->wait(p->inner, timeout_ms));
    const double due_s = p->begun_s + p->seconds * (p->released + 1) / p->shares;
    const double left_ms = ceil((due_s - clock_s(CLOCK_MONOTONIC)) * 1000);
    if (left_ms > 0)
        poll(NULL, 0, left_ms < timeout_ms ? (int)left_ms : timeout_ms);
    if (left_ms <= timeout_ms)
        p->released++;
    return 0;
}

static void pace_close(struct source *s)
{
    struct pace *p = of_source(s);
    p->inner->ops->close(p->inner); // the partitions are its own
    free(p->first);
    free(p);
}

static const struct source_ops pace_ops = {
    .name = "pace",
    .bounds = pace_bounds,
    .offsets_for_time = pace_offsets_for_time,
    .start = pace_start,
    .read = pace_read,
    .position = pace_position,
    .at_end = pace_at_end,
    .wait = pace_wait,
    .close = pace_close,
};

int pace_open(struct source **s, struct source *inner, double seconds)
{
    const size_t n = (size_t)inner->n_partitions;
    struct pace *p = calloc(1, sizeof *p);
    int64_t *bounds = calloc(2 * n, sizeof *bounds);
    assert(!inner->ops->commit && seconds > 0);
    int rc = p && bounds ? inner->ops->bounds(inner, bounds, bounds + n) : -ENOMEM;
    if (rc < 0) {
        inner->ops->close(inner);
        free(bounds);
        free(p);
        return rc;
    }
    *p = (struct pace){.source = {.ops = &pace_ops,
                                  .n_partitions = inner->n_partitions,
                                  .partitions = inner->partitions},
                       .inner = inner,
                       .seconds = seconds,
                       .shares = (int)ceil(seconds * SHARES_PER_SECOND),
                       .first = bounds,
                       .end = bounds + n};
    *s = &p->source;
    return 0;
}
