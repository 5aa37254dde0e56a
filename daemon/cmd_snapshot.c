// SPDX-License-Identifier: Apache-2.0
//
// twotower snapshot: which snapshot the fleets take. list shows them; pin, rollback and unpin move
// LATEST, also while the daemon publishes (snapshot/pointer.h). What LATEST is to name is opened
// and read whole first, and held open until LATEST names it, so that retention leaves it alone.
#include <cjson/cJSON.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "daemon/command.h"
#include "daemon/serving.h"
#include "snapshot/catalog.h"
#include "snapshot/manifest.h"

struct root {
    const struct command_line *line;
    const char *path;
    struct catalog *catalog;
    struct pointer pointer; // as it was at the start
    const uint64_t *generations;
    int n;
};

static int root_open(struct root *r, const struct command_line *line, const char *path)
{
    char error[PATH_MAX + 512], manifest[PATH_MAX];
    *r = (struct root){.line = line, .path = path};
    snprintf(manifest, sizeof manifest, "%s/manifest.json", path);
    if (access(manifest, F_OK) == 0)
        return command_fail(line, EX_USAGE, "%s is one snapshot; the directory of all is meant",
                            path);
    int rc = catalog_look(&r->catalog, NULL, path, error, sizeof error);
    if (rc < 0)
        return command_fail(line, command_status(rc), "%s", error);
    rc = catalog_pointer(r->catalog, &r->pointer);
    if (rc == 0)
        rc = r->n = catalog_list(r->catalog, &r->generations);
    if (rc < 0)
        return command_fail(line, command_status(rc), "%s", catalog_error(r->catalog));
    if (r->n == 0)
        return command_fail(line, EX_NOINPUT, "%s: no snapshot here", path);
    return EX_OK;
}

static void root_close(struct root *r)
{
    if (r->catalog)
        catalog_close(r->catalog);
}

// ---- list

static const cJSON *number_at(const cJSON *object, const char *key)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    return cJSON_IsNumber(item) ? item : NULL;
}

static void print_number(const char *format, int width, const cJSON *item)
{
    if (item)
        printf(format, width, item->valuedouble);
    else
        printf("  %*s", width, "-");
}

static void print_row(const struct root *r, uint64_t generation, const cJSON *manifest,
                      const char *why)
{
    const char *created =
        cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(manifest, "created"));
    const cJSON *metrics = cJSON_GetObjectItemCaseSensitive(manifest, "metrics");
    const cJSON *window = number_at(metrics, "window");
    char when[32];
    snprintf(when, sizeof when, "%.20s", created ? created : "-");
    printf("%16" PRIu64 "  ", generation);
    serving_text(when, strlen(when), stdout);
    printf("%*s", 20 - (int)strlen(when), "");
    print_number("  %*.0f", 10, number_at(manifest, "items"));
    print_number("  %*.0f", 10, number_at(manifest, "users"));
    print_number("  %*.4f", 10,
                 window && window->valuedouble > 0 ? number_at(metrics, "recall@100") : NULL);
    printf("%s%s", generation == r->pointer.latest.generation ? "  LATEST" : "",
           generation == r->pointer.pinned.generation ? "  pinned" : "");
    if (why) {
        fputs("  damaged: ", stdout);
        serving_text(why, strlen(why), stdout);
    }
    putchar('\n');
}

static cJSON *json_of(const struct root *r, uint64_t generation, const cJSON *manifest,
                      const char *why)
{
    static const char *const keys[] = {"created", "items", "users", "metrics"};
    char text[24];
    cJSON *one = cJSON_CreateObject();
    snprintf(text, sizeof text, "%" PRIu64, generation);
    cJSON_AddRawToObject(one, "generation", text);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const cJSON *item = cJSON_GetObjectItemCaseSensitive(manifest, keys[i]);
        if (item)
            cJSON_AddItemToObject(one, keys[i], cJSON_Duplicate(item, true));
    }
    cJSON_AddBoolToObject(one, "latest", generation == r->pointer.latest.generation);
    cJSON_AddBoolToObject(one, "pinned", generation == r->pointer.pinned.generation);
    cJSON_AddBoolToObject(one, "whole", !why);
    if (why)
        cJSON_AddStringToObject(one, "error", why);
    return one;
}

static int list(struct root *r, const char *wanted)
{
    const bool as_json = command_value(r->line, "json");
    cJSON *root = cJSON_CreateObject();
    cJSON_AddBoolToObject(root, "pinned", r->pointer.is_pinned);
    cJSON *all = cJSON_AddArrayToObject(root, "snapshots");
    (void)wanted;
    if (!as_json)
        printf("%16s  %-20s  %10s  %10s  %10s\n", "generation", "created", "items", "users",
               "recall@100");
    for (int i = 0; i < r->n; i++) {
        char path[PATH_MAX], error[PATH_MAX + 512];
        struct tt_reader *reader;
        catalog_path(r->catalog, r->generations[i], path, sizeof path);
        const int rc = tt_open(&reader, path, error, sizeof error);
        if (rc < 0 && access(path, F_OK) < 0)
            continue; // retention was faster
        cJSON *manifest = rc == 0 ? cJSON_Parse(tt_manifest_json(reader)) : NULL;
        tt_close(reader);
        if (as_json)
            cJSON_AddItemToArray(all, json_of(r, r->generations[i], manifest, rc ? error : NULL));
        else
            print_row(r, r->generations[i], manifest, rc ? error : NULL);
        cJSON_Delete(manifest);
    }
    if (!as_json && r->pointer.is_pinned && r->pointer.pinned.generation == 0)
        puts("PINNED is not legible: LATEST stays where it is.");
    char *text = as_json ? cJSON_PrintUnformatted(root) : NULL;
    if (text)
        puts(text);
    cJSON_free(text);
    cJSON_Delete(root);
    return as_json && !text ? EX_OSERR : EX_OK;
}

// ---- Moving the pointer

// Reads a generation whole. EX_OK, and then the reader holds it; or a status, and the sentence.
static int generation_read(const struct root *r, uint64_t generation, struct tt_reader **reader,
                           char *error, size_t error_size)
{
    char path[PATH_MAX];
    catalog_path(r->catalog, generation, path, sizeof path);
    int rc = tt_open(reader, path, error, error_size);
    if (rc == 0 && strcmp(tt_format(*reader), SERVING_FORMAT) != 0) {
        snprintf(error, error_size, "%s: a %s is not for the fleets", path, tt_format(*reader));
        rc = -EBADMSG;
    }
    if (rc == 0)
        rc = tt_verify(*reader, error, error_size);
    if (rc == 0)
        return EX_OK;
    tt_close(*reader);
    *reader = NULL;
    return serving_status(path, rc);
}

static int held_pin(struct root *r, uint64_t generation, struct tt_reader *reader)
{
    const int rc = catalog_pin(r->catalog, generation);
    tt_close(reader);
    if (rc < 0)
        return command_fail(r->line, command_status(rc), "%s", catalog_error(r->catalog));
    return EX_OK;
}

static void tell_pinned(const struct root *r)
{
    printf(
        "The daemon goes on publishing beside it, and LATEST stays. To follow the newest again:\n"
        "    twotower snapshot unpin %s\n",
        r->path);
}

static int generation_wanted(const struct root *r, const char *text, uint64_t *generation)
{
    if (generation_parse(text, generation))
        return EX_OK;
    return command_fail(r->line, EX_USAGE, "'%s' is not the number of a generation", text);
}

static int pin(struct root *r, const char *wanted)
{
    char error[PATH_MAX + 512];
    struct tt_reader *reader;
    uint64_t generation;
    if (strcmp(wanted, "newest") == 0) {
        const int rc = catalog_newest(r->catalog, &generation);
        if (rc < 0)
            return command_fail(r->line, EX_DATAERR, "%s", catalog_error(r->catalog));
    } else {
        const int status = generation_wanted(r, wanted, &generation);
        if (status != EX_OK)
            return status;
    }
    int status = generation_read(r, generation, &reader, error, sizeof error);
    if (status != EX_OK)
        return command_fail(r->line, status, "%s", error);
    status = held_pin(r, generation, reader);
    if (status != EX_OK)
        return status;
    printf("LATEST names %" PRIu64 ", and is pinned there.\n", generation);
    tell_pinned(r);
    return EX_OK;
}

static int rollback(struct root *r, const char *wanted)
{
    char error[PATH_MAX + 512];
    struct tt_reader *reader = NULL;
    uint64_t from = r->pointer.latest.generation, to = 0;
    int status = EX_OK;
    // When LATEST says nothing legible, readers take the newest.
    if (from == 0 && catalog_newest(r->catalog, &from) < 0)
        return command_fail(r->line, EX_DATAERR, "%s", catalog_error(r->catalog));
    if (wanted) {
        status = generation_wanted(r, wanted, &to);
        if (status != EX_OK)
            return status;
        if (to >= from)
            return command_fail(r->line, EX_USAGE,
                                "LATEST names %" PRIu64 ", and %" PRIu64
                                " is not before it; see 'twotower snapshot pin'",
                                from, to);
        status = generation_read(r, to, &reader, error, sizeof error);
        if (status != EX_OK)
            return command_fail(r->line, status, "%s", error);
    }
    const int n = catalog_list(r->catalog, &r->generations); // catalog_newest may have listed anew
    for (int i = n; i-- > 0 && !reader;) {
        to = r->generations[i];
        if (to >= from)
            continue;
        status = generation_read(r, to, &reader, error, sizeof error);
        if (status != EX_OK)
            command_fail(r->line, status, "passed over: %s", error);
    }
    if (!reader)
        return command_fail(r->line, EX_NOINPUT, "%s: no whole snapshot before %" PRIu64, r->path,
                            from);
    status = held_pin(r, to, reader);
    if (status != EX_OK)
        return status;
    printf("LATEST went back from %" PRIu64 " to %" PRIu64 ", and is pinned there.\n", from, to);
    tell_pinned(r);
    return EX_OK;
}

static int unpin(struct root *r, const char *wanted)
{
    char error[PATH_MAX + 512];
    struct tt_reader *reader;
    uint64_t generation;
    (void)wanted;
    int rc = catalog_newest(r->catalog, &generation);
    if (rc < 0)
        return command_fail(r->line, EX_DATAERR, "%s", catalog_error(r->catalog));
    const int status = generation_read(r, generation, &reader, error, sizeof error);
    if (status != EX_OK)
        return command_fail(r->line, status, "%s", error);
    tt_close(reader);
    rc = catalog_unpin(r->catalog, &generation);
    if (rc < 0)
        return command_fail(r->line, command_status(rc), "%s", catalog_error(r->catalog));
    printf("LATEST names %" PRIu64 ", the newest, and %s with each publication.\n", generation,
           r->pointer.is_pinned ? "moves again" : "moves");
    return EX_OK;
}

// ---- The line

static const struct action {
    const char *name;
    int (*run)(struct root *r, const char *wanted);
    int root, wanted; // operands; wanted -1: none
    bool optional;    // wanted
    const char *form;
} actions[] = {
    {"list", list, 1, -1, false, "list DIR"},
    {"pin", pin, 2, 1, false, "pin GENERATION|newest DIR"},
    {"rollback", rollback, 1, 2, true, "rollback DIR [GENERATION]"},
    {"unpin", unpin, 1, -1, false, "unpin DIR"},
};

int cmd_snapshot(const struct config *config, const struct command_line *line)
{
    struct root r;
    (void)config;
    const struct action *a = actions, *end = actions + sizeof actions / sizeof *actions;
    while (a < end && strcmp(line->operands[0], a->name) != 0)
        a++;
    if (a == end)
        return command_fail(line, EX_USAGE, "'%s' is none of list, pin, rollback, unpin",
                            line->operands[0]);
    const int n = line->n_operands, most = a->wanted > a->root ? a->wanted + 1 : a->root + 1;
    if (n > most || n < most - a->optional)
        return command_fail(line, EX_USAGE, "the form is: twotower snapshot %s", a->form);
    if (command_value(line, "json") && a->run != list)
        return command_fail(line, EX_USAGE, "--json is for list");
    int status = root_open(&r, line, line->operands[a->root]);
    if (status == EX_OK)
        status = a->run(&r, a->wanted >= 0 && a->wanted < n ? line->operands[a->wanted] : NULL);
    root_close(&r);
    return status;
}
