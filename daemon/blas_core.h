// SPDX-License-Identifier: Apache-2.0
//
// Debian 12's OpenBLAS does not know newer CPUs and falls back to SSE3 kernels on them, 4 to 6
// times slower (model/gemm.h). Only OPENBLAS_CORETYPE can correct it, and only before the library
// loads: so the process looks at what was picked, sets the variable and executes itself once more.
#pragma once

// Call first in main, before threads and open files. Returns when nothing is to be corrected, when
// it has been already, or when the operator has set OPENBLAS_CORETYPE; else the process starts
// anew.
void blas_core_correct(char **argv);

// The core that OpenBLAS had picked before it was corrected, or NULL.
const char *blas_core_before(void);
