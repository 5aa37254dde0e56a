// SPDX-License-Identifier: Apache-2.0
//
// CPU time per event to decode each topic, over a synthetic set of records of the usual shapes.
//
//     bench_decode [--json] [SECONDS]     how long each line is measured, default 0.5
#include "pipeline/decode.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/bench/figure.h"
#include "tests/bench/measure.h"

enum { RECORDS = 1000, SLICE = 1000 };

struct lines {
    const char *what;
    enum topic topic;
    int items; // in the list
    char *text[RECORDS];
    size_t size[RECORDS];
};

static uint64_t next(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 33;
}

static void lines_fill(struct lines *l, uint64_t seed)
{
    for (int i = 0; i < RECORDS; i++) {
        FILE *out = open_memstream(&l->text[i], &l->size[i]);
        assert(out);
        const uint64_t user = next(&seed) % 6040, item = next(&seed) % 3533;
        const uint64_t ts = 1700000000000 + next(&seed) % 1000000000;
        switch (l->topic) {
        case TOPIC_ENGAGEMENTS:
            fprintf(out,
                    "{\"request_id\":\"req-%07d\",\"user_id\":\"u%" PRIu64
                    "\",\"item_id\":\"i%" PRIu64
                    "\",\"action\":\"click\",\"value\":1.0,\"ts\":%" PRIu64
                    ",\"client\":\"android 14.2\"}",
                    i, user, item, ts);
            break;
        case TOPIC_ITEMS:
            fprintf(out,
                    "{\"item_id\":\"i%" PRIu64 "\",\"ts\":%" PRIu64
                    ",\"title\":\"Caf\\u00e9 number %d\",\"features\":[",
                    item, ts, i);
            for (int f = 0; f < 19; f++)
                fprintf(out, "%s%.4f", f ? "," : "", (double)(next(&seed) % 10000) / 10000);
            fprintf(out, "]}");
            break;
        default:
            fprintf(out,
                    "{\"request_id\":\"req-%07d\",\"user_id\":\"u%" PRIu64 "\",\"ts\":%" PRIu64
                    ",\"items\":[",
                    i, user, ts);
            for (int n = 0; n < l->items; n++) {
                fprintf(out, "%s{\"item_id\":\"i%" PRIu64 "\",", n ? "," : "", next(&seed) % 3533);
                if (l->topic == TOPIC_SCORES)
                    fprintf(out, "\"scores\":{\"click\":%.4f}}",
                            (double)(next(&seed) % 10000) / 10000);
                else
                    fprintf(out, "\"position\":%d,\"propensity\":0.%03" PRIu64 "}", n,
                            1 + next(&seed) % 999);
            }
            fprintf(out, "]}");
        }
        fclose(out);
    }
}

int main(int argc, char **argv)
{
    const bool json = figures_as_json(&argc, argv);
    const double seconds = argc > 1 ? atof(argv[1]) : 0.5;
    struct lines sets[] = {
        {.what = "engagements", .topic = TOPIC_ENGAGEMENTS},
        {.what = "impressions of 1", .topic = TOPIC_IMPRESSIONS, .items = 1},
        {.what = "impressions of 10", .topic = TOPIC_IMPRESSIONS, .items = 10},
        {.what = "ranker_scores of 10", .topic = TOPIC_SCORES, .items = 10},
        {.what = "items, 19 features", .topic = TOPIC_ITEMS},
    };
    struct decoder *decoder;
    struct event_memory memory = {0};
    struct event event;

    if (decoder_open(&decoder) < 0)
        return 1;
    if (!json)
        printf("%-20s %8s %8s %10s %8s\n", "topic", "bytes", "ns", "ns/item", "MB/s");
    for (size_t s = 0; s < sizeof sets / sizeof *sets; s++) {
        struct lines *l = &sets[s];
        lines_fill(l, 42 + s);
        double bytes = 0;
        for (int i = 0; i < RECORDS; i++)
            bytes += (double)l->size[i] / RECORDS;

        int64_t n = 0;
        const double start = thread_cpu_s();
        double spent = 0;
        for (; spent < seconds; spent = thread_cpu_s() - start) {
            event_memory_reset(&memory); // a slice has been applied
            for (int i = 0; i < SLICE; i++, n++) {
                const struct record record = {
                    .offset = n,
                    .broker_ts_ms = -1,
                    .leader_epoch = -1,
                    .value = l->text[i],
                    .value_size = l->size[i],
                };
                if (decode(decoder, l->topic, &record, &memory, &event) != REJECT_NONE) {
                    fprintf(stderr, "%s\n%s\n", l->text[i], decoder_message(decoder));
                    return 1;
                }
            }
        }
        const double ns = 1e9 * spent / (double)n;
        char stage[64], extra[64];
        snprintf(stage, sizeof stage, "decode, %s", l->what);
        snprintf(extra, sizeof extra, "\"bytes\":%.0f,\"items\":%d", bytes, event.n_items);
        if (json)
            figure_print(true, &(struct figure){.stage = stage,
                                                .unit = "ns per record",
                                                .ours = ns,
                                                .extra = extra,
                                                .detail = true});
        else
            printf("%-20s %8.0f %8.0f %10.0f %8.0f\n", l->what, bytes, ns, ns / event.n_items,
                   1e3 * bytes / ns);
        for (int i = 0; i < RECORDS; i++)
            free(l->text[i]);
    }
    event_memory_close(&memory);
    decoder_close(decoder);
    return 0;
}
