/* norm.cu - RMSNorm of rows or of their heads ("parts" of a row).
 *
 * Bound by bytes. An element of the residual stream (float32) with its branch (bfloat16) takes 4 + 2 read and 4 + 2 written
 * forward, 2 + 4 + 4 read and 4 + 2 written backward (the 2: dx as products take it, who would read 4 to make them), once each: a
 * part stays in registers between its sum and its result. Threads
 * that share a part ("lanes") are a power of two within a warp, or a block; each has up to P pieces of 8 columns at a time, which
 * it fetches together. Parts beyond all lanes' pieces take turns and are read twice.
 * What a part's sum is made of, and in which order (pieces of a lane, a tree over a warp's lanes, warps), follows from its width
 * alone. The gradient of the weight is a sum over fixed chunks of parts, whose partial sums are added 64 at a time in order. */
#include "kernels/cuda/rows.cuh"

enum {
    THREADS = 256,  /* of a block of several parts */
    MOST = 512,     /* lanes of a part */
    FORWARD = 4,    /* pieces of a lane */
    BACKWARD = 2,   /* fewer: it holds three rows */
    CHUNK_ROWS = 8, /* parts whose share in the weight's gradient a lane adds up */
    SUM_ROWS = 64   /* partial sums that become one */
};

struct part_shape {
    int64_t n, parts, width; /* n: parts of all rows */
};

/* Sum over the lanes of a part, blockDim.x. All threads of the block take part. */
static __device__ __forceinline__ float lanes_sum(float x, float *shared) {
    if (blockDim.x > 32) return gr_block_sum(x, shared);
    for (int i = blockDim.x / 2; i > 0; i /= 2) x += __shfl_xor_sync(0xffffffffu, x, i);
    return x;
}

/* Part i: its row, and its first column and the one behind its last; no columns where i is none. */
struct part_place {
    int64_t row, begin, end;
};

static __device__ __forceinline__ part_place part_of(const part_shape &s, int64_t i) {
    int64_t row = i / s.parts, begin = (i - row * s.parts) * s.width;
    return part_place{row, begin, i < s.n ? begin + s.width : begin};
}

/* sum: x where nothing is added. */
template <int P>
static __global__ void __launch_bounds__(MOST)
    norm_forward(gr_view out, float *rstd, gr_view sum, gr_view x, gr_view add, gr_view w, float eps, part_shape s) {
    __shared__ float shared[32];
    const int64_t i = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    const part_place at = part_of(s, i);
    const int turn = (int)blockDim.x * P * 8;
    float v[P][8], squares = 0;
    for (int64_t first = threadIdx.x * 8; first < s.width; first += turn) {
        gr_raw8 raw[P], more[P];
#pragma unroll
        for (int p = 0; p < P; p++) {
            const int64_t col = at.begin + first + p * (int)blockDim.x * 8;
            raw[p] = gr_fetch8(x, at.row, col, at.end);
            if (add.data) more[p] = gr_fetch8(add, at.row, col, at.end);
        }
#pragma unroll
        for (int p = 0; p < P; p++) {
            gr_take8(v[p], raw[p], x.type);
            if (add.data) {
                float y[8];
                gr_take8(y, more[p], add.type);
#pragma unroll
                for (int j = 0; j < 8; j++) v[p][j] += y[j];
                gr_store8(sum, at.row, at.begin + first + p * (int)blockDim.x * 8, at.end, v[p]);
            }
#pragma unroll
            for (int j = 0; j < 8; j++) squares += v[p][j] * v[p][j];
        }
    }
    const float scale = 1.0f / sqrtf(lanes_sum(squares, shared) / (float)s.width + eps);
    if (rstd && threadIdx.x == 0 && i < s.n) rstd[i] = scale;
    for (int64_t first = threadIdx.x * 8; first < s.width; first += turn)
#pragma unroll
        for (int p = 0; p < P; p++) {
            const int64_t col = first + p * (int)blockDim.x * 8;
            float weight[8];
            if (s.width > turn) gr_load8(v[p], sum, at.row, at.begin + col, at.end);
            gr_load8(weight, w, 0, col, s.width);
#pragma unroll
            for (int j = 0; j < 8; j++) v[p][j] *= scale * weight[j];
            gr_store8(out, at.row, at.begin + col, at.end, v[p]);
        }
}

/* Lanes take `each` parts one after the other; partial[chunks,width], where it is, receives their sums for the weight. */
template <int P>
static __global__ void __launch_bounds__(MOST)
    norm_backward(gr_view dx, gr_view also, bool accumulate, gr_view dout, gr_view x, const float *rstd, gr_view w, gr_view partial,
                  int each, part_shape s) {
    __shared__ float shared[32];
    const int64_t chunk = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    const int64_t chunk_end = chunk * each < s.n ? s.width : 0; /* columns of partial */
    const int turn = (int)blockDim.x * P * 8;
    const bool turns = s.width > turn;
    float sums[P][8] = {};
    for (int64_t i = chunk * each; i < (chunk + 1) * each; i++) {
        const part_place at = part_of(s, i);
        const float scale = i < s.n ? rstd[i] : 0.0f;
        float g[P][8], v[P][8], sum = 0;
        for (int64_t first = threadIdx.x * 8; first < s.width; first += turn) {
            gr_raw8 raw_g[P], raw_v[P];
#pragma unroll
            for (int p = 0; p < P; p++) {
                const int64_t col = first + p * (int)blockDim.x * 8;
                raw_g[p] = gr_fetch8(dout, at.row, at.begin + col, at.end);
                raw_v[p] = gr_fetch8(x, at.row, at.begin + col, at.end);
                if (turns && partial.data) gr_load8(sums[p], partial, chunk, col, i > chunk * each ? chunk_end : 0);
            }
#pragma unroll
            for (int p = 0; p < P; p++) {
                const int64_t col = first + p * (int)blockDim.x * 8;
                float weight[8];
                gr_load8(weight, w, 0, col, s.width);
                gr_take8(g[p], raw_g[p], dout.type), gr_take8(v[p], raw_v[p], x.type);
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    sums[p][j] += g[p][j] * v[p][j] * scale;
                    g[p][j] *= weight[j];
                    sum += g[p][j] * v[p][j];
                }
                if (turns && partial.data) gr_store8(partial, chunk, col, chunk_end, sums[p]);
            }
        }
        const float mean = lanes_sum(sum, shared) * scale / (float)s.width;
        for (int64_t first = threadIdx.x * 8; first < s.width; first += turn)
#pragma unroll
            for (int p = 0; p < P; p++) {
                const int64_t col = first + p * (int)blockDim.x * 8;
                float d[8];
                if (turns) {
                    gr_load8(g[p], dout, at.row, at.begin + col, at.end), gr_load8(v[p], x, at.row, at.begin + col, at.end);
                    gr_load8(d, w, 0, col, s.width);
#pragma unroll
                    for (int j = 0; j < 8; j++) g[p][j] *= d[j];
                }
                gr_load8(d, dx, at.row, at.begin + col, accumulate ? at.end : 0);
#pragma unroll
                for (int j = 0; j < 8; j++) d[j] += scale * (g[p][j] - v[p][j] * scale * mean);
                gr_store8(dx, at.row, at.begin + col, at.end, d);
                if (also.data) gr_store8(also, at.row, at.begin + col, at.end, d);
            }
    }
    if (partial.data && !turns)
#pragma unroll
        for (int p = 0; p < P; p++) gr_store8(partial, chunk, (threadIdx.x + p * (int64_t)blockDim.x) * 8, chunk_end, sums[p]);
}

/* to[k] = (+=, by add) the sum of from's rows k * SUM_ROWS.. of n, in order. A thread per column. */
static __global__ void sum_rows(float *to, bool add, const float *from, int64_t n, int64_t width) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, k = i / width, col = i - k * width;
    const int64_t end = (k + 1) * SUM_ROWS < n ? (k + 1) * SUM_ROWS : n;
    if (k * SUM_ROWS >= n) return;
    float sum = 0;
#pragma unroll 8
    for (int64_t r = k * SUM_ROWS; r < end; r++) sum += from[r * width + col];
    to[i] = add ? to[i] + sum : sum;
}

/* Lanes and parts of a block. */
static dim3 threads_of(int64_t width, int each) {
    const int64_t pieces = (width + 7) / 8, wanted = (pieces + each - 1) / each;
    unsigned lanes = 1;
    while (lanes < 32 && lanes < wanted) lanes *= 2;
    if (wanted <= 32) return dim3(lanes, THREADS / lanes);
    return dim3(wanted < MOST ? (unsigned)(wanted + 31) / 32 * 32 : (unsigned)MOST);
}

/* Whether the parts of a row begin at pieces of it; else none is moved as a whole. */
static gr_view parts_of(gr_rows x, const gr_norm *p) {
    gr_view view = gr_view_of(x);
    if (p->parts > 1 && p->width % 8 != 0) view.wide = false;
    return view;
}

static gr_view row_view(float *x, int64_t width) { return gr_view_of(gr_rows{x, width, GR_DTYPE_F32}); }
static bool is_narrow(const gr_norm *p) { return p->width <= 32 * 8; } /* a piece for each lane of a warp */

void gr_rmsnorm_forward_cuda(gr_device *d, gr_rows out, float *rstd, gr_rows sum, gr_rows x, gr_rows add, const gr_norm *p,
                             int64_t n) {
    const dim3 threads = threads_of(p->width, is_narrow(p) ? 1 : FORWARD);
    const part_shape s = {n * p->parts, p->parts, p->width};
    const gr_view weight = row_view((float *)(uintptr_t)p->w, p->width);
    if (is_narrow(p))
        GR_LAUNCH(d, norm_forward<1>, gr_blocks(s.n, threads.y), threads, 0, parts_of(out, p), rstd,
                  parts_of(add.data ? sum : x, p), parts_of(x, p), parts_of(add, p), weight, p->eps, s);
    else
        GR_LAUNCH(d, norm_forward<FORWARD>, gr_blocks(s.n, threads.y), threads, 0, parts_of(out, p), rstd,
                  parts_of(add.data ? sum : x, p), parts_of(x, p), parts_of(add, p), weight, p->eps, s);
}

/* dw += the sum of the first of two areas, of n partial sums; the other one has room for those of SUM_ROWS each. */
static void add_partial_sums(gr_device *d, float *dw, float *from, int64_t n, int64_t width) {
    float *to = from + n * width;
    for (int64_t sums; n > SUM_ROWS; n = sums) {
        sums = (n + SUM_ROWS - 1) / SUM_ROWS;
        GR_LAUNCH(d, sum_rows, gr_blocks(sums * width, THREADS), THREADS, 0, to, false, from, n, width);
        float *other = from;
        from = to, to = other;
    }
    if (n > 0) GR_LAUNCH(d, sum_rows, gr_blocks(width, THREADS), THREADS, 0, dw, true, from, n, width);
}

void gr_rmsnorm_backward_cuda(gr_device *d, gr_rows dx, gr_rows also, bool accumulate, gr_rows dout, gr_rows x, const float *rstd,
                              const gr_norm *p, int64_t n) {
    const dim3 threads = threads_of(p->width, is_narrow(p) ? 1 : BACKWARD);
    const part_shape s = {n * p->parts, p->parts, p->width};
    const gr_view weight = row_view((float *)(uintptr_t)p->w, p->width);
    const int each = p->dw ? CHUNK_ROWS : 1;
    const int64_t chunks = (s.n + each - 1) / each, rows = chunks + (chunks + SUM_ROWS - 1) / SUM_ROWS;
    float *partial = p->dw ? (float *)gr_cuda_scratch(d, GR_CUDA_PARTS, rows * p->width * (int64_t)sizeof(float)) : NULL;
    if (is_narrow(p))
        GR_LAUNCH(d, norm_backward<1>, gr_blocks(chunks, threads.y), threads, 0, parts_of(dx, p), parts_of(also, p), accumulate,
                  parts_of(dout, p), parts_of(x, p), rstd, weight, row_view(partial, p->width), each, s);
    else
        GR_LAUNCH(d, norm_backward<BACKWARD>, gr_blocks(chunks, threads.y), threads, 0, parts_of(dx, p), parts_of(also, p),
                  accumulate, parts_of(dout, p), parts_of(x, p), rstd, weight, row_view(partial, p->width), each, s);
    if (p->dw) add_partial_sums(d, p->dw, partial, chunks, p->width);
}
