// SPDX-License-Identifier: Apache-2.0
//
// The pointer of a root: which generation its readers take.
//
//     <root>/LATEST     "<generation> <crc32c of its manifest.json>\n": what readers take
//     <root>/PINNED     the same line; while it is there, a publication does not move LATEST
//     <root>/.pointer   empty; whoever moves the pointer holds an exclusive flock on it
//
// The publisher moves LATEST and so does an operator, of another process, while the publisher runs
// and holds .lock (snapshot/catalog.h). The lock here is held for a few small writes, never while
// data is read. Readers take none: each file is replaced by a rename after it was synced, and the
// directory is synced after that, so at any instant, and after a crash, there is the old line or
// the new one.
//
// Of the two files PINNED is written first. What a crash leaves between them, the next publication
// or start completes (pointer_settle); until then LATEST is the old one. A PINNED that says nothing
// legible still holds LATEST where it is.
//
// All functions but pointer_lock are called with the lock held; pointer_read also without, for a
// look. 0 or -errno.
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct storage;

struct pointer_target {
    uint64_t generation; // 0: there is no such file, or nothing legible in it
    uint32_t crc;        // of its manifest.json
};

struct pointer {
    struct pointer_target latest, pinned;
    bool is_pinned; // PINNED is there, legible or not
};

// root is a handle of the storage. Waits for the lock; a handle for pointer_unlock, or -errno.
int pointer_lock(struct storage *s, int root);
void pointer_unlock(struct storage *s, int lock);

int pointer_read(struct storage *s, int root, struct pointer *p);
// After a publication: moves LATEST there, unless it is pinned.
int pointer_publish(struct storage *s, int root, const struct pointer_target *to);
int pointer_pin(struct storage *s, int root, const struct pointer_target *to);
int pointer_unpin(struct storage *s, int root, const struct pointer_target *to);
// Completes a pin that a crash interrupted.
int pointer_settle(struct storage *s, int root);
