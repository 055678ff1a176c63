/* Coefficients -> samples -> pixels, in libjpeg's integers: its accurate inverse DCT (Loeffler,
 * Ligtenberg and Moschytz 1989), its triangle filter for chroma, its YCbCr of JFIF. */
#include <stdlib.h>
#include <string.h>

#include "jpeg.h"

typedef int32_t Row __attribute__((vector_size(32)));
typedef int16_t Short __attribute__((vector_size(16)));
typedef uint8_t Levels __attribute__((vector_size(8)));

/* Constants of the transform times 2^13 */
enum { C0298 = 2446, C0390 = 3196, C0541 = 4433, C0765 = 6270, C0899 = 7373, C1175 = 9633,
       C1501 = 12299, C1847 = 15137, C1961 = 16069, C2053 = 16819, C2562 = 20995, C3072 = 25172 };
enum { CONSTANT_BITS = 13, PASS_BITS = 2 };

/* One dimension, eight transforms side by side; rounds off `shift` bits. */
INLINE void transform(Row v[BLOCK_SIDE], int shift) {
    Row z1 = (v[2] + v[6]) * C0541, even2 = z1 - v[6] * C1847, even3 = z1 + v[2] * C0765;
    Row even0 = (v[0] + v[4]) << CONSTANT_BITS, even1 = (v[0] - v[4]) << CONSTANT_BITS;
    Row e0 = even0 + even3, e3 = even0 - even3, e1 = even1 + even2, e2 = even1 - even2;
    Row o0 = v[7], o1 = v[5], o2 = v[3], o3 = v[1];
    Row a = o0 + o3, b = o1 + o2, c = o0 + o2, d = o1 + o3, z5 = (c + d) * C1175;
    a *= -C0899;
    b *= -C2562;
    c = z5 - c * C1961;
    d = z5 - d * C0390;
    o0 = o0 * C0298 + a + c;
    o1 = o1 * C2053 + b + d;
    o2 = o2 * C3072 + b + c;
    o3 = o3 * C1501 + a + d;
    const int half = 1 << (shift - 1);
    v[0] = (e0 + o3 + half) >> shift;
    v[7] = (e0 - o3 + half) >> shift;
    v[1] = (e1 + o2 + half) >> shift;
    v[6] = (e1 - o2 + half) >> shift;
    v[2] = (e2 + o1 + half) >> shift;
    v[5] = (e2 - o1 + half) >> shift;
    v[3] = (e3 + o0 + half) >> shift;
    v[4] = (e3 - o0 + half) >> shift;
}

INLINE void transpose(Row v[BLOCK_SIDE]) {
    const Row low = {0, 8, 1, 9, 4, 12, 5, 13}, high = {2, 10, 3, 11, 6, 14, 7, 15};
    const Row low2 = {0, 1, 8, 9, 4, 5, 12, 13}, high2 = {2, 3, 10, 11, 6, 7, 14, 15};
    const Row low4 = {0, 1, 2, 3, 8, 9, 10, 11}, high4 = {4, 5, 6, 7, 12, 13, 14, 15};
    Row a[BLOCK_SIDE], b[BLOCK_SIDE];
    for (int i = 0; i < 4; i++) {
        a[2 * i] = __builtin_shuffle(v[2 * i], v[2 * i + 1], low);
        a[2 * i + 1] = __builtin_shuffle(v[2 * i], v[2 * i + 1], high);
    }
    for (int i = 0; i < BLOCK_SIDE; i += 4) {
        b[i] = __builtin_shuffle(a[i], a[i + 2], low2);
        b[i + 1] = __builtin_shuffle(a[i], a[i + 2], high2);
        b[i + 2] = __builtin_shuffle(a[i + 1], a[i + 3], low2);
        b[i + 3] = __builtin_shuffle(a[i + 1], a[i + 3], high2);
    }
    for (int i = 0; i < 4; i++) {
        v[i] = __builtin_shuffle(b[i], b[i + 4], low4);
        v[i + 4] = __builtin_shuffle(b[i], b[i + 4], high4);
    }
}

HOT int jpeg_block(const int16_t coefficients[BLOCK_SIZE], const uint16_t quant[BLOCK_SIZE],
                   uint8_t *out, ptrdiff_t stride) {
    Row v[BLOCK_SIDE], sum = {0};
    for (int y = 0; y < BLOCK_SIDE; y++) {
        Short row, scale;
        memcpy(&row, coefficients + BLOCK_SIDE * y, sizeof row);
        memcpy(&scale, quant + BLOCK_SIDE * y, sizeof scale);
        v[y] = __builtin_convertvector(row, Row) * __builtin_convertvector(scale, Row);
        Row sign = v[y] >> 31;
        sum += (v[y] ^ sign) - sign;
    }
    Row wild = sum > LARGEST_COLUMN;
    for (int x = 0; x < BLOCK_SIDE; x++)
        if (wild[x]) return 0;
    transform(v, CONSTANT_BITS - PASS_BITS);
    transpose(v);
    transform(v, CONSTANT_BITS + PASS_BITS + 3);
    transpose(v);
    for (int y = 0; y < BLOCK_SIDE; y++) {
        Row level = v[y] + 128;
        level &= ~(level >> 31);
        Row over = level > 255;
        level = (level & ~over) | (over & 255);
        Levels levels = __builtin_convertvector(level, Levels);
        memcpy(out + y * stride, &levels, sizeof levels);
    }
    return 1;
}

INLINE uint8_t clipped(int32_t level) {
    return (uint8_t)(level < 0 ? 0 : level > 255 ? 255 : level);
}

HOT static void to_rgb(const uint8_t *restrict luma, const uint8_t *restrict blue,
                       const uint8_t *restrict red, int width, uint8_t *restrict out) {
    for (int x = 0; x < width; x++) {
        int32_t y = luma[x], cb = blue[x] - 128, cr = red[x] - 128;
        out[3 * x] = clipped(y + ((91881 * cr + 32768) >> 16));
        out[3 * x + 1] = clipped(y + ((-22554 * cb - 46802 * cr + 32768) >> 16));
        out[3 * x + 2] = clipped(y + ((116130 * cb + 32768) >> 16));
    }
}

/* 3/4 of the nearer row and 1/4 of the other, times 4; with one row alone: that row. */
HOT static void weigh_rows(const uint8_t *near, const uint8_t *far, int count, int16_t *out) {
    for (int i = 0; i < count; i++) out[i] = (int16_t)(near[i] * 3 + far[i]);
}

/* Each sample becomes two, 3/4 of the nearer and 1/4 of the next, halves rounded alternately. */
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

/* Row y of a component that is sampled h x v times as coarsely, for pixels [left, right): returns
 * where they start. `sums` and `wide` are scratch. */
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
