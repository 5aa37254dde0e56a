// SPDX-License-Identifier: Apache-2.0
//
// The program tests itself: called with an argument it is the process that corrects itself, and
// prints what it has become. model/gemm.c is replaced by a library that picks what FAKE_CORE says.
#include "daemon/blas_core.h"

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
    return getenv("FAKE_STUBBORN") || !chosen || !*chosen ? fake : chosen;
}

const char *gemm_core_wanted(void)
{
    return strcmp(gemm_core(), "Prescott") == 0 ? "SkylakeX" : NULL;
}

static int corrected(char **argv)
{
    blas_core_correct(argv);
    const char *before = blas_core_before(), *threads = getenv("OPENBLAS_NUM_THREADS");
    char name[17] = "";
    prctl(PR_GET_NAME, name);
    printf("%s core=%s threads=%s before=%s\n", strcmp(name, "exe") == 0 ? name : argv[1],
           gemm_core(), threads ? threads : "-", before ? before : "-");
    return 0;
}

// What the process prints that is started with these variables.
static const char *run(const char *variables)
{
    static char line[256];
    char command[256];
    snprintf(command, sizeof command,
             "env -u OPENBLAS_CORETYPE -u OPENBLAS_NUM_THREADS %s "
             "timeout 20 \"$(readlink /proc/%d/exe)\" argument",
             variables, getpid());
    FILE *out = popen(command, "r");
    assert_non_null(out);
    assert_non_null(fgets(line, sizeof line, out));
    assert_int_equal(pclose(out), 0);
    return line;
}

static void a_slow_core_is_replaced_and_remembered(void **state)
{
    (void)state;
    assert_string_equal(run("FAKE_CORE=Prescott"),
                        "argument core=SkylakeX threads=1 before=Prescott\n");
}

static void an_empty_choice_is_none(void **state)
{
    (void)state;
    assert_string_equal(run("FAKE_CORE=Prescott OPENBLAS_CORETYPE="),
                        "argument core=SkylakeX threads=1 before=Prescott\n");
}

static void the_right_core_stays_and_threads_become_one(void **state)
{
    (void)state;
    assert_string_equal(run("FAKE_CORE=Haswell"), "argument core=Haswell threads=1 before=-\n");
    assert_string_equal(run("FAKE_CORE=Haswell OPENBLAS_NUM_THREADS=8"),
                        "argument core=Haswell threads=1 before=-\n");
}

static void the_operators_core_stands(void **state)
{
    (void)state;
    assert_string_equal(run("FAKE_CORE=Haswell OPENBLAS_CORETYPE=Prescott"),
                        "argument core=Prescott threads=1 before=-\n");
}

static void a_library_that_does_not_listen_is_asked_once(void **state)
{
    (void)state;
    assert_string_equal(run("FAKE_CORE=Prescott FAKE_STUBBORN=1"),
                        "argument core=Prescott threads=1 before=-\n");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_slow_core_is_replaced_and_remembered),
        cmocka_unit_test(an_empty_choice_is_none),
        cmocka_unit_test(the_right_core_stays_and_threads_become_one),
        cmocka_unit_test(the_operators_core_stands),
        cmocka_unit_test(a_library_that_does_not_listen_is_asked_once),
    };
    return argc > 1 ? corrected(argv) : cmocka_run_group_tests(tests, NULL, NULL);
}
