// SPDX-License-Identifier: Apache-2.0
//
// OneBP (Chen and Wang 2024, arXiv 2403.18227): items learn by gradient, and a user's row moves
// towards what the user engaged with, after the items' step:
//
//     user <- beta user + (1 - beta) item
//
// beta is on the old row, as in the authors' program. No gradient and no optimizer state, and the
// row stays within the hull of the items' rows and where it began. Right only where users and items
// share the space directly. For several items of one user call it once for each, oldest first.
#pragma once

// user (D) is changed, item (D) read only; beta in [0, 1].
void onebp_move(int D, float beta, const float *item, float *user);
