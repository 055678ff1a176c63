/* A bilinear affine map, as Pillow's Image.transform(AFFINE, BILINEAR) computes it: in doubles,
 * cut off to whole levels. What lies outside the image becomes the fill colour. */
#include <stdlib.h>
#include <string.h>

#include "native.h"

typedef double Doubles4 __attribute__((vector_size(32)));

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

int affine(uint8_t *out, int width, int height, const double matrix[6], const uint8_t fill[3]) {
    size_t bytes = (size_t)width * (size_t)height * CHANNELS;
    uint8_t *in = malloc(bytes + SLACK);
    if (!in) return -1;
    memcpy(in, out, bytes);
    memset(in + bytes, 0, SLACK);
    for (int y = 0; y < height; y++)
        affine_row(in, out + (size_t)y * (size_t)width * CHANNELS, y, width, height, matrix, fill);
    free(in);
    return 0;
}
