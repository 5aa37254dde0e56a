// SPDX-License-Identifier: Apache-2.0
//
// What debiasing is for, measured: how often the model finds the item that was truly relevant, also
// where nobody looked and clicked. Recorded streams of real people do not know this; one whose
// clicks are simulated does, in truth.jsonl.zst beside it. The truth is for judging only: nothing
// that learns sees it.
//
//     bench_truth [--json] [DIR [KEY=VALUE]...]
//
// DIR is $TWOTOWER_DATA/ml1m-slates when it is not given; without either there is nothing to do.
// KEY=VALUE are options of the configuration. One line of NAME=VALUE; with --json the figures of
// both recalls of the relevant item only:
//
//     recall@K           of the relevant item of every slate, over all items known by then,
//                        predicted before the slate or a later click is learned
//     top@100, low@100   the same of those at positions 1 to 5, and of those further down
//     clicks_recall@K    of the items clicked, as `twotower eval` has it
//     spearman_clicks    rank correlation of a click's training weight with its position; nan when
//                        all weights are the same
//     spearman, pearson  correlation of weight and position over all that was shown; an item that
//                        was not clicked has weight 0
//     mass_off           the sum of weights at a position for each time it was shown, divided by
//                        its mean over positions: the largest deviation from 1 for k = 1..10
//     curve              theta_k k for k = 1..10, where the estimator has a curve
//     curve_off          the largest deviation from 1 among those
//     weight             mean training weight of a click
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>

#include <cjson/cJSON.h>

#include "daemon/assemble.h"
#include "daemon/blas_core.h"
#include "model/arena.h"
#include "model/gemm.h"
#include "model/kernels.h"
#include "model/rng.h"
#include "model/row_weights.h"
#include "pipeline/decode.h"
#include "tests/bench/figure.h"
#include "tests/bench/measure.h"

enum { CHUNK = 512, POSITIONS = 10, CORRELATED_MAX = 1 << 20, TRUTHS = 1 << 18 };

// The relevant item of a slate, by the slate's time and items: a slate does not know its request.
struct truth {
    uint64_t key, relevant; // hash of the item's id
};

// Where in its slate the relevant item stands.
enum { TOP, LOW, PLACES };

// A click's weight and position.
struct weighed {
    float weight, position;
};

struct bench {
    struct trainer trainer;
    struct evaluator *clicks, *relevant[PLACES];
    struct columns judging[PLACES]; // of those evaluators: no part of the model's state
    struct truth *truths;           // open addressing, key 0 is free
    size_t judged, unknown;
    struct example *examples[PLACES];
    const struct column *state, *user, *linear; // of row weights; NULL when all weights are 1
    struct weighed *weighed;
    size_t n_weighed;
    double shown[POSITIONS + 1]; // items by position
};

// ---- The truth.

static uint64_t key_start(int64_t ts_ms)
{
    return rng_key((uint64_t)ts_ms, 1);
}

// The order of items plays no part.
static uint64_t key_add(uint64_t key, uint64_t item)
{
    return key + rng_key(item, 2);
}

static struct truth *truth_at(const struct bench *b, uint64_t key)
{
    size_t i = key % TRUTHS;
    while (b->truths[i].key != 0 && b->truths[i].key != key)
        i = (i + 1) % TRUTHS;
    return &b->truths[i];
}

static uint64_t item_hash(const cJSON *item)
{
    const char *name = cJSON_GetStringValue(cJSON_GetObjectItem(item, "item_id"));
    if (!name)
        die("truth: an item without item_id");
    return id_of_text(name, strlen(name)).hash;
}

static void truth_add(struct bench *b, const char *line)
{
    const cJSON *item;
    cJSON *record = cJSON_Parse(line);
    uint64_t key = key_start((int64_t)cJSON_GetNumberValue(cJSON_GetObjectItem(record, "ts")));
    uint64_t relevant = 0;
    cJSON_ArrayForEach(item, cJSON_GetObjectItem(record, "items"))
    {
        key = key_add(key, item_hash(item));
        if (cJSON_GetNumberValue(cJSON_GetObjectItem(item, "relevant")) > 0)
            relevant = item_hash(item);
    }
    cJSON_Delete(record);
    *truth_at(b, key) = (struct truth){key, relevant};
}

// All of a .zst file, terminated by a zero.
static char *file_read(const char *path)
{
    FILE *in = fopen(path, "rb");
    ZSTD_DStream *stream = ZSTD_createDStream();
    char packed[1 << 16], *text = NULL;
    size_t size = 0, used = 0;
    if (!in || !stream)
        die(path);
    for (size_t n; (n = fread(packed, 1, sizeof packed, in)) > 0;) {
        ZSTD_inBuffer from = {packed, n, 0};
        while (from.pos < from.size) {
            if (size - used < 2 * sizeof packed) {
                size = 2 * size + 4 * sizeof packed;
                text = realloc(text, size);
                if (!text)
                    die("out of memory");
            }
            ZSTD_outBuffer to = {text, size - 1, used};
            if (ZSTD_isError(ZSTD_decompressStream(stream, &to, &from)))
                die("truth: not zstd");
            used = to.pos;
        }
    }
    ZSTD_freeDStream(stream);
    fclose(in);
    if (!text)
        die("truth: empty");
    text[used] = 0;
    return text;
}

static void truths_read(struct bench *b, const char *path)
{
    char *text = file_read(path), *rest = text;
    size_t n = 0;
    b->truths = memory_for(TRUTHS, sizeof *b->truths);
    for (char *line; (line = strsep(&rest, "\n")) && n < TRUTHS / 2;)
        if (*line) {
            truth_add(b, line);
            n++;
        }
    free(text);
}

// ---- Judging.

static void slates_judge(void *arg, int n, const struct slate *slates, const float *scores)
{
    struct bench *b = arg;
    const struct rows *rows = &b->trainer.rows;
    int taken[PLACES] = {0};
    (void)scores;
    for (int i = 0; i < n; i++) {
        const struct slate *slate = &slates[i];
        uint64_t key = key_start(slate->ts_ms);
        int64_t relevant = -1;
        int place = TOP;
        if (slate->kind != SLATE_CLOSED || slate->repeated)
            continue;
        for (int k = 0; k < slate->n_items; k++)
            key = key_add(key, id_table_row(&rows->items, slate->items[k].item)->hash);
        const struct truth *truth = truth_at(b, key);
        for (int k = 0; k < slate->n_items; k++) {
            const int position = slate->items[k].position;
            if (id_table_row(&rows->items, slate->items[k].item)->hash == truth->relevant) {
                relevant = slate->items[k].item;
                place = position <= POSITIONS / 2 ? TOP : LOW;
            }
            if (position >= 1 && position <= POSITIONS)
                b->shown[position]++;
        }
        if (relevant < 0) {
            b->unknown++;
            continue;
        }
        struct example *example = &b->examples[place][taken[place]++];
        *example = (struct example){.user = slate->user,
                                    .item = (uint32_t)relevant,
                                    .ts_ms = slate->ts_ms,
                                    .positive = 1,
                                    .position = -1,
                                    .n_history = slate->n_history,
                                    .n_newest = slate->n_newest};
        memcpy(example->history, slate->history, sizeof slate->history);
    }
    for (int place = 0; place < PLACES; place++) {
        if (taken[place] > 0)
            evaluator_score(b->relevant[place], taken[place], b->examples[place], NULL);
        b->judged += (size_t)taken[place];
    }
}

// What the step that follows will make of a click, as model/row_weights.c does.
static float weight_of(const struct bench *b, const struct example *example)
{
    struct two_tower *model = b->trainer.rows.model;
    const struct two_tower_options *o = two_tower_options(model);
    if (!b->state)
        return 1;
    const struct row_weights_state *state = column_at(b->state, 0);
    float q[o->dim + 1], net = example->task == TASK_NONE ? 0 : o->objectives.value[example->task];
    if (b->user && net != 0) {
        two_tower_queries(model, 1, example, NULL, q);
        const struct debias_context context = {.surface = example->surface,
                                               .position = example->position,
                                               .propensity = example->propensity,
                                               .user = column_at(b->user, example->user),
                                               .q = q};
        net = debias_value(&o->debias, &state->debias, o->dim, column_at(b->linear, 0), &context,
                           net);
    }
    if (o->debias.seed_form)
        return net;
    const float usual = debias_mean_of(&state->usual, 1, 0);
    return usual > 0 ? net / usual : 1;
}

static void clicks_judge(void *arg, int n, const struct example *examples, const float *features)
{
    struct bench *b = arg;
    evaluator_score(b->clicks, n, examples, features);
    for (int i = 0; i < n && b->n_weighed < CORRELATED_MAX; i++)
        if (examples[i].positive && examples[i].position > 0)
            b->weighed[b->n_weighed++] =
                (struct weighed){weight_of(b, &examples[i]), (float)examples[i].position};
}

// ---- Correlations. Items that were not clicked are counted, not listed: all weigh 0.

static int weight_compare(const void *a, const void *b)
{
    const float x = ((const struct weighed *)a)->weight, y = ((const struct weighed *)b)->weight;
    return (x > y) - (x < y);
}

struct moments {
    double n, x, y, xx, xy, yy;
};

static void moments_add(struct moments *m, double times, double x, double y)
{
    m->n += times;
    m->x += times * x;
    m->y += times * y;
    m->xx += times * x * x;
    m->xy += times * x * y;
    m->yy += times * y * y;
}

static double correlation(const struct moments *m)
{
    const double xx = m->xx - m->x * m->x / m->n, yy = m->yy - m->y * m->y / m->n;
    return xx > 1e-9 * m->xx && yy > 1e-9 * m->yy ? (m->xy - m->x * m->y / m->n) / sqrt(xx * yy)
                                                  : (double)NAN;
}

// silent[k]: items at position k that weigh 0, for k = 1..POSITIONS. Sorts the weights.
static double spearman(size_t n, struct weighed *list, const double *silent)
{
    double at[POSITIONS + 1] = {0}, rank[POSITIONS + 1], before = 0, quiet = 0;
    struct moments m = {0};
    size_t below = 0;
    for (size_t i = 0; i < n; i++)
        at[(int)list[i].position]++;
    for (int k = 1; k <= POSITIONS; k++) {
        quiet += silent[k];
        rank[k] = before + (at[k] + silent[k]) / 2;
        before += at[k] + silent[k];
    }
    qsort(list, n, sizeof *list, weight_compare);
    while (below < n && list[below].weight < 0)
        below++;
    for (size_t first = 0, end; first < n; first = end) {
        for (end = first; end < n && list[end].weight == list[first].weight; end++)
            ;
        const double place = (double)(first + end) / 2 + (list[first].weight >= 0 ? quiet : 0);
        for (size_t i = first; i < end; i++)
            moments_add(&m, 1, place, rank[(int)list[i].position]);
    }
    for (int k = 1; k <= POSITIONS; k++)
        moments_add(&m, silent[k], (double)below + quiet / 2, rank[k]);
    return correlation(&m);
}

// ---- The run.

static const struct column *column_named(const struct columns *s, const char *name)
{
    for (int i = 0; i < s->n; i++)
        if (strcmp(s->list[i]->name, name) == 0)
            return s->list[i];
    return NULL;
}

static void evaluators_open(struct bench *b, const struct config *c, int slates)
{
    struct evaluator_options options = {.sampling = 1,
                                        .popularity_half_life = c->eval_popularity_half_life,
                                        .chunk_max = b->trainer.chunk};
    b->weighed = memory_for(CORRELATED_MAX, sizeof *b->weighed);
    if (evaluator_open(&b->clicks, &b->trainer.columns, &b->trainer.rows, &options) < 0)
        die("out of memory");
    options.chunk_max = slates;
    for (int place = 0; place < PLACES; place++) {
        b->examples[place] = memory_for((size_t)slates, sizeof *b->examples[place]);
        if (columns_open(&b->judging[place], 0) < 0 ||
            evaluator_open(&b->relevant[place], &b->judging[place], &b->trainer.rows, &options) < 0)
            die("out of memory");
    }
    b->state = column_named(&b->trainer.columns, "weight.state");
    b->user = column_named(&b->trainer.columns, "weight.user");
    b->linear = column_named(&b->trainer.columns, "weight.linear");
    b->trainer.score = clicks_judge;
    b->trainer.score_slates = slates_judge;
    b->trainer.arg = b;
}

static void run(struct bench *b, const struct config *c)
{
    static char error[512];
    struct join_window windows[CONFIG_ENTRIES_MAX];
    struct source *s;
    if (assemble_source(c, true, &s, error, sizeof error) < 0)
        die(error);
    const int n = s->n_partitions;
    const struct cutter_options cutting = assemble_cutter(c, SLICE_CANONICAL);
    struct trainer_options t = assemble_trainer(c, n, windows);
    // Slates are judged whether something learns from them or not.
    if (t.slates == 0) {
        t.slates = 8 * t.chunk;
        t.slate_batch = t.model.objectives.slates = c->slates_batch;
    }
    int64_t *first = memory_for(3 * (size_t)n, sizeof *first), *stop = first + n;
    int64_t *time_max = first + 2 * n;
    for (int p = 0; p < n; p++)
        time_max[p] = INT64_MIN;
    struct cutter *cutter;
    if (s->ops->bounds(s, first, stop) < 0 || s->ops->start(s, first, stop) < 0)
        die(s->error);
    if (trainer_open(&b->trainer, &t) < 0 ||
        cutter_open(&cutter, s, &cutting,
                    &(struct cutter_position){.next = first, .time_max_ms = time_max}) < 0)
        die("out of memory");
    evaluators_open(b, c, t.slates);
    for (bool last = false; !last;) {
        struct slice *slice;
        const int rc = cutter_next(cutter, (struct cutter_clock){0}, 100, &slice);
        if (rc < 0)
            die(cutter_error(cutter));
        if (rc == 0)
            continue;
        last = slice->last;
        trainer_apply(&b->trainer, slice);
        cutter_give(cutter, slice);
    }
    trainer_finish(&b->trainer);
    cutter_close(cutter);
    s->ops->close(s);
    free(first);
}

static void report_json(struct bench *b)
{
    const struct evaluation top = evaluator_total(b->relevant[TOP]);
    const struct evaluation low = evaluator_total(b->relevant[LOW]);
    figure_print(true, &(struct figure){.stage = "relevant item in the first 10 of all",
                                        .unit = "recall",
                                        .ours = (top.recall_10 + low.recall_10) / (top.n + low.n),
                                        .detail = true});
    figure_print(true, &(struct figure){.stage = "relevant item in the first 100 of all",
                                        .unit = "recall",
                                        .ours = (top.recall_100 + low.recall_100) / (top.n + low.n),
                                        .detail = true});
}

static void report(struct bench *b)
{
    const struct evaluation top = evaluator_total(b->relevant[TOP]);
    const struct evaluation low = evaluator_total(b->relevant[LOW]);
    const struct evaluation clicked = evaluator_total(b->clicks);
    const double none[POSITIONS + 1] = {0};
    double silent[POSITIONS + 1], mass[POSITIONS + 1] = {0}, sum = 0, mean = 0, off = 0;
    struct moments m = {0};
    memcpy(silent, b->shown, sizeof silent);
    for (size_t i = 0; i < b->n_weighed; i++) {
        const struct weighed *w = &b->weighed[i];
        silent[(int)w->position]--;
        mass[(int)w->position] += w->weight;
        sum += w->weight;
        moments_add(&m, 1, w->weight, w->position);
    }
    for (int k = 1; k <= POSITIONS; k++) {
        mass[k] /= b->shown[k];
        mean += mass[k] / POSITIONS;
        moments_add(&m, silent[k], 0, k);
    }
    for (int k = 1; k <= POSITIONS; k++)
        off = fmax(off, fabs(mass[k] / mean - 1));
    printf("slates=%zu unknown=%zu clicks=%.0f", b->judged, b->unknown, clicked.n);
    printf(" recall@10=%.4f recall@100=%.4f", (top.recall_10 + low.recall_10) / (top.n + low.n),
           (top.recall_100 + low.recall_100) / (top.n + low.n));
    printf(" top@100=%.4f low@100=%.4f", top.recall_100 / top.n, low.recall_100 / low.n);
    printf(" clicks_recall@10=%.4f clicks_recall@100=%.4f", clicked.recall_10 / clicked.n,
           clicked.recall_100 / clicked.n);
    printf(" spearman_clicks=%.3f", spearman(b->n_weighed, b->weighed, none));
    printf(" spearman=%.3f pearson=%.3f", spearman(b->n_weighed, b->weighed, silent),
           correlation(&m));
    printf(" mass_off=%.3f weight=%.3f", off, sum / (double)b->n_weighed);
    if (b->state) {
        const struct row_weights_state *state = column_at(b->state, 0);
        const float *theta = state->debias.theta[0];
        double worst = 0;
        for (int k = 1; k <= POSITIONS && theta[k] > 0; k++) {
            printf("%s%.3f", k == 1 ? " curve=" : ",", (double)theta[k] * k);
            worst = fmax(worst, fabs((double)theta[k] * k - 1));
        }
        if (theta[1] > 0)
            printf(" curve_off=%.3f", worst);
    }
    putchar('\n');
}

int main(int argc, char **argv)
{
    blas_core_correct(argv); // may start the program anew, with the same arguments
    const bool json = figures_as_json(&argc, argv);
    static char memory[CONFIG_MEMORY];
    struct arena arena = {memory, sizeof memory, 0};
    struct config config;
    struct config_problems problems = {0};
    struct bench b = {0};
    char recorded[4096] = "", truth[4128];
    if (argc < 2 && getenv("TWOTOWER_DATA"))
        snprintf(recorded, sizeof recorded, "%s/ml1m-slates", getenv("TWOTOWER_DATA"));
    const char *directory = argc > 1 ? argv[1] : recorded;
    snprintf(truth, sizeof truth, "%s/truth.jsonl.zst", directory);
    if (access(truth, R_OK) < 0) {
        printf("skip truth: no recorded stream with its truth in '%s'\n", directory);
        return argc > 1;
    }
    gemm_init();
    kernels_init(NULL);
    config_init(&config, &arena);
    config_set(&config, "source.type", "file", "bench", &problems);
    config_set(&config, "source.path", directory, "bench", &problems);
    // Clicks of a simulated slate come with it: no click is learned before its slate is judged.
    config_set(&config, "join.window", "1s", "bench", &problems);
    for (int i = 2; i < argc; i++)
        config_set_pair(&config, argv[i], "bench", &problems);
    if (config.eval_chunk == 0)
        config.eval_chunk = CHUNK;
    if (problems.n || config_check(&config, &problems) < 0) {
        config_problems_print(&problems, stderr);
        return 78;
    }
    truths_read(&b, truth);
    run(&b, &config);
    if (json)
        report_json(&b);
    else
        report(&b);
    evaluator_close(b.clicks);
    for (int place = 0; place < PLACES; place++) {
        evaluator_close(b.relevant[place]);
        columns_close(&b.judging[place]);
        free(b.examples[place]);
    }
    trainer_close(&b.trainer);
    free(b.truths);
    free(b.weighed);
    return 0;
}
