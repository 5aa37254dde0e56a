// SPDX-License-Identifier: Apache-2.0
#include "pipeline/slice_log.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <isa-l/crc.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

// On disk: this header, n_partitions positions, and with MAGIC_VALUES the number of tasks (uint32)
// and a float for each; little-endian as the machine is.
struct header {
    uint32_t magic;
    uint32_t crc;      // CRC32C of everything after this member
    uint32_t previous; // crc of the record before
    uint32_t n_partitions;
    uint64_t number, digest;
    uint32_t order, n_events;
    int64_t watermark_ms, dead_letters;
};

enum {
    MAGIC = 0x31534c54,        // "TLS1"
    MAGIC_VALUES = 0x56534c54, // "TLSV"
    COVERED = offsetof(struct header, previous)
};

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "files are little-endian");

__attribute__((format(printf, 3, 4))) static int fail(struct slice_log *l, int rc,
                                                      const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(l->error, sizeof l->error, format, args);
    va_end(args);
    return rc;
}

static size_t values_size(int n)
{
    return n > 0 ? sizeof(uint32_t) + (size_t)n * sizeof(float) : 0;
}

static size_t record_size(const struct slice_log *l, int n_values)
{
    return sizeof(struct header) + (size_t)l->n_partitions * sizeof(int64_t) +
           values_size(n_values);
}

static uint32_t record_crc(const unsigned char *record, size_t size)
{
    // CRC32C as others know it: all ones at the start, inverted at the end.
    return ~crc32_iscsi((unsigned char *)(uintptr_t)record + COVERED, (int)(size - COVERED), ~0u);
}

// How long the record is that begins here, of which `there` bytes are there; 0: it is not whole.
static size_t record_whole(const struct slice_log *l, const unsigned char *record, size_t there)
{
    struct header h;
    uint32_t n_values = 0;
    const size_t head = record_size(l, 0);
    if (there < head)
        return 0;
    memcpy(&h, record, sizeof h);
    if ((h.magic != MAGIC && h.magic != MAGIC_VALUES) ||
        h.n_partitions != (uint32_t)l->n_partitions)
        return 0;
    if (h.magic == MAGIC_VALUES) {
        if (there < head + sizeof n_values)
            return 0;
        memcpy(&n_values, record + head, sizeof n_values);
        if (n_values == 0 || n_values > SLATE_TASKS_MAX)
            return 0;
    }
    const size_t size = record_size(l, (int)n_values);
    return size <= there && h.crc == record_crc(record, size) ? size : 0;
}

static struct slice_values record_values(const struct slice_log *l, const unsigned char *record)
{
    struct slice_values values = {0};
    struct header h;
    uint32_t n;
    memcpy(&h, record, sizeof h);
    if (h.magic == MAGIC_VALUES) {
        const unsigned char *at = record + record_size(l, 0);
        memcpy(&n, at, sizeof n);
        memcpy(values.weight, at + sizeof n, n * sizeof *values.weight);
        values.n = (int)n;
    }
    return values;
}

// How many partitions the record is of when it is whole for another number of them, else 0.
static int record_partitions(const struct slice_log *l, const unsigned char *record, size_t size)
{
    struct header h;
    if (size < sizeof h)
        return 0;
    memcpy(&h, record, sizeof h);
    const struct slice_log other = {.n_partitions = (int)(h.n_partitions & 0xffffff)};
    return other.n_partitions != l->n_partitions && record_whole(&other, record, size) > 0
               ? other.n_partitions
               : 0;
}

static int compare_numbers(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

// The first numbers of the files, ascending; *list is the caller's to free. -errno or how many.
static int files_list(struct slice_log *l, uint64_t **list)
{
    int n = 0;
    DIR *dir = opendir(l->directory);
    *list = NULL;
    if (!dir)
        return fail(l, -errno, "%s: %s", l->directory, strerror(errno));
    for (struct dirent *entry; (entry = readdir(dir));) {
        uint64_t first;
        char name[32];
        if (sscanf(entry->d_name, "slices-%" SCNu64 ".log", &first) != 1)
            continue;
        // In our spelling only: slices-01.log is somebody's copy, and not slices-1.log once more.
        snprintf(name, sizeof name, "slices-%" PRIu64 ".log", first);
        if (strcmp(name, entry->d_name) != 0)
            continue;
        uint64_t *longer = realloc(*list, ((size_t)n + 1) * sizeof **list);
        if (!longer) {
            closedir(dir);
            free(*list);
            *list = NULL;
            return fail(l, -ENOMEM, "%s: out of memory", l->directory);
        }
        *list = longer;
        (*list)[n++] = first;
    }
    closedir(dir);
    if (n > 1)
        qsort(*list, (size_t)n, sizeof **list, compare_numbers);
    return n;
}

static void file_path(const struct slice_log *l, uint64_t first, char *path, size_t size)
{
    snprintf(path, size, "%s/slices-%" PRIu64 ".log", l->directory, first);
}

static int directory_sync(struct slice_log *l)
{
    const int fd = open(l->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return fail(l, -errno, "%s: %s", l->directory, strerror(errno));
    const int rc = fsync(fd) < 0 ? -errno : 0;
    close(fd);
    return rc < 0 ? fail(l, rc, "%s: fsync: %s", l->directory, strerror(-rc)) : 0;
}

// Reads one file; newest: a torn tail is cut off, in an earlier one it is damage.
static int file_read(struct slice_log *l, uint64_t first, bool newest, uint64_t after,
                     slice_log_fn see, void *arg)
{
    char path[4096];
    struct stat st;
    file_path(l, first, path, sizeof path);
    const int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0) {
        const int rc = -errno;
        if (fd >= 0)
            close(fd);
        return fail(l, rc, "%s: %s", path, strerror(-rc));
    }
    unsigned char *bytes = malloc((size_t)st.st_size + 1);
    int64_t *next = malloc((size_t)l->n_partitions * sizeof *next);
    int rc = bytes && next ? 0 : fail(l, -ENOMEM, "%s: out of memory", path);
    // One call reads 2 GiB at the most.
    for (size_t done = 0; rc == 0 && done < (size_t)st.st_size;) {
        const ssize_t n = pread(fd, bytes + done, (size_t)st.st_size - done, (off_t)done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            rc = fail(l, -EIO, "%s: cannot be read at byte %zu: %s", path, done,
                      n < 0 ? strerror(errno) : "it has become shorter");
        else
            done += (size_t)n;
    }

    size_t at = 0, size;
    for (; rc == 0 && (size = record_whole(l, bytes + at, (size_t)st.st_size - at)) > 0;
         at += size) {
        struct header h;
        memcpy(&h, bytes + at, sizeof h);
        // 0 is how we say that there is none: the next slice would go where it cannot be found.
        if (h.number == 0) {
            rc = fail(l, -EBADMSG, "%s: at byte %zu: slice 0, where the first is 1", path, at);
            break;
        }
        // Where a file begins, slices may be missing that the checkpoint has: the log was cut below
        // it.
        const bool covered = at == 0 && h.number > l->last && h.number <= after + 1;
        if (l->last != 0 && !covered && (h.previous != l->crc || h.number != l->last + 1)) {
            rc = fail(l, -EBADMSG,
                      "%s: at byte %zu: slice %" PRIu64 " does not follow slice %" PRIu64, path, at,
                      h.number, l->last);
            break;
        }
        if (l->last == 0 && see && h.number > after + 1)
            rc = fail(l, -EBADMSG, "%s: begins with slice %" PRIu64 ", expected %" PRIu64, path,
                      h.number, after + 1);
        l->last = h.number;
        l->crc = h.crc;
        if (rc == 0 && see && h.number > after) {
            memcpy(next, bytes + at + sizeof h, (size_t)l->n_partitions * sizeof *next);
            const struct slice_record record = {.number = h.number,
                                                .digest = h.digest,
                                                .order = (enum slice_order)h.order,
                                                .n_events = (int)h.n_events,
                                                .watermark_ms = h.watermark_ms,
                                                .dead_letters = h.dead_letters,
                                                .next = next,
                                                .values = record_values(l, bytes + at)};
            rc = see(arg, &record);
        }
    }
    if (rc == 0 && at < (size_t)st.st_size) {
        // A crash tears the end. Whole records behind the damage mean something else happened.
        const int partitions = at == 0 ? record_partitions(l, bytes, (size_t)st.st_size) : 0;
        bool whole_behind = !newest;
        for (size_t i = at + 1; !whole_behind && i < (size_t)st.st_size; i++)
            whole_behind = record_whole(l, bytes + i, (size_t)st.st_size - i) > 0;
        if (partitions)
            rc = fail(l, -EINVAL, "%s: written with %d partitions, there are %d now", path,
                      partitions, l->n_partitions);
        else if (whole_behind)
            rc = fail(l, -EBADMSG, "%s: damaged at byte %zu, with slices behind it", path, at);
        else if (ftruncate(fd, (off_t)at) < 0 || fsync(fd) < 0)
            rc = fail(l, -errno, "%s: cannot cut the torn tail: %s", path, strerror(errno));
    }
    free(bytes);
    free(next);
    if (rc == 0 && newest) {
        l->fd = fd;
        l->size = (int64_t)at;
        if (lseek(fd, (off_t)at, SEEK_SET) < 0)
            rc = fail(l, -errno, "%s: %s", path, strerror(errno));
    } else {
        close(fd);
    }
    return rc;
}

// Removes the files, but the newest `keep`, that hold nothing after number upto: those whose next
// one begins at or before upto + 1.
static int files_remove(struct slice_log *l, uint64_t upto, int keep)
{
    uint64_t *list;
    const int n = files_list(l, &list);
    int rc = n;
    for (int i = 0; rc >= 0 && i < n - keep && (i + 1 == n || list[i + 1] - 1 <= upto); i++) {
        char path[4096];
        file_path(l, list[i], path, sizeof path);
        if (unlink(path) < 0)
            rc = fail(l, -errno, "%s: %s", path, strerror(errno));
    }
    free(list);
    return rc < 0 ? rc : 0;
}

int slice_log_open(struct slice_log *l, const char *directory, int n_partitions, int64_t size_max,
                   uint64_t after, slice_log_fn see, void *arg)
{
    *l = (struct slice_log){.n_partitions = n_partitions, .fd = -1, .size_max = size_max};
    if (strlen(directory) >= sizeof l->directory)
        return fail(l, -ENAMETOOLONG, "%s: too long a path", directory);
    strcpy(l->directory, directory);
    pthread_mutex_init(&l->lock, NULL);
    l->buffer = malloc(record_size(l, SLATE_TASKS_MAX));
    if (!l->buffer)
        return fail(l, -ENOMEM, "%s: out of memory", directory);
    uint64_t *list;
    int rc = files_list(l, &list);
    for (int i = 0, n = rc; rc >= 0 && i < n; i++)
        rc = file_read(l, list[i], i == n - 1, after, see, arg);
    free(list);
    if (rc >= 0 && l->last < after) {
        // The checkpoint is ahead of all that is left: nothing of it is needed, a new file begins.
        if (l->fd >= 0)
            close(l->fd);
        l->fd = -1;
        l->last = 0;
        rc = files_remove(l, UINT64_MAX, 0);
    }
    return rc < 0 ? rc : 0;
}

void slice_log_close(struct slice_log *l)
{
    if (l->fd >= 0)
        close(l->fd);
    free(l->buffer);
    pthread_mutex_destroy(&l->lock);
    l->fd = -1;
    l->buffer = NULL;
}

static int file_begin(struct slice_log *l, uint64_t first)
{
    char path[4096];
    file_path(l, first, path, sizeof path);
    if (l->fd >= 0 && fdatasync(l->fd) < 0)
        return fail(l, -errno, "%s: fdatasync: %s", l->directory, strerror(errno));
    const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0640);
    if (fd < 0)
        return fail(l, -errno, "%s: %s", path, strerror(errno));
    pthread_mutex_lock(&l->lock);
    if (l->fd >= 0)
        close(l->fd);
    l->fd = fd;
    pthread_mutex_unlock(&l->lock);
    l->size = 0;
    return directory_sync(l);
}

int slice_log_append(struct slice_log *l, const struct slice *slice)
{
    assert(slice->n_partitions == l->n_partitions &&
           (l->last == 0 || slice->number == l->last + 1));
    const int lost = atomic_load(&l->lost);
    if (lost < 0)
        return fail(l, lost, "%s: slice log: an earlier fdatasync failed: %s", l->directory,
                    strerror(-lost));
    if (l->fd < 0 || l->last == 0 || l->size >= l->size_max) {
        const int rc = file_begin(l, slice->number);
        if (rc < 0)
            return rc;
    }
    const uint32_t n_values = (uint32_t)slice->values.n;
    const size_t head = record_size(l, 0), size = record_size(l, slice->values.n);
    struct header h = {.magic = n_values > 0 ? MAGIC_VALUES : MAGIC,
                       .previous = l->crc,
                       .n_partitions = (uint32_t)l->n_partitions,
                       .number = slice->number,
                       .digest = slice->digest,
                       .order = slice->order,
                       .n_events = (uint32_t)slice->n_events,
                       .watermark_ms = slice->watermark_ms,
                       .dead_letters = slice->dead_letters};
    memcpy(l->buffer, &h, sizeof h);
    memcpy(l->buffer + sizeof h, slice->next, head - sizeof h);
    if (n_values > 0) {
        memcpy(l->buffer + head, &n_values, sizeof n_values);
        memcpy(l->buffer + head + sizeof n_values, slice->values.weight,
               n_values * sizeof *slice->values.weight);
    }
    h.crc = record_crc(l->buffer, size);
    memcpy(l->buffer + offsetof(struct header, crc), &h.crc, sizeof h.crc);
    for (size_t done = 0; done < size;) {
        const ssize_t n = write(l->fd, l->buffer + done, size - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return fail(l, -errno, "%s: slice log: %s", l->directory, strerror(errno));
        done += (size_t)n;
    }
    l->size += (int64_t)size;
    l->crc = h.crc;
    l->last = slice->number;
    return 0;
}

int slice_log_sync(struct slice_log *l, char *error, size_t error_size)
{
    pthread_mutex_lock(&l->lock);
    if (atomic_load(&l->lost) == 0 && l->fd >= 0 && fdatasync(l->fd) < 0)
        atomic_store(&l->lost, -errno);
    pthread_mutex_unlock(&l->lock);
    const int rc = atomic_load(&l->lost);
    if (rc < 0)
        snprintf(error, error_size, "%s: slice log: fdatasync: %s", l->directory, strerror(-rc));
    return rc;
}

int slice_log_trim(struct slice_log *l, uint64_t upto)
{
    return files_remove(l, upto, 1);
}
