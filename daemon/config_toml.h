// SPDX-License-Identifier: Apache-2.0
//
// toml++ behind a door that C can use. Visits every value of a TOML text with its full key
// ("source.kafka.security.protocol", however it was nested or quoted) and where both stand.
#pragma once

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

enum toml_kind {
    TOML_KIND_TABLE, // the head of a section, visited before what is in it
    TOML_KIND_STRING,
    TOML_KIND_INTEGER,
    TOML_KIND_FLOAT,
    TOML_KIND_BOOL,
    TOML_KIND_OTHER // arrays, dates and times: no option takes one
};

struct toml_value {
    const char *key;
    enum toml_kind kind;
    const char *text; // "" for tables and other kinds; floats keep all their digits
    size_t text_size; // without the zero; larger than strlen when a string holds a zero byte
    int line, column; // of the last part of the key, from 1
    int value_line, value_column; // of the value
};

typedef void (*toml_visit_fn)(void *arg, const struct toml_value *value);

struct toml_error {
    int line, column;
    char message[256];
};

// bytes need not be terminated. The texts live until visit returns; the order is not the file's.
// 0; -EINVAL with *error when it is not TOML, and then nothing is visited; -ENOMEM.
int toml_visit(const char *bytes, size_t size, toml_visit_fn visit, void *arg,
               struct toml_error *error);

#ifdef __cplusplus
}
#endif
