// SPDX-License-Identifier: Apache-2.0
#include "model/weighted_softmax.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/arena.h"
#include "model/kernels.h"

void value_net(int B, int T, const float *labels, const float *value_weight, float *net)
{
    for (size_t i = 0; i < (size_t)B; i++)
        net[i] = kernels->dot((size_t)T, labels + i * (size_t)T, value_weight);
}

static float largest(int B, const float *net)
{
    return kernels->max((size_t)B, net);
}

void value_weights(enum value_form form, int B, const float *net, float scale, float *weight)
{
    const float floor = 1e-6f; // of the seed form
    if (form == VALUE_SEED) {
        const float divisor = fmaxf(largest(B, net), floor);
        for (int i = 0; i < B; i++)
            weight[i] = fmaxf(net[i], floor) / divisor;
        return;
    }
    assert(scale > 0);
    for (int i = 0; i < B; i++)
        weight[i] = net[i] > 0 ? fminf(net[i] / scale, 1) : 0;
}

static int ascending(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

void value_scale_update(struct value_scale *s, int B, const float *net, float *sorted)
{
    int positives = 0;
    for (int i = 0; i < B; i++)
        if (net[i] > 0)
            sorted[positives++] = net[i];
    if (positives == 0)
        return;
    qsort(sorted, (size_t)positives, sizeof *sorted, ascending);
    // The smallest value that at least 99 in 100 do not exceed.
    const float percentile = sorted[(99 * (long)positives + 99) / 100 - 1];
    s->scale = s->scale > 0 ? s->scale + s->rate * (percentile - s->scale) : percentile;
}

void weighted_softmax_init(struct weighted_softmax *s, enum value_form form, int B_max,
                           struct arena *scratch)
{
    const struct retrieval_options options = {.reduction = RETRIEVAL_MEAN};
    *s = (struct weighted_softmax){.form = form};
    retrieval_loss_init(&s->softmax, &options, B_max, B_max, 1, scratch);
    s->net = arena_floats(scratch, (size_t)B_max);
    s->weight = arena_floats(scratch, (size_t)B_max);
}

static struct retrieval_batch batch_of(const struct weighted_softmax *s, int B, int D,
                                       const float *U, const float *V)
{
    return (struct retrieval_batch){
        .queries = B, .candidates = B, .D = D, .Q = U, .C = V, .weight = s->weight};
}

void weighted_softmax_forward(struct weighted_softmax *s, int B, int D, const float *U,
                              const float *V, int T, const float *labels, const float *value_weight,
                              float scale, float *row_loss)
{
    assert(B <= s->softmax.queries_max);
    value_net(B, T, labels, value_weight, s->net);
    if (!(scale > 0))
        scale = largest(B, s->net);
    // Without a positive and without a scale every weight is 0, whatever it is divided by.
    value_weights(s->form, B, s->net, scale > 0 ? scale : 1, s->weight);
    const struct retrieval_batch b = batch_of(s, B, D, U, V);
    retrieval_loss_forward(&s->softmax, &b, row_loss);
    s->loss = s->softmax.loss;
}

void weighted_softmax_backward(const struct weighted_softmax *s, int B, int D, const float *U,
                               const float *V, float *dU, float *dV)
{
    const struct retrieval_batch b = batch_of(s, B, D, U, V);
    retrieval_loss_backward(&s->softmax, &b, dU, dV);
}
