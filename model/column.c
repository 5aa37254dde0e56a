// SPDX-License-Identifier: Apache-2.0
#include "model/column.h"

#include <assert.h>
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>

#include "model/pages.h"

// One saved unit in the undo space; the unit's bytes follow.
struct saved {
    uint64_t next; // of the same block, 0 at the end
    uint64_t index;
};

enum { UNDO_START = 64, BLOCK_BYTES = 64 << 10, PAGE = 4096 };

static void *reserve(size_t n)
{
    void *p =
        mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    pages_advise(p, n);
    return p;
}

int columns_open(struct columns *s, size_t undo_max)
{
    *s = (struct columns){.undo_max = undo_max < 4096 ? 4096 : undo_max};
    s->undo = reserve(s->undo_max);
    if (!s->undo)
        return -ENOMEM;
    // The owner fills it from the front while it should be learning: in the first cut a step had
    // 6000 page faults, and took 48 ms instead of 8.
    madvise(s->undo, s->undo_max, MADV_HUGEPAGE);
    return 0;
}

void columns_close(struct columns *s)
{
    for (int i = 0; i < s->n; i++)
        for (int k = 0; k < 3; k++)
            munmap(s->memory[i][k].at, s->memory[i][k].n);
    if (s->undo)
        munmap(s->undo, s->undo_max);
    *s = (struct columns){0};
}

int column_open(struct column *c, struct columns *s, const char *name, size_t unit, size_t n_max)
{
    assert(unit > 0 && n_max > 0 && s->n < COLUMNS_MAX && !atomic_load(&s->cut));
    *c = (struct column){.name = name, .unit = unit, .n_max = n_max, .set = s};
    while ((unit << c->block_shift) < BLOCK_BYTES)
        c->block_shift++;
    const size_t sizes[3] = {n_max * unit, n_max,
                             ((n_max >> c->block_shift) + 1) * sizeof *c->saved};
    void *at[3];
    for (int k = 0; k < 3; k++) {
        at[k] = reserve(sizes[k]);
        if (!at[k]) {
            while (k-- > 0)
                munmap(at[k], sizes[k]);
            return -ENOMEM;
        }
        s->memory[s->n][k] = (struct column_memory){at[k], sizes[k]};
    }
    c->base = at[0];
    c->saved_in = at[1];
    c->saved = at[2];
    s->list[s->n++] = c;
    return 0;
}

void column_floats(struct column *c, size_t from, size_t n, double max)
{
    assert(from + n * sizeof(float) <= c->unit);
    c->numbers = (struct column_numbers){from, n, sizeof(float), max};
}

void column_doubles(struct column *c, size_t from, size_t n, double max)
{
    assert(from + n * sizeof(double) <= c->unit);
    c->numbers = (struct column_numbers){from, n, sizeof(double), max};
}

// By their bits, in which a larger number is a larger integer and NAN the largest: limit minus them
// is below zero when one is too large. That goes on where floats would stop at each, and the
// compiler makes vectors of it that every x86-64 has.
static bool floats_bad(const unsigned char *at, size_t n, float max)
{
    int32_t limit, below = 0;
    memcpy(&limit, &max, sizeof limit);
    for (size_t i = 0; i < n; i++) {
        int32_t bits;
        memcpy(&bits, at + i * sizeof bits, sizeof bits);
        below |= limit - (bits & INT32_MAX);
    }
    return below < 0;
}

static bool doubles_bad(const unsigned char *at, size_t n, double max)
{
    int64_t limit, below = 0;
    memcpy(&limit, &max, sizeof limit);
    for (size_t i = 0; i < n; i++) {
        int64_t bits;
        memcpy(&bits, at + i * sizeof bits, sizeof bits);
        below |= limit - (bits & INT64_MAX);
    }
    return below < 0;
}

static bool numbers_bad(const struct column_numbers *numbers, const unsigned char *at, size_t n)
{
    return numbers->size == sizeof(float) ? floats_bad(at, n, (float)numbers->max)
                                          : doubles_bad(at, n, numbers->max);
}

size_t column_bad(const struct column *c, const void *units, size_t n)
{
    const struct column_numbers *numbers = &c->numbers;
    const unsigned char *at = (const unsigned char *)units + numbers->from;
    // Units that are nothing but numbers are looked at as one run: of rows of 256 bytes in half the
    // time, of one float each in a tenth.
    const size_t run = numbers->n * numbers->size == c->unit ? PAGE / c->unit + 1 : 1;
    if (numbers->n == 0)
        return n;
    for (size_t i = 0, some = run; i < n;) {
        some = n - i < some ? n - i : some;
        if (!numbers_bad(numbers, at + i * c->unit, some * numbers->n))
            i += some;
        else if (some == 1)
            return i;
        else
            some = 1; // it is one of these
    }
    return n;
}

// The marks of the new units get their memory now, a page for 4096 units, instead of in the middle
// of the first cut, where a step would touch many of them.
static void marks_touch(const struct column *c, size_t from, size_t n)
{
    for (size_t i = (from + PAGE - 1) / PAGE * PAGE; i < from + n; i += PAGE)
        *(volatile unsigned char *)&c->saved_in[i] = 0;
}

void column_grow(struct column *c, size_t n)
{
    assert(n <= c->n_max - c->n);
    marks_touch(c, c->n, n);
    c->n += n;
}

void *column_restore(struct column *c, size_t n)
{
    assert(n <= c->n_max && !atomic_load(&c->set->cut));
    // What lies above must read as zero again.
    if (n < c->n)
        memset(c->base + n * c->unit, 0, (c->n - n) * c->unit);
    c->n = n;
    return c->base;
}

void column_restored(const struct column *c, size_t from, size_t n)
{
    marks_touch(c, from, n);
}

void columns_cut(struct columns *s)
{
    assert(!atomic_load(&s->cut));
    s->epoch++;
    if (s->epoch == 0) { // 255 cuts later the marks of the first would look new
        for (int i = 0; i < s->n; i++)
            memset(s->list[i]->saved_in, 0, s->list[i]->n);
        s->epoch = 1;
    }
    s->undo_used = UNDO_START;
    s->saves = s->saves_waited = 0;
    for (int i = 0; i < s->n; i++) {
        struct column *c = s->list[i];
        c->n_cut = c->n;
        atomic_store_explicit(&c->swept, 0, memory_order_relaxed);
        memset((void *)c->saved, 0, ((c->n >> c->block_shift) + 1) * sizeof *c->saved);
    }
    atomic_store_explicit(&s->cut, true, memory_order_release);
}

void column_save(struct column *c, size_t i)
{
    struct columns *s = c->set;
    if (i >= c->n_cut || c->saved_in[i] == s->epoch ||
        i < atomic_load_explicit(&c->swept, memory_order_acquire))
        return;
    const size_t n = (sizeof(struct saved) + c->unit + 15) & ~(size_t)15;
    if (n > s->undo_max - s->undo_used) {
        s->saves_waited++;
        atomic_store_explicit(&s->waits, true, memory_order_relaxed);
        while (i >= atomic_load_explicit(&c->swept, memory_order_acquire) &&
               atomic_load_explicit(&s->cut, memory_order_acquire))
            sched_yield();
        atomic_store_explicit(&s->waits, false, memory_order_relaxed);
        return;
    }
    struct saved *saved = (struct saved *)(s->undo + s->undo_used);
    _Atomic(uint64_t) *head = &c->saved[i >> c->block_shift];
    saved->next = atomic_load_explicit(head, memory_order_relaxed);
    saved->index = i;
    memcpy(saved + 1, c->base + i * c->unit, c->unit);
    atomic_store_explicit(head, s->undo_used, memory_order_release);
    s->undo_used += n;
    s->saves++;
    c->saved_in[i] = s->epoch;
    // The saved copy is visible before the first changed byte is: see column_sweep.
    atomic_thread_fence(memory_order_release);
}

// The owner may be writing into what is read here. Torn units are put right afterwards.
__attribute__((no_sanitize("thread"))) static void copy_racing(unsigned char *out,
                                                               const unsigned char *in, size_t n)
{
    typedef uint64_t word __attribute__((vector_size(16), aligned(1), may_alias));
    size_t i = 0;
    for (; i + 4 * sizeof(word) <= n; i += 4 * sizeof(word)) {
        const volatile word *from = (const volatile word *)(in + i);
        word *to = (word *)(out + i);
        const word a = from[0], b = from[1], c = from[2], d = from[3];
        to[0] = a, to[1] = b, to[2] = c, to[3] = d;
    }
    for (; i < n; i++)
        out[i] = *(const volatile unsigned char *)(in + i);
}

void column_sweep(struct column *c, size_t from, size_t n, void *out)
{
    const struct columns *s = c->set;
    assert(atomic_load_explicit(&c->swept, memory_order_relaxed) == from && n <= c->n_cut - from);
    copy_racing(out, c->base + from * c->unit, n * c->unit);
    // If the copy saw a byte of a changed unit, then this fence sees that the unit was saved.
    atomic_thread_fence(memory_order_acquire);
    const size_t last = n ? (from + n - 1) >> c->block_shift : 0;
    for (size_t b = from >> c->block_shift; n && b <= last; b++) {
        uint64_t at = atomic_load_explicit(&c->saved[b], memory_order_acquire);
        while (at) {
            const struct saved *saved = (const struct saved *)(s->undo + at);
            if (saved->index >= from && saved->index < from + n)
                memcpy((unsigned char *)out + (saved->index - from) * c->unit, saved + 1, c->unit);
            at = saved->next;
        }
    }
    atomic_store_explicit(&c->swept, from + n, memory_order_release);
}

void columns_cut_end(struct columns *s)
{
    atomic_store_explicit(&s->cut, false, memory_order_release);
}
