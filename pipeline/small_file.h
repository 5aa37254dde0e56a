// SPDX-License-Identifier: Apache-2.0
//
// Files that are read and written as a whole, and are on the disk whole or not at all: written
// beside, synced, renamed. Functions return 0 or -errno and hold nothing between calls; two threads
// must not write one path at once.
#pragma once

#include <stddef.h>
#include <sys/types.h>

// Replaces path. Durable when it returns 0; after a failure the old file is there.
int small_file_write(const char *path, const void *bytes, size_t size);
// How many bytes the file has, of which up to size were read; -ENOENT when there is none.
ssize_t small_file_read(const char *path, void *bytes, size_t size);
// Names in a directory are on the disk only when the directory is: that of path.
int small_file_sync_directory(const char *path);
