// SPDX-License-Identifier: Apache-2.0
#include "snapshot/catalog.h"
#include "snapshot/twotower_reader.h"

#include <cjson/cJSON.h>
#include <math.h>

#include "snapshot/ids.h"
#include "snapshot/manifest.h"
#include "tests/support/scored.h"
#include "tests/unit/test_snapshot.h"

enum { N = 3000, D = 5 };

struct fixture {
    struct test_root root;
    char path[96]; // of generation 7
    uint64_t n_ids;
    int kinds; // 0 all integers, 1 all strings, 2 mixed with negative integers
};

static struct fixture fixture;

static void get_id(void *arg, uint64_t row, struct ids_entry *id)
{
    static char text[32];
    const struct fixture *f = arg;
    const uint64_t x = mix(row);
    if (f->kinds == 0) {
        id->kind = IDS_INTEGER;
        id->integer = row == 5 ? 0 : row == 6 ? UINT64_MAX : x;
    } else if (f->kinds == 2 && row % 3 == 0) {
        id->kind = IDS_INTEGER;
        id->negative = row % 2;
        id->integer = id->negative ? -(row + 1) : row + 1;
    } else {
        id->kind = IDS_STRING;
        // Some strings look like the integers of other rows; one is empty.
        id->size = row == 1 ? 0 : (size_t)snprintf(text, sizeof text, "%" PRIu64, row);
        id->bytes = text;
    }
}

static void get_title(void *arg, uint64_t row, const char **bytes, size_t *size)
{
    static char text[64];
    (void)arg;
    *bytes = text;
    *size = row % 10 == 3 ? 0 : (size_t)snprintf(text, sizeof text, "title \xc3\xa9 %" PRIu64, row);
}

static float value(uint64_t i)
{
    // Few different values, so that scores tie.
    return (float)(mix(i) % 5) - 2;
}

static void publish(struct fixture *f, uint64_t generation, const char *run)
{
    float *emb = malloc(N * D * sizeof *emb);
    assert_non_null(emb);
    for (uint64_t i = 0; i < N * D; i++)
        emb[i] = value(i);
    struct writer *w = root_writer(&f->root, generation);
    writer_array(w,
                 &(struct writer_array){
                     "item_emb.f32.safetensors", "emb", "item_embedding", "F32", 2, {N, D}},
                 emb);
    ids_write(w, "item", f->n_ids, get_id, f);
    strings_write(w, "item_titles", f->n_ids, get_title, f);
    writer_blob(w, "golden.json", "golden", run, strlen(run));
    writer_manifest_text(w, "run_id", run);
    root_publish(w);
    free(emb);
}

static int setup(void **state)
{
    fixture = (struct fixture){.n_ids = N};
    root_make(&fixture.root, "/tmp", ENGINE_PWRITE, NULL);
    snprintf(fixture.path, sizeof fixture.path, "%s/7", fixture.root.path);
    *state = &fixture;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    root_remove(&f->root);
    return 0;
}

static struct tt_reader *open_reader(const char *path)
{
    struct tt_reader *r;
    char error[512];
    if (tt_open(&r, path, error, sizeof error) < 0)
        fail_msg("%s", error);
    return r;
}

static void arrays_are_found_by_file_name_and_by_role(void **state)
{
    struct fixture *f = *state;
    publish(f, 7, "r1");
    struct tt_reader *r = open_reader(f->path);
    const struct tt_array *a = tt_find(r, "item_emb.f32.safetensors");
    assert_non_null(a);
    assert_ptr_equal(a, tt_find(r, "item_embedding"));
    assert_null(tt_find(r, "nothing"));
    assert_string_equal(a->dtype, "F32");
    assert_string_equal(a->tensor, "emb");
    assert_int_equal(a->n_dims, 2);
    assert_int_equal(a->shape[0], N);
    assert_int_equal(a->shape[1], D);
    for (uint64_t i = 0; i < N * D; i++)
        assert_true(((const float *)a->data)[i] == value(i));
    assert_null(tt_find(r, "golden")->tensor);
    assert_memory_equal(tt_find(r, "golden.json")->data, "r1", 2);
    assert_int_equal(tt_snapshot(r), 7);
    assert_string_equal(tt_path(r), f->path);
    assert_string_equal(tt_format(r), "twotower-snapshot");
    assert_non_null(strstr(tt_manifest_json(r), "\"run_id\""));
    assert_null(tt_array_at(r, tt_n_arrays(r)));
    tt_close(r);
}

static void a_root_opens_at_latest_or_else_at_the_newest_whole_one(void **state)
{
    struct fixture *f = *state;
    char path[160], error[512];
    struct tt_reader *r;
    assert_int_equal(tt_open(&r, f->root.path, error, sizeof error), -ENOENT);
    assert_non_null(strstr(error, "no snapshot here"));
    assert_null(r);

    root_generation(&f->root, 6);
    root_generation(&f->root, 7);
    root_generation(&f->root, 8);
    r = open_reader(f->root.path);
    assert_int_equal(tt_snapshot(r), 8);
    tt_close(r);

    snprintf(path, sizeof path, "%s/LATEST", f->root.path);
    static const char *const hints[] = {"8 00000000\n", "99 00000000\n", "", "8",
                                        "\n",           "-1 0000000\n"};
    for (size_t i = 0; i < sizeof hints / sizeof hints[0]; i++) {
        file_write(path, hints[i], strlen(hints[i]));
        r = open_reader(f->root.path);
        assert_int_equal(tt_snapshot(r), 8);
        tt_close(r);
    }
    remove(path);
    snprintf(path, sizeof path, "%s/8/x.safetensors", f->root.path);
    remove(path);
    r = open_reader(f->root.path);
    assert_int_equal(tt_snapshot(r), 7);
    tt_close(r);

    // An operator went back: what LATEST names counts, when it is whole.
    char text[64];
    size_t n;
    snprintf(path, sizeof path, "%s/6/manifest.json", f->root.path);
    char *manifest = file_read(path, &n);
    snprintf(text, sizeof text, "6 %08x\n", table_crc32c(manifest, n));
    free(manifest);
    snprintf(path, sizeof path, "%s/LATEST", f->root.path);
    file_write(path, text, strlen(text));
    r = open_reader(f->root.path);
    assert_int_equal(tt_snapshot(r), 6);
    tt_close(r);
}

// As a fleet does: follows LATEST when it has moved.
static void expect_follows(struct tt_reader **r, const char *root, bool moved, uint64_t to)
{
    assert_int_equal(tt_moved(*r, root), moved);
    if (moved) {
        tt_close(*r);
        *r = open_reader(root);
    }
    assert_int_equal(tt_snapshot(*r), to);
    assert_int_equal(tt_moved(*r, root), 0);
}

static void a_reader_follows_the_pointer_forward_and_back(void **state)
{
    struct fixture *f = *state;
    char error[512], path[160];
    const char *root = f->root.path;
    uint64_t newest = 0;
    struct catalog *c;
    for (uint64_t g = 5; g <= 7; g++)
        publish(f, g, "r");
    struct tt_reader *r = open_reader(root);
    assert_int_equal(catalog_look(&c, NULL, root, error, sizeof error), 0);
    expect_follows(&r, root, false, 7);
    assert_int_equal(catalog_pin(c, 6), 0);
    expect_follows(&r, root, true, 6);
    publish(f, 8, "r"); // beside the pinned one
    expect_follows(&r, root, false, 6);
    assert_int_equal(catalog_pin(c, 5), 0);
    expect_follows(&r, root, true, 5);
    assert_int_equal(catalog_pin(c, 6), 0);
    assert_int_equal(catalog_pin(c, 5), 0); // there and back between two looks
    expect_follows(&r, root, false, 5);
    assert_int_equal(catalog_unpin(c, &newest), 0);
    expect_follows(&r, root, true, 8);
    publish(f, 9, "r");
    expect_follows(&r, root, true, 9);
    catalog_close(c);
    // Another snapshot under the same number, as after a copy from elsewhere.
    snprintf(path, sizeof path, "%s/LATEST", root);
    file_write(path, "9 00000000\n", 11);
    assert_int_equal(tt_moved(r, root), 1);
    file_write(path, "9", 1);
    assert_int_equal(tt_moved(r, root), -EBADMSG);
    remove(path);
    assert_int_equal(tt_moved(r, root), -ENOENT);
    tt_close(r);
}

static void every_id_finds_its_row_and_every_row_its_id(void **state)
{
    struct fixture *f = *state;
    char error[512];
    f->n_ids = 100000;
    for (f->kinds = 0; f->kinds < 3; f->kinds++) {
        publish(f, 7 + (uint64_t)f->kinds, "r");
        struct tt_reader *r = open_reader(f->root.path);
        struct tt_table t;
        if (tt_table(r, "item", &t, error, sizeof error) < 0)
            fail_msg("%s", error);
        assert_int_equal(t.n, f->n_ids);
        for (uint64_t row = 0; row < t.n; row++) {
            struct ids_entry id = {0};
            struct tt_id found;
            uint64_t at = UINT64_MAX;
            get_id(f, row, &id);
            assert_int_equal(tt_id_of_row(&t, row, &found), 0);
            assert_int_equal(found.kind, id.kind);
            if (id.kind == IDS_STRING) {
                assert_int_equal(found.size, id.size);
                assert_memory_equal(found.bytes, id.bytes, id.size);
                assert_int_equal(tt_row_of_string(&t, id.bytes, id.size, &at), 0);
            } else if (id.negative || row % 2) {
                if (!id.negative && id.integer > INT64_MAX)
                    assert_int_equal(tt_row_of_unsigned(&t, id.integer, &at), 0);
                else
                    assert_int_equal(tt_row_of_integer(&t, (int64_t)id.integer, &at), 0);
            } else {
                assert_int_equal(tt_row_of_unsigned(&t, id.integer, &at), 0);
            }
            assert_int_equal(at, row);
            if (f->kinds == 0)
                assert_int_equal(found.integer, id.integer);
        }
        uint64_t at;
        struct tt_id found;
        assert_int_equal(tt_id_of_row(&t, t.n, &found), -ERANGE);
        for (uint64_t i = 0; i < 100000; i++) {
            char text[32];
            const int size = snprintf(text, sizeof text, "x%" PRIu64, i);
            assert_int_equal(tt_row_of_string(&t, text, (size_t)size, &at), -ENOENT);
            assert_int_equal(tt_row_of_unsigned(&t, mix(i) ^ mix(i + 1), &at), -ENOENT);
            assert_int_equal(tt_row_of_integer(&t, -(int64_t)(i + 2000000), &at), -ENOENT);
        }
        // "7" and 7 are different ids.
        if (f->kinds == 1)
            assert_int_equal(tt_row_of_unsigned(&t, 7, &at), -ENOENT);
        if (f->kinds == 2) // row 6 holds the integer 7
            assert_int_equal(tt_row_of_unsigned(&t, 7, &at), 0);
        if (f->kinds == 2)
            assert_int_equal(at, 6);
        assert_int_equal(tt_table(r, "user", &t, error, sizeof error), -ENOENT);
        assert_non_null(strstr(error, "\"user\""));
        tt_close(r);
    }
}

static void strings_are_read_back_with_empty_ones_among_them(void **state)
{
    struct fixture *f = *state;
    char error[512];
    publish(f, 7, "r");
    struct tt_reader *r = open_reader(f->path);
    struct tt_strings titles;
    assert_int_equal(tt_strings(r, "item_titles", &titles, error, sizeof error), 0);
    assert_int_equal(titles.n, N);
    for (uint64_t row = 0; row < N; row++) {
        const char *expected;
        size_t size;
        uint64_t found_size = UINT64_MAX;
        get_title(NULL, row, &expected, &size);
        const char *found = tt_string(&titles, row, &found_size);
        assert_non_null(found);
        assert_int_equal(found_size, size);
        assert_memory_equal(found, expected, size);
    }
    uint64_t size;
    assert_null(tt_string(&titles, N, &size));
    assert_int_equal(tt_strings(r, "user_titles", &titles, error, sizeof error), -ENOENT);
    tt_close(r);
}

// --- damage ---

static void expect_refused(const char *path, const char *sentence)
{
    struct tt_reader *r;
    char error[512] = "";
    int rc = tt_open(&r, path, error, sizeof error);
    if (rc == 0) {
        rc = tt_verify(r, error, sizeof error);
        tt_close(r);
    }
    assert_true(rc < 0);
    if (!strstr(error, sentence))
        fail_msg("\"%s\" does not say \"%s\"", error, sentence);
}

static void a_file_that_is_changed_anywhere_is_refused(void **state)
{
    struct fixture *f = *state;
    f->kinds = 2;
    publish(f, 7, "r");
    DIR *d = opendir(f->path);
    assert_non_null(d);
    for (const struct dirent *entry; (entry = readdir(d));) {
        if (entry->d_name[0] == '.')
            continue;
        char path[512];
        snprintf(path, sizeof path, "%s/%s", f->path, entry->d_name);
        size_t n;
        char *bytes = file_read(path, &n);
        const bool manifest = strcmp(entry->d_name, "manifest.json") == 0;
        const char *name = manifest ? "manifest.json" : entry->d_name;
        for (size_t at = 0; at < n; at += n / 9 + 1) {
            bytes[at] ^= 1;
            file_write(path, bytes, n);
            expect_refused(f->path, name);
            bytes[at] ^= 1;
        }
        bytes[n - 1] ^= 32;
        file_write(path, bytes, n);
        expect_refused(f->path, name);
        bytes[n - 1] ^= 32;
        file_write(path, bytes, n - 1);
        expect_refused(f->path, name);
        file_write(path, bytes, n + 1);
        expect_refused(f->path, name);
        file_write(path, bytes, 0);
        expect_refused(f->path, name);
        remove(path);
        // Without a manifest the directory is searched like a root, and has nothing in it.
        expect_refused(f->path, manifest ? "no snapshot here" : "No such file");
        mkdir(path, 0777);
        expect_refused(f->path, name);
        rmdir(path);
        assert_int_equal(mkfifo(path, 0666), 0); // must not block
        expect_refused(f->path, name);
        remove(path);
        file_write(path, bytes, n);
        free(bytes);
    }
    closedir(d);
    struct tt_reader *r = open_reader(f->path);
    char error[512];
    assert_int_equal(tt_verify(r, error, sizeof error), 0);
    tt_close(r);
}

// Puts other bytes into the manifest, and a right checksum at its end.
static void reseal(const struct fixture *f, const char *body, size_t n)
{
    char path[160];
    char *text = malloc(n + MANIFEST_SEAL_SIZE + 1);
    assert_non_null(text);
    memcpy(text, body, n);
    n += (size_t)manifest_seal(text + n, table_crc32c(body, n));
    snprintf(path, sizeof path, "%s/manifest.json", f->path);
    file_write(path, text, n);
    free(text);
}

static char *manifest_body(const struct fixture *f, size_t *n)
{
    char path[160];
    snprintf(path, sizeof path, "%s/manifest.json", f->path);
    char *text = file_read(path, n);
    *n -= MANIFEST_SEAL_SIZE;
    text[*n] = '\0';
    return text;
}

static char *replace(const char *text, const char *from, const char *to)
{
    const char *at = strstr(text, from);
    if (!at)
        fail_msg("the manifest has no %s", from);
    char *out = malloc(strlen(text) + strlen(to) + 1);
    assert_non_null(out);
    sprintf(out, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    return out;
}

static void a_manifest_that_lies_under_a_right_checksum_is_refused(void **state)
{
    struct fixture *f = *state;
    publish(f, 7, "r");
    static const struct {
        const char *from, *to, *sentence;
    } lies[] = {
        {"\"item_emb.f32.safetensors\"", "\"../7/item_emb.f32.safetensors\"", "leads elsewhere"},
        {"\"item_emb.f32.safetensors\"", "\"\"", "leads elsewhere"},
        {"\"item_emb.f32.safetensors\"", "\"x/item_emb.f32.safetensors\"", "leads elsewhere"},
        {"\"crc32c\":\t\"", "\"crc32c\":\t\"00000000\", \"x\":\t\"", "safetensors: checksum"},
        {"\"crc32c\":\t\"", "\"crc32c\":\t\"x", "no crc32c"},
        {"\"item_emb.f32.safetensors\"", "\"golden.json\"", "listed twice"},
        {"\"item_emb.f32.safetensors\"", "\"item_ids.safetensors\"", "listed twice"},
        {"[3000, 5]", "[5, 3000]", "row_stride"},
        {"[3000, 5]", "[3000, -5]", "whole numbers"},
        {"[3000, 5]", "[3000.5, 5]", "whole numbers"},
        {"[3000, 5]", "[9007199254740992, 9007199254740992]", "than there are addresses"},
        {"[3000, 5]", "[3000, 5, 1, 1, 1]", "whole numbers"},
        {"[3000, 5]", "[2999, 5]", "do not make"},
        {"[3000, 5]", "{}", "no shape"},
        {"\"f32\"", "\"f33\"", "dtype"},
        {"\"data_offset\":\t4096", "\"data_offset\":\t4095", "do not make"},
        {"\"data_offset\":\t4096", "\"data_offset\":\t9007199254740992", "do not make"},
        {"\"data_offset\":\t4096", "\"data_offset\":\t\"4096\"", "is missing"},
        {"\"size\":\t64096", "\"size\":\t64097", "do not make"},
        {"\"snapshot\":\t7", "\"snapshot\":\t8", "the header contradicts"},
        {"\"snapshot\":\t7", "\"snapshot\":\t0", "no number"},
        {"\"min_reader\":\t1", "\"min_reader\":\t2", "newer reader"},
        {"\"files\":", "\"elif\":", "no files"},
        {"\"chunk\":\t1048576", "\"chunk\":\t0", "chunk_crc32c is not"},
        {"\"values_b64\":\t\"", "\"values_b64\":\t\"AAAA", "not as many chunk checksums"},
        {"\"emb\"", "\"eml\"", "the header contradicts"},
        {"{", "[", "not JSON"},
    };
    size_t n;
    char *body = manifest_body(f, &n);
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        char *lie = replace(body, lies[i].from, lies[i].to);
        reseal(f, lie, strlen(lie));
        expect_refused(f->path, lies[i].sentence);
        free(lie);
    }
    free(body);
}

static void no_change_to_a_manifest_makes_the_reader_read_elsewhere(void **state)
{
    // Under the sanitizers: whatever opens is used as far as it goes.
    struct fixture *f = *state;
    f->kinds = 1;
    publish(f, 7, "r");
    size_t n;
    char *body = manifest_body(f, &n);
    int opened = 0;
    for (uint64_t i = 0; i < 3000; i++) {
        static const char splinters[] = "0123456789-.,:\"[]{}eE\\u\n \0";
        const size_t at = mix(i) % n;
        char *broken = malloc(n);
        assert_non_null(broken);
        memcpy(broken, body, n);
        broken[at] = splinters[mix(i + 1000000) % sizeof splinters];
        reseal(f, broken, n);
        free(broken);
        struct tt_reader *r;
        char error[512];
        if (tt_open(&r, f->path, error, sizeof error) < 0)
            continue;
        opened++;
        tt_verify(r, error, sizeof error);
        struct tt_table t;
        struct tt_strings titles;
        struct tt_id id;
        uint64_t row, size;
        if (tt_table(r, "item", &t, error, sizeof error) == 0) {
            tt_row_of_string(&t, "77", 2, &row);
            for (row = 0; row < t.n; row += 100)
                tt_id_of_row(&t, row, &id);
        }
        if (tt_strings(r, "item_titles", &titles, error, sizeof error) == 0)
            for (row = 0; row < titles.n; row += 100)
                tt_string(&titles, row, &size);
        tt_close(r);
    }
    assert_true(opened > 100); // else the test tries nothing
    free(body);
}

static void an_index_or_offsets_that_lie_cannot_lead_outside(void **state)
{
    struct fixture *f = *state;
    f->kinds = 1;
    publish(f, 7, "r");
    static const char *const names[] = {"item_index.oidx", "item_ids_off.safetensors",
                                        "item_ids_kind.safetensors", "item_titles_off.safetensors"};
    for (int i = 0; i < 4; i++) {
        char path[160];
        size_t n;
        snprintf(path, sizeof path, "%s/%s", f->path, names[i]);
        char *bytes = file_read(path, &n), *broken = malloc(n);
        assert_non_null(broken);
        for (uint64_t j = 0; j < 20; j++) {
            memcpy(broken, bytes, n);
            for (size_t at = 4096; at < n; at += 1 + mix(j + at) % 16)
                broken[at] = (char)(j == 0 ? 0xff : mix(at * j));
            file_write(path, broken, n);
            struct tt_reader *r = open_reader(f->path); // does not look at data
            struct tt_table t;
            struct tt_strings titles;
            struct tt_id id;
            uint64_t row, size;
            char error[256];
            assert_int_equal(tt_table(r, "item", &t, error, sizeof error), 0);
            assert_int_equal(tt_strings(r, "item_titles", &titles, error, sizeof error), 0);
            for (uint64_t k = 0; k < N; k++) {
                char text[24];
                const int length = snprintf(text, sizeof text, "%" PRIu64, k);
                if (tt_row_of_string(&t, text, (size_t)length, &row) == 0)
                    assert_true(row < N);
                tt_id_of_row(&t, k, &id);
                const char *title = tt_string(&titles, k, &size);
                assert_true(!title || size <= titles.bytes_size);
            }
            assert_true(tt_verify(r, error, sizeof error) < 0);
            tt_close(r);
        }
        file_write(path, bytes, n);
        free(broken);
        free(bytes);
    }
}

static void a_value_that_is_not_finite_is_found(void **state)
{
    struct fixture *f = *state;
    static const struct {
        const char *dtype;
        size_t size;
        uint64_t bad, good; // the largest finite one
    } cases[] = {
        {"F32", 4, 0x7f800000, 0x7f7fffff},
        {"F32", 4, 0xffc00001, 0xff7fffff},
        {"F16", 2, 0xfc00, 0x7bff},
        {"BF16", 2, 0x7f80, 0x7f7f},
        {"F64", 8, 0x7ff0000000000001, 0x7fefffffffffffff},
    };
    for (uint64_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        for (int bad = 0; bad < 2; bad++) {
            uint8_t bytes[9000 * 8] = {0};
            memcpy(bytes + 8191 * cases[i].size, bad ? &cases[i].bad : &cases[i].good,
                   cases[i].size);
            struct writer *w = root_writer(&f->root, 7 + 2 * i + (uint64_t)bad);
            writer_array(
                w, &(struct writer_array){"x.safetensors", "x", "x", cases[i].dtype, 1, {9000}},
                bytes);
            root_publish(w);
            struct tt_reader *r = open_reader(f->root.path);
            char error[512] = "";
            const int rc = tt_verify(r, error, sizeof error);
            assert_int_equal(rc, bad ? -EBADMSG : 0);
            if (bad)
                assert_non_null(strstr(error, "x.safetensors: value 8191 is infinite or not"));
            tt_close(r);
        }
    }
}

// --- topk ---

static void expect_brute_force(const float *items, uint32_t n, size_t dim, const struct tt_query *q)
{
    struct scored *all = malloc((n + 1) * sizeof *all);
    uint32_t *rows = malloc((q->k + 1) * sizeof *rows), used = 0;
    float *scores = malloc((q->k + 1) * sizeof *scores);
    assert_true(all && rows && scores);
    for (uint32_t row = 0; row < n; row++) {
        bool excluded = false;
        for (uint32_t i = 0; i < q->n_exclude; i++)
            excluded |= q->exclude_rows[i] == row;
        if (excluded)
            continue;
        float score = 0; // small whole numbers: exact in any order
        for (size_t d = 0; d < dim; d++)
            score += items[row * dim + d] * q->vector[d];
        for (uint32_t i = 0; i < q->n_adjust; i++)
            if (q->adjust_rows[i] == row)
                score += q->adjust_bonus[i];
        all[used++] = (struct scored){score, row};
    }
    qsort(all, used, sizeof *all, by_score);
    const int64_t expected = q->k < used ? q->k : used;
    assert_int_equal(tt_topk(q, rows, scores), expected);
    for (int64_t i = 0; i < expected; i++) {
        assert_int_equal(rows[i], all[i].row);
        assert_true(scores[i] == all[i].score || (isnan(scores[i]) && isnan(all[i].score)));
    }
    free(scores);
    free(rows);
    free(all);
}

static void topk_is_what_sorting_all_scores_gives(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 60; seed++) {
        const uint32_t n = (uint32_t)(mix(seed) % 300);
        const size_t dim = mix(seed + 1) % 40;
        float *items = calloc(n * dim + 1, sizeof *items), vector[40];
        assert_non_null(items);
        for (size_t i = 0; i < n * dim; i++)
            items[i] = value(seed * 100000 + i);
        for (size_t d = 0; d < dim; d++)
            vector[d] = value(seed + d);
        if (n * dim > 0 && seed % 3 == 0) {
            for (uint64_t i = 0; i < 5; i++)
                items[mix(seed + i) % (n * dim)] = NAN;
            items[0] = -INFINITY; // before NaN, after everything else
        }
        const struct tt_array array = {
            .dtype = "F32", .n_dims = 2, .shape = {n, dim}, .data = items};
        uint32_t adjust[60], exclude[10];
        float bonus[60];
        for (uint64_t i = 0; i < 60; i++) {
            adjust[i] = i % 7 == 0 ? TT_NO_ROW : (uint32_t)(mix(seed * 60 + i) % (n + 5));
            bonus[i] = (float)(mix(seed * 61 + i) % 9) - 2;
        }
        for (uint64_t i = 0; i < 10; i++)
            exclude[i] = (uint32_t)(mix(seed * 10 + i) % (n + 1));
        static const uint32_t ks[] = {0, 1, 10, 299, 1000};
        for (size_t i = 0; i < 5; i++) {
            struct tt_query q = {.items = &array, .vector = vector, .k = ks[i]};
            expect_brute_force(items, n, dim, &q);
            q.n_adjust = 60;
            q.adjust_rows = adjust;
            q.adjust_bonus = bonus;
            expect_brute_force(items, n, dim, &q);
            q.n_exclude = 10;
            q.exclude_rows = exclude;
            expect_brute_force(items, n, dim, &q);
        }
        free(items);
    }
}

static void topk_refuses_what_is_not_a_matrix_of_floats(void **state)
{
    (void)state;
    const float x[4] = {0};
    uint32_t row;
    float score;
    const struct tt_array f16 = {.dtype = "F16", .n_dims = 2, .shape = {1, 1}, .data = x};
    const struct tt_array flat = {.dtype = "F32", .n_dims = 1, .shape = {4}, .data = x};
    assert_int_equal(tt_topk(&(struct tt_query){.items = &f16, .vector = x, .k = 1}, &row, &score),
                     -EINVAL);
    assert_int_equal(tt_topk(&(struct tt_query){.items = &flat, .vector = x, .k = 1}, &row, &score),
                     -EINVAL);
    assert_int_equal(tt_topk(&(struct tt_query){.vector = x, .k = 1}, &row, &score), -EINVAL);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(arrays_are_found_by_file_name_and_by_role),
        TEST(a_root_opens_at_latest_or_else_at_the_newest_whole_one),
        TEST(a_reader_follows_the_pointer_forward_and_back),
        TEST(every_id_finds_its_row_and_every_row_its_id),
        TEST(strings_are_read_back_with_empty_ones_among_them),
        TEST(a_file_that_is_changed_anywhere_is_refused),
        TEST(a_manifest_that_lies_under_a_right_checksum_is_refused),
        TEST(no_change_to_a_manifest_makes_the_reader_read_elsewhere),
        TEST(an_index_or_offsets_that_lie_cannot_lead_outside),
        TEST(a_value_that_is_not_finite_is_found),
        cmocka_unit_test(topk_is_what_sorting_all_scores_gives),
        cmocka_unit_test(topk_refuses_what_is_not_a_matrix_of_floats),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
