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

/* The value that `bits` extra bits stand for (T.81, table F.1 and F.2). */
static int extended(int value, int bits) {
    return bits && value < 1 << (bits - 1) ? value - (1 << bits) + 1 : value;
}

static void make_quick(Huffman *table, int code, int length, int symbol, int is_dc) {
    int bits = symbol & 15, spare = LOOK_BITS - length;
    for (int rest = 0; rest < 1 << spare; rest++) {
        int value = bits <= spare ? extended(rest >> (spare - bits), bits) : 0;
        int used = value ? length + bits : length;
        table->quick[code << spare | rest] = (uint32_t)value << 16 |
                                             (uint32_t)(value && !is_dc ? symbol >> 4 : symbol) << 8 |
                                             (uint32_t)used;
    }
}

static void make_leaps(Huffman *table) {
    for (uint32_t next = 0; next < 1 << LEAP_BITS; next++) {
        uint32_t bits = 0, places = 0, end = 0;
        while (!end) {
            uint32_t rest = (next << bits) & ((1 << LEAP_BITS) - 1);
            uint32_t quick = table->quick[rest << (LOOK_BITS - LEAP_BITS)], used = quick & 255;
            uint32_t middle = quick >> 8 & 255, is_value = quick >> 16;
            if (!quick || bits + used > LEAP_BITS) break;
            if (!is_value && (middle & 15)) break; /* its value does not fit */
            bits += used;
            if (is_value || middle == 0xF0) places += is_value ? middle + 1 : 16;
            else end = END;
        }
        table->leap[next] = end | places << 8 | bits;
    }
}

static int make_table(Huffman *table, const uint8_t counts[16], const uint8_t *symbols, int is_dc) {
    int code = 0, next = 0;
    memset(table, 0, sizeof *table);
    for (int length = 1; length <= 16; length++, code <<= 1) {
        table->offset[length] = next - code;
        for (int i = 0; i < counts[length - 1]; i++, code++, next++) {
            if (code >= (1 << length) - 1) return 0; /* too many, or the code of all ones */
            table->symbols[next] = symbols[next];
            if (is_dc && symbols[next] > 11) return 0;
            if (length <= LOOK_BITS) make_quick(table, code, length, symbols[next], is_dc);
        }
        table->last_code[length] = code << (16 - length);
    }
    table->last_code[17] = INT32_MAX;
    if (!is_dc) make_leaps(table);
    table->defined = 1;
    return 1;
}

static int read_huffman(Jpeg *jpeg, const uint8_t *at, int size) {
    while (size > 16) {
        int kind = at[0] >> 4, number = at[0] & 15, total = 0;
        for (int i = 1; i <= 16; i++) total += at[i];
        if (kind > 1 || number > 3 || total > 256 || total > size - 17) return 0;
        if (!make_table(kind ? &jpeg->ac[number] : &jpeg->dc[number], at + 1, at + 17, !kind))
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
        for (int i = 0; i < BLOCK_SIZE; i++)
            jpeg->quant[number][jpeg_natural_order[i]] = at[1 + i];
        jpeg->quant_defined[number] = 1;
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
        *c = (Component){.id = at[6 + 3 * i], .h = at[7 + 3 * i] >> 4, .v = at[7 + 3 * i] & 15,
                         .quant = at[8 + 3 * i]};
        if (c->quant > 3) return 0;
        if (i > 0 && (c->h != 1 || c->v != 1)) return 0;
    }
    Component *first = &jpeg->component[0];
    if (jpeg->count == 1) { /* one component is never interleaved, whatever its factors */
        if (!first->h || !first->v) return 0;
        first->h = first->v = 1;
    }
    return (first->h == 1 && first->v == 1) || (first->h == 2 && (first->v == 1 || first->v == 2));
}

static int read_scan(Jpeg *jpeg, const uint8_t *at, int size) {
    if (!jpeg->count || size != 4 + 2 * jpeg->count || at[0] != jpeg->count) return 0;
    for (int i = 0; i < jpeg->count; i++) {
        Component *c = &jpeg->component[i];
        c->dc = at[2 + 2 * i] >> 4;
        c->ac = at[2 + 2 * i] & 15;
        if (at[1 + 2 * i] != c->id || c->dc > 3 || c->ac > 3) return 0;
        if (!jpeg->dc[c->dc].defined || !jpeg->ac[c->ac].defined) return 0;
        if (!jpeg->quant_defined[c->quant]) return 0;
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

int jpeg_parse(Jpeg *jpeg, const uint8_t *data, size_t size) {
    const uint8_t *at = data + 2, *end = data + size;
    int jfif = 0, adobe = -1;
    memset(jpeg, 0, sizeof *jpeg);
    if (size < 4 || data[0] != 0xFF || data[1] != 0xD8) return 0;
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
        } else if (marker == APP0) jfif |= length >= 14 && !memcmp(at, "JFIF", 5);
        else if (marker == APP14 && length >= 12 && !memcmp(at, "Adobe", 5)) adobe = at[11];
        else if (marker == SOS) {
            jpeg->scan = at + length;
            jpeg->end = end;
            return read_scan(jpeg, at, length) && is_plain_colour(jpeg, jfif, adobe);
        } else ok = (marker >= APP0 && marker <= APP15) || marker == COM;
        if (!ok) return 0;
        at += length;
    }
}
