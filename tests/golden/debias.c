// SPDX-License-Identifier: Apache-2.0
//
// Value, debiasing and position models.
#include <math.h>
#include <string.h>

#include "model/debias.h"
#include "model/position_model.h"
#include "model/value.h"
#include "tests/golden/case.h"
#include "tests/golden/weighted.h"

static int *ints_of(struct test *t, const struct tensor *x)
{
    int *n = arena_bytes(&t->scratch, (x->count ? x->count : 1) * sizeof *n);
    for (size_t i = 0; i < x->count; i++)
        n[i] = (int)x->data[i];
    return n;
}

static float *copy_of(struct test *t, const struct tensor *x)
{
    float *copy = floats(t, x->count);
    memcpy(copy, x->data, sizeof(float) * x->count);
    return copy;
}

// ---- estimators ----------------------------------------------------------------------------

// The ratio in the seed's form, the weights from it, and the softmax that they weigh.
static void debiased(struct test *t, const float *estimate, double aux)
{
    const struct tensor value = tensor_in(t, "value");
    const int B = (int)value.count;
    const float floor = number_in(t, "floor");
    float *lift = floats(t, value.count);

    for (int i = 0; i < B; i++)
        lift[i] = value_residual(VALUE_RATIO, value.data[i], estimate[i], 0, floor, 0);
    expect(t, "debiased", value.count, lift);
    if (!has(t, "V"))
        return;
    const struct tensor U = tensor_in(t, "U"), V = tensor_in(t, "V");
    const struct weighted s =
        weighted_step(t, VALUE_SEED, B, U.shape[1], lift, U.data, V.data, NULL, NULL);
    expect(t, "weight", value.count, s.weight);
    expect(t, "ce", value.count, s.ce);
    expect_number(t, "retrieval_loss", s.softmax.loss);
    expect_number(t, "total", s.softmax.loss + aux);
}

static void debias_position(struct test *t)
{
    const struct tensor value = tensor_in(t, "value"), table = tensor_in(t, "table");
    const struct tensor position = tensor_in(t, "position");
    const int B = (int)value.count, *bucket = ints_of(t, &position);
    float *estimate = floats(t, value.count), *dtable = floats(t, table.count);

    const double aux = debias_table_forward(B, bucket, table.data, value.data, estimate);
    debias_table_backward(B, bucket, estimate, value.data, dtable);
    expect(t, "estimate", value.count, estimate);
    expect_number(t, "aux_loss", aux);
    // Nothing comes back through the ratio: this is the whole gradient.
    expect(t, "dtable_stopgrad", table.count, dtable);
    debiased(t, estimate, aux);
}

// max(raw, floor): what the ratio divides by.
static float *floored(struct test *t, const struct tensor *like, const float *raw)
{
    const float floor = number_in(t, "floor");
    float *estimate = floats(t, like->count);
    for (size_t i = 0; i < like->count; i++)
        estimate[i] = fmaxf(raw[i], floor);
    return estimate;
}

static void debias_user(struct test *t)
{
    const struct tensor value = tensor_in(t, "value"), U = tensor_in(t, "U"), W = tensor_in(t, "W");
    const int B = (int)value.count, D = U.shape[1];
    float *raw = floats(t, value.count), *linear = floats(t, W.count + 2);
    float *dlinear = floats(t, W.count + 2);

    memcpy(linear, W.data, sizeof(float) * W.count);
    linear[D + 1] = number_in(t, "b");
    const double aux = debias_linear_forward(B, D, U.data, NULL, linear, value.data, raw);
    debias_linear_backward(B, D, U.data, NULL, raw, value.data, dlinear);
    expect(t, "raw", value.count, raw);
    expect(t, "estimate", value.count, floored(t, &value, raw));
    expect_number(t, "fixed_aux_loss", aux);
    expect(t, "fixed_dW", W.count, dlinear);
    expect_number(t, "fixed_db", dlinear[D + 1]);
    debiased(t, raw, aux);
}

static void debias_combined(struct test *t)
{
    const struct tensor value = tensor_in(t, "value"), U = tensor_in(t, "U"), W = tensor_in(t, "W");
    const struct tensor table = tensor_in(t, "table"), position = tensor_in(t, "position");
    const int B = (int)value.count, D = U.shape[1], *bucket = ints_of(t, &position);
    float *p = floats(t, value.count), *raw = floats(t, value.count);
    float *linear = floats(t, (size_t)D + 2), *dtable = floats(t, table.count);

    memcpy(linear, W.data, sizeof(float) * W.count); // W and behind it the position's weight
    linear[D + 1] = number_in(t, "b");
    const double position_loss = debias_table_forward(B, bucket, table.data, value.data, p);
    const double user_loss = debias_linear_forward(B, D, U.data, p, linear, value.data, raw);
    debias_table_backward(B, bucket, p, value.data, dtable);
    expect(t, "position_estimate", value.count, p);
    expect(t, "user_raw", value.count, raw);
    expect(t, "estimate", value.count, floored(t, &value, raw));
    expect_number(t, "user_loss", user_loss);
    expect_number(t, "fixed_position_loss", position_loss);
    expect_number(t, "fixed_aux", user_loss + position_loss);
    expect(t, "fixed_dtable_position_loss", table.count, dtable);
    debiased(t, raw, user_loss + position_loss);
}

// ---- position models -----------------------------------------------------------------------

static float logit(float p)
{
    return logf(p / (1 - p));
}

static void em_pbm(struct test *t)
{
    const struct tensor theta = tensor_in(t, "theta"), gamma = tensor_in(t, "gamma");
    const struct tensor position = tensor_in(t, "position"), item = tensor_in(t, "item");
    const struct tensor click = tensor_in(t, "click");
    const size_t n = click.count;
    const int *k = ints_of(t, &position), *x = ints_of(t, &item);
    const float eta = number_in(t, "eta");
    float *examined = floats(t, n), *relevant = floats(t, n), *p = floats(t, n);
    float *seen = floats(t, n), *relevance = floats(t, n);
    float *theta_new = copy_of(t, &theta), *theta_online = copy_of(t, &theta);
    float *gamma_new = copy_of(t, &gamma);
    float *theta_seen = floats(t, theta.count), *gamma_seen = floats(t, gamma.count);

    for (size_t i = 0; i < n; i++) {
        seen[i] = theta.data[k[i]];
        relevance[i] = gamma.data[x[i]];
        const struct position_posterior posterior =
            position_posterior(logit(seen[i]), logit(relevance[i]), click.data[i] > 0);
        examined[i] = posterior.examined;
        relevant[i] = posterior.relevant;
        // Folded in with rate 1/count, a posterior at a time is the mean; the start does not count.
        float *mean = &theta_new[k[i]], *of_item = &gamma_new[x[i]];
        *mean = position_fold(*mean, posterior.examined, 1 / ++theta_seen[k[i]]);
        *of_item = position_fold(*of_item, posterior.relevant, 1 / ++gamma_seen[x[i]]);
        theta_online[k[i]] = position_fold(theta_online[k[i]], posterior.examined, eta);
    }
    expect(t, "post_exam", n, examined);
    expect(t, "post_rel", n, relevant);
    expect(t, "theta_new", theta.count, theta_new);
    expect(t, "gamma_new", gamma.count, gamma_new);
    expect(t, "theta_online", theta.count, theta_online);
    expect_number(t, "loglik",
                  -(double)n * position_pal_forward((int)n, seen, relevance, click.data, p));
}

static void em_logits(struct test *t)
{
    const struct tensor e = tensor_in(t, "exam_logit"), r = tensor_in(t, "rel_logit");
    float *examined = floats(t, e.count), *relevant = floats(t, e.count);
    for (size_t i = 0; i < e.count; i++) {
        const struct position_posterior p = position_posterior(e.data[i], r.data[i], false);
        examined[i] = p.examined;
        relevant[i] = p.relevant;
    }
    expect(t, "post_exam", e.count, examined);
    expect(t, "post_rel", e.count, relevant);
}

static void pal(struct test *t)
{
    const struct tensor seen = tensor_in(t, "seen"), relevance = tensor_in(t, "relevance");
    const struct tensor click = tensor_in(t, "click");
    const int B = (int)click.count;
    float *p = floats(t, click.count), *dseen = floats(t, click.count);
    float *drelevance = floats(t, click.count);
    expect_number(t, "loss", position_pal_forward(B, seen.data, relevance.data, click.data, p));
    position_pal_backward(B, seen.data, relevance.data, click.data, p, dseen, drelevance);
    expect(t, "p", click.count, p);
    expect(t, "dseen", click.count, dseen);
    expect(t, "drelevance", click.count, drelevance);
}

static void additive(struct test *t)
{
    const struct tensor f = tensor_in(t, "relevance_logit"), g = tensor_in(t, "position_logit");
    const struct tensor click = tensor_in(t, "click");
    const int B = (int)click.count;
    float *df = floats(t, click.count), *dg = floats(t, click.count);
    int *bucket = arena_bytes(&t->scratch, (click.count + 1) * sizeof *bucket);
    for (int i = 0; i < B; i++)
        bucket[i] = i; // each row has a position of its own
    expect_number(t, "loss", position_additive_forward(B, f.data, g.data, bucket, click.data));
    position_additive_backward(B, f.data, g.data, bucket, click.data, df, dg);
    expect(t, "dboth", click.count, df);
    expect(t, "dboth", click.count, dg);
}

static void ipw(struct test *t)
{
    const struct tensor theta = tensor_in(t, "theta"), loss = tensor_in(t, "row_loss");
    const float cap = number_in(t, "cap");
    float *weight = floats(t, theta.count);
    for (size_t i = 0; i < theta.count; i++)
        weight[i] = position_ipw(theta.data[i], cap);
    expect(t, "weight", theta.count, weight);
    for (int normalised = 0; normalised < 2; normalised++) {
        double mean = 0;
        if (normalised)
            position_self_normalise((int)theta.count, weight);
        for (size_t i = 0; i < theta.count; i++)
            mean += (double)weight[i] * loss.data[i] / (double)theta.count;
        expect_number(t, normalised ? "snips" : "ips", mean);
    }
}

static void affine(struct test *t)
{
    const struct tensor alpha = tensor_in(t, "alpha"), beta = tensor_in(t, "beta");
    const struct tensor click = tensor_in(t, "click");
    float *pseudo = floats(t, click.count);
    for (size_t i = 0; i < click.count; i++)
        pseudo[i] = position_pseudo_label(click.data[i], alpha.data[i], beta.data[i]);
    expect(t, "pseudo", click.count, pseudo);
}

static void position_models(struct test *t)
{
    static const struct {
        const char *input; // that no other case of this topic has
        void (*run)(struct test *t);
    } cases[] = {{"eta", em_pbm},   {"exam_logit", em_logits},
                 {"seen", pal},     {"relevance_logit", additive},
                 {"row_loss", ipw}, {"alpha", affine}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (has(t, cases[i].input)) {
            cases[i].run(t);
            return;
        }
    fail(t, "no position model has these inputs");
}

// ---- residuals -----------------------------------------------------------------------------

static void forms(struct test *t)
{
    const struct tensor value = tensor_in(t, "value"), mean = tensor_in(t, "mean");
    const struct tensor sd = tensor_in(t, "sd");
    const float floor = number_in(t, "floor"), cap = number_in(t, "cap");
    const struct {
        const char *key;
        enum value_residual form;
        float cap;
    } forms[] = {{"ratio", VALUE_RATIO, 0},
                 {"ratio_capped", VALUE_RATIO, cap},
                 {"difference", VALUE_DIFFERENCE, 0},
                 {"positive_part", VALUE_POSITIVE, 0},
                 {"z", VALUE_Z, 0}};
    float *x = floats(t, value.count);
    for (size_t f = 0; f < sizeof forms / sizeof *forms; f++) {
        for (size_t i = 0; i < value.count; i++)
            x[i] = value_residual(forms[f].form, value.data[i], mean.data[i], sd.data[i], floor,
                                  forms[f].cap);
        expect(t, forms[f].key, value.count, x);
    }
}

static void value_residuals(struct test *t)
{
    if (has(t, "sd")) {
        forms(t);
    } else if (has(t, "value_res")) {
        const struct tensor value = tensor_in(t, "value_res"), phi = tensor_in(t, "phi_res");
        expect_number(t, "theta", value_partial_out((int)value.count, value.data, phi.data));
    } else {
        const struct tensor values = tensor_in(t, "values");
        const float decay = number_in(t, "decay"), prior = number_in(t, "prior");
        const float prior_weight = number_in(t, "prior_weight");
        float *estimate = floats(t, values.count);
        struct debias_mean mean = {0};
        for (size_t i = 0; i < values.count; i++) {
            debias_mean_add(&mean, decay, values.data[i]);
            estimate[i] = debias_mean_of(&mean, prior, prior_weight);
        }
        expect(t, "estimate", values.count, estimate);
    }
}

const struct topic debias_topics[] = {
    {"debias_combined", debias_combined}, {"debias_position", debias_position},
    {"debias_user", debias_user},         {"position_models", position_models},
    {"value_residuals", value_residuals}, {NULL, NULL},
};
