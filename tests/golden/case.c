// SPDX-License-Identifier: Apache-2.0
#include "tests/golden/case.h"

#include <assert.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>

void fail(struct test *t, const char *format, ...)
{
    va_list arguments;
    if (t->failed)
        return; // one line for each case
    t->failed = true;
    printf("FAIL %s/%s: ", t->file, t->name);
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    printf("\n");
}

static float number(const cJSON *value)
{
    if (cJSON_IsNull(value))
        return NAN;
    if (cJSON_IsBool(value))
        return cJSON_IsTrue(value) ? 1 : 0;
    return (float)value->valuedouble;
}

bool has(const struct test *t, const char *key)
{
    return cJSON_HasObjectItem(t->in, key);
}

struct tensor tensor_in(struct test *t, const char *key)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(t->in, key), *entry;
    struct tensor x = {0, {1, 1, 1, 1}, 1, NULL};
    if (!cJSON_IsObject(item)) {
        x.data = arena_floats(&t->scratch, 1);
        if (item)
            x.data[0] = number(item);
        else
            fail(t, "in.%s is missing", key);
        return x;
    }
    cJSON_ArrayForEach(entry, cJSON_GetObjectItemCaseSensitive(item, "shape"))
    {
        assert(x.dimensions < DIMENSIONS);
        x.shape[x.dimensions++] = (int)entry->valuedouble;
        x.count *= (size_t)entry->valuedouble;
    }
    x.data = arena_floats(&t->scratch, x.count ? x.count : 1);
    size_t i = 0;
    cJSON_ArrayForEach(entry, cJSON_GetObjectItemCaseSensitive(item, "data"))
    {
        assert(i < x.count);
        x.data[i++] = number(entry);
    }
    return x;
}

float number_in(struct test *t, const char *key)
{
    return tensor_in(t, key).data[0];
}

int int_in(struct test *t, const char *key)
{
    return (int)number_in(t, key);
}

uint64_t *ids_in(struct test *t, const char *key)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(t->in, key), *entry;
    const cJSON *data = cJSON_GetObjectItemCaseSensitive(item, "data");
    uint64_t *ids = arena_bytes(&t->scratch, ((size_t)cJSON_GetArraySize(data) + 1) * sizeof *ids);
    size_t i = 0;
    if (!data)
        fail(t, "in.%s is missing", key);
    cJSON_ArrayForEach(entry, data) ids[i++] = (uint64_t)entry->valuedouble;
    return ids;
}

float *floats(struct test *t, size_t n)
{
    return arena_floats(&t->scratch, n ? n : 1);
}

void compared(struct test *t, const char *key)
{
    assert(t->compared_count < KEYS);
    t->compared[t->compared_count++] = key;
}

static bool met(double x, const cJSON *expected, double tolerance)
{
    if (cJSON_IsNull(expected))
        return isnan(x);
    return fabs(x - expected->valuedouble) <= tolerance * fmax(1, fabs(expected->valuedouble));
}

void expect_doubles(struct test *t, const char *key, size_t n, const double *x)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(t->out, key), *entry;
    size_t i = 0;
    if (!item)
        return;
    compared(t, item->string);
    const cJSON *data = cJSON_GetObjectItemCaseSensitive(item, "data");
    if (!data) {
        if (!met(x[0], item, t->tolerance))
            fail(t, "out.%s is %.9g, expected %.9g", key, x[0], item->valuedouble);
        return;
    }
    if ((size_t)cJSON_GetArraySize(data) != n) {
        fail(t, "out.%s has %zu values, expected %d", key, n, cJSON_GetArraySize(data));
        return;
    }
    const double tolerance = cJSON_HasObjectItem(item, "dtype") ? 0 : t->tolerance;
    cJSON_ArrayForEach(entry, data)
    {
        if (!met(x[i], entry, tolerance))
            fail(t, "out.%s[%zu] is %.9g, expected %.9g", key, i, x[i], entry->valuedouble);
        i++;
    }
}

void expect(struct test *t, const char *key, size_t n, const float *x)
{
    double *y = arena_bytes(&t->scratch, (n + 1) * sizeof *y);
    for (size_t i = 0; i < n; i++)
        y[i] = (double)x[i];
    expect_doubles(t, key, n, y);
}

void expect_number(struct test *t, const char *key, double x)
{
    expect_doubles(t, key, 1, &x);
}

void expect_bits(struct test *t, const char *key, int rows, int columns, const uint64_t *bits)
{
    const size_t words = retrieval_words(columns);
    float *x = floats(t, (size_t)rows * (size_t)columns);
    for (size_t i = 0; i < (size_t)rows; i++)
        for (size_t j = 0; j < (size_t)columns; j++)
            x[i * (size_t)columns + j] = (float)(bits[i * words + j / 64] >> (j % 64) & 1);
    expect(t, key, (size_t)rows * (size_t)columns, x);
}

uint64_t *bits_of(struct test *t, int rows, int columns, const float *x)
{
    const size_t words = retrieval_words(columns);
    uint64_t *bits = arena_bytes(&t->scratch, (size_t)rows * words * sizeof *bits);
    for (size_t i = 0; i < (size_t)rows; i++)
        for (size_t j = 0; j < (size_t)columns; j++)
            if (x[i * (size_t)columns + j] != 0)
                bits[i * words + j / 64] |= UINT64_C(1) << (j % 64);
    return bits;
}
