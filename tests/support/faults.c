// SPDX-License-Identifier: Apache-2.0
//
// A shared library for LD_PRELOAD: stands between a program and the C library's calls that change
// the disk, counts them, and makes them fail, or the process die, where a test says so. The program
// knows nothing of it. What io_uring writes passes by: run with snapshot.io=pwrite.
//
// A point is a kind of call and a class of path, both words, as "sync slices":
//
//     create   open with O_CREAT         allocate  fallocate        rename  rename, by its target
//     write    pwrite, write             cut       ftruncate        make    mkdir
//     sync     fsync, fdatasync          remove    unlink, rmdir
//
//     run, state, snapshots              directories: FAULT_ROOT and what is in it
//     owner, slices, dead-letters, dead-letters.1
//     G-root, G-LATEST, G-lock           of state/checkpoints, state/final, snapshots, G being
//     G-new, G-file, G-manifest          checkpoint, final, snapshot: one that is being written,
//     G, G-old-file, G-old-manifest      one that is whole
//
// Calls on anything else are none. From the environment:
//
//     FAULT_ROOT   the directory below which all this is; without it the library does nothing
//     FAULT_TRACE  a file to append a line to for each call: "POINT NUMBER", then " killed" or
//                  " failed"; and "repeated POINT" for a sync of a descriptor whose sync has failed
//     FAULT_KILL   POINT:NUMBER:WHEN: SIGKILL at the NUMBER-th call of a point, WHEN being before,
//                  after, or torn: when half of the bytes are written
//     FAULT_FAIL   POINT:ERROR:TIMES;...: POINT is a pattern of fnmatch(3), ERROR a name such as
//                  ENOSPC, or SHORT: half of the bytes are written, and no more is said. TIMES is
//                  N, the first N calls; N-M; or while=FILE, as long as that file is there
//     FAULT_LOCKS  "none": flock says yes to everybody, as some network file systems do
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { POINTS_MAX = 256, NAME_SIZE = 64, RULES_MAX = 64, FILES_MAX = 4096, PAGE = 4096 };

static const struct {
    const char *name;
    int error;
} errors[] = {{"ENOSPC", ENOSPC}, {"EIO", EIO},       {"EROFS", EROFS},
              {"EACCES", EACCES}, {"EINTR", EINTR},   {"EDQUOT", EDQUOT},
              {"EFBIG", EFBIG},   {"EMFILE", EMFILE}, {"SHORT", 0}};

struct rule {
    char point[NAME_SIZE];
    int error; // 0: short
    long from, to;
    char file[PATH_MAX]; // while it is there; "": by number
};

static char root[PATH_MAX];
static int trace = -1;
static bool no_locks;
static char kill_point[NAME_SIZE], kill_when[16];
static long kill_number;
static struct rule rules[RULES_MAX];
static int n_rules;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; // around what follows
static struct point {
    char name[NAME_SIZE];
    long count;
} points[POINTS_MAX];
static int n_points;
static bool sync_failed[FILES_MAX]; // by descriptor

// What is to happen with a call.
struct fate {
    const char *name; // of the point, NULL: it is none
    long number;
    bool fails;
    int error;          // 0: short
    bool before, after; // killed
    bool torn;
};

// The C library's own, by the type of ours.
#define NEXT(function) (__extension__(__typeof__(&(function))) next(#function))

static void *next(const char *name)
{
    void *function = dlsym(RTLD_NEXT, name);
    if (!function)
        abort();
    return function;
}

static void refuse(const char *variable, const char *text)
{
    dprintf(STDERR_FILENO, "faults: %s=%s is not understood\n", variable, text);
    _exit(64);
}

static void rule_add(const char *text)
{
    struct rule *r = &rules[n_rules++];
    char error[16], times[PATH_MAX];
    if (n_rules > RULES_MAX ||
        sscanf(text, "%63[^:]:%15[^:]:%4095[^;]", r->point, error, times) != 3)
        refuse("FAULT_FAIL", text);
    size_t i = 0;
    while (i < sizeof errors / sizeof *errors && strcmp(errors[i].name, error) != 0)
        i++;
    if (i == sizeof errors / sizeof *errors)
        refuse("FAULT_FAIL", text);
    r->error = errors[i].error;
    if (strncmp(times, "while=", 6) == 0) {
        snprintf(r->file, sizeof r->file, "%s", times + 6);
    } else if (sscanf(times, "%ld-%ld", &r->from, &r->to) != 2) {
        if (sscanf(times, "%ld", &r->to) != 1)
            refuse("FAULT_FAIL", text);
        r->from = 1;
    }
}

__attribute__((constructor)) static void faults_begin(void)
{
    const char *text = getenv("FAULT_ROOT");
    if (!text || !realpath(text, root))
        return;
    text = getenv("FAULT_TRACE");
    if (text)
        trace = NEXT(open)(text, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
    text = getenv("FAULT_LOCKS");
    no_locks = text && strcmp(text, "none") == 0;
    text = getenv("FAULT_KILL");
    if (text && *text && sscanf(text, "%63[^:]:%ld:%15s", kill_point, &kill_number, kill_when) != 3)
        refuse("FAULT_KILL", text);
    text = getenv("FAULT_FAIL");
    while (text && *text) {
        rule_add(text);
        text += strcspn(text, ";");
        text += *text == ';';
    }
}

// ---- Which point it is

// The path of a call relative to the root, false: it lies elsewhere.
static bool path_of(int directory, const char *name, char path[PATH_MAX])
{
    char link[64], absolute[2 * PATH_MAX];
    ssize_t n = 0;
    if (name && *name == '/') {
        absolute[0] = '\0';
    } else if (directory == AT_FDCWD) {
        if (!getcwd(absolute, PATH_MAX))
            return false;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
        n = readlink(link, absolute, PATH_MAX - 1);
        if (n < 0)
            return false;
        absolute[n] = '\0';
    }
    if (name)
        snprintf(absolute + strlen(absolute), PATH_MAX, *name == '/' ? "%s" : "/%s", name);
    char *deleted = strstr(absolute, " (deleted)");
    if (deleted)
        *deleted = '\0';
    // A name that was given as a path may lead through links: the directory tells where to.
    if (name) {
        char resolved[PATH_MAX];
        char *last = strrchr(absolute, '/');
        *last = '\0';
        const bool there = realpath(*absolute ? absolute : "/", resolved) != NULL;
        *last = '/';
        if (there) {
            const size_t used = strlen(resolved), rest = strlen(last);
            if (used + rest >= PATH_MAX)
                return false;
            memmove(absolute + used, last, rest + 1);
            memcpy(absolute, resolved, used);
        }
    }
    const size_t n_root = strlen(root);
    if (strncmp(absolute, root, n_root) != 0 || (absolute[n_root] && absolute[n_root] != '/'))
        return false;
    snprintf(path, PATH_MAX, "%s", absolute + n_root + (absolute[n_root] == '/'));
    return true;
}

// The class of something below the root of generations, rest being what follows the root's name.
static void class_generation(const char *what, const char *rest, char class[NAME_SIZE])
{
    const char *slash = strchr(rest, '/'), *file = slash ? slash + 1 : NULL;
    const bool fresh = strncmp(rest, ".tmp-", 5) == 0;
    const char *suffix = "";
    if (*rest == '\0')
        suffix = "-root";
    else if (strcmp(rest, "LATEST") == 0 || strcmp(rest, ".tmp-LATEST") == 0)
        suffix = "-LATEST";
    else if (strcmp(rest, ".lock") == 0)
        suffix = "-lock";
    else if (!file)
        suffix = fresh ? "-new" : "";
    else if (strncmp(file, "manifest.", 9) == 0)
        suffix = fresh ? "-manifest" : "-old-manifest";
    else
        suffix = fresh ? "-file" : "-old-file";
    snprintf(class, NAME_SIZE, "%s%s", what, suffix);
}

static bool class_of(const char *path, char class[NAME_SIZE])
{
    static const char *const generations[][2] = {
        {"state/checkpoints", "checkpoint"}, {"state/final", "final"}, {"snapshots", "snapshot"}};
    static const char *const files[][2] = {{"", "run"},
                                           {"state", "state"},
                                           {"state/owner", "owner"},
                                           {"state/.tmp-owner", "owner"},
                                           {"state/slices-*.log", "slices"},
                                           {"state/dead-letters.jsonl", "dead-letters"},
                                           {"state/dead-letters.jsonl.1", "dead-letters.1"}};
    for (size_t i = 0; i < sizeof generations / sizeof *generations; i++) {
        const size_t n = strlen(generations[i][0]);
        if (strncmp(path, generations[i][0], n) == 0 && (path[n] == '\0' || path[n] == '/')) {
            class_generation(generations[i][1], path + n + (path[n] == '/'), class);
            return true;
        }
    }
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        if (fnmatch(files[i][0], path, FNM_PATHNAME) == 0) {
            snprintf(class, NAME_SIZE, "%s", files[i][1]);
            return true;
        }
    }
    return false;
}

static struct point *point_find(const char *name)
{
    int i = 0;
    while (i < n_points && strcmp(points[i].name, name) != 0)
        i++;
    if (i == n_points) {
        if (n_points == POINTS_MAX)
            abort();
        snprintf(points[n_points++].name, NAME_SIZE, "%s", name);
    }
    return &points[i];
}

// ---- What happens there

static void tell(const struct fate *f, const char *what)
{
    if (trace >= 0)
        dprintf(trace, "%s %ld%s\n", f->name, f->number, what);
}

static void die(const struct fate *f)
{
    tell(f, " killed");
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

// Decides on a call, and kills before it.
static struct fate fate_of(const char *kind, int directory, const char *name)
{
    char path[PATH_MAX], class[NAME_SIZE], text[2 * NAME_SIZE];
    struct fate f = {0};
    if (root[0] == '\0' || !path_of(directory, name, path) || !class_of(path, class))
        return f;
    snprintf(text, sizeof text, "%s %s", kind, class);
    pthread_mutex_lock(&lock);
    struct point *p = point_find(text);
    f.name = p->name;
    f.number = ++p->count;
    pthread_mutex_unlock(&lock);
    if (strcmp(kill_point, f.name) == 0 && f.number == kill_number) {
        f.before = strcmp(kill_when, "before") == 0;
        f.torn = strcmp(kill_when, "torn") == 0;
        f.after = strcmp(kill_when, "after") == 0;
    }
    for (int i = 0; i < n_rules && !f.fails; i++) {
        const struct rule *r = &rules[i];
        f.fails =
            fnmatch(r->point, f.name, 0) == 0 &&
            (r->file[0] ? access(r->file, F_OK) == 0 : f.number >= r->from && f.number <= r->to);
        f.error = r->error;
    }
    if (f.before)
        die(&f);
    tell(&f, f.fails ? " failed" : "");
    return f;
}

// After a call that ended with rc.
static int outcome(const struct fate *f, int rc)
{
    if (f->after)
        die(f);
    return rc;
}

static bool refused(const struct fate *f)
{
    if (f->fails && f->error)
        errno = f->error;
    return f->fails && f->error;
}

// Half of a write, in whole pages where it has some: what goes past the page cache has to.
static size_t length_of(const struct fate *f, size_t n)
{
    const size_t half = n < 2 * PAGE ? (n + 1) / 2 : n / 2 / PAGE * PAGE;
    const bool is_short = f->fails && f->error == 0 && (half >= PAGE || n % PAGE != 0);
    return f->torn || is_short ? half : n;
}

// ---- The calls

ssize_t pwrite(int fd, const void *bytes, size_t n, off_t offset)
{
    const struct fate f = fate_of("write", fd, NULL);
    if (refused(&f))
        return -1;
    const ssize_t rc = NEXT(pwrite)(fd, bytes, length_of(&f, n), offset);
    if (f.torn || f.after)
        die(&f);
    return rc;
}

ssize_t write(int fd, const void *bytes, size_t n)
{
    const struct fate f = fate_of("write", fd, NULL);
    if (refused(&f))
        return -1;
    const ssize_t rc = NEXT(write)(fd, bytes, length_of(&f, n));
    if (f.torn || f.after)
        die(&f);
    return rc;
}

static int sync_one(int fd, int (*sync)(int fd))
{
    const struct fate f = fate_of("sync", fd, NULL);
    if (f.name && fd < FILES_MAX && sync_failed[fd] && trace >= 0)
        dprintf(trace, "repeated %s\n", f.name);
    if (refused(&f)) {
        if (fd < FILES_MAX)
            sync_failed[fd] = true;
        return -1;
    }
    return outcome(&f, sync(fd));
}

int fsync(int fd)
{
    return sync_one(fd, NEXT(fsync));
}

int fdatasync(int fd)
{
    return sync_one(fd, NEXT(fdatasync));
}

int close(int fd)
{
    if (fd >= 0 && fd < FILES_MAX)
        sync_failed[fd] = false;
    return NEXT(close)(fd);
}

int ftruncate(int fd, off_t size)
{
    const struct fate f = fate_of("cut", fd, NULL);
    return refused(&f) ? -1 : outcome(&f, NEXT(ftruncate)(fd, size));
}

int fallocate(int fd, int mode, off_t offset, off_t size)
{
    const struct fate f = fate_of("allocate", fd, NULL);
    return refused(&f) ? -1 : outcome(&f, NEXT(fallocate)(fd, mode, offset, size));
}

int openat(int directory, const char *name, int flags, ...)
{
    va_list args;
    va_start(args, flags);
    const mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(args, mode_t) : 0;
    va_end(args);
    struct fate f = {0};
    if (flags & O_CREAT)
        f = fate_of("create", directory, name);
    return refused(&f) ? -1 : outcome(&f, NEXT(openat)(directory, name, flags, mode));
}

int open(const char *name, int flags, ...)
{
    va_list args;
    va_start(args, flags);
    const mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(args, mode_t) : 0;
    va_end(args);
    return openat(AT_FDCWD, name, flags, mode);
}

int renameat(int from_directory, const char *from, int to_directory, const char *to)
{
    const struct fate f = fate_of("rename", to_directory, to);
    return refused(&f) ? -1 : outcome(&f, NEXT(renameat)(from_directory, from, to_directory, to));
}

int rename(const char *from, const char *to)
{
    return renameat(AT_FDCWD, from, AT_FDCWD, to);
}

int unlinkat(int directory, const char *name, int flags)
{
    const struct fate f = fate_of("remove", directory, name);
    return refused(&f) ? -1 : outcome(&f, NEXT(unlinkat)(directory, name, flags));
}

int unlink(const char *name)
{
    return unlinkat(AT_FDCWD, name, 0);
}

int mkdirat(int directory, const char *name, mode_t mode)
{
    const struct fate f = fate_of("make", directory, name);
    return refused(&f) ? -1 : outcome(&f, NEXT(mkdirat)(directory, name, mode));
}

int mkdir(const char *name, mode_t mode)
{
    return mkdirat(AT_FDCWD, name, mode);
}

int flock(int fd, int operation);
int flock(int fd, int operation)
{
    return no_locks ? 0 : NEXT(flock)(fd, operation);
}
