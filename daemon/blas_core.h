// SPDX-License-Identifier: Apache-2.0
//
// Two things about OpenBLAS can be set right only before it is loaded, by environment variables. So
// the process looks, sets them, and executes itself once more; both starts together take some
// 30 ms.
//
//     core     Debian 12's OpenBLAS does not know newer CPUs and falls back to SSE3 kernels on
//              them, 4 to 6 times slower (model/gemm.h): OPENBLAS_CORETYPE.
//     threads  It starts a thread for each further CPU while it is loaded. We never use them, and
//              they do not block the signals that are blocked later: SIGTERM would be delivered to
//              one of them and end the process without draining: OPENBLAS_NUM_THREADS=1.
#pragma once

// Call first in main, before threads and open files. Returns when nothing is to be corrected or it
// has been already; else the process starts anew. An OPENBLAS_CORETYPE of the operator's stands.
void blas_core_correct(char **argv);

// The core that OpenBLAS had picked before it was corrected, or NULL when it was right.
const char *blas_core_before(void);
