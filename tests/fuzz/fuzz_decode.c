// SPDX-License-Identifier: Apache-2.0
//
// Fuzzes decode. The first byte of an input chooses the topic and whether the rest is the key of a
// tombstone; the rest is the record.
//
// A decoded event must keep the promises of pipeline/event.h, and the same bytes must give the same
// result twice.
#include "pipeline/decode.h"

#include <math.h>

#include "tests/fuzz/fuzz.h"

static void require_id(const struct id *id, int may_be_absent)
{
    char storage[8];
    uint64_t number = 0;

    if (id->kind == ID_ABSENT) {
        require(may_be_absent, "required ids are there");
        return;
    }
    require(id->size >= 1 && id->size <= ID_BYTES_MAX, "ids have 1 to 256 bytes");
    if (id->kind == ID_STRING) {
        const struct id again = id_of_text(id->bytes, id->size);
        require(again.hash == id->hash && again.check == id->check, "id_of_text agrees");
        return;
    }
    require(id->size == sizeof number, "integer ids have 8 bytes");
    for (int i = 0; i < 8; i++)
        number |= (uint64_t)(uint8_t)id->bytes[i] << 8 * i;
    require((id->kind == ID_SIGNED) <= (number >> 63), "signed ids are below zero");
    if (id->kind == ID_UNSIGNED) {
        const struct id again = id_of_unsigned(number, storage);
        require(again.hash == id->hash && again.check == id->check, "id_of_unsigned agrees");
    }
}

static void require_floats(int32_t n, const float *floats)
{
    require(n >= 0 && n <= 4096 && (n == 0) == !floats, "feature lists are within their limits");
    for (int32_t i = 0; i < n; i++)
        require(isfinite(floats[i]), "features are finite");
}

static void require_event(const struct event *e)
{
    require(e->ts_ms >= 946684800000 && e->ts_ms < 4133980800000, "the time is in its range");
    require(e->n_items >= 1 && e->n_items <= 4096, "there are items");
    require(isfinite(e->value), "the value is finite");
    require_id(&e->request, e->topic == TOPIC_ITEMS || e->topic == TOPIC_ENGAGEMENTS);
    require_id(&e->user, e->topic == TOPIC_ITEMS);
    require_floats(e->n_features, e->features);
    for (int32_t i = 0; i < e->n_items; i++) {
        const struct event_item *item = &e->items[i];
        require_id(&item->item, 0);
        require(item->position >= -1, "positions are 0 or more");
        require(item->propensity >= 0 && item->propensity <= 1, "propensities are probabilities");
        require_floats(item->n_features, item->features);
        for (int32_t n = 0; n < item->n_scores; n++)
            require(isfinite(item->scores[n].score) && item->scores[n].task.size > 0,
                    "scores are finite and named");
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct decoder *decoder;
    static struct event_memory memory;
    struct event event;

    if (size == 0)
        return 0;
    if (!decoder && decoder_open(&decoder) < 0)
        abort();
    // A copy of exactly this size: a byte read past it is seen by the sanitizer.
    char *bytes = malloc(size - 1);
    if (!bytes)
        abort();
    memcpy(bytes, data + 1, size - 1);
    const enum topic topic = (enum topic)(data[0] % TOPICS);
    struct record record = {.offset = 1, .broker_ts_ms = 1700000000000};
    if (data[0] & 0x80) {
        record.tombstone = true;
        record.key = bytes;
        record.key_size = size - 1;
    } else {
        record.value = bytes;
        record.value_size = size - 1;
    }

    const enum reject first = decode(decoder, topic, &record, &memory, &event);
    if (first == REJECT_NONE)
        require_event(&event);
    else
        require(decoder_message(decoder)[0] != '\0', "a rejection has a message");
    require(decode(decoder, topic, &record, &memory, &event) == first, "decode is repeatable");
    event_memory_reset(&memory);
    free(bytes);
    return 0;
}
