// SPDX-License-Identifier: Apache-2.0
#include "pipeline/event.h"

const char *const topic_names[TOPICS] = {
    [TOPIC_ITEMS] = "items",
    [TOPIC_SCORES] = "ranker_scores",
    [TOPIC_IMPRESSIONS] = "impressions",
    [TOPIC_ENGAGEMENTS] = "engagements",
};
