// SPDX-License-Identifier: Apache-2.0
//
// The file-system calls that publishing needs, as a table, so that a test can put a recording disk
// in place of the real one: one that fails the n-th call, or shows what a crash would have left.
//
// Every call returns 0 or a non-negative result, or -errno. Handles are file descriptors on the
// real storage and mean nothing elsewhere. Names are relative to a directory handle; the root is
// opened by path with STORAGE_CWD.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { STORAGE_CWD = -100 }; // AT_FDCWD

struct storage;

typedef int storage_each_fn(void *arg, const char *name); // non-zero ends the listing

struct storage_ops {
    // flags are those of open(2); O_CLOEXEC is added.
    int (*open)(struct storage *s, int directory, const char *name, int flags, unsigned mode);
    int (*close)(struct storage *s, int handle);
    // May write less than n, as pwrite(2).
    ssize_t (*write_at)(struct storage *s, int handle, const void *bytes, size_t n,
                        uint64_t offset);
    ssize_t (*read_at)(struct storage *s, int handle, void *bytes, size_t n, uint64_t offset);
    // Gives the file size bytes and blocks for them: a full disk is found here, before any damage.
    int (*allocate)(struct storage *s, int handle, uint64_t size);
    int (*truncate)(struct storage *s, int handle, uint64_t size);
    int (*size)(struct storage *s, int handle, uint64_t *size);
    // fsync of a file or a directory. A failed one is never repeated: the kernel may have marked
    // the lost pages clean, and the second call would lie.
    int (*sync)(struct storage *s, int handle);
    int (*make_directory)(struct storage *s, int directory, const char *name);
    int (*rename)(struct storage *s, int directory, const char *from, const char *to);
    int (*remove)(struct storage *s, int directory, const char *name, bool is_directory);
    // Every name but "." and "..", in no order. The names may be removed while listing.
    int (*list)(struct storage *s, int directory, storage_each_fn *each, void *arg);
    int (*lock)(struct storage *s, int handle, int operation);            // flock(2)
    int (*free_bytes)(struct storage *s, int directory, uint64_t *bytes); // to an ordinary user
};

struct storage {
    const struct storage_ops *ops;
    bool descriptors; // handles are file descriptors: io_uring may write to them
};

// The disk. Has no state: one for the process, any thread.
extern struct storage storage_disk;

enum { STORAGE_TRIES = 8 }; // how often in a row EINTR or EAGAIN is taken for an answer

// Writes all n bytes, over short writes and interruptions.
int storage_write_all(struct storage *s, int handle, const void *bytes, size_t n, uint64_t offset);
// Opens, writes all n bytes, syncs and closes a small file. It must not exist.
int storage_put(struct storage *s, int directory, const char *name, const void *bytes, size_t n);
// Removes a directory and the files in it (not deeper). Goes on after errors; the first is
// returned.
int storage_remove_directory(struct storage *s, int directory, const char *name);
// Reads a whole file of at most size_max bytes into memory that the caller frees; a zero byte
// follows the content. -EFBIG when it is longer.
int storage_get(struct storage *s, int directory, const char *name, size_t size_max, char **bytes,
                size_t *n);
