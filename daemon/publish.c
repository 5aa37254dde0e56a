// SPDX-License-Identifier: Apache-2.0
#include "daemon/publish.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "daemon/assemble.h"
#include "daemon/serving.h"
#include "daemon/state.h"
#include "model/gemm.h"
#include "model/kernels.h"
#include "model/prefetch.h"
#include "model/tables.h"
#include "model/topk.h"
#include "snapshot/ids.h"
#include "snapshot/pass.h"
#include "snapshot/writer.h"

enum { BLOCK = 256, GOLDEN_USERS = 16, GOLDEN_ITEMS = 20 };

static const float half_max = 65504;

// The mapped checkpoint, as the parts of the trainer that publishing reads.
struct image {
    struct tt_reader *reader;
    struct two_tower_options model;
    struct rows rows; // ids, histories, titles
    struct tables tables;
    struct column values; // one struct model_values; empty when they cannot change
    struct column heads;  // of the objectives; empty without a light ranker
    struct trainer_state trainer;
    int64_t watermark_ms;
    struct view view;
    uint32_t *items, *users; // published row -> row
    uint64_t n_items, n_users;
    struct history_owner *item_owner; // by row; its number is the published row, or TT_NO_ROW
    int history;
};

// One golden user: a query and the best items for it so far.
struct golden {
    uint32_t user; // published row
    int n_history;
    uint32_t history[HISTORY_MAX]; // rows
    int n_bonuses;
    struct bonus bonuses[HISTORY_MAX];
    struct topk_entry best[GOLDEN_ITEMS];
    int n_best;
};

struct publishing {
    struct image image;
    struct serving_ranker ranker;
    struct writer *w;
    struct engine *engine;
    struct golden golden[GOLDEN_USERS];
    int n_golden;
    float *queries;  // (GOLDEN_USERS, d + 1)
    float *V;        // (BLOCK, d + 1)
    float *scores;   // (GOLDEN_USERS, BLOCK)
    uint8_t *newest; // (n_users)
    struct guard_sums sums[GUARD_ARRAYS];
    enum guard_reason refused;
};

static bool has_ranker(const struct image *m)
{
    struct dense_parameter first;
    return objectives_parameter(&m->model.objectives, m->model.dim, 0, &first);
}

static int image_open(struct image *m, const struct publish_options *o, char *error,
                      size_t error_size)
{
    int rc = tt_open(&m->reader, o->checkpoint, error, error_size);
    if (rc < 0)
        return rc;
    m->model = assemble_model(o->config);
    const struct tt_reader *r = m->reader;
    const size_t row = (size_t)m->model.dim * sizeof(float);
    struct column state, join;
    m->tables.dim = (size_t)m->model.dim;
    const struct {
        const char *name;
        size_t unit;
        struct column *column;
    } columns[] = {
        {"item.id", sizeof(struct id_row), &m->rows.items.row},
        {"item.table", sizeof(struct id_table_state), &m->rows.items.state},
        {"item.id_text", HEAP_GRANULE, &m->rows.items.text.granule},
        {"user.id", sizeof(struct id_row), &m->rows.users.row},
        {"user.table", sizeof(struct id_table_state), &m->rows.users.state},
        {"user.id_text", HEAP_GRANULE, &m->rows.users.text.granule},
        {"user.history", sizeof(struct history_head), &m->rows.history.head},
        {"user.history_entry", HEAP_GRANULE, &m->rows.history.entry.granule},
        {"item.title", ROWS_TITLE_UNIT, &m->rows.title},
        {"item.title_text", HEAP_GRANULE, &m->rows.titles.granule},
        {"item.vector", m->model.kind == MODEL_RECIPE ? 2 * row : row, &m->tables.item_vector},
        {"item.state", sizeof(struct item_state), &m->tables.item_state},
        {"user.vector", row, &m->tables.user_vector},
        {"model.dense", row, &m->tables.dense},
        {"model.state", sizeof(struct model_state), &m->tables.state},
        {"trainer.state", sizeof(struct trainer_state), &state},
        {"join.scalars", sizeof(struct join_scalars), &join},
    };
    for (size_t i = 0; rc == 0 && i < sizeof columns / sizeof *columns; i++)
        if (!state_column(r, columns[i].name, columns[i].unit, columns[i].column))
            rc = -EBADMSG;
    if (rc == 0 && m->model.item_features > 0 &&
        !state_column(r, "item.features", (size_t)m->model.item_features * sizeof(float),
                      &m->tables.item_features))
        rc = -EBADMSG;
    if (rc == 0 && m->model.tasks_named &&
        !state_column(r, "model.value", sizeof(struct model_values), &m->values))
        rc = -EBADMSG;
    const size_t heads = objectives_heads_size(&m->model.objectives, m->model.dim);
    if (rc == 0 && has_ranker(m) &&
        (!state_column(r, "model.heads", row, &m->heads) ||
         m->heads.n * (row / sizeof(float)) < heads))
        rc = -EBADMSG;
    if (rc < 0) {
        snprintf(error, error_size, "%s: not a checkpoint of this model", o->checkpoint);
        return rc;
    }
    memcpy(&m->trainer, column_at(&state, 0), sizeof m->trainer);
    m->watermark_ms = ((const struct join_scalars *)column_at(&join, 0))->watermark_ms;
    m->history = two_tower_history(&m->model);
    m->view = (struct view){.options = &m->model,
                            .dense = column_at(&m->tables.dense, 0),
                            .state = column_at(&m->tables.state, 0),
                            .items_known = id_table_state(&m->rows.items)->live};

    const struct id_table *items = &m->rows.items, *users = &m->rows.users;
    m->items = calloc(items->row.n + 1, sizeof *m->items);
    m->users = calloc(users->row.n + 1, sizeof *m->users);
    m->item_owner = calloc(items->row.n + 1, sizeof *m->item_owner);
    if (!m->items || !m->users || !m->item_owner) {
        snprintf(error, error_size, "out of memory for %zu items and %zu users", items->row.n,
                 users->row.n);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < items->row.n; i++) {
        m->item_owner[i] = (struct history_owner){TT_NO_ROW, -1};
        if (id_table_live(items, i)) {
            m->item_owner[i] =
                (struct history_owner){(uint32_t)m->n_items, id_table_row(items, i)->generation};
            m->items[m->n_items++] = i;
        }
    }
    for (uint32_t i = 0; i < users->row.n; i++)
        if (id_table_live(users, i))
            m->users[m->n_users++] = i;
    return 0;
}

static void image_close(struct image *m)
{
    if (m->reader)
        tt_close(m->reader);
    free(m->items);
    free(m->users);
    free(m->item_owner);
}

// Of a column that a pass reads, whatever else is read is a row here and there: a fault would bring
// as much as the device reads ahead, which may be megabytes.
static void rows_at_random(const struct column *c)
{
    madvise(c->base, c->n * c->unit, MADV_RANDOM);
}

static int user_history(const struct image *m, uint32_t user, struct history_walk *walk)
{
    return history_recent(&m->rows.history, user, m->trainer.event_time_ms, m->item_owner,
                          m->history, walk);
}

// A walk over a column, of which the disk brings the next stretch while the last is worked on. Left
// to faults, it is waited for as often as the device's read-ahead is short.
struct ahead {
    const struct column *column;
    size_t asked; // bytes
};

static void ahead_of(struct ahead *a, uint64_t row)
{
    enum { AHEAD = 16 << 20, PAGE = 4096 };
    const struct column *c = a->column;
    const size_t here = row * c->unit, size = c->n * c->unit;
    if (here >= size || a->asked >= size || a->asked > here + AHEAD / 2)
        return;
    const size_t end = size - here > AHEAD ? (here + AHEAD) / PAGE * PAGE : size;
    madvise(c->base + a->asked, end - a->asked, MADV_WILLNEED);
    a->asked = end;
}

static double mean(double sum, double n)
{
    return n > 0 ? sum / n : 0;
}

// ---- The guard

static int refuse(struct publishing *p, enum guard_reason reason, const char *sentence)
{
    p->refused = reason;
    return writer_fail(p->w, -EDOM, sentence);
}

// Measures n rows of `width` floats. What is not finite ends it at once: the readers would refuse
// it, and there is no need to write the rest.
static int guard_rows(struct publishing *p, enum guard_array array, const char *name, uint64_t n,
                      size_t width, size_t stride, const float *rows)
{
    char sentence[128];
    for (uint64_t i = 0; i < n; i++) {
        const float *row = rows + i * stride;
        if (guard_row(&p->sums[array], kernels->dot(width, row, row)))
            continue;
        snprintf(sentence, sizeof sentence, "a row of %s is infinite, NaN or beyond 1e19", name);
        return refuse(p, GUARD_NOT_FINITE, sentence);
    }
    return 0;
}

// Everything is written but the manifest's end: what was measured goes there, and is judged.
static int guard_all(struct publishing *p, const struct publish_options *o)
{
    const struct image *m = &p->image;
    const struct config *c = o->config;
    const struct evaluation *q = &o->quality;
    const struct guard_options options = {.recall = c->snapshot_guard_recall,
                                          .events = (double)c->snapshot_guard_events,
                                          .errors = c->snapshot_guard_errors,
                                          .norm_max = c->snapshot_guard_norm_max,
                                          .norm_jump = c->snapshot_guard_norm_jump,
                                          .rows_share = c->snapshot_guard_rows};
    struct guard_figures now = {.items = m->n_items,
                                .users = m->n_users,
                                .events = q->n,
                                .recall_100 = mean(q->recall_100, q->n),
                                .popularity_recall_100 = mean(q->popularity_recall_100, q->n)};
    struct guard_figures last;
    bool compared = false;
    char path[4096], sentence[512];
    struct tt_reader *r;
    for (int a = 0; a < GUARD_ARRAYS; a++)
        guard_norms_of(&p->sums[a], &now.norms[a]);
    char *norms = guard_norms_text(now.norms);
    if (!norms)
        return -ENOMEM;
    const int rc = writer_manifest_json(p->w, "norms", norms);
    cJSON_free(norms);
    snprintf(path, sizeof path, "%s/%" PRIu64, o->root, o->good);
    if (rc == 0 && o->good > 0 && tt_open(&r, path, sentence, sizeof sentence) == 0) {
        compared = guard_figures_read(&last, tt_manifest_json(r));
        tt_close(r);
    }
    if (rc < 0)
        return rc;
    const enum guard_reason reason = guard_decide(
        &options, &now, id_table_state(&m->rows.items)->live, id_table_state(&m->rows.users)->live,
        compared ? &last : NULL, sentence, sizeof sentence);
    return reason == GUARD_REASONS ? 0 : refuse(p, reason, sentence);
}

// ---- Items and users

// Users with a history, evenly spaced over all.
static void golden_choose(struct publishing *p)
{
    const struct image *m = &p->image;
    const size_t w = (size_t)m->model.dim + 1;
    const uint64_t steps = 64 * GOLDEN_USERS;
    uint32_t last = TT_NO_ROW;
    for (uint64_t i = 0; i < steps && p->n_golden < GOLDEN_USERS && m->n_users > 0; i++) {
        const uint32_t user = (uint32_t)(i * m->n_users / steps);
        struct golden *g = &p->golden[p->n_golden];
        const float *vectors[HISTORY_MAX], *contexts[HISTORY_MAX];
        if (user == last)
            continue;
        last = user;
        *g = (struct golden){.user = user};
        uint8_t actions[HISTORY_MAX], gaps[HISTORY_MAX];
        struct history_walk walk = {g->history, actions, gaps, NULL, 0};
        g->n_history = user_history(m, m->users[user], &walk);
        if (g->n_history == 0)
            continue;
        const struct recent recent = recent_of(&m->tables, g->n_history, walk.newest, g->history,
                                               actions, gaps, vectors, contexts);
        view_query(&m->view, &recent, column_at(&m->tables.user_vector, m->users[user]), NULL,
                   p->queries + (size_t)p->n_golden * w);
        g->n_bonuses = view_bonuses(&m->view, g->n_history, g->history, g->bonuses);
        p->n_golden++;
    }
}

static void golden_see(struct publishing *p, uint64_t first, int n, const float *V)
{
    const int w = p->image.model.dim + 1;
    memset(p->scores, 0, sizeof(float) * GOLDEN_USERS * BLOCK);
    gemm_nt(p->n_golden, n, w, p->queries, V, p->scores);
    for (int g = 0; g < p->n_golden; g++) {
        struct golden *golden = &p->golden[g];
        float *scores = p->scores + (size_t)g * n;
        for (int b = 0; b < golden->n_bonuses; b++) {
            const uint64_t number = p->image.item_owner[golden->bonuses[b].row].number;
            if (number >= first && number < first + (uint64_t)n)
                scores[number - first] += golden->bonuses[b].score;
        }
        // Nearly every block ends here. A NaN comes after every number.
        if (golden->n_best == GOLDEN_ITEMS &&
            kernels->max((size_t)n, scores) < golden->best[0].score)
            continue;
        for (int i = 0; i < n; i++)
            topk_push(golden->best, &golden->n_best, GOLDEN_ITEMS,
                      (struct topk_entry){scores[i], (uint32_t)first + (uint32_t)i});
    }
}

// An item's vector, with its last element, from what its row says.
static void item_vector(const struct image *m, uint32_t row, const float *says, float *v)
{
    view_items(&m->view, 1, says, column_at(&m->tables.item_state, row),
               m->model.item_features ? column_at(&m->tables.item_features, row) : NULL, v);
}

// What else readers need of the items' rows, beside their vectors: the contexts of a recipe; of a
// two_tower with attention the rows themselves, which the history encoder reads and from which the
// item tower makes the vectors. Its floats lie in a row from `from` on.
struct item_rest {
    const char *file, *role; // NULL: there is none
    enum guard_array guard;
    size_t from;
};

static struct item_rest item_rest(const struct image *m)
{
    if (m->model.kind == MODEL_RECIPE)
        return (struct item_rest){"item_context.f32.safetensors", "item_context",
                                  GUARD_ITEM_CONTEXT, m->tables.dim};
    if (m->model.kind == MODEL_TWO_TOWER && m->model.attention)
        return (struct item_rest){"item_row.f32.safetensors", "item_row", GUARD_ITEM_ROW, 0};
    return (struct item_rest){0};
}

enum { VECTORS, HALVES, REST }; // the writer's files while the items' rows are read

static void *room_of(struct publishing *p, int file, size_t size)
{
    writer_file(p->w, file);
    return writer_room(p->w, size);
}

static int room_fill(struct publishing *p, int file, const void *room, size_t size)
{
    writer_file(p->w, file);
    return writer_fill(p->w, room, size);
}

static int file_end(struct publishing *p, int file)
{
    writer_file(p->w, file);
    const int rc = writer_end(p->w);
    writer_file(p->w, VECTORS);
    return rc;
}

// A pass over the rows of a column of vectors.
static int pass_over(struct publishing *p, struct pass *pass, const struct column *c)
{
    const int rc = pass_open(pass, p->image.reader, c->name, c->unit, p->engine);
    return rc < 0 ? writer_fail(p->w, rc, pass->error) : 0;
}

static int vectors_begin(struct publishing *p, const char *file, const char *role,
                         const char *dtype, uint64_t n, uint64_t width)
{
    return writer_array_begin(p->w, &(struct writer_array){.file = file,
                                                           .tensor = "emb",
                                                           .role = role,
                                                           .dtype = dtype,
                                                           .n_dims = 2,
                                                           .shape = {n, width}});
}

static int vectors_guard(struct publishing *p, uint64_t first, int n, const float *V)
{
    const size_t w = (size_t)p->image.model.dim + 1;
    int rc = guard_rows(p, GUARD_ITEM, "item_emb", (uint64_t)n, w - 1, w, V);
    if (rc == 0)
        rc = guard_rows(p, GUARD_ITEM_LAST, "item_emb", (uint64_t)n, 1, w, V + (w - 1));
    if (rc == 0)
        golden_see(p, first, n, V);
    return rc;
}

// What a half cannot hold becomes its largest number: an infinity would rank first.
static void block_halves(struct publishing *p, size_t values, const float *V, uint16_t *halves)
{
    for (size_t i = 0; i < values; i++) {
        const float x = V[i] < half_max ? V[i] : half_max;
        p->V[i] = x > -half_max ? x : -half_max;
    }
    kernels->to_half(values, p->V, halves);
}

// n items from `first` on: their vectors, the same in half precision, and the rest.
static int item_block(struct publishing *p, struct pass *rows, uint64_t first, int n, bool half,
                      const struct item_rest *rest)
{
    const struct image *m = &p->image;
    const size_t d = m->tables.dim, w = d + 1, values = (size_t)n * w;
    float *V = room_of(p, VECTORS, values * sizeof *V), *R = NULL;
    uint16_t *halves = NULL;
    if (rest->file)
        R = room_of(p, REST, (size_t)n * d * sizeof *R);
    if (half)
        halves = room_of(p, HALVES, values * sizeof *halves);
    if (!V || (rest->file && !R) || (half && !halves))
        return writer_fill(p->w, NULL, 0); // the writer's error
    for (int i = 0; i < n; i++) {
        const uint32_t row = m->items[first + (uint64_t)i];
        const float *says = pass_at(rows, row);
        if (!says)
            return writer_fail(p->w, rows->rc, rows->error);
        item_vector(m, row, says, V + (size_t)i * w);
        if (R)
            memcpy(R + (size_t)i * d, says + rest->from, d * sizeof *R);
    }
    int rc = vectors_guard(p, first, n, V);
    if (rc == 0 && R)
        rc = guard_rows(p, rest->guard, rest->role, (uint64_t)n, d, d, R);
    if (rc == 0 && half)
        block_halves(p, values, V, halves);
    if (rc == 0 && R)
        rc = room_fill(p, REST, R, (size_t)n * d * sizeof *R);
    if (rc == 0 && half)
        rc = room_fill(p, HALVES, halves, values * sizeof *halves);
    return rc == 0 ? room_fill(p, VECTORS, V, values * sizeof *V) : rc;
}

// All that is made of the items' rows, in one pass over them. The rest stays open: in the manifest
// it comes behind the users' vectors.
static int item_vectors(struct publishing *p, bool half)
{
    const struct image *m = &p->image;
    const struct item_rest rest = item_rest(m);
    const size_t d = m->tables.dim, w = d + 1;
    struct ahead states = {&m->tables.item_state, 0};
    struct pass rows = {0};
    int rc = vectors_begin(p, "item_emb.f32.safetensors", "item_embedding", "F32", m->n_items, w);
    if (rc == 0 && half) {
        writer_file(p->w, HALVES);
        rc = vectors_begin(p, "item_emb.f16.safetensors", "item_embedding_f16", "F16", m->n_items,
                           w);
    }
    if (rc == 0 && rest.file) {
        writer_file(p->w, REST);
        rc = vectors_begin(p, rest.file, rest.role, "F32", m->n_items, d);
    }
    if (rc == 0)
        rc = pass_over(p, &rows, &m->tables.item_vector);
    for (uint64_t first = 0; first < m->n_items && rc == 0; first += BLOCK) {
        const int n = (int)(m->n_items - first < BLOCK ? m->n_items - first : BLOCK);
        ahead_of(&states, m->items[first]);
        rc = item_block(p, &rows, first, n, half, &rest);
    }
    pass_close(&rows);
    if (rc == 0)
        rc = file_end(p, VECTORS);
    if (rc == 0 && half)
        rc = file_end(p, HALVES);
    return rc;
}

static int user_vectors(struct publishing *p)
{
    const struct image *m = &p->image;
    const size_t d = m->tables.dim;
    struct pass rows = {0};
    int rc = vectors_begin(p, "user_emb.f32.safetensors", "user_embedding", "F32", m->n_users, d);
    if (rc == 0)
        rc = pass_over(p, &rows, &m->tables.user_vector);
    for (uint64_t first = 0; first < m->n_users && rc == 0; first += BLOCK) {
        const uint64_t n = m->n_users - first < BLOCK ? m->n_users - first : BLOCK;
        const size_t size = n * d * sizeof(float);
        float *room = writer_room(p->w, size);
        for (uint64_t i = 0; room && i < n && rc == 0; i++) {
            const float *row = pass_at(&rows, m->users[first + i]);
            if (row)
                memcpy(room + i * d, row, d * sizeof *room);
            else
                rc = writer_fail(p->w, rows.rc, rows.error);
        }
        if (rc == 0 && room)
            rc = guard_rows(p, GUARD_USER, "user_embedding", n, d, d, room);
        if (rc == 0)
            rc = writer_fill(p->w, room, size);
    }
    pass_close(&rows);
    return rc == 0 ? writer_end(p->w) : rc;
}

// Histories lie in the order in which they grew, and name any item: what the next users' walks read
// is asked for before their turn, first the entries and, when these are there, the owners.
PREFETCHES void history_prefetch(const struct image *m, uint64_t i)
{
    enum { ENTRIES_AHEAD = 16, OWNERS_AHEAD = 8, CACHE_LINE = 64, SECOND_LEVEL = 2 };
    const struct history *h = &m->rows.history;
    for (int ahead = OWNERS_AHEAD; ahead <= ENTRIES_AHEAD; ahead += ENTRIES_AHEAD - OWNERS_AHEAD) {
        if (i + (uint64_t)ahead >= m->n_users || m->users[i + (uint64_t)ahead] >= h->head.n)
            return;
        const struct history_head *head = column_at(&h->head, m->users[i + (uint64_t)ahead]);
        if (head->block + (size_t)head->n > h->entry.granule.n)
            return;
        const struct history_entry *entries = heap_at(&h->entry, head->block);
        if (ahead == OWNERS_AHEAD)
            for (int k = 0; k < head->n; k++)
                __builtin_prefetch(&m->item_owner[entries[k].item], 0, SECOND_LEVEL);
        else
            for (size_t at = 0; at < head->n * sizeof *entries; at += CACHE_LINE)
                __builtin_prefetch((const char *)entries + at);
    }
}

// One walk for both files of histories: what the second needs is kept.
static int user_histories(struct publishing *p)
{
    const struct image *m = &p->image;
    const size_t width = (size_t)m->history;
    int rc = writer_array_begin(p->w, &(struct writer_array){.file = "user_history.safetensors",
                                                             .tensor = "items",
                                                             .role = "user_history",
                                                             .dtype = "U32",
                                                             .n_dims = 2,
                                                             .shape = {m->n_users, width}});
    struct ahead entries = {&m->rows.history.entry.granule, 0};
    for (uint64_t first = 0; first < m->n_users && width > 0 && rc == 0; first += BLOCK) {
        const uint64_t n = m->n_users - first < BLOCK ? m->n_users - first : BLOCK;
        const size_t size = n * width * sizeof(uint32_t);
        uint32_t *rows = writer_room(p->w, size), *room = rows;
        uint8_t actions[HISTORY_MAX];
        if (m->users[first] < m->rows.history.head.n) {
            const struct history_head *head = column_at(&m->rows.history.head, m->users[first]);
            ahead_of(&entries, head->block);
        }
        for (uint64_t i = 0; rows && i < n; i++, rows += width) {
            struct history_walk walk = {rows, actions, NULL, NULL, 0};
            history_prefetch(m, first + i);
            const size_t length = (size_t)user_history(m, m->users[first + i], &walk);
            p->newest[first + i] = (uint8_t)walk.newest;
            for (size_t k = 0; k < length; k++)
                rows[k] = m->item_owner[rows[k]].number;
            memset(rows + length, 0xff, (width - length) * sizeof *rows); // TT_NO_ROW
        }
        rc = writer_fill(p->w, room, size);
    }
    return rc == 0 ? writer_end(p->w) : rc;
}

// What an encoder of the history reads beside its rows, in files of its own: a walk more for each,
// and only of models that read them.
static int user_events(struct publishing *p, bool actions)
{
    const struct image *m = &p->image;
    const size_t width = (size_t)m->history, size = actions ? 1 : sizeof(int64_t);
    int rc = writer_array_begin(
        p->w, &(struct writer_array){.file = actions ? "user_history_actions.safetensors"
                                                     : "user_history_ms.safetensors",
                                     .tensor = actions ? "actions" : "ms",
                                     .role = actions ? "user_history_actions" : "user_history_ms",
                                     .dtype = actions ? "U8" : "I64",
                                     .n_dims = 2,
                                     .shape = {m->n_users, (uint64_t)m->history}});
    for (uint64_t i = 0; i < m->n_users && rc == 0; i++) {
        uint32_t rows[HISTORY_MAX];
        uint8_t masks[HISTORY_MAX], gaps[HISTORY_MAX];
        int64_t ts_ms[HISTORY_MAX];
        struct history_walk walk = {rows, masks, gaps, ts_ms, 0};
        for (size_t k = (size_t)user_history(m, m->users[i], &walk); k < width; k++) {
            masks[k] = 0;
            ts_ms[k] = 0;
        }
        rc = writer_append(p->w, actions ? (const void *)masks : ts_ms, width * size);
    }
    return rc == 0 ? writer_end(p->w) : rc;
}

static int user_newests(struct publishing *p)
{
    const struct image *m = &p->image;
    int rc = writer_array_begin(p->w, &(struct writer_array){.file = "user_newest.safetensors",
                                                             .tensor = "newest",
                                                             .role = "user_newest",
                                                             .dtype = "U32",
                                                             .n_dims = 1,
                                                             .shape = {m->n_users}});
    for (uint64_t first = 0; first < m->n_users && rc == 0; first += BLOCK) {
        const size_t n = m->n_users - first < BLOCK ? m->n_users - first : BLOCK;
        uint32_t *room = writer_room(p->w, n * sizeof *room);
        for (size_t i = 0; room && i < n; i++)
            room[i] = p->newest[first + i];
        rc = writer_fill(p->w, room, n * sizeof *room);
    }
    return rc == 0 ? writer_end(p->w) : rc;
}

static void entry_of(const struct id_table *t, uint32_t row, struct ids_entry *entry)
{
    const struct id id = id_table_id(t, row);
    *entry = (struct ids_entry){.kind = IDS_STRING, .bytes = id.bytes, .size = id.size};
    if (id.kind != ID_STRING) {
        entry->kind = IDS_INTEGER;
        memcpy(&entry->integer, id.bytes, sizeof entry->integer);
        entry->negative = id.kind == ID_SIGNED;
    }
}

static void item_id(void *arg, uint64_t i, struct ids_entry *entry)
{
    const struct image *m = arg;
    entry_of(&m->rows.items, m->items[i], entry);
}

static void user_id(void *arg, uint64_t i, struct ids_entry *entry)
{
    const struct image *m = arg;
    entry_of(&m->rows.users, m->users[i], entry);
}

static void item_title(void *arg, uint64_t i, const char **bytes, size_t *size)
{
    const struct image *m = arg;
    const struct text title = rows_title(&m->rows, m->items[i]);
    *bytes = title.bytes;
    *size = title.size;
}

static int dense_matrix(struct publishing *p, const struct dense_parameter *d, const float *data)
{
    char file[128], role[96];
    snprintf(file, sizeof file, "dense_%s.safetensors", d->name);
    snprintf(role, sizeof role, "dense_%s", d->name);
    const int rc = guard_rows(p, GUARD_DENSE, role, (uint64_t)d->rows, (size_t)d->columns,
                              (size_t)d->columns, data);
    if (rc < 0)
        return rc;
    return writer_array(p->w,
                        &(struct writer_array){.file = file,
                                               .tensor = d->name,
                                               .role = role,
                                               .dtype = "F32",
                                               .n_dims = 2,
                                               .shape = {(uint64_t)d->rows, (uint64_t)d->columns}},
                        data);
}

static int dense_matrices(struct publishing *p)
{
    struct dense_parameter d;
    int rc = 0;
    for (int i = 0; rc == 0 && view_dense(&p->image.model, i, &d); i++)
        rc = dense_matrix(p, &d, p->image.view.dense + d.offset);
    return rc;
}

// ---- The light ranker

// As those who serve it will read it.
static void ranker_read(struct publishing *p, const struct config *c)
{
    const struct image *m = &p->image;
    const struct objective_options *o = &m->model.objectives;
    struct value_tasks tasks;
    value_tasks_parse(&tasks, c->value_tasks, NULL, 0); // config_check has seen that it can
    p->ranker.shape = (struct light_ranker_shape){m->model.dim, o->ranker.heads, o->tasks};
    p->ranker.parameters = light_ranker_at(column_at(&m->heads, 0), &p->ranker.shape);
    p->ranker.form = o->ranker.feedback == DELAYED_FEEDBACK_FNC ? LIGHT_RANKER_CORRECTED
                                                                : LIGHT_RANKER_PROBABILITIES;
    // What the tasks are worth as of the checkpoint, whatever the configuration says by now.
    const struct model_values *values = m->model.tasks_named ? column_at(&m->values, 0) : NULL;
    memcpy(p->ranker.weight, values ? values->weight : o->value, sizeof p->ranker.weight);
    memcpy(p->ranker.name, tasks.name, sizeof p->ranker.name);
}

static int ranker_matrices(struct publishing *p)
{
    const struct image *m = &p->image;
    const float *heads = column_at(&m->heads, 0);
    struct dense_parameter d;
    int rc = 0;
    for (int i = 0; rc == 0 && objectives_parameter(&m->model.objectives, m->model.dim, i, &d);
         i++) {
        if (serving_reads(d.name))
            rc = dense_matrix(p, &d, heads + d.offset);
    }
    return rc;
}

static int ranker_manifest(struct publishing *p)
{
    const struct serving_ranker *r = &p->ranker;
    cJSON *root = cJSON_CreateObject();
    cJSON_AddNumberToObject(root, "dim", r->shape.width);
    cJSON_AddNumberToObject(root, "heads", r->shape.heads);
    cJSON_AddStringToObject(root, "value", serving_forms[r->form]);
    cJSON *tasks = cJSON_AddArrayToObject(root, "tasks");
    for (int t = 0; t < r->shape.tasks; t++) {
        cJSON *task = cJSON_CreateObject();
        cJSON_AddStringToObject(task, "name", r->name[t]);
        cJSON_AddNumberToObject(task, "weight", (double)r->weight[t]);
        cJSON_AddItemToArray(tasks, task);
    }
    char *text = cJSON_PrintUnformatted(root);
    cJSON_Delete(root);
    if (!text)
        return -ENOMEM;
    const int rc = writer_manifest_json(p->w, "ranker", text);
    cJSON_free(text);
    return rc;
}

// What the light ranker makes of a golden user's best items.
static void golden_rank(struct publishing *p, const struct golden *golden, const float *query,
                        float *value)
{
    const struct image *m = &p->image;
    for (int i = 0; i < golden->n_best; i++) {
        const uint32_t row = m->items[golden->best[i].row];
        item_vector(m, row, column_at(&m->tables.item_vector, row), p->V);
        light_ranker_score(&p->ranker.parameters, &p->ranker.shape, query, 1, p->V,
                           p->ranker.weight, p->ranker.form, &value[i]);
    }
}

static void id_json(cJSON *object, const char *key, const struct id_table *t, uint32_t row)
{
    struct ids_entry id;
    char text[ID_BYTES_MAX + 32];
    entry_of(t, row, &id);
    if (id.kind == IDS_STRING) {
        snprintf(text, sizeof text, "%.*s", (int)id.size, id.bytes);
        cJSON_AddStringToObject(object, key, text);
    } else { // as text: a JSON number is a double
        snprintf(text, sizeof text, id.negative ? "%" PRId64 : "%" PRIu64, id.integer);
        cJSON_AddRawToObject(object, key, text);
    }
}

// Rows that are finite may still make a query that is not.
static int golden_check(struct publishing *p)
{
    const size_t w = (size_t)p->image.model.dim + 1;
    for (int g = 0; g < p->n_golden; g++) {
        const float *query = p->queries + (size_t)g * w;
        if (!isfinite(kernels->dot(w, query, query)))
            return refuse(p, GUARD_NOT_FINITE, "a user's query is infinite, NaN or beyond 1e19");
    }
    return 0;
}

static int golden_write(struct publishing *p)
{
    const struct image *m = &p->image;
    const size_t w = (size_t)m->model.dim + 1;
    cJSON *root = cJSON_CreateObject(), *users = cJSON_AddArrayToObject(root, "users");
    for (int g = 0; g < p->n_golden; g++) {
        struct golden *golden = &p->golden[g];
        cJSON *user = cJSON_CreateObject(), *top;
        topk_sort(golden->best, golden->n_best);
        id_json(user, "user_id", &m->rows.users, m->users[golden->user]);
        cJSON_AddNumberToObject(user, "row", golden->user);
        cJSON *query = cJSON_AddArrayToObject(user, "query");
        for (size_t i = 0; i < w; i++)
            cJSON_AddItemToArray(query, cJSON_CreateNumber((double)p->queries[(size_t)g * w + i]));
        cJSON *bonuses = cJSON_AddArrayToObject(user, "bonuses");
        for (int b = 0; b < golden->n_bonuses; b++) {
            cJSON *bonus = cJSON_CreateObject();
            cJSON_AddNumberToObject(bonus, "row", m->item_owner[golden->bonuses[b].row].number);
            cJSON_AddNumberToObject(bonus, "bonus", (double)golden->bonuses[b].score);
            cJSON_AddItemToArray(bonuses, bonus);
        }
        float value[GOLDEN_ITEMS];
        if (has_ranker(m))
            golden_rank(p, golden, p->queries + (size_t)g * w, value);
        top = cJSON_AddArrayToObject(user, "top");
        for (int i = 0; i < golden->n_best; i++) {
            cJSON *item = cJSON_CreateObject();
            id_json(item, "item_id", &m->rows.items, m->items[golden->best[i].row]);
            cJSON_AddNumberToObject(item, "row", golden->best[i].row);
            cJSON_AddNumberToObject(item, "score", (double)golden->best[i].score);
            if (has_ranker(m))
                cJSON_AddNumberToObject(item, "value", (double)value[i]);
            cJSON_AddItemToArray(top, item);
        }
        cJSON_AddItemToArray(users, user);
    }
    char *text = cJSON_PrintUnformatted(root);
    cJSON_Delete(root);
    if (!text)
        return -ENOMEM;
    const int rc = writer_blob(p->w, "golden.json", "golden", text, strlen(text));
    cJSON_free(text);
    return rc;
}

// With which arithmetic the state was learned, as the checkpoint tells it (daemon/numerics.h);
// those from before it was told say nothing.
static int numerics_manifest(struct publishing *p)
{
    cJSON *m = cJSON_Parse(tt_manifest_json(p->image.reader));
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(m, "numerics");
    char *text = list ? cJSON_PrintUnformatted(list) : NULL;
    const int rc = text ? writer_manifest_json(p->w, "numerics", text) : 0;
    cJSON_free(text);
    cJSON_Delete(m);
    return rc;
}

static int manifest_write(struct publishing *p, const struct publish_options *o)
{
    const struct image *m = &p->image;
    struct writer *w = p->w;
    char text[1024], created[32], model[CONFIG_MODEL_TEXT_SIZE];
    const time_t now = (time_t)(o->generation / 1000);
    struct tm tm;
    gmtime_r(&now, &tm);
    strftime(created, sizeof created, "%Y-%m-%dT%H:%M:%SZ", &tm);
    config_model_text(o->config, model, sizeof model);
    writer_manifest_text(w, "created", created);
    writer_manifest_text(w, "build", TWOTOWER_VERSION);
    writer_manifest_text(w, "model", config_word("model.type", o->config->model_type));
    writer_manifest_text(w, "options", model);
    writer_manifest_text(w, "metric", "ip");
    writer_manifest_integer(w, "dim", m->model.dim + 1);
    writer_manifest_integer(w, "items", (int64_t)m->n_items);
    writer_manifest_integer(w, "users", (int64_t)m->n_users);
    writer_manifest_integer(w, "history", m->model.history);
    writer_manifest_integer(w, "repeat", m->model.repeat);
    writer_manifest_text(w, "kernels", kernels->name);
    writer_manifest_text(w, "blas_core", gemm_core());
    numerics_manifest(p);
    snprintf(text, sizeof text,
             "{\"checkpoint\":%" PRIu64 ",\"previous\":%" PRIu64 ",\"slice\":%" PRIu64
             ",\"steps\":%" PRIu64 ",\"examples\":%" PRIu64 ",\"event_time_max_ms\":%" PRId64
             ",\"watermark_ms\":%" PRId64 ",\"ended\":%s}",
             tt_snapshot(m->reader), o->previous, m->trainer.slices, m->view.state->steps,
             m->view.state->examples, m->trainer.event_time_ms, m->watermark_ms,
             o->ended ? "true" : "false");
    writer_manifest_json(w, "lineage", text);
    const struct evaluation *q = &o->quality;
    snprintf(text, sizeof text,
             "{\"window\":%.0f,\"recall@10\":%.6f,\"recall@100\":%.6f,\"ndcg@10\":%.6f,"
             "\"logloss\":%.6f,\"popularity_recall@10\":%.6f,\"popularity_recall@100\":%.6f}",
             q->n, mean(q->recall_10, q->n), mean(q->recall_100, q->n), mean(q->ndcg_10, q->n),
             mean(q->log_loss, q->n), mean(q->popularity_recall_10, q->n),
             mean(q->popularity_recall_100, q->n));
    return writer_manifest_json(w, "metrics", text);
}

// Every file of the snapshot, then its manifest, then its name: from there on readers see it.
static int files_write(struct publishing *p, const struct publish_options *o)
{
    struct image *m = &p->image;
    rows_at_random(&m->tables.item_vector);
    rows_at_random(&m->tables.user_vector);
    golden_choose(p);
    int rc = item_vectors(p, o->config->snapshot_f16);
    if (rc == 0)
        rc = ids_write(p->w, "item", m->n_items, item_id, m);
    if (rc == 0)
        rc = strings_write(p->w, "item_titles", m->n_items, item_title, m);
    if (rc == 0)
        rc = user_vectors(p);
    if (rc == 0 && item_rest(m).file)
        rc = file_end(p, REST);
    if (rc == 0)
        rc = ids_write(p->w, "user", m->n_users, user_id, m);
    if (rc == 0)
        rc = user_histories(p);
    if (rc == 0)
        rc = user_newests(p);
    if (rc == 0 && two_tower_reads_gaps(&m->model))
        rc = user_events(p, false);
    if (rc == 0 && two_tower_reads_actions(&m->model))
        rc = user_events(p, true);
    if (rc == 0)
        rc = dense_matrices(p);
    if (rc == 0 && has_ranker(m)) {
        ranker_read(p, o->config);
        rc = ranker_matrices(p);
    }
    if (rc == 0 && has_ranker(m))
        rc = ranker_manifest(p);
    if (rc == 0)
        rc = golden_check(p);
    if (rc == 0)
        rc = golden_write(p);
    if (rc == 0)
        rc = manifest_write(p, o);
    if (rc == 0)
        rc = guard_all(p, o);
    return rc == 0 ? writer_publish(p->w) : rc;
}

int publish_snapshot(const struct publish_options *o, struct published *published, char *error,
                     size_t error_size)
{
    struct publishing p = {.refused = GUARD_REASONS, .engine = o->engine};
    *published = (struct published){.refused = GUARD_REASONS};
    char space[CONFIG_DIGEST_SIZE];
    int rc = image_open(&p.image, o, error, error_size);
    const size_t w = (size_t)p.image.model.dim + 1;
    config_model_digest(o->config, space);
    space[16] = 0;
    if (rc == 0) {
        p.queries = calloc(GOLDEN_USERS * w, sizeof *p.queries);
        p.V = calloc(BLOCK * w, sizeof *p.V);
        p.scores = calloc((size_t)GOLDEN_USERS * BLOCK, sizeof *p.scores);
        p.newest = calloc(p.image.n_users + 1, sizeof *p.newest);
        snprintf(error, error_size, "out of memory");
        rc = p.queries && p.V && p.scores && p.newest ? 0 : -ENOMEM;
    }
    const struct image *m = &p.image;
    if (rc == 0)
        rc = writer_open(&p.w,
                         &(struct writer_options){
                             .root = o->root,
                             .generation = o->generation,
                             .format = "twotower-snapshot",
                             .space = space,
                             .bytes_expected = m->n_items * (w * 6 + 64) +
                                               m->n_users * (w * 4 + (uint64_t)m->history * 4 + 64),
                             .engine = o->engine},
                         error, error_size);
    if (rc == 0) {
        rc = files_write(&p, o);
        if (rc == 0)
            *published = (struct published){o->generation, writer_bytes(p.w), m->n_items,
                                            m->n_users, GUARD_REASONS};
        else
            snprintf(error, error_size, "%s",
                     *writer_error(p.w) ? writer_error(p.w) : strerror(-rc));
    }
    published->refused = p.refused;
    writer_close(p.w);
    free(p.queries);
    free(p.V);
    free(p.scores);
    free(p.newest);
    image_close(&p.image);
    return rc;
}
