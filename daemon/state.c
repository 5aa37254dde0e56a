// SPDX-License-Identifier: Apache-2.0
#include "daemon/state.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/log.h"
#include "daemon/numerics.h"
#include "model/kernels.h"
#include "model/tables.h"
#include "snapshot/load.h"
#include "snapshot/writer.h"

// With which arithmetic the state was learned that this process has restored: JSON, or NULL. BLAS
// and its core are the process's, and so is this.
static char *lineage_restored;

static void file_name(const char *column, char *name, size_t size)
{
    snprintf(name, size, "%s.safetensors", column);
}

// Units [first, first + n) of column c.
static int numbers_check(const struct column *c, size_t first, size_t n, const void *units,
                         char *error, size_t error_size)
{
    const size_t bad = column_bad(c, units, n);
    if (bad == n)
        return 0;
    snprintf(error, error_size,
             "column %s, unit %zu: a number is NaN or beyond %g, which no model learns", c->name,
             first + bad, c->numbers.max);
    return -EBADMSG;
}

// One column as of the cut, swept into the writer's own memory.
static int column_write(struct writer *w, struct column *c, char *error, size_t error_size)
{
    char name[128];
    file_name(c->name, name, sizeof name);
    int rc = writer_array_begin(w, &(struct writer_array){.file = name,
                                                          .tensor = "units",
                                                          .role = c->name,
                                                          .dtype = "U8",
                                                          .n_dims = 2,
                                                          .shape = {c->n_cut, c->unit}});
    // A stretch at a time: what is swept needs no saving any more.
    const size_t stretch = (256 << 10) / c->unit + 1;
    unsigned char *across = malloc(c->unit); // a unit that does not fit before the block ends
    if (!across)
        return -ENOMEM;
    for (size_t i = 0; i < c->n_cut && rc == 0;) {
        const size_t left = c->n_cut - i < stretch ? c->n_cut - i : stretch;
        size_t room = left * c->unit;
        unsigned char *block = writer_reserve(w, &room);
        const size_t n = block && room >= c->unit ? room / c->unit : 1;
        unsigned char *units = block && room >= c->unit ? block : across;
        column_sweep(c, i, n, units);
        rc = numbers_check(c, i, n, units, error, error_size);
        if (rc == 0)
            rc = units == block ? writer_commit(w, n * c->unit) : writer_append(w, units, c->unit);
        i += n;
    }
    free(across);
    return rc == 0 ? writer_end(w) : rc;
}

static int column_first(const struct trainer *t)
{
    const struct column *vectors = &two_tower_tables(t->rows.model)->item_vector;
    int i = 0;
    while (t->columns.list[i] != vectors)
        i++;
    return i;
}

static char *partitions_json(const struct state_write_options *o)
{
    cJSON *list = cJSON_CreateArray();
    for (int p = 0; list && p < o->n_partitions; p++) {
        cJSON *entry = cJSON_CreateObject();
        cJSON_AddStringToObject(entry, "topic", o->partitions[p].name);
        cJSON_AddNumberToObject(entry, "partition", o->partitions[p].partition);
        cJSON_AddItemToArray(list, entry);
    }
    char *text = cJSON_PrintUnformatted(list);
    cJSON_Delete(list);
    return text;
}

int state_write(struct trainer *t, const struct state_write_options *o, struct state_stamp *stamp,
                char *error, size_t error_size)
{
    struct writer *w = NULL;
    struct trainer_state state = {0};
    uint64_t bytes = 0;
    char *partitions = NULL, *lineage = NULL, *model = malloc(CONFIG_MODEL_TEXT_SIZE);
    for (int i = 0; i < t->columns.n; i++)
        bytes += t->columns.list[i]->n_cut * t->columns.list[i]->unit + 8192;
    int rc = model ? writer_open(&w,
                                 &(struct writer_options){.root = o->root,
                                                          .generation = o->generation,
                                                          .format = "twotower-checkpoint",
                                                          .bytes_expected = bytes,
                                                          .engine = o->engine},
                                 error, error_size)
                   : -ENOMEM;
    // The scalars first: they are swept once, and the manifest tells some of them.
    if (rc == 0) {
        column_sweep(&t->state, 0, 1, &state);
        rc = writer_array(w,
                          &(struct writer_array){.file = "trainer.state.safetensors",
                                                 .tensor = "units",
                                                 .role = t->state.name,
                                                 .dtype = "U8",
                                                 .n_dims = 2,
                                                 .shape = {1, sizeof state}},
                          &state);
    }
    // Then from the items' vectors on, and last what was opened before them, ids, histories and
    // titles: every batch changes thousands of rows of the model, and what has been swept need not
    // be saved any more.
    const int n = t->columns.n;
    for (int i = 0, first = column_first(t); rc == 0 && i < n; i++) {
        struct column *c = t->columns.list[(first + i) % n];
        if (c != &t->state)
            rc = column_write(w, c, error, error_size);
    }
    columns_cut_end(&t->columns);
    if (rc == 0) {
        config_model_text(o->config, model, CONFIG_MODEL_TEXT_SIZE);
        partitions = partitions_json(o);
        lineage = lineage_restored ? NULL : numerics_lineage(NULL, 0);
        const char *list = lineage_restored ? lineage_restored : lineage;
        const struct numerics *now = numerics_now();
        writer_manifest_integer(w, "slice", (int64_t)state.slices);
        writer_manifest_integer(w, "examples", (int64_t)state.examples);
        writer_manifest_integer(w, "event_time_ms", state.event_time_ms);
        writer_manifest_text(w, "model", config_word("model.type", o->config->model_type));
        writer_manifest_text(w, "options", model);
        writer_manifest_text(w, "kernels", kernels->name);
        writer_manifest_text(w, "blas", now->blas);
        writer_manifest_text(w, "blas_core", now->core);
        writer_manifest_text(w, "libm", now->libm);
        writer_manifest_json(w, "numerics", list ? list : "[]");
        writer_manifest_json(w, "partitions", partitions ? partitions : "[]");
        char why[512];
        rc = o->permit ? o->permit(o->permit_arg, why, sizeof why) : 0;
        rc = rc < 0 ? writer_fail(w, rc, why) : writer_publish(w);
        *stamp = (struct state_stamp){o->generation, state.slices};
    }
    if (rc < 0 && w && rc != -EBADMSG)
        snprintf(error, error_size, "%s", *writer_error(w) ? writer_error(w) : strerror(-rc));
    writer_close(w);
    cJSON_free(partitions);
    cJSON_free(lineage);
    free(model);
    return rc;
}

// The array of the column of this name, -1 when it is not there or has units of another size.
static int array_of(const struct tt_reader *r, const char *name, size_t unit)
{
    char file[128];
    file_name(name, file, sizeof file);
    for (int i = 0; i < tt_n_arrays(r); i++) {
        const struct tt_array *a = tt_array_at(r, i);
        if (!strcmp(a->name, file))
            return a->n_dims == 2 && a->shape[1] == unit && !strcmp(a->dtype, "U8") ? i : -1;
    }
    return -1;
}

bool state_column(const struct tt_reader *r, const char *name, size_t unit, struct column *c)
{
    const struct tt_array *a = tt_array_at(r, array_of(r, name, unit));
    if (!a)
        return false;
    *c = (struct column){.name = name,
                         .unit = unit,
                         .n = a->shape[0],
                         .n_max = a->shape[0],
                         .base = (unsigned char *)(uintptr_t)a->data};
    return true;
}

// The first line that differs, for the message; "" when the texts are equal.
static void first_difference(const char *then, const char *now, char *text, size_t size)
{
    *text = 0;
    while (*then || *now) {
        const size_t a = strcspn(then, "\n"), b = strcspn(now, "\n");
        if (a != b || memcmp(then, now, a)) {
            snprintf(text, size, "%.*s then, %.*s now", (int)a, then, (int)b, now);
            return;
        }
        then += a + (then[a] == '\n');
        now += b + (now[b] == '\n');
    }
}

static int numerics_check(const cJSON *manifest, const char *path, const struct config *config,
                          char *error, size_t error_size)
{
    struct numerics then;
    char texts[2][160], way[256];
    numerics_read(manifest, &then);
    if (config->kernels_on_change == CONFIG_ON_CHANGE_ACCEPT ||
        numerics_same(&then, numerics_now()))
        return 0;
    numerics_print(&then, texts[0], sizeof texts[0]);
    numerics_print(numerics_now(), texts[1], sizeof texts[1]);
    numerics_way_back(&then, way, sizeof way);
    snprintf(error, error_size,
             "%s: learned with %s, and this is %s; to go on with the same bytes %s, to go on with "
             "others set kernels.on_change = \"accept\"",
             path, texts[0], texts[1], way);
    return -EINVAL;
}

// Keeps the lineage for the checkpoints to come, and says what was accepted.
static int lineage_keep(const char *json, const char *path, uint64_t slice)
{
    struct numerics then;
    char texts[2][160];
    cJSON *m = cJSON_Parse(json);
    cJSON_free(lineage_restored);
    lineage_restored = numerics_lineage(m, slice);
    numerics_read(m, &then);
    cJSON_Delete(m);
    if (!numerics_same(&then, numerics_now())) {
        numerics_print(&then, texts[0], sizeof texts[0]);
        numerics_print(numerics_now(), texts[1], sizeof texts[1]);
        log_warning("other arithmetic than the checkpoint's: the bytes are not those of one kernel "
                    "set from here on",
                    "checkpoint=%s then=%s now=%s slice=%" PRIu64, path, texts[0], texts[1], slice);
    }
    return lineage_restored ? 0 : -ENOMEM;
}

static int manifest_read(const char *json, const char *path, struct state_stamp *stamp,
                         const struct config *config, const struct source_partition *partitions,
                         int n_partitions, char *error, size_t error_size)
{
    int rc = -EBADMSG;
    cJSON *m = cJSON_Parse(json);
    const cJSON *slice = cJSON_GetObjectItemCaseSensitive(m, "slice");
    const cJSON *model = cJSON_GetObjectItemCaseSensitive(m, "options");
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(m, "partitions");
    snprintf(error, error_size, "%s: not the manifest of a checkpoint", path);
    if (cJSON_IsNumber(slice) && cJSON_IsString(model) && cJSON_IsArray(list)) {
        rc = 0;
        stamp->slice = (uint64_t)slice->valuedouble;
    }
    if (rc == 0 && config) {
        char now[CONFIG_MODEL_TEXT_SIZE], difference[256];
        config_model_text(config, now, sizeof now);
        first_difference(model->valuestring, now, difference, sizeof difference);
        if (*difference) {
            snprintf(error, error_size,
                     "%s: learned with other options: %s; give the old ones or another state.dir",
                     path, difference);
            rc = -EINVAL;
        }
    }
    if (rc == 0 && config)
        rc = numerics_check(m, path, config, error, error_size);
    if (rc == 0 && partitions) {
        bool same = cJSON_GetArraySize(list) == n_partitions;
        int p = 0;
        const cJSON *entry;
        cJSON_ArrayForEach(entry, list)
        {
            const cJSON *topic = cJSON_GetObjectItemCaseSensitive(entry, "topic");
            const cJSON *number = cJSON_GetObjectItemCaseSensitive(entry, "partition");
            same = same && cJSON_IsString(topic) && cJSON_IsNumber(number) &&
                   !strcmp(topic->valuestring, partitions[p].name) &&
                   (int)number->valuedouble == partitions[p].partition;
            p += same;
        }
        if (!same) {
            snprintf(error, error_size,
                     "%s: read from other topics or partitions (%d then, %d now)", path,
                     cJSON_GetArraySize(list), n_partitions);
            rc = -EINVAL;
        }
    }
    cJSON_Delete(m);
    return rc;
}

int state_stamp_read(const char *path, struct state_stamp *stamp, char *error, size_t error_size)
{
    struct tt_reader *r;
    int rc = tt_open(&r, path, error, error_size);
    if (rc < 0)
        return rc;
    stamp->generation = tt_snapshot(r);
    rc = manifest_read(tt_manifest_json(r), path, stamp, NULL, NULL, 0, error, error_size);
    tt_close(r);
    return rc;
}

enum { ID_TABLES = 3 };

// What is done while the columns are read: their numbers are looked at, whether they are such as a
// model learns, and the indexes of ids are made of the rows.
struct restoring {
    struct column **columns; // of each array of the checkpoint; NULL: it is nobody's
    unsigned char **to;      // and where its data goes
    struct id_table *ids[ID_TABLES];
    _Atomic bool bad;
    // Units that lie in two stretches, for when all are read.
    struct shared_unit {
        const struct column *column;
        size_t unit;
    } * shared;
    _Atomic size_t n_shared;
};

static void restoring_free(struct restoring *r)
{
    free(r->columns);
    free(r->to);
    free(r->shared);
}

// Which column each array belongs to. All of this is said by the manifest: nothing is read yet, and
// no column has changed when one is refused.
static int columns_match(struct restoring *m, const struct trainer *t, const struct tt_reader *r,
                         const char *path, char *error, size_t error_size)
{
    const size_t n = (size_t)tt_n_arrays(r);
    size_t shared = 0;
    m->columns = calloc(n, sizeof(struct column *));
    m->to = calloc(n, sizeof *m->to);
    if (!m->columns || !m->to) {
        snprintf(error, error_size, "%s: out of memory", path);
        return -ENOMEM;
    }
    for (int i = 0; i < t->columns.n; i++) {
        struct column *c = t->columns.list[i];
        const int k = array_of(r, c->name, c->unit);
        if (k < 0) {
            snprintf(error, error_size,
                     "%s: column %s is missing or has another unit: written by another build or "
                     "for another model; take a new state.dir and replay",
                     path, c->name);
            return -EINVAL;
        }
        const uint64_t units = tt_array_at(r, k)->shape[0];
        if (units > c->n_max) {
            snprintf(error, error_size,
                     "%s: column %s has %" PRIu64 " units, the configuration has room for %zu; "
                     "give the options of then (eval.chunk sizes trainer.example)",
                     path, c->name, units, c->n_max);
            return -EINVAL;
        }
        m->columns[k] = c;
        shared += tt_array_at(r, k)->size / LOAD_STRETCH + 2;
    }
    m->shared = calloc(shared + 1, sizeof *m->shared);
    return m->shared ? 0 : -ENOMEM;
}

// Units [first, first + n) of a column have their bytes.
static void units_restored(struct restoring *m, const struct column *c, size_t first, size_t n)
{
    column_restored(c, first, n);
    if (column_bad(c, column_at(c, first), n) < n)
        atomic_store(&m->bad, true);
    for (int i = 0; i < ID_TABLES; i++)
        if (c == &m->ids[i]->row)
            id_table_restored(m->ids[i], first, n);
}

static void stretch_loaded(void *arg, int array, uint64_t from, uint64_t n)
{
    struct restoring *m = arg;
    const struct column *c = m->columns[array];
    const uint64_t first = (from + c->unit - 1) / c->unit, end = (from + n) / c->unit;
    if (from % c->unit)
        m->shared[atomic_fetch_add(&m->n_shared, 1)] = (struct shared_unit){c, from / c->unit};
    if (end > first)
        units_restored(m, c, first, end - first);
}

static int columns_load(struct restoring *m, struct trainer *t, const struct tt_reader *r,
                        const char *path, char *error, size_t error_size)
{
    for (int k = 0; k < tt_n_arrays(r); k++)
        if (m->columns[k])
            m->to[k] = column_restore(m->columns[k], tt_array_at(r, k)->shape[0]);
    m->ids[0] = &t->rows.items, m->ids[1] = &t->rows.users, m->ids[2] = &t->join.request;
    int rc = 0;
    for (int i = 0; i < ID_TABLES && rc == 0; i++)
        rc = id_table_restoring(m->ids[i]);
    if (rc < 0) {
        snprintf(error, error_size, "%s: out of memory", path);
        return rc;
    }
    rc = load_arrays(r, &(struct load_options){.to = m->to, .loaded = stretch_loaded, .arg = m},
                     error, error_size);
    for (size_t i = 0; rc == 0 && i < m->n_shared; i++)
        units_restored(m, m->shared[i].column, m->shared[i].unit, 1);
    // Which one it is.
    for (int i = 0; rc == 0 && m->bad && i < t->columns.n; i++) {
        const struct column *c = t->columns.list[i];
        char what[256];
        rc = numbers_check(c, 0, c->n, c->base, what, sizeof what);
        if (rc < 0)
            snprintf(error, error_size, "%s: %s", path, what);
    }
    return rc;
}

int state_restore(struct trainer *t, const char *path, const struct config *config,
                  const struct source_partition *partitions, int n_partitions,
                  struct state_stamp *stamp, char *error, size_t error_size)
{
    struct tt_reader *r;
    struct restoring restoring = {0};
    int rc = tt_open(&r, path, error, error_size);
    if (rc < 0)
        return rc;
    stamp->generation = tt_snapshot(r);
    rc = manifest_read(tt_manifest_json(r), path, stamp, config, partitions, n_partitions, error,
                       error_size);
    if (rc == 0)
        rc = columns_match(&restoring, t, r, path, error, error_size);
    if (rc == 0)
        rc = columns_load(&restoring, t, r, path, error, error_size);
    restoring_free(&restoring);
    const int kept = rc == 0 ? lineage_keep(tt_manifest_json(r), path, stamp->slice) : 0;
    tt_close(r);
    if (rc == 0) {
        rc = kept == 0 ? trainer_rebuild(t) : kept;
        if (rc < 0)
            snprintf(error, error_size, "%s: %s", path,
                     rc == -EINVAL ? "its columns contradict each other" : strerror(-rc));
    }
    return rc;
}
