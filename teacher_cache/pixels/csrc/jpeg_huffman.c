/* Huffman tables that decode more than one symbol at a time (ITU-T T.81, annexes C and F). */
#include <string.h>

#include "jpeg.h"

enum { MOST_DC_BITS = 11, END_OF_BLOCK = 0x00, SIXTEEN_ZEROS = 0xF0 };

int jpeg_huffman(Huffman *table, const uint8_t counts[16], const uint8_t *symbols, int is_dc) {
    int code = 0, next = 0;
    memset(table, 0, sizeof *table);
    memcpy(table->counts, counts, sizeof table->counts);
    for (int length = 1; length <= 16; length++, code <<= 1) {
        table->offset[length] = next - code;
        for (int i = 0; i < table->counts[length - 1]; i++, code++, next++) {
            /* too many codes, or the code of all ones, which T.81 reserves */
            if (next == 256 || code >= (1 << length) - 1) return 0;
            if (is_dc && symbols[next] > MOST_DC_BITS) return 0;
            table->symbols[next] = symbols[next];
            int spare = CODE_BITS - length;
            for (int rest = 0; spare >= 0 && rest < 1 << spare; rest++)
                table->code[code << spare | rest] = (uint16_t)(length << 8 | symbols[next]);
        }
        table->last_code[length] = code << (16 - length);
    }
    table->last_code[17] = INT32_MAX;
    table->defined = 1;
    return 1;
}

/* One AC symbol whose code and value fit into LOOK_BITS, packed from the lowest bit on: in 6 bits, how
 * many bits code and value have; STEP_END; in 8 bits, the number of places from the last coefficient to
 * this one, or 16 for sixteen zeros; the value. */
enum { PLACES = 8, VALUE = 16 };

/* The value that `size` bits behind a code stand for (T.81, tables F.1 and F.2). */
static int meant(int bits, int size) { return bits < 1 << (size - 1) ? bits - (1 << size) + 1 : bits; }

static void fill(uint32_t *at, int count, uint32_t with) {
    for (int i = 0; i < count; i++) at[i] = with;
}

static void singles_of(const Huffman *table, uint32_t single[1 << LOOK_BITS]) {
    int next = 0;
    uint32_t *at = single;
    for (int length = 1; length <= LOOK_BITS; length++)
        for (int i = 0; i < table->counts[length - 1]; i++, next++) {
            int symbol = table->symbols[next], size = symbol & 15, spare = LOOK_BITS - length - size;
            uint32_t all = 1u << (LOOK_BITS - length), bits = (uint32_t)(length + size);
            if (symbol == END_OF_BLOCK) fill(at, (int)all, bits | STEP_END);
            else if (symbol == SIXTEEN_ZEROS) fill(at, (int)all, bits | 16 << PLACES);
            else if (size && spare >= 0)
                for (int value = 0; value < 1 << size; value++)
                    fill(at + (value << spare), 1 << spare,
                         (uint32_t)meant(value, size) << VALUE |
                             (uint32_t)((symbol >> 4) + 1) << PLACES | bits);
            at += all;
        }
}

/* The entry for the bits of `next` that follow the first `bits`; the missing ones count as 0. */
INLINE uint32_t behind(const uint32_t *table, uint32_t next, uint32_t bits) {
    return table[next << bits & ((1u << LOOK_BITS) - 1)];
}

HOT static void steps_of(const uint32_t single[1 << LOOK_BITS], Step step[1 << LOOK_BITS]) {
    for (uint32_t next = 0; next < 1 << LOOK_BITS; next++) {
        uint32_t one = single[next], bits = one & 63, first = one >> PLACES & 255;
        uint32_t two = behind(single, next, bits), after = bits + (two & 63);
        uint32_t value = one >> VALUE, value2 = two >> VALUE;
        uint32_t fits = value && after <= LOOK_BITS, both = fits && value2;
        uint32_t three = behind(single, next, after & 15), end3 = three & STEP_END;
        uint32_t all = after + (three & 63), ends = both && end3 && all <= LOOK_BITS;
        uint32_t end = fits && (two & STEP_END);
        uint32_t used = ends ? all : both || end ? after : bits;
        uint32_t last = first + (both ? two >> PLACES & 255 : 0);
        uint32_t low = used | (ends || end ? STEP_END : 0) | first << STEP_FIRST |
                       (both ? last : NOWHERE) << STEP_SECOND | last << STEP_LAST;
        uint32_t only = bits | STEP_END | NOWHERE << STEP_FIRST | NOWHERE << STEP_SECOND;
        low = value ? low : one & STEP_END ? only : 0;
        step[next] = low ? (Step)(value | value2 << 16) << STEP_VALUE | low : 0;
    }
}

static void tables_of_ac(const Huffman *table, Step steps[1 << LOOK_BITS]) {
    uint32_t single[1 << LOOK_BITS];
    memset(single, 0, sizeof single);
    singles_of(table, single);
    steps_of(single, steps);
}

static void differences_of(const Huffman *table, int16_t difference[1 << DC_BITS]) {
    for (int next = 0; next < 1 << DC_BITS; next++) {
        int code = table->code[next >> (DC_BITS - CODE_BITS)], size = code & 15;
        int bits = (code >> 8) + size, value = 0;
        if (!code || bits > DC_BITS) bits = 0;
        else if (size) value = meant(next >> (DC_BITS - bits) & ((1 << size) - 1), size);
        difference[next] = (int16_t)(value * 16 + bits);
    }
}

void jpeg_tables(Jpeg *jpeg) {
    for (int i = 0; i < 4; i++) {
        if (jpeg->dc[i].defined) differences_of(&jpeg->dc[i], jpeg->differences[i]);
        if (jpeg->ac[i].defined) tables_of_ac(&jpeg->ac[i], jpeg->steps[i]);
    }
}
