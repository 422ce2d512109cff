/* rows.cuh - what kernels share: rows of activations of a type that is known at run time, moved in pieces of 8 columns; sums over a
 * warp and a block in one order; launches that note failures. */
#ifndef GR_CUDA_ROWS_CUH
#define GR_CUDA_ROWS_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "kernels/cuda/cuda.h"

/* gr_rows as a kernel takes it. wide: every piece of 8 columns that starts at a multiple of 8 is aligned to 16 bytes. The type is
 * the same for all threads, so that branches on it cost nothing where memory is the limit. data NULL: absent. */
struct gr_view {
    void *data;
    int64_t ld;
    int32_t type;
    bool wide;
};

static inline gr_view gr_view_of(gr_rows x) {
    int64_t size = x.type == GR_DTYPE_F32 ? 4 : 2;
    return gr_view{x.data, x.ld, (int32_t)x.type, (uintptr_t)x.data % 16 == 0 && x.ld * size % 16 == 0};
}

static __device__ __forceinline__ float gr_load(const gr_view &x, int64_t row, int64_t col) {
    int64_t at = row * x.ld + col;
    if (x.type == GR_DTYPE_F32) return ((const float *)x.data)[at];
    if (x.type == GR_DTYPE_BF16) return __bfloat162float(((const __nv_bfloat16 *)x.data)[at]);
    return __half2float(((const __half *)x.data)[at]);
}

static __device__ __forceinline__ void gr_store(const gr_view &x, int64_t row, int64_t col, float value) {
    int64_t at = row * x.ld + col;
    if (x.type == GR_DTYPE_F32) ((float *)x.data)[at] = value;
    else if (x.type == GR_DTYPE_BF16) ((__nv_bfloat16 *)x.data)[at] = __float2bfloat16_rn(value);
    else ((__half *)x.data)[at] = __float2half_rn(value);
}

/* v = columns col..col+8 of a row (col a multiple of 8); those from C on are not read and become 0. */
static __device__ __forceinline__ void gr_load8(float v[8], const gr_view &x, int64_t row, int64_t col, int64_t C) {
    if (x.wide && col + 8 <= C) {
        int64_t at = row * x.ld + col;
        if (x.type == GR_DTYPE_F32) {
            const float4 *p = (const float4 *)((const float *)x.data + at);
            float4 a = p[0], b = p[1];
            v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
            return;
        }
        union {
            uint4 all;
            __nv_bfloat162 bf16[4];
            __half2 f16[4];
        } u;
        u.all = *(const uint4 *)((const uint16_t *)x.data + at);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float2 pair = x.type == GR_DTYPE_BF16 ? __bfloat1622float2(u.bf16[i]) : __half22float2(u.f16[i]);
            v[2 * i] = pair.x, v[2 * i + 1] = pair.y;
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = col + i < C ? gr_load(x, row, col + i) : 0.0f;
}

/* And the way back; columns from C on stay as they are. */
static __device__ __forceinline__ void gr_store8(const gr_view &x, int64_t row, int64_t col, int64_t C, const float v[8]) {
    if (x.wide && col + 8 <= C) {
        int64_t at = row * x.ld + col;
        if (x.type == GR_DTYPE_F32) {
            float4 *p = (float4 *)((float *)x.data + at);
            p[0] = make_float4(v[0], v[1], v[2], v[3]), p[1] = make_float4(v[4], v[5], v[6], v[7]);
            return;
        }
        union {
            uint4 all;
            __nv_bfloat162 bf16[4];
            __half2 f16[4];
        } u;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (x.type == GR_DTYPE_BF16) u.bf16[i] = __floats2bfloat162_rn(v[2 * i], v[2 * i + 1]);
            else u.f16[i] = __floats2half2_rn(v[2 * i], v[2 * i + 1]);
        }
        *(uint4 *)((uint16_t *)x.data + at) = u.all;
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (col + i < C) gr_store(x, row, col + i, v[i]);
}

/* 8 columns as they are in memory: low alone where they have 16 bits. A kernel that reads several pieces fetches all of them before
 * it takes one, so that they are under way together. */
struct gr_raw8 {
    uint4 low, high;
};

/* Columns col..col+8 of a row (col a multiple of 8); those from C on are not read and become 0. */
static __device__ __forceinline__ gr_raw8 gr_fetch8(const gr_view &x, int64_t row, int64_t col, int64_t C) {
    int64_t at = row * x.ld + col;
    gr_raw8 raw = {};
    if (x.wide && col + 8 <= C) {
        if (x.type == GR_DTYPE_F32) {
            const uint4 *p = (const uint4 *)((const float *)x.data + at);
            raw.low = p[0], raw.high = p[1];
        } else raw.low = *(const uint4 *)((const uint16_t *)x.data + at);
        return raw;
    }
    uint32_t word[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (col + i >= C) word[i] = 0;
        else word[i] = x.type == GR_DTYPE_F32 ? ((const uint32_t *)x.data)[at + i] : ((const uint16_t *)x.data)[at + i];
    }
    if (x.type == GR_DTYPE_F32) {
        raw.low = make_uint4(word[0], word[1], word[2], word[3]), raw.high = make_uint4(word[4], word[5], word[6], word[7]);
    } else {
        raw.low.x = word[0] | word[1] << 16, raw.low.y = word[2] | word[3] << 16;
        raw.low.z = word[4] | word[5] << 16, raw.low.w = word[6] | word[7] << 16;
    }
    return raw;
}

static __device__ __forceinline__ void gr_take8(float v[8], const gr_raw8 &raw, int32_t type) {
    if (type == GR_DTYPE_F32) {
        v[0] = __uint_as_float(raw.low.x), v[1] = __uint_as_float(raw.low.y);
        v[2] = __uint_as_float(raw.low.z), v[3] = __uint_as_float(raw.low.w);
        v[4] = __uint_as_float(raw.high.x), v[5] = __uint_as_float(raw.high.y);
        v[6] = __uint_as_float(raw.high.z), v[7] = __uint_as_float(raw.high.w);
        return;
    }
    union {
        uint4 all;
        __nv_bfloat162 bf16[4];
        __half2 f16[4];
    } u;
    u.all = raw.low;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 pair = type == GR_DTYPE_BF16 ? __bfloat1622float2(u.bf16[i]) : __half22float2(u.f16[i]);
        v[2 * i] = pair.x, v[2 * i + 1] = pair.y;
    }
}

/* x as the type has it. */
static __device__ __forceinline__ float gr_rounded(float x, int32_t type) {
    if (type == GR_DTYPE_BF16) return __bfloat162float(__float2bfloat16_rn(x));
    return type == GR_DTYPE_F16 ? __half2float(__float2half_rn(x)) : x;
}

/* Turns a pair by an angle, as rope does: the same bits wherever it is done. */
static __device__ __forceinline__ void gr_turn(float *u, float *v, float cosine, float sine) {
    const float x = *u, y = *v;
    *u = __fmaf_rn(x, cosine, -__fmul_rn(y, sine)), *v = __fmaf_rn(y, cosine, __fmul_rn(x, sine));
}

/* Where piece i of 8 columns lies, of rows of `pieces` each. */
struct gr_place {
    int64_t row, col;
};

static __device__ __forceinline__ gr_place gr_place_of(int64_t i, int64_t pieces) {
    int64_t row = i / pieces;
    return gr_place{row, (i - row * pieces) * 8};
}

/* v = elements i..i+4 of floats from[n] (i a multiple of 4); those from n on are not read and become `fill`. wide: from is aligned
 * to 16 bytes. */
static __device__ __forceinline__ void gr_load4(float v[4], const float *from, int64_t i, int64_t n, bool wide, float fill) {
    if (wide && i + 4 <= n) {
        float4 a = *(const float4 *)(from + i);
        v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
        return;
    }
#pragma unroll
    for (int k = 0; k < 4; k++) v[k] = i + k < n ? from[i + k] : fill;
}

/* And the way back; elements from n on stay as they are. */
static __device__ __forceinline__ void gr_store4(float *to, int64_t i, int64_t n, bool wide, const float v[4]) {
    if (wide && i + 4 <= n) {
        *(float4 *)(to + i) = make_float4(v[0], v[1], v[2], v[3]);
        return;
    }
#pragma unroll
    for (int k = 0; k < 4; k++)
        if (i + k < n) to[i + k] = v[k];
}

/* Sum over the lanes of a warp: a tree of one shape, the same in all lanes. All 32 lanes take part. */
template <class T> static __device__ __forceinline__ T gr_warp_sum(T x) {
#pragma unroll
    for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(0xffffffffu, x, i);
    return x;
}

static __device__ __forceinline__ float gr_warp_max(float x) {
#pragma unroll
    for (int i = 16; i > 0; i /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, i));
    return x;
}

/* Sum over the threads of a block (a multiple of 32, at most 1,024): warps in order. All threads take part and get it; parts[32] is
 * shared memory of this sum alone until the next barrier. */
template <class T> static __device__ __forceinline__ T gr_block_sum(T x, T *parts) {
    x = gr_warp_sum(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    T sum = parts[0];
    for (unsigned w = 1; w < blockDim.x / 32; w++) sum += parts[w];
    return sum;
}

/* A launch on the device's compute queue; nothing after a failure. n_blocks 0: nothing to do. */
#define GR_LAUNCH(d, kernel, n_blocks, n_threads, shared, ...)                                                                     \
    do {                                                                                                                           \
        dim3 grid_ = (n_blocks);                                                                                                   \
        if (!gr_cuda_idle(d) && grid_.x > 0 && grid_.y > 0 && grid_.z > 0) {                                                       \
            kernel<<<grid_, (n_threads), (shared), gr_cuda_stream(d)>>>(__VA_ARGS__);                                              \
            gr_cuda_check(d, cudaGetLastError(), #kernel);                                                                         \
        }                                                                                                                          \
    } while (0)

static inline unsigned gr_blocks(int64_t n, int64_t each) { return (unsigned)((n + each - 1) / each); }

#endif
