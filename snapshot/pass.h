// SPDX-License-Identifier: Apache-2.0
//
// One pass over an array of a generation, front to back, while something is made of it and written:
// units are asked for in ascending order, and the disk brings the next ones meanwhile. What the
// page cache holds is taken from there, the reader's mapping. The rest is read past it (O_DIRECT)
// by the engine that writes, up to ENGINE_READS blocks of 1 MiB ahead: as fast as the disk is
// beside the writing, without a page fault, and without driving out what serving lives on. Where
// the file system refuses O_DIRECT, all of it comes from the mapping, and the page cache is asked
// to have it there.
//
// Checksums are not looked at: what is read is our own, and was verified when it was restored or is
// as it was written. A byte that the disk cannot give is an error here, where a mapping would end
// the process.
//
//     struct pass pass;
//     int rc = pass_open(&pass, reader, "item.vector", row_size, engine);
//     for (size_t i = 0; rc == 0 && i < n; i++) {
//         const float *row = pass_at(&pass, i);
//         rc = row ? make(row) : pass.rc;
//     }
//     if (pass.rc < 0)
//         ..., pass.error
//     pass_close(&pass);
//
// Returns 0 or -errno, and then error has the sentence; the first error stays. An engine goes along
// with one pass at a time, in the thread that owns it. A pass holds one file, two after an error.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "snapshot/engine.h"
#include "snapshot/twotower_reader.h"

struct pass {
    // The stretch of units that was asked for last.
    const unsigned char *at;
    size_t first, n, unit;
    int rc;
    // The rest is pass.c's.
    struct engine *engine;
    const char *path, *name; // of the generation; of the file
    const unsigned char *data;
    size_t n_units, each; // each: units in a stretch
    uint64_t data_offset, size;
    size_t asked; // the stretches before it are under way, or were
    bool cached[ENGINE_READS], begun[ENGINE_READS];
    int handle; // past the page cache; -1: not to be had
    char error[512];
};

// Units of `unit` bytes, at most half an ENGINE_BLOCK; the reader outlives the pass.
int pass_open(struct pass *p, const struct tt_reader *r, const char *array, size_t unit,
              struct engine *e);
// pass_close is also good for a pass that was not opened, of zeros, and after an error.
void pass_close(struct pass *p);

// The stretch that has unit i, not before that of the last call. 0 or -errno.
int pass_move(struct pass *p, size_t i);

// Unit i, which is not before the last one; until the next call. NULL after an error.
static inline const void *pass_at(struct pass *p, size_t i)
{
    if (i - p->first >= p->n && pass_move(p, i) < 0)
        return NULL;
    return p->at + (i - p->first) * p->unit;
}
