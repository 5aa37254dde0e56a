// SPDX-License-Identifier: Apache-2.0
#include "model/delayed_feedback.h"

#include <assert.h>
#include <math.h>
#include <stdbool.h>

#include "model/logistic.h"

// ---- weights, as plain functions of arrays ---------------------------------------------------

void delayed_feedback_fnw(size_t n, const float *p, const float *label, float *weight)
{
    for (size_t i = 0; i < n; i++)
        weight[i] = (1 + p[i]) * (label[i] > 0 ? 1 : 1 - p[i]);
}

void delayed_feedback_es_dfm(size_t n, const float *label, const float *p_dp, const float *p_rn,
                             float *weight)
{
    for (size_t i = 0; i < n; i++)
        weight[i] = (1 + p_dp[i]) * (label[i] > 0 ? 1 : p_rn[i]);
}

void delayed_feedback_fnc(size_t n, const float *biased, float *p)
{
    for (size_t i = 0; i < n; i++) {
        const double b = biased[i] > 0.5f - 1e-6f ? 0.5 - 1e-6 : (double)biased[i];
        p[i] = (float)(b / (1 - b));
    }
}

void delayed_feedback_dfm(size_t n, const float *z, const float *label, const float *rate,
                          const float *time, float *loss, float *posterior, float *dz, float *drate)
{
    for (size_t i = 0; i < n; i++) {
        const double x = (double)z[i], lambda = (double)rate[i], t = (double)time[i];
        assert(lambda > 0 && t >= 0);
        double l, after = 1, slope;
        if (label[i] > 0) {
            l = logistic_softplus(-x) - log(lambda) + lambda * t;
            slope = t - 1 / lambda;
        } else {
            // p e^(-rate t) / (1 - p) = e^(z - rate t), so both terms are softplus.
            l = logistic_softplus(x) - logistic_softplus(x - lambda * t);
            after = logistic_sigmoid(x - lambda * t);
            slope = t * after;
        }
        loss[i] = (float)l;
        posterior[i] = (float)after;
        dz[i] = (float)(logistic_sigmoid(x) - after);
        drate[i] = (float)slope;
    }
}

// ---- slates ----------------------------------------------------------------------------------

// Half of what a count says is forgotten after this many conversions of its task: enough for two
// digits of the share, and few enough to follow a delay that changes over the day.
static const double LATE_HALF_LIFE = 4096;
// Conversions that the first guess of one half is worth.
static const double LATE_PRIOR = 8;

void late_arrivals_count(struct late_arrivals *a, int T, const struct slate *s)
{
    if (s->repeated || (s->kind != SLATE_EARLY && s->kind != SLATE_LATE_POSITIVE))
        return;
    assert(T > 0 && T <= SLATE_TASKS_MAX);
    const double keep = exp2(-1 / LATE_HALF_LIFE);
    double *counts = s->kind == SLATE_EARLY ? a->early : a->late;
    for (int i = 0; i < s->n_items; i++) {
        for (int t = 0; t < T; t++) {
            if (!s->items[i].shown || !(s->items[i].labels >> t & 1))
                continue;
            a->early[t] *= keep;
            a->late[t] *= keep;
            counts[t] += 1;
        }
    }
}

float late_arrivals_share(const struct late_arrivals *a, int task)
{
    assert(task >= 0 && task < SLATE_TASKS_MAX);
    const double late = a->late[task] + LATE_PRIOR / 2, early = a->early[task] + LATE_PRIOR / 2;
    return (float)(late / (late + early));
}

struct target {
    float label, weight;
};

static const struct target NOTHING = {NAN, 0};

static struct target target_none(enum slate_kind kind, bool positive, float p, float late)
{
    (void)p, (void)late;
    return kind == SLATE_CLOSED ? (struct target){positive, 1} : NOTHING;
}

// The stream in which every impression is a negative and each conversion a positive beside it.
static struct target target_fake(enum slate_kind kind, bool positive, float yes, float no)
{
    if (kind == SLATE_LATE_POSITIVE)
        return (struct target){1, yes};
    return positive ? (struct target){yes / (yes + no), yes + no} : (struct target){0, no};
}

static struct target target_fnw(enum slate_kind kind, bool positive, float p, float late)
{
    const float label[2] = {0, 1}, both[2] = {p, p};
    float weight[2];
    (void)late;
    delayed_feedback_fnw(2, both, label, weight);
    return target_fake(kind, positive, weight[1], weight[0]);
}

static struct target target_fnc(enum slate_kind kind, bool positive, float p, float late)
{
    (void)p, (void)late;
    return target_fake(kind, positive, 1, 1);
}

static struct target target_es_dfm(enum slate_kind kind, bool positive, float p, float late)
{
    const float label = kind == SLATE_LATE_POSITIVE || positive, p_dp = late * p;
    const float p_rn = (1 - p) / (1 - p + p_dp);
    struct target target = {label, 0};
    delayed_feedback_es_dfm(1, &label, &p_dp, &p_rn, &target.weight);
    return target;
}

typedef struct target target_fn(enum slate_kind kind, bool positive, float p, float late);

static target_fn *const targets[] = {
    [DELAYED_FEEDBACK_NONE] = target_none,
    [DELAYED_FEEDBACK_FNW] = target_fnw,
    [DELAYED_FEEDBACK_FNC] = target_fnc,
    [DELAYED_FEEDBACK_ES_DFM] = target_es_dfm,
};

// Whether the slate says something of this pair to a head in this mode.
static bool speaks_of(enum delayed_feedback_mode mode, const struct slate *s, int item, int task)
{
    const bool final = s->kind == SLATE_CLOSED;
    if (s->repeated || !s->items[item].shown || final != (mode == DELAYED_FEEDBACK_NONE))
        return false;
    return s->kind != SLATE_LATE_POSITIVE || (s->items[item].labels >> task & 1);
}

void delayed_feedback_slate(enum delayed_feedback_mode mode, const struct late_arrivals *a, int T,
                            const struct slate *s, const float *z, float *label, float *weight)
{
    const size_t tasks = (size_t)T;
    float late[SLATE_TASKS_MAX];
    assert(T > 0 && T <= SLATE_TASKS_MAX);
    for (int t = 0; t < T; t++)
        late[t] = late_arrivals_share(a, t);
    float *p = weight; // until each is replaced by what follows from it
    logistic(s->n_items * tasks, z, p);
    for (int i = 0; i < s->n_items; i++) {
        for (int t = 0; t < T; t++) {
            const size_t at = (size_t)i * tasks + (size_t)t;
            const bool positive = s->items[i].labels >> t & 1;
            const struct target target = speaks_of(mode, s, i, t)
                                             ? targets[mode](s->kind, positive, p[at], late[t])
                                             : NOTHING;
            label[at] = target.label;
            weight[at] = target.weight;
        }
    }
}

// ---- delays by task --------------------------------------------------------------------------

void delay_histogram_add(struct delay_histogram *h, int task, int64_t delay_ms)
{
    assert(task >= 0 && task < SLATE_TASKS_MAX);
    int bucket = 0;
    for (int64_t s = delay_ms / 1000; s > 0 && bucket < DELAY_BUCKETS - 1; s >>= 1)
        bucket++;
    h->count[task][bucket]++;
}
