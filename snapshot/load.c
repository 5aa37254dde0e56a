// SPDX-License-Identifier: Apache-2.0
#include "snapshot/load.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "snapshot/crc32c.h"
#include "snapshot/manifest.h"
#include "snapshot/twotower_reader.h"

// A thread takes a piece of a file at a time: long enough that two of them seldom meet in one huge
// page, which both would clear. In it goes chunk by chunk, which the second cache has room for.
enum { THREADS = 4, PIECE = 8 * MANIFEST_CHUNK, DIRECT_ALIGN = 4096 };

_Static_assert((int)LOAD_STRETCH == (int)MANIFEST_CHUNK, "a stretch is what one checksum is of");

struct file {
    const struct manifest_file *is;
    const unsigned char *mapped; // all of it, by the reader; NULL: it has no data
    unsigned char *to;           // of its data, NULL: not kept
    uint64_t first_piece;
};

struct handles {
    int cached, direct; // direct: with O_DIRECT, -1: not to be had, or not worth it
};

struct load {
    const struct load_options *options;
    const char *path;
    int directory;
    struct file *files;
    size_t n_files;
    uint64_t n_pieces;
    _Atomic uint64_t next; // piece to be taken
    // The first piece that failed: those behind it need not be read any more.
    _Atomic uint64_t failed;
    pthread_mutex_t lock; // of what follows
    int rc;
    char *error;
    size_t error_size;
};

static void fail(struct load *l, uint64_t piece, const struct manifest_file *f, int rc,
                 const char *what)
{
    pthread_mutex_lock(&l->lock);
    if (piece < atomic_load(&l->failed)) {
        atomic_store(&l->failed, piece);
        l->rc = rc == -EIO ? -EBADMSG : rc; // a disk that cannot read it has lost it
        snprintf(l->error, l->error_size, "%s/%s: %s", l->path, f->name, what);
    }
    pthread_mutex_unlock(&l->lock);
}

// Whether the page at offset is in the page cache; also when that is not told.
static bool cached_at(const struct file *f, uint64_t offset)
{
    unsigned char in = 1;
    return !f->mapped || mincore((void *)(f->mapped + offset), 1, &in) < 0 || in & 1;
}

// All n bytes, what is in the page cache from there. 0 or -errno. What is not is not asked for
// there: from Linux 6.12 on RWF_NOWAIT begins to read ahead what it does not find, and the disk
// would read the bytes twice.
static int chunk_read(const struct file *f, struct handles h, unsigned char *to, size_t n,
                      uint64_t offset)
{
    const struct iovec all = {to, n};
    ssize_t got = cached_at(f, offset) ? preadv2(h.cached, &all, 1, (off_t)offset, RWF_NOWAIT) : 0;
    if (got == (ssize_t)n)
        return 0;
    if (h.direct >= 0 && n % DIRECT_ALIGN == 0) {
        got = pread(h.direct, to, n, (off_t)offset);
        if (got == (ssize_t)n)
            return 0;
    }
    for (size_t done = 0; done < n;) {
        got = pread(h.cached, to + done, n - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got < 0 ? -errno : -EBADMSG;
        done += (size_t)got;
    }
    return 0;
}

// Chunk i of the file; where it cannot be read in place, through bounce.
static int chunk_load(const struct file *f, struct handles h, uint64_t i, unsigned char *bounce,
                      char *why, size_t why_size)
{
    const struct manifest_file *m = f->is;
    const uint64_t offset = i * MANIFEST_CHUNK, left = m->size - offset;
    const size_t n = left < MANIFEST_CHUNK ? (size_t)left : MANIFEST_CHUNK;
    const bool in_place = f->to && offset >= m->data_offset && m->data_offset % DIRECT_ALIGN == 0;
    unsigned char *at = in_place ? f->to + (offset - m->data_offset) : bounce;
    // Fresh memory: all its pages at once, and cleared while the cache has room for them. Faults of
    // one page each took 1.4 s for 4 GB, this 1.0. A kernel before 5.14 refuses, and they come.
    if (in_place)
        madvise(at, n, MADV_POPULATE_WRITE);
    const int rc = chunk_read(f, h, at, n, offset);
    if (rc < 0) {
        snprintf(why, why_size, "bytes %" PRIu64 "..%" PRIu64 " cannot be read: %s", offset,
                 offset + n - 1, strerror(-rc));
        return rc;
    }
    const uint32_t crc = crc32c(0, at, n);
    if (crc != m->chunk_crc32c[i]) {
        snprintf(why, why_size,
                 "bytes %" PRIu64 "..%" PRIu64 " have checksum %08" PRIx32
                 " where the manifest says %08" PRIx32,
                 offset, offset + n - 1, crc, m->chunk_crc32c[i]);
        return -EBADMSG;
    }
    if (f->to && !in_place && offset + n > m->data_offset) {
        const uint64_t from = offset < m->data_offset ? m->data_offset : offset;
        memcpy(f->to + (from - m->data_offset), at + (from - offset), (size_t)(offset + n - from));
    }
    return 0;
}

static const struct file *file_of(const struct load *l, uint64_t piece)
{
    size_t low = 0, high = l->n_files;
    while (high - low > 1) {
        const size_t middle = (low + high) / 2;
        if (l->files[middle].first_piece <= piece)
            low = middle;
        else
            high = middle;
    }
    return &l->files[low];
}

// Opened for each piece: open at a time are no more than the threads need, however many the arrays.
static void piece_load(struct load *l, uint64_t piece, unsigned char *bounce)
{
    enum { FLAGS = O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK };
    const struct file *f = file_of(l, piece);
    const struct manifest_file *m = f->is;
    const uint64_t each = PIECE / MANIFEST_CHUNK, first = (piece - f->first_piece) * each;
    struct handles h = {openat(l->directory, m->name, FLAGS), -1};
    if (h.cached < 0) {
        const int rc = -errno;
        fail(l, piece, m, rc, strerror(-rc));
        return;
    }
    if (m->size >= MANIFEST_CHUNK)
        h.direct = openat(l->directory, m->name, FLAGS | O_DIRECT);
    for (uint64_t i = first; i < first + each && i < m->n_chunks; i++) {
        char why[200];
        const int rc = chunk_load(f, h, i, bounce, why, sizeof why);
        if (rc < 0) {
            fail(l, piece, m, rc, why);
            break;
        }
        const uint64_t offset = i * MANIFEST_CHUNK, end = offset + MANIFEST_CHUNK;
        const uint64_t from = offset < m->data_offset ? m->data_offset : offset;
        const uint64_t to = end < m->size ? end : m->size;
        if (f->to && l->options->loaded && to > from)
            l->options->loaded(l->options->arg, (int)(f - l->files), from - m->data_offset,
                               to - from);
    }
    close(h.cached);
    if (h.direct >= 0)
        close(h.direct);
}

static void *load_main(void *arg)
{
    struct load *l = arg;
    unsigned char *bounce = aligned_alloc(DIRECT_ALIGN, MANIFEST_CHUNK);
    for (uint64_t piece; (piece = atomic_fetch_add(&l->next, 1)) < l->n_pieces;) {
        if (piece > atomic_load(&l->failed))
            break;
        if (bounce)
            piece_load(l, piece, bounce);
        else
            fail(l, piece, file_of(l, piece)->is, -ENOMEM, "out of memory");
    }
    free(bounce);
    return NULL;
}

// The checksum of a whole file follows from those of its chunks, which are compared with the bytes.
static bool whole_agrees(const struct manifest_file *f)
{
    uint32_t whole = 0;
    for (uint64_t i = 0; i < f->n_chunks; i++) {
        const uint64_t left = f->size - i * MANIFEST_CHUNK;
        whole = crc32c_combine(whole, f->chunk_crc32c[i],
                               left < MANIFEST_CHUNK ? left : MANIFEST_CHUNK);
    }
    return whole == f->crc32c;
}

int load_arrays(const struct tt_reader *r, const struct load_options *options, char *error,
                size_t error_size)
{
    struct load l = {.options = options,
                     .path = tt_path(r),
                     .failed = UINT64_MAX,
                     .lock = PTHREAD_MUTEX_INITIALIZER,
                     .error = error,
                     .error_size = error_size};
    struct manifest manifest;
    pthread_t threads[THREADS];
    int n_threads = 0;
    int rc = manifest_parse(&manifest, tt_manifest_json(r), strlen(tt_manifest_json(r)), error,
                            error_size);
    if (rc < 0)
        return rc;
    assert((int)manifest.n_files == tt_n_arrays(r));
    l.files = calloc(manifest.n_files + 1, sizeof *l.files);
    if (!l.files) {
        snprintf(error, error_size, "%s: out of memory", l.path);
        rc = -ENOMEM;
        goto free;
    }
    l.directory = open(l.path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (l.directory < 0) {
        rc = -errno;
        snprintf(error, error_size, "%s: cannot open: %s", l.path, strerror(-rc));
        goto free;
    }
    for (; l.n_files < manifest.n_files; l.n_files++) {
        const struct manifest_file *m = &manifest.files[l.n_files];
        const struct tt_array *a = tt_array_at(r, (int)l.n_files);
        l.files[l.n_files] =
            (struct file){m, a->size > 0 ? (const unsigned char *)a->data - m->data_offset : NULL,
                          options->to[l.n_files], l.n_pieces};
        if (!whole_agrees(m))
            fail(&l, l.n_pieces, m, -EBADMSG, "its checksum is not that of its chunks");
        l.n_pieces += (m->n_chunks * MANIFEST_CHUNK + PIECE - 1) / PIECE;
    }
    while (n_threads < THREADS - 1 && pthread_create(&threads[n_threads], NULL, load_main, &l) == 0)
        n_threads++;
    load_main(&l); // with those that could be started, or alone
    while (n_threads > 0)
        pthread_join(threads[--n_threads], NULL);
    rc = l.rc;
    close(l.directory);
free:
    free(l.files);
    manifest_free(&manifest);
    return rc;
}
