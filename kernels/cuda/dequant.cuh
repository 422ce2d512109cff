/* dequant.cuh - matrices in the formats of files as kernels read them: 8 consecutive elements of a row at a time, with the bits of
 * kernels/dequant.h. Small integers become floats without the slow conversion: a byte put at the end of the float 2^23 counts as
 * itself. */
#ifndef GR_CUDA_DEQUANT_CUH
#define GR_CUDA_DEQUANT_CUH

#include "kernels/cuda/rows.cuh"
#include "kernels/nf4.h"

/* rows.. of cols elements. wide: each starts at a multiple of 16 bytes. */
struct gr_matrix {
    const uint8_t *data;
    int64_t row_bytes, cols;
    int32_t type;
    bool wide;
};

/* Elements and bytes of a block: the table of dtype.c, for compilers. Starts of blocks are multiples of align bytes. */
template <int TYPE> struct gr_block {
    static constexpr bool plain = TYPE == GR_DTYPE_F32 || TYPE == GR_DTYPE_F16 || TYPE == GR_DTYPE_BF16;
    static constexpr bool large = TYPE == GR_DTYPE_Q4_K || TYPE == GR_DTYPE_Q5_K || TYPE == GR_DTYPE_Q6_K;
    static constexpr int n = plain ? 1 : large ? 256 : TYPE == GR_DTYPE_NF4 ? 64 : 32;
    static constexpr int bytes = TYPE == GR_DTYPE_F32                            ? 4
                                 : plain                                         ? 2
                                 : TYPE == GR_DTYPE_Q4_0                         ? 18
                                 : TYPE == GR_DTYPE_Q4_1                         ? 20
                                 : TYPE == GR_DTYPE_Q5_0                         ? 22
                                 : TYPE == GR_DTYPE_Q5_1                         ? 24
                                 : TYPE == GR_DTYPE_Q8_0 || TYPE == GR_DTYPE_NF4 ? 34
                                 : TYPE == GR_DTYPE_Q4_K                         ? 144
                                 : TYPE == GR_DTYPE_Q5_K                         ? 176
                                                                                 : 210;
    static constexpr int align = bytes % 16 == 0 ? 16 : bytes % 4 == 0 ? 4 : 2;
};

/* A case for each type: X(type) with TYPE a constant. */
#define GR_EACH_DTYPE(X)                                                                                                           \
    X(GR_DTYPE_F32)                                                                                                                \
    X(GR_DTYPE_F16)                                                                                                                \
    X(GR_DTYPE_BF16)                                                                                                               \
    X(GR_DTYPE_Q4_0)                                                                                                               \
    X(GR_DTYPE_Q4_1)                                                                                                               \
    X(GR_DTYPE_Q5_0)                                                                                                               \
    X(GR_DTYPE_Q5_1)                                                                                                               \
    X(GR_DTYPE_Q8_0)                                                                                                               \
    X(GR_DTYPE_Q4_K)                                                                                                               \
    X(GR_DTYPE_Q5_K)                                                                                                               \
    X(GR_DTYPE_Q6_K)                                                                                                               \
    X(GR_DTYPE_NF4)

/* Notes a refusal and gives false where blocks are not aligned as they are in any file, each at the start of memory of its own. */
static inline bool gr_matrix_of(gr_device *d, gr_matrix *m, gr_dtype type, const void *data, int64_t cols) {
    static const int align[] = {
#define ALIGN(TYPE) gr_block<TYPE>::align,
        GR_EACH_DTYPE(ALIGN)
#undef ALIGN
    };
    const gr_dtype_info *info = gr_dtype_get(type);
    *m = gr_matrix{(const uint8_t *)data, cols / info->block * info->block_bytes, cols, (int32_t)type, false};
    m->wide = (uintptr_t)data % 16 == 0 && m->row_bytes % 16 == 0;
    if ((uintptr_t)data % align[type] == 0) return true;
    gr_cuda_refuse(d, "a weight of type %s lies at %p, no multiple of %d bytes", info->name, data, align[type]);
    return false;
}

static __device__ const float gr_nf4[16] = {GR_NF4_VALUES};

/* q = the N words at p, a multiple of ALIGN. Shared memory is read in whole words, and some bytes more: what is around them must be
 * of the block's too. */
template <int N, int ALIGN, bool SHARED> static __device__ __forceinline__ void gr_words(uint32_t q[N], const uint8_t *p) {
    const uint32_t odd = SHARED && ALIGN % 4 ? (uint32_t)(uintptr_t)p & 2 : 0;
    const uint32_t *w = (const uint32_t *)(p - odd);
    const uint16_t *h = (const uint16_t *)p;
#pragma unroll
    for (int i = 0; i < N; i++) {
        if (ALIGN % 4 == 0) q[i] = w[i];
        else if (SHARED) q[i] = __funnelshift_r(w[i], w[i + 1], odd * 8);
        else q[i] = h[2 * i] | (uint32_t)h[2 * i + 1] << 16;
    }
}

static __device__ __forceinline__ float gr_half_at(const uint8_t *p) { return __half2float(*(const __half *)p); }
static __device__ __forceinline__ float gr_half_of(uint32_t bits) { return __half2float(__ushort_as_half((uint16_t)bits)); }

/* 0 <= x < 2^23 */
static __device__ __forceinline__ float gr_small(uint32_t x) { return __uint_as_float(0x4B000000u | x) - 8388608.0f; }

/* Byte i of a word, minus offset. */
static __device__ __forceinline__ float gr_byte(uint32_t word, int i, float offset) {
    return __uint_as_float(__byte_perm(word, 0x4B000000u, 0x7440u | (uint32_t)i)) - (8388608.0f + offset);
}

/* 4 bits, each into bit 4 of a byte. */
static __device__ __forceinline__ uint32_t gr_fifth_bits(uint32_t bits) { return (bits & 15) * 0x02040810u & 0x10101010u; }

/* v = q * scale of 8 bytes q - offset. */
static __device__ __forceinline__ void gr_scaled(float v[8], const uint32_t q[2], float offset, float scale) {
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = gr_byte(q[i / 4], i % 4, offset) * scale;
}

/* v = q * scale + min of 8 bytes q. The products are exact (a half times 6 bits times 5), so that fused is what apart is. */
static __device__ __forceinline__ void gr_scaled_plus(float v[8], const uint32_t q[2], float scale, float min) {
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = fmaf(gr_byte(q[i / 4], i % 4, 0), scale, min);
}

/* Q4_0, Q4_1, Q5_0, Q5_1: scale, minimum, fifth bits, then 16 bytes: low nibbles are elements 0..15, high nibbles 16..31. */
template <int TYPE, bool SHARED> static __device__ __forceinline__ void gr_decode_32(float v[8], const uint8_t *row, uint32_t col) {
    constexpr bool five = TYPE == GR_DTYPE_Q5_0 || TYPE == GR_DTYPE_Q5_1, min = TYPE == GR_DTYPE_Q4_1 || TYPE == GR_DTYPE_Q5_1;
    constexpr int align = gr_block<TYPE>::align, bits_at = min ? 4 : 2, at = bits_at + (five ? 4 : 0);
    const uint8_t *p = row + col / 32 * gr_block<TYPE>::bytes;
    const uint32_t j = col % 32, shift = j / 16 * 4;
    uint32_t q[2], high[1], head[1];
    gr_words<2, align, SHARED>(q, p + at + j % 16);
    q[0] = q[0] >> shift & 0x0F0F0F0Fu, q[1] = q[1] >> shift & 0x0F0F0F0Fu;
    if (five) {
        gr_words<1, align, SHARED>(high, p + bits_at);
        q[0] |= gr_fifth_bits(high[0] >> j), q[1] |= gr_fifth_bits(high[0] >> j >> 4);
    }
    if (min) gr_words<1, align, SHARED>(head, p);
    if (min) gr_scaled_plus(v, q, gr_half_of(head[0]), gr_half_of(head[0] >> 16));
    else gr_scaled(v, q, five ? 16 : 8, gr_half_at(p));
}

/* Q4_K, Q5_K: two halves, 12 bytes of scales and minima, fifth bits, nibbles. Starts are multiples of 16. */
template <int TYPE> static __device__ __forceinline__ void gr_decode_k(float v[8], const uint8_t *row, uint32_t col) {
    constexpr bool five = TYPE == GR_DTYPE_Q5_K;
    const uint8_t *p = row + col / 256 * gr_block<TYPE>::bytes;
    uint32_t group = col % 256 / 32, j = col % 32, byte = group % 4 * 8, shift = group % 2 * 4;
    uint4 head = *(const uint4 *)p;
    uint2 low = *(const uint2 *)(p + (five ? 48 : 16) + group / 2 * 32 + j);
    uint32_t q[2] = {low.x >> shift & 0x0F0F0F0Fu, low.y >> shift & 0x0F0F0F0Fu};
    if (five) {
        uint2 high = *(const uint2 *)(p + 16 + j);
        q[0] |= (high.x >> group & 0x01010101u) << 4, q[1] |= (high.y >> group & 0x01010101u) << 4;
    }
    uint32_t s = head.y >> byte, m = head.z >> byte, more = head.w >> byte;
    uint32_t scale = group < 4 ? s & 63 : (more & 15) | (s >> 2 & 48);
    uint32_t min = group < 4 ? m & 63 : (more >> 4 & 15) | (m >> 2 & 48);
    gr_scaled_plus(v, q, gr_half_of(head.x) * gr_small(scale), -(gr_half_of(head.x >> 16) * gr_small(min)));
}

/* Q6_K: 128 bytes of low nibbles, 64 of two high bits, 16 scales of 16 elements each, a half. */
template <bool SHARED> static __device__ __forceinline__ void gr_decode_q6_k(float v[8], const uint8_t *row, uint32_t col) {
    const uint8_t *p = row + col / 256 * 210;
    const uint32_t group = col % 256 / 32, j = col % 32, low_shift = group % 4 / 2 * 4, high_shift = group % 4 * 2;
    uint32_t q[2], two[2];
    gr_words<2, 2, SHARED>(q, p + group / 4 * 64 + group % 2 * 32 + j);
    gr_words<2, 2, SHARED>(two, p + 128 + group / 4 * 32 + j);
#pragma unroll
    for (int i = 0; i < 2; i++) q[i] = (q[i] >> low_shift & 0x0F0F0F0Fu) | (two[i] >> high_shift & 0x03030303u) << 4;
    float scale = gr_small(p[192 + group * 2 + j / 16] ^ 0x80u) - 128;
    gr_scaled(v, q, 32, gr_half_at(p + 208) * scale);
}

template <bool SHARED> static __device__ __forceinline__ void gr_decode_q8_0(float v[8], const uint8_t *row, uint32_t col) {
    const uint8_t *p = row + col / 32 * 34;
    uint32_t q[2];
    gr_words<2, 2, SHARED>(q, p + 2 + col % 32);
    q[0] ^= 0x80808080u, q[1] ^= 0x80808080u;
    gr_scaled(v, q, 128, gr_half_at(p));
}

/* NF4: low nibbles are elements 0..31, high nibbles 32..63. The 16 values lie in one line of the cache. */
template <bool SHARED> static __device__ __forceinline__ void gr_decode_nf4(float v[8], const uint8_t *row, uint32_t col) {
    const uint8_t *p = row + col / 64 * 34;
    const uint32_t j = col % 64;
    const float scale = gr_half_at(p);
    uint32_t q[2];
    gr_words<2, 2, SHARED>(q, p + 2 + j % 32);
    q[0] >>= j / 32 * 4, q[1] >>= j / 32 * 4;
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = gr_nf4[q[i / 4] >> (i % 4 * 8) & 15] * scale;
}

/* v = elements col..col+8 (col a multiple of 8) of the quantised row that starts at `row`. */
template <int TYPE, bool SHARED> static __device__ __forceinline__ void gr_decode8(float v[8], const uint8_t *row, uint32_t col) {
    if (TYPE == GR_DTYPE_Q8_0) gr_decode_q8_0<SHARED>(v, row, col);
    else if (TYPE == GR_DTYPE_Q6_K) gr_decode_q6_k<SHARED>(v, row, col);
    else if (TYPE == GR_DTYPE_NF4) gr_decode_nf4<SHARED>(v, row, col);
    else if (gr_block<TYPE>::n == 256) gr_decode_k<TYPE>(v, row, col);
    else if (gr_block<TYPE>::n == 32) gr_decode_32<TYPE, SHARED>(v, row, col);
}

/* v = elements col..col+8 of a row of any type in global memory; those from cols on become 0. */
static __device__ __forceinline__ void gr_matrix_load8(float v[8], const gr_matrix &m, int64_t row, int64_t col) {
    const uint8_t *p = m.data + row * m.row_bytes;
    switch (m.type) {
#define CASE(TYPE)                                                                                                                 \
    case TYPE:                                                                                                                     \
        if (!gr_block<TYPE>::plain) {                                                                                              \
            gr_decode8<TYPE, false>(v, p, (uint32_t)col);                                                                          \
            return;                                                                                                                \
        }                                                                                                                          \
        break;
        GR_EACH_DTYPE(CASE)
#undef CASE
    }
    gr_load8(v, gr_view{(void *)m.data, m.cols, m.type, m.wide}, row, col, m.cols);
}

#endif
