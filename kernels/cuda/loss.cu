/* loss.cu - the loss of rows of logits, and what a step sums up.
 *
 * cross_entropy is bound by memory: a logit is read for the largest and the sum of its row (4 bytes), then read again and written
 * as its gradient (8). A block walks along a row, a thread taking 4 columns of every 2,048; back it walks from the end, where the
 * row is still in the cache. Each thread keeps its largest logit and its sum of exponentials (the recurrence of arXiv 1805.02867);
 * those of the threads are added in a tree. So the order depends on V alone.
 * sum_squares is bound by memory too (4 bytes an element). The rest is small. */
#include <float.h>

#include "kernels/cuda/rows.cuh"

/* ---- cross entropy ---- */

enum { ROW_THREADS = 512, AHEAD = 4, STRIDE = 4 * ROW_THREADS }; /* groups of 4 columns that are loaded at once */

static const int64_t WITHIN = INT64_MAX; /* instead of V, where all of a step's columns are known to be below it */

/* Of a block's row, the same for all threads. */
struct row_loss {
    float cap, inverse_cap; /* 0: none */
    float largest, share;   /* of capped logits; what exponentials are multiplied with */
    float weight;
    int64_t target;
};

struct softmax_sum {
    float largest, sum; /* sum of exp(x - largest) */
};

static __device__ __forceinline__ float capped(float x, float cap, float inverse_cap) {
    return cap > 0 ? __fmul_rn(cap, tanhf(__fmul_rn(x, inverse_cap))) : x;
}

/* Roundings are written out: the bits are those of the order, whatever is fused. */
static __device__ __forceinline__ void add_group(softmax_sum *to, const float x[4]) {
    float top = fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3]));
    if (top > to->largest) {
        to->sum = __fmul_rn(to->sum, expf(__fsub_rn(to->largest, top)));
        to->largest = top;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) to->sum = __fadd_rn(to->sum, expf(__fsub_rn(x[i], to->largest)));
}

/* What is beyond V stays minus infinity, of which no term comes. */
static __device__ __forceinline__ void cap_group(float x[4], float cap, float inverse_cap, int64_t col, int64_t V) {
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (col + i < V) x[i] = capped(x[i], cap, inverse_cap);
}

/* Of capped logits, what is written: their gradient, or they themselves. */
static __device__ __forceinline__ void write_group(float *row, int64_t col, int64_t V, bool wide, float x[4], const row_loss &of,
                                                   bool gradient) {
    if (gradient)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float hit = col + i == of.target ? 1.0f : 0.0f, relative = __fmul_rn(x[i], of.inverse_cap); /* no cap: 0 */
            float slope = __fmaf_rn(-relative, relative, 1.0f);
            float p = __fmaf_rn(of.share, expf(__fsub_rn(x[i], of.largest)), -hit);
            x[i] = __fmul_rn(__fmul_rn(of.weight, p), slope);
        }
    gr_store4(row, col, V, wide, x);
}

/* Sum and largest of the row's capped logits, in all threads of the block. */
static __device__ __forceinline__ softmax_sum sum_row(const float *row, int64_t V, bool wide, float cap, float inverse_cap) {
    __shared__ float tops[32], sums[32];
    softmax_sum of = {-FLT_MAX, 0};
    int64_t col = 4 * (int64_t)threadIdx.x, in_steps = wide ? V / (AHEAD * STRIDE) * (AHEAD * STRIDE) : 0;
    float x[AHEAD][4];
    for (; col < in_steps; col += AHEAD * STRIDE) {
#pragma unroll
        for (int j = 0; j < AHEAD; j++) gr_load4(x[j], row, col + j * STRIDE, WITHIN, true, -INFINITY);
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            cap_group(x[j], cap, inverse_cap, col + j * STRIDE, WITHIN);
            add_group(&of, x[j]);
        }
    }
    for (; col < V; col += STRIDE) {
        gr_load4(x[0], row, col, V, wide, -INFINITY);
        cap_group(x[0], cap, inverse_cap, col, V);
        add_group(&of, x[0]);
    }
    float top = gr_warp_max(of.largest);
    if (threadIdx.x % 32 == 0) tops[threadIdx.x / 32] = top;
    __syncthreads();
    for (int w = 0; w < ROW_THREADS / 32; w++) top = fmaxf(top, tops[w]);
    return softmax_sum{top, gr_block_sum(__fmul_rn(of.sum, expf(__fsub_rn(of.largest, top))), sums)};
}

static __global__ void __launch_bounds__(ROW_THREADS)
    cross_entropy_rows(float *nll, float *logits, int64_t ld, const int32_t *target, const float *weight, int64_t V,
                       gr_loss_terms p, bool wide) {
    const int64_t r = blockIdx.x, in_steps = wide ? V / (AHEAD * STRIDE) * (AHEAD * STRIDE) : 0, own = 4 * (int64_t)threadIdx.x;
    float *row = logits + r * ld;
    row_loss of = {p.softcap, p.softcap > 0 ? 1 / p.softcap : 0.0f};
    of.target = target[r];
    const float of_target = capped(row[of.target], of.cap, of.inverse_cap); /* before it is overwritten */
    const softmax_sum all = sum_row(row, V, wide, of.cap, of.inverse_cap);
    const float log_sum = logf(all.sum);
    of.largest = all.largest;
    if (threadIdx.x == 0) nll[r] = log_sum - (of_target - all.largest);
    if (!weight && !(of.cap > 0)) return;
    of.share = (1 + 2 * p.z_loss * (log_sum + all.largest)) / all.sum;
    of.weight = weight ? weight[r] * (p.scale ? *p.scale : 1.0f) : 0.0f;

    float x[AHEAD][4];
    for (int64_t col = in_steps + (V - in_steps) / STRIDE * STRIDE + own; col >= in_steps; col -= STRIDE) {
        if (col >= V) continue;
        gr_load4(x[0], row, col, V, wide, -INFINITY);
        cap_group(x[0], of.cap, of.inverse_cap, col, V);
        write_group(row, col, V, wide, x[0], of, weight != NULL);
    }
    for (int64_t col = in_steps - AHEAD * STRIDE + own; col >= 0; col -= AHEAD * STRIDE) {
#pragma unroll
        for (int j = 0; j < AHEAD; j++) gr_load4(x[j], row, col + j * STRIDE, WITHIN, true, -INFINITY);
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            cap_group(x[j], of.cap, of.inverse_cap, col + j * STRIDE, WITHIN);
            write_group(row, col + j * STRIDE, WITHIN, true, x[j], of, weight != NULL);
        }
    }
}

void gr_cross_entropy_cuda(gr_device *d, float *nll, gr_rows logits, const int32_t *target, const float *weight, int64_t n,
                           int64_t V, const gr_loss_terms *p) {
    if (logits.type != GR_DTYPE_F32) gr_cuda_refuse(d, "cross_entropy: logits are not float32");
    GR_LAUNCH(d, cross_entropy_rows, (unsigned)n, ROW_THREADS, 0, nll, (float *)logits.data, logits.ld, target, weight, V, *p,
              gr_view_of(logits).wide);
}

/* ---- sums of a step ---- */

enum { TERMS = 1024 };

/* A block: all threads make the terms, each exact in double; one adds them, in row order. */
static __global__ void __launch_bounds__(TERMS)
    loss_sum_rows(gr_step_stats *s, const float *nll, const float *weight, const int32_t *row, int64_t n, int64_t first) {
    __shared__ double term[TERMS];
    for (int64_t at = 0; at < n; at += TERMS) {
        const int64_t r = at + threadIdx.x, count = n - at < TERMS ? n - at : TERMS;
        const float loss = r < n ? nll[r] : 0.0f;
        term[threadIdx.x] = r < n ? (double)loss * weight[r] : 0.0;
        const bool bad = __syncthreads_or(!isfinite(loss));
        if (threadIdx.x == 0) {
            double sum = s->nll;
#pragma unroll 8
            for (int i = 0; i < count; i++) sum += term[i];
            s->nll = sum;
            for (int i = 0; bad && i < count && s->bad_row < 0; i++)
                if (!isfinite(nll[at + i])) s->bad_row = first + row[at + i];
        }
        __syncthreads();
    }
}

void gr_loss_sum_cuda(gr_device *d, gr_step_stats *s, const float *nll, const float *weight, const int32_t *row, int64_t n,
                      int64_t first) {
    GR_LAUNCH(d, loss_sum_rows, n > 0, TERMS, 0, s, nll, weight, row, n, first);
}

/* Chunks of 8,192 elements, at most so many blocks that take every such chunk in turn; the sums of blocks are added in a tree. All
 * of it is a function of n. */
enum { SQUARE_THREADS = 256, SQUARE_GROUPS = 8, SQUARE_CHUNK = 4 * SQUARE_THREADS * SQUARE_GROUPS, SQUARE_BLOCKS = 1024 };

static __global__ void __launch_bounds__(SQUARE_THREADS) square_chunks(double *parts, const float *x, int64_t n, bool wide) {
    __shared__ double warps[32];
    double sum = 0;
    for (int64_t at = (int64_t)blockIdx.x * SQUARE_CHUNK; at < n; at += (int64_t)gridDim.x * SQUARE_CHUNK) {
        float v[SQUARE_GROUPS][4];
#pragma unroll
        for (int j = 0; j < SQUARE_GROUPS; j++) gr_load4(v[j], x, at + 4 * ((int64_t)j * SQUARE_THREADS + threadIdx.x), n, wide, 0);
#pragma unroll
        for (int j = 0; j < SQUARE_GROUPS; j++)
#pragma unroll
            for (int k = 0; k < 4; k++) sum += (double)v[j][k] * v[j][k]; /* exact: fused or not is the same */
    }
    sum = gr_block_sum(sum, warps);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

static __global__ void __launch_bounds__(1024) add_squares(gr_step_stats *s, const double *parts, int n) {
    __shared__ double warps[32];
    double sum = 0;
    for (int i = threadIdx.x; i < n; i += 1024) sum += parts[i];
    sum = gr_block_sum(sum, warps);
    if (threadIdx.x == 0) s->squares += sum;
}

void gr_sum_squares_cuda(gr_device *d, gr_step_stats *s, const float *x, int64_t n) {
    const int64_t chunks = (n + SQUARE_CHUNK - 1) / SQUARE_CHUNK, blocks = chunks < SQUARE_BLOCKS ? chunks : (int64_t)SQUARE_BLOCKS;
    double *parts = (double *)gr_cuda_scratch(d, GR_CUDA_PARTS, SQUARE_BLOCKS * (int64_t)sizeof(double));
    GR_LAUNCH(d, square_chunks, (unsigned)blocks, SQUARE_THREADS, 0, parts, x, n, (uintptr_t)x % 16 == 0);
    GR_LAUNCH(d, add_squares, blocks > 0, 1024, 0, s, parts, (int)blocks);
}

/* ---- one thread ---- */

static __global__ void begin_step(gr_step_stats *s) { s->nll = 0, s->squares = 0, s->bad_row = -1, s->clip = 0, s->nonfinite = 0; }

static __device__ void check(gr_step_stats *s, bool halt_on_nonfinite) {
    s->nonfinite = !isfinite(s->nll) || !isfinite(sqrt(s->squares));
    s->halt |= s->nonfinite && halt_on_nonfinite;
}

static __global__ void check_step(gr_step_stats *s, bool halt_on_nonfinite) { check(s, halt_on_nonfinite); }

static __global__ void prepare_step(gr_step_stats *s, double max_norm, bool halt_on_nonfinite) {
    const float scale = s->loss_scale > 0 ? s->loss_scale : 1.0f;
    s->squares /= (double)scale * scale;
    const double by = max_norm / (sqrt(s->squares) + 1e-6);
    check(s, halt_on_nonfinite && (scale <= 1 || !isfinite(s->nll)));
    s->clip = 1;
    s->good_steps = s->nonfinite ? 0 : s->good_steps + 1;
    if (s->nonfinite) {
        if (scale > 1) s->loss_scale = scale / 2;
        return;
    }
    s->clip = (max_norm > 0 && by < 1 ? (float)by : 1.0f) / scale;
    if (!s->halt) s->optimizer_step++;
    if (s->loss_scale <= 0 || s->good_steps < GR_LOSS_SCALE_STEPS) return;
    s->good_steps = 0;
    if (scale < (float)GR_LOSS_SCALE_MOST) s->loss_scale = 2 * scale;
}

void gr_step_begin_cuda(gr_device *d, gr_step_stats *s) { GR_LAUNCH(d, begin_step, 1, 1, 0, s); }

void gr_step_check_cuda(gr_device *d, gr_step_stats *s, bool halt_on_nonfinite) {
    GR_LAUNCH(d, check_step, 1, 1, 0, s, halt_on_nonfinite);
}

void gr_step_prepare_cuda(gr_device *d, gr_step_stats *s, double max_norm, bool halt_on_nonfinite) {
    GR_LAUNCH(d, prepare_step, 1, 1, 0, s, max_norm, halt_on_nonfinite);
}
