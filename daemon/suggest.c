// SPDX-License-Identifier: Apache-2.0
#include "daemon/suggest.h"

#include <assert.h>
#include <string.h>

int suggest_distance(const char *a, const char *b)
{
    const size_t n = strlen(b);
    int row[SUGGEST_LENGTH_MAX + 1];
    assert(n <= SUGGEST_LENGTH_MAX);

    // row[j]: distance from the part of a seen so far to the first j bytes of b.
    for (size_t j = 0; j <= n; j++)
        row[j] = (int)j;
    for (size_t i = 0; a[i]; i++) {
        int diagonal = row[0];
        row[0] = (int)i + 1;
        for (size_t j = 1; j <= n; j++) {
            int least = diagonal + (a[i] != b[j - 1]);
            if (row[j] + 1 < least)
                least = row[j] + 1;
            if (row[j - 1] + 1 < least)
                least = row[j - 1] + 1;
            diagonal = row[j];
            row[j] = least;
        }
    }
    return row[n];
}

void suggest_offer(struct suggest *s, const char *candidate)
{
    const size_t length = strlen(s->word);
    if (length > SUGGEST_LENGTH_MAX || strlen(candidate) > SUGGEST_LENGTH_MAX)
        return;
    const int third = (int)length / 3, limit = third > 2 ? third : 2;
    const int distance = suggest_distance(s->word, candidate);
    if (distance > limit || distance >= (int)length || (s->best && distance >= s->distance))
        return;
    s->best = candidate;
    s->distance = distance;
}

const char *suggest_best(const struct suggest *s)
{
    return s->best;
}
