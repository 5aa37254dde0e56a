// SPDX-License-Identifier: Apache-2.0
//
// The program tests itself: called with an argument it is the process that corrects itself, and
// prints what it has become; with a second argument it is also asked for the portable core.
// model/gemm.c is replaced by a library that picks what FAKE_CORE says, has no core of Atom and
// takes Katmai for it, on a CPU that runs all cores but what FAKE_LACKS says.
#include "daemon/blas_core.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cmocka.h>

#include "model/gemm.h"

const char *gemm_core(void)
{
    const char *chosen = getenv("OPENBLAS_CORETYPE"), *fake = getenv("FAKE_CORE");
    if (getenv("FAKE_STUBBORN") || !chosen)
        return fake;
    return *chosen && strcmp(chosen, "Atom") ? chosen : "Katmai";
}

const char *gemm_core_wanted(void)
{
    return strcmp(gemm_core(), "Prescott") == 0 ? "SkylakeX" : NULL;
}

bool gemm_core_runs(const char *core)
{
    const char *lacks = getenv("FAKE_LACKS");
    return !lacks || strcmp(core, lacks) != 0;
}

static const char *or_none(const char *text)
{
    return text ? text : "-";
}

// What the corrections hand on must not reach whom the process starts.
static int corrected(int argc, char **argv)
{
    blas_core_correct(argv);
    const int rc = argc > 2 ? blas_core_portable(argv) : 0;
    char name[17] = "";
    prctl(PR_GET_NAME, name);
    printf("%s core=%s threads=%s before=%s auto=%s chosen=%s overruled=%s handed=%s rc=%d\n",
           strcmp(name, "exe") == 0 ? name : argv[1], gemm_core(),
           or_none(getenv("OPENBLAS_NUM_THREADS")), or_none(blas_core_before()), blas_core_auto(),
           or_none(blas_core_chosen()), or_none(blas_core_overruled()),
           or_none(getenv("TWOTOWER_BLAS_CORE")), rc);
    return 0;
}

// What the process prints that is started with these variables.
static const char *run_with(const char *variables, const char *arguments)
{
    static char line[256];
    char command[256];
    snprintf(command, sizeof command,
             "env -u OPENBLAS_CORETYPE -u OPENBLAS_NUM_THREADS %s "
             "timeout 20 \"$(readlink /proc/%d/exe)\" %s",
             variables, getpid(), arguments);
    FILE *out = popen(command, "r");
    assert_non_null(out);
    assert_non_null(fgets(line, sizeof line, out));
    assert_int_equal(pclose(out), 0);
    return line;
}

static const char *run(const char *variables)
{
    return run_with(variables, "argument");
}

static const char *run_portable(const char *variables)
{
    return run_with(variables, "argument portable");
}

static void a_slow_core_is_replaced_and_remembered(void **state)
{
    (void)state;
    assert_string_equal(run("FAKE_CORE=Prescott"),
                        "argument core=SkylakeX threads=1 before=Prescott auto=SkylakeX chosen=- "
                        "overruled=- handed=- rc=0\n");
}

static void an_empty_choice_is_none(void **state)
{
    (void)state;
    assert_string_equal(run("FAKE_CORE=Prescott OPENBLAS_CORETYPE="),
                        "argument core=SkylakeX threads=1 before=Prescott auto=SkylakeX chosen=- "
                        "overruled=- handed=- rc=0\n");
    // What the library takes for it is not left either.
    assert_string_equal(run("FAKE_CORE=Haswell OPENBLAS_CORETYPE="),
                        "argument core=Haswell threads=1 before=- auto=Haswell chosen=- "
                        "overruled=- handed=- rc=0\n");
}

static void a_choice_that_the_library_or_the_cpu_has_not_is_overruled(void **state)
{
    (void)state;
    assert_string_equal(run("FAKE_CORE=Haswell OPENBLAS_CORETYPE=Atom"),
                        "argument core=Haswell threads=1 before=- auto=Haswell chosen=- "
                        "overruled=Atom handed=- rc=0\n");
    assert_string_equal(run("FAKE_CORE=Prescott OPENBLAS_CORETYPE=Atom"),
                        "argument core=SkylakeX threads=1 before=Prescott auto=SkylakeX chosen=- "
                        "overruled=Atom handed=- rc=0\n");
    assert_string_equal(run("FAKE_CORE=Haswell FAKE_LACKS=Zen OPENBLAS_CORETYPE=Zen"),
                        "argument core=Haswell threads=1 before=- auto=Haswell chosen=- "
                        "overruled=Zen handed=- rc=0\n");
}

static void the_right_core_stays_and_threads_become_one(void **state)
{
    (void)state;
    static const char alone[] = "argument core=Haswell threads=1 before=- auto=Haswell chosen=- "
                                "overruled=- handed=- rc=0\n";
    assert_string_equal(run("FAKE_CORE=Haswell"), alone);
    assert_string_equal(run("FAKE_CORE=Haswell OPENBLAS_NUM_THREADS=8"), alone);
    assert_string_equal(run("FAKE_CORE=Haswell OPENBLAS_NUM_THREADS=1"), alone);
}

static void the_operators_core_stands(void **state)
{
    (void)state;
    assert_string_equal(run("FAKE_CORE=Haswell OPENBLAS_CORETYPE=Prescott"),
                        "argument core=Prescott threads=1 before=- auto=Prescott chosen=Prescott "
                        "overruled=- handed=- rc=0\n");
}

static void a_library_that_does_not_listen_is_asked_once(void **state)
{
    (void)state;
    assert_string_equal(run("FAKE_CORE=Prescott FAKE_STUBBORN=1"),
                        "argument core=Prescott threads=1 before=- auto=Prescott chosen=- "
                        "overruled=- handed=- rc=0\n");
    assert_string_equal(run("FAKE_CORE=Prescott FAKE_STUBBORN=1 OPENBLAS_CORETYPE=Zen"),
                        "argument core=Prescott threads=1 before=- auto=Prescott chosen=- "
                        "overruled=Zen handed=- rc=0\n");
}

static void the_portable_core_replaces_the_one_that_would_run(void **state)
{
    (void)state;
    assert_string_equal(run_portable("FAKE_CORE=SkylakeX"),
                        "argument core=Haswell threads=1 before=SkylakeX auto=SkylakeX chosen=- "
                        "overruled=- handed=- rc=0\n");
    assert_string_equal(run_portable("FAKE_CORE=Prescott"),
                        "argument core=Haswell threads=1 before=SkylakeX auto=SkylakeX chosen=- "
                        "overruled=- handed=- rc=0\n");
    assert_string_equal(run_portable("FAKE_CORE=Haswell"),
                        "argument core=Haswell threads=1 before=- auto=Haswell chosen=- "
                        "overruled=- handed=- rc=0\n");
}

static void the_portable_core_overrules_the_operators(void **state)
{
    (void)state;
    assert_string_equal(run_portable("FAKE_CORE=SkylakeX OPENBLAS_CORETYPE=Zen"),
                        "argument core=Haswell threads=1 before=Zen auto=Zen chosen=- "
                        "overruled=Zen handed=- rc=0\n");
    assert_string_equal(run_portable("FAKE_CORE=SkylakeX OPENBLAS_CORETYPE=haswell"),
                        "argument core=haswell threads=1 before=- auto=haswell chosen=haswell "
                        "overruled=- handed=- rc=0\n");
}

static void the_portable_core_is_refused_where_it_cannot_run(void **state)
{
    (void)state;
    char line[256];
    snprintf(line, sizeof line,
             "argument core=Nehalem threads=1 before=- auto=Nehalem chosen=- overruled=- handed=- "
             "rc=%d\n",
             -ENOTSUP);
    assert_string_equal(run_portable("FAKE_CORE=Nehalem FAKE_LACKS=Haswell"), line);
    snprintf(line, sizeof line,
             "argument core=Nehalem threads=1 before=- auto=Nehalem chosen=- overruled=- handed=- "
             "rc=%d\n",
             -ENOEXEC);
    assert_string_equal(run_portable("FAKE_CORE=Nehalem FAKE_STUBBORN=1"), line);
}

// As a child of a process that has corrected itself: other process, other CPUs perhaps.
static void what_another_process_handed_on_means_nothing(void **state)
{
    (void)state;
    assert_string_equal(run("FAKE_CORE=Prescott TWOTOWER_BLAS_CORE=1:15:Zen:Zen"),
                        "argument core=SkylakeX threads=1 before=Prescott auto=SkylakeX chosen=- "
                        "overruled=- handed=- rc=0\n");
    assert_string_equal(run("FAKE_CORE=Prescott TWOTOWER_BLAS_CORE=nonsense"),
                        "argument core=SkylakeX threads=1 before=Prescott auto=SkylakeX chosen=- "
                        "overruled=- handed=- rc=0\n");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_slow_core_is_replaced_and_remembered),
        cmocka_unit_test(an_empty_choice_is_none),
        cmocka_unit_test(the_right_core_stays_and_threads_become_one),
        cmocka_unit_test(the_operators_core_stands),
        cmocka_unit_test(a_library_that_does_not_listen_is_asked_once),
        cmocka_unit_test(a_choice_that_the_library_or_the_cpu_has_not_is_overruled),
        cmocka_unit_test(the_portable_core_replaces_the_one_that_would_run),
        cmocka_unit_test(the_portable_core_overrules_the_operators),
        cmocka_unit_test(the_portable_core_is_refused_where_it_cannot_run),
        cmocka_unit_test(what_another_process_handed_on_means_nothing),
    };
    return argc > 1 ? corrected(argc, argv) : cmocka_run_group_tests(tests, NULL, NULL);
}
