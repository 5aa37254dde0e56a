// SPDX-License-Identifier: Apache-2.0
//
// The log: one line on stderr for each record, a sentence and its fields.
//
//     log_info("snapshot published", "generation=%" PRIu64 " bytes=%zu", generation, bytes);
//     log_info("ready", NULL);
//
// The fields are one printf format of name=value parts, separated by single spaces; a value with
// spaces or quotes in it comes out quoted and escaped, so nothing a record contains can make a line
// or a field of its own. Values of fields whose name is that of a secret (log_is_secret) are
// hidden.
//
// Three formats: text for people (under journald with its <6> priority prefix and without a time),
// logfmt and JSON for machines.
//
// Each place in the source has a bucket of LOG_BURST lines that refills at LOG_PER_SECOND; what is
// held back is counted, and the next line from there says suppressed=4312. Any thread may log.
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum log_level { LOG_LEVEL_DEBUG, LOG_LEVEL_INFO, LOG_LEVEL_WARNING, LOG_LEVEL_ERROR };
enum log_format { LOG_FORMAT_TEXT, LOG_FORMAT_LOGFMT, LOG_FORMAT_JSON };

enum { LOG_BURST = 10, LOG_PER_SECOND = 1 };

// One per place in the source; zeroed, it is full.
struct log_site {
    const char *message;
    int64_t spent_until_ms; // when the bucket will be full again
    uint64_t suppressed;
    struct log_site *next;
};

// Until it is called: text, info and above, stderr. fd is not closed.
void log_init(enum log_level level, enum log_format format, int fd);
// Says what is still suppressed; call it at exit.
void log_flush(void);

__attribute__((format(printf, 4, 5))) void log_write(struct log_site *site, enum log_level level,
                                                     const char *message, const char *fields, ...);
// For lines that come from elsewhere (librdkafka), with syslog's levels 0..7.
void log_foreign(int syslog_level, const char *origin, const char *text);

// Whether a name is that of a password, key or token, whose value nobody may print.
bool log_is_secret(const char *name);

// Takes a line from the bucket at this time, if there is one.
bool log_site_take(struct log_site *site, int64_t now_ms);

extern _Atomic int log_level_now;

#define LOG_AT(level, ...)                                                                         \
    do {                                                                                           \
        static struct log_site log_site_;                                                          \
        if ((int)(level) >= atomic_load_explicit(&log_level_now, memory_order_relaxed))            \
            log_write(&log_site_, (level), __VA_ARGS__);                                           \
    } while (0)
#define log_debug(...)   LOG_AT(LOG_LEVEL_DEBUG, __VA_ARGS__)
#define log_info(...)    LOG_AT(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_warning(...) LOG_AT(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_error(...)   LOG_AT(LOG_LEVEL_ERROR, __VA_ARGS__)
