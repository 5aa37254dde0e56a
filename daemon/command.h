// SPDX-License-Identifier: Apache-2.0
//
// The command line: one table of subcommands (daemon/command.c), each with its options. Parsing,
// `twotower help` and "did you mean" are made from it; adding a command is one row and one
// function.
//
// A command is one function, cmd_NAME in daemon/cmd_NAME.c. It gets the configuration (defaults,
// then -c FILE, then -o in their order, all checked, the log set up by log.*) and what else stood
// on the line. It prints to stdout, logs to stderr and returns an exit status of <sysexits.h>:
//
//     0 EX_OK   64 EX_USAGE   65 EX_DATAERR    a damaged checkpoint or snapshot   66 EX_NOINPUT
//     69 EX_UNAVAILABLE  the broker   70 EX_SOFTWARE  our bug   74 EX_IOERR   75 EX_TEMPFAIL
//     77 EX_NOPERM   78 EX_CONFIG
#pragma once

#include <stdbool.h>
#include <stdio.h>

#include "daemon/config.h"

enum { COMMAND_OPTIONS_MAX = 8, COMMAND_LINE_MAX = 64 };

struct command_option {
    const char *name;     // "from" for --from; NULL ends the list
    const char *argument; // "TIME"; NULL: a flag
    const char *help;
    const char *sets; // "source.path=%s": shorthand for -o, in its place among the -o's; or NULL
};

struct command_line;
typedef int (*command_fn)(const struct config *c, const struct command_line *line);

enum command_flags {
    COMMAND_CONFIG = 1,   // takes -c and -o
    COMMAND_COMPUTES = 2, // multiplies matrices: main says which kernels and BLAS core do it
    COMMAND_LENIENT = 4,  // is called even when the configuration has problems, to report them
    COMMAND_SCREEN = 8,   // talks to a person: logs warnings only, unless log.level is given
};

struct command {
    const char *name;
    command_fn run;
    unsigned flags;
    int operands_min, operands_max;
    const char *operands; // "SNAPSHOT", as help shows it
    const char *summary;  // one line of `twotower help`
    const char *example;  // the first line of `twotower help NAME`
    const char *more;     // paragraphs below the options, or NULL
    struct command_option options[COMMAND_OPTIONS_MAX];
};

struct command_line {
    const struct command *command;
    const struct config_problems *problems; // of the configuration; only COMMAND_LENIENT sees any
    const char *config_path;                // of -c, or NULL
    int n_given;
    struct {
        const struct command_option *option;
        const char *value; // "" for a flag
    } given[COMMAND_LINE_MAX];
    int n_operands;
    char **operands;
};

int cmd_run(const struct config *c, const struct command_line *line);
int cmd_replay(const struct config *c, const struct command_line *line);
int cmd_demo(const struct config *c, const struct command_line *line);
int cmd_eval(const struct config *c, const struct command_line *line);
int cmd_check(const struct config *c, const struct command_line *line);
int cmd_verify(const struct config *c, const struct command_line *line);
int cmd_inspect(const struct config *c, const struct command_line *line);
int cmd_snapshot(const struct config *c, const struct command_line *line);
int cmd_topk(const struct config *c, const struct command_line *line);
int cmd_help(const struct config *c, const struct command_line *line);
int cmd_version(const struct config *c, const struct command_line *line);

// The last value given for an option of this command, "" for a flag that is there, else NULL.
const char *command_value(const struct command_line *line, const char *name);
// The same as a number within [min, max], fallback when it is not there. A wrong one is said on
// stderr with the option's name, and -EINVAL returned: the command then returns EX_USAGE.
int command_number(const struct command_line *line, const char *name, long long min, long long max,
                   long long fallback, long long *number);

// What `main` does, apart from correcting the BLAS core: finds the command, reads its options and
// the configuration, calls it. Returns the exit status. When the configuration of a command that
// computes asks for another BLAS core, the process starts anew first (daemon/blas_core.h).
int command_main(int argc, char **argv);

// Defaults, then the file of -c, then the overrides in their order, as when the command was called:
// reads the file anew. line is the command's own. 0, or -EINVAL with problems.
int command_configure(const struct command_line *line, struct config *c, struct arena *memory,
                      struct config_problems *problems);

// The exit status for a -errno of a job or a source.
int command_status(int rc);
// For messages of the kind "twotower verify: ..." on stderr, with the status that it returns.
__attribute__((format(printf, 3, 4))) int command_fail(const struct command_line *line, int status,
                                                       const char *format, ...);
