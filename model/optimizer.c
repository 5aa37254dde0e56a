// SPDX-License-Identifier: Apache-2.0
#include "model/optimizer.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "model/kernels.h"

struct optimizer_kind {
    const char *name;
    // Floats of state for each parameter and for each block; the first accumulators of them start
    // at o->start, the rest at 0.
    size_t each, block, accumulators;
    void (*update)(const struct optimizer *o, uint64_t step, size_t n, const float *g, float *w,
                   float *state);
};

static void sgd_update(const struct optimizer *o, uint64_t step, size_t n, const float *g, float *w,
                       float *state)
{
    (void)step, (void)state;
    for (size_t i = 0; i < n; i++)
        w[i] -= o->rate * (g[i] + o->l2 * w[i]);
}

static void adagrad_update(const struct optimizer *o, uint64_t step, size_t n, const float *g,
                           float *w, float *state)
{
    (void)step;
    for (size_t i = 0; i < n; i++) {
        const float gradient = g[i] + o->l2 * w[i];
        state[i] += gradient * gradient;
        w[i] -= o->rate * gradient / sqrtf(state[i] + o->epsilon);
    }
}

static void rowwise_adagrad_update(const struct optimizer *o, uint64_t step, size_t n,
                                   const float *g, float *w, float *state)
{
    (void)step;
    kernels->rowwise_adagrad(n, o->rate, o->l2, o->epsilon, g, w, state);
}

static void adam_update(const struct optimizer *o, uint64_t step, size_t n, const float *g,
                        float *w, float *state)
{
    float *m = state, *v = state + n;
    // In double: 1 - 0.999^1 in float has four digits left.
    const float m_scale = (float)(1 / (1 - pow((double)o->beta1, (double)step)));
    const float v_scale = (float)(1 / (1 - pow((double)o->beta2, (double)step)));
    for (size_t i = 0; i < n; i++) {
        const float gradient = g[i] + o->l2 * w[i];
        m[i] = o->beta1 * m[i] + (1 - o->beta1) * gradient;
        v[i] = o->beta2 * v[i] + (1 - o->beta2) * gradient * gradient;
        w[i] -= o->rate * (m[i] * m_scale) / (sqrtf(v[i] * v_scale) + o->epsilon);
    }
}

static void ftrl_update(const struct optimizer *o, uint64_t step, size_t n, const float *g,
                        float *w, float *state)
{
    float *a = state, *z = state + n;
    (void)step;
    for (size_t i = 0; i < n; i++) {
        const float root = sqrtf(a[i]);
        a[i] += g[i] * g[i];
        const float root_now = sqrtf(a[i]);
        z[i] += g[i] - (root_now - root) / o->rate * w[i];
        const float curvature = root_now / o->rate + 2 * o->l2 + o->beta1 / o->rate;
        w[i] = fabsf(z[i]) <= o->l1 ? 0 : (copysignf(o->l1, z[i]) - z[i]) / curvature;
    }
}

static const struct optimizer_kind kinds[] = {
    {"sgd", 0, 0, 0, sgd_update},
    {"adagrad", 1, 0, 1, adagrad_update},
    {"rowwise_adagrad", 0, 1, 1, rowwise_adagrad_update},
    {"adam", 2, 0, 0, adam_update},
    {"ftrl", 2, 0, 1, ftrl_update},
};

// In the order of kinds.
static const struct optimizer defaults[] = {
    {&kinds[0], .rate = 0.01f},
    {&kinds[1], .rate = 0.1f, .epsilon = 1e-7f, .start = 0.1f},
    {&kinds[2], .rate = 0.15f, .epsilon = 1e-7f, .start = 0.1f},
    {&kinds[3], .rate = 0.001f, .epsilon = 1e-8f, .beta1 = 0.9f, .beta2 = 0.999f},
    {&kinds[4], .rate = 0.1f, .start = 0.1f},
};

enum { KINDS = sizeof kinds / sizeof *kinds };
_Static_assert(sizeof defaults / sizeof *defaults == KINDS, "every kind has its settings");

const struct optimizer *optimizer_at(int i)
{
    return i >= 0 && i < KINDS ? &defaults[i] : NULL;
}

const struct optimizer *optimizer_find(const char *name)
{
    for (int i = 0; i < KINDS; i++)
        if (strcmp(kinds[i].name, name) == 0)
            return &defaults[i];
    return NULL;
}

const char *optimizer_name(const struct optimizer *o)
{
    return o->kind->name;
}

size_t optimizer_state_floats(const struct optimizer *o, size_t n)
{
    return o->kind->each * n + o->kind->block;
}

void optimizer_start(const struct optimizer *o, size_t n, float *state)
{
    const size_t floats = optimizer_state_floats(o, n);
    const size_t accumulators = o->kind->accumulators * (o->kind->each ? n : 1);
    for (size_t i = 0; i < floats; i++)
        state[i] = i < accumulators ? o->start : 0;
}

void optimizer_update(const struct optimizer *o, uint64_t step, size_t n, const float *g, float *w,
                      float *state)
{
    assert(step > 0 && o->rate > 0);
    o->kind->update(o, step, n, g, w, state);
}
