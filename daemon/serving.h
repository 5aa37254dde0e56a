// SPDX-License-Identifier: Apache-2.0
//
// A published snapshot as a serving fleet sees it: tables of ids, vectors, histories and titles
// that fit each other. What `twotower verify` and `twotower topk` stand on; it reads the files and
// nothing else.
//
// The snapshot may be damaged or hostile. serving_init believes no shape; the values inside the
// arrays, rows in histories above all, are still to be checked by whoever follows them.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "model/light_ranker.h"
#include "model/value.h"
#include "snapshot/twotower_reader.h"

#define SERVING_FORMAT "twotower-snapshot"

// The light ranker of a snapshot, a second stage for a few items.
struct serving_ranker {
    struct light_ranker_shape shape; // no tasks: the snapshot has no light ranker
    struct light_ranker_parameters parameters;
    enum light_ranker_value form;
    float weight[SLATE_TASKS_MAX]; // of each task in the value
    char name[SLATE_TASKS_MAX][VALUE_NAME_MAX + 1];
};

// What the manifest calls the forms; NULL for one that is not served.
extern const char *const serving_forms[LIGHT_RANKER_CORRECTED + 1];
// Whether serving reads this parameter of the light ranker.
bool serving_reads(const char *parameter);

struct serving {
    const struct tt_reader *reader;      // borrowed
    struct tt_table items, users;        // N and M rows
    struct tt_strings titles;            // N
    const float *item_vector;            // (N, dim + 1); the last element is bias and prior
    const float *user_vector;            // (M, dim)
    const float *item_context;           // (N, dim), NULL when the model has none
    const float *item_row;               // (N, dim), NULL when no encoder reads the items' own rows
    const uint32_t *user_newest;         // (M): of the history's first, how many share one time
    const uint32_t *user_history;        // (M, history): item rows, newest first, then TT_NO_ROW
    const int64_t *user_history_ms;      // (M, history): times; NULL when the model reads none
    const uint8_t *user_history_actions; // (M, history): masks; NULL when the model reads none
    const struct tt_array *items_array;
    size_t dim, history;
    struct serving_ranker ranker; // the manifest's word, checked against the arrays
};

// 0, or -EBADMSG with a sentence when the snapshot is of another format or its arrays do not fit.
int serving_init(struct serving *s, const struct tt_reader *r, char *error, size_t error_size);

// value (n) of the items in these rows for the query q, of which the first dim elements are read,
// as light_ranker_score gives it. weight (tasks): s->ranker.weight, or 1 for the one task whose
// probability is asked for. The snapshot has a light ranker, and the rows are there.
void serving_rank(const struct serving *s, const float *q, int n, const uint32_t *rows,
                  const float *weight, float *value);

// The row of an id as a person types it: the string, else the integer. 0 or -ENOENT, -EBADMSG.
int serving_row(const struct tt_table *table, const char *text, uint64_t *row);

// The exit status for an error of tt_open, tt_verify or digest_snapshot on this path. A file that
// is missing from a snapshot is damage; no snapshot at all is EX_NOINPUT.
int serving_status(const char *path, int rc);

// Text from a snapshot for a terminal: control characters become question marks.
void serving_text(const char *bytes, size_t size, FILE *out);
