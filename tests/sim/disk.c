// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/disk.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

// ---- Trees

static void *grown(void *list, size_t n)
{
    void *longer = realloc(list, n);
    assert(longer);
    return longer;
}

static void tree_room(struct disk_tree *t, int n)
{
    if (n > t->max) {
        const int max = n > 2 * t->max ? n : 2 * t->max;
        t->inodes = grown(t->inodes, (size_t)max * sizeof *t->inodes);
        memset(t->inodes + t->max, 0, (size_t)(max - t->max) * sizeof *t->inodes);
        t->max = max;
    }
    t->n = n > t->n ? n : t->n;
}

static void tree_clear(struct disk_tree *t)
{
    for (int i = 0; i < t->n; i++) {
        t->inodes[i].size = 0;
        t->inodes[i].n_entries = 0;
    }
    t->n = 0;
    tree_room(t, 1);
    t->inodes[0].directory = true;
}

void disk_tree_close(struct disk_tree *t)
{
    for (int i = 0; i < t->max; i++) {
        free(t->inodes[i].data);
        free(t->inodes[i].entries);
    }
    free(t->inodes);
    *t = (struct disk_tree){0};
}

static int entry_find(const struct disk_inode *d, const char *name)
{
    for (int i = 0; i < d->n_entries; i++)
        if (strcmp(d->entries[i].name, name) == 0)
            return i;
    return -1;
}

int disk_find(const struct disk_tree *t, int directory, const char *name)
{
    const struct disk_inode *d = &t->inodes[directory];
    const int at = entry_find(d, name);
    return at < 0 ? -1 : d->entries[at].inode;
}

static void entry_remove(struct disk_inode *d, const char *name)
{
    const int at = entry_find(d, name);
    if (at >= 0)
        d->entries[at] = d->entries[--d->n_entries];
}

static void entry_put(struct disk_inode *d, const char *name, int inode)
{
    entry_remove(d, name);
    if (d->n_entries == d->entries_max) {
        d->entries_max = d->entries_max ? 2 * d->entries_max : 8;
        d->entries = grown(d->entries, (size_t)d->entries_max * sizeof *d->entries);
    }
    assert(strlen(name) < DISK_NAME);
    strcpy(d->entries[d->n_entries].name, name);
    d->entries[d->n_entries++].inode = inode;
}

static void inode_resize(struct disk_inode *f, uint64_t size)
{
    if (size > f->room) {
        f->room = size > 2 * f->room ? size : 2 * f->room;
        f->data = grown(f->data, f->room);
    }
    if (size > f->size)
        memset(f->data + f->size, 0, size - f->size);
    f->size = size;
}

static void tree_copy(struct disk_tree *to, const struct disk_tree *from)
{
    tree_clear(to);
    tree_room(to, from->n);
    for (int i = 0; i < from->n; i++) {
        const struct disk_inode *f = &from->inodes[i];
        to->inodes[i].directory = f->directory;
        inode_resize(&to->inodes[i], f->size);
        if (f->size > 0)
            memcpy(to->inodes[i].data, f->data, f->size);
        for (int e = 0; e < f->n_entries; e++)
            entry_put(&to->inodes[i], f->entries[e].name, f->entries[e].inode);
    }
}

static void tree_apply(const struct disk *d, struct disk_tree *t, const struct disk_change *e)
{
    struct disk_inode *i = &t->inodes[e->inode];
    switch (e->kind) {
    case DISK_DATA:
        if (e->offset + e->size > i->size)
            inode_resize(i, e->offset + e->size);
        memcpy(i->data + e->offset, d->bytes + e->bytes, e->size);
        break;
    case DISK_SIZE:
        inode_resize(i, e->size);
        break;
    case DISK_ENTER:
        entry_put(i, e->name, e->target);
        break;
    case DISK_RENAME:
        entry_remove(i, e->name);
        entry_put(i, e->to, e->target);
        break;
    case DISK_REMOVE:
        entry_remove(i, e->name);
        break;
    }
}

void disk_write(const struct disk_tree *t, int inode, const char *path)
{
    char name[DISK_PATH + DISK_NAME];
    const struct disk_inode *d = &t->inodes[inode];
    mkdir(path, 0777);
    for (int i = 0; i < d->n_entries; i++) {
        const struct disk_inode *child = &t->inodes[d->entries[i].inode];
        assert(strlen(path) < DISK_PATH);
        snprintf(name, sizeof name, "%s/%s", path, d->entries[i].name);
        if (child->directory) {
            disk_write(t, d->entries[i].inode, name);
            continue;
        }
        const int file = open(name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
        assert(file >= 0);
        const ssize_t n = child->size > 0 ? write(file, child->data, child->size) : 0;
        assert(n == (ssize_t)child->size);
        close(file);
    }
}

uint64_t disk_hash(const struct disk_tree *t, int inode)
{
    uint64_t hash = 1;
    const struct disk_inode *d = &t->inodes[inode];
    for (int i = 0; i < d->n_entries; i++) {
        const struct disk_inode *child = &t->inodes[d->entries[i].inode];
        const uint64_t name = XXH3_64bits(d->entries[i].name, strlen(d->entries[i].name));
        const uint64_t words[] = {name, child->size,
                                  child->directory ? disk_hash(t, d->entries[i].inode)
                                                   : XXH3_64bits(child->data, child->size)};
        hash += XXH3_64bits(words, sizeof words);
    }
    return XXH3_64bits(&hash, sizeof hash);
}

// ---- Changes

static struct disk_change *change(struct disk *d, enum disk_kind kind, int inode)
{
    if (d->n_log == d->log_max) {
        d->log_max = d->log_max ? 2 * d->log_max : 1024;
        d->log = grown(d->log, (size_t)d->log_max * sizeof *d->log);
    }
    if (inode >= d->newest_max) {
        const int max = 2 * inode + 64;
        d->newest = grown(d->newest, (size_t)max * sizeof *d->newest);
        for (int i = d->newest_max; i < max; i++)
            d->newest[i] = -1;
        d->newest_max = max;
    }
    struct disk_change *e = &d->log[d->n_log];
    *e = (struct disk_change){.kind = kind,
                              .inode = inode,
                              .time = d->time,
                              .kept = DISK_NEVER,
                              .previous = d->newest[inode]};
    d->newest[inode] = d->n_log++;
    return e;
}

void disk_tick(struct disk *d)
{
    d->time++;
}

static int refusal(struct disk *d)
{
    d->calls++;
    return d->fail_in > 0 && --d->fail_in == 0 ? d->fail_with : 0;
}

static int inode_new(struct disk *d, bool directory)
{
    tree_room(&d->live, d->live.n + 1);
    d->live.inodes[d->live.n - 1].directory = directory;
    d->live.inodes[d->live.n - 1].size = 0;
    d->live.inodes[d->live.n - 1].n_entries = 0;
    return d->live.n - 1;
}

static int enter(struct disk *d, int directory, const char *name, bool is_directory)
{
    const int inode = inode_new(d, is_directory);
    disk_tick(d);
    struct disk_change *e = change(d, DISK_ENTER, directory);
    snprintf(e->name, DISK_NAME, "%s", name);
    e->target = inode;
    tree_apply(d, &d->live, e);
    return inode;
}

static void write_pieces(struct disk *d, int inode, const void *bytes, size_t n, uint64_t offset)
{
    disk_tick(d);
    for (size_t at = 0; at < n;) {
        // To the end of the sector, as a disk would.
        const size_t left = DISK_PIECE - (offset + at) % DISK_PIECE;
        struct disk_change *e = change(d, DISK_DATA, inode);
        e->offset = offset + at;
        e->size = n - at < left ? n - at : left;
        if (d->n_bytes + e->size > d->bytes_max) {
            d->bytes_max = d->bytes_max ? 2 * d->bytes_max : 1 << 20;
            d->bytes = grown(d->bytes, d->bytes_max);
        }
        e->bytes = d->n_bytes;
        memcpy(d->bytes + e->bytes, (const char *)bytes + at, e->size);
        d->n_bytes += e->size;
        tree_apply(d, &d->live, e);
        at += e->size;
    }
}

static void resize(struct disk *d, int inode, uint64_t size)
{
    disk_tick(d);
    struct disk_change *e = change(d, DISK_SIZE, inode);
    e->size = size;
    tree_apply(d, &d->live, e);
}

void disk_remove_entry(struct disk *d, int directory, const char *name)
{
    disk_tick(d);
    struct disk_change *e = change(d, DISK_REMOVE, directory);
    snprintf(e->name, DISK_NAME, "%s", name);
    tree_apply(d, &d->live, e);
}

void disk_put_file(struct disk *d, int directory, const char *name, const void *bytes, size_t n)
{
    write_pieces(d, enter(d, directory, name, false), bytes, n, 0);
}

// ---- The storage

static struct disk *disk_of(struct storage *s)
{
    return (struct disk *)s; // its first member
}

static struct disk_handle *handle_of(struct disk *d, int handle)
{
    assert(handle >= 0 && handle < DISK_HANDLES && d->handles[handle].open);
    return &d->handles[handle];
}

static int handle_new(struct disk *d, int inode, const char *path)
{
    for (int h = 0; h < DISK_HANDLES; h++) {
        struct disk_handle *handle = &d->handles[h];
        if (handle->open)
            continue;
        assert(strlen(path) < DISK_PATH);
        *handle = (struct disk_handle){.open = true, .inode = inode};
        strcpy(handle->path, path);
        const char *slash = strrchr(handle->path, '/');
        handle->name = slash ? slash + 1 : handle->path;
        return h;
    }
    assert(!"a free handle");
    return -EMFILE;
}

// A name beside a handle or a path from the root: the directory it lies in, and its last component;
// *full becomes its path below the root. -ENOENT when a directory is not there.
static int resolve(struct disk *d, int directory, const char *name, char full[DISK_PATH],
                   const char **last)
{
    const size_t own = strlen(d->path);
    if (directory != STORAGE_CWD) {
        const struct disk_handle *at = handle_of(d, directory);
        snprintf(full, DISK_PATH, "%s%s%s", at->path, *at->path ? "/" : "", name);
        *last = full + strlen(full) - strlen(name);
        return at->inode;
    }
    assert(strncmp(name, d->path, own) == 0);
    for (name += own; *name == '/'; name++)
        ;
    snprintf(full, DISK_PATH, "%s", strcmp(name, ".") == 0 ? "" : name);
    int inode = 0;
    *last = full;
    for (char *slash; (slash = strchr(*last, '/'));) {
        *slash = '\0';
        inode = disk_find(&d->live, inode, *last);
        *slash = '/';
        if (inode < 0)
            return -ENOENT;
        *last = slash + 1;
    }
    return inode;
}

static int disk_open_file(struct storage *s, int directory, const char *name, int flags,
                          unsigned mode)
{
    struct disk *d = disk_of(s);
    char full[DISK_PATH];
    const char *last;
    (void)mode;
    const int rc = refusal(d);
    if (rc < 0)
        return rc;
    const int parent = resolve(d, directory, name, full, &last);
    if (parent < 0 || !*last)
        return parent < 0 ? parent : handle_new(d, 0, full);
    int inode = disk_find(&d->live, parent, last);
    if (inode >= 0 && flags & O_EXCL)
        return -EEXIST;
    if (inode < 0 && !(flags & O_CREAT))
        return -ENOENT;
    if (inode < 0)
        inode = enter(d, parent, last, false);
    if (flags & O_DIRECTORY && !d->live.inodes[inode].directory)
        return -ENOTDIR;
    if (flags & O_TRUNC && d->live.inodes[inode].size > 0)
        resize(d, inode, 0);
    return handle_new(d, inode, full);
}

static int disk_close_file(struct storage *s, int handle)
{
    handle_of(disk_of(s), handle)->open = false;
    return 0;
}

static ssize_t disk_write_at(struct storage *s, int handle, const void *bytes, size_t n,
                             uint64_t offset)
{
    struct disk *d = disk_of(s);
    const int rc = refusal(d);
    if (rc < 0)
        return rc;
    if (d->short_writes && n > 1000)
        n = 1000 - n % 7;
    write_pieces(d, handle_of(d, handle)->inode, bytes, n, offset);
    return (ssize_t)n;
}

static ssize_t disk_read_at(struct storage *s, int handle, void *bytes, size_t n, uint64_t offset)
{
    struct disk *d = disk_of(s);
    const int rc = refusal(d);
    if (rc < 0)
        return rc;
    const struct disk_inode *i = &d->live.inodes[handle_of(d, handle)->inode];
    if (offset >= i->size)
        return 0;
    if (n > i->size - offset)
        n = i->size - offset;
    memcpy(bytes, i->data + offset, n);
    return (ssize_t)n;
}

static int disk_allocate(struct storage *s, int handle, uint64_t size)
{
    struct disk *d = disk_of(s);
    const int rc = refusal(d);
    if (rc == 0)
        resize(d, handle_of(d, handle)->inode, size);
    return rc;
}

static int disk_truncate(struct storage *s, int handle, uint64_t size)
{
    return disk_allocate(s, handle, size);
}

static int disk_size(struct storage *s, int handle, uint64_t *size)
{
    struct disk *d = disk_of(s);
    *size = d->live.inodes[handle_of(d, handle)->inode].size;
    return refusal(d);
}

static int disk_sync(struct storage *s, int handle)
{
    struct disk *d = disk_of(s);
    struct disk_handle *h = handle_of(d, handle);
    assert(!h->failed); // the second one would lie
    const int rc = refusal(d);
    h->failed = rc < 0;
    if (rc < 0 || (d->lies && d->lies(d, h)))
        return rc;
    disk_tick(d);
    for (int i = h->inode < d->newest_max ? d->newest[h->inode] : -1;
         i >= 0 && d->log[i].kept == DISK_NEVER; i = d->log[i].previous)
        d->log[i].kept = d->time;
    return 0;
}

static int disk_make_directory(struct storage *s, int directory, const char *name)
{
    struct disk *d = disk_of(s);
    char full[DISK_PATH];
    const char *last;
    const int rc = refusal(d);
    if (rc < 0)
        return rc;
    const int parent = resolve(d, directory, name, full, &last);
    if (parent < 0)
        return parent;
    if (disk_find(&d->live, parent, last) >= 0)
        return -EEXIST;
    enter(d, parent, last, true);
    return 0;
}

static int disk_rename(struct storage *s, int directory, const char *from, const char *to)
{
    struct disk *d = disk_of(s);
    const int rc = refusal(d);
    if (rc < 0)
        return rc;
    const int parent = handle_of(d, directory)->inode;
    const int inode = disk_find(&d->live, parent, from);
    if (inode < 0)
        return -ENOENT;
    if (d->before_rename)
        d->before_rename(d, parent, from, to);
    disk_tick(d);
    struct disk_change *e = change(d, DISK_RENAME, parent);
    snprintf(e->name, DISK_NAME, "%s", from);
    snprintf(e->to, DISK_NAME, "%s", to);
    e->target = inode;
    tree_apply(d, &d->live, e);
    return 0;
}

static int disk_remove(struct storage *s, int directory, const char *name, bool is_directory)
{
    struct disk *d = disk_of(s);
    const int rc = refusal(d);
    if (rc < 0)
        return rc;
    const int parent = handle_of(d, directory)->inode;
    const int inode = disk_find(&d->live, parent, name);
    if (inode < 0)
        return -ENOENT;
    const struct disk_inode *i = &d->live.inodes[inode];
    if (i->directory != is_directory)
        return is_directory ? -ENOTDIR : -EISDIR;
    if (is_directory && i->n_entries > 0)
        return -ENOTEMPTY;
    disk_remove_entry(d, parent, name);
    return 0;
}

static int disk_list(struct storage *s, int directory, storage_each_fn *each, void *arg)
{
    struct disk *d = disk_of(s);
    const int rc = refusal(d);
    if (rc < 0)
        return rc;
    // Entries may be removed meanwhile.
    const struct disk_inode *i = &d->live.inodes[handle_of(d, directory)->inode];
    const int n = i->n_entries;
    struct disk_entry *copy = grown(NULL, (size_t)n * sizeof *copy + 1);
    int result = 0;
    if (n > 0)
        memcpy(copy, i->entries, (size_t)n * sizeof *copy);
    for (int e = 0; e < n && result == 0; e++)
        result = each(arg, copy[e].name);
    free(copy);
    return result;
}

static int disk_lock(struct storage *s, int handle, int operation)
{
    (void)s;
    (void)handle;
    (void)operation;
    return 0;
}

static int disk_free_bytes(struct storage *s, int directory, uint64_t *bytes)
{
    (void)directory;
    *bytes = 1 << 30;
    return refusal(disk_of(s));
}

static const struct storage_ops disk_ops = {
    .open = disk_open_file,
    .close = disk_close_file,
    .write_at = disk_write_at,
    .read_at = disk_read_at,
    .allocate = disk_allocate,
    .truncate = disk_truncate,
    .size = disk_size,
    .sync = disk_sync,
    .make_directory = disk_make_directory,
    .rename = disk_rename,
    .remove = disk_remove,
    .list = disk_list,
    .lock = disk_lock,
    .free_bytes = disk_free_bytes,
};

// ---- Disks

// What a disk has allocated is used again.
static void begin(struct disk *d)
{
    d->storage = (struct storage){.ops = &disk_ops};
    d->time = d->n_log = 0;
    d->n_bytes = 0;
    for (int i = 0; i < d->newest_max; i++)
        d->newest[i] = -1;
    memset(d->handles, 0, sizeof d->handles);
    d->fail_in = d->calls = 0;
    d->short_writes = false;
}

void disk_open(struct disk *d, const char *path)
{
    begin(d);
    snprintf(d->path, sizeof d->path, "%s", path);
    d->lies = NULL;
    d->before_rename = NULL;
    tree_clear(&d->base);
    tree_clear(&d->live);
}

void disk_restart(struct disk *d, const struct disk *from, const struct disk_tree *tree)
{
    if (d != from) {
        memcpy(d->path, from->path, sizeof d->path);
        d->lies = from->lies;
        d->before_rename = from->before_rename;
        d->arg = from->arg;
    }
    begin(d);
    tree_copy(&d->base, tree);
    tree_copy(&d->live, tree);
}

void disk_close(struct disk *d)
{
    disk_tree_close(&d->base);
    disk_tree_close(&d->live);
    free(d->log);
    free(d->bytes);
    free(d->newest);
    *d = (struct disk){0};
}

void disk_directory(struct disk *d, const char *name)
{
    assert(d->n_log == 0);
    const int inode = inode_new(d, true);
    entry_put(&d->live.inodes[0], name, inode);
    tree_copy(&d->base, &d->live);
}

int disk_pending(const struct disk *d, int time)
{
    int n = 0;
    for (int i = 0; i < d->n_log && d->log[i].time <= time; i++)
        n += d->log[i].kept > time;
    return n;
}

void disk_crash(const struct disk *d, int time, const bool *keep, struct disk_tree *tree)
{
    int pending = 0;
    tree_copy(tree, &d->base);
    tree_room(tree, d->live.n);
    for (int i = d->base.n; i < d->live.n; i++)
        tree->inodes[i].directory = d->live.inodes[i].directory;
    for (int i = 0; i < d->n_log && d->log[i].time <= time; i++)
        if (d->log[i].kept <= time || keep[pending++])
            tree_apply(d, tree, &d->log[i]);
}
