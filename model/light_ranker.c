// SPDX-License-Identifier: Apache-2.0
#include "model/light_ranker.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "model/arena.h"
#include "model/delayed_feedback.h"
#include "model/gemm.h"
#include "model/kernels.h"
#include "model/logistic.h"
#include "model/mixture_of_logits.h"
#include "model/rng.h"
#include "model/tables.h"

enum { FEATURES_MAX = 2 * LIGHT_RANKER_WIDTH_MAX + LIGHT_RANKER_HEADS_MAX + 1 };

// ---- parameters ------------------------------------------------------------------------------

enum { W_R, B_R, W_L, B_L, W_A, B_A, POSITION, BLOCKS };

static void check_shape(const struct light_ranker_shape *s)
{
    assert(s->width > 0 && s->width <= LIGHT_RANKER_WIDTH_MAX);
    assert(s->heads > 0 && s->heads <= LIGHT_RANKER_HEADS_MAX);
    assert(s->tasks > 0 && s->tasks <= SLATE_TASKS_MAX);
}

int light_ranker_features(const struct light_ranker_shape *s)
{
    return 2 * s->width + s->heads + 1;
}

bool light_ranker_parameter(const struct light_ranker_shape *s, int i, struct dense_parameter *p)
{
    const int D = s->width, F = light_ranker_features(s), T = s->tasks, heads = s->heads * D;
    struct dense_parameter all[BLOCKS] = {
        [W_R] = {"ranker_heads", heads, D, 0},
        [B_R] = {"ranker_heads_bias", 1, heads, 0},
        [W_L] = {"ranker_tasks", T, F, 0},
        [B_L] = {"ranker_tasks_bias", 1, T, 0},
        [W_A] = {"ranker_auxiliary", T, F, 0},
        [B_A] = {"ranker_auxiliary_bias", 1, T, 0},
        [POSITION] = {"ranker_position", SURFACES_MAX * LIGHT_RANKER_POSITIONS, T, 0},
    };
    check_shape(s);
    if (i >= BLOCKS)
        return false;
    for (int k = 0; k < i; k++)
        all[i].offset += (size_t)all[k].rows * (size_t)all[k].columns;
    *p = all[i];
    return true;
}

static size_t offset_of(const struct light_ranker_shape *s, int block)
{
    struct dense_parameter p;
    const bool found = light_ranker_parameter(s, block, &p);
    assert(found);
    return p.offset;
}

size_t light_ranker_size(const struct light_ranker_shape *s)
{
    return offset_of(s, POSITION) +
           (size_t)SURFACES_MAX * LIGHT_RANKER_POSITIONS * (size_t)s->tasks;
}

struct light_ranker_parameters light_ranker_at(const float *dense,
                                               const struct light_ranker_shape *s)
{
    return (struct light_ranker_parameters){
        .W_r = dense + offset_of(s, W_R),
        .b_r = dense + offset_of(s, B_R),
        .W_l = dense + offset_of(s, W_L),
        .b_l = dense + offset_of(s, B_L),
        .W_a = dense + offset_of(s, W_A),
        .b_a = dense + offset_of(s, B_A),
        .g = dense + offset_of(s, POSITION),
    };
}

// Where the gradient of a parameter lies: as far into ddense as the parameter into dense.
static float *gradient_of(const float *parameter, const float *dense, float *ddense)
{
    return ddense + (parameter - dense);
}

ptrdiff_t light_ranker_position(int T, int surface, int position)
{
    assert(surface < SURFACES_MAX);
    if (position < 0)
        return -1;
    const int k = position < LIGHT_RANKER_POSITIONS ? position : LIGHT_RANKER_POSITIONS - 1;
    return ((ptrdiff_t)surface * LIGHT_RANKER_POSITIONS + k) * T;
}

void light_ranker_init(const struct light_ranker_shape *s, uint64_t seed, float *dense)
{
    struct rng rng = {rng_key(seed, UINT64_C(0x72616e6b6572)), 0}; // "ranker"
    // As a linear layer starts (model/linear.c). The heads differ from each other from the start,
    // else they would stay the same for ever.
    const float heads = 1 / sqrtf((float)s->width);
    const float tasks = 1 / sqrtf((float)light_ranker_features(s));
    const size_t first = offset_of(s, W_L), last = offset_of(s, POSITION);
    rng_fill_uniform(&rng, dense, first, -heads, heads);
    rng_fill_uniform(&rng, dense + first, last - first, -tasks, tasks);
    memset(dense + last, 0, (light_ranker_size(s) - last) * sizeof *dense);
}

// ---- learning --------------------------------------------------------------------------------

size_t light_ranker_scratch(const struct light_ranker_shape *s, int slates_max, int rows_max)
{
    const size_t rows = (size_t)rows_max, heads = (size_t)s->heads;
    const size_t floats = 2 * arena_rounded((size_t)slates_max * heads * (size_t)s->width) +
                          2 * arena_rounded(rows * (size_t)light_ranker_features(s)) +
                          arena_rounded(rows * heads) + 4 * arena_rounded(rows * (size_t)s->tasks);
    return floats * sizeof(float) + 64; // to the first boundary
}

void light_ranker_open(struct light_ranker *r, const struct light_ranker_shape *s, int slates_max,
                       int rows_max, struct arena *scratch)
{
    const size_t rows = (size_t)rows_max, heads = (size_t)s->heads, T = (size_t)s->tasks;
    const size_t R = (size_t)slates_max * heads * (size_t)s->width;
    const size_t F = (size_t)light_ranker_features(s);
    check_shape(s);
    assert(slates_max > 0 && rows_max > 0);
    *r = (struct light_ranker){
        .shape = *s,
        .slates_max = slates_max,
        .rows_max = rows_max,
        .R = arena_floats(scratch, R),
        .Phi = arena_floats(scratch, rows * F),
        .pi = arena_floats(scratch, rows * heads),
        .Z = arena_floats(scratch, rows * T),
        .A = arena_floats(scratch, rows * T),
        .dZ = arena_floats(scratch, rows * T),
        .dA = arena_floats(scratch, rows * T),
        .dPhi = arena_floats(scratch, rows * F),
        .dR = arena_floats(scratch, R),
    };
}

// Phi (n, F) and pi (n, NU) of n items for one user: the one definition, for learning and serving.
static void features_fill(int D, int heads, const float *R, const float *q, int n, const float *V,
                          float *Phi, float *pi)
{
    const size_t d = (size_t)D, h = (size_t)heads, f = 2 * d + h + 1;
    for (size_t i = 0; i < (size_t)n; i++) {
        const float *v = V + i * d;
        float *phi = Phi + i * f, *s = phi + 2 * d;
        memcpy(phi, v, d * sizeof *phi);
        for (size_t j = 0; j < h; j++)
            s[j] = kernels->dot(d, R + j * d, v);
        s[h] = kernels->dot(d, q, v);
        memcpy(pi + i * h, s, h * sizeof *pi);
    }
    mixture_of_logits_gate(n, heads, pi);
    for (size_t i = 0; i < (size_t)n; i++) {
        float *t = Phi + i * f + d;
        memset(t, 0, d * sizeof *t);
        for (size_t j = 0; j < h; j++)
            kernels->axpy(d, pi[i * h + j], R + j * d, t);
    }
}

// Y (n, out) = X W^T + b
static void affine(int n, int out, int in, const float *X, const float *W, const float *b, float *Y)
{
    for (size_t row = 0; row < (size_t)n; row++)
        memcpy(Y + row * (size_t)out, b, (size_t)out * sizeof *Y);
    gemm_nt(n, out, in, X, W, Y);
}

// dW += dY^T X, db += dY, dX += dY W. dX may be NULL.
static void affine_backward(int n, int out, int in, const float *X, const float *W, const float *dY,
                            float *dW, float *db, float *dX)
{
    gemm_tn(out, in, n, dY, X, dW);
    for (size_t row = 0; row < (size_t)n; row++)
        kernels->axpy((size_t)out, 1, dY + row * (size_t)out, db);
    if (dX)
        gemm_nn(n, in, out, dY, W, dX);
}

static int rows_of(const struct light_ranker *r, const struct light_ranker_batch *b)
{
    assert(b->slates >= 0 && b->slates <= r->slates_max);
    const int rows = b->first[b->slates];
    assert(b->first[0] == 0 && rows >= 0 && rows <= r->rows_max);
    return rows;
}

void light_ranker_forward(struct light_ranker *r, const float *dense,
                          const struct light_ranker_batch *b)
{
    const struct light_ranker_parameters p = light_ranker_at(dense, &r->shape);
    const int D = r->shape.width, heads = r->shape.heads, T = r->shape.tasks;
    const int F = light_ranker_features(&r->shape), rows = rows_of(r, b);
    const size_t d = (size_t)D, h = (size_t)heads, f = (size_t)F;

    affine(b->slates, heads * D, D, b->Q, p.W_r, p.b_r, r->R);
    for (size_t u = 0; u < (size_t)b->slates; u++) {
        const size_t i = (size_t)b->first[u];
        features_fill(D, heads, r->R + u * h * d, b->Q + u * d, b->first[u + 1] - b->first[u],
                      b->V + i * d, r->Phi + i * f, r->pi + i * h);
    }

    affine(rows, T, F, r->Phi, p.W_l, p.b_l, r->Z);
    if (b->teacher)
        affine(rows, T, F, r->Phi, p.W_a, p.b_a, r->A);
    for (size_t u = 0; u < (size_t)b->slates; u++) {
        for (size_t i = (size_t)b->first[u]; i < (size_t)b->first[u + 1]; i++) {
            const ptrdiff_t at = light_ranker_position(T, b->surface[u], b->position[i]);
            for (int t = 0; at >= 0 && t < T; t++)
                r->Z[i * (size_t)T + (size_t)t] += p.g[at + t];
        }
    }
}

// From the gradient of a sum to that of weight times the mean, and the mean.
static double mean_of(struct logistic_sum sum, float weight, size_t n, float *dz)
{
    if (sum.pairs == 0)
        return 0;
    kernels->scale(n, weight / (float)sum.pairs, dz);
    return sum.loss / (double)sum.pairs;
}

struct light_ranker_loss light_ranker_loss(struct light_ranker *r,
                                           const struct light_ranker_options *o,
                                           const struct light_ranker_batch *b, const float *label,
                                           const float *weight)
{
    const size_t rows = (size_t)rows_of(r, b), n = rows * (size_t)r->shape.tasks;
    struct light_ranker_loss loss = {0};

    struct logistic_sum sum =
        logistic_loss(rows, r->shape.tasks, r->Z, label, weight, o->positive_weight, NULL, r->dZ);
    loss.pairs = sum.pairs;
    loss.bce = mean_of(sum, o->weight, n, r->dZ);
    if (b->teacher) {
        sum = logistic_loss(rows, r->shape.tasks, r->A, b->teacher, NULL, NULL, NULL, r->dA);
        loss.distil_pairs = sum.pairs;
        loss.distil = mean_of(sum, o->distil_weight, n, r->dA);
    }
    return loss;
}

// The derivative of features_fill: from dphi to what it adds to dR (NU, D), dq and dv (D).
static void features_backward(int D, int heads, const float *R, const float *q, const float *v,
                              const float *pi, float *dphi, float *dR, float *dq, float *dv)
{
    const size_t d = (size_t)D;
    const float *dt = dphi + D;
    float *ds = dphi + 2 * D;
    float dpi[LIGHT_RANKER_HEADS_MAX];
    // dt . t is a mixture of the logits dt . R_j, gated by s.
    for (int j = 0; j < heads; j++)
        dpi[j] = kernels->dot(d, dt, R + (size_t)j * d);
    mixture_of_logits_backward(heads, pi, dpi, 1, ds, NULL);
    for (int j = 0; j < heads; j++) {
        kernels->axpy(d, pi[j], dt, dR + (size_t)j * d);
        kernels->axpy(d, ds[j], v, dR + (size_t)j * d);
    }
    if (dv) {
        kernels->axpy(d, 1, dphi, dv);
        for (int j = 0; j < heads; j++)
            kernels->axpy(d, ds[j], R + (size_t)j * d, dv);
        kernels->axpy(d, ds[heads], q, dv);
    }
    if (dq)
        kernels->axpy(d, ds[heads], v, dq);
}

void light_ranker_backward(struct light_ranker *r, const float *dense,
                           const struct light_ranker_batch *b, float *ddense, float *dQ, float *dV)
{
    const struct light_ranker_parameters p = light_ranker_at(dense, &r->shape);
    const int D = r->shape.width, heads = r->shape.heads, T = r->shape.tasks;
    const int F = light_ranker_features(&r->shape), rows = rows_of(r, b);
    const size_t d = (size_t)D, h = (size_t)heads, f = (size_t)F;
    float *dg = gradient_of(p.g, dense, ddense);

    memset(r->dPhi, 0, (size_t)rows * f * sizeof *r->dPhi);
    affine_backward(rows, T, F, r->Phi, p.W_l, r->dZ, gradient_of(p.W_l, dense, ddense),
                    gradient_of(p.b_l, dense, ddense), r->dPhi);
    if (b->teacher)
        affine_backward(rows, T, F, r->Phi, p.W_a, r->dA, gradient_of(p.W_a, dense, ddense),
                        gradient_of(p.b_a, dense, ddense), r->dPhi);

    memset(r->dR, 0, (size_t)b->slates * h * d * sizeof *r->dR);
    for (size_t u = 0; u < (size_t)b->slates; u++) {
        for (size_t i = (size_t)b->first[u]; i < (size_t)b->first[u + 1]; i++) {
            features_backward(D, heads, r->R + u * h * d, b->Q + u * d, b->V + i * d, r->pi + i * h,
                              r->dPhi + i * f, r->dR + u * h * d, dQ ? dQ + u * d : NULL,
                              dV ? dV + i * d : NULL);
            const ptrdiff_t at = light_ranker_position(T, b->surface[u], b->position[i]);
            for (int t = 0; at >= 0 && t < T; t++)
                dg[at + t] += r->dZ[i * (size_t)T + (size_t)t];
        }
    }
    affine_backward(b->slates, heads * D, D, b->Q, p.W_r, r->dR, gradient_of(p.W_r, dense, ddense),
                    gradient_of(p.b_r, dense, ddense), dQ);
}

// ---- serving ---------------------------------------------------------------------------------

static void value_probabilities(size_t n, const float *z, float *x)
{
    logistic(n, z, x);
}

static void value_logits(size_t n, const float *z, float *x)
{
    memcpy(x, z, n * sizeof *x);
}

static void value_corrected(size_t n, const float *z, float *x)
{
    logistic(n, z, x);
    delayed_feedback_fnc(n, x, x);
}

// What the value weights are applied to.
static void (*const values[])(size_t n, const float *z, float *x) = {
    [LIGHT_RANKER_PROBABILITIES] = value_probabilities,
    [LIGHT_RANKER_LOGITS] = value_logits,
    [LIGHT_RANKER_CORRECTED] = value_corrected,
};

// The items of one pass: enough to fill the exponential's blocks, few enough for the stack.
enum { PASS = 16 };

// Z (n, T) without position. A dot product whose length is no multiple of 16 costs 30 ns where one
// of 128 costs 8, so the few features at the end are added by hand.
static void logits_fill(const struct light_ranker_parameters *p, const struct light_ranker_shape *s,
                        int n, const float *Phi, float *Z)
{
    const size_t f = (size_t)light_ranker_features(s), T = (size_t)s->tasks;
    const size_t vectors = 2 * (size_t)s->width;
    for (size_t i = 0; i < (size_t)n; i++) {
        for (size_t t = 0; t < T; t++) {
            const float *phi = Phi + i * f, *w = p->W_l + t * f;
            float z = p->b_l[t] + kernels->dot(vectors, w, phi);
            for (size_t k = vectors; k < f; k++)
                z += w[k] * phi[k];
            Z[i * T + t] = z;
        }
    }
}

void light_ranker_score(const struct light_ranker_parameters *p, const struct light_ranker_shape *s,
                        const float *q, int n, const float *V, const float *value_weight,
                        enum light_ranker_value form, float *value)
{
    const size_t d = (size_t)s->width, T = (size_t)s->tasks;
    float R[LIGHT_RANKER_HEADS_MAX * LIGHT_RANKER_WIDTH_MAX], pi[PASS * LIGHT_RANKER_HEADS_MAX];
    float Phi[PASS * FEATURES_MAX], Z[PASS * SLATE_TASKS_MAX], X[PASS * SLATE_TASKS_MAX];

    check_shape(s);
    for (size_t j = 0; j < (size_t)s->heads * d; j++)
        R[j] = p->b_r[j] + kernels->dot(d, p->W_r + j * d, q);
    for (int i = 0; i < n; i += PASS) {
        const int m = n - i < PASS ? n - i : PASS;
        features_fill(s->width, s->heads, R, q, m, V + (size_t)i * d, Phi, pi);
        logits_fill(p, s, m, Phi, Z);
        values[form]((size_t)m * T, Z, X);
        for (int k = 0; k < m; k++) {
            double sum = 0;
            for (size_t t = 0; t < T; t++)
                sum += (double)value_weight[t] * (double)X[(size_t)k * T + t];
            value[i + k] = (float)sum;
        }
    }
}
