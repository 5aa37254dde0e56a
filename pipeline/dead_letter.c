// SPDX-License-Identifier: Apache-2.0
#include "pipeline/dead_letter.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pipeline/decode_json.h"
#include "pipeline/small_file.h"

enum { VALUE_BYTES_MAX = 1 << 20, START_LINE_MAX = 64 };

struct dead_letter {
    int fd;
    char path[4096], rotated[4096 + 2];
    uint64_t bytes_max;
    uint64_t start;      // position of the file's first byte
    uint64_t size;       // of the file
    uint64_t start_size; // of its first line
    uint64_t rotations;
    pthread_mutex_t lock; // around what the reader sees: start and fd where they change, and these
    bool followed, hold;
    uint64_t released, dropped;
    char *line; // line_size of line_capacity bytes
    size_t line_size, line_capacity;
    char error[512];
};

static int fail(struct dead_letter *d, int rc, const char *path, const char *doing)
{
    snprintf(d->error, sizeof d->error, "%.400s: %s: %s", path, doing, strerror(-rc));
    return rc;
}

// The line under construction.

// Room for n more bytes.
static bool line_reserve(struct dead_letter *d, size_t n)
{
    if (n <= d->line_capacity - d->line_size)
        return true;
    const size_t capacity = 2 * (d->line_size + n);
    char *line = realloc(d->line, capacity);
    if (!line)
        return false;
    d->line = line;
    d->line_capacity = capacity;
    return true;
}

static void line_bytes(struct dead_letter *d, const char *bytes, size_t size)
{
    assert(size <= d->line_capacity - d->line_size);
    memcpy(d->line + d->line_size, bytes, size);
    d->line_size += size;
}

static bool line_format(struct dead_letter *d, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static bool line_format(struct dead_letter *d, const char *format, ...)
{
    char text[128];
    va_list args;
    va_start(args, format);
    const int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    assert(n >= 0 && (size_t)n < sizeof text);
    if (!line_reserve(d, (size_t)n))
        return false;
    line_bytes(d, text, (size_t)n);
    return true;
}

// Text that is UTF-8, in quotes.
static bool line_string(struct dead_letter *d, const char *bytes, size_t size)
{
    static const char hex[] = "0123456789abcdef";
    if (!line_reserve(d, 6 * size + 2))
        return false;
    line_bytes(d, "\"", 1);
    for (size_t i = 0; i < size; i++) {
        const unsigned char c = (unsigned char)bytes[i];
        if (c == '"' || c == '\\')
            line_bytes(d, (char[]){'\\', (char)c}, 2);
        else if (c < ' ')
            line_bytes(d, (char[]){'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15]}, 6);
        else
            line_bytes(d, (char[]){(char)c}, 1);
    }
    line_bytes(d, "\"", 1);
    return true;
}

static bool line_base64(struct dead_letter *d, const char *bytes, size_t size)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    if (!line_reserve(d, (size + 2) / 3 * 4 + 2))
        return false;
    line_bytes(d, "\"", 1);
    for (size_t i = 0; i < size; i += 3) {
        const size_t n = size - i < 3 ? size - i : 3;
        uint32_t bits = 0;
        for (size_t b = 0; b < 3; b++)
            bits = bits << 8 | (b < n ? (uint8_t)bytes[i + b] : 0);
        char quad[4];
        for (size_t q = 0; q < 4; q++)
            quad[q] = q <= n ? digits[bits >> (18 - 6 * q) & 63] : '=';
        line_bytes(d, quad, 4);
    }
    line_bytes(d, "\"", 1);
    return true;
}

static bool line_field(struct dead_letter *d, const char *name, const char *bytes, size_t size)
{
    if (json_utf8_valid(bytes, size))
        return line_format(d, ",\"%s\":", name) && line_string(d, bytes, size);
    return line_format(d, ",\"%s_base64\":", name) && line_base64(d, bytes, size);
}

// The file.

static int write_all(int fd, const char *bytes, size_t size)
{
    while (size > 0) {
        const ssize_t n = write(fd, bytes, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            return -EIO;
        bytes += n;
        size -= (size_t)n;
    }
    return 0;
}

// All of the line or nothing of it.
static int file_append(struct dead_letter *d, const char *line, size_t size)
{
    const int rc = write_all(d->fd, line, size);
    if (rc < 0) {
        // If even this fails, open or truncate removes the torn line after the restart.
        (void)!ftruncate(d->fd, (off_t)d->size);
        return fail(d, rc, d->path, "write");
    }
    d->size += size;
    return 0;
}

static int sync_directory(struct dead_letter *d)
{
    const int rc = small_file_sync_directory(d->path);
    return rc < 0 ? fail(d, rc, d->path, "sync of its directory") : 0;
}

// The size of a file, its start and the size of the line that says it; -ENOENT when there is no
// such file, -EBADMSG when it does not begin with that line.
static int file_inspect(int fd, uint64_t *start, uint64_t *start_size, uint64_t *size)
{
    char line[START_LINE_MAX];
    struct stat st;
    int consumed = 0;

    if (fstat(fd, &st) < 0)
        return -errno;
    *size = (uint64_t)st.st_size;
    const ssize_t n = pread(fd, line, sizeof line - 1, 0);
    if (n < 0)
        return -errno;
    line[n] = '\0';
    if (sscanf(line, "{\"start\":%" SCNu64 "}%n", start, &consumed) != 1 || consumed == 0 ||
        line[consumed] != '\n')
        return -EBADMSG;
    *start_size = (uint64_t)consumed + 1;
    return 0;
}

// The end of the last whole line.
static int file_whole_size(int fd, uint64_t size, uint64_t *whole)
{
    char bytes[4096];
    while (size > 0) {
        const size_t n = size < sizeof bytes ? (size_t)size : sizeof bytes;
        const ssize_t got = pread(fd, bytes, n, (off_t)(size - n));
        if (got < 0)
            return -errno;
        if ((size_t)got != n)
            return -EIO;
        const char *newline = memrchr(bytes, '\n', n);
        if (newline) {
            *whole = size - n + (uint64_t)(newline - bytes) + 1;
            return 0;
        }
        size -= n;
    }
    *whole = 0;
    return 0;
}

// Begins an empty file at a position, in place of any other of that name. After a failure put
// tries again.
static int file_begin(struct dead_letter *d, uint64_t start)
{
    char line[START_LINE_MAX];
    const int size = snprintf(line, sizeof line, "{\"start\":%" PRIu64 "}\n", start);

    d->start = start;
    d->start_size = (uint64_t)size;
    d->size = 0;
    if (d->fd >= 0)
        close(d->fd);
    d->fd = open(d->path, O_RDWR | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0640);
    if (d->fd < 0)
        return fail(d, -errno, d->path, "open");
    const int rc = file_append(d, line, (size_t)size);
    return rc < 0 ? rc : sync_directory(d);
}

// Takes over the file at d->path. -ENOENT and -EBADMSG as of file_inspect, without a message.
static int file_continue(struct dead_letter *d)
{
    uint64_t whole;
    if (d->fd >= 0)
        close(d->fd);
    d->fd = open(d->path, O_RDWR | O_APPEND | O_CLOEXEC);
    if (d->fd < 0)
        return errno == ENOENT ? -ENOENT : fail(d, -errno, d->path, "open");
    int rc = file_inspect(d->fd, &d->start, &d->start_size, &d->size);
    if (rc == -EBADMSG)
        return rc;
    if (rc == 0)
        rc = file_whole_size(d->fd, d->size, &whole);
    if (rc < 0)
        return fail(d, rc, d->path, "read");
    if (whole < d->size && ftruncate(d->fd, (off_t)whole) < 0)
        return fail(d, -errno, d->path, "truncate");
    d->size = whole;
    return 0;
}

// Where PATH.1 begins and ends. -ENOENT when it is of no use.
static int rotated_inspect(struct dead_letter *d, uint64_t *start, uint64_t *end)
{
    uint64_t start_size, size;
    const int fd = open(d->rotated, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? -ENOENT : fail(d, -errno, d->rotated, "open");
    const int rc = file_inspect(fd, start, &start_size, &size);
    close(fd);
    if (rc == -EBADMSG)
        return -ENOENT;
    if (rc < 0)
        return fail(d, rc, d->rotated, "read");
    *end = *start + size;
    return 0;
}

// What is there becomes PATH.1, and a file at the given position takes its place.
static int rotate(struct dead_letter *d, uint64_t start)
{
    int rc = dead_letter_sync(d);
    if (rc < 0)
        return rc;
    if (rename(d->path, d->rotated) < 0)
        return fail(d, -errno, d->rotated, "rename");
    d->rotations++;
    return file_begin(d, start);
}

int dead_letter_open(struct dead_letter **out, const char *path, uint64_t bytes_max)
{
    struct dead_letter *d = calloc(1, sizeof *d);
    uint64_t start, end;

    *out = d;
    if (!d)
        return -ENOMEM;
    d->fd = -1;
    d->bytes_max = bytes_max;
    pthread_mutex_init(&d->lock, NULL);
    if (strlen(path) >= sizeof d->path)
        return fail(d, -ENAMETOOLONG, path, "open");
    strcpy(d->path, path);
    snprintf(d->rotated, sizeof d->rotated, "%s.1", path);

    int rc = file_continue(d);
    if (rc == -EBADMSG) {
        // Less than a line: the process died while it began the file. Anything else is not ours.
        uint64_t whole;
        if (d->size >= START_LINE_MAX || file_whole_size(d->fd, d->size, &whole) < 0 || whole > 0)
            return fail(d, rc, path, "is not a dead-letter file");
        rc = -ENOENT;
    }
    if (rc != -ENOENT)
        return rc;
    // No file yet, or the process died between the two steps of a rotation.
    rc = rotated_inspect(d, &start, &end);
    if (rc < 0 && rc != -ENOENT)
        return rc;
    return file_begin(d, rc == 0 ? end : 0);
}

static bool line_header_part(struct dead_letter *d, bool utf8, const char *bytes, size_t size)
{
    return utf8 ? line_string(d, bytes, size) : line_base64(d, bytes, size);
}

static bool line_headers(struct dead_letter *d, const struct record_headers *headers)
{
    bool utf8 = true;
    for (int i = 0; i < headers->n; i++) {
        const struct record_header *h = &headers->list[i];
        utf8 &= json_utf8_valid(h->name, h->name_size) &&
                (!h->value || json_utf8_valid(h->value, h->value_size));
    }
    bool ok = line_format(d, ",\"headers%s\":[", utf8 ? "" : "_base64");
    for (int i = 0; ok && i < headers->n; i++) {
        const struct record_header *h = &headers->list[i];
        ok = line_format(d, i ? ",[" : "[") && line_header_part(d, utf8, h->name, h->name_size) &&
             line_format(d, ",") &&
             (h->value ? line_header_part(d, utf8, h->value, h->value_size)
                       : line_format(d, "null")) &&
             line_format(d, "]");
    }
    return ok && line_format(d, "]") &&
           (headers->left_out == 0 ||
            line_format(d, ",\"headers_left_out\":%d", headers->left_out));
}

static bool line_make(struct dead_letter *d, const struct letter *l)
{
    const struct record *r = &l->record;
    const size_t kept = r->value_size < VALUE_BYTES_MAX ? r->value_size : VALUE_BYTES_MAX;
    d->line_size = 0;
    return line_format(d, "{\"topic\":") && line_string(d, l->topic, strlen(l->topic)) &&
           line_format(d, ",\"partition\":%" PRId32 ",\"offset\":%" PRId64, l->partition,
                       r->offset) &&
           (l->slice == 0 ||
            line_format(d, ",\"slice\":%" PRIu64 ",\"letter\":%" PRIu64, l->slice, l->letter)) &&
           (r->broker_ts_ms < 0 || line_format(d, ",\"ts\":%" PRId64, r->broker_ts_ms)) &&
           line_format(d, ",\"reason\":\"%s\"", l->reason) &&
           line_field(d, "message", l->message, strlen(l->message)) &&
           (!r->key || line_field(d, "key", r->key,
                                  r->key_size < VALUE_BYTES_MAX ? r->key_size : VALUE_BYTES_MAX)) &&
           (!l->headers || l->headers->n + l->headers->left_out == 0 ||
            line_headers(d, l->headers)) &&
           (kept == r->value_size || line_format(d, ",\"value_size\":%zu", r->value_size)) &&
           (r->tombstone ? line_format(d, ",\"value\":null")
                         : line_field(d, "value", r->value, kept)) &&
           line_format(d, "}\n");
}

// Whether PATH.1 may be replaced now, with the lock.
static bool rotation_allowed(const struct dead_letter *d)
{
    return !d->followed || !d->hold || d->released >= d->start;
}

int dead_letter_put(struct dead_letter *d, const struct letter *letter)
{
    if (d->size == 0) { // an earlier call could not begin the file
        pthread_mutex_lock(&d->lock);
        const int rc = file_begin(d, d->start);
        pthread_mutex_unlock(&d->lock);
        if (rc < 0)
            return rc;
    }
    if (!line_make(d, letter))
        return fail(d, -ENOMEM, d->path, "write");

    // A single line larger than bytes_max has a file to itself.
    if (d->size > d->start_size && d->size + d->line_size > d->bytes_max) {
        int rc = 0;
        pthread_mutex_lock(&d->lock);
        if (rotation_allowed(d)) {
            if (d->followed && d->released < d->start) {
                d->dropped += d->start - d->released;
                d->released = d->start;
            }
            rc = rotate(d, dead_letter_size(d));
        }
        pthread_mutex_unlock(&d->lock);
        if (rc < 0)
            return rc;
    }
    return file_append(d, d->line, d->line_size);
}

int dead_letter_sync(struct dead_letter *d)
{
    if (fdatasync(d->fd) < 0)
        return fail(d, -errno, d->path, "sync");
    return 0;
}

uint64_t dead_letter_size(const struct dead_letter *d)
{
    return d->start + d->size;
}

int dead_letter_truncate(struct dead_letter *d, uint64_t size)
{
    uint64_t start, end;

    if (size < d->start + d->start_size) {
        int rc = rotated_inspect(d, &start, &end);
        if (rc < 0 && rc != -ENOENT)
            return rc;
        if (rc == 0 && size >= start && size <= end) {
            if (rename(d->rotated, d->path) < 0)
                return fail(d, -errno, d->rotated, "rename");
            rc = file_continue(d);
            if (rc < 0)
                return fail(d, rc, d->path, "open");
            rc = sync_directory(d);
            if (rc < 0)
                return rc;
        } else if (rc == 0 && size < start && unlink(d->rotated) < 0) {
            // Both files hold only what will be written again.
            return fail(d, -errno, d->rotated, "remove");
        }
    }
    // Records of another history are none of ours to remove.
    if (size > d->start + d->size)
        return d->size > d->start_size ? rotate(d, size) : file_begin(d, size);
    if (size < d->start + d->start_size)
        return file_begin(d, size);
    if (ftruncate(d->fd, (off_t)(size - d->start)) < 0)
        return fail(d, -errno, d->path, "truncate");
    d->size = size - d->start;
    return dead_letter_sync(d);
}

// Following. The reader's file is PATH.1 where that goes on in PATH, else PATH.

void dead_letter_follow(struct dead_letter *d, bool hold)
{
    uint64_t start = 0, end = 0;
    d->followed = true;
    d->hold = hold;
    d->released = rotated_inspect(d, &start, &end) == 0 && end == d->start ? start : d->start;
}

bool dead_letter_full(struct dead_letter *d)
{
    pthread_mutex_lock(&d->lock);
    const bool full = d->size > d->start_size && d->size >= d->bytes_max && !rotation_allowed(d);
    pthread_mutex_unlock(&d->lock);
    return full;
}

uint64_t dead_letter_dropped(struct dead_letter *d)
{
    pthread_mutex_lock(&d->lock);
    const uint64_t dropped = d->dropped;
    pthread_mutex_unlock(&d->lock);
    return dropped;
}

void dead_letter_release(struct dead_letter *d, uint64_t position)
{
    pthread_mutex_lock(&d->lock);
    if (position > d->released)
        d->released = position;
    pthread_mutex_unlock(&d->lock);
}

// With the lock. -ENOENT when PATH.1 is not what comes before PATH.
static int rotated_open(const struct dead_letter *d, uint64_t *start)
{
    uint64_t start_size, size;
    const int fd = open(d->rotated, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    if (file_inspect(fd, start, &start_size, &size) == 0 && *start + size == d->start)
        return fd;
    close(fd);
    return -ENOENT;
}

int dead_letter_file_at(struct dead_letter *d, uint64_t *position, uint64_t *start)
{
    pthread_mutex_lock(&d->lock);
    int fd = *position < d->start ? rotated_open(d, start) : -ENOENT;
    if (fd == -ENOENT) {
        *start = d->start;
        fd = fcntl(d->fd, F_DUPFD_CLOEXEC, 0);
        fd = fd < 0 ? -errno : fd;
    }
    pthread_mutex_unlock(&d->lock);
    if (fd >= 0 && *position < *start)
        *position = *start;
    return fd;
}

const char *dead_letter_path(const struct dead_letter *d)
{
    return d->path;
}

uint64_t dead_letter_rotations(const struct dead_letter *d)
{
    return d->rotations;
}

const char *dead_letter_error(const struct dead_letter *d)
{
    return d->error;
}

void dead_letter_close(struct dead_letter *d)
{
    if (!d)
        return;
    if (d->fd >= 0)
        close(d->fd);
    pthread_mutex_destroy(&d->lock);
    free(d->line);
    free(d);
}
