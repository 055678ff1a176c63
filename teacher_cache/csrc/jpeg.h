/* Between a JPEG's entropy-coded bits (jpeg.c), its header (jpeg_header.c) and its pixels
 * (jpeg_pixels.c). */
#ifndef RETORT_JPEG_H
#define RETORT_JPEG_H

#include "native.h"

enum { LOOK_BITS = 12, LEAP_BITS = 10, BLOCK_SIDE = 8, BLOCK_SIZE = 64, COMPONENTS = 3 };

/* Sum of a column's dequantised coefficients, in magnitude: beyond it libjpeg-turbo's 16-bit sums
 * might saturate. No photograph comes near. */
enum { LARGEST_COLUMN = 5700 };

enum { END = 1 << 16 };

/* A Huffman table. `quick`, by the next LOOK_BITS bits, is 0 where the code is longer than that, and
 * else value << 16 | run << 8 | bits: a whole coefficient, code and value. The value 0 stands for
 * what is none: then the middle byte is the symbol, whose value (if any) is still to be read. */
typedef struct {
    int defined;
    uint8_t symbols[256];
    int32_t last_code[18]; /* by length: one past the last code, left-aligned to 16 bits */
    int32_t offset[17];    /* by length: index of a symbol minus its code */
    uint32_t quick[1 << LOOK_BITS];
    /* of AC, by the next LEAP_BITS bits: all coefficients that fit, as places << 8 | bits, END added
     * where the block ends with them; 0 if none fits */
    uint32_t leap[1 << LEAP_BITS];
} Huffman;

typedef struct {
    int h, v; /* sampling factors */
    int quant, dc, ac;
    int id;
} Component;

struct Jpeg {
    const uint8_t *scan, *end; /* entropy-coded data */
    int width, height, count, restart;
    Component component[COMPONENTS];
    int quant_defined[4];
    uint16_t quant[4][BLOCK_SIZE]; /* in natural order */
    Huffman dc[4], ac[4];
};

/* A component's samples for whole blocks [left, right) x [top, bottom), in blocks. */
typedef struct {
    Box blocks;
    int width, height; /* of the whole component, in samples: nothing beyond is an image */
    int stride;
    uint8_t *samples;
} Plane;

extern const uint8_t jpeg_natural_order[BLOCK_SIZE];
int jpeg_parse(Jpeg *jpeg, const uint8_t *data, size_t size);
int jpeg_block(const int16_t coefficients[BLOCK_SIZE], const uint16_t quant[BLOCK_SIZE], uint8_t *out,
               ptrdiff_t stride);
int jpeg_pixels(const Plane planes[COMPONENTS], int count, int h, int v, Box part, uint8_t *out);

#endif
