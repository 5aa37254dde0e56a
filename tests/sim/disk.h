// SPDX-License-Identifier: Apache-2.0
//
// A disk that may lose, at a crash, whatever was not synced: any set of the 512-byte pieces of
// files, of sizes, and of changes to directories, whatever their order (weaker than any real file
// system: syncing a file does not even keep its name). It is a struct storage that lies in memory
// and records every change with the moment of it; afterwards the states that a crash at any of
// those moments could have left are built, and written to a real directory for those who map files.
//
//     disk_open(&d, "/dev/shm/x");               what is opened by path lies below
//     ... publish to /dev/shm/x/snapshots through &d.storage ...
//     disk_crash(&d, time, keep, &tree);         keep: of the changes that were pending then
//     disk_write(&tree, "/dev/shm/x");
//     disk_restart(&again, &d, &tree);           a disk that has this, and nothing pending
//
// One thread. What cannot be (memory, a handle that is not open) is an assert.
#pragma once

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "snapshot/storage.h"

enum { DISK_PIECE = 512, DISK_NAME = 64, DISK_PATH = 256, DISK_HANDLES = 32, DISK_NEVER = INT_MAX };

struct disk_entry {
    char name[DISK_NAME];
    int inode;
};

struct disk_inode {
    bool directory;
    uint64_t size, room;
    unsigned char *data;
    int n_entries, entries_max;
    struct disk_entry *entries;
};

struct disk_tree {
    int n, max;
    struct disk_inode *inodes; // 0 is the directory that everything is in
};

enum disk_kind { DISK_DATA, DISK_SIZE, DISK_ENTER, DISK_RENAME, DISK_REMOVE };

struct disk_change {
    enum disk_kind kind;
    int inode;    // the file or directory that changes
    int time;     // when it was done
    int kept;     // from when on a crash cannot undo it
    int previous; // the change before to the same inode, -1: none
    int target;   // of DISK_ENTER and DISK_RENAME
    uint64_t offset, size;
    size_t bytes; // of DISK_DATA: where they lie
    char name[DISK_NAME], to[DISK_NAME];
};

struct disk_handle {
    bool open, failed; // failed: a sync of it did
    int inode;
    char path[DISK_PATH]; // below the disk's own
    const char *name;     // its last component
};

struct disk {
    struct storage storage;
    char path[DISK_PATH];
    struct disk_tree base, live; // at the start, all of it durable; and now
    int time, n_log, log_max;
    struct disk_change *log;
    size_t n_bytes, bytes_max;
    unsigned char *bytes;
    int *newest; // by inode: its last change, -1: none
    int newest_max;
    struct disk_handle handles[DISK_HANDLES];

    // What a test plants. A sync that lies says 0 and does nothing; before_rename sees one first.
    bool (*lies)(struct disk *d, const struct disk_handle *handle);
    void (*before_rename)(struct disk *d, int parent, const char *from, const char *to);
    void *arg;
    // The fail_in-th call from now fails with fail_with, once; 0: none.
    int fail_in, fail_with, calls;
    bool short_writes;
};

// An empty disk; path "": what is opened by path is relative. May be called again on an open one.
void disk_open(struct disk *d, const char *path);
// The same disk after a crash that has left the tree; what was planted stays. from may be d.
void disk_restart(struct disk *d, const struct disk *from, const struct disk_tree *tree);
void disk_close(struct disk *d);

// Makes a durable directory in the root, before anything else happens.
void disk_directory(struct disk *d, const char *name);
// A moment in which nothing happens.
void disk_tick(struct disk *d);
// The inode of an entry, -1: none.
int disk_find(const struct disk_tree *t, int directory, const char *name);
// A change of the test's own, as if the system made it.
void disk_remove_entry(struct disk *d, int directory, const char *name);
// A file that the test puts there, with nothing synced.
void disk_put_file(struct disk *d, int directory, const char *name, const void *bytes, size_t n);

// How many changes a crash at this moment could undo.
int disk_pending(const struct disk *d, int time);
// What is there after a crash at this moment. keep: for each pending change in order whether it had
// reached the disk.
void disk_crash(const struct disk *d, int time, const bool *keep, struct disk_tree *tree);

void disk_tree_close(struct disk_tree *t);
// Writes everything below the inode to a real directory, which is made.
void disk_write(const struct disk_tree *t, int inode, const char *path);
// Of what is below the inode, names and bytes, whatever the order of the names.
uint64_t disk_hash(const struct disk_tree *t, int inode);
