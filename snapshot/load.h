// SPDX-License-Identifier: Apache-2.0
//
// Reads the arrays of a generation into memory of the caller and proves every byte on the way: a
// chunk is read to where it shall lie, and its checksum made of it while the cache still has it, by
// several threads. What the page cache holds is taken from there; the rest is read past it
// (O_DIRECT), at the speed of the disk and without driving out what serving lives on.
//
// Returns 0 or -errno with a sentence in error: -EBADMSG when a byte is not the one that was
// written or cannot be read. What then lies in the memory is of no use. The threads are gone when
// it returns.
#pragma once

#include <stddef.h>
#include <stdint.h>

struct tt_reader;

// Stretches that are told of are as long as this, but for the first and the last of an array.
enum { LOAD_STRETCH = 1 << 20 };

struct load_options {
    // Where the data of the i-th array goes (tt_array_at): all of its bytes, on a page boundary.
    // NULL: it is checked and not kept.
    unsigned char *const *to;
    // Told of each stretch of an array's data whose checksums were right, [from, from + n) bytes,
    // while it is in the cache. Called by several threads. May be NULL.
    void (*loaded)(void *arg, int array, uint64_t from, uint64_t n);
    void *arg;
};

int load_arrays(const struct tt_reader *r, const struct load_options *options, char *error,
                size_t error_size);
