// SPDX-License-Identifier: Apache-2.0
#include "daemon/blas_core.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "model/gemm.h"

// Set by the first start for the second: that it is the second, and which core the first one found.
static const char before_variable[] = "TWOTOWER_BLAS_CORE_BEFORE";
static const char core_variable[] = "OPENBLAS_CORETYPE";
static const char threads_variable[] = "OPENBLAS_NUM_THREADS";

void blas_core_correct(char **argv)
{
    const char *wanted = gemm_core_wanted();
    const char *threads = getenv(threads_variable);
    // An empty choice is none, but OpenBLAS would take it for one and pick a core at random.
    const char *chosen = getenv(core_variable);
    if (chosen && *chosen)
        wanted = NULL;
    if (getenv(before_variable)) {
        // What was executed is called "exe"; ps and the journal are to show our name.
        prctl(PR_SET_NAME, program_invocation_short_name);
        return;
    }
    if (!wanted && threads && strcmp(threads, "1") == 0)
        return;
    if (setenv(before_variable, gemm_core(), 1) == 0 && setenv(threads_variable, "1", 1) == 0 &&
        (!wanted || setenv(core_variable, wanted, 1) == 0))
        execv("/proc/self/exe", argv);
    // Without /proc or memory we go on as we are; what is said at start then names the slow core.
    unsetenv(before_variable);
}

const char *blas_core_before(void)
{
    const char *before = getenv(before_variable);
    return before && strcmp(before, gemm_core()) != 0 ? before : NULL;
}
