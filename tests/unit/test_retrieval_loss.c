// SPDX-License-Identifier: Apache-2.0
#include "model/retrieval_loss.h"

#include <string.h>

#include "model/arena.h"
#include "model/rng.h"
#include "tests/support/gradcheck.h"

// More columns than a word of bits has.
enum { QUERIES = 5, CANDIDATES = 70, HEADS = 3, D = 4, WORDS = 2 };

struct fixture {
    struct retrieval_loss loss;
    struct retrieval_batch batch;
    float Q[QUERIES * HEADS * D], dQ[QUERIES * HEADS * D];
    float C[CANDIDATES * D], dC[CANDIDATES * D];
    float sampling[CANDIDATES], weight[QUERIES], row_loss[QUERIES];
    uint64_t ids[CANDIDATES], allowed[QUERIES * WORDS];
    float column[CANDIDATES], dcolumn[CANDIDATES];
    _Alignas(64) char scratch[1 << 17];
};

static struct fixture f;

// Every input is there; what an option does not ask for is not looked at.
static void start(struct retrieval_options options, int heads)
{
    struct rng rng = {21, 0};
    struct arena scratch = {f.scratch, sizeof f.scratch, 0};
    memset(&f, 0, sizeof f);
    rng_fill_uniform(&rng, f.Q, QUERIES * HEADS * D, -1, 1);
    rng_fill_uniform(&rng, f.C, CANDIDATES * D, -1, 1);
    rng_fill_uniform(&rng, f.sampling, CANDIDATES, 0.001f, 0.3f);
    rng_fill_uniform(&rng, f.weight, QUERIES, 0.5f, 2);
    for (int j = 0; j < CANDIDATES; j++)
        f.ids[j] = (uint64_t)(j % 12); // row 0 shares its id with 12, 24, .. 60
    for (int i = 0; i < QUERIES; i++) {
        f.allowed[i * WORDS] = ~(UINT64_C(0x5500000000000000) << i);
        f.allowed[i * WORDS + 1] = 0x3f & ~UINT64_C(0x9); // bits past the end are nobody's
    }
    retrieval_loss_init(&f.loss, &options, QUERIES, CANDIDATES, HEADS, D, &scratch);
    assert_true(retrieval_loss_bytes(&options, CANDIDATES, D) <= sizeof f.scratch);
    f.batch = (struct retrieval_batch){
        .queries = QUERIES, .candidates = CANDIDATES, .heads = heads, .D = D, .Q = f.Q, .C = f.C};
}

static double loss(void *arg)
{
    (void)arg;
    retrieval_loss_step(&f.loss, &f.batch, f.row_loss, &(struct retrieval_gradient){0});
    return f.loss.loss;
}

static void learn(void)
{
    retrieval_loss_step(&f.loss, &f.batch, f.row_loss,
                        &(struct retrieval_gradient){f.dQ, f.dC, f.dcolumn});
}

static void assert_gradients(void)
{
    assert_gradient("Q", loss, NULL, f.Q, f.dQ, QUERIES * D);
    assert_gradient("C", loss, NULL, f.C, f.dC, CANDIDATES * D);
}

static void forward_gives_the_numbers_worked_by_hand(void **state)
{
    // Scores (6, 3), (9, 5): losses log(1 + e^-3) and log(1 + e^4).
    const float Q[] = {1, 2, 3, 0, 2, 3, 4, 0}, C[] = {1, 1, 1, 7, 1, 1, 0, 7};
    const double expected[] = {log1p(exp(-3)), log1p(exp(4))};
    const struct {
        enum retrieval_reduction reduction;
        const float *weight;
        double loss;
    } cases[] = {
        {RETRIEVAL_SUM, NULL, expected[0] + expected[1]},
        {RETRIEVAL_MEAN, NULL, (expected[0] + expected[1]) / 2},
        {RETRIEVAL_BY_WEIGHT, NULL, (expected[0] + expected[1]) / 2},
        {RETRIEVAL_SUM, (float[]){3, 1}, 3 * expected[0] + expected[1]},
        {RETRIEVAL_MEAN, (float[]){3, 1}, (3 * expected[0] + expected[1]) / 2},
        {RETRIEVAL_BY_WEIGHT, (float[]){3, 1}, (3 * expected[0] + expected[1]) / 4},
    };
    (void)state;
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        start((struct retrieval_options){.reduction = cases[c].reduction}, 1);
        f.batch = (struct retrieval_batch){
            .queries = 2, .candidates = 2, .D = D, .Q = Q, .C = C, .weight = cases[c].weight};
        loss(NULL);
        assert_true(fabs(f.row_loss[0] - expected[0]) < 1e-6);
        assert_true(fabs(f.row_loss[1] - expected[1]) < 1e-6);
        assert_true(fabs(f.loss.loss - cases[c].loss) < 1e-6);
    }
}

// Where head or hard negative change, differences tell nothing. How far the scores of this batch
// are from there: the smallest gap between the two best heads, and round the last one kept.
static float distance_from_a_change(int k)
{
    const struct retrieval_batch *b = &f.batch;
    float distance = INFINITY, others[CANDIDATES];
    for (int i = 0; i < b->queries; i++) {
        int count = 0;
        for (int j = 0; j < b->candidates; j++) {
            float best = -INFINITY, second = -INFINITY;
            for (int h = 0; h < b->heads; h++) {
                float s = 0;
                for (int d = 0; d < D; d++)
                    s += b->Q[(i * b->heads + h) * D + d] * b->C[j * D + d];
                second = fmaxf(second, fminf(s, best));
                best = fmaxf(best, s);
            }
            distance = fminf(distance, best - second);
            if (j != i)
                others[count++] = best;
        }
        for (int x = 0; k > 0 && x < count; x++) {
            int above = 0;
            float below = -INFINITY;
            for (int y = 0; y < count; y++) {
                above += others[y] > others[x];
                below = others[y] < others[x] ? fmaxf(below, others[y]) : below;
            }
            if (above == k - 1)
                distance = fminf(distance, others[x] - below);
        }
    }
    return distance;
}

static void backward_agrees_with_finite_differences(void **state)
{
    static const struct retrieval_options all[] = {
        {.reduction = RETRIEVAL_SUM},
        {.temperature = 0.5f, .reduction = RETRIEVAL_MEAN},
        {.temperature = 0.7f, .accidental_hits = true},
        {.accidental_hits = true, .hard_negatives = 1000},
    };
    (void)state;
    for (size_t o = 0; o < sizeof all / sizeof *all; o++) {
        start(all[o], 1);
        f.batch.sampling = f.sampling;
        f.batch.weight = f.weight;
        f.batch.ids = f.ids;
        f.batch.allowed = f.allowed;
        f.batch.column = f.column;
        learn();
        assert_gradients();
        assert_gradient("column", loss, NULL, f.column, f.dcolumn, CANDIDATES);
    }
}

// ITEMS candidates that stand for CANDIDATES columns, item c for columns c, c + ITEMS, ..; the
// queries' positives are the first of two items.
static void candidates_with_copies_are_the_columns_they_stand_for(void **state)
{
    enum { ITEMS = 30 };
    static const uint32_t positive[QUERIES] = {0, 1, 0, 1, 0}, whose[QUERIES] = {0, 1, 30, 31, 60};
    (void)state;
    for (int hits = 0; hits < 2; hits++) {
        static struct fixture columns;
        uint32_t times[ITEMS] = {0};
        uint64_t items_allowed[QUERIES];
        start((struct retrieval_options){.temperature = 0.7f, .accidental_hits = hits}, 1);
        for (int j = 0; j < CANDIDATES; j++) {
            const int c = j % ITEMS;
            memcpy(f.C + j * D, f.C + c * D, D * sizeof(float));
            f.sampling[j] = f.sampling[c];
            f.column[j] = (float)c / ITEMS;
            f.ids[j] = (uint64_t)c;
            times[c]++;
        }
        f.weight[2] = -f.weight[2]; // one to be unlearned that has copies
        for (int i = 0; i < QUERIES; i++) {
            items_allowed[i] = ~(UINT64_C(0x550) << i);
            for (int j = 0; j < CANDIDATES; j++)
                if (!(items_allowed[i] >> (j % ITEMS) & 1))
                    f.allowed[i * WORDS + j / 64] &= ~(UINT64_C(1) << (j % 64));
                else
                    f.allowed[i * WORDS + j / 64] |= UINT64_C(1) << (j % 64);
        }
        f.batch.column = f.column;
        f.batch.sampling = f.sampling;
        f.batch.weight = f.weight;
        f.batch.ids = f.ids;
        f.batch.allowed = f.allowed;
        f.batch.positive = whose;
        learn();
        columns = f;
        memset(f.dQ, 0, sizeof f.dQ);
        memset(f.dC, 0, sizeof f.dC);
        memset(f.dcolumn, 0, sizeof f.dcolumn);
        f.batch.candidates = ITEMS;
        f.batch.positive = positive;
        f.batch.times = times;
        f.batch.allowed = items_allowed;
        learn();
        assert_true(fabs(f.loss.loss - columns.loss.loss) < 1e-6);
        assert_int_equal(f.loss.removed_by_id, columns.loss.removed_by_id);
        assert_int_equal(f.loss.removed_by_mask, columns.loss.removed_by_mask);
        assert_int_equal(f.loss.removed_by_id, hits ? 2 * 3 + 2 * 2 : 0);
        for (int i = 0; i < QUERIES; i++)
            assert_true(fabsf(f.row_loss[i] - columns.row_loss[i]) < 1e-5f);
        for (int k = 0; k < QUERIES * D; k++)
            assert_true(fabsf(f.dQ[k] - columns.dQ[k]) < 1e-6f);
        for (int c = 0; c < ITEMS; c++) {
            float sum = 0;
            for (int j = c; j < CANDIDATES; j += ITEMS)
                sum += columns.dcolumn[j];
            assert_true(fabsf(f.dcolumn[c] - sum) < 1e-6f);
            for (int k = 0; k < D; k++) {
                sum = 0;
                for (int j = c; j < CANDIDATES; j += ITEMS)
                    sum += columns.dC[j * D + k];
                assert_true(fabsf(f.dC[c * D + k] - sum) < 1e-6f);
            }
        }
    }
}

static void backward_through_heads_and_mining_agrees_with_finite_differences(void **state)
{
    static const struct retrieval_options all[] = {
        {.temperature = 0.7f},
        {.reduction = RETRIEVAL_SUM, .hard_negatives = 3},
        {.reduction = RETRIEVAL_MEAN, .hard_negatives = 2, .temperature = 2},
    };
    (void)state;
    for (size_t o = 0; o < sizeof all / sizeof *all; o++)
        for (int heads = 1; heads <= HEADS; heads++) {
            struct rng rng = {1, 0};
            start(all[o], heads);
            f.batch.queries = 3;
            f.batch.candidates = 7;
            f.batch.weight = f.weight;
            do {
                rng_fill_uniform(&rng, f.Q, 3 * HEADS * D, -1, 1);
                rng_fill_uniform(&rng, f.C, 7 * D, -1, 1);
            } while (distance_from_a_change(all[o].hard_negatives) < 0.03f);
            learn();
            assert_gradient("Q", loss, NULL, f.Q, f.dQ, (size_t)(3 * heads * D));
            assert_gradient("C", loss, NULL, f.C, f.dC, 7 * D);
        }
}

static void what_is_to_be_unlearned_is_the_number_worked_by_hand(void **state)
{
    // Scores (2, 1, 0): P = e^2 / (e^2 + e + 1), and the others share what it gives up.
    const float Q[] = {1}, C[] = {2, 1, 0}, weight[] = {-3};
    const double P = exp(2) / (exp(2) + exp(1) + 1), first = exp(1) / (exp(1) + 1);
    static _Alignas(64) char memory[1 << 16];
    struct arena scratch = {memory, sizeof memory, 0};
    struct retrieval_loss l;
    float row_loss, dQ = 0, dC[3] = {0};
    (void)state;
    retrieval_loss_init(&l, &(struct retrieval_options){.reduction = RETRIEVAL_SUM}, 1, 3, 1, 1,
                        &scratch);
    struct retrieval_batch b = {
        .queries = 1, .candidates = 3, .D = 1, .Q = Q, .C = C, .weight = weight};
    const struct retrieval_gradient gradient = {.dQ = &dQ, .dC = dC};
    retrieval_loss_step(&l, &b, &row_loss, &gradient);
    assert_true(fabs((double)row_loss + log(1 - P)) < 1e-6);
    assert_true(fabs(l.loss + 3 * log(1 - P)) < 1e-5 && l.weight == 3);
    assert_true(fabs((double)dC[0] - 3 * P) < 1e-6);
    assert_true(fabs((double)dC[1] + 3 * P * first) < 1e-6);
    assert_true(fabs((double)dC[2] + 3 * P * (1 - first)) < 1e-6);
    // However sure the model is: bounded, and nothing is lost to rounding.
    const float sure[] = {200, 1, 0};
    b.C = sure;
    memset(dC, 0, sizeof dC);
    retrieval_loss_step(&l, &b, &row_loss, &gradient);
    assert_true(fabs((double)row_loss - (200 - log(exp(1) + 1))) < 1e-4);
    assert_true(dC[0] == 3);
    // Alone it teaches nothing.
    b.allowed = &(uint64_t){1};
    memset(dC, 0, sizeof dC);
    retrieval_loss_step(&l, &b, &row_loss, &gradient);
    assert_true(row_loss == 0 && l.loss == 0 && dC[0] == 0 && dC[1] == 0 && dC[2] == 0);
}

static void rows_to_learn_and_to_unlearn_agree_with_finite_differences(void **state)
{
    (void)state;
    for (int reduction = RETRIEVAL_BY_WEIGHT; reduction <= RETRIEVAL_MEAN; reduction++) {
        start((struct retrieval_options){.temperature = 0.7f,
                                         .accidental_hits = true,
                                         .reduction = (enum retrieval_reduction)reduction},
              1);
        f.batch.sampling = f.sampling;
        f.batch.ids = f.ids;
        f.batch.allowed = f.allowed;
        f.batch.weight = f.weight;
        for (int i = 0; i < QUERIES; i += 2)
            f.weight[i] = -f.weight[i];
        learn();
        assert_gradients();
    }
}

static void backward_adds_to_what_is_there(void **state)
{
    (void)state;
    start((struct retrieval_options){.reduction = RETRIEVAL_SUM}, 1);
    f.batch.weight = f.weight;
    learn();
    learn();
    for (int i = 0; i < QUERIES; i++)
        f.weight[i] *= 2;
    assert_gradients();
}

static void removed_columns_have_a_gradient_of_exactly_zero(void **state)
{
    (void)state;
    start((struct retrieval_options){.accidental_hits = true, .reduction = RETRIEVAL_SUM}, 1);
    f.batch.ids = f.ids;
    f.batch.allowed = f.allowed;
    // One query alone, so that nothing else teaches the columns.
    f.batch.queries = 1;
    learn();
    assert_int_equal(f.loss.removed_by_id, 5); // 12, 24, 36, 48, 60
    assert_int_equal(f.loss.removed_by_mask, 4 + 2);
    for (int j = 0; j < CANDIDATES; j++) {
        const bool gone = (j && j % 12 == 0) || !(f.allowed[j / 64] >> (j % 64) & 1);
        bool zero = true;
        for (int d = 0; d < D; d++)
            zero = zero && f.dC[j * D + d] == 0;
        assert_int_equal(zero, gone);
    }
}

static void the_positive_is_never_its_own_accidental_hit(void **state)
{
    const uint64_t ids[] = {3, 3, 1, 3};
    uint64_t removed = 0;
    (void)state;
    assert_int_equal(retrieval_loss_same_id(4, ids, 1, &removed), 2);
    assert_int_equal(removed, 0x9);
}

static void a_row_without_weight_teaches_nothing(void **state)
{
    (void)state;
    start((struct retrieval_options){0}, 1);
    f.batch.weight = f.weight;
    f.weight[2] = 0;
    f.Q[2 * D] = NAN; // not even this
    learn();
    assert_true(isfinite(f.loss.loss));
    for (int j = 0; j < CANDIDATES; j++)
        assert_true(isfinite(f.dcolumn[j]));
    for (int d = 0; d < D; d++)
        assert_true(f.dQ[2 * D + d] == 0 && f.dQ[3 * D + d] != 0);
}

static void a_batch_without_weight_teaches_nothing(void **state)
{
    (void)state;
    start((struct retrieval_options){0}, 1);
    f.batch.weight = f.weight;
    memset(f.weight, 0, sizeof f.weight);
    learn();
    assert_true(f.loss.loss == 0);
    for (int i = 0; i < QUERIES * D; i++)
        assert_true(f.dQ[i] == 0);
    for (int i = 0; i < CANDIDATES * D; i++)
        assert_true(f.dC[i] == 0);
}

static void a_masked_positive_drops_its_row_and_is_counted(void **state)
{
    (void)state;
    for (int k = 0; k <= 2; k += 2) {
        start((struct retrieval_options){.hard_negatives = k}, 1);
        f.batch.allowed = f.allowed;
        f.allowed[1 * WORDS] &= ~UINT64_C(2);    // the positive of row 1
        memset(f.allowed + 3 * WORDS, 0, 2 * 8); // everything of row 3
        learn();
        assert_int_equal(f.loss.rows_dropped, 2);
        assert_true(f.loss.weight == 3);
        assert_true(f.row_loss[1] == 0 && f.row_loss[3] == 0 && isfinite(f.loss.loss));
        assert_gradients();
    }
}

static void no_hard_negatives_means_all_of_them(void **state)
{
    double all = 0;
    (void)state;
    for (int k = -2; k <= 0; k++) {
        start((struct retrieval_options){.hard_negatives = k}, 1);
        const double this = loss(NULL);
        assert_true(k == -2 || this == all);
        all = this;
    }
    start((struct retrieval_options){.hard_negatives = CANDIDATES - 1}, 1);
    assert_true(loss(NULL) == all);
    start((struct retrieval_options){.hard_negatives = CANDIDATES - 2}, 1);
    assert_true(loss(NULL) < all);
}

static void the_sampling_floor_can_be_lowered(void **state)
{
    const float p[] = {0, 1e-9f, 1e-7f, 0.5f, 2};
    float c[5];
    (void)state;
    retrieval_loss_correction(5, p, 1e-8f, c);
    assert_true(fabs(c[0] + log(1e-8)) < 1e-5 && c[1] == c[0]);
    assert_true(fabs(c[2] + log(1e-7)) < 1e-5);
    assert_true(fabs(c[3] - log(2)) < 1e-6 && c[4] == 0);
}

static void rare_candidates_are_corrected_upwards(void **state)
{
    // All products are 0, so the softmax is that of 1/p, whatever the temperature.
    const float p[] = {0.5f, 0.25f, 0.125f};
    (void)state;
    start((struct retrieval_options){.temperature = 0.1f, .reduction = RETRIEVAL_SUM}, 1);
    memset(f.Q, 0, sizeof f.Q);
    f.batch.queries = 1;
    f.batch.candidates = 3;
    f.batch.sampling = p;
    loss(NULL);
    assert_true(fabs(f.loss.loss - log((2 + 4 + 8) / 2.0)) < 1e-6);
}

static void mining_keeps_the_positive_and_the_largest_others(void **state)
{
    const float scores[] = {9, 1, 5, -INFINITY, 5, 5, NAN};
    uint64_t keys[7], kept;
    (void)state;
    retrieval_loss_mine(7, scores, 0, 2, keys, &kept);
    assert_int_equal(kept, 0x15); // the positive is not one of the two; of ties the lower columns
    retrieval_loss_mine(7, scores, 1, 2, keys, &kept);
    assert_int_equal(kept, 0x07);
    retrieval_loss_mine(7, scores, 1, 5, keys, &kept);
    assert_int_equal(kept, 0x3f);
    retrieval_loss_mine(7, (float[]){-0.0f, 0, -1, -1, -2, -2, -3}, 6, 1, keys, &kept);
    assert_int_equal(kept, 0x41); // the two zeros tie
}

static void mining_agrees_with_a_sorted_row_for_every_k(void **state)
{
    struct rng rng = {8, 0};
    (void)state;
    for (int k = 1; k < CANDIDATES; k++) {
        float scores[CANDIDATES];
        uint64_t keys[CANDIDATES], kept[WORDS];
        const int positive = k / 2;
        for (int j = 0; j < CANDIDATES; j++)
            scores[j] = (float)rng_below(&rng, 20) - 10; // many ties
        retrieval_loss_mine(CANDIDATES, scores, positive, k, keys, kept);
        for (int j = 0; j < CANDIDATES; j++) {
            int before = 0;
            for (int o = 0; o < CANDIDATES; o++)
                before +=
                    o != positive && (scores[o] > scores[j] || (scores[o] == scores[j] && o < j));
            assert_int_equal(kept[j / 64] >> (j % 64) & 1, j == positive || before < k);
        }
    }
}

static void heads_that_tie_share_the_gradient(void **state)
{
    float alone[D];
    (void)state;
    start((struct retrieval_options){.reduction = RETRIEVAL_SUM}, 1);
    f.batch.queries = 1;
    learn();
    memcpy(alone, f.dQ, sizeof alone);

    start((struct retrieval_options){.reduction = RETRIEVAL_SUM}, 2);
    f.batch.queries = 1;
    memcpy(f.Q + D, f.Q, sizeof(float) * D); // both heads alike
    learn();
    for (int d = 0; d < D; d++) {
        assert_true(f.dQ[d] == f.dQ[D + d]);
        assert_true(fabsf(f.dQ[d] - alone[d] / 2) < 1e-6f);
    }
}

static void the_sum_doubles_with_the_batch_and_the_mean_does_not(void **state)
{
    // The same two rows twice; each copy sees its own columns only.
    const uint64_t allowed[] = {0x3, 0x3, 0xc, 0xc};
    double losses[2][2];
    (void)state;
    for (int reduction = 0; reduction < 2; reduction++)
        for (int twice = 0; twice < 2; twice++) {
            start(
                (struct retrieval_options){.reduction = reduction ? RETRIEVAL_MEAN : RETRIEVAL_SUM},
                1);
            memcpy(f.Q + 2 * D, f.Q, sizeof(float) * 2 * D);
            memcpy(f.C + 2 * D, f.C, sizeof(float) * 2 * D);
            f.batch.queries = f.batch.candidates = 2 + 2 * twice;
            f.batch.allowed = allowed;
            losses[reduction][twice] = loss(NULL);
        }
    assert_true(fabs(losses[0][1] - 2 * losses[0][0]) < 1e-6);
    assert_true(fabs(losses[1][1] - losses[1][0]) < 1e-6);
}

static void impossible_batches_are_refused_with_a_reason(void **state)
{
    (void)state;
    start((struct retrieval_options){.accidental_hits = true}, 1);
    assert_non_null(retrieval_loss_refuses(&f.loss, &f.batch)); // no ids
    f.batch.ids = f.ids;
    assert_null(retrieval_loss_refuses(&f.loss, &f.batch));
    f.batch.weight = f.weight;
    f.weight[4] = -1;
    assert_null(retrieval_loss_refuses(&f.loss, &f.batch));
    f.weight[4] = NAN;
    assert_non_null(retrieval_loss_refuses(&f.loss, &f.batch));
    f.weight[4] = 1;
    f.batch.candidates = QUERIES - 1;
    assert_non_null(retrieval_loss_refuses(&f.loss, &f.batch));
    f.batch.candidates = CANDIDATES + 1;
    assert_non_null(retrieval_loss_refuses(&f.loss, &f.batch));
}

static void large_scores_do_not_overflow(void **state)
{
    (void)state;
    start((struct retrieval_options){.temperature = 1e-4f}, 1);
    loss(NULL);
    assert_true(isfinite(f.loss.loss) && f.loss.loss > 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forward_gives_the_numbers_worked_by_hand),
        cmocka_unit_test(backward_agrees_with_finite_differences),
        cmocka_unit_test(candidates_with_copies_are_the_columns_they_stand_for),
        cmocka_unit_test(backward_through_heads_and_mining_agrees_with_finite_differences),
        cmocka_unit_test(what_is_to_be_unlearned_is_the_number_worked_by_hand),
        cmocka_unit_test(rows_to_learn_and_to_unlearn_agree_with_finite_differences),
        cmocka_unit_test(backward_adds_to_what_is_there),
        cmocka_unit_test(removed_columns_have_a_gradient_of_exactly_zero),
        cmocka_unit_test(the_positive_is_never_its_own_accidental_hit),
        cmocka_unit_test(a_row_without_weight_teaches_nothing),
        cmocka_unit_test(a_batch_without_weight_teaches_nothing),
        cmocka_unit_test(a_masked_positive_drops_its_row_and_is_counted),
        cmocka_unit_test(no_hard_negatives_means_all_of_them),
        cmocka_unit_test(the_sampling_floor_can_be_lowered),
        cmocka_unit_test(rare_candidates_are_corrected_upwards),
        cmocka_unit_test(mining_keeps_the_positive_and_the_largest_others),
        cmocka_unit_test(mining_agrees_with_a_sorted_row_for_every_k),
        cmocka_unit_test(heads_that_tie_share_the_gradient),
        cmocka_unit_test(the_sum_doubles_with_the_batch_and_the_mean_does_not),
        cmocka_unit_test(impossible_batches_are_refused_with_a_reason),
        cmocka_unit_test(large_scores_do_not_overflow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
