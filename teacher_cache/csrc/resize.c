/* Antialiased separable resize of a crop, as Pillow 13's Image.resize computes it.
 *
 * Weights are doubles, rounded to units of 2^-22; each pass sums in int32 and rounds to uint8.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "native.h"

enum { WEIGHT_BITS = 22, HALF = 1 << (WEIGHT_BITS - 1), COLUMNS = 64, AT_ONCE = 2 };

/* How each output position of one axis weighs the input positions first .. first + count - 1. */
typedef struct {
    int taps; /* weights a position, a multiple of AT_ONCE, zero past count */
    int *first;
    int *count;
    int32_t *weight; /* [size][taps] */
} Axis;

static double filter_weight(int filter, double x) {
    if (filter == FILTER_BOX) return x > -0.5 && x <= 0.5 ? 1.0 : 0.0;
    x = x < 0.0 ? -x : x;
    if (filter == FILTER_BILINEAR) return x < 1.0 ? 1.0 - x : 0.0;
    /* Keys' cubic with a = -1/2 */
    if (x < 1.0) return (1.5 * x - 2.5) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * -0.5;
    return 0.0;
}

static void axis_free(Axis *axis) {
    free(axis->first);
    free(axis->count);
    free(axis->weight);
}

static int axis_make(Axis *axis, int length, int size, int filter) {
    static const double reach[FILTERS] = {0.5, 1.0, 2.0};
    double scale = (double)length / size, stretch = scale < 1.0 ? 1.0 : scale;
    double support = reach[filter] * stretch, shrink = 1.0 / stretch;
    axis->taps = ((int)ceil(support) * 2 + 1 + AT_ONCE - 1) / AT_ONCE * AT_ONCE;
    axis->first = malloc(sizeof(int) * (size_t)size);
    axis->count = malloc(sizeof(int) * (size_t)size);
    axis->weight = calloc((size_t)size * (size_t)axis->taps, sizeof(int32_t));
    double *exact = malloc(sizeof(double) * (size_t)axis->taps);
    if (!axis->first || !axis->count || !axis->weight || !exact) {
        free(exact);
        axis_free(axis);
        return -1;
    }
    for (int at = 0; at < size; at++) {
        double center = (at + 0.5) * scale, sum = 0.0;
        int first = (int)(center - support + 0.5), last = (int)(center + support + 0.5);
        first = first < 0 ? 0 : first;
        last = last > length ? length : last;
        for (int k = 0; k < last - first; k++) {
            exact[k] = filter_weight(filter, (k + first - center + 0.5) * shrink);
            sum += exact[k];
        }
        int32_t *weight = axis->weight + (size_t)at * (size_t)axis->taps;
        for (int k = 0; k < last - first; k++) {
            double share = (sum != 0.0 ? exact[k] / sum : exact[k]) * (1 << WEIGHT_BITS);
            weight[k] = (int32_t)(share < 0 ? share - 0.5 : share + 0.5);
        }
        axis->first[at] = first;
        axis->count[at] = last - first;
    }
    free(exact);
    return 0;
}

INLINE uint8_t level(int32_t sum) {
    sum >>= WEIGHT_BITS;
    return (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

/* One pixel's weighted sum, rounded: levels in the lower bytes of four lanes. */
INLINE Ints4 across_at(const uint8_t *pixel, const int32_t *weight, int count) {
    Ints4 sum = {HALF, HALF, HALF, 0}, other = {0};
    for (int k = 0; k < count; k += AT_ONCE, pixel += AT_ONCE * CHANNELS) {
        Bytes16 some;
        memcpy(&some, pixel, sizeof some);
        sum += pixel_of(some, 0) * weight[k];
        other += pixel_of(some, 1) * weight[k + 1];
    }
    return (sum + other) >> WEIGHT_BITS;
}

/* Two rows at once; reads SLACK bytes past both, writes 1 byte past all pixels but the last. */
HOT static void rows_across(const uint8_t *in, const uint8_t *in2, uint8_t *out, uint8_t *out2,
                            int size, const Axis *axis, int flip) {
    for (int at = 0; at < size; at++, out += CHANNELS, out2 += CHANNELS) {
        int x = flip ? size - 1 - at : at, count = axis->count[x];
        ptrdiff_t first = CHANNELS * (ptrdiff_t)axis->first[x];
        const int32_t *weight = axis->weight + (ptrdiff_t)x * axis->taps;
        Bytes16 one = levels_of(across_at(in + first, weight, count));
        Bytes16 two = levels_of(across_at(in2 + first, weight, count));
        if (at < size - 1) {
            memcpy(out, &one, CHANNELS + 1);
            memcpy(out2, &two, CHANNELS + 1);
        } else {
            memcpy(out, &one, CHANNELS);
            memcpy(out2, &two, CHANNELS);
        }
    }
}

#ifdef AVX2
/* The same, a row in each half of a register. */
AVX2 static void rows_across_avx2(const uint8_t *in, const uint8_t *in2, uint8_t *out, uint8_t *out2,
                                  int size, const Axis *axis, int flip) {
    const __m256i half = _mm256_broadcastsi128_si256(_mm_setr_epi32(HALF, HALF, HALF, 0));
    const __m256i first_pixel = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, -1, -1, -1, 1, -1, -1, -1, 2, -1, -1, -1, -1, -1, -1, -1));
    const __m256i next_pixel = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(3, -1, -1, -1, 4, -1, -1, -1, 5, -1, -1, -1, -1, -1, -1, -1));
    for (int at = 0; at < size; at++, out += CHANNELS, out2 += CHANNELS) {
        int x = flip ? size - 1 - at : at, count = axis->count[x];
        ptrdiff_t from = CHANNELS * (ptrdiff_t)axis->first[x];
        const int32_t *weight = axis->weight + (ptrdiff_t)x * axis->taps;
        const uint8_t *a = in + from, *b = in2 + from;
        __m256i sum = half, other = _mm256_setzero_si256();
        for (int k = 0; k < count; k += AT_ONCE, a += AT_ONCE * CHANNELS, b += AT_ONCE * CHANNELS) {
            __m128i low = _mm_loadu_si128((const __m128i *)a), high = _mm_loadu_si128((const __m128i *)b);
            __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
            __m256i one = _mm256_shuffle_epi8(both, first_pixel);
            __m256i two = _mm256_shuffle_epi8(both, next_pixel);
            one = _mm256_mullo_epi32(one, _mm256_set1_epi32(weight[k]));
            two = _mm256_mullo_epi32(two, _mm256_set1_epi32(weight[k + 1]));
            sum = _mm256_add_epi32(sum, one);
            other = _mm256_add_epi32(other, two);
        }
        sum = _mm256_srai_epi32(_mm256_add_epi32(sum, other), WEIGHT_BITS);
        sum = _mm256_packs_epi32(sum, sum);
        sum = _mm256_packus_epi16(sum, sum); /* both saturate: clipped */
        int32_t one = _mm_cvtsi128_si32(_mm256_castsi256_si128(sum));
        int32_t two = _mm_cvtsi128_si32(_mm256_extracti128_si256(sum, 1));
        if (at < size - 1) {
            memcpy(out, &one, CHANNELS + 1);
            memcpy(out2, &two, CHANNELS + 1);
        } else {
            memcpy(out, &one, CHANNELS);
            memcpy(out2, &two, CHANNELS);
        }
    }
}
#endif

typedef void RowsAcross(const uint8_t *, const uint8_t *, uint8_t *, uint8_t *, int, const Axis *, int);

static RowsAcross *rows_across_here(void) {
#ifdef AVX2
    if (__builtin_cpu_supports("avx2")) return rows_across_avx2;
#endif
    return rows_across;
}

/* One output row from the rows of `in` that it weighs, `bytes` wide. */
HOT static void rows_down(const uint8_t *in, ptrdiff_t stride, uint8_t *out, int bytes,
                          const int32_t *weight, int count) {
    int x = 0;
    for (; x + COLUMNS <= bytes; x += COLUMNS) {
        int32_t sum[COLUMNS];
        for (int i = 0; i < COLUMNS; i++) sum[i] = HALF;
        for (int k = 0; k < count; k++)
            for (int i = 0; i < COLUMNS; i++) sum[i] += in[k * stride + x + i] * weight[k];
        for (int i = 0; i < COLUMNS; i++) out[x + i] = level(sum[i]);
    }
    for (; x < bytes; x++) {
        int32_t sum = HALF;
        for (int k = 0; k < count; k++) sum += in[k * stride + x] * weight[k];
        out[x] = level(sum);
    }
}

/* `spare` has room for whatever rows lie so near the end that SLACK bytes behind them may be none of
 * ours: the last, or of a narrow image all. */
static void across(const uint8_t *in, ptrdiff_t stride, int rows, uint8_t *out, ptrdiff_t out_stride,
                   int size, const Axis *axis, int flip, uint8_t *spare, int width) {
    size_t bytes = (size_t)width * CHANNELS;
    RowsAcross *two_rows = rows_across_here();
    if (stride < SLACK) {
        for (int y = 0; y < rows; y++) memcpy(spare + (size_t)y * bytes, in + y * stride, bytes);
        in = spare;
        stride = (ptrdiff_t)bytes;
    } else memcpy(spare, in + (rows - 1) * stride, bytes);
    const uint8_t *last = in == spare ? in + (rows - 1) * stride : spare;
    for (int y = 0; y < rows; y += 2) {
        int next = y + 1 < rows ? y + 1 : y; /* an odd last row is made twice */
        two_rows(y == rows - 1 ? last : in + y * stride, next == rows - 1 ? last : in + next * stride,
                 out + y * out_stride, out + next * out_stride, size, axis, flip);
    }
}

static void down(const uint8_t *in, ptrdiff_t stride, int bytes, uint8_t *out, int size,
                 const Axis *axis) {
    for (int y = 0; y < size; y++)
        rows_down(in + axis->first[y] * stride, stride, out + (ptrdiff_t)y * bytes, bytes,
                  axis->weight + (ptrdiff_t)y * axis->taps, axis->count[y]);
}

/* No pass is needed along an axis whose length is right; then it is only copied. */
static void copied(const uint8_t *in, ptrdiff_t stride, int rows, int width, uint8_t *out, int flip) {
    for (int y = 0; y < rows; y++, in += stride, out += width * CHANNELS) {
        if (!flip) {
            memcpy(out, in, (size_t)width * CHANNELS);
            continue;
        }
        for (int x = 0; x < width; x++)
            memcpy(out + (width - 1 - x) * CHANNELS, in + x * CHANNELS, CHANNELS);
    }
}

int resize_crop(const uint8_t *image, int width, Box crop, uint8_t *out, int size,
                int filter, int flip) {
    int w = crop.right - crop.left, h = crop.bottom - crop.top, wide = size * CHANNELS;
    ptrdiff_t stride = (ptrdiff_t)width * CHANNELS;
    const uint8_t *in = image + crop.top * stride + (ptrdiff_t)crop.left * CHANNELS;
    int vertical_first = h - size > 0 && h - size > (w - size) * 2, result = -1;
    Axis x = {0}, y = {0};
    size_t rows = (size_t)(vertical_first ? size : h), cells = (size_t)(vertical_first ? w : size);
    uint8_t *between = malloc(rows * cells * CHANNELS + SLACK);
    size_t kept = stride < SLACK || w * CHANNELS < SLACK ? (size_t)(h > size ? h : size) : 1;
    uint8_t *spare = calloc(kept * (size_t)w * CHANNELS + SLACK, 1);
    if (!between || !spare) goto end;
    if (axis_make(&x, w, size, filter) < 0) goto end;
    if (axis_make(&y, h, size, filter) < 0) goto end_x;
    if (vertical_first) { /* then h is not size */
        ptrdiff_t half = (ptrdiff_t)w * CHANNELS;
        down(in, stride, w * CHANNELS, between, size, &y);
        if (w == size) copied(between, half, size, w, out, flip);
        else across(between, half, size, out, wide, size, &x, flip, spare, w);
    } else {
        uint8_t *target = h == size ? out : between;
        if (w == size) copied(in, stride, h, w, target, flip);
        else across(in, stride, h, target, wide, size, &x, flip, spare, w);
        if (h != size) down(between, wide, wide, out, size, &y);
    }
    result = 0;
    axis_free(&y);
end_x:
    axis_free(&x);
end:
    free(between);
    free(spare);
    return result;
}
