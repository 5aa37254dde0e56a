// SPDX-License-Identifier: Apache-2.0
//
//     golden DIR...
//
// Runs the worked cases of every DIR/*.json against the library. A file has a topic, a tolerance
// and cases; a case has tensors "in" and "out" by name: {"shape", "data"} row-major, null = NaN, or
// a plain number. Numbers and sizes are taken from the file. A value x is met within
// tolerance * max(1, |x|). Keys that start with "bug_" record what must not be copied and are not
// looked at; every other key of "out" must have been compared, else the case fails.
#include <cjson/cJSON.h>
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/gemm.h"
#include "model/kernels.h"
#include "tests/golden/case.h"

static const struct topic *const topics[] = {core_topics, debias_topics, slate_topics,
                                             ranker_topics, sampling_topics};

static int passed, failed, skipped;

static void check_all_compared(struct test *t)
{
    const cJSON *item;
    cJSON_ArrayForEach(item, t->out)
    {
        bool seen = strncmp(item->string, "bug_", 4) == 0;
        for (int i = 0; i < t->compared_count; i++)
            seen = seen || strcmp(t->compared[i], item->string) == 0;
        if (!seen)
            fail(t, "out.%s was not compared with anything", item->string);
    }
}

static const struct topic *topic_find(const char *name)
{
    for (size_t i = 0; i < sizeof topics / sizeof *topics; i++)
        for (const struct topic *topic = topics[i]; topic->name; topic++)
            if (strcmp(topic->name, name) == 0)
                return topic;
    return NULL;
}

static void run_case(struct test *t, const char *topic)
{
    const struct topic *found = topic_find(topic);
    if (found) {
        found->run(t);
        check_all_compared(t);
        if (!t->failed)
            printf("ok %s/%s\n", t->file, t->name);
        passed += !t->failed;
        failed += t->failed;
        return;
    }
    printf("skip %s/%s: not implemented\n", t->file, t->name);
    skipped++;
}

static char *read_whole(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file)
        return NULL;
    char *text = NULL;
    size_t size = 0, room = 0;
    do {
        if (room - size < 4096) {
            room = 2 * room + 8192;
            text = realloc(text, room);
            if (!text)
                abort();
        }
        size += fread(text + size, 1, room - size - 1, file);
    } while (!feof(file) && !ferror(file));
    text[size] = 0;
    fclose(file);
    return text;
}

static const char *string_of(const cJSON *object, const char *key, const char *otherwise)
{
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, key));
    return text ? text : otherwise;
}

static void run_file(const char *path, char *memory, size_t size)
{
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    char name[256];
    snprintf(name, sizeof name, "%.*s", (int)(strlen(base) - strlen(".json")), base);

    char *text = read_whole(path);
    cJSON *root = text ? cJSON_Parse(text) : NULL;
    const cJSON *item, *tol = cJSON_GetObjectItemCaseSensitive(root, "tol");
    if (!root) {
        printf("FAIL %s: %s\n", name, text ? "is not JSON" : strerror(errno));
        failed++;
    }
    cJSON_ArrayForEach(item, cJSON_GetObjectItemCaseSensitive(root, "cases"))
    {
        const size_t third = size / 3;
        struct test t = {
            .file = name,
            .name = string_of(item, "name", "?"),
            .in = cJSON_GetObjectItemCaseSensitive(item, "in"),
            .out = cJSON_GetObjectItemCaseSensitive(item, "out"),
            .tolerance = cJSON_IsNumber(tol) ? tol->valuedouble : 1e-5,
            .params = {memory, third, 0},
            .grads = {memory + third, third, 0},
            .scratch = {memory + 2 * third, third, 0},
            .rng = {1, 0},
        };
        run_case(&t, string_of(root, "topic", name));
    }
    cJSON_Delete(root);
    free(text);
}

static int is_json(const struct dirent *entry)
{
    const size_t n = strlen(entry->d_name);
    return n > 5 && strcmp(entry->d_name + n - 5, ".json") == 0;
}

static void run_directory(const char *directory, char *memory, size_t size)
{
    struct dirent **entries;
    const int n = scandir(directory, &entries, is_json, alphasort);
    if (n < 0) {
        printf("FAIL %s: %s\n", directory, strerror(errno));
        failed++;
        return;
    }
    for (int i = 0; i < n; i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", directory, entries[i]->d_name);
        run_file(path, memory, size);
        free(entries[i]);
    }
    free(entries);
}

int main(int argc, char **argv)
{
    const size_t size = (size_t)3 << 26; // pages that no case touches are never there
    char *memory = malloc(size);
    if (argc < 2 || !memory) {
        fprintf(stderr, "usage: golden DIR...\n");
        return 64;
    }
    gemm_init();
    kernels_init(NULL);
    for (int i = 1; i < argc; i++)
        run_directory(argv[i], memory, size);
    free(memory);
    printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
    return failed > 0;
}
