// SPDX-License-Identifier: Apache-2.0
//
// Mixture of logits (Zhai et al. 2023, arXiv 2306.04039): the score of a pair with P components,
// of which a gate says how much each of them has to say.
//
//     pi    = softmax(gate)                 ddot_p  = pi_p dscore
//     score = sum_p pi_p dot_p              dgate_p = pi_p (dot_p - score) dscore
//
// All arrays (P). Forward overwrites, backward adds. The light ranker takes gate and backward; no
// model uses forward yet.
#pragma once

// x (n, P): the gates of n pairs become their pi. Many at once, for exponentials come by the block.
void mixture_of_logits_gate(int n, int P, float *x);
float mixture_of_logits_forward(int P, const float *pi, const float *dot);
// ddot may be NULL: then the gate alone learns.
void mixture_of_logits_backward(int P, const float *pi, const float *dot, float dscore,
                                float *dgate, float *ddot);
