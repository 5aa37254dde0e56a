// SPDX-License-Identifier: Apache-2.0
#include "model/id_table.h"

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>

#include "model/pages.h"

// The index: open addressing with linear probing over 8-byte slots. row is the number + 1, 0 an
// empty slot, GONE one whose row has left. tag is 32 bits of hash, and the home of a slot is tag's
// share of the array: so slots lie in the order of their tags, whatever the array's size, and a
// larger one is filled from front to back without a look at the rows. It grows by a quarter when
// three quarters are used: 13.3 bytes a row at the most, where doubling takes up to 25.6. While it
// grows there are two arrays; every admission moves a few slots over, those of the old one below
// moved are done.
//
// A tag follows from all 96 bits of an id's hash and from a key that is the process's own: the hash
// of ids is known to everybody, and who chooses ids could give thousands of them one home, or one
// 64-bit hash. Nothing but the length of probes depends on the key.
struct slot {
    _Alignas(8) uint32_t row; // both are written at once
    uint32_t tag;
};

struct slots {
    struct slot *slot;
    size_t n;
    size_t used; // not empty
};

struct id_index {
    struct slots now, old;
    size_t moved;
    uint64_t key[2];
    _Atomic size_t restored, put; // rows of which the index is right, and of these those in it
};

struct sighting {
    uint32_t tag;
    uint16_t count;
    uint16_t day; // of the last sighting, modulo 2^16
};

enum { GONE = UINT32_MAX, SLOTS_START = 1 << 12, SLOTS_MOVED = 64 };
static const size_t ROWS_MAX = (size_t)1 << 31; // twice as many slots have homes of their own
enum { FILTER_WAYS = 8, FILTER_SETS_MIN = 1 << 17, FILTER_DAYS = 30 };

// A power of two: half a place for each row that there may be. Of 20 million ids seen twice a
// filter of a million places admitted 57 %, one of 8 million nearly all
// (tests/bench/bench_idspace.c).
static size_t filter_sets(const struct id_table *t)
{
    size_t sets = FILTER_SETS_MIN;
    while (sets * FILTER_WAYS * 2 < t->options.rows_max)
        sets *= 2;
    return sets;
}

static uint32_t tag_of(const uint64_t key[2], uint64_t hash, uint32_t check)
{
    const __uint128_t product = (__uint128_t)(hash ^ key[0]) * (check ^ key[1]);
    return (uint32_t)(((uint64_t)product ^ (uint64_t)(product >> 64)) >> 32);
}

static size_t home_of(const struct slots *s, uint32_t tag)
{
    return (size_t)(((uint64_t)tag * s->n) >> 32);
}

static size_t next_of(const struct slots *s, size_t i)
{
    return i + 1 < s->n ? i + 1 : 0;
}

static int slots_open(struct slots *s, size_t n)
{
    *s = (struct slots){.slot = calloc(n, sizeof *s->slot), .n = n};
    if (!s->slot)
        return -ENOMEM;
    pages_advise(s->slot, n * sizeof *s->slot);
    return 0;
}

static void slots_put(struct slots *s, struct slot slot)
{
    size_t i = home_of(s, slot.tag);
    while (s->slot[i].row)
        i = next_of(s, i);
    s->slot[i] = slot;
    s->used++;
}

static struct slot *slots_find(const struct slots *s, size_t skip, const struct id_table *t,
                               uint32_t tag, uint64_t hash, uint32_t check)
{
    size_t i = home_of(s, tag);
    // Below skip everything has moved to the new array; what was displaced beyond it has not.
    if (i < skip)
        i = skip;
    for (; s->slot[i].row; i = next_of(s, i)) {
        if (s->slot[i].tag != tag || s->slot[i].row == GONE)
            continue;
        const struct id_row *row = id_table_row(t, s->slot[i].row - 1);
        if (row->hash == hash && row->check == check)
            return &s->slot[i];
    }
    return NULL;
}

static bool index_grows(const struct id_index *x)
{
    return x->old.slot && x->moved < x->old.n;
}

static struct slot *index_find(const struct id_table *t, uint64_t hash, uint32_t check)
{
    const struct id_index *x = t->index;
    const uint32_t tag = tag_of(x->key, hash, check);
    struct slot *slot = slots_find(&x->now, 0, t, tag, hash, check);
    if (!slot && index_grows(x))
        slot = slots_find(&x->old, x->moved, t, tag, hash, check);
    return slot;
}

static void index_move(struct id_table *t, size_t n)
{
    struct id_index *x = t->index;
    for (; n > 0 && x->moved < x->old.n; n--, x->moved++) {
        const struct slot slot = x->old.slot[x->moved];
        if (slot.row && slot.row != GONE)
            slots_put(&x->now, slot);
    }
    if (x->moved >= x->old.n) {
        free(x->old.slot);
        x->old = (struct slots){0};
        x->moved = 0;
    }
}

// A failing allocation leaves the index as it is: probes become longer, nothing is lost, and the
// next admission tries again. At 15/16 the table counts as full.
static bool index_make_room(struct id_table *t)
{
    struct id_index *x = t->index;
    if (x->old.slot)
        index_move(t, SLOTS_MOVED);
    const size_t slots = x->now.n;
    if (x->now.used * 4 >= slots * 3 && !x->old.slot) {
        // Slots of gone rows count as used; an array full of them is rebuilt at its own size.
        const size_t live = id_table_state(t)->live;
        struct slots grown;
        if (slots_open(&grown, live * 2 >= slots ? slots + slots / 4 : slots) == 0) {
            x->old = x->now;
            x->now = grown;
            x->moved = 0;
            index_move(t, SLOTS_MOVED);
        }
    }
    return x->now.used * 16 < x->now.n * 15;
}

int id_table_open(struct id_table *t, struct columns *s, const struct id_table_options *options)
{
    assert(options->admit >= 1 && options->rows_max > 0 && options->rows_max <= ROWS_MAX);
    *t = (struct id_table){.options = *options};
    int rc = column_open(&t->row, s, options->names[0], sizeof(struct id_row), options->rows_max);
    if (rc == 0)
        rc = column_open(&t->state, s, options->names[1], sizeof(struct id_table_state), 1);
    if (rc == 0 && options->admit > 1)
        rc = column_open(&t->filter, s, options->names[2], sizeof(struct sighting),
                         filter_sets(t) * FILTER_WAYS);
    if (rc == 0 && !options->no_text) // most ids are one or two granules long
        rc = heap_open(&t->text, s, options->heap_names[0], options->heap_names[1],
                       options->rows_max * 4 + HEAP_GRANULES_MAX);
    if (rc < 0)
        return rc;
    column_grow(&t->state, 1);
    return id_table_rebuild(t);
}

void id_table_close(struct id_table *t)
{
    if (t->index) {
        free(t->index->now.slot);
        free(t->index->old.slot);
        free(t->index);
    }
    t->index = NULL;
}

int id_table_restoring(struct id_table *t)
{
    id_table_close(t);
    const size_t slots = t->row.n + t->row.n * 2 / 3; // not far below what it would have grown to
    t->index = calloc(1, sizeof *t->index);
    if (!t->index || slots_open(&t->index->now, slots > SLOTS_START ? slots : SLOTS_START) < 0)
        return -ENOMEM;
    // 16 random bytes that the kernel gives every process.
    const void *random = (const void *)getauxval(AT_RANDOM);
    if (random)
        memcpy(t->index->key, random, sizeof t->index->key);
    return 0;
}

// slots_put where several threads put rows: what stands in a slot stays there, and so of two rows
// with one id the later finds the other. False then.
static bool slots_claim(const struct slots *s, const struct id_table *t, struct slot slot)
{
    const struct id_row *r = id_table_row(t, slot.row - 1);
    for (size_t i = home_of(s, slot.tag);; i = next_of(s, i)) {
        struct slot there;
        __atomic_load(&s->slot[i], &there, __ATOMIC_ACQUIRE);
        if (!there.row && __atomic_compare_exchange(&s->slot[i], &there, &slot, false,
                                                    __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            return true;
        const struct id_row *other = id_table_row(t, there.row - 1);
        if (there.tag == slot.tag && other->hash == r->hash && other->check == r->check)
            return false;
    }
}

void id_table_restored(struct id_table *t, size_t first, size_t n)
{
    enum { AT_ONCE = 32 }; // each place is a miss
    struct id_index *x = t->index;
    size_t restored = 0, put = 0;
    while (n > 0) {
        uint32_t tags[AT_ONCE];
        const size_t some = n < AT_ONCE ? n : AT_ONCE;
        for (size_t i = 0; i < some; i++) {
            const struct id_row *r = id_table_row(t, (uint32_t)(first + i));
            tags[i] = tag_of(x->key, r->hash, r->check);
            __builtin_prefetch(&x->now.slot[home_of(&x->now, tags[i])], 1);
        }
        for (size_t i = 0; i < some; i++) {
            const uint32_t row = (uint32_t)(first + i);
            const bool absent = !id_table_live(t, row);
            const bool claimed =
                !absent && slots_claim(&x->now, t, (struct slot){row + 1, tags[i]});
            restored += absent || claimed;
            put += claimed;
        }
        first += some;
        n -= some;
    }
    atomic_fetch_add(&x->put, put);
    atomic_fetch_add(&x->restored, restored);
}

int id_table_rebuild(struct id_table *t)
{
    // A checkpoint of an earlier build may have a smaller filter: what it has is looked for
    // elsewhere.
    if (t->options.admit > 1 && t->filter.n < t->filter.n_max)
        column_grow(&t->filter, t->filter.n_max);
    if (!t->index || t->row.n == 0 || t->index->restored != t->row.n) {
        if (id_table_restoring(t) < 0)
            return -ENOMEM;
        id_table_restored(t, 0, t->row.n);
    }
    if (t->index->restored != t->row.n)
        return -EINVAL;
    t->index->now.used = t->index->put;
    t->index->restored = 0; // the next time from the start
    return 0;
}

int64_t id_table_find(const struct id_table *t, const struct id *id)
{
    const struct slot *slot = index_find(t, id->hash, id->check);
    return slot ? (int64_t)slot->row - 1 : ID_NO_ROW;
}

// Counts a sighting of an id without a row; true at the admit-th.
static bool filter_see(struct id_table *t, const struct id *id, int64_t ts_ms)
{
    if (t->options.admit == 1)
        return true;
    const uint16_t day = (uint16_t)(ts_ms / 86400000);
    const uint32_t tag = (uint32_t)(id->hash >> 32) | 1; // 0 marks an empty place
    const size_t set = id->hash % (t->filter.n_max / FILTER_WAYS) * FILTER_WAYS;
    size_t victim = set;
    for (size_t i = set; i < set + FILTER_WAYS; i++) {
        const struct sighting *s = column_at(&t->filter, i);
        if (s->tag == tag) {
            // Below zero after midnight, when another partition is still before it.
            const int age = (int16_t)(day - s->day);
            struct sighting *edit = column_edit(&t->filter, i);
            edit->count = age > FILTER_DAYS ? 1 : (uint16_t)(edit->count + 1);
            edit->day = age > 0 ? day : edit->day;
            if (edit->count < t->options.admit)
                return false;
            *edit = (struct sighting){0};
            return true;
        }
        const struct sighting *v = column_at(&t->filter, victim);
        if (s->tag == 0 || (v->tag != 0 && s->count < v->count))
            victim = i;
    }
    *(struct sighting *)column_edit(&t->filter, victim) = (struct sighting){tag, 1, day};
    return false;
}

static int64_t row_create(struct id_table *t, const struct id *id, int64_t ts_ms)
{
    struct id_table_state *state = column_edit(&t->state, 0);
    assert(id->size >= 1 && id->size <= ID_BYTES_MAX);
    if (!index_make_room(t) || (!state->free && t->row.n == t->row.n_max)) {
        state->refused_full++;
        return ID_NO_ROW;
    }
    struct id_row new = {.hash = id->hash,
                         .check = id->check,
                         .size = id->size,
                         .kind = (uint8_t)id->kind,
                         .seen_ms = ts_ms,
                         .created_ms = ts_ms};
    const bool kept = !t->options.no_text, within = kept && id->size <= sizeof new.bytes;
    if (within) {
        memcpy(new.bytes, id->bytes, id->size);
        new.size |= ID_WITHIN;
    } else if (kept) {
        new.text = heap_take(&t->text, heap_granules(id->size));
    }
    if (kept && !within && !new.text) {
        state->refused_full++;
        return ID_NO_ROW;
    }
    uint32_t row;
    if (state->free) {
        row = state->free - 1;
        state->free = id_table_row(t, row)->text;
    } else {
        row = (uint32_t)t->row.n;
        column_grow(&t->row, 1);
    }
    struct id_row *r = column_edit(&t->row, row);
    new.generation = (uint8_t)(r->generation + 1);
    *r = new;
    if (kept && !within) {
        char *bytes = heap_edit(&t->text, new.text, 0, heap_granules(id->size));
        memset(bytes, 0, heap_granules(id->size) * HEAP_GRANULE);
        memcpy(bytes, id->bytes, id->size);
    }
    const uint32_t tag = tag_of(t->index->key, id->hash, id->check);
    slots_put(&t->index->now, (struct slot){row + 1, tag});
    state->live++;
    state->admitted++;
    return row;
}

static int64_t row_seen(struct id_table *t, const struct id *id, int64_t ts_ms)
{
    const int64_t row = id_table_find(t, id);
    // A sighting every minute is exact enough for expiry and spares the write.
    if (row >= 0 && ts_ms > id_table_row(t, (uint32_t)row)->seen_ms + 60000)
        ((struct id_row *)column_edit(&t->row, (size_t)row))->seen_ms = ts_ms;
    return row;
}

int64_t id_table_see(struct id_table *t, const struct id *id, int64_t ts_ms, bool *created)
{
    *created = false;
    int64_t row = row_seen(t, id, ts_ms);
    if (row >= 0)
        return row;
    if (!filter_see(t, id, ts_ms)) {
        ((struct id_table_state *)column_edit(&t->state, 0))->waiting++;
        return ID_NO_ROW;
    }
    row = row_create(t, id, ts_ms);
    *created = row >= 0;
    return row;
}

int64_t id_table_admit(struct id_table *t, const struct id *id, int64_t ts_ms, bool *created)
{
    int64_t row = row_seen(t, id, ts_ms);
    *created = false;
    if (row < 0) {
        row = row_create(t, id, ts_ms);
        *created = row >= 0;
    }
    return row;
}

void id_table_remove(struct id_table *t, uint32_t row)
{
    struct id_row *r = column_edit(&t->row, row);
    struct id_table_state *state = column_edit(&t->state, 0);
    assert(r->kind != ID_ABSENT);
    index_find(t, r->hash, r->check)->row = GONE;
    if (!(r->size & ID_WITHIN) && r->text)
        heap_give(&t->text, r->text, heap_granules(r->size));
    *r = (struct id_row){.generation = r->generation, .text = state->free};
    state->free = row + 1;
    state->live--;
}

int id_table_expire(struct id_table *t, int64_t now_ms, int look, uint32_t *rows, int max)
{
    int n = 0;
    if (t->options.ttl_ms == 0 || t->row.n == 0)
        return 0;
    struct id_table_state *state = column_edit(&t->state, 0);
    for (int i = 0; i < look && n < max; i++) {
        if (state->clock >= t->row.n)
            state->clock = 0;
        const uint32_t row = state->clock++;
        const struct id_row *r = id_table_row(t, row);
        if (r->kind == ID_ABSENT || r->seen_ms >= now_ms - t->options.ttl_ms)
            continue;
        id_table_remove(t, row);
        state->expired++;
        rows[n++] = row;
    }
    return n;
}

struct id id_table_id(const struct id_table *t, uint32_t row)
{
    const struct id_row *r = id_table_row(t, row);
    assert(r->kind != ID_ABSENT);
    if (r->size & ID_WITHIN)
        return (struct id){r->hash, r->check, r->size & (ID_WITHIN - 1), r->kind, r->bytes};
    return (struct id){r->hash, r->check, r->size, r->kind, heap_at(&t->text, r->text)};
}
