// SPDX-License-Identifier: Apache-2.0
//
// Reads back what pipeline/dead_letter.h writes, while it is being written: the letters of PATH.1
// and PATH in their order, from the oldest that is there.
//
// One thread owns a reader; it may be another than the dead letters'. The reader ends first.
// Functions return 0 or -errno, and then dead_letter_reader_error has the sentence.
#pragma once

#include "pipeline/dead_letter.h"

struct dead_letter_reader;

// After dead_letter_follow, before anything is put.
int dead_letter_reader_open(struct dead_letter_reader **r, struct dead_letter *d);
void dead_letter_reader_close(struct dead_letter_reader *r);

// The next letter, if it is of a slice up to slice_max: 1, and it is valid until the next call.
// 0: none now. -EBADMSG: a line that is no letter, which is passed over. Lines that were written
// when they named no slice are of slice 0.
int dead_letter_reader_next(struct dead_letter_reader *r, uint64_t slice_max,
                            struct letter *letter);
// The position after the last letter that was read, or line that was passed over.
uint64_t dead_letter_reader_position(const struct dead_letter_reader *r);
// Goes on at such a position.
void dead_letter_reader_seek(struct dead_letter_reader *r, uint64_t position);
const char *dead_letter_reader_error(const struct dead_letter_reader *r);
