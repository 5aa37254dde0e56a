// SPDX-License-Identifier: Apache-2.0
//
// Examination and relevance.
//
// A ranker puts what it holds relevant on top, so the engagement rate of a position is examination
// times the relevance of what stands there. The position-based model keeps them apart:
//
//     P(engaged) = theta_k gamma,   log gamma = intercept + w . (phi - mean of phi at position k)
//
// phi says how relevant an item is likely to be *inside its slate*. As phi is centred at each
// position, w is learned from what differs between slates at the same position alone, and theta
// from the position alone: neither can take the other's part. Examination for equal items follows
// at the end: theta_k exp(- w . mean of phi at k). The link is the logarithm because only the
// product theta gamma shows: a factor may go over from one to the other without changing the model.
//
// One step of online EM for each item shown. Its plain form, theta += rate (posterior - theta),
// moves only by the share of information that is not missing, about gamma (1 - theta), and would
// need millions of slates; so the rate is divided by that share, summed over what was seen: this is
// the recursive maximum-likelihood estimate, and the decay of the sum is what forgets. w takes
// the same kind of step along relevant - gamma.
//
// On 60,000 recorded slates of ten, positions by a ranker, clicks simulated at 1/k and noise 0.02:
// plain engagement rates are off by 12.5 % at position 10, this by 1.7 % at most, and by 6.3 % at
// most over twelve other seeds of the clicks; 3.6 % and 6.8 % with relevance known, so what is left
// is the noise of the clicks. What mattered was how often an item had been shown before, more than
// its rate of engagement, and that all is relative to the slate. 2 us for a slate.
#include "model/debias.h"

#include <assert.h>
#include <math.h>
#include <string.h>

const char *const debias_names[DEBIAS_KINDS] = {
    [DEBIAS_NONE] = "none",
    [DEBIAS_POSITION] = "position",
    [DEBIAS_POSITION_SGD] = "position_sgd",
    [DEBIAS_USER] = "user",
    [DEBIAS_USER_MEAN] = "user_mean",
    [DEBIAS_COMBINED] = "combined",
    [DEBIAS_PBM] = "pbm",
    [DEBIAS_PROPENSITY] = "propensity",
};

const struct debias_options debias_defaults = {
    .kind = DEBIAS_PBM,
    .form = VALUE_RATIO,
    .half_life = 500000,
    .user_half_life = 200,
    .prior_weight = 20,
    .user_prior_weight = 20,
    .rate = 0.002f,
    .floor = 0.05f,
    .cap = 10,
};

// The factor by which one event ages what came before it.
static float decay_of(float half_life)
{
    assert(half_life > 0);
    return exp2f(-1 / half_life);
}

// ---- means ---------------------------------------------------------------------------------

void debias_mean_add(struct debias_mean *m, float decay, float value)
{
    m->sum = decay * m->sum + value;
    m->square = decay * m->square + value * value;
    m->weight = decay * m->weight + 1;
}

float debias_mean_of(const struct debias_mean *m, float prior, float prior_weight)
{
    const float weight = m->weight + prior_weight;
    return weight > 0 ? (m->sum + prior_weight * prior) / weight : prior;
}

float debias_deviation_of(const struct debias_mean *m, float prior, float prior_sd,
                          float prior_weight)
{
    const float weight = m->weight + prior_weight;
    if (!(weight > 0))
        return prior_sd;
    const float mean = (m->sum + prior_weight * prior) / weight;
    const float square =
        (m->square + prior_weight * (prior * prior + prior_sd * prior_sd)) / weight;
    return sqrtf(fmaxf(square - mean * mean, 0));
}

// ---- squared losses ------------------------------------------------------------------------

static double squared_loss(int B, const float *estimate, const float *value)
{
    double loss = 0;
    for (int i = 0; i < B; i++) {
        const double off = (double)estimate[i] - value[i];
        loss += off * off;
    }
    return loss;
}

double debias_table_forward(int B, const int *bucket, const float *table, const float *value,
                            float *estimate)
{
    for (int i = 0; i < B; i++)
        estimate[i] = table[bucket[i]];
    return squared_loss(B, estimate, value);
}

void debias_table_backward(int B, const int *bucket, const float *estimate, const float *value,
                           float *dtable)
{
    for (int i = 0; i < B; i++)
        dtable[bucket[i]] += 2 * (estimate[i] - value[i]);
}

static float linear_estimate(int D, const float *u, float p, const float *linear)
{
    double sum = (double)linear[D] * p + linear[D + 1];
    for (int d = 0; d < D; d++)
        sum += (double)linear[d] * u[d];
    return (float)sum;
}

double debias_linear_forward(int B, int D, const float *U, const float *p, const float *linear,
                             const float *value, float *estimate)
{
    for (int i = 0; i < B; i++)
        estimate[i] = linear_estimate(D, U + (size_t)i * (size_t)D, p ? p[i] : 0, linear);
    return squared_loss(B, estimate, value);
}

void debias_linear_backward(int B, int D, const float *U, const float *p, const float *estimate,
                            const float *value, float *dlinear)
{
    for (int i = 0; i < B; i++) {
        const float off = 2 * (estimate[i] - value[i]);
        for (int d = 0; d < D; d++)
            dlinear[d] += off * U[(size_t)i * (size_t)D + (size_t)d];
        dlinear[D] += p ? off * p[i] : 0;
        dlinear[D + 1] += off;
    }
}

// ---- relevance -----------------------------------------------------------------------------

enum { RATE, FAMILIAR, SHOWN, RETRIEVAL, RANKER };

static const float item_half_life = 5000; // in showings of the item
static const float rate_prior = 2;        // examined showings that an unseen item counts as
static const float familiar_after = 5;    // showings at which half of being new is gone
static const float feature_max = 4;       // in deviations
// One score, however wrong, is no more than so many deviations once the spread is known by so many:
// beside 1e9 all others would say nothing until it is forgotten.
static const float outlier = 10, known_after = 100;
static const float information_least = 10; // of w; what makes its first steps small
// A coefficient is believed in by the share 1 - 9 variance / w^2, so not at all within three
// deviations of 0. A ranker's score nearly is the position: what it seems to explain by chance
// would be taken from examination, 8 % of it at position 10 for a coefficient of 0.03.
static const float doubt = 9;
// log gamma of an average item at the start, and the most that it may become.
static const float intercept_first = -2.3f, intercept_max = -0.2f;
// The least standard deviation of log theta from what its neighbours let expect: with less, noise
// that happens to be small would make the curve straight.
static const double bend_least = 0.01;

static float feature_of(const struct debias_state *s, const struct debias_row *row, int feature)
{
    const struct debias_item *item = row->item;
    const float usual =
        s->engaged_rate.weight > 0 ? s->engaged_rate.sum / s->engaged_rate.weight : 0;
    switch (feature) {
    case RATE:
        return usual > 0 ? logf((item->engaged + rate_prior * usual) /
                                ((item->examined + rate_prior) * usual))
                         : 0;
    case FAMILIAR:
        return item->shown / (item->shown + familiar_after);
    case SHOWN:
        return log1pf(item->shown);
    case RETRIEVAL:
        return row->retrieval;
    case RANKER:
        return row->ranker;
    }
    assert(!"a feature");
    return 0;
}

// phi (n, DEBIAS_FEATURES): relative to the slate's mean; scores also to their usual spread, as
// their scale is anyone's. A missing one is average.
static void features_of(struct debias_state *s, float decay, int n, const struct debias_row *rows,
                        float (*phi)[DEBIAS_FEATURES])
{
    for (int f = 0; f < DEBIAS_FEATURES; f++) {
        double sum = 0;
        int present = 0;
        for (int i = 0; i < n; i++) {
            phi[i][f] = feature_of(s, &rows[i], f);
            if (isfinite(phi[i][f])) {
                sum += phi[i][f];
                present++;
            }
        }
        const float mean = present > 0 ? (float)(sum / present) : 0;
        const bool score = f == RETRIEVAL || f == RANKER;
        const float before = debias_deviation_of(&s->spread[f], 0, 0, 0);
        const float largest =
            score && s->spread[f].weight >= known_after && before > 0 ? outlier * before : INFINITY;
        for (int i = 0; i < n; i++) {
            phi[i][f] = isfinite(phi[i][f]) ? phi[i][f] - mean : 0;
            if (present > 1)
                debias_mean_add(&s->spread[f], decay, fminf(fmaxf(phi[i][f], -largest), largest));
        }
        if (!score)
            continue;
        const float spread = debias_deviation_of(&s->spread[f], 0, 0, 0);
        for (int i = 0; i < n; i++)
            phi[i][f] =
                spread > 0 ? fminf(fmaxf(phi[i][f] / spread, -feature_max), feature_max) : 0;
    }
}

// The inverse of a symmetric positive definite matrix, by Gauss-Jordan; no pivoting is needed.
static void invert(double (*a)[DEBIAS_FEATURES], double (*inverse)[DEBIAS_FEATURES])
{
    for (int i = 0; i < DEBIAS_FEATURES; i++)
        for (int j = 0; j < DEBIAS_FEATURES; j++)
            inverse[i][j] = i == j;
    for (int p = 0; p < DEBIAS_FEATURES; p++) {
        const double pivot = a[p][p];
        assert(pivot > 0);
        for (int j = 0; j < DEBIAS_FEATURES; j++) {
            a[p][j] /= pivot;
            inverse[p][j] /= pivot;
        }
        for (int i = 0; i < DEBIAS_FEATURES; i++) {
            const double times = a[i][p];
            if (i == p || times == 0)
                continue;
            for (int j = 0; j < DEBIAS_FEATURES; j++) {
                a[i][j] -= times * a[p][j];
                inverse[i][j] -= times * inverse[p][j];
            }
        }
    }
}

static void covariance_of(const struct debias_state *s, double (*covariance)[DEBIAS_FEATURES])
{
    double information[DEBIAS_FEATURES][DEBIAS_FEATURES];
    memcpy(information, s->information, sizeof information);
    for (int f = 0; f < DEBIAS_FEATURES; f++)
        information[f][f] += information_least;
    invert(information, covariance);
}

// ---- examination ---------------------------------------------------------------------------

// What one slate says of w and the intercept.
struct step {
    double w[DEBIAS_FEATURES];
};

static void bucket_learn(struct debias_state *s, struct debias_bucket *b, float decay,
                         const float *phi, bool engaged, struct step *step)
{
    // Neither is ever certain; and the start counts as so many engagements.
    const double least = 1e-6, most = 1 - 1e-3;
    const float information_first = 5;
    float centred[DEBIAS_FEATURES];
    double r = s->intercept;

    if (b->shown == 0)
        b->examined = 0.5f;
    b->shown = decay * b->shown + 1;
    b->engaged = decay * b->engaged + (engaged ? 1 : 0);
    for (int f = 0; f < DEBIAS_FEATURES; f++) {
        b->feature[f] += (phi[f] - b->feature[f]) / b->shown;
        centred[f] = phi[f] - b->feature[f];
        r += (double)s->w[f] * centred[f];
    }

    const double theta = b->examined, gamma = fmin(exp(r), most), p = theta * gamma;
    const struct position_posterior posterior = position_posterior(
        (float)log(theta / (1 - theta)), (float)log(gamma / (1 - gamma)), engaged);

    // examined - theta is (1 - theta) (engaged - p) / (1 - p).
    b->information = decay * b->information + (float)(gamma / (1 - p));
    const double rate = 1 / ((information_first + b->information) * (1 - theta));
    const float folded = position_fold(b->examined, posterior.examined, (float)fmin(rate, 1));
    b->examined = (float)fmin(fmax(folded, least), most);

    // relevant - gamma is (1 - gamma) times the gradient by log gamma.
    const double towards = (posterior.relevant - gamma) / (1 - gamma), information = p / (1 - p);
    for (int f = 0; f < DEBIAS_FEATURES; f++) {
        step->w[f] += towards * centred[f];
        for (int g = 0; g < DEBIAS_FEATURES; g++)
            s->information[f][g] += information * centred[f] * centred[g];
    }
}

// Only the product of examination and relevance shows. The split is kept where both have room:
// when a position comes near 1, a factor goes over to relevance.
static void gauge_keep(struct debias_state *s)
{
    const float high = 0.9f, middle = 0.7f;
    float largest = 0;

    for (int surface = 0; surface < SURFACES_MAX; surface++)
        for (int k = 0; k < POSITION_BUCKETS; k++)
            largest = fmaxf(largest, s->bucket[surface][k].examined);
    const float factor = middle / largest;
    if (largest < high || s->intercept - logf(factor) > intercept_max)
        return;
    for (int surface = 0; surface < SURFACES_MAX; surface++)
        for (int k = 0; k < POSITION_BUCKETS; k++) {
            s->bucket[surface][k].examined *= factor;
            s->bucket[surface][k].information /= factor;
        }
    s->intercept -= logf(factor);
}

// x (n) becomes the smooth curve through x at the abscissas a, weights being the inverse variances
// of x: the minimum of sum weight (x' - x)^2 + sum bend^2 / variance of bends, where a bend is how
// far a point lies from the line through its neighbours. Power laws have none. The variance is that
// of the bends of x beyond their noise: a curve with steps keeps them, one that is smooth is freed
// of the noise of its rarer positions. Cholesky of a matrix with two diagonals beside the main one.
static void smooth(int n, const double *a, const double *weight, double *x)
{
    double L[POSITIONS_MAX][3] = {{0}}; // L[i][j]: row i, column i - j
    double square = 0;

    for (int i = 1; i + 1 < n; i++) {
        const double left = (a[i + 1] - a[i]) / (a[i + 1] - a[i - 1]), right = 1 - left;
        const double bend = x[i] - left * x[i - 1] - right * x[i + 1];
        square += bend * bend - 1 / weight[i] - left * left / weight[i - 1] -
                  right * right / weight[i + 1];
    }
    const double variance = fmax(n > 2 ? square / (n - 2) : 0, bend_least * bend_least);
    for (int i = 1; i + 1 < n; i++) {
        const double left = (a[i + 1] - a[i]) / (a[i + 1] - a[i - 1]);
        const double bend[3] = {-left, 1, left - 1};
        for (int j = 0; j < 3; j++)
            for (int k = 0; k <= j; k++)
                L[i - 1 + j][j - k] += bend[j] * bend[k] / variance;
    }
    for (int i = 0; i < n; i++) {
        L[i][0] += weight[i];
        x[i] *= weight[i];
    }
    for (int i = 0; i < n; i++) {
        for (int j = i < 2 ? i : 2; j >= 0; j--) {
            // The product of rows i and i - j of L, left of column i - j.
            for (int k = 1; k + j <= 2 && k <= i - j; k++)
                L[i][j] -= L[i][j + k] * L[i - j][k];
            L[i][j] = j > 0 ? L[i][j] / L[i - j][0] : sqrt(L[i][0]);
        }
        for (int j = 1; j <= 2 && j <= i; j++)
            x[i] -= L[i][j] * x[i - j];
        x[i] /= L[i][0];
    }
    for (int i = n - 1; i >= 0; i--) {
        for (int j = 1; j <= 2 && i + j < n; j++)
            x[i] -= L[i + j][j] * x[i + j];
        x[i] /= L[i][0];
    }
}

// log theta_k of items that are equal, up to a constant.
static double examination_of(const struct debias_bucket *b, const double *w)
{
    double x = log(b->examined);
    for (int f = 0; f < DEBIAS_FEATURES; f++)
        x -= w[f] * b->feature[f];
    return x;
}

static void theta_update(struct debias_state *s, int surface, double (*covariance)[DEBIAS_FEATURES])
{
    const struct debias_bucket *bucket = s->bucket[surface];
    float *theta = s->theta[surface];
    double w[DEBIAS_FEATURES], a[POSITIONS_MAX], weight[POSITIONS_MAX], x[POSITIONS_MAX];
    int at[POSITIONS_MAX], n = 0;

    for (int f = 0; f < DEBIAS_FEATURES; f++) {
        const double square = (double)s->w[f] * s->w[f];
        const double sure = square > 0 ? 1 - doubt * covariance[f][f] / square : 0;
        w[f] = s->w[f] * fmax(sure, 0);
    }
    for (int k = 0; k < POSITIONS_MAX; k++) {
        if (bucket[k].shown == 0)
            continue;
        at[n] = k;
        a[n] = log(1 + k - at[0]); // whether the first position is called 0 or 1
        weight[n] = 0.1 + bucket[k].engaged;
        x[n++] = examination_of(&bucket[k], w);
    }
    if (n == 0)
        return;
    smooth(n, a, weight, x);
    for (int i = 0; i < n; i++)
        theta[at[i]] = (float)exp(x[i] - x[0]);

    // Positions beyond the table are one bucket, which continues the last position until it has
    // engagements of its own.
    const struct debias_bucket *over = &bucket[POSITION_OVERFLOW];
    if (over->shown > 0) {
        const double own = examination_of(over, w), trust = over->engaged / (over->engaged + 10);
        theta[POSITION_OVERFLOW] = (float)exp(trust * own + (1 - trust) * x[n - 1] - x[0]);
    }
}

static void examination_learn(const struct debias_options *o, struct debias_state *s, int surface,
                              int n, const struct debias_row *rows)
{
    const float decay = decay_of(o->half_life), item_decay = decay_of(item_half_life);
    float phi[SLATE_ITEMS_MAX][DEBIAS_FEATURES];
    double covariance[DEBIAS_FEATURES][DEBIAS_FEATURES];
    struct step step = {0};

    if (!s->relevance_started) {
        s->relevance_started = true;
        s->intercept = intercept_first;
    }
    features_of(s, decay, n, rows, phi);
    for (int f = 0; f < DEBIAS_FEATURES; f++)
        for (int g = 0; g < DEBIAS_FEATURES; g++)
            s->information[f][g] *= decay;
    for (int i = 0; i < n; i++)
        if (rows[i].position >= 0)
            bucket_learn(s, &s->bucket[surface][position_bucket(rows[i].position)], decay, phi[i],
                         rows[i].engaged, &step);

    gauge_keep(s);
    covariance_of(s, covariance);
    for (int f = 0; f < DEBIAS_FEATURES; f++)
        for (int g = 0; g < DEBIAS_FEATURES; g++)
            s->w[f] += (float)(covariance[f][g] * step.w[g]);
    theta_update(s, surface, covariance);

    for (int i = 0; i < n; i++) {
        const float known = s->theta[surface][position_bucket(rows[i].position)];
        const float theta = known > 0 ? known : 1;
        struct debias_item *item = rows[i].item;
        item->shown = item_decay * item->shown + 1;
        item->examined = item_decay * item->examined + theta;
        item->engaged = item_decay * item->engaged + (rows[i].engaged ? 1 : 0);
        s->engaged_rate.weight = decay * s->engaged_rate.weight + theta;
        s->engaged_rate.sum = decay * s->engaged_rate.sum + (rows[i].engaged ? 1 : 0);
    }
}

// ---- estimates -----------------------------------------------------------------------------

static float global_mean(const struct debias_state *s)
{
    return debias_mean_of(&s->global, 0, 0);
}

static float global_deviation(const struct debias_state *s)
{
    return debias_deviation_of(&s->global, 0, 0, 0);
}

static const struct debias_bucket *bucket_at(const struct debias_state *s,
                                             const struct debias_context *c)
{
    assert(c->surface >= 0 && c->surface < SURFACES_MAX);
    return &s->bucket[c->surface][position_bucket(c->position)];
}

static float table_at(const struct debias_state *s, const struct debias_bucket *b)
{
    return b->table_started ? b->table : global_mean(s);
}

float debias_mean_at(const struct debias_options *o, const struct debias_state *s, int D,
                     const float *linear, const struct debias_context *c)
{
    const struct debias_bucket *b = bucket_at(s, c);
    switch (o->kind) {
    case DEBIAS_POSITION:
        return debias_mean_of(&b->value, global_mean(s), o->prior_weight);
    case DEBIAS_POSITION_SGD:
        return table_at(s, b);
    case DEBIAS_USER:
        return s->linear_started ? linear_estimate(D, c->q, 0, linear) : global_mean(s);
    case DEBIAS_USER_MEAN:
        return debias_mean_of(&c->user->value, global_mean(s), o->user_prior_weight);
    case DEBIAS_COMBINED:
        return s->linear_started ? linear_estimate(D, c->q, table_at(s, b), linear)
                                 : global_mean(s);
    default:
        return NAN;
    }
}

static float deviation_at(const struct debias_options *o, const struct debias_state *s,
                          const struct debias_context *c)
{
    const float mean = global_mean(s), sd = global_deviation(s);
    if (o->kind == DEBIAS_USER_MEAN || o->kind == DEBIAS_USER)
        return debias_deviation_of(&c->user->value, mean, sd, o->user_prior_weight);
    return debias_deviation_of(&bucket_at(s, c)->value, mean, sd, o->prior_weight);
}

float debias_value(const struct debias_options *o, const struct debias_state *s, int D,
                   const float *linear, const struct debias_context *c, float net)
{
    const float seed_floor = 1e-3f;
    if (o->kind == DEBIAS_NONE)
        return net;
    if (o->kind == DEBIAS_PBM)
        return net * position_ipw(s->theta[c->surface][position_bucket(c->position)], o->cap);
    if (o->kind == DEBIAS_PROPENSITY) {
        const float usual = debias_mean_of(&s->inverse, 0, 0);
        return c->propensity > 0 && usual > 0 ? net * fminf(1 / (c->propensity * usual), o->cap)
                                              : net;
    }

    const float mean = debias_mean_at(o, s, D, linear, c), usual = fabsf(global_mean(s));
    if (o->seed_form)
        return value_residual(VALUE_RATIO, net, mean, 0, seed_floor, 0);
    // Before anything is known nothing is taken away.
    if (!(s->global.weight > 0))
        return net;
    switch (o->form) {
    case VALUE_RATIO:
        return usual > 0 ? value_residual(VALUE_RATIO, net, mean / usual, 0, o->floor, o->cap)
                         : net;
    case VALUE_Z: {
        const float sd = global_deviation(s);
        return sd > 0 ? value_residual(VALUE_Z, net, mean, deviation_at(o, s, c), o->floor * sd, 0)
                      : net - mean;
    }
    default:
        return value_residual(o->form, net, mean, 0, 0, 0);
    }
}

// ---- learning ------------------------------------------------------------------------------

// One step on the mean over the slate's rows of both squared losses. The rate of W is for features
// of any length: it is divided by the square of theirs (normalised least mean squares), so it
// converges below 1 whatever the tower's scale.
static void linear_learn(const struct debias_options *o, struct debias_state *s, int D,
                         float *linear, const float *q, int surface, int n,
                         const struct debias_row *rows)
{
    const bool positions = o->kind == DEBIAS_COMBINED;
    float step = 0, length = 1, position_step = 0;
    double mean = 0;

    if (!s->linear_started) {
        s->linear_started = true;
        memset(linear, 0, sizeof *linear * debias_linear_floats((size_t)D));
        for (int i = 0; i < n; i++)
            mean += rows[i].net;
        linear[D + 1] = s->global.weight > 0 ? global_mean(s) : (float)(mean / n);
    }
    for (int d = 0; d < D; d++)
        length += q[d] * q[d];
    for (int i = 0; i < n; i++) {
        const struct debias_bucket *b = &s->bucket[surface][position_bucket(rows[i].position)];
        const float p = positions ? table_at(s, b) : 0;
        const float off = linear_estimate(D, q, p, linear) - rows[i].net;
        step += off / (float)n;
        position_step += off * p / (float)n;
    }
    for (int d = 0; d < D; d++)
        linear[d] -= o->rate * step / length * q[d];
    linear[D] -= o->rate * position_step / length;
    linear[D + 1] -= o->rate * step / length;
}

static void table_learn(const struct debias_options *o, struct debias_state *s, int surface, int n,
                        const struct debias_row *rows)
{
    for (int i = 0; i < n; i++) {
        struct debias_bucket *b = &s->bucket[surface][position_bucket(rows[i].position)];
        if (!b->table_started) {
            b->table = s->global.weight > 0 ? global_mean(s) : rows[i].net;
            b->table_started = true;
        }
        b->table -= o->rate * (b->table - rows[i].net);
    }
}

void debias_learn(const struct debias_options *o, struct debias_state *s, int D, float *linear,
                  struct debias_user *user, const float *q, int surface, int n,
                  const struct debias_row *rows)
{
    assert(n >= 0 && n <= SLATE_ITEMS_MAX);
    assert(surface >= 0 && surface < SURFACES_MAX);
    if (o->kind == DEBIAS_NONE || n == 0)
        return;
    const float decay = decay_of(o->half_life), user_decay = decay_of(o->user_half_life);
    const float inverse_max = 1e4f; // one logged 1e-9 must not become the mean

    if (o->kind == DEBIAS_PBM)
        examination_learn(o, s, surface, n, rows);
    if (o->kind == DEBIAS_USER || o->kind == DEBIAS_COMBINED)
        linear_learn(o, s, D, linear, q, surface, n, rows);
    if (o->kind == DEBIAS_POSITION_SGD || o->kind == DEBIAS_COMBINED)
        table_learn(o, s, surface, n, rows);
    for (int i = 0; i < n; i++) {
        const int bucket = position_bucket(rows[i].position);
        debias_mean_add(&s->bucket[surface][bucket].value, decay, rows[i].net);
        debias_mean_add(&s->global, decay, rows[i].net);
        debias_mean_add(&user->value, user_decay, rows[i].net);
        if (rows[i].propensity > 0)
            debias_mean_add(&s->inverse, decay, fminf(1 / rows[i].propensity, inverse_max));
    }
}
