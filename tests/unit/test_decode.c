// SPDX-License-Identifier: Apache-2.0
#include "pipeline/decode.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
// clang-format off
#include <stdarg.h>
#include <setjmp.h>
#include <cmocka.h>
// clang-format on

#define TS "1700000000000"

static struct fixture {
    struct decoder *decoder;
    struct event_memory memory;
    struct event event;
} f;

// The value lies in a block of exactly its size: reading one byte past it is seen by ASan.
static enum reject decode_bytes(enum topic topic, const char *bytes, size_t size)
{
    char *exact = malloc(size ? size : 1);
    assert_non_null(exact);
    memcpy(exact, bytes, size);
    const struct record record = {
        .offset = 7, .broker_ts_ms = -1, .value = exact, .value_size = size};
    const enum reject r = decode(f.decoder, topic, &record, &f.memory, &f.event);
    free(exact);
    return r;
}

static enum reject decode_text(enum topic topic, const char *text)
{
    return decode_bytes(topic, text, strlen(text));
}

static void assert_rejected(enum topic topic, const char *text, enum reject expected)
{
    const enum reject r = decode_text(topic, text);
    if (r != expected)
        fail_msg("%.200s\nis %s, expected %s (%s)", text, reject_names[r], reject_names[expected],
                 decoder_message(f.decoder));
    assert_int_not_equal(strlen(decoder_message(f.decoder)), 0);
}

static void assert_decoded(enum topic topic, const char *text)
{
    const enum reject r = decode_text(topic, text);
    if (r != REJECT_NONE)
        fail_msg("%.200s\nis %s (%s)", text, reject_names[r], decoder_message(f.decoder));
}

static void assert_id_text(const struct id *id, const char *text)
{
    assert_int_equal(id->kind, ID_STRING);
    assert_int_equal(id->size, strlen(text));
    assert_memory_equal(id->bytes, text, id->size);
    const struct id again = id_of_text(text, strlen(text));
    assert_int_equal(id->hash, again.hash);
    assert_int_equal(id->check, again.check);
}

static void assert_text(const struct text *text, const char *expected)
{
    assert_non_null(text->bytes);
    assert_int_equal(text->size, strlen(expected));
    assert_memory_equal(text->bytes, expected, text->size);
}

static int setup(void **state)
{
    (void)state;
    memset(&f, 0, sizeof f);
    return decoder_open(&f.decoder);
}

static int teardown(void **state)
{
    (void)state;
    decoder_close(f.decoder);
    event_memory_close(&f.memory);
    return 0;
}

static void every_topic_and_reason_has_a_name(void **state)
{
    (void)state;
    for (int i = 0; i < TOPICS; i++)
        assert_non_null(topic_names[i]);
    for (int i = 0; i < REJECTS; i++)
        assert_non_null(reject_names[i]);
}

static void an_impression_list_is_decoded_in_full(void **state)
{
    (void)state;
    assert_decoded(TOPIC_IMPRESSIONS,
                   "{\"request_id\":\"r1\",\"user_id\":\"u1\",\"ts\":" TS
                   ",\"items\":[{\"item_id\":\"i1\",\"position\":0,\"propensity\":0.25,"
                   "\"features\":[1,-2.5,1e2]},{\"item_id\":\"i2\"}],"
                   "\"surface\":\"home\",\"user_features\":[0.5]}");
    assert_int_equal(f.event.topic, TOPIC_IMPRESSIONS);
    assert_int_equal(f.event.offset, 7);
    assert_int_equal(f.event.ts_ms, 1700000000000);
    assert_id_text(&f.event.request, "r1");
    assert_id_text(&f.event.user, "u1");
    assert_text(&f.event.surface, "home");
    assert_int_equal(f.event.n_features, 1);
    assert_true(f.event.features[0] == 0.5f);
    assert_int_equal(f.event.n_items, 2);
    const struct event_item *item = f.event.items;
    assert_id_text(&item[0].item, "i1");
    assert_int_equal(item[0].position, 0);
    assert_true(item[0].propensity == 0.25f);
    assert_int_equal(item[0].n_features, 3);
    assert_true(item[0].features[0] == 1 && item[0].features[1] == -2.5f &&
                item[0].features[2] == 100);
    assert_id_text(&item[1].item, "i2");
    assert_int_equal(item[1].position, -1);
    assert_true(item[1].propensity == 0);
    assert_int_equal(item[1].n_features, 0);
    assert_null(item[1].features);
    assert_null(f.event.action.bytes);
    assert_null(f.event.title.bytes);
}

static void an_impression_of_one_item_needs_no_list(void **state)
{
    (void)state;
    assert_decoded(TOPIC_IMPRESSIONS,
                   "{\"position\":3,\"item_id\":9,\"features\":[2],\"propensity\":1,"
                   "\"request_id\":1,\"user_id\":-2,\"ts\":" TS "}");
    assert_int_equal(f.event.n_items, 1);
    assert_int_equal(f.event.items[0].item.kind, ID_UNSIGNED);
    assert_int_equal(f.event.items[0].position, 3);
    assert_true(f.event.items[0].propensity == 1);
    assert_int_equal(f.event.items[0].n_features, 1);
    assert_int_equal(f.event.user.kind, ID_SIGNED);
    assert_int_equal(f.event.n_features, 0);
}

static void an_engagement_has_value_one_and_no_request_unless_it_says_so(void **state)
{
    (void)state;
    assert_decoded(TOPIC_ENGAGEMENTS,
                   "{\"user_id\":\"u\",\"item_id\":\"i\",\"action\":\"click\",\"ts\":" TS "}");
    assert_true(f.event.value == 1);
    assert_false(f.event.valued);
    assert_int_equal(f.event.request.kind, ID_ABSENT);
    assert_int_equal(f.event.n_items, 1);
    assert_id_text(&f.event.items[0].item, "i");
    assert_text(&f.event.action, "click");
    assert_decoded(TOPIC_ENGAGEMENTS, "{\"request_id\":\"r\",\"user_id\":\"u\",\"item_id\":\"i\","
                                      "\"action\":\"rate\",\"value\":-4.5,\"ts\":" TS "}");
    assert_true(f.event.value == -4.5f);
    assert_true(f.event.valued);
    assert_id_text(&f.event.request, "r");
}

static void scores_are_kept_by_task(void **state)
{
    (void)state;
    assert_decoded(TOPIC_SCORES,
                   "{\"request_id\":\"r\",\"user_id\":\"u\",\"ts\":" TS ",\"ranker\":\"v12\","
                   "\"items\":[{\"item_id\":\"i\",\"scores\":{\"click\":0.5,\"like\":-2,"
                   "\"click\":0.25}}]}");
    assert_text(&f.event.ranker, "v12");
    assert_int_equal(f.event.n_items, 1);
    assert_int_equal(f.event.items[0].n_scores, 2);
    assert_text(&f.event.items[0].scores[0].task, "click");
    assert_true(f.event.items[0].scores[0].score == 0.25f);
    assert_text(&f.event.items[0].scores[1].task, "like");
    assert_true(f.event.items[0].scores[1].score == -2);
}

static void an_item_has_title_and_features(void **state)
{
    (void)state;
    assert_decoded(TOPIC_ITEMS, "{\"item_id\":\"i\",\"ts\":" TS
                                ",\"title\":\"Toy Story (1995)\",\"features\":[0.0,0.75]}");
    assert_text(&f.event.title, "Toy Story (1995)");
    assert_int_equal(f.event.n_items, 1);
    assert_int_equal(f.event.items[0].n_features, 2);
    assert_int_equal(f.event.removed, 0);
}

static enum reject decode_tombstone(enum topic topic, const char *key, int64_t broker_ts_ms)
{
    const struct record record = {.offset = 7,
                                  .broker_ts_ms = broker_ts_ms,
                                  .key = key,
                                  .key_size = key ? strlen(key) : 0,
                                  .tombstone = true};
    return decode(f.decoder, topic, &record, &f.memory, &f.event);
}

static void a_tombstone_removes_the_item_its_key_names(void **state)
{
    char storage[8];
    const struct id seven = id_of_unsigned(7, storage);
    (void)state;

    assert_int_equal(decode_tombstone(TOPIC_ITEMS, "i1", 1700000000000), REJECT_NONE);
    assert_int_equal(f.event.removed, 1);
    assert_int_equal(f.event.ts_ms, 1700000000000);
    assert_int_equal(f.event.n_items, 1);
    assert_id_text(&f.event.items[0].item, "i1");
    assert_int_equal(decode_tombstone(TOPIC_ITEMS, "\"i1\"", 1700000000000), REJECT_NONE);
    assert_id_text(&f.event.items[0].item, "i1");
    assert_int_equal(decode_tombstone(TOPIC_ITEMS, "7", 1700000000000), REJECT_NONE);
    assert_int_equal(f.event.items[0].item.hash, seven.hash);
    assert_int_equal(decode_tombstone(TOPIC_ITEMS, "\"7\"", 1700000000000), REJECT_NONE);
    assert_id_text(&f.event.items[0].item, "7");
    // Neither an integer nor a string in JSON: the text itself.
    static const char *const bare[] = {"7.0", "18446744073709551616", "\"open", "[1]", "7 8"};
    for (size_t i = 0; i < sizeof bare / sizeof *bare; i++) {
        assert_int_equal(decode_tombstone(TOPIC_ITEMS, bare[i], 1700000000000), REJECT_NONE);
        assert_id_text(&f.event.items[0].item, bare[i]);
    }
}

static void a_tombstone_without_key_or_time_or_elsewhere_is_rejected(void **state)
{
    (void)state;
    assert_int_equal(decode_tombstone(TOPIC_ITEMS, NULL, 1700000000000), REJECT_MISSING_FIELD);
    assert_int_equal(decode_tombstone(TOPIC_ITEMS, "", 1700000000000), REJECT_MISSING_FIELD);
    assert_int_equal(decode_tombstone(TOPIC_ITEMS, "\"\"", 1700000000000), REJECT_BAD_ID);
    assert_int_equal(decode_tombstone(TOPIC_ITEMS, "a\xff", 1700000000000), REJECT_NOT_UTF8);
    assert_int_equal(decode_tombstone(TOPIC_ITEMS, "i", -1), REJECT_BAD_TIME);
    assert_int_equal(decode_tombstone(TOPIC_ITEMS, "i", 1700000000), REJECT_BAD_TIME);
    assert_int_equal(decode_tombstone(TOPIC_SCORES, "i", 1700000000000), REJECT_TOMBSTONE);
    assert_int_equal(decode_tombstone(TOPIC_IMPRESSIONS, "i", 1700000000000), REJECT_TOMBSTONE);
    assert_int_equal(decode_tombstone(TOPIC_ENGAGEMENTS, "i", 1700000000000), REJECT_TOMBSTONE);
}

static void ids_are_exact_to_64_bits(void **state)
{
    static const struct {
        const char *text;
        enum id_kind kind;
        uint64_t bits;
    } cases[] = {
        {"0", ID_UNSIGNED, 0},
        {"-0", ID_UNSIGNED, 0},
        {"-1", ID_SIGNED, UINT64_MAX},
        {"9007199254740993", ID_UNSIGNED, 9007199254740993},
        {"9223372036854775807", ID_UNSIGNED, INT64_MAX},
        {"9223372036854775808", ID_UNSIGNED, UINT64_C(1) << 63},
        {"18446744073709551615", ID_UNSIGNED, UINT64_MAX},
        {"-9223372036854775808", ID_SIGNED, UINT64_C(1) << 63},
    };
    uint64_t hashes[sizeof cases / sizeof *cases];
    (void)state;

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[200];
        snprintf(text, sizeof text, "{\"item_id\":%s,\"ts\":" TS "}", cases[i].text);
        assert_decoded(TOPIC_ITEMS, text);
        const struct id *id = &f.event.items[0].item;
        assert_int_equal(id->kind, cases[i].kind);
        assert_int_equal(id->size, 8);
        uint64_t bits = 0;
        for (int b = 7; b >= 0; b--)
            bits = bits << 8 | (uint8_t)id->bytes[b];
        assert_true(bits == cases[i].bits);
        if (id->kind == ID_UNSIGNED) {
            char storage[8];
            const struct id again = id_of_unsigned(bits, storage);
            assert_true(again.hash == id->hash && again.check == id->check);
            assert_memory_equal(again.bytes, id->bytes, 8);
        }
        hashes[i] = id->hash;
        for (size_t j = 2; j < i; j++) // 0 and -0 are one id; 2^63 and -2^63 share their bits
            assert_true(hashes[j] != hashes[i]);
    }
    assert_true(hashes[0] == hashes[1]);
}

static void a_text_and_a_number_of_the_same_digits_are_different_ids(void **state)
{
    (void)state;
    assert_decoded(TOPIC_ITEMS, "{\"item_id\":7,\"ts\":" TS "}");
    const struct id number = f.event.items[0].item;
    assert_decoded(TOPIC_ITEMS, "{\"item_id\":\"7\",\"ts\":" TS "}");
    const struct id text = f.event.items[0].item;
    assert_int_not_equal(number.kind, text.kind);
    assert_true(number.hash != text.hash);
    assert_true(number.check != text.check);
    // Eight bytes of text that are the bytes of a number.
    char storage[8];
    assert_true(id_of_unsigned(0x6161616161616161, storage).hash != id_of_text("aaaaaaaa", 8).hash);
}

static void escapes_are_resolved_in_ids_titles_and_keys(void **state)
{
    (void)state;
    assert_decoded(TOPIC_ITEMS,
                   "{\"item\\u005fid\":\"a\\\"\\\\\\/\\n\\u00e9\",\"ts\":" TS
                   ",\"title\":\"\\ud83d\\ude00 caf\xc3\xa9 \\u4e2d \xf0\x9f\x98\x80\"}");
    assert_id_text(&f.event.items[0].item, "a\"\\/\n\xc3\xa9");
    assert_text(&f.event.title, "\xf0\x9f\x98\x80 caf\xc3\xa9 \xe4\xb8\xad \xf0\x9f\x98\x80");
    assert_decoded(TOPIC_ITEMS, "{\"item_id\":\"a\\u0000b\",\"ts\":" TS "}");
    assert_int_equal(f.event.items[0].item.size, 3);
}

static void an_id_may_have_256_bytes_and_no_more(void **state)
{
    char text[2000], id[300];
    (void)state;
    for (int n = 255; n <= 257; n++) {
        memset(id, 'x', (size_t)n);
        id[n] = '\0';
        snprintf(text, sizeof text, "{\"item_id\":\"%s\",\"ts\":" TS "}", id);
        if (n <= 256) {
            assert_decoded(TOPIC_ITEMS, text);
            assert_id_text(&f.event.items[0].item, id);
        } else {
            assert_rejected(TOPIC_ITEMS, text, REJECT_BAD_ID);
        }
    }
    // 129 characters of two bytes, written as escapes.
    char *p = text + sprintf(text, "{\"item_id\":\"");
    for (int i = 0; i < 129; i++)
        p += sprintf(p, "\\u00e9");
    sprintf(p, "\",\"ts\":" TS "}");
    assert_rejected(TOPIC_ITEMS, text, REJECT_BAD_ID);
}

static void the_last_of_a_repeated_key_counts_and_null_is_absent(void **state)
{
    (void)state;
    assert_decoded(TOPIC_ENGAGEMENTS,
                   "{\"user_id\":\"u\",\"user_id\":\"v\",\"item_id\":\"i\",\"action\":\"a\","
                   "\"value\":3,\"value\":null,\"request_id\":\"r\",\"request_id\":null,\"ts\":" TS
                   "}");
    assert_id_text(&f.event.user, "v");
    assert_true(f.event.value == 1);
    assert_true(f.event.repeated);
    assert_false(f.event.valued);
    assert_int_equal(f.event.request.kind, ID_ABSENT);
    assert_decoded(
        TOPIC_IMPRESSIONS,
        "{\"request_id\":1,\"user_id\":1,\"ts\":" TS ",\"items\":[{\"item_id\":1},"
        "{\"item_id\":2}],\"items\":[{\"item_id\":3,\"position\":4,\"position\":null}]}");
    assert_int_equal(f.event.n_items, 1);
    assert_int_equal(f.event.items[0].item.bytes[0], 3);
    assert_int_equal(f.event.items[0].position, -1);
    assert_true(f.event.repeated);
    assert_decoded(TOPIC_IMPRESSIONS,
                   "{\"request_id\":1,\"user_id\":1,\"ts\":" TS ",\"items\":null,\"item_id\":1}");
    assert_decoded(TOPIC_IMPRESSIONS, // what has no meaning may stand there as often as it likes
                   "{\"x\":1,\"x\":2,\"request_id\":1,\"user_id\":1,\"ts\":" TS
                   ",\"items\":[{\"item_id\":1},{\"item_id\":2,\"x\":1,\"x\":1}]}");
    assert_false(f.event.repeated);
    assert_decoded(TOPIC_IMPRESSIONS, "{\"request_id\":1,\"user_id\":1,\"ts\":" TS
                                      ",\"items\":[{\"item_id\":1,\"item_id\":2}]}");
    assert_true(f.event.repeated);
}

static void unknown_fields_are_ignored_whatever_they_hold(void **state)
{
    (void)state;
    assert_decoded(
        TOPIC_ITEMS,
        " {\"a\":{\"item_id\":{},\"b\":[1,[],{\"c\":null}]},\"item_id\":\"i\",\"e\":1e999,"
        "\"n\":123456789012345678901234567890,\"scores\":5,\"user_id\":[],\"t\":true,"
        "\"\":\"\\u0041\",\"ts\":" TS ",\"f\":false} \r\n\t");
    assert_id_text(&f.event.items[0].item, "i");
}

// Each prefix and suffix makes a record that is right but for what is put between them.
#define ENGAGEMENT(rest) "{\"user_id\":\"u\",\"item_id\":\"i\",\"action\":\"a\",\"ts\":" TS rest "}"
#define IMPRESSION(rest) "{\"request_id\":\"r\",\"user_id\":\"u\",\"ts\":" TS rest "}"
#define ITEM(rest)       IMPRESSION(",\"items\":[{\"item_id\":\"i\"},{" rest "}]")
#define SCORE(rest)      IMPRESSION(",\"items\":[{\"item_id\":\"i\"," rest "}]")
#define AT(ts)           "{\"item_id\":\"i\",\"ts\":" ts "}"
#define ID(id)           "{\"item_id\":" id ",\"ts\":" TS "}"

static void every_bad_record_has_its_reason(void **state)
{
    static const struct {
        enum reject reason;
        enum topic topic;
        const char *text;
    } cases[] = {
        {REJECT_NOT_JSON, TOPIC_ITEMS, ""},
        {REJECT_NOT_JSON, TOPIC_ITEMS, "  \n"},
        {REJECT_NOT_JSON, TOPIC_ITEMS, "{"},
        {REJECT_NOT_JSON, TOPIC_ITEMS, "}"},
        {REJECT_NOT_JSON, TOPIC_ITEMS, "hello"},
        {REJECT_NOT_JSON, TOPIC_ITEMS, AT(TS) "}"},
        {REJECT_NOT_JSON, TOPIC_ITEMS, AT(TS) "{}"},
        {REJECT_NOT_JSON, TOPIC_ITEMS, AT(TS) ","},
        {REJECT_NOT_JSON, TOPIC_ITEMS, AT(TS) " x"},
        {REJECT_NOT_JSON, TOPIC_ITEMS, AT(TS ",")},
        {REJECT_NOT_JSON, TOPIC_ITEMS, AT(TS ",\"x\"")},
        {REJECT_NOT_JSON, TOPIC_ITEMS, AT(TS ",\"x\":")},
        {REJECT_NOT_JSON, TOPIC_ITEMS, AT(TS ",x:1")},
        {REJECT_NOT_JSON, TOPIC_ITEMS, AT(TS ",\"x\":01")},
        {REJECT_NOT_JSON, TOPIC_ITEMS, AT(TS ",\"x\":1.")},
        {REJECT_NOT_JSON, TOPIC_ITEMS, AT(TS ",\"x\":1e")},
        {REJECT_NOT_JSON, TOPIC_ITEMS, AT(TS ",\"x\":+1")},
        {REJECT_NOT_JSON, TOPIC_ITEMS, AT(TS ",\"x\":-")},
        {REJECT_NOT_JSON, TOPIC_ITEMS, AT(TS ",\"x\":NaN")},
        {REJECT_NOT_JSON, TOPIC_ITEMS, AT(TS ",\"x\":Infinity")},
        {REJECT_NOT_JSON, TOPIC_ITEMS, AT(TS ",\"x\":nul")},
        {REJECT_NOT_JSON, TOPIC_ITEMS, AT(TS ",\"x\":truee")},
        {REJECT_NOT_JSON, TOPIC_ITEMS, AT(TS ",\"x\":\"\\q\"")},
        {REJECT_NOT_JSON, TOPIC_ITEMS, AT(TS ",\"x\":\"\\u12g4\"")},
        {REJECT_NOT_JSON, TOPIC_ITEMS, AT(TS ",\"x\":\"\\ud800\"")},
        {REJECT_NOT_JSON, TOPIC_ITEMS, AT(TS ",\"x\":\"\\udc00\"")},
        {REJECT_NOT_JSON, TOPIC_ITEMS, AT(TS ",\"x\":\"\\ud800\\u0041\"")},
        {REJECT_NOT_JSON, TOPIC_ITEMS, AT(TS ",\"\\x\":1")},
        {REJECT_NOT_JSON, TOPIC_ITEMS, AT(TS ",\"x\":\"a\nb\"")},
        {REJECT_NOT_JSON, TOPIC_ITEMS, AT(TS ",\"x\":[1,]")},
        {REJECT_NOT_JSON, TOPIC_ITEMS, AT(TS ",\"x\":[1 2]")},
        {REJECT_NOT_JSON, TOPIC_ITEMS, AT(TS ",\"x\":[1}")},
        {REJECT_NOT_JSON, TOPIC_ITEMS, AT(TS ",\"x\":{\"a\":1]")},
        {REJECT_NOT_JSON, TOPIC_ITEMS, AT(TS ",\"x\":{\"a\" 1}")},
        {REJECT_NOT_JSON, TOPIC_ITEMS, AT(TS ",\"x\":{1:1}")},
        {REJECT_NOT_JSON, TOPIC_ITEMS, AT(TS ",\"x\":1\"a\"")},
        {REJECT_NOT_JSON, TOPIC_ITEMS, AT("1\"a\"")},
        {REJECT_NOT_JSON, TOPIC_ITEMS, AT("01700000000000")},
        {REJECT_NOT_JSON, TOPIC_ITEMS, ID("\"i\"\"j\"")},
        {REJECT_NOT_JSON, TOPIC_ITEMS, ID("\"\\ud800\"")},
        {REJECT_NOT_JSON, TOPIC_ITEMS, ID("-")},
        {REJECT_NOT_JSON, TOPIC_ENGAGEMENTS, ENGAGEMENT(",\"value\":NaN")},
        {REJECT_NOT_JSON, TOPIC_ENGAGEMENTS, ENGAGEMENT(",\"value\":-Infinity")},
        // Malformed further on comes before what is wrong earlier.
        {REJECT_NOT_JSON, TOPIC_ITEMS, AT("5,\"x\":[")},
        {REJECT_NOT_JSON, TOPIC_ITEMS, "[1,"},
        {REJECT_NOT_UTF8, TOPIC_ITEMS, ID("\"\xff\"")},
        {REJECT_NOT_UTF8, TOPIC_ITEMS, ID("\"\xc3(\"")},
        {REJECT_NOT_UTF8, TOPIC_ITEMS, ID("\"\xed\xa0\x80\"")},
        {REJECT_NOT_UTF8, TOPIC_ITEMS, ID("\"\xc0\x80\"")},
        {REJECT_NOT_UTF8, TOPIC_ITEMS, AT(TS ",\"x\":\"\xf5\x80\x80\x80\"")},
        {REJECT_NOT_OBJECT, TOPIC_ITEMS, "null"},
        {REJECT_NOT_OBJECT, TOPIC_ITEMS, "null\n"},
        {REJECT_NOT_OBJECT, TOPIC_ITEMS, "[]"},
        {REJECT_NOT_OBJECT, TOPIC_ITEMS, "[{\"item_id\":\"i\"}]"},
        {REJECT_NOT_OBJECT, TOPIC_ITEMS, "\"text\""},
        {REJECT_NOT_OBJECT, TOPIC_ITEMS, "17"},
        {REJECT_NOT_OBJECT, TOPIC_ITEMS, "true"},
        {REJECT_MISSING_FIELD, TOPIC_ITEMS, "{}"},
        {REJECT_MISSING_FIELD, TOPIC_ITEMS, "{\"item_id\":\"i\"}"},
        {REJECT_MISSING_FIELD, TOPIC_ITEMS, "{\"ts\":" TS "}"},
        {REJECT_MISSING_FIELD, TOPIC_ITEMS, AT("null")},
        {REJECT_MISSING_FIELD, TOPIC_ITEMS, ID("null")},
        {REJECT_MISSING_FIELD, TOPIC_ITEMS, AT(TS ",\"ts\":null")},
        {REJECT_MISSING_FIELD, TOPIC_IMPRESSIONS, IMPRESSION("")},
        {REJECT_MISSING_FIELD, TOPIC_IMPRESSIONS, IMPRESSION(",\"items\":null")},
        {REJECT_MISSING_FIELD, TOPIC_IMPRESSIONS, ITEM("\"position\":1")},
        {REJECT_MISSING_FIELD, TOPIC_IMPRESSIONS, ITEM("\"item_id\":null")},
        {REJECT_MISSING_FIELD, TOPIC_IMPRESSIONS, "{\"user_id\":1,\"item_id\":1,\"ts\":" TS "}"},
        {REJECT_MISSING_FIELD, TOPIC_SCORES, IMPRESSION("")},
        {REJECT_MISSING_FIELD, TOPIC_SCORES, IMPRESSION(",\"item_id\":\"i\"")},
        {REJECT_MISSING_FIELD, TOPIC_SCORES, SCORE("\"x\":1")},
        {REJECT_MISSING_FIELD, TOPIC_ENGAGEMENTS, IMPRESSION(",\"item_id\":\"i\"")},
        {REJECT_MISSING_FIELD, TOPIC_ENGAGEMENTS, IMPRESSION(",\"action\":\"i\"")},
        {REJECT_WRONG_TYPE, TOPIC_ITEMS, ID("true")},
        {REJECT_WRONG_TYPE, TOPIC_ITEMS, ID("[\"i\"]")},
        {REJECT_WRONG_TYPE, TOPIC_ITEMS, ID("{}")},
        {REJECT_WRONG_TYPE, TOPIC_ITEMS, AT("\"" TS "\"")},
        {REJECT_WRONG_TYPE, TOPIC_ITEMS, AT("[]")},
        {REJECT_WRONG_TYPE, TOPIC_ITEMS, AT(TS ",\"title\":5")},
        {REJECT_WRONG_TYPE, TOPIC_ITEMS, AT(TS ",\"features\":5")},
        {REJECT_WRONG_TYPE, TOPIC_ITEMS, AT(TS ",\"features\":[\"5\"]")},
        {REJECT_WRONG_TYPE, TOPIC_ITEMS, AT(TS ",\"features\":[null]")},
        {REJECT_WRONG_TYPE, TOPIC_IMPRESSIONS, IMPRESSION(",\"items\":{}")},
        {REJECT_WRONG_TYPE, TOPIC_IMPRESSIONS, IMPRESSION(",\"items\":[\"i\"]")},
        {REJECT_WRONG_TYPE, TOPIC_IMPRESSIONS, IMPRESSION(",\"items\":[null]")},
        {REJECT_WRONG_TYPE, TOPIC_IMPRESSIONS, ITEM("\"item_id\":1,\"position\":\"1\"")},
        {REJECT_WRONG_TYPE, TOPIC_IMPRESSIONS,
         IMPRESSION(",\"item_id\":1,\"items\":[{\"item_id\":1}]")},
        {REJECT_WRONG_TYPE, TOPIC_IMPRESSIONS, IMPRESSION(",\"item_id\":1,\"items\":[]")},
        {REJECT_WRONG_TYPE, TOPIC_ENGAGEMENTS, ENGAGEMENT(",\"value\":\"1\"")},
        {REJECT_WRONG_TYPE, TOPIC_ENGAGEMENTS, ENGAGEMENT(",\"action\":1")},
        {REJECT_WRONG_TYPE, TOPIC_SCORES, SCORE("\"scores\":[1]")},
        {REJECT_WRONG_TYPE, TOPIC_SCORES, SCORE("\"scores\":{\"a\":null}")},
        {REJECT_WRONG_TYPE, TOPIC_SCORES, SCORE("\"scores\":{\"a\":{}}")},
        {REJECT_BAD_ID, TOPIC_ITEMS, ID("\"\"")},
        {REJECT_BAD_ID, TOPIC_ITEMS, ID("1.0")},
        {REJECT_BAD_ID, TOPIC_ITEMS, ID("1e3")},
        {REJECT_BAD_ID, TOPIC_ITEMS, ID("0.5")},
        {REJECT_BAD_ID, TOPIC_ITEMS, ID("18446744073709551616")},
        {REJECT_BAD_ID, TOPIC_ITEMS, ID("-9223372036854775809")},
        {REJECT_BAD_ID, TOPIC_ITEMS, ID("123456789012345678901234567890")},
        {REJECT_BAD_ID, TOPIC_IMPRESSIONS, ITEM("\"item_id\":\"\"")},
        {REJECT_BAD_ID, TOPIC_ENGAGEMENTS, ENGAGEMENT(",\"request_id\":1.5")},
        {REJECT_BAD_ID, TOPIC_ENGAGEMENTS, ENGAGEMENT(",\"action\":\"\"")},
        {REJECT_BAD_ID, TOPIC_SCORES, SCORE("\"scores\":{\"\":1}")},
        {REJECT_BAD_TIME, TOPIC_ITEMS, AT("0")},
        {REJECT_BAD_TIME, TOPIC_ITEMS, AT("-1")},
        {REJECT_BAD_TIME, TOPIC_ITEMS, AT("1700000000")},
        {REJECT_BAD_TIME, TOPIC_ITEMS, AT("1700000000000000")},
        {REJECT_BAD_TIME, TOPIC_ITEMS, AT("1700000000000000000")},
        {REJECT_BAD_TIME, TOPIC_ITEMS, AT("1700000000000.0")},
        {REJECT_BAD_TIME, TOPIC_ITEMS, AT("1.7e12")},
        {REJECT_BAD_TIME, TOPIC_ITEMS, AT("946684799999")},
        {REJECT_BAD_TIME, TOPIC_ITEMS, AT("4133980800000")},
        {REJECT_BAD_TIME, TOPIC_ITEMS, AT("18446744073709551615")},
        {REJECT_BAD_TIME, TOPIC_ITEMS, AT("99999999999999999999")},
        {REJECT_BAD_NUMBER, TOPIC_ENGAGEMENTS, ENGAGEMENT(",\"value\":1e39")},
        {REJECT_BAD_NUMBER, TOPIC_ENGAGEMENTS, ENGAGEMENT(",\"value\":-1e309")},
        {REJECT_BAD_NUMBER, TOPIC_ITEMS, AT(TS ",\"features\":[1,1e999]")},
        {REJECT_BAD_NUMBER, TOPIC_ITEMS, AT(TS ",\"features\":[1,-1.1e9]")},
        {REJECT_BAD_NUMBER, TOPIC_IMPRESSIONS,
         IMPRESSION(",\"item_id\":1,\"user_features\":[3e38]")},
        {REJECT_BAD_NUMBER, TOPIC_SCORES, SCORE("\"scores\":{\"a\":1e308}")},
        {REJECT_BAD_NUMBER, TOPIC_SCORES, SCORE("\"scores\":{\"a\":-1.1e9}")},
        {REJECT_BAD_NUMBER, TOPIC_IMPRESSIONS, ITEM("\"item_id\":1,\"propensity\":0")},
        {REJECT_BAD_NUMBER, TOPIC_IMPRESSIONS, ITEM("\"item_id\":1,\"propensity\":1.01")},
        {REJECT_BAD_NUMBER, TOPIC_IMPRESSIONS, ITEM("\"item_id\":1,\"propensity\":-0.5")},
        {REJECT_BAD_NUMBER, TOPIC_IMPRESSIONS, ITEM("\"item_id\":1,\"propensity\":1e-60")},
        {REJECT_BAD_NUMBER, TOPIC_IMPRESSIONS, ITEM("\"item_id\":1,\"position\":-1")},
        {REJECT_BAD_NUMBER, TOPIC_IMPRESSIONS, ITEM("\"item_id\":1,\"position\":1.5")},
        {REJECT_BAD_NUMBER, TOPIC_IMPRESSIONS, ITEM("\"item_id\":1,\"position\":2147483648")},
        {REJECT_BAD_NUMBER, TOPIC_IMPRESSIONS, IMPRESSION(",\"item_id\":1,\"position\":-1")},
        {REJECT_EMPTY_LIST, TOPIC_IMPRESSIONS, IMPRESSION(",\"items\":[]")},
        {REJECT_EMPTY_LIST, TOPIC_SCORES, IMPRESSION(",\"items\":[]")},
        {REJECT_EMPTY_LIST, TOPIC_SCORES, SCORE("\"scores\":{}")},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_rejected(cases[i].topic, cases[i].text, cases[i].reason);
}

static void the_years_2000_to_2100_are_accepted_to_the_millisecond(void **state)
{
    (void)state;
    assert_decoded(TOPIC_ITEMS, AT("946684800000"));
    assert_int_equal(f.event.ts_ms, 946684800000);
    assert_decoded(TOPIC_ITEMS, AT("4133980799999"));
    assert_int_equal(f.event.ts_ms, 4133980799999);
}

static void the_message_names_the_field_what_was_expected_and_what_was_found(void **state)
{
    (void)state;
    assert_rejected(TOPIC_IMPRESSIONS, ITEM("\"item_id\":1,\"position\":-1"), REJECT_BAD_NUMBER);
    assert_string_equal(
        decoder_message(f.decoder),
        "items[1].position: expected an integer of 0 or more, below 2^31, found -1");
    assert_rejected(TOPIC_ITEMS, AT("1700000000"), REJECT_BAD_TIME);
    assert_non_null(strstr(decoder_message(f.decoder), "looks like seconds"));
    assert_rejected(TOPIC_IMPRESSIONS, ITEM("\"position\":1"), REJECT_MISSING_FIELD);
    assert_string_equal(decoder_message(f.decoder),
                        "items[1].item_id: required, but absent or null");
    assert_rejected(TOPIC_ITEMS, AT(TS ",\"title\":[\"caf\xc3\xa9\"]"), REJECT_WRONG_TYPE);
    assert_string_equal(decoder_message(f.decoder), "title: expected a string, found [");
    assert_rejected(TOPIC_ITEMS, AT(TS) " trailing", REJECT_NOT_JSON);
    assert_non_null(strstr(decoder_message(f.decoder), "43 bytes that end with"));
    assert_rejected(TOPIC_ITEMS, AT(TS ",\"x\":tru"), REJECT_NOT_JSON);
    assert_non_null(strstr(decoder_message(f.decoder), "stopped at byte 38 of 42: tru}"));
}

// A record of n levels, the outermost object being the first.
static void nested(char *text, int n, char open, char close)
{
    text += sprintf(text, "{\"item_id\":\"i\",\"ts\":" TS ",\"x\":");
    for (int i = 1; i < n; i++)
        text += open == '{' ? sprintf(text, "{\"a\":") : sprintf(text, "%c", open);
    text += sprintf(text, "%s", open == '{' ? "1" : "");
    for (int i = 1; i < n; i++)
        *text++ = close;
    strcpy(text, "}");
}

static void nesting_is_limited_to_32_levels(void **state)
{
    static char text[1 << 20];
    (void)state;
    nested(text, 32, '[', ']');
    assert_decoded(TOPIC_ITEMS, text);
    nested(text, 32, '{', '}');
    assert_decoded(TOPIC_ITEMS, text);
    nested(text, 33, '[', ']');
    assert_rejected(TOPIC_ITEMS, text, REJECT_TOO_LARGE);
    nested(text, 33, '{', '}');
    assert_rejected(TOPIC_ITEMS, text, REJECT_TOO_LARGE);
    nested(text, 100000, '{', '}');
    assert_rejected(TOPIC_ITEMS, text, REJECT_TOO_LARGE);
    memset(text, '[', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    const enum reject r = decode_text(TOPIC_ITEMS, text);
    assert_true(r == REJECT_TOO_LARGE || r == REJECT_NOT_JSON);
}

static void lists_are_limited_to_4096_entries(void **state)
{
    static char text[1 << 20];
    (void)state;
    for (int n = 4095; n <= 4097; n++) {
        char *p = text + sprintf(text, "{\"request_id\":1,\"user_id\":1,\"ts\":" TS ",\"items\":[");
        for (int i = 0; i < n; i++)
            p += sprintf(p, "%s{\"item_id\":%d}", i ? "," : "", i);
        sprintf(p, "]}");
        assert_int_equal(decode_text(TOPIC_IMPRESSIONS, text),
                         n <= 4096 ? REJECT_NONE : REJECT_TOO_LARGE);
        if (n <= 4096)
            assert_int_equal(f.event.n_items, n);

        p = text + sprintf(text, "{\"item_id\":1,\"ts\":" TS ",\"features\":[");
        for (int i = 0; i < n; i++)
            p += sprintf(p, "%s%d", i ? "," : "", i);
        sprintf(p, "]}");
        assert_int_equal(decode_text(TOPIC_ITEMS, text),
                         n <= 4096 ? REJECT_NONE : REJECT_TOO_LARGE);
        if (n <= 4096)
            assert_true(f.event.items[0].features[n - 1] == (float)(n - 1));
    }
    char *p = text + sprintf(text, "{\"request_id\":1,\"user_id\":1,\"ts\":" TS
                                   ",\"items\":[{\"item_id\":1,\"scores\":{");
    for (int i = 0; i < 257; i++)
        p += sprintf(p, "%s\"task%d\":1", i ? "," : "", i);
    sprintf(p, "}}]}");
    assert_int_equal(decode_text(TOPIC_SCORES, text), REJECT_TOO_LARGE);
}

static void a_record_may_have_a_mebibyte_and_no_more(void **state)
{
    enum { MAX = 1 << 20 };
    char *text = malloc(MAX + 1);
    (void)state;
    assert_non_null(text);
    memset(text, ' ', MAX + 1);
    memcpy(text, AT(TS), strlen(AT(TS)));
    assert_int_equal(decode_bytes(TOPIC_ITEMS, text, MAX), REJECT_NONE);
    assert_int_equal(decode_bytes(TOPIC_ITEMS, text, MAX + 1), REJECT_TOO_LARGE);
    // A huge text in a field that is not read, full of escapes.
    char *p = text + sprintf(text, "{\"item_id\":\"i\",\"ts\":" TS ",\"x\":\"");
    while (p < text + MAX - 10) {
        memcpy(p, "\\n", 2);
        p += 2;
    }
    memcpy(p, "\"}", 2);
    p += 2;
    assert_int_equal(decode_bytes(TOPIC_ITEMS, text, (size_t)(p - text)), REJECT_NONE);
    free(text);
}

static const struct {
    enum topic topic;
    const char *text;
} valid[] = {
    {TOPIC_IMPRESSIONS,
     IMPRESSION(
         ",\"items\":[{\"item_id\":\"i1\",\"position\":0,\"propensity\":0.08,\"features\":"
         "[0.5,-1e-3]},{\"item_id\":-12}],\"surface\":\"h\\u00f6me\",\"user_features\":[1]")},
    {TOPIC_IMPRESSIONS, IMPRESSION(",\"item_id\":\"i\",\"position\":2,\"x\":{\"y\":[true,null]}")},
    {TOPIC_ENGAGEMENTS, ENGAGEMENT(",\"request_id\":18446744073709551615,\"value\":1.5")},
    {TOPIC_SCORES, SCORE("\"scores\":{\"click\":0.13,\"like\":0.01}")},
    {TOPIC_ITEMS, AT(TS ",\"title\":\"caf\xc3\xa9 \\ud83d\\ude00\",\"features\":[1,2,3]")},
};
enum { VALID = sizeof valid / sizeof *valid };

static void a_record_cut_anywhere_is_rejected(void **state)
{
    (void)state;
    for (size_t i = 0; i < VALID; i++) {
        const size_t size = strlen(valid[i].text);
        assert_decoded(valid[i].topic, valid[i].text);
        for (size_t cut = 0; cut < size; cut++) {
            const enum reject r = decode_bytes(valid[i].topic, valid[i].text, cut);
            if (r != REJECT_NOT_JSON && r != REJECT_NOT_UTF8)
                fail_msg("%.*s\nis %s", (int)cut, valid[i].text, reject_names[r]);
        }
    }
}

static void an_event_is_whole_and_within_its_limits(const struct event *e)
{
    assert_true(e->ts_ms >= 946684800000 && e->ts_ms < 4133980800000);
    assert_true(e->n_items >= 1 && e->n_items <= 4096);
    assert_true(isfinite(e->value));
    for (int i = 0; i < e->n_items; i++) {
        const struct event_item *item = &e->items[i];
        assert_true(item->item.kind != ID_ABSENT && item->item.size >= 1 && item->item.size <= 256);
        assert_true(item->position >= -1);
        assert_true(item->propensity >= 0 && item->propensity <= 1);
        for (int n = 0; n < item->n_features; n++)
            assert_true(isfinite(item->features[n]));
        for (int n = 0; n < item->n_scores; n++)
            assert_true(isfinite(item->scores[n].score) && item->scores[n].task.size > 0);
    }
}

static void mutated_records_are_decoded_or_rejected_but_never_crash(void **state)
{
    enum { ROUNDS = 100000, SEED = 1 };
    static const char bytes[] = "{}[]\",:\\0123456789.eE+-tfn ux\xc3\xff";
    uint64_t random = SEED;
    int decoded = 0;
    (void)state;

    for (int round = 0; round < ROUNDS; round++) {
        const size_t i = (size_t)round % VALID;
        char text[400];
        size_t size = strlen(valid[i].text);
        memcpy(text, valid[i].text, size);
        random = random * 6364136223846793005u + 1442695040888963407u;
        for (uint64_t n = 1 + (random >> 62); n > 0; n--) {
            random = random * 6364136223846793005u + 1442695040888963407u;
            const size_t at = (random >> 33) % size;
            text[at] = random >> 32 & 1 ? bytes[(random >> 20) % (sizeof bytes - 1)]
                                        : (char)(random >> 20);
        }
        if (decode_bytes(valid[i].topic, text, size) == REJECT_NONE) {
            an_event_is_whole_and_within_its_limits(&f.event);
            decoded++;
        }
        if (round % 1000 == 0)
            event_memory_reset(&f.memory);
    }
    // Some mutations do no harm, most do.
    assert_in_range(decoded, ROUNDS / 100, ROUNDS / 2);
}

static void a_rejected_record_gives_its_memory_back(void **state)
{
    (void)state;
    assert_decoded(TOPIC_ITEMS, AT(TS));
    const size_t used = f.memory.used;
    assert_rejected(TOPIC_ITEMS, ID("\"abcdef\",\"x\":["), REJECT_NOT_JSON);
    assert_int_equal(f.memory.used, used);
}

static void memory_grows_keeps_what_it_gave_and_is_reused(void **state)
{
    enum { N = 2000 };
    struct event_memory m = {0};
    char *taken[N];
    (void)state;

    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < N; i++) {
            const size_t alignment = (size_t)1 << i % 7;
            taken[i] = event_memory_take(&m, (size_t)i + 1, alignment);
            assert_int_equal((uintptr_t)taken[i] % alignment, 0);
            memset(taken[i], i, (size_t)i + 1);
        }
        for (int i = 0; i < N; i++)
            assert_true(taken[i][0] == (char)i && taken[i][i] == (char)i);
        assert_non_null(m.full);
        event_memory_reset(&m);
        assert_null(m.full);
        assert_int_equal(m.used, 0);
    }
    assert_non_null(event_memory_take(&m, 100 << 20, 1)); // larger than any block so far
    event_memory_close(&m);
    assert_null(m.base);
}

// Recorded streams carry research licences and are not part of the repository.
static void the_recorded_streams_decode_without_a_rejection(void **state)
{
    static const char *const streams[] = {"ml1m", "ml1m-slates", "mind-sample5k", "obd"};
    const char *root = getenv("TWOTOWER_DATA");
    char path[4096], error[512];
    (void)state;

    if (!root)
        root = "../shared/data";
    if (access(root, R_OK) != 0) {
        print_message("skipped: no recorded streams in %s (set TWOTOWER_DATA)\n", root);
        skip();
    }
    for (size_t i = 0; i < sizeof streams / sizeof *streams; i++) {
        struct source *s;
        snprintf(path, sizeof path, "%s/%s", root, streams[i]);
        if (source_file_open(&s, path, error, sizeof error) < 0)
            fail_msg("%s", error);
        int64_t next[TOPICS], stop[TOPICS], records = 0;
        assert_int_equal(s->ops->bounds(s, next, stop), 0);
        assert_int_equal(s->ops->start(s, next, stop), 0);
        for (int p = 0; p < s->n_partitions; p++) {
            struct record batch[256];
            int n;
            while ((n = s->ops->read(s, p, 256, batch)) > 0) {
                event_memory_reset(&f.memory);
                for (int r = 0; r < n; r++, records++)
                    if (decode(f.decoder, s->partitions[p].topic, &batch[r], &f.memory, &f.event))
                        fail_msg("%s %s line %" PRId64 ": %s", streams[i], s->partitions[p].name,
                                 batch[r].offset, decoder_message(f.decoder));
            }
            assert_int_equal(n, 0);
            assert_true(s->ops->at_end(s, p));
        }
        assert_true(records > 1000);
        s->ops->close(s);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(every_topic_and_reason_has_a_name),
        TEST(an_impression_list_is_decoded_in_full),
        TEST(an_impression_of_one_item_needs_no_list),
        TEST(an_engagement_has_value_one_and_no_request_unless_it_says_so),
        TEST(scores_are_kept_by_task),
        TEST(an_item_has_title_and_features),
        TEST(a_tombstone_removes_the_item_its_key_names),
        TEST(a_tombstone_without_key_or_time_or_elsewhere_is_rejected),
        TEST(ids_are_exact_to_64_bits),
        TEST(a_text_and_a_number_of_the_same_digits_are_different_ids),
        TEST(escapes_are_resolved_in_ids_titles_and_keys),
        TEST(an_id_may_have_256_bytes_and_no_more),
        TEST(the_last_of_a_repeated_key_counts_and_null_is_absent),
        TEST(unknown_fields_are_ignored_whatever_they_hold),
        TEST(every_bad_record_has_its_reason),
        TEST(the_years_2000_to_2100_are_accepted_to_the_millisecond),
        TEST(the_message_names_the_field_what_was_expected_and_what_was_found),
        TEST(nesting_is_limited_to_32_levels),
        TEST(lists_are_limited_to_4096_entries),
        TEST(a_record_may_have_a_mebibyte_and_no_more),
        TEST(a_record_cut_anywhere_is_rejected),
        TEST(mutated_records_are_decoded_or_rejected_but_never_crash),
        TEST(a_rejected_record_gives_its_memory_back),
        TEST(memory_grows_keeps_what_it_gave_and_is_reused),
        TEST(the_recorded_streams_decode_without_a_rejection),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
