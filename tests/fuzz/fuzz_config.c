// SPDX-License-Identifier: Apache-2.0
//
// Fuzzes the configuration: the input is the text of a file. One that loads without a mistake is
// shown, and what is shown must load again and say the same.
#include "daemon/config.h"

#include "model/arena.h"
#include "tests/fuzz/fuzz.h"

struct loaded {
    struct config config;
    struct config_problems problems;
    struct arena memory;
    char bytes[CONFIG_MEMORY];
    char model[CONFIG_MODEL_TEXT_SIZE];
};

static int load(struct loaded *l, const char *path)
{
    l->memory = (struct arena){l->bytes, sizeof l->bytes, 0};
    l->problems.n = 0;
    config_init(&l->config, &l->memory);
    int rc = config_load(&l->config, path, &l->problems);
    if (rc == 0)
        rc = config_check(&l->config, &l->problems);
    require((rc < 0) == (l->problems.n > 0), "what is refused is told");
    if (rc == 0)
        config_model_text(&l->config, l->model, sizeof l->model);
    return rc;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct loaded first, second;
    static char path[300], shown_path[300];
    static FILE *nowhere;

    if (!nowhere) {
        nowhere = fopen("/dev/null", "w");
        require(nowhere != NULL, "there is /dev/null");
        snprintf(path, sizeof path, "%s/a.toml", scratch());
        snprintf(shown_path, sizeof shown_path, "%s/b.toml", scratch());
    }
    file_put(path, data, size);
    if (load(&first, path) < 0) {
        config_problems_print(&first.problems, nowhere);
        config_problems_json(&first.problems, nowhere);
        return 0;
    }
    FILE *shown = fopen(shown_path, "w");
    require(shown != NULL, "the files of an input can be written");
    config_show(&first.config, shown);
    fclose(shown);
    if (load(&second, shown_path) < 0)
        config_problems_print(&second.problems, stderr);
    require(second.problems.n == 0, "what is shown is a configuration");
    require(strcmp(first.model, second.model) == 0, "what is shown says the same");
    return 0;
}
