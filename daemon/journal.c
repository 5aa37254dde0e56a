// SPDX-License-Identifier: Apache-2.0
#include "daemon/journal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/log.h"
#include "snapshot/catalog.h"
#include "snapshot/storage.h"

enum { PATH_SIZE = 4096, OWNER_SIZE_MAX = 64 };

static const char owner_name[] = "owner", owner_temporary[] = ".tmp-owner";

static struct storage *storage_of(const struct journal *j)
{
    return j->options.storage ? j->options.storage : &storage_disk;
}

// ---- The owner

// The number in state.dir/owner, 0 when there is none.
static int owner_read(struct storage *s, int directory, uint64_t *owner)
{
    char *text;
    size_t size;
    *owner = 0;
    const int rc = storage_get(s, directory, owner_name, OWNER_SIZE_MAX, &text, &size);
    if (rc == -ENOENT)
        return 0;
    if (rc < 0)
        return rc;
    char *end;
    *owner = strtoull(text, &end, 10);
    const bool whole = end != text && *end == '\n';
    free(text);
    return whole ? 0 : -EBADMSG;
}

// The state directory becomes ours: the next number, durable before anything else is written.
static int owner_take(struct journal *j, char *error, size_t error_size)
{
    struct storage *s = storage_of(j);
    const char *dir = j->options.config->state_dir;
    char text[OWNER_SIZE_MAX];
    const int directory = s->ops->open(s, STORAGE_CWD, dir, O_RDONLY | O_DIRECTORY, 0);
    int rc = directory < 0 ? directory : owner_read(s, directory, &j->owner);
    if (rc == 0) {
        const int n = snprintf(text, sizeof text, "%" PRIu64 "\n", ++j->owner);
        s->ops->remove(s, directory, owner_temporary, false);
        rc = storage_put(s, directory, owner_temporary, text, (size_t)n);
    }
    if (rc == 0)
        rc = s->ops->rename(s, directory, owner_temporary, owner_name);
    if (rc == 0)
        rc = s->ops->sync(s, directory);
    if (directory >= 0)
        s->ops->close(s, directory);
    if (rc < 0)
        snprintf(error, error_size, "%s/%s: %s", dir, owner_name,
                 rc == -EBADMSG ? "not the number of an owner" : strerror(-rc));
    return rc;
}

// The lock keeps two processes of one machine apart; this, also those that share a file system
// that has no locks. Asked right before something of ours becomes visible.
static int owner_check(void *arg, char *error, size_t error_size)
{
    const struct journal *j = arg;
    struct storage *s = storage_of(j);
    const char *dir = j->options.config->state_dir;
    uint64_t owner;
    const int directory = s->ops->open(s, STORAGE_CWD, dir, O_RDONLY | O_DIRECTORY, 0);
    int rc = directory < 0 ? directory : owner_read(s, directory, &owner);
    if (directory >= 0)
        s->ops->close(s, directory);
    if (rc < 0) {
        snprintf(error, error_size, "%s/%s: %s", dir, owner_name, strerror(-rc));
    } else if (owner != j->owner) {
        snprintf(error, error_size,
                 "%s: another process has taken it over (owner %" PRIu64 ", we are %" PRIu64 ")",
                 dir, owner, j->owner);
        rc = -EBUSY;
    }
    return rc;
}

int journal_owned(const struct journal *j, char *error, size_t error_size)
{
    return owner_check((void *)(uintptr_t)j, error, error_size);
}

// ---- Restoring

static int catalogs_open(struct journal *j, char *error, size_t error_size)
{
    char path[PATH_SIZE];
    const char *dir = j->options.config->state_dir;
    snprintf(path, sizeof path, "%s/checkpoints", dir);
    int rc = catalog_open(&j->checkpoints, j->options.storage, path, error, error_size);
    snprintf(path, sizeof path, "%s/final", dir);
    if (rc == 0)
        rc = catalog_open(&j->final, j->options.storage, path, error, error_size);
    return rc;
}

static int checkpoints_list(struct journal *j, char *error, size_t error_size)
{
    const uint64_t *list;
    const int n = catalog_list(j->checkpoints, &list);
    struct state_stamp stamp;
    char path[PATH_SIZE];
    if (n < 0) {
        snprintf(error, error_size, "%s", catalog_error(j->checkpoints));
        return n;
    }
    for (int i = n > JOURNAL_KEPT_MAX ? n - JOURNAL_KEPT_MAX : 0; i < n; i++) {
        catalog_path(j->checkpoints, list[i], path, sizeof path);
        if (state_stamp_read(path, &stamp, error, error_size) == 0)
            j->kept[j->n_kept++] = stamp;
        else
            log_warning("checkpoint left aside", "reason=%s", error);
    }
    return n;
}

static int state_load(struct journal *j, struct trainer *trainer, const char *path, char *error,
                      size_t error_size)
{
    const struct journal_options *o = &j->options;
    const int rc = state_restore(trainer, path, o->config, o->partitions, o->n_partitions,
                                 &j->stamp, error, error_size);
    j->restored = rc == 0;
    return rc;
}

// From the newest checkpoint that can be used.
static int restore(struct journal *j, struct trainer *trainer, char *error, size_t error_size)
{
    char path[PATH_SIZE];
    const int n = checkpoints_list(j, error, error_size);
    if (n < 0)
        return n;
    if (n == 0) {
        for (int p = 0; p < j->options.n_partitions; p++)
            *(struct partition_position *)column_edit(&trainer->position, (size_t)p) =
                (struct partition_position){j->options.from[p], INT64_MIN, -1};
        return 0;
    }
    // A damaged one costs time, not data: the slices since the one before it are still in the log.
    int rc = -EBADMSG;
    while (rc == -EBADMSG && j->n_kept > 0) {
        catalog_path(j->checkpoints, j->kept[j->n_kept - 1].generation, path, sizeof path);
        rc = state_load(j, trainer, path, error, error_size);
        if (rc == -EBADMSG) {
            log_warning("checkpoint left aside", "reason=%s", error);
            j->n_kept--;
        }
    }
    if (rc < 0) // to begin again from nothing is for a person to decide
        return rc;
    atomic_store(&j->durable_slice, j->kept[0].slice);
    log_info("restored", "checkpoint=%" PRIu64 " slice=%" PRIu64 " examples=%" PRIu64,
             j->stamp.generation, j->stamp.slice, trainer_state(trainer)->examples);
    return 0;
}

// ---- What is recorded

static void *copy(unsigned char **to, const void *from, size_t n)
{
    void *at = *to;
    if (n > 0)
        memcpy(at, from, n);
    *to += (n + sizeof(max_align_t) - 1) / sizeof(max_align_t) * sizeof(max_align_t);
    return at;
}

static bool verdicts_add(struct journal *j, const struct slice_record *record)
{
    const size_t n = (size_t)j->n_verdicts + (size_t)record->n_verdicts;
    if (record->n_verdicts == 0)
        return true;
    struct slice_verdict *more = realloc(j->verdicts, n * sizeof *more);
    if (!more)
        return false;
    memcpy(more + j->n_verdicts, record->verdicts, (size_t)record->n_verdicts * sizeof *more);
    j->verdicts = more;
    j->n_verdicts = (int)n;
    return true;
}

static int recorded_add(void *arg, const struct slice_record *record)
{
    struct journal *j = arg;
    const size_t n = (size_t)j->options.n_partitions;
    const size_t sizes = n * (sizeof *record->next + sizeof *record->epoch + 1) +
                         (size_t)record->n_verdicts * sizeof *record->verdicts +
                         (size_t)record->n_moves * sizeof *record->moves + 5 * sizeof(max_align_t);
    if (record->number > j->options.recorded_to)
        return 0;
    j->recorded_ends = record->last;
    if (record->number <= j->recorded_after)
        return 0;
    struct recorded *r = malloc(sizeof *r + sizes);
    if (!r || !verdicts_add(j, record)) {
        free(r);
        return -ENOMEM;
    }
    unsigned char *at = (unsigned char *)r->memory;
    r->next = NULL;
    r->record = *record;
    r->record.next = copy(&at, record->next, n * sizeof *record->next);
    r->record.epoch = copy(&at, record->epoch, n * sizeof *record->epoch);
    r->record.flags = copy(&at, record->flags, n);
    r->record.verdicts =
        copy(&at, record->verdicts, (size_t)record->n_verdicts * sizeof *record->verdicts);
    r->record.moves = copy(&at, record->moves, (size_t)record->n_moves * sizeof *record->moves);
    *j->recorded_end = r;
    j->recorded_end = &r->next;
    j->recorded_last = record->number;
    return 0;
}

static void recorded_clear(struct journal *j)
{
    while (j->recorded) {
        struct recorded *next = j->recorded->next;
        free(j->recorded);
        j->recorded = next;
    }
    j->recorded_end = &j->recorded;
    free(j->verdicts);
    free(j->recorded_next);
    j->verdicts = NULL;
    j->recorded_next = NULL;
    j->n_verdicts = 0;
    j->recorded_last = 0;
    j->recorded_ends = false;
}

// The cutter's view of all that is recorded.
static int recorded_close(struct journal *j)
{
    const size_t n = (size_t)j->options.n_partitions;
    if (!j->recorded)
        return 0;
    j->recorded_next = malloc(n * sizeof *j->recorded_next);
    if (!j->recorded_next)
        return -ENOMEM;
    for (const struct recorded *r = j->recorded; r; r = r->next)
        memcpy(j->recorded_next, r->record.next, n * sizeof *j->recorded_next);
    if (j->n_verdicts > 1)
        qsort(j->verdicts, (size_t)j->n_verdicts, sizeof *j->verdicts, slice_verdict_compare);
    return 0;
}

// Of another run's directory: its oldest checkpoint from which its log goes on, when the log does
// not go back to the first slice and we have no state of our own.
static int recorded_restore(struct journal *j, struct trainer *trainer, uint64_t first, char *error,
                            size_t error_size)
{
    struct catalog *other;
    const uint64_t *list;
    char path[PATH_SIZE];
    snprintf(path, sizeof path, "%s/checkpoints", j->options.recorded);
    // Not locked: the run may be alive. It removes its oldest checkpoint now and then.
    int rc = catalog_look(&other, NULL, path, error, error_size);
    if (rc < 0)
        return rc;
    const int n = catalog_list(other, &list);
    rc = -ENOENT;
    snprintf(error, error_size,
             "%s: its slice log begins with slice %" PRIu64 ", and no checkpoint is there to go on "
             "from: slice.log_keep says how much of a log is kept",
             j->options.recorded, first);
    for (int i = 0; i < n && rc < 0; i++) {
        struct state_stamp stamp;
        char why[1024];
        catalog_path(other, list[i], path, sizeof path);
        if (state_stamp_read(path, &stamp, why, sizeof why) < 0 || stamp.slice + 1 < first ||
            stamp.slice > j->options.recorded_to)
            continue;
        rc = state_load(j, trainer, path, error, error_size);
    }
    catalog_close(other);
    return rc;
}

static int recorded_read(struct journal *j, struct trainer *trainer, char *error, size_t error_size)
{
    const struct journal_options *o = &j->options;
    uint64_t first;
    int rc = slice_log_read(o->recorded, o->n_partitions, UINT64_MAX - 1, &first, NULL, NULL, error,
                            error_size);
    if (rc == 0 && first == 0) {
        snprintf(error, error_size, "%s: no slice log is there", o->recorded);
        rc = -ENOENT;
    }
    if (rc == 0 && !j->restored && j->recorded_own == 0 && first > 1)
        rc = recorded_restore(j, trainer, first, error, error_size);
    // Behind what our own log has of it already; the last of that is read once more, to know
    // whether it was the end.
    const uint64_t after = j->recorded_own > j->stamp.slice ? j->recorded_own : j->stamp.slice;
    j->recorded_after = after;
    if (rc == 0)
        rc = slice_log_read(o->recorded, o->n_partitions,
                            after > 0 && first <= after ? after - 1 : after, &first, recorded_add,
                            j, error, error_size);
    return rc;
}

// ---- Opening

static int dead_letters_open(struct journal *j, const struct trainer *trainer, char *error,
                             size_t error_size)
{
    char path[PATH_SIZE];
    config_dead_letter_path(j->options.config, path, sizeof path);
    int rc =
        dead_letter_open(&j->dead_letter, path, (uint64_t)j->options.config->dead_letter_max_bytes);
    // What was written after the checkpoint will be written again.
    if (rc == 0)
        rc = dead_letter_truncate(j->dead_letter, (uint64_t)trainer_state(trainer)->dead_letters);
    if (rc < 0)
        snprintf(error, error_size, "%s",
                 j->dead_letter ? dead_letter_error(j->dead_letter) : strerror(-rc));
    return rc;
}

static int log_open(struct journal *j, char *error, size_t error_size)
{
    const struct config *c = j->options.config;
    const uint64_t to = j->options.recorded_to;
    j->options.recorded_to = UINT64_MAX; // which is not for what is ours
    j->log_open = true;
    const int rc =
        slice_log_open(&j->log, j->options.storage, c->state_dir, j->options.n_partitions,
                       c->slice_log_max_bytes, j->stamp.slice, recorded_add, j);
    j->options.recorded_to = to;
    j->recorded_own = j->recorded_last;
    j->log.permit = owner_check;
    j->log.permit_arg = j;
    if (rc < 0)
        snprintf(error, error_size, "%s", *j->log.error ? j->log.error : strerror(-rc));
    return rc;
}

int journal_open(struct journal *j, const struct journal_options *options, struct trainer *trainer,
                 char *error, size_t error_size)
{
    *j = (struct journal){.options = *options, .log = {.file = -1, .directory = -1}};
    j->recorded_end = &j->recorded;
    snprintf(error, error_size, "out of memory");
    int rc = catalogs_open(j, error, error_size);
    if (rc == 0)
        rc = owner_take(j, error, error_size);
    if (rc == 0)
        rc = restore(j, trainer, error, error_size);
    if (rc == 0)
        rc = log_open(j, error, error_size);
    if (rc == 0 && options->recorded)
        rc = recorded_read(j, trainer, error, error_size);
    if (rc == 0)
        rc = recorded_close(j);
    if (rc == 0)
        rc = dead_letters_open(j, trainer, error, error_size);
    return rc;
}

void journal_close(struct journal *j)
{
    recorded_clear(j);
    if (j->log_open)
        slice_log_close(&j->log);
    if (j->dead_letter)
        dead_letter_close(j->dead_letter);
    if (j->checkpoints)
        catalog_close(j->checkpoints);
    if (j->final)
        catalog_close(j->final);
    *j = (struct journal){0};
}

// ---- The ingest thread

static int fail(struct journal *j, int rc, const char *text)
{
    snprintf(j->error, sizeof j->error, "%s", text);
    return rc;
}

const struct slice_record *journal_recorded(const struct journal *j)
{
    return j->recorded ? &j->recorded->record : NULL;
}

// Until a slice's letters are on the disk nothing may be derived from it.
static int letters_sync(struct journal *j, const struct slice *slice)
{
    const int rc = slice_rejects(slice) > 0 ? dead_letter_sync(j->dead_letter) : 0;
    return rc < 0 ? fail(j, rc, dead_letter_error(j->dead_letter)) : 0;
}

int journal_taken(struct journal *j, const struct slice *slice)
{
    struct recorded *r = j->recorded;
    assert(r && r->record.number == slice->number);
    j->recorded = r->next;
    if (!j->recorded)
        j->recorded_end = &j->recorded;
    free(r);
    return slice->number > j->recorded_own ? journal_append(j, slice) : letters_sync(j, slice);
}

int journal_forget(struct journal *j)
{
    recorded_clear(j);
    j->recorded_own = 0;
    const int rc = slice_log_forget(&j->log, j->stamp.slice);
    return rc < 0 ? fail(j, rc, j->log.error) : 0;
}

int journal_append(struct journal *j, const struct slice *slice)
{
    const int rc = slice_log_append(&j->log, slice);
    return rc < 0 ? fail(j, rc, j->log.error) : letters_sync(j, slice);
}

int journal_trim(struct journal *j)
{
    const uint64_t durable = atomic_load(&j->durable_slice);
    if (durable == j->trimmed)
        return 0;
    j->trimmed = durable;
    const int rc = slice_log_trim(&j->log, durable, j->options.config->slice_log_keep_bytes);
    return rc < 0 ? fail(j, rc, j->log.error) : 1;
}

// ---- The writer thread

static void checkpoint_kept(struct journal *j, struct state_stamp stamp)
{
    const int keep = j->options.config->checkpoint_keep;
    if (catalog_retain(j->checkpoints, keep) < 0)
        log_warning("old checkpoints not removed", "reason=%s", catalog_error(j->checkpoints));
    assert(keep <= JOURNAL_KEPT_MAX);
    if (j->n_kept >= keep) { // room for one more
        memmove(j->kept, j->kept + (j->n_kept - keep + 1), (size_t)(keep - 1) * sizeof *j->kept);
        j->n_kept = keep - 1;
    }
    j->kept[j->n_kept++] = stamp;
    atomic_store(&j->durable_slice, j->kept[0].slice);
}

int journal_checkpoint(struct journal *j, struct trainer *trainer, bool final, uint64_t now_ms,
                       struct state_stamp *stamp, char *path, char *error, size_t error_size)
{
    const struct journal_options *o = &j->options;
    struct catalog *catalog = final ? j->final : j->checkpoints;
    char root[PATH_SIZE];
    uint64_t generation;
    int rc = catalog_next(catalog, now_ms, &generation);
    if (rc < 0)
        snprintf(error, error_size, "%s", catalog_error(catalog));
    // Nothing derived from a slice leaves before the slice itself is on the disk.
    if (rc == 0)
        rc = slice_log_sync(&j->log, error, error_size);
    if (rc < 0) {
        columns_cut_end(&trainer->columns);
        return rc;
    }
    snprintf(root, sizeof root, "%s/%s", o->config->state_dir, final ? "final" : "checkpoints");
    rc = state_write(trainer,
                     &(struct state_write_options){.root = root,
                                                   .generation = generation,
                                                   .engine = o->engine,
                                                   .config = o->config,
                                                   .partitions = o->partitions,
                                                   .n_partitions = o->n_partitions,
                                                   .permit = owner_check,
                                                   .permit_arg = j},
                     stamp, error, error_size);
    if (rc < 0) {
        // It may have become visible before something failed. Such must not pile up; LATEST, which
        // names the last good one, keeps that. What another process has taken over is left alone.
        if (rc != -EBUSY)
            catalog_retain(catalog, o->config->checkpoint_keep + 1);
        return rc;
    }
    catalog_path(catalog, generation, path, PATH_SIZE);
    if (final)
        catalog_retain(catalog, 1); // one state after the end is enough
    else
        checkpoint_kept(j, *stamp);
    return 0;
}
