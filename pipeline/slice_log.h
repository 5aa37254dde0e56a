// SPDX-License-Identifier: Apache-2.0
//
// The slice log: for every slice, what a clock or a queue decided, so that recovery and replay
// apply the same slices. It holds positions, not events; those are read again from the source.
//
// Files slices-<first number>.log in the state directory. A record carries the CRC32C of itself and
// of the one before it. It is 88 bytes, 9 for each partition (13 where leader epochs are known),
// and what else the slice has: verdicts, moves, values of the tasks. A torn tail is no part of the
// log; damage before the end is refused (-EBADMSG, with file and offset), because what follows it
// cannot be trusted, and so is a log of another number of partitions or of another version
// (-EINVAL).
//
// Whoever opens a log begins a file of his own with his first slice, and a file is read up to where
// the next one begins: another process that lost the directory, and does not know it yet, goes on
// in a file that nobody reads any further.
//
// Appending is for the ingest thread; slice_log_sync may be called by the thread that makes
// something of the slices visible, before it does. Functions return 0 or -errno, and then the
// handle's error has the sentence, or the argument where there is one.
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pipeline/slice.h"

struct storage;

struct slice_log {
    struct storage *storage;
    char path[3072];  // of the directory, for messages
    char error[4096]; // of the ingest thread
    int n_partitions;
    int directory, file; // handles; the newest file's, -1: none yet
    bool begun;          // that one by this process
    // Asked before a file is begun: a refusal (-errno with a sentence) ends the log. May be NULL.
    int (*permit)(void *arg, char *error, size_t error_size);
    void *permit_arg;
    // -errno of the first sync that failed. The kernel tells that once and then takes the pages for
    // written, so nothing that is synced later may be believed: the log is at its end.
    _Atomic int lost;
    pthread_mutex_t lock; // around fd: a new file against a sync
    uint32_t crc;         // of the last record
    uint64_t last;        // its number, 0 when there is none
    // Numbers: of the last record in the file, for who syncs, and of the last that is known to be
    // on the disk, for who appends.
    _Atomic uint64_t appended, synced;
    int64_t size, size_max; // of the newest file; a new one is begun beyond size_max
    unsigned char *buffer;  // a record that is being written
    size_t buffer_size;
};

// What is recorded of a slice, all members as in struct slice; pointers are the reader's own.
struct slice_record {
    uint64_t number, digest;
    enum slice_order order;
    bool last;
    int n_events;
    int64_t watermark_ms, floor_ms, clock_ms, dead_letters;
    int shed_permille;
    const int64_t *next;  // n_partitions
    const int32_t *epoch; // n_partitions
    const uint8_t *flags; // n_partitions
    int n_verdicts, n_moves;
    const struct slice_verdict *verdicts;
    const struct slice_move *moves;
    struct slice_values values;
};

typedef int (*slice_log_fn)(void *arg, const struct slice_record *record);

// Opens the log and calls see for every record after number `after`, in order; see may be NULL, and
// a value below 0 from it ends the reading and is returned. The record after `after` must be there
// if any later one is. storage NULL: the disk.
int slice_log_open(struct slice_log *l, struct storage *storage, const char *directory,
                   int n_partitions, int64_t size_max, uint64_t after, slice_log_fn see, void *arg);
void slice_log_close(struct slice_log *l);
int slice_log_append(struct slice_log *l, const struct slice *slice);
// Any thread. After the first failure it and slice_log_append fail for good.
int slice_log_sync(struct slice_log *l, char *error, size_t error_size);
// Forgets every slice after number `after`, and what followed them, for good.
int slice_log_forget(struct slice_log *l, uint64_t after);
// Removes files that hold nothing after number `upto`, oldest first, as long as more than keep
// bytes of such are there.
int slice_log_trim(struct slice_log *l, uint64_t upto, int64_t keep);

// Reads the log of a directory that somebody else owns, perhaps while it grows, and changes
// nothing: a torn tail is where it ends. *first is the number of its first record, 0: there is
// none.
int slice_log_read(const char *directory, int n_partitions, uint64_t after, uint64_t *first,
                   slice_log_fn see, void *arg, char *error, size_t error_size);
