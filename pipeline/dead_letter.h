// SPDX-License-Identifier: Apache-2.0
//
// Keeps every rejected record, with the reason, in a file of JSON lines:
//
//     {"topic":"impressions","partition":0,"offset":12,"slice":7,"letter":1,"ts":1700000000000,
//      "reason":"bad_time","message":"ts:
//      ...","key":"u1","headers":[["trace","4f2a"],["retry",null]], "value":"{\"request_id\":...}"}
//
// A key or value that is not UTF-8 is written as "key_base64", "value_base64" instead, and so are
// all headers, names and values, where one of them is not; what is not there has no field, and a
// tombstone has "value":null. Of a value beyond 1 MiB the first MiB is kept and "value_size" tells
// how much there was; "headers_left_out" tells of headers beyond the limits of pipeline/source.h.
// Slice and letter, which counts within the slice, are the line's place in all that is written: the
// same slice, applied again after a restart, writes the same letters. "ts" is the log's own time.
//
// The file only grows. Before it would exceed bytes_max it becomes PATH.1, which replaces an older
// one, and a new file is begun. Positions count all bytes ever written: every file begins with a
// line {"start":N}, N being the position of that line, so they go on across rotation.
//
// Exactly once: a checkpoint calls dead_letter_sync and stores dead_letter_size; after a restart
// dead_letter_truncate cuts everything written since, because the slices after the checkpoint are
// applied, and their rejects written, again.
//
// A reader (pipeline/dead_letter_reader.h) may follow the file and release what it is done with.
// Then PATH.1 is not replaced before it is released: the file grows beyond bytes_max,
// dead_letter_full says so, and whoever writes is to wait. Or, where nobody is to wait, it is
// replaced all the same and dead_letter_dropped counts.
//
// One thread owns a dead_letter, and another one may be its reader. Functions return 0 or -errno,
// and then dead_letter_error says which file and why. A put that fails leaves no part of its line
// behind.
#pragma once

#include <stdint.h>

#include "pipeline/decode.h"

struct dead_letter;

// Appends to what is there; a last line that a crash has cut short is removed. -EBADMSG when the
// file is not one of these. After a failure *d tells the error and is to be closed; it is NULL when
// there was no memory.
int dead_letter_open(struct dead_letter **d, const char *path, uint64_t bytes_max);

struct letter {
    const char *topic; // as the source calls it
    int32_t partition;
    uint64_t slice, letter; // from 1; 0: written before lines had them
    const char *reason;     // of reject_names
    const char *message;
    struct record record;                 // broker_ts_ms -1: not known
    size_t value_size;                    // before the value was cut to record.value_size
    const struct record_headers *headers; // may be NULL
};

// Cuts the value itself; value_size is not read.
int dead_letter_put(struct dead_letter *d, const struct letter *letter);
// Returns when everything put so far is on the disk.
int dead_letter_sync(struct dead_letter *d);
// The position after the last line.
uint64_t dead_letter_size(const struct dead_letter *d);
// Removes what was written at and after size, an earlier dead_letter_size: from this file, or, when
// it was rotated since, from PATH.1, which then becomes the file again. If the files have been
// moved away or were rotated twice since, nothing of before is left: an empty file goes on at size,
// and what another history has written meanwhile becomes PATH.1.
int dead_letter_truncate(struct dead_letter *d, uint64_t size);
const char *dead_letter_path(const struct dead_letter *d);
// Since dead_letter_open.
uint64_t dead_letter_rotations(const struct dead_letter *d);

// From now on there is a reader. With hold, what it has not released is kept.
void dead_letter_follow(struct dead_letter *d, bool hold);
// The owner is to wait: the file is full, and PATH.1 not released.
bool dead_letter_full(struct dead_letter *d);
// Bytes that were replaced before they were released.
uint64_t dead_letter_dropped(struct dead_letter *d);
// For the reader. What lies before position may go.
void dead_letter_release(struct dead_letter *d, uint64_t position);
// For the reader: a descriptor, to be closed, of the file that holds what is written at *position,
// and that file's own position. Where that is no longer there, *position moves to what comes next.
int dead_letter_file_at(struct dead_letter *d, uint64_t *position, uint64_t *start);

const char *dead_letter_error(const struct dead_letter *d);
void dead_letter_close(struct dead_letter *d);
