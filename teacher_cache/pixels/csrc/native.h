/* What the files of teacher_cache.pixels._native share.
 *
 * Every function gives the very bytes that Pillow gives: it computes with the same integers, does the
 * few floating-point operations in the same order, and uses no fused multiply-add (the build says
 * -ffp-contract=off). Pixels are uint8: red, green, blue, [height][width][3] without gaps.
 */
#ifndef RETORT_NATIVE_H
#define RETORT_NATIVE_H

#include <stddef.h>
#include <stdint.h>
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(RETORT_PLAIN)
#include <immintrin.h>
#endif

/* Where the dynamic loader can choose by processor, hot functions are compiled twice, plain and for
 * AVX2. The hottest are also written twice. */
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(RETORT_PLAIN)
#define HOT __attribute__((target_clones("avx2", "default")))
#define AVX2 __attribute__((target("avx2")))
#else
#define HOT
#endif
#define INLINE static inline __attribute__((always_inline))

enum { CHANNELS = 3, SLACK = 16 }; /* SLACK: how many bytes behind a buffer vector loads may read */

typedef struct {
    int left, top, right, bottom;
} Box;

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

/* jpeg.c: 1 for a baseline JPEG without anything unusual; 0 for any other, which Pillow decodes */
typedef struct Jpeg Jpeg;
int jpeg_size(const uint8_t *data, size_t size, int *width, int *height);
int jpeg_decode(const uint8_t *data, size_t size, Box part, uint8_t *out);

#endif
