/* What the files of teacher_cache._native share.
 *
 * Every function gives the very bytes that Pillow gives: same integers, same order of the few
 * floating-point operations, no fused multiply-add (the build says -ffp-contract=off). Pixels are
 * uint8, red, green, blue, [height][width][3] without gaps.
 */
#ifndef RETORT_NATIVE_H
#define RETORT_NATIVE_H

#include <stddef.h>
#include <stdint.h>
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(RETORT_PLAIN)
#include <immintrin.h>
#endif

/* Hot functions are compiled twice where the loader can choose by processor: plain and AVX2. The
 * hottest are written twice. */
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(RETORT_PLAIN)
#define HOT __attribute__((target_clones("avx2", "default")))
#define AVX2 __attribute__((target("avx2")))
#else
#define HOT
#endif
#define INLINE static inline __attribute__((always_inline))

enum { CHANNELS = 3, SLACK = 16 }; /* SLACK: bytes that vector loads may read past a buffer */

typedef struct {
    int left, top, right, bottom;
} Box;

typedef uint8_t Bytes16 __attribute__((vector_size(16)));
typedef int32_t Ints4 __attribute__((vector_size(16)));

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

/* resize.c: 0, or -1 without memory */
enum { FILTER_BOX, FILTER_BILINEAR, FILTER_BICUBIC, FILTERS };
int resize_crop(const uint8_t *image, int width, Box crop, uint8_t *out, int size,
                int filter, int flip);

/* affine.c: out <- out sampled at (m0 x + m1 y + m2, m3 x + m4 y + m5), bilinear; 0, or -1 */
int affine(uint8_t *out, int width, int height, const double matrix[6], const uint8_t fill[3]);

/* tones.c: in place */
void invert(uint8_t *pixels, size_t bytes);
void posterize(uint8_t *pixels, size_t bytes, int bits);
void solarize(uint8_t *pixels, size_t bytes, int threshold);
void solarize_add(uint8_t *pixels, size_t bytes, int added);
void brightness(uint8_t *pixels, size_t bytes, float factor);
void contrast(uint8_t *pixels, size_t count, float factor);
void color(uint8_t *pixels, size_t count, float factor);
int sharpness(uint8_t *pixels, int width, int height, float factor);
void autocontrast(uint8_t *pixels, size_t count);
void equalize(uint8_t *pixels, size_t count);

/* jpeg.c: a plain baseline JPEG, or 0: whatever is not plain is left to Pillow */
typedef struct Jpeg Jpeg;
int jpeg_size(const uint8_t *data, size_t size, int *width, int *height);
int jpeg_decode(const uint8_t *data, size_t size, Box part, uint8_t *out);

#endif
