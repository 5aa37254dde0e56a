// SPDX-License-Identifier: Apache-2.0
#include "model/kernels.h"

// clang-format off
#include <stdarg.h>
#include <setjmp.h>
#include <stdint.h>
#include <stddef.h>
#include <cmocka.h>
// clang-format on
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/rng.h"

// Every length up to four blocks and a bit, starting at every offset within a few floats.
enum { LENGTH_MAX = 67, OFFSETS = 5, SIZE = LENGTH_MAX + OFFSETS, SETS_MAX = 8 };

struct inputs {
    float x[SIZE], y[SIZE], z[SIZE];
};

static void fill(struct inputs *in, uint64_t key)
{
    struct rng r = {key, 0};
    rng_fill_uniform(&r, in->x, SIZE, -3, 3);
    rng_fill_uniform(&r, in->y, SIZE, -3, 3);
    rng_fill_uniform(&r, in->z, SIZE, -3, 3);
}

// Each runs one kernel of a set on its own copy of the inputs; what it returns and what it leaves
// in the arrays is what is compared. Adding a kernel is one function and one row.
static float run_dot(const struct kernels *k, size_t n, struct inputs *in, int at)
{
    return k->dot(n, in->x + at, in->y + at);
}

static float run_axpy(const struct kernels *k, size_t n, struct inputs *in, int at)
{
    k->axpy(n, 0.7f, in->x + at, in->y + at);
    return 0;
}

// Rows of a history: one twice, the last only in the context.
static float run_pool(const struct kernels *k, size_t n, struct inputs *in, int at)
{
    const float *x = in->x + at, *z = in->z + at, w[] = {0.4f, 0.3f, 0.2f, 0.1f};
    float pooled[3 * SIZE] = {0}, context[SIZE] = {0};
    k->pool(n, 4, 2, w, (const float *const[]){x, z, x, z}, (const float *const[]){z, z, x, x},
            pooled, context);
    for (size_t i = 3 * n; i < 3 * SIZE; i++)
        assert_true(pooled[i] == 0);
    uint32_t sum = 0; // every bit that was written counts
    for (size_t i = 0; i < 3 * SIZE; i++) {
        uint32_t bits;
        memcpy(&bits, &pooled[i], sizeof bits);
        sum = sum * 31 + bits;
    }
    memcpy(in->y + at, context, n * sizeof *context);
    return (float)sum;
}

static float run_unpool(const struct kernels *k, size_t n, struct inputs *in, int at)
{
    const float w[] = {0.5f, 0.3f, 0.2f};
    float dpooled[3 * SIZE], dcontext[SIZE], other[SIZE] = {0};
    for (size_t i = 0; i < 3 * SIZE; i++)
        dpooled[i] = in->z[i % SIZE] * (float)(1 + i / SIZE);
    memcpy(dcontext, in->x, sizeof dcontext);
    k->unpool(n, 3, 2, w, dpooled, dcontext, (float *const[]){in->y + at, in->x + at, in->y + at},
              (float *const[]){other, in->x + at, other});
    memcpy(in->z, other, n * sizeof *other);
    return 0;
}

// Two rows, a part of each other's memory: n floats at n are the second.
static float run_weigh(const struct kernels *k, size_t n, struct inputs *in, int at)
{
    const float p[] = {0.3f, 0.7f};
    float x[2 * SIZE];
    memcpy(x, in->x, sizeof in->x);
    memcpy(x + SIZE, in->z, sizeof in->z);
    k->weigh(n, 2, p, x + at, in->y + at);
    return 0;
}

static float run_unweigh(const struct kernels *k, size_t n, struct inputs *in, int at)
{
    const float p[] = {0.3f, 0.7f}, ds[] = {-0.2f, 0.4f};
    float x[2 * SIZE], dx[2 * SIZE];
    memcpy(x, in->x, sizeof in->x);
    memcpy(x + SIZE, in->z, sizeof in->z);
    memset(dx, 0, sizeof dx);
    k->unweigh(n, 2, p, ds, in->z + at, in->x + at, x + at, dx + at, in->y + at);
    for (size_t i = 0; i < n; i++)
        in->y[(size_t)at + i] += dx[(size_t)at + i] - 3 * dx[(size_t)at + n + i];
    for (size_t i = 0; i < 2 * SIZE; i++)
        assert_true(dx[i] == 0 || (i >= (size_t)at && i < (size_t)at + 2 * n));
    return 0;
}

static float run_normalize(const struct kernels *k, size_t n, struct inputs *in, int at)
{
    return n ? k->normalize(n, 1e-3f, in->x + at, in->y + at) : 0;
}

static float run_unnormalize(const struct kernels *k, size_t n, struct inputs *in, int at)
{
    k->unnormalize(n, 1.7f, in->x + at, in->y + at, in->y + at);
    return 0;
}

static float run_correct(const struct kernels *k, size_t n, struct inputs *in, int at)
{
    return k->correct(n, 0.7f, in->y + at, in->x + at);
}

static float run_exp_shifted(const struct kernels *k, size_t n, struct inputs *in, int at)
{
    for (size_t i = 0; i < SIZE; i++)
        in->x[i] = i % 11 == 3 ? -INFINITY : in->x[i] * 20;
    return k->exp_shifted(n, 3, in->x + at);
}

static float run_max(const struct kernels *k, size_t n, struct inputs *in, int at)
{
    return k->max(n, in->x + at);
}

// Three rows, with room for n behind each other and up to a multiple of 16.
enum { ROWS = 3, WIDE = (LENGTH_MAX + 15) / 16 * 16 };

static void rows_fill(const struct inputs *in, size_t n, int at, float *rows)
{
    for (size_t i = 0; i < ROWS * WIDE; i++) // what lies behind a row is neither read nor kept
        rows[i] = i % WIDE < n ? in->x[(i * 7 + (size_t)at) % SIZE] : NAN;
}

static float run_softmax(const struct kernels *k, size_t n, struct inputs *in, int at)
{
    float p[ROWS * WIDE], dp[ROWS * WIDE];
    if (n == 0)
        return 0;
    rows_fill(in, n, at, p);
    k->softmax(ROWS, n, WIDE, 1.5f, p);
    for (size_t i = 0; i < ROWS * WIDE; i++)
        assert_true(i % WIDE < n || i % WIDE >= (n + 15) / 16 * 16 || p[i] == 0);
    for (size_t i = 0; i < n; i++)
        in->y[(size_t)at + i] = p[WIDE + i];
    rows_fill(in, n, at + 1, dp);
    k->softmax_backward(ROWS, n, WIDE, 0.4f, p, dp);
    for (size_t i = 0; i < n; i++)
        in->x[(size_t)at + i] = dp[WIDE + i] + dp[2 * WIDE + i] - dp[i];
    return 0;
}

static float run_scale(const struct kernels *k, size_t n, struct inputs *in, int at)
{
    k->scale(n, 1.3f, in->x + at);
    return 0;
}

static float run_scale_add(const struct kernels *k, size_t n, struct inputs *in, int at)
{
    k->scale_add(n, 1.3f, in->x + at, in->y + at);
    return 0;
}

static float run_rowwise_adagrad(const struct kernels *k, size_t n, struct inputs *in, int at)
{
    float G = 0.25f;
    k->rowwise_adagrad(n, 0.1f, 0.01f, 1e-8f, in->x + at, in->y + at, &G);
    return G;
}

static float run_to_half(const struct kernels *k, size_t n, struct inputs *in, int at)
{
    unsigned short half[SIZE] = {0};
    k->to_half(n, in->x + at, half + at);
    memcpy(in->y, half, sizeof half);
    return 0;
}

static const struct {
    const char *name;
    float (*run)(const struct kernels *k, size_t n, struct inputs *in, int at);
} runs[] = {
    {"dot", run_dot},
    {"axpy", run_axpy},
    {"pool", run_pool},
    {"unpool", run_unpool},
    {"weigh", run_weigh},
    {"unweigh", run_unweigh},
    {"normalize", run_normalize},
    {"unnormalize", run_unnormalize},
    {"correct", run_correct},
    {"exp_shifted", run_exp_shifted},
    {"max", run_max},
    {"softmax", run_softmax},
    {"softmax_backward", run_softmax},
    {"scale", run_scale},
    {"scale_add", run_scale_add},
    {"rowwise_adagrad", run_rowwise_adagrad},
    {"to_half", run_to_half},
};

static void every_set_gives_the_bits_of_the_plain_one(void **state)
{
    const struct kernels *list[SETS_MAX];
    const int sets = kernels_list(list, SETS_MAX);
    (void)state;

    assert_string_equal(list[0]->name, "plain");
    // Every member of the struct but its name and the products, which have a test of their own, is
    // a kernel; a new one must get its row above.
    assert_int_equal(sizeof runs / sizeof *runs, sizeof(struct kernels) / sizeof(void *) - 2);
    for (size_t r = 0; r < sizeof runs / sizeof *runs; r++)
        for (int s = 0; s < sets; s++)
            for (size_t n = 0; n <= LENGTH_MAX; n++)
                for (int at = 0; at < OFFSETS; at++) {
                    struct inputs a, b;
                    fill(&a, 1000 * n + at);
                    fill(&b, 1000 * n + at);
                    const float x = runs[r].run(list[0], n, &a, at);
                    const float y = runs[r].run(list[s], n, &b, at);
                    if (memcmp(&x, &y, sizeof x) != 0 || memcmp(&a, &b, sizeof a) != 0)
                        fail_msg("%s of %s differs from plain at n = %zu, offset %d", runs[r].name,
                                 list[s]->name, n, at);
                }
}

static void nothing_is_written_past_the_end(void **state)
{
    (void)state;
    for (size_t r = 0; r < sizeof runs / sizeof *runs; r++)
        for (size_t n = 0; n + 1 < LENGTH_MAX; n++) {
            struct inputs once, longer;
            fill(&once, n);
            fill(&longer, n);
            // Compared with a run over a longer stretch: both leave what lies beyond alone.
            runs[r].run(kernels, n, &once, 0);
            runs[r].run(kernels, LENGTH_MAX, &longer, 0);
            if (runs[r].run != run_exp_shifted && runs[r].run != run_to_half) {
                struct inputs fresh;
                fill(&fresh, n);
                assert_memory_equal(once.x + n, fresh.x + n, sizeof(float) * (SIZE - n));
                assert_memory_equal(once.y + n, fresh.y + n, sizeof(float) * (SIZE - n));
            }
            assert_memory_equal(once.x + LENGTH_MAX, longer.x + LENGTH_MAX,
                                sizeof(float) * OFFSETS);
        }
}

static void the_sums_and_updates_agree_with_double_precision(void **state)
{
    (void)state;
    for (size_t n = 0; n <= LENGTH_MAX; n++) {
        struct inputs in, was;
        fill(&in, n);
        was = in;

        double dot = 0, squares = 0;
        for (size_t i = 0; i < n; i++)
            dot += (double)in.x[i] * in.y[i];
        assert_true(fabs(kernels->dot(n, in.x, in.y) - dot) < 1e-5 * (1 + (double)n));

        kernels->axpy(n, 0.5f, in.x, in.y);
        for (size_t i = 0; i < n; i++)
            assert_true(fabs(was.y[i] + 0.5 * was.x[i] - in.y[i]) < 1e-6);

        // Three rows, of which two are the newest and one occurs twice.
        const float w[] = {0.5f, 0.3f, 0.2f};
        float pooled[3 * SIZE], context[SIZE];
        kernels->pool(n, 3, 2, w, (const float *const[]){was.x, was.y, was.x},
                      (const float *const[]){was.z, was.z, was.y}, pooled, context);
        for (size_t i = 0; i < n; i++) {
            assert_true(fabs(was.x[i] / 2.0 + was.y[i] / 2.0 - pooled[i]) < 1e-6);
            assert_true(fabs(0.7 * was.x[i] + 0.3 * was.y[i] - pooled[n + i]) < 1e-6);
            assert_true(fabs((2.0 * was.x[i] + was.y[i]) / 3 - pooled[2 * n + i]) < 1e-6);
            assert_true(fabs(0.8 * was.z[i] + 0.2 * was.y[i] - context[i]) < 1e-6);
        }
        float dz[SIZE] = {0}, none[SIZE] = {0};
        in = was;
        kernels->unpool(n, 3, 2, w, pooled, context, (float *const[]){in.x, in.y, in.x},
                        (float *const[]){dz, none, dz});
        for (size_t i = 0; i < n; i++) {
            const double a = pooled[i], b = pooled[n + i], c = pooled[2 * n + i];
            assert_true(fabs(was.x[i] + a / 2 + 0.7 * b + c * 2 / 3 - in.x[i]) < 3e-6);
            assert_true(fabs(was.y[i] + a / 2 + 0.3 * b + c / 3 - in.y[i]) < 3e-6);
            assert_true(fabs(0.7 * context[i] - dz[i]) < 3e-6);
        }

        const float p[] = {0.25f, -2}, ds[] = {3, 0.5f};
        float rows[2 * SIZE], drows[2 * SIZE] = {0};
        memcpy(rows, was.x, n * sizeof *rows);
        memcpy(rows + n, was.y, n * sizeof *rows);
        in = was;
        kernels->weigh(n, 2, p, rows, in.z);
        for (size_t i = 0; i < n; i++)
            assert_true(fabs(was.z[i] + 0.25 * was.x[i] - 2.0 * was.y[i] - in.z[i]) < 3e-6);
        in = was;
        kernels->unweigh(n, 2, p, ds, was.y, was.z, rows, drows, in.z);
        for (size_t i = 0; i < n; i++) {
            assert_true(fabs(0.25 * was.z[i] + 3.0 * was.y[i] - drows[i]) < 3e-6);
            assert_true(fabs(-2.0 * was.z[i] + 0.5 * was.y[i] - drows[n + i]) < 3e-6);
            assert_true(fabs(was.z[i] + 3.0 * was.x[i] + 0.5 * was.y[i] - in.z[i]) < 5e-6);
        }

        double mean = 0, variance = 0, down = 0, along = 0;
        for (size_t i = 0; i < n; i++)
            mean += was.x[i] / (double)n;
        for (size_t i = 0; i < n; i++)
            variance += pow(was.x[i] - mean, 2) / (double)n;
        const double factor = 1 / sqrt(variance + 0.01);
        if (n > 0)
            assert_true(fabs(kernels->normalize(n, 0.01f, was.x, in.x) - factor) < 1e-4 * factor);
        for (size_t i = 0; i < n; i++) {
            assert_true(fabs(factor * (was.x[i] - mean) - in.x[i]) < 1e-4);
            down += was.z[i] / (double)n;
            along += (double)was.z[i] * in.x[i] / (double)n;
        }
        kernels->unnormalize(n, 0.5f, in.x, was.z, in.y);
        for (size_t i = 0; i < n; i++)
            assert_true(fabs(0.5 * (was.z[i] - down - along * in.x[i]) - in.y[i]) < 1e-5);

        in = was;
        kernels->scale_add(n, 3, in.x, in.y);
        for (size_t i = 0; i < n; i++)
            assert_true(in.x[i] == 3 * was.x[i] && in.y[i] == was.y[i] + in.x[i]);

        in = was;
        kernels->scale(n, 3, in.x);
        for (size_t i = 0; i < n; i++)
            assert_true(in.x[i] == 3 * was.x[i]);

        in = was;
        float G = 0.5f;
        kernels->rowwise_adagrad(n, 0.1f, 0.2f, 0.01f, in.x, in.y, &G);
        for (size_t i = 0; i < n; i++)
            squares += pow(was.x[i] + 0.2 * was.y[i], 2);
        const double accumulated = 0.5 + (n ? squares / (double)n : 0);
        assert_true(fabs(accumulated - G) < 1e-5 * (1 + accumulated));
        for (size_t i = 0; i < n; i++) {
            const double g = was.x[i] + 0.2 * was.y[i];
            const double expected = was.y[i] - 0.1 * g / (sqrt(accumulated) + 0.01);
            assert_true(fabs(expected - in.y[i]) < 1e-5);
        }
    }
}

static void a_softmax_and_its_derivative_agree_with_double_precision(void **state)
{
    (void)state;
    for (size_t n = 1; n <= LENGTH_MAX; n++) {
        struct inputs in;
        float p[ROWS * WIDE], dp[ROWS * WIDE], x[ROWS * WIDE], dy[ROWS * WIDE];
        fill(&in, n);
        rows_fill(&in, n, 0, x);
        rows_fill(&in, n, 1, dy);
        memcpy(p, x, sizeof p);
        memcpy(dp, dy, sizeof dp);
        kernels->softmax(ROWS, n, WIDE, 2.5f, p);
        kernels->softmax_backward(ROWS, n, WIDE, 2.5f, p, dp);
        for (size_t r = 0; r < ROWS * WIDE; r += WIDE) {
            double sum = 0, mean = 0;
            for (size_t i = 0; i < n; i++)
                sum += exp(2.5 * x[r + i]);
            for (size_t i = 0; i < n; i++)
                mean += exp(2.5 * x[r + i]) / sum * dy[r + i];
            for (size_t i = 0; i < n; i++) {
                const double share = exp(2.5 * x[r + i]) / sum;
                assert_true(fabs(share - p[r + i]) < 1e-5 * share + 1e-9);
                assert_true(fabs(2.5 * share * (dy[r + i] - mean) - dp[r + i]) < 1e-5);
            }
        }
        // One that is not a number is not hidden.
        x[0] = NAN;
        kernels->softmax(1, n, WIDE, 1, x);
        assert_true(isnan(x[n - 1]));
    }
}

static void the_largest_is_found_wherever_it_stands(void **state)
{
    (void)state;
    assert_true(kernels->max(0, NULL) == -INFINITY);
    for (size_t n = 1; n <= LENGTH_MAX; n++)
        for (size_t where = 0; where < n; where++) {
            struct inputs in;
            fill(&in, n);
            in.x[where] = 3.5f;
            assert_true(kernels->max(n, in.x) == 3.5f);
            in.x[where] = NAN; // passed over
            double largest = -INFINITY;
            for (size_t i = 0; i < n; i++)
                largest = fmax(largest, in.x[i]);
            assert_true(kernels->max(n, in.x) == (float)largest);
        }
}

static void exp_is_within_two_ulp_and_zero_below_the_range(void **state)
{
    double worst = 0;
    (void)state;
    for (int i = 0; i <= 870000; i++) {
        const float t = -87.0f * (float)i / 870000.0f;
        float x = t;
        const float sum = kernels->exp_shifted(1, 0, &x);
        const double exact = exp((double)t);
        const double ulp = (double)nextafterf((float)exact, INFINITY) - (double)(float)exact;
        const double error = fabs((double)x - exact) / ulp;
        worst = error > worst ? error : worst;
        assert_true(sum == x);
    }
    print_message("worst error %.3f ulp\n", worst);
    assert_true(worst <= 2);

    const struct kernels *list[SETS_MAX];
    for (int k = 0; k < kernels_list(list, SETS_MAX); k++) {
        // Once in a whole block and once in the last, incomplete one.
        float special[16 + 9] = {-87.01f, -1e9f, -INFINITY, 0, 200, INFINITY, NAN, 88, -87};
        memcpy(special + 16, special, 9 * sizeof *special);
        list[k]->exp_shifted(16 + 9, 0, special);
        for (const float *x = special; x <= special + 16; x += 16) {
            assert_true(x[0] == 0 && x[1] == 0 && x[2] == 0);
            assert_true(x[3] == 1);
            assert_true(x[4] == INFINITY && x[5] == INFINITY);
            assert_true(isnan(x[6])); // trouble stays visible
            assert_true(fabs(x[7] / exp(88) - 1) < 1e-6 && fabs(x[8] / exp(-87) - 1) < 1e-6);
        }
    }
}

static void exp_subtracts_the_shift_and_sums(void **state)
{
    float x[19];
    double sum = 0;
    (void)state;
    for (int i = 0; i < 19; i++)
        x[i] = (float)i;
    const float got = kernels->exp_shifted(19, 18, x);
    for (int i = 0; i < 19; i++) {
        assert_true(fabs(x[i] - exp(i - 18.0)) < 1e-6);
        sum += exp(i - 18.0);
    }
    assert_true(fabs(got - sum) < 1e-6);
}

// The value of a half, straight from its definition.
static double half_value(unsigned short h)
{
    const int exponent = h >> 10 & 31, mantissa = h & 1023;
    const double sign = h & 0x8000 ? -1 : 1;
    if (exponent == 31)
        return mantissa ? NAN : sign * INFINITY;
    return sign * (exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24));
}

static unsigned short half_of(float x)
{
    unsigned short h;
    kernels->to_half(1, &x, &h);
    return h;
}

static void every_half_comes_back_and_ties_go_to_even(void **state)
{
    (void)state;
    for (unsigned h = 0; h < 65536; h++) {
        const double value = half_value((unsigned short)h);
        if (isnan(value)) {
            assert_true(isnan(half_value(half_of((float)value))));
            continue;
        }
        assert_int_equal(half_of((float)value), h);
        // Between this half and the next one up in magnitude.
        if ((h & 0x7fff) >= 0x7bff)
            continue;
        const double next = half_value((unsigned short)(h + 1));
        const float middle = (float)((value + next) / 2);
        assert_int_equal(half_of(middle), h & 1 ? h + 1 : h);
        assert_int_equal(half_of(nextafterf(middle, (float)value)), h);
        assert_int_equal(half_of(nextafterf(middle, (float)next)), h + 1);
    }
    assert_int_equal(half_of(65519.0f), 0x7bff);
    assert_int_equal(half_of(65520.0f), 0x7c00);
    assert_int_equal(half_of(-1e30f), 0xfc00);
    assert_int_equal(half_of(1e-30f), 0);
    assert_int_equal(half_of(-1e-30f), 0x8000);
}

static void a_set_is_chosen_by_name_or_the_best_one(void **state)
{
    const struct kernels *list[SETS_MAX];
    const int sets = kernels_list(list, SETS_MAX);
    (void)state;
    assert_string_equal(kernels->name, "plain");
    for (int i = 0; i < sets; i++) {
        assert_int_equal(kernels_init(list[i]->name), 0);
        assert_ptr_equal(kernels, list[i]);
    }
    assert_int_equal(kernels_init("fortran"), -1);
    assert_ptr_equal(kernels, list[sets - 1]);
    assert_int_equal(kernels_init("plain"), 0);
    assert_int_equal(kernels_init(NULL), 0);
    assert_ptr_equal(kernels, list[sets - 1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_set_is_chosen_by_name_or_the_best_one),
        cmocka_unit_test(every_set_gives_the_bits_of_the_plain_one),
        cmocka_unit_test(nothing_is_written_past_the_end),
        cmocka_unit_test(the_sums_and_updates_agree_with_double_precision),
        cmocka_unit_test(a_softmax_and_its_derivative_agree_with_double_precision),
        cmocka_unit_test(the_largest_is_found_wherever_it_stands),
        cmocka_unit_test(exp_is_within_two_ulp_and_zero_below_the_range),
        cmocka_unit_test(exp_subtracts_the_shift_and_sums),
        cmocka_unit_test(every_half_comes_back_and_ties_go_to_even),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
