// SPDX-License-Identifier: Apache-2.0
//
// A user, item or request as the producer wrote it: a string of 1 to 256 bytes, or an integer exact
// to 64 bits. "7" and 7 are different ids. hash and check are 96 bits of XXH3-128 over kind and
// bytes: tables compare both, so no two ids share a row.
#pragma once

#include <stdint.h>

enum id_kind { ID_ABSENT, ID_STRING, ID_SIGNED, ID_UNSIGNED };
enum { ID_BYTES_MAX = 256 };

struct id {
    uint64_t hash;
    uint32_t check;
    uint16_t size;     // of bytes
    uint16_t kind;     // enum id_kind; integers below zero are ID_SIGNED, others ID_UNSIGNED
    const char *bytes; // the text, or 8 bytes little-endian for an integer; not terminated
};
