/* attention_operands.h - what attention_tmpl.h multiplies: rows (on the left) and panels (on the right, see tile.h) of values along
 * the contraction, each a float or, at the levels that multiply bfloat16, a pair of those in a float's place; places are whole
 * steps of those. */
#ifndef GR_CPU_ATTENTION_OPERANDS_H
#define GR_CPU_ATTENTION_OPERANDS_H

#include "kernels/cpu/tile.h"
#if defined(GR_BF16)
#include "kernels/cpu/bf16.h"
#endif

enum {
    D_MAX = 256, /* the widest head */
    UNIT = 32,   /* a contraction over keys or queries is filled up to a multiple of it with zeros */
};
_Static_assert((int)UNIT % (int)PANEL == 0, "whole panels");

#if defined(GR_BF16)

_Static_assert((int)UNIT % (int)BF16_STEP == 0, "whole steps");

static inline int64_t places(int64_t n) { return bf16_pairs(n); }

static inline void put_row(float *to, const float *x, int64_t n) { bf16_row(to, x, n, bf16_pairs(n)); }

/* Values i..i + 2 VL of a row. */
static inline void put_values(float *row, int64_t i, const vf v[2]) { v_store(row + i / 2, v_pairs(v[0], v[1])); }

/* Rows i and i + 1, i even, of a panel. */
static inline void put_panel_rows(float *panel, int64_t i, const vf even[2], const vf odd[2]) {
    v_store(panel + i / 2 * PANEL, v_interleave(even[0], odd[0]));
    v_store(panel + i / 2 * PANEL + VL, v_interleave(even[1], odd[1]));
}

/* Columns j..j + VL of x[n, D] at place p along its rows; zeros outside. */
static inline vf at_place(const float *x, int64_t ldx, int64_t n, int64_t D, int64_t p, int64_t j) {
    const float *low = x + 2 * p * ldx + j;
    return v_interleave(2 * p < n ? v_load_up_to(low, D - j) : v_set(0), 2 * p + 1 < n ? v_load_up_to(low + ldx, D - j) : v_set(0));
}

static inline void product(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b, float *c, int64_t ldc,
                           int accumulate) {
    bf16_product(m, n, bf16_pairs(k), a, lda, b, &(tail){0}, c, ldc, accumulate);
}

#else

static inline int64_t places(int64_t n) { return n; }

static inline void put_row(float *to, const float *x, int64_t n) { memcpy(to, x, (size_t)n * sizeof *x); }

static inline void put_values(float *row, int64_t i, const vf v[2]) { v_store(row + i, v[0]), v_store(row + i + VL, v[1]); }

static inline void put_panel_rows(float *panel, int64_t i, const vf even[2], const vf odd[2]) {
    float *to = panel + i * PANEL;
    v_store(to, even[0]), v_store(to + VL, even[1]), v_store(to + PANEL, odd[0]), v_store(to + PANEL + VL, odd[1]);
}

static inline vf at_place(const float *x, int64_t ldx, int64_t n, int64_t D, int64_t p, int64_t j) {
    return p < n ? v_load_up_to(x + p * ldx + j, D - j) : v_set(0);
}

static inline void product(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b, float *c, int64_t ldc,
                           int accumulate) {
    block_product(m, n, k, a, lda, 1, b, &(tail){0}, c, ldc, accumulate);
}

#endif

/* The distance of rows of n values: more than they need, since rows a power of two apart crowd one set of a cache. */
static inline int64_t distance(int64_t n) { return places(n) + 16; }

/* Rows of x[n, D]. */
static void put_rows(float *to, const float *x, int64_t ldx, int64_t n, int64_t D) {
    for (int64_t i = 0; i < n; i++) put_row(to + i * distance(D), x + i * ldx, D);
}

/* Place p of the panels of x[n, D] that hold `rows` rows. */
static inline void put_place(float *panels, const float *x, int64_t ldx, int64_t n, int64_t D, int64_t rows, int64_t p) {
    for (int64_t j = 0; j < D; j += VL)
        v_store(panels + j / PANEL * PANEL * places(rows) + p * PANEL + j % PANEL, at_place(x, ldx, n, D, p, j));
}

/* Panels of x[n, D], rows up to `rows` zero. */
static void put_panels(float *panels, const float *x, int64_t ldx, int64_t n, int64_t D, int64_t rows) {
    for (int64_t p = 0; p < places(rows); p++) put_place(panels, x, ldx, n, D, rows, p);
}

/* Panels of x[n, D] transposed, columns up to `columns` zero. */
static void put_panels_transposed(float *panels, const float *x, int64_t ldx, int64_t n, int64_t D, int64_t columns) {
    float rows[VL * D_MAX];
    int64_t k = places(D);
    for (int64_t j = 0; j < columns; j += VL) {
        int64_t count = n - j < 0 ? 0 : n - j < VL ? n - j : VL;
        for (int64_t i = 0; i < count; i++) put_row(rows + i * k, x + (j + i) * ldx, D);
        pack_columns(panels + j / PANEL * PANEL * k + j % PANEL, rows, k, count, k);
    }
}

/* Rows of x[n, D] transposed, values up to `columns` zero. Writes rows up to a multiple of VL. */
static void put_rows_transposed(float *to, const float *x, int64_t ldx, int64_t n, int64_t D, int64_t columns) {
    int64_t ld = distance(columns);
    for (int64_t j = 0; j < D; j += VL)
        for (int64_t p = 0; p < places(columns); p += VL) {
            vf r[VL];
            UNROLL(int i = 0; i < VL; i++) r[i] = at_place(x, ldx, n, D, p + i, j);
            v_transpose(r);
            UNROLL(int i = 0; i < VL; i++) v_store(to + (j + i) * ld + p, r[i]);
        }
}

#endif
