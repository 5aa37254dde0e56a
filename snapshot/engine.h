// SPDX-License-Identifier: Apache-2.0
//
// Writes files at the speed of the disk from a ring of 1 MiB blocks that the caller fills, up to
// three side by side: what is made of one reading need not be read again. The only unit that knows
// io_uring. O_DIRECT, so that neither the page cache that serving lives on nor a later fsync pays
// for it; where the file system refuses that, buffered.
//
// Where the kernel refuses io_uring (seccomp in containers, kernel.io_uring_disabled, memory
// limits), pwrite takes its place; engine_backend and engine_reason say so.
//
// While it writes it reads, too: what a caller will need next can be under way to blocks of the
// engine's (snapshot/pass.h).
//
// One thread owns an engine: the one that opens its first file or reads first, which need not be
// the one that opened the engine. Its memory, 24 MiB of huge pages, is taken and touched in
// engine_open and never again. Functions return 0 or -errno, and then engine_error has the
// sentence. After an error nothing is in flight any more; the files must be abandoned, and the
// engine is as new.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct engine;
struct storage;

enum { ENGINE_BLOCK = 1 << 20, ENGINE_BLOCKS = 16, ENGINE_READS = 8, ENGINE_FILES = 3 };

enum engine_backend { ENGINE_AUTO, ENGINE_URING, ENGINE_PWRITE };

struct engine_options {
    struct storage *storage;     // NULL: the disk. Any other: pwrite through it
    enum engine_backend backend; // ENGINE_URING fails where ENGINE_AUTO falls back
    int depth;                   // blocks in flight, 1..ENGINE_BLOCKS; 0: 8
};

int engine_open(struct engine **e, const struct engine_options *options, char *error,
                size_t error_size);
void engine_close(struct engine *e);

const char *engine_backend(const struct engine *e); // "io_uring" or "pwrite"
const char *engine_reason(const struct engine *e);  // why not io_uring; "" when it is
const char *engine_error(const struct engine *e);
int engine_status(const struct engine *e); // 0, or the -errno of the open files' first error
struct storage *engine_storage(const struct engine *e);
uint64_t engine_bytes_written(const struct engine *e); // in all, for metrics

// The file, of ENGINE_FILES, that the calls below are about; at first 0.
void engine_file_choose(struct engine *e, int file);
// Creates name in the directory, which must not have it, with blocks for size bytes.
int engine_file_open(struct engine *e, int directory, const char *name, uint64_t size);
// A block of ENGINE_BLOCK bytes to fill; waits for one to come free. The same until it is put.
// NULL after an error, which engine_status then gives.
void *engine_block_get(struct engine *e);
// Writes the first n bytes of the block after those put before. n is ENGINE_BLOCK but for the last
// block of the file, whose rest is overwritten.
int engine_block_put(struct engine *e, size_t n);
// Waits for its blocks, cuts the file to its size and syncs it: durable but for its name.
int engine_file_close(struct engine *e);
// Waits for what is in flight and closes all files; removing them is the caller's.
void engine_files_abandon(struct engine *e);

// Begins to read n <= ENGINE_BLOCK bytes of a file that the caller opened through the engine's
// storage into block slot, 0..ENGINE_READS - 1. With pwrite it is done when this returns.
void engine_read_begin(struct engine *e, int slot, int handle, size_t n, uint64_t offset);
// Waits for it: how many bytes were read, as pread(2) would return, or -errno. They lie in *bytes
// until the slot is used again. Errors of reading are no errors of the files that are written.
ssize_t engine_read_end(struct engine *e, int slot, void **bytes);
