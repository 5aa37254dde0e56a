// SPDX-License-Identifier: Apache-2.0
//
// Delivers dead letters to a Kafka topic (dead_letter.topic): a thread that reads what the ingest
// thread writes (pipeline/dead_letter.h) and sends it (pipeline/dead_letter_kafka.h).
//
// The file is the queue in every case, and all there is of it: a letter is sent when its slice is
// synced in the slice log, which the thread does itself once a second while there are letters; so
// what is in the topic is never the effect of a slice that a restart would cut differently. How far
// the broker has confirmed, in order, lies in PATH.delivered, and a restart goes on there: a letter
// is sent again if the process died between the confirmation and the note, and none is left out.
// What has been delivered is named by slice and letter, which do not change when slices are applied
// again.
//
// While the broker is away the file grows, and nothing else waits; until both files are full. Then
// the ingest thread is to wait (letters_full), or letters are dropped and counted, as dead_letter.
// on_unavailable says. A topic that is not there or may not be written is told, counted and tried
// again.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "daemon/config.h"
#include "pipeline/dead_letter.h"
#include "pipeline/slice_log.h"

struct letters;

// Begins the thread. slice: the last one in the log; PATH.delivered beyond it is of another
// history.
int letters_open(struct letters **l, const struct config *c, struct dead_letter *d,
                 struct slice_log *log, uint64_t slice, char *error, size_t error_size);
// For the ingest thread: the slice is in the log, its letters are in the file.
void letters_logged(struct letters *l, uint64_t slice, uint64_t dead_letters);
// For the ingest thread, before it cuts a slice: nothing more may be written. Says so, once.
bool letters_full(struct letters *l);
// When nobody writes any more. Delivers what is there, while that succeeds and for half a minute.
void letters_close(struct letters *l);
