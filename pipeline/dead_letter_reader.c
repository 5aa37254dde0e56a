// SPDX-License-Identifier: Apache-2.0
#include "pipeline/dead_letter_reader.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pipeline/decode_json.h"

enum { READ_BYTES = 64 << 10 };

struct dead_letter_reader {
    struct dead_letter *letters;
    int fd; // of the file that position lies in, -1: not known yet
    uint64_t start;
    uint64_t position; // of bytes
    char *bytes;       // read from there on: [at, n) of capacity
    size_t at, n, capacity;
    struct json *json;
    size_t json_max;
    char *texts; // what the letter points to
    size_t texts_used, texts_size;
    struct record_headers headers;
    char error[512];
};

static int fail(struct dead_letter_reader *r, int rc, const char *doing)
{
    snprintf(r->error, sizeof r->error, "%.300s: %s: %s", dead_letter_path(r->letters), doing,
             strerror(-rc));
    return rc;
}

int dead_letter_reader_open(struct dead_letter_reader **out, struct dead_letter *d)
{
    struct dead_letter_reader *r = calloc(1, sizeof *r);
    if (!r)
        return -ENOMEM;
    *r = (struct dead_letter_reader){
        .letters = d, .fd = -1, .bytes = malloc(READ_BYTES), .capacity = READ_BYTES};
    if (!r->bytes) {
        free(r);
        return -ENOMEM;
    }
    *out = r;
    return 0;
}

void dead_letter_reader_close(struct dead_letter_reader *r)
{
    if (!r)
        return;
    if (r->fd >= 0)
        close(r->fd);
    json_close(r->json);
    free(r->bytes);
    free(r->texts);
    free(r);
}

uint64_t dead_letter_reader_position(const struct dead_letter_reader *r)
{
    return r->position;
}

void dead_letter_reader_seek(struct dead_letter_reader *r, uint64_t position)
{
    if (r->fd >= 0)
        close(r->fd);
    r->fd = -1;
    r->at = r->n = 0;
    r->position = position;
}

const char *dead_letter_reader_error(const struct dead_letter_reader *r)
{
    return r->error;
}

// Reading.

// Moves to the file that goes on at the position. 1: another one than before; 0: the same.
static int file_follow(struct dead_letter_reader *r)
{
    uint64_t position = r->position, start = r->start;
    const int fd = dead_letter_file_at(r->letters, &position, &start);
    if (fd < 0)
        return fail(r, fd, "open");
    const bool same = r->fd >= 0 && start == r->start && position == r->position;
    if (r->fd >= 0)
        close(r->fd);
    r->fd = fd;
    r->start = start;
    r->position = position;
    return !same;
}

// Adds to the bytes. 1: some; 0: none are there.
static int bytes_more(struct dead_letter_reader *r)
{
    for (;;) {
        memmove(r->bytes, r->bytes + r->at, r->n -= r->at);
        r->at = 0;
        if (r->capacity - r->n < READ_BYTES) {
            const size_t capacity = 2 * r->capacity + READ_BYTES;
            char *bytes = realloc(r->bytes, capacity);
            if (!bytes)
                return fail(r, -ENOMEM, "read");
            r->bytes = bytes;
            r->capacity = capacity;
        }
        const ssize_t got = r->fd < 0 ? 0
                                      : pread(r->fd, r->bytes + r->n, r->capacity - r->n,
                                              (off_t)(r->position - r->start + r->n));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return fail(r, -errno, "read");
        r->n += (size_t)got;
        if (got > 0)
            return 1;
        // The end of this file, perhaps of one that was rotated. A line is in one file.
        r->n = 0;
        const int rc = file_follow(r);
        if (rc <= 0)
            return rc;
    }
}

// The next whole line without its end; NULL and *rc when there is none.
static const char *line_next(struct dead_letter_reader *r, size_t *size, int *rc)
{
    for (;;) {
        const char *line = r->bytes + r->at;
        const char *newline = r->n > r->at ? memchr(line, '\n', r->n - r->at) : NULL;
        if (newline) {
            *size = (size_t)(newline - line);
            return line;
        }
        *rc = bytes_more(r);
        if (*rc <= 0)
            return NULL;
    }
}

static void line_done(struct dead_letter_reader *r, size_t size)
{
    r->at += size + 1;
    r->position += size + 1;
}

// Parsing.

// A copy with a zero behind it: some want one.
static const char *text_keep(struct dead_letter_reader *r, const char *bytes, size_t size)
{
    char *to = r->texts + r->texts_used;
    assert(size < r->texts_size - r->texts_used);
    memcpy(to, bytes, size);
    to[size] = '\0';
    r->texts_used += size + 1;
    return to;
}

static int digit_of(char c)
{
    return c >= 'A' && c <= 'Z'   ? c - 'A'
           : c >= 'a' && c <= 'z' ? c - 'a' + 26
           : c >= '0' && c <= '9' ? c - '0' + 52
           : c == '+'             ? 62
           : c == '/'             ? 63
                                  : -1;
}

static bool base64_decode(const char *from, size_t size, char *to, size_t *to_size)
{
    size_t n = 0;
    uint32_t bits = 0;
    if (size % 4 != 0)
        return false;
    while (size > 0 && from[size - 1] == '=' && n++ < 2)
        size--;
    n = 0;
    for (size_t i = 0; i < size; i++) {
        const int digit = digit_of(from[i]);
        if (digit < 0)
            return false;
        bits = bits << 6 | (uint32_t)digit;
        if (i % 4 > 0)
            to[n++] = (char)(bits >> (6 - 2 * (i % 4)));
    }
    *to_size = n;
    return true;
}

static bool string_read(struct dead_letter_reader *r, bool base64, const char **bytes, size_t *size)
{
    struct json_text text;
    if (json_kind(r->json) != JSON_STRING || json_string(r->json, &text) != JSON_OK)
        return false;
    char *kept = (char *)(uintptr_t)text_keep(r, text.bytes, text.size);
    *bytes = kept;
    *size = text.size;
    if (!base64)
        return true;
    const bool ok = base64_decode(kept, text.size, kept, size);
    kept[*size] = '\0';
    return ok;
}

static bool number_read(struct dead_letter_reader *r, int64_t *number)
{
    bool negative;
    uint64_t bits;
    if (json_kind(r->json) != JSON_NUMBER || json_integer(r->json, &negative, &bits) != JSON_OK)
        return false;
    *number = (int64_t)bits;
    return negative || *number >= 0;
}

static bool header_read(struct dead_letter_reader *r, bool base64, struct record_header *h)
{
    struct json *j = r->json;
    *h = (struct record_header){0};
    if (json_kind(j) != JSON_ARRAY || !json_enter(j) || !json_element(j) ||
        !string_read(r, base64, &h->name, &h->name_size) || !json_element(j))
        return false;
    if (json_kind(j) == JSON_NULL)
        json_skip(j);
    else if (!string_read(r, base64, &h->value, &h->value_size))
        return false;
    return !json_element(j);
}

static bool headers_read(struct dead_letter_reader *r, bool base64)
{
    if (json_kind(r->json) != JSON_ARRAY || !json_enter(r->json))
        return false;
    while (json_element(r->json)) {
        if (r->headers.n == RECORD_HEADERS_MAX ||
            !header_read(r, base64, &r->headers.list[r->headers.n]))
            return false;
        r->headers.n++;
    }
    return true;
}

static bool value_read(struct dead_letter_reader *r, bool base64, struct record *record)
{
    if (json_kind(r->json) == JSON_NULL) {
        json_skip(r->json);
        return record->tombstone = true;
    }
    return string_read(r, base64, &record->value, &record->value_size);
}

static bool is(struct json_text key, const char *name)
{
    return key.size == strlen(name) && !memcmp(key.bytes, name, key.size);
}

static bool field_read(struct dead_letter_reader *r, struct json_text key, struct letter *l)
{
    static const char suffix[] = "_base64";
    const size_t n = sizeof suffix - 1;
    const bool base64 = key.size > n && !memcmp(key.bytes + key.size - n, suffix, n);
    int64_t number = 0;
    size_t size;
    bool ok = true;
    if (base64)
        key.size -= n;
    if (is(key, "topic"))
        return string_read(r, base64, &l->topic, &size);
    if (is(key, "reason"))
        return string_read(r, base64, &l->reason, &size);
    if (is(key, "message"))
        return string_read(r, base64, &l->message, &size);
    if (is(key, "key"))
        return string_read(r, base64, &l->record.key, &l->record.key_size);
    if (is(key, "value"))
        return value_read(r, base64, &l->record);
    if (is(key, "headers"))
        return headers_read(r, base64);
    if (is(key, "partition")) {
        ok = number_read(r, &number);
        l->partition = (int32_t)number;
    } else if (is(key, "offset")) {
        ok = number_read(r, &l->record.offset);
    } else if (is(key, "ts")) {
        ok = number_read(r, &l->record.broker_ts_ms);
    } else if (is(key, "slice")) {
        ok = number_read(r, &number);
        l->slice = (uint64_t)number;
    } else if (is(key, "letter")) {
        ok = number_read(r, &number);
        l->letter = (uint64_t)number;
    } else if (is(key, "value_size")) {
        ok = number_read(r, &number);
        l->value_size = (size_t)number;
    } else if (is(key, "headers_left_out")) {
        ok = number_read(r, &number);
        r->headers.left_out = (int)number;
    } else { // of a later version
        json_skip(r->json);
    }
    return ok;
}

static int room_make(struct dead_letter_reader *r, size_t size)
{
    // A zero for each text: the headers', and some.
    const size_t texts_size = size + 2 * RECORD_HEADERS_MAX + 16;
    if (texts_size > r->texts_size) {
        char *texts = realloc(r->texts, 2 * texts_size);
        if (!texts)
            return -ENOMEM;
        r->texts = texts;
        r->texts_size = 2 * texts_size;
    }
    if (!r->json || size > r->json_max) {
        json_close(r->json);
        r->json = NULL;
        r->json_max = size < READ_BYTES ? READ_BYTES : 2 * size;
        return json_open(&r->json, r->json_max);
    }
    return 0;
}

static bool line_parse(struct dead_letter_reader *r, const char *line, size_t size,
                       struct letter *l)
{
    struct json_text key;
    *l = (struct letter){.record = {.broker_ts_ms = -1}, .headers = &r->headers};
    r->headers.n = r->headers.left_out = 0;
    r->texts_used = 0;
    json_begin(r->json, line, size);
    if (json_kind(r->json) != JSON_OBJECT || !json_enter(r->json))
        return false;
    while (json_field(r->json, &key))
        if (!field_read(r, key, l))
            return false;
    if (l->value_size < l->record.value_size)
        l->value_size = l->record.value_size;
    return json_end(r->json) == JSON_OK && l->topic && l->reason && l->message &&
           (l->record.value || l->record.tombstone);
}

int dead_letter_reader_next(struct dead_letter_reader *r, uint64_t slice_max, struct letter *letter)
{
    static const char begin[] = "{\"start\":";
    for (;;) {
        size_t size;
        int rc = 0;
        const char *line = line_next(r, &size, &rc);
        if (!line)
            return rc;
        if (size >= sizeof begin - 1 && !memcmp(line, begin, sizeof begin - 1)) {
            line_done(r, size);
            continue;
        }
        rc = room_make(r, size);
        if (rc < 0)
            return fail(r, rc, "read");
        if (!line_parse(r, line, size, letter)) {
            snprintf(r->error, sizeof r->error,
                     "%.300s: position %" PRIu64 ": a line that is no dead letter",
                     dead_letter_path(r->letters), r->position);
            line_done(r, size);
            return -EBADMSG;
        }
        if (letter->slice > slice_max) {
            // What is not durable yet may be written again: it is read anew then.
            r->at = r->n = 0;
            return 0;
        }
        line_done(r, size);
        return 1;
    }
}
