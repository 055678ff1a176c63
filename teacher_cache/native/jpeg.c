/* The part of a plain baseline JPEG that is asked for, bit for bit as libjpeg-turbo decodes it.
 *
 * Entropy coding has no shortcuts, so bits are read from the start; but blocks outside the part are
 * only skipped over, and nothing below it is read. Whatever is odd in the bits ends in 0, for Pillow
 * to judge. ITU-T T.81, annex F.
 */
#include <stdlib.h>
#include <string.h>

#include "jpeg.h"

/* Sum of a column's dequantised coefficients, in magnitude: beyond it libjpeg-turbo's 16-bit sums
 * might saturate. No photograph comes near. */
enum { LARGEST_COLUMN = 5700, LARGEST_DC = 16383 };

typedef struct {
    uint64_t bits; /* the next bits, left-aligned; below `count` of them zeros */
    int count, invented;
    const uint8_t *at, *end;
} Bits;

/* Past a marker, or the end, zeros are invented; whoever has read one of them notices later. */
static __attribute__((noinline)) void refill_slowly(Bits *b) {
    while (b->count <= 56) {
        int byte = 0;
        if (b->at < b->end && (b->at[0] != 0xFF || (b->end - b->at > 1 && b->at[1] == 0))) {
            byte = b->at[0];
            b->at += byte == 0xFF ? 2 : 1;
        } else b->invented += 8;
        b->bits |= (uint64_t)byte << (56 - b->count);
        b->count += 8;
    }
}

/* At least 32 bits: a code of 16 and its value of 15 */
INLINE void refill(Bits *b) {
    if (b->count >= 32) return;
    if (b->end - b->at >= 4) {
        const uint8_t *p = b->at;
        uint32_t four = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
        if (!((~four - 0x01010101u) & four & 0x80808080u)) { /* no byte is 0xFF */
            b->bits |= (uint64_t)four << (32 - b->count);
            b->count += 32;
            b->at += 4;
            return;
        }
    }
    refill_slowly(b);
}

INLINE void consume(Bits *b, int count) {
    b->bits <<= count;
    b->count -= count;
}

/* A symbol whose coefficient is not in `quick`, or -1. */
static int symbol_of(Bits *b, const Huffman *table) {
    int32_t next = (int32_t)(b->bits >> 48);
    int length = 1;
    while (next >= table->last_code[length]) length++;
    if (length > 16) return -1;
    int index = (next >> (16 - length)) + table->offset[length];
    consume(b, length);
    return table->symbols[index & 255];
}

INLINE int value_of(Bits *b, int count) {
    if (count == 0) return 0;
    int value = (int)(b->bits >> (64 - count));
    consume(b, count);
    return value < 1 << (count - 1) ? value - (1 << count) + 1 : value;
}

INLINE int read_dc(Bits *b, const Huffman *table, int *dc) {
    refill(b);
    uint32_t quick = table->quick[b->bits >> (64 - LOOK_BITS)];
    if (quick) {
        consume(b, quick & 255);
        *dc += (int32_t)quick >> 16;
    } else {
        int symbol = symbol_of(b, table);
        if (symbol < 0) return 0;
        *dc += value_of(b, symbol);
    }
    return *dc >= -LARGEST_DC && *dc <= LARGEST_DC;
}

/* The AC coefficients; with `out`, dequantised into it. Returns 0 for what is odd, else 1 more than
 * the sum of their magnitudes. */
INLINE uint32_t read_ac(Bits *b, const Huffman *table, const uint16_t *quant, int16_t *out) {
    uint32_t magnitude = 1;
    for (int k = 1; k < BLOCK_SIZE; k++) {
        refill(b);
        uint32_t quick = table->quick[b->bits >> (64 - LOOK_BITS)];
        int value;
        if (quick) {
            consume(b, quick & 255);
            k += (quick >> 8) & 255;
            value = (int32_t)quick >> 16;
            if (value == 0) {
                if ((quick >> 8 & 255) != 15) return magnitude; /* end of block */
                continue;
            }
        } else {
            int symbol = symbol_of(b, table);
            if (symbol < 0) return 0;
            k += symbol >> 4;
            if ((symbol & 15) == 0) {
                if (symbol != 0xF0) return magnitude; /* end of block */
                continue;
            }
            value = value_of(b, symbol & 15);
        }
        if (k >= BLOCK_SIZE) return 0;
        if (out) {
            int place = jpeg_natural_order[k], level = value * quant[place];
            uint32_t size = (uint32_t)(level < 0 ? -level : level);
            if (size > INT16_MAX) return 0;
            out[place] = (int16_t)level;
            magnitude += size;
        }
    }
    return magnitude;
}

static int columns_fit(const int16_t block[BLOCK_SIZE]) {
    for (int x = 0; x < BLOCK_SIDE; x++) {
        int sum = 0;
        for (int y = 0; y < BLOCK_SIDE; y++) sum += abs(block[BLOCK_SIDE * y + x]);
        if (sum > LARGEST_COLUMN) return 0;
    }
    return 1;
}

static int read_block(Bits *b, const Jpeg *jpeg, const Component *c, int *dc, uint8_t *out,
                      ptrdiff_t stride) {
    int16_t block[BLOCK_SIZE] = {0};
    const uint16_t *quant = jpeg->quant[c->quant];
    if (!read_dc(b, &jpeg->dc[c->dc], dc)) return 0;
    int level = *dc * quant[0];
    if (level < INT16_MIN || level > INT16_MAX) return 0;
    block[0] = (int16_t)level;
    uint32_t magnitude = read_ac(b, &jpeg->ac[c->ac], quant, block);
    if (!magnitude) return 0;
    if (magnitude + (uint32_t)abs(level) > LARGEST_COLUMN && !columns_fit(block)) return 0;
    if (magnitude == 1) { /* flat */
        int flat = ((level + 4) >> 3) + 128;
        flat = flat < 0 ? 0 : flat > 255 ? 255 : flat;
        for (int y = 0; y < BLOCK_SIDE; y++) memset(out + y * stride, flat, BLOCK_SIDE);
    } else jpeg_block(block, out, stride);
    return 1;
}

static int skip_block(Bits *b, const Jpeg *jpeg, const Component *c, int *dc) {
    return read_dc(b, &jpeg->dc[c->dc], dc) && read_ac(b, &jpeg->ac[c->ac], NULL, NULL) != 0;
}

/* To the byte behind the next restart marker, which must be number `number`. */
static int restart(Bits *b, int number) {
    if (b->count - b->invented >= 8 || b->end - b->at < 2) return 0;
    if (b->at[0] != 0xFF || b->at[1] != 0xD0 + (number & 7)) return 0;
    *b = (Bits){.at = b->at + 2, .end = b->end};
    return 1;
}

static int read_unit(Bits *b, const Jpeg *jpeg, int column, int row, int dc[COMPONENTS],
                     const Plane planes[COMPONENTS]) {
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
                ok = read_block(b, jpeg, c, &dc[i], out, plane->stride);
            } else ok = skip_block(b, jpeg, c, &dc[i]);
            if (!ok) return 0;
        }
    }
    return b->count >= b->invented; /* no invented bit was read */
}

static int read_units(const Jpeg *jpeg, const Plane planes[COMPONENTS]) {
    Bits bits = {.at = jpeg->scan, .end = jpeg->end};
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
                if (!restart(&bits, restarts++)) return 0;
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
    int ok = jpeg && jpeg_parse(jpeg, data, size) && part.left >= 0 && part.top >= 0 &&
             part.left < part.right && part.top < part.bottom && part.right <= jpeg->width &&
             part.bottom <= jpeg->height;
    if (ok) {
        int h = jpeg->component[0].h, v = jpeg->component[0].v;
        for (int i = 0; ok && i < jpeg->count; i++)
            ok = make_plane(&planes[i], part, i ? h : 1, i ? v : 1, jpeg->width, jpeg->height);
        ok = ok && read_units(jpeg, planes) && jpeg_pixels(planes, jpeg->count, h, v, part, out);
    }
    for (int i = 0; i < COMPONENTS; i++) free(planes[i].samples);
    free(jpeg);
    return ok;
}
