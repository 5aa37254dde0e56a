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
#include "daemon/step_sums.h"
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
    struct step_sums sums;
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
    step_sums_add_slates(&e->sums, report);
}

static void step(void *arg, const struct step_report *report)
{
    struct evaluating *e = arg;
    const double now = clock_s(CLOCK_THREAD_CPUTIME_ID);
    e->train += now - e->marked;
    e->marked = now;
    step_sums_add(&e->sums, report);
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
        rc = cutter_next(cutter, (struct cutter_clock){0}, 1000, &slice);
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

// One figure of the report, in the order of print.
struct figure {
    const char *name, *format;
    double value;
    bool brief; // part of the table, not of --json alone
};

static void figure_print(const struct figure *f, bool json)
{
    if (!json && !f->brief)
        return;
    if (json)
        printf(", \"%s\": ", f->name);
    else
        printf("%-24s ", f->name);
    printf(f->format, f->value);
    if (!json)
        putchar('\n');
}

static void figures_print(size_t n, const struct figure *figures, bool json)
{
    for (size_t i = 0; i < n; i++)
        figure_print(&figures[i], json);
}

static void terms_print(const struct step_sums *sums, bool json)
{
    for (int t = 0; t < OBJECTIVES; t++) {
        const struct objective_report *term = &sums->term[t];
        char names[3][64];
        if (term->n == 0)
            continue;
        snprintf(names[0], sizeof names[0], "%s_loss", objective_names[t]);
        snprintf(names[1], sizeof names[1], "%s_query_norm", objective_names[t]);
        snprintf(names[2], sizeof names[2], "%s_item_norm", objective_names[t]);
        const struct figure figures[] = {
            {names[0], "%.4f", term->loss / term->n, t != OBJECTIVE_RETRIEVAL},
            {names[1], "%.6g", term->query_norm / sums->term_steps[t], false},
            {names[2], "%.6g", term->item_norm / sums->term_steps[t], false},
        };
        figures_print(sizeof figures / sizeof *figures, figures, json);
    }
}

// Only where slates were read.
static void slates_print(const struct evaluating *e, bool json)
{
    const struct slate_evaluation all = evaluator_slates_total(e->evaluator);
    const struct step_sums *sums = &e->sums;
    const struct figure figures[] = {
        {"slates", "%.0f", (double)sums->slates, true},
        {"slates_unscored", "%.0f", (double)sums->unscored, false},
        {"slates_evaluated", "%.0f", all.n, false},
        {"overlap@5", "%.4f", share(all.overlap_5, all.overlap_5_n), false},
        {"overlap@10", "%.4f", share(all.overlap_10, all.overlap_10_n), true},
        {"corpus_overlap@10", "%.4f", share(all.corpus_overlap_10, all.corpus_overlap_10_n), true},
        {"rank_correlation", "%.4f", share(all.rank_correlation, all.rank_correlation_n), true},
        {"guard", "%.4f", share(sums->guard, sums->guarded), true},
        {"policy_sample_size", "%.4f", share(sums->sample_size, sums->sampled), false},
    };
    if (sums->slates > 0)
        figures_print(sizeof figures / sizeof *figures, figures, json);
}

// ---- What only JSON has room for: members of the report's object.

static void groups_print(const char *name, int n, const struct evaluation_group *groups,
                         const char *const *names)
{
    printf(", \"%s\": {", name);
    for (int k = 0; k < n; k++)
        printf("%s\"%s\": {\"scored\": %.0f, \"recall@100\": %.4f}", k ? ", " : "", names[k],
               groups[k].n, share(groups[k].hits, groups[k].n));
    putchar('}');
}

static void calibration_print(const char *name, int n, const struct calibration *cells,
                              const char *const *names)
{
    printf("\"%s\": {", name);
    for (int k = 0; k < n; k++)
        printf("%s\"%s\": {\"items\": %.0f, \"expected\": %.6f, \"observed\": %.6f}", k ? ", " : "",
               names[k], cells[k].n, share(cells[k].expected, cells[k].n),
               share(cells[k].observed, cells[k].n));
    putchar('}');
}

static void calibrations_print(const struct evaluating *e)
{
    static const char *const names[EXPECTATIONS] = {
        [EXPECTED_CONTEXT] = "context", [EXPECTED_RANKER] = "ranker"};
    const struct slate_evaluation all = evaluator_slates_total(e->evaluator);
    for (int by = 0; by < EXPECTATIONS; by++) {
        if (!two_tower_expects(e->trainer.rows.model, (enum expectation)by))
            continue;
        printf(", \"calibration_%s\": {", names[by]);
        calibration_print("position", BY_POSITION, all.position[by], evaluation_position_names);
        printf(", ");
        calibration_print("engagements", BY_ACTIVITY, all.activity[by], evaluation_activity_names);
        putchar('}');
    }
}

static void slate_outcomes_print(const uint64_t *counts)
{
    printf(", \"slate_outcomes\": {");
    for (int i = 0; i < SLATE_COUNTS; i++)
        printf("%s\"%s\": %" PRIu64, i ? ", " : "", slate_count_names[i], counts[i]);
    putchar('}');
}

// What became of everything that came in, by topic: the identity of pipeline/join.h, to be checked
// by others.
static void outcomes_print(const struct join_counts *c)
{
    printf(", \"outcomes\": {");
    for (int t = 0; t < TOPICS; t++) {
        printf("%s\"%s\": {\"in\": %" PRIu64, t ? ", " : "", topic_names[t], c->in[t]);
        for (int o = 0; o < OUTCOMES; o++)
            printf(", \"%s\": %" PRIu64, outcome_names[o], c->out[t][o]);
        printf(", \"pending\": %" PRIu64 "}", c->pending[t]);
    }
    putchar('}');
}

static void report(const struct config *c, const struct evaluating *e, double total, bool json)
{
    const struct evaluation all = evaluator_total(e->evaluator), *half = &e->half;
    const struct evaluation_groups groups = evaluator_groups(e->evaluator);
    const struct join_counts *counts = join_counts(&e->trainer.join);
    const struct step_sums *sums = &e->sums;
    uint64_t in = 0, rejected = 0, joined = 0;
    for (int t = 0; t < TOPICS; t++) {
        in += counts->in[t];
        rejected += counts->out[t][REJECTED];
        joined += counts->out[t][JOINED];
    }
    const struct figure figures[] = {
        {"examples", "%.0f", (double)trainer_state(&e->trainer)->examples, true},
        {"scored", "%.0f", all.n, true},
        {"recall@1", "%.4f", share(all.recall_1, all.n), false},
        {"recall@5", "%.4f", share(all.recall_5, all.n), false},
        {"recall@10", "%.4f", share(all.recall_10, all.n), true},
        {"recall@50", "%.4f", share(all.recall_50, all.n), false},
        {"recall@100", "%.4f", share(all.recall_100, all.n), true},
        {"ndcg@10", "%.4f", share(all.ndcg_10, all.n), true},
        {"logloss", "%.4f", share(all.log_loss, all.n), true},
        {"popularity_recall@10", "%.4f", share(all.popularity_recall_10, all.n), true},
        {"popularity_recall@100", "%.4f", share(all.popularity_recall_100, all.n), true},
        {"second_half_recall@10", "%.4f", share(all.recall_10 - half->recall_10, all.n - half->n),
         true},
        {"second_half_recall@100", "%.4f",
         share(all.recall_100 - half->recall_100, all.n - half->n), true},
        {"tail_recall@100", "%.4f", share(all.tail_recall_100, all.tail_n), true},
        {"tail_share", "%.4f", share(all.tail_n, all.n), false},
        {"training_loss", "%.4f", share(sums->loss, sums->examples), true},
        {"regularisation_loss", "%.6g", share(sums->l2, sums->measured), false},
        {"steps", "%.0f", (double)sums->steps, false},
        {"steps_skipped", "%.0f", (double)sums->skipped, true},
        {"negatives_masked", "%.0f", (double)sums->masked, false},
        {"examples_per_second", "%.0f", share(sums->examples, e->train), true},
        {"cpu_seconds_train", "%.3f", e->train, false},
        {"cpu_seconds_total", "%.3f", total, true},
        {"events", "%.0f", (double)in, true},
        {"joined", "%.0f", (double)joined, true},
        {"rejected", "%.0f", (double)rejected, true},
        {"balanced", "%.0f", join_balanced(&e->trainer.join), true},
        {"items", "%.0f", (double)id_table_state(&e->trainer.rows.items)->live, true},
        {"users", "%.0f", (double)id_table_state(&e->trainer.rows.users)->live, true},
    };
    if (json)
        printf("{\"model\": \"%s\", \"dim\": %d, \"batch\": %d, \"kernels\": \"%s\"",
               config_word("model.type", c->model_type), c->model_dim, c->model_batch,
               kernels->name);
    figures_print(sizeof figures / sizeof *figures, figures, json);
    for (int k = 0; k < BATCH_METRICS; k++)
        figure_print(&(struct figure){batch_metric_names[k], "%.4f",
                                      batch_metrics_mean(&sums->batch, (enum batch_metric)k),
                                      false},
                     json);
    slates_print(e, json);
    terms_print(sums, json);
    if (!json)
        return;
    groups_print("by_popularity", BY_POPULARITY, groups.popularity, evaluation_popularity_names);
    groups_print("by_age", BY_AGE, groups.age, evaluation_age_names);
    calibrations_print(e);
    if (join_slate_counts(&e->trainer.join))
        slate_outcomes_print(join_slate_counts(&e->trainer.join));
    outcomes_print(counts);
    puts("}");
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
