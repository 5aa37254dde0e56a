// SPDX-License-Identifier: Apache-2.0
#include "model/value.h"

#include <assert.h>
#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/kernels.h"

static const char *skip_blanks(const char *p)
{
    return p + strspn(p, " \t");
}

// The task of exactly this name, -1 when there is none.
static int task_named(const struct value_tasks *v, size_t size, const char *name)
{
    for (int t = 0; t < v->n; t++)
        if (strlen(v->name[t]) == size && memcmp(v->name[t], name, size) == 0)
            return t;
    return -1;
}

int value_tasks_parse(struct value_tasks *v, const char *text, char *error, size_t size)
{
    struct value_tasks read = {.other = -1};
    const char *p = skip_blanks(text);

    for (;;) {
        const int at = (int)(p - text) + 1;
        const size_t name = strcspn(p, "=, \t");
        const char *equals = skip_blanks(p + name);
        if (name == 0 || name > VALUE_NAME_MAX || *equals != '=') {
            snprintf(error, size,
                     "character %d: expected name=weight, the name of 1 to %d bytes, as in "
                     "\"click=1,like=2.5,*=0\"",
                     at, VALUE_NAME_MAX);
            return -EINVAL;
        }
        if (task_named(&read, name, p) >= 0) {
            snprintf(error, size, "character %d: task '%.*s' is named twice", at, (int)name, p);
            return -EINVAL;
        }
        if (read.n == SLATE_TASKS_MAX) {
            snprintf(error, size, "character %d: task '%.*s' is one too many, at most %d", at,
                     (int)name, p, SLATE_TASKS_MAX);
            return -EINVAL;
        }

        const char *number = skip_blanks(equals + 1);
        char *end;
        const float weight = strtof(number, &end);
        const char *after = skip_blanks(end);
        if (end == number || !isfinite(weight) || (*after != ',' && *after != '\0')) {
            snprintf(error, size,
                     "character %d: the weight of task '%.*s' is '%.*s', expected a finite number",
                     (int)(number - text) + 1, (int)name, p, (int)strcspn(number, ","), number);
            return -EINVAL;
        }
        if (name == 1 && *p == '*')
            read.other = read.n;
        memcpy(read.name[read.n], p, name);
        read.weight[read.n++] = weight;
        if (*after == '\0')
            break;
        p = skip_blanks(after + 1);
    }
    *v = read;
    return 0;
}

bool value_tasks_agree(const struct value_tasks *a, const struct value_tasks *b)
{
    if (a->n != b->n)
        return false;
    for (int t = 0; t < a->n; t++)
        if (strcmp(a->name[t], b->name[t]) != 0)
            return false;
    return true;
}

bool value_tasks_plain(const struct value_tasks *v)
{
    return v->n == 1 && v->other == 0 && v->weight[0] == 1;
}

// In as few digits as give the number back.
static int weight_print(float weight, char *text, size_t size)
{
    int length = 0;
    for (int digits = FLT_DIG; digits <= FLT_DECIMAL_DIG; digits++) {
        length = snprintf(text, size, "=%.*g", digits, (double)weight);
        if (strtof(text + 1, NULL) == weight)
            break;
    }
    return length;
}

char *value_tasks_text(const struct value_tasks *v, const float *weight,
                       char text[VALUE_TASKS_TEXT_SIZE])
{
    size_t at = 0;
    *text = 0;
    for (int t = 0; t < v->n; t++) {
        at += (size_t)snprintf(text + at, VALUE_TASKS_TEXT_SIZE - at, "%s%s", t > 0 ? "," : "",
                               v->name[t]);
        if (weight)
            at += (size_t)weight_print(weight[t], text + at, VALUE_TASKS_TEXT_SIZE - at);
    }
    return text;
}

float value_of_labels(const struct value_tasks *v, uint32_t labels)
{
    float net = 0;
    for (int t = 0; t < v->n; t++)
        if (labels >> t & 1)
            net += v->weight[t];
    return net;
}

void value_net(int B, int T, const float *labels, const float *value_weight, float *net)
{
    for (size_t i = 0; i < (size_t)B; i++)
        net[i] = kernels->dot((size_t)T, labels + i * (size_t)T, value_weight);
}

void value_weights(enum value_form form, int B, const float *net, float scale, float *weight)
{
    const float floor = 1e-6f; // of the seed form
    if (form == VALUE_SEED) {
        const float divisor = B > 0 ? fmaxf(kernels->max((size_t)B, net), floor) : floor;
        for (int i = 0; i < B; i++)
            weight[i] = fmaxf(net[i], floor) / divisor;
        return;
    }
    assert(scale > 0);
    const float least = form == VALUE_SIGNED ? -1 : 0;
    for (int i = 0; i < B; i++)
        weight[i] = fmaxf(fminf(net[i] / scale, 1), least);
}

float value_residual(enum value_residual form, float n, float mean, float sd, float floor,
                     float cap)
{
    assert(floor > 0 || form == VALUE_DIFFERENCE || form == VALUE_POSITIVE);
    float lift;
    switch (form) {
    case VALUE_RATIO:
        lift = n / fmaxf(mean, floor);
        return cap > 0 ? fmaxf(fminf(lift, cap), -cap) : lift;
    case VALUE_DIFFERENCE:
        return n - mean;
    case VALUE_POSITIVE:
        return fmaxf(n - mean, 0);
    case VALUE_Z:
        return (n - mean) / fmaxf(sd, floor);
    }
    assert(!"a form of residual");
    return n;
}

double value_partial_out(int n, const float *value, const float *phi)
{
    double together = 0, alone = 0;
    for (int i = 0; i < n; i++) {
        together += (double)phi[i] * value[i];
        alone += (double)phi[i] * phi[i];
    }
    return alone > 0 ? together / alone : 0;
}
