// SPDX-License-Identifier: Apache-2.0
//
// manifest.json and LATEST, read: what a generation must contain. The text comes from a disk, so
// nothing in it is believed: numbers must be whole, products must not overflow, names must stay
// inside the directory, and the checksum of the text itself must be right.
//
// manifest.json ends with a member manifest_crc32c, always in the very bytes of
// manifest_seal; it is the CRC32C of everything before them. So each generation
// proves its own manifest, whether or not LATEST still names it.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    MANIFEST_SCHEMA = 1,
    MANIFEST_DIMS_MAX = 4,
    MANIFEST_SIZE_MAX = 64 << 20,
    MANIFEST_CHUNK = 1 << 20,
    MANIFEST_SEAL_SIZE = 35, // of the bytes that manifest_seal makes
    LATEST_SIZE_MAX = 64,
};

// Whole numbers up to here are exact in every JSON reader.
#define MANIFEST_INTEGER_MAX (UINT64_C(1) << 53)

struct dtype {
    const char *name;       // in safetensors: "F32"
    const char *name_lower; // in the manifest: "f32"
    uint32_t size;          // bytes
    uint64_t exponent;      // of floating point, the bits that are all ones in infinities and NaNs
};

extern const struct dtype dtypes[];
extern const int n_dtypes;

const struct dtype *dtype_find(const char *name); // either spelling; NULL when there is none

struct manifest_file {
    const char *name, *role, *tensor; // tensor NULL: a blob
    const struct dtype *dtype;
    int n_dims;
    uint64_t shape[MANIFEST_DIMS_MAX];
    uint64_t data_offset, row_stride, size; // bytes; size is that of the file
    uint64_t data_size;                     // product of the shape, in bytes
    uint32_t crc32c;                        // of the file
    uint64_t n_chunks;
    uint32_t *chunk_crc32c; // of every MANIFEST_CHUNK bytes of the file
};

struct manifest {
    void *json;                 // owns the strings
    const char *format, *space; // space may be NULL
    uint64_t generation;
    uint32_t crc32c; // of the whole text, as LATEST has it
    size_t n_files;
    struct manifest_file *files;
};

// text is followed by a zero byte. 0, -EBADMSG with a sentence, or -ENOMEM.
int manifest_parse(struct manifest *m, const char *text, size_t n, char *error, size_t error_size);
void manifest_free(struct manifest *m);
// The end of a manifest whose text so far has this checksum. Returns MANIFEST_SEAL_SIZE.
int manifest_seal(char seal[MANIFEST_SEAL_SIZE + 1], uint32_t crc);

// "<generation> <crc32c in hex>\n". False when it is anything else.
bool latest_parse(const char *text, size_t n, uint64_t *generation, uint32_t *crc);
// A directory name that is a generation: decimal, no leading zero, at most MANIFEST_INTEGER_MAX.
bool generation_parse(const char *name, uint64_t *generation);
