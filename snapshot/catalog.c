// SPDX-License-Identifier: Apache-2.0
#include "snapshot/catalog.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "snapshot/manifest.h"
#include "snapshot/storage.h"

static const char manifest_name[] = "manifest.json";

struct catalog {
    struct storage *storage;
    char *path;
    int root, lock; // handles, -1: none
    uint64_t *generations;
    size_t n, n_max;
    char error[1024];
};

static int fail(struct catalog *c, int rc, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static int fail(struct catalog *c, int rc, const char *format, ...)
{
    const int used = snprintf(c->error, sizeof c->error, "%s: ", c->path);
    va_list args;
    va_start(args, format);
    if (used >= 0 && (size_t)used < sizeof c->error)
        vsnprintf(c->error + used, sizeof c->error - (size_t)used, format, args);
    va_end(args);
    return rc;
}

const char *catalog_error(const struct catalog *c)
{
    return c->error;
}

void catalog_path(const struct catalog *c, uint64_t generation, char *path, size_t size)
{
    snprintf(path, size, "%s/%" PRIu64, c->path, generation);
}

static void generation_name(uint64_t generation, char name[32])
{
    snprintf(name, 32, "%" PRIu64, generation);
}

static int ascending(const void *a, const void *b)
{
    const uint64_t *left = a, *right = b;
    return (*left > *right) - (*left < *right);
}

static int list_generation(void *arg, const char *name)
{
    struct catalog *c = arg;
    uint64_t generation;
    if (!generation_parse(name, &generation))
        return 0;
    if (c->n == c->n_max) {
        const size_t n_max = c->n_max ? 2 * c->n_max : 16;
        uint64_t *grown = realloc(c->generations, n_max * sizeof *grown);
        if (!grown)
            return -ENOMEM;
        c->generations = grown;
        c->n_max = n_max;
    }
    c->generations[c->n++] = generation;
    return 0;
}

int catalog_list(struct catalog *c, const uint64_t **generations)
{
    c->n = 0;
    const int rc = c->storage->ops->list(c->storage, c->root, list_generation, c);
    if (rc < 0)
        return fail(c, rc, "cannot list: %s", strerror(-rc));
    if (c->n > 0)
        qsort(c->generations, c->n, sizeof *c->generations, ascending);
    *generations = c->generations;
    return (int)c->n;
}

// Removes a generation so that at no moment it looks whole and is not: the manifest first, and
// durably. A reader's shared lock on the manifest is respected: -EBUSY.
static int remove_generation(struct catalog *c, uint64_t generation)
{
    const struct storage_ops *ops = c->storage->ops;
    char name[32];
    generation_name(generation, name);
    const int directory = ops->open(c->storage, c->root, name, O_RDONLY | O_DIRECTORY, 0);
    if (directory < 0)
        return fail(c, directory, "%s: cannot open: %s", name, strerror(-directory));
    int rc = 0;
    const int manifest = ops->open(c->storage, directory, manifest_name, O_RDONLY | O_NONBLOCK, 0);
    if (manifest >= 0) {
        rc = ops->lock(c->storage, manifest, LOCK_EX | LOCK_NB);
        if (rc == -EWOULDBLOCK) {
            rc = fail(c, -EBUSY, "%s: a reader holds it", name);
            goto close;
        }
        rc = ops->remove(c->storage, directory, manifest_name, false);
        if (rc == 0)
            rc = ops->sync(c->storage, directory);
        if (rc < 0) {
            rc = fail(c, rc, "%s: cannot remove the manifest: %s", name, strerror(-rc));
            goto close;
        }
    }
    rc = storage_remove_directory(c->storage, c->root, name);
    if (rc < 0)
        rc = fail(c, rc, "%s: cannot remove: %s", name, strerror(-rc));
close:
    if (manifest >= 0)
        ops->close(c->storage, manifest);
    ops->close(c->storage, directory);
    return rc;
}

static int remove_leftover(void *arg, const char *name)
{
    struct catalog *c = arg;
    const struct storage_ops *ops = c->storage->ops;
    if (strncmp(name, ".tmp-", 5) == 0) {
        int rc = storage_remove_directory(c->storage, c->root, name);
        if (rc == -ENOTDIR)
            rc = ops->remove(c->storage, c->root, name, false);
        return rc < 0 ? fail(c, rc, "cannot remove the leftover %s: %s", name, strerror(-rc)) : 0;
    }
    // A generation without a manifest is one that retention did not finish removing.
    uint64_t generation;
    if (!generation_parse(name, &generation))
        return 0;
    const int directory = ops->open(c->storage, c->root, name, O_RDONLY | O_DIRECTORY, 0);
    if (directory < 0)
        return 0;
    const int manifest = ops->open(c->storage, directory, manifest_name, O_RDONLY | O_NONBLOCK, 0);
    if (manifest >= 0)
        ops->close(c->storage, manifest);
    ops->close(c->storage, directory);
    return manifest == -ENOENT ? remove_generation(c, generation) : 0;
}

// Makes the root's own name durable. Also when it was there: the process that made it may have been
// killed before it came this far.
static int sync_parent(struct catalog *c, bool made)
{
    const struct storage_ops *ops = c->storage->ops;
    char *path = strdup(c->path);
    if (!path)
        return fail(c, -ENOMEM, "out of memory");
    const int parent = ops->open(c->storage, STORAGE_CWD, dirname(path), O_RDONLY | O_DIRECTORY, 0);
    free(path);
    if (parent == -EACCES && !made)
        return 0; // an administrator made the root, in a place that is closed to us
    int rc = parent;
    if (parent >= 0) {
        rc = ops->sync(c->storage, parent);
        ops->close(c->storage, parent);
    }
    return rc < 0 ? fail(c, rc, "cannot sync the directory above: %s", strerror(-rc)) : 0;
}

static int lock_pointer(struct catalog *c)
{
    const int lock = pointer_lock(c->storage, c->root);
    return lock < 0 ? fail(c, lock, "cannot lock .pointer: %s", strerror(-lock)) : lock;
}

static int open_root(struct catalog *c)
{
    const struct storage_ops *ops = c->storage->ops;
    int rc = ops->make_directory(c->storage, STORAGE_CWD, c->path);
    if (rc < 0 && rc != -EEXIST)
        return fail(c, rc, "cannot make the directory: %s", strerror(-rc));
    rc = sync_parent(c, rc == 0);
    if (rc < 0)
        return rc;
    rc = ops->open(c->storage, STORAGE_CWD, c->path, O_RDONLY | O_DIRECTORY, 0);
    if (rc < 0)
        return fail(c, rc, "cannot open the directory: %s", strerror(-rc));
    c->root = rc;
    rc = ops->open(c->storage, c->root, ".lock", O_RDWR | O_CREAT | O_NOFOLLOW, 0666);
    if (rc < 0)
        return fail(c, rc, "cannot open .lock: %s", strerror(-rc));
    c->lock = rc;
    rc = ops->lock(c->storage, c->lock, LOCK_EX | LOCK_NB);
    if (rc == -EWOULDBLOCK)
        return fail(c, -EBUSY, "another process writes here (it holds .lock)");
    if (rc < 0)
        return fail(c, rc, "cannot lock .lock: %s", strerror(-rc));
    // An operator may be in the middle of moving the pointer: that is no leftover.
    const int pointer = lock_pointer(c);
    if (pointer < 0)
        return pointer;
    rc = ops->list(c->storage, c->root, remove_leftover, c);
    if (rc < 0 && c->error[0] == '\0')
        fail(c, rc, "cannot list: %s", strerror(-rc));
    if (rc == 0) {
        rc = pointer_settle(c->storage, c->root);
        if (rc < 0)
            fail(c, rc, "cannot complete LATEST: %s", strerror(-rc));
    }
    pointer_unlock(c->storage, pointer);
    return rc;
}

static int look_root(struct catalog *c)
{
    const int rc =
        c->storage->ops->open(c->storage, STORAGE_CWD, c->path, O_RDONLY | O_DIRECTORY, 0);
    if (rc < 0)
        return fail(c, rc, "cannot open the directory: %s", strerror(-rc));
    c->root = rc;
    return 0;
}

static int open_as(struct catalog **catalog, struct storage *storage, const char *root,
                   int (*open_it)(struct catalog *), char *error, size_t error_size)
{
    *catalog = NULL;
    struct catalog *c = calloc(1, sizeof *c);
    if (!c || !(c->path = strdup(root))) {
        free(c);
        snprintf(error, error_size, "out of memory");
        return -ENOMEM;
    }
    c->storage = storage ? storage : &storage_disk;
    c->root = c->lock = -1;
    const int rc = open_it(c);
    if (rc < 0) {
        snprintf(error, error_size, "%s", c->error);
        catalog_close(c);
        return rc;
    }
    *catalog = c;
    return 0;
}

int catalog_open(struct catalog **catalog, struct storage *storage, const char *root, char *error,
                 size_t error_size)
{
    return open_as(catalog, storage, root, open_root, error, error_size);
}

int catalog_look(struct catalog **catalog, struct storage *storage, const char *root, char *error,
                 size_t error_size)
{
    return open_as(catalog, storage, root, look_root, error, error_size);
}

void catalog_close(struct catalog *c)
{
    if (c->lock >= 0)
        c->storage->ops->close(c->storage, c->lock);
    if (c->root >= 0)
        c->storage->ops->close(c->storage, c->root);
    free(c->generations);
    free(c->path);
    free(c);
}

static int check_files(struct catalog *c, int directory, const char *name, const struct manifest *m)
{
    const struct storage_ops *ops = c->storage->ops;
    for (size_t i = 0; i < m->n_files; i++) {
        const struct manifest_file *f = &m->files[i];
        const int handle =
            ops->open(c->storage, directory, f->name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0);
        if (handle < 0)
            return fail(c, handle, "%s/%s: cannot open: %s", name, f->name, strerror(-handle));
        uint64_t size;
        const int rc = ops->size(c->storage, handle, &size);
        ops->close(c->storage, handle);
        if (rc < 0)
            return fail(c, rc, "%s/%s: cannot tell the size: %s", name, f->name, strerror(-rc));
        if (size != f->size)
            return fail(c, -EBADMSG, "%s/%s: %" PRIu64 " bytes where the manifest says %" PRIu64,
                        name, f->name, size, f->size);
    }
    return 0;
}

// crc: that of the manifest, when the generation is whole.
static int check(struct catalog *c, uint64_t generation, uint32_t *crc)
{
    const struct storage_ops *ops = c->storage->ops;
    char name[32], sentence[512];
    generation_name(generation, name);
    const int directory = ops->open(c->storage, c->root, name, O_RDONLY | O_DIRECTORY, 0);
    if (directory < 0)
        return fail(c, directory, "%s: cannot open: %s", name, strerror(-directory));
    char *text = NULL;
    size_t n;
    struct manifest m;
    int rc = storage_get(c->storage, directory, manifest_name, MANIFEST_SIZE_MAX, &text, &n);
    if (rc < 0) {
        rc = fail(c, rc, "%s: cannot read manifest.json: %s", name, strerror(-rc));
        goto close;
    }
    rc = manifest_parse(&m, text, n, sentence, sizeof sentence);
    if (rc < 0) {
        rc = fail(c, rc, "%s: %s", name, sentence);
        goto close;
    }
    if (m.generation == generation)
        rc = check_files(c, directory, name, &m);
    else
        rc = fail(c, -EBADMSG, "%s: the manifest is that of %" PRIu64, name, m.generation);
    *crc = m.crc32c;
    manifest_free(&m);
close:
    free(text);
    ops->close(c->storage, directory);
    return rc;
}

int catalog_check(struct catalog *c, uint64_t generation)
{
    uint32_t crc;
    return check(c, generation, &crc);
}

static int newest(struct catalog *c, struct pointer_target *found)
{
    const uint64_t *generations;
    const int n = catalog_list(c, &generations);
    if (n < 0)
        return n;
    for (int i = n; i-- > 0;) {
        if (check(c, generations[i], &found->crc) == 0) {
            found->generation = generations[i];
            return 0;
        }
    }
    // With directories there, the sentence is about the last that was refused.
    return n > 0 ? -ENOENT : fail(c, -ENOENT, "no generation is here");
}

int catalog_newest(struct catalog *c, uint64_t *generation)
{
    struct pointer_target found;
    const int rc = newest(c, &found);
    if (rc == 0)
        *generation = found.generation;
    return rc;
}

int catalog_pointer(struct catalog *c, struct pointer *pointer)
{
    const int rc = pointer_read(c->storage, c->root, pointer);
    return rc < 0 ? fail(c, rc, "cannot read LATEST or PINNED: %s", strerror(-rc)) : 0;
}

int catalog_good(struct catalog *c, uint64_t *generation)
{
    struct pointer p;
    const int rc = catalog_pointer(c, &p);
    if (rc < 0)
        return rc;
    const uint64_t named = p.pinned.generation ? p.pinned.generation : p.latest.generation;
    if (p.is_pinned && named > 0 && catalog_check(c, named) == 0) {
        *generation = named;
        return 0;
    }
    return catalog_newest(c, generation);
}

int catalog_pin(struct catalog *c, uint64_t generation)
{
    struct pointer_target to = {.generation = generation};
    const int lock = lock_pointer(c);
    if (lock < 0)
        return lock;
    int rc = check(c, generation, &to.crc);
    if (rc == 0) {
        rc = pointer_pin(c->storage, c->root, &to);
        if (rc < 0)
            fail(c, rc, "cannot replace LATEST and PINNED: %s", strerror(-rc));
    }
    pointer_unlock(c->storage, lock);
    return rc;
}

int catalog_unpin(struct catalog *c, uint64_t *generation)
{
    struct pointer_target to;
    const int lock = lock_pointer(c);
    if (lock < 0)
        return lock;
    int rc = newest(c, &to);
    if (rc == 0) {
        *generation = to.generation;
        rc = pointer_unpin(c->storage, c->root, &to);
        if (rc < 0)
            fail(c, rc, "cannot remove PINNED and replace LATEST: %s", strerror(-rc));
    }
    pointer_unlock(c->storage, lock);
    return rc;
}

// What a writer of this process has left: it failed, and so did removing it. Not what another one's
// is: where locks keep nobody out, that may be alive.
static int remove_own(void *arg, const char *name)
{
    struct catalog *c = arg;
    char end[32];
    const int n = snprintf(end, sizeof end, "-%ld", (long)getpid());
    const size_t size = strlen(name);
    if (strncmp(name, ".tmp-", 5) == 0 && size > (size_t)n && strcmp(name + size - n, end) == 0)
        storage_remove_directory(c->storage, c->root, name); // if it still fails: the next time
    return 0;
}

int catalog_next(struct catalog *c, uint64_t now_ms, uint64_t *generation)
{
    const uint64_t *generations;
    c->storage->ops->list(c->storage, c->root, remove_own, c);
    const int n = catalog_list(c, &generations);
    if (n < 0)
        return n;
    *generation = now_ms > 0 ? now_ms : 1;
    if (n > 0 && *generation <= generations[n - 1])
        *generation = generations[n - 1] + 1;
    if (*generation > MANIFEST_INTEGER_MAX)
        return fail(c, -EOVERFLOW, "%" PRIu64 " leaves no number for the next generation",
                    *generation - 1);
    return 0;
}

// Whoever pins a generation holds the same lock: it is pinned before it can go, or gone before.
static int remove_unless_named(struct catalog *c, uint64_t generation)
{
    struct pointer p;
    const int lock = lock_pointer(c);
    if (lock < 0)
        return lock;
    int rc = catalog_pointer(c, &p);
    if (rc == 0)
        rc = generation == p.latest.generation || generation == p.pinned.generation
                 ? -EBUSY
                 : remove_generation(c, generation);
    pointer_unlock(c->storage, lock);
    return rc;
}

int catalog_retain(struct catalog *c, int keep)
{
    assert(keep >= 1);
    const uint64_t *generations;
    const int n = catalog_list(c, &generations);
    if (n < 0)
        return n;
    int i = n;
    // What is damaged is not counted, and stays beside newer whole ones until it is older than all
    // that are kept: somebody may want to see it.
    for (int whole = 0; i > 0 && whole < keep;)
        whole += catalog_check(c, generations[--i]) == 0;
    c->error[0] = '\0';
    int removed = 0, failed = 0;
    while (i-- > 0) {
        const int rc = remove_unless_named(c, generations[i]);
        if (rc == 0)
            removed++;
        else if (rc != -EBUSY)
            failed = rc;
    }
    return failed < 0 ? failed : removed;
}
