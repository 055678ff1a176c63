/* Samples -> pixels in libjpeg's integer arithmetic: its triangle filter upsamples chroma ("fancy
 * upsampling"), and JFIF's YCbCr becomes RGB. */
#include <stdlib.h>
#include <string.h>

#include "jpeg.h"

/* JFIF's YCbCr -> RGB: 1.402, 0.344136, 0.714136 and 1.772 times 2^16. */
enum { RED = 91881, GREEN_OF_BLUE = -22554, GREEN_OF_RED = -46802, BLUE = 116130, ONE = 1 << 16 };

INLINE uint8_t clipped(int32_t level) {
    return (uint8_t)(level < 0 ? 0 : level > 255 ? 255 : level);
}

HOT static void rgb_plain(const uint8_t *restrict luma, const uint8_t *restrict blue,
                          const uint8_t *restrict red, int width, uint8_t *restrict out) {
    for (int x = 0; x < width; x++) {
        int32_t y = luma[x], cb = blue[x] - 128, cr = red[x] - 128;
        out[3 * x] = clipped(y + ((RED * cr + ONE / 2) >> 16));
        out[3 * x + 1] = clipped(y + ((GREEN_OF_BLUE * cb + GREEN_OF_RED * cr + ONE / 2) >> 16));
        out[3 * x + 2] = clipped(y + ((BLUE * cb + ONE / 2) >> 16));
    }
}

#ifdef AVX2
enum { PIXELS = 16 }; /* at once */

/* (x * factor + 2^15) >> 16 for factors below 2^15. The multiplication cuts off 16 bits of twice the
 * product; adding 1 and halving then rounds as if 2^15 had been added before. */
AVX2 INLINE __m256i scaled(__m256i x, int16_t factor) {
    __m256i twice = _mm256_mulhi_epi16(_mm256_add_epi16(x, x), _mm256_set1_epi16(factor));
    return _mm256_srai_epi16(_mm256_add_epi16(twice, _mm256_set1_epi16(1)), 1);
}

AVX2 INLINE __m256i widened(const uint8_t *levels) {
    return _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)levels));
}

/* The same in 16 bits: whole parts of each factor are added, and only its fraction multiplied. */
AVX2 static void rgb_avx2(const uint8_t *luma, const uint8_t *blue, const uint8_t *red, int width,
                          uint8_t *out) {
    const __m256i middle = _mm256_set1_epi16(128), half = _mm256_set1_epi32(ONE / 2);
    const uint32_t green = (uint32_t)(GREEN_OF_RED + ONE) << 16 | (uint16_t)GREEN_OF_BLUE;
    const __m256i green_factors = _mm256_set1_epi32((int32_t)green);
    const __m256i rg_first = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 8, -1, 1, 9, -1, 2, 10, -1, 3, 11, -1, 4, 12, -1, 5));
    const __m256i b_first = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(-1, -1, 0, -1, -1, 1, -1, -1, 2, -1, -1, 3, -1, -1, 4, -1));
    const __m256i rg_last = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(13, -1, 6, 14, -1, 7, 15, -1, -1, -1, -1, -1, -1, -1, -1, -1));
    const __m256i b_last = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(-1, 5, -1, -1, 6, -1, -1, 7, -1, -1, -1, -1, -1, -1, -1, -1));
    int x = 0;
    for (; x + PIXELS <= width; x += PIXELS, out += CHANNELS * PIXELS) {
        __m256i y = widened(luma + x);
        __m256i cb = _mm256_sub_epi16(widened(blue + x), middle);
        __m256i cr = _mm256_sub_epi16(widened(red + x), middle);
        __m256i r = _mm256_add_epi16(_mm256_add_epi16(y, cr), scaled(cr, RED - ONE));
        __m256i twice_cb = _mm256_add_epi16(cb, cb);
        __m256i b = _mm256_add_epi16(_mm256_add_epi16(y, twice_cb), scaled(cb, BLUE - 2 * ONE));
        __m256i low = _mm256_madd_epi16(_mm256_unpacklo_epi16(cb, cr), green_factors);
        __m256i high = _mm256_madd_epi16(_mm256_unpackhi_epi16(cb, cr), green_factors);
        low = _mm256_srai_epi32(_mm256_add_epi32(low, half), 16);
        high = _mm256_srai_epi32(_mm256_add_epi32(high, half), 16);
        __m256i g = _mm256_add_epi16(_mm256_sub_epi16(y, cr), _mm256_packs_epi32(low, high));
        __m256i rg = _mm256_packus_epi16(r, g), bb = _mm256_packus_epi16(b, b);
        __m256i first =
            _mm256_or_si256(_mm256_shuffle_epi8(rg, rg_first), _mm256_shuffle_epi8(bb, b_first));
        __m256i last =
            _mm256_or_si256(_mm256_shuffle_epi8(rg, rg_last), _mm256_shuffle_epi8(bb, b_last));
        _mm_storeu_si128((__m128i *)out, _mm256_castsi256_si128(first));
        _mm_storel_epi64((__m128i *)(out + 16), _mm256_castsi256_si128(last));
        _mm_storeu_si128((__m128i *)(out + 24), _mm256_extracti128_si256(first, 1));
        _mm_storel_epi64((__m128i *)(out + 40), _mm256_extracti128_si256(last, 1));
    }
    rgb_plain(luma + x, blue + x, red + x, width - x, out);
}
#endif

typedef void Rgb(const uint8_t *, const uint8_t *, const uint8_t *, int, uint8_t *);

static Rgb *rgb_here(void) {
#ifdef AVX2
    if (__builtin_cpu_supports("avx2")) return rgb_avx2;
#endif
    return rgb_plain;
}

/* Four times the mean of two rows in which the nearer one counts 3/4. */
HOT static void weigh_rows(const uint8_t *near, const uint8_t *far, int count, int16_t *out) {
    for (int i = 0; i < count; i++) out[i] = (int16_t)(near[i] * 3 + far[i]);
}

/* Each sample becomes two, of 3/4 of it and 1/4 of its left or right neighbour. The roundings `even`
 * and `odd` differ, as in libjpeg, so that levels do not drift in one direction. */
HOT static void widen(const int16_t *restrict sums, int count, int even, int odd, int shift,
                      uint8_t *restrict out) {
    for (int i = 0; i < count; i++) {
        int this = 3 * sums[i + 1];
        out[2 * i] = (uint8_t)((this + sums[i] + even) >> shift);
        out[2 * i + 1] = (uint8_t)((this + sums[i + 2] + odd) >> shift);
    }
}

static int within(int at, int length) { return at < 0 ? 0 : at < length ? at : length - 1; }

static const uint8_t *row_of(const Plane *plane, int y) {
    return plane->samples + (ptrdiff_t)(y - plane->blocks.top * BLOCK_SIDE) * plane->stride;
}

/* Row y, at full resolution and for the columns of `part`, of a component that is subsampled h x v.
 * Returns where it begins; `sums` and `wide` are scratch memory. */
static const uint8_t *upsampled(const Plane *plane, int h, int v, int y, Box part, int16_t *sums,
                                uint8_t *wide) {
    int origin = plane->blocks.left * BLOCK_SIDE;
    if (h == 1) return row_of(plane, y) + part.left - origin;
    int first = part.left / 2, last = (part.right - 1) / 2, count = last - first + 1;
    const uint8_t *near = row_of(plane, y / v);
    int16_t *middle = sums + 1;
    int before = within(first - 1, plane->width), behind = within(last + 1, plane->width);
    if (v == 1) {
        for (int i = 0; i < count; i++) middle[i] = near[first + i - origin];
        sums[0] = near[before - origin];
        middle[count] = near[behind - origin];
        widen(sums, count, 1, 2, 2, wide);
    } else {
        const uint8_t *far = row_of(plane, within(y / 2 + (y % 2 ? 1 : -1), plane->height));
        weigh_rows(near + first - origin, far + first - origin, count, middle);
        sums[0] = (int16_t)(near[before - origin] * 3 + far[before - origin]);
        middle[count] = (int16_t)(near[behind - origin] * 3 + far[behind - origin]);
        widen(sums, count, 8, 7, 4, wide);
    }
    return wide + part.left % 2;
}

int jpeg_pixels(const Plane planes[COMPONENTS], int count, int h, int v, Box part, uint8_t *out) {
    int width = part.right - part.left;
    Rgb *to_rgb = rgb_here();
    size_t room = (size_t)width + 2 * SLACK;
    int16_t *sums = malloc(room * sizeof *sums);
    uint8_t *wide = malloc(2 * room);
    if (sums && wide)
        for (int y = part.top; y < part.bottom; y++, out += (ptrdiff_t)width * CHANNELS) {
            const uint8_t *luma = row_of(&planes[0], y) + part.left - planes[0].blocks.left * BLOCK_SIDE;
            if (count == 1) {
                for (int x = 0; x < width; x++) memset(out + x * CHANNELS, luma[x], CHANNELS);
                continue;
            }
            const uint8_t *blue = upsampled(&planes[1], h, v, y, part, sums, wide);
            const uint8_t *red = upsampled(&planes[2], h, v, y, part, sums, wide + room);
            to_rgb(luma, blue, red, width, out);
        }
    int ok = sums && wide;
    free(sums);
    free(wide);
    return ok;
}
