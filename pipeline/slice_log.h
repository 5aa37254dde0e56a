// SPDX-License-Identifier: Apache-2.0
//
// The slice log: for every slice, what a clock or a queue decided, so that recovery and replay
// apply the same slices. It holds positions, not events; those are read again from the source.
//
// Files slices-<first number>.log in the state directory. A record carries the CRC32C of itself and
// the one before it. Most are of one size; one with new values of the tasks is longer and has a
// mark of its own, so that logs without any are what they were before there were such records. On
// opening, a torn tail is cut off; damage before the end is refused
// (-EBADMSG, with file and offset), because what follows it cannot be trusted, and so is a log of
// another number of partitions (-EINVAL).
//
// Appending is for the ingest thread; slice_log_sync may be called by the thread that makes
// something of the slices visible, before it does. Functions return 0 or -errno, and then the
// handle's error has the sentence, or the argument where there is one.
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "pipeline/slice.h"

struct slice_log {
    char directory[3072];
    char error[4096]; // of the ingest thread
    int n_partitions;
    int fd; // of the newest file
    // -errno of the first sync that failed. The kernel tells that once and then takes the pages for
    // written, so nothing that is synced later may be believed: the log is at its end.
    _Atomic int lost;
    pthread_mutex_t lock;   // around fd: a new file against a sync
    uint32_t crc;           // of the last record
    uint64_t last;          // its number, 0 when there is none
    int64_t size, size_max; // of the newest file; a new one is begun beyond size_max
    unsigned char *buffer;
};

// What is recorded of a slice: n_partitions positions, the other members as in struct slice.
struct slice_record {
    uint64_t number, digest;
    enum slice_order order;
    int n_events;
    int64_t watermark_ms, dead_letters;
    int64_t *next; // n_partitions, the reader's own
    struct slice_values values;
};

typedef int (*slice_log_fn)(void *arg, const struct slice_record *record);

// Opens the log and calls see for every record after number `after`, in order; see may be NULL, and
// a value below 0 from it ends the reading and is returned. The record after `after` must be there
// if any later one is.
int slice_log_open(struct slice_log *l, const char *directory, int n_partitions, int64_t size_max,
                   uint64_t after, slice_log_fn see, void *arg);
void slice_log_close(struct slice_log *l);
int slice_log_append(struct slice_log *l, const struct slice *slice);
// Any thread. After the first failure it and slice_log_append fail for good.
int slice_log_sync(struct slice_log *l, char *error, size_t error_size);
// Removes files that hold nothing after number `upto`.
int slice_log_trim(struct slice_log *l, uint64_t upto);
