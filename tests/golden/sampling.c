// SPDX-License-Identifier: Apache-2.0
//
// Corrections of sampled softmax, multi-interest, clipped optimizers.
#include <math.h>
#include <string.h>

#include "model/gemm.h"
#include "model/multi_interest.h"
#include "model/negative_memory.h"
#include "model/optimizer.h"
#include "model/sampled_softmax.h"
#include "tests/golden/case.h"

// ---- sampled softmax -----------------------------------------------------------------------

// Rows of scores with the correction taken off, ready for sampled_softmax_row.
struct sampled {
    int rows, columns;
    const int *target; // NULL: the row's own number
    float *log_q, *L, *dcolumn;
    const uint64_t *removed; // (rows, words) or NULL
};

static struct sampled sampled_of(struct test *t, const struct tensor *S, const double *Q)
{
    struct sampled s = {.rows = S->shape[0], .columns = S->shape[1]};
    const size_t columns = (size_t)s.columns;
    s.log_q = floats(t, columns);
    s.dcolumn = floats(t, columns);
    s.L = floats(t, S->count);
    for (size_t j = 0; j < columns; j++)
        s.log_q[j] = (float)log(Q[j]);
    for (size_t i = 0; i < S->count; i++)
        s.L[i] = S->data[i] - s.log_q[i % columns];
    return s;
}

// The rows' losses; L becomes the gradient, its sum over the rows what dcolumn must have.
static float *sampled_run(struct test *t, struct sampled *s, const struct sampled_softmax *form,
                          const float *weight)
{
    float *row = floats(t, (size_t)s->rows);
    memset(s->dcolumn, 0, (size_t)s->columns * sizeof *s->dcolumn);
    for (int i = 0; i < s->rows; i++)
        row[i] = (float)sampled_softmax_row(
            form, s->columns, s->log_q, s->target ? s->target[i] : i,
            s->removed ? s->removed + (size_t)i * retrieval_words(s->columns) : NULL,
            weight ? weight[i] : 1, s->L + (size_t)i * (size_t)s->columns, s->dcolumn);
    for (int j = 0; j < s->columns; j++) {
        double sum = 0;
        for (int i = 0; i < s->rows; i++)
            sum += (double)s->L[(size_t)i * (size_t)s->columns + (size_t)j];
        if (!(fabs(sum - (double)s->dcolumn[j]) <= 1e-5))
            fail(t, "column %d sums to %.9g, expected %.9g", j, (double)s->dcolumn[j], sum);
    }
    return row;
}

static double *doubles(struct test *t, const struct tensor *x)
{
    double *y = arena_bytes(&t->scratch, (x->count + 1) * sizeof *y);
    for (size_t i = 0; i < x->count; i++)
        y[i] = (double)x->data[i];
    return y;
}

static double sum_of(int n, const float *x)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += (double)x[i];
    return sum;
}

static void sampled_logq(struct test *t)
{
    const struct tensor S = tensor_in(t, "S"), Q = tensor_in(t, "Q"), r = tensor_in(t, "reward");
    const struct sampled_softmax form = {SAMPLED_LOGQ, SAMPLED_DRAW};
    struct sampled s = sampled_of(t, &S, doubles(t, &Q));
    expect(t, "row", (size_t)s.rows, sampled_run(t, &s, &form, NULL));
    s = sampled_of(t, &S, doubles(t, &Q));
    expect_number(t, "loss", sum_of(s.rows, sampled_run(t, &s, &form, r.data)) / s.rows);
}

static void sampled_refined(struct test *t)
{
    const struct tensor S = tensor_in(t, "S"), Q = tensor_in(t, "Q");
    const struct tensor positive = tensor_in(t, "positive_column");
    const struct sampled_softmax form = {SAMPLED_REFINED, SAMPLED_DRAW};
    struct sampled s = sampled_of(t, &S, doubles(t, &Q));
    int *target = arena_bytes(&t->scratch, (size_t)(s.rows + 1) * sizeof *target);
    float *weight = floats(t, (size_t)s.rows);
    for (int i = 0; i < s.rows; i++)
        target[i] = (int)positive.data[i];
    s.target = target;
    const float *loss = sampled_run(t, &s, &form, NULL);
    float *row = floats(t, (size_t)s.rows);
    for (int i = 0; i < s.rows; i++) {
        // The target's gradient is the weight 1 - P, and the row's loss is that times the bracket.
        weight[i] = -s.L[(size_t)i * (size_t)s.columns + (size_t)target[i]];
        row[i] = loss[i] / weight[i];
    }
    expect(t, "row", (size_t)s.rows, row);
    expect(t, "weight", (size_t)s.rows, weight);
    expect_number(t, "loss_sum", sum_of(s.rows, loss));
    expect(t, "dS_of_sum", S.count, s.L);
}

static void sampled_mixed(struct test *t)
{
    static const struct {
        const char *key;
        enum sampled_form form;
    } rows[] = {{"row_paper", SAMPLED_MNS},
                {"row_all_corrected", SAMPLED_LOGQ},
                {"row_counted", SAMPLED_COUNTED}};
    const struct tensor S = tensor_in(t, "S"), q = tensor_in(t, "unigram");
    const int B = int_in(t, "B"), uniform = int_in(t, "B_uniform");
    double *Q = doubles(t, &q);
    for (size_t j = 0; j < q.count; j++)
        Q[j] = sampled_rate(B, Q[j], uniform, (double)number_in(t, "corpus")) / (B + uniform);
    expect_doubles(t, "Qstar", q.count, Q);
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++) {
        const struct sampled_softmax form = {rows[k].form, SAMPLED_DRAW};
        struct sampled s = sampled_of(t, &S, Q);
        expect(t, rows[k].key, (size_t)s.rows, sampled_run(t, &s, &form, NULL));
    }
}

// The batch's columns, then those of the memory, which get no gradient.
static void sampled_memory(struct test *t)
{
    const struct tensor U = tensor_in(t, "U"), V = tensor_in(t, "V"), M = tensor_in(t, "memory");
    const struct tensor q = tensor_in(t, "batch_q"), memory_q = tensor_in(t, "memory_q");
    const uint64_t *ids = ids_in(t, "batch_ids"), *memory_ids = ids_in(t, "memory_ids");
    const int B = U.shape[0], D = U.shape[1], C = V.shape[0];
    const struct negative_memory_options o = {.capacity = (uint32_t)M.shape[0]};
    const struct sampled_softmax form = {SAMPLED_LOGQ, SAMPLED_DRAW};
    struct negative_memory memory = {0};
    struct negative_entry *entries = arena_bytes(&t->scratch, o.capacity * sizeof *entries);
    uint32_t *places = arena_bytes(&t->scratch, o.capacity * sizeof *places);
    for (uint32_t i = 0; i < o.capacity; i++)
        entries[negative_memory_push(&memory, &o)] = (struct negative_entry){
            .row = (uint32_t)memory_ids[i], .log_q = logf(memory_q.data[i])};
    const int n = negative_memory_select(&memory, &o, entries, NULL, 0, places), all = C + n;
    const size_t words = retrieval_words(all);

    float *X = floats(t, (size_t)all * (size_t)D), *S = floats(t, (size_t)B * (size_t)all);
    double *Q = arena_bytes(&t->scratch, (size_t)all * sizeof *Q);
    uint64_t *removed = arena_bytes(&t->scratch, (size_t)B * words * sizeof *removed);
    memcpy(X, V.data, V.count * sizeof *X);
    for (int j = 0; j < C; j++)
        Q[j] = (double)q.data[j];
    for (int i = 0; i < n; i++) {
        memcpy(X + (size_t)(C + i) * (size_t)D, M.data + (size_t)places[i] * (size_t)D,
               (size_t)D * sizeof *X);
        Q[C + i] = exp((double)entries[places[i]].log_q);
    }
    for (int i = 0; i < B; i++)
        negative_memory_remove(entries, n, places, (uint32_t)ids[i], C,
                               removed + (size_t)i * words);
    gemm_nt(B, all, D, U.data, X, S);
    const struct tensor scores = {2, {B, all}, (size_t)B * (size_t)all, S};
    struct sampled s = sampled_of(t, &scores, Q);
    s.removed = removed;
    expect(t, "row", (size_t)B, sampled_run(t, &s, &form, NULL));

    // The gradients are those of the mean.
    float *weight = floats(t, (size_t)B);
    for (int i = 0; i < B; i++)
        weight[i] = 1 / (float)B;
    s = sampled_of(t, &scores, Q);
    s.removed = removed;
    sampled_run(t, &s, &form, weight);
    float *dU = floats(t, U.count), *dX = floats(t, (size_t)all * (size_t)D);
    gemm_nn(B, D, all, s.L, X, dU);
    gemm_tn(all, D, B, s.L, U.data, dX);
    expect(t, "dU", U.count, dU);
    expect(t, "dV", V.count, dX);
}

static void sampled_fifo(struct test *t)
{
    const struct negative_memory_options o = {.capacity = (uint32_t)int_in(t, "capacity")};
    const struct tensor lengths = tensor_in(t, "push_len");
    const uint64_t *push = ids_in(t, "push");
    const size_t capacity = o.capacity;
    struct negative_memory memory = {0};
    struct negative_entry *entries = arena_bytes(&t->scratch, capacity * sizeof *entries);
    uint32_t *places = arena_bytes(&t->scratch, capacity * sizeof *places);
    float *content = floats(t, lengths.count * capacity);
    for (size_t batch = 0; batch < lengths.count; batch++) {
        for (int i = 0; i < (int)lengths.data[batch]; i++)
            entries[negative_memory_push(&memory, &o)].row = (uint32_t)*push++;
        const int n = negative_memory_select(&memory, &o, entries, NULL, 0, places);
        for (size_t i = 0; i < capacity; i++) // oldest first; the selection is newest first
            content[batch * capacity + i] =
                i < (size_t)n ? (float)entries[places[(size_t)n - 1 - i]].row : -1;
    }
    expect(t, "content", lengths.count * capacity, content);
}

// A case is known by what it has.
static void sampled_softmax_corrections(struct test *t)
{
    if (has(t, "capacity"))
        sampled_fifo(t);
    else if (has(t, "memory"))
        sampled_memory(t);
    else if (has(t, "unigram"))
        sampled_mixed(t);
    else if (has(t, "positive_column"))
        sampled_refined(t);
    else
        sampled_logq(t);
}

// ---- several interests ---------------------------------------------------------------------

static void interests_attend(struct test *t)
{
    const struct tensor X = tensor_in(t, "history"), W1 = tensor_in(t, "W1");
    const struct tensor W2 = tensor_in(t, "W2"), items = tensor_in(t, "items");
    const int n = X.shape[0], D = X.shape[1], K = W2.shape[1], start[] = {0, n};
    struct multi_interest m;
    multi_interest_init(&m, D, W1.shape[0], K, n, &t->params, &t->grads, &t->scratch, &t->rng);
    memcpy(m.W1, W1.data, W1.count * sizeof(float));
    memcpy(m.W2, W2.data, W2.count * sizeof(float));
    float *Y = floats(t, (size_t)K * (size_t)D);
    multi_interest_forward(&m, 1, start, X.data, Y);
    expect(t, "attention", (size_t)n * (size_t)K, m.A);
    expect(t, "interests", (size_t)K * (size_t)D, Y);

    const size_t rows = (size_t)items.shape[0];
    float *dots = floats(t, rows * (size_t)K), *choice = floats(t, rows), *score = floats(t, rows);
    for (size_t i = 0; i < rows; i++) {
        float *dot = dots + i * (size_t)K;
        const int best = multi_interest_choose(K, D, Y, items.data + i * (size_t)D, dot);
        choice[i] = (float)best;
        score[i] = dot[best];
    }
    expect(t, "dots", rows * (size_t)K, dots);
    expect(t, "choice", rows, choice);
    expect(t, "score", rows, score);
}

static void interests_mix(struct test *t)
{
    static const char *const cases[][2] = {{"p", "v_p1"}, {"p_signed", "v_p2_signed"}};
    const struct tensor V = tensor_in(t, "interests"), e = tensor_in(t, "item");
    const int K = V.shape[0], D = V.shape[1];
    float *mix = floats(t, 2 * (size_t)K), *v = floats(t, (size_t)D);
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        multi_interest_label_aware(K, D, number_in(t, cases[c][0]), V.data, e.data, mix, v);
        expect(t, cases[c][1], (size_t)D, v);
    }
}

// Scores (B, heads, n) go through the loss as queries against unit vectors. What a head gets of its
// candidate's gradient is its share, 0 but for the best. B queries one by one: n may be below B.
static void maxsim_run(struct test *t, const struct tensor *scores, float *best, float *share)
{
    const int heads = scores->shape[1], n = scores->shape[2];
    const size_t columns = (size_t)n, block = (size_t)heads * columns;
    const struct retrieval_options options = {.reduction = RETRIEVAL_SUM};
    struct retrieval_loss l;
    retrieval_loss_init(&l, &options, 1, n, heads, n, &t->scratch);
    float *unit = floats(t, columns * columns);
    for (size_t j = 0; j < columns; j++)
        unit[j * columns + j] = 1;
    for (size_t i = 0; i < (size_t)scores->shape[0]; i++) {
        const struct retrieval_batch batch = {.queries = 1,
                                              .candidates = n,
                                              .heads = heads,
                                              .D = n,
                                              .Q = scores->data + i * block,
                                              .C = unit};
        float *dQ = share + i * block;
        l.trace.scores = best + i * columns;
        retrieval_loss_step(&l, &batch, NULL, &(struct retrieval_gradient){.dQ = dQ});
        for (size_t j = 0; j < columns; j++) {
            float sum = 0;
            for (size_t h = 0; h < (size_t)heads; h++)
                sum += dQ[h * columns + j];
            for (size_t h = 0; h < (size_t)heads; h++)
                dQ[h * columns + j] /= sum;
        }
    }
}

static void maxsim_gradient(struct test *t)
{
    const struct tensor scores = tensor_in(t, "head_scores");
    const struct tensor tie = tensor_in(t, "head_scores_tie");
    const size_t B = (size_t)scores.shape[0], H = (size_t)scores.shape[1];
    const size_t n = (size_t)scores.shape[2];
    float *best = floats(t, B * n), *share = floats(t, scores.count), *head = floats(t, B * n);
    maxsim_run(t, &scores, best, share);
    for (size_t i = 0; i < B; i++)
        for (size_t h = H; h-- > 0;)
            for (size_t j = 0; j < n; j++)
                if (share[(i * H + h) * n + j] > 0)
                    head[i * n + j] = (float)h;
    expect(t, "best", B * n, best);
    expect(t, "head", B * n, head);
    float *tie_best = floats(t, tie.count), *tie_share = floats(t, tie.count);
    maxsim_run(t, &tie, tie_best, tie_share);
    expect(t, "tie_gradient_of_sum", tie.count, tie_share);
}

static void multi_interest(struct test *t)
{
    if (has(t, "history"))
        interests_attend(t);
    else if (has(t, "interests"))
        interests_mix(t);
    else
        maxsim_gradient(t);
}

// ---- clipped Adagrad -----------------------------------------------------------------------

static void clippy_shrink(struct test *t)
{
    const struct tensor x = tensor_in(t, "tensor"), references = tensor_in(t, "references");
    const struct tensor relative = tensor_in(t, "relative");
    const float scale = optimizer_shrink(x.count, x.data, relative.count, references.data,
                                         relative.data, number_in(t, "absolute"));
    expect_number(t, "scale", (double)scale);
    for (size_t i = 0; i < x.count; i++)
        x.data[i] *= scale;
    expect(t, "out", x.count, x.data);
}

// The scale of a step is read off the parameters: what they moved, over what they would have moved
// with limits that nothing reaches.
static void clippy_trace(struct test *t)
{
    const struct tensor start = tensor_in(t, "w0"), grads = tensor_in(t, "grads");
    const size_t n = start.count, steps = (size_t)grads.shape[0];
    struct optimizer o = *optimizer_find("clippy_adagrad");
    o.rate = number_in(t, "lr");
    o.start = number_in(t, "acc0");
    o.epsilon = number_in(t, "epsilon");
    o.relative = number_in(t, "variable_relative");
    o.relative_root = number_in(t, "accumulator_relative");
    o.absolute = number_in(t, "absolute");
    o.fresh = 0;
    o.clippy = number_in(t, "standard") != 0           ? CLIPPY_STANDARD
               : number_in(t, "clip_accumulator") != 0 ? CLIPPY_CLIPPED
                                                       : CLIPPY_AFTER;
    float *w = floats(t, steps * n), *acc = floats(t, steps * n), *scale = floats(t, steps);
    float *state = floats(t, n), *free_state = floats(t, n), *moved = floats(t, n);
    struct optimizer free = o;
    free.absolute = 1e9f;
    optimizer_start(&o, n, state);
    for (size_t step = 0; step < steps; step++) {
        const float *g = grads.data + step * n;
        float *now = w + step * n;
        const float *then = step ? now - n : start.data;
        memcpy(now, then, n * sizeof *w);
        memset(moved, 0, n * sizeof *moved); // from 0, so that no digits are lost
        memcpy(free_state, state, n * sizeof *state);
        optimizer_update(&free, step + 1, n, g, moved, free_state);
        optimizer_update(&o, step + 1, n, g, now, state);
        memcpy(acc + step * n, state, n * sizeof *acc);
        double by = 0, of = 0;
        for (size_t i = 0; i < n; i++) {
            by += fabs((double)now[i] - (double)then[i]);
            of += fabs((double)moved[i]);
        }
        scale[step] = of > 0 ? (float)(by / of) : 1;
    }
    expect(t, "w", steps * n, w);
    expect(t, "acc", steps * n, acc);
    expect(t, "scale", steps, scale);
}

static void clippy_adagrad(struct test *t)
{
    if (has(t, "grads"))
        clippy_trace(t);
    else
        clippy_shrink(t);
}

const struct topic sampling_topics[] = {
    {"sampled_softmax_corrections", sampled_softmax_corrections},
    {"multi_interest", multi_interest},
    {"clippy_adagrad", clippy_adagrad},
    {NULL, NULL},
};
