// SPDX-License-Identifier: Apache-2.0
//
// What the second stage adds: a recorded stream, once, each closed slate ordered by retrieval and
// by the light ranker before it is learned.
//
//     bench_rerank EVENTS [SECTION.KEY=VALUE]...
//
// Prints over the second half of the slates, for either order: how often an engaged item stands
// above one that was shown and passed over (AUC within slates, each engaged item counting by how
// seldom its place is looked at: 1 / (position + 1), 1 when the stream has none), and how often an
// engaged item stands first. Then for each task its probabilities as served, without a position,
// against what was engaged: their sums over the slates.
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/assemble.h"
#include "daemon/blas_core.h"
#include "model/arena.h"
#include "model/gemm.h"
#include "model/kernels.h"
#include "model/light_ranker.h"
#include "model/value.h"
#include "pipeline/cutter.h"

enum order { RETRIEVAL, RANKER, ORDERS };

// Sums over what was judged.
struct judged {
    double pairs, above[ORDERS];
    double slates, first[ORDERS];
    double shown, served[SLATE_TASKS_MAX], engaged[SLATE_TASKS_MAX];
};

static struct bench {
    struct config config;
    struct trainer trainer;
    struct value_tasks tasks;
    struct light_ranker_shape shape;
    const struct column *heads;
    struct judged all, half;
    uint64_t slates, slates_half;
} b;

// Of two scores: 1 above, 0 below, one half alike.
static double above(float x, float y)
{
    return x > y ? 1 : x == y ? 0.5 : 0;
}

static void judge(const struct slate *slate, int n, const int *shown, const float *score,
                  enum order order)
{
    int first = 0;
    for (int i = 0; i < n; i++) {
        const struct slate_item *x = &slate->items[shown[i]];
        first = score[i] > score[first] ? i : first;
        if (value_of_labels(&b.tasks, x->labels) <= 0)
            continue;
        const double weight = x->position < 0 ? 1 : x->position + 1;
        for (int k = 0; k < n; k++)
            if (value_of_labels(&b.tasks, slate->items[shown[k]].labels) <= 0) {
                b.all.above[order] += weight * above(score[i], score[k]);
                b.all.pairs += order == RETRIEVAL ? weight : 0;
            }
    }
    b.all.first[order] += value_of_labels(&b.tasks, slate->items[shown[first]].labels) > 0;
    b.all.slates += order == RETRIEVAL;
}

static void see_slate(const struct slate *slate)
{
    const size_t d = (size_t)b.shape.width;
    const struct two_tower *m = b.trainer.rows.model;
    struct example e = {.user = slate->user,
                        .ts_ms = slate->ts_ms,
                        .n_history = slate->n_history,
                        .n_newest = slate->n_newest};
    struct bonus bonuses[HISTORY_MAX];
    int n = 0, engaged = 0, shown[SLATE_ITEMS_MAX];
    float q[d + 1], v[d + 1], V[SLATE_ITEMS_MAX * d];
    float retrieval[SLATE_ITEMS_MAX], value[SLATE_ITEMS_MAX];
    memcpy(e.history, slate->history, sizeof e.history);
    memcpy(e.actions, slate->actions, sizeof e.actions);
    memcpy(e.gaps, slate->gaps, sizeof e.gaps);
    two_tower_queries(b.trainer.rows.model, 1, &e, NULL, q);
    const int n_bonuses = two_tower_bonuses(m, &e, bonuses);
    for (int k = 0; k < slate->n_items; k++) {
        const struct slate_item *item = &slate->items[k];
        if (!item->shown)
            continue;
        two_tower_items(b.trainer.rows.model, 1, &item->item, v);
        memcpy(V + (size_t)n * d, v, d * sizeof *v);
        retrieval[n] = kernels->dot(d + 1, q, v);
        for (int i = 0; i < n_bonuses; i++)
            retrieval[n] += bonuses[i].row == item->item ? bonuses[i].score : 0;
        engaged += value_of_labels(&b.tasks, item->labels) > 0;
        shown[n++] = k;
    }
    const struct light_ranker_parameters p = light_ranker_at(column_at(b.heads, 0), &b.shape);
    const enum light_ranker_value form = LIGHT_RANKER_PROBABILITIES;
    for (int t = 0; t < b.tasks.n; t++) {
        float weight[SLATE_TASKS_MAX] = {0};
        weight[t] = 1;
        light_ranker_score(&p, &b.shape, q, n, V, weight, form, value);
        for (int i = 0; i < n; i++) {
            b.all.served[t] += (double)value[i];
            b.all.engaged[t] += slate->items[shown[i]].labels >> t & 1;
        }
    }
    b.all.shown += n;
    if (engaged == 0 || engaged == n)
        return;
    light_ranker_score(&p, &b.shape, q, n, V, b.tasks.weight, form, value);
    judge(slate, n, shown, retrieval, RETRIEVAL);
    judge(slate, n, shown, value, RANKER);
}

static void see_slates(void *arg, int n, const struct slate *slates, const float *scores)
{
    (void)arg, (void)scores;
    for (int i = 0; i < n; i++) {
        if (slates[i].kind != SLATE_CLOSED || slates[i].repeated)
            continue;
        see_slate(&slates[i]);
        if (++b.slates == b.slates_half)
            b.half = b.all;
    }
}

// The whole stream through the trainer. 0 or -errno with a sentence on stderr.
static int stream_learn(bool hook)
{
    struct join_window windows[CONFIG_ENTRIES_MAX];
    struct source *source = NULL;
    struct cutter *cutter = NULL;
    char error[1024] = "";
    int rc = assemble_source(&b.config, true, &source, error, sizeof error);
    if (rc < 0) {
        fprintf(stderr, "bench_rerank: %s\n", error);
        return rc;
    }
    const size_t P = (size_t)source->n_partitions;
    int64_t *place = calloc(3 * P, sizeof *place);
    const struct trainer_options options =
        assemble_trainer(&b.config, source->n_partitions, windows);
    const struct cutter_options cut = assemble_cutter(&b.config, SLICE_CANONICAL);
    for (size_t p = 0; place && p < P; p++)
        place[2 * P + p] = INT64_MIN;
    rc = place ? source->ops->bounds(source, place, place + P) : -ENOMEM;
    if (rc == 0)
        rc = source->ops->start(source, place, place + P);
    if (rc == 0)
        rc = trainer_open(&b.trainer, &options);
    if (rc == 0)
        rc = cutter_open(&cutter, source, &cut,
                         &(struct cutter_position){.next = place, .time_max_ms = place + 2 * P});
    b.shape = (struct light_ranker_shape){options.model.dim, options.model.objectives.ranker.heads,
                                          options.tasks.n};
    b.tasks = options.tasks;
    for (int i = 0; rc == 0 && i < b.trainer.columns.n; i++)
        if (strcmp(b.trainer.columns.list[i]->name, "model.heads") == 0)
            b.heads = b.trainer.columns.list[i];
    b.trainer.score_slates = hook ? see_slates : NULL;
    for (bool last = false; rc >= 0 && !last;) {
        struct slice *slice;
        rc = cutter_next(cutter, (struct cutter_clock){0}, 1000, &slice);
        if (rc <= 0)
            continue;
        last = slice->last;
        trainer_apply(&b.trainer, slice);
        cutter_give(cutter, slice);
    }
    if (rc >= 0) {
        trainer_finish(&b.trainer);
        b.slates_half = join_slate_counts(&b.trainer.join)[SLATES_CLOSED] / 2;
    } else {
        fprintf(stderr, "bench_rerank: %s\n", source->error);
    }
    cutter_close(cutter);
    trainer_close(&b.trainer);
    source->ops->close(source);
    free(place);
    return rc < 0 ? rc : 0;
}

static double share(double part, double whole)
{
    return whole > 0 ? part / whole : 0;
}

static void report(void)
{
    static const char *const names[] = {"retrieval", "ranker"};
    const struct judged *all = &b.all, *half = &b.half;
    printf("slates %" PRIu64 ", of the second half %.0f with something to order\n", b.slates,
           all->slates - half->slates);
    for (int o = 0; o < ORDERS; o++)
        printf("%-10s auc %.4f first %.4f\n", names[o],
               share(all->above[o] - half->above[o], all->pairs - half->pairs),
               share(all->first[o] - half->first[o], all->slates - half->slates));
    for (int t = 0; t < b.tasks.n; t++)
        printf("task %-10s served %.5f engaged %.5f\n", b.tasks.name[t],
               share(all->served[t] - half->served[t], all->shown - half->shown),
               share(all->engaged[t] - half->engaged[t], all->shown - half->shown));
}

int main(int argc, char **argv)
{
    static char memory[CONFIG_MEMORY], path[4096];
    struct config_problems problems = {0};
    struct arena arena = {memory, sizeof memory, 0};
    blas_core_correct(argv);
    if (argc < 2) {
        fputs("usage: bench_rerank EVENTS [SECTION.KEY=VALUE]...\n", stderr);
        return 64;
    }
    kernels_init(NULL);
    config_init(&b.config, &arena);
    snprintf(path, sizeof path, "source.path=%s", argv[1]);
    config_set_pair(&b.config, "source.type=file", "command line", &problems);
    config_set_pair(&b.config, path, "command line", &problems);
    config_set_pair(&b.config, "ranker.weight=1", "command line", &problems);
    for (int i = 2; i < argc; i++)
        config_set_pair(&b.config, argv[i], "command line", &problems);
    if (problems.n == 0)
        config_check(&b.config, &problems);
    for (int i = 0; i < problems.n; i++)
        fprintf(stderr, "%s\n", problems.list[i].text);
    if (problems.n == 0 && b.config.ranker_feedback != CONFIG_FEEDBACK_NONE) {
        fputs("bench_rerank: with ranker.feedback a slate has been learned before it closes\n",
              stderr);
        return 64;
    }
    // Once to know how many slates there are.
    if (problems.n || stream_learn(false) < 0 || stream_learn(true) < 0)
        return 1;
    report();
    return 0;
}
