// SPDX-License-Identifier: Apache-2.0
#include "pipeline/slice_log.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <isa-l/crc.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "snapshot/storage.h"

// On disk: this header, then n_partitions positions (int64_t), as many leader epochs (int32_t) if
// any is known, as many flags (uint8_t), the verdicts, the moves and the values (float);
// little-endian as the machine is.
struct header {
    uint32_t magic;
    uint32_t crc;      // CRC32C of everything after this member
    uint32_t previous; // crc of the record before
    uint32_t size;     // of the whole record
    uint32_t n_partitions, n_events;
    uint64_t number, digest;
    int64_t watermark_ms, floor_ms, clock_ms, dead_letters;
    uint8_t order, last, epochs, n_values;
    uint16_t shed_permille, n_moves;
    uint32_t n_verdicts;
    uint32_t unsynced; // how many records before this one were not known to be synced
};
struct verdict_bytes {
    int32_t partition, zero;
    int64_t offset;
};
struct move_bytes {
    int32_t partition, zero;
    int64_t from, to;
};

enum {
    MAGIC = 0x32534c54,        // "TLS2"
    MAGIC_FAMILY = 0x00534c54, // "TLS": whatever version wrote it
    FAMILY_MASK = 0x00ffffff,
    COVERED = offsetof(struct header, previous),
    NAME_SIZE = 40,
};

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "files are little-endian");
_Static_assert(sizeof(struct header) == 88, "no padding");

__attribute__((format(printf, 3, 4))) static int fail(struct slice_log *l, int rc,
                                                      const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(l->error, sizeof l->error, format, args);
    va_end(args);
    return rc;
}

static size_t record_size(const struct header *h)
{
    const size_t n = h->n_partitions;
    return sizeof *h + n * (sizeof(int64_t) + (h->epochs ? sizeof(int32_t) : 0) + 1) +
           h->n_verdicts * sizeof(struct verdict_bytes) + h->n_moves * sizeof(struct move_bytes) +
           h->n_values * sizeof(float);
}

static uint32_t record_crc(const unsigned char *record, size_t size)
{
    // CRC32C as others know it: all ones at the start, inverted at the end.
    return ~crc32_iscsi((unsigned char *)(uintptr_t)record + COVERED, (int)(size - COVERED), ~0u);
}

// How long the record is that begins here, of which `there` bytes are there; 0: it is not whole.
static size_t record_whole(uint32_t n_partitions, const unsigned char *record, size_t there)
{
    struct header h;
    if (there < sizeof h)
        return 0;
    memcpy(&h, record, sizeof h);
    return h.magic == MAGIC && h.n_partitions == n_partitions && h.size <= there &&
                   h.n_values <= SLATE_TASKS_MAX && h.n_verdicts <= SLICE_VERDICTS_MAX &&
                   h.n_moves <= n_partitions && h.epochs <= 1 && h.size == record_size(&h) &&
                   h.crc == record_crc(record, h.size)
               ? h.size
               : 0;
}

// The number of partitions of a record that is whole, but of another number than the log's; 0.
static uint32_t record_partitions(const unsigned char *record, size_t there)
{
    struct header h;
    if (there < sizeof h)
        return 0;
    memcpy(&h, record, sizeof h);
    return record_whole(h.n_partitions, record, there) > 0 ? h.n_partitions : 0;
}

// Room for what a record holds beside its header, reused from record to record.
struct decoded {
    int64_t *next;
    int32_t *epoch;
    uint8_t *flags;
    struct slice_verdict *verdicts;
    struct slice_move *moves;
    int n_verdicts_max;
};

static void decoded_free(struct decoded *d)
{
    free(d->next);
    free(d->epoch);
    free(d->flags);
    free(d->verdicts);
    free(d->moves);
}

static bool decoded_take(struct decoded *d, int n_partitions)
{
    const size_t n = (size_t)n_partitions;
    d->next = calloc(n, sizeof *d->next);
    d->epoch = calloc(n, sizeof *d->epoch);
    d->flags = calloc(n, sizeof *d->flags);
    d->moves = calloc(n, sizeof *d->moves);
    return d->next && d->epoch && d->flags && d->moves;
}

// A whole record. false: no memory, or what it says cannot be: a partition that there is not.
static bool record_decode(const unsigned char *record, struct decoded *d,
                          struct slice_record *decoded)
{
    struct header h;
    memcpy(&h, record, sizeof h);
    const size_t n = h.n_partitions;
    const unsigned char *at = record + sizeof h;
    bool known = true;
    memcpy(d->next, at, n * sizeof *d->next);
    at += n * sizeof *d->next;
    for (size_t p = 0; p < n; p++)
        d->epoch[p] = -1;
    if (h.epochs) {
        memcpy(d->epoch, at, n * sizeof *d->epoch);
        at += n * sizeof *d->epoch;
    }
    memcpy(d->flags, at, n);
    at += n;
    if ((int)h.n_verdicts > d->n_verdicts_max) {
        struct slice_verdict *more = realloc(d->verdicts, h.n_verdicts * sizeof *more);
        if (!more)
            return false;
        d->verdicts = more;
        d->n_verdicts_max = (int)h.n_verdicts;
    }
    for (uint32_t i = 0; i < h.n_verdicts; i++, at += sizeof(struct verdict_bytes)) {
        struct verdict_bytes v;
        memcpy(&v, at, sizeof v);
        d->verdicts[i] = (struct slice_verdict){v.partition, v.offset};
        known &= v.partition >= 0 && v.partition < (int)n;
    }
    for (uint32_t i = 0; i < h.n_moves; i++, at += sizeof(struct move_bytes)) {
        struct move_bytes m;
        memcpy(&m, at, sizeof m);
        d->moves[i] = (struct slice_move){m.partition, m.from, m.to};
        known &= m.partition >= 0 && m.partition < (int)n;
    }
    *decoded = (struct slice_record){.number = h.number,
                                     .digest = h.digest,
                                     .order = (enum slice_order)h.order,
                                     .last = h.last,
                                     .n_events = (int)h.n_events,
                                     .watermark_ms = h.watermark_ms,
                                     .floor_ms = h.floor_ms,
                                     .clock_ms = h.clock_ms,
                                     .dead_letters = h.dead_letters,
                                     .shed_permille = h.shed_permille,
                                     .next = d->next,
                                     .epoch = d->epoch,
                                     .flags = d->flags,
                                     .n_verdicts = (int)h.n_verdicts,
                                     .n_moves = (int)h.n_moves,
                                     .verdicts = d->verdicts,
                                     .moves = d->moves,
                                     .values = {.n = h.n_values}};
    memcpy(decoded->values.weight, at, h.n_values * sizeof(float));
    return known;
}

static int compare_numbers(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void file_name(uint64_t first, char name[NAME_SIZE])
{
    snprintf(name, NAME_SIZE, "slices-%" PRIu64 ".log", first);
}

struct files {
    int n;
    uint64_t *first;
};

static int file_seen(void *arg, const char *name)
{
    struct files *f = arg;
    uint64_t first;
    char ours[NAME_SIZE];
    if (sscanf(name, "slices-%" SCNu64 ".log", &first) != 1)
        return 0;
    // In our spelling only: slices-01.log is somebody's copy, and not slices-1.log once more.
    file_name(first, ours);
    if (strcmp(name, ours) != 0 || first == UINT64_MAX) // which is no slice: see file_read
        return 0;
    uint64_t *longer = realloc(f->first, ((size_t)f->n + 1) * sizeof *longer);
    if (!longer)
        return -ENOMEM;
    f->first = longer;
    f->first[f->n++] = first;
    return 0;
}

// The first numbers of the files, ascending; the caller frees them. -errno or how many.
static int files_list(struct slice_log *l, uint64_t **list)
{
    struct files files = {0};
    const int rc = l->storage->ops->list(l->storage, l->directory, file_seen, &files);
    *list = files.first;
    if (rc < 0)
        return fail(l, rc, "%s: %s", l->path, strerror(-rc));
    if (files.n > 1)
        qsort(files.first, (size_t)files.n, sizeof *files.first, compare_numbers);
    return files.n;
}

// The whole of an open file, in memory that the caller frees.
static int file_load(struct slice_log *l, const char *name, int handle, unsigned char **bytes,
                     uint64_t *size)
{
    int rc = l->storage->ops->size(l->storage, handle, size);
    if (rc < 0)
        return fail(l, rc, "%s/%s: %s", l->path, name, strerror(-rc));
    *bytes = malloc(*size + 1);
    if (!*bytes)
        return fail(l, -ENOMEM, "%s/%s: out of memory", l->path, name);
    // One call reads 2 GiB at the most.
    for (uint64_t done = 0; done < *size;) {
        const ssize_t n =
            l->storage->ops->read_at(l->storage, handle, *bytes + done, *size - done, done);
        if (n == -EINTR)
            continue;
        if (n <= 0)
            return fail(l, -EIO, "%s/%s: cannot be read at byte %" PRIu64 ": %s", l->path, name,
                        done, n < 0 ? strerror((int)-n) : "it has become shorter");
        done += (uint64_t)n;
    }
    return 0;
}

// Whether record `number` may come where it stands: after the one before, or at the begin of a file
// where slices may be missing that the checkpoint has (the log was cut below it).
static bool record_follows(const struct slice_log *l, const struct header *h, size_t at,
                           uint64_t after)
{
    const bool covered = at == 0 && h->number > l->last && h->number <= after + 1;
    return l->last == 0 || covered || (h->previous == l->crc && h->number == l->last + 1);
}

// The records of a file, from its begin; returns where they end, or -errno.
static int64_t file_records(struct slice_log *l, uint64_t first, const unsigned char *bytes,
                            uint64_t size, uint64_t limit, uint64_t after, slice_log_fn see,
                            void *arg)
{
    const uint32_t n = (uint32_t)l->n_partitions;
    char name[NAME_SIZE];
    struct decoded d = {0};
    struct slice_record record;
    size_t at = 0, length;
    int rc = decoded_take(&d, l->n_partitions) ? 0 : -ENOMEM;
    file_name(first, name);
    for (; rc >= 0 && (length = record_whole(n, bytes + at, size - at)) > 0; at += length) {
        struct header h;
        memcpy(&h, bytes + at, sizeof h);
        // The next slice might get the name of this file, and begin it anew.
        if (at == 0 && h.number != first)
            rc = fail(l, -EBADMSG,
                      "%s/%s: begins with slice %" PRIu64 ", where its name says %" PRIu64, l->path,
                      name, h.number, first);
        if (rc < 0 || h.number >= limit)
            break;
        // 0 is how we say that there is none: the next slice would go where it cannot be found.
        if (h.number == 0)
            rc = fail(l, -EBADMSG, "%s/%s: at byte %zu: slice 0, where the first is 1", l->path,
                      name, at);
        else if (!record_follows(l, &h, at, after))
            rc = fail(l, -EBADMSG,
                      "%s/%s: at byte %zu: slice %" PRIu64 " does not follow slice %" PRIu64,
                      l->path, name, at, h.number, l->last);
        else if (l->last == 0 && see && h.number > after + 1)
            rc = fail(l, -EBADMSG, "%s/%s: begins with slice %" PRIu64 ", expected %" PRIu64,
                      l->path, name, h.number, after + 1);
        else if (!record_decode(bytes + at, &d, &record))
            rc = fail(l, -EBADMSG,
                      "%s/%s: at byte %zu: slice %" PRIu64 " names no partition of ours", l->path,
                      name, at, h.number);
        else if (see && h.number > after)
            rc = see(arg, &record);
        if (rc < 0)
            break;
        l->last = h.number;
        l->crc = h.crc;
    }
    decoded_free(&d);
    if (rc == -ENOMEM)
        return fail(l, rc, "%s/%s: out of memory", l->path, name);
    return rc < 0 ? rc : (int64_t)at;
}

// What stands behind the last whole record, where record `number` is missing, is a tail that a
// crash has torn, or it is refused. A disk writes what was not synced in any order, so that there
// may be whole records in such a tail; they say whether the missing one had been synced before
// them.
static int tail_check(struct slice_log *l, const char *name, bool newest,
                      const unsigned char *bytes, uint64_t size, uint64_t at, uint64_t number)
{
    uint32_t magic = 0;
    bool whole_behind = false, synced = false;
    for (uint64_t i = at + 1; !synced && i < size; i++) {
        struct header h;
        if (record_whole((uint32_t)l->n_partitions, bytes + i, size - i) == 0)
            continue;
        memcpy(&h, bytes + i, sizeof h);
        whole_behind = true;
        synced = h.number > number && h.number - number > h.unsynced;
    }
    if (at == 0 && size >= sizeof magic)
        memcpy(&magic, bytes, sizeof magic);
    if (!whole_behind && magic != MAGIC && (magic & FAMILY_MASK) == MAGIC_FAMILY)
        return fail(l, -EINVAL,
                    "%s/%s: at byte %" PRIu64 ": a slice of another version of twotower (%.4s, "
                    "expected TLS2)",
                    l->path, name, at, (const char *)bytes + at);
    const uint32_t partitions = at == 0 ? record_partitions(bytes, size) : 0;
    if (partitions)
        return fail(l, -EINVAL, "%s/%s: written with %" PRIu32 " partitions, there are %d now",
                    l->path, name, partitions, l->n_partitions);
    if (synced || !newest)
        return fail(l, -EBADMSG, "%s/%s: damaged at byte %" PRIu64 ", with slices behind it",
                    l->path, name, at);
    return 0;
}

// Reads one file, up to number limit, with which the next one begins; what another process has put
// behind that is nothing to us. Of the newest file (UINT64_MAX) a torn tail is no damage, and lies
// behind the begin of the next file as soon as there is one; ours (keep) stays open, to be synced
// before that.
static int file_read(struct slice_log *l, uint64_t first, uint64_t limit, bool keep, uint64_t after,
                     slice_log_fn see, void *arg)
{
    const bool newest = limit == UINT64_MAX;
    char name[NAME_SIZE];
    unsigned char *bytes = NULL;
    uint64_t size = 0;
    file_name(first, name);
    const int handle = l->storage->ops->open(l->storage, l->directory, name, O_RDONLY, 0);
    if (handle < 0)
        return fail(l, handle, "%s/%s: %s", l->path, name, strerror(-handle));
    int rc = file_load(l, name, handle, &bytes, &size);
    if (rc == 0) {
        const int64_t end = file_records(l, first, bytes, size, limit, after, see, arg);
        rc = end < 0 ? (int)end : 0;
        if (rc == 0 && (uint64_t)end < size && l->last != limit - 1) {
            rc = tail_check(l, name, newest, bytes, size, (uint64_t)end,
                            end > 0 ? l->last + 1 : first);
        }
        l->size = end;
    }
    free(bytes);
    if (rc == 0 && newest && keep)
        l->file = handle;
    else
        l->storage->ops->close(l->storage, handle);
    return rc;
}

// All files, or those from the one on that has record `after`: the next one goes on from its sum.
static int files_read(struct slice_log *l, bool keep, uint64_t after, uint64_t *first,
                      slice_log_fn see, void *arg)
{
    uint64_t *list;
    int rc = files_list(l, &list);
    const int n = rc;
    int from = 0;
    while (from + 1 < n && list[from + 1] <= after)
        from++;
    *first = n > 0 ? list[0] : 0;
    for (int i = from; rc >= 0 && i < n; i++)
        rc = file_read(l, list[i], i + 1 < n ? list[i + 1] : UINT64_MAX, keep, after, see, arg);
    free(list);
    return rc < 0 ? rc : 0;
}

static int directory_open(struct slice_log *l, const char *directory)
{
    if (strlen(directory) >= sizeof l->path)
        return fail(l, -ENAMETOOLONG, "%s: too long a path", directory);
    strcpy(l->path, directory);
    l->directory =
        l->storage->ops->open(l->storage, STORAGE_CWD, directory, O_RDONLY | O_DIRECTORY, 0);
    return l->directory < 0 ? fail(l, l->directory, "%s: %s", directory, strerror(-l->directory))
                            : 0;
}

// Removes the oldest files that hold nothing after number upto, those whose next one begins at or
// before upto + 1, while more than keep bytes of such are there.
static int files_remove(struct slice_log *l, uint64_t upto, int64_t keep, int newest)
{
    uint64_t *list;
    char name[NAME_SIZE];
    int rc = files_list(l, &list), old = 0;
    const int n = rc;
    if (n < 0) {
        free(list);
        return n;
    }
    while (old < n - newest && (old + 1 == n || list[old + 1] - 1 <= upto))
        old++;
    // How many of them fit, newest first.
    for (int64_t bytes = 0; keep > 0 && rc >= 0 && old > 0; old--) {
        uint64_t size = 0;
        file_name(list[old - 1], name);
        const int handle = l->storage->ops->open(l->storage, l->directory, name, O_RDONLY, 0);
        rc = handle < 0 ? handle : l->storage->ops->size(l->storage, handle, &size);
        if (handle >= 0)
            l->storage->ops->close(l->storage, handle);
        bytes += (int64_t)size;
        if (bytes > keep)
            break;
    }
    for (int i = 0; rc >= 0 && i < old; i++) {
        file_name(list[i], name);
        rc = l->storage->ops->remove(l->storage, l->directory, name, false);
    }
    free(list);
    return rc < 0 ? fail(l, rc, "%s/%s: %s", l->path, name, strerror(-rc)) : 0;
}

int slice_log_open(struct slice_log *l, struct storage *storage, const char *directory,
                   int n_partitions, int64_t size_max, uint64_t after, slice_log_fn see, void *arg)
{
    uint64_t first;
    *l = (struct slice_log){.storage = storage ? storage : &storage_disk,
                            .n_partitions = n_partitions,
                            .directory = -1,
                            .file = -1,
                            .synced = after,
                            .size_max = size_max};
    pthread_mutex_init(&l->lock, NULL);
    int rc = directory_open(l, directory);
    if (rc == 0)
        rc = files_read(l, true, after, &first, see, arg);
    if (rc == 0 && l->last < after) {
        // The checkpoint is ahead of all that is left: nothing of it is needed, a new file begins.
        if (l->file >= 0)
            l->storage->ops->close(l->storage, l->file);
        l->file = -1;
        l->last = 0;
        rc = files_remove(l, UINT64_MAX, 0, 0);
    }
    return rc;
}

int slice_log_read(const char *directory, int n_partitions, uint64_t after, uint64_t *first,
                   slice_log_fn see, void *arg, char *error, size_t error_size)
{
    struct slice_log *l = malloc(sizeof *l);
    snprintf(error, error_size, "out of memory");
    if (!l)
        return -ENOMEM;
    *l = (struct slice_log){
        .storage = &storage_disk, .n_partitions = n_partitions, .directory = -1, .file = -1};
    int rc = directory_open(l, directory);
    if (rc == 0)
        rc = files_read(l, false, after, first, see, arg);
    if (rc < 0)
        snprintf(error, error_size, "%s", l->error);
    if (l->directory >= 0)
        l->storage->ops->close(l->storage, l->directory);
    free(l);
    return rc;
}

void slice_log_close(struct slice_log *l)
{
    if (l->file >= 0)
        l->storage->ops->close(l->storage, l->file);
    if (l->directory >= 0)
        l->storage->ops->close(l->storage, l->directory);
    free(l->buffer);
    pthread_mutex_destroy(&l->lock);
    l->file = l->directory = -1;
    l->buffer = NULL;
}

static int file_begin(struct slice_log *l, uint64_t first)
{
    char name[NAME_SIZE];
    struct storage *s = l->storage;
    int rc = l->permit ? l->permit(l->permit_arg, l->error, sizeof l->error) : 0;
    if (rc < 0)
        return rc;
    rc = l->file >= 0 ? s->ops->sync(s, l->file) : 0;
    if (rc < 0) {
        atomic_store(&l->lost, rc);
        return fail(l, rc, "%s: slice log: fsync: %s", l->path, strerror(-rc));
    }
    file_name(first, name);
    const int file = s->ops->open(s, l->directory, name, O_WRONLY | O_CREAT | O_TRUNC, 0640);
    if (file < 0)
        return fail(l, file, "%s/%s: %s", l->path, name, strerror(-file));
    pthread_mutex_lock(&l->lock);
    if (l->file >= 0)
        s->ops->close(s, l->file);
    l->file = file;
    atomic_store(&l->synced, first - 1);
    pthread_mutex_unlock(&l->lock);
    l->size = 0;
    l->begun = true;
    rc = s->ops->sync(s, l->directory);
    return rc < 0 ? fail(l, rc, "%s: fsync: %s", l->path, strerror(-rc)) : 0;
}

static void *put(unsigned char **at, const void *bytes, size_t n)
{
    memcpy(*at, bytes, n);
    *at += n;
    return *at;
}

// Into the buffer; its header is returned.
static int record_encode(struct slice_log *l, const struct slice *slice, struct header *h)
{
    const size_t n = (size_t)l->n_partitions;
    *h = (struct header){.magic = MAGIC,
                         .previous = l->crc,
                         .n_partitions = (uint32_t)n,
                         .n_events = (uint32_t)slice->n_events,
                         .number = slice->number,
                         .digest = slice->digest,
                         .watermark_ms = slice->watermark_ms,
                         .floor_ms = slice->floor_ms,
                         .clock_ms = slice->clock_ms,
                         .dead_letters = slice->dead_letters,
                         .order = (uint8_t)slice->order,
                         .last = slice->last,
                         .n_values = (uint8_t)slice->values.n,
                         .shed_permille = (uint16_t)slice->shed_permille,
                         .n_verdicts = (uint32_t)slice->n_verdicts,
                         .n_moves = (uint16_t)slice->n_moves};
    const uint64_t synced = atomic_load(&l->synced);
    h->unsynced = slice->number > synced ? (uint32_t)(slice->number - 1 - synced) : 0;
    for (size_t p = 0; p < n; p++)
        h->epochs |= slice->epoch[p] >= 0;
    h->size = (uint32_t)record_size(h);
    if (h->size > l->buffer_size) {
        unsigned char *larger = realloc(l->buffer, h->size);
        if (!larger)
            return fail(l, -ENOMEM, "%s: slice log: out of memory", l->path);
        l->buffer = larger;
        l->buffer_size = h->size;
    }
    unsigned char *at = l->buffer;
    put(&at, h, sizeof *h);
    put(&at, slice->next, n * sizeof *slice->next);
    if (h->epochs)
        put(&at, slice->epoch, n * sizeof *slice->epoch);
    put(&at, slice->flags, n);
    for (int i = 0; i < slice->n_verdicts; i++)
        put(&at,
            &(struct verdict_bytes){slice->verdicts[i].partition, 0, slice->verdicts[i].offset},
            sizeof(struct verdict_bytes));
    for (int i = 0; i < slice->n_moves; i++)
        put(&at,
            &(struct move_bytes){slice->moves[i].partition, 0, slice->moves[i].from,
                                 slice->moves[i].to},
            sizeof(struct move_bytes));
    put(&at, slice->values.weight, (size_t)slice->values.n * sizeof *slice->values.weight);
    assert(at == l->buffer + h->size);
    h->crc = record_crc(l->buffer, h->size);
    memcpy(l->buffer + offsetof(struct header, crc), &h->crc, sizeof h->crc);
    return 0;
}

int slice_log_append(struct slice_log *l, const struct slice *slice)
{
    struct header h;
    assert(slice->n_partitions == l->n_partitions &&
           (l->last == 0 || slice->number == l->last + 1));
    const int lost = atomic_load(&l->lost);
    if (lost < 0)
        return fail(l, lost, "%s: slice log: an earlier fsync failed: %s", l->path,
                    strerror(-lost));
    int rc = !l->begun || l->last == 0 || l->size >= l->size_max ? file_begin(l, slice->number) : 0;
    if (rc == 0)
        rc = record_encode(l, slice, &h);
    if (rc < 0)
        return rc;
    rc = storage_write_all(l->storage, l->file, l->buffer, h.size, (uint64_t)l->size);
    if (rc < 0)
        return fail(l, rc, "%s: slice log: %s", l->path, strerror(-rc));
    l->size += h.size;
    l->crc = h.crc;
    l->last = slice->number;
    atomic_store(&l->appended, l->last);
    return 0;
}

int slice_log_sync(struct slice_log *l, char *error, size_t error_size)
{
    pthread_mutex_lock(&l->lock);
    if (atomic_load(&l->lost) == 0 && l->file >= 0) {
        const uint64_t appended = atomic_load(&l->appended);
        atomic_store(&l->lost, l->storage->ops->sync(l->storage, l->file));
        if (atomic_load(&l->lost) == 0 && appended > atomic_load(&l->synced))
            atomic_store(&l->synced, appended);
    }
    pthread_mutex_unlock(&l->lock);
    const int rc = atomic_load(&l->lost);
    if (rc < 0)
        snprintf(error, error_size, "%s: slice log: fsync: %s", l->path, strerror(-rc));
    return rc;
}

// Where the records up to number `after` end in a file; its crc is that of the last of them.
static int64_t file_end_of(const struct slice_log *l, const unsigned char *bytes, uint64_t size,
                           uint64_t after, uint32_t *crc)
{
    uint64_t at = 0;
    size_t length;
    while ((length = record_whole((uint32_t)l->n_partitions, bytes + at, size - at)) > 0) {
        struct header h;
        memcpy(&h, bytes + at, sizeof h);
        if (h.number > after)
            break;
        *crc = h.crc;
        at += length;
    }
    return (int64_t)at;
}

int slice_log_forget(struct slice_log *l, uint64_t after)
{
    uint64_t *list;
    struct storage *s = l->storage;
    char name[NAME_SIZE] = "";
    int n = files_list(l, &list), rc = n < 0 ? n : 0;
    if (l->file >= 0)
        s->ops->close(s, l->file);
    l->file = -1;
    l->last = 0;
    atomic_store(&l->appended, 0);
    atomic_store(&l->synced, after);
    // The newest first: what a crash leaves is a log that ends earlier.
    for (; rc == 0 && n > 0 && list[n - 1] > after; n--) {
        file_name(list[n - 1], name);
        rc = s->ops->remove(s, l->directory, name, false);
        if (rc == 0)
            rc = s->ops->sync(s, l->directory);
    }
    if (rc == 0 && n > 0) {
        unsigned char *bytes = NULL;
        uint64_t size;
        file_name(list[n - 1], name);
        const int handle = s->ops->open(s, l->directory, name, O_RDWR, 0);
        rc = handle < 0 ? handle : file_load(l, name, handle, &bytes, &size);
        if (rc == 0) {
            l->size = file_end_of(l, bytes, size, after, &l->crc);
            rc = s->ops->truncate(s, handle, (uint64_t)l->size);
        }
        if (rc == 0)
            rc = s->ops->sync(s, handle);
        if (rc == 0) {
            l->file = handle;
            l->last = after;
        } else if (handle >= 0) {
            s->ops->close(s, handle);
        }
        free(bytes);
    }
    free(list);
    return rc < 0
               ? fail(l, rc, "%s/%s: slices cannot be forgotten: %s", l->path, name, strerror(-rc))
               : 0;
}

int slice_log_trim(struct slice_log *l, uint64_t upto, int64_t keep)
{
    return files_remove(l, upto, keep, 1);
}
