// SPDX-License-Identifier: Apache-2.0
//
// Writes one generation: a directory of named arrays, complete and durable or absent. Snapshots
// for the fleets and our own checkpoints are both generations, under different roots and formats.
//
//     <root>/<generation>/manifest.json                sizes, checksums and what the caller adds
//     <root>/<generation>/<name>.safetensors           one tensor, data from byte 4096
//     <root>/<generation>/<name>                       a blob: bytes without a header
//     <root>/LATEST                                    "<generation> <crc32c of manifest.json>\n"
//
// LATEST follows unless it is pinned (snapshot/pointer.h).
//
// It is built as <root>/.tmp-<generation>-<pid>, each file synced when it ends, the manifest last;
// one rename makes it visible, and writer_publish returns 0 only when it would survive a crash.
// Nothing is ever changed afterwards. A failed sync is not repeated: the directory is discarded.
//
// Functions return 0 or -errno, and then writer_error has the sentence. The first error stays:
// every later call does nothing and returns it, so it is enough to look at writer_publish. -ENOSPC
// comes from writer_array_begin, before the space is needed.
//
// One thread owns a writer and its engine. Between writers the engine is reused.
//
//     struct writer *w;
//     int rc = writer_open(&w, &options, error, sizeof error);
//     if (rc < 0)
//         return rc;
//     writer_array(w, &(struct writer_array){"item_emb.f32.safetensors", "emb", "item_embedding",
//                                            "F32", 2, {n, dim}}, emb);
//     writer_manifest_integer(w, "dim", dim);
//     rc = writer_publish(w);
//     if (rc < 0)
//         log_error(..., writer_error(w));
//     writer_close(w);
#pragma once

#include <stddef.h>
#include <stdint.h>

struct engine;
struct writer;

enum { WRITER_DIMS_MAX = 4, WRITER_SCHEMA = 1, WRITER_FILES = 3 };

struct writer_options {
    const char *root;        // must exist; the caller holds it through a catalog
    uint64_t generation;     // must not exist; larger than every other
    const char *format;      // "twotower-snapshot", "twotower-checkpoint"
    const char *space;       // stamp of the embedding space, repeated in every file; may be NULL
    uint64_t bytes_expected; // refused with -ENOSPC when the disk has less (and 5 %); 0: unknown
    struct engine *engine;   // borrowed until writer_close
};

struct writer_array {
    const char *file;                // "item_emb.f32.safetensors"
    const char *tensor;              // name inside the file: "emb"
    const char *role;                // for readers that do not go by file names: "item_embedding"
    const char *dtype;               // BOOL U8 I8 U16 I16 F16 BF16 U32 I32 F32 U64 I64 F64
    int n_dims;                      // 0..WRITER_DIMS_MAX
    uint64_t shape[WRITER_DIMS_MAX]; // rows first; 0 is allowed
};

int writer_open(struct writer **w, const struct writer_options *options, char *error,
                size_t error_size);
// Frees the writer. What was not published is removed from the disk.
void writer_close(struct writer *w);
const char *writer_error(const struct writer *w); // "" when nothing has failed
// For those who make what is written, when they cannot: the error stays like the writer's own.
// rc is -errno; why is the sentence. Returns the first error.
int writer_fail(struct writer *w, int rc, const char *why);

// A file: begin, its bytes in pieces of any size, end. The bytes are little-endian and row-major,
// and exactly as many as the shape says: anything else is our mistake, an assert. Up to
// WRITER_FILES are written side by side; the manifest names them in the order in which they end.
// Which of them, 0..WRITER_FILES - 1, the calls that follow are about; at first 0.
void writer_file(struct writer *w, int file);
int writer_array_begin(struct writer *w, const struct writer_array *array);
int writer_blob_begin(struct writer *w, const char *file, const char *role, uint64_t size);
int writer_append(struct writer *w, const void *bytes, size_t n);
// Instead of writer_append, without a copy: room for up to *n bytes (in: wanted, out: there, at
// least 1), to be filled and committed. Aligned to 64 bytes if only multiples of 64 were written.
// NULL after an error.
void *writer_reserve(struct writer *w, size_t *n);
int writer_commit(struct writer *w, size_t n);
// Room for exactly n > 0 bytes in one piece, to be filled and then given to writer_fill: where the
// next n bytes are written from, or memory of the writer's where two blocks share them. NULL after
// an error.
void *writer_room(struct writer *w, size_t n);
int writer_fill(struct writer *w, const void *room, size_t n);
int writer_end(struct writer *w);

// The same in one call.
int writer_array(struct writer *w, const struct writer_array *array, const void *bytes);
int writer_blob(struct writer *w, const char *file, const char *role, const void *bytes, size_t n);

// Adds a top-level member to the manifest. A key is given once, and none of the writer's own
// (format, schema, min_reader, kind, snapshot, space, files).
int writer_manifest_text(struct writer *w, const char *key, const char *text);
int writer_manifest_integer(struct writer *w, const char *key, int64_t value);
int writer_manifest_number(struct writer *w, const char *key, double value); // not finite: null
// json is the text of one JSON value; -EINVAL when it is none.
int writer_manifest_json(struct writer *w, const char *key, const char *json);

// Makes the generation visible and durable.
int writer_publish(struct writer *w);
// After publishing: of all files and the manifest.
uint64_t writer_bytes(const struct writer *w);
