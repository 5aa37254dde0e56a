// SPDX-License-Identifier: Apache-2.0
//
// "did you mean ...?": the known word nearest to a mistyped one, by Levenshtein distance.
//
//     struct suggest s = {.word = "snaphot"};
//     suggest_offer(&s, "snapshot");            every known word
//     suggest_best(&s)                          "snapshot", or NULL when nothing is near enough
//
// Near enough is a distance of at most 2 or a third of the word, whichever is more, and always less
// than the word's length. Of equally near words the first one offered wins. Words over
// SUGGEST_LENGTH_MAX bytes are never suggested nor helped.
#pragma once

enum { SUGGEST_LENGTH_MAX = 127 };

struct suggest {
    const char *word;
    const char *best; // borrowed, as it was offered
    int distance;     // of best
};

void suggest_offer(struct suggest *s, const char *candidate);
const char *suggest_best(const struct suggest *s);

// The number of bytes to insert, delete or replace to make one from the other.
int suggest_distance(const char *a, const char *b);
