// SPDX-License-Identifier: Apache-2.0
//
// The films of the demo's stream: titles that read well and never repeat, twelve genres, series,
// how popular each film is. A function of seed and number of films; the same on every machine (no
// arithmetic but what IEEE 754 rounds exactly).
//
// The films of a genre lie on a ring: neighbours are alike, and who likes a film likes those around
// it. The parts of a series are consecutive places of their ring. The last film is the new hit: it
// has a genre, and no place on a ring or share of the popularity, since it is yet to be released.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { GENRES = 12, FILM_TITLE_BYTES = 64, FILMS_MIN = 240, FILMS_MAX = 1000000 };

extern const char *const genre_names[GENRES];

struct film {
    int32_t genre;
    float place;      // on the ring, in [0, 1); the hit: 0
    float quality;    // in [0, 1], higher for popular films
    float popularity; // weight in catalogue_builtin_draw; the hit: 0
    int32_t sequel;   // the film that continues this one, -1 when there is none
    int32_t opener;   // first film of its series; itself when it has none
    int16_t year;
};

struct catalogue_builtin {
    int films; // with the hit, which is film films - 1
    struct film *film;
    char (*title)[FILM_TITLE_BYTES];
    int32_t *ring; // film numbers, genre after genre, in the order of their places
    int32_t ring_start[GENRES + 1];
    // Walker's alias method over the Zipf-like popularity: column i is film i with probability
    // alias_keep[i], else film alias_other[i].
    float *alias_keep;
    int32_t *alias_other;
};

// films in FILMS_MIN..FILMS_MAX. Returns 0 or -ENOMEM; needs catalogue_builtin_close then as well.
int catalogue_builtin_open(struct catalogue_builtin *c, uint64_t seed, int films);
void catalogue_builtin_close(struct catalogue_builtin *c);

// A released film, drawn by popularity from 64 random bits.
int catalogue_builtin_draw(const struct catalogue_builtin *c, uint64_t random);
// The film at a place of the genre's ring; any place, it wraps around.
int catalogue_builtin_at(const struct catalogue_builtin *c, int genre, float place);
