/* What the files of the JPEG decoder share: the header (jpeg_header.c), Huffman tables
 * (jpeg_huffman.c), entropy-coded data (jpeg.c), blocks (jpeg_block.c) and pixels (jpeg_pixels.c). */
#ifndef RETORT_JPEG_H
#define RETORT_JPEG_H

#include "native.h"

enum { BLOCK_SIDE = 8, BLOCK_SIZE = 64, COMPONENTS = 3 };

/* The largest sum of the magnitudes of the dequantised coefficients in columns x and x + 4. With a
 * larger sum, values that libjpeg-turbo keeps in 16 bits might saturate in its first pass, or wrap in
 * its second, which adds these columns. No photograph comes near this limit. */
enum { LARGEST_COLUMNS = 5700 };

/* How many of the next bits are the index into each kind of table. */
enum { CODE_BITS = 9, LOOK_BITS = 11, DC_BITS = 10 };

/* A step decodes one or two coefficients at once. From the lowest bit on it holds: in 6 bits, how
 * many bits to consume; in 1 bit, whether the block ends after it (STEP_END); 1 unused bit; in 8 bits
 * each, the zigzag places of the first coefficient, of the second (NOWHERE if there is none) and of
 * the last one, counted from the last coefficient before this step; in 16 bits each, both values.
 * A step of 0 means that the bits do not hold even one whole code with its value. */
typedef uint64_t Step;
enum { STEP_END = 1 << 6, STEP_FIRST = 8, STEP_SECOND = 16, STEP_LAST = 24, STEP_VALUE = 32,
       STEP_VALUE2 = 48, NOWHERE = 64 };

/* A Huffman table. `code` has the next CODE_BITS bits as its index, and holds length << 8 | symbol, or
 * 0 if the code is longer. */
typedef struct {
    int defined;
    uint8_t counts[16], symbols[256];
    int32_t last_code[18]; /* by length: one more than the last code, left-aligned to 16 bits */
    int32_t offset[17];    /* by length: the index of a symbol minus its code */
    uint16_t code[1 << CODE_BITS];
} Huffman;

typedef struct {
    int h, v; /* sampling factors */
    int id;
    const int16_t *quant; /* by jpeg_slot */
    const Huffman *dc, *ac;
    const int16_t *differences; /* of DC, by the next DC_BITS bits: value << 4 | code's bits, or 0 */
    const Step *steps; /* over AC coefficients, by the next LOOK_BITS bits */
} Component;

struct Jpeg {
    const uint8_t *scan, *end; /* the entropy-coded data */
    int width, height, count, restart; /* `count` components; `restart` MCUs an interval, 0: no limit */
    Component component[COMPONENTS];
    int16_t quant[4][BLOCK_SIZE] __attribute__((aligned(32))); /* by jpeg_slot */
    Huffman dc[4], ac[4];
    int16_t differences[4][1 << DC_BITS];
    Step steps[4][1 << LOOK_BITS];
};

/* A component's samples for whole blocks [left, right) x [top, bottom), in blocks. */
typedef struct {
    Box blocks;
    int width, height; /* of the whole component in samples: blocks may go beyond its edges */
    int stride;
    uint8_t *samples;
} Plane;

/* The position of coefficient (y, x) in a block in memory. */
int jpeg_slot(int y, int x);

/* By zigzag place: y * 8 + x. */
extern const uint8_t jpeg_natural_order[BLOCK_SIZE];

int jpeg_parse(Jpeg *jpeg, const uint8_t *data, size_t size);
int jpeg_huffman(Huffman *table, const uint8_t counts[16], const uint8_t *symbols, int is_dc);
void jpeg_tables(Jpeg *jpeg); /* fills `differences` and `steps` from all Huffman tables */

/* Turns coefficients into samples. Coefficients and quantisation are ordered by jpeg_slot and aligned
 * to 32 bytes. Returns 0 if a sum is larger than LARGEST_COLUMNS. */
typedef int JpegBlock(const int16_t *coefficients, const int16_t *quant, uint8_t *out,
                      ptrdiff_t stride);
JpegBlock *jpeg_block_here(void);

int jpeg_pixels(const Plane planes[COMPONENTS], int count, int h, int v, Box part, uint8_t *out);

#endif
