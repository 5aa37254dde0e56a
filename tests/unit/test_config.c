// SPDX-License-Identifier: Apache-2.0
#include "daemon/config.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "model/arena.h"
#include "model/optimizer.h"
#include "model/value.h"

struct fixture {
    struct config c;
    struct config_problems problems;
    struct arena memory;
    char bytes[CONFIG_MEMORY];
    char path[64];
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    f->memory = (struct arena){f->bytes, sizeof f->bytes, 0};
    config_init(&f->c, &f->memory);
    strcpy(f->path, "/tmp/test_config_XXXXXX");
    close(mkstemp(f->path));
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    unlink(f->path);
    free(f);
    return 0;
}

static int load_bytes(struct fixture *f, const char *text, size_t size)
{
    FILE *file = fopen(f->path, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, size, file), size);
    fclose(file);
    return config_load(&f->c, f->path, &f->problems);
}

static int load(struct fixture *f, const char *text)
{
    return load_bytes(f, text, strlen(text));
}

static int set(struct fixture *f, const char *pair)
{
    return config_set_pair(&f->c, pair, "-o:1", &f->problems);
}

// The problem at this line and column, its text containing the given one.
static void assert_problem(const struct fixture *f, int i, int line, int column, const char *text)
{
    assert_true(i < f->problems.n);
    const struct config_problem *p = &f->problems.list[i];
    if (!strstr(p->text, text))
        fail_msg("'%s' does not contain '%s'", p->text, text);
    assert_int_equal(p->at.line, line);
    assert_int_equal(p->at.column, column);
}

// Everything a FILE * function writes.
static char *printed(void (*print)(const struct fixture *f, FILE *out), const struct fixture *f)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    assert_non_null(out);
    print(f, out);
    fclose(out);
    return text;
}

static void print_show(const struct fixture *f, FILE *out)
{
    config_show(&f->c, out);
}

static void print_sample(const struct fixture *f, FILE *out)
{
    (void)f;
    config_sample(out);
}

static void print_problems(const struct fixture *f, FILE *out)
{
    config_problems_print(&f->problems, out);
}

static void print_problems_json(const struct fixture *f, FILE *out)
{
    config_problems_json(&f->problems, out);
}

static void without_a_file_every_option_has_its_default(void **state)
{
    const struct fixture *f = *state;
    assert_int_equal(f->c.source_type, CONFIG_SOURCE_BUILTIN);
    assert_string_equal(f->c.source_brokers, "127.0.0.1:9092");
    assert_int_equal(f->c.join_window_ms, 30 * 60 * 1000);
    assert_int_equal(f->c.slice_log_max_bytes, 64 << 20);
    assert_int_equal(f->c.model_batch, 512);
    assert_true(f->c.model_rate == 0.15);
    assert_true(f->c.snapshot_f16);
    assert_int_equal(f->c.tables_users_max, 10000000);
    assert_string_equal(f->c.dead_letter_path, "");
    struct config_problems none = {0};
    assert_int_equal(config_check(&f->c, &none), 0);
}

static void a_file_sets_values_of_every_type_with_their_origin(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(load(f, "[source]\n"
                             "type = \"file\"\n"
                             "path = \"/srv/\\\"quoted\\\"\"\n"
                             "[join]\n"
                             "window = \"1h30m\"\n"
                             "max_bytes = 2097152\n"
                             "[model]\n"
                             "rate = 1\n"
                             "l2 = 0.5\n"
                             "dim = 128\n"
                             "seed = 9223372036854775807\n"
                             "logq = false\n"),
                     0);
    assert_int_equal(f->c.source_type, CONFIG_SOURCE_FILE);
    assert_string_equal(f->c.source_path, "/srv/\"quoted\"");
    assert_int_equal(f->c.join_window_ms, 90 * 60 * 1000);
    assert_int_equal(f->c.join_max_bytes, 2097152);
    assert_true(f->c.model_rate == 1);
    assert_true(f->c.model_l2 == 0.5);
    assert_int_equal(f->c.model_dim, 128);
    assert_true(f->c.model_seed == INT64_MAX);
    assert_false(f->c.model_logq);

    char *shown = printed(print_show, f), line[128];
    snprintf(line, sizeof line, "window = \"90m\" # %s:5:10\n", f->path);
    assert_non_null(strstr(shown, line));
    assert_non_null(strstr(shown, "lateness = \"10s\" # default\n"));
    free(shown);
}

static void durations_and_sizes_are_read_in_every_unit(void **state)
{
    static const struct {
        const char *text;
        int64_t ms;
    } durations[] = {
        {"join.window=1500ms", 1500}, {"join.window=90s", 90000},   {"join.window=2m", 120000},
        {"join.window=3h", 10800000}, {"join.window=1d", 86400000}, {"join.window=1w", 604800000},
        {"join.window=1m30s", 90000}, {"join.lateness=0", 0},       {"join.lateness=0s", 0}};
    static const struct {
        const char *text;
        int64_t bytes;
    } sizes[] = {{"join.max_bytes=1MiB", 1 << 20},    {"join.max_bytes=2000000", 2000000},
                 {"join.max_bytes=3GiB", 3221225472}, {"join.max_bytes=5MB", 5000000},
                 {"join.max_bytes=1TiB", 1LL << 40},  {"dead_letter.max_bytes=0", 0}};
    struct fixture *f = *state;
    for (size_t i = 0; i < sizeof durations / sizeof *durations; i++) {
        assert_int_equal(set(f, durations[i].text), 0);
        assert_true((i < 7 ? f->c.join_window_ms : f->c.join_lateness_ms) == durations[i].ms);
    }
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        assert_int_equal(set(f, sizes[i].text), 0);
        assert_true((i < 5 ? f->c.join_max_bytes : f->c.dead_letter_max_bytes) == sizes[i].bytes);
    }
}

static void what_is_not_of_the_type_is_refused_and_changes_nothing(void **state)
{
    static const char *const pairs[] = {
        "join.window=",
        "join.window=30",
        "join.window=-1s",
        "join.window=1.5h",
        "join.window=1 h",
        "join.window=1y",
        "join.window=9999999999999d",
        "join.window=s",
        "join.max_bytes=1XB",
        "join.max_bytes=",
        "join.max_bytes=-5",
        "model.dim=",
        "model.dim=+5",
        "model.dim= 5",
        "model.dim=5 ",
        "model.dim=5.0",
        "model.dim=0x10",
        "model.dim=99999999999999999999",
        "model.rate=nan",
        "model.rate=inf",
        "model.rate=",
        "model.rate=0x1p3",
        "model.rate=1,5",
        "model.rate=1e999",
        "model.logq=yes",
        "model.logq=True",
        "model.logq=1",
        "source.type=Kafka",
        "source.type=",
        "source.type=builtin|file",
        "log.format=tex",
    };
    struct fixture *f = *state;
    char *before = printed(print_show, f);
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        if (set(f, pairs[i]) != -EINVAL || f->problems.n != 1)
            fail_msg("%s was taken", pairs[i]);
        f->problems.n = 0;
    }
    char *after = printed(print_show, f);
    assert_string_equal(before, after);
    free(before);
    free(after);
}

static void the_ends_of_a_range_are_in_it_and_what_is_beyond_is_not(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(set(f, "join.window=1s"), 0);
    assert_int_equal(set(f, "join.window=7d"), 0);
    assert_int_equal(set(f, "join.window=999ms"), -EINVAL);
    assert_int_equal(set(f, "join.window=604800001ms"), -EINVAL);
    assert_int_equal(set(f, "eval.sampling=1"), 0);
    assert_int_equal(set(f, "eval.sampling=1.0000001"), -EINVAL);
    assert_int_equal(set(f, "model.dim=0"), -EINVAL);
    assert_int_equal(set(f, "model.dim=1025"), -EINVAL);
    assert_problem(f, 0, 0, 0, "'join.window' must be between 1s and 7d, not 999ms");
    assert_int_equal(f->c.join_window_ms, 604800000);
}

static void all_mistakes_of_a_file_come_at_once_in_the_order_of_its_lines(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(load(f, "[model]\n"              // 1
                             "dim = \"64\"\n"         // 2: a text for an integer
                             "lerning = 3\n"          // 3: unknown, nothing near
                             "rate = true\n"          // 4
                             "[join]\n"               // 5
                             "windw = \"1h\"\n"       // 6: unknown, near
                             "  lateness = \"99d\"\n" // 7: range
                             "[jion]\n"               // 8: unknown section, and not its keys
                             "window = \"1h\"\n"      // 9
                             "[source]\n"             // 10
                             "type = [1, 2]\n"        // 11
                             "kafka = 3\n"            // 12
                             "[log.level]\n"          // 13
                             "x = 1\n"),              // 14
                     -EINVAL);
    assert_int_equal(f->problems.n, 9);
    assert_problem(f, 0, 2, 7, "'model.dim' must be an integer");
    assert_problem(f, 1, 3, 1, "unknown key 'model.lerning'");
    assert_problem(f, 2, 4, 8, "'model.rate' must be a number");
    assert_problem(f, 3, 6, 1, "unknown key 'join.windw'; did you mean 'join.window'?");
    assert_problem(f, 4, 7, 14, "'join.lateness' must be between 0s and 1d, not 99d");
    assert_problem(f, 5, 8, 2, "unknown section 'jion'; did you mean 'join'?");
    assert_problem(f, 6, 11, 8, "'source.type' must be");
    assert_problem(f, 7, 12, 9, "'source.kafka' must be a table");
    assert_problem(f, 8, 13, 6, "'log.level' must be a text in quotes, not a table");
    assert_int_equal(f->c.model_dim, 64);
}

static void a_mistake_does_not_keep_the_rest_of_the_file_from_being_read(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(load(f, "[model]\nx = 1\ndim = 32\n"), -EINVAL);
    assert_int_equal(f->c.model_dim, 32);
}

static void what_is_not_toml_is_said_with_its_place(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(load(f, "[model]\ndim = = 3\n"), -EINVAL);
    assert_int_equal(f->problems.n, 1);
    assert_int_equal(f->problems.list[0].at.line, 2);
    f->problems.n = 0;
    assert_int_equal(load(f, "[model]\ndim = 3\ndim = 4\n"), -EINVAL);
    assert_int_equal(f->problems.list[0].at.line, 3);
    f->problems.n = 0;
    assert_int_equal(load_bytes(f, "\xff\xfe\0\0", 4), -EINVAL);
    assert_int_equal(f->problems.n, 1);
}

static void tables_deeper_than_the_stack_are_refused(void **state)
{
    enum { DEPTH = 60000 };
    struct fixture *f = *state;
    char *text = malloc(2 * DEPTH + 3);
    assert_non_null(text);
    strcpy(text, "\n[");
    for (int i = 0; i < DEPTH; i++)
        memcpy(text + 2 + 2 * i, "a.", 2);
    text[2 * DEPTH + 1] = ']';
    assert_int_equal(load_bytes(f, text, 2 * DEPTH + 2), -EINVAL);
    assert_problem(f, 0, 2, 2 * 4097 + 1, "more than 4096 dots");
    free(text);
}

static void a_missing_file_is_a_problem_too(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(config_load(&f->c, "/nonexistent/x.toml", &f->problems), -ENOENT);
    assert_problem(f, 0, 0, 0, "cannot be read: No such file or directory");
    f->problems.n = 0;
    assert_int_equal(config_load(&f->c, "/", &f->problems), -EISDIR);
    assert_int_equal(f->problems.n, 1);
}

static void a_file_without_end_is_refused(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(config_load(&f->c, "/dev/zero", &f->problems), -EFBIG);
    assert_int_equal(f->problems.n, 1);
}

static void a_text_with_a_zero_byte_is_refused(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(load(f, "[state]\ndir = \"/srv\\u0000/x\"\n"), -EINVAL);
    assert_problem(f, 0, 2, 7, "zero byte");
    assert_string_equal(f->c.state_dir, "./data/state");
}

static void librdkafka_properties_pass_through_however_they_are_written(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(load(f, "[source.kafka]\n"
                             "security.protocol = \"ssl\"\n"
                             "\"ssl.ca.location\" = \"/etc/ca.pem\"\n"
                             "\"fetch.min.bytes\" = 1\n"
                             "enable.ssl.certificate.verification = true\n"),
                     0);
    assert_int_equal(set(f, "source.kafka.security.protocol=sasl_ssl"), 0);
    const struct config_properties *p = &f->c.source_kafka;
    static const char *const expected[][2] = {{"enable.ssl.certificate.verification", "true"},
                                              {"fetch.min.bytes", "1"},
                                              {"security.protocol", "sasl_ssl"},
                                              {"ssl.ca.location", "/etc/ca.pem"}};
    assert_int_equal(p->n, 4);
    for (int e = 0; e < 4; e++) {
        int i = 0;
        while (i < p->n && strcmp(p->list[i].key, expected[e][0]) != 0)
            i++;
        assert_true(i < p->n);
        assert_string_equal(p->list[i].value, expected[e][1]);
    }
}

static void more_properties_than_there_is_room_for_are_refused(void **state)
{
    struct fixture *f = *state;
    for (int i = 0; i < CONFIG_ENTRIES_MAX; i++) {
        char pair[64];
        snprintf(pair, sizeof pair, "source.kafka.x%d=1", i);
        assert_int_equal(set(f, pair), 0);
    }
    assert_int_equal(set(f, "source.kafka.one.more=1"), -EINVAL);
    assert_problem(f, 0, 0, 0, "more than 64 keys");
    assert_int_equal(set(f, "source.kafka.x0=2"), 0);
}

static void a_configuration_beyond_its_memory_is_refused(void **state)
{
    struct fixture *f = *state;
    f->memory.size = f->memory.used + 100;
    assert_int_equal(set(f,
                         "source.path=12345678901234567890123456789012345678901234567890"
                         "1234567890123456789012345678901234567890123456789012345678901234567890"),
                     -EINVAL);
    assert_problem(f, 0, 0, 0, "larger than");
    assert_string_equal(f->c.source_path, "");
}

static void actions_have_windows_of_their_own(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(load(f, "[join.actions]\npurchase = \"1d\"\nlike = \"5s\"\nnever = \"40d\"\n"),
                     -EINVAL);
    assert_int_equal(f->problems.n, 1);
    assert_problem(f, 0, 4, 9, "'join.actions.never' must be between 1s and 30d, not 40d");
    assert_int_equal(f->c.join_actions.n, 2);
    for (int i = 0; i < 2; i++)
        assert_int_equal(f->c.join_actions.list[i].ms,
                         strcmp(f->c.join_actions.list[i].name, "like") == 0 ? 5000 : 86400000);
}

static void more_actions_than_the_join_knows_are_refused(void **state)
{
    struct fixture *f = *state;
    for (int i = 0; i < 33; i++) {
        char pair[64];
        snprintf(pair, sizeof pair, "join.actions.action%d=1h", i);
        assert_int_equal(set(f, pair), 0);
        assert_int_equal(config_check(&f->c, &f->problems), i < 32 ? 0 : -EINVAL);
    }
    assert_problem(f, 0, 0, 0, "'join.actions' has more than 32 actions");
}

static void a_key_without_its_section_is_recognised(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(set(f, "window=1h"), -EINVAL);
    assert_problem(f, 0, 0, 0, "did you mean 'join.window'?");
}

static void a_pair_without_equals_is_refused(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(set(f, "join.window"), -EINVAL);
    assert_int_equal(set(f, "=x"), -EINVAL);
    assert_problem(f, 1, 0, 0, "expected section.key=value");
}

static void the_last_of_two_values_wins(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(load(f, "[model]\nbatch = 100\n"), 0);
    assert_int_equal(config_set(&f->c, "model.batch", "200", "-o:1", &f->problems), 0);
    assert_int_equal(config_set(&f->c, "model.batch", "300", "-o:2", &f->problems), 0);
    assert_int_equal(f->c.model_batch, 300);
    assert_true(config_given(&f->c, "model.batch"));
    assert_false(config_given(&f->c, "model.dim"));
    char *shown = printed(print_show, f);
    assert_non_null(strstr(shown, "batch = 300 # -o:2\n"));
    free(shown);
}

static void problems_beyond_the_limit_are_counted(void **state)
{
    struct fixture *f = *state;
    for (int i = 0; i < CONFIG_PROBLEMS_MAX + 5; i++)
        set(f, "a.b=c");
    assert_int_equal(f->problems.n, CONFIG_PROBLEMS_MAX + 5);
    char *text = printed(print_problems, f);
    assert_non_null(strstr(text, "... and 5 more\n"));
    free(text);
}

static void control_characters_of_a_key_do_not_reach_the_terminal(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(load(f, "\"a\\u001b[2J\\nb\" = 1\n"), -EINVAL);
    char *text = printed(print_problems, f), *json = printed(print_problems_json, f);
    assert_null(strchr(text, '\x1b'));
    assert_ptr_equal(strchr(text, '\n'), text + strlen(text) - 1);
    assert_non_null(strstr(json, "\"line\":1,\"column\":1,\"message\":\"unknown key"));
    free(text);
    free(json);
}

static void keys_that_need_each_other_are_checked(void **state)
{
    static const struct {
        const char *pair, *problem;
    } cases[] = {
        {"source.type=file", "'source.path' is needed"},
        {"state.dir=", "'state.dir' must not be empty"},
        {"snapshot.dir=./data/state", "must not be the same directory"},
        {"join.actions.a123456789b123456789c123456789d123456789e123456789f123456789g12=1h",
         "at most 62 bytes"},
        {"http.listen=localhost:80", "'http.listen' must be a numeric address"},
        {"http.listen=127.0.0.1", "'http.listen' must be a numeric address"},
        {"http.listen=127.0.0.1:70000", "'http.listen' must be a numeric address"},
    };
    struct fixture *f = *state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        f->memory.used = 0;
        f->problems.n = 0;
        config_init(&f->c, &f->memory);
        assert_int_equal(set(f, cases[i].pair), 0);
        assert_int_equal(config_check(&f->c, &f->problems), -EINVAL);
        assert_int_equal(f->problems.n, 1);
        assert_problem(f, 0, 0, 0, cases[i].problem);
        assert_string_equal(f->problems.list[0].at.where, "-o:1");
    }
}

static void what_is_shown_is_toml_and_gives_the_same_configuration(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(set(f, "source.path=/a \"b\"\\c\td"), 0);
    assert_int_equal(set(f, "source.kafka.client.id=x"), 0);
    assert_int_equal(set(f, "join.actions.buy=36h"), 0);
    assert_int_equal(set(f, "model.rate=0.1"), 0);
    assert_int_equal(set(f, "model.prior_half_life_slow=123456.75"), 0);
    char *shown = printed(print_show, f);
    struct config first = f->c;
    config_init(&f->c, &f->memory);
    assert_int_equal(load(f, shown), 0);
    assert_string_equal(f->c.source_path, first.source_path);
    assert_string_equal(f->c.source_kafka.list[0].key, "client.id");
    assert_int_equal(f->c.join_actions.list[0].ms, 36 * 3600000);
    assert_true(f->c.model_rate == 0.1 && f->c.model_prior_half_life_slow == 123456.75);
    free(shown);
}

static void secrets_are_not_shown(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(set(f, "source.kafka.sasl.password=hunter2"), 0);
    assert_int_equal(set(f, "source.kafka.ssl.key.pem=hunter2"), 0);
    assert_int_equal(set(f, "source.kafka.sasl.username=me"), 0);
    char *shown = printed(print_show, f);
    assert_null(strstr(shown, "hunter2"));
    assert_non_null(strstr(shown, "\"me\""));
    free(shown);
}

static void the_shipped_sample_is_the_one_the_table_gives(void **state)
{
    struct fixture *f = *state;
    char *sample = printed(print_sample, f), shipped[65536];
    FILE *file = fopen("deploy/twotower.toml", "r");
    assert_non_null(file);
    shipped[fread(shipped, 1, sizeof shipped - 1, file)] = 0;
    fclose(file);
    assert_string_equal(shipped, sample); // else: twotower check --sample > deploy/twotower.toml
    free(sample);
}

static void the_sample_sets_the_defaults_when_its_lines_are_taken_in(void **state)
{
    struct fixture *f = *state;
    char *sample = printed(print_sample, f), *before = printed(print_show, f);
    // "#key = value" is an option, "# ..." a comment.
    for (char *line = sample; line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL)
        if (line[0] == '#' && line[1] != ' ')
            line[0] = ' ';
    const int options = f->c.model_batch;
    assert_int_equal(load(f, sample), 0);
    assert_int_equal(f->c.model_batch, options);
    char *after = printed(print_show, f);
    // Only the origins differ: compare the values.
    const char *a = before, *b = after;
    int lines = 0;
    for (; *a && *b; lines++) {
        assert_int_equal(strcspn(a, "#\n"), strcspn(b, "#\n"));
        assert_memory_equal(a, b, strcspn(a, "#\n"));
        assert_null(memmem(b, strcspn(b, "\n"), "# default", 9));
        a += strcspn(a, "\n") + 1;
        b += strcspn(b, "\n") + 1;
    }
    assert_true(lines > 60);
    free(sample);
    free(before);
    free(after);
}

static void the_words_of_optimizers_are_those_of_the_model(void **state)
{
    static const char *const keys[] = {"model.optimizer", "model.dense_optimizer",
                                       "model.scalar_optimizer", "ranker.optimizer"};
    (void)state;
    for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) {
        int n = 0;
        for (; optimizer_at(n); n++)
            assert_string_equal(config_word(keys[k], n), optimizer_name(optimizer_at(n)));
        assert_int_equal(n, CONFIG_OPTIMIZER_CLIPPY_ADAGRAD + 1);
    }
}

static void a_model_that_cannot_learn_is_refused(void **state)
{
    static const struct {
        const char *pairs[2], *says;
    } cases[] = {
        {{"model.rate=0"}, "the model cannot learn: the optimizer of item rows does not work"},
        {{"model.scalar_rate=0"}, "the optimizer of scalars does not work: its rate is not above"},
        {{"model.dense_rate=0", "model.type=two_tower"}, "the optimizer of matrices"},
        {{"ranker.weight=1", "ranker.rate=0"}, "the optimizer of heads"},
        {{"model.user_update=onebp", "model.type=two_tower"}, "where both share a space"},
    };
    struct fixture *f = *state;
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        config_init(&f->c, &f->memory);
        f->problems.n = 0;
        for (int i = 0; i < 2 && cases[c].pairs[i]; i++)
            assert_int_equal(set(f, cases[c].pairs[i]), 0);
        assert_int_equal(config_check(&f->c, &f->problems), -EINVAL);
        assert_int_equal(f->problems.n, 1);
        assert_non_null(strstr(f->problems.list[0].text, cases[c].says));
    }
}

static void the_words_of_the_table_are_in_the_order_of_the_enums(void **state)
{
    (void)state;
    static const struct {
        const char *key, *word;
        int value;
    } words[] = {
        {"source.type", "builtin", CONFIG_SOURCE_BUILTIN},
        {"source.type", "file", CONFIG_SOURCE_FILE},
        {"source.type", "kafka", CONFIG_SOURCE_KAFKA},
        {"model.type", "recipe", CONFIG_MODEL_RECIPE},
        {"model.type", "two_tower", CONFIG_MODEL_TWO_TOWER},
        {"model.correction", "logq", CONFIG_CORRECTION_LOGQ},
        {"model.correction", "mns", CONFIG_CORRECTION_MNS},
        {"model.correction", "counted", CONFIG_CORRECTION_COUNTED},
        {"model.correction", "refined", CONFIG_CORRECTION_REFINED},
        {"model.correction", "none", CONFIG_CORRECTION_NONE},
        {"model.user_update", "gradient", CONFIG_USER_GRADIENT},
        {"model.user_update", "onebp", CONFIG_USER_ONEBP},
        {"model.history_encoder", "none", CONFIG_ENCODER_NONE},
        {"model.history_encoder", "attention", CONFIG_ENCODER_ATTENTION},
        {"snapshot.io", "auto", CONFIG_IO_AUTO},
        {"snapshot.io", "io_uring", CONFIG_IO_URING},
        {"snapshot.io", "pwrite", CONFIG_IO_PWRITE},
        {"log.level", "debug", CONFIG_LOG_DEBUG},
        {"log.level", "info", CONFIG_LOG_INFO},
        {"log.level", "warning", CONFIG_LOG_WARNING},
        {"log.level", "error", CONFIG_LOG_ERROR},
        {"log.format", "text", CONFIG_LOG_TEXT},
        {"log.format", "logfmt", CONFIG_LOG_LOGFMT},
        {"log.format", "json", CONFIG_LOG_JSON},
        {"kernels.set", "auto", CONFIG_KERNELS_AUTO},
        {"kernels.set", "plain", CONFIG_KERNELS_PLAIN},
        {"kernels.set", "avx2", CONFIG_KERNELS_AVX2},
        {"kernels.set", "avx512", CONFIG_KERNELS_AVX512},
        {"kernels.set", "amx", CONFIG_KERNELS_AMX},
        {"model.precision", "f32", CONFIG_PRECISION_F32},
        {"model.precision", "bf16", CONFIG_PRECISION_BF16},
        {"kernels.blas_core", "auto", CONFIG_BLAS_CORE_AUTO},
        {"kernels.blas_core", "portable", CONFIG_BLAS_CORE_PORTABLE},
        {"kernels.on_change", "refuse", CONFIG_ON_CHANGE_REFUSE},
        {"kernels.on_change", "accept", CONFIG_ON_CHANGE_ACCEPT},
    };
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        assert_string_equal(config_word(words[i].key, words[i].value), words[i].word);
}

static void the_model_digest_follows_the_model_and_nothing_else(void **state)
{
    struct fixture *f = *state;
    char first[CONFIG_DIGEST_SIZE], second[CONFIG_DIGEST_SIZE];
    config_model_digest(&f->c, first);
    assert_int_equal(strlen(first), 64);
    // The same in another spelling, and what shapes no model.
    assert_int_equal(set(f, "join.window=1800s"), 0);
    assert_int_equal(set(f, "model.rate=1.5e-1"), 0);
    assert_int_equal(set(f, "checkpoint.interval=1s"), 0);
    assert_int_equal(set(f, "snapshot.dir=/elsewhere"), 0);
    assert_int_equal(set(f, "kernels.set=plain"), 0);
    assert_int_equal(set(f, "kernels.blas_core=portable"), 0);
    config_model_digest(&f->c, second);
    assert_string_equal(first, second);
    static const char *const changes[] = {"model.dim=32", "join.window=31m", "join.actions.buy=1d",
                                          "model.seed=2", "tables.items_max=7"};
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        assert_int_equal(set(f, changes[i]), 0);
        config_model_digest(&f->c, second);
        assert_string_not_equal(first, second);
        strcpy(first, second);
    }
}

static void the_model_text_does_not_depend_on_the_order_of_actions(void **state)
{
    struct fixture *f = *state;
    char first[CONFIG_MODEL_TEXT_SIZE], second[CONFIG_MODEL_TEXT_SIZE];
    set(f, "join.actions.a=1s");
    set(f, "join.actions.b=2s");
    const size_t length = config_model_text(&f->c, first, sizeof first);
    assert_int_equal(length, strlen(first));
    config_init(&f->c, &f->memory);
    set(f, "join.actions.b=2s");
    set(f, "join.actions.a=1s");
    config_model_text(&f->c, second, sizeof second);
    assert_string_equal(first, second);
    assert_non_null(strstr(first, "join.window=\"30m\"\n"));
    assert_non_null(strstr(first, "join.actions.\"a\"=\"1s\"\njoin.actions.\"b\"=\"2s\"\n"));
    assert_null(strstr(first, "snapshot."));
}

static void dead_letters_go_to_a_topic_of_the_source_that_is_not_read(void **state)
{
    struct fixture *f = *state;
    set(f, "dead_letter.topic=letters");
    assert_int_equal(config_check(&f->c, &f->problems), -EINVAL);
    assert_non_null(strstr(f->problems.list[0].text, "'source.type' must be kafka"));
    set(f, "source.type=kafka");
    f->problems.n = 0;
    assert_int_equal(config_check(&f->c, &f->problems), 0);
    set(f, "source.items=letters");
    assert_int_equal(config_check(&f->c, &f->problems), -EINVAL);
    assert_non_null(strstr(f->problems.list[0].text, "must not be a topic that is read"));
}

static void dead_letters_lie_with_the_state_unless_told_otherwise(void **state)
{
    struct fixture *f = *state;
    char path[256];
    config_dead_letter_path(&f->c, path, sizeof path);
    assert_string_equal(path, "./data/state/dead-letters.jsonl");
    set(f, "dead_letter.path=/var/tmp/d");
    config_dead_letter_path(&f->c, path, sizeof path);
    assert_string_equal(path, "/var/tmp/d");
}

// Keys that a reload tells, with a blank behind each.
static void key_note(void *arg, const char *key)
{
    strcat(strcat(arg, key), " ");
}

// Reads text as the file of a process that runs with f->c.
static int reload(struct fixture *f, const char *text, struct value_tasks *tasks, char *keys)
{
    static char bytes[CONFIG_MEMORY];
    static struct config read;
    struct arena memory = {bytes, sizeof bytes, 0};
    FILE *file = fopen(f->path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
    f->problems.n = 0;
    *keys = 0;
    config_init(&read, &memory);
    assert_int_equal(config_load(&read, f->path, &f->problems), 0);
    assert_int_equal(config_check(&read, &f->problems), 0);
    return config_reload(&f->c, &read, tasks, key_note, keys, &f->problems);
}

static void weights_may_be_read_anew_and_nothing_else(void **state)
{
    struct fixture *f = *state;
    struct value_tasks tasks = {0};
    char keys[512];
    assert_int_equal(load(f, "[value]\ntasks = \"click=1, *=2\"\n"
                             "[join]\nactions.buy = \"1d\"\nactions.rent = \"1d\"\n"
                             "[source.kafka]\n\"security.protocol\" = \"ssl\"\n"),
                     0);
    assert_int_equal(reload(f,
                            "[value]\ntasks = \"click = -1.5, *=0\"\n"
                            "[join]\nactions.rent = \"24h\"\nactions.buy = \"1d\"\n"
                            "[source.kafka]\n\"security.protocol\" = \"ssl\"\n",
                            &tasks, keys),
                     0);
    assert_string_equal(keys, "");
    assert_int_equal(tasks.n, 2);
    assert_true(tasks.weight[0] == -1.5f && tasks.weight[1] == 0);
    assert_int_equal(
        reload(f,
               "[value]\ntasks = \"click=3, *=2\"\n[model]\ndim = 32\n"
               "[join]\nwindow = \"31m\"\nactions.buy = \"2d\"\nactions.lend = \"1d\"\n"
               "[state]\ndir = \"elsewhere\"\n",
               &tasks, keys),
        0);
    assert_string_equal(keys, "source.kafka.security.protocol join.window join.actions.buy "
                              "join.actions.rent join.actions.lend model.dim state.dir ");
    assert_true(tasks.weight[0] == 3);
}

static void other_tasks_are_not_read_anew(void **state)
{
    struct fixture *f = *state;
    static const struct {
        const char *then, *now, *said;
    } cases[] = {
        {"click=1,*=2", "*=2,click=1", "names '*,click' now and 'click,*' at the start"},
        {"click=1,*=2", "clack=1,*=2", "names 'clack,*' now"},
        {"click=1,*=2", "click=1", "names 'click' now"},
        {"*=1", "*=2", "is '*=2' now and was '*=1'"},
        {"*=2", "*=1", "needs a restart with another state.dir"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct value_tasks tasks, before;
        char text[128], keys[512];
        memset(&tasks, 7, sizeof tasks);
        before = tasks;
        snprintf(text, sizeof text, "value.tasks=%s", cases[i].then);
        assert_int_equal(set(f, text), 0);
        snprintf(text, sizeof text, "[value]\ntasks = \"%s\"\n", cases[i].now);
        assert_int_equal(reload(f, text, &tasks, keys), -EINVAL);
        assert_int_equal(f->problems.n, 1);
        assert_problem(f, 0, 2, 9, cases[i].said);
        assert_memory_equal(&tasks, &before, sizeof tasks);
        assert_string_equal(keys, "");
    }
}

static void the_model_is_identified_by_the_names_of_its_tasks(void **state)
{
    struct fixture *f = *state;
    char digest[CONFIG_DIGEST_SIZE], other[CONFIG_DIGEST_SIZE], text[CONFIG_MODEL_TEXT_SIZE];
    config_model_text(&f->c, text, sizeof text);
    assert_non_null(strstr(text, "\nvalue.tasks=\"*=1\"\n"));
    config_model_digest(&f->c, digest);
    assert_int_equal(set(f, "value.tasks=*=2"), 0); // weighs, by a running scale
    config_model_digest(&f->c, other);
    assert_string_not_equal(digest, other);
    assert_int_equal(set(f, "value.tasks=click=1,like=2"), 0);
    config_model_digest(&f->c, digest);
    config_model_text(&f->c, text, sizeof text);
    assert_non_null(strstr(text, "\nvalue.tasks=\"click,like\"\n"));
    assert_int_equal(set(f, "value.tasks=click=-3, like=0"), 0);
    config_model_digest(&f->c, other);
    assert_string_equal(digest, other);
    assert_int_equal(set(f, "value.tasks=like=2,click=1"), 0);
    config_model_digest(&f->c, other);
    assert_string_not_equal(digest, other);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(without_a_file_every_option_has_its_default),
        TEST(a_file_sets_values_of_every_type_with_their_origin),
        TEST(durations_and_sizes_are_read_in_every_unit),
        TEST(what_is_not_of_the_type_is_refused_and_changes_nothing),
        TEST(the_ends_of_a_range_are_in_it_and_what_is_beyond_is_not),
        TEST(all_mistakes_of_a_file_come_at_once_in_the_order_of_its_lines),
        TEST(a_mistake_does_not_keep_the_rest_of_the_file_from_being_read),
        TEST(what_is_not_toml_is_said_with_its_place),
        TEST(tables_deeper_than_the_stack_are_refused),
        TEST(a_missing_file_is_a_problem_too),
        TEST(a_file_without_end_is_refused),
        TEST(a_text_with_a_zero_byte_is_refused),
        TEST(librdkafka_properties_pass_through_however_they_are_written),
        TEST(more_properties_than_there_is_room_for_are_refused),
        TEST(a_configuration_beyond_its_memory_is_refused),
        TEST(actions_have_windows_of_their_own),
        TEST(more_actions_than_the_join_knows_are_refused),
        TEST(a_key_without_its_section_is_recognised),
        TEST(a_pair_without_equals_is_refused),
        TEST(the_last_of_two_values_wins),
        TEST(problems_beyond_the_limit_are_counted),
        TEST(control_characters_of_a_key_do_not_reach_the_terminal),
        TEST(keys_that_need_each_other_are_checked),
        TEST(what_is_shown_is_toml_and_gives_the_same_configuration),
        TEST(secrets_are_not_shown),
        TEST(the_shipped_sample_is_the_one_the_table_gives),
        TEST(the_sample_sets_the_defaults_when_its_lines_are_taken_in),
        TEST(the_words_of_the_table_are_in_the_order_of_the_enums),
        TEST(the_words_of_optimizers_are_those_of_the_model),
        TEST(a_model_that_cannot_learn_is_refused),
        TEST(the_model_digest_follows_the_model_and_nothing_else),
        TEST(the_model_text_does_not_depend_on_the_order_of_actions),
        TEST(dead_letters_go_to_a_topic_of_the_source_that_is_not_read),
        TEST(dead_letters_lie_with_the_state_unless_told_otherwise),
        TEST(weights_may_be_read_anew_and_nothing_else),
        TEST(other_tasks_are_not_read_anew),
        TEST(the_model_is_identified_by_the_names_of_its_tasks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
