/* A bilinear affine map as Pillow's Image.transform(AFFINE, BILINEAR) computes it: in doubles that are
 * truncated to whole levels. Pixels whose source lies outside the image get the fill colour. */
#include <stdlib.h>
#include <string.h>

#include "native.h"

typedef uint8_t Bytes16 __attribute__((vector_size(16)));
typedef int32_t Ints4 __attribute__((vector_size(16)));
typedef double Doubles4 __attribute__((vector_size(32)));

/* Pixel n of the five in 16 bytes; the fourth lane is 0. */
INLINE Ints4 pixel_of(Bytes16 bytes, int n) {
    const Bytes16 zero = {0};
    const uint8_t r = (uint8_t)(CHANNELS * n), g = (uint8_t)(r + 1), b = (uint8_t)(r + 2);
    return (Ints4)__builtin_shuffle(
        bytes, zero,
        (Bytes16){r, 16, 16, 16, g, 16, 16, 16, b, 16, 16, 16, 16, 16, 16, 16});
}

/* Four lanes, clipped to 0..255, as the first four bytes. */
INLINE Bytes16 levels_of(Ints4 lanes) {
    lanes &= ~(lanes >> 31);
    Ints4 over = lanes > 255;
    lanes = (lanes & ~over) | (over & 255);
    const Bytes16 lowest = {0, 4, 8, 12};
    return __builtin_shuffle((Bytes16)lanes, lowest);
}

INLINE Bytes16 bytes_at(const uint8_t *pixel) {
    Bytes16 bytes;
    memcpy(&bytes, pixel, sizeof bytes); /* past the end too: SLACK */
    return bytes;
}

INLINE Doubles4 doubles_of(Bytes16 bytes, int pixel) {
    return __builtin_convertvector(pixel_of(bytes, pixel), Doubles4);
}

/* Four pixels, two in each of `upper` and `lower`; the fractions are of the way to the second. */
INLINE Bytes16 mixed(Bytes16 upper, Bytes16 lower, double dx, double dy) {
    Doubles4 above = doubles_of(upper, 0), below = doubles_of(lower, 0);
    above += (doubles_of(upper, 1) - above) * dx;
    below += (doubles_of(lower, 1) - below) * dx;
    above += (below - above) * dy;
    return levels_of(__builtin_convertvector(above, Ints4));
}

INLINE int clip(int at, int length) { return at < 0 ? 0 : at < length ? at : length - 1; }

/* At the image's edge: pixels left and left + 1 of a row, each the nearest that there is. */
static Bytes16 pair_at(const uint8_t *in, int left, int top, int width, int height) {
    const uint8_t *row = in + (ptrdiff_t)clip(top, height) * width * CHANNELS;
    Bytes16 pair = {0};
    memcpy(&pair, row + clip(left, width) * CHANNELS, CHANNELS);
    memcpy((uint8_t *)&pair + CHANNELS, row + clip(left + 1, width) * CHANNELS, CHANNELS);
    return pair;
}

/* Writes 1 byte past every pixel but the row's last. */
HOT static void affine_row(const uint8_t *in, uint8_t *out, int row, int width, int height,
                           const double *m, const uint8_t *fill) {
    const double v = row + 0.5, mx = m[1] * v, my = m[4] * v;
    const ptrdiff_t stride = (ptrdiff_t)width * CHANNELS;
    for (int i = 0; i < width; i++, out += CHANNELS) {
        double u = i + 0.5, x = m[0] * u + mx + m[2], y = m[3] * u + my + m[5];
        if (!(x >= 0.0 && x < width && y >= 0.0 && y < height)) {
            memcpy(out, fill, CHANNELS);
            continue;
        }
        x -= 0.5;
        y -= 0.5;
        int left = (int)x - (x < 0.0), top = (int)y - (y < 0.0);
        Bytes16 upper, lower, mix;
        if (left >= 0 && left < width - 1 && top >= 0 && top < height - 1) {
            const uint8_t *pixel = in + top * stride + left * CHANNELS;
            upper = bytes_at(pixel);
            lower = bytes_at(pixel + stride);
        } else {
            upper = pair_at(in, left, top, width, height);
            lower = pair_at(in, left, top + 1, width, height);
        }
        mix = mixed(upper, lower, x - left, y - top);
        if (i < width - 1) memcpy(out, &mix, CHANNELS + 1);
        else memcpy(out, &mix, CHANNELS);
    }
}

#ifdef AVX2
INLINE AVX2 __m256d doubles_avx2(__m128i bytes, __m128i spread) {
    return _mm256_cvtepi32_pd(_mm_shuffle_epi8(bytes, spread));
}

INLINE AVX2 __m256d towards(__m256d from, __m256d to, __m256d share) {
    return _mm256_add_pd(from, _mm256_mul_pd(_mm256_sub_pd(to, from), share));
}

/* Along which axes fractions of a pixel may be other than 0: a share of 0 changes nothing. */
typedef enum { ALONG_X = 1, ALONG_Y = 2, ALONG_BOTH = 3 } Along;

static Along along_of(const double m[6]) {
    int stays_x = m[0] == 1.0 && m[1] == 0.0 && m[2] == 0.0;
    int stays_y = m[3] == 0.0 && m[4] == 1.0 && m[5] == 0.0;
    return stays_y ? ALONG_X : stays_x ? ALONG_Y : ALONG_BOTH;
}

/* `mixed`; `along` is a constant where this is inlined. */
INLINE AVX2 __m128i mixed_avx2(__m128i upper, __m128i lower, double dx, double dy, Along along) {
    const __m128i first =
        _mm_setr_epi8(0, -1, -1, -1, 1, -1, -1, -1, 2, -1, -1, -1, -1, -1, -1, -1);
    const __m128i next = _mm_setr_epi8(3, -1, -1, -1, 4, -1, -1, -1, 5, -1, -1, -1, -1, -1, -1, -1);
    __m256d share = _mm256_set1_pd(dx), above = doubles_avx2(upper, first);
    if (along & ALONG_X) above = towards(above, doubles_avx2(upper, next), share);
    if (along & ALONG_Y) {
        __m256d below = doubles_avx2(lower, first);
        if (along & ALONG_X) below = towards(below, doubles_avx2(lower, next), share);
        above = towards(above, below, _mm256_set1_pd(dy));
    }
    __m128i levels = _mm256_cvttpd_epi32(above); /* 0 to 255 */
    levels = _mm_packs_epi32(levels, levels);
    return _mm_packus_epi16(levels, levels);
}

/* The same, places of four pixels at once and a pixel's channels at once. */
INLINE AVX2 void row_along(const uint8_t *in, uint8_t *out, int row, int width, int height,
                           const double *m, const uint8_t *fill, Along along) {
    const __m256d half = _mm256_set1_pd(0.5), zero = _mm256_setzero_pd();
    const __m256d wide = _mm256_set1_pd(width), high = _mm256_set1_pd(height);
    const double v = row + 0.5;
    const __m256d mx = _mm256_set1_pd(m[1] * v), my = _mm256_set1_pd(m[4] * v);
    const ptrdiff_t stride = (ptrdiff_t)width * CHANNELS;
    for (int start = 0; start < width; start += 4) {
        int32_t left[4], top[4];
        double dx[4], dy[4];
        __m256d u = _mm256_cvtepi32_pd(_mm_setr_epi32(start, start + 1, start + 2, start + 3));
        u = _mm256_add_pd(u, half);
        __m256d x = _mm256_add_pd(_mm256_add_pd(_mm256_mul_pd(_mm256_set1_pd(m[0]), u), mx),
                                  _mm256_set1_pd(m[2]));
        __m256d y = _mm256_add_pd(_mm256_add_pd(_mm256_mul_pd(_mm256_set1_pd(m[3]), u), my),
                                  _mm256_set1_pd(m[5]));
        __m256d in_x = _mm256_and_pd(_mm256_cmp_pd(x, zero, _CMP_GE_OQ),
                                     _mm256_cmp_pd(x, wide, _CMP_LT_OQ));
        __m256d in_y = _mm256_and_pd(_mm256_cmp_pd(y, zero, _CMP_GE_OQ),
                                     _mm256_cmp_pd(y, high, _CMP_LT_OQ));
        int inside = _mm256_movemask_pd(_mm256_and_pd(in_x, in_y));
        x = _mm256_sub_pd(x, half);
        y = _mm256_sub_pd(y, half);
        __m256d x_floor = _mm256_floor_pd(x), y_floor = _mm256_floor_pd(y);
        _mm_storeu_si128((__m128i *)left, _mm256_cvttpd_epi32(x_floor));
        _mm_storeu_si128((__m128i *)top, _mm256_cvttpd_epi32(y_floor));
        _mm256_storeu_pd(dx, _mm256_sub_pd(x, x_floor));
        _mm256_storeu_pd(dy, _mm256_sub_pd(y, y_floor));
        for (int i = 0; i < 4 && start + i < width; i++, out += CHANNELS) {
            if (!(inside >> i & 1)) {
                memcpy(out, fill, CHANNELS);
                continue;
            }
            __m128i upper, lower;
            if (left[i] >= 0 && left[i] < width - 1 && top[i] >= 0 && top[i] < height - 1) {
                const uint8_t *pixel = in + top[i] * stride + left[i] * CHANNELS;
                upper = _mm_loadu_si128((const __m128i *)pixel);
                lower = _mm_loadu_si128((const __m128i *)(pixel + stride));
            } else {
                upper = (__m128i)pair_at(in, left[i], top[i], width, height);
                lower = (__m128i)pair_at(in, left[i], top[i] + 1, width, height);
            }
            int32_t mix = _mm_cvtsi128_si32(mixed_avx2(upper, lower, dx[i], dy[i], along));
            if (start + i < width - 1) memcpy(out, &mix, CHANNELS + 1);
            else memcpy(out, &mix, CHANNELS);
        }
    }
}

AVX2 static void affine_row_avx2(const uint8_t *in, uint8_t *out, int row, int width, int height,
                                 const double *m, const uint8_t *fill) {
    Along along = along_of(m);
    if (along == ALONG_X) row_along(in, out, row, width, height, m, fill, ALONG_X);
    else if (along == ALONG_Y) row_along(in, out, row, width, height, m, fill, ALONG_Y);
    else row_along(in, out, row, width, height, m, fill, ALONG_BOTH);
}
#endif

typedef void AffineRow(const uint8_t *, uint8_t *, int, int, int, const double *, const uint8_t *);

static AffineRow *affine_row_here(void) {
#ifdef AVX2
    if (__builtin_cpu_supports("avx2")) return affine_row_avx2;
#endif
    return affine_row;
}

int affine(uint8_t *out, int width, int height, const double matrix[6], const uint8_t fill[3]) {
    size_t bytes = (size_t)width * (size_t)height * CHANNELS;
    uint8_t *in = malloc(bytes + SLACK);
    if (!in) return -1;
    memcpy(in, out, bytes);
    memset(in + bytes, 0, SLACK);
    AffineRow *one_row = affine_row_here();
    for (int y = 0; y < height; y++)
        one_row(in, out + (size_t)y * (size_t)width * CHANNELS, y, width, height, matrix, fill);
    free(in);
    return 0;
}
