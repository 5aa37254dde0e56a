// SPDX-License-Identifier: Apache-2.0
#include "pipeline/audience_builtin.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "model/rng.h"

static const float examination[SLATE_SHOWN] = {
    // (position + 1)^-0.7
    1.0f,       0.6155722f, 0.4634663f, 0.3789291f, 0.3241313f,
    0.2852944f, 0.2561140f, 0.2332582f, 0.2147981f, 0.1995262f,
};

static const double HIT_AFTER_S = 3600;  // without end: the hit's release, in event time
static const double TASTE_VISITS = 80;   // a passing taste grows and fades within so many visits
static const double SERIES_VISITS = 16;  // and a series is watched within so many
static const double TREND_VISITS = 30;   // popularity moves within so many visits of a mean user
static const float TASTE_RADIUS = 0.05f; // of a ring: films beyond it are not to the user's taste

// What a user likes at one moment.
struct taste {
    int32_t genre[3];
    float weight[3];        // sums to 1
    float strength[GENRES]; // in [0, 1]; 0 for a genre that is not among the three
    float place[GENRES];    // on the ring; set for the three only
    int32_t next_part;      // of the series being watched; -1 between series
};

// ---- Who comes, and what they like ----

// Of x >= 0. (floor and fminf are calls on the plainest of CPUs; these are not.)
static float fraction(double x)
{
    return (float)(x - (double)(int64_t)x);
}

static float least(float a, float b)
{
    return a < b ? a : b;
}

// Rises from 0 to 1 and falls back to 0 while x goes from 0 to 1.
static float tent(float x)
{
    return 1 - fabsf(2 * x - 1);
}

static float uniform_at(uint64_t key, uint64_t n)
{
    return (float)(rng_at(key, n) >> 40) * 0x1p-24f;
}

static int below_at(uint64_t key, uint64_t n, uint32_t limit)
{
    return (int)((rng_at(key, n) >> 32) * limit >> 32);
}

// Times grow with the request: each lies at random within its own interval.
int64_t audience_builtin_ts(const struct audience_builtin *a, int64_t request)
{
    const double at = (double)request + uniform_at(a->key[FOR_TIMES], (uint64_t)request);
    return a->options.start_ms + (int64_t)(at * 1000 / a->options.requests_per_s);
}

// User floor(n v^2) with uniform v comes: the first ones often, the last ones at half the mean
// rate.
static int user_draw(const struct audience_builtin *a, struct rng *rng)
{
    const float v = rng_float(rng);
    const int user = (int)((float)a->options.users * v * v);
    return user < a->options.users ? user : a->options.users - 1;
}

// The expected number of this user's visits before the request: the clock of everything personal.
static double visits(const struct audience_builtin *a, int user, int64_t request)
{
    const double n = a->options.users;
    return (double)request * (sqrt((user + 1) / n) - sqrt(user / n));
}

static void taste_add(struct taste *t, int slot, int genre, float weight, uint64_t user_key,
                      double clock)
{
    t->genre[slot] = genre;
    t->weight[slot] = weight;
    t->strength[genre] = least(1, t->strength[genre] + 2 * weight);
    // A place of the user's own in each genre, the same whenever the genre returns, with a slow
    // wander of half a radius to either side.
    const float wander = tent(fraction(clock / (4 * TASTE_VISITS))) - 0.5f;
    t->place[genre] = uniform_at(user_key, 64 + (uint64_t)genre) + TASTE_RADIUS * wander;
}

// The favourite genre stays; the two passing ones are half a period apart, so that one is at its
// height while the other changes unnoticed, at weight 0.
static void taste_of(const struct audience_builtin *a, int user, int64_t request, struct taste *t)
{
    const struct catalogue_builtin *c = &a->catalogue;
    const uint64_t key = rng_at(a->key[FOR_USERS], (uint64_t)user);
    const double clock = visits(a, user, request) + 1000 * uniform_at(key, 0);
    const double period = clock / TASTE_VISITS, other = period + 0.5;
    const float height = tent(fraction(period));

    memset(t->strength, 0, sizeof t->strength);
    taste_add(t, 0, below_at(key, 1, GENRES), 0.45f, key, clock);
    taste_add(t, 1, below_at(key, 1024 + 2 * (uint64_t)period, GENRES), 0.55f * height, key, clock);
    taste_add(t, 2, below_at(key, 1025 + 2 * (uint64_t)other, GENRES), 0.55f * (1 - height), key,
              clock);

    // Every few visits a series begins, near the user's place in the favourite genre or in the
    // passing one; its parts follow at equal distances.
    const double watch = clock / SERIES_VISITS;
    const uint64_t nth = (uint64_t)watch;
    const int genre = t->genre[below_at(key, 1u << 20 | nth << 1, 2)];
    const float near = TASTE_RADIUS * (2 * uniform_at(key, 1u << 20 | nth << 1 | 1) - 1);
    int film = catalogue_builtin_at(c, genre, t->place[genre] + near);
    film = c->film[film].opener;
    for (int part = (int)(4 * fraction(watch)); part > 0 && film >= 0; part--)
        film = c->film[film].sequel;
    t->next_part = film;
}

// How popular a film is at the moment, as a share of what it can be: drifts between random levels.
static float trend(const struct audience_builtin *a, int item, int64_t request)
{
    const uint64_t key = rng_at(a->key[FOR_TRENDS], (uint64_t)item);
    const double at = (double)request / (TREND_VISITS * a->options.users) + uniform_at(key, 0);
    const uint64_t knot = 1 + (uint64_t)at;
    const float x = fraction(at);
    return 0.15f + 0.85f * ((1 - x) * uniform_at(key, knot) + x * uniform_at(key, knot + 1));
}

static float relevance_of(const struct audience_builtin *a, const struct taste *t, int item)
{
    const struct film *film = &a->catalogue.film[item];
    const float strength = t->strength[film->genre];
    if (item == a->catalogue.films - 1)
        return strength > 0 ? 0.15f + 0.75f * strength : 0.05f;
    float relevance = 0.01f + 0.20f * film->quality;
    if (strength > 0) {
        float distance = fraction(fabsf(film->place - t->place[film->genre]));
        distance = least(distance, 1 - distance) / TASTE_RADIUS;
        const float fall = 1 - distance * distance;
        const float near = distance < 1 ? fall * fall : 0;
        relevance += strength * (0.03f + near * (0.25f + 0.35f * film->quality));
    }
    return item == t->next_part && relevance < 0.8f ? 0.8f : relevance;
}

// ---- What they are shown ----

static int draw_popular(const struct audience_builtin *a, const struct taste *t, int64_t request,
                        struct rng *rng)
{
    (void)t;
    for (int tries = 0;; tries++) {
        const int item = catalogue_builtin_draw(&a->catalogue, rng_next(rng));
        if (tries == 3 || rng_float(rng) < trend(a, item, request))
            return item;
    }
}

// Around the user's place, wider than the taste itself: the policy knows it only roughly.
static int draw_taste(const struct audience_builtin *a, const struct taste *t, int64_t request,
                      struct rng *rng)
{
    (void)request;
    const float u = rng_float(rng);
    const int genre = t->genre[u < t->weight[0] ? 0 : u < t->weight[0] + t->weight[1] ? 1 : 2];
    for (int tries = 0;; tries++) {
        const float off = 1.2f * TASTE_RADIUS * (rng_float(rng) + rng_float(rng) - 1);
        const int item = catalogue_builtin_at(&a->catalogue, genre, t->place[genre] + off);
        if (tries == 2 || rng_float(rng) < 0.2f + a->catalogue.film[item].quality)
            return item;
    }
}

static int draw_any(const struct audience_builtin *a, const struct taste *t, int64_t request,
                    struct rng *rng)
{
    (void)t;
    (void)request;
    return (int)rng_below(rng, (uint64_t)a->catalogue.films - 1);
}

static int draw_series(const struct audience_builtin *a, const struct taste *t, int64_t request,
                       struct rng *rng)
{
    return t->next_part >= 0 ? t->next_part : draw_any(a, t, request, rng);
}

// The hit is pushed ever more, at first to hardly anybody; to others than lovers of its genre it is
// shown a tenth as often.
static int draw_hit(const struct audience_builtin *a, const struct taste *t, int64_t request,
                    struct rng *rng)
{
    const int hit = a->catalogue.films - 1;
    if (request > a->hit_request) {
        const float shown = least(1, (float)(request - a->hit_request) / (float)a->hit_ramp);
        const float lover = t->strength[a->catalogue.film[hit].genre] > 0 ? 1 : 0.1f;
        if (rng_float(rng) < (0.05f + 0.95f * shown) * lover)
            return hit;
    }
    return draw_popular(a, t, request, rng);
}

// The logging policy: where each place of a slate comes from.
static const struct {
    float share;
    int (*draw)(const struct audience_builtin *a, const struct taste *t, int64_t request,
                struct rng *rng);
} policy[] = {
    {0.36f, draw_popular}, {0.46f, draw_taste}, {0.06f, draw_series},
    {0.04f, draw_hit},     {0.08f, draw_any},
};

static int draw_item(const struct audience_builtin *a, const struct taste *t, int64_t request,
                     struct rng *rng)
{
    float u = rng_float(rng);
    size_t way = 0;
    while (way + 1 < sizeof policy / sizeof policy[0] && u >= policy[way].share)
        u -= policy[way++].share;
    return policy[way].draw(a, t, request, rng);
}

static bool contains(const int32_t *items, int n, int item)
{
    for (int i = 0; i < n; i++)
        if (items[i] == item)
            return true;
    return false;
}

void audience_builtin_slate(const struct audience_builtin *a, int64_t request, struct slate *slate)
{
    struct rng rng = {rng_at(a->key[FOR_SLATES], (uint64_t)request), 0};
    struct taste taste;

    slate->request = request;
    slate->ts_ms = audience_builtin_ts(a, request);
    slate->user = user_draw(a, &rng);
    taste_of(a, slate->user, request, &taste);
    for (int i = 0; i < SLATE_SCORED; i++) {
        int item = draw_item(a, &taste, request, &rng);
        for (int tries = 0; tries < 4 && contains(slate->item, i, item); tries++)
            item = draw_item(a, &taste, request, &rng);
        while (contains(slate->item, i, item)) // never comes to the hit before its time
            item = (item + 1) % (a->catalogue.films - 1);
        slate->item[i] = item;
    }
    // Likely films are drawn early, and no film twice: in the order of drawing the mean relevance
    // falls by a fifth from the first to the tenth place (600 films), which would pass for position
    // bias. Shuffled, position and relevance are independent, and the bias is the examination
    // alone.
    for (int i = SLATE_SCORED - 1; i > 0; i--) {
        const int j = (int)rng_below(&rng, (uint64_t)i + 1);
        const int32_t swap = slate->item[i];
        slate->item[i] = slate->item[j];
        slate->item[j] = swap;
    }
    for (int i = 0; i < SLATE_SCORED; i++)
        slate->relevance[i] = relevance_of(a, &taste, slate->item[i]);
}

// ---- What they do ----

float audience_builtin_like(float relevance)
{
    return 0.05f + 0.4f * relevance;
}

// Two seconds, then Lomax with shape 2 and scale 60 s, cut off at 99 minutes: median 27 s, one in a
// thousand beyond half an hour. One in a hundred comes half an hour to two hours late instead.
static int64_t delay_draw_ms(struct rng *rng)
{
    const float late = rng_float(rng), u = rng_float(rng);
    if (late < 0.01f)
        return 1800000 + (int64_t)(5400000 * u);
    return 2000 + (int64_t)(60000 * (1 / sqrtf(1 - 0.9999f * u) - 1));
}

int audience_builtin_engage(const struct audience_builtin *a, const struct slate *slate,
                            struct engagement out[SLATE_ENGAGEMENTS_MAX])
{
    struct rng rng = {rng_at(a->key[FOR_CLICKS], (uint64_t)slate->request), 0};
    int n = 0;
    for (int i = 0; i < SLATE_SHOWN; i++) {
        const float relevance = slate->relevance[i];
        if (rng_float(&rng) >= examination[i] * relevance)
            continue;
        // One draw per statement: C leaves the order inside an initialiser to the compiler.
        const int64_t delay_ms = delay_draw_ms(&rng);
        const bool anonymous = rng_float(&rng) < 0.03f;
        struct engagement click = {
            .ts_ms = slate->ts_ms + delay_ms,
            .request = slate->request,
            .user = slate->user,
            .item = slate->item[i],
            .kind = anonymous ? CLICK_WITHOUT_REQUEST : CLICK,
        };
        out[n++] = click;
        if (rng_float(&rng) < 0.02f) // a producer that sends again: the very same record
            out[n++] = click;
        if (rng_float(&rng) < audience_builtin_like(relevance)) {
            click.kind = LIKE;
            click.ts_ms += 3000 + (int64_t)rng_below(&rng, 60000);
            out[n++] = click;
        }
    }
    if (rng_float(&rng) < 0.005f) {
        const int64_t delay_ms = delay_draw_ms(&rng);
        out[n++] = (struct engagement){
            .ts_ms = slate->ts_ms + delay_ms,
            .request = slate->request,
            .user = slate->user,
            .item = slate->item[rng_below(&rng, SLATE_SHOWN)],
            .kind = ORPHAN,
        };
    }
    return n;
}

int audience_builtin_open(struct audience_builtin *a, const struct source_builtin_options *options)
{
    const int64_t half = options->requests > 0 ? options->requests / 2
                                               : (int64_t)(HIT_AFTER_S * options->requests_per_s);
    *a = (struct audience_builtin){
        .options = *options,
        .hit_request = half,
        .hit_ramp = half / 5 + 1,
    };
    for (int purpose = 0; purpose < AUDIENCE_PURPOSES; purpose++)
        a->key[purpose] = rng_key(options->seed, (uint64_t)purpose);
    return catalogue_builtin_open(&a->catalogue, a->key[FOR_CATALOGUE], options->items);
}

void audience_builtin_close(struct audience_builtin *a)
{
    catalogue_builtin_close(&a->catalogue);
}
