/* fp8.cu - factors of products in e4m3 (arXiv 2209.05433): rows of dy, and a group's weights transposed, with a scale for each.
 *
 * Rows: a block reads its row once, finds the largest magnitude and writes a byte for each element; what it moves is the limit: 3
 * bytes an element of bfloat16. Per layer of a 7B model (12,288 + 4,096 + 22,016 + 4,096 columns of dy) and 4,096 rows that is
 * 0.52 GB, 0.12 ms at the 4.2 TB/s of an H200, 4 ms of a step of 32 layers. Weights: once, when a form is made (or before each
 * product where it is not kept). Magnitudes are compared as whole numbers, in which NaN is above infinity and all else: the largest
 * is the same in any order, and nothing that is not finite goes unseen. */
#include <cuda_fp8.h>

#include "kernels/cuda/rows.cuh"

enum { MOST = 512, TILE = 64, THREADS = 256, ROWS_EACH = 512, STRIDE = TILE / 4 + 1 };

/* The scale of values whose largest magnitude has these bits, and what they are multiplied with. */
struct scale_pair {
    float scale, inverse;
};

static __device__ __forceinline__ scale_pair scale_of(uint32_t peak) {
    const float largest = __uint_as_float(peak), nan = __uint_as_float(0x7fffffffu);
    if (peak >= 0x7f800000u) return scale_pair{nan, nan};
    if (largest < 0x1p-100f) return scale_pair{1, 0};
    const float scale = largest / 448.0f;
    return scale_pair{scale, 1.0f / scale};
}

static __device__ __forceinline__ uint32_t magnitude(float x) { return __float_as_uint(x) & 0x7fffffffu; }

static __device__ __forceinline__ uint32_t largest8(uint32_t peak, const float v[8]) {
#pragma unroll
    for (int j = 0; j < 8; j++) peak = max(peak, magnitude(v[j]));
    return peak;
}

static __device__ __forceinline__ uint32_t pair_of(float low, float high) {
    return __nv_cvt_float2_to_fp8x2(make_float2(low, high), __NV_SATFINITE, __NV_E4M3);
}

static __device__ __forceinline__ uint2 eight_of(const float v[8], float by) {
    return make_uint2(pair_of(v[0] * by, v[1] * by) | pair_of(v[2] * by, v[3] * by) << 16,
                      pair_of(v[4] * by, v[5] * by) | pair_of(v[6] * by, v[7] * by) << 16);
}

/* Of all threads of the block. */
static __device__ __forceinline__ uint32_t block_largest(uint32_t x, uint32_t parts[32]) {
#pragma unroll
    for (int i = 16; i > 0; i /= 2) x = max(x, __shfl_xor_sync(0xffffffffu, x, i));
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    for (unsigned w = 0; w < blockDim.x / 32; w++) x = max(x, parts[w]);
    return x;
}

/* A row a block. A thread holds P pieces of 8 columns, which take half of the registers where they are not FLOATS; what is wider is
 * read again. Two blocks fit a multiprocessor: while one waits for its largest, the other one moves. */
template <int P, bool FLOATS>
static __global__ void __launch_bounds__(MOST, 2) round_rows(uint8_t *to, int64_t ld, float *scale, gr_view x, int64_t C) {
    __shared__ uint32_t parts[32];
    __builtin_assume(FLOATS || x.type != GR_DTYPE_F32);
    const int64_t row = blockIdx.x, turn = (int64_t)blockDim.x * 8 * P;
    gr_raw8 raw[P];
    uint32_t peak = 0;
    for (int64_t first = threadIdx.x * 8; first < ld; first += turn) {
#pragma unroll
        for (int p = 0; p < P; p++) raw[p] = gr_fetch8(x, row, first + p * (int64_t)blockDim.x * 8, C);
#pragma unroll
        for (int p = 0; p < P; p++) {
            float v[8];
            gr_take8(v, raw[p], x.type);
            peak = largest8(peak, v);
        }
    }
    const scale_pair by = scale_of(block_largest(peak, parts));
    if (threadIdx.x == 0) scale[row] = by.scale;
    for (int64_t first = threadIdx.x * 8; first < ld; first += turn)
#pragma unroll
        for (int p = 0; p < P; p++) {
            const int64_t col = first + p * (int64_t)blockDim.x * 8;
            float v[8];
            if (turn < ld) raw[p] = gr_fetch8(x, row, col, C);
            gr_take8(v, raw[p], x.type);
            if (col < ld) *(uint2 *)(to + row * ld + col) = eight_of(v, by.inverse);
        }
}

template <int P, bool FLOATS>
static void launch(gr_device *d, uint8_t *to, int64_t ld, float *scale, gr_rows x, int64_t n, int64_t C) {
    int64_t threads = ((ld / 8 + P - 1) / P + 31) / 32 * 32;
    if (threads > MOST) threads = MOST;
    GR_LAUNCH(d, (round_rows<P, FLOATS>), (unsigned)n, (unsigned)threads, 0, to, ld, scale, gr_view_of(x), C);
}

void gr_cuda_eight_rows(gr_device *d, uint8_t *to, int64_t ld, float *scale, gr_rows x, int64_t n, int64_t C) {
    if (ld <= MOST * 8) launch<1, true>(d, to, ld, scale, x, n, C);
    else if (x.type == GR_DTYPE_F32) launch<3, true>(d, to, ld, scale, x, n, C);
    else launch<6, false>(d, to, ld, scale, x, n, C);
}

/* ---- weights ---- */

/* peak[column] = the largest magnitude of it so far and of ROWS_EACH rows, 64 columns a block. */
static __global__ void __launch_bounds__(THREADS) find_peaks(uint32_t *peak, gr_view w, int64_t N, int64_t K) {
    __shared__ uint32_t all[TILE];
    const int64_t col = (int64_t)blockIdx.x * TILE + threadIdx.x % 8 * 8, first = (int64_t)blockIdx.y * ROWS_EACH;
    uint32_t mine[8] = {};
    if (threadIdx.x < TILE) all[threadIdx.x] = 0;
    for (int64_t row = first + threadIdx.x / 8; row < N && row < first + ROWS_EACH; row += THREADS / 8) {
        float v[8];
        gr_load8(v, w, row, col, K);
#pragma unroll
        for (int j = 0; j < 8; j++) mine[j] = max(mine[j], magnitude(v[j]));
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < 8; j++) atomicMax(&all[threadIdx.x % 8 * 8 + j], mine[j]);
    __syncthreads();
    if (threadIdx.x < TILE) atomicMax(&peak[blockIdx.x * TILE + threadIdx.x], all[threadIdx.x]);
}

/* 64 x 64 weights a block, through shared memory the other way round: a word of it holds four of a row. */
static __global__ void __launch_bounds__(THREADS)
    round_columns(uint8_t *to, float *scale, const uint32_t *peak, gr_view w, int64_t N, int64_t K) {
    __shared__ uint32_t tile[TILE][STRIDE];
    __shared__ float by[TILE];
    const int64_t k0 = (int64_t)blockIdx.x * TILE, n0 = (int64_t)blockIdx.y * TILE;
    if (threadIdx.x < TILE) {
        const scale_pair s = scale_of(peak[k0 + threadIdx.x]);
        by[threadIdx.x] = s.inverse;
        if (blockIdx.y == 0) scale[k0 + threadIdx.x] = s.scale;
    }
    __syncthreads();
    for (int at = threadIdx.x; at < TILE * TILE / 8; at += THREADS) {
        const int row = at / 8, col = at % 8 * 8;
        float v[8];
        gr_load8(v, w, n0 + row, k0 + col, K);
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] *= by[col + j];
        const uint2 eight = eight_of(v, 1);
        tile[row][col / 4] = eight.x, tile[row][col / 4 + 1] = eight.y;
    }
    __syncthreads();
    const int k = threadIdx.x / 4, n = threadIdx.x % 4 * 16, shift = k % 4 * 8;
    uint32_t out[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        out[i] = 0;
#pragma unroll
        for (int j = 0; j < 4; j++) out[i] |= (tile[n + 4 * i + j][k / 4] >> shift & 255) << 8 * j;
    }
    *(uint4 *)(to + (k0 + k) * N + n0 + n) = make_uint4(out[0], out[1], out[2], out[3]);
}

void gr_cuda_eight_columns(gr_device *d, uint8_t *to, float *scale, gr_rows w, int64_t N, int64_t K) {
    uint32_t *peak = (uint32_t *)(scale + K);
    d->zero(d, peak, K * 4);
    GR_LAUNCH(d, find_peaks, dim3(gr_blocks(K, TILE), gr_blocks(N, ROWS_EACH)), THREADS, 0, peak, gr_view_of(w), N, K);
    GR_LAUNCH(d, round_columns, dim3(gr_blocks(K, TILE), gr_blocks(N, TILE)), THREADS, 0, to, scale, peak, gr_view_of(w), N, K);
}
