// SPDX-License-Identifier: Apache-2.0
//
// Some things about OpenBLAS can be set right only before it is loaded, by environment variables.
// So the process looks, sets them, and executes itself once more; each start takes some 15 ms.
//
//     core     Debian 12's OpenBLAS does not know newer CPUs and falls back to SSE3 kernels on
//              them, 4 to 6 times slower (model/gemm.h): OPENBLAS_CORETYPE. Or the configuration
//              asks for the portable core, which gives the same bytes on many CPUs.
//     threads  It starts a thread for each further CPU while it is loaded. We never use them, and
//              they do not block the signals that are blocked later: SIGTERM would be delivered to
//              one of them and end the process without draining: OPENBLAS_NUM_THREADS=1.
//
// The process keeps its id, arguments, environment and descriptors, so whoever started it, systemd
// for one, sees one start. What a start has to know of those before it stands in one variable of
// the environment until it has been read. Each correction is made once, whatever comes of it, so a
// library that does not listen ends no process in a circle.
//
// An OPENBLAS_CORETYPE of the operator's stands, unless OpenBLAS has no core of that name (it then
// takes any: an empty one gave Cooperlake where none gives SkylakeX), this CPU does not run it (the
// first product would be an illegal instruction), or the portable core is asked for.
#pragma once

// Call first in main, before threads and open files. Returns when nothing is to be corrected or it
// has been already; else the process starts anew.
void blas_core_correct(char **argv);

// Call when the configuration asks for the portable core (GEMM_CORE_PORTABLE), before threads and
// files. Returns 0 when it runs; else the process starts anew, or the return is -ENOTSUP: this CPU
// does not run it, -ENOEXEC: the library does not take it, or another -errno: it cannot start anew.
int blas_core_portable(char **argv);

// The core that ran before the last correction: what OpenBLAS had picked, or what would run but for
// the portable one. NULL when it is the one that runs.
const char *blas_core_before(void);
// The one that runs when the portable one is not asked for.
const char *blas_core_auto(void);
// The operator's OPENBLAS_CORETYPE, when it stands; and when it does not. Else NULL.
const char *blas_core_chosen(void);
const char *blas_core_overruled(void);
