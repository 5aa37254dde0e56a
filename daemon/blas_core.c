// SPDX-License-Identifier: Apache-2.0
#include "daemon/blas_core.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "model/gemm.h"

// "PID:CORRECTIONS:CORE BEFORE:OPERATOR'S CHOICE", from one start to the next. Of another process
// it means nothing: a child that inherits it has made no correction.
static const char handed_variable[] = "TWOTOWER_BLAS_CORE";
static const char core_variable[] = "OPENBLAS_CORETYPE";
static const char threads_variable[] = "OPENBLAS_NUM_THREADS";

enum { CHOICE_DROPPED = 1, CORE_CORRECTED = 2, THREADS_CORRECTED = 4, CORE_PORTABLE = 8 };

static struct {
    unsigned corrections;
    char before[32], given[64];
} handed;

static void handed_read(void)
{
    const char *text = getenv(handed_variable);
    unsigned corrections;
    int pid, length = 0;
    if (text && sscanf(text, "%d:%u:%n", &pid, &corrections, &length) == 2 && length > 0 &&
        pid == getpid()) {
        const char *before = text + length, *colon = strchr(before, ':');
        handed.corrections = corrections;
        if (colon) {
            snprintf(handed.before, sizeof handed.before, "%.*s", (int)(colon - before), before);
            snprintf(handed.given, sizeof handed.given, "%s", colon + 1);
        }
        // What was executed is called "exe"; ps and the journal are to show our name.
        prctl(PR_SET_NAME, program_invocation_short_name);
    } else {
        const char *given = getenv(core_variable);
        snprintf(handed.given, sizeof handed.given, "%s", given ? given : "");
    }
    unsetenv(handed_variable);
}

// Starts anew with this core, or with the one that OpenBLAS picks. Returns only when it cannot.
static int start(char **argv, unsigned correction, const char *core)
{
    char text[128];
    if (correction & (CORE_CORRECTED | CORE_PORTABLE))
        snprintf(handed.before, sizeof handed.before, "%s", gemm_core());
    handed.corrections |= correction | THREADS_CORRECTED;
    snprintf(text, sizeof text, "%d:%u:%s:%s", getpid(), handed.corrections, handed.before,
             handed.given);
    if (setenv(handed_variable, text, 1) == 0 && setenv(threads_variable, "1", 1) == 0 &&
        (core ? setenv(core_variable, core, 1) : unsetenv(core_variable)) == 0)
        execv("/proc/self/exe", argv);
    const int error = errno;
    unsetenv(handed_variable);
    return -error;
}

void blas_core_correct(char **argv)
{
    handed_read();
    const char *core = getenv(core_variable), *threads = getenv(threads_variable);
    const bool theirs = !(handed.corrections & (CORE_CORRECTED | CORE_PORTABLE));
    const bool dropped = core && theirs && (strcasecmp(core, gemm_core()) || !gemm_core_runs(core));
    const char *wanted = core ? NULL : gemm_core_wanted();
    // Without /proc or memory we go on as we are; what is said at start then names the slow core.
    if (dropped && !(handed.corrections & CHOICE_DROPPED))
        start(argv, CHOICE_DROPPED, NULL);
    else if (wanted && !(handed.corrections & CORE_CORRECTED))
        start(argv, CORE_CORRECTED, wanted);
    else if ((!threads || strcmp(threads, "1")) && !(handed.corrections & THREADS_CORRECTED))
        start(argv, THREADS_CORRECTED, core);
}

int blas_core_portable(char **argv)
{
    if (!strcasecmp(gemm_core(), GEMM_CORE_PORTABLE))
        return 0;
    if (!gemm_core_runs(GEMM_CORE_PORTABLE))
        return -ENOTSUP;
    return handed.corrections & CORE_PORTABLE ? -ENOEXEC
                                              : start(argv, CORE_PORTABLE, GEMM_CORE_PORTABLE);
}

const char *blas_core_before(void)
{
    return *handed.before && strcasecmp(handed.before, gemm_core()) ? handed.before : NULL;
}

const char *blas_core_auto(void)
{
    return handed.corrections & CORE_PORTABLE ? handed.before : gemm_core();
}

const char *blas_core_chosen(void)
{
    return *handed.given && !strcasecmp(handed.given, gemm_core()) ? handed.given : NULL;
}

const char *blas_core_overruled(void)
{
    return *handed.given && strcasecmp(handed.given, gemm_core()) ? handed.given : NULL;
}
