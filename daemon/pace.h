// SPDX-License-Identifier: Apache-2.0
//
// A source at walking speed: hands out what another source has, spread evenly over so many seconds
// of wall time. Which records come and in which order is the other's affair; only when is ours.
//
// Records are released in twentieths of a second, the same share of every partition, and a share
// only when the one before has been read. So what the reader finds at each of its looks does not
// depend on how fast the machine is, and neither do the slices that are cut from it; a machine that
// is too slow takes longer. A catalogue is released at once: it is there before the stream.
//
// The other source must be bounded and have nothing to commit.
#pragma once

#include "pipeline/source.h"

// Takes over inner: closes it with itself, and when it fails. 0 or -errno.
int pace_open(struct source **s, struct source *inner, double seconds);
