/* Antialiased separable resize of a crop, as Pillow 13's Image.resize computes it: each pass sums in
 * int32 and rounds to uint8.
 */
#include "resize.h"

#include <stdlib.h>
#include <string.h>

INLINE uint8_t level(int32_t sum) {
    sum >>= WEIGHT_BITS;
    return (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

/* One output row of the pass across, mirrored if `flip`. */
typedef struct {
    const uint8_t *in; /* readable to SLACK bytes past the last pixel that a weight reaches */
    uint8_t *out;
} Across;

HOT static void row_across(Across row, int size, const Axis *axis, int flip) {
    for (int at = 0; at < size; at++) {
        int x = flip ? size - 1 - at : at;
        const uint8_t *pixel = row.in + CHANNELS * (ptrdiff_t)axis->first[x];
        const int32_t *weight = axis->weight + (ptrdiff_t)x * axis->taps;
        int32_t sum[CHANNELS] = {HALF, HALF, HALF};
        for (int k = 0; k < axis->taps; k++)
            for (int c = 0; c < CHANNELS; c++) sum[c] += pixel[CHANNELS * k + c] * weight[k];
        for (int c = 0; c < CHANNELS; c++) row.out[CHANNELS * at + c] = level(sum[c]);
    }
}

static void two_rows_across(Across one, Across two, int size, const Axis *axis, int flip) {
    row_across(one, size, axis, flip);
    if (two.out != one.out) row_across(two, size, axis, flip);
}

/* One output row from the `taps` rows of `in` that it weighs, `bytes` wide. */
HOT static void row_down(const uint8_t *in, ptrdiff_t stride, uint8_t *out, int bytes, const Axis *axis,
                         int y) {
    const int32_t *weight = axis->weight + (ptrdiff_t)y * axis->taps;
    int taps = axis->taps <= axis->length ? axis->taps : axis->length;
    for (int x = 0; x < bytes; x++) {
        int32_t sum = HALF;
        for (int k = 0; k < taps; k++) sum += in[k * stride + x] * weight[k];
        out[x] = level(sum);
    }
}

#ifdef AVX2
/* Sums of products with both halves of the weights. */
typedef struct {
    __m256i upper, lower;
} Sum;

AVX2 INLINE Sum sum_of_none(void) { return (Sum){_mm256_setzero_si256(), _mm256_setzero_si256()}; }

/* `two`: in each 32 bits a level that the first weight is for and one for the second. */
AVX2 INLINE void add_two(Sum *sum, __m256i two, __m256i upper_two, __m256i lower_two) {
    sum->upper = _mm256_add_epi32(sum->upper, _mm256_madd_epi16(two, upper_two));
    sum->lower = _mm256_add_epi32(sum->lower, _mm256_madd_epi16(two, lower_two));
}

AVX2 INLINE __m256i levels_of_sum(Sum sum) {
    __m256i all = _mm256_add_epi32(_mm256_slli_epi32(sum.upper, LOWER_BITS), sum.lower);
    return _mm256_srai_epi32(_mm256_add_epi32(all, _mm256_set1_epi32(HALF)), WEIGHT_BITS);
}

/* Levels of four sums, clipped: both packs saturate. */
AVX2 INLINE __m256i packed(const Sum sum[4]) {
    __m256i low = _mm256_packs_epi32(levels_of_sum(sum[0]), levels_of_sum(sum[1]));
    __m256i high = _mm256_packs_epi32(levels_of_sum(sum[2]), levels_of_sum(sum[3]));
    return _mm256_packus_epi16(low, high);
}

AVX2 INLINE __m256i rows_at(const uint8_t *one, const uint8_t *two) {
    __m256i low = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)one));
    return _mm256_inserti128_si256(low, _mm_loadu_si128((const __m128i *)two), 1);
}

/* One pixel of both rows, a row in each half of a register; `pairs` is axis->taps / 2, a constant
 * where this is inlined with one. */
AVX2 INLINE Sum pixel_across(Across one, Across two, const Axis *axis, int x, int pairs) {
    const __m256i first_two = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
    const __m256i next_two = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1));
    ptrdiff_t from = CHANNELS * (ptrdiff_t)axis->first[x];
    const uint8_t *a = one.in + from, *b = two.in + from;
    const int32_t *upper = axis->upper_two + x * pairs, *lower = axis->lower_two + x * pairs;
    Sum sum = sum_of_none();
    for (int k = 0; k < pairs; k += 2, a += 4 * CHANNELS, b += 4 * CHANNELS) {
        __m256i both = rows_at(a, b);
        add_two(&sum, _mm256_shuffle_epi8(both, first_two), _mm256_set1_epi32(upper[k]),
                _mm256_set1_epi32(lower[k]));
        if (k + 1 < pairs)
            add_two(&sum, _mm256_shuffle_epi8(both, next_two), _mm256_set1_epi32(upper[k + 1]),
                    _mm256_set1_epi32(lower[k + 1]));
    }
    return sum;
}

AVX2 INLINE void store12(uint8_t *out, __m128i levels) {
    int32_t last = _mm_extract_epi32(levels, 2);
    _mm_storel_epi64((__m128i *)out, levels);
    memcpy(out + 8, &last, sizeof last);
}

AVX2 INLINE void rows_across_by(Across one, Across two, int size, const Axis *axis, int flip,
                                int pairs) {
    const __m256i together = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
    int at = 0, step = flip ? -1 : 1;
    for (int x = flip ? size - 1 : 0; at + 4 <= size; at += 4, x += 4 * step) {
        Sum sum[4];
        for (int i = 0; i < 4; i++) sum[i] = pixel_across(one, two, axis, x + i * step, pairs);
        __m256i levels = _mm256_shuffle_epi8(packed(sum), together);
        store12(one.out + CHANNELS * at, _mm256_castsi256_si128(levels));
        store12(two.out + CHANNELS * at, _mm256_extracti128_si256(levels, 1));
    }
    for (; at < size; at++) {
        Sum sum[4] = {pixel_across(one, two, axis, flip ? size - 1 - at : at, pairs)};
        __m256i levels = packed(sum);
        int32_t first = _mm_cvtsi128_si32(_mm256_castsi256_si128(levels));
        int32_t second = _mm_cvtsi128_si32(_mm256_extracti128_si256(levels, 1));
        memcpy(one.out + CHANNELS * at, &first, CHANNELS);
        memcpy(two.out + CHANNELS * at, &second, CHANNELS);
    }
}

AVX2 static void two_rows_across_avx2(Across one, Across two, int size, const Axis *axis, int flip) {
    int pairs = axis->taps / 2;
    if (pairs == 2) rows_across_by(one, two, size, axis, flip, 2);
    else if (pairs == 3) rows_across_by(one, two, size, axis, flip, 3);
    else if (pairs == 4) rows_across_by(one, two, size, axis, flip, 4);
    else rows_across_by(one, two, size, axis, flip, pairs);
}

enum { COLUMNS = 32 };

AVX2 INLINE void columns_down(const uint8_t *in, ptrdiff_t stride, uint8_t *out, const int32_t *upper,
                              const int32_t *lower, int pairs, int rows) {
    const __m256i zero = _mm256_setzero_si256();
    Sum sum[4] = {sum_of_none(), sum_of_none(), sum_of_none(), sum_of_none()};
    for (int k = 0; k < pairs; k++, in += 2 * stride) {
        __m256i one = _mm256_loadu_si256((const __m256i *)in);
        __m256i two = _mm256_loadu_si256((const __m256i *)(2 * k + 1 < rows ? in + stride : in));
        __m256i low = _mm256_unpacklo_epi8(one, two), high = _mm256_unpackhi_epi8(one, two);
        __m256i upper_two = _mm256_set1_epi32(upper[k]), lower_two = _mm256_set1_epi32(lower[k]);
        add_two(&sum[0], _mm256_unpacklo_epi8(low, zero), upper_two, lower_two);
        add_two(&sum[1], _mm256_unpackhi_epi8(low, zero), upper_two, lower_two);
        add_two(&sum[2], _mm256_unpacklo_epi8(high, zero), upper_two, lower_two);
        add_two(&sum[3], _mm256_unpackhi_epi8(high, zero), upper_two, lower_two);
    }
    _mm256_storeu_si256((__m256i *)out, packed(sum));
}

AVX2 static void row_down_avx2(const uint8_t *in, ptrdiff_t stride, uint8_t *out, int bytes,
                               const Axis *axis, int y) {
    if (bytes < COLUMNS) {
        row_down(in, stride, out, bytes, axis, y);
        return;
    }
    int pairs = axis->taps / 2;
    const int32_t *upper = axis->upper_two + y * pairs, *lower = axis->lower_two + y * pairs;
    for (int x = 0; x < bytes; x += COLUMNS) {
        int at = x + COLUMNS <= bytes ? x : bytes - COLUMNS; /* the last may overlap */
        columns_down(in + at, stride, out + at, upper, lower, pairs, axis->length);
    }
}
#endif

typedef struct {
    void (*two_rows_across)(Across one, Across two, int size, const Axis *axis, int flip);
    void (*row_down)(const uint8_t *in, ptrdiff_t stride, uint8_t *out, int bytes, const Axis *axis,
                     int y);
} Passes;

static Passes passes_here(void) {
#ifdef AVX2
    if (__builtin_cpu_supports("avx2")) return (Passes){two_rows_across_avx2, row_down_avx2};
#endif
    return (Passes){two_rows_across, row_down};
}

/* `spare` has room for whatever rows lie so near the end that SLACK bytes behind them may be none of
 * ours: the last, or of a narrow image all. */
static void across(const uint8_t *in, ptrdiff_t stride, int rows, uint8_t *out, ptrdiff_t out_stride,
                   int size, const Axis *axis, int flip, uint8_t *spare) {
    size_t bytes = (size_t)axis->length * CHANNELS;
    Passes passes = passes_here();
    if (stride < SLACK) {
        for (int y = 0; y < rows; y++) memcpy(spare + (size_t)y * bytes, in + y * stride, bytes);
        in = spare;
        stride = (ptrdiff_t)bytes;
    } else memcpy(spare, in + (rows - 1) * stride, bytes);
    const uint8_t *last = in == spare ? in + (rows - 1) * stride : spare;
    for (int y = 0; y < rows; y += 2) {
        int next = y + 1 < rows ? y + 1 : y; /* an odd last row is made twice */
        Across one = {y == rows - 1 ? last : in + y * stride, out + y * out_stride};
        Across two = {next == rows - 1 ? last : in + next * stride, out + next * out_stride};
        passes.two_rows_across(one, two, size, axis, flip);
    }
}

static void down(const uint8_t *in, ptrdiff_t stride, int bytes, uint8_t *out, int size,
                 const Axis *axis) {
    Passes passes = passes_here();
    for (int y = 0; y < size; y++)
        passes.row_down(in + axis->first[y] * stride, stride, out + (ptrdiff_t)y * bytes, bytes, axis, y);
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
    if (axis_make(&x, w, size, filter) < 0 || axis_make(&y, h, size, filter) < 0) goto end;
    if (vertical_first) { /* then h is not size */
        ptrdiff_t half = (ptrdiff_t)w * CHANNELS;
        down(in, stride, w * CHANNELS, between, size, &y);
        if (w == size) copied(between, half, size, w, out, flip);
        else across(between, half, size, out, wide, size, &x, flip, spare);
    } else {
        uint8_t *target = h == size ? out : between;
        if (w == size) copied(in, stride, h, w, target, flip);
        else across(in, stride, h, target, wide, size, &x, flip, spare);
        if (h != size) down(between, wide, wide, out, size, &y);
    }
    result = 0;
end:
    axis_free(&x);
    axis_free(&y);
    free(between);
    free(spare);
    return result;
}
