// SPDX-License-Identifier: Apache-2.0
#include "pipeline/catalogue_builtin.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/rng.h"

enum { ADJECTIVES = 24, NOUNS = 16, PLACES = 24 };

// Drama comes first: the hit is a drama.
enum { GENRE_OF_HIT = 0 };
static const char hit_title[] = "Night Train to Lviv";

const char *const genre_names[GENRES] = {
    "Drama",   "Comedy",  "Thriller", "Horror",    "Romance",     "Science Fiction",
    "Fantasy", "Western", "Crime",    "Adventure", "Documentary", "Animation",
};

// No noun belongs to two genres: so titles of different genres differ.
static const char *const nouns[GENRES][NOUNS] = {
    {"Orchard", "Platform", "Inheritance", "Widow", "Harvest", "Schoolmaster", "Letter", "Kitchen",
     "Violin", "Ferryman", "Winter", "Daughter", "Silence", "Bridge", "Farewell", "Portrait"},
    {"Landlord", "Honeymoon", "Waiter", "Mother-in-Law", "Dentist", "Neighbour", "Reunion",
     "Bachelor", "Substitute", "Plumber", "Barbecue", "Parrot", "Lottery", "Mistake", "Babysitter",
     "Caravan"},
    {"Witness", "Passenger", "Corridor", "Signal", "Hostage", "Alibi", "Stranger", "Deadline",
     "Double", "Courier", "Threat", "Pursuit", "Safehouse", "Informer", "Countdown", "Silencer"},
    {"Crypt", "Scarecrow", "Cellar", "Ritual", "Asylum", "Medium", "Whisperer", "Grave", "Mirror",
     "Fog", "Possession", "Leech", "Attic", "Changeling", "Swamp", "Hangman"},
    {"Kiss", "Wedding", "Bouquet", "Promise", "Summer", "Serenade", "Sweetheart", "Valentine",
     "Vineyard", "Proposal", "Waltz", "Rendezvous", "Heartbeat", "Embrace", "Confession",
     "Moonlight"},
    {"Orbit", "Android", "Colony", "Nebula", "Transmission", "Clone", "Starship", "Paradox",
     "Satellite", "Machine", "Wormhole", "Cosmonaut", "Simulation", "Eclipse", "Reactor",
     "Signalman"},
    {"Dragon", "Sorcerer", "Crown", "Prophecy", "Enchantress", "Griffin", "Oracle", "Spell",
     "Talisman", "Unicorn", "Wizard", "Throne", "Rune", "Kingdom", "Phoenix", "Goblin"},
    {"Sheriff", "Saloon", "Outlaw", "Stagecoach", "Canyon", "Gunslinger", "Ranch", "Homesteader",
     "Mustang", "Prospector", "Marshal", "Posse", "Frontier", "Drifter", "Spur", "Showdown"},
    {"Heist", "Detective", "Racket", "Godmother", "Safecracker", "Syndicate", "Ransom", "Verdict",
     "Forger", "Smuggler", "Getaway", "Precinct", "Bookmaker", "Diamond", "Inspector", "Casino"},
    {"Expedition", "Lagoon", "Summit", "Castaway", "Treasure", "Volcano", "Explorer", "Jungle",
     "Voyage", "Pirate", "Glacier", "Compass", "Temple", "River", "Shipwreck", "Nomad"},
    {"Archive", "Glassblowers", "Migration", "Coral Reef", "Census", "Lighthouse", "Beekeepers",
     "Railway", "Harbour Pilots", "Wetlands", "Observatory", "Marathon", "Cathedral", "Desert",
     "Orchestra", "Library"},
    {"Penguin", "Toymaker", "Hedgehog", "Tin Robot", "Paper Boat", "Mouse", "Balloon", "Owl",
     "Carousel", "Snowman", "Little Fox", "Puppet", "Otter", "Gingerbread", "Kite", "Bear Cub"},
};

static const char *const adjectives[ADJECTIVES] = {
    "Long",     "Silent", "Last",    "Golden", "Broken",    "Hidden",  "Crimson",    "Forgotten",
    "Restless", "Second", "Distant", "Hollow", "Invisible", "Patient", "Unfinished", "Northern",
    "Borrowed", "Tender", "Quiet",   "Secret", "Stolen",    "Wild",    "Sleeping",   "Midnight",
};

static const char *const places[PLACES] = {
    "Trieste",   "Santiago", "Odessa",   "Lisbon",  "Samarkand", "Bergen",  "Havana",    "Kyoto",
    "Marrakesh", "Tallinn",  "Bombay",   "Tangier", "Galway",    "Cusco",   "Zanzibar",  "Riga",
    "Palermo",   "Montreal", "Shanghai", "Tbilisi", "Salvador",  "Antwerp", "Reykjavik", "Adelaide",
};

// Title t of a genre. Three patterns take turns; each runs through its combinations in steps of
// 101, which is prime to their numbers (384, 384, 240), so none returns before all 240 rounds.
static void title_write(char title[FILM_TITLE_BYTES], int genre, int t, int part, int parts)
{
    static const char *const numerals[] = {"", " II", " III", " IV"};
    enum { PATTERNS = 3, ROUNDS = NOUNS * (NOUNS - 1), STRIDE = 101 };
    const char *const *noun = nouns[genre];
    const int round = t / PATTERNS, k = round % ROUNDS * STRIDE, remake = round / ROUNDS;
    const char *numeral = parts > 1 ? numerals[part] : "";
    char suffix[24] = "";
    const int first = k % NOUNS, rest = k / NOUNS;

    if (remake > 0)
        snprintf(suffix, sizeof suffix, " (Remake %d)", remake);
    if (t % PATTERNS == 0) {
        snprintf(title, FILM_TITLE_BYTES, "The %s %s%s%s", adjectives[rest % ADJECTIVES],
                 noun[first], numeral, suffix);
    } else if (t % PATTERNS == 1) {
        snprintf(title, FILM_TITLE_BYTES, "The %s of %s%s%s", noun[first], places[rest % PLACES],
                 numeral, suffix);
    } else {
        const int second = (first + 1 + rest % (NOUNS - 1)) % NOUNS;
        snprintf(title, FILM_TITLE_BYTES, "The %s and the %s%s%s", noun[first], noun[second],
                 numeral, suffix);
    }
}

// A random order of 0..n-1.
static void order_fill(int32_t *order, int n, uint64_t key)
{
    struct rng rng = {key, 0};
    for (int i = 0; i < n; i++)
        order[i] = i;
    for (int i = n - 1; i > 0; i--) {
        const int j = (int)rng_below(&rng, (uint64_t)i + 1);
        const int32_t swap = order[i];
        order[i] = order[j];
        order[j] = swap;
    }
}

// Fills the rings genre by genre; number[] says which film stands where, so that a film's number
// tells nothing about it. A series starts at every eighth free place and has three or four parts.
static void rings_fill(struct catalogue_builtin *c, const int32_t *number, struct rng *rng)
{
    const int released = c->films - 1;
    for (int genre = 0, slot = 0; genre < GENRES; genre++) {
        c->ring_start[genre] = slot;
        const int end = (int)((int64_t)released * (genre + 1) / GENRES), size = end - slot;
        for (int title = 0, place = 0; slot < end; title++) {
            int parts = rng_below(rng, 8) == 0 ? 3 + (int)rng_below(rng, 2) : 1;
            if (parts > end - slot)
                parts = 1;
            const int year = 1950 + (int)rng_below(rng, 66), opener = number[slot];
            for (int part = 0; part < parts; part++, slot++, place++) {
                struct film *film = &c->film[number[slot]];
                film->genre = genre;
                film->place = ((float)place + 0.5f) / (float)size;
                film->opener = opener;
                film->sequel = part + 1 < parts ? number[slot + 1] : -1;
                film->year = (int16_t)(year + 3 * part);
                title_write(c->title[number[slot]], genre, title, part, parts);
                c->ring[slot] = number[slot];
            }
        }
    }
    c->ring_start[GENRES] = released;
}

// Popularity falls as 1 / (rank + 10). Vose 1991: columns below the mean are filled up from those
// above it.
static void popularity_fill(struct catalogue_builtin *c, const int32_t *film_of_rank,
                            struct rng *rng, double *weight, int32_t *small, int32_t *large)
{
    const int n = c->films - 1;
    int smalls = 0, larges = 0;
    double sum = 0;
    for (int rank = 0; rank < n; rank++) {
        const int i = film_of_rank[rank];
        const double share = (double)rank / n;
        weight[i] = 1 / (rank + 10.0);
        sum += weight[i];
        c->film[i].popularity = (float)weight[i];
        c->film[i].quality = 0.7f * (float)(1 / (1 + 20 * share)) + 0.3f * rng_float(rng);
    }
    for (int i = 0; i < n; i++) {
        weight[i] *= n / sum;
        if (weight[i] < 1)
            small[smalls++] = i;
        else
            large[larges++] = i;
    }
    while (smalls > 0 && larges > 0) {
        const int low = small[--smalls], high = large[larges - 1];
        c->alias_keep[low] = (float)weight[low];
        c->alias_other[low] = high;
        weight[high] -= 1 - weight[low];
        if (weight[high] < 1) {
            larges--;
            small[smalls++] = high;
        }
    }
    // Rounding leaves some columns on either side, all but full.
    while (larges > 0)
        c->alias_keep[large[--larges]] = 1;
    while (smalls > 0)
        c->alias_keep[small[--smalls]] = 1;
}

int catalogue_builtin_open(struct catalogue_builtin *c, uint64_t seed, int films)
{
    assert(films >= FILMS_MIN && films <= FILMS_MAX);
    const size_t n = (size_t)films;
    struct rng rng = {rng_key(seed, 1), 0};
    int rc = -ENOMEM;

    *c = (struct catalogue_builtin){
        .films = films,
        .film = calloc(n, sizeof *c->film),
        .title = calloc(n, sizeof *c->title),
        .ring = calloc(n, sizeof *c->ring),
        .alias_keep = calloc(n, sizeof *c->alias_keep),
        .alias_other = calloc(n, sizeof *c->alias_other),
    };
    int32_t *order = calloc(n, sizeof *order);
    int32_t *small = calloc(n, sizeof *small), *large = calloc(n, sizeof *large);
    double *weight = calloc(n, sizeof *weight);
    if (!c->film || !c->title || !c->ring || !c->alias_keep || !c->alias_other || !order ||
        !small || !large || !weight)
        goto done;

    order_fill(order, films - 1, rng_key(seed, 2));
    rings_fill(c, order, &rng);
    order_fill(order, films - 1, rng_key(seed, 3));
    popularity_fill(c, order, &rng, weight, small, large);

    struct film *hit = &c->film[films - 1];
    *hit = (struct film){.genre = GENRE_OF_HIT, .quality = 1, .sequel = -1, .opener = films - 1};
    hit->year = 2024;
    memcpy(c->title[films - 1], hit_title, sizeof hit_title);
    rc = 0;
done:
    free(weight);
    free(large);
    free(small);
    free(order);
    return rc;
}

void catalogue_builtin_close(struct catalogue_builtin *c)
{
    free(c->alias_other);
    free(c->alias_keep);
    free(c->ring);
    free(c->title);
    free(c->film);
    *c = (struct catalogue_builtin){0};
}

int catalogue_builtin_draw(const struct catalogue_builtin *c, uint64_t random)
{
    // The upper half picks the column, the lower one decides between its two films.
    const int i = (int)((random >> 32) * (uint64_t)(c->films - 1) >> 32);
    const float u = (float)(uint32_t)(random & 0xffffff) * 0x1p-24f;
    return u < c->alias_keep[i] ? i : c->alias_other[i];
}

int catalogue_builtin_at(const struct catalogue_builtin *c, int genre, float place)
{
    const int start = c->ring_start[genre], size = c->ring_start[genre + 1] - start;
    // floorf is a call on the plainest of CPUs. The result is in [0, 1]; 1 by rounding.
    const float turn = place - (float)(int)place + (place < 0 ? 1 : 0);
    const int i = (int)(turn * (float)size);
    return c->ring[start + (i < size ? i : 0)];
}
