// SPDX-License-Identifier: Apache-2.0
#include "daemon/chronicle.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/kernels.h"
#include "model/topk.h"
#include "pipeline/source_builtin.h"

enum { LOOKS = 600 };                 // in a stream
static const double EARLY = 1.0 / 60; // the early look at what is near

int chronicle_open(struct chronicle *c, const struct source *stream, int64_t requests, int points,
                   int dim)
{
    assert(points > 0 && points <= CHRONICLE_POINTS_MAX && requests > 0);
    *c = (struct chronicle){.stream = stream,
                            .requests = requests,
                            .points_max = points,
                            .films = source_builtin_items(stream)};
    pthread_mutex_init(&c->lock, NULL);
    c->row = calloc((size_t)c->films, sizeof *c->row);
    c->V = calloc((size_t)c->films * (size_t)(dim + 1), sizeof *c->V);
    // The best-known film of each of the first genres.
    for (int i = 0; i < CHRONICLE_FILMS; i++)
        if (source_builtin_best(stream, i, 1, &c->pages.film[i]) == 0)
            c->pages.film[i] = i;
    return c->row && c->V ? 0 : -ENOMEM;
}

void chronicle_close(struct chronicle *c)
{
    free(c->row);
    free(c->V);
    pthread_mutex_destroy(&c->lock);
}

// The films' vectors as they are now.
static void vectors_take(struct chronicle *c, const struct rows *rows)
{
    const int d = two_tower_options(rows->model)->dim;
    for (int film = 0; film < c->films; film++)
        c->row[film] = ROW_NONE;
    for (uint32_t row = 0; row < rows->items.row.n; row++) {
        if (!id_table_live(&rows->items, row))
            continue;
        const struct id id = id_table_id(&rows->items, row);
        const int film = source_builtin_item_of(c->stream, id.bytes, id.size);
        if (film < 0)
            continue;
        float *v = c->V + (size_t)film * (size_t)(d + 1);
        c->row[film] = row;
        two_tower_items(rows->model, 1, &row, v);
        const float length = sqrtf(kernels->dot((size_t)d, v, v));
        kernels->scale((size_t)d, length > 0 ? 1 / length : 0, v);
    }
}

// The k films nearest to a direction, but one.
static int nearest(const struct chronicle *c, int d, const float *direction, int but, int k,
                   struct topk_entry *entries)
{
    int n = 0;
    for (int film = 0; film < c->films; film++) {
        if (c->row[film] < 0 || film == but)
            continue;
        const float *v = c->V + (size_t)film * (size_t)(d + 1);
        topk_push(entries, &n, k,
                  (struct topk_entry){kernels->dot((size_t)d, v, direction), (uint32_t)film});
    }
    topk_sort(entries, n);
    return n;
}

static void nearest_note(const struct chronicle *c, int d, struct chronicle_nearest *list, int film)
{
    struct topk_entry entries[CHRONICLE_NEAREST];
    list->n =
        nearest(c, d, c->V + (size_t)film * (size_t)(d + 1), film, CHRONICLE_NEAREST, entries);
    for (int i = 0; i < list->n; i++)
        list->film[i] = (int)entries[i].row;
    list->same_genre = source_builtin_count_genre(c->stream, source_builtin_genre(c->stream, film),
                                                  list->n, list->film);
}

// Where the hit stands in the order of nearness to its genre.
static int hit_rank(const struct chronicle *c, int d, struct source_builtin_hit hit)
{
    int anchors[CHRONICLE_ANCHORS], before = 0;
    float direction[d];
    const int n = source_builtin_best(c->stream, hit.genre, CHRONICLE_ANCHORS, anchors);
    const float *v = c->V + (size_t)hit.item * (size_t)(d + 1);
    memset(direction, 0, sizeof direction);
    for (int i = 0; i < n; i++)
        if (c->row[anchors[i]] >= 0)
            kernels->axpy((size_t)d, 1, c->V + (size_t)anchors[i] * (size_t)(d + 1), direction);
    const float mine = kernels->dot((size_t)d, v, direction);
    for (int film = 0; film < c->films; film++)
        before += c->row[film] >= 0 &&
                  kernels->dot((size_t)d, c->V + (size_t)film * (size_t)(d + 1), direction) > mine;
    return before + 1;
}

static void hit_note(struct chronicle *c, int d, int64_t now_ms)
{
    const struct source_builtin_hit hit = source_builtin_hit(c->stream);
    struct chronicle_pages *p = &c->pages;
    if (c->row[hit.item] < 0)
        return;
    if (!p->hit.released) {
        p->hit.released = true;
        p->hit.released_at = p->progress;
        p->hit.released_ms = hit.release_ms;
    }
    p->hit.rank = hit_rank(c, d, hit);
    if (!p->hit.arrived && p->hit.rank <= CHRONICLE_NEAR) {
        p->hit.arrived = true;
        p->hit.arrived_at = p->progress;
        p->hit.arrived_ms = now_ms;
    }
}

static struct evaluation difference(const struct evaluation *a, const struct evaluation *b)
{
    return (struct evaluation){
        .n = a->n - b->n,
        .recall_10 = a->recall_10 - b->recall_10,
        .recall_100 = a->recall_100 - b->recall_100,
        .ndcg_10 = a->ndcg_10 - b->ndcg_10,
        .log_loss = a->log_loss - b->log_loss,
        .popularity_recall_10 = a->popularity_recall_10 - b->popularity_recall_10,
        .popularity_recall_100 = a->popularity_recall_100 - b->popularity_recall_100,
    };
}

// A stretch that ends within this slice gets what was scored since the one before it; a slice that
// holds several ends leaves the later ones empty.
static void points_note(struct chronicle *c)
{
    struct chronicle_pages *p = &c->pages;
    while (p->points < c->points_max && p->progress * c->points_max >= p->points + 1) {
        p->point[p->points++] = difference(&p->total, &c->before);
        c->before = p->total;
    }
}

void chronicle_note(void *chronicle, const struct trainer *t, const struct evaluator *evaluator)
{
    struct chronicle *c = chronicle;
    struct chronicle_pages *p = &c->pages;
    const int d = two_tower_options(t->rows.model)->dim;
    const int64_t requests = trainer_position(t, TOPIC_IMPRESSIONS)->next;
    pthread_mutex_lock(&c->lock);
    p->progress = (double)requests / (double)c->requests;
    p->total = evaluator_total(evaluator);
    p->counts = *join_counts(&t->join);
    p->event_time_ms = trainer_state(t)->event_time_ms;
    points_note(c);
    if (p->progress * LOOKS >= c->looks + 1 || requests == c->requests) {
        c->looks = (int)(p->progress * LOOKS);
        vectors_take(c, &t->rows);
        hit_note(c, d, p->event_time_ms);
        for (int i = 0; i < CHRONICLE_FILMS; i++)
            nearest_note(c, d, &p->now[i], p->film[i]);
        if (p->early[0].n == 0 && p->progress >= EARLY) {
            memcpy(p->early, p->now, sizeof p->early);
            p->early_at = p->progress;
        }
    }
    pthread_mutex_unlock(&c->lock);
}

void chronicle_read(struct chronicle *c, struct chronicle_pages *pages)
{
    pthread_mutex_lock(&c->lock);
    *pages = c->pages;
    pthread_mutex_unlock(&c->lock);
}

struct evaluation chronicle_recent(const struct chronicle_pages *pages, int n)
{
    const struct evaluation none = {0};
    struct evaluation sum = {0};
    for (int i = pages->points > n ? pages->points - n : 0; i < pages->points; i++) {
        const struct evaluation left = difference(&none, &pages->point[i]);
        sum = difference(&sum, &left);
    }
    return sum;
}
