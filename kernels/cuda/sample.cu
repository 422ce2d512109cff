/* sample.cu - the next token where its logits are: an id is moved to the host instead of a row of the vocabulary.
 *
 * Bound by reading V floats a row, which the head has just written and the cache mostly still has: a block a row, 16 bytes a load,
 * 64 KiB under way. A multiprocessor takes 64 bytes a clock at most: a row of 150,000 is some 6 us of one, beside the head's
 * product, that reads C values a logit. */
#include "kernels/cuda/rows.cuh"

enum { ROW_THREADS = 1024, AHEAD = 4, STRIDE = 4 * ROW_THREADS }; /* groups of 4 columns that are loaded at once */

/* The largest so far and its column; minus infinity: none was finite. */
struct best_value {
    float value;
    int32_t column;
};

/* Columns come in order: the first of equals stays. */
static __device__ __forceinline__ void take_group(best_value *best, const float x[4], int64_t col) {
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (x[i] > best->value && x[i] < INFINITY) *best = best_value{x[i], (int32_t)col + i};
}

/* The best of a warp, in all its lanes. */
static __device__ __forceinline__ best_value best_of_warp(best_value best) {
#pragma unroll
    for (int i = 16; i > 0; i /= 2) {
        const float value = __shfl_xor_sync(0xffffffffu, best.value, i);
        const int32_t column = __shfl_xor_sync(0xffffffffu, best.column, i);
        if (value > best.value || (value == best.value && column < best.column)) best = best_value{value, column};
    }
    return best;
}

static __global__ void __launch_bounds__(ROW_THREADS)
    best_columns(int32_t *to, const float *logits, int64_t ld, int64_t V, bool wide) {
    __shared__ best_value warps[ROW_THREADS / 32];
    const float *row = logits + blockIdx.x * ld;
    const int64_t in_steps = wide ? V / (AHEAD * STRIDE) * (AHEAD * STRIDE) : 0;
    best_value best = {-INFINITY, INT32_MAX};
    int64_t col = 4 * (int64_t)threadIdx.x;
    float x[AHEAD][4];
    for (; col < in_steps; col += AHEAD * STRIDE) {
#pragma unroll
        for (int j = 0; j < AHEAD; j++) gr_load4(x[j], row, col + j * STRIDE, INT64_MAX, true, -INFINITY);
#pragma unroll
        for (int j = 0; j < AHEAD; j++) take_group(&best, x[j], col + j * STRIDE);
    }
    for (; col < V; col += STRIDE) {
        gr_load4(x[0], row, col, V, wide, -INFINITY);
        take_group(&best, x[0], col);
    }
    best = best_of_warp(best);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = best;
    __syncthreads();
    if (threadIdx.x >= 32) return;
    best = best_of_warp(warps[threadIdx.x]);
    if (threadIdx.x == 0) to[blockIdx.x] = best.value > -INFINITY ? best.column : -1;
}

void gr_best_column_cuda(gr_device *d, int32_t *best, gr_rows logits, int64_t n, int64_t V) {
    if (logits.type != GR_DTYPE_F32) gr_cuda_refuse(d, "best_column: logits are not float32");
    GR_LAUNCH(d, best_columns, (unsigned)n, ROW_THREADS, 0, best, (const float *)logits.data, logits.ld, V,
              gr_view_of(logits).wide);
}
