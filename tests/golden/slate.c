// SPDX-License-Identifier: Apache-2.0
//
// Losses over one slate: distillation, alignment, preference, policy gradient.
#include "tests/golden/case.h"

#include <math.h>
#include <string.h>

#include "model/distill.h"
#include "model/gemm.h"
#include "model/logistic.h"
#include "model/policy.h"
#include "model/preference.h"
#include "model/proxy_ranker.h"
#include "model/slate_loss.h"

// The probabilities of one slate, 0 for masked items.
static void softmax(int n, const float *x, const float *mask, double tau, float *p)
{
    const double log_sum = slate_log_sum(n, x, mask, tau);
    for (int k = 0; k < n; k++)
        p[k] = isnan(mask[k]) ? 0 : (float)exp((double)x[k] / tau - log_sum);
}

// Of a matrix whose rows are slates.
static int columns_of(const struct tensor *x)
{
    return x->shape[x->dimensions - 1];
}

static int rows_of(const struct tensor *x)
{
    return (int)x->count / columns_of(x);
}

// ---- alignment -----------------------------------------------------------------------------

static void align_rows(struct test *t, const struct tensor *S, const float *reward, float *dS)
{
    const int rows = rows_of(S), n = columns_of(S);
    const float tau_s = number_in(t, "tau_student"), tau_r = number_in(t, "tau_reward");
    float *target = floats(t, S->count), *student = floats(t, S->count);
    float *kl_row = floats(t, (size_t)rows);
    double kl = 0;

    for (int i = 0; i < rows; i++) {
        const float *s = S->data + i * n, *r = reward + i * n;
        double loss;
        softmax(n, r, r, (double)tau_r, target + i * n);
        softmax(n, s, r, (double)tau_s, student + i * n);
        slate_align(n, s, tau_s, r, tau_r, 1 / (float)rows, &loss, dS + i * n);
        kl_row[i] = (float)loss;
        kl += loss / rows;
    }
    expect(t, "target", S->count, target);
    expect(t, "student", S->count, student);
    expect(t, "kl_row", (size_t)rows, kl_row);
    expect_number(t, "kl", kl);
    expect(t, "dS", S->count, dS);
    // What averaging over pairs instead of rows would report: the value of the trap, and not ours.
    expect_number(t, "elementwise_mean_kl", kl / n);
}

static void align_masked(struct test *t)
{
    const struct tensor S = tensor_in(t, "S"), mask = tensor_in(t, "mask");
    float *reward = tensor_in(t, "reward").data;
    for (size_t i = 0; i < mask.count; i++)
        reward[i] = mask.data[i] != 0 ? reward[i] : NAN;
    align_rows(t, &S, reward, floats(t, S.count));
}

static void align_ranker(struct test *t)
{
    if (has(t, "mask")) {
        align_masked(t);
        return;
    }
    const struct tensor U = tensor_in(t, "U"), V = tensor_in(t, "V"), W = tensor_in(t, "W");
    const struct tensor b = tensor_in(t, "b"), labels = tensor_in(t, "labels");
    const int q = U.shape[0], n = V.shape[0], D = U.shape[1], T = W.shape[0];
    const size_t pairs = (size_t)q * (size_t)n;
    float *logits = floats(t, (size_t)T * pairs), *reward = floats(t, pairs);
    float *dS = floats(t, pairs), *dU = floats(t, U.count), *dV = floats(t, V.count);
    struct tensor S = {2, {q, n}, pairs, floats(t, pairs)};
    struct proxy_ranker proxy;
    double bce;

    proxy_ranker_init(&proxy, D, T, &t->params, &t->grads, &t->rng);
    memcpy(proxy.head.W, W.data, sizeof(float) * W.count);
    memcpy(proxy.head.b, b.data, sizeof(float) * b.count);
    gemm_nt(q, n, D, U.data, V.data, S.data);
    for (int task = 0; task < T; task++) {
        float *one = floats(t, (size_t)T); // the value weights of this task alone
        one[task] = 1;
        proxy_ranker_reward(&proxy, one, q, n, U.data, V.data, S.data,
                            logits + (size_t)task * pairs);
    }
    expect(t, "task_logit", (size_t)T * pairs, logits);
    proxy_ranker_reward(&proxy, tensor_in(t, "value_weights").data, q, n, U.data, V.data, S.data,
                        reward);
    expect(t, "reward", pairs, reward);

    align_rows(t, &S, reward, dS);
    gemm_nn(q, D, n, dS, V.data, dU);
    gemm_tn(n, D, q, dS, U.data, dV);
    expect(t, "dU", U.count, dU);
    expect(t, "dV", V.count, dV);

    float *X = floats(t, (size_t)q * (2 * (size_t)D + 1)), *Z = floats(t, labels.count);
    proxy_ranker_forward(&proxy, q, U.data, V.data, X, Z);
    distill_pointwise((int)labels.count, Z, labels.data, 1, &bce, NULL);
    expect_number(t, "proxy_bce", bce);
}

// ---- distillation --------------------------------------------------------------------------

static void distill_pointwise_case(struct test *t)
{
    const struct tensor z = tensor_in(t, "logit"), aux = tensor_in(t, "aux_logit");
    const struct tensor labels = tensor_in(t, "labels");
    const int T = columns_of(&z), n = (int)z.count;
    const float lambda = number_in(t, "lambda");
    float *hard = floats(t, z.count), *soft = floats(t, z.count);
    float *dz = floats(t, z.count), *daux = floats(t, z.count);
    double hard_loss, soft_loss, entropy = 0;

    for (int i = 0; i < n; i++) {
        hard[i] = labels.data[i / T * 2 * T + i % T];
        soft[i] = labels.data[i / T * 2 * T + i % T + T];
    }
    distill_pointwise(n, z.data, hard, 1, &hard_loss, dz);
    distill_pointwise(n, aux.data, soft, lambda, &soft_loss, daux);
    for (int i = 0; i < n; i++) {
        const double q = (double)soft[i];
        entropy -= (q > 0 ? q * log(q) : 0) + (q < 1 ? (1 - q) * log1p(-q) : 0);
    }
    expect_number(t, "loss", hard_loss + (double)lambda * soft_loss);
    expect(t, "dlogit", z.count, dz);
    expect(t, "daux", z.count, daux);
    expect_number(t, "soft_bce", soft_loss);
    expect_number(t, "kl_excess", soft_loss - entropy / n);
}

static void rank_weights(struct test *t)
{
    const int K = int_in(t, "K");
    const float lambda = number_in(t, "lambda");
    const struct tensor s = tensor_in(t, "s_in_teacher_order");
    int *order = arena_bytes(&t->scratch, s.count * sizeof *order);
    float *w = floats(t, (size_t)K);
    double loss;

    for (int r = 0; r < (int)s.count; r++)
        order[r] = r;
    for (int r = 0; r < K; r++)
        w[r] = (float)distill_rank_weight(r + 1, K, lambda);
    distill_top_positives((int)s.count, order, s.data, K, lambda, 1, &loss, NULL);
    expect(t, "w", (size_t)K, w);
    expect_number(t, "loss", loss);
}

static void distill_listwise_case(struct test *t)
{
    if (has(t, "s_in_teacher_order")) {
        rank_weights(t);
        return;
    }
    const struct tensor s = tensor_in(t, "s"), g = tensor_in(t, "g");
    const int rows = rows_of(&s), n = columns_of(&s);
    int *order = arena_bytes(&t->scratch, s.count * sizeof *order);
    float *orders = floats(t, s.count), *ds = floats(t, s.count);
    float *kl = floats(t, (size_t)rows), *loss_rows = floats(t, (size_t)rows);

    for (int i = 0; i < rows; i++) {
        const float *s_i = s.data + i * n, *g_i = g.data + i * n;
        double loss;
        if (has(t, "T")) {
            const float T = number_in(t, "T");
            slate_align(n, s_i, T, g_i, T, 1, &loss, NULL);
            kl[i] = (float)loss;
            distill_listwise(n, s_i, g_i, T, 1, &loss, ds + i * n);
        } else {
            const int m = slate_order(n, g_i, order);
            distill_plackett_luce(m, order, s_i, int_in(t, "k"), 1, &loss, ds + i * n);
            for (int k = 0; k < m; k++)
                orders[i * n + k] = (float)order[k];
        }
        loss_rows[i] = (float)loss;
    }
    expect(t, "kl", (size_t)rows, kl);
    expect(t, "order", s.count, orders);
    expect(t, "loss_rows", (size_t)rows, loss_rows);
    expect(t, "ds_rows", s.count, ds);
}

// ---- policy gradient -----------------------------------------------------------------------

static void topk_offpolicy(struct test *t)
{
    const struct tensor S = tensor_in(t, "S"), action = tensor_in(t, "action");
    const struct tensor beta = tensor_in(t, "beta"), reward = tensor_in(t, "reward");
    const int rows = rows_of(&S), n = columns_of(&S), K = int_in(t, "K");
    const size_t B = (size_t)rows;
    float *pi = floats(t, B), *lambda = floats(t, B), *alpha = floats(t, B);
    float *ratio = floats(t, B), *capped = floats(t, B), *dS = floats(t, S.count);
    double mean = 0;

    for (int i = 0; i < rows; i++) {
        const float *s = S.data + i * n;
        const int a = (int)action.data[i];
        float *propensity = floats(t, (size_t)n), *advantage = floats(t, (size_t)n);
        float *p = floats(t, (size_t)n), *ratios = floats(t, (size_t)n);
        double loss;
        // One item of each row was drawn; the others are in the softmax and have no part else.
        propensity[a] = beta.data[i];
        advantage[a] = reward.data[i];
        softmax(n, s, s, 1, p);
        pi[i] = p[a];
        lambda[i] = (float)policy_topk_weight((double)p[a], K);
        alpha[i] = 1 - powf(1 - p[a], (float)K);
        policy_ratios(n, s, s, propensity, INFINITY, ratios);
        ratio[i] = ratios[a];
        policy_ratios(n, s, s, propensity, number_in(t, "cap"), ratios);
        capped[i] = ratios[a];
        policy_gradient(n, s, advantage, ratios, K, 1 / (float)rows, &loss, dS + i * n);
        mean += loss / rows;
    }
    expect(t, "pi", B, pi);
    expect(t, "lambda_K", B, lambda);
    expect(t, "alpha_K", B, alpha);
    expect(t, "ratio", B, ratio);
    expect(t, "ratio_capped", B, capped);
    policy_self_normalise(rows, ratio);
    expect(t, "ratio_selfnorm", B, ratio);
    expect_number(t, "loss", mean);
    expect(t, "dS", S.count, dS);
}

// ref e^(r / beta) / Z, where the reward and the trust region balance.
static void expect_optimum(struct test *t, const struct tensor *S_ref, const struct tensor *reward,
                           double beta)
{
    const size_t n = S_ref->count;
    double *p = arena_bytes(&t->scratch, n * sizeof *p), largest = -INFINITY, sum = 0;
    for (size_t k = 0; k < n; k++) {
        p[k] = (double)S_ref->data[k] + (double)reward->data[k] / beta;
        largest = fmax(largest, p[k]);
    }
    for (size_t k = 0; k < n; k++)
        sum += p[k] = exp(p[k] - largest);
    for (size_t k = 0; k < n; k++)
        p[k] /= sum;
    expect_doubles(t, "optimal_policy", n, p);
}

static void kl_shaped(struct test *t)
{
    const struct tensor S = tensor_in(t, "S"), S_ref = tensor_in(t, "S_ref");
    const struct tensor reward = tensor_in(t, "reward"), sample = tensor_in(t, "sample");
    const int n = (int)S.count, draws = (int)sample.count;
    const float beta = number_in(t, "beta");
    const double model = slate_log_sum(n, S.data, S.data, 1);
    const double published = slate_log_sum(n, S_ref.data, S_ref.data, 1);
    float *pi = floats(t, S.count), *shaped = floats(t, S.count), *dS = floats(t, S.count);
    float *advantage = floats(t, sample.count);
    double loss, sum = 0;

    softmax(n, S.data, S.data, 1, pi);
    for (int k = 0; k < n; k++) {
        const double log_ratio = ((double)S.data[k] - model) - ((double)S_ref.data[k] - published);
        shaped[k] = (float)((double)reward.data[k] - (double)beta * log_ratio);
    }
    policy_shaped(n, S.data, S_ref.data, reward.data, beta, 1, &loss, dS);
    for (int k = 0; k < n; k++)
        dS[k] = -dS[k]; // the case has the objective, which is maximised
    for (int i = 0; i < draws; i++)
        sum += (double)shaped[(int)sample.data[i]];
    for (int i = 0; i < draws; i++) {
        const double own = (double)shaped[(int)sample.data[i]];
        advantage[i] = (float)(own - (sum - own) / (draws - 1));
    }
    expect(t, "pi", S.count, pi);
    expect(t, "shaped", S.count, shaped);
    expect_number(t, "objective", -loss);
    expect(t, "dS_exact", S.count, dS);
    expect(t, "advantage_loo", sample.count, advantage);
    expect_optimum(t, &S_ref, &reward, (double)beta);
}

static void policy_gradient_case(struct test *t)
{
    if (has(t, "S_ref")) {
        kl_shaped(t);
    } else if (has(t, "ranker")) {
        const struct tensor g = tensor_in(t, "ranker");
        float *advantage = floats(t, g.count);
        policy_advantage((int)g.count, g.data, 1e-6f, advantage);
        expect(t, "advantage", g.count, advantage);
    } else {
        topk_offpolicy(t);
    }
}

// ---- preference ----------------------------------------------------------------------------

// Two lists as one slate: the high items, then the low ones. A list may be a plain number.
static float *joined(struct test *t, const char *high, const char *low)
{
    if (!has(t, high))
        return NULL;
    const struct tensor a = tensor_in(t, high), b = tensor_in(t, low);
    float *x = floats(t, a.count + b.count);
    memcpy(x, a.data, sizeof *x * a.count);
    memcpy(x + a.count, b.data, sizeof *x * b.count);
    return x;
}

static void s_dpo(struct test *t, const float *s, const float *s_ref)
{
    const int losers = (int)tensor_in(t, "s_lose").count;
    struct preference_pair *pairs = arena_bytes(&t->scratch, (size_t)losers * sizeof *pairs);
    float *ds = floats(t, 1 + (size_t)losers);
    double loss;
    for (int j = 0; j < losers; j++)
        pairs[j] = (struct preference_pair){0, (uint16_t)(1 + j)};
    preference_s_dpo(losers, pairs, s, s_ref, number_in(t, "beta"), 1, &loss, ds);
    expect_number(t, "loss", loss);
    expect(t, "ds_win", 1, ds);
    expect(t, "ds_lose", (size_t)losers, ds + 1);
}

static void preference(struct test *t)
{
    const bool dpo = has(t, "s_win"), soft = has(t, "T");
    const float *s = dpo ? joined(t, "s_win", "s_lose") : joined(t, "s_i", "s_j");
    const float *s_ref = joined(t, "ref_win", "ref_lose"), *g = joined(t, "g_i", "g_j");
    const struct tensor high = tensor_in(t, dpo ? "s_win" : "s_i");
    if (high.dimensions == 0) {
        s_dpo(t, s, s_ref);
        return;
    }
    const int n = (int)high.count;
    float *losses = floats(t, high.count), *ds = floats(t, 2 * high.count);
    float *target = floats(t, high.count);
    for (int i = 0; i < n; i++) {
        const struct preference_pair pair = {(uint16_t)i, (uint16_t)(n + i)};
        double loss;
        if (dpo)
            preference_dpo(1, &pair, s, s_ref, number_in(t, "beta"), 1, &loss, ds);
        else if (soft)
            preference_soft(1, &pair, s, g, number_in(t, "T"), 1, &loss, ds);
        else if (g)
            preference_margin_mse(1, &pair, s, g, 1, &loss, ds);
        else
            preference_bpr(1, &pair, s, 1, &loss, ds);
        losses[i] = (float)loss;
        if (soft)
            target[i] =
                (float)logistic_sigmoid((double)(g[i] - g[n + i]) / (double)number_in(t, "T"));
    }
    expect(t, "target", high.count, target);
    expect(t, "loss", high.count, losses);
    expect(t, dpo ? "ds_win" : "ds_i", high.count, ds);
    expect(t, dpo ? "ds_lose" : "ds_j", high.count, ds + n);
}

const struct topic slate_topics[] = {
    {"align_ranker", align_ranker},
    {"distill_pointwise", distill_pointwise_case},
    {"distill_listwise", distill_listwise_case},
    {"policy_gradient", policy_gradient_case},
    {"preference", preference},
    {NULL, NULL},
};
