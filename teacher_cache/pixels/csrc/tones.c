/* RandAugment's operations on levels, as Pillow's ImageOps and ImageEnhance compute them. */
#include <stdlib.h>
#include <string.h>

#include "native.h"

enum { LEVELS = 256, BLOCK = 256 };

HOT void invert(uint8_t *pixels, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) pixels[i] = (uint8_t)(255 - pixels[i]);
}

HOT void posterize(uint8_t *pixels, size_t bytes, int bits) {
    const uint8_t mask = (uint8_t)~((1 << (8 - bits)) - 1);
    for (size_t i = 0; i < bytes; i++) pixels[i] &= mask;
}

/* Levels of `threshold` (0 to 256) and above are inverted. */
HOT void solarize(uint8_t *pixels, size_t bytes, int threshold) {
    if (threshold > 255) return;
    const uint8_t t = (uint8_t)threshold;
    for (size_t i = 0; i < bytes; i++)
        pixels[i] = pixels[i] < t ? pixels[i] : (uint8_t)(255 - pixels[i]);
}

/* Levels below 128 grow by `added` (0 to 128). */
HOT void solarize_add(uint8_t *pixels, size_t bytes, int added) {
    const uint8_t more = (uint8_t)added;
    for (size_t i = 0; i < bytes; i++) {
        uint8_t level = pixels[i], sum = (uint8_t)(level + more);
        sum = sum < level ? 255 : sum;
        pixels[i] = level < 128 ? sum : level;
    }
}

/* Image.blend in single precision: from `gray` towards `level` by factor, cut off. */
INLINE uint8_t blend(int gray, int level, float factor) {
    int sum = (int)((float)gray + factor * (float)(level - gray));
    sum = sum < 0 ? 0 : sum;
    return (uint8_t)(sum > 255 ? 255 : sum);
}

HOT static void blend_constant(uint8_t *pixels, size_t bytes, int gray, float factor) {
    for (size_t i = 0; i < bytes; i++) pixels[i] = blend(gray, pixels[i], factor);
}

HOT static void blend_with(uint8_t *pixels, const uint8_t *gray, size_t bytes, float factor) {
    for (size_t i = 0; i < bytes; i++) pixels[i] = blend(gray[i], pixels[i], factor);
}

/* ITU-R 601 luma, as Image.convert("L") */
HOT static void luma(const uint8_t *restrict pixels, uint8_t *restrict gray, size_t count) {
    for (size_t i = 0; i < count; i++)
        gray[i] = (uint8_t)((pixels[3 * i] * 19595u + pixels[3 * i + 1] * 38470u +
                             pixels[3 * i + 2] * 7471u + 0x8000u) >> 16);
}

HOT static uint64_t sum_of(const uint8_t *levels, size_t count) {
    uint32_t sum = 0; /* at most BLOCK levels */
    for (size_t i = 0; i < count; i++) sum += levels[i];
    return sum;
}

void brightness(uint8_t *pixels, size_t bytes, float factor) {
    blend_constant(pixels, bytes, 0, factor);
}

void contrast(uint8_t *pixels, size_t count, float factor) {
    uint8_t gray[BLOCK];
    uint64_t sum = 0;
    for (size_t at = 0; at < count; at += BLOCK) {
        size_t some = count - at < BLOCK ? count - at : BLOCK;
        luma(pixels + 3 * at, gray, some);
        sum += sum_of(gray, some);
    }
    int mean = (int)((double)sum / (double)count + 0.5);
    blend_constant(pixels, 3 * count, mean, factor);
}

void color(uint8_t *pixels, size_t count, float factor) {
    uint8_t gray[BLOCK], three[3 * BLOCK];
    for (size_t at = 0; at < count; at += BLOCK) {
        size_t some = count - at < BLOCK ? count - at : BLOCK;
        luma(pixels + 3 * at, gray, some);
        for (size_t i = 0; i < some; i++)
            three[3 * i] = three[3 * i + 1] = three[3 * i + 2] = gray[i];
        blend_with(pixels + 3 * at, three, 3 * some, factor);
    }
}

/* ImageFilter.SMOOTH is (sum of nine + 4 * middle) / 13, rounded; 13 is odd, so never a tie, and
 * Pillow's floats are nowhere near 1/26 off. 40330 / 2^20 is 1 / 26 up to 6643 (tested). */
HOT static void smooth(const uint8_t *in, ptrdiff_t stride, uint8_t *out, size_t bytes) {
    const uint8_t *up = in - stride, *low = in + stride;
    for (size_t i = 0; i < bytes; i++) {
        uint32_t sum = up[i] + up[i + 3] + up[i + 6] + in[i] + 5u * in[i + 3] + in[i + 6] + low[i] +
                       low[i + 3] + low[i + 6];
        out[i] = (uint8_t)(((2 * sum + 13) * 40330u) >> 20);
    }
}

int sharpness(uint8_t *pixels, int width, int height, float factor) {
    if (width < 3 || height < 3) return 0; /* Pillow's filter leaves edges as they are: all is edge */
    size_t stride = (size_t)width * CHANNELS, inner = stride - 2 * CHANNELS;
    uint8_t *copy = malloc(stride * (size_t)height), *row = malloc(inner);
    if (copy && row) {
        memcpy(copy, pixels, stride * (size_t)height);
        for (int y = 1; y < height - 1; y++) {
            smooth(copy + (size_t)y * stride, (ptrdiff_t)stride, row, inner);
            blend_with(pixels + (size_t)y * stride + CHANNELS, row, inner, factor);
        }
    }
    int result = copy && row ? 0 : -1;
    free(copy);
    free(row);
    return result;
}

static void look_up(uint8_t *pixels, size_t count, uint8_t table[CHANNELS][LEVELS]) {
    for (size_t i = 0; i < count; i++, pixels += CHANNELS)
        for (int c = 0; c < CHANNELS; c++) pixels[c] = table[c][pixels[c]];
}

HOT static void extremes(const uint8_t *pixels, size_t count, uint8_t least[3], uint8_t most[3]) {
    enum { SPAN = 96 };
    uint8_t low[SPAN], high[SPAN];
    memset(low, 255, SPAN);
    memset(high, 0, SPAN);
    size_t bytes = count * CHANNELS, at = 0;
    for (; at + SPAN <= bytes; at += SPAN)
        for (int i = 0; i < SPAN; i++) {
            uint8_t level = pixels[at + (size_t)i];
            low[i] = low[i] < level ? low[i] : level;
            high[i] = high[i] > level ? high[i] : level;
        }
    for (int i = 0; at < bytes; at++, i++) {
        low[i] = low[i] < pixels[at] ? low[i] : pixels[at];
        high[i] = high[i] > pixels[at] ? high[i] : pixels[at];
    }
    for (int i = 0; i < SPAN; i++) {
        least[i % 3] = i < 3 || low[i] < least[i % 3] ? low[i] : least[i % 3];
        most[i % 3] = i < 3 || high[i] > most[i % 3] ? high[i] : most[i % 3];
    }
}

void autocontrast(uint8_t *pixels, size_t count) {
    uint8_t least[3], most[3], table[CHANNELS][LEVELS];
    extremes(pixels, count, least, most);
    for (int c = 0; c < CHANNELS; c++) {
        double scale = most[c] > least[c] ? 255.0 / (most[c] - least[c]) : 1.0;
        double offset = most[c] > least[c] ? -least[c] * scale : 0.0;
        for (int i = 0; i < LEVELS; i++) {
            int level = (int)(i * scale + offset);
            table[c][i] = (uint8_t)(level < 0 ? 0 : level > 255 ? 255 : level);
        }
    }
    look_up(pixels, count, table);
}

static void equalized(const uint32_t histogram[LEVELS], uint8_t table[LEVELS]) {
    uint64_t sum = 0, last = 0;
    for (int i = 0; i < LEVELS; i++) {
        sum += histogram[i];
        last = histogram[i] ? histogram[i] : last;
    }
    /* a channel of one level, or of too few pixels, stays as it is */
    uint64_t step = (sum - last) / 255, n = step / 2;
    for (int i = 0; i < LEVELS; i++) {
        uint64_t level = step ? n / step : (uint64_t)i;
        table[i] = (uint8_t)(level > 255 ? 255 : level);
        n += histogram[i];
    }
}

void equalize(uint8_t *pixels, size_t count) {
    /* two histograms, so that equal levels of neighbouring pixels do not wait for each other */
    uint32_t histogram[2][CHANNELS][LEVELS];
    uint8_t table[CHANNELS][LEVELS];
    memset(histogram, 0, sizeof histogram);
    for (size_t i = 0; i < count; i++)
        for (int c = 0; c < CHANNELS; c++) histogram[i & 1][c][pixels[3 * i + (size_t)c]]++;
    for (int c = 0; c < CHANNELS; c++) {
        for (int i = 0; i < LEVELS; i++) histogram[0][c][i] += histogram[1][c][i];
        equalized(histogram[0][c], table[c]);
    }
    look_up(pixels, count, table);
}
