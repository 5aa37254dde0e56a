// SPDX-License-Identifier: Apache-2.0
#include "snapshot/digest.h"

#include <errno.h>
#include <openssl/evp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "snapshot/twotower_reader.h"

static int by_name(const void *a, const void *b)
{
    const struct tt_array *const *left = a, *const *right = b;
    return strcmp((*left)->name, (*right)->name);
}

static bool put_number(EVP_MD_CTX *hash, uint64_t value)
{
    unsigned char bytes[8];
    for (int i = 0; i < 8; i++)
        bytes[i] = (unsigned char)(value >> 8 * i);
    return EVP_DigestUpdate(hash, bytes, sizeof bytes) == 1;
}

static bool put_array(EVP_MD_CTX *hash, const struct tt_array *a)
{
    bool ok = EVP_DigestUpdate(hash, a->name, strlen(a->name) + 1) == 1 &&
              EVP_DigestUpdate(hash, a->dtype, strlen(a->dtype) + 1) == 1 &&
              put_number(hash, (uint64_t)a->n_dims);
    for (int i = 0; ok && i < a->n_dims; i++)
        ok = put_number(hash, a->shape[i]);
    return ok && EVP_DigestUpdate(hash, a->data, (size_t)a->size) == 1;
}

static bool digest(const struct tt_array **arrays, int n, unsigned char sum[EVP_MAX_MD_SIZE])
{
    EVP_MD_CTX *hash = EVP_MD_CTX_new();
    unsigned size = 0;
    bool ok = hash && EVP_DigestInit_ex(hash, EVP_sha256(), NULL) == 1;
    for (int i = 0; ok && i < n; i++)
        ok = put_array(hash, arrays[i]);
    ok = ok && EVP_DigestFinal_ex(hash, sum, &size) == 1 && size == 32;
    EVP_MD_CTX_free(hash);
    return ok;
}

int digest_snapshot(const char *path, char hex[65], char *error, size_t error_size)
{
    struct tt_reader *r;
    int rc = tt_open(&r, path, error, error_size);
    if (rc < 0)
        return rc;
    const struct tt_array **arrays = NULL;
    rc = tt_verify(r, error, error_size);
    if (rc < 0)
        goto close;
    arrays = malloc(((size_t)tt_n_arrays(r) + 1) * sizeof *arrays);
    if (!arrays) {
        snprintf(error, error_size, "out of memory");
        rc = -ENOMEM;
        goto close;
    }
    int n = 0;
    for (int i = 0; i < tt_n_arrays(r); i++)
        if (strcmp(tt_array_at(r, i)->role, "golden") != 0)
            arrays[n++] = tt_array_at(r, i);
    if (n > 0)
        qsort(arrays, (size_t)n, sizeof *arrays, by_name);
    unsigned char sum[EVP_MAX_MD_SIZE];
    if (!digest(arrays, n, sum)) {
        snprintf(error, error_size, "%s: libcrypto cannot make a SHA-256", tt_path(r));
        rc = -EIO;
        goto close;
    }
    for (int i = 0; i < 32; i++)
        snprintf(hex + 2 * i, 3, "%02x", sum[i]);
close:
    free(arrays);
    tt_close(r);
    return rc;
}
