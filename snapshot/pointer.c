// SPDX-License-Identifier: Apache-2.0
#include "snapshot/pointer.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>

#include "snapshot/manifest.h"
#include "snapshot/storage.h"

static const char latest_name[] = "LATEST", pinned_name[] = "PINNED", lock_name[] = ".pointer";

int pointer_lock(struct storage *s, int root)
{
    int lock = s->ops->open(s, root, lock_name, O_RDWR | O_CREAT | O_NOFOLLOW, 0666);
    // Another user made it. To lock it, reading is enough on a local disk.
    if (lock == -EACCES)
        lock = s->ops->open(s, root, lock_name, O_RDONLY | O_NOFOLLOW, 0);
    if (lock < 0)
        return lock;
    int rc;
    do
        rc = s->ops->lock(s, lock, LOCK_EX);
    while (rc == -EINTR);
    if (rc < 0) {
        s->ops->close(s, lock);
        return rc;
    }
    return lock;
}

void pointer_unlock(struct storage *s, int lock)
{
    s->ops->close(s, lock);
}

// What a file says; *there also when that is nothing legible.
static int line_read(struct storage *s, int root, const char *name, struct pointer_target *target,
                     bool *there)
{
    char *text;
    size_t n;
    *target = (struct pointer_target){0};
    const int rc = storage_get(s, root, name, LATEST_SIZE_MAX, &text, &n);
    *there = rc == 0 || rc == -EFBIG;
    if (rc < 0)
        return rc == -ENOENT || rc == -EFBIG ? 0 : rc;
    if (!latest_parse(text, n, &target->generation, &target->crc))
        *target = (struct pointer_target){0};
    free(text);
    return 0;
}

int pointer_read(struct storage *s, int root, struct pointer *p)
{
    bool there;
    *p = (struct pointer){0};
    const int rc = line_read(s, root, latest_name, &p->latest, &there);
    return rc < 0 ? rc : line_read(s, root, pinned_name, &p->pinned, &p->is_pinned);
}

static int line_replace(struct storage *s, int root, const char *name,
                        const struct pointer_target *to)
{
    char text[LATEST_SIZE_MAX], fresh[32];
    snprintf(fresh, sizeof fresh, ".tmp-%s", name);
    const int n =
        snprintf(text, sizeof text, "%" PRIu64 " %08" PRIx32 "\n", to->generation, to->crc);
    int rc = s->ops->remove(s, root, fresh, false);
    if (rc == 0 || rc == -ENOENT)
        rc = storage_put(s, root, fresh, text, (size_t)n);
    if (rc == 0)
        rc = s->ops->rename(s, root, fresh, name);
    return rc == 0 ? s->ops->sync(s, root) : rc;
}

// *pinned: LATEST is to stay.
static int settle(struct storage *s, int root, bool *pinned)
{
    struct pointer p;
    const int rc = pointer_read(s, root, &p);
    *pinned = p.is_pinned;
    if (rc < 0 || p.pinned.generation == 0 ||
        (p.pinned.generation == p.latest.generation && p.pinned.crc == p.latest.crc))
        return rc;
    return line_replace(s, root, latest_name, &p.pinned);
}

int pointer_settle(struct storage *s, int root)
{
    bool pinned;
    return settle(s, root, &pinned);
}

int pointer_publish(struct storage *s, int root, const struct pointer_target *to)
{
    bool pinned;
    const int rc = settle(s, root, &pinned);
    return rc < 0 || pinned ? rc : line_replace(s, root, latest_name, to);
}

int pointer_pin(struct storage *s, int root, const struct pointer_target *to)
{
    const int rc = line_replace(s, root, pinned_name, to);
    return rc < 0 ? rc : line_replace(s, root, latest_name, to);
}

int pointer_unpin(struct storage *s, int root, const struct pointer_target *to)
{
    int rc = s->ops->remove(s, root, pinned_name, false);
    if (rc == 0)
        rc = s->ops->sync(s, root);
    return rc == 0 || rc == -ENOENT ? line_replace(s, root, latest_name, to) : rc;
}
