// SPDX-License-Identifier: Apache-2.0
//
// The file that finds the row of an id with one cache line, hit or miss: a header of 4096 bytes,
// then n_buckets buckets of 64 bytes. Everything is little-endian.
//
//     offset  header                         offset  bucket
//     0       magic "TTOIDX01"               0       u64 key[5]
//     8       u32 version = 1                40      u32 row[5]    0xFFFFFFFF: empty
//     12      u32 hash = 1 (below)           60      u32 overflow  1: a key went past this bucket
//     16      u32 key kind (enum)
//     20      u32 keys per bucket = 5
//     24      u64 seed
//     32      u64 n_buckets >= 1
//     40      u64 n, the number of keys
//     48      u32 crc32c of the buckets
//     4092    u32 crc32c of header bytes 0..4091; what is not named is zero
//
// A key's first bucket is (fmix64(key ^ seed) * n_buckets) >> 64, fmix64 being the finaliser of
// MurmurHash3: fmix64(1) = b456bcfc34c2cb2c, fmix64(2) = 3abf2a20650683e7. A key goes into the
// first empty slot from there on, wrapping at the end. So a search reads buckets until the key is
// found or overflow is 0.
//
// Keys are the integer ids themselves (ID_INDEX_INTEGERS), or XXH3-64 of the id's bytes with the
// id's kind (0 string, 1 integer in decimal) as its seed (ID_INDEX_HASHES). Hashes may collide:
// whoever finds a row compares the id, and searches on when it is another.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <xxhash.h>

struct writer;

enum id_index_keys { ID_INDEX_INTEGERS = 0, ID_INDEX_HASHES = 1 };

enum {
    ID_INDEX_HEADER = 4096,
    ID_INDEX_SLOTS = 5,
    ID_INDEX_VERSION = 1,
    ID_INDEX_FMIX64 = 1,
    ID_INDEX_AHEAD = 16,
};

#define ID_INDEX_MAGIC "TTOIDX01"
#define ID_INDEX_EMPTY UINT32_MAX

struct id_index_bucket {
    uint64_t key[ID_INDEX_SLOTS];
    uint32_t row[ID_INDEX_SLOTS];
    uint32_t overflow;
};

static inline uint64_t id_index_fmix64(uint64_t x)
{
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdULL;
    x ^= x >> 33;
    x *= 0xc4ceb9fe1a85ec53ULL;
    return x ^ x >> 33;
}

static inline uint64_t id_index_home(uint64_t key, uint64_t seed, uint64_t n_buckets)
{
    __extension__ typedef unsigned __int128 wide;
    return (uint64_t)(((wide)id_index_fmix64(key ^ seed) * n_buckets) >> 64);
}

// The key of an id of ID_INDEX_HASHES.
static inline uint64_t id_index_key(int kind, const void *bytes, size_t size)
{
    return XXH3_64bits_withSeed(bytes, size, (XXH64_hash_t)kind);
}

struct id_index {
    uint64_t n, n_buckets, seed, n_added;
    enum id_index_keys keys;
    struct id_index_bucket *buckets; // 64-byte aligned
    // Added, and asked for from memory, but not yet there: those since n_put.
    struct {
        uint64_t key;
        uint32_t row;
    } waiting[ID_INDEX_AHEAD];
    uint64_t n_put;
};

// Takes memory for n < 2^32 - 1 keys, 18.3 bytes each. 0 or -ENOMEM.
int id_index_open(struct id_index *x, enum id_index_keys keys, uint64_t n, uint64_t seed);
void id_index_close(struct id_index *x);
void id_index_add(struct id_index *x, uint64_t key, uint32_t row); // at most n times
// Appends the file <file> through the writer.
int id_index_write(struct id_index *x, struct writer *w, const char *file, const char *role);
