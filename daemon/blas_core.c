// SPDX-License-Identifier: Apache-2.0
#include "daemon/blas_core.h"

#include <stdlib.h>
#include <unistd.h>

#include "model/gemm.h"

// Set by the first start for the second: that it is the second, and what the first one found.
static const char before_variable[] = "TWOTOWER_BLAS_CORE_BEFORE";
static const char core_variable[] = "OPENBLAS_CORETYPE";

void blas_core_correct(char **argv)
{
    const char *wanted = gemm_core_wanted();
    // An operator's choice stands. An empty one is none: OpenBLAS would take a core at random.
    const char *chosen = getenv(core_variable);
    if (!wanted || getenv(before_variable) || (chosen && *chosen))
        return;
    if (setenv(before_variable, gemm_core(), 1) == 0 && setenv(core_variable, wanted, 1) == 0)
        execv("/proc/self/exe", argv);
    // Without /proc or memory we go on slowly; what is said at start then names the slow core.
    unsetenv(before_variable);
    unsetenv(core_variable);
}

const char *blas_core_before(void)
{
    return getenv(before_variable);
}
