// SPDX-License-Identifier: Apache-2.0
#pragma once

// A function that does nothing but prefetch. GCC takes it for one without effect and drops the call
// unless it has been inlined before.
#define PREFETCHES static inline __attribute__((always_inline))
