// SPDX-License-Identifier: Apache-2.0
//
// Keeps every rejected record, with the reason, in a file of JSON lines:
//
//     {"topic":"impressions","partition":0,"offset":12,"reason":"bad_time","message":"ts: ...",
//      "key":"u1","value":"{\"request_id\":...}"}
//
// A key or value that is not UTF-8 is written as "key_base64", "value_base64" instead; without a
// key there is no key field, and a tombstone has "value":null. Of a value beyond 1 MiB the first
// MiB is kept and "value_size" tells how much there was.
//
// The file only grows. Before it would exceed bytes_max it becomes PATH.1, which replaces an older
// one, and a new file is begun. Positions count all bytes ever written: every file begins with a
// line {"start":N}, N being the position of that line, so they go on across rotation.
//
// Exactly once: a checkpoint calls dead_letter_sync and stores dead_letter_size; after a restart
// dead_letter_truncate cuts everything written since, because the slices after the checkpoint are
// applied, and their rejects written, again.
//
// One thread owns a dead_letter. Functions return 0 or -errno, and then dead_letter_error says
// which file and why. A put that fails leaves no part of its line behind.
#pragma once

#include <stdint.h>

#include "pipeline/decode.h"

struct dead_letter;

// Appends to what is there; a last line that a crash has cut short is removed. -EBADMSG when the
// file is not one of these. After a failure *d tells the error and is to be closed; it is NULL when
// there was no memory.
int dead_letter_open(struct dead_letter **d, const char *path, uint64_t bytes_max);
int dead_letter_put(struct dead_letter *d, const char *topic, int32_t partition,
                    const struct record *record, enum reject reason, const char *message);
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
const char *dead_letter_error(const struct dead_letter *d);
void dead_letter_close(struct dead_letter *d);
