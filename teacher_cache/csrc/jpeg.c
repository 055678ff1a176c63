/* The part of a plain baseline JPEG that is asked for, bit for bit as libjpeg-turbo decodes it.
 *
 * Entropy coding has no shortcuts, so bits are read from the start; but blocks outside the part are
 * only skipped over, and nothing below it is read. Whatever is odd in the bits ends in 0, for Pillow
 * to judge. ITU-T T.81, annex F.
 */
#include <stdlib.h>
#include <string.h>

#include "jpeg.h"

enum { LARGEST_DC = 16383 }; /* of differences summed up; 2047 in a sound file */

/* Zeros behind a segment: more than a unit of four luma and two chroma blocks can read. */
enum { PADDING = 6 * BLOCK_SIZE * 4 + 16 };

/* The bits of one segment: what stands between two restart markers, bytes that were stuffed after
 * 0xFF taken out, PADDING behind it. */
typedef struct {
    uint64_t bits; /* the next bits, left-aligned, at least `count` of them */
    int count;
    const uint8_t *at, *start, *end;
    const uint8_t *marker; /* what follows in the file */
} Bits;

/* The segment at `from`, copied to `to`. */
static Bits segment(const uint8_t *from, const uint8_t *end, uint8_t *to) {
    Bits b = {.at = to, .start = to};
    for (;;) {
        const uint8_t *stop = memchr(from, 0xFF, (size_t)(end - from));
        size_t some = (size_t)((stop ? stop : end) - from);
        memcpy(to, from, some);
        to += some;
        from += some;
        if (end - from < 2 || from[1] != 0) break;
        *to++ = 0xFF;
        from += 2;
    }
    memset(to, 0, PADDING);
    b.end = to;
    b.marker = from;
    return b;
}

/* Bits left in the segment; below 0 when zeros of the padding were read. */
static ptrdiff_t left_over(const Bits *b) { return 8 * (b->end - b->at) + b->count; }

/* At least 56 bits, without a branch; bits beyond `count` are or'ed to themselves. */
INLINE void refill(Bits *b) {
    const uint8_t *p = b->at;
    uint64_t next = (uint64_t)p[0] << 56 | (uint64_t)p[1] << 48 | (uint64_t)p[2] << 40 |
                    (uint64_t)p[3] << 32 | (uint64_t)p[4] << 24 | (uint64_t)p[5] << 16 |
                    (uint64_t)p[6] << 8 | p[7];
    b->bits |= next >> b->count;
    b->at += (63 - b->count) >> 3;
    b->count |= 56;
}

INLINE void consume(Bits *b, int count) {
    b->bits <<= count;
    b->count -= count;
}

/* The symbol of a code longer than LOOK_BITS as its length << 8 | symbol, or -1. */
static __attribute__((noinline)) int long_code(uint64_t bits, const Huffman *table) {
    int32_t next = (int32_t)(bits >> 48);
    int length = LOOK_BITS + 1;
    while (next >= table->last_code[length]) length++;
    if (length > 16) return -1;
    int index = (next >> (16 - length)) + table->offset[length];
    return length << 8 | table->symbols[index & 255];
}

INLINE int value_of(Bits *b, int count) {
    if (count == 0) return 0;
    int value = (int)(b->bits >> (64 - count));
    consume(b, count);
    return value < 1 << (count - 1) ? value - (1 << count) + 1 : value;
}

/* A symbol whose value is not in `quick`: consumed, or -1. */
INLINE int symbol_of(Bits *b, const Huffman *table, uint32_t quick) {
    if (quick) {
        consume(b, quick & 255);
        return quick >> 8 & 255;
    }
    int code = long_code(b->bits, table);
    if (code < 0) return -1;
    consume(b, code >> 8);
    return code & 255;
}

INLINE int read_dc(Bits *b, const Huffman *table, int *dc) {
    refill(b);
    uint32_t quick = table->quick[b->bits >> (64 - LOOK_BITS)];
    int difference = (int32_t)quick >> 16;
    if (difference) consume(b, quick & 255);
    else {
        int symbol = symbol_of(b, table, quick);
        if (symbol < 0) return 0;
        difference = value_of(b, symbol);
    }
    *dc += difference;
    return *dc >= -LARGEST_DC && *dc <= LARGEST_DC;
}

/* The AC coefficients, into `out`. Returns 0 for what is odd, else 1 more than their number. */
INLINE int read_ac(Bits *b, const Huffman *table, int16_t *out) {
    int found = 1;
    for (int k = 1; k < BLOCK_SIZE; k++) {
        /* looked up before the refill, which waits for less: at least 56 - 31 bits are there */
        uint32_t quick = table->quick[b->bits >> (64 - LOOK_BITS)];
        refill(b);
        int value = (int32_t)quick >> 16;
        if (value) {
            consume(b, quick & 255);
            k += quick >> 8 & 255;
        } else {
            int symbol = symbol_of(b, table, quick);
            if (symbol < 0) return 0;
            if ((symbol & 15) == 0 && symbol != 0xF0) return found; /* end of block */
            k += symbol >> 4;
            value = value_of(b, symbol & 15);
            if (value == 0) continue; /* sixteen zeros */
        }
        if (k >= BLOCK_SIZE) return 0;
        out[jpeg_natural_order[k]] = (int16_t)value;
        found++;
    }
    return found;
}

INLINE int read_block(Bits *b, const Jpeg *jpeg, const Component *c, int *dc, uint8_t *out,
                      ptrdiff_t stride) {
    int16_t block[BLOCK_SIZE] = {0};
    const uint16_t *quant = jpeg->quant[c->quant];
    if (!read_dc(b, &jpeg->dc[c->dc], dc)) return 0;
    block[0] = (int16_t)*dc;
    int found = read_ac(b, &jpeg->ac[c->ac], block);
    if (found > 1) return jpeg_block(block, quant, out, stride);
    int level = *dc * quant[0];
    if (level < -LARGEST_COLUMN || level > LARGEST_COLUMN) return 0;
    int flat = ((level + 4) >> 3) + 128;
    flat = flat < 0 ? 0 : flat > 255 ? 255 : flat;
    for (int y = 0; y < BLOCK_SIDE; y++) memset(out + y * stride, flat, BLOCK_SIDE);
    return found;
}

/* Over the AC coefficients; 0 for what is odd. */
INLINE int skip_ac(Bits *b, const Huffman *table) {
    int k = 1;
    while (k < BLOCK_SIZE) {
        uint32_t leap = table->leap[b->bits >> (64 - LEAP_BITS)];
        refill(b);
        int behind = k + (int)(leap >> 8 & 255);
        if (leap && behind < BLOCK_SIZE) { /* so the block does not end within, but with END */
            consume(b, leap & 255);
            if (leap & END) return 1;
            k = behind;
            continue;
        }
        uint32_t quick = table->quick[b->bits >> (64 - LOOK_BITS)];
        if (quick >> 16) {
            consume(b, quick & 255);
            k += (quick >> 8 & 255) + 1;
            continue;
        }
        int symbol = symbol_of(b, table, quick);
        if (symbol < 0) return 0;
        if ((symbol & 15) == 0 && symbol != 0xF0) return 1;
        k += (symbol >> 4) + 1;
        value_of(b, symbol & 15);
    }
    return k == BLOCK_SIZE;
}

INLINE int skip_block(Bits *b, const Jpeg *jpeg, const Component *c, int *dc) {
    return read_dc(b, &jpeg->dc[c->dc], dc) && skip_ac(b, &jpeg->ac[c->ac]);
}

/* To the segment behind the next restart marker, which must be number `number`. */
static int restart(Bits *b, int number, const uint8_t *end, uint8_t *buffer) {
    ptrdiff_t left = left_over(b);
    if (left < 0 || left >= 8 || end - b->marker < 2) return 0;
    if (b->marker[0] != 0xFF || b->marker[1] != 0xD0 + (number & 7)) return 0;
    *b = segment(b->marker + 2, end, buffer);
    return 1;
}

static int read_unit(Bits *bits, const Jpeg *jpeg, int column, int row, int dc[COMPONENTS],
                     const Plane planes[COMPONENTS]) {
    Bits b = *bits;
    for (int i = 0; i < jpeg->count; i++) {
        const Component *c = &jpeg->component[i];
        const Plane *plane = &planes[i];
        for (int n = 0; n < c->h * c->v; n++) {
            int x = column * c->h + n % c->h, y = row * c->v + n / c->h;
            Box want = plane->blocks;
            int ok;
            if (x >= want.left && x < want.right && y >= want.top && y < want.bottom) {
                uint8_t *out = plane->samples + (ptrdiff_t)(y - want.top) * BLOCK_SIDE * plane->stride +
                               (x - want.left) * BLOCK_SIDE;
                ok = read_block(&b, jpeg, c, &dc[i], out, plane->stride);
            } else ok = skip_block(&b, jpeg, c, &dc[i]);
            if (!ok) return 0;
        }
    }
    *bits = b;
    return left_over(&b) >= 0;
}

static int read_units(const Jpeg *jpeg, const Plane planes[COMPONENTS], uint8_t *buffer) {
    Bits bits = segment(jpeg->scan, jpeg->end, buffer);
    int dc[COMPONENTS] = {0}, left = jpeg->restart, restarts = 0;
    int h = jpeg->component[0].h;
    int columns = (jpeg->width + BLOCK_SIDE * h - 1) / (BLOCK_SIDE * h), rows = 0;
    for (int i = 0; i < jpeg->count; i++) {
        int needed = (planes[i].blocks.bottom + jpeg->component[i].v - 1) / jpeg->component[i].v;
        rows = needed > rows ? needed : rows;
    }
    for (int row = 0; row < rows; row++)
        for (int column = 0; column < columns; column++) {
            if (jpeg->restart && left-- == 0) {
                if (!restart(&bits, restarts++, jpeg->end, buffer)) return 0;
                memset(dc, 0, sizeof dc);
                left = jpeg->restart - 1;
            }
            if (!read_unit(&bits, jpeg, column, row, dc, planes)) return 0;
        }
    return 1;
}

/* The blocks of a component that the pixels of `part` depend on: for chroma that is sampled more
 * coarsely one more sample on every side. */
static Box blocks_of(Box part, int h, int v, int width, int height) {
    int x = h > 1, y = v > 1;
    Box samples = {part.left / h - x, part.top / v - y, (part.right - 1) / h + x,
                   (part.bottom - 1) / v + y};
    samples.left = samples.left < 0 ? 0 : samples.left;
    samples.top = samples.top < 0 ? 0 : samples.top;
    samples.right = samples.right >= width ? width - 1 : samples.right;
    samples.bottom = samples.bottom >= height ? height - 1 : samples.bottom;
    return (Box){samples.left / BLOCK_SIDE, samples.top / BLOCK_SIDE, samples.right / BLOCK_SIDE + 1,
                 samples.bottom / BLOCK_SIDE + 1};
}

static int make_plane(Plane *plane, Box part, int h, int v, int width, int height) {
    plane->width = (width + h - 1) / h;
    plane->height = (height + v - 1) / v;
    plane->blocks = blocks_of(part, h, v, plane->width, plane->height);
    Box b = plane->blocks;
    plane->stride = (b.right - b.left) * BLOCK_SIDE;
    plane->samples = malloc((size_t)plane->stride * (size_t)(b.bottom - b.top) * BLOCK_SIDE);
    return plane->samples != NULL;
}

int jpeg_size(const uint8_t *data, size_t size, int *width, int *height) {
    Jpeg *jpeg = malloc(sizeof *jpeg);
    int ok = jpeg && jpeg_parse(jpeg, data, size);
    if (ok) {
        *width = jpeg->width;
        *height = jpeg->height;
    }
    free(jpeg);
    return ok;
}

int jpeg_decode(const uint8_t *data, size_t size, Box part, uint8_t *out) {
    Jpeg *jpeg = malloc(sizeof *jpeg);
    Plane planes[COMPONENTS] = {0};
    uint8_t *buffer = malloc(size + PADDING);
    int ok = jpeg && buffer && jpeg_parse(jpeg, data, size) && part.left >= 0 && part.top >= 0 &&
             part.left < part.right && part.top < part.bottom && part.right <= jpeg->width &&
             part.bottom <= jpeg->height;
    if (ok) {
        int h = jpeg->component[0].h, v = jpeg->component[0].v;
        for (int i = 0; ok && i < jpeg->count; i++)
            ok = make_plane(&planes[i], part, i ? h : 1, i ? v : 1, jpeg->width, jpeg->height);
        ok = ok && read_units(jpeg, planes, buffer) && jpeg_pixels(planes, jpeg->count, h, v, part, out);
    }
    for (int i = 0; i < COMPONENTS; i++) free(planes[i].samples);
    free(buffer);
    free(jpeg);
    return ok;
}
