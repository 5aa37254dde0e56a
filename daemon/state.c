// SPDX-License-Identifier: Apache-2.0
#include "daemon/state.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/log.h"
#include "daemon/numerics.h"
#include "model/kernels.h"
#include "model/tables.h"
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

// One column as of the cut, through the writer's own memory.
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
    unsigned char *bytes = malloc(stretch * c->unit);
    if (!bytes)
        return -ENOMEM;
    for (size_t i = 0; i < c->n_cut && rc == 0;) {
        const size_t n = c->n_cut - i < stretch ? c->n_cut - i : stretch;
        column_sweep(c, i, n, bytes);
        rc = numbers_check(c, i, n, bytes, error, error_size);
        if (rc == 0)
            rc = writer_append(w, bytes, n * c->unit);
        i += n;
    }
    free(bytes);
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

bool state_column(const struct tt_reader *r, const char *name, size_t unit, struct column *c)
{
    char file[128];
    file_name(name, file, sizeof file);
    const struct tt_array *a = tt_find(r, file);
    if (!a || a->n_dims != 2 || a->shape[1] != unit || strcmp(a->dtype, "U8"))
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

// A large column is copied by several threads: most of it is the kernel's work, who has to find and
// clear the pages, and who else would is still waiting for the state.
struct part {
    unsigned char *to;
    const unsigned char *from;
    size_t n;
};

enum { PARTS = 4, PART_MIN = 16 << 20 };

static void *part_copy(void *arg)
{
    const struct part *p = arg;
    memcpy(p->to, p->from, p->n);
    return NULL;
}

static void bytes_copy(unsigned char *to, const unsigned char *from, size_t n)
{
    struct part parts[PARTS];
    pthread_t threads[PARTS];
    const size_t each = n / PARTS < PART_MIN ? PART_MIN : (n / PARTS / 4096 + 1) * 4096;
    int started = 0;
    for (; n > each; started++, to += each, from += each, n -= each) {
        parts[started] = (struct part){to, from, each};
        if (pthread_create(&threads[started], NULL, part_copy, &parts[started]) != 0)
            break; // the rest is copied here
    }
    memcpy(to, from, n);
    while (started-- > 0)
        pthread_join(threads[started], NULL);
}

int state_restore(struct trainer *t, const char *path, const struct config *config,
                  const struct source_partition *partitions, int n_partitions,
                  struct state_stamp *stamp, char *error, size_t error_size)
{
    struct tt_reader *r;
    int rc = tt_open(&r, path, error, error_size);
    if (rc < 0)
        return rc;
    stamp->generation = tt_snapshot(r);
    rc = manifest_read(tt_manifest_json(r), path, stamp, config, partitions, n_partitions, error,
                       error_size);
    if (rc == 0)
        rc = tt_verify(r, error, error_size);
    for (int i = 0; rc == 0 && i < t->columns.n; i++) {
        struct column image;
        if (state_column(r, t->columns.list[i]->name, t->columns.list[i]->unit, &image)) {
            char what[256];
            rc = numbers_check(t->columns.list[i], 0, image.n, image.base, what, sizeof what);
            if (rc < 0)
                snprintf(error, error_size, "%s: %s", path, what);
        }
    }
    for (int i = 0; rc == 0 && i < t->columns.n; i++) {
        struct column *c = t->columns.list[i], image;
        if (!state_column(r, c->name, c->unit, &image)) {
            snprintf(error, error_size, "%s: column %s is missing or has another unit", path,
                     c->name);
            rc = -EINVAL;
        } else if (image.n > c->n_max) {
            snprintf(error, error_size,
                     "%s: column %s has %zu units, the configuration has room for %zu; give the "
                     "options of then (eval.chunk sizes trainer.example)",
                     path, c->name, image.n, c->n_max);
            rc = -EINVAL;
        } else if (image.n > 0) {
            bytes_copy(column_restore(c, image.n), image.base, image.n * c->unit);
        } else {
            column_restore(c, 0);
        }
    }
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
