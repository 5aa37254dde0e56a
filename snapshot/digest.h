// SPDX-License-Identifier: Apache-2.0
//
// One SHA-256 over what a generation means: its tensors and ids, not its number, times, run id,
// metrics, lineage or golden.json. Two runs that learned the same have the same digest.
//
// The hash is over, for every file of the manifest but those with role "golden", in the order of
// their names (strcmp): name, a zero byte, dtype as safetensors spells it, a zero byte, the number
// of dimensions and each dimension as u64 little-endian, then the raw bytes of the data (without
// the safetensors header, which repeats the generation's number).
#pragma once

#include <stddef.h>

// path is a generation directory or a root, whose newest generation is taken. The manifest's and
// the data's checksums are checked on the way. 0, or -errno with a sentence in error.
int digest_snapshot(const char *path, char hex[65], char *error, size_t error_size);
