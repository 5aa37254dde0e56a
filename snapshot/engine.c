// SPDX-License-Identifier: Apache-2.0
#include "snapshot/engine.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "snapshot/storage.h"

enum {
    DIRECT_ALIGN = 4096,
    HUGE_PAGE = 2 << 20,
    BLOCKS_ALL = ENGINE_BLOCKS + ENGINE_READS,
    RING_SIZE = BLOCKS_ALL * ENGINE_BLOCK,
    QUEUE = 32, // each block is in it once at the most
};

_Static_assert((int)QUEUE >= (int)BLOCKS_ALL, "an entry is always free");

struct file {
    int handle; // -1: not open
    bool direct;
    uint64_t offset, size; // put so far; announced
    int current;           // the block the caller fills, -1: none
    int in_flight;
    char name[256];
};

struct block {
    struct file *file;
    uint64_t offset; // in the file
    size_t size;     // to write, padded for O_DIRECT
    size_t done;
    int tries;
    bool busy; // filled by the caller, or in flight
};

struct read {
    bool busy;
    ssize_t got;
};

struct engine {
    struct storage *storage;
    bool uring, enabled;
    struct io_uring ring;
    int depth, in_flight;
    void *mapping;
    char *memory; // BLOCKS_ALL blocks, on a huge page boundary: to write from, then to read to
    struct block blocks[ENGINE_BLOCKS];
    struct read reads[ENGINE_READS];
    struct file files[ENGINE_FILES], *file; // file: the one that was chosen
    int rc;                                 // the first error of the files that are open

    uint64_t bytes_written;
    char reason[160], error[384];
};

static int fail(struct engine *e, const struct file *f, int rc, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

static int fail(struct engine *e, const struct file *f, int rc, const char *format, ...)
{
    if (e->rc < 0)
        return e->rc;
    char what[96];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    snprintf(e->error, sizeof e->error, "%s: %s: %s", f->name, what, strerror(-rc));
    e->rc = rc;
    return rc;
}

static const char *uring_refusal(int rc)
{
    switch (rc) {
    case -EPERM:
        return "io_uring refused: not permitted (a seccomp filter, as in most containers, or "
               "kernel.io_uring_disabled)";
    case -ENOSYS:
        return "io_uring refused: the kernel, or a seccomp filter, does not know it";
    case -ENOMEM:
        return "io_uring refused: not enough memory may be locked (RLIMIT_MEMLOCK)";
    default:
        return NULL;
    }
}

// The ring is made disabled: the kernel ties a single issuer to the thread that enables it, and
// that is the one which opens the first file or reads first.
static int uring_open(struct engine *e)
{
    struct io_uring_params p = {.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
                                         IORING_SETUP_R_DISABLED};
    // liburing returns the error; errno is not set.
    int rc = io_uring_queue_init_params(QUEUE, &e->ring, &p);
    if (rc == -EINVAL) { // before Linux 6.1
        p = (struct io_uring_params){.flags = IORING_SETUP_R_DISABLED};
        rc = io_uring_queue_init_params(QUEUE, &e->ring, &p);
    }
    if (rc < 0) {
        const char *refusal = uring_refusal(rc);
        if (refusal)
            snprintf(e->reason, sizeof e->reason, "%s", refusal);
        else
            snprintf(e->reason, sizeof e->reason, "io_uring refused: %s", strerror(-rc));
        return rc;
    }
    e->uring = true;
    return 0;
}

static int memory_open(struct engine *e)
{
    const size_t mapped = RING_SIZE + HUGE_PAGE;
    e->mapping = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (e->mapping == MAP_FAILED)
        return -ENOMEM;
    e->memory = (char *)(((uintptr_t)e->mapping + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1));
    // Huge pages make one block one segment of the device's queue (2,300 against 2,095 MB/s on a
    // virtio disk). They are a wish; touching every page here is not: a first touch under load
    // took up to 15 us a page where the host backs guest memory on demand.
    madvise(e->memory, RING_SIZE, MADV_HUGEPAGE);
    memset(e->memory, 0, RING_SIZE);
    return 0;
}

int engine_open(struct engine **engine, const struct engine_options *options, char *error,
                size_t error_size)
{
    const int depth = options->depth ? options->depth : 8;
    assert(depth >= 1 && depth <= ENGINE_BLOCKS);
    struct engine *e = calloc(1, sizeof *e);
    if (!e) {
        snprintf(error, error_size, "snapshot engine: out of memory");
        return -ENOMEM;
    }
    e->storage = options->storage ? options->storage : &storage_disk;
    e->depth = depth;
    e->file = e->files;
    for (int i = 0; i < ENGINE_FILES; i++)
        e->files[i].handle = e->files[i].current = -1;

    int rc = memory_open(e);
    if (rc < 0) {
        snprintf(error, error_size, "snapshot engine: no memory for %d MiB of blocks",
                 RING_SIZE >> 20);
        goto free;
    }
    if (options->backend == ENGINE_PWRITE) {
        snprintf(e->reason, sizeof e->reason, "pwrite was asked for");
    } else if (!e->storage->descriptors) {
        assert(options->backend == ENGINE_AUTO);
        snprintf(e->reason, sizeof e->reason, "this storage has no file descriptors");
    } else {
        rc = uring_open(e);
        if (rc < 0 && options->backend == ENGINE_URING) {
            snprintf(error, error_size, "snapshot engine: %s", e->reason);
            goto unmap;
        }
    }
    *engine = e;
    return 0;
unmap:
    munmap(e->mapping, RING_SIZE + HUGE_PAGE);
free:
    free(e);
    return rc;
}

static bool any_open(const struct engine *e)
{
    for (int i = 0; i < ENGINE_FILES; i++)
        if (e->files[i].handle >= 0)
            return true;
    return false;
}

void engine_close(struct engine *e)
{
    assert(!any_open(e));
    for (int i = 0; i < ENGINE_READS; i++)
        assert(!e->reads[i].busy);
    if (e->uring)
        io_uring_queue_exit(&e->ring);
    munmap(e->mapping, RING_SIZE + HUGE_PAGE);
    free(e);
}

const char *engine_backend(const struct engine *e)
{
    return e->uring ? "io_uring" : "pwrite";
}

const char *engine_reason(const struct engine *e)
{
    return e->reason;
}

const char *engine_error(const struct engine *e)
{
    return e->error;
}

int engine_status(const struct engine *e)
{
    return e->rc;
}

struct storage *engine_storage(const struct engine *e)
{
    return e->storage;
}

uint64_t engine_bytes_written(const struct engine *e)
{
    return e->bytes_written;
}

static size_t round_up(size_t n, size_t unit)
{
    return (n + unit - 1) / unit * unit;
}

static int uring_enable(struct engine *e)
{
    if (!e->uring || e->enabled)
        return 0;
    // liburing 2.3 declares io_uring_enable_rings without exporting it.
    const int rc =
        io_uring_register((unsigned)e->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
    e->enabled = rc >= 0;
    return rc < 0 ? rc : 0;
}

void engine_file_choose(struct engine *e, int file)
{
    assert(file >= 0 && file < ENGINE_FILES);
    e->file = &e->files[file];
}

int engine_file_open(struct engine *e, int directory, const char *name, uint64_t size)
{
    struct file *f = e->file;
    assert(f->handle < 0 && f->in_flight == 0);
    if (any_open(e) && e->rc < 0)
        return e->rc;
    e->rc = 0;
    e->error[0] = '\0';
    *f = (struct file){.handle = -1, .current = -1, .size = size, .direct = true};
    snprintf(f->name, sizeof f->name, "%s", name);
    const int enabled = uring_enable(e);
    if (enabled < 0)
        return fail(e, f, enabled, "cannot enable io_uring");

    const struct storage_ops *ops = e->storage->ops;
    const int flags = O_WRONLY | O_CREAT | O_EXCL;
    f->handle = ops->open(e->storage, directory, name, flags | O_DIRECT, 0666);
    if (f->handle == -EINVAL) { // tmpfs before Linux 6.6, some FUSE
        f->direct = false;
        // Linux may have created the file before refusing the flag.
        ops->remove(e->storage, directory, name, false);
        f->handle = ops->open(e->storage, directory, name, flags, 0666);
    }
    if (f->handle < 0) {
        const int rc = f->handle;
        f->handle = -1;
        return fail(e, f, rc, "cannot create");
    }
    if (size > 0) {
        // Without it ext4 extends the file under the inode's lock, in a kernel worker: 8 times the
        // CPU. And a full disk would be found in the middle.
        const uint64_t allocated = f->direct ? round_up(size, DIRECT_ALIGN) : size;
        const int rc = ops->allocate(e->storage, f->handle, allocated);
        if (rc < 0) {
            fail(e, f, rc, "cannot allocate %llu bytes", (unsigned long long)allocated);
            engine_files_abandon(e);
            return rc;
        }
    }
    return 0;
}

static void *block_memory(struct engine *e, int i)
{
    return e->memory + (size_t)i * ENGINE_BLOCK;
}

// The ring itself no longer works. Closing it is all that can be done; what was in flight may still
// be read by the kernel, or written, for a file that will be discarded. The next file is written by
// pwrite, and reads end with the error.
static void uring_break(struct engine *e, int rc)
{
    assert(rc != -EEXIST); // another thread than the one that opened the first file: our mistake
    fail(e, e->file, rc, "io_uring stopped working");
    snprintf(e->reason, sizeof e->reason, "io_uring stopped working: %s", strerror(-rc));
    io_uring_queue_exit(&e->ring);
    e->uring = false;
    e->in_flight = 0;
    for (int i = 0; i < ENGINE_FILES; i++)
        e->files[i].in_flight = 0;
    for (int i = 0; i < ENGINE_BLOCKS; i++)
        e->blocks[i].busy = false;
    for (int i = 0; i < ENGINE_READS; i++)
        if (e->reads[i].busy)
            e->reads[i] = (struct read){.got = rc};
}

static void uring_submit(struct engine *e)
{
    int rc;
    do
        rc = io_uring_submit(&e->ring);
    while (rc == -EINTR);
    // EAGAIN and EBUSY leave the entry in the queue; the next submit or wait takes it along.
    if (rc < 0 && rc != -EAGAIN && rc != -EBUSY)
        uring_break(e, rc);
}

static void block_submit(struct engine *e, int i)
{
    struct block *b = &e->blocks[i];
    struct io_uring_sqe *sqe = io_uring_get_sqe(&e->ring);
    assert(sqe);
    io_uring_prep_write(sqe, b->file->handle, (char *)block_memory(e, i) + b->done,
                        (unsigned)(b->size - b->done), b->offset + b->done);
    io_uring_sqe_set_data64(sqe, (uint64_t)i);
    e->in_flight++;
    b->file->in_flight++;
    uring_submit(e);
}

// What became of a write. Resubmits what is left of it.
static void block_completed(struct engine *e, int i, int res)
{
    struct block *b = &e->blocks[i];
    struct file *f = b->file;
    e->in_flight--;
    f->in_flight--;
    if (e->rc < 0) { // draining after an error: only the memory matters now
        b->busy = false;
        return;
    }
    if (res == -EINTR || res == -EAGAIN) {
        if (++b->tries == STORAGE_TRIES) {
            b->busy = false;
            fail(e, f, res, "cannot write at offset %llu", (unsigned long long)b->offset);
            return;
        }
    } else if (res <= 0) {
        b->busy = false;
        fail(e, f, res < 0 ? res : -EIO, "cannot write at offset %llu",
             (unsigned long long)(b->offset + b->done));
        return;
    } else {
        const size_t before = b->done;
        b->done += (size_t)res;
        if (b->done >= b->size) {
            b->busy = false;
            return;
        }
        if (f->direct) // goes on at an aligned place: some bytes are written twice
            b->done -= b->done % DIRECT_ALIGN;
        b->tries = b->done > before ? 0 : b->tries + 1;
        if (b->tries == STORAGE_TRIES) {
            b->busy = false;
            fail(e, f, -EIO, "writes stay short at offset %llu", (unsigned long long)b->offset);
            return;
        }
    }
    block_submit(e, i);
}

// Waits for one completion and takes all that are there. A ring that deferred its work makes
// progress only inside the kernel, so peeking alone would never see an end.
static void uring_wait(struct engine *e)
{
    const int rc = io_uring_submit_and_wait(&e->ring, 1);
    if (rc < 0 && rc != -EINTR && rc != -EAGAIN && rc != -EBUSY)
        uring_break(e, rc);
    struct io_uring_cqe *cqe;
    while (e->uring && io_uring_peek_cqe(&e->ring, &cqe) == 0) {
        const int i = (int)io_uring_cqe_get_data64(cqe), res = cqe->res;
        io_uring_cqe_seen(&e->ring, cqe);
        if (i < ENGINE_BLOCKS)
            block_completed(e, i, res);
        else
            e->reads[i - ENGINE_BLOCKS] = (struct read){.got = res};
    }
}

static void drain(struct engine *e)
{
    while (e->in_flight > 0)
        uring_wait(e);
}

void *engine_block_get(struct engine *e)
{
    struct file *f = e->file;
    assert(f->handle >= 0);
    if (e->rc < 0)
        return NULL;
    if (f->current >= 0)
        return block_memory(e, f->current);
    for (;;) {
        for (int i = 0; i < ENGINE_BLOCKS; i++) {
            if (!e->blocks[i].busy) {
                e->blocks[i].busy = true;
                f->current = i;
                return block_memory(e, i);
            }
        }
        uring_wait(e);
        if (e->rc < 0) {
            drain(e);
            return NULL;
        }
    }
}

int engine_block_put(struct engine *e, size_t n)
{
    struct file *f = e->file;
    if (e->rc < 0)
        return e->rc;
    assert(f->current >= 0 && n > 0 && n <= ENGINE_BLOCK);
    assert(f->offset + n <= f->size && (n == ENGINE_BLOCK || f->offset + n == f->size));

    const int i = f->current;
    struct block *b = &e->blocks[i];
    *b = (struct block){.file = f, .offset = f->offset, .size = n, .busy = true};
    if (f->direct) {
        b->size = round_up(n, DIRECT_ALIGN);
        memset((char *)block_memory(e, i) + n, 0, b->size - n);
    }
    f->current = -1;
    f->offset += n;
    e->bytes_written += n;

    if (!e->uring) {
        const int rc =
            storage_write_all(e->storage, f->handle, block_memory(e, i), b->size, b->offset);
        b->busy = false;
        return rc < 0
                   ? fail(e, f, rc, "cannot write near offset %llu", (unsigned long long)b->offset)
                   : 0;
    }
    while (e->in_flight >= e->depth && e->rc == 0)
        uring_wait(e);
    if (e->rc == 0)
        block_submit(e, i);
    else
        b->busy = false;
    if (e->rc < 0)
        drain(e);
    return e->rc;
}

static int file_forget(struct engine *e, struct file *f)
{
    const int rc = e->storage->ops->close(e->storage, f->handle);
    if (f->current >= 0)
        e->blocks[f->current].busy = false;
    f->handle = f->current = -1;
    return rc;
}

int engine_file_close(struct engine *e)
{
    struct file *f = e->file;
    assert(f->handle >= 0 && (e->rc < 0 || (f->current < 0 && f->offset == f->size)));
    const struct storage_ops *ops = e->storage->ops;
    while (f->in_flight > 0)
        uring_wait(e);
    if (e->rc == 0 && f->direct && f->size % DIRECT_ALIGN != 0) {
        const int rc = ops->truncate(e->storage, f->handle, f->size);
        if (rc < 0)
            fail(e, f, rc, "cannot cut to %llu bytes", (unsigned long long)f->size);
    }
    if (e->rc == 0) {
        const int rc = ops->sync(e->storage, f->handle);
        if (rc < 0)
            fail(e, f, rc, "fsync failed");
    }
    const int closed = file_forget(e, f);
    if (closed < 0 && e->rc == 0)
        fail(e, f, closed, "cannot close");
    if (e->rc < 0)
        drain(e);
    return e->rc;
}

void engine_files_abandon(struct engine *e)
{
    drain(e);
    for (int i = 0; i < ENGINE_FILES; i++)
        if (e->files[i].handle >= 0)
            file_forget(e, &e->files[i]);
}

void engine_read_begin(struct engine *e, int slot, int handle, size_t n, uint64_t offset)
{
    struct read *r = &e->reads[slot];
    assert(slot >= 0 && slot < ENGINE_READS && !r->busy && n <= ENGINE_BLOCK);
    const int i = ENGINE_BLOCKS + slot;
    if (!e->uring || uring_enable(e) < 0) {
        r->got = e->storage->ops->read_at(e->storage, handle, block_memory(e, i), n, offset);
        return;
    }
    struct io_uring_sqe *sqe = io_uring_get_sqe(&e->ring);
    assert(sqe);
    io_uring_prep_read(sqe, handle, block_memory(e, i), (unsigned)n, offset);
    io_uring_sqe_set_data64(sqe, (uint64_t)i);
    r->busy = true;
    uring_submit(e);
}

ssize_t engine_read_end(struct engine *e, int slot, void **bytes)
{
    struct read *r = &e->reads[slot];
    while (r->busy)
        uring_wait(e);
    *bytes = block_memory(e, ENGINE_BLOCKS + slot);
    return r->got;
}
