// SPDX-License-Identifier: Apache-2.0
//
// What every term over one slate must do, whatever it computes: assert_term tries it on slates of
// many sizes, without and with masks.
#pragma once

#include <stdbool.h>
#include <string.h>

#include "model/rng.h"
#include "tests/support/gradcheck.h"

enum { ITEMS = 64 };

static inline bool near(double x, double expected)
{
    return fabs(x - expected) <= 1e-6 * fmax(1, fabs(expected));
}

// One slate: scores of the model, of the teacher, of the published model.
struct slate_case {
    int n;
    float s[ITEMS], g[ITEMS], s_ref[ITEMS];
    bool masked[ITEMS]; // NAN in g and s_ref
    // Of the term that is tried.
    bool (*term)(const struct slate_case *c, float weight, double *loss, float *ds);
    float weight;
};

static inline void slate_case_fill(struct slate_case *c, int n, float mask_share, struct rng *rng)
{
    c->n = n;
    rng_fill_uniform(rng, c->s, ITEMS, -2, 2);
    rng_fill_uniform(rng, c->g, ITEMS, -2, 2);
    rng_fill_uniform(rng, c->s_ref, ITEMS, -2, 2);
    for (int k = 0; k < n; k++) {
        c->masked[k] = rng_float(rng) < mask_share;
        if (c->masked[k])
            c->g[k] = c->s_ref[k] = NAN;
    }
}

static inline double slate_case_loss(void *arg)
{
    const struct slate_case *c = arg;
    double loss;
    c->term(c, 1, &loss, NULL);
    return (double)c->weight * loss;
}

// items_min: how many unmasked items the term needs to say anything.
static inline void assert_term(bool (*term)(const struct slate_case *, float, double *, float *),
                               int items_min)
{
    struct rng rng = {17, 0};
    int silent = 0;
    for (int round = 0; round < 300; round++) {
        struct slate_case c = {.term = term, .weight = 0.25f + rng_float(&rng)};
        const int n = round < 64 ? 1 + round : 1 + (int)rng_below(&rng, ITEMS);
        const float mask_share = (float)(round % 4) / 3; // 0, a third, two thirds, all
        double loss, again;
        float ds[ITEMS], start[ITEMS];
        int unmasked = 0;

        slate_case_fill(&c, n, mask_share, &rng);
        for (int k = 0; k < n; k++)
            unmasked += !c.masked[k];
        rng_fill_uniform(&rng, start, ITEMS, -1, 1);
        memcpy(ds, start, sizeof ds);
        const bool said = term(&c, c.weight, &loss, ds);
        assert_true(said == term(&c, 1, &again, NULL));
        assert_true(loss == again); // weight is of the gradient only
        assert_true(said == (unmasked >= items_min));
        if (!said) {
            silent++;
            assert_true(loss == 0);
            assert_memory_equal(ds, start, sizeof ds);
            continue;
        }
        assert_true(isfinite(loss));
        for (int k = 0; k < ITEMS; k++) {
            if (k >= n || c.masked[k])
                assert_true(ds[k] == start[k]);
            ds[k] -= start[k];
        }
        assert_gradient("s", slate_case_loss, &c, c.s, ds, (size_t)n);
    }
    assert_true(silent > 0);
}
