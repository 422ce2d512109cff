/* int8_tmpl.h - products of int8 of a vectorised level: dot products of 4 bytes in 32-bit lanes, a lane for each column. A tile is
 * some rows times one vector of columns; within a block of 32 all is integers, then each block is added to float32 sums. */
#include "kernels/cpu/int8.h"
#include "kernels/cpu/vec.h"

INLINE int32_t vi_largest8(__m256i v) {
    __m128i x = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    x = _mm_max_epi32(x, _mm_shuffle_epi32(x, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(x, _mm_shuffle_epi32(x, 0xb1)));
}
INLINE int32_t vi_sum8(__m256i v) {
    __m128i x = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    x = _mm_add_epi32(x, _mm_shuffle_epi32(x, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(x, _mm_shuffle_epi32(x, 0xb1)));
}

#if defined(__AVX512F__)

/* A tile is 7 rows of a panel: the products of 14 registers of sums hide the loads of 7 broadcasts and 2 vectors of W. */
enum { I8_ROWS = 7, I8_WIDE_ROWS = 7 }; /* rows of a tile, and of one of two vectors */
typedef __m512i vi;
INLINE vi vi_load(const void *p) { return _mm512_loadu_si512(p); }
INLINE vi vi_four(const int8_t *p) { /* 4 bytes in every lane */
    int32_t four;
    memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
}
INLINE vi vi_low(vi v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
INLINE vi vi_high(vi v) { return vi_low(_mm512_srli_epi16(v, 4)); }
INLINE vf vi_float(vi v) { return _mm512_cvtepi32_ps(v); }
INLINE vf v_halves(const uint8_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p)); }
/* Sums of one block: signed codes are offset by 128, which `offset` undoes. */
INLINE vi sum8_start(int32_t offset) { return _mm512_set1_epi32(offset); }
INLINE vi code8(vi w) { return _mm512_xor_si512(w, _mm512_set1_epi8((char)0x80)); }
INLINE vi sum8_add(vi sum, vi w, vi x) { return _mm512_dpbusd_epi32(sum, w, x); }
INLINE vi sum4_add(vi sum, vi w, vi x) { return _mm512_dpbusd_epi32(sum, w, x); }
INLINE vi sum4_end(vi sum) { return sum; }
INLINE vi vi_zero(void) { return _mm512_setzero_si512(); }
INLINE vi vi_add(vi a, vi b) { return _mm512_add_epi32(a, b); }
INLINE vi vi_max(vi a, vi b) { return _mm512_max_epi32(a, b); }
INLINE vi vi_magnitude(vf v) { return _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7fffffff)); }
INLINE int32_t vi_largest(vi v) {
    return vi_largest8(_mm256_max_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1)));
}
INLINE int32_t vi_sum(vi v) { return vi_sum8(_mm256_add_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1))); }
/* The integers that adding 1.5 * 2^23 left in the low bits, as bytes to memory; returned as they are there. */
INLINE vi vi_code(int8_t *to, vf v) {
    vi q = _mm512_sub_epi32(_mm512_castps_si512(v), _mm512_set1_epi32(0x4b400000));
    __m128i bytes = _mm512_cvtepi32_epi8(q);
    _mm_storeu_si128((void *)to, bytes);
    return _mm512_cvtepi8_epi32(bytes);
}

#else

/* Up to 2 rows leave registers for two vectors of a panel, which then share the broadcasts of A. */
enum { I8_ROWS = 4, I8_WIDE_ROWS = 2 };
typedef __m256i vi;
INLINE vi vi_load(const void *p) { return _mm256_loadu_si256(p); }
INLINE vi vi_four(const int8_t *p) {
    int32_t four;
    memcpy(&four, p, 4);
    return _mm256_set1_epi32(four);
}
INLINE vi vi_low(vi v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
INLINE vi vi_high(vi v) { return vi_low(_mm256_srli_epi16(v, 4)); }
INLINE vf vi_float(vi v) { return _mm256_cvtepi32_ps(v); }
INLINE vf v_halves(const uint8_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const void *)p)); }
INLINE vi vi_zero(void) { return _mm256_setzero_si256(); }
INLINE vi vi_add(vi a, vi b) { return _mm256_add_epi32(a, b); }
INLINE vi vi_max(vi a, vi b) { return _mm256_max_epi32(a, b); }
INLINE vi vi_magnitude(vf v) { return _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(0x7fffffff)); }
INLINE int32_t vi_largest(vi v) { return vi_largest8(v); }
INLINE int32_t vi_sum(vi v) { return vi_sum8(v); }
INLINE vi vi_code(int8_t *to, vf v) {
    vi q = _mm256_sub_epi32(_mm256_castps_si256(v), _mm256_set1_epi32(0x4b400000));
    const __m256i low_bytes = _mm256_set1_epi32(0x0c080400);
    __m256i bytes = _mm256_shuffle_epi8(q, low_bytes); /* 4 of each half */
    int32_t low = _mm256_extract_epi32(bytes, 0), high = _mm256_extract_epi32(bytes, 4);
    memcpy(to, &low, 4);
    memcpy(to + 4, &high, 4);
    return _mm256_srai_epi32(_mm256_slli_epi32(q, 24), 24);
}
INLINE vi sum8_start(int32_t offset) {
    (void)offset;
    return vi_zero();
}
INLINE vi code8(vi w) { return w; }
/* |x| * (w with x's sign): a pair is at most 2 * 127 * 127, which 16 bits hold. */
INLINE vi sum8_add(vi sum, vi w, vi x) {
    vi pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(w, x));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
/* 16 products of 15 * 127 at most in a 16-bit lane: a whole block fits. */
INLINE vi sum4_add(vi sum, vi w, vi x) { return _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, x)); }
INLINE vi sum4_end(vi sum) { return _mm256_madd_epi16(sum, _mm256_set1_epi16(1)); }

#endif

/* int8_round_block's arithmetic on whole blocks, a vector at a time; a last, shorter one is left to it. */
static void round_vector(const int8_rows *r, const float *a, int64_t lda, int64_t k, int64_t begin, int64_t end) {
    enum { VECTORS = I8_BLOCK / VL };
    for (int64_t i = begin; i < end; i++) {
        for (int64_t b = 0; b < k / I8_BLOCK; b++) {
            const float *x = a + i * lda + b * I8_BLOCK;
            int8_t *code = r->code + (i * r->blocks + b) * I8_BLOCK;
            vf in[VECTORS];
            vi largest = vi_zero(), sum = vi_zero();
            UNROLL(int v = 0; v < VECTORS; v++) {
                in[v] = v_load(x + v * VL);
                largest = vi_max(largest, vi_magnitude(in[v]));
            }
            float top = gr_bits_float((uint32_t)vi_largest(largest));
            vf inverse = v_set(int8_inverse(top));
            UNROLL(int v = 0; v < VECTORS; v++)
                sum = vi_add(sum, vi_code(code + v * VL, v_add(v_mul(in[v], inverse), v_set(0x1.8p23f))));
            int8_finish_block(r, i, b, top, vi_sum(sum));
        }
        if (k % I8_BLOCK) int8_round_block(r, i, r->blocks - 1, a + i * lda, k);
    }
}

/* C[mr, n] from column `first` of a panel on, in nv vectors, n in (VL (nv-1), VL nv]; row i of r and of c is the first. */
INLINE void int8_tile(const int mr, const int nv, const int bits, const int8_rows *r, int64_t i, const uint8_t *panel,
                      int64_t first, int64_t n, const gr_int8_product *p, float *c, const float *bias) {
    const int64_t scales = 2 * I8_COLUMNS, block_bytes = I8_COLUMNS * (bits == 8 ? 2 + I8_BLOCK : 4 + I8_BLOCK / 2);
    const int64_t ldx = r->blocks * I8_BLOCK, tail = n - (nv - 1) * VL;
    const int8_t *row[(I8_ROWS + 2) / 3]; /* of every third row, as in tile.h */
    vf acc[I8_ROWS][2];
    UNROLL(int q = 0; q < mr; q++) {
        if (q % 3 == 0) row[q / 3] = r->code + (i + q) * ldx;
        acc[q][0] = acc[q][1] = v_set(0);
    }
    for (int64_t b = 0; b < r->blocks; b++, panel += block_bytes) {
        const uint8_t *codes = panel + (bits == 8 ? scales : 2 * scales) + 4 * first;
        const int64_t at = b * r->ld + i;
        vi sum[I8_ROWS][2];
        UNROLL(int q = 0; q < mr; q++) sum[q][0] = sum[q][1] = bits == 8 ? sum8_start(r->offset[at + q]) : vi_zero();
        for (int g = 0; g < (bits == 8 ? 8 : 4); g++, codes += 4 * I8_COLUMNS) {
            vi w[2], high[2];
            UNROLL(int v = 0; v < nv; v++) {
                w[v] = vi_load(codes + v * 4 * VL);
                if (bits == 8) w[v] = code8(w[v]);
                else high[v] = vi_high(w[v]), w[v] = vi_low(w[v]);
            }
            UNROLL(int q = 0; q < mr; q++) {
                const int8_t *x = row[q / 3] + q % 3 * ldx + 4 * g;
                UNROLL(int v = 0; v < nv; v++) {
                    sum[q][v] = bits == 8 ? sum8_add(sum[q][v], w[v], vi_four(x)) : sum4_add(sum[q][v], w[v], vi_four(x));
                    if (bits == 4) sum[q][v] = sum4_add(sum[q][v], high[v], vi_four(x + 16));
                }
            }
        }
        UNROLL(int q = 0; q < (mr + 2) / 3; q++) row[q] += I8_BLOCK;
        UNROLL(int v = 0; v < nv; v++) {
            const uint8_t *s = panel + 2 * (first + v * VL);
            vf scale = v_halves(s), min = bits == 4 ? v_halves(s + scales) : scale;
            UNROLL(int q = 0; q < mr; q++) {
                vi dot = bits == 8 ? sum[q][v] : sum4_end(sum[q][v]);
                acc[q][v] = v_fma(vi_float(dot), v_mul(scale, v_set(r->scale[at + q])), acc[q][v]);
                if (bits == 4) acc[q][v] = v_fma(min, v_set(r->sum[at + q]), acc[q][v]);
            }
        }
    }
    UNROLL(int q = 0; q < mr; q++)
        UNROLL(int v = 0; v < nv; v++) {
            const int64_t count = v == nv - 1 ? tail : VL;
            float *to = c + q * p->ldc + v * VL;
            if (bias) acc[q][v] = v_add(acc[q][v], v_load_n(bias + v * VL, count));
            if (p->accumulate) acc[q][v] = v_add(v_load_n(to, count), acc[q][v]);
            v_store_n(to, acc[q][v], count);
        }
}

typedef void int8_tile_fn(const int8_rows *r, int64_t i, const uint8_t *panel, int64_t first, int64_t n, const gr_int8_product *p,
                          float *c, const float *bias);
#define TILE(mr, nv, bits)                                                                                                         \
    static void tile_##mr##_##nv##_##bits(const int8_rows *r, int64_t i, const uint8_t *panel, int64_t first, int64_t n,           \
                                          const gr_int8_product *p, float *c, const float *bias) {                                 \
        int8_tile(mr, nv, bits, r, i, panel, first, n, p, c, bias);                                                                \
    }
#define TILES(mr, nv) TILE(mr, nv, 4) TILE(mr, nv, 8)
#define ROW(mr, nv)   [mr] = {tile_##mr##_##nv##_4, tile_##mr##_##nv##_8}
/* clang-format off */
TILES(1, 1) TILES(2, 1) TILES(3, 1) TILES(4, 1) TILES(1, 2) TILES(2, 2)
#if defined(__AVX512F__)
TILES(5, 1) TILES(6, 1) TILES(7, 1) TILES(3, 2) TILES(4, 2) TILES(5, 2) TILES(6, 2) TILES(7, 2)
static int8_tile_fn *const int8_tiles[][I8_ROWS + 1][2] = {
    {ROW(1, 1), ROW(2, 1), ROW(3, 1), ROW(4, 1), ROW(5, 1), ROW(6, 1), ROW(7, 1)},
    {ROW(1, 2), ROW(2, 2), ROW(3, 2), ROW(4, 2), ROW(5, 2), ROW(6, 2), ROW(7, 2)},
};
#else
static int8_tile_fn *const int8_tiles[][I8_ROWS + 1][2] = {
    {ROW(1, 1), ROW(2, 1), ROW(3, 1), ROW(4, 1)},
    {ROW(1, 2), ROW(2, 2)},
};
#endif
/* clang-format on */
#undef ROW
#undef TILES
#undef TILE

/* Columns [j, end) of rows [i, i+mr). */
static void product_columns(const int8_rows *r, const gr_int8_product *p, int64_t i, int64_t mr, int64_t j, int64_t end) {
    const int8_weight *w = p->packed;
    for (int64_t nv; j < end; j += nv * VL) {
        nv = mr <= I8_WIDE_ROWS && end - j > VL ? 2 : 1;
        int64_t n = end - j < nv * VL ? end - j : nv * VL;
        int8_tiles[nv - 1][mr][w->bits == 8](r, i, int8_panel(w, j / I8_COLUMNS), j % I8_COLUMNS, n, p, p->c + i * p->ldc + j,
                                             p->bias ? p->bias + j : NULL);
    }
}

/* A panel stays in the first-level cache while all rows pass by. */
static void product_vector(const int8_rows *r, const gr_int8_product *p, int64_t i0, int64_t i1, int64_t p0, int64_t p1) {
    int64_t n_tiles = (i1 - i0 + I8_ROWS - 1) / I8_ROWS, n = ((const int8_weight *)p->packed)->n;
    for (int64_t j = p0 * I8_COLUMNS; j < p1 * I8_COLUMNS && j < n; j += I8_COLUMNS)
        for (int64_t t = 0, i = i0, mr; t < n_tiles; t++, i += mr) {
            mr = (i1 - i + n_tiles - t - 1) / (n_tiles - t);
            product_columns(r, p, i, mr, j, j + I8_COLUMNS < n ? j + I8_COLUMNS : n);
        }
}

static const int8_level vector_level = {round_vector, product_vector};
