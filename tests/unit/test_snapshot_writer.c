// SPDX-License-Identifier: Apache-2.0
#include "snapshot/writer.h"

#include <cjson/cJSON.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "snapshot/crc32c.h"
#include "snapshot/twotower_reader.h"
#include "tests/unit/test_snapshot.h"

static const uint64_t MiB = 1 << 20;

static uint8_t *pattern(size_t n, uint64_t seed)
{
    uint8_t *bytes = malloc(n + 8);
    assert_non_null(bytes);
    for (size_t i = 0; i < n; i += 8) {
        const uint64_t x = mix(seed + i);
        memcpy(bytes + i, &x, 8);
    }
    return bytes;
}

static void crc32c_is_the_one_others_compute(void **state)
{
    (void)state;
    assert_int_equal(crc32c(0, "123456789", 9), 0xe3069283);
    uint8_t *bytes = pattern(5000, 1);
    for (size_t n = 0; n < 5000; n += 37)
        assert_int_equal(crc32c(0, bytes, n), table_crc32c(bytes, n));
    free(bytes);
}

static void checksums_of_parts_combine_to_that_of_the_whole(void **state)
{
    (void)state;
    uint8_t *bytes = pattern(5000, 2);
    for (size_t cut = 0; cut <= 5000; cut += 125)
        assert_int_equal(
            crc32c_combine(crc32c(0, bytes, cut), crc32c(0, bytes + cut, 5000 - cut), 5000 - cut),
            table_crc32c(bytes, 5000));
    free(bytes);
}

// Sizes around every boundary there is: of the page, of the block, of the ring.
static const uint64_t sizes[] = {0,       1,       4095,    4096,    4097,   1044479,
                                 1044480, 1044481, 1048576, 3000001, 4 << 20};
static const size_t pieces[] = {1 << 30, 4096, 70001, 1};

static void write_sizes(struct test_root *r, uint64_t generation, size_t piece)
{
    struct writer *w = root_writer(r, generation);
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        if (piece == 1 && sizes[i] > 5000)
            continue;
        uint8_t *bytes = pattern(sizes[i], sizes[i]);
        for (int blob = 0; blob < 2; blob++) {
            char name[64];
            snprintf(name, sizeof name, "%s%" PRIu64 "%s", blob ? "b" : "a", sizes[i],
                     blob ? ".bin" : ".safetensors");
            if (blob)
                writer_blob_begin(w, name, "blob", sizes[i]);
            else
                writer_array_begin(w,
                                   &(struct writer_array){name, "x", "array", "U8", 1, {sizes[i]}});
            for (uint64_t at = 0; at < sizes[i]; at += piece)
                writer_append(w, bytes + at, sizes[i] - at < piece ? sizes[i] - at : piece);
            assert_int_equal(writer_end(w), 0);
        }
        free(bytes);
    }
    root_publish(w);
}

static void check_sizes(const char *path, size_t piece)
{
    struct tt_reader *r;
    char error[512];
    if (tt_open(&r, path, error, sizeof error) < 0 || tt_verify(r, error, sizeof error) < 0)
        fail_msg("%s", error);
    for (int i = 0; i < tt_n_arrays(r); i++) {
        const struct tt_array *a = tt_array_at(r, i);
        uint8_t *bytes = pattern(a->size, a->size);
        assert_int_equal(a->shape[0], strtoull(a->name + 1, NULL, 10));
        assert_memory_equal(a->data, bytes, a->size);
        free(bytes);
    }
    assert_int_equal(tt_n_arrays(r), piece == 1 ? 10 : 2 * sizeof sizes / sizeof sizes[0]);
    tt_close(r);
}

static void what_is_written_in_pieces_of_any_size_is_read_back(void **state)
{
    (void)state;
    static const enum engine_backend backends[] = {ENGINE_AUTO, ENGINE_PWRITE};
    static const char *const parents[] = {"/tmp", "/dev/shm"};
    for (int b = 0; b < 2; b++) {
        for (int p = 0; p < 2; p++) {
            if (access(parents[p], W_OK) < 0)
                continue;
            struct test_root r;
            root_make(&r, parents[p], backends[b], NULL);
            for (size_t i = 0; i < sizeof pieces / sizeof pieces[0]; i++) {
                write_sizes(&r, i + 1, pieces[i]);
                check_sizes(r.path, pieces[i]);
            }
            root_remove(&r);
        }
    }
}

static void both_backends_write_the_same_bytes(void **state)
{
    (void)state;
    struct test_root ring, plain;
    root_make(&ring, "/tmp", ENGINE_AUTO, NULL);
    root_make(&plain, "/tmp", ENGINE_PWRITE, NULL);
    write_sizes(&ring, 7, 70001);
    write_sizes(&plain, 7, 4096);
    assert_string_equal(engine_backend(plain.engine), "pwrite");

    char path[128];
    snprintf(path, sizeof path, "%s/7", ring.path);
    DIR *d = opendir(path);
    assert_non_null(d);
    for (const struct dirent *entry; (entry = readdir(d));) {
        if (entry->d_name[0] == '.')
            continue;
        char left[512], right[512];
        snprintf(left, sizeof left, "%s/7/%s", ring.path, entry->d_name);
        snprintf(right, sizeof right, "%s/7/%s", plain.path, entry->d_name);
        size_t n, m;
        char *a = file_read(left, &n), *b = file_read(right, &m);
        assert_int_equal(n, m);
        assert_memory_equal(a, b, n);
        free(a);
        free(b);
    }
    closedir(d);
    root_remove(&ring);
    root_remove(&plain);
}

// Ends the array and publishes it; bytes (n) are what a reader finds then. Both are gone
// afterwards.
static void array_arrives(struct test_root *r, struct writer *w, uint8_t *bytes, size_t n)
{
    struct tt_reader *reader;
    char error[256];
    writer_end(w);
    root_publish(w);
    assert_int_equal(tt_open(&reader, r->path, error, sizeof error), 0);
    assert_int_equal(tt_verify(reader, error, sizeof error), 0);
    assert_memory_equal(tt_find(reader, "array")->data, bytes, n);
    tt_close(reader);
    free(bytes);
    root_remove(r);
}

static void reserved_room_is_written_like_appended_bytes(void **state)
{
    (void)state;
    struct test_root r;
    root_make(&r, "/tmp", ENGINE_AUTO, NULL);
    const size_t n = 2 * MiB + 100;
    uint8_t *bytes = pattern(n, n);
    struct writer *w = root_writer(&r, 1);
    writer_array_begin(w, &(struct writer_array){"a.safetensors", "x", "array", "U8", 1, {n}});
    for (size_t at = 0; at < n;) {
        size_t there = 300000;
        void *room = writer_reserve(w, &there);
        assert_non_null(room);
        assert_true(there >= 1 && there <= 300000);
        memcpy(room, bytes + at, there);
        writer_commit(w, there);
        at += there;
    }
    array_arrives(&r, w, bytes, n);
}

static void room_is_in_one_piece_also_where_two_blocks_share_it(void **state)
{
    (void)state;
    struct test_root r;
    root_make(&r, "/tmp", ENGINE_AUTO, NULL);
    const size_t n = 5 * MiB + 100;
    uint8_t *bytes = pattern(n, n);
    struct writer *w = root_writer(&r, 1);
    writer_array_begin(w, &(struct writer_array){"a.safetensors", "x", "array", "U8", 1, {n}});
    // Some of these do not fit into the block where they begin, and each is larger than all before.
    for (size_t at = 0, size = 300000, take; at < n; at += take, size += 10000) {
        take = n - at < size ? n - at : size;
        uint8_t *room = writer_room(w, take);
        assert_non_null(room);
        memset(room, 0, take);
        memcpy(room, bytes + at, take);
        assert_int_equal(writer_fill(w, room, take), 0);
    }
    array_arrives(&r, w, bytes, n);
}

static void files_side_by_side_are_those_that_were_written_one_by_one(void **state)
{
    (void)state;
    static const char *const names[WRITER_FILES] = {"a.safetensors", "b.safetensors", "c"};
    const size_t lengths[WRITER_FILES] = {5 * MiB + 100, 3 * MiB, 2 * MiB + 7};
    char *files[2][WRITER_FILES + 1];
    size_t n[2][WRITER_FILES + 1];
    for (int together = 0; together < 2; together++) {
        struct test_root r;
        root_make(&r, "/tmp", ENGINE_AUTO, NULL);
        struct writer *w = root_writer(&r, 1);
        uint8_t *bytes = pattern(lengths[0], lengths[0]);
        size_t at[WRITER_FILES] = {0};
        // Rooms of all files at a time, in none of which the sizes come out even with a block.
        const size_t piece = together ? 260000 : lengths[0];
        for (int f = 0; f < WRITER_FILES; f++) {
            writer_file(w, together ? f : 0);
            if (f == WRITER_FILES - 1)
                writer_blob_begin(w, names[f], names[f], lengths[f]);
            else
                writer_array_begin(
                    w, &(struct writer_array){names[f], "x", names[f], "U8", 1, {lengths[f]}});
            if (!together) {
                writer_append(w, bytes, lengths[f]);
                writer_end(w);
            }
        }
        for (bool more = together; more;) {
            void *room[WRITER_FILES] = {0};
            size_t take[WRITER_FILES];
            more = false;
            for (int f = 0; f < WRITER_FILES; f++) {
                take[f] = lengths[f] - at[f] < piece ? lengths[f] - at[f] : piece;
                writer_file(w, f);
                if (take[f] > 0)
                    room[f] = writer_room(w, take[f]);
            }
            for (int f = 0; f < WRITER_FILES; f++) {
                if (!room[f])
                    continue;
                memcpy(room[f], bytes + at[f], take[f]);
                writer_file(w, f);
                assert_int_equal(writer_fill(w, room[f], take[f]), 0);
                at[f] += take[f];
                more = more || at[f] < lengths[f];
            }
        }
        for (int f = 0; together && f < WRITER_FILES; f++) {
            writer_file(w, f);
            assert_int_equal(writer_end(w), 0);
        }
        root_publish(w);
        char path[160];
        for (int f = 0; f <= WRITER_FILES; f++) {
            snprintf(path, sizeof path, "%s/1/%s", r.path,
                     f < WRITER_FILES ? names[f] : "manifest.json");
            files[together][f] = file_read(path, &n[together][f]);
        }
        free(bytes);
        root_remove(&r);
    }
    for (int f = 0; f <= WRITER_FILES; f++) {
        assert_int_equal(n[0][f], n[1][f]);
        assert_memory_equal(files[0][f], files[1][f], n[0][f]);
        free(files[0][f]);
        free(files[1][f]);
    }
}

static void files_side_by_side_leave_nothing_when_they_are_not_published(void **state)
{
    (void)state;
    struct test_root r;
    root_make(&r, "/tmp", ENGINE_AUTO, NULL);
    struct writer *w = root_writer(&r, 1);
    for (int f = 0; f < WRITER_FILES; f++) {
        char name[8];
        snprintf(name, sizeof name, "%d", f);
        writer_file(w, f);
        assert_int_equal(writer_blob_begin(w, name, name, 3 * MiB), 0);
        void *room = writer_room(w, MiB + 1); // in two blocks
        assert_non_null(room);
        memset(room, f, MiB + 1);
        assert_int_equal(writer_fill(w, room, MiB + 1), 0);
    }
    writer_close(w);
    assert_int_equal(count_entries(r.path), 0);
    root_generation(&r, 2);
    root_remove(&r);
}

static void after_an_error_there_is_no_room_and_filling_it_says_the_error(void **state)
{
    (void)state;
    struct test_root r;
    root_make(&r, "/tmp", ENGINE_AUTO, NULL);
    struct writer *w = root_writer(&r, 1);
    writer_array_begin(w, &(struct writer_array){"a.safetensors", "x", "array", "U8", 1, {100}});
    writer_fail(w, -EDOM, "of the caller's");
    void *room = writer_room(w, 100);
    assert_null(room);
    assert_int_equal(writer_fill(w, room, 100), -EDOM);
    writer_close(w);
    root_remove(&r);
}

static cJSON *member(cJSON *object, const char *key)
{
    cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    if (!item)
        fail_msg("no member %s", key);
    return item;
}

static size_t base64_bytes(const char *text, uint8_t *bytes)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    size_t n = 0;
    uint32_t bits = 0;
    for (int held = 0; *text && *text != '='; text++) {
        bits = bits << 6 | (uint32_t)(strchr(digits, *text) - digits);
        held += 6;
        if (held >= 8) {
            held -= 8;
            bytes[n++] = (uint8_t)(bits >> held);
        }
    }
    return n;
}

static void the_manifest_says_what_is_in_the_files(void **state)
{
    (void)state;
    struct test_root r;
    root_make(&r, "/tmp", ENGINE_AUTO, NULL);
    const uint64_t rows = 40000, dim = 17;
    uint8_t *bytes = pattern(rows * dim * 4, 3);
    for (size_t i = 3; i < rows * dim * 4; i += 4)
        bytes[i] = 0x3f; // finite
    struct writer *w = root_writer(&r, 1732270500123);
    writer_array(w,
                 &(struct writer_array){
                     "item_emb.f32.safetensors", "emb", "item_embedding", "F32", 2, {rows, dim}},
                 bytes);
    writer_manifest_text(w, "created", "2026-11-22T10:15:00.123Z");
    writer_manifest_integer(w, "batch", 9007199254740993);
    writer_manifest_number(w, "loss", 0.1);
    writer_manifest_json(w, "lineage", "{\"kafka\":{\"t\":{\"0\":[1,9223372036854775807]}}}");
    root_publish(w);

    char path[160];
    size_t n;
    snprintf(path, sizeof path, "%s/1732270500123/manifest.json", r.path);
    char *text = file_read(path, &n);
    assert_non_null(strstr(text, "9007199254740993"));
    assert_non_null(strstr(text, "9223372036854775807"));
    cJSON *json = cJSON_Parse(text);
    assert_non_null(json);
    assert_string_equal(member(json, "format")->valuestring, "twotower-snapshot");
    assert_true(member(json, "snapshot")->valuedouble == 1732270500123.0);
    assert_true(member(json, "loss")->valuedouble == 0.1);

    // The seal: the checksum of all before it.
    char *seal = strstr(text, ",\n\t\"manifest_crc32c\"");
    assert_non_null(seal);
    assert_int_equal(strtoul(member(json, "manifest_crc32c")->valuestring, NULL, 16),
                     table_crc32c(text, (size_t)(seal - text)));

    char expected[64], *latest;
    size_t latest_size;
    snprintf(expected, sizeof expected, "1732270500123 %08x\n", table_crc32c(text, n));
    snprintf(path, sizeof path, "%s/LATEST", r.path);
    latest = file_read(path, &latest_size);
    assert_string_equal(latest, expected);

    cJSON *file = cJSON_GetArrayItem(member(json, "files"), 0);
    size_t size;
    snprintf(path, sizeof path, "%s/1732270500123/item_emb.f32.safetensors", r.path);
    char *content = file_read(path, &size);
    assert_true(member(file, "size")->valuedouble == (double)size);
    assert_int_equal(size, 4096 + rows * dim * 4);
    assert_memory_equal(content + 4096, bytes, rows * dim * 4);
    assert_string_equal(member(file, "dtype")->valuestring, "f32");
    assert_int_equal(member(file, "data_offset")->valueint, 4096);
    assert_int_equal(member(file, "row_stride")->valueint, dim * 4);
    assert_int_equal(cJSON_GetArrayItem(member(file, "shape"), 0)->valueint, rows);
    assert_int_equal(strtoul(member(file, "crc32c")->valuestring, NULL, 16),
                     table_crc32c(content, size));
    uint8_t chunk_bytes[64];
    const size_t n_chunks =
        base64_bytes(member(member(file, "chunk_crc32c"), "values_b64")->valuestring, chunk_bytes) /
        4;
    assert_int_equal(n_chunks, 3);
    for (size_t i = 0; i < n_chunks; i++) {
        const uint64_t left = size - i * MiB;
        uint32_t crc;
        memcpy(&crc, chunk_bytes + 4 * i, 4);
        assert_int_equal(crc, table_crc32c(content + i * MiB, left < MiB ? left : MiB));
    }

    uint64_t length;
    memcpy(&length, content, 8);
    assert_int_equal(length, 4088);
    cJSON *header = cJSON_ParseWithLength(content + 8, length);
    cJSON *tensor = member(header, "emb");
    assert_string_equal(member(tensor, "dtype")->valuestring, "F32");
    assert_int_equal(cJSON_GetArrayItem(member(tensor, "data_offsets"), 1)->valueint,
                     rows * dim * 4);
    assert_string_equal(member(member(header, "__metadata__"), "snapshot")->valuestring,
                        "1732270500123");
    cJSON_Delete(header);
    cJSON_Delete(json);
    free(content);
    free(latest);
    free(text);
    free(bytes);
    root_remove(&r);
}

static void what_is_not_published_leaves_nothing(void **state)
{
    (void)state;
    struct test_root r;
    root_make(&r, "/tmp", ENGINE_AUTO, NULL);
    struct writer *w = root_writer(&r, 1);
    const uint64_t x = 1;
    writer_array(w, &(struct writer_array){"x.safetensors", "x", "x", "U64", 1, {1}}, &x);
    writer_array_begin(w, &(struct writer_array){"y.safetensors", "y", "y", "U8", 1, {5 * MiB}});
    uint8_t *bytes = pattern(3 * MiB, 1);
    writer_append(w, bytes, 3 * MiB);
    free(bytes);
    assert_int_equal(count_entries(r.path), 1);
    writer_close(w);
    assert_int_equal(count_entries(r.path), 0);
    root_generation(&r, 2); // and the engine is as new
    root_remove(&r);
}

static void a_generation_that_exists_is_refused(void **state)
{
    (void)state;
    struct test_root r;
    root_make(&r, "/tmp", ENGINE_AUTO, NULL);
    root_generation(&r, 5);
    struct writer *w;
    char error[512];
    const struct writer_options options = {
        .root = r.path, .generation = 5, .format = "f", .engine = r.engine};
    assert_int_equal(writer_open(&w, &options, error, sizeof error), -EEXIST);
    assert_non_null(strstr(error, "this generation exists"));
    root_remove(&r);
}

static void a_disk_too_small_is_refused_before_anything_is_written(void **state)
{
    (void)state;
    struct test_root r;
    root_make(&r, "/tmp", ENGINE_AUTO, NULL);
    struct writer *w;
    char error[512];
    const struct writer_options options = {.root = r.path,
                                           .generation = 5,
                                           .format = "f",
                                           .bytes_expected = UINT64_C(1) << 52,
                                           .engine = r.engine};
    assert_int_equal(writer_open(&w, &options, error, sizeof error), -ENOSPC);
    assert_non_null(strstr(error, "are free"));
    assert_int_equal(count_entries(r.path), 0);

    w = root_writer(&r, 5);
    assert_int_equal(
        writer_array_begin(
            w, &(struct writer_array){"x.safetensors", "x", "x", "U8", 1, {UINT64_C(1) << 52}}),
        -ENOSPC);
    // The first error stays.
    assert_int_equal(writer_append(w, "x", 1), -ENOSPC);
    assert_int_equal(writer_end(w), -ENOSPC);
    assert_int_equal(writer_publish(w), -ENOSPC);
    assert_non_null(strstr(writer_error(w), "are free"));
    writer_close(w);
    assert_int_equal(count_entries(r.path), 0);
    root_remove(&r);
}

static void the_first_error_is_the_one_that_stays(void **state)
{
    (void)state;
    struct test_root r;
    root_make(&r, "/tmp", ENGINE_AUTO, NULL);
    struct writer *w = root_writer(&r, 1);
    assert_string_equal(writer_error(w), "");
    assert_int_equal(writer_fail(w, -ENOMEM, "no room for the towers"), -ENOMEM);
    assert_int_equal(writer_fail(w, -EIO, "something else"), -ENOMEM);
    assert_int_equal(writer_blob(w, "b", "b", "x", 1), -ENOMEM);
    assert_int_equal(writer_manifest_text(w, "k", "v"), -ENOMEM);
    assert_int_equal(writer_publish(w), -ENOMEM);
    assert_non_null(strstr(writer_error(w), "/1: no room for the towers"));
    writer_close(w);
    assert_int_equal(count_entries(r.path), 0);
    root_remove(&r);
}

static void a_value_that_is_not_json_is_refused(void **state)
{
    (void)state;
    struct test_root r;
    root_make(&r, "/tmp", ENGINE_AUTO, NULL);
    struct writer *w = root_writer(&r, 1);
    assert_int_equal(writer_manifest_json(w, "metrics", "{\"loss\":}"), -EINVAL);
    assert_non_null(strstr(writer_error(w), "\"metrics\" is not JSON"));
    writer_close(w);
    root_remove(&r);
}

// In a process of its own, because a filter cannot be taken back.
static int without_uring(int refusal)
{
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        struct sock_filter filter[] = {
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (uint32_t)refusal),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        };
        const struct sock_fprog program = {sizeof filter / sizeof filter[0], filter};
        struct engine *e;
        char error[256];
        if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
            prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
            _exit(10);
        if (engine_open(&e, &(struct engine_options){.backend = ENGINE_URING}, error,
                        sizeof error) != -refusal ||
            !strstr(error, "io_uring refused"))
            _exit(11);
        if (engine_open(&e, &(struct engine_options){0}, error, sizeof error) != 0)
            _exit(12);
        if (strcmp(engine_backend(e), "pwrite") != 0 ||
            !strstr(engine_reason(e), refusal == EPERM ? "seccomp" : "does not know it"))
            _exit(13);
        char path[] = "/tmp/twotower-test-XXXXXX";
        struct writer *w;
        if (!mkdtemp(path) ||
            writer_open(
                &w,
                &(struct writer_options){.root = path, .generation = 1, .format = "f", .engine = e},
                error, sizeof error) != 0)
            _exit(14);
        writer_blob(w, "b", "b", "hello", 5);
        const int rc = writer_publish(w);
        writer_close(w);
        engine_close(e);
        tree_remove(path);
        _exit(rc == 0 ? 0 : 15);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void without_io_uring_pwrite_takes_its_place_and_says_why(void **state)
{
    (void)state;
    assert_int_equal(without_uring(EPERM), 0);
    assert_int_equal(without_uring(ENOSYS), 0);
}

static void a_file_that_cannot_be_created_fails_the_generation_and_not_the_engine(void **state)
{
    (void)state;
    struct test_root r;
    root_make(&r, "/tmp", ENGINE_AUTO, NULL);
    struct writer *w = root_writer(&r, 1);
    writer_blob_begin(w, "b", "b", 1);
    writer_append(w, "x", 1);
    writer_end(w);
    // A name that is there already: the second file cannot be created.
    assert_int_equal(writer_blob_begin(w, "b", "b", 1), -EEXIST);
    assert_non_null(strstr(writer_error(w), "b: cannot create"));
    writer_close(w);
    root_generation(&r, 2);
    root_remove(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(crc32c_is_the_one_others_compute),
        cmocka_unit_test(checksums_of_parts_combine_to_that_of_the_whole),
        cmocka_unit_test(what_is_written_in_pieces_of_any_size_is_read_back),
        cmocka_unit_test(both_backends_write_the_same_bytes),
        cmocka_unit_test(reserved_room_is_written_like_appended_bytes),
        cmocka_unit_test(room_is_in_one_piece_also_where_two_blocks_share_it),
        cmocka_unit_test(files_side_by_side_are_those_that_were_written_one_by_one),
        cmocka_unit_test(files_side_by_side_leave_nothing_when_they_are_not_published),
        cmocka_unit_test(after_an_error_there_is_no_room_and_filling_it_says_the_error),
        cmocka_unit_test(the_manifest_says_what_is_in_the_files),
        cmocka_unit_test(what_is_not_published_leaves_nothing),
        cmocka_unit_test(a_generation_that_exists_is_refused),
        cmocka_unit_test(a_disk_too_small_is_refused_before_anything_is_written),
        cmocka_unit_test(the_first_error_is_the_one_that_stays),
        cmocka_unit_test(a_value_that_is_not_json_is_refused),
        cmocka_unit_test(without_io_uring_pwrite_takes_its_place_and_says_why),
        cmocka_unit_test(a_file_that_cannot_be_created_fails_the_generation_and_not_the_engine),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
