// SPDX-License-Identifier: Apache-2.0
//
// The id table at a fiftieth of a billion ids: whether what deploy/scale.md assumes of it holds.
//
//     bench_idspace [--json] [IDS [SIGHTINGS]]     20,000,000 each: 35 s, 2 GB
//
// Three parts. A table is filled with IDS ids and asked for ids it has and ids it has not. The
// hashes of those ids are put into an array with open addressing and linear probing, which is what
// the table's index is, at two loads, and the probes are counted beside Knuth's formulas for hashes
// that are perfectly even. Then SIGHTINGS of ids drawn by Zipf's law (exponent 1) from IDS
// places go to a table that admits at the second sighting and lets go after 14 days; they stand for
// 60 days, in which the id at each place is replaced once in 30 days, the popular as the others.
// Everything is drawn from one seed. Times are CPU time, and only told, for this machine is shared.
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

#include "model/id_table.h"
#include "model/rng.h"
#include "pipeline/decode.h"
#include "tests/bench/figure.h"
#include "tests/bench/measure.h"

enum { ASKED = 1000000, GROUPS = 4096, GROUP = 64, CACHES = 3, EXPIRE_EVERY = 256 };

static const int64_t day_ms = 86400000;
static const int days = 60, life_days = 30, ttl_days = 14;

static bool json;

static void table_open(struct id_table *t, struct columns *s, size_t rows, int admit,
                       int64_t ttl_ms)
{
    if (columns_open(s, 0) < 0 ||
        id_table_open(t, s,
                      &(struct id_table_options){.names = {"rows", "state", "filter"},
                                                 .heap_names = {"text", "free"},
                                                 .rows_max = rows,
                                                 .admit = admit,
                                                 .ttl_ms = ttl_ms}) < 0)
        die("no address space for the table");
}

static void table_close(struct id_table *t, struct columns *s)
{
    id_table_close(t);
    columns_close(s);
}

// ---- A full table.

static double ns_per_find(const struct id_table *t, uint64_t ids, uint64_t from, bool known)
{
    struct rng r = {rng_key(1, from), 0};
    int64_t found = 0;
    const double begun = thread_cpu_s();
    for (int i = 0; i < ASKED; i++) {
        char storage[8];
        const struct id id = id_of_unsigned(from + rng_below(&r, ids), storage);
        found += id_table_find(t, &id) != ID_NO_ROW;
    }
    const double ns = 1e9 * (thread_cpu_s() - begun) / ASKED;
    if (found != (known ? ASKED : 0))
        die("an id was not found, or one that is not there was");
    return ns;
}

static double ns_per_draw(uint64_t ids)
{
    struct rng r = {1, 0};
    uint64_t sum = 0;
    const double begun = thread_cpu_s();
    for (int i = 0; i < ASKED; i++) {
        char storage[8];
        sum += id_of_unsigned(rng_below(&r, ids), storage).hash;
    }
    volatile uint64_t sink = sum;
    (void)sink;
    return 1e9 * (thread_cpu_s() - begun) / ASKED;
}

// Every group has one 64-bit hash; only the check differs. Returns how many ids have a row of their
// own.
static size_t alike_put(struct id_table *t)
{
    size_t own = 0;
    for (uint32_t i = 0; i < GROUPS * GROUP; i++) {
        char storage[8];
        bool created;
        struct id id = id_of_unsigned(i, storage);
        id.hash = rng_at(7, i / GROUP);
        id_table_admit(t, &id, 1, &created);
        own += created;
    }
    for (uint32_t i = 0; i < GROUPS * GROUP; i++) {
        char storage[8];
        struct id id = id_of_unsigned(i, storage);
        id.hash = rng_at(7, i / GROUP);
        const int64_t row = id_table_find(t, &id);
        own -= row < 0 || id_table_row(t, (uint32_t)row)->check != id.check;
    }
    return own;
}

// ---- Probes.

static uint64_t home_of(uint64_t hash, uint32_t check)
{
    // All 96 bits and a key: whoever knows the hash of an id does not know its home.
    const __uint128_t product = (__uint128_t)(hash ^ rng_at(3, 0)) * (check ^ rng_at(3, 1));
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

// The slots that are looked at for an id that is there and for one that is not, with the first
// `load` of the slots taken by rows of the table.
static void probes_count(const struct id_table *t, double load)
{
    size_t slots = 1;
    while ((double)slots * load < (double)t->row.n)
        slots *= 2;
    if (slots > 4096)
        slots /= 2;
    const size_t mask = slots - 1, n = (size_t)((double)slots * load);
    uint8_t *taken = memory_for(slots, 1);
    double hits = 0, misses = 0;
    uint64_t longest = 0;
    struct rng r = {5, 0};
    for (size_t row = 0; row < n; row++) {
        const struct id_row *id = id_table_row(t, (uint32_t)row);
        uint64_t probes = 1;
        size_t i = home_of(id->hash, id->check) & mask;
        for (; taken[i]; i = (i + 1) & mask)
            probes++;
        taken[i] = 1;
        hits += (double)probes;
        longest = probes > longest ? probes : longest;
    }
    for (int k = 0; k < ASKED; k++) {
        misses++;
        for (size_t i = rng_next(&r) & mask; taken[i]; i = (i + 1) & mask)
            misses++;
    }
    free(taken);
    hits /= (double)n;
    misses /= ASKED;
    const double free_share = 1 - load, hit = (1 + 1 / free_share) / 2;
    const double miss = (1 + 1 / (free_share * free_share)) / 2;
    char stage[96], extra[64];
    snprintf(stage, sizeof stage, "probes for an id that is there, load %.3f", load);
    snprintf(extra, sizeof extra, "\"longest\":%" PRIu64 ",\"ids\":%zu", longest, n);
    figure_print(json, &(struct figure){.stage = stage,
                                        .unit = "slots",
                                        .ours = hits,
                                        .reference = "Knuth, even hashes",
                                        .theirs = hit,
                                        .ratio = hits / hit,
                                        .goal = "<= 1.02",
                                        .extra = extra,
                                        .detail = true});
    snprintf(stage, sizeof stage, "probes for an id that is not, load %.3f", load);
    figure_print(json, &(struct figure){.stage = stage,
                                        .unit = "slots",
                                        .ours = misses,
                                        .reference = "Knuth, even hashes",
                                        .theirs = miss,
                                        .ratio = misses / miss,
                                        .goal = "<= 1.02",
                                        .detail = true});
}

static void full(uint64_t ids)
{
    struct id_table t;
    struct columns s;
    char stage[96];
    table_open(&t, &s, ids + GROUPS * GROUP, 1, 0);
    const double empty = resident_bytes();
    const double begun = thread_cpu_s();
    for (uint64_t i = 0; i < ids; i++) {
        char storage[8];
        bool created;
        const struct id id = id_of_unsigned(i, storage);
        id_table_admit(&t, &id, 1, &created);
        if (!created)
            die("two ids have one row");
    }
    const double filling = 1e9 * (thread_cpu_s() - begun) / (double)ids;
    const double bytes = (resident_bytes() - empty) / (double)ids;
    const double draw = ns_per_draw(ids);
    snprintf(stage, sizeof stage, "id table, %.0f M ids: memory of a row", (double)ids / 1e6);
    const double needed = sizeof(struct id_row) + 8;
    figure_print(json, &(struct figure){.stage = stage,
                                        .unit = "bytes per id",
                                        .ours = bytes,
                                        .reference = "row and slot alone",
                                        .theirs = needed,
                                        .ratio = bytes / needed,
                                        .detail = true});
    figure_print(json, &(struct figure){.stage = "admit an id, growing included",
                                        .unit = "ns per id",
                                        .ours = filling,
                                        .detail = true});
    figure_print(json, &(struct figure){.stage = "find an id that is there",
                                        .unit = "ns per id",
                                        .ours = ns_per_find(&t, ids, 0, true) - draw,
                                        .detail = true});
    figure_print(json,
                 &(struct figure){.stage = "find an id that is not",
                                  .unit = "ns per id",
                                  .ours = ns_per_find(&t, ids, UINT64_C(1) << 40, false) - draw,
                                  .detail = true});
    probes_count(&t, 0.625);
    probes_count(&t, 0.75);
    const double own = (double)alike_put(&t) / (GROUPS * GROUP);
    figure_print(json, &(struct figure){.stage = "ids of one 64-bit hash, 64 each, with own rows",
                                        .unit = "share",
                                        .ours = own,
                                        .ratio = own,
                                        .goal = ">= 1",
                                        .detail = true});
    table_close(&t, &s);
}

// ---- A stream of sightings.

// A cache of so many rows with the second-chance rule: what is known of a row that is asked for.
struct cache {
    size_t n, hand;
    uint32_t *held; // n rows, + 1; 0: free
    uint8_t *state; // by row: 0 not held, 1 held, 2 and used since the hand passed
    uint64_t asked, hit;
};

static void cache_ask(struct cache *c, uint32_t row)
{
    c->asked++;
    if (c->state[row]) {
        c->state[row] = 2;
        c->hit++;
        return;
    }
    for (;; c->hand = c->hand + 1 < c->n ? c->hand + 1 : 0) {
        const uint32_t old = c->held[c->hand];
        if (old && c->state[old - 1] == 2) {
            c->state[old - 1] = 1;
            continue;
        }
        if (old)
            c->state[old - 1] = 0;
        c->held[c->hand] = row + 1;
        c->state[row] = 1;
        break;
    }
    c->hand = c->hand + 1 < c->n ? c->hand + 1 : 0;
}

// The id at a place now, and what is exactly known of it.
struct place {
    uint8_t epoch, sightings; // sightings stay at 255
    bool admitted;
};

static void stream(uint64_t ids, uint64_t sightings)
{
    static const double shares[CACHES] = {0.001, 0.01, 0.1};
    struct id_table t;
    struct columns s;
    struct cache cache[CACHES];
    struct rng r = {9, 0};
    struct place *places = memory_for(ids, sizeof *places);
    uint32_t gone[EXPIRE_EVERY];
    uint64_t distinct = 0, twice = 0, admitted = 0, early = 0, found = 0;
    const double log_ids = log((double)ids + 1);
    const int admit = 2;
    table_open(&t, &s, ids, admit, ttl_days * day_ms);
    for (int k = 0; k < CACHES; k++) {
        const size_t n = (size_t)(shares[k] * (double)ids);
        cache[k] = (struct cache){
            .n = n, .held = memory_for(n, sizeof *cache[k].held), .state = memory_for(ids, 1)};
    }
    for (uint64_t i = 0; i < sightings; i++) {
        const double u = (double)(rng_next(&r) >> 11) * 0x1p-53;
        const uint64_t rank = (uint64_t)exp(u * log_ids) - 1;
        const int64_t now = (int64_t)((double)i / (double)sightings * (double)(days * day_ms));
        const int64_t age = now + (int64_t)(rng_at(11, rank) % (uint64_t)(life_days * day_ms));
        const uint8_t epoch = (uint8_t)(1 + age / (life_days * day_ms));
        struct place *p = &places[rank < ids ? rank : ids - 1];
        if (p->epoch != epoch)
            *p = (struct place){.epoch = epoch};
        distinct += p->sightings == 0;
        twice += p->sightings == 1;
        p->sightings = (uint8_t)(p->sightings + (p->sightings < 255));

        char storage[8];
        bool created;
        const struct id id = id_of_unsigned((rank << 8) | epoch, storage);
        const int64_t row = id_table_see(&t, &id, now, &created);
        if (created) {
            admitted += !p->admitted; // not those that had expired and are back
            early += p->sightings < admit;
            p->admitted = true;
        }
        found += row != ID_NO_ROW && !created;
        for (int k = 0; row != ID_NO_ROW && k < CACHES; k++)
            cache_ask(&cache[k], (uint32_t)row);
        // The search goes round the table once in less than a day.
        if (i % EXPIRE_EVERY == 0)
            id_table_expire(&t, now, (int)(2 * EXPIRE_EVERY * ids * days / sightings), gone,
                            EXPIRE_EVERY);
    }
    uint64_t fresh = 0;
    for (uint32_t row = 0; row < t.row.n; row++)
        fresh +=
            id_table_live(&t, row) && id_table_row(&t, row)->seen_ms >= (days - ttl_days) * day_ms;
    const struct id_table_state *state = id_table_state(&t);

    figure_print(json, &(struct figure){.stage = "sightings that find a row, admission at the 2nd",
                                        .unit = "share",
                                        .ours = (double)found / (double)sightings,
                                        .detail = true});
    figure_print(json, &(struct figure){.stage = "distinct ids that get a row by the filter",
                                        .unit = "share",
                                        .ours = (double)admitted / (double)distinct,
                                        .reference = "exact counts",
                                        .theirs = (double)twice / (double)distinct,
                                        .ratio = (double)admitted / (double)twice,
                                        .goal = ">= 0.95",
                                        .detail = true});
    figure_print(json, &(struct figure){.stage = "ids admitted in time, not before",
                                        .unit = "share",
                                        .ours = 1 - (double)early / (double)admitted,
                                        .ratio = 1 - (double)early / (double)admitted,
                                        .goal = ">= 0.9999",
                                        .detail = true});
    figure_print(json, &(struct figure){.stage = "rows held after 60 days with a ttl of 14",
                                        .unit = "rows",
                                        .ours = (double)state->live,
                                        .reference = "of those seen within 14 days",
                                        .theirs = (double)fresh,
                                        .ratio = (double)state->live / (double)fresh,
                                        .goal = "<= 1.1",
                                        .detail = true});
    for (int k = 0; k < CACHES; k++) {
        char stage[96];
        snprintf(stage, sizeof stage, "sightings of rows in a cache of %g %% of ids",
                 100 * shares[k]);
        figure_print(json, &(struct figure){.stage = stage,
                                            .unit = "share",
                                            .ours = (double)cache[k].hit / (double)cache[k].asked,
                                            .detail = true});
        free(cache[k].held);
        free(cache[k].state);
    }
    table_close(&t, &s);
    free(places);
}

int main(int argc, char **argv)
{
    json = figures_as_json(&argc, argv);
    const uint64_t ids = argc > 1 ? strtoull(argv[1], NULL, 10) : 20000000;
    const uint64_t sightings = argc > 2 ? strtoull(argv[2], NULL, 10) : 20000000;
    if (ids < 10000 || ids > 1000000000 || sightings < ids) {
        fprintf(stderr, "bench_idspace: 10,000 to 1,000,000,000 ids, and as many sightings\n");
        return 64;
    }
    full(ids);
    stream(ids, sightings);
    return 0;
}
