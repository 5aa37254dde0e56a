// SPDX-License-Identifier: Apache-2.0
#include "model/weighted_softmax.h"

#include <assert.h>

#include "model/arena.h"
#include "model/kernels.h"

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
        scale = kernels->max((size_t)B, s->net);
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
