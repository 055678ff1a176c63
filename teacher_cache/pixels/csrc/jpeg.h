/* Between a JPEG's header (jpeg_header.c), its Huffman tables (jpeg_huffman.c), its entropy-coded
 * bits (jpeg.c), its blocks (jpeg_block.c) and its pixels (jpeg_pixels.c). */
#ifndef RETORT_JPEG_H
#define RETORT_JPEG_H

#include "native.h"

enum { BLOCK_SIDE = 8, BLOCK_SIZE = 64, COMPONENTS = 3 };

/* Sum of the dequantised coefficients of columns x and x + 4, in magnitude: beyond it sums that
 * libjpeg-turbo keeps in 16 bits might saturate in its first pass, or wrap in its second, which adds
 * such columns. No photograph comes near. */
enum { LARGEST_COLUMNS = 5700 };

/* How many bits the tables look at. */
enum { CODE_BITS = 9, LOOK_BITS = 11, DC_BITS = 10 };

/* A step over one or two coefficients, packed, lowest bits first: 6 bits how many bits to consume,
 * 1 bit END, 1 bit unused; 8 bits the first one's place and 8 bits the second one's, NOWHERE if
 * there is none, and 8 bits the last one's, all after the last coefficient before them; 16 bits
 * each for both values. 0: not even one code and its value fit. */
typedef uint64_t Step;
enum { STEP_END = 1 << 6, STEP_FIRST = 8, STEP_SECOND = 16, STEP_LAST = 24, STEP_VALUE = 32,
       STEP_VALUE2 = 48, NOWHERE = 64 };

/* A Huffman table: `code`, by the next CODE_BITS bits, is length << 8 | symbol, or 0 where the code
 * is longer. */
typedef struct {
    int defined;
    uint8_t counts[16], symbols[256];
    int32_t last_code[18]; /* by length: one past the last code, left-aligned to 16 bits */
    int32_t offset[17];    /* by length: index of a symbol minus its code */
    uint16_t code[1 << CODE_BITS];
} Huffman;

typedef struct {
    int h, v; /* sampling factors */
    int id;
    const int16_t *quant; /* by jpeg_slot */
    const Huffman *dc, *ac;
    const int16_t *differences; /* of DC, by the next DC_BITS bits: value << 4 | bits, or 0 */
    const Step *steps; /* of AC, by the next LOOK_BITS bits */
} Component;

struct Jpeg {
    const uint8_t *scan, *end; /* entropy-coded data */
    int width, height, count, restart;
    Component component[COMPONENTS];
    int16_t quant[4][BLOCK_SIZE] __attribute__((aligned(32))); /* by jpeg_slot */
    Huffman dc[4], ac[4];
    int16_t differences[4][1 << DC_BITS];
    Step steps[4][1 << LOOK_BITS];
};

/* A component's samples for whole blocks [left, right) x [top, bottom), in blocks. */
typedef struct {
    Box blocks;
    int width, height; /* of the whole component, in samples: nothing beyond is an image */
    int stride;
    uint8_t *samples;
} Plane;

/* Where coefficient (y, x) stands in a block in memory. */
int jpeg_slot(int y, int x);

/* Zigzag place -> y * 8 + x. */
extern const uint8_t jpeg_natural_order[BLOCK_SIZE];

int jpeg_parse(Jpeg *jpeg, const uint8_t *data, size_t size);
int jpeg_huffman(Huffman *table, const uint8_t counts[16], const uint8_t *symbols, int is_dc);
void jpeg_tables(Jpeg *jpeg); /* `differences` and `steps` of all components */

/* Coefficients and quantisation by jpeg_slot, both aligned to 32 bytes -> samples; 0 for what is
 * beyond LARGEST_COLUMNS. */
typedef int JpegBlock(const int16_t *coefficients, const int16_t *quant, uint8_t *out,
                      ptrdiff_t stride);
JpegBlock *jpeg_block_here(void);

int jpeg_pixels(const Plane planes[COMPONENTS], int count, int h, int v, Box part, uint8_t *out);

#endif
