// SPDX-License-Identifier: Apache-2.0
#include "pipeline/small_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PATH_SIZE = 4096 + 16 };

int small_file_sync_directory(const char *path)
{
    char directory[PATH_SIZE] = ".";
    const char *slash = strrchr(path, '/');
    if (slash)
        snprintf(directory, sizeof directory, "%.*s", (int)(slash - path + 1), path);
    const int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    const int rc = fsync(fd) < 0 ? -errno : 0;
    close(fd);
    return rc;
}

int small_file_write(const char *path, const void *bytes, size_t size)
{
    char beside[PATH_SIZE];
    int rc = 0;
    if ((size_t)snprintf(beside, sizeof beside, "%s.new", path) >= sizeof beside)
        return -ENAMETOOLONG;
    const int fd = open(beside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0640);
    if (fd < 0)
        return -errno;
    for (size_t done = 0; rc == 0 && done < size;) {
        const ssize_t n = write(fd, (const char *)bytes + done, size - done);
        if (n > 0)
            done += (size_t)n;
        else if (n == 0 || errno != EINTR)
            rc = n == 0 ? -EIO : -errno;
    }
    if (rc == 0 && fsync(fd) < 0)
        rc = -errno;
    close(fd);
    if (rc == 0 && rename(beside, path) < 0)
        rc = -errno;
    if (rc < 0) {
        unlink(beside);
        return rc;
    }
    return small_file_sync_directory(path);
}

ssize_t small_file_read(const char *path, void *bytes, size_t size)
{
    struct stat st;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    ssize_t rc = 0;
    for (size_t done = 0; done < size;) {
        rc = read(fd, (char *)bytes + done, size - done);
        if (rc < 0 && errno == EINTR)
            continue;
        if (rc <= 0)
            break;
        done += (size_t)rc;
    }
    if (rc < 0 || fstat(fd, &st) < 0)
        rc = -errno;
    else
        rc = (ssize_t)st.st_size;
    close(fd);
    return rc;
}
