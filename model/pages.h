// SPDX-License-Identifier: Apache-2.0
//
// Pages of 2 MB for large tables. A row of a table of gigabytes is a miss of the TLB besides one of
// the cache, and filling it is a fault for each 4 kB. Any thread.
#pragma once

#include <stddef.h>

// Asks for large pages behind the first 4 MB of what was reserved at p, n bytes, and not touched
// yet: what stays small costs no more memory than it needs, and what grows half as much again at
// the most. A kernel without them changes nothing.
void pages_advise(void *p, size_t n);
