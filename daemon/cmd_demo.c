// SPDX-License-Identifier: Apache-2.0
//
// `twotower demo`: a minute of the built-in stream through the very job that `run` is, and what a
// person wants to see of it. Beside the job there are three things: a source that is read at
// walking speed (daemon/pace.h), a chronicle of what was learned (daemon/chronicle.h), and the
// screen.
//
// The stream is as long as the demo: so many requests for each second. What is learned is a
// function of seed and seconds (and, in the last bits, of the BLAS core, which fixes the order of
// sums), not of how fast the machine is: the lines from "Nearest films" to "Picture" and the
// picture are the same every time. Measured with the defaults on one Xeon core with AVX-512: 8 s of
// CPU time in the 60 s, 148 MB; with the plain kernels and the oldest BLAS core 12 s.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sysexits.h>
#include <unistd.h>

#include "daemon/assemble.h"
#include "daemon/blas_core.h"
#include "daemon/chronicle.h"
#include "daemon/clock.h"
#include "daemon/command.h"
#include "daemon/http.h"
#include "daemon/job.h"
#include "daemon/log.h"
#include "daemon/metrics.h"
#include "daemon/pace.h"
#include "daemon/picture.h"
#include "daemon/screen.h"
#include "model/gemm.h"
#include "model/kernels.h"
#include "pipeline/source_builtin.h"
#include "snapshot/digest.h"

enum {
    REQUESTS_PER_SECOND = 4000, // on the screen
    EVENT_SECONDS = 60,         // of the stream for one on the screen: a minute shows an hour
    SECONDS = 60,
    SECONDS_MAX = 3600,
    POINTS_MIN = 12,
    RECENT = 5, // points that count as now
    TICK_MS = 100,
    PLAIN_EVERY_S = 5, // lines when it is no terminal
    SPARKS = 20,
};

static const char directory[] = "data/demo";
static const char picture_default[] = "data/demo.svg";

struct demo {
    const struct config *config;
    int seconds;
    int64_t requests;
    const char *picture;
    int lock;    // of the directory; -1
    int signals; // signalfd; -1
    int stops;
    struct source *stream; // the built-in one; the job's
    struct chronicle chronicle;
    struct chronicle_pages pages;
    struct job *job;
    struct http http;
    struct screen screen;
    double begun_s;
    int plain_told_s;
    uint64_t told_snapshots;
    bool told_release, told_arrival;
    double release_s; // on the clock, when it was told
};

// The demo's own defaults: what somebody set on the line or in a file stands.
static int defaults_set(struct config *c, int seconds, struct config_problems *problems)
{
    char requests[32], rate[32], state[64], snapshots[64];
    const struct {
        const char *key, *text;
    } values[] = {
        {"source.requests", requests},  {"source.requests_per_second", rate},
        {"eval.sampling", "0.5"},       {"state.dir", state},
        {"checkpoint.interval", "10s"}, {"snapshot.dir", snapshots},
        {"snapshot.interval", "10s"},
    };
    snprintf(requests, sizeof requests, "%d", REQUESTS_PER_SECOND * seconds);
    snprintf(rate, sizeof rate, "%.6g", (double)REQUESTS_PER_SECOND / EVENT_SECONDS);
    snprintf(state, sizeof state, "%s/state", directory);
    snprintf(snapshots, sizeof snapshots, "%s/snapshots", directory);
    for (size_t i = 0; i < sizeof values / sizeof *values; i++)
        if (!config_given(c, values[i].key) &&
            config_set(c, values[i].key, values[i].text, "demo", problems) < 0)
            return -EINVAL;
    return config_check(c, problems);
}

// ---- The directory

static int entry_remove(const char *path, const struct stat *st, int type, struct FTW *at)
{
    (void)st;
    (void)type;
    (void)at;
    return remove(path);
}

static int tree_remove(const char *path)
{
    enum { DESCRIPTORS = 16 };
    if (nftw(path, entry_remove, DESCRIPTORS, FTW_DEPTH | FTW_PHYS | FTW_MOUNT) == 0 ||
        errno == ENOENT)
        return 0;
    return -errno;
}

static int directory_make(const char *path)
{
    return mkdir(path, 0750) < 0 && errno != EEXIST ? -errno : 0;
}

// A state that somebody wants elsewhere is never emptied: it must be new.
static int state_check(const struct config *c, char *error, size_t error_size)
{
    DIR *list = opendir(c->state_dir);
    int entries = 0;
    if (!list)
        return 0; // not there yet; or the job will say what is wrong with it
    for (const struct dirent *entry; (entry = readdir(list));)
        entries += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    closedir(list);
    if (entries == 0)
        return 0;
    snprintf(error, error_size, "state.dir: %s is not empty, and the demo begins anew",
             c->state_dir);
    return -EEXIST;
}

// Takes data/demo for this run. Only what a demo has left is removed: the two directories that it
// makes, and those only beside the mark that every demo leaves. The mark is locked, so that two
// demos do not take each other's files away.
static int directory_take(struct demo *d, char *error, size_t error_size)
{
    char mark[128], state[128], snapshots[128];
    struct stat st;
    int rc = directory_make("data");
    snprintf(mark, sizeof mark, "%s/.twotower-demo", directory);
    snprintf(state, sizeof state, "%s/state", directory);
    snprintf(snapshots, sizeof snapshots, "%s/snapshots", directory);
    if (rc == 0)
        rc = directory_make(directory);
    if (rc < 0) {
        snprintf(error, error_size, "%s: %s", directory, strerror(-rc));
        return rc;
    }
    const bool others = lstat(state, &st) == 0 || lstat(snapshots, &st) == 0;
    d->lock = open(mark, O_RDWR | O_CLOEXEC | O_NOFOLLOW | (others ? 0 : O_CREAT), 0640);
    if (d->lock < 0) {
        rc = -errno;
        if (rc == -ENOENT)
            snprintf(error, error_size,
                     "%s holds something that no demo has left there (%s is missing); move it away",
                     directory, mark);
        else
            snprintf(error, error_size, "%s: %s", mark, strerror(-rc));
        return rc == -ENOENT ? -EEXIST : rc;
    }
    if (flock(d->lock, LOCK_EX | LOCK_NB) < 0) {
        snprintf(error, error_size, "another demo is running in %s", directory);
        return -EBUSY;
    }
    rc = tree_remove(state);
    if (rc == 0)
        rc = tree_remove(snapshots);
    if (rc == 0)
        return state_check(d->config, error, error_size);
    snprintf(error, error_size, "%s: a former demo's files cannot be removed: %s", directory,
             strerror(-rc));
    return rc;
}

// ---- The picture

static int picture_draw(const struct demo *d)
{
    const struct chronicle_pages *p = &d->pages;
    double x[CHRONICLE_POINTS_MAX], model[CHRONICLE_POINTS_MAX], popularity[CHRONICLE_POINTS_MAX];
    char subtitle[160], hit[96];
    for (int i = 0; i < p->points; i++) {
        const struct evaluation *point = &p->point[i];
        x[i] = (double)d->seconds * (i + 1) / d->chronicle.points_max;
        model[i] = point->n > 0 ? point->recall_100 / point->n : NAN;
        popularity[i] = point->n > 0 ? point->popularity_recall_100 / point->n : NAN;
    }
    snprintf(
        subtitle, sizeof subtitle,
        "recall@100 over all %d films, predicted before learned, built-in stream, seed %" PRId64,
        d->chronicle.films, d->config->source_seed);
    snprintf(hit, sizeof hit, "new: %s", source_builtin_hit(d->stream).title);
    return picture_write(d->picture,
                         &(struct picture){
                             .title = "Two towers learning while the stream runs",
                             .subtitle = subtitle,
                             .x_label = "seconds",
                             .points = p->points,
                             .x = x,
                             .lines = 2,
                             .line = {{"two towers", model}, {"popularity", popularity}},
                             .markers = p->hit.released,
                             .marker = {{hit, d->seconds * p->hit.released_at}},
                         });
}

// ---- The screen

// 1204331 as 1,204,331.
static const char *grouped(uint64_t n, char text[32])
{
    char digits[24];
    const int size = snprintf(digits, sizeof digits, "%" PRIu64, n);
    int at = 0;
    for (int i = 0; i < size; i++) {
        if (i > 0 && (size - i) % 3 == 0)
            text[at++] = ',';
        text[at++] = digits[i];
    }
    text[at] = 0;
    return text;
}

// Recall so far in at most max <= SPARKS bars, the highest one full.
static void sparks_draw(const struct chronicle_pages *p, int max, char *text, size_t size)
{
    static const char *const bars[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
    enum { BARS = sizeof bars / sizeof *bars };
    const int sparks = p->points < max ? p->points : max;
    double bar[SPARKS], highest = 0;
    for (int i = 0; i < sparks; i++) {
        double n = 0, hits = 0;
        for (int k = i * p->points / sparks; k < (i + 1) * p->points / sparks; k++) {
            n += p->point[k].n;
            hits += p->point[k].recall_100;
        }
        bar[i] = n > 0 ? hits / n : 0;
        highest = fmax(highest, bar[i]);
    }
    *text = 0;
    for (int i = 0; i < sparks; i++) {
        const int height = highest > 0 ? (int)(bar[i] / highest * (BARS - 1) + 0.5) : 0;
        const size_t used = strlen(text);
        snprintf(text + used, size - used, "%s", bars[height]);
    }
}

static void header_tell(struct demo *d)
{
    const struct config *c = d->config;
    struct job_status s;
    const char *before = blas_core_before();
    char users[32], films[32], requests[32];
    job_status(d->job, &s);
    screen_line(&d->screen, SCREEN_BOLD, "twotower %s  two towers learning from a stream",
                TWOTOWER_VERSION);
    screen_line(&d->screen, SCREEN_PLAIN,
                "stream   built in, seed %" PRId64 ": %s users, %s films, %s requests in %d s",
                c->source_seed, grouped((uint64_t)c->source_users, users),
                grouped((uint64_t)d->chronicle.films, films),
                grouped((uint64_t)d->requests, requests), d->seconds);
    screen_line(&d->screen, SCREEN_PLAIN, "cpu      %s kernels; %s, core %s%s%s%s", kernels->name,
                gemm_library(), gemm_core(), before ? " (it had picked " : "", before ? before : "",
                before ? ", corrected)" : "");
    screen_line(&d->screen, SCREEN_PLAIN, "io       %s%s%s%s, snapshots in %s", s.io_backend,
                *s.io_reason ? " (" : "", s.io_reason, *s.io_reason ? ")" : "", c->snapshot_dir);
    if (d->http.server)
        screen_line(&d->screen, SCREEN_PLAIN, "status   http://%s/metrics", c->http_listen);
    screen_line(&d->screen, SCREEN_PLAIN, "%s", "");
}

// The longest line that fits: what is left of the width goes to the bars, and only a wide terminal
// has room for the number of events so far.
static void change_tell(struct demo *d, const struct job_status *s)
{
    enum { WIDE = 116 };
    const struct chronicle_pages *p = &d->pages;
    const double elapsed = clock_s(CLOCK_MONOTONIC) - d->begun_s;
    const struct evaluation recent = chronicle_recent(p, RECENT);
    const int width = d->screen.terminal ? screen_width(&d->screen) : WIDE;
    char text[512], sparks[SPARKS * 4], total[48] = "", number[32];
    if (!d->screen.terminal && (int)elapsed < d->plain_told_s + PLAIN_EVERY_S)
        return;
    d->plain_told_s = (int)elapsed;
    if (width >= WIDE)
        snprintf(total, sizeof total, "%s events  ", grouped(s->events, number));
    int n =
        snprintf(text, sizeof text, "%3.0f s  %s%s events/s  joined %.1f %%", elapsed, total,
                 grouped((uint64_t)((double)s->events / elapsed), number), 100 * s->joined_share);
    if (recent.n > 0) {
        n += snprintf(text + n, sizeof text - (size_t)n, "  recall@100 %.3f, popularity %.3f",
                      recent.recall_100 / recent.n, recent.popularity_recall_100 / recent.n);
        const int room = width - 1 - n - 2;
        if (room > 0) {
            sparks_draw(p, room < SPARKS ? room : SPARKS, sparks, sizeof sparks);
            snprintf(text + n, sizeof text - (size_t)n, "  %s", sparks);
        }
    }
    screen_change(&d->screen, text);
}

static void hit_tell(struct demo *d)
{
    const struct chronicle_pages *p = &d->pages;
    const struct source_builtin_hit hit = source_builtin_hit(d->stream);
    const char *genre = source_builtin_genre_name(hit.genre);
    const double now = clock_s(CLOCK_MONOTONIC);
    if (p->hit.released && !d->told_release) {
        d->told_release = true;
        d->release_s = now;
        screen_line(&d->screen, SCREEN_BOLD, "%3.0f s  a new film is released: \"%s\" (%s)",
                    now - d->begun_s, hit.title, genre);
    }
    if (p->hit.arrived && !d->told_arrival) {
        d->told_arrival = true;
        screen_line(&d->screen, SCREEN_BOLD,
                    "%3.0f s  %.1f s later it is among the %d nearest of %s (%.0f s of event time)",
                    now - d->begun_s, now - d->release_s, CHRONICLE_NEAR, genre,
                    (double)(p->hit.arrived_ms - p->hit.released_ms) / 1000);
    }
}

static void tell(struct demo *d)
{
    struct job_status s;
    job_status(d->job, &s);
    chronicle_read(&d->chronicle, &d->pages);
    hit_tell(d);
    if (s.snapshots > d->told_snapshots) {
        d->told_snapshots = s.snapshots;
        screen_line(&d->screen, SCREEN_FAINT,
                    "%3.0f s  snapshot %" PRIu64 " published: %s/%" PRIu64,
                    clock_s(CLOCK_MONOTONIC) - d->begun_s, s.snapshots, d->config->snapshot_dir,
                    s.snapshot);
        picture_draw(d);
    }
    change_tell(d, &s);
}

static void nearest_tell(struct demo *d)
{
    enum { COLUMN = 38 };
    const struct chronicle_pages *p = &d->pages;
    if (p->early[0].n == 0)
        return;
    screen_line(&d->screen, SCREEN_BOLD, "Nearest films, by what was learned from clicks alone");
    for (int f = 0; f < CHRONICLE_FILMS; f++) {
        const struct chronicle_nearest *early = &p->early[f], *now = &p->now[f];
        const char *genre = source_builtin_genre_name(source_builtin_genre(d->stream, p->film[f]));
        char head[64];
        screen_line(&d->screen, SCREEN_PLAIN, "  %s (%s)",
                    source_builtin_title(d->stream, p->film[f]), genre);
        snprintf(head, sizeof head, "after %.1f s: %d of %d are %s", d->seconds * p->early_at,
                 early->same_genre, early->n, genre);
        screen_line(&d->screen, SCREEN_FAINT, "    %-*s after %.0f s: %d of %d", COLUMN, head,
                    d->seconds * p->progress, now->same_genre, now->n);
        for (int i = 0; i < early->n && i < now->n; i++)
            screen_line(&d->screen, SCREEN_PLAIN, "    %-*.*s %s", COLUMN, COLUMN,
                        source_builtin_title(d->stream, early->film[i]),
                        source_builtin_title(d->stream, now->film[i]));
    }
    screen_line(&d->screen, SCREEN_PLAIN, "%s", "");
}

static void figures_tell(struct demo *d, const struct job_status *s, const char *digest)
{
    const struct chronicle_pages *p = &d->pages;
    const struct evaluation recent = chronicle_recent(p, RECENT);
    const uint64_t *out = p->counts.out[TOPIC_ENGAGEMENTS];
    char events[32], examples[32], scored[32];
    screen_line(&d->screen, SCREEN_BOLD, "Final figures");
    screen_line(&d->screen, SCREEN_PLAIN,
                "  events       %s, %" PRIu64 " rejected, %" PRIu64 " pending",
                grouped(s->events, events), s->rejected, s->pending);
    screen_line(&d->screen, SCREEN_PLAIN, "  learned      %s clicks and likes in %" PRIu64 " steps",
                grouped(s->examples, examples), s->steps);
    screen_line(&d->screen, SCREEN_PLAIN,
                "  engagements  joined %.2f %%; late %" PRIu64 ", duplicate %" PRIu64
                ", orphan %" PRIu64,
                100 * s->joined_share, out[LATE], out[DUPLICATE], out[ORPHAN]);
    if (p->total.n > 0)
        screen_line(&d->screen, SCREEN_PLAIN,
                    "  recall@100   %.4f over all, popularity %.4f (%s predictions)",
                    p->total.recall_100 / p->total.n, p->total.popularity_recall_100 / p->total.n,
                    grouped((uint64_t)p->total.n, scored));
    if (recent.n > 0)
        screen_line(&d->screen, SCREEN_PLAIN, "               %.4f at the end, popularity %.4f",
                    recent.recall_100 / recent.n, recent.popularity_recall_100 / recent.n);
    if (p->hit.arrived)
        screen_line(&d->screen, SCREEN_PLAIN,
                    "  new film     among the %d nearest of its genre after %.1f s of event time",
                    CHRONICLE_NEAR, (double)(p->hit.arrived_ms - p->hit.released_ms) / 1000);
    else if (p->hit.released)
        screen_line(&d->screen, SCREEN_PLAIN, "  new film     number %d of its genre so far",
                    p->hit.rank);
    if (*digest)
        screen_line(&d->screen, SCREEN_PLAIN, "  digest       %s", digest);
    screen_line(&d->screen, SCREEN_PLAIN, "%s", "");
}

// The program as a person can type it from here.
static void program_path(char *path, size_t size)
{
    char exe[4096], here[4096];
    const ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    snprintf(path, size, "twotower");
    if (n <= 0)
        return;
    exe[n] = 0;
    const char *shown = exe;
    if (getcwd(here, sizeof here)) {
        const size_t length = strlen(here);
        if (length > 1 && strncmp(exe, here, length) == 0 && exe[length] == '/')
            shown = exe + length + 1;
    }
    const bool slash = strchr(shown, '/'), plain = !strpbrk(shown, " \t'\"\\$&;|<>()*?[]`#~!");
    snprintf(path, size, "%s%s%s%s", plain ? "" : "'", slash ? "" : "./", shown, plain ? "" : "'");
}

static void next_tell(struct demo *d)
{
    const struct source_builtin_hit hit = source_builtin_hit(d->stream);
    const char *snapshots = d->config->snapshot_dir;
    char program[4200];
    program_path(program, sizeof program);
    screen_line(&d->screen, SCREEN_BOLD, "Try next");
    screen_line(&d->screen, SCREEN_FAINT, "  films near \"%s\", and what one user would see",
                hit.title);
    screen_line(&d->screen, SCREEN_PLAIN, "    %s topk %s --item i%d", program, snapshots,
                hit.item);
    screen_line(&d->screen, SCREEN_PLAIN, "    %s topk %s --user u7", program, snapshots);
    screen_line(&d->screen, SCREEN_FAINT, "  what a server would load, and whether it is whole");
    screen_line(&d->screen, SCREEN_PLAIN, "    %s inspect %s", program, snapshots);
    screen_line(&d->screen, SCREEN_PLAIN, "    %s verify %s", program, snapshots);
    screen_line(&d->screen, SCREEN_FAINT,
                "  your own events from Kafka: README.md, beginning with");
    screen_line(&d->screen, SCREEN_PLAIN, "    %s check --sample > twotower.toml", program);
}

// ---- Running

static void signals_read(struct demo *d)
{
    struct signalfd_siginfo info;
    while (read(d->signals, &info, sizeof info) == (ssize_t)sizeof info) {
        if (d->stops++ > 0)
            _exit(EX_TEMPFAIL);
        job_stop(d->job);
        screen_rest(&d->screen);
        screen_line(&d->screen, SCREEN_PLAIN, "stopping; what has been read is learned first");
    }
}

static int ready_checks(void *arg, struct http_check *checks)
{
    const struct demo *d = arg;
    struct job_status s;
    job_status(d->job, &s);
    checks[0] = (struct http_check){.name = "learning", .ok = s.steps > 0};
    snprintf(checks[0].message, sizeof checks[0].message, "%" PRIu64 " steps", s.steps);
    return 1;
}

static void end_tell(struct demo *d)
{
    struct job_status s;
    char digest[65] = "", error[1024];
    job_status(d->job, &s);
    tell(d);
    screen_rest(&d->screen);
    screen_line(&d->screen, SCREEN_PLAIN, "%s", "");
    // After an early end the newest snapshot is from some moment of the clock's choice.
    if (s.finished && digest_snapshot(d->config->snapshot_dir, digest, error, sizeof error) < 0)
        log_warning("the snapshot has no digest", "reason=%s", error);
    nearest_tell(d);
    figures_tell(d, &s, digest);
    if (picture_draw(d) == 0)
        screen_line(&d->screen, SCREEN_PLAIN, "Picture: %s\n", d->picture);
    if (s.snapshots > 0)
        next_tell(d);
}

// Opens what the demo runs on. The job takes the source over, the caller the rest, also after a
// failure.
static int demo_open(struct demo *d, char *error, size_t error_size)
{
    struct source *paced;
    int rc = directory_take(d, error, error_size);
    if (rc == 0)
        rc = assemble_source(d->config, true, &d->stream, error, error_size);
    if (rc < 0)
        return rc;
    snprintf(error, error_size, "out of memory");
    const int points = d->seconds < POINTS_MIN             ? POINTS_MIN
                       : d->seconds > CHRONICLE_POINTS_MAX ? CHRONICLE_POINTS_MAX
                                                           : d->seconds;
    rc = chronicle_open(&d->chronicle, d->stream, d->requests, points, d->config->model_dim);
    if (rc < 0) {
        d->stream->ops->close(d->stream);
        return rc;
    }
    rc = picture_draw(d); // what cannot be written is better known now than in a minute
    if (rc < 0) {
        snprintf(error, error_size, "%s: %s", d->picture, strerror(-rc));
        d->stream->ops->close(d->stream);
        return rc;
    }
    rc = pace_open(&paced, d->stream, d->seconds);
    if (rc < 0)
        return rc;
    rc = job_open(
        &d->job, d->config, paced,
        &(struct job_options){.bounded = true, .applied = chronicle_note, .arg = &d->chronicle},
        error, error_size);
    if (rc < 0)
        return rc;
    // A page more, not a condition: another twotower may have the port.
    if (http_open(&d->http, d->config->http_listen, ready_checks, d) < 0 &&
        config_given(d->config, "http.listen"))
        log_warning("no status page", "reason=%s", d->http.error);
    return 0;
}

static int demo_run(struct demo *d, char *error, size_t error_size)
{
    // Blocked before any thread begins, so that they all come through the descriptor.
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGTERM);
    sigaddset(&mask, SIGINT);
    pthread_sigmask(SIG_BLOCK, &mask, NULL);
    d->signals = signalfd(-1, &mask, SFD_NONBLOCK | SFD_CLOEXEC);
    if (d->signals < 0) {
        snprintf(error, error_size, "signalfd: %s", strerror(errno));
        return -EIO;
    }
    screen_init(&d->screen, stdout);
    int rc = demo_open(d, error, error_size);
    if (rc == 0) {
        header_tell(d);
        d->begun_s = clock_s(CLOCK_MONOTONIC);
        rc = job_start(d->job);
    }
    if (rc == 0) {
        while (!job_wait(d->job, TICK_MS)) {
            signals_read(d);
            tell(d);
        }
        rc = job_result(d->job);
    }
    if (rc == 0)
        end_tell(d);
    else
        screen_rest(&d->screen);
    if (rc < 0 && d->job)
        snprintf(error, error_size, "%s", job_error(d->job));
    http_close(&d->http);
    job_close(d->job);
    return rc;
}

int cmd_demo(const struct config *given, const struct command_line *line)
{
    static struct config_problems problems;
    struct config config = *given;
    struct demo d = {.config = &config, .lock = -1, .signals = -1};
    char error[2048] = "";
    long long seconds;
    if (command_number(line, "seconds", 1, SECONDS_MAX, SECONDS, &seconds) < 0)
        return EX_USAGE;
    if (config.source_type != CONFIG_SOURCE_BUILTIN)
        return command_fail(line, EX_USAGE,
                            "it has a stream of its own; for this source there is "
                            "'twotower run'");
    problems.n = 0;
    if (defaults_set(&config, (int)seconds, &problems) < 0) {
        config_problems_print(&problems, stderr);
        return EX_CONFIG;
    }
    if (config.source_requests == 0)
        return command_fail(line, EX_USAGE, "source.requests: the demo's stream has an end");
    log_init((enum log_level)config.log_level, (enum log_format)config.log_format, STDERR_FILENO);
    d.seconds = (int)seconds;
    d.requests = config.source_requests;
    d.picture = command_value(line, "picture");
    d.picture = d.picture ? d.picture : picture_default;

    const int rc = demo_run(&d, error, sizeof error);
    if (d.chronicle.films)
        chronicle_close(&d.chronicle);
    if (d.signals >= 0)
        close(d.signals);
    if (d.lock >= 0)
        close(d.lock);
    log_flush();
    return rc < 0 ? command_fail(line, command_status(rc), "%s", error) : EX_OK;
}
