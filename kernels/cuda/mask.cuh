/* mask.cuh - dropout's mask on the device: the numbers of philox.h. */
#ifndef GR_CUDA_MASK_CUH
#define GR_CUDA_MASK_CUH

#include "kernels/cuda/rows.cuh"
#include "kernels/philox.h"

/* A gr_dropout as a kernel takes it. row_key NULL: all is kept as it is. */
struct gr_mask {
    const uint64_t *row_key;
    uint64_t seed;
    uint32_t site, threshold; /* a word below it drops its element */
    float scale;              /* of what is kept */
};

static inline gr_mask gr_mask_of(const gr_dropout *p) {
    if (!p) return gr_mask{NULL, 0, 0, 0, 1};
    return gr_mask{p->row_key, p->seed, p->site, (uint32_t)((double)p->p * 4294967296.0), 1 / (1 - p->p)};
}

/* gr_philox of philox.h once more: with its array of results the kernels of thin.cu spill. */
static __device__ __forceinline__ uint4 gr_philox_device(uint64_t seed, uint32_t purpose, uint64_t hi, uint64_t lo) {
    uint32_t c0 = (uint32_t)lo, c1 = (uint32_t)(lo >> 32), c2 = (uint32_t)hi, c3 = (uint32_t)(hi >> 32);
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32) ^ (purpose * 0x9E3779B1u);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        uint32_t h0 = __umulhi(0xD2511F53u, c0), l0 = 0xD2511F53u * c0, h1 = __umulhi(0xCD9E8D57u, c2), l1 = 0xCD9E8D57u * c2;
        c0 = h1 ^ c1 ^ k0, c1 = l1, c2 = h0 ^ c3 ^ k1, c3 = l0;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    return make_uint4(c0, c1, c2, c3);
}

/* Which of columns col..col+8 of a row (col a multiple of 8) are kept: a bit each, the first one lowest. */
static __device__ __forceinline__ uint32_t gr_mask_bits8(const gr_mask &m, int64_t row, int64_t col) {
    uint64_t key = m.row_key[row], at = (uint64_t)m.site << 32 | (uint64_t)(col / 4);
    uint4 a = gr_philox_device(m.seed, GR_PURPOSE_DROPOUT, key, at), b = gr_philox_device(m.seed, GR_PURPOSE_DROPOUT, key, at + 1);
    return (uint32_t)(a.x >= m.threshold) | (uint32_t)(a.y >= m.threshold) << 1 | (uint32_t)(a.z >= m.threshold) << 2 |
           (uint32_t)(a.w >= m.threshold) << 3 | (uint32_t)(b.x >= m.threshold) << 4 | (uint32_t)(b.y >= m.threshold) << 5 |
           (uint32_t)(b.z >= m.threshold) << 6 | (uint32_t)(b.w >= m.threshold) << 7;
}

/* What an element is multiplied with: 0 or the scale. */
static __device__ __forceinline__ float gr_mask_at(const gr_mask &m, int64_t row, int64_t col) {
    if (!m.row_key) return 1;
    return gr_mask_bits8(m, row, col / 8 * 8) >> (col % 8) & 1 ? m.scale : 0;
}

#endif
