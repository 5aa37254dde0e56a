// SPDX-License-Identifier: Apache-2.0
//
// Light ranker, delayed feedback, OneBP, mixture of logits.
#include <math.h>
#include <string.h>

#include "model/arena.h"
#include "model/delayed_feedback.h"
#include "model/light_ranker.h"
#include "model/logistic.h"
#include "model/mixture_of_logits.h"
#include "model/onebp.h"
#include "model/retrieval_loss.h"
#include "model/topk.h"
#include "tests/golden/case.h"

// ---- light ranker ----------------------------------------------------------------------------

// A head of the case's W and b, (B, NU, D) user heads and (B, D) user vectors.
struct head {
    struct light_ranker_shape shape;
    struct tensor heads, users;
    float *dense, *ddense;
    size_t D, NU, T, F;
};

static struct head head_in(struct test *t)
{
    const struct tensor W = tensor_in(t, "W"), b = tensor_in(t, "b");
    struct head h = {.heads = tensor_in(t, "user_heads"), .users = tensor_in(t, "mips_user")};
    h.shape = (struct light_ranker_shape){h.heads.shape[2], h.heads.shape[1], W.shape[0]};
    h.D = (size_t)h.shape.width, h.NU = (size_t)h.shape.heads, h.T = (size_t)h.shape.tasks;
    h.F = (size_t)light_ranker_features(&h.shape);
    h.dense = floats(t, light_ranker_size(&h.shape));
    h.ddense = floats(t, light_ranker_size(&h.shape));
    if (W.count != h.T * h.F || b.count != h.T)
        fail(t, "in.W or in.b is not of the head's shape");
    else {
        const struct light_ranker_parameters p = light_ranker_at(h.dense, &h.shape);
        memcpy(h.dense + (p.W_l - h.dense), W.data, W.count * sizeof(float));
        memcpy(h.dense + (p.b_l - h.dense), b.data, b.count * sizeof(float));
    }
    return h;
}

// The cases give each user's heads instead of the layer they come from. With W_r = 0 that layer
// gives its bias, so user u's heads are the bias, and its gradient is theirs.
static void head_of_user(struct head *h, size_t u)
{
    const struct light_ranker_parameters p = light_ranker_at(h->dense, &h->shape);
    memcpy(h->dense + (p.b_r - h->dense), h->heads.data + u * h->NU * h->D,
           h->NU * h->D * sizeof(float));
}

static void score(struct head *h, size_t u, size_t n, const float *V, const float *value_weight,
                  enum light_ranker_value form, float *value)
{
    const struct light_ranker_parameters p = light_ranker_at(h->dense, &h->shape);
    head_of_user(h, u);
    light_ranker_score(&p, &h->shape, h->users.data + u * h->D, (int)n, V, value_weight, form,
                       value);
}

// The first `keep` of n values in order, as corpus rows.
static void keep_best(struct test *t, size_t keep, size_t n, const float *value, const double *row,
                      double *kept)
{
    struct topk_entry *best = arena_bytes(&t->scratch, keep * sizeof *best);
    int count = 0;
    for (uint32_t i = 0; i < n; i++)
        topk_push(best, &count, (int)keep, (struct topk_entry){value[i], i});
    topk_sort(best, count);
    for (int i = 0; i < count; i++)
        kept[i] = row[best[i].row];
}

static void light_ranker_inference(struct test *t)
{
    struct head h = head_in(t);
    const struct tensor C = tensor_in(t, "corpus");
    const size_t B = (size_t)h.users.shape[0], N = (size_t)C.shape[0], T = h.T;
    const size_t asked = (size_t)int_in(t, "num_mips"), n = asked < N ? asked : N;
    const size_t wanted = (size_t)int_in(t, "num_items"), keep = wanted < n ? wanted : n;
    const float *value_weight = tensor_in(t, "value_weights").data;
    float *V = floats(t, n * h.D), *mips = floats(t, B * n), *logit = floats(t, B * n * T);
    float *by_logit = floats(t, B * n), *by_prob = floats(t, B * n), *one = floats(t, n);
    double *rows = arena_bytes(&t->scratch, B * n * sizeof *rows);
    double *items_logit = arena_bytes(&t->scratch, B * keep * sizeof *items_logit);
    double *items_prob = arena_bytes(&t->scratch, B * keep * sizeof *items_prob);
    struct topk search;

    if (t->failed)
        return;
    topk_init(&search, (int)B, (int)n, (int)h.D, &t->scratch);
    topk_begin(&search, (int)B, (int)n);
    topk_scan(&search, h.users.data, 0, (uint32_t)N, C.data, NULL, NULL);
    topk_finish(&search);
    for (size_t u = 0; u < B; u++) {
        for (size_t i = 0; i < n; i++) {
            const struct topk_entry e = search.entries[u * (size_t)search.k_max + i];
            rows[u * n + i] = e.row;
            mips[u * n + i] = e.score;
            memcpy(V + i * h.D, C.data + e.row * h.D, h.D * sizeof *V);
        }
        // A task's logit is the value when only this task is worth anything.
        for (size_t task = 0; task < T; task++) {
            float only[SLATE_TASKS_MAX] = {0};
            only[task] = 1;
            score(&h, u, n, V, only, LIGHT_RANKER_LOGITS, one);
            for (size_t i = 0; i < n; i++)
                logit[(u * n + i) * T + task] = one[i];
        }
        score(&h, u, n, V, value_weight, LIGHT_RANKER_LOGITS, by_logit + u * n);
        score(&h, u, n, V, value_weight, LIGHT_RANKER_PROBABILITIES, by_prob + u * n);
        keep_best(t, keep, n, by_logit + u * n, rows + u * n, items_logit + u * keep);
        keep_best(t, keep, n, by_prob + u * n, rows + u * n, items_prob + u * keep);
    }
    expect_doubles(t, "candidates", B * n, rows);
    expect(t, "mips_score", B * n, mips);
    expect(t, "task_logit", B * n * T, logit);
    expect(t, "value_logit", B * n, by_logit);
    expect(t, "value_prob", B * n, by_prob);
    expect_doubles(t, "items_logit", B * keep, items_logit);
    expect_doubles(t, "items_prob", B * keep, items_prob);
}

static void light_ranker_train(struct test *t)
{
    struct head h = head_in(t);
    const struct tensor V = tensor_in(t, "item"), labels = tensor_in(t, "labels");
    const size_t B = (size_t)h.users.shape[0], R = h.NU * h.D;
    float *dQ = floats(t, B * h.D), *dV = floats(t, B * h.D), *dR = floats(t, B * R);
    float *features = floats(t, B * h.F), *logit = floats(t, B * h.T);
    struct light_ranker ranker;
    // Each user is a step of its own: the mean over B of them.
    struct light_ranker_options options = {.weight = 1 / (float)B};
    double bce = 0;

    if (t->failed)
        return;
    for (size_t task = 0; task < h.T; task++)
        options.positive_weight[task] = 1;
    light_ranker_open(&ranker, &h.shape, 1, 1, &t->scratch);
    const struct light_ranker_parameters p = light_ranker_at(h.ddense, &h.shape);
    for (size_t u = 0; u < B; u++) {
        const struct light_ranker_batch batch = {
            .slates = 1,
            .first = (const int[]){0, 1},
            .Q = h.users.data + u * h.D,
            .V = V.data + u * h.D,
            .surface = (const uint8_t[]){0},
            .position = (const int16_t[]){-1},
        };
        float *db_r = h.ddense + (p.b_r - h.ddense);
        head_of_user(&h, u);
        light_ranker_forward(&ranker, h.dense, &batch);
        bce += light_ranker_loss(&ranker, &options, &batch, labels.data + u * h.T, NULL).bce;
        memset(db_r, 0, R * sizeof *db_r);
        light_ranker_backward(&ranker, h.dense, &batch, h.ddense, dQ + u * h.D, dV + u * h.D);
        memcpy(dR + u * R, db_r, R * sizeof *dR);
        memcpy(features + u * h.F, ranker.Phi, h.F * sizeof *features);
        memcpy(logit + u * h.T, ranker.Z, h.T * sizeof *logit);
    }
    expect(t, "features", B * h.F, features);
    expect(t, "logit", B * h.T, logit);
    expect_number(t, "bce", bce / (double)B);
    expect(t, "dW", h.T * h.F, p.W_l);
    expect(t, "db", h.T, p.b_l);
    expect(t, "dR", B * R, dR);
    expect(t, "dm", B * h.D, dQ);
    expect(t, "dV", B * h.D, dV);
}

// The softmax beside the head: values floored, not divided by the largest, mean over the batch.
static void light_ranker_retrieval(struct test *t)
{
    const struct tensor U = tensor_in(t, "U"), V = tensor_in(t, "V"), value = tensor_in(t, "value");
    const struct retrieval_options options = {.reduction = RETRIEVAL_MEAN};
    float *weight = floats(t, value.count);
    struct retrieval_loss loss;

    for (size_t i = 0; i < value.count; i++)
        weight[i] = fmaxf(value.data[i], 1e-6f);
    retrieval_loss_init(&loss, &options, U.shape[0], V.shape[0], 1, U.shape[1], &t->scratch);
    retrieval_loss_step(&loss,
                        &(struct retrieval_batch){.queries = U.shape[0],
                                                  .candidates = V.shape[0],
                                                  .D = U.shape[1],
                                                  .Q = U.data,
                                                  .C = V.data,
                                                  .weight = weight},
                        NULL, &(struct retrieval_gradient){0});
    expect(t, "weight", value.count, weight);
    expect_number(t, "loss", loss.loss);
}

static void light_ranker(struct test *t)
{
    if (has(t, "corpus"))
        light_ranker_inference(t);
    else if (has(t, "labels"))
        light_ranker_train(t);
    else
        light_ranker_retrieval(t);
}

// ---- delayed feedback ------------------------------------------------------------------------

static void expect_weighted(struct test *t, const struct tensor *z, const float *label,
                            const float *weight)
{
    float *row = floats(t, z->count), *dz = floats(t, z->count);
    const struct logistic_sum sum =
        logistic_loss(z->count, 1, z->data, label, weight, NULL, row, dz);
    for (size_t i = 0; i < z->count; i++)
        dz[i] /= (float)sum.pairs;
    expect(t, "row", z->count, row);
    expect_number(t, "loss", sum.loss / (double)sum.pairs);
    expect(t, "dlogit", z->count, dz);
}

static void delayed_feedback(struct test *t)
{
    if (has(t, "biased_prob")) {
        const struct tensor biased = tensor_in(t, "biased_prob");
        float *p = floats(t, biased.count);
        delayed_feedback_fnc(biased.count, biased.data, p);
        expect(t, "p", biased.count, p);
        return;
    }
    const struct tensor z = tensor_in(t, "logit"), label = tensor_in(t, "label");
    const size_t n = z.count;
    float *weight = floats(t, n);
    if (has(t, "rate")) {
        float *row = floats(t, n), *posterior = floats(t, n), *dz = floats(t, n);
        float *drate = floats(t, n);
        delayed_feedback_dfm(n, z.data, label.data, tensor_in(t, "rate").data,
                             tensor_in(t, "time").data, row, posterior, dz, drate);
        expect(t, "row", n, row);
        expect(t, "posterior", n, posterior);
        expect(t, "dlogit", n, dz);
        expect(t, "drate", n, drate);
        return;
    }
    if (has(t, "p_dp"))
        delayed_feedback_es_dfm(n, label.data, tensor_in(t, "p_dp").data, tensor_in(t, "p_rn").data,
                                weight);
    else {
        float *p = floats(t, n);
        logistic(n, z.data, p);
        delayed_feedback_fnw(n, p, label.data, weight);
    }
    expect_weighted(t, &z, label.data, weight);
}

// ---- OneBP, mixture of logits ----------------------------------------------------------------

static void onebp_and_mol(struct test *t)
{
    if (has(t, "gate")) {
        const struct tensor gate = tensor_in(t, "gate"), dots = tensor_in(t, "dots");
        mixture_of_logits_gate(1, (int)gate.count, gate.data);
        expect_number(t, "score",
                      (double)mixture_of_logits_forward((int)gate.count, gate.data, dots.data));
        return;
    }
    const struct tensor U = tensor_in(t, "U"), V = tensor_in(t, "V"), users = tensor_in(t, "users");
    const size_t D = (size_t)U.shape[1];
    const uint64_t *user = ids_in(t, "users"), *item = ids_in(t, "items");
    for (size_t i = 0; i < users.count; i++)
        onebp_move((int)D, number_in(t, "beta"), V.data + item[i] * D, U.data + user[i] * D);
    expect(t, "U_new", U.count, U.data);
}

const struct topic ranker_topics[] = {
    {"delayed_feedback", delayed_feedback},
    {"light_ranker", light_ranker},
    {"onebp_and_mol", onebp_and_mol},
    {NULL, NULL},
};
