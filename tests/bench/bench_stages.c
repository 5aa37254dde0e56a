// SPDX-License-Identifier: Apache-2.0
//
// Where the time goes between a record and a learned example: CPU time of each stage on a recorded
// stream, each run including the ones before it, so that differences are the stages.
//
//     bench_stages [--json] [DIR [batch]]
//
// DIR is $TWOTOWER_DATA/ml1m when it is not given; without either there is nothing to do.
//
// Prints ns per event for reading, decoding, ordering and joining; examples per CPU-second of the
// trainer; and the share of it that sgemm alone needs for the same matrix products.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "daemon/assemble.h"
#include "daemon/blas_core.h"
#include "model/arena.h"
#include "model/gemm.h"
#include "model/kernels.h"
#include "tests/bench/figure.h"
#include "tests/bench/measure.h"

enum stage { STAGE_READ, STAGE_DECODE, STAGE_CUT, STAGE_JOIN, STAGE_TRAIN, STAGES };

static const char *const stage_names[STAGES] = {"read", "decode", "cut", "join", "train"};

struct bench {
    const struct config *config;
    struct trainer trainer;
    uint64_t events, examples, steps;
    double candidates;
    double marked, learning;
};

static struct source *source_start(const struct config *c, int64_t **ends)
{
    static char error[512];
    struct source *s;
    if (assemble_source(c, true, &s, error, sizeof error) < 0)
        die(error);
    const size_t n = (size_t)s->n_partitions;
    *ends = calloc(2 * n, sizeof **ends);
    if (!*ends || s->ops->bounds(s, *ends + n, *ends) < 0 || s->ops->start(s, *ends + n, *ends) < 0)
        die(s->error);
    return s;
}

static void read_all(struct bench *b, bool decoding)
{
    int64_t *ends;
    struct source *s = source_start(b->config, &ends);
    struct decoder *decoder;
    struct event_memory memory = {0};
    if (decoder_open(&decoder) < 0)
        die("out of memory");
    for (int p = 0; p < s->n_partitions; p++) {
        struct record records[512];
        for (int n; (n = s->ops->read(s, p, 512, records)) > 0;) {
            for (int i = 0; decoding && i < n; i++) {
                struct event event;
                decode(decoder, s->partitions[p].topic, &records[i], &memory, &event);
            }
            event_memory_reset(&memory);
            b->events += (uint64_t)n;
        }
    }
    event_memory_close(&memory);
    decoder_close(decoder);
    s->ops->close(s);
    free(ends);
}

static void score(void *arg, int n, const struct example *examples, const float *features)
{
    struct bench *b = arg;
    (void)n, (void)examples, (void)features;
    b->marked = clock_s(CLOCK_PROCESS_CPUTIME_ID);
}

static void step(void *arg, const struct step_report *report)
{
    struct bench *b = arg;
    const double now = clock_s(CLOCK_PROCESS_CPUTIME_ID);
    b->learning += now - b->marked;
    b->marked = now;
    if (report->replayed)
        return; // its time counts, its examples do not
    b->steps++;
    b->examples += (uint64_t)report->examples;
    b->candidates += report->candidates;
}

static void cut_all(struct bench *b, bool joining)
{
    int64_t *ends;
    struct join_window windows[CONFIG_ENTRIES_MAX];
    struct source *s = source_start(b->config, &ends);
    const int n = s->n_partitions;
    const struct cutter_options options = assemble_cutter(b->config, SLICE_CANONICAL);
    const struct trainer_options t = assemble_trainer(b->config, n, windows);
    int64_t *time_max = calloc((size_t)n, sizeof *time_max);
    struct cutter *cutter;
    for (int p = 0; p < n; p++)
        time_max[p] = INT64_MIN;
    if (cutter_open(&cutter, s, &options,
                    &(struct cutter_position){.next = ends + n, .time_max_ms = time_max}) < 0 ||
        trainer_open(&b->trainer, &t) < 0)
        die("out of memory");
    b->trainer.score = score;
    b->trainer.step = step;
    b->trainer.arg = b;
    for (bool last = false; !last;) {
        struct slice *slice;
        const int rc = cutter_next(cutter, (struct cutter_clock){0}, 100, &slice);
        if (rc < 0)
            die(cutter_error(cutter));
        if (rc == 0)
            continue;
        last = slice->last;
        b->events += (uint64_t)slice->n_events;
        if (joining)
            trainer_apply(&b->trainer, slice);
        cutter_give(cutter, slice);
    }
    if (joining)
        trainer_finish(&b->trainer);
    trainer_close(&b->trainer);
    cutter_close(cutter);
    s->ops->close(s);
    free(time_max);
    free(ends);
}

// The matrix products of one step of the default model, and nothing else.
static double gemm_seconds(int B, int C, int d, uint64_t steps)
{
    const size_t floats =
        (size_t)B * C + 2 * (size_t)C * d + 2 * (size_t)B * d * 4 + 6 * (size_t)d * d;
    float *memory = calloc(floats, sizeof *memory);
    if (!memory)
        die("out of memory");
    float *L = memory, *V = L + (size_t)B * C, *dV = V + (size_t)C * d, *Q = dV + (size_t)C * d;
    float *dQ = Q + (size_t)B * d, *X = dQ + (size_t)B * d, *dX = X + (size_t)B * 3 * d;
    float *A = dX + (size_t)B * 3 * d, *dA = A + 3 * (size_t)d * d;
    const double begun = clock_s(CLOCK_PROCESS_CPUTIME_ID);
    for (uint64_t i = 0; i < steps; i++) {
        gemm_nn(B, d, 3 * d, X, A, Q);
        gemm_nt(B, C, d, Q, V, L);
        gemm_nn(B, d, C, L, V, dQ);
        gemm_tn(C, d, B, L, Q, dV);
        gemm_tn(3 * d, d, B, X, dQ, dA);
        gemm_nt(B, 3 * d, d, dQ, A, dX);
    }
    const double seconds = clock_s(CLOCK_PROCESS_CPUTIME_ID) - begun;
    free(memory);
    return seconds;
}

int main(int argc, char **argv)
{
    blas_core_correct(argv); // may start the program anew, with the same arguments
    const bool json = figures_as_json(&argc, argv);
    static char memory[CONFIG_MEMORY];
    struct arena arena = {memory, sizeof memory, 0};
    struct config config;
    struct config_problems problems = {0};
    char stage_name[96], reference[96], extra[96];
    char recorded[4096] = "";
    if (argc < 2 && getenv("TWOTOWER_DATA"))
        snprintf(recorded, sizeof recorded, "%s/ml1m", getenv("TWOTOWER_DATA"));
    const char *directory = argc > 1 ? argv[1] : recorded;
    if (access(directory, R_OK) < 0) {
        printf("skip stages: no recorded stream in '%s'\n", directory);
        return argc > 1;
    }
    gemm_init();
    kernels_init(NULL);
    config_init(&config, &arena);
    config_set(&config, "source.type", "file", "bench", &problems);
    config_set(&config, "source.path", directory, "bench", &problems);
    if (argc > 2)
        config_set(&config, "model.batch", argv[2], "bench", &problems);
    if (problems.n) {
        config_problems_print(&problems, stderr);
        return 78;
    }
    double seconds[STAGES] = {0};
    uint64_t events = 0;
    struct bench b = {.config = &config};
    for (int stage = 0; stage < STAGES; stage++) {
        if (stage == STAGE_JOIN)
            continue; // learning is inside: told apart by the step hook
        b.events = 0;
        const double begun = clock_s(CLOCK_PROCESS_CPUTIME_ID);
        if (stage < STAGE_CUT)
            read_all(&b, stage == STAGE_DECODE);
        else
            cut_all(&b, stage == STAGE_TRAIN);
        seconds[stage] = clock_s(CLOCK_PROCESS_CPUTIME_ID) - begun;
        events = b.events;
    }
    seconds[STAGE_JOIN] = seconds[STAGE_TRAIN] - b.learning;
    if (!json)
        printf("machine: %s, core %s, kernels %s; batch %d, dim %d\n", gemm_library(), gemm_core(),
               kernels->name, config.model_batch, config.model_dim);
    double before = 0;
    for (int stage = 0; stage < STAGE_TRAIN; stage++) {
        figure_print(json,
                     &(struct figure){.stage = stage_names[stage],
                                      .unit = "ns per event",
                                      .ours = 1e9 * (seconds[stage] - before) / (double)events,
                                      .detail = true});
        before = seconds[stage];
    }
    figure_print(json, &(struct figure){.stage = "decode + cut + join, from files",
                                        .unit = "ns per event",
                                        .ours = 1e9 * (seconds[STAGE_JOIN] - seconds[STAGE_READ]) /
                                                (double)events});
    const double C = b.candidates / (double)b.steps;
    const double gemm = gemm_seconds(config.model_batch, (int)C, config.model_dim, b.steps);
    snprintf(stage_name, sizeof stage_name, "trainer, default model, d = %d, batch %d",
             config.model_dim, config.model_batch);
    snprintf(reference, sizeof reference, "sgemm alone, %.0f candidates", C);
    snprintf(extra, sizeof extra, "\"examples_per_event\":%.3f",
             (double)b.examples / (double)events);
    figure_print(json, &(struct figure){.stage = stage_name,
                                        .unit = "examples per CPU-second",
                                        .ours = (double)b.examples / b.learning,
                                        .reference = reference,
                                        .theirs = (double)b.examples / gemm,
                                        .ratio = gemm / b.learning,
                                        .extra = extra});
    return 0;
}
