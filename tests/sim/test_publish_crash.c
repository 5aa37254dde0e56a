// SPDX-License-Identifier: Apache-2.0
//
// Publishing on a disk that may lose, at a crash, whatever was not synced: any set of the 512-byte
// pieces of files, of sizes, and of changes to directories, whatever their order (weaker than any
// real file system: syncing a file does not even keep its name). After every call that the writer
// and the catalogue make, the states that a crash could leave are built on a real directory, and
// the loaders must find a generation at least as new as the last acknowledged one, byte by byte.
// While an operator has pinned one, the fleet must find that one and no other; a crash in the
// middle of a move leaves what it found before or what it is to find after.
//
// That the test can fail is a test as well: writers with one sync left out must be caught, and one
// that takes the pointer away before it brings the next.
#include <sys/file.h>

#include "snapshot/catalog.h"
#include "snapshot/twotower_reader.h"
#include "tests/sim/disk.h"
#include "tests/unit/test_snapshot.h"

enum {
    GENERATIONS = 6,
    ROLLED_BACK_AFTER = 3, // to the one before, and from there to this one after the next
    UNPINNED_AFTER = 5,
    TIMES_MAX = 4096,
    PENDING_MAX = 1024,
    RANDOM_STATES = 200,
};

// Which sync a writer leaves out; the last one removes a pointer before it renames the next there.
enum mutant {
    NONE,
    NO_DATA,
    NO_MANIFEST,
    NO_DIRECTORY,
    NO_ROOT,
    NO_PARENT,
    NO_LATEST,
    NO_PINNED,
    NO_POINTER,
    GAP
};

// What a fleet must find: the pinned generation, or without one any from the acknowledged on. While
// the pointer moves, what it moves to will do as well.
struct promise {
    int acknowledged, pinned, next; // 0: none
    bool moving;
};

static struct disk disk;
static struct disk_tree scratch;
static enum mutant planted;
static struct promise promise, promised[TIMES_MAX]; // now, and by time as far as noted
static int noted;

// From the moment after the last note up to now this is what is promised.
static void note(void)
{
    assert_true(disk.time < TIMES_MAX);
    for (; noted <= disk.time; noted++)
        promised[noted] = promise;
}

static bool is_pointer(const char *name)
{
    return strcmp(name, "LATEST") == 0 || strcmp(name, "PINNED") == 0;
}

// Whether the last change to a directory was to a pointer in it.
static bool pointer_changed(const struct disk *d, int directory)
{
    const int last = directory < d->newest_max ? d->newest[directory] : -1;
    return last >= 0 &&
           is_pointer(d->log[last].kind == DISK_RENAME ? d->log[last].to : d->log[last].name);
}

static bool left_out(struct disk *d, const struct disk_handle *handle)
{
    const char *name = handle->name;
    const bool directory = d->live.inodes[handle->inode].directory;
    const bool parent = handle->inode == 0, root = strcmp(name, "snapshots") == 0;
    switch (planted) {
    case NONE:
        return false;
    case NO_DATA:
        return !directory && strstr(name, "data");
    case NO_MANIFEST:
        return !directory && strstr(name, "manifest");
    case NO_DIRECTORY:
        return directory && !root && !parent;
    case NO_ROOT:
        return root;
    case NO_PARENT:
        return parent;
    case NO_LATEST:
        return !directory && strstr(name, "LATEST");
    case NO_PINNED:
        return !directory && strstr(name, "PINNED");
    case NO_POINTER:
        return root && pointer_changed(d, handle->inode);
    case GAP:
        return false;
    }
    return false;
}

// Takes the old pointer away first.
static void before_rename(struct disk *d, int parent, const char *from, const char *to)
{
    (void)from;
    if (planted == GAP && is_pointer(to) && disk_find(&d->live, parent, to) >= 0)
        disk_remove_entry(d, parent, to);
}

static void sim_start(enum mutant mutant)
{
    disk_open(&disk, "");
    disk.lies = left_out;
    disk.before_rename = before_rename;
    planted = mutant;
    promise = (struct promise){0};
    noted = 0;
}

// --- what is published ---

enum { ARRAY_ROWS = 300, BLOB_SIZE = 700 };

static void content(uint64_t generation, uint64_t *rows, unsigned char *blob)
{
    for (uint64_t i = 0; i < ARRAY_ROWS; i++)
        rows[i] = mix(generation * 1000 + i);
    for (uint64_t i = 0; i < BLOB_SIZE; i++)
        blob[i] = (unsigned char)mix(generation * 7777 + i);
}

static int publish(struct engine *engine, uint64_t generation, char *error, size_t error_size)
{
    uint64_t rows[ARRAY_ROWS];
    unsigned char blob[BLOB_SIZE];
    content(generation, rows, blob);
    struct writer *w;
    const struct writer_options options = {
        .root = "snapshots", .generation = generation, .format = "checkpoint", .engine = engine};
    int rc = writer_open(&w, &options, error, error_size);
    if (rc < 0)
        return rc;
    writer_array(w, &(struct writer_array){"data.safetensors", "x", "x", "U64", 1, {ARRAY_ROWS}},
                 rows);
    writer_blob(w, "data.bin", "blob", blob, sizeof blob);
    rc = writer_publish(w);
    snprintf(error, error_size, "%s", writer_error(w));
    writer_close(w);
    return rc;
}

static struct engine *sim_engine(void)
{
    struct engine *engine;
    char error[256];
    assert_int_equal(engine_open(&engine, &(struct engine_options){.storage = &disk.storage}, error,
                                 sizeof error),
                     0);
    return engine;
}

// An operator, of another process, moves the pointer; to 0: unpins it.
static int point(int to)
{
    char error[512];
    uint64_t newest;
    struct catalog *c;
    int rc = catalog_look(&c, &disk.storage, "snapshots", error, sizeof error);
    if (rc < 0)
        return rc;
    note();
    promise.moving = true;
    promise.next = to;
    disk_tick(&disk);
    rc = to > 0 ? catalog_pin(c, (uint64_t)to) : catalog_unpin(c, &newest);
    note();
    if (rc == 0) {
        promise.moving = false;
        promise.pinned = to;
    }
    disk_tick(&disk);
    catalog_close(c);
    return rc;
}

// A life of the daemon: starts, publishes, tidies. An operator goes back and forth meanwhile.
static void live(int generations)
{
    char error[512];
    struct engine *engine = sim_engine();
    struct catalog *c;
    assert_int_equal(catalog_open(&c, &disk.storage, "snapshots", error, sizeof error), 0);
    for (int g = 1; g <= generations; g++) {
        if (publish(engine, (uint64_t)g, error, sizeof error) < 0)
            fail_msg("%s", error);
        note();
        promise.acknowledged = g;
        disk_tick(&disk);
        assert_true(catalog_retain(c, 2) >= 0);
        if (g == ROLLED_BACK_AFTER || g == ROLLED_BACK_AFTER + 1)
            assert_int_equal(point(g - 1), 0);
        if (g == UNPINNED_AFTER)
            assert_int_equal(point(0), 0);
    }
    note();
    catalog_close(c);
    engine_close(engine);
}

// --- the states after a crash ---

static char real[64]; // a directory
static char root[80]; // <real>/snapshots

static void real_name(void)
{
    snprintf(real, sizeof real, "%s/twotower-crash-%ld",
             access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp", (long)getpid());
    snprintf(root, sizeof root, "%s/snapshots", real);
}

// 0 when what path holds is whole and exactly what was published; then *generation is set.
static const char *load(const char *path, int *generation)
{
    struct tt_reader *r;
    static char error[512];
    *generation = 0;
    int rc = tt_open(&r, path, error, sizeof error);
    if (rc < 0)
        return rc == -ENOENT ? NULL : error;
    const char *wrong = NULL;
    uint64_t rows[ARRAY_ROWS];
    unsigned char blob[BLOB_SIZE];
    content(tt_snapshot(r), rows, blob);
    const struct tt_array *a = tt_find(r, "x"), *b = tt_find(r, "blob");
    if (tt_verify(r, error, sizeof error) < 0)
        wrong = error;
    else if (!a || a->size != sizeof rows || memcmp(a->data, rows, sizeof rows) != 0 || !b ||
             b->size != sizeof blob || memcmp(b->data, blob, sizeof blob) != 0)
        wrong = "verified, and other bytes";
    else
        *generation = (int)tt_snapshot(r);
    tt_close(r);
    return wrong;
}

struct verdict {
    int states, bad;
    char first[640]; // the first bad one
};

static bool keeps(int pinned, int acknowledged, int generation)
{
    return pinned > 0 ? generation == pinned : generation >= acknowledged;
}

static const char *load_fleet(const struct promise *p, int *generation)
{
    const char *wrong = load(root, generation);
    if (!wrong && !keeps(p->pinned, p->acknowledged, *generation) &&
        !(p->moving && keeps(p->next, p->acknowledged, *generation)))
        wrong = p->pinned || p->moving ? "a reader finds another generation than the pinned one"
                                       : "a reader finds an older generation or none";
    return wrong;
}

static void judge_tree(const struct disk_tree *t, const struct promise *p, struct verdict *v,
                       const char *how)
{
    v->states++;
    disk_write(t, 0, real);
    int generation;
    const char *wrong = load_fleet(p, &generation);
    if (!wrong) { // ourselves, starting again
        char error[512], path[160];
        struct catalog *c;
        uint64_t newest = 0;
        if (catalog_open(&c, NULL, root, error, sizeof error) < 0)
            fail_msg("%s", error);
        const int rc = catalog_newest(c, &newest);
        catalog_path(c, newest, path, sizeof path);
        struct pointer pointer;
        assert_int_equal(catalog_pointer(c, &pointer), 0);
        if (!p->moving && pointer.is_pinned != (p->pinned > 0))
            wrong = p->pinned ? "the next publication moves a pinned pointer"
                              : "the next publication leaves an unpinned pointer";
        catalog_close(c);
        if (!wrong && rc == 0)
            wrong = load(path, &generation);
        if (!wrong && (int)newest < p->acknowledged)
            wrong = "the catalogue finds an older generation or none";
        if (!wrong && rc == 0 && generation != (int)newest)
            wrong = "the catalogue's newest does not load";
    }
    if (!wrong) // what a start completes is within the promise, too
        wrong = load_fleet(p, &generation);
    if (wrong && v->bad++ == 0)
        snprintf(v->first, sizeof v->first, "acknowledged %d, pinned %d, %s: %s", p->acknowledged,
                 p->pinned, how, wrong);
    tree_remove(real);
}

static bool seen_before(uint64_t hash)
{
    enum { SLOTS = 1 << 18 };
    static uint64_t seen[SLOTS];
    static int used;
    if (hash == 0) { // forget all
        memset(seen, 0, sizeof seen);
        used = 0;
        return false;
    }
    assert_true(used < SLOTS / 2);
    uint64_t at = hash % SLOTS;
    for (; seen[at] != 0; at = (at + 1) % SLOTS)
        if (seen[at] == hash)
            return true;
    seen[at] = hash;
    used++;
    return false;
}

static void judge(int time, const bool *keep, struct verdict *v, const char *how)
{
    disk_crash(&disk, time, keep, &scratch);
    const struct promise *p = &promised[time];
    const int numbers[] = {p->acknowledged, p->pinned, p->next, p->moving};
    const uint64_t hash = mix(disk_hash(&scratch, 0) ^ table_crc32c(numbers, sizeof numbers)) | 1;
    if (seen_before(hash))
        return;
    char text[64];
    snprintf(text, sizeof text, "crash at %d of %d, %s", time, disk.time, how);
    judge_tree(&scratch, p, v, text);
}

static struct verdict crash_everywhere(enum mutant mutant)
{
    struct verdict v = {0};
    sim_start(mutant);
    live(GENERATIONS);
    seen_before(0);
    real_name();
    for (int time = 0; time <= disk.time; time++) {
        const int pending = disk_pending(&disk, time);
        assert_true(pending <= PENDING_MAX);
        bool keep[PENDING_MAX + 1];
        memset(keep, 0, sizeof keep);
        judge(time, keep, &v, "all lost");
        memset(keep, 1, sizeof keep);
        judge(time, keep, &v, "nothing lost");
        for (int i = 0; i < pending; i++) {
            memset(keep, 1, sizeof keep);
            keep[i] = false;
            judge(time, keep, &v, "one lost");
            memset(keep, 0, sizeof keep);
            keep[i] = true;
            judge(time, keep, &v, "one kept");
            memset(keep, 1, (size_t)i);
            judge(time, keep, &v, "those after one lost");
        }
        for (uint64_t n = 0; n < RANDOM_STATES; n++) {
            for (int i = 0; i < pending; i++)
                keep[i] = mix((uint64_t)time * 1000003 + n * 1009 + (uint64_t)i) % 8 <= n % 8;
            judge(time, keep, &v, "some lost");
        }
        // A mutant that is caught a few times over is caught.
        if (v.bad >= 5)
            break;
    }
    disk_tree_close(&scratch);
    return v;
}

static void whatever_a_crash_leaves_the_last_acknowledged_generation_loads(void **state)
{
    (void)state;
    const struct verdict v = crash_everywhere(NONE);
    print_message("%d calls, %d different states\n", disk.time, v.states);
    if (v.bad > 0)
        fail_msg("%d of %d states are bad; the first: %s", v.bad, v.states, v.first);
    assert_true(v.states > 1000);
}

static void a_writer_that_leaves_a_sync_out_is_caught(void **state)
{
    (void)state;
    static const struct {
        enum mutant mutant;
        const char *name;
        bool caught;
    } mutants[] = {
        {NO_DATA, "syncing the data", true},
        {NO_MANIFEST, "syncing the manifest", true},
        {NO_DIRECTORY, "syncing the generation's directory", true},
        {NO_ROOT, "syncing the root directory", true},
        {NO_PARENT, "syncing the directory that the root is in", true},
        // A torn LATEST is found out by its readers, who take the newest instead: not the pinned.
        {NO_LATEST, "syncing LATEST", true},
        // What is not legible still holds LATEST where it is, and LATEST says where.
        {NO_PINNED, "syncing PINNED", false},
        {NO_POINTER, "syncing the root directory after a pointer moved", true},
        {GAP, "a pointer for a moment", true},
    };
    for (size_t i = 0; i < sizeof mutants / sizeof mutants[0]; i++) {
        const struct verdict v = crash_everywhere(mutants[i].mutant);
        print_message("without %s: %d bad in %d states; %s\n", mutants[i].name, v.bad, v.states,
                      v.first);
        if (mutants[i].caught != (v.bad > 0))
            fail_msg("without %s: %d bad states", mutants[i].name, v.bad);
    }
}

// --- calls that fail ---

static void expect_loadable(int at_least, const char *what, int call)
{
    int generation;
    disk_write(&disk.live, 0, real);
    const char *wrong = load(root, &generation);
    tree_remove(real);
    if (wrong || generation < at_least)
        fail_msg("%s at call %d: %s, generation %d", what, call, wrong ? wrong : "loads",
                 generation);
}

static void whichever_call_fails_the_generation_before_loads_and_the_next_one_works(void **state)
{
    (void)state;
    static const struct {
        int rc;
        const char *name;
        bool survived; // by trying again
    } errors[] = {
        {-EIO, "EIO", false},
        {-ENOSPC, "ENOSPC", false},
        {-EROFS, "EROFS", false},
        {-EINTR, "EINTR", true},
    };
    real_name();
    for (size_t e = 0; e < sizeof errors / sizeof errors[0]; e++) {
        for (int call = 1;; call++) {
            sim_start(NONE);
            live(1);
            struct engine *engine = sim_engine();
            char error[512] = "";
            disk.fail_in = call;
            disk.fail_with = errors[e].rc;
            const int rc = publish(engine, 2, error, sizeof error);
            const bool all_done = disk.fail_in > 0;
            disk.fail_in = 0;
            if (rc < 0) {
                assert_int_equal(rc, errors[e].rc);
                assert_true(strlen(error) > 0);
            }
            for (int h = 0; h < DISK_HANDLES; h++)
                assert_false(disk.handles[h].open);
            expect_loadable(rc == 0 ? 2 : 1, errors[e].name, call);
            // What is left over goes at the next start; and publishing works as if nothing was.
            struct catalog *c;
            assert_int_equal(catalog_open(&c, &disk.storage, "snapshots", error, sizeof error), 0);
            const struct disk_inode *top = &disk.live.inodes[disk_find(&disk.live, 0, "snapshots")];
            for (int i = 0; i < top->n_entries; i++)
                assert_null(strstr(top->entries[i].name, ".tmp"));
            uint64_t next;
            assert_int_equal(catalog_next(c, 2, &next), 0);
            assert_int_equal(publish(engine, next, error, sizeof error), 0);
            expect_loadable((int)next, errors[e].name, call);
            catalog_close(c);
            engine_close(engine);
            if (all_done)
                break;
            assert_true(call < 200);
        }
    }
}

static void
whichever_call_fails_the_pointer_is_the_old_or_the_new_one_and_moves_when_asked_again(void **state)
{
    (void)state;
    real_name();
    for (int unpin = 0; unpin < 2; unpin++) {
        for (int call = 1;; call++) {
            sim_start(NONE);
            live(2);
            if (unpin)
                assert_int_equal(point(1), 0);
            const int from = unpin ? 1 : 2, to = unpin ? 2 : 1;
            disk.fail_in = call;
            disk.fail_with = -EIO;
            const int rc = point(unpin ? 0 : 1);
            const bool all_done = disk.fail_in > 0;
            disk.fail_in = 0;
            for (int h = 0; h < DISK_HANDLES; h++)
                assert_false(disk.handles[h].open);
            int generation;
            disk_write(&disk.live, 0, real);
            const char *wrong = load(root, &generation);
            tree_remove(real);
            // To unpin with a newest that cannot be read points to an older one: no failure.
            if (wrong || (generation != to && (generation != from || (rc == 0 && !unpin))))
                fail_msg("call %d, %d: %s, generation %d", call, rc, wrong ? wrong : "loads",
                         generation);
            assert_int_equal(point(unpin ? 0 : 1), 0);
            expect_loadable(to, "asked again", call);
            if (all_done)
                break;
            assert_true(call < 200);
        }
    }
}

static void short_writes_are_gone_on_with(void **state)
{
    (void)state;
    sim_start(NONE);
    disk.short_writes = true;
    live(1);
    real_name();
    expect_loadable(1, "short writes", 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whatever_a_crash_leaves_the_last_acknowledged_generation_loads),
        cmocka_unit_test(a_writer_that_leaves_a_sync_out_is_caught),
        cmocka_unit_test(whichever_call_fails_the_generation_before_loads_and_the_next_one_works),
        cmocka_unit_test(
            whichever_call_fails_the_pointer_is_the_old_or_the_new_one_and_moves_when_asked_again),
        cmocka_unit_test(short_writes_are_gone_on_with),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
