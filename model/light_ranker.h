// SPDX-License-Identifier: Apache-2.0
//
// The light ranker: a pointwise head on both towers. Retrieval finds candidates by one dot product;
// the head scores these few again, with several views of the user and a logit for each task.
//
//     R   = reshape(W_r q + b_r)              (NU, D)   heads of the user, from the user vector q
//     s   = R v,  pi = softmax(s)             (NU)      which of them this item vector v speaks to
//     t   = R^T pi                            (D)
//     phi = [v ; t ; s ; q . v]               (F), F = 2 D + NU + 1
//     z   = W_l phi + b_l + g[surface][k]     (T)       k: position of the item on the surface
//     z'  = W_a phi + b_a                     (T)       auxiliary: in training alone
//
//     L   = weight / n * sum bce(z, y) + distil_weight / n' * sum bce(z', teacher)
//
// n and n' are the (item, task) pairs of the step that are not masked, whatever their weights.
//
// g takes out what the position explains: it is added while learning and left out when serving
// (additive form, Yan et al. 2022). An unknown position adds nothing, so positions that the caller
// drops at random keep the logits meaningful without g. The teacher's probabilities
// reach the auxiliary logits alone: they shape what the towers and heads know, and their bias never
// reaches what is served.
//
// One step: forward over all slates, then labels and weights, which may depend on the logits
// (model/delayed_feedback.h), then loss, then backward. Scratch is taken once; none can fail.
// One thread owns a struct light_ranker; light_ranker_score is pure, any thread may call it.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/slate.h"

struct arena;
struct dense_parameter;

enum {
    LIGHT_RANKER_WIDTH_MAX = 512,
    LIGHT_RANKER_HEADS_MAX = 8,
    LIGHT_RANKER_POSITIONS = 32, // of each surface; the last is for all beyond
};

struct light_ranker_shape {
    int width, heads, tasks; // D, NU, T
};

// ---- parameters: one flat array of the caller's -----------------------------------------------

struct light_ranker_parameters {
    const float *W_r, *b_r; // (NU D, D), (NU D)
    const float *W_l, *b_l; // (T, F), (T)
    const float *W_a, *b_a; // (T, F), (T): not read when serving
    const float *g;         // (SURFACES_MAX, LIGHT_RANKER_POSITIONS, T): likewise
};

int light_ranker_features(const struct light_ranker_shape *s); // F
size_t light_ranker_size(const struct light_ranker_shape *s);  // floats
struct light_ranker_parameters light_ranker_at(const float *dense,
                                               const struct light_ranker_shape *s);
// Parameter i by name, its offset from the start of the head; false at the end. For publishing.
bool light_ranker_parameter(const struct light_ranker_shape *s, int i, struct dense_parameter *p);
// Where in g the logits (T) of a position on a surface begin; -1 when the position is unknown.
ptrdiff_t light_ranker_position(int T, int surface, int position);
// A function of the seed; g starts at zero.
void light_ranker_init(const struct light_ranker_shape *s, uint64_t seed, float *dense);

// ---- learning --------------------------------------------------------------------------------

// Slate u shows the rows first[u] to first[u + 1]. All read only.
struct light_ranker_batch {
    int slates;
    const int *first;        // (slates + 1), first[0] = 0
    const float *Q;          // (slates, D)
    const float *V;          // (rows, D)
    const uint8_t *surface;  // (slates), below SURFACES_MAX
    const int16_t *position; // (rows), -1 when unknown
    const float *teacher;    // (rows, T) probabilities, NAN masks; NULL: no distillation
};

struct light_ranker_options {
    float weight, distil_weight;
    float positive_weight[SLATE_TASKS_MAX]; // by task, > 0
};

struct light_ranker_loss {
    double bce, distil; // means, without the options' weights; 0 when there are no pairs
    size_t pairs, distil_pairs;
};

struct light_ranker {
    struct light_ranker_shape shape;
    int slates_max, rows_max;
    // Of the last forward.
    float *R;   // (slates, NU, D)
    float *Phi; // (rows, F)
    float *pi;  // (rows, NU)
    float *Z;   // (rows, T): z
    float *A;   // (rows, T): z', only with a teacher
    // Gradients: of the last loss, of the last backward.
    float *dZ, *dA, *dPhi, *dR;
};

// Bytes that light_ranker_open takes from its arena.
size_t light_ranker_scratch(const struct light_ranker_shape *s, int slates_max, int rows_max);
void light_ranker_open(struct light_ranker *r, const struct light_ranker_shape *s, int slates_max,
                       int rows_max, struct arena *scratch);
void light_ranker_forward(struct light_ranker *r, const float *dense,
                          const struct light_ranker_batch *b);
// label, weight (rows, T): as in logistic_loss; weight NULL: 1.
struct light_ranker_loss light_ranker_loss(struct light_ranker *r,
                                           const struct light_ranker_options *o,
                                           const struct light_ranker_batch *b, const float *label,
                                           const float *weight);
// Adds to ddense (light_ranker_size), dQ and dV. dQ or dV NULL: that tower learns nothing from it.
void light_ranker_backward(struct light_ranker *r, const float *dense,
                           const struct light_ranker_batch *b, float *ddense, float *dQ, float *dV);

// ---- serving ---------------------------------------------------------------------------------

enum light_ranker_value {
    LIGHT_RANKER_PROBABILITIES, // sum_t w_t sigma(z_t): the expected value
    LIGHT_RANKER_LOGITS,        // sum_t w_t z_t, the seed's: another order, and no expected value
    LIGHT_RANKER_CORRECTED, // sum_t w_t p_t, p = b / (1 - b), b = sigma(z): after learning by fnc
};

// value (n) of the items V (n, D) for the user vector q (D). value_weight (T), any sign.
// Needs neither BLAS nor memory but the stack's: 84 kilobytes at the most.
void light_ranker_score(const struct light_ranker_parameters *p, const struct light_ranker_shape *s,
                        const float *q, int n, const float *V, const float *value_weight,
                        enum light_ranker_value form, float *value);
