// SPDX-License-Identifier: Apache-2.0
//
// A cursor over one JSON document, by simdjson. It knows JSON and nothing of events.
//
//     json_begin(j, bytes, size);
//     if (json_kind(j) == JSON_OBJECT && json_enter(j))
//         while (json_field(j, &key))
//             ... exactly one of json_enter, json_string, json_integer, json_double, json_skip
//     status = json_end(j);
//
// Everything is looked at, also what is skipped: after a json_end of JSON_OK the document was
// well-formed UTF-8 from its first byte to its last. The first failure sticks: from then on
// json_kind is JSON_BROKEN, json_field and json_element are false, and json_end repeats it.
//
// The document is copied at json_begin; texts point into the copy and are valid until the next
// json_begin. A cursor belongs to one thread. Nothing throws.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { JSON_DEPTH_MAX = 32 };

enum json_kind {
    JSON_BROKEN,
    JSON_OBJECT,
    JSON_ARRAY,
    JSON_STRING,
    JSON_NUMBER,
    JSON_BOOLEAN,
    JSON_NULL,
};

enum json_status {
    JSON_OK,
    JSON_MALFORMED,
    JSON_NOT_UTF8,
    JSON_TOO_DEEP,     // more than JSON_DEPTH_MAX objects and arrays inside each other
    JSON_OUT_OF_RANGE, // a number the caller's type cannot hold; the only one that does not stick
};

struct json;

struct json_text {
    const char *bytes; // not terminated
    size_t size;
};

// size_max is the largest document json_begin will be given. 0 or -ENOMEM.
int json_open(struct json **j, size_t size_max);
void json_close(struct json *j);

void json_begin(struct json *j, const char *bytes, size_t size);
enum json_kind json_kind(struct json *j);
// Something has failed. A loop over fields or elements ends by this or by the end of its object.
bool json_broken(const struct json *j);

// Goes into the object or array at the cursor; false when it would be too deep or is malformed.
bool json_enter(struct json *j);
// The next field or element of the innermost object or array; false, and out of it, at its end.
bool json_field(struct json *j, struct json_text *key);
bool json_element(struct json *j);

// Escapes resolved.
enum json_status json_string(struct json *j, struct json_text *text);
// The two's complement in bits; JSON_OUT_OF_RANGE for a fraction, an exponent (1.0 and 1e3 are
// not integers) and anything outside -2^63 .. 2^64-1. -0 is not negative.
enum json_status json_integer(struct json *j, bool *negative, uint64_t *bits);
// JSON_OUT_OF_RANGE when it is not finite as a double.
enum json_status json_double(struct json *j, double *number);
void json_skip(struct json *j);

// The source text of the scalar at the cursor; of an object or array its first character.
struct json_text json_source(struct json *j);
// How many bytes of the document were understood, after a failure.
size_t json_where(struct json *j);
// Nothing but white space may follow the document.
enum json_status json_end(struct json *j);

bool json_utf8_valid(const char *bytes, size_t size);

#ifdef __cplusplus
}
#endif
