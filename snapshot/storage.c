// SPDX-License-Identifier: Apache-2.0
#include "snapshot/storage.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

_Static_assert(STORAGE_CWD == AT_FDCWD, "openat and its relatives take it as it is");

static int result(int rc)
{
    return rc < 0 ? -errno : rc;
}

static int disk_open(struct storage *s, int directory, const char *name, int flags, unsigned mode)
{
    (void)s;
    return result(openat(directory, name, flags | O_CLOEXEC, mode));
}

static int disk_close(struct storage *s, int handle)
{
    (void)s;
    return result(close(handle));
}

static ssize_t disk_write_at(struct storage *s, int handle, const void *bytes, size_t n,
                             uint64_t offset)
{
    (void)s;
    const ssize_t written = pwrite(handle, bytes, n, (off_t)offset);
    return written < 0 ? -errno : written;
}

static ssize_t disk_read_at(struct storage *s, int handle, void *bytes, size_t n, uint64_t offset)
{
    (void)s;
    const ssize_t got = pread(handle, bytes, n, (off_t)offset);
    return got < 0 ? -errno : got;
}

static int disk_allocate(struct storage *s, int handle, uint64_t size)
{
    (void)s;
    int rc;
    do
        rc = result(fallocate(handle, 0, 0, (off_t)size));
    while (rc == -EINTR);
    return rc == -EOPNOTSUPP ? 0 : rc; // then the writes themselves find the disk full
}

static int disk_truncate(struct storage *s, int handle, uint64_t size)
{
    (void)s;
    return result(ftruncate(handle, (off_t)size));
}

static int disk_size(struct storage *s, int handle, uint64_t *size)
{
    (void)s;
    struct stat st;
    if (fstat(handle, &st) < 0)
        return -errno;
    *size = (uint64_t)st.st_size;
    return 0;
}

static int disk_sync(struct storage *s, int handle)
{
    (void)s;
    return result(fsync(handle));
}

static int disk_make_directory(struct storage *s, int directory, const char *name)
{
    (void)s;
    return result(mkdirat(directory, name, 0777));
}

static int disk_rename(struct storage *s, int directory, const char *from, const char *to)
{
    (void)s;
    return result(renameat(directory, from, directory, to));
}

static int disk_remove(struct storage *s, int directory, const char *name, bool is_directory)
{
    (void)s;
    return result(unlinkat(directory, name, is_directory ? AT_REMOVEDIR : 0));
}

static int disk_list(struct storage *s, int directory, storage_each_fn *each, void *arg)
{
    (void)s;
    // A descriptor of its own: fdopendir takes it over, and its position is not the caller's.
    const int fd = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    DIR *d = fdopendir(fd);
    if (!d) {
        const int rc = -errno;
        close(fd);
        return rc;
    }
    int rc = 0;
    for (;;) {
        errno = 0;
        const struct dirent *entry = readdir(d);
        if (!entry) {
            rc = -errno;
            break;
        }
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        rc = each(arg, entry->d_name);
        if (rc != 0)
            break;
    }
    closedir(d);
    return rc;
}

static int disk_lock(struct storage *s, int handle, int operation)
{
    (void)s;
    return result(flock(handle, operation));
}

static int disk_free_bytes(struct storage *s, int directory, uint64_t *bytes)
{
    (void)s;
    struct statvfs v;
    if (fstatvfs(directory, &v) < 0)
        return -errno;
    *bytes = (uint64_t)v.f_bavail * v.f_frsize;
    return 0;
}

static const struct storage_ops disk_ops = {
    .open = disk_open,
    .close = disk_close,
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

struct storage storage_disk = {.ops = &disk_ops, .descriptors = true};

int storage_write_all(struct storage *s, int handle, const void *bytes, size_t n, uint64_t offset)
{
    for (int idle = 0; n > 0;) {
        const ssize_t written = s->ops->write_at(s, handle, bytes, n, offset);
        if (written == -EINTR || written == -EAGAIN) {
            if (++idle == STORAGE_TRIES)
                return (int)written;
            continue;
        }
        if (written <= 0)
            return written < 0 ? (int)written : -EIO;
        idle = 0;
        bytes = (const char *)bytes + written;
        n -= (size_t)written;
        offset += (uint64_t)written;
    }
    return 0;
}

int storage_put(struct storage *s, int directory, const char *name, const void *bytes, size_t n)
{
    const int handle = s->ops->open(s, directory, name, O_WRONLY | O_CREAT | O_EXCL, 0666);
    if (handle < 0)
        return handle;
    int rc = storage_write_all(s, handle, bytes, n, 0);
    if (rc == 0)
        rc = s->ops->sync(s, handle);
    const int closed = s->ops->close(s, handle);
    return rc < 0 ? rc : closed;
}

int storage_get(struct storage *s, int directory, const char *name, size_t size_max, char **bytes,
                size_t *n)
{
    // Not blocking: a FIFO in the place of the file must not hold the process.
    const int handle = s->ops->open(s, directory, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0);
    if (handle < 0)
        return handle;
    char *text = NULL;
    uint64_t size;
    int rc = s->ops->size(s, handle, &size);
    if (rc < 0)
        goto close;
    if (size > size_max) {
        rc = -EFBIG;
        goto close;
    }
    text = malloc((size_t)size + 1);
    if (!text) {
        rc = -ENOMEM;
        goto close;
    }
    size_t used = 0;
    while (used < size) {
        const ssize_t got = s->ops->read_at(s, handle, text + used, (size_t)size - used, used);
        if (got == -EINTR)
            continue;
        if (got < 0) {
            rc = (int)got;
            goto close;
        }
        if (got == 0)
            break;
        used += (size_t)got;
    }
    text[used] = '\0';
    *bytes = text;
    *n = used;
    text = NULL;
close:
    free(text);
    s->ops->close(s, handle);
    return rc;
}

struct removal {
    struct storage *storage;
    int directory, rc;
};

static int remove_file(void *arg, const char *name)
{
    struct removal *r = arg;
    const int rc = r->storage->ops->remove(r->storage, r->directory, name, false);
    if (r->rc == 0)
        r->rc = rc;
    return 0;
}

int storage_remove_directory(struct storage *s, int directory, const char *name)
{
    const int inner = s->ops->open(s, directory, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0);
    if (inner < 0)
        return inner;
    struct removal r = {s, inner, 0};
    int rc = s->ops->list(s, inner, remove_file, &r);
    s->ops->close(s, inner);
    if (rc == 0)
        rc = r.rc;
    if (rc == 0)
        rc = s->ops->remove(s, directory, name, true);
    return rc;
}
