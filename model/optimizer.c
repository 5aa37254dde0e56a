// SPDX-License-Identifier: Apache-2.0
#include "model/optimizer.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/kernels.h"

struct optimizer_kind {
    const char *name;
    // Floats of state for each parameter and for each block; the first accumulators of them start
    // at o->start, the rest at 0.
    size_t each, block, accumulators;
    void (*update)(const struct optimizer *o, uint64_t step, size_t n, const float *g, float *w,
                   float *state);
    // A kind whose parameters do not go each its own way has its update in two: what looks at the
    // whole block with gradients f g, moves its state and returns one number; and what moves any
    // stretch of it, given that number. NULL: update itself can be given any stretch.
    float (*look)(const struct optimizer *o, float f, size_t n, const float *g, const float *w,
                  float *state);
    void (*move)(const struct optimizer *o, float seen, size_t n, const float *g, float *w,
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

static float rowwise_adagrad_look(const struct optimizer *o, float f, size_t n, const float *g,
                                  const float *w, float *state)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        const double gradient = (double)(f * g[i] + o->l2 * w[i]);
        sum += gradient * gradient;
    }
    *state += (float)(sum / (double)n);
    const float divisor = sqrtf(*state) + o->epsilon;
    return divisor == 0 ? 0 : o->rate / divisor; // as in the kernel
}

static void rowwise_adagrad_move(const struct optimizer *o, float seen, size_t n, const float *g,
                                 float *w, float *state)
{
    (void)state;
    for (size_t i = 0; i < n; i++)
        w[i] -= seen * (g[i] + o->l2 * w[i]);
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

// The largest scale, up to `scale`, at which x moves no further than allowed.
static float shrink_to(float scale, float x, float allowed)
{
    // Written so that 0 asks for nothing even where nothing is allowed, and nothing is divided by
    // 0.
    return scale * fabsf(x) > allowed ? allowed / fabsf(x) : scale;
}

float optimizer_shrink(size_t n, const float *x, size_t R, const float *references,
                       const float *relative, float absolute)
{
    float scale = 1;
    for (size_t i = 0; i < n; i++) {
        float allowed = absolute;
        for (size_t r = 0; r < R; r++)
            allowed += relative[r] * fabsf(references[r * n + i]);
        scale = shrink_to(scale, x[i], allowed);
    }
    return scale;
}

// 1 / sqrt(a + epsilon) with the accumulator that counts in this step.
static float clippy_root(const struct optimizer *o, float gradient, float a)
{
    return 1 / sqrtf(a + (o->clippy == CLIPPY_STANDARD ? gradient * gradient : 0) + o->epsilon);
}

static float clippy_look(const struct optimizer *o, float f, size_t n, const float *g,
                         const float *w, float *state)
{
    const float relative[] = {o->relative, o->relative_root};
    float scale = 1;
    for (size_t i = 0; i < n; i++) {
        const float gradient = f * g[i] + o->l2 * w[i];
        const float root = clippy_root(o, gradient, state[i]);
        const float references[] = {w[i], root}, move = o->rate * gradient * root;
        const float fresh = o->fresh * (o->start + o->epsilon) * root * root;
        const float alone =
            optimizer_shrink(1, &move, 2, references, relative, o->absolute + fresh);
        scale = alone < scale ? alone : scale;
    }
    return scale;
}

static void clippy_move(const struct optimizer *o, float seen, size_t n, const float *g, float *w,
                        float *state)
{
    const float taken = o->clippy == CLIPPY_CLIPPED ? seen * seen : 1;
    for (size_t i = 0; i < n; i++) {
        const float gradient = g[i] + o->l2 * w[i];
        w[i] -= seen * (o->rate * gradient * clippy_root(o, gradient, state[i]));
        state[i] += taken * (gradient * gradient);
    }
}

static void clippy_update(const struct optimizer *o, uint64_t step, size_t n, const float *g,
                          float *w, float *state)
{
    (void)step;
    clippy_move(o, clippy_look(o, 1, n, g, w, state), n, g, w, state);
}

static const struct optimizer_kind kinds[] = {
    {"sgd", 0, 0, 0, sgd_update, NULL, NULL},
    {"adagrad", 1, 0, 1, adagrad_update, NULL, NULL},
    {"rowwise_adagrad", 0, 1, 1, rowwise_adagrad_update, rowwise_adagrad_look,
     rowwise_adagrad_move},
    {"adam", 2, 0, 0, adam_update, NULL, NULL},
    {"ftrl", 2, 0, 1, ftrl_update, NULL, NULL},
    {"clippy_adagrad", 1, 0, 1, clippy_update, clippy_look, clippy_move},
};

// In the order of kinds.
static const struct optimizer defaults[] = {
    {&kinds[0], .rate = 0.01f},
    {&kinds[1], .rate = 0.1f, .epsilon = 1e-7f, .start = 0.1f},
    {&kinds[2], .rate = 0.15f, .epsilon = 1e-7f, .start = 0.1f},
    {&kinds[3], .rate = 0.001f, .epsilon = 1e-8f, .beta1 = 0.9f, .beta2 = 0.999f},
    {&kinds[4], .rate = 0.1f, .start = 0.1f},
    {&kinds[5], .rate = 0.1f, .epsilon = 1e-7f, .start = 0.1f, .relative = 0.1f, .absolute = 1e-7f,
     .fresh = 0.01f},
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

struct optimizer optimizer_without_l2(const struct optimizer *o)
{
    struct optimizer without = *o;
    if (o->kind->update != ftrl_update)
        without.l2 = 0;
    return without;
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

enum { STRETCH = 1024, EACH_MAX = 2 };

static double norm(size_t n, const float *x)
{
    const float squares = kernels->dot(n, x, x);
    double sum = 0;
    if (squares < INFINITY)
        return sqrt((double)squares);
    for (size_t i = 0; i < n; i++) // from 1e19 on a float does not hold its square
        sum += (double)x[i] * (double)x[i];
    return sqrt(sum);
}

// What makes a length of `size` one of at most `max`.
static float limit(double size, float max)
{
    return size > (double)max ? (float)((double)max / size) : 1;
}

// A row of a table, and all else that fits on the stack: updated, then drawn back.
static void short_update(const struct optimizer *o, uint64_t step, float f, size_t n,
                         const float *g, float *w, float *state)
{
    float scaled[STRETCH], before[STRETCH], move[STRETCH];
    for (size_t i = 0; i < n && f != 1; i++)
        scaled[i] = f * g[i];
    memcpy(before, w, n * sizeof *w);
    o->kind->update(o, step, n, f == 1 ? g : scaled, w, state);
    if (o->radius == 0)
        return;
    for (size_t i = 0; i < n; i++)
        move[i] = w[i] - before[i];
    const float share = limit(norm(n, move), o->radius);
    for (size_t i = 0; i < n && share != 1; i++)
        w[i] = before[i] + share * move[i];
}

// One stretch of a longer block, from parameter `from` on, as arrays of its own.
struct stretch {
    size_t from, n;
    float g[STRETCH], w[STRETCH];
    float state[EACH_MAX * STRETCH];
};

// What updating this stretch with gradients f g gives; the block stays as it is.
static void stretch_update(const struct optimizer *o, uint64_t step, float f, float seen, size_t n,
                           const float *g, const float *w, const float *state, struct stretch *s)
{
    const struct optimizer_kind *kind = o->kind;
    s->n = n - s->from < STRETCH ? n - s->from : STRETCH;
    for (size_t i = 0; i < s->n; i++)
        s->g[i] = f * g[s->from + i];
    memcpy(s->w, w + s->from, s->n * sizeof *w);
    for (size_t e = 0; e < kind->each; e++)
        memcpy(s->state + e * s->n, state + e * n + s->from, s->n * sizeof *state);
    if (kind->move)
        kind->move(o, seen, s->n, s->g, s->w, s->state);
    else
        kind->update(o, step, s->n, s->g, s->w, s->state);
}

// A matrix. How far it would go is known only when all of it was updated, so that is done twice:
// first to measure, then for good.
static void long_update(const struct optimizer *o, uint64_t step, float f, size_t n, const float *g,
                        float *w, float *state)
{
    const struct optimizer_kind *kind = o->kind;
    const float seen = kind->look ? kind->look(o, f, n, g, w, state) : 0;
    struct stretch s;
    double sum = 0;
    for (s.from = 0; s.from < n && o->radius > 0; s.from += s.n) {
        stretch_update(o, step, f, seen, n, g, w, state, &s);
        for (size_t i = 0; i < s.n; i++)
            s.w[i] -= w[s.from + i];
        const double part = norm(s.n, s.w);
        sum += part * part;
    }
    const float share = o->radius > 0 ? limit(sqrt(sum), o->radius) : 1;
    for (s.from = 0; s.from < n; s.from += s.n) {
        stretch_update(o, step, f, seen, n, g, w, state, &s);
        for (size_t i = 0; i < s.n; i++) {
            float *at = &w[s.from + i];
            *at = share == 1 ? s.w[i] : *at + share * (s.w[i] - *at);
        }
        for (size_t e = 0; e < kind->each; e++)
            memcpy(state + e * n + s.from, s.state + e * s.n, s.n * sizeof *state);
    }
}

void optimizer_update(const struct optimizer *o, uint64_t step, size_t n, const float *g, float *w,
                      float *state)
{
    assert(step > 0 && o->rate > 0);
    const float f = o->gradient_max > 0 ? limit(norm(n, g), o->gradient_max) : 1;
    if (f == 1 && o->radius == 0)
        o->kind->update(o, step, n, g, w, state);
    else if (n <= STRETCH)
        short_update(o, step, f, n, g, w, state);
    else
        long_update(o, step, f, n, g, w, state);
}

const char *optimizer_refuses(const struct optimizer *o)
{
    const struct {
        float value;
        const char *why;
    } settings[] = {
        {o->epsilon, "its epsilon is negative or not a number"},
        {o->l1, "its l1 is negative or not a number"},
        {o->l2, "its l2 is negative or not a number"},
        {o->start, "its accumulators start negative or not as a number"},
        {o->beta1, "its beta1 is negative or not a number"},
        {o->beta2, "its beta2 is negative or not a number"},
        {o->relative, "its relative limit is negative or not a number"},
        {o->relative_root, "its relative limit to the root is negative or not a number"},
        {o->absolute, "its absolute limit is negative or not a number"},
        {o->fresh, "its limit for fresh parameters is negative or not a number"},
        {o->gradient_max, "its largest gradient is negative or not a number"},
        {o->radius, "its radius is negative or not a number"},
    };
    if (!o->kind)
        return "it has no kind";
    if (!(o->rate > 0 && isfinite(o->rate)))
        return "its rate is not above 0";
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++)
        if (!(settings[i].value >= 0 && isfinite(settings[i].value)))
            return settings[i].why;
    return NULL;
}

static bool choice_fits(int groups, const char *const *group, const struct optimizer_choice *choice,
                        char *why, size_t size)
{
    int i = 0;
    while (i < groups && strcmp(group[i], choice->group) != 0)
        i++;
    if (i == groups) {
        snprintf(why, size, "there are no parameters called %s", choice->group);
        return false;
    }
    const char *refused =
        choice->optimizer ? optimizer_refuses(choice->optimizer) : "there is none";
    if (refused)
        snprintf(why, size, "the optimizer of %s does not work: %s", choice->group, refused);
    return !refused;
}

bool optimizer_covers(int groups, const char *const *group, int choices,
                      const struct optimizer_choice *choice, char *why, size_t size)
{
    for (int c = 0; c < choices; c++)
        if (!choice_fits(groups, group, &choice[c], why, size))
            return false;
    for (int i = 0; i < groups; i++) {
        int covered = 0;
        for (int c = 0; c < choices; c++)
            covered += strcmp(group[i], choice[c].group) == 0;
        if (covered == 0)
            snprintf(why, size, "%s have no optimizer", group[i]);
        if (covered > 1)
            snprintf(why, size, "%s have %d optimizers", group[i], covered);
        if (covered != 1)
            return false;
    }
    return true;
}
