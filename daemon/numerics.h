// SPDX-License-Identifier: Apache-2.0
//
// What the bytes that are learned depend on, beside stream and options: the arithmetic of this
// process. A checkpoint tells with which arithmetic it was learned, and another one goes on with it
// only if the operator accepts that its bytes are then nobody's.
//
//     blas   the library, for example "OpenBLAS 0.3.21"
//     core   its kernels: another core sums in another order (model/gemm.h)
//     libm   exp, log, pow and their like: the C library's version, and a checksum of what its
//            functions return. They differ in the last bit between versions, and between CPUs with
//            and without FMA: 1 double in 1000 of exp, log1p, log2, pow, sin and cos (glibc 2.36).
//
// The set of our own kernels is not among them: all give the same bits (model/kernels.h).
//
// The promise: the same program with the same builds of OpenBLAS and of the C library gives the
// same bytes on every x86-64 CPU that runs the same core; with kernels.blas_core = "portable" that
// is any x86-64-v3 CPU (AVX2 and FMA), however fast its AVX-512. Number of CPUs, size of caches,
// alignment and environment change nothing. Proven by tests/e2e/test_numerics.sh.
#pragma once

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct numerics {
    char blas[64], core[32], libm[48]; // "" when it is not known: older checkpoints have no libm
};

// Of this process; it does not change.
const struct numerics *numerics_now(void);
// Of the manifest of a checkpoint.
void numerics_read(const cJSON *manifest, struct numerics *n);
// What is not known is taken for equal.
bool numerics_same(const struct numerics *a, const struct numerics *b);
void numerics_print(const struct numerics *n, char *text, size_t size);
// What to do for the bytes of then, as the end of "to go on with the same bytes, ...".
void numerics_way_back(const struct numerics *then, char *text, size_t size);

// The list "numerics" of a manifest, as JSON: by which arithmetic the state was learned, and from
// which slice on; this process is the last. manifest is that of the checkpoint it goes on from and
// slice the last one in it; NULL and 0: it begins. To be freed with cJSON_free; NULL: no memory.
char *numerics_lineage(const cJSON *manifest, uint64_t slice);
