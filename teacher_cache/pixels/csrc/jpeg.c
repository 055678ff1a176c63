/* Decodes a part of a baseline JPEG (ITU-T T.81, annex F), bit for bit as libjpeg-turbo does.
 *
 * Entropy-coded data can only be read from their start. But blocks outside the part are not
 * transformed, and behind its last row the data are only searched for markers. A function that meets
 * anything unusual returns 0, and Pillow decodes the file or says what is wrong with it.
 */
#include <stdlib.h>
#include <string.h>

#include "jpeg.h"

enum { LARGEST_DC = 16383 }; /* a sum of DC differences; no more than 2047 in a sound file */

/* Zeros behind an entropy-coded segment: more bytes than the six blocks of one MCU can read. */
enum { PADDING = 6 * BLOCK_SIZE * 4 + 16 };

/* A block ordered by jpeg_slot, and behind it one position that takes values which belong to no block.
 * It consists of vectors, which are cleared one by one: compilers clear an array of this size with an
 * instruction that takes longer than decoding the block. */
enum { SHORTS = 16 };
typedef int16_t Shorts __attribute__((vector_size(2 * SHORTS)));
typedef union {
    Shorts all[BLOCK_SIZE / SHORTS + 1];
    int16_t value[BLOCK_SIZE + SHORTS];
} Coefficients;

/* By zigzag place: the position in memory (jpeg_slot), or BLOCK_SIZE for a place behind the block. */
typedef struct {
    uint8_t of[2 * BLOCK_SIZE];
    JpegBlock *block;
} Slots;

static Slots slots_here(void) {
    Slots slots = {.block = jpeg_block_here()};
    memset(slots.of, BLOCK_SIZE, sizeof slots.of);
    for (int i = 0; i < BLOCK_SIZE; i++) {
        int place = jpeg_natural_order[i];
        slots.of[i] = (uint8_t)jpeg_slot(place / BLOCK_SIDE, place % BLOCK_SIDE);
    }
    return slots;
}

/* The bits of one entropy-coded segment, which ends at a restart marker or at the end of the scan. The
 * zero bytes that are stuffed after 0xFF have been removed, and PADDING follows. */
typedef struct {
    uint64_t bits; /* the next bits, left-aligned, at least `count` of them */
    int count;
    const uint8_t *at, *start, *end;
    const uint8_t *marker; /* the marker that ends the segment in the file */
} Bits;

/* How many bits of the segment have not been consumed; negative if zeros of the padding have. */
static ptrdiff_t bits_remaining(const Bits *b) { return 8 * (b->end - b->at) + b->count; }

/* Provides at least 56 bits without a branch. Bits beyond `count` may be there already: or'ing the
 * same bits to them again changes nothing. */
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

/* Copies the segment that begins at `from` to `to`. */
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
    refill(&b);
    return b;
}

/* The next code, which is longer than CODE_BITS, as its length << 8 | symbol; -1 if there is none. */
static __attribute__((noinline)) int long_code(uint64_t bits, const Huffman *table) {
    int32_t next = (int32_t)(bits >> 48);
    int length = CODE_BITS + 1;
    while (next >= table->last_code[length]) length++;
    if (length > 16) return -1;
    int index = (next >> (16 - length)) + table->offset[length];
    return length << 8 | table->symbols[index & 255];
}

/* Consumes `count` bits and returns the value that they stand for (T.81, tables F.1 and F.2). */
INLINE int value_of(Bits *b, int count) {
    if (count == 0) return 0;
    int value = (int)(b->bits >> (64 - count));
    consume(b, count);
    return value < 1 << (count - 1) ? value - (1 << count) + 1 : value;
}

/* Consumes a code and returns its symbol, or -1 if no code begins with these bits. */
INLINE int symbol_of(Bits *b, const Huffman *table) {
    int code = table->code[b->bits >> (64 - CODE_BITS)];
    if (!code) code = long_code(b->bits, table);
    if (code < 0) return -1;
    consume(b, code >> 8);
    return code & 255;
}

/* Adds the next difference to `*dc`, which predicts it: the DC coefficient of the block before. */
INLINE int read_dc(Bits *b, const Huffman *table, const int16_t *differences, int *dc) {
    int difference = differences[b->bits >> (64 - DC_BITS)];
    refill(b);
    if (difference) {
        consume(b, difference & 15);
        *dc += difference >> 4;
    } else {
        int symbol = symbol_of(b, table);
        if (symbol < 0) return 0;
        *dc += value_of(b, symbol);
    }
    return *dc >= -LARGEST_DC && *dc <= LARGEST_DC;
}

/* What follows a symbol in a block. */
typedef enum { GO_ON, AT_END, ODD } Next;

/* Reads one AC symbol of any length: moves `*place` to its coefficient and sets `*value`, or moves
 * `*place` over sixteen zeros. */
INLINE Next read_one(Bits *b, const Huffman *table, int *place, int *value) {
    int symbol = symbol_of(b, table);
    if (symbol < 0) return ODD;
    if ((symbol & 15) == 0 && symbol != 0xF0) return AT_END;
    *place += (symbol >> 4) + 1;
    *value = value_of(b, symbol & 15);
    return *place < BLOCK_SIZE ? GO_ON : ODD;
}

/* Reads the AC coefficients of a block into `out`. Returns the place of the last, or -1. */
INLINE int read_ac(Bits *b, const Huffman *table, const Step *steps, const uint8_t *slot,
                   int16_t *out) {
    int place = 0;
    while (place < BLOCK_SIZE - 1) {
        /* The step is looked up before the refill, so that the two do not wait for each other: at
         * least 56 - 31 bits are there. */
        Step step = steps[b->bits >> (64 - LOOK_BITS)];
        refill(b);
        int last = place + (int)(step >> STEP_LAST & 255);
        if (step && last < BLOCK_SIZE - 1) { /* a STEP_END behind place 63 would be the next block's */
            out[slot[place + (step >> STEP_FIRST & 255)]] = (int16_t)(step >> STEP_VALUE);
            out[slot[place + (step >> STEP_SECOND & 255)]] = (int16_t)(step >> STEP_VALUE2);
            place = last;
            consume(b, step & 63);
            if (step & STEP_END) return place;
        } else {
            int value;
            Next next = read_one(b, table, &place, &value);
            if (next != GO_ON) return next == AT_END ? place : -1;
            out[slot[place]] = (int16_t)value;
        }
    }
    return place;
}

INLINE int read_block(Bits *b, const Component *c, const Slots *slots, int *dc,
                      uint8_t *out, ptrdiff_t stride) {
    Coefficients coefficients;
    for (int i = 0; i < BLOCK_SIZE / SHORTS + 1; i++) coefficients.all[i] = (Shorts){0};
    int16_t *block = coefficients.value;
    if (!read_dc(b, c->dc, c->differences, dc)) return 0;
    block[0] = (int16_t)*dc;
    int last = read_ac(b, c->ac, c->steps, slots->of, block);
    if (last < 0) return 0;
    if (last > 0) return slots->block(block, c->quant, out, stride);
    int level = *dc * c->quant[0];
    if (level < -LARGEST_COLUMNS || level > LARGEST_COLUMNS) return 0;
    int flat = ((level + 4) >> 3) + 128;
    flat = flat < 0 ? 0 : flat > 255 ? 255 : flat;
    for (int y = 0; y < BLOCK_SIDE; y++) memset(out + y * stride, flat, BLOCK_SIDE);
    return 1;
}

/* Consumes the AC coefficients of a block. */
INLINE int skip_ac(Bits *b, const Huffman *table, const Step *steps) {
    int place = 0;
    while (place < BLOCK_SIZE - 1) {
        /* the lower half of a step holds all but the values */
        uint32_t step = (uint32_t)steps[b->bits >> (64 - LOOK_BITS)];
        refill(b);
        int last = place + (int)(step >> STEP_LAST);
        if (step && last < BLOCK_SIZE - 1) {
            consume(b, step & 63);
            if (step & STEP_END) return 1;
            place = last;
        } else {
            int value;
            Next next = read_one(b, table, &place, &value);
            if (next != GO_ON) return next == AT_END;
        }
    }
    return 1;
}

/* The DC coefficient of a skipped block is needed, too: it predicts the next one. */
INLINE int skip_block(Bits *b, const Component *c, int *dc) {
    return read_dc(b, c->dc, c->differences, dc) && skip_ac(b, c->ac, c->steps);
}

/* Goes on to the segment behind the next restart marker, which must have this number (modulo 8). */
static int restart(Bits *b, int number, const uint8_t *end, uint8_t *buffer) {
    ptrdiff_t remaining = bits_remaining(b);
    if (remaining < 0 || remaining >= 8 || end - b->marker < 2) return 0;
    if (b->marker[0] != 0xFF || b->marker[1] != 0xD0 + (number & 7)) return 0;
    *b = segment(b->marker + 2, end, buffer);
    return 1;
}

static uint8_t *block_of(const Plane *plane, int x, int y) {
    ptrdiff_t row = (ptrdiff_t)(y - plane->blocks.top) * BLOCK_SIDE;
    return plane->samples + row * plane->stride + (x - plane->blocks.left) * BLOCK_SIDE;
}

INLINE int is_in(Box box, int x, int y) {
    return x >= box.left && x < box.right && y >= box.top && y < box.bottom;
}

/* Reads one MCU: each component's blocks, in rows. */
static int read_mcu(Bits *bits, const Jpeg *jpeg, int column, int row, int dc[COMPONENTS],
                    const Plane planes[COMPONENTS], const Slots *slots) {
    Bits b = *bits; /* a copy, which stays in registers */
    for (int i = 0; i < jpeg->count; i++) {
        const Component *c = &jpeg->component[i];
        const Plane *plane = &planes[i];
        for (int y = row * c->v; y < (row + 1) * c->v; y++)
            for (int x = column * c->h; x < (column + 1) * c->h; x++) {
                int ok;
                if (is_in(plane->blocks, x, y))
                    ok = read_block(&b, c, slots, &dc[i], block_of(plane, x, y), plane->stride);
                else ok = skip_block(&b, c, &dc[i]);
                if (!ok) return 0;
            }
    }
    *bits = b;
    return bits_remaining(&b) >= 0;
}

/* Whether there are no markers but restart markers from `at` to the EOI marker. With any other, Pillow
 * may refuse the file, and whether a file can be decoded must not depend on the part. */
static int ends_plainly(const uint8_t *at, const uint8_t *end) {
    while ((at = memchr(at, 0xFF, (size_t)(end - at))) && end - at >= 2) {
        if (at[1] == 0xD9) return 1;
        if (at[1] != 0 && (at[1] & 0xF8) != 0xD0) return 0;
        at += 2;
    }
    return 0;
}

/* Reads all MCUs down to the last row that the planes need. */
static int read_mcus(const Jpeg *jpeg, const Plane planes[COMPONENTS], uint8_t *buffer) {
    Bits bits = segment(jpeg->scan, jpeg->end, buffer);
    Slots slots = slots_here();
    int dc[COMPONENTS] = {0}, until_restart = jpeg->restart, restarts = 0;
    int h = jpeg->component[0].h;
    int columns = (jpeg->width + BLOCK_SIDE * h - 1) / (BLOCK_SIDE * h), rows = 0;
    for (int i = 0; i < jpeg->count; i++) {
        int needed = (planes[i].blocks.bottom + jpeg->component[i].v - 1) / jpeg->component[i].v;
        rows = needed > rows ? needed : rows;
    }
    for (int row = 0; row < rows; row++)
        for (int column = 0; column < columns; column++) {
            if (jpeg->restart && until_restart-- == 0) {
                if (!restart(&bits, restarts++, jpeg->end, buffer)) return 0;
                memset(dc, 0, sizeof dc);
                until_restart = jpeg->restart - 1;
            }
            if (!read_mcu(&bits, jpeg, column, row, dc, planes, &slots)) return 0;
        }
    return ends_plainly(bits.marker, jpeg->end);
}

/* The blocks of a component that the pixels of `part` depend on. A subsampled component needs one more
 * sample on every side, for the triangle filter that upsamples it. */
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
    Jpeg *jpeg = aligned_alloc(64, (sizeof *jpeg + 63) / 64 * 64);
    int ok = jpeg && jpeg_parse(jpeg, data, size);
    if (ok) {
        *width = jpeg->width;
        *height = jpeg->height;
    }
    free(jpeg);
    return ok;
}

int jpeg_decode(const uint8_t *data, size_t size, Box part, uint8_t *out) {
    Jpeg *jpeg = aligned_alloc(64, (sizeof *jpeg + 63) / 64 * 64);
    Plane planes[COMPONENTS] = {0};
    uint8_t *buffer = malloc(size + PADDING);
    int ok = jpeg && buffer && jpeg_parse(jpeg, data, size) && part.left >= 0 && part.top >= 0 &&
             part.left < part.right && part.top < part.bottom && part.right <= jpeg->width &&
             part.bottom <= jpeg->height;
    if (ok) {
        jpeg_tables(jpeg);
        int h = jpeg->component[0].h, v = jpeg->component[0].v;
        for (int i = 0; ok && i < jpeg->count; i++)
            ok = make_plane(&planes[i], part, i ? h : 1, i ? v : 1, jpeg->width, jpeg->height);
        ok = ok && read_mcus(jpeg, planes, buffer) && jpeg_pixels(planes, jpeg->count, h, v, part, out);
    }
    for (int i = 0; i < COMPONENTS; i++) free(planes[i].samples);
    free(buffer);
    free(jpeg);
    return ok;
}
