// SPDX-License-Identifier: Apache-2.0
#include "snapshot/pass.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "snapshot/manifest.h"
#include "snapshot/storage.h"

enum { PAGE = 4096 }; // and what O_DIRECT wants offsets and sizes to be multiples of

// What of the file is read for a stretch.
struct extent {
    uint64_t from;   // the page in which it begins
    size_t n, there; // bytes to its last page's end, and to the file's if that comes before
    size_t lead;     // from there to the stretch
};

static struct extent extent_of(const struct pass *p, size_t stretch)
{
    const uint64_t first = stretch * p->each,
                   n = p->n_units - first < p->each ? p->n_units - first : p->each;
    const uint64_t begin = p->data_offset + first * p->unit, end = begin + n * p->unit;
    const uint64_t from = begin / PAGE * PAGE, to = (end + PAGE - 1) / PAGE * PAGE;
    return (struct extent){.from = from,
                           .n = (size_t)(to - from),
                           .there = (size_t)((to < p->size ? to : p->size) - from),
                           .lead = (size_t)(begin - from)};
}

static void *mapped_at(const struct pass *p, uint64_t offset)
{
    return (void *)(p->data - p->data_offset + offset);
}

static int file_open(const struct pass *p, int flags)
{
    struct storage *s = engine_storage(p->engine);
    const int directory = s->ops->open(s, STORAGE_CWD, p->path, O_RDONLY | O_DIRECTORY, 0);
    if (directory < 0)
        return directory;
    const int handle =
        s->ops->open(s, directory, p->name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | flags, 0);
    s->ops->close(s, directory);
    return handle;
}

int pass_open(struct pass *p, const struct tt_reader *r, const char *array, size_t unit,
              struct engine *e)
{
    *p = (struct pass){.engine = e, .path = tt_path(r), .unit = unit, .handle = -1};
    const struct tt_array *a = tt_find(r, array);
    struct manifest m;
    const char *text = tt_manifest_json(r);
    assert(a && unit > 0 && unit <= ENGINE_BLOCK / 2 && a->size % unit == 0);
    p->rc = manifest_parse(&m, text, strlen(text), p->error, sizeof p->error);
    if (p->rc < 0)
        return p->rc;
    for (size_t i = 0; i < m.n_files; i++)
        if (strcmp(m.files[i].name, a->name) == 0) {
            p->data_offset = m.files[i].data_offset;
            p->size = m.files[i].size;
        }
    manifest_free(&m);
    p->name = a->name;
    p->data = a->data;
    p->n_units = a->size / unit;
    // Whole pages where units fill them, otherwise room for a part of one at both ends.
    const bool fits = ENGINE_BLOCK % unit == 0 && p->data_offset % PAGE == 0;
    p->each = (fits ? ENGINE_BLOCK : ENGINE_BLOCK - PAGE) / unit;
    const int handle = file_open(p, O_DIRECT);
    p->handle = handle < 0 ? -1 : handle;
    return 0;
}

// Waits for what is under way to the slot, and nobody wants.
static void dismiss(struct pass *p, int slot)
{
    void *ignored;
    if (p->begun[slot])
        engine_read_end(p->engine, slot, &ignored);
    p->begun[slot] = false;
}

void pass_close(struct pass *p)
{
    if (!p->engine)
        return;
    for (int slot = 0; slot < ENGINE_READS; slot++)
        dismiss(p, slot);
    struct storage *s = engine_storage(p->engine);
    if (p->handle >= 0)
        s->ops->close(s, p->handle);
    *p = (struct pass){.handle = -1};
}

// Whether the page cache has all of it; also when that is not told.
static bool is_cached(const struct pass *p, const struct extent *x)
{
    unsigned char in[ENGINE_BLOCK / PAGE];
    const size_t pages = (x->there + PAGE - 1) / PAGE;
    if (mincore(mapped_at(p, x->from), x->there, in) < 0)
        return true;
    for (size_t i = 0; i < pages; i++)
        if (!(in[i] & 1))
            return false;
    return true;
}

static void ask(struct pass *p, size_t stretch)
{
    const int slot = (int)(stretch % ENGINE_READS);
    const struct extent x = extent_of(p, stretch);
    p->cached[slot] = p->handle < 0 || is_cached(p, &x);
    p->begun[slot] = !p->cached[slot];
    if (p->begun[slot])
        engine_read_begin(p->engine, slot, p->handle, x.n, x.from);
    else if (p->handle < 0)
        madvise(mapped_at(p, x.from), x.there, MADV_WILLNEED);
}

// What reading past the page cache did not bring, by the way that is open to all: short reads are
// continued, and an error here is one.
static int rest_read(struct pass *p, const struct extent *x, unsigned char *to, size_t done)
{
    struct storage *s = engine_storage(p->engine);
    const int handle = file_open(p, 0);
    int rc = handle < 0 ? handle : 0;
    for (int idle = 0; rc == 0 && done < x->there;) {
        const ssize_t got = s->ops->read_at(s, handle, to + done, x->there - done, x->from + done);
        if (got > 0)
            done += (size_t)got;
        else if ((got != -EINTR && got != -EAGAIN) || ++idle == STORAGE_TRIES)
            rc = got < 0 ? (int)got : -EBADMSG;
    }
    if (handle >= 0)
        s->ops->close(s, handle);
    if (rc < 0)
        snprintf(p->error, sizeof p->error,
                 "%s/%s: bytes %" PRIu64 "..%" PRIu64 " cannot be read: %s", p->path, p->name,
                 x->from + done, x->from + x->there - 1,
                 rc == -EBADMSG ? "the file ends before them" : strerror(-rc));
    return rc;
}

// The stretch is there; at is where its first unit lies.
static int take(struct pass *p, size_t stretch)
{
    const int slot = (int)(stretch % ENGINE_READS);
    const struct extent x = extent_of(p, stretch);
    void *bytes;
    if (p->cached[slot]) {
        p->at = p->data + stretch * p->each * p->unit;
        return 0;
    }
    const ssize_t got = engine_read_end(p->engine, slot, &bytes);
    p->begun[slot] = false;
    p->at = (unsigned char *)bytes + x.lead;
    return got >= (ssize_t)x.there ? 0 : rest_read(p, &x, bytes, got > 0 ? (size_t)got : 0);
}

int pass_move(struct pass *p, size_t i)
{
    if (p->rc < 0)
        return p->rc;
    assert(i >= p->first && i < p->n_units);
    const size_t stretch = i / p->each, n = (p->n_units + p->each - 1) / p->each;
    for (size_t passed = p->first / p->each; passed < stretch && passed < p->asked; passed++)
        dismiss(p, (int)(passed % ENGINE_READS));
    if (p->asked < stretch)
        p->asked = stretch;
    while (p->asked < n && p->asked < stretch + ENGINE_READS)
        ask(p, p->asked++);
    p->rc = take(p, stretch);
    p->first = stretch * p->each;
    p->n = p->rc == 0 ? (p->n_units - p->first < p->each ? p->n_units - p->first : p->each) : 0;
    return p->rc;
}
