// SPDX-License-Identifier: Apache-2.0
#include "pipeline/source_builtin.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
// clang-format off
#include <stdarg.h>
#include <setjmp.h>
#include <cmocka.h>
// clang-format on

#include "model/rng.h"
#include "pipeline/decode.h"

enum { USERS = 400, ITEMS = 600, REQUESTS = 60000, SLATE = 10, MAX_PER_READ = 100 };

static const int64_t START_MS = INT64_C(1700000000000);
static const int64_t WINDOW_MS = 1800000;
static const int64_t from_begin[TOPICS] = {SOURCE_BEGIN, SOURCE_BEGIN, SOURCE_BEGIN, SOURCE_BEGIN};
static const int64_t without_stop[TOPICS] = {SOURCE_UNBOUNDED, SOURCE_UNBOUNDED, SOURCE_UNBOUNDED,
                                             SOURCE_UNBOUNDED};

static struct source_builtin_options options_of(uint64_t seed, int64_t requests)
{
    return (struct source_builtin_options){
        .seed = seed,
        .users = USERS,
        .items = ITEMS,
        .requests = requests,
        .start_ms = START_MS,
        .requests_per_s = 10,
    };
}

static struct source *open_stream(uint64_t seed, int64_t requests)
{
    const struct source_builtin_options options = options_of(seed, requests);
    struct source *s = NULL;
    char error[256] = "";
    if (source_builtin_open(&s, &options, error, sizeof error) < 0)
        fail_msg("%s", error);
    return s;
}

// FNV-1a over offsets, keys and values of up to max records of a partition.
static uint64_t digest_of(struct source *s, int p, int64_t max)
{
    struct record records[MAX_PER_READ];
    uint64_t digest = UINT64_C(0xcbf29ce484222325);
    while (max > 0) {
        const int n = s->ops->read(s, p, max < MAX_PER_READ ? (int)max : MAX_PER_READ, records);
        assert_true(n >= 0);
        if (n == 0)
            break;
        max -= n;
        for (int i = 0; i < n; i++) {
            const struct record *r = &records[i];
            const struct text parts[] = {
                {(const char *)&r->offset, sizeof r->offset},
                {r->key, (uint32_t)r->key_size},
                {r->value, (uint32_t)r->value_size},
            };
            for (int part = 0; part < 3; part++)
                for (uint32_t k = 0; k < parts[part].size; k++)
                    digest =
                        (digest ^ (uint8_t)parts[part].bytes[k]) * UINT64_C(0x00000100000001b3);
        }
    }
    return digest;
}

static uint64_t digest_of_all(uint64_t seed, int64_t requests)
{
    struct source *s = open_stream(seed, requests);
    uint64_t digest = 0;
    assert_int_equal(s->ops->start(s, from_begin, without_stop), 0);
    for (int p = 0; p < TOPICS; p++)
        digest = rng_at(digest, digest_of(s, p, INT64_MAX));
    s->ops->close(s);
    return digest;
}

// What the tests below want to know of a stream, read once through the decoder.
struct action {
    int64_t ts_ms;
    int request; // -1 without request_id, -2 when it is one that nobody was shown
    int user, item;
    bool like;
};

struct stream {
    struct source *source;
    struct decoder *decoder;
    struct event_memory memory;
    int64_t n[TOPICS], ts_ms[TOPICS]; // records, and the time of the last one
    int64_t *request_ts_ms;
    int *request_user;
    int (*shown)[SLATE];
    float (*score)[SLATE];
    int scored_unshown, rankers;
    char ranker[32];
    int ranker_since; // the request that first had the present ranker
    struct action *actions;
    int64_t hit_item_ms;
};

static struct stream stream;

static int number_of(const struct id *id, const char *prefix)
{
    char text[32] = "";
    const size_t length = strlen(prefix);
    assert_int_equal(id->kind, ID_STRING);
    assert_in_range(id->size, length + 1, sizeof text - 1);
    memcpy(text, id->bytes, id->size);
    return strncmp(text, prefix, length) == 0 ? atoi(text + length) : -2;
}

static void take_item(const struct event *e)
{
    const struct event_item *item = &e->items[0];
    const int number = number_of(&item->item, "i");
    const int genres = source_builtin_genres();
    assert_int_equal(number, e->offset);
    assert_int_equal(item->n_features, genres + 1);
    for (int genre = 0; genre < genres; genre++)
        assert_true(item->features[genre] ==
                    (genre == source_builtin_genre(stream.source, number)));
    assert_true(item->features[genres] >= 0 && item->features[genres] < 1);
    const char *title = source_builtin_title(stream.source, number);
    assert_int_equal(e->title.size, strlen(title));
    assert_memory_equal(e->title.bytes, title, strlen(title));
    if (number == ITEMS - 1)
        stream.hit_item_ms = e->ts_ms;
    else
        assert_int_equal(e->ts_ms, START_MS);
}

static void take_scores(const struct event *e)
{
    const int request = number_of(&e->request, "r");
    assert_int_equal(request, e->offset);
    for (int i = 0; i < e->n_items; i++) {
        assert_int_equal(e->items[i].n_scores, 2);
        const struct event_score *score = e->items[i].scores;
        assert_int_equal(score[0].task.size, strlen("click"));
        assert_memory_equal(score[0].task.bytes, "click", strlen("click"));
        assert_memory_equal(score[1].task.bytes, "like", strlen("like"));
        assert_true(score[0].score > 0 && score[0].score < 1);
        assert_true(score[1].score < score[0].score);
        if (i < SLATE)
            stream.score[request][i] = score[0].score;
        else
            stream.scored_unshown++;
    }
    if (strlen(stream.ranker) != e->ranker.size ||
        memcmp(stream.ranker, e->ranker.bytes, e->ranker.size) != 0) {
        snprintf(stream.ranker, sizeof stream.ranker, "%.*s", (int)e->ranker.size, e->ranker.bytes);
        stream.rankers++;
        stream.ranker_since = request;
    }
}

static void take_impression(const struct event *e)
{
    const int request = number_of(&e->request, "r");
    assert_int_equal(request, e->offset);
    assert_int_equal(e->n_items, SLATE);
    stream.request_ts_ms[request] = e->ts_ms;
    stream.request_user[request] = number_of(&e->user, "u");
    assert_in_range(stream.request_user[request], 0, USERS - 1);
    for (int i = 0; i < SLATE; i++) {
        const int item = number_of(&e->items[i].item, "i");
        assert_in_range(item, 0, ITEMS - 1);
        assert_int_equal(e->items[i].position, i);
        for (int k = 0; k < i; k++)
            assert_int_not_equal(item, stream.shown[request][k]);
        stream.shown[request][i] = item;
    }
}

static void take_engagement(const struct event *e)
{
    stream.actions[e->offset] = (struct action){
        .ts_ms = e->ts_ms,
        .request = e->request.kind == ID_ABSENT ? -1 : number_of(&e->request, "r"),
        .user = number_of(&e->user, "u"),
        .item = number_of(&e->items[0].item, "i"),
        .like = e->action.size == 4 && memcmp(e->action.bytes, "like", 4) == 0,
    };
    assert_true(stream.actions[e->offset].like ||
                (e->action.size == 5 && memcmp(e->action.bytes, "click", 5) == 0));
    assert_true(e->value == 1);
}

// Decodes every record; each must be an event of the contract, follow its predecessor in offset and
// time, and carry the key that its topic asks for.
static int read_all(void **state)
{
    static void (*const take[TOPICS])(const struct event *e) = {
        [TOPIC_ITEMS] = take_item,
        [TOPIC_SCORES] = take_scores,
        [TOPIC_IMPRESSIONS] = take_impression,
        [TOPIC_ENGAGEMENTS] = take_engagement,
    };
    int64_t first[TOPICS], end[TOPICS];
    (void)state;
    stream.source = open_stream(7, REQUESTS);
    struct source *s = stream.source;
    assert_int_equal(decoder_open(&stream.decoder), 0);
    assert_int_equal(s->ops->bounds(s, first, end), 0);
    stream.request_ts_ms = calloc(REQUESTS, sizeof *stream.request_ts_ms);
    stream.request_user = calloc(REQUESTS, sizeof *stream.request_user);
    stream.shown = calloc(REQUESTS, sizeof *stream.shown);
    stream.score = calloc(REQUESTS, sizeof *stream.score);
    stream.actions = calloc((size_t)end[TOPIC_ENGAGEMENTS], sizeof *stream.actions);

    assert_int_equal(s->ops->start(s, first, end), 0);
    for (int p = 0; p < TOPICS; p++) {
        struct record records[MAX_PER_READ];
        assert_int_equal(first[p], 0);
        assert_int_equal(s->partitions[p].topic, p);
        assert_string_equal(s->partitions[p].name, topic_names[p]);
        for (int n; (n = s->ops->read(s, p, MAX_PER_READ, records)) != 0;) {
            assert_in_range(n, 1, MAX_PER_READ);
            for (int i = 0; i < n; i++) {
                struct event e;
                event_memory_reset(&stream.memory);
                const enum reject reject =
                    decode(stream.decoder, (enum topic)p, &records[i], &stream.memory, &e);
                if (reject != REJECT_NONE)
                    fail_msg("%s %s: %.*s", topic_names[p], reject_names[reject],
                             (int)records[i].value_size, records[i].value);
                e.offset = records[i].offset;
                assert_int_equal(e.offset, stream.n[p]);
                assert_true(e.ts_ms >= stream.ts_ms[p]);
                stream.n[p]++;
                stream.ts_ms[p] = e.ts_ms;
                const struct id *key = p == TOPIC_ITEMS ? &e.items[0].item : &e.user;
                assert_int_equal(records[i].key_size, key->size);
                assert_memory_equal(records[i].key, key->bytes, key->size);
                take[p](&e);
            }
            assert_int_equal(s->ops->position(s, p), stream.n[p]);
        }
        assert_true(s->ops->at_end(s, p));
        assert_int_equal(stream.n[p], end[p]);
    }
    return 0;
}

static int forget_all(void **state)
{
    (void)state;
    free(stream.actions);
    free(stream.score);
    free(stream.shown);
    free(stream.request_user);
    free(stream.request_ts_ms);
    event_memory_close(&stream.memory);
    decoder_close(stream.decoder);
    stream.source->ops->close(stream.source);
    return 0;
}

static int position_of(const struct action *action)
{
    for (int i = 0; i < SLATE; i++)
        if (stream.shown[action->request][i] == action->item)
            return i;
    fail_msg("item %d was not shown in request %d", action->item, action->request);
    return -1;
}

// read_all has proved what is said of single records; this adds what holds between topics.
static void every_engagement_follows_a_slate_that_showed_its_item(void **state)
{
    (void)state;
    assert_int_equal(stream.n[TOPIC_ITEMS], ITEMS);
    assert_int_equal(stream.n[TOPIC_IMPRESSIONS], REQUESTS);
    assert_int_equal(stream.n[TOPIC_SCORES], REQUESTS);
    for (int64_t i = 0; i < stream.n[TOPIC_ENGAGEMENTS]; i++) {
        const struct action *action = &stream.actions[i];
        if (action->request < 0)
            continue;
        position_of(action);
        assert_int_equal(action->user, stream.request_user[action->request]);
        assert_true(action->ts_ms >= stream.request_ts_ms[action->request] + 2000);
    }
}

static void click_rates_fall_with_the_position_as_the_examination_does(void **state)
{
    static const double examination[SLATE] = {1.000, 0.616, 0.463, 0.379, 0.324,
                                              0.285, 0.256, 0.233, 0.215, 0.200};
    int clicks[SLATE] = {0};
    (void)state;
    for (int64_t i = 0; i < stream.n[TOPIC_ENGAGEMENTS]; i++)
        if (stream.actions[i].request >= 0 && !stream.actions[i].like)
            clicks[position_of(&stream.actions[i])]++;
    for (int i = 0; i < SLATE; i++) {
        const double ratio = (double)clicks[i] / clicks[0];
        if (!(ratio > 0.92 * examination[i] && ratio < 1.08 * examination[i]))
            fail_msg("position %d: click rate is %.3f of the first, examination %.3f", i, ratio,
                     examination[i]);
    }
}

static void assert_share(const char *what, double share, double low, double high)
{
    if (!(share >= low && share <= high))
        fail_msg("%s: %.4f is not in %.4f..%.4f", what, share, low, high);
}

static void late_repeated_anonymous_and_orphaned_engagements_come_in_their_shares(void **state)
{
    double clicks = 0, likes = 0, repeated = 0, anonymous = 0, orphans = 0, late = 0, known = 0;
    (void)state;
    for (int64_t i = 0; i < stream.n[TOPIC_ENGAGEMENTS]; i++) {
        const struct action *action = &stream.actions[i];
        orphans += action->request == -2;
        if (action->like)
            likes++;
        if (action->like || action->request == -2)
            continue;
        clicks++;
        anonymous += action->request == -1;
        // The very same record, next to the first one unless another shares its millisecond.
        for (int64_t k = i - 1; k >= 0 && stream.actions[k].ts_ms == action->ts_ms; k--)
            if (stream.actions[k].request == action->request &&
                stream.actions[k].user == action->user && stream.actions[k].item == action->item &&
                !stream.actions[k].like) {
                repeated++;
                break;
            }
        if (action->request >= 0) {
            known++;
            late += action->ts_ms > stream.request_ts_ms[action->request] + WINDOW_MS;
        }
    }
    assert_share("clicks per request", clicks / REQUESTS, 0.6, 1.2);
    assert_share("likes per click", likes / clicks, 0.1, 0.3);
    assert_share("repeated clicks", repeated / clicks, 0.015, 0.025);
    assert_share("clicks without request", anonymous / clicks, 0.025, 0.035);
    assert_share("clicks after half an hour", late / known, 0.007, 0.015);
    assert_share("orphans per request", orphans / REQUESTS, 0.004, 0.006);
}

// How often a ranker puts a clicked film above another one of its slate. The hit is left out: it is
// easy to rank and comes in the second ranker's time only, so that with it any ranker improves.
// Equally noisy rankers differ by 0.002 here, these two by 0.022.
static void the_ranker_changes_once_and_gets_better(void **state)
{
    double above[2] = {0}, pairs[2] = {0};
    const int change = REQUESTS / 2 + REQUESTS / 6, hit = ITEMS - 1;
    (void)state;
    assert_int_equal(stream.rankers, 2);
    assert_string_equal(stream.ranker, "demo-2");
    assert_int_equal(stream.ranker_since, change);
    assert_int_equal(stream.scored_unshown, 2 * REQUESTS);
    for (int64_t i = 0; i < stream.n[TOPIC_ENGAGEMENTS]; i++) {
        const struct action *action = &stream.actions[i];
        if (action->request < 0 || action->like || action->item == hit)
            continue;
        const int ranker = action->request >= change, clicked = position_of(action);
        const float *score = stream.score[action->request];
        for (int k = 0; k < SLATE; k++) {
            if (k == clicked || stream.shown[action->request][k] == hit)
                continue;
            pairs[ranker]++;
            above[ranker] += score[clicked] > score[k] ? 1 : score[clicked] == score[k] ? 0.5 : 0;
        }
    }
    const double first = above[0] / pairs[0], second = above[1] / pairs[1];
    assert_share("pairs that demo-1 orders rightly", first, 0.6, 0.9);
    assert_share("what demo-2 adds", second - first, 0.01, 0.2);
}

static void the_hit_appears_half_way_and_rises(void **state)
{
    const struct source_builtin_hit hit = source_builtin_hit(stream.source);
    int shown[2] = {0}, clicked = 0;
    (void)state;
    assert_int_equal(hit.item, ITEMS - 1);
    assert_int_equal(hit.genre, source_builtin_genre(stream.source, hit.item));
    assert_string_equal(hit.title, source_builtin_title(stream.source, hit.item));
    assert_int_equal(hit.release_ms, stream.hit_item_ms);
    assert_int_equal(hit.release_ms, stream.request_ts_ms[REQUESTS / 2]);
    for (int request = 0; request < REQUESTS; request++)
        for (int i = 0; i < SLATE; i++)
            if (stream.shown[request][i] == hit.item) {
                assert_true(request > REQUESTS / 2);
                shown[request >= REQUESTS * 3 / 5]++;
            }
    for (int64_t i = 0; i < stream.n[TOPIC_ENGAGEMENTS]; i++)
        clicked += stream.actions[i].item == hit.item && !stream.actions[i].like;
    // The push lasts a tenth of the stream and grows, so it shows half of what a tenth shows after.
    assert_true(shown[0] > 100);
    assert_true(shown[1] > 6 * shown[0]);
    // Three quarters of its places go to lovers of the genre (mean relevance 0.65), one to others
    // (0.05): 0.50, of which the mean examination of 0.397 and 2 % of repetitions leave 0.20.
    assert_share("clicks on the hit", (double)clicked / (shown[0] + shown[1]), 0.17, 0.23);
}

// Recall@30 of 600 on the second half, each click predicted before it is counted: popularity
// against what followed the user's last click and came before it (item-to-item counts).
static void history_tells_more_than_popularity(void **state)
{
    float *pair = calloc((size_t)ITEMS * ITEMS, sizeof *pair),
          *count = calloc(ITEMS, sizeof *count);
    float *score = calloc(ITEMS, sizeof *score);
    enum { LAST = 3 };
    int(*last)[LAST] = calloc(USERS, sizeof *last);
    double predicted = 0, popular_found = 0, history_found = 0;
    (void)state;
    memset(last, -1, USERS * sizeof *last);
    for (int64_t i = 0; i < stream.n[TOPIC_ENGAGEMENTS]; i++) {
        const struct action *action = &stream.actions[i];
        if (action->like)
            continue;
        int *mine = last[action->user];
        if (i > stream.n[TOPIC_ENGAGEMENTS] / 2 && i % 8 == 0) {
            int popular_above = 0, history_above = 0;
            for (int k = 0; k < ITEMS; k++) {
                score[k] = 1e-6f * count[k];
                for (int h = 0; h < LAST && mine[h] >= 0; h++)
                    score[k] += pair[mine[h] * ITEMS + k] / (count[mine[h]] + 5);
            }
            for (int k = 0; k < ITEMS; k++) {
                popular_above += count[k] > count[action->item];
                history_above += score[k] > score[action->item];
            }
            predicted++;
            popular_found += popular_above < 30;
            history_found += history_above < 30;
        }
        for (int h = 0; h < LAST && mine[h] >= 0; h++) {
            pair[mine[h] * ITEMS + action->item]++;
            pair[action->item * ITEMS + mine[h]]++;
        }
        count[action->item]++;
        memmove(mine + 1, mine, (LAST - 1) * sizeof *mine);
        mine[0] = action->item;
    }
    assert_share("recall@30 of popularity", popular_found / predicted, 0.15, 0.35);
    assert_share("recall@30 of history", history_found / predicted, 0.45, 0.9);
    free(last);
    free(score);
    free(count);
    free(pair);
}

static void offsets_for_a_time_are_those_a_scan_finds(void **state)
{
    struct source *s = stream.source;
    const int64_t hit_ms = source_builtin_hit(s).release_ms;
    const int64_t last_ms = stream.actions[stream.n[TOPIC_ENGAGEMENTS] - 1].ts_ms;
    const int64_t times[] = {0,           START_MS,     START_MS + 1,       START_MS + 12345,
                             hit_ms,      hit_ms + 1,   START_MS + 5999000, last_ms,
                             last_ms + 1, INT64_MAX / 4};
    (void)state;
    for (size_t t = 0; t < sizeof times / sizeof times[0]; t++) {
        int64_t offsets[TOPICS], request = 0, action = 0;
        assert_int_equal(s->ops->offsets_for_time(s, times[t], offsets), 0);
        while (request < REQUESTS && stream.request_ts_ms[request] < times[t])
            request++;
        while (action < stream.n[TOPIC_ENGAGEMENTS] && stream.actions[action].ts_ms < times[t])
            action++;
        assert_int_equal(offsets[TOPIC_IMPRESSIONS], request);
        assert_int_equal(offsets[TOPIC_SCORES], request);
        assert_int_equal(offsets[TOPIC_ENGAGEMENTS], action);
        assert_int_equal(offsets[TOPIC_ITEMS], times[t] <= START_MS ? 0
                                               : times[t] <= hit_ms ? ITEMS - 1
                                                                    : ITEMS);
    }
}

static void a_start_anywhere_continues_the_same_stream(void **state)
{
    struct source *whole = open_stream(3, 4000), *resumed = open_stream(3, 4000);
    struct rng rng = {17, 0};
    int64_t first[TOPICS], end[TOPICS];
    (void)state;
    assert_int_equal(whole->ops->bounds(whole, first, end), 0);
    for (int round = 0; round < 12; round++) {
        int64_t next[TOPICS];
        for (int p = 0; p < TOPICS; p++)
            next[p] = (int64_t)rng_below(&rng, (uint64_t)end[p] + 1);
        assert_int_equal(resumed->ops->start(resumed, next, without_stop), 0);
        for (int p = 0; p < TOPICS; p++) {
            assert_int_equal(whole->ops->start(whole, from_begin, without_stop), 0);
            digest_of(whole, p, next[p]);
            // In small pieces from one, in large ones from the other.
            for (int piece = 0; piece < 5; piece++) {
                uint64_t expected = digest_of(whole, p, 7);
                if (digest_of(resumed, p, 7) != expected)
                    fail_msg("round %d: %s from offset %d differ", round, topic_names[p],
                             (int)next[p]);
            }
            assert_true(digest_of(whole, p, INT64_MAX) == digest_of(resumed, p, INT64_MAX));
            assert_int_equal(resumed->ops->position(resumed, p), end[p]);
            assert_true(resumed->ops->at_end(resumed, p));
        }
    }
    resumed->ops->close(resumed);
    whole->ops->close(whole);
}

static void nothing_is_delivered_at_or_after_the_stop(void **state)
{
    struct source *s = open_stream(3, 1000);
    const int64_t stop[TOPICS] = {10, 20, 30, 40};
    struct record records[MAX_PER_READ];
    (void)state;
    assert_int_equal(s->ops->start(s, from_begin, stop), 0);
    for (int p = 0; p < TOPICS; p++) {
        assert_false(s->ops->at_end(s, p));
        assert_int_equal(s->ops->wait(s, 0), 0);
        assert_int_equal(s->ops->read(s, p, MAX_PER_READ, records), stop[p]);
        assert_true(s->ops->at_end(s, p));
        assert_int_equal(s->ops->position(s, p), stop[p]);
        assert_int_equal(s->ops->read(s, p, MAX_PER_READ, records), 0);
    }
    s->ops->close(s);
}

// The constant was taken from a release build: optimisation, sanitizers, compiler and machine must
// not show in the bytes. Whoever changes the stream on purpose changes it with the stream.
static void the_bytes_are_a_function_of_the_options_alone(void **state)
{
    const uint64_t digest = digest_of_all(1, 5000);
    (void)state;
    assert_true(digest == digest_of_all(1, 5000));
    assert_true(digest != digest_of_all(2, 5000));
    if (digest != UINT64_C(0x2e26559306b759ef))
        fail_msg("the digest is 0x%016" PRIx64, digest);
}

static void a_stream_without_end_releases_its_hit_after_an_hour(void **state)
{
    struct source *s = open_stream(1, 0);
    int64_t first[TOPICS], end[TOPICS];
    struct record record;
    (void)state;
    assert_int_equal(s->ops->bounds(s, first, end), 0);
    assert_int_equal(end[TOPIC_ITEMS], ITEMS);
    for (int p = TOPIC_SCORES; p < TOPICS; p++)
        assert_int_equal(end[p], INT64_MAX / 2);
    const int64_t release_ms = source_builtin_hit(s).release_ms;
    assert_in_range(release_ms, START_MS + 3600000, START_MS + 3600100);
    // A request far away costs no more than the first one.
    const int64_t next[TOPICS] = {0, INT64_C(1) << 40, INT64_C(1) << 41, 0};
    assert_int_equal(s->ops->start(s, next, without_stop), 0);
    for (int p = 0; p < TOPICS; p++) {
        assert_int_equal(s->ops->read(s, p, 1, &record), 1);
        assert_int_equal(record.offset, next[p]);
        assert_false(s->ops->at_end(s, p));
    }
    s->ops->close(s);
}

static int compare_titles(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static void no_two_films_share_a_title(void **state)
{
    static const int sizes[] = {240, 5000, 50000};
    (void)state;
    for (size_t k = 0; k < sizeof sizes / sizeof sizes[0]; k++) {
        struct source_builtin_options options = options_of(k, 100);
        struct source *s = NULL;
        char error[256];
        options.items = sizes[k];
        assert_int_equal(source_builtin_open(&s, &options, error, sizeof error), 0);
        const char **titles = calloc((size_t)sizes[k], sizeof *titles);
        for (int i = 0; i < sizes[k]; i++) {
            titles[i] = source_builtin_title(s, i);
            assert_in_range(strlen(titles[i]), 5, 62);
        }
        qsort(titles, (size_t)sizes[k], sizeof *titles, compare_titles);
        for (int i = 1; i < sizes[k]; i++)
            if (strcmp(titles[i - 1], titles[i]) == 0)
                fail_msg("of %d films two are called %s", sizes[k], titles[i]);
        free(titles);
        s->ops->close(s);
    }
}

static void the_best_films_of_a_genre_belong_to_it(void **state)
{
    const struct source *s = stream.source;
    const struct source_builtin_hit hit = source_builtin_hit(s);
    int best[ITEMS], few[3], films = 0;
    (void)state;
    for (int genre = 0; genre < source_builtin_genres(); genre++) {
        const int n = source_builtin_best(s, genre, ITEMS, best);
        films += n;
        assert_int_equal(source_builtin_count_genre(s, genre, n, best), n);
        assert_int_equal(source_builtin_count_genre(s, (genre + 1) % 12, n, best), 0);
        assert_int_equal(source_builtin_best(s, genre, 3, few), 3);
        assert_memory_equal(few, best, sizeof few);
        assert_true(strlen(source_builtin_genre_name(genre)) > 0);
        for (int i = 0; i < n; i++)
            assert_int_not_equal(best[i], hit.item);
    }
    assert_int_equal(films, ITEMS - 1);
}

static void only_ids_of_the_stream_have_a_number(void **state)
{
    const struct source *s = stream.source;
    static const char *const strangers[] = {"",   "i",   "i600", "i-1",        "i01",
                                            "u5", "i5x", "5",    "i5000000000"};
    (void)state;
    assert_int_equal(source_builtin_item_of(s, "i0", 2), 0);
    assert_int_equal(source_builtin_item_of(s, "i599", 4), 599);
    assert_int_equal(source_builtin_item_of(s, "i5999", 3), 59); // reads no further than size
    for (size_t i = 0; i < sizeof strangers / sizeof strangers[0]; i++)
        assert_int_equal(source_builtin_item_of(s, strangers[i], strlen(strangers[i])), -1);
}

static void options_out_of_range_are_refused_with_a_sentence(void **state)
{
    struct source_builtin_options wrong[5];
    static const char *const names[] = {"items", "users", "requests", "second", "1970"};
    (void)state;
    for (int i = 0; i < 5; i++)
        wrong[i] = options_of(1, 100);
    wrong[0].items = 100;
    wrong[1].users = 0;
    wrong[2].requests = -1;
    wrong[3].requests_per_s = 0;
    wrong[4].start_ms = -1;
    for (int i = 0; i < 5; i++) {
        struct source *s = NULL;
        char error[256] = "";
        assert_int_equal(source_builtin_open(&s, &wrong[i], error, sizeof error), -EINVAL);
        assert_non_null(strstr(error, names[i]));
        assert_null(s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_engagement_follows_a_slate_that_showed_its_item),
        cmocka_unit_test(click_rates_fall_with_the_position_as_the_examination_does),
        cmocka_unit_test(late_repeated_anonymous_and_orphaned_engagements_come_in_their_shares),
        cmocka_unit_test(the_ranker_changes_once_and_gets_better),
        cmocka_unit_test(the_hit_appears_half_way_and_rises),
        cmocka_unit_test(history_tells_more_than_popularity),
        cmocka_unit_test(offsets_for_a_time_are_those_a_scan_finds),
        cmocka_unit_test(a_start_anywhere_continues_the_same_stream),
        cmocka_unit_test(nothing_is_delivered_at_or_after_the_stop),
        cmocka_unit_test(the_bytes_are_a_function_of_the_options_alone),
        cmocka_unit_test(a_stream_without_end_releases_its_hit_after_an_hour),
        cmocka_unit_test(no_two_films_share_a_title),
        cmocka_unit_test(the_best_films_of_a_genre_belong_to_it),
        cmocka_unit_test(only_ids_of_the_stream_have_a_number),
        cmocka_unit_test(options_out_of_range_are_refused_with_a_sentence),
    };
    return cmocka_run_group_tests(tests, read_all, forget_all);
}
