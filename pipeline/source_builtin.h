// SPDX-License-Identifier: Apache-2.0
//
// What the demo may know about its own stream: the films behind the item ids, and the new hit. The
// learner sees none of this; it reads JSON records like those of any other source.
//
// The stream, a function of struct source_builtin_options alone:
//
//     items          one record per film "i0".."i<items-1>" at start_ms; the hit's at
//                    hit.release_ms. features: twelve genres one-hot, then (year - 1950) / 80
//     impressions    slates of ten, positions 0..9, one per request "r<number>", user "u<number>"
//     ranker_scores  "click" and "like" of the ten and of two films that were not shown; the ranker
//                    "demo-1" is followed by the more exact "demo-2" after two thirds
//     engagements    clicks, 2 % of them sent twice, 1 % half an hour to two hours late, 3 %
//                    without request_id; likes after clicks; 0.5 % of the requests bring an
//                    engagement whose request_id nobody has seen
//
// Users have one lasting favourite genre and two that come and go; within a genre they like a
// neighbourhood of films (see catalogue_builtin.h); and they watch series in order. A slate is
// drawn by popularity, by the user's taste, from the user's series and at random. A film at
// position p is examined with probability 1 / (p + 1)^0.7 and, if examined, clicked with its
// relevance. Clicks follow the slate after a few seconds to minutes, some after hours.
//
// Tastes, trends and the hit move with the number of the request, not with history, so any record
// can be made without those before it; only engagements, which are sorted by time, need a run from
// the beginning: bounds, start and offsets_for_time spend about a microsecond per request on
// it. Offsets count from 0 without gaps. A stream without end has the end INT64_MAX / 2.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pipeline/source.h"

struct source_builtin_hit {
    int item;
    int genre;
    const char *title;
    // Event time of its items record: that of request number requests / 2, or an hour after
    // start_ms when the stream has no end. Nobody is shown it earlier.
    int64_t release_ms;
};

// All of these take a source made by source_builtin_open, and what they return lives as long.
// genre is in 0..source_builtin_genres() - 1, item in 0..source_builtin_items() - 1: the number in
// the id "i<number>".
int source_builtin_items(const struct source *s);
int source_builtin_genres(void);
const char *source_builtin_title(const struct source *s, int item);
int source_builtin_genre(const struct source *s, int item);
const char *source_builtin_genre_name(int genre);
struct source_builtin_hit source_builtin_hit(const struct source *s);

// The number in an item id such as "i17"; -1 when the bytes are no id of this stream's.
int source_builtin_item_of(const struct source *s, const char *bytes, size_t size);
// How many of these items belong to the genre: the test whether an item's nearest ones are its own.
int source_builtin_count_genre(const struct source *s, int genre, int n, const int *items);
// The most popular films of the genre, best first, the hit left out; returns how many, at most max.
int source_builtin_best(const struct source *s, int genre, int max, int *items);
