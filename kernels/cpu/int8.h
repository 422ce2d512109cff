/* int8.h - products of int8: the packed form of a weight, and what a level brings. Private to kernels/cpu.
 *
 * A packed weight W[k,n] is a header, then panels of 32 columns (the last one filled up with zeros). A panel is a run of blocks of
 * 32 rows, whole cache lines, read from first to last:
 *   scale[32] (half); with 4 bits: min[32] (half); codes.
 * Codes of 4 rows stand together, as the dot products of 4 bytes want them:
 *   8 bits: int8 code[8 groups][32 columns][4 rows], W = scale * code, never -128;
 *   4 bits: byte [4 groups g][32 columns][4 rows], low nibble of group g, high nibble of group g + 4; W = scale * code + min. */
#ifndef GR_CPU_INT8_H
#define GR_CPU_INT8_H

#include "kernels/cpu/impl.h"
#include "kernels/dequant.h"

enum { I8_COLUMNS = 32, I8_BLOCK = 32 };

typedef struct int8_weight {
    int64_t n, k, blocks; /* blocks = ceil(k / 32) */
    int64_t block_bytes;
    int bits; /* 8 or 4 */
    _Alignas(64) uint8_t data[];
} int8_weight;

static inline const uint8_t *int8_panel(const int8_weight *w, int64_t panel) {
    return w->data + panel * w->blocks * w->block_bytes;
}

/* Rows rounded to int8: x[i] is about scale * code, for every 32 of a row. */
typedef struct int8_rows {
    int64_t m, blocks, ld; /* ld: of the arrays of scales, m and some more: a power of two would crowd one set of a cache */
    int8_t *code;          /* [m, blocks*32], zeros after k */
    float *scale;          /* [blocks, ld] */
    float *sum;            /* [blocks, ld] scale * sum of codes: what a minimum is multiplied with */
    int32_t *offset;       /* [blocks, ld] -128 * sum of codes: undoes codes of W stored as unsigned */
} int8_rows;

/* What a block of largest magnitude `top` is multiplied with before rounding. Blocks of next to nothing are 0; a NaN stays one, by
 * its scale. */
static inline float int8_inverse(float top) { return top > 0x1p-100f ? 127.0f / top : 0; }

static inline void int8_finish_block(const int8_rows *r, int64_t i, int64_t b, float top, int32_t sum) {
    float scale = top > 0x1p-100f || top != top ? top / 127.0f : 0;
    r->scale[b * r->ld + i] = scale;
    r->sum[b * r->ld + i] = scale * (float)sum;
    r->offset[b * r->ld + i] = -128 * sum;
}

/* Block b of row i of r from x[k]; the same bits on all levels. */
static inline void int8_round_block(const int8_rows *r, int64_t i, int64_t b, const float *x, int64_t k) {
    float in[I8_BLOCK] = {0};
    int8_t *code = r->code + (i * r->blocks + b) * I8_BLOCK;
    int32_t largest = 0, sum = 0;
    for (int64_t j = 0; j < I8_BLOCK && b * I8_BLOCK + j < k; j++) in[j] = x[b * I8_BLOCK + j];
    for (int j = 0; j < I8_BLOCK; j++) { /* as integers: a NaN is the largest and stays one */
        int32_t magnitude = (int32_t)(gr_float_bits(in[j]) & 0x7fffffff);
        largest = magnitude > largest ? magnitude : largest;
    }
    float top = gr_bits_float((uint32_t)largest), inverse = int8_inverse(top);
    for (int j = 0; j < I8_BLOCK; j++) { /* adding 1.5 * 2^23 rounds to an integer in the low bits, to nearest even */
        int32_t q = (int32_t)(gr_float_bits(in[j] * inverse + 0x1.8p23f) - 0x4b400000u);
        code[j] = (int8_t)q;
        sum += code[j];
    }
    int8_finish_block(r, i, b, top, sum);
}

/* What a level brings: rows [begin,end) of an A rounded, and C of rows [i0,i1) and panels [p0,p1). */
typedef struct int8_level {
    void (*round)(const int8_rows *r, const float *a, int64_t lda, int64_t k, int64_t begin, int64_t end);
    void (*product)(const int8_rows *r, const gr_int8_product *p, int64_t i0, int64_t i1, int64_t p0, int64_t p1);
} int8_level;

/* A level's gr_int8_fn: rounds as many rows as there is room for, then deals the blocks of C to the threads. */
void gr_int8_by(const int8_level *level, gr_device *d, const float *a, int64_t lda, int64_t m, const gr_int8_product *products,
                int n_products);

#endif
