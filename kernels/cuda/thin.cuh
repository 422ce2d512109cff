/* thin.cuh - what the thin products of bfloat16 and half share: pieces of 8 columns as mma takes them. */
#ifndef GR_CUDA_THIN_CUH
#define GR_CUDA_THIN_CUH

#include "kernels/cuda/mask.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/thin.h"

/* Tiles of sums over tokens, in shared memory. */
enum { TILE_ROWS = 64, TILE_COLS = 128, PADDED = TILE_COLS + 8 };

/* Columns col..col+8 of a row as the products have them. CAST: of any type and alignment; else they are there as they are. Rows
 * from n and columns from C on are 0. */
template <class T, bool CAST>
static __device__ __forceinline__ uint4 gr_view_piece(const gr_view &x, int64_t row, int64_t col, int64_t n, int64_t C) {
    uint4 piece = make_uint4(0, 0, 0, 0);
    if (row >= n || col >= C) return piece;
    if (!CAST) return *(const uint4 *)((const uint16_t *)x.data + row * x.ld + col);
    float v[8];
    gr_load8(v, x, row, col, C);
    return make_uint4(gr_pair(T(), v[0], v[1]), gr_pair(T(), v[2], v[3]), gr_pair(T(), v[4], v[5]), gr_pair(T(), v[6], v[7]));
}

static __device__ __forceinline__ uint32_t gr_kept(uint32_t pair, uint32_t bits) {
    return pair & ((bits & 1 ? 0xffffu : 0) | (bits & 2 ? 0xffff0000u : 0));
}

/* Without what the mask drops; what is kept is not scaled yet. */
static __device__ __forceinline__ uint4 gr_masked(uint4 piece, const gr_mask &mask, int64_t row, int64_t col) {
    uint32_t bits = gr_mask_bits8(mask, row, col);
    return make_uint4(gr_kept(piece.x, bits), gr_kept(piece.y, bits >> 2), gr_kept(piece.z, bits >> 4),
                      gr_kept(piece.w, bits >> 6));
}

/* Whether rows of C columns are there as products of the type take them. */
static inline bool gr_as_it_is(gr_rows x, gr_dtype type, int64_t C) { return x.type == type && C % 8 == 0 && gr_view_of(x).wide; }

#endif
