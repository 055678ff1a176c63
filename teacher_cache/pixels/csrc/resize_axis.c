/* Weights of an antialiased resize along one axis, as Pillow 13's Image.resize computes them: doubles,
 * rounded to units of 2^-22.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "resize.h"

static double filter_weight(int filter, double x) {
    if (filter == FILTER_BOX) return x > -0.5 && x <= 0.5 ? 1.0 : 0.0;
    x = x < 0.0 ? -x : x;
    if (filter == FILTER_BILINEAR) return x < 1.0 ? 1.0 - x : 0.0;
    /* Keys' cubic with a = -1/2 */
    if (x < 1.0) return (1.5 * x - 2.5) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * -0.5;
    return 0.0;
}

/* The input positions that an output position depends on: [first, last). */
typedef struct {
    int first, last;
} Window;

static Window window_at(double center, double support, int length) {
    int first = (int)(center - support + 0.5), last = (int)(center + support + 0.5);
    return (Window){first < 0 ? 0 : first, last > length ? length : last};
}

static void split_in_two(const int32_t *weight, int pairs, int32_t *upper_two, int32_t *lower_two) {
    for (int k = 0; k < pairs; k++) {
        uint32_t one = (uint32_t)weight[2 * k], two = (uint32_t)weight[2 * k + 1];
        uint32_t lower = (1u << LOWER_BITS) - 1;
        upper_two[k] = (int32_t)((uint32_t)(weight[2 * k] >> LOWER_BITS) & 0xFFFF) |
                       (int32_t)((uint32_t)(weight[2 * k + 1] >> LOWER_BITS) << 16);
        lower_two[k] = (int32_t)((one & lower) | (two & lower) << 16);
    }
}

/* The weights of window `w`, from `to[w.first - first]` on; `exact` is scratch. */
static void weigh(Window w, double center, double shrink, int filter, double *exact, int32_t *to) {
    double sum = 0.0;
    for (int k = 0; k < w.last - w.first; k++) {
        exact[k] = filter_weight(filter, (k + w.first - center + 0.5) * shrink);
        sum += exact[k];
    }
    for (int k = 0; k < w.last - w.first; k++) {
        double share = (sum != 0.0 ? exact[k] / sum : exact[k]) * (1 << WEIGHT_BITS);
        to[k] = (int32_t)(share < 0 ? share - 0.5 : share + 0.5);
    }
}

int axis_make(Axis *axis, int length, int size, int filter) {
    static const double reach[FILTERS] = {0.5, 1.0, 2.0};
    double scale = (double)length / size, stretch = scale < 1.0 ? 1.0 : scale;
    double support = reach[filter] * stretch, shrink = 1.0 / stretch;
    int widest = 1;
    for (int at = 0; at < size; at++) {
        Window w = window_at((at + 0.5) * scale, support, length);
        widest = w.last - w.first > widest ? w.last - w.first : widest;
    }
    int taps = (widest + 1) / 2 * 2;
    size_t all = (size_t)size * (size_t)taps, exact_bytes = sizeof(double) * (size_t)taps;
    axis->memory = calloc(exact_bytes + sizeof(int32_t) * (2 * all + (size_t)size), 1);
    if (!axis->memory) return -1;
    double *exact = axis->memory;
    axis->length = length;
    axis->taps = taps;
    axis->weight = (int32_t *)((uint8_t *)axis->memory + exact_bytes);
    axis->upper_two = axis->weight + all;
    axis->lower_two = axis->upper_two + all / 2;
    axis->first = axis->lower_two + all / 2;
    for (int at = 0; at < size; at++) {
        double center = (at + 0.5) * scale;
        Window w = window_at(center, support, length);
        int first = w.first + taps <= length ? w.first : length > taps ? length - taps : 0;
        int32_t *weight = axis->weight + (size_t)at * (size_t)taps;
        weigh(w, center, shrink, filter, exact, weight + w.first - first);
        int pairs = taps / 2;
        split_in_two(weight, pairs, axis->upper_two + at * pairs, axis->lower_two + at * pairs);
        axis->first[at] = first;
    }
    return 0;
}

void axis_free(Axis *axis) { free(axis->memory); }
