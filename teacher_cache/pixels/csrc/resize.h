/* The weights of one axis, computed by resize_axis.c and applied by the passes of resize.c. */
#ifndef RETORT_RESIZE_H
#define RETORT_RESIZE_H

#include "native.h"

enum { WEIGHT_BITS = 22, HALF = 1 << (WEIGHT_BITS - 1) };

/* A weight is also split, for products of 16 bits: upper << LOWER_BITS | lower. */
enum { LOWER_BITS = 12 };

/* How each output position of one axis weighs the input positions from `first` on. */
typedef struct {
    int length; /* input positions */
    int taps;   /* weights a position, even: at most one more than `length`, then the last is 0 */
    int *first;
    int32_t *weight;                /* [size][taps] */
    int32_t *upper_two, *lower_two; /* [size][taps / 2]: of two weights, the first in the lower half */
    void *memory;
} Axis;

int axis_make(Axis *axis, int length, int size, int filter); /* 0, or -1 without memory */
void axis_free(Axis *axis);

#endif
