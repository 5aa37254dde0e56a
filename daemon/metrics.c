// SPDX-License-Identifier: Apache-2.0
#include "daemon/metrics.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/value.h"

enum labels {
#define LABELS_SYMBOL(symbol, series) LABELS_##symbol,
    METRIC_LABELS(LABELS_SYMBOL)
#undef LABELS_SYMBOL
};

// Number of series, so that arrays can be sized by it.
enum {
#define LABELS_SERIES(symbol, series) SERIES_##symbol = (int)(series),
    METRIC_LABELS(LABELS_SERIES)
#undef LABELS_SERIES
};

struct label {
    const char *name;
    int n;
    const char *const *values;
};

static const char *const example_values[BY_EXAMPLE_LABELS] = {"positive", "negative"};
static const char *const cutoff_values[BY_CUTOFFS] = {"1", "5", "10", "50", "100"};
static const char *const table_values[BY_TABLES] = {"items", "users"};
static const char *const tower_values[BY_TOWERS] = {"user", "item"};
static const char *const estimator_values[EXPECTATIONS] = {
    [EXPECTED_CONTEXT] = "context", [EXPECTED_RANKER] = "ranker"};
static const char *const stage_values[BY_STAGES] = {"ingest", "train", "evaluate", "write"};
static const char *const reload_values[BY_RELOADS] = {"applied", "unchanged", "refused"};

#define BY_TOPIC                                                                                   \
    {                                                                                              \
        "topic", TOPICS, topic_names                                                               \
    }
#define BY_REASON                                                                                  \
    {                                                                                              \
        "reason", REJECTS, reject_names                                                            \
    }
#define BY_TERM                                                                                    \
    {                                                                                              \
        "term", OBJECTIVES, objective_names                                                        \
    }
#define BY_ESTIMATOR                                                                               \
    {                                                                                              \
        "estimator", EXPECTATIONS, estimator_values                                                \
    }

// The one or two labels of a set. Sets without any here are empty or filled in at start.
static const struct label label_sets[][2] = {
    [LABELS_TOPIC] = {BY_TOPIC},
    [LABELS_TOPIC_OUTCOME] = {BY_TOPIC, {"outcome", OUTCOMES, outcome_names}},
    [LABELS_TOPIC_REASON] = {BY_TOPIC, BY_REASON},
    [LABELS_TOPIC_REFUSAL] = {BY_TOPIC, {"reason", REFUSALS, refusal_names}},
    [LABELS_TOPIC_KEY] = {BY_TOPIC, {"key", TRAFFIC_KEYS, traffic_key_names}},
    [LABELS_EXAMPLE] = {{"label", BY_EXAMPLE_LABELS, example_values}},
    [LABELS_CUTOFF] = {{"k", BY_CUTOFFS, cutoff_values}},
    [LABELS_TABLE] = {{"table", BY_TABLES, table_values}},
    [LABELS_STAGE] = {{"stage", BY_STAGES, stage_values}},
    [LABELS_TERM] = {BY_TERM},
    [LABELS_TERM_TOWER] = {BY_TERM, {"tower", BY_TOWERS, tower_values}},
    [LABELS_SLATE] = {{"outcome", SLATE_COUNTS, slate_count_names}},
    [LABELS_POSITION] = {BY_ESTIMATOR, {"position", BY_POSITION, evaluation_position_names}},
    [LABELS_ACTIVITY] = {BY_ESTIMATOR, {"engagements", BY_ACTIVITY, evaluation_activity_names}},
    [LABELS_BACKEND] = {{NULL, 0, NULL}},
    [LABELS_RELOAD] = {{"result", BY_RELOADS, reload_values}},
    [LABELS_GUARD_REASON] = {{"reason", GUARD_REASONS, guard_reason_names}},
    [LABELS_TASK] = {{NULL, 0, NULL}},
};

// In the order of METRICS; the label set stands beside the row because only this file needs it.
static const enum labels labels_of[METRIC_COUNT] = {
#define METRIC_LABELS_OF(symbol, name, type, labels, help) LABELS_##labels,
    METRICS(METRIC_LABELS_OF)
#undef METRIC_LABELS_OF
};

const struct metric_row metric_rows[METRIC_COUNT] = {
#define METRIC_ROW(symbol, name, type, labels, help)                                               \
    {"twotower_" name, METRIC_##type, SERIES_##labels, help},
    METRICS(METRIC_ROW)
#undef METRIC_ROW
};

// Upper ends of the buckets in seconds: a step takes milliseconds, a large checkpoint minutes, and
// labels arrive within hours.
static const double bounds[] = {0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025,
                                0.05,   0.1,    0.25,  0.5,    1,     2.5,  5,
                                10,     30,     60,    300,    1800,  7200};
enum { BUCKETS = sizeof bounds / sizeof *bounds + 1, HISTOGRAM_CELLS = BUCKETS + 1 };

// A counter is its number, a gauge the bits of a double XOR those of NaN (so that zeroed memory is
// NaN: not set yet), a histogram its buckets and then the bits of its sum.
enum {
    CELLS_COUNTER = 1,
    CELLS_COUNTER_US = 1,
    CELLS_GAUGE = 1,
    CELLS_HISTOGRAM = HISTOGRAM_CELLS
};

#define METRIC_CELLS(symbol, name, type, labels, help)                                             \
    static _Atomic uint64_t cells_##symbol[SERIES_##labels * CELLS_##type];
METRICS(METRIC_CELLS)
#undef METRIC_CELLS

static _Atomic uint64_t *const cells_of[METRIC_COUNT] = {
#define METRIC_CELLS_OF(symbol, name, type, labels, help) cells_##symbol,
    METRICS(METRIC_CELLS_OF)
#undef METRIC_CELLS_OF
};

// Label texts that are known only at start, whole: topic="impressions",partition="3". Guarded by
// the lock, which rendering holds too.
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    int n;
    char *texts[METRIC_PARTITIONS_MAX];
} partitions_now;
static char *rankers_now[METRIC_RANKERS_MAX];
static char build_now[512], backend_now[128];
static char tasks_now[SLATE_TASKS_MAX][128];

static const uint64_t not_a_number = UINT64_C(0x7ff8000000000000);

static uint64_t bits_of(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static double double_of(uint64_t bits)
{
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static _Atomic uint64_t *cell(enum metric m, int series)
{
    assert(m < METRIC_COUNT && series >= 0 && series < metric_rows[m].series);
    return &cells_of[m][series];
}

static _Atomic uint64_t *counter(enum metric m, int series)
{
    assert(metric_rows[m].type == METRIC_COUNTER || metric_rows[m].type == METRIC_COUNTER_US);
    return cell(m, series);
}

// The series of two labels: the second one changes fastest.
static int series_of2(enum metric m, int first, int second)
{
    const struct label *label = label_sets[labels_of[m]];
    assert(first >= 0 && first < label[0].n && second >= 0 && second < label[1].n);
    return first * label[1].n + second;
}

void metrics_add(enum metric m, uint64_t n)
{
    assert(labels_of[m] == LABELS_NONE);
    metrics_add_of(m, 0, n);
}

void metrics_add_of(enum metric m, int label, uint64_t n)
{
    atomic_fetch_add_explicit(counter(m, label), n, memory_order_relaxed);
}

void metrics_add_of2(enum metric m, int first, int second, uint64_t n)
{
    metrics_add_of(m, series_of2(m, first, second), n);
}

void metrics_put_of(enum metric m, int label, uint64_t total)
{
    atomic_store_explicit(counter(m, label), total, memory_order_relaxed);
}

void metrics_put_of2(enum metric m, int first, int second, uint64_t total)
{
    metrics_put_of(m, series_of2(m, first, second), total);
}

void metrics_set(enum metric m, double value)
{
    metrics_set_of(m, 0, value);
}

void metrics_set_of(enum metric m, int label, double value)
{
    assert(metric_rows[m].type == METRIC_GAUGE);
    atomic_store_explicit(cell(m, label), bits_of(value) ^ not_a_number, memory_order_relaxed);
}

void metrics_set_of2(enum metric m, int first, int second, double value)
{
    metrics_set_of(m, series_of2(m, first, second), value);
}

void metrics_observe(enum metric m, double seconds)
{
    assert(metric_rows[m].type == METRIC_HISTOGRAM && labels_of[m] == LABELS_NONE);
    int bucket = 0;
    while (bucket < BUCKETS - 1 && !(seconds <= bounds[bucket]))
        bucket++;
    atomic_fetch_add_explicit(&cells_of[m][bucket], 1, memory_order_relaxed);
    _Atomic uint64_t *sum = &cells_of[m][BUCKETS];
    uint64_t before = atomic_load_explicit(sum, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(sum, &before,
                                                  bits_of(double_of(before) + seconds),
                                                  memory_order_relaxed, memory_order_relaxed))
        ;
}

uint64_t metrics_count(enum metric m, int series)
{
    return atomic_load_explicit(counter(m, series), memory_order_relaxed);
}

// ---- Labels known at start

// Appends name="value" with a comma where something stands before it.
static void label_append(char *text, size_t size, const char *name, const char *value)
{
    FILE *out = fmemopen(text, size, "a");
    assert(out);
    fprintf(out, "%s%s=\"", *text ? "," : "", name);
    for (const char *c = value; *c; c++)
        if (*c == '\n')
            fputs("\\n", out);
        else if (*c == '"' || *c == '\\')
            fprintf(out, "\\%c", *c);
        else
            putc(*c, out);
    putc('"', out);
    fclose(out);
    text[size - 1] = 0;
}

void metrics_partitions(int n, const struct source_partition *partitions)
{
    pthread_mutex_lock(&lock);
    for (int i = 0; i < partitions_now.n; i++)
        free(partitions_now.texts[i]);
    partitions_now.n = 0;
    for (int i = 0; i < n && i < METRIC_PARTITIONS_MAX; i++) {
        char text[640] = "", number[16];
        snprintf(number, sizeof number, "%" PRId32, partitions[i].partition);
        label_append(text, sizeof text, "topic", partitions[i].name);
        label_append(text, sizeof text, "partition", number);
        partitions_now.texts[i] = strdup(text);
        if (!partitions_now.texts[i])
            break;
        partitions_now.n++;
    }
    pthread_mutex_unlock(&lock);
}

void metrics_build_info(const char *version, const char *blas, const char *core,
                        const char *kernels)
{
    pthread_mutex_lock(&lock);
    *build_now = 0;
    label_append(build_now, sizeof build_now, "version", version);
    label_append(build_now, sizeof build_now, "blas", blas);
    label_append(build_now, sizeof build_now, "blas_core", core);
    label_append(build_now, sizeof build_now, "kernels", kernels);
    pthread_mutex_unlock(&lock);
    metrics_set(METRIC_BUILD_INFO, 1);
}

void metrics_io_backend(const char *backend)
{
    pthread_mutex_lock(&lock);
    *backend_now = 0;
    label_append(backend_now, sizeof backend_now, "backend", backend);
    pthread_mutex_unlock(&lock);
    metrics_set(METRIC_IO_BACKEND_INFO, 1);
}

void metrics_tasks(const struct value_tasks *tasks)
{
    pthread_mutex_lock(&lock);
    for (int t = 0; t < tasks->n; t++) {
        *tasks_now[t] = 0;
        label_append(tasks_now[t], sizeof tasks_now[t], "task", tasks->name[t]);
    }
    pthread_mutex_unlock(&lock);
}

void metrics_ranker(int number, const char *name)
{
    char text[640] = "";
    assert(number >= 0 && number < METRIC_RANKERS_MAX);
    label_append(text, sizeof text, "ranker", name);
    pthread_mutex_lock(&lock);
    free(rankers_now[number]);
    rankers_now[number] = strdup(text);
    pthread_mutex_unlock(&lock);
}

// ---- Text

// The labels of a series without braces; NULL when the series has no name yet.
static const char *series_labels(enum labels labels, int series, char *text, size_t size)
{
    const struct label *label = label_sets[labels];
    *text = 0;
    switch (labels) {
    case LABELS_NONE:
        return text;
    case LABELS_PARTITION:
        return series < partitions_now.n ? partitions_now.texts[series] : NULL;
    case LABELS_FIELD: // pairs, not every field of every topic
        label_append(text, size, "topic", topic_names[traffic_fields[series].topic]);
        label_append(text, size, "field", traffic_fields[series].field);
        return text;
    case LABELS_RANKER:
        return rankers_now[series];
    case LABELS_BUILD:
        return build_now;
    case LABELS_BACKEND:
        return backend_now;
    case LABELS_TASK:
        return tasks_now[series];
    default:
        break;
    }
    const int inner = label[1].name ? label[1].n : 1;
    label_append(text, size, label[0].name, label[0].values[series / inner]);
    if (label[1].name)
        label_append(text, size, label[1].name, label[1].values[series % inner]);
    return text;
}

static void value_print(double value, FILE *out)
{
    if (isnan(value))
        fputs("NaN", out);
    else if (isinf(value))
        fputs(value > 0 ? "+Inf" : "-Inf", out);
    else
        fprintf(out, "%.15g", value);
    putc('\n', out);
}

// Buckets are read one after the other while others count: their sum, not a counter of its own, is
// the count, so that the last bucket and the count always agree.
static void histogram_print(enum metric m, FILE *out)
{
    const char *name = metric_rows[m].name;
    uint64_t count = 0;
    for (int b = 0; b < BUCKETS; b++) {
        count += atomic_load_explicit(&cells_of[m][b], memory_order_relaxed);
        if (b < BUCKETS - 1)
            fprintf(out, "%s_bucket{le=\"%g\"} %" PRIu64 "\n", name, bounds[b], count);
        else
            fprintf(out, "%s_bucket{le=\"+Inf\"} %" PRIu64 "\n", name, count);
    }
    fprintf(out, "%s_sum ", name);
    value_print(double_of(atomic_load_explicit(&cells_of[m][BUCKETS], memory_order_relaxed)), out);
    fprintf(out, "%s_count %" PRIu64 "\n", name, count);
}

static void series_print(enum metric m, FILE *out)
{
    const struct metric_row *row = &metric_rows[m];
    char text[640];
    for (int s = 0; s < row->series; s++) {
        const uint64_t bits = atomic_load_explicit(&cells_of[m][s], memory_order_relaxed);
        const char *labels = series_labels(labels_of[m], s, text, sizeof text);
        // "none" is the first reason of a record that was not rejected.
        const bool reasonless = labels_of[m] == LABELS_TOPIC_REASON && s % REJECTS == REJECT_NONE;
        if (!labels || reasonless || (row->type == METRIC_GAUGE && bits == 0))
            continue;
        fprintf(out, *labels ? "%s{%s} " : "%s%s ", row->name, labels);
        if (row->type == METRIC_COUNTER)
            fprintf(out, "%" PRIu64 "\n", bits);
        else if (row->type == METRIC_COUNTER_US)
            value_print((double)bits / 1e6, out);
        else
            value_print(double_of(bits ^ not_a_number), out);
    }
}

char *metrics_text(size_t *size)
{
    static const char *const type_names[] = {
        [METRIC_COUNTER] = "counter",
        [METRIC_COUNTER_US] = "counter",
        [METRIC_GAUGE] = "gauge",
        [METRIC_HISTOGRAM] = "histogram",
    };
    char *text = NULL;
    FILE *out = open_memstream(&text, size);
    if (!out)
        return NULL;
    pthread_mutex_lock(&lock);
    for (int m = 0; m < METRIC_COUNT; m++) {
        const struct metric_row *row = &metric_rows[m];
        fprintf(out, "# HELP %s %s\n# TYPE %s %s\n", row->name, row->help, row->name,
                type_names[row->type]);
        if (row->type == METRIC_HISTOGRAM)
            histogram_print((enum metric)m, out);
        else
            series_print((enum metric)m, out);
    }
    pthread_mutex_unlock(&lock);
    if (fclose(out) != 0) {
        free(text);
        return NULL;
    }
    return text;
}

void metrics_reset(void)
{
    for (int m = 0; m < METRIC_COUNT; m++) {
        const int each = metric_rows[m].type == METRIC_HISTOGRAM ? HISTOGRAM_CELLS : 1;
        for (int i = 0; i < metric_rows[m].series * each; i++)
            atomic_store(&cells_of[m][i], 0);
    }
    metrics_partitions(0, NULL);
    pthread_mutex_lock(&lock);
    for (int i = 0; i < METRIC_RANKERS_MAX; i++) {
        free(rankers_now[i]);
        rankers_now[i] = NULL;
    }
    pthread_mutex_unlock(&lock);
}
