/* A block's coefficients -> 8 x 8 samples, by the integers of libjpeg's accurate inverse DCT
 * ("islow"; Loeffler, Ligtenberg and Moschytz 1989).
 *
 * libjpeg adds before it multiplies. Here each sum is written out as products of inputs and constants:
 * nothing is rounded in between, so these are the same integers, and a processor sums the products of
 * neighbours in one instruction. Hence the order of the coefficients in memory (jpeg_slot): rows y and
 * y + 4 side by side, columns 0 4 1 5 2 6 3 7. The first pass leaves its results in the same order for
 * the second.
 */
#include <string.h>

#include "jpeg.h"

typedef int32_t Row __attribute__((vector_size(32)));
typedef uint8_t Levels __attribute__((vector_size(8)));

/* Constants of the transform times 2^13 */
enum { C0298 = 2446, C0390 = 3196, C0541 = 4433, C0765 = 6270, C0899 = 7373, C1175 = 9633,
       C1501 = 12299, C1847 = 15137, C1961 = 16069, C2053 = 16819, C2562 = 20995, C3072 = 25172 };
enum { CONSTANT_BITS = 13, PASS_BITS = 2, ONE = 1 << CONSTANT_BITS };

/* The weights of (v0, v4) and (v2, v6) in the sums of the even half, and of (v1, v5) and (v3, v7) in
 * those of the odd half. */
enum { PAIRS = 4, SUMS = 4 };
static const int16_t even_weights[SUMS][2] = {
    {ONE, ONE}, {ONE, -ONE}, {C0541, C0541 - C1847}, {C0541 + C0765, C0541}};
static const int16_t odd_weights[SUMS][2][2] = {
    {{C1175 - C0899, C1175}, {C1175 - C1961, C0298 - C0899 + C1175 - C1961}},
    {{C1175 - C0390, C2053 - C2562 + C1175 - C0390}, {C1175 - C2562, C1175}},
    {{C1175, C1175 - C2562}, {C3072 - C2562 + C1175 - C1961, C1175 - C1961}},
    {{C1501 - C0899 + C1175 - C0390, C1175 - C0390}, {C1175, C1175 - C0899}}};

int jpeg_slot(int y, int x) {
    static const uint8_t pair_of[PAIRS] = {0, 2, 1, 3}, lane_of[BLOCK_SIDE] = {0, 2, 4, 6, 1, 3, 5, 7};
    return (pair_of[y % PAIRS] * BLOCK_SIDE + lane_of[x]) * 2 + y / PAIRS;
}

/* Eight transforms of one dimension side by side; the results are rounded by `shift` bits. */
INLINE void transform(Row v[BLOCK_SIDE], int shift) {
    Row even[SUMS], odd[SUMS];
    for (int i = 0; i < SUMS; i++) {
        const int16_t *w = even_weights[i];
        even[i] = i < 2 ? v[0] * w[0] + v[4] * w[1] : v[2] * w[0] + v[6] * w[1];
        const int16_t(*o)[2] = odd_weights[i];
        odd[i] = v[1] * o[0][0] + v[5] * o[0][1] + v[3] * o[1][0] + v[7] * o[1][1];
    }
    const int half = 1 << (shift - 1);
    const Row sums[SUMS] = {even[0] + even[3], even[1] + even[2], even[1] - even[2], even[0] - even[3]};
    for (int i = 0; i < SUMS; i++) {
        v[i] = (sums[i] + odd[SUMS - 1 - i] + half) >> shift;
        v[BLOCK_SIDE - 1 - i] = (sums[i] - odd[SUMS - 1 - i] + half) >> shift;
    }
}

INLINE void transpose(Row v[BLOCK_SIDE]) {
    for (int y = 0; y < BLOCK_SIDE; y++)
        for (int x = 0; x < y; x++) {
            int32_t kept = v[y][x];
            v[y][x] = v[x][y];
            v[x][y] = kept;
        }
}

static int block_plain(const int16_t *coefficients, const int16_t *quant, uint8_t *out,
                       ptrdiff_t stride) {
    Row v[BLOCK_SIDE], sum = {0};
    for (int y = 0; y < BLOCK_SIDE; y++) {
        for (int x = 0; x < BLOCK_SIDE; x++)
            v[y][x] = coefficients[jpeg_slot(y, x)] * quant[jpeg_slot(y, x)];
        Row sign = v[y] >> 31;
        sum += (v[y] ^ sign) - sign;
    }
    for (int x = 0; x < BLOCK_SIDE / 2; x++)
        if (sum[x] + sum[x + BLOCK_SIDE / 2] > LARGEST_COLUMNS) return 0;
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

#ifdef AVX2
AVX2 INLINE __m256i pair_of(const int16_t weights[2]) {
    uint32_t first = (uint16_t)weights[0], second = (uint16_t)weights[1];
    return _mm256_set1_epi32((int32_t)(first | second << 16));
}

/* The same of pairs (v0, v4), (v2, v6), (v1, v5), (v3, v7); `half` is added before the shift. */
AVX2 INLINE void transform_avx2(const __m256i pairs[PAIRS], __m256i half, int shift,
                                __m256i v[BLOCK_SIDE]) {
    __m256i even[SUMS], odd[SUMS];
    for (int i = 0; i < SUMS; i++) {
        even[i] = _mm256_madd_epi16(pairs[i / 2], pair_of(even_weights[i]));
        odd[i] = _mm256_add_epi32(_mm256_madd_epi16(pairs[2], pair_of(odd_weights[i][0])),
                                  _mm256_madd_epi16(pairs[3], pair_of(odd_weights[i][1])));
    }
    __m256i first = _mm256_add_epi32(even[0], half), second = _mm256_add_epi32(even[1], half);
    const __m256i sums[SUMS] = {_mm256_add_epi32(first, even[3]), _mm256_add_epi32(second, even[2]),
                                _mm256_sub_epi32(second, even[2]), _mm256_sub_epi32(first, even[3])};
    for (int i = 0; i < SUMS; i++) {
        v[i] = _mm256_srai_epi32(_mm256_add_epi32(sums[i], odd[SUMS - 1 - i]), shift);
        v[BLOCK_SIDE - 1 - i] =
            _mm256_srai_epi32(_mm256_sub_epi32(sums[i], odd[SUMS - 1 - i]), shift);
    }
}

/* Rows of 32-bit columns 0 4 1 5 2 6 3 7 -> pairs of columns, each for rows 0 to 7. */
AVX2 INLINE void pair_columns(const __m256i v[BLOCK_SIDE], __m256i pairs[PAIRS]) {
    __m256 rows[PAIRS];
    for (int i = 0; i < PAIRS; i++)
        rows[i] = _mm256_castsi256_ps(_mm256_packs_epi32(v[2 * i], v[2 * i + 1]));
    const __m256i halves[2][2] = {
        {_mm256_castps_si256(_mm256_shuffle_ps(rows[0], rows[1], 0x88)),  /* columns 0 4 | 2 6 */
         _mm256_castps_si256(_mm256_shuffle_ps(rows[2], rows[3], 0x88))},
        {_mm256_castps_si256(_mm256_shuffle_ps(rows[0], rows[1], 0xDD)),  /* columns 1 5 | 3 7 */
         _mm256_castps_si256(_mm256_shuffle_ps(rows[2], rows[3], 0xDD))}};
    for (int i = 0; i < 2; i++) {
        pairs[2 * i] = _mm256_permute2x128_si256(halves[i][0], halves[i][1], 0x20);
        pairs[2 * i + 1] = _mm256_permute2x128_si256(halves[i][0], halves[i][1], 0x31);
    }
}

/* Columns of 32-bit levels around 0 -> rows of bytes around 128, clipped. */
AVX2 INLINE void put_columns(const __m256i v[BLOCK_SIDE], uint8_t *out, ptrdiff_t stride) {
    const __m256i across = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    __m256i halves[2];
    for (int i = 0; i < 2; i++) {
        __m256i two = _mm256_packs_epi32(v[4 * i], v[4 * i + 1]);
        __m256i next = _mm256_packs_epi32(v[4 * i + 2], v[4 * i + 3]);
        __m256i level = _mm256_add_epi8(_mm256_packs_epi16(two, next), _mm256_set1_epi8(-128));
        halves[i] = _mm256_shuffle_epi8(level, across);
    }
    __m256i rows[2] = {_mm256_unpacklo_epi32(halves[0], halves[1]),
                       _mm256_unpackhi_epi32(halves[0], halves[1])};
    for (int i = 0; i < 2; i++) {
        __m128i upper = _mm256_castsi256_si128(rows[i]), lower = _mm256_extracti128_si256(rows[i], 1);
        uint8_t *at = out + 2 * i * stride;
        _mm_storel_epi64((__m128i *)at, upper);
        _mm_storeh_pd((double *)(at + stride), _mm_castsi128_pd(upper));
        at += 4 * stride;
        _mm_storel_epi64((__m128i *)at, lower);
        _mm_storeh_pd((double *)(at + stride), _mm_castsi128_pd(lower));
    }
}

AVX2 static int block_avx2(const int16_t *coefficients, const int16_t *quant, uint8_t *out,
                           ptrdiff_t stride) {
    __m256i pairs[PAIRS], v[BLOCK_SIDE], sum = _mm256_setzero_si256();
    for (int i = 0; i < PAIRS; i++) {
        __m256i value = _mm256_load_si256((const __m256i *)coefficients + i);
        __m256i scale = _mm256_load_si256((const __m256i *)quant + i);
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_abs_epi16(value), scale));
        pairs[i] = _mm256_mullo_epi16(value, scale);
    }
    sum = _mm256_add_epi32(sum, _mm256_shuffle_epi32(sum, _MM_SHUFFLE(2, 3, 0, 1))); /* x, x + 4 */
    __m256i wild = _mm256_cmpgt_epi32(sum, _mm256_set1_epi32(LARGEST_COLUMNS));
    if (!_mm256_testz_si256(wild, wild)) return 0;
    const int first = CONSTANT_BITS - PASS_BITS, second = CONSTANT_BITS + PASS_BITS + 3;
    transform_avx2(pairs, _mm256_set1_epi32(1 << (first - 1)), first, v);
    pair_columns(v, pairs);
    transform_avx2(pairs, _mm256_set1_epi32(1 << (second - 1)), second, v);
    put_columns(v, out, stride);
    return 1;
}
#endif

JpegBlock *jpeg_block_here(void) {
#ifdef AVX2
    if (__builtin_cpu_supports("avx2")) return block_avx2;
#endif
    return block_plain;
}
