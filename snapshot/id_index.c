// SPDX-License-Identifier: Apache-2.0
#include "snapshot/id_index.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "snapshot/crc32c.h"
#include "snapshot/writer.h"

_Static_assert(sizeof(struct id_index_bucket) == 64, "one cache line");

int id_index_open(struct id_index *x, enum id_index_keys keys, uint64_t n, uint64_t seed)
{
    assert(n < ID_INDEX_EMPTY);
    // 3.5 of 5 slots in use: at 0.70 one bucket in 7 overflows, and a hit stays at one line.
    const uint64_t n_buckets = n / 7 * 2 + (n % 7 * 2 + 6) / 7 + 1;
    *x = (struct id_index){.n = n, .n_buckets = n_buckets, .seed = seed, .keys = keys};
    const size_t size = (size_t)n_buckets * sizeof *x->buckets;
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return -ENOMEM;
    madvise(memory, size, MADV_HUGEPAGE); // filled in random order
    x->buckets = memory;
    for (uint64_t b = 0; b < n_buckets; b++)
        for (int i = 0; i < ID_INDEX_SLOTS; i++)
            x->buckets[b].row[i] = ID_INDEX_EMPTY;
    return 0;
}

void id_index_close(struct id_index *x)
{
    munmap(x->buckets, (size_t)x->n_buckets * sizeof *x->buckets);
    x->buckets = NULL;
}

static void put_next(struct id_index *x)
{
    const uint64_t key = x->waiting[x->n_put % ID_INDEX_AHEAD].key;
    const uint32_t row = x->waiting[x->n_put++ % ID_INDEX_AHEAD].row;
    uint64_t b = id_index_home(key, x->seed, x->n_buckets);
    for (;;) {
        struct id_index_bucket *bucket = &x->buckets[b];
        for (int i = 0; i < ID_INDEX_SLOTS; i++) {
            if (bucket->row[i] == ID_INDEX_EMPTY) {
                bucket->key[i] = key;
                bucket->row[i] = row;
                return;
            }
        }
        bucket->overflow = 1;
        b = b + 1 == x->n_buckets ? 0 : b + 1;
    }
}

// A bucket is anywhere in more memory than the cache holds: it is asked for now, and the key goes
// in some calls later, in the same order.
void id_index_add(struct id_index *x, uint64_t key, uint32_t row)
{
    assert(x->n_added < x->n && row != ID_INDEX_EMPTY);
    if (x->n_added - x->n_put == ID_INDEX_AHEAD)
        put_next(x);
    __builtin_prefetch(&x->buckets[id_index_home(key, x->seed, x->n_buckets)], 1);
    const uint64_t at = x->n_added++ % ID_INDEX_AHEAD;
    x->waiting[at].key = key;
    x->waiting[at].row = row;
}

static void put_u32(unsigned char *header, size_t offset, uint32_t value)
{
    memcpy(header + offset, &value, sizeof value);
}

static void put_u64(unsigned char *header, size_t offset, uint64_t value)
{
    memcpy(header + offset, &value, sizeof value);
}

int id_index_write(struct id_index *x, struct writer *w, const char *file, const char *role)
{
    assert(x->n_added == x->n);
    while (x->n_put < x->n_added)
        put_next(x);
    const size_t size = (size_t)x->n_buckets * sizeof *x->buckets;
    unsigned char header[ID_INDEX_HEADER] = {0};
    memcpy(header, ID_INDEX_MAGIC, 8);
    put_u32(header, 8, ID_INDEX_VERSION);
    put_u32(header, 12, ID_INDEX_FMIX64);
    put_u32(header, 16, (uint32_t)x->keys);
    put_u32(header, 20, ID_INDEX_SLOTS);
    put_u64(header, 24, x->seed);
    put_u64(header, 32, x->n_buckets);
    put_u64(header, 40, x->n);
    put_u32(header, 48, crc32c(0, x->buckets, size));
    put_u32(header, ID_INDEX_HEADER - 4, crc32c(0, header, ID_INDEX_HEADER - 4));

    writer_blob_begin(w, file, role, ID_INDEX_HEADER + size);
    writer_append(w, header, sizeof header);
    writer_append(w, x->buckets, size);
    return writer_end(w);
}
