// SPDX-License-Identifier: Apache-2.0
//
// The life of a daemon, in one thread and under a clock of its own: slices are cut from a source as
// bad as sources get (tests/sim/world.h), logged, applied, now and then kept in a checkpoint, from
// which now and then something is published, on a disk that forgets (tests/sim/disk.h). It crashes,
// is restored by the code that restores the daemon, and goes on with the same records in another
// order of arrival; then that life crashes, too. All of it is a function of a seed.
//
// What must hold after a crash at any moment, whatever the disk has lost:
//   - a checkpoint as new as the last acknowledged one is found, and a slice log that goes on
//     from it; a newest checkpoint that is damaged costs time and no slice;
//   - after every slice that is applied again all columns are as they were in the life that has
//     cut it, though the source gives its records in other pieces;
//   - what a fleet finds is what was acknowledged, or newer, and of slices that are still there;
//   - in the end every record has become exactly one thing, and every rejected one is one letter;
//   - in canonical order the end is the same for every arrival and every crash.
//
// That the test can fail is a test as well: protocols with one thing left out must be caught.
//
// TWOTOWER_SIM_SEED=N (tests/run sim --seed N) plays that seed alone, and says what it does.
#include "daemon/assemble.h"
#include "daemon/journal.h"
#include "daemon/log.h"
#include "model/arena.h"
#include "model/tables.h"
#include "snapshot/catalog.h"
#include "snapshot/twotower_reader.h"
#include "tests/sim/disk.h"
#include "tests/sim/world.h"
#include "tests/unit/test_snapshot.h"

#include <xxhash.h>

// Sanitizers make it ten times slower; what they are to find is in the first seeds.
#ifdef __SANITIZE_ADDRESS__
enum { SEEDS = 100 };
#else
enum { SEEDS = 1000 };
#endif

enum {
    SLICES_MAX = 4096,
    NOTES_MAX = 8192,
    LIVES = 3,   // in a row
    CRASHES = 3, // of each; the last is what the next life begins with
    MUTANT_SEEDS = 100,
    TICKS_MAX = 20000,
    VALUES = 3, // tasks
};

// What is left out of the protocol.
enum mutant {
    NONE,
    LOG_NOT_SYNCED,
    LOG_DIRECTORY_NOT_SYNCED,
    CHECKPOINT_DATA_NOT_SYNCED,
    CHECKPOINT_MANIFEST_NOT_SYNCED,
    CHECKPOINT_DIRECTORY_NOT_SYNCED,
    CHECKPOINT_ROOT_NOT_SYNCED,
    SNAPSHOT_ROOT_NOT_SYNCED,
    LETTERS_NOT_SYNCED,
    LATEST_FIRST,
    FLAGS_DROPPED,
    FLOOR_DROPPED,
    VERDICTS_DROPPED,
    VALUES_DROPPED,
    SHED_DROPPED,
    TRIMMED_TO_NEWEST,
    ACKNOWLEDGED_FIRST,
    APPENDED_LAST,
    PUBLISHED_FIRST,
    MUTANTS
};

// What had been promised to the outside, from a moment on.
struct promise {
    int time;
    uint64_t checkpoint;                      // slice of the last acknowledged
    uint64_t snapshot;                        // generation of the last acknowledged
    uint64_t letters_synced, letters_written; // bytes of dead letters
};

struct machine {
    struct disk disk;
    struct engine *engine;
};

// What a seed is, and what has come of it so far.
static struct play {
    uint64_t seed;
    enum mutant mutant;
    bool aloud;
    enum slice_order order;
    struct rng rng;
    struct config config;
    char memory[CONFIG_MEMORY];
    struct arena arena;
    struct join_window windows[CONFIG_ENTRIES_MAX];
    struct world world;
    uint64_t truth[SLICES_MAX]; // by slice: all columns after it
    uint64_t last;              // the newest slice that was cut
    uint64_t end;               // canonical: all columns in the end; 0: not known
    int n_notes;
    struct promise promise, notes[NOTES_MAX];
    char *letters; // of the life that crashes
    size_t letters_size;
    char wrong[1400]; // "": nothing
} play;

static struct machine machines[2];
static struct disk_tree crashed;
static char real[64], state_dir[96], snapshot_dir[96], letters_path[96];

static struct counts {
    int seeds, lives, states, recovered, fallbacks;
    uint64_t slices, records;
    // Slices that have something that a clock, a queue or a person decided; and what became of
    // records in the end.
    uint64_t idle, floors, verdicts, valued, shed, out[OUTCOMES];
} counts;

struct life {
    struct machine *machine;
    struct trainer trainer;
    struct journal journal;
    struct cutter *cutter;
    struct catalog *snapshots;
    int cut_wait; // slices until the cut is written; -1: no cut is under way
    bool ended;
};

__attribute__((format(printf, 1, 2))) static bool wrong(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    if (!*play.wrong)
        vsnprintf(play.wrong, sizeof play.wrong, format, args);
    va_end(args);
    return false;
}

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    if (play.aloud) {
        vprintf(format, args);
        printf("\n");
    }
    va_end(args);
}

static uint64_t draw(uint64_t n)
{
    return rng_below(&play.rng, n);
}

// ---- What mutants do to the disk

static bool has(const char *text, const char *part)
{
    return strstr(text, part) != NULL;
}

// Whether the last change to the directory was a new file of the slice log.
static bool log_begun(const struct disk *d, int inode)
{
    const int last = inode < d->newest_max ? d->newest[inode] : -1;
    return last >= 0 && d->log[last].kind == DISK_ENTER && has(d->log[last].name, "slices-");
}

static bool lies(struct disk *d, const struct disk_handle *h)
{
    const bool directory = d->live.inodes[h->inode].directory;
    const bool building = has(h->path, "state/checkpoints/.tmp-");
    switch (play.mutant) {
    case LOG_NOT_SYNCED:
        return has(h->name, "slices-");
    case LOG_DIRECTORY_NOT_SYNCED:
        return log_begun(d, h->inode);
    case CHECKPOINT_DATA_NOT_SYNCED:
        return building && !directory && !has(h->name, "manifest");
    case CHECKPOINT_MANIFEST_NOT_SYNCED:
        return building && has(h->name, "manifest");
    case CHECKPOINT_DIRECTORY_NOT_SYNCED:
        return building && directory;
    case CHECKPOINT_ROOT_NOT_SYNCED:
        return strcmp(h->path, "state/checkpoints") == 0;
    case SNAPSHOT_ROOT_NOT_SYNCED:
        return strcmp(h->path, "snapshots") == 0;
    default:
        return false;
    }
}

// LATEST names a generation that is still to come.
static void before_rename(struct disk *d, int parent, const char *from, const char *to)
{
    char text[64];
    if (play.mutant == LATEST_FIRST && has(from, ".tmp-") && strtoull(to, NULL, 10) > 0)
        disk_put_file(d, parent, "LATEST", text,
                      (size_t)snprintf(text, sizeof text, "%s 00000000\n", to));
}

// ---- The configuration

static void set(const char *pair)
{
    struct config_problems problems = {0};
    if (config_set_pair(&play.config, pair, "test", &problems) < 0)
        fail_msg("%s: %s", pair, problems.list[0].text);
}

// Every second seed has slates, values of tasks and a ranker.
static void configure(void)
{
    static const char *const always[] = {
        "model.dim=4",          "model.history=4",      "model.repeat=4",
        "model.batch=4",        "model.replay=2",       "model.replay_window=16",
        "join.window=20s",      "join.lateness=4s",     "model.uniform_negatives=2",
        "tables.items_max=256", "tables.users_max=256", "checkpoint.keep=2",
        "join.max_future=30s",
    };
    play.arena = (struct arena){play.memory, sizeof play.memory, 0};
    config_init(&play.config, &play.arena);
    for (size_t i = 0; i < sizeof always / sizeof *always; i++)
        set(always[i]);
    if (play.seed % 2) {
        set("value.tasks=click=1,like=2,*=0.25");
        set("ranker.weight=0.2");
        set("slates.batch=4");
        set("slates.score_max_age=3s");
    }
    // Smaller than a person may ask for: files are begun and removed all the time, and checkpoints
    // are small.
    play.config.slice_log_max_bytes = 800 + (int64_t)draw(3000);
    play.config.slice_log_keep_bytes = draw(3) ? 0 : 5000;
    play.config.join_max_bytes = 1 << 16;
    play.config.state_dir = state_dir;
    play.config.snapshot_dir = snapshot_dir;
    play.config.dead_letter_path = letters_path;
}

// ---- The promises

static void note(const struct life *l)
{
    assert_true(play.n_notes < NOTES_MAX);
    play.promise.time = l->machine->disk.time;
    play.notes[play.n_notes++] = play.promise;
}

static const struct promise *promise_at(int time)
{
    int i = play.n_notes - 1;
    while (i > 0 && play.notes[i].time > time)
        i--;
    return &play.notes[i];
}

static void note_letters(const struct life *l, bool synced)
{
    const uint64_t size = dead_letter_size(l->journal.dead_letter);
    play.promise.letters_written = size;
    if (synced && play.mutant != LETTERS_NOT_SYNCED)
        play.promise.letters_synced = size;
    note(l);
}

// ---- The state

// Of all columns. across: what may differ between lives that have come to the same end, how many
// slices it took, is left out.
static uint64_t digest_of(const struct trainer *t, bool across)
{
    uint64_t digest = 0;
    for (int i = 0; i < t->columns.n; i++) {
        const struct column *c = t->columns.list[i];
        if (across && c == &t->state) {
            struct trainer_state state = *trainer_state(t);
            state.slices = 0;
            state.dead_letters = 0;
            digest = XXH3_64bits_withSeed(&state, sizeof state, digest);
        } else {
            digest = XXH3_64bits_withSeed(c->base, c->n * c->unit, digest + c->n);
        }
    }
    return digest;
}

// ---- A life

static int64_t nothing[WORLD_PARTITIONS];
static const int64_t unbounded[WORLD_PARTITIONS] = {
    SOURCE_UNBOUNDED, SOURCE_UNBOUNDED, SOURCE_UNBOUNDED, SOURCE_UNBOUNDED,
    SOURCE_UNBOUNDED, SOURCE_UNBOUNDED, SOURCE_UNBOUNDED, SOURCE_UNBOUNDED,
    SOURCE_UNBOUNDED, SOURCE_UNBOUNDED, SOURCE_UNBOUNDED, SOURCE_UNBOUNDED};

// As job_open begins to read.
static bool reading_open(struct life *l)
{
    struct source *s = &play.world.source;
    int64_t next[WORLD_PARTITIONS], time_max[WORLD_PARTITIONS], epoch[WORLD_PARTITIONS];
    for (int p = 0; p < s->n_partitions; p++) {
        next[p] = trainer_position(&l->trainer, p)->next;
        time_max[p] = trainer_position(&l->trainer, p)->time_max_ms;
        epoch[p] = trainer_position(&l->trainer, p)->epoch;
    }
    const bool valued = play.seed % 2;
    struct cutter_options options = {
        .order = play.order,
        .slice_events = 8,
        .interval_ms = 200,
        .lateness_ms = play.config.join_lateness_ms,
        .drift_ms = 60000,
        .idle_ms = 2000,
        .max_future_ms = play.config.join_max_future_ms,
        .as_of_ms = WORLD_AS_OF_MS,
        .dead_letter = l->journal.dead_letter,
        .dead_letters = (int64_t)dead_letter_size(l->journal.dead_letter),
        .tasks = valued ? VALUES : 0,
        .n_verdicts = l->journal.n_verdicts,
        .verdicts = l->journal.verdicts,
        .recorded_next = l->journal.recorded_next,
    };
    if (l->journal.restored && valued) {
        options.values.n = VALUES;
        memcpy(options.values.weight, two_tower_values(l->trainer.rows.model)->weight,
               sizeof options.values.weight);
    }
    if (s->ops->start(s, next, unbounded) < 0 ||
        cutter_open(&l->cutter, s, &options,
                    &(struct cutter_position){next, time_max, l->journal.stamp.slice,
                                              join_watermark(&l->trainer.join), epoch}) < 0)
        return wrong("the cutter does not open");
    if (valued)
        cutter_want_values(l->cutter, l->trainer.options.tasks.weight);
    return true;
}

static bool life_open(struct life *l, struct machine *machine)
{
    char error[4096];
    const struct trainer_options options =
        assemble_trainer(&play.config, play.world.source.n_partitions, play.windows);
    *l = (struct life){.machine = machine, .cut_wait = -1};
    assert_int_equal(trainer_open(&l->trainer, &options), 0);
    if (journal_open(&l->journal,
                     &(struct journal_options){.config = &play.config,
                                               .storage = &machine->disk.storage,
                                               .engine = machine->engine,
                                               .partitions = play.world.source.partitions,
                                               .n_partitions = play.world.source.n_partitions,
                                               .from = nothing},
                     &l->trainer, error, sizeof error) < 0)
        return wrong("restoring fails: %s", error);
    if (catalog_open(&l->snapshots, &machine->disk.storage, snapshot_dir, error, sizeof error) < 0)
        return wrong("the snapshots cannot be opened: %s", error);
    return reading_open(l);
}

static void life_close(struct life *l)
{
    cutter_close(l->cutter);
    if (l->snapshots)
        catalog_close(l->snapshots);
    journal_close(&l->journal);
    trainer_close(&l->trainer);
}

static bool expect_truth(const struct life *l, const char *when)
{
    const uint64_t slice = trainer_state(&l->trainer)->slices;
    return digest_of(&l->trainer, false) == play.truth[slice] ||
           wrong("%s slice %" PRIu64 ": the columns are not those that it had left", when, slice);
}

// Applies again what is recorded.
static bool life_again(struct life *l)
{
    const struct slice_record *record;
    if (l->journal.restored && !expect_truth(l, "restored after"))
        return false;
    while ((record = journal_recorded(&l->journal))) {
        struct slice *slice;
        if (record->number != trainer_state(&l->trainer)->slices + 1)
            return wrong("slice %" PRIu64 " is recorded behind slice %" PRIu64, record->number,
                         trainer_state(&l->trainer)->slices);
        if (cutter_recorded(l->cutter, record, unbounded, &slice) < 0)
            return wrong("applying again: %s", cutter_error(l->cutter));
        note_letters(l, false);
        const int rc = journal_taken(&l->journal, slice);
        note_letters(l, true);
        if (rc == 0)
            trainer_apply(&l->trainer, slice);
        cutter_give(l->cutter, slice);
        if (rc < 0)
            return wrong("applying again: %s", l->journal.error);
        if (!expect_truth(l, "applied again,"))
            return false;
    }
    return true;
}

// A fleet's snapshot stands for all that is derived from a checkpoint: which slice it is of, and
// what the columns were.
static bool snapshot_publish(struct life *l, uint64_t slice)
{
    char error[1024];
    struct writer *w;
    uint64_t generation, rows[] = {slice, play.truth[slice]};
    if (catalog_next(l->snapshots, (uint64_t)play.world.wall_ms, &generation) < 0)
        return wrong("snapshots: %s", catalog_error(l->snapshots));
    const struct writer_options options = {.root = snapshot_dir,
                                           .generation = generation,
                                           .format = "twotower-snapshot",
                                           .engine = l->machine->engine};
    if (writer_open(&w, &options, error, sizeof error) < 0)
        return wrong("snapshots: %s", error);
    writer_array(w, &(struct writer_array){"x.safetensors", "x", "x", "U64", 1, {2}}, rows);
    const int rc = writer_publish(w);
    if (rc < 0)
        wrong("snapshots: %s", writer_error(w));
    writer_close(w);
    if (rc < 0)
        return false;
    play.promise.snapshot = generation;
    note(l);
    catalog_retain(l->snapshots, 2);
    return true;
}

// Writes the cut that is under way.
static bool checkpoint_write(struct life *l, uint64_t slice, bool final)
{
    char error[4096], path[4096];
    struct state_stamp stamp;
    l->cut_wait = -1;
    if (play.mutant == ACKNOWLEDGED_FIRST && !final) {
        play.promise.checkpoint = slice;
        note(l);
    }
    if (play.mutant == PUBLISHED_FIRST && !final && !snapshot_publish(l, slice))
        return false;
    if (journal_checkpoint(&l->journal, &l->trainer, final, (uint64_t)play.world.wall_ms, &stamp,
                           path, error, sizeof error) < 0)
        return wrong("checkpoint: %s", error);
    if (final)
        return true;
    say("  checkpoint of slice %" PRIu64 " at %d", stamp.slice, l->machine->disk.time);
    play.promise.checkpoint = stamp.slice;
    note(l);
    return draw(2) || snapshot_publish(l, stamp.slice);
}

// What the slice log is told, which a mutant makes less of.
static struct slice as_recorded(const struct slice *slice, uint8_t *no_flags)
{
    struct slice told = *slice;
    switch (play.mutant) {
    case FLAGS_DROPPED:
        told.flags = no_flags;
        break;
    case FLOOR_DROPPED:
        told.floor_ms = INT64_MIN;
        break;
    case VERDICTS_DROPPED:
        told.n_verdicts = 0;
        break;
    case VALUES_DROPPED:
        told.values.n = 0;
        break;
    case SHED_DROPPED:
        told.shed_permille = 0;
        break;
    default:
        break;
    }
    return told;
}

static bool slice_append(struct life *l, const struct slice *slice)
{
    uint8_t no_flags[WORLD_PARTITIONS] = {0};
    const struct slice told = as_recorded(slice, no_flags);
    const int rc = journal_append(&l->journal, &told);
    if (slice_rejects(slice) > 0)
        note_letters(l, rc == 0);
    return rc == 0 || wrong("slice log: %s", l->journal.error);
}

static uint64_t cut_slice;

// Now and then a cut begins; it is written while the trainer goes on.
static bool cut_when_due(struct life *l)
{
    if (l->cut_wait < 0 && draw(10) == 0) {
        columns_cut(&l->trainer.columns);
        cut_slice = trainer_state(&l->trainer)->slices;
        l->cut_wait = (int)draw(3);
    } else if (l->cut_wait > 0) {
        l->cut_wait--;
    }
    return l->cut_wait != 0 || checkpoint_write(l, cut_slice, false);
}

static void slice_count(const struct slice *slice)
{
    bool idle = false;
    for (int p = 0; p < slice->n_partitions; p++)
        idle |= (slice->flags[p] & SLICE_IDLE) != 0;
    counts.slices++;
    counts.idle += idle;
    counts.floors += slice->floor_ms != INT64_MIN;
    counts.verdicts += slice->n_verdicts > 0;
    counts.valued += slice->values.n > 0;
    counts.shed += slice->shed_permille > 0;
}

// One slice that was cut now. Everybody does it in this order but the mutants.
static bool slice_live(struct life *l, struct slice *slice)
{
    bool fine = true;
    note_letters(l, false);
    if (play.mutant != APPENDED_LAST)
        fine = slice_append(l, slice);
    if (fine) {
        trainer_apply(&l->trainer, slice);
        play.last = slice->number;
        assert_true(play.last < SLICES_MAX);
        play.truth[play.last] = digest_of(&l->trainer, false);
        fine = cut_when_due(l);
    }
    if (fine && play.mutant == APPENDED_LAST)
        fine = slice_append(l, slice);
    l->ended = slice->last;
    slice_count(slice);
    cutter_give(l->cutter, slice);
    return fine;
}

static bool read_all(const struct life *l)
{
    const struct world *w = &play.world;
    for (int p = 0; p < w->source.n_partitions; p++)
        if (trainer_position(&l->trainer, p)->next < w->partitions[p].end)
            return false;
    return true;
}

// What a queue and a person decide.
static void decide(struct life *l)
{
    if (play.order != SLICE_LIVE)
        return;
    if (draw(15) == 0)
        cutter_told_fill(l->cutter, draw(2) ? 0.1 : 0.9 + 0.01 * (double)draw(12));
    if (play.seed % 2 && draw(20) == 0)
        cutter_want_values(l->cutter, (const float[VALUES]){1, (float)draw(3), 0.5f});
}

// Reads on to the end of the records.
static bool life_run(struct life *l)
{
    int quiet = 0;
    for (int tick = 0; !l->ended && quiet < 60; tick++) {
        struct slice *slice;
        world_tick(&play.world);
        decide(l);
        const int rc = cutter_next(l->cutter, world_clock(&play.world), 0, &slice);
        if (rc < 0)
            return wrong("cutting: %s", cutter_error(l->cutter));
        if (rc == 1 && !slice_live(l, slice))
            return false;
        if (play.mutant == TRIMMED_TO_NEWEST && l->journal.n_kept > 0 &&
            atomic_load(&l->journal.durable_slice) > 0)
            atomic_store(&l->journal.durable_slice, l->journal.kept[l->journal.n_kept - 1].slice);
        if (journal_trim(&l->journal) < 0)
            return wrong("trimming: %s", l->journal.error);
        // A last record that is none is passed over with the next slice, if one comes.
        quiet = play.order == SLICE_LIVE && world_is_over(&play.world) &&
                        cutter_counts(l->cutter).pending == 0
                    ? quiet + 1
                    : 0;
        if (tick == TICKS_MAX)
            return wrong("it does not come to its end");
    }
    if (l->cut_wait >= 0 && !checkpoint_write(l, cut_slice, false))
        return false;
    return true;
}

// ---- The end

// Each rejected record is one letter, and nothing else is one.
static bool expect_letters(void)
{
    static bool seen[WORLD_PARTITIONS][WORLD_RECORDS];
    const struct world *w = &play.world;
    size_t size;
    char *text = file_read(letters_path, &size), *line = text;
    bool fine = true;
    memset(seen, 0, sizeof seen);
    for (char *end; fine && (end = strchr(line, '\n')); line = end + 1) {
        char topic[64];
        int partition, p = 0, i = 0;
        int64_t offset;
        *end = '\0';
        if (sscanf(line, "{\"topic\":\"%63[a-z_]\",\"partition\":%d,\"offset\":%" SCNd64, topic,
                   &partition, &offset) != 3)
            continue;
        while (p < w->source.n_partitions &&
               (strcmp(w->names[p].name, topic) || w->names[p].partition != partition))
            p++;
        assert_true(p < w->source.n_partitions);
        while (i < w->partitions[p].n && w->partitions[p].list[i].offset < offset)
            i++;
        const struct world_record *r = &w->partitions[p].list[i];
        if (i == w->partitions[p].n || r->offset != offset || (!r->reason && !r->undecided))
            fine = wrong("%s %d: offset %" PRId64 " is a dead letter", topic, partition, offset);
        else if (seen[p][i])
            fine =
                wrong("%s %d: offset %" PRId64 " is a dead letter twice", topic, partition, offset);
        seen[p][i] = true;
    }
    for (int p = 0; p < w->source.n_partitions; p++)
        for (int i = 0; fine && i < w->partitions[p].n; i++) {
            const struct world_record *r = &w->partitions[p].list[i];
            if (r->reason && r->reason != REJECT_TOMBSTONE && !seen[p][i])
                fine = wrong("%s %d: offset %" PRId64 " was rejected and is no dead letter",
                             w->names[p].name, w->names[p].partition, r->offset);
        }
    free(text);
    return fine;
}

static bool expect_counts(const struct life *l)
{
    const struct world *w = &play.world;
    const struct join_counts *c = join_counts(&l->trainer.join);
    for (int t = 0; t < TOPICS; t++) {
        uint64_t out = 0;
        for (int o = 0; o < OUTCOMES; o++)
            out += c->out[t][o];
        for (int o = 0; o < OUTCOMES; o++)
            counts.out[o] += c->out[t][o];
        if (c->in[t] != w->in[t] || out != c->in[t] || c->pending[t] != 0)
            return wrong("%s: %" PRIu64 " made, %" PRIu64 " came in, %" PRIu64
                         " have become something, %" PRIu64 " wait",
                         topic_names[t], w->in[t], c->in[t], out, c->pending[t]);
        for (int r = 0; r < REJECTS; r++) {
            const bool either = t == TOPIC_ENGAGEMENTS && r == REJECT_BAD_TIME;
            if (c->rejected[t][r] < w->rejected[t][r] ||
                c->rejected[t][r] > w->rejected[t][r] + (either ? w->undecided : 0))
                return wrong("%s: %" PRIu64 " are rejected as %s, made were %" PRIu64,
                             topic_names[t], c->rejected[t][r], reject_names[r], w->rejected[t][r]);
        }
    }
    return join_balanced(&l->trainer.join) || wrong("the join does not balance");
}

static bool life_end(struct life *l)
{
    const struct world *w = &play.world;
    for (int p = 0; p < w->source.n_partitions; p++) {
        const struct world_partition *part = &w->partitions[p];
        const int64_t next = trainer_position(&l->trainer, p)->next;
        if (next > part->end || (part->n > 0 && next <= part->list[part->n - 1].offset))
            return wrong("%s %d was read to offset %" PRId64 " of %" PRId64, w->names[p].name,
                         w->names[p].partition, next, part->end);
    }
    if (play.order == SLICE_CANONICAL && !read_all(l))
        return wrong("the last slice does not pass what is no record");
    columns_cut(&l->trainer.columns);
    if (!checkpoint_write(l, trainer_state(&l->trainer)->slices, false))
        return false;
    trainer_finish(&l->trainer);
    columns_cut(&l->trainer.columns);
    if (!checkpoint_write(l, 0, true))
        return false;
    const uint64_t end = digest_of(&l->trainer, true);
    if (play.order == SLICE_CANONICAL && play.end != 0 && play.end != end)
        return wrong("the end is another one than that of the first life");
    play.end = end;
    counts.lives++;
    return expect_counts(l) && expect_letters();
}

// ---- The crash

static void changes_keep(const struct disk *d, int time, bool *keep, char *how, size_t how_size)
{
    static const char *const names[] = {"all lost",    "nothing lost",         "one lost",
                                        "one kept",    "those after one lost", "some lost",
                                        "few are lost"};
    const int n = disk_pending(d, time), one = n > 0 ? (int)draw((uint64_t)n) : 0;
    const uint64_t mode = draw(sizeof names / sizeof *names), share = 1 + draw(7);
    for (int i = 0; i < n; i++)
        keep[i] = mode == 0   ? false
                  : mode == 1 ? true
                  : mode == 2 ? i != one
                  : mode == 3 ? i == one
                  : mode == 4 ? i < one
                  : mode == 5 ? draw(8) < share
                              : draw(16) > 0;
    snprintf(how, how_size, "at %d of %d, %d pending, %s", time, d->time, n, names[mode]);
}

// A bit of the newest checkpoint's newest column flips, if there is one to fall back to.
static bool damage(struct disk_tree *t)
{
    const int state = disk_find(t, 0, "state");
    const int root = state < 0 ? -1 : disk_find(t, state, "checkpoints");
    int whole = 0, newest = -1;
    uint64_t largest = 0;
    for (int i = 0; root >= 0 && i < t->inodes[root].n_entries; i++) {
        const struct disk_entry *e = &t->inodes[root].entries[i];
        const uint64_t generation = strtoull(e->name, NULL, 10);
        if (generation == 0 || disk_find(t, e->inode, "manifest.json") < 0)
            continue;
        whole++;
        if (generation > largest) {
            largest = generation;
            newest = e->inode;
        }
    }
    const int file = newest < 0 ? -1 : disk_find(t, newest, "trainer.position.safetensors");
    if (whole < 2 || file < 0 || t->inodes[file].size <= 4096)
        return false;
    t->inodes[file].data[4096] ^= 1;
    return true;
}

// What a fleet finds in the snapshots.
static bool expect_fleet(const struct promise *p, uint64_t recovered)
{
    char error[1024];
    struct tt_reader *r;
    const int rc = tt_open(&r, snapshot_dir, error, sizeof error);
    if (rc < 0)
        return (rc == -ENOENT && p->snapshot == 0) ||
               wrong("generation %" PRIu64 " was acknowledged: %s", p->snapshot, error);
    const struct tt_array *a = tt_find(r, "x");
    bool fine = true;
    uint64_t rows[2];
    if (tt_verify(r, error, sizeof error) < 0 || !a || a->size != sizeof rows) {
        fine = wrong("a fleet's snapshot: %s", error);
    } else {
        memcpy(rows, a->data, sizeof rows);
        if (tt_snapshot(r) < p->snapshot)
            fine = wrong("a fleet finds generation %" PRIu64 ", acknowledged was %" PRIu64,
                         tt_snapshot(r), p->snapshot);
        else if (rows[0] > recovered)
            fine =
                wrong("a fleet has slice %" PRIu64 ", recovered are %" PRIu64, rows[0], recovered);
        else if (rows[1] != play.truth[rows[0]])
            fine = wrong("a fleet has another slice %" PRIu64 " than was recovered", rows[0]);
    }
    tt_close(r);
    return fine;
}

static void letters_crash(const struct promise *p)
{
    uint64_t size = p->letters_synced + draw(p->letters_written - p->letters_synced + 1);
    if (size > play.letters_size)
        size = play.letters_size;
    if (play.letters)
        file_write(letters_path, play.letters, size);
}

// What a crash does, in words and in `crashed`.
struct crash {
    char how[200];
    bool damaged; // the newest checkpoint is, besides
    struct promise promise;
};

// Around a promise, at any time, or soon after the last crash. One that a life goes on from leaves
// the checkpoints whole: with a damaged one it could not bear another.
static void crash_make(struct crash *c, const struct disk *d, bool goes_on)
{
    static bool keep[1 << 16];
    const uint64_t when = draw(4);
    int time = when < 2    ? play.notes[draw((uint64_t)play.n_notes)].time + (int)draw(8)
               : when == 2 ? (int)draw((uint64_t)d->time + 1)
                           : (int)draw(60);
    time = time > d->time ? d->time : time;
    c->promise = *promise_at(time);
    assert_true(disk_pending(d, time) <= (int)(sizeof keep));
    changes_keep(d, time, keep, c->how, sizeof c->how);
    disk_crash(d, time, keep, &crashed);
    c->damaged = draw(3) == 0 && !goes_on && damage(&crashed);
    if (c->damaged)
        strcat(c->how, ", the newest checkpoint damaged");
    say(" crash %s; acknowledged: checkpoint of slice %" PRIu64 ", snapshot %" PRIu64, c->how,
        c->promise.checkpoint, c->promise.snapshot);
    counts.states++;
    counts.fallbacks += c->damaged;
    tree_remove(real);
    disk_write(&crashed, 0, real);
    letters_crash(&c->promise);
}

// What was opened has what was promised.
static bool expect_promise(const struct crash *c, uint64_t restored, uint64_t recovered)
{
    const uint64_t promised = c->promise.checkpoint;
    if (!c->damaged && restored < promised)
        return wrong("slice %" PRIu64 " was acknowledged, in the newest checkpoint is %" PRIu64,
                     promised, restored);
    if (recovered < promised)
        return wrong("slice %" PRIu64 " was acknowledged, recovered is %" PRIu64, promised,
                     recovered);
    if (recovered > play.last)
        return wrong("slice %" PRIu64 " is recovered, and was never cut", recovered);
    return expect_fleet(&c->promise, recovered);
}

// Restores from what a crash of the disk at some moment has left, and applies again.
static bool life_recover(struct life *l, const struct disk *from, struct machine *machine,
                         uint64_t arrival, bool goes_on)
{
    struct crash c;
    crash_make(&c, from, goes_on);
    disk_restart(&machine->disk, from, &crashed);
    world_arrive(&play.world, arrival, play.order == SLICE_CANONICAL);
    bool fine = life_open(l, machine);
    const uint64_t restored = l->journal.stamp.slice, logged = l->journal.recorded_last;
    const uint64_t recovered = logged > restored ? logged : restored;
    fine = fine && expect_promise(&c, restored, recovered);
    if (fine) {
        // From here on what counts is what this disk has.
        const uint64_t letters = dead_letter_size(l->journal.dead_letter);
        play.promise = (struct promise){.checkpoint = restored,
                                        .snapshot = c.promise.snapshot,
                                        .letters_synced = letters,
                                        .letters_written = letters};
        play.notes[0] = play.promise;
        play.n_notes = 1;
        fine = life_again(l);
    }
    if (!fine) {
        const size_t used = strlen(play.wrong);
        snprintf(play.wrong + used, sizeof play.wrong - used, "; crash %s", c.how);
        return false;
    }
    say("  restored slice %" PRIu64 ", applied again to %" PRIu64, restored, recovered);
    counts.recovered++;
    play.last = recovered;
    return true;
}

static void letters_keep(void)
{
    free(play.letters);
    play.letters = file_read(letters_path, &play.letters_size);
}

// The lives of one seed. false: play.wrong says what is.
static bool seed_play(uint64_t seed, enum mutant mutant)
{
    static struct promise kept[NOTES_MAX];
    static struct life life;
    struct machine *machine = &machines[0], *other = &machines[1];
    play.seed = seed;
    play.mutant = mutant;
    play.rng = (struct rng){seed, 1000};
    play.order = draw(4) == 0 ? SLICE_CANONICAL : SLICE_LIVE;
    play.end = play.last = 0;
    play.n_notes = 0;
    play.promise = (struct promise){0};
    *play.wrong = '\0';
    configure();
    world_make(&play.world, seed);
    world_arrive(&play.world, rng_at(seed, 0), play.order == SLICE_CANONICAL);
    say("seed %" PRIu64 ": %d records in %d partitions, %s%s", seed, play.world.records,
        play.world.source.n_partitions, play.order == SLICE_LIVE ? "live" : "canonical",
        seed % 2 ? ", with slates and values" : "");
    tree_remove(real);
    mkdir(real, 0777);
    disk_open(&machine->disk, real);
    disk_directory(&machine->disk, "state");
    machine->disk.lies = lies;
    machine->disk.before_rename = before_rename;
    bool fine = life_open(&life, machine);
    play.notes[play.n_notes++] = play.promise;
    for (int n = 0; fine && n < LIVES; n++) {
        fine = life_run(&life) && life_end(&life);
        say(" life %d: %" PRIu64 " slices, %d changes of the disk", n + 1, play.last,
            machine->disk.n_log);
        if (!fine || n + 1 == LIVES)
            break;
        life_close(&life);
        letters_keep();
        const uint64_t last = play.last;
        const int n_notes = play.n_notes;
        memcpy(kept, play.notes, (size_t)n_notes * sizeof *kept);
        for (int crash = 0; fine && crash < CRASHES; crash++) {
            if (crash > 0)
                life_close(&life);
            play.last = last;
            play.n_notes = n_notes;
            memcpy(play.notes, kept, (size_t)n_notes * sizeof *kept);
            fine = life_recover(&life, &machine->disk, other,
                                rng_at(seed, (uint64_t)(1 + n * CRASHES + crash)),
                                crash + 1 == CRASHES);
        }
        struct machine *swap = machine;
        machine = other;
        other = swap;
    }
    life_close(&life);
    free(play.letters);
    play.letters = NULL;
    counts.seeds++;
    counts.records += (uint64_t)play.world.records;
    return fine;
}

// ---- The tests

static int setup(void **state)
{
    (void)state;
    char error[256];
    snprintf(real, sizeof real, "%s/twotower-world-%ld",
             access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp", (long)getpid());
    snprintf(state_dir, sizeof state_dir, "%s/state", real);
    snprintf(snapshot_dir, sizeof snapshot_dir, "%s/snapshots", real);
    snprintf(letters_path, sizeof letters_path, "%s/letters.jsonl", real);
    log_init(LOG_LEVEL_ERROR, LOG_FORMAT_TEXT, STDERR_FILENO);
    for (int i = 0; i < 2; i++) {
        disk_open(&machines[i].disk, real);
        assert_int_equal(engine_open(&machines[i].engine,
                                     &(struct engine_options){.storage = &machines[i].disk.storage},
                                     error, sizeof error),
                         0);
    }
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        engine_close(machines[i].engine);
        disk_close(&machines[i].disk);
    }
    disk_tree_close(&crashed);
    tree_remove(real);
    return 0;
}

static void
whatever_a_crash_leaves_every_record_counts_once_and_the_state_is_as_it_was(void **state)
{
    (void)state;
    const char *given = getenv("TWOTOWER_SIM_SEED");
    int failed = 0;
    play.aloud = given != NULL;
    for (uint64_t seed = 1; seed <= SEEDS && !given && failed < 5; seed++)
        if (!seed_play(seed, NONE)) {
            printf("seed %" PRIu64 ": %s\n    tests/run sim --seed %" PRIu64 " plays it alone\n",
                   seed, play.wrong, seed);
            failed++;
        }
    if (given && !seed_play(strtoull(given, NULL, 10), NONE)) {
        printf("seed %s: %s\n", given, play.wrong);
        failed++;
    }
    printf("# %d seeds, %" PRIu64 " records, %" PRIu64 " slices, %d lives to the end, %d disks "
           "after a crash (%d with the newest checkpoint damaged), %d of them recovered\n",
           counts.seeds, counts.records, counts.slices, counts.lives, counts.states,
           counts.fallbacks, counts.recovered);
    printf("# slices with idle partitions %" PRIu64 ", a floor %" PRIu64 ", verdicts %" PRIu64
           ", values %" PRIu64 ", requests shed %" PRIu64 ";",
           counts.idle, counts.floors, counts.verdicts, counts.valued, counts.shed);
    for (int o = 0; o < OUTCOMES; o++)
        printf(" %s %" PRIu64 "%s", outcome_names[o], counts.out[o], o + 1 < OUTCOMES ? "," : "\n");
    play.aloud = false;
    if (failed > 0)
        fail_msg("%d seeds", failed);
    // Whether the worlds were what they are meant to be: nothing above is worth much otherwise.
    for (int o = 0; o < OUTCOMES && !given; o++)
        assert_true(counts.out[o] > SEEDS);
    assert_true(given || (counts.idle > SEEDS && counts.floors > SEEDS && counts.verdicts > SEEDS &&
                          counts.valued > SEEDS && counts.shed > SEEDS));
}

static void a_protocol_with_one_thing_left_out_is_caught(void **state)
{
    (void)state;
    static const struct {
        enum mutant mutant;
        const char *name;
        bool caught;
    } mutants[] = {
        {LOG_NOT_SYNCED, "the slice log is not synced before a checkpoint", true},
        {LOG_DIRECTORY_NOT_SYNCED, "nor its directory when a file is begun", true},
        {CHECKPOINT_DATA_NOT_SYNCED, "a checkpoint's data are not synced", true},
        {CHECKPOINT_MANIFEST_NOT_SYNCED, "nor its manifest", true},
        {CHECKPOINT_DIRECTORY_NOT_SYNCED, "nor its directory", true},
        {CHECKPOINT_ROOT_NOT_SYNCED, "nor the directory that it is renamed in", true},
        {SNAPSHOT_ROOT_NOT_SYNCED, "nor that of the snapshots", true},
        {LETTERS_NOT_SYNCED, "the dead letters are not synced", true},
        // Who finds LATEST wrong takes the newest generation that is whole: it is a hint.
        {LATEST_FIRST, "LATEST moves before its generation is there", false},
        {FLAGS_DROPPED, "the idle flags are not recorded", true},
        {FLOOR_DROPPED, "nor the floor of the watermark", true},
        {VERDICTS_DROPPED, "nor the verdicts of the clock", true},
        {VALUES_DROPPED, "nor the values of tasks", true},
        {SHED_DROPPED, "nor which requests are shed", true},
        {TRIMMED_TO_NEWEST, "the log is trimmed to the newest checkpoint", true},
        {ACKNOWLEDGED_FIRST, "a checkpoint is acknowledged before it is renamed", true},
        {APPENDED_LAST, "a slice is appended after it is applied and cut", true},
        {PUBLISHED_FIRST, "a cut is published before there is a checkpoint of it", true},
    };
    _Static_assert(sizeof mutants / sizeof *mutants == MUTANTS - 1, "all of them");
    int planted = 0, caught = 0, unexpected = 0;
    if (getenv("TWOTOWER_SIM_SEED"))
        skip();
    for (size_t i = 0; i < sizeof mutants / sizeof *mutants; i++) {
        uint64_t seed = 1;
        while (seed <= MUTANT_SEEDS && seed_play(seed, mutants[i].mutant))
            seed++;
        const bool found = seed <= MUTANT_SEEDS;
        printf("    %s: %s", mutants[i].name, found ? "" : "nothing is wrong\n");
        if (found)
            printf("seed %" PRIu64 ": %s\n", seed, play.wrong);
        planted++;
        caught += found;
        unexpected += found != mutants[i].caught;
    }
    printf("# %d of %d mutants caught, within %d seeds each\n", caught, planted, MUTANT_SEEDS);
    assert_int_equal(unexpected, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(
            whatever_a_crash_leaves_every_record_counts_once_and_the_state_is_as_it_was),
        cmocka_unit_test(a_protocol_with_one_thing_left_out_is_caught),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
