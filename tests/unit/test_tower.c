// SPDX-License-Identifier: Apache-2.0
#include "model/tower.h"

#include "model/arena.h"
#include "model/rng.h"
#include "tests/support/gradcheck.h"

enum { B = 3, ID = 2, FEATURES = 4, HIDDEN = 5, SUMMARY = 6, OUT = 7, TOP = 2 * ID + SUMMARY };

struct fixture {
    struct tower tower;
    float id[B * ID], did[B * ID], features[B * FEATURES];
    float summary[B * SUMMARY], dsummary[B * SUMMARY];
    float Y[B * OUT], R[B * OUT];
    _Alignas(64) float params[1024], grads[1024], scratch[1024];
};

static double loss(void *arg)
{
    struct fixture *f = arg;
    double sum = 0;
    tower_forward(&f->tower, B, f->id, f->features, f->summary, f->Y);
    for (int i = 0; i < B * OUT; i++)
        sum += (double)f->R[i] * f->Y[i];
    return sum;
}

static void assert_gradients(struct fixture *f)
{
    struct tower *t = &f->tower;
    assert_gradient("W", loss, f, t->top.W, t->top.dW, TOP * OUT);
    assert_gradient("b", loss, f, t->top.b, t->top.db, OUT);
    assert_gradient("W1", loss, f, t->mlp.first.W, t->mlp.first.dW, FEATURES * HIDDEN);
    assert_gradient("b1", loss, f, t->mlp.first.b, t->mlp.first.db, HIDDEN);
    assert_gradient("W2", loss, f, t->mlp.second.W, t->mlp.second.dW, HIDDEN * ID);
    assert_gradient("b2", loss, f, t->mlp.second.b, t->mlp.second.db, ID);
    assert_gradient("id", loss, f, f->id, f->did, B * ID);
    assert_gradient("summary", loss, f, f->summary, f->dsummary, B * SUMMARY);
}

static int setup(void **state)
{
    static struct fixture f;
    const struct tower_shape shape = {ID, FEATURES, HIDDEN, SUMMARY, OUT, false};
    f = (struct fixture){0};
    // As in test_mlp.c: no hidden unit may stand at the corner of its rectifier.
    for (uint64_t key = 1;; key++) {
        struct rng rng = {key, 0};
        struct arena params = {(char *)f.params, sizeof f.params, 0};
        struct arena grads = {(char *)f.grads, sizeof f.grads, 0};
        struct arena scratch = {(char *)f.scratch, sizeof f.scratch, 0};
        float pre[B * HIDDEN], nearest = 1;
        tower_init(&f.tower, &shape, B, &params, &grads, &scratch, &rng);
        rng_fill_uniform(&rng, f.id, B * ID, -1, 1);
        rng_fill_uniform(&rng, f.features, B * FEATURES, -1, 1);
        rng_fill_uniform(&rng, f.summary, B * SUMMARY, -1, 1);
        rng_fill_uniform(&rng, f.R, B * OUT, -1, 1);
        linear_forward(&f.tower.mlp.first, B, f.features, pre);
        for (int i = 0; i < B * HIDDEN; i++)
            nearest = fminf(nearest, fabsf(pre[i]));
        if (nearest > 0.03f)
            break;
    }
    loss(&f);
    *state = &f;
    return 0;
}

static void the_parts_are_joined_as_id_features_summary(void **state)
{
    float W1[] = {2}, b1[] = {0}, W2[] = {10}, b2[] = {1}, W[] = {1, 100, 1000, 5}, b[] = {0.5f};
    float H[1], dH[1], part[1], h[4], Y[1];
    const float id[] = {3}, features[] = {4}, summary[] = {-1, 7};
    (void)state;

    struct tower t = {
        .shape = {1, 1, 1, 2, 1},
        .mlp = {{.in = 1, .out = 1, .W = W1, .b = b1},
                {.in = 1, .out = 1, .W = W2, .b = b2},
                1,
                H,
                dH},
        .top = {.in = 4, .out = 1, .W = W, .b = b},
        .B_max = 1,
        .f = part,
        .h = h,
    };
    tower_forward(&t, 1, id, features, summary, Y);
    // f = 10 relu(2 * 4) + 1 = 81; Y = 3 + 81 * 100 - 1000 + 35 + 0.5
    assert_true(Y[0] == 3 + 8100 - 1000 + 35 + 0.5f);
}

static void backward_agrees_with_finite_differences(void **state)
{
    struct fixture *f = *state;
    tower_backward(&f->tower, B, f->features, f->R, f->did, f->dsummary);
    assert_gradients(f);
}

static void backward_adds_to_what_is_there(void **state)
{
    struct fixture *f = *state;
    tower_backward(&f->tower, B, f->features, f->R, f->did, f->dsummary);
    tower_backward(&f->tower, B, f->features, f->R, f->did, f->dsummary);
    for (int i = 0; i < B * OUT; i++)
        f->R[i] *= 2;
    assert_gradients(f);
}

static double id_only_loss(void *arg)
{
    struct fixture *f = arg;
    double sum = 0;
    tower_forward(&f->tower, B, f->id, NULL, NULL, f->Y);
    for (int i = 0; i < B * OUT; i++)
        sum += (double)f->R[i] * f->Y[i];
    return sum;
}

static void a_tower_of_ids_alone_needs_no_features_and_no_summary(void **state)
{
    struct fixture *f = *state;
    struct rng rng = {3, 0};
    struct arena params = {(char *)f->params, sizeof f->params, 0};
    struct arena grads = {(char *)f->grads, sizeof f->grads, 0};
    struct arena scratch = {(char *)f->scratch, sizeof f->scratch, 0};
    const struct tower_shape shape = {.id = ID, .out = OUT};

    tower_init(&f->tower, &shape, B, &params, &grads, &scratch, &rng);
    id_only_loss(f);
    tower_backward(&f->tower, B, NULL, f->R, f->did, NULL);
    assert_gradient("W", id_only_loss, f, f->tower.top.W, f->tower.top.dW, ID * OUT);
    assert_gradient("id", id_only_loss, f, f->id, f->did, B * ID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_parts_are_joined_as_id_features_summary),
        cmocka_unit_test_setup(backward_agrees_with_finite_differences, setup),
        cmocka_unit_test_setup(backward_adds_to_what_is_there, setup),
        cmocka_unit_test_setup(a_tower_of_ids_alone_needs_no_features_and_no_summary, setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
