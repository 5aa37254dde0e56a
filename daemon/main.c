// SPDX-License-Identifier: Apache-2.0
#include <signal.h>

#include "daemon/blas_core.h"
#include "daemon/command.h"
#include "model/gemm.h"

int main(int argc, char **argv)
{
    // A reader that goes away (`twotower inspect | head`, a scraper, a broker) is an error of that
    // write, not the end of the process.
    signal(SIGPIPE, SIG_IGN);
    // So is a file that would become larger than the process may make one (RLIMIT_FSIZE).
    signal(SIGXFSZ, SIG_IGN);
    // SIGUSR1 asks a job for its state. It must not end a process that is about to become one; once
    // blocked, it comes through the job's descriptor all the same.
    signal(SIGUSR1, SIG_IGN);
    blas_core_correct(argv);
    gemm_init();
    return command_main(argc, argv);
}
