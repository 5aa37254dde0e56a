// SPDX-License-Identifier: Apache-2.0
//
// How alike two score orders of one slate are: the retrieval's and the ranker's. Items that either
// calls NAN take no part. Both are NAN where there is nothing to measure, so that such slates
// cannot lift an average. Any n; O(n^2), which for a slate is less than sorting costs.
#pragma once

// The share of the first k of order a that are among the first k of order b: score descending, then
// lower index. NAN when no more than k items take part: all of them would be among the first k.
double slate_overlap(int n, const float *a, const float *b, int k);
// Spearman's rank correlation, equal scores sharing the mean of their ranks. NAN for fewer than two
// items, or when one side calls all of them equal.
double slate_spearman(int n, const float *a, const float *b);
