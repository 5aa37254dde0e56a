// SPDX-License-Identifier: Apache-2.0
#include "snapshot/digest.h"

#include "tests/unit/test_snapshot.h"

static void write_generation(struct test_root *r, uint64_t generation, float x, const char *run,
                             bool reversed)
{
    const float values[] = {1, x, 3};
    const uint64_t ids[] = {7, 8, 9};
    struct writer *w = root_writer(r, generation);
    for (int i = 0; i < 2; i++) {
        if ((i == 0) != reversed)
            writer_array(w, &(struct writer_array){"b.safetensors", "b", "b", "F32", 1, {3}},
                         values);
        else
            writer_array(w, &(struct writer_array){"a.safetensors", "a", "a", "U64", 1, {3}}, ids);
    }
    writer_blob(w, "golden.json", "golden", run, strlen(run));
    writer_manifest_text(w, "run_id", run);
    root_publish(w);
}

static void digest_of(const char *root, uint64_t generation, char hex[65])
{
    char path[128], error[512];
    snprintf(path, sizeof path, "%s/%" PRIu64, root, generation);
    if (digest_snapshot(path, hex, error, sizeof error) < 0)
        fail_msg("%s", error);
}

static void the_digest_is_of_what_was_learned_and_not_of_when(void **state)
{
    (void)state;
    struct test_root r;
    root_make(&r, "/tmp", ENGINE_PWRITE, NULL);
    char first[65], again[65], other[65], newest[65], error[512];
    write_generation(&r, 1, 2.0f, "run a", false);
    write_generation(&r, 2, 2.0f, "another run", true);
    write_generation(&r, 3, 2.5f, "run a", false);
    digest_of(r.path, 1, first);
    digest_of(r.path, 2, again);
    digest_of(r.path, 3, other);
    assert_string_equal(first, again);
    assert_string_not_equal(first, other);
    assert_int_equal(digest_snapshot(r.path, newest, error, sizeof error), 0);
    assert_string_equal(newest, other);
    // Computed with Python's hashlib from the description in the header.
    assert_string_equal(first, "3e6d11ecbd41a9d7946dc9852d16dab1d1b22471d5157049a7f0610233903865");
    root_remove(&r);
}

static void a_damaged_generation_has_no_digest(void **state)
{
    (void)state;
    struct test_root r;
    root_make(&r, "/tmp", ENGINE_PWRITE, NULL);
    write_generation(&r, 1, 2.0f, "run", false);
    char path[128], hex[65], error[512];
    snprintf(path, sizeof path, "%s/1/a.safetensors", r.path);
    size_t n;
    char *bytes = file_read(path, &n);
    bytes[n - 1] ^= 1;
    file_write(path, bytes, n);
    free(bytes);
    assert_int_equal(digest_snapshot(r.path, hex, error, sizeof error), -EBADMSG);
    assert_non_null(strstr(error, "a.safetensors: bytes 0..4119 have checksum"));
    root_remove(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_digest_is_of_what_was_learned_and_not_of_when),
        cmocka_unit_test(a_damaged_generation_has_no_digest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
