// SPDX-License-Identifier: Apache-2.0
//
// A trainer with every objective on, over random streams in which rows come and go all the time:
// items and users expire within seconds of event time, items are removed while slates, examples,
// memory, replay, reference and guards still name them. A stream is a function of its seed; what it
// has learned must be one of the stream alone, however it was cut, swept and restored.
#include <math.h>

#include "daemon/assemble.h"
#include "model/arena.h"
#include "model/tables.h"
#include "pipeline/evaluate.h"
#include "tests/unit/core_fixture.h"

enum {
    USERS = 60,
    ITEMS = 90,
    SHOWN_MAX = 7,
    EVENTS = 6000,
    FEATURES = 3,
    SEEDS = 2,
    DRAWN_SEEDS = 8,
    RECENT = 64
};

static const char *const all_on[] = {
    "model.dim=8",
    "model.history=6",
    "model.repeat=8",
    "model.batch=16",
    "model.uniform_negatives=8",
    "model.item_features=3",
    "model.memory=48",
    "model.memory_after=3",
    "model.mask_known=true",
    "value.tasks=click=1,like=2,hide=-1.5,*=0.25",
    "debias.half_life=200",
    "distill.weight=0.3",
    "align.weight=0.2",
    "align.trust=0.1",
    "align.publish=20s",
    "align.guard_half_life=50",
    "align.guard_confidence=0",
    "preference.weight=0.2",
    "ranker.weight=0.2",
    "ranker.distill=0.1",
    "ranker.feedback=es_dfm",
    "ranker.feedback_delay=2s",
    "slates.batch=5",
    "slates.score_max_age=3s",
    "join.window=10s",
    "join.lateness=3s",
    "join.max_bytes=1MiB",
    "join.actions.like=15s",
    "tables.items_max=500",
    "tables.users_max=400",
    "tables.item_ttl=6s",
    "tables.user_ttl=9s",
    "eval.sampling=0.3",
    NULL,
};

static const char *const recipe[] = {
    "model.attention=1",    "model.attention_heads=2", "model.attention_actions=true",
    "model.replay=8",       "model.replay_window=60",  "align.form=dpo",
    "debias.estimator=pbm", "preference.form=s_dpo",   NULL};
static const char *const towers[] = {"model.type=two_tower",
                                     "model.user_features=3",
                                     "model.hidden=5",
                                     "model.history_encoder=attention",
                                     "align.form=shaped",
                                     "debias.estimator=combined",
                                     NULL};

// What a seed draws a configuration from: a key, and words of which it takes one.
static const char *const choices[] = {
    "debias.estimator=none|position|position_sgd|user|user_mean|combined|pbm|propensity",
    "debias.form=ratio|difference|positive|z|seed",
    "distill.form=listwise|plackett_luce|top_positives|soft_pair|margin",
    "align.form=kl|policy|shaped|dpo|s_dpo",
    "align.teacher=logged|proxy",
    "preference.form=bpr|dpo|s_dpo",
    "ranker.feedback=none|fnw|fnc|es_dfm",
    "ranker.scores=probability|logit",
    "ranker.stop_gradient=true|false",
    "ranker.optimizer=sgd|adagrad|rowwise_adagrad|adam|ftrl|clippy_adagrad",
    "model.optimizer=sgd|adagrad|rowwise_adagrad|adam|ftrl|clippy_adagrad",
    "model.dense_optimizer=sgd|adagrad|rowwise_adagrad|adam|ftrl|clippy_adagrad",
    "model.memory_age=0|7",
    "model.mask_known=true|false",
    "model.radius=0|0.2",
    "model.gradient_max=0|0.5",
    "model.repeat=0|3|8",
    "tables.admit_items=1|2",
    "tables.admit_users=1|2",
    "tables.item_ttl=0s|1s|6s|30s",
    "tables.user_ttl=0s|1s|9s|30s",
    "join.max_bytes=1MiB|2MiB",
    "eval.chunk=0|40",
    "model.item_features=0|3",
};
static const char *const recipe_choices[] = {
    "model.scalar_optimizer=sgd|adagrad|adam|ftrl",
    "model.user_update=gradient|onebp",
    "model.correction=logq|mns|counted|refined|none",
    "model.replay=0|8|24",
    "model.attention=0|1|2",
    "model.attention_positions=none|seed|standard",
    "model.attention_residual=true|false",
    "model.attention_norm=true|false",
    "model.attention_actions=true|false",
    "model.attention_gaps=true|false",
    "model.attention_rows=item|context",
};
static const char *const tower_choices[] = {
    "model.type=two_tower",     "model.user_features=0|2|3",
    "model.logq=true|false",    "model.accidental_hits=true|false",
    "model.hard_negatives=0|4", "model.history_encoder=none|attention",
};

static struct fixture {
    struct config config;
    char memory[CONFIG_MEMORY];
    struct arena arena;
    struct join_window windows[CONFIG_ENTRIES_MAX];
} f;

static void set(const char *pair)
{
    struct config_problems problems = {0};
    if (config_set_pair(&f.config, pair, "test", &problems) < 0)
        fail_msg("%s: %s", pair, problems.list[0].text);
}

static void set_drawn(struct rng *rng, size_t n, const char *const *list)
{
    for (size_t i = 0; i < n; i++) {
        char pair[128];
        const char *word = strchr(list[i], '=') + 1;
        const int head = (int)(word - list[i]);
        int words = 1;
        for (const char *c = word; *c; c++)
            words += *c == '|';
        for (int skip = (int)rng_below(rng, (uint64_t)words); skip > 0; skip--)
            word = strchr(word, '|') + 1;
        snprintf(pair, sizeof pair, "%.*s%.*s", head, list[i], (int)strcspn(word, "|"), word);
        if (getenv("SEED"))
            printf("    %s\n", pair);
        set(pair);
    }
}

#define DRAWN(rng, list) set_drawn(rng, sizeof(list) / sizeof *(list), list)

// kind: what is on for certain; NULL: drawn.
static void configure(const char *const *kind, uint64_t seed)
{
    struct config_problems problems = {0};
    struct rng rng = {seed, 2000000};
    f.arena = (struct arena){f.memory, sizeof f.memory, 0};
    config_init(&f.config, &f.arena);
    for (const char *const *pair = all_on; *pair; pair++)
        set(*pair);
    for (; kind && *kind; kind++)
        set(*kind);
    if (!kind) {
        DRAWN(&rng, choices);
        if (seed % 2)
            DRAWN(&rng, recipe_choices);
        else
            DRAWN(&rng, tower_choices);
    }
    if (config_check(&f.config, &problems) < 0)
        fail_msg("%s", problems.list[0].text);
}

// The trainer and who watches it: its sums are columns, too.
struct learner {
    struct trainer trainer;
    struct evaluator *evaluator;
    uint64_t steps, slate_steps, skipped, replayed;
    struct objective_report term[OBJECTIVES];
    double guard;
};

// A row number must not outlive its owner: whatever is about to be learned names live rows alone.
static void assert_live(const struct learner *l, uint32_t user, int n, const uint32_t *history)
{
    assert_true(id_table_live(&l->trainer.rows.users, user));
    for (int i = 0; i < n; i++)
        assert_true(id_table_live(&l->trainer.rows.items, history[i]));
}

static void score(void *arg, int n, const struct example *examples, const float *features)
{
    struct learner *l = arg;
    for (int i = 0; i < n; i++) {
        assert_live(l, examples[i].user, examples[i].n_history, examples[i].history);
        assert_true(id_table_live(&l->trainer.rows.items, examples[i].item));
    }
    evaluator_score(l->evaluator, n, examples, features);
}

static void score_slates(void *arg, int n, const struct slate *slates, const float *scores)
{
    struct learner *l = arg;
    for (int i = 0; i < n; i++) {
        assert_live(l, slates[i].user, slates[i].n_history, slates[i].history);
        for (int k = 0; k < slates[i].n_items; k++)
            assert_true(id_table_live(&l->trainer.rows.items, slates[i].items[k].item));
    }
    evaluator_score_slates(l->evaluator, n, slates, scores);
}

static void step(void *arg, const struct step_report *report)
{
    struct learner *l = arg;
    l->steps++;
    l->skipped += report->skipped;
    l->replayed += report->replayed;
}

static void slate_step(void *arg, const struct slate_report *report)
{
    struct learner *l = arg;
    l->slate_steps++;
    l->skipped += report->skipped;
    l->guard += report->guard;
    for (int t = 0; t < OBJECTIVES; t++)
        l->term[t].n += report->term[t].n;
}

static void learner_open(struct learner *l)
{
    const struct trainer_options options = assemble_trainer(&f.config, 1, f.windows);
    memset(l, 0, sizeof *l);
    assert_int_equal(trainer_open(&l->trainer, &options), 0);
    assert_int_equal(evaluator_open(&l->evaluator, &l->trainer.columns, &l->trainer.rows,
                                    &(struct evaluator_options){.sampling = f.config.eval_sampling,
                                                                .popularity_half_life = 100,
                                                                .chunk_max = l->trainer.chunk}),
                     0);
    l->trainer.score = score;
    l->trainer.score_slates = score_slates;
    l->trainer.step = step;
    l->trainer.slate_step = slate_step;
    l->trainer.arg = l;
}

static void learner_close(struct learner *l)
{
    evaluator_close(l->evaluator);
    trainer_close(&l->trainer);
}

// The stream.

struct stream {
    struct rng rng;
    int64_t ts_ms;
    uint64_t requests;
    struct shown {
        uint64_t request, user;
        int n;
        uint64_t items[SHOWN_MAX];
    } recent[RECENT]; // requests that engagements and scores may name
};

static uint64_t draw(struct stream *s, uint64_t n)
{
    return rng_below(&s->rng, n);
}

// Few are popular; the set in fashion drifts, so that the others expire.
static uint64_t draw_item(struct stream *s)
{
    return (s->requests / 40 * 7 + draw(s, 1 + draw(s, ITEMS))) % ITEMS;
}

static struct shown *draw_request(struct stream *s)
{
    return &s->recent[draw(s, RECENT)];
}

static void draw_features(struct stream *s, float *x)
{
    for (int i = 0; i < FEATURES; i++)
        x[i] = rng_float(&s->rng) - 0.5f;
}

struct made {
    struct core_event e;
    struct event_score scores[16][3];
    float features[17][FEATURES];
};

static void impression(struct stream *s, struct made *r)
{
    struct shown *shown = &s->recent[s->requests % RECENT];
    *shown = (struct shown){.request = s->requests++,
                            .user = (s->requests / 50 * 11 + draw(s, 1 + draw(s, USERS))) % USERS,
                            .n = 1 + (int)draw(s, SHOWN_MAX)};
    for (int i = 0; i < shown->n; i++)
        shown->items[i] = draw_item(s);
    core_impression(&r->e, s->ts_ms, shown->request, shown->user, shown->n, shown->items);
    r->e.event.surface = draw(s, 2) ? (struct text){"home", 4} : (struct text){0};
    if (draw(s, 4)) {
        draw_features(s, r->features[16]);
        r->e.event.features = r->features[16];
        r->e.event.n_features = FEATURES;
    }
    for (int i = 0; i < shown->n; i++) {
        struct event_item *item = &r->e.items[i];
        item->propensity = draw(s, 3) ? 0.05f + 0.9f * rng_float(&s->rng) : 0;
        if (draw(s, 20) == 0)
            item->position = -1;
        if (draw(s, 10) == 0) {
            draw_features(s, r->features[i]);
            item->features = r->features[i];
            item->n_features = FEATURES;
        }
    }
}

// What users like and rankers know.
static bool likes(uint64_t user, uint64_t item)
{
    return (user + item) % 3 == 0;
}

static void engagement(struct stream *s, struct made *r)
{
    static const char *const actions[] = {"click", "click", "like", "share", "hide"};
    const struct shown *shown = draw_request(s);
    const bool named = shown->n > 0 && draw(s, 10) > 0;
    uint64_t item = draw_item(s);
    for (int tries = 3; shown->n > 0 && draw(s, 12) && tries > 0; tries--) {
        item = shown->items[draw(s, (uint64_t)shown->n)];
        if (likes(shown->user, item))
            break;
    }
    core_engagement(&r->e, s->ts_ms - (int64_t)draw(s, 300),
                    named ? (int64_t)shown->request : CORE_NO_REQUEST, shown->user, item,
                    actions[draw(s, likes(shown->user, item) ? 4 : 5)]);
}

// Of a request that has come or of the next one; two versions, and what cannot be used.
static void scores(struct stream *s, struct made *r)
{
    static const float odd[] = {-1, 2, NAN, INFINITY};
    const struct shown *shown = draw_request(s);
    const uint64_t request = draw(s, 4) ? shown->request : s->requests;
    const int n = 1 + (int)draw(s, 12);
    core_score(&r->e, s->ts_ms - (int64_t)draw(s, 5000), request, shown->user);
    r->e.event.ranker = draw(s, 3) ? (struct text){"r-1", 3} : (struct text){"r-2", 3};
    r->e.event.n_items = n;
    for (int i = 0; i < n; i++) {
        const uint64_t item = i < shown->n ? shown->items[i] : draw_item(s);
        r->e.items[i] = (struct event_item){.item = core_id("i", item),
                                            .position = -1,
                                            .scores = r->scores[i],
                                            .n_scores = 1 + (int)draw(s, 3)};
        const struct text tasks[] = {{"click", 5}, {"like", 4}, {"hide", 4}};
        for (int t = 0; t < 3; t++) {
            const bool high = likes(shown->user, item) == (t < 2); // the last is to be hidden
            const float known = 0.4f * rng_float(&s->rng) + (high ? 0.6f : 0);
            r->scores[i][t] = (struct event_score){tasks[t], draw(s, 50) ? known : odd[draw(s, 4)]};
        }
    }
}

static void catalogue(struct stream *s, struct made *r)
{
    core_item(&r->e, s->ts_ms, draw_item(s), "A title", draw(s, 3) == 0);
    if (!r->e.event.removed) {
        draw_features(s, r->features[0]);
        r->e.items[0].features = r->features[0];
        r->e.items[0].n_features = FEATURES;
    }
}

static void next(struct stream *s, struct made *r)
{
    const uint64_t kind = draw(s, 100);
    s->ts_ms += (int64_t)draw(s, 40) + (draw(s, 500) == 0 ? 20000 : 0);
    memset(r, 0, sizeof *r);
    if (kind < 30)
        impression(s, r);
    else if (kind < 70)
        engagement(s, r);
    else if (kind < 92)
        scores(s, r);
    else
        catalogue(s, r);
}

// One slice of one event; now and then the tasks' values are others.
static void apply(struct learner *l, struct stream *s)
{
    struct made r;
    next(s, &r);
    const uint64_t number = trainer_state(&l->trainer)->slices + 1;
    struct slice_event list[] = {{s->ts_ms, &r.e.event}};
    int64_t position[] = {(int64_t)number}, time_max_ms[] = {s->ts_ms};
    struct slice slice = {.number = number,
                          .order = SLICE_CANONICAL,
                          .n_events = 1,
                          .events = list,
                          .n_partitions = 1,
                          .next = position,
                          .time_max_ms = time_max_ms,
                          .epoch = unknown_epoch(),
                          .watermark_ms = INT64_MIN};
    if (number % 1000 == 700)
        slice.values = (struct slice_values){4, {1, (float)draw(s, 3), -(float)draw(s, 3), 0.5f}};
    trainer_apply(&l->trainer, &slice);
}

static struct stream stream_of(uint64_t seed)
{
    return (struct stream){.rng = {seed, 0}, .ts_ms = TEST_START_MS};
}

static void assert_finite(const struct trainer *t)
{
    const struct tables *tables = two_tower_tables(t->rows.model);
    const struct column *list[] = {&tables->item_vector, &tables->user_vector, &tables->dense};
    for (int i = 0; i < 3; i++)
        for (size_t k = 0; k < list[i]->n * list[i]->unit / sizeof(float); k++)
            if (!isfinite(((const float *)(const void *)list[i]->base)[k]))
                fail_msg("column %s has a value that is not finite", list[i]->name);
}

// Whether the stream was what it is meant to be: nothing above is worth much otherwise.
static void assert_eventful(const struct learner *l)
{
    const struct trainer *t = &l->trainer;
    const uint64_t *slates = join_slate_counts(&t->join);
    assert_true(id_table_state(&t->rows.items)->expired > 20);
    assert_true(id_table_state(&t->rows.users)->expired > 20);
    assert_true(join_counts(&t->join)->stale > 0);
    assert_true(slates[SLATES_SPLIT] > 0 && slates[SLATES_EARLY] > 0 &&
                slates[SLATES_LATE_POSITIVE] > 0 && slates[SCORES_STALE] > 0);
    assert_true(l->steps > 10 && l->slate_steps > 20 && l->guard > 0);
    assert_true((l->replayed > 0) == (f.config.model_replay > 0));
    for (int i = OBJECTIVE_DISTILL; i < OBJECTIVES; i++)
        if (i != OBJECTIVE_PROXY)
            assert_true(l->term[i].n > 0);
}

struct swept {
    size_t passed[COLUMNS_MAX];
    unsigned char *bytes[COLUMNS_MAX];
};

// Reads up to n units of a column from where the last call ended.
static void sweep(struct columns *set, struct swept *swept, int i, size_t n)
{
    struct column *c = set->list[i];
    const size_t left = c->n_cut - swept->passed[i], now = n < left ? n : left;
    column_sweep(c, swept->passed[i], now, swept->bytes[i] + swept->passed[i] * c->unit);
    swept->passed[i] += now;
}

// Goes on learning while a sweep reads; what it has read must be the copy taken at the cut.
static void learn_beside_a_sweep(struct learner *l, struct stream *s, int events, struct rng *rng,
                                 const struct core_copy *then)
{
    struct columns *set = &l->trainer.columns;
    struct swept swept = {0};
    for (int i = 0; i < set->n; i++) {
        swept.bytes[i] = malloc(set->list[i]->n * set->list[i]->unit + 1);
        assert_non_null(swept.bytes[i]);
    }
    columns_cut(set);
    for (int i = 0; i < events; i++) {
        apply(l, s);
        // So rarely that most columns of one unit are read after some steps.
        if (i % 50 == 49)
            sweep(set, &swept, (int)rng_below(rng, (uint64_t)set->n), rng_below(rng, 200));
    }
    for (int i = 0; i < set->n; i++)
        sweep(set, &swept, i, SIZE_MAX);
    columns_cut_end(set);
    for (int i = 0; i < set->n; i++) {
        assert_int_equal(swept.passed[i], then->units[i]);
        if (memcmp(swept.bytes[i], then->bytes[i], then->units[i] * set->list[i]->unit))
            fail_msg("column %s was changed after the cut and not saved first", set->list[i]->name);
        free(swept.bytes[i]);
    }
}

static void learner_restore(struct learner *to, const struct core_copy *copy)
{
    learner_open(to);
    core_copy_restore(copy, &to->trainer.columns);
    assert_int_equal(trainer_rebuild(&to->trainer), 0);
}

static void run(const char *name, const char *const *kind, uint64_t seed)
{
    static struct learner whole, cut, again;
    struct core_copy then, end, finished;
    printf("%s, seed %" PRIu64 "\n", name, seed);
    configure(kind, seed);

    // Without a stop.
    struct stream s = stream_of(seed);
    learner_open(&whole);
    for (int i = 0; i < EVENTS; i++)
        apply(&whole, &s);
    core_copy_take(&end, &whole.trainer.columns);
    trainer_finish(&whole.trainer);
    core_copy_take(&finished, &whole.trainer.columns);
    if (kind) {
        assert_eventful(&whole);
        assert_int_equal(whole.skipped, 0);
    }
    assert_true(join_balanced(&whole.trainer.join));
    assert_finite(&whole.trainer);
    learner_close(&whole);

    // With a cut somewhere, and a sweep that reads while it goes on.
    s = stream_of(seed);
    struct rng rng = {seed, 1000000};
    learner_open(&cut);
    int at = EVENTS / 4 + (int)rng_below(&rng, EVENTS / 2);
    for (int i = 0; i < at; i++)
        apply(&cut, &s);
    const struct stream s_then = s;
    core_copy_take(&then, &cut.trainer.columns);
    learn_beside_a_sweep(&cut, &s, EVENTS - at, &rng, &then);
    core_copy_assert_equal(&end, &cut.trainer.columns, NULL, NULL);
    learner_close(&cut);

    // Restored from there, and once more a little later: what a copy lacks would be missed.
    s = s_then;
    learner_restore(&again, &then);
    core_copy_free(&then);
    for (const int stop = at + 1 + (int)rng_below(&rng, 700); at < stop; at++)
        apply(&again, &s);
    core_copy_take(&then, &again.trainer.columns);
    learner_close(&again);
    learner_restore(&again, &then);
    for (; at < EVENTS; at++)
        apply(&again, &s);
    core_copy_assert_equal(&end, &again.trainer.columns, NULL, NULL);
    trainer_finish(&again.trainer);
    core_copy_assert_equal(&finished, &again.trainer.columns, NULL, NULL);
    learner_close(&again);
    core_copy_free(&then);
    core_copy_free(&end);
    core_copy_free(&finished);
}

static void run_seeds(const char *name, const char *const *kind, uint64_t seeds)
{
    const char *given = getenv("SEED");
    for (uint64_t seed = 1; seed <= seeds && !given; seed++)
        run(name, kind, seed);
    if (given)
        run(name, kind, strtoull(given, NULL, 10));
}

static void a_recipe_with_all_on_learns_the_stream_and_nothing_else(void **state)
{
    (void)state;
    run_seeds("recipe", recipe, SEEDS);
}

static void two_towers_with_all_on_learn_the_stream_and_nothing_else(void **state)
{
    (void)state;
    run_seeds("two_tower", towers, SEEDS);
}

static void any_choice_of_objectives_learns_the_stream_and_nothing_else(void **state)
{
    (void)state;
    run_seeds("drawn", NULL, DRAWN_SEEDS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_recipe_with_all_on_learns_the_stream_and_nothing_else),
        cmocka_unit_test(two_towers_with_all_on_learn_the_stream_and_nothing_else),
        cmocka_unit_test(any_choice_of_objectives_learns_the_stream_and_nothing_else),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
