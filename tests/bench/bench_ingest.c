// SPDX-License-Identifier: Apache-2.0
//
// From records to examples without learning: decode, slices, join.
//
//     bench_ingest [--json] [--events N | --kafka BROKERS PREFIX]
//
// Prints, by the CPU time of the thread: ns per event on a recorded stream ($TWOTOWER_DATA/ml1m);
// how that grows with events and users of the built-in stream, and how often memory is asked for
// meanwhile; how many bytes the join keeps for a pending impression. Half a minute. With --events
// only how it grows, up to N events: 100 million take about ten minutes.
//
// With --kafka, which tests/bench/broker.sh gives, instead, from topics PREFIX-impressions and
// PREFIX-engagements of a broker: to examples, beside a loop over librdkafka's consumer with the
// same settings that throws every message away; and the daemon's threads until they have caught up,
// beside learning alone. In turns, by CPU time and by the clock; the best of each counts.
#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/assemble.h"
#include "daemon/blas_core.h"
#include "daemon/job.h"
#include "daemon/log.h"
#include "model/arena.h"
#include "model/gemm.h"
#include "model/kernels.h"
#include "pipeline/kafka_conf.h"
#include "tests/bench/figure.h"
#include "tests/bench/measure.h"
#include "tests/support/allocations.h"

static bool json;

// A source whose reads are timed, so that making or fetching records is told from what is ours.

struct timed {
    struct source source; // first: the interface points here
    struct source *inner;
    struct source_ops ops;
    double read_s;
};

static struct source *inner_of(const struct source *s)
{
    return ((const struct timed *)s)->inner;
}

static int timed_bounds(struct source *s, int64_t *first, int64_t *end)
{
    return inner_of(s)->ops->bounds(inner_of(s), first, end);
}

static int timed_start(struct source *s, const int64_t *next, const int64_t *stop)
{
    return inner_of(s)->ops->start(inner_of(s), next, stop);
}

static int timed_read(struct source *s, int p, int max, struct record *records)
{
    const double begun = clock_s(CLOCK_THREAD_CPUTIME_ID);
    const int n = inner_of(s)->ops->read(inner_of(s), p, max, records);
    ((struct timed *)s)->read_s += clock_s(CLOCK_THREAD_CPUTIME_ID) - begun;
    return n;
}

static int64_t timed_position(const struct source *s, int p)
{
    return inner_of(s)->ops->position(inner_of(s), p);
}

static bool timed_at_end(const struct source *s, int p)
{
    return inner_of(s)->ops->at_end(inner_of(s), p);
}

static int timed_wait(struct source *s, int timeout_ms)
{
    const double begun = clock_s(CLOCK_THREAD_CPUTIME_ID);
    const int rc = inner_of(s)->ops->wait(inner_of(s), timeout_ms);
    ((struct timed *)s)->read_s += clock_s(CLOCK_THREAD_CPUTIME_ID) - begun;
    return rc;
}

static void timed_open(struct timed *t, struct source *inner)
{
    *t = (struct timed){
        .source = {.n_partitions = inner->n_partitions, .partitions = inner->partitions},
        .inner = inner,
        .ops = {.name = "timed",
                .keyed = inner->ops->keyed,
                .bounds = timed_bounds,
                .start = timed_start,
                .read = timed_read,
                .position = timed_position,
                .at_end = timed_at_end,
                .wait = timed_wait}};
    t->source.ops = &t->ops;
}

// Everything between records and learning.

struct ingest {
    struct timed source;
    struct cutter *cutter;
    struct columns columns;
    struct rows rows;
    struct join join;
    struct example example;
    int64_t *bounds; // per partition: first, end, and INT64_MIN
    uint64_t events, examples, slices;
    double cut_s, join_s;
    struct join_window windows[CONFIG_ENTRIES_MAX];
};

// As pipeline/trainer.c makes an example and remembers what it was about.
static void take(void *arg, const struct labelled *l)
{
    struct ingest *g = arg;
    if (!l->positive)
        return;
    struct history_walk walk = {
        .rows = g->example.history, .actions = g->example.actions, .gaps = g->example.gaps};
    g->example.user = l->user;
    g->example.item = l->item;
    g->example.n_history = (uint8_t)history_before(&g->rows.history, l->user, l->ts_ms,
                                                   &g->rows.items, g->rows.history.length, &walk);
    history_add(&g->rows.history, l->user,
                (struct history_entry){
                    .item = l->item,
                    .generation = id_table_row(&g->rows.items, l->item)->generation,
                    .actions = history_action(l->action),
                    .ts_ms = l->engaged_ms,
                });
    g->examples++;
}

static void take_slate(void *arg, const struct slate *slate, const float *scores,
                       const float *user_features)
{
    (void)arg, (void)slate, (void)scores, (void)user_features;
}

static void ingest_open(struct ingest *g, const struct config *c)
{
    static char error[512];
    struct source *source;
    if (assemble_source(c, true, &source, error, sizeof error) < 0)
        die(error);
    *g = (struct ingest){0};
    timed_open(&g->source, source);
    const size_t n = (size_t)source->n_partitions;
    g->bounds = calloc(3 * n, sizeof *g->bounds);
    if (!g->bounds || source->ops->bounds(source, g->bounds, g->bounds + n) < 0)
        die(source->error);
    for (size_t p = 0; p < n; p++)
        g->bounds[2 * n + p] = INT64_MIN;
    const struct cutter_options options = assemble_cutter(c, SLICE_CANONICAL);
    struct trainer_options t = assemble_trainer(c, (int)n, g->windows);
    t.join.slates = t.slates > 0;
    if (cutter_open(
            &g->cutter, &g->source.source, &options,
            &(struct cutter_position){.next = g->bounds, .time_max_ms = g->bounds + 2 * n}) < 0 ||
        columns_open(&g->columns, t.undo_bytes) < 0 ||
        rows_open(&g->rows, &g->columns, &t.rows, &t.model) < 0 ||
        join_open(&g->join, &g->columns, &t.join, &g->rows, take, g) < 0)
        die("out of memory");
    g->join.slate = take_slate;
}

static void ingest_start(struct ingest *g)
{
    struct source *source = g->source.inner;
    if (source->ops->start(source, g->bounds, g->bounds + source->n_partitions) < 0)
        die(source->error);
}

static void ingest_close(struct ingest *g)
{
    join_close(&g->join);
    rows_close(&g->rows);
    columns_close(&g->columns);
    cutter_close(g->cutter);
    g->source.inner->ops->close(g->source.inner);
    free(g->bounds);
}

// One slice; false after the last.
static bool ingest_slice(struct ingest *g)
{
    struct slice *slice;
    const double begun = clock_s(CLOCK_THREAD_CPUTIME_ID), read_s = g->source.read_s;
    const int rc = cutter_next(g->cutter, (struct cutter_clock){0}, 100, &slice);
    if (rc < 0)
        die(cutter_error(g->cutter));
    const double cut = clock_s(CLOCK_THREAD_CPUTIME_ID);
    g->cut_s += cut - begun - (g->source.read_s - read_s);
    if (rc == 0)
        return true;
    for (int i = 0; i < slice->n_events; i++) {
        const struct slice_event *e = &slice->events[i];
        join_advance(&g->join, e->mt_ms);
        join_push(&g->join, e->event);
    }
    const bool last = slice->last;
    g->events += (uint64_t)slice->n_events;
    g->slices++;
    cutter_give(g->cutter, slice);
    g->join_s += clock_s(CLOCK_THREAD_CPUTIME_ID) - cut;
    return !last;
}

static struct config *config_of(const char *const (*settings)[2])
{
    static char memory[CONFIG_MEMORY];
    static struct config config;
    static struct arena arena;
    struct config_problems problems = {0};
    arena = (struct arena){memory, sizeof memory, 0};
    config_init(&config, &arena);
    for (; (*settings)[0]; settings++)
        config_set(&config, (*settings)[0], (*settings)[1], "bench", &problems);
    if (problems.n) {
        config_problems_print(&problems, stderr);
        exit(78);
    }
    return &config;
}

// A recorded stream, several times: the best counts.
static void bench_file(void)
{
    enum { ROUNDS = 3 };
    char path[4096] = "";
    double cut = 1e9, join = 1e9;
    if (getenv("TWOTOWER_DATA"))
        snprintf(path, sizeof path, "%s/ml1m", getenv("TWOTOWER_DATA"));
    if (access(path, R_OK) < 0) {
        if (!json)
            printf("skip a recorded stream: TWOTOWER_DATA has no ml1m\n");
        return;
    }
    const char *const settings[][2] = {{"source.type", "file"}, {"source.path", path}, {0}};
    const struct config *c = config_of(settings);
    for (int i = 0; i < ROUNDS; i++) {
        struct ingest g;
        ingest_open(&g, c);
        ingest_start(&g);
        while (ingest_slice(&g))
            ;
        const double per = 1e9 / (double)g.events;
        cut = g.cut_s * per < cut ? g.cut_s * per : cut;
        join = g.join_s * per < join ? g.join_s * per : join;
        ingest_close(&g);
    }
    char extra[64];
    snprintf(extra, sizeof extra, "\"decode and cut\":%.0f,\"join\":%.0f", cut, join);
    figure_print(json, &(struct figure){.stage = "decode, cut and join, ml1m",
                                        .unit = "ns per event",
                                        .ours = cut + join,
                                        .ratio = cut + join,
                                        .goal = "<= 1200",
                                        .extra = extra});
}

// How the time of an event depends on how many there were and of how many users: over the last
// events of each stream, of the thread without the making of the records. And how often memory was
// asked for meanwhile. 100 requests a second fill the windows before the first of them.
static void bench_growth(uint64_t most)
{
    enum { LAST = 500000 };
    const struct {
        const char *users;
        uint64_t events;
    } streams[] = {{"10000", 1000000}, {"10000", most}, {"1000000", 2500000}};
    double first = 0;
    for (size_t i = 0; i < sizeof streams / sizeof *streams; i++) {
        const char *const settings[][2] = {{"source.type", "builtin"},
                                           {"source.users", streams[i].users},
                                           {"source.requests", "0"},
                                           {"source.requests_per_second", "100"},
                                           {0}};
        struct ingest g;
        ingest_open(&g, config_of(settings));
        ingest_start(&g);
        while (g.events < streams[i].events - LAST)
            ingest_slice(&g);
        const double cut = g.cut_s, join = g.join_s;
        const uint64_t events = g.events, slices = g.slices, before = allocations,
                       renewed = allocations_of_indexes;
        while (g.events < streams[i].events)
            ingest_slice(&g);
        const double per = 1e9 / (double)(g.events - events);
        const double ns = (g.cut_s + g.join_s - cut - join) * per;
        if (i == 0)
            first = ns;
        char stage[96], extra[96];
        snprintf(stage, sizeof stage, "decode, cut and join after %.1f M events of %s users",
                 (double)streams[i].events / 1e6, streams[i].users);
        snprintf(extra, sizeof extra,
                 "\"slices\":%" PRIu64 ",\"allocations\":%" PRIu64 ",\"renewed indexes\":%" PRIu64,
                 g.slices - slices, allocations - before, allocations_of_indexes - renewed);
        figure_print(json, &(struct figure){.stage = stage,
                                            .unit = "ns per event",
                                            .ours = ns,
                                            .reference = "after 1.0 M events of 10000 users",
                                            .theirs = first,
                                            .ratio = ns / first,
                                            .goal = i > 0 ? "<= 1.2" : NULL,
                                            .extra = extra});
        if (!json)
            printf("  %s\n", extra);
        ingest_close(&g);
    }
}

static size_t bytes_of(const struct ingest *g, const char *name)
{
    for (int i = 0; i < g->columns.n; i++)
        if (!strcmp(g->columns.list[i]->name, name))
            return g->columns.list[i]->n * g->columns.list[i]->unit;
    return 0;
}

// What the join keeps while no window has closed: every impression so far is in its list. With
// slates a ranker's scores are kept besides; the built-in one scores twelve items for ten that are
// shown, so a score is counted by itself.
static void bench_memory(void)
{
    enum { EVENTS = 300000 }; // 20 minutes
    static const char *const weights[] = {"0", "0.3"};
    double shown = 0;
    for (size_t i = 0; i < sizeof weights / sizeof *weights; i++) {
        const char *const settings[][2] = {{"source.type", "builtin"},
                                           {"source.requests", "0"},
                                           {"source.requests_per_second", "100"},
                                           {"distill.weight", weights[i]},
                                           {0}};
        const char *what = i == 0 ? "without slates" : "with the score of a ranker";
        struct ingest g;
        ingest_open(&g, config_of(settings));
        ingest_start(&g);
        while (g.events < EVENTS)
            ingest_slice(&g);
        const double n = (double)join_counts(&g.join)->in[TOPIC_IMPRESSIONS];
        const double lists =
            heap_fill(&g.join.items) * (double)g.join.items.granule.n_max * HEAP_GRANULE;
        const uint64_t *counts = join_slate_counts(&g.join);
        if (i == 0)
            shown = lists / n;
        const double item =
            counts ? shown + (lists - shown * n) / (double)counts[SCORES_KEPT] : shown;
        const double requests = (double)(bytes_of(&g, "join.session") + bytes_of(&g, "join.slate") +
                                         bytes_of(&g, "join.request_id")) /
                                n;
        char stage[64], extra[64];
        snprintf(stage, sizeof stage, "pending impression, %s", what);
        snprintf(extra, sizeof extra, "\"its share of its request\":%.1f", requests);
        figure_print(json, &(struct figure){.stage = stage,
                                            .unit = "bytes",
                                            .ours = item,
                                            .ratio = item,
                                            .goal = "<= 32",
                                            .extra = extra});
        ingest_close(&g);
    }
}

// The consumer's loop, and nothing else.

struct reading {
    uint64_t records;
    double cpu_s, wall_s;
};

static struct reading reading_begin(void)
{
    return (struct reading){.cpu_s = -clock_s(CLOCK_PROCESS_CPUTIME_ID),
                            .wall_s = -clock_s(CLOCK_MONOTONIC)};
}

static void reading_end(struct reading *r)
{
    r->cpu_s += clock_s(CLOCK_PROCESS_CPUTIME_ID);
    r->wall_s += clock_s(CLOCK_MONOTONIC);
}

static struct reading read_bare(const char *brokers, const struct source *like,
                                const int64_t *bounds)
{
    enum { BATCH = 1000 };
    rd_kafka_message_t *messages[BATCH];
    char error[512];
    rd_kafka_conf_t *conf;
    if (kafka_conf_build(&conf,
                         &(struct kafka_conf_options){.use = KAFKA_READS_OLD, .bootstrap = brokers},
                         error, sizeof error) < 0)
        die(error);
    rd_kafka_t *client = rd_kafka_new(RD_KAFKA_CONSUMER, conf, error, sizeof error);
    if (!client)
        die(error);
    rd_kafka_queue_t *queue = rd_kafka_queue_get_consumer(client);
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(like->n_partitions);
    int left = 0;
    for (int p = 0; p < like->n_partitions; p++) {
        rd_kafka_topic_partition_list_add(list, like->partitions[p].name,
                                          like->partitions[p].partition)
            ->offset = bounds[p];
        left++;
    }
    struct reading r = reading_begin();
    if (rd_kafka_assign(client, list))
        die("assign");
    while (left > 0) {
        const ssize_t n = rd_kafka_consume_batch_queue(queue, 100, messages, BATCH);
        for (ssize_t i = 0; i < n; i++) {
            if (messages[i]->err == RD_KAFKA_RESP_ERR__PARTITION_EOF)
                left--;
            else if (messages[i]->err)
                die(rd_kafka_message_errstr(messages[i]));
            else
                r.records++;
            rd_kafka_message_destroy(messages[i]);
        }
    }
    reading_end(&r);
    rd_kafka_topic_partition_list_destroy(list);
    rd_kafka_queue_destroy(queue);
    rd_kafka_destroy_flags(client, RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
    return r;
}

static struct reading read_ours(struct ingest *g)
{
    struct reading r = reading_begin();
    ingest_start(g);
    while (ingest_slice(g))
        ;
    reading_end(&r);
    r.records = cutter_counts(g->cutter).records;
    return r;
}

static double lesser(double a, double b)
{
    return a < b ? a : b;
}

static double greater(double a, double b)
{
    return a > b ? a : b;
}

// The rate of one run over that of the other. By the clock only two processors of our own tell
// something, one for the broker's share: hence the load.
static void compare(const char *stage, const char *reference, const char *unit, double ours,
                    double theirs, double ratio, const char *goal)
{
    double load = 0;
    getloadavg(&load, 1);
    char extra[32];
    snprintf(extra, sizeof extra, "\"load\":%.1f", load);
    figure_print(json, &(struct figure){.stage = stage,
                                        .unit = unit,
                                        .ours = ours,
                                        .reference = reference,
                                        .theirs = theirs,
                                        .ratio = ratio,
                                        .goal = *goal ? goal : NULL,
                                        .extra = extra});
}

static void bench_consumer(const struct config *c)
{
    enum { ROUNDS = 4 };
    double bare_cpu = 1e9, bare_wall = 1e9, cpu = 1e9, wall = 1e9;
    for (int i = 0; i < ROUNDS; i++) {
        struct ingest g;
        ingest_open(&g, c);
        const struct reading ours = read_ours(&g);
        const struct reading bare = read_bare(c->source_brokers, g.source.inner, g.bounds);
        if (bare.records != ours.records)
            die("the bare consumer has read other records");
        const double ns = 1e9 / (double)ours.records;
        if (!json)
            printf("  bare cpu %.0f, wall %.0f; ours cpu %.0f (source %.0f, decode and cut %.0f, "
                   "join %.0f), wall %.0f ns per record\n",
                   bare.cpu_s * ns, bare.wall_s * ns, ours.cpu_s * ns, g.source.read_s * ns,
                   g.cut_s * ns, g.join_s * ns, ours.wall_s * ns);
        ingest_close(&g);
        bare_cpu = lesser(bare_cpu, bare.cpu_s * ns);
        bare_wall = lesser(bare_wall, bare.wall_s * ns);
        cpu = lesser(cpu, ours.cpu_s * ns);
        wall = lesser(wall, ours.wall_s * ns);
    }
    compare("broker to examples, by the clock", "librdkafka's consumer alone", "ns per record",
            wall, bare_wall, bare_wall / wall, ">= 0.7");
    compare("broker to examples, CPU of the process", "librdkafka's consumer alone",
            "ns per record", cpu, bare_cpu, bare_cpu / cpu, "");
}

// Learning, told apart from the rest of the trainer's thread by its hooks.

struct learning {
    struct trainer trainer;
    struct cutter *cutter;
    double marked, seconds;
    uint64_t examples;
};

static void learning_score(void *arg, int n, const struct example *examples, const float *features)
{
    (void)n, (void)examples, (void)features;
    ((struct learning *)arg)->marked = clock_s(CLOCK_THREAD_CPUTIME_ID);
}

static void learning_step(void *arg, const struct step_report *report)
{
    struct learning *l = arg;
    const double now = clock_s(CLOCK_THREAD_CPUTIME_ID);
    l->seconds += now - l->marked;
    l->marked = now;
    if (!report->replayed)
        l->examples += (uint64_t)report->examples;
}

static double learn_alone(const struct config *c)
{
    static struct learning l;
    static struct join_window windows[CONFIG_ENTRIES_MAX];
    struct ingest g;
    ingest_open(&g, c);
    ingest_start(&g);
    const struct trainer_options t = assemble_trainer(c, g.source.inner->n_partitions, windows);
    l = (struct learning){0};
    if (trainer_open(&l.trainer, &t) < 0)
        die("out of memory");
    l.trainer.score = learning_score;
    l.trainer.step = learning_step;
    l.trainer.arg = &l;
    for (bool last = false; !last;) {
        struct slice *slice;
        const int rc = cutter_next(g.cutter, (struct cutter_clock){0}, 100, &slice);
        if (rc < 0)
            die(cutter_error(g.cutter));
        if (rc == 0)
            continue;
        last = slice->last;
        trainer_apply(&l.trainer, slice);
        cutter_give(g.cutter, slice);
    }
    trainer_finish(&l.trainer);
    trainer_close(&l.trainer);
    ingest_close(&g);
    return (double)l.examples / l.seconds;
}

// The daemon's three threads.

struct caught_up {
    double begun_s, wall_s, cpu_s;
    uint64_t examples, slices;
};

static void applied(void *arg, const struct trainer *t, const struct evaluator *e)
{
    struct caught_up *u = arg;
    (void)e;
    if (trainer_state(t)->slices == u->slices)
        return; // the end was drawn, after the last checkpoint
    u->slices = trainer_state(t)->slices;
    u->wall_s = clock_s(CLOCK_MONOTONIC) - u->begun_s;
    u->cpu_s = clock_s(CLOCK_THREAD_CPUTIME_ID);
    u->examples = trainer_state(t)->examples;
}

static struct caught_up run_job(struct config *c)
{
    char directory[] = "/tmp/bench_ingest.XXXXXX", error[1024];
    struct caught_up u = {0};
    struct config_problems problems = {0};
    struct source *source;
    struct job *job;
    char path[64];
    if (!mkdtemp(directory))
        die("no temporary directory");
    snprintf(path, sizeof path, "%s/state", directory);
    config_set(c, "state.dir", path, "bench", &problems);
    snprintf(path, sizeof path, "%s/snapshots", directory);
    config_set(c, "snapshot.dir", path, "bench", &problems);
    if (assemble_source(c, true, &source, error, sizeof error) < 0 ||
        job_open(&job, c, source,
                 &(struct job_options){.bounded = true, .applied = applied, .arg = &u}, error,
                 sizeof error) < 0)
        die(error);
    u.begun_s = clock_s(CLOCK_MONOTONIC);
    job_start(job);
    while (!job_wait(job, 1000))
        ;
    if (job_result(job) < 0)
        die(job_error(job));
    job_close(job);
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", directory);
    if (system(command) != 0)
        die(command);
    return u;
}

static void bench_job(struct config *c)
{
    enum { ROUNDS = 3 };
    double alone = 0, by_clock = 0, by_cpu = 0;
    for (int i = 0; i < ROUNDS; i++) {
        const struct caught_up u = run_job(c);
        const double rate = learn_alone(c);
        if (!json)
            printf("  learning alone %.0f examples per CPU-second; all of it %.0f by the clock, "
                   "%.0f by the CPU time of the trainer's thread\n",
                   rate, (double)u.examples / u.wall_s, (double)u.examples / u.cpu_s);
        alone = greater(alone, rate);
        by_clock = greater(by_clock, (double)u.examples / u.wall_s);
        by_cpu = greater(by_cpu, (double)u.examples / u.cpu_s);
    }
    compare("broker to model, until caught up, by the clock", "learning alone",
            "examples per second", by_clock, alone, by_clock / alone, ">= 0.8");
    compare("broker to model, CPU of the trainer's thread", "learning alone", "examples per second",
            by_cpu, alone, by_cpu / alone, "");
}

static void bench_kafka(const char *brokers, const char *prefix)
{
    char impressions[256], engagements[256];
    snprintf(impressions, sizeof impressions, "%s-impressions", prefix);
    snprintf(engagements, sizeof engagements, "%s-engagements", prefix);
    const char *const settings[][2] = {{"source.type", "kafka"},
                                       {"source.brokers", brokers},
                                       {"source.items", ""},
                                       {"source.ranker_scores", ""},
                                       {"source.impressions", impressions},
                                       {"source.engagements", engagements},
                                       {"eval.sampling", "0"},
                                       {0}};
    struct config *c = config_of(settings);
    bench_consumer(c);
    bench_job(c);
}

int main(int argc, char **argv)
{
    int i = 1;
    if (i < argc && !strcmp(argv[i], "--json")) {
        json = true;
        i++;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    blas_core_correct(argv);
    gemm_init();
    kernels_init(NULL);
    log_init(LOG_LEVEL_WARNING, LOG_FORMAT_TEXT, STDERR_FILENO);
    if (i + 2 < argc && !strcmp(argv[i], "--kafka")) {
        bench_kafka(argv[i + 1], argv[i + 2]);
        return 0;
    }
    if (i + 1 < argc && !strcmp(argv[i], "--events")) {
        bench_growth(strtoull(argv[i + 1], NULL, 10));
        return 0;
    }
    bench_file();
    bench_growth(3000000);
    bench_memory();
    return 0;
}
