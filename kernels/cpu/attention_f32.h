/* attention_f32.h - attention_tmpl.h's products of blocks in float32. */
#ifndef GR_CPU_ATTENTION_F32_H
#define GR_CPU_ATTENTION_F32_H

#include "kernels/cpu/tile.h"

/* Panels [rows, D] of n rows of x, the rest zero. */
static void pack_rows(float *panels, const float *x, int64_t ldx, int64_t n, int64_t D, int64_t rows) {
    for (int64_t r = 0; r < n; r++) pack_row(panels, x + r * ldx, D, rows, r);
    for (int64_t j = 0; n < rows && j < D; j += PANEL)
        memset(panels + j * rows + n * PANEL, 0, (size_t)((rows - n) * PANEL) * sizeof *panels);
}

/* Panels [D, KEYS] of the transpose of n rows of x, the other columns zero. */
static void pack_rows_transposed(float *panels, const float *x, int64_t ldx, int64_t n, int64_t D) {
    if (n < KEYS) memset(panels, 0, (size_t)(KEYS * D) * sizeof *panels);
    pack_transposed(panels, x, ldx, n, D);
}

/* Scratch of a forward task. */
enum {
    GROUP = 8,                          /* query heads that share a packed key block */
    F_KEYS = 0,                           /* the packed block */
    F_SCORES = F_KEYS + 2 * KEYS * D_MAX, /* [QUERIES, KEYS] */
    F_SUMS = F_SCORES + QUERIES * KEYS, /* m and sum of GROUP x QUERIES rows */
    F_OUT = F_SUMS + (1 + VL) * GROUP * QUERIES,
    F_END = F_OUT + GROUP * QUERIES * D_MAX
};

/* A packed block is K^T panels, then V panels. */
static int64_t packed_floats(int64_t D) { return KEYS * D + KEYS * padded(D, PANEL); }

static void pack_forward(const attention *t, float *packed, int64_t at, int64_t keys) {
    pack_rows_transposed(packed, t->k + at, t->ldkv, keys, t->D);
    pack_rows(packed + KEYS * t->D, t->v + at, t->ldkv, keys, t->D, KEYS);
}

/* The last of `keys` keys, beside those that are packed. */
static void pack_forward_last(const attention *t, float *packed, int64_t at, int64_t keys) {
    int64_t j = keys - 1;
    put_column(packed, t->k + at + j * t->ldkv, t->D, j);
    pack_row(packed + KEYS * t->D, t->v + at + j * t->ldkv, t->D, KEYS, j);
}

static void score_product(const attention *t, float *scratch, const float *packed, const float *q, int64_t ldq, int64_t rows) {
    block_product(rows, KEYS, t->D, q, ldq, 1, packed, scratch + F_SCORES, KEYS, 0);
}

static void value_product(const attention *t, float *scratch, const float *packed, float *out, int64_t ld, int64_t rows) {
    block_product(rows, t->D, KEYS, scratch + F_SCORES, KEYS, 1, packed + KEYS * t->D, out, ld, 1);
}

/* Scratch of a backward task. */
enum {
    B_KEYS_T = 0,                         /* K^T, V^T, K: panels of the key block */
    B_VALUES_T = B_KEYS_T + KEYS * D_MAX,
    B_KEYS = B_VALUES_T + KEYS * D_MAX,
    B_QUERIES = B_KEYS + KEYS * D_MAX,    /* q, dout: panels of the query block */
    B_DOUT = B_QUERIES + QUERIES * D_MAX,
    B_DK = B_DOUT + QUERIES * D_MAX,      /* [KEYS, D] each */
    B_DV = B_DK + KEYS * D_MAX,
    B_P = B_DV + KEYS * D_MAX,            /* [QUERIES, KEYS] each */
    B_DS = B_P + QUERIES * KEYS,
    B_END = B_DS + QUERIES * KEYS
};

static void pack_backward(const attention *t, float *scratch, int64_t at, int64_t keys) {
    pack_rows_transposed(scratch + B_KEYS_T, t->k + at, t->ldkv, keys, t->D);
    pack_rows_transposed(scratch + B_VALUES_T, t->v + at, t->ldkv, keys, t->D);
    pack_rows(scratch + B_KEYS, t->k + at, t->ldkv, keys, t->D, KEYS);
}

/* p = q K^T and ds = dout V^T of a query block. */
static void score_products(const attention *t, float *scratch, const float *q, const float *dout, int64_t rows) {
    pack_rows(scratch + B_QUERIES, q, t->ldq, rows, t->D, rows);
    pack_rows(scratch + B_DOUT, dout, t->ldo, rows, t->D, rows);
    block_product(rows, KEYS, t->D, q, t->ldq, 1, scratch + B_KEYS_T, scratch + B_P, KEYS, 0);
    block_product(rows, KEYS, t->D, dout, t->ldo, 1, scratch + B_VALUES_T, scratch + B_DS, KEYS, 0);
}

/* dv += p^T dout, dk += ds^T q, dq (+)= ds K. */
static void gradient_products(const attention *t, float *scratch, float *dq, int64_t rows, int64_t keys, int accumulate) {
    block_product(keys, t->D, rows, scratch + B_P, 1, KEYS, scratch + B_DOUT, scratch + B_DV, t->D, 1);
    block_product(keys, t->D, rows, scratch + B_DS, 1, KEYS, scratch + B_QUERIES, scratch + B_DK, t->D, 1);
    block_product(rows, t->D, KEYS, scratch + B_DS, KEYS, 1, scratch + B_KEYS, dq, t->ldq, accumulate);
}

#endif
