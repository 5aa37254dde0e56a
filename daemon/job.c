// SPDX-License-Identifier: Apache-2.0
#include "daemon/job.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "daemon/assemble.h"
#include "daemon/clock.h"
#include "daemon/journal.h"
#include "daemon/letters.h"
#include "daemon/log.h"
#include "daemon/metrics.h"
#include "daemon/publish.h"
#include "daemon/state.h"
#include "daemon/step_sums.h"
#include "model/tables.h"
#include "model/value.h"
#include "pipeline/traffic.h"
#include "snapshot/catalog.h"

enum { QUEUE_SLICES = 8, WAIT_MS = 50, LAG_INTERVAL_MS = 1000 };
enum { MINUTE_MS = 60 * 1000 };

// What the writer is asked for.
enum work { WORK_NONE, WORK_CHECKPOINT, WORK_SNAPSHOT, WORK_FINAL };

// Who may touch what, while the threads run. job_open and job_close are alone.
struct job {
    // Read by all, changed by none.
    const struct config *config;
    struct job_options options;
    int n; // partitions
    int64_t *from;
    int64_t opened_ms;
    struct join_window windows[CONFIG_ENTRIES_MAX];
    pthread_t ingest, train, write;
    bool threads; // they were started
    struct engine *engine;

    // Anybody's, at any time.
    struct notify_worker workers[JOB_WORKERS];
    _Atomic bool stop, failed, ended, reading;
    _Atomic bool followed;   // all of options.recorded was applied
    _Atomic int64_t away_ms; // as the source last said
    struct journal journal;  // its header says who may call what

    // The ingest thread's. Others hand slices back with cutter_give, and tell how full the join is;
    // the names of the source's partitions are everybody's.
    struct source *source;
    struct cutter *cutter;
    struct slice_move *moves; // that are to be made when nothing recorded is left
    int n_moves;
    struct letters *letters; // NULL: dead letters are delivered nowhere

    // The trainer thread's. From cut_start until work is WORK_NONE again the writer sweeps the
    // columns.
    struct trainer trainer;
    struct evaluator *evaluator;
    struct traffic *traffic;
    double loss, step_begun_s, evaluate_s;
    int64_t first_example_ms;
    struct step_sums minute; // since the gauges of the steps were told last
    int64_t minute_ms;       // when that was; 0: not yet
    int rankers;             // versions whose names the metrics know

    // The writer thread's.
    struct catalog *snapshots;

    // The ingest thread's.
    int64_t *sliced; // the positions after the last slice, SOURCE_BEGIN before any
    int64_t lag_ms;  // when the lag is told without a slice

    pthread_mutex_t lock;   // around all that follows
    pthread_cond_t changed; // any of it
    int64_t *to;            // the ingest thread changes it, and alone may read it without the lock
    struct slice *queue[QUEUE_SLICES]; // ingest -> trainer
    int queue_first, queue_n;
    bool ingest_done;
    enum work work;                   // trainer -> writer, who sets it back to WORK_NONE
    int64_t *cut_next, *durable_next; // positions of the last cut, and of the last durable one
    // Monotonic: when a checkpoint and a snapshot were last tried, whatever came of it, and when a
    // checkpoint last became durable.
    int64_t checkpoint_ms, snapshot_ms, durable_ms;
    struct job_status status;
    // The end. Once result_there is seen under the lock, result and error stay as they are.
    bool result_there;
    int result;
    char error[2048];
};

__attribute__((format(printf, 3, 4))) static int fail(struct job *j, int rc, const char *format,
                                                      ...)
{
    va_list args;
    pthread_mutex_lock(&j->lock);
    if (!atomic_load(&j->failed)) { // the first failure is the one that is told
        va_start(args, format);
        vsnprintf(j->error, sizeof j->error, format, args);
        va_end(args);
        j->result = rc;
        atomic_store(&j->failed, true);
    }
    atomic_store(&j->stop, true);
    pthread_cond_broadcast(&j->changed);
    pthread_mutex_unlock(&j->lock);
    return rc;
}

const char *job_error(const struct job *j)
{
    return j->error;
}

struct notify_worker *job_workers(struct job *j)
{
    // In the middle of a slice the trainer may have to wait for the sweep of a cut, and that one
    // for the disk: the same patience as with the writer.
    if (atomic_load(&j->trainer.columns.waits))
        notify_beat(&j->workers[1]);
    return j->workers;
}

// Opening.

// Makes a directory, and its name durable, unless it is there.
static int directory_make(const char *path)
{
    char parent[4096];
    if (mkdir(path, 0750) < 0)
        return errno == EEXIST ? 0 : -errno;
    snprintf(parent, sizeof parent, "%s", path);
    const int fd = open(dirname(parent), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const int rc = fd < 0 || fsync(fd) < 0 ? -errno : 0;
    if (fd >= 0)
        close(fd);
    return rc;
}

static int directories_make(const char *path, char *error, size_t error_size)
{
    char part[4096];
    snprintf(part, sizeof part, "%s", path);
    for (char *slash = part + 1;; slash++) {
        if (*slash && *slash != '/')
            continue;
        const char end = *slash;
        *slash = 0;
        const int rc = directory_make(part);
        if (rc < 0) {
            snprintf(error, error_size, "%s: %s", part, strerror(-rc));
            return rc;
        }
        *slash = end;
        if (!end)
            return 0;
    }
}

static void score(void *arg, int n, const struct example *examples, const float *features)
{
    struct job *j = arg;
    const double begun = clock_s(CLOCK_THREAD_CPUTIME_ID);
    evaluator_score(j->evaluator, n, examples, features);
    j->evaluate_s += clock_s(CLOCK_THREAD_CPUTIME_ID) - begun;
    j->step_begun_s = clock_s(CLOCK_MONOTONIC);
}

static void step(void *arg, const struct step_report *report)
{
    struct job *j = arg;
    const double now = clock_s(CLOCK_MONOTONIC);
    metrics_observe(METRIC_STEP_DURATION, now - j->step_begun_s);
    j->step_begun_s = now;
    step_sums_add(&j->minute, report);
    if (report->skipped) {
        metrics_add(METRIC_STEPS_SKIPPED, 1);
        log_error("batch skipped", "reason=%s examples=%d", "a loss or gradient is not finite",
                  report->examples);
        return;
    }
    if (report->examples > 0 && !report->replayed)
        j->loss = report->loss / report->examples;
    if (j->first_example_ms == 0)
        j->first_example_ms = clock_ms(CLOCK_MONOTONIC);
    metrics_add(METRIC_STEPS, 1);
    metrics_add(METRIC_NEGATIVES_MASKED, report->masked);
    metrics_set(METRIC_LOSS, j->loss);
}

static void score_slates(void *arg, int n, const struct slate *slates, const float *scores)
{
    struct job *j = arg;
    const double begun = clock_s(CLOCK_THREAD_CPUTIME_ID);
    evaluator_score_slates(j->evaluator, n, slates, scores);
    j->evaluate_s += clock_s(CLOCK_THREAD_CPUTIME_ID) - begun;
    j->step_begun_s = clock_s(CLOCK_MONOTONIC);
}

static void slate_step(void *arg, const struct slate_report *report)
{
    struct job *j = arg;
    j->step_begun_s = clock_s(CLOCK_MONOTONIC);
    step_sums_add_slates(&j->minute, report);
    if (report->skipped) {
        metrics_add(METRIC_STEPS_SKIPPED, 1);
        log_error("batch skipped", "reason=%s slates=%d", "a loss or gradient is not finite",
                  report->slates);
        return;
    }
    metrics_add(METRIC_SLATE_STEPS, 1);
    metrics_add(METRIC_SLATES_LEARNED, (uint64_t)report->slates);
    metrics_add(METRIC_SLATES_UNSCORED, (uint64_t)report->unscored);
}

static void event_see(void *arg, const struct event *event)
{
    struct job *j = arg;
    traffic_see(j->traffic, event);
}

static int bounds_resolve(struct job *j, char *error, size_t error_size)
{
    int64_t *first = calloc((size_t)j->n * 2, sizeof *first);
    if (!first)
        return -ENOMEM;
    const int rc = j->source->ops->bounds(j->source, first, first + j->n);
    if (rc < 0)
        snprintf(error, error_size, "%s", j->source->error);
    for (int p = 0; rc == 0 && p < j->n; p++) {
        j->from[p] = j->options.from ? j->options.from[p] : first[p];
        j->to[p] = !j->options.bounded ? SOURCE_UNBOUNDED
                   : j->options.to     ? j->options.to[p]
                                       : first[j->n + p];
    }
    free(first);
    return rc;
}

// What a person lets partitions leave out.

static void move_add(struct job *j, int p, int64_t from, int64_t to)
{
    const struct source_partition *at = &j->source->partitions[p];
    j->moves[j->n_moves++] = (struct slice_move){p, from, to};
    log_warning("partition moved", "topic=%s partition=%d from=%" PRId64 " to=%" PRId64, at->name,
                at->partition, from, to);
}

// Slices that are recorded after the checkpoint and cannot be made again, because their records are
// gone. Nothing was derived of them that is not in the checkpoint.
static int recorded_forget(struct job *j, char *error, size_t error_size)
{
    if (!journal_recorded(&j->journal))
        return 0;
    log_warning("slices forgotten", "after=%" PRIu64 " to=%" PRIu64 " reason=%s",
                j->journal.stamp.slice, j->journal.recorded_last, "their records are gone");
    const int rc = journal_forget(&j->journal);
    if (rc < 0)
        snprintf(error, error_size, "%s", j->journal.error);
    return rc;
}

// Partitions that cannot be read from where the checkpoint has them, [first, end) being there.
static int gaps_decide(struct job *j, int64_t *next, const int64_t *first, const int64_t *end,
                       char *error, size_t error_size)
{
    int rc = 0;
    for (int p = 0; rc == 0 && p < j->n; p++) {
        const bool gap = next[p] >= 0 && next[p] < first[p] && j->options.allow_gap;
        const bool anew = next[p] > end[p] && j->options.accept_new_topic;
        if (!gap && !anew)
            continue;
        rc = recorded_forget(j, error, error_size);
        if (rc == 0)
            move_add(j, p, next[p], first[p]);
    }
    return rc;
}

static int skips_decide(struct job *j, const int64_t *next, const int64_t *end, char *error,
                        size_t error_size)
{
    for (int i = 0; i < j->options.n_skips; i++) {
        const struct job_skip *skip = &j->options.skips[i];
        const struct source_partition *at = &j->source->partitions[skip->partition];
        const int64_t *places = j->journal.recorded_next ? j->journal.recorded_next : next;
        const int64_t from = places[skip->partition];
        if (skip->to <= from || skip->to > end[skip->partition]) {
            snprintf(error, error_size,
                     "--skip: topic %s partition %d stands at offset %" PRId64
                     " of a log up to %" PRId64 ": offset %" PRId64 " does not lie between",
                     at->name, at->partition, from, end[skip->partition], skip->to);
            return -EINVAL;
        }
        move_add(j, skip->partition, from, skip->to);
    }
    return 0;
}

// Decides the moves, by what the logs have now. next: the checkpoint's positions; becomes where
// reading begins.
static int moves_decide(struct job *j, int64_t *next, char *error, size_t error_size)
{
    int64_t *first = calloc((size_t)j->n * 2, sizeof *first);
    j->moves = calloc((size_t)j->n * 2, sizeof *j->moves);
    int rc = first && j->moves ? 0 : -ENOMEM;
    if (rc == 0) {
        rc = j->source->ops->bounds(j->source, first, first + j->n);
        if (rc < 0)
            snprintf(error, error_size, "%s", j->source->error);
    }
    if (rc == 0)
        rc = gaps_decide(j, next, first, first + j->n, error, error_size);
    if (rc == 0)
        rc = skips_decide(j, next, first + j->n, error, error_size);
    // Where something is recorded reading gets there, else it begins there.
    for (int i = 0; rc == 0 && !journal_recorded(&j->journal) && i < j->n_moves; i++)
        next[j->moves[i].partition] = j->moves[i].to;
    free(first);
    return rc;
}

static int source_start(struct job *j, const int64_t *next, char *error, size_t error_size)
{
    // A bounded run that was done before has nothing left: the stop is where it stands.
    for (int p = 0; p < j->n; p++)
        if (j->to[p] != SOURCE_UNBOUNDED && j->to[p] < next[p])
            j->to[p] = next[p];
    const int rc = j->source->ops->start(j->source, next, j->to);
    if (rc < 0)
        snprintf(error, error_size, "%s%s", j->source->error,
                 rc == -ERANGE ? "; --allow-gap goes on behind what retention has removed, "
                                 "--accept-new-topic reads a topic that is shorter now from its "
                                 "begin"
                               : "");
    return rc;
}

static int reading_start(struct job *j, char *error, size_t error_size)
{
    int64_t *next = calloc((size_t)j->n * 3, sizeof *next);
    if (!next)
        return -ENOMEM;
    int64_t *time_max = next + j->n, *epoch = next + 2 * j->n;
    for (int p = 0; p < j->n; p++) {
        next[p] = trainer_position(&j->trainer, p)->next;
        time_max[p] = trainer_position(&j->trainer, p)->time_max_ms;
        epoch[p] = trainer_position(&j->trainer, p)->epoch;
        j->durable_next[p] = next[p];
    }
    struct cutter_options options =
        assemble_cutter(j->config, j->options.bounded || j->source->ops->wait == NULL ||
                                           j->config->source_type != CONFIG_SOURCE_KAFKA
                                       ? SLICE_CANONICAL
                                       : SLICE_LIVE);
    int rc = moves_decide(j, next, error, error_size);
    options.dead_letter = j->journal.dead_letter;
    options.dead_letters = (int64_t)dead_letter_size(j->journal.dead_letter);
    options.n_verdicts = j->journal.n_verdicts;
    options.verdicts = j->journal.verdicts;
    options.recorded_next = j->journal.recorded_next;
    if (j->journal.restored && options.tasks > 0) {
        options.values.n = options.tasks;
        memcpy(options.values.weight, two_tower_values(j->trainer.rows.model)->weight,
               sizeof options.values.weight);
    }
    memcpy(j->sliced, next, (size_t)j->n * sizeof *next);
    if (rc == 0)
        rc = source_start(j, next, error, error_size);
    if (rc == 0)
        rc = cutter_open(&j->cutter, j->source, &options,
                         &(struct cutter_position){next, time_max, j->journal.stamp.slice,
                                                   join_watermark(&j->trainer.join), epoch});
    if (rc == 0 && !journal_recorded(&j->journal) && j->n_moves > 0) {
        rc = cutter_move(j->cutter, j->n_moves, j->moves, true, j->to);
        j->n_moves = 0;
    }
    // Without a checkpoint they are not known to the cutter, and the first slice has them: recovery
    // from the log alone must not depend on what the file says by then.
    if (rc == 0)
        cutter_want_values(j->cutter, j->trainer.options.tasks.weight);
    free(next);
    return rc;
}

// Whether what is followed ends as a bounded stream does: the windows are closed, the last batch is
// learned. A slice that was asked for is learned and no more.
static bool followed_to_end(const struct job *j)
{
    return j->journal.recorded_ends && j->options.recorded_to == UINT64_MAX;
}

static int journal_begin(struct job *j, char *error, size_t error_size)
{
    int rc = directories_make(j->config->state_dir, error, error_size);
    if (rc == 0)
        rc = directories_make(j->config->snapshot_dir, error, error_size);
    if (rc == 0)
        rc = journal_open(&j->journal,
                          &(struct journal_options){.config = j->config,
                                                    .engine = j->engine,
                                                    .partitions = j->source->partitions,
                                                    .n_partitions = j->n,
                                                    .from = j->from,
                                                    .recorded = j->options.recorded,
                                                    .recorded_to = j->options.recorded_to},
                          &j->trainer, error, error_size);
    if (rc == 0)
        rc = catalog_open(&j->snapshots, NULL, j->config->snapshot_dir, error, error_size);
    if (rc == 0) {
        j->status.restored = j->journal.restored;
        j->status.checkpoint = j->journal.stamp.generation;
        // Nothing to follow, or it was followed before.
        if (j->options.recorded && !journal_recorded(&j->journal)) {
            atomic_store(&j->followed, true);
            atomic_store(&j->ended, followed_to_end(j));
        }
    }
    return rc;
}

int job_open(struct job **j_out, const struct config *c, struct source *source,
             const struct job_options *options, char *error, size_t error_size)
{
    struct job *j = calloc(1, sizeof *j);
    snprintf(error, error_size, "out of memory");
    if (!j) {
        source->ops->close(source);
        return -ENOMEM;
    }
    *j = (struct job){.config = c,
                      .options = *options,
                      .source = source,
                      .n = source->n_partitions,
                      .workers = {{.name = "ingest"}, {.name = "trainer"}, {.name = "writer"}},
                      .opened_ms = clock_ms(CLOCK_MONOTONIC)};
    pthread_mutex_init(&j->lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&j->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    j->checkpoint_ms = j->snapshot_ms = j->durable_ms = j->opened_ms;
    j->from = calloc((size_t)j->n, sizeof *j->from);
    j->to = calloc((size_t)j->n, sizeof *j->to);
    j->sliced = calloc((size_t)j->n, sizeof *j->sliced);
    j->cut_next = calloc((size_t)j->n, sizeof *j->cut_next);
    j->durable_next = calloc((size_t)j->n, sizeof *j->durable_next);
    int rc = j->from && j->to && j->sliced && j->cut_next && j->durable_next ? 0 : -ENOMEM;
    if (rc == 0)
        rc = engine_open(
            &j->engine,
            &(struct engine_options){.backend = c->snapshot_io == CONFIG_IO_URING    ? ENGINE_URING
                                                : c->snapshot_io == CONFIG_IO_PWRITE ? ENGINE_PWRITE
                                                                                     : ENGINE_AUTO},
            error, error_size);
    if (rc == 0) {
        const struct trainer_options t = assemble_trainer(c, j->n, j->windows);
        rc = trainer_open(&j->trainer, &t);
    }
    if (rc == 0)
        rc = evaluator_open(
            &j->evaluator, &j->trainer.columns, &j->trainer.rows,
            &(struct evaluator_options){.sampling = c->eval_sampling,
                                        .popularity_half_life = c->eval_popularity_half_life,
                                        .chunk_max = j->trainer.chunk});
    if (rc == 0)
        rc = traffic_open(&j->traffic, &j->trainer.rows.items);
    if (rc == 0)
        rc = bounds_resolve(j, error, error_size);
    if (rc == 0)
        rc = journal_begin(j, error, error_size);
    if (rc == 0 && *c->dead_letter_topic)
        rc = letters_open(&j->letters, c, j->journal.dead_letter, &j->journal.log,
                          j->journal.log.last > j->journal.stamp.slice ? j->journal.log.last
                                                                       : j->journal.stamp.slice,
                          error, error_size);
    if (rc == 0)
        rc = reading_start(j, error, error_size);
    if (rc < 0) {
        job_close(j);
        return rc;
    }
    j->trainer.score = score;
    j->trainer.score_slates = score_slates;
    j->trainer.step = step;
    j->trainer.slate_step = slate_step;
    j->trainer.event = event_see;
    j->trainer.arg = j;
    metrics_partitions(j->n, source->partitions);
    metrics_tasks(&j->trainer.options.tasks);
    metrics_io_backend(engine_backend(j->engine));
    if (*engine_reason(j->engine))
        log_warning("io_uring is not used", "reason=%s", engine_reason(j->engine));
    *j_out = j;
    return 0;
}

void job_close(struct job *j)
{
    if (!j)
        return;
    if (j->threads) {
        job_stop(j);
        pthread_join(j->ingest, NULL);
        pthread_join(j->train, NULL);
        pthread_join(j->write, NULL);
    }
    for (; j->queue_n > 0; j->queue_n--, j->queue_first++)
        cutter_give(j->cutter, j->queue[j->queue_first % QUEUE_SLICES]);
    cutter_close(j->cutter);
    letters_close(j->letters);
    journal_close(&j->journal);
    evaluator_close(j->evaluator);
    traffic_close(j->traffic);
    if (j->trainer.options.batch)
        trainer_close(&j->trainer);
    if (j->engine)
        engine_close(j->engine);
    if (j->snapshots)
        catalog_close(j->snapshots);
    if (j->source)
        j->source->ops->close(j->source);
    pthread_mutex_destroy(&j->lock);
    pthread_cond_destroy(&j->changed);
    free(j->moves);
    free(j->from);
    free(j->to);
    free(j->sliced);
    free(j->cut_next);
    free(j->durable_next);
    free(j);
}

// The ingest thread.

static void busy_tell(enum metric_stage stage, double seconds)
{
    metrics_put_of(METRIC_STAGE_BUSY, stage, (uint64_t)(seconds * 1e6));
}

static void queue_push(struct job *j, struct slice *slice)
{
    pthread_mutex_lock(&j->lock);
    while (j->queue_n == QUEUE_SLICES && !atomic_load(&j->failed)) {
        atomic_store(&j->workers[0].waits, true);
        pthread_cond_wait(&j->changed, &j->lock);
    }
    atomic_store(&j->workers[0].waits, false);
    if (atomic_load(&j->failed)) {
        cutter_give(j->cutter, slice);
    } else {
        j->queue[(j->queue_first + j->queue_n++) % QUEUE_SLICES] = slice;
        metrics_set(METRIC_QUEUE_SLICES, j->queue_n);
        pthread_cond_broadcast(&j->changed);
    }
    pthread_mutex_unlock(&j->lock);
}

// What a durable checkpoint lets go: the log before it, and the broker learns how far it is.
static int ingest_trim(struct job *j)
{
    const int rc = journal_trim(&j->journal);
    if (rc != 0 && j->source->ops->commit) {
        pthread_mutex_lock(&j->lock);
        j->source->ops->commit(j->source, j->durable_next, j->status.checkpoint);
        pthread_mutex_unlock(&j->lock);
    }
    return rc;
}

// How far the slices are behind the ends of the logs, as far as the source has heard of those. Once
// a second without any slice: an open transaction holds up every slice, and that is to be seen.
static void lag_tell(struct job *j, const struct slice *slice)
{
    const struct source_ops *ops = j->source->ops;
    const int64_t now_ms = clock_ms(CLOCK_MONOTONIC);
    if (slice)
        memcpy(j->sliced, slice->next, (size_t)j->n * sizeof *j->sliced);
    else if (now_ms < j->lag_ms)
        return;
    j->lag_ms = now_ms + LAG_INTERVAL_MS;
    for (int p = 0; ops->end && p < j->n && p < METRIC_PARTITIONS_MAX; p++) {
        const int64_t end = ops->end(j->source, p);
        if (end >= 0 && j->sliced[p] >= 0)
            metrics_set_of(METRIC_PARTITION_LAG, p,
                           end > j->sliced[p] ? (double)(end - j->sliced[p]) : 0);
        if (ops->held)
            metrics_set_of(METRIC_PARTITION_HELD, p, (double)ops->held(j->source, p));
    }
}

// Without any slice, too: it is when nothing comes that this matters.
static void away_tell(struct job *j)
{
    if (!j->source->ops->away_ms)
        return;
    const int64_t away_ms = j->source->ops->away_ms(j->source);
    atomic_store_explicit(&j->away_ms, away_ms, memory_order_relaxed);
    metrics_set(METRIC_SOURCE_AWAY, (double)away_ms / 1000);
}

// A slice of a log, made again. With options.recorded nothing follows the last of them.
static int slice_again(struct job *j, const struct slice_record *record, struct slice **slice)
{
    const bool followed = j->options.recorded && record->number == j->journal.recorded_last;
    int rc = cutter_recorded(j->cutter, record, j->to, slice);
    if (rc < 0)
        return fail(j, rc, "%s", cutter_error(j->cutter));
    (*slice)->last = followed && followed_to_end(j);
    rc = journal_taken(&j->journal, *slice);
    if (rc < 0) {
        cutter_give(j->cutter, *slice);
        return fail(j, rc, "%s", j->journal.error);
    }
    if (followed)
        atomic_store(&j->followed, true);
    return 1;
}

// The next slice: from the log while it has one, else cut now and logged; *seam when a bounded part
// ends with it and reading goes on. 1, 0 when there is none yet, or -errno with the failure told;
// then the slice is nobody's.
static int slice_next(struct job *j, struct slice **slice, bool *seam)
{
    const struct slice_record *record = journal_recorded(&j->journal);
    int rc = 0;
    if (record)
        return slice_again(j, record, slice);
    if (j->n_moves > 0)
        rc = cutter_move(j->cutter, j->n_moves, j->moves, false, j->to);
    j->n_moves = 0;
    if (rc == 0)
        rc = cutter_next(j->cutter,
                         (struct cutter_clock){clock_ms(CLOCK_MONOTONIC), clock_ms(CLOCK_REALTIME)},
                         WAIT_MS, slice);
    if (rc <= 0)
        return rc < 0 ? fail(j, rc, "%s", cutter_error(j->cutter)) : 0;
    *seam = (*slice)->last && j->options.then_live;
    (*slice)->last &= !*seam;
    rc = journal_append(&j->journal, *slice);
    if (rc < 0) {
        cutter_give(j->cutter, *slice);
        return fail(j, rc, "%s", j->journal.error);
    }
    return 1;
}

// The seam: everything up to here was bounded, from here on nothing is missed.
static int go_live(struct job *j, const struct slice *slice)
{
    for (int p = 0; p < j->n; p++)
        log_info("going live", "topic=%s partition=%d offset=%" PRId64,
                 j->source->partitions[p].name, j->source->partitions[p].partition, slice->next[p]);
    pthread_mutex_lock(&j->lock); // the trainer computes the progress from them
    for (int p = 0; p < j->n; p++)
        j->to[p] = SOURCE_UNBOUNDED;
    pthread_mutex_unlock(&j->lock);
    const int rc = j->source->ops->start(j->source, slice->next, j->to);
    if (rc < 0)
        return fail(j, rc, "%s", j->source->error);
    cutter_go_live(j->cutter);
    return 0;
}

// Whether the thread may stop: all that our own log has was applied again.
static bool ingest_caught_up(const struct job *j)
{
    return j->options.recorded || !journal_recorded(&j->journal);
}

// Nothing is read until dead letters are delivered again, and the process is not ready meanwhile.
static void full_wait(struct job *j)
{
    atomic_store(&j->reading, false);
    atomic_store(&j->workers[0].waits, true);
    nanosleep(&(struct timespec){.tv_nsec = WAIT_MS * 1000000}, NULL);
    atomic_store(&j->workers[0].waits, false);
}

static int ingest_one(struct job *j, bool *done)
{
    struct slice *slice = NULL;
    bool seam = false;
    if ((ingest_caught_up(j) && atomic_load(&j->stop)) || atomic_load(&j->followed)) {
        *done = true;
        return 0;
    }
    if (j->letters && letters_full(j->letters)) {
        full_wait(j);
        *done = atomic_load(&j->stop);
        return 0;
    }
    int rc = slice_next(j, &slice, &seam);
    if (rc < 0)
        return rc;
    if (ingest_caught_up(j) && !atomic_load_explicit(&j->reading, memory_order_relaxed))
        atomic_store(&j->reading, true);
    away_tell(j);
    if (rc == 0) {
        lag_tell(j, NULL);
        return 0;
    }
    const struct cutter_counts counts = cutter_counts(j->cutter);
    metrics_put_of(METRIC_RECORD_BYTES, 0, counts.bytes);
    for (enum topic t = 0; t < TOPICS; t++)
        metrics_put_of(METRIC_RECORDS_UNKEYED, t, counts.unkeyed[t]);
    busy_tell(BY_STAGE_INGEST, clock_s(CLOCK_THREAD_CPUTIME_ID));
    lag_tell(j, slice);
    if (slice_rejects(slice) > 0) {
        struct dead_letter *d = j->journal.dead_letter;
        if (j->letters)
            letters_logged(j->letters, slice->number, (uint64_t)slice->dead_letters);
        metrics_put_of(METRIC_DEAD_LETTER_BYTES, 0, dead_letter_size(d));
        metrics_put_of(METRIC_DEAD_LETTER_ROTATIONS, 0, dead_letter_rotations(d));
    }
    rc = seam ? go_live(j, slice) : 0;
    if (rc < 0) {
        cutter_give(j->cutter, slice);
        return rc;
    }
    *done = slice->last;
    if (*done)
        atomic_store(&j->ended, true);
    queue_push(j, slice);
    return 0;
}

static void *ingest_main(void *arg)
{
    struct job *j = arg;
    bool done = false;
    while (!done && !atomic_load(&j->failed)) {
        notify_beat(&j->workers[0]);
        if (ingest_one(j, &done) < 0)
            break;
        if (ingest_trim(j) < 0)
            log_warning("slice log not trimmed", "reason=%s", j->journal.error);
    }
    atomic_store(&j->workers[0].waits, true);
    pthread_mutex_lock(&j->lock);
    j->ingest_done = true;
    pthread_cond_broadcast(&j->changed);
    pthread_mutex_unlock(&j->lock);
    return NULL;
}

// The trainer thread.

static void counts_tell(const struct join_counts *c)
{
    for (int t = 0; t < TOPICS; t++) {
        metrics_put_of(METRIC_RECORDS, t, c->in[t]);
        metrics_set_of(METRIC_PENDING, t, (double)c->pending[t]);
        for (int o = 0; o < OUTCOMES; o++)
            metrics_put_of2(METRIC_OUTCOMES, t, o, c->out[t][o]);
        for (int r = 0; r < REJECTS; r++)
            metrics_put_of2(METRIC_RECORDS_REJECTED, t, r, c->rejected[t][r]);
        for (int r = 0; r < REFUSALS; r++)
            metrics_put_of2(METRIC_RECORDS_REFUSED, t, r, c->refused[t][r]);
    }
    metrics_put_of(METRIC_EXAMPLES, BY_EXAMPLE_POSITIVE, c->positives);
    metrics_put_of(METRIC_EXAMPLES, BY_EXAMPLE_NEGATIVE, c->negatives);
}

static double share(double part, double whole)
{
    return whole > 0 ? part / whole : 0;
}

static void quality_tell(const struct evaluation *w)
{
    if (w->n <= 0)
        return;
    metrics_set_of(METRIC_RECALL, BY_CUTOFF_1, w->recall_1 / w->n);
    metrics_set_of(METRIC_RECALL, BY_CUTOFF_5, w->recall_5 / w->n);
    metrics_set_of(METRIC_RECALL, BY_CUTOFF_10, w->recall_10 / w->n);
    metrics_set_of(METRIC_RECALL, BY_CUTOFF_50, w->recall_50 / w->n);
    metrics_set_of(METRIC_RECALL, BY_CUTOFF_100, w->recall_100 / w->n);
    metrics_set_of(METRIC_POPULARITY_RECALL, BY_CUTOFF_10, w->popularity_recall_10 / w->n);
    metrics_set_of(METRIC_POPULARITY_RECALL, BY_CUTOFF_100, w->popularity_recall_100 / w->n);
    metrics_set_of(METRIC_NDCG, BY_CUTOFF_10, w->ndcg_10 / w->n);
    metrics_set(METRIC_LOG_LOSS, w->log_loss / w->n);
    if (w->tail_n > 0)
        metrics_set_of(METRIC_TAIL_RECALL, BY_CUTOFF_100, w->tail_recall_100 / w->tail_n);
}

static void calibration_tell(enum metric expected, enum metric observed, int series,
                             const struct calibration *c)
{
    if (c->n <= 0)
        return;
    metrics_set_of(expected, series, c->expected / c->n);
    metrics_set_of(observed, series, c->observed / c->n);
}

static void slates_tell(const struct slate_evaluation *w)
{
    const struct {
        double sum, n;
        enum metric metric;
        int label;
    } figures[] = {
        {w->overlap_5, w->overlap_5_n, METRIC_OVERLAP, BY_CUTOFF_5},
        {w->overlap_10, w->overlap_10_n, METRIC_OVERLAP, BY_CUTOFF_10},
        {w->corpus_overlap_10, w->corpus_overlap_10_n, METRIC_CORPUS_OVERLAP, BY_CUTOFF_10},
        {w->rank_correlation, w->rank_correlation_n, METRIC_RANK_CORRELATION, 0},
    };
    for (size_t i = 0; i < sizeof figures / sizeof *figures; i++)
        if (figures[i].n > 0)
            metrics_set_of(figures[i].metric, figures[i].label, figures[i].sum / figures[i].n);
    for (int by = 0; by < EXPECTATIONS; by++) {
        for (int k = 0; k < BY_POSITION; k++)
            calibration_tell(METRIC_POSITION_EXPECTED, METRIC_POSITION_OBSERVED,
                             by * BY_POSITION + k, &w->position[by][k]);
        for (int k = 0; k < BY_ACTIVITY; k++)
            calibration_tell(METRIC_ACTIVITY_EXPECTED, METRIC_ACTIVITY_OBSERVED,
                             by * BY_ACTIVITY + k, &w->activity[by][k]);
    }
}

// What the guards think of the rankers, the proxy being number 0.
static void rankers_tell(struct job *j)
{
    const int known = (int)j->trainer.join.ranker.n;
    for (int i = 0; i <= known; i++) {
        const struct reward_guard *guard = two_tower_guard(j->trainer.rows.model, i);
        if (!guard || reward_guard_sample_size(guard) <= 0)
            continue;
        metrics_set_of(METRIC_GUARD, i,
                       reward_guard_scale(guard, &j->trainer.options.model.objectives.guard));
        metrics_set_of(METRIC_RANKER_CORRELATION, i, reward_guard_correlation(guard));
        metrics_set_of(METRIC_RANKER_SLATES, i, reward_guard_sample_size(guard));
    }
    for (; j->rankers <= known; j->rankers++) {
        const struct text name = join_ranker(&j->trainer.join, j->rankers);
        char text[ACTION_BYTES_MAX + 1];
        snprintf(text, sizeof text, "%.*s", (int)name.size, name.bytes);
        metrics_ranker(j->rankers, j->rankers == 0 ? "proxy" : text);
    }
}

// How old what the rankers teach is.
static void ranker_times_tell(const struct join *join)
{
    for (int i = 1; i <= (int)join->ranker.n; i++) {
        const struct ranker_times *times = join_ranker_times(join, i);
        if (!times)
            continue;
        metrics_set_of(METRIC_RANKER_NEWEST, i, (double)times->newest_ms / 1000);
        metrics_set_of(METRIC_RANKER_OLDEST, i, (double)times->oldest_ms / 1000);
    }
}

static void traffic_tell(const struct traffic_figures *f)
{
    for (int i = 0; i < TRAFFIC_FIELDS; i++)
        metrics_put_of(METRIC_FIELDS_DEFAULTED, i, f->defaulted[i]);
    for (int t = 0; t < TOPICS; t++)
        metrics_put_of(METRIC_FIELDS_REPEATED, t, f->repeated[t]);
    for (int t = 0; t < TOPICS; t++)
        for (int k = 0; k < TRAFFIC_KEYS; k++)
            if (!isnan(f->top_share[t][k]))
                metrics_set_of2(METRIC_HOT_KEY, t, k, f->top_share[t][k]);
    if (!isnan(f->exposure_gini))
        metrics_set(METRIC_EXPOSURE_GINI, f->exposure_gini);
}

// The first figures at once, those of a whole minute from then on.
static void minute_tell(struct job *j)
{
    const int64_t now = clock_ms(CLOCK_MONOTONIC);
    const bool due = j->minute_ms > 0 ? now - j->minute_ms >= MINUTE_MS
                                      : j->minute.steps + j->minute.slate_steps > 0;
    if (!due)
        return;
    step_sums_tell(&j->minute);
    j->minute = (struct step_sums){0};
    j->minute_ms = now;
}

static void table_tell(enum metric_table which, const struct id_table *t)
{
    const struct id_table_state *s = id_table_state(t);
    metrics_set_of(METRIC_TABLE_ROWS, which, (double)s->live);
    metrics_put_of(METRIC_TABLE_ADMITTED, which, s->admitted);
    metrics_put_of(METRIC_TABLE_EXPIRED, which, s->expired);
    metrics_put_of(METRIC_TABLE_REFUSED, which, s->refused_full);
}

// By the first word of the columns' names.
static void memory_tell(const struct columns *s)
{
    static const struct {
        const char *prefix;
        enum metric metric;
        int label;
    } parts[] = {
        {"item.", METRIC_TABLE_BYTES, BY_TABLE_ITEMS},
        {"user.", METRIC_TABLE_BYTES, BY_TABLE_USERS},
        {"join.", METRIC_JOIN_BYTES, 0},
    };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        size_t bytes = 0;
        for (int c = 0; c < s->n; c++)
            if (!strncmp(s->list[c]->name, parts[i].prefix, strlen(parts[i].prefix)))
                bytes += s->list[c]->n * s->list[c]->unit;
        metrics_set_of(parts[i].metric, parts[i].label, (double)bytes);
    }
}

static void status_tell(struct job *j)
{
    const struct trainer_state *state = trainer_state(&j->trainer);
    const struct join_counts *c = join_counts(&j->trainer.join);
    const struct evaluation window = evaluator_window(j->evaluator);
    const struct evaluation total = evaluator_total(j->evaluator);
    const struct slate_evaluation slates = evaluator_slates_window(j->evaluator);
    const int64_t watermark = join_watermark(&j->trainer.join);
    uint64_t in = 0, pending = 0, rejected = 0, settled = 0;
    for (int t = 0; t < TOPICS; t++) {
        in += c->in[t];
        pending += c->pending[t];
        rejected += c->out[t][REJECTED];
    }
    for (int o = 0; o < OUTCOMES; o++)
        settled += c->out[TOPIC_ENGAGEMENTS][o];
    counts_tell(c);
    for (int i = 0; i < SLATE_COUNTS && join_slate_counts(&j->trainer.join); i++)
        metrics_put_of(METRIC_SLATES, i, join_slate_counts(&j->trainer.join)[i]);
    quality_tell(&window);
    metrics_put_of(METRIC_EVALUATED, 0, (uint64_t)total.n);
    slates_tell(&slates);
    metrics_put_of(METRIC_SLATES_EVALUATED, 0, (uint64_t)evaluator_slates_total(j->evaluator).n);
    rankers_tell(j);
    ranker_times_tell(&j->trainer.join);
    traffic_tell(traffic_figures(j->traffic));
    minute_tell(j);
    memory_tell(&j->trainer.columns);
    busy_tell(BY_STAGE_TRAIN, clock_s(CLOCK_THREAD_CPUTIME_ID) - j->evaluate_s);
    busy_tell(BY_STAGE_EVALUATE, j->evaluate_s);
    table_tell(BY_TABLE_ITEMS, &j->trainer.rows.items);
    table_tell(BY_TABLE_USERS, &j->trainer.rows.users);
    metrics_add(METRIC_SLICES, 1);
    metrics_put_of(METRIC_RECORDS_SKIPPED, 0, state->skipped);
    if (state->event_time_ms > 0)
        metrics_set(METRIC_EVENT_TIME_LAG,
                    (double)(clock_ms(CLOCK_REALTIME) - state->event_time_ms) / 1000);
    if (watermark != INT64_MIN)
        metrics_set(METRIC_WATERMARK, (double)watermark / 1000);

    pthread_mutex_lock(&j->lock);
    struct job_status *s = &j->status;
    s->events = in;
    s->pending = pending;
    s->rejected = rejected;
    s->slices = state->slices;
    s->examples = state->examples;
    s->steps = tables_state(two_tower_tables(j->trainer.rows.model))->steps;
    s->joined_share = share((double)c->out[TOPIC_ENGAGEMENTS][JOINED], (double)settled);
    s->loss = j->loss;
    s->event_time_ms = state->event_time_ms;
    s->watermark_ms = watermark;
    s->window = window;
    s->total = total;
    if (j->first_example_ms)
        s->first_example_s = (double)(j->first_example_ms - j->opened_ms) / 1000;
    double read = 0, all = 0;
    for (int p = 0; p < j->n; p++) {
        if (j->to[p] == SOURCE_UNBOUNDED)
            continue;
        read += (double)(trainer_position(&j->trainer, p)->next - j->from[p]);
        all += (double)(j->to[p] - j->from[p]);
    }
    s->progress = share(read, all);
    if (all > 0)
        metrics_set(METRIC_REPLAY_PROGRESS, s->progress);
    pthread_mutex_unlock(&j->lock);
}

// What the tasks are worth from here on.
static void values_tell(const struct job *j)
{
    const struct value_tasks *tasks = &j->trainer.options.tasks;
    const struct model_values *values = two_tower_values(j->trainer.rows.model);
    char text[VALUE_TASKS_TEXT_SIZE];
    for (int t = 0; t < tasks->n; t++)
        metrics_set_of(METRIC_VALUE_WEIGHT, t, (double)values->weight[t]);
    metrics_set(METRIC_VALUE_WEIGHTS_SLICE, (double)values->since);
    log_info("values of tasks", "tasks=%s slice=%" PRIu64,
             value_tasks_text(tasks, values->weight, text), values->since);
}

// Hands a cut to the writer. Everything the trainer does for it is in here: its time is what
// training waits.
static void cut_start(struct job *j, enum work work)
{
    const double begun = clock_s(CLOCK_MONOTONIC);
    columns_cut(&j->trainer.columns);
    pthread_mutex_lock(&j->lock);
    for (int p = 0; p < j->n; p++)
        j->cut_next[p] = trainer_position(&j->trainer, p)->next;
    j->work = work;
    pthread_cond_broadcast(&j->changed);
    const double waited = (clock_s(CLOCK_MONOTONIC) - begun) * 1000;
    if (waited > j->status.wait_max_ms)
        j->status.wait_max_ms = waited;
    metrics_set(METRIC_TRAINER_WAIT_MAX, j->status.wait_max_ms / 1000);
    pthread_mutex_unlock(&j->lock);
}

static void writer_wait(struct job *j)
{
    pthread_mutex_lock(&j->lock);
    while (j->work != WORK_NONE)
        pthread_cond_wait(&j->changed, &j->lock);
    pthread_mutex_unlock(&j->lock);
}

static void cut_when_due(struct job *j)
{
    const int64_t now = clock_ms(CLOCK_MONOTONIC);
    pthread_mutex_lock(&j->lock);
    const bool snapshot = now - j->snapshot_ms >= j->config->snapshot_interval_ms;
    const bool checkpoint = now - j->checkpoint_ms >= j->config->checkpoint_interval_ms;
    const bool due = j->work == WORK_NONE && (snapshot || checkpoint);
    // What fails is tried again after an interval, not at once.
    if (due)
        j->checkpoint_ms = now;
    if (due && snapshot)
        j->snapshot_ms = now;
    pthread_mutex_unlock(&j->lock);
    if (due)
        cut_start(j, snapshot ? WORK_SNAPSHOT : WORK_CHECKPOINT);
}

// The next slice, or NULL when none comes any more.
static struct slice *queue_pop(struct job *j)
{
    struct slice *slice = NULL;
    pthread_mutex_lock(&j->lock);
    atomic_store(&j->workers[1].waits, true);
    while (j->queue_n == 0 && !j->ingest_done && !atomic_load(&j->failed))
        pthread_cond_wait(&j->changed, &j->lock);
    atomic_store(&j->workers[1].waits, false);
    if (j->queue_n > 0 && !atomic_load(&j->failed)) {
        slice = j->queue[j->queue_first];
        j->queue_first = (j->queue_first + 1) % QUEUE_SLICES;
        j->queue_n--;
        metrics_set(METRIC_QUEUE_SLICES, j->queue_n);
        pthread_cond_broadcast(&j->changed);
    }
    pthread_mutex_unlock(&j->lock);
    return slice;
}

static void balance_check(struct job *j)
{
    if (!join_balanced(&j->trainer.join))
        fail(j, -EPROTO, "events do not add up: in differs from what became of them");
}

static void *train_main(void *arg)
{
    struct job *j = arg;
    if (j->status.restored && j->trainer.options.model.tasks_named)
        values_tell(j);
    for (struct slice *slice; (slice = queue_pop(j));) {
        notify_beat(&j->workers[1]);
        const bool values = slice->values.n > 0;
        trainer_apply(&j->trainer, slice);
        cutter_give(j->cutter, slice);
        if (values)
            values_tell(j);
        status_tell(j);
        cutter_told_fill(j->cutter, join_fill(&j->trainer.join));
        if (j->options.applied)
            j->options.applied(j->options.arg, &j->trainer, j->evaluator);
        cut_when_due(j);
    }
    atomic_store(&j->workers[1].waits, true);
    balance_check(j);
    if (!atomic_load(&j->failed)) {
        // The last checkpoint is from before the end of the stream is drawn: a longer stream can go
        // on from there. The last snapshot is from after it.
        writer_wait(j);
        // A log that was followed to its end gives a snapshot of that instant.
        cut_start(j, atomic_load(&j->followed) && !atomic_load(&j->ended) ? WORK_SNAPSHOT
                                                                          : WORK_CHECKPOINT);
        writer_wait(j);
        if (atomic_load(&j->ended) && !atomic_load(&j->failed)) {
            trainer_finish(&j->trainer);
            status_tell(j);
            if (j->options.applied)
                j->options.applied(j->options.arg, &j->trainer, j->evaluator);
            balance_check(j);
            cut_start(j, WORK_FINAL);
            writer_wait(j);
        }
    }
    pthread_mutex_lock(&j->lock);
    j->status.finished = atomic_load(&j->ended) || atomic_load(&j->followed);
    j->result_there = true;
    pthread_cond_broadcast(&j->changed);
    pthread_mutex_unlock(&j->lock);
    return NULL;
}

// The writer thread.

static void snapshot_refused(struct job *j, enum guard_reason reason, const char *sentence)
{
    metrics_add_of(METRIC_SNAPSHOT_REFUSED, (int)reason, 1);
    pthread_mutex_lock(&j->lock);
    if (j->status.refused++ == 0)
        j->status.refused_ms = clock_ms(CLOCK_MONOTONIC);
    snprintf(j->status.refusal, sizeof j->status.refusal, "%s", guard_reason_names[reason]);
    pthread_mutex_unlock(&j->lock);
    log_error("snapshot refused", "cause=%s reason=%s", guard_reason_names[reason], sentence);
}

static int snapshot_write(struct job *j, const char *checkpoint, bool ended, char *error,
                          size_t error_size)
{
    const double begun = clock_s(CLOCK_MONOTONIC);
    struct published published;
    uint64_t generation, previous = 0, good = 0;
    struct pointer pointer = {0};
    char path[4096];
    int rc = catalog_next(j->snapshots, (uint64_t)clock_ms(CLOCK_REALTIME), &generation);
    if (rc < 0) {
        snprintf(error, error_size, "%s", catalog_error(j->snapshots));
        return rc;
    }
    if (catalog_newest(j->snapshots, &previous) < 0)
        previous = 0;
    if (catalog_good(j->snapshots, &good) < 0)
        good = 0;
    pthread_mutex_lock(&j->lock);
    const struct evaluation quality = j->status.window;
    pthread_mutex_unlock(&j->lock);
    rc = publish_snapshot(&(struct publish_options){.checkpoint = checkpoint,
                                                    .root = j->config->snapshot_dir,
                                                    .generation = generation,
                                                    .previous = previous,
                                                    .good = good,
                                                    .ended = ended,
                                                    .engine = j->engine,
                                                    .config = j->config,
                                                    .quality = quality},
                          &published, error, error_size);
    if (published.refused != GUARD_REASONS)
        snapshot_refused(j, published.refused, error);
    if (rc < 0) {
        catalog_retain(j->snapshots, j->config->snapshot_keep + 1); // as journal_checkpoint does
        return rc;
    }
    if (catalog_pointer(j->snapshots, &pointer) < 0)
        log_warning("pointer not read", "reason=%s", catalog_error(j->snapshots));
    if (catalog_retain(j->snapshots, j->config->snapshot_keep) < 0)
        log_warning("old snapshots not removed", "reason=%s", catalog_error(j->snapshots));
    metrics_add(METRIC_SNAPSHOTS, 1);
    metrics_set(METRIC_SNAPSHOT_GENERATION, (double)generation);
    metrics_set(METRIC_SNAPSHOT_TIME, (double)clock_ms(CLOCK_REALTIME) / 1000);
    metrics_set(METRIC_SNAPSHOT_PINNED, pointer.is_pinned);
    metrics_set(METRIC_SNAPSHOT_BYTES, (double)published.bytes);
    metrics_observe(METRIC_SNAPSHOT_DURATION, clock_s(CLOCK_MONOTONIC) - begun);
    log_info("snapshot published",
             "generation=%" PRIu64 " items=%" PRIu64 " users=%" PRIu64 " bytes=%" PRIu64
             " seconds=%.3f%s",
             generation, published.items, published.users, published.bytes,
             clock_s(CLOCK_MONOTONIC) - begun, pointer.is_pinned ? " pinned=elsewhere" : "");
    pthread_mutex_lock(&j->lock);
    j->status.snapshot = generation;
    j->status.snapshots++;
    j->status.refused = 0;
    pthread_mutex_unlock(&j->lock);
    catalog_path(j->snapshots, generation, path, sizeof path);
    if (j->options.published)
        j->options.published(j->options.arg, path);
    return 0;
}

// What failed, if something did, is said in *what.
static int work_do(struct job *j, enum work work, const char **what, char *error, size_t error_size)
{
    const bool final = work == WORK_FINAL;
    const double begun = clock_s(CLOCK_MONOTONIC);
    struct state_stamp stamp;
    char path[4096];
    const uint64_t written = engine_bytes_written(j->engine);
    *what = "checkpoint failed";
    int rc = journal_checkpoint(&j->journal, &j->trainer, final, (uint64_t)clock_ms(CLOCK_REALTIME),
                                &stamp, path, error, error_size);
    if (rc < 0) {
        metrics_add(METRIC_CHECKPOINT_FAILURES, 1);
        return rc;
    }
    if (!final) {
        metrics_add(METRIC_CHECKPOINTS, 1);
        metrics_set(METRIC_CHECKPOINT_BYTES, (double)(engine_bytes_written(j->engine) - written));
        metrics_set(METRIC_CHECKPOINT_TIME, (double)clock_ms(CLOCK_REALTIME) / 1000);
        metrics_observe(METRIC_CHECKPOINT_DURATION, clock_s(CLOCK_MONOTONIC) - begun);
        pthread_mutex_lock(&j->lock);
        j->status.checkpoint = stamp.generation;
        j->status.checkpoints++;
        j->checkpoint_ms = j->durable_ms = clock_ms(CLOCK_MONOTONIC);
        memcpy(j->durable_next, j->cut_next, (size_t)j->n * sizeof *j->cut_next);
        pthread_mutex_unlock(&j->lock);
        log_debug("checkpoint", "generation=%" PRIu64 " slice=%" PRIu64 " seconds=%.3f",
                  stamp.generation, stamp.slice, clock_s(CLOCK_MONOTONIC) - begun);
    }
    if (work == WORK_CHECKPOINT)
        return 0;
    *what = "snapshot failed";
    rc = snapshot_write(j, path, final, error, error_size);
    if (rc < 0 && rc != -EDOM)
        metrics_add(METRIC_SNAPSHOT_FAILURES, 1);
    return rc;
}

// Whether learning on without a checkpoint has lasted long enough.
static bool checkpoint_overdue(struct job *j)
{
    const int64_t limit = j->config->checkpoint_max_age_ms;
    pthread_mutex_lock(&j->lock);
    const bool overdue = limit > 0 && clock_ms(CLOCK_MONOTONIC) - j->durable_ms > limit;
    pthread_mutex_unlock(&j->lock);
    return overdue;
}

static void *write_main(void *arg)
{
    struct job *j = arg;
    // For work or for the disk, which may take minutes: nobody is to end the process for that.
    atomic_store(&j->workers[2].waits, true);
    for (;;) {
        char error[1024] = "out of memory";
        pthread_mutex_lock(&j->lock);
        while (j->work == WORK_NONE && !j->result_there)
            pthread_cond_wait(&j->changed, &j->lock);
        const enum work work = j->work;
        pthread_mutex_unlock(&j->lock);
        if (work == WORK_NONE)
            return NULL;
        const char *what;
        int rc = work_do(j, work, &what, error, sizeof error);
        busy_tell(BY_STAGE_WRITE, clock_s(CLOCK_THREAD_CPUTIME_ID));
        // Whoever has taken the directory over removes what is ours: then that is the cause.
        char owner[512];
        if (rc < 0 && journal_owned(&j->journal, owner, sizeof owner) == -EBUSY) {
            rc = -EBUSY;
            snprintf(error, sizeof error, "%s", owner);
        }
        const bool refused = rc == -EDOM; // said already, and no failure of the writer
        if (rc < 0 && !refused)
            log_error(what, "reason=%s", error);
        // Training goes on with the last good ones; at the end there is no later, and who has lost
        // the directory to another process must not write once more.
        const bool last = work == WORK_FINAL || atomic_load(&j->followed) ||
                          (!refused && (atomic_load(&j->ended) || atomic_load(&j->stop)));
        if (rc < 0 && (last || rc == -EBUSY))
            fail(j, rc, "%s", error);
        else if (rc < 0 && checkpoint_overdue(j))
            fail(j, rc, "no checkpoint for longer than checkpoint.max_age: %s", error);
        pthread_mutex_lock(&j->lock);
        j->status.failures += rc < 0 && !refused;
        j->work = WORK_NONE;
        pthread_cond_broadcast(&j->changed);
        pthread_mutex_unlock(&j->lock);
    }
}

// The caller's thread.

int job_start(struct job *j)
{
    int rc = -pthread_create(&j->write, NULL, write_main, j);
    if (rc < 0)
        return fail(j, rc, "no thread: %s", strerror(-rc));
    rc = -pthread_create(&j->train, NULL, train_main, j);
    if (rc == 0)
        rc = -pthread_create(&j->ingest, NULL, ingest_main, j);
    if (rc < 0) {
        log_error("no thread", "reason=%s", strerror(-rc));
        abort(); // half of the threads cannot be taken back in order
    }
    j->threads = true;
    return 0;
}

bool job_want_values(struct job *j, const struct value_tasks *tasks)
{
    assert(value_tasks_agree(tasks, &j->trainer.options.tasks));
    return cutter_want_values(j->cutter, tasks->weight);
}

void job_stop(struct job *j)
{
    atomic_store(&j->stop, true);
    pthread_mutex_lock(&j->lock);
    pthread_cond_broadcast(&j->changed);
    pthread_mutex_unlock(&j->lock);
}

int job_wait(struct job *j, int timeout_ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&j->lock);
    int rc = 0;
    while (!j->result_there && rc != ETIMEDOUT)
        rc = pthread_cond_timedwait(&j->changed, &j->lock, &until);
    const int there = j->result_there;
    pthread_mutex_unlock(&j->lock);
    return there;
}

int job_result(const struct job *j)
{
    return j->result;
}

void job_status(const struct job *j_in, struct job_status *status)
{
    struct job *j = (struct job *)(uintptr_t)j_in; // the lock is not part of what is const
    pthread_mutex_lock(&j->lock);
    *status = j->status;
    status->checkpoint_age_ms = clock_ms(CLOCK_MONOTONIC) - j->durable_ms;
    status->reading = atomic_load(&j->reading);
    status->away_ms = atomic_load(&j->away_ms);
    status->io_backend = engine_backend(j->engine);
    status->io_reason = engine_reason(j->engine);
    pthread_mutex_unlock(&j->lock);
}
