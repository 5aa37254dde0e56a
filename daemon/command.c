// SPDX-License-Identifier: Apache-2.0
#include "daemon/command.h"

#include <assert.h>
#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <sysexits.h>
#include <unistd.h>

#include "daemon/blas_core.h"
#include "daemon/log.h"
#include "daemon/metrics.h"
#include "daemon/numerics.h"
#include "daemon/suggest.h"
#include "model/arena.h"
#include "model/gemm.h"
#include "model/kernels.h"

enum { OVERRIDES_MAX = 256, OPTION_FIRST = 256, OVERRIDE_SIZE = 4096 };

#define JSON_OPTION                                                                                \
    {                                                                                              \
        "json", NULL, "one JSON object on stdout", NULL                                            \
    }

static const struct command commands[] = {
    {"run",
     cmd_run,
     COMMAND_CONFIG | COMMAND_COMPUTES,
     0,
     0,
     "",
     "the daemon: read, learn, publish",
     "twotower run -c twotower.toml",
     "It restarts from its last checkpoint. SIGTERM drains: what was read is learned, a last\n"
     "checkpoint is made, and the status is 0.",
     {{"until-end", NULL, "read a bounded input to its end, publish once more, exit", NULL},
      {"allow-gap", NULL, "go on behind what retention has removed; what was lost is recorded",
       NULL},
      {"accept-new-topic", NULL, "begin a topic that is shorter than it was read at its begin",
       NULL},
      {"skip", "TOPIC:PARTITION:OFFSET", "leave out what is before the offset; may be repeated",
       NULL}}},
    {"replay",
     cmd_replay,
     COMMAND_CONFIG | COMMAND_COMPUTES,
     0,
     0,
     "",
     "learn from the past, then optionally go on live",
     "twotower replay -c twotower.toml --from 2026-11-01T00:00:00Z --to end",
     "WHERE is begin, end, a time (2026-11-01T00:00:00Z or milliseconds since 1970 with ms "
     "behind,\n"
     "1700000000000ms) or a number of records from each partition's begin.\n"
     "In canonical order a replay gives the same snapshot whenever it is repeated; with "
     "--recorded\n"
     "it applies the slices of another state directory, and gives what that run had learned at\n"
     "slice N. The digest of every snapshot is logged.",
     {{"canonical", NULL, "in the order of event time; this is the default", NULL},
      {"recorded", "DIR", "the slices of this state directory, --to N being the last", NULL},
      {"from", "WHERE", "where to begin; the default is begin", NULL},
      {"to", "WHERE", "where to stop; the default is the end at this moment", NULL},
      {"then-live", NULL, "go on as `run` when the end is reached", NULL}}},
    {"demo",
     cmd_demo,
     COMMAND_CONFIG | COMMAND_COMPUTES | COMMAND_SCREEN,
     0,
     0,
     "",
     "a minute on the built-in stream, with a picture at the end",
     "twotower demo",
     "The stream is seeded: the same seed shows the same numbers. Nothing is read from outside.",
     {{"seconds", "N", "how long; the default is 60", NULL},
      {"seed", "N", "another stream", "source.seed=%s"},
      {"picture", "FILE", "where the picture goes; the default is demo.svg in ./data", NULL}}},
    {"eval",
     cmd_eval,
     COMMAND_CONFIG | COMMAND_COMPUTES,
     0,
     0,
     "",
     "quality on a recorded stream, predicted before learned",
     "twotower eval --events recorded/ --json",
     NULL,
     {{"events", "DIR", "recorded stream, as source.path", "source.type=file source.path=%s"},
      JSON_OPTION}},
    {"check",
     cmd_check,
     COMMAND_CONFIG | COMMAND_LENIENT,
     0,
     0,
     "",
     "validate a configuration, all mistakes at once",
     "twotower check -c twotower.toml",
     "The status is 0 for a valid configuration and 78 for one that is not.",
     {{"show", NULL, "print every value and where it comes from", NULL},
      {"sample", NULL, "print a commented sample file with every option", NULL},
      {"json", NULL, "the mistakes as one JSON object on stdout", NULL}}},
    {"verify",
     cmd_verify,
     0,
     1,
     1,
     "SNAPSHOT",
     "read a snapshot again and compare its checksums",
     "twotower verify data/snapshots",
     "SNAPSHOT is one of them or the directory of all, then the newest is meant; checkpoints too.\n"
     "Ids must find their rows, and the questions of golden.json their answers.\n"
     "The status is 65 when anything is damaged or missing, 66 when there is no snapshot.",
     {JSON_OPTION}},
    {"inspect",
     cmd_inspect,
     0,
     1,
     1,
     "SNAPSHOT",
     "what is in a snapshot",
     "twotower inspect data/snapshots",
     "SNAPSHOT is one of them or the directory of all, then the newest is meant; checkpoints too.",
     {{"digest", NULL, "only the SHA-256 over tensors and ids: same learning, same digest", NULL},
      JSON_OPTION}},
    {"snapshot",
     cmd_snapshot,
     0,
     2,
     3,
     "list|pin|rollback|unpin DIR",
     "which snapshot the fleets take: list, pin, roll back",
     "twotower snapshot rollback data/snapshots",
     "    snapshot list DIR                   all in DIR, and which one LATEST names\n"
     "    snapshot pin GENERATION|newest DIR  LATEST names it and stays there\n"
     "    snapshot rollback DIR [GENERATION]  LATEST goes back to the one before, or this, and "
     "stays\n"
     "    snapshot unpin DIR                  LATEST names the newest again, and moves with each\n"
     "\n"
     "All work while the daemon publishes: it goes on beside a pinned one, which is never "
     "removed.\n"
     "What LATEST is to name is read whole first: the status is 65 when it is damaged, 66 when it\n"
     "is missing, and LATEST stays as it was.",
     {{"json", NULL, "list: one JSON object on stdout", NULL}}},
    {"topk",
     cmd_topk,
     0,
     1,
     1,
     "SNAPSHOT",
     "the best items for a user, or next to an item",
     "twotower topk data/snapshots --item i1 --k 10",
     "Every item is looked at. No configuration is needed: the snapshot holds both towers. Scores\n"
     "of a user are inner products, with bias, prior and repeat term; those of an item are\n"
     "cosines of item vectors without their last element. With --rerank items come in the order "
     "of\n"
     "the light ranker's value, which stands before the score: the sum over the tasks of value\n"
     "weight and probability.",
     {{"user", "ID", "the best items for this user", NULL},
      {"history", "ID,ID,...", "this history, newest first, not the snapshot's; any user", NULL},
      {"item", "ID", "the items nearest to this one", NULL},
      {"k", "N", "how many; the default is 10", NULL},
      {"rerank", "N", "of the N best for the user, the k best by the light ranker", NULL},
      JSON_OPTION}},
    {"help",
     cmd_help,
     0,
     0,
     1,
     "[COMMAND]",
     "this, or all about a command",
     "twotower help run",
     NULL,
     {{NULL, NULL, NULL, NULL}}},
    {"version",
     cmd_version,
     0,
     0,
     0,
     "",
     "version, BLAS and instruction set",
     "twotower version",
     NULL,
     {{NULL, NULL, NULL, NULL}}},
};
enum { COMMANDS = sizeof commands / sizeof *commands };

// One -o, or an option that is shorthand for one, in the order of the line.
struct override {
    char origin[48];
    const char *format, *value; // "source.path=%s"; NULL: the value is the whole pair
};

// Everything read from the line before the configuration is.
struct invocation {
    struct command_line line;
    char **argv; // of main, to start anew with
    bool help;
    int n_overrides;
    struct override overrides[OVERRIDES_MAX];
};

static const struct command *command_find(const char *name)
{
    for (const struct command *c = commands; c < commands + COMMANDS; c++)
        if (strcmp(c->name, name) == 0)
            return c;
    return NULL;
}

static int command_unknown(const char *name)
{
    struct suggest nearest = {.word = name};
    for (const struct command *c = commands; c < commands + COMMANDS; c++)
        suggest_offer(&nearest, c->name);
    fprintf(stderr, "twotower: unknown command '%s'", name);
    if (suggest_best(&nearest))
        fprintf(stderr, "; did you mean '%s'?", suggest_best(&nearest));
    fputs("\nTry 'twotower help'.\n", stderr);
    return EX_USAGE;
}

int command_status(int rc)
{
    switch (-rc) {
    case 0:
        return EX_OK;
    case EINVAL:
        return EX_CONFIG;
    case EBADMSG:
    case EDOM: // a snapshot was refused
    case ERANGE:
        return EX_DATAERR;
    case ENOENT:
    case ENOTDIR:
        return EX_NOINPUT;
    case EACCES:
    case EPERM:
    case EEXIST:
    case EROFS:
        return EX_NOPERM;
    case EBUSY:
    case EAGAIN:
        return EX_TEMPFAIL;
    case ETIMEDOUT:
    case EHOSTUNREACH:
    case ECONNREFUSED:
        return EX_UNAVAILABLE;
    case EPROTO:
        return EX_SOFTWARE;
    default:
        return EX_IOERR;
    }
}

int command_fail(const struct command_line *line, int status, const char *format, ...)
{
    va_list args;
    fprintf(stderr, "twotower %s: ", line->command->name);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    putc('\n', stderr);
    return status;
}

// ---- Help

static void help_overview(FILE *out)
{
    fputs(
        "    twotower demo                    a minute of online learning, nothing to prepare\n"
        "    twotower run -c twotower.toml    your events in, two towers learning, snapshots out\n"
        "\nCommands:\n",
        out);
    for (const struct command *c = commands; c < commands + COMMANDS; c++)
        fprintf(out, "    %-8s %s\n", c->name, c->summary);
    fputs("\n"
          "    -c, --config FILE         configuration; without one, every option has its default\n"
          "    -o, --option KEY=VALUE    one option on top, for example -o join.window=1h\n"
          "\n"
          "'twotower help COMMAND' tells more; 'twotower check --sample' explains every option.\n",
          out);
}

static void help_option(const char *name, const char *argument, const char *help, FILE *out)
{
    char left[64];
    snprintf(left, sizeof left, "%s%s%s", name, argument ? " " : "", argument ? argument : "");
    fprintf(out, "    %-26s %s\n", left, help);
}

static void help_command(const struct command *c, FILE *out)
{
    const bool config = c->flags & COMMAND_CONFIG, options = config || c->options->name;
    fprintf(out, "    %s\n\n%s: %s\n\nUsage: twotower %s%s%s%s\n", c->example, c->name, c->summary,
            c->name, options ? " [OPTION]..." : "", *c->operands ? " " : "", c->operands);
    if (options)
        putc('\n', out);
    for (const struct command_option *o = c->options; o->name; o++) {
        char name[48];
        snprintf(name, sizeof name, "--%s", o->name);
        help_option(name, o->argument, o->help, out);
    }
    if (config) {
        help_option("-c, --config", "FILE", "configuration", out);
        help_option("-o, --option", "KEY=VALUE", "one option on top of it; repeatable", out);
    }
    if (c->more)
        fprintf(out, "\n%s\n", c->more);
}

int cmd_help(const struct config *config, const struct command_line *line)
{
    (void)config;
    if (line->n_operands == 0) {
        help_overview(stdout);
        return EX_OK;
    }
    const struct command *c = command_find(line->operands[0]);
    if (!c)
        return command_unknown(line->operands[0]);
    help_command(c, stdout);
    return EX_OK;
}

int cmd_version(const struct config *config, const struct command_line *line)
{
    const char *before = blas_core_before();
    (void)config, (void)line;
    kernels_init(NULL);
    printf("twotower %s\nblas     %s, core %s%s%s%s\nkernels  %s\n", TWOTOWER_VERSION,
           gemm_library(), gemm_core(), before ? " (detected " : "", before ? before : "",
           before ? ", corrected)" : "", kernels->name);
    return EX_OK;
}

// ---- The line

const char *command_value(const struct command_line *line, const char *name)
{
    const struct command_option *o = line->command->options;
    while (o->name && strcmp(o->name, name) != 0)
        o++;
    assert(o->name);
    for (int i = line->n_given - 1; i >= 0; i--)
        if (line->given[i].option == o)
            return line->given[i].value;
    return NULL;
}

int command_number(const struct command_line *line, const char *name, long long min, long long max,
                   long long fallback, long long *number)
{
    const char *value = command_value(line, name);
    char *end;
    *number = fallback;
    if (!value)
        return 0;
    errno = 0;
    *number = strtoll(value, &end, 10);
    if (errno || !*value || *end || *number < min || *number > max) {
        command_fail(line, EX_USAGE, "--%s must be an integer between %lld and %lld, not '%s'",
                     name, min, max, value);
        return -EINVAL;
    }
    return 0;
}

static int option_unknown(const struct command_line *line, const char *given)
{
    // Only the name takes part, without dashes and value.
    char name[64];
    const char *bare = given + strspn(given, "-");
    snprintf(name, sizeof name, "%.*s", (int)strcspn(bare, "="), bare);
    struct suggest nearest = {.word = name};
    for (const struct command_option *o = line->command->options; o->name; o++)
        suggest_offer(&nearest, o->name);
    if (line->command->flags & COMMAND_CONFIG) {
        suggest_offer(&nearest, "config");
        suggest_offer(&nearest, "option");
    }
    suggest_offer(&nearest, "help");
    if (suggest_best(&nearest) && given[0] == '-' && given[1] == '-')
        return command_fail(line, EX_USAGE, "unknown option '--%s'; did you mean '--%s'?", name,
                            suggest_best(&nearest));
    return command_fail(line, EX_USAGE, "unknown option '%s'; see 'twotower help %s'", given,
                        line->command->name);
}

static int override_add(struct invocation *v, const char *origin, const char *format,
                        const char *value)
{
    if (v->n_overrides == OVERRIDES_MAX)
        return command_fail(&v->line, EX_USAGE, "more than %d options", OVERRIDES_MAX);
    struct override *o = &v->overrides[v->n_overrides++];
    snprintf(o->origin, sizeof o->origin, "%s", origin);
    o->format = format;
    o->value = value;
    return EX_OK;
}

static int option_given(struct invocation *v, const struct command_option *option,
                        const char *value)
{
    struct command_line *line = &v->line;
    if (line->n_given == COMMAND_LINE_MAX)
        return command_fail(line, EX_USAGE, "more than %d options", COMMAND_LINE_MAX);
    line->given[line->n_given].option = option;
    line->given[line->n_given++].value = value;
    if (!option->sets)
        return EX_OK;
    char origin[48];
    snprintf(origin, sizeof origin, "--%s", option->name);
    return override_add(v, origin, option->sets, value);
}

// getopt_long's table from ours; entry i of a command's options returns OPTION_FIRST + i.
static int long_options(const struct command *command, struct option *list)
{
    int n = 0;
    for (const struct command_option *o = command->options; o->name; o++, n++)
        list[n] = (struct option){o->name, o->argument ? required_argument : no_argument, NULL,
                                  OPTION_FIRST + n};
    if (command->flags & COMMAND_CONFIG) {
        list[n++] = (struct option){"config", required_argument, NULL, 'c'};
        list[n++] = (struct option){"option", required_argument, NULL, 'o'};
    }
    list[n++] = (struct option){"help", no_argument, NULL, 'h'};
    list[n] = (struct option){NULL, 0, NULL, 0};
    return n;
}

static int line_read(struct invocation *v, int argc, char **argv)
{
    const struct command *command = v->line.command;
    struct option list[COMMAND_OPTIONS_MAX + 4];
    int status = EX_OK, options = 0;

    long_options(command, list);
    optind = 0; // glibc: begin anew
    opterr = 0; // the messages are ours
    while (status == EX_OK) {
        char origin[16];
        const int o =
            getopt_long(argc, argv, command->flags & COMMAND_CONFIG ? ":c:o:h" : ":h", list, NULL);
        if (o == -1)
            break;
        if (o == 'h') {
            v->help = true;
        } else if (o == 'c') {
            v->line.config_path = optarg;
        } else if (o == 'o') {
            snprintf(origin, sizeof origin, "-o:%d", ++options);
            status = override_add(v, origin, NULL, optarg);
        } else if (o == ':') {
            status = command_fail(&v->line, EX_USAGE, "'%s' needs a value", argv[optind - 1]);
        } else if (o == '?' && optopt >= OPTION_FIRST) {
            status = command_fail(&v->line, EX_USAGE, "'--%s' takes no value",
                                  command->options[optopt - OPTION_FIRST].name);
        } else if (o == '?') {
            const char letter[] = {'-', (char)optopt, 0};
            status = option_unknown(&v->line, optopt ? letter : argv[optind - 1]);
        } else {
            status = option_given(v, &command->options[o - OPTION_FIRST], optarg ? optarg : "");
        }
    }
    v->line.operands = argv + optind;
    v->line.n_operands = argc - optind;
    if (status != EX_OK || v->help)
        return status;
    if (v->line.n_operands < command->operands_min)
        return command_fail(&v->line, EX_USAGE, "%s is missing; for example: %s", command->operands,
                            command->example);
    if (v->line.n_operands > command->operands_max)
        return command_fail(&v->line, EX_USAGE, "unexpected '%s'; see 'twotower help %s'",
                            v->line.operands[command->operands_max], command->name);
    return EX_OK;
}

// ---- The configuration and the call

// Applies "a=%s b=c": pairs separated by spaces, each with the value in place of %s.
static void override_apply(struct config *c, const struct override *o,
                           struct config_problems *problems)
{
    if (!o->format) {
        config_set_pair(c, o->value, o->origin, problems);
        return;
    }
    for (const char *pair = o->format; *pair; pair += strspn(pair, " ")) {
        char text[OVERRIDE_SIZE];
        const size_t length = strcspn(pair, " ");
        const bool takes_value = length > 2 && memcmp(pair + length - 2, "%s", 2) == 0;
        snprintf(text, sizeof text, "%.*s%s", (int)(length - 2 * takes_value), pair,
                 takes_value ? o->value : "");
        config_set_pair(c, text, o->origin, problems);
        pair += length;
    }
}

// The core can only be chosen before the library is loaded, and only the configuration tells which:
// so the process may start anew here, and then reads its configuration once more.
static int core_choose(struct invocation *v, const struct config *c)
{
    const struct command_line *line = &v->line;
    struct stat file;
    if (c->kernels_blas_core != CONFIG_BLAS_CORE_PORTABLE ||
        strcasecmp(gemm_core(), GEMM_CORE_PORTABLE) == 0)
        return EX_OK;
    if (line->config_path && (stat(line->config_path, &file) < 0 || !S_ISREG(file.st_mode)))
        return command_fail(
            line, EX_CONFIG,
            "kernels.blas_core = \"portable\" means to start anew here, and %s cannot "
            "be read twice; give a file, or OPENBLAS_CORETYPE=" GEMM_CORE_PORTABLE
            " in the environment",
            line->config_path);
    const int rc = blas_core_portable(v->argv);
    if (rc == -ENOTSUP)
        return command_fail(
            line, EX_CONFIG,
            "this CPU does not run kernels.blas_core = \"portable\", which needs AVX2 "
            "and FMA");
    if (rc == -ENOEXEC)
        return command_fail(line, EX_CONFIG,
                            "%s has no core " GEMM_CORE_PORTABLE
                            " for kernels.blas_core = \"portable\"",
                            gemm_library());
    if (rc < 0)
        return command_fail(line, EX_OSERR,
                            "cannot start anew for kernels.blas_core = \"portable\": %s",
                            strerror(-rc));
    return EX_OK;
}

// Which arithmetic this run uses, in the log and in the metrics: without it no figure means much.
static int arithmetic_init(struct invocation *v, const struct config *c)
{
    const struct command_line *line = &v->line;
    const char *set = config_word("kernels.set", (int)c->kernels_set);
    const int status = core_choose(v, c);
    if (status != EX_OK)
        return status;
    if (kernels_init(c->kernels_set == CONFIG_KERNELS_AUTO ? NULL : set) < 0)
        return command_fail(line, EX_CONFIG, "this CPU does not run kernels.set = \"%s\"", set);
    // The other sets give the same bits, a hundred times slower: for a test, and never by chance.
    if (c->model_precision == CONFIG_PRECISION_BF16 && c->kernels_set == CONFIG_KERNELS_AUTO &&
        strcmp(kernels->name, "amx") != 0)
        return command_fail(line, EX_CONFIG,
                            "model.precision = \"bf16\" needs a CPU with AMX (amx_bf16 in "
                            "/proc/cpuinfo, Linux 5.16); this one runs up to %s: set f32",
                            kernels->name);
    const struct numerics *n = numerics_now(); // first here, before threads
    const char *before = blas_core_before(), *chosen = blas_core_chosen();
    const char *overruled = blas_core_overruled();
    const bool portable = c->kernels_blas_core == CONFIG_BLAS_CORE_PORTABLE;
    if (before)
        log_info(portable ? "BLAS core is the portable one" : "BLAS core corrected",
                 "blas=%s core=%s detected=%s kernels=%s libm=%s", n->blas, n->core, before,
                 kernels->name, n->libm);
    else
        log_info(chosen ? "BLAS core of OPENBLAS_CORETYPE" : "BLAS core",
                 "blas=%s core=%s kernels=%s libm=%s", n->blas, n->core, kernels->name, n->libm);
    if (overruled)
        log_warning("OPENBLAS_CORETYPE overruled", "given=%s core=%s reason=%s", overruled, n->core,
                    portable ? "kernels.blas_core is portable"
                             : "this library or this CPU has no such core");
    if (!portable && gemm_core_wanted())
        log_warning("BLAS runs on kernels for an older CPU; unset OPENBLAS_CORETYPE",
                    "core=%s wanted=%s", gemm_core(), gemm_core_wanted());
    metrics_build_info(TWOTOWER_VERSION, gemm_library(), gemm_core(), kernels->name);
    return EX_OK;
}

int command_configure(const struct command_line *line, struct config *c, struct arena *memory,
                      struct config_problems *problems)
{
    const struct invocation *v = (const struct invocation *)line; // its first member
    config_init(c, memory);
    problems->n = 0;
    if (line->config_path)
        config_load(c, line->config_path, problems);
    for (int i = 0; i < v->n_overrides; i++)
        override_apply(c, &v->overrides[i], problems);
    // Only values that are right can be right together.
    if (problems->n == 0)
        config_check(c, problems);
    return problems->n > 0 ? -EINVAL : 0;
}

static int command_call(struct invocation *v)
{
    static char memory[CONFIG_MEMORY];
    static struct config config;
    static struct config_problems problems;
    const struct command *command = v->line.command;

    command_configure(&v->line, &config, &(struct arena){memory, sizeof memory, 0}, &problems);
    v->line.problems = &problems;
    if (problems.n && !(command->flags & COMMAND_LENIENT)) {
        config_problems_print(&problems, stderr);
        return EX_CONFIG;
    }
    if ((command->flags & COMMAND_SCREEN) && !config_given(&config, "log.level"))
        config.log_level = CONFIG_LOG_WARNING;
    log_init((enum log_level)config.log_level, (enum log_format)config.log_format, STDERR_FILENO);
    int status = EX_OK;
    if (command->flags & COMMAND_COMPUTES)
        status = arithmetic_init(v, &config);
    if (status == EX_OK)
        status = command->run(&config, &v->line);
    log_flush();
    // Output that did not arrive is a failure, also when everything before went well.
    if (fflush(stdout) != 0 && status == EX_OK && errno != EPIPE)
        status = EX_IOERR;
    return status;
}

int command_main(int argc, char **argv)
{
    static struct invocation v;
    const char *name = argc > 1 ? argv[1] : "help";
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0)
        name = "help";
    if (strcmp(name, "--version") == 0 || strcmp(name, "-V") == 0)
        name = "version";
    v = (struct invocation){.line.command = command_find(name), .argv = argv};
    if (!v.line.command)
        return command_unknown(name);
    // getopt_long skips what it takes for the program's name: here, the command's.
    const int status = argc > 1 ? line_read(&v, argc - 1, argv + 1) : EX_OK;
    if (status == EX_OK && v.help) {
        help_command(v.line.command, stdout);
        return EX_OK;
    }
    return status == EX_OK ? command_call(&v) : status;
}
