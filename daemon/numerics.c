// SPDX-License-Identifier: Apache-2.0
#include "daemon/numerics.h"

#include <gnu/libc-version.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "daemon/blas_core.h"
#include "model/gemm.h"

// FNV-1a over the bits of what the functions return that model/ and pipeline/ call; 0.7 ms. 4096
// arguments are enough to tell the variants apart: exp with FMA differs from exp without at four.
static uint64_t libm_checksum(void)
{
    uint64_t h = 0xcbf29ce484222325;
    for (int i = 0; i < 4096; i++) {
        const volatile double argument = 0x1p-6 + i * 0.0048701; // not known to the compiler
        const double x = argument, below = x - 15;
        const float s = (float)x;
        const double results[] = {
            exp(below), exp2(below), expm1(below), log(x), log1p(x), log2(x), pow(x, 1.37), sin(x),
            cos(x),
            // In the width they are called in; the conversion keeps every bit.
            (double)expf(s - 15), (double)exp2f(s - 15), (double)logf(s), (double)log1pf(s),
            (double)powf(s, 1.37f), (double)tanhf(s - 4)};
        for (size_t k = 0; k < sizeof results / sizeof *results; k++) {
            uint64_t bits;
            memcpy(&bits, &results[k], sizeof bits);
            h = (h ^ bits) * 0x100000001b3;
        }
    }
    return h;
}

const struct numerics *numerics_now(void)
{
    static struct numerics now;
    if (!*now.blas) {
        snprintf(now.core, sizeof now.core, "%s", gemm_core());
        snprintf(now.libm, sizeof now.libm, "glibc %s %08" PRIx32, gnu_get_libc_version(),
                 (uint32_t)(libm_checksum() >> 32));
        snprintf(now.blas, sizeof now.blas, "%s", gemm_library());
    }
    return &now;
}

static void text_read(const cJSON *object, const char *key, char *text, size_t size)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    snprintf(text, size, "%s", cJSON_IsString(item) ? item->valuestring : "");
}

void numerics_read(const cJSON *manifest, struct numerics *n)
{
    text_read(manifest, "blas", n->blas, sizeof n->blas);
    text_read(manifest, "blas_core", n->core, sizeof n->core);
    text_read(manifest, "libm", n->libm, sizeof n->libm);
}

static bool text_same(const char *a, const char *b)
{
    return !*a || !*b || strcmp(a, b) == 0;
}

bool numerics_same(const struct numerics *a, const struct numerics *b)
{
    return text_same(a->blas, b->blas) && text_same(a->core, b->core) &&
           text_same(a->libm, b->libm);
}

void numerics_print(const struct numerics *n, char *text, size_t size)
{
    snprintf(text, size, "%s core %s%s%s", n->blas, n->core, *n->libm ? " and " : "", n->libm);
}

// Appends a sentence's part, with "and" before all but the first.
__attribute__((format(printf, 3, 4))) static void part_add(char *text, size_t size,
                                                           const char *format, ...)
{
    const size_t there = strlen(text),
                 length = there +
                          (size_t)snprintf(text + there, size - there, "%s", there ? " and " : "");
    va_list args;
    va_start(args, format);
    if (length < size)
        vsnprintf(text + length, size - length, format, args);
    va_end(args);
}

void numerics_way_back(const struct numerics *then, char *text, size_t size)
{
    const struct numerics *now = numerics_now();
    *text = 0;
    if (!text_same(then->blas, now->blas))
        part_add(text, size, "install %s", then->blas);
    if (!text_same(then->libm, now->libm))
        part_add(text, size, "run with %s and without GLIBC_TUNABLES", then->libm);
    if (text_same(then->core, now->core))
        return;
    if (strcmp(then->core, GEMM_CORE_PORTABLE) == 0)
        part_add(text, size, "set kernels.blas_core = \"portable\"");
    else if (strcmp(then->core, blas_core_auto()) == 0)
        part_add(text, size, "set kernels.blas_core = \"auto\"");
    else if (gemm_core_runs(then->core))
        part_add(text, size,
                 "set kernels.blas_core = \"auto\" and OPENBLAS_CORETYPE=%s in the environment",
                 then->core);
    else
        part_add(text, size, "take a CPU that runs core %s", then->core);
}

static cJSON *entry_of(uint64_t from, const struct numerics *n)
{
    cJSON *entry = cJSON_CreateObject();
    cJSON_AddNumberToObject(entry, "from_slice", (double)from);
    cJSON_AddStringToObject(entry, "blas", n->blas);
    cJSON_AddStringToObject(entry, "blas_core", n->core);
    cJSON_AddStringToObject(entry, "libm", n->libm);
    return entry;
}

char *numerics_lineage(const cJSON *manifest, uint64_t slice)
{
    const cJSON *past = cJSON_GetObjectItemCaseSensitive(manifest, "numerics");
    cJSON *list = cJSON_IsArray(past) ? cJSON_Duplicate(past, true) : cJSON_CreateArray();
    struct numerics last;
    if (manifest && cJSON_GetArraySize(list) == 0) {
        numerics_read(manifest, &last);
        cJSON_AddItemToArray(list, entry_of(1, &last));
    }
    const int n = cJSON_GetArraySize(list);
    numerics_read(n ? cJSON_GetArrayItem(list, n - 1) : NULL, &last);
    if (n == 0 || !numerics_same(&last, numerics_now()))
        cJSON_AddItemToArray(list, entry_of(slice + 1, numerics_now()));
    char *text = cJSON_PrintUnformatted(list);
    cJSON_Delete(list);
    return text;
}
