/* A bilinear affine map, as Pillow's Image.transform(AFFINE, BILINEAR) computes it: in doubles,
 * cut off to whole levels. What lies outside the image becomes the fill colour. */
#include <stdlib.h>
#include <string.h>

#include "native.h"

typedef uint8_t Bytes4 __attribute__((vector_size(4)));
typedef int32_t Ints4 __attribute__((vector_size(16)));
typedef double Doubles4 __attribute__((vector_size(32)));

INLINE Doubles4 pixel_at(const uint8_t *pixel) {
    Bytes4 bytes;
    memcpy(&bytes, pixel, sizeof bytes); /* one byte too many: SLACK */
    return __builtin_convertvector(__builtin_convertvector(bytes, Ints4), Doubles4);
}

INLINE int clip(int at, int length) { return at < 0 ? 0 : at < length ? at : length - 1; }

HOT static void affine_row(const uint8_t *in, uint8_t *out, int y, int width, int height,
                           const double *m, const uint8_t *fill) {
    const double v = y + 0.5, xv = m[1] * v, yv = m[4] * v;
    for (int i = 0; i < width; i++, out += CHANNELS) {
        double u = i + 0.5, x = m[0] * u + xv + m[2], y_in = m[3] * u + yv + m[5];
        if (!(x >= 0.0 && x < width && y_in >= 0.0 && y_in < height)) {
            memcpy(out, fill, CHANNELS);
            continue;
        }
        x -= 0.5;
        y_in -= 0.5;
        int left = (int)x - (x < 0.0), top = (int)y_in - (y_in < 0.0);
        double dx = x - left, dy = y_in - top;
        const uint8_t *upper = in + (ptrdiff_t)clip(top, height) * width * CHANNELS;
        const uint8_t *lower = in + (ptrdiff_t)clip(top + 1, height) * width * CHANNELS;
        ptrdiff_t a = (ptrdiff_t)clip(left, width) * CHANNELS;
        ptrdiff_t b = (ptrdiff_t)clip(left + 1, width) * CHANNELS;
        Doubles4 above = pixel_at(upper + a), below = pixel_at(lower + a);
        above += (pixel_at(upper + b) - above) * dx;
        below += (pixel_at(lower + b) - below) * dx;
        above += (below - above) * dy;
        Ints4 levels = __builtin_convertvector(above, Ints4);
        for (int c = 0; c < CHANNELS; c++) out[c] = (uint8_t)levels[c];
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
