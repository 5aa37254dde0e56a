// SPDX-License-Identifier: Apache-2.0
#include "model/tower.h"

#include <assert.h>
#include <stddef.h>
#include <string.h>

#include "model/arena.h"

void tower_init(struct tower *t, const struct tower_shape *shape, int B_max, struct arena *params,
                struct arena *grads, struct arena *scratch, struct rng *rng)
{
    assert(shape->id > 0 && shape->out > 0 && shape->features >= 0 && shape->summary >= 0);
    const int hidden = shape->hidden ? shape->hidden : MLP_HIDDEN_DEFAULT;
    const int parts = shape->features ? 2 : 1;
    const int in = parts * shape->id + shape->summary;

    *t = (struct tower){.shape = *shape, .B_max = B_max};
    if (shape->bare) {
        assert(!shape->features && !shape->summary && shape->out == shape->id);
        return;
    }
    t->shape.hidden = hidden;
    if (shape->features) {
        mlp_init(&t->mlp, shape->features, hidden, shape->id, B_max, params, grads, scratch, rng);
        t->f = arena_floats(scratch, (size_t)B_max * (size_t)shape->id);
        t->df = arena_floats(scratch, (size_t)B_max * (size_t)shape->id);
    }
    linear_init(&t->top, in, shape->out, params, grads, rng);
    t->h = arena_floats(scratch, (size_t)B_max * (size_t)in);
    t->dh = arena_floats(scratch, (size_t)B_max * (size_t)in);
}

// Copies a dense matrix (B, width) into columns of h, starting at column `at`.
static void columns_put(int B, int stride, int at, int width, const float *x, float *h)
{
    for (size_t row = 0; row < (size_t)B; row++)
        memcpy(h + row * stride + at, x + row * width, sizeof(float) * width);
}

static void columns_add(int B, int stride, int at, int width, const float *h, float *x)
{
    for (size_t row = 0; row < (size_t)B; row++)
        for (int i = 0; i < width; i++)
            x[row * width + i] += h[row * stride + at + i];
}

void tower_forward(struct tower *t, int B, const float *id, const float *features,
                   const float *summary, float *Y)
{
    const struct tower_shape *s = &t->shape;
    const int in = t->top.in;
    assert(B <= t->B_max && !s->features == !features && !s->summary == !summary);

    if (s->bare) {
        memcpy(Y, id, (size_t)B * (size_t)s->id * sizeof *Y);
        return;
    }
    columns_put(B, in, 0, s->id, id, t->h);
    if (features) {
        mlp_forward(&t->mlp, B, features, t->f);
        columns_put(B, in, s->id, s->id, t->f, t->h);
    }
    if (summary)
        columns_put(B, in, in - s->summary, s->summary, summary, t->h);
    linear_forward(&t->top, B, t->h, Y);
}

void tower_backward(struct tower *t, int B, const float *features, const float *dY, float *did,
                    float *dsummary)
{
    const struct tower_shape *s = &t->shape;
    const int in = t->top.in;
    assert(B <= t->B_max && !s->features == !features);

    if (s->bare) {
        if (did)
            columns_add(B, s->id, 0, s->id, dY, did);
        return;
    }
    memset(t->dh, 0, sizeof(float) * (size_t)B * (size_t)in);
    linear_backward(&t->top, B, t->h, dY, t->dh);
    if (did)
        columns_add(B, in, 0, s->id, t->dh, did);
    if (features) {
        memset(t->df, 0, sizeof(float) * (size_t)B * (size_t)s->id);
        columns_add(B, in, s->id, s->id, t->dh, t->df);
        mlp_backward(&t->mlp, B, features, t->df, NULL);
    }
    if (dsummary && s->summary)
        columns_add(B, in, in - s->summary, s->summary, t->dh, dsummary);
}
