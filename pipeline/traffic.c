// SPDX-License-Identifier: Apache-2.0
#include "pipeline/traffic.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *const traffic_key_names[TRAFFIC_KEYS] = {"user", "request", "item"};

const struct traffic_field_name traffic_fields[TRAFFIC_FIELDS] = {
    [DEFAULTED_REQUEST] = {TOPIC_ENGAGEMENTS, "request_id"},
    [DEFAULTED_VALUE] = {TOPIC_ENGAGEMENTS, "value"},
    [DEFAULTED_POSITION] = {TOPIC_IMPRESSIONS, "position"},
    [DEFAULTED_PROPENSITY] = {TOPIC_IMPRESSIONS, "propensity"},
    [DEFAULTED_SURFACE] = {TOPIC_IMPRESSIONS, "surface"},
    [DEFAULTED_USER_FEATURES] = {TOPIC_IMPRESSIONS, "user_features"},
    [DEFAULTED_RANKER] = {TOPIC_SCORES, "ranker"},
    [DEFAULTED_TITLE] = {TOPIC_ITEMS, "title"},
    [DEFAULTED_FEATURES] = {TOPIC_ITEMS, "features"},
};

// How many records this window has, and at how many it is told next.
struct window {
    uint32_t n, due;
};

enum { HEAVY_KEYS = 64 };

// Misra-Gries: a key without a counter takes a free one, or else one off all of them. A key is half
// of an id's hash: that two of them meet is one in a hundred million records.
struct heavy {
    struct window window;
    int used;
    uint32_t key[HEAVY_KEYS];
    uint32_t count[HEAVY_KEYS];
};

// How often each row was shown in this window.
struct exposures {
    struct window window;
    uint32_t *count;    // by row
    uint32_t *shown;    // rows whose count is not 0
    uint32_t *shown_of; // their counts, while the window is told
    uint32_t *spread;   // how many have this count
    uint32_t n_shown;
};

struct traffic {
    const struct id_table *items;
    struct heavy heavy[TOPICS][TRAFFIC_KEYS];
    struct exposures exposures;
    struct traffic_figures figures;
};

// Records are added to a window and it is to be told; then a whole one begins anew.
static bool window_add(struct window *w, uint32_t n)
{
    w->n += n;
    return w->n >= w->due;
}

static bool window_told(struct window *w)
{
    const bool whole = w->n >= TRAFFIC_WINDOW;
    if (whole)
        w->n = 0;
    else
        w->due *= 2;
    return whole;
}

// The place of the key, or used. The one that was found last is the first: users come in bursts.
// Most requests are new, so all counters are looked at without a branch, four at a time.
static int heavy_find(struct heavy *h, uint32_t key)
{
    if (h->used > 0 && h->key[0] == key)
        return 0;
    uint32_t there = 0;
    for (int i = 0; i < h->used; i++)
        there |= h->key[i] == key;
    if (!there)
        return h->used;
    int at = 1;
    while (h->key[at] != key)
        at++;
    const uint32_t count = h->count[at];
    h->key[at] = h->key[0];
    h->count[at] = h->count[0];
    h->key[0] = key;
    h->count[0] = count;
    return 0;
}

static void heavy_count(struct heavy *h, uint32_t key, uint32_t n)
{
    int at = heavy_find(h, key);
    if (at == h->used && h->used == HEAVY_KEYS) {
        uint32_t least = n;
        for (int i = 0; i < HEAVY_KEYS; i++)
            least = h->count[i] < least ? h->count[i] : least;
        h->used = 0;
        for (int i = 0; i < HEAVY_KEYS; i++) {
            if (h->count[i] == least)
                continue;
            h->key[h->used] = h->key[i];
            h->count[h->used++] = h->count[i] - least;
        }
        n -= least;
        at = h->used;
    }
    if (n == 0)
        return;
    if (at == h->used) {
        h->key[h->used] = key;
        h->count[h->used++] = 0;
    }
    h->count[at] += n;
}

static void heavy_see(struct heavy *h, const struct id *id, uint32_t n, double *share)
{
    if (id->kind == ID_ABSENT)
        return;
    heavy_count(h, (uint32_t)id->hash, n);
    if (!window_add(&h->window, n))
        return;
    uint32_t largest = 0;
    for (int i = 0; i < h->used; i++)
        largest = h->count[i] > largest ? h->count[i] : largest;
    *share = (double)largest / h->window.n;
    if (window_told(&h->window))
        h->used = 0;
}

double traffic_gini(size_t n, size_t n_shown, const uint32_t *counts, uint32_t *spread)
{
    uint32_t largest = 0;
    double sum = 0, ranked = 0, rank = (double)(n - n_shown); // of those never shown
    for (size_t i = 0; i < n_shown; i++) {
        largest = counts[i] > largest ? counts[i] : largest;
        spread[counts[i]]++;
    }
    // G = 2 sum_i i c_i / (n sum_i c_i) - (n + 1) / n, c in ascending order, i from 1.
    for (uint32_t c = 1; c <= largest; c++) {
        const double same = spread[c];
        ranked += c * same * (rank + (same + 1) / 2);
        sum += c * same;
        rank += same;
        spread[c] = 0;
    }
    return sum > 0 ? 2 * ranked / ((double)n * sum) - (double)(n + 1) / (double)n : 0;
}

static void exposures_tell(struct traffic *t)
{
    struct exposures *e = &t->exposures;
    const size_t live = id_table_state(t->items)->live;
    uint32_t largest = 0;
    for (uint32_t i = 0; i < e->n_shown; i++) {
        e->shown_of[i] = e->count[e->shown[i]];
        largest = e->shown_of[i] > largest ? e->shown_of[i] : largest;
    }
    // Rows may have left since they were shown.
    t->figures.exposure_gini =
        traffic_gini(live > e->n_shown ? live : e->n_shown, e->n_shown, e->shown_of, e->spread);
    t->figures.top_share[TOPIC_IMPRESSIONS][TRAFFIC_ITEM] = (double)largest / e->window.n;
    if (!window_told(&e->window))
        return;
    for (uint32_t i = 0; i < e->n_shown; i++)
        e->count[e->shown[i]] = 0;
    e->n_shown = 0;
}

static void exposure_see(struct traffic *t, const struct id *item)
{
    struct exposures *e = &t->exposures;
    const int64_t row = id_table_find(t->items, item);
    if (row < 0)
        return; // not admitted: nothing is learned of it
    if (e->count[row]++ == 0)
        e->shown[e->n_shown++] = (uint32_t)row;
    if (window_add(&e->window, 1))
        exposures_tell(t);
}

int traffic_open(struct traffic **t_out, const struct id_table *items)
{
    struct traffic *t = calloc(1, sizeof *t);
    if (!t)
        return -ENOMEM;
    t->items = items;
    // Touched as rows are shown only.
    t->exposures = (struct exposures){
        .window = {.due = TRAFFIC_FIRST},
        .count = calloc(items->row.n_max, sizeof(uint32_t)),
        .shown = calloc(TRAFFIC_WINDOW, sizeof(uint32_t)),
        .shown_of = calloc(TRAFFIC_WINDOW, sizeof(uint32_t)),
        .spread = calloc(TRAFFIC_WINDOW + 1, sizeof(uint32_t)),
    };
    t->figures.exposure_gini = NAN;
    for (int topic = 0; topic < TOPICS; topic++)
        for (int key = 0; key < TRAFFIC_KEYS; key++) {
            t->heavy[topic][key].window.due = TRAFFIC_FIRST;
            t->figures.top_share[topic][key] = NAN;
        }
    const struct exposures *e = &t->exposures;
    if (!e->count || !e->shown || !e->shown_of || !e->spread) {
        traffic_close(t);
        return -ENOMEM;
    }
    *t_out = t;
    return 0;
}

void traffic_close(struct traffic *t)
{
    if (!t)
        return;
    free(t->exposures.count);
    free(t->exposures.shown);
    free(t->exposures.shown_of);
    free(t->exposures.spread);
    free(t);
}

static void defaulted_see(uint64_t *defaulted, const struct event *e)
{
    const struct event_item *item = &e->items[0];
    switch (e->topic) {
    case TOPIC_ENGAGEMENTS:
        defaulted[DEFAULTED_REQUEST] += e->request.kind == ID_ABSENT;
        defaulted[DEFAULTED_VALUE] += !e->valued;
        break;
    case TOPIC_IMPRESSIONS:
        for (int i = 0; i < e->n_items; i++) {
            defaulted[DEFAULTED_POSITION] += e->items[i].position < 0;
            defaulted[DEFAULTED_PROPENSITY] += e->items[i].propensity == 0;
        }
        defaulted[DEFAULTED_SURFACE] += e->surface.size == 0 ? (uint64_t)e->n_items : 0;
        defaulted[DEFAULTED_USER_FEATURES] += e->n_features == 0 ? (uint64_t)e->n_items : 0;
        break;
    case TOPIC_SCORES:
        defaulted[DEFAULTED_RANKER] += e->ranker.size == 0;
        break;
    case TOPIC_ITEMS:
        defaulted[DEFAULTED_TITLE] += !e->removed && e->title.size == 0;
        defaulted[DEFAULTED_FEATURES] += !e->removed && item->n_features == 0;
        break;
    case TOPICS:
        break;
    }
}

void traffic_see(struct traffic *t, const struct event *e)
{
    struct heavy *heavy = t->heavy[e->topic];
    double *share = t->figures.top_share[e->topic];
    const uint32_t n = e->topic == TOPIC_IMPRESSIONS ? (uint32_t)e->n_items : 1;
    defaulted_see(t->figures.defaulted, e);
    t->figures.repeated[e->topic] += e->repeated ? n : 0;
    heavy_see(&heavy[TRAFFIC_USER], &e->user, n, &share[TRAFFIC_USER]);
    heavy_see(&heavy[TRAFFIC_REQUEST], &e->request, n, &share[TRAFFIC_REQUEST]);
    if (e->topic == TOPIC_ENGAGEMENTS || e->topic == TOPIC_ITEMS)
        heavy_see(&heavy[TRAFFIC_ITEM], &e->items[0].item, 1, &share[TRAFFIC_ITEM]);
    for (int i = 0; e->topic == TOPIC_IMPRESSIONS && i < e->n_items; i++)
        exposure_see(t, &e->items[i].item);
}

const struct traffic_figures *traffic_figures(const struct traffic *t)
{
    return &t->figures;
}
