// SPDX-License-Identifier: Apache-2.0
//
// `twotower eval`: a recorded stream, once, in time order, predicted before it is learned. The
// protocol is pipeline/evaluate.h's: chunks of 10,000 examples, a quarter of each scored, every
// item id of the stream in the corpus.
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "daemon/assemble.h"
#include "daemon/clock.h"
#include "daemon/command.h"
#include "daemon/log.h"
#include "model/kernels.h"

enum { CHUNK = 10000 };
static const double SAMPLING = 0.25;

// Every item id of the stream, in the order of appearance.
struct corpus {
    struct columns columns;
    struct id_table ids;
    struct id *list;
    size_t n;
    uint64_t engagements;
};

struct evaluating {
    struct trainer trainer;
    struct evaluator *evaluator;
    double marked; // thread CPU seconds when learning began
    double train;  // CPU seconds in learning steps
    double loss;
    uint64_t steps, skipped;
    double examples;
    struct objective_report terms[OBJECTIVES]; // sums over the steps
    double slates, guard;
    uint64_t slate_steps;
    struct evaluation half; // as of half of the stream's engagements
    uint64_t half_at;
};

static void score(void *arg, int n, const struct example *examples, const float *features)
{
    struct evaluating *e = arg;
    evaluator_score(e->evaluator, n, examples, features);
    if (e->half.n == 0 && trainer_state(&e->trainer)->examples >= e->half_at)
        e->half = evaluator_total(e->evaluator);
    e->marked = clock_s(CLOCK_THREAD_CPUTIME_ID);
}

static void score_slates(void *arg, int n, const struct slate *slates, const float *scores)
{
    struct evaluating *e = arg;
    evaluator_score_slates(e->evaluator, n, slates, scores);
    e->marked = clock_s(CLOCK_THREAD_CPUTIME_ID);
}

static void slate_step(void *arg, const struct slate_report *report)
{
    struct evaluating *e = arg;
    const double now = clock_s(CLOCK_THREAD_CPUTIME_ID);
    e->train += now - e->marked;
    e->marked = now;
    e->skipped += report->skipped;
    e->slates += report->slates;
    e->guard += report->guard * report->slates;
    for (int t = 0; t < OBJECTIVES && !report->skipped; t++) {
        e->terms[t].loss += report->term[t].loss;
        e->terms[t].n += report->term[t].n;
        e->terms[t].query_norm += report->term[t].query_norm;
        e->terms[t].item_norm += report->term[t].item_norm;
    }
    e->slate_steps++;
}

static void step(void *arg, const struct step_report *report)
{
    struct evaluating *e = arg;
    const double now = clock_s(CLOCK_THREAD_CPUTIME_ID);
    e->train += now - e->marked;
    e->marked = now;
    e->steps++;
    e->skipped += report->skipped;
    if (report->replayed || report->skipped) // a loss that is not a number would stay
        return;
    e->loss += report->loss;
    e->examples += report->examples;
}

// Runs the whole source through see. 0 or -errno with the cutter's sentence.
static int stream_each(struct source *source, const struct config *c,
                       int (*see)(void *, const struct slice *), void *arg, char *error,
                       size_t error_size)
{
    const int n = source->n_partitions;
    int64_t *first = calloc((size_t)n * 3, sizeof *first);
    if (!first)
        return -ENOMEM;
    int64_t *stop = first + n, *time_max = first + 2 * n;
    struct cutter_options options = assemble_cutter(c, SLICE_CANONICAL);
    struct cutter *cutter = NULL;
    int rc = source->ops->bounds(source, first, stop);
    if (rc == 0)
        rc = source->ops->start(source, first, stop);
    if (rc < 0) {
        snprintf(error, error_size, "%s", source->error);
        free(first);
        return rc;
    }
    for (int p = 0; p < n; p++)
        time_max[p] = INT64_MIN;
    rc = cutter_open(&cutter, source, &options,
                     &(struct cutter_position){.next = first, .time_max_ms = time_max});
    for (bool last = false; rc >= 0 && !last;) {
        struct slice *slice;
        rc = cutter_next(cutter, 0, 1000, &slice);
        if (rc < 0)
            snprintf(error, error_size, "%s", cutter_error(cutter));
        if (rc <= 0)
            continue;
        last = slice->last;
        rc = see(arg, slice);
        cutter_give(cutter, slice);
    }
    cutter_close(cutter);
    free(first);
    return rc < 0 ? rc : 0;
}

static int corpus_see(void *arg, const struct slice *slice)
{
    struct corpus *corpus = arg;
    for (int i = 0; i < slice->n_events; i++) {
        const struct event *e = slice->events[i].event;
        if (e->topic != TOPIC_IMPRESSIONS && e->topic != TOPIC_ENGAGEMENTS)
            continue;
        corpus->engagements += e->topic == TOPIC_ENGAGEMENTS;
        for (int k = 0; k < e->n_items; k++) {
            bool created;
            id_table_see(&corpus->ids, &e->items[k].item, e->ts_ms, &created);
        }
    }
    return 0;
}

static int corpus_list(struct corpus *corpus)
{
    corpus->n = corpus->ids.row.n;
    corpus->list = calloc(corpus->n + 1, sizeof *corpus->list);
    if (!corpus->list)
        return -ENOMEM;
    for (uint32_t row = 0; row < corpus->n; row++)
        corpus->list[row] = id_table_id(&corpus->ids, row);
    return 0;
}

static int apply(void *arg, const struct slice *slice)
{
    struct evaluating *e = arg;
    trainer_apply(&e->trainer, slice);
    return 0;
}

static double share(double part, double whole)
{
    return whole > 0 ? part / whole : 0;
}

// What became of everything that came in, by topic: the identity of pipeline/join.h, to be checked
// by others. Ends the JSON object.
static void outcomes_print(const struct join_counts *c)
{
    printf(", \"outcomes\": {");
    for (int t = 0; t < TOPICS; t++) {
        printf("%s\"%s\": {\"in\": %" PRIu64, t ? ", " : "", topic_names[t], c->in[t]);
        for (int o = 0; o < OUTCOMES; o++)
            printf(", \"%s\": %" PRIu64, outcome_names[o], c->out[t][o]);
        printf(", \"pending\": %" PRIu64 "}", c->pending[t]);
    }
    puts("}}");
}

// One figure of the report, in the order of print.
struct figure {
    const char *name, *format;
    double value;
};

static void figure_print(const struct figure *f, bool json)
{
    if (json)
        printf(", \"%s\": ", f->name);
    else
        printf("%-24s ", f->name);
    printf(f->format, f->value);
    if (!json)
        putchar('\n');
}

static void report(const struct config *c, const struct evaluating *e, double total, bool json)
{
    const struct evaluation all = evaluator_total(e->evaluator), *half = &e->half;
    const struct join_counts *counts = join_counts(&e->trainer.join);
    uint64_t in = 0, rejected = 0, joined = 0;
    for (int t = 0; t < TOPICS; t++) {
        in += counts->in[t];
        rejected += counts->out[t][REJECTED];
        joined += counts->out[t][JOINED];
    }
    const struct figure figures[] = {
        {"examples", "%.0f", (double)trainer_state(&e->trainer)->examples},
        {"scored", "%.0f", all.n},
        {"recall@10", "%.4f", share(all.recall_10, all.n)},
        {"recall@100", "%.4f", share(all.recall_100, all.n)},
        {"ndcg@10", "%.4f", share(all.ndcg_10, all.n)},
        {"logloss", "%.4f", share(all.log_loss, all.n)},
        {"popularity_recall@10", "%.4f", share(all.popularity_recall_10, all.n)},
        {"popularity_recall@100", "%.4f", share(all.popularity_recall_100, all.n)},
        {"second_half_recall@10", "%.4f", share(all.recall_10 - half->recall_10, all.n - half->n)},
        {"second_half_recall@100", "%.4f",
         share(all.recall_100 - half->recall_100, all.n - half->n)},
        {"recall@1", "%.4f", share(all.recall_1, all.n)},
        {"recall@5", "%.4f", share(all.recall_5, all.n)},
        {"recall@50", "%.4f", share(all.recall_50, all.n)},
        {"tail_recall@100", "%.4f", share(all.tail_recall_100, all.tail_n)},
        {"tail_share", "%.4f", share(all.tail_n, all.n)},
        {"training_loss", "%.4f", share(e->loss, e->examples)},
        {"steps", "%.0f", (double)e->steps},
        {"steps_skipped", "%.0f", (double)e->skipped},
        {"examples_per_second", "%.0f", share(e->examples, e->train)},
        {"cpu_seconds_train", "%.3f", e->train},
        {"cpu_seconds_total", "%.3f", total},
        {"events", "%.0f", (double)in},
        {"joined", "%.0f", (double)joined},
        {"rejected", "%.0f", (double)rejected},
        {"balanced", "%.0f", join_balanced(&e->trainer.join)},
        {"items", "%.0f", (double)id_table_state(&e->trainer.rows.items)->live},
        {"users", "%.0f", (double)id_table_state(&e->trainer.rows.users)->live},
    };
    // Only where slates were read.
    const struct figure slates[] = {
        {"slates", "%.0f", e->slates},
        {"overlap@5", "%.4f", share(all.overlap_5, all.overlap_5_n)},
        {"overlap@10", "%.4f", share(all.overlap_10, all.overlap_10_n)},
        {"corpus_overlap@10", "%.4f", share(all.corpus_overlap_10, all.corpus_overlap_10_n)},
        {"rank_correlation", "%.4f", share(all.rank_correlation, all.rank_correlation_n)},
        {"guard", "%.4f", share(e->guard, e->slates)},
    };
    if (json)
        printf("{\"model\": \"%s\", \"dim\": %d, \"batch\": %d, \"kernels\": \"%s\"",
               config_word("model.type", c->model_type), c->model_dim, c->model_batch,
               kernels->name);
    for (size_t i = 0; i < sizeof figures / sizeof *figures; i++)
        figure_print(&figures[i], json);
    for (size_t i = 0; i < sizeof slates / sizeof *slates && e->slates > 0; i++)
        figure_print(&slates[i], json);
    for (int t = 0; t < OBJECTIVES && e->slates > 0; t++) {
        const struct objective_report *term = &e->terms[t];
        char names[3][64];
        snprintf(names[0], sizeof names[0], "%s_loss", objective_names[t]);
        snprintf(names[1], sizeof names[1], "%s_query_norm", objective_names[t]);
        snprintf(names[2], sizeof names[2], "%s_item_norm", objective_names[t]);
        const struct figure of_term[] = {
            {names[0], "%.4f", share(term->loss, term->n)},
            {names[1], "%.4f", share(term->query_norm, (double)e->slate_steps)},
            {names[2], "%.4f", share(term->item_norm, (double)e->slate_steps)},
        };
        for (int i = 0; i < 3 && term->n > 0; i++)
            figure_print(&of_term[i], json);
    }
    if (json)
        outcomes_print(counts);
}

int cmd_eval(const struct config *config, const struct command_line *line)
{
    struct config c = *config;
    struct join_window windows[CONFIG_ENTRIES_MAX];
    struct source *source = NULL;
    struct corpus corpus = {0};
    struct evaluating e = {0};
    char error[1024] = "out of memory";
    int status = EX_OK;
    // The protocol's chunk and share, unless the configuration asks for others.
    if (c.eval_chunk == 0)
        c.eval_chunk = CHUNK;
    if (!config_given(config, "eval.sampling"))
        c.eval_sampling = SAMPLING;
    if (c.source_type == CONFIG_SOURCE_BUILTIN && c.source_requests == 0)
        return command_fail(line, EX_USAGE,
                            "a stream without end: give --events DIR, or source.requests");

    // Once for the ids, once to learn.
    int rc = assemble_source(&c, true, &source, error, sizeof error);
    if (rc == 0)
        rc = columns_open(&corpus.columns, 0);
    if (rc == 0)
        rc = id_table_open(
            &corpus.ids, &corpus.columns,
            &(struct id_table_options){.names = {"corpus.id", "corpus.table", "corpus.sighting"},
                                       .heap_names = {"corpus.text", "corpus.free"},
                                       .rows_max = (size_t)c.tables_items_max,
                                       .admit = 1});
    if (rc == 0)
        rc = stream_each(source, &c, corpus_see, &corpus, error, sizeof error);
    if (rc == 0)
        rc = corpus_list(&corpus);
    if (rc == 0) {
        struct trainer_options options = assemble_trainer(&c, source->n_partitions, windows);
        rc = trainer_open(&e.trainer, &options);
    }
    if (rc == 0)
        rc = evaluator_open(
            &e.evaluator, &e.trainer.columns, &e.trainer.rows,
            &(struct evaluator_options){.sampling = c.eval_sampling,
                                        .popularity_half_life = c.eval_popularity_half_life,
                                        .chunk_max = c.eval_chunk,
                                        .corpus = corpus.list,
                                        .corpus_n = corpus.n});
    if (rc == 0) {
        e.trainer.score = score;
        e.trainer.step = step;
        e.trainer.score_slates = score_slates;
        e.trainer.slate_step = slate_step;
        e.trainer.arg = &e;
        e.half_at = corpus.engagements / 2;
        const double begun = clock_s(CLOCK_PROCESS_CPUTIME_ID);
        rc = stream_each(source, &c, apply, &e, error, sizeof error);
        trainer_finish(&e.trainer);
        const double total = clock_s(CLOCK_PROCESS_CPUTIME_ID) - begun;
        if (rc == 0) {
            report(&c, &e, total, command_value(line, "json"));
            status = join_balanced(&e.trainer.join) ? EX_OK : EX_SOFTWARE;
        }
    }
    if (rc < 0)
        status = command_fail(line, command_status(rc), "%s", error);
    evaluator_close(e.evaluator);
    trainer_close(&e.trainer);
    free(corpus.list);
    id_table_close(&corpus.ids);
    columns_close(&corpus.columns);
    if (source)
        source->ops->close(source);
    return status;
}
