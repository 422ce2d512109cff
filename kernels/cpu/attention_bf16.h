/* attention_bf16.h - attention_tmpl.h's products of blocks with factors rounded to bfloat16; scores, sums and gradients are float32. */
#ifndef GR_CPU_ATTENTION_BF16_H
#define GR_CPU_ATTENTION_BF16_H

#include "kernels/cpu/bf16.h"

enum {
    D_PAIRS = D_MAX / 2,
    LD_D = D_PAIRS + BF16_STEP / 2,  /* pairs between rows of D values: no power of two, which would crowd one set of a cache */
    KEY_PAIRS = KEYS / 2,
    LD_KEYS = KEY_PAIRS + BF16_STEP / 2,
};

/* Rows of pairs from n rows of count values, pairs of them each. */
static void round_block(float *to, int64_t ld, const float *x, int64_t ldx, int64_t n, int64_t count, int64_t pairs) {
    for (int64_t i = 0; i < n; i++) bf16_row(to + i * ld, x + i * ldx, count, pairs);
}

/* Panels [D, KEYS] of the transpose of n rows of x, the other columns zero. */
static void round_transposed(float *panels, const float *x, int64_t ldx, int64_t n, int64_t D) {
    float rows[VL * D_PAIRS];
    int64_t pairs = bf16_pairs(D);
    if (n < KEYS) memset(panels, 0, (size_t)(KEYS * pairs) * sizeof *panels);
    for (int64_t j = 0; j < n; j += VL) {
        int64_t count = least(n - j, VL);
        round_block(rows, pairs, x + j * ldx, ldx, count, D, pairs);
        pack_columns(panels + j / PANEL * PANEL * pairs + j % PANEL, rows, pairs, count, pairs);
    }
}

/* Panels [n rows filled up to 2 pairs, D] of x. */
static void round_rows(float *panels, const float *x, int64_t ldx, int64_t n, int64_t D, int64_t pairs) {
    for (int64_t p = 0; p < pairs; p++)
        pack_bf16_row(panels, 2 * p < n ? x + 2 * p * ldx : NULL, 2 * p + 1 < n ? x + (2 * p + 1) * ldx : NULL, D, pairs, p);
}

/* to[KEYS, LD_KEYS]: the transpose of n rows of KEYS values, as rows of pairs filled up with zeros. */
static void transpose_block(float *to, const float *x, int64_t n, int64_t pairs) {
    for (int64_t p = 0; p < pairs; p += VL)
        for (int64_t j = 0; j < KEYS; j += VL) {
            vf r[VL];
            UNROLL for (int i = 0; i < VL; i++) {
                const float *low = x + 2 * (p + i) * KEYS + j;
                int64_t row = 2 * (p + i);
                r[i] = v_interleave(row < n ? v_load(low) : v_set(0), row + 1 < n ? v_load(low + KEYS) : v_set(0));
            }
            v_transpose(r);
            for (int i = 0; i < VL; i++) v_store(to + (j + i) * LD_KEYS + p, r[i]);
        }
}

/* Scratch of a forward task. */
enum {
    GROUP = 8, /* query heads that share a packed key block */
    F_KEYS = 0, /* the packed block */
    F_QUERIES = F_KEYS + KEYS * D_PAIRS + KEY_PAIRS * D_MAX,
    F_SCORES = F_QUERIES + QUERIES * LD_D,
    F_PAIRS = F_SCORES + QUERIES * KEYS,
    F_SUMS = F_PAIRS + QUERIES * LD_KEYS,
    F_OUT = F_SUMS + (1 + VL) * GROUP * QUERIES,
    F_END = F_OUT + GROUP * QUERIES * D_MAX
};

/* A packed block is K^T panels, then V panels. */
static int64_t packed_keys_floats(int64_t D) { return KEYS * bf16_pairs(D); }
static int64_t packed_floats(int64_t D) { return packed_keys_floats(D) + KEY_PAIRS * padded(D, PANEL); }

static void pack_forward(const attention *t, float *packed, int64_t at, int64_t keys) {
    round_transposed(packed, t->k + at, t->ldkv, keys, t->D);
    round_rows(packed + packed_keys_floats(t->D), t->v + at, t->ldkv, keys, t->D, KEY_PAIRS);
}

/* The last of `keys` keys, beside those that are packed. */
static void pack_forward_last(const attention *t, float *packed, int64_t at, int64_t keys) {
    int64_t pairs = bf16_pairs(t->D), j = keys - 1, p = j / 2;
    const float *v = t->v + at + 2 * p * t->ldkv;
    float key[D_PAIRS];
    bf16_row(key, t->k + at + j * t->ldkv, t->D, pairs);
    put_column(packed, key, pairs, j);
    pack_bf16_row(packed + packed_keys_floats(t->D), v, j % 2 ? v + t->ldkv : NULL, t->D, KEY_PAIRS, p);
}

static void score_product(const attention *t, float *scratch, const float *packed, const float *q, int64_t ldq, int64_t rows) {
    int64_t pairs = bf16_pairs(t->D);
    round_block(scratch + F_QUERIES, LD_D, q, ldq, rows, t->D, pairs);
    bf16_product(rows, KEYS, pairs, scratch + F_QUERIES, LD_D, packed, scratch + F_SCORES, KEYS, 0);
}

static void value_product(const attention *t, float *scratch, const float *packed, float *out, int64_t ld, int64_t rows) {
    round_block(scratch + F_PAIRS, LD_KEYS, scratch + F_SCORES, KEYS, rows, KEYS, KEY_PAIRS);
    bf16_product(rows, t->D, KEY_PAIRS, scratch + F_PAIRS, LD_KEYS, packed + packed_keys_floats(t->D), out, ld, 1);
}

/* Scratch of a backward task. */
enum {
    B_KEYS_T = 0, /* K^T, V^T, K: panels of the key block */
    B_VALUES_T = B_KEYS_T + KEYS * D_PAIRS,
    B_KEYS = B_VALUES_T + KEYS * D_PAIRS,
    B_QUERY_ROWS = B_KEYS + KEY_PAIRS * D_MAX, /* q, dout: rows of the query block, and its panels */
    B_DOUT_ROWS = B_QUERY_ROWS + QUERIES * LD_D,
    B_QUERIES = B_DOUT_ROWS + QUERIES * LD_D,
    B_DOUT = B_QUERIES + QUERIES * D_PAIRS,
    B_TURNED = B_DOUT + QUERIES * D_PAIRS, /* p^T, then ds^T; rows of pairs */
    B_PAIRS = B_TURNED + KEYS * LD_KEYS,   /* ds: rows of pairs */
    B_DK = B_PAIRS + QUERIES * LD_KEYS,    /* [KEYS, D] each */
    B_DV = B_DK + KEYS * D_MAX,
    B_P = B_DV + KEYS * D_MAX,             /* [QUERIES, KEYS] each */
    B_DS = B_P + QUERIES * KEYS,
    B_END = B_DS + QUERIES * KEYS
};

static void pack_backward(const attention *t, float *scratch, int64_t at, int64_t keys) {
    round_transposed(scratch + B_KEYS_T, t->k + at, t->ldkv, keys, t->D);
    round_transposed(scratch + B_VALUES_T, t->v + at, t->ldkv, keys, t->D);
    round_rows(scratch + B_KEYS, t->k + at, t->ldkv, keys, t->D, KEY_PAIRS);
}

/* p = q K^T and ds = dout V^T of a query block. */
static void score_products(const attention *t, float *scratch, const float *q, const float *dout, int64_t rows) {
    int64_t pairs = bf16_pairs(t->D), row_pairs = bf16_pairs(rows);
    round_block(scratch + B_QUERY_ROWS, LD_D, q, t->ldq, rows, t->D, pairs);
    round_block(scratch + B_DOUT_ROWS, LD_D, dout, t->ldo, rows, t->D, pairs);
    round_rows(scratch + B_QUERIES, q, t->ldq, rows, t->D, row_pairs);
    round_rows(scratch + B_DOUT, dout, t->ldo, rows, t->D, row_pairs);
    bf16_product(rows, KEYS, pairs, scratch + B_QUERY_ROWS, LD_D, scratch + B_KEYS_T, scratch + B_P, KEYS, 0);
    bf16_product(rows, KEYS, pairs, scratch + B_DOUT_ROWS, LD_D, scratch + B_VALUES_T, scratch + B_DS, KEYS, 0);
}

/* dv += p^T dout, dk += ds^T q, dq (+)= ds K. */
static void gradient_products(const attention *t, float *scratch, float *dq, int64_t rows, int64_t keys, int accumulate) {
    int64_t pairs = bf16_pairs(rows);
    float *turned = scratch + B_TURNED;
    transpose_block(turned, scratch + B_P, rows, pairs);
    bf16_product(keys, t->D, pairs, turned, LD_KEYS, scratch + B_DOUT, scratch + B_DV, t->D, 1);
    transpose_block(turned, scratch + B_DS, rows, pairs);
    bf16_product(keys, t->D, pairs, turned, LD_KEYS, scratch + B_QUERIES, scratch + B_DK, t->D, 1);
    round_block(scratch + B_PAIRS, LD_KEYS, scratch + B_DS, KEYS, rows, KEYS, KEY_PAIRS);
    bf16_product(rows, t->D, KEY_PAIRS, scratch + B_PAIRS, LD_KEYS, scratch + B_KEYS, dq, t->ldq, accumulate);
}

#endif
