// SPDX-License-Identifier: Apache-2.0
//
// Fuzzes the reading of a slice log: the files of an input are those of a state directory. Of the
// options, the first byte gives the number of partitions, the second the slice to read after, and
// with 's' as the third every record gets its right checksum and that of the record before, without
// which a changed record is never more than a torn tail.
//
// A log that opens gives slices in order, without a gap, and what is appended to it is read back.
#include "pipeline/slice_log.h"

#include <unistd.h>

#include "snapshot/crc32c.h"
#include "tests/fuzz/fuzz.h"

// Of a record as pipeline/slice_log.c writes it.
enum { CRC_AT = 4, PREVIOUS_AT = 8, SIZE_AT = 12, HEADER = 88 };

struct seen {
    uint64_t after, last;
    int n_partitions;
    int64_t sum; // of all that was given, so that the sanitizer sees whether it is there
};

static int see(void *arg, const struct slice_record *record)
{
    struct seen *s = arg;
    require(record->number > s->after, "only slices after the given one are told");
    require(record->number == (s->last ? s->last : s->after) + 1, "slices have no gap");
    require(record->values.n >= 0 && record->values.n <= SLATE_TASKS_MAX, "tasks are few");
    for (int p = 0; p < s->n_partitions; p++)
        s->sum ^= record->next[p] ^ record->epoch[p] ^ record->flags[p];
    for (int i = 0; i < record->n_verdicts; i++) {
        require(record->verdicts[i].partition < s->n_partitions, "verdicts name partitions");
        s->sum ^= record->verdicts[i].offset;
    }
    for (int i = 0; i < record->n_moves; i++) {
        require(record->moves[i].partition < s->n_partitions, "moves name partitions");
        s->sum ^= record->moves[i].to;
    }
    s->last = record->number;
    return 0;
}

static uint32_t get_u32(const uint8_t *bytes)
{
    uint32_t value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

// Walks the records as the reader would. Returns the checksum of the last.
static uint32_t records_seal(uint8_t *bytes, size_t size, uint32_t previous)
{
    for (size_t at = 0; at + HEADER <= size;) {
        const size_t length = get_u32(bytes + at + SIZE_AT);
        if (length < HEADER || length > size - at)
            break;
        memcpy(bytes + at + PREVIOUS_AT, &previous, sizeof previous);
        previous = crc32c(0, bytes + at + PREVIOUS_AT, length - PREVIOUS_AT);
        memcpy(bytes + at + CRC_AT, &previous, sizeof previous);
        at += length;
    }
    return previous;
}

static void append_and_read_back(struct slice_log *l, const struct seen *before)
{
    static int64_t next[256];
    static int32_t epoch[256];
    static uint8_t flags[256];
    struct slice_log again;
    struct seen seen = {.after = before->after, .n_partitions = l->n_partitions};
    const uint64_t last = l->last ? l->last : before->after;
    const struct slice slice = {.number = last + 1,
                                .order = SLICE_LIVE,
                                .n_partitions = l->n_partitions,
                                .next = next,
                                .epoch = epoch,
                                .flags = flags,
                                .values = {.n = (int)(last % 3)}};
    char error[256];
    require(slice_log_append(l, &slice) == 0, "an opened log takes a slice");
    require(slice_log_sync(l, error, sizeof error) == 0, "an opened log can be synced");
    const int rc =
        slice_log_open(&again, NULL, l->path, l->n_partitions, 1 << 20, seen.after, see, &seen);
    if (rc < 0)
        fprintf(stderr, "%s\n", again.error);
    require(rc == 0 && seen.last == slice.number, "what was appended is read back");
    slice_log_close(&again);
}

// The highest of a few more: it rises when one was left open among them.
static int descriptors(void)
{
    int more[16];
    for (int i = 0; i < 16; i++)
        more[i] = dup(STDERR_FILENO);
    require(more[15] >= 0, "there are file descriptors");
    for (int i = 0; i < 16; i++)
        close(more[i]);
    return more[15];
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct entry entries[ENTRIES_MAX];
    struct slice_log log;
    size_t options;
    char path[400];
    const int before = descriptors();

    const int n = entries_split(data, size, &options, entries);
    if (options < 2)
        return 0;
    const int n_partitions = data[0] % 8 + 1;
    const int sealed = options > 2 && data[2] == 's';
    struct seen seen = {.after = (uint64_t)(data[1] % 16), .n_partitions = n_partitions};
    uint32_t crc = 0;
    for (int i = 0; i < n; i++) {
        uint8_t *bytes = malloc(entries[i].size + 1);
        require(bytes != NULL, "there is memory");
        memcpy(bytes, entries[i].bytes, entries[i].size);
        if (sealed)
            crc = records_seal(bytes, entries[i].size, crc);
        snprintf(path, sizeof path, "%s/%s", scratch(), entries[i].name);
        file_put(path, bytes, entries[i].size);
        free(bytes);
    }
    const int rc =
        slice_log_open(&log, NULL, scratch(), n_partitions, 1 << 20, seen.after, see, &seen);
    if (rc < 0)
        require(log.error[0] != '\0', "a refusal has a sentence");
    else if (log.last < UINT64_MAX - 1)
        append_and_read_back(&log, &seen);
    slice_log_close(&log);
    scratch_clear();
    require(descriptors() == before, "no file is left open");
    return 0;
}
