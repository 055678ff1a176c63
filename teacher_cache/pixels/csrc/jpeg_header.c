/* A JPEG's header: only what is plain and sound is taken, the rest is left to Pillow.
 *
 * Plain is: baseline or extended Huffman, 8 bits, one scan of gray or of Y, Cb, Cr, chroma sampled
 * 1x1, 2x1 or 2x2. ITU-T T.81, annex B.
 */
#include <string.h>

#include "jpeg.h"

enum { SMALLEST = 16, LARGEST = 65500 };
enum { SOF0 = 0xC0, SOF1 = 0xC1, DHT = 0xC4, SOS = 0xDA, DQT = 0xDB, DRI = 0xDD, APP0 = 0xE0,
       APP14 = 0xEE, APP15 = 0xEF, COM = 0xFE };

const uint8_t jpeg_natural_order[BLOCK_SIZE] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48,
    41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23,
    30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63};

static int word(const uint8_t *at) { return at[0] << 8 | at[1]; }

static int read_huffman(Jpeg *jpeg, const uint8_t *at, int size) {
    while (size > 16) {
        int kind = at[0] >> 4, number = at[0] & 15, total = 0;
        for (int i = 1; i <= 16; i++) total += at[i];
        if (kind > 1 || number > 3 || total > 256 || total > size - 17) return 0;
        if (!jpeg_huffman(kind ? &jpeg->ac[number] : &jpeg->dc[number], at + 1, at + 17, !kind))
            return 0;
        at += 17 + total;
        size -= 17 + total;
    }
    return size == 0;
}

static int read_quantization(Jpeg *jpeg, const uint8_t *at, int size) {
    for (; size >= 65; at += 65, size -= 65) {
        int number = at[0]; /* the upper half, 1 for 16 bits, makes it more than 3 */
        if (number > 3) return 0;
        for (int i = 0; i < BLOCK_SIZE; i++) {
            int place = jpeg_natural_order[i];
            jpeg->quant[number][jpeg_slot(place / BLOCK_SIDE, place % BLOCK_SIDE)] = at[1 + i];
        }
    }
    return size == 0;
}

static int read_frame(Jpeg *jpeg, const uint8_t *at, int size) {
    if (jpeg->count || size < 6 || at[0] != 8) return 0;
    jpeg->height = word(at + 1);
    jpeg->width = word(at + 3);
    jpeg->count = at[5];
    if (jpeg->count != 1 && jpeg->count != COMPONENTS) return 0;
    if (size != 6 + 3 * jpeg->count) return 0;
    if (jpeg->width < SMALLEST || jpeg->width > LARGEST) return 0;
    if (jpeg->height < SMALLEST || jpeg->height > LARGEST) return 0;
    for (int i = 0; i < jpeg->count; i++) {
        Component *c = &jpeg->component[i];
        int quant = at[8 + 3 * i];
        if (quant > 3) return 0;
        *c = (Component){.id = at[6 + 3 * i], .h = at[7 + 3 * i] >> 4, .v = at[7 + 3 * i] & 15,
                         .quant = jpeg->quant[quant]};
        if (i > 0 && (c->h != 1 || c->v != 1)) return 0;
    }
    Component *first = &jpeg->component[0];
    if (jpeg->count == 1) { /* one component is never interleaved, whatever its factors */
        if (!first->h || !first->v || first->h > 4 || first->v > 4) return 0;
        first->h = first->v = 1;
    }
    return (first->h == 1 && first->v == 1) || (first->h == 2 && (first->v == 1 || first->v == 2));
}

static int read_scan(Jpeg *jpeg, const uint8_t *at, int size) {
    if (!jpeg->count || size != 4 + 2 * jpeg->count || at[0] != jpeg->count) return 0;
    for (int i = 0; i < jpeg->count; i++) {
        Component *c = &jpeg->component[i];
        int dc = at[2 + 2 * i] >> 4, ac = at[2 + 2 * i] & 15;
        if (at[1 + 2 * i] != c->id || dc > 3 || ac > 3) return 0;
        if (!jpeg->dc[dc].defined || !jpeg->ac[ac].defined) return 0;
        if (c->quant[0] == 0) return 0; /* not defined */
        c->dc = &jpeg->dc[dc];
        c->ac = &jpeg->ac[ac];
        c->differences = jpeg->differences[dc];
        c->steps = jpeg->steps[ac];
    }
    const uint8_t *rest = at + 1 + 2 * jpeg->count;
    return rest[0] == 0 && rest[1] == 63 && rest[2] == 0;
}

/* What a decoder takes three components for: only certain Y, Cb, Cr is plain. */
static int is_plain_colour(const Jpeg *jpeg, int jfif, int adobe) {
    if (jpeg->count == 1 || jfif) return 1;
    if (adobe >= 0) return adobe == 1;
    const Component *c = jpeg->component;
    return c[0].id == 1 && c[1].id == 2 && c[2].id == 3;
}

static int starts(const uint8_t *at, int length, const char *name) {
    return (size_t)length >= strlen(name) && memcmp(at, name, strlen(name)) == 0;
}

int jpeg_parse(Jpeg *jpeg, const uint8_t *data, size_t size) {
    memset(jpeg, 0, offsetof(Jpeg, differences));
    if (size < 4 || data[0] != 0xFF || data[1] != 0xD8) return 0;
    const uint8_t *at = data + 2, *end = data + size;
    int jfif = 0, adobe = -1;
    for (;;) {
        if (end - at < 4 || at[0] != 0xFF) return 0;
        int marker = at[1], length = word(at + 2) - 2, ok = 1;
        at += 4;
        if (length < 0 || end - at < length) return 0;
        if (marker == SOF0 || marker == SOF1) ok = read_frame(jpeg, at, length);
        else if (marker == DHT) ok = read_huffman(jpeg, at, length);
        else if (marker == DQT) ok = read_quantization(jpeg, at, length);
        else if (marker == DRI) {
            ok = length == 2;
            jpeg->restart = ok ? word(at) : 0;
        } else if (marker == APP0 && starts(at, length, "JFIF")) {
            ok = length >= 14; /* Pillow refuses some that are shorter */
            jfif |= ok && at[4] == 0;
        } else if (marker == APP14 && starts(at, length, "Adobe")) {
            ok = length >= 12;
            adobe = ok ? at[11] : adobe;
        } else if (marker == SOS) {
            jpeg->scan = at + length;
            jpeg->end = end;
            return read_scan(jpeg, at, length) && is_plain_colour(jpeg, jfif, adobe);
        } else ok = (marker >= APP0 && marker <= APP15) || marker == COM;
        if (!ok) return 0;
        at += length;
    }
}
