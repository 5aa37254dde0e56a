// SPDX-License-Identifier: Apache-2.0
//
// The columns of a table whose rows have names: ids, an index from id to row, strings.
//
// Ids are strings or integers of 64 bits. When every id of a table is an integer of at least 0:
//
//     <table>_ids.safetensors        "ids"     U64 [N]      role <table>_ids
// else, in the layout of Arrow's LargeUtf8 with a kind beside it:
//     <table>_ids_str.bin            bytes of all ids       role <table>_ids_bytes
//     <table>_ids_off.safetensors    "offsets" U64 [N+1]    role <table>_ids_offsets
//     <table>_ids_kind.safetensors   "kind"    U8 [N]       role <table>_ids_kind
//                                    0 string, 1 integer, printed in decimal
// and always
//     <table>_index.oidx             see id_index.h         role <table>_index
//
// A string column is <name>.bin and <name>_off.safetensors with roles <name>_bytes, <name>_offsets.
#pragma once

#include <stddef.h>
#include <stdint.h>

struct writer;

enum ids_kind { IDS_STRING, IDS_INTEGER };

struct ids_entry {
    enum ids_kind kind;
    uint64_t integer;  // of IDS_INTEGER; two's complement when negative
    uint8_t negative;  // of IDS_INTEGER
    const char *bytes; // of IDS_STRING: size bytes, not terminated
    size_t size;
};

// Gives the id of a row. Called for every row in order, twice.
typedef void ids_get_fn(void *arg, uint64_t row, struct ids_entry *id);
// Gives the string of a row, size 0 when there is none. Called for every row in order, twice.
typedef void strings_get_fn(void *arg, uint64_t row, const char **bytes, size_t *size);

// Writes the ids of n < 2^32 - 1 rows and their index. Needs 24 bytes of memory a row meanwhile.
// No two rows have the same id. Errors are the writer's: 0 or -errno, and they stay.
int ids_write(struct writer *w, const char *table, uint64_t n, ids_get_fn *get, void *arg);
// Writes a string column of n rows, for instance titles: name "item_titles". Needs 4 bytes a row.
int strings_write(struct writer *w, const char *name, uint64_t n, strings_get_fn *get, void *arg);
