// SPDX-License-Identifier: Apache-2.0
//
// One golden case: its tensors by name, memory for it, and comparison of what came out.
#pragma once

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stdint.h>

#include "model/arena.h"
#include "model/retrieval_loss.h"
#include "model/rng.h"

enum { DIMENSIONS = 4, KEYS = 128 };

// What one case has: its tensors, and memory that is free again after it.
struct test {
    const char *file, *name;
    const cJSON *in, *out;
    double tolerance;
    bool failed;
    struct arena params, grads, scratch;
    struct rng rng;
    const char *compared[KEYS];
    int compared_count;
};

struct tensor {
    int dimensions, shape[DIMENSIONS];
    size_t count;
    float *data;
};

__attribute__((format(printf, 2, 3))) void fail(struct test *t, const char *format, ...);
bool has(const struct test *t, const char *key);
// The input of this name, as floats in the case's memory. A case without it cannot go on: it fails,
// and the tensor is one 0.
struct tensor tensor_in(struct test *t, const char *key);
float number_in(struct test *t, const char *key);
int int_in(struct test *t, const char *key);
// Integers keep all their digits, which a float would not.
uint64_t *ids_in(struct test *t, const char *key);
float *floats(struct test *t, size_t n);
void compared(struct test *t, const char *key);
// The output of this name against n values, integers exactly. Nothing happens when the case does
// not ask for it.
void expect_doubles(struct test *t, const char *key, size_t n, const double *x);
void expect(struct test *t, const char *key, size_t n, const float *x);
void expect_number(struct test *t, const char *key, double x);
// Bits of rows rows as numbers 0 and 1.
void expect_bits(struct test *t, const char *key, int rows, int columns, const uint64_t *bits);
uint64_t *bits_of(struct test *t, int rows, int columns, const float *x);

// A topic is the name of a file; each file of this directory exports its own list, ended by NULL.
struct topic {
    const char *name;
    void (*run)(struct test *t);
};

extern const struct topic core_topics[], debias_topics[], slate_topics[], ranker_topics[],
    sampling_topics[];
