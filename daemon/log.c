// SPDX-License-Identifier: Apache-2.0
#include "daemon/log.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include "daemon/clock.h"
#include "daemon/metrics.h"

enum { LINE_SIZE = 8192, FORMAT_SIZE = 1024, FIELDS_MAX = 24, NAME_SIZE = 48 };

// Stands between fields while they are formatted: no format string of ours contains it.
enum { SEPARATOR = '\x1f' };

struct field {
    char name[NAME_SIZE];
    bool number; // formatted by a conversion for numbers
    const char *value;
};

// A line under construction; what does not fit is cut off.
struct line {
    char text[LINE_SIZE];
    size_t length;
};

static const struct {
    const char *name;
    int syslog; // journald's priority
} levels[] = {
    [LOG_LEVEL_DEBUG] = {"debug", 7},
    [LOG_LEVEL_INFO] = {"info", 6},
    [LOG_LEVEL_WARNING] = {"warning", 4},
    [LOG_LEVEL_ERROR] = {"error", 3},
};

_Atomic int log_level_now = LOG_LEVEL_INFO;

// Guarded by the lock: one line is written at a time, and sites are shared by threads.
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static enum log_format format_now = LOG_FORMAT_TEXT;
static int fd_now = STDERR_FILENO;
static bool journal; // fd is the journal's
static struct log_site *suppressing;

static void line_put(struct line *l, const char *text, size_t n)
{
    // One byte is kept for the end of the line.
    const size_t room = sizeof l->text - 1 - l->length;
    n = n < room ? n : room;
    memcpy(l->text + l->length, text, n);
    l->length += n;
}

static void line_puts(struct line *l, const char *text)
{
    line_put(l, text, strlen(text));
}

__attribute__((format(printf, 2, 3))) static void line_printf(struct line *l, const char *format,
                                                              ...)
{
    char text[128];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    line_puts(l, text);
}

// Between quotes, escaped as JSON has it; bytes that are not ASCII pass, as UTF-8 does.
static void line_quote(struct line *l, const char *text)
{
    line_puts(l, "\"");
    for (const unsigned char *c = (const unsigned char *)text; *c; c++)
        if (*c == '"' || *c == '\\')
            line_printf(l, "\\%c", *c);
        else if (*c == '\n')
            line_puts(l, "\\n");
        else if (*c < 0x20 || *c == 0x7f)
            line_printf(l, "\\u%04x", *c);
        else
            line_put(l, (const char *)c, 1);
    line_puts(l, "\"");
}

// A value as it is when it is one plain word, else between quotes.
static void line_word(struct line *l, const char *text)
{
    bool plain = *text;
    for (const unsigned char *c = (const unsigned char *)text; *c; c++)
        plain &= *c > 0x20 && *c != 0x7f && *c != '"' && *c != '\\' && *c != '=';
    if (plain)
        line_puts(l, text);
    else
        line_quote(l, text);
}

// A sentence outside quotes: nothing in it may end the line or move the cursor.
static void line_sentence(struct line *l, const char *text)
{
    for (const unsigned char *c = (const unsigned char *)text; *c; c++)
        line_put(l, *c < 0x20 || *c == 0x7f ? " " : (const char *)c, 1);
}

bool log_is_secret(const char *name)
{
    static const char *const parts[] = {"password", "secret", "token",     "key.pem",
                                        "jaas",     "passwd", "credential"};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (strcasestr(name, parts[i]))
            return true;
    return false;
}

bool log_site_take(struct log_site *site, int64_t now_ms)
{
    const int64_t line_ms = 1000 / LOG_PER_SECOND;
    // Each line taken moves the time at which the bucket is full again by one refill.
    const int64_t from = site->spent_until_ms > now_ms ? site->spent_until_ms : now_ms;
    if (from + line_ms - now_ms > LOG_BURST * line_ms) {
        site->suppressed++;
        return false;
    }
    site->spent_until_ms = from + line_ms;
    return true;
}

// Names, and whether the value is a number, from the format "name=%d other=%s".
static int fields_plan(const char *format, char *separated, struct field *fields)
{
    int n = 0;
    assert(strlen(format) < FORMAT_SIZE);
    strcpy(separated, format);
    for (char *at = separated; at && n < FIELDS_MAX; n++) {
        struct field *f = &fields[n];
        char *end = strchr(at, ' '), *equals = strchr(at, '=');
        assert(equals && (!end || equals < end));
        if (end)
            *end = SEPARATOR;
        snprintf(f->name, sizeof f->name, "%.*s", (int)(equals - at), at);
        const size_t spec = strcspn(equals + 1, "diufge");
        const char stop = equals[1 + spec], next = stop ? equals[2 + spec] : 0;
        f->number = equals[1] == '%' && stop && (!next || next == SEPARATOR) &&
                    !memchr(equals + 1, 's', spec);
        at = end ? end + 1 : NULL;
    }
    return n;
}

// Cuts the formatted text into values. A separator that came with a value is not followed by the
// name that is due, so it stays in the value, and is escaped there.
static void fields_cut(char *text, int n, struct field *fields)
{
    for (int i = 0; i < n; i++) {
        text += strlen(fields[i].name) + 1;
        fields[i].value = text;
        if (i + 1 == n)
            break;
        const size_t length = strlen(fields[i + 1].name);
        char *end = strchr(text, SEPARATOR);
        while (end && (strncmp(end + 1, fields[i + 1].name, length) != 0 || end[1 + length] != '='))
            end = strchr(end + 1, SEPARATOR);
        if (!end) { // the text was cut off
            for (int rest = i + 1; rest < n; rest++)
                fields[rest].value = "";
            return;
        }
        *end = 0;
        text = end + 1;
    }
}

static void line_head(struct line *l, enum log_level level, const char *message)
{
    struct timespec now;
    struct tm tm;
    char ts[80];
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &tm);
    const size_t n = strftime(ts, sizeof ts, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(ts + n, sizeof ts - n, ".%03ldZ", now.tv_nsec / 1000000);

    switch (format_now) {
    case LOG_FORMAT_TEXT:
        if (journal)
            line_printf(l, "<%d>", levels[level].syslog);
        else
            line_printf(l, "%s %-7s ", ts, levels[level].name);
        line_sentence(l, message);
        break;
    case LOG_FORMAT_LOGFMT:
        line_printf(l, "ts=%s level=%s msg=", ts, levels[level].name);
        line_word(l, message);
        break;
    case LOG_FORMAT_JSON:
        line_printf(l, "{\"ts\":\"%s\",\"level\":\"%s\",\"message\":", ts, levels[level].name);
        line_quote(l, message);
        break;
    }
}

static void line_field(struct line *l, const char *name, const char *value, bool number)
{
    if (log_is_secret(name)) {
        value = "(hidden)";
        number = false;
    }
    if (format_now != LOG_FORMAT_JSON) {
        line_printf(l, " %s=", name);
        line_word(l, value);
        return;
    }
    line_printf(l, ",\"%s\":", name);
    // JSON has no nan and no inf.
    if (number && strspn(value, "+-.0123456789e") == strlen(value))
        line_puts(l, value);
    else
        line_quote(l, value);
}

static void line_write(struct line *l)
{
    if (format_now == LOG_FORMAT_JSON)
        line_puts(l, "}");
    l->text[l->length++] = '\n';
    // A log that cannot be written is no reason to stop, and there is nobody to tell.
    for (size_t done = 0; done < l->length;) {
        const ssize_t n = write(fd_now, l->text + done, l->length - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        done += (size_t)n;
    }
}

static void line_suppressed(struct line *l, struct log_site *site)
{
    char number[24];
    if (!site->suppressed)
        return;
    snprintf(number, sizeof number, "%" PRIu64, site->suppressed);
    line_field(l, "suppressed", number, true);
    site->suppressed = 0;
}

// stderr is the journal's when JOURNAL_STREAM names its device and inode: the variable alone may
// have been inherited by a process whose output goes elsewhere.
static bool fd_is_journal(int fd)
{
    const char *stream = getenv("JOURNAL_STREAM");
    unsigned long long device, inode;
    struct stat st;
    return stream && sscanf(stream, "%llu:%llu", &device, &inode) == 2 && fstat(fd, &st) == 0 &&
           st.st_dev == device && st.st_ino == inode;
}

void log_init(enum log_level level, enum log_format format, int fd)
{
    pthread_mutex_lock(&lock);
    atomic_store(&log_level_now, (int)level);
    format_now = format;
    fd_now = fd;
    journal = fd_is_journal(fd);
    pthread_mutex_unlock(&lock);
}

void log_write(struct log_site *site, enum log_level level, const char *message, const char *format,
               ...)
{
    struct field fields[FIELDS_MAX];
    char separated[FORMAT_SIZE], text[LINE_SIZE];
    struct line line = {.length = 0};
    int n = 0;

    pthread_mutex_lock(&lock);
    const bool first = site->suppressed == 0;
    site->message = message;
    if (!log_site_take(site, clock_ms(CLOCK_MONOTONIC))) {
        metrics_add(METRIC_LOG_SUPPRESSED, 1);
        if (first) {
            site->next = suppressing;
            suppressing = site;
        }
        pthread_mutex_unlock(&lock);
        return;
    }
    if (format) {
        va_list args;
        n = fields_plan(format, separated, fields);
        va_start(args, format);
        vsnprintf(text, sizeof text, separated, args);
        va_end(args);
        fields_cut(text, n, fields);
    }
    line_head(&line, level, message);
    for (int i = 0; i < n; i++)
        line_field(&line, fields[i].name, fields[i].value, fields[i].number);
    if (site->suppressed) {
        struct log_site **link = &suppressing;
        while (*link != site)
            link = &(*link)->next;
        *link = site->next;
        line_suppressed(&line, site);
    }
    line_write(&line);
    pthread_mutex_unlock(&lock);
}

void log_flush(void)
{
    pthread_mutex_lock(&lock);
    for (; suppressing; suppressing = suppressing->next) {
        struct line line = {.length = 0};
        line_head(&line, LOG_LEVEL_WARNING, suppressing->message);
        line_suppressed(&line, suppressing);
        line_write(&line);
    }
    pthread_mutex_unlock(&lock);
}

void log_foreign(int syslog_level, const char *origin, const char *text)
{
    // One place for each level: a flood of notices must not hold back an error.
    static struct log_site sites[LOG_LEVEL_ERROR + 1];
    enum log_level level = LOG_LEVEL_DEBUG;
    if (syslog_level <= 3)
        level = LOG_LEVEL_ERROR;
    else if (syslog_level == 4)
        level = LOG_LEVEL_WARNING;
    else if (syslog_level <= 6)
        level = LOG_LEVEL_INFO;
    if ((int)level >= atomic_load_explicit(&log_level_now, memory_order_relaxed))
        log_write(&sites[level], level, "a library reports", "from=%s text=%s", origin, text);
}
