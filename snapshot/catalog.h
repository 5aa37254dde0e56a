// SPDX-License-Identifier: Apache-2.0
//
// A root directory of generations: which are there, which is the newest that is whole, which may
// go. A generation counts only by its manifest: it must parse, name the directory's number, and
// every file must be there with its size. LATEST is a hint for readers; what it says is checked,
// and without it the directories are tried from the newest down.
//
// A catalog holds an exclusive flock on <root>/.lock, so two writers never share a root. Readers
// need no catalog; while they map a generation they may hold flock(LOCK_SH) on its manifest.json,
// and retention leaves it alone. A second process may look at a root and move its pointer
// (snapshot/pointer.h) while the writer is at work: catalog_look.
//
// One thread owns a catalog. Functions return 0 or -errno, and then catalog_error has the sentence.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "snapshot/pointer.h"

struct catalog;
struct storage;

// Creates root (not its parents) when missing, takes the lock (-EBUSY when another process has
// it) and removes what a crash left: .tmp-* and half-removed generations. storage NULL: the disk.
int catalog_open(struct catalog **c, struct storage *storage, const char *root, char *error,
                 size_t error_size);
// The same root without .lock: nothing is made, removed or written but the pointer. catalog_next
// and catalog_retain are for the writer alone. -ENOENT when there is no such directory.
int catalog_look(struct catalog **c, struct storage *storage, const char *root, char *error,
                 size_t error_size);
void catalog_close(struct catalog *c);
const char *catalog_error(const struct catalog *c);

// All generation numbers, ascending, whole or not. *generations is the catalog's until the next
// call. Returns how many, or -errno.
int catalog_list(struct catalog *c, const uint64_t **generations);
// The newest whole generation. -ENOENT when there is none.
int catalog_newest(struct catalog *c, uint64_t *generation);
// The one that the next is to be compared with: where the pointer is pinned that one, if it is
// whole, else the newest whole one. -ENOENT when there is none.
int catalog_good(struct catalog *c, uint64_t *generation);
// 0 when the generation is whole by its manifest (data checksums are tt_verify's), else -errno.
int catalog_check(struct catalog *c, uint64_t generation);
// A number for the next generation: now_ms, or one more than the largest that is there. Removes
// what an earlier one of this process has left behind when it failed; so no writer may be open
// here.
int catalog_next(struct catalog *c, uint64_t now_ms, uint64_t *generation);
// Removes generations until the newest keep >= 1 whole ones are left. Never removes what LATEST or
// PINNED names, the newest whole one, or one that a reader has locked. Returns how many went.
int catalog_retain(struct catalog *c, int keep);

// Where the pointer is.
int catalog_pointer(struct catalog *c, struct pointer *pointer);
// Points LATEST to a generation and leaves it there until catalog_unpin, whatever is published;
// -errno as catalog_check when it is not whole. Whether its data is undamaged is tt_verify's to
// say, before: the caller's open reader keeps retention away from it meanwhile.
int catalog_pin(struct catalog *c, uint64_t generation);
// Points LATEST to the newest whole generation; publications move it again.
int catalog_unpin(struct catalog *c, uint64_t *generation);

// The path of a generation: <root>/<generation>.
void catalog_path(const struct catalog *c, uint64_t generation, char *path, size_t size);
