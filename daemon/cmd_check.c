// SPDX-License-Identifier: Apache-2.0
//
// twotower check: says what is wrong with a configuration, all of it, or shows what is in force.
#include <sysexits.h>

#include "daemon/command.h"

int cmd_check(const struct config *c, const struct command_line *line)
{
    const struct config_problems *problems = line->problems;
    if (command_value(line, "sample")) {
        config_sample(stdout);
        return EX_OK;
    }
    if (command_value(line, "json")) {
        printf("{\"ok\":%s,\"problems\":", problems->n ? "false" : "true");
        config_problems_json(problems, stdout);
        puts("}");
        return problems->n ? EX_CONFIG : EX_OK;
    }
    config_problems_print(problems, stderr);
    // Values that were refused are not in force, so they are never shown as if they were.
    if (command_value(line, "show"))
        config_show(c, stdout);
    else if (!problems->n)
        printf("%s: the configuration is valid\n",
               line->config_path ? line->config_path : "defaults");
    return problems->n ? EX_CONFIG : EX_OK;
}
