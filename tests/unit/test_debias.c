// SPDX-License-Identifier: Apache-2.0
#include "model/debias.h"

#include <stdlib.h>
#include <string.h>

#include "model/rng.h"
#include "tests/support/gradcheck.h"

enum { D = 3, USERS = 50, ITEMS = 400, DEEPEST = 5000 };

// A stream with all that learns from it.
struct fixture {
    struct debias_options o;
    struct debias_state s;
    struct debias_item item[ITEMS];
    struct debias_user user[USERS];
    float linear[D + 2], q[D];
    struct rng rng;
};

static struct fixture f;

static int setup(void **state)
{
    (void)state;
    memset(&f, 0, sizeof f);
    f.o = debias_defaults;
    f.rng = (struct rng){17, 0};
    memcpy(f.q, (float[]){1, -0.5f, 2}, sizeof f.q);
    return 0;
}

static struct debias_context at(int position)
{
    return (struct debias_context){.position = position, .user = &f.user[0], .q = f.q};
}

static float value_at(int position, float net)
{
    const struct debias_context c = at(position);
    return debias_value(&f.o, &f.s, D, f.linear, &c, net);
}

static float mean_at(int position)
{
    const struct debias_context c = at(position);
    return debias_mean_at(&f.o, &f.s, D, f.linear, &c);
}

static struct debias_row row_of(int position, float net)
{
    return (struct debias_row){.net = net,
                               .engaged = net != 0,
                               .position = position,
                               .retrieval = NAN,
                               .ranker = NAN,
                               .item = &f.item[0]};
}

static void learn(int n, const struct debias_row *rows)
{
    debias_learn(&f.o, &f.s, D, f.linear, &f.user[0], f.q, 0, n, rows);
}

static void learn_one(int position, float net)
{
    const struct debias_row row = row_of(position, net);
    learn(1, &row);
}

// ---- properties of all estimators ----------------------------------------------------------

static void estimator_off_means_that_a_value_is_what_it_was(void **state)
{
    static const struct debias_state fresh;
    (void)state;
    f.o.kind = DEBIAS_NONE;
    for (int i = 0; i < 100; i++)
        learn_one(i % 10, (float)(i % 3));
    assert_memory_equal(&f.s, &fresh, sizeof fresh);
    for (int i = 0; i < 20; i++) {
        const float net = rng_float(&f.rng) * 10 - 5;
        assert_true(value_at(i, net) == net);
    }
}

static void before_anything_is_known_nothing_is_taken_away(void **state)
{
    (void)state;
    for (int kind = 0; kind < DEBIAS_KINDS; kind++)
        for (int form = VALUE_RATIO; form <= VALUE_Z; form++) {
            f.o.kind = kind;
            f.o.form = form;
            assert_true(value_at(3, 0.75f) == 0.75f);
        }
}

static void position_5000_is_the_overflow_bucket_of_every_estimator(void **state)
{
    for (int kind = 0; kind < DEBIAS_KINDS; kind++) {
        setup(state);
        f.o.kind = kind;
        for (int i = 0; i < 200; i++) {
            struct debias_row rows[3] = {row_of(0, (float)(i % 2)), row_of(DEEPEST, i % 9 == 0),
                                         row_of(-1, 1)};
            learn(3, rows);
            assert_true(isfinite(value_at(DEEPEST, 1)) && value_at(DEEPEST, 1) >= 0);
            assert_true(value_at(DEEPEST, 1) == value_at(POSITIONS_MAX, 1));
            assert_true(isfinite(value_at(-1, 1)));
        }
    }
}

static void state_is_plain_data_that_goes_on_where_it_was(void **state)
{
    static struct fixture half;
    for (int kind = 0; kind < DEBIAS_KINDS; kind++) {
        setup(state);
        f.o.kind = kind;
        for (int i = 0; i < 100; i++) {
            if (i == 50)
                memcpy(&half, &f, sizeof f);
            struct debias_row rows[2] = {row_of(i % 7, i % 3 == 0), row_of(8, i % 5 == 0)};
            rows[1].item = &f.item[1];
            learn(2, rows);
        }
        const struct fixture whole = f;
        memset(&f, 0, sizeof f);
        memcpy(&f, &half, sizeof f);
        for (int i = 50; i < 100; i++) {
            struct debias_row rows[2] = {row_of(i % 7, i % 3 == 0), row_of(8, i % 5 == 0)};
            rows[1].item = &f.item[1];
            learn(2, rows);
        }
        assert_memory_equal(&f, &whole, sizeof f);
    }
}

static void the_users_vector_is_left_alone(void **state)
{
    const float q[] = {1, -0.5f, 2};
    for (int kind = 0; kind < DEBIAS_KINDS; kind++) {
        setup(state);
        f.o.kind = kind;
        for (int i = 0; i < 50; i++)
            learn_one(i % 5, 1);
        assert_memory_equal(f.q, q, sizeof q);
    }
}

// ---- means ---------------------------------------------------------------------------------

static void a_position_that_was_never_seen_has_the_global_mean(void **state)
{
    static const int kinds[] = {DEBIAS_POSITION, DEBIAS_POSITION_SGD};
    for (int i = 0; i < 2; i++) {
        setup(state);
        f.o.kind = kinds[i];
        for (int j = 0; j < 1000; j++)
            learn_one(0, j % 4 == 0);
        assert_true(fabsf(mean_at(40) - 0.25f) < 0.01f);
        assert_true(fabsf(value_at(40, 1) - 1) < 0.01f); // a lift of 1, not of a thousand
        learn_one(40, 1);
        assert_true(mean_at(40) > 0.24f && mean_at(40) < 0.31f); // and it starts from there
    }
}

static void two_positions_with_different_means_converge_to_their_own(void **state)
{
    static const int kinds[] = {DEBIAS_POSITION, DEBIAS_POSITION_SGD, DEBIAS_COMBINED};
    for (int i = 0; i < 3; i++) {
        setup(state);
        f.o.kind = kinds[i];
        f.o.rate = 0.01f;
        for (int j = 0; j < 20000; j++) {
            const struct debias_row rows[] = {row_of(0, 0.8f), row_of(7, 0.2f)};
            learn(2, rows);
        }
        if (fabsf(mean_at(0) - 0.8f) > 0.02f || fabsf(mean_at(7) - 0.2f) > 0.02f)
            fail_msg("%s: %g %g", debias_names[kinds[i]], mean_at(0), mean_at(7));
        assert_true(value_at(7, 1) > 3 * value_at(0, 1));
    }
}

static void an_estimate_recovers_from_below_the_floor(void **state)
{
    static const int kinds[] = {DEBIAS_POSITION, DEBIAS_POSITION_SGD, DEBIAS_USER, DEBIAS_USER_MEAN,
                                DEBIAS_COMBINED};
    for (int i = 0; i < 5; i++) {
        setup(state);
        f.o.kind = kinds[i];
        f.o.rate = 0.02f;
        f.o.half_life = f.o.user_half_life = 100;
        for (int j = 0; j < 500; j++)
            learn_one(2, -1);
        assert_true(mean_at(2) < -0.5f);
        for (int j = 0; j < 1500; j++)
            learn_one(2, 0.5f);
        if (fabsf(mean_at(2) - 0.5f) > 0.05f)
            fail_msg("%s: %g", debias_names[kinds[i]], mean_at(2));
    }
}

static void a_step_does_not_grow_with_the_slate(void **state)
{
    static const int kinds[] = {DEBIAS_USER, DEBIAS_COMBINED};
    (void)state;
    for (int i = 0; i < 2; i++) {
        float alone[D + 2];
        for (int n = 1; n <= SLATE_ITEMS_MAX; n *= 64) {
            struct debias_row rows[SLATE_ITEMS_MAX];
            setup(state);
            f.o.kind = kinds[i];
            learn_one(0, 0.5f);
            for (int j = 0; j < n; j++)
                rows[j] = row_of(0, 1);
            learn(n, rows);
            if (n == 1)
                memcpy(alone, f.linear, sizeof alone);
        }
        for (int d = 0; d < D + 2; d++)
            assert_true(fabsf(alone[d] - f.linear[d]) < 1e-6f);
    }
}

static void a_linear_estimate_converges_whatever_the_vectors_length(void **state)
{
    for (float scale = 0.01f; scale < 200; scale *= 100) {
        setup(state);
        f.o.kind = DEBIAS_USER;
        f.o.rate = 0.5f;
        for (int i = 0; i < 4000; i++) {
            // Two users: one engages with all, one with a tenth.
            const float net = i % 2 ? 1 : 0.1f;
            memcpy(f.q, (float[]){scale, i % 2 ? scale : -scale, 0}, sizeof f.q);
            learn_one(0, net);
        }
        assert_true(scale < 0.1f || fabsf(mean_at(0) - 1) < 0.05f);
        assert_true(isfinite(mean_at(0)));
    }
}

static void a_casual_users_value_counts_more_than_a_power_users(void **state)
{
    (void)state;
    f.o.kind = DEBIAS_USER_MEAN;
    struct debias_row row = row_of(0, 0);
    for (int i = 0; i < 2000; i++) {
        row.net = i % 2 == 1 || i % 20 == 0;
        debias_learn(&f.o, &f.s, D, f.linear, &f.user[i % 2], f.q, 0, 1, &row);
    }
    struct debias_context c = at(0);
    const float casual = debias_value(&f.o, &f.s, D, f.linear, &c, 1);
    c.user = &f.user[1];
    const float power = debias_value(&f.o, &f.s, D, f.linear, &c, 1);
    c.user = &f.user[2];
    const float stranger = debias_value(&f.o, &f.s, D, f.linear, &c, 1);
    assert_true(casual > stranger && stranger > power);
    assert_true(fabsf(stranger - 1) < 1e-5f);
}

static void an_event_never_debiases_itself(void **state)
{
    (void)state;
    f.o.kind = DEBIAS_POSITION;
    f.o.form = VALUE_DIFFERENCE;
    for (int i = 0; i < 10; i++)
        learn_one(0, 0.5f);
    const struct debias_state before = f.s;
    assert_true(fabsf(value_at(0, 100) - 99.5f) < 1e-4f);
    assert_memory_equal(&f.s, &before, sizeof before);
}

static void forms_are_residuals_of_the_position(void **state)
{
    (void)state;
    f.o.kind = DEBIAS_POSITION;
    f.o.prior_weight = 0;
    for (int i = 0; i < 4000; i++) {
        learn_one(0, i % 2 == 0);
        learn_one(1, i % 10 == 0);
    }
    const struct {
        enum value_residual form;
        float expected;
    } forms[] = {{VALUE_RATIO, 3}, {VALUE_DIFFERENCE, 0.9f}, {VALUE_POSITIVE, 0.9f}, {VALUE_Z, 3}};
    for (int i = 0; i < 4; i++) {
        f.o.form = forms[i].form;
        if (fabsf(value_at(1, 1) - forms[i].expected) > 0.02f)
            fail_msg("form %d: %g", forms[i].form, value_at(1, 1));
    }
    f.o.form = VALUE_RATIO;
    f.o.cap = 2;
    assert_true(value_at(1, 1) == 2);
    f.o.seed_form = true;
    assert_true(fabsf(value_at(1, 1) - 10) < 0.1f);
}

// ---- squared losses ------------------------------------------------------------------------

enum { B = 5, P = 4 };

static struct {
    float table[P], dtable[P], value[B], estimate[B];
    float U[B * D], p[B], linear[D + 2], dlinear[D + 2];
    int bucket[B];
} l;

static double table_loss(void *arg)
{
    (void)arg;
    return debias_table_forward(B, l.bucket, l.table, l.value, l.estimate);
}

static double linear_loss(void *arg)
{
    (void)arg;
    return debias_linear_forward(B, D, l.U, l.p, l.linear, l.value, l.estimate);
}

static int losses(void **state)
{
    struct rng rng = {5, 0};
    (void)state;
    memset(&l, 0, sizeof l);
    rng_fill_uniform(&rng, l.table, P, -1, 1);
    rng_fill_uniform(&rng, l.value, B, -1, 1);
    rng_fill_uniform(&rng, l.U, B * D, -1, 1);
    rng_fill_uniform(&rng, l.p, B, -1, 1);
    rng_fill_uniform(&rng, l.linear, D + 2, -1, 1);
    memcpy(l.bucket, (int[]){0, 1, 1, 3, 0}, sizeof l.bucket);
    return 0;
}

static void losses_are_what_was_worked_by_hand(void **state)
{
    const float table[] = {1, 2}, value[] = {0, 4, 3}, u[] = {1, 1, 2, 0, 0, 1}, p[] = {1, 0, 2};
    const float linear[] = {1, -1, 3, 0.5f};
    const int bucket[] = {0, 1, 0};
    float estimate[3];
    (void)state;
    // 1 + 4 + 4: row by row, not every estimate against every value.
    assert_true(debias_table_forward(3, bucket, table, value, estimate) == 9);
    assert_true(debias_linear_forward(3, 2, u, p, linear, value, estimate) == 12.25 + 2.25 + 6.25);
    assert_true(estimate[0] == 3.5f && estimate[1] == 2.5f && estimate[2] == 5.5f);
}

static void table_backward_agrees_with_finite_differences(void **state)
{
    (void)state;
    table_loss(NULL);
    debias_table_backward(B, l.bucket, l.estimate, l.value, l.dtable);
    assert_gradient("table", table_loss, NULL, l.table, l.dtable, P);
    assert_true(l.dtable[2] == 0);
}

static void linear_backward_agrees_with_finite_differences(void **state)
{
    (void)state;
    linear_loss(NULL);
    debias_linear_backward(B, D, l.U, l.p, l.estimate, l.value, l.dlinear);
    assert_gradient("linear", linear_loss, NULL, l.linear, l.dlinear, D + 2);
}

static void losses_add_to_the_gradient_that_is_there(void **state)
{
    float once[D + 2];
    (void)state;
    linear_loss(NULL);
    debias_linear_backward(B, D, l.U, l.p, l.estimate, l.value, l.dlinear);
    memcpy(once, l.dlinear, sizeof once);
    debias_linear_backward(B, D, l.U, l.p, l.estimate, l.value, l.dlinear);
    for (int d = 0; d < D + 2; d++)
        assert_true(fabsf(l.dlinear[d] - 2 * once[d]) < 1e-5f);
}

// ---- examination ---------------------------------------------------------------------------

// Slates of which everything is known. A ranker sees each item's relevance through noise, adds what
// it is told to promote and puts the best on top, so a position's relevance falls from top to
// bottom to about two fifths.
struct clicks {
    float theta[20];
    int n, first, slates; // items of a slate, the first position's number
    float relevance;      // logit of the mean
    enum { SCORE_GOOD, SCORE_RANDOM, SCORE_NONE } score;
    bool retrieval; // the score is ours, not the ranker's
    bool blind;     // the ranker sees nothing of relevance
    uint64_t seed;
    int wrong_every; // slates, in one of which the ranker says 1e9 of an item; 0: never
};

struct outcome {
    // Correlations over all that was shown: of the weight with position among what was relevant,
    // and, over items, of the weight's mean with the item's relevance; without debiasing and with.
    double position[2], relevance[2];
};

static float normal(struct rng *rng)
{
    float sum = -6;
    for (int i = 0; i < 12; i++)
        sum += rng_float(rng);
    return sum;
}

struct correlation {
    double n, x, y, xx, yy, xy;
};

static void correlation_add(struct correlation *c, double x, double y)
{
    *c = (struct correlation){c->n + 1,      c->x + x,      c->y + y,
                              c->xx + x * x, c->yy + y * y, c->xy + x * y};
}

static double correlation_of(const struct correlation *c)
{
    const double xy = c->n * c->xy - c->x * c->y;
    return xy / sqrt((c->n * c->xx - c->x * c->x) * (c->n * c->yy - c->y * c->y));
}

struct candidate {
    float order, gamma;
    int item;
};

static int best_first(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    return (x->order < y->order) - (x->order > y->order);
}

static struct outcome click(const struct clicks *c)
{
    static float quality[ITEMS], promoted[ITEMS];
    static double shown[ITEMS], weight[2][ITEMS], relevance[ITEMS];
    struct rng rng = {c->seed, 0};
    struct correlation by_position[2] = {{0}}, by_item[2] = {{0}};

    memset(shown, 0, sizeof shown);
    memset(weight, 0, sizeof weight);
    memset(relevance, 0, sizeof relevance);
    for (int i = 0; i < ITEMS; i++) {
        quality[i] = normal(&rng);
        promoted[i] = normal(&rng);
    }
    for (int slate = 0; slate < c->slates; slate++) {
        struct candidate candidate[20];
        struct debias_row rows[20];
        const int user = (int)rng_below(&rng, USERS);
        for (int i = 0; i < c->n; i++) {
            const int item = (int)rng_below(&rng, ITEMS);
            const float logit = c->relevance + 0.4f * quality[item] + 0.4f * normal(&rng);
            const float seen = c->blind ? normal(&rng) : logit;
            const float order = seen + 0.6f * promoted[item] + 0.4f * normal(&rng);
            candidate[i] = (struct candidate){order, 1 / (1 + expf(-logit)), item};
        }
        qsort(candidate, (size_t)c->n, sizeof *candidate, best_first);
        for (int i = 0; i < c->n; i++) {
            const struct candidate *x = &candidate[i];
            const bool relevant = rng_float(&rng) < x->gamma;
            const bool engaged = rng_float(&rng) < c->theta[i] && relevant;
            const float random = normal(&rng); // drawn always, so that the stream is the same
            const float score = c->score == SCORE_GOOD     ? x->order
                                : c->score == SCORE_RANDOM ? random
                                                           : NAN;
            rows[i] = (struct debias_row){.net = engaged,
                                          .engaged = engaged,
                                          .position = c->first + i,
                                          .retrieval = c->retrieval ? score : NAN,
                                          .ranker = c->retrieval ? NAN : score,
                                          .item = &f.item[x->item]};
            if (c->wrong_every > 0 && i == 3 && slate % c->wrong_every == c->wrong_every - 1)
                rows[i].ranker = slate % 2 ? 1e9f : -1e9f;
            if (slate < c->slates / 4)
                continue;
            const double weights[2] = {engaged, value_at(c->first + i, engaged)};
            shown[x->item]++;
            relevance[x->item] += x->gamma;
            for (int j = 0; j < 2; j++) {
                weight[j][x->item] += weights[j];
                if (relevant)
                    correlation_add(&by_position[j], i, weights[j]);
            }
        }
        debias_learn(&f.o, &f.s, D, f.linear, &f.user[user], f.q, 0, c->n, rows);
    }
    for (int i = 0; i < ITEMS; i++)
        for (int j = 0; j < 2; j++)
            if (shown[i] > 0)
                correlation_add(&by_item[j], relevance[i] / shown[i], weight[j][i] / shown[i]);
    return (struct outcome){{correlation_of(&by_position[0]), correlation_of(&by_position[1])},
                            {correlation_of(&by_item[0]), correlation_of(&by_item[1])}};
}

// The largest relative deviation of the estimated curve from the true one.
static float deviation(const struct clicks *c)
{
    float worst = 0;
    for (int i = 0; i < c->n; i++) {
        const float estimate = f.s.theta[0][position_bucket(c->first + i)];
        worst = fmaxf(worst, fabsf(estimate * c->theta[0] / c->theta[i] - 1));
    }
    return worst;
}

static struct clicks inverse_of_position(void)
{
    struct clicks c = {.n = 10, .first = 1, .slates = 120000, .relevance = -2.5f, .seed = 1};
    for (int i = 0; i < c.n; i++)
        c.theta[i] = 1 / (1 + (float)i);
    return c;
}

static void examination_is_told_from_a_rankers_relevance(void **state)
{
    for (uint64_t seed = 1; seed <= 3; seed++) {
        struct clicks c = inverse_of_position();
        setup(state);
        c.seed = seed;
        const struct outcome outcome = click(&c);
        if (!(deviation(&c) < 0.1f))
            fail_msg("seed %d: off by %g", (int)seed, deviation(&c));
        // What is relevant has the same weight wherever it stood.
        assert_true(outcome.position[0] < -0.3);
        if (fabs(outcome.position[1]) > 0.02)
            fail_msg("seed %d: correlation with position %g", (int)seed, outcome.position[1]);
        if (!(outcome.relevance[1] > outcome.relevance[0]))
            fail_msg("seed %d: correlation with relevance %g, was %g", (int)seed,
                     outcome.relevance[1], outcome.relevance[0]);
    }
}

static void our_own_score_serves_where_the_ranker_gave_none(void **state)
{
    struct clicks c = inverse_of_position();
    (void)state;
    c.retrieval = true;
    click(&c);
    assert_true(deviation(&c) < 0.1f);
}

static void examination_of_another_shape_is_found(void **state)
{
    struct clicks c = inverse_of_position();
    (void)state;
    // Two rows of a page: the curve has a step, and positions are counted from 0.
    c.first = 0;
    for (int i = 0; i < c.n; i++)
        c.theta[i] = i < 5 ? 0.9f - 0.05f * (float)i : 0.35f - 0.02f * (float)i;
    click(&c);
    if (!(deviation(&c) < 0.1f))
        fail_msg("off by %g", deviation(&c));
}

static void examination_is_found_where_most_is_engaged_with(void **state)
{
    struct clicks c = inverse_of_position();
    (void)state;
    c.relevance = 0.5f;
    c.slates = 20000;
    for (int i = 0; i < c.n; i++)
        c.theta[i] = 1 - 0.08f * (float)i;
    click(&c);
    if (!(deviation(&c) < 0.15f)) // gamma is near 1 there, far from exp(w . phi)
        fail_msg("off by %g", deviation(&c));
}

static void a_score_that_says_nothing_changes_nothing(void **state)
{
    struct clicks c = inverse_of_position();
    float without[POSITION_BUCKETS];
    c.score = SCORE_NONE;
    click(&c);
    memcpy(without, f.s.theta[0], sizeof without);
    setup(state);
    c.score = SCORE_RANDOM;
    click(&c);
    for (int k = 1; k <= 10; k++)
        assert_true(fabsf(f.s.theta[0][k] / without[k] - 1) < 0.05f);
}

static void a_score_that_is_far_out_now_and_then_blinds_nobody(void **state)
{
    struct clicks c = inverse_of_position();
    click(&c);
    const float clean = deviation(&c);
    setup(state);
    c.wrong_every = 333;
    click(&c);
    if (!(deviation(&c) < clean + 0.03f))
        fail_msg("deviation %g, %g without such scores", deviation(&c), clean);
}

// Its score is the position and little else: whatever it explained would be by chance.
static void a_blind_rankers_score_takes_nothing_from_examination(void **state)
{
    double square[2] = {0};
    for (uint64_t seed = 1; seed <= 4; seed++)
        for (int scored = 0; scored < 2; scored++) {
            struct clicks c = inverse_of_position();
            setup(state);
            c.seed = seed;
            c.slates = 20000;
            c.blind = true;
            c.score = scored ? SCORE_GOOD : SCORE_NONE;
            click(&c);
            square[scored] += deviation(&c) * deviation(&c);
        }
    if (!(square[1] < 1.5 * square[0]))
        fail_msg("mean square deviation %g, without score %g", square[1] / 4, square[0] / 4);
}

static void without_any_score_the_curve_lies_between_truth_and_engagement_rates(void **state)
{
    struct clicks c = inverse_of_position();
    (void)state;
    c.score = SCORE_NONE;
    click(&c);
    const struct debias_bucket *bucket = f.s.bucket[0];
    for (int k = 2; k <= 10; k++) {
        const float theta = f.s.theta[0][k];
        assert_true(theta < f.s.theta[0][k - 1]);
        assert_true(theta < 1.05f * c.theta[k - 1]);
        assert_true(theta > bucket[k].engaged / bucket[1].engaged * 0.95f);
    }
}

static void examination_follows_when_the_page_changes(void **state)
{
    struct clicks c = inverse_of_position();
    (void)state;
    f.o.half_life = 8000;
    c.slates = 40000;
    click(&c);
    for (int i = 0; i < c.n; i++)
        c.theta[i] = 1 / sqrtf(1 + (float)i);
    c.slates = 60000;
    click(&c);
    if (!(deviation(&c) < 0.2f)) // the noise of 8000 impressions
        fail_msg("off by %g", deviation(&c));
}

static void surfaces_have_curves_of_their_own(void **state)
{
    (void)state;
    for (int i = 0; i < 20000; i++)
        for (int surface = 0; surface < 2; surface++) {
            struct debias_row rows[2] = {row_of(0, rng_float(&f.rng) < 0.2f), row_of(1, 0)};
            rows[1].engaged = rng_float(&f.rng) < (surface ? 0.18f : 0.05f);
            debias_learn(&f.o, &f.s, D, f.linear, &f.user[0], f.q, surface, 2, rows);
        }
    assert_true(fabsf(f.s.theta[0][1] - 0.25f) < 0.03f);
    assert_true(fabsf(f.s.theta[1][1] - 0.9f) < 0.06f);
}

static void an_unknown_position_has_no_part_in_examination(void **state)
{
    (void)state;
    for (int i = 0; i < 1000; i++)
        learn_one(-1, 1);
    assert_true(value_at(-1, 0.5f) == 0.5f);
    assert_true(value_at(0, 0.5f) == 0.5f);
    for (int k = 0; k < POSITION_BUCKETS; k++)
        assert_true(f.s.theta[0][k] == 0 && f.s.bucket[0][k].shown == 0);
}

// ---- propensities --------------------------------------------------------------------------

static void logged_propensities_weigh_by_their_inverse_with_the_mean_1(void **state)
{
    (void)state;
    f.o.kind = DEBIAS_PROPENSITY;
    struct debias_context c = at(0);
    double sum = 0;
    for (int i = 0; i < 4000; i++) {
        struct debias_row row = row_of(0, 1);
        row.propensity = i % 3 ? 0.02f : 0.04f;
        c.propensity = row.propensity;
        if (i >= 1000)
            sum += debias_value(&f.o, &f.s, D, f.linear, &c, 1) / 3000;
        learn(1, &row);
    }
    assert_true(fabs(sum - 1) < 0.01);
    c.propensity = 0.02f;
    const float rare = debias_value(&f.o, &f.s, D, f.linear, &c, 1);
    c.propensity = 0.04f;
    assert_true(fabsf(rare / debias_value(&f.o, &f.s, D, f.linear, &c, 1) - 2) < 1e-5f);
    c.propensity = 1e-9f;
    assert_true(debias_value(&f.o, &f.s, D, f.linear, &c, 1) == f.o.cap);
    c.propensity = 0;
    assert_true(debias_value(&f.o, &f.s, D, f.linear, &c, 1) == 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(estimator_off_means_that_a_value_is_what_it_was, setup),
        cmocka_unit_test_setup(before_anything_is_known_nothing_is_taken_away, setup),
        cmocka_unit_test_setup(position_5000_is_the_overflow_bucket_of_every_estimator, setup),
        cmocka_unit_test_setup(state_is_plain_data_that_goes_on_where_it_was, setup),
        cmocka_unit_test_setup(the_users_vector_is_left_alone, setup),
        cmocka_unit_test_setup(a_position_that_was_never_seen_has_the_global_mean, setup),
        cmocka_unit_test_setup(two_positions_with_different_means_converge_to_their_own, setup),
        cmocka_unit_test_setup(an_estimate_recovers_from_below_the_floor, setup),
        cmocka_unit_test_setup(a_step_does_not_grow_with_the_slate, setup),
        cmocka_unit_test_setup(a_linear_estimate_converges_whatever_the_vectors_length, setup),
        cmocka_unit_test_setup(a_casual_users_value_counts_more_than_a_power_users, setup),
        cmocka_unit_test_setup(an_event_never_debiases_itself, setup),
        cmocka_unit_test_setup(forms_are_residuals_of_the_position, setup),
        cmocka_unit_test(losses_are_what_was_worked_by_hand),
        cmocka_unit_test_setup(table_backward_agrees_with_finite_differences, losses),
        cmocka_unit_test_setup(linear_backward_agrees_with_finite_differences, losses),
        cmocka_unit_test_setup(losses_add_to_the_gradient_that_is_there, losses),
        cmocka_unit_test_setup(examination_is_told_from_a_rankers_relevance, setup),
        cmocka_unit_test_setup(our_own_score_serves_where_the_ranker_gave_none, setup),
        cmocka_unit_test_setup(examination_of_another_shape_is_found, setup),
        cmocka_unit_test_setup(examination_is_found_where_most_is_engaged_with, setup),
        cmocka_unit_test_setup(a_score_that_says_nothing_changes_nothing, setup),
        cmocka_unit_test_setup(a_score_that_is_far_out_now_and_then_blinds_nobody, setup),
        cmocka_unit_test_setup(a_blind_rankers_score_takes_nothing_from_examination, setup),
        cmocka_unit_test_setup(without_any_score_the_curve_lies_between_truth_and_engagement_rates,
                               setup),
        cmocka_unit_test_setup(examination_follows_when_the_page_changes, setup),
        cmocka_unit_test_setup(surfaces_have_curves_of_their_own, setup),
        cmocka_unit_test_setup(an_unknown_position_has_no_part_in_examination, setup),
        cmocka_unit_test_setup(logged_propensities_weigh_by_their_inverse_with_the_mean_1, setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
