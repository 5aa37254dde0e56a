// SPDX-License-Identifier: Apache-2.0
//
// Fuzzes manifest_parse, latest_parse and generation_parse. The input is taken as it is, and once
// more with its right checksum at the end, without which nothing behind the checksum is reached.
#include "snapshot/manifest.h"

#include <inttypes.h>

#include "snapshot/crc32c.h"
#include "tests/fuzz/fuzz.h"

static void require_file(const struct manifest_file *f)
{
    uint64_t size = f->dtype->size;
    require(f->name[0] && f->name[0] != '.' && !strchr(f->name, '/'), "names stay inside");
    require(f->role != NULL, "every file has a role");
    require(f->n_dims >= 0 && f->n_dims <= MANIFEST_DIMS_MAX, "dimensions are few");
    for (int i = 0; i < f->n_dims; i++)
        require(!__builtin_mul_overflow(size, f->shape[i], &size), "products do not overflow");
    require(size == f->data_size, "data_size is the product of the shape");
    require(f->data_offset % 64 == 0 && f->data_offset <= f->size &&
                f->size - f->data_offset == f->data_size,
            "the data end the file");
    require(f->n_chunks == f->size / MANIFEST_CHUNK + (f->size % MANIFEST_CHUNK != 0),
            "every chunk has a checksum");
    // Read, so that the sanitizer sees whether they are there.
    volatile uint32_t sum = 0;
    for (uint64_t i = 0; i < f->n_chunks; i++)
        sum += f->chunk_crc32c[i];
}

static void parse(const uint8_t *data, size_t size, int sealed)
{
    struct manifest m;
    char error[256] = "";
    char *text = malloc(size + MANIFEST_SEAL_SIZE + 1);
    require(text != NULL, "there is memory");
    memcpy(text, data, size);
    if (sealed)
        size += (size_t)manifest_seal(text + size, crc32c(0, text, size));
    text[size] = '\0';
    const int rc = manifest_parse(&m, text, size, error, sizeof error);
    if (rc == 0) {
        require(m.generation > 0 && m.format, "a manifest has a number and a format");
        for (size_t i = 0; i < m.n_files; i++)
            require_file(&m.files[i]);
        manifest_free(&m);
    } else {
        require(error[0] != '\0', "a refusal has a sentence");
    }
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char name[64];
    uint64_t generation;
    uint32_t crc;
    // A copy of exactly this size: a byte read past it is seen by the sanitizer.
    char *text = malloc(size);
    require(text != NULL, "there is memory");
    memcpy(text, data, size);
    if (latest_parse(text, size, &generation, &crc))
        require(generation > 0 && generation <= MANIFEST_INTEGER_MAX, "LATEST has a number");
    free(text);
    snprintf(name, sizeof name, "%.*s", (int)(size < 60 ? size : 60), (const char *)data);
    if (generation_parse(name, &generation)) {
        char again[24];
        snprintf(again, sizeof again, "%" PRIu64, generation);
        require(strcmp(name, again) == 0, "a generation has one spelling");
    }
    parse(data, size, 0);
    parse(data, size, 1);
    return 0;
}
