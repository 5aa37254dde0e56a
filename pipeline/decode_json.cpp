// SPDX-License-Identifier: Apache-2.0
//
// simdjson's on-demand front end validates only what it is asked for. So every value is asked for:
// json_skip walks into what it skips, checks every escape and number, and json_end sees to the
// tail. The DOM front end validates by itself and takes 130 ns to go through an engagement of 136
// bytes where this cursor takes 160 (Xeon, AVX-512), but it refuses the whole document for one
// integer beyond 64 bits in a field that nobody reads, and cannot say which field was wrong.
#define SIMDJSON_EXCEPTIONS 0
// The same code in every build: these checks abort instead of returning an error.
#define SIMDJSON_DEVELOPMENT_CHECKS 0
#include "pipeline/decode_json.h"

#include <simdjson.h>

#include <cassert>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>

namespace ondemand = simdjson::ondemand;

namespace
{

struct level {
    bool object, first;
    ondemand::object_iterator fields;
    ondemand::array_iterator elements;
};

} // namespace

struct json {
    ondemand::parser parser;
    ondemand::document document;
    // At the cursor, when depth > 0: value points into the latest of these two. They are built in
    // place; moving simdjson's iterators costs a failed store forwarding each, 10 ns per field.
    simdjson::simdjson_result<ondemand::field> field;
    simdjson::simdjson_result<ondemand::value> element;
    ondemand::value *value;
    level levels[JSON_DEPTH_MAX];
    int depth;
    json_status status;
    bool indexed; // the first stage passed: document is this one
    size_t size, size_max;
    char *bytes; // size_max and the padding that simdjson may read, but does not interpret
};

namespace
{

bool json_fail(json *j, json_status status)
{
    if (j->status == JSON_OK)
        j->status = status;
    return false;
}

bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

// Tells a number out of range from something that is no number: simdjson has one error for both.
bool is_number(std::string_view s)
{
    size_t i = 0;
    const auto digits = [&] {
        const size_t start = i;
        while (i < s.size() && is_digit(s[i]))
            i++;
        return i - start;
    };
    if (i < s.size() && s[i] == '-')
        i++;
    const bool zero = i < s.size() && s[i] == '0';
    const size_t whole = digits();
    if (whole == 0 || (zero && whole > 1))
        return false;
    if (i < s.size() && s[i] == '.') {
        i++;
        if (digits() == 0)
            return false;
    }
    if (i < s.size() && (s[i] == 'e' || s[i] == 'E')) {
        i++;
        if (i < s.size() && (s[i] == '-' || s[i] == '+'))
            i++;
        if (digits() == 0)
            return false;
    }
    return i == s.size();
}

// From the token's first byte to the next token's, without the white space between.
std::string_view token_of(json *j)
{
    std::string_view token;
    if (j->depth > 0)
        token = j->value->raw_json_token();
    else if (j->document.raw_json_token().get(token))
        return {};
    size_t size = token.size();
    // Nothing else at or below a space can end a token: white space is the only kind between two.
    while (size > 0 && static_cast<unsigned char>(token[size - 1]) <= ' ')
        size--;
    return token.substr(0, size);
}

// The number getters of a document and of a value have the same names but no common base.
template <typename T, typename From> simdjson::error_code number_of(From &from, T *number)
{
    if constexpr (std::is_same_v<T, int64_t>)
        return from.get_int64().get(*number);
    else if constexpr (std::is_same_v<T, uint64_t>)
        return from.get_uint64().get(*number);
    else
        return from.get_double().get(*number);
}

template <typename T> json_status number_at(json *j, T *number)
{
    if (j->status != JSON_OK)
        return j->status;
    const std::string_view token = token_of(j);
    const simdjson::error_code error =
        j->depth > 0 ? number_of(*j->value, number) : number_of(j->document, number);
    if (!error)
        return JSON_OK;
    if (error != simdjson::TRAILING_CONTENT && is_number(token))
        return JSON_OUT_OF_RANGE; // not consumed, but the step to the next value passes over it
    json_fail(j, JSON_MALFORMED);
    return j->status;
}

} // namespace

int json_open(struct json **out, size_t size_max)
{
    json *j = new (std::nothrow) json();
    if (!j)
        return -ENOMEM;
    j->size_max = size_max;
    j->bytes = static_cast<char *>(malloc(size_max + simdjson::SIMDJSON_PADDING));
    if (!j->bytes || j->parser.allocate(size_max)) {
        json_close(j);
        return -ENOMEM;
    }
    *out = j;
    return 0;
}

void json_close(struct json *j)
{
    if (!j)
        return;
    free(j->bytes);
    delete j;
}

void json_begin(struct json *j, const char *bytes, size_t size)
{
    assert(size <= j->size_max);
    j->depth = 0;
    j->status = JSON_OK;
    j->size = size;
    if (size > 0)
        memcpy(j->bytes, bytes, size);
    // Spaces: is_null of a whole document looks one byte too far and wants white space there.
    memset(j->bytes + size, ' ', simdjson::SIMDJSON_PADDING);

    const simdjson::error_code error =
        j->parser.iterate(j->bytes, size, size + simdjson::SIMDJSON_PADDING).get(j->document);
    j->indexed = !error;
    if (error)
        json_fail(j, error == simdjson::UTF8_ERROR ? JSON_NOT_UTF8 : JSON_MALFORMED);
}

enum json_kind json_kind(struct json *j)
{
    if (j->status != JSON_OK)
        return JSON_BROKEN;
    ondemand::json_type type = ondemand::json_type::null;
    if (j->depth > 0 ? j->value->type().get(type) : j->document.type().get(type)) {
        json_fail(j, JSON_MALFORMED);
        return JSON_BROKEN;
    }
    switch (type) {
    case ondemand::json_type::object:
        return JSON_OBJECT;
    case ondemand::json_type::array:
        return JSON_ARRAY;
    case ondemand::json_type::string:
        return JSON_STRING;
    case ondemand::json_type::number:
        return JSON_NUMBER;
    case ondemand::json_type::boolean:
        return JSON_BOOLEAN;
    case ondemand::json_type::null:
        return JSON_NULL;
    }
    return JSON_BROKEN;
}

bool json_broken(const struct json *j)
{
    return j->status != JSON_OK;
}

bool json_enter(struct json *j)
{
    const enum json_kind kind = json_kind(j);
    assert(kind == JSON_BROKEN || kind == JSON_OBJECT || kind == JSON_ARRAY);
    if (kind == JSON_BROKEN)
        return false;
    if (j->depth == JSON_DEPTH_MAX)
        return json_fail(j, JSON_TOO_DEEP);

    level &l = j->levels[j->depth];
    l.object = kind == JSON_OBJECT;
    l.first = true;
    simdjson::error_code error;
    if (l.object) {
        ondemand::object object;
        error = j->depth > 0 ? j->value->get_object().get(object)
                             : j->document.get_object().get(object);
        if (!error)
            error = object.begin().get(l.fields);
    } else {
        ondemand::array array;
        error =
            j->depth > 0 ? j->value->get_array().get(array) : j->document.get_array().get(array);
        if (!error)
            error = array.begin().get(l.elements);
    }
    if (error)
        return json_fail(j, JSON_MALFORMED);
    j->depth++;
    return true;
}

bool json_field(struct json *j, struct json_text *key)
{
    if (j->status != JSON_OK)
        return false;
    assert(j->depth > 0 && j->levels[j->depth - 1].object);
    level &l = j->levels[j->depth - 1];
    if (!l.first)
        ++l.fields;
    l.first = false;
    if (l.fields == l.fields) { // simdjson's way to ask for the end; the argument is ignored
        j->depth--;
        return false;
    }
    new (&j->field) simdjson::simdjson_result<ondemand::field>(*l.fields);
    if (j->field.error())
        return json_fail(j, JSON_MALFORMED);
    ondemand::field &field = j->field.value_unsafe();
    j->value = &field.value();

    // A document that passed the first stage has no open strings: there is a quote to be found.
    const char *start = field.key().raw();
    const char *end = static_cast<const char *>(rawmemchr(start, '"'));
    const size_t size = static_cast<size_t>(end - start);
    if (!memchr(start, '\\', size)) {
        *key = {start, size};
        return true;
    }
    std::string_view text;
    if (field.unescaped_key().get(text) || !simdjson::validate_utf8(text))
        return json_fail(j, JSON_MALFORMED);
    *key = {text.data(), text.size()};
    return true;
}

bool json_element(struct json *j)
{
    if (j->status != JSON_OK)
        return false;
    assert(j->depth > 0 && !j->levels[j->depth - 1].object);
    level &l = j->levels[j->depth - 1];
    if (!l.first)
        ++l.elements;
    l.first = false;
    if (l.elements == l.elements) {
        j->depth--;
        return false;
    }
    new (&j->element) simdjson::simdjson_result<ondemand::value>(*l.elements);
    if (j->element.error())
        return json_fail(j, JSON_MALFORMED);
    j->value = &j->element.value_unsafe();
    return true;
}

enum json_status json_string(struct json *j, struct json_text *text)
{
    if (j->status != JSON_OK)
        return j->status;
    const std::string_view token = token_of(j);
    std::string_view s;
    if (token.size() >= 2 && token.back() == '"' && !memchr(token.data(), '\\', token.size())) {
        // Nothing to resolve: the text between the quotes is the string. The call only moves on.
        ondemand::raw_json_string raw;
        if (j->depth > 0 ? j->value->get_raw_json_string().get(raw)
                         : j->document.get_raw_json_string().get(raw))
            json_fail(j, JSON_MALFORMED);
        s = token.substr(1, token.size() - 2);
    } else if ((j->depth > 0 ? j->value->get_string().get(s) : j->document.get_string().get(s)) ||
               !simdjson::validate_utf8(s)) {
        // Also half of a surrogate pair: an escape that stands for no character.
        json_fail(j, JSON_MALFORMED);
    }
    *text = {s.data(), s.size()};
    return j->status;
}

enum json_status json_integer(struct json *j, bool *negative, uint64_t *bits)
{
    const std::string_view token = j->status == JSON_OK ? token_of(j) : std::string_view();
    if (token.empty() || token[0] != '-') {
        *negative = false;
        return number_at<uint64_t>(j, bits);
    }
    int64_t number = 0;
    const json_status status = number_at<int64_t>(j, &number);
    *negative = number < 0;
    *bits = static_cast<uint64_t>(number);
    return status;
}

enum json_status json_double(struct json *j, double *number)
{
    return number_at<double>(j, number);
}

void json_skip(struct json *j)
{
    struct json_text text;
    double number;
    bool boolean, null = false;

    switch (json_kind(j)) {
    case JSON_BROKEN:
        return;
    case JSON_OBJECT:
        if (json_enter(j))
            while (json_field(j, &text))
                json_skip(j); // at most JSON_DEPTH_MAX deep
        return;
    case JSON_ARRAY:
        if (json_enter(j))
            while (json_element(j))
                json_skip(j);
        return;
    case JSON_STRING:
        json_string(j, &text);
        return;
    case JSON_NUMBER:
        json_double(j, &number); // out of range is no concern of one who skips
        return;
    case JSON_BOOLEAN:
        if (j->depth > 0 ? j->value->get_bool().get(boolean) : j->document.get_bool().get(boolean))
            json_fail(j, JSON_MALFORMED);
        return;
    case JSON_NULL:
        if ((j->depth > 0 ? j->value->is_null().get(null) : j->document.is_null().get(null)) ||
            !null)
            json_fail(j, JSON_MALFORMED);
        return;
    }
}

struct json_text json_source(struct json *j)
{
    if (j->status != JSON_OK)
        return {j->bytes, 0};
    std::string_view token = token_of(j);
    if (!token.empty() && (token[0] == '{' || token[0] == '['))
        token = token.substr(0, 1);
    return {token.data(), token.size()};
}

size_t json_where(struct json *j)
{
    const char *at;
    if (!j->indexed)
        return 0;
    if (j->document.current_location().get(at))
        return j->size;
    const size_t offset = static_cast<size_t>(at - j->bytes);
    return offset < j->size ? offset : j->size;
}

enum json_status json_end(struct json *j)
{
    const char *at;
    // The location is out of bounds, an error, exactly when every token has been used.
    if (j->status == JSON_OK && !j->document.current_location().get(at))
        json_fail(j, JSON_MALFORMED);
    return j->status;
}

bool json_utf8_valid(const char *bytes, size_t size)
{
    return simdjson::validate_utf8(bytes, size);
}
