// SPDX-License-Identifier: Apache-2.0
//
// Recorded streams: one file of JSON lines per topic, plain or compressed by zstd. A line's number,
// from 0, is its offset. Blank lines are counted and not delivered; a last line without a newline
// is a line. The files are read as they are: nobody appends to them meanwhile.
//
// zstd cannot seek, so reading from a line means decompressing and counting up to it, and bounds()
// is one pass over each file (1 GB/s of text and more); its answer is kept while the file's size
// and time of change stay the same.
//
// offsets_for_time() looks at the digits after the first "ts" key of each line and takes the first
// line at or after the time. It knows no more JSON than that: a line whose first "ts" is not the
// record's own (a nested object in front of it) is judged by the nested one.
#include "pipeline/source.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

enum {
    TEXT_BYTES = 1 << 20,      // decompressed text, to begin with
    LINE_BYTES_MAX = 64 << 20, // longer lines than this are not lines
};

// One file and the window of text that has been read from it.
struct line_reader {
    char path[4096];
    int fd;
    ZSTD_DStream *zstd; // NULL: plain text
    char *input;        // compressed bytes, input_size of them, used up to input_at
    size_t input_capacity, input_size, input_at;
    bool frame_open; // a zstd frame has begun and not ended
    bool any_frame;
    char *text; // text_capacity bytes; those in [at, end) are to be delivered
    size_t text_capacity, at, end;
    size_t searched; // no newline in [at, searched)
    bool eof;        // of the text
    int64_t line;    // number of the line at `at`
};

struct file_partition {
    struct line_reader reader;
    int64_t next, stop; // lines
    int64_t lines;      // counted by bounds, -1 before
    struct timespec lines_mtime;
    off_t lines_size;
};

struct source_file {
    struct source base;
    struct file_partition partitions[TOPICS];
};

static int fail(struct source *s, int rc, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static int fail(struct source *s, int rc, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(s->error, sizeof s->error, format, args);
    va_end(args);
    return rc;
}

// The reader. Its functions leave the sentence for a person in s->error.

static int reader_open(struct source *s, struct line_reader *r, bool compressed)
{
    r->fd = open(r->path, O_RDONLY | O_CLOEXEC);
    if (r->fd < 0)
        return fail(s, -errno, "%.400s: %s", r->path, strerror(errno));
    (void)posix_fadvise(r->fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    r->text_capacity = TEXT_BYTES;
    r->text = malloc(r->text_capacity);
    if (compressed) {
        r->zstd = ZSTD_createDStream();
        r->input_capacity = ZSTD_DStreamInSize();
        r->input = malloc(r->input_capacity);
    }
    if (!r->text || (compressed && (!r->zstd || !r->input)))
        return fail(s, -ENOMEM, "%.400s: out of memory", r->path);
    return 0;
}

static void reader_close(struct line_reader *r)
{
    if (r->fd >= 0)
        close(r->fd);
    ZSTD_freeDStream(r->zstd);
    free(r->input);
    free(r->text);
}

static int reader_rewind(struct source *s, struct line_reader *r)
{
    if (lseek(r->fd, 0, SEEK_SET) < 0)
        return fail(s, -errno, "%.400s: %s", r->path, strerror(errno));
    if (r->zstd)
        ZSTD_DCtx_reset(r->zstd, ZSTD_reset_session_only);
    r->input_size = r->input_at = 0;
    r->frame_open = r->any_frame = r->eof = false;
    r->at = r->end = r->searched = 0;
    r->line = 0;
    return 0;
}

static ssize_t reader_read(struct source *s, struct line_reader *r, char *bytes, size_t size)
{
    ssize_t n;
    do
        n = read(r->fd, bytes, size);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return fail(s, -errno, "%.400s: line %" PRId64 ": %s", r->path, r->line, strerror(errno));
    return n;
}

// Puts more text behind r->end. Sets eof when there is no more.
static int reader_decompress(struct source *s, struct line_reader *r)
{
    const size_t before = r->end;
    while (r->end == before && !r->eof) {
        ZSTD_inBuffer in = {r->input, r->input_size, r->input_at};
        ZSTD_outBuffer out = {r->text, r->text_capacity, r->end};
        const size_t rc = ZSTD_decompressStream(r->zstd, &out, &in);
        if (ZSTD_isError(rc))
            return fail(s, -EBADMSG, "%.400s: line %" PRId64 ": corrupt compressed data: %s",
                        r->path, r->line, ZSTD_getErrorName(rc));
        if (in.pos > r->input_at || out.pos > r->end) {
            r->input_at = in.pos;
            r->end = out.pos;
            r->frame_open = rc != 0;
            r->any_frame = true;
            continue;
        }
        // Only now: without new input there may still be text inside that did not fit before.
        assert(r->input_at == r->input_size);
        const ssize_t n = reader_read(s, r, r->input, r->input_capacity);
        if (n < 0)
            return (int)n;
        r->input_at = 0;
        r->input_size = (size_t)n;
        if (n == 0 && (r->frame_open || !r->any_frame))
            return fail(s, -EBADMSG, "%.400s: line %" PRId64 ": the compressed data is cut off",
                        r->path, r->line);
        r->eof = n == 0;
    }
    return 0;
}

static int reader_fill(struct source *s, struct line_reader *r)
{
    if (r->at > 0) { // what was delivered makes room
        memmove(r->text, r->text + r->at, r->end - r->at);
        r->searched -= r->at;
        r->end -= r->at;
        r->at = 0;
    }
    if (r->end == r->text_capacity) {
        if (r->text_capacity > LINE_BYTES_MAX)
            return fail(s, -EFBIG, "%.400s: line %" PRId64 ": longer than %d MiB", r->path, r->line,
                        LINE_BYTES_MAX >> 20);
        size_t capacity = 2 * r->text_capacity;
        if (capacity > LINE_BYTES_MAX)
            capacity = LINE_BYTES_MAX + 1; // the line and its newline
        char *text = realloc(r->text, capacity);
        if (!text)
            return fail(s, -ENOMEM, "%.400s: line %" PRId64 ": out of memory", r->path, r->line);
        r->text = text;
        r->text_capacity = capacity;
    }
    if (r->zstd)
        return reader_decompress(s, r);
    const ssize_t n = reader_read(s, r, r->text + r->end, r->text_capacity - r->end);
    if (n < 0)
        return (int)n;
    r->end += (size_t)n;
    r->eof = n == 0;
    return 0;
}

// The next line if its end is within the window, without its newline.
static bool reader_line_in_window(struct line_reader *r, const char **line, size_t *size)
{
    const char *newline = memchr(r->text + r->searched, '\n', r->end - r->searched);
    if (!newline) {
        r->searched = r->end;
        if (!r->eof || r->at == r->end)
            return false;
    }
    *line = r->text + r->at;
    *size = newline ? (size_t)(newline - *line) : r->end - r->at;
    r->at += *size + (newline != NULL);
    r->searched = r->at;
    r->line++;
    return true;
}

// 1 and a line, valid until the next call; 0 at the end; -errno.
static int reader_line(struct source *s, struct line_reader *r, const char **line, size_t *size)
{
    while (!reader_line_in_window(r, line, size)) {
        if (r->eof)
            return 0;
        const int rc = reader_fill(s, r);
        if (rc < 0)
            return rc;
    }
    return 1;
}

static bool line_is_blank(const char *line, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if (!strchr(" \t\r", line[i]) || line[i] == '\0')
            return false;
    return true;
}

// The source.

static struct source_file *file_of(struct source *s)
{
    return (struct source_file *)(void *)s;
}

static struct file_partition *partition_of(struct source *s, int p)
{
    assert(p >= 0 && p < s->n_partitions);
    return &file_of(s)->partitions[p];
}

static int source_file_count(struct source *s, struct file_partition *fp)
{
    struct stat st;
    const char *line;
    size_t size;
    int rc;

    if (fstat(fp->reader.fd, &st) < 0)
        return fail(s, -errno, "%.400s: %s", fp->reader.path, strerror(errno));
    if (fp->lines >= 0 && st.st_size == fp->lines_size &&
        st.st_mtim.tv_sec == fp->lines_mtime.tv_sec &&
        st.st_mtim.tv_nsec == fp->lines_mtime.tv_nsec)
        return 0;
    rc = reader_rewind(s, &fp->reader);
    if (rc < 0)
        return rc;
    while ((rc = reader_line(s, &fp->reader, &line, &size)) > 0)
        ;
    if (rc < 0)
        return rc;
    fp->lines = fp->reader.line;
    fp->lines_size = st.st_size;
    fp->lines_mtime = st.st_mtim;
    return reader_rewind(s, &fp->reader);
}

// Counting moves the readers, so reading goes on from where it was by skipping again.
static int source_file_bounds(struct source *s, int64_t *first, int64_t *end)
{
    for (int p = 0; p < s->n_partitions; p++) {
        const int rc = source_file_count(s, partition_of(s, p));
        if (rc < 0)
            return rc;
        first[p] = 0;
        end[p] = partition_of(s, p)->lines;
    }
    return 0;
}

// The number after "ts": INT64_MIN when there is none.
static int64_t line_time(const char *line, size_t size)
{
    static const char key[] = "\"ts\"";
    const char *end = line + size;
    const char *at = memmem(line, size, key, sizeof key - 1);
    if (!at)
        return INT64_MIN;
    at += sizeof key - 1;
    while (at < end && strchr(" \t:", *at) && *at)
        at++;
    int64_t ts = 0;
    const char *digits = at;
    while (at < end && *at >= '0' && *at <= '9' && ts < INT64_MAX / 10 - 1)
        ts = 10 * ts + (*at++ - '0');
    return at > digits ? ts : INT64_MIN;
}

static int source_file_offsets_for_time(struct source *s, int64_t ts_ms, int64_t *offsets)
{
    for (int p = 0; p < s->n_partitions; p++) {
        struct line_reader *r = &partition_of(s, p)->reader;
        const char *line;
        size_t size;
        int rc = reader_rewind(s, r);
        if (rc < 0)
            return rc;
        while ((rc = reader_line(s, r, &line, &size)) > 0 && line_time(line, size) < ts_ms)
            ;
        if (rc < 0)
            return rc;
        offsets[p] = rc > 0 ? r->line - 1 : r->line;
        rc = reader_rewind(s, r);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int source_file_start(struct source *s, const int64_t *next, const int64_t *stop)
{
    for (int p = 0; p < s->n_partitions; p++) {
        struct file_partition *fp = partition_of(s, p);
        assert(next[p] >= 0 || next[p] == SOURCE_BEGIN);
        const int rc = reader_rewind(s, &fp->reader);
        if (rc < 0)
            return rc;
        fp->next = next[p] == SOURCE_BEGIN ? 0 : next[p];
        fp->stop = stop[p];
    }
    return 0;
}

static bool source_file_at_stop(const struct file_partition *fp)
{
    return fp->stop != SOURCE_UNBOUNDED && fp->next >= fp->stop;
}

// Counts the reader up to fp->next. Other calls may have rewound it.
static int source_file_seek(struct source *s, struct file_partition *fp)
{
    struct line_reader *r = &fp->reader;
    const char *line;
    size_t size;

    assert(r->line <= fp->next);
    while (r->line < fp->next) {
        const int rc = reader_line(s, r, &line, &size);
        if (rc < 0)
            return rc;
        if (rc == 0)
            return fail(s, -ESTALE,
                        "%.350s: has %" PRId64 " lines, but reading was to go on at line %" PRId64
                        ": is it the same file as before?",
                        r->path, r->line, fp->next);
    }
    return 0;
}

static int source_file_read(struct source *s, int p, int max, struct record *records)
{
    struct file_partition *fp = partition_of(s, p);
    struct line_reader *r = &fp->reader;
    const char *line;
    size_t size;
    int n = 0;

    assert(max > 0);
    if (source_file_at_stop(fp))
        return 0;
    int rc = source_file_seek(s, fp);
    if (rc < 0)
        return rc;
    while (n < max && !source_file_at_stop(fp)) {
        // Only the first record may move the window: those already given out lead into it.
        if (n > 0) {
            if (!reader_line_in_window(r, &line, &size))
                break;
        } else {
            rc = reader_line(s, r, &line, &size);
            if (rc < 0)
                return rc;
            if (rc == 0)
                break;
        }
        const int64_t offset = fp->next;
        fp->next = r->line;
        if (line_is_blank(line, size))
            continue;
        records[n++] = (struct record){
            .offset = offset,
            .broker_ts_ms = -1,
            .value = line,
            .value_size = size,
            .leader_epoch = -1,
        };
    }
    return n;
}

static int64_t source_file_position(const struct source *s, int p)
{
    return ((const struct source_file *)(const void *)s)->partitions[p].next;
}

static bool source_file_at_end(const struct source *s, int p)
{
    const struct file_partition *fp = &((const struct source_file *)(const void *)s)->partitions[p];
    const struct line_reader *r = &fp->reader;
    return source_file_at_stop(fp) || (r->eof && r->at == r->end && r->line == fp->next);
}

static int source_file_wait(struct source *s, int timeout_ms)
{
    for (int p = 0; p < s->n_partitions; p++)
        if (!source_file_at_end(s, p))
            return 0;
    // Nothing will ever come; the caller is spared a busy loop. A signal ends the wait.
    (void)poll(NULL, 0, timeout_ms);
    return 0;
}

static void source_file_close(struct source *s)
{
    for (int p = 0; p < s->n_partitions; p++)
        reader_close(&partition_of(s, p)->reader);
    free(s->partitions);
    free(s);
}

static const struct source_ops source_file_ops = {
    .name = "file",
    .bounds = source_file_bounds,
    .offsets_for_time = source_file_offsets_for_time,
    .start = source_file_start,
    .read = source_file_read,
    .position = source_file_position,
    .at_end = source_file_at_end,
    .wait = source_file_wait,
    .close = source_file_close,
};

// Adds the topic's file as a partition if there is one.
static int source_file_add(struct source *s, const char *directory, enum topic topic)
{
    static const char *const suffixes[] = {".jsonl.zst", ".jsonl"};
    struct file_partition *fp = &file_of(s)->partitions[s->n_partitions];
    int found = -1;

    for (int i = 0; i < 2; i++) {
        char path[sizeof fp->reader.path];
        const int n =
            snprintf(path, sizeof path, "%s/%s%s", directory, topic_names[topic], suffixes[i]);
        if (n < 0 || (size_t)n >= sizeof path)
            return fail(s, -ENAMETOOLONG, "%.400s: the path is too long", directory);
        if (access(path, F_OK) != 0) {
            if (errno == ENOENT)
                continue;
            return fail(s, -errno, "%.450s: %s", path, strerror(errno));
        }
        if (found >= 0)
            return fail(s, -EINVAL, "%.400s: both %s%s and %s%s are there: which one is meant?",
                        directory, topic_names[topic], suffixes[found], topic_names[topic],
                        suffixes[i]);
        found = i;
        memcpy(fp->reader.path, path, (size_t)n + 1);
    }
    if (found < 0)
        return 0;

    struct source_partition *sp = &s->partitions[s->n_partitions];
    snprintf(sp->name, sizeof sp->name, "%s", topic_names[topic]);
    sp->topic = topic;
    fp->lines = -1;
    fp->stop = SOURCE_UNBOUNDED;
    fp->reader.fd = -1;
    s->n_partitions++;
    return reader_open(s, &fp->reader, found == 0);
}

int source_file_open(struct source **out, const char *directory, char *error, size_t error_size)
{
    struct source_file *file = calloc(1, sizeof *file);
    struct source_partition *partitions = calloc(TOPICS, sizeof *partitions);
    struct stat st;
    bool impressions = false, engagements = false;
    int rc = 0;

    if (!file || !partitions) {
        snprintf(error, error_size, "%s: out of memory", directory);
        free(file);
        free(partitions);
        return -ENOMEM;
    }
    struct source *s = &file->base;
    s->ops = &source_file_ops;
    s->partitions = partitions;

    if (stat(directory, &st) < 0)
        rc = fail(s, -errno, "%.400s: %s", directory, strerror(errno));
    else if (!S_ISDIR(st.st_mode))
        rc =
            fail(s, -ENOTDIR, "%.400s: expected a directory of <topic>.jsonl.zst files", directory);
    for (int topic = 0; topic < TOPICS && rc == 0; topic++)
        rc = source_file_add(s, directory, (enum topic)topic);
    for (int p = 0; p < s->n_partitions; p++) {
        impressions |= s->partitions[p].topic == TOPIC_IMPRESSIONS;
        engagements |= s->partitions[p].topic == TOPIC_ENGAGEMENTS;
    }
    if (rc == 0 && !impressions && !engagements)
        rc = fail(s, -ENOENT,
                  "%.400s: has neither impressions nor engagements (.jsonl.zst or .jsonl)",
                  directory);
    if (rc < 0) {
        snprintf(error, error_size, "%s", s->error);
        s->ops->close(s);
        return rc;
    }
    *out = s;
    return 0;
}
