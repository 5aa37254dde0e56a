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
#include "snapshot/storage.h"
#include "snapshot/twotower_reader.h"
#include "tests/unit/test_snapshot.h"

enum {
    GENERATIONS = 6,
    ROLLED_BACK_AFTER = 3, // to the one before, and from there to this one after the next
    UNPINNED_AFTER = 5,
    INODES = 96,
    ENTRIES = 24,
    FILE_MAX = 12288,
    PIECE = 512,
    LOG_MAX = 4096,
    HANDLES = 32,
    PENDING_MAX = 1024,
    RANDOM_STATES = 200,
    NAME = 64,
    NEVER = 1 << 30,
};

struct inode {
    bool directory;
    uint64_t size;
    int n_entries;
    struct {
        char name[NAME];
        int inode;
    } entries[ENTRIES];
    unsigned char data[FILE_MAX];
};

struct tree {
    int n;
    struct inode inodes[INODES]; // 0 is the directory that the root is made in
};

enum change { CHANGE_DATA, CHANGE_SIZE, CHANGE_ENTER, CHANGE_RENAME, CHANGE_REMOVE };

struct entry_log {
    enum change change;
    int inode; // the file or directory that changes
    int time;  // when it was done
    int kept;  // from when on a crash cannot undo it
    uint64_t offset, size;
    unsigned char bytes[PIECE];
    char name[NAME], to[NAME];
    int target; // of CHANGE_ENTER and CHANGE_RENAME
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

struct sim {
    struct storage storage;
    struct tree live;
    int time, n_log;
    struct entry_log log[LOG_MAX];
    struct {
        bool open, failed;
        int inode;
        char name[NAME];
    } handles[HANDLES];
    enum mutant mutant;
    struct promise promise, promised[LOG_MAX]; // now, and by time
    // The n-th call from now fails with this, once; 0: none.
    int fail_in, fail_with, calls;
    bool short_writes;
};

static struct sim sim;
static struct tree scratch;

// --- trees ---

static void tree_clear(struct tree *t)
{
    for (int i = 0; i < INODES; i++) {
        t->inodes[i].size = 0;
        t->inodes[i].n_entries = 0;
    }
    t->inodes[0].directory = true;
}

static int inode_find(const struct inode *d, const char *name)
{
    for (int i = 0; i < d->n_entries; i++)
        if (strcmp(d->entries[i].name, name) == 0)
            return i;
    return -1;
}

static void inode_remove(struct inode *d, const char *name)
{
    const int at = inode_find(d, name);
    if (at >= 0)
        d->entries[at] = d->entries[--d->n_entries];
}

static void inode_enter(struct inode *d, const char *name, int inode)
{
    inode_remove(d, name);
    if (d->n_entries == ENTRIES)
        abort();
    snprintf(d->entries[d->n_entries].name, NAME, "%s", name);
    d->entries[d->n_entries++].inode = inode;
}

static void inode_resize(struct inode *f, uint64_t size)
{
    if (size > f->size)
        memset(f->data + f->size, 0, size - f->size);
    f->size = size;
}

static void tree_apply(struct tree *t, const struct entry_log *e)
{
    struct inode *i = &t->inodes[e->inode];
    switch (e->change) {
    case CHANGE_DATA:
        if (e->offset + e->size > i->size)
            inode_resize(i, e->offset + e->size);
        memcpy(i->data + e->offset, e->bytes, e->size);
        break;
    case CHANGE_SIZE:
        inode_resize(i, e->size);
        break;
    case CHANGE_ENTER:
        inode_enter(i, e->name, e->target);
        break;
    case CHANGE_RENAME:
        inode_remove(i, e->name);
        inode_enter(i, e->to, e->target);
        break;
    case CHANGE_REMOVE:
        inode_remove(i, e->name);
        break;
    }
}

// --- the storage ---

static struct entry_log *change(enum change kind, int inode)
{
    if (sim.n_log == LOG_MAX)
        abort();
    struct entry_log *e = &sim.log[sim.n_log++];
    *e = (struct entry_log){.change = kind, .inode = inode, .time = sim.time, .kept = NEVER};
    return e;
}

static void tick(void)
{
    sim.time++;
    if (sim.time == LOG_MAX)
        abort();
    sim.promised[sim.time] = sim.promise;
}

static int refusal(void)
{
    sim.calls++;
    return sim.fail_in > 0 && --sim.fail_in == 0 ? sim.fail_with : 0;
}

static int handle_new(int inode, const char *name)
{
    for (int h = 0; h < HANDLES; h++) {
        if (sim.handles[h].open)
            continue;
        sim.handles[h].open = true;
        sim.handles[h].failed = false;
        sim.handles[h].inode = inode;
        snprintf(sim.handles[h].name, NAME, "%s", name);
        return h;
    }
    abort();
}

static int inode_new(bool directory)
{
    if (sim.live.n == INODES)
        abort();
    sim.live.inodes[sim.live.n].directory = directory;
    scratch.inodes[sim.live.n].directory = directory;
    return sim.live.n++;
}

static int enter(int directory, const char *name, bool is_directory)
{
    const int inode = inode_new(is_directory);
    tick();
    struct entry_log *e = change(CHANGE_ENTER, directory);
    snprintf(e->name, NAME, "%s", name);
    e->target = inode;
    tree_apply(&sim.live, e);
    return inode;
}

static int sim_open(struct storage *s, int directory, const char *name, int flags, unsigned mode)
{
    (void)s;
    (void)mode;
    const int rc = refusal();
    if (rc < 0)
        return rc;
    if (strcmp(name, ".") == 0)
        return handle_new(0, "parent");
    const int parent = directory == STORAGE_CWD ? 0 : sim.handles[directory].inode;
    const int at = inode_find(&sim.live.inodes[parent], name);
    if (at >= 0 && flags & O_EXCL)
        return -EEXIST;
    if (at < 0 && !(flags & O_CREAT))
        return -ENOENT;
    const int inode =
        at >= 0 ? sim.live.inodes[parent].entries[at].inode : enter(parent, name, false);
    if (flags & O_DIRECTORY && !sim.live.inodes[inode].directory)
        return -ENOTDIR;
    return handle_new(inode, name);
}

static int sim_close(struct storage *s, int handle)
{
    (void)s;
    assert_true(sim.handles[handle].open);
    sim.handles[handle].open = false;
    return 0;
}

static ssize_t sim_write_at(struct storage *s, int handle, const void *bytes, size_t n,
                            uint64_t offset)
{
    (void)s;
    const int rc = refusal();
    if (rc < 0)
        return rc;
    if (sim.short_writes && n > 1000)
        n = 1000 - n % 7;
    tick();
    assert_true(offset + n <= FILE_MAX);
    for (size_t at = 0; at < n;) {
        // To the end of the sector, as a disk would.
        const size_t left = PIECE - (offset + at) % PIECE;
        struct entry_log *e = change(CHANGE_DATA, sim.handles[handle].inode);
        e->offset = offset + at;
        e->size = n - at < left ? n - at : left;
        memcpy(e->bytes, (const char *)bytes + at, e->size);
        tree_apply(&sim.live, e);
        at += e->size;
    }
    return (ssize_t)n;
}

static ssize_t sim_read_at(struct storage *s, int handle, void *bytes, size_t n, uint64_t offset)
{
    (void)s;
    const int rc = refusal();
    if (rc < 0)
        return rc;
    const struct inode *i = &sim.live.inodes[sim.handles[handle].inode];
    if (offset >= i->size)
        return 0;
    if (n > i->size - offset)
        n = i->size - offset;
    memcpy(bytes, i->data + offset, n);
    return (ssize_t)n;
}

static int set_size(int handle, uint64_t size)
{
    const int rc = refusal();
    if (rc < 0)
        return rc;
    tick();
    struct entry_log *e = change(CHANGE_SIZE, sim.handles[handle].inode);
    e->size = size;
    tree_apply(&sim.live, e);
    return 0;
}

static int sim_allocate(struct storage *s, int handle, uint64_t size)
{
    (void)s;
    return set_size(handle, size);
}

static int sim_truncate(struct storage *s, int handle, uint64_t size)
{
    (void)s;
    return set_size(handle, size);
}

static int sim_size(struct storage *s, int handle, uint64_t *size)
{
    (void)s;
    *size = sim.live.inodes[sim.handles[handle].inode].size;
    return refusal();
}

static bool is_pointer(const char *name)
{
    return strcmp(name, "LATEST") == 0 || strcmp(name, "PINNED") == 0;
}

// Whether the last change to a directory was to a pointer in it.
static bool pointer_changed(int directory)
{
    for (int i = sim.n_log; i-- > 0;)
        if (sim.log[i].inode == directory)
            return is_pointer(sim.log[i].change == CHANGE_RENAME ? sim.log[i].to : sim.log[i].name);
    return false;
}

static bool left_out(int handle)
{
    const char *name = sim.handles[handle].name;
    const bool directory = sim.live.inodes[sim.handles[handle].inode].directory;
    const bool parent = sim.handles[handle].inode == 0, root = strcmp(name, "snapshots") == 0;
    switch (sim.mutant) {
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
        return root && pointer_changed(sim.handles[handle].inode);
    case GAP:
        return false;
    }
    return false;
}

static int sim_sync(struct storage *s, int handle)
{
    (void)s;
    assert_false(sim.handles[handle].failed); // the second one would lie
    const int rc = refusal();
    sim.handles[handle].failed = rc < 0;
    if (rc < 0 || left_out(handle))
        return rc;
    tick();
    for (int i = 0; i < sim.n_log; i++)
        if (sim.log[i].inode == sim.handles[handle].inode && sim.log[i].kept == NEVER)
            sim.log[i].kept = sim.time;
    return 0;
}

static int sim_make_directory(struct storage *s, int directory, const char *name)
{
    (void)s;
    const int rc = refusal();
    if (rc < 0)
        return rc;
    const int parent = directory == STORAGE_CWD ? 0 : sim.handles[directory].inode;
    if (inode_find(&sim.live.inodes[parent], name) >= 0)
        return -EEXIST;
    enter(parent, name, true);
    return 0;
}

static int sim_rename(struct storage *s, int directory, const char *from, const char *to)
{
    (void)s;
    const int rc = refusal();
    if (rc < 0)
        return rc;
    const int parent = sim.handles[directory].inode;
    const int at = inode_find(&sim.live.inodes[parent], from);
    if (at < 0)
        return -ENOENT;
    if (sim.mutant == GAP && is_pointer(to) && inode_find(&sim.live.inodes[parent], to) >= 0) {
        tick();
        struct entry_log *gap = change(CHANGE_REMOVE, parent);
        snprintf(gap->name, NAME, "%s", to);
        tree_apply(&sim.live, gap);
    }
    tick();
    struct entry_log *e = change(CHANGE_RENAME, parent);
    snprintf(e->name, NAME, "%s", from);
    snprintf(e->to, NAME, "%s", to);
    e->target = sim.live.inodes[parent].entries[at].inode;
    tree_apply(&sim.live, e);
    return 0;
}

static int sim_remove(struct storage *s, int directory, const char *name, bool is_directory)
{
    (void)s;
    const int rc = refusal();
    if (rc < 0)
        return rc;
    const int parent = sim.handles[directory].inode;
    const int at = inode_find(&sim.live.inodes[parent], name);
    if (at < 0)
        return -ENOENT;
    const struct inode *i = &sim.live.inodes[sim.live.inodes[parent].entries[at].inode];
    if (i->directory != is_directory)
        return is_directory ? -ENOTDIR : -EISDIR;
    if (is_directory && i->n_entries > 0)
        return -ENOTEMPTY;
    tick();
    struct entry_log *e = change(CHANGE_REMOVE, parent);
    snprintf(e->name, NAME, "%s", name);
    tree_apply(&sim.live, e);
    return 0;
}

static int sim_list(struct storage *s, int directory, storage_each_fn *each, void *arg)
{
    (void)s;
    const int rc = refusal();
    if (rc < 0)
        return rc;
    static struct inode copy[4]; // entries may be removed meanwhile, and listings nest
    static int depth;
    struct inode *i = &copy[depth++];
    *i = sim.live.inodes[sim.handles[directory].inode];
    int result = 0;
    for (int e = 0; e < i->n_entries && result == 0; e++)
        result = each(arg, i->entries[e].name);
    depth--;
    return result;
}

static int sim_lock(struct storage *s, int handle, int operation)
{
    (void)s;
    (void)handle;
    (void)operation;
    return 0;
}

static int sim_free_bytes(struct storage *s, int directory, uint64_t *bytes)
{
    (void)s;
    (void)directory;
    *bytes = 1 << 30;
    return refusal();
}

static const struct storage_ops sim_ops = {
    .open = sim_open,
    .close = sim_close,
    .write_at = sim_write_at,
    .read_at = sim_read_at,
    .allocate = sim_allocate,
    .truncate = sim_truncate,
    .size = sim_size,
    .sync = sim_sync,
    .make_directory = sim_make_directory,
    .rename = sim_rename,
    .remove = sim_remove,
    .list = sim_list,
    .lock = sim_lock,
    .free_bytes = sim_free_bytes,
};

static void sim_start(enum mutant mutant)
{
    memset(&sim, 0, sizeof sim);
    sim.storage.ops = &sim_ops;
    sim.mutant = mutant;
    sim.live.n = 1;
    tree_clear(&sim.live);
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
    assert_int_equal(engine_open(&engine, &(struct engine_options){.storage = &sim.storage}, error,
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
    int rc = catalog_look(&c, &sim.storage, "snapshots", error, sizeof error);
    if (rc < 0)
        return rc;
    sim.promise.moving = true;
    sim.promise.next = to;
    tick();
    rc = to > 0 ? catalog_pin(c, (uint64_t)to) : catalog_unpin(c, &newest);
    if (rc == 0) {
        sim.promise.moving = false;
        sim.promise.pinned = to;
    }
    tick();
    catalog_close(c);
    return rc;
}

// A life of the daemon: starts, publishes, tidies. An operator goes back and forth meanwhile.
static void live(int generations)
{
    char error[512];
    struct engine *engine = sim_engine();
    struct catalog *c;
    assert_int_equal(catalog_open(&c, &sim.storage, "snapshots", error, sizeof error), 0);
    for (int g = 1; g <= generations; g++) {
        if (publish(engine, (uint64_t)g, error, sizeof error) < 0)
            fail_msg("%s", error);
        sim.promise.acknowledged = g;
        tick();
        assert_true(catalog_retain(c, 2) >= 0);
        if (g == ROLLED_BACK_AFTER || g == ROLLED_BACK_AFTER + 1)
            assert_int_equal(point(g - 1), 0);
        if (g == UNPINNED_AFTER)
            assert_int_equal(point(0), 0);
    }
    catalog_close(c);
    engine_close(engine);
}

// --- the states after a crash ---

static char disk[64]; // a real directory
static char root[80]; // <disk>/snapshots

static void disk_name(void)
{
    snprintf(disk, sizeof disk, "%s/twotower-crash-%ld",
             access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp", (long)getpid());
    snprintf(root, sizeof root, "%s/snapshots", disk);
}

static void write_tree(const struct tree *t, int inode, const char *path)
{
    char name[256];
    const struct inode *d = &t->inodes[inode];
    mkdir(path, 0777);
    for (int i = 0; i < d->n_entries; i++) {
        const struct inode *child = &t->inodes[d->entries[i].inode];
        snprintf(name, sizeof name, "%s/%s", path, d->entries[i].name);
        if (child->directory)
            write_tree(t, d->entries[i].inode, name);
        else
            file_write(name, child->data, child->size);
    }
}

static uint64_t tree_hash(const struct tree *t, int inode)
{
    // Of a set of names, whatever their order.
    uint64_t hash = 1;
    const struct inode *d = &t->inodes[inode];
    for (int i = 0; i < d->n_entries; i++) {
        const struct inode *child = &t->inodes[d->entries[i].inode];
        uint64_t h = table_crc32c(d->entries[i].name, strlen(d->entries[i].name));
        if (child->directory)
            h = mix(h ^ tree_hash(t, d->entries[i].inode));
        else
            h = mix(mix(h ^ child->size) ^ table_crc32c(child->data, child->size));
        hash += h;
    }
    return mix(hash);
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

static void judge_tree(const struct tree *t, const struct promise *p, struct verdict *v,
                       const char *how)
{
    v->states++;
    write_tree(t, 0, disk);
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
    tree_remove(disk);
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
    tree_clear(&scratch);
    int pending = 0;
    for (int i = 0; i < sim.n_log && sim.log[i].time <= time; i++)
        if (sim.log[i].kept <= time || keep[pending++])
            tree_apply(&scratch, &sim.log[i]);
    const struct promise *p = &sim.promised[time];
    const int numbers[] = {p->acknowledged, p->pinned, p->next, p->moving};
    const uint64_t hash = mix(tree_hash(&scratch, 0) ^ table_crc32c(numbers, sizeof numbers)) | 1;
    if (seen_before(hash))
        return;
    char text[64];
    snprintf(text, sizeof text, "crash at %d of %d, %s", time, sim.time, how);
    judge_tree(&scratch, p, v, text);
}

static struct verdict crash_everywhere(enum mutant mutant)
{
    struct verdict v = {0};
    sim_start(mutant);
    live(GENERATIONS);
    seen_before(0);
    disk_name();
    for (int time = 0; time <= sim.time; time++) {
        int pending = 0;
        for (int i = 0; i < sim.n_log && sim.log[i].time <= time; i++)
            pending += sim.log[i].kept > time;
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
    return v;
}

static void whatever_a_crash_leaves_the_last_acknowledged_generation_loads(void **state)
{
    (void)state;
    const struct verdict v = crash_everywhere(NONE);
    print_message("%d calls, %d different states\n", sim.time, v.states);
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
    write_tree(&sim.live, 0, disk);
    const char *wrong = load(root, &generation);
    tree_remove(disk);
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
    disk_name();
    for (size_t e = 0; e < sizeof errors / sizeof errors[0]; e++) {
        for (int call = 1;; call++) {
            sim_start(NONE);
            live(1);
            struct engine *engine = sim_engine();
            char error[512] = "";
            sim.fail_in = call;
            sim.fail_with = errors[e].rc;
            const int rc = publish(engine, 2, error, sizeof error);
            const bool all_done = sim.fail_in > 0;
            sim.fail_in = 0;
            if (rc < 0) {
                assert_int_equal(rc, errors[e].rc);
                assert_true(strlen(error) > 0);
            }
            for (int h = 0; h < HANDLES; h++)
                assert_false(sim.handles[h].open);
            expect_loadable(rc == 0 ? 2 : 1, errors[e].name, call);
            // What is left over goes at the next start; and publishing works as if nothing was.
            struct catalog *c;
            assert_int_equal(catalog_open(&c, &sim.storage, "snapshots", error, sizeof error), 0);
            const struct inode *top = &sim.live.inodes[sim.live.inodes[0].entries[0].inode];
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
    disk_name();
    for (int unpin = 0; unpin < 2; unpin++) {
        for (int call = 1;; call++) {
            sim_start(NONE);
            live(2);
            if (unpin)
                assert_int_equal(point(1), 0);
            const int from = unpin ? 1 : 2, to = unpin ? 2 : 1;
            sim.fail_in = call;
            sim.fail_with = -EIO;
            const int rc = point(unpin ? 0 : 1);
            const bool all_done = sim.fail_in > 0;
            sim.fail_in = 0;
            for (int h = 0; h < HANDLES; h++)
                assert_false(sim.handles[h].open);
            int generation;
            write_tree(&sim.live, 0, disk);
            const char *wrong = load(root, &generation);
            tree_remove(disk);
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
    sim.short_writes = true;
    live(1);
    disk_name();
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
