/* tile.h - products of small blocks, shared by GEMM and attention of a vectorised level. B lies in panels: PANEL = 2 VL
 * columns wide, k rows, one panel after the other, zero-padded. Every element is one FMA chain over k from zero, then added to
 * what C held: long sums made of such pieces lose far less to rounding than one long chain would.
 *
 * An element of A and B is a float, or at the levels that multiply bfloat16 a pair of those, which stand one after the other along
 * k: k then counts pairs, and packing moves pairs as it moves floats. */
#ifndef GR_CPU_TILE_H
#define GR_CPU_TILE_H

#include "kernels/cpu/vec.h"

enum {
    PANEL = 2 * VL,
    TILE_ROWS = VL == 16 ? 14 : 6, /* 2 x TILE_ROWS accumulators + 2 of B + 1 of A fill the registers */
};

#if defined(GR_PAIRS)
#define v_multiply_add(pairs, a, b, c) (pairs ? v_pair_fma(a, b, c) : v_fma(a, b, c))
#else
#define v_multiply_add(pairs, a, b, c) ((void)(pairs), v_fma(a, b, c))
#endif

/* A product of floats that continues the sums of another, A[m,k] with rows rs apart and B[k,n] in panels; k = 0: none. */
typedef struct tail {
    int64_t k, rs;
    const float *a, *b;
} tail;

/* The one of the block of C that begins at this row, and at this column, which begins a panel. */
static inline tail tail_at(const tail *t, int64_t row, int64_t column) {
    return t->k > 0 ? (tail){t->k, t->rs, t->a + row * t->rs, t->b + column * t->k} : (tail){0};
}

/* C[mr, n] (+)= A[mr,k] panel[k, n] and its tail; pairs, mr and nv constants, n in (VL (nv-1), VL nv]. Rows of A are reached from
 * every third one by 0, 1 or 2 strides, which needs few address registers whichever of the two strides of A is 1. */
INLINE void tile(const int pairs, const int mr, const int nv, int64_t k, const float *a, int64_t rs, int64_t cs, const float *b,
                 const tail *more, float *c, int64_t ldc, int64_t n, int accumulate) {
    vf acc[TILE_ROWS][2];
    const float *row[(TILE_ROWS + 2) / 3];
    const int64_t last = n - (nv - 1) * VL;
    UNROLL(int i = 0; i < mr; i++) {
        if (i % 3 == 0) row[i / 3] = a + i * rs;
        acc[i][0] = acc[i][1] = v_set(0);
    }
    for (int64_t p = 0; p < k; p++, b += PANEL) {
        vf b0 = v_load(b), b1 = nv == 2 ? v_load(b + VL) : b0;
        UNROLL(int i = 0; i < mr; i++) {
            vf ai = v_set(row[i / 3][i % 3 * rs]);
            acc[i][0] = v_multiply_add(pairs, ai, b0, acc[i][0]);
            if (nv == 2) acc[i][1] = v_multiply_add(pairs, ai, b1, acc[i][1]);
        }
        UNROLL(int i = 0; i < (mr + 2) / 3; i++) row[i] += cs;
    }
    if (more->k > 0) {
        b = more->b, rs = more->rs;
        UNROLL(int i = 0; i < mr; i += 3) row[i / 3] = more->a + i * rs;
        for (int64_t p = 0; p < more->k; p++, b += PANEL) {
            vf b0 = v_load(b), b1 = nv == 2 ? v_load(b + VL) : b0;
            UNROLL(int i = 0; i < mr; i++) {
                vf ai = v_set(row[i / 3][i % 3 * rs + p]);
                acc[i][0] = v_fma(ai, b0, acc[i][0]);
                if (nv == 2) acc[i][1] = v_fma(ai, b1, acc[i][1]);
            }
        }
    }
    UNROLL(int i = 0; i < mr; i++) {
        if (accumulate) {
            if (nv == 2) acc[i][0] = v_add(v_load(c + i * ldc), acc[i][0]);
            acc[i][nv - 1] = v_add(v_load_n(c + i * ldc + (nv - 1) * VL, last), acc[i][nv - 1]);
        }
        if (nv == 2) v_store(c + i * ldc, acc[i][0]);
        v_store_n(c + i * ldc + (nv - 1) * VL, acc[i][nv - 1], last);
    }
}

typedef void tile_fn(int64_t k, const float *a, int64_t rs, int64_t cs, const float *b, const tail *more, float *c, int64_t ldc,
                     int64_t n, int accumulate);
#define TILE(pairs, mr, nv)                                                                                                        \
    static void tile_##pairs##_##mr##_##nv(int64_t k, const float *a, int64_t rs, int64_t cs, const float *b, const tail *more,    \
                                           float *c, int64_t ldc, int64_t n, int accumulate) {                                     \
        tile(pairs, mr, nv, k, a, rs, cs, b, more, c, ldc, n, accumulate);                                                         \
    }
#define SIX(each, pairs) each(pairs, 1) each(pairs, 2) each(pairs, 3) each(pairs, 4) each(pairs, 5) each(pairs, 6)
#if defined(__AVX512F__)
#define ALL(each, pairs)                                                                                                           \
    SIX(each, pairs)                                                                                                               \
    each(pairs, 7) each(pairs, 8) each(pairs, 9) each(pairs, 10) each(pairs, 11) each(pairs, 12) each(pairs, 13) each(pairs, 14)
#else
#define ALL(each, pairs) SIX(each, pairs)
#endif
#define BOTH(pairs, mr) TILE(pairs, mr, 1) TILE(pairs, mr, 2)
#define ROW(pairs, mr)  [mr] = {NULL, tile_##pairs##_##mr##_1, tile_##pairs##_##mr##_2},
ALL(BOTH, 0)
#if defined(GR_PAIRS)
ALL(BOTH, 1)
#endif
static tile_fn *const tiles[][TILE_ROWS + 1][3] = {
    {ALL(ROW, 0)},
#if defined(GR_PAIRS)
    {ALL(ROW, 1)},
#endif
};
#undef TILE
#undef SIX
#undef ALL
#undef BOTH
#undef ROW

/* C[m,n] (+)= A[m,k] B[k,n], A[i][p] = a[i rs + p cs], B in panels of k rows, and its tail. Rows are dealt evenly to tiles. */
static void block_product_of(const int pairs, int64_t m, int64_t n, int64_t k, const float *a, int64_t rs, int64_t cs,
                             const float *b, const tail *more, float *c, int64_t ldc, int accumulate) {
    int64_t n_tiles = (m + TILE_ROWS - 1) / TILE_ROWS;
    for (int64_t i = 0, row = 0; i < n_tiles; i++) {
        int64_t mr = (m - row + n_tiles - i - 1) / (n_tiles - i);
        for (int64_t j = 0; j < n; j += PANEL) {
            int64_t nr = n - j < PANEL ? n - j : PANEL;
            const tail here = tail_at(more, row, j);
            tiles[pairs][mr][nr > VL ? 2 : 1](k, a + row * rs, rs, cs, b + j * k, &here, c + row * ldc + j, ldc, nr, accumulate);
        }
        row += mr;
    }
}

static inline void block_product(int64_t m, int64_t n, int64_t k, const float *a, int64_t rs, int64_t cs, const float *b,
                                 const tail *more, float *c, int64_t ldc, int accumulate) {
    block_product_of(0, m, n, k, a, rs, cs, b, more, c, ldc, accumulate);
}

#if defined(__AVX512F__)
/* 16 x 16 transposed: pairs, quads, then 128-bit lanes. */
static inline void v_transpose(vf r[VL]) {
    __m512 t[16];
    UNROLL(int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    UNROLL(int i = 0; i < 16; i += 4) { /* r[i+j]: column 4 lane + j of rows i..i+3 */
        r[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    UNROLL(int j = 0; j < 4; j++) { /* t: lanes 0,2 | 1,3 of two quads */
        t[j] = _mm512_shuffle_f32x4(r[j], r[4 + j], 0x88);
        t[4 + j] = _mm512_shuffle_f32x4(r[j], r[4 + j], 0xdd);
        t[8 + j] = _mm512_shuffle_f32x4(r[8 + j], r[12 + j], 0x88);
        t[12 + j] = _mm512_shuffle_f32x4(r[8 + j], r[12 + j], 0xdd);
    }
    UNROLL(int j = 0; j < 4; j++) {
        r[j] = _mm512_shuffle_f32x4(t[j], t[8 + j], 0x88);
        r[8 + j] = _mm512_shuffle_f32x4(t[j], t[8 + j], 0xdd);
        r[4 + j] = _mm512_shuffle_f32x4(t[4 + j], t[12 + j], 0x88);
        r[12 + j] = _mm512_shuffle_f32x4(t[4 + j], t[12 + j], 0xdd);
    }
}
#else
static inline void v_transpose(vf r[VL]) { v_transpose8(r); }
#endif

/* Columns j0.. (VL of them, one half of a panel whose k rows start at panel) from n <= VL storage rows of k floats. */
static void pack_columns(float *panel, const float *x, int64_t ldx, int64_t n, int64_t k) {
    for (int64_t p = 0; p < k; p += VL) {
        int64_t count = k - p < VL ? k - p : VL;
        vf r[VL];
        if (n == VL && count == VL) {
            UNROLL(int i = 0; i < VL; i++) r[i] = v_load(x + i * ldx + p);
        } else {
            for (int i = 0; i < VL; i++) r[i] = i < n ? v_load_n(x + i * ldx + p, count) : v_set(0);
        }
        v_transpose(r);
        if (count == VL) {
            UNROLL(int i = 0; i < VL; i++) v_store(panel + (p + i) * PANEL, r[i]);
        } else {
            for (int i = 0; i < count; i++) v_store(panel + (p + i) * PANEL, r[i]);
        }
    }
}

/* Row p of the panels of B[k,n]. */
static inline void pack_row(float *panels, const float *x, int64_t n, int64_t k, int64_t p) {
    for (int64_t j = 0; j < n; j += VL) {
        float *to = panels + j / PANEL * PANEL * k + p * PANEL + j % PANEL;
        v_store(to, n - j < VL ? v_load_n(x + j, n - j) : v_load(x + j));
    }
}

#endif
