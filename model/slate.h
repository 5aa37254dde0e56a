// SPDX-License-Identifier: Apache-2.0
//
// A slate: what one request showed to a user, what came of it, and what the main ranker had said
// about it. The join emits it (pipeline/join.h), the trainer keeps it until the next step, and the
// terms on slates learn from it: light ranker, distillation, alignment, and the debiasing
// estimators (model/two_tower.h).
//
// Tasks are the named kinds of engagement that have a value (click, like, hide, ..). Task t of a
// slate is task t of the configuration. An item's net value is sum_t weight_t y_t.
#pragma once

#include <stdint.h>

#include "model/history.h"

enum {
    SLATE_TASKS_MAX = 8,
    SLATE_ITEMS_MAX = 64, // of one request; what goes beyond is counted and left out
    SURFACES_MAX = 8,     // surface 0 stands for none and for those beyond the first seven
    TASK_NONE = 255,      // where one task is named by its number
};

// What a slate says and when it is emitted.
enum slate_kind {
    // The last window has closed: labels are final. Exactly one for each request shown, and one
    // more for each further ranker version.
    SLATE_CLOSED,
    // Labels as of `feedback delay` after the impression; what is not engaged yet may be later.
    // Only when that delay is shorter than the windows; then exactly one, before the closed one.
    // Shown items only, what the request shows afterwards is not among them, and no scores: those
    // come once, with the closed slate.
    SLATE_EARLY,
    // One item, one task: an engagement after the early slate had called it a negative. No scores.
    SLATE_LATE_POSITIVE,
};

struct slate_item {
    uint32_t item;    // row
    float propensity; // of being shown; 0 when not logged
    int16_t position; // as logged; -1 when not logged
    uint8_t shown;    // 0: the ranker scored it, but it was not shown
    uint8_t reserved;
    uint32_t labels; // bit t: task t
};

struct slate {
    uint32_t user; // row
    uint8_t kind;  // enum slate_kind
    uint8_t surface;
    // Number of the ranker's version, 0 when it did not score. All scores of a slate are of one
    // version: a request scored by two is emitted once for each, the second time with `repeated`.
    uint8_t ranker;
    uint8_t repeated; // labels have been seen before: the teacher's terms alone read it
    uint16_t n_items;
    uint8_t n_history, n_newest;                     // as in struct example
    uint8_t reserved[4];                             // no padding: checkpoints have every byte
    int64_t ts_ms;                                   // of the impression
    uint32_t history[HISTORY_MAX];                   // item rows as of the impression, newest first
    uint8_t actions[HISTORY_MAX], gaps[HISTORY_MAX]; // of each, as in struct example
    struct slate_item items[SLATE_ITEMS_MAX];
};

// Items lie in the order of their positions, those without one after them as they came, then what
// was only scored. An item shown at two places is there twice, with one label.
//
// Scores lie beside the slates, (n_items, tasks) for each, item by item: NAN where the ranker gave
// none for this item and task.
