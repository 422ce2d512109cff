/* bf16.h - products of bfloat16 with float32 sums, for the levels whose CPUs have them: dot products of pairs (AVX512_BF16) or
 * tiles (AMX). A pair stands where tile.h has a float, so that packing is the same: A is rows of pairs, rounded before the product;
 * B is panels of 32 columns, a row of which holds two consecutive k of every column. k is filled up with zeros to whole steps. */
#ifndef GR_CPU_BF16_H
#define GR_CPU_BF16_H

#include "kernels/cpu/tile.h"

enum { BF16_STEP = 32 }; /* of k: 16 pairs, a tile of AMX */

/* Pairs of a row of k values, with its filling. */
static inline int64_t bf16_pairs(int64_t k) { return (k + BF16_STEP - 1) / BF16_STEP * (BF16_STEP / 2); }

/* n values as pairs, zeros up to `pairs`. */
static inline void bf16_row(float *to, const float *x, int64_t n, int64_t pairs) {
    int64_t j = 0;
    for (; j + 2 * VL <= n; j += 2 * VL) v_store(to + j / 2, v_pairs(v_load(x + j), v_load(x + j + VL)));
    for (; j < 2 * pairs; j += 2 * VL)
        v_store(to + j / 2, v_pairs(v_load_up_to(x + j, n - j), v_load_up_to(x + j + VL, n - j - VL)));
}

/* Row p of panels of k pairs from two consecutive k, rows x and y (NULL: zeros) of n values. */
static inline void pack_bf16_row(float *panels, const float *x, const float *y, int64_t n, int64_t k, int64_t p) {
    for (int64_t j = 0; j < n; j += VL) {
        vf low = x ? v_load_up_to(x + j, n - j) : v_set(0), high = y ? v_load_up_to(y + j, n - j) : v_set(0);
        v_store(panels + j / PANEL * PANEL * k + p * PANEL + j % PANEL, v_interleave(low, high));
    }
}

#if defined(GR_AMX)

typedef struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;

/* Static: the intrinsic reads more of it than the compiler believes. */
static const tile_config amx_tiles = {
    .palette = 1, .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {16, 16, 16, 16, 16, 16, 16, 16}};

enum { BF16_ROWS = 32 }; /* a product reads A in whole blocks of so many rows */

/* block[32, 32] = A[32,k] panel, k in pairs, rows of A rs floats apart. */
static void amx_block(float *block, const float *a, int64_t rs, const float *panel, int64_t k) {
    __asm__ volatile("" ::: "memory"); /* tile loads do not tell the compiler what they read */
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t p = 0; p < k; p += VL, a += VL, panel += VL * PANEL) {
        _tile_stream_loadd(4, a, 4 * rs); /* streamed: the panel keeps the first-level cache */
        _tile_stream_loadd(5, a + VL * rs, 4 * rs);
        _tile_loadd(6, panel, 4 * PANEL);
        _tile_loadd(7, panel + VL, 4 * PANEL);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, block, 4 * PANEL);
    _tile_stored(1, block + VL, 4 * PANEL);
    _tile_stored(2, block + VL * PANEL, 4 * PANEL);
    _tile_stored(3, block + VL * PANEL + VL, 4 * PANEL);
    __asm__ volatile("" ::: "memory");
}

/* C[m,n] (+)= A[m,k] B[k,n], as block_product; k in pairs, whole steps. */
static void bf16_product(int64_t m, int64_t n, int64_t k, const float *a, int64_t rs, const float *b, const tail *more, float *c,
                         int64_t ldc, int accumulate) {
    _Alignas(64) float block[BF16_ROWS * PANEL];
    _tile_loadconfig(&amx_tiles);
    for (int64_t j = 0; j < n; j += PANEL)
        for (int64_t i = 0; i < m; i += BF16_ROWS) {
            amx_block(block, a + i * rs, rs, b + j * k, k);
            for (int64_t row = i; row < m && row < i + BF16_ROWS; row++)
                for (int64_t col = j; col < n && col < j + PANEL; col += VL) {
                    int64_t count = n - col < VL ? n - col : VL;
                    float *to = c + row * ldc + col;
                    vf v = v_load(block + (row - i) * PANEL + col - j);
                    v_store_n(to, accumulate ? v_add(v_load_n(to, count), v) : v, count);
                }
        }
    _tile_release();
    if (more->k > 0) block_product(m, n, more->k, more->a, more->rs, 1, more->b, &(tail){0}, c, ldc, 1);
}

#else

enum { BF16_ROWS = 1 };

static inline void bf16_product(int64_t m, int64_t n, int64_t k, const float *a, int64_t rs, const float *b, const tail *more,
                                float *c, int64_t ldc, int accumulate) {
    block_product_of(1, m, n, k, a, rs, 1, b, more, c, ldc, accumulate);
}

#endif
#endif
