// SPDX-License-Identifier: Apache-2.0
//
// Follows the snapshots that twotower publishes, as a serving fleet does:
//
//     follow_snapshot DIRECTORY [SECONDS]
//
//     cc follow_snapshot.c -o follow_snapshot $(pkg-config --cflags --libs twotower_reader)
//
// Looks at LATEST every SECONDS (default 1) and takes what it names, newer or older: an operator
// may go back (`twotower snapshot rollback`). What is damaged is not taken; the one before stays in
// use.
#include <err.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <twotower_reader.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    struct tt_reader *serving = NULL, *next;
    char error[512];
    if (argc < 2)
        errx(64, "usage: follow_snapshot DIRECTORY [SECONDS]");
    const double seconds = argc > 2 ? strtod(argv[2], NULL) : 1;
    for (;; usleep((useconds_t)(seconds * 1e6))) {
        // 0: it names what is served. Negative: it cannot be read, so what is served stays.
        if (serving && tt_moved(serving, argv[1]) <= 0)
            continue;
        if (tt_open(&next, argv[1], error, sizeof error) < 0) {
            warnx("%s", error);
            continue;
        }
        // While LATEST names something damaged, tt_open finds the newest that is whole.
        if (serving && tt_snapshot(next) == tt_snapshot(serving)) {
            tt_close(next);
            continue;
        }
        if (tt_verify(next, error, sizeof error) < 0) {
            warnx("%s", error);
            tt_close(next);
            continue;
        }
        // A server would wait here for the last query of the one before.
        tt_close(serving);
        serving = next;
        const struct tt_array *items = tt_find(serving, "item_embedding");
        printf("serving %" PRIu64 ", %" PRIu64 " items\n", tt_snapshot(serving),
               items ? items->shape[0] : 0);
        fflush(stdout);
    }
}
