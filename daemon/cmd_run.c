// SPDX-License-Identifier: Apache-2.0
//
// `twotower run` and `twotower replay`: a job, watched. Signals, systemd, HTTP, reading the
// configuration anew and what a person sees are here; everything else is daemon/job.c.
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sysexits.h>
#include <time.h>
#include <unistd.h>

#include "daemon/assemble.h"
#include "daemon/clock.h"
#include "daemon/command.h"
#include "daemon/http.h"
#include "daemon/job.h"
#include "daemon/log.h"
#include "daemon/metrics.h"
#include "daemon/notify.h"
#include "model/arena.h"
#include "model/gemm.h"
#include "model/kernels.h"
#include "model/value.h"
#include "snapshot/digest.h"

enum { TICK_MS = 200, STATUS_EVERY = 5, PROGRESS_EVERY = 25, STUCK_TICKS = 50 };
enum { STALE_CHECKPOINTS = 10 }; // intervals without one
enum { STALE_SNAPSHOTS = 3 };    // intervals in which all were refused
enum { AWAY_MS = 10000 };        // without an answer of any broker; as long as a start waits
// What a checkpoint may take to read: 100 GB at the rate at which one is verified, and more.
enum { SECOND_US = 1000000, RESTORE_US = 600 * SECOND_US };

struct watching {
    struct job *job;
    const struct config *config;
    const struct command_line *line;
    struct notify notify;
    bool replay;
    bool ready;
    int signals;     // signalfd
    int stops;       // SIGTERM and SIGINT received
    uint64_t events; // at the last tick that told the rate
    double rate;     // events per second, smoothed
    double told_s;
    uint64_t checkpoint;
};

// What readiness means: restored and reading, checkpoints not stale, the source answers. A model
// that is refused goes on learning, and the fleets have the last good snapshot: a person is to
// know, nothing is to restart.
static int ready_checks(void *arg, struct http_check *checks)
{
    const struct watching *w = arg;
    struct job_status s;
    job_status(w->job, &s);
    checks[0] = (struct http_check){.name = "reading", .ok = s.reading};
    snprintf(checks[0].message, sizeof checks[0].message, "%" PRIu64 " slices applied", s.slices);
    const int64_t limit = STALE_CHECKPOINTS * w->config->checkpoint_interval_ms;
    checks[1] = (struct http_check){.name = "checkpoint", .ok = s.checkpoint_age_ms < limit};
    snprintf(checks[1].message, sizeof checks[1].message,
             "%.1f s since the last one, the limit is %.1f s", (double)s.checkpoint_age_ms / 1000,
             (double)limit / 1000);
    checks[2] = (struct http_check){.name = "writing", .ok = s.failures == 0 || s.checkpoints > 0};
    snprintf(checks[2].message, sizeof checks[2].message,
             "%" PRIu64 " failed, %" PRIu64 " checkpoints and %" PRIu64 " snapshots written",
             s.failures, s.checkpoints, s.snapshots);
    checks[3] = (struct http_check){.name = "source", .ok = s.away_ms < AWAY_MS};
    snprintf(checks[3].message, sizeof checks[3].message,
             "%.1f s without an answer, the limit is %.1f s", (double)s.away_ms / 1000,
             (double)AWAY_MS / 1000);
    const int64_t patience = STALE_SNAPSHOTS * w->config->snapshot_interval_ms;
    const int64_t refused_ms = s.refused > 0 ? clock_ms(CLOCK_MONOTONIC) - s.refused_ms : 0;
    checks[4] = (struct http_check){
        .name = "snapshot", .ok = s.refused == 0 || refused_ms < patience, .advisory = true};
    if (s.refused > 0)
        snprintf(checks[4].message, sizeof checks[4].message,
                 "%" PRIu64 " refused since %.1f s, the last for its %s", s.refused,
                 (double)refused_ms / 1000, s.refusal);
    else
        snprintf(checks[4].message, sizeof checks[4].message, "none refused");
    return 5;
}

static bool ready_now(struct watching *w)
{
    struct http_check checks[HTTP_CHECKS_MAX];
    bool ready = true;
    for (int i = ready_checks(w, checks); i-- > 0;)
        ready &= checks[i].ok || checks[i].advisory;
    return ready;
}

static void restart_needed(void *arg, const char *key)
{
    (void)arg;
    log_warning("an option needs a restart", "key=%s", key);
}

// Reads the configuration as at the start, file and command line. Mistakes change nothing, and are
// told one by one.
static enum metric_reload config_again(struct watching *w)
{
    static char memory[CONFIG_MEMORY]; // too large for the stack, and one thread comes here
    static struct config read;
    static struct config_problems problems;
    struct arena arena = {memory, sizeof memory, 0};
    struct value_tasks tasks;
    int rc = command_configure(w->line, &read, &arena, &problems);
    if (rc == 0)
        rc = config_reload(w->config, &read, &tasks, restart_needed, NULL, &problems);
    for (int i = 0; i < problems.n && i < CONFIG_PROBLEMS_MAX; i++)
        log_error("configuration", "file=%s line=%d column=%d reason=%s", problems.list[i].at.where,
                  problems.list[i].at.line, problems.list[i].at.column, problems.list[i].text);
    if (rc < 0)
        return BY_RELOAD_REFUSED;
    return job_want_values(w->job, &tasks) ? BY_RELOAD_APPLIED : BY_RELOAD_UNCHANGED;
}

static void reload(struct watching *w)
{
    static const char *const said[BY_RELOADS] = {
        [BY_RELOAD_APPLIED] = "other weights of value.tasks, from the next slice on",
        [BY_RELOAD_UNCHANGED] = "nothing to change",
        [BY_RELOAD_REFUSED] = "nothing was changed",
    };
    // Before it is ready, READY=1 would say what is not so.
    if (w->ready)
        notify_reloading(&w->notify, "Reading the configuration");
    const enum metric_reload result = config_again(w);
    metrics_add_of(METRIC_CONFIG_RELOADS, result, 1);
    if (result == BY_RELOAD_REFUSED)
        log_error("reload refused", "result=%s", said[result]);
    else
        log_info("reloaded", "result=%s", said[result]);
    if (w->ready)
        notify_ready(&w->notify, "Learning");
}

static void signals_read(struct watching *w)
{
    struct signalfd_siginfo info;
    while (read(w->signals, &info, sizeof info) == (ssize_t)sizeof info) {
        struct job_status s;
        switch (info.ssi_signo) {
        case SIGTERM:
        case SIGINT:
            if (w->stops++ == 0) {
                log_info("stopping", "signal=%s", info.ssi_signo == SIGTERM ? "SIGTERM" : "SIGINT");
                notify_stopping(&w->notify, "Learning what has been read, then a checkpoint");
                job_stop(w->job);
            } else {
                log_warning("stopped at once", "reason=%s", "a second signal");
                _exit(EX_TEMPFAIL); // the last checkpoint and the slice log are on the disk
            }
            break;
        case SIGHUP:
            if (w->stops == 0)
                reload(w);
            break;
        case SIGUSR1:
            job_status(w->job, &s);
            log_info("state",
                     "events=%" PRIu64 " examples=%" PRIu64 " steps=%" PRIu64 " pending=%" PRIu64
                     " rejected=%" PRIu64 " checkpoint=%" PRIu64 " snapshot=%" PRIu64
                     " wait_max_ms=%.3f",
                     s.events, s.examples, s.steps, s.pending, s.rejected, s.checkpoint, s.snapshot,
                     s.wait_max_ms);
            break;
        default:
            break;
        }
    }
}

static void quality_text(const struct job_status *s, char *text, size_t size)
{
    *text = 0;
    if (s->window.n > 0)
        snprintf(text, size, ", recall@100 %.3f (popularity %.3f)",
                 s->window.recall_100 / s->window.n, s->window.popularity_recall_100 / s->window.n);
}

static void tell(struct watching *w, int tick)
{
    struct job_status s;
    char quality[96];
    job_status(w->job, &s);
    if (!w->ready && s.reading) {
        w->ready = true;
        notify_ready(&w->notify, "Learning");
        log_info("ready", "restored=%s io=%s", s.restored ? "yes" : "no", s.io_backend);
    }
    if (tick % STATUS_EVERY)
        return;
    metrics_set(METRIC_READY, ready_now(w));
    const double now = clock_s(CLOCK_MONOTONIC);
    if (w->told_s > 0) {
        const double rate = (double)(s.events - w->events) / (now - w->told_s);
        w->rate = w->rate > 0 ? 0.8 * w->rate + 0.2 * rate : rate;
    }
    w->told_s = now;
    w->events = s.events;
    quality_text(&s, quality, sizeof quality);
    notify_status(&w->notify, "Step %" PRIu64 ", %.0f events/s, %" PRIu64 " snapshots%s", s.steps,
                  w->rate, s.snapshots, quality);
    if (w->stops > 0 || !w->ready)
        notify_extend(&w->notify, 10 * SECOND_US);
    if (tick % PROGRESS_EVERY)
        return;
    if (s.progress > 0 && s.progress < 1 && w->rate > 0)
        log_info(w->replay ? "replaying" : "reading",
                 "progress=%.1f%% events=%" PRIu64 " rate=%.0f eta_s=%.0f examples=%" PRIu64,
                 100 * s.progress, s.events, w->rate,
                 (double)s.events * (1 / s.progress - 1) / w->rate, s.examples);
    else
        log_info("learning",
                 "events=%" PRIu64 " rate=%.0f examples=%" PRIu64 " joined=%.1f%% pending=%" PRIu64
                 " rejected=%" PRIu64 " loss=%.3f",
                 s.events, w->rate, s.examples, 100 * s.joined_share, s.pending, s.rejected,
                 s.loss);
}

static void watch(struct watching *w)
{
    int stuck_ticks = 0; // a slice may take longer than a tick
    for (int tick = 1; !job_wait(w->job, TICK_MS); tick++) {
        signals_read(w);
        tell(w, tick);
        const char *stuck = notify_watchdog(&w->notify, JOB_WORKERS, job_workers(w->job));
        stuck_ticks = stuck ? stuck_ticks + 1 : 0;
        if (stuck_ticks == STUCK_TICKS)
            log_warning("a thread does not move", "thread=%s", stuck);
    }
}

static void finish(const struct watching *w)
{
    struct job_status s;
    char quality[96];
    job_status(w->job, &s);
    quality_text(&s, quality, sizeof quality);
    log_info(s.finished ? "finished" : "stopped",
             "events=%" PRIu64 " examples=%" PRIu64 " pending=%" PRIu64 " rejected=%" PRIu64
             " checkpoint=%" PRIu64 " snapshot=%" PRIu64 " wait_max_ms=%.3f first_example_s=%.3f",
             s.events, s.examples, s.pending, s.rejected, s.checkpoint, s.snapshot, s.wait_max_ms,
             s.first_example_s);
}

static int run(const struct config *c, const struct command_line *line, struct source *source,
               const struct job_options *options, bool replay)
{
    char error[2048];
    struct watching w = {.config = c, .line = line, .replay = replay, .signals = -1};
    struct http http = {0};
    // Blocked before any thread begins, so that they all come through the descriptor.
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGTERM);
    sigaddset(&mask, SIGINT);
    sigaddset(&mask, SIGHUP);
    sigaddset(&mask, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &mask, NULL);
    w.signals = signalfd(-1, &mask, SFD_NONBLOCK | SFD_CLOEXEC);
    if (w.signals < 0) {
        source->ops->close(source);
        return command_fail(line, EX_OSERR, "signalfd: %s", strerror(errno));
    }
    if (notify_open(&w.notify) < 0)
        log_warning("systemd cannot be told", NULL);
    notify_status(&w.notify, "Restoring");
    notify_extend(&w.notify, RESTORE_US);
    metrics_build_info(TWOTOWER_VERSION, gemm_library(), gemm_core(), kernels->name);
    metrics_set(METRIC_START_TIME, (double)time(NULL));

    int rc = job_open(&w.job, c, source, options, error, sizeof error);
    if (rc == 0)
        rc = http_open(&http, c->http_listen, ready_checks, &w);
    if (rc < 0 && w.job) {
        snprintf(error, sizeof error, "%s", http.error);
        job_close(w.job);
    } else if (rc == 0) {
        rc = job_start(w.job);
        if (rc == 0)
            watch(&w);
        rc = job_result(w.job);
        snprintf(error, sizeof error, "%s", job_error(w.job));
        if (rc == 0)
            finish(&w);
        http_close(&http);
        job_close(w.job);
    }
    notify_close(&w.notify);
    close(w.signals);
    log_flush();
    return rc < 0 ? command_fail(line, command_status(rc), "%s", error) : EX_OK;
}

// TOPIC:PARTITION:OFFSET of a partition that the source has.
static int skip_parse(const char *text, const struct source *s, struct job_skip *skip)
{
    char topic[256], rest;
    int32_t partition;
    if (sscanf(text, "%255[^:]:%" SCNd32 ":%" SCNd64 "%c", topic, &partition, &skip->to, &rest) !=
        3)
        return -EINVAL;
    for (skip->partition = 0; skip->partition < s->n_partitions; skip->partition++) {
        const struct source_partition *p = &s->partitions[skip->partition];
        if (!strcmp(p->name, topic) && p->partition == partition)
            return 0;
    }
    return -ENOENT;
}

// What a person allows: --allow-gap, --accept-new-topic, --skip. 0, or a status that was told.
static int allowances_take(const struct command_line *line, const struct source *s,
                           struct job_options *options, struct job_skip *skips)
{
    options->allow_gap = command_value(line, "allow-gap");
    options->accept_new_topic = command_value(line, "accept-new-topic");
    options->skips = skips;
    for (int i = 0; i < line->n_given; i++) {
        if (strcmp(line->given[i].option->name, "skip") != 0)
            continue;
        if (skip_parse(line->given[i].value, s, &skips[options->n_skips++]) < 0)
            return command_fail(
                line, EX_USAGE,
                "--skip %s: expected TOPIC:PARTITION:OFFSET of a topic that is read",
                line->given[i].value);
    }
    return 0;
}

int cmd_run(const struct config *c, const struct command_line *line)
{
    struct source *source;
    struct job_skip skips[COMMAND_LINE_MAX];
    char error[1024];
    const bool until_end = command_value(line, "until-end");
    if (until_end && c->source_type == CONFIG_SOURCE_BUILTIN && c->source_requests == 0)
        return command_fail(line, EX_USAGE,
                            "--until-end: the built-in stream has none; set source.requests");
    const int rc = assemble_source(c, until_end, &source, error, sizeof error);
    if (rc < 0)
        log_flush(); // the sentence comes last
    if (rc < 0)
        return command_fail(line, command_status(rc), "%s", error);
    // A file has an end; only a broker and the endless built-in stream go on.
    const bool bounded = until_end || c->source_type == CONFIG_SOURCE_FILE ||
                         (c->source_type == CONFIG_SOURCE_BUILTIN && c->source_requests > 0);
    struct job_options options = {.bounded = bounded};
    const int status = allowances_take(line, source, &options, skips);
    if (status) {
        source->ops->close(source);
        return status;
    }
    return run(c, line, source, &options, false);
}

// begin, end, 2026-11-01T00:00:00Z, 1700000000000ms, or a number of records from the begin.
static int place_parse(const char *text, const struct source *s, const int64_t *first,
                       const int64_t *end, int64_t *places)
{
    struct tm tm = {0};
    char *rest;
    int64_t ts_ms;
    const int n = s->n_partitions;
    if (!strcmp(text, "begin") || !strcmp(text, "end")) {
        memcpy(places, *text == 'b' ? first : end, (size_t)n * sizeof *places);
        return 0;
    }
    rest = strptime(text, "%Y-%m-%dT%H:%M:%S", &tm);
    if (rest && (!strcmp(rest, "Z") || !*rest)) {
        ts_ms = (int64_t)timegm(&tm) * 1000;
        if (ts_ms < 0) // no record is older than 1970
            ts_ms = 0;
    } else {
        errno = 0;
        const int64_t number = strtoll(text, &rest, 10);
        if (errno || rest == text || number < 0)
            return -EINVAL;
        if (!*rest) {
            for (int p = 0; p < n; p++)
                places[p] = number < end[p] - first[p] ? first[p] + number : end[p];
            return 0;
        }
        if (strcmp(rest, "ms"))
            return -EINVAL;
        ts_ms = number;
    }
    return s->ops->offsets_for_time((struct source *)(uintptr_t)s, ts_ms, places);
}

// The digest of a snapshot, so that runs can be compared by what they say.
static void digest_tell(void *arg, const char *path)
{
    char hex[65], error[1024];
    (void)arg;
    if (digest_snapshot(path, hex, error, sizeof error) < 0)
        log_error("no digest", "reason=%s", error);
    else
        log_info("digest", "snapshot=%s sha256=%s", path, hex);
}

// `replay --recorded DIR [--to SLICE]`: the slices of another run, as they were cut.
static int replay_recorded(const struct config *c, const struct command_line *line)
{
    static const char *const others[] = {"from", "then-live", "canonical"};
    struct source *source;
    struct job_options options = {.recorded = command_value(line, "recorded"),
                                  .recorded_to = UINT64_MAX,
                                  .published = digest_tell};
    char error[1024], *rest;
    const char *to = command_value(line, "to");
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (command_value(line, others[i]))
            return command_fail(line, EX_USAGE, "--%s: not with --recorded", others[i]);
    if (to && strcmp(to, "end") != 0) {
        errno = 0;
        options.recorded_to = strtoull(to, &rest, 10);
        if (errno || rest == to || *rest || options.recorded_to == 0)
            return command_fail(line, EX_USAGE,
                                "--to %s: with --recorded, expected the number of a slice, or end",
                                to);
    }
    const int rc = assemble_source(c, true, &source, error, sizeof error);
    if (rc < 0)
        return command_fail(line, command_status(rc), "%s", error);
    return run(c, line, source, &options, true);
}

int cmd_replay(const struct config *c, const struct command_line *line)
{
    if (command_value(line, "recorded"))
        return replay_recorded(c, line);
    struct source *source;
    char error[1024];
    const char *from_text = command_value(line, "from"), *to_text = command_value(line, "to");
    from_text = from_text ? from_text : "begin";
    to_text = to_text ? to_text : "end";
    const bool endless = c->source_type == CONFIG_SOURCE_KAFKA ||
                         (c->source_type == CONFIG_SOURCE_BUILTIN && c->source_requests == 0);
    if (command_value(line, "then-live") && !endless)
        return command_fail(line, EX_USAGE,
                            "--then-live: nothing comes after the end of this source");
    if (c->source_type == CONFIG_SOURCE_BUILTIN && endless && !strcmp(to_text, "end"))
        return command_fail(line, EX_USAGE,
                            "--to end: the built-in stream has none; set source.requests");
    int rc = assemble_source(c, true, &source, error, sizeof error);
    if (rc < 0)
        log_flush();
    if (rc < 0)
        return command_fail(line, command_status(rc), "%s", error);
    const size_t n = (size_t)source->n_partitions;
    int64_t *first = calloc(4 * n, sizeof *first);
    int64_t *end = first + n, *from = first + 2 * n, *to = first + 3 * n;
    const char *wrong = NULL;
    rc = first ? source->ops->bounds(source, first, end) : -ENOMEM;
    if (rc == 0 && (rc = place_parse(from_text, source, first, end, from)) == -EINVAL)
        wrong = from_text;
    if (rc == 0 && (rc = place_parse(to_text, source, first, end, to)) == -EINVAL)
        wrong = to_text;
    int status;
    if (wrong) {
        status = command_fail(line, EX_USAGE,
                              "'%s': expected begin, end, 2026-11-01T00:00:00Z, "
                              "1700000000000ms or a number of records",
                              wrong);
        source->ops->close(source);
    } else if (rc < 0) {
        status =
            command_fail(line, command_status(rc), "%s", first ? source->error : "out of memory");
        source->ops->close(source);
    } else {
        for (size_t p = 0; p < n; p++)
            log_info("replay", "topic=%s partition=%d from=%" PRId64 " to=%" PRId64,
                     source->partitions[p].name, source->partitions[p].partition, from[p], to[p]);
        status = run(c, line, source,
                     &(struct job_options){.bounded = true,
                                           .then_live = command_value(line, "then-live"),
                                           .from = from,
                                           .to = to,
                                           .published = digest_tell},
                     true);
    }
    free(first);
    return status;
}
